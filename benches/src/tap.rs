//! `tap_one_subscriber`: setting a gauge while one live subscriber takes every mutation in another thread.
//!
//! Both sides have the same conditions: one subscriber, that reads its stream in a thread of its own with the same
//! `block_on`, looks at each event, and parks when there is none; room for 8 192 events, which is what
//! `MetricBus::subscribe` has; values that can't be predicted; the same number of sets in a round. A lane sets as fast as
//! it can, which few subscribers keep up with: both sides drop the oldest and say how many. After each round the lane
//! waits, outside of the time measured, until its subscriber has accounted for every single set, so that it is parked
//! while others are measured. What share arrived is shown with the figures, and how many sets there were for each time
//! that the subscriber slept: waking it is what costs most, and it depends on who happens to be the faster one.
//!
//! - Subject: `Gauge::set` with one `MetricBus::subscribe`.
//! - Floor: `AtomicU64::swap(bits, AcqRel)`: a set that nobody hears of.
//! - Peer: the naive bus with one subscriber.
//! - Also shown: both with a subscriber that never parks during its rounds but asks again and again, so that nobody has
//!   to be woken.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use futures::StreamExt;
use metricbus::{Gauge, MetricBus};
use tokio::sync::broadcast::error::RecvError;

use crate::{
    Failure,
    harness::{Effort, Lane, Role, Values, interleave_equal, spin, spin_until},
    naive::NaiveBus,
    report::{Bar, Figures, Unit},
};

/// Of `MetricBus::subscribe`.
const CAPACITY: usize = 8_192;

/// What a subscriber has heard of so far.
#[derive(Default)]
struct Account {
    arrived: AtomicU64,
    dropped: AtomicU64,
    /// How often the subscriber's thread slept; known at its end, on Linux.
    slept: AtomicU64,
    /// Whether the subscriber is to ask again rather than park.
    asks: AtomicBool,
    stop: AtomicBool,
}

impl Account {
    /// Takes note of an event; `false` when it was the last one wanted.
    fn arrived(&self) -> bool {
        self.arrived.fetch_add(1, Ordering::AcqRel);
        !self.stop.load(Ordering::Acquire)
    }

    fn total(&self) -> u64 {
        self.arrived.load(Ordering::Acquire) + self.dropped.load(Ordering::Acquire)
    }

    fn share(&self) -> f64 {
        self.arrived.load(Ordering::Acquire) as f64 / self.total() as f64
    }

    /// A subscriber that sleeps has to be woken by the thread that sets, which costs it far more than all the rest.
    /// `None` where the system doesn't tell.
    fn sets_per_sleep(&self) -> Option<f64> {
        let slept = self.slept.load(Ordering::Acquire);
        (slept > 0).then(|| self.total() as f64 / slept as f64)
    }
}

/// How a subscriber waits for the next event.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wait {
    Park,
    /// Asks again and again while its lane runs.
    Ask,
}

/// A subscriber's thread, which ends after the first event that follows [`Tapped::stop`].
struct Tapped {
    account: Arc<Account>,
    wait: Wait,
    thread: JoinHandle<()>,
}

impl Tapped {
    fn new<F: Future<Output = ()>>(
        wait: Wait,
        read: impl FnOnce(Arc<Account>) -> F + Send + 'static,
    ) -> Result<Tapped, Failure> {
        let account = Arc::new(Account::default());
        let shared = account.clone();
        let thread = std::thread::Builder::new()
            .name("subscriber".into())
            .spawn(move || {
                let account = shared.clone();
                let ending = shared.clone();
                let mut reading = Box::pin(read(shared));
                futures::executor::block_on(std::future::poll_fn(move |cx| {
                    loop {
                        let polled = reading.as_mut().poll(cx);
                        if polled.is_ready() {
                            return polled;
                        }
                        if !account.asks.load(Ordering::Acquire) {
                            return polled;
                        }
                        std::hint::spin_loop();
                    }
                }));
                ending
                    .slept
                    .store(times_slept().unwrap_or(0), Ordering::Release);
            })?;
        Ok(Tapped {
            account,
            wait,
            thread,
        })
    }

    /// A round: `n` sets, and then the wait for the subscriber, which is not counted.
    fn round<T>(&self, gauge: &T, n: u64, set: impl Fn(&T, usize)) -> Result<Duration, Failure> {
        let account = &self.account;
        if self.wait == Wait::Ask {
            account.asks.store(true, Ordering::Release);
            // It is parked still; this wakes it before the time starts.
            let wanted = account.total() + 1;
            set(gauge, 0);
            spin_until("the subscriber to wake", || account.total() >= wanted)?;
        }
        let wanted = account.total() + n;
        let took = spin(gauge, n, set);
        spin_until("the subscriber to account for every set", || {
            account.total() >= wanted
        })?;
        account.asks.store(false, Ordering::Release);
        Ok(took)
    }

    fn stop(self, wake: impl FnOnce()) -> Result<(), Failure> {
        self.account.stop.store(true, Ordering::Release);
        wake();
        self.thread
            .join()
            .map_err(|_| "a subscriber panicked".into())
    }
}

/// How often this thread has slept so far, where the system tells.
fn times_slept() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/thread-self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
    line.trim().parse().ok()
}

fn our_subscriber(wait: Wait, bus: &MetricBus, gauge: &Gauge) -> Result<Tapped, Failure> {
    let mut mutations = bus.subscribe(gauge)?;
    Tapped::new(wait, move |account| async move {
        while let Some(item) = mutations.next().await {
            match item {
                Ok(mutation) => {
                    std::hint::black_box(mutation);
                    if !account.arrived() {
                        return;
                    }
                }
                Err(lagged) => {
                    account.dropped.fetch_add(lagged.0, Ordering::AcqRel);
                }
            }
        }
    })
}

fn naive_subscriber(wait: Wait, bus: &NaiveBus) -> Result<Tapped, Failure> {
    let mut changes = bus.subscribe();
    Tapped::new(wait, move |account| async move {
        loop {
            match changes.recv().await {
                Ok(change) => {
                    std::hint::black_box(change);
                    if !account.arrived() {
                        return;
                    }
                }
                Err(RecvError::Lagged(n)) => {
                    account.dropped.fetch_add(n, Ordering::AcqRel);
                }
                Err(RecvError::Closed) => return,
            }
        }
    })
}

pub(crate) fn one_subscriber(effort: Effort) -> Result<Figures, Failure> {
    const NAME: &str = "kv_usage";
    const HELP: &str = "Share of the cache in use.";
    let values = &Values::unit();

    let (bus, asked_bus) = (MetricBus::new(), MetricBus::new());
    let (ours, ours_asked) = (&bus.gauge(NAME, HELP)?, &asked_bus.gauge(NAME, HELP)?);
    let our_tap = our_subscriber(Wait::Park, &bus, ours)?;
    let our_asking_tap = our_subscriber(Wait::Ask, &asked_bus, ours_asked)?;

    let (naive_bus, naive_asked_bus) = (NaiveBus::new(CAPACITY), NaiveBus::new(CAPACITY));
    let naive = &naive_bus.gauge(NAME, HELP)?;
    let naive_asked = &naive_asked_bus.gauge(NAME, HELP)?;
    let naive_tap = naive_subscriber(Wait::Park, &naive_bus)?;
    let naive_asking_tap = naive_subscriber(Wait::Ask, &naive_asked_bus)?;

    // Many against the one wake-up at the start of a round, and against the room for events.
    let (rounds, sets) = effort.pick((15, 20_000), (61, 50_000));
    let rounds = interleave_equal(
        rounds,
        sets,
        &mut [
            Lane::new(Role::Subject, "metricbus", |n| {
                our_tap.round(ours, n, |g, i| g.set(values.get(i)))
            }),
            Lane::of(
                Role::Floor,
                "swap(AcqRel)",
                Arc::new(AtomicU64::new(0)),
                |a, i| {
                    a.swap(values.get(i).to_bits(), Ordering::AcqRel);
                },
            ),
            Lane::new(Role::Peer, "naive bus", |n| {
                naive_tap.round(naive, n, |g, i| g.set(values.get(i)))
            }),
            Lane::new(Role::Other, "metricbus, subscriber that never parks", |n| {
                our_asking_tap.round(ours_asked, n, |g, i| g.set(values.get(i)))
            }),
            Lane::new(Role::Other, "naive bus, subscriber that never parks", |n| {
                naive_asking_tap.round(naive_asked, n, |g, i| g.set(values.get(i)))
            }),
        ],
    );
    let (our_account, naive_account) = (our_tap.account.clone(), naive_tap.account.clone());
    our_tap.stop(|| ours.set(2.0))?;
    our_asking_tap.stop(|| ours_asked.set(2.0))?;
    naive_tap.stop(|| naive.set(2.0))?;
    naive_asking_tap.stop(|| naive_asked.set(2.0))?;

    let mut figures = Figures::new("tap_one_subscriber", Unit::Ns, rounds?, Bar::Peer(0.5));
    figures.more("share_that_arrived", our_account.share());
    figures.more("peer_share_that_arrived", naive_account.share());
    if let (Some(ours), Some(naive)) =
        (our_account.sets_per_sleep(), naive_account.sets_per_sleep())
    {
        figures.more("sets_per_sleep_of_subscriber", ours);
        figures.more("peer_sets_per_sleep_of_subscriber", naive);
    }
    Ok(figures)
}
