//! Windows on virtual time, to the tick.

use std::time::Duration;

use metricbus::{Buckets, Clock, Counter, Desc, Gauge, MetricBus, WindowStats};
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
fn a_window_by_name_has_the_last_value_of_the_one_series_that_it_is_about() {
    let (bus, _) = bus();
    let family = bus
        .family::<Gauge>(Desc::new("kv", "k").labels(["worker"]))
        .unwrap();
    let windows = bus.window("kv", secs(10.0)).unwrap();
    assert_eq!(windows.stats().last, None);
    family.with_label_values(&["a"]).unwrap().set(3.0);
    assert_eq!(windows.stats().last, Some(3.0));
    family.with_label_values(&["b"]).unwrap().set(4.0);
    assert_eq!((windows.stats().last, windows.stats().sources), (None, 2));
    let by_worker = windows.stats_by(&["worker"]);
    let last: Vec<_> = by_worker.iter().map(|(_, seen)| seen.last).collect();
    assert_eq!(last, [Some(3.0), Some(4.0)]);
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
    // For its width, and until the slot ends in which that is over.
    clock.advance(secs(10.1) - Duration::from_nanos(1));
    assert_eq!(window.stats().sum, Some(5.0));
    clock.advance(Duration::from_nanos(1));
    let seen = window.stats();
    assert_eq!(
        (seen.increase, seen.stale, seen.rate),
        (Some(0.0), 1, Some(0.0))
    );
    assert_eq!((seen.coverage, seen.last), (1.0, Some(5.0)));
}

#[test]
fn coverage_is_1_as_soon_as_the_width_is_covered_and_stays_so() {
    let (bus, clock) = bus();
    // Windows that begin within a slot.
    clock.advance(Duration::from_millis(1_234));
    let gauge = bus.gauge("g", "g").unwrap();
    let counter = bus.counter("c_total", "c").unwrap();
    let histogram = bus.histogram("h", "h", Buckets::default()).unwrap();
    let windows =
        [gauge.series(), counter.series(), histogram.series()].map(|s| s.window(secs(300.0)));
    let coverage = || windows.each_ref().map(|w| w.stats().coverage);
    clock.advance(secs(300.0) - Duration::from_nanos(1));
    assert!(coverage().iter().all(|c| *c < 1.0), "{:?}", coverage());
    clock.advance(Duration::from_nanos(1));
    for i in 0..2_000_u32 {
        assert_eq!(coverage(), [1.0; 3], "{i}");
        gauge.set(f64::from(i));
        counter.inc();
        histogram.observe(f64::from(i));
        clock.advance(Duration::from_millis(777));
    }
}

#[test]
fn a_maximum_is_remembered_for_the_width_and_less_than_a_slot_more() {
    for offset in [0, 1, 1_499, 2_999] {
        let (bus, clock) = bus();
        let gauge = bus.gauge("g", "g").unwrap();
        let histogram = bus.histogram("h", "h", Buckets::default()).unwrap();
        let windows = [gauge.series(), histogram.series()].map(|s| s.window(secs(300.0)));
        clock.advance(secs(900.0) + Duration::from_millis(offset));
        for value in [9.0, 1.0] {
            gauge.set(value);
            histogram.observe(value);
        }
        let maxima = || windows.each_ref().map(|w| w.stats().max);
        for _ in 0..300 {
            clock.advance(secs(1.0));
            assert_eq!(maxima(), [Some(9.0); 2], "{offset}");
        }
        clock.advance(secs(3.0));
        assert_eq!(maxima(), [Some(1.0), None], "{offset}");
    }
}

/// The same values, in all ways in which a window puts things together.
#[test]
fn averages_and_deviations_are_exact_however_they_are_put_together() {
    let minute = secs(60.0);
    let (bus, clock) = bus();
    let one = bus.gauge("one", "g").unwrap();
    let within_slots = bus.gauge("within_slots", "g").unwrap();
    let each = bus
        .family::<Gauge>(Desc::new("each", "g").labels(["i"]))
        .unwrap();
    let windows = [
        bus.window("one", minute * 60).unwrap(),
        bus.window("within_slots", minute * 60).unwrap(),
        bus.window("each", minute * 60).unwrap(),
    ];
    // Gauges of which each has an average that no double is.
    let children = [[10.0, 10.0, 20.0], [20.0, 20.0, 10.0]];
    for step in 0..240_usize {
        let value = [10.0, 20.0][step / 60 % 2];
        one.set(value);
        for (i, values) in children.iter().enumerate() {
            let gauge = each.with_label_values(&[&i.to_string()]).unwrap();
            gauge.set(values[step % 3]);
        }
        within_slots.set([10.0, 20.0][step % 2]);
        clock.advance(secs(1.0));
    }
    for window in &windows {
        let seen = window.stats();
        assert_eq!(
            (seen.avg, seen.stddev),
            (Some(15.0), Some(5.0)),
            "{window:?}"
        );
    }
}

#[test]
fn an_average_of_decimal_fractions_is_rounded_once() {
    let (bus, clock) = bus();
    let gauge = bus.gauge("g", "g").unwrap();
    let window = gauge.series().window(secs(3_600.0));
    for i in 0..3_000 {
        gauge.set([0.1, 0.2, 0.3][i % 3]);
        clock.advance(secs(1.0));
    }
    let seen = window.stats();
    // 0.1 + 0.2 + 0.3, as doubles are: 0.6000000000000000055, a third of which is nearest to 0.2.
    assert_eq!(seen.avg, Some(0.2));
    // The values themselves add up to the double that is nearest to 600, too.
    assert_eq!(seen.sum, Some(600.0));
}

#[test]
fn sums_and_rates_of_many_series_do_not_depend_on_their_order() {
    let (bus, clock) = bus();
    let desc = |name: &str| Desc::new(name, "c").labels(["i"]);
    let counters = bus
        .family::<metricbus::Counter<f64>>(desc("c_total"))
        .unwrap();
    let all = bus.window("c_total", secs(10.0)).unwrap();
    for i in 0..10 {
        let counter = counters.with_label_values(&[&i.to_string()]).unwrap();
        counter.inc_by(0.1);
    }
    clock.advance(Duration::from_millis(300));
    let seen = all.stats();
    assert_eq!(seen.increase, Some(1.0));
    let (bus, clock) = self::bus();
    let counter = bus.counter("c_total", "c").unwrap();
    let window = counter.series().window(secs(10.0));
    counter.inc_by(21);
    clock.advance(Duration::from_millis(700));
    // 21 / 0.7 is 30.000000000000004 in doubles, as no double is 0.7.
    assert_eq!(window.stats().rate, Some(30.0));
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

/// What the sequences below are made of.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Wait(u64),
    /// To the next multiple of so many milliseconds, where slots of some widths begin.
    WaitUntilMultipleOf(u64),
    Set(f64),
    Count(u64),
    Observe(f64),
    Ask,
}

fn numbers() -> impl Strategy<Value = f64> {
    prop_oneof![
        8 => (-1_000..1_000_i32).prop_map(|v| f64::from(v) / 8.0),
        2 => (0..12_i32).prop_map(|v| f64::from(v) + 1e9),
        1 => Just(f64::NAN),
    ]
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let deed = prop_oneof![
        3 => (0..3_000_000_000_u64).prop_map(Deed::Wait),
        3 => (0..100_000_000_u64).prop_map(Deed::Wait),
        3 => prop_oneof![Just(10_u64), Just(100), Just(777)].prop_map(Deed::WaitUntilMultipleOf),
        1 => (0..60_000_000_000_u64).prop_map(Deed::Wait),
        6 => numbers().prop_map(Deed::Set),
        4 => (0..50_u64).prop_map(Deed::Count),
        6 => numbers().prop_map(Deed::Observe),
        4 => Just(Deed::Ask),
    ];
    prop::collection::vec(deed, 1..150)
}

/// Everything that was done since the window was made, with its time in nanoseconds.
struct Log {
    made: u64,
    width: u64,
    slot: u64,
    /// Begins with the value that the window found, if there was one.
    sets: Vec<(u64, f64)>,
    found: bool,
    counts: Vec<(u64, u64)>,
    observations: Vec<(u64, f64)>,
    /// Whether a NaN has spoilt the running sum.
    spoilt: bool,
}

impl Log {
    fn start(&self, now: u64) -> u64 {
        let start = now.saturating_sub(self.width) / self.slot * self.slot;
        start.max(self.made)
    }

    /// Small while the window is young; then 1.
    fn coverage(&self, now: u64) -> f64 {
        let covered = now - self.start(now);
        assert!(covered < self.width + self.slot);
        if now - self.made >= self.width {
            1.0
        } else {
            covered as f64 / self.width as f64
        }
    }

    /// A gauge's values with the nanoseconds for which they were held in the window. Some for none: those set and
    /// replaced at once.
    fn held(&self, now: u64) -> Vec<(f64, u64)> {
        let start = self.start(now);
        let mut held = Vec::new();
        for (i, &(from, value)) in self.sets.iter().enumerate() {
            let until = self.sets.get(i + 1).map_or(now, |next| next.0);
            let was_set = from >= start && (i > 0 || !self.found);
            if (until > start || was_set) && !value.is_nan() {
                held.push((
                    value,
                    until.max(start) - from.max(start).min(until.max(start)),
                ));
            }
        }
        held
    }

    fn gauge_agrees(&self, seen: &WindowStats, now: u64) {
        let start = self.start(now);
        let held = self.held(now);
        let set = || {
            self.sets
                .iter()
                .skip(usize::from(self.found))
                .filter(|s| s.0 >= start)
        };
        let counted = || set().filter(|s| !s.1.is_nan());
        assert_eq!(seen.count, counted().count() as u64);
        assert_eq!(seen.stale, usize::from(set().count() == 0));
        let newest = self
            .sets
            .get(usize::from(self.found)..)
            .and_then(|s| s.last());
        assert_eq!(
            seen.age.map(|age| age.as_nanos()),
            newest.map(|n| u128::from(now - n.0))
        );
        assert_eq!(seen.coverage, self.coverage(now));
        let last = self.sets.last().map(|s| s.1).filter(|v| !v.is_nan());
        assert_eq!(seen.last, last);

        let total: u64 = held.iter().map(|h| h.1).sum();
        if total > 0 {
            let values = || held.iter().map(|h| h.0);
            assert_eq!(seen.min, values().reduce(f64::min), "{held:?}");
            assert_eq!(seen.max, values().reduce(f64::max));
            let mean = |f: &dyn Fn(f64) -> f64| {
                held.iter().map(|h| f(h.0) * h.1 as f64).sum::<f64>() / total as f64
            };
            let avg = mean(&|v| v);
            assert!(close(seen.avg, avg), "{seen:?} {avg}");
            let stddev = mean(&|v| (v - avg).powi(2)).sqrt();
            let error = (seen.stddev.unwrap() - stddev).abs();
            assert!(error <= 1e-6 * stddev.max(1.0), "{seen:?} {stddev}");
            let longer: Vec<_> = held.iter().copied().filter(|h| h.1 > 0).collect();
            quantiles_agree(seen, longer);
        }
        // The value at the start, or the first since.
        let first = if start == self.made {
            self.sets.first().filter(|_| self.found)
        } else {
            self.sets.iter().rev().find(|s| s.0 < start)
        };
        let first = first.map_or(f64::NAN, |s| s.1);
        let first = if first.is_nan() {
            counted().next().map_or(f64::NAN, |s| s.1)
        } else {
            first
        };
        let increase = Some(last.unwrap_or(f64::NAN) - first).filter(|i| !i.is_nan());
        assert_eq!(seen.increase, increase);
    }

    fn counter_agrees(&self, seen: &WindowStats, now: u64) {
        let start = self.start(now);
        let increase: u64 = self
            .counts
            .iter()
            .filter(|c| c.0 >= start)
            .map(|c| c.1)
            .sum();
        assert_eq!(seen.increase, Some(increase as f64));
        assert_eq!(seen.sum, seen.increase);
        assert_eq!(seen.stale, usize::from(increase == 0));
        assert_eq!(seen.coverage, self.coverage(now));
        if now - start >= self.slot {
            assert!(close(
                seen.rate,
                increase as f64 / ((now - start) as f64 / 1e9)
            ));
        }
        assert_eq!(
            (seen.count, seen.avg, seen.min, seen.quantile(0.5)),
            (0, None, None, None)
        );
        self.is_about(
            seen,
            self.counts.iter().rfind(|c| c.1 > 0).map(|c| c.0),
            now,
        );
    }

    /// The age is known to a slot.
    fn is_about(&self, seen: &WindowStats, newest: Option<u64>, now: u64) {
        let age = seen.age.map(|age| age.as_nanos() as u64);
        assert_eq!(age.is_some(), newest.is_some());
        if let (Some(age), Some(newest)) = (age, newest) {
            let real = now - newest;
            assert!(
                age <= real && real <= age + self.slot,
                "{age} is not about {real}"
            );
        }
    }

    fn histogram_agrees(&self, seen: &WindowStats, now: u64) {
        let start = self.start(now);
        let numbers = || self.observations.iter().filter(|o| !o.1.is_nan());
        let all: Vec<f64> = numbers().filter(|o| o.0 >= start).map(|o| o.1).collect();
        assert_eq!(seen.count, all.len() as u64);
        assert_eq!(seen.increase, Some(all.len() as f64));
        assert_eq!(seen.stale, usize::from(all.is_empty()));
        assert_eq!(seen.min, all.iter().copied().reduce(f64::min));
        assert_eq!(seen.max, all.iter().copied().reduce(f64::max));
        self.is_about(seen, numbers().next_back().map(|o| o.0), now);
        let n = all.len() as f64;
        let sum: f64 = all.iter().sum();
        let size: f64 = all.iter().map(|v| v.abs()).sum();
        let allowed = if self.spoilt {
            0.011 * size
        } else {
            1e-9 * size
        };
        assert!((seen.sum.unwrap() - sum).abs() <= allowed, "{seen:?} {sum}");
        if n > 0.0 {
            assert!((seen.avg.unwrap() - sum / n).abs() <= allowed / n + 1e-9);
            let square = |f: &dyn Fn(f64) -> f64| {
                (all.iter().map(|v| f(*v).powi(2)).sum::<f64>() / n).sqrt()
            };
            let (stddev, size) = (square(&|v| v - sum / n), square(&|v| v));
            let error = (seen.stddev.unwrap() - stddev).abs();
            assert!(error <= 0.010_84 * size + 1e-9, "{seen:?} {stddev}");
            quantiles_agree(seen, all.iter().map(|v| (*v, 1)).collect());
        } else {
            assert_eq!(
                (seen.avg, seen.stddev, seen.quantile(0.5)),
                (None, None, None)
            );
        }
    }
}

/// Every quantile is within 1.1 % of the value that it stands for.
fn quantiles_agree(seen: &WindowStats, mut weighted: Vec<(f64, u64)>) {
    weighted.sort_by(|a, b| a.0.total_cmp(&b.0));
    let total: u64 = weighted.iter().map(|w| w.1).sum();
    for percent in [1_u64, 10, 25, 50, 75, 90, 99] {
        let wanted = (u128::from(total) * u128::from(percent)).div_ceil(100);
        let mut reached = 0;
        let exact = weighted.iter().find(|w| {
            reached += u128::from(w.1);
            reached >= wanted
        });
        let (exact, estimate) = (
            exact.unwrap().0,
            seen.quantile(percent as f64 / 100.0).unwrap(),
        );
        assert!(
            (estimate - exact).abs() <= 0.011 * exact.abs(),
            "{percent} %: {estimate} {exact}"
        );
    }
    assert_eq!(
        (seen.quantile(0.0), seen.quantile(1.0)),
        (seen.min, seen.max)
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Against an evaluation as one would do it on paper: keep everything, cut off what lies before the window, add up.
    #[test]
    fn windows_agree_with_a_naive_evaluation(
        before in (0..3_000_000_000_u64),
        found in any::<bool>(),
        width in prop_oneof![
            Just(100_000_000_u64), Just(1_000_000_000), Just(10_000_000_000), 100_000_000..20_000_000_000_u64,
        ],
        deeds in deeds(),
    ) {
        let (bus, clock) = bus();
        let gauge = bus.gauge("g", "g").unwrap();
        let counter = bus.counter("c_total", "c").unwrap();
        let histogram = bus.histogram("h", "h", Buckets::default()).unwrap();
        clock.advance(Duration::from_nanos(before));
        counter.inc_by(7);
        histogram.observe(0.3);
        let mut log = Log {
            made: before,
            width,
            slot: width.div_ceil(100).max(10_000_000),
            sets: Vec::new(),
            found,
            counts: Vec::new(),
            observations: Vec::new(),
            spoilt: false,
        };
        if found {
            gauge.set(3.0);
            log.sets.push((before, 3.0));
        }
        let of = |series: metricbus::Series| series.window(Duration::from_nanos(width));
        let windows = [of(gauge.series()), of(counter.series()), of(histogram.series())];
        for deed in deeds.into_iter().chain([Deed::Ask]) {
            let now = clock.now().as_nanos();
            match deed {
                Deed::Wait(ns) => clock.advance(Duration::from_nanos(ns)),
                Deed::WaitUntilMultipleOf(ms) => {
                    let period = ms * 1_000_000;
                    clock.advance(Duration::from_nanos(period - now % period));
                }
                Deed::Set(v) => {
                    gauge.set(v);
                    log.sets.push((now, v));
                }
                Deed::Count(n) => {
                    counter.inc_by(n);
                    log.counts.push((now, n));
                }
                Deed::Observe(v) => {
                    histogram.observe(v);
                    log.observations.push((now, v));
                    log.spoilt |= v.is_nan();
                }
                Deed::Ask => {
                    let [gauge, counter, histogram] = windows.each_ref().map(|w| w.stats());
                    log.gauge_agrees(&gauge, now);
                    log.counter_agrees(&counter, now);
                    log.histogram_agrees(&histogram, now);
                }
            }
        }
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

#[test]
fn slots_of_all_windows_begin_at_the_same_times() {
    let (bus, clock) = bus();
    let counter = bus.counter("c_total", "c").unwrap();
    let first = counter.series().window(secs(10.0));
    clock.advance(Duration::from_millis(1_234));
    let second = counter.series().window(secs(10.0));
    for _ in 0..400 {
        counter.inc();
        clock.advance(Duration::from_millis(77));
    }
    assert_eq!(first.stats(), second.stats());
    // Since the last boundary that is as old as 10 s.
    let now = clock.now().as_secs_f64();
    let start = ((now - 10.0) * 10.0).floor() / 10.0;
    let seen = first.stats();
    assert_eq!(seen.coverage, 1.0);
    assert!(close(seen.rate, seen.increase.unwrap() / (now - start)));
}

#[test]
fn age_is_since_the_newest_mutation_and_stale_is_who_had_none() {
    let (bus, clock) = bus();
    let family = bus
        .family::<Gauge>(Desc::new("g", "g").labels(["i"]))
        .unwrap();
    let windows = bus.window("g", secs(10.0)).unwrap();
    for i in ["a", "b"] {
        family.with_label_values(&[i]).unwrap().set(1.0);
    }
    let counter = bus.counter("c_total", "c").unwrap();
    let counted = counter.series().window(secs(10.0));
    assert_eq!((counted.stats().age, counted.stats().stale), (None, 1));
    counter.inc();
    assert_eq!(counted.stats().age, Some(Duration::ZERO));
    clock.advance(secs(7.0));
    // Set to what it is already: a mutation all the same.
    family.with_label_values(&["b"]).unwrap().set(1.0);
    clock.advance(secs(5.0));
    let seen = windows.stats();
    assert_eq!(
        (seen.age, seen.sources, seen.stale),
        (Some(secs(5.0)), 2, 1)
    );
    let each = windows.each();
    assert_eq!((each[0].1.age, each[0].1.stale), (Some(secs(12.0)), 1));
    // Known to a slot: it was seen at the first boundary after it.
    let seen = counted.stats();
    assert_eq!((seen.age, seen.stale), (Some(secs(11.9)), 1));
}

#[test]
fn groups_have_the_labels_that_were_asked_for() {
    let (bus, _) = bus();
    let family = bus
        .family::<Counter>(Desc::new("c_total", "c").labels(["pod", "status"]))
        .unwrap();
    let windows = bus.window("c_total", secs(10.0)).unwrap();
    for (pod, status, n) in [("a", "ok", 3), ("b", "ok", 4), ("b", "error", 5)] {
        family.with_label_values(&[pod, status]).unwrap().inc_by(n);
    }
    let groups = |labels: &[&str]| -> Vec<(String, Option<f64>)> {
        let show = |(name, value): &(String, String)| format!("{name}={value}");
        windows
            .stats_by(labels)
            .iter()
            .map(|(labels, seen)| (labels.iter().map(show).collect(), seen.increase))
            .collect()
    };
    let group = |labels: &str, n| (labels.to_owned(), Some(n));
    assert_eq!(groups(&["pod"]), [group("pod=a", 3.0), group("pod=b", 9.0)]);
    assert_eq!(
        groups(&["zone", "status"]),
        [
            group("zone=status=error", 5.0),
            group("zone=status=ok", 7.0),
        ]
    );
    assert_eq!(groups(&[]), [group("", 12.0)]);
}

#[test]
fn a_removed_series_leaves_its_window_as_it_was() {
    let (bus, clock) = bus();
    let counter = bus.counter("c_total", "c").unwrap();
    let histogram = bus.histogram("h", "h", Buckets::default()).unwrap();
    let (counted, observed) = (
        counter.series().window(secs(10.0)),
        histogram.series().window(secs(10.0)),
    );
    counter.inc_by(6);
    histogram.observe(2.0);
    clock.advance(secs(3.0));
    assert_eq!(bus.remove("{__name__=~\"c_total|h\"}").unwrap(), 2);
    counter.inc_by(100);
    histogram.observe(100.0);
    clock.advance(secs(30.0));
    let seen = counted.stats();
    assert_eq!(
        (seen.increase, seen.rate, seen.coverage),
        (Some(6.0), Some(2.0), 0.3)
    );
    let seen = observed.stats();
    assert_eq!((seen.count, seen.max, seen.sum), (1, Some(2.0), Some(2.0)));
}

#[test]
fn a_histogram_that_is_born_later_has_been_empty_until_then() {
    let (bus, clock) = bus();
    let windows = bus.window("h", secs(10.0)).unwrap();
    clock.advance(secs(5.0));
    let histogram = bus.histogram("h", "h", Buckets::default()).unwrap();
    histogram.observe(1.0);
    clock.advance(secs(5.0));
    let seen = windows.stats();
    assert_eq!((seen.count, seen.rate, seen.coverage), (1, Some(0.1), 1.0));
}

#[test]
fn what_is_infinite_is_an_average_but_has_no_spread() {
    let (bus, clock) = bus();
    let gauge = bus.gauge("g", "g").unwrap();
    let window = gauge.series().window(secs(10.0));
    for v in [1.0, f64::INFINITY] {
        gauge.set(v);
        clock.advance(secs(1.0));
    }
    let seen = window.stats();
    assert_eq!(
        (seen.avg, seen.max),
        (Some(f64::INFINITY), Some(f64::INFINITY))
    );
    assert_eq!((seen.min, seen.stddev), (Some(1.0), None));
    assert_eq!(seen.quantile(0.75), Some(f64::INFINITY));
    gauge.set(f64::NEG_INFINITY);
    clock.advance(secs(1.0));
    assert_eq!(window.stats().avg, None);
}

#[test]
fn an_average_of_large_values_with_a_small_spread_loses_nothing() {
    let (bus, clock) = bus();
    let gauge = bus.gauge("g", "g").unwrap();
    let window = gauge.series().window(secs(10.0));
    for i in 0..9_000_u32 {
        gauge.set(1e12 + f64::from(i % 3));
        clock.advance(Duration::from_millis(1));
    }
    let seen = window.stats();
    assert_eq!(seen.avg, Some(1e12 + 1.0));
    // Off by what a double of this size is rounded to, and no more.
    let error = seen.stddev.unwrap() - (2.0_f64 / 3.0).sqrt();
    assert!(error.abs() < 1e-6, "{seen:?}");
}

#[test]
fn a_rule_about_full_coverage_fires_once_and_stays() {
    let kit = metricbus::testing::TestBus::new();
    kit.set("g", 1.0);
    let full = metricbus::Expr::over("g", secs(300.0)).coverage();
    let full = metricbus::Condition::when(full, metricbus::Threshold::at_least(1.0));
    let rule = kit.add_rule(metricbus::Rule::new("Full", full));
    for second in 1..=1_200_u32 {
        kit.advance(secs(1.0));
        assert_eq!(rule.status().fired, u64::from(second >= 300), "{second}");
    }
}

#[test]
fn a_threshold_at_an_average_or_a_sum_is_met_by_exactly_that() {
    let kit = metricbus::testing::TestBus::new();
    let at_least =
        |expr, bound| metricbus::Condition::when(expr, metricbus::Threshold::at_least(bound));
    let avg = metricbus::Expr::over("g", secs(3_600.0)).avg();
    let avg = kit.add_rule(metricbus::Rule::new("Avg", at_least(avg, 15.0)));
    let sum = kit.add_rule(metricbus::Rule::new(
        "Sum",
        at_least(metricbus::Expr::sum("part"), 1.0),
    ));
    for i in 0..10 {
        kit.set(&format!("part{{i=\"{i}\"}}"), 0.1);
    }
    assert_eq!(sum.status().value, Some(1.0));
    for value in [10.0, 20.0, 10.0, 20.0] {
        kit.set("g", value);
        kit.advance(secs(60.0));
    }
    assert_eq!((avg.status().value, avg.status().firing), (Some(15.0), 1));
}
