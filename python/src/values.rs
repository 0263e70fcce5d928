//! What plain values have in common: they are copied, pickled, and shown as dictionaries.
//!
//! A copy is the value itself, since none of them can be changed. What is unpickled has everything but the bus: its series are names and
//! labels.

use pyo3::{
    exceptions::PyValueError,
    prelude::*,
    types::{PyDict, PyTuple},
};

use crate::{
    nats::Date,
    series::Series,
    snapshot::{FamilySnapshot, SeriesSnapshot},
    source::SourceId,
};

/// Its attributes, as what JSON has: see `metricbus/_values.py`.
pub(crate) fn to_dict(value: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
    let values = value.py().import("metricbus._values")?;
    Ok(values.getattr("to_dict")?.call1((value,))?.unbind())
}

/// A function, and what it is to be called with.
pub(crate) type Reduced<'py> = (Bound<'py, PyAny>, (Bound<'py, PyAny>, Bound<'py, PyTuple>));

/// What pickle wants to be told: how it is restored, from its class and its parts.
pub(crate) fn reduce<'py>(
    value: &Bound<'py, PyAny>,
    parts: Bound<'py, PyTuple>,
) -> PyResult<crate::values::Reduced<'py>> {
    let values = value.py().import("metricbus._values")?;
    let class = value.get_type().into_any();
    Ok((values.getattr("restored")?, (class, parts)))
}

/// The part of a value, as it comes back.
pub(crate) trait Part: Sized {
    fn part(part: &Bound<'_, PyAny>) -> PyResult<Self>;
}

macro_rules! parts {
    ($($type:ty),* $(,)?) => {$(
        impl Part for $type {
            #[allow(clippy::needless_question_mark, reason = "the error of some is another")]
            fn part(part: &Bound<'_, PyAny>) -> PyResult<Self> {
                Ok(part.extract()?)
            }
        }
    )*};
}

parts! {
    bool, f64, u64, String, Option<f64>, Option<u64>, Option<String>, Vec<(f64, u64)>,
    Py<PyAny>, Py<PyDict>, Py<Series>, Vec<Py<FamilySnapshot>>, Vec<Py<SeriesSnapshot>>,
}

impl Part for SourceId {
    fn part(part: &Bound<'_, PyAny>) -> PyResult<Self> {
        Ok(part.cast::<SourceId>()?.get().clone())
    }
}

impl Part for Date {
    fn part(part: &Bound<'_, PyAny>) -> PyResult<Self> {
        Ok(Date(part.extract()?))
    }
}

/// Every word that a value of ours can have.
const WORDS: [&str; 30] = [
    "raised",
    "cleared",
    "crossing",
    "initial",
    "removed",
    "counted",
    "set",
    "observed",
    "counter",
    "gauge",
    "histogram",
    "born",
    "restarted",
    "live",
    "back",
    "stale",
    "gone",
    "conflict",
    "alerts_lost",
    "refused",
    "died",
    "silent",
    "no_responders",
    "unreachable",
    "failed",
    "other",
    "info",
    "stateset",
    "summary",
    "unknown",
];

impl Part for &'static str {
    fn part(part: &Bound<'_, PyAny>) -> PyResult<Self> {
        let word: String = part.extract()?;
        let known = WORDS.into_iter().find(|known| *known == word);
        known.ok_or_else(|| PyValueError::new_err(format!("{word:?} is no word of this version")))
    }
}

impl Part for Option<&'static str> {
    fn part(part: &Bound<'_, PyAny>) -> PyResult<Self> {
        match part.is_none() {
            true => Ok(None),
            false => Part::part(part).map(Some),
        }
    }
}

/// For classes whose attributes are all that there is to them.
macro_rules! value {
    ($class:ident { $($field:ident),* $(,)? }) => {
        #[pymethods]
        impl $class {
            /// Its attributes in a dictionary, as what JSON has: dates as text, series as names and labels.
            fn to_dict(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
                crate::values::to_dict(slf.as_any())
            }

            fn __copy__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
                slf
            }

            fn __deepcopy__<'py>(slf: PyRef<'py, Self>, _memo: &Bound<'py, PyAny>) -> PyRef<'py, Self> {
                slf
            }

            fn __reduce__<'py>(
                slf: &Bound<'py, Self>,
            ) -> PyResult<crate::values::Reduced<'py>> {
                let parts = [$(slf.getattr(stringify!($field))?),*];
                let parts = pyo3::types::PyTuple::new(slf.py(), parts)?;
                crate::values::reduce(slf.as_any(), parts)
            }

            #[staticmethod]
            fn _restored(parts: &Bound<'_, pyo3::types::PyTuple>) -> PyResult<Self> {
                let mut parts = parts.iter_borrowed();
                $(
                    let part = parts.next().ok_or_else(|| {
                        pyo3::exceptions::PyValueError::new_err("a part is missing")
                    })?;
                    let $field = crate::values::Part::part(&part)?;
                )*
                Ok($class { $($field),* })
            }
        }
    };
}

pub(crate) use value;
