//! Expressions: what a condition looks at, and what a derived gauge shows.

use metricbus::Expr as Core;
use pyo3::{exceptions::PyTypeError, prelude::*};

use crate::{convert, error::raise};

/// How deep an expression or a condition may be: whoever compares, shows or drops it goes down to its ground.
const DEPTH_MAX: usize = 256;

/// One deeper than these.
pub(crate) fn deeper(a: usize, b: usize) -> PyResult<usize> {
    let depth = a.max(b) + 1;
    if depth > DEPTH_MAX {
        return Err(raise(
            "RuleError",
            format!(
                "this expression or condition would have {depth} parts one inside the other, and {DEPTH_MAX} are the most; \
                 to put many series together, select them: Expr.sum('name{{label=~\"…\"}}')"
            ),
        ));
    }
    Ok(depth)
}

/// A number made from metrics: the value of a series, a statistic of a window, a sum over series, or arithmetic on these.
///
/// A condition judges it; `MetricBus.derive` makes a gauge of it. Wherever an expression is wanted, a selector, a metric or
/// a series stands for its value.
///
/// It is evaluated once for each set of labels. Operands with the same labels belong together, whatever the names of their
/// metrics; one without labels goes with all of them. No data is not a number: a gauge that was never set, a window that
/// has seen nothing, 0/0. Whatever is computed from it is no data either.
///
/// >>> Expr.value("kv_blocks_used") / Expr.value("kv_blocks")
/// <Expr (kv_blocks_used / kv_blocks)>
#[pyclass(frozen, module = "metricbus")]
#[derive(Clone)]
pub(crate) struct Expr {
    pub(crate) core: Core,
    pub(crate) depth: usize,
}

impl Expr {
    fn leaf(core: Core) -> Expr {
        Expr { core, depth: 1 }
    }

    /// An expression as an argument.
    pub(crate) fn of(value: &Bound<'_, PyAny>) -> PyResult<Expr> {
        if let Ok(expr) = value.cast::<Expr>() {
            return Ok(expr.get().clone());
        }
        if let Ok(over) = value.cast::<Over>() {
            return Err(PyTypeError::new_err(format!(
                "{} is a window, and no number; say which statistic of it is meant: .avg(), .quantile(0.99) …",
                over.get().__repr__()
            )));
        }
        Ok(Expr::leaf(Core::value(convert::written(value)?)))
    }

    /// As an operand, where numbers count, too; `None` for what can't be one, of which Python itself says so best.
    fn operand(value: &Bound<'_, PyAny>) -> PyResult<Option<Expr>> {
        if let Ok(number) = value.extract::<f64>() {
            return Ok(Some(Expr::leaf(Core::constant(number))));
        }
        let py = value.py();
        match Expr::of(value) {
            Err(error)
                if error.is_instance_of::<PyTypeError>(py) && !value.is_instance_of::<Over>() =>
            {
                Ok(None)
            }
            made => made.map(Some),
        }
    }

    fn gathered(
        make: fn(metricbus::Selector) -> Core,
        selector: &Bound<'_, PyAny>,
        by: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Expr> {
        let made = make(convert::written(selector)?);
        Ok(Expr::leaf(match by {
            None => made,
            Some(by) => made.by(convert::names("by", by)?),
        }))
    }

    /// `self` and another operand, joined; `NotImplemented` for what can't be one, so that Python says so.
    fn joined<'py>(
        &self,
        other: &Bound<'py, PyAny>,
        join: impl FnOnce(Core, Core) -> Core,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = other.py();
        let Some(other) = Expr::operand(other)? else {
            return Ok(py.NotImplemented().into_bound(py));
        };
        let depth = deeper(self.depth, other.depth)?;
        let core = join(self.core.clone(), other.core);
        Ok(Bound::new(py, Expr { core, depth })?.into_any())
    }

    fn around(&self, core: Core) -> PyResult<Expr> {
        let depth = deeper(self.depth, 0)?;
        Ok(Expr { core, depth })
    }
}

#[pymethods]
impl Expr {
    /// The value of each selected series; of a histogram, each observation.
    ///
    /// In arithmetic a selector should mean one metric: of two with the same labels the one that was mutated last counts. To
    /// put several together say how: `Expr.sum`, `Expr.max` …
    #[staticmethod]
    fn value(selector: &Bound<'_, PyAny>) -> PyResult<Expr> {
        Ok(Expr::leaf(Core::value(convert::written(selector)?)))
    }

    /// A number.
    #[staticmethod]
    fn constant(value: f64) -> Expr {
        Expr::leaf(Core::constant(value))
    }

    /// The sum of the selected series: of all, or one for each value of the labels `by`. Series without a value, and NaN, are
    /// left out, here and in the other gatherings; without any there is no data.
    #[staticmethod]
    #[pyo3(signature = (selector, by=None))]
    fn sum(selector: &Bound<'_, PyAny>, by: Option<&Bound<'_, PyAny>>) -> PyResult<Expr> {
        Expr::gathered(Core::sum, selector, by)
    }

    /// The mean of the selected series' values.
    #[staticmethod]
    #[pyo3(signature = (selector, by=None))]
    fn avg(selector: &Bound<'_, PyAny>, by: Option<&Bound<'_, PyAny>>) -> PyResult<Expr> {
        Expr::gathered(Core::avg, selector, by)
    }

    /// The least of the selected series' values.
    #[staticmethod]
    #[pyo3(signature = (selector, by=None))]
    fn min(selector: &Bound<'_, PyAny>, by: Option<&Bound<'_, PyAny>>) -> PyResult<Expr> {
        Expr::gathered(Core::min, selector, by)
    }

    /// The greatest of the selected series' values.
    #[staticmethod]
    #[pyo3(signature = (selector, by=None))]
    fn max(selector: &Bound<'_, PyAny>, by: Option<&Bound<'_, PyAny>>) -> PyResult<Expr> {
        Expr::gathered(Core::max, selector, by)
    }

    /// How many of the selected series have a value.
    #[staticmethod]
    #[pyo3(signature = (selector, by=None))]
    fn count(selector: &Bound<'_, PyAny>, by: Option<&Bound<'_, PyAny>>) -> PyResult<Expr> {
        Expr::gathered(Core::count, selector, by)
    }

    /// A window of this width over each selected series, or one for each value of the labels `by` (`by=()`: one for all). Say
    /// next which statistic of it is meant.
    ///
    /// >>> Expr.over("ttft_seconds", 60, by=("model",)).quantile(0.99)
    /// <Expr quantile 0.99 by (model) (ttft_seconds[60s])>
    #[staticmethod]
    #[pyo3(signature = (selector, width, by=None))]
    fn over(
        selector: &Bound<'_, PyAny>,
        width: &Bound<'_, PyAny>,
        by: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Over> {
        let width = convert::duration("width", width)?;
        let over = Core::over(convert::written(selector)?, width);
        Ok(Over(match by {
            None => over,
            Some(by) => over.by(convert::names("by", by)?),
        }))
    }

    /// The change per second over a window of this width: `Expr.over(selector, width, by).rate()`.
    #[staticmethod]
    #[pyo3(signature = (selector, width, by=None))]
    fn rate(
        selector: &Bound<'_, PyAny>,
        width: &Bound<'_, PyAny>,
        by: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Expr> {
        Ok(Expr::over(selector, width, by)?.rate())
    }

    /// The increase over a window of this width: `Expr.over(selector, width, by).increase()`.
    #[staticmethod]
    #[pyo3(signature = (selector, width, by=None))]
    fn increase(
        selector: &Bound<'_, PyAny>,
        width: &Bound<'_, PyAny>,
        by: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Expr> {
        Ok(Expr::over(selector, width, by)?.increase())
    }

    /// A trigger between 0 and 1: 0 at `low` and before it, 1 at `high` and beyond, linear in between. `low` may be the
    /// greater of the two.
    fn scaled(&self, low: f64, high: f64) -> PyResult<Expr> {
        self.around(self.core.clone().scaled(low, high))
    }

    /// The exponentially weighted moving average with time constant `tau`, weighted by time: a value that is held for `tau`
    /// takes 63 % of the way, for 3 `tau` 95 %. It begins at the first value. `tau` is at least 10 ms.
    fn ewma(&self, tau: &Bound<'_, PyAny>) -> PyResult<Expr> {
        self.around(self.core.clone().ewma(convert::duration("tau", tau)?))
    }

    fn __add__<'py>(&self, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        self.joined(other, |a, b| a + b)
    }

    fn __radd__<'py>(&self, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        self.joined(other, |a, b| b + a)
    }

    fn __sub__<'py>(&self, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        self.joined(other, |a, b| a - b)
    }

    fn __rsub__<'py>(&self, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        self.joined(other, |a, b| b - a)
    }

    fn __mul__<'py>(&self, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        self.joined(other, |a, b| a * b)
    }

    fn __rmul__<'py>(&self, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        self.joined(other, |a, b| b * a)
    }

    fn __truediv__<'py>(&self, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        self.joined(other, |a, b| a / b)
    }

    fn __rtruediv__<'py>(&self, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        self.joined(other, |a, b| b / a)
    }

    fn __neg__(&self) -> PyResult<Expr> {
        self.around(-1.0 * self.core.clone())
    }

    fn __eq__(&self, other: &Expr) -> bool {
        self.core == other.core
    }

    fn __bool__(&self) -> PyResult<bool> {
        Err(PyTypeError::new_err(format!(
            "{} is looked at by rules, and has no truth of its own; when(expression, above=…) makes a condition of it",
            self.__repr__()
        )))
    }

    fn __str__(&self) -> String {
        self.core.to_string()
    }

    fn __repr__(&self) -> String {
        format!("<Expr {}>", self.core)
    }
}

/// A window in an expression, of which a statistic is to be chosen. Made by `Expr.over`.
///
/// What the statistics mean for a counter, a gauge and a histogram: `WindowStats`.
#[pyclass(frozen, module = "metricbus")]
pub(crate) struct Over(metricbus::Over);

#[pymethods]
impl Over {
    /// The `q`-quantile, 0 to 1, with a relative error of at most 1.1 %.
    fn quantile(&self, q: f64) -> Expr {
        Expr::leaf(self.0.clone().quantile(q))
    }

    /// One window over all selected series together, rather than one each.
    fn merged(&self) -> Over {
        Over(self.0.clone().merged())
    }

    fn __eq__(&self, other: &Over) -> bool {
        self.0 == other.0
    }

    fn __repr__(&self) -> String {
        // As its average is shown, without the word.
        let shown = self.0.clone().avg().to_string();
        format!("<Over {}>", shown.trim_start_matches("avg").trim_start())
    }
}

macro_rules! statistics {
    ($($(#[$doc:meta])* $stat:ident),* $(,)?) => {
        #[pymethods]
        impl Over {
            $(
                $(#[$doc])*
                fn $stat(&self) -> Expr {
                    Expr::leaf(self.0.clone().$stat())
                }
            )*
        }
    };
}

statistics! {
    /// Mutations of a gauge, observations of a histogram.
    count,
    /// The sum.
    sum,
    /// The average: of a gauge over time, of a histogram over observations.
    avg,
    /// The least value.
    min,
    /// The greatest value.
    max,
    /// The last value.
    last,
    /// The change per second; of a histogram, observations per second.
    rate,
    /// The increase of a counter, the change of a gauge.
    increase,
    /// The standard deviation.
    stddev,
    /// The share of the width that was observed, 0 to 1: a rule about a long window may want most of it.
    coverage,
    /// Seconds since the newest mutation in the window; no data where there was none.
    age,
    /// How many series took part.
    sources,
}
