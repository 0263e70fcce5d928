//! A series: what an event is about.

use std::hash::{DefaultHasher, Hash, Hasher};

use metricbus::Value;
use pyo3::{prelude::*, types::PyDict};

use crate::{convert, error::raise, fork::Forked};

/// One metric with one set of labels, as the bus knows it.
#[pyclass(frozen, module = "metricbus", weakref)]
pub(crate) struct Series(Forked<metricbus::Series>);

impl Series {
    pub(crate) fn of(series: metricbus::Series) -> Series {
        Series(Forked::new(series))
    }

    pub(crate) fn inner(&self) -> PyResult<&metricbus::Series> {
        self.0.here().ok_or_else(|| {
            raise("ForkedError", "this series is of the process from which this one was forked; look it up on the bus again")
        })
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
        Ok(self.inner()?.name())
    }

    /// The metric's help text.
    #[getter]
    fn help(&self) -> PyResult<&str> {
        Ok(self.inner()?.help())
    }

    /// The metric's unit, if one was declared.
    #[getter]
    fn unit(&self) -> PyResult<Option<&str>> {
        Ok(self.inner()?.unit())
    }

    /// `"counter"`, `"gauge"` or `"histogram"`.
    #[getter]
    fn kind(&self) -> PyResult<&'static str> {
        Ok(self.inner()?.kind().as_str())
    }

    /// Label names and values.
    #[getter]
    fn labels<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        convert::dict(py, self.inner()?.labels())
    }

    /// The value of one label, or `None` where there is no such label.
    fn label(&self, name: &str) -> PyResult<Option<String>> {
        Ok(self.inner()?.label(name))
    }

    /// Its value now; of a histogram, the number of observations; `None` of a gauge that was never set.
    #[getter]
    fn value(&self) -> PyResult<Option<f64>> {
        Ok(self.inner()?.value().map(metricbus::Value::as_f64))
    }

    /// Whether it was removed: nobody sees it any more.
    #[getter]
    fn is_removed(&self) -> PyResult<bool> {
        Ok(self.inner()?.is_removed())
    }

    fn __str__(&self) -> PyResult<String> {
        Ok(self.inner()?.to_string())
    }

    fn __repr__(&self) -> PyResult<String> {
        Ok(format!("<Series {}>", self.inner()?))
    }

    fn __eq__(&self, other: &Series) -> PyResult<bool> {
        Ok(self.inner()? == other.inner()?)
    }

    fn __hash__(&self) -> PyResult<u64> {
        let mut hasher = DefaultHasher::new();
        self.inner()?.hash(&mut hasher);
        Ok(hasher.finish())
    }
}

impl Series {
    /// For people, in texts that can't fail.
    pub(crate) fn shown(&self) -> String {
        match self.0.here() {
            Some(series) => series.to_string(),
            None => "a series of another process".to_owned(),
        }
    }
}
