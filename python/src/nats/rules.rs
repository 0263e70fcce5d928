//! Rules that are sent to sources, and how the rules of a source stand.

use metricbus::nats;
use pyo3::prelude::*;

use super::status::RefusedRule;
use crate::rule::Rule;

/// Which sources a rule is sent to.
#[pyclass(frozen, eq, hash, module = "metricbus")]
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct RuleTarget(pub(super) nats::RuleTarget);

#[pymethods]
impl RuleTarget {
    /// All instances of a component of a namespace.
    #[staticmethod]
    fn component(namespace: String, component: String) -> RuleTarget {
        RuleTarget(nats::RuleTarget::component(namespace, component))
    }

    /// All components of a namespace.
    #[staticmethod]
    fn namespace(namespace: String) -> RuleTarget {
        RuleTarget(nats::RuleTarget::namespace(namespace))
    }

    /// A component, in whatever namespace.
    #[staticmethod]
    fn component_anywhere(component: String) -> RuleTarget {
        RuleTarget(nats::RuleTarget::component_anywhere(component))
    }

    /// All sources that take rules from the bucket.
    #[staticmethod]
    fn all() -> RuleTarget {
        RuleTarget(nats::RuleTarget::all())
    }

    fn __str__(&self) -> String {
        self.0.to_string()
    }

    fn __repr__(&self) -> String {
        format!("<RuleTarget {}>", self.0)
    }
}

/// A rule that was sent to sources, by this fleet or another one.
#[pyclass(frozen, get_all, module = "metricbus")]
pub(crate) struct SentRule {
    /// To whom.
    target: RuleTarget,
    /// Its name.
    name: String,
    /// The rule; `None` where it was taken back and that is not yet written, and where it can't be read.
    rule: Option<Py<Rule>>,
    /// Whether it is in the bucket as it should be. If not, that is tried again and again.
    written: bool,
    /// Why it is not written yet, or can't be read.
    why: Option<String>,
}

impl SentRule {
    pub(super) fn of(py: Python<'_>, sent: nats::SentRule) -> PyResult<Py<SentRule>> {
        let rule = sent.rule.map(|rule| Py::new(py, Rule::of(rule)));
        let sent = SentRule {
            target: RuleTarget(sent.target),
            name: sent.name,
            rule: rule.transpose()?,
            written: sent.written,
            why: sent.why,
        };
        Py::new(py, sent)
    }
}

#[pymethods]
impl SentRule {
    fn __repr__(&self) -> String {
        let state = match (self.written, &self.why) {
            (true, _) => "written".to_owned(),
            (false, Some(why)) => format!("not written: {why}"),
            (false, None) => "not written".to_owned(),
        };
        format!("<SentRule {} to {}, {state}>", self.name, self.target.0)
    }
}

/// The rules of a source, as it says itself.
#[pyclass(frozen, get_all, module = "metricbus")]
pub(crate) struct SourceRules {
    /// Those that run there, sorted by name.
    rules: Vec<SourceRule>,
    /// Rules from a bucket that it could not take.
    refused: Vec<RefusedRule>,
    /// How many more there are that it did not tell.
    left_out: u64,
}

impl From<nats::SourceRules> for SourceRules {
    fn from(told: nats::SourceRules) -> SourceRules {
        let rules = told.rules.into_iter().map(|rule| SourceRule {
            name: rule.name,
            state: rule.state,
            note: rule.note,
            series: rule.series,
            value: rule.value,
            json: rule.json,
        });
        let refused = told
            .refused
            .into_iter()
            .map(|(key, why)| RefusedRule { key, why });
        SourceRules {
            rules: rules.collect(),
            refused: refused.collect(),
            left_out: told.left_out,
        }
    }
}

#[pymethods]
impl SourceRules {
    /// The rule of this name, or `None`.
    fn rule(&self, name: &str) -> Option<SourceRule> {
        self.rules.iter().find(|rule| rule.name == name).cloned()
    }

    fn __repr__(&self) -> String {
        format!(
            "<SourceRules {} rules, {} refused>",
            self.rules.len(),
            self.refused.len()
        )
    }
}

/// A rule that runs at a source.
#[pyclass(frozen, get_all, module = "metricbus")]
#[derive(Clone)]
pub(crate) struct SourceRule {
    /// Its name.
    name: String,
    /// The gravest state of its groups: `"inactive"`, `"pending"`, `"clearing"` or `"firing"`.
    state: String,
    /// What an operator should know who wonders why it is quiet; mostly empty.
    note: String,
    /// How many series match it.
    series: u64,
    /// What it looks at now, or looked at last. `None` where there is no data.
    value: Option<f64>,
    /// All that the source said of it: JSON, as `/rules` of its exporter shows it.
    json: String,
}

#[pymethods]
impl SourceRule {
    fn __repr__(&self) -> String {
        format!("<SourceRule {} {}>", self.name, self.state)
    }
}
