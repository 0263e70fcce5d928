//! Code of the application that a request has to run: collect hooks, health checks, foreign registries. Owns the thread
//! it runs on and the deadline; never lets it panic, hang or pile up at the request's expense.
//!
//! A run has a thread of its own rather than one of tokio's blocking pool, because a runtime waits for its blocking pool
//! when it is dropped: a hook that hangs would then keep the process from ending. There is at most one run of each job,
//! so there are never more such threads than jobs.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::watch,
    time::{Instant, timeout_at},
};

/// Longer than anybody waits, and short enough to be added to any time.
pub(super) const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A named piece of foreign code with a deadline.
pub(super) struct Job<T> {
    pub(super) name: String,
    deadline: Duration,
    /// Runs not done by their deadline.
    pub(super) timeouts: AtomicU64,
    /// Requests that did not wait at all, since a run was past its deadline and still going.
    pub(super) skips: AtomicU64,
    /// Runs that panicked, or for which no thread could be had.
    pub(super) failures: AtomicU64,
    shared: Arc<Shared<T>>,
}

/// What the thread of a run needs.
struct Shared<T> {
    work: Mutex<Box<dyn FnMut() -> T + Send>>,
    current: Mutex<Option<Run<T>>>,
}

struct Run<T> {
    until: Instant,
    /// The first to find the run late counts it and says so.
    told: Arc<AtomicBool>,
    /// Closed without a value where the run panicked in a way that could not be caught.
    outcome: watch::Receiver<Option<Result<T, String>>>,
}

impl<T> Clone for Run<T> {
    fn clone(&self) -> Self {
        Run {
            until: self.until,
            told: self.told.clone(),
            outcome: self.outcome.clone(),
        }
    }
}

/// Why there is no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    #[error("not done within {0:?}")]
    Late(Duration),
    #[error("still running since an earlier request, past its {0:?}")]
    StillRunning(Duration),
    #[error("panicked: {0}")]
    Panicked(String),
    #[error("no thread to run it on: {0}")]
    NoThread(String),
}

impl<T: Clone + Send + Sync + 'static> Job<T> {
    pub(super) fn new(
        name: impl Into<String>,
        deadline: Duration,
        work: impl FnMut() -> T + Send + 'static,
    ) -> Self {
        Job {
            name: name.into(),
            deadline: deadline.min(FOR_EVER),
            timeouts: AtomicU64::new(0),
            skips: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            shared: Arc::new(Shared {
                work: Mutex::new(Box::new(work)),
                current: Mutex::new(None),
            }),
        }
    }

    /// Runs the job, or joins the run that is going on, and waits until its deadline at most.
    pub(super) async fn run(&self) -> Result<T, Failure> {
        let mut run = match self.join_or_start() {
            Ok(run) => run,
            Err(failure) => {
                self.failures.fetch_add(1, Relaxed);
                tracing::warn!(job = self.name, %failure, "metricbus: not run");
                return Err(failure);
            }
        };
        if run.told.load(Relaxed) && run.outcome.borrow().is_none() {
            self.skips.fetch_add(1, Relaxed);
            return Err(Failure::StillRunning(self.deadline));
        }
        match timeout_at(run.until, run.outcome.wait_for(Option::is_some)).await {
            Ok(Ok(outcome)) => match &*outcome {
                Some(Ok(value)) => Ok(value.clone()),
                Some(Err(panic)) => Err(self.panicked(&run.told, panic)),
                None => Err(self.panicked(&run.told, "")),
            },
            Ok(Err(_closed)) => Err(self.panicked(&run.told, "and its panic panicked")),
            Err(_elapsed) => {
                if !run.told.swap(true, Relaxed) {
                    self.timeouts.fetch_add(1, Relaxed);
                    let (job, deadline) = (&self.name, self.deadline);
                    tracing::warn!(
                        job,
                        ?deadline,
                        "metricbus: late; not waited for until it ends"
                    );
                }
                Err(Failure::Late(self.deadline))
            }
        }
    }

    fn panicked(&self, told: &AtomicBool, panic: &str) -> Failure {
        if !told.swap(true, Relaxed) {
            self.failures.fetch_add(1, Relaxed);
            tracing::warn!(job = self.name, panic, "metricbus: panicked");
        }
        Failure::Panicked(panic.to_owned())
    }

    fn join_or_start(&self) -> Result<Run<T>, Failure> {
        let mut current = lock(&self.shared.current);
        if let Some(run) = &*current {
            return Ok(run.clone());
        }
        let (send, outcome) = watch::channel(None);
        let run = Run {
            until: Instant::now() + self.deadline,
            told: Arc::new(AtomicBool::new(false)),
            outcome,
        };
        let shared = self.shared.clone();
        // The hook may want to block on a future, or spawn one.
        let runtime = Handle::try_current();
        std::thread::Builder::new()
            .name("metricbus-job".to_owned())
            .spawn(move || {
                let _context = runtime.as_ref().map(Handle::enter);
                let free = Free(&shared);
                let outcome = catch_unwind(AssertUnwindSafe(|| lock(&shared.work)()));
                let outcome = outcome.map_err(|panic| text_of(&*panic));
                // The next request must not join a run that has ended, so it is freed before its end is announced.
                drop(free);
                send.send_replace(Some(outcome));
            })
            .map_err(|error| Failure::NoThread(error.to_string()))?;
        *current = Some(run.clone());
        Ok(run)
    }
}

/// Says, also while unwinding, that no run is going on.
struct Free<'a, T>(&'a Shared<T>);

impl<T> Drop for Free<'_, T> {
    fn drop(&mut self) {
        *lock(&self.0.current) = None;
    }
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    match panic.downcast_ref::<&'static str>() {
        Some(text) => (*text).to_owned(),
        None => panic
            .downcast_ref::<String>()
            .cloned()
            .unwrap_or_else(|| "(not a text)".to_owned()),
    }
}

/// A panic while holding one of our locks leaves nothing half done, so poisoning tells nothing.
pub(super) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn a_job_gives_its_result_each_time() {
        let mut runs = 0;
        let job = Job::new("count", LONG, move || {
            runs += 1;
            runs
        });
        assert_eq!(job.run().await, Ok(1));
        assert_eq!(job.run().await, Ok(2));
    }

    #[tokio::test]
    async fn requests_at_the_same_time_share_one_run() {
        let (go, wait) = mpsc::channel::<()>();
        let mut runs = 0;
        let job = Job::new("shared", LONG, move || {
            wait.recv().ok();
            runs += 1;
            runs
        });
        // Polled last, when both are waiting.
        let release = async { go.send(()).unwrap() };
        let (a, b, ()) = tokio::join!(job.run(), job.run(), release);
        assert_eq!((a, b), (Ok(1), Ok(1)));
    }

    #[tokio::test]
    async fn a_job_that_hangs_is_waited_for_once_and_runs_again_when_it_has_ended() {
        let (go, wait) = mpsc::channel::<()>();
        let job = Job::new("hang", SHORT, move || wait.recv().is_ok());
        assert_eq!(job.run().await, Err(Failure::Late(SHORT)));
        assert_eq!(job.run().await, Err(Failure::StillRunning(SHORT)));
        assert_eq!(job.run().await, Err(Failure::StillRunning(SHORT)));
        assert_eq!(
            (job.timeouts.load(Relaxed), job.skips.load(Relaxed)),
            (1, 2)
        );

        let mut ended = lock(&job.shared.current).as_ref().unwrap().outcome.clone();
        go.send(()).unwrap();
        ended.wait_for(Option::is_some).await.unwrap();
        go.send(()).unwrap();
        assert_eq!(job.run().await, Ok(true));
    }

    #[tokio::test]
    async fn a_job_that_panics_is_caught_and_tried_again() {
        let mut first = true;
        let job = Job::new("panic", LONG, move || {
            if std::mem::replace(&mut first, false) {
                panic!("no {}", "luck");
            }
        });
        assert_eq!(
            job.run().await,
            Err(Failure::Panicked("no luck".to_owned()))
        );
        assert_eq!(job.run().await, Ok(()));
        assert_eq!(job.failures.load(Relaxed), 1);
    }

    #[tokio::test]
    async fn a_panic_that_panics_when_dropped_is_no_worse() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                if !std::thread::panicking() {
                    panic!("again");
                }
            }
        }
        let job = Job::new("bomb", LONG, || std::panic::panic_any(Bomb));
        assert!(matches!(job.run().await, Err(Failure::Panicked(_))));
        assert!(matches!(job.run().await, Err(Failure::Panicked(_))));
    }

    #[tokio::test]
    async fn a_job_can_use_the_runtime_of_the_request() {
        let job = Job::new("block_on", LONG, || Handle::current().block_on(async { 7 }));
        // block_on needs the runtime's thread to be free to drive it; a ready future needs nothing.
        assert_eq!(job.run().await, Ok(7));
    }
}
