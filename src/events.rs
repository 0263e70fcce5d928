//! Crossings, moves and changes: the events of `on_threshold`, `on_delta` and `on_change`, and their listeners.

use std::{
    any::Any,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::SystemTime,
};

use crate::{
    backlog::Subject,
    bus::MetricBus,
    cell::{Listener, Wakes, wake_all},
    error::SubscribeError,
    interest::{ChangeState, Cuts, DeltaState, Distance, Interval, ThresholdState},
    listen::{Birth, Event, Listen, Plan, Post, sealed},
    selector::{IntoSelector, Selector},
    series::{Series, SeriesCore, Value, is_unmeasured},
    threshold::{Delta, Threshold},
    time::{Now, Stamp, Time},
};

impl MetricBus {
    /// Every change of the selected series, conflated: a slow subscriber gets the latest value, and hears of each series
    /// at most once until it has come to look.
    pub fn on_change(&self, selector: impl IntoSelector) -> Listen<Changed> {
        let plan = self.inner().select(selector).map(changes);
        Listen::new(self, plan.map_err(Into::into))
    }

    /// Crossings of a threshold by each of the selected series.
    pub fn on_threshold(
        &self,
        selector: impl IntoSelector,
        threshold: Threshold,
    ) -> Listen<Crossing> {
        let plan = self
            .inner()
            .select(selector)
            .map_err(Into::into)
            .and_then(|selector| thresholds(selector, threshold));
        Listen::new(self, plan)
    }

    /// Moves by a delta or more, of each of the selected series.
    pub fn on_delta(&self, selector: impl IntoSelector, delta: Delta) -> Listen<Moved> {
        let plan = self
            .inner()
            .select(selector)
            .map_err(Into::into)
            .and_then(|selector| deltas(selector, delta));
        Listen::new(self, plan)
    }
}

/// A threshold was crossed.
///
/// Per series, raised and cleared alternate, and `epoch` grows by 1 with each: a gap in it is the number of crossings
/// that were dropped from a full mailbox. The last crossing of each series always arrives.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Crossing {
    /// Where.
    pub series: Series,
    /// Which way.
    pub state: Crossed,
    /// The value that crossed, as the thread that made it saw it; it may be over by now.
    pub value: f64,
    /// 1 for the first crossing of this series that the subscription knows of, 2 for the next …
    pub epoch: u64,
    /// Why now.
    pub cause: Cause,
    /// When, by the bus's clock.
    pub at: Time,
}

/// Which way a threshold was crossed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Crossed {
    /// The condition holds.
    Raised,
    /// It no longer does.
    Cleared,
}

/// Why a crossing is reported now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Cause {
    /// A mutation crossed the bound.
    Crossing,
    /// The condition held already when the subscription was made.
    Initial,
    /// The series was removed while raised; `value` is its last one, of a histogram the last observation judged.
    Removed,
}

/// A value has moved by a delta or more.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Moved {
    /// Where.
    pub series: Series,
    /// The value last notified to this subscriber, or found when it subscribed.
    pub from: f64,
    /// The value now.
    pub to: f64,
    /// 1 for the first move of this series that the subscription knows of, 2 for the next … A gap is the number of moves that were
    /// dropped from a full mailbox.
    pub epoch: u64,
    /// When, by the bus's clock.
    pub at: Time,
}

/// A value is not what it was when last delivered. Changes in between are conflated into one.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Changed {
    /// Where.
    pub series: Series,
    /// The present value, read at delivery; of a histogram, the number of observations.
    pub value: Value,
    /// The time of the delivery, by the bus's clock.
    pub at: Time,
}

impl Crossing {
    /// [`at`](Crossing::at) as a date, for people and other machines.
    pub fn date(&self) -> SystemTime {
        self.series.date(self.at)
    }
}

impl Moved {
    /// [`at`](Moved::at) as a date, for people and other machines.
    pub fn date(&self) -> SystemTime {
        self.series.date(self.at)
    }
}

impl Changed {
    /// [`at`](Changed::at) as a date, for people and other machines.
    pub fn date(&self) -> SystemTime {
        self.series.date(self.at)
    }
}

/// A series, as a subject of letters: the letter keeps it from being freed, so nothing else has its address.
fn subject(series: &Series) -> Option<u64> {
    Some(Arc::as_ptr(series.core()) as u64)
}

impl Subject for Crossing {
    fn subject(&self) -> Option<u64> {
        subject(&self.series)
    }

    fn is_final(&self) -> bool {
        self.series.core().cell.is_known_retired()
    }
}

impl Subject for Moved {
    fn subject(&self) -> Option<u64> {
        subject(&self.series)
    }

    fn is_final(&self) -> bool {
        self.series.core().cell.is_known_retired()
    }
}

/// A series has one letter at most.
impl Subject for ChangedSeries {
    fn subject(&self) -> Option<u64> {
        None
    }

    fn is_final(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }
}

impl Event for Crossing {}

impl sealed::Event for Crossing {
    type Letter = Crossing;

    fn open(letter: Crossing, _listener: u64) -> Option<Crossing> {
        Some(letter)
    }
}

impl Event for Moved {}

impl sealed::Event for Moved {
    type Letter = Moved;

    fn open(letter: Moved, _listener: u64) -> Option<Moved> {
        Some(letter)
    }
}

impl Event for Changed {}

impl sealed::Event for Changed {
    type Letter = ChangedSeries;

    /// Only here does the listener ask to hear of the next change, and the value is read after that: a change is either
    /// in the value delivered or makes a new letter.
    fn open(letter: ChangedSeries, listener: u64) -> Option<Changed> {
        let core = letter.series;
        let mut wakes = Wakes::new();
        core.visit(listener, &mut wakes, |listener, value| {
            let listener: &mut dyn Any = listener;
            if let Some(change) = listener.downcast_mut::<ChangeListener>() {
                change.drained(value);
            }
        });
        wake_all(&mut wakes);
        let (value, at) = (core.value(), core.now());
        Some(Changed {
            series: Series::of(core),
            value,
            at,
        })
    }
}

fn thresholds(selector: Selector, threshold: Threshold) -> Result<Plan<Crossing>, SubscribeError> {
    let cuts = threshold.cuts()?;
    Ok(Plan {
        selector,
        make: Box::new(move |birth| Box::new(ThresholdListener::new(birth, cuts))),
    })
}

fn deltas(selector: Selector, delta: Delta) -> Result<Plan<Moved>, SubscribeError> {
    let distance = delta.distance()?;
    Ok(Plan {
        selector,
        make: Box::new(move |birth| Box::new(DeltaListener::new(birth, distance))),
    })
}

fn changes(selector: Selector) -> Plan<Changed> {
    let census = Arc::new(Census::default());
    Plan {
        selector,
        make: Box::new(move |birth| Box::new(ChangeListener::new(birth, &census))),
    }
}

struct ThresholdListener {
    id: u64,
    series: Weak<SeriesCore>,
    state: ThresholdState,
    epoch: u64,
    /// What the next judgement is of: a value found rather than made, of a series just made or of an old one.
    newborn: bool,
    first: bool,
    initial: bool,
    /// Of a histogram, whose cell does not tell: what was observed last.
    observed: Option<f64>,
    pending: Option<Crossing>,
    post: Post<Crossing>,
}

impl ThresholdListener {
    fn new(birth: Birth<'_, Crossing>, cuts: Cuts) -> Self {
        ThresholdListener {
            id: birth.id,
            series: Arc::downgrade(birth.series),
            state: ThresholdState::new(cuts),
            epoch: 0,
            newborn: birth.newborn,
            first: true,
            initial: birth.initial,
            observed: birth.series.buckets.as_ref().map(|_| f64::NAN),
            pending: None,
            post: birth.post,
        }
    }

    fn crossing(&mut self, raised: bool, value: f64, cause: Cause, at: Time) -> Option<Crossing> {
        let series = self.series.upgrade().map(Series::of)?;
        self.epoch += 1;
        let state = if raised {
            Crossed::Raised
        } else {
            Crossed::Cleared
        };
        Some(Crossing {
            series,
            state,
            value,
            epoch: self.epoch,
            cause,
            at,
        })
    }
}

impl Listener for ThresholdListener {
    fn id(&self) -> u64 {
        self.id
    }

    fn judge(&mut self, value: f64, mutated: bool, stamp: &mut Stamp<'_>) {
        if !mutated && (self.newborn || is_unmeasured(value)) {
            // The 0 of a series just made, or of a gauge never set, was not measured.
            return;
        }
        self.newborn = false;
        if let Some(observed) = &mut self.observed {
            *observed = value;
        }
        let first = std::mem::replace(&mut self.first, false);
        let Some(raised) = self.state.step(value) else {
            return;
        };
        let cause = if first && !mutated {
            Cause::Initial
        } else {
            Cause::Crossing
        };
        if cause == Cause::Initial && !self.initial {
            return;
        }
        self.pending = self.crossing(raised, value, cause, stamp.at());
    }

    fn quiet(&self) -> Interval {
        self.state.quiet()
    }

    fn speak(&mut self, wakes: &mut Wakes) {
        if let Some(crossing) = self.pending.take() {
            self.post.send(crossing, wakes);
        }
    }

    fn removed(&mut self, value: f64, stamp: &mut Stamp<'_>, wakes: &mut Wakes) {
        if !self.state.is_raised() {
            return;
        }
        let value = self.observed.unwrap_or(value);
        if let Some(crossing) = self.crossing(false, value, Cause::Removed, stamp.at()) {
            self.post.send(crossing, wakes);
        }
    }
}

struct DeltaListener {
    id: u64,
    series: Weak<SeriesCore>,
    state: DeltaState,
    epoch: u64,
    pending: Option<Moved>,
    post: Post<Moved>,
}

impl DeltaListener {
    fn new(birth: Birth<'_, Moved>, distance: Distance) -> Self {
        DeltaListener {
            id: birth.id,
            series: Arc::downgrade(birth.series),
            state: DeltaState::new(distance),
            epoch: 0,
            pending: None,
            post: birth.post,
        }
    }
}

impl Listener for DeltaListener {
    fn id(&self) -> u64 {
        self.id
    }

    fn judge(&mut self, value: f64, mutated: bool, stamp: &mut Stamp<'_>) {
        if !mutated && is_unmeasured(value) {
            return;
        }
        let Some((from, to)) = self.state.step(value) else {
            return;
        };
        self.epoch += 1;
        self.pending = self.series.upgrade().map(|series| Moved {
            series: Series::of(series),
            from,
            to,
            epoch: self.epoch,
            at: stamp.at(),
        });
    }

    fn quiet(&self) -> Interval {
        self.state.quiet()
    }

    fn speak(&mut self, wakes: &mut Wakes) {
        if let Some(moved) = self.pending.take() {
            self.post.send(moved, wakes);
        }
    }
}

/// "Look at this series": the letter of a change.
pub struct ChangedSeries {
    series: Arc<SeriesCore>,
    /// The series was removed meanwhile.
    gone: Arc<AtomicBool>,
}

/// How many series a subscription to changes has, so that its mailbox has room for a letter of each, and not of all that
/// ever were.
#[derive(Default)]
struct Census {
    live: AtomicUsize,
    /// Letters of series that were removed before the reader came.
    gone: AtomicUsize,
}

struct ChangeListener {
    id: u64,
    series: Weak<SeriesCore>,
    state: ChangeState,
    /// A histogram changes with each observation, also of the value observed last.
    observes: bool,
    speaks: bool,
    post: Post<ChangedSeries>,
    census: Arc<Census>,
    gone: Arc<AtomicBool>,
}

impl ChangeListener {
    fn new(birth: Birth<'_, Changed>, census: &Arc<Census>) -> Self {
        let live = census.live.fetch_add(1, Ordering::AcqRel) + 1;
        birth.post.grow_to(live + birth.capacity);
        ChangeListener {
            id: birth.id,
            series: Arc::downgrade(birth.series),
            state: ChangeState::new(),
            observes: birth.series.buckets.is_some(),
            speaks: false,
            post: birth.post,
            census: census.clone(),
            gone: Arc::default(),
        }
    }

    fn drained(&mut self, value: Value) {
        let known = if self.observes {
            f64::NAN
        } else {
            value.as_f64()
        };
        self.state.drained(known);
    }
}

impl Drop for ChangeListener {
    fn drop(&mut self) {
        self.census.live.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Listener for ChangeListener {
    fn id(&self) -> u64 {
        self.id
    }

    fn judge(&mut self, value: f64, mutated: bool, _stamp: &mut Stamp<'_>) {
        if self.observes {
            if mutated && !self.state.is_marked() {
                self.state.mark();
                self.speaks = true;
            }
            return;
        }
        // Of a gauge that was never set any value is a change.
        let value = if !mutated && is_unmeasured(value) {
            f64::NAN
        } else {
            value
        };
        self.speaks |= self.state.step(value);
    }

    fn quiet(&self) -> Interval {
        self.state.quiet()
    }

    fn speak(&mut self, wakes: &mut Wakes) {
        if std::mem::take(&mut self.speaks)
            && let Some(series) = self.series.upgrade()
        {
            let letter = ChangedSeries {
                series,
                gone: self.gone.clone(),
            };
            self.post.send(letter, wakes);
        }
    }

    fn removed(&mut self, _value: f64, _stamp: &mut Stamp<'_>, _wakes: &mut Wakes) {
        if !self.state.is_marked() {
            return;
        }
        self.gone.store(true, Ordering::Release);
        // A reader that stands still while series come and go: their letters must not pile up.
        let gone = self.census.gone.fetch_add(1, Ordering::AcqRel) + 1;
        if gone > self.post.room() {
            self.census.gone.store(0, Ordering::Release);
            self.post
                .purge(|letter| letter.gone.load(Ordering::Acquire));
        }
    }
}
