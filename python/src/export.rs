//! `/metrics`, `/rules`, `/health` and `/live`: as answers for any Python web server, and as a server of their own.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use metricbus::export::{self, BackgroundServer};
use pyo3::{
    exceptions::PyValueError,
    prelude::*,
    types::{PyBool, PyBytes, PyInt},
};
use tower_service::Service;

use crate::{
    bus::{Bus, MetricBus},
    convert,
    error::{Raise, raise},
    fork::{Counted, Forked, Kind},
    gate, hooks, runtime,
};

/// How long a scrape waits for hooks where nothing else is said.
pub(crate) const HOOKS_DEADLINE: Duration = Duration::from_secs(1);

/// How much later the exporter itself would give up.
const GRACE: Duration = Duration::from_millis(500);

/// What is exposed, and how.
#[pyclass(frozen, weakref, module = "metricbus")]
pub(crate) struct Exporter {
    plan: Plan,
    made: Forked<export::Exporter>,
}

struct Plan {
    bus: Arc<Bus>,
    process_metrics: bool,
    created_lines: bool,
    native_buckets_max: Option<usize>,
    hooks_deadline: Duration,
    merged: Vec<Py<PyAny>>,
}

impl Plan {
    /// What there is without options.
    fn of(bus: &MetricBus) -> Plan {
        Plan {
            bus: bus.0.clone(),
            process_metrics: true,
            created_lines: false,
            native_buckets_max: None,
            hooks_deadline: HOOKS_DEADLINE,
            merged: Vec::new(),
        }
    }

    fn build(&self) -> PyResult<export::Exporter> {
        let weak = Arc::downgrade(&self.bus);
        let deadline = self.hooks_deadline;
        let mut builder = export::Exporter::builder(self.bus.current()?)
            .process_metrics(self.process_metrics)
            .created_lines(self.created_lines)
            // Each hook has the deadline; all of them together take no longer.
            .collect_hook("python", deadline.saturating_add(GRACE), move || {
                if let Some(bus) = weak.upgrade() {
                    hooks::run(&bus, deadline);
                }
            });
        if let Some(max) = self.native_buckets_max {
            builder = builder.native_buckets_max(max);
        }
        for registry in &self.merged {
            builder = builder.merge(crate::bridge::registry(registry)?);
        }
        Ok(builder.build())
    }
}

impl Exporter {
    fn of(plan: Plan) -> PyResult<Exporter> {
        let made = Forked::new(plan.build()?);
        Ok(Exporter { plan, made })
    }

    fn current(&self) -> PyResult<&export::Exporter> {
        self.made.get_or(|| self.plan.build())
    }
}

/// Where to serve: text, or the number of a port of this machine alone.
struct Address(String);

impl Default for Address {
    fn default() -> Address {
        Address("127.0.0.1:9464".to_owned())
    }
}

impl FromPyObject<'_, '_> for Address {
    type Error = PyErr;

    fn extract(given: Borrowed<'_, '_, PyAny>) -> PyResult<Address> {
        if given.is_instance_of::<PyInt>() && !given.is_instance_of::<PyBool>() {
            return Ok(Address(given.str()?.to_str()?.to_owned()));
        }
        given.extract().map(Address)
    }
}

type Answer = (u16, Vec<(String, String)>, Py<PyBytes>);

fn request(
    path: &str,
    method: &str,
    accept: Option<&str>,
    accept_encoding: Option<&str>,
) -> PyResult<Request<Full<Bytes>>> {
    let mut request = Request::builder().method(method).uri(path);
    if let Some(accept) = accept {
        request = request.header(http::header::ACCEPT, accept);
    }
    if let Some(encoding) = accept_encoding {
        request = request.header(http::header::ACCEPT_ENCODING, encoding);
    }
    request
        .body(Full::default())
        .map_err(|error| PyValueError::new_err(format!("{method} {path}: {error}")))
}

/// Status, headers and body.
async fn ask(
    mut exporter: export::Exporter,
    request: Request<Full<Bytes>>,
) -> (u16, Vec<(String, String)>, Vec<u8>) {
    let response = match exporter.call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    let (head, body) = response.into_parts();
    let body = match body.collect().await {
        Ok(body) => body.to_bytes(),
        Err(never) => match never {},
    };
    let headers = head.headers.iter().map(|(name, value)| {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        (name.as_str().to_owned(), value)
    });
    (head.status.as_u16(), headers.collect(), body.to_vec())
}

#[pymethods]
impl Exporter {
    #[new]
    #[pyo3(signature = (bus, *, process_metrics=true, hooks_deadline=None, merge=None, created_lines=false, native_buckets_max=None))]
    fn new(
        bus: &MetricBus,
        process_metrics: bool,
        hooks_deadline: Option<&Bound<'_, PyAny>>,
        merge: Option<&Bound<'_, PyAny>>,
        created_lines: bool,
        native_buckets_max: Option<usize>,
    ) -> PyResult<Exporter> {
        let merge = match merge {
            None => Vec::new(),
            Some(registries) => gate::foreign(registries.py(), || {
                let registries = registries.try_iter()?;
                registries
                    .map(|registry| Ok(registry?.unbind()))
                    .collect::<PyResult<_>>()
            })?,
        };
        Exporter::of(Plan {
            process_metrics,
            created_lines,
            native_buckets_max,
            hooks_deadline: match hooks_deadline {
                None => HOOKS_DEADLINE,
                Some(deadline) => convert::duration("hooks_deadline", deadline)?,
            },
            merged: merge,
            ..Plan::of(bus)
        })
    }

    /// The answer to a request: status, headers and body. Takes as long as a scrape takes; other threads run meanwhile.
    #[pyo3(signature = (path="/metrics", *, method="GET", accept=None, accept_encoding=None))]
    fn answer(
        &self,
        py: Python<'_>,
        path: &str,
        method: &str,
        accept: Option<&str>,
        accept_encoding: Option<&str>,
    ) -> PyResult<Answer> {
        let request = request(path, method, accept, accept_encoding)?;
        let exporter = self.current()?.clone();
        let (status, headers, body) = runtime::wait(py, ask(exporter, request))?;
        Ok((status, headers, PyBytes::new(py, &body).unbind()))
    }

    /// `answer`, to be awaited: the event loop goes on meanwhile.
    #[pyo3(signature = (path="/metrics", *, method="GET", accept=None, accept_encoding=None))]
    fn answer_async<'py>(
        &self,
        py: Python<'py>,
        path: &str,
        method: &str,
        accept: Option<&str>,
        accept_encoding: Option<&str>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let request = request(path, method, accept, accept_encoding)?;
        let exporter = self.current()?.clone();
        runtime::awaitable(py, async move { Ok(ask(exporter, request).await) })
    }

    /// Serves in the background, from threads that never take the interpreter's lock but for hooks.
    /// `metrics_on_every_path`: `/` and all paths that lead nowhere lead to the metrics, as `prometheus_client` has it.
    #[pyo3(signature = (address=Address::default(), *, metrics_on_every_path=false))]
    fn serve(
        &self,
        py: Python<'_>,
        address: Address,
        metrics_on_every_path: bool,
    ) -> PyResult<Server> {
        let mut exporter = self.current()?.clone();
        if metrics_on_every_path {
            exporter = exporter.metrics_on_every_path();
        }
        // A name may have to be looked up.
        let serve = move || exporter.serve_in_background(&address.0);
        let server = runtime::wait_blocking(py, serve)?.or_raise()?;
        Ok(Server {
            address: server.local_addr().to_string(),
            port: server.local_addr().port(),
            running: Forked::new(Mutex::new(Some((server, Counted::new(Kind::Server))))),
        })
    }
}

/// A server for `/metrics`, which runs until it is closed or forgotten about.
#[pyclass(frozen, weakref, module = "metricbus")]
pub(crate) struct Server {
    /// Host and port where it listens.
    #[pyo3(get)]
    address: String,
    /// The port where it listens.
    #[pyo3(get)]
    port: u16,
    running: Forked<Mutex<Option<(BackgroundServer, Counted)>>>,
}

#[pymethods]
impl Server {
    /// Where `/metrics` is.
    #[getter]
    fn url(&self) -> String {
        format!("http://{}/metrics", self.address)
    }

    /// Whether it has been closed, or belongs to the process from which this one was forked.
    #[getter]
    fn is_closed(&self) -> bool {
        match self.running.here() {
            Some(running) => running
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .is_none(),
            None => true,
        }
    }

    /// Stops serving; scrapes on their way are answered first.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let Some(running) = self.running.here() else {
            return Ok(());
        };
        let server = running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        match server {
            Some((server, _counted)) => runtime::wait_blocking(py, move || server.shutdown()),
            None => Ok(()),
        }
    }

    /// It runs as long as the process, whatever becomes of this object.
    fn forget(&self) -> PyResult<()> {
        let running = self.running.here().ok_or_else(|| {
            raise(
                "ForkedError",
                "this server is of the process from which this one was forked; serve again here",
            )
        })?;
        let server = running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some((server, counted)) = server {
            server.forget();
            // It lives on.
            std::mem::forget(counted);
        }
        Ok(())
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    /// Serves until the task that awaits it is cancelled, and then closes.
    fn __await__(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        let module = slf.py().import("metricbus.exposition")?;
        let serving = module.call_method1("until_cancelled", (slf,))?;
        Ok(serving.call_method0("__await__")?.unbind())
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(
        &self,
        py: Python<'_>,
        _exception: &Bound<'_, pyo3::types::PyTuple>,
    ) -> PyResult<()> {
        self.close(py)
    }

    fn __repr__(&self) -> String {
        let state = if self.is_closed() { "closed" } else { "open" };
        format!("<Server {} {state}>", self.url())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The server's end waits for answers on their way, which may wait for a hook, which needs the interpreter.
        if let Some(running) = self.running.here() {
            let server = running
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            if let Some(server) = server {
                if !gate::is_closed() {
                    tracing::warn!(
                        "metricbus: nobody keeps the server at {}, so it stops; keep it, close it, or let it run as long as the \
                         process with forget()",
                        self.address
                    );
                }
                std::thread::spawn(move || drop(server));
            }
        }
    }
}

#[pymethods]
impl MetricBus {
    /// Serves `/metrics`, `/rules`, `/health` and `/live` in the background, until the server is closed or nothing refers to it.
    /// `await bus.serve(…)` serves until it is cancelled. `Exporter(bus, …).serve(…)` takes more options.
    #[pyo3(signature = (address=Address::default()))]
    fn serve(&self, py: Python<'_>, address: Address) -> PyResult<Server> {
        Exporter::of(Plan::of(self))?.serve(py, address, false)
    }
}
