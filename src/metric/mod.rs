//! The metrics that components mutate: thin handles to series.

mod counter;
mod family;
mod gauge;
mod histogram;
mod table;

use std::sync::Arc;

use crate::{
    desc::{MetricKind, Numbers},
    selector::{IntoSelector, Selector},
    series::{Series, SeriesCore},
};

pub use counter::{Counter, CounterValue};
pub use family::Family;
pub(crate) use family::{Plan, Slot};
pub use gauge::{Gauge, InProgress, PeakGauge, SetTimer};
pub use histogram::{Histogram, HistogramSnapshot, ObserveTimer};
pub(crate) use table::FamilyCore;

mod sealed {
    pub trait Sealed {}
}

/// A type of metric that can be declared: [`Counter`], `Counter<f64>`, [`Gauge`] or [`Histogram`].
///
/// Sealed: what can be stored in a series is this crate's business.
pub trait Metric: sealed::Sealed + Sized {
    #[doc(hidden)]
    fn spec() -> Spec;
    #[doc(hidden)]
    fn from_spec(made: Made) -> Self;
    /// Gives it this value, if it has none.
    #[doc(hidden)]
    fn begin_at(&self, initial: f64) {
        let _ = initial;
    }
}

/// What a type of metric asks of its series.
#[doc(hidden)]
#[derive(Clone, Copy)]
pub struct Spec {
    pub(crate) kind: MetricKind,
    pub(crate) numbers: Numbers,
}

/// A series for a metric to hold.
#[doc(hidden)]
pub struct Made(pub(crate) Arc<SeriesCore>);

/// What every handle has, besides its own methods.
macro_rules! handle {
    ([$($generics:tt)*] $metric:ty) => {
        impl<$($generics)*> $metric {
            /// The series behind this handle: its name, labels, value, and windows over it.
            pub fn series(&self) -> Series {
                Series::of(self.core.clone())
            }
        }

        impl<$($generics)*> sealed::Sealed for $metric {}

        impl<$($generics)*> IntoSelector for &$metric {
            fn into_selector(self) -> Result<Selector, crate::SelectorError> {
                Ok(Selector::only(self.series()))
            }
        }

        impl<$($generics)*> std::fmt::Debug for $metric {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.series().fmt(f)
            }
        }
    };
}

handle!([N: CounterValue] Counter<N>);
handle!([] Gauge);
handle!([] Histogram);
