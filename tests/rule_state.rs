//! Rules across restarts, on virtual time: each bus is a process, and all share a file.

use std::{fs, path::PathBuf, time::Duration};

use metricbus::{
    Alert, AlertCause, Clock, Condition, Gauge, MetricBus, Rule, RuleState, RuleStateError,
    RuleStateFile, Threshold,
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
