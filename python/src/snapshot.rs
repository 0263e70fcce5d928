//! Metrics as plain values.

use std::time::UNIX_EPOCH;

use metricbus::{MetricKind, SampleValue};
use pyo3::{prelude::*, types::PyDict};

use crate::{bus::MetricBus, convert, export::HOOKS_DEADLINE, hooks, series, values::value};

/// All metrics of a bus at one time.
#[pyclass(frozen, module = "metricbus")]
pub(crate) struct Snapshot {
    /// The metrics, in order of their names.
    #[pyo3(get)]
    families: Vec<Py<FamilySnapshot>>,
}

/// A metric with all its series.
#[pyclass(frozen, get_all, module = "metricbus")]
pub(crate) struct FamilySnapshot {
    /// The metric's name.
    name: String,
    /// Its help text.
    help: String,
    /// Its unit, if one was declared.
    unit: Option<String>,
    /// `"counter"`, `"gauge"` or `"histogram"`.
    kind: &'static str,
    /// Its series.
    series: Vec<Py<SeriesSnapshot>>,
}

/// One series: its labels and its value, a number or a [`HistogramSnapshot`].
#[pyclass(frozen, get_all, module = "metricbus")]
pub(crate) struct SeriesSnapshot {
    /// Label names and values.
    labels: Py<PyDict>,
    /// A number, or a `HistogramSnapshot`.
    value: Py<PyAny>,
}

/// A histogram's state: cumulative counts per upper bound, with `inf` as the last.
#[pyclass(frozen, get_all, module = "metricbus")]
#[derive(Clone)]
pub(crate) struct HistogramSnapshot {
    /// Upper bounds, each with the number of observations that were at most as large.
    buckets: Vec<(f64, u64)>,
    /// The sum of all observations.
    sum: f64,
    /// The number of all observations.
    count: u64,
}

impl From<metricbus::HistogramSnapshot> for HistogramSnapshot {
    fn from(snapshot: metricbus::HistogramSnapshot) -> Self {
        HistogramSnapshot {
            buckets: snapshot.buckets,
            sum: snapshot.sum,
            count: snapshot.count,
        }
    }
}

#[pymethods]
impl HistogramSnapshot {
    fn __repr__(&self) -> String {
        format!("HistogramSnapshot(count={}, sum={})", self.count, self.sum)
    }
}

#[pymethods]
impl Snapshot {
    /// The metric of this name, or `None`.
    fn family(&self, py: Python<'_>, name: &str) -> Option<Py<FamilySnapshot>> {
        let family = self
            .families
            .iter()
            .find(|family| family.get().name == name);
        family.map(|family| family.clone_ref(py))
    }

    /// The value of one series, or `None` where there is no such series. Labels by name.
    #[pyo3(signature = (name, /, **labels))]
    fn value(
        &self,
        py: Python<'_>,
        name: &str,
        labels: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Option<Py<PyAny>>> {
        let Some(family) = self
            .families
            .iter()
            .find(|family| family.get().name == name)
        else {
            return Ok(None);
        };
        let wanted = labels.cloned().unwrap_or_else(|| PyDict::new(py));
        for series in &family.get().series {
            if series.get().labels.bind(py).eq(&wanted)? {
                return Ok(Some(series.get().value.clone_ref(py)));
            }
        }
        Ok(None)
    }

    fn __repr__(&self) -> String {
        format!("<Snapshot of {} metrics>", self.families.len())
    }
}

impl Snapshot {
    pub(crate) fn of(py: Python<'_>, snapshot: metricbus::Snapshot) -> PyResult<Snapshot> {
        let mut families = Vec::with_capacity(snapshot.families.len());
        for family in snapshot.families {
            let mut all = Vec::with_capacity(family.series.len());
            for one in family.series {
                let value = match one.value {
                    SampleValue::Counter(value) => series::number(py, value)?,
                    SampleValue::Gauge(value) => value.into_pyobject(py)?.into_any().unbind(),
                    SampleValue::Histogram(histogram) => {
                        Py::new(py, HistogramSnapshot::from(histogram))?.into_any()
                    }
                    // `SampleValue` may grow.
                    _ => py.None(),
                };
                let labels = convert::dict(py, one.labels)?.unbind();
                all.push(Py::new(py, SeriesSnapshot { labels, value })?);
            }
            families.push(Py::new(
                py,
                FamilySnapshot {
                    name: family.name,
                    help: family.help,
                    unit: family.unit,
                    kind: family.kind.as_str(),
                    series: all,
                },
            )?);
        }
        Ok(Snapshot { families })
    }
}

#[pymethods]
impl FamilySnapshot {
    fn __repr__(&self) -> String {
        format!(
            "<{} {} with {} series>",
            self.kind,
            self.name,
            self.series.len()
        )
    }
}

#[pymethods]
impl SeriesSnapshot {
    fn __repr__(&self) -> String {
        format!("<{} {}>", self.labels, self.value)
    }
}

impl MetricBus {
    fn created(&self, metric: &str, wanted: &mut [(String, String)]) -> PyResult<Option<f64>> {
        let disabled = std::env::var("PROMETHEUS_DISABLE_CREATED_SERIES");
        let disabled = disabled.unwrap_or_default().to_lowercase();
        if ["true", "1", "t"].contains(&&*disabled) {
            return Ok(None);
        }
        wanted.sort();
        let bus = self.current()?;
        for name in [format!("{metric}_total"), metric.to_owned()] {
            let Ok(all) = bus.series(&*name) else {
                continue;
            };
            for series in all {
                let mut labels = series.labels();
                labels.sort();
                if series.kind() != MetricKind::Gauge && labels == wanted {
                    let since = series.created().duration_since(UNIX_EPOCH);
                    return Ok(Some(since.unwrap_or_default().as_secs_f64()));
                }
            }
        }
        Ok(None)
    }
}

#[pymethods]
impl MetricBus {
    /// The value of one sample as it would be scraped, or `None` where there is none: a counter's or a gauge's by its name, a
    /// histogram's by `_bucket` (with the label `le`), `_count` and `_sum`. `_created` is since when a counter or a histogram counts,
    /// in seconds since 1970, unless `PROMETHEUS_DISABLE_CREATED_SERIES` is set. As tests with `prometheus_client` ask for it: what is to run
    /// before a scrape (`on_collect`, `Gauge.set_function`) runs first.
    #[pyo3(signature = (name, labels=None))]
    fn get_sample_value(
        &self,
        py: Python<'_>,
        name: &str,
        labels: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Option<f64>> {
        hooks::run_here(py, &self.0, HOOKS_DEADLINE)?;
        let mut wanted = labels.map(convert::pairs).transpose()?.unwrap_or_default();
        if let Some(metric) = name.strip_suffix("_created") {
            return self.created(metric, &mut wanted);
        }
        let snapshot = self.current()?.snapshot();
        let (family, part) = match snapshot.family(name) {
            Some(family) => (family, ""),
            None => {
                let parts = ["_bucket", "_count", "_sum"];
                let found = parts.iter().find_map(|part| {
                    let family = snapshot.family(name.strip_suffix(part)?)?;
                    Some((family, *part))
                });
                let Some(found) = found else { return Ok(None) };
                found
            }
        };
        let bound = match part {
            "_bucket" => {
                let le = wanted.iter().position(|(name, _)| name == "le");
                let Some(Ok(bound)) = le.map(|le| wanted.swap_remove(le).1.parse::<f64>()) else {
                    return Ok(None);
                };
                bound
            }
            _ => f64::NAN,
        };
        wanted.sort();
        let series = family.series.iter().find(|series| {
            let mut labels = series.labels.clone();
            labels.sort();
            labels == wanted
        });
        Ok(series.and_then(|series| match (&series.value, part) {
            (SampleValue::Counter(value), "") => Some(value.as_f64()),
            (SampleValue::Gauge(value), "") => Some(*value),
            (SampleValue::Histogram(histogram), "_count") => Some(histogram.count as f64),
            (SampleValue::Histogram(histogram), "_sum") => Some(histogram.sum),
            (SampleValue::Histogram(histogram), "_bucket") => {
                let buckets = &histogram.buckets;
                let bucket = buckets.iter().find(|(upper, _)| *upper == bound);
                bucket.map(|(_, count)| *count as f64)
            }
            _ => None,
        }))
    }
}

value!(Snapshot { families });
value!(FamilySnapshot {
    name,
    help,
    unit,
    kind,
    series
});
value!(SeriesSnapshot { labels, value });
value!(HistogramSnapshot {
    buckets,
    sum,
    count
});
