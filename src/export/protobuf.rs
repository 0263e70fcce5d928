//! The protobuf encoder: `io.prometheus.client.MetricFamily`, each with its length before it, as Prometheus asks for when it
//! wants native histograms.
//!
//! Messages are written by hand, straight into the buffer: a message's length stands before it and is known after it, so a
//! place is left for it, and what was written moves up where that is too small. Nothing is allocated per series.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::text::Style;
use crate::{
    clock::Clock,
    desc::{MetricKind, Numbers},
    exemplar::{Exemplar, Exemplars},
    labels::raw_pairs,
    metric::FamilyCore,
    names::Escaping,
    series::{BucketCells, SeriesCore},
    sketch::{Weights, otel_index},
    snapshot::{FamilySnapshot, SampleValue},
};

/// The most native buckets of one series that are not empty, unless told otherwise; beyond it they are merged by two. What
/// Prometheus's Go library recommends.
pub(super) const NATIVE_BUCKETS_MAX: usize = 160;

/// The schema of the sketch, and the lowest that Prometheus knows.
const SCHEMA: i32 = 5;
const SCHEMA_MIN: i32 = -4;

/// Of the zero bucket, as in Prometheus's Go library: 2^−128, a bound of every schema. What is not 0 but nearer to it
/// counts there, too.
const ZERO_THRESHOLD: f64 = f64::from_bits((1023 - 128) << 52);

/// The last bucket of schema 5, as OpenTelemetry numbers them, that is not above the threshold.
const ZERO_BUCKET: i32 = -128 * 32 - 1;

/// Empty buckets between two that are not, up to which they are written: a span costs as much.
const GAP_MAX: i32 = 2;

/// Tries to read a histogram while nobody observes.
const TRIES: usize = 3;

/// Field numbers, of `io/prometheus/client/metrics.proto`.
mod field {
    pub(super) const FAMILY_NAME: u32 = 1;
    pub(super) const FAMILY_HELP: u32 = 2;
    pub(super) const FAMILY_TYPE: u32 = 3;
    pub(super) const FAMILY_METRIC: u32 = 4;
    pub(super) const FAMILY_UNIT: u32 = 5;

    pub(super) const METRIC_LABEL: u32 = 1;
    pub(super) const METRIC_GAUGE: u32 = 2;
    pub(super) const METRIC_COUNTER: u32 = 3;
    pub(super) const METRIC_HISTOGRAM: u32 = 7;

    pub(super) const LABEL_NAME: u32 = 1;
    pub(super) const LABEL_VALUE: u32 = 2;

    pub(super) const VALUE: u32 = 1;
    pub(super) const COUNTER_EXEMPLAR: u32 = 2;
    pub(super) const COUNTER_CREATED: u32 = 3;

    pub(super) const SAMPLE_COUNT: u32 = 1;
    pub(super) const SAMPLE_SUM: u32 = 2;

    pub(super) const BUCKET: u32 = 3;
    pub(super) const SCHEMA: u32 = 5;
    pub(super) const ZERO_THRESHOLD: u32 = 6;
    pub(super) const ZERO_COUNT: u32 = 7;
    pub(super) const NEGATIVE_SPAN: u32 = 9;
    pub(super) const NEGATIVE_DELTA: u32 = 10;
    pub(super) const POSITIVE_SPAN: u32 = 12;
    pub(super) const POSITIVE_DELTA: u32 = 13;
    pub(super) const HISTOGRAM_CREATED: u32 = 15;

    pub(super) const BUCKET_COUNT: u32 = 1;
    pub(super) const BUCKET_BOUND: u32 = 2;
    pub(super) const BUCKET_EXEMPLAR: u32 = 3;

    pub(super) const SPAN_OFFSET: u32 = 1;
    pub(super) const SPAN_LENGTH: u32 = 2;

    pub(super) const EXEMPLAR_LABEL: u32 = 1;
    pub(super) const EXEMPLAR_VALUE: u32 = 2;
    pub(super) const EXEMPLAR_AT: u32 = 3;

    pub(super) const SECONDS: u32 = 1;
    pub(super) const NANOS: u32 = 2;
}

fn type_of(kind: MetricKind) -> u64 {
    match kind {
        MetricKind::Counter => 0,
        MetricKind::Gauge => 1,
        MetricKind::Histogram => 4,
    }
}

/// What is used again for each series.
#[derive(Default)]
pub(super) struct Scratch {
    native_buckets_max: usize,
    escaping: Escaping,
    counts: Vec<u64>,
    weights: Weights,
    positive: Vec<(i32, u64)>,
    negative: Vec<(i32, u64)>,
}

/// Writes one family of the bus, unless it has no series.
pub(super) fn encode_family(family: &FamilyCore, scratch: &mut Scratch, out: &mut Vec<u8>) {
    let meta = &family.meta;
    let start = out.len();
    let mut any = false;
    delimited(out, |out| {
        begin(
            &scratch.escaping.of_metric(&meta.name),
            &meta.help,
            meta.unit.as_deref(),
            type_of(meta.kind),
            out,
        );
        family.for_each(|series| {
            if !series.has_value() {
                return;
            }
            any = true;
            message(field::FAMILY_METRIC, out, |out| {
                for (name, value) in raw_pairs(&series.text) {
                    let name = scratch.escaping.of_label(name);
                    label(field::METRIC_LABEL, &name, value, out);
                }
                metric(series, scratch, out);
            });
        });
    });
    if !any {
        out.truncate(start);
    }
}

fn metric(series: &SeriesCore, scratch: &mut Scratch, out: &mut Vec<u8>) {
    let meta = &series.meta;
    let created = Created(&meta.clock, series);
    let bits = series.cell.load();
    match (&series.buckets, meta.kind) {
        (Some(buckets), _) => message(field::METRIC_HISTOGRAM, out, |out| {
            let exemplars = series.exemplars.get();
            let native = read(buckets, meta.native, scratch);
            let sum = f64::from_bits(series.cell.load());
            let bounds = meta.bounds.iter().copied().chain([f64::INFINITY]);
            // Fewer than are in the buckets: some were counted elsewhere, where there was no sketch.
            // And a sum of NaN (of both infinities) misleads `histogram_quantile` of Prometheus 3.5.
            let native = native.filter(|all| *all >= scratch.total() && !sum.is_nan());
            let count = scratch.total().max(native.unwrap_or(0));
            let last = scratch.counts.len() - 1;
            let mut reached = 0;
            let buckets = bounds.zip(&scratch.counts).enumerate();
            let cumulative = buckets.map(|(at, (bound, n))| {
                reached += n;
                let all = if at == last { count } else { reached };
                (bound, all, exemplars.map(|kept| (kept, at)))
            });
            classic(cumulative, sum, count, out);
            if native.is_some() {
                sparse(scratch, out);
            }
            created.write(field::HISTOGRAM_CREATED, out);
        }),
        (None, MetricKind::Gauge) => message(field::METRIC_GAUGE, out, |out| {
            double(field::VALUE, f64::from_bits(bits), out);
        }),
        (None, _) => message(field::METRIC_COUNTER, out, |out| {
            let value = match meta.numbers {
                Numbers::Whole => bits as f64,
                Numbers::Amount | Numbers::Real => f64::from_bits(bits),
            };
            double(field::VALUE, value, out);
            if let Some(kept) = series.exemplars.get() {
                kept.with(0, |it| exemplar(field::COUNTER_EXEMPLAR, it, out));
            }
            created.write(field::COUNTER_CREATED, out);
        }),
    }
}

impl Scratch {
    pub(super) fn new(style: Style) -> Self {
        Scratch {
            native_buckets_max: style.native_buckets_max,
            escaping: style.escaping,
            ..Scratch::default()
        }
    }

    fn total(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// Reads the buckets, and what lies in the sketch in all; `None` where there is no sketch from birth. Where observations are
/// being made all the time, the sketch may hold some that the buckets do not.
fn read(buckets: &BucketCells, native: bool, scratch: &mut Scratch) -> Option<u64> {
    let mut all = None;
    for _ in 0..TRIES {
        scratch.counts.clear();
        scratch.counts.extend(buckets.counts());
        let Some(sketch) = buckets.sketch().filter(|_| native) else {
            break;
        };
        let before = scratch.total();
        // Each is counted in the sketch first.
        let again = buckets.total_before_sketch();
        sketch.snapshot_into(&mut scratch.weights);
        let counted = scratch.weights.iter().map(|(_, n)| n).sum();
        all = Some(counted);
        if before == again && counted <= before {
            break;
        }
    }
    all
}

fn classic<'a>(
    buckets: impl Iterator<Item = (f64, u64, Option<(&'a Exemplars, usize)>)>,
    sum: f64,
    count: u64,
    out: &mut Vec<u8>,
) {
    integer(field::SAMPLE_COUNT, count, out);
    double(field::SAMPLE_SUM, sum, out);
    for (bound, cumulative, exemplars) in buckets {
        message(field::BUCKET, out, |out| {
            integer(field::BUCKET_COUNT, cumulative, out);
            double(field::BUCKET_BOUND, bound, out);
            if let Some((kept, at)) = exemplars {
                kept.with(at, |it| exemplar(field::BUCKET_EXEMPLAR, it, out));
            }
        });
    }
}

/// The native part, of the sketch that was read.
fn sparse(scratch: &mut Scratch, out: &mut Vec<u8>) {
    let (positive, negative) = (&mut scratch.positive, &mut scratch.negative);
    positive.clear();
    negative.clear();
    let mut zero = 0;
    for (index, n) in scratch.weights.iter() {
        match otel_index(index).filter(|at| *at > ZERO_BUCKET) {
            None => zero += n,
            Some(at) if index > 0 => positive.push((at, n)),
            Some(at) => negative.push((at, n)),
        }
    }
    // By their distance from zero.
    negative.reverse();
    let mut schema = SCHEMA;
    while positive.len() + negative.len() > scratch.native_buckets_max && schema > SCHEMA_MIN {
        schema -= 1;
        halve(positive);
        halve(negative);
    }
    signed(field::SCHEMA, i64::from(schema), out);
    double(field::ZERO_THRESHOLD, ZERO_THRESHOLD, out);
    integer(field::ZERO_COUNT, zero, out);
    spans(negative, field::NEGATIVE_SPAN, field::NEGATIVE_DELTA, out);
    spans(positive, field::POSITIVE_SPAN, field::POSITIVE_DELTA, out);
}

/// Merges buckets to those of the next lower schema.
fn halve(buckets: &mut Vec<(i32, u64)>) {
    let mut kept = 0;
    for at in 0..buckets.len() {
        let (place, n) = (buckets[at].0 >> 1, buckets[at].1);
        if kept > 0 && buckets[kept - 1].0 == place {
            buckets[kept - 1].1 += n;
        } else {
            buckets[kept] = (place, n);
            kept += 1;
        }
    }
    buckets.truncate(kept);
}

/// Buckets in ascending order as runs, each with its distance from the one before, and the counts in them, each as its
/// difference from the one before.
fn spans(buckets: &[(i32, u64)], span: u32, delta: u32, out: &mut Vec<u8>) {
    let gap = |from: &(i32, u64), to: &(i32, u64)| to.0 - from.0 - 1;
    let mut next = 0;
    for run in buckets.chunk_by(|a, b| gap(a, b) <= GAP_MAX) {
        let (Some(first), Some(last)) = (run.first(), run.last()) else {
            continue;
        };
        // Prometheus's number of a bucket is one more than OpenTelemetry's.
        let number = first.0 + 1;
        message(span, out, |out| {
            signed(field::SPAN_OFFSET, i64::from(number - next), out);
            integer(field::SPAN_LENGTH, (last.0 - first.0 + 1) as u64, out);
        });
        next = last.0 + 2;
    }
    let mut before = 0;
    let mut write = |n: u64| {
        signed(delta, (n as i64).wrapping_sub(before), out);
        before = n as i64;
    };
    for (at, bucket) in buckets.iter().enumerate() {
        if let Some(earlier) = at.checked_sub(1) {
            let empty = gap(&buckets[earlier], bucket);
            if empty <= GAP_MAX {
                (0..empty).for_each(|_| write(0));
            }
        }
        write(bucket.1);
    }
}

/// Writes families that were collected elsewhere, but for those without series.
pub(super) fn encode_families(families: &[FamilySnapshot], escaping: Escaping, out: &mut Vec<u8>) {
    for family in families.iter().filter(|family| !family.series.is_empty()) {
        delimited(out, |out| {
            let kind = type_of(family.kind);
            begin(
                &escaping.of_metric(&family.name),
                &family.help,
                family.unit.as_deref(),
                kind,
                out,
            );
            for series in &family.series {
                message(field::FAMILY_METRIC, out, |out| {
                    for (name, value) in &series.labels {
                        let name = escaping.of_label(name);
                        plain_label(field::METRIC_LABEL, &name, value, out);
                    }
                    match &series.value {
                        SampleValue::Counter(value) => {
                            message(field::METRIC_COUNTER, out, |out| {
                                double(field::VALUE, value.as_f64(), out);
                            });
                        }
                        SampleValue::Gauge(value) => message(field::METRIC_GAUGE, out, |out| {
                            double(field::VALUE, *value, out);
                        }),
                        SampleValue::Histogram(h) => message(field::METRIC_HISTOGRAM, out, |out| {
                            let buckets = h.buckets.iter().map(|(bound, n)| (*bound, *n, None));
                            classic(buckets, h.sum, h.count, out);
                        }),
                    }
                });
            }
        });
    }
}

#[cfg(feature = "http")]
pub(super) use summary::encode_summary;

#[cfg(feature = "http")]
mod summary {
    use super::{super::foreign::Summary, *};

    /// The type that the bus does not have.
    const SUMMARY: u64 = 2;

    const METRIC_SUMMARY: u32 = 4;
    const SUMMARY_QUANTILE: u32 = 3;
    const QUANTILE: u32 = 1;
    const QUANTILE_VALUE: u32 = 2;

    /// A summary of somebody else's.
    pub(in crate::export) fn encode_summary(
        summary: &Summary,
        escaping: Escaping,
        out: &mut Vec<u8>,
    ) {
        if summary.series.is_empty() {
            return;
        }
        delimited(out, |out| {
            let name = escaping.of_metric(&summary.name);
            begin(&name, &summary.help, None, SUMMARY, out);
            for series in &summary.series {
                message(field::FAMILY_METRIC, out, |out| {
                    for (name, value) in &series.labels {
                        let name = escaping.of_label(name);
                        plain_label(field::METRIC_LABEL, &name, value, out);
                    }
                    message(METRIC_SUMMARY, out, |out| {
                        integer(field::SAMPLE_COUNT, series.count, out);
                        double(field::SAMPLE_SUM, series.sum, out);
                        for (quantile, value) in &series.quantiles {
                            message(SUMMARY_QUANTILE, out, |out| {
                                double(QUANTILE, *quantile, out);
                                double(QUANTILE_VALUE, *value, out);
                            });
                        }
                    });
                });
            }
        });
    }
}

fn begin(name: &str, help: &str, unit: Option<&str>, kind: u64, out: &mut Vec<u8>) {
    bytes(field::FAMILY_NAME, name.as_bytes(), out);
    bytes(field::FAMILY_HELP, help.as_bytes(), out);
    integer(field::FAMILY_TYPE, kind, out);
    if let Some(unit) = unit {
        bytes(field::FAMILY_UNIT, unit.as_bytes(), out);
    }
}

/// When a series was made.
struct Created<'a>(&'a Clock, &'a SeriesCore);

impl Created<'_> {
    fn write(&self, number: u32, out: &mut Vec<u8>) {
        timestamp(number, self.0.date(self.1.born()), out);
    }
}

fn exemplar(number: u32, it: &Exemplar, out: &mut Vec<u8>) {
    message(number, out, |out| {
        for (name, value) in &it.labels {
            plain_label(field::EXEMPLAR_LABEL, name, value, out);
        }
        double(field::EXEMPLAR_VALUE, it.value, out);
        timestamp(field::EXEMPLAR_AT, it.at, out);
    });
}

fn timestamp(number: u32, date: SystemTime, out: &mut Vec<u8>) {
    let since = date.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    message(number, out, |out| {
        // Of proto3, where 0 is not written.
        for (number, part) in [
            (field::SECONDS, since.as_secs()),
            (field::NANOS, u64::from(since.subsec_nanos())),
        ] {
            if part > 0 {
                integer(number, part, out);
            }
        }
    });
}

/// A label as a series holds it: its value is escaped.
fn label(number: u32, name: &str, escaped: &str, out: &mut Vec<u8>) {
    message(number, out, |out| {
        bytes(field::LABEL_NAME, name.as_bytes(), out);
        if !escaped.as_bytes().contains(&b'\\') {
            return bytes(field::LABEL_VALUE, escaped.as_bytes(), out);
        }
        message(field::LABEL_VALUE, out, |out| {
            let mut rest = escaped.as_bytes();
            while let Some(at) = rest.iter().position(|b| *b == b'\\') {
                out.extend_from_slice(&rest[..at]);
                match rest.get(at + 1) {
                    Some(b'n') => out.push(b'\n'),
                    Some(other) => out.push(*other),
                    None => {}
                }
                rest = rest.get(at + 2..).unwrap_or_default();
            }
            out.extend_from_slice(rest);
        });
    });
}

fn plain_label(number: u32, name: &str, value: &str, out: &mut Vec<u8>) {
    message(number, out, |out| {
        bytes(field::LABEL_NAME, name.as_bytes(), out);
        bytes(field::LABEL_VALUE, value.as_bytes(), out);
    });
}

// ---- protobuf's own ---------------------------------------------------------------------------------------------------

const VARINT: u32 = 0;
const FIXED_64: u32 = 1;
const LENGTH: u32 = 2;

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn key(number: u32, wire: u32, out: &mut Vec<u8>) {
    varint(u64::from(number << 3 | wire), out);
}

fn integer(number: u32, value: u64, out: &mut Vec<u8>) {
    key(number, VARINT, out);
    varint(value, out);
}

/// `sint32` or `sint64`: small numbers are short, whatever their sign.
fn signed(number: u32, value: i64, out: &mut Vec<u8>) {
    integer(number, (value << 1 ^ value >> 63) as u64, out);
}

fn double(number: u32, value: f64, out: &mut Vec<u8>) {
    key(number, FIXED_64, out);
    out.extend_from_slice(&value.to_le_bytes());
}

fn bytes(number: u32, value: &[u8], out: &mut Vec<u8>) {
    key(number, LENGTH, out);
    varint(value.len() as u64, out);
    out.extend_from_slice(value);
}

fn message(number: u32, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    key(number, LENGTH, out);
    delimited(out, write);
}

/// What `write` writes, with its length before it.
fn delimited(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.push(0);
    write(out);
    let length = out.len() - start - 1;
    if length < 0x80 {
        out[start] = length as u8;
        return;
    }
    // Of 7 bits each.
    let more = (length.ilog2() / 7) as usize;
    out.extend_from_slice(&[0; 10][..more]);
    out.copy_within(start + 1..start + 1 + length, start + 1 + more);
    let mut rest = length;
    for byte in &mut out[start..start + more] {
        *byte = rest as u8 | 0x80;
        rest >>= 7;
    }
    out[start + more] = rest as u8;
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prost::Message as _;

    use super::*;
    use crate::{
        Buckets, Clock, Counter, Desc, Gauge, Histogram, MetricBus,
        export::{Format, text},
    };

    /// The messages as the `.proto` file has them, for a foreign decoder.
    mod model {
        #[derive(Clone, PartialEq, prost::Message)]
        pub struct LabelPair {
            #[prost(string, optional, tag = "1")]
            pub name: Option<String>,
            #[prost(string, optional, tag = "2")]
            pub value: Option<String>,
        }

        #[derive(Clone, PartialEq, prost::Message)]
        pub struct Timestamp {
            #[prost(int64, tag = "1")]
            pub seconds: i64,
            #[prost(int32, tag = "2")]
            pub nanos: i32,
        }

        #[derive(Clone, PartialEq, prost::Message)]
        pub struct Exemplar {
            #[prost(message, repeated, tag = "1")]
            pub label: Vec<LabelPair>,
            #[prost(double, optional, tag = "2")]
            pub value: Option<f64>,
            #[prost(message, optional, tag = "3")]
            pub timestamp: Option<Timestamp>,
        }

        #[derive(Clone, PartialEq, prost::Message)]
        pub struct Gauge {
            #[prost(double, optional, tag = "1")]
            pub value: Option<f64>,
        }

        #[derive(Clone, PartialEq, prost::Message)]
        pub struct Counter {
            #[prost(double, optional, tag = "1")]
            pub value: Option<f64>,
            #[prost(message, optional, tag = "2")]
            pub exemplar: Option<Exemplar>,
            #[prost(message, optional, tag = "3")]
            pub created_timestamp: Option<Timestamp>,
        }

        #[derive(Clone, PartialEq, prost::Message)]
        pub struct Quantile {
            #[prost(double, optional, tag = "1")]
            pub quantile: Option<f64>,
            #[prost(double, optional, tag = "2")]
            pub value: Option<f64>,
        }

        #[derive(Clone, PartialEq, prost::Message)]
        pub struct Summary {
            #[prost(uint64, optional, tag = "1")]
            pub sample_count: Option<u64>,
            #[prost(double, optional, tag = "2")]
            pub sample_sum: Option<f64>,
            #[prost(message, repeated, tag = "3")]
            pub quantile: Vec<Quantile>,
        }

        #[derive(Clone, PartialEq, prost::Message)]
        pub struct Bucket {
            #[prost(uint64, optional, tag = "1")]
            pub cumulative_count: Option<u64>,
            #[prost(double, optional, tag = "2")]
            pub upper_bound: Option<f64>,
            #[prost(message, optional, tag = "3")]
            pub exemplar: Option<Exemplar>,
        }

        #[derive(Clone, PartialEq, prost::Message)]
        pub struct BucketSpan {
            #[prost(sint32, optional, tag = "1")]
            pub offset: Option<i32>,
            #[prost(uint32, optional, tag = "2")]
            pub length: Option<u32>,
        }

        #[derive(Clone, PartialEq, prost::Message)]
        pub struct Histogram {
            #[prost(uint64, optional, tag = "1")]
            pub sample_count: Option<u64>,
            #[prost(double, optional, tag = "2")]
            pub sample_sum: Option<f64>,
            #[prost(message, repeated, tag = "3")]
            pub bucket: Vec<Bucket>,
            #[prost(sint32, optional, tag = "5")]
            pub schema: Option<i32>,
            #[prost(double, optional, tag = "6")]
            pub zero_threshold: Option<f64>,
            #[prost(uint64, optional, tag = "7")]
            pub zero_count: Option<u64>,
            #[prost(message, repeated, tag = "9")]
            pub negative_span: Vec<BucketSpan>,
            #[prost(sint64, repeated, packed = "false", tag = "10")]
            pub negative_delta: Vec<i64>,
            #[prost(message, repeated, tag = "12")]
            pub positive_span: Vec<BucketSpan>,
            #[prost(sint64, repeated, packed = "false", tag = "13")]
            pub positive_delta: Vec<i64>,
            #[prost(message, optional, tag = "15")]
            pub created_timestamp: Option<Timestamp>,
        }

        #[derive(Clone, PartialEq, prost::Message)]
        pub struct Metric {
            #[prost(message, repeated, tag = "1")]
            pub label: Vec<LabelPair>,
            #[prost(message, optional, tag = "2")]
            pub gauge: Option<Gauge>,
            #[prost(message, optional, tag = "3")]
            pub counter: Option<Counter>,
            #[prost(message, optional, tag = "4")]
            pub summary: Option<Summary>,
            #[prost(message, optional, tag = "7")]
            pub histogram: Option<Histogram>,
        }

        #[derive(Clone, PartialEq, prost::Message)]
        pub struct MetricFamily {
            #[prost(string, optional, tag = "1")]
            pub name: Option<String>,
            #[prost(string, optional, tag = "2")]
            pub help: Option<String>,
            #[prost(int32, optional, tag = "3")]
            pub r#type: Option<i32>,
            #[prost(message, repeated, tag = "4")]
            pub metric: Vec<Metric>,
            #[prost(string, optional, tag = "5")]
            pub unit: Option<String>,
        }
    }

    fn decoded(mut bytes: &[u8]) -> Vec<model::MetricFamily> {
        let mut families = Vec::new();
        while !bytes.is_empty() {
            families.push(model::MetricFamily::decode_length_delimited(&mut bytes).unwrap());
        }
        families
    }

    /// Everything, checked to be what an encoder that knows all lengths beforehand writes.
    fn scrape(bus: &MetricBus) -> Vec<model::MetricFamily> {
        let mut out = Vec::new();
        text::encode(bus, Format::Protobuf, &mut out);
        let families = decoded(&out);
        let mut again = Vec::new();
        for family in &families {
            family.encode_length_delimited(&mut again).unwrap();
        }
        assert_eq!(out.len(), again.len());
        families
    }

    fn at(clock: &Clock, seconds: u64) -> Option<model::Timestamp> {
        clock.advance(Duration::from_secs(seconds));
        let since = clock.wall(clock.now()).duration_since(UNIX_EPOCH).unwrap();
        Some(model::Timestamp {
            seconds: since.as_secs() as i64,
            nanos: since.subsec_nanos() as i32,
        })
    }

    fn pairs(labels: &[model::LabelPair]) -> Vec<(&str, &str)> {
        let pair = labels
            .iter()
            .map(|l| (l.name.as_deref(), l.value.as_deref()));
        pair.map(|(name, value)| (name.unwrap(), value.unwrap()))
            .collect()
    }

    #[test]
    fn every_type_is_decoded_by_others_as_it_was_counted() {
        let clock = Clock::manual();
        let bus = MetricBus::builder().clock(clock.clone()).build();
        let family = bus
            .family::<Counter>(Desc::new("requests_total", "Asked.").labels(["path", "code"]))
            .unwrap();
        let born = at(&clock, 7);
        let hostile = "C:\\ \"x\"\n🦀".repeat(40);
        let requests = family.with_label_values(&[&*hostile, "200"]).unwrap();
        let asked = at(&clock, 5);
        requests
            .inc_by_with_exemplar(3, &[("trace_id", "a\"b")])
            .unwrap();
        bus.declare::<Counter<f64>>(Desc::new("busy_seconds_total", "h").unit("seconds"))
            .unwrap()
            .inc_by(0.25);
        let gauge: Gauge = bus
            .declare(Desc::new("depth", "").label("zone", ""))
            .unwrap();
        gauge.set(f64::NEG_INFINITY);
        bus.gauge("unset", "Never set.").unwrap();
        let h: Histogram = bus
            .declare(Desc::new("wait_seconds", "h").buckets(Buckets::new([0.5, 1.0]).unwrap()))
            .unwrap();
        h.observe(0.5);
        h.observe_with_exemplar(4.0, &[("trace_id", "c")]).unwrap();
        bus.family::<Gauge>(Desc::new("childless", "h").labels(["x"]))
            .unwrap();

        let families = scrape(&bus);
        let names: Vec<_> = families
            .iter()
            .map(|f| (f.name.as_deref().unwrap(), f.r#type.unwrap()))
            .collect();
        assert_eq!(
            names,
            [
                ("busy_seconds_total", 0),
                ("depth", 1),
                ("requests_total", 0),
                ("wait_seconds", 4)
            ]
        );
        assert_eq!(families[0].unit.as_deref(), Some("seconds"));
        assert_eq!(
            families[0].metric[0].counter.as_ref().unwrap().value,
            Some(0.25)
        );
        assert_eq!(
            families[1].metric[0].gauge.as_ref().unwrap().value,
            Some(f64::NEG_INFINITY)
        );
        assert_eq!(pairs(&families[1].metric[0].label), [("zone", "")]);

        let metric = &families[2].metric[0];
        assert_eq!(pairs(&metric.label), [("path", &*hostile), ("code", "200")]);
        let counter = metric.counter.as_ref().unwrap();
        assert_eq!(
            (counter.value, &counter.created_timestamp),
            (Some(3.0), &born)
        );
        let exemplar = counter.exemplar.as_ref().unwrap();
        assert_eq!(pairs(&exemplar.label), [("trace_id", "a\"b")]);
        assert_eq!((exemplar.value, &exemplar.timestamp), (Some(3.0), &asked));

        let wait = families[3].metric[0].histogram.as_ref().unwrap();
        assert_eq!((wait.sample_count, wait.sample_sum), (Some(2), Some(4.5)));
        let buckets: Vec<_> = wait
            .bucket
            .iter()
            .map(|b| (b.upper_bound.unwrap(), b.cumulative_count.unwrap()))
            .collect();
        assert_eq!(buckets, [(0.5, 1), (1.0, 1), (f64::INFINITY, 2)]);
        assert!(wait.bucket[0].exemplar.is_none());
        assert_eq!(wait.bucket[2].exemplar.as_ref().unwrap().value, Some(4.0));
        assert_eq!((wait.schema, wait.zero_threshold), (None, None));
        assert_eq!(wait.created_timestamp, asked);
    }

    /// Prometheus's number of each bucket, with what is in it.
    fn unrolled(spans: &[model::BucketSpan], deltas: &[i64]) -> Vec<(i32, i64)> {
        let (mut number, mut count, mut deltas) = (0, 0, deltas.iter());
        let mut buckets = Vec::new();
        for span in spans {
            number += span.offset.unwrap();
            for _ in 0..span.length.unwrap() {
                count += deltas.next().unwrap();
                buckets.push((number, count));
                number += 1;
            }
        }
        assert_eq!(deltas.next(), None);
        buckets
    }

    fn native(values: &[f64]) -> model::Histogram {
        let bus = MetricBus::builder().native_histograms(true).build();
        let h = bus
            .histogram("h", "h", Buckets::new([1.0]).unwrap())
            .unwrap();
        values.iter().for_each(|v| h.observe(*v));
        scrape(&bus)[0].metric[0].histogram.clone().unwrap()
    }

    #[test]
    fn a_native_histogram_has_the_buckets_that_prometheus_numbers() {
        let h = native(&[
            1.0,
            1.0,
            2.0,
            1.03,
            16.0,
            -4.0,
            0.0,
            1e-40,
            -1e-300,
            f64::NAN,
        ]);
        assert_eq!(
            (h.schema, h.zero_threshold),
            (Some(5), Some(2_f64.powi(-128)))
        );
        assert_eq!((h.sample_count, h.zero_count), (Some(9), Some(3)));
        assert!(h.sample_sum.unwrap() > 16.0);
        // 1 is the upper bound of bucket 0, 2 of 32, 16 of 128; 1.03 lies between 2^(1/32) and 2^(2/32).
        assert_eq!(
            unrolled(&h.positive_span, &h.positive_delta),
            [(0, 2), (1, 0), (2, 1), (32, 1), (128, 1)]
        );
        assert_eq!(h.positive_span.len(), 3);
        assert_eq!(unrolled(&h.negative_span, &h.negative_delta), [(64, 1)]);
        let buckets: Vec<_> = h
            .bucket
            .iter()
            .map(|b| b.cumulative_count.unwrap())
            .collect();
        assert_eq!(buckets, [6, 9]);
    }

    #[test]
    fn an_empty_native_histogram_is_one_already() {
        let h = native(&[]);
        assert_eq!((h.schema, h.zero_count), (Some(5), Some(0)));
        assert!(h.zero_threshold.unwrap() > 0.0);
        assert!(h.positive_span.is_empty() && h.negative_span.is_empty());
    }

    #[test]
    fn what_spans_too_much_is_merged_to_a_lower_schema_and_nothing_is_lost() {
        let values: Vec<f64> = (-120..120).map(|e| 2_f64.powi(e) * 1.5).collect();
        let h = native(&values);
        assert_eq!(h.schema, Some(-1));
        let buckets = unrolled(&h.positive_span, &h.positive_delta);
        assert_eq!(buckets.iter().map(|(_, n)| n).sum::<i64>(), 240);
        for (number, n) in buckets {
            let (low, high) = (4_f64.powi(number - 1), 4_f64.powi(number));
            let inside = values.iter().filter(|v| **v > low && **v <= high).count();
            assert_eq!(n, inside as i64, "{number}");
        }
        // Everything that there is: the lowest schema has to do.
        let all: Vec<f64> = (-1074..1024)
            .map(|e| 2_f64.powi(e))
            .flat_map(|v| [v, -v])
            .collect();
        let h = native(&all);
        assert_eq!(h.schema, Some(-4));
        let of = |spans, deltas| {
            unrolled(spans, deltas)
                .iter()
                .map(|(_, n)| *n as u64)
                .sum::<u64>()
        };
        let total =
            of(&h.positive_span, &h.positive_delta) + of(&h.negative_span, &h.negative_delta);
        assert_eq!(total + h.zero_count.unwrap(), all.len() as u64);
    }

    #[test]
    fn counts_agree_with_each_other_while_others_observe() {
        let bus = MetricBus::builder().native_histograms(true).build();
        let h = bus.histogram("h", "h", Buckets::default()).unwrap();
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for t in 0..2 {
                let (h, done) = (&h, &done);
                scope.spawn(move || {
                    let mut i = 0;
                    while !done.load(std::sync::atomic::Ordering::Relaxed) {
                        h.observe(f64::from(i % 100 + t) / 10.0);
                        i += 1;
                    }
                });
            }
            for _ in 0..300 {
                let h = scrape(&bus)[0].metric[0].histogram.clone().unwrap();
                let count = h.sample_count.unwrap();
                let buckets = unrolled(&h.positive_span, &h.positive_delta);
                let inside = buckets.iter().map(|(_, n)| *n as u64).sum::<u64>();
                assert_eq!(inside + h.zero_count.unwrap(), count);
                let mut counts = h.bucket.iter().map(|b| b.cumulative_count.unwrap());
                assert!(counts.clone().is_sorted());
                assert_eq!(counts.next_back(), Some(count));
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }

    #[test]
    fn a_sketch_that_has_seen_less_than_the_buckets_is_not_shown() {
        let bus = MetricBus::builder().native_histograms(true).build();
        let h = bus
            .histogram("h", "h", Buckets::new([1.0]).unwrap())
            .unwrap();
        h.observe(0.5);
        let core = h.series().core().clone();
        let buckets = core.buckets.as_ref().unwrap();
        // As a value taken over from a recording.
        core.cell
            .absorb(2.0, &[], &*core, || buckets.count_bucket(1));
        let h = scrape(&bus)[0].metric[0].histogram.clone().unwrap();
        assert_eq!((h.sample_count, h.schema), (Some(2), None));
    }

    #[test]
    fn what_was_collected_elsewhere_is_written_as_the_bus_itself() {
        let bus = MetricBus::new();
        let c = bus
            .family::<Counter>(Desc::new("c_total", "h").labels(["x"]))
            .unwrap();
        c.with_label_values(&["a\\b\n\"c\""]).unwrap().inc_by(300);
        bus.gauge("g", "h").unwrap().set(1.5);
        let h = bus.histogram("h", "h", Buckets::default()).unwrap();
        h.observe(0.3);
        let mut out = Vec::new();
        text::encode_families(&bus.snapshot().families, Format::Protobuf, &mut out);
        let mut of_bus = scrape(&bus);
        for metric in of_bus.iter_mut().flat_map(|f| &mut f.metric) {
            metric
                .counter
                .iter_mut()
                .for_each(|c| c.created_timestamp = None);
            metric
                .histogram
                .iter_mut()
                .for_each(|h| h.created_timestamp = None);
        }
        assert_eq!(decoded(&out), of_bus);
    }

    #[cfg(feature = "http")]
    #[test]
    fn a_summary_is_written_with_its_quantiles() {
        use crate::export::foreign::{Summary, SummarySeries};
        let summary = Summary {
            name: "rpc_seconds".to_owned(),
            help: "h".to_owned(),
            series: vec![SummarySeries {
                labels: vec![("a".to_owned(), "\"".to_owned())],
                quantiles: vec![(0.5, 0.25)],
                sum: 2.0,
                count: 3,
            }],
        };
        let mut out = Vec::new();
        summary.encode(Style::of(Format::Protobuf), &mut out);
        let families = decoded(&out);
        assert_eq!(families[0].r#type, Some(2));
        assert_eq!(pairs(&families[0].metric[0].label), [("a", "\"")]);
        let written = families[0].metric[0].summary.clone().unwrap();
        assert_eq!(
            (written.sample_count, written.sample_sum),
            (Some(3), Some(2.0))
        );
        assert_eq!(written.quantile[0].value, Some(0.25));
    }

    #[test]
    fn lengths_of_all_sizes_are_written_as_short_as_can_be() {
        for length in [0, 1, 127, 128, 129, 16_383, 16_384, 16_385, 3_000_000] {
            let mut out = b"before".to_vec();
            delimited(&mut out, |out| out.extend((0..length).map(|i| i as u8)));
            let mut rest = &out[6..];
            assert_eq!(prost::encoding::decode_varint(&mut rest).unwrap(), length);
            assert_eq!(
                out.len() - 6 - rest.len(),
                prost::encoding::encoded_len_varint(length)
            );
            assert!(rest.iter().copied().eq((0..length).map(|i| i as u8)));
        }
    }
}
