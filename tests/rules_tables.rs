//! The tables of the documents of rules and conditions, row by row, on virtual time.
//!
//! A row says when, what is done then, and what is told up to then. What the engine tells between two rows belongs to
//! the later one, and says its own time where that is another.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use metricbus::{
    Alert, AlertCause, Buckets, Clock, Condition, Counter, Delta, Desc, Expr, Family, Gauge,
    Histogram, LiveRule, MetricBus, Notice, Quality, Rule, RuleState, Threshold, Time,
};

fn secs(s: f64) -> Duration {
    Duration::from_secs_f64(s)
}

/// A gauge `v` that was never set, a family of gauges `g{i}`, and a counter and a histogram; and rules over them.
struct Bench {
    bus: MetricBus,
    clock: Clock,
    v: Gauge,
    w: Gauge,
    g: Family<Gauge>,
    c: Counter,
    l: Histogram,
    rule: Option<LiveRule>,
    read: usize,
}

impl Bench {
    fn new() -> Bench {
        let clock = Clock::manual();
        let bus = MetricBus::builder().clock(clock.clone()).build();
        let help = "Of a table.";
        Bench {
            v: bus.gauge("v", help).unwrap(),
            w: bus.gauge("w", help).unwrap(),
            g: bus.family(Desc::new("g", help).labels(["i"])).unwrap(),
            c: bus.counter("c_total", help).unwrap(),
            l: bus
                .histogram("l", help, Buckets::new([1.0, 10.0]).unwrap())
                .unwrap(),
            clock,
            bus,
            rule: None,
            read: 0,
        }
    }

    fn with(rule: Rule) -> Bench {
        let mut bench = Bench::new();
        bench.add(rule);
        bench
    }

    fn add(&mut self, rule: Rule) {
        self.rule = Some(self.bus.add_rule(rule).unwrap());
    }

    fn g(&self, i: &str) -> Gauge {
        self.g.with_label_values(&[i]).unwrap()
    }

    fn rule(&self) -> &LiveRule {
        self.rule.as_ref().unwrap()
    }

    /// Lets time go on to `s` seconds.
    fn at(&self, s: f64) -> &Bench {
        self.clock
            .advance((Time::ZERO + secs(s)).since(self.clock.now()));
        self
    }

    /// What was told since this was last asked: `firing`, `resolved`, with group, level and time where they are not plain.
    fn told(&mut self) -> String {
        let history = self.rule().history();
        let new = &history[self.read..];
        let told = new
            .iter()
            .map(|a| show(a, self.clock.now()))
            .collect::<Vec<_>>();
        self.read = history.len();
        told.join(", ")
    }

    /// One row: the time, what `v` is set to then, and what is told.
    fn row(&mut self, (at, value, told): (f64, Option<f64>, &str)) {
        self.at(at);
        if let Some(value) = value {
            self.v.set(value);
        }
        assert_eq!(
            self.told(),
            told,
            "at {at} s, {value:?}; rule: {:?}",
            self.rule().rule()
        );
    }

    fn rows(&mut self, rows: &[(f64, Option<f64>, &str)]) {
        for &row in rows {
            self.row(row);
        }
    }
}

fn show(alert: &Alert, now: Time) -> String {
    let mut text = String::new();
    for (_, value) in alert.group.iter() {
        text += &format!("{value}:");
    }
    text += alert.state.as_str();
    if let Some(level) = &alert.level {
        text += &format!(" {level}");
    }
    if let Some(level) = &alert.previous_level {
        text += &format!(" was {level}");
    }
    match alert.cause {
        AlertCause::Condition => {}
        other => text += &format!(" ({other:?})"),
    }
    if alert.at != now {
        text += &format!(" at {}", alert.at.as_secs_f64());
    }
    text
}

const NONE: Option<f64> = None;
const NAN: f64 = f64::NAN;
const INF: f64 = f64::INFINITY;

fn v_above(bound: f64) -> Condition {
    Condition::when("v", Threshold::above(bound))
}

// Groups.

#[test]
fn which_series_have_to_hold_is_as_the_table_of_groups_says() {
    let condition = || Condition::when("g", Threshold::above(5.0));
    // What `each` tells is about one series at a time: the others' rows are told apart by group.
    type Row = (
        &'static str,
        fn(&Bench),
        &'static str,
        &'static str,
        &'static str,
        &'static str,
    );
    let rows: [Row; 8] = [
        (
            "none of 3",
            |b| ["a", "b", "c"].iter().for_each(|i| b.g(i).set(1.0)),
            "",
            "",
            "",
            "",
        ),
        (
            "1 of 3",
            |b| b.g("a").set(9.0),
            "a:firing",
            "firing",
            "",
            "",
        ),
        (
            "2 of 3",
            |b| b.g("b").set(9.0),
            "b:firing",
            "",
            "",
            "firing",
        ),
        (
            "3 of 3",
            |b| b.g("c").set(9.0),
            "c:firing",
            "",
            "firing",
            "",
        ),
        (
            "back to 2",
            |b| b.g("c").set(1.0),
            "c:resolved",
            "",
            "resolved",
            "",
        ),
        (
            "the third is removed",
            |b| drop(b.g.remove(&["c"])),
            "",
            "",
            "firing",
            "",
        ),
        (
            "a third that is unknown",
            |b| drop(b.g("c")),
            "",
            "",
            "resolved",
            "",
        ),
        (
            "no series is left",
            |b| drop(b.bus.remove("g")),
            "a:resolved (Removed), b:resolved (Removed)",
            // They go one after the other, in any order.
            "*",
            "*",
            "*",
        ),
    ];
    type Grouping = fn(Rule) -> Rule;
    let rules: [(&str, Grouping); 4] = [
        ("each", |r| r.each()),
        ("any", |r| r.any()),
        ("all", |r| r.all()),
        ("at_least", |r| r.at_least(2)),
    ];
    for (column, (name, group)) in rules.into_iter().enumerate() {
        let mut bench = Bench::with(group(Rule::new(name, condition())));
        for (row, act, each, any, all, two) in rows {
            act(&bench);
            let expected = [each, any, all, two][column];
            let told = bench.told();
            if expected == "*" {
                let last = bench.rule().history().pop();
                assert!(
                    last.is_some_and(|a| !a.is_firing()),
                    "{name}, {row}: {told}"
                );
            } else {
                let mut sorted: Vec<_> = told.split(", ").collect();
                sorted.sort_unstable();
                assert_eq!(sorted.join(", "), expected, "{name}, {row}");
            }
        }
    }
}

#[test]
fn all_over_no_series_does_not_hold() {
    let mut bench = Bench::with(Rule::new("r", Condition::when("g", Threshold::above(5.0))).all());
    bench.at(10.0);
    assert_eq!(bench.told(), "");
    // Neither does its opposite.
    let not = Rule::new("not", !Condition::when("g", Threshold::above(5.0))).all();
    bench.add(not);
    assert_eq!(bench.told(), "");
}

#[test]
fn by_makes_a_group_for_each_value_and_a_missing_label_is_empty() {
    let mut bench = Bench::new();
    let f: Family<Gauge> = bench
        .bus
        .family(Desc::new("f", "Of a table.").labels(["pool", "i"]))
        .unwrap();
    let f = |pool: &str, i: &str| f.with_label_values(&[pool, i]).unwrap();
    bench.add(
        Rule::new("r", Condition::when("f", Threshold::above(5.0)))
            .at_least(2)
            .by(["pool"]),
    );
    f("x", "1").set(9.0);
    f("y", "1").set(9.0);
    assert_eq!(bench.told(), "");
    f("x", "2").set(9.0);
    assert_eq!(bench.told(), "x:firing");
    f("x", "1").set(1.0);
    assert_eq!(bench.told(), "x:resolved");

    bench.read = 0;
    bench.add(
        Rule::new("m", Condition::when("g", Threshold::above(5.0)))
            .any()
            .by(["nothing"]),
    );
    bench.g("a").set(9.0);
    let told = bench.rule().history();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].label("nothing").unwrap_or(""), "");
}

#[test]
fn series_of_several_names_are_told_apart() {
    let mut bench = Bench::new();
    bench.add(Rule::new(
        "r",
        Condition::when(r#"{__name__=~"v|w"}"#, Threshold::above(5.0)),
    ));
    bench.v.set(9.0);
    bench.w.set(9.0);
    bench.v.set(1.0);
    let told: Vec<_> = bench
        .rule()
        .history()
        .iter()
        .map(|a| {
            (
                a.series.as_ref().unwrap().name().to_owned(),
                a.is_firing(),
                a.epoch,
            )
        })
        .collect();
    let told: Vec<_> = told.iter().map(|(n, f, e)| (n.as_str(), *f, *e)).collect();
    assert_eq!(told, [("v", true, 1), ("w", true, 1), ("v", false, 2)]);
}

// Time.

#[test]
fn hold_and_keep_go_as_the_table_of_time_says() {
    use RuleState::{Clearing, Firing, Inactive, Pending};
    let rule = Rule::new("r", v_above(1.0))
        .hold_for(secs(5.0))
        .keep_firing_for(secs(3.0));
    let mut bench = Bench::with(rule);
    for (at, value, state, told) in [
        (0.0, Some(2.0), Pending, ""),
        (4.0, Some(0.0), Inactive, ""),
        (9.9, NONE, Inactive, ""),
        (10.0, Some(2.0), Pending, ""),
        (14.999_999_999, NONE, Pending, ""),
        (15.0, NONE, Firing, "firing"),
        (17.0, Some(0.0), Clearing, ""),
        (19.0, Some(2.0), Firing, ""),
        (30.0, Some(0.0), Clearing, ""),
        (32.999_999_999, NONE, Clearing, ""),
        (33.0, NONE, Inactive, "resolved"),
        (100.0, NONE, Inactive, ""),
    ] {
        bench.row((at, value, told));
        assert_eq!(bench.rule().status().state, state, "at {at}");
    }
    let told = bench.rule().history();
    assert_eq!(told[0].since, Time::ZERO + secs(10.0));
    assert_eq!(told[0].value, Some(2.0));
    assert_eq!((told[0].epoch, told[1].epoch), (1, 2));
}

#[test]
fn a_hold_ends_at_its_own_time_however_far_the_clock_goes() {
    let mut bench = Bench::with(Rule::new("r", v_above(1.0)).hold_for(secs(0.5)));
    bench.rows(&[(1.0, Some(2.0), ""), (100.0, NONE, "firing at 1.5")]);
}

/// A timer that is due at an instant runs before whatever is done at it.
#[test]
fn a_condition_that_ceases_at_the_instant_its_hold_ends_has_held() {
    let rule = Rule::new("r", v_above(1.0))
        .hold_for(secs(5.0))
        .keep_firing_for(secs(3.0));
    let mut bench = Bench::with(rule);
    bench.rows(&[
        (0.0, Some(2.0), ""),
        (5.0, Some(0.0), "firing"),
        (8.0, Some(2.0), "resolved"),
        (12.999, Some(0.0), ""),
    ]);
}

#[test]
fn m_of_n_counts_slots_as_its_table_says() {
    let rule = Rule::new("r", v_above(1.0)).m_of_n(2, 3, secs(1.0));
    let mut bench = Bench::with(rule);
    bench.rows(&[
        (0.5, Some(0.0), ""),
        // Held in slot 1, for a moment.
        (1.2, Some(2.0), ""),
        (1.3, Some(0.0), ""),
        (2.5, NONE, ""),
        // And in slot 3.
        (3.4, Some(2.0), "firing"),
        (3.6, Some(0.0), ""),
        (3.999, NONE, ""),
        // Of 2, 3 and 4 only 3.
        (5.0, NONE, "resolved at 4"),
        (7.0, NONE, ""),
    ]);
}

#[test]
fn a_condition_that_goes_on_holds_in_each_slot_from_its_beginning() {
    let rule = Rule::new("r", v_above(1.0))
        .m_of_n(3, 4, secs(1.0))
        .hold_for(secs(0.5));
    let mut bench = Bench::with(rule);
    bench.rows(&[
        (0.7, Some(2.0), ""),
        // Slots 0, 1, 2: from 2 s on, and half a second more.
        (2.4, NONE, ""),
        (2.6, NONE, "firing at 2.5"),
        (3.1, Some(0.0), ""),
        // At 5 s only 2 and 3 are left of the last four.
        (9.0, NONE, "resolved at 5"),
    ]);
}

// Levels.

fn two_levels() -> Rule {
    Rule::levels(
        "r",
        [
            (
                "warn",
                Condition::when("v", Threshold::above(80.0).clear_below(70.0)),
            ),
            (
                "critical",
                Condition::when("v", Threshold::above(90.0).clear_below(85.0)),
            ),
        ],
    )
}

#[test]
fn levels_change_as_their_table_says() {
    let mut bench = Bench::with(two_levels());
    bench.rows(&[
        (0.0, Some(75.0), ""),
        (1.0, Some(85.0), "firing warn"),
        (2.0, Some(95.0), "firing critical was warn"),
        (3.0, Some(86.0), ""),
        (4.0, Some(75.0), "firing warn was critical"),
        (5.0, Some(95.0), "firing critical was warn"),
        (6.0, Some(60.0), "resolved was critical"),
        // Past both at once is one alert.
        (7.0, Some(95.0), "firing critical"),
    ]);
    let epochs: Vec<_> = bench.rule().history().iter().map(|a| a.epoch).collect();
    assert_eq!(epochs, [1, 2, 3, 4, 5, 6]);
}

#[test]
fn each_level_goes_through_its_own_times() {
    let mut bench = Bench::with(two_levels().hold_for(secs(2.0)).keep_firing_for(secs(1.0)));
    bench.rows(&[
        (0.0, Some(85.0), ""),
        (1.0, Some(95.0), ""),
        (2.0, NONE, "firing warn"),
        (3.0, NONE, "firing critical was warn"),
        (4.0, Some(60.0), ""),
        (5.0, NONE, "resolved was critical"),
    ]);
}

#[test]
fn levels_whose_times_end_together_are_one_alert() {
    let mut bench = Bench::with(two_levels().hold_for(secs(2.0)));
    bench.rows(&[(0.0, Some(95.0), ""), (2.0, NONE, "firing critical")]);
}

// Thresholds.

#[test]
fn words_carry_strictness() {
    let tables: [(Threshold, [(f64, &str); 5]); 8] = [
        (
            Threshold::above(5.0),
            [
                (5.0, ""),
                (5.1, "firing"),
                (5.0, "resolved"),
                (INF, "firing"),
                (-INF, "resolved"),
            ],
        ),
        (
            Threshold::at_least(5.0),
            [
                (4.9, ""),
                (5.0, "firing"),
                (5.1, ""),
                (4.9, "resolved"),
                (INF, "firing"),
            ],
        ),
        (
            Threshold::below(5.0),
            [
                (5.0, ""),
                (4.9, "firing"),
                (5.0, "resolved"),
                (-INF, "firing"),
                (INF, "resolved"),
            ],
        ),
        (
            Threshold::at_most(5.0),
            [
                (5.1, ""),
                (5.0, "firing"),
                (4.9, ""),
                (5.1, "resolved"),
                (-INF, "firing"),
            ],
        ),
        (
            Threshold::above(5.0).clear_below(3.0),
            [
                (5.1, "firing"),
                (3.0, ""),
                (2.9, "resolved"),
                (5.0, ""),
                (5.1, "firing"),
            ],
        ),
        (
            Threshold::above(5.0).clear_at_most(3.0),
            [
                (5.1, "firing"),
                (3.1, ""),
                (3.0, "resolved"),
                (5.0, ""),
                (5.1, "firing"),
            ],
        ),
        (
            Threshold::below(5.0).clear_above(7.0),
            [
                (4.9, "firing"),
                (7.0, ""),
                (7.1, "resolved"),
                (5.0, ""),
                (4.9, "firing"),
            ],
        ),
        (
            Threshold::below(5.0).clear_at_least(7.0),
            [
                (4.9, "firing"),
                (6.9, ""),
                (7.0, "resolved"),
                (5.0, ""),
                (4.9, "firing"),
            ],
        ),
    ];
    for (threshold, rows) in tables {
        let mut bench = Bench::with(Rule::new("r", Condition::when("v", threshold)));
        for (i, (value, told)) in rows.into_iter().enumerate() {
            bench.row((i as f64, Some(value), told));
        }
    }
}

#[test]
fn minus_zero_equals_zero() {
    let mut bench = Bench::with(Rule::new(
        "r",
        Condition::when("v", Threshold::at_most(0.0)),
    ));
    bench.rows(&[
        (0.0, Some(1.0), ""),
        (1.0, Some(-0.0), "firing"),
        (2.0, Some(0.0), ""),
        (3.0, Some(1.0), "resolved"),
    ]);
    let mut bench = Bench::with(Rule::new("r", Condition::when("v", Threshold::below(0.0))));
    bench.rows(&[(0.0, Some(-0.0), ""), (1.0, Some(-1e-300), "firing")]);
}

/// The table of `Condition`, section "Unknown". A ratio has no data when both are 0.
#[test]
fn a_threshold_knows_what_its_table_says() {
    let condition = Condition::when(
        Expr::value("v") / Expr::value("w"),
        Threshold::above(0.9).clear_below(0.8),
    );
    // Of an unknown condition neither it nor its opposite holds: "not" tells false from unknown.
    let is = Bench::with(Rule::new("is", condition.clone()));
    let opposite = is.bus.add_rule(Rule::new("not", !condition)).unwrap();
    let rows: [(&str, f64, f64, &str); 12] = [
        // (nothing yet): no data, NaN.
        ("no data", 0.0, 0.0, "unknown"),
        ("NaN", NAN, 1.0, "unknown"),
        ("0.85", 0.85, 1.0, "false"),
        ("0.95", 0.95, 1.0, "true"),
        ("0.85: between the bounds", 0.85, 1.0, "true"),
        ("NaN neither enters nor leaves", NAN, 1.0, "true"),
        ("0.79", 0.79, 1.0, "false"),
        ("NaN", NAN, 1.0, "false"),
        ("0.95", 0.95, 1.0, "true"),
        ("no data", 0.0, 0.0, "unknown"),
        ("0.85: what it was is forgotten", 0.85, 1.0, "false"),
        ("no data", 0.0, 0.0, "unknown"),
    ];
    for (row, v, w, expected) in rows {
        // By way of NaN, which changes nothing.
        is.v.set(NAN);
        is.w.set(w);
        is.v.set(v);
        let firing = |rule: &LiveRule| rule.history().last().is_some_and(Alert::is_firing);
        let seen = match (firing(is.rule()), firing(&opposite)) {
            (true, false) => "true",
            (false, true) => "false",
            (false, false) => "unknown",
            (true, true) => "both",
        };
        assert_eq!(seen, expected, "{row}");
    }
}

#[test]
fn a_gauge_that_was_never_set_is_unknown_and_a_counter_is_zero() {
    let below = |s: &str| Condition::when(s, Threshold::below(1.0));
    let mut bench = Bench::new();
    bench.add(Rule::new("v", below("v") | !below("v")));
    assert_eq!(bench.told(), "");
    bench.read = 0;
    bench.add(Rule::new("c", below("c_total")));
    assert_eq!(bench.told(), "firing (Initial)");
    bench.c.inc();
    assert_eq!(bench.told(), "resolved");
}

#[test]
fn a_histogram_is_judged_by_each_observation() {
    let mut bench = Bench::new();
    bench.l.observe(50.0);
    bench.add(Rule::new("r", Condition::when("l", Threshold::above(5.0))));
    // What was observed before is not known.
    assert_eq!(bench.told(), "");
    for (value, told) in [
        (4.0, ""),
        (6.0, "firing"),
        (7.0, ""),
        (NAN, ""),
        (1.0, "resolved"),
    ] {
        bench.l.observe(value);
        assert_eq!(bench.told(), told, "{value}");
    }
    assert_eq!(bench.rule().history()[0].value, Some(6.0));
}

#[test]
fn a_spike_is_judged_by_its_own_value() {
    let mut bench = Bench::with(Rule::new("r", v_above(5.0)));
    bench.v.set(9.0);
    bench.v.set(1.0);
    assert_eq!(bench.told(), "firing, resolved");
    let told = bench.rule().history();
    assert_eq!((told[0].value, told[1].value), (Some(9.0), Some(1.0)));
}

// Moves and changes.

#[test]
fn a_move_fires_and_is_resolved_at_once() {
    let pulse = "firing, resolved";
    let tables: [(Delta, &[(f64, &str)]); 5] = [
        // Slow drift is seen, from where it last spoke.
        (
            Delta::absolute(1.0),
            &[
                (10.0, ""),
                (10.5, ""),
                (11.0, pulse),
                (11.5, ""),
                (12.0, pulse),
                (11.0, pulse),
            ],
        ),
        (
            Delta::relative(0.1),
            &[
                (100.0, ""),
                (109.0, ""),
                (110.0, pulse),
                (120.0, ""),
                (121.0, pulse),
                (108.0, pulse),
            ],
        ),
        // A tenth of max(|reference|, 50).
        (
            Delta::relative(0.1).floor(50.0),
            &[(0.0, ""), (4.9, ""), (5.0, pulse), (9.9, ""), (10.0, pulse)],
        ),
        // A quarter of 8 is 2.
        (
            Delta::of_range(0.25, 0.0, 8.0),
            &[(1.0, ""), (2.9, ""), (3.0, pulse), (1.1, ""), (1.0, pulse)],
        ),
        (
            Delta::absolute(1.0),
            &[
                (1.0, ""),
                (NAN, ""),
                (1.5, ""),
                (INF, pulse),
                (INF, ""),
                (3.0, pulse),
            ],
        ),
    ];
    for (delta, rows) in tables {
        let mut bench = Bench::with(Rule::new("r", Condition::moved("v", delta)));
        for (i, &(value, told)) in rows.iter().enumerate() {
            bench.row((i as f64, Some(value), told));
        }
    }
}

#[test]
fn a_move_stays_firing_for_as_long_as_the_rule_keeps() {
    let rule =
        Rule::new("r", Condition::moved("v", Delta::absolute(1.0))).keep_firing_for(secs(2.0));
    let mut bench = Bench::with(rule);
    bench.rows(&[
        (0.0, Some(5.0), ""),
        (1.0, Some(6.0), "firing"),
        (2.5, Some(7.0), ""),
        (4.4, NONE, ""),
        (9.0, NONE, "resolved at 4.5"),
    ]);
}

#[test]
fn a_move_never_holds_for_any_time() {
    let rule = Rule::new("r", Condition::moved("v", Delta::absolute(1.0))).hold_for(secs(0.1));
    let mut bench = Bench::with(rule);
    bench.rows(&[
        (0.0, Some(5.0), ""),
        (1.0, Some(6.0), ""),
        (2.0, Some(8.0), ""),
        (9.0, NONE, ""),
    ]);
}

#[test]
fn moves_of_an_expression_are_seen() {
    let sum = Expr::value("v") + Expr::value("w");
    let mut bench = Bench::with(Rule::new("r", Condition::moved(sum, Delta::absolute(10.0))));
    bench.v.set(1.0);
    bench.w.set(1.0);
    assert_eq!(bench.told(), "");
    bench.v.set(6.0);
    assert_eq!(bench.told(), "");
    bench.w.set(6.0);
    assert_eq!(bench.told(), "firing, resolved");
}

#[test]
fn every_change_is_seen() {
    let pulse = "firing, resolved";
    let mut bench = Bench::with(Rule::new("r", Condition::changed("v")));
    for (i, (value, told)) in [
        (1.0, ""),
        (1.0, ""),
        (2.0, pulse),
        (2.0, ""),
        (0.0, pulse),
        (-0.0, ""),
        (3.0, pulse),
    ]
    .into_iter()
    .enumerate()
    {
        bench.row((i as f64, Some(value), told));
    }
}

#[test]
fn restarts_are_seen_as_changes_of_a_start_time_within_any_group() {
    let mut bench = Bench::new();
    bench.g("a").set(100.0);
    bench.g("b").set(100.0);
    bench.add(
        Rule::new("r", Condition::changed("g"))
            .any()
            .keep_firing_for(secs(1.0)),
    );
    bench.g("a").set(100.0);
    assert_eq!(bench.told(), "");
    bench.g("b").set(200.0);
    assert_eq!(bench.told(), "firing");
    bench.at(0.5);
    bench.g("a").set(200.0);
    bench.at(5.0);
    assert_eq!(bench.told(), "resolved at 1.5");
}

// Absence.

#[test]
fn stale_is_told_to_the_tick_without_any_mutation() {
    let mut bench = Bench::new();
    bench.v.set(1.0);
    bench.at(1.0);
    bench.add(Rule::new("r", Condition::stale("v", secs(5.0))));
    bench.rows(&[
        // Its last mutation was before the rule: counted from there on.
        (5.9, NONE, ""),
        (8.0, NONE, "firing at 6"),
        // A mutation that does not change the value is one.
        (8.0, Some(1.0), "resolved"),
        (12.0, Some(1.0), ""),
        (16.999_999_999, NONE, ""),
        (17.0, NONE, "firing"),
        (18.0, Some(NAN), "resolved"),
    ]);
    assert_eq!(bench.rule().history()[0].value, None);
    assert_eq!(bench.rule().history()[0].quality, Quality::Stale);
}

#[test]
fn a_series_that_never_had_a_mutation_is_stale_from_its_making() {
    let mut bench = Bench::with(Rule::new("r", Condition::stale("g", secs(2.0))));
    bench.at(3.0);
    bench.g("a");
    bench.at(4.9);
    assert_eq!(bench.told(), "");
    bench.at(9.0);
    assert_eq!(bench.told(), "a:firing at 5");
    bench.g.remove(&["a"]).unwrap();
    assert_eq!(bench.told(), "a:resolved (Removed)");
}

#[test]
fn stale_goes_through_hold() {
    let mut bench =
        Bench::with(Rule::new("r", Condition::stale("v", secs(2.0))).hold_for(secs(1.0)));
    bench.rows(&[(0.0, Some(1.0), ""), (10.0, NONE, "firing at 3")]);
    assert_eq!(bench.rule().history()[0].since, Time::ZERO + secs(2.0));
}

#[test]
fn gone_holds_until_the_series_is_back_or_forgotten() {
    let mut bench = Bench::with(Rule::new("r", Condition::gone("g", secs(5.0))));
    bench.g("a").set(1.0);
    bench.g("b").set(1.0);
    assert_eq!(bench.told(), "");
    bench.at(1.0);
    bench.g.remove(&["a"]).unwrap();
    assert_eq!(bench.told(), "a:firing");
    assert_eq!(bench.rule().history()[0].quality, Quality::Gone);
    bench.at(3.0);
    bench.g("a");
    assert_eq!(bench.told(), "a:resolved");
    bench.at(4.0);
    bench.g.remove(&["b"]).unwrap();
    assert_eq!(bench.told(), "b:firing");
    bench.at(20.0);
    let told = bench.rule().history();
    let last = told.last().unwrap();
    assert!(!last.is_firing());
    assert_eq!(last.at, Time::ZERO + secs(9.0));
}

#[test]
fn a_series_that_expires_is_gone() {
    let mut bench = Bench::new();
    let f: Family<Gauge> = bench
        .bus
        .family(
            Desc::new("f", "Of a table.")
                .labels(["i"])
                .expire_after(secs(10.0)),
        )
        .unwrap();
    bench.add(Rule::new("r", Condition::gone("f", secs(1_000.0))));
    f.with_label_values(&["a"]).unwrap().set(1.0);
    bench.at(30.0);
    let told = bench.rule().history();
    assert_eq!(told.len(), 1);
    assert!(told[0].is_firing());
}

// Windows.

/// At which time a rule over a window first fires, looked at every 10 ms.
fn fires_at(bench: &Bench) -> Option<f64> {
    bench.rule().history().first().map(|a| a.at.as_secs_f64())
}

#[test]
fn a_windows_average_fires_without_any_mutation_at_the_tick() {
    let avg = Expr::over("v", secs(10.0)).avg();
    let mut bench = Bench::new();
    bench.v.set(0.0);
    bench.add(Rule::new(
        "r",
        Condition::when(avg, Threshold::at_least(5.0)),
    ));
    bench.at(10.0);
    bench.v.set(10.0);
    // Half of ten seconds at 10.
    bench.at(30.0);
    assert_eq!(fires_at(&bench), Some(15.0));
    bench.v.set(0.0);
    bench.at(60.0);
    // Below half again from one slot after five seconds on.
    assert_eq!(bench.told(), "firing at 15, resolved at 35.1");
}

#[test]
fn a_counters_rate_falls_without_any_mutation() {
    let rate = Expr::rate("c_total", secs(10.0));
    let mut bench = Bench::new();
    bench.at(10.0);
    bench.add(Rule::new(
        "r",
        Condition::when(rate, Threshold::above(0.99)),
    ));
    bench.at(20.0);
    bench.c.inc_by(10);
    bench.at(60.0);
    // 10 in 10 s from the next tick on; out of the window when the slot of the increment is.
    assert_eq!(bench.told(), "firing at 20.1, resolved at 30.1");
}

#[test]
fn there_is_no_rate_until_a_slot_was_observed() {
    let rate = Expr::rate("c_total", secs(10.0));
    let mut bench = Bench::with(Rule::new(
        "r",
        Condition::when(rate, Threshold::at_least(0.0)),
    ));
    bench.at(0.099);
    assert_eq!(bench.told(), "");
    bench.at(1.0);
    assert_eq!(bench.told(), "firing at 0.1");
}

#[test]
fn each_statistic_of_a_gauges_window_is_what_its_table_says() {
    // 2 for 1 s, 8 for 1 s, 5 from then on; the window is 4 s wide and asked at 4 s.
    let over = || Expr::over("v", secs(4.0));
    let table: [(&str, Expr, f64); 8] = [
        ("count", over().count(), 3.0),
        ("sum", over().sum(), 15.0),
        ("avg", over().avg(), 5.0),
        ("min", over().min(), 2.0),
        ("max", over().max(), 8.0),
        ("last", over().last(), 5.0),
        ("increase", over().increase(), 3.0),
        ("rate", over().rate(), 0.75),
    ];
    for (name, expr, expected) in table {
        let mut bench = Bench::new();
        let between = |e: Expr| {
            Condition::when(e.clone(), Threshold::at_least(expected - 1e-9))
                & Condition::when(e, Threshold::at_most(expected + 1e-9))
        };
        bench.add(Rule::new("r", between(expr)));
        bench.v.set(2.0);
        bench.at(1.0);
        bench.v.set(8.0);
        bench.at(2.0);
        bench.v.set(5.0);
        bench.at(4.0);
        let last = bench.rule().history().pop();
        assert!(
            last.as_ref().is_some_and(Alert::is_firing),
            "{name}: {last:?}"
        );
    }
}

#[test]
fn each_statistic_of_a_histograms_window_is_what_its_table_says() {
    let over = || Expr::over("l", secs(4.0));
    let table: [(&str, Expr, f64, f64); 9] = [
        ("count", over().count(), 4.0, 1e-9),
        ("sum", over().sum(), 20.0, 1e-9),
        ("avg", over().avg(), 5.0, 1e-9),
        ("min", over().min(), 1.0, 1e-9),
        ("max", over().max(), 9.0, 1e-9),
        ("rate", over().rate(), 1.0, 1e-9),
        ("quantile 0", over().quantile(0.0), 1.0, 1e-9),
        ("quantile 1", over().quantile(1.0), 9.0, 1e-9),
        ("quantile 0.5", over().quantile(0.5), 5.0, 0.055),
    ];
    for (name, expr, expected, within) in table {
        let mut bench = Bench::new();
        let condition = Condition::when(expr.clone(), Threshold::at_least(expected - within))
            & Condition::when(expr, Threshold::at_most(expected + within));
        bench.add(Rule::new("r", condition));
        bench.at(1.0);
        for value in [1.0, 5.0, 5.0, 9.0] {
            bench.l.observe(value);
        }
        bench.at(4.0);
        let last = bench.rule().history().pop();
        assert!(
            last.as_ref().is_some_and(Alert::is_firing),
            "{name}: {last:?}"
        );
    }
}

#[test]
fn each_statistic_of_a_counters_window_is_what_its_table_says() {
    let over = || Expr::over("c_total", secs(4.0));
    let table: [(&str, Expr, f64); 4] = [
        ("increase", over().increase(), 12.0),
        ("sum", over().sum(), 12.0),
        ("rate", over().rate(), 3.0),
        ("last", over().last(), 112.0),
    ];
    for (name, expr, expected) in table {
        let mut bench = Bench::new();
        bench.c.inc_by(100);
        let condition = Condition::when(expr.clone(), Threshold::at_least(expected - 1e-9))
            & Condition::when(expr, Threshold::at_most(expected + 1e-9));
        bench.add(Rule::new("r", condition));
        bench.at(1.0);
        bench.c.inc_by(5);
        bench.at(2.0);
        bench.c.inc_by(7);
        bench.at(4.0);
        let last = bench.rule().history().pop();
        assert!(
            last.as_ref().is_some_and(Alert::is_firing),
            "{name}: {last:?}"
        );
    }
}

#[test]
fn a_histograms_window_is_unknown_when_nothing_was_observed() {
    let max = || Expr::over("l", secs(1.0)).max();
    let mut bench = Bench::with(Rule::new(
        "r",
        Condition::when(max(), Threshold::above(5.0)),
    ));
    let opposite = bench
        .bus
        .add_rule(Rule::new(
            "not",
            Condition::when(max(), Threshold::at_most(5.0)),
        ))
        .unwrap();
    bench.at(1.0);
    assert_eq!(bench.told(), "");
    bench.l.observe(9.0);
    bench.at(10.0);
    // Seen at the tick after; forgotten with its slot.
    assert_eq!(bench.told(), "firing at 1.01, resolved at 2.01");
    assert!(opposite.history().is_empty());
    assert_eq!(bench.rule().history()[1].value, None);
}

#[test]
fn every_says_how_often_windows_are_judged() {
    let max = Expr::over("v", secs(10.0)).max();
    let rule = Rule::new("r", Condition::when(max, Threshold::above(5.0))).every(secs(3.0));
    let mut bench = Bench::with(rule);
    bench.at(1.0);
    bench.v.set(9.0);
    bench.at(2.9);
    assert_eq!(bench.told(), "");
    bench.at(20.0);
    assert_eq!(bench.told(), "firing at 3");
}

#[test]
fn wide_windows_are_judged_each_second() {
    let max = Expr::over("v", secs(3_600.0)).max();
    let mut bench = Bench::with(Rule::new("r", Condition::when(max, Threshold::above(5.0))));
    bench.at(1.5);
    bench.v.set(9.0);
    bench.at(20.0);
    assert_eq!(bench.told(), "firing at 2");
}

#[test]
fn merged_windows_are_as_one_over_all() {
    let mut bench = Bench::new();
    let f: Family<Counter> = bench
        .bus
        .family(Desc::new("f_total", "Of a table.").labels(["i"]))
        .unwrap();
    let merged = Expr::over("f_total", secs(1.0)).merged().increase();
    bench.add(Rule::new(
        "r",
        Condition::when(merged, Threshold::at_least(5.0)),
    ));
    bench.at(1.0);
    f.with_label_values(&["a"]).unwrap().inc_by(3);
    f.with_label_values(&["b"]).unwrap().inc_by(2);
    bench.at(9.0);
    assert_eq!(bench.told(), "firing at 1.01, resolved at 2.01");
}

// Arithmetic.

#[test]
fn arithmetic_is_judged_whenever_an_operand_is() {
    let (v, w) = (|| Expr::value("v"), || Expr::value("w"));
    let table: [(&str, Expr, f64); 7] = [
        ("ratio", v() / w(), 3.0),
        ("sum", v() + w(), 8.0),
        ("difference", v() - w(), 4.0),
        ("product", v() * w(), 12.0),
        ("with a number", v() * 2.0 + 1.0, 13.0),
        ("of a number", 12.0 / v(), 2.0),
        ("of a number less", 1.0 - v(), -5.0),
    ];
    for (name, expr, expected) in table {
        let condition = Condition::when(expr.clone(), Threshold::at_least(expected))
            & Condition::when(expr, Threshold::at_most(expected));
        let mut bench = Bench::with(Rule::new("r", condition));
        bench.w.set(2.0);
        assert_eq!(bench.told(), "", "{name}");
        bench.v.set(6.0);
        assert_eq!(bench.told(), "firing", "{name}");
        bench.v.set(7.0);
        assert_eq!(bench.told(), "resolved", "{name}");
    }
}

#[test]
fn zero_over_zero_is_no_data_and_one_over_zero_infinite() {
    let mut bench = Bench::with(Rule::new(
        "r",
        Condition::when(Expr::value("v") / Expr::value("w"), Threshold::above(1.0)),
    ));
    bench.w.set(0.0);
    bench.v.set(0.0);
    assert_eq!(bench.told(), "");
    bench.v.set(1.0);
    assert_eq!(bench.told(), "firing");
    assert_eq!(bench.rule().history()[0].value, Some(INF));
    bench.v.set(0.0);
    assert_eq!(bench.told(), "resolved");
    assert_eq!(bench.rule().history()[1].value, None);
    assert_eq!(bench.rule().history()[1].quality, Quality::NoData);
}

#[test]
fn one_mutation_of_a_series_that_is_in_two_places_is_judged_once() {
    // 3 then 12: each half changes, the whole holds throughout.
    let condition =
        Condition::when("v", Threshold::below(5.0)) | Condition::when("v", Threshold::above(10.0));
    let mut bench = Bench::with(Rule::new("r", condition));
    bench.v.set(3.0);
    assert_eq!(bench.told(), "firing");
    bench.v.set(12.0);
    bench.v.set(4.0);
    assert_eq!(bench.told(), "");
    let difference = Expr::value("v") - Expr::value("v");
    bench.read = 0;
    bench.add(Rule::new(
        "same",
        Condition::when(difference, Threshold::above(0.0)),
    ));
    for i in 0..20 {
        bench.v.set(f64::from(i * 7 % 11));
    }
    assert_eq!(bench.told(), "");
}

#[test]
fn gatherings_follow_series_that_come_and_go() {
    type Row = (&'static str, fn(&Bench), [Option<f64>; 5]);
    // sum, avg, min, max, count
    let rows: [Row; 8] = [
        ("none", |_| {}, [None; 5]),
        ("never set", |b| drop(b.g("a")), [None; 5]),
        (
            "4",
            |b| b.g("a").set(4.0),
            [Some(4.0), Some(4.0), Some(4.0), Some(4.0), Some(1.0)],
        ),
        (
            "4, 8",
            |b| b.g("b").set(8.0),
            [Some(12.0), Some(6.0), Some(4.0), Some(8.0), Some(2.0)],
        ),
        (
            "4, 8, NaN",
            |b| b.g("c").set(NAN),
            [Some(12.0), Some(6.0), Some(4.0), Some(8.0), Some(2.0)],
        ),
        (
            "4, 8, 9",
            |b| b.g("c").set(9.0),
            [Some(21.0), Some(7.0), Some(4.0), Some(9.0), Some(3.0)],
        ),
        (
            "8, 9",
            |b| drop(b.g.remove(&["a"])),
            [Some(17.0), Some(8.5), Some(8.0), Some(9.0), Some(2.0)],
        ),
        ("none is left", |b| drop(b.bus.remove("g")), [None; 5]),
    ];
    let gatherings: [fn(&'static str) -> Expr; 5] = [
        |s| Expr::sum(s),
        |s| Expr::avg(s),
        |s| Expr::min(s),
        |s| Expr::max(s),
        |s| Expr::count(s),
    ];
    for (column, gather) in gatherings.into_iter().enumerate() {
        // One rule for each number that is to be seen, so that each row is judged exactly.
        let bench = Bench::new();
        let mut wanted: Vec<f64> = rows.iter().filter_map(|row| row.2[column]).collect();
        wanted.dedup();
        let rules: Vec<(f64, LiveRule)> = wanted
            .iter()
            .enumerate()
            .map(|(n, &number)| {
                let is = Condition::when(gather("g"), Threshold::at_least(number))
                    & Condition::when(gather("g"), Threshold::at_most(number));
                (
                    number,
                    bench.bus.add_rule(Rule::new(format!("r{n}"), is)).unwrap(),
                )
            })
            .collect();
        for (row, act, numbers) in rows {
            act(&bench);
            for (number, rule) in &rules {
                let firing = rule.history().last().is_some_and(Alert::is_firing);
                assert_eq!(
                    firing,
                    numbers[column] == Some(*number),
                    "{row}: {number}, column {column}"
                );
            }
        }
    }
}

#[test]
fn scaled_is_a_trigger_between_0_and_1() {
    let table = [
        // from 10 to 20
        (10.0, 20.0, 5.0, 0.0),
        (10.0, 20.0, 10.0, 0.0),
        (10.0, 20.0, 12.5, 0.25),
        (10.0, 20.0, 20.0, 1.0),
        (10.0, 20.0, INF, 1.0),
        // Falling: 1 at 10 and below.
        (20.0, 10.0, 25.0, 0.0),
        (20.0, 10.0, 17.5, 0.25),
        (20.0, 10.0, 10.0, 1.0),
        (20.0, 10.0, -INF, 1.0),
    ];
    for (from, to, value, scaled) in table {
        let of = || Expr::value("v").scaled(from, to);
        let is = Condition::when(of(), Threshold::at_least(scaled))
            & Condition::when(of(), Threshold::at_most(scaled));
        let mut bench = Bench::with(Rule::new("r", is));
        bench.v.set(value);
        assert_eq!(
            bench.told(),
            "firing",
            "{value} from {from} to {to} is {scaled}"
        );
    }
}

#[test]
fn a_moving_average_goes_63_percent_of_the_way_in_tau() {
    let ewma = Expr::value("v").ewma(secs(10.0));
    let rule = Rule::new("r", Condition::when(ewma, Threshold::at_least(0.6))).every(secs(1.0));
    let mut bench = Bench::new();
    bench.v.set(0.0);
    bench.add(rule);
    bench.at(100.0);
    bench.v.set(1.0);
    bench.at(200.0);
    // 1 - e^-0.9 is 0.593, 1 - e^-1 is 0.632.
    assert_eq!(bench.told(), "firing at 110");
    bench.v.set(NAN);
    bench.at(300.0);
    assert_eq!(bench.told(), "");
    bench.v.set(0.0);
    bench.at(400.0);
    // e^-0.5 is 0.607, e^-0.6 is 0.549.
    assert_eq!(bench.told(), "resolved at 306");
}

#[test]
fn a_moving_average_begins_at_the_first_value() {
    let ewma = Expr::value("v").ewma(secs(10.0));
    let rule = Rule::new("r", Condition::when(ewma, Threshold::above(0.5))).every(secs(1.0));
    let mut bench = Bench::with(rule);
    bench.at(50.0);
    bench.v.set(1.0);
    assert_eq!(bench.told(), "firing");
    bench.v.set(0.0);
    bench.at(57.0);
    // e^-0.6 is 0.549, e^-0.7 is 0.497.
    assert_eq!(bench.told(), "resolved");
}

// Logic.

#[test]
fn and_or_and_not_follow_kleene() {
    // Of a: 9 is true, 1 false, none unknown; so of b.
    let (t, f, u) = (Some(9.0), Some(1.0), None);
    let table = [
        // a, b, a & b, a | b; "not" of each is judged as well.
        (t, t, "true", "true"),
        (t, f, "false", "true"),
        (f, t, "false", "true"),
        (f, f, "false", "false"),
        (t, u, "unknown", "true"),
        (u, t, "unknown", "true"),
        (f, u, "false", "unknown"),
        (u, f, "false", "unknown"),
        (u, u, "unknown", "unknown"),
    ];
    for (a, b, and, or) in table {
        let bench = Bench::new();
        let (va, vb) = (
            || v_above(5.0),
            || Condition::when("w", Threshold::above(5.0)),
        );
        let rules = [
            ("and", va() & vb()),
            ("or", va() | vb()),
            ("not and", !(va() & vb())),
            ("not or", !(va() | vb())),
            ("not not and", !!(va() & vb())),
        ]
        .map(|(name, condition)| bench.bus.add_rule(Rule::new(name, condition)).unwrap());
        if let Some(a) = a {
            bench.v.set(a);
        }
        if let Some(b) = b {
            bench.w.set(b);
        }
        let firing = rules.map(|rule| rule.history().last().is_some_and(Alert::is_firing));
        let expected = [
            and == "true",
            or == "true",
            and == "false",
            or == "false",
            and == "true",
        ];
        assert_eq!(firing, expected, "{a:?} {b:?}");
    }
}

#[test]
fn conditions_on_series_of_the_same_labels_belong_together() {
    let mut bench = Bench::new();
    let h: Family<Gauge> = bench
        .bus
        .family(Desc::new("h", "Of a table.").labels(["i"]))
        .unwrap();
    let both =
        Condition::when("g", Threshold::above(5.0)) & Condition::when("h", Threshold::above(5.0));
    bench.add(Rule::new("r", both));
    bench.g("a").set(9.0);
    h.with_label_values(&["b"]).unwrap().set(9.0);
    assert_eq!(bench.told(), "");
    h.with_label_values(&["a"]).unwrap().set(9.0);
    assert_eq!(bench.told(), "a:firing");
    // The other is unknown, then, and the group is still there.
    bench.g.remove(&["a"]).unwrap();
    assert_eq!(bench.told(), "a:resolved");
    bench.g("a").set(9.0);
    assert_eq!(bench.told(), "a:firing");
    bench.g.remove(&["a"]).unwrap();
    h.remove(&["a"]).unwrap();
    assert_eq!(bench.told(), "a:resolved");
}

#[test]
fn a_series_without_labels_takes_part_everywhere() {
    let mut bench = Bench::new();
    bench.v.set(1.0);
    bench.g("a").set(9.0);
    bench.g("b").set(1.0);
    let both = Condition::when("g", Threshold::above(5.0)) & v_above(5.0);
    bench.add(Rule::new("r", both));
    assert_eq!(bench.told(), "");
    bench.v.set(9.0);
    assert_eq!(bench.told(), "a:firing");
    bench.g("b").set(9.0);
    assert_eq!(bench.told(), "b:firing");
    bench.v.set(1.0);
    let mut told: Vec<_> = bench.rule().history()[2..]
        .iter()
        .map(|a| show(a, bench.clock.now()))
        .collect();
    told.sort();
    assert_eq!(told, ["a:resolved", "b:resolved"]);
}

#[test]
fn a_sum_over_all_goes_with_each_series_that_is_there_when_the_rule_is_added() {
    let mut bench = Bench::new();
    for (i, value) in [("a", 7.0), ("b", 2.0), ("c", 9.0)] {
        bench.g(i).set(value);
    }
    let sum = Condition::when(Expr::sum("g"), Threshold::above(12.0));
    bench.add(Rule::new(
        "r",
        Condition::when("g", Threshold::above(5.0)) & sum,
    ));
    assert_eq!(bench.told(), "a:firing (Initial), c:firing (Initial)");
    bench.g("a").set(2.0);
    assert_eq!(bench.told(), "a:resolved");
    bench.g("b").set(-2.0);
    assert_eq!(bench.told(), "c:resolved");
}

/// The series is in both operands: no state is passed on the way from one to the other.
#[test]
fn a_share_of_all_is_judged_with_the_new_value_in_both_places() {
    let mut bench = Bench::new();
    bench.g("a").set(INF);
    let share = Expr::value("g") / Expr::sum("g");
    let small = Condition::when(share, Threshold::below(0.4).clear_above(1.4));
    bench.add(Rule::new("r", !small));
    assert_eq!(bench.told(), "");
    bench.g("a").set(1.0);
    assert_eq!(bench.told(), "a:firing");
}

#[test]
fn a_series_is_judged_with_its_value_when_it_is_born() {
    let mut bench = Bench::new();
    let f: Family<Counter> = bench
        .bus
        .family(Desc::new("f_total", "Of a table.").labels(["i"]))
        .unwrap();
    let idle = Condition::when("f_total", Threshold::below(1.0));
    bench.add(Rule::new("r", idle | Condition::when("g", Threshold::above(5.0))).all());
    bench.g("a").set(9.0);
    assert_eq!(bench.told(), "firing");
    // It holds for the newcomer, too: there is no moment in which that is unknown.
    f.with_label_values(&["b"]).unwrap();
    assert_eq!(bench.told(), "");
    f.with_label_values(&["b"]).unwrap().inc();
    assert_eq!(bench.told(), "resolved");
}

#[test]
fn what_is_forgotten_is_not_there_again() {
    let mut bench = Bench::with(Rule::new("r", !Condition::gone("g", secs(5.0))));
    bench.g("a");
    assert_eq!(bench.told(), "a:firing");
    bench.g.remove(&["a"]).unwrap();
    assert_eq!(bench.told(), "a:resolved");
    bench.at(20.0);
    assert_eq!(bench.told(), "");
}

#[test]
fn a_group_that_is_forgotten_is_not_kept_firing() {
    let rule = Rule::new("r", Condition::gone("g", secs(5.0))).keep_firing_for(secs(60.0));
    let mut bench = Bench::with(rule);
    bench.g("a");
    bench.g.remove(&["a"]).unwrap();
    assert_eq!(bench.told(), "a:firing");
    bench.at(100.0);
    assert_eq!(bench.told(), "a:resolved (Removed) at 5");
}

#[test]
fn a_condition_about_no_labels_has_one_state_for_all() {
    let mut bench = Bench::new();
    let v = Condition::when("v", Threshold::above(5.0).clear_below(3.0));
    bench.add(Rule::new(
        "r",
        v & Condition::when("g", Threshold::above(5.0)),
    ));
    bench.g("a").set(9.0);
    bench.v.set(9.0);
    assert_eq!(bench.told(), "a:firing");
    bench.v.set(4.0);
    // It has not cleared for anyone, nor for who comes now.
    bench.g("b").set(9.0);
    assert_eq!(bench.told(), "b:firing");
    bench.v.set(2.0);
    assert_eq!(bench.rule().history().len(), 4);
}

// Start and end.

#[test]
fn what_holds_already_is_told_as_initial() {
    let mut bench = Bench::new();
    bench.v.set(9.0);
    bench.add(Rule::new("r", v_above(5.0)));
    assert_eq!(bench.told(), "firing (Initial)");
    bench.v.set(1.0);
    assert_eq!(bench.told(), "resolved");
}

#[test]
fn without_initial_the_first_alert_is_the_resolved_one() {
    let mut bench = Bench::new();
    bench.v.set(9.0);
    bench.add(Rule::new("r", v_above(5.0)).initial(false));
    assert_eq!(bench.told(), "");
    bench.v.set(8.0);
    assert_eq!(bench.told(), "");
    bench.v.set(1.0);
    assert_eq!(bench.told(), "resolved");
    assert_eq!(bench.rule().history()[0].epoch, 1);
    bench.v.set(9.0);
    assert_eq!(bench.told(), "firing");
}

#[test]
fn what_holds_already_holds_from_the_rules_adding() {
    let mut bench = Bench::new();
    bench.v.set(9.0);
    bench.at(3.0);
    bench.add(Rule::new("r", v_above(5.0)).hold_for(secs(2.0)));
    bench.at(4.9);
    assert_eq!(bench.told(), "");
    bench.at(9.0);
    let alert = bench.rule().history().pop().unwrap();
    assert_eq!(
        (alert.at, alert.since),
        (Time::ZERO + secs(5.0), Time::ZERO + secs(3.0))
    );
}

#[test]
fn a_dry_run_records_and_tells_nobody() {
    let bench = Bench::new();
    let told = Arc::new(Mutex::new(Vec::new()));
    let heard = |from: &'static str| {
        let told = told.clone();
        move |_: Alert| told.lock().unwrap().push(from)
    };
    let _all = bench.bus.on_alert().inline(heard("bus")).unwrap();
    let dry = bench
        .bus
        .add_rule(Rule::new("dry", v_above(5.0)).dry_run(true))
        .unwrap();
    let _one = dry.on_alert().inline(heard("rule")).unwrap();
    bench.v.set(9.0);
    bench.v.set(1.0);
    assert_eq!(dry.history().len(), 2);
    assert!(told.lock().unwrap().is_empty());
    dry.update(Rule::new("dry", v_above(5.0))).unwrap();
    bench.v.set(9.0);
    let mut told = told.lock().unwrap().clone();
    told.sort_unstable();
    assert_eq!(told, ["bus", "rule"]);
}

#[test]
fn removing_a_rule_while_firing_resolves_it() {
    let bench = Bench::new();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let told = heard.clone();
    let _all = bench
        .bus
        .on_alert()
        .inline(move |a: Alert| {
            told.lock()
                .unwrap()
                .push((a.state.as_str(), a.cause, a.epoch))
        })
        .unwrap();
    let firing = bench
        .bus
        .add_rule(Rule::new("firing", v_above(5.0)))
        .unwrap();
    bench
        .bus
        .add_rule(Rule::new("pending", v_above(5.0)).hold_for(secs(5.0)))
        .unwrap();
    bench
        .bus
        .add_rule(Rule::new("inactive", v_above(50.0)))
        .unwrap();
    bench.v.set(9.0);
    assert!(firing.remove());
    assert!(bench.bus.remove_rule("pending"));
    assert!(bench.bus.remove_rule("inactive"));
    assert!(!bench.bus.remove_rule("inactive"));
    bench.at(100.0);
    bench.v.set(99.0);
    assert_eq!(
        *heard.lock().unwrap(),
        [
            ("firing", AlertCause::Condition, 1),
            ("resolved", AlertCause::RuleRemoved, 2)
        ],
    );
    assert!(bench.bus.rules().is_empty());
}

#[test]
fn the_last_series_of_a_group_takes_its_firing_along() {
    let rule = Rule::new("r", Condition::when("g", Threshold::above(5.0)))
        .any()
        .keep_firing_for(secs(60.0));
    let mut bench = Bench::with(rule);
    bench.g("a").set(9.0);
    bench.g("b").set(1.0);
    assert_eq!(bench.told(), "firing");
    bench.g.remove(&["b"]).unwrap();
    assert_eq!(bench.told(), "");
    bench.g.remove(&["a"]).unwrap();
    assert_eq!(bench.told(), "resolved (Removed)");
    bench.at(100.0);
    assert_eq!(bench.told(), "");
}

#[test]
fn epochs_of_a_group_go_on_when_it_comes_back() {
    let mut bench = Bench::with(Rule::new("r", Condition::when("g", Threshold::above(5.0))));
    bench.g("a").set(9.0);
    bench.g.remove(&["a"]).unwrap();
    bench.g("a").set(9.0);
    let epochs: Vec<_> = bench.rule().history().iter().map(|a| a.epoch).collect();
    assert_eq!(epochs, [1, 2, 3]);
    assert_eq!(bench.told(), "a:firing, a:resolved (Removed), a:firing");
}

// Changes of a live rule.

#[test]
fn a_rule_changed_while_it_runs_keeps_what_it_can() {
    let at = |hold: f64| Rule::new("r", v_above(5.0)).hold_for(secs(hold));
    let changed = "(RuleChanged)";

    // A longer hold makes a firing rule pending, and says resolved.
    let mut bench = Bench::with(at(2.0));
    bench.rows(&[(0.0, Some(9.0), ""), (3.0, NONE, "firing at 2")]);
    bench.rule().update(at(10.0)).unwrap();
    assert_eq!(bench.told(), format!("resolved {changed}"));
    bench.rows(&[(9.9, NONE, ""), (20.0, NONE, "firing at 10")]);

    // A shorter one lets a pending rule fire at once.
    let mut bench = Bench::with(at(10.0));
    bench.rows(&[(0.0, Some(9.0), ""), (3.0, NONE, "")]);
    bench.rule().update(at(2.0)).unwrap();
    assert_eq!(bench.told(), format!("firing {changed}"));

    // Or earlier.
    let mut bench = Bench::with(at(10.0));
    bench.rows(&[(0.0, Some(9.0), ""), (3.0, NONE, "")]);
    bench.rule().update(at(5.0)).unwrap();
    bench.rows(&[(20.0, NONE, "firing at 5")]);

    // One of the same length, or other words, change nothing.
    let mut bench = Bench::with(at(2.0));
    bench.rows(&[(0.0, Some(9.0), ""), (3.0, NONE, "firing at 2")]);
    bench.rule().update(at(2.0)).unwrap();
    bench
        .rule()
        .update(at(2.0).label("severity", "page").annotation("a", "b"))
        .unwrap();
    assert_eq!(bench.told(), "");
    bench.row((4.0, Some(1.0), "resolved"));
    assert_eq!(bench.rule().history()[1].label("severity"), Some("page"));
    assert_eq!(bench.rule().history()[1].epoch, 2);
}

#[test]
fn a_rule_with_another_threshold_is_judged_anew() {
    let above = |bound: f64| Rule::new("r", v_above(bound));
    let mut bench = Bench::with(above(5.0));
    bench.row((0.0, Some(9.0), "firing"));
    bench.rule().update(above(10.0)).unwrap();
    assert_eq!(bench.told(), "resolved (RuleChanged)");
    bench.bus.set_rule(above(8.0)).unwrap();
    assert_eq!(bench.told(), "firing (RuleChanged)");
    bench.bus.set_rule(above(7.0)).unwrap();
    assert_eq!(bench.told(), "");
    bench.row((1.0, Some(7.0), "resolved"));
    assert_eq!(bench.rule().history().pop().unwrap().epoch, 4);
}

#[test]
fn the_hysteresis_of_an_unchanged_condition_survives_an_update() {
    let rule = || {
        Rule::new(
            "r",
            Condition::when("v", Threshold::above(5.0).clear_below(3.0)),
        )
    };
    let mut bench = Bench::with(rule());
    bench.rows(&[(0.0, Some(9.0), "firing"), (1.0, Some(4.0), "")]);
    bench
        .rule()
        .update(rule().keep_firing_for(secs(1.0)))
        .unwrap();
    assert_eq!(bench.told(), "");
    bench.rows(&[(2.0, Some(2.0), ""), (9.0, NONE, "resolved at 3")]);
}

#[test]
fn other_groups_end_the_old_ones() {
    let rule = || Rule::new("r", Condition::when("g", Threshold::above(5.0)));
    let mut bench = Bench::with(rule().each());
    bench.g("a").set(9.0);
    assert_eq!(bench.told(), "a:firing");
    bench.rule().update(rule().any()).unwrap();
    let mut told: Vec<_> = bench.rule().history()[1..]
        .iter()
        .map(|a| show(a, bench.clock.now()))
        .collect();
    told.sort();
    assert_eq!(told, ["a:resolved (RuleChanged)", "firing (RuleChanged)"]);
}

#[test]
fn a_rule_keeps_its_name_and_names_are_taken_once() {
    let bench = Bench::with(Rule::new("r", v_above(5.0)));
    assert!(
        bench
            .rule()
            .update(Rule::new("other", v_above(5.0)))
            .is_err()
    );
    assert!(bench.bus.add_rule(Rule::new("r", v_above(6.0))).is_err());
    assert_eq!(bench.rule().rule(), Rule::new("r", v_above(5.0)));
    bench.bus.set_rule(Rule::new("a", v_above(6.0))).unwrap();
    let rules = bench.bus.rules();
    let names: Vec<_> = rules.iter().map(LiveRule::name).collect();
    assert_eq!(names, ["a", "r"]);
    assert!(bench.bus.rule("a").is_some());
    assert!(bench.bus.rule("b").is_none());
}

// Errors.

#[test]
fn wrong_rules_are_refused_and_leave_no_trace() {
    let ok = || v_above(5.0);
    let wrong = [
        ("no name", Rule::new("", ok())),
        (
            "a selector",
            Rule::new("r", Condition::when("v{", Threshold::above(5.0))),
        ),
        (
            "a bound",
            Rule::new("r", Condition::when("v", Threshold::above(NAN))),
        ),
        (
            "a clear bound",
            Rule::new(
                "r",
                Condition::when("v", Threshold::above(5.0).clear_below(6.0)),
            ),
        ),
        (
            "a delta",
            Rule::new("r", Condition::moved("v", Delta::absolute(0.0))),
        ),
        (
            "a time to live",
            Rule::new("r", Condition::stale("v", Duration::from_millis(9))),
        ),
        ("0 of 3", Rule::new("r", ok()).m_of_n(0, 3, secs(1.0))),
        ("4 of 3", Rule::new("r", ok()).m_of_n(4, 3, secs(1.0))),
        ("65 slots", Rule::new("r", ok()).m_of_n(1, 65, secs(1.0))),
        (
            "a narrow slot",
            Rule::new("r", ok()).m_of_n(1, 2, Duration::from_millis(9)),
        ),
        ("at least 0", Rule::new("r", ok()).at_least(0)),
        ("each by", Rule::new("r", ok()).each().by(["i"])),
        (
            "every",
            Rule::new("r", ok()).every(Duration::from_millis(9)),
        ),
        (
            "tau",
            Rule::new(
                "r",
                Condition::when(
                    Expr::value("v").ewma(Duration::from_millis(9)),
                    Threshold::above(1.0),
                ),
            ),
        ),
        (
            "scaled by nothing",
            Rule::new(
                "r",
                Condition::when(Expr::value("v").scaled(1.0, 1.0), Threshold::above(1.0)),
            ),
        ),
        (
            "scaled to infinity",
            Rule::new(
                "r",
                Condition::when(Expr::value("v").scaled(1.0, INF), Threshold::above(1.0)),
            ),
        ),
        (
            "by of a value",
            Rule::new(
                "r",
                Condition::when(Expr::value("v").by(["i"]), Threshold::above(1.0)),
            ),
        ),
        ("no levels", Rule::levels("r", [] as [(&str, Condition); 0])),
        (
            "a level twice",
            Rule::levels("r", [("a", ok()), ("a", ok())]),
        ),
        (
            "quantile",
            Rule::new(
                "r",
                Condition::when(
                    Expr::over("v", secs(1.0)).quantile(1.5),
                    Threshold::above(1.0),
                ),
            ),
        ),
    ];
    let bench = Bench::new();
    for (what, rule) in wrong {
        let error = bench.bus.add_rule(rule).map(|_| ());
        assert!(error.is_err(), "{what} was taken");
        assert!(bench.bus.rules().is_empty(), "{what}");
    }
}

// What an alert says.

#[test]
fn an_alert_says_what_is_known() {
    let mut bench = Bench::new();
    bench.add(
        Rule::new(
            "Full",
            Condition::when("g", Threshold::above(0.9).clear_below(0.8)),
        )
        .label("severity", "page")
        .label("i", "wins")
        .annotation(
            "summary",
            "{{ $labels.severity }} of {{ $labels.i }}: {{ $value }}!",
        ),
    );
    bench.at(1.0);
    bench.g("a").set(0.95);
    bench.at(3.0);
    bench.g("a").set(0.5);
    let told = bench.rule().history();
    let (firing, resolved) = (&told[0], &told[1]);
    assert_eq!(&*firing.rule, "Full");
    assert_eq!(firing.group.to_vec(), [("i".to_owned(), "a".to_owned())]);
    assert_eq!(
        (firing.label("i"), firing.label("severity")),
        (Some("wins"), Some("page"))
    );
    assert_eq!(firing.annotation("summary"), Some("page of wins: 0.95!"));
    assert_eq!(firing.series.as_ref(), Some(&bench.g.series()[0]));
    assert_eq!((firing.value, resolved.value), (Some(0.95), Some(0.5)));
    assert_eq!((firing.quality, firing.repeat), (Quality::Good, 0));
    assert_eq!(
        (firing.at, firing.since),
        (Time::ZERO + secs(1.0), Time::ZERO + secs(1.0))
    );
    assert_eq!(
        (resolved.at, resolved.since),
        (Time::ZERO + secs(3.0), Time::ZERO + secs(1.0))
    );
    assert_eq!(firing.date, bench.clock.wall(firing.at));
    assert_eq!(firing.to_string(), r#"Full{i="a"} firing at 0.95"#);
}

#[test]
fn a_rule_remembers_as_many_transitions_as_it_is_told_to() {
    let bench = Bench::with(Rule::new("r", v_above(5.0)).history(3));
    for _ in 0..5 {
        bench.v.set(9.0);
        bench.v.set(1.0);
    }
    let epochs: Vec<_> = bench.rule().history().iter().map(|a| a.epoch).collect();
    assert_eq!(epochs, [8, 9, 10]);
}

// Who hears.

#[test]
fn a_late_subscriber_first_hears_what_fires_then_the_mark_then_changes() {
    let bench = Bench::with(Rule::new("r", v_above(5.0)));
    bench
        .bus
        .add_rule(Rule::new("quiet", v_above(50.0)))
        .unwrap();
    bench.v.set(9.0);
    bench.at(7.0);
    let heard = Arc::new(Mutex::new(Vec::new()));
    let told = heard.clone();
    let _subscription = bench
        .bus
        .on_notice()
        .inline(move |notice: Notice| {
            told.lock().unwrap().push(match notice {
                Notice::Alert(a) => format!("{} {} {:?} {}", a.rule, a.state, a.cause, a.epoch),
                Notice::Sync => "sync".to_owned(),
                _ => "?".to_owned(),
            });
        })
        .unwrap();
    bench.v.set(1.0);
    bench
        .bus
        .add_rule(Rule::new("later", v_above(0.0)))
        .unwrap();
    assert_eq!(
        *heard.lock().unwrap(),
        [
            "r firing Initial 1",
            "sync",
            "r resolved Condition 2",
            "later firing Initial 1"
        ],
    );
}

#[test]
fn a_rule_made_with_its_subscription_ends_with_it() {
    let bench = Bench::new();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let told = heard.clone();
    let subscription = bench
        .bus
        .on_rule(Rule::new("r", v_above(5.0)))
        .inline(move |a: Alert| told.lock().unwrap().push(a.state.as_str()))
        .unwrap();
    assert!(bench.bus.rule("r").is_some());
    bench.v.set(9.0);
    bench.v.set(1.0);
    drop(subscription);
    assert!(bench.bus.rule("r").is_none());
    bench.v.set(9.0);
    assert_eq!(*heard.lock().unwrap(), ["firing", "resolved"]);
}

#[test]
fn the_status_says_how_a_rule_stands_and_whether_it_ever_matched() {
    let bench = Bench::new();
    let about = |selector: &str| {
        Rule::new(selector, Condition::when(selector, Threshold::above(5.0))).hold_for(secs(1.0))
    };
    let typo = bench.bus.add_rule(about("gg")).unwrap();
    let right = bench.bus.add_rule(about("g")).unwrap();
    for (i, value) in [("a", 9.0), ("b", 9.0), ("c", 1.0)] {
        bench.g(i).set(value);
    }
    bench.at(0.5);
    bench.g("d").set(9.0);
    bench.at(1.0);
    let status = right.status();
    assert_eq!(
        (
            status.firing,
            status.pending,
            status.inactive,
            status.clearing
        ),
        (2, 1, 1, 0)
    );
    assert_eq!(
        (status.state, status.series, status.ever_matched),
        (RuleState::Firing, 4, true)
    );
    assert_eq!((status.fired, status.resolved), (2, 0));
    let mut active: Vec<_> = status
        .active
        .iter()
        .map(|g| (g.labels[0].1.as_str(), g.state))
        .collect();
    active.sort_unstable();
    let (firing, pending) = (RuleState::Firing, RuleState::Pending);
    assert_eq!(active, [("a", firing), ("b", firing), ("d", pending)]);
    bench.bus.remove("g").unwrap();
    let status = right.status();
    assert_eq!(
        (status.series, status.ever_matched, status.resolved),
        (0, true, 2)
    );
    assert!(status.active.is_empty());
    let status = typo.status();
    assert_eq!(
        (status.series, status.ever_matched, status.state),
        (0, false, RuleState::Inactive)
    );
}
