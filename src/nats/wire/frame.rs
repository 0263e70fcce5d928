//! Frames: values of series as OTLP metrics, which any OpenTelemetry consumer can read.
//!
//! A histogram is there twice: with its buckets in scope `metricbus`, and in scope `metricbus.exponential` as an exponential
//! histogram of scale 5, whose schema is that of our sketches, so that quantiles and windows merge without loss.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, UNIX_EPOCH},
};

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value},
    metrics::v1::{
        AggregationTemporality, DataPointFlags, ExponentialHistogram,
        ExponentialHistogramDataPoint, Gauge, Histogram, HistogramDataPoint, Metric, MetricsData,
        NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum,
        exponential_histogram_data_point::Buckets as Dense, metric::Data, number_data_point,
    },
    resource::v1::Resource,
};
use prost::Message;
use serde::Serialize;

use super::{
    WireError, census, check_length, check_series,
    limits::{HELP_MAX, UNIT_MAX},
    number::{Date, Pairs, Real, Whole},
};
use crate::{
    SourceId,
    desc::{Buckets, Desc, MetricKind, Numbers, validate},
    mirror::MirrorValue,
    nats::subject::{check_source, shown, up_to},
    sketch::INDEX_MAX,
};

const SCOPE: &str = "metricbus";
const SKETCHES: &str = "metricbus.exponential";

/// Who made the frame, as OpenTelemetry names it.
const NAMESPACE: &str = "service.namespace";
const COMPONENT: &str = "service.name";
const INSTANCE: &str = "service.instance.id";

/// Says of a counter that it counts in doubles.
const NUMBERS: &str = "metricbus.numbers";
const AMOUNT: &str = "amount";

/// 32 buckets to the octave.
const SCALE: i32 = 5;

/// What the number of a bucket lacks of its index in our sketches, which begin at the smallest double.
const INDEX_OFFSET: i32 = 1074 * 32 + 2;

/// A sketch is sent with every bucket between its first and its last one. One that spans more than this (256 octaves) is
/// not sent.
const DENSE_MAX: i64 = 8_192;

/// Values of series at one time. They are cumulative and absolute: a frame can be lost.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Frame {
    /// Nanoseconds since 1970. Of a received one without points: 0.
    pub(crate) at: u64,
    pub(crate) metrics: Vec<FrameMetric>,
}

/// A metric with those of its series that have something to say.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct FrameMetric {
    pub(crate) name: String,
    pub(crate) help: String,
    pub(crate) unit: Option<String>,
    pub(crate) kind: MetricKind,
    pub(crate) numbers: Numbers,
    /// Of a histogram, without +Inf. Empty where all points of a received one say that the series was removed.
    pub(crate) bounds: Vec<f64>,
    pub(crate) points: Vec<FramePoint>,
}

/// A series.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct FramePoint {
    pub(crate) labels: Vec<(String, String)>,
    /// When the series was made at its source, in nanoseconds since 1970.
    pub(crate) born: u64,
    pub(crate) value: FrameValue,
}

/// What is said of it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum FrameValue {
    Value(MirrorValue),
    Removed,
}

/// Frames as they are sent.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Encoded {
    /// At least one.
    pub(crate) bodies: Vec<Vec<u8>>,
    /// Points that are in none of them: too large for any, or beyond what a receiver takes.
    pub(crate) too_large: usize,
    /// Histograms that are sent without their sketch, as there is no room for it.
    pub(crate) without_sketch: usize,
}

/// A frame as it was received.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Decoded {
    /// Who it says made it; to be compared with headers and subject.
    pub(crate) source: SourceId,
    pub(crate) frame: Frame,
    /// Points, and metrics without points, that were left out as they can't be right.
    pub(crate) refused: usize,
    /// What was wrong with the first of them.
    pub(crate) why: Option<String>,
}

/// A frame in one body, however large.
#[cfg(test)]
pub(crate) fn encode_frame(frame: &Frame, source: &SourceId) -> Vec<u8> {
    let mut encoded = encode_within(frame.clone(), source, usize::MAX);
    encoded.bodies.pop().unwrap_or_default()
}

/// A frame in bodies of at most `max_bytes` each, each of which is a frame of its own.
pub(crate) fn encode_within(frame: Frame, source: &SourceId, max_bytes: usize) -> Encoded {
    let mut packer = Packer::new(source, max_bytes);
    for metric in frame.metrics {
        packer.metric(metric, frame.at);
    }
    packer.finish()
}

/// Fills one body after the other.
struct Packer {
    resource: Resource,
    max_bytes: usize,
    /// What a body takes without any metric.
    base: usize,
    /// What the present body takes, at most.
    used: usize,
    metrics: Vec<Metric>,
    sketches: Vec<Metric>,
    encoded: Encoded,
}

/// The most that a message takes besides its fields in the one that it is in: a tag, and its length.
const FRAMING: usize = 1 + 5;

/// A point ready to be sent.
enum Ready {
    Number(NumberDataPoint),
    Histogram(
        Box<HistogramDataPoint>,
        Option<Box<ExponentialHistogramDataPoint>>,
    ),
}

impl Packer {
    fn new(source: &SourceId, max_bytes: usize) -> Packer {
        let resource = Resource {
            attributes: vec![
                attribute(NAMESPACE, &source.namespace),
                attribute(COMPONENT, &source.component),
                attribute(INSTANCE, &source.instance),
            ],
            ..Resource::default()
        };
        let scopes = scope(SCOPE).encoded_len() + scope(SKETCHES).encoded_len();
        let base = resource.encoded_len() + scopes + 6 * FRAMING;
        Packer {
            resource,
            max_bytes,
            base,
            used: base,
            metrics: Vec::new(),
            sketches: Vec::new(),
            encoded: Encoded::default(),
        }
    }

    fn metric(&mut self, metric: FrameMetric, at: u64) {
        let shell = shell(&metric);
        // The data within the metric, and what is said of it there.
        let shell_bytes = shell.encoded_len() + 2 * FRAMING + 4;
        let sketch_shell = Metric {
            name: shell.name.clone(),
            data: Some(Data::ExponentialHistogram(ExponentialHistogram {
                data_points: Vec::new(),
                aggregation_temporality: AggregationTemporality::Cumulative.into(),
            })),
            ..Metric::default()
        };
        let sketch_shell_bytes = sketch_shell.encoded_len() + 2 * FRAMING + 4;
        let (mut open, mut sketch_open) = (false, false);
        for point in metric.points {
            let has_sketch = matches!(
                &point.value,
                FrameValue::Value(MirrorValue::Histogram { sketch, .. }) if !sketch.is_empty()
            );
            let fits = check_series(&metric.name, &point.labels).is_ok();
            let ready = ready(metric.kind, metric.numbers, &metric.bounds, point, at);
            let Some(mut ready) = ready.filter(|_| fits) else {
                self.encoded.too_large += 1;
                continue;
            };
            let needs = |ready: &Ready, open: bool, sketch_open: bool| {
                let shell = if open { 0 } else { shell_bytes };
                shell
                    + match ready {
                        Ready::Number(point) => point.encoded_len() + FRAMING,
                        Ready::Histogram(point, None) => point.encoded_len() + FRAMING,
                        Ready::Histogram(point, Some(sketch)) => {
                            let shell = if sketch_open { 0 } else { sketch_shell_bytes };
                            point.encoded_len() + sketch.encoded_len() + 2 * FRAMING + shell
                        }
                    }
            };
            if self.base + needs(&ready, false, false) > self.max_bytes
                && let Ready::Histogram(_, sketch) = &mut ready
            {
                *sketch = None;
            }
            if self.base + needs(&ready, false, false) > self.max_bytes {
                self.encoded.too_large += 1;
                continue;
            }
            if has_sketch && matches!(ready, Ready::Histogram(_, None)) {
                self.encoded.without_sketch += 1;
            }
            if self.used + needs(&ready, open, sketch_open) > self.max_bytes {
                self.flush();
                (open, sketch_open) = (false, false);
            }
            self.used += needs(&ready, open, sketch_open);
            if !open {
                self.metrics.push(shell.clone());
                open = true;
            }
            if !sketch_open && matches!(ready, Ready::Histogram(_, Some(_))) {
                self.sketches.push(sketch_shell.clone());
                sketch_open = true;
            }
            self.push(ready);
        }
    }

    fn push(&mut self, ready: Ready) {
        let data = self.metrics.last_mut().and_then(|m| m.data.as_mut());
        let sketches = self.sketches.last_mut().and_then(|m| m.data.as_mut());
        match (ready, data, sketches) {
            (Ready::Number(point), Some(Data::Gauge(gauge)), _) => gauge.data_points.push(point),
            (Ready::Number(point), Some(Data::Sum(sum)), _) => sum.data_points.push(point),
            (Ready::Histogram(point, sketch), Some(Data::Histogram(histogram)), sketches) => {
                histogram.data_points.push(*point);
                if let Some(Data::ExponentialHistogram(sketches)) = sketches {
                    sketches.data_points.extend(sketch.map(|sketch| *sketch));
                }
            }
            // A shell is of its metric's kind, and so is what was made ready.
            _ => self.encoded.too_large += 1,
        }
    }

    fn flush(&mut self) {
        let mut scope_metrics = Vec::new();
        for (name, metrics) in [
            (SCOPE, std::mem::take(&mut self.metrics)),
            (SKETCHES, std::mem::take(&mut self.sketches)),
        ] {
            if !metrics.is_empty() {
                scope_metrics.push(ScopeMetrics {
                    scope: Some(scope(name)),
                    metrics,
                    ..ScopeMetrics::default()
                });
            }
        }
        let data = MetricsData {
            resource_metrics: vec![ResourceMetrics {
                resource: Some(self.resource.clone()),
                scope_metrics,
                ..ResourceMetrics::default()
            }],
        };
        self.encoded.bodies.push(data.encode_to_vec());
        self.used = self.base;
    }

    fn finish(mut self) -> Encoded {
        if self.encoded.bodies.is_empty() || !self.metrics.is_empty() {
            self.flush();
        }
        self.encoded
    }
}

fn scope(name: &str) -> InstrumentationScope {
    InstrumentationScope {
        name: name.to_owned(),
        ..InstrumentationScope::default()
    }
}

fn attribute(name: &str, value: &str) -> KeyValue {
    KeyValue {
        key: name.to_owned(),
        value: Some(AnyValue {
            value: Some(any_value::Value::StringValue(value.to_owned())),
        }),
        ..KeyValue::default()
    }
}

/// A metric without its points.
fn shell(metric: &FrameMetric) -> Metric {
    let cumulative = AggregationTemporality::Cumulative.into();
    let is_amount = metric.numbers == Numbers::Amount;
    Metric {
        name: metric.name.clone(),
        description: up_to(&metric.help, HELP_MAX).to_owned(),
        unit: metric.unit.clone().unwrap_or_default(),
        metadata: is_amount
            .then(|| attribute(NUMBERS, AMOUNT))
            .into_iter()
            .collect(),
        data: Some(match metric.kind {
            MetricKind::Gauge => Data::Gauge(Gauge::default()),
            MetricKind::Counter => Data::Sum(Sum {
                data_points: Vec::new(),
                aggregation_temporality: cumulative,
                is_monotonic: true,
            }),
            MetricKind::Histogram => Data::Histogram(Histogram {
                data_points: Vec::new(),
                aggregation_temporality: cumulative,
            }),
        }),
    }
}

/// `None` where the value is not of its metric's type.
fn ready(
    kind: MetricKind,
    numbers: Numbers,
    bounds: &[f64],
    point: FramePoint,
    at: u64,
) -> Option<Ready> {
    let FramePoint {
        labels,
        born,
        value,
    } = point;
    let attributes = labels.into_iter().map(|(key, value)| KeyValue {
        key,
        value: Some(AnyValue {
            value: Some(any_value::Value::StringValue(value)),
        }),
        ..KeyValue::default()
    });
    let attributes: Vec<_> = attributes.collect();
    let no_value = DataPointFlags::NoRecordedValueMask as u32;
    let number = |value: Option<number_data_point::Value>, attributes| {
        Ready::Number(NumberDataPoint {
            attributes,
            start_time_unix_nano: born,
            time_unix_nano: at,
            flags: if value.is_none() { no_value } else { 0 },
            value,
            ..NumberDataPoint::default()
        })
    };
    use number_data_point::Value::{AsDouble, AsInt};
    Some(match (kind, numbers, value) {
        (MetricKind::Histogram, _, FrameValue::Removed) => Ready::Histogram(
            Box::new(HistogramDataPoint {
                attributes,
                start_time_unix_nano: born,
                time_unix_nano: at,
                flags: no_value,
                ..HistogramDataPoint::default()
            }),
            None,
        ),
        (_, _, FrameValue::Removed) => number(None, attributes),
        (MetricKind::Counter, Numbers::Whole, FrameValue::Value(MirrorValue::Whole(n))) => {
            // OTLP has no u64.
            let value = i64::try_from(n).map_or(AsDouble(n as f64), AsInt);
            number(Some(value), attributes)
        }
        (MetricKind::Counter, Numbers::Amount, FrameValue::Value(MirrorValue::Amount(d)))
        | (MetricKind::Gauge, _, FrameValue::Value(MirrorValue::Real(d))) => {
            number(Some(AsDouble(d)), attributes)
        }
        (
            MetricKind::Histogram,
            _,
            FrameValue::Value(MirrorValue::Histogram {
                counts,
                sum,
                sketch,
            }),
        ) if counts.len() == bounds.len() + 1 => {
            let sketch = exponential(&sketch, &attributes, born, at, sum);
            let point = HistogramDataPoint {
                attributes,
                start_time_unix_nano: born,
                time_unix_nano: at,
                count: counts.iter().fold(0, |n, c| n.saturating_add(*c)),
                sum: Some(sum),
                bucket_counts: counts,
                explicit_bounds: bounds.to_vec(),
                ..HistogramDataPoint::default()
            };
            Ready::Histogram(Box::new(point), sketch.map(Box::new))
        }
        _ => return None,
    })
}

/// A sketch as OpenTelemetry has it; `None` where there is none, or it spans too much.
fn exponential(
    sketch: &[(i32, u64)],
    attributes: &[KeyValue],
    born: u64,
    at: u64,
    sum: f64,
) -> Option<ExponentialHistogramDataPoint> {
    if sketch.is_empty() {
        return None;
    }
    let (mut zero_count, mut count) = (0, 0_u64);
    let (mut negative, mut positive) = (Vec::new(), Vec::new());
    for &(index, n) in sketch {
        count = count.saturating_add(n);
        match index {
            0 => zero_count = n,
            _ if index < 0 => negative.push((-index, n)),
            _ => positive.push((index, n)),
        }
    }
    negative.reverse();
    Some(ExponentialHistogramDataPoint {
        attributes: attributes.to_vec(),
        start_time_unix_nano: born,
        time_unix_nano: at,
        count,
        sum: Some(sum),
        scale: SCALE,
        zero_count,
        positive: dense(&positive)?,
        negative: dense(&negative)?,
        ..ExponentialHistogramDataPoint::default()
    })
}

/// Buckets of ascending index without gaps; `None` where there would be too many.
fn dense(sparse: &[(i32, u64)]) -> Option<Option<Dense>> {
    let (Some((first, _)), Some((last, _))) = (sparse.first(), sparse.last()) else {
        return Some(None);
    };
    let span = i64::from(*last) - i64::from(*first);
    if span >= DENSE_MAX {
        return None;
    }
    let mut bucket_counts = vec![0; usize::try_from(span).ok()? + 1];
    for (index, n) in sparse {
        *bucket_counts.get_mut(usize::try_from(index - first).ok()?)? = *n;
    }
    Some(Some(Dense {
        offset: first - INDEX_OFFSET,
        bucket_counts,
    }))
}

/// As [`encode_within`], in JSON for people: nobody reads it back. Of histograms it has no sketch.
pub(crate) fn encode_json_within(frame: Frame, source: &SourceId, max_bytes: usize) -> Encoded {
    let head = JsonHead {
        source: JsonSource {
            namespace: &source.namespace,
            component: &source.component,
            instance: &source.instance,
        },
        at: Date(UNIX_EPOCH + Duration::from_nanos(frame.at)),
        series: [],
    };
    let mut head = serde_json::to_vec(&head).unwrap_or_default();
    head.truncate(head.len().saturating_sub(JSON_TAIL.len()));
    let mut encoded = Encoded::default();
    let mut body = head.clone();
    for metric in &frame.metrics {
        for point in &metric.points {
            let one = serde_json::to_vec(&JsonSeries::of(metric, point)).unwrap_or_default();
            if one.is_empty() || head.len() + one.len() + JSON_TAIL.len() > max_bytes {
                encoded.too_large += 1;
                continue;
            }
            if body.len() + 1 + one.len() + JSON_TAIL.len() > max_bytes {
                body.extend_from_slice(JSON_TAIL);
                encoded
                    .bodies
                    .push(std::mem::replace(&mut body, head.clone()));
            }
            if body.len() > head.len() {
                body.push(b',');
            }
            body.extend_from_slice(&one);
        }
    }
    body.extend_from_slice(JSON_TAIL);
    encoded.bodies.push(body);
    encoded
}

/// What a [`JsonHead`] ends in.
const JSON_TAIL: &[u8] = b"]}";

#[derive(Serialize)]
struct JsonHead<'a> {
    source: JsonSource<'a>,
    at: Date,
    series: [(); 0],
}

#[derive(Serialize)]
struct JsonSource<'a> {
    namespace: &'a str,
    component: &'a str,
    instance: &'a str,
}

#[derive(Serialize)]
struct JsonSeries<'a> {
    name: &'a str,
    labels: Pairs<'a>,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    unit: Option<&'a str>,
    born: Date,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<JsonNumber>,
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<Whole>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sum: Option<Real>,
    /// Upper bound and count of each bucket, not cumulative.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    buckets: Vec<(Real, Whole)>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    removed: bool,
}

#[derive(Serialize)]
#[serde(untagged)]
enum JsonNumber {
    Whole(Whole),
    Real(Real),
}

impl<'a> JsonSeries<'a> {
    fn of(metric: &'a FrameMetric, point: &'a FramePoint) -> JsonSeries<'a> {
        let mut series = JsonSeries {
            name: &metric.name,
            labels: Pairs(&point.labels),
            kind: metric.kind.as_str(),
            unit: metric.unit.as_deref(),
            born: Date(UNIX_EPOCH + Duration::from_nanos(point.born)),
            value: None,
            count: None,
            sum: None,
            buckets: Vec::new(),
            removed: false,
        };
        match &point.value {
            FrameValue::Removed => series.removed = true,
            FrameValue::Value(MirrorValue::Whole(n)) => {
                series.value = Some(JsonNumber::Whole(Whole(*n)));
            }
            FrameValue::Value(MirrorValue::Amount(d) | MirrorValue::Real(d)) => {
                series.value = Some(JsonNumber::Real(Real(*d)));
            }
            FrameValue::Value(MirrorValue::Histogram { counts, sum, .. }) => {
                let count = counts.iter().fold(0_u64, |n, c| n.saturating_add(*c));
                series.count = Some(Whole(count));
                series.sum = Some(Real(*sum));
                let bounds = metric.bounds.iter().copied().chain([f64::INFINITY]);
                let buckets = bounds.zip(counts);
                series.buckets = buckets.map(|(b, n)| (Real(b), Whole(*n))).collect();
            }
        }
        series
    }
}

/// # Errors
///
/// When it is no OTLP, not of one source, or would take much more memory than it is long. Single metrics and points that
/// are wrong are left out.
pub(crate) fn decode_frame(bytes: &[u8]) -> Result<Decoded, WireError> {
    census::check(bytes)?;
    let data = MetricsData::decode(bytes).map_err(|error| WireError::Format {
        format: "OTLP",
        why: shown(&error.to_string()),
    })?;
    let [resource] = <[ResourceMetrics; 1]>::try_from(data.resource_metrics).map_err(|all| {
        WireError::field(
            "resource_metrics",
            format!("there are {}; a frame is of one source", all.len()),
        )
    })?;
    let source = source_of(resource.resource.unwrap_or_default())?;
    let mut reader = Reader::default();
    let mut metrics = Vec::new();
    for scope in resource.scope_metrics {
        match scope.scope.as_ref().map(|scope| scope.name.as_str()) {
            Some(SCOPE) => metrics.extend(scope.metrics),
            Some(SKETCHES) => reader.sketches(scope.metrics),
            other => {
                let why = format!(
                    "scope {:?} is not known here",
                    shown(other.unwrap_or_default())
                );
                reader.refuse(scope.metrics.len().max(1), why);
            }
        }
    }
    let mut names = HashSet::with_capacity(metrics.len());
    let mut frame = Vec::with_capacity(metrics.len());
    for metric in metrics {
        if names.contains(&metric.name) {
            let why = format!("{:?} is there twice", shown(&metric.name));
            reader.refuse(points_of(&metric), why);
            continue;
        }
        names.insert(metric.name.clone());
        let points = points_of(&metric);
        match reader.metric(metric) {
            Ok(mut metric) => {
                reader.tell_apart(&mut metric);
                if !metric.points.is_empty() {
                    frame.push(metric);
                }
            }
            Err(why) => reader.refuse(points, why),
        }
    }
    let orphans: usize = reader.sketches.values().map(HashMap::len).sum();
    if orphans > 0 {
        reader.refuse(orphans, "a sketch has no histogram".to_owned());
    }
    Ok(Decoded {
        source,
        frame: Frame {
            at: reader.at,
            metrics: frame,
        },
        refused: reader.refused,
        why: reader.why,
    })
}

fn source_of(resource: Resource) -> Result<SourceId, WireError> {
    let mut parts = [const { None }; 3];
    for attribute in resource.attributes {
        let known = [NAMESPACE, COMPONENT, INSTANCE];
        // Whatever else somebody wants to say of the resource.
        let Some(i) = known.iter().position(|name| *name == attribute.key) else {
            continue;
        };
        let Some(value) = text_of(attribute.value) else {
            return Err(WireError::field(known[i], "it is no text"));
        };
        if parts[i].replace(value).is_some() {
            return Err(WireError::field(known[i], "it is there twice"));
        }
    }
    let missing = |name| WireError::field(name, "the resource does not say it");
    let [namespace, component, instance] = parts;
    let source = SourceId {
        namespace: namespace.ok_or_else(|| missing(NAMESPACE))?,
        component: component.ok_or_else(|| missing(COMPONENT))?,
        instance: instance.ok_or_else(|| missing(INSTANCE))?,
    };
    check_source(&source)?;
    Ok(source)
}

fn text_of(value: Option<AnyValue>) -> Option<String> {
    match value?.value? {
        any_value::Value::StringValue(text) => Some(text),
        _ => None,
    }
}

/// How many points there are to be left out with a metric; at least one, the metric itself.
fn points_of(metric: &Metric) -> usize {
    let points = match &metric.data {
        Some(Data::Gauge(gauge)) => gauge.data_points.len(),
        Some(Data::Sum(sum)) => sum.data_points.len(),
        Some(Data::Histogram(histogram)) => histogram.data_points.len(),
        _ => 0,
    };
    points.max(1)
}

type Labels = Vec<(String, String)>;
type Sketch = Vec<(i32, u64)>;

/// Reads what is in a frame, and notes what can't be right.
#[derive(Default)]
struct Reader {
    at: u64,
    refused: usize,
    why: Option<String>,
    /// By metric and labels, until their histograms are found.
    sketches: HashMap<String, HashMap<Labels, Sketch>>,
}

impl Reader {
    fn refuse(&mut self, points: usize, why: String) {
        self.refused = self.refused.saturating_add(points);
        self.why.get_or_insert(why);
    }

    fn sketches(&mut self, metrics: Vec<Metric>) {
        for metric in metrics {
            let Some(Data::ExponentialHistogram(histogram)) = metric.data else {
                let why = format!("{:?} is no exponential histogram", shown(&metric.name));
                self.refuse(1, why);
                continue;
            };
            let mut sketches = HashMap::with_capacity(histogram.data_points.len());
            for point in histogram.data_points {
                let sketch =
                    sketch_of(&point).and_then(|sketch| Ok((labels_of(point.attributes)?, sketch)));
                match sketch {
                    Ok((labels, sketch)) => {
                        sketches.insert(labels, sketch);
                    }
                    Err(why) => self.refuse(1, format!("{:?}: {why}", shown(&metric.name))),
                }
            }
            if !sketches.is_empty() {
                self.sketches
                    .entry(metric.name)
                    .or_default()
                    .extend(sketches);
            }
        }
    }

    fn metric(&mut self, metric: Metric) -> Result<FrameMetric, String> {
        let name = metric.name;
        check_series(&name, &[])?;
        check_length("help", &metric.description, HELP_MAX)?;
        check_length("unit", &metric.unit, UNIT_MAX)?;
        let wrong = |why: &str| Err(format!("{name:?}: {why}"));
        let cumulative = i32::from(AggregationTemporality::Cumulative);
        let kind = match &metric.data {
            Some(Data::Gauge(_)) => MetricKind::Gauge,
            Some(Data::Sum(sum)) if !sum.is_monotonic => {
                return wrong("a sum that is not monotonic is no counter");
            }
            Some(Data::Sum(sum)) if sum.aggregation_temporality == cumulative => {
                MetricKind::Counter
            }
            Some(Data::Histogram(h)) if h.aggregation_temporality == cumulative => {
                MetricKind::Histogram
            }
            Some(Data::Sum(_) | Data::Histogram(_)) => return wrong("it is not cumulative"),
            _ => return wrong("it is no gauge, sum or histogram"),
        };
        let mut desc = Desc::new(&name, "");
        let unit = Some(metric.unit).filter(|unit| !unit.is_empty());
        desc.unit.clone_from(&unit);
        validate(&desc, &name, kind, &[]).map_err(|error| error.to_string())?;
        let mut read = FrameMetric {
            name,
            help: metric.description,
            unit,
            kind,
            numbers: Numbers::Real,
            bounds: Vec::new(),
            points: Vec::new(),
        };
        match metric.data {
            Some(Data::Gauge(gauge)) => self.numbers(&mut read, gauge.data_points),
            Some(Data::Sum(sum)) => {
                let said = metric.metadata.into_iter().find(|said| said.key == NUMBERS);
                let said = said.map(|said| text_of(said.value).unwrap_or_default());
                read.numbers = match said.as_deref() {
                    Some(AMOUNT) => Numbers::Amount,
                    None if sum.data_points.iter().any(is_amount) => Numbers::Amount,
                    None => Numbers::Whole,
                    Some(other) => {
                        return Err(format!(
                            "{:?}: {NUMBERS} is {:?}; it should be {AMOUNT:?}, or not there",
                            read.name,
                            shown(other)
                        ));
                    }
                };
                self.numbers(&mut read, sum.data_points);
            }
            Some(Data::Histogram(histogram)) => self.histogram(&mut read, histogram.data_points),
            _ => {}
        }
        Ok(read)
    }

    fn numbers(&mut self, metric: &mut FrameMetric, points: Vec<NumberDataPoint>) {
        metric.points.reserve_exact(points.len());
        for point in points {
            let value = if is_removed(point.flags) {
                Ok(FrameValue::Removed)
            } else {
                number_of(metric.kind, metric.numbers, point.value).map(FrameValue::Value)
            };
            let read = value.and_then(|value| {
                let labels = labels_of(point.attributes)?;
                check_series(&metric.name, &labels)?;
                Ok((labels, value))
            });
            self.put(
                metric,
                read,
                (point.start_time_unix_nano, point.time_unix_nano),
            );
        }
    }

    fn put(
        &mut self,
        metric: &mut FrameMetric,
        read: Result<(Labels, FrameValue), String>,
        (born, at): (u64, u64),
    ) {
        match read {
            Ok((labels, value)) => {
                self.at = self.at.max(at);
                metric.points.push(FramePoint {
                    labels,
                    born,
                    value,
                });
            }
            Err(why) => self.refuse(1, format!("{:?}: {why}", metric.name)),
        }
    }

    /// Of points with the same labels the first is kept.
    fn tell_apart(&mut self, metric: &mut FrameMetric) {
        let mut seen = HashSet::with_capacity(metric.points.len());
        let again: Vec<_> = metric
            .points
            .iter()
            .map(|point| !seen.insert(&point.labels))
            .collect();
        let twice = again.iter().filter(|again| **again).count();
        if twice > 0 {
            let mut again = again.into_iter();
            metric.points.retain(|_| again.next() != Some(true));
            let why = format!("{:?}: the same labels are there twice", metric.name);
            self.refuse(twice, why);
        }
    }

    fn histogram(&mut self, metric: &mut FrameMetric, points: Vec<HistogramDataPoint>) {
        let mut sketches = self.sketches.remove(&metric.name).unwrap_or_default();
        metric.points.reserve_exact(points.len());
        let mut has_bounds = false;
        for point in points {
            let times = (point.start_time_unix_nano, point.time_unix_nano);
            let labels = labels_of(point.attributes).and_then(|labels| {
                check_series(&metric.name, &labels)?;
                Ok(labels)
            });
            let read = labels.and_then(|labels| {
                let sketch = sketches.remove(&labels).unwrap_or_default();
                if is_removed(point.flags) {
                    return Ok((labels, FrameValue::Removed));
                }
                let bounds = point.explicit_bounds;
                if has_bounds && bounds != metric.bounds {
                    return Err("its bounds are not those of the others".to_owned());
                }
                if !has_bounds {
                    // The last, +Inf, is not said.
                    if bounds.last() == Some(&f64::INFINITY) {
                        return Err("+Inf is not to be among the bounds".to_owned());
                    }
                    Buckets::new(bounds.as_slice()).map_err(|error| error.to_string())?;
                }
                let counts = point.bucket_counts;
                if counts.len() != bounds.len() + 1 {
                    return Err(format!(
                        "{} counts for {} bounds; there should be one more than bounds",
                        counts.len(),
                        bounds.len()
                    ));
                }
                let count = counts.iter().try_fold(0_u64, |n, c| n.checked_add(*c));
                if count != Some(point.count) {
                    return Err(format!("its buckets do not add up to {}", point.count));
                }
                if !has_bounds {
                    has_bounds = true;
                    metric.bounds = bounds;
                }
                let value = MirrorValue::Histogram {
                    counts,
                    sum: point.sum.unwrap_or(f64::NAN),
                    sketch,
                };
                Ok((labels, FrameValue::Value(value)))
            });
            self.put(metric, read, times);
        }
        if !sketches.is_empty() {
            self.sketches.insert(metric.name.clone(), sketches);
        }
    }
}

fn is_removed(flags: u32) -> bool {
    flags & DataPointFlags::NoRecordedValueMask as u32 != 0
}

/// 2^63, from which on integers of a counter are sent as doubles.
const BEYOND_INT: f64 = 9_223_372_036_854_775_808.0;

/// Whether a counter with this point counts in doubles.
fn is_amount(point: &NumberDataPoint) -> bool {
    matches!(point.value, Some(number_data_point::Value::AsDouble(d)) if d < BEYOND_INT)
}

fn number_of(
    kind: MetricKind,
    numbers: Numbers,
    value: Option<number_data_point::Value>,
) -> Result<MirrorValue, String> {
    use number_data_point::Value::{AsDouble, AsInt};
    let value = value.ok_or("it has neither a value nor the flag that says so")?;
    if kind == MetricKind::Gauge {
        return Ok(MirrorValue::Real(match value {
            AsDouble(d) => d,
            AsInt(n) => n as f64,
        }));
    }
    match (numbers, value) {
        (Numbers::Whole, AsInt(n)) if n >= 0 => Ok(MirrorValue::Whole(n.unsigned_abs())),
        // Rounded to a double, the greatest are 2^64; as an integer that is the greatest again.
        (Numbers::Whole, AsDouble(d)) if (BEYOND_INT..=2.0 * BEYOND_INT).contains(&d) => {
            Ok(MirrorValue::Whole(d as u64))
        }
        (Numbers::Amount, AsDouble(d)) if d >= 0.0 && d.is_finite() => Ok(MirrorValue::Amount(d)),
        (Numbers::Amount, AsInt(n)) if n >= 0 => Ok(MirrorValue::Amount(n as f64)),
        (_, AsDouble(d)) => Err(format!("a counter can't be {d}")),
        (_, AsInt(n)) => Err(format!("a counter can't be {n}")),
    }
}

fn labels_of(attributes: Vec<KeyValue>) -> Result<Labels, String> {
    let mut labels = Vec::with_capacity(attributes.len());
    for attribute in attributes {
        let Some(value) = text_of(attribute.value) else {
            return Err(format!("label {:?} is no text", shown(&attribute.key)));
        };
        labels.push((attribute.key, value));
    }
    Ok(labels)
}

/// The sketch of an exponential histogram.
fn sketch_of(point: &ExponentialHistogramDataPoint) -> Result<Sketch, String> {
    if point.scale != SCALE {
        return Err(format!("scale {} is not {SCALE}", point.scale));
    }
    let mut total = point.zero_count;
    let mut side = |buckets: &Option<Dense>| {
        let mut side = Vec::new();
        let Some(buckets) = buckets else {
            return Ok(side);
        };
        let counts = buckets.bucket_counts.iter();
        for (at, n) in (i64::from(buckets.offset)..).zip(counts) {
            if *n == 0 {
                continue;
            }
            let index = at + i64::from(INDEX_OFFSET);
            let index = i32::try_from(index)
                .ok()
                .filter(|i| (1..=INDEX_MAX).contains(i));
            let index = index.ok_or_else(|| format!("there is no bucket {at}"))?;
            total = total
                .checked_add(*n)
                .ok_or("its buckets add up to more than 2^64")?;
            side.push((index, *n));
        }
        Ok::<_, String>(side)
    };
    let mut sketch = side(&point.negative)?;
    let positive = side(&point.positive)?;
    sketch.reverse();
    for (index, _) in &mut sketch {
        *index = -*index;
    }
    sketch.extend((point.zero_count > 0).then_some((0, point.zero_count)));
    sketch.extend(positive);
    Ok(sketch)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::nats::wire::{envelope::tests::sources, query::tests::labels};

    fn value(kind: MetricKind, numbers: Numbers, bounds: usize) -> BoxedStrategy<FrameValue> {
        let value = match (kind, numbers) {
            (MetricKind::Histogram, _) => {
                let counts = prop::collection::vec(0_u64..1 << 40, bounds + 1);
                let sketch = (-4_000_i32..4_000).prop_flat_map(|from| {
                    prop::collection::btree_map(from..from + 4_000, 1_u64..1 << 50, 0..40)
                });
                let sum = any::<f64>().prop_filter("NaN", |sum| !sum.is_nan());
                (counts, sum, sketch)
                    .prop_map(|(counts, sum, sketch)| MirrorValue::Histogram {
                        counts,
                        sum,
                        sketch: sketch.into_iter().collect(),
                    })
                    .boxed()
            }
            (_, Numbers::Whole) => (0_u64..=i64::MAX as u64)
                .prop_map(MirrorValue::Whole)
                .boxed(),
            (_, Numbers::Amount) => (0.0..f64::MAX).prop_map(MirrorValue::Amount).boxed(),
            _ => any::<f64>()
                .prop_filter("NaN", |v| !v.is_nan())
                .prop_map(MirrorValue::Real)
                .boxed(),
        };
        prop_oneof![
            8 => value.prop_map(FrameValue::Value),
            1 => Just(FrameValue::Removed),
        ]
        .boxed()
    }

    fn metric(name: String) -> impl Strategy<Value = FrameMetric> {
        let kind = prop::sample::select(vec![
            (MetricKind::Counter, Numbers::Whole),
            (MetricKind::Counter, Numbers::Amount),
            (MetricKind::Gauge, Numbers::Real),
            (MetricKind::Histogram, Numbers::Real),
        ]);
        let bounds = prop::collection::btree_set(-1_000_i32..1_000, 0..6);
        (kind, bounds).prop_flat_map(move |((kind, numbers), bounds)| {
            let bounds: Vec<f64> = match kind {
                MetricKind::Histogram => bounds.into_iter().map(|b| f64::from(b) / 8.0).collect(),
                _ => Vec::new(),
            };
            // Real times, as an encoded zero is nothing.
            let born = 1_700_000_000_000_000_000_u64..u64::MAX;
            let values = (value(kind, numbers, bounds.len()), born);
            let points = prop::collection::btree_map(labels(), values, 1..6);
            let name = name.clone();
            (points, ".{0,20}", any::<bool>()).prop_map(move |(points, help, has_unit)| {
                let points: Vec<_> = points
                    .into_iter()
                    .map(|(labels, (value, born))| FramePoint {
                        labels,
                        born,
                        value,
                    })
                    .collect();
                let all_removed = points.iter().all(|p| p.value == FrameValue::Removed);
                FrameMetric {
                    name: if has_unit {
                        format!("{name}_seconds")
                    } else {
                        name.clone()
                    },
                    help,
                    unit: has_unit.then(|| "seconds".to_owned()),
                    kind,
                    numbers,
                    bounds: if all_removed {
                        Vec::new()
                    } else {
                        bounds.clone()
                    },
                    points,
                }
            })
        })
    }

    pub(crate) fn frames() -> impl Strategy<Value = Frame> {
        let names = prop::collection::btree_set("[a-z][a-z0-9_]{0,6}x", 1..5);
        let metrics =
            names.prop_flat_map(|names| names.into_iter().map(metric).collect::<Vec<_>>());
        (1_700_000_000_000_000_000_u64..u64::MAX, metrics)
            .prop_map(|(at, metrics)| Frame { at, metrics })
    }

    fn source() -> SourceId {
        SourceId::new("prod", "decode", "pod-7")
    }

    fn gauge(name: &str, labels: &[(&str, &str)], value: f64) -> FrameMetric {
        let owned = |(n, v): &(&str, &str)| ((*n).to_owned(), (*v).to_owned());
        FrameMetric {
            name: name.to_owned(),
            help: "Of a test.".to_owned(),
            unit: None,
            kind: MetricKind::Gauge,
            numbers: Numbers::Real,
            bounds: Vec::new(),
            points: vec![FramePoint {
                labels: labels.iter().map(owned).collect(),
                born: 1_792_838_000_000_000_000,
                value: FrameValue::Value(MirrorValue::Real(value)),
            }],
        }
    }

    fn counter(numbers: Numbers, value: MirrorValue) -> FrameMetric {
        FrameMetric {
            kind: MetricKind::Counter,
            numbers,
            points: vec![FramePoint {
                labels: Vec::new(),
                born: 1_792_838_000_000_000_000,
                value: FrameValue::Value(value),
            }],
            ..gauge("requests_total", &[], 0.0)
        }
    }

    fn histogram(sketch: Sketch) -> FrameMetric {
        FrameMetric {
            kind: MetricKind::Histogram,
            bounds: vec![0.1, 1.0],
            points: vec![FramePoint {
                labels: vec![("model".to_owned(), "a".to_owned())],
                born: 1_792_838_000_000_000_000,
                value: FrameValue::Value(MirrorValue::Histogram {
                    counts: vec![1, 2, 3],
                    sum: 12.5,
                    sketch,
                }),
            }],
            ..gauge("ttft_seconds", &[], 0.0)
        }
    }

    fn frame(metrics: Vec<FrameMetric>) -> Frame {
        Frame {
            at: 1_792_838_096_123_000_000,
            metrics,
        }
    }

    fn through(metric: FrameMetric) -> FrameMetric {
        let decoded = decode_frame(&encode_frame(&frame(vec![metric]), &source())).unwrap();
        assert_eq!(decoded.why, None);
        decoded.frame.metrics.into_iter().next().unwrap()
    }

    #[test]
    fn what_a_gauge_can_hold_comes_back() {
        for value in [
            0.0,
            -0.0,
            1.5,
            f64::INFINITY,
            f64::NEG_INFINITY,
            f64::NAN,
            f64::MIN_POSITIVE,
        ] {
            let read = through(gauge("g", &[("a", "é\n\"")], value));
            let FrameValue::Value(MirrorValue::Real(read)) = read.points[0].value else {
                panic!("{read:?}");
            };
            assert_eq!(read.to_bits(), value.to_bits(), "{value}");
        }
    }

    #[test]
    fn counters_keep_how_they_count() {
        for n in [0, 1, i64::MAX as u64] {
            let whole = counter(Numbers::Whole, MirrorValue::Whole(n));
            assert_eq!(through(whole.clone()), whole);
        }
        // From 2^63 on as doubles, which are multiples of 2 048 there.
        for n in [1 << 63, u64::MAX - 2_047, u64::MAX] {
            let whole = through(counter(Numbers::Whole, MirrorValue::Whole(n)));
            assert_eq!(whole.numbers, Numbers::Whole);
            let FrameValue::Value(MirrorValue::Whole(read)) = whole.points[0].value else {
                panic!("{whole:?}");
            };
            assert!(read.abs_diff(n) <= 2_047, "{n}: {read}");
        }
        for d in [0.0, 0.5, 3.0, 1e300] {
            let amount = counter(Numbers::Amount, MirrorValue::Amount(d));
            assert_eq!(through(amount.clone()), amount);
        }
    }

    #[test]
    fn a_sketch_comes_back_bucket_by_bucket() {
        for sketch in [
            vec![],
            vec![(0, 7)],
            vec![(-40_000, 1), (-39_999, 2), (0, 3), (34_000, 4), (34_100, 5)],
            vec![(1, 1), (8_192, 1)],
            vec![(-INDEX_MAX, 1), (INDEX_MAX, u64::MAX - 1)],
        ] {
            let whole = histogram(sketch);
            assert_eq!(through(whole.clone()), whole);
        }
    }

    #[test]
    fn what_opentelemetry_calls_a_bucket_is_what_a_sketch_calls_one() {
        for v in [0.001, 0.75, 1.0, 1.5, 2.0, 1e6] {
            let index = crate::sketch::index(v).unwrap();
            let number = index - INDEX_OFFSET;
            let bound = |n: i32| (f64::from(n) / 32.0).exp2();
            // (base^number, base^(number + 1)], as OpenTelemetry has it, give or take a rounding.
            assert!(
                bound(number) < v * 1.000_001 && v <= bound(number + 1) * 1.000_001,
                "{v}"
            );
            assert!(v.log2().fract() != 0.0 || bound(number + 1) == v, "{v}");
        }
    }

    #[test]
    fn a_sketch_without_room_is_left_out_and_counted() {
        let wide = histogram(vec![(1, 1), (8_193, 1)]);
        let encoded = encode_within(frame(vec![wide]), &source(), usize::MAX);
        let read = decode_frame(&encoded.bodies[0]).unwrap();
        let FrameValue::Value(MirrorValue::Histogram { sketch, .. }) =
            &read.frame.metrics[0].points[0].value
        else {
            panic!("{read:?}");
        };
        assert!(sketch.is_empty() && encoded.without_sketch == 1);
        let large = histogram((1..1_000).map(|i| (i, 300)).collect());
        let encoded = encode_within(frame(vec![large]), &source(), 1_000);
        assert_eq!((encoded.without_sketch, encoded.too_large), (1, 0));
        assert!(encoded.bodies[0].len() <= 1_000);
    }

    #[test]
    fn what_is_removed_is_said_to_be() {
        for mut metric in [
            gauge("g", &[("a", "b")], 1.0),
            counter(Numbers::Amount, MirrorValue::Amount(1.0)),
            histogram(vec![(5, 1)]),
        ] {
            metric.points[0].value = FrameValue::Removed;
            metric.bounds.clear();
            assert_eq!(through(metric.clone()), metric);
        }
    }

    #[test]
    fn points_that_no_receiver_takes_are_left_out_and_counted() {
        let many: Vec<_> = (0..65).map(|i| (format!("l{i}"), String::new())).collect();
        let many: Vec<_> = many.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let long = "x".repeat(5_000);
        let encoded = encode_within(
            frame(vec![
                gauge("good", &[("otel_metric_overflow", "true")], 1.0),
                gauge("no\nname", &[], 1.0),
                gauge("a", &[("le", "1")], 1.0),
                gauge("b", &[("x", &long)], 1.0),
                gauge("c", &many, 1.0),
                gauge("d", &[("x", "1"), ("x", "2")], 1.0),
                counter(Numbers::Whole, MirrorValue::Real(1.0)),
            ]),
            &source(),
            usize::MAX,
        );
        assert_eq!(encoded.too_large, 6);
        let decoded = decode_frame(&encoded.bodies[0]).unwrap();
        assert_eq!((decoded.frame.metrics.len(), decoded.refused), (1, 0));
    }

    /// A frame, changed before it is read.
    fn read(change: impl FnOnce(&mut MetricsData)) -> Result<Decoded, WireError> {
        let body = encode_frame(
            &frame(vec![
                gauge("g", &[("a", "b")], 1.0),
                counter(Numbers::Whole, MirrorValue::Whole(5)),
                histogram(vec![(-3, 1), (0, 2), (7, 3)]),
            ]),
            &source(),
        );
        let mut data = MetricsData::decode(&body[..]).unwrap();
        change(&mut data);
        decode_frame(&data.encode_to_vec())
    }

    fn metrics(data: &mut MetricsData) -> &mut Vec<Metric> {
        &mut data.resource_metrics[0].scope_metrics[0].metrics
    }

    fn point_of_gauge(data: &mut MetricsData) -> &mut NumberDataPoint {
        match &mut metrics(data)[0].data {
            Some(Data::Gauge(gauge)) => &mut gauge.data_points[0],
            other => panic!("{other:?}"),
        }
    }

    fn sum(data: &mut MetricsData) -> &mut Sum {
        match &mut metrics(data)[1].data {
            Some(Data::Sum(sum)) => sum,
            other => panic!("{other:?}"),
        }
    }

    fn point_of_histogram(data: &mut MetricsData) -> &mut HistogramDataPoint {
        match &mut metrics(data)[2].data {
            Some(Data::Histogram(histogram)) => &mut histogram.data_points[0],
            other => panic!("{other:?}"),
        }
    }

    fn sketched(data: &mut MetricsData) -> &mut ExponentialHistogramDataPoint {
        match &mut data.resource_metrics[0].scope_metrics[1].metrics[0].data {
            Some(Data::ExponentialHistogram(histogram)) => &mut histogram.data_points[0],
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn single_points_that_cannot_be_are_left_out_counted_and_told() {
        use number_data_point::Value::{AsDouble, AsInt};
        type Change = fn(&mut MetricsData);
        let changes: &[(&str, Change)] = &[
            ("is not valid", |d| {
                metrics(d)[0].name = "no\nname".to_owned()
            }),
            ("the bus's own", |d| {
                metrics(d)[0].name = "metricbus_x".to_owned()
            }),
            ("at most 256", |d| metrics(d)[0].name = "x".repeat(300)),
            ("at most 4096", |d| {
                metrics(d)[0].description = "x".repeat(5_000)
            }),
            ("must end in it", |d| {
                metrics(d)[0].unit = "seconds".to_owned()
            }),
            ("at most 64", |d| metrics(d)[0].unit = "s".repeat(65)),
            ("is there twice", |d| {
                metrics(d)[0].name = "requests_total".to_owned()
            }),
            ("is no gauge, sum", |d| metrics(d)[0].data = None),
            ("is reserved", |d| {
                point_of_gauge(d).attributes[0].key = "le".to_owned()
            }),
            ("is reserved", |d| {
                point_of_gauge(d).attributes[0].key = "otel_metric_overflow".to_owned();
            }),
            ("is not valid", |d| {
                point_of_gauge(d).attributes[0].key.clear()
            }),
            ("is no text", |d| {
                point_of_gauge(d).attributes[0].value = None
            }),
            ("twice", |d| {
                let again = point_of_gauge(d).attributes[0].clone();
                point_of_gauge(d).attributes.push(again);
            }),
            ("neither a value", |d| point_of_gauge(d).value = None),
            ("same labels", |d| {
                let again = point_of_gauge(d).clone();
                let Some(Data::Gauge(gauge)) = &mut metrics(d)[0].data else {
                    return;
                };
                gauge.data_points.push(again);
            }),
            ("not monotonic", |d| sum(d).is_monotonic = false),
            ("not cumulative", |d| sum(d).aggregation_temporality = 1),
            ("can't be -1", |d| {
                sum(d).data_points[0].value = Some(AsInt(-1))
            }),
            ("can't be NaN", |d| {
                sum(d).data_points[0].value = Some(AsDouble(f64::NAN))
            }),
            ("can't be inf", |d| {
                sum(d).data_points[0].value = Some(AsDouble(f64::INFINITY))
            }),
            ("can't be -0.5", |d| {
                sum(d).data_points[0].value = Some(AsDouble(-0.5))
            }),
            ("metricbus.numbers", |d| {
                metrics(d)[1].metadata.push(attribute(NUMBERS, "roman"))
            }),
            ("must increase", |d| {
                point_of_histogram(d).explicit_bounds[0] = 2.0
            }),
            ("can bound a bucket", |d| {
                point_of_histogram(d).explicit_bounds[0] = f64::NAN
            }),
            ("+Inf", |d| {
                point_of_histogram(d).explicit_bounds[1] = f64::INFINITY
            }),
            ("one more than bounds", |d| {
                point_of_histogram(d).bucket_counts.truncate(2)
            }),
            ("do not add up", |d| point_of_histogram(d).count = 7),
            ("do not add up", |d| {
                point_of_histogram(d).bucket_counts[0] = u64::MAX
            }),
            ("scale 4", |d| sketched(d).scale = 4),
            ("no bucket", |d| {
                sketched(d).positive.as_mut().unwrap().offset = i32::MAX;
            }),
            ("no bucket", |d| {
                sketched(d).negative.as_mut().unwrap().offset = i32::MIN;
            }),
            ("more than 2^64", |d| sketched(d).zero_count = u64::MAX),
            ("has no histogram", |d| sketched(d).attributes.clear()),
            ("is not known here", |d| {
                let scope = &mut d.resource_metrics[0].scope_metrics[1].scope;
                scope.as_mut().unwrap().name = "mine".to_owned();
            }),
        ];
        for (why, change) in changes {
            let decoded = read(change).unwrap();
            let said = decoded.why.unwrap_or_default();
            assert!(said.contains(why), "{why}: {said}");
            assert_eq!(decoded.refused, 1, "{said}");
            assert!(decoded.frame.metrics.len() >= 2, "{said}");
        }
    }

    #[test]
    fn a_frame_that_is_not_of_one_source_is_refused() {
        type Change = fn(&mut MetricsData);
        let changes: &[Change] = &[
            |d| d.resource_metrics.clear(),
            |d| {
                let again = d.resource_metrics[0].clone();
                d.resource_metrics.push(again);
            },
            |d| d.resource_metrics[0].resource = None,
            |d| {
                d.resource_metrics[0]
                    .resource
                    .as_mut()
                    .unwrap()
                    .attributes
                    .truncate(2)
            },
            |d| {
                let attributes = &mut d.resource_metrics[0].resource.as_mut().unwrap().attributes;
                attributes.push(attributes[0].clone());
            },
            |d| {
                let attributes = &mut d.resource_metrics[0].resource.as_mut().unwrap().attributes;
                attributes[0] = attribute(NAMESPACE, &"x".repeat(600));
            },
        ];
        for change in changes {
            assert!(read(change).is_err());
        }
    }

    #[test]
    fn foreign_counters_in_doubles_are_amounts() {
        let decoded = read(|d| {
            sum(d).data_points[0].value = Some(number_data_point::Value::AsDouble(2.5));
        });
        let metric = &decoded.unwrap().frame.metrics[1];
        assert_eq!(metric.numbers, Numbers::Amount);
        assert_eq!(
            metric.points[0].value,
            FrameValue::Value(MirrorValue::Amount(2.5))
        );
    }

    /// A field of a message.
    fn nested(tag: u32, inside: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        prost::encoding::encode_key(tag, prost::encoding::WireType::LengthDelimited, &mut bytes);
        prost::encoding::encode_varint(inside.len() as u64, &mut bytes);
        bytes.extend_from_slice(inside);
        bytes
    }

    #[test]
    fn a_frame_that_would_take_much_memory_is_refused() {
        let within = |path: &[u32], inside: Vec<u8>| {
            path.iter()
                .rev()
                .fold(inside, |inside, tag| nested(*tag, &inside))
        };
        let much = |error: WireError| error.to_string().contains("times its length");
        for path in [
            &[1, 2, 2, 5][..], // points of a gauge
            &[1, 2, 2, 7],     // … of a sum
            &[1, 2, 2, 9],     // … of a histogram
            &[1, 2, 2, 10],    // … of an exponential one
            &[1, 2],           // metrics
        ] {
            let tag = if path.len() == 2 { 2 } else { 1 };
            let bytes = within(path, nested(tag, &[]).repeat(100_000));
            assert!(much(decode_frame(&bytes).unwrap_err()), "{path:?}");
        }
        let attributes = within(&[1, 2, 2, 5, 1], nested(7, &[]).repeat(100_000));
        assert!(much(decode_frame(&attributes).unwrap_err()));
        let arrays = within(&[1, 1, 1, 2, 5], nested(1, &[]).repeat(1_000));
        let error = decode_frame(&arrays).unwrap_err().to_string();
        assert!(error.contains("frames don't have"), "{error}");
        // A bucket is a byte at least; a million of them are more than there are.
        let buckets = within(&[1, 2, 2, 10, 1, 8, 2], vec![1; 1_000_000]);
        assert!(decode_frame(&buckets).is_err());
        for cut in [
            &[0x0a, 0x05][..],
            &[0x0b],
            &[0x0a],
            &[0xff; 20],
            &[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f],
        ] {
            assert!(decode_frame(cut).is_err(), "{cut:?}");
        }
    }

    #[test]
    fn people_get_json() {
        let encoded = encode_json_within(
            frame(vec![gauge("g", &[("a", "b")], f64::NAN), histogram(vec![])]),
            &source(),
            usize::MAX,
        );
        let expected = concat!(
            r#"{"source":{"namespace":"prod","component":"decode","instance":"pod-7"},"at":"2026-10-24T10:34:56.123Z","#,
            r#""series":[{"name":"g","labels":{"a":"b"},"kind":"gauge","born":"2026-10-24T10:33:20Z","value":"NaN"},"#,
            r#"{"name":"ttft_seconds","labels":{"model":"a"},"kind":"histogram","born":"2026-10-24T10:33:20Z","#,
            r#""count":6,"sum":12.5,"buckets":[[0.1,1],[1,2],["+Inf",3]]}]}"#,
        );
        assert_eq!(
            String::from_utf8(encoded.bodies[0].clone()).unwrap(),
            expected
        );
        let split = encode_json_within(
            frame(vec![gauge("g", &[], 1.0), gauge("h", &[], 1.0)]),
            &source(),
            230,
        );
        assert_eq!((split.bodies.len(), split.too_large), (2, 0));
        let none = encode_json_within(frame(vec![gauge("g", &[], 1.0)]), &source(), 20);
        assert_eq!(none.too_large, 1);
    }

    /// The points of several frames together, by metric.
    fn together(frames: Vec<Frame>) -> Vec<FrameMetric> {
        let mut all: Vec<FrameMetric> = Vec::new();
        for metric in frames.into_iter().flat_map(|frame| frame.metrics) {
            match all.last_mut().filter(|last| last.name == metric.name) {
                Some(last) => {
                    if last.bounds.is_empty() {
                        last.bounds = metric.bounds;
                    }
                    last.points.extend(metric.points);
                }
                None => all.push(metric),
            }
        }
        all
    }

    proptest! {
        #[test]
        fn every_frame_comes_back(frame in frames(), source in sources()) {
            let decoded = decode_frame(&encode_frame(&frame, &source)).unwrap();
            prop_assert_eq!(&decoded.why, &None);
            prop_assert_eq!(decoded, Decoded { source, frame, refused: 0, why: None });
        }

        #[test]
        fn every_frame_comes_back_in_however_many_bodies(frame in frames(), max in 400_usize..6_000) {
            let encoded = encode_within(frame.clone(), &source(), max);
            let mut frames = Vec::new();
            for body in &encoded.bodies {
                prop_assert!(body.len() <= max, "{} of {}", body.len(), max);
                let decoded = decode_frame(body).unwrap();
                prop_assert_eq!(decoded.why, None);
                frames.push(decoded.frame);
            }
            let points = |metrics: &[FrameMetric]| metrics.iter().map(|m| m.points.len()).sum::<usize>();
            let read = together(frames);
            prop_assert_eq!(points(&read) + encoded.too_large, points(&frame.metrics));
            if encoded.too_large + encoded.without_sketch == 0 {
                prop_assert_eq!(read, frame.metrics);
            }
        }
    }
}
