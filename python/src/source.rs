//! Who measured something: a process among others, and the place of an alert among what that process said.

use std::hash::{DefaultHasher, Hash, Hasher};

use pyo3::{exceptions::PyValueError, prelude::*, types::PyTuple};

use crate::values;

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

    /// Its attributes in a dictionary, as what JSON has: dates as text, series as names and labels.
    fn to_dict(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        values::to_dict(slf.as_any())
    }

    fn __copy__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    fn __deepcopy__<'py>(slf: PyRef<'py, Self>, _memo: &Bound<'py, PyAny>) -> PyRef<'py, Self> {
        slf
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<crate::values::Reduced<'py>> {
        let this = &slf.get().0;
        let parts = [&this.namespace, &this.component, &this.instance];
        values::reduce(slf.as_any(), PyTuple::new(slf.py(), parts)?)
    }

    #[staticmethod]
    fn _restored(parts: &Bound<'_, PyTuple>) -> PyResult<SourceId> {
        let (namespace, component, instance) = parts.extract()?;
        Ok(SourceId::new(namespace, component, instance))
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

    /// Its attributes in a dictionary, as what JSON has: dates as text, series as names and labels.
    fn to_dict(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        values::to_dict(slf.as_any())
    }

    fn __copy__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    fn __deepcopy__<'py>(slf: PyRef<'py, Self>, _memo: &Bound<'py, PyAny>) -> PyRef<'py, Self> {
        slf
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<crate::values::Reduced<'py>> {
        let parts = ["source", "boot", "sequence"].map(|name| slf.getattr(name));
        let parts = parts.into_iter().collect::<PyResult<Vec<_>>>()?;
        values::reduce(slf.as_any(), PyTuple::new(slf.py(), parts)?)
    }

    #[staticmethod]
    fn _restored(parts: &Bound<'_, PyTuple>) -> PyResult<Origin> {
        let (source, boot, sequence): (Bound<'_, SourceId>, u64, u64) = parts.extract()?;
        Ok(Origin(metricbus::Origin {
            source: source.get().0.clone(),
            boot,
            sequence,
        }))
    }

    fn __repr__(&self) -> String {
        format!(
            "<Origin {} (boot {}, sequence {})>",
            self.0.source, self.0.boot, self.0.sequence
        )
    }
}
