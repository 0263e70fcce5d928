//! Where callbacks run: a pool of threads that grows when callbacks block, and the mutating thread for inline ones.
//!
//! A worker that takes a job makes sure that another one stands by, so a callback that hangs holds up no other: it costs
//! a thread. There are at most so many workers as the pool was told. When all of them are at work, those that have been at one job for
//! [`HANGS_AFTER`] are counted out: they are said to hang, their threads are no workers any more, and others take their place. One that comes back
//! joins again if there is room. So there are no more threads than workers and hung callbacks, of which a subscription has one at a time.
//!
//! Timers, expiry and derived gauges have a pool of their own, in which no callback runs: [`Pool::trusted`]. An inline callback that is due there
//! goes to the pool of callbacks.
//!
//! What it means for a job to be a callback, this file does not know.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use async_task::Runnable;

use crate::{clock::Clock, sync::lock, time::Time};

/// More workers than this only help if more callbacks than this are at work at the same time.
pub(crate) const WORKERS_MAX_DEFAULT: usize = 64;

/// Timers are short: one thread does them, and another one what comes meanwhile.
const TRUSTED_MAX: usize = 2;

/// How long a worker is at one job before it is said to hang, where all are at work.
pub(crate) const HANGS_AFTER: Duration = Duration::from_secs(1);

/// How long a worker beyond the first two stands idle before it goes.
const IDLE: Duration = Duration::from_secs(10);

pub(crate) struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    bell: Condvar,
    workers_max: usize,
    clock: Clock,
    /// Whether no foreign code runs here.
    trusted: bool,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Runnable>,
    workers: usize,
    idle: usize,
    /// Those at work, by the order in which they began.
    running: BTreeMap<u64, Running>,
    begun: u64,
    /// Threads that were counted out, and have not come back.
    hung: usize,
    watched: bool,
    closed: bool,
}

struct Running {
    since: Time,
    about: Slot,
    counted_out: bool,
}

/// Whom a job calls, to say of it that it hangs.
pub(crate) trait Callee: Send + Sync {
    fn hangs(&self);
}

/// Of a worker: whom its present job calls.
type Slot = Arc<Mutex<Option<Arc<dyn Callee>>>>;

impl Pool {
    /// `clock` tells how long callbacks run.
    pub(crate) fn new(workers_max: usize, clock: &Clock) -> Self {
        Pool::with(workers_max.max(1), clock, false)
    }

    /// For what is of this crate alone, and short.
    pub(crate) fn trusted(clock: &Clock) -> Self {
        Pool::with(TRUSTED_MAX, clock, true)
    }

    fn with(workers_max: usize, clock: &Clock, trusted: bool) -> Self {
        Pool {
            shared: Arc::new(Shared {
                state: Mutex::default(),
                bell: Condvar::new(),
                workers_max,
                clock: clock.clone(),
                trusted,
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

    /// Workers there are, callbacks that are running, and those of them that hang.
    pub(crate) fn workers(&self) -> (usize, usize, usize) {
        let state = self.shared.lock();
        let running = state.workers - state.idle + state.hung;
        (state.workers, running, state.hung)
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
        let name = if self.trusted {
            "metricbus-timers"
        } else {
            "metricbus-dispatch"
        };
        let started = std::thread::Builder::new()
            .name(name.into())
            .spawn(move || shared.work());
        if let Err(error) = started {
            self.lock().workers -= 1;
            tracing::error!(%error, "metricbus: no thread for callbacks; those there are go on");
        }
    }

    fn work(self: Arc<Self>) {
        let about = Slot::default();
        TRUSTED.set(self.trusted);
        CALLEE.with(|slot| slot.replace(Some(about.clone())));
        let mut state = self.lock();
        loop {
            if let Some(runnable) = state.queue.pop_front() {
                let alone = state.idle == 0;
                let full = state.workers >= self.workers_max;
                let number = state.begun;
                state.begun += 1;
                let running = Running {
                    since: self.clock.now(),
                    about: about.clone(),
                    counted_out: false,
                };
                state.running.insert(number, running);
                drop(state);
                if alone {
                    // Should this callback hang, the next one has somebody to run it.
                    self.spawn_if(|state| state.idle == 0);
                }
                if alone && full && !self.trusted {
                    self.watch();
                }
                run(runnable);
                let called = lock(&about).take();
                drop(called);
                state = self.lock();
                let running = state.running.remove(&number);
                if running.is_some_and(|running| running.counted_out) {
                    state.hung -= 1;
                    if state.closed || state.workers >= self.workers_max {
                        // Others have its place.
                        return;
                    }
                    state.workers += 1;
                }
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

    /// All are at work: looks when the first of them has been for too long.
    fn watch(self: &Arc<Self>) {
        let mut state = self.lock();
        let longest = state.running.values().find(|one| !one.counted_out);
        let Some(since) = longest.map(|one| one.since) else {
            return;
        };
        if state.closed || mem::replace(&mut state.watched, true) {
            return;
        }
        drop(state);
        let me = Arc::downgrade(self);
        self.clock.at(since + HANGS_AFTER, move || {
            if let Some(shared) = me.upgrade() {
                shared.count_out();
            }
        });
    }

    /// Counts out those who hang, where there is nobody else left. On the clock's thread.
    fn count_out(self: &Arc<Self>) {
        let now = self.clock.now();
        let mut hung = Vec::new();
        let mut state = self.lock();
        state.watched = false;
        if state.idle > 0 || state.workers < self.workers_max {
            return;
        }
        for one in state.running.values_mut() {
            if !one.counted_out && one.since + HANGS_AFTER <= now {
                one.counted_out = true;
                hung.push(one.about.clone());
            }
        }
        state.workers -= hung.len();
        state.hung += hung.len();
        drop(state);
        if hung.is_empty() {
            return self.watch();
        }
        self.spawn_if(|state| state.idle == 0);
        // Logs are written by others, too.
        let (runnable, task) = async_task::spawn(
            async move {
                for about in hung {
                    let callee = lock(&about).clone();
                    if let Some(callee) = callee {
                        callee.hangs();
                    }
                }
            },
            scheduler_of(Arc::downgrade(self)),
        );
        runnable.schedule();
        task.detach();
    }
}

/// What inline callbacks of one thread can set off before the rest goes to the dispatcher: enough for any cascade that
/// ends, small enough that one which doesn't holds up the mutating thread for well under a millisecond.
const INLINE_RUNS_MAX: usize = 256;

/// The task of an inline callback that was woken, and where it goes when it is too much.
struct Inline {
    runnable: Runnable,
    fallback: Weak<Shared>,
    overruns: Arc<dyn Fn() + Send + Sync>,
}

thread_local! {
    /// Whether this is a thread in which no foreign code runs.
    static TRUSTED: Cell<bool> = const { Cell::new(false) };
    /// Of a worker: whom its job calls.
    static CALLEE: RefCell<Option<Slot>> = const { RefCell::new(None) };
    /// Tasks of inline callbacks that this thread has woken, where it gathers them.
    static INLINE: RefCell<VecDeque<Inline>> = const { RefCell::new(VecDeque::new()) };
    static GATHERS: Cell<bool> = const { Cell::new(false) };
}

/// The job of this thread is about to call somebody: should it hang, that is who does.
pub(crate) fn calling(callee: &Arc<dyn Callee>) {
    let slot = CALLEE.try_with(|slot| slot.borrow().clone()).ok().flatten();
    if let Some(slot) = slot {
        let before = lock(&slot).replace(callee.clone());
        drop(before);
    }
}

/// Runs a task in the thread that wakes it. A callback which sets off others, or itself, does not recurse: they run
/// after it, and past [`INLINE_RUNS_MAX`] on the dispatcher. So do those that a timer wakes, unless they are `trusted`: of this crate.
pub(crate) fn inline_scheduler(
    pool: &Pool,
    trusted: bool,
    overruns: impl Fn() + Send + Sync + 'static,
) -> impl Fn(Runnable) + Send + Sync + 'static {
    let fallback = Arc::downgrade(&pool.shared);
    let overruns: Arc<dyn Fn() + Send + Sync> = Arc::new(overruns);
    move |runnable| {
        // This thread may be being torn down, and have none of its own any more.
        let elsewhere = TRUSTED
            .try_with(|here| here.get() && !trusted)
            .unwrap_or(true);
        if elsewhere || INLINE.try_with(|_| ()).is_err() {
            return hand_over(runnable, &fallback);
        }
        let inline = Inline {
            runnable,
            fallback: fallback.clone(),
            overruns: overruns.clone(),
        };
        inline_last(|| INLINE.with(|queue| queue.borrow_mut().push_back(inline)));
    }
}

/// Runs `f`, which wakes some, and after it the inline callbacks among those: one that hangs keeps nobody from being woken.
pub(crate) fn inline_last(f: impl FnOnce()) {
    /// Also where a foreign waker panics.
    struct Gathering;

    impl Drop for Gathering {
        fn drop(&mut self) {
            run_gathered();
        }
    }

    let outermost = GATHERS.try_with(|gathers| !gathers.replace(true));
    let gathering = outermost.unwrap_or(false).then(|| Gathering);
    f();
    drop(gathering);
}

fn run_gathered() {
    // In a thread that is being torn down there are none.
    let next = || {
        let queue = INLINE.try_with(|queue| queue.borrow_mut().pop_front());
        queue.ok().flatten()
    };
    for _ in 0..INLINE_RUNS_MAX {
        let Some(inline) = next() else { break };
        run(inline.runnable);
    }
    GATHERS.set(false);
    let mut told = false;
    while let Some(inline) = next() {
        if !mem::replace(&mut told, true) {
            (inline.overruns)();
        }
        hand_over(inline.runnable, &inline.fallback);
    }
}

fn hand_over(runnable: Runnable, pool: &Weak<Shared>) {
    if let Some(pool) = pool.upgrade() {
        pool.spawn_if(|state| state.workers == 0);
        pool.push(runnable);
    }
}

/// Callbacks' panics are caught where they are called; this one is for what wraps them, such as the drop of a closure.
fn run(runnable: Runnable) {
    let run = std::panic::AssertUnwindSafe(|| runnable.run());
    if std::panic::catch_unwind(run).is_err() {
        tracing::error!("metricbus: a task of the dispatcher panicked outside of its callback");
    }
}
