//! Windows over all sources of a fleet.

use metricbus::nats;
use pyo3::{prelude::*, types::PyDict};

use crate::{convert, source::SourceId, window::WindowStats};

/// What a window has seen at all sources that answered.
#[pyclass(frozen, get_all, module = "metricbus")]
pub(crate) struct FleetWindow {
    /// All of it: the windows of all series of all sources that answered, merged as if they were one.
    stats: Py<WindowStats>,
    /// Live sources that could have such series, and were asked.
    asked: usize,
    /// Those that answered; perhaps that they have no such series.
    answered: usize,
    /// Sources that are stale and were not asked: what they know is in none of this.
    stale: Vec<SourceId>,
    /// Sources that were asked and gave no answer, and why.
    silent: Vec<(SourceId, String)>,
    /// What each source that answered has seen.
    each: Vec<Py<SourceWindow>>,
}

impl FleetWindow {
    pub(super) fn of(py: Python<'_>, window: nats::FleetWindow) -> PyResult<Py<FleetWindow>> {
        let each = window.each.into_iter().map(|one| SourceWindow::of(py, one));
        let silent = window.silent.into_iter();
        let made = FleetWindow {
            stats: Py::new(py, WindowStats(window.stats))?,
            asked: window.asked,
            answered: window.answered,
            stale: window.stale.into_iter().map(SourceId).collect(),
            silent: silent
                .map(|(source, why)| (SourceId(source), why))
                .collect(),
            each: each.collect::<PyResult<_>>()?,
        };
        Py::new(py, made)
    }
}

#[pymethods]
impl FleetWindow {
    /// Whether everybody who could know something of it has told it: nobody is stale, and all who were asked answered.
    #[getter]
    fn is_complete(&self) -> bool {
        self.stale.is_empty() && self.silent.is_empty()
    }

    fn __repr__(&self) -> String {
        format!(
            "<FleetWindow of {} of {} sources>",
            self.answered,
            self.asked + self.stale.len()
        )
    }
}

/// What the windows of one source have seen.
#[pyclass(frozen, get_all, module = "metricbus")]
pub(crate) struct SourceWindow {
    /// Which one.
    source: SourceId,
    /// All its series together.
    stats: Py<WindowStats>,
    /// Each of them.
    series: Vec<Py<SeriesWindow>>,
}

impl SourceWindow {
    fn of(py: Python<'_>, window: nats::SourceWindow) -> PyResult<Py<SourceWindow>> {
        let series = window
            .series
            .into_iter()
            .map(|one| SeriesWindow::of(py, one));
        let made = SourceWindow {
            source: SourceId(window.source),
            stats: Py::new(py, WindowStats(window.stats))?,
            series: series.collect::<PyResult<_>>()?,
        };
        Py::new(py, made)
    }
}

#[pymethods]
impl SourceWindow {
    fn __repr__(&self) -> String {
        format!(
            "<SourceWindow of {}, {} series>",
            self.source.0,
            self.series.len()
        )
    }
}

/// What the window of one series of a source has seen.
#[pyclass(frozen, get_all, module = "metricbus")]
pub(crate) struct SeriesWindow {
    /// The metric's name.
    name: String,
    /// Labels as the source gave them.
    labels: Py<PyDict>,
    /// What was seen.
    stats: Py<WindowStats>,
}

impl SeriesWindow {
    fn of(py: Python<'_>, window: nats::SeriesWindow) -> PyResult<Py<SeriesWindow>> {
        let made = SeriesWindow {
            labels: convert::pairs_dict(py, &window.labels)?.unbind(),
            name: window.name,
            stats: Py::new(py, WindowStats(window.stats))?,
        };
        Py::new(py, made)
    }
}

#[pymethods]
impl SeriesWindow {
    fn __repr__(&self) -> String {
        format!("<SeriesWindow of {} {}>", self.name, self.labels)
    }
}
