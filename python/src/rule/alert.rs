//! Alerts: the transitions of a rule, and the mark after those that a late subscriber begins with.

use metricbus::{AlertState, Notice};
use pyo3::{
    exceptions::PyValueError,
    prelude::*,
    types::{PyDict, PyList, PyTuple},
};

use crate::{convert, deliver::Letter, series::Series, source::Origin, values};

/// A transition of a rule: it fires, its level changes, or it is resolved.
///
/// Per rule and group, `epoch` grows by 1 with each alert: a gap in it is the number of those that were dropped because the
/// reader was too slow. Firing and resolved alternate; with levels there can be several firing in a row, each of another
/// level.
#[pyclass(frozen, module = "metricbus")]
pub(crate) struct Alert {
    /// Without its series. Its dictionaries are made when they are asked for: many an alert is only looked at for its rule
    /// and state.
    alert: metricbus::Alert,
    series: Option<Py<Series>>,
}

impl Alert {
    pub(crate) fn of(py: Python<'_>, mut alert: metricbus::Alert) -> PyResult<Alert> {
        let series = alert.series.take();
        let series = series.map(|series| Py::new(py, Series::of(series)));
        Ok(Alert {
            series: series.transpose()?,
            alert,
        })
    }
}

impl Alert {
    /// As the bus told it.
    pub(crate) fn core(&self) -> PyResult<metricbus::Alert> {
        let mut alert = self.alert.clone();
        if let Some(series) = &self.series {
            alert.series = Some(series.get().inner()?.clone());
        }
        Ok(alert)
    }
}

impl Letter for metricbus::Alert {
    fn into_python(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        Ok(Py::new(py, Alert::of(py, self)?)?.into_any())
    }
}

#[pymethods]
impl Alert {
    /// The rule's name.
    #[getter]
    fn rule(&self) -> &str {
        &self.alert.rule
    }

    /// Which way: `"firing"` or `"resolved"`.
    #[getter]
    fn state(&self) -> &'static str {
        self.alert.state.as_str()
    }

    /// Whether it fires, at whatever level.
    #[getter]
    fn is_firing(&self) -> bool {
        self.alert.state == AlertState::Firing
    }

    /// The level now in force; `None` when resolved, and of a rule without levels.
    #[getter]
    fn level(&self) -> Option<&str> {
        self.alert.level.as_deref()
    }

    /// The level before; `None` when it was not firing, and of a rule without levels.
    #[getter]
    fn previous_level(&self) -> Option<&str> {
        self.alert.previous_level.as_deref()
    }

    /// What tells apart the groups of a rule: the labels of the series, or those it is grouped by.
    #[getter]
    fn group<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        convert::pairs_dict(py, &self.alert.group)
    }

    /// The group's labels and the rule's own, which win.
    #[getter]
    fn labels<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        convert::pairs_dict(py, &self.alert.labels)
    }

    /// The value of one label, or `None`.
    fn label(&self, name: &str) -> Option<&str> {
        self.alert.label(name)
    }

    /// The rule's annotations, with `{{ $value }}` and `{{ $labels.name }}` filled in.
    #[getter]
    fn annotations<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        convert::pairs_dict(py, &self.alert.annotations)
    }

    /// One annotation, or `None`.
    fn annotation(&self, name: &str) -> Option<&str> {
        self.alert.annotation(name)
    }

    /// The series, where the rule is about one: a group of one, and a single metric, of this process.
    #[getter]
    fn series(&self, py: Python<'_>) -> Option<Py<Series>> {
        self.series.as_ref().map(|series| series.clone_ref(py))
    }

    /// The value that made the difference, as the thread that made it saw it; of a group of several that fires, that of the
    /// first of `holding`. `None` where there was no data, and of absence.
    #[getter]
    fn value(&self) -> Option<f64> {
        self.alert.value
    }

    /// How good what is known of it is: `"good"`, `"nan"`, `"no_data"`, `"stale"` or `"gone"`.
    #[getter]
    fn quality(&self) -> &'static str {
        self.alert.quality.as_str()
    }

    /// 1 for the first alert of this rule and group, 2 for the next …
    #[getter]
    fn epoch(&self) -> u64 {
        self.alert.epoch
    }

    /// Why now: `"condition"`, `"initial"`, `"removed"`, `"rule_changed"`, `"rule_removed"` or `"restored"`.
    #[getter]
    fn cause(&self) -> &'static str {
        self.alert.cause.as_str()
    }

    /// When, in seconds on the bus's clock.
    #[getter]
    fn at(&self) -> f64 {
        self.alert.at.as_secs_f64()
    }

    /// `at` as a date, in UTC.
    #[getter]
    fn date<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        convert::date(py, self.alert.date)
    }

    /// Since when the condition has held, or held before it was resolved, in seconds on the bus's clock.
    #[getter]
    fn since(&self) -> f64 {
        self.alert.since.as_secs_f64()
    }

    /// `since` as a date, in UTC; right also where that was before a restart, which the bus's clock cannot tell.
    #[getter]
    fn since_date<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        convert::date(py, self.alert.since_date)
    }

    /// Of a group of several: for how many the condition holds.
    #[getter]
    fn holds(&self) -> usize {
        self.alert.holds
    }

    /// How many series, or sets of series with the same labels, the group has.
    #[getter]
    fn members(&self) -> usize {
        self.alert.members
    }

    /// For which of a group of several it holds: their labels, ten at most.
    #[getter]
    fn holding<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let holding = PyList::empty(py);
        for labels in self.alert.holding.iter() {
            holding.append(convert::pairs_dict(py, labels)?)?;
        }
        Ok(holding)
    }

    /// How many times this firing was sent before.
    #[getter]
    fn repeat(&self) -> u32 {
        self.alert.repeat
    }

    /// Where it was made, if in another process; `None`: here. Of one made elsewhere `series` is `None`, `date` is by that
    /// process's clock, and `at` is when it was received.
    #[getter]
    fn origin(&self) -> Option<Origin> {
        self.alert.origin.as_deref().map(Origin::of)
    }

    fn __eq__(&self, py: Python<'_>, other: &Alert) -> PyResult<bool> {
        let same_series = match (&self.series, &other.series) {
            (Some(a), Some(b)) => a.bind(py).eq(b.bind(py))?,
            (a, b) => a.is_none() && b.is_none(),
        };
        Ok(same_series && self.alert == other.alert)
    }

    fn __str__(&self) -> String {
        self.alert.to_string()
    }

    /// Its attributes in a dictionary, as what JSON has: dates as text, series as names and labels.
    fn to_dict(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        values::to_dict(slf.as_any())
    }

    fn __copy__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    fn __deepcopy__<'py>(slf: PyRef<'py, Self>, _memo: &Bound<'py, PyAny>) -> PyRef<'py, Self> {
        slf
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<crate::values::Reduced<'py>> {
        let (this, py) = (slf.get(), slf.py());
        let text = serde_json::to_string(&this.alert)
            .map_err(|error| PyValueError::new_err(error.to_string()))?;
        let parts = [
            text.into_pyobject(py)?.into_any(),
            // JSON has no NaN.
            this.alert.value.into_pyobject(py)?.into_any(),
            this.series.as_ref().into_pyobject(py)?.into_any(),
        ];
        values::reduce(slf.as_any(), PyTuple::new(py, parts)?)
    }

    #[staticmethod]
    fn _restored(parts: &Bound<'_, PyTuple>) -> PyResult<Alert> {
        let (text, value, series): (String, Option<f64>, Option<Py<Series>>) = parts.extract()?;
        let mut alert: metricbus::Alert = serde_json::from_str(&text)
            .map_err(|error| PyValueError::new_err(error.to_string()))?;
        alert.value = value;
        Ok(Alert { alert, series })
    }

    fn __repr__(&self) -> String {
        format!("<Alert {} (epoch {})>", self.alert, self.alert.epoch)
    }
}

/// The mark that ends what a late subscriber begins with: it knows the present state, and from here on alerts are changes.
#[pyclass(frozen, eq, name = "Sync", module = "metricbus")]
#[derive(PartialEq)]
pub(crate) struct Synced;

#[pymethods]
impl Synced {
    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<crate::values::Reduced<'py>> {
        values::reduce(slf.as_any(), PyTuple::empty(slf.py()))
    }

    #[staticmethod]
    fn _restored(_parts: &Bound<'_, PyTuple>) -> Synced {
        Synced
    }

    fn __repr__(&self) -> &'static str {
        "<Sync>"
    }
}

impl Letter for Notice {
    fn into_python(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        match self {
            Notice::Alert(alert) => alert.into_python(py),
            // `Notice` may grow; what is unknown changes nothing for whoever waits for the mark.
            _ => Ok(Py::new(py, Synced)?.into_any()),
        }
    }
}
