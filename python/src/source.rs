//! Who measured something: a process among others, and the place of an alert among what that process said.

use std::hash::{DefaultHasher, Hash, Hasher};

use pyo3::{exceptions::PyValueError, prelude::*};

/// The identity of a process that publishes metrics, as `prod/decode/pod-7`: its namespace (a cluster, a tenant), its
/// component (what it does) and its instance (which one of those).
#[pyclass(frozen, eq, module = "metricbus")]
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct SourceId(pub(crate) metricbus::SourceId);

#[pymethods]
impl SourceId {
    #[new]
    fn new(namespace: String, component: String, instance: String) -> SourceId {
        SourceId(metricbus::SourceId::new(namespace, component, instance))
    }

    /// The source of a text like `prod/decode/pod-7`.
    #[staticmethod]
    fn parse(text: &str) -> PyResult<SourceId> {
        let source = text.parse::<metricbus::SourceId>();
        source
            .map(SourceId)
            .map_err(|error| PyValueError::new_err(error.to_string()))
    }

    /// Such as a cluster, a tenant, or Dynamo's namespace.
    #[getter]
    fn namespace(&self) -> &str {
        &self.0.namespace
    }

    /// What it does: `decode`, `router` …
    #[getter]
    fn component(&self) -> &str {
        &self.0.component
    }

    /// Which one of those: a pod's name.
    #[getter]
    fn instance(&self) -> &str {
        &self.0.instance
    }

    fn __str__(&self) -> String {
        self.0.to_string()
    }

    fn __repr__(&self) -> String {
        let metricbus::SourceId {
            namespace,
            component,
            instance,
        } = &self.0;
        format!("SourceId({namespace:?}, {component:?}, {instance:?})")
    }

    fn __hash__(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.0.hash(&mut hasher);
        hasher.finish()
    }
}

/// Where an alert was made that came from another process, and its place among what that process said.
#[pyclass(frozen, eq, module = "metricbus")]
#[derive(PartialEq)]
pub(crate) struct Origin(metricbus::Origin);

impl Origin {
    pub(crate) fn of(origin: &metricbus::Origin) -> Origin {
        Origin(origin.clone())
    }
}

#[pymethods]
impl Origin {
    /// Who made it.
    #[getter]
    fn source(&self) -> SourceId {
        SourceId(self.0.source.clone())
    }

    /// Which life of that process: greater after a restart.
    #[getter]
    fn boot(&self) -> u64 {
        self.0.boot
    }

    /// 1 for the first alert of that life, 2 for the next …
    #[getter]
    fn sequence(&self) -> u64 {
        self.0.sequence
    }

    fn __repr__(&self) -> String {
        format!(
            "<Origin {} (boot {}, sequence {})>",
            self.0.source, self.0.boot, self.0.sequence
        )
    }
}
