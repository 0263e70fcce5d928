//! Rules across restarts, on virtual time: each bus is a process, and all share a file.

use std::{fs, path::PathBuf, time::Duration};

use metricbus::{
    Alert, AlertCause, Clock, Condition, Delta, Expr, Gauge, MetricBus, Rule, RuleState,
    RuleStateError, RuleStateFile, Threshold,
};

fn secs(s: f64) -> Duration {
    Duration::from_secs_f64(s)
}

fn rule() -> Rule {
    let full = Condition::when("kv", Threshold::above(0.9).clear_below(0.8));
    Rule::new("Full", full).hold_for(secs(60.0))
}

/// A process that began at `at` seconds, by everybody's clock.
struct Process {
    bus: MetricBus,
    clock: Clock,
}

impl Process {
    fn at(at: f64, path: &PathBuf) -> Process {
        let clock = Clock::manual();
        clock.advance(secs(at));
        let bus = MetricBus::builder().clock(clock.clone()).build();
        let file = RuleStateFile::new(path)
            .grace_period(secs(10.0))
            .outage_tolerance(secs(300.0));
        bus.keep_rule_state(file).unwrap();
        Process { bus, clock }
    }

    fn kv(&self) -> Gauge {
        self.bus.gauge("kv", "Share of KV blocks in use.").unwrap()
    }

    fn told(&self) -> Vec<(f64, bool, AlertCause, u64)> {
        let history = self.bus.rule("Full").unwrap().history();
        let row = |a: &Alert| (a.at.as_secs_f64(), a.is_firing(), a.cause, a.epoch);
        history.iter().map(row).collect()
    }

    fn state(&self) -> RuleState {
        self.bus.rule("Full").unwrap().status().state
    }

    fn crash(self) {
        self.bus.save_rule_state().unwrap();
    }
}

/// A process that lives for 100 s, in which `kv` is set at 0 and the rule fires at 60 s.
fn fired(path: &PathBuf) {
    let process = Process::at(0.0, path);
    process.bus.add_rule(rule()).unwrap();
    process.kv().set(0.95);
    process.clock.advance(secs(100.0));
    assert_eq!(process.told(), [(60.0, true, AlertCause::Condition, 1)]);
    process.crash();
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rules.json");
    (folder, path)
}

#[test]
fn what_was_firing_goes_on_firing_without_a_word() {
    let (_folder, path) = folder();
    fired(&path);
    let process = Process::at(130.0, &path);
    process.bus.add_rule(rule()).unwrap();
    // Not known yet: it stays as it was.
    assert_eq!(process.state(), RuleState::Firing);
    let early = process.bus.on_alert().stream().unwrap();
    let alert = futures::executor::block_on_stream(early).next().unwrap();
    assert_eq!((alert.cause, alert.epoch), (AlertCause::Initial, 1));
    process.clock.advance(secs(5.0));
    let kv = process.kv();
    kv.set(0.95);
    process.clock.advance(secs(500.0));
    assert_eq!(
        (process.state(), process.told()),
        (RuleState::Firing, vec![])
    );
    // A late subscriber hears of it, with the epoch it had.
    let alerts = process.bus.on_alert().stream().unwrap();
    let mut alerts = futures::executor::block_on_stream(alerts);
    let alert = alerts.next().unwrap();
    assert_eq!((alert.cause, alert.epoch), (AlertCause::Initial, 1));
    kv.set(0.1);
    assert_eq!(process.told(), [(635.0, false, AlertCause::Condition, 2)]);
}

#[test]
fn what_was_firing_and_does_not_hold_any_more_is_resolved_once() {
    let (_folder, path) = folder();
    fired(&path);
    let process = Process::at(130.0, &path);
    process.kv().set(0.1);
    process.bus.add_rule(rule()).unwrap();
    assert_eq!(process.told(), [(130.0, false, AlertCause::Condition, 2)]);
    process.crash();
    let process = Process::at(140.0, &path);
    process.bus.add_rule(rule()).unwrap();
    process.kv().set(0.95);
    process.clock.advance(secs(60.0));
    assert_eq!(process.told(), [(200.0, true, AlertCause::Condition, 3)]);
}

#[test]
fn what_was_firing_and_is_not_known_again_is_resolved_after_the_grace_period() {
    let (_folder, path) = folder();
    fired(&path);
    let process = Process::at(130.0, &path);
    // The gauge is there and was never set; or it never comes.
    let _kv = process.kv();
    process.bus.add_rule(rule()).unwrap();
    process.clock.advance(secs(100.0));
    assert_eq!(process.told(), [(140.0, false, AlertCause::Restored, 2)]);
    process.crash();

    fs::remove_file(&path).unwrap();
    fired(&path);
    let process = Process::at(130.0, &path);
    process.bus.add_rule(rule()).unwrap();
    process.clock.advance(secs(100.0));
    assert_eq!(process.told(), [(140.0, false, AlertCause::Restored, 2)]);
    process.crash();

    // Epochs go on.
    let process = Process::at(300.0, &path);
    process.bus.add_rule(rule()).unwrap();
    process.kv().set(0.95);
    process.clock.advance(secs(60.0));
    assert_eq!(process.told(), [(360.0, true, AlertCause::Condition, 3)]);
}

#[test]
fn since_when_it_fires_is_right_beyond_the_beginning_of_the_clock() {
    let (_folder, path) = folder();
    fired(&path);
    // A clock that begins with the process, as the system's does.
    let process = Process::at(0.0, &path);
    process.bus.add_rule(rule()).unwrap();
    let group = &process.bus.rule("Full").unwrap().status().active[0];
    assert_eq!(group.since, Some(metricbus::Time::ZERO));
    let date = std::time::SystemTime::UNIX_EPOCH - secs(100.0);
    assert_eq!(group.since_date, Some(date));
    process.kv().set(0.1);
    let history = process.bus.rule("Full").unwrap().history();
    assert_eq!(history[0].since_date, date);
}

#[test]
fn a_pending_goes_on_with_its_hold_and_the_outage_does_not_count() {
    let (_folder, path) = folder();
    let process = Process::at(0.0, &path);
    process.bus.add_rule(rule()).unwrap();
    process.kv().set(0.95);
    process.clock.advance(secs(40.0));
    process.crash();
    // 20 s are left of the hold.
    let process = Process::at(100.0, &path);
    process.bus.add_rule(rule()).unwrap();
    process.kv().set(0.95);
    assert_eq!(process.state(), RuleState::Pending);
    process.clock.advance(secs(5.0));
    process.crash();
    // 15 s are left, over another outage.
    let process = Process::at(200.0, &path);
    process.kv().set(0.95);
    process.bus.add_rule(rule()).unwrap();
    process.clock.advance(secs(60.0));
    assert_eq!(process.told(), [(215.0, true, AlertCause::Condition, 1)]);
}

#[test]
fn at_least_the_grace_period_is_left_of_a_hold() {
    let (_folder, path) = folder();
    let process = Process::at(0.0, &path);
    process.bus.add_rule(rule()).unwrap();
    process.kv().set(0.95);
    process.clock.advance(secs(59.0));
    process.crash();
    let process = Process::at(100.0, &path);
    process.kv().set(0.95);
    process.bus.add_rule(rule()).unwrap();
    process.clock.advance(secs(60.0));
    assert_eq!(process.told(), [(110.0, true, AlertCause::Condition, 1)]);
}

#[test]
fn after_an_outage_that_was_too_long_rules_begin_anew_and_epochs_go_on() {
    let (_folder, path) = folder();
    fired(&path);
    let process = Process::at(1_000.0, &path);
    process.kv().set(0.95);
    process.bus.add_rule(rule()).unwrap();
    assert_eq!(process.state(), RuleState::Pending);
    process.clock.advance(secs(60.0));
    // It was firing, and held when the rule was added.
    let told = process.told();
    assert_eq!((told[0].0, told[0].1, told[0].3), (1_060.0, true, 2));
}

#[test]
fn a_rule_that_is_not_added_again_stays_in_the_file() {
    let (_folder, path) = folder();
    fired(&path);
    Process::at(110.0, &path).crash();
    let process = Process::at(120.0, &path);
    process.kv().set(0.95);
    process.bus.add_rule(rule()).unwrap();
    assert_eq!(
        (process.state(), process.told()),
        (RuleState::Firing, vec![])
    );
}

#[test]
fn alerts_are_saved_by_themselves() {
    let (_folder, path) = folder();
    let process = Process::at(0.0, &path);
    process.bus.add_rule(rule()).unwrap();
    process.kv().set(0.95);
    process.clock.advance(secs(60.0));
    let mut turns = 0;
    while !fs::read_to_string(&path).is_ok_and(|text| text.contains(r#""firing": true"#)) {
        turns += 1;
        assert!(turns < 100_000_000, "{:?}", fs::read_to_string(&path));
        std::thread::yield_now();
    }
}

#[test]
fn a_file_that_is_wrong_is_named_with_what_is_wrong_and_left_alone() {
    let (_folder, path) = folder();
    let bus = MetricBus::new();
    let error = |text: &str| {
        fs::write(&path, text).unwrap();
        let error = bus.keep_rule_state(RuleStateFile::new(&path)).unwrap_err();
        assert!(matches!(error, RuleStateError::Corrupt { .. }), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
        error.to_string()
    };
    assert!(error("").contains("rules.json is no state of rules"));
    assert!(error("{}").contains(r#"there is no "metricbus_rule_state""#));
    assert!(error(r#"{"metricbus_rule_state": 7}"#).contains("version 7"));
    let head = r#"{"metricbus_rule_state": 1, "saved_at_unix_ns": 0, "rules": "#;
    assert!(error(&format!("{head} 3}}")).contains(r#""rules" is 3"#));
    assert!(error(&format!(r#"{head} {{"A": {{"groups": [{{}}]}} }} }}"#)).contains(r#"rule "A""#));
    let group = r#"{"key": "", "labels": [], "epoch": 1, "firing": true, "level": null, "phases": [{"state": "odd", "held_ns": 1}]}"#;
    let text = format!(r#"{head} {{"A": {{"groups": [{group}], "epochs": {{}} }} }} }}"#);
    assert!(error(&text).contains(r#"state is "odd""#));
}

#[test]
fn what_cannot_be_done_is_said() {
    let (folder, _) = folder();
    let bus = MetricBus::new();
    assert_eq!(bus.save_rule_state(), Err(RuleStateError::NoFile));
    let error = bus
        .keep_rule_state(RuleStateFile::new(folder.path()))
        .unwrap_err();
    assert!(matches!(error, RuleStateError::Read { .. }), "{error}");
    let nowhere = RuleStateFile::new(folder.path().join("none/rules.json"));
    let error = bus.keep_rule_state(nowhere).unwrap_err();
    assert!(matches!(error, RuleStateError::Write { .. }), "{error}");
    let bus = MetricBus::new();
    bus.add_rule(rule()).unwrap();
    let error = bus
        .keep_rule_state(RuleStateFile::new(folder.path().join("a")))
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        r#"rule "Full" runs already; call keep_rule_state() before rules are added"#
    );
}

/// One rule under the name `Full` on a bus of its own: what was told in this life, and the state at its end.
fn life(
    path: &PathBuf,
    at: f64,
    rule: Rule,
    run: impl FnOnce(&Process),
) -> (Vec<(f64, bool, AlertCause, u64)>, RuleState) {
    let process = Process::at(at, path);
    process.bus.add_rule(rule).unwrap();
    run(&process);
    let end = (process.told(), process.state());
    process.crash();
    end
}

fn above() -> Condition {
    Condition::when("kv", Threshold::above(0.9).clear_below(0.8))
}

#[test]
fn hysteresis_between_the_bounds_it_stays_on_its_side() {
    for made_first in [false, true] {
        let (_folder, path) = folder();
        let rule = || Rule::new("Full", above());
        let first = life(&path, 0.0, rule(), |p| p.kv().set(0.95));
        assert_eq!(first.1, RuleState::Firing);
        // The series is there when the rule is added, or comes later.
        let process = Process::at(10.0, &path);
        if made_first {
            process.kv().set(0.85);
        }
        process.bus.add_rule(rule()).unwrap();
        process.kv().set(0.85);
        assert_eq!(
            (process.told(), process.state()),
            (vec![], RuleState::Firing)
        );
        process.clock.advance(secs(60.0));
        process.kv().set(0.79);
        assert_eq!(process.told(), [(70.0, false, AlertCause::Condition, 2)]);
        process.crash();
        // On the other side, too.
        let third = life(&path, 80.0, rule(), |p| p.kv().set(0.85));
        assert_eq!(third, (vec![], RuleState::Inactive));
    }
}

#[test]
fn hysteresis_is_kept_of_expressions_levels_and_members_of_groups() {
    let (_folder, path) = folder();
    let half = Expr::value("kv") / 2.0;
    let computed = || {
        let half = Threshold::above(0.45).clear_below(0.4);
        Rule::new("Full", Condition::when(Expr::value("kv") / 2.0, half))
    };
    assert_eq!(half.to_string(), "(kv / 2)");
    life(&path, 0.0, computed(), |p| p.kv().set(0.95));
    let next = life(&path, 1.0, computed(), |p| p.kv().set(0.85));
    assert_eq!(next, (vec![], RuleState::Firing));

    let (_folder, path) = folder();
    let levels = || {
        let warning = Threshold::above(0.5).clear_below(0.4);
        Rule::levels(
            "Full",
            [
                ("warning", Condition::when("kv", warning)),
                ("critical", above()),
            ],
        )
    };
    life(&path, 0.0, levels(), |p| p.kv().set(0.95));
    let process = Process::at(1.0, &path);
    process.bus.add_rule(levels()).unwrap();
    process.kv().set(0.85);
    assert_eq!(process.told(), []);
    process.kv().set(0.45);
    let history = process.bus.rule("Full").unwrap().history();
    let last = history.last().unwrap();
    assert_eq!(
        (last.previous_level.as_deref(), last.level.as_deref()),
        (Some("critical"), Some("warning"))
    );

    // A group that is not firing: of its two members one was over the bound, and still is.
    let (_folder, path) = folder();
    let all = || Rule::new("Full", above()).all();
    let set = |p: &Process, worker: &str, value: f64| {
        let kv = p.bus.scope().with_label("worker", worker);
        kv.gauge("kv", "Share of KV blocks in use.")
            .unwrap()
            .set(value);
    };
    let first = life(&path, 0.0, all(), |p| {
        set(p, "a", 0.95);
        set(p, "b", 0.1);
        set(p, "a", 0.85);
    });
    // It fired while "a" was the only one.
    assert_eq!(first.1, RuleState::Inactive);
    let next = life(&path, 1.0, all(), |p| {
        set(p, "b", 0.1);
        set(p, "a", 0.85);
        set(p, "b", 0.95);
    });
    assert_eq!(next.1, RuleState::Firing);
}

#[test]
fn hysteresis_goes_on_through_a_life_in_which_nothing_was_known() {
    let (_folder, path) = folder();
    let rule = || Rule::new("Full", above());
    life(&path, 0.0, rule(), |p| p.kv().set(0.95));
    life(&path, 1.0, rule(), |_| {});
    let last = life(&path, 2.0, rule(), |p| p.kv().set(0.85));
    assert_eq!(last, (vec![], RuleState::Firing));
}

#[test]
fn hysteresis_is_forgotten_after_the_grace_period_a_long_outage_or_by_another_condition() {
    let resolved = |at, cause| (vec![(at, false, cause, 2)], RuleState::Inactive);
    let (_folder, path) = folder();
    let rule = || Rule::new("Full", above());
    life(&path, 0.0, rule(), |p| p.kv().set(0.95));
    let late = life(&path, 1.0, rule(), |p| {
        // A listener is there before, or comes after.
        let _unset = p.kv();
        p.clock.advance(secs(20.0));
        p.kv().set(0.85);
    });
    assert_eq!(late, resolved(11.0, AlertCause::Restored));

    let (_folder, path) = folder();
    life(&path, 0.0, rule(), |p| p.kv().set(0.95));
    let late = life(&path, 301.0, rule(), |p| p.kv().set(0.85));
    assert_eq!(late, (vec![], RuleState::Inactive));

    let (_folder, path) = folder();
    life(&path, 0.0, rule(), |p| p.kv().set(0.95));
    let other = Condition::when("kv", Threshold::above(0.91).clear_below(0.8));
    let other = life(&path, 1.0, Rule::new("Full", other), |p| p.kv().set(0.85));
    assert_eq!(other, resolved(1.0, AlertCause::Condition));
}

#[test]
fn m_of_n_slots_go_on_from_the_last_one() {
    let rule = || Rule::new("Full", above()).m_of_n(3, 5, secs(1.0));
    let blip = |p: &Process| {
        p.kv().set(0.95);
        p.kv().set(0.1);
    };
    // Two slots before, and one after: the outage is between them, and counts for nothing.
    let (_folder, path) = folder();
    let first = life(&path, 0.0, rule(), |p| {
        blip(p);
        p.clock.advance(secs(1.0));
        blip(p);
    });
    assert_eq!(first, (vec![], RuleState::Inactive));
    let next = life(&path, 100.0, rule(), |p| {
        p.kv().set(0.1);
        p.clock.advance(secs(1.0));
        blip(p);
    });
    assert_eq!(next.0, [(101.0, true, AlertCause::Condition, 1)]);
    // And it is over when they have passed by, not before.
    let last = life(&path, 200.0, rule(), |p| {
        p.kv().set(0.1);
        p.clock.advance(secs(2.0));
        assert_eq!(p.state(), RuleState::Firing);
        p.clock.advance(secs(2.0));
    });
    assert_eq!(
        last,
        (
            vec![(203.0, false, AlertCause::Condition, 2)],
            RuleState::Inactive
        )
    );
}

#[test]
fn a_delta_is_measured_from_the_value_last_told() {
    for computed in [false, true] {
        let (_folder, path) = folder();
        let rule = || {
            let kv = Expr::value("kv");
            let kv = if computed { kv * 1.0 } else { kv };
            Rule::new("Full", Condition::moved(kv, Delta::absolute(1.0)))
        };
        life(&path, 0.0, rule(), |p| {
            p.kv().set(10.0);
            p.kv().set(10.6);
        });
        // 10.6 was not told: what the next is compared with is 10. Found at the start, or set later.
        let process = Process::at(1.0, &path);
        process.kv().set(11.2);
        process.bus.add_rule(rule()).unwrap();
        let fires = [
            (1.0, true, AlertCause::Condition, 1),
            (1.0, false, AlertCause::Condition, 2),
        ];
        assert_eq!(process.told(), fires);
        process.crash();
        let quiet = life(&path, 2.0, rule(), |p| p.kv().set(12.1));
        assert_eq!(quiet.0, []);
        let loud = life(&path, 3.0, rule(), |p| p.kv().set(12.2));
        assert_eq!(loud.0.len(), 2, "{loud:?}");
    }
}

#[test]
fn a_file_of_a_build_before_is_read_and_its_keys_are_still_there() {
    let (_folder, path) = folder();
    // As it was written before a rule's file had a memory.
    let before = r#"{
  "metricbus_rule_state": 1,
  "rules": {
    "Full": {
      "epochs": { "kv|worker=\"b\"": 4 },
      "groups": [
        {
          "epoch": 1,
          "firing": true,
          "key": "kv|",
          "labels": [],
          "level": null,
          "phases": [ { "held_ns": 40000000000, "level": null, "state": "firing" } ]
        }
      ]
    }
  },
  "saved_at_unix_ns": 100000000000
}"#;
    fs::write(&path, before).unwrap();
    let first = life(&path, 110.0, Rule::new("Full", above()), |p| {
        p.kv().set(0.95)
    });
    assert_eq!(first, (vec![], RuleState::Firing));
    let now: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let mut now = now["rules"]["Full"].clone();
    // What is new stands under one key of its own, which a build before passes over.
    assert!(now.as_object_mut().unwrap().remove("memory").is_some());
    let mut then: serde_json::Value = serde_json::from_str(before).unwrap();
    let held = &mut then["rules"]["Full"]["groups"][0]["phases"][0]["held_ns"];
    *held = 50_000_000_000_u64.into();
    assert_eq!(now, then["rules"]["Full"]);
}
