//! The component that every backend is tried with, what it does to its metrics, and what must be seen of that at any far end.

use std::collections::BTreeMap;

use metricbus::{
    BaseComponentMetrics, Buckets, Counter, DeclareError, LabelError, MetricContainer,
    MetricCounter, MetricFamily, MetricGauge, MetricHistogram, Metrics, SampleValue, Snapshot,
};

/// A value as any far end can tell it.
#[derive(Clone, Debug, PartialEq)]
pub enum Seen {
    /// Of a counter.
    Counter(f64),
    /// Of a gauge.
    Gauge(f64),
    /// Of a histogram: cumulative counts of the buckets, the last one for +Inf, and the sum.
    Histogram(Vec<u64>, f64),
}

/// By name and labels.
pub type Table = BTreeMap<(String, BTreeMap<String, String>), Seen>;

/// Metrics of all types, in all ways in which they can be made.
#[derive(Debug)]
pub struct Component {
    requests: Box<dyn MetricCounter>,
    by_method: Box<dyn MetricFamily<dyn MetricCounter>>,
    kv_usage: Box<dyn MetricGauge>,
    depth: Box<dyn MetricFamily<dyn MetricGauge>>,
    latency: Box<dyn MetricHistogram>,
    batch: Box<dyn MetricFamily<dyn MetricHistogram>>,
    work: WorkMetrics,
}

/// Work done.
#[derive(Debug, Metrics)]
struct WorkMetrics {
    /// Jobs done.
    jobs_total: Counter,
    /// Seconds worked.
    #[metric(unit = "seconds")]
    busy_seconds_total: Counter<f64>,
}

const BOUNDS: [f64; 3] = [0.1, 1.0, 10.0];

/// A label value with everything that some format has to escape.
const HOSTILE: &str = "a \"b\" \\c\n{d=e},f é 雪";

impl Component {
    /// Makes its metrics in whatever container it is given.
    pub fn new(base: &BaseComponentMetrics) -> Result<Component, DeclareError> {
        let container: &dyn MetricContainer = &*base.container;
        let labels = [("service", "api"), ("zone", HOSTILE)];
        let buckets = || {
            Buckets::new(BOUNDS).map_err(|source| DeclareError::Buckets {
                metric: "latency_seconds".to_owned(),
                source,
            })
        };
        Ok(Component {
            requests: container.create_counter("requests_total", "Requests.", &labels)?,
            by_method: container.create_counter_family(
                "calls_total",
                "Calls.",
                &labels,
                &["method"],
            )?,
            kv_usage: container.create_gauge("kv_usage_ratio", "KV cache in use.", &labels)?,
            depth: container.create_gauge_family("queue_depth", "Waiting.", &[], &["queue"])?,
            latency: container.create_histogram(
                "latency_seconds",
                "Time to answer.",
                &labels,
                buckets()?,
            )?,
            batch: container.create_histogram_family(
                "batch_size",
                "Requests in a batch.",
                &[],
                &["model"],
                buckets()?,
            )?,
            work: base.register()?,
        })
    }

    /// Mutates all of them.
    pub fn work(&self) -> Result<(), LabelError> {
        self.requests.inc();
        self.requests.inc_by(41);
        self.by_method.with_label_values(&["GET"])?.inc_by(7);
        self.by_method.with_label_values(&["PUT"])?.inc();
        self.by_method.with_label_values(&["GONE"])?.inc();
        self.by_method.remove(&["GONE"])?;
        self.kv_usage.set(0.5);
        self.kv_usage.inc(0.25);
        self.kv_usage.dec(1.0);
        self.depth.with_label_values(&["fast"])?.set(3.0);
        self.depth.with_label_values(&["slow"])?.set(1e300);
        for value in [0.05, 0.1, 0.5, 5.0, 100.0] {
            self.latency.observe(value);
        }
        self.batch.with_label_values(&["small"])?.observe(8.0);
        self.work.jobs_total.inc_by(1_000_000_007);
        self.work.busy_seconds_total.inc_by(0.75);
        self.work.busy_seconds_total.inc_by(0.5);
        Ok(())
    }

    /// What must be seen after [`work`](Component::work).
    pub fn expected(prefix: &str) -> Table {
        let all = [("service", "api"), ("zone", HOSTILE)];
        let with = |name: &'static str, value: &'static str| [all[0], all[1], (name, value)];
        type Row<'a> = (&'a str, &'a [(&'a str, &'a str)], Seen);
        let rows: [Row<'_>; 10] = [
            ("requests_total", &all, Seen::Counter(42.0)),
            ("calls_total", &with("method", "GET"), Seen::Counter(7.0)),
            ("calls_total", &with("method", "PUT"), Seen::Counter(1.0)),
            ("kv_usage_ratio", &all, Seen::Gauge(-0.25)),
            ("queue_depth", &[("queue", "fast")], Seen::Gauge(3.0)),
            ("queue_depth", &[("queue", "slow")], Seen::Gauge(1e300)),
            (
                "latency_seconds",
                &all,
                Seen::Histogram(vec![2, 3, 4, 5], 105.65),
            ),
            (
                "batch_size",
                &[("model", "small")],
                Seen::Histogram(vec![0, 0, 1, 1], 8.0),
            ),
            ("jobs_total", &[], Seen::Counter(1_000_000_007.0)),
            ("busy_seconds_total", &[], Seen::Counter(1.25)),
        ];
        rows.into_iter()
            .map(|(name, labels, seen)| {
                let labels = labels
                    .iter()
                    .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
                ((format!("{prefix}_{name}"), labels.collect()), seen)
            })
            .collect()
    }
}

/// A value of ours.
pub fn seen(value: &SampleValue) -> Seen {
    match value {
        SampleValue::Counter(value) => Seen::Counter(value.as_f64()),
        SampleValue::Gauge(value) => Seen::Gauge(*value),
        SampleValue::Histogram(seen) => {
            Seen::Histogram(seen.buckets.iter().map(|(_, n)| *n).collect(), seen.sum)
        }
        other => panic!("{other:?}"),
    }
}

/// A snapshot of ours.
pub fn table(snapshot: &Snapshot) -> Table {
    let families = snapshot.families.iter();
    let rows = families.flat_map(|family| {
        family.series.iter().map(|series| {
            let labels = series.labels.iter().cloned().collect();
            ((family.name.clone(), labels), seen(&series.value))
        })
    });
    rows.collect()
}
