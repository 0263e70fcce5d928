//! Rules where things come and go: series that several parts of a rule look at, operands that leave, memories that are
//! renewed, rules that are changed or replaced.

use std::time::Duration;

use metricbus::{
    AlertCause, AlertState, Clock, Condition, Desc, Expr, Family, Gauge, LiveRule, MetricBus, Rule,
    Threshold,
};

fn secs(s: u64) -> Duration {
    Duration::from_secs(s)
}

fn bus() -> (MetricBus, Clock) {
    let clock = Clock::manual();
    (MetricBus::builder().clock(clock.clone()).build(), clock)
}

fn family(bus: &MetricBus, name: &str) -> Family<Gauge> {
    bus.family(Desc::new(name, "Of a test.").labels(["i"]))
        .unwrap()
}

/// What was told: firing or resolved, at which second, and the epoch.
fn told(rule: &LiveRule) -> Vec<(AlertState, u64, u64)> {
    rule.history()
        .iter()
        .map(|alert| (alert.state, alert.at.as_secs_f64() as u64, alert.epoch))
        .collect()
}

use AlertState::{Firing, Resolved};

#[test]
fn a_series_that_two_selectors_of_an_expression_match_has_its_value_in_both() {
    let (bus, _) = bus();
    let family = family(&bus, "g");
    let gauge = family.with_label_values(&["0"]).unwrap();
    gauge.set(10.0);
    let both = Expr::value(r#"g{i="0"}"#) + Expr::value("g");
    let rule = bus
        .add_rule(Rule::new(
            "r",
            Condition::when(both, Threshold::above(15.0)),
        ))
        .unwrap();
    assert_eq!(rule.status().value, Some(20.0));
    assert_eq!(told(&rule), [(Firing, 0, 1)]);
    // One that comes later, too.
    assert!(family.remove(&["0"]).unwrap());
    let gauge = family.with_label_values(&["0"]).unwrap();
    gauge.set(9.0);
    assert_eq!(rule.status().value, Some(18.0));
    assert_eq!(
        told(&rule),
        [(Firing, 0, 1), (Resolved, 0, 2), (Firing, 0, 3)]
    );
}

#[test]
fn an_operand_without_labels_that_is_removed_is_no_data_to_all() {
    let (bus, _) = bus();
    let used = family(&bus, "used");
    let total = bus.gauge("total", "Of a test.").unwrap();
    let share = Expr::value("used") / Expr::value("total");
    let derived = bus
        .derive(Desc::new("share", "Of a test."), share.clone())
        .unwrap();
    let rule = bus
        .add_rule(Rule::new(
            "full",
            Condition::when(share, Threshold::above(0.9)),
        ))
        .unwrap();
    total.set(100.0);
    let worker = used.with_label_values(&["0"]).unwrap();
    worker.set(95.0);
    assert_eq!(told(&rule), [(Firing, 0, 1)]);
    assert_eq!(bus.remove("total").unwrap(), 1);
    assert_eq!(told(&rule), [(Firing, 0, 1), (Resolved, 0, 2)]);
    worker.set(99.0);
    assert_eq!(told(&rule).len(), 2, "{:?}", rule.history());
    let shown = bus.series("share").unwrap()[0].value().as_f64();
    assert!(shown.is_nan(), "{shown}");
    // Back again, it counts again.
    bus.gauge("total", "Of a test.").unwrap().set(100.0);
    assert_eq!(told(&rule).len(), 3);
    drop(derived);
}

#[test]
fn what_is_gone_again_is_remembered_from_then_on() {
    let (bus, clock) = bus();
    let family = family(&bus, "g");
    let rule = bus
        .add_rule(Rule::new("gone", Condition::gone("g", secs(10))))
        .unwrap();
    family.with_label_values(&["0"]).unwrap().set(1.0);
    clock.advance(secs(1));
    family.remove(&["0"]).unwrap();
    clock.advance(secs(4));
    family.with_label_values(&["0"]).unwrap().set(1.0);
    clock.advance(secs(1));
    family.remove(&["0"]).unwrap();
    clock.advance(secs(20));
    assert_eq!(
        told(&rule),
        [
            (Firing, 1, 1),
            (Resolved, 5, 2),
            (Firing, 6, 3),
            // Not at 11 s, when the first memory would have ended.
            (Resolved, 16, 4),
        ]
    );
}

#[test]
fn epochs_of_groups_that_have_gone_outlast_a_change_of_the_rule() {
    let (bus, _) = bus();
    let family = family(&bus, "g");
    let of = |bound: f64| Rule::new("r", Condition::when("g", Threshold::above(bound)));
    let rule = bus.add_rule(of(5.0)).unwrap();
    family.with_label_values(&["0"]).unwrap().set(10.0);
    family.remove(&["0"]).unwrap();
    rule.update(of(6.0)).unwrap();
    family.with_label_values(&["0"]).unwrap().set(10.0);
    let epochs: Vec<_> = rule.history().iter().map(|alert| alert.epoch).collect();
    assert_eq!(epochs, [1, 2, 3]);
}

#[test]
fn epochs_of_groups_that_a_changed_rule_does_not_have_go_on_when_they_come_back() {
    let (bus, _) = bus();
    let (g, h) = (family(&bus, "g"), family(&bus, "h"));
    g.with_label_values(&["0"]).unwrap().set(10.0);
    h.with_label_values(&["1"]).unwrap().set(10.0);
    let of = |name: &str| {
        Rule::new("r", Condition::when(name, Threshold::above(5.0)))
            .any()
            .by(["i"])
    };
    let rule = bus.add_rule(of("g")).unwrap();
    rule.update(of("h")).unwrap();
    rule.update(of("g")).unwrap();
    let of_group: Vec<_> = rule
        .history()
        .iter()
        .filter(|alert| alert.label("i") == Some("0"))
        .map(|alert| (alert.state, alert.epoch, alert.cause))
        .collect();
    assert_eq!(
        of_group,
        [
            (Firing, 1, AlertCause::Initial),
            (Resolved, 2, AlertCause::RuleChanged),
            (Firing, 3, AlertCause::RuleChanged),
        ]
    );
}

#[test]
fn one_group_that_comes_and_goes_does_not_make_the_others_forgotten() {
    let (bus, _) = bus();
    let family = family(&bus, "g");
    let rule = bus
        .add_rule(Rule::new("r", Condition::when("g", Threshold::above(5.0))).history(4))
        .unwrap();
    family.with_label_values(&["quiet"]).unwrap().set(10.0);
    family.remove(&["quiet"]).unwrap();
    for _ in 0..10_100 {
        family.with_label_values(&["flaps"]).unwrap().set(10.0);
        family.remove(&["flaps"]).unwrap();
    }
    family.with_label_values(&["quiet"]).unwrap().set(10.0);
    assert_eq!(rule.history().last().map(|alert| alert.epoch), Some(3));
}

/// Whatever the duration, nothing overflows, and nothing hangs.
#[test]
fn the_longest_durations_are_taken_as_for_ever() {
    let (bus, clock) = bus();
    let max = Duration::MAX;
    let gauge = bus.gauge("g", "Of a test.").unwrap();
    let counter = bus.counter("c_total", "Of a test.").unwrap();
    let h = bus
        .histogram("h", "Of a test.", metricbus::Buckets::default())
        .unwrap();
    let above = || Condition::when("g", Threshold::above(5.0));
    let over = |name: &str| Expr::over(name, max);
    let when = |expr: Expr| Condition::when(expr, Threshold::above(5.0));
    let rules = [
        Rule::new("hold", above()).hold_for(max),
        Rule::new("keep", above()).keep_firing_for(max),
        Rule::new("slots", above()).m_of_n(1, 64, max),
        Rule::new("stale", Condition::stale("g", max)),
        Rule::new("gone", Condition::gone("g", max)),
        Rule::new("ewma", when(Expr::value("g").ewma(max))),
        Rule::new("gauge", when(over("g").avg())),
        Rule::new("deviation", when(over("g").stddev())),
        Rule::new("rate", when(over("c_total").rate())),
        Rule::new("quantile", when(over("h").quantile(0.9))),
        Rule::new("every", when(Expr::over("g", secs(1)).avg())).every(max),
    ];
    let rules: Vec<_> = rules
        .into_iter()
        .map(|rule| bus.add_rule(rule).unwrap())
        .collect();
    for i in 0..10_u32 {
        gauge.set(f64::from(i));
        counter.inc_by(u64::from(i));
        h.observe(f64::from(i));
        clock.advance(secs(60));
        for rule in &rules {
            let _ = (rule.status(), rule.history());
        }
    }
    bus.remove("g").unwrap();
    clock.advance(secs(3600));
    for rule in rules {
        assert!(rule.remove());
    }
}

#[test]
fn what_falls_silent_at_one_instant_is_judged_as_one() {
    let (bus, clock) = bus();
    let first = bus.gauge("first", "Of a test.").unwrap();
    let second = bus.gauge("second", "Of a test.").unwrap();
    let rule = bus
        .add_rule(Rule::levels(
            "r",
            [
                ("info", Condition::stale("first", secs(7))),
                ("warn", Condition::stale("second", secs(10))),
            ],
        ))
        .unwrap();
    second.set(1.0);
    clock.advance(secs(3));
    first.set(1.0);
    clock.advance(secs(7));
    let history = rule.history();
    let levels: Vec<_> = history.iter().map(|a| a.level.as_deref()).collect();
    assert_eq!(levels, [Some("warn")], "{history:?}");
}

#[test]
fn a_resolved_alert_of_a_group_says_how_many_still_hold() {
    let (bus, _) = bus();
    let family = family(&bus, "g");
    let set = |i: &str, value| family.with_label_values(&[i]).unwrap().set(value);
    for i in ["a", "b", "c"] {
        set(i, 0.5);
    }
    let over = |bound| Condition::when("g", Threshold::above(bound));
    let all = bus.add_rule(Rule::new("all", over(0.9)).all()).unwrap();
    let two = bus
        .add_rule(Rule::new("two", over(0.9)).at_least(2))
        .unwrap();
    let levels = Rule::levels("levels", [("warning", over(0.6)), ("critical", over(0.9))]);
    let levels = bus.add_rule(levels.all()).unwrap();
    for i in ["a", "b", "c"] {
        set(i, 1.0);
    }
    let last = |rule: &LiveRule| {
        let history = rule.history();
        let last = history.last().unwrap();
        let holding: Vec<_> = last
            .holding
            .iter()
            .map(|labels| labels[0].1.clone())
            .collect();
        (
            last.state,
            last.holds,
            last.members,
            holding.join(""),
            last.value,
        )
    };
    assert_eq!(last(&all), (Firing, 3, 3, "abc".to_owned(), Some(1.0)));
    // A late subscriber hears of the same members.
    let late = all.on_alert().stream().unwrap();
    let late = futures::executor::block_on(futures::StreamExt::next(&mut { late })).unwrap();
    assert_eq!(
        (late.cause, late.holds, late.holding.len()),
        (AlertCause::Initial, 3, 3)
    );
    set("b", 0.5);
    // The value is that of the member that made the difference; those that hold are the others.
    assert_eq!(last(&all), (Resolved, 2, 3, "ac".to_owned(), Some(0.5)));
    assert_eq!(last(&levels), (Resolved, 2, 3, "ac".to_owned(), Some(0.5)));
    set("c", 0.5);
    assert_eq!(last(&two), (Resolved, 1, 3, "a".to_owned(), Some(0.5)));
    for i in ["b", "c"] {
        set(i, 1.0);
    }
    all.clone().remove();
    let removed = all.history().pop().unwrap();
    assert_eq!((removed.cause, removed.holds), (AlertCause::RuleRemoved, 3));
    // The last one of several that goes takes the group with it.
    let any = bus.add_rule(Rule::new("any", over(0.9)).any()).unwrap();
    for i in ["a", "b", "c"] {
        family.remove(&[i]).unwrap();
    }
    assert_eq!(last(&any), (Resolved, 0, 0, String::new(), Some(1.0)));
}

#[test]
fn a_hold_and_a_slot_that_end_at_one_instant_are_both_told() {
    let ms = Duration::from_millis;
    let over = || Condition::when("v", Threshold::above(0.5));
    let run = |rule: Rule| {
        let (bus, clock) = bus();
        let rule = bus.add_rule(rule).unwrap();
        let v = bus.gauge("v", "Of a test.").unwrap();
        v.set(1.0);
        clock.advance(ms(200));
        v.set(0.0);
        clock.advance(ms(1000));
        let history = rule.history();
        let millis = |alert: &metricbus::Alert| (alert.at.as_secs_f64() * 1e3).round() as u64;
        history
            .iter()
            .map(|alert| (alert.state, millis(alert)))
            .collect::<Vec<_>>()
    };
    let rule = || Rule::new("r", over()).m_of_n(1, 2, ms(100));
    // The slots say no from 400 ms on. A hold that ends before fires, one that ends then too, one that ends later does not.
    assert_eq!(
        run(rule().hold_for(ms(399))),
        [(Firing, 399), (Resolved, 400)]
    );
    assert_eq!(
        run(rule().hold_for(ms(400))),
        [(Firing, 400), (Resolved, 400)]
    );
    assert_eq!(run(rule().hold_for(ms(401))), []);

    // The end of a keep and a slot in which it holds again: it was over, and fires anew.
    let (bus, clock) = bus();
    let keep = Rule::new("r", over())
        .m_of_n(2, 2, ms(100))
        .keep_firing_for(ms(300));
    let rule = bus.add_rule(keep).unwrap();
    let v = bus.gauge("v", "Of a test.").unwrap();
    v.set(1.0);
    clock.advance(ms(100));
    v.set(0.0);
    // No more from 200 ms on; the keep ends at 500 ms.
    clock.advance(ms(350));
    v.set(1.0);
    clock.advance(ms(150));
    let states: Vec<_> = rule.history().iter().map(|alert| alert.state).collect();
    assert_eq!(states, [Firing, Resolved, Firing]);
}

#[test]
fn annotations_name_the_first_that_holds_and_all() {
    let (bus, _) = bus();
    let family = family(&bus, "g");
    let set = |i: &str, value| family.with_label_values(&[i]).unwrap().set(value);
    let rule = |name: &str| {
        Rule::new(name, Condition::when("g", Threshold::above(0.9)))
            .annotation("what", "{{ $labels.i }} of {{ .Holding }} at {{ $value }}")
    };
    let any = bus.add_rule(rule("any").any()).unwrap();
    let two = bus.add_rule(rule("two").at_least(2)).unwrap();
    let each = bus.add_rule(rule("each")).unwrap();
    let last = |rule: &LiveRule| {
        rule.history()
            .pop()
            .unwrap()
            .annotation("what")
            .unwrap()
            .to_owned()
    };
    set("a", 1.0);
    assert_eq!(last(&any), r#"a of {i="a"} at 1"#);
    assert_eq!(last(&each), r#"a of {i="a"} at 1"#);
    set("b", 2.0);
    assert_eq!(last(&two), r#"a of {i="a"}, {i="b"} at 1"#);
    assert_eq!(last(&each), r#"b of {i="b"} at 2"#);
    set("a", 0.5);
    // One holds still.
    assert_eq!(last(&two), r#"b of {i="b"} at 0.5"#);
    set("b", 0.5);
    // None does; it was the first.
    assert_eq!(last(&any), "a of  at 0.5");
    for i in 0..12 {
        set(&format!("c{i:02}"), 1.0);
    }
    let late = bus.add_rule(rule("late").any()).unwrap();
    assert!(
        last(&late).ends_with(r#"{i="c09"} and 2 more at 1"#),
        "{}",
        last(&late)
    );
    let shown = late.status().active.pop().unwrap();
    assert_eq!((shown.holds, shown.holding.len()), (12, 10));
}

#[test]
fn an_annotation_that_cannot_be_filled_is_refused() {
    let (bus, _) = bus();
    let g = family(&bus, "g");
    let over = |expr: Expr| Condition::when(expr, Threshold::above(0.9));
    let with = |rule: Rule, text: &str| {
        bus.add_rule(rule.annotation("what", text))
            .map(LiveRule::remove)
    };
    let why = |rule: Rule, text: &str| with(rule, text).unwrap_err().to_string();
    let rule = || Rule::new("r", over(Expr::value("g"))).any();
    assert!(why(rule(), "{{ $value").contains(r#"annotation "what": "{{ $value" is not closed"#));
    assert!(why(rule(), "{{ $value | humanizePercentagee }}").contains("is not known in braces"));
    let typo = r#"annotation "what" asks for label "typo", which no series that the rule looks at can have"#;
    assert!(why(rule(), "{{ $labels.typo }}").contains(typo));
    // Groups keep only the labels that they are grouped by; and a sum has no others.
    let sum = || Rule::new("r", over(Expr::sum("g")));
    assert!(why(sum(), "{{ $labels.i }}").contains("which no series"));
    let by = Rule::new("r", over(Expr::sum("later").by(["zone"])));
    assert!(with(by.clone(), "{{ $labels.zone }}").is_ok());
    assert!(with(by, "{{ $labels.i }}").is_err());
    // What can be is taken: a label of one of several operands, of the rule itself, of what is not known yet.
    assert!(with(rule(), "{{ $labels.i }}").is_ok());
    assert!(with(rule().label("typo", "x"), "{{ $labels.typo }}").is_ok());
    assert!(
        with(
            Rule::new("r", over(Expr::value("later"))),
            "{{ $labels.typo }}"
        )
        .is_ok()
    );
    assert!(
        with(
            Rule::new("r", over(Expr::value("g") / Expr::value("later"))),
            "{{ $labels.typo }}"
        )
        .is_ok()
    );
    let named = Rule::new("r", over(Expr::value(r#"{__name__=~"g.*"}"#)));
    assert!(with(named, "{{ $labels.typo }}").is_ok());
    let _derived = bus
        .derive(Desc::new("half", "Of a test."), Expr::value("g") / 2.0)
        .unwrap();
    assert!(with(Rule::new("r", over(Expr::value("half"))), "{{ $labels.i }}").is_ok());
    // Changing a rule is adding it.
    let live = bus.add_rule(rule()).unwrap();
    assert!(
        live.update(rule().annotation("what", "{{ $labels.typo }}"))
            .is_err()
    );
    drop(g);
}
