//! How the rules of a source stand, as it says itself.

use std::{sync::Arc, time::Duration};

use serde_json::Value;

use super::{
    Shared,
    ask::{AskError, Asker, Taken, Whole},
    error::FleetError,
};
use crate::{
    Alert, AlertCause, AlertState, Clock, Origin, SourceId, Time,
    nats::{
        subject::{Query, shown},
        wire::WireError,
    },
    sync::lock,
    time::nanos,
};

/// The rules of a source. Given by [`Fleet::rules_of`](super::Fleet::rules_of).
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct SourceRules {
    /// Those that run there, sorted by name.
    pub rules: Vec<SourceRule>,
    /// Rules from a bucket that it could not take: their keys, and why.
    pub refused: Vec<(String, String)>,
    /// How many more there are that it did not tell.
    pub left_out: u64,
}

/// A rule that runs at a source.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SourceRule {
    /// Its name.
    pub name: String,
    /// The gravest state of its groups: `inactive`, `pending`, `clearing` or `firing`.
    pub state: String,
    /// What an operator should know who wonders why it is quiet; mostly empty.
    pub note: String,
    /// How many series match it.
    pub series: u64,
    /// What it looks at now, or looked at last. `None` where there is no data.
    pub value: Option<f64>,
    /// All that the source said of it: JSON, as `/rules` of its exporter shows it.
    pub json: String,
}

impl Asker {
    /// What a source has firing, as its rules stand: alerts without a number of their own; and the room that the answer takes.
    pub(super) async fn firing(
        &self,
        source: &SourceId,
        boot: u64,
        clock: &Clock,
    ) -> Result<(Vec<Alert>, Taken), AskError> {
        let asked = self.ask(source, Some(boot), Query::Rules, Vec::new());
        let Whole { parts, taken } = asked.await?;
        let origin = Arc::new(Origin {
            source: source.clone(),
            boot,
            sequence: 0,
        });
        let now = clock.now();
        let mut alerts = Vec::new();
        for part in parts {
            let mut rules = SourceRules::default();
            let read = read(&part.payload, &mut rules);
            read.map_err(|why| WireError::field("rules", why))?;
            for rule in rules.rules {
                let row: Value = serde_json::from_str(&rule.json).unwrap_or_default();
                let groups = row.get("alerts").and_then(Value::as_array);
                let groups = groups.into_iter().flatten();
                let of_rule = groups.filter_map(|group| alert(&rule.name, &row, group, now, clock));
                alerts.extend(of_rule.map(|alert| Alert {
                    origin: Some(origin.clone()),
                    ..alert
                }));
            }
        }
        Ok((alerts, taken))
    }
}

/// The alert of a group that fires, as far as it is told.
fn alert(rule: &str, row: &Value, group: &Value, now: Time, clock: &Clock) -> Option<Alert> {
    let firing = matches!(text(group, "state")?.as_str(), "firing" | "clearing");
    // Of a rule that is only tried out nothing is said: nobody would ever hear that it is over.
    let silent = row.get("dry_run").and_then(Value::as_bool) == Some(true);
    if !firing || silent {
        return None;
    }
    let age = group
        .get("active_for")
        .and_then(Value::as_f64)
        .unwrap_or(0.0);
    let age = Duration::try_from_secs_f64(age).unwrap_or_default();
    let of_group = pairs(group, "labels");
    let mut labels = pairs(row, "labels");
    labels.extend(
        of_group
            .iter()
            .filter(|(name, _)| row["labels"].get(name).is_none())
            .cloned(),
    );
    labels.sort();
    Some(Alert {
        level: text(group, "level").map(Into::into),
        group: of_group.into(),
        labels: labels.into(),
        annotations: pairs(group, "annotations").into(),
        value: group.get("value").and_then(number),
        epoch: group.get("epoch").and_then(Value::as_u64).unwrap_or(1),
        cause: AlertCause::Initial,
        since: Time(now.0.saturating_sub(nanos(age))),
        since_date: clock.wall_before(now, age),
        date: clock.wall(now),
        ..Alert::new(rule, AlertState::Firing, now)
    })
}

/// An object of texts, sorted.
fn pairs(row: &Value, field: &str) -> Vec<(String, String)> {
    let all = row
        .get(field)
        .and_then(Value::as_object)
        .into_iter()
        .flatten();
    let mut pairs: Vec<_> = all
        .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
        .collect();
    pairs.sort();
    pairs
}

impl Shared {
    pub(super) async fn rules_of(&self, source: &SourceId) -> Result<SourceRules, FleetError> {
        let life = lock(&self.table).boot(source);
        let asked = self.asker.ask(source, life, Query::Rules, Vec::new());
        let Whole { parts, taken } = asked
            .await
            .map_err(|error| FleetError::unanswered(source, &error))?;
        let mut rules = SourceRules::default();
        for part in parts {
            read(&part.payload, &mut rules).map_err(|why| FleetError::Unanswered {
                source_id: source.clone(),
                why,
            })?;
        }
        drop(taken);
        rules.rules.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(rules)
    }
}

fn read(body: &[u8], rules: &mut SourceRules) -> Result<(), String> {
    let read: Value = serde_json::from_slice(body)
        .map_err(|error| format!("its answer is no JSON: {}", shown(&error.to_string())))?;
    let rows = |field| {
        read.get(field)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
    };
    let Some(_) = read.get("rules").and_then(Value::as_array) else {
        return Err("its answer has no list of rules".to_owned());
    };
    rules.rules.extend(rows("rules").filter_map(rule));
    rules.refused.extend(
        rows("refused").filter_map(|refused| Some((text(refused, "key")?, text(refused, "why")?))),
    );
    for field in ["rules_left_out", "refused_left_out"] {
        let more = read.get(field).and_then(Value::as_u64).unwrap_or(0);
        rules.left_out = rules.left_out.max(more);
    }
    Ok(())
}

fn rule(row: &Value) -> Option<SourceRule> {
    Some(SourceRule {
        name: text(row, "name")?,
        state: text(row, "state")?,
        note: text(row, "note").unwrap_or_default(),
        series: row.get("series").and_then(Value::as_u64).unwrap_or(0),
        value: row.get("value").and_then(number),
        json: row.to_string(),
    })
}

fn text(row: &Value, field: &str) -> Option<String> {
    Some(row.get(field)?.as_str()?.to_owned())
}

fn number(value: &Value) -> Option<f64> {
    match value.as_str() {
        Some("NaN") => Some(f64::NAN),
        Some("+Inf") => Some(f64::INFINITY),
        Some("-Inf") => Some(f64::NEG_INFINITY),
        _ => value.as_f64(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_as_far_as_it_goes() {
        let mut rules = SourceRules::default();
        let body = br#"{"now": "", "rules": [
            {"name": "b", "state": "firing", "series": 2, "value": "+Inf", "new": {}},
            {"state": "no name"}, 7
        ], "refused": [{"key": "a.b.c", "why": "no"}, {}], "rules_left_out": 3}"#;
        read(body, &mut rules).unwrap();
        assert_eq!(rules.rules.len(), 1);
        assert_eq!(rules.rules[0].value, Some(f64::INFINITY));
        assert_eq!(rules.refused, [("a.b.c".to_owned(), "no".to_owned())]);
        assert_eq!(rules.left_out, 3);
    }

    #[test]
    fn what_is_firing_is_read_from_how_rules_stand() {
        let clock = Clock::manual();
        clock.advance(Duration::from_secs(60));
        let row: Value = serde_json::from_str(
            r#"{"name": "Full", "labels": {"severity": "page"}, "alerts": [
                {"state": "firing", "level": "warn", "labels": {"pod": "a"}, "value": 0.95,
                 "active_for": 10.5, "epoch": 7, "annotations": {"summary": "full"}},
                {"state": "pending", "labels": {"pod": "b"}}
            ]}"#,
        )
        .unwrap();
        let groups = row["alerts"].as_array().unwrap();
        let read = |group| alert("Full", &row, group, clock.now(), &clock);
        let full = read(&groups[0]).unwrap();
        assert_eq!(full.to_string(), r#"Full{pod="a"} firing (warn) at 0.95"#);
        assert_eq!(full.label("severity"), Some("page"));
        assert_eq!((full.epoch, full.since.as_secs_f64()), (7, 49.5));
        assert_eq!(read(&groups[1]), None);
    }

    #[test]
    fn a_rule_that_is_only_tried_out_has_nothing_firing() {
        let clock = Clock::manual();
        let mut row: Value = serde_json::from_str(
            r#"{"name": "Full", "dry_run": true, "alerts": [{"state": "firing", "labels": {}}]}"#,
        )
        .unwrap();
        let group = row["alerts"][0].clone();
        assert_eq!(alert("Full", &row, &group, clock.now(), &clock), None);
        row["dry_run"] = false.into();
        assert!(alert("Full", &row, &group, clock.now(), &clock).is_some());
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        for body in ["", "[]", "{}", r#"{"rules": {}}"#] {
            assert!(read(body.as_bytes(), &mut SourceRules::default()).is_err());
        }
    }
}
