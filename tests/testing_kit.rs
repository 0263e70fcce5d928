//! The test kit, used as a user would, and what it says when a test fails.

use std::{panic::AssertUnwindSafe, time::Duration};

use metricbus::{
    AlertState, Buckets, Condition, Counter, Desc, Expr, Rule, Threshold, assert_fired,
    assert_pending, assert_quiet, assert_resolved,
    testing::{TestBus, at},
};

fn secs(s: u64) -> Duration {
    Duration::from_secs(s)
}

fn full() -> Rule {
    let full = Condition::when("kv", Threshold::above(0.9).clear_below(0.8));
    Rule::new("Full", full).hold_for(secs(5))
}

/// What a closure panics with.
fn message(f: impl FnOnce()) -> String {
    let panic = std::panic::catch_unwind(AssertUnwindSafe(f)).expect_err("it did not panic");
    match panic.downcast::<String>() {
        Ok(message) => *message,
        Err(panic) => (*panic.downcast::<&str>().unwrap()).to_owned(),
    }
}

#[track_caller]
fn says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

#[test]
fn assertions_consume_what_they_match_in_order() {
    let kit = TestBus::new();
    kit.add_rule(full());
    for worker in ["a", "b"] {
        kit.set(&format!("kv{{worker=\"{worker}\"}}"), 0.95);
    }
    let pending = assert_pending!(kit, "Full", labels {"worker" => "b"});
    assert_eq!(pending.value, Some(0.95));
    kit.advance_to(at(5.0));
    let b = assert_fired!(kit, "Full", labels {"worker" => "b",});
    assert_eq!((b.at, b.since), (at(5.0), at(0.0)));
    let a = assert_fired!(kit, "Full");
    assert_eq!(a.label("worker"), Some("a"));
    assert_quiet!(kit);
    kit.set("kv{worker='a'}", 0.1);
    kit.set("kv{worker='b'}", 0.1);
    assert_resolved!(kit, "Full", labels {"worker" => "b"});
    assert_eq!(kit.alerts().len(), 1);
    assert_eq!(kit.take_alerts()[0].state, AlertState::Resolved);
    assert_quiet!(kit);
}

#[test]
fn counters_and_histograms_are_declared_when_they_are_named() {
    let kit = TestBus::new();
    kit.add_rule(Rule::new(
        "Busy",
        Condition::when(
            Expr::rate("requests_total", secs(10)),
            Threshold::above(5.0),
        ),
    ));
    kit.add_rule(Rule::new(
        "Slow",
        Condition::when("latency_seconds", Threshold::above(1.0)),
    ));
    kit.inc("requests_total", 100);
    kit.observe("latency_seconds", 3.0);
    kit.advance(secs(1));
    assert_fired!(kit, "Slow");
    assert_fired!(kit, "Busy");
    assert_eq!(kit.remove("requests_total"), 1);
}

#[test]
fn metrics_that_the_code_under_test_declared_are_used_as_they_are() {
    let kit = TestBus::new();
    let latency = kit
        .bus()
        .histogram("latency", "Time.", Buckets::new([1.0]).unwrap())
        .unwrap();
    let busy = kit
        .bus()
        .family::<Counter<f64>>(Desc::new("busy_total", "Busy.").labels(["b", "a"]))
        .unwrap();
    kit.observe("latency", 0.5);
    assert_eq!(latency.snapshot().count, 1);
    kit.inc("busy_total{a='1',b='2'}", 3);
    assert_eq!(busy.with_label_values(&["2", "1"]).unwrap().get(), 3.0);
}

#[test]
fn a_dry_run_is_captured() {
    let kit = TestBus::new();
    kit.add_rule(full().dry_run(true).hold_for(Duration::ZERO));
    kit.set("kv", 1.0);
    assert_fired!(kit, "Full");
}

#[test]
fn a_failed_assertion_shows_the_rule_its_history_and_what_was_captured() {
    let kit = TestBus::new();
    kit.add_rule(full());
    kit.add_rule(Rule::new(
        "Any",
        Condition::when("kv", Threshold::above(0.5)),
    ));
    kit.set("kv{worker='a'}", 0.95);
    kit.advance(secs(4));
    says(
        &message(|| drop(assert_fired!(kit, "Full", labels {"worker" => "a"}))),
        &[
            "Full{worker=\"a\"} has not fired",
            "time: 4s",
            "condition: kv above 0.9, clear below 0.8",
            "judged: each series; hold_for 5s\n",
            "state: pending",
            "{worker=\"a\"} pending since 0ns, at 0.95",
            "history: none",
            "captured, and not consumed:\n    0ns Any{worker=\"a\"} firing at 0.95",
        ],
    );
    kit.advance(secs(1));
    assert_fired!(kit, "Full");
    says(
        &message(|| drop(assert_resolved!(kit, "Full"))),
        &[
            "Full was not resolved",
            "state: firing",
            "history:\n    5s Full{worker=\"a\"} firing at 0.95",
        ],
    );
    says(
        &message(|| drop(assert_pending!(kit, "Full"))),
        &["Full is not pending", "state: firing"],
    );
    says(
        &message(|| assert_quiet!(kit)),
        &[
            "no assertion has consumed",
            "0ns Any{worker=\"a\"} firing at 0.95",
        ],
    );
}

#[test]
fn a_failed_assertion_says_how_the_rule_groups_and_what_it_waits_for() {
    let any = || Condition::when("kv", Threshold::above(0.9));
    for (rule, judged) in [
        (Rule::new("R", any()), "judged: each series\n"),
        (Rule::new("R", any()).all(), "judged: all series\n"),
        (
            Rule::new("R", any())
                .at_least(2)
                .by(["role", "zone"])
                .keep_firing_for(secs(3)),
            "judged: at least 2 series by role, zone; keep_firing_for 3s\n",
        ),
        (
            Rule::new("R", any())
                .any()
                .m_of_n(2, 3, secs(1))
                .every(secs(2))
                .initial(false),
            "judged: any series; m_of_n: 2 of 3 slots of 1s; every 2s; initial(false)\n",
        ),
    ] {
        let kit = TestBus::new();
        kit.add_rule(rule);
        says(&message(|| drop(assert_fired!(kit, "R"))), &[judged]);
    }
}

#[test]
fn a_rule_that_has_matched_no_series_says_so() {
    let kit = TestBus::new();
    kit.add_rule(full());
    kit.set("kw", 0.95);
    says(
        &message(|| drop(assert_fired!(kit, "Full"))),
        &[
            "never matched a series",
            "over 0 series",
            "judged last: nothing",
        ],
    );
}

#[test]
fn a_rule_that_is_not_there_is_said_with_those_that_are() {
    let kit = TestBus::new();
    kit.add_rule(full());
    says(
        &message(|| drop(assert_fired!(kit, "Ful"))),
        &["no rule has this name", "[\"Full\"]"],
    );
}

#[test]
fn what_is_wrong_with_the_test_itself_is_said() {
    let kit = TestBus::new();
    kit.set("kv{worker='a'}", 1.0);
    kit.inc("requests_total", 1);
    says(&message(|| kit.set("kv{", 1.0)), &["kv{", "label name"]);
    says(&message(|| kit.set("kv{a=~'b'}", 1.0)), &["means several"]);
    says(
        &message(|| kit.set("kv{pod='a'}", 1.0)),
        &["[\"worker\"]", "[\"pod\"]"],
    );
    says(
        &message(|| kit.set("requests_total", 1.0)),
        &["it is a counter, not a gauge", "inc()"],
    );
    says(
        &message(|| kit.inc("kv{worker='a'}", 1)),
        &["it is a gauge", "set()"],
    );
    says(
        &message(|| kit.observe("requests_total", 1.0)),
        &["not a histogram"],
    );
    says(&message(|| kit.set("metricbus_x", 1.0)), &["metricbus_"]);
    kit.add_rule(full());
    says(&message(|| drop(kit.add_rule(full()))), &["already"]);
    kit.advance(secs(2));
    says(&message(|| kit.advance_to(at(1.0))), &["2s already"]);
    says(&message(|| assert_eq!(kit.remove("}"), 0)), &["expected"]);
    says(&message(|| assert_eq!(at(-1.0), at(0.0))), &["at(-1)"]);
}
