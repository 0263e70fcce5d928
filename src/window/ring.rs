//! The ring of slots behind a window: pure bookkeeping, no lock, no clock.
//!
//! Time is cut into slots of equal width, counted from the window's making. Each keeps what can be merged: count, sum,
//! extremes, and of a gauge the time integral. There is no storage per event and nothing is ever subtracted, so sums do
//! not drift and memory is bounded by the number of slots.

use std::time::Duration;

use super::WindowStats;
use crate::{
    cell::Recorded,
    desc::MetricKind,
    series::is_unmeasured,
    time::{Time, nanos},
};

/// Slots per window, unless that makes them narrower than [`SLOT_MIN`].
const SLOTS: u64 = 100;
const SLOT_MIN: Duration = Duration::from_millis(10);

/// Ten slots: what a window gives of its width when it slides is a tenth at most.
pub(crate) const WIDTH_MIN: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug)]
struct Slot {
    count: u64,
    sum: f64,
    min: f64,
    max: f64,
    /// Of a gauge: value × nanoseconds for which it was held, and those nanoseconds. NaN is not held for any.
    integral: f64,
    held_ns: u64,
    /// Of a gauge: the value when the slot began.
    first: f64,
}

impl Slot {
    fn starting_with(held: f64) -> Slot {
        Slot {
            count: 0,
            sum: 0.0,
            // NaN until there is a number: `f64::min` and `max` return the other operand.
            min: held,
            max: held,
            integral: 0.0,
            held_ns: 0,
            first: held,
        }
    }

    fn take(&mut self, value: f64) {
        self.count += 1;
        self.sum += value;
        self.min = self.min.min(value);
        self.max = self.max.max(value);
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Ring {
    kind: MetricKind,
    width: u64,
    slot: u64,
    origin: Time,
    /// Slot `i` (from the origin) is at `i % slots.len()`.
    slots: Box<[Slot]>,
    current: u64,
    /// The value: of a gauge the one held, of a counter its total, of a histogram what was observed last.
    last: f64,
    /// Up to where the integral of a gauge has been taken.
    held_since: Time,
}

impl Ring {
    pub(crate) fn new(kind: MetricKind, width: Duration) -> Ring {
        let width = nanos(width.max(WIDTH_MIN));
        let slot = width.div_ceil(SLOTS).max(nanos(SLOT_MIN));
        // Whole slots that fit, the one in progress, and one more that a window which is not aligned reaches into.
        let slots = width / slot + 2;
        Ring {
            kind,
            width,
            slot,
            origin: Time::ZERO,
            slots: vec![Slot::starting_with(f64::NAN); slots as usize].into(),
            current: 0,
            last: f64::NAN,
            held_since: Time::ZERO,
        }
    }

    /// The window looks from `origin` on, and at `at` finds the series with this value. Only of a series that was not
    /// there before is there an `origin` in the past: it has counted nothing until now.
    pub(crate) fn begin(&mut self, value: f64, origin: Time, at: Time) {
        self.origin = origin;
        self.held_since = at;
        match self.kind {
            MetricKind::Counter => self.last = value,
            MetricKind::Gauge if !is_unmeasured(value) => self.last = value,
            _ => {}
        }
        self.current = self.slot_of(at);
        let (current, held) = (self.current, self.held());
        *self.at(current) = Slot::starting_with(held);
    }

    /// What a gauge holds; NaN for other types.
    fn held(&self) -> f64 {
        match self.kind {
            MetricKind::Gauge => self.last,
            _ => f64::NAN,
        }
    }

    fn slot_of(&self, at: Time) -> u64 {
        at.0.saturating_sub(self.origin.0) / self.slot
    }

    fn start_of(&self, slot: u64) -> Time {
        Time(self.origin.0.saturating_add(slot.saturating_mul(self.slot)))
    }

    fn at(&mut self, slot: u64) -> &mut Slot {
        let position = (slot % self.slots.len() as u64) as usize;
        &mut self.slots[position]
    }

    /// Time goes on to `to`, the value held until then.
    pub(crate) fn advance(&mut self, to: Time) {
        let target = self.slot_of(to);
        let held = self.held();
        let oldest = (target + 1).saturating_sub(self.slots.len() as u64);
        if self.current < oldest {
            // Nothing was there for longer than the ring reaches.
            self.current = oldest;
            self.held_since = self.start_of(oldest);
            *self.at(oldest) = Slot::starting_with(held);
        }
        while self.current < target {
            let end = self.start_of(self.current + 1);
            self.hold(held, end);
            self.current += 1;
            let current = self.current;
            *self.at(current) = Slot::starting_with(held);
        }
        self.hold(held, to);
    }

    fn hold(&mut self, held: f64, until: Time) {
        let ns = until.0.saturating_sub(self.held_since.0);
        if ns == 0 {
            return;
        }
        self.held_since = until;
        if !held.is_nan() {
            let current = self.current;
            let slot = self.at(current);
            slot.integral += held * ns as f64;
            slot.held_ns += ns;
        }
    }

    /// Takes a mutation; `decode` reads the cell's bits.
    pub(crate) fn record(&mut self, recorded: Recorded, decode: impl Fn(u64) -> f64, at: Time) {
        self.advance(at);
        let value = match recorded {
            Recorded::Observed(value) => {
                if !value.is_nan() {
                    self.last = value;
                }
                value
            }
            Recorded::Moved { before, after } => {
                self.last = decode(after);
                match self.kind {
                    MetricKind::Gauge => self.last,
                    // Small differences of large doubles are exact by Sterbenz's lemma; of integers, up to 2^53.
                    _ => self.last - decode(before),
                }
            }
        };
        if !value.is_nan() {
            let current = self.current;
            self.at(current).take(value);
            if self.kind == MetricKind::Gauge && self.at(current).first.is_nan() {
                self.at(current).first = value;
            }
        }
    }

    /// The statistics of `[now − width, now]`, or of the part of it that whole slots and the present one cover.
    pub(crate) fn stats(&mut self, now: Time) -> Part {
        self.advance(now);
        let now = now.max(self.held_since);
        let age = now.0.saturating_sub(self.origin.0);
        let first = age.saturating_sub(self.width).div_ceil(self.slot);
        let covered = now.0.saturating_sub(self.start_of(first).0);
        let mut part = Part {
            kind: self.kind,
            width: self.width,
            slot: self.slot,
            covered,
            count: 0,
            sum: 0.0,
            min: f64::NAN,
            max: f64::NAN,
            integral: 0.0,
            held_ns: 0,
            last: self.last,
            change: 0.0,
        };
        // From the first value there was.
        let start = (first..=self.current)
            .map(|slot| self.at(slot).first)
            .find(|v| !v.is_nan());
        part.change = self.last - start.unwrap_or(f64::NAN);
        for slot in first..=self.current {
            let slot = *self.at(slot);
            part.count += slot.count;
            part.sum += slot.sum;
            part.min = part.min.min(slot.min);
            part.max = part.max.max(slot.max);
            part.integral += slot.integral;
            part.held_ns += slot.held_ns;
        }
        part
    }
}

/// What one series has to say of a window; merged, then finished into [`WindowStats`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    kind: MetricKind,
    width: u64,
    slot: u64,
    covered: u64,
    count: u64,
    sum: f64,
    min: f64,
    max: f64,
    integral: f64,
    held_ns: u64,
    last: f64,
    change: f64,
}

fn number(value: f64) -> Option<f64> {
    (!value.is_nan()).then_some(value)
}

impl Part {
    /// The statistics of one series.
    pub(crate) fn finish(self) -> WindowStats {
        WindowStats {
            last: number(self.last),
            ..merge(&[self], Duration::from_nanos(self.width))
        }
    }
}

/// The statistics of several series together.
pub(crate) fn merge(parts: &[Part], width: Duration) -> WindowStats {
    let seconds = |ns: u64| ns as f64 / 1e9;
    let total = |f: fn(&Part) -> f64| parts.iter().map(f).sum::<f64>();
    let count = parts.iter().map(|p| p.count).sum::<u64>();
    let held_ns = parts.iter().map(|p| p.held_ns).sum::<u64>();
    let gauge = parts.iter().any(|p| p.kind == MetricKind::Gauge);
    let sum = total(|p| p.sum);
    let min = parts.iter().fold(f64::NAN, |m, p| m.min(p.min));
    let max = parts.iter().fold(f64::NAN, |m, p| m.max(p.max));
    let avg = if held_ns > 0 {
        total(|p| p.integral) / held_ns as f64
    } else if gauge {
        // Asked at the very moment at which the windows began.
        let held: Vec<f64> = parts.iter().filter_map(|p| number(p.last)).collect();
        held.iter().sum::<f64>() / held.len() as f64
    } else {
        sum / count as f64
    };
    let rates: Vec<f64> = parts
        .iter()
        // Over less than a slot, a single increment would be a rate of thousands.
        .filter(|p| p.covered >= p.slot)
        .map(|p| match p.kind {
            MetricKind::Counter => p.sum / seconds(p.covered),
            MetricKind::Histogram => p.count as f64 / seconds(p.covered),
            MetricKind::Gauge => p.change / seconds(p.covered),
        })
        .filter(|rate| !rate.is_nan())
        .collect();
    let coverage = |p: &Part| p.covered as f64 / p.width as f64;
    WindowStats {
        width,
        coverage: if parts.is_empty() {
            0.0
        } else {
            parts.iter().map(coverage).sum::<f64>() / parts.len() as f64
        },
        sources: parts.len(),
        count,
        sum: (!parts.is_empty())
            .then_some(sum)
            .filter(|_| count > 0 || !gauge),
        // Rounding must not take an average past its extremes, where a threshold may lie.
        avg: number(avg).map(|avg| avg.max(min).min(max)),
        min: number(min),
        max: number(max),
        last: None,
        rate: (!rates.is_empty()).then(|| rates.iter().sum()),
    }
}
