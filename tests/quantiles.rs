//! Quantiles of windows: within 1.1 % whatever the data, alone and merged, and with threads at work.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use metricbus::{Buckets, Clock, Counter, Desc, Gauge, Histogram, MetricBus, WindowStats};
use proptest::prelude::*;

const WIDTH: Duration = Duration::from_secs(10);

fn bus() -> (MetricBus, Clock) {
    let clock = Clock::manual();
    (MetricBus::builder().clock(clock.clone()).build(), clock)
}

/// SplitMix64, the same numbers in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// More than 0, at most 1.
    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        let (u, v) = (self.unit(), self.unit());
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }
}

/// What `WindowStats::quantile` promises of these observations. Below the normal doubles there is a rounding more.
fn assert_quantiles(seen: &WindowStats, mut all: Vec<f64>) {
    all.sort_by(f64::total_cmp);
    assert_eq!(seen.count, all.len() as u64);
    for permille in (0..1_000).step_by(13).chain([990, 999, 1_000]) {
        let wanted = (all.len() * permille).div_ceil(1_000).max(1);
        let exact = all[wanted - 1];
        let estimate = seen.quantile(permille as f64 / 1_000.0).unwrap();
        let fits = estimate == exact
            || (estimate - exact).abs() <= 0.010_84 * exact.abs() + f64::from_bits(1);
        assert!(fits, "{permille} ‰: {estimate:e} instead of {exact:e}");
        assert!(Some(estimate) >= seen.min && Some(estimate) <= seen.max);
    }
    assert_eq!(seen.quantile(0.0), Some(all[0]));
    assert_eq!(seen.quantile(1.0), all.last().copied());
}

/// Observes the data in three series, and looks at each and at all together.
fn check(data: &[f64]) {
    let (bus, clock) = bus();
    let family = bus
        .family::<Histogram>(Desc::new("h", "h").labels(["i"]))
        .unwrap();
    let windows = bus.window("h", WIDTH).unwrap();
    let parts: Vec<&[f64]> = data.chunks(data.len().div_ceil(3)).collect();
    for (i, part) in parts.iter().enumerate() {
        let histogram = family.with_label_values(&[i.to_string()]).unwrap();
        for (n, v) in part.iter().enumerate() {
            // Over many slots.
            if n % (part.len() / 50 + 1) == 0 {
                clock.advance(Duration::from_millis(60));
            }
            histogram.observe(*v);
        }
    }
    for (series, seen) in windows.each() {
        let part: usize = series.label("i").unwrap().parse().unwrap();
        assert_quantiles(&seen, parts[part].to_vec());
    }
    assert_quantiles(&windows.stats(), data.to_vec());
}

#[test]
fn quantiles_of_smooth_and_of_wild_distributions_are_within_bounds() {
    let mut random = Random(1);
    let mut draw = |f: &dyn Fn(&mut Random) -> f64| -> Vec<f64> {
        (0..5_000).map(|_| f(&mut random)).collect()
    };
    // Latencies; tails that have no mean; two modes, a million apart; both signs.
    check(&draw(&|r| 0.05 * r.normal().exp()));
    check(&draw(&|r| r.unit().powf(-1.0 / 0.8)));
    check(&draw(&|r| {
        let mode = if r.unit() < 0.3 { 1.0 } else { 1e6 };
        mode * (1.0 + 0.05 * r.normal())
    }));
    check(&draw(&|r| r.normal() * 1e-3));
    check(
        &draw(&|r| f64::from_bits(r.next()))
            .into_iter()
            .filter(|v| v.is_finite())
            .collect::<Vec<_>>(),
    );
}

#[test]
fn quantiles_of_data_on_the_buckets_bounds_are_within_bounds() {
    let mut data = Vec::new();
    for exponent in (-1_074..1_024).step_by(7) {
        let power = 2_f64.powi(exponent / 2) * 2_f64.powi(exponent - exponent / 2);
        data.extend([power, power.next_up(), power.next_down()]);
    }
    for n in -200..200 {
        let bound = (f64::from(n) / 32.0).exp2();
        data.extend([bound, bound.next_up(), bound.next_down()]);
    }
    data.extend([
        0.0,
        -0.0,
        f64::MAX,
        f64::MIN_POSITIVE,
        f64::MIN_POSITIVE.next_down(),
    ]);
    data.extend(data.clone().iter().map(|v| -v));
    check(&data);
}

#[test]
fn quantiles_of_subnormal_data_are_within_bounds() {
    let data: Vec<f64> = (1..3_000_u64).map(|n| f64::from_bits(n * n * n)).collect();
    check(&data);
}

#[test]
fn infinities_are_extremes_and_quantiles_but_no_average() {
    let (bus, _) = bus();
    let histogram = bus.histogram("h", "h", Buckets::default()).unwrap();
    let window = histogram.series().window(WIDTH);
    for v in [1.0, 2.0, f64::INFINITY, f64::INFINITY] {
        histogram.observe(v);
    }
    let seen = window.stats();
    assert_eq!((seen.min, seen.max), (Some(1.0), Some(f64::INFINITY)));
    assert_eq!(
        (seen.sum, seen.avg),
        (Some(f64::INFINITY), Some(f64::INFINITY))
    );
    assert_eq!(seen.stddev, None);
    assert_eq!(seen.quantile(0.75), Some(f64::INFINITY));
    histogram.observe(f64::NEG_INFINITY);
    let seen = window.stats();
    assert_eq!((seen.sum, seen.avg, seen.count), (None, None, 5));
    assert_eq!(seen.quantile(0.1), Some(f64::NEG_INFINITY));
}

#[test]
fn what_is_no_share_has_no_quantile() {
    let (bus, _) = bus();
    let histogram = bus.histogram("h", "h", Buckets::default()).unwrap();
    let window = histogram.series().window(WIDTH);
    assert_eq!(window.stats().quantile(0.5), None);
    histogram.observe(3.0);
    let seen = window.stats();
    for q in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
        assert_eq!(seen.quantile(q), None, "{q}");
    }
    // One observation is every quantile, exactly: there is nothing between its extremes.
    for q in [0.0, 0.3, 1.0] {
        assert_eq!(seen.quantile(q), Some(3.0), "{q}");
    }
    histogram.observe(f64::NAN);
    assert_eq!(window.stats().count, 1);
}

#[test]
fn quantiles_of_a_gauge_are_shares_of_time() {
    let (bus, clock) = bus();
    let gauge = bus.gauge("g", "g").unwrap();
    let window = gauge.series().window(WIDTH);
    assert_eq!(window.stats().quantile(0.5), None);
    gauge.set(5.0);
    // Asked at once: held for no time, but held.
    assert_eq!(window.stats().quantile(0.5), Some(5.0));
    // A spike, whenever it comes, weighs what it lasts.
    for i in 0..90 {
        gauge.set(if i % 10 == 0 { 1_000.0 } else { 1.0 });
        clock.advance(Duration::from_millis(100));
    }
    let seen = window.stats();
    let near = |q: f64, v: f64| (seen.quantile(q).unwrap() - v).abs() <= 0.011 * v;
    assert!(
        near(0.5, 1.0) && near(0.9, 1.0) && near(0.91, 1_000.0),
        "{seen:?}"
    );
    assert_eq!(seen.quantile(1.0), Some(1_000.0));
}

#[test]
fn a_gauge_that_wanders_over_many_octaves_forgets_no_time() {
    // More buckets than the table of an open slot holds, in every slot.
    let (bus, clock) = bus();
    let gauge = bus.gauge("g", "g").unwrap();
    gauge.set(1.0);
    let window = gauge.series().window(Duration::from_secs(10));
    let mut random = Random(2);
    let mut held = Vec::new();
    for _ in 0..9_000 {
        let v = (random.normal() * 40.0).exp2() * if random.unit() < 0.5 { -1.0 } else { 1.0 };
        gauge.set(v);
        clock.advance(Duration::from_millis(1));
        held.push(v);
    }
    let mut seen = window.stats();
    seen.count = held.len() as u64;
    seen.min = held.iter().copied().reduce(f64::min);
    assert_quantiles(&seen, held);
}

#[test]
fn a_sum_that_rounding_has_eaten_comes_from_the_sketch() {
    let (bus, clock) = bus();
    let histogram = bus.histogram("h", "h", Buckets::default()).unwrap();
    histogram.observe(1e18);
    let window = histogram.series().window(WIDTH);
    for _ in 0..100 {
        histogram.observe(3.0);
    }
    clock.advance(Duration::from_secs(1));
    let sum = window.stats().sum.unwrap();
    assert!((sum - 300.0).abs() <= 0.011 * 300.0, "{sum}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn quantiles_of_any_doubles_are_within_bounds(data in prop::collection::vec(any::<f64>(), 3..120)) {
        let data: Vec<f64> = data.into_iter().filter(|v| v.is_finite()).collect();
        if !data.is_empty() {
            check(&data);
        }
    }
}

#[test]
fn whatever_threads_do_while_slots_go_by_counts_sums_and_extremes_are_whole() {
    const EACH: u32 = 30_000;
    const THREADS: u32 = 3;
    let (bus, clock) = bus();
    let histogram = bus.histogram("h", "h", Buckets::default()).unwrap();
    let counter = bus.counter("c_total", "c").unwrap();
    let gauge = bus.gauge("g", "g").unwrap();
    let width = Duration::from_secs(100_000);
    let observed = [
        histogram.series().window(width),
        histogram.series().window(WIDTH),
    ];
    let (counted, held) = (counter.series().window(width), gauge.series().window(width));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS)
            .map(|t| {
                let (histogram, counter, gauge) = (&histogram, &counter, &gauge);
                scope.spawn(move || {
                    for i in 0..EACH {
                        histogram.observe(f64::from(i * THREADS + t));
                        counter.inc_by(2);
                        gauge.set(f64::from(i));
                    }
                })
            })
            .collect();
        // Windows come and go, are asked, and slots end, all at once.
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                drop(histogram.series().window(width));
                let seen = observed[1].stats();
                assert!(seen.count == 0 || seen.quantile(0.5).is_some());
                assert!(counted.stats().increase <= Some(f64::from(2 * EACH * THREADS)));
            }
        });
        while !workers.iter().all(|w| w.is_finished()) {
            clock.advance(Duration::from_secs(3));
        }
        done.store(true, Ordering::Release);
    });
    let n = u64::from(EACH * THREADS);
    let seen = observed[0].stats();
    assert_eq!((seen.count, seen.sum), (n, Some((n * (n - 1) / 2) as f64)));
    assert_eq!((seen.min, seen.max), (Some(0.0), Some((n - 1) as f64)));
    let median = seen.quantile(0.5).unwrap();
    assert!((median / (n as f64 / 2.0) - 1.0).abs() < 0.011, "{median}");
    assert_eq!(counted.stats().increase, Some(2.0 * n as f64));
    let seen = held.stats();
    assert_eq!((seen.count, seen.max), (n, Some(f64::from(EACH - 1))));
}

#[test]
fn series_of_all_kinds_merge_into_what_each_can_say() {
    let (bus, clock) = bus();
    bus.declare::<Counter>(Desc::new("a_total", "a").label("pod", "1"))
        .unwrap()
        .inc_by(8);
    let gauge = bus
        .declare::<Gauge>(Desc::new("b", "b").label("pod", "1"))
        .unwrap();
    gauge.set(4.0);
    let histogram = bus
        .declare::<Histogram>(Desc::new("c", "c").label("pod", "1"))
        .unwrap();
    let windows = bus.window("{pod=\"1\"}", WIDTH).unwrap();
    histogram.observe(100.0);
    clock.advance(Duration::from_secs(1));
    let seen = windows.stats();
    // Average and quantiles are of the gauge.
    assert_eq!((seen.sources, seen.stale), (3, 2));
    assert_eq!((seen.avg, seen.stddev), (Some(4.0), Some(0.0)));
    assert!((seen.quantile(0.5).unwrap() - 4.0).abs() < 0.05);
}
