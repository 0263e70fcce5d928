//! The container on a bus, with whatever backend.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{MetricContainer, MetricCounter, MetricFamily, MetricGauge, MetricHistogram};
use crate::{
    Buckets, Counter, DeclareError, Desc, Family, Gauge, Histogram, LabelError, Metric, MetricBus,
    SampleValue, Scope, Series, Snapshot, Value,
    backend::{Backend, BackendError, Mirror, Null, Prometheus, Tee, courier::Couriers},
    export::text::{self, Format},
    series::SeriesCore,
};

/// The container whose metrics a Prometheus scrapes.
///
/// Clones share the bus.
///
/// ```
/// use metricbus::{MetricBus, MetricContainer, PrometheusContainer};
///
/// let bus = MetricBus::new();
/// let container = PrometheusContainer::on(&bus, "myapp");
/// container.create_counter("jobs_total", "Jobs done.", &[])?.inc();
/// assert_eq!(bus.counter("myapp_jobs_total", "Jobs done.")?.get(), 1);
/// # Ok::<(), metricbus::DeclareError>(())
/// ```
pub type PrometheusContainer = BackendContainer<Prometheus>;

/// The container whose metrics go nowhere. They are counted on its bus.
pub type NullContainer = BackendContainer<Null>;

/// The container whose metrics go to several backends.
pub type TeeContainer = BackendContainer<Tee>;

/// A container that is a scope of a [`MetricBus`] with a [`Backend`]: every metric of the bus is reported there, whether
/// it was created here, by a derived struct, or on the bus itself.
///
/// Clones share the bus and the backend. When the last one is dropped, and the last metric and family made in it, a backend that
/// mirrors is told of nothing more; call [`shutdown`](MetricContainer::shutdown) before, so that nothing is left behind.
pub struct BackendContainer<B: Backend + ?Sized = dyn Backend> {
    scope: Scope,
    backend: Arc<B>,
    /// For a backend that mirrors.
    couriers: Option<Arc<Couriers>>,
}

impl<B: Backend + 'static> BackendContainer<B> {
    /// A container on `bus` with this backend. `prefix` is that of [`PrometheusContainer::new`].
    ///
    /// One backend belongs to one bus: make another for another bus.
    ///
    /// # Errors
    ///
    /// Where the backend [can't work](Backend::attach).
    ///
    /// ```
    /// use std::sync::Arc;
    /// use metricbus::{MetricBus, MetricContainer, backend::Null, component::BackendContainer};
    ///
    /// let bus = MetricBus::new();
    /// let container = BackendContainer::with_backend(&bus, "myapp", Arc::new(Null))?;
    /// container.create_gauge("ready", "Whether all is set up.", &[])?.set(1.0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn with_backend(
        bus: &MetricBus,
        prefix: &str,
        backend: Arc<B>,
    ) -> Result<Self, BackendError> {
        let same = backend.clone();
        BackendContainer::assemble(bus, prefix, backend, same)
    }
}

impl BackendContainer {
    /// As [`with_backend`](BackendContainer::with_backend), for a backend that is known at run time only.
    ///
    /// # Errors
    ///
    /// Where the backend [can't work](Backend::attach).
    pub fn with_dyn(
        bus: &MetricBus,
        prefix: &str,
        backend: Arc<dyn Backend>,
    ) -> Result<Self, BackendError> {
        let same = backend.clone();
        BackendContainer::assemble(bus, prefix, backend, same)
    }
}

fn scope_of(bus: &MetricBus, prefix: &str) -> Scope {
    let scope = bus.scope();
    match prefix {
        "" => scope,
        _ if prefix.ends_with('_') => scope.with_prefix(prefix),
        _ => scope.with_prefix(prefix).with_prefix("_"),
    }
}

impl BackendContainer<Prometheus> {
    /// A container on a bus of its own.
    ///
    /// `prefix` comes before each name, with a `_` between: `myapp` makes `myapp_requests_total`. It may be empty. One
    /// that can't begin a name is an error of what is created.
    ///
    /// ```
    /// use metricbus::{MetricContainer, PrometheusContainer};
    ///
    /// let error = PrometheusContainer::new("my\"app").create_gauge("ready", "Ready.", &[]).unwrap_err();
    /// assert!(error.to_string().contains("app_ready"));
    /// ```
    pub fn new(prefix: &str) -> Self {
        PrometheusContainer::on(&MetricBus::new(), prefix)
    }

    /// A container on a bus that there is already, where others may declare metrics too.
    ///
    /// ```
    /// use metricbus::{MetricBus, MetricContainer, PrometheusContainer};
    ///
    /// let bus = MetricBus::new();
    /// bus.gauge("up", "Whether it is up.")?.set(1.0);
    /// let text = PrometheusContainer::on(&bus, "myapp").export_prometheus();
    /// assert_eq!(text, "# HELP up Whether it is up.\n# TYPE up gauge\nup 1\n");
    /// # Ok::<(), metricbus::DeclareError>(())
    /// ```
    pub fn on(bus: &MetricBus, prefix: &str) -> Self {
        BackendContainer {
            scope: scope_of(bus, prefix),
            backend: Arc::new(Prometheus),
            couriers: None,
        }
    }
}

impl BackendContainer<Null> {
    /// A container on a bus of its own. `prefix` is that of [`PrometheusContainer::new`].
    ///
    /// ```
    /// use metricbus::{MetricContainer, NullContainer};
    ///
    /// let jobs = NullContainer::new("myapp").create_counter("jobs_total", "Jobs done.", &[])?;
    /// jobs.inc();
    /// assert_eq!(jobs.get_value(), 1);
    /// # Ok::<(), metricbus::DeclareError>(())
    /// ```
    pub fn new(prefix: &str) -> Self {
        BackendContainer {
            scope: scope_of(&MetricBus::new(), prefix),
            backend: Arc::new(Null),
            couriers: None,
        }
    }
}

impl BackendContainer<Tee> {
    /// A container on a bus of its own, reported by all of `backends`. `prefix` is that of [`PrometheusContainer::new`].
    ///
    /// # Errors
    ///
    /// Where one of the backends can't work.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use metricbus::{MetricContainer, TeeContainer, backend::{Null, Prometheus}};
    ///
    /// let tee = TeeContainer::new("myapp", [Arc::new(Prometheus) as _, Arc::new(Null) as _])?;
    /// assert_eq!(tee.backend().backends().len(), 2);
    /// # Ok::<(), metricbus::backend::BackendError>(())
    /// ```
    pub fn new(
        prefix: &str,
        backends: impl IntoIterator<Item = Arc<dyn Backend>>,
    ) -> Result<Self, BackendError> {
        BackendContainer::with_backend(&MetricBus::new(), prefix, Arc::new(Tee::new(backends)))
    }
}

impl<B: Backend + ?Sized> BackendContainer<B> {
    /// The bus.
    ///
    /// ```
    /// use metricbus::{MetricContainer, PrometheusContainer, Threshold};
    ///
    /// let container = PrometheusContainer::new("myapp");
    /// let usage = container.create_gauge("kv_usage", "Share of the KV cache in use.", &[])?;
    /// let _subscription = container
    ///     .bus()
    ///     .on_threshold("myapp_kv_usage", Threshold::above(0.9))
    ///     .call(|crossing| println!("{}", crossing.series))?;
    /// usage.set(0.95);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn bus(&self) -> &MetricBus {
        self.scope.bus()
    }

    /// The backend.
    ///
    /// ```
    /// use metricbus::{PrometheusContainer, backend::Backend};
    ///
    /// assert_eq!(PrometheusContainer::new("myapp").backend().name(), "prometheus");
    /// ```
    pub fn backend(&self) -> &B {
        &self.backend
    }

    fn declare<M: Metric>(&self, desc: Desc, labels: &[(&str, &str)]) -> Result<M, DeclareError> {
        self.scope.declare(labelled(desc, labels))
    }

    fn family<M: Metric>(
        &self,
        desc: Desc,
        labels: &[(&str, &str)],
        names: &[&str],
    ) -> Result<Family<M>, DeclareError> {
        self.scope
            .family(labelled(desc, labels).labels(names.iter().copied()))
    }

    /// `same`: the backend once more.
    fn assemble(
        bus: &MetricBus,
        prefix: &str,
        backend: Arc<B>,
        same: Arc<dyn Backend>,
    ) -> Result<Self, BackendError> {
        backend.attach(bus)?;
        let mirrors = backend.mirrors();
        Ok(BackendContainer {
            scope: scope_of(bus, prefix),
            backend,
            couriers: mirrors.then(|| Arc::new(Couriers::start(bus, same))),
        })
    }

    /// The far end's side of a series, declared there.
    fn mirror_of(&self, series: &SeriesCore) -> Result<Option<Arc<dyn Mirror>>, DeclareError> {
        let Some(couriers) = &self.couriers else {
            return Ok(None);
        };
        couriers.declare(series).map_err(|error| {
            let metric = series.meta.name.to_string();
            match error {
                BackendError::Refused { why, .. } => DeclareError::Backend { metric, why },
                error => DeclareError::Backend {
                    metric,
                    why: error.to_string(),
                },
            }
        })
    }
}

fn labelled(desc: Desc, labels: &[(&str, &str)]) -> Desc {
    labels
        .iter()
        .fold(desc, |desc, (name, value)| desc.label(*name, *value))
}

/// Three types of metrics, each with a method for one and one for a family.
macro_rules! create {
    ($metric:ty, $object:ty, $one:ident, $family:ident $(, $buckets:ident)?) => {
        fn $one(
            &self,
            name: &str,
            help: &str,
            labels: &[(&str, &str)],
            $($buckets: Buckets,)?
        ) -> Result<Box<$object>, DeclareError> {
            let desc = Desc::new(name, help)$(.buckets($buckets))?;
            let metric = self.declare::<$metric>(desc, labels)?;
            let mirror = self.mirror_of(metric.series().core())?;
            Ok(match (mirror, self.couriers.clone()) {
                (Some(mirror), Some(couriers)) => Box::new(Mirrored {
                    metric,
                    mirror,
                    _couriers: couriers,
                }),
                _ => Box::new(metric),
            })
        }

        fn $family(
            &self,
            name: &str,
            help: &str,
            labels: &[(&str, &str)],
            names: &[&str],
            $($buckets: Buckets,)?
        ) -> Result<Box<dyn MetricFamily<$object>>, DeclareError> {
            let desc = Desc::new(name, help)$(.buckets($buckets))?;
            let family = self.family::<$metric>(desc, labels, names)?;
            Ok(match &self.couriers {
                Some(couriers) => Box::new(MirroredFamily { family, couriers: couriers.clone() }),
                None => Box::new(family),
            })
        }
    };
}

impl<B: Backend + ?Sized> MetricContainer for BackendContainer<B> {
    create!(
        Counter,
        dyn MetricCounter,
        create_counter,
        create_counter_family
    );
    create!(Gauge, dyn MetricGauge, create_gauge, create_gauge_family);
    create!(
        Histogram,
        dyn MetricHistogram,
        create_histogram,
        create_histogram_family,
        buckets
    );

    fn get_metrics(&self) -> Snapshot {
        self.bus().snapshot()
    }

    fn bus(&self) -> Option<&MetricBus> {
        Some(self.scope.bus())
    }

    fn scope(&self) -> Option<&Scope> {
        Some(&self.scope)
    }

    fn mirror(&self, series: &Series) -> Result<Option<Arc<dyn Mirror>>, DeclareError> {
        self.mirror_of(series.core())
    }

    fn flush(&self, deadline: Duration) -> Result<(), BackendError> {
        self.settled(deadline, |left| self.backend.flush(left))
    }

    fn shutdown(&self, deadline: Duration) -> Result<(), BackendError> {
        let Some(couriers) = &self.couriers else {
            return self.backend.shutdown(deadline);
        };
        // The backend may free what a mirror needs: nothing is told any more, or being told, when it is called.
        self.settled(deadline, |left| {
            let start = Instant::now();
            let ended = couriers.end(left / 2);
            ended.and(self.backend.shutdown(left.saturating_sub(start.elapsed())))
        })
    }

    /// Straight from the bus, without a snapshot in between.
    fn export_prometheus(&self) -> String {
        let mut out = Vec::new();
        text::encode(self.scope.bus(), Format::Text, &mut out);
        String::from_utf8_lossy(&out).into_owned()
    }
}

impl<B: Backend + ?Sized> BackendContainer<B> {
    /// Has mirrored mutations told, in half of the time at most, and does the rest in what is left.
    fn settled(
        &self,
        deadline: Duration,
        then: impl FnOnce(Duration) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        let Some(couriers) = &self.couriers else {
            return then(deadline);
        };
        let start = Instant::now();
        // Of a tee, the others may have something to send, too.
        let settled = couriers.settle(deadline / 2);
        settled.and(then(deadline.saturating_sub(start.elapsed())))
    }
}

impl<B: Backend + ?Sized> Clone for BackendContainer<B> {
    fn clone(&self) -> Self {
        BackendContainer {
            scope: self.scope.clone(),
            backend: self.backend.clone(),
            couriers: self.couriers.clone(),
        }
    }
}

impl<B: Backend + ?Sized> fmt::Debug for BackendContainer<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackendContainer")
            .field("scope", &self.scope)
            .field("backend", &&self.backend)
            .finish()
    }
}

/// A metric whose mutations a backend mirrors: only its values are read there.
#[derive(Debug)]
struct Mirrored<M> {
    metric: M,
    mirror: Arc<dyn Mirror>,
    /// It goes on being told when the container is gone.
    _couriers: Arc<Couriers>,
}

impl<M> Mirrored<M> {
    /// As the far end has it. Its code may be anybody's.
    fn read(&self) -> Option<SampleValue> {
        let read = catch_unwind(AssertUnwindSafe(|| self.mirror.read()));
        read.ok().flatten()
    }
}

impl MetricCounter for Mirrored<Counter> {
    fn inc(&self) {
        self.metric.inc();
    }

    fn inc_by(&self, amount: u64) {
        self.metric.inc_by(amount);
    }

    fn get_value(&self) -> u64 {
        match self.read() {
            Some(SampleValue::Counter(Value::U64(value))) => value,
            Some(SampleValue::Counter(Value::F64(value))) => value as u64,
            _ => self.metric.get(),
        }
    }
}

impl MetricGauge for Mirrored<Gauge> {
    fn set(&self, value: f64) {
        self.metric.set(value);
    }

    fn inc(&self, by: f64) {
        self.metric.add(by);
    }

    fn dec(&self, by: f64) {
        self.metric.sub(by);
    }

    fn get_value(&self) -> f64 {
        match self.read() {
            Some(SampleValue::Gauge(value)) => value,
            _ => MetricGauge::get_value(&self.metric),
        }
    }
}

impl MetricHistogram for Mirrored<Histogram> {
    fn observe(&self, value: f64) {
        self.metric.observe(value);
    }

    fn get_count(&self) -> u64 {
        match self.read() {
            Some(SampleValue::Histogram(seen)) => seen.count,
            _ => self.metric.snapshot().count,
        }
    }

    fn get_sum(&self) -> f64 {
        match self.read() {
            Some(SampleValue::Histogram(seen)) => seen.sum,
            _ => self.metric.snapshot().sum,
        }
    }
}

struct MirroredFamily<M> {
    family: Family<M>,
    couriers: Arc<Couriers>,
}

impl<M> fmt::Debug for MirroredFamily<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.family.fmt(f)
    }
}

macro_rules! mirrored_family {
    ($($metric:ty => $object:ty),*) => {$(
        impl MetricFamily<$object> for MirroredFamily<$metric> {
            /// A child that the backend refuses counts on the bus only; that is counted and logged.
            fn with_label_values(&self, values: &[&str]) -> Result<Box<$object>, LabelError> {
                let metric = self.family.with_label_values(values)?;
                Ok(match self.couriers.declare(metric.series().core()) {
                    Ok(Some(mirror)) => Box::new(Mirrored {
                        metric,
                        mirror,
                        _couriers: self.couriers.clone(),
                    }),
                    Ok(None) | Err(_) => Box::new(metric),
                })
            }

            fn remove(&self, values: &[&str]) -> Result<bool, LabelError> {
                self.family.remove(values)
            }
        }
    )*};
}

mirrored_family!(
    Counter => dyn MetricCounter,
    Gauge => dyn MetricGauge,
    Histogram => dyn MetricHistogram
);
