//! `rule_evaluation_*`: a mutation under one rule, beside the same one under none. `rules_10k`: 10 000 rules about 10 000
//! series.
//!
//! The mutations, each with the subject under a rule to which nobody is subscribed:
//!
//! | entry | the rule | floor | peer |
//! |---|---|---|---|
//! | `quiet` | a threshold that is never crossed | `swap(AcqRel)` | no rule |
//! | `ten` | ten of them | `swap(AcqRel)` | no rule |
//! | `stale` | stale after 30 s, on a counter | `fetch_add(AcqRel)` | no rule |
//! | `crossed` | a threshold that every mutation crosses: an alert each | no rule | `on_threshold`, inline |
//! | `held` | the same with a hold: pending, inactive, and so on | no rule | `on_threshold`, inline |
//! | `ratio` | a ratio of two gauges, never crossed | no rule | a lock, a division, a comparison |
//! | `sum` | a sum over 1 000 gauges, never crossed | no rule | a lock, an addition, a comparison |
//!
//! `rules_10k`, with 10 000 rules about one gauge of a family each, and one about any of them:
//!
//! - Subject: setting a gauge that has a rule, and stays quiet.
//! - Floor: setting a gauge of an empty bus.
//! - Peer: setting a gauge on the same bus that no rule is about.
//! - Also shown: what it takes to add and to remove a rule, the memory of one, what it takes to make and to remove a
//!   series among them, and what a tick of windows takes.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use metricbus::{
    Clock, Condition, Counter, Desc, Expr, Family, Gauge, MetricBus, Rule, Subscription, Threshold,
};

use crate::{
    Failure,
    harness::{Effort, Lane, Role, Rounds, Values, interleave},
    memory,
    report::{Bar, Figures, Unit},
    stats::quantile,
};

const OVER: f64 = 0.95;
const UNDER: f64 = 0.1;

fn busy() -> Threshold {
    Threshold::above(0.9).clear_below(0.5)
}

fn never() -> Threshold {
    Threshold::above(1e9).clear_below(1e8)
}

/// A metric under rules.
struct Ruled<M> {
    metric: M,
    _bus: MetricBus,
    _subscription: Option<Subscription>,
}

fn ruled<M>(
    bus: MetricBus,
    metric: M,
    rules: impl IntoIterator<Item = Rule>,
) -> Result<Ruled<M>, Failure> {
    for rule in rules {
        bus.add_rule(rule)?;
    }
    Ok(Ruled {
        metric,
        _bus: bus,
        _subscription: None,
    })
}

fn gauge(rules: impl IntoIterator<Item = Rule>) -> Result<Ruled<Gauge>, Failure> {
    let bus = MetricBus::new();
    let gauge = bus.gauge("kv", "Share of KV blocks in use.")?;
    ruled(bus, gauge, rules)
}

/// With the nanoseconds that rules add, the median over the rounds.
fn figures(
    name: &'static str,
    rounds: Rounds,
    without: Role,
    bar: Bar,
) -> Result<Figures, Failure> {
    let samples = |role| {
        let (_, samples) = rounds.lane(role).ok_or("a lane is missing")?;
        Ok::<_, Failure>(samples)
    };
    let pairs = samples(Role::Subject)?.iter().zip(samples(without)?);
    let added: Vec<f64> = pairs.map(|(with, without)| with - without).collect();
    let mut figures = Figures::new(name, Unit::Ns, rounds, bar);
    if let Some(added) = quantile(&added, 0.5) {
        figures.more("added_ns", added);
    }
    Ok(figures)
}

pub(crate) fn quiet(effort: Effort) -> Result<Figures, Failure> {
    let rule = Rule::new("Never", Condition::when("kv", never()));
    beside_a_swap("rule_evaluation_quiet", effort, [rule].into())
}

pub(crate) fn ten(effort: Effort) -> Result<Figures, Failure> {
    let rules = (0..10).map(|i| {
        let bound = 10.0 + f64::from(i);
        let threshold = Threshold::above(bound).clear_below(bound - 1.0);
        Rule::new(format!("Over{bound}"), Condition::when("kv", threshold))
    });
    beside_a_swap("rule_evaluation_ten", effort, rules.collect())
}

fn beside_a_swap(name: &'static str, effort: Effort, rules: Vec<Rule>) -> Result<Figures, Failure> {
    let values = &Values::unit();
    let set = |g: &Ruled<Gauge>, i: usize| g.metric.set(values.get(i));
    let lanes = &mut [
        Lane::of(Role::Subject, "metricbus", gauge(rules)?, set),
        Lane::of(
            Role::Floor,
            "swap(AcqRel)",
            Arc::new(AtomicU64::new(0)),
            |a: &Arc<AtomicU64>, i| {
                a.swap(values.get(i).to_bits(), Ordering::AcqRel);
            },
        ),
        Lane::of(Role::Peer, "no rule", gauge([])?, set),
    ];
    let rounds = interleave(effort.fast(), lanes)?;
    figures(name, rounds, Role::Peer, Bar::Floor(1.2))
}

pub(crate) fn stale(effort: Effort) -> Result<Figures, Failure> {
    let counter = |rules| {
        let bus = MetricBus::new();
        let counter = bus.counter("tokens_total", "Tokens made.")?;
        ruled::<Counter>(bus, counter, rules)
    };
    let rule = Rule::new(
        "Silent",
        Condition::stale("tokens_total", Duration::from_secs(30)),
    );
    let inc = |c: &Ruled<Counter>, _: usize| c.metric.inc();
    let lanes = &mut [
        Lane::of(Role::Subject, "metricbus", counter(Some(rule))?, inc),
        Lane::of(
            Role::Floor,
            "fetch_add(AcqRel)",
            Arc::new(AtomicU64::new(0)),
            |a: &Arc<AtomicU64>, _| {
                a.fetch_add(1, Ordering::AcqRel);
            },
        ),
        Lane::of(Role::Peer, "no rule", counter(None)?, inc),
    ];
    let rounds = interleave(effort.fast(), lanes)?;
    figures("rule_evaluation_stale", rounds, Role::Peer, Bar::Floor(1.2))
}

pub(crate) fn crossed(effort: Effort) -> Result<Figures, Failure> {
    let rule = Rule::new("Full", Condition::when("kv", busy()));
    crossing("rule_evaluation_crossed", effort, rule)
}

pub(crate) fn held(effort: Effort) -> Result<Figures, Failure> {
    let rule = Rule::new("Full", Condition::when("kv", busy())).hold_for(Duration::from_secs(60));
    crossing("rule_evaluation_held", effort, rule)
}

fn crossing(name: &'static str, effort: Effort, rule: Rule) -> Result<Figures, Failure> {
    let mut subscribed = gauge([])?;
    let on_threshold = subscribed._bus.on_threshold(&subscribed.metric, busy());
    subscribed._subscription = Some(on_threshold.inline(|_| {})?);
    let flip = |g: &Ruled<Gauge>, i: usize| {
        g.metric.set(if i.is_multiple_of(2) { OVER } else { UNDER });
    };
    let ours = gauge([rule])?;
    // The first hold starts the clock's thread, which takes as long as a round.
    flip(&ours, 0);
    flip(&ours, 1);
    let lanes = &mut [
        Lane::of(Role::Subject, "metricbus", ours, flip),
        Lane::of(Role::Floor, "no rule", gauge([])?, flip),
        Lane::of(Role::Peer, "on_threshold, inline", subscribed, flip),
    ];
    let rounds = interleave(effort.fast(), lanes)?;
    figures(name, rounds, Role::Floor, Bar::None)
}

/// What a rule about several series takes at least: what it knows of the others, under a lock.
struct ByHand {
    gauge: Gauge,
    /// Of all others.
    known: Mutex<(f64, bool)>,
}

impl ByHand {
    fn set(&self, value: f64, judge: impl FnOnce(f64, f64) -> bool) {
        if let Ok(mut known) = self.known.lock() {
            self.gauge.set(value);
            known.1 = judge(value, known.0);
        }
    }
}

fn by_hand(known: f64) -> Result<ByHand, Failure> {
    Ok(ByHand {
        gauge: MetricBus::new().gauge("kv", "Share of KV blocks in use.")?,
        known: Mutex::new((known, false)),
    })
}

pub(crate) fn ratio(effort: Effort) -> Result<Figures, Failure> {
    let bus = MetricBus::new();
    let used = bus.gauge("blocks_used", "Blocks in use.")?;
    bus.gauge("blocks", "Blocks there are.")?.set(100.0);
    let share = Expr::value("blocks_used") / Expr::value("blocks");
    let ours = ruled(
        bus,
        used,
        [Rule::new("Full", Condition::when(share, never()))],
    )?;
    computed("rule_evaluation_ratio", effort, ours, |value, of| {
        value / of > 1e9
    })
}

pub(crate) fn sum(effort: Effort) -> Result<Figures, Failure> {
    let bus = MetricBus::new();
    let all = workers(&bus, 1_000)?;
    for i in 0..1_000 {
        one(&all, i)?.set(1.0);
    }
    let first = one(&all, 0)?;
    let sum = Expr::sum("kv");
    let ours = ruled(
        bus,
        first,
        [Rule::new("Much", Condition::when(sum, never()))],
    )?;
    computed("rule_evaluation_sum", effort, ours, |value, others| {
        value + others > 1e9
    })
}

fn computed(
    name: &'static str,
    effort: Effort,
    ours: Ruled<Gauge>,
    judge: fn(f64, f64) -> bool,
) -> Result<Figures, Failure> {
    let values = &Values::unit();
    let set = |g: &Ruled<Gauge>, i: usize| g.metric.set(values.get(i));
    let lanes = &mut [
        Lane::of(Role::Subject, "metricbus", ours, set),
        Lane::of(Role::Floor, "no rule", gauge([])?, set),
        Lane::of(
            Role::Peer,
            "lock and compute",
            by_hand(100.0)?,
            |hand: &ByHand, i| hand.set(values.get(i), judge),
        ),
    ];
    let rounds = interleave(effort.fast(), lanes)?;
    figures(name, rounds, Role::Floor, Bar::None)
}

fn workers(bus: &MetricBus, most: usize) -> Result<Family<Gauge>, Failure> {
    let desc = Desc::new("kv", "Share of KV blocks in use.")
        .labels(["worker"])
        .series_max(most);
    Ok(bus.family::<Gauge>(desc)?)
}

fn one(family: &Family<Gauge>, i: usize) -> Result<Gauge, Failure> {
    Ok(family.with_label_values(&[i.to_string()])?)
}

/// Nanoseconds for each of so many.
fn each(n: usize, mut f: impl FnMut(usize) -> Result<(), Failure>) -> Result<f64, Failure> {
    let start = Instant::now();
    for i in 0..n {
        f(i)?;
    }
    Ok(start.elapsed().as_nanos() as f64 / n as f64)
}

/// A series of a worker comes and goes: nanoseconds for each, from `from` on.
fn come_and_go(family: &Family<Gauge>, from: usize, n: usize) -> Result<(f64, f64), Failure> {
    let born = each(n, |i| one(family, from + i).map(drop))?;
    let gone = each(n, |i| {
        family.remove(&[(from + i).to_string()])?;
        Ok(())
    })?;
    Ok((born, gone))
}

pub(crate) fn ten_thousand(effort: Effort) -> Result<Figures, Failure> {
    let many = effort.pick(1_000, 10_000);
    let newborn = effort.pick(100, 2_000);
    let about = |i: usize| {
        let condition = Condition::when(format!(r#"kv{{worker="{i}"}}"#), never());
        Rule::new(format!("Full{i}"), condition)
    };

    let bus = MetricBus::new();
    let family = workers(&bus, 2 * many + newborn)?;
    for i in 0..many {
        one(&family, i)?.set(0.5);
    }
    let outside = bus.gauge("queue_depth", "Requests waiting.")?;
    bus.add_rule(Rule::new("Any", Condition::when("kv", never())).any())?;
    let mut add = 0.0;
    let bytes = memory::in_use_after(|| {
        add = each(many, |i| {
            bus.add_rule(about(i))?;
            Ok(())
        })?;
        Ok(())
    })?;

    let empty = MetricBus::new();
    let alone = workers(&empty, 2 * many + newborn)?;
    for i in 0..many {
        one(&alone, i)?.set(0.5);
    }
    // No rule is about one of these workers alone; the one about any hears of them.
    let (born, gone) = come_and_go(&family, many, newborn)?;
    let (born_alone, gone_alone) = come_and_go(&alone, many, newborn)?;

    let values = &Values::unit();
    let set = |g: &Gauge, i: usize| g.set(values.get(i));
    let lanes = &mut [
        Lane::of(Role::Subject, "with a rule", one(&family, many / 2)?, set),
        Lane::of(Role::Floor, "empty bus", one(&alone, many / 2)?, set),
        Lane::of(Role::Peer, "no rule", outside, set),
    ];
    let rounds = interleave(effort.fast(), lanes)?;

    let remove = each(many, |i| {
        if bus.remove_rule(&format!("Full{i}")) {
            Ok(())
        } else {
            Err("a rule has gone".into())
        }
    })?;
    let mut figures = Figures::new("rules_10k", Unit::Ns, rounds, Bar::Floor(1.1));
    let (ticks_many, ticks_one) = (ticks(effort, true)?, ticks(effort, false)?);
    for (name, figure) in [
        ("rule_added_ns", add),
        ("rule_removed_ns", remove),
        ("rule_bytes", bytes as f64 / many as f64),
        ("series_born_ns", born),
        ("series_born_on_an_empty_bus_ns", born_alone),
        ("series_removed_ns", gone),
        ("series_removed_on_an_empty_bus_ns", gone_alone),
        ("tick_of_1000_window_rules_ns", ticks_many),
        ("tick_of_a_window_rule_about_1000_series_ns", ticks_one),
    ] {
        figures.more(name, figure);
    }
    Ok(figures)
}

/// What a tick takes with 1 000 gauges that are set all the time, each with a window of 10 s of which a rule takes the
/// average: a rule for each, or one for all of them. Virtual time, so that it happens in this thread.
fn ticks(effort: Effort, each_its_own: bool) -> Result<f64, Failure> {
    const SERIES: usize = 1_000;
    const SLOT: Duration = Duration::from_millis(100);
    let clock = Clock::manual();
    let bus = MetricBus::builder().clock(clock.clone()).build();
    let family = workers(&bus, SERIES)?;
    let gauges = (0..SERIES).map(|i| one(&family, i));
    let gauges = gauges.collect::<Result<Vec<_>, _>>()?;
    let rule = |name: String, selector: String| {
        let over = Expr::over(selector, 100 * SLOT).avg();
        bus.add_rule(Rule::new(name, Condition::when(over, never())))
    };
    if each_its_own {
        for i in 0..SERIES {
            rule(format!("Full{i}"), format!(r#"kv{{worker="{i}"}}"#))?;
        }
    } else {
        rule("Full".into(), "kv".into())?;
    }
    let values = Values::unit();
    let mut took = Vec::new();
    for round in 0..effort.pick(110, 160) {
        for (i, gauge) in gauges.iter().enumerate() {
            gauge.set(values.get(round * SERIES + i));
        }
        let start = Instant::now();
        clock.advance(SLOT);
        took.push(start.elapsed().as_nanos() as f64);
    }
    // Once all slots are full.
    quantile(&took[100..], 0.5).ok_or_else(|| "no tick".into())
}
