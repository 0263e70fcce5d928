//! Rules at work on a bus: adding and changing them, what they say, and how they stand.

use std::{path::PathBuf, sync::Arc};

use metricbus::{LiveRule as Core, RuleStateFile};
use pyo3::{prelude::*, types::PyDict};

use super::{Alert, Rule};
use crate::{
    bus::{self, Bus, MetricBus},
    convert,
    deliver::{Source, listen},
    error::{Raise, raise},
    fork::Forked,
    runtime,
};

/// A rule that runs. Others for the same rule are as good; it does not end with them, but by `remove`, or with its bus.
#[pyclass(frozen, weakref, module = "metricbus")]
pub(crate) struct LiveRule {
    /// It is there as long as somebody may ask about its rule.
    _bus: Arc<Bus>,
    rule: Forked<Core>,
}

impl LiveRule {
    fn of(bus: &Arc<Bus>, rule: Core) -> LiveRule {
        LiveRule {
            _bus: bus.clone(),
            rule: Forked::new(rule),
        }
    }

    fn core(&self) -> PyResult<&Core> {
        self.rule.here().ok_or_else(|| {
            raise(
                "ForkedError",
                "this rule runs in the process from which this one was forked; add it to the bus here",
            )
        })
    }
}

#[pymethods]
impl LiveRule {
    /// The name.
    #[getter]
    fn name(&self) -> PyResult<&str> {
        Ok(self.core()?.name())
    }

    /// How it stands.
    fn status(&self, py: Python<'_>) -> PyResult<RuleStatus> {
        let rule = self.core()?;
        let status = py.detach(|| rule.status());
        RuleStatus::of(py, status)
    }

    /// Its last alerts, the oldest first, those of dry runs included. How many: `history` of the rule.
    fn history(&self, py: Python<'_>) -> PyResult<Vec<Alert>> {
        let rule = self.core()?;
        let history = py.detach(|| rule.history());
        history
            .into_iter()
            .map(|alert| Alert::of(py, alert))
            .collect()
    }

    /// The alerts of this rule: what is firing first (unless `initial=False`), then every transition, also after it was
    /// changed. They end when the rule is removed.
    #[pyo3(signature = (callback=None, *, capacity=None, initial=true))]
    fn on_alert(
        &self,
        py: Python<'_>,
        callback: Option<Bound<'_, PyAny>>,
        capacity: Option<usize>,
        initial: bool,
    ) -> PyResult<Py<PyAny>> {
        let rule = Forked::new(self.core()?.clone());
        let open = move || {
            let rule = rule.here().ok_or_else(forked)?;
            bus::stream(rule.on_alert().initial(initial), capacity)
        };
        listen(py, open, callback)
    }

    /// As `on_alert`, with the mark `Sync` once what is firing has been told.
    #[pyo3(signature = (callback=None, *, capacity=None))]
    fn on_notice(
        &self,
        py: Python<'_>,
        callback: Option<Bound<'_, PyAny>>,
        capacity: Option<usize>,
    ) -> PyResult<Py<PyAny>> {
        let rule = Forked::new(self.core()?.clone());
        let open = move || {
            let rule = rule.here().ok_or_else(forked)?;
            bus::stream(rule.on_notice(), capacity)
        };
        listen(py, open, callback)
    }

    /// Changes the rule while it runs; the other rule must have its name. Groups that it also has keep their state and go on
    /// from there: what is firing and still has to be goes on without a word. Epochs, history and subscriptions go on.
    ///
    /// Where conditions, groups and `every` stay the same, conditions go on where they are, in the middle of a window, too.
    fn update(&self, py: Python<'_>, rule: &Rule) -> PyResult<()> {
        let live = self.core()?;
        let rule = rule.core.clone();
        py.detach(|| live.update(rule)).or_raise()
    }

    /// Ends the rule: what is firing is resolved, because of `"rule_removed"`. `False`: it had ended already.
    fn remove(&self, py: Python<'_>) -> PyResult<bool> {
        let live = self.core()?.clone();
        Ok(py.detach(|| live.remove()))
    }

    fn __repr__(&self) -> String {
        match self.rule.here() {
            Some(rule) => format!("<LiveRule '{}'>", rule.name()),
            None => "<LiveRule of another process>".to_owned(),
        }
    }
}

fn forked() -> PyErr {
    raise(
        "ForkedError",
        "this rule runs in the process from which this one was forked, and tells nothing here; add it to the bus here",
    )
}

/// How a rule stands.
#[pyclass(frozen, get_all, module = "metricbus")]
pub(crate) struct RuleStatus {
    /// The rule's name.
    name: String,
    /// Its condition as text, or its conditions with the names of their levels.
    conditions: Vec<(Option<String>, String)>,
    /// The thresholds in it.
    thresholds: Vec<Py<RuleThreshold>>,
    /// The gravest state of its groups: `"inactive"`, `"pending"`, `"clearing"` or `"firing"`.
    state: &'static str,
    /// Groups that are inactive.
    inactive: usize,
    /// Groups that are pending.
    pending: usize,
    /// Groups that are clearing: still firing, though the condition no longer holds.
    clearing: usize,
    /// Groups that are firing and not clearing.
    firing: usize,
    /// Groups that are not inactive.
    active: Vec<Py<RuleGroup>>,
    /// Series that match now, counted once for each place in the rule.
    series: usize,
    /// Whether any series has ever matched. One that hasn't is not quiet: it is about nothing, often for a typing error.
    ever_matched: bool,
    /// Selectors of the rule that have never matched a series.
    unmatched: Vec<String>,
    /// Of those in which a name stands that no metric has: the names of metrics that may have been meant.
    did_you_mean: Vec<String>,
    /// Groups of which nothing is known: what they look at was never set, or saw nothing.
    no_data: usize,
    /// What it looks at now; of a rule about several sets of labels, what it judged last. `None`: there is no data.
    value: Option<f64>,
    /// How many seconds ago something was last judged, or `None`. A threshold judges only what crosses its bound, or comes
    /// near: long silence is no fault.
    since_evaluated: Option<f64>,
    /// Alerts that said firing.
    fired: u64,
    /// Alerts that said resolved.
    resolved: u64,
    /// Alerts that were dropped from full mailboxes of subscribers.
    missed: u64,
    /// Whether it tells no subscriber.
    dry_run: bool,
}

impl RuleStatus {
    pub(crate) fn of(py: Python<'_>, status: metricbus::RuleStatus) -> PyResult<RuleStatus> {
        let thresholds = status.thresholds.into_iter().map(|threshold| {
            let metricbus::RuleThreshold {
                level,
                input,
                raise,
                clear,
                ..
            } = threshold;
            let threshold = RuleThreshold {
                level,
                input,
                bound: raise,
                clear,
            };
            Py::new(py, threshold)
        });
        let active = status
            .active
            .into_iter()
            .map(|group| Py::new(py, RuleGroup(group)));
        Ok(RuleStatus {
            name: status.name,
            conditions: status.conditions,
            thresholds: thresholds.collect::<PyResult<_>>()?,
            state: status.state.as_str(),
            inactive: status.inactive,
            pending: status.pending,
            clearing: status.clearing,
            firing: status.firing,
            active: active.collect::<PyResult<_>>()?,
            series: status.series,
            ever_matched: status.ever_matched,
            unmatched: status.unmatched,
            did_you_mean: status.did_you_mean,
            no_data: status.no_data,
            value: status.value,
            since_evaluated: status.since_evaluated.map(|time| time.as_secs_f64()),
            fired: status.fired,
            resolved: status.resolved,
            missed: status.missed,
            dry_run: status.dry_run,
        })
    }
}

#[pymethods]
impl RuleStatus {
    fn __repr__(&self) -> String {
        let never = if self.ever_matched {
            ""
        } else {
            ", has never matched a series"
        };
        format!(
            "<RuleStatus '{}' {}, {} series{never}>",
            self.name, self.state, self.series
        )
    }
}

/// One threshold of a rule, as numbers.
#[pyclass(frozen, get_all, module = "metricbus")]
pub(crate) struct RuleThreshold {
    /// The level it belongs to, or `None`.
    level: Option<String>,
    /// What is compared.
    input: String,
    /// The bound at which it begins to hold.
    bound: f64,
    /// The bound at which it ceases to.
    clear: f64,
}

#[pymethods]
impl RuleThreshold {
    fn __repr__(&self) -> String {
        format!(
            "<RuleThreshold {} at {}, clear at {}>",
            self.input, self.bound, self.clear
        )
    }
}

/// One group of a rule.
#[pyclass(frozen, module = "metricbus")]
pub(crate) struct RuleGroup(metricbus::RuleGroup);

#[pymethods]
impl RuleGroup {
    /// What tells it apart.
    #[getter]
    fn labels<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        convert::pairs_dict(py, &self.0.labels)
    }

    /// Its state: `"inactive"`, `"pending"`, `"clearing"` or `"firing"`.
    #[getter]
    fn state(&self) -> &'static str {
        self.0.state.as_str()
    }

    /// The level in force, of a rule with levels.
    #[getter]
    fn level(&self) -> Option<&str> {
        self.0.level.as_deref()
    }

    /// Since when the condition has held, in seconds on the bus's clock.
    #[getter]
    fn since(&self) -> Option<f64> {
        self.0.since.map(|since| since.as_secs_f64())
    }

    /// The same as a date, in UTC; right also where that was before a restart.
    #[getter]
    fn since_date<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let since = self.0.since_date;
        since.map(|since| convert::date(py, since)).transpose()
    }

    /// What was judged last, or `None`.
    #[getter]
    fn value(&self) -> Option<f64> {
        self.0.value
    }

    /// How good what is known of it is: `"good"`, `"nan"`, `"no_data"`, `"stale"` or `"gone"`.
    #[getter]
    fn quality(&self) -> &'static str {
        self.0.quality.as_str()
    }

    /// How many alerts there were of it.
    #[getter]
    fn epoch(&self) -> u64 {
        self.0.epoch
    }

    fn __repr__(&self) -> String {
        let labels = self.0.labels.iter();
        let labels: Vec<_> = labels
            .map(|(name, value)| format!("{name}={value:?}"))
            .collect();
        format!("<RuleGroup {{{}}} {}>", labels.join(","), self.0.state)
    }
}

#[pymethods]
impl MetricBus {
    /// Runs a rule until it is removed or the bus ends. Who hears of it: `on_alert`.
    fn add_rule(&self, py: Python<'_>, rule: &Rule) -> PyResult<LiveRule> {
        let (bus, rule) = (self.current()?, rule.core.clone());
        let live = py.detach(|| bus.add_rule(rule)).or_raise()?;
        bus::has_rules(&self.0)?;
        Ok(LiveRule::of(&self.0, live))
    }

    /// Runs a rule in the place of the one of its name, if there is one: see `LiveRule.update`.
    fn set_rule(&self, py: Python<'_>, rule: &Rule) -> PyResult<LiveRule> {
        let (bus, rule) = (self.current()?, rule.core.clone());
        let live = py.detach(|| bus.set_rule(rule)).or_raise()?;
        bus::has_rules(&self.0)?;
        Ok(LiveRule::of(&self.0, live))
    }

    /// Ends a rule: what is firing is resolved, because of `"rule_removed"`. `False`: there was none of that name.
    fn remove_rule(&self, py: Python<'_>, name: &str) -> PyResult<bool> {
        let bus = self.current()?;
        Ok(py.detach(|| bus.remove_rule(name)))
    }

    /// The rule of this name, or `None`.
    fn rule(&self, name: &str) -> PyResult<Option<LiveRule>> {
        let rule = self.current()?.rule(name);
        Ok(rule.map(|rule| LiveRule::of(&self.0, rule)))
    }

    /// All rules, sorted by name.
    fn rules(&self) -> PyResult<Vec<LiveRule>> {
        let rules = self.current()?.rules();
        let rules = rules.into_iter();
        Ok(rules.map(|rule| LiveRule::of(&self.0, rule)).collect())
    }

    /// The alerts of all rules, present and future: what is firing first (unless `initial=False`), with the cause
    /// `"initial"`, then every transition.
    #[pyo3(signature = (callback=None, *, capacity=None, initial=true))]
    fn on_alert(
        &self,
        py: Python<'_>,
        callback: Option<Bound<'_, PyAny>>,
        capacity: Option<usize>,
        initial: bool,
    ) -> PyResult<Py<PyAny>> {
        let bus = self.0.clone();
        let open = move || bus::stream(bus.current()?.on_alert().initial(initial), capacity);
        listen(py, open, callback)
    }

    /// As `on_alert`, with the mark `Sync` once what is firing has been told: from there on alerts are changes.
    #[pyo3(signature = (callback=None, *, capacity=None))]
    fn on_notice(
        &self,
        py: Python<'_>,
        callback: Option<Bound<'_, PyAny>>,
        capacity: Option<usize>,
    ) -> PyResult<Py<PyAny>> {
        let bus = self.0.clone();
        let open = move || bus::stream(bus.current()?.on_notice(), capacity);
        listen(py, open, callback)
    }

    /// The alerts of a rule that lives as long as the subscription does.
    #[pyo3(signature = (rule, callback=None, *, capacity=None, initial=true))]
    fn on_rule(
        &self,
        py: Python<'_>,
        rule: &Rule,
        callback: Option<Bound<'_, PyAny>>,
        capacity: Option<usize>,
        initial: bool,
    ) -> PyResult<Py<PyAny>> {
        let (bus, rule) = (self.0.clone(), rule.core.clone());
        let open = move || -> PyResult<Box<dyn Source>> {
            bus::stream(
                bus.current()?.on_rule(rule.clone()).initial(initial),
                capacity,
            )
        };
        listen(py, open, callback)
    }

    /// Keeps the state of rules in a file, and lets rules that are added from now on go on from what it says: what was firing
    /// before a restart goes on firing without a word, what was pending goes on with its hold. Call it before rules are
    /// added. No file yet is no error; its folder must exist. One process at a time.
    ///
    /// After an outage longer than `outage_tolerance` (an hour) all rules begin anew. What was firing waits at most
    /// `grace_period` (10 minutes) to be known again. The file is written when something was told, and each `every`
    /// (5 seconds).
    #[pyo3(signature = (path, *, outage_tolerance=None, grace_period=None, every=None))]
    fn keep_rule_state(
        &self,
        py: Python<'_>,
        path: PathBuf,
        outage_tolerance: Option<&Bound<'_, PyAny>>,
        grace_period: Option<&Bound<'_, PyAny>>,
        every: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let mut file = RuleStateFile::new(path);
        if let Some(tolerance) = outage_tolerance {
            file = file.outage_tolerance(convert::duration("outage_tolerance", tolerance)?);
        }
        if let Some(period) = grace_period {
            file = file.grace_period(convert::duration("grace_period", period)?);
        }
        if let Some(period) = every {
            file = file.every(convert::duration("every", period)?);
        }
        let bus = self.current()?.clone();
        runtime::wait_blocking(py, move || bus.keep_rule_state(file))?.or_raise()
    }

    /// Writes the state of rules now, and waits for it: at shutdown, say.
    fn save_rule_state(&self, py: Python<'_>) -> PyResult<()> {
        let bus = self.current()?.clone();
        runtime::wait_blocking(py, move || bus.save_rule_state())?.or_raise()
    }
}
