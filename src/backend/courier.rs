//! Couriers: what takes the mutations of a series to a backend that mirrors.
//!
//! A courier listens in the cell of one series, as a tap does: the series is recorded, so its mutations come in order,
//! under its lock. There the courier only queues them; the backend's code runs in the mutating thread after the lock is
//! released, by the waker that every listener may hand out. The queue is a [`Handoff`]: whoever finds another thread at it
//! leaves its mutations to that one, so that the backend is told one at a time, in order, and nobody waits for anybody.
//!
//! Who waits for all to be told ([`Couriers::settle`]) takes a turn at each queue, and where somebody else is at it waits for
//! the end of that turn ([`Arrivals`]).
//!
//! After [`Couriers::end`] the backend is told of nothing more. A turn that began before it is waited for in the same way, so
//! that ending costs a mutation one look at a flag.
//!
//! Nothing but observations is ever lost: counters and gauges are queued by their value after the mutation, and what is
//! told of a counter is how far it is beyond what was told before.

use std::{
    any::Any,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Wake, Waker},
    time::{Duration, Instant},
};

use super::{Backend, BackendError, Declared, Mirror, arrivals::Arrivals};
use crate::{
    FamilySnapshot, MetricKind, SampleValue, Selector, SeriesSnapshot, Value,
    bus::{Inner, MetricBus},
    cell::{Listener, Recorded, Wakes},
    desc::{Meta, Numbers},
    handoff::{Handoff, Turn, this_thread},
    interest::Interval,
    labels,
    mailbox::Mailbox,
    own::Counts,
    series::{SeriesCore, is_unmeasured},
    stats::{bump, next_id},
    sync::lock,
    time::{Stamp, Time},
    watch::Watch,
};

/// Mutations of one series that may wait.
const ROOM: usize = 8_192;

/// Mutations that a thread tells in one go, its own and those of others; the rest is left to the dispatcher.
const TURN: usize = 64;

/// For a thread that declares a series which another thread is declaring.
const DECLARE_MAX: Duration = Duration::from_secs(5);

/// All couriers of a bus to one backend. They end when it is dropped; until then the bus does not.
pub(crate) struct Couriers {
    bus: MetricBus,
    watch: Arc<Watch>,
    shared: Arc<Shared>,
}

/// What the couriers of a backend have in common.
struct Shared {
    backend: Arc<dyn Backend>,
    bus: Weak<Inner>,
    /// The backend is being shut down, or was. What is brought to a queue after [`Couriers::end`] has looked at it finds this set,
    /// by the queue's lock; what was brought before is waited for.
    ended: AtomicBool,
    told: AtomicU64,
    dropped: AtomicU64,
    refused: AtomicU64,
    panicked: AtomicU64,
    /// Of ends of turns.
    arrivals: Arrivals,
    /// Of removed series, those that may have something left to tell.
    departed: Mutex<Vec<Weak<Courier>>>,
}

impl Couriers {
    /// From here on each mutation of the bus is told to `backend`.
    pub(crate) fn start(bus: &MetricBus, backend: Arc<dyn Backend>) -> Couriers {
        let inner = bus.inner();
        let shared = Arc::new(Shared {
            backend,
            bus: Arc::downgrade(inner),
            ended: AtomicBool::new(false),
            told: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            panicked: AtomicU64::new(0),
            arrivals: Arrivals::new(),
            departed: Mutex::default(),
        });
        let id = next_id();
        let make = {
            let shared = shared.clone();
            Box::new(
                move |series: &Arc<SeriesCore>,
                      newborn: bool,
                      wakes: &mut Wakes|
                      -> Box<dyn Listener> {
                    let courier = Arc::new(Courier::new(series, shared.clone()));
                    let waker = Waker::from(courier.clone());
                    if !newborn {
                        // The ear begins with what was counted before.
                        wakes.push(waker.clone());
                    }
                    Box::new(Ear { id, courier, waker })
                },
            )
        };
        let watch = Arc::new(Watch::of_backend(
            id,
            Selector::all(),
            make,
            Arc::new(Mailbox::new(1)),
        ));
        let shown: Weak<dyn Counts> = Arc::<Shared>::downgrade(&shared);
        inner.show_own(shown);
        inner.watch(&watch);
        Couriers {
            bus: bus.clone(),
            watch,
            shared,
        }
    }

    /// Declares a series now rather than with its first mutation. Its mirror, where it has one.
    pub(crate) fn declare(
        &self,
        series: &SeriesCore,
    ) -> Result<Option<Arc<dyn Mirror>>, BackendError> {
        let Some(courier) = self.of(series) else {
            return Ok(None);
        };
        if courier.mirror.get().is_none() {
            courier.bring(Word::Declare);
            courier.clone().wake();
        }
        // Another thread may be about to declare it.
        let declared = || courier.mirror.get().is_some();
        self.shared.arrivals.wait_until(DECLARE_MAX, declared);
        match courier.mirror.get() {
            Some(Ok(mirror)) => Ok(mirror.clone()),
            Some(Err(error)) => Err(error.clone()),
            None => Err(BackendError::Deadline {
                backend: self.shared.backend.name().to_owned(),
                deadline: DECLARE_MAX,
                why: format!("another thread is still declaring {}", series.meta.name),
            }),
        }
    }

    /// Waits until all that was mutated before is told.
    pub(crate) fn settle(&self, deadline: Duration) -> Result<(), BackendError> {
        let series = self.bus.series(self.watch.selector.clone());
        let series = series.unwrap_or_default();
        let present = series.iter().filter_map(|series| self.of(series.core()));
        let departed: Vec<_> = lock(&self.shared.departed)
            .iter()
            .filter_map(Weak::upgrade)
            .collect();
        let start = Instant::now();
        let late = present.chain(departed).filter(|courier| {
            let left = deadline.saturating_sub(start.elapsed());
            // Not until nothing waits any more: others may go on mutating.
            let before = courier.queue.brought();
            let is_told = || courier.queue.has_done(before) || courier.turn() == Turn::Done;
            !self.shared.arrivals.wait_until(left, is_told)
        });
        match late.count() {
            0 => Ok(()),
            late => Err(BackendError::Deadline {
                backend: self.shared.backend.name().to_owned(),
                deadline,
                why: format!("{late} series have mutations that it has not taken"),
            }),
        }
    }

    /// Tells nothing more, of whatever series, and waits for what is being told.
    pub(crate) fn end(&self, deadline: Duration) -> Result<(), BackendError> {
        self.shared.ended.store(true, Ordering::Release);
        self.settle(deadline)
    }

    fn of(&self, series: &SeriesCore) -> Option<Arc<Courier>> {
        let mut question = None::<Arc<Courier>>;
        series.ask(self.watch.id, &mut question);
        question
    }
}

impl Drop for Couriers {
    fn drop(&mut self) {
        self.bus.inner().unwatch(&self.watch);
    }
}

impl fmt::Debug for Couriers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Couriers")
            .field("series", &self.watch.matched())
            .finish_non_exhaustive()
    }
}

impl Counts for Shared {
    fn families(&self) -> Vec<FamilySnapshot> {
        let count = |name: &str, help: &str, value: &AtomicU64| FamilySnapshot {
            name: name.to_owned(),
            help: help.to_owned(),
            unit: None,
            kind: MetricKind::Counter,
            series: vec![SeriesSnapshot {
                labels: vec![("backend".to_owned(), self.backend.name().to_owned())],
                value: SampleValue::Counter(Value::U64(value.load(Ordering::Relaxed))),
            }],
        };
        vec![
            count(
                "metricbus_backend_mirrored_total",
                "Calls by which a backend was told of mutations.",
                &self.told,
            ),
            count(
                "metricbus_backend_dropped_total",
                "Observations that a backend was not told of, because too many waited for it.",
                &self.dropped,
            ),
            count(
                "metricbus_backend_refused_total",
                "Series that a backend refused.",
                &self.refused,
            ),
            count(
                "metricbus_backend_panicked_total",
                "Calls in which a backend panicked.",
                &self.panicked,
            ),
        ]
    }
}

/// What a courier has to tell.
#[derive(Clone, Copy)]
enum Word {
    Declare,
    /// The bits of a counter's or gauge's value after a mutation.
    Value(u64),
    Observed(f64),
    Removed,
}

/// Of one series.
struct Courier {
    meta: Arc<Meta>,
    text: Box<str>,
    shared: Arc<Shared>,
    queue: Handoff<Word>,
    /// Made by whoever is at the queue. `None`: the backend leaves the series out.
    mirror: OnceLock<Result<Option<Arc<dyn Mirror>>, BackendError>>,
    /// The bits of the counter's value as they were told last. Written by whoever is at the queue.
    told: AtomicU64,
}

impl Courier {
    fn new(series: &SeriesCore, shared: Arc<Shared>) -> Courier {
        Courier {
            meta: series.meta.clone(),
            text: series.text.clone(),
            shared,
            queue: Handoff::new(),
            mirror: OnceLock::new(),
            told: AtomicU64::new(0),
        }
    }

    fn bring(&self, word: Word) {
        if let Some(Word::Observed(_)) = self.queue.push(word, ROOM) {
            bump(&self.shared.dropped);
        }
    }

    /// Tells what waits, unless another thread is at it.
    fn turn(&self) -> Turn {
        let turn = self.queue.run(this_thread(), TURN, |word| self.tell(word));
        if !matches!(turn, Turn::Others(_)) {
            self.shared.arrivals.tell();
        }
        turn
    }

    fn tell(&self, word: Word) {
        let told = catch_unwind(AssertUnwindSafe(|| self.try_to_tell(word)));
        if told.is_err() {
            let panicked = self.shared.panicked.fetch_add(1, Ordering::Relaxed);
            if panicked.is_power_of_two() || panicked == 0 {
                tracing::error!(
                    backend = self.shared.backend.name(),
                    metric = %self.meta.name,
                    panicked = panicked + 1,
                    "metricbus: a backend panicked; the mutation has happened on the bus, but not there"
                );
            }
        }
    }

    fn try_to_tell(&self, word: Word) {
        if self.shared.ended.load(Ordering::Acquire) {
            // Whoever waits for it to be declared learns that it is left out.
            self.mirror.get_or_init(|| Ok(None));
            return;
        }
        let Some(mirror) = self.declared() else {
            return;
        };
        match word {
            Word::Declare => return,
            Word::Value(bits) => match self.meta.numbers {
                Numbers::Whole => {
                    let by = bits.wrapping_sub(self.told.swap(bits, Ordering::Relaxed));
                    if by == 0 {
                        return;
                    }
                    mirror.inc(by);
                }
                Numbers::Amount => {
                    let before = f64::from_bits(self.told.swap(bits, Ordering::Relaxed));
                    let by = f64::from_bits(bits) - before;
                    if by.is_nan() || by <= 0.0 {
                        return;
                    }
                    mirror.add(by);
                }
                Numbers::Real => mirror.set(f64::from_bits(bits) + 0.0),
            },
            Word::Observed(value) => mirror.observe(value),
            Word::Removed => mirror.remove(),
        }
        bump(&self.shared.told);
    }

    fn declared(&self) -> Option<&Arc<dyn Mirror>> {
        let declared = self.mirror.get_or_init(|| {
            let labels = labels::pairs(&self.text);
            let backend = &self.shared.backend;
            let declare = || {
                backend.declare(&Declared {
                    name: &self.meta.name,
                    help: &self.meta.help,
                    unit: self.meta.unit.as_deref(),
                    kind: self.meta.kind,
                    fractional: self.meta.numbers == Numbers::Amount,
                    labels: &labels,
                    bounds: &self.meta.bounds,
                })
            };
            let declared = catch_unwind(AssertUnwindSafe(declare));
            let declared = declared.unwrap_or_else(|_| {
                bump(&self.shared.panicked);
                Err(BackendError::other(backend.name(), "it panicked"))
            });
            if let Err(error) = &declared {
                bump(&self.shared.refused);
                tracing::warn!(
                    metric = %self.meta.name,
                    labels = %self.text,
                    "metricbus: {error}; the series is counted on the bus, but not there"
                );
            }
            declared.map(|mirror| mirror.map(Arc::from))
        });
        declared.as_ref().ok()?.as_ref()
    }
}

/// In the mutating thread, after its mutation.
impl Wake for Courier {
    fn wake(self: Arc<Self>) {
        if self.turn() == Turn::More
            && let Some(bus) = self.shared.bus.upgrade()
        {
            bus.pool.start();
            bus.pool.spawn(async move { self.wake() });
        }
    }
}

/// A courier's ear in the cell.
struct Ear {
    id: u64,
    courier: Arc<Courier>,
    waker: Waker,
}

impl Ear {
    fn bring(&self, word: Word, wakes: &mut Wakes) {
        self.courier.bring(word);
        wakes.push(self.waker.clone());
    }
}

impl Listener for Ear {
    fn id(&self) -> u64 {
        self.id
    }

    fn takes_all(&self) -> bool {
        true
    }

    /// What was counted before: the waker is out already.
    fn begin(&mut self, bits: u64, _stamp: &mut Stamp<'_>) {
        let counted = match self.courier.meta.kind {
            MetricKind::Counter => bits != 0,
            MetricKind::Gauge => !is_unmeasured(f64::from_bits(bits)),
            MetricKind::Histogram => false,
        };
        if counted {
            self.courier.bring(Word::Value(bits));
        }
    }

    fn ask(&mut self, question: &mut dyn Any) {
        if let Some(answer) = question.downcast_mut::<Option<Arc<Courier>>>() {
            *answer = Some(self.courier.clone());
        }
    }

    fn quiet(&self) -> Interval {
        Interval::NOTHING
    }

    fn record(&mut self, recorded: Recorded, _sequence: u64, _at: Time, wakes: &mut Wakes) {
        let word = match recorded {
            Recorded::Moved { after, .. } => Word::Value(after),
            Recorded::Observed(value) => Word::Observed(value),
        };
        self.bring(word, wakes);
    }

    fn removed(&mut self, _value: f64, _stamp: &mut Stamp<'_>, wakes: &mut Wakes) {
        self.bring(Word::Removed, wakes);
        let mut departed = lock(&self.courier.shared.departed);
        if departed.len() == departed.capacity() {
            // Before it grows.
            departed.retain(|courier| {
                let courier = courier.upgrade();
                courier.is_some_and(|courier| !courier.queue.is_at_rest())
            });
        }
        departed.push(Arc::downgrade(&self.courier));
    }
}
