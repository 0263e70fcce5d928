//! From listeners to whoever listens: closures, async closures, streams, inline.

use std::{
    any::Any,
    fmt,
    future::{Future, poll_fn},
    marker::PhantomData,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::{Arc, Weak},
    task::{Context, Poll},
};

use futures_core::Stream;

use crate::{
    bus::{Inner, MetricBus},
    cell::{Listener, Wakes},
    dispatch::{self, Callee},
    error::SubscribeError,
    inbox::{Inbox, Item},
    mailbox::Mailbox,
    selector::Selector,
    series::SeriesCore,
    stats::{bump, next_id},
    steps::at_step,
    subscription::{Shared, Subscription, Wire},
    watch::Watch,
};

/// Something a subscriber can hear of. Sealed: made by this crate only.
pub trait Event: sealed::Event {}

pub(crate) mod sealed {
    use crate::backlog::Subject;

    /// What the machinery needs of an event.
    pub trait Event: Sized + Send + 'static {
        /// What is put into the mailbox.
        #[doc(hidden)]
        type Letter: Subject + Send + 'static;

        #[doc(hidden)]
        fn open(letter: Self::Letter, listener: u64) -> Option<Self>;
    }
}

/// How many events a mailbox holds unless told otherwise. A crossing takes 64 bytes, so this is 16 KiB.
pub(crate) const CAPACITY_DEFAULT: usize = 256;

/// The room for them is taken when subscribing.
pub(crate) const CAPACITY_MAX: usize = 1 << 20;

/// A subscription being made: choose where its events go. Nothing is subscribed until then.
///
/// | | runs | when slow |
/// |---|---|---|
/// | [`call`](Listen::call) | on the dispatcher's threads | drops what is superseded, counted |
/// | [`call_async`](Listen::call_async) | on the tokio runtime it was made in, else on the dispatcher | drops what is superseded, counted |
/// | [`stream`](Listen::stream) | wherever it is polled | drops what is superseded, counted |
/// | [`inline`](Listen::inline) | in the mutating thread, after its mutation | slows that thread down |
///
/// Each subscription gets its events one at a time and in order per series. A callback may mutate metrics, also the one
/// it listens to.
///
/// Where more events wait than [`capacity`](Listen::capacity) says, the oldest goes of those behind which a later one of the same series (or
/// of the same rule and group) waits. The last event of each always arrives, however many series a subscription is about: so what
/// waits is bounded by the capacity and the number of series.
///
/// A callback that panics is caught and counted. After [three panics in a row](Subscription::is_detached) it is
/// detached, with a `tracing` error. One that hangs keeps a thread of the dispatcher and holds up nobody else, however many do
/// ([`workers_max`](crate::MetricBusBuilder::workers_max)).
///
/// ```
/// use metricbus::{Crossed, MetricBus, Threshold};
///
/// let bus = MetricBus::new();
/// let kv = bus.gauge("kv_usage_ratio", "Share of KV blocks in use.")?;
///
/// let (tx, rx) = std::sync::mpsc::channel();
/// let _subscription = bus
///     .on_threshold("kv_usage_ratio", Threshold::above(0.9).clear_below(0.8))
///     .call(move |crossing| drop(tx.send(crossing)))?;
///
/// kv.set(0.95);
/// kv.set(0.5);
/// assert_eq!(rx.recv()?.state, Crossed::Raised);
/// let cleared = rx.recv()?;
/// assert_eq!((cleared.state, cleared.value, cleared.epoch), (Crossed::Cleared, 0.5, 2));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "nothing is subscribed until `call`, `call_async`, `stream` or `inline`"]
pub struct Listen<E: Event> {
    bus: MetricBus,
    begin: Result<BeginBy<E>, SubscribeError>,
    capacity: usize,
    initial: bool,
}

/// What a subscription is begun with.
pub(crate) struct Begin<'a, L> {
    pub(crate) inner: &'a Arc<Inner>,
    pub(crate) id: u64,
    pub(crate) capacity: usize,
    /// Whether to say what holds already.
    pub(crate) initial: bool,
    pub(crate) mailbox: Arc<Mailbox<L>>,
    pub(crate) shared: Arc<Shared>,
}

impl<L> Begin<'_, L> {
    pub(crate) fn post(&self) -> Post<L> {
        Post {
            mailbox: self.mailbox.clone(),
            room: self.capacity,
        }
    }
}

/// Puts a subscription in place.
pub(crate) type BeginBy<E> = Box<
    dyn FnOnce(Begin<'_, <E as sealed::Event>::Letter>) -> Result<Arc<dyn Wire>, SubscribeError>
        + Send,
>;

/// A subscription to series.
pub(crate) struct Plan<E: Event> {
    pub(crate) selector: Selector,
    /// Makes the listener of one series.
    pub(crate) make: MakeFor<E>,
}

/// What a listener is made from.
pub(crate) struct Birth<'a, E: Event> {
    pub(crate) id: u64,
    pub(crate) series: &'a Arc<SeriesCore>,
    pub(crate) newborn: bool,
    /// Whether to say what holds already.
    pub(crate) initial: bool,
    /// How many letters were asked for room for.
    pub(crate) capacity: usize,
    pub(crate) post: Post<E::Letter>,
}

type MakeFor<E> = Box<dyn Fn(Birth<'_, E>) -> Box<dyn Listener> + Send + Sync>;

/// The writer's end of a mailbox.
pub(crate) struct Post<T> {
    mailbox: Arc<Mailbox<T>>,
    /// Letters that were asked for; there may be more.
    room: usize,
}

impl<T> Post<T> {
    pub(crate) fn send(&self, letter: T, wakes: &mut Wakes) {
        if let Some(waker) = self.mailbox.push(letter) {
            wakes.push(waker);
        }
    }

    /// No more letters; those that wait stay readable. The waker of the reader.
    pub(crate) fn close(&self) -> Option<std::task::Waker> {
        self.mailbox.close(false)
    }

    pub(crate) fn grow_to(&self, letters: usize) {
        self.mailbox.grow_to(letters);
    }

    pub(crate) fn room(&self) -> usize {
        self.room
    }

    pub(crate) fn purge(&self, unwanted: impl FnMut(&T) -> bool) {
        self.mailbox.purge(unwanted);
    }
}

impl<E: Event> Listen<E> {
    #[cfg(feature = "tower")]
    pub(crate) fn bus(&self) -> &MetricBus {
        &self.bus
    }

    pub(crate) fn new(bus: &MetricBus, plan: Result<Plan<E>, SubscribeError>) -> Self {
        Listen::begin_by(bus, plan.map(Plan::begin_by))
    }

    pub(crate) fn begin_by(bus: &MetricBus, begin: Result<BeginBy<E>, SubscribeError>) -> Self {
        Listen {
            bus: bus.clone(),
            begin,
            capacity: CAPACITY_DEFAULT,
            initial: true,
        }
    }

    /// How many events may wait (256 unless told otherwise; 0 counts as 1, and more than a million as a million). When there are as many, the oldest
    /// goes that a later one of its series supersedes, and is counted. Where each is the last one of its series all of them stay, and so does
    /// the next: there may be as many as there are series. Of series that were removed as many stay as the capacity says.
    pub fn capacity(mut self, events: usize) -> Self {
        self.capacity = events.min(CAPACITY_MAX);
        self
    }

    /// Of a threshold: whether to say at once that it is raised already when the subscription is made (yes unless told
    /// otherwise). A gauge that was never set, and a series that is declared later, is judged from its first mutation
    /// on. A delta or a change has nothing to say until there is one.
    pub fn initial(mut self, initial: bool) -> Self {
        self.initial = initial;
        self
    }

    /// Calls `f` with each event, on the dispatcher's threads.
    ///
    /// # Errors
    ///
    /// When the selector, the threshold or the delta is wrong.
    pub fn call(self, f: impl FnMut(E) + Send + 'static) -> Result<Subscription, SubscribeError> {
        self.call_told(f)
    }

    /// As [`call`](Self::call), with an `f` that may fail: what it says counts as a panic with these words. For callbacks of
    /// other languages, which must not unwind, and need not where a panic is the end of the process.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call).
    #[doc(hidden)]
    pub fn call_fallible(
        self,
        f: impl FnMut(E) -> Result<(), String> + Send + 'static,
    ) -> Result<Subscription, SubscribeError> {
        self.call_told(f)
    }

    fn call_told<T: Outcome>(
        self,
        f: impl FnMut(E) -> T + Send + 'static,
    ) -> Result<Subscription, SubscribeError> {
        let inner = self.bus.inner().clone();
        let (subscription, events) = self.subscribe()?;
        inner.pool.start();
        let scheduler = inner.pool.scheduler();
        let (runnable, task) = async_task::spawn(drive(events, sync_callback(f)), scheduler);
        runnable.schedule();
        task.detach();
        Ok(subscription)
    }

    /// Calls `f` with each event and waits for its future before the next one.
    ///
    /// Where this is called inside a tokio runtime (and the feature `tokio` is on) the future runs there, so that it can
    /// use tokio's I/O and timers; otherwise on the dispatcher's threads.
    ///
    /// ```
    /// use metricbus::{MetricBus, Threshold};
    ///
    /// let bus = MetricBus::new();
    /// let _subscription = bus
    ///     .on_threshold("kv_usage_ratio", Threshold::above(0.9))
    ///     .call_async(async |crossing| println!("{} is {}", crossing.series, crossing.value))?;
    /// # Ok::<(), metricbus::SubscribeError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When the selector, the threshold or the delta is wrong.
    pub fn call_async<F, Fut>(self, f: F) -> Result<Subscription, SubscribeError>
    where
        F: FnMut(E) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let inner = self.bus.inner().clone();
        let (subscription, events) = self.subscribe()?;
        inner.pool.spawn_near(drive(events, f));
        Ok(subscription)
    }

    /// Calls `f` in the thread that mutates, right after its mutation and outside of all locks.
    ///
    /// The fastest way to react, and the only one that can slow a component down: `f` has to be short. Two threads that
    /// mutate at once don't call `f` at once; one of them calls it for both. Callbacks that set each other off run one
    /// after the other, and after 256 in one go the rest runs on the dispatcher. So does what a timer sets off, such as an alert of a rule whose
    /// hold is over. All other subscribers of the mutation are woken before.
    ///
    /// # Errors
    ///
    /// When the selector, the threshold or the delta is wrong.
    pub fn inline(self, f: impl FnMut(E) + Send + 'static) -> Result<Subscription, SubscribeError> {
        self.inline_as(false, f)
    }

    /// As [`inline`](Self::inline), with an `f` that is this crate's own and short: it also runs in threads where nobody else's does.
    #[cfg(feature = "nats")]
    pub(crate) fn inline_trusted(
        self,
        f: impl FnMut(E) + Send + 'static,
    ) -> Result<Subscription, SubscribeError> {
        self.inline_as(true, f)
    }

    fn inline_as(
        self,
        trusted: bool,
        f: impl FnMut(E) + Send + 'static,
    ) -> Result<Subscription, SubscribeError> {
        let inner = self.bus.inner();
        let stats = inner.stats.clone();
        let scheduler =
            dispatch::inline_scheduler(&inner.pool, trusted, move || bump(&stats.inline_overruns));
        let (subscription, events) = self.subscribe()?;
        let (runnable, task) = async_task::spawn(drive(events, sync_callback(f)), scheduler);
        runnable.schedule();
        task.detach();
        Ok(subscription)
    }

    /// The events as a [`Stream`]. Dropping it unsubscribes; it ends when the bus does.
    ///
    /// # Errors
    ///
    /// When the selector, the threshold or the delta is wrong.
    pub fn stream(self) -> Result<Events<E>, SubscribeError> {
        let (subscription, reader) = self.subscribe()?;
        Ok(Events {
            subscription,
            reader,
        })
    }

    fn subscribe(self) -> Result<(Subscription, Reader<E>), SubscribeError> {
        let begin = self.begin?;
        let inner = self.bus.inner();
        let id = next_id();
        let shared = Shared::new(inner.stats.clone());
        let mailbox = Arc::new(Mailbox::of_states(self.capacity));
        let wire = begin(Begin {
            inner,
            id,
            capacity: self.capacity,
            initial: self.initial,
            mailbox: mailbox.clone(),
            shared: shared.clone(),
        })?;
        let reader = Reader {
            id,
            inbox: Inbox::new(mailbox),
            shared: shared.clone(),
            bus: Arc::downgrade(inner),
            wire: Arc::downgrade(&wire),
            event: PhantomData,
        };
        Ok((Subscription::by(inner, wire, shared), reader))
    }
}

impl<E: Event> Plan<E> {
    fn begin_by(self) -> BeginBy<E> {
        Box::new(move |begin| {
            let Begin {
                inner,
                id,
                capacity,
                initial,
                ..
            } = begin;
            let mailbox = begin.mailbox.clone();
            let make = Box::new(
                move |series: &Arc<SeriesCore>, newborn: bool, _: &mut Wakes| {
                    (self.make)(Birth {
                        id,
                        series,
                        newborn,
                        initial,
                        capacity,
                        post: Post {
                            mailbox: mailbox.clone(),
                            room: capacity,
                        },
                    })
                },
            );
            let watch = Arc::new(Watch::new(id, self.selector, make, begin.mailbox));
            inner.watch(&watch);
            Ok(watch)
        })
    }
}

/// A [`Stream`] of events. Made by [`Listen::stream`].
#[must_use = "streams do nothing unless polled, and dropping this one unsubscribes"]
pub struct Events<E: Event> {
    subscription: Subscription,
    reader: Reader<E>,
}

impl<E: Event> Events<E> {
    /// The subscription behind the stream.
    pub fn subscription(&self) -> &Subscription {
        &self.subscription
    }
}

impl<E: Event> Stream for Events<E> {
    type Item = E;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<E>> {
        self.reader.poll_next(cx)
    }
}

/// Nothing in it points into itself.
impl<E: Event> Unpin for Events<E> {}

impl<E: Event> fmt::Debug for Events<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Events").field(&self.subscription).finish()
    }
}

struct Reader<E: Event> {
    id: u64,
    inbox: Inbox<E::Letter>,
    shared: Arc<Shared>,
    bus: Weak<Inner>,
    /// Weak: the wire holds the mailbox, and the mailbox this reader's waker.
    wire: Weak<dyn Wire>,
    event: PhantomData<fn() -> E>,
}

impl<E: Event> Reader<E> {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<E>> {
        loop {
            if self.shared.has_ended() {
                return Poll::Ready(None);
            }
            match self.inbox.poll_next(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Item::End) => return Poll::Ready(None),
                // Counted when it happened, and shown by the gap in the epochs.
                Poll::Ready(Item::Lagged(_)) => {}
                Poll::Ready(Item::Letter(letter)) => {
                    if let Some(event) = E::open(letter, self.id) {
                        self.shared.delivered();
                        return Poll::Ready(Some(event));
                    }
                }
            }
        }
    }
}

/// Panics in a row after which a callback is detached.
pub(crate) const PANICS_MAX: u32 = 3;

/// Events after which a busy subscription lets others have the thread.
pub(crate) const TURN: u32 = 64;

/// A sync callback as one whose future is done at once.
fn sync_callback<E, T>(mut f: impl FnMut(E) -> T) -> impl FnMut(E) -> std::future::Ready<T> {
    move |event| std::future::ready(f(event))
}

/// What a callback came to, as if it had panicked if it failed.
trait Outcome: Send + 'static {
    fn outcome(self) -> Result<(), Box<dyn Any + Send>>;
}

impl Outcome for () {
    fn outcome(self) -> Result<(), Box<dyn Any + Send>> {
        Ok(())
    }
}

impl Outcome for Result<(), String> {
    fn outcome(self) -> Result<(), Box<dyn Any + Send>> {
        self.map_err(|words| Box::new(words) as _)
    }
}

/// Hands each event to `f`, until the subscription ends or `f` has panicked too often.
async fn drive<E: Event, Fut: Future<Output: Outcome>>(
    mut reader: Reader<E>,
    mut f: impl FnMut(E) -> Fut,
) {
    let mut panics = 0;
    let mut turn = 0;
    let callee: Arc<dyn Callee> = Arc::new(Called {
        shared: reader.shared.clone(),
        wire: reader.wire.clone(),
    });
    while let Some(event) = poll_fn(|cx| reader.poll_next(cx)).await {
        dispatch::calling(&callee);
        let steps = reader.inbox.steps();
        let outcome = match catch_unwind(AssertUnwindSafe(|| at_step(steps, || f(event)))) {
            Err(panic) => Err(panic),
            Ok(future) => {
                let mut future = pin!(future);
                poll_fn(|cx| {
                    dispatch::calling(&callee);
                    match catch_unwind(AssertUnwindSafe(|| {
                        at_step(steps, || future.as_mut().poll(cx))
                    })) {
                        Ok(Poll::Pending) => Poll::Pending,
                        Ok(Poll::Ready(done)) => Poll::Ready(done.outcome()),
                        Err(panic) => Poll::Ready(Err(panic)),
                    }
                })
                .await
            }
        };
        match outcome {
            Ok(()) => panics = 0,
            Err(panic) => {
                let panic = Payload(Some(panic));
                panics += 1;
                reader.shared.panicked();
                let message = panic.message();
                if panics >= PANICS_MAX {
                    reader.detach(message);
                    return;
                }
                tracing::warn!(message, panics, "metricbus: a callback panicked");
            }
        }
        turn += 1;
        if turn == TURN {
            turn = 0;
            yield_now().await;
        }
    }
}

/// Whose callback a thread calls.
struct Called {
    shared: Arc<Shared>,
    wire: Weak<dyn Wire>,
}

impl Callee for Called {
    fn hangs(&self) {
        let about = self.wire.upgrade().map(|wire| wire.describe());
        self.shared
            .hangs(about.as_deref().unwrap_or("what has ended"));
    }
}

impl<E: Event> Reader<E> {
    fn detach(&self, message: &str) {
        self.shared.detached();
        if let Some(wire) = self.wire.upgrade() {
            tracing::error!(
                about = %wire.describe(),
                message,
                "metricbus: callback detached: it panicked {PANICS_MAX} times in a row"
            );
            wire.end(self.bus.upgrade().as_deref());
        }
    }
}

/// What a callback panicked with. Its drop may panic as well.
pub(crate) struct Payload(Option<Box<dyn Any + Send>>);

impl Payload {
    #[cfg(feature = "tower")]
    pub(crate) fn new(panic: Box<dyn Any + Send>) -> Self {
        Payload(Some(panic))
    }

    /// Goes on with the panic.
    #[cfg(feature = "tower")]
    pub(crate) fn resume(mut self) -> ! {
        std::panic::resume_unwind(self.0.take().unwrap_or_else(|| Box::new("(no message)")))
    }

    pub(crate) fn message(&self) -> &str {
        let panic = self.0.as_deref();
        panic
            .and_then(|panic| panic.downcast_ref::<&str>().copied())
            .or_else(|| panic?.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("(no message)")
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        let panic = self.0.take();
        let _ = catch_unwind(AssertUnwindSafe(|| drop(panic)));
    }
}

pub(crate) async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
