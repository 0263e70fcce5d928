//! What one series has to say of a window, and what several say together: pure arithmetic.

use std::time::Duration;

use super::{WindowStats, double_double::DoubleDouble};
use crate::{
    desc::MetricKind,
    sketch::{INDEX_MAX, Weights, middle},
    time::{Time, nanos},
};

/// Slots per window, unless that makes them narrower than [`SLOT_MIN`].
const SLOTS: u64 = 100;
const SLOT_MIN: Duration = Duration::from_millis(10);

/// Ten slots: a window covers a tenth more than its width at most.
pub(crate) const WIDTH_MIN: Duration = Duration::from_millis(100);

/// The slots of a window of this width. They begin at its multiples, by the bus's clock.
pub(crate) fn slot_of(width: Duration) -> Duration {
    let width = nanos(width.max(WIDTH_MIN));
    Duration::from_nanos(width.div_ceil(SLOTS)).max(SLOT_MIN)
}

/// Where a window that ends `now` begins, unless it is younger: where a slot does, so that the window covers its width, and
/// less than a slot more.
pub(crate) fn start_of(now: Time, width: u64, slot: u64) -> Time {
    Time(now.0.saturating_sub(width) / slot * slot)
}

/// How much is wanted of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Detail {
    /// All but quantiles.
    Numbers,
    /// Quantiles, too.
    Sketch,
}

/// Mean and spread of weighted numbers, such that they merge without cancelling (Chan, Golub and LeVeque, 1983).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Moments {
    pub(crate) weight: DoubleDouble,
    pub(crate) mean: DoubleDouble,
    /// Of the squares of the distances from the mean, the sum.
    pub(crate) squares: DoubleDouble,
}

impl Moments {
    pub(crate) fn add(&mut self, other: Moments) {
        if self.is_nothing() {
            *self = other;
        } else if !other.is_nothing() {
            let weight = self.weight + other.weight;
            let (away, share) = (other.mean - self.mean, other.weight / weight);
            self.mean += away * share;
            self.squares += other.squares + away * away * self.weight * share;
            self.weight = weight;
        }
    }

    pub(crate) fn is_nothing(self) -> bool {
        self.weight.value() == 0.0
    }

    fn stddev(self) -> Option<f64> {
        let variance = (self.squares / self.weight).value();
        // Rounding may leave a little less than nothing.
        variance.is_finite().then(|| variance.max(0.0).sqrt())
    }
}

/// What one series has to say of a window.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) kind: MetricKind,
    pub(crate) width: u64,
    pub(crate) slot: u64,
    /// The nanoseconds that were observed: once it has existed for so long, the width, and less than a slot more.
    pub(crate) covered: u64,
    pub(crate) count: u64,
    /// NaN where it can't be told.
    pub(crate) sum: f64,
    /// NaN where there is none.
    pub(crate) min: f64,
    pub(crate) max: f64,
    pub(crate) last: f64,
    pub(crate) increase: f64,
    /// Of what is finite.
    pub(crate) moments: Moments,
    /// 0 unless something infinite was held: then that, or NaN where both were.
    pub(crate) infinite: f64,
    /// Nanoseconds since the newest mutation.
    pub(crate) age: Option<u64>,
    /// No mutation in the window.
    pub(crate) stale: bool,
    pub(crate) weights: Weights,
}

impl Part {
    /// Of a window that has not begun.
    pub(crate) fn nothing(kind: MetricKind, width: u64, slot: u64) -> Part {
        Part {
            kind,
            width,
            slot,
            covered: 0,
            count: 0,
            sum: 0.0,
            min: f64::NAN,
            max: f64::NAN,
            last: f64::NAN,
            increase: f64::NAN,
            moments: Moments::default(),
            infinite: 0.0,
            age: None,
            stale: true,
            weights: Weights::default(),
        }
    }

    fn rate(&self) -> Option<f64> {
        // Over less than a slot, a single increment would be a rate of thousands.
        let rate = DoubleDouble::product(self.increase, 1e9) / self.covered.into();
        number(rate.value()).filter(|_| self.covered >= self.slot)
    }
}

fn number(value: f64) -> Option<f64> {
    (!value.is_nan()).then_some(value)
}

/// Adds up what there is; `None` where nothing is.
fn total(numbers: impl Iterator<Item = f64>) -> Option<f64> {
    let mut numbers = numbers.filter(|n| !n.is_nan()).peekable();
    numbers.peek()?;
    Some(numbers.sum::<DoubleDouble>().value())
}

/// The statistics of several series together, or of one: only then there is a `last`.
pub(crate) fn merge(parts: &[Part], width: Duration) -> WindowStats {
    let gauges = parts.iter().any(|p| p.kind == MetricKind::Gauge);
    // What average, spread and quantiles are of: where gauges are among the series, of their values over time.
    let measured = if gauges {
        MetricKind::Gauge
    } else {
        MetricKind::Histogram
    };
    let measured = || parts.iter().filter(move |p| p.kind == measured);

    // What other processes say may be anything.
    let counted = |n: u64, p: &Part| n.saturating_add(p.count);
    let count = parts.iter().fold(0, counted);
    let sum = parts.iter().map(|p| p.sum).sum::<DoubleDouble>().value();
    let min = parts.iter().fold(f64::NAN, |m, p| m.min(p.min));
    let max = parts.iter().fold(f64::NAN, |m, p| m.max(p.max));
    let mut moments = Moments::default();
    let mut weights = Weights::default();
    for part in measured() {
        moments.add(part.moments);
        weights.add(&part.weights);
    }
    let infinite = measured().map(|p| p.infinite).sum::<f64>();
    let avg = if !gauges {
        let observed = measured().fold(0, counted);
        let sum = measured().map(|p| p.sum).sum::<DoubleDouble>();
        (sum / observed.into()).value()
    } else if infinite != 0.0 {
        infinite
    } else if !moments.is_nothing() {
        Some(moments.mean.value())
            .filter(|mean| mean.is_finite())
            .unwrap_or(f64::NAN)
    } else {
        // Asked at the very moment at which the windows began.
        let held = || measured().filter_map(|p| number(p.last));
        let count = held().count() as u64;
        (held().sum::<DoubleDouble>() / count.into()).value()
    };
    let coverage = |p: &Part| (p.covered as f64 / p.width as f64).min(1.0);
    WindowStats {
        width,
        coverage: if parts.is_empty() {
            0.0
        } else {
            parts.iter().map(coverage).sum::<f64>() / parts.len() as f64
        },
        sources: parts.len(),
        stale: parts.iter().filter(|p| p.stale).count(),
        count,
        sum: number(sum).filter(|_| !parts.is_empty() && (count > 0 || !gauges)),
        // Rounding must not take an average past its extremes, where a threshold may lie.
        avg: number(avg).map(|avg| avg.max(min).min(max)),
        min: number(min),
        max: number(max),
        stddev: moments.stddev().filter(|_| infinite == 0.0),
        last: match parts {
            [one] => number(one.last),
            _ => None,
        },
        increase: total(parts.iter().map(|p| p.increase)),
        rate: total(parts.iter().filter_map(Part::rate)),
        age: parts
            .iter()
            .filter_map(|p| p.age)
            .min()
            .map(Duration::from_nanos),
        weights,
    }
}

/// The `q`-quantile of what lies between `min` and `max`.
pub(crate) fn quantile(weights: &Weights, min: f64, max: f64, q: f64) -> Option<f64> {
    if !(0.0..=1.0).contains(&q) {
        return None;
    }
    let index = weights.quantile(q)?;
    Some(if q == 0.0 {
        min
    } else if q == 1.0 {
        max
    } else if index == INDEX_MAX && max == f64::INFINITY {
        // The outermost buckets hold the infinities, and the finite doubles next to them.
        max
    } else if index == -INDEX_MAX && min == f64::NEG_INFINITY {
        min
    } else {
        middle(index).max(min).min(max)
    })
}
