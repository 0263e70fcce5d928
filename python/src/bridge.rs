//! A registry of `prometheus_client` as a collector of the `prometheus` crate, which the exporter merges. What it says is
//! read by `metricbus/_bridge.py`, which takes each of its metrics apart; here it becomes the crate's own types. Whether it can be
//! exposed is for the exporter to judge.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use prometheus::{
    Registry,
    core::{Collector, Desc},
    proto,
};
use pyo3::prelude::*;

use crate::{
    deliver::lock,
    error::raise,
    gate,
    hooks::{self, Hook},
};

/// A registry of the `prometheus` crate with all of this one.
pub(crate) fn registry(registry: &Py<PyAny>) -> PyResult<Registry> {
    Python::attach(|py| {
        let theirs = registry.bind(py);
        let collects = theirs.getattr_opt("collect")?;
        if !collects.is_some_and(|collect| collect.is_callable()) {
            return Err(pyo3::exceptions::PyTypeError::new_err(format!(
                "{} can't be merged; a prometheus_client.CollectorRegistry would be right",
                theirs.repr()?
            )));
        }
        let ours = Registry::new();
        let collector = Foreign {
            registry: registry.clone_ref(py),
            identity: identity().map_err(|error| raise("MetricBusError", error))?,
        };
        ours.register(Box::new(collector))
            .map_err(|error| raise("MetricBusError", error))?;
        Ok(ours)
    })
}

/// Collectors are known by their descriptions. This one is alone in its registry, and its names are not known beforehand.
fn identity() -> prometheus::Result<Desc> {
    Desc::new(
        "metricbus_python_registry".to_owned(),
        "Stands for a registry.".to_owned(),
        Vec::new(),
        HashMap::new(),
    )
}

struct Foreign {
    registry: Py<PyAny>,
    identity: Desc,
}

impl Collector for Foreign {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.identity]
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        // Not while the interpreter ends: then there is nobody to ask.
        let families = gate::attach(|py| self.begin(py));
        let Some((begun, collected)) = families else {
            return Vec::new();
        };
        // The exporter has a deadline for it.
        begun.wait(Duration::MAX);
        let families = lock(&collected).take().unwrap_or_default();
        families.into_iter().map(Family::into_proto).collect()
    }
}

impl Foreign {
    /// Has the registry asked in a thread of Python's, as hooks are run.
    fn begin(&self, py: Python<'_>) -> (hooks::Begun, Families) {
        let collected = Families::default();
        let collect = || -> PyResult<Py<PyAny>> {
            let collect = py.import("metricbus._bridge")?.getattr("collecting")?;
            let into = Collected(collected.clone());
            Ok(collect.call1((self.registry.bind(py), into))?.unbind())
        };
        let hooks = match collect() {
            Ok(collect) => vec![Hook::new(Weak::new(), "a merged registry".into(), collect)],
            Err(error) => {
                error.write_unraisable(py, Some(self.registry.bind(py)));
                Vec::new()
            }
        };
        (hooks::Begun::new(hooks), collected)
    }
}

type Families = Arc<Mutex<Option<Vec<Family>>>>;

/// Where what a registry says is put.
#[pyclass(frozen, module = "metricbus._metricbus")]
struct Collected(Families);

#[pymethods]
impl Collected {
    fn put(&self, families: Vec<Family>) {
        *lock(&self.0) = Some(families);
    }
}

/// A metric as `_bridge.py` gives it.
#[derive(FromPyObject)]
struct Family {
    name: String,
    help: String,
    kind: String,
    series: Vec<Series>,
}

/// One series: a single value; or the points (bounds or quantiles) of a distribution, its sum and its count.
#[derive(FromPyObject)]
struct Series {
    labels: Vec<(String, String)>,
    value: f64,
    points: Vec<(f64, f64)>,
    sum: f64,
    count: f64,
}

/// Counts are floats in Python. What is no count is shown as the nearest.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "saturates"
)]
fn whole(count: f64) -> u64 {
    count as u64
}

impl Family {
    fn into_proto(self) -> proto::MetricFamily {
        let mut family = proto::MetricFamily::default();
        family.set_field_type(match self.kind.as_str() {
            "counter" => proto::MetricType::COUNTER,
            "histogram" => proto::MetricType::HISTOGRAM,
            "summary" => proto::MetricType::SUMMARY,
            _ => proto::MetricType::GAUGE,
        });
        family.set_name(self.name);
        family.set_help(self.help);
        let metrics = self
            .series
            .into_iter()
            .map(|one| one.into_proto(&self.kind));
        family.set_metric(metrics.collect());
        family
    }
}

impl Series {
    fn into_proto(self, kind: &str) -> proto::Metric {
        let labels = self.labels.into_iter().map(|(name, value)| {
            let mut pair = proto::LabelPair::default();
            pair.set_name(name);
            pair.set_value(value);
            pair
        });
        let mut metric = proto::Metric::from_label(labels.collect());
        match kind {
            "counter" => {
                let mut counter = proto::Counter::default();
                counter.set_value(self.value);
                metric.set_counter(counter);
            }
            "histogram" => {
                let buckets = self.points.into_iter().map(|(bound, count)| {
                    let mut bucket = proto::Bucket::default();
                    bucket.set_upper_bound(bound);
                    bucket.set_cumulative_count(whole(count));
                    bucket
                });
                let mut histogram = proto::Histogram::default();
                histogram.set_bucket(buckets.collect());
                histogram.set_sample_sum(self.sum);
                histogram.set_sample_count(whole(self.count));
                metric.set_histogram(histogram);
            }
            "summary" => {
                let quantiles = self.points.into_iter().map(|(share, value)| {
                    let mut quantile = proto::Quantile::default();
                    quantile.set_quantile(share);
                    quantile.set_value(value);
                    quantile
                });
                let mut summary = proto::Summary::default();
                summary.set_quantile(quantiles.collect());
                summary.set_sample_sum(self.sum);
                summary.set_sample_count(whole(self.count));
                metric.set_summary(summary);
            }
            _ => {
                let mut gauge = proto::Gauge::default();
                gauge.set_value(self.value);
                metric.set_gauge(gauge);
            }
        }
        metric
    }
}
