//! The tap: every mutation of chosen series, in full.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use futures_core::Stream;

use crate::{
    bus::{Inner, MetricBus},
    cell::{Listener, Recorded, Wakes},
    error::SelectorError,
    inbox::{Inbox, Item},
    interest::Interval,
    listen::CAPACITY_MAX,
    mailbox::Mailbox,
    selector::{IntoSelector, Selector},
    series::{Series, SeriesCore, Value},
    stats::next_id,
    subscription::{Shared, Subscription},
    time::Time,
};

impl MetricBus {
    /// Every mutation of the selected series, as a [`Stream`](futures_core::Stream).
    ///
    /// ```
    /// use futures::StreamExt;
    /// use metricbus::{Change, MetricBus, Value};
    ///
    /// # futures::executor::block_on(async {
    /// let bus = MetricBus::new();
    /// let requests = bus.counter("requests_total", "Requests served.")?;
    /// let mut mutations = bus.subscribe("requests_total")?;
    /// requests.inc_by(2);
    ///
    /// let first = mutations.next().await.unwrap()?;
    /// assert_eq!(first.sequence, 1);
    /// assert_eq!(first.change, Change::Counted { before: Value::U64(0), after: Value::U64(2) });
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// When the selector is wrong.
    pub fn subscribe(&self, selector: impl IntoSelector) -> Result<Mutations, SelectorError> {
        Ok(subscribe(
            self.inner(),
            self.inner().select(selector)?,
            CAPACITY_DEFAULT,
        ))
    }

    /// As [`subscribe`](MetricBus::subscribe), with room for `capacity` waiting mutations rather than 8 192. Each takes
    /// 40 bytes, twice.
    ///
    /// # Errors
    ///
    /// When the selector is wrong.
    pub fn subscribe_with_capacity(
        &self,
        selector: impl IntoSelector,
        capacity: usize,
    ) -> Result<Mutations, SelectorError> {
        let selector = self.inner().select(selector)?;
        Ok(subscribe(self.inner(), selector, capacity))
    }
}

/// One mutation of one series.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Mutation {
    /// Where.
    pub series: Series,
    /// Counts this series' recorded mutations, without gaps: what is missing was dropped. The first tap or window of a
    /// series begins with 1; one that comes later begins where the count is.
    pub sequence: u64,
    /// When, by the bus's clock.
    pub at: Time,
    /// What was done.
    pub change: Change,
}

impl Mutation {
    /// [`at`](Mutation::at) as a date, for people and other machines.
    pub fn date(&self) -> std::time::SystemTime {
        self.series.date(self.at)
    }
}

/// What a mutation did.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Change {
    /// A counter grew.
    Counted {
        /// Value before.
        before: Value,
        /// Value after.
        after: Value,
    },
    /// A gauge was set, raised or lowered.
    Set {
        /// Value before.
        before: f64,
        /// Value after.
        after: f64,
    },
    /// A histogram observed this value.
    Observed {
        /// The value observed.
        value: f64,
    },
}

impl Change {
    /// By how much the value changed; of an observation, the value observed.
    pub fn amount(&self) -> f64 {
        match *self {
            Change::Counted {
                before: Value::U64(before),
                after: Value::U64(after),
            } => after.wrapping_sub(before) as f64,
            Change::Counted { before, after } => after.as_f64() - before.as_f64(),
            Change::Set { before, after } => after - before,
            Change::Observed { value } => value,
        }
    }
}

/// The reader was too slow: this many mutations were dropped here, the oldest ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the reader lagged: {0} mutations were dropped")]
pub struct Lagged(pub u64);

/// A [`Stream`] of every mutation of the selected series. Made by [`MetricBus::subscribe`](crate::MetricBus::subscribe).
///
/// Items are `Ok(Mutation)`, or `Err(Lagged(n))` in the place of `n` mutations that were dropped because this reader was
/// too slow; the stream goes on after it. It ends when the bus does. Dropping it unsubscribes.
///
/// # Order
///
/// Per series, mutations come in the order in which they happened: `before` of each is `after` of the one before it, and
/// the last `after` is the value. Mutations that race with the very first tap or window on a series may be merged into
/// one. Between series no order is promised.
///
/// # Cost
///
/// A tapped series is mutated under its lock and reads the clock; other series cost what they always do.
#[must_use = "streams do nothing unless polled, and dropping this one unsubscribes"]
pub struct Mutations {
    subscription: Subscription,
    inbox: Inbox<Letter>,
    directory: Arc<Directory>,
    shared: Arc<Shared>,
    /// The series of the last letter: often that of the next one, too.
    last: Option<(u64, Series)>,
}

/// As small as it can be: the mutating thread writes it.
struct Letter {
    series: u64,
    sequence: u64,
    at: Time,
    recorded: Recorded,
}

/// Which number in a letter means which series.
///
/// So a mutating thread copies no reference count, whose cache line it would share with the reader. A series that is
/// removed stays here until no letter can name it any more.
struct Directory {
    entries: Mutex<Entries>,
    capacity: usize,
    /// The reader is done with all letters before this position.
    read: AtomicU64,
}

#[derive(Default)]
struct Entries {
    by_id: HashMap<u64, Series>,
    next: u64,
    /// Removed series, oldest first, each with the mailbox position that all its letters are before.
    retired: VecDeque<(u64, u64)>,
}

impl Directory {
    fn enter(&self, series: &Arc<SeriesCore>) -> u64 {
        let read = self.read.load(Ordering::Acquire);
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(&(id, position)) = entries.retired.front()
            && position <= read
        {
            entries.retired.pop_front();
            entries.by_id.remove(&id);
        }
        // A reader that stands still while series come and go: what it then can't tell any more is counted as lost.
        while entries.retired.len() > 2 * self.capacity {
            if let Some((id, _)) = entries.retired.pop_front() {
                entries.by_id.remove(&id);
            }
        }
        let id = entries.next;
        entries.next += 1;
        entries.by_id.insert(id, Series::shared(series.clone()));
        id
    }

    fn retire(&self, id: u64, position: u64) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retired.push_back((id, position));
    }

    fn find(&self, id: u64) -> Option<Series> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.by_id.get(&id).cloned()
    }
}

/// How many mutations may wait for a reader: 40 bytes each, twice.
const CAPACITY_DEFAULT: usize = 8_192;

fn subscribe(inner: &Arc<Inner>, selector: Selector, capacity: usize) -> Mutations {
    let id = next_id();
    let capacity = capacity.clamp(1, CAPACITY_MAX);
    let mailbox = Arc::new(Mailbox::new(capacity));
    let shared = Shared::new(inner.stats.clone());
    let directory = Arc::new(Directory {
        entries: Mutex::default(),
        capacity,
        read: AtomicU64::new(0),
    });
    let make = {
        let (mailbox, directory) = (mailbox.clone(), directory.clone());
        Box::new(
            move |series: &Arc<SeriesCore>, _newborn, _wakes: &mut Wakes| -> Box<dyn Listener> {
                Box::new(Tap {
                    id,
                    series: directory.enter(series),
                    mailbox: mailbox.clone(),
                    directory: directory.clone(),
                })
            },
        )
    };
    let subscription =
        Subscription::start(inner, id, selector, make, mailbox.clone(), shared.clone());
    Mutations {
        subscription,
        inbox: Inbox::patient(mailbox),
        directory,
        shared,
        last: None,
    }
}

struct Tap {
    id: u64,
    series: u64,
    mailbox: Arc<Mailbox<Letter>>,
    directory: Arc<Directory>,
}

impl Listener for Tap {
    fn id(&self) -> u64 {
        self.id
    }

    fn takes_all(&self) -> bool {
        true
    }

    fn quiet(&self) -> Interval {
        Interval::NOTHING
    }

    fn record(&mut self, recorded: Recorded, sequence: u64, at: Time, wakes: &mut Wakes) {
        let letter = Letter {
            series: self.series,
            sequence,
            at,
            recorded,
        };
        if let Some(waker) = self.mailbox.push(letter) {
            wakes.push(waker);
        }
    }
}

/// The series was removed, or was listened to already.
impl Drop for Tap {
    fn drop(&mut self) {
        self.directory
            .retire(self.series, self.mailbox.next_position());
    }
}

impl Mutations {
    /// The subscription behind the stream.
    pub fn subscription(&self) -> &Subscription {
        &self.subscription
    }

    /// Tells how many mutations have come in so far, read or not: what places something else among them.
    #[cfg(feature = "backtest")]
    pub(crate) fn counter(&self) -> impl Fn() -> u64 + Send + Sync + 'static {
        let mailbox = self.inbox.mailbox().clone();
        move || mailbox.next_position()
    }

    fn find(&mut self, id: u64) -> Option<Series> {
        if let Some((last, series)) = &self.last
            && *last == id
        {
            return Some(series.clone());
        }
        let series = self.directory.find(id)?;
        self.last = Some((id, series.clone()));
        Some(series)
    }

    fn open(&mut self, letter: Letter) -> Option<Mutation> {
        let series = self.find(letter.series)?;
        let change = match letter.recorded {
            Recorded::Observed(value) => Change::Observed { value },
            Recorded::Moved { before, after } => {
                let (before, after) = (
                    series.core().value_of(before),
                    series.core().value_of(after),
                );
                match series.kind() {
                    crate::MetricKind::Gauge => Change::Set {
                        before: before.as_f64(),
                        after: after.as_f64(),
                    },
                    _ => Change::Counted { before, after },
                }
            }
        };
        self.shared.delivered();
        Some(Mutation {
            series,
            sequence: letter.sequence,
            at: letter.at,
            change,
        })
    }
}

impl Stream for Mutations {
    type Item = Result<Mutation, Lagged>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = self.inbox.poll_next(cx);
        // Letters before those at hand have all been told.
        self.directory
            .read
            .store(self.inbox.position(), Ordering::Release);
        Poll::Ready(match polled {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Item::End) => None,
            Poll::Ready(Item::Lagged(n)) => Some(Err(Lagged(n))),
            Poll::Ready(Item::Letter(letter)) => Some(self.open(letter).ok_or_else(|| {
                // Of a series removed so long ago that it was forgotten.
                self.shared.lost();
                Lagged(1)
            })),
        })
    }
}

/// Nothing in it points into itself.
impl Unpin for Mutations {}

impl fmt::Debug for Mutations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Mutations")
            .field(&self.subscription)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::{Counter, Desc, MetricBus};

    #[test]
    fn a_series_is_mutated_without_a_lock_again_once_its_last_recorder_is_gone() {
        let bus = MetricBus::new();
        let gauge = bus.gauge("g", "g").unwrap();
        let core = gauge.series().core().clone();
        assert!(core.cell.is_open());
        let tap = bus.subscribe("g").unwrap();
        let window = gauge.series().window(Duration::from_secs(1));
        gauge.set(1.0);
        assert!(!core.cell.is_open());
        drop(tap);
        assert!(!core.cell.is_open());
        drop(window);
        assert!(core.cell.is_open());
    }

    #[test]
    fn the_directory_keeps_removed_series_only_as_long_as_a_letter_names_them() {
        let bus = MetricBus::new();
        let family = bus
            .family::<Counter>(Desc::new("c_total", "c").labels(["i"]))
            .unwrap();
        let mut tap = bus.subscribe("c_total").unwrap();
        for i in 0..1_000 {
            let label = [i.to_string()];
            family.with_label_values(&label).unwrap().inc();
            family.remove(&label).unwrap();
            let next = futures::StreamExt::next(&mut tap);
            let mutation = futures::executor::block_on(next).unwrap().unwrap();
            assert_eq!(mutation.series.label("i"), Some(i.to_string()));
        }
        let held = tap.directory.entries.lock().unwrap().by_id.len();
        assert!(held < 10, "{held}");
    }
}
