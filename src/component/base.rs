//! What a component has besides its metrics.

use std::sync::Arc;

use super::{Backends, MetricContainer, NullContainer, PrometheusContainer};
use crate::{DeclareError, Metrics, backend::BackendError};

/// What a component has besides its metrics: the container in which it makes them. The one line that makes it says where
/// they go.
///
/// | constructor | metrics go |
/// |---|---|
/// | [`new_prometheus`](Self::new_prometheus) | to whoever scrapes |
/// | `new_otlp` (feature `otlp`) | to an OpenTelemetry collector |
/// | `new_libnv` (feature `libnv`) | to a shared library |
/// | [`new_null`](Self::new_null) | nowhere |
/// | [`from_env`](Self::from_env) | where `METRICBUS_BACKEND` says |
/// | [`new`](Self::new) | anywhere |
///
/// See [the module](crate::component) for a whole component.
///
/// ```
/// use metricbus::BaseComponentMetrics;
///
/// let base = BaseComponentMetrics::new_prometheus("myapp");
/// base.container.create_gauge("ready", "Whether all is set up.", &[])?.set(1.0);
/// base.container.print_metrics();
/// # Ok::<(), metricbus::DeclareError>(())
/// ```
#[derive(Clone, Debug)]
pub struct BaseComponentMetrics {
    /// Where the component's metrics are made.
    pub container: Arc<dyn MetricContainer>,
}

impl BaseComponentMetrics {
    /// In any container.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use metricbus::{BaseComponentMetrics, MetricBus, PrometheusContainer};
    ///
    /// let bus = MetricBus::new();
    /// let base = BaseComponentMetrics::new(Arc::new(PrometheusContainer::on(&bus, "myapp")));
    /// # let _ = base;
    /// ```
    pub fn new(container: Arc<dyn MetricContainer>) -> Self {
        BaseComponentMetrics { container }
    }

    /// In a [`PrometheusContainer`] with a bus of its own.
    ///
    /// ```
    /// let base = metricbus::BaseComponentMetrics::new_prometheus("myapp");
    /// assert!(base.container.bus().is_some());
    /// ```
    pub fn new_prometheus(prefix: &str) -> Self {
        BaseComponentMetrics::new(Arc::new(PrometheusContainer::new(prefix))).named(prefix)
    }

    /// In an [`OtlpContainer`](crate::OtlpContainer) with a bus of its own, exported as OpenTelemetry's variables say.
    ///
    /// # Errors
    ///
    /// Where a variable has a wrong value, or the exporter can't be started.
    ///
    /// ```
    /// let base = metricbus::BaseComponentMetrics::new_otlp("myapp")?;
    /// assert!(base.container.bus().is_some());
    /// # Ok::<(), metricbus::backend::BackendError>(())
    /// ```
    #[cfg(feature = "otlp")]
    pub fn new_otlp(prefix: &str) -> Result<Self, BackendError> {
        let container = crate::OtlpContainer::new(prefix)?;
        Ok(BaseComponentMetrics::new(Arc::new(container)).named(prefix))
    }

    /// In a [`NullContainer`] with a bus of its own: nothing is reported.
    ///
    /// ```
    /// let base = metricbus::BaseComponentMetrics::new_null("myapp");
    /// assert!(base.container.bus().is_some());
    /// ```
    pub fn new_null(prefix: &str) -> Self {
        BaseComponentMetrics::new(Arc::new(NullContainer::new(prefix))).named(prefix)
    }

    /// In a [`LibnvContainer`](crate::LibnvContainer) with a bus of its own, and the library whose path is in the
    /// environment variable `METRICBUS_LIBNV`.
    ///
    /// # Errors
    ///
    /// As [`Libnv::from_env`](crate::backend::libnv::Libnv::from_env).
    ///
    /// ```no_run
    /// let base = metricbus::BaseComponentMetrics::new_libnv("api", "myapp")?;
    /// # let _ = base;
    /// # Ok::<(), metricbus::backend::BackendError>(())
    /// ```
    #[cfg(feature = "libnv")]
    pub fn new_libnv(service_name: &str, prefix: &str) -> Result<Self, BackendError> {
        let container = crate::LibnvContainer::new(service_name, prefix)?;
        Ok(BaseComponentMetrics::new(Arc::new(container)).named(prefix))
    }

    /// In the container that the environment asks for: `METRICBUS_BACKEND` names the backend, `METRICBUS_PREFIX` the
    /// prefix of all names. Not set, or empty, they are `prometheus` and no prefix. See [`Backends`] for what may be said,
    /// and for backends of your own.
    ///
    /// # Errors
    ///
    /// Where a variable has a wrong value, or the backend can't be set up. The error names the variable, its value, and
    /// what would be right.
    ///
    /// ```
    /// use metricbus::BaseComponentMetrics;
    ///
    /// let base = BaseComponentMetrics::from_env()?;
    /// assert!(base.container.bus().is_some());
    /// # Ok::<(), metricbus::backend::BackendError>(())
    /// ```
    pub fn from_env() -> Result<Self, BackendError> {
        Backends::new().from_env()
    }

    /// Registers a struct with `#[derive(Metrics)]` beside the metrics that are created in the container.
    ///
    /// # Errors
    ///
    /// When one of the declarations is wrong or clashes with another, or the container is not on a bus.
    #[cfg_attr(
        feature = "derive",
        doc = "
```
use metricbus::{BaseComponentMetrics, Counter, Metrics};

/// Requests that were answered.
#[derive(Metrics)]
struct ApiMetrics {
    /// Requests served.
    requests_total: Counter,
}

let base = BaseComponentMetrics::new_prometheus(\"myapp\");
let api: ApiMetrics = base.register()?;
api.requests_total.inc();
assert!(base.container.export_prometheus().ends_with(\"\\nmyapp_requests_total 1\\n\"));
# Ok::<(), metricbus::DeclareError>(())
```"
    )]
    pub fn register<T: Metrics>(&self) -> Result<T, DeclareError> {
        match self.container.scope() {
            Some(scope) => scope.register(),
            None => Err(DeclareError::Backend {
                metric: std::any::type_name::<T>().to_owned(),
                why: "its container is not on a bus, and takes metrics one at a time only"
                    .to_owned(),
            }),
        }
    }

    /// Makes the component known to the bus by its prefix.
    pub(super) fn named(self, prefix: &str) -> Self {
        let name = prefix.trim_end_matches('_');
        if let Some(bus) = self.container.bus() {
            // Without labels there is nothing about it that could be refused.
            let help = "A component with metrics in a container.";
            let _ = bus.scope().add_component(name, help, &[]);
        }
        self
    }
}
