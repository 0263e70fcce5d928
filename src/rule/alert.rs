//! Alerts: the transitions of a rule, as they are told, kept and shown.

use std::{fmt, sync::Arc, time::SystemTime};

use crate::{series::Series, source::Origin, time::Time};

/// Names and values of labels or annotations, sorted by name.
pub type Pairs = Arc<[(String, String)]>;

/// A transition of a rule: it fires, its level changes, or it is resolved.
///
/// Per rule and group, `epoch` grows by 1 with each alert: a gap in it is the number of those that were dropped from a
/// full mailbox. Firing and resolved alternate; with levels there can be several firing in a row, each of another level.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Alert {
    /// The rule's name.
    pub rule: Arc<str>,
    /// Which way.
    pub state: AlertState,
    /// The level now in force; `None` when resolved, and of a rule without levels.
    pub level: Option<Arc<str>>,
    /// The level before; `None` when it was not firing, and of a rule without levels.
    pub previous_level: Option<Arc<str>>,
    /// What tells apart the groups of a rule: the labels of the series, or those it is grouped by.
    pub group: Pairs,
    /// The group's labels and the rule's own, which win. As Prometheus, with `alertname` left to whoever sends it.
    pub labels: Pairs,
    /// The rule's annotations, [filled in](crate::Rule::annotation).
    pub annotations: Pairs,
    /// The series, where the rule is about one: a group of one, and a single metric.
    #[cfg_attr(feature = "serde", serde(skip_deserializing))]
    pub series: Option<Series>,
    /// The value that made the difference, as the thread that made it saw it; of a group of several that fires, the value
    /// of the first of [`holding`](Alert::holding). `None` where there was no data, and of absence.
    pub value: Option<f64>,
    /// How good what is known of it is.
    pub quality: Quality,
    /// 1 for the first alert of this rule and group, 2 for the next …
    pub epoch: u64,
    /// Why now.
    pub cause: AlertCause,
    /// When, by the bus's clock.
    pub at: Time,
    /// Since when the condition has held, or held before it was resolved.
    pub since: Time,
    /// `since` as a date; right also where that was before a restart, which the bus's clock cannot tell.
    pub since_date: SystemTime,
    /// Of a group of several: for how many the condition of the level in force holds; when resolved, for how many that of
    /// the lowest level still does …
    pub holds: usize,
    /// … of how many series, or sets of series with the same labels.
    pub members: usize,
    /// Which ones it holds for: their labels, ten at most. Empty for [`each`](crate::Rule::each), where the group is the one.
    pub holding: Arc<[Pairs]>,
    /// `at` as a date, for people and other machines.
    pub date: SystemTime,
    /// How many times this firing was sent before: not 0 only behind a `Repeat` (feature `tower`).
    pub repeat: u32,
    /// Where it was made, if in another process; `None`: here. Of one made elsewhere, `series` is `None`, `date` is by that
    /// process's clock, and `at` is when it was received.
    pub origin: Option<Arc<Origin>>,
}

impl Alert {
    /// Whether it fires, at whatever level.
    pub fn is_firing(&self) -> bool {
        self.state == AlertState::Firing
    }

    /// The value of one label.
    pub fn label(&self, name: &str) -> Option<&str> {
        find(&self.labels, name)
    }

    /// One annotation.
    pub fn annotation(&self, name: &str) -> Option<&str> {
        find(&self.annotations, name)
    }
}

fn find<'a>(pairs: &'a [(String, String)], name: &str) -> Option<&'a str> {
    pairs
        .iter()
        .find(|(n, _)| n == name)
        .map(|(_, value)| value.as_str())
}

impl fmt::Display for Alert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.rule)?;
        if !self.group.is_empty() {
            let group: Vec<_> = self
                .group
                .iter()
                .map(|(name, value)| format!("{name}={value:?}"))
                .collect();
            write!(f, "{{{}}}", group.join(","))?;
        }
        write!(f, " {}", self.state)?;
        if let Some(level) = &self.level {
            write!(f, " ({level})")?;
        }
        if let Some(value) = self.value {
            write!(f, " at {value}")?;
        }
        Ok(())
    }
}

/// Which way an alert goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum AlertState {
    /// The rule fires, or fires at another level.
    Firing,
    /// It no longer does.
    Resolved,
}

impl AlertState {
    /// `firing` or `resolved`.
    pub fn as_str(self) -> &'static str {
        match self {
            AlertState::Firing => "firing",
            AlertState::Resolved => "resolved",
        }
    }
}

impl fmt::Display for AlertState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why an alert comes now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum AlertCause {
    /// The condition began or ceased to hold, for as long as the rule wants.
    Condition,
    /// It held already when the rule was added; or, of a late subscriber, it was firing when that came.
    Initial,
    /// The last series of the group was removed.
    Removed,
    /// The rule was changed, and by the new one it fires or doesn't.
    RuleChanged,
    /// The rule was removed while firing.
    RuleRemoved,
    /// It was firing before a restart, and what it watched did not come back.
    Restored,
}

impl AlertCause {
    /// `condition`, `initial`, `removed`, `rule_changed`, `rule_removed` or `restored`.
    pub fn as_str(self) -> &'static str {
        match self {
            AlertCause::Condition => "condition",
            AlertCause::Initial => "initial",
            AlertCause::Removed => "removed",
            AlertCause::RuleChanged => "rule_changed",
            AlertCause::RuleRemoved => "rule_removed",
            AlertCause::Restored => "restored",
        }
    }
}

impl fmt::Display for AlertCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How good what is known of a condition's inputs is. It stands beside the state and does not change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Quality {
    /// Numbers all.
    #[default]
    Good,
    /// The last value of an input was NaN.
    Nan,
    /// An input has no data.
    NoData,
    /// A series of the rule had no mutation for as long as one of its `stale` conditions says.
    Stale,
    /// A series of the rule was removed, and one of its `gone` conditions remembers it.
    Gone,
}

impl Quality {
    /// The worse of two; those named later are.
    pub(crate) fn or_worse(self, other: Quality) -> Quality {
        if other as u8 > self as u8 {
            other
        } else {
            self
        }
    }

    /// `good`, `nan`, `no_data`, `stale` or `gone`.
    pub fn as_str(self) -> &'static str {
        match self {
            Quality::Good => "good",
            Quality::Nan => "nan",
            Quality::NoData => "no_data",
            Quality::Stale => "stale",
            Quality::Gone => "gone",
        }
    }
}

impl fmt::Display for Quality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a subscriber of alerts hears who also wants to know when it has caught up.
#[allow(clippy::large_enum_variant)] // Nearly all of them are alerts.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Notice {
    /// An alert. Those before the mark are what was firing when the subscriber came.
    Alert(Alert),
    /// The subscriber knows the present state; from here on alerts are changes.
    Sync,
}

/// The state of a rule for one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum RuleState {
    /// The condition does not hold.
    #[default]
    Inactive,
    /// It holds, but not yet for as long as the rule wants.
    Pending,
    /// It no longer holds, but not yet for as long as the rule wants; it is still firing.
    Clearing,
    /// It holds.
    Firing,
}

impl RuleState {
    /// The gravest last.
    pub(crate) const ALL: [RuleState; 4] = [
        RuleState::Inactive,
        RuleState::Pending,
        RuleState::Clearing,
        RuleState::Firing,
    ];

    /// Whether the last alert said firing.
    pub fn is_firing(self) -> bool {
        matches!(self, RuleState::Firing | RuleState::Clearing)
    }

    /// `inactive`, `pending`, `clearing` or `firing`.
    pub fn as_str(self) -> &'static str {
        match self {
            RuleState::Inactive => "inactive",
            RuleState::Pending => "pending",
            RuleState::Clearing => "clearing",
            RuleState::Firing => "firing",
        }
    }
}

impl fmt::Display for RuleState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
