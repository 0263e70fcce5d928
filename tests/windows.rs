//! Windows on virtual time, to the tick.

use std::time::Duration;

use metricbus::{Buckets, Clock, Counter, Desc, Gauge, MetricBus};
use proptest::prelude::*;

fn bus() -> (MetricBus, Clock) {
    let clock = Clock::manual();
    (MetricBus::builder().clock(clock.clone()).build(), clock)
}

fn secs(s: f64) -> Duration {
    Duration::from_secs_f64(s)
}

fn close(a: Option<f64>, b: f64) -> bool {
    a.is_some_and(|a| (a - b).abs() <= 1e-9 * b.abs().max(1.0))
}

#[test]
fn a_gauges_average_counts_each_value_for_as_long_as_it_was_held() {
    let (bus, clock) = bus();
    let gauge = bus.gauge("g", "g").unwrap();
    let window = gauge.series().window(secs(10.0));
    gauge.set(10.0);
    clock.advance(secs(1.0));
    gauge.set(0.0);
    clock.advance(secs(3.0));
    let seen = window.stats();
    // 10 for 1 s, 0 for 3 s; the samples' own mean would be 5.
    assert!(close(seen.avg, 2.5), "{seen:?}");
    assert_eq!((seen.count, seen.sum), (2, Some(10.0)));
    assert_eq!(
        (seen.min, seen.max, seen.last),
        (Some(0.0), Some(10.0), Some(0.0))
    );
    assert!(close(Some(seen.coverage), 0.4));
    // From the first value to the last, in 4 s.
    assert_eq!(seen.rate, Some(-2.5));
}

#[test]
fn an_idle_window_holds_the_value() {
    let (bus, clock) = bus();
    let gauge = bus.gauge("g", "g").unwrap();
    gauge.set(7.0);
    let window = gauge.series().window(secs(10.0));
    for _ in 0..5 {
        clock.advance(secs(100.0));
        let seen = window.stats();
        assert_eq!(
            (seen.avg, seen.min, seen.max),
            (Some(7.0), Some(7.0), Some(7.0))
        );
        assert_eq!((seen.count, seen.sum, seen.coverage), (0, None, 1.0));
    }
}

#[test]
fn what_is_older_than_the_window_is_gone_to_the_tick() {
    let (bus, clock) = bus();
    let counter = bus.counter("c_total", "c").unwrap();
    let window = counter.series().window(secs(10.0));
    counter.inc_by(5);
    clock.advance(secs(10.0));
    assert_eq!(window.stats().sum, Some(5.0));
    clock.advance(Duration::from_nanos(1));
    let seen = window.stats();
    assert_eq!(
        (seen.increase, seen.stale, seen.rate),
        (Some(0.0), 1, Some(0.0))
    );
    assert!(seen.coverage > 0.98 && seen.coverage <= 1.0);
    assert_eq!(seen.last, Some(5.0));
}

#[test]
fn a_counters_rate_is_exact_over_what_was_observed() {
    let (bus, clock) = bus();
    let counter = bus.counter("c_total", "c").unwrap();
    counter.inc_by(1_000);
    let window = counter.series().window(secs(60.0));
    for _ in 0..20 {
        clock.advance(secs(1.0));
        counter.inc_by(3);
    }
    let seen = window.stats();
    assert_eq!((seen.increase, seen.rate), (Some(60.0), Some(3.0)));
    assert_eq!((seen.sum, seen.last), (Some(60.0), Some(1_060.0)));
    // Nobody has seen the single increments.
    assert_eq!((seen.count, seen.min, seen.avg), (0, None, None));
}

#[test]
fn a_histograms_window_has_the_observations_themselves_and_not_their_buckets() {
    let (bus, clock) = bus();
    let h = bus
        .histogram("h", "h", Buckets::new([100.0]).unwrap())
        .unwrap();
    h.observe(99.0);
    let window = h.series().window(secs(10.0));
    for v in [1.0, 2.0, 6.0] {
        h.observe(v);
    }
    clock.advance(secs(2.0));
    let seen = window.stats();
    assert_eq!((seen.count, seen.sum, seen.avg), (3, Some(9.0), Some(3.0)));
    assert_eq!(
        (seen.min, seen.max, seen.last),
        (Some(1.0), Some(6.0), None)
    );
    assert_eq!(seen.rate, Some(1.5));
}

#[test]
fn nan_is_not_held_for_any_time() {
    let (bus, clock) = bus();
    let gauge = bus.gauge("g", "g").unwrap();
    let window = gauge.series().window(secs(10.0));
    gauge.set(4.0);
    clock.advance(secs(1.0));
    gauge.set(f64::NAN);
    clock.advance(secs(5.0));
    let seen = window.stats();
    assert!(close(seen.avg, 4.0), "{seen:?}");
    assert_eq!((seen.last, seen.max), (None, Some(4.0)));
}

#[test]
fn windows_over_a_selector_follow_series_that_come_and_go() {
    let (bus, clock) = bus();
    let windows = bus.window("g{role=\"decode\"}", secs(10.0)).unwrap();
    let family = bus
        .family::<Gauge>(Desc::new("g", "g").labels(["role", "i"]))
        .unwrap();
    let child = |role: &str, i: &str| family.with_label_values(&[role, i]).unwrap();
    child("decode", "1").set(2.0);
    child("decode", "2").set(4.0);
    child("prefill", "1").set(100.0);
    clock.advance(secs(2.0));
    let seen = windows.stats();
    assert_eq!(seen.sources, 2);
    assert!(close(seen.avg, 3.0), "{seen:?}");
    assert_eq!((seen.max, seen.last), (Some(4.0), None));
    family.remove(&["decode", "2"]).unwrap();
    clock.advance(secs(1.0));
    assert_eq!(windows.stats().sources, 1);
    assert_eq!(windows.each()[0].1.max, Some(2.0));
}

#[test]
fn rates_of_several_counters_add_up() {
    let (bus, clock) = bus();
    let family = bus
        .family::<Counter>(Desc::new("c_total", "c").labels(["i"]))
        .unwrap();
    let windows = bus.window("c_total", secs(10.0)).unwrap();
    for i in ["a", "b"] {
        family.with_label_values(&[i]).unwrap().inc_by(10);
    }
    clock.advance(secs(5.0));
    let seen = windows.stats();
    assert_eq!(
        (seen.sum, seen.rate, seen.sources),
        (Some(20.0), Some(4.0), 2)
    );
}

#[test]
fn a_window_of_a_removed_series_keeps_what_it_saw() {
    let (bus, clock) = bus();
    let family = bus
        .family::<Gauge>(Desc::new("g", "g").labels(["i"]))
        .unwrap();
    let gauge = family.with_label_values(&["1"]).unwrap();
    gauge.set(3.0);
    let window = gauge.series().window(secs(10.0));
    family.remove(&["1"]).unwrap();
    gauge.set(50.0);
    clock.advance(secs(1.0));
    assert_eq!(window.stats().max, Some(3.0));
    // One that is opened too late has the last value.
    assert_eq!(gauge.series().window(secs(1.0)).stats().last, Some(50.0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Against an evaluation as one would do it on paper: keep every change, cut off what lies before the window, add up.
    #[test]
    fn a_gauges_window_agrees_with_a_naive_evaluation(
        steps in prop::collection::vec((0u64..700, -100i32..100), 1..120),
        idle in 0u64..30_000,
    ) {
        let (bus, clock) = bus();
        let gauge = bus.gauge("g", "g").unwrap();
        gauge.set(0.0);
        let window = gauge.series().window(secs(10.0));
        let mut changes = vec![(0u64, 0.0f64)];
        for (ms, v) in steps {
            clock.advance(Duration::from_millis(ms));
            gauge.set(f64::from(v));
            changes.push((clock.now().as_nanos(), f64::from(v)));
        }
        clock.advance(Duration::from_millis(idle));
        let now = clock.now().as_nanos();
        let (slot, width) = (100_000_000, 10_000_000_000u64);
        let start = now.saturating_sub(width).div_ceil(slot) * slot;
        let expected = naive(&changes, start, now);
        let seen = window.stats();
        prop_assert_eq!(seen.count, expected.count);
        prop_assert_eq!((seen.min, seen.max, seen.last), (expected.min, expected.max, expected.last));
        prop_assert!(close(seen.avg, expected.avg.unwrap()), "{:?} {:?}", seen, expected);
        prop_assert_eq!(seen.coverage, (now - start) as f64 / width as f64);
    }
}

#[derive(Debug)]
struct Naive {
    count: u64,
    avg: Option<f64>,
    min: Option<f64>,
    max: Option<f64>,
    last: Option<f64>,
}

fn naive(changes: &[(u64, f64)], start: u64, now: u64) -> Naive {
    let (mut integral, mut values) = (0.0, Vec::new());
    for (i, &(from, value)) in changes.iter().enumerate() {
        let until = changes.get(i + 1).map_or(now, |next| next.0);
        let held = until.max(start) - from.max(start).min(until.max(start));
        integral += value * held as f64;
        // Held at the start, or set since.
        if from >= start || until > start || i + 1 == changes.len() {
            values.push(value);
        }
    }
    let span = (now - start) as f64;
    let fold = |f: fn(f64, f64) -> f64| values.iter().copied().reduce(f);
    Naive {
        count: changes
            .iter()
            .skip(1)
            .filter(|(at, _)| *at >= start)
            .count() as u64,
        avg: if span > 0.0 {
            Some(integral / span)
        } else {
            changes.last().map(|c| c.1)
        },
        min: fold(f64::min),
        max: fold(f64::max),
        last: changes.last().map(|c| c.1),
    }
}

#[test]
fn a_counter_that_is_born_does_not_make_the_summed_rate_explode() {
    let (bus, clock) = bus();
    let family = bus
        .family::<Counter>(Desc::new("c_total", "c").labels(["i"]))
        .unwrap();
    let windows = bus.window("c_total", secs(10.0)).unwrap();
    clock.advance(secs(8.0));
    family.with_label_values(&["new"]).unwrap().inc_by(4);
    clock.advance(Duration::from_micros(1));
    let seen = windows.stats();
    // It has counted nothing for 8 s: that is known.
    assert!(close(seen.rate, 4.0 / 8.000001), "{seen:?}");
    assert!(close(Some(seen.coverage), 0.8000001), "{seen:?}");
}

#[test]
fn there_is_no_rate_until_a_slot_has_been_observed() {
    let (bus, clock) = bus();
    let counter = bus.counter("c_total", "c").unwrap();
    let window = counter.series().window(secs(10.0));
    counter.inc();
    clock.advance(Duration::from_millis(99));
    assert_eq!(window.stats().rate, None);
    clock.advance(Duration::from_millis(1));
    assert_eq!(window.stats().rate, Some(10.0));
}

#[test]
fn widths_beyond_all_reason_are_taken() {
    let (bus, clock) = bus();
    let counter = bus.counter("c_total", "c").unwrap();
    let (zero, max) = (
        counter.series().window(Duration::ZERO),
        counter.series().window(Duration::MAX),
    );
    counter.inc();
    clock.advance(secs(1e6));
    assert_eq!(zero.stats().width, Duration::from_millis(100));
    assert_eq!(zero.stats().increase, Some(0.0));
    assert_eq!(max.stats().increase, Some(1.0));
}
