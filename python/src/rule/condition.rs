//! Conditions: what has to hold for a rule to fire.

use metricbus::Condition as Core;
use pyo3::{exceptions::PyTypeError, prelude::*, types::PyDict};

use super::expr::{Expr, deeper};
use crate::{bus, convert};

/// What has to hold. Made by `when`, `moved`, `changed`, `stale` and `gone`, and put together with `&`, `|` and `~`.
///
/// A condition about something that has no data is neither true nor false: it does not fire, and neither does its opposite.
/// Unknown *and* false is false, unknown *or* true is true.
///
/// >>> when("kv_usage_ratio", above=0.9, clear_below=0.8) & ~when(Expr.rate("requests_total", 60), below=1)
/// <Condition (kv_usage_ratio above 0.9, clear below 0.8 and not rate(requests_total[60s]) below 1)>
#[pyclass(frozen, module = "metricbus")]
pub(crate) struct Condition {
    pub(crate) core: Core,
    depth: usize,
}

impl Condition {
    fn about(expr: Expr, make: impl FnOnce(metricbus::Expr) -> Core) -> Condition {
        Condition {
            depth: expr.depth,
            core: make(expr.core),
        }
    }
}

#[pymethods]
impl Condition {
    fn __and__(&self, other: &Condition) -> PyResult<Condition> {
        Ok(Condition {
            depth: deeper(self.depth, other.depth)?,
            core: self.core.clone() & other.core.clone(),
        })
    }

    fn __or__(&self, other: &Condition) -> PyResult<Condition> {
        Ok(Condition {
            depth: deeper(self.depth, other.depth)?,
            core: self.core.clone() | other.core.clone(),
        })
    }

    fn __invert__(&self) -> PyResult<Condition> {
        Ok(Condition {
            depth: deeper(self.depth, 0)?,
            core: !self.core.clone(),
        })
    }

    fn __bool__(&self) -> PyResult<bool> {
        Err(PyTypeError::new_err(
            "a condition is judged by a rule, and has no truth of its own; conditions are put together with `a & b`, `a | b` and `~a`, not with and, or, not",
        ))
    }

    fn __eq__(&self, other: &Condition) -> bool {
        self.core == other.core
    }

    fn __str__(&self) -> String {
        self.core.to_string()
    }

    fn __repr__(&self) -> String {
        format!("<Condition {}>", self.core)
    }
}

/// The input is beyond a bound, and has not crossed its clear bound since: one of `above=`, `at_least=`, `below=`,
/// `at_most=`, and at most one of `clear_below=`, `clear_at_most=`, `clear_above=`, `clear_at_least=`.
///
/// The input is an expression, or a selector, a metric or a series, whose value is meant.
#[pyfunction]
#[pyo3(signature = (input, **threshold))]
pub(crate) fn when(
    input: &Bound<'_, PyAny>,
    threshold: Option<&Bound<'_, PyDict>>,
) -> PyResult<Condition> {
    let threshold = bus::threshold(threshold)?;
    let input = Expr::of(input)?;
    Ok(Condition::about(input, |input| {
        Core::when(input, threshold)
    }))
}

/// The input has moved by so much since it last had: by `absolute`, by the share `relative` of what it was (of `floor`
/// where that is more), or by a share of a range, `of_range=(share, low, high)`.
///
/// Holds for that moment only: a rule fires and is resolved at once, or stays firing for as long as `keep_firing_for` says;
/// with `hold_for` it never fires. The first value is the reference and says nothing.
#[pyfunction]
#[pyo3(signature = (input, *, absolute=None, relative=None, floor=None, of_range=None))]
pub(crate) fn moved(
    input: &Bound<'_, PyAny>,
    absolute: Option<f64>,
    relative: Option<f64>,
    floor: Option<f64>,
    of_range: Option<(f64, f64, f64)>,
) -> PyResult<Condition> {
    let delta = bus::delta(absolute, relative, floor, of_range)?;
    let input = Expr::of(input)?;
    Ok(Condition::about(input, |input| Core::moved(input, delta)))
}

/// The input takes another value. Holds for that moment only, as `moved`; every change is seen, not only the last.
#[pyfunction]
pub(crate) fn changed(input: &Bound<'_, PyAny>) -> PyResult<Condition> {
    Ok(Condition::about(Expr::of(input)?, Core::changed))
}

/// A series had no mutation for `ttl`, at least 10 ms; before its first mutation, since the rule was added or the series
/// made. A mutation that does not change the value is one.
#[pyfunction]
pub(crate) fn stale(selector: &Bound<'_, PyAny>, ttl: &Bound<'_, PyAny>) -> PyResult<Condition> {
    let ttl = convert::duration("ttl", ttl)?;
    Ok(Condition {
        core: Core::stale(convert::written(selector)?, ttl),
        depth: 1,
    })
}

/// A series was removed or has expired. Holds until it is back, or for `keep`; then it is forgotten.
#[pyfunction]
pub(crate) fn gone(selector: &Bound<'_, PyAny>, keep: &Bound<'_, PyAny>) -> PyResult<Condition> {
    let keep = convert::duration("keep", keep)?;
    Ok(Condition {
        core: Core::gone(convert::written(selector)?, keep),
        depth: 1,
    })
}
