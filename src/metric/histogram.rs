//! Histograms: count observations in buckets.

use std::{sync::Arc, time::Duration};

use super::{Made, Metric, Spec};
use crate::{
    desc::{MetricKind, Numbers},
    series::{BucketCells, SeriesCore},
    time::Time,
};

/// Observations counted in buckets, with their sum: latencies, sizes.
///
/// Clones are the same histogram. A bucket holds what is at most its bound. NaN counts in the last bucket (+Inf) and
/// makes the sum NaN, as in Prometheus's own libraries.
///
/// ```
/// use metricbus::{Buckets, MetricBus};
///
/// let bus = MetricBus::new();
/// let latency = bus.histogram("latency_seconds", "Time to answer.", Buckets::new([0.1, 1.0])?)?;
/// latency.observe(0.05);
/// latency.observe(1.0);
/// let seen = latency.snapshot();
/// assert_eq!(seen.buckets, [(0.1, 1), (1.0, 2), (f64::INFINITY, 2)]);
/// assert_eq!((seen.count, seen.sum), (2, 1.05));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Histogram {
    pub(super) core: Arc<SeriesCore>,
    /// The buckets of `core`, one pointer nearer.
    buckets: Arc<BucketCells>,
}

impl Histogram {
    /// Counts `value` in its bucket and adds it to the sum.
    #[inline]
    pub fn observe(&self, value: f64) {
        self.core
            .cell
            .observe(value, &*self.core, || self.buckets.count(value));
    }

    /// Observes a duration in seconds.
    pub fn observe_duration(&self, duration: Duration) {
        self.observe(duration.as_secs_f64());
    }

    /// When the guard is dropped, observes the seconds since now, by the bus's clock.
    pub fn start_timer(&self) -> ObserveTimer {
        ObserveTimer {
            histogram: self.clone(),
            start: self.core.meta.clock.now(),
        }
    }

    /// Buckets, sum and count as they are.
    ///
    /// The count is the sum of the buckets, so the two always agree. The sum is read apart: observations that are being
    /// made at this moment may be in one and not yet in the other.
    pub fn snapshot(&self) -> HistogramSnapshot {
        HistogramSnapshot::of(&self.core, &self.buckets)
    }
}

impl Metric for Histogram {
    fn spec() -> Spec {
        Spec {
            kind: MetricKind::Histogram,
            numbers: Numbers::Real,
        }
    }

    fn from_spec(Made(core): Made) -> Self {
        let buckets = match &core.buckets {
            Some(buckets) => buckets.clone(),
            None => unreachable!("the series of a histogram has buckets"),
        };
        Histogram { core, buckets }
    }
}

/// A histogram at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct HistogramSnapshot {
    /// Upper bound and cumulative count of each bucket; the last bound is +Inf.
    pub buckets: Vec<(f64, u64)>,
    /// The sum of all observations.
    pub sum: f64,
    /// How many observations there were: the last bucket's count.
    pub count: u64,
}

impl HistogramSnapshot {
    pub(crate) fn of(core: &SeriesCore, cells: &BucketCells) -> Self {
        let bounds = core.meta.bounds.iter().copied();
        let mut count = 0;
        let buckets = bounds
            .chain([f64::INFINITY])
            .zip(cells.counts())
            .map(|(bound, n)| {
                count += n;
                (bound, count)
            })
            .collect();
        HistogramSnapshot {
            buckets,
            sum: f64::from_bits(core.cell.load()),
            count,
        }
    }
}

/// Observes the elapsed seconds when dropped. Made by [`Histogram::start_timer`].
#[must_use = "it measures as long as it is held"]
#[derive(Debug)]
pub struct ObserveTimer {
    histogram: Histogram,
    start: Time,
}

impl Drop for ObserveTimer {
    fn drop(&mut self) {
        let elapsed = self.histogram.core.meta.clock.now().since(self.start);
        self.histogram.observe_duration(elapsed);
    }
}
