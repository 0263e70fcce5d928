//! Derived gauges: an expression as a metric like any other.

use std::sync::{Arc, Mutex, PoisonError};

use metricbus::{Derived as Core, Desc};
use pyo3::prelude::*;

use super::Expr;
use crate::{
    bus::{Bus, MetricBus},
    error::Raise,
    fork::{Counted, Forked, Kind},
    series::Series,
    window::Window,
};

/// A gauge that shows an expression. Ends when it is closed, or when nothing refers to it any more: its series are removed.
#[pyclass(frozen, weakref, module = "metricbus")]
pub(crate) struct Derived {
    name: String,
    expr: Expr,
    bus: Arc<Bus>,
    /// `None` when it was closed or is to be forgotten.
    made: Forked<Mutex<Option<(Core, Counted)>>>,
}

impl Derived {
    /// By its name, so that one which was forgotten still has them.
    fn all(&self) -> PyResult<Vec<metricbus::Series>> {
        self.bus.current()?.series(self.name.as_str()).or_raise()
    }

    fn take(&self) -> Option<(Core, Counted)> {
        let made = self.made.here()?;
        made.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[pymethods]
impl Derived {
    /// The gauge's name.
    #[getter]
    fn name(&self) -> &str {
        &self.name
    }

    /// What it shows.
    #[getter]
    fn expr(&self) -> Expr {
        self.expr.clone()
    }

    /// Its present value, where it is one series; `None` where there is no data, no series, or more than one.
    fn get(&self) -> PyResult<Option<f64>> {
        Ok(match &self.all()?[..] {
            [one] => one
                .value()
                .map(|value| value.as_f64())
                .filter(|value| !value.is_nan()),
            _ => None,
        })
    }

    /// Its series: one for each set of labels that the expression has a value for.
    #[getter]
    fn series(&self) -> PyResult<Vec<Series>> {
        Ok(self.all()?.into_iter().map(Series::of).collect())
    }

    /// A sliding window over its series, those to come too, from now on.
    fn window(&self, py: Python<'_>, width: &Bound<'_, PyAny>) -> PyResult<Window> {
        MetricBus(self.bus.clone()).window(
            py,
            self.name.as_str().into_pyobject(py)?.as_any(),
            width,
        )
    }

    /// Removes its series. In a forked child there is nothing to remove.
    fn close(&self, py: Python<'_>) {
        let made = self.take();
        py.detach(|| drop(made));
    }

    /// Keeps it for as long as the bus lives, though nobody holds it.
    fn forget(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        if let Some((made, counted)) = slf.take() {
            made.forget();
            std::mem::forget(counted);
        }
        slf
    }

    fn __enter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyAny>) {
        self.close(py);
    }

    fn __repr__(&self) -> String {
        format!("<Derived {} = {}>", self.name, self.expr.core)
    }
}

#[pymethods]
impl MetricBus {
    /// Declares a gauge that shows an expression: one series for each set of labels that the expression has, for as long as
    /// what is returned is held. A series comes with the first value; while there is no data it is NaN.
    ///
    /// It is set when the expression is evaluated, by the thread that mutates an operand, after its mutation, or by a timer:
    /// rules, taps, windows and `/metrics` apply to it as to any gauge.
    #[pyo3(signature = (name, help, expr, *, unit=None))]
    fn derive(
        &self,
        py: Python<'_>,
        name: &str,
        help: &str,
        expr: &Bound<'_, PyAny>,
        unit: Option<&str>,
    ) -> PyResult<Derived> {
        let expr = Expr::of(expr)?;
        let mut desc = Desc::new(name, help);
        if let Some(unit) = unit {
            desc = desc.unit(unit);
        }
        let (bus, core) = (self.current()?, expr.core.clone());
        let made = py.detach(|| bus.derive(desc, core)).or_raise()?;
        Ok(Derived {
            name: made.name().to_owned(),
            expr,
            bus: self.0.clone(),
            made: Forked::new(Mutex::new(Some((made, Counted::new(Kind::DerivedGauge))))),
        })
    }
}
