//! The tokio runtime on which awaitables and servers run. One for the process, made when it is first needed; in a forked
//! child another one.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, OnceLock, PoisonError, mpsc},
    task::{Context, Poll},
    time::Duration,
};

use pyo3::{
    exceptions::{PyOSError, PyRuntimeError},
    prelude::*,
    types::{PyDict, PyTuple},
};
use pyo3_async_runtimes::{
    TaskLocals,
    generic::{self, ContextExt, JoinError, Runtime},
};

use crate::{fork::Forked, gate};

/// Enough for input and output; the work of the bus is done elsewhere.
const WORKERS: usize = 2;

/// How often somebody who waits looks whether he was interrupted.
pub(crate) const SIGNALS: Duration = Duration::from_millis(50);

static RUNTIME: OnceLock<Forked<Arc<tokio::runtime::Runtime>>> = OnceLock::new();

fn make() -> PyResult<Arc<tokio::runtime::Runtime>> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .thread_name("metricbus-python")
        .enable_all()
        .build()
        .map(Arc::new)
        .map_err(|error| {
            PyOSError::new_err(format!("no threads for metricbus could be had: {error}"))
        })
}

pub(crate) fn get() -> PyResult<&'static Arc<tokio::runtime::Runtime>> {
    let forked = match RUNTIME.get() {
        Some(forked) => forked,
        None => {
            let made = make()?;
            RUNTIME.get_or_init(|| Forked::new(made))
        }
    };
    forked.get_or(make)
}

/// Waits for a future, and hears signals meanwhile: what a handler raises is the outcome then, and the future is dropped.
pub(crate) fn wait<T: Send + 'static>(
    py: Python<'_>,
    future: impl Future<Output = T> + Send + 'static,
) -> PyResult<T> {
    let (told, hear) = mpsc::channel();
    let task = get()?.spawn(async move {
        let _ = told.send(future.await);
    });
    hear_from(py, hear).inspect_err(|_| task.abort())
}

/// Waits for what takes its time, and hears signals meanwhile: what a handler raises is the outcome then, and what was begun goes on.
pub(crate) fn wait_blocking<T: Send + 'static>(
    py: Python<'_>,
    work: impl FnOnce() -> T + Send + 'static,
) -> PyResult<T> {
    let (told, hear) = mpsc::channel();
    get()?.spawn_blocking(move || {
        let _ = told.send(work());
    });
    hear_from(py, hear)
}

fn hear_from<T: Send>(py: Python<'_>, hear: mpsc::Receiver<T>) -> PyResult<T> {
    let hear = Mutex::new(hear);
    loop {
        let heard = py.detach(|| {
            let hear = hear.lock().unwrap_or_else(PoisonError::into_inner);
            hear.recv_timeout(SIGNALS)
        });
        match heard {
            Ok(outcome) => return Ok(outcome),
            Err(mpsc::RecvTimeoutError::Timeout) => py.check_signals()?,
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                return Err(PyRuntimeError::new_err(
                    "metricbus: what was waited for broke off",
                ));
            }
        }
    }
}

/// A Rust future as something to await, in the event loop that runs. Nobody hears of its end where that loop is closed by
/// then, or the interpreter ends.
pub(crate) fn awaitable<'py, F, T>(py: Python<'py>, future: F) -> PyResult<Bound<'py, PyAny>>
where
    F: Future<Output = PyResult<T>> + Send + 'static,
    T: for<'a> IntoPyObject<'a> + Send + 'static,
{
    // Before anything else: an error here has somebody to hear it.
    get()?;
    let locals = generic::get_current_locals::<Ours>(py)?;
    let home = Home(locals.event_loop(py).unbind());
    let at_home = TaskLocals::new(Bound::new(py, home)?.into_any());
    let locals = at_home.with_context(locals.context(py));
    // Futures of asyncio's loops are made by Python code.
    gate::foreign(py, || {
        generic::future_into_py_with_locals::<Ours, _, T>(py, locals, future)
    })
}

/// The event loop in which something is awaited, for those who bring the result. It may be closed by then, with nobody left
/// to be told: that is no error.
#[pyclass(frozen)]
struct Home(Py<PyAny>);

#[pymethods]
impl Home {
    fn create_future<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.0.bind(py).call_method0("create_future")
    }

    #[pyo3(signature = (*args, **kwargs))]
    fn call_soon_threadsafe(
        &self,
        py: Python<'_>,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<()> {
        let event_loop = self.0.bind(py);
        match event_loop.call_method("call_soon_threadsafe", args, kwargs) {
            Err(error)
                if error.is_instance_of::<PyRuntimeError>(py)
                    && event_loop.call_method0("is_closed")?.is_truthy()? =>
            {
                Ok(())
            }
            other => other.map(drop),
        }
    }
}

/// Takes the interpreter's lock, whenever it is polled; not any more when the interpreter ends.
struct Gated<F>(Pin<Box<F>>);

impl<F: Future> Future for Gated<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        match gate::enter() {
            Some(_inside) => self.0.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }
}

/// Our runtime, as `pyo3-async-runtimes` wants it.
struct Ours;

struct Failed(tokio::task::JoinError);

impl JoinError for Failed {
    fn is_panic(&self) -> bool {
        self.0.is_panic()
    }

    fn into_panic(self) -> Box<dyn std::any::Any + Send + 'static> {
        self.0.into_panic()
    }
}

tokio::task_local! {
    static LOCALS: std::cell::OnceCell<TaskLocals>;
}

impl Runtime for Ours {
    type JoinError = Failed;
    type JoinHandle = Pin<Box<dyn Future<Output = Result<(), Failed>> + Send>>;

    fn spawn<F>(future: F) -> Self::JoinHandle
    where
        F: Future<Output = ()> + Send + 'static,
    {
        match get() {
            Ok(runtime) => {
                let task = runtime.spawn(Gated(Box::pin(future)));
                Box::pin(async move { task.await.map_err(Failed) })
            }
            // `awaitable` has seen that there is one.
            Err(_) => Box::pin(std::future::pending()),
        }
    }

    fn spawn_blocking<F>(f: F) -> Self::JoinHandle
    where
        F: FnOnce() + Send + 'static,
    {
        // It asks for the interpreter's lock, and panics where there is none: so it has it beforehand, or does not run.
        let attached = || {
            gate::attach(|_| f());
        };
        match get() {
            Ok(runtime) => {
                let task = runtime.spawn_blocking(attached);
                Box::pin(async move { task.await.map_err(Failed) })
            }
            Err(_) => Box::pin(std::future::pending()),
        }
    }
}

impl ContextExt for Ours {
    fn scope<F, R>(locals: TaskLocals, future: F) -> Pin<Box<dyn Future<Output = R> + Send>>
    where
        F: Future<Output = R> + Send + 'static,
    {
        let cell = std::cell::OnceCell::new();
        let _ = cell.set(locals);
        Box::pin(LOCALS.scope(cell, future))
    }

    fn get_task_locals() -> Option<TaskLocals> {
        LOCALS
            .try_with(|cell| cell.get().cloned())
            .unwrap_or_default()
    }
}
