//! How all rules stand, for whoever asks: as `/rules` of the exporter has it, in as many parts as it takes.

use crate::{
    bus::MetricBus,
    nats::forwarder::rules_in::RefusedRule,
    rule::show::{GROUPS_MAX, HISTORY_DEFAULT, Now, push, write_rule},
};

/// Refused rules that are shown.
const REFUSED_MAX: usize = 100;

/// Each is an object of its own, with some of the rules. The first has what was refused.
pub(super) fn rule_parts(
    bus: &MetricBus,
    refused: &[RefusedRule],
    bytes_max: usize,
) -> Vec<Vec<u8>> {
    let now = Now::of(bus);
    let mut parts = Parts::new(&now, bytes_max);
    parts.refused(refused);
    let mut row = Vec::new();
    for rule in bus.rules() {
        // One that is large for its groups and its past is shown without them.
        let fits = [(GROUPS_MAX, HISTORY_DEFAULT), (20, 1), (0, 0)]
            .into_iter()
            .any(|(groups_max, history)| {
                let (described, status, left_out) = rule.status_up_to(groups_max);
                row.clear();
                write_rule(
                    &described,
                    status,
                    left_out,
                    &rule.last(history),
                    &now,
                    &mut row,
                );
                parts.add(&row)
            });
        if !fits {
            parts.left_out += 1;
        }
    }
    parts.finish()
}

struct Parts<'a> {
    now: &'a Now,
    bytes_max: usize,
    done: Vec<Vec<u8>>,
    /// Without its end.
    open: Vec<u8>,
    rows: usize,
    left_out: usize,
}

/// For the end of a part.
const END: usize = 64;

impl<'a> Parts<'a> {
    fn new(now: &'a Now, bytes_max: usize) -> Self {
        let mut parts = Parts {
            now,
            bytes_max,
            done: Vec::new(),
            open: Vec::new(),
            rows: 0,
            left_out: 0,
        };
        parts.begin();
        parts
    }

    fn begin(&mut self) {
        self.rows = 0;
        self.open.extend_from_slice(b"{\n\"now\": ");
        push(&mut self.open, &self.now.now());
        self.open.extend_from_slice(b",\n\"rules\": [");
    }

    /// Keys and reasons, at the beginning of the first part.
    fn refused(&mut self, refused: &[RefusedRule]) {
        let shown = &refused[..refused.len().min(REFUSED_MAX)];
        let mut head = b"{\n\"refused\": [".to_vec();
        for (i, RefusedRule { key, why, .. }) in shown.iter().enumerate() {
            head.extend_from_slice(if i > 0 { b",\n  " } else { b"\n  " });
            push(&mut head, &serde_json::json!({ "key": key, "why": why }));
        }
        head.extend_from_slice(if shown.is_empty() { b"]" } else { b"\n]" });
        head.extend_from_slice(b",\n\"refused_left_out\": ");
        push(&mut head, &(refused.len() - shown.len()));
        head.push(b',');
        if head.len() < self.bytes_max / 2 {
            // In place of the brace.
            self.open.splice(..1, head);
        }
    }

    /// `false`: it is too large for any part.
    fn add(&mut self, row: &[u8]) -> bool {
        let fits = |parts: &Self| parts.open.len() + row.len() + 2 + END <= parts.bytes_max;
        if !fits(self) && self.rows > 0 {
            self.close();
            self.begin();
        }
        if !fits(self) {
            return false;
        }
        self.open
            .extend_from_slice(if self.rows > 0 { b",\n" } else { b"\n" });
        self.open.extend_from_slice(row);
        self.rows += 1;
        true
    }

    fn close(&mut self) {
        self.open
            .extend_from_slice(if self.rows > 0 { b"\n]" } else { b"]" });
        self.done.push(std::mem::take(&mut self.open));
    }

    fn finish(mut self) -> Vec<Vec<u8>> {
        self.close();
        for part in &mut self.done {
            part.extend_from_slice(b",\n\"rules_left_out\": ");
            push(part, &self.left_out);
            part.extend_from_slice(b"\n}\n");
        }
        self.done
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::{Clock, Condition, Rule, Threshold};

    fn bus_with(rules: usize) -> MetricBus {
        let bus = MetricBus::builder().clock(Clock::manual()).build();
        for i in 0..rules {
            let condition = Condition::when("g", Threshold::above(i as f64));
            bus.add_rule(Rule::new(format!("r{i}"), condition)).unwrap();
        }
        bus
    }

    fn names(parts: &[Vec<u8>]) -> Vec<String> {
        let mut names = Vec::new();
        for part in parts {
            let read: Value = serde_json::from_slice(part).unwrap();
            let rules = read["rules"].as_array().unwrap();
            names.extend(rules.iter().map(|r| r["name"].as_str().unwrap().to_owned()));
        }
        names
    }

    #[test]
    fn all_rules_are_told_in_parts_that_are_json_each() {
        for rules in [0, 1, 30] {
            let bus = bus_with(rules);
            let parts = rule_parts(&bus, &[], 4_096);
            assert_eq!(names(&parts).len(), rules);
            assert!(parts.iter().all(|part| part.len() <= 4_096));
            assert_eq!(parts.len() > 1, rules == 30);
        }
    }

    #[test]
    fn a_rule_too_large_for_any_part_is_left_out_and_counted() {
        let bus = bus_with(2);
        let large = Rule::new("large", Condition::when("g", Threshold::above(0.0)))
            .annotation("a", "x".repeat(5_000));
        bus.add_rule(large).unwrap();
        let parts = rule_parts(&bus, &[], 4_096);
        assert_eq!(names(&parts), ["r0", "r1"]);
        let read: Value = serde_json::from_slice(&parts[0]).unwrap();
        assert_eq!(read["rules_left_out"], 1);
    }

    #[test]
    fn what_was_refused_is_told_with_the_reason() {
        let refused: Vec<_> = (0..150)
            .map(|i| RefusedRule {
                key: format!("n.c.r{i}"),
                why: "\"quoted\"".to_owned(),
            })
            .collect();
        let parts = rule_parts(&bus_with(1), &refused, 1 << 20);
        let read: Value = serde_json::from_slice(&parts[0]).unwrap();
        assert_eq!(read["refused"].as_array().unwrap().len(), 100);
        assert_eq!(read["refused"][0]["why"], "\"quoted\"");
        assert_eq!(read["refused_left_out"], 50);
        assert_eq!(read["rules"][0]["name"], "r0");
    }
}
