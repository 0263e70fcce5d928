//! Pushes to a Prometheus Pushgateway.

use std::{path::PathBuf, sync::Arc};

use metricbus::export::{self, Format, PushError};
use pyo3::{exceptions::PyValueError, prelude::*};

use crate::{
    bus::{Bus, MetricBus},
    convert::{self, OneOrMore},
    error::Raise,
    export::HOOKS_DEADLINE,
    hooks, runtime,
};

/// What sends the metrics of a bus to a Prometheus Pushgateway, for batch jobs that are over before anybody scrapes them.
#[pyclass(frozen, module = "metricbus")]
pub(crate) struct Push(export::Push);

/// What is to be done with the group.
#[derive(Clone, Copy)]
enum What {
    Push,
    Add,
    Delete,
}

async fn run(
    push: export::Push,
    what: What,
    bus: Option<metricbus::MetricBus>,
) -> Result<(), PushError> {
    match (what, bus) {
        (What::Push, Some(bus)) => push.push(&bus).await,
        (What::Add, Some(bus)) => push.add(&bus).await,
        _ => push.delete().await,
    }
}

impl Push {
    /// What is to run before a scrape (`on_collect`, `Gauge.set_function`) runs first, in threads of its own.
    fn bus(py: Python<'_>, bus: &Arc<Bus>) -> PyResult<metricbus::MetricBus> {
        hooks::run_here(py, bus, HOOKS_DEADLINE)?;
        bus.current().cloned()
    }

    fn wait(&self, py: Python<'_>, what: What, bus: Option<metricbus::MetricBus>) -> PyResult<()> {
        let push = self.0.clone();
        // After a Ctrl-C nothing more is sent.
        runtime::wait(py, run(push, what, bus))?.or_raise()
    }

    fn wait_async<'py>(
        &self,
        py: Python<'py>,
        what: What,
        bus: Option<&MetricBus>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let push = self.0.clone();
        let bus = bus.map(|bus| PyResult::Ok((bus.0.clone(), bus.current()?.clone())));
        let bus = bus.transpose()?;
        runtime::awaitable(py, async move {
            if let Some((bus, _)) = &bus {
                // The event loop goes on meanwhile.
                let bus = bus.clone();
                let _ = tokio::task::spawn_blocking(move || hooks::run(&bus, HOOKS_DEADLINE)).await;
            }
            run(push, what, bus.map(|(_, bus)| bus)).await.or_raise()
        })
    }
}

#[pymethods]
impl Push {
    #[new]
    #[pyo3(signature = (url, job, *, grouping=None, basic_auth=None, headers=None, timeout=None, format="text", root_certificates=None, client_certificate=None))]
    #[expect(clippy::too_many_arguments, reason = "keywords in Python")]
    fn new(
        url: String,
        job: String,
        grouping: Option<&Bound<'_, PyAny>>,
        basic_auth: Option<(String, String)>,
        headers: Option<&Bound<'_, PyAny>>,
        timeout: Option<&Bound<'_, PyAny>>,
        format: &str,
        root_certificates: Option<OneOrMore<PathBuf>>,
        client_certificate: Option<(PathBuf, PathBuf)>,
    ) -> PyResult<Push> {
        let format = match format {
            "text" => Format::Text,
            "protobuf" => Format::Protobuf,
            _ => {
                return Err(PyValueError::new_err(format!(
                    "format is {format:?}; \"text\" or \"protobuf\" would be right"
                )));
            }
        };
        let mut push = export::Push::new(url, job).format(format);
        if let Some(grouping) = grouping {
            for (label, value) in convert::pairs(grouping)? {
                push = push.grouping(label, value);
            }
        }
        if let Some((user, password)) = basic_auth {
            push = push.basic_auth(&user, &password);
        }
        if let Some(headers) = headers {
            for (name, value) in convert::pairs(headers)? {
                push = push.header(&name, &value);
            }
        }
        if let Some(timeout) = timeout {
            push = push.timeout(convert::duration("timeout", timeout)?);
        }
        for path in root_certificates.map(Vec::from).unwrap_or_default() {
            push = push.root_certificate(path);
        }
        if let Some((certificate, key)) = client_certificate {
            push = push.client_certificate(certificate, key);
        }
        Ok(Push(push))
    }

    /// Replaces the whole group by the metrics of the bus: what it had before and the bus has not is gone.
    fn push(&self, py: Python<'_>, bus: &MetricBus) -> PyResult<()> {
        self.wait(py, What::Push, Some(Push::bus(py, &bus.0)?))
    }

    /// As `push`, but of what the group had before only metrics of the same names are replaced.
    fn add(&self, py: Python<'_>, bus: &MetricBus) -> PyResult<()> {
        self.wait(py, What::Add, Some(Push::bus(py, &bus.0)?))
    }

    /// Deletes the group. There need not be one. A gateway answers as soon as it has noted the wish, and deletes a moment later.
    fn delete(&self, py: Python<'_>) -> PyResult<()> {
        self.wait(py, What::Delete, None)
    }

    /// `push`, to be awaited.
    fn push_async<'py>(&self, py: Python<'py>, bus: &MetricBus) -> PyResult<Bound<'py, PyAny>> {
        self.wait_async(py, What::Push, Some(bus))
    }

    /// `add`, to be awaited.
    fn add_async<'py>(&self, py: Python<'py>, bus: &MetricBus) -> PyResult<Bound<'py, PyAny>> {
        self.wait_async(py, What::Add, Some(bus))
    }

    /// `delete`, to be awaited.
    fn delete_async<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.wait_async(py, What::Delete, None)
    }

    /// Without what lets it in.
    fn __repr__(&self) -> String {
        format!("{:?}", self.0)
    }
}
