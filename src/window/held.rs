//! The window of a gauge: values, weighted by how long they were held. Pure bookkeeping, no lock, no clock.
//!
//! Every mutation comes here, so the common case is short: within a slot, some additions. A slot that is over is kept as a
//! [`Span`]; idle slots become one, however many they are. Nothing is kept per mutation and nothing is ever subtracted,
//! so sums do not drift and memory is bounded by the number of slots.

use std::collections::VecDeque;

use super::{
    double_double::DoubleDouble,
    part::{Detail, Moments, Part, start_of},
};
use crate::{
    desc::MetricKind,
    series::is_unmeasured,
    sketch::{Packed, index},
    time::Time,
};

/// Entries of the table of weights; a power of two. Neighbouring buckets lie in neighbouring entries, so values within
/// eight octaves never meet.
const TABLE: usize = 256;

/// Weights put aside before those of the same bucket are added up.
const ASIDE: usize = 64;

/// No index: of NaN.
const NOWHERE: i32 = i32::MIN;

pub(crate) struct Held {
    width: u64,
    slot: u64,
    /// What a weight is divided by (as a power of two) to fit into 46 bits: 1 unless a slot lasts 19 hours.
    shift: u32,
    /// The value; NaN where there is none.
    value: f64,
    index: i32,
    /// Up to where the value was accounted for.
    since: Time,
    changed: Option<Time>,
    open: Span,
    /// Where the open slot ends.
    end: Time,
    /// Weights of the open slot.
    table: Box<[(i32, u64); TABLE]>,
    aside: Vec<Packed>,
    closed: VecDeque<Span>,
    /// Weights of the closed slots, in their order.
    weights: VecDeque<Packed>,
}

/// A slot, a part of one, or idle slots.
#[derive(Clone, Copy, Debug)]
struct Span {
    from: Time,
    to: Time,
    /// The value when it began, or the first one.
    first: f64,
    count: u64,
    sum: DoubleDouble,
    min: f64,
    max: f64,
    /// The first finite value that was held for any time. Sums are of distances from it, so that large values with a
    /// small spread do not cancel.
    base: f64,
    /// Nanoseconds for which something finite was held; of distance × nanoseconds, the sum; of its square, too.
    held: u64,
    distance: DoubleDouble,
    square: DoubleDouble,
    /// 0, or what is infinite and was held: NaN where both were.
    infinite: f64,
    /// How many weights are its own. An idle span has none: they follow from its value.
    weights: u32,
    idle: bool,
}

impl Span {
    fn from(from: Time, first: f64) -> Span {
        Span {
            from,
            to: from,
            first,
            count: 0,
            sum: DoubleDouble::ZERO,
            min: f64::NAN,
            max: f64::NAN,
            base: f64::NAN,
            held: 0,
            distance: DoubleDouble::ZERO,
            square: DoubleDouble::ZERO,
            infinite: 0.0,
            weights: 0,
            idle: false,
        }
    }

    fn idle(value: f64, from: Time, to: Time) -> Span {
        let mut span = Span::from(from, value);
        span.idle = true;
        span.extend(to);
        span
    }

    /// The value is held until `to`.
    fn extend(&mut self, to: Time) {
        let ns = to.0 - self.to.0;
        self.hold(self.first, ns);
        self.to = to;
    }

    #[inline]
    fn hold(&mut self, value: f64, ns: u64) {
        if value.is_nan() {
            return;
        }
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        if value.is_infinite() {
            self.infinite += value;
            return;
        }
        if self.base.is_nan() {
            self.base = value;
        }
        self.held += ns;
        if value != self.base {
            let distance = DoubleDouble::sum(value, -self.base);
            let weighted = distance * DoubleDouble::from(ns as f64);
            self.distance += weighted;
            self.square += distance * weighted;
        }
    }

    fn moments(&self) -> Moments {
        if self.held == 0 {
            return Moments::default();
        }
        let weight = DoubleDouble::from(self.held);
        let away = self.distance / weight;
        Moments {
            weight,
            mean: DoubleDouble::from(self.base) + away,
            squares: (self.square - self.distance * away).at_least_zero(),
        }
    }
}

impl Held {
    pub(crate) fn new(width: u64, slot: u64) -> Held {
        Held {
            width,
            slot,
            shift: (u64::BITS - slot.leading_zeros()).saturating_sub(Packed::WEIGHT_BITS),
            value: f64::NAN,
            index: NOWHERE,
            since: Time::ZERO,
            changed: None,
            open: Span::from(Time::ZERO, f64::NAN),
            end: Time::ZERO,
            table: Box::new([(0, 0); TABLE]),
            aside: Vec::with_capacity(ASIDE + TABLE),
            closed: VecDeque::with_capacity(8),
            weights: VecDeque::with_capacity(256),
        }
    }

    /// The window begins to look, and finds this value.
    pub(crate) fn begin(&mut self, value: f64, at: Time) {
        if !is_unmeasured(value) {
            self.hold_from_here(value);
        }
        self.open_at(at);
    }

    fn hold_from_here(&mut self, value: f64) {
        self.value = value;
        self.index = index(value).unwrap_or(NOWHERE);
    }

    fn open_at(&mut self, from: Time) {
        self.since = from;
        self.end = Time(
            (from.0 / self.slot)
                .saturating_add(1)
                .saturating_mul(self.slot),
        );
        self.open = Span::from(from, self.value);
    }

    /// Takes a mutation.
    #[inline]
    pub(crate) fn record(&mut self, value: f64, at: Time) {
        self.hold_until(at);
        self.changed = Some(self.since);
        self.hold_from_here(value);
        if value.is_nan() {
            return;
        }
        let open = &mut self.open;
        open.count += 1;
        open.sum += value.into();
        open.min = open.min.min(value);
        open.max = open.max.max(value);
        if open.first.is_nan() {
            open.first = value;
        }
    }

    #[inline]
    fn hold_until(&mut self, at: Time) {
        if at >= self.end {
            self.go_on_to(at);
        }
        // Another thread may have read the clock a moment earlier.
        let ns = at.0.saturating_sub(self.since.0);
        if ns > 0 {
            self.since = at;
            self.open.hold(self.value, ns);
            self.weigh(ns);
        }
    }

    #[inline]
    fn weigh(&mut self, ns: u64) {
        if self.index == NOWHERE {
            return;
        }
        let entry = &mut self.table[self.index as usize % TABLE];
        if entry.0 == self.index {
            entry.1 += ns;
            return;
        }
        let before = std::mem::replace(entry, (self.index, ns));
        if before.1 > 0 {
            self.put_aside(before);
        }
    }

    #[cold]
    fn put_aside(&mut self, (index, ns): (i32, u64)) {
        // Room for the table stays free, so that a slot that ends seldom has to make any.
        let room = self.aside.capacity() - TABLE;
        if self.aside.len() >= room {
            add_up(&mut self.aside);
            if self.aside.len() > room / 2 {
                self.aside.reserve(2 * room + TABLE);
            }
        }
        self.aside.push(Packed::new(index, ns >> self.shift));
    }

    /// Closes the open slot, and opens the one in which `at` lies.
    #[cold]
    fn go_on_to(&mut self, at: Time) {
        let end = self.end;
        let ns = end.0.saturating_sub(self.since.0);
        if ns > 0 {
            self.since = end;
            self.open.hold(self.value, ns);
            self.weigh(ns);
        }
        self.open.to = end;
        self.close();
        let begin = Time(at.0 / self.slot * self.slot);
        if begin > end {
            self.idle(end, begin);
        }
        self.open_at(begin);
        self.let_go(at);
    }

    fn close(&mut self) {
        let Span { from, to, .. } = self.open;
        if self.changed.is_none_or(|changed| changed < from) {
            // Its only weight is that of the value held.
            if self.index != NOWHERE {
                self.table[self.index as usize % TABLE].1 = 0;
            }
            return self.idle(from, to);
        }
        for (index, ns) in self.table.iter_mut() {
            if *ns > 0 {
                self.aside.push(Packed::new(*index, *ns >> self.shift));
                *ns = 0;
            }
        }
        add_up(&mut self.aside);
        self.open.weights = self.aside.len() as u32;
        self.weights.extend(self.aside.drain(..));
        self.closed.push_back(self.open);
    }

    /// Nothing was done from `from` to `to`.
    fn idle(&mut self, from: Time, to: Time) {
        match self.closed.back_mut() {
            Some(last) if last.idle && last.first.to_bits() == self.value.to_bits() => {
                last.extend(to);
            }
            _ => self.closed.push_back(Span::idle(self.value, from, to)),
        }
    }

    /// Drops what no window reaches any more.
    fn let_go(&mut self, now: Time) {
        let start = start_of(now, self.width, self.slot);
        while let Some(oldest) = self.closed.front()
            && oldest.to <= start
        {
            self.weights.drain(..oldest.weights as usize);
            self.closed.pop_front();
        }
    }

    /// What was in the window that ends `now`.
    pub(crate) fn part(&mut self, now: Time, detail: Detail) -> Part {
        self.hold_until(now);
        let now = now.max(self.since);
        self.let_go(now);
        let start = start_of(now, self.width, self.slot);
        let mut sum = DoubleDouble::ZERO;
        let mut part = Part::nothing(MetricKind::Gauge, self.width, self.slot);
        let mut first = f64::NAN;
        let mut from = self.open.from;
        let mut take = |span: &Span| {
            from = from.min(span.from);
            part.count += span.count;
            sum += span.sum;
            part.min = part.min.min(span.min);
            part.max = part.max.max(span.max);
            part.moments.add(span.moments());
            part.infinite += span.infinite;
            if first.is_nan() {
                first = span.first;
            }
        };
        let mut weights = self.weights.iter().copied();
        for span in &self.closed {
            let mut span = *span;
            if span.from < start {
                // Others begin where the window does, or later. An idle one can be cut anywhere.
                span = Span::idle(span.first, start, span.to);
            }
            take(&span);
            if detail == Detail::Sketch {
                if span.idle {
                    let held = index(span.first).map(|i| (i, span.to.0 - span.from.0));
                    part.weights.add_ascending(held);
                } else {
                    let own = weights.by_ref().take(span.weights as usize);
                    let own = own.map(|w| (w.index(), w.weight() << self.shift));
                    part.weights.add_ascending(own);
                }
            }
        }
        take(&self.open);
        if detail == Detail::Sketch {
            for &(index, ns) in self.table.iter().filter(|entry| entry.1 > 0) {
                part.weights.add_ascending([(index, ns)]);
            }
            for put in &self.aside {
                let weight = put.weight() << self.shift;
                part.weights.add_ascending([(put.index(), weight)]);
            }
            if part.moments.is_nothing() && part.infinite == 0.0 {
                // Asked at the very moment at which the window began.
                part.weights
                    .add_ascending(index(self.value).map(|i| (i, 1)));
            }
        }
        if part.min.is_nan() {
            (part.min, part.max) = (self.value, self.value);
        }
        part.sum = sum.value();
        part.covered = now.0 - from.0;
        part.last = self.value;
        part.increase = self.value - first;
        part.age = self.changed.map(|changed| now.0 - changed.0);
        part.stale = self.changed.is_none_or(|changed| changed < from);
        part
    }
}

/// Sorts, and adds up weights of the same bucket.
fn add_up(weights: &mut Vec<Packed>) {
    weights.sort_unstable();
    weights.dedup_by(|later, earlier| {
        let same = later.index() == earlier.index();
        if same {
            *earlier = Packed::new(earlier.index(), earlier.weight() + later.weight());
        }
        same
    });
}
