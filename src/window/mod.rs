//! Sliding windows over series: average, extremes, rate, quantiles, at once and on the bus's own clock.

mod double_double;
mod held;
mod pane;
mod part;
mod sampled;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use crate::{
    bus::{Inner, MetricBus},
    cell::{Listener, Wakes, wake_all},
    clock::Clock,
    error::SelectorError,
    mailbox::Mailbox,
    selector::{IntoSelector, Selector},
    series::{Series, SeriesCore},
    sketch::Weights,
    stats::next_id,
    subscription::{Shared, Subscription},
};
pub(crate) use double_double::DoubleDouble;
use pane::Members;
pub(crate) use pane::{Pane, pane};
// For rules, which look at windows, too.
#[allow(unused_imports)]
pub(crate) use part::{Detail, Moments, Part, WIDTH_MIN, merge, slot_of};

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
            self.inner().select(selector)?,
            width,
        ))
    }
}

/// What a window has seen.
///
/// | | gauge | counter | histogram |
/// |---|---|---|---|
/// | `count` | how often it was set | 0 | observations |
/// | `sum` | of the values set | the increase | of the observations |
/// | `avg` | of the value over *time* | `None` | of the observations |
/// | `min`, `max` | of the values held or set | `None` | of the observations |
/// | `stddev` | of the value over time | `None` | of the observations, as their buckets tell |
/// | `quantile` | of the value over time | `None` | of the observations |
/// | `last` | the value | the value | `None` |
/// | `increase` | by how much the value changed | the increase | `count` |
/// | `rate` | its change per second | the increase per second | observations per second |
/// | `age` | since it was last set | since it last grew | since the last observation |
///
/// `None` means that there was nothing to go by; it is never 0 instead. NaN is passed over, and so is a gauge until it is
/// first set. There is no rate until one slot of the width has been observed.
///
/// Exact are those of gauges, the increase of a counter in `u64`, and a histogram's count and extremes: sums and averages, also
/// of several series, are rounded once and do not depend on an order. A histogram's sum is
/// the difference of two running sums, as Prometheus would take it; where that can't tell (an observation of NaN or ±∞
/// since the bus began, or sums so large that rounding has eaten the difference) it is within 1.1 % per observation.
///
/// Of several series ([`Windows`]): counts, sums, increases and rates add up; `avg`, `stddev` and quantiles are over all
/// series and their time (gauges) or over all observations; `min` and `max` are those of single series, not of their sum;
/// `age` is that of the newest mutation; `last` is that of the series where there is one, and `None` where there are more. Of gauges together with other types, `avg`, `stddev` and
/// quantiles are those of the gauges.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct WindowStats {
    /// The width in force: what was asked for, at least 100 ms.
    pub width: Duration,
    /// The share of the width that was observed, 0 to 1. Small until the window has existed for its width; from then on
    /// it is 1. Of several series, the mean.
    pub coverage: f64,
    /// How many series took part.
    pub sources: usize,
    /// How many of them had no mutation in the window. A counter that is increased by 0 has none.
    pub stale: usize,
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
    /// The standard deviation, of everything rather than of a sample: one value has 0. That of a histogram is taken from
    /// its buckets, and off by at most 1.1 % of the root of the mean square of the observations. `None` also where
    /// something infinite was held, or where it is beyond what a double can hold.
    pub stddev: Option<f64>,
    /// See the table.
    pub last: Option<f64>,
    /// See the table.
    pub increase: Option<f64>,
    /// Per second. See the table.
    pub rate: Option<f64>,
    /// Time since the newest mutation that the window has seen, which may be longer than its width. Of counters and
    /// histograms it is known to a slot, and what is said is the least it can be. `None` when there was none yet.
    pub age: Option<Duration>,
    weights: Weights,
}

impl WindowStats {
    /// The `q`-quantile: the smallest value that at least the share `q` of all was at or under. Of a gauge, the share of
    /// time; of a histogram, of the observations. `q` is from 0 (the minimum) to 1 (the maximum); 0.5 is the median.
    ///
    /// Off by at most 1.1 % of the quantile itself, whatever the distribution, and never outside of `min` and `max`.
    /// `None` where there is nothing to go by, of counters, and for a `q` that is no share (NaN included).
    ///
    /// ```
    /// use std::time::Duration;
    /// use metricbus::{Buckets, MetricBus};
    ///
    /// let bus = MetricBus::new();
    /// let ttft = bus.histogram("ttft_seconds", "Time to the first token.", Buckets::default())?;
    /// let window = ttft.series().window(Duration::from_secs(60));
    /// for ms in 1..=1_000 {
    ///     ttft.observe(f64::from(ms) / 1_000.0);
    /// }
    /// let p99 = window.stats().quantile(0.99).unwrap();
    /// assert!((p99 - 0.99).abs() < 0.011 * 0.99);
    /// # Ok::<(), metricbus::DeclareError>(())
    /// ```
    #[must_use]
    pub fn quantile(&self, q: f64) -> Option<f64> {
        part::quantile(&self.weights, self.min?, self.max?, q)
    }
}

/// A sliding window over one series. Made by [`Series::window`](crate::Series::window).
///
/// It sees mutations from its making on. A gauge's average is weighted by time: a value counts for as long as it was
/// held, and an idle window has avg = min = max = the held value. A counter's increase and rate are exact over the time
/// that the window covers.
///
/// Time is cut into slots of a hundredth of the width, at least 10 ms, which begin at multiples of that by the bus's clock:
/// so windows of different series line up. A window begins at the last such boundary that is as old as its width: it covers
/// its width, and less than a slot more. Counters and histograms are known only when the clock's thread comes: where that was
/// held up, their windows cover more. Rates are over the time that is covered. A window is at least 100 ms wide. When its
/// series is removed it stays as it was then. Dropping it ends it.
///
/// # Cost
///
/// A counter's window costs a mutation nothing: the clock samples the counter once per slot. A histogram's costs an
/// observation one more atomic add, and once per slot a visit to the series' lock for each new extreme. A gauge with a
/// window is set under its lock, and reads the clock. Other series cost what they always do.
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
/// assert_eq!((seen.increase, seen.rate, seen.coverage), (Some(100.0), Some(25.0), 0.4));
/// # Ok::<(), metricbus::DeclareError>(())
/// ```
#[must_use = "a window sees nothing once it is dropped"]
pub struct Window {
    series: Series,
    id: u64,
    pane: Arc<Pane>,
}

impl Window {
    fn over(series: &Series, width: Duration) -> Window {
        let id = next_id();
        let core = series.core();
        let (pane, feeder) = pane(id, core, false, core.meta.clock.now(), width);
        let mut wakes = Wakes::new();
        // Refused when the series is gone: then its last value is all there will ever be.
        core.attach(feeder, &mut wakes);
        wake_all(&mut wakes);
        Window {
            series: series.clone(),
            id,
            pane,
        }
    }

    /// The series it is over.
    pub fn series(&self) -> &Series {
        &self.series
    }

    /// What it has seen, up to now.
    pub fn stats(&self) -> WindowStats {
        let now = self.series.core().meta.clock.now();
        let part = self.pane.part(now, Detail::Sketch);
        let width = Duration::from_nanos(part.width);
        merge(&[part], width)
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
/// A series that is removed leaves the window. A counter or histogram that is made later has counted nothing until then,
/// which its window knows.
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
    members: Arc<Members>,
    width: Duration,
    clock: Clock,
}

impl Windows {
    pub(crate) fn over(inner: &Arc<Inner>, selector: Selector, width: Duration) -> Windows {
        let id = next_id();
        let members = Arc::new(Mutex::new(Vec::new()));
        let make = {
            let (members, start) = (members.clone(), inner.clock.now());
            Box::new(
                move |series: &Arc<SeriesCore>,
                      newborn: bool,
                      _: &mut Wakes|
                      -> Box<dyn Listener> {
                    pane::member(id, series, newborn.then_some(start), width, &members)
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
            width: width.max(WIDTH_MIN),
            clock: inner.clock.clone(),
        }
    }

    /// What each series has to say, up to now.
    pub(crate) fn parts(&self) -> Vec<(Series, Part)> {
        let now = self.clock.now();
        let members = self.members.lock();
        let members = members.unwrap_or_else(PoisonError::into_inner).clone();
        members
            .into_iter()
            .map(|pane| {
                let part = pane.part(now, Detail::Sketch);
                (Series::of(pane.series().clone()), part)
            })
            .collect()
    }

    /// What all series together have seen, up to now. Without any series: `sources` is 0, and everything is `None`.
    pub fn stats(&self) -> WindowStats {
        let parts: Vec<Part> = self.parts().into_iter().map(|(_, part)| part).collect();
        merge(&parts, self.width)
    }

    /// What each series has seen, up to now.
    pub fn each(&self) -> Vec<(Series, WindowStats)> {
        self.parts()
            .into_iter()
            .map(|(series, part)| (series, merge(&[part], self.width)))
            .collect()
    }

    /// What the series have seen that agree in these labels, up to now: for each combination of values, in order. A label
    /// that a series does not have is empty.
    ///
    /// ```
    /// use std::time::Duration;
    /// use metricbus::{Counter, Desc, MetricBus};
    ///
    /// let bus = MetricBus::new();
    /// let desc = Desc::new("requests_total", "Requests.").labels(["worker", "status"]);
    /// let requests = bus.family::<Counter>(desc)?;
    /// let windows = bus.window("requests_total", Duration::from_secs(30))?;
    /// for worker in ["a", "b"] {
    ///     requests.with_label_values(&[worker, "ok"])?.inc_by(3);
    /// }
    /// requests.with_label_values(&["b", "error"])?.inc();
    ///
    /// let by_status = windows.stats_by(&["status"]);
    /// let increases: Vec<_> = by_status
    ///     .iter()
    ///     .map(|(labels, seen)| (labels[0].1.as_str(), seen.sources, seen.increase))
    ///     .collect();
    /// assert_eq!(increases, [("error", 1, Some(1.0)), ("ok", 2, Some(6.0))]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn stats_by(&self, labels: &[&str]) -> Vec<(Vec<(String, String)>, WindowStats)> {
        let mut groups: BTreeMap<Vec<String>, Vec<Part>> = BTreeMap::new();
        for (series, part) in self.parts() {
            let values = labels.iter().map(|l| series.label(l).unwrap_or_default());
            groups.entry(values.collect()).or_default().push(part);
        }
        groups
            .into_iter()
            .map(|(values, parts)| {
                let names = labels.iter().map(|&l| l.to_owned());
                (names.zip(values).collect(), merge(&parts, self.width))
            })
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
