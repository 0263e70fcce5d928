//! How a rule stands, in JSON made to be read by people too: a field a line, an alert a line.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use serde::{Serialize, Serializer};

use super::{
    Alert, Group, Pairs, Rule, RuleGroup, RuleStatus,
    log::{annotations_of, labels_of},
    template::Facts,
};
use crate::{bus::MetricBus, time::Time};

/// Groups of a rule that are shown.
pub(crate) const GROUPS_MAX: usize = 1_000;

/// Transitions of a rule that are shown unless more or fewer are asked for.
pub(crate) const HISTORY_DEFAULT: usize = 10;

/// Writes an object to the end of `out`.
pub(crate) fn write_rule(
    rule: &Rule,
    mut status: RuleStatus,
    groups_left_out: usize,
    history: &[Alert],
    now: &Now,
    out: &mut Vec<u8>,
) {
    status
        .active
        .sort_by(|a, b| b.state.cmp(&a.state).then_with(|| a.labels.cmp(&b.labels)));
    let mut fields = Fields { out, any: false };
    // First how it stands, then what it is; what can be long comes last.
    fields.add("name", &status.name);
    fields.add("type", &"metric");
    fields.add("state", &status.state.as_str());
    let note = note(&status);
    if !note.is_empty() {
        fields.add("note", &note);
    }
    fields.rows("conditions", status.conditions.iter().map(Conditions::of));
    let groups = Groups {
        inactive: status.inactive,
        pending: status.pending,
        clearing: status.clearing,
        firing: status.firing,
    };
    fields.add("groups", &groups);
    fields.add("series", &status.series);
    fields.add("ever_matched", &status.ever_matched);
    fields.add("value", &Number(status.value));
    let evaluated = status.since_evaluated;
    fields.add("lastEvaluation", &evaluated.and_then(|age| now.ago(age)));
    fields.add("since_evaluation", &evaluated.map(seconds));
    fields.add("fired", &status.fired);
    fields.add("resolved", &status.resolved);
    fields.add("missed", &status.missed);
    fields.add("hung", &status.hung);
    fields.add("dry_run", &status.dry_run);
    let thresholds = status.thresholds.iter().map(|threshold| Threshold {
        level: threshold.level.as_deref(),
        input: &threshold.input,
        raise: Number(Some(threshold.raise)),
        clear: Number(Some(threshold.clear)),
    });
    fields.rows("thresholds", thresholds);
    fields.add("hold_for", &rule.hold.as_secs_f64());
    fields.add("keep_firing_for", &rule.keep.as_secs_f64());
    let slots = rule.slots.map(|slots| Slots {
        m: slots.m,
        n: slots.n,
        slot: slots.width.as_secs_f64(),
    });
    fields.add("m_of_n", &slots);
    fields.add("every", &rule.every.map(|every| every.as_secs_f64()));
    let grouping = match rule.group {
        Group::Each => "each".to_owned(),
        Group::Any => "any".to_owned(),
        Group::All => "all".to_owned(),
        Group::AtLeast(k) => format!("at_least({k})"),
    };
    fields.add("grouping", &grouping);
    fields.add("by", &rule.by);
    fields.add("labels", &Map(&rule.labels));
    fields.add("annotations", &Map(&rule.annotations));
    let active = status.active.iter();
    fields.rows("alerts", active.map(|group| Active::of(rule, group, now)));
    fields.add("groups_left_out", &groups_left_out);
    fields.rows("history", history.iter().map(Transition::of));
    fields.end();
}

/// What an operator should know who wonders why a rule is quiet. Mostly nothing.
fn note(status: &RuleStatus) -> String {
    let mut notes = Vec::new();
    if !status.ever_matched {
        notes.push(
            "no series has ever matched: the rule is about nothing; see whether the names and labels in its conditions are those of a metric",
        );
    } else if status.series == 0 {
        notes.push("no series matches now: those that did have been removed");
    }
    let unmatched;
    if status.ever_matched && !status.unmatched.is_empty() {
        unmatched = format!("no series has ever matched {}", status.unmatched.join(", "));
        notes.push(&unmatched);
    }
    let meant;
    if !status.did_you_mean.is_empty() {
        meant = format!("did you mean {}?", status.did_you_mean.join(", "));
        notes.push(&meant);
    }
    let no_data;
    if status.no_data > 0 && status.series > 0 {
        no_data = format!(
            "{} of its groups have no data: a gauge that was never set, a window that saw nothing, or an operand without a series of the same labels",
            status.no_data
        );
        notes.push(&no_data);
    }
    if status.dry_run {
        notes.push("a dry run: nobody is told when it fires");
    }
    notes.join("; ")
}

/// The time of the answer, by which every other date in it is reckoned.
pub(crate) struct Now {
    at: Time,
    wall: SystemTime,
}

impl Now {
    pub(crate) fn of(bus: &MetricBus) -> Self {
        let at = bus.clock().now();
        Now {
            at,
            wall: bus.clock().wall(at),
        }
    }

    /// The time itself.
    pub(crate) fn now(&self) -> Option<Date> {
        self.date(self.at)
    }

    pub(crate) fn date(&self, at: Time) -> Option<Date> {
        self.ago(self.at.since(at))
    }

    fn ago(&self, age: Duration) -> Option<Date> {
        self.wall.checked_sub(age).and_then(Date::of)
    }
}

/// As RFC 3339 has it, in UTC, to the millisecond.
pub(crate) struct Date(jiff::Timestamp);

impl Date {
    /// `None` for a year above 9999, which a test's clock can show.
    fn of(time: SystemTime) -> Option<Self> {
        jiff::Timestamp::try_from(time).ok().map(Date)
    }
}

impl Serialize for Date {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:.3}", self.0))
    }
}

/// A value; `null` where there is none, and text for what is no number in JSON.
struct Number(Option<f64>);

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            None => serializer.serialize_none(),
            Some(value) if value.is_nan() => serializer.serialize_str("NaN"),
            Some(f64::INFINITY) => serializer.serialize_str("+Inf"),
            Some(f64::NEG_INFINITY) => serializer.serialize_str("-Inf"),
            Some(value) => serializer.serialize_f64(value),
        }
    }
}

/// Labels or annotations. Of two with one name the last counts, as in alerts.
struct Map<'a>(&'a [(String, String)]);

impl Serialize for Map<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let unique: BTreeMap<_, _> = self.0.iter().map(|(n, v)| (n, v)).collect();
        serializer.collect_map(unique)
    }
}

fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e3).round() / 1e3
}

#[derive(Serialize)]
struct Conditions<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    level: Option<&'a str>,
    condition: &'a str,
}

impl<'a> Conditions<'a> {
    fn of((level, condition): &'a (Option<String>, String)) -> Self {
        Conditions {
            level: level.as_deref(),
            condition,
        }
    }
}

#[derive(Serialize)]
struct Threshold<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    level: Option<&'a str>,
    input: &'a str,
    raise: Number,
    clear: Number,
}

#[derive(Serialize)]
struct Slots {
    m: u32,
    n: u32,
    slot: f64,
}

#[derive(Serialize)]
struct Groups {
    inactive: usize,
    pending: usize,
    clearing: usize,
    firing: usize,
}

/// A group that is not inactive.
#[derive(Serialize)]
struct Active<'a> {
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    level: Option<&'a str>,
    labels: Map<'a>,
    value: Number,
    quality: &'static str,
    #[serde(rename = "activeAt")]
    active_at: Option<Date>,
    active_for: Option<f64>,
    epoch: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

impl<'a> Active<'a> {
    fn of(rule: &Rule, group: &'a RuleGroup, now: &Now) -> Self {
        let annotations = if rule.annotations.is_empty() {
            BTreeMap::new()
        } else {
            let labels = labels_of(rule, &group.labels);
            // Of one series: itself.
            let alone = [group.labels.clone()];
            let (holding, holds) = if rule.group == Group::Each {
                (&alone[..], 1)
            } else {
                (&group.holding[..], group.holds)
            };
            let facts = Facts {
                value: group.value,
                labels: &labels,
                first: group.holding.first().unwrap_or(&group.labels),
                holding,
                holds,
            };
            annotations_of(rule, &facts).into_iter().collect()
        };
        Active {
            state: group.state.as_str(),
            level: group.level.as_deref(),
            labels: Map(&group.labels),
            value: Number(group.value),
            quality: group.quality.as_str(),
            active_at: group.since_date.and_then(Date::of),
            active_for: group
                .since_date
                .map(|since| seconds(now.wall.duration_since(since).unwrap_or_default())),
            epoch: group.epoch,
            annotations,
        }
    }
}

/// What a rule has said.
#[derive(Serialize)]
struct Transition<'a> {
    at: Option<Date>,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    level: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous_level: Option<&'a str>,
    group: Map<'a>,
    value: Number,
    /// Of a group of several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    holding: Vec<Map<'a>>,
    quality: &'static str,
    cause: &'static str,
    epoch: u64,
}

impl<'a> Transition<'a> {
    fn of(alert: &'a Alert) -> Self {
        let group: &'a Pairs = &alert.group;
        Transition {
            at: Date::of(alert.date),
            state: alert.state.as_str(),
            level: alert.level.as_deref(),
            previous_level: alert.previous_level.as_deref(),
            group: Map(group),
            value: Number(alert.value),
            holding: alert.holding.iter().map(|labels| Map(labels)).collect(),
            quality: alert.quality.as_str(),
            cause: alert.cause.as_str(),
            epoch: alert.epoch,
        }
    }
}

/// An object with a line for each field, and for each row of one that has rows.
struct Fields<'a> {
    out: &'a mut Vec<u8>,
    any: bool,
}

impl Fields<'_> {
    fn name(&mut self, name: &str) {
        self.out
            .extend_from_slice(if self.any { b",\n  \"" } else { b"{\n  \"" });
        self.any = true;
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\": ");
    }

    fn add(&mut self, name: &str, value: &impl Serialize) {
        self.name(name);
        push(self.out, value);
    }

    fn rows(&mut self, name: &str, rows: impl Iterator<Item = impl Serialize>) {
        self.name(name);
        let mut any = false;
        for row in rows {
            self.out
                .extend_from_slice(if any { b",\n    " } else { b"[\n    " });
            any = true;
            push(self.out, &row);
        }
        self.out
            .extend_from_slice(if any { b"\n  ]" } else { b"[]" });
    }

    fn end(self) {
        self.out.extend_from_slice(b"\n}");
    }
}

pub(crate) fn push(out: &mut Vec<u8>, value: &impl Serialize) {
    // Writing into a Vec can't fail, and neither does anything that is written here.
    let _ = serde_json::to_writer(out, value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_number_in_json_is_text() {
        let written = |value| serde_json::to_string(&Number(value)).unwrap();
        assert_eq!(written(None), "null");
        assert_eq!(written(Some(f64::NAN)), r#""NaN""#);
        assert_eq!(written(Some(f64::INFINITY)), r#""+Inf""#);
        assert_eq!(written(Some(f64::NEG_INFINITY)), r#""-Inf""#);
        assert_eq!(written(Some(0.1)), "0.1");
    }
}
