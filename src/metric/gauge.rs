//! Gauges: go up and down.

use std::sync::Arc;

use super::{Made, Metric, Spec};
use crate::{
    cell::{Listener, Wakes, wake_all},
    desc::{MetricKind, Numbers},
    interest::{ExtremesState, Interval},
    series::{SeriesCore, Value, is_unmeasured},
    time::{Stamp, Time},
};

/// A value that goes up and down: queue depth, cache usage, requests in flight. Always a double.
///
/// Clones are the same gauge. NaN and ±∞ can be set and are exposed as such; −0 is 0.
///
/// A gauge that was never set has no value: [`get`](Gauge::get) gives `None`, and no exposition, snapshot, rule or other
/// process is told of a 0 that nobody measured. [`inc`](Gauge::inc), [`dec`](Gauge::dec), [`add`](Gauge::add) and
/// [`sub`](Gauge::sub) begin at 0. [`Desc::initial`](crate::Desc::initial) gives a gauge a value from its birth on.
///
/// ```
/// use metricbus::MetricBus;
///
/// let bus = MetricBus::new();
/// let inflight = bus.gauge("inflight_requests", "Requests being served.")?;
/// assert_eq!(inflight.get(), None);
/// {
///     let _one = inflight.track_inprogress();
///     assert_eq!(inflight.get(), Some(1.0));
/// }
/// assert_eq!(inflight.get(), Some(0.0));
/// # Ok::<(), metricbus::DeclareError>(())
/// ```
#[derive(Clone)]
pub struct Gauge {
    pub(super) core: Arc<SeriesCore>,
}

impl Gauge {
    /// Makes `value` the value.
    #[inline]
    pub fn set(&self, value: f64) {
        // Plus zero, here and in `add`: a −0 that somebody sets is a 0, and not the mark of a gauge without a value.
        self.core.cell.set_real(value + 0.0, &*self.core);
    }

    /// Adds 1. A gauge that was never set begins at 0.
    #[inline]
    pub fn inc(&self) {
        self.add(1.0);
    }

    /// Takes 1 away. A gauge that was never set begins at 0.
    #[inline]
    pub fn dec(&self) {
        self.add(-1.0);
    }

    /// Adds `amount`, which may be negative, to the value, or to 0 where there is none.
    #[inline]
    pub fn add(&self, amount: f64) {
        self.core.cell.add_real(amount + 0.0, &*self.core);
    }

    /// Takes `amount` away from the value, or from 0 where there is none.
    #[inline]
    pub fn sub(&self, amount: f64) {
        self.add(-amount);
    }

    /// Raises the value to `value` where it is lower or NaN, or there is none. A NaN `value` does nothing.
    pub fn set_max(&self, value: f64) {
        let value = value + 0.0;
        self.core.cell.set_real_if(value, &*self.core, |now| {
            value > now || (is_nothing(now) && !value.is_nan())
        });
    }

    /// Lowers the value to `value` where it is higher or NaN, or there is none. A NaN `value` does nothing.
    pub fn set_min(&self, value: f64) {
        let value = value + 0.0;
        self.core.cell.set_real_if(value, &*self.core, |now| {
            value < now || (is_nothing(now) && !value.is_nan())
        });
    }

    /// The present value; `None` where it was never set.
    pub fn get(&self) -> Option<f64> {
        self.core.value().map(Value::as_f64)
    }

    /// Adds 1 now and takes it away when the guard is dropped.
    pub fn track_inprogress(&self) -> InProgress {
        self.inc();
        InProgress(self.clone())
    }

    /// When the guard is dropped, sets the gauge to the seconds since now, by the bus's clock.
    pub fn start_timer(&self) -> SetTimer {
        SetTimer {
            gauge: self.clone(),
            start: self.core.meta.clock.now(),
        }
    }

    /// Remembers the smallest and the largest value from now on, so that a peak between two reads is seen.
    ///
    /// Costs a mutation nothing unless it is a new extreme.
    ///
    /// ```
    /// let bus = metricbus::MetricBus::new();
    /// let queue = bus.gauge("queue_depth", "Requests waiting.")?;
    /// let peaks = queue.extremes();
    /// queue.set(40.0);
    /// queue.set(3.0);
    /// assert_eq!(peaks.take(), Some((3.0, 40.0)));
    /// assert_eq!(peaks.take(), Some((3.0, 3.0)));
    /// # Ok::<(), metricbus::DeclareError>(())
    /// ```
    pub fn extremes(&self) -> PeakGauge {
        let id = crate::stats::next_id();
        let listener = Extremes {
            id,
            state: ExtremesState::new(),
        };
        let mut wakes = Wakes::new();
        self.core.attach(Box::new(listener), &mut wakes);
        wake_all(&mut wakes);
        PeakGauge {
            core: self.core.clone(),
            id,
        }
    }
}

/// Whether any number is better.
fn is_nothing(value: f64) -> bool {
    value.is_nan() || is_unmeasured(value)
}

impl Metric for Gauge {
    fn spec() -> Spec {
        Spec {
            kind: MetricKind::Gauge,
            numbers: Numbers::Real,
        }
    }

    fn from_spec(Made(core): Made) -> Self {
        Gauge { core }
    }

    fn begin_at(&self, initial: f64) {
        self.core
            .cell
            .set_real_if(initial + 0.0, &*self.core, is_unmeasured);
    }
}

/// Takes 1 away from a gauge when dropped. Made by [`Gauge::track_inprogress`].
#[must_use = "it counts as in progress only as long as it is held"]
#[derive(Debug)]
pub struct InProgress(Gauge);

impl Drop for InProgress {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Sets a gauge to the elapsed seconds when dropped. Made by [`Gauge::start_timer`].
#[must_use = "it measures as long as it is held"]
#[derive(Debug)]
pub struct SetTimer {
    gauge: Gauge,
    start: Time,
}

impl Drop for SetTimer {
    fn drop(&mut self) {
        let elapsed = self.gauge.core.meta.clock.now().since(self.start);
        self.gauge.set(elapsed.as_secs_f64());
    }
}

/// Smallest and largest value of a gauge since it was last asked. Made by [`Gauge::extremes`].
#[must_use = "extremes are remembered only as long as it is held"]
pub struct PeakGauge {
    core: Arc<SeriesCore>,
    id: u64,
}

impl PeakGauge {
    /// Smallest and largest value since the last call, the value held then included; from here on anew. NaN is passed
    /// over. `None` when there was nothing but NaN, the gauge was never set, or the series is gone.
    pub fn take(&self) -> Option<(f64, f64)> {
        let mut wakes = Wakes::new();
        let seen = self.core.visit(self.id, &mut wakes, |listener, value| {
            let listener: &mut dyn std::any::Any = listener;
            let extremes = listener.downcast_mut::<Extremes>()?;
            let seen = extremes.state.get()?;
            extremes.state.reset();
            // The value held belongs to both; it may be newer than the last step, whose mutator is on its way.
            let value = value?.as_f64();
            extremes.state.step(value);
            Some((seen.0.min(value), seen.1.max(value)))
        });
        wake_all(&mut wakes);
        seen.flatten()
    }
}

impl Drop for PeakGauge {
    fn drop(&mut self) {
        let mut wakes = Wakes::new();
        self.core.detach(self.id, &mut wakes);
        wake_all(&mut wakes);
    }
}

struct Extremes {
    id: u64,
    state: ExtremesState,
}

impl Listener for Extremes {
    fn id(&self) -> u64 {
        self.id
    }

    fn judge(&mut self, value: f64, mutated: bool, _stamp: &mut Stamp<'_>) {
        if mutated || !is_unmeasured(value) {
            self.state.step(value);
        }
    }

    fn quiet(&self) -> Interval {
        self.state.quiet()
    }
}
