//! Rules: conditions over metrics, with time, groups and names. Expressions, conditions and rules are plain values, written
//! down once and good on any bus, in any process.

mod alert;
pub(crate) mod condition;
mod derive;
mod expr;
mod live;

use metricbus::Rule as Core;
use pyo3::{
    exceptions::{PyTypeError, PyValueError},
    prelude::*,
    types::{PyBool, PyString, PyTuple},
};

pub(crate) use alert::{Alert, Synced};
pub(crate) use condition::Condition;
pub(crate) use derive::Derived;
pub(crate) use expr::{Expr, Over};
pub(crate) use live::{LiveRule, RuleGroup, RuleStatus, RuleThreshold};

use crate::{convert, error::raise, values};

/// What to watch, and when it is worth a word: a plain value, checked when it is added to a bus.
///
/// Fires when its condition holds, for `hold_for` without a break; is resolved when it has not held for `keep_firing_for`.
/// `m_of_n=(m, n, slot)`: the condition counts as holding while it held in `m` of the last `n` slots of that width.
///
/// It judges every series that its selectors match, present and future: with `group="each"` each alone, with `"any"`,
/// `"all"` or a number (at least so many) as a group, one for all or one for each value of the labels `by`.
///
/// Annotations may have `{{ $value }}` and `{{ $labels.name }}` in them. `every`: how often windows are looked at.
/// `initial=False`: says nothing of what holds already when it is added. `dry_run=True`: records and tells nobody.
/// `history`: how many of its last alerts it remembers, 100 unless told otherwise.
///
/// >>> Rule(
/// ...     "KvCacheFull",
/// ...     when("kv_usage_ratio", above=0.9, clear_below=0.8),
/// ...     hold_for=0.5,
/// ...     labels={"severity": "page"},
/// ...     annotations={"summary": "KV cache of {{ $labels.worker }} is {{ $value }} full"},
/// ... )
/// <Rule 'KvCacheFull': kv_usage_ratio above 0.9, clear below 0.8>
#[pyclass(frozen, module = "metricbus")]
pub(crate) struct Rule {
    pub(crate) core: Core,
    /// As texts, by level.
    conditions: Vec<(Option<String>, String)>,
}

/// What is said in keywords.
struct Words<'a, 'py> {
    hold_for: Option<&'a Bound<'py, PyAny>>,
    keep_firing_for: Option<&'a Bound<'py, PyAny>>,
    m_of_n: Option<&'a Bound<'py, PyAny>>,
    group: Option<&'a Bound<'py, PyAny>>,
    by: Option<&'a Bound<'py, PyAny>>,
    labels: Option<&'a Bound<'py, PyAny>>,
    annotations: Option<&'a Bound<'py, PyAny>>,
    every: Option<&'a Bound<'py, PyAny>>,
    initial: bool,
    dry_run: bool,
    history: Option<usize>,
}

impl Words<'_, '_> {
    fn apply(self, rule: Core) -> PyResult<Core> {
        let mut rule = rule.initial(self.initial).dry_run(self.dry_run);
        if let Some(time) = self.hold_for {
            rule = rule.hold_for(convert::duration("hold_for", time)?);
        }
        if let Some(time) = self.keep_firing_for {
            rule = rule.keep_firing_for(convert::duration("keep_firing_for", time)?);
        }
        if let Some(slots) = self.m_of_n {
            let (m, n, slot) = slots
                .extract::<(u32, u32, Bound<'_, PyAny>)>()
                .map_err(|_| {
                    PyTypeError::new_err(format!(
                        "m_of_n is {slots}; how many, of how many, and how wide a slot is would be right, as in (3, 5, 1.0)"
                    ))
                })?;
            rule = rule.m_of_n(m, n, convert::duration("the slot of m_of_n", &slot)?);
        }
        if let Some(group) = self.group {
            rule = grouped(rule, group)?;
        }
        if let Some(by) = self.by {
            rule = rule.by(convert::names("by", by)?);
        }
        for (name, value) in pairs(self.labels)? {
            rule = rule.label(name, value);
        }
        for (name, text) in pairs(self.annotations)? {
            rule = rule.annotation(name, text);
        }
        if let Some(period) = self.every {
            rule = rule.every(convert::duration("every", period)?);
        }
        Ok(match self.history {
            Some(history) => rule.history(history),
            None => rule,
        })
    }
}

fn pairs(value: Option<&Bound<'_, PyAny>>) -> PyResult<Vec<(String, String)>> {
    value.map_or_else(|| Ok(Vec::new()), convert::pairs)
}

fn grouped(rule: Core, group: &Bound<'_, PyAny>) -> PyResult<Core> {
    let wrong = || {
        PyValueError::new_err(format!(
            "group is {group:?}; \"each\", \"any\", \"all\", or how many at least, 1 or more, as in group=2, would be right"
        ))
    };
    if let Ok(word) = group.cast::<PyString>() {
        return match word.to_str()? {
            "each" => Ok(rule.each()),
            "any" => Ok(rule.any()),
            "all" => Ok(rule.all()),
            _ => Err(wrong()),
        };
    }
    match group.extract::<usize>() {
        // True is 1 in Python; here it would be a mistake.
        Ok(k) if k > 0 && !group.is_instance_of::<PyBool>() => Ok(rule.at_least(k)),
        _ => Err(wrong()),
    }
}

impl Rule {
    /// One that comes from elsewhere.
    pub(crate) fn of(core: Core) -> Rule {
        let conditions = core
            .conditions()
            .map(|(level, condition)| (level.map(str::to_owned), condition.to_string()))
            .collect();
        Rule { core, conditions }
    }
}

#[pymethods]
impl Rule {
    #[new]
    #[pyo3(signature = (name, condition, *, hold_for=None, keep_firing_for=None, m_of_n=None, group=None, by=None, labels=None, annotations=None, every=None, initial=true, dry_run=false, history=None))]
    #[expect(clippy::too_many_arguments, reason = "keywords in Python")]
    fn new(
        name: &str,
        condition: &Condition,
        hold_for: Option<&Bound<'_, PyAny>>,
        keep_firing_for: Option<&Bound<'_, PyAny>>,
        m_of_n: Option<&Bound<'_, PyAny>>,
        group: Option<&Bound<'_, PyAny>>,
        by: Option<&Bound<'_, PyAny>>,
        labels: Option<&Bound<'_, PyAny>>,
        annotations: Option<&Bound<'_, PyAny>>,
        every: Option<&Bound<'_, PyAny>>,
        initial: bool,
        dry_run: bool,
        history: Option<usize>,
    ) -> PyResult<Rule> {
        let words = Words {
            hold_for,
            keep_firing_for,
            m_of_n,
            group,
            by,
            labels,
            annotations,
            every,
            initial,
            dry_run,
            history,
        };
        Ok(Rule {
            core: words.apply(Core::new(name, condition.core.clone()))?,
            conditions: vec![(None, condition.core.to_string())],
        })
    }

    /// A rule with several conditions, each with the name of a level, the least severe first: its level is the highest that
    /// fires, and one alert tells each change of it.
    ///
    /// >>> Rule.levels("QueueDeep", [
    /// ...     ("warn", when("queue_depth", above=80, clear_below=70)),
    /// ...     ("critical", when("queue_depth", above=90, clear_below=85)),
    /// ... ])
    /// <Rule 'QueueDeep': warn: queue_depth above 80, clear below 70; critical: queue_depth above 90, clear below 85>
    #[staticmethod]
    #[pyo3(signature = (name, levels, *, hold_for=None, keep_firing_for=None, m_of_n=None, group=None, by=None, labels=None, annotations=None, every=None, initial=true, dry_run=false, history=None))]
    #[expect(clippy::too_many_arguments, reason = "keywords in Python")]
    fn levels(
        name: &str,
        levels: &Bound<'_, PyAny>,
        hold_for: Option<&Bound<'_, PyAny>>,
        keep_firing_for: Option<&Bound<'_, PyAny>>,
        m_of_n: Option<&Bound<'_, PyAny>>,
        group: Option<&Bound<'_, PyAny>>,
        by: Option<&Bound<'_, PyAny>>,
        labels: Option<&Bound<'_, PyAny>>,
        annotations: Option<&Bound<'_, PyAny>>,
        every: Option<&Bound<'_, PyAny>>,
        initial: bool,
        dry_run: bool,
        history: Option<usize>,
    ) -> PyResult<Rule> {
        let words = Words {
            hold_for,
            keep_firing_for,
            m_of_n,
            group,
            by,
            labels,
            annotations,
            every,
            initial,
            dry_run,
            history,
        };
        let wrong = |what: &Bound<'_, PyAny>| {
            PyTypeError::new_err(format!(
                "{what:?} is no level; pairs of a name and a condition, as in [(\"warn\", when(…))], would be right"
            ))
        };
        let mut each = Vec::new();
        for level in levels.try_iter().map_err(|_| wrong(levels))? {
            let level = level?;
            let (name, condition) = level
                .extract::<(String, PyRef<'_, Condition>)>()
                .map_err(|_| wrong(&level))?;
            each.push((name, condition.core.clone()));
        }
        let conditions = each
            .iter()
            .map(|(name, condition)| (Some(name.clone()), condition.to_string()))
            .collect();
        Ok(Rule {
            core: words.apply(Core::levels(name, each))?,
            conditions,
        })
    }

    /// The name.
    #[getter]
    fn name(&self) -> &str {
        self.core.name()
    }

    /// Its condition as text, or its conditions with the names of their levels.
    #[getter]
    fn conditions(&self) -> Vec<(Option<String>, String)> {
        self.conditions.clone()
    }

    fn __eq__(&self, other: &Rule) -> bool {
        self.core == other.core
    }

    /// All of it in a dictionary, as what JSON has: as a rule in a bucket is written (`docs/nats.md`).
    fn to_dict(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let json = py.import("json")?;
        Ok(json.getattr("loads")?.call1((self.json()?,))?.unbind())
    }

    fn __copy__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    fn __deepcopy__<'py>(slf: PyRef<'py, Self>, _memo: &Bound<'py, PyAny>) -> PyRef<'py, Self> {
        slf
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<crate::values::Reduced<'py>> {
        let (this, py) = (slf.get(), slf.py());
        let parts = [
            this.json()?.into_pyobject(py)?.into_any(),
            this.conditions.clone().into_pyobject(py)?.into_any(),
        ];
        values::reduce(slf.as_any(), PyTuple::new(py, parts)?)
    }

    #[staticmethod]
    fn _restored(parts: &Bound<'_, PyTuple>) -> PyResult<Rule> {
        let (text, conditions): (String, Vec<(Option<String>, String)>) = parts.extract()?;
        let core = serde_json::from_str(&text).map_err(|error| raise("RuleError", error))?;
        Ok(Rule { core, conditions })
    }

    fn __repr__(&self) -> String {
        let conditions = self.conditions.iter().map(|(level, text)| match level {
            None => text.clone(),
            Some(level) => format!("{level}: {text}"),
        });
        let conditions = conditions.collect::<Vec<_>>().join("; ");
        format!("<Rule '{}': {conditions}>", self.core.name())
    }
}

impl Rule {
    fn json(&self) -> PyResult<String> {
        serde_json::to_string(&self.core).map_err(|error| raise("RuleError", error))
    }
}
