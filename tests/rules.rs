//! Rules on virtual time: the ways in which a user would meet them.

use std::{sync::mpsc, time::Duration};

use futures::{FutureExt, StreamExt};
use metricbus::{
    Alert, AlertCause, Clock, Condition, Desc, Expr, Gauge, LiveRule, MetricBus, Notice, Rule,
    RuleError, RuleState, Threshold,
};

fn bus() -> (MetricBus, Clock) {
    let clock = Clock::manual();
    (MetricBus::builder().clock(clock.clone()).build(), clock)
}

fn secs(s: f64) -> Duration {
    Duration::from_secs_f64(s)
}

fn full() -> Condition {
    Condition::when("kv", Threshold::above(0.9).clear_below(0.8))
}

fn workers(bus: &MetricBus) -> impl Fn(&str) -> Gauge {
    let family = bus
        .family::<Gauge>(Desc::new("kv", "Share of KV blocks in use.").labels(["worker"]))
        .unwrap();
    move |worker| family.with_label_values(&[worker]).unwrap()
}

/// Time in seconds, what, and of whom.
fn told(rule: &LiveRule) -> Vec<(f64, &'static str, String)> {
    let told = rule.history().into_iter().map(|alert| {
        let group: Vec<_> = alert.group.iter().map(|(_, value)| value.clone()).collect();
        (
            alert.at.as_secs_f64(),
            alert.state.as_str(),
            group.join(","),
        )
    });
    told.collect()
}

#[test]
fn a_rule_fires_once_its_condition_has_held_and_is_resolved_once_it_has_not() {
    let (bus, clock) = bus();
    let kv = bus.gauge("kv", "kv").unwrap();
    let rule = bus
        .add_rule(
            Rule::new("Full", full())
                .hold_for(secs(5.0))
                .keep_firing_for(secs(3.0)),
        )
        .unwrap();
    kv.set(0.95);
    clock.advance(secs(4.0));
    assert_eq!(rule.status().state, RuleState::Pending);
    kv.set(0.7);
    clock.advance(secs(6.0));
    assert!(rule.history().is_empty());
    kv.set(0.95);
    clock.advance(secs(7.0));
    kv.set(0.7);
    assert_eq!(rule.status().state, RuleState::Clearing);
    clock.advance(secs(60.0));
    assert_eq!(
        told(&rule),
        [
            (15.0, "firing", String::new()),
            (20.0, "resolved", String::new())
        ]
    );
    let history = rule.history();
    assert_eq!(history[0].since.as_secs_f64(), 10.0);
    assert_eq!(
        (history[0].value, history[1].value),
        (Some(0.95), Some(0.7))
    );
    assert_eq!((history[0].epoch, history[1].epoch), (1, 2));
}

#[test]
fn any_worker_and_all_workers_are_judged_over_series_that_come_and_go() {
    let (bus, clock) = bus();
    let worker = workers(&bus);
    let any = bus.add_rule(Rule::new("Any", full()).any()).unwrap();
    let all = bus.add_rule(Rule::new("All", full()).all()).unwrap();
    let two = bus.add_rule(Rule::new("Two", full()).at_least(2)).unwrap();
    worker("a").set(0.95);
    clock.advance(secs(1.0));
    worker("b").set(0.1);
    clock.advance(secs(1.0));
    worker("b").set(0.95);
    clock.advance(secs(1.0));
    assert_eq!(bus.remove(r#"kv{worker="a"}"#).unwrap(), 1);
    clock.advance(secs(1.0));
    assert_eq!(bus.remove("kv").unwrap(), 1);
    let row = |t, s| (t, s, String::new());
    assert_eq!(told(&any), [row(0.0, "firing"), row(4.0, "resolved")]);
    assert_eq!(
        told(&all),
        [
            row(0.0, "firing"),
            row(1.0, "resolved"),
            row(2.0, "firing"),
            row(4.0, "resolved")
        ]
    );
    assert_eq!(told(&two), [row(2.0, "firing"), row(3.0, "resolved")]);
    assert_eq!(any.history()[1].cause, AlertCause::Removed);
}

#[test]
fn a_ratio_of_two_metrics_is_judged_per_worker_by_each_mutation_of_either() {
    let (bus, _) = bus();
    let family = |name| {
        bus.family::<Gauge>(Desc::new(name, "Blocks.").labels(["worker"]))
            .unwrap()
    };
    let (used, total) = (family("used"), family("total"));
    let share = Expr::value("used") / Expr::value("total");
    let rule = bus
        .add_rule(Rule::new(
            "Full",
            Condition::when(share, Threshold::above(0.9)),
        ))
        .unwrap();
    let used = |w: &str, v| used.with_label_values(&[w]).unwrap().set(v);
    let total = |w: &str, v| total.with_label_values(&[w]).unwrap().set(v);
    used("a", 95.0);
    used("b", 95.0);
    total("a", 100.0);
    total("b", 200.0);
    used("b", 199.0);
    used("b", 10.0);
    total("a", 1_000.0);
    assert_eq!(
        told(&rule),
        [
            (0.0, "firing", "a".to_owned()),
            (0.0, "firing", "b".to_owned()),
            (0.0, "resolved", "b".to_owned()),
            (0.0, "resolved", "a".to_owned()),
        ]
    );
    assert_eq!(rule.history()[1].value, Some(0.995));
}

#[test]
fn a_metric_without_labels_goes_with_all_that_have_some() {
    let (bus, _) = bus();
    let worker = workers(&bus);
    let limit = bus.gauge("limit", "The limit.").unwrap();
    let over = Expr::value("kv") - Expr::value("limit");
    let rule = bus
        .add_rule(Rule::new(
            "Over",
            Condition::when(over, Threshold::above(0.0)),
        ))
        .unwrap();
    worker("a").set(0.5);
    worker("b").set(0.7);
    limit.set(0.6);
    limit.set(0.4);
    worker("c").set(0.41);
    assert_eq!(
        told(&rule),
        [
            (0.0, "firing", "b".to_owned()),
            (0.0, "firing", "a".to_owned()),
            (0.0, "firing", "c".to_owned()),
        ]
    );
}

#[test]
fn a_sum_over_a_family_is_judged_per_group() {
    let (bus, _) = bus();
    let family = bus
        .family::<Gauge>(Desc::new("queue", "Waiting.").labels(["role", "worker"]))
        .unwrap();
    let set =
        |role: &str, worker: &str, v| family.with_label_values(&[role, worker]).unwrap().set(v);
    let sum = Expr::sum("queue").by(["role"]);
    let rule = bus
        .add_rule(Rule::new(
            "Deep",
            Condition::when(sum, Threshold::above(10.0)),
        ))
        .unwrap();
    set("prefill", "a", 6.0);
    set("decode", "a", 6.0);
    set("prefill", "b", 5.0);
    bus.remove(r#"queue{worker="b"}"#).unwrap();
    assert_eq!(
        told(&rule),
        [
            (0.0, "firing", "prefill".to_owned()),
            (0.0, "resolved", "prefill".to_owned())
        ]
    );
}

#[test]
fn a_series_is_stale_when_it_has_been_silent_for_as_long_as_was_said() {
    let (bus, clock) = bus();
    let beat = bus.gauge("heartbeat", "Beats.").unwrap();
    let rule = bus
        .add_rule(Rule::new(
            "Silent",
            Condition::stale("heartbeat", secs(10.0)),
        ))
        .unwrap();
    for _ in 0..5 {
        beat.set(1.0);
        clock.advance(secs(9.0));
    }
    clock.advance(secs(60.0));
    beat.set(1.0);
    assert_eq!(
        told(&rule),
        [
            (46.0, "firing", String::new()),
            (105.0, "resolved", String::new())
        ]
    );
    // A busy one costs a visit to the desk eight times per hundredth, and is found stale a hundredth late at most.
    for _ in 0..1_000 {
        beat.set(1.0);
        clock.advance(Duration::from_micros(10));
    }
    clock.advance(secs(60.0));
    let at = rule.history().last().unwrap().at.as_secs_f64();
    assert!((115.01..=115.11).contains(&at), "{at}");
}

#[test]
fn a_series_that_was_removed_is_gone_until_it_is_back() {
    let (bus, clock) = bus();
    let worker = workers(&bus);
    let rule = bus
        .add_rule(Rule::new("Gone", Condition::gone("kv", secs(60.0))))
        .unwrap();
    worker("a").set(0.5);
    worker("b").set(0.5);
    bus.remove("kv").unwrap();
    clock.advance(secs(10.0));
    worker("a").set(0.5);
    clock.advance(secs(100.0));
    let of = |s: &str| s.to_owned();
    assert_eq!(
        told(&rule),
        [
            (0.0, "firing", of("a")),
            (0.0, "firing", of("b")),
            (10.0, "resolved", of("a")),
            (60.0, "resolved", of("b")),
        ]
    );
}

#[test]
fn each_change_of_level_is_one_alert() {
    let (bus, _) = bus();
    let queue = bus.gauge("queue", "Waiting.").unwrap();
    let above = |bound, clear| Condition::when("queue", Threshold::above(bound).clear_below(clear));
    let rule = Rule::levels(
        "Deep",
        [("warn", above(80.0, 70.0)), ("critical", above(90.0, 85.0))],
    );
    let rule = bus.add_rule(rule).unwrap();
    for value in [75.0, 85.0, 95.0, 86.0, 75.0, 95.0, 60.0] {
        queue.set(value);
    }
    let levels: Vec<_> = rule
        .history()
        .iter()
        .map(|a| {
            (
                a.value.unwrap(),
                a.level.as_deref().map(str::to_owned),
                a.previous_level.as_deref().map(str::to_owned),
            )
        })
        .collect();
    let level = |s: &str| Some(s.to_owned());
    assert_eq!(
        levels,
        [
            (85.0, level("warn"), None),
            (95.0, level("critical"), level("warn")),
            (75.0, level("warn"), level("critical")),
            (95.0, level("critical"), level("warn")),
            (60.0, None, level("critical")),
        ]
    );
}

#[test]
fn a_late_subscriber_hears_what_is_firing_then_the_mark_then_changes() {
    let (bus, _) = bus();
    let worker = workers(&bus);
    bus.add_rule(Rule::new("Full", full())).unwrap();
    worker("a").set(0.95);
    worker("b").set(0.1);
    let mut notices = bus.on_notice().stream().unwrap();
    worker("b").set(0.95);
    let mut next = || match notices.next().now_or_never().flatten().unwrap() {
        Notice::Alert(alert) => format!("{alert} {:?}", alert.cause),
        _ => "sync".to_owned(),
    };
    assert_eq!(next(), r#"Full{worker="a"} firing at 0.95 Initial"#);
    assert_eq!(next(), "sync");
    assert_eq!(next(), r#"Full{worker="b"} firing at 0.95 Condition"#);
}

#[test]
fn a_rule_that_is_changed_keeps_its_state_and_a_longer_hold_makes_it_pending() {
    let (bus, clock) = bus();
    let kv = bus.gauge("kv", "kv").unwrap();
    let rule = bus
        .add_rule(Rule::new("Full", full()).hold_for(secs(2.0)))
        .unwrap();
    let (tx, rx) = mpsc::channel();
    let _all = bus
        .on_alert()
        .inline(move |alert: Alert| tx.send(alert).unwrap())
        .unwrap();
    kv.set(0.95);
    clock.advance(secs(5.0));
    assert!(rx.try_recv().unwrap().is_firing());
    rule.update(Rule::new("Full", full()).hold_for(secs(3.0)))
        .unwrap();
    assert!(rx.try_recv().is_err());
    rule.update(Rule::new("Full", full()).hold_for(secs(20.0)))
        .unwrap();
    let resolved = rx.try_recv().unwrap();
    assert_eq!(
        (resolved.is_firing(), resolved.cause, resolved.epoch),
        (false, AlertCause::RuleChanged, 2)
    );
    assert_eq!(rule.status().state, RuleState::Pending);
    clock.advance(secs(15.0));
    assert_eq!(rx.try_recv().unwrap().at.as_secs_f64(), 20.0);
    let above = Condition::when("kv", Threshold::above(0.99));
    rule.update(Rule::new("Full", above)).unwrap();
    assert!(!rx.try_recv().unwrap().is_firing());
    assert!(bus.remove_rule("Full"));
    assert!(matches!(
        rule.update(Rule::new("Full", full())),
        Err(RuleError::Removed { .. })
    ));
}

#[test]
fn a_dry_run_records_and_tells_nobody() {
    let (bus, _) = bus();
    let kv = bus.gauge("kv", "kv").unwrap();
    let (tx, rx) = mpsc::channel();
    let _all = bus
        .on_alert()
        .inline(move |alert: Alert| tx.send(alert).unwrap())
        .unwrap();
    let rule = bus
        .add_rule(Rule::new("Full", full()).dry_run(true))
        .unwrap();
    kv.set(0.95);
    assert_eq!((rule.history().len(), rule.status().fired), (1, 1));
    assert!(rx.try_recv().is_err());
}

#[test]
fn a_rule_on_a_subscription_ends_with_it() {
    let (bus, _) = bus();
    let kv = bus.gauge("kv", "kv").unwrap();
    let (tx, rx) = mpsc::channel();
    let subscription = bus
        .on_rule(Rule::new("Full", full()))
        .inline(move |alert: Alert| tx.send(alert).unwrap())
        .unwrap();
    kv.set(0.95);
    assert!(rx.try_recv().unwrap().is_firing());
    assert!(matches!(
        bus.add_rule(Rule::new("Full", full())),
        Err(RuleError::Exists { .. })
    ));
    drop(subscription);
    assert!(bus.rules().is_empty());
    kv.set(0.1);
    assert!(rx.try_recv().is_err());
}

#[test]
fn a_rule_that_has_never_matched_says_so() {
    let (bus, _) = bus();
    let rule = bus.add_rule(Rule::new("Full", full())).unwrap();
    assert!(!rule.status().ever_matched);
    bus.gauge("kv", "kv").unwrap();
    assert!(rule.status().ever_matched);
    assert_eq!((rule.status().series, rule.status().inactive), (1, 1));
}

#[test]
fn a_windows_average_fires_and_is_resolved_with_no_further_mutation() {
    let (bus, clock) = bus();
    let queue = bus.gauge("queue", "Waiting.").unwrap();
    let avg = Expr::over("queue", secs(10.0)).avg();
    let rule = bus
        .add_rule(Rule::new(
            "Deep",
            Condition::when(avg, Threshold::at_least(50.0)),
        ))
        .unwrap();
    queue.set(0.0);
    clock.advance(secs(20.0));
    // 100 for 5 of 10 s is an average of 50; at 25 s to the tick.
    queue.set(100.0);
    clock.advance(secs(10.0));
    queue.set(0.0);
    clock.advance(secs(20.0));
    let told: Vec<_> = told(&rule)
        .into_iter()
        .map(|(at, state, _)| (at, state))
        .collect();
    assert_eq!(told, [(25.0, "firing"), (35.1, "resolved")]);
}

#[test]
fn the_share_of_errors_is_judged_over_series_merged_by_a_label() {
    let (bus, clock) = bus();
    let family = bus
        .family::<metricbus::Counter>(
            Desc::new("requests_total", "Requests.").labels(["service", "code"]),
        )
        .unwrap();
    let inc = |service: &str, code: &str, n| {
        family
            .with_label_values(&[service, code])
            .unwrap()
            .inc_by(n)
    };
    let per_service = |selector: &str| Expr::over(selector, secs(60.0)).by(["service"]).increase();
    let share = per_service(r#"requests_total{code=~"5.."}"#) / per_service("requests_total");
    let rule = bus
        .add_rule(Rule::new(
            "Errors",
            Condition::when(share, Threshold::above(0.1)),
        ))
        .unwrap();
    for _ in 0..60 {
        for service in ["a", "b"] {
            inc(service, "200", 9);
            inc(service, "500", if service == "a" { 2 } else { 0 });
            inc(service, "200", 0);
        }
        clock.advance(secs(1.0));
    }
    clock.advance(secs(120.0));
    let told = told(&rule);
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!(told[0].2, "a");
    // An idle service has no share of errors: nothing is known, and nothing fires.
    assert_eq!(told[1].1, "resolved");
}

#[test]
fn a_share_of_a_sum_is_judged_once_by_a_mutation_that_changes_both() {
    let (bus, _) = bus();
    let worker = workers(&bus);
    let share = Expr::value("kv") / Expr::sum("kv");
    // Between the two changes the share would be 0, from where it would come back only at 2.
    let low = Threshold::below(0.3).clear_at_least(2.0);
    let rule = bus
        .add_rule(Rule::new("Low", Condition::when(share, low)))
        .unwrap();
    worker("a").set(1.0);
    worker("a").set(1e6);
    worker("a").set(1.0);
    assert!(rule.history().is_empty(), "{:?}", rule.history());
    worker("b").set(9.0);
    assert_eq!(told(&rule), [(0.0, "firing", "a".to_owned())]);
}

#[test]
fn an_alert_of_a_group_names_those_for_which_it_holds_and_has_their_value() {
    let (bus, clock) = bus();
    let worker = workers(&bus);
    let rule = bus
        .add_rule(Rule::new("Full", full()).any().hold_for(secs(0.5)))
        .unwrap();
    worker("a").set(0.95);
    worker("b").set(0.1);
    clock.advance(secs(1.0));
    worker("b").set(0.3);
    worker("a").set(0.2);
    let history = rule.history();
    assert_eq!(
        (history[0].value, history[0].holds, history[0].members),
        (Some(0.95), 1, 2)
    );
    let holding: Vec<_> = history[0]
        .holding
        .iter()
        .map(|of| of[0].1.clone())
        .collect();
    assert_eq!(holding, ["a"]);
    assert_eq!((history[1].value, history[1].holds), (Some(0.2), 0));
}

#[test]
fn a_selector_that_matches_nothing_beside_one_that_does_is_named() {
    let (bus, _) = bus();
    let kv = bus.gauge("kv", "kv").unwrap();
    let share = Expr::value("kv") / Expr::value("missing");
    let rule = bus
        .add_rule(Rule::new(
            "Share",
            Condition::when(share, Threshold::above(0.5)),
        ))
        .unwrap();
    kv.set(1.0);
    let status = rule.status();
    assert!(status.ever_matched);
    assert_eq!(
        (status.unmatched, status.no_data),
        (vec!["missing".to_owned()], 1)
    );
    kv.set(f64::NAN);
}

#[test]
fn a_rule_that_becomes_a_dry_run_says_its_last_and_one_that_ceases_to_be_says_what_fires() {
    let (bus, _) = bus();
    let kv = bus.gauge("kv", "kv").unwrap();
    let (tx, rx) = mpsc::channel();
    let _all = bus
        .on_alert()
        .inline(move |alert: Alert| tx.send((alert.is_firing(), alert.cause)).unwrap())
        .unwrap();
    let rule = bus.add_rule(Rule::new("Full", full())).unwrap();
    kv.set(0.95);
    rule.update(Rule::new("Full", full()).dry_run(true))
        .unwrap();
    assert_eq!(rule.status().state, RuleState::Firing);
    rule.update(Rule::new("Full", full())).unwrap();
    let heard: Vec<_> = rx.try_iter().collect();
    let changed = AlertCause::RuleChanged;
    assert_eq!(
        heard,
        [
            (true, AlertCause::Condition),
            (false, changed),
            (true, changed)
        ]
    );
    let epochs: Vec<_> = rule.history().iter().map(|alert| alert.epoch).collect();
    assert_eq!(epochs, [1, 2, 3, 4, 5]);
}

#[test]
fn m_of_n_needs_no_timer_while_it_goes_on_holding() {
    let (bus, clock) = bus();
    let kv = bus.gauge("kv", "kv").unwrap();
    let slot = Duration::from_millis(10);
    let rule = bus
        .add_rule(Rule::new("Full", full()).m_of_n(2, 3, slot))
        .unwrap();
    kv.set(0.95);
    // Ten years: with a timer for each slot this would not end.
    clock.advance(secs(10.0 * 365.0 * 86_400.0));
    kv.set(0.1);
    clock.advance(secs(1.0));
    let told: Vec<_> = told(&rule)
        .into_iter()
        .map(|(at, state, _)| (at, state))
        .collect();
    // It held in the slot in which it ceased, and in those before; two slots later there is but one of three.
    let ten_years = 315_360_000.0;
    assert_eq!(told, [(0.01, "firing"), (ten_years + 0.02, "resolved")]);
}

#[test]
fn of_two_series_with_the_same_labels_the_one_that_is_left_counts() {
    let (bus, _) = bus();
    let (a, b) = (bus.gauge("a", "a").unwrap(), bus.gauge("b", "b").unwrap());
    bus.gauge("zero", "Nothing.").unwrap().set(0.0);
    let either = Expr::value(r#"{__name__=~"a|b"}"#) + Expr::value("zero");
    let rule = bus
        .add_rule(Rule::new(
            "High",
            Condition::when(either, Threshold::above(5.0)),
        ))
        .unwrap();
    a.set(10.0);
    b.set(1.0);
    bus.remove("b").unwrap();
    let values: Vec<_> = rule.history().iter().map(|alert| alert.value).collect();
    assert_eq!(values, [Some(10.0), Some(1.0), Some(10.0)]);
}

#[test]
fn who_hears_of_one_rule_alone_hears_its_last_and_then_the_end() {
    let (bus, _) = bus();
    let kv = bus.gauge("kv", "kv").unwrap();
    let rule = bus.add_rule(Rule::new("Full", full())).unwrap();
    let alerts = rule.on_alert().stream().unwrap();
    kv.set(0.95);
    assert!(rule.clone().remove());
    let heard: Vec<_> = futures::executor::block_on(alerts.map(|alert| alert.cause).collect());
    assert_eq!(heard, [AlertCause::Condition, AlertCause::RuleRemoved]);
    assert!(rule.on_alert().stream().is_err());
}
