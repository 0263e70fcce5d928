//! Questions to a source, and its answers to those about windows.
//!
//! An answer about a window has everything that is needed to merge it with those of other sources, so that statistics and
//! quantiles over all pods are those of one window over all. The statistics in it are for people.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::{
    WireError, check_series,
    envelope::{EPOCH_MAX, SEQUENCE_MAX},
    limits::{REGEXES_MAX, RULE_MAX, WIDTH_MAX},
    number::{Date, Map, Pairs, Real, Whole},
    read_json, read_selector,
};
use crate::{
    Selector, WindowStats,
    desc::MetricKind,
    nats::subject::shown,
    sketch::{INDEX_MAX, Weights},
    time::nanos,
    window::{DoubleDouble, Moments, Part, WIDTH_MIN, slot_of},
};

/// What all forwarded series are now.
#[derive(Clone, Debug, PartialEq, Default)]
pub(crate) struct SnapshotRequest {
    /// `None`: all that are forwarded.
    pub(crate) selector: Option<Selector>,
    pub(crate) format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Format {
    #[default]
    Otlp,
    /// For people.
    Json,
}

/// What a window over the selected series has seen.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct WindowRequest {
    pub(crate) selector: Selector,
    /// In whole milliseconds, 1 to those of [`WIDTH_MAX`].
    pub(crate) width: Duration,
}

/// The alerts `from` to `to`, both inclusive, of one life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AlertsRequest {
    pub(crate) epoch: u64,
    pub(crate) from: u64,
    pub(crate) to: u64,
}

/// What a window has seen, or a part of that.
#[derive(Clone, Debug)]
pub(crate) struct WindowReply {
    /// The width in force, in whole milliseconds.
    pub(crate) width: Duration,
    /// By the source's clock.
    pub(crate) at: SystemTime,
    pub(crate) series: Vec<WindowSeries>,
}

/// What one series has seen. Its part is of the answer's width.
#[derive(Clone, Debug)]
pub(crate) struct WindowSeries {
    pub(crate) name: String,
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) part: Part,
}

/// An answer as it is sent.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct EncodedWindow {
    /// At least one.
    pub(crate) bodies: Vec<Vec<u8>>,
    /// Series that are in none of them: too large for any, or beyond what a receiver takes.
    pub(crate) too_large: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SnapshotBody {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    selector: Option<String>,
    #[serde(default)]
    format: Format,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WindowBody {
    selector: String,
    width_ms: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AlertsBody {
    epoch: Whole,
    from: Whole,
    to: Whole,
}

fn request<'a, B: Deserialize<'a>>(bytes: &'a [u8]) -> Result<B, WireError> {
    if bytes.len() > RULE_MAX {
        return Err(WireError::TooLarge {
            what: "a question",
            bytes: bytes.len(),
            max: RULE_MAX,
        });
    }
    read_json(bytes)
}

pub(crate) fn encode_snapshot_request(request: &SnapshotRequest) -> Vec<u8> {
    let body = SnapshotBody {
        selector: request.selector.as_ref().map(ToString::to_string),
        format: request.format,
    };
    serde_json::to_vec(&body).unwrap_or_default()
}

/// The question of a body; nothing at all asks for everything.
///
/// # Errors
///
/// When it is no such question, or its selector is wrong or beyond the limits.
pub(crate) fn decode_snapshot_request(bytes: &[u8]) -> Result<SnapshotRequest, WireError> {
    if bytes.trim_ascii().is_empty() {
        return Ok(SnapshotRequest::default());
    }
    let body: SnapshotBody = request(bytes)?;
    let selector = body.selector.as_deref();
    Ok(SnapshotRequest {
        selector: selector
            .map(|text| read_selector("selector", text, &mut { REGEXES_MAX }))
            .transpose()?,
        format: body.format,
    })
}

pub(crate) fn encode_window_request(request: &WindowRequest) -> Vec<u8> {
    let body = WindowBody {
        selector: request.selector.to_string(),
        width_ms: millis(request.width),
    };
    serde_json::to_vec(&body).unwrap_or_default()
}

/// # Errors
///
/// When it is no such question, its selector is wrong or beyond the limits, or its width is none.
pub(crate) fn decode_window_request(bytes: &[u8]) -> Result<WindowRequest, WireError> {
    let body: WindowBody = request(bytes)?;
    Ok(WindowRequest {
        selector: read_selector("selector", &body.selector, &mut { REGEXES_MAX })?,
        width: width(body.width_ms)?,
    })
}

pub(crate) fn encode_alerts_request(request: &AlertsRequest) -> Vec<u8> {
    let body = AlertsBody {
        epoch: Whole(request.epoch),
        from: Whole(request.from),
        to: Whole(request.to),
    };
    serde_json::to_vec(&body).unwrap_or_default()
}

/// # Errors
///
/// When it is no such question, or `from` is 0 or beyond `to`.
pub(crate) fn decode_alerts_request(bytes: &[u8]) -> Result<AlertsRequest, WireError> {
    let body: AlertsBody = request(bytes)?;
    let (epoch, from, to) = (body.epoch.0, body.from.0, body.to.0);
    if !(1..=EPOCH_MAX).contains(&epoch) {
        return Err(WireError::field(
            "epoch",
            format!("{epoch} is not the epoch of a source"),
        ));
    }
    if from == 0 || from > to || to > SEQUENCE_MAX {
        return Err(WireError::field(
            "from",
            format!("{from} to {to} are no alerts; the first is 1, and `to` is not before `from`"),
        ));
    }
    Ok(AlertsRequest { epoch, from, to })
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn width(ms: u64) -> Result<Duration, WireError> {
    let width = Duration::from_millis(ms);
    if width.is_zero() || width > WIDTH_MAX {
        return Err(WireError::field(
            "width_ms",
            format!("{ms} is not from 1 to {}", WIDTH_MAX.as_millis()),
        ));
    }
    Ok(width)
}

/// The statistics of a window, as people want to see them.
#[derive(Serialize)]
struct StatsBody {
    sources: usize,
    stale: usize,
    coverage: Real,
    count: Whole,
    sum: Option<Real>,
    avg: Option<Real>,
    min: Option<Real>,
    max: Option<Real>,
    stddev: Option<Real>,
    last: Option<Real>,
    increase: Option<Real>,
    rate: Option<Real>,
    p50: Option<Real>,
    p90: Option<Real>,
    p99: Option<Real>,
    age_seconds: Option<Real>,
}

impl StatsBody {
    fn of(stats: &WindowStats) -> StatsBody {
        StatsBody {
            sources: stats.sources,
            stale: stats.stale,
            coverage: Real(stats.coverage),
            count: Whole(stats.count),
            sum: stats.sum.map(Real),
            avg: stats.avg.map(Real),
            min: stats.min.map(Real),
            max: stats.max.map(Real),
            stddev: stats.stddev.map(Real),
            last: stats.last.map(Real),
            increase: stats.increase.map(Real),
            rate: stats.rate.map(Real),
            p50: stats.quantile(0.5).map(Real),
            p90: stats.quantile(0.9).map(Real),
            p99: stats.quantile(0.99).map(Real),
            age_seconds: stats.age.map(|age| Real(age.as_secs_f64())),
        }
    }
}

#[derive(Serialize)]
struct SeriesBody<'a> {
    name: &'a str,
    labels: Pairs<'a>,
    part: PartBody,
}

/// A [`Part`]. Times in nanoseconds, as a gauge's weights are.
#[derive(Serialize, Deserialize)]
struct PartBody {
    kind: Kind,
    covered_ns: Whole,
    count: Whole,
    sum: Real,
    min: Real,
    max: Real,
    last: Real,
    increase: Real,
    moments: MomentsBody,
    infinite: Real,
    age_ns: Option<Whole>,
    stale: bool,
    /// Index and weight of each bucket, ascending.
    weights: Vec<(i32, Whole)>,
}

#[derive(Serialize, Deserialize)]
struct MomentsBody {
    weight: Real,
    mean: Real,
    squares: Real,
    /// What mean and squares lost when they were rounded.
    #[serde(default, skip_serializing_if = "is_zero")]
    mean_rest: Real,
    #[serde(default, skip_serializing_if = "is_zero")]
    squares_rest: Real,
}

fn is_zero(number: &Real) -> bool {
    number.0.to_bits() == 0
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl PartBody {
    fn of(part: &Part) -> PartBody {
        PartBody {
            kind: match part.kind {
                MetricKind::Counter => Kind::Counter,
                MetricKind::Gauge => Kind::Gauge,
                MetricKind::Histogram => Kind::Histogram,
            },
            covered_ns: Whole(part.covered),
            count: Whole(part.count),
            sum: Real(part.sum),
            min: Real(part.min),
            max: Real(part.max),
            last: Real(part.last),
            increase: Real(part.increase),
            moments: MomentsBody {
                weight: Real(part.moments.weight.value()),
                mean: Real(part.moments.mean.value()),
                squares: Real(part.moments.squares.value()),
                mean_rest: Real(part.moments.mean.rest()),
                squares_rest: Real(part.moments.squares.rest()),
            },
            infinite: Real(part.infinite),
            age_ns: part.age.map(Whole),
            stale: part.stale,
            weights: part.weights.iter().map(|(i, w)| (i, Whole(w))).collect(),
        }
    }

    fn read(self, width: u64, slot: u64) -> Result<Part, String> {
        let told = self.moments;
        let weight = told.weight.0;
        let squares = DoubleDouble::new(told.squares.0, told.squares_rest.0);
        if !(weight >= 0.0 && weight.is_finite()) {
            return Err(format!("a weight of {weight} is none"));
        }
        // Of what is large they may be infinite, or no number.
        if squares.value() < 0.0 {
            let squares = squares.value();
            return Err(format!("squares that add up to {squares} are none"));
        }
        let moments = Moments {
            weight: weight.into(),
            mean: DoubleDouble::new(told.mean.0, told.mean_rest.0),
            squares,
        };
        if self.infinite.0 != 0.0 && self.infinite.0.is_finite() {
            return Err(format!("infinite is {}", self.infinite.0));
        }
        let mut before = None;
        for (index, weight) in &self.weights {
            if !(-INDEX_MAX..=INDEX_MAX).contains(index) || before.is_some_and(|b| b >= *index) {
                return Err(format!(
                    "bucket {index} cannot be; buckets ascend, from {} to {INDEX_MAX}",
                    -INDEX_MAX
                ));
            }
            if weight.0 == 0 {
                return Err(format!("bucket {index} weighs nothing"));
            }
            before = Some(*index);
        }
        let mut weights = Weights::default();
        weights.add_ascending(self.weights.into_iter().map(|(i, w)| (i, w.0)));
        Ok(Part {
            kind: match self.kind {
                Kind::Counter => MetricKind::Counter,
                Kind::Gauge => MetricKind::Gauge,
                Kind::Histogram => MetricKind::Histogram,
            },
            width,
            slot,
            covered: self.covered_ns.0,
            count: self.count.0,
            sum: self.sum.0,
            min: self.min.0,
            max: self.max.0,
            last: self.last.0,
            increase: self.increase.0,
            moments,
            infinite: self.infinite.0,
            age: self.age_ns.map(|age| age.0),
            stale: self.stale,
            weights,
        })
    }
}

#[derive(Serialize)]
struct Head {
    width_ms: u64,
    slot_ns: u64,
    at: Date,
    stats: StatsBody,
    series: [(); 0],
}

#[derive(Deserialize)]
struct ReplyBody {
    width_ms: u64,
    slot_ns: u64,
    at: Date,
    series: Vec<SeriesRead>,
}

#[derive(Deserialize)]
struct SeriesRead {
    name: String,
    labels: Map,
    part: PartBody,
}

/// An answer in bodies of at most `max_bytes` each; `stats`, for people, are those of all series together, and in each.
pub(crate) fn encode_window_within(
    reply: WindowReply,
    stats: &WindowStats,
    max_bytes: usize,
) -> EncodedWindow {
    let width = reply.width.max(WIDTH_MIN);
    let head = Head {
        width_ms: millis(width),
        slot_ns: nanos(slot_of(width)),
        at: Date(reply.at),
        stats: StatsBody::of(stats),
        series: [],
    };
    let mut head = serde_json::to_vec(&head).unwrap_or_default();
    const TAIL: &[u8] = b"]}";
    head.truncate(head.len().saturating_sub(TAIL.len()));
    let mut encoded = EncodedWindow::default();
    let mut body = head.clone();
    for series in &reply.series {
        let one = SeriesBody {
            name: &series.name,
            labels: Pairs(&series.labels),
            part: PartBody::of(&series.part),
        };
        let one = match check_series(&series.name, &series.labels) {
            Ok(()) => serde_json::to_vec(&one).unwrap_or_default(),
            Err(_) => Vec::new(),
        };
        if one.is_empty() || head.len() + one.len() + TAIL.len() > max_bytes {
            encoded.too_large += 1;
            continue;
        }
        if body.len() + 1 + one.len() + TAIL.len() > max_bytes {
            body.extend_from_slice(TAIL);
            encoded
                .bodies
                .push(std::mem::replace(&mut body, head.clone()));
        }
        if body.len() > head.len() {
            body.push(b',');
        }
        body.extend_from_slice(&one);
    }
    body.extend_from_slice(TAIL);
    encoded.bodies.push(body);
    encoded
}

/// One body of an answer.
///
/// # Errors
///
/// When it is not as [`encode_window_within`] makes them, in any of its series.
pub(crate) fn decode_window_reply(bytes: &[u8]) -> Result<WindowReply, WireError> {
    let body: ReplyBody = read_json(bytes)?;
    let width = width(body.width_ms)?;
    if body.slot_ns == 0 || body.slot_ns > nanos(width) {
        return Err(WireError::field(
            "slot_ns",
            format!("{} is not from 1 to the width", body.slot_ns),
        ));
    }
    let series = body.series.into_iter().map(|series| {
        let wrong =
            |why: String| WireError::field("series", format!("{:?}: {why}", shown(&series.name)));
        check_series(&series.name, &series.labels.0).map_err(wrong)?;
        let part = series
            .part
            .read(nanos(width), body.slot_ns)
            .map_err(wrong)?;
        Ok::<_, WireError>(WindowSeries {
            name: series.name.clone(),
            labels: series.labels.0,
            part,
        })
    });
    Ok(WindowReply {
        width,
        at: body.at.0,
        series: series.collect::<Result<_, _>>()?,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        Buckets, Clock, Counter, Desc, Gauge, Histogram, MetricBus,
        window::{Detail, merge, pane},
    };

    pub(crate) fn labels() -> impl Strategy<Value = Vec<(String, String)>> {
        prop::collection::btree_map("[a-z][a-z0-9_]{0,5}", any::<String>(), 0..4)
            .prop_map(|pairs| pairs.into_iter().filter(|(n, _)| n != "le").collect())
    }

    fn real() -> impl Strategy<Value = f64> {
        prop_oneof![
            any::<f64>(),
            Just(f64::NAN),
            Just(f64::INFINITY),
            Just(-0.0),
            (-1_000_i32..1_000).prop_map(f64::from),
        ]
    }

    fn parts(width: u64) -> impl Strategy<Value = Part> {
        let numbers = (real(), real(), real(), real(), real());
        let moments = (0.0..1e300_f64, real(), 0.0..1e300_f64);
        let weights = prop::collection::btree_map(-INDEX_MAX..=INDEX_MAX, 1_u64.., 0..20);
        (
            prop::sample::select(vec![
                MetricKind::Counter,
                MetricKind::Gauge,
                MetricKind::Histogram,
            ]),
            (
                0..=width,
                any::<u64>(),
                prop::option::of(any::<u64>()),
                any::<bool>(),
            ),
            numbers,
            moments,
            prop::sample::select(vec![0.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN]),
            weights,
        )
            .prop_map(move |(kind, counts, numbers, moments, infinite, weights)| {
                let mut part =
                    Part::nothing(kind, width, nanos(slot_of(Duration::from_nanos(width))));
                (part.covered, part.count, part.age, part.stale) = counts;
                (part.sum, part.min, part.max, part.last, part.increase) = numbers;
                part.moments = Moments {
                    weight: moments.0.into(),
                    mean: moments.1.into(),
                    squares: moments.2.into(),
                };
                part.infinite = infinite;
                part.weights.add_ascending(weights);
                part
            })
    }

    pub(crate) fn replies() -> impl Strategy<Value = WindowReply> {
        (100_u64..=WIDTH_MAX.as_millis() as u64).prop_flat_map(|ms| {
            let width = Duration::from_millis(ms);
            let one = ("[a-z_:][a-z0-9_:]{0,9}", labels(), parts(nanos(width)));
            let one = one.prop_map(|(name, labels, part)| WindowSeries { name, labels, part });
            let all = prop::collection::vec(one, 0..6);
            (all, 0_u64..250_000_000_000).prop_map(move |(series, at)| WindowReply {
                width,
                at: SystemTime::UNIX_EPOCH + Duration::from_secs(at),
                series,
            })
        })
    }

    pub(crate) fn stats_of(reply: &WindowReply) -> WindowStats {
        let parts: Vec<_> = reply.series.iter().map(|s| s.part.clone()).collect();
        merge(&parts, reply.width)
    }

    /// As text, in which NaN is like NaN.
    fn text(series: &[WindowSeries]) -> String {
        let one = |s: &WindowSeries| {
            let weights: Vec<_> = s.part.weights.iter().collect();
            format!("{s:?} {weights:?}")
        };
        series.iter().map(one).collect()
    }

    /// A bus on which windows have seen something, and what they have.
    fn seen() -> WindowReply {
        let clock = Clock::manual();
        let bus = MetricBus::builder().clock(clock.clone()).build();
        let width = Duration::from_secs(10);
        let gauges = bus
            .family::<Gauge>(Desc::new("kv_usage_ratio", "h").labels(["worker"]))
            .unwrap();
        let gauge = gauges.with_label_values(&["a"]).unwrap();
        let counter: Counter = bus.counter("requests_total", "h").unwrap();
        let histogram: Histogram = bus
            .histogram("ttft_seconds", "h", Buckets::default())
            .unwrap();
        let series = [gauge.series(), counter.series(), histogram.series()];
        let panes: Vec<_> = (0..)
            .zip(&series)
            .map(|(id, series)| {
                let (pane, feeder) = pane(id, series.core(), false, clock.now(), width);
                series.core().attach(feeder, &mut crate::cell::Wakes::new());
                pane
            })
            .collect();
        for i in 1..=40 {
            gauge.set(f64::from(i % 7) / 3.0);
            counter.inc_by(3);
            histogram.observe(f64::from(i) / 100.0);
            clock.advance(Duration::from_millis(130));
        }
        let each = series.iter().zip(panes).map(|(series, pane)| WindowSeries {
            name: series.name().to_owned(),
            labels: series.labels(),
            part: pane.part(clock.now(), Detail::Sketch),
        });
        WindowReply {
            width,
            at: SystemTime::UNIX_EPOCH,
            series: each.collect(),
        }
    }

    #[test]
    fn a_window_that_was_sent_has_the_same_statistics_to_the_bit() {
        let reply = seen();
        let before = stats_of(&reply);
        let encoded = encode_window_within(reply.clone(), &before, 1 << 20);
        assert_eq!((encoded.bodies.len(), encoded.too_large), (1, 0));
        let read = decode_window_reply(&encoded.bodies[0]).unwrap();
        assert_eq!(text(&read.series), text(&reply.series));
        assert_eq!(stats_of(&read), before);
        assert_eq!(stats_of(&read).quantile(0.99), before.quantile(0.99));
        for (one, other) in reply.series.iter().zip(&read.series) {
            assert_eq!(
                merge(std::slice::from_ref(&one.part), reply.width),
                merge(std::slice::from_ref(&other.part), reply.width)
            );
        }
    }

    #[test]
    fn an_answer_without_series_is_one_body() {
        let reply = WindowReply {
            series: Vec::new(),
            ..seen()
        };
        let encoded = encode_window_within(reply.clone(), &stats_of(&reply), 100);
        assert_eq!((encoded.bodies.len(), encoded.too_large), (1, 0));
        assert!(
            decode_window_reply(&encoded.bodies[0])
                .unwrap()
                .series
                .is_empty()
        );
    }

    #[test]
    fn what_fits_into_no_body_is_left_out_and_counted() {
        let reply = seen();
        let stats = stats_of(&reply);
        let whole = encode_window_within(reply.clone(), &stats, usize::MAX);
        let max = whole.bodies[0].len() - 10;
        let split = encode_window_within(reply.clone(), &stats, max);
        assert_eq!((split.bodies.len(), split.too_large), (2, 0));
        let none = encode_window_within(reply.clone(), &stats, 100);
        assert_eq!(none.too_large, 3);
        let mut bad = reply;
        bad.series[0].labels = vec![("le".to_owned(), "1".to_owned())];
        bad.series[1].labels = vec![("a".to_owned(), "x".repeat(5_000))];
        assert_eq!(encode_window_within(bad, &stats, usize::MAX).too_large, 2);
    }

    #[test]
    fn parts_that_cannot_be_are_refused() {
        let reply = seen();
        let encoded = encode_window_within(reply.clone(), &stats_of(&reply), 1 << 20);
        let body = String::from_utf8(encoded.bodies[0].clone()).unwrap();
        let weights = body.find("\"weights\":[[").unwrap();
        let (front, back) = body.split_at(weights + 11);
        let with = |pairs: &str| format!("{front}{pairs},{back}");
        for bad in [
            with("[-67138,1]"),
            with("[67138,1]"),
            with("[2147483648,1]"),
            with("[40000,1]"),
            with("[-5,0]"),
            with("[-5,-1]"),
            with("[-5,1],[-5,1]"),
            with("[-5]"),
            with("[-5,1,1]"),
            with("7"),
            body.replacen("\"width_ms\":10000", "\"width_ms\":0", 1),
            body.replacen("\"width_ms\":10000", "\"width_ms\":99999999999999", 1),
            body.replacen("\"slot_ns\":100000000", "\"slot_ns\":0", 1),
            body.replacen("\"slot_ns\":100000000", "\"slot_ns\":10000000001", 1),
            body.replacen("\"kind\":\"gauge\"", "\"kind\":\"summary\"", 1),
            body.replacen("\"infinite\":0", "\"infinite\":1", 1),
            body.replacen("\"worker\":\"a\"", "\"worker\":\"a\",\"worker\":\"b\"", 1),
            body.replacen("\"worker\":\"a\"", "\"le\":\"a\"", 1),
            body.replacen("kv_usage_ratio", "kv\\nusage", 1),
            body.replacen("\"moments\":{\"weight\":", "\"moments\":{\"weight\":-", 1),
        ] {
            assert_ne!(bad, body);
            assert!(decode_window_reply(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(decode_window_reply(with("[-5,1]").as_bytes()).is_ok());
    }

    #[test]
    fn questions_are_as_the_protocol_says_and_what_is_none_is_refused() {
        let selector: Selector = r#"kv_usage_ratio{worker=~"a|b"}"#.parse().unwrap();
        let window = WindowRequest {
            selector: selector.clone(),
            width: Duration::from_secs(10),
        };
        let text = r#"{"selector":"kv_usage_ratio{worker=~\"a|b\"}","width_ms":10000}"#;
        assert_eq!(encode_window_request(&window), text.as_bytes());
        assert_eq!(decode_window_request(text.as_bytes()), Ok(window));
        for bad in [
            "",
            "{}",
            r#"{"selector":"a{","width_ms":1}"#,
            r#"{"selector":"a","width_ms":0}"#,
            r#"{"selector":"a","width_ms":-1}"#,
            r#"{"selector":"a","width_ms":1e300}"#,
            r#"{"selector":"a","width_ms":99999999999999}"#,
            r#"{"selector":"a","width_ms":1000,"with":1}"#,
        ] {
            assert!(decode_window_request(bad.as_bytes()).is_err(), "{bad}");
        }
        let snapshot = SnapshotRequest {
            selector: Some(selector),
            format: Format::Json,
        };
        let read = decode_snapshot_request(&encode_snapshot_request(&snapshot));
        assert_eq!(read, Ok(snapshot));
        for all in ["", " \n", "{}"] {
            let read = decode_snapshot_request(all.as_bytes());
            assert_eq!(read, Ok(SnapshotRequest::default()));
        }
        for bad in [
            "x",
            "[]",
            r#"{"selecter":"a"}"#,
            r#"{"format":"xml"}"#,
            r#"{"selector":"a","selector":"b"}"#,
        ] {
            assert!(decode_snapshot_request(bad.as_bytes()).is_err(), "{bad}");
        }
        let alerts = AlertsRequest {
            epoch: 1_792_838_000_000_000,
            from: 3,
            to: 9,
        };
        let text = r#"{"epoch":1792838000000000,"from":3,"to":9}"#;
        assert_eq!(encode_alerts_request(&alerts), text.as_bytes());
        assert_eq!(decode_alerts_request(text.as_bytes()), Ok(alerts));
        for bad in [
            r#"{"epoch":0,"from":3,"to":9}"#,
            r#"{"epoch":1,"from":0,"to":9}"#,
            r#"{"epoch":1,"from":3,"to":2}"#,
            r#"{"epoch":1,"from":3,"to":"18446744073709551615"}"#,
            r#"{"epoch":1,"from":3}"#,
        ] {
            assert!(decode_alerts_request(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn others_may_ask_for_everything_as_they_used_to() {
        for all in ["{}", r#"{pod!=\"a\"}"#, r#"{__name__!=\"\"}"#] {
            let request = decode_snapshot_request(format!(r#"{{"selector":"{all}"}}"#).as_bytes());
            assert!(request.is_ok(), "{all}: {request:?}");
        }
    }

    #[test]
    fn selectors_that_would_take_much_memory_are_refused() {
        let of = |selector: &str| {
            let body = serde_json::json!({ "selector": selector });
            decode_snapshot_request(body.to_string().as_bytes())
        };
        assert!(of(r#"a{b=~"prefill|decode.*",c!~"\\w+-[0-9]{1,20}"}"#).is_ok());
        let many = |n| vec![r#"a=~"b""#; n].join(",");
        assert!(of(&format!("{{{}}}", many(REGEXES_MAX))).is_ok());
        let error = of(&format!("{{{}}}", many(REGEXES_MAX + 1)))
            .unwrap_err()
            .to_string();
        assert!(error.contains("fewer regular expressions"), "{error}");
        for bad in [r#"a{b=~"\\pL{1000}"}"#, r#"a{b=~"(\\PN{10}){100}"}"#] {
            let error = of(bad).unwrap_err().to_string();
            assert!(error.contains("size limit"), "{error}");
        }
        let long = format!("a{{b=\"{}\"}}", "x".repeat(5_000));
        assert!(of(&long).unwrap_err().to_string().contains("at most 4096"));
        let nested = format!("a{{b=~\"{}{}\"}}", "(".repeat(1_000), ")".repeat(1_000));
        assert!(of(&nested).is_err());
    }

    proptest! {
        #[test]
        fn every_answer_comes_back_in_however_many_bodies(reply in replies(), max in 2_000_usize..20_000) {
            let encoded = encode_window_within(reply.clone(), &stats_of(&reply), max);
            let mut series = Vec::new();
            for body in &encoded.bodies {
                prop_assert!(body.len() <= max);
                let read = decode_window_reply(body).unwrap();
                prop_assert_eq!((read.width, read.at), (reply.width, reply.at));
                series.extend(read.series);
            }
            prop_assert_eq!(series.len() + encoded.too_large, reply.series.len());
            if encoded.too_large == 0 {
                prop_assert_eq!(text(&series), text(&reply.series));
            }
        }
    }
}
