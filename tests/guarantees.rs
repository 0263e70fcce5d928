//! The guarantees G1 to G7, each attacked.
//!
//! Goal: what a subscriber was told agrees with the metric once all is at rest, whatever threads and callbacks do.
//! Method: real threads without any order imposed, then a look at what was delivered; virtual time where time matters.

use std::{
    collections::HashMap,
    sync::{
        Arc, Barrier, Mutex, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use futures::{StreamExt, executor::block_on};
use metricbus::{
    Alert, Cause, Change, Clock, Condition, Counter, Crossed, Crossing, Delta, Desc, Gauge, Lagged,
    MetricBus, Rule, Series, Threshold, Value,
};
use proptest::prelude::*;

/// How much the stress tests do; enough to see each race that loom was shown to find, within a second.
const ROUNDS: u64 = 20_000;

/// Waits until a subscriber's thread has done what it is about to do.
fn until(what: &str, done: impl Fn() -> bool) {
    for _ in 0..200_000 {
        if done() {
            return;
        }
        thread::yield_now();
        thread::park_timeout(Duration::from_micros(50));
    }
    panic!("never: {what}");
}

/// A self metric without labels.
fn own(bus: &MetricBus, name: &str) -> f64 {
    let families = bus.self_families();
    let family = families
        .iter()
        .find(|f| f.name == name)
        .unwrap_or_else(|| panic!("no {name}"));
    match &family.series[0].value {
        metricbus::SampleValue::Counter(value) => value.as_f64(),
        metricbus::SampleValue::Gauge(value) => *value,
        other => panic!("{other:?}"),
    }
}

// G1

#[test]
fn g1_after_any_storm_the_last_crossing_agrees_with_the_value() {
    let bus = MetricBus::new();
    let gauge = bus.gauge("g", "g").unwrap();
    let last = Arc::new(Mutex::new(None));
    let told = last.clone();
    let subscription = bus
        .on_threshold("g", Threshold::above(0.9).clear_below(0.1))
        .call(move |c: Crossing| *told.lock().unwrap() = Some(c.state))
        .unwrap();
    for round in 0..20 {
        thread::scope(|scope| {
            for t in 0..3u64 {
                let gauge = &gauge;
                scope.spawn(move || {
                    let mut x = round * 31 + t + 1;
                    for _ in 0..ROUNDS / 20 {
                        x ^= x << 13;
                        x ^= x >> 7;
                        x ^= x << 17;
                        gauge.set((x % 1000) as f64 / 999.0);
                    }
                });
            }
        });
        let end = if round % 2 == 0 { 1.0 } else { 0.0 };
        gauge.set(end);
        let wanted = if round % 2 == 0 {
            Crossed::Raised
        } else {
            Crossed::Cleared
        };
        until("the last crossing", || {
            *last.lock().unwrap() == Some(wanted)
        });
    }
    assert!(subscription.stats().delivered > 0);
}

#[test]
fn g1_a_conflated_change_ends_at_the_value() {
    let bus = MetricBus::new();
    let counters: Vec<Counter> = (0..4)
        .map(|i| bus.counter(&format!("c{i}_total"), "c").unwrap())
        .collect();
    let seen = Arc::new(Mutex::new(HashMap::<Series, Value>::new()));
    let told = seen.clone();
    let _subscription = bus
        .on_change("{__name__=~\"c.*\"}")
        .capacity(1)
        .call(move |c| {
            told.lock().unwrap().insert(c.series, c.value);
        })
        .unwrap();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for i in 0..ROUNDS as usize {
                    counters[i % 4].inc();
                }
            });
        }
    });
    until("all four", || {
        let seen = seen.lock().unwrap();
        counters
            .iter()
            .all(|c| seen.get(&c.series()) == Some(&Value::U64(c.get())))
    });
}

#[test]
fn g1_a_tap_has_no_gap_and_ends_at_the_value() {
    let bus = MetricBus::new();
    let gauge = bus.gauge("g", "g").unwrap();
    let mut tap = bus.subscribe_with_capacity("g", 1 << 17).unwrap();
    thread::scope(|scope| {
        for t in 0..3 {
            let gauge = &gauge;
            scope.spawn(move || {
                for i in 0..ROUNDS / 4 {
                    if i % 2 == 0 {
                        gauge.set(i as f64 + f64::from(t) / 10.0);
                    } else {
                        gauge.add(0.5);
                    }
                }
            });
        }
    });
    let (mut at, mut n) = (None, 0);
    while n < 3 * (ROUNDS / 4) {
        let mutation = block_on(tap.next()).unwrap().unwrap();
        n += 1;
        assert_eq!(mutation.sequence, n);
        let Change::Set { before, after } = mutation.change else {
            panic!("{mutation:?}")
        };
        assert_eq!(before, at);
        at = Some(after);
    }
    assert_eq!(at, gauge.get());
}

#[test]
fn g1_taps_that_come_and_go_lose_no_amount() {
    let bus = MetricBus::new();
    let counter = bus.counter("c_total", "c").unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    counter.inc();
                }
            });
        }
        for _ in 0..200 {
            let mut tap = bus.subscribe_with_capacity("c_total", 1 << 16).unwrap();
            let mut at = None;
            for _ in 0..20 {
                match block_on(tap.next()).unwrap() {
                    Err(Lagged(_)) => at = None,
                    Ok(mutation) => {
                        let Change::Counted { before, after } = mutation.change else {
                            panic!("{mutation:?}")
                        };
                        assert!(at.is_none_or(|at| at == before), "{at:?} then {before:?}");
                        at = Some(after);
                    }
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[derive(Clone, Debug)]
enum Step {
    Set(usize, f64),
    Add(usize, f64),
    Remove(usize),
    Advance(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let value = prop_oneof![
        8 => (-20i32..120).prop_map(f64::from),
        1 => Just(f64::NAN),
        1 => prop_oneof![Just(f64::INFINITY), Just(f64::NEG_INFINITY), Just(-0.0)],
    ];
    let step = prop_oneof![
        6 => (0..3usize, value.clone()).prop_map(|(i, v)| Step::Set(i, v)),
        3 => (0..3usize, (-50i32..50).prop_map(f64::from)).prop_map(|(i, v)| Step::Add(i, v)),
        1 => (0..3usize).prop_map(Step::Remove),
        1 => (0..5_000u64).prop_map(Step::Advance),
    ];
    prop::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Against a model written as one would on paper: sets of children come and go, values are anything, and three
    /// kinds of subscribers must each have been told what the model says, in order.
    #[test]
    fn g1_every_subscriber_agrees_with_a_naive_model(steps in steps()) {
        let clock = Clock::manual();
        let bus = MetricBus::builder().clock(clock.clone()).build();
        let family = bus.family::<Gauge>(Desc::new("g", "g").labels(["i"])).unwrap();
        let mut crossings = bus
            .on_threshold("g", Threshold::at_least(90.0).clear_below(80.0))
            .capacity(1_000)
            .stream()
            .unwrap();
        let mut moves =
            bus.on_delta("g", Delta::absolute(10.0)).capacity(1_000).stream().unwrap();
        let mut tap = bus.subscribe("g").unwrap();

        let mut values = [None::<f64>; 3];
        let mut raised = [false; 3];
        let mut reference = [None::<f64>; 3];
        let (mut expected_crossings, mut expected_moves, mut expected_changes) =
            (Vec::new(), Vec::new(), Vec::new());
        for step in &steps {
            let (i, new) = match *step {
                Step::Advance(ms) => {
                    clock.advance(Duration::from_millis(ms));
                    continue;
                }
                Step::Remove(i) => {
                    family.remove(&[i.to_string()]).unwrap();
                    if std::mem::take(&mut raised[i]) {
                        expected_crossings.push((i, false, Cause::Removed));
                    }
                    values[i] = None;
                    continue;
                }
                Step::Set(i, v) => (i, v),
                Step::Add(i, d) => (i, values[i].unwrap_or(0.0) + d),
            };
            let child = family.with_label_values(&[i.to_string()]).unwrap();
            if values[i].is_none() {
                reference[i] = None;
            }
            match *step {
                Step::Set(_, v) => child.set(v),
                Step::Add(_, d) => child.add(d),
                _ => unreachable!(),
            }
            let old = values[i].replace(new);
            // −0 is 0.
            expected_changes.push((i, old.map(|old| (old + 0.0).to_bits()), (new + 0.0).to_bits()));
            if !raised[i] && new >= 90.0 || raised[i] && new < 80.0 {
                raised[i] = !raised[i];
                expected_crossings.push((i, raised[i], Cause::Crossing));
            }
            match reference[i] {
                _ if new.is_nan() => {}
                None => reference[i] = Some(new),
                Some(from) => {
                    if (new - from).abs() >= 10.0 || (from.is_infinite() && new != from) {
                        expected_moves.push((i, from, new));
                        reference[i] = Some(new);
                    }
                }
            }
        }
        drop(bus);
        let index = |series: &Series| series.label("i").unwrap().parse::<usize>().unwrap();
        let got: Vec<_> = block_on(crossings.by_ref().collect::<Vec<_>>())
            .iter()
            .map(|c| (index(&c.series), c.state == Crossed::Raised, c.cause))
            .collect();
        prop_assert_eq!(got, expected_crossings);
        let got: Vec<_> = block_on(moves.by_ref().collect::<Vec<_>>())
            .iter()
            .map(|m| (index(&m.series), m.from, m.to))
            .collect();
        prop_assert_eq!(got, expected_moves);
        let got: Vec<_> = block_on(tap.by_ref().collect::<Vec<_>>())
            .into_iter()
            .map(|m| {
                let m = m.unwrap();
                let Change::Set { before, after } = m.change else { panic!() };
                (index(&m.series), before.map(f64::to_bits), after.to_bits())
            })
            .collect();
        prop_assert_eq!(got, expected_changes);
    }
}

/// What one thread does.
#[derive(Clone, Debug)]
enum Deed {
    Count(u64),
    Set(f64),
    Add(f64),
    Observe(f64),
    /// Taps, windows and thresholds that come and go meanwhile.
    Visit,
}

fn deeds() -> impl Strategy<Value = Vec<Vec<Deed>>> {
    let deed = prop_oneof![
        4 => (1..5_u64).prop_map(Deed::Count),
        4 => (0..100_i32).prop_map(|v| Deed::Set(f64::from(v))),
        2 => (-50..50_i32).prop_map(|v| Deed::Add(f64::from(v))),
        3 => (0..100_i32).prop_map(|v| Deed::Observe(f64::from(v))),
        1 => Just(Deed::Visit),
    ];
    prop::collection::vec(prop::collection::vec(deed, 1..80), 2..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Threads do at the same time whatever they like. However they interleave: counts add up, in the metric, in the tap
    /// and in the window; and each kind of subscriber was told last what is so.
    #[test]
    fn g1_whatever_threads_do_at_once_all_agree_and_counts_add_up(threads in deeds()) {
        let bus = MetricBus::new();
        let counter = bus.counter("c_total", "c").unwrap();
        let gauge = bus.gauge("g", "g").unwrap();
        gauge.set(0.0);
        let histogram = bus.histogram("h", "h", Default::default()).unwrap();
        let mut tap = bus.subscribe("{__name__=~\"c_total|g|h\"}").unwrap();
        let width = Duration::from_secs(3_600);
        let (counted, observed) = (counter.series().window(width), histogram.series().window(width));
        let threshold = Threshold::at_least(60.0).clear_below(40.0);
        let mut crossings = bus.on_threshold("g", threshold).capacity(4).stream().unwrap();
        let mut changes = bus.on_change("g").stream().unwrap();
        thread::scope(|scope| {
            for deeds in &threads {
                let (bus, counter, gauge, histogram) = (&bus, &counter, &gauge, &histogram);
                scope.spawn(move || {
                    for deed in deeds {
                        match *deed {
                            Deed::Count(n) => counter.inc_by(n),
                            Deed::Set(v) => gauge.set(v),
                            Deed::Add(v) => gauge.add(v),
                            Deed::Observe(v) => histogram.observe(v),
                            Deed::Visit => {
                                drop(bus.subscribe(r#"{__name__!=""}"#).unwrap());
                                drop(gauge.series().window(width));
                                drop(bus.on_threshold("c_total", threshold).inline(drop).unwrap());
                            }
                        }
                    }
                });
            }
        });
        let all = || threads.iter().flatten();
        let total: u64 = all().map(|d| if let Deed::Count(n) = d { *n } else { 0 }).sum();
        let sum: f64 = all().map(|d| if let Deed::Observe(v) = d { *v } else { 0.0 }).sum();
        let mutations = all().filter(|d| !matches!(d, Deed::Visit)).count();
        let value = gauge.get();
        prop_assert_eq!(counter.get(), total);
        prop_assert_eq!(counted.stats().sum, Some(total as f64));
        prop_assert_eq!(histogram.snapshot().sum, sum);
        prop_assert_eq!(observed.stats().sum, Some(sum));
        drop(bus);

        let told = block_on(tap.by_ref().collect::<Vec<_>>());
        prop_assert_eq!(told.len(), mutations);
        let (mut amounts, mut observations, mut at) = (0.0, 0.0, Some(0.0));
        for mutation in told {
            match mutation.unwrap().change {
                change @ Change::Counted { .. } => amounts += change.amount(),
                Change::Observed { value } => observations += value,
                Change::Set { before, after } => {
                    prop_assert_eq!(before, at);
                    at = Some(after);
                }
                other => panic!("{other:?}"),
            }
        }
        prop_assert_eq!((amounts, observations, at), (total as f64, sum, value));
        let value = value.unwrap_or(0.0);

        let last = block_on(crossings.by_ref().collect::<Vec<_>>()).pop();
        let raised = last.is_some_and(|c| c.state == Crossed::Raised);
        prop_assert!(value < 60.0 || raised);
        prop_assert!(value >= 40.0 || !raised);
        let last = block_on(changes.by_ref().collect::<Vec<_>>()).pop();
        prop_assert_eq!(last.map_or(0.0, |c| c.value.as_f64()), value);
    }
}

// G2

#[test]
fn g2_a_spike_between_two_reads_is_still_reported() {
    let bus = MetricBus::new();
    let gauge = bus.gauge("g", "g").unwrap();
    let mut crossings = bus
        .on_threshold("g", Threshold::above(90.0))
        .stream()
        .unwrap();
    gauge.set(95.0);
    gauge.set(10.0);
    let raised = block_on(crossings.next()).unwrap();
    assert_eq!((raised.state, raised.value), (Crossed::Raised, 95.0));
    let cleared = block_on(crossings.next()).unwrap();
    assert_eq!((cleared.state, cleared.value), (Crossed::Cleared, 10.0));
}

// G3

#[test]
fn g3_a_gap_in_epochs_is_the_number_missed_and_the_last_state_arrives() {
    let bus = MetricBus::new();
    let gauge = bus.gauge("g", "g").unwrap();
    let mut crossings = bus
        .on_threshold("g", Threshold::above(0.5))
        .capacity(4)
        .stream()
        .unwrap();
    for i in 0..100 {
        gauge.set(f64::from(i % 2));
    }
    // 0 0.. : raised at each 1, cleared at each 0 after it: 99 crossings, of which the last 4 are left.
    let left: Vec<_> = (0..4)
        .map(|_| block_on(crossings.next()).unwrap())
        .collect();
    let epochs: Vec<_> = left.iter().map(|c| c.epoch).collect();
    assert_eq!(epochs, [96, 97, 98, 99]);
    assert_eq!(left[3].state, Crossed::Raised);
    assert_eq!(crossings.subscription().stats().dropped, 95);
    assert_eq!(own(&bus, "metricbus_events_dropped_total"), 95.0);
}

/// A callback that stands still until it is let go, and then notes what it is told.
#[expect(
    clippy::type_complexity,
    reason = "a barrier, notes, and who writes them"
)]
fn held_back<E: Send + 'static>() -> (Arc<Barrier>, Arc<Mutex<Vec<E>>>, impl FnMut(E) + Send) {
    let (begun, told) = (Arc::new(Barrier::new(2)), Arc::new(Mutex::new(Vec::new())));
    let (barrier, notes) = (begun.clone(), told.clone());
    let mut first = true;
    let callback = move |event| {
        if std::mem::take(&mut first) {
            // It has begun, and may go on.
            barrier.wait();
            barrier.wait();
        }
        notes.lock().unwrap().push(event);
    };
    (begun, told, callback)
}

/// One subscription about many more series than its mailbox has places for.
#[test]
fn g3_the_last_state_of_every_series_arrives_however_many_there_are() {
    let bus = MetricBus::new();
    let series = 1_000;
    let gauges: Vec<Gauge> = (0..series)
        .map(|worker| {
            bus.scope()
                .with_label("worker", worker)
                .gauge("kv", "k")
                .unwrap()
        })
        .collect();
    let (begun, told, callback) = held_back::<Crossing>();
    let threshold = Threshold::above(0.9).clear_below(0.8);
    let subscription = bus
        .on_threshold("kv", threshold)
        .capacity(16)
        .call(callback)
        .unwrap();
    gauges[0].set(1.0);
    begun.wait();
    // It has one crossing at hand. Each worker crosses up, down, up, and half of them down again.
    for (worker, gauge) in gauges.iter().enumerate() {
        for value in [1.0, 0.0, 1.0] {
            gauge.set(value);
        }
        if worker % 2 == 1 {
            gauge.set(0.0);
        }
    }
    begun.wait();
    until("all is told", || {
        let stats = subscription.stats();
        let crossings = 3 * series + series / 2;
        stats.delivered + stats.dropped == crossings as u64
    });
    until("it is noted", || {
        told.lock().unwrap().len() as u64 == subscription.stats().delivered
    });
    let told = told.lock().unwrap();
    let mut last: HashMap<String, (Crossed, u64)> = HashMap::new();
    let mut missed = 0;
    for crossing in told.iter() {
        let seen = last
            .entry(crossing.series.to_string())
            .or_insert((Crossed::Cleared, 0));
        assert!(crossing.epoch > seen.1, "{crossing:?} after {seen:?}");
        missed += crossing.epoch - seen.1 - 1;
        *seen = (crossing.state, crossing.epoch);
    }
    assert_eq!(last.len(), series);
    for (worker, gauge) in gauges.iter().enumerate() {
        let (state, epoch) = last[&gauge.series().to_string()];
        let (up, crossings) = if worker % 2 == 0 {
            (true, 3)
        } else {
            (false, 4)
        };
        assert_eq!(
            (state == Crossed::Raised, epoch),
            (up, crossings),
            "worker {worker}"
        );
    }
    // The gaps say how many were missed, of each series and so in all.
    assert_eq!(missed, subscription.stats().dropped);
    assert!(missed > 0);
}

#[test]
fn g3_the_last_move_of_every_series_arrives_and_gaps_in_epochs_are_what_was_missed() {
    let bus = MetricBus::new();
    let gauges: Vec<Gauge> = (0..100)
        .map(|worker| {
            bus.scope()
                .with_label("worker", worker)
                .gauge("kv", "k")
                .unwrap()
        })
        .collect();
    gauges.iter().for_each(|gauge| gauge.set(0.0));
    let moves = bus
        .on_delta("kv", Delta::absolute(1.0))
        .capacity(4)
        .stream()
        .unwrap();
    for value in 1..=5 {
        gauges.iter().for_each(|gauge| gauge.set(f64::from(value)));
    }
    let dropped = moves.subscription().stats().dropped;
    drop(bus);
    let moves: Vec<_> = block_on(moves.collect());
    let mut epochs = HashMap::new();
    for one in &moves {
        epochs.insert(one.series.to_string(), (one.to, one.epoch));
    }
    assert!(epochs.len() == 100 && epochs.values().all(|last| *last == (5.0, 5)));
    assert_eq!(moves.len() as u64 + dropped, 500);
}

/// A rule about many series, and one about groups of them; to a callback, and to a stream.
#[test]
fn g3_the_last_alert_of_every_group_arrives_however_many_there_are() {
    let bus = MetricBus::new();
    let gauges: Vec<Gauge> = (0..1_000)
        .map(|worker| {
            bus.scope()
                .with_label("worker", worker)
                .gauge("kv", "k")
                .unwrap()
        })
        .collect();
    let full = Condition::when("kv", Threshold::above(0.9).clear_below(0.8));
    let rule = bus.add_rule(Rule::new("Full", full)).unwrap();
    let (begun, told, callback) = held_back::<Alert>();
    let callback = rule.on_alert().capacity(16).call(callback).unwrap();
    let stream = bus.on_alert().capacity(16).stream().unwrap();
    gauges[0].set(1.0);
    begun.wait();
    for (worker, gauge) in gauges.iter().enumerate() {
        for value in [1.0, 0.0, 1.0] {
            gauge.set(value);
        }
        if worker % 2 == 1 {
            gauge.set(0.0);
        }
    }
    begun.wait();
    let all = 3_500;
    until("all is told", || {
        let stats = callback.stats();
        stats.delivered + stats.dropped == all
            && told.lock().unwrap().len() as u64 == stats.delivered
    });
    let dropped = stream.subscription().stats().dropped;
    assert_eq!(rule.status().missed, dropped + callback.stats().dropped);
    drop((rule, bus));
    let streamed: Vec<Alert> = block_on(stream.collect());
    assert_eq!(streamed.len() as u64 + dropped, all);
    for told in [&*told.lock().unwrap(), &streamed] {
        let mut last = HashMap::new();
        for alert in told {
            last.insert(
                alert.series.clone().unwrap().to_string(),
                (alert.is_firing(), alert.epoch),
            );
        }
        for (worker, gauge) in gauges.iter().enumerate() {
            let expected = if worker % 2 == 0 {
                (true, 3)
            } else {
                (false, 4)
            };
            assert_eq!(
                last.get(&gauge.series().to_string()),
                Some(&expected),
                "worker {worker}"
            );
        }
    }
}

/// Workers that come, cross, and go, for ever, before a reader that stands still.
#[test]
fn g5_last_words_of_removed_series_do_not_pile_up() {
    let bus = MetricBus::new();
    let family = bus
        .family::<Gauge>(Desc::new("kv", "k").labels(["worker"]))
        .unwrap();
    let above = Threshold::above(0.9).clear_below(0.8);
    let crossings = bus.on_threshold("kv", above).capacity(8).stream().unwrap();
    let moves = bus
        .on_delta("kv", Delta::absolute(0.5))
        .capacity(8)
        .stream()
        .unwrap();
    let stays = family.with_label_values(&["stays"]).unwrap();
    stays.set(0.0);
    stays.set(1.0);
    for worker in 0..5_000 {
        let worker = worker.to_string();
        let gauge = family.with_label_values(&[&worker]).unwrap();
        gauge.set(0.0);
        gauge.set(1.0);
        gauge.set(0.0);
        family.remove(&[&worker]).unwrap();
    }
    let dropped = [
        crossings.subscription().stats().dropped,
        moves.subscription().stats().dropped,
    ];
    drop((stays, family, bus));
    let crossings: Vec<_> = block_on(crossings.collect());
    let moves: Vec<_> = block_on(moves.collect());
    assert!(
        crossings.len() < 64 && moves.len() < 64,
        "{} and {}",
        crossings.len(),
        moves.len()
    );
    assert_eq!(crossings.len() as u64 + dropped[0], 10_001);
    assert_eq!(moves.len() as u64 + dropped[1], 10_001);
    // It is still there, and so is its last word.
    assert!(
        crossings
            .iter()
            .any(|c| c.series.label("worker").as_deref() == Some("stays"))
    );
}

#[test]
fn g3_raised_and_cleared_alternate_under_contention() {
    let bus = MetricBus::new();
    let gauge = bus.gauge("g", "g").unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let told = seen.clone();
    let subscription = bus
        .on_threshold("g", Threshold::above(0.5))
        .capacity(1 << 16)
        .call(move |c: Crossing| told.lock().unwrap().push((c.epoch, c.state)))
        .unwrap();
    thread::scope(|scope| {
        for t in 0..3 {
            let gauge = &gauge;
            scope.spawn(move || {
                for i in 0..ROUNDS / 4 {
                    gauge.set(((i + t) % 2) as f64);
                }
            });
        }
    });
    gauge.set(0.0);
    gauge.set(1.0);
    until("the last one", || {
        seen.lock()
            .unwrap()
            .last()
            .is_some_and(|(_, s)| *s == Crossed::Raised)
            && subscription.stats().delivered as usize == seen.lock().unwrap().len()
    });
    for (i, (epoch, state)) in seen.lock().unwrap().iter().enumerate() {
        assert_eq!(*epoch, i as u64 + 1);
        assert_eq!(*state == Crossed::Raised, i % 2 == 0);
    }
}

// G4

#[test]
fn g4_a_callback_that_stands_still_does_not_hold_up_mutations_or_other_callbacks() {
    let bus = MetricBus::new();
    let gauge = bus.gauge("g", "g").unwrap();
    let (release, gate) = mpsc::channel::<()>();
    let (entered, inside) = mpsc::channel();
    let _hung = bus
        .on_threshold("g", Threshold::above(0.5))
        .capacity(8)
        .call(move |_| {
            entered.send(()).unwrap();
            let _ = gate.recv();
        })
        .unwrap();
    gauge.set(1.0);
    inside.recv().unwrap();
    // The dispatcher now has a thread that hangs. Everybody else goes on.
    let (tx, rx) = mpsc::channel();
    let _other = bus
        .on_threshold("g", Threshold::above(0.5))
        .capacity(1 << 15)
        .call(move |c| tx.send(c.epoch).unwrap())
        .unwrap();
    for _ in 0..1_000 {
        gauge.set(0.0);
        gauge.set(1.0);
    }
    assert_eq!(rx.iter().take(2_001).count(), 2_001);
    until("one hangs", || {
        own(&bus, "metricbus_callbacks_running") == 1.0
    });
    drop(release);
}

// G5

#[test]
fn g5_a_slow_reader_of_a_tap_learns_exactly_how_much_it_lost() {
    let bus = MetricBus::new();
    let counter = bus.counter("c_total", "c").unwrap();
    let mut tap = bus.subscribe_with_capacity("c_total", 16).unwrap();
    for _ in 0..100 {
        counter.inc();
    }
    assert_eq!(block_on(tap.next()), Some(Err(Lagged(84))));
    let first = block_on(tap.next()).unwrap().unwrap();
    assert_eq!(first.sequence, 85);
    assert_eq!(tap.subscription().stats().dropped, 84);
}

#[test]
fn g5_a_tap_forgets_series_that_were_removed() {
    let bus = MetricBus::new();
    let family = bus
        .family::<Counter>(Desc::new("c_total", "c").labels(["pod"]))
        .unwrap();
    let mut tap = bus.subscribe_with_capacity("c_total", 8).unwrap();
    for i in 0..1_000 {
        let pod = [i.to_string()];
        family.with_label_values(&pod).unwrap().inc();
        family.remove(&pod).unwrap();
    }
    assert_eq!(block_on(tap.next()), Some(Err(Lagged(992))));
    for i in 992..1_000 {
        let mutation = block_on(tap.next()).unwrap().unwrap();
        assert_eq!(mutation.series.label("pod"), Some(i.to_string()));
    }
    assert_eq!(own(&bus, "metricbus_series"), 0.0);
}

#[test]
fn g5_what_is_written_to_a_series_that_expired_or_was_removed_is_counted() {
    let clock = Clock::manual();
    let bus = MetricBus::builder().clock(clock.clone()).build();
    let ttl = Duration::from_secs(60);
    let desc = |name: &str| {
        Desc::new(name, "Of a test.")
            .labels(["i"])
            .expire_after(ttl)
    };
    let counters = bus.family::<Counter>(desc("c_total")).unwrap();
    let gauges = bus.family::<Gauge>(desc("g")).unwrap();
    let latencies = bus.family::<metricbus::Histogram>(desc("h")).unwrap();
    let counter = counters.with_label_values(&["a"]).unwrap();
    let gauge = gauges.with_label_values(&["a"]).unwrap();
    let latency = latencies.with_label_values(&["a"]).unwrap();
    counter.inc();
    gauge.set(1.0);
    latency.observe(0.5);
    // Of the whole process: other tests write to what was removed as well, so it is at least this many.
    let late = || own(&bus, "metricbus_late_writes_total");
    let before = late();
    gauges.remove(&["a"]).unwrap();
    clock.advance(ttl * 3);
    assert!(counter.series().is_removed());
    for _ in 0..10 {
        counter.inc();
        gauge.set(2.0);
        latency.observe(0.5);
    }
    assert!(late() >= before + 30.0, "{} to {}", before, late());
}

// G6

#[test]
fn g6_a_callback_that_panics_is_caught_counted_and_after_three_in_a_row_detached() {
    let bus = MetricBus::new();
    let gauge = bus.gauge("g", "g").unwrap();
    let calls = Arc::new(AtomicU64::new(0));
    let counted = calls.clone();
    let bad = bus
        .on_threshold("g", Threshold::above(0.5))
        .call(move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
            panic!("the subscriber's own fault");
        })
        .unwrap();
    let (tx, rx) = mpsc::channel();
    let _good = bus
        .on_threshold("g", Threshold::above(0.5))
        .call(move |c| tx.send(c).unwrap())
        .unwrap();
    for _ in 0..10 {
        gauge.set(1.0);
        gauge.set(0.0);
    }
    assert_eq!(rx.iter().take(20).count(), 20);
    until("detached", || bad.is_detached());
    assert_eq!(calls.load(Ordering::SeqCst), 3);
    assert_eq!(bad.stats().panicked, 3);
    until("counted", || {
        own(&bus, "metricbus_subscriptions_detached_total") == 1.0
    });
    assert_eq!(own(&bus, "metricbus_callback_panics_total"), 3.0);
    until("one left", || own(&bus, "metricbus_subscriptions") == 1.0);
}

#[test]
fn g6_a_panic_now_and_then_does_not_detach() {
    let bus = MetricBus::new();
    let gauge = bus.gauge("g", "g").unwrap();
    let (tx, rx) = mpsc::channel();
    let subscription = bus
        .on_threshold("g", Threshold::above(0.5))
        .call(move |c: Crossing| {
            tx.send(c.epoch).unwrap();
            assert!(c.epoch.is_multiple_of(2), "odd epochs panic");
        })
        .unwrap();
    for _ in 0..10 {
        gauge.set(1.0);
        gauge.set(0.0);
    }
    assert_eq!(rx.iter().take(20).last(), Some(20));
    assert!(!subscription.is_detached());
    assert_eq!(subscription.stats().panicked, 10);
}

/// One thread more than there are for callbacks hangs, and ten times as many: the rest is called all the same, by mutations and by timers.
#[test]
fn g6_however_many_callbacks_hang_the_others_are_called() {
    const THREADS: usize = 4;
    for hanging in [THREADS + 1, 10 * THREADS] {
        let clock = Clock::manual();
        let builder = MetricBus::builder().clock(clock.clone());
        let bus = builder.workers_max(THREADS).build();
        let (g, kv) = (bus.gauge("g", "g").unwrap(), bus.gauge("kv", "k").unwrap());
        let full = Condition::when(&kv, Threshold::above(0.9));
        let hold = Duration::from_millis(50);
        let rule = bus
            .add_rule(Rule::new("Full", full).hold_for(hold))
            .unwrap();

        let gate = Arc::new(RwLock::new(()));
        let closed = gate.write().unwrap();
        let begun = Arc::new(AtomicU64::new(0));
        let hung: Vec<_> = (0..hanging)
            .map(|_| {
                let (gate, begun) = (gate.clone(), begun.clone());
                let hang = move |_| {
                    begun.fetch_add(1, Ordering::SeqCst);
                    drop(gate.read());
                };
                bus.on_change(&g).call(hang).unwrap()
            })
            .collect();
        g.set(1.0);
        until("all of them hang", || {
            clock.advance(Duration::from_secs(1));
            begun.load(Ordering::SeqCst) == hanging as u64
        });

        let (tell, told) = mpsc::channel();
        let (by_call, inline) = (tell.clone(), tell.clone());
        let _callback = rule
            .on_alert()
            .call(move |_| by_call.send("callback").unwrap())
            .unwrap();
        let _inline = rule
            .on_alert()
            .inline(move |_| inline.send("inline").unwrap())
            .unwrap();
        let _other = bus
            .on_change(&kv)
            .call(move |_| tell.send("change").unwrap())
            .unwrap();
        kv.set(1.0);
        clock.advance(hold);
        let heard = Mutex::new(Vec::new());
        until("everybody else has heard", || {
            clock.advance(Duration::from_secs(1));
            heard.lock().unwrap().extend(told.try_iter());
            heard.lock().unwrap().len() == 3
        });
        let mut heard = heard.into_inner().unwrap();
        heard.sort_unstable();
        assert_eq!(heard, ["callback", "change", "inline"]);

        // It is seen: which they are, how many there are, and how many threads are left.
        until("it is told", || {
            let told: u64 = hung
                .iter()
                .map(|subscription| subscription.stats().hung)
                .sum();
            told as f64 == own(&bus, "metricbus_callbacks_hung_total")
                && told >= (hanging - THREADS + 1) as u64
        });
        let now = own(&bus, "metricbus_callbacks_hanging");
        assert!(
            now >= (hanging - THREADS + 1) as f64 && now <= hanging as f64,
            "{now}"
        );
        assert!(own(&bus, "metricbus_dispatcher_threads") <= THREADS as f64);

        drop(closed);
        until("all have come back", || {
            own(&bus, "metricbus_callbacks_hanging") == 0.0
                && own(&bus, "metricbus_callbacks_running") == 0.0
        });
        assert!(own(&bus, "metricbus_dispatcher_threads") <= THREADS as f64);
        let delivered = hung
            .iter()
            .map(|subscription| subscription.stats().delivered);
        assert_eq!(delivered.sum::<u64>(), hanging as u64);
    }
}

/// With the threads and the clock that a program has. It takes the second after which a callback is said to hang.
#[test]
fn g6_alerts_of_timers_are_told_while_more_callbacks_hang_than_there_are_threads() {
    let bus = MetricBus::new();
    let (g, kv) = (bus.gauge("g", "g").unwrap(), bus.gauge("kv", "k").unwrap());
    let gate = Arc::new(RwLock::new(()));
    let closed = gate.write().unwrap();
    let _hung: Vec<_> = (0..65)
        .map(|_| {
            let gate = gate.clone();
            bus.on_change(&g).call(move |_| drop(gate.read())).unwrap()
        })
        .collect();
    g.set(1.0);
    let full = Condition::when(&kv, Threshold::above(0.9));
    let rule = Rule::new("Full", full).hold_for(Duration::from_millis(5));
    let rule = bus.add_rule(rule).unwrap();
    let (tell, told) = mpsc::channel();
    let inline = tell.clone();
    let _callback = rule
        .on_alert()
        .call(move |_| tell.send("callback").unwrap())
        .unwrap();
    let _inline = rule
        .on_alert()
        .inline(move |_| inline.send("inline").unwrap())
        .unwrap();
    kv.set(1.0);
    let mut heard = [told.recv().unwrap(), told.recv().unwrap()];
    heard.sort_unstable();
    assert_eq!(heard, ["callback", "inline"]);
    drop(closed);
}

/// Slow is only who mutates.
#[test]
fn g6_an_inline_callback_that_hangs_keeps_nobody_else_from_hearing() {
    let bus = MetricBus::new();
    let g = bus.gauge("g", "g").unwrap();
    let gate = Arc::new(RwLock::new(()));
    let closed = gate.write().unwrap();
    let hang = gate.clone();
    let _first = bus
        .on_change(&g)
        .inline(move |_| drop(hang.read()))
        .unwrap();
    let (tell, told) = mpsc::channel();
    let _other = bus
        .on_change(&g)
        .call(move |_| tell.send(()).unwrap())
        .unwrap();
    // The same of what a timer sets off, which hangs on nobody's thread.
    let fires = |name: &str| {
        let full = Condition::when(&g, Threshold::above(0.5));
        bus.add_rule(Rule::new(name, full).hold_for(Duration::from_millis(5)))
            .unwrap()
    };
    let (hangs, tells) = (fires("Hangs"), fires("Tells"));
    let hang = gate.clone();
    let _inline = hangs.on_alert().inline(move |_| drop(hang.read())).unwrap();
    let (tell, of_timers) = mpsc::channel();
    let again = tell.clone();
    let _of_the_same = hangs
        .on_alert()
        .call(move |_| tell.send(()).unwrap())
        .unwrap();
    let _of_another = tells
        .on_alert()
        .inline(move |_| again.send(()).unwrap())
        .unwrap();
    thread::scope(|scope| {
        scope.spawn(|| g.set(1.0));
        told.recv().unwrap();
        of_timers.recv().unwrap();
        of_timers.recv().unwrap();
        drop(closed);
    });
}

#[test]
fn g6_an_inline_callback_that_panics_does_not_harm_the_mutating_thread() {
    let bus = MetricBus::new();
    let gauge = bus.gauge("g", "g").unwrap();
    let bad = bus
        .on_threshold("g", Threshold::above(0.5))
        .inline(|_| panic!("inline"))
        .unwrap();
    for _ in 0..5 {
        gauge.set(1.0);
        gauge.set(0.0);
    }
    assert_eq!(gauge.get(), Some(0.0));
    assert!(bad.is_detached());
}

#[test]
fn g6_callbacks_that_set_each_other_off_do_not_recurse_without_bound() {
    let bus = MetricBus::new();
    let (a, b) = (bus.gauge("a", "a").unwrap(), bus.gauge("b", "b").unwrap());
    let (a2, b2) = (a.clone(), b.clone());
    let stop = Arc::new(AtomicBool::new(false));
    let (stop_a, stop_b) = (stop.clone(), stop.clone());
    let _ab = bus
        .on_change("a")
        .inline(move |_| {
            if !stop_a.load(Ordering::Relaxed) {
                b2.inc();
            }
        })
        .unwrap();
    let _ba = bus
        .on_change("b")
        .inline(move |_| {
            if !stop_b.load(Ordering::Relaxed) {
                a2.inc();
            }
        })
        .unwrap();
    // Without a bound this would never return, or overflow the stack.
    a.inc();
    until("handed to the dispatcher", || {
        own(&bus, "metricbus_inline_overruns_total") >= 1.0
    });
    stop.store(true, Ordering::Relaxed);
}

// G7

#[test]
fn g7_a_series_that_was_never_set_fires_nothing() {
    let bus = MetricBus::new();
    let mut low = bus
        .on_threshold("free_ratio", Threshold::below(0.1))
        .stream()
        .unwrap();
    let free = bus
        .gauge("free_ratio", "Share of memory that is free.")
        .unwrap();
    free.set(0.9);
    free.set(0.05);
    let first = block_on(low.next()).unwrap();
    assert_eq!((first.value, first.epoch), (0.05, 1));
}

#[test]
fn g7_nothing_in_a_window_is_none_and_not_zero() {
    let bus = MetricBus::builder().clock(Clock::manual()).build();
    let h = bus.histogram("h", "h", Default::default()).unwrap();
    let seen = h.series().window(Duration::from_secs(1)).stats();
    assert_eq!(
        (seen.avg, seen.min, seen.max, seen.last),
        (None, None, None, None)
    );
    let none = bus
        .window("nothing_of_this_name", Duration::from_secs(1))
        .unwrap()
        .stats();
    assert_eq!((none.sources, none.sum, none.avg), (0, None, None));
}

#[test]
fn a_crossing_waits_for_nobody_to_subscribe_twice() {
    // Many threads subscribe while many declare: each subscriber gets each series exactly once.
    let bus = MetricBus::new();
    let family = bus
        .family::<Gauge>(Desc::new("g", "g").labels(["i"]))
        .unwrap();
    let barrier = Barrier::new(4);
    let streams = thread::scope(|scope| {
        let subscribers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    barrier.wait();
                    (0..50)
                        .map(|_| {
                            bus.on_threshold("g", Threshold::above(0.5))
                                .capacity(1_000)
                                .stream()
                                .unwrap()
                        })
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        for t in 0..2 {
            let (family, barrier) = (&family, &barrier);
            scope.spawn(move || {
                barrier.wait();
                for i in 0..100 {
                    family
                        .with_label_values(&[format!("{t}-{i}")])
                        .unwrap()
                        .set(1.0);
                }
            });
        }
        subscribers
            .into_iter()
            .flat_map(|s| s.join().unwrap())
            .collect::<Vec<_>>()
    });
    drop(bus);
    drop(family);
    for stream in streams {
        assert_eq!(stream.subscription().stats().series_matched, 200);
    }
}

#[test]
fn g7_a_gauge_that_was_never_set_was_not_measured_whoever_came_first() {
    let clock = Clock::manual();
    let bus = MetricBus::builder().clock(clock.clone()).build();
    let free = bus
        .gauge("free_ratio", "Share of memory that is free.")
        .unwrap();
    let mut low = bus
        .on_threshold(&free, Threshold::below(0.1))
        .stream()
        .unwrap();
    let mut moved = bus.on_delta(&free, Delta::absolute(0.1)).stream().unwrap();
    let mut changed = bus.on_change(&free).stream().unwrap();
    let window = free.series().window(Duration::from_secs(10));
    let all = bus.window("free_ratio", Duration::from_secs(10)).unwrap();
    clock.advance(Duration::from_secs(5));
    for seen in [window.stats(), all.stats()] {
        assert_eq!((seen.avg, seen.min, seen.last), (None, None, None));
    }
    free.set(0.5);
    clock.advance(Duration::from_secs(5));
    for seen in [window.stats(), all.stats()] {
        assert_eq!(
            (seen.avg, seen.min, seen.max),
            (Some(0.5), Some(0.5), Some(0.5))
        );
    }
    free.set(0.0);
    let first = block_on(low.next()).unwrap();
    assert_eq!(
        (first.value, first.epoch, first.cause),
        (0.0, 1, Cause::Crossing)
    );
    // The first value is where a delta starts from, and a change.
    let first = block_on(moved.next()).unwrap();
    assert_eq!((first.from, first.to), (0.5, 0.0));
    assert_eq!(block_on(changed.next()).unwrap().value, Value::F64(0.0));
}

#[test]
fn g5_letters_of_removed_series_do_not_pile_up_before_a_reader_that_stands_still() {
    let bus = MetricBus::new();
    let family = bus
        .family::<Counter>(Desc::new("c_total", "c").labels(["pod"]))
        .unwrap();
    let kept = family.with_label_values(&["kept"]).unwrap();
    let mut changes = bus.on_change("c_total").capacity(16).stream().unwrap();
    for i in 0..2_000 {
        let pod = [i.to_string()];
        family.with_label_values(&pod).unwrap().inc();
        family.remove(&pod).unwrap();
    }
    kept.inc();
    let dropped = changes.subscription().stats().dropped;
    assert!(dropped >= 2_000 - 32, "{dropped}");
    // What is left of them is read, and the change of the one that lives is not lost.
    drop(bus);
    drop(family);
    let left = block_on(changes.by_ref().collect::<Vec<_>>());
    assert!(left.len() <= 33);
    assert_eq!(
        left.last().map(|c| c.series.to_string()),
        Some(kept.series().to_string())
    );
}

// Locks

/// An inline callback that makes a child of the family whose series set it off, while subscriptions come and go and
/// mutations race: whoever runs it must not hold the family's lock.
#[test]
fn an_inline_callback_may_make_children_while_others_unsubscribe() {
    let bus = MetricBus::new();
    let family = bus
        .family::<Gauge>(Desc::new("g", "g").labels(["i"]).series_max(100_000))
        .unwrap();
    let gauge = family.with_label_values(&["0"]).unwrap();
    let stop = AtomicBool::new(false);
    let made = Arc::new(AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for i in 0_u64.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    gauge.set((i % 2) as f64);
                }
            });
        }
        let (child, made) = (family.clone(), made.clone());
        let _making = bus
            .on_threshold(&gauge, Threshold::above(0.5))
            .inline(move |_| {
                let n = made.fetch_add(1, Ordering::Relaxed) % 1_000;
                child
                    .with_label_values(&[format!("made {n}")])
                    .unwrap()
                    .inc();
            })
            .unwrap();
        for _ in 0..2_000 {
            drop(
                bus.on_threshold("g", Threshold::above(0.2))
                    .stream()
                    .unwrap(),
            );
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(made.load(Ordering::Relaxed) > 0);
}

#[test]
fn the_last_bus_may_go_while_children_are_being_made() {
    for _ in 0..200 {
        let bus = MetricBus::new();
        let family = bus
            .family::<Counter>(Desc::new("c_total", "c").labels(["i"]))
            .unwrap();
        let barrier = Barrier::new(2);
        thread::scope(|scope| {
            scope.spawn(|| {
                barrier.wait();
                for i in 0..200 {
                    family.with_label_values(&[i.to_string()]).unwrap().inc();
                }
            });
            barrier.wait();
            drop(bus);
        });
        assert_eq!(family.len(), 200);
    }
}
