//! Backends: where the metrics of a bus go, besides to whoever reads it.
//!
//! What Python sees as a container is a scope of a bus and a *reporting*: one backend, or several, under that bus. The bus
//! keeps it, so it lives as long as any metric does, and whoever drops his container loses nothing. None of it calls Python:
//! what mutates must not have to wait for the interpreter's lock.

use std::{
    cell::RefCell,
    env,
    ffi::OsString,
    sync::{
        Arc, Condvar, Mutex, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use metricbus::{
    MetricContainer,
    backend::{
        Backend, BackendError, Mirror, Null, Otlp, OtlpOptions, Prometheus, Tee, libnv::Libnv,
    },
    component::{BackendContainer, Backends},
};
use pyo3::{exceptions::PyTypeError, prelude::*, types::PyTuple};

use crate::{
    bus::{Bus, MetricBus, Root, Scope},
    convert,
    error::{Raise, raise},
    export::HOOKS_DEADLINE,
    fork::Forked,
    hooks, otlp, runtime,
};

/// What the last flush of a backend may take that nobody shut down, when its bus goes.
const LAST_FLUSH: Duration = Duration::from_secs(2);
/// How much longer than its deadline a backend is waited for when the interpreter ends.
const GRACE: Duration = Duration::from_millis(500);

const BACKEND: &str = "METRICBUS_BACKEND";
const PREFIX: &str = "METRICBUS_PREFIX";

/// What is to run before a scrape (`on_collect`, `Gauge.set_function`), run before a backend gets the values.
struct Hooks {
    bus: Weak<Bus>,
}

impl Hooks {
    fn new(bus: Weak<Bus>) -> Arc<Hooks> {
        Arc::new(Hooks { bus })
    }

    /// Waits until they are done, but not beyond their deadline or `most`. How long that took.
    fn run(&self, most: Duration) -> Duration {
        match self.bus.upgrade() {
            Some(bus) => hooks::run(&bus, most.min(HOOKS_DEADLINE)),
            None => Duration::ZERO,
        }
    }

    /// With which they run before each collection.
    fn of(self: &Arc<Self>, options: OtlpOptions) -> OtlpOptions {
        let hooks = self.clone();
        options.before_collect(Arc::new(move || {
            hooks.run(HOOKS_DEADLINE);
        }))
    }
}

/// One backend, as it was asked for.
enum Spec {
    Prometheus,
    Null,
    /// `None`: as the environment says.
    Otlp(Option<Box<OtlpOptions>>),
    Libnv {
        service: String,
        prefix: String,
        path: Option<OsString>,
    },
}

impl Spec {
    /// From what `metricbus/backends.py` makes of a backend: its name and its arguments.
    fn of(value: &Bound<'_, PyTuple>) -> PyResult<Spec> {
        let name: String = value.get_item(0)?.extract()?;
        Ok(match &*name {
            "prometheus" => Spec::Prometheus,
            "null" => Spec::Null,
            "otlp" => {
                let options = value.get_item(1)?;
                Spec::Otlp(match options.is_none() {
                    true => None,
                    false => Some(Box::new(otlp::OtlpOptions::of(&options)?)),
                })
            }
            "libnv" => {
                let (_, service, prefix, path): (String, String, String, Option<OsString>) =
                    value.extract()?;
                Spec::Libnv {
                    service,
                    prefix,
                    path,
                }
            }
            _ => return Err(PyTypeError::new_err(format!("{name:?} is no backend"))),
        })
    }

    /// `prefix`: of all names. It is the service's name, too, where there is no better one.
    fn make(&self, prefix: &str, hooks: &Arc<Hooks>) -> Result<Arc<dyn Backend>, BackendError> {
        Ok(match self {
            Spec::Prometheus => Arc::new(Prometheus),
            Spec::Null => Arc::new(Null),
            Spec::Otlp(options) => {
                let options = match options {
                    Some(options) => OtlpOptions::clone(options),
                    None => OtlpOptions::from_env()?,
                };
                let options = options.service_name_or(prefix.trim_end_matches('_'));
                Arc::new(Otlp::new(hooks.of(options)))
            }
            Spec::Libnv {
                service,
                prefix,
                path,
            } => Arc::new(match path {
                Some(path) => Libnv::load(path, service, prefix)?,
                None => Libnv::from_env(service, prefix)?,
            }),
        })
    }
}

/// What a reporting consists of, to be made anew in a forked child.
enum What {
    One(Spec),
    Tee(Vec<Spec>),
    /// What `METRICBUS_BACKEND` and `METRICBUS_PREFIX` said.
    Env {
        backend: String,
        prefix: String,
    },
}

impl What {
    fn has(&self, name: &str, which: impl Fn(&Spec) -> bool) -> bool {
        match self {
            What::One(spec) => which(spec),
            What::Tee(specs) => specs.iter().any(which),
            What::Env { backend, .. } => backend
                .trim()
                .trim_start_matches("tee:")
                .split(',')
                .any(|part| part.trim().split(':').next() == Some(name)),
        }
    }
}

/// Backends under a bus.
pub(crate) struct Reporting {
    prefix: String,
    what: What,
    /// Whether the far end has values of its own, which are read back.
    mirrors: bool,
    /// Whether there is anything to be sent before the end.
    sends: bool,
    /// Shut down.
    ended: AtomicBool,
    bus: Weak<Bus>,
    made: Forked<Made>,
}

struct Made {
    /// Only in a child it can have failed: nothing of it would be there otherwise.
    container: Result<Arc<dyn MetricContainer>, BackendError>,
    hooks: Arc<Hooks>,
    left: Option<Left>,
}

/// Why a child can't report as its parent does.
#[derive(Clone, Copy, PartialEq)]
enum Left {
    /// A library stays with the parent.
    Library,
    /// It was shut down before the fork.
    Ended,
}

/// All that can be asked for in the environment. As the Rust side has it, but for the hooks before an export.
fn backends(hooks: &Arc<Hooks>) -> Backends {
    let hooks = hooks.clone();
    Backends::new().with("otlp", move |choice| {
        if let Some(argument) = choice.argument {
            return Err(BackendError::Setting {
                setting: BACKEND.to_owned(),
                value: format!("otlp:{argument}"),
                why: "otlp takes nothing after its name; \"otlp\" would be right".to_owned(),
            });
        }
        let options = OtlpOptions::from_vars(|name| choice.var(name))?;
        let options = options.service_name_or(choice.prefix.trim_end_matches('_'));
        Ok(Arc::new(Otlp::new(hooks.of(options))))
    })
}

/// What the environment asks for, by the rules of the Rust side. What was said once of backend and prefix holds in children, too.
fn from_env(
    bus: &metricbus::MetricBus,
    said: Option<(&str, &str)>,
    backends: &Backends,
) -> Result<(Arc<dyn MetricContainer>, String, String), BackendError> {
    let wrong = RefCell::new(None);
    let var = |name: &str| match (name, said) {
        (BACKEND, Some((backend, _))) => Some(backend.to_owned()),
        (PREFIX, Some((_, prefix))) => Some(prefix.to_owned()),
        _ => match env::var(name) {
            Ok(value) => Some(value),
            Err(env::VarError::NotPresent) => None,
            Err(env::VarError::NotUnicode(value)) => {
                *wrong.borrow_mut() = Some(BackendError::Setting {
                    setting: name.to_owned(),
                    value: value.to_string_lossy().into_owned(),
                    why: "it is not UTF-8".to_owned(),
                });
                None
            }
        },
    };
    // Before anything is set up.
    let (backend, prefix) = (var(BACKEND), var(PREFIX));
    if let Some(error) = wrong.borrow_mut().take() {
        return Err(error);
    }
    let base = backends.on_bus(bus, var);
    if let Some(error) = wrong.into_inner() {
        if let Ok(base) = base {
            let _ = base.container.shutdown(Duration::ZERO);
        }
        return Err(error);
    }
    Ok((
        base?.container,
        backend.unwrap_or_default(),
        prefix.unwrap_or_default(),
    ))
}

impl Reporting {
    fn new(
        bus: &metricbus::MetricBus,
        home: Weak<Bus>,
        prefix: &str,
        mut specs: Vec<Spec>,
        tee: bool,
    ) -> Result<Reporting, BackendError> {
        let what = match (tee, specs.len()) {
            (false, 1) => What::One(specs.remove(0)),
            _ => What::Tee(specs),
        };
        let hooks = Hooks::new(home);
        let container = assemble(bus, prefix, &what, |spec| spec.make(prefix, &hooks))?;
        Ok(Reporting::of(prefix.to_owned(), what, container, hooks))
    }

    fn from_env(bus: &metricbus::MetricBus, home: Weak<Bus>) -> Result<Reporting, BackendError> {
        let hooks = Hooks::new(home);
        let (container, backend, prefix) = from_env(bus, None, &backends(&hooks))?;
        let shown = container.scope().map(|scope| scope.prefix().to_owned());
        let what = What::Env { backend, prefix };
        Ok(Reporting::of(
            shown.unwrap_or_default(),
            what,
            container,
            hooks,
        ))
    }

    fn of(
        prefix: String,
        what: What,
        container: Arc<dyn MetricContainer>,
        hooks: Arc<Hooks>,
    ) -> Reporting {
        let mirrors = what.has("libnv", |spec| matches!(spec, Spec::Libnv { .. }));
        let sends = mirrors || what.has("otlp", |spec| matches!(spec, Spec::Otlp(_)));
        Reporting {
            prefix,
            what,
            mirrors,
            sends,
            ended: AtomicBool::new(false),
            bus: hooks.bus.clone(),
            made: Forked::new(Made {
                container: Ok(container),
                hooks,
                left: None,
            }),
        }
    }

    /// Of this process. `bus` is its bus, too.
    fn here(self: &Arc<Self>, bus: &metricbus::MetricBus) -> &Made {
        let mut fresh = false;
        let made = self.made.get_or(|| {
            fresh = true;
            Ok::<_, std::convert::Infallible>(self.again(bus))
        });
        if fresh && self.sends {
            live(self);
        }
        match made {
            Ok(made) => made,
            Err(never) => match never {},
        }
    }

    /// In a forked child: an exporter is started again, with the same options. A library is not: its locks may be held for ever
    /// by threads that are not in this process.
    #[cold]
    fn again(&self, bus: &metricbus::MetricBus) -> Made {
        let hooks = Hooks::new(self.bus.clone());
        if self.ended.load(Ordering::SeqCst) {
            // It stays so.
            let container = BackendContainer::with_dyn(bus, &self.prefix, Arc::new(Null));
            return Made {
                container: container.map(|container| Arc::new(container) as _),
                hooks,
                left: self.sends.then_some(Left::Ended),
            };
        }
        let container = match &self.what {
            What::Env { backend, prefix } => {
                let backends = backends(&hooks).with("libnv", |_| Ok(Arc::new(Null)));
                from_env(bus, Some((backend, prefix)), &backends).map(|(container, ..)| container)
            }
            what => assemble(bus, &self.prefix, what, |spec| match spec {
                Spec::Libnv { .. } => Ok(Arc::new(Null)),
                spec => spec.make(&self.prefix, &hooks),
            }),
        };
        let left = self.mirrors.then_some(Left::Library);
        if left.is_some() {
            tracing::warn!(
                "metricbus: this process was forked from one in which a library counts; metrics are counted on the bus here, \
                 but not in the library; make a container of its own after the fork"
            );
        }
        if let Err(error) = &container {
            tracing::error!(
                "metricbus: after a fork, {error}; metrics of this process are not reported there"
            );
        }
        Made {
            container,
            hooks,
            left,
        }
    }

    /// The far end's side of a series. Its declaration may take what the far end takes.
    pub(crate) fn mirror(
        self: &Arc<Self>,
        bus: &metricbus::MetricBus,
        series: &metricbus::Series,
    ) -> PyResult<Option<Arc<dyn Mirror>>> {
        match &self.here(bus).container {
            Ok(container) => Python::attach(|py| py.detach(|| container.mirror(series))).or_raise(),
            Err(_) => Ok(None),
        }
    }

    /// Marks it as shut down, and gives what is to be done so.
    fn end(&self) -> Option<Settling> {
        let settling = self.settling(self.made.here()?, true).ok()?;
        (!self.ended.swap(true, Ordering::SeqCst)).then_some(settling)
    }

    fn settling(&self, made: &Made, last: bool) -> Result<Settling, BackendError> {
        Ok(Settling {
            container: made.container.clone()?,
            // An exporter runs them itself.
            hooks: self.mirrors.then(|| made.hooks.clone()),
            last,
            // To shut it down again is nothing, there as here.
            left: made.left.filter(|left| !last || *left != Left::Ended),
        })
    }

    pub(crate) fn is_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    pub(crate) fn renew(self: &Arc<Self>, bus: &metricbus::MetricBus) {
        self.here(bus);
    }
}

fn assemble(
    bus: &metricbus::MetricBus,
    prefix: &str,
    what: &What,
    make: impl Fn(&Spec) -> Result<Arc<dyn Backend>, BackendError>,
) -> Result<Arc<dyn MetricContainer>, BackendError> {
    let backend = match what {
        What::One(spec) => make(spec)?,
        What::Tee(specs) => {
            let backends = specs.iter().map(make).collect::<Result<Vec<_>, _>>()?;
            Arc::new(Tee::new(backends))
        }
        What::Env { .. } => Arc::new(Null),
    };
    Ok(Arc::new(BackendContainer::with_dyn(bus, prefix, backend)?))
}

/// Those that are to be shut down when the interpreter ends, and those that are being, because their bus has gone.
#[derive(Default)]
struct Live {
    all: Mutex<Vec<Weak<Reporting>>>,
    ending: Mutex<usize>,
    ended: Condvar,
}

fn lives() -> &'static Live {
    static LIVE: OnceLock<Forked<Live>> = OnceLock::new();
    let forked = LIVE.get_or_init(|| Forked::new(Live::default()));
    match forked.get_or(|| Ok::<_, std::convert::Infallible>(Live::default())) {
        Ok(live) => live,
        Err(never) => match never {},
    }
}

fn live(reporting: &Arc<Reporting>) {
    let mut all = lives().all.lock().unwrap_or_else(PoisonError::into_inner);
    all.retain(|reporting| reporting.strong_count() > 0);
    all.push(Arc::downgrade(reporting));
}

impl Drop for Reporting {
    fn drop(&mut self) {
        if !self.sends {
            return;
        }
        // Its bus has gone, but what was counted last has not been sent. That takes its time, and whoever lets go does not wait.
        let Some(settling) = self.end() else { return };
        let live = lives();
        *live.ending.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        let done = move || {
            *live.ending.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
            live.ended.notify_all();
        };
        let thread = std::thread::Builder::new().name("metricbus-flush".into());
        let spawned = thread.spawn(move || {
            if let Err(error) = settling.run(LAST_FLUSH).outcome {
                tracing::warn!("metricbus: {error}");
            }
            done();
        });
        if spawned.is_err() {
            tracing::error!("metricbus: no thread could be had for a last flush");
            done();
        }
    }
}

/// Called when the interpreter begins to end: all backends that nobody shut down are, within `deadline` seconds together. What
/// did not arrive is said in the texts that it gives.
#[pyfunction]
pub(crate) fn end_backends(py: Python<'_>, deadline: f64) -> Vec<String> {
    let deadline = Duration::try_from_secs_f64(deadline).unwrap_or(LAST_FLUSH);
    py.detach(|| {
        let end = Instant::now() + deadline + GRACE;
        let left = || end.saturating_duration_since(Instant::now());
        let live = lives();
        let all = std::mem::take(&mut *live.all.lock().unwrap_or_else(PoisonError::into_inner));
        let (told, hear) = mpsc::channel();
        let mut waiting = 0;
        for settling in all.iter().filter_map(Weak::upgrade).filter_map(|r| r.end()) {
            let told = told.clone();
            let thread = std::thread::Builder::new().name("metricbus-flush".into());
            let ending = move || {
                let _ = told.send(settling.run(deadline).outcome);
            };
            waiting += usize::from(thread.spawn(ending).is_ok());
        }
        let mut errors = Vec::new();
        while waiting > 0 {
            match hear.recv_timeout(left()) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => errors.push(error.to_string()),
                Err(_) => {
                    errors.push(format!("not every backend was done within {deadline:?}"));
                    break;
                }
            }
            waiting -= 1;
        }
        let mut ending = live.ending.lock().unwrap_or_else(PoisonError::into_inner);
        while *ending > 0 && !left().is_zero() {
            let waited = live.ended.wait_timeout(ending, left());
            ending = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        errors
    })
}

/// Backends under a bus, and the scope on which a container makes its metrics.
#[pyclass(frozen, weakref, module = "metricbus._metricbus")]
pub(crate) struct Reporter {
    bus: Arc<Bus>,
    reporting: Arc<Reporting>,
}

impl Reporter {
    fn of(
        py: Python<'_>,
        bus: &MetricBus,
        make: impl FnOnce(&metricbus::MetricBus, Weak<Bus>) -> Result<Reporting, BackendError> + Send,
    ) -> PyResult<Reporter> {
        let (current, home) = (bus.current()?, Arc::downgrade(&bus.0));
        let reporting = Arc::new(py.detach(|| make(current, home)).or_raise()?);
        if reporting.sends {
            live(&reporting);
            bus.0.report(&reporting);
        }
        Ok(Reporter {
            bus: bus.0.clone(),
            reporting,
        })
    }

    /// What is to be flushed, in this process.
    fn settling(&self, last: bool) -> PyResult<Settling> {
        let made = self.reporting.here(self.bus.current()?);
        let settling = self.reporting.settling(made, last).or_raise()?;
        if last {
            self.reporting.ended.store(true, Ordering::SeqCst);
        }
        Ok(settling)
    }
}

/// A flush, or the last one.
struct Settling {
    container: Arc<dyn MetricContainer>,
    /// To be run before.
    hooks: Option<Arc<Hooks>>,
    last: bool,
    left: Option<Left>,
}

impl Settling {
    fn run(self, deadline: Duration) -> Outcome {
        // What is said of a deadline names the one that was given, unless hooks took some of it.
        let took = match &self.hooks {
            Some(hooks) => hooks.run(deadline),
            None => Duration::ZERO,
        };
        let deadline = deadline.saturating_sub(took);
        let outcome = match self.last {
            true => self.container.shutdown(deadline),
            false => self.container.flush(deadline),
        };
        Outcome {
            outcome,
            left: self.left,
        }
    }
}

struct Outcome {
    outcome: Result<(), BackendError>,
    left: Option<Left>,
}

impl Outcome {
    fn or_raise(self) -> PyResult<()> {
        self.outcome.or_raise()?;
        let why = match self.left {
            None => return Ok(()),
            Some(Left::Library) => {
                "the library of this container is of the process from which this one was forked; make a container here"
            }
            Some(Left::Ended) => {
                "this container was shut down before this process was forked; make a container here"
            }
        };
        Err(raise("ForkedError", why))
    }
}

#[pymethods]
impl Reporter {
    /// `backends`: names with their arguments. `tee`: whether several of them are meant, were it only one.
    #[new]
    fn new(
        py: Python<'_>,
        bus: &MetricBus,
        prefix: &str,
        backends: Vec<Bound<'_, PyTuple>>,
        tee: bool,
    ) -> PyResult<Reporter> {
        let specs = backends.iter().map(Spec::of).collect::<PyResult<_>>()?;
        Reporter::of(py, bus, |bus, home| {
            Reporting::new(bus, home, prefix, specs, tee)
        })
    }

    /// What `METRICBUS_BACKEND` and its siblings ask for.
    #[staticmethod]
    fn from_env(py: Python<'_>, bus: &MetricBus) -> PyResult<Reporter> {
        Reporter::of(py, bus, Reporting::from_env)
    }

    /// Where the container's metrics are made. Their values are read from the far end, if it has its own.
    #[getter]
    fn scope(&self) -> Scope {
        let prefix = &self.reporting.prefix;
        let between = match prefix.is_empty() || prefix.ends_with('_') {
            true => "",
            false => "_",
        };
        let reporting = self.reporting.mirrors.then(|| self.reporting.clone());
        Scope(Root::reported(
            self.bus.clone(),
            format!("{prefix}{between}"),
            reporting,
        ))
    }

    /// Has what was counted until now at the far end when it returns; other threads run meanwhile.
    fn flush(&self, py: Python<'_>, deadline: &Bound<'_, PyAny>) -> PyResult<()> {
        self.wait(py, deadline, false)
    }

    /// The last flush.
    fn shutdown(&self, py: Python<'_>, deadline: &Bound<'_, PyAny>) -> PyResult<()> {
        self.wait(py, deadline, true)
    }

    /// `flush`, to be awaited.
    fn flush_async<'py>(
        &self,
        py: Python<'py>,
        deadline: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.wait_async(py, deadline, false)
    }

    /// `shutdown`, to be awaited.
    fn shutdown_async<'py>(
        &self,
        py: Python<'py>,
        deadline: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.wait_async(py, deadline, true)
    }
}

impl Reporter {
    fn wait(&self, py: Python<'_>, deadline: &Bound<'_, PyAny>, last: bool) -> PyResult<()> {
        let deadline = convert::duration("deadline", deadline)?;
        let settling = self.settling(last)?;
        // What was begun goes on after a Ctrl-C.
        runtime::wait_blocking(py, move || settling.run(deadline))?.or_raise()
    }

    fn wait_async<'py>(
        &self,
        py: Python<'py>,
        deadline: &Bound<'py, PyAny>,
        last: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        let deadline = convert::duration("deadline", deadline)?;
        let settling = self.settling(last)?;
        let runtime = runtime::get()?.clone();
        runtime::awaitable(py, async move {
            let done = runtime.spawn_blocking(move || settling.run(deadline)).await;
            match done {
                Ok(outcome) => outcome.or_raise(),
                Err(error) => Err(BackendError::other("metricbus", error)).or_raise(),
            }
        })
    }
}
