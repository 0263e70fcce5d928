//! Sliding windows: average, extremes, rate and quantiles, at once and on the bus's own clock.

use std::{sync::Arc, time::Duration};

use metricbus::{Window as One, WindowStats as Seen, Windows as Many};
use pyo3::{exceptions::PyValueError, prelude::*, types::PyDict};

use crate::{
    bus::{Bus, MetricBus},
    convert,
    error::Raise,
    fork::Forked,
    gate,
    metric::{Counter, Gauge, Histogram},
    series::Series,
};

/// A sliding window over one series, or over all series of a selector, present and future. It sees mutations from its making
/// on, and ends when nothing refers to it any more.
///
/// A gauge's average is weighted by time: a value counts for as long as it was held. A counter's increase and rate are exact
/// over the time that the window covers: its width, and less than a slot more. Time is cut into slots of a hundredth of the
/// width, at least 10 ms; a window is at least 100 ms wide.
///
/// One over a single series stays as it was when that is removed; of a selector, a series that is removed leaves the window.
#[pyclass(frozen, weakref, module = "metricbus")]
pub(crate) struct Window(Arc<Viewing>);

/// A window, also as it is made anew in a forked child.
pub(crate) struct Viewing {
    plan: Plan,
    made: Forked<Made>,
}

/// What it takes to make it anew in a forked child.
struct Plan {
    of: Of,
    width: Duration,
}

enum Of {
    Series(Py<Series>),
    /// A selector or a metric, and the bus on which it is looked for.
    Selected(Arc<Bus>, Py<PyAny>),
}

enum Made {
    One(One),
    Many(Many),
}

impl Plan {
    fn make(&self, py: Python<'_>) -> PyResult<Made> {
        let width = self.width;
        let (bus, of) = match &self.of {
            Of::Series(series) => {
                let series = series.get().inner()?;
                return Ok(py.detach(|| Made::One(series.window(width))));
            }
            Of::Selected(bus, of) => (bus, of.bind(py)),
        };
        if let Some(series) = convert::one_series(of)? {
            return Ok(py.detach(|| Made::One(series.window(width))));
        }
        let (core, selector) = (bus.current()?, convert::selector(of)?);
        let many = py.detach(|| core.window(selector, width));
        Ok(Made::Many(many.or_raise()?))
    }
}

impl Window {
    fn new(py: Python<'_>, of: Of, width: &Bound<'_, PyAny>) -> PyResult<Window> {
        let width = convert::duration("width", width)?;
        let plan = Plan { of, width };
        let made = Forked::new(plan.make(py)?);
        let viewing = Arc::new(Viewing { plan, made });
        if let Of::Selected(bus, _) = &viewing.plan.of {
            bus.viewed(&viewing);
        }
        Ok(Window(viewing))
    }

    fn made(&self, py: Python<'_>) -> PyResult<&Made> {
        self.0.made(py)
    }
}

impl Viewing {
    fn made(&self, py: Python<'_>) -> PyResult<&Made> {
        self.made.get_or(|| self.plan.make(py))
    }

    /// On the bus of a forked child. What is wrong with it is said to whoever asks it.
    pub(crate) fn again(&self) {
        let _ = gate::attach(|py| self.made(py).is_ok());
    }
}

#[pymethods]
impl Window {
    /// What it has seen, up to now: of several series, what all of them together have. Without any series `sources` is 0, and
    /// everything is `None`.
    fn stats(&self, py: Python<'_>) -> PyResult<WindowStats> {
        let made = self.made(py)?;
        let stats = py.detach(|| match made {
            Made::One(one) => one.stats(),
            Made::Many(many) => many.stats(),
        });
        Ok(WindowStats(stats))
    }

    /// What each series has seen, up to now.
    fn each(&self, py: Python<'_>) -> PyResult<Vec<(Series, WindowStats)>> {
        let made = self.made(py)?;
        let each = py.detach(|| match made {
            Made::One(one) => vec![(one.series().clone(), one.stats())],
            Made::Many(many) => many.each(),
        });
        let each = each.into_iter();
        Ok(each
            .map(|(series, stats)| (Series::of(series), WindowStats(stats)))
            .collect())
    }

    /// What the series have seen that agree in these labels, up to now: for each combination of values, in order. A label
    /// that a series does not have is empty.
    fn stats_by<'py>(
        &self,
        py: Python<'py>,
        labels: &Bound<'py, PyAny>,
    ) -> PyResult<Vec<(Bound<'py, PyDict>, WindowStats)>> {
        let names = convert::names("labels", labels)?;
        let made = self.made(py)?;
        let groups = py.detach(|| match made {
            Made::One(one) => {
                let value = |name: &String| one.series().label(name).unwrap_or_default();
                let labels = names.iter().map(|name| (name.clone(), value(name)));
                vec![(labels.collect(), one.stats())]
            }
            Made::Many(many) => {
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                many.stats_by(&names)
            }
        });
        groups
            .into_iter()
            .map(|(labels, stats)| Ok((convert::dict(py, labels)?, WindowStats(stats))))
            .collect()
    }

    /// The width in force, in seconds: what was asked for, at least 0.1.
    #[getter]
    fn width(&self, py: Python<'_>) -> PyResult<f64> {
        Ok(self.stats(py)?.width())
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let plan = &self.0.plan;
        let of = match &plan.of {
            Of::Series(series) => series.get().shown(),
            Of::Selected(_, of) => convert::selector(of.bind(py))?.to_string(),
        };
        Ok(format!("<Window {of}[{:?}]>", plan.width))
    }
}

/// What a window has seen.
///
/// `None` means that there was nothing to go by; it is never 0 instead. NaN is passed over, and so is a gauge until it is
/// first set.
///
/// |          | gauge                      | counter                 | histogram                  |
/// |----------|----------------------------|-------------------------|----------------------------|
/// | count    | how often it was set       | 0                       | observations               |
/// | sum      | of the values set          | the increase            | of the observations        |
/// | avg      | of the value over *time*   | None                    | of the observations        |
/// | min, max | of the values held or set  | None                    | of the observations        |
/// | stddev   | of the value over time     | None                    | as their buckets tell      |
/// | quantile | of the value over time     | None                    | of the observations        |
/// | last     | the value                  | the value               | None                       |
/// | increase | the change of the value    | the increase            | count                      |
/// | rate     | its change per second      | the increase per second | observations per second    |
/// | age      | since it was last set      | since it last grew      | since the last observation |
///
/// Of several series: counts, sums, increases and rates add up; `avg`, `stddev` and quantiles are over all series and their
/// time (gauges) or over all observations; `min` and `max` are those of single series, not of their sum; `age` is that of the
/// newest mutation; `last` is `None`.
#[pyclass(frozen, eq, module = "metricbus")]
#[derive(PartialEq)]
pub(crate) struct WindowStats(pub(crate) Seen);

#[pymethods]
impl WindowStats {
    /// The width in force, in seconds: what was asked for, at least 0.1.
    #[getter]
    fn width(&self) -> f64 {
        self.0.width.as_secs_f64()
    }

    /// The share of the width that was observed, 0 to 1: small until the window has existed for its width, 1 from then on. Of
    /// several series the mean.
    #[getter]
    fn coverage(&self) -> f64 {
        self.0.coverage
    }

    /// How many series took part.
    #[getter]
    fn sources(&self) -> usize {
        self.0.sources
    }

    /// How many of them had no mutation in the window.
    #[getter]
    fn stale(&self) -> usize {
        self.0.stale
    }

    /// How often a gauge was set; observations of a histogram.
    #[getter]
    fn count(&self) -> u64 {
        self.0.count
    }

    /// The sum: see the table.
    #[getter]
    fn sum(&self) -> Option<f64> {
        self.0.sum
    }

    /// The average: of a gauge over time, of a histogram over observations.
    #[getter]
    fn avg(&self) -> Option<f64> {
        self.0.avg
    }

    /// The least value.
    #[getter]
    fn min(&self) -> Option<f64> {
        self.0.min
    }

    /// The greatest value.
    #[getter]
    fn max(&self) -> Option<f64> {
        self.0.max
    }

    /// The standard deviation, of everything rather than of a sample: one value has 0.
    #[getter]
    fn stddev(&self) -> Option<f64> {
        self.0.stddev
    }

    /// The last value, of a window over one series.
    #[getter]
    fn last(&self) -> Option<f64> {
        self.0.last
    }

    /// The increase of a counter, the change of a gauge.
    #[getter]
    fn increase(&self) -> Option<f64> {
        self.0.increase
    }

    /// The change per second; of a histogram, observations per second. There is none until one slot was observed.
    #[getter]
    fn rate(&self) -> Option<f64> {
        self.0.rate
    }

    /// Seconds since the newest mutation that the window has seen, or `None`.
    #[getter]
    fn age(&self) -> Option<f64> {
        self.0.age.map(|age| age.as_secs_f64())
    }

    /// The `q`-quantile, from 0 (the minimum) to 1 (the maximum): the smallest value that at least the share `q` of all was at
    /// or under. Of a gauge the share of time. Off by at most 1.1 % of itself. `None` where there is nothing to go by.
    fn quantile(&self, q: f64) -> PyResult<Option<f64>> {
        if !(0.0..=1.0).contains(&q) {
            return Err(PyValueError::new_err(format!(
                "q is {q}; a share from 0 to 1 would be right, as in quantile(0.99)"
            )));
        }
        Ok(self.0.quantile(q))
    }

    fn __repr__(&self) -> String {
        let shown = [
            ("avg", self.0.avg),
            ("min", self.0.min),
            ("max", self.0.max),
            ("rate", self.0.rate),
        ];
        let shown = shown
            .iter()
            .filter_map(|(name, value)| Some(format!(", {name}={}", (*value)?)));
        format!(
            "<WindowStats of {} series over {} s, coverage {:.2}{}>",
            self.0.sources,
            self.0.width.as_secs_f64(),
            self.0.coverage,
            shown.collect::<String>()
        )
    }
}

#[pymethods]
impl MetricBus {
    /// A sliding window over the selected series, from now on; of a metric without labels, or a child of one, over that one
    /// series.
    ///
    /// >>> window = bus.window("ttft_seconds", 60)
    /// >>> window.stats().quantile(0.99)
    pub(crate) fn window(
        &self,
        py: Python<'_>,
        selector: &Bound<'_, PyAny>,
        width: &Bound<'_, PyAny>,
    ) -> PyResult<Window> {
        convert::selector_on(&self.0, selector)?;
        let of = Of::Selected(self.0.clone(), selector.clone().unbind());
        Window::new(py, of, width)
    }
}

#[pymethods]
impl Series {
    /// A sliding window over this series, from now on.
    fn window(slf: &Bound<'_, Self>, width: &Bound<'_, PyAny>) -> PyResult<Window> {
        Window::new(slf.py(), Of::Series(slf.clone().unbind()), width)
    }
}

macro_rules! windows_of {
    ($($metric:ident),*) => {$(
        #[pymethods]
        impl $metric {
            /// A sliding window over this series, or over all series of the family, from now on.
            fn window(slf: &Bound<'_, Self>, width: &Bound<'_, PyAny>) -> PyResult<Window> {
                let bus = slf.get().0.bus().clone();
                Window::new(slf.py(), Of::Selected(bus, slf.clone().into_any().unbind()), width)
            }
        }
    )*};
}

windows_of!(Counter, Gauge, Histogram);
