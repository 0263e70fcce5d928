//! Sliding windows over series: average, extremes, rate, at once and on the bus's own clock.

mod ring;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::{
    bus::{Inner, MetricBus},
    cell::{Listener, Real, Recorded, Repr, Wakes, Whole, wake_all},
    clock::Clock,
    desc::{MetricKind, Numbers},
    error::SelectorError,
    interest::Interval,
    mailbox::Mailbox,
    selector::{IntoSelector, Selector},
    series::{Series, SeriesCore},
    stats::next_id,
    subscription::{Shared, Subscription},
    time::{Stamp, Time},
};
use ring::{Part, Ring};

impl Series {
    /// A sliding window over this series, from now on. See [`Window`].
    pub fn window(&self, width: Duration) -> Window {
        Window::over(self, width)
    }
}

impl MetricBus {
    /// A sliding window over the selected series, from now on.
    ///
    /// # Errors
    ///
    /// When the selector is wrong.
    pub fn window(
        &self,
        selector: impl IntoSelector,
        width: Duration,
    ) -> Result<Windows, SelectorError> {
        Ok(Windows::over(
            self.inner(),
            selector.into_selector()?,
            width,
        ))
    }
}

/// What a window has seen.
///
/// | | `count` | `sum` | `avg` | `min`, `max` | `last` | `rate` |
/// |---|---|---|---|---|---|---|
/// | gauge | mutations | of the values set | of the value over *time* | of the values held | the value | its change per second |
/// | counter | mutations | the increase | increase per mutation | of single increases | the value | the increase per second |
/// | histogram | observations | of the observations | of the observations | of the observations | the last observation | observations per second |
///
/// `None` means that there was nothing to go by; it is never 0 instead. NaN is passed over, and so is a gauge until it is
/// first set. There is no rate until one slot of the width has been observed.
///
/// Of several series ([`Windows`]): counts, sums and rates add up; `avg` is over all series and their time (gauges) or
/// over all observations; `min` and `max` are those of single series, not of their sum; `last` is `None`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct WindowStats {
    /// The width in force: what was asked for, at least 100 ms.
    pub width: Duration,
    /// The share of the width that was observed, 0 to 1. Small until the window has existed for its width; after that
    /// at most one slot less than 1, since only whole slots are let go. Of several series, the mean.
    pub coverage: f64,
    /// How many series took part.
    pub sources: usize,
    /// See the table.
    pub count: u64,
    /// See the table.
    pub sum: Option<f64>,
    /// See the table.
    pub avg: Option<f64>,
    /// See the table.
    pub min: Option<f64>,
    /// See the table.
    pub max: Option<f64>,
    /// See the table.
    pub last: Option<f64>,
    /// See the table.
    pub rate: Option<f64>,
}

/// A sliding window over one series. Made by [`Series::window`](crate::Series::window).
///
/// It sees mutations from its making on. A gauge's average is weighted by time: a value counts for as long as it was
/// held, and an idle window has avg = min = max = the held value. A counter's increase and rate are exact.
///
/// The window is cut into slots of a hundredth of its width, at least 10 ms, counted from its making. It begins at the
/// first slot boundary that is not older than its width, and it is at least 100 ms wide. Dropping it ends it.
///
/// A series with a window is mutated under its lock and reads the clock; other series cost what they always do.
///
/// ```
/// use std::time::Duration;
/// use metricbus::{Clock, MetricBus};
///
/// let clock = Clock::manual();
/// let bus = MetricBus::builder().clock(clock.clone()).build();
/// let tokens = bus.counter("tokens_total", "Tokens generated.")?;
/// let window = tokens.series().window(Duration::from_secs(10));
///
/// tokens.inc_by(100);
/// clock.advance(Duration::from_secs(4));
/// let seen = window.stats();
/// assert_eq!((seen.sum, seen.rate, seen.coverage), (Some(100.0), Some(25.0), 0.4));
/// # Ok::<(), metricbus::DeclareError>(())
/// ```
#[must_use = "a window sees nothing once it is dropped"]
pub struct Window {
    series: Series,
    id: u64,
    ring: Arc<Mutex<Ring>>,
}

impl Window {
    fn over(series: &Series, width: Duration) -> Window {
        let id = next_id();
        let ring = Arc::new(Mutex::new(Ring::new(series.kind(), width)));
        let listener = Recorder {
            id,
            numbers: series.core().meta.numbers,
            ring: ring.clone(),
            origin: None,
        };
        let mut wakes = Wakes::new();
        if !series.core().attach(Box::new(listener), &mut wakes) {
            // The series is gone: its last value is all there will ever be.
            let value = series.value().as_f64();
            let now = series.core().meta.clock.now();
            lock(&ring).begin(value, now, now);
        }
        wake_all(&mut wakes);
        Window {
            series: series.clone(),
            id,
            ring,
        }
    }

    /// The series it is over.
    pub fn series(&self) -> &Series {
        &self.series
    }

    /// What it has seen, up to now.
    pub fn stats(&self) -> WindowStats {
        part(&self.ring, self.series.core().meta.clock.now()).finish()
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        let mut wakes = Wakes::new();
        self.series.core().detach(self.id, &mut wakes);
        wake_all(&mut wakes);
    }
}

impl fmt::Debug for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Window")
            .field("series", &self.series)
            .field("stats", &self.stats())
            .finish()
    }
}

/// A sliding window over all series of a selector, present and future. Made by
/// [`MetricBus::window`](crate::MetricBus::window).
///
/// A series that is removed leaves the window.
///
/// ```
/// use std::time::Duration;
/// use metricbus::{Clock, Desc, Gauge, MetricBus};
///
/// let clock = Clock::manual();
/// let bus = MetricBus::builder().clock(clock.clone()).build();
/// let usage = bus.family::<Gauge>(Desc::new("kv_usage_ratio", "Share in use.").labels(["worker"]))?;
/// let windows = bus.window("kv_usage_ratio", Duration::from_secs(30))?;
///
/// usage.with_label_values(&["a"])?.set(0.5);
/// usage.with_label_values(&["b"])?.set(0.7);
/// clock.advance(Duration::from_secs(3));
///
/// let all = windows.stats();
/// assert_eq!((all.sources, all.max), (2, Some(0.7)));
/// assert!((all.avg.unwrap() - 0.6).abs() < 1e-9);
/// assert_eq!(windows.each().len(), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "windows see nothing once they are dropped"]
pub struct Windows {
    subscription: Subscription,
    members: Arc<Mutex<Vec<Member>>>,
    width: Duration,
    clock: Clock,
}

struct Member {
    series: Series,
    ring: Arc<Mutex<Ring>>,
}

impl Windows {
    fn over(inner: &Arc<Inner>, selector: Selector, width: Duration) -> Windows {
        let id = next_id();
        let members = Arc::new(Mutex::new(Vec::new()));
        let make = {
            let (members, start) = (members.clone(), inner.clock.now());
            Box::new(
                move |series: &Arc<SeriesCore>,
                      newborn: bool,
                      _: &mut Wakes|
                      -> Box<dyn Listener> {
                    // A counter that is made now has counted nothing since the window began to look. What a gauge would
                    // have been nobody knows.
                    let counts = series.meta.kind != MetricKind::Gauge;
                    Box::new(MemberRecorder {
                        recorder: Recorder {
                            id,
                            numbers: series.meta.numbers,
                            ring: Arc::new(Mutex::new(Ring::new(series.meta.kind, width))),
                            origin: (newborn && counts).then_some(start),
                        },
                        series: Arc::downgrade(series),
                        members: members.clone(),
                    })
                },
            )
        };
        // Windows are asked, not told: nothing is ever posted here.
        let nothing = Arc::new(Mailbox::<()>::new(1));
        let shared = Shared::new(inner.stats.clone());
        let subscription = Subscription::start(inner, id, selector, make, nothing, shared);
        Windows {
            subscription,
            members,
            width: width.max(ring::WIDTH_MIN),
            clock: inner.clock.clone(),
        }
    }

    fn parts(&self) -> Vec<(Series, Part)> {
        let now = self.clock.now();
        let members: Vec<_> = lock(&self.members)
            .iter()
            .map(|member| (member.series.clone(), member.ring.clone()))
            .collect();
        members
            .into_iter()
            .map(|(series, ring)| (series, part(&ring, now)))
            .collect()
    }

    /// What all series together have seen, up to now. Without any series: `sources` is 0, and everything is `None`.
    pub fn stats(&self) -> WindowStats {
        let parts: Vec<Part> = self.parts().into_iter().map(|(_, part)| part).collect();
        ring::merge(&parts, self.width)
    }

    /// What each series has seen, up to now.
    pub fn each(&self) -> Vec<(Series, WindowStats)> {
        self.parts()
            .into_iter()
            .map(|(series, part)| (series, part.finish()))
            .collect()
    }

    /// The subscription behind it.
    pub fn subscription(&self) -> &Subscription {
        &self.subscription
    }
}

impl fmt::Debug for Windows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Windows")
            .field("subscription", &self.subscription)
            .field("stats", &self.stats())
            .finish()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Copies the slots under the lock and computes outside of it: a mutating thread may be waiting.
fn part(ring: &Mutex<Ring>, now: Time) -> Part {
    let mut copy = lock(ring).clone();
    copy.stats(now)
}

struct Recorder {
    id: u64,
    numbers: Numbers,
    ring: Arc<Mutex<Ring>>,
    /// Since when the window looks, where that is before the series was made.
    origin: Option<Time>,
}

impl Recorder {
    fn decode(&self) -> fn(u64) -> f64 {
        match self.numbers {
            Numbers::Whole => Whole::decode,
            Numbers::Amount | Numbers::Real => Real::decode,
        }
    }
}

impl Listener for Recorder {
    fn id(&self) -> u64 {
        self.id
    }

    fn takes_all(&self) -> bool {
        true
    }

    fn begin(&mut self, bits: u64, stamp: &mut Stamp<'_>) {
        let at = stamp.at();
        lock(&self.ring).begin(self.decode()(bits), self.origin.unwrap_or(at), at);
    }

    fn quiet(&self) -> Interval {
        Interval::NOTHING
    }

    fn record(&mut self, recorded: Recorded, _sequence: u64, at: Time, _wakes: &mut Wakes) {
        lock(&self.ring).record(recorded, self.decode(), at);
    }
}

/// A recorder that enters its series among the members, and takes it out when it is removed.
struct MemberRecorder {
    recorder: Recorder,
    series: std::sync::Weak<SeriesCore>,
    members: Arc<Mutex<Vec<Member>>>,
}

impl Listener for MemberRecorder {
    fn id(&self) -> u64 {
        self.recorder.id
    }

    fn takes_all(&self) -> bool {
        true
    }

    fn begin(&mut self, bits: u64, stamp: &mut Stamp<'_>) {
        self.recorder.begin(bits, stamp);
        if let Some(series) = self.series.upgrade() {
            lock(&self.members).push(Member {
                series: Series::of(series),
                ring: self.recorder.ring.clone(),
            });
        }
    }

    fn quiet(&self) -> Interval {
        Interval::NOTHING
    }

    fn record(&mut self, recorded: Recorded, sequence: u64, at: Time, wakes: &mut Wakes) {
        self.recorder.record(recorded, sequence, at, wakes);
    }

    fn removed(&mut self, _value: f64, _stamp: &mut Stamp<'_>, _wakes: &mut Wakes) {
        lock(&self.members).retain(|member| !Arc::ptr_eq(&member.ring, &self.recorder.ring));
    }
}
