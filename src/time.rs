//! A point on the injected clock. Holds no clock itself.

use std::{
    fmt,
    ops::{Add, Sub},
    time::Duration,
};

/// A point in time: nanoseconds since the origin of the `Clock` that gave it.
///
/// It is monotonic and means nothing outside the process; `Clock::wall` turns it into a date.
/// 64 bits last 584 years.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(pub(crate) u64);

impl Time {
    /// The clock's origin.
    pub const ZERO: Time = Time(0);

    /// Nanoseconds since the clock's origin.
    pub fn as_nanos(self) -> u64 {
        self.0
    }

    /// Seconds since the clock's origin.
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / 1e9
    }

    /// Time from `earlier` to here; zero where `earlier` is later.
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// A duration as nanoseconds, saturating at 584 years.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Add<Duration> for Time {
    type Output = Time;

    /// Saturates at the end of time.
    fn add(self, duration: Duration) -> Time {
        Time(self.0.saturating_add(nanos(duration)))
    }
}

impl Sub<Time> for Time {
    type Output = Duration;

    /// As [`Time::since`]: zero rather than negative.
    fn sub(self, earlier: Time) -> Duration {
        self.since(earlier)
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", Duration::from_nanos(self.0))
    }
}

/// Whoever can tell the time. Asked only on slow paths.
pub(crate) trait Now {
    fn now(&self) -> Time;
}

/// The time of one visit to a slow path: read at the first question, the same for all that ask.
pub(crate) struct Stamp<'a> {
    source: &'a dyn Now,
    at: Option<Time>,
}

impl<'a> Stamp<'a> {
    pub(crate) fn new(source: &'a dyn Now) -> Self {
        Stamp { source, at: None }
    }

    pub(crate) fn at(&mut self) -> Time {
        *self.at.get_or_insert_with(|| self.source.now())
    }
}
