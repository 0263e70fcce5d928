//! Object-safe containers, for components that choose their backend when they start.
//!
//! A component that knows its backend declares a struct with `#[derive(Metrics)]`. One that doesn't holds boxed metrics
//! and creates them through a [`MetricContainer`]. The containers of this crate are scopes of a
//! [`MetricBus`] with a [`Backend`](crate::backend::Backend) beside it, so metrics made either way live side by side and are
//! reported alike; [`BaseComponentMetrics::from_env`] lets the environment choose.
//!
//! ```
//! use metricbus::{BaseComponentMetrics, DeclareError, MetricCounter, MetricGauge};
//!
//! struct ApiMetrics {
//!     base: BaseComponentMetrics,
//!     requests: Box<dyn MetricCounter>,
//!     response_time: Box<dyn MetricGauge>,
//! }
//!
//! impl ApiMetrics {
//!     fn new(base: BaseComponentMetrics) -> Result<Self, DeclareError> {
//!         let labels = [("service", "api"), ("version", "v1")];
//!         let container = &base.container;
//!         Ok(ApiMetrics {
//!             requests: container.create_counter("requests_total", "Total number of requests", &labels)?,
//!             response_time: container.create_gauge("response_time_seconds", "Response time in seconds", &labels)?,
//!             base,
//!         })
//!     }
//! }
//!
//! let metrics = ApiMetrics::new(BaseComponentMetrics::new_prometheus("myapp"))?;
//! metrics.requests.inc();
//! metrics.requests.inc_by(5);
//! metrics.response_time.set(0.15);
//! metrics.response_time.inc(0.05);
//! assert_eq!(
//!     metrics.base.container.export_prometheus(),
//!     "# HELP myapp_requests_total Total number of requests\n\
//!      ## TYPE myapp_requests_total counter\n\
//!      myapp_requests_total{service=\"api\",version=\"v1\"} 6\n\
//!      ## HELP myapp_response_time_seconds Response time in seconds\n\
//!      ## TYPE myapp_response_time_seconds gauge\n\
//!      myapp_response_time_seconds{service=\"api\",version=\"v1\"} 0.2\n"
//! );
//! # Ok::<(), DeclareError>(())
//! ```

mod base;
mod container;
mod env;

use std::{fmt, io::Write, sync::Arc, time::Duration};

pub use self::{
    base::BaseComponentMetrics,
    container::{BackendContainer, NullContainer, PrometheusContainer, TeeContainer},
    env::{Backends, Choice},
};
use crate::{
    Buckets, Counter, DeclareError, Family, Gauge, Histogram, LabelError, MetricBus, Scope, Series,
    Snapshot,
    backend::{BackendError, Mirror},
    export::text::{self, Format},
};

/// Where a component's metrics are made, and what they amount to.
///
/// Names come without the container's prefix. Labels are names and values, in the order in which they are to be shown;
/// labels of a family come after them, with values that are given per child. Creating a metric again in the same way
/// gives the same metric.
///
/// # Implementing one
///
/// The names of metrics and labels, and the buckets, are for the backend to check; [`DeclareError`] has what is usual.
/// [`get_metrics`](Self::get_metrics) is plain data that says nothing of any format; the two methods that write text are
/// written in terms of it.
///
/// ```
/// use metricbus::{MetricContainer, PrometheusContainer};
///
/// let container: Box<dyn MetricContainer> = Box::new(PrometheusContainer::new("myapp"));
/// let counter = container.create_counter("jobs_total", "Jobs done.", &[])?;
/// counter.inc();
/// assert_eq!(container.get_metrics().families[0].name, "myapp_jobs_total");
/// # Ok::<(), metricbus::DeclareError>(())
/// ```
pub trait MetricContainer: Send + Sync + fmt::Debug {
    /// A counter with these labels.
    ///
    /// # Errors
    ///
    /// Where the name, a label or the like is not valid, or the metric clashes with one that was created before.
    ///
    /// ```
    /// # use metricbus::{MetricContainer, PrometheusContainer};
    /// let container = PrometheusContainer::new("");
    /// let jobs = container.create_counter("jobs_total", "Jobs done.", &[("queue", "fast")])?;
    /// jobs.inc_by(2);
    /// assert_eq!(jobs.get_value(), 2);
    /// # Ok::<(), metricbus::DeclareError>(())
    /// ```
    fn create_counter(
        &self,
        name: &str,
        help: &str,
        labels: &[(&str, &str)],
    ) -> Result<Box<dyn MetricCounter>, DeclareError>;

    /// A gauge with these labels.
    ///
    /// # Errors
    ///
    /// As [`create_counter`](Self::create_counter).
    ///
    /// ```
    /// # use metricbus::{MetricContainer, PrometheusContainer};
    /// let depth = PrometheusContainer::new("").create_gauge("queue_depth", "Jobs waiting.", &[])?;
    /// depth.set(3.0);
    /// depth.dec(1.0);
    /// assert_eq!(depth.get_value(), 2.0);
    /// # Ok::<(), metricbus::DeclareError>(())
    /// ```
    fn create_gauge(
        &self,
        name: &str,
        help: &str,
        labels: &[(&str, &str)],
    ) -> Result<Box<dyn MetricGauge>, DeclareError>;

    /// A histogram with these labels and buckets.
    ///
    /// # Errors
    ///
    /// As [`create_counter`](Self::create_counter), and where the buckets can't be used.
    ///
    /// ```
    /// # use metricbus::{Buckets, MetricContainer, PrometheusContainer};
    /// let container = PrometheusContainer::new("");
    /// let latency = container.create_histogram("latency_seconds", "Time to answer.", &[], Buckets::default())?;
    /// latency.observe(0.25);
    /// assert_eq!((latency.get_count(), latency.get_sum()), (1, 0.25));
    /// # Ok::<(), metricbus::DeclareError>(())
    /// ```
    fn create_histogram(
        &self,
        name: &str,
        help: &str,
        labels: &[(&str, &str)],
        buckets: Buckets,
    ) -> Result<Box<dyn MetricHistogram>, DeclareError>;

    /// Counters that differ in the values of the labels `names`.
    ///
    /// # Errors
    ///
    /// As [`create_counter`](Self::create_counter), and where `names` is empty.
    ///
    /// ```
    /// # use metricbus::{MetricContainer, PrometheusContainer};
    /// let container = PrometheusContainer::new("");
    /// let requests = container.create_counter_family("requests_total", "Requests.", &[], &["method"])?;
    /// requests.with_label_values(&["GET"])?.inc();
    /// assert_eq!(requests.with_label_values(&["GET"])?.get_value(), 1);
    /// assert!(requests.remove(&["GET"])?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    fn create_counter_family(
        &self,
        name: &str,
        help: &str,
        labels: &[(&str, &str)],
        names: &[&str],
    ) -> Result<Box<dyn MetricFamily<dyn MetricCounter>>, DeclareError>;

    /// Gauges that differ in the values of the labels `names`.
    ///
    /// # Errors
    ///
    /// As [`create_counter_family`](Self::create_counter_family).
    ///
    /// ```
    /// # use metricbus::{MetricContainer, PrometheusContainer};
    /// let container = PrometheusContainer::new("");
    /// let depth = container.create_gauge_family("queue_depth", "Jobs waiting.", &[], &["queue"])?;
    /// depth.with_label_values(&["fast"])?.set(3.0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    fn create_gauge_family(
        &self,
        name: &str,
        help: &str,
        labels: &[(&str, &str)],
        names: &[&str],
    ) -> Result<Box<dyn MetricFamily<dyn MetricGauge>>, DeclareError>;

    /// Histograms that differ in the values of the labels `names`.
    ///
    /// # Errors
    ///
    /// As [`create_counter_family`](Self::create_counter_family), and where the buckets can't be used.
    ///
    /// ```
    /// # use metricbus::{Buckets, MetricContainer, PrometheusContainer};
    /// let container = PrometheusContainer::new("");
    /// let buckets = Buckets::linear(1.0, 1.0, 8)?;
    /// let batch = container.create_histogram_family("batch_size", "Requests in a batch.", &[], &["model"], buckets)?;
    /// batch.with_label_values(&["small"])?.observe(4.0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    fn create_histogram_family(
        &self,
        name: &str,
        help: &str,
        labels: &[(&str, &str)],
        names: &[&str],
        buckets: Buckets,
    ) -> Result<Box<dyn MetricFamily<dyn MetricHistogram>>, DeclareError>;

    /// Every metric of the backend, as far as it can be read back, with its value now.
    ///
    /// ```
    /// # use metricbus::{MetricContainer, PrometheusContainer};
    /// let container = PrometheusContainer::new("myapp");
    /// container.create_gauge("ready", "Whether all is set up.", &[])?.set(1.0);
    /// assert!(container.get_metrics().family("myapp_ready").is_some());
    /// # Ok::<(), metricbus::DeclareError>(())
    /// ```
    fn get_metrics(&self) -> Snapshot;

    /// The bus on which subscriptions to these metrics can be made; `None` for a backend without one.
    ///
    /// ```
    /// # use metricbus::{BaseComponentMetrics, Threshold};
    /// let base = BaseComponentMetrics::new_prometheus("myapp");
    /// base.container.create_gauge("kv_usage", "Share of the KV cache in use.", &[])?;
    /// if let Some(bus) = base.container.bus() {
    ///     let _subscription = bus.on_threshold("myapp_kv_usage", Threshold::above(0.9)).call(|_| {})?;
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    fn bus(&self) -> Option<&MetricBus> {
        None
    }

    /// The scope on which structs of metrics are registered, so that they come out beside what is created here; `None`
    /// for a backend that is not on a bus.
    ///
    /// ```
    /// # use metricbus::{MetricContainer, PrometheusContainer};
    /// let container = PrometheusContainer::new("myapp");
    /// assert_eq!(container.scope().unwrap().prefix(), "myapp_");
    /// ```
    fn scope(&self) -> Option<&Scope> {
        None
    }

    /// The far end's side of a series on the container's bus, for who reads values back by himself. It is declared there
    /// now, if it was not yet. `None` for a backend that does not mirror, or leaves this series out.
    ///
    /// # Errors
    ///
    /// Where the backend refused the series.
    ///
    /// ```
    /// # use metricbus::{MetricContainer, PrometheusContainer};
    /// let container = PrometheusContainer::new("myapp");
    /// let jobs = container.bus().counter("jobs_total", "Jobs done.")?;
    /// assert!(container.mirror(&jobs.series())?.is_none());
    /// # Ok::<(), metricbus::DeclareError>(())
    /// ```
    fn mirror(&self, series: &Series) -> Result<Option<Arc<dyn Mirror>>, DeclareError> {
        let _ = series;
        Ok(None)
    }

    /// Has what was counted until now at the far end when it returns. Waits: not for the event loop of an async runtime.
    ///
    /// # Errors
    ///
    /// Where that did not happen within `deadline`.
    ///
    /// ```
    /// # use metricbus::{MetricContainer, PrometheusContainer};
    /// # use std::time::Duration;
    /// PrometheusContainer::new("myapp").flush(Duration::from_secs(5))?;
    /// # Ok::<(), metricbus::backend::BackendError>(())
    /// ```
    fn flush(&self, deadline: Duration) -> Result<(), BackendError> {
        let _ = deadline;
        Ok(())
    }

    /// The last flush: to be called before the process ends. Nothing is reported after it; metrics can still be counted.
    ///
    /// # Errors
    ///
    /// As [`flush`](Self::flush).
    ///
    /// ```
    /// # use metricbus::{MetricContainer, PrometheusContainer};
    /// # use std::time::Duration;
    /// PrometheusContainer::new("myapp").shutdown(Duration::from_secs(5))?;
    /// # Ok::<(), metricbus::backend::BackendError>(())
    /// ```
    fn shutdown(&self, deadline: Duration) -> Result<(), BackendError> {
        self.flush(deadline)
    }

    /// [`get_metrics`](Self::get_metrics) in Prometheus text 0.0.4, without what an exporter adds about the process.
    ///
    /// ```
    /// # use metricbus::{MetricContainer, PrometheusContainer};
    /// let container = PrometheusContainer::new("myapp");
    /// container.create_counter("jobs_total", "Jobs done.", &[])?.inc();
    /// assert!(container.export_prometheus().ends_with("\nmyapp_jobs_total 1\n"));
    /// # Ok::<(), metricbus::DeclareError>(())
    /// ```
    fn export_prometheus(&self) -> String {
        let mut out = Vec::new();
        text::encode_families(&self.get_metrics().families, Format::Text, &mut out);
        String::from_utf8_lossy(&out).into_owned()
    }

    /// Prints [`export_prometheus`](Self::export_prometheus) to standard output.
    ///
    /// ```
    /// # use metricbus::{MetricContainer, PrometheusContainer};
    /// PrometheusContainer::new("myapp").print_metrics();
    /// ```
    fn print_metrics(&self) {
        // A closed standard output is no reason to panic.
        let _ = std::io::stdout().write_all(self.export_prometheus().as_bytes());
    }
}

/// A counter of any backend.
///
/// ```
/// use metricbus::{MetricBus, MetricCounter};
///
/// let counter: Box<dyn MetricCounter> = Box::new(MetricBus::new().counter("jobs_total", "Jobs done.")?);
/// counter.inc();
/// counter.inc_by(5);
/// assert_eq!(counter.get_value(), 6);
/// # Ok::<(), metricbus::DeclareError>(())
/// ```
pub trait MetricCounter: Send + Sync + fmt::Debug {
    /// One more.
    fn inc(&self);
    /// `amount` more.
    fn inc_by(&self, amount: u64);
    /// The value now; 0 for a backend that can't be read back.
    fn get_value(&self) -> u64;
}

/// A gauge of any backend.
///
/// ```
/// use metricbus::{MetricBus, MetricGauge};
///
/// let gauge: Box<dyn MetricGauge> = Box::new(MetricBus::new().gauge("queue_depth", "Jobs waiting.")?);
/// gauge.set(3.0);
/// gauge.inc(2.0);
/// gauge.dec(0.5);
/// assert_eq!(gauge.get_value(), 4.5);
/// # Ok::<(), metricbus::DeclareError>(())
/// ```
pub trait MetricGauge: Send + Sync + fmt::Debug {
    /// Sets it.
    fn set(&self, value: f64);
    /// Raises it.
    fn inc(&self, by: f64);
    /// Lowers it.
    fn dec(&self, by: f64);
    /// The value now; NaN where it was never set, and for a backend that can't be read back.
    fn get_value(&self) -> f64;
}

/// A histogram of any backend.
///
/// ```
/// use metricbus::{Buckets, MetricBus, MetricHistogram};
///
/// let bus = MetricBus::new();
/// let histogram: Box<dyn MetricHistogram> =
///     Box::new(bus.histogram("latency_seconds", "Time to answer.", Buckets::default())?);
/// histogram.observe(0.5);
/// assert_eq!((histogram.get_count(), histogram.get_sum()), (1, 0.5));
/// # Ok::<(), metricbus::DeclareError>(())
/// ```
pub trait MetricHistogram: Send + Sync + fmt::Debug {
    /// Counts one observation.
    fn observe(&self, value: f64);
    /// How many observations there were; 0 for a backend that can't be read back.
    fn get_count(&self) -> u64;
    /// Their sum; NaN for a backend that can't be read back.
    fn get_sum(&self) -> f64;
}

/// Metrics of one name that differ in the values of their labels. `M` is `dyn MetricCounter` and the like.
///
/// ```
/// use metricbus::{Counter, Desc, MetricBus, MetricCounter, MetricFamily};
///
/// let family = MetricBus::new().family::<Counter>(Desc::new("requests_total", "Requests.").labels(["method"]))?;
/// let family: Box<dyn MetricFamily<dyn MetricCounter>> = Box::new(family);
/// family.with_label_values(&["GET"])?.inc();
/// assert!(family.with_label_values(&["GET", "/"]).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait MetricFamily<M: ?Sized>: Send + Sync + fmt::Debug {
    /// The child with these values, in the order in which the labels were named. It is made where there is none. Worth
    /// keeping: looking it up costs more than counting.
    ///
    /// # Errors
    ///
    /// Where there are more or fewer values than labels.
    fn with_label_values(&self, values: &[&str]) -> Result<Box<M>, LabelError>;

    /// Takes the child away, and says whether there was one. Who still holds it counts for nobody.
    ///
    /// # Errors
    ///
    /// Where there are more or fewer values than labels.
    fn remove(&self, values: &[&str]) -> Result<bool, LabelError>;
}

impl MetricCounter for Counter {
    fn inc(&self) {
        Counter::inc(self);
    }

    fn inc_by(&self, amount: u64) {
        Counter::inc_by(self, amount);
    }

    fn get_value(&self) -> u64 {
        self.get()
    }
}

impl MetricGauge for Gauge {
    fn set(&self, value: f64) {
        Gauge::set(self, value);
    }

    fn inc(&self, by: f64) {
        self.add(by);
    }

    fn dec(&self, by: f64) {
        self.sub(by);
    }

    fn get_value(&self) -> f64 {
        self.get().unwrap_or(f64::NAN)
    }
}

impl MetricHistogram for Histogram {
    fn observe(&self, value: f64) {
        Histogram::observe(self, value);
    }

    fn get_count(&self) -> u64 {
        self.snapshot().count
    }

    fn get_sum(&self) -> f64 {
        self.snapshot().sum
    }
}

macro_rules! family {
    ($($metric:ty => $object:ty),*) => {$(
        impl MetricFamily<$object> for Family<$metric> {
            fn with_label_values(&self, values: &[&str]) -> Result<Box<$object>, LabelError> {
                Ok(Box::new(Family::with_label_values(self, values)?))
            }

            fn remove(&self, values: &[&str]) -> Result<bool, LabelError> {
                Family::remove(self, values)
            }
        }
    )*};
}

family!(Counter => dyn MetricCounter, Gauge => dyn MetricGauge, Histogram => dyn MetricHistogram);
