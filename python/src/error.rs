//! Errors of the bus as Python exceptions, whose classes are in `metricbus/_errors.py`.

use std::fmt::Display;

use metricbus::{ExemplarError, backend::BackendError};
use pyo3::{prelude::*, types::IntoPyDict};

use crate::gate;

/// An exception class of ours with this message.
pub(crate) fn raise(class: &str, message: impl Display) -> PyErr {
    Python::attach(|py| {
        let made = || -> PyResult<PyErr> {
            let class = py.import("metricbus._errors")?.getattr(class)?;
            // Made here, where the interpreter's end waits for it.
            let error = gate::foreign(py, || class.call1((message.to_string(),)))?;
            Ok(PyErr::from_value(error))
        };
        made().unwrap_or_else(|error| error)
    })
}

/// Turns an error of the bus into its exception.
pub(crate) trait Raise<T> {
    fn or_raise(self) -> PyResult<T>;
}

macro_rules! raises {
    ($($error:ty => $class:literal),* $(,)?) => {$(
        impl<T> Raise<T> for Result<T, $error> {
            fn or_raise(self) -> PyResult<T> {
                self.map_err(|error| raise($class, error))
            }
        }
    )*};
}

raises! {
    metricbus::DeclareError => "DeclareError",
    metricbus::BucketError => "DeclareError",
    metricbus::LabelError => "LabelError",
    metricbus::CounterError => "CounterError",
    metricbus::SelectorError => "SelectorError",
    metricbus::RuleError => "RuleError",
    metricbus::RuleStateError => "RuleStateError",
    metricbus::export::ServeError => "ServeError",
    metricbus::export::PushError => "PushError",
    ExemplarError => "ExemplarError",
}

impl<T> Raise<T> for Result<T, metricbus::SubscribeError> {
    fn or_raise(self) -> PyResult<T> {
        self.map_err(|error| match error {
            // Of a rule that was wrong when somebody subscribed to it.
            metricbus::SubscribeError::Rule(error) => raise("RuleError", error),
            error => raise("SubscribeError", error),
        })
    }
}

impl<T> Raise<T> for Result<T, BackendError> {
    fn or_raise(self) -> PyResult<T> {
        self.map_err(|error| {
            let (kind, backend, why) = match &error {
                BackendError::Unknown { why, .. } => ("unknown", None, Some(why)),
                BackendError::Setting { why, .. } => ("setting", None, Some(why)),
                BackendError::Setup { backend, why } => ("setup", Some(backend), Some(why)),
                BackendError::Refused { backend, why, .. } => ("refused", Some(backend), Some(why)),
                BackendError::Deadline { backend, why, .. } => {
                    ("deadline", Some(backend), Some(why))
                }
                BackendError::Other { backend, why } => ("other", Some(backend), Some(why)),
                // Of a later version.
                _ => ("other", None, None),
            };
            Python::attach(|py| {
                let made = || -> PyResult<PyErr> {
                    let class = py.import("metricbus._errors")?.getattr("BackendError")?;
                    let words = [("backend", backend), ("why", why)].into_py_dict(py)?;
                    words.set_item("kind", kind)?;
                    let error =
                        gate::foreign(py, || class.call((error.to_string(),), Some(&words)))?;
                    Ok(PyErr::from_value(error))
                };
                made().unwrap_or_else(|error| error)
            })
        })
    }
}
