//! Rules against a reference evaluator that was written from their documents.
//!
//! Goal: at whatever order of mutations, births, removals and moments, a rule tells what its documents say, to the tick.
//! Method: random rules and random histories on virtual time, through the engine and through `reference`; equal alerts
//! are expected for each group. `RULE_CASES` says how many histories each property is given.

mod reference;

use std::collections::BTreeMap;

use metricbus::{
    Buckets, Clock, Counter, Desc, Family, Gauge, Histogram, LiveRule, MetricBus, RuleState,
};
use proptest::prelude::*;
use reference::{
    Bounds, CHILDREN, Distance, E, Group, How, Id, Metric, Ms, Op, Over, Pairs, Reference, Spec,
    Stat, State, Test, Told, Word, ms,
};

/// Enough to see every kind of rule within seconds.
const CASES_DEFAULT: u32 = 200;

/// `share`: one history in so many, for the properties whose every history has hundreds of ticks.
fn config(share: u32) -> ProptestConfig {
    let cases = std::env::var("RULE_CASES").ok();
    let cases = cases.and_then(|text| text.parse().ok());
    ProptestConfig {
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..ProptestConfig::with_cases(cases.unwrap_or(CASES_DEFAULT) / share)
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Of a gauge, sets it; of a counter, adds; of a histogram, observes. Makes the series where it is not there.
    Mutate(Id, f64),
    Declare(Id),
    Remove(Id),
    /// In tens of milliseconds.
    Advance(Ms),
}

/// The same world, for real.
struct World {
    bus: MetricBus,
    clock: Clock,
    g: Family<Gauge>,
    h: Family<Gauge>,
    c: Family<Counter>,
    l: Family<Histogram>,
    u: Gauge,
}

impl World {
    fn new() -> World {
        let clock = Clock::manual();
        let bus = MetricBus::builder().clock(clock.clone()).build();
        let desc = |name: &str| Desc::new(name, "Of a test.").labels(["i", "pool"]);
        World {
            g: bus.family(desc("g")).unwrap(),
            h: bus.family(desc("h")).unwrap(),
            c: bus.family(desc("c_total")).unwrap(),
            l: bus
                .family(desc("l").buckets(Buckets::new([1.0, 5.0]).unwrap()))
                .unwrap(),
            u: bus.gauge("u", "Of a test.").unwrap(),
            clock,
            bus,
        }
    }

    fn mutate(&self, Id(metric, child): Id, amount: f64) {
        let (i, pool) = CHILDREN[child];
        let labels = [i, pool];
        match metric {
            Metric::G => self.g.with_label_values(&labels).unwrap().set(amount),
            Metric::H => self.h.with_label_values(&labels).unwrap().set(amount),
            Metric::C => self
                .c
                .with_label_values(&labels)
                .unwrap()
                .inc_by(amount as u64),
            Metric::L => self.l.with_label_values(&labels).unwrap().observe(amount),
            Metric::U => self.u.set(amount),
        }
    }

    fn declare(&self, Id(metric, child): Id) {
        let (i, pool) = CHILDREN[child];
        let labels = [i, pool];
        match metric {
            Metric::G => drop(self.g.with_label_values(&labels).unwrap()),
            Metric::H => drop(self.h.with_label_values(&labels).unwrap()),
            Metric::C => drop(self.c.with_label_values(&labels).unwrap()),
            Metric::L => drop(self.l.with_label_values(&labels).unwrap()),
            Metric::U => {}
        }
    }

    fn remove(&self, Id(metric, child): Id) {
        let (i, pool) = CHILDREN[child];
        let labels = [i, pool];
        match metric {
            Metric::G => self.g.remove(&labels).unwrap(),
            Metric::H => self.h.remove(&labels).unwrap(),
            Metric::C => self.c.remove(&labels).unwrap(),
            Metric::L => self.l.remove(&labels).unwrap(),
            Metric::U => false,
        };
    }

    /// The same in both worlds.
    fn take(&self, reference: &mut Reference, step: Step) {
        match step {
            Step::Mutate(id, amount) => {
                self.mutate(id, amount);
                reference.mutate(id, amount);
            }
            Step::Declare(id) => {
                self.declare(id);
                reference.declare(id);
            }
            Step::Remove(Id(Metric::U, _)) => {}
            Step::Remove(id) => {
                self.remove(id);
                reference.remove(id);
            }
            Step::Advance(tens) => {
                self.clock.advance(ms(tens * 10));
                reference.advance(tens * 10);
            }
        }
    }
}

/// What a live rule has told, for each group.
fn told(rule: &LiveRule) -> BTreeMap<Pairs, Vec<Told>> {
    let mut told: BTreeMap<Pairs, Vec<Told>> = BTreeMap::new();
    for alert in rule.history() {
        let cause = match format!("{:?}", alert.cause).as_str() {
            "Condition" => "condition",
            "Initial" => "initial",
            "Removed" => "removed",
            other => panic!("{other} in {alert:?}"),
        };
        told.entry(alert.group.to_vec()).or_default().push(Told {
            at: alert.at.as_nanos() / 1_000_000,
            firing: alert.is_firing(),
            level: alert.level.as_deref().map(str::to_owned),
            previous: alert.previous_level.as_deref().map(str::to_owned),
            cause,
            epoch: alert.epoch,
        });
        assert_eq!(
            alert.at.as_nanos() % 1_000_000,
            0,
            "between two milliseconds: {alert:?}"
        );
    }
    told
}

/// The groups of a live rule that are not inactive.
fn active(rule: &LiveRule) -> BTreeMap<Pairs, State> {
    let groups = rule.status().active.into_iter().map(|group| {
        let state = match group.state {
            RuleState::Inactive => State::Inactive,
            RuleState::Pending => State::Pending,
            RuleState::Firing => State::Firing,
            RuleState::Clearing => State::Clearing,
        };
        (group.labels.to_vec(), state)
    });
    groups.collect()
}

/// Runs `before`, adds the rule, runs `after`, and compares at each step.
fn agree(spec: &Spec, before: &[Step], after: &[Step], offset: Ms) -> Result<(), TestCaseError> {
    let world = World::new();
    let mut reference = Reference::new(spec.clone());
    // Mutations fall between ticks; that they may fall on one is for the tests that say so.
    world.clock.advance(ms(offset));
    reference.advance(offset);
    reference.declare(Id(Metric::U, 0));
    for &step in before {
        world.take(&mut reference, step);
    }
    let rule = world.bus.add_rule(spec.rule("r")).unwrap();
    reference.add_rule();
    let compare = |world: &World, reference: &Reference, done: &[Step]| {
        let now = world.clock.now().as_nanos() / 1_000_000;
        let about = || {
            let rule = spec.rule("r");
            format!(
                "at {now} ms, left is the engine; {rule:#?}; before: {before:?}; since: {done:?}"
            )
        };
        prop_assert_eq!(&told(&rule), &reference.told, "{}", about());
        if spec.levels.len() == 1 {
            prop_assert_eq!(active(&rule), reference.active(), "{}", about());
        }
        Ok(())
    };
    compare(&world, &reference, &[])?;
    for (i, &step) in after.iter().enumerate() {
        world.take(&mut reference, step);
        if reference.undecided {
            return Ok(());
        }
        compare(&world, &reference, &after[..=i])?;
    }
    Ok(())
}

// What happens.

#[derive(Clone, Copy, Debug)]
struct Lot {
    metrics: &'static [Metric],
    /// Which infinities there are: those of both signs have sums that are no numbers.
    infinities: &'static [f64],
    removals: bool,
    /// The first child of each family stays.
    one_stays: bool,
}

const BOTH: &[f64] = &[f64::INFINITY, f64::NEG_INFINITY];
const POSITIVE: &[f64] = &[f64::INFINITY];
const FINITE: &[f64] = &[1e6];

fn value(infinities: &'static [f64]) -> BoxedStrategy<f64> {
    prop_oneof![
        16 => (-2i32..=11).prop_map(f64::from),
        1 => Just(f64::NAN),
        1 => prop::sample::select(infinities),
    ]
    .boxed()
}

fn step(lot: Lot) -> BoxedStrategy<Step> {
    let id = (prop::sample::select(lot.metrics), 0usize..3)
        .prop_map(|(m, child)| Id(m, if m == Metric::U { 0 } else { child }));
    let mutate =
        (id.clone(), value(lot.infinities), 0u32..5).prop_map(|(id, value, n)| match id.0 {
            Metric::C => Step::Mutate(id, f64::from(n)),
            _ => Step::Mutate(id, value),
        });
    let remove = (id.clone(), any::<bool>()).prop_map(move |(id, always)| {
        if lot.removals && !(lot.one_stays && id.1 == 0) && (always || id.1 > 0) {
            Step::Remove(id)
        } else {
            Step::Declare(id)
        }
    });
    let advance = prop_oneof![4 => 1u64..8, 3 => 8u64..40, 1 => 40u64..180].prop_map(Step::Advance);
    prop_oneof![
        8 => mutate,
        1 => id.prop_map(Step::Declare),
        1 => remove,
        8 => advance,
    ]
    .boxed()
}

fn steps(lot: Lot, n: usize) -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(lot), 0..n)
}

// What is watched.

const GAUGES: &[Metric] = &[Metric::G, Metric::H];
const SERIES: &[Metric] = &[Metric::G, Metric::H, Metric::C, Metric::L];
const ALL: &[Metric] = &[Metric::G, Metric::H, Metric::C, Metric::L, Metric::U];

/// Bounds with and without hysteresis, of all words. `odd`: on no number that arithmetic on whole numbers gives.
fn bounds(odd: bool) -> BoxedStrategy<Bounds> {
    let word = prop::sample::select(vec![Word::Above, Word::AtLeast, Word::Below, Word::AtMost]);
    (word, 0i32..9, 0i32..4, any::<bool>(), any::<bool>())
        .prop_map(move |(word, bound, apart, strict, hysteresis)| {
            let odd = if odd { 0.371_234_567 } else { 0.0 };
            let bound = f64::from(bound) + odd;
            let rising = matches!(word, Word::Above | Word::AtLeast);
            let clear = match (rising, strict) {
                (true, true) => (Word::Below, bound - f64::from(apart)),
                (true, false) => (Word::AtMost, bound - f64::from(apart)),
                (false, true) => (Word::Above, bound + f64::from(apart)),
                (false, false) => (Word::AtLeast, bound + f64::from(apart)),
            };
            // "At least 3, clear at most 3" would clear while raised.
            let closed = matches!(word, Word::AtLeast | Word::AtMost);
            let clashes = apart == 0 && closed && !strict;
            Bounds {
                raise: (word, bound),
                clear: (hysteresis && !clashes).then_some(clear),
            }
        })
        .boxed()
}

fn distance() -> BoxedStrategy<Distance> {
    prop_oneof![
        (1u32..6).prop_map(|d| Distance::Absolute(f64::from(d))),
        (1u32..6, 0u32..5).prop_map(|(s, f)| Distance::Relative(f64::from(s) / 4.0, f64::from(f))),
        (1u32..6).prop_map(|s| Distance::OfRange(f64::from(s) / 8.0, 0.0, 16.0)),
    ]
    .boxed()
}

fn how() -> BoxedStrategy<How> {
    prop::sample::select(vec![How::Sum, How::Avg, How::Min, How::Max, How::Count]).boxed()
}

fn window(over: Over) -> BoxedStrategy<E> {
    use Stat::*;
    let of = move |metrics: &'static [Metric], stats: Vec<Stat>| {
        let width = prop::sample::select(vec![300u64, 1_000, 2_000, 5_000]);
        (
            prop::sample::select(metrics),
            width,
            prop::sample::select(stats),
        )
            .prop_map(move |(m, width, stat)| E::Window(m, width, stat, over))
    };
    let one = over == Over::Each;
    let mut gauges = vec![Avg, Min, Max, Rate, Increase, Count];
    let mut counters = vec![Rate, Increase, Sum];
    if one {
        gauges.extend([Last, Sum]);
        counters.push(Last);
    }
    let histograms = vec![
        Count,
        Avg,
        Min,
        Max,
        Rate,
        Quantile(0.5),
        Quantile(0.9),
        Quantile(0.0),
    ];
    prop_oneof![
        2 => of(GAUGES, gauges),
        1 => of(&[Metric::C], counters),
        1 => of(&[Metric::L], histograms),
    ]
    .boxed()
}

fn op() -> BoxedStrategy<Op> {
    prop::sample::select(vec![Op::Add, Op::Sub, Op::Mul, Op::Div]).boxed()
}

/// Values of series, alone or in arithmetic with others of the same labels.
fn values() -> BoxedStrategy<E> {
    let gauge = || prop::sample::select(GAUGES).prop_map(E::Value);
    let single = || {
        prop_oneof![
            4 => prop::sample::select(GAUGES).prop_map(E::Value),
            1 => Just(E::Value(Metric::C)),
        ]
    };
    prop_oneof![
        4 => prop::sample::select(SERIES).prop_map(E::Value),
        2 => (op(), gauge(), single()).prop_map(|(op, a, b)| E::Binary(op, a.into(), b.into())),
        1 => (op(), single()).prop_map(|(op, a)| E::Binary(op, a.into(), E::Constant(2.0).into())),
        1 => (gauge(), 0i32..4, 5i32..9).prop_map(|(a, from, to)| E::Scaled(
            a.into(), f64::from(from), f64::from(to)
        )),
        1 => (gauge(), 0i32..4, 5i32..9).prop_map(|(a, from, to)| E::Scaled(
            a.into(), f64::from(to), f64::from(from)
        )),
    ]
    .boxed()
}

fn exact(e: &E) -> bool {
    matches!(
        e,
        E::Value(_) | E::Gather(How::Sum | How::Min | How::Max | How::Count, ..)
    )
}

fn when(e: E) -> BoxedStrategy<Test> {
    let scaled = matches!(e, E::Scaled(..));
    bounds(!exact(&e))
        .prop_map(move |mut bounds| {
            if scaled {
                bounds.raise.1 /= 9.0;
                bounds.clear = bounds.clear.map(|(word, bound)| (word, bound / 9.0));
            }
            Test::When(e.clone(), bounds)
        })
        .boxed()
}

/// Thresholds, moves and changes of values, and absence.
fn plain() -> BoxedStrategy<Test> {
    let value = || prop::sample::select(SERIES).prop_map(E::Value);
    prop_oneof![
        8 => values().prop_flat_map(when),
        2 => (value(), distance()).prop_map(|(e, d)| Test::Moved(e, d)),
        2 => value().prop_map(Test::Changed),
    ]
    .boxed()
}

fn absence() -> BoxedStrategy<Test> {
    (prop::sample::select(SERIES), 1u64..80, any::<bool>())
        .prop_map(|(m, tens, stale)| {
            if stale {
                Test::Stale(m, tens * 10 + 1)
            } else {
                Test::Gone(m, tens * 10 + 2)
            }
        })
        .boxed()
}

fn combined(leaf: BoxedStrategy<Test>) -> BoxedStrategy<Test> {
    leaf.prop_recursive(3, 5, 2, |inner| {
        prop_oneof![
            2 => (inner.clone(), inner.clone()).prop_map(|(a, b)| Test::And(a.into(), b.into())),
            2 => (inner.clone(), inner.clone()).prop_map(|(a, b)| Test::Or(a.into(), b.into())),
            1 => inner.prop_map(|a| Test::Not(a.into())),
        ]
    })
    .boxed()
}

fn group() -> BoxedStrategy<(Group, bool)> {
    prop_oneof![
        3 => Just((Group::Each, false)),
        2 => any::<bool>().prop_map(|by| (Group::Any, by)),
        2 => any::<bool>().prop_map(|by| (Group::All, by)),
        2 => (1usize..4, any::<bool>()).prop_map(|(k, by)| (Group::AtLeast(k), by)),
    ]
    .boxed()
}

/// Holds end three, and keeps seven, milliseconds beside everything else.
fn hold() -> BoxedStrategy<(Ms, Ms)> {
    let tens =
        |off: Ms| prop_oneof![2 => Just(0), 1 => (0u64..60).prop_map(move |tens| tens * 10 + off)];
    (tens(3), tens(7)).boxed()
}

fn slots() -> BoxedStrategy<Option<(usize, u64, Ms)>> {
    prop_oneof![
        2 => Just(None),
        1 => (1u64..5, 0usize..5, 1u64..30).prop_map(|(n, m, tens)| Some((
            1 + m % n as usize, n, tens * 10
        ))),
    ]
    .boxed()
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Times {
    /// Only what may be with windows, whose ticks fall on boundaries of slots.
    Windows,
    /// All but slots: for series that are remembered when gone.
    Gone,
    All,
}

fn spec(test: BoxedStrategy<Test>, times: Times) -> BoxedStrategy<Spec> {
    let levels = prop::collection::vec(test, 1..4);
    let every = prop_oneof![3 => Just(None), 1 => (1u64..30).prop_map(|tens| Some(tens * 10))];
    (levels, group(), hold(), slots(), every, any::<bool>())
        .prop_map(
            move |(mut levels, (group, by_pool), (hold, keep), m_of_n, every, initial)| {
                if !initial && levels.len() > 1 {
                    levels.truncate(1);
                }
                Spec {
                    levels,
                    group,
                    by_pool,
                    hold,
                    keep,
                    m_of_n: if times == Times::All { m_of_n } else { None },
                    every: if times == Times::Windows { every } else { None },
                    initial,
                }
            },
        )
        .boxed()
}

const LOT: Lot = Lot {
    metrics: SERIES,
    infinities: BOTH,
    removals: true,
    one_stays: false,
};

proptest! {
    #![proptest_config(config(1))]

    #[test]
    fn conditions_on_values_tell_what_the_reference_tells(
        spec in spec(combined(plain()), Times::All),
        before in steps(LOT, 12),
        after in steps(LOT, 60),
    ) {
        agree(&spec, &before, &after, 5)?;
    }

    #[test]
    fn gatherings_tell_what_the_reference_tells(
        spec in {
            let gather = |by: bool| (how(), prop::sample::select(&[Metric::G, Metric::H, Metric::C][..]))
                .prop_map(move |(how, m)| E::Gather(how, m, by));
            let over_all = prop_oneof![
                3 => gather(false),
                1 => (op(), gather(false), gather(false)).prop_map(|(op, a, b)| E::Binary(op, a.into(), b.into())),
                1 => (op(), gather(false), Just(E::Value(Metric::U))).prop_map(|(op, a, b)| E::Binary(op, a.into(), b.into())),
            ];
            let by_pool = prop_oneof![
                3 => gather(true),
                1 => (op(), gather(true), gather(true)).prop_map(|(op, a, b)| E::Binary(op, a.into(), b.into())),
            ];
            let test = prop_oneof![
                combined(over_all.prop_flat_map(when).boxed()),
                combined(by_pool.prop_flat_map(when).boxed()),
            ];
            spec(test.boxed(), Times::All)
        },
        before in steps(Lot { metrics: ALL, infinities: POSITIVE, ..LOT }, 12),
        after in steps(Lot { metrics: ALL, infinities: POSITIVE, ..LOT }, 60),
    ) {
        // Levels of unlike labels are judged apart, and are for another test.
        let by = |test: &Test| format!("{test:?}").contains("true)");
        let first = by(&spec.levels[0]);
        let mut spec = spec;
        spec.levels.retain(|test| by(test) == first);
        agree(&spec, &before, &after, 5)?;
    }

    #[test]
    fn a_single_series_goes_with_all_labels_as_the_reference_says(
        spec in {
            let one = Just(E::Value(Metric::U));
            let all = (how(), Just(Metric::H)).prop_map(|(how, m)| E::Gather(how, m, false));
            let share = (op(), prop::sample::select(GAUGES), prop_oneof![one, all])
                .prop_map(|(op, m, b)| E::Binary(op, E::Value(m).into(), b.into()));
            let alone = prop_oneof![Just(E::Value(Metric::U)), prop::sample::select(GAUGES).prop_map(E::Value)];
            spec(combined(prop_oneof![2 => share, 1 => alone].prop_flat_map(when).boxed()), Times::All)
        },
        before in steps(Lot { metrics: ALL, infinities: POSITIVE, removals: false, one_stays: true }, 12),
        after in steps(Lot { metrics: ALL, infinities: POSITIVE, one_stays: true, ..LOT }, 60),
    ) {
        let mut start: Vec<Step> = SERIES.iter().map(|m| Step::Declare(Id(*m, 0))).collect();
        start.extend(before);
        agree(&spec, &start, &after, 5)?;
    }

    #[test]
    fn absence_is_told_as_the_reference_tells_it(
        spec in spec(combined(prop_oneof![3 => absence(), 2 => plain()].boxed()), Times::Gone),
        before in steps(LOT, 12),
        after in steps(LOT, 50),
    ) {
        agree(&spec, &before, &after, 5)?;
    }

}

proptest! {
    #![proptest_config(config(3))]

    #[test]
    fn windows_are_judged_at_ticks_as_the_reference_judges_them(
        spec in spec(combined(window(Over::Each).prop_flat_map(when).boxed()), Times::Windows),
        before in steps(Lot { infinities: POSITIVE, ..LOT }, 12),
        after in steps(Lot { infinities: POSITIVE, ..LOT }, 40),
    ) {
        agree(&spec, &before, &after, 5)?;
    }

    #[test]
    fn windows_over_several_series_are_judged_as_the_reference_judges_them(
        spec in prop_oneof![
            spec(window(Over::All).prop_flat_map(when).boxed(), Times::Windows),
            spec(window(Over::Pool).prop_flat_map(when).boxed(), Times::Windows),
        ],
        before in steps(Lot { infinities: POSITIVE, ..LOT }, 12),
        after in steps(Lot { infinities: POSITIVE, ..LOT }, 40),
    ) {
        let by = |test: &Test| format!("{test:?}").contains("Pool");
        let first = by(&spec.levels[0]);
        let mut spec = spec;
        spec.levels.retain(|test| by(test) == first);
        agree(&spec, &before, &after, 5)?;
    }

    #[test]
    fn windows_values_and_staleness_mix_as_the_reference_says(
        spec in {
            // Of a series that is both, a mutation is seen by one operand before the other.
            let other = |e: &E| match e {
                E::Window(Metric::G, ..) => Metric::H,
                _ => Metric::G,
            };
            let mixed = (op(), window(Over::Each)).prop_map(move |(op, a)| {
                let b = E::Value(other(&a));
                E::Binary(op, a.into(), b.into())
            });
            let stale = (prop::sample::select(SERIES), 1u64..80)
                .prop_map(|(m, tens)| Test::Stale(m, tens * 10 + 1));
            let test = prop_oneof![
                2 => mixed.prop_flat_map(when),
                1 => window(Over::Each).prop_flat_map(when),
                2 => plain(),
                1 => stale,
            ];
            spec(combined(test.boxed()), Times::Windows)
        },
        before in steps(Lot { infinities: FINITE, ..LOT }, 12),
        after in steps(Lot { infinities: FINITE, ..LOT }, 40),
    ) {
        agree(&spec, &before, &after, 5)?;
    }

    /// Everything at whole tens of milliseconds: what is due at an instant comes before what is done at it.
    #[test]
    fn a_timer_due_at_an_instant_runs_before_a_mutation_made_at_it(
        spec in (prop::sample::select(GAUGES), bounds(false), group(), 0u64..6, 0u64..6).prop_map(
            |(m, bounds, (group, by_pool), hold, keep)| Spec {
                group,
                by_pool,
                hold: hold * 10,
                keep: keep * 10,
                ..Spec::of(Test::When(E::Value(m), bounds))
            }
        ),
        after in steps(LOT, 80),
    ) {
        agree(&spec, &[], &after, 0)?;
    }

    /// Ticks, slot boundaries and mutations of a counter at the same instants.
    #[test]
    fn a_tick_sees_what_was_counted_before_its_instant(
        spec in (bounds(true), prop::sample::select(vec![300u64, 1_000, 2_000]), any::<bool>()).prop_map(
            |(bounds, width, rate)| {
                let stat = if rate { Stat::Rate } else { Stat::Increase };
                Spec::of(Test::When(E::Window(Metric::C, width, stat, Over::Each), bounds))
            }
        ),
        after in steps(Lot { metrics: &[Metric::C], ..LOT }, 60),
    ) {
        agree(&spec, &[], &after, 0)?;
    }
}

/// The reference itself: a history that can be followed by hand.
#[test]
fn the_reference_agrees_with_the_table_of_time() {
    let spec = Spec {
        hold: 5_000,
        keep: 3_000,
        ..Spec::of(Test::When(
            E::Value(Metric::U),
            Bounds {
                raise: (Word::Above, 1.0),
                clear: None,
            },
        ))
    };
    let u = Id(Metric::U, 0);
    let mut reference = Reference::new(spec);
    reference.declare(u);
    reference.add_rule();
    let mut now = 0;
    for (at, value) in [
        (0, 2.0),
        (4_000, 0.0),
        (10_000, 2.0),
        (17_000, 0.0),
        (19_000, 2.0),
        (30_000, 0.0),
        (40_000, 0.0),
    ] {
        reference.advance(at - now);
        now = at;
        reference.mutate(u, value);
    }
    let told: Vec<_> = reference.told[&vec![]]
        .iter()
        .map(|t| (t.at, t.firing))
        .collect();
    assert_eq!(told, [(15_000, true), (33_000, false)]);
}
