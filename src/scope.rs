//! Scopes: a prefix and labels that every declaration made through them gets. They nest.

use std::{fmt, fmt::Display, sync::Arc};

use crate::{
    bus::MetricBus,
    desc::{Buckets, Desc, check_labels},
    error::DeclareError,
    labels::{Labels, value_of},
    metric::{Counter, Family, Gauge, Histogram, Metric},
};

/// A bus with a prefix for names and labels for series; what a component declares its metrics on.
///
/// ```
/// use metricbus::MetricBus;
///
/// let bus = MetricBus::new();
/// let decode = bus.scope().with_prefix("fleet_").with_label("component", "decode");
/// let worker = decode.with_label("worker", 3);
/// let depth = worker.gauge("queue_depth", "Requests waiting.")?;
/// assert_eq!(depth.series().to_string(), r#"fleet_queue_depth{component="decode",worker="3"}"#);
/// # Ok::<(), metricbus::DeclareError>(())
/// ```
#[derive(Clone)]
pub struct Scope {
    bus: MetricBus,
    prefix: String,
    labels: Vec<(Arc<str>, Arc<str>)>,
}

/// A struct of metrics that registers itself: implemented by `#[derive(Metrics)]`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not declare metrics",
    note = "add `#[derive(metricbus::Metrics)]` to it"
)]
pub trait Metrics: Sized {
    /// Declares every metric of the struct on `scope`.
    ///
    /// # Errors
    ///
    /// When one of the declarations is wrong or clashes with another. Those made before it stay.
    fn register(scope: &Scope) -> Result<Self, DeclareError>;
}

impl Scope {
    pub(crate) fn root(bus: &MetricBus) -> Scope {
        Scope {
            bus: bus.clone(),
            prefix: String::new(),
            labels: Vec::new(),
        }
    }

    /// The bus.
    pub fn bus(&self) -> &MetricBus {
        &self.bus
    }

    /// What comes before every name, as it is: `dynamo_component_`.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The labels that every series gets.
    pub fn labels(&self) -> &[(Arc<str>, Arc<str>)] {
        &self.labels
    }

    /// A scope within this one: `prefix` comes after the prefix here. Checked when something is declared.
    #[must_use]
    pub fn with_prefix(&self, prefix: &str) -> Scope {
        let mut scope = self.clone();
        scope.prefix.push_str(prefix);
        scope
    }

    /// A scope within this one, with one more label. Checked when something is declared.
    #[must_use]
    pub fn with_label(&self, name: &str, value: impl Display) -> Scope {
        let mut scope = self.clone();
        scope.labels.push((name.into(), value.to_string().into()));
        scope
    }

    /// Declares a counter.
    ///
    /// # Errors
    ///
    /// As [`declare`](Scope::declare).
    pub fn counter(&self, name: &str, help: &str) -> Result<Counter, DeclareError> {
        self.declare(Desc::new(name, help))
    }

    /// Declares a gauge.
    ///
    /// # Errors
    ///
    /// As [`declare`](Scope::declare).
    pub fn gauge(&self, name: &str, help: &str) -> Result<Gauge, DeclareError> {
        self.declare(Desc::new(name, help))
    }

    /// Declares a histogram.
    ///
    /// # Errors
    ///
    /// As [`declare`](Scope::declare).
    pub fn histogram(
        &self,
        name: &str,
        help: &str,
        buckets: Buckets,
    ) -> Result<Histogram, DeclareError> {
        self.declare(Desc::new(name, help).buckets(buckets))
    }

    /// Declares a metric, or gives the one that was declared before in the same way.
    ///
    /// # Errors
    ///
    /// When a name or label is not valid or reserved, the buckets can't be used, or the declaration clashes with an
    /// earlier one (type, help, unit, label names, buckets, or a name under which it would be exposed).
    pub fn declare<M: Metric>(&self, desc: Desc) -> Result<M, DeclareError> {
        self.bus.inner().declare(self, desc)
    }

    /// Declares a metric with labels, whose values are given per child as text.
    ///
    /// # Errors
    ///
    /// As [`declare`](Scope::declare); also when there are no [`labels`](Desc::labels).
    pub fn family<M: Metric>(&self, desc: Desc) -> Result<Family<M>, DeclareError> {
        self.bus.inner().family(self, desc)
    }

    /// Declares a metric with the labels of a [`Labels`] type.
    ///
    /// # Errors
    ///
    /// As [`declare`](Scope::declare); also when `desc` has [`labels`](Desc::labels) of its own.
    pub fn family_of<M: Metric, L: Labels>(
        &self,
        desc: Desc,
    ) -> Result<Family<M, L>, DeclareError> {
        if !desc.variable.is_empty() {
            return Err(DeclareError::Labels {
                metric: format!("{}{}", self.prefix, desc.name),
                why: format!(
                    "its labels are those of the Labels type, {:?}; {:?} of Desc::labels would come on top",
                    L::NAMES,
                    desc.variable
                ),
            });
        }
        let desc = desc.labels(L::NAMES.iter().copied());
        self.bus.inner().family(self, desc)
    }

    /// Declares every metric of a struct.
    ///
    /// # Errors
    ///
    /// As [`declare`](Scope::declare).
    pub fn register<T: Metrics>(&self) -> Result<T, DeclareError> {
        T::register(self)
    }

    /// Makes a component known to the bus: what `#[derive(Metrics)]` calls once all metrics are declared.
    ///
    /// # Errors
    ///
    /// When a label of this scope is not valid, reserved, or given twice.
    pub fn add_component(
        &self,
        name: &str,
        help: &str,
        metrics: &[&str],
    ) -> Result<(), DeclareError> {
        let label_names: Vec<&str> = self.labels.iter().map(|(name, _)| &**name).collect();
        check_labels(name, &label_names)?;
        self.bus.inner().add_component(Component {
            name: name.to_owned(),
            help: help.to_owned(),
            labels: self
                .labels
                .iter()
                .map(|(name, value)| (name.to_string(), value.to_string()))
                .collect(),
            metrics: metrics.iter().map(|&m| m.to_owned()).collect(),
        });
        Ok(())
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope")
            .field("prefix", &self.prefix)
            .field("labels", &self.labels)
            .finish()
    }
}

/// A struct of metrics that was registered.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Component {
    /// The component's name: the struct's, unless its `component` attribute says otherwise.
    pub name: String,
    /// What it is: the first paragraph of the struct's doc comment.
    pub help: String,
    /// The labels of the scope on which it was registered.
    pub labels: Vec<(String, String)>,
    /// Full names of its metrics.
    pub metrics: Vec<String>,
}

impl Component {
    /// Whether a series with this label text was made by the component.
    pub(crate) fn has(&self, text: &str) -> bool {
        self.labels
            .iter()
            .all(|(name, value)| value_of(text, name).is_some_and(|v| v == *value))
    }
}
