//! A series: what an event is about.

use std::hash::{DefaultHasher, Hash, Hasher};

use metricbus::Value;
use pyo3::{
    prelude::*,
    types::{PyDict, PyTuple},
};

use crate::{
    convert,
    error::raise,
    fork::Forked,
    values::{self, Part},
};

/// One metric with one set of labels, as the bus knows it. One that was unpickled is the same in name and labels, but on no bus.
#[pyclass(frozen, module = "metricbus", weakref)]
pub(crate) struct Series(Held);

enum Held {
    Live(Forked<metricbus::Series>),
    Copied(Copied),
}

/// What is known of a series of another process.
struct Copied {
    text: String,
    name: String,
    help: String,
    unit: Option<String>,
    kind: &'static str,
    labels: Vec<(String, String)>,
}

impl Series {
    pub(crate) fn of(series: metricbus::Series) -> Series {
        Series(Held::Live(Forked::new(series)))
    }

    pub(crate) fn inner(&self) -> PyResult<&metricbus::Series> {
        match &self.0 {
            Held::Live(series) => series.here().ok_or_else(|| {
                raise("ForkedError", "this series is of the process from which this one was forked; look it up on the bus again")
            }),
            Held::Copied(copied) => Err(raise(
                "ForkedError",
                format!("{} was unpickled and is on no bus; look it up on one, as in bus.series({:?})", copied.text, copied.text),
            )),
        }
    }

    fn copied(&self) -> Option<&Copied> {
        match &self.0 {
            Held::Live(_) => None,
            Held::Copied(copied) => Some(copied),
        }
    }
}

/// A number as Python has it.
pub(crate) fn number(py: Python<'_>, value: Value) -> PyResult<Py<PyAny>> {
    Ok(match value {
        Value::U64(value) => value.into_pyobject(py)?.into_any().unbind(),
        Value::F64(value) => value.into_pyobject(py)?.into_any().unbind(),
    })
}

#[pymethods]
impl Series {
    /// The metric's name.
    #[getter]
    fn name(&self) -> PyResult<&str> {
        match self.copied() {
            Some(copied) => Ok(&copied.name),
            None => Ok(self.inner()?.name()),
        }
    }

    /// The metric's help text.
    #[getter]
    fn help(&self) -> PyResult<&str> {
        match self.copied() {
            Some(copied) => Ok(&copied.help),
            None => Ok(self.inner()?.help()),
        }
    }

    /// The metric's unit, if one was declared.
    #[getter]
    fn unit(&self) -> PyResult<Option<&str>> {
        match self.copied() {
            Some(copied) => Ok(copied.unit.as_deref()),
            None => Ok(self.inner()?.unit()),
        }
    }

    /// `"counter"`, `"gauge"` or `"histogram"`.
    #[getter]
    fn kind(&self) -> PyResult<&'static str> {
        match self.copied() {
            Some(copied) => Ok(copied.kind),
            None => Ok(self.inner()?.kind().as_str()),
        }
    }

    /// Label names and values.
    #[getter]
    fn labels<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        match self.copied() {
            Some(copied) => convert::pairs_dict(py, &copied.labels),
            None => convert::dict(py, self.inner()?.labels()),
        }
    }

    /// The value of one label, or `None` where there is no such label.
    fn label(&self, name: &str) -> PyResult<Option<String>> {
        match self.copied() {
            Some(copied) => {
                let found = copied.labels.iter().find(|(label, _)| label == name);
                Ok(found.map(|(_, value)| value.clone()))
            }
            None => Ok(self.inner()?.label(name)),
        }
    }

    /// Its value now; of a histogram, the number of observations.
    #[getter]
    fn value(&self) -> PyResult<f64> {
        Ok(self.inner()?.value().as_f64())
    }

    /// Whether it was removed: nobody sees it any more.
    #[getter]
    fn is_removed(&self) -> PyResult<bool> {
        Ok(self.inner()?.is_removed())
    }

    fn __str__(&self) -> PyResult<String> {
        self.text()
    }

    fn __repr__(&self) -> PyResult<String> {
        Ok(format!("<Series {}>", self.text()?))
    }

    fn __eq__(&self, other: &Series) -> PyResult<bool> {
        match (self.copied(), other.copied()) {
            (None, None) => Ok(self.inner()? == other.inner()?),
            _ => Ok(self.text()? == other.text()?),
        }
    }

    fn __hash__(&self) -> PyResult<u64> {
        let mut hasher = DefaultHasher::new();
        self.text()?.hash(&mut hasher);
        Ok(hasher.finish())
    }

    fn __copy__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    fn __deepcopy__<'py>(slf: PyRef<'py, Self>, _memo: &Bound<'py, PyAny>) -> PyRef<'py, Self> {
        slf
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<crate::values::Reduced<'py>> {
        let mut parts = vec![slf.get().text()?.into_pyobject(slf.py())?.into_any()];
        for name in ["name", "help", "unit", "kind", "labels"] {
            parts.push(slf.getattr(name)?);
        }
        values::reduce(slf.as_any(), PyTuple::new(slf.py(), parts)?)
    }

    #[staticmethod]
    fn _restored(parts: &Bound<'_, PyTuple>) -> PyResult<Series> {
        type Parts<'py> = (
            String,
            String,
            String,
            Option<String>,
            Bound<'py, PyAny>,
            Bound<'py, PyAny>,
        );
        let (text, name, help, unit, kind, labels): Parts<'_> = parts.extract()?;
        Ok(Series(Held::Copied(Copied {
            text,
            name,
            help,
            unit,
            kind: Part::part(&kind)?,
            labels: convert::pairs(&labels)?,
        })))
    }
}

impl Series {
    fn text(&self) -> PyResult<String> {
        match self.copied() {
            Some(copied) => Ok(copied.text.clone()),
            None => Ok(self.inner()?.to_string()),
        }
    }
}

impl Series {
    /// For people, in texts that can't fail.
    pub(crate) fn shown(&self) -> String {
        self.text()
            .unwrap_or_else(|_| "a series of another process".to_owned())
    }
}
