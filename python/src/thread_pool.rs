//! Python threads that run callbacks and hooks, so that one which blocks costs a thread and never somebody else's turn.
//!
//! The pool schedules *jobs*, which are known by a number: a job is pushed when it has something to do. Its threads are daemon threads
//! of Python's (`metricbus/_threads.py`), which ask for their next job here and run it with no Rust frame below it: the interpreter's
//! end may end them wherever they are. A job runs in one thread at a time; pushed while it runs, it runs once more.
//!
//! Jobs that are quick share one thread, since threads that compete for the interpreter's lock are slower than one. So there is a
//! number of *lanes*, 1 at first. A job that has been running for longer than `stall` does not count any more: its lane is free for
//! another thread, and the number of lanes doubles, so that hundreds of jobs that hang are got out of the way within a few stalls. It is
//! 1 again as soon as nothing waits.
//!
//! At most `running_max` jobs run at the same time. When that many do, and others wait, the one that has been running longest is
//! *given up* once it has run for `patience`: it is reported and does not count until it comes back. So those that hang for ever can't
//! use up the pool. There are never more threads than jobs that run, and one.
//!
//! One thread more than there are runs is parked here. While jobs wait, one of the parked threads looks again when the next stall, or
//! the next patience, is over: it is the watcher. Whoever takes a job and leaves others waiting wakes one who is parked, to watch; and so
//! does whoever pushes one where nobody watches, or not soon.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Condvar, Mutex},
    time::{Duration, Instant},
};

use pyo3::prelude::*;

use crate::{
    convert,
    deliver::{forked, lock},
    fork::Forked,
};

/// How long a thread is parked before it goes, if another one is.
const IDLE: Duration = Duration::from_secs(10);

pub(crate) struct Limits {
    pub(crate) running_max: usize,
    pub(crate) stall: Duration,
    pub(crate) patience: Duration,
}

/// A pool of Python threads for jobs that are known by a number.
#[pyclass(frozen, module = "metricbus._metricbus")]
pub(crate) struct ThreadPool(Forked<Arc<Pool>>);

pub(crate) struct Pool {
    state: Mutex<State>,
    parked: Condvar,
    limits: Limits,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<u64>,
    runs: HashMap<u64, Run>,
    /// Runs that are in a lane.
    quick: usize,
    /// Runs that were not given up.
    counted: usize,
    lanes: usize,
    parked: usize,
    /// When one of the parked looks again by itself.
    watch: Option<Instant>,
    closed: bool,
}

struct Run {
    since: Instant,
    is_quick: bool,
    is_given_up: bool,
    /// It was pushed meanwhile.
    again: bool,
}

/// What a thread of the pool is to do.
pub(crate) struct Turn {
    job: u64,
    /// Nobody is parked any more: another thread is to be started first.
    is_last: bool,
    /// Jobs that were given up.
    given_up: Vec<u64>,
}

enum Next {
    Take,
    /// Nothing to do, unless somebody wakes this thread, before then.
    Park(Option<Instant>),
}

impl Pool {
    pub(crate) fn new(limits: Limits) -> Arc<Pool> {
        Arc::new(Pool {
            state: Mutex::new(State {
                lanes: 1,
                ..State::default()
            }),
            parked: Condvar::new(),
            limits,
        })
    }

    /// The job has something to do.
    pub(crate) fn push(&self, job: u64) {
        let mut state = lock(&self.state);
        if let Some(run) = state.runs.get_mut(&job) {
            run.again = true;
            return;
        }
        state.waiting.push_back(job);
        let is_watched = || {
            let soon = Instant::now() + self.limits.stall;
            state.watch.is_some_and(|watch| watch <= soon)
        };
        let wake = state.parked > 0 && (state.quick < state.lanes || !is_watched());
        drop(state);
        if wake {
            self.parked.notify_one();
        }
    }

    /// Waits for the next job of a thread that has `done` its last one. `None`: the thread is not needed any more.
    pub(crate) fn next(&self, done: Option<u64>) -> Option<Turn> {
        let mut state = lock(&self.state);
        if let Some(job) = done {
            state.finish(job);
        }
        let idle = Instant::now() + IDLE;
        let mut given_up = Vec::new();
        loop {
            if state.closed {
                drop(state);
                // Whoever closes it may wait for this run.
                self.parked.notify_all();
                return None;
            }
            let now = Instant::now();
            match state.look(now, &self.limits, &mut given_up) {
                Next::Take => break,
                Next::Park(until) => {
                    let watch =
                        until.filter(|until| state.watch.is_none_or(|watch| *until < watch));
                    let until = watch.unwrap_or(idle);
                    if watch.is_none() && now >= idle && state.parked > 0 && given_up.is_empty() {
                        return None;
                    }
                    state.parked += 1;
                    state.watch = watch.or(state.watch);
                    let wait = until.saturating_duration_since(now);
                    // Who may not leave, as it is the only one, has all the time there is.
                    let wait = if wait.is_zero() { IDLE } else { wait };
                    state = match self.parked.wait_timeout(state, wait) {
                        Ok((state, _)) => state,
                        Err(poisoned) => poisoned.into_inner().0,
                    };
                    state.parked -= 1;
                    if watch.is_some() && state.watch == watch {
                        state.watch = None;
                    }
                }
            }
        }
        let job = state.take(Instant::now())?;
        let is_last = state.parked == 0;
        let wake = !is_last && !state.waiting.is_empty();
        drop(state);
        if wake {
            self.parked.notify_one();
        }
        Some(Turn {
            job,
            is_last,
            given_up,
        })
    }

    /// Threads that come for a job are told to go. Whether nothing runs any more within `patience`.
    fn close(&self, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        let mut state = lock(&self.state);
        state.closed = true;
        self.parked.notify_all();
        while state.counted > 0 {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = match self.parked.wait_timeout(state, left) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        true
    }
}

impl State {
    fn finish(&mut self, job: u64) {
        let Some(run) = self.runs.remove(&job) else {
            return;
        };
        self.quick -= usize::from(run.is_quick);
        self.counted -= usize::from(!run.is_given_up);
        if run.again {
            self.waiting.push_back(job);
        }
    }

    fn take(&mut self, now: Instant) -> Option<u64> {
        let job = self.waiting.pop_front()?;
        self.quick += 1;
        self.counted += 1;
        let run = Run {
            since: now,
            is_quick: true,
            is_given_up: false,
            again: false,
        };
        self.runs.insert(job, run);
        Some(job)
    }

    fn look(&mut self, now: Instant, limits: &Limits, given_up: &mut Vec<u64>) -> Next {
        if self.waiting.is_empty() {
            self.lanes = 1;
            return Next::Park(None);
        }
        if self.counted >= limits.running_max {
            let counted = self.runs.iter_mut().filter(|(_, run)| !run.is_given_up);
            let Some((job, longest)) = counted.min_by_key(|(_, run)| run.since) else {
                return Next::Take;
            };
            let until = longest.since + limits.patience;
            if until > now {
                return Next::Park(Some(until));
            }
            longest.is_given_up = true;
            self.quick -= usize::from(std::mem::take(&mut longest.is_quick));
            self.counted -= 1;
            given_up.push(*job);
        }
        if self.quick >= self.lanes {
            let mut next = None;
            let mut stalled = 0;
            for run in self.runs.values_mut().filter(|run| run.is_quick) {
                let until = run.since + limits.stall;
                if until <= now {
                    run.is_quick = false;
                    stalled += 1;
                } else {
                    next = Some(next.map_or(until, |next: Instant| next.min(until)));
                }
            }
            if stalled == 0 {
                return Next::Park(next);
            }
            self.quick -= stalled;
            self.lanes = self.lanes.saturating_mul(2).min(limits.running_max);
        }
        Next::Take
    }
}

#[pymethods]
impl ThreadPool {
    #[new]
    fn new(
        running_max: usize,
        stall: &Bound<'_, PyAny>,
        patience: &Bound<'_, PyAny>,
    ) -> PyResult<ThreadPool> {
        let limits = Limits {
            running_max,
            stall: convert::duration("stall", stall)?,
            patience: convert::duration("patience", patience)?,
        };
        Ok(ThreadPool(Forked::new(Pool::new(limits))))
    }

    /// Waits for the next job of a thread that has `done` its last one: its number, whether another thread is to be started, and the
    /// numbers of those that were given up. `None`: the thread is to end.
    #[pyo3(signature = (done=None))]
    fn next(&self, py: Python<'_>, done: Option<u64>) -> PyResult<Option<(u64, bool, Vec<u64>)>> {
        let pool = self.pool()?;
        let turn = py.detach(|| pool.next(done));
        Ok(turn.map(|turn| (turn.job, turn.is_last, turn.given_up)))
    }

    /// Has all threads end when they come for a job. Whether nothing runs any more, within so many seconds.
    fn close(&self, py: Python<'_>, patience: f64) -> PyResult<bool> {
        let pool = self.pool()?;
        let patience = Duration::try_from_secs_f64(patience).unwrap_or_default();
        Ok(py.detach(|| pool.close(patience)))
    }
}

impl ThreadPool {
    pub(crate) fn of(pool: Arc<Pool>) -> ThreadPool {
        ThreadPool(Forked::new(pool))
    }

    pub(crate) fn pool(&self) -> PyResult<&Arc<Pool>> {
        self.0.here().ok_or_else(forked)
    }
}
