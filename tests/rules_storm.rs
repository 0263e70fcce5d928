//! Everything at once, under real threads: rules of all kinds come, change and go, series too, subscribers, scrapes,
//! derived gauges, time.
//!
//! Goal: it ends (nobody waits for somebody who waits), and at rest what the steady rules say agrees with the values.
//! A watchdog ends the process with a message where it does not.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{
        Barrier,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use metricbus::{
    Alert, Buckets, Clock, Condition, Counter, Delta, Desc, Expr, Family, Gauge, Histogram,
    LiveRule, MetricBus, Rule, Threshold,
};

/// As many steps as make threads meet at every place, and end within seconds.
const STEPS: u32 = 1_500;
const WORKERS: u64 = 4;
/// Many times what it takes.
const PATIENCE: Duration = Duration::from_secs(180);

/// Ends the process unless it is dropped in time: a thread that waits for ever cannot be ended otherwise.
struct Watchdog(#[allow(dead_code)] mpsc::Sender<()>);

fn watchdog(of: &'static str) -> Watchdog {
    let (tx, rx) = mpsc::channel::<()>();
    thread::spawn(move || {
        if rx.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
            eprintln!("{of}: not over after {PATIENCE:?}: threads wait for each other");
            std::process::abort();
        }
    });
    Watchdog(tx)
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

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

struct Metrics {
    used: Family<Gauge>,
    size: Family<Gauge>,
    served: Family<Counter>,
    took: Family<Histogram>,
}

impl Metrics {
    fn of(bus: &MetricBus) -> Metrics {
        Metrics {
            used: bus
                .family(Desc::new("used", "Of a test.").labels(["i", "half"]))
                .unwrap(),
            size: bus
                .family(Desc::new("size", "Of a test.").labels(["i", "half"]))
                .unwrap(),
            served: bus
                .family(Desc::new("served_total", "Of a test.").labels(["i"]))
                .unwrap(),
            took: bus
                .family(
                    Desc::new("took_seconds", "Of a test.")
                        .labels(["i"])
                        .buckets(Buckets::default()),
                )
                .unwrap(),
        }
    }

    fn step(&self, bus: &MetricBus, random: &mut Random) {
        let i = random.below(WORKERS);
        let half = (i % 2).to_string();
        let i = i.to_string();
        let value = 1.0 + random.below(10) as f64;
        match random.below(24) {
            0 => drop(self.used.remove(&[&i, &half])),
            1 => drop(self.size.remove(&[&i, &half])),
            2 => drop(bus.remove("limit")),
            3 => drop(bus.remove(format!("{{i=\"{i}\"}}"))),
            4 => drop(self.took.remove(&[&i])),
            5 | 6 => bus.gauge("limit", "Of a test.").unwrap().set(value),
            7..10 => self
                .size
                .with_label_values(&[&i, &half])
                .unwrap()
                .set(value),
            10..14 => self.served.with_label_values(&[&i]).unwrap().inc(),
            14..17 => self.took.with_label_values(&[&i]).unwrap().observe(value),
            _ => self
                .used
                .with_label_values(&[&i, &half])
                .unwrap()
                .set(value),
        }
    }
}

fn above(bound: f64) -> Threshold {
    Threshold::above(bound)
}

fn used() -> Condition {
    Condition::when("used", above(5.0))
}

fn limited() -> Expr {
    Expr::value("used") / Expr::value("limit")
}

/// A rule of any kind.
fn any_rule(name: String, random: &mut Random) -> Rule {
    let when = |expr: Expr| Condition::when(expr, above(2.0));
    let condition = match random.below(14) {
        0 => used(),
        1 => when(Expr::value("used") / Expr::value("size")),
        2 => when(limited()),
        3 => when(Expr::sum("used").by(["half"])),
        4 => when(Expr::max("used") - Expr::min("size")),
        5 => when(Expr::over("used", ms(100)).avg()),
        6 => when(Expr::rate("served_total", ms(200))),
        7 => when(Expr::over("took_seconds", ms(300)).merged().quantile(0.9)),
        8 => when(Expr::value("used").ewma(ms(50))),
        9 => Condition::stale("used", ms(10)),
        10 => Condition::gone(r#"{i="1"}"#, ms(30)),
        11 => Condition::moved("used", Delta::absolute(3.0)),
        12 => !used() & Condition::when("size", above(3.0)) | Condition::changed("limit"),
        _ => when(Expr::value(r#"used{i="0"}"#) + Expr::value("used")),
    };
    let levels = [
        ("low", used()),
        ("high", Condition::when("used", above(8.0))),
    ];
    let rule = match random.below(6) {
        0 => Rule::levels(name, levels),
        _ => Rule::new(name, condition),
    };
    let rule = match random.below(6) {
        0 => rule.any(),
        1 => rule.any().by(["half"]),
        2 => rule.all(),
        3 => rule.at_least(2),
        _ => rule,
    };
    match random.below(6) {
        0 => rule.hold_for(ms(5)),
        1 => rule.keep_firing_for(ms(5)),
        2 => rule.m_of_n(2, 3, ms(10)),
        3 => rule.hold_for(ms(3)).keep_firing_for(ms(2)).dry_run(true),
        _ => rule,
    }
}

fn name(random: &mut Random) -> String {
    format!("rule{}", random.below(5))
}

/// Rules come, change and go.
fn govern(bus: &MetricBus, random: &mut Random) {
    let rule = any_rule(name(random), random);
    match random.below(8) {
        0 => drop(bus.add_rule(rule)),
        1..4 => drop(bus.set_rule(rule).unwrap()),
        4 | 5 => drop(bus.remove_rule(rule.name())),
        6 => {
            if let Some(live) = bus.rule(rule.name()) {
                let _ = live.update(rule);
            }
        }
        _ => {
            let other = bus
                .rules()
                .into_iter()
                .find(|r| r.name().starts_with("rule"));
            other.map(LiveRule::remove);
        }
    }
}

/// Subscribers come and go; some of what they call goes back to the bus.
fn subscribe(bus: &MetricBus, heard: &Counter, random: &mut Random) {
    let (back, heard) = (bus.clone(), heard.clone());
    let seed = random.below(1 << 40);
    let mut calls = 0;
    let call = move |alert: Alert| {
        heard.inc();
        calls += 1;
        match (seed + calls) % 16 {
            0 => drop(back.rule(&alert.rule).map(|rule| rule.status())),
            1 => drop(back.remove_rule("rule0")),
            2 => drop(back.set_rule(Rule::new("rule1", used()))),
            3 => drop(back.rule(&alert.rule).map(|rule| rule.history())),
            _ => {}
        }
    };
    let own = format!("own{}", random.below(1 << 30));
    let listen = match random.below(3) {
        0 => bus.on_alert(),
        1 => bus.on_rule(any_rule(own, random)),
        _ => match bus.rule(&name(random)) {
            Some(rule) => rule.on_alert(),
            None => return,
        },
    };
    let listen = listen.capacity(1 + random.below(8) as usize);
    let subscription = match random.below(3) {
        0 => listen.call(call),
        1 => listen.inline(call),
        _ => return drop(listen.stream()),
    };
    if let Ok(subscription) = subscription {
        for _ in 0..random.below(8) {
            thread::yield_now();
        }
        let _ = subscription.stats();
    }
}

fn look(bus: &MetricBus, random: &mut Random) {
    match random.below(6) {
        0 => drop(bus.self_families()),
        1 => drop(bus.snapshot()),
        2 => {
            let mut text = String::new();
            write!(text, "{bus:?} {:?}", bus.rules()).unwrap();
        }
        3 => drop(bus.series("used")),
        _ => {
            for rule in bus.rules() {
                let status = rule.status();
                let groups = [status.pending, status.clearing, status.firing];
                assert_eq!(
                    status.active.len(),
                    groups.iter().sum::<usize>(),
                    "{status:?}"
                );
                let _ = rule.history();
            }
        }
    }
}

/// Subscriptions to values that meddle with rules from inside of a mutation.
fn meddle(bus: &MetricBus, random: &mut Random) {
    let back = bus.clone();
    let mut calls = 0;
    let subscription = bus.on_threshold("used", above(7.0)).inline(move |_| {
        calls += 1;
        match calls % 8 {
            0 => drop(back.set_rule(Rule::new("rule2", used()))),
            4 => drop(back.remove_rule("rule2")),
            _ => {}
        }
    });
    for _ in 0..random.below(8) {
        thread::yield_now();
    }
    drop(subscription);
}

/// What a rule said last of each group: whether it fires.
fn standing(rule: &LiveRule) -> BTreeMap<String, bool> {
    let history = rule.history();
    let text = |alert: &Alert| {
        let group: Vec<_> = alert
            .group
            .iter()
            .map(|(n, v)| format!("{n}={v}"))
            .collect();
        group.join(",")
    };
    history
        .iter()
        .map(|alert| (text(alert), alert.is_firing()))
        .collect()
}

fn firing(rule: &LiveRule) -> Vec<String> {
    let standing = standing(rule).into_iter();
    standing
        .filter(|(_, fires)| *fires)
        .map(|(group, _)| group)
        .collect()
}

/// No gap in the epochs; firing and resolved alternate, but for levels.
fn check_sequence(rule: &LiveRule) {
    let mut last: BTreeMap<String, (u64, bool)> = BTreeMap::new();
    for alert in rule.history() {
        let group = format!("{:?}", alert.group);
        let before = last.insert(group, (alert.epoch, alert.is_firing()));
        let (epoch, fired) = before.unwrap_or((0, false));
        assert_eq!(alert.epoch, epoch + 1, "{alert:?}");
        assert_ne!(alert.is_firing(), fired, "{alert:?}");
    }
}

/// Until it is so. What is late by a timer comes; what never comes the watchdog sees.
fn in_the_end(
    what: &str,
    mut advance: impl FnMut(),
    mut holds: impl FnMut() -> Result<(), String>,
) {
    // On a manual clock all is there at once, or never.
    let mut rounds = 0;
    loop {
        let Err(why) = holds() else { return };
        rounds += 1;
        if rounds == 4_000 {
            eprintln!("{what} (still): {why}");
        }
        advance();
    }
}

fn storm(clock: Clock, of: &'static str) {
    let _watchdog = watchdog(of);
    let bus = MetricBus::builder().clock(clock.clone()).build();
    let metrics = Metrics::of(&bus);
    let heard = bus.counter("heard_total", "Of a test.").unwrap();
    let steady = |name: &str, condition: Condition| Rule::new(name, condition).history(1 << 22);
    let ratio = Expr::value("used") / Expr::value("size");
    let rules = [
        steady("each", used()),
        steady("any", used()).any().by(["half"]),
        steady("ratio", Condition::when(ratio, above(1.0))),
        steady("limited", Condition::when(limited(), above(1.0))),
        steady(
            "halves",
            Condition::when(Expr::sum("used").by(["half"]), above(9.0)),
        ),
        steady("all", Condition::when(Expr::sum("used"), above(20.0))),
        steady("shown", Condition::when("limited", above(1.0))),
        steady(
            "window",
            Condition::when(Expr::over("used", ms(100)).max(), above(5.0)),
        ),
        steady("held", used())
            .hold_for(ms(2))
            .keep_firing_for(ms(1)),
    ];
    let rules = rules.map(|rule| bus.add_rule(rule).unwrap());
    let derived = bus
        .derive(Desc::new("limited", "Of a test."), limited())
        .unwrap();

    let (busy, steps) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let (bus, metrics, heard, clock) = (&bus, &metrics, &heard, &clock);
        let (busy, over) = (&busy, &steps);
        let act = |seed: u64, steps: u32, act: &'static (dyn Fn(&MetricBus, &Metrics, &Counter, &mut Random) + Sync)| {
            busy.fetch_add(1, Ordering::SeqCst);
            scope.spawn(move || {
                let mut random = Random::new(seed);
                for _ in 0..steps {
                    act(bus, metrics, heard, &mut random);
                }
                busy.fetch_sub(1, Ordering::SeqCst);
            });
        };
        act(1, 20 * STEPS, &|bus, metrics, _, random| {
            metrics.step(bus, random)
        });
        act(2, 20 * STEPS, &|bus, metrics, _, random| {
            metrics.step(bus, random)
        });
        act(3, STEPS, &|bus, _, _, random| govern(bus, random));
        act(4, STEPS, &|bus, _, _, random| govern(bus, random));
        act(5, STEPS, &|bus, _, heard, random| {
            subscribe(bus, heard, random)
        });
        act(6, STEPS, &|bus, _, _, random| meddle(bus, random));
        act(7, STEPS / 2, &|bus, _, _, random| look(bus, random));
        act(8, STEPS / 4, &|bus, _, _, random| {
            let name = format!("derived{}", random.below(2));
            let expr = [
                limited(),
                Expr::sum("used").by(["half"]),
                Expr::value("limited") * 2.0,
            ];
            let expr = expr[random.below(3) as usize].clone();
            drop(bus.derive(Desc::new(name, "Of a test."), expr));
        });
        if clock.is_manual() {
            scope.spawn(move || {
                while busy.load(Ordering::SeqCst) > 0 {
                    clock.advance(ms(1));
                    thread::yield_now();
                }
                over.store(true, Ordering::SeqCst);
            });
        }
    });

    // All there, and each with a value that is not what it was.
    let mut values = BTreeMap::new();
    bus.gauge("limit", "Of a test.").unwrap().set(4.0);
    bus.gauge("limit", "Of a test.").unwrap().set(5.0);
    for i in 0..WORKERS {
        let half = (i % 2).to_string();
        let at = [i.to_string(), half.clone()];
        let (used, size) = (1.5 + 2.5 * i as f64, 4.5);
        metrics.used.with_label_values(&at).unwrap().set(used);
        metrics.size.with_label_values(&at).unwrap().set(size);
        values.insert(format!("half={half},i={i}"), used);
    }
    let advance = || {
        if clock.is_manual() {
            clock.advance(ms(1));
        } else {
            thread::yield_now();
        }
    };
    let over = |bound: f64| -> Vec<String> {
        let over = values.iter().filter(|(_, v)| **v > bound);
        let mut over: Vec<_> = over.map(|(k, _)| k.clone()).collect();
        over.sort();
        over
    };
    let half = |f: &dyn Fn(f64) -> bool| -> Vec<String> {
        let sums = [1.5 + 6.5, 4.0 + 9.0];
        let halves = sums.into_iter().enumerate().filter(|(_, sum)| f(*sum));
        halves.map(|(i, _)| format!("half={i}")).collect()
    };
    let expected = [
        over(5.0),
        vec!["half=0".to_owned(), "half=1".to_owned()],
        over(4.5),
        over(5.0),
        half(&|sum| sum > 9.0),
        vec![String::new()],
        over(5.0),
        over(5.0),
        over(5.0),
    ];
    for (rule, expected) in rules.iter().zip(&expected) {
        in_the_end(rule.name(), advance, || {
            let firing = firing(rule);
            if firing == *expected {
                return Ok(());
            }
            Err(format!("{firing:?} rather than {expected:?}"))
        });
    }
    for rule in &rules {
        check_sequence(rule);
        // What is shown agrees with what was told.
        let shown = rule.status();
        assert_eq!(
            shown.firing + shown.clearing,
            firing(rule).len(),
            "{shown:?}"
        );
    }
    drop(derived);
    for rule in rules {
        assert!(rule.remove());
    }
}

#[test]
fn on_a_manual_clock_it_ends_and_agrees_with_the_values() {
    storm(Clock::manual(), "on a manual clock");
}

#[test]
fn on_the_systems_clock_it_ends_and_agrees_with_the_values() {
    storm(Clock::system(), "on the system's clock");
}

/// A scrape, a new series and a new subscription meet.
#[test]
fn scrapes_do_not_wait_for_series_that_wait_for_subscriptions() {
    let _watchdog = watchdog("scrapes, series and subscriptions");
    let bus = MetricBus::builder()
        .clock(Clock::manual())
        .cardinality_limit(1 << 20)
        .build();
    let family: Family<Gauge> = bus
        .family(Desc::new("g", "Of a test.").labels(["i"]))
        .unwrap();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let (bus, family, over) = (&bus, &family, &over);
        for _ in 0..2 {
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    drop(bus.self_families());
                }
            });
        }
        scope.spawn(move || {
            while !over.load(Ordering::Relaxed) {
                drop(bus.on_change("other").stream());
            }
        });
        for i in 0..30 * STEPS {
            let i = (i % 64).to_string();
            family.with_label_values(&[&i]).unwrap().set(1.0);
            family.remove(&[&i]).unwrap();
        }
        over.store(true, Ordering::Relaxed);
    });
}

/// Series with their values come while a rule is being added: both kinds of operands, those with and without labels.
#[test]
fn a_rule_added_amid_new_series_knows_them_all() {
    let _watchdog = watchdog("rules added amid new series");
    for round in 0..2 * STEPS {
        let bus = MetricBus::builder().clock(Clock::manual()).build();
        let used: Family<Gauge> = bus
            .family(Desc::new("used", "Of a test.").labels(["i"]))
            .unwrap();
        let start = Barrier::new(2);
        let rule = thread::scope(|scope| {
            let (bus, used, start) = (&bus, &used, &start);
            scope.spawn(move || {
                start.wait();
                for i in 0..3 {
                    used.with_label_values(&[i.to_string()]).unwrap().set(10.0);
                }
                bus.gauge("limit", "Of a test.").unwrap().set(5.0);
                for i in 3..6 {
                    used.with_label_values(&[i.to_string()]).unwrap().set(10.0);
                }
            });
            start.wait();
            for _ in 0..round % 40 {
                std::hint::spin_loop();
            }
            bus.add_rule(Rule::new("r", Condition::when(limited(), above(1.0))))
                .unwrap()
        });
        let status = rule.status();
        assert_eq!(status.firing, 6, "round {round}: {status:?}");
        check_sequence(&rule);
    }
}

/// The bus may end in a thread that mutates, at any moment.
#[cfg(feature = "persist")]
#[test]
fn a_bus_that_ends_amid_alerts_holds_nobody_up() {
    let _watchdog = watchdog("a bus that ends");
    let folder = tempfile::tempdir().unwrap();
    for round in 0..2 * STEPS {
        let bus = MetricBus::builder().clock(Clock::manual()).build();
        let file = metricbus::RuleStateFile::new(folder.path().join("rules.json"));
        bus.keep_rule_state(file).unwrap();
        let gauge = bus.gauge("used", "Of a test.").unwrap();
        bus.add_rule(Rule::new("r", used())).unwrap();
        let start = std::sync::Arc::new(Barrier::new(2));
        let ends = {
            let start = start.clone();
            thread::spawn(move || {
                start.wait();
                for _ in 0..round % 60 {
                    std::hint::spin_loop();
                }
                drop(bus);
            })
        };
        start.wait();
        for i in 0..8 {
            gauge.set(f64::from(i % 2) * 10.0);
        }
        ends.join().unwrap();
    }
}

/// What a derived gauge looks at goes and comes back, in several threads at once.
#[test]
fn a_derived_gauge_shows_what_came_back_while_it_went() {
    let _watchdog = watchdog("derived gauges that come back");
    let bus = MetricBus::builder().clock(Clock::manual()).build();
    let family = |name: &str| -> Family<Gauge> {
        bus.family(Desc::new(name, "Of a test.").labels(["i"]))
            .unwrap()
    };
    let operands = [family("used"), family("size")];
    let more = Expr::sum("used").by(["i"]) + Expr::sum("size").by(["i"]);
    let either = Expr::max(r#"{__name__=~"used|size"}"#).by(["i"]);
    let _derived = [
        bus.derive(Desc::new("both", "Of a test."), more).unwrap(),
        bus.derive(Desc::new("most", "Of a test."), either).unwrap(),
    ];
    for round in 0..4 * STEPS {
        let start = Barrier::new(2);
        thread::scope(|scope| {
            for family in &operands {
                let start = &start;
                scope.spawn(move || {
                    start.wait();
                    for i in 0..2 {
                        family.with_label_values(&["0"]).unwrap().set(1.0);
                        family.remove(&["0"]).unwrap();
                        for _ in 0..(round + i) % 50 {
                            std::hint::spin_loop();
                        }
                    }
                    let value = 1.0 + f64::from(round);
                    family.with_label_values(&["0"]).unwrap().set(value);
                });
            }
        });
        let value = 1.0 + f64::from(round);
        for (name, right) in [("both", 2.0 * value), ("most", value)] {
            let shown = bus.series(name).unwrap();
            let shown: Vec<_> = shown.iter().map(|s| s.value().unwrap().as_f64()).collect();
            assert_eq!(shown, [right], "{name}, round {round}");
        }
    }
}
