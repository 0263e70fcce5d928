//! Where callbacks run: a pool of threads that grows when callbacks block, and the mutating thread for inline ones.
//!
//! A worker that takes a job makes sure that another one stands by, so a callback that hangs holds up no other: it costs
//! a thread, up to a limit. What it means for a job to be a callback, this file does not know.

use std::{
    cell::RefCell,
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use async_task::Runnable;

/// More workers than this only help if more callbacks than this hang at the same time.
pub(crate) const WORKERS_MAX_DEFAULT: usize = 64;

/// How long a worker beyond the first two stands idle before it goes.
const IDLE: Duration = Duration::from_secs(10);

pub(crate) struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    bell: Condvar,
    workers_max: usize,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Runnable>,
    workers: usize,
    idle: usize,
    closed: bool,
}

impl Pool {
    pub(crate) fn new(workers_max: usize) -> Self {
        Pool {
            shared: Arc::new(Shared {
                state: Mutex::default(),
                bell: Condvar::new(),
                workers_max: workers_max.max(1),
            }),
        }
    }

    /// How a task gets to run here.
    pub(crate) fn scheduler(&self) -> impl Fn(Runnable) + Send + Sync + 'static {
        scheduler_of(Arc::downgrade(&self.shared))
    }

    /// Runs a future here.
    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        let (runnable, task) = async_task::spawn(future, self.scheduler());
        runnable.schedule();
        task.detach();
    }

    /// For those who may not keep the bus.
    #[cfg(feature = "persist")]
    pub(crate) fn handle(&self) -> PoolHandle {
        PoolHandle(Arc::downgrade(&self.shared))
    }

    /// Runs a future on the tokio runtime that this is called in, or else here.
    pub(crate) fn spawn_near(&self, future: impl Future<Output = ()> + Send + 'static) {
        #[cfg(feature = "tokio")]
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(future);
            return;
        }
        self.start();
        self.spawn(future);
    }

    /// Makes sure there is a worker, so that a mutating thread never has to start one.
    pub(crate) fn start(&self) {
        self.shared.spawn_if(|state| state.workers == 0);
    }

    /// Workers there are, and those of them that are running a callback.
    pub(crate) fn workers(&self) -> (usize, usize) {
        let state = self.shared.lock();
        (state.workers, state.workers - state.idle)
    }

    pub(crate) fn waiting(&self) -> usize {
        self.shared.lock().queue.len()
    }
}

/// A way to a pool that keeps neither it nor its bus.
#[cfg(feature = "persist")]
pub(crate) struct PoolHandle(Weak<Shared>);

#[cfg(feature = "persist")]
impl PoolHandle {
    /// Runs a future there, or drops it where the pool is gone.
    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        let (runnable, task) = async_task::spawn(future, scheduler_of(self.0.clone()));
        runnable.schedule();
        task.detach();
    }
}

fn scheduler_of(shared: Weak<Shared>) -> impl Fn(Runnable) + Send + Sync + 'static {
    move |runnable| match shared.upgrade() {
        Some(shared) => shared.push(runnable),
        // The bus is gone, and with it whatever the task could have to do.
        None => drop(runnable),
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.bell.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, runnable: Runnable) {
        let mut state = self.lock();
        state.queue.push_back(runnable);
        let ring = state.idle > 0;
        drop(state);
        if ring {
            self.bell.notify_one();
        }
    }

    fn spawn_if(self: &Arc<Self>, wanted: impl FnOnce(&State) -> bool) {
        let mut state = self.lock();
        if state.closed || state.workers >= self.workers_max || !wanted(&state) {
            return;
        }
        state.workers += 1;
        drop(state);
        let shared = self.clone();
        let started = std::thread::Builder::new()
            .name("metricbus-dispatch".into())
            .spawn(move || shared.work());
        if let Err(error) = started {
            self.lock().workers -= 1;
            tracing::error!(%error, "metricbus: no thread for callbacks; those there are go on");
        }
    }

    fn work(self: Arc<Self>) {
        let mut state = self.lock();
        loop {
            if let Some(runnable) = state.queue.pop_front() {
                let alone = state.idle == 0;
                drop(state);
                if alone {
                    // Should this callback hang, the next one has somebody to run it.
                    self.spawn_if(|state| state.idle == 0);
                }
                run(runnable);
                state = self.lock();
                continue;
            }
            if state.closed {
                break;
            }
            state.idle += 1;
            let (woken, timeout) = self
                .bell
                .wait_timeout(state, IDLE)
                .unwrap_or_else(PoisonError::into_inner);
            state = woken;
            state.idle -= 1;
            if timeout.timed_out() && state.queue.is_empty() && state.idle >= 2 {
                break;
            }
        }
        state.workers -= 1;
    }
}

/// What inline callbacks of one thread can set off before the rest goes to the dispatcher: enough for any cascade that
/// ends, small enough that one which doesn't holds up the mutating thread for well under a millisecond.
const INLINE_RUNS_MAX: usize = 256;

thread_local! {
    /// Tasks woken by inline callbacks of this thread, while it is running some.
    static INLINE: RefCell<Option<VecDeque<Runnable>>> = const { RefCell::new(None) };
}

/// Runs a task in the thread that wakes it. A callback which sets off others, or itself, does not recurse: they run
/// after it, and past [`INLINE_RUNS_MAX`] on the dispatcher.
pub(crate) fn inline_scheduler(
    pool: &Pool,
    overruns: impl Fn() + Send + Sync + 'static,
) -> impl Fn(Runnable) + Send + Sync + 'static {
    let fallback = Arc::downgrade(&pool.shared);
    move |runnable| run_inline(runnable, &fallback, &overruns)
}

fn run_inline(runnable: Runnable, fallback: &Weak<Shared>, overruns: &dyn Fn()) {
    let mut runnable = Some(runnable);
    let outermost = INLINE.try_with(|inline| {
        let mut inline = inline.borrow_mut();
        match &mut *inline {
            Some(queue) => {
                queue.extend(runnable.take());
                false
            }
            none => {
                *none = Some(VecDeque::new());
                true
            }
        }
    });
    match outermost {
        Ok(false) => return,
        Ok(true) => {}
        // This thread is being torn down and has no queue any more.
        Err(_) => return hand_over(runnable, fallback),
    }
    for _ in 0..INLINE_RUNS_MAX {
        let Some(next) = runnable.take() else { break };
        run(next);
        runnable = INLINE.with(|inline| inline.borrow_mut().as_mut()?.pop_front());
    }
    let rest = INLINE.with(|inline| inline.borrow_mut().take());
    let rest: Vec<_> = runnable
        .into_iter()
        .chain(rest.into_iter().flatten())
        .collect();
    if !rest.is_empty() {
        overruns();
        hand_over(rest, fallback);
    }
}

fn hand_over(runnables: impl IntoIterator<Item = Runnable>, pool: &Weak<Shared>) {
    if let Some(pool) = pool.upgrade() {
        pool.spawn_if(|state| state.workers == 0);
        for runnable in runnables {
            pool.push(runnable);
        }
    }
}

/// Callbacks' panics are caught where they are called; this one is for what wraps them, such as the drop of a closure.
fn run(runnable: Runnable) {
    let run = std::panic::AssertUnwindSafe(|| runnable.run());
    if std::panic::catch_unwind(run).is_err() {
        tracing::error!("metricbus: a task of the dispatcher panicked outside of its callback");
    }
}
