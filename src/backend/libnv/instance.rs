//! A library at work: one backend of it, and its series.

use std::{
    ffi::{CStr, c_void},
    fmt,
    mem::size_of,
    ptr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    NAME,
    abi::{
        MB_ABI_MAJOR, MB_ABI_MINOR, MB_COUNTER, MB_GAUGE, MB_HISTOGRAM, MB_OK, MB_REAL_COUNTER,
        mb_backend_config, mb_label, mb_series, mb_str, mb_value,
    },
    table::{Calls, Table},
};
use crate::{
    HistogramSnapshot, MetricKind, SampleValue, Value,
    backend::{BackendError, Declared, Mirror, arrivals::Arrivals},
    own::Counts,
    snapshot::{FamilySnapshot, SeriesSnapshot},
};

/// What `init` has made. The library's `destroy` is called when neither the backend nor a series of it is held any more.
pub(super) struct Instance {
    calls: Calls,
    /// What the library calls itself.
    library: String,
    /// The library's own, never looked at.
    backend: *mut c_void,
    failed: AtomicU64,
    /// From here on the library is only asked to shut down, to release and to destroy.
    shut_down: AtomicBool,
    /// Calls that are under way, but for mutations, which are not to pay for it: their container waits for those.
    inside: AtomicUsize,
    left: Arrivals,
}

// SAFETY: the header tells the library that it is called by any thread.
unsafe impl Send for Instance {}
// SAFETY: and by several at once.
unsafe impl Sync for Instance {}

fn lend(text: &str) -> mb_str {
    mb_str {
        ptr: text.as_ptr().cast(),
        len: text.len(),
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// What the library says of its last failure.
fn words(calls: &Calls) -> String {
    // SAFETY: it is called in the thread whose call has just failed.
    let words = unsafe { (calls.last_error)() };
    if words.is_null() {
        return "it gave no reason".to_owned();
    }
    // SAFETY: the library says that it ends in NUL, and it is copied before the library is called again.
    let words = unsafe { CStr::from_ptr(words) }.to_string_lossy();
    match &*words {
        "" => "it gave no reason".to_owned(),
        words => words.to_owned(),
    }
}

impl Instance {
    /// Sets up a backend of this library.
    pub(super) fn init(table: Table, service: &str, prefix: &str) -> Result<Self, BackendError> {
        let Table { calls, name } = table;
        let config = mb_backend_config {
            size: size_of::<mb_backend_config>(),
            abi_major: MB_ABI_MAJOR,
            abi_minor: MB_ABI_MINOR,
            service: lend(service),
            prefix: lend(prefix),
        };
        let mut backend = ptr::null_mut();
        // SAFETY: as the header says: all of it lives during the call.
        let status = unsafe { (calls.init)(&config, &mut backend) };
        if status != MB_OK {
            return Err(BackendError::Setup {
                backend: NAME.to_owned(),
                why: format!(
                    "library {name:?} failed in init ({status}): {}",
                    words(&calls)
                ),
            });
        }
        Ok(Instance {
            calls,
            library: name,
            backend,
            failed: AtomicU64::new(0),
            shut_down: AtomicBool::new(false),
            inside: AtomicUsize::new(0),
            left: Arrivals::new(),
        })
    }

    pub(super) fn library(&self) -> &str {
        &self.library
    }

    /// How many calls have failed.
    pub(super) fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Whether mutations go no further than here.
    #[inline]
    fn is_shut_down(&self) -> bool {
        self.shut_down.load(Ordering::Acquire)
    }

    /// For a call that `shutdown` waits for. `None`: it has come too late.
    fn enter(&self) -> Option<Inside<'_>> {
        // Either this is counted before `shutdown` looks, or that has put up its sign before this one looks: each writes
        // first and then reads, all in one order.
        self.inside.fetch_add(1, Ordering::SeqCst);
        let inside = Inside(self);
        (!self.shut_down.load(Ordering::SeqCst)).then_some(inside)
    }

    /// `None`: it was shut down.
    pub(super) fn declare(
        self: &Arc<Self>,
        series: &Declared<'_>,
    ) -> Result<Option<Handle>, BackendError> {
        let Some(_inside) = self.enter() else {
            return Ok(None);
        };
        let refused = |why: String| BackendError::Refused {
            backend: NAME.to_owned(),
            metric: series.name.to_owned(),
            why,
        };
        let kind = match series.kind {
            MetricKind::Counter if !series.fractional => MB_COUNTER,
            MetricKind::Counter if self.calls.add.is_some() => MB_REAL_COUNTER,
            MetricKind::Counter => {
                return Err(refused(format!(
                    "library {:?} takes no counters that count in doubles: its table has NULL for add",
                    self.library
                )));
            }
            MetricKind::Gauge => MB_GAUGE,
            MetricKind::Histogram => MB_HISTOGRAM,
        };
        let labels: Vec<mb_label> = series
            .labels
            .iter()
            .map(|(name, value)| mb_label {
                name: lend(name),
                value: lend(value),
            })
            .collect();
        let told = mb_series {
            size: size_of::<mb_series>(),
            name: lend(series.name),
            help: lend(series.help),
            unit: lend(series.unit.unwrap_or_default()),
            kind,
            labels: labels.as_ptr(),
            labels_len: labels.len(),
            bounds: series.bounds.as_ptr(),
            bounds_len: series.bounds.len(),
        };
        let mut handle = ptr::null_mut();
        // SAFETY: as the header says: all of it lives during the call.
        let status = unsafe { (self.calls.declare)(self.backend, &told, &mut handle) };
        if status != MB_OK {
            let words = words(&self.calls);
            return Err(refused(format!(
                "library {:?} failed in declare ({status}): {words}",
                self.library
            )));
        }
        Ok(Some(Handle {
            instance: self.clone(),
            handle,
            kind,
            bounds: series.bounds.into(),
            metric: series.name.into(),
        }))
    }

    pub(super) fn flush(&self, deadline: Duration) -> Result<(), BackendError> {
        let Some(_inside) = self.enter() else {
            let why = format!("library {:?} has ended: it was shut down", self.library);
            return Err(BackendError::other(NAME, why));
        };
        self.call_flush(deadline)
    }

    fn call_flush(&self, deadline: Duration) -> Result<(), BackendError> {
        let Some(flush) = self.calls.flush else {
            return Ok(());
        };
        // SAFETY: as the header says.
        let status = unsafe { flush(self.backend, nanos(deadline)) };
        self.outcome("flush", status)
    }

    /// Once; after that there is nothing left to do. The library may free what it needs for its work, so it is called no more
    /// but to release and to destroy; what is under way has half of the time to return.
    pub(super) fn shutdown(&self, deadline: Duration) -> Result<(), BackendError> {
        if self.shut_down.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        let start = Instant::now();
        let empty = || self.inside.load(Ordering::SeqCst) == 0;
        let returned = self.left.wait_until(deadline / 2, empty);
        let left = deadline.saturating_sub(start.elapsed());
        match self.calls.shutdown {
            None => self.call_flush(left)?,
            Some(shutdown) => {
                // SAFETY: as the header says.
                let status = unsafe { shutdown(self.backend, nanos(left)) };
                self.outcome("shutdown", status)?;
            }
        }
        if returned {
            return Ok(());
        }
        Err(BackendError::Deadline {
            backend: NAME.to_owned(),
            deadline,
            why: format!(
                "library {:?} was shut down while a call of another thread was under way",
                self.library
            ),
        })
    }

    fn outcome(&self, function: &str, status: i32) -> Result<(), BackendError> {
        if status == MB_OK {
            return Ok(());
        }
        let words = words(&self.calls);
        Err(BackendError::other(
            NAME,
            format!(
                "library {:?} failed in {function} ({status}): {words}",
                self.library
            ),
        ))
    }

    /// Nobody can be told of it who could do something: it is counted, and logged ever more seldom.
    #[cold]
    fn note(&self, function: &str, metric: &str, status: i32) {
        let failed = self.failed.fetch_add(1, Ordering::Relaxed) + 1;
        if failed.is_power_of_two() {
            let words = words(&self.calls);
            tracing::error!(
                library = self.library,
                metric,
                failed,
                "metricbus: the library failed in {function} ({status}): {words}"
            );
        }
    }
}

/// A call is under way.
struct Inside<'a>(&'a Instance);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::SeqCst);
        if self.0.shut_down.load(Ordering::SeqCst) {
            self.0.left.tell();
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // SAFETY: every series holds the instance, so all of them were released, and this is the last call.
        unsafe { (self.calls.destroy)(self.backend) };
    }
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Libnv")
            .field("library", &self.library)
            .field("failed", &self.failed())
            .finish_non_exhaustive()
    }
}

impl Counts for Instance {
    fn families(&self) -> Vec<FamilySnapshot> {
        vec![FamilySnapshot {
            name: "metricbus_libnv_failed_calls_total".to_owned(),
            help: "Calls of a library's that failed: what they told is missing there.".to_owned(),
            unit: None,
            kind: MetricKind::Counter,
            series: vec![SeriesSnapshot {
                labels: vec![("library".to_owned(), self.library.clone())],
                value: SampleValue::Counter(Value::U64(self.failed())),
            }],
        }]
    }
}

/// One series, as the library has it.
pub(super) struct Handle {
    instance: Arc<Instance>,
    /// The library's own, never looked at.
    handle: *mut c_void,
    kind: i32,
    bounds: Box<[f64]>,
    metric: Box<str>,
}

// SAFETY: the header tells the library that it is called by any thread.
unsafe impl Send for Handle {}
// SAFETY: and by several at once; of mutations there is one at a time.
unsafe impl Sync for Handle {}

impl Handle {
    #[inline]
    fn outcome(&self, function: &str, status: i32) {
        if status != MB_OK {
            self.instance.note(function, &self.metric, status);
        }
    }

    /// `None`: there is nobody to be told of a mutation any more.
    #[inline]
    fn told(&self) -> Option<&Instance> {
        let instance = &*self.instance;
        (!instance.is_shut_down()).then_some(instance)
    }
}

impl Mirror for Handle {
    fn inc(&self, by: u64) {
        let Some(Instance { calls, backend, .. }) = self.told() else {
            return;
        };
        // SAFETY: the backend lives, and the series was not released.
        self.outcome("inc", unsafe { (calls.inc)(*backend, self.handle, by) });
    }

    fn add(&self, by: f64) {
        let Some(Instance { calls, backend, .. }) = self.told() else {
            return;
        };
        if let Some(add) = calls.add {
            // SAFETY: as above.
            self.outcome("add", unsafe { add(*backend, self.handle, by) });
        }
    }

    fn set(&self, value: f64) {
        let Some(Instance { calls, backend, .. }) = self.told() else {
            return;
        };
        // SAFETY: as above.
        self.outcome("set", unsafe { (calls.set)(*backend, self.handle, value) });
    }

    fn observe(&self, value: f64) {
        let Some(Instance { calls, backend, .. }) = self.told() else {
            return;
        };
        // SAFETY: as above.
        let status = unsafe { (calls.observe)(*backend, self.handle, value) };
        self.outcome("observe", status);
    }

    fn read(&self) -> Option<SampleValue> {
        let _inside = self.instance.enter()?;
        let Instance { calls, backend, .. } = &*self.instance;
        let histogram = self.kind == MB_HISTOGRAM;
        let mut buckets = vec![0_u64; if histogram { self.bounds.len() + 1 } else { 0 }];
        let mut value = mb_value {
            size: size_of::<mb_value>(),
            kind: self.kind,
            whole: 0,
            real: 0.0,
            sum: 0.0,
            buckets: buckets.as_mut_ptr(),
            buckets_len: buckets.len(),
        };
        // SAFETY: as above; and there is room for as many buckets as `buckets_len` says.
        let status = unsafe { (calls.get_value)(*backend, self.handle, &mut value) };
        if status != MB_OK {
            self.outcome("get_value", status);
            return None;
        }
        Some(match self.kind {
            MB_COUNTER => SampleValue::Counter(Value::U64(value.whole)),
            MB_REAL_COUNTER => SampleValue::Counter(Value::F64(value.real)),
            MB_GAUGE => SampleValue::Gauge(value.real),
            _ => {
                let mut count = 0_u64;
                let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
                let buckets = bounds.zip(buckets).map(|(bound, n)| {
                    count = count.saturating_add(n);
                    (bound, count)
                });
                SampleValue::Histogram(HistogramSnapshot {
                    buckets: buckets.collect(),
                    sum: value.sum,
                    count,
                })
            }
        })
    }

    fn remove(&self) {
        let Some(_inside) = self.instance.enter() else {
            return;
        };
        let Instance { calls, backend, .. } = &*self.instance;
        if let Some(remove) = calls.remove {
            // SAFETY: as above.
            self.outcome("remove", unsafe { remove(*backend, self.handle) });
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let Instance { calls, backend, .. } = &*self.instance;
        // SAFETY: the backend lives, and nobody else has this handle: it is the last call with it.
        unsafe { (calls.release)(*backend, self.handle) };
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LibnvSeries")
            .field("metric", &self.metric)
            .field("library", &self.instance.library)
            .finish_non_exhaustive()
    }
}
