//! `/rules`: how each rule stands, in JSON.
//!
//! Each rule is looked at, and its lock given back, before anything of it is written. The answer is bounded by the groups
//! of a rule and by its size, and says what it left out.

use serde_json::json;

use crate::{
    LiveRule, MetricBus, RuleState,
    rule::show::{GROUPS_MAX, HISTORY_DEFAULT, Now, push, write_rule},
};

/// The most transitions of a rule that can be asked for.
const HISTORY_MAX: usize = 1_000;

/// A rule that would begin behind this is left out.
const BYTES_MAX: usize = 16 << 20;

/// Rules that are named to someone who asked for one that is not there.
const NAMES_MAX: usize = 10;

/// What is asked for.
#[derive(Debug, PartialEq)]
pub(super) struct Query {
    /// Empty: all.
    rules: Vec<String>,
    /// Empty: all.
    states: Vec<RuleState>,
    history: usize,
}

impl Default for Query {
    fn default() -> Self {
        Query {
            rules: Vec::new(),
            states: Vec::new(),
            history: HISTORY_DEFAULT,
        }
    }
}

/// What is wrong with the question.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(super) enum QueryError {
    #[error("there is no parameter {0:?}; there are rule=NAME, state=STATE and history=N")]
    Parameter(String),
    #[error("there is no state {0:?}; a rule is inactive, pending, clearing or firing")]
    State(String),
    #[error("history={0:?} is not a number of transitions; give one from 0 to {HISTORY_MAX}")]
    History(String),
    #[error("there is no rule {name:?}; there {there}")]
    Rule { name: String, there: String },
}

impl QueryError {
    pub(super) fn json(&self) -> String {
        format!("{}\n", json!({ "error": self.to_string() }))
    }

    fn no_rule(name: &str, all: &[LiveRule]) -> Self {
        let named: Vec<_> = all
            .iter()
            .take(NAMES_MAX)
            .map(|rule| format!("{:?}", rule.name()))
            .collect();
        let mut there = match named.len() {
            0 => "are no rules".to_owned(),
            1 => format!("is {}", named[0]),
            _ => format!("are {}", named.join(", ")),
        };
        let more = all.len().saturating_sub(NAMES_MAX);
        if more > 0 {
            there += &format!(" and {more} more");
        }
        QueryError::Rule {
            name: name.to_owned(),
            there,
        }
    }
}

impl Query {
    /// Of what stands behind the question mark.
    pub(super) fn parse(text: &str) -> Result<Query, QueryError> {
        let mut query = Query::default();
        for (name, value) in form_urlencoded::parse(text.as_bytes()) {
            match &*name {
                "rule" => query.rules.push(value.into_owned()),
                "state" => {
                    let known = RuleState::ALL
                        .into_iter()
                        .find(|state| state.as_str() == value);
                    let state = known.ok_or_else(|| QueryError::State(value.into_owned()))?;
                    query.states.push(state);
                }
                "history" => {
                    let number = value.parse().ok().filter(|&n| n <= HISTORY_MAX);
                    query.history =
                        number.ok_or_else(|| QueryError::History(value.into_owned()))?;
                }
                _ => return Err(QueryError::Parameter(name.into_owned())),
            }
        }
        Ok(query)
    }
}

/// Writes the answer to the end of `out`. Blocks the thread for as long as it takes.
pub(super) fn write(bus: &MetricBus, query: &Query, out: &mut Vec<u8>) -> Result<(), QueryError> {
    let all = bus.rules();
    for name in &query.rules {
        if !all.iter().any(|rule| rule.name() == name) {
            return Err(QueryError::no_rule(name, &all));
        }
    }
    let now = Now::of(bus);
    let begin = out.len();
    out.extend_from_slice(b"{\n\"now\": ");
    push(out, &now.now());
    out.extend_from_slice(b",\n\"rules\": [");
    let (mut written, mut left_out) = (0, 0);
    for rule in &all {
        if !query.rules.is_empty() && !query.rules.iter().any(|name| name == rule.name()) {
            continue;
        }
        let is_full = out.len() - begin > BYTES_MAX;
        let groups_max = if is_full { 0 } else { GROUPS_MAX };
        let (described, status, groups_left_out) = rule.status_up_to(groups_max);
        if !query.states.is_empty() && !query.states.contains(&status.state) {
            continue;
        }
        if is_full {
            left_out += 1;
            continue;
        }
        if written > 0 {
            out.push(b',');
        }
        written += 1;
        let history = rule.last(query.history);
        out.push(b'\n');
        write_rule(&described, status, groups_left_out, &history, &now, out);
    }
    out.extend_from_slice(if written > 0 { b"\n]" } else { b"]" });
    out.extend_from_slice(b",\n\"rules_left_out\": ");
    push(out, &left_out);
    out.extend_from_slice(b"\n}\n");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_read_with_its_escapes_and_parameters_can_be_there_more_than_once() {
        assert_eq!(Query::parse(""), Ok(Query::default()));
        assert_eq!(
            Query::parse("rule=Kv+full%26hot&rule=b&state=firing&state=clearing&history=0"),
            Ok(Query {
                rules: vec!["Kv full&hot".to_owned(), "b".to_owned()],
                states: vec![RuleState::Firing, RuleState::Clearing],
                history: 0,
            })
        );
    }

    #[test]
    fn what_is_wrong_with_a_question_is_said_with_what_would_be_right() {
        for (text, right) in [
            ("rules=a", "there are rule=NAME"),
            ("=", "there are rule=NAME"),
            ("state=FIRING", "inactive, pending, clearing or firing"),
            ("state=", "inactive, pending, clearing or firing"),
            ("history=-1", "from 0 to 1000"),
            ("history=1001", "from 0 to 1000"),
            ("history=all", "from 0 to 1000"),
            ("history", "from 0 to 1000"),
        ] {
            let error = Query::parse(text).unwrap_err();
            assert!(error.to_string().contains(right), "{text}: {error}");
            let read: serde_json::Value = serde_json::from_str(&error.json()).unwrap();
            assert_eq!(read["error"], error.to_string());
        }
    }
}
