//! Rules under real threads.
//!
//! Goal: whatever the threads do, at rest a rule's state agrees with the values, its alerts have no gap and alternate,
//! and rules that come, change and go disturb no other. Method: storms without any order imposed, then a look at what
//! was told; and a replay of each thread's own series through an undisturbed rule.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use metricbus::{
    Alert, AlertCause, Clock, Condition, Delta, Desc, Expr, Family, Gauge, LiveRule, MetricBus,
    Rule, Threshold,
};

/// Enough for threads to meet at every step, and over within a second or two.
const ROUNDS: u32 = 12;
const STEPS: u32 = 600;
const THREADS: u64 = 3;

type Pairs = Vec<(String, String)>;

fn bus() -> (MetricBus, Clock, Family<Gauge>) {
    let clock = Clock::manual();
    let bus = MetricBus::builder().clock(clock.clone()).build();
    let family = bus
        .family(Desc::new("g", "Of a test.").labels(["i"]))
        .unwrap();
    (bus, clock, family)
}

/// A small generator (Marsaglia's xorshift), so that each thread goes its own way.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }
}

fn by_group(history: &[Alert]) -> BTreeMap<Pairs, Vec<&Alert>> {
    let mut groups: BTreeMap<Pairs, Vec<&Alert>> = BTreeMap::new();
    for alert in history {
        groups.entry(alert.group.to_vec()).or_default().push(alert);
    }
    groups
}

/// No gap in the epochs; firing and resolved alternate, and with levels no level follows itself.
fn check_sequence(history: &[Alert]) {
    for (group, alerts) in by_group(history) {
        let mut before: Option<&Alert> = None;
        for (i, alert) in alerts.into_iter().enumerate() {
            assert_eq!(alert.epoch, i as u64 + 1, "{group:?}: {alert:?}");
            let same = before.map_or(!alert.is_firing(), |before| {
                (before.is_firing(), &before.level) == (alert.is_firing(), &alert.level)
            });
            assert!(!same, "{group:?}: {before:?} then {alert:?}");
            if let Some(before) = before {
                assert_eq!(alert.previous_level, before.level, "{group:?}");
            }
            before = Some(alert);
        }
    }
}

fn fires(rule: &LiveRule, group: &Pairs) -> bool {
    let history = rule.history();
    let last = history.iter().rev().find(|a| a.group.to_vec() == *group);
    last.is_some_and(Alert::is_firing)
}

fn label(i: u64) -> Pairs {
    vec![("i".to_owned(), i.to_string())]
}

/// `threads` threads at once, each with a generator of its own.
fn storm(round: u32, act: impl Fn(&mut Random) + Sync) {
    thread::scope(|scope| {
        for t in 0..THREADS {
            let act = &act;
            scope.spawn(move || {
                let mut random = Random::new(u64::from(round) * 64 + t + 1);
                for _ in 0..STEPS {
                    act(&mut random);
                }
            });
        }
    });
}

fn above() -> Condition {
    Condition::when("g", Threshold::above(5.0))
}

#[test]
fn at_rest_the_state_of_each_kind_of_group_agrees_with_the_values() {
    let (bus, _, family) = bus();
    let series: Vec<Gauge> = (0..4)
        .map(|i| family.with_label_values(&[i.to_string()]).unwrap())
        .collect();
    for gauge in &series {
        gauge.set(0.0);
    }
    let add = |rule: Rule| bus.add_rule(rule.history(1 << 20)).unwrap();
    let each = add(Rule::new("each", above()));
    let any = add(Rule::new("any", above()).any());
    let all = add(Rule::new("all", above()).all());
    let two = add(Rule::new("two", above()).at_least(2));
    let sum = add(Rule::new(
        "sum",
        Condition::when(Expr::sum("g"), Threshold::above(20.0)),
    ));
    let most = add(Rule::new(
        "most",
        Condition::when(Expr::max("g"), Threshold::above(9.0)),
    ));
    let levels = add(Rule::levels(
        "levels",
        [
            ("warn", above()),
            ("critical", Condition::when("g", Threshold::above(8.0))),
        ],
    ));
    let share = Expr::value("g") / Expr::max("g");
    let share = add(Rule::new(
        "share",
        Condition::when(share, Threshold::at_least(1.0)),
    ));
    let moved = add(Rule::new(
        "moved",
        Condition::moved("g", Delta::absolute(5.0)),
    ));
    for round in 0..ROUNDS {
        storm(round, |random| {
            let gauge = &series[random.below(4) as usize];
            // From 1: the share of 0 is no data.
            gauge.set(1.0 + random.below(10) as f64);
        });
        let values: Vec<f64> = series.iter().map(|g| g.get().unwrap()).collect();
        let over = values.iter().filter(|v| **v > 5.0).count();
        let max = values.iter().copied().fold(0.0, f64::max);
        let none = Vec::new();
        for (i, value) in values.iter().enumerate() {
            let group = label(i as u64);
            assert_eq!(fires(&each, &group), *value > 5.0, "each {i}: {values:?}");
            assert_eq!(
                fires(&share, &group),
                *value == max,
                "share {i}: {values:?}"
            );
            assert!(!fires(&moved, &group));
            let history = levels.history();
            let last = history.iter().rev().find(|a| a.group.to_vec() == group);
            let level = last.and_then(|a| a.level.as_deref());
            let right = match *value {
                v if v > 8.0 => Some("critical"),
                v if v > 5.0 => Some("warn"),
                _ => None,
            };
            assert_eq!(level, right, "levels {i}: {values:?}");
        }
        assert_eq!(fires(&any, &none), over >= 1, "any: {values:?}");
        assert_eq!(fires(&all, &none), over == 4, "all: {values:?}");
        assert_eq!(fires(&two, &none), over >= 2, "two: {values:?}");
        assert_eq!(
            fires(&sum, &none),
            values.iter().sum::<f64>() > 20.0,
            "sum: {values:?}"
        );
        assert_eq!(fires(&most, &none), max > 9.0, "most: {values:?}");
    }
    for rule in [each, any, all, two, sum, most, levels, share, moved] {
        assert!(!rule.history().is_empty(), "{}", rule.name());
        check_sequence(&rule.history());
    }
}

#[test]
fn at_rest_no_series_that_came_and_went_is_forgotten_or_left_behind() {
    let (bus, _, family) = bus();
    let add = |rule: Rule| bus.add_rule(rule.history(1 << 20)).unwrap();
    let each = add(Rule::new("each", above()));
    let any = add(Rule::new("any", above()).any());
    let all = add(Rule::new("all", above()).all());
    let sum = add(Rule::new(
        "sum",
        Condition::when(Expr::sum("g"), Threshold::above(12.0)),
    ));
    let count = add(Rule::new(
        "count",
        Condition::when(Expr::count("g"), Threshold::at_least(3.0)),
    ));
    let gone = add(Rule::new(
        "gone",
        Condition::gone("g", Duration::from_secs(1_000_000)),
    ));
    for round in 0..ROUNDS {
        storm(round, |random| {
            let i = random.below(5).to_string();
            match random.below(6) {
                0 => drop(family.remove(&[i])),
                1 => drop(family.with_label_values(&[i])),
                _ => family
                    .with_label_values(&[i])
                    .unwrap()
                    .set(random.below(10) as f64),
            }
        });
        // A gauge that was made and never set has no value: give each one.
        let live: BTreeMap<Pairs, f64> = family
            .series()
            .into_iter()
            .map(|series| {
                let i = series.label("i").unwrap();
                let gauge = family.with_label_values(&[i]).unwrap();
                gauge.inc();
                (series.labels(), gauge.get().unwrap())
            })
            .collect();
        for i in 0..5 {
            let group = label(i);
            let over = live.get(&group).is_some_and(|v| *v > 5.0);
            assert_eq!(fires(&each, &group), over, "{i}: {live:?}");
            // Each of the five was there at some time.
            assert_eq!(
                fires(&gone, &group),
                !live.contains_key(&group),
                "{i}: {live:?}"
            );
        }
        let none = Vec::new();
        let over = live.values().filter(|v| **v > 5.0).count();
        assert_eq!(fires(&any, &none), over > 0, "{live:?}");
        assert_eq!(
            fires(&all, &none),
            over > 0 && over == live.len(),
            "{live:?}"
        );
        assert_eq!(
            fires(&sum, &none),
            live.values().sum::<f64>() > 12.0,
            "{live:?}"
        );
        assert_eq!(fires(&count, &none), live.len() >= 3, "{live:?}");
    }
    bus.remove("g").unwrap();
    for rule in [each, any, all, sum, count, gone] {
        let history = rule.history();
        check_sequence(&history);
        if rule.name() != "gone" {
            for (group, alerts) in by_group(&history) {
                assert!(!alerts.last().unwrap().is_firing(), "{group:?}");
            }
        }
    }
}

/// While a thread mutates, another lets time go on: holds and keeps end in between.
#[test]
fn holds_that_end_amid_mutations_alternate_and_agree_at_rest() {
    let (bus, clock, family) = bus();
    let series: Vec<Gauge> = (0..3)
        .map(|i| family.with_label_values(&[i.to_string()]).unwrap())
        .collect();
    let ms = Duration::from_millis;
    let rule = |name: &str| {
        Rule::new(name, above())
            .hold_for(ms(3))
            .keep_firing_for(ms(2))
            .history(1 << 20)
    };
    let each = bus.add_rule(rule("each")).unwrap();
    let any = bus.add_rule(rule("any").any()).unwrap();
    let slots = bus
        .add_rule(rule("slots").any().m_of_n(2, 3, ms(10)))
        .unwrap();
    for round in 0..ROUNDS {
        storm(round, |random| {
            if random.below(3) == 0 {
                clock.advance(ms(1));
            } else {
                series[random.below(3) as usize].set(random.below(10) as f64);
            }
        });
        clock.advance(ms(100));
        let values: Vec<f64> = series.iter().map(|g| g.get().unwrap()).collect();
        for (i, value) in values.iter().enumerate() {
            assert_eq!(fires(&each, &label(i as u64)), *value > 5.0, "{values:?}");
        }
        let over = values.iter().any(|v| *v > 5.0);
        assert_eq!(
            (fires(&any, &vec![]), fires(&slots, &vec![])),
            (over, over),
            "{values:?}"
        );
    }
    for rule in [each, any, slots] {
        let history = rule.history();
        check_sequence(&history);
        for alerts in by_group(&history).values() {
            for pair in alerts.windows(2) {
                assert!(pair[0].at <= pair[1].at, "{pair:?}");
            }
        }
    }
}

#[test]
fn what_an_inline_subscriber_hears_is_the_history() {
    let (bus, _, family) = bus();
    let rule = bus
        .add_rule(Rule::new("r", above()).history(1 << 20))
        .unwrap();
    let heard: [Arc<Mutex<Vec<Alert>>>; 2] = Default::default();
    let to = |i: usize| {
        let heard = heard[i].clone();
        move |alert: Alert| heard.lock().unwrap().push(alert)
    };
    let _of_rule = rule.on_alert().capacity(1 << 16).inline(to(0)).unwrap();
    let _of_all = bus.on_alert().capacity(1 << 16).inline(to(1)).unwrap();
    storm(0, |random| {
        let i = random.below(4).to_string();
        family
            .with_label_values(&[i])
            .unwrap()
            .set(random.below(10) as f64);
    });
    let history = rule.history();
    for heard in heard {
        let heard = heard.lock().unwrap();
        check_sequence(&heard);
        let texts =
            |alerts: Vec<&Alert>| alerts.iter().map(|a| format!("{a:?}")).collect::<Vec<_>>();
        let (heard, history) = (by_group(&heard), by_group(&history));
        assert_eq!(heard.len(), history.len());
        for (group, alerts) in heard {
            assert_eq!(texts(alerts), texts(history[&group].clone()), "{group:?}");
        }
    }
}

/// What one group was told, without what tells apart one run from another.
fn plain(rule: &LiveRule) -> BTreeMap<Pairs, Vec<(bool, Option<f64>, u64)>> {
    by_group(&rule.history())
        .into_iter()
        .map(|(group, alerts)| {
            let alerts = alerts.iter().map(|a| (a.is_firing(), a.value, a.epoch));
            (group, alerts.collect())
        })
        .collect()
}

#[test]
fn rules_that_come_change_and_go_disturb_no_other() {
    let steady = || {
        Rule::new(
            "steady",
            Condition::when("g", Threshold::above(5.0).clear_below(3.0)),
        )
        .history(1 << 20)
    };
    let steps = |series: u64| {
        let mut random = Random::new(series + 77);
        (0..4 * STEPS).map(move |_| random.below(10) as f64)
    };
    let (bus, _, family) = bus();
    let live = bus.add_rule(steady()).unwrap();
    let copy = bus
        .add_rule(
            Rule::new(
                "copy",
                Condition::when("g", Threshold::above(5.0).clear_below(3.0)),
            )
            .history(1 << 20),
        )
        .unwrap();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let mutators: Vec<_> = (0..THREADS)
            .map(|series| {
                let family = &family;
                scope.spawn(move || {
                    let gauge = family.with_label_values(&[series.to_string()]).unwrap();
                    for value in steps(series) {
                        gauge.set(value);
                    }
                })
            })
            .collect();
        for t in 0..2u64 {
            let (bus, live, over) = (&bus, &live, &over);
            scope.spawn(move || {
                let mut random = Random::new(t + 500);
                let mut n = 0;
                while !over.load(Ordering::Relaxed) || n < 200 {
                    n += 1;
                    let name = format!("other{}", random.below(4));
                    let bound = random.below(10) as f64;
                    let rule = Rule::new(&name, Condition::when("g", Threshold::above(bound)));
                    let rule = match random.below(3) {
                        0 => rule.any(),
                        1 => rule.all(),
                        _ => rule.hold_for(Duration::from_secs(1)),
                    };
                    match random.below(7) {
                        0 => drop(bus.add_rule(rule)),
                        1 | 2 => drop(bus.set_rule(rule).unwrap()),
                        3 => drop(bus.remove_rule(&name)),
                        4 => assert!(bus.rules().iter().any(|rule| rule.name() == "steady")),
                        5 => assert!(bus.rule("steady").is_some()),
                        // A change of words only: the state stays.
                        _ => live
                            .update(steady().annotation("bound", bound.to_string()))
                            .unwrap(),
                    }
                }
            });
        }
        for mutator in mutators {
            mutator.join().unwrap();
        }
        over.store(true, Ordering::Relaxed);
    });

    let (calm, _, family) = self::bus();
    let undisturbed = calm.add_rule(steady()).unwrap();
    for series in 0..THREADS {
        let gauge = family.with_label_values(&[series.to_string()]).unwrap();
        for value in steps(series) {
            gauge.set(value);
        }
    }
    assert_eq!(plain(&copy), plain(&undisturbed));
    assert_eq!(plain(&live), plain(&undisturbed));
    assert!(
        live.history()
            .iter()
            .all(|a| a.cause == AlertCause::Condition)
    );
    assert!(plain(&live).values().all(|alerts| alerts.len() > 100));
}

/// Every rule that is told to stay agrees with the values in the end, however often it was changed amid mutations.
#[test]
fn a_rule_changed_amid_mutations_agrees_with_the_values_at_rest() {
    let (bus, _, family) = bus();
    let gauge = family.with_label_values(&["0"]).unwrap();
    let of = |bound: u64| {
        Rule::new("r", Condition::when("g", Threshold::above(bound as f64))).history(1 << 20)
    };
    let rule = bus.add_rule(of(5)).unwrap();
    let last = Mutex::new(5);
    for round in 0..ROUNDS {
        storm(round, |random| {
            if random.below(4) == 0 {
                let mut last = last.lock().unwrap();
                *last = random.below(10);
                rule.update(of(*last)).unwrap();
            } else {
                gauge.set(random.below(10) as f64);
            }
        });
        let bound = *last.lock().unwrap() as f64;
        assert_eq!(fires(&rule, &label(0)), gauge.get().unwrap() > bound);
    }
    check_sequence(&rule.history());
}

#[test]
fn a_rule_added_amid_mutations_agrees_with_the_values_at_rest() {
    for round in 0..4 * ROUNDS {
        let (bus, _, family) = bus();
        let series: Vec<Gauge> = (0..3)
            .map(|i| family.with_label_values(&[i.to_string()]).unwrap())
            .collect();
        let rules = thread::scope(|scope| {
            for t in 0..2u64 {
                let series = &series;
                scope.spawn(move || {
                    let mut random = Random::new(u64::from(round) * 8 + t);
                    for _ in 0..STEPS / 6 {
                        series[random.below(3) as usize].set(random.below(10) as f64);
                    }
                });
            }
            let bus = &bus;
            let adder = scope.spawn(move || {
                let add = |rule: Rule| bus.add_rule(rule.history(1 << 20)).unwrap();
                let both = above() & Condition::when(Expr::sum("g"), Threshold::above(12.0));
                (
                    add(Rule::new("each", above())),
                    add(Rule::new("any", above()).any()),
                    add(Rule::new("both", both)),
                )
            });
            adder.join().unwrap()
        });
        let values: Vec<f64> = series.iter().map(|g| g.get().unwrap()).collect();
        let sum = values.iter().sum::<f64>();
        for (i, value) in values.iter().enumerate() {
            let group = label(i as u64);
            assert_eq!(fires(&rules.0, &group), *value > 5.0, "{values:?}");
            assert_eq!(
                fires(&rules.2, &group),
                *value > 5.0 && sum > 12.0,
                "{values:?}"
            );
        }
        assert_eq!(
            fires(&rules.1, &vec![]),
            values.iter().any(|v| *v > 5.0),
            "{values:?}"
        );
        for rule in [&rules.0, &rules.1, &rules.2] {
            check_sequence(&rule.history());
        }
    }
}
