//! What all layers share that hold alerts back: a state machine that is stepped by callers and by the bus's clock, a
//! mailbox for what it lets pass, and a task that hands this to the inner service.
//!
//! ```text
//!  call(alert) ──► machine ──► mailbox ──► task ──► inner.poll_ready, inner.call, one at a time
//!  clock       ──►    │
//! ```
//!
//! The machine is stepped under a lock that holds no foreign code, so it keeps the bus's time however slow the inner
//! service is. The newest alert always has a place in the mailbox, so the layer is always ready, and there is no
//! readiness that a clone could carry.

use std::{
    fmt,
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
};

use tower_service::Service;

use super::error::{BoxError, LayerError};
use crate::{
    MetricBus,
    backlog::Subject,
    bus::Inner,
    clock::{Clock, TimerKey},
    dispatch::{self, Callee},
    inbox::{Inbox, Item},
    listen::{CAPACITY_DEFAULT, CAPACITY_MAX, PANICS_MAX, Payload, TURN, yield_now},
    mailbox::Mailbox,
    rule::Alert,
    stats::{LayerCounts, Stats, bump},
    time::Time,
};

/// What a layer makes of alerts. Pure: told what comes and what time it is, it says what is to be sent.
pub(super) trait Machine: Send + 'static {
    type Out: Subject + Send + 'static;
    const NAME: &'static str;

    fn take(&mut self, alert: Alert, now: Time, effects: &mut Effects<Self::Out>);

    /// Does all that is due by `now`; afterwards the next is due later than `now`.
    fn expire(&mut self, now: Time, effects: &mut Effects<Self::Out>);

    /// When something is due next.
    fn next_due(&self) -> Option<Time>;

    /// No alert will come any more: sends what is held back and was true.
    fn end(&mut self, effects: &mut Effects<Self::Out>);
}

/// What a step of a machine leads to.
#[derive(Debug)]
pub(super) struct Effects<T> {
    pub(super) send: Vec<T>,
    /// Alerts that will not be sent, as the layer is meant to.
    pub(super) passed_over: u64,
    /// Keys that had to go because there were too many.
    pub(super) forgotten: u64,
}

impl<T> Default for Effects<T> {
    fn default() -> Self {
        Effects {
            send: Vec::new(),
            passed_over: 0,
            forgotten: 0,
        }
    }
}

/// What a layer has done so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct LayerStats {
    /// Sent on, and taken by the inner service.
    pub delivered: u64,
    /// Not sent on, as the layer is meant to.
    pub passed_over: u64,
    /// Lost: the queue to the inner service was full, oldest first, or its task had ended. Of a
    /// [`Rollup`](super::Rollup) this and the other counts of what is sent are of batches.
    pub dropped: u64,
    /// Failed in the inner service.
    pub errors: u64,
    /// Rules and groups that were forgotten because there were more than the layer remembers.
    pub forgotten: u64,
}

/// What a layer takes from the bus it is made with. Does not keep the bus.
#[derive(Clone)]
pub(super) struct Ground {
    clock: Clock,
    stats: Arc<Stats>,
    bus: Weak<Inner>,
    capacity: usize,
}

impl Ground {
    pub(super) fn of(bus: &MetricBus) -> Self {
        Ground {
            clock: bus.clock().clone(),
            stats: bus.inner().stats.clone(),
            bus: Arc::downgrade(bus.inner()),
            capacity: CAPACITY_DEFAULT,
        }
    }

    /// As [`Listen::capacity`](crate::Listen::capacity).
    pub(super) fn with_capacity(mut self, capacity: usize) -> Self {
        self.capacity = capacity.min(CAPACITY_MAX);
        self
    }
}

const RUNS: u8 = 0;
const DETACHED: u8 = 1;
const ENDED: u8 = 2;

/// Counts for one service and for all of its kind.
struct Tally {
    own: LayerCounts,
    all: Arc<LayerCounts>,
    stats: Arc<Stats>,
    /// How the task that delivers is.
    state: AtomicU8,
}

impl Tally {
    fn add(&self, which: impl Fn(&LayerCounts) -> &AtomicU64, n: u64) {
        for counts in [&self.own, &*self.all] {
            which(counts).fetch_add(n, Ordering::Relaxed);
        }
    }
}

/// The caller's end. Clones are the same layer; when the last is gone the machine is asked for what it holds, and the
/// task ends once that is delivered.
pub(super) struct Relay<M: Machine>(Arc<Shared<M>>);

struct Shared<M: Machine> {
    steps: Mutex<Steps<M>>,
    mailbox: Arc<Mailbox<M::Out>>,
    /// How many of those that the mailbox dropped are counted.
    counted: AtomicU64,
    tally: Arc<Tally>,
    clock: Clock,
}

struct Steps<M> {
    machine: M,
    timer: Option<(Time, TimerKey)>,
}

impl<M: Machine> Relay<M> {
    /// Starts the task that delivers: on the tokio runtime this is called in, else on the bus's threads.
    pub(super) fn start<S>(ground: &Ground, machine: M, service: S) -> Self
    where
        S: Service<M::Out> + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
    {
        let mailbox = Arc::new(Mailbox::of_states(ground.capacity));
        let tally = Arc::new(Tally {
            own: LayerCounts::default(),
            all: ground.stats.layer(M::NAME),
            stats: ground.stats.clone(),
            state: AtomicU8::new(RUNS),
        });
        let delivery = Delivery {
            layer: M::NAME,
            inbox: Inbox::new(mailbox.clone()),
            mailbox: mailbox.clone(),
            tally: tally.clone(),
            delivering: false,
        };
        let task = delivery.run(service);
        match ground.bus.upgrade() {
            Some(bus) => bus.pool.spawn_near(task),
            // Without a bus there are no alerts. Whoever makes some by hand is told.
            None => drop(task),
        }
        Relay(Arc::new(Shared {
            steps: Mutex::new(Steps {
                machine,
                timer: None,
            }),
            mailbox,
            counted: AtomicU64::new(0),
            tally,
            clock: ground.clock.clone(),
        }))
    }

    pub(super) fn ready(&self) -> Result<(), LayerError> {
        match self.0.tally.state.load(Ordering::Acquire) {
            RUNS => Ok(()),
            DETACHED => Err(LayerError::Detached { layer: M::NAME }),
            _ => Err(LayerError::Ended { layer: M::NAME }),
        }
    }

    pub(super) fn take(&self, alert: Alert) -> Result<(), LayerError> {
        self.ready()?;
        Shared::step(&self.0, |machine, now, effects| {
            // On the system's clock the timer may be a little late.
            machine.expire(now, effects);
            machine.take(alert, now, effects);
        });
        Ok(())
    }

    pub(super) fn stats(&self) -> LayerStats {
        let own = &self.0.tally.own;
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        LayerStats {
            delivered: load(&own.delivered),
            passed_over: load(&own.passed_over),
            dropped: load(&own.dropped),
            errors: load(&own.errors),
            forgotten: load(&own.forgotten),
        }
    }
}

impl<M: Machine> Clone for Relay<M> {
    fn clone(&self) -> Self {
        Relay(self.0.clone())
    }
}

impl<M: Machine> fmt::Debug for Relay<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stats().fmt(f)
    }
}

impl<M: Machine> Shared<M> {
    fn lock(&self) -> MutexGuard<'_, Steps<M>> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn step(self: &Arc<Self>, step: impl FnOnce(&mut M, Time, &mut Effects<M::Out>)) {
        let mut effects = Effects::default();
        let mut steps = self.lock();
        let now = self.clock.now();
        step(&mut steps.machine, now, &mut effects);
        if steps.machine.next_due().is_some_and(|at| at <= now) {
            // A delay of nothing.
            steps.machine.expire(now, &mut effects);
        }
        let next = steps.machine.next_due();
        if next != steps.timer.map(|(at, _)| at) {
            if let Some((_, key)) = steps.timer.take() {
                self.clock.cancel(key);
            }
            steps.timer = next.map(|at| (at, self.alarm(at)));
        }
        // Put down under the lock, so that steps and letters are in the same order.
        let waker = self.post(effects);
        drop(steps);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn alarm(self: &Arc<Self>, at: Time) -> TimerKey {
        let shared = Arc::downgrade(self);
        self.clock.at(at, move || {
            let Some(shared) = shared.upgrade() else {
                return;
            };
            shared.step(|machine, now, effects| machine.expire(now, effects));
        })
    }

    #[must_use]
    fn post(&self, effects: Effects<M::Out>) -> Option<Waker> {
        let mut waker = None;
        if self.tally.state.load(Ordering::Acquire) != RUNS {
            // A closed mailbox takes nothing and counts nothing.
            self.tally.add(|c| &c.dropped, effects.send.len() as u64);
        }
        for letter in effects.send {
            waker = self.mailbox.push(letter).or(waker);
        }
        // Here and not by the reader, who may hang.
        let dropped = self.mailbox.dropped();
        let before = self.counted.swap(dropped, Ordering::Relaxed);
        self.tally
            .add(|c| &c.dropped, dropped.saturating_sub(before));
        self.tally.add(|c| &c.passed_over, effects.passed_over);
        self.tally.add(|c| &c.forgotten, effects.forgotten);
        waker
    }
}

impl<M: Machine> Drop for Shared<M> {
    fn drop(&mut self) {
        let mut effects = Effects::default();
        let steps = self.steps.get_mut().unwrap_or_else(PoisonError::into_inner);
        steps.machine.end(&mut effects);
        if let Some((_, key)) = steps.timer.take() {
            self.clock.cancel(key);
        }
        let waker = self.post(effects);
        let waker = self.mailbox.close(false).or(waker);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The task's end.
struct Delivery<T> {
    layer: &'static str,
    inbox: Inbox<T>,
    mailbox: Arc<Mailbox<T>>,
    tally: Arc<Tally>,
    delivering: bool,
}

impl<T: Send + 'static> Delivery<T> {
    async fn run<S>(mut self, mut service: S)
    where
        S: Service<T> + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
    {
        let mut panics = 0;
        let mut turn = 0;
        let callee: Arc<dyn Callee> = Arc::new(Layer {
            name: self.layer,
            stats: self.tally.stats.clone(),
        });
        loop {
            let letter = match poll_fn(|cx| self.inbox.poll_next(cx)).await {
                Item::Letter(letter) => letter,
                // Counted when it happened.
                Item::Lagged(_) => continue,
                Item::End => return,
            };
            self.delivering = true;
            let mut delivery = pin!(deliver(&mut service, letter));
            let outcome = poll_fn(|cx| {
                dispatch::calling(&callee);
                delivery.as_mut().poll(cx)
            })
            .await;
            self.delivering = false;
            match outcome {
                Ok(()) => {
                    panics = 0;
                    self.tally.add(|c| &c.delivered, 1);
                }
                Err(Failure::Error(error)) => {
                    panics = 0;
                    self.tally.add(|c| &c.errors, 1);
                    delivery_failed(&self.tally.stats, self.layer, &*error);
                }
                Err(Failure::Panic(panic)) => {
                    panics += 1;
                    self.tally.add(|c| &c.errors, 1);
                    bump(&self.tally.stats.panicked);
                    let (layer, message) = (self.layer, panic.message());
                    if panics >= PANICS_MAX {
                        self.tally.state.store(DETACHED, Ordering::Release);
                        bump(&self.tally.stats.detached);
                        tracing::error!(
                            layer,
                            message,
                            "metricbus: service detached: it panicked {PANICS_MAX} times in a row"
                        );
                        return;
                    }
                    tracing::warn!(layer, message, panics, "metricbus: a service panicked");
                }
            }
            turn += 1;
            if turn == TURN {
                turn = 0;
                yield_now().await;
            }
        }
    }
}

/// Whom a thread calls that delivers.
struct Layer {
    name: &'static str,
    stats: Arc<Stats>,
}

impl Callee for Layer {
    fn hangs(&self) {
        bump(&self.stats.hung);
        tracing::error!(
            layer = self.name,
            "metricbus: a service hangs; its thread is not counted any more until it comes back"
        );
    }
}

impl<T> Drop for Delivery<T> {
    /// Also where the runtime ends, and the task is dropped in the middle of something.
    fn drop(&mut self) {
        let state = &self.tally.state;
        let _ = state.compare_exchange(RUNS, ENDED, Ordering::AcqRel, Ordering::Acquire);
        self.mailbox.close(false);
        let mut lost = u64::from(self.delivering);
        let mut cx = Context::from_waker(Waker::noop());
        loop {
            match self.inbox.poll_next(&mut cx) {
                Poll::Ready(Item::Letter(_)) => lost += 1,
                Poll::Ready(Item::Lagged(_)) => {}
                Poll::Ready(Item::End) | Poll::Pending => break,
            }
        }
        self.tally.add(|c| &c.dropped, lost);
    }
}

/// Counts and logs what a service did not take.
pub(super) fn delivery_failed(stats: &Stats, to: &str, error: &(dyn std::error::Error + 'static)) {
    bump(&stats.delivery_errors);
    tracing::warn!(to, error, "metricbus: an alert was not delivered");
}

pub(super) enum Failure {
    Error(BoxError),
    Panic(Payload),
}

/// Waits until the service is ready, calls it, and waits for its answer; catches its panics.
pub(super) async fn deliver<S, T>(service: &mut S, letter: T) -> Result<(), Failure>
where
    S: Service<T>,
    S::Error: Into<BoxError>,
{
    let error = |error: S::Error| Failure::Error(error.into());
    caught(|cx| service.poll_ready(cx)).await?.map_err(error)?;
    let called = catch_unwind(AssertUnwindSafe(|| service.call(letter)));
    let future = called.map_err(|panic| Failure::Panic(Payload::new(panic)))?;
    let mut future = pin!(future);
    caught(|cx| future.as_mut().poll(cx))
        .await?
        .map_err(error)?;
    Ok(())
}

async fn caught<T>(mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Result<T, Failure> {
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| poll(cx))) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(value)) => Poll::Ready(Ok(value)),
        Err(panic) => Poll::Ready(Err(Failure::Panic(Payload::new(panic)))),
    })
    .await
}

/// The service of a layer: hands each alert to its relay.
macro_rules! relayed {
    ($(#[$doc:meta])* $service:ident, $layer:ident, $machine:ty => $out:ty) => {
        $(#[$doc])*
        ///
        /// Always ready; a call has done its work when it returns. What comes of it is counted in
        #[doc = concat!("[`stats`](", stringify!($service), "::stats).")]
        /// Clones share everything. When the last one is dropped, what is queued is still delivered.
        #[derive(Clone, Debug)]
        pub struct $service(crate::service::relay::Relay<$machine>);

        impl $service {
            /// What it has done so far.
            pub fn stats(&self) -> crate::service::LayerStats {
                self.0.stats()
            }
        }

        impl tower_service::Service<crate::Alert> for $service {
            type Response = ();
            type Error = crate::service::LayerError;
            type Future = std::future::Ready<Result<(), crate::service::LayerError>>;

            fn poll_ready(
                &mut self,
                _cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<Result<(), Self::Error>> {
                std::task::Poll::Ready(self.0.ready())
            }

            fn call(&mut self, alert: crate::Alert) -> Self::Future {
                std::future::ready(self.0.take(alert))
            }
        }

        impl<S> tower_layer::Layer<S> for $layer
        where
            S: tower_service::Service<$out> + Send + 'static,
            S::Future: Send + 'static,
            S::Error: Into<crate::service::BoxError>,
        {
            type Service = $service;

            fn layer(&self, service: S) -> $service {
                $service(crate::service::relay::Relay::start(
                    &self.ground,
                    self.machine(),
                    service,
                ))
            }
        }

        impl std::fmt::Debug for $layer {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(stringify!($layer))
            }
        }
    };
}

pub(super) use relayed;
