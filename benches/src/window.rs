//! `window_observe_gauge`, `window_observe_histogram`, `window_inc_counter`: a mutation with one window of 10 s open;
//! `window_query`, `quantile_query`: asking such a window.
//!
//! The mutations:
//!
//! - Subject: the mutation of a series with one window of 10 s, on the system's clock, whose slots begin while it is
//!   measured.
//! - Floor: the same mutation of a series without one. What a window adds is shown as `added_ns`.
//! - Peer: the same with a listener that costs what a window would without any trick: for gauges and counters, a lock and
//!   a clock read around the floor; for histograms, a second histogram.
//!
//! The questions, each to a window with 100 slots in which something was done:
//!
//! - Subject: `Window::stats` of a gauge; `Window::stats().quantile(0.99)` of a histogram with log-normal data.
//! - Floor: adding up 100 numbers; for the quantile, a walk over an array of its buckets.
//! - Peer: the observations themselves, kept for the whole window: their mean; and sorting a copy for the quantile.

use std::{
    hint::black_box,
    sync::Mutex,
    time::{Duration, Instant},
};

use metricbus::{Buckets, Clock, Counter, Gauge, Histogram, MetricBus, Window};

use crate::{
    Failure,
    harness::{Effort, Lane, Plan, Random, Role, Rounds, Values, interleave},
    histogram::{BOUNDS, durations},
    report::{Bar, Figures, Unit},
    stats::quantile,
};

const WIDTH: Duration = Duration::from_secs(10);

/// With the nanoseconds that a window adds, the median over the rounds.
fn figures(name: &'static str, rounds: Rounds, bar: Bar) -> Figures {
    let added = match (rounds.lane(Role::Subject), rounds.lane(Role::Floor)) {
        (Some((_, with)), Some((_, without))) => {
            let added: Vec<f64> = with.iter().zip(without).map(|(w, o)| w - o).collect();
            quantile(&added, 0.5)
        }
        _ => None,
    };
    let mut figures = Figures::new(name, Unit::Ns, rounds, bar);
    if let Some(added) = added {
        figures.more("added_ns", added);
    }
    figures
}

/// A metric as one would watch it by hand.
struct Locked<M> {
    metric: M,
    last: Mutex<Instant>,
}

impl<M> Locked<M> {
    fn new(metric: M) -> Self {
        let last = Mutex::new(Instant::now());
        Locked { metric, last }
    }

    fn mutate(&self, f: impl FnOnce(&M)) {
        if let Ok(mut last) = self.last.lock() {
            f(&self.metric);
            *last = Instant::now();
        }
    }
}

pub(crate) fn observe_gauge(effort: Effort) -> Result<Figures, Failure> {
    let bus = MetricBus::new();
    let gauge = |name: &str| bus.gauge(name, "Share of the cache in use.");
    let (windowed, plain, locked) = (gauge("a")?, gauge("b")?, gauge("c")?);
    let _window = windowed.series().window(WIDTH);
    let values = &Values::unit();
    let set = |g: &Gauge, i: usize| g.set(values.get(i));
    let rounds = interleave(
        effort.fast(),
        &mut [
            Lane::of(Role::Subject, "metricbus, one window", windowed, set),
            Lane::of(Role::Floor, "without a window", plain, set),
            Lane::of(
                Role::Peer,
                "lock and clock",
                Locked::new(locked),
                |g: &Locked<Gauge>, i| g.mutate(|g| set(g, i)),
            ),
        ],
    )?;
    Ok(figures("window_observe_gauge", rounds, Bar::None))
}

pub(crate) fn inc_counter(effort: Effort) -> Result<Figures, Failure> {
    let bus = MetricBus::new();
    let counter = |name: &str| bus.counter(name, "Requests served.");
    let (windowed, plain, locked) = (
        counter("a_total")?,
        counter("b_total")?,
        counter("c_total")?,
    );
    let _window = windowed.series().window(WIDTH);
    let inc = |c: &Counter, _| c.inc();
    let rounds = interleave(
        effort.fast(),
        &mut [
            Lane::of(Role::Subject, "metricbus, one window", windowed, inc),
            Lane::of(Role::Floor, "without a window", plain, inc),
            Lane::of(
                Role::Peer,
                "lock and clock",
                Locked::new(locked),
                |c: &Locked<Counter>, _| c.mutate(Counter::inc),
            ),
        ],
    )?;
    Ok(figures("window_inc_counter", rounds, Bar::Floor(1.05)))
}

pub(crate) fn observe_histogram(effort: Effort) -> Result<Figures, Failure> {
    let bus = MetricBus::new();
    let histogram = |name: &str| -> Result<Histogram, Failure> {
        Ok(bus.histogram(name, "Time to serve a request.", Buckets::new(BOUNDS)?)?)
    };
    let (windowed, plain) = (histogram("a_seconds")?, histogram("b_seconds")?);
    let twice = (histogram("c_seconds")?, histogram("d_seconds")?);
    let _window = windowed.series().window(WIDTH);
    let values = &durations();
    let observe = |h: &Histogram, i: usize| h.observe(values.get(i));
    let rounds = interleave(
        effort.fast(),
        &mut [
            Lane::of(Role::Subject, "metricbus, one window", windowed, observe),
            Lane::of(Role::Floor, "without a window", plain, observe),
            Lane::of(
                Role::Peer,
                "two histograms",
                twice,
                |h: &(Histogram, Histogram), i| {
                    observe(&h.0, i);
                    observe(&h.1, i);
                },
            ),
        ],
    )?;
    Ok(figures("window_observe_histogram", rounds, Bar::None))
}

/// Mutations in each of a window's slots.
const EACH: usize = 100;

/// `EACH` mutations in each of 100 slots, on a clock of its own; what was set or observed.
fn filled(clock: &Clock, mut value: impl FnMut() -> f64, mutate: impl Fn(f64)) -> Vec<f64> {
    let mut all = Vec::new();
    for _ in 0..100 {
        for _ in 0..EACH {
            clock.advance(WIDTH / 100 / EACH as u32);
            let v = value();
            mutate(v);
            all.push(v);
        }
    }
    all
}

/// Fewer rounds, as each question takes microseconds.
fn slow(effort: Effort) -> Plan {
    Plan {
        rounds: effort.pick(9, 41),
        ..effort.fast()
    }
}

pub(crate) fn query(effort: Effort) -> Result<Figures, Failure> {
    let clock = Clock::manual();
    let bus = MetricBus::builder().clock(clock.clone()).build();
    let gauge = bus.gauge("queue_depth", "Requests waiting.")?;
    let window = gauge.series().window(WIDTH);
    let mut random = Random::new();
    let kept = filled(&clock, || random.unit(), |v| gauge.set(v));
    let slots: Vec<f64> = kept.iter().copied().step_by(EACH).collect();
    let rounds = interleave(
        slow(effort),
        &mut [
            Lane::of(Role::Subject, "metricbus", window, |w: &Window, _| {
                black_box(w.stats());
            }),
            Lane::of(
                Role::Floor,
                "adding up 100 numbers",
                slots,
                |s: &Vec<f64>, _| {
                    black_box(s.iter().sum::<f64>());
                },
            ),
            Lane::of(
                Role::Peer,
                "mean of 10 000 values kept",
                kept,
                |k: &Vec<f64>, _| {
                    black_box(k.iter().sum::<f64>() / k.len() as f64);
                },
            ),
        ],
    )?;
    Ok(Figures::new("window_query", Unit::Ns, rounds, Bar::None))
}

pub(crate) fn quantile_query(effort: Effort) -> Result<Figures, Failure> {
    let clock = Clock::manual();
    let bus = MetricBus::builder().clock(clock.clone()).build();
    let latency = bus.histogram("latency_seconds", "Time to answer.", Buckets::new(BOUNDS)?)?;
    let window = latency.series().window(WIDTH);
    let mut random = Random::new();
    // Box and Muller: the logarithm has a standard deviation of 1, and the median is 50 ms.
    let log_normal = move || {
        let (u, v) = (1.0 - random.unit(), random.unit());
        0.05 * ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()).exp()
    };
    let kept = filled(&clock, log_normal, |v| latency.observe(v));
    let exact = quantile(&kept, 0.99).ok_or("nothing was observed")?;
    let estimate = window.stats().quantile(0.99).ok_or("the window is empty")?;
    // Eleven octaves are what the data spans.
    let array = vec![EACH as u64; 11 * 32];
    let rounds = interleave(
        slow(effort),
        &mut [
            Lane::of(Role::Subject, "metricbus", window, |w: &Window, _| {
                black_box(w.stats().quantile(0.99));
            }),
            Lane::of(
                Role::Floor,
                "walk over an array",
                array,
                |a: &Vec<u64>, _| {
                    let wanted = a.iter().sum::<u64>() * 99 / 100;
                    let mut reached = 0;
                    black_box(a.iter().position(|n| {
                        reached += n;
                        reached >= wanted
                    }));
                },
            ),
            Lane::of(
                Role::Peer,
                "sorting 10 000 values kept",
                kept,
                |k: &Vec<f64>, _| {
                    black_box(quantile(k, 0.99));
                },
            ),
        ],
    )?;
    let mut figures = Figures::new("quantile_query", Unit::Ns, rounds, Bar::Peer(1.0));
    figures.more(
        "error_of_p99_percent",
        (estimate / exact - 1.0).abs() * 100.0,
    );
    Ok(figures)
}
