//! The backend for who scrapes.

use super::Backend;

/// Metrics stay on the bus until somebody scrapes it: serve it with an [`Exporter`](crate::export) (feature `http`), or
/// print [`export_prometheus`](crate::MetricContainer::export_prometheus).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prometheus;

impl Backend for Prometheus {
    fn name(&self) -> &str {
        "prometheus"
    }
}
