//! `tap_one_subscriber`: setting a gauge while one live subscriber takes every mutation in another thread.
//!
//! Both sides have the same conditions: one subscriber, that reads its stream in a thread of its own with the same
//! `block_on`, looks at each event, and parks when there is none; room for 8 192 events, which is what
//! `MetricBus::subscribe` has; values that can't be predicted. A lane sets as fast as it can, which no subscriber keeps
//! up with: both sides drop the oldest and say how many. After each round the lane waits, outside of the time measured,
//! until its subscriber has accounted for every single set, so that it is parked while others are measured. What share
//! arrived is shown with the figures.
//!
//! - Subject: `Gauge::set` with one `MetricBus::subscribe`.
//! - Floor: `AtomicU64::swap(bits, AcqRel)`: a set that nobody hears of.
//! - Peer: the naive bus with one subscriber.

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
use metricbus::MetricBus;
use tokio::sync::broadcast::error::RecvError;

use crate::{
    Failure,
    harness::{Effort, Lane, Plan, Role, Values, interleave, spin, spin_until},
    naive::NaiveBus,
    report::{Bar, Entry, Unit},
};

/// Of `MetricBus::subscribe`.
const CAPACITY: usize = 8_192;

/// What a subscriber has heard of so far.
#[derive(Default)]
struct Account {
    arrived: AtomicU64,
    dropped: AtomicU64,
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
}

/// A subscriber's thread, which ends after the first event that follows [`Tapped::stop`].
struct Tapped {
    account: Arc<Account>,
    thread: JoinHandle<()>,
}

impl Tapped {
    fn new<F: Future<Output = ()>>(
        read: impl FnOnce(Arc<Account>) -> F + Send + 'static,
    ) -> Result<Tapped, Failure> {
        let account = Arc::new(Account::default());
        let shared = account.clone();
        let thread = std::thread::Builder::new()
            .name("subscriber".into())
            .spawn(move || futures::executor::block_on(read(shared)))?;
        Ok(Tapped { account, thread })
    }

    /// A round: `n` sets, and then the wait for the subscriber, which is not counted.
    fn round<T>(&self, gauge: &T, n: u64, set: impl Fn(&T, usize)) -> Result<Duration, Failure> {
        let wanted = self.account.total() + n;
        let took = spin(gauge, n, set);
        spin_until("the subscriber to account for every set", || {
            self.account.total() >= wanted
        })?;
        Ok(took)
    }

    fn stop(self, wake: impl FnOnce()) -> Result<(), Failure> {
        self.account.stop.store(true, Ordering::Release);
        wake();
        self.thread.join().map_err(|_| "a subscriber panicked".into())
    }
}

pub(crate) fn one_subscriber(effort: Effort) -> Result<Entry, Failure> {
    let values = &Values::unit();

    let bus = MetricBus::new();
    let ours = &bus.gauge("kv_usage", "Share of the cache in use.")?;
    let mut mutations = bus.subscribe(ours)?;
    let our_tap = Tapped::new(move |account| async move {
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
    })?;

    let naive_bus = NaiveBus::new(CAPACITY);
    let naive = &naive_bus.gauge("kv_usage", "Share of the cache in use.")?;
    let mut changes = naive_bus.subscribe();
    let naive_tap = Tapped::new(move |account| async move {
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
    })?;

    let plan = Plan {
        rounds: effort.pick(15, 151),
        // Long against the one wake-up at the start of a round, and against the time to fill the room for events.
        round: effort.pick(Duration::from_millis(1), Duration::from_millis(4)),
    };
    let rounds = interleave(
        plan,
        &mut [
            Lane::new(Role::Subject, "metricbus", |n| {
                our_tap.round(ours, n, |g, i| g.set(values.get(i)))
            }),
            Lane::of(Role::Floor, "swap(AcqRel)", Arc::new(AtomicU64::new(0)), |a, i| {
                a.swap(values.get(i).to_bits(), Ordering::AcqRel);
            }),
            Lane::new(Role::Peer, "naive bus", |n| {
                naive_tap.round(naive, n, |g, i| g.set(values.get(i)))
            }),
        ],
    );
    let shares = (our_tap.account.share(), naive_tap.account.share());
    our_tap.stop(|| ours.set(2.0))?;
    naive_tap.stop(|| naive.set(2.0))?;

    let mut entry = Entry::new("tap_one_subscriber", Unit::Ns, &rounds?, Bar::Peer(0.5))?;
    entry.more("share_that_arrived", shares.0);
    entry.more("peer_share_that_arrived", shares.1);
    Ok(entry)
}
