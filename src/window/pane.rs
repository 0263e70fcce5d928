//! A pane: one series' window, shared by the listener that feeds it and by whoever asks.
//!
//! - A *gauge's* lives with its listener, under the lock of the series: whoever asks comes there.
//! - A *counter's* costs a mutation nothing: it is sampled where slots begin.
//! - A *histogram's* is sampled, too: the sketch that all its windows share is read where slots begin. Only a new extreme
//!   of a slot takes its thread to the series' lock.
//!
//! Whoever asks samples what is due; so the answer at a slot's beginning is the same whether the clock's tick or the
//! question came first.
//!
//! Lock order: a sample's lock, then the series'. A listener is called under the series' lock and takes none of a sample:
//! what it has to say of the beginning and the end goes through cells that are written once.

use std::{
    any::Any,
    sync::{Arc, Mutex, OnceLock, Weak},
    time::Duration,
};

use super::{
    held::Held,
    part::{Detail, Part, WIDTH_MIN, slot_of},
    sampled::{Counted, Observed, Total},
};
use crate::{
    cell::{Listener, Recorded, Wakes, wake_all},
    clock::Tick,
    desc::MetricKind,
    interest::{ExtremesState, Interval},
    series::SeriesCore,
    sync::lock,
    time::{Stamp, Time, nanos},
};

/// One series' window.
pub(crate) struct Pane {
    id: u64,
    series: Arc<SeriesCore>,
    width: u64,
    slot: u64,
    /// Since when it looks, where that is before the series was made.
    origin: Option<Time>,
    begun: OnceLock<Begun>,
    ended: OnceLock<Ended>,
    state: State,
}

/// The series when its window began.
struct Begun {
    at: Time,
    /// Of a counter.
    bits: u64,
    /// Of a histogram, until it is taken over.
    total: Mutex<Option<Total>>,
}

/// The series when it was removed.
struct Ended {
    at: Time,
    /// Of a counter.
    bits: u64,
    /// Of a histogram.
    total: Option<Total>,
    extremes: ExtremesState,
}

enum State {
    /// What the listener left when it went.
    Gauge(Mutex<Option<Box<Held>>>),
    /// `None` until the window begins.
    Counter(Mutex<Option<Counted>>),
    Histogram(Mutex<Option<Observed>>),
}

/// The panes of a window over a selector.
pub(crate) type Members = Mutex<Vec<Arc<Pane>>>;

/// A pane over `series` and the listener (id `id`) that feeds it, not attached yet. `newborn`, `since`: as for windows
/// over a selector: a counter or histogram series that is made later has counted nothing until now, and its window looks
/// from `since`. What a gauge would have been nobody knows; its window begins with it.
///
/// A pane must not be asked under a series' lock, and so not by a listener.
pub(crate) fn pane(
    id: u64,
    series: &Arc<SeriesCore>,
    newborn: bool,
    since: Time,
    width: Duration,
) -> (Arc<Pane>, Box<dyn Listener>) {
    let (pane, feeder) = make(id, series, newborn.then_some(since), width);
    (pane, feeder.boxed())
}

/// As [`pane`], of a window over a selector: the pane enters itself among `members` once the listener is in place, and
/// leaves when the series is removed.
pub(crate) fn member(
    id: u64,
    series: &Arc<SeriesCore>,
    origin: Option<Time>,
    width: Duration,
    members: &Arc<Members>,
) -> Box<dyn Listener> {
    let (pane, mut feeder) = make(id, series, origin, width);
    let feed = match &mut feeder {
        Feeder::Gauge(feeder) => &mut feeder.feed,
        Feeder::Counter(feeder) => &mut feeder.feed,
        Feeder::Histogram(feeder) => &mut feeder.feed,
    };
    feed.members = Some((Some(pane), Arc::downgrade(members)));
    feeder.boxed()
}

fn make(
    id: u64,
    series: &Arc<SeriesCore>,
    origin: Option<Time>,
    width: Duration,
) -> (Arc<Pane>, Feeder) {
    let (width, slot) = (nanos(width.max(WIDTH_MIN)), slot_of(width));
    let kind = series.meta.kind;
    let pane = Arc::new(Pane {
        id,
        series: series.clone(),
        width,
        slot: nanos(slot),
        origin,
        begun: OnceLock::new(),
        ended: OnceLock::new(),
        state: match kind {
            MetricKind::Gauge => State::Gauge(Mutex::default()),
            MetricKind::Counter => State::Counter(Mutex::default()),
            MetricKind::Histogram => State::Histogram(Mutex::default()),
        },
    });
    if let (MetricKind::Histogram, Some(buckets)) = (kind, &series.buckets) {
        buckets.begin_sketch();
    }
    if kind != MetricKind::Gauge {
        let ticking: Weak<Pane> = Arc::downgrade(&pane);
        series.meta.clock.every(slot, ticking);
    }
    let feed = Feed {
        id,
        pane: Arc::downgrade(&pane),
        members: None,
    };
    let feeder = match kind {
        MetricKind::Gauge => Feeder::Gauge(GaugeFeeder {
            feed,
            held: Some(Box::new(Held::new(width, nanos(slot)))),
        }),
        MetricKind::Counter => Feeder::Counter(CounterFeeder { feed }),
        MetricKind::Histogram => Feeder::Histogram(HistogramFeeder {
            feed,
            extremes: ExtremesState::new(),
        }),
    };
    (pane, feeder)
}

/// What is asked of a gauge's listener: everything.
struct Look {
    now: Time,
    detail: Detail,
    part: Option<Part>,
}

/// What is asked of a histogram's listener: smallest and largest observation since it was last told to begin anew.
struct Extremes {
    anew: bool,
    seen: Option<ExtremesState>,
}

impl Pane {
    pub(crate) fn series(&self) -> &Arc<SeriesCore> {
        &self.series
    }

    /// What was seen in the window that ends `now`.
    pub(crate) fn part(&self, now: Time, detail: Detail) -> Part {
        match &self.state {
            State::Gauge(left) => self.gauge(left, now, detail),
            State::Counter(state) => {
                let mut state = lock(state);
                match self.counter(&mut state) {
                    Some(counted) => counted.part(self.bits(), self.up_to(now)),
                    None => self.nothing(),
                }
            }
            State::Histogram(state) => {
                let mut state = lock(state);
                self.tick_histogram(&mut state, now);
                match &mut *state {
                    Some(observed) => {
                        // The extremes first: what is counted later than they were looked at may be one still.
                        let extremes = self.extremes(false);
                        match self.total() {
                            Some(total) => {
                                observed.part(&total, &extremes, self.up_to(now), detail)
                            }
                            None => self.nothing(),
                        }
                    }
                    None => self.nothing(),
                }
            }
        }
    }

    fn nothing(&self) -> Part {
        Part::nothing(self.series.meta.kind, self.width, self.slot)
    }

    /// Time ends for a window when its series does.
    fn up_to(&self, now: Time) -> Time {
        self.ended.get().map_or(now, |ended| now.min(ended.at))
    }

    fn bits(&self) -> u64 {
        match self.ended.get() {
            Some(ended) => ended.bits,
            None => self.series.cell.load(),
        }
    }

    fn gauge(&self, left: &Mutex<Option<Box<Held>>>, now: Time, detail: Detail) -> Part {
        let mut look = Look {
            now,
            detail,
            part: None,
        };
        self.series.ask(self.id, &mut look);
        if let Some(part) = look.part {
            return part;
        }
        match &mut *lock(left) {
            Some(held) => held.part(self.up_to(now), detail),
            None => self.nothing(),
        }
    }

    fn counter<'a>(&self, state: &'a mut Option<Counted>) -> Option<&'a mut Counted> {
        if state.is_none() {
            let begun = self.begun.get()?;
            let from = self.origin.unwrap_or(begun.at);
            let numbers = self.series.meta.numbers;
            let times = (self.width, self.slot);
            *state = Some(Counted::new(times, numbers, from, begun.at, begun.bits));
        }
        state.as_mut()
    }

    fn histogram<'a>(&self, state: &'a mut Option<Observed>) -> Option<&'a mut Observed> {
        if state.is_none() {
            let begun = self.begun.get()?;
            let total = lock(&begun.total).take()?;
            let from = self.origin.unwrap_or(begun.at);
            let times = (self.width, self.slot);
            *state = Some(Observed::new(times, from, begun.at, total));
        }
        state.as_mut()
    }

    /// Samples a histogram where a slot has begun. `true` where nothing has happened.
    fn tick_histogram(&self, state: &mut Option<Observed>, now: Time) -> bool {
        let Some(observed) = self.histogram(state) else {
            return true;
        };
        let now = self.up_to(now);
        if !observed.is_due(now) {
            return false;
        }
        if self.ended.get().is_none()
            && let Some(buckets) = &self.series.buckets
            && observed.is_idle(buckets.total_before_sketch(), self.series.cell.load(), now)
        {
            return true;
        }
        // In this order: who observes after the extremes began anew comes to the listener, and who observed before it is
        // in the sketch.
        let extremes = self.extremes(true);
        if let Some(total) = self.total() {
            observed.sample(total, &extremes, now);
        }
        false
    }

    fn total(&self) -> Option<Total> {
        match self.ended.get() {
            Some(ended) => ended.total.clone(),
            None => live_total(&self.series),
        }
    }

    /// Smallest and largest observation since the last call with `anew`.
    fn extremes(&self, anew: bool) -> ExtremesState {
        let mut question = Extremes { anew, seen: None };
        if anew {
            let mut wakes = Wakes::new();
            // Re-arms the band: from here on the first observation is an extreme.
            self.series.visit(self.id, &mut wakes, |listener, _| {
                listener.ask(&mut question);
            });
            wake_all(&mut wakes);
        } else {
            self.series.ask(self.id, &mut question);
        }
        let ended = || Some(self.ended.get()?.extremes.clone());
        question
            .seen
            .or_else(ended)
            .unwrap_or_else(ExtremesState::new)
    }

    /// The window begins.
    fn begin(&self, at: Time, bits: u64) {
        let total = live_total(&self.series);
        let _ = self.begun.set(Begun {
            at,
            bits,
            total: Mutex::new(total),
        });
    }

    /// The window has seen the last of its series.
    fn end(&self, at: Time, extremes: &ExtremesState) {
        let _ = self.ended.set(Ended {
            at,
            bits: self.series.cell.load(),
            total: live_total(&self.series),
            extremes: extremes.clone(),
        });
    }
}

fn live_total(series: &SeriesCore) -> Option<Total> {
    let buckets = series.buckets.as_ref()?;
    let count = buckets.total_before_sketch();
    let sketch = buckets.sketch()?.snapshot();
    Some(Total {
        count,
        sketch,
        sum: series.cell.load(),
    })
}

impl Tick for Pane {
    fn tick(&self, now: Time) -> bool {
        match &self.state {
            State::Gauge(_) => true,
            State::Counter(state) => {
                let mut state = lock(state);
                let (bits, now) = (self.bits(), self.up_to(now));
                self.counter(&mut state)
                    .is_none_or(|counted| counted.sample(bits, now))
            }
            State::Histogram(state) => self.tick_histogram(&mut lock(state), now),
        }
    }
}

impl Drop for Pane {
    fn drop(&mut self) {
        if let (State::Histogram(_), Some(buckets)) = (&self.state, &self.series.buckets) {
            buckets.end_sketch();
        }
    }
}

enum Feeder {
    Gauge(GaugeFeeder),
    Counter(CounterFeeder),
    Histogram(HistogramFeeder),
}

impl Feeder {
    fn boxed(self) -> Box<dyn Listener> {
        match self {
            Feeder::Gauge(feeder) => Box::new(feeder),
            Feeder::Counter(feeder) => Box::new(feeder),
            Feeder::Histogram(feeder) => Box::new(feeder),
        }
    }
}

/// What listeners have in common: how they reach their pane. They do not keep it: it keeps the series, which keeps them.
struct Feed {
    id: u64,
    pane: Weak<Pane>,
    /// Where the pane enters itself, and the pane until it has.
    members: Option<(Option<Arc<Pane>>, Weak<Members>)>,
}

impl Feed {
    fn begin(&mut self, bits: u64, at: Time) {
        let Some(pane) = self.pane.upgrade() else {
            return;
        };
        pane.begin(at, bits);
        if let Some((pending, members)) = &mut self.members
            && let (Some(pane), Some(members)) = (pending.take(), members.upgrade())
        {
            lock(&members).push(pane);
        }
    }

    /// The series was removed, or the listener was taken out. `extremes`: of a histogram.
    fn end(&self, at: Option<Time>, extremes: &ExtremesState) -> Option<(Arc<Pane>, Time)> {
        let pane = self.pane.upgrade()?;
        let at = at.unwrap_or_else(|| pane.series.meta.clock.now());
        if pane.begun.get().is_none() {
            // It was refused: the series is gone already, and its last value is all there will ever be.
            pane.begin(at, pane.series.cell.load());
        }
        pane.end(at, extremes);
        Some((pane, at))
    }

    fn leave(&self) {
        if let Some((_, members)) = &self.members
            && let Some(members) = members.upgrade()
        {
            lock(&members).retain(|pane| !std::ptr::eq(Arc::as_ptr(pane), self.pane.as_ptr()));
        }
    }
}

struct GaugeFeeder {
    feed: Feed,
    /// `None` once the pane has it.
    held: Option<Box<Held>>,
}

impl GaugeFeeder {
    fn end(&mut self, at: Option<Time>) {
        let Some(mut held) = self.held.take() else {
            return;
        };
        let begun = self
            .feed
            .pane
            .upgrade()
            .is_some_and(|p| p.begun.get().is_some());
        if let Some((pane, at)) = self.feed.end(at, &ExtremesState::new()) {
            if !begun {
                held.begin(f64::from_bits(pane.series.cell.load()), at);
            }
            if let State::Gauge(left) = &pane.state {
                *lock(left) = Some(held);
            }
        }
    }
}

impl Drop for GaugeFeeder {
    fn drop(&mut self) {
        self.end(None);
    }
}

impl Listener for GaugeFeeder {
    fn id(&self) -> u64 {
        self.feed.id
    }

    fn takes_all(&self) -> bool {
        true
    }

    fn begin(&mut self, bits: u64, stamp: &mut Stamp<'_>) {
        if let Some(held) = &mut self.held {
            held.begin(f64::from_bits(bits), stamp.at());
        }
        self.feed.begin(bits, stamp.at());
    }

    fn quiet(&self) -> Interval {
        Interval::NOTHING
    }

    fn record(&mut self, recorded: Recorded, _sequence: u64, at: Time, _wakes: &mut Wakes) {
        if let (Recorded::Moved { after, .. }, Some(held)) = (recorded, &mut self.held) {
            held.record(f64::from_bits(after), at);
        }
    }

    fn ask(&mut self, question: &mut dyn Any) {
        if let (Some(look), Some(held)) = (question.downcast_mut::<Look>(), &mut self.held) {
            look.part = Some(held.part(look.now, look.detail));
        }
    }

    fn removed(&mut self, _value: f64, stamp: &mut Stamp<'_>, _wakes: &mut Wakes) {
        self.end(Some(stamp.at()));
        self.feed.leave();
    }
}

/// Hears of nothing but the beginning and the end.
struct CounterFeeder {
    feed: Feed,
}

impl Drop for CounterFeeder {
    fn drop(&mut self) {
        self.feed.end(None, &ExtremesState::new());
    }
}

impl Listener for CounterFeeder {
    fn id(&self) -> u64 {
        self.feed.id
    }

    fn begin(&mut self, bits: u64, stamp: &mut Stamp<'_>) {
        self.feed.begin(bits, stamp.at());
    }

    fn quiet(&self) -> Interval {
        Interval::EVERYTHING
    }

    fn removed(&mut self, _value: f64, stamp: &mut Stamp<'_>, _wakes: &mut Wakes) {
        self.feed.end(Some(stamp.at()), &ExtremesState::new());
        self.feed.leave();
    }
}

/// Hears of extremes.
struct HistogramFeeder {
    feed: Feed,
    extremes: ExtremesState,
}

impl Drop for HistogramFeeder {
    fn drop(&mut self) {
        self.feed.end(None, &self.extremes);
    }
}

impl Listener for HistogramFeeder {
    fn id(&self) -> u64 {
        self.feed.id
    }

    fn begin(&mut self, bits: u64, stamp: &mut Stamp<'_>) {
        self.feed.begin(bits, stamp.at());
    }

    fn judge(&mut self, value: f64, mutated: bool, _stamp: &mut Stamp<'_>) {
        if mutated {
            self.extremes.step(value);
        }
    }

    fn quiet(&self) -> Interval {
        self.extremes.quiet()
    }

    fn ask(&mut self, question: &mut dyn Any) {
        if let Some(question) = question.downcast_mut::<Extremes>() {
            question.seen = Some(self.extremes.clone());
            if question.anew {
                self.extremes.reset();
            }
        }
    }

    fn removed(&mut self, _value: f64, stamp: &mut Stamp<'_>, _wakes: &mut Wakes) {
        self.feed.end(Some(stamp.at()), &self.extremes);
        self.feed.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Buckets, Clock, MetricBus, Series, stats::next_id, window::merge};

    const WIDTH: Duration = Duration::from_secs(10);

    fn bus() -> (MetricBus, Clock) {
        let clock = Clock::manual();
        (MetricBus::builder().clock(clock.clone()).build(), clock)
    }

    fn attached(series: &Series) -> Arc<Pane> {
        let core = series.core();
        let (pane, feeder) = pane(next_id(), core, false, Time::ZERO, WIDTH);
        let mut wakes = Wakes::new();
        assert!(core.attach(feeder, &mut wakes));
        pane
    }

    /// Asks at every slot's beginning.
    fn ask_at_boundaries(clock: &Clock, pane: &Arc<Pane>, said: &Arc<Mutex<Vec<String>>>) {
        let next = clock.now() + slot_of(WIDTH);
        let (clock, pane, said) = (clock.clone(), pane.clone(), said.clone());
        clock.clone().at(next, move || {
            let stats = merge(&[pane.part(clock.now(), Detail::Numbers)], WIDTH);
            lock(&said).push(format!("{stats:?}"));
            ask_at_boundaries(&clock, &pane, &said);
        });
    }

    #[test]
    fn at_a_slots_beginning_the_answer_is_the_same_before_and_after_the_tick() {
        let (bus, clock) = bus();
        let counter = bus.counter("c_total", "c").unwrap();
        let gauge = bus.gauge("g", "g").unwrap();
        let histogram = bus.histogram("h", "h", Buckets::default()).unwrap();
        for series in [counter.series(), gauge.series(), histogram.series()] {
            let (before, after) = (Arc::default(), Arc::default());
            // Not yet ticking: the timer of the first is set before the ticks' and runs before them.
            let core = series.core();
            let make = || pane(next_id(), core, false, Time::ZERO, WIDTH);
            let early = attached(&series);
            ask_at_boundaries(&clock, &early, &before);
            let (late, feeder) = make();
            assert!(core.attach(feeder, &mut Wakes::new()));
            ask_at_boundaries(&clock, &late, &after);
            for i in 0..2_000_u32 {
                clock.advance(Duration::from_millis(37));
                if i % 50 < 20 {
                    counter.inc();
                    gauge.set(f64::from(i % 7));
                    histogram.observe(f64::from(i % 11));
                }
            }
            assert_eq!(*lock(&before), *lock(&after));
            assert!(lock(&before).len() > 700);
        }
    }

    #[test]
    fn many_windows_share_a_timer_which_ends_with_them() {
        let (bus, clock) = bus();
        let counter = bus.counter("c_total", "c").unwrap();
        let windows: Vec<_> = (0..100).map(|_| counter.series().window(WIDTH)).collect();
        let other = counter.series().window(2 * WIDTH);
        assert_eq!(clock.timers(), 2);
        drop((windows, other));
        clock.advance(WIDTH);
        assert_eq!(clock.timers(), 0);
    }

    #[test]
    fn a_window_keeps_neither_bus_nor_series() {
        let (bus, clock) = bus();
        let histogram = bus.histogram("h", "h", Buckets::default()).unwrap();
        let series = Arc::downgrade(histogram.series().core());
        let window = histogram.series().window(WIDTH);
        let windows = bus.window("h", WIDTH).unwrap();
        histogram.observe(1.0);
        drop((bus, histogram));
        clock.advance(WIDTH);
        // It saw the last of its series when the bus ended.
        assert_eq!(window.stats().max, Some(1.0));
        drop((window, windows));
        assert!(series.upgrade().is_none());
    }

    #[test]
    fn a_histogram_without_windows_keeps_no_sketch() {
        let (bus, _) = bus();
        let histogram = bus.histogram("h", "h", Buckets::default()).unwrap();
        let core = histogram.series().core().clone();
        let buckets = core.buckets.as_ref().unwrap();
        let counted = || {
            buckets
                .sketch()
                .map(|s| s.snapshot().iter().map(|b| b.1).sum::<u64>())
        };
        histogram.observe(1.0);
        assert_eq!(counted(), None);
        let (one, other) = (
            attached(&histogram.series()),
            histogram.series().window(WIDTH),
        );
        histogram.observe(1.0);
        drop(one);
        histogram.observe(1.0);
        drop(other);
        histogram.observe(1.0);
        assert_eq!(counted(), Some(2));
    }
}
