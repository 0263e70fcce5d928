//! Counters: only grow.

use std::{marker::PhantomData, sync::Arc};

use super::{Made, Metric, Spec};
use crate::{
    desc::{MetricKind, Numbers},
    error::{CounterError, ExemplarError},
    exemplar::{self, Exemplar},
    series::SeriesCore,
};

/// A value that only grows: requests served, bytes sent, seconds spent.
///
/// Counts in `u64`, or in `f64` as `Counter<f64>`. Clones are the same counter. A `u64` counter wraps at 2^64.
///
/// ```
/// use metricbus::{Counter, Desc, MetricBus};
///
/// let bus = MetricBus::new();
/// let requests = bus.counter("requests_total", "Requests served.")?;
/// requests.inc();
/// requests.inc_by(5);
/// assert_eq!(requests.get(), 6);
///
/// let busy: Counter<f64> = bus.declare(Desc::new("busy_seconds_total", "Time spent working."))?;
/// busy.inc_by(0.25);
/// assert!(busy.try_inc_by(-1.0).is_err());
/// assert_eq!(busy.get(), 0.25);
/// # Ok::<(), metricbus::DeclareError>(())
/// ```
pub struct Counter<N: CounterValue = u64> {
    pub(super) core: Arc<SeriesCore>,
    numbers: PhantomData<N>,
}

mod sealed {
    use super::*;

    pub trait Sealed: Copy {
        const NUMBERS: Numbers;
        const ONE: Self;
        fn from_bits(bits: u64) -> Self;
        fn add_to(self, core: &SeriesCore);
        /// As an exemplar's value, where a counter can take it.
        fn accepted(self) -> Result<f64, ExemplarError>;
    }
}

/// What a counter can count in: `u64` or `f64`.
pub trait CounterValue: sealed::Sealed + Send + Sync + 'static {}

impl CounterValue for u64 {}
impl CounterValue for f64 {}

impl sealed::Sealed for u64 {
    const NUMBERS: Numbers = Numbers::Whole;
    const ONE: u64 = 1;

    fn from_bits(bits: u64) -> u64 {
        bits
    }

    #[inline(always)]
    fn add_to(self, core: &SeriesCore) {
        core.cell.add_whole(self, core);
    }

    fn accepted(self) -> Result<f64, ExemplarError> {
        Ok(self as f64)
    }
}

impl sealed::Sealed for f64 {
    const NUMBERS: Numbers = Numbers::Amount;
    const ONE: f64 = 1.0;

    fn from_bits(bits: u64) -> f64 {
        f64::from_bits(bits)
    }

    #[inline(always)]
    fn add_to(self, core: &SeriesCore) {
        if accepts(self) {
            core.cell.add_amount(self, core);
        } else {
            refuse(self, core);
        }
    }

    fn accepted(self) -> Result<f64, ExemplarError> {
        if accepts(self) {
            Ok(self)
        } else {
            Err(ExemplarError::Amount { amount: self })
        }
    }
}

#[inline(always)]
fn accepts(amount: f64) -> bool {
    (0.0..f64::INFINITY).contains(&amount)
}

/// A counter can't panic in the middle of a component, nor take an amount that would spoil it for good.
#[cold]
fn refuse(amount: f64, core: &SeriesCore) {
    crate::stats::REFUSED_AMOUNTS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let metric = &core.meta.name;
    tracing::debug!(%metric, amount, "metricbus: amount refused: a counter only grows");
}

impl<N: CounterValue> Counter<N> {
    /// Adds 1.
    #[inline]
    pub fn inc(&self) {
        N::ONE.add_to(&self.core);
    }

    /// Adds `amount`. A `Counter<f64>` refuses what is negative, NaN or infinite: it stays as it is, and
    /// `metricbus_refused_amounts_total` counts it; [`try_inc_by`](Counter::try_inc_by) tells instead.
    #[inline]
    pub fn inc_by(&self, amount: N) {
        amount.add_to(&self.core);
    }

    /// Adds 1, and keeps `labels` (mostly the id of a trace) as the counter's exemplar instead of the one before.
    ///
    /// Costs an allocation and a look at the clock more than [`inc`](Counter::inc), and makes no other mutation wait.
    ///
    /// ```
    /// let bus = metricbus::MetricBus::new();
    /// let requests = bus.counter("requests_total", "Requests served.")?;
    /// requests.inc_with_exemplar(&[("trace_id", "4bf92f3577b34da6")])?;
    /// assert_eq!(requests.exemplar().map(|exemplar| exemplar.value), Some(1.0));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When a label's name is wrong or there twice, or names and values have more than 128 characters together. It is
    /// counted all the same, and the exemplar before stays.
    pub fn inc_with_exemplar(&self, labels: &[(&str, &str)]) -> Result<(), ExemplarError> {
        self.inc_by_with_exemplar(N::ONE, labels)
    }

    /// As [`inc_by`](Counter::inc_by) and [`inc_with_exemplar`](Counter::inc_with_exemplar). The exemplar's value is
    /// `amount`.
    ///
    /// # Errors
    ///
    /// As `inc_with_exemplar`; and when a `Counter<f64>` refuses the amount, which is then not counted.
    pub fn inc_by_with_exemplar(
        &self,
        amount: N,
        labels: &[(&str, &str)],
    ) -> Result<(), ExemplarError> {
        amount.add_to(&self.core);
        let value = amount.accepted()?;
        self.core.keep_exemplar(exemplar::checked(labels)?, value);
        Ok(())
    }

    /// The latest exemplar; `None` where there never was one.
    pub fn exemplar(&self) -> Option<Exemplar> {
        Some(self.core.exemplars().pop()?.1)
    }

    /// The present value.
    pub fn get(&self) -> N {
        N::from_bits(self.core.cell.load())
    }
}

impl Counter<f64> {
    /// Adds `amount`, or says why it can't.
    ///
    /// # Errors
    ///
    /// When `amount` is negative, NaN or infinite.
    pub fn try_inc_by(&self, amount: f64) -> Result<(), CounterError> {
        if accepts(amount) {
            self.core.cell.add_amount(amount, &*self.core);
            return Ok(());
        }
        Err(CounterError::Amount { amount })
    }
}

impl<N: CounterValue> Clone for Counter<N> {
    fn clone(&self) -> Self {
        Counter {
            core: self.core.clone(),
            numbers: PhantomData,
        }
    }
}

impl<N: CounterValue> Metric for Counter<N> {
    fn spec() -> Spec {
        Spec {
            kind: MetricKind::Counter,
            numbers: N::NUMBERS,
        }
    }

    fn from_spec(Made(core): Made) -> Self {
        Counter {
            core,
            numbers: PhantomData,
        }
    }
}
