//! Backends: where a component's metrics go.
//!
//! A metric is stored once, in its cell on a [`MetricBus`]; a backend is told of the bus and either
//! *reads* it, when it is scraped or its interval is over, or *mirrors* it: a [`Mirror`] gets each mutation of a series,
//! for a far end that counts by itself. Thresholds, rules and windows work in the same way whatever the backend is.
//!
//! | backend | in [`METRICBUS_BACKEND`](crate::component::Backends) | metrics go |
//! |---|---|---|
//! | [`Prometheus`] | `prometheus` | to whoever scrapes the bus, by an [`Exporter`](crate::export) |
//! | `Otlp` (feature `otlp`) | `otlp` | to an OpenTelemetry collector, each interval |
//! | `Libnv` (feature `libnv`) | `libnv` or `libnv:PATH` | to a shared library with a C interface, each mutation |
//! | [`Null`] | `null` | nowhere |
//! | [`Tee`] | `tee:A,B` | to several of them |
//!
//! # Writing one
//!
//! A backend of your own lives in your own crate. Implement [`Backend`]; where the far end wants each mutation, say so in
//! [`mirrors`](Backend::mirrors) and make a [`Mirror`] for each series. Then put it under a container, by hand or by its
//! name in the environment ([`Backends::with`](crate::component::Backends::with)). `examples/own_backend.rs` is one from
//! end to end, and `docs/backends.md` says what a backend may and must do.
//!
//! ```
//! use std::sync::{Arc, Mutex};
//! use metricbus::{
//!     BaseComponentMetrics, MetricBus,
//!     backend::{Backend, BackendError, Declared, Mirror},
//!     component::BackendContainer,
//! };
//!
//! /// Writes down what is done to each series.
//! #[derive(Debug, Default)]
//! struct Diary(Arc<Mutex<Vec<String>>>);
//!
//! #[derive(Debug)]
//! struct Page(String, Arc<Mutex<Vec<String>>>);
//!
//! impl Backend for Diary {
//!     fn name(&self) -> &str {
//!         "diary"
//!     }
//!
//!     fn mirrors(&self) -> bool {
//!         true
//!     }
//!
//!     fn declare(&self, series: &Declared<'_>) -> Result<Option<Box<dyn Mirror>>, BackendError> {
//!         Ok(Some(Box::new(Page(series.name.to_owned(), self.0.clone()))))
//!     }
//! }
//!
//! impl Mirror for Page {
//!     fn inc(&self, by: u64) {
//!         self.1.lock().unwrap().push(format!("{} +{by}", self.0));
//!     }
//! }
//!
//! let diary = Diary::default();
//! let entries = diary.0.clone();
//! let container = BackendContainer::with_backend(&MetricBus::new(), "myapp", Arc::new(diary))?;
//! let base = BaseComponentMetrics::new(Arc::new(container));
//! base.container.create_counter("jobs_total", "Jobs done.", &[])?.inc_by(2);
//! assert_eq!(*entries.lock().unwrap(), ["myapp_jobs_total +2"]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod arrivals;
pub(crate) mod courier;
#[cfg(feature = "libnv")]
pub mod libnv;
mod null;
#[cfg(feature = "otlp")]
mod otlp;
mod prometheus;
mod tee;

use std::{fmt, time::Duration};

#[cfg(feature = "otlp")]
pub use self::otlp::{
    Otlp, OtlpCompression, OtlpContainer, OtlpExporter, OtlpHistograms, OtlpOptions, OtlpProtocol,
    OtlpStatus, OtlpTemporality,
};
pub use self::{null::Null, prometheus::Prometheus, tee::Tee};
use crate::{MetricBus, MetricKind, SampleValue};

/// Somewhere that metrics go to. See [the module](self).
///
/// All methods may be called by several threads at once. None is called under a lock of the bus.
pub trait Backend: fmt::Debug + Send + Sync {
    /// What it is called, in messages and in `METRICBUS_BACKEND`: lower-case letters, digits and `_`.
    fn name(&self) -> &str;

    /// The bus that it is to report. Called once, before any metric is made through the container. A backend that reads
    /// keeps a clone, or what it has made of it, until [`shutdown`](Self::shutdown).
    ///
    /// # Errors
    ///
    /// Where it can't work: the container is not made, then.
    fn attach(&self, bus: &MetricBus) -> Result<(), BackendError> {
        let _ = bus;
        Ok(())
    }

    /// Whether it wants each mutation. Only then is [`declare`](Self::declare) called, and only then do mutations cost more
    /// than without a backend: some 50 ns, and what the [`Mirror`] takes. Asked once.
    fn mirrors(&self) -> bool {
        false
    }

    /// A series is there, and its mutations are to be mirrored. Called once for each series of the bus, before its first mutation is
    /// told; `None` leaves the series out.
    ///
    /// A series that is created through a container is declared at once. One that is made otherwise (by a derived struct,
    /// as a child of a family) is declared with its first mutation.
    ///
    /// # Errors
    ///
    /// Where the far end refuses it: creating the metric through the container fails with these words. Otherwise the
    /// refusal is counted (`metricbus_backend_refused_total`) and logged.
    fn declare(&self, series: &Declared<'_>) -> Result<Option<Box<dyn Mirror>>, BackendError> {
        let _ = series;
        Ok(None)
    }

    /// Has what was counted until now at the far end when it returns.
    ///
    /// # Errors
    ///
    /// Where that did not happen within `deadline`.
    fn flush(&self, deadline: Duration) -> Result<(), BackendError> {
        let _ = deadline;
        Ok(())
    }

    /// The last flush; nothing is sent after it. Calling it again does nothing.
    ///
    /// A container that is shut down has told its mirrors everything before, tells them of nothing more, neither mutations nor
    /// removed series, and declares nothing more: what they need may be freed here. It waits for a call that is under way, within
    /// the deadline; one that takes longer is still at it meanwhile. [`Mirror::read`] may come at any time, and should give
    /// `None` then. Whoever calls this past the container has to see to that.
    ///
    /// # Errors
    ///
    /// As [`flush`](Self::flush).
    fn shutdown(&self, deadline: Duration) -> Result<(), BackendError> {
        self.flush(deadline)
    }
}

/// One series at the far end of a backend that mirrors.
///
/// Methods are called in the thread that mutated, after its mutation and outside of all locks: **what they take, that thread
/// waits for**. They are called one at a time per series, in the order of the mutations; a thread that
/// finds another one at it leaves its mutations to that one. Where the far end is slower than several threads mutate, a
/// counter's and a gauge's mutations may be told as one; observations beyond the 8 192 that may wait are dropped, and counted
/// (`metricbus_backend_dropped_total`). A method that panics is counted and logged; the mutation has happened on the bus.
///
/// Of the four mutations only those of the series' type are called.
pub trait Mirror: fmt::Debug + Send + Sync {
    /// A counter of `u64` grew. Never by 0.
    fn inc(&self, by: u64) {
        let _ = by;
    }

    /// A counter of `f64` grew. Never by 0 or NaN.
    fn add(&self, by: f64) {
        let _ = by;
    }

    /// A gauge has this value now: NaN and infinities are values, too.
    fn set(&self, value: f64) {
        let _ = value;
    }

    /// A histogram observed this: any double.
    fn observe(&self, value: f64) {
        let _ = value;
    }

    /// The value as the far end has it: what `get_value` of the container's handles says. `None` where it can't be read
    /// back, or where it panics; then they say what the bus has.
    fn read(&self) -> Option<SampleValue> {
        None
    }

    /// The series was removed or has expired. Nothing is called after it but `read`. One that is made again with the same
    /// name and labels is another series, with a mirror of its own; where the far end is slow and several threads are at it, that one may
    /// be declared before this is called.
    fn remove(&self) {}
}

/// A series that a backend is told of.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Declared<'a> {
    /// The metric's full name.
    pub name: &'a str,
    /// What it means.
    pub help: &'a str,
    /// Its unit, where one was declared.
    pub unit: Option<&'a str>,
    /// Its type.
    pub kind: MetricKind,
    /// Whether it is a counter that counts in `f64`: told by [`Mirror::add`].
    pub fractional: bool,
    /// All labels, names and values.
    pub labels: &'a [(String, String)],
    /// Upper bounds of a histogram's buckets, without +Inf; empty for other types.
    pub bounds: &'a [f64],
}

/// What went wrong in or on the way to a backend.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// There is no backend of this name.
    #[error("{origin} is {value:?}, which names no backend: {why}; there are {right}")]
    Unknown {
        /// Where it was said: `METRICBUS_BACKEND`.
        origin: String,
        /// What was said.
        value: String,
        /// What is wrong with it.
        why: String,
        /// What may be said.
        right: String,
    },
    /// A setting has a wrong value.
    #[error("{setting} is {value:?}: {why}")]
    Setting {
        /// The variable's or option's name.
        setting: String,
        /// Its value.
        value: String,
        /// What is wrong, and what would be right.
        why: String,
    },
    /// It can't be set up.
    #[error("backend {backend:?} can't be used: {why}")]
    Setup {
        /// The backend.
        backend: String,
        /// Why, and what to do.
        why: String,
    },
    /// It refused a metric.
    #[error("backend {backend:?} refused the metric {metric:?}: {why}")]
    Refused {
        /// The backend.
        backend: String,
        /// The metric's full name.
        metric: String,
        /// What the backend said.
        why: String,
    },
    /// Not everything was at the far end when the time was over.
    #[error("backend {backend:?} was not done within {deadline:?}: {why}")]
    Deadline {
        /// The backend.
        backend: String,
        /// The time that there was.
        deadline: Duration,
        /// What is left, and why.
        why: String,
    },
    /// Something else.
    #[error("backend {backend:?}: {why}")]
    Other {
        /// The backend.
        backend: String,
        /// What.
        why: String,
    },
}

impl BackendError {
    /// An error in the backend's own words.
    ///
    /// ```
    /// use metricbus::backend::BackendError;
    ///
    /// let error = BackendError::other("acme", "the licence has run out");
    /// assert_eq!(error.to_string(), r#"backend "acme": the licence has run out"#);
    /// ```
    pub fn other(backend: impl Into<String>, why: impl fmt::Display) -> Self {
        BackendError::Other {
            backend: backend.into(),
            why: why.to_string(),
        }
    }
}
