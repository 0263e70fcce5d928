//! Several backends at once.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::Arc,
    thread,
    time::Duration,
};

use super::{Backend, BackendError, Declared, Mirror};
use crate::{MetricBus, SampleValue};

/// Several backends on one bus: each metric is stored once, and all of them report it.
///
/// All are flushed and shut down at once, so that one which is slow or dead takes nothing from the others; the error has
/// the words of all that failed. Values are read back from the first that can be read.
///
/// ```
/// use std::sync::Arc;
/// use metricbus::{MetricContainer, TeeContainer, backend::{Null, Prometheus}};
///
/// let tee = TeeContainer::new("myapp", [Arc::new(Prometheus) as _, Arc::new(Null) as _])?;
/// tee.create_counter("jobs_total", "Jobs done.", &[])?.inc();
/// assert!(tee.export_prometheus().ends_with("\nmyapp_jobs_total 1\n"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Tee(Vec<Arc<dyn Backend>>);

impl Tee {
    /// These backends. None at all is as [`Null`](super::Null).
    pub fn new(backends: impl IntoIterator<Item = Arc<dyn Backend>>) -> Self {
        Tee(backends.into_iter().collect())
    }

    /// The backends, in the order in which they were given.
    pub fn backends(&self) -> &[Arc<dyn Backend>] {
        &self.0
    }

    /// Asks all of them at once, so that one which uses up the deadline leaves the others theirs.
    fn all(
        &self,
        ask: impl Fn(&dyn Backend) -> Result<(), BackendError> + Sync,
    ) -> Result<(), BackendError> {
        let ask = &ask;
        let outcomes: Vec<Result<(), BackendError>> = thread::scope(|scope| {
            let asked: Vec<_> = self
                .0
                .iter()
                .map(|backend| {
                    let started = thread::Builder::new()
                        .name("metricbus-tee".to_owned())
                        .spawn_scoped(scope, move || ask(&**backend));
                    // Without a thread to be had, one after the other.
                    started.map_err(|_| ask(&**backend))
                })
                .collect();
            let asked = asked.into_iter().zip(&self.0);
            let outcome = |(asked, backend): (
                Result<thread::ScopedJoinHandle<'_, _>, _>,
                &Arc<dyn Backend>,
            )| match asked {
                Ok(asked) => asked
                    .join()
                    .unwrap_or_else(|_| Err(BackendError::other(backend.name(), "it panicked"))),
                Err(outcome) => outcome,
            };
            asked.map(outcome).collect()
        });
        let mut errors: Vec<BackendError> = outcomes.into_iter().filter_map(Result::err).collect();
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => {
                let all: Vec<String> = errors.iter().map(BackendError::to_string).collect();
                Err(BackendError::other(self.name(), all.join("; ")))
            }
        }
    }
}

impl Backend for Tee {
    fn name(&self) -> &str {
        "tee"
    }

    fn attach(&self, bus: &MetricBus) -> Result<(), BackendError> {
        for (i, backend) in self.0.iter().enumerate() {
            if let Err(error) = backend.attach(bus) {
                // Nobody will ever ask those before it again.
                for attached in &self.0[..i] {
                    let _ = attached.shutdown(Duration::ZERO);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    fn mirrors(&self) -> bool {
        self.0.iter().any(|backend| backend.mirrors())
    }

    fn declare(&self, series: &Declared<'_>) -> Result<Option<Box<dyn Mirror>>, BackendError> {
        let mut mirrors: Vec<Box<dyn Mirror>> = Vec::new();
        for backend in self.0.iter().filter(|backend| backend.mirrors()) {
            match backend.declare(series) {
                Ok(mirror) => mirrors.extend(mirror),
                Err(error) => {
                    // All of them have it, or none.
                    mirrors.iter().for_each(|mirror| mirror.remove());
                    return Err(error);
                }
            }
        }
        Ok(match mirrors.len() {
            0 => None,
            1 => mirrors.pop(),
            _ => Some(Box::new(Mirrors(mirrors))),
        })
    }

    fn flush(&self, deadline: Duration) -> Result<(), BackendError> {
        self.all(|backend| backend.flush(deadline))
    }

    fn shutdown(&self, deadline: Duration) -> Result<(), BackendError> {
        self.all(|backend| backend.shutdown(deadline))
    }
}

/// One series at several far ends.
#[derive(Debug)]
struct Mirrors(Vec<Box<dyn Mirror>>);

impl Mirrors {
    /// Tells all of them, also where one panics.
    fn tell(&self, tell: impl Fn(&dyn Mirror)) {
        let mut panicked = None;
        for mirror in &self.0 {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| tell(&**mirror))) {
                panicked = Some(panic);
            }
        }
        // The courier counts it.
        if let Some(panic) = panicked {
            resume_unwind(panic);
        }
    }
}

impl Mirror for Mirrors {
    fn inc(&self, by: u64) {
        self.tell(|mirror| mirror.inc(by));
    }

    fn add(&self, by: f64) {
        self.tell(|mirror| mirror.add(by));
    }

    fn set(&self, value: f64) {
        self.tell(|mirror| mirror.set(value));
    }

    fn observe(&self, value: f64) {
        self.tell(|mirror| mirror.observe(value));
    }

    fn read(&self) -> Option<SampleValue> {
        let read = |mirror: &dyn Mirror| catch_unwind(AssertUnwindSafe(|| mirror.read()));
        let mut mirrors = self.0.iter();
        mirrors.find_map(|mirror| read(&**mirror).ok().flatten())
    }

    fn remove(&self) {
        self.tell(|mirror| mirror.remove());
    }
}
