//! Hooks: Python code that a scrape, a push or an export runs first (`set_function`, `on_collect`, registries that are merged).
//!
//! Each is a job of one pool of Python threads, so that they run side by side where they block. Whoever wants them run waits for all of
//! them, but not beyond a deadline. One that is late is counted and logged once, and as long as it is at work it is neither begun
//! again nor waited for. What it raises is logged and counted. It costs nobody else anything.

use std::{
    collections::HashMap,
    sync::{
        Arc, Condvar, Mutex, OnceLock, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use pyo3::prelude::*;

use crate::{
    bus::Bus,
    deliver::lock,
    fork::Forked,
    gate, runtime,
    thread_pool::{Limits, Pool, ThreadPool},
};

/// How long a hook may keep others from beginning.
const STALL: Duration = Duration::from_millis(10);

/// The hooks of this process.
struct All {
    /// There is at most one run of each hook, so there are never more threads than hooks, and one.
    pool: Arc<Pool>,
    hooks: Mutex<HashMap<u64, Weak<Hook>>>,
    started: Mutex<bool>,
}

fn all() -> &'static All {
    static ALL: OnceLock<Forked<All>> = OnceLock::new();
    let make = || All {
        pool: Pool::new(Limits {
            running_max: usize::MAX,
            stall: STALL,
            patience: Duration::MAX,
        }),
        hooks: Mutex::default(),
        started: Mutex::new(false),
    };
    let forked = ALL.get_or_init(|| Forked::new(make()));
    match forked.get_or(|| Ok::<_, std::convert::Infallible>(make())) {
        Ok(all) => all,
        Err(never) => match never {},
    }
}

/// Something to call before a scrape.
pub(crate) struct Hook {
    id: u64,
    /// What the log calls it, and its bus knows it by.
    name: String,
    bus: Weak<Bus>,
    function: Py<PyAny>,
    state: Forked<Mutex<State>>,
}

#[derive(Default)]
struct State {
    is_running: bool,
    /// It was late once in this run.
    is_late: bool,
    /// Who waits for the run that goes on.
    waiting: Vec<Arc<Round>>,
}

/// All hooks of a bus, run once.
struct Round {
    left: Mutex<usize>,
    done: Condvar,
}

impl Hook {
    pub(crate) fn new(bus: Weak<Bus>, name: String, function: Py<PyAny>) -> Arc<Hook> {
        static IDS: AtomicU64 = AtomicU64::new(1);
        Arc::new(Hook {
            id: IDS.fetch_add(1, Relaxed),
            name,
            bus,
            function,
            state: Forked::new(Mutex::default()),
        })
    }

    fn state(&self) -> &Mutex<State> {
        match self
            .state
            .get_or(|| Ok::<_, std::convert::Infallible>(Mutex::default()))
        {
            Ok(state) => state,
            Err(never) => match never {},
        }
    }

    /// Has it run, or joins the run that goes on. Whether it is worth waiting for.
    fn begin(self: &Arc<Self>, round: &Arc<Round>) -> bool {
        let begins = {
            let mut state = lock(self.state());
            if state.is_running && state.is_late {
                return false;
            }
            state.waiting.push(round.clone());
            !std::mem::replace(&mut state.is_running, true)
        };
        if begins {
            lock(&all().hooks).insert(self.id, Arc::downgrade(self));
            all().pool.push(self.id);
        }
        true
    }

    /// Counts something of it on its bus.
    fn count(&self, count: impl FnOnce(&metricbus::MetricBus)) {
        let bus = self.bus.upgrade();
        if let Some(Ok(bus)) = bus.as_ref().map(|bus| bus.current()) {
            count(bus);
        }
    }

    fn end(&self) {
        lock(&all().hooks).remove(&self.id);
        let waiting = {
            let mut state = lock(self.state());
            (state.is_running, state.is_late) = (false, false);
            std::mem::take(&mut state.waiting)
        };
        for round in waiting {
            *lock(&round.left) -= 1;
            round.done.notify_all();
        }
    }
}

/// Hooks that have begun.
pub(crate) struct Begun {
    hooks: Vec<Arc<Hook>>,
    round: Arc<Round>,
    began: Instant,
}

impl Begun {
    /// Has them run.
    pub(crate) fn new(hooks: Vec<Arc<Hook>>) -> Begun {
        if !hooks.is_empty() {
            start();
        }
        let round = Arc::new(Round {
            // One more, so that it is not over before all have begun.
            left: Mutex::new(hooks.len() + 1),
            done: Condvar::new(),
        });
        let hooks: Vec<_> = hooks
            .into_iter()
            .filter(|hook| {
                let waits = hook.begin(&round);
                *lock(&round.left) -= usize::from(!waits);
                waits
            })
            .collect();
        *lock(&round.left) -= 1;
        Begun {
            hooks,
            round,
            began: Instant::now(),
        }
    }

    /// Whether all are done, after at most that time.
    pub(crate) fn wait(&self, most: Duration) -> bool {
        let left = lock(&self.round.left);
        let waited = self
            .round
            .done
            .wait_timeout_while(left, most, |left| *left > 0);
        *waited.unwrap_or_else(std::sync::PoisonError::into_inner).0 == 0
    }

    /// Those which are still at work are late.
    fn late(&self) {
        for hook in &self.hooks {
            let mut state = lock(hook.state());
            let waits = |round: &Arc<Round>| Arc::ptr_eq(round, &self.round);
            let is_ours = state.waiting.iter().any(waits);
            if !is_ours || std::mem::replace(&mut state.is_late, true) {
                continue;
            }
            drop(state);
            hook.count(metricbus::MetricBus::hook_late);
            tracing::warn!(
                hook = hook.name,
                "metricbus: a hook was not done after {:.1?}; it is not begun again, nor waited for, until it ends",
                self.began.elapsed()
            );
        }
    }
}

/// Runs the hooks of a bus, in a thread that is not Python's, or has let go of the interpreter's lock. How long that took.
pub(crate) fn run(bus: &Bus, deadline: Duration) -> Duration {
    if !bus.has_hooks() {
        return Duration::ZERO;
    }
    // None while the interpreter ends: then there is nobody to run them.
    let hooks = gate::attach(|py| bus.hooks(py)).unwrap_or_default();
    let begun = Begun::new(hooks);
    if !begun.wait(deadline) {
        begun.late();
    }
    begun.began.elapsed()
}

/// Runs the hooks of a bus, in a thread of Python's, which hears signals meanwhile.
pub(crate) fn run_here(py: Python<'_>, bus: &Bus, deadline: Duration) -> PyResult<()> {
    if !bus.has_hooks() {
        return Ok(());
    }
    let hooks = bus.hooks(py);
    let begun = py.detach(|| Begun::new(hooks));
    let end = begun.began + deadline;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if py.detach(|| begun.wait(left.min(runtime::SIGNALS))) {
            return Ok(());
        }
        py.check_signals()?;
        if left.is_zero() {
            py.detach(|| begun.late());
            return Ok(());
        }
    }
}

/// Makes sure that there is a thread for them.
pub(crate) fn start() {
    let all = all();
    let first = !std::mem::replace(&mut *lock(&all.started), true);
    if !first {
        return;
    }
    let started = gate::attach(|py| {
        let start = || -> PyResult<()> {
            let start = py.import("metricbus._threads")?.getattr("start_hooks")?;
            start.call0().map(drop)
        };
        start().inspect_err(|error| {
            // As at the very end of a program.
            tracing::warn!("metricbus: no thread could be had for hooks: {error}");
        })
    });
    if !matches!(started, Some(Ok(()))) {
        *lock(&all.started) = false;
    }
}

/// The pool of hooks.
#[pyfunction]
pub(crate) fn hook_pool() -> ThreadPool {
    ThreadPool::of(all().pool.clone())
}

/// What a job of that pool calls.
#[pyclass(frozen, module = "metricbus._metricbus")]
pub(crate) struct HookRun(Arc<Hook>);

#[pymethods]
impl HookRun {
    #[getter]
    fn function(&self, py: Python<'_>) -> Py<PyAny> {
        self.0.function.clone_ref(py)
    }

    /// It raised.
    fn failed(&self) {
        self.0.count(metricbus::MetricBus::hook_failed);
    }

    /// It is not needed any more.
    fn forget(&self) {
        if let Some(bus) = self.0.bus.upgrade() {
            bus.drop_hook(&self.0.name);
        }
    }

    /// It is done.
    fn end(&self) {
        self.0.end();
    }
}

#[pyfunction]
pub(crate) fn hook_run(job: u64) -> Option<HookRun> {
    let hook = lock(&all().hooks).get(&job)?.upgrade();
    hook.map(HookRun)
}
