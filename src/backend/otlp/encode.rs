//! OTLP metrics as protobuf, written as they are read: no value of a series is copied into a message first, and no label
//! into a `String`. Owns the field numbers and the cutting into requests.
//!
//! A field whose length is not known yet is written behind a gap of one byte; where that was too little, what was written
//! moves up. Most points are shorter than 128 bytes, and the gap is enough.

use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

use crate::{
    Exemplar,
    desc::MetricKind,
    labels::{raw_pairs, unescape},
    sketch::{Exponential, Span},
};

/// A request ends at the point that reaches this many bytes, before compression. Receivers by gRPC take 4 MiB.
pub(super) const REQUEST_MAX: usize = 3 << 20;

/// Whatever else than an error is said of these: they write to memory.
fn key(out: &mut Vec<u8>, field: u32, wire: WireType) {
    encode_key(field, wire, out);
}

fn text(out: &mut Vec<u8>, field: u32, value: &str) {
    if !value.is_empty() {
        bytes(out, field, value.as_bytes());
    }
}

fn bytes(out: &mut Vec<u8>, field: u32, value: &[u8]) {
    key(out, field, WireType::LengthDelimited);
    encode_varint(value.len() as u64, out);
    out.extend_from_slice(value);
}

fn number(out: &mut Vec<u8>, field: u32, value: u64) {
    key(out, field, WireType::Varint);
    encode_varint(value, out);
}

/// An `sint32`.
fn signed(out: &mut Vec<u8>, field: u32, value: i32) {
    number(out, field, u64::from(((value << 1) ^ (value >> 31)) as u32));
}

fn fixed(out: &mut Vec<u8>, field: u32, value: u64) {
    key(out, field, WireType::SixtyFourBit);
    out.extend_from_slice(&value.to_le_bytes());
}

fn double(out: &mut Vec<u8>, field: u32, value: f64) {
    fixed(out, field, value.to_bits());
}

/// What `write` writes, behind its length.
fn message(out: &mut Vec<u8>, field: u32, write: impl FnOnce(&mut Vec<u8>)) {
    key(out, field, WireType::LengthDelimited);
    let at = out.len();
    out.push(0);
    write(out);
    let length = out.len() - at - 1;
    if length < 128 {
        out[at] = length as u8;
        return;
    }
    let mut prefix = [0; 10];
    encode_varint(length as u64, &mut &mut prefix[..]);
    let taken = encoded_len_varint(length as u64);
    out.splice(at..=at, prefix[..taken].iter().copied());
}

/// A `KeyValue` with a text.
fn attribute(out: &mut Vec<u8>, field: u32, name: &str, value: &str) {
    let inner = value.len();
    let any = 1 + encoded_len_varint(inner as u64) + inner;
    let pair = 1 + encoded_len_varint(name.len() as u64) + name.len();
    let pair = pair + 1 + encoded_len_varint(any as u64) + any;
    key(out, field, WireType::LengthDelimited);
    encode_varint(pair as u64, out);
    bytes(out, 1, name.as_bytes());
    key(out, 2, WireType::LengthDelimited);
    encode_varint(any as u64, out);
    bytes(out, 1, value.as_bytes());
}

/// The labels of a series.
#[derive(Clone, Copy)]
pub(super) enum Tags<'a> {
    /// As they are exposed: values still escaped.
    Text(&'a str),
    Pairs(&'a [(String, String)]),
}

impl Tags<'_> {
    fn write(self, out: &mut Vec<u8>, field: u32) {
        match self {
            Tags::Text(text) => {
                for (name, value) in raw_pairs(text) {
                    if value.contains('\\') {
                        attribute(out, field, name, &unescape(value));
                    } else {
                        attribute(out, field, name, value);
                    }
                }
            }
            Tags::Pairs(pairs) => {
                for (name, value) in pairs {
                    attribute(out, field, name, value);
                }
            }
        }
    }
}

/// What all points of a metric share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Shape<'a> {
    pub(super) name: &'a str,
    pub(super) help: &'a str,
    pub(super) unit: Option<&'a str>,
    pub(super) form: Form,
    pub(super) delta: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Gauge,
    Sum,
    Histogram,
    Exponential,
}

impl Form {
    pub(super) fn of(kind: MetricKind, exponential: bool) -> Form {
        match kind {
            MetricKind::Counter => Form::Sum,
            MetricKind::Gauge => Form::Gauge,
            MetricKind::Histogram if exponential => Form::Exponential,
            MetricKind::Histogram => Form::Histogram,
        }
    }
}

/// From when to when, in nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span64 {
    pub(super) start: u64,
    pub(super) end: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Number {
    Whole(u64),
    Real(f64),
}

/// What points of a histogram have in common, whatever their buckets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Observed {
    pub(super) count: u64,
    /// `None` where there were negative observations: OTLP's sums only grow.
    pub(super) sum: Option<f64>,
    /// The least and the greatest observation, where they are known.
    pub(super) extremes: Option<(f64, f64)>,
}

/// OpenTelemetry's units are those of UCUM; Prometheus writes them out.
fn unit(unit: &str) -> &str {
    match unit {
        "seconds" => "s",
        "milliseconds" => "ms",
        "bytes" => "By",
        "ratio" => "1",
        "percent" => "%",
        "celsius" => "Cel",
        "meters" => "m",
        "grams" => "g",
        "joules" => "J",
        "volts" => "V",
        "amperes" => "A",
        "watts" => "W",
        "hertz" => "Hz",
        other => other,
    }
}

pub(super) fn write_number(
    out: &mut Vec<u8>,
    tags: Tags<'_>,
    time: Option<u64>,
    at: u64,
    value: Number,
    exemplars: &[(Option<usize>, Exemplar)],
) {
    if let Some(start) = time {
        fixed(out, 2, start);
    }
    fixed(out, 3, at);
    match value {
        Number::Whole(value) => match i64::try_from(value) {
            Ok(_) => fixed(out, 6, value),
            Err(_) => double(out, 4, value as f64),
        },
        Number::Real(value) => double(out, 4, value),
    }
    for (_, exemplar) in exemplars {
        write_exemplar(out, 5, exemplar);
    }
    tags.write(out, 7);
}

pub(super) fn write_histogram(
    out: &mut Vec<u8>,
    tags: Tags<'_>,
    time: Span64,
    seen: Observed,
    counts: &[u64],
    bounds: &[f64],
    exemplars: &[(Option<usize>, Exemplar)],
) {
    fixed(out, 2, time.start);
    fixed(out, 3, time.end);
    fixed(out, 4, seen.count);
    if let Some(sum) = seen.sum {
        double(out, 5, sum);
    }
    key(out, 6, WireType::LengthDelimited);
    encode_varint(8 * counts.len() as u64, out);
    for count in counts {
        out.extend_from_slice(&count.to_le_bytes());
    }
    if !bounds.is_empty() {
        key(out, 7, WireType::LengthDelimited);
        encode_varint(8 * bounds.len() as u64, out);
        for bound in bounds {
            out.extend_from_slice(&bound.to_le_bytes());
        }
    }
    for (_, exemplar) in exemplars {
        write_exemplar(out, 8, exemplar);
    }
    tags.write(out, 9);
    if let Some((min, max)) = seen.extremes {
        double(out, 11, min);
        double(out, 12, max);
    }
}

pub(super) fn write_exponential(
    out: &mut Vec<u8>,
    tags: Tags<'_>,
    time: Span64,
    seen: Observed,
    buckets: &Exponential,
    exemplars: &[(Option<usize>, Exemplar)],
) {
    tags.write(out, 1);
    fixed(out, 2, time.start);
    fixed(out, 3, time.end);
    fixed(out, 4, seen.count);
    if let Some(sum) = seen.sum {
        double(out, 5, sum);
    }
    signed(out, 6, buckets.scale);
    fixed(out, 7, buckets.zero);
    for (field, span) in [(8, &buckets.positive), (9, &buckets.negative)] {
        if !span.counts.is_empty() {
            message(out, field, |out| write_span(out, span));
        }
    }
    for (_, exemplar) in exemplars {
        write_exemplar(out, 11, exemplar);
    }
    if let Some((min, max)) = seen.extremes {
        double(out, 12, min);
        double(out, 13, max);
    }
}

fn write_span(out: &mut Vec<u8>, span: &Span) {
    signed(out, 1, span.offset);
    let length: usize = span.counts.iter().map(|n| encoded_len_varint(*n)).sum();
    key(out, 2, WireType::LengthDelimited);
    encode_varint(length as u64, out);
    for count in &span.counts {
        encode_varint(*count, out);
    }
}

/// Ids of a trace and a span have fields of their own, where they are what W3C says they are.
fn write_exemplar(out: &mut Vec<u8>, field: u32, exemplar: &Exemplar) {
    let (mut trace, mut span) = (None, None);
    for (name, value) in &exemplar.labels {
        match &**name {
            "trace_id" => trace = hex::<16>(value),
            "span_id" => span = hex::<8>(value),
            _ => {}
        }
    }
    message(out, field, |out| {
        fixed(out, 2, nanos_of(exemplar.at));
        double(out, 3, exemplar.value);
        if let Some(id) = span {
            bytes(out, 4, &id);
        }
        if let Some(id) = trace {
            bytes(out, 5, &id);
        }
        for (name, value) in &exemplar.labels {
            let told =
                (name == "trace_id" && trace.is_some()) || (name == "span_id" && span.is_some());
            if !told {
                attribute(out, 7, name, value);
            }
        }
    });
}

fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut id = [0; N];
    for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |at: usize| char::from(pair[at]).to_digit(16);
        *byte = (digit(0)? << 4 | digit(1)?) as u8;
    }
    // All zeros are no id.
    id.iter().any(|byte| *byte != 0).then_some(id)
}

/// Nanoseconds since 1970; 0 for what was before.
pub(super) fn nanos_of(date: std::time::SystemTime) -> u64 {
    date.duration_since(std::time::UNIX_EPOCH)
        .map_or(0, crate::time::nanos)
}

/// A request's body, and how many points are in it.
pub(super) struct Request {
    pub(super) body: Vec<u8>,
    pub(super) points: u64,
}

/// Fills one request.
pub(super) struct Encoder<'a> {
    resource: &'a [u8],
    points_max: u64,
    bytes_max: usize,
    /// Whole metrics, each with its tag.
    metrics: Vec<u8>,
    /// Points in `metrics`.
    held: u64,
    /// Points of the present metric, each with its tag.
    points: Vec<u8>,
    in_metric: u64,
}

/// The resource of all requests.
pub(super) fn encode_resource(attributes: &[(String, String)]) -> Vec<u8> {
    let mut out = Vec::new();
    message(&mut out, 1, |out| Tags::Pairs(attributes).write(out, 1));
    out
}

impl<'a> Encoder<'a> {
    pub(super) fn new(resource: &'a [u8], points_max: usize, bytes_max: usize) -> Self {
        Encoder {
            resource,
            points_max: points_max as u64,
            bytes_max,
            metrics: Vec::new(),
            held: 0,
            points: Vec::new(),
            in_metric: 0,
        }
    }

    /// One point of the present metric, which [`end`](Encoder::end) ends.
    pub(super) fn point(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        message(&mut self.points, 1, write);
        self.in_metric += 1;
    }

    /// Whether the next point is one for another request.
    pub(super) fn is_full(&self) -> bool {
        let bytes = self.resource.len() + self.metrics.len() + self.points.len();
        self.held + self.in_metric >= self.points_max || bytes >= self.bytes_max
    }

    /// There are no more points of the metric `shape`.
    pub(super) fn end(&mut self, shape: &Shape<'_>) {
        if self.in_metric == 0 {
            return;
        }
        let points = &mut self.points;
        message(&mut self.metrics, 2, |out| {
            text(out, 1, shape.name);
            text(out, 2, shape.help);
            text(out, 3, shape.unit.map_or("", unit));
            let (field, temporal) = match shape.form {
                Form::Gauge => (5, false),
                Form::Sum => (7, true),
                Form::Histogram => (9, true),
                Form::Exponential => (10, true),
            };
            message(out, field, |out| {
                out.append(points);
                if temporal {
                    number(out, 2, if shape.delta { 1 } else { 2 });
                }
                if shape.form == Form::Sum {
                    number(out, 3, 1);
                }
            });
        });
        self.held += std::mem::take(&mut self.in_metric);
    }

    /// The request; `None` where there is no point in it.
    pub(super) fn finish(self) -> Option<Request> {
        if self.held == 0 {
            return None;
        }
        let mut body = Vec::with_capacity(self.metrics.len() + self.resource.len() + 64);
        message(&mut body, 1, |out| {
            out.extend_from_slice(self.resource);
            message(out, 2, |out| {
                message(out, 1, |out| {
                    text(out, 1, "metricbus");
                    text(out, 2, env!("CARGO_PKG_VERSION"));
                });
                out.extend_from_slice(&self.metrics);
            });
        });
        let points = self.held;
        Some(Request { body, points })
    }
}
