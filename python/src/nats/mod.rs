//! Across pods, over NATS: the sending side (`forwarder.rs`) and the receiving one (`fleet.rs`). This file owns what both have
//! in common: how answers and errors of the network become Python's.
//!
//! All tasks run on the runtime of `runtime.rs`, and take the interpreter's lock only to hand over what was awaited.

mod fleet;
mod forwarder;
mod options;
mod rules;
mod source;
mod status;
mod window;

use std::{future::Future, time::SystemTime};

use metricbus::nats;
use pyo3::prelude::*;

pub(crate) use self::{
    fleet::{Fleet, FleetStatus},
    forwarder::{AlertForwarding, Forwarding, NatsForwarder},
    options::NatsOptions,
    rules::{RuleTarget, SentRule, SourceRule, SourceRules},
    source::{SourceEvent, SourceStatus},
    status::{
        ConnectionStatus, ForwarderStatus, FramesStatus, OutboxStatus, RefusedRule, RulesInStatus,
    },
    window::{FleetWindow, SeriesWindow, SourceWindow},
};
use crate::{
    convert,
    error::{Raise, raise},
    gate, runtime,
};

impl<T> Raise<T> for Result<T, nats::NatsError> {
    fn or_raise(self) -> PyResult<T> {
        self.map_err(|error| match error {
            nats::NatsError::Ended => raise("ClosedError", error),
            error => raise("NatsError", error),
        })
    }
}

impl<T> Raise<T> for Result<T, nats::ForwardError> {
    fn or_raise(self) -> PyResult<T> {
        use nats::ForwardError;
        self.map_err(|error| match error {
            ForwardError::Selector(error) => raise("SelectorError", error),
            ForwardError::Deadband(error) => raise("SubscribeError", error),
            error @ ForwardError::Ended { .. } => raise("ClosedError", error),
            error => raise("NatsError", error),
        })
    }
}

/// Something to await: the future runs on our runtime, and what comes of it becomes an object, or an exception, where the
/// interpreter's lock is held anyhow.
fn later<'py, T>(
    py: Python<'py>,
    future: impl Future<Output = T> + Send + 'static,
    then: impl FnOnce(Python<'_>, T) -> PyResult<Py<PyAny>> + Send + 'static,
) -> PyResult<Bound<'py, PyAny>>
where
    T: Send + 'static,
{
    runtime::awaitable(py, async move {
        let what = future.await;
        Ok(Late(Box::new(move |py| then(py, what))))
    })
}

type Make = dyn FnOnce(Python<'_>) -> PyResult<Py<PyAny>> + Send;

/// What is not an object yet.
struct Late(Box<Make>);

impl<'py> IntoPyObject<'py> for Late {
    type Target = PyAny;
    type Output = Bound<'py, PyAny>;
    type Error = PyErr;

    fn into_pyobject(self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        (self.0)(py).map(|made| made.into_bound(py))
    }
}

/// Something to await that is there already.
fn at_once<'py>(py: Python<'py>, value: impl IntoPyObject<'py>) -> PyResult<Bound<'py, PyAny>> {
    let running = py.import("asyncio")?.call_method0("get_running_loop")?;
    gate::foreign(py, || {
        let future = running.call_method0("create_future")?;
        future.call_method1("set_result", (value,))?;
        Ok(future)
    })
}

/// A date of a status.
#[derive(Clone, Copy)]
pub(crate) struct Date(pub(crate) SystemTime);

impl<'py> IntoPyObject<'py> for Date {
    type Target = PyAny;
    type Output = Bound<'py, PyAny>;
    type Error = PyErr;

    fn into_pyobject(self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        convert::date(py, self.0)
    }
}
