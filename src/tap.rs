//! The tap: every mutation of chosen series, in full.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use futures_core::Stream;

use crate::{
    bus::Inner,
    cell::{Listener, Recorded, Wakes},
    interest::Interval,
    mailbox::Mailbox,
    selector::Selector,
    series::{Series, SeriesCore, Value},
    stats::next_id,
    time::{Stamp, Time},
    watch::{Inbox, Item, Shared, Subscription},
};

/// One mutation of one series.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Mutation {
    /// Where.
    pub series: Series,
    /// Counts this series' tapped mutations from 1, without gaps: what is missing was dropped.
    pub sequence: u64,
    /// When, by the bus's clock.
    pub at: Time,
    /// What was done.
    pub change: Change,
}

/// What a mutation did.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
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
}

#[derive(Default)]
struct Entries {
    by_id: HashMap<u64, Series>,
    next: u64,
    /// Removed series, oldest first, each with the mailbox position that all its letters are before.
    retired: VecDeque<(u64, u64)>,
}

impl Directory {
    fn enter(&self, series: &Arc<SeriesCore>, mailbox: &Mailbox<Letter>) -> u64 {
        let gone = mailbox.gone();
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        // The reader holds at most one full batch of letters that have left the mailbox.
        while let Some(&(id, position)) = entries.retired.front()
            && position + (self.capacity as u64) < gone
        {
            entries.retired.pop_front();
            entries.by_id.remove(&id);
        }
        // A reader that stands still: at most the letters in its batch and in the mailbox name a removed series.
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
pub(crate) const CAPACITY_DEFAULT: usize = 8_192;

pub(crate) fn subscribe(inner: &Arc<Inner>, selector: Selector, capacity: usize) -> Mutations {
    let id = next_id();
    let capacity = capacity.max(1);
    let mailbox = Arc::new(Mailbox::new(capacity));
    let shared = Shared::new(inner.stats.clone());
    let directory = Arc::new(Directory {
        entries: Mutex::default(),
        capacity,
    });
    let make = {
        let (mailbox, directory) = (mailbox.clone(), directory.clone());
        Box::new(
            move |series: &Arc<SeriesCore>, _newborn| -> Box<dyn Listener> {
                Box::new(Tap {
                    id,
                    series: directory.enter(series, &mailbox),
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
        inbox: Inbox::new(mailbox),
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

    fn removed(&mut self, _value: f64, _stamp: &mut Stamp<'_>, _wakes: &mut Wakes) {
        self.directory
            .retire(self.series, self.mailbox.next_position());
    }
}

impl Mutations {
    /// The subscription behind the stream.
    pub fn subscription(&self) -> &Subscription {
        &self.subscription
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
        Poll::Ready(match self.inbox.poll_next(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Item::End) => None,
            Poll::Ready(Item::Lagged(n)) => Some(Err(Lagged(n))),
            // Only of a series removed so long ago that it was forgotten.
            Poll::Ready(Item::Letter(letter)) => Some(self.open(letter).ok_or(Lagged(1))),
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
