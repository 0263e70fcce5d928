//! `encode_100k_counters`, `encode_10k_histograms`: writing the Prometheus text of one family with three labels.
//!
//! All have the same name, label values and numbers, and write into a buffer that they reuse; before anything is timed,
//! each text is checked to have as many samples as there should be. The figure is the time for the whole text.
//!
//! - Subject: `export::text::encode` of the whole bus, its own metrics included.
//! - Also shown: the same with half a kilobyte of somebody else's memory between one series and the next, as where
//!   series are born one by one in a busy process. Otherwise each contender's series lie together.
//! - Floor: text that was rendered before is copied out, with the numbers put in: one run of memory holds what stands
//!   before each number, another one the values.
//! - Peers: `measured`, with interned label values as its guide recommends for text that is not known beforehand;
//!   `prometheus`; `prometheus-client`, with typed labels.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use measured::{
    CounterVec, HistogramVec, MetricGroup, metric::histogram::Thresholds, text::TextEncoder,
};
use metricbus::{
    Buckets, Counter, Desc, Histogram, MetricBus,
    export::text::{Format, encode},
};
use prometheus::Encoder;
use prometheus_client::metrics::family::Family as ClientFamily;

use crate::{
    Failure,
    harness::{Effort, Lane, Plan, Random, Role, interleave},
    histogram::{BOUNDS, durations},
    labels::{ClientLabels, LABELS, Labels, MeasuredLabels, MeasuredSet},
    report::{Bar, Figures, Unit},
};

const COUNTER: &str = "requests_total";
const HISTOGRAM: &str = "request_duration_seconds";
const HELP: &str = "What was asked of the workers.";

/// Of each histogram, made before its text is.
const OBSERVATIONS: usize = 6;

/// Buckets with the one for +Inf, sum and count.
const LINES_PER_HISTOGRAM: usize = BOUNDS.len() + 3;

#[derive(MetricGroup)]
struct MeasuredCounters {
    /// What was asked of the workers.
    requests_total: CounterVec<MeasuredSet>,
}

#[derive(MetricGroup)]
struct MeasuredHistograms {
    /// What was asked of the workers.
    request_duration_seconds: HistogramVec<MeasuredSet, { BOUNDS.len() }>,
}

/// Text rendered before: what stands before each number.
#[derive(Default)]
struct Rendered {
    text: String,
    ends: Vec<usize>,
    numbers: Vec<Number>,
}

enum Number {
    Whole(AtomicU64),
    Real(AtomicU64),
}

impl Rendered {
    fn new(name: &str, kind: &str) -> Rendered {
        Rendered {
            text: format!("# HELP {name} {HELP}\n# TYPE {name} {kind}\n"),
            ..Rendered::default()
        }
    }

    fn line(&mut self, name: &str, labels: &Labels, le: Option<&str>, number: Number) {
        let Labels {
            component,
            endpoint,
            worker,
        } = labels;
        let text = &mut self.text;
        let _ = write!(
            text,
            r#"{name}{{component="{component}",endpoint="{endpoint}",worker="{worker}""#
        );
        if let Some(le) = le {
            let _ = write!(text, r#",le="{le}""#);
        }
        text.push_str("} ");
        self.ends.push(text.len());
        self.numbers.push(number);
    }

    fn histogram(&mut self, labels: &Labels, values: &[f64]) {
        let whole = |count: usize| Number::Whole(AtomicU64::new(count as u64));
        let name = |suffix| format!("{HISTOGRAM}_{suffix}");
        for bound in BOUNDS.into_iter().chain([f64::INFINITY]) {
            let count = values.iter().filter(|v| **v <= bound).count();
            let le = if bound.is_finite() {
                bound.to_string()
            } else {
                "+Inf".into()
            };
            self.line(&name("bucket"), labels, Some(&le), whole(count));
        }
        let sum = values.iter().sum::<f64>();
        self.line(
            &name("sum"),
            labels,
            None,
            Number::Real(AtomicU64::new(sum.to_bits())),
        );
        self.line(&name("count"), labels, None, whole(values.len()));
    }

    fn write(&self, out: &mut Vec<u8>) {
        let (mut whole, mut real) = (itoa::Buffer::new(), zmij::Buffer::new());
        let mut from = 0;
        for (end, number) in self.ends.iter().zip(&self.numbers) {
            out.extend_from_slice(&self.text.as_bytes()[from..*end]);
            from = *end;
            let number = match number {
                Number::Whole(v) => whole.format(v.load(Ordering::Acquire)),
                Number::Real(bits) => real.format(f64::from_bits(bits.load(Ordering::Acquire))),
            };
            out.extend_from_slice(number.as_bytes());
            out.push(b'\n');
        }
    }
}

/// A buffer that can be written to again.
trait Text: Default {
    fn wipe(&mut self);
    fn bytes(&self) -> &[u8];
}

impl Text for Vec<u8> {
    fn wipe(&mut self) {
        self.clear();
    }

    fn bytes(&self) -> &[u8] {
        self
    }
}

impl Text for String {
    fn wipe(&mut self) {
        self.clear();
    }

    fn bytes(&self) -> &[u8] {
        self.as_bytes()
    }
}

/// A lane that writes a text into a buffer of its own, after one that is checked.
fn writes<'a, B: Text + 'a>(
    role: Role,
    name: &'static str,
    (metric, samples): (&str, usize),
    write: impl Fn(&mut B) -> Result<(), Failure> + 'a,
) -> Result<Lane<'a>, Failure> {
    let mut out = B::default();
    write(&mut out)?;
    let found = samples_of(metric, out.bytes());
    if found != samples {
        return Err(
            format!("{name} wrote {found} samples of {metric} rather than {samples}").into(),
        );
    }
    Ok(Lane::new(role, name, move |n| {
        let start = Instant::now();
        for _ in 0..n {
            out.wipe();
            write(&mut out)?;
            std::hint::black_box(out.bytes());
        }
        Ok(start.elapsed())
    }))
}

/// How many lines of a text are samples of a metric.
fn samples_of(metric: &str, text: &[u8]) -> usize {
    text.split(|byte| *byte == b'\n')
        .filter(|line| line.starts_with(metric.as_bytes()))
        .count()
}

fn plan(effort: Effort) -> Plan {
    Plan {
        rounds: effort.pick(3, 11),
        round: effort.pick(Duration::from_millis(1), Duration::from_millis(20)),
    }
}

pub(crate) fn counters(effort: Effort) -> Result<Figures, Failure> {
    const SERIES: usize = 100_000;

    let bus = MetricBus::new();
    let ours = bus.family::<Counter>(Desc::new(COUNTER, HELP).labels(LABELS).series_max(SERIES))?;
    let scattered_bus = MetricBus::new();
    let scattered = scattered_bus
        .family::<Counter>(Desc::new(COUNTER, HELP).labels(LABELS).series_max(SERIES))?;
    let measured = MeasuredCounters {
        requests_total: CounterVec::with_label_set(MeasuredSet::interning()),
    };
    let registry = prometheus::Registry::new();
    let vec = prometheus::IntCounterVec::new(prometheus::Opts::new(COUNTER, HELP), &LABELS)?;
    registry.register(Box::new(vec.clone()))?;
    let mut client = prometheus_client::registry::Registry::default();
    let family =
        ClientFamily::<ClientLabels, prometheus_client::metrics::counter::Counter>::default();
    // It appends the _total by itself.
    client.register("requests", HELP, family.clone());
    let mut rendered = Rendered::new(COUNTER, "counter");

    // One contender after the other, so that each one's series lie together in memory and not among the others'.
    let fill = |add: &mut dyn FnMut(&Labels, u64) -> Result<(), Failure>| {
        let mut random = Random::new();
        let mut labels = Labels::default();
        (0..SERIES).try_for_each(|i| {
            labels.number(i);
            // From one digit to seven: what counters look like after some hours.
            add(&labels, 10_f64.powf(7.0 * random.unit()) as u64)
        })
    };
    fill(&mut |labels, value| {
        ours.with_label_values(&labels.values())?.inc_by(value);
        Ok(())
    })?;
    fill(&mut |labels, value| {
        measured
            .requests_total
            .inc_by(MeasuredLabels::from(labels), value);
        Ok(())
    })?;
    fill(&mut |labels, value| {
        vec.with_label_values(&labels.values()).inc_by(value);
        Ok(())
    })?;
    fill(&mut |labels, value| {
        family
            .get_or_create(&ClientLabels::from(labels))
            .inc_by(value);
        Ok(())
    })?;
    fill(&mut |labels, value| {
        rendered.line(COUNTER, labels, None, Number::Whole(AtomicU64::new(value)));
        Ok(())
    })?;
    let mut between = Vec::with_capacity(SERIES);
    fill(&mut |labels, value| {
        scattered.with_label_values(&labels.values())?.inc_by(value);
        between.push(std::hint::black_box(Box::new([1_u8; 512])));
        Ok(())
    })?;

    let expected = (COUNTER, SERIES);
    let lanes = &mut [
        writes(Role::Subject, "metricbus", expected, |out: &mut Vec<u8>| {
            encode(&bus, Format::Text, out);
            Ok(())
        })?,
        writes(
            Role::Floor,
            "rendered before",
            expected,
            |out: &mut Vec<u8>| {
                rendered.write(out);
                Ok(())
            },
        )?,
        writes(Role::Peer, "measured", expected, |out: &mut Vec<u8>| {
            Ok(measured.collect_group_into(&mut TextEncoder::new(out))?)
        })?,
        writes(
            Role::Other,
            "metricbus, scattered in memory",
            expected,
            |out: &mut Vec<u8>| {
                encode(&scattered_bus, Format::Text, out);
                Ok(())
            },
        )?,
        writes(
            Role::Other,
            "prometheus-client",
            expected,
            |out: &mut String| Ok(prometheus_client::encoding::text::encode(out, &client)?),
        )?,
        writes(Role::Other, "prometheus", expected, |out: &mut Vec<u8>| {
            Ok(prometheus::TextEncoder::new().encode(&registry.gather(), out)?)
        })?,
    ];
    let rounds = interleave(plan(effort), lanes)?;
    drop(between);
    Ok(Figures::new(
        "encode_100k_counters",
        Unit::Ns,
        rounds,
        Bar::Peer(0.5),
    ))
}

pub(crate) fn histograms(effort: Effort) -> Result<Figures, Failure> {
    const SERIES: usize = 10_000;

    let bus = MetricBus::new();
    let ours = bus.family::<Histogram>(
        Desc::new(HISTOGRAM, HELP)
            .labels(LABELS)
            .series_max(SERIES)
            .buckets(Buckets::new(BOUNDS)?),
    )?;
    let measured = MeasuredHistograms {
        request_duration_seconds: HistogramVec::with_label_set_and_metadata(
            MeasuredSet::interning(),
            Thresholds::with_buckets(BOUNDS),
        ),
    };
    let registry = prometheus::Registry::new();
    let options = prometheus::HistogramOpts::new(HISTOGRAM, HELP).buckets(BOUNDS.to_vec());
    let vec = prometheus::HistogramVec::new(options, &LABELS)?;
    registry.register(Box::new(vec.clone()))?;
    let mut client = prometheus_client::registry::Registry::default();
    type ClientHistogram = prometheus_client::metrics::histogram::Histogram;
    let family = ClientFamily::<ClientLabels, ClientHistogram, fn() -> ClientHistogram>::new_with_constructor(
        || ClientHistogram::new(BOUNDS),
    );
    client.register(HISTOGRAM, HELP, family.clone());
    let mut rendered = Rendered::new(HISTOGRAM, "histogram");

    // As with the counters, one contender after the other.
    let durations = durations();
    type Values = [f64; OBSERVATIONS];
    let fill = |add: &mut dyn FnMut(&Labels, &Values) -> Result<(), Failure>| {
        let mut labels = Labels::default();
        (0..SERIES).try_for_each(|i| {
            labels.number(i);
            add(
                &labels,
                &std::array::from_fn(|j| durations.get(i * OBSERVATIONS + j)),
            )
        })
    };
    fill(&mut |labels, values| {
        let histogram = ours.with_label_values(&labels.values())?;
        values.iter().for_each(|v| histogram.observe(*v));
        Ok(())
    })?;
    fill(&mut |labels, values| {
        let histogram = &measured.request_duration_seconds;
        values
            .iter()
            .for_each(|v| histogram.observe(MeasuredLabels::from(labels), *v));
        Ok(())
    })?;
    fill(&mut |labels, values| {
        let histogram = vec.with_label_values(&labels.values());
        values.iter().for_each(|v| histogram.observe(*v));
        Ok(())
    })?;
    fill(&mut |labels, values| {
        let histogram = family.get_or_create(&ClientLabels::from(labels));
        values.iter().for_each(|v| histogram.observe(*v));
        Ok(())
    })?;
    fill(&mut |labels, values| {
        rendered.histogram(labels, values);
        Ok(())
    })?;

    let expected = (HISTOGRAM, SERIES * LINES_PER_HISTOGRAM);
    let lanes = &mut [
        writes(Role::Subject, "metricbus", expected, |out: &mut Vec<u8>| {
            encode(&bus, Format::Text, out);
            Ok(())
        })?,
        writes(
            Role::Floor,
            "rendered before",
            expected,
            |out: &mut Vec<u8>| {
                rendered.write(out);
                Ok(())
            },
        )?,
        writes(Role::Peer, "measured", expected, |out: &mut Vec<u8>| {
            Ok(measured.collect_group_into(&mut TextEncoder::new(out))?)
        })?,
        writes(
            Role::Other,
            "prometheus-client",
            expected,
            |out: &mut String| Ok(prometheus_client::encoding::text::encode(out, &client)?),
        )?,
        writes(Role::Other, "prometheus", expected, |out: &mut Vec<u8>| {
            Ok(prometheus::TextEncoder::new().encode(&registry.gather(), out)?)
        })?,
    ];
    let rounds = interleave(plan(effort), lanes)?;
    Ok(Figures::new(
        "encode_10k_histograms",
        Unit::Ns,
        rounds,
        Bar::None,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_samples_are_counted() {
        let text =
            b"# HELP requests_total x\nrequests_total{a=\"b\"} 1\nother 2\nrequests_total 3\n";
        assert_eq!(samples_of("requests_total", text), 2);
    }

    #[test]
    fn the_floor_writes_the_same_text_as_an_encoder() {
        let bus = MetricBus::new();
        let family = bus
            .family::<Counter>(Desc::new(COUNTER, HELP).labels(LABELS))
            .unwrap();
        let mut rendered = Rendered::new(COUNTER, "counter");
        let mut labels = Labels::default();
        for i in 0..3 {
            labels.number(i);
            family
                .with_label_values(&labels.values())
                .unwrap()
                .inc_by(i as u64 * 7);
            rendered.line(
                COUNTER,
                &labels,
                None,
                Number::Whole(AtomicU64::new(i as u64 * 7)),
            );
        }
        let (mut ours, mut floors) = (Vec::new(), Vec::new());
        encode(&bus, Format::Text, &mut ours);
        rendered.write(&mut floors);
        assert!(!floors.is_empty());
        let (ours, floors) = (
            String::from_utf8(ours).unwrap(),
            String::from_utf8(floors).unwrap(),
        );
        assert!(ours.contains(&floors), "{floors}\nis not in\n{ours}");
    }

    #[test]
    fn the_floor_of_histograms_does_so_too() {
        let bus = MetricBus::new();
        let desc = Desc::new(HISTOGRAM, HELP)
            .labels(LABELS)
            .buckets(Buckets::new(BOUNDS).unwrap());
        let family = bus.family::<Histogram>(desc).unwrap();
        let mut rendered = Rendered::new(HISTOGRAM, "histogram");
        let mut labels = Labels::default();
        labels.number(7);
        let values = [0.005, 0.02, 3.0, 17.5];
        let histogram = family.with_label_values(&labels.values()).unwrap();
        values.iter().for_each(|v| histogram.observe(*v));
        rendered.histogram(&labels, &values);
        let (mut ours, mut floors) = (Vec::new(), Vec::new());
        encode(&bus, Format::Text, &mut ours);
        rendered.write(&mut floors);
        let (ours, floors) = (
            String::from_utf8(ours).unwrap(),
            String::from_utf8(floors).unwrap(),
        );
        assert!(ours.contains(&floors), "{floors}\nis not in\n{ours}");
    }
}
