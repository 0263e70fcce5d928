//! Several backends at once.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Backend, BackendError, Declared, Mirror};
use crate::{MetricBus, SampleValue};

/// Several backends on one bus: each metric is stored once, and all of them report it.
///
/// An error of one does not keep the others from being flushed and shut down. Values are read back from the first that
/// can be read.
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

    /// Asks all of them, within one deadline together. The first error counts.
    fn all(
        &self,
        deadline: Duration,
        ask: impl Fn(&dyn Backend, Duration) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        let start = Instant::now();
        let mut outcome = Ok(());
        for backend in &self.0 {
            let left = deadline.saturating_sub(start.elapsed());
            outcome = outcome.and(ask(&**backend, left));
        }
        outcome
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
        self.all(deadline, |backend, left| backend.flush(left))
    }

    fn shutdown(&self, deadline: Duration) -> Result<(), BackendError> {
        self.all(deadline, |backend, left| backend.shutdown(left))
    }
}

/// One series at several far ends.
#[derive(Debug)]
struct Mirrors(Vec<Box<dyn Mirror>>);

impl Mirror for Mirrors {
    fn inc(&self, by: u64) {
        self.0.iter().for_each(|mirror| mirror.inc(by));
    }

    fn add(&self, by: f64) {
        self.0.iter().for_each(|mirror| mirror.add(by));
    }

    fn set(&self, value: f64) {
        self.0.iter().for_each(|mirror| mirror.set(value));
    }

    fn observe(&self, value: f64) {
        self.0.iter().for_each(|mirror| mirror.observe(value));
    }

    fn read(&self) -> Option<SampleValue> {
        self.0.iter().find_map(|mirror| mirror.read())
    }

    fn remove(&self) {
        self.0.iter().for_each(|mirror| mirror.remove());
    }
}
