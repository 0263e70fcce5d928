//! What subscribers hear: crossings, moves, changes, and the mutations of a tap.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use futures_core::Stream;
use metricbus::{Cause, Change, Crossed, Mutations, Subscription, Value};
use pyo3::prelude::*;

use crate::{
    deliver::{Letter, Source},
    nats::Date,
    series::{self, Series},
    values::value,
};

/// A threshold was crossed.
#[pyclass(frozen, get_all, module = "metricbus")]
pub(crate) struct Crossing {
    /// Which series.
    series: Py<Series>,
    /// `"raised"` or `"cleared"`.
    state: &'static str,
    /// The value that crossed, as the thread that set it saw it.
    value: f64,
    /// 1 for the first crossing of this series, 2 for the next: a gap is what was missed.
    epoch: u64,
    /// `"crossing"`; `"initial"` where it was beyond already; `"removed"` where the series has gone.
    cause: &'static str,
    /// When, in seconds on the bus's clock.
    at: f64,
    /// `at` as a date, in UTC.
    date: Date,
}

#[pymethods]
impl Crossing {
    /// Whether the value is now on the side that was subscribed to.
    #[getter]
    fn is_raised(&self) -> bool {
        self.state == "raised"
    }

    fn __repr__(&self) -> String {
        format!(
            "<Crossing {} {} at {} (epoch {})>",
            self.series.get().shown(),
            self.state,
            self.value,
            self.epoch
        )
    }
}

impl Letter for metricbus::Crossing {
    fn into_python(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let date = Date(self.date());
        let crossing = Crossing {
            series: Py::new(py, Series::of(self.series))?,
            state: match self.state {
                Crossed::Raised => "raised",
                Crossed::Cleared => "cleared",
            },
            value: self.value,
            epoch: self.epoch,
            cause: match self.cause {
                Cause::Crossing => "crossing",
                Cause::Initial => "initial",
                Cause::Removed => "removed",
                // `Cause` may grow.
                _ => "other",
            },
            at: self.at.as_secs_f64(),
            date,
        };
        Ok(Py::new(py, crossing)?.into_any())
    }
}

/// A value moved by as much as was subscribed to.
#[pyclass(frozen, get_all, module = "metricbus")]
pub(crate) struct Moved {
    /// Which series.
    series: Py<Series>,
    /// The value told before.
    before: f64,
    /// The value now.
    after: f64,
    /// 1 for the first move of this series, 2 for the next …: a gap is the number that the mailbox had no room for.
    epoch: u64,
    /// When, in seconds on the bus's clock.
    at: f64,
    /// `at` as a date, in UTC.
    date: Date,
}

#[pymethods]
impl Moved {
    fn __repr__(&self) -> String {
        format!(
            "<Moved {} from {} to {}>",
            self.series.get().shown(),
            self.before,
            self.after
        )
    }
}

impl Letter for metricbus::Moved {
    fn into_python(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let date = Date(self.date());
        let moved = Moved {
            series: Py::new(py, Series::of(self.series))?,
            before: self.from,
            after: self.to,
            epoch: self.epoch,
            at: self.at.as_secs_f64(),
            date,
        };
        Ok(Py::new(py, moved)?.into_any())
    }
}

/// A value is another one than when it was last told.
#[pyclass(frozen, get_all, module = "metricbus")]
pub(crate) struct Changed {
    /// Which series.
    series: Py<Series>,
    /// The value now.
    value: Py<PyAny>,
    /// When, in seconds on the bus's clock.
    at: f64,
    /// `at` as a date, in UTC.
    date: Date,
}

#[pymethods]
impl Changed {
    fn __repr__(&self) -> String {
        format!("<Changed {} to {}>", self.series.get().shown(), self.value)
    }
}

impl Letter for metricbus::Changed {
    fn into_python(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let date = Date(self.date());
        let changed = Changed {
            series: Py::new(py, Series::of(self.series))?,
            value: series::number(py, self.value)?,
            at: self.at.as_secs_f64(),
            date,
        };
        Ok(Py::new(py, changed)?.into_any())
    }
}

/// One mutation, as a tap tells it.
#[pyclass(frozen, get_all, module = "metricbus")]
pub(crate) struct Mutation {
    /// Which series.
    series: Py<Series>,
    /// Counts this series' mutations, without gaps.
    sequence: u64,
    /// When, in seconds on the bus's clock.
    at: f64,
    /// `at` as a date, in UTC.
    date: Date,
    /// `"counted"`, `"set"` or `"observed"`.
    kind: &'static str,
    /// The value before; `None` of a histogram.
    before: Option<f64>,
    /// The value after; `None` of a histogram.
    after: Option<f64>,
    /// By how much a counter grew or a gauge moved; what a histogram observed.
    amount: f64,
}

#[pymethods]
impl Mutation {
    fn __repr__(&self) -> String {
        let series = self.series.get().shown();
        match (self.before, self.after) {
            (Some(before), Some(after)) => {
                format!("<Mutation {series} {} {before} -> {after}>", self.kind)
            }
            _ => format!("<Mutation {series} {} {}>", self.kind, self.amount),
        }
    }
}

/// So many mutations are missing here, because the reader was too slow.
#[pyclass(frozen, get_all, module = "metricbus")]
pub(crate) struct Lagged {
    /// How many.
    missed: u64,
}

#[pymethods]
impl Lagged {
    fn __repr__(&self) -> String {
        format!("<Lagged {} mutations>", self.missed)
    }
}

impl Letter for metricbus::Mutation {
    fn into_python(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let date = Date(self.date());
        let amount = self.change.amount();
        let (kind, before, after) = match self.change {
            Change::Counted { before, after } => {
                ("counted", Some(Value::as_f64(before)), Some(after.as_f64()))
            }
            Change::Set { before, after } => ("set", Some(before), Some(after)),
            Change::Observed { .. } => ("observed", None, None),
            // `Change` may grow.
            _ => ("other", None, None),
        };
        let mutation = Mutation {
            series: Py::new(py, Series::of(self.series))?,
            sequence: self.sequence,
            at: self.at.as_secs_f64(),
            date,
            kind,
            before,
            after,
            amount,
        };
        Ok(Py::new(py, mutation)?.into_any())
    }
}

impl Source for Mutations {
    fn poll(&mut self, py: Python<'_>, cx: &mut Context<'_>) -> Poll<Option<PyResult<Py<PyAny>>>> {
        let letter = std::task::ready!(Pin::new(self).poll_next(cx));
        Poll::Ready(letter.map(|letter| match letter {
            Ok(mutation) => mutation.into_python(py),
            Err(metricbus::Lagged(missed)) => Ok(Py::new(py, Lagged { missed })?.into_any()),
        }))
    }

    fn subscription(&self) -> &Subscription {
        Mutations::subscription(self)
    }
}

value!(Crossing {
    series,
    state,
    value,
    epoch,
    cause,
    at,
    date
});
value!(Moved {
    epoch,
    series,
    before,
    after,
    at,
    date
});
value!(Changed {
    series,
    value,
    at,
    date
});
value!(Mutation {
    series,
    sequence,
    at,
    date,
    kind,
    before,
    after,
    amount
});
value!(Lagged { missed });
