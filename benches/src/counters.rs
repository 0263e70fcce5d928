//! `counter_inc`, `counter_inc_armed`, `counter_inc_2_threads_same`: adding 1 to a counter.
//!
//! - Subject: `Counter::inc` on a bus that is in use: somebody subscribed to another series. *Armed*: one threshold is
//!   on this very counter, and is never crossed.
//! - Floor: `AtomicU64::fetch_add(1, AcqRel)` behind an `Arc`, as any shared handle has it.
//! - Peers: the counters of `prometheus`, `prometheus-client` and `measured`, which are relaxed additions and tell
//!   nobody.
//!
//! With two threads, both add to the same counter. A barrier starts them; the time is from the first start to the last
//! end, per addition, both threads' additions counted. The threads are new in each round, and started before the time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use metricbus::{Counter, MetricBus, Subscription, Threshold};

use crate::{
    Failure,
    harness::{Effort, Lane, Plan, Role, interleave, spin, spin_until},
    report::{Bar, Figures, Unit},
};

/// A counter on a bus that is in use.
struct Ours {
    counter: Counter,
    _bus: MetricBus,
    _subscriptions: Vec<Subscription>,
}

fn ours(armed: bool) -> Result<Ours, Failure> {
    let bus = MetricBus::new();
    let counter = bus.counter("requests_total", "Requests served.")?;
    let elsewhere = bus.counter("tokens_total", "Tokens generated.")?;
    // More than any run counts to.
    let never = Threshold::above(1e18);
    let mut subscriptions = vec![bus.on_threshold(&elsewhere, never).call(|_| {})?];
    if armed {
        subscriptions.push(bus.on_threshold(&counter, never).call(|_| {})?);
    }
    Ok(Ours {
        counter,
        _bus: bus,
        _subscriptions: subscriptions,
    })
}

pub(crate) fn inc(effort: Effort) -> Result<Figures, Failure> {
    one_thread("counter_inc", effort, false)
}

pub(crate) fn inc_armed(effort: Effort) -> Result<Figures, Failure> {
    one_thread("counter_inc_armed", effort, true)
}

fn one_thread(name: &'static str, effort: Effort, armed: bool) -> Result<Figures, Failure> {
    let ours = ours(armed)?;
    let lanes = &mut [
        Lane::of(Role::Subject, "metricbus", ours.counter.clone(), |c, _| {
            c.inc()
        }),
        Lane::of(
            Role::Floor,
            "fetch_add(AcqRel)",
            Arc::new(AtomicU64::new(0)),
            |a, _| {
                a.fetch_add(1, Ordering::AcqRel);
            },
        ),
        Lane::of(
            Role::Peer,
            "prometheus",
            prometheus::IntCounter::new("requests_total", "Requests served.")?,
            |c, _| c.inc(),
        ),
        Lane::of(
            Role::Other,
            "prometheus-client",
            prometheus_client::metrics::counter::Counter::<u64>::default(),
            |c, _| {
                c.inc();
            },
        ),
        Lane::of(
            Role::Other,
            "measured",
            Arc::new(measured::Counter::new()),
            |c, _| c.inc(),
        ),
    ];
    let rounds = interleave(effort.fast(), lanes)?;
    Ok(Figures::new(name, Unit::Ns, rounds, Bar::Floor(1.2)))
}

pub(crate) fn inc_2_threads_same(effort: Effort) -> Result<Figures, Failure> {
    let ours = ours(false)?;
    let lanes = &mut [
        two_threads(Role::Subject, "metricbus", ours.counter.clone(), |c| {
            c.inc()
        }),
        two_threads(
            Role::Floor,
            "fetch_add(AcqRel)",
            Arc::new(AtomicU64::new(0)),
            |a| {
                a.fetch_add(1, Ordering::AcqRel);
            },
        ),
        two_threads(
            Role::Peer,
            "prometheus",
            prometheus::IntCounter::new("requests_total", "Requests served.")?,
            |c| c.inc(),
        ),
        two_threads(
            Role::Other,
            "prometheus-client",
            prometheus_client::metrics::counter::Counter::<u64>::default(),
            |c| {
                c.inc();
            },
        ),
        two_threads(
            Role::Other,
            "measured",
            Arc::new(measured::Counter::new()),
            |c| c.inc(),
        ),
    ];
    let plan = Plan {
        rounds: effort.pick(9, 41),
        // Long enough for the threads to overlap almost all of the time.
        round: effort.pick(Duration::from_millis(1), Duration::from_millis(3)),
    };
    let rounds = interleave(plan, lanes)?;
    Ok(Figures::new(
        "counter_inc_2_threads_same",
        Unit::Ns,
        rounds,
        Bar::None,
    ))
}

/// A lane in which two threads do `op` with one handle at the same time.
fn two_threads<'a, T: Sync + 'a>(
    role: Role,
    name: &'static str,
    handle: T,
    op: impl Fn(&T) + Copy + Send + Sync + 'a,
) -> Lane<'a> {
    Lane::new(role, name, move |n| {
        const THREADS: usize = 2;
        let ready = AtomicUsize::new(0);
        let one = || {
            ready.fetch_add(1, Ordering::AcqRel);
            // Spinning: a barrier that parks would start one of them a wake-up later than the other.
            spin_until("the other thread", || {
                ready.load(Ordering::Acquire) == THREADS
            })?;
            let start = Instant::now();
            let took = spin(&handle, n / THREADS as u64 + 1, |handle, _| op(handle));
            Ok::<_, Failure>((start, start + took))
        };
        let spans = std::thread::scope(|scope| {
            let threads = [(); THREADS].map(|()| scope.spawn(one));
            threads.map(|thread| {
                thread
                    .join()
                    .map_err(|_| Failure::from("a thread panicked"))?
            })
        });
        let [a, b] = spans;
        let (a, b) = (a?, b?);
        Ok(a.1.max(b.1) - a.0.min(b.0))
    })
}
