//! Histograms: count observations in buckets.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use super::{Made, Metric, Spec};
use crate::{
    desc::{MetricKind, Numbers},
    error::ExemplarError,
    exemplar::{self, Exemplar},
    series::{BucketCells, SeriesCore},
    time::Time,
};

/// Observations counted in buckets, with their sum: latencies, sizes.
///
/// Clones are the same histogram. A bucket holds what is at most its bound. NaN counts in the last bucket (+Inf) and
/// makes the sum NaN, as in Prometheus's Go library (`prometheus_client` for Python counts it in no bucket); a [native](crate::Desc::native)
/// histogram leaves it out, and counts it apart.
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
    ///
    /// NaN counts in the last bucket, and makes the sum NaN. A [native](crate::Desc::native) histogram leaves it out, since one
    /// is enough to make `histogram_quantile` of Prometheus 3.5 wrong: `metricbus_nan_observations_total` counts it, and
    /// subscribers hear of it.
    #[inline]
    pub fn observe(&self, value: f64) {
        if value.is_nan() && self.core.meta.native {
            return self.observe_nan();
        }
        self.core
            .cell
            .observe(value, &*self.core, || self.buckets.count(value));
    }

    #[cold]
    fn observe_nan(&self) {
        self.core.meta.nan_observations.fetch_add(1, Relaxed);
        self.core.cell.show(f64::NAN, &*self.core);
    }

    /// Counts `value`, and keeps `labels` (mostly the id of a trace) as the exemplar of its bucket instead of the one
    /// before.
    ///
    /// Costs an allocation and a look at the clock more than [`observe`](Histogram::observe), and makes no other
    /// observation wait.
    ///
    /// # Errors
    ///
    /// When a label's name is wrong or there twice, names and values have more than 128 characters together, or the value
    /// is NaN. It is counted all the same, and the exemplar before stays.
    ///
    /// ```
    /// use metricbus::{Buckets, ExemplarError, MetricBus};
    ///
    /// let bus = MetricBus::new();
    /// let wait = bus.histogram("wait_seconds", "Time waited.", Buckets::default())?;
    /// wait.observe_with_exemplar(0.2, &[("trace_id", "4bf92f3577b34da6")])?;
    /// let error = wait.observe_with_exemplar(0.2, &[("trace_id", &"4".repeat(200))]).unwrap_err();
    /// assert!(matches!(error, ExemplarError::TooLong { characters: 208, .. }));
    /// assert_eq!(wait.snapshot().count, 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn observe_with_exemplar(
        &self,
        value: f64,
        labels: &[(&str, &str)],
    ) -> Result<(), ExemplarError> {
        self.observe(value);
        let labels = exemplar::checked(labels)?;
        if value.is_nan() {
            return Err(ExemplarError::NoNumber);
        }
        self.core.keep_exemplar(labels, value);
        Ok(())
    }

    /// The latest exemplar of each bucket that has one, with the bucket's bound (of the last, +Inf).
    pub fn exemplars(&self) -> Vec<(f64, Exemplar)> {
        let bound = |place: usize| self.core.meta.bounds.get(place).copied();
        let all = self.core.exemplars().into_iter();
        all.filter_map(|(place, exemplar)| Some((bound(place?).unwrap_or(f64::INFINITY), exemplar)))
            .collect()
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
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
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

#[cfg(test)]
mod tests {
    use crate::{Buckets, Desc, Histogram, MetricBus, SampleValue, Value};

    #[test]
    fn a_native_histogram_leaves_nan_out_and_counts_it() {
        let bus = MetricBus::new();
        let buckets = Buckets::new([1.0]).unwrap();
        let native: Histogram = bus
            .declare(
                Desc::new("native", "h")
                    .native(true)
                    .buckets(buckets.clone()),
            )
            .unwrap();
        let plain: Histogram = bus
            .declare(Desc::new("plain", "h").buckets(buckets))
            .unwrap();
        for value in [0.5, f64::NAN, 2.0] {
            native.observe(value);
            plain.observe(value);
        }
        assert_eq!((native.snapshot().count, native.snapshot().sum), (2, 2.5));
        assert_eq!(plain.snapshot().count, 3);
        assert!(plain.snapshot().sum.is_nan());
        let families = bus.self_families();
        let counted = families
            .iter()
            .find(|f| f.name == "metricbus_nan_observations_total")
            .unwrap();
        assert_eq!(counted.series.len(), 1);
        assert_eq!(counted.series[0].value, SampleValue::Counter(Value::U64(1)));
    }
}
