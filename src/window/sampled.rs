//! The windows of counters and histograms: sampled where slots begin. Pure bookkeeping, no lock, no clock.
//!
//! A *mark* is a sample: the state at a time, and up to when it was seen to stay so. Idle slots make a mark longer, and
//! no further ones. A window begins within a mark, at a slot's boundary where that can be. So increases are exact differences
//! over exactly the time that is said, also where a sample came late.

use std::collections::VecDeque;

use super::part::{Detail, Moments, Part, start_of};
use crate::{
    desc::{MetricKind, Numbers},
    interest::ExtremesState,
    sketch::{Packed, Weights, bounds, middle},
    time::Time,
};

/// A state that was found at `from`, and was still so at `until`.
struct Mark<T> {
    from: Time,
    until: Time,
    state: T,
}

struct Marks<T> {
    width: u64,
    slot: u64,
    /// Never empty.
    all: VecDeque<Mark<T>>,
}

impl<T> Marks<T> {
    fn new(width: u64, slot: u64, from: Time, until: Time, state: T) -> Self {
        let all = VecDeque::from([Mark { from, until, state }]);
        Marks { width, slot, all }
    }

    fn newest(&mut self) -> &mut Mark<T> {
        let last = self.all.len() - 1;
        &mut self.all[last]
    }

    /// Whether a slot has begun since the newest mark.
    fn is_due(&mut self, now: Time) -> bool {
        let slot = self.slot;
        now.0 / slot > self.newest().until.0 / slot
    }

    /// A new mark. Those that no window reaches any more are dropped.
    fn push(&mut self, now: Time, state: T) {
        self.all.push_back(Mark {
            from: now,
            until: now,
            state,
        });
        self.all.drain(..self.start(now).0);
    }

    /// Where a window that ends `now` begins: at which mark, and when. It covers its width, and less than a slot more: more
    /// only where samples came late, since what was in between nobody knows.
    fn start(&self, now: Time) -> (usize, Time) {
        let latest = now.0.saturating_sub(self.width);
        let later = self.all.partition_point(|mark| mark.from.0 <= latest);
        let first = later.saturating_sub(1);
        let mark = &self.all[first];
        let boundary = start_of(now, self.width, self.slot);
        (first, boundary.max(mark.from).min(mark.until))
    }
}

/// The window of a counter.
pub(crate) struct Counted {
    numbers: Numbers,
    marks: Marks<u64>,
    changed: Option<Time>,
}

impl Counted {
    /// The window looks from `from`, and finds these bits from then until `until`.
    pub(crate) fn new(
        (width, slot): (u64, u64),
        numbers: Numbers,
        from: Time,
        until: Time,
        bits: u64,
    ) -> Counted {
        Counted {
            numbers,
            marks: Marks::new(width, slot, from, until, bits),
            changed: None,
        }
    }

    /// Samples where a slot has begun. `true` where nothing has happened.
    pub(crate) fn sample(&mut self, bits: u64, now: Time) -> bool {
        let due = self.marks.is_due(now);
        let newest = self.marks.newest();
        if newest.state == bits {
            // It only grows: what it was then and is now it was in between.
            newest.until = newest.until.max(now);
            return true;
        }
        if due {
            self.changed = Some(now);
            self.marks.push(now, bits);
        }
        false
    }

    pub(crate) fn part(&mut self, bits: u64, now: Time) -> Part {
        let now = now.max(self.marks.newest().until);
        self.sample(bits, now);
        let Marks { width, slot, .. } = self.marks;
        let mut part = Part::nothing(MetricKind::Counter, width, slot);
        let changing = self.marks.newest().state != bits;
        let (first, from) = self.marks.start(now);
        let before = self.marks.all[first].state;
        part.increase = match self.numbers {
            Numbers::Whole => bits.wrapping_sub(before) as f64,
            _ => f64::from_bits(bits) - f64::from_bits(before),
        };
        part.sum = part.increase;
        part.last = match self.numbers {
            Numbers::Whole => bits as f64,
            _ => f64::from_bits(bits),
        };
        part.covered = now.0 - from.0;
        part.age = if changing {
            Some(0)
        } else {
            self.changed.map(|changed| now.0 - changed.0)
        };
        part.stale = bits == before;
        part
    }
}

/// What a histogram has counted so far.
#[derive(Clone)]
pub(crate) struct Total {
    /// The bits of the running sum.
    pub(crate) sum: u64,
    /// Read before the sketch.
    pub(crate) count: u64,
    pub(crate) sketch: Weights,
}

/// The window of a histogram.
pub(crate) struct Observed {
    marks: Marks<Beginning>,
    /// As of the newest mark.
    count: u64,
    sketch: Weights,
    changed: Option<Time>,
}

/// The running sum at a mark, and what was observed between it and the next.
struct Beginning {
    sum: f64,
    after: Observations,
}

impl Beginning {
    fn new(bits: u64) -> Beginning {
        Beginning {
            sum: f64::from_bits(bits),
            after: Observations::default(),
        }
    }
}

/// What was observed in a slot.
#[derive(Default)]
struct Observations {
    /// By bucket, in ascending order.
    weights: Box<[Packed]>,
    count: u64,
    /// What they add up to, by the middles of the buckets, and by their bounds: the least and the most it can be.
    sum: f64,
    sum_min: f64,
    sum_max: f64,
    moments: Moments,
    extremes: Option<(f64, f64)>,
}

impl Observations {
    fn of(weights: Vec<Packed>, extremes: &ExtremesState) -> Observations {
        let mut made = Observations {
            extremes: extremes.get(),
            ..Observations::default()
        };
        for weight in &weights {
            let n = weight.weight() as f64;
            let (lower, upper) = bounds(weight.index());
            let middle = middle(weight.index());
            made.count += weight.weight();
            made.sum += n * middle;
            made.sum_min += n * lower;
            made.sum_max += n * upper;
        }
        // The middles of buckets are off by 1.1 %: doubles will do.
        let mean = made.sum / made.count as f64;
        let squares = weights.iter().map(|weight| {
            let away = middle(weight.index()) - mean;
            away * away * weight.weight() as f64
        });
        if made.count > 0 {
            made.moments = Moments {
                weight: made.count.into(),
                mean: mean.into(),
                squares: squares.sum::<f64>().into(),
            };
        }
        made.weights = weights.into();
        made
    }
}

impl Observed {
    pub(crate) fn new(
        (width, slot): (u64, u64),
        from: Time,
        until: Time,
        total: Total,
    ) -> Observed {
        Observed {
            marks: Marks::new(width, slot, from, until, Beginning::new(total.sum)),
            count: total.count,
            sketch: total.sketch,
            changed: None,
        }
    }

    /// Whether a slot has begun since the newest mark.
    pub(crate) fn is_due(&mut self, now: Time) -> bool {
        self.marks.is_due(now)
    }

    /// Nothing has happened up to `now` if the count is still this. Then that is noted.
    pub(crate) fn is_idle(&mut self, count: u64, sum: u64, now: Time) -> bool {
        if self.count != count {
            return false;
        }
        let newest = self.marks.newest();
        newest.until = newest.until.max(now);
        // An observation may have been counted before the sample and added to the sum after it.
        newest.state.sum = f64::from_bits(sum);
        true
    }

    /// A sample where a slot has begun; `extremes` since the one before it.
    pub(crate) fn sample(&mut self, total: Total, extremes: &ExtremesState, now: Time) {
        let now = now.max(self.marks.newest().until);
        let weights = total.sketch.since(&self.sketch);
        if !weights.is_empty() {
            self.changed = Some(now);
        }
        self.marks.newest().state.after = Observations::of(weights, extremes);
        self.marks.push(now, Beginning::new(total.sum));
        self.count = total.count;
        self.sketch = total.sketch;
    }

    /// `extremes`: since the newest mark.
    pub(crate) fn part(
        &mut self,
        total: &Total,
        extremes: &ExtremesState,
        now: Time,
        detail: Detail,
    ) -> Part {
        let now = now.max(self.marks.newest().until);
        let Marks { width, slot, .. } = self.marks;
        let mut part = Part::nothing(MetricKind::Histogram, width, slot);
        let open = Observations::of(total.sketch.since(&self.sketch), extremes);
        let changing = !open.weights.is_empty();
        let (first, from) = self.marks.start(now);
        let closed = self.marks.all.range(first..).map(|mark| &mark.state.after);
        let mut sum = Sum::default();
        let mut buckets: Option<(i32, i32)> = None;
        for seen in closed.chain(std::iter::once(&open)) {
            part.count += seen.count;
            part.moments.add(seen.moments);
            sum.middle += seen.sum;
            sum.min += seen.sum_min;
            sum.max += seen.sum_max;
            if let Some((min, max)) = seen.extremes {
                part.min = part.min.min(min);
                part.max = part.max.max(max);
            }
            if let (Some(low), Some(high)) = (seen.weights.first(), seen.weights.last()) {
                let (low, high) = (low.index(), high.index());
                buckets = Some(buckets.map_or((low, high), |b| (b.0.min(low), b.1.max(high))));
            }
            if detail == Detail::Sketch {
                let weights = seen.weights.iter();
                part.weights
                    .add_ascending(weights.map(|w| (w.index(), w.weight())));
            }
        }
        // An observation that races with the end of a slot may be counted before it and be an extreme after it. What is
        // said of the window agrees with its buckets.
        match buckets {
            Some((low, high)) => {
                part.min = within(part.min, bounds(low));
                part.max = within(part.max, bounds(high));
            }
            None => (part.min, part.max) = (f64::NAN, f64::NAN),
        }
        let before = self.marks.all[first].state.sum;
        part.sum = sum.told(&part, before, f64::from_bits(total.sum));
        part.increase = part.count as f64;
        part.covered = now.0 - from.0;
        part.age = if changing {
            Some(0)
        } else {
            self.changed.map(|changed| now.0 - changed.0)
        };
        part.stale = part.count == 0;
        part
    }
}

/// `value`, or the nearest that lies within; one rounding beyond is within, too.
fn within(value: f64, (lower, upper): (f64, f64)) -> f64 {
    if value >= lower.next_down() && (value <= upper.next_up() || upper == f64::MAX) {
        value
    } else {
        value.max(lower).min(upper)
    }
}

/// The sum of a window, as the sketch knows it.
#[derive(Default)]
struct Sum {
    middle: f64,
    min: f64,
    max: f64,
}

impl Sum {
    /// The difference of the running sums, `before` and `after`, where it can be told from them.
    fn told(&self, part: &Part, before: f64, after: f64) -> f64 {
        if part.count == 0 {
            return 0.0;
        }
        if part.min == f64::NEG_INFINITY || part.max == f64::INFINITY {
            return part.min.min(0.0) + part.max.max(0.0);
        }
        let difference = after - before;
        // Each addition to the running sum may have been rounded.
        let error = (part.count as f64 + 2.0) * f64::EPSILON * before.abs().max(after.abs());
        let known = error <= (self.max - self.min) / 2.0;
        if known && difference >= self.min - error && difference <= self.max + error {
            difference
        } else {
            self.middle
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDTH: u64 = 1_000;
    const SLOT: u64 = 10;

    fn counted() -> Counted {
        Counted::new((WIDTH, SLOT), Numbers::Whole, Time(0), Time(0), 0)
    }

    #[test]
    fn a_late_sample_keeps_increase_and_rate_exact_over_the_time_that_is_said() {
        let mut window = counted();
        // One more per nanosecond; samples come up to three slots late.
        for late in [0, 3, 9, 25, 30, 1, 0, 14].iter().cycle().take(300) {
            let at = window.marks.newest().until.0 / SLOT * SLOT + SLOT + late;
            window.sample(at, Time(at));
            let now = at + 4;
            let part = window.part(now, Time(now));
            assert_eq!(part.increase, part.covered as f64);
            assert!(
                part.covered >= WIDTH.min(now) && part.covered < WIDTH + SLOT + 41,
                "{part:?}"
            );
        }
    }

    #[test]
    fn a_counter_that_stood_still_while_samples_were_late_is_known_throughout() {
        let mut window = counted();
        window.sample(5, Time(10));
        // No sample for fifty slots, and nothing has changed meanwhile.
        window.sample(5, Time(517));
        let part = window.part(9, Time(1_333));
        // From the last boundary that is as old as the width, which nobody sampled.
        assert_eq!((part.covered, part.increase), (1_333 - 330, 4.0));
    }

    #[test]
    fn integers_beyond_2_to_the_53_and_a_counter_that_wraps_lose_nothing() {
        let start = u64::MAX - 3;
        let mut window = Counted::new((WIDTH, SLOT), Numbers::Whole, Time(0), Time(0), start);
        assert_eq!(window.part(start + 2, Time(20)).increase, 2.0);
        assert_eq!(window.part(1, Time(25)).increase, 5.0);
    }

    #[test]
    fn marks_are_as_many_as_slots_however_long_it_goes_on() {
        let mut window = counted();
        for i in 1..10_000 {
            window.sample(i, Time(i * SLOT));
        }
        assert!(window.marks.all.len() <= 102, "{}", window.marks.all.len());
    }
}
