//! A test kit for those who write rules: a bus on a clock that stands still, metrics by name, and alerts to assert on.
//!
//! ```
//! use std::time::Duration;
//! use metricbus::{Condition, Rule, Threshold, assert_fired, assert_pending, assert_quiet, assert_resolved};
//! use metricbus::testing::{TestBus, at};
//!
//! // The rule of your service.
//! fn kv_cache_full() -> Rule {
//!     let full = Condition::when("kv_usage_ratio", Threshold::above(0.9).clear_below(0.8));
//!     Rule::new("KvCacheFull", full).hold_for(Duration::from_millis(500))
//! }
//!
//! // Its test.
//! let kit = TestBus::new();
//! kit.add_rule(kv_cache_full());
//!
//! kit.set(r#"kv_usage_ratio{worker="a"}"#, 0.95);
//! kit.set(r#"kv_usage_ratio{worker="b"}"#, 0.3);
//! assert_pending!(kit, "KvCacheFull", labels {"worker" => "a"});
//! kit.advance(Duration::from_millis(499));
//! assert_quiet!(kit);
//!
//! kit.advance(Duration::from_millis(1));
//! let alert = assert_fired!(kit, "KvCacheFull", labels {"worker" => "a"});
//! assert_eq!((alert.at, alert.value), (at(0.5), Some(0.95)));
//!
//! kit.set(r#"kv_usage_ratio{worker="a"}"#, 0.85);
//! assert_quiet!(kit); // between the bounds
//! kit.set(r#"kv_usage_ratio{worker="a"}"#, 0.7);
//! assert_resolved!(kit, "KvCacheFull");
//! assert_quiet!(kit);
//! ```
//!
//! Nothing runs in another thread, and nothing waits: when [`TestBus::set`] or [`TestBus::advance`] returns, every alert
//! due by then is there. Rules that are a dry run are captured, too.

use std::{
    cell::RefCell,
    collections::VecDeque,
    fmt::{self, Write},
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures_core::Stream;

use crate::{
    bus::MetricBus,
    clock::Clock,
    desc::{Buckets, MetricKind, Numbers},
    listen::Events,
    raw::{self, Handle, Shape, label_text},
    rule::{Alert, AlertState, LiveRule, Pairs, Rule, RuleGroup, RuleState},
    selector::Selector,
    time::Time,
};

/// A bus on a [manual clock](Clock::manual), with captured alerts. See the [module](self).
///
/// A series is named as in PromQL: `kv_usage_ratio{worker="a"}`. It is declared when it is first named, unless the code
/// under test has declared its metric on [`bus`](TestBus::bus); labels are then those of the declaration.
///
/// # Panics
///
/// Methods panic on what is wrong with the test itself: a name that is none, a gauge used as a counter, other labels
/// than before, a wrong rule, and more than 65 536 alerts that nobody took. The message says what would be right.
pub struct TestBus {
    bus: MetricBus,
    clock: Clock,
    captured: RefCell<Captured>,
}

struct Captured {
    events: Events<Alert>,
    alerts: VecDeque<Alert>,
}

/// Alerts that may come between two looks.
const CAPACITY: usize = 65_536;

impl Default for TestBus {
    fn default() -> Self {
        TestBus::new()
    }
}

impl TestBus {
    /// An empty bus at time 0.
    pub fn new() -> TestBus {
        let clock = Clock::manual();
        let bus = MetricBus::builder().clock(clock.clone()).build();
        let events = match bus.on_alert().capacity(CAPACITY).stream() {
            Ok(events) => events,
            Err(error) => panic!("TestBus: {error}"),
        };
        TestBus {
            bus,
            clock,
            captured: RefCell::new(Captured {
                events,
                alerts: VecDeque::new(),
            }),
        }
    }

    /// The bus, for the code under test.
    pub fn bus(&self) -> &MetricBus {
        &self.bus
    }

    /// Its clock.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Lets time pass. What is due on the way happens at its own time.
    pub fn advance(&self, by: Duration) {
        self.clock.advance(by);
    }

    /// Lets time pass until `time`.
    #[track_caller]
    pub fn advance_to(&self, time: Time) {
        let now = self.clock.now();
        assert!(
            time >= now,
            "TestBus::advance_to({time:?}): it is {now:?} already, and time goes forward"
        );
        self.clock.advance(time.since(now));
    }

    /// Adds a rule.
    #[track_caller]
    pub fn add_rule(&self, rule: Rule) -> LiveRule {
        // A dry run tells nobody; here it is to be seen.
        match self.bus.add_rule(rule.dry_run(false)) {
            Ok(live) => live,
            Err(error) => panic!("TestBus::add_rule: {error}"),
        }
    }

    /// Sets a gauge.
    #[track_caller]
    pub fn set(&self, series: &str, value: f64) {
        match self.series(series, MetricKind::Gauge) {
            Handle::Gauge(gauge) => gauge.set(value),
            other => other.is_not("set", series, "a gauge"),
        }
    }

    /// Raises a counter. One that counts in `f64` grows by as much.
    #[track_caller]
    pub fn inc(&self, series: &str, by: u64) {
        match self.series(series, MetricKind::Counter) {
            Handle::Whole(counter) => counter.inc_by(by),
            Handle::Amount(counter) => counter.inc_by(by as f64),
            other => other.is_not("inc", series, "a counter"),
        }
    }

    /// Observes a value in a histogram; one declared by this has the [usual buckets](Buckets::default).
    #[track_caller]
    pub fn observe(&self, series: &str, value: f64) {
        match self.series(series, MetricKind::Histogram) {
            Handle::Histogram(histogram) => histogram.observe(value),
            other => other.is_not("observe", series, "a histogram"),
        }
    }

    /// Removes what the selector selects, as a worker that goes; how many series that were.
    #[track_caller]
    pub fn remove(&self, selector: &str) -> usize {
        match self.bus.remove(selector) {
            Ok(removed) => removed,
            Err(error) => panic!("TestBus::remove: {error}"),
        }
    }

    #[track_caller]
    fn series(&self, text: &str, kind: MetricKind) -> Handle {
        match self.find_or_declare(text, kind) {
            Ok(handle) => handle,
            Err(why) => panic!("TestBus: series {text:?}: {why}"),
        }
    }

    fn find_or_declare(&self, text: &str, kind: MetricKind) -> Result<Handle, String> {
        let selector: Selector = text
            .parse()
            .map_err(|error: crate::SelectorError| error.to_string())?;
        let Some((name, labels)) = selector.exact() else {
            return Err(
                "it means several; name one, as kv_usage_ratio{worker=\"a\"}, with = alone"
                    .to_owned(),
            );
        };
        let family = match raw::find(&self.bus, name) {
            Some(family) => family,
            None => Shape {
                name: name.to_owned(),
                help: "Declared by a test.".to_owned(),
                unit: None,
                kind,
                numbers: match kind {
                    MetricKind::Counter => Numbers::Whole,
                    _ => Numbers::Real,
                },
                label_names: labels.iter().map(|(name, _)| name.clone()).collect(),
                bounds: match kind {
                    MetricKind::Histogram => Buckets::default().bounds().to_vec(),
                    _ => Vec::new(),
                },
            }
            .declare(&self.bus)
            .map_err(|error| error.to_string())?,
        };
        let text = label_text(&family, &labels).ok_or_else(|| {
            let names: Vec<_> = labels.iter().map(|(name, _)| name).collect();
            let wanted = &family.meta.label_names;
            format!("{name} has the labels {wanted:?}, and got {names:?}")
        })?;
        Ok(Handle::of(family.child(&text)))
    }

    /// The alerts captured so far that no assertion has consumed, in order.
    pub fn alerts(&self) -> Vec<Alert> {
        self.captured().alerts.iter().cloned().collect()
    }

    /// As [`alerts`](TestBus::alerts), and forgets them.
    pub fn take_alerts(&self) -> Vec<Alert> {
        self.captured().alerts.drain(..).collect()
    }

    fn captured(&self) -> std::cell::RefMut<'_, Captured> {
        let mut captured = self.captured.borrow_mut();
        let Captured { events, alerts } = &mut *captured;
        let mut cx = Context::from_waker(Waker::noop());
        while let Poll::Ready(Some(alert)) = Pin::new(&mut *events).poll_next(&mut cx) {
            alerts.push_back(alert);
        }
        let lost = events.subscription().stats().dropped;
        assert!(
            lost == 0,
            "TestBus: {lost} alerts were lost; look at them more often"
        );
        captured
    }

    /// What [`assert_fired!`](crate::assert_fired) and [`assert_resolved!`](crate::assert_resolved) do: takes the first
    /// such alert.
    #[doc(hidden)]
    #[track_caller]
    pub fn expect_alert(&self, state: AlertState, rule: &str, labels: &[(&str, &str)]) -> Alert {
        let mut captured = self.captured();
        let found = captured.alerts.iter().position(|alert| {
            alert.state == state && &*alert.rule == rule && has(&alert.labels, labels)
        });
        if let Some(alert) = found.and_then(|i| captured.alerts.remove(i)) {
            return alert;
        }
        drop(captured);
        panic!(
            "{}{} {}\n{}",
            rule,
            Braced(labels),
            match state {
                AlertState::Firing => "has not fired",
                AlertState::Resolved => "was not resolved",
            },
            self.explain(Some(rule))
        );
    }

    /// What [`assert_pending!`](crate::assert_pending) does.
    #[doc(hidden)]
    #[track_caller]
    pub fn expect_pending(&self, rule: &str, labels: &[(&str, &str)]) -> RuleGroup {
        let pending = self.bus.rule(rule).and_then(|live| {
            let mut groups = live.status().active.into_iter();
            groups.find(|group| group.state == RuleState::Pending && has(&group.labels, labels))
        });
        if let Some(group) = pending {
            return group;
        }
        panic!(
            "{rule}{} is not pending\n{}",
            Braced(labels),
            self.explain(Some(rule))
        );
    }

    /// What [`assert_quiet!`](crate::assert_quiet) does.
    #[doc(hidden)]
    #[track_caller]
    pub fn expect_quiet(&self) {
        let first = self.captured().alerts.front().cloned();
        if let Some(alert) = first {
            panic!(
                "there are alerts that no assertion has consumed\n{}",
                self.explain(Some(&alert.rule))
            );
        }
    }

    /// Time, the rule as it stands and its history, and all alerts captured.
    fn explain(&self, rule: Option<&str>) -> String {
        let mut out = format!("  time: {:?}\n", self.clock.now());
        if let Some(rule) = rule {
            // Writing to a string does not fail.
            let _ = match self.bus.rule(rule) {
                Some(live) => explain_rule(&mut out, &live),
                None => {
                    let names: Vec<_> = self
                        .bus
                        .rules()
                        .iter()
                        .map(|live| live.name().to_owned())
                        .collect();
                    writeln!(out, "  no rule has this name; there are: {names:?}")
                }
            };
        }
        let captured = self.captured();
        if captured.alerts.is_empty() {
            out.push_str("  captured: no alerts that were not consumed\n");
        } else {
            out.push_str("  captured, and not consumed:\n");
            for alert in &captured.alerts {
                let _ = writeln!(out, "    {:?} {alert}", alert.at);
            }
        }
        out
    }
}

fn explain_rule(out: &mut String, live: &LiveRule) -> fmt::Result {
    let status = live.status();
    for (level, condition) in &status.conditions {
        match level {
            Some(level) => writeln!(out, "  condition of {level}: {condition}")?,
            None => writeln!(out, "  condition: {condition}")?,
        }
    }
    writeln!(out, "  judged: {}", raw::manner(&live.rule()))?;
    if !status.ever_matched {
        writeln!(
            out,
            "  it has never matched a series: is its selector what it should be?"
        )?;
    }
    writeln!(
        out,
        "  state: {} (over {} series; groups: {} firing, {} clearing, {} pending, {} inactive)",
        status.state,
        status.series,
        status.firing,
        status.clearing,
        status.pending,
        status.inactive
    )?;
    for group in &status.active {
        let labels = pairs(&group.labels);
        write!(
            out,
            "    {}{}",
            Braced(&labels),
            if labels.is_empty() { "" } else { " " }
        )?;
        write!(out, "{}", group.state)?;
        if let Some(since) = group.since {
            write!(out, " since {since:?}")?;
        }
        match group.value {
            Some(value) => writeln!(out, ", at {value}")?,
            None => writeln!(out)?,
        }
    }
    match status.value {
        Some(value) => writeln!(out, "  judged last: {value}")?,
        None => writeln!(out, "  judged last: nothing")?,
    }
    let history = live.history();
    if history.is_empty() {
        return writeln!(out, "  history: none");
    }
    writeln!(out, "  history:")?;
    for alert in &history {
        writeln!(out, "    {:?} {alert}", alert.at)?;
    }
    Ok(())
}

fn pairs(labels: &Pairs) -> Vec<(&str, &str)> {
    labels
        .iter()
        .map(|(name, value)| (&**name, &**value))
        .collect()
}

fn has(labels: &Pairs, wanted: &[(&str, &str)]) -> bool {
    wanted
        .iter()
        .all(|(name, value)| labels.iter().any(|(n, v)| n == name && v == value))
}

/// `{a="b"}`, or nothing.
struct Braced<'a>(&'a [(&'a str, &'a str)]);

impl fmt::Display for Braced<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        let pairs: Vec<_> = self
            .0
            .iter()
            .map(|(name, value)| format!("{name}={value:?}"))
            .collect();
        write!(f, "{{{}}}", pairs.join(","))
    }
}

impl Handle {
    #[track_caller]
    fn is_not(&self, method: &str, series: &str, wanted: &str) -> ! {
        let (kind, right) = match self {
            Handle::Whole(_) | Handle::Amount(_) => ("counter", "inc"),
            Handle::Gauge(_) => ("gauge", "set"),
            Handle::Histogram(_) => ("histogram", "observe"),
        };
        panic!("TestBus::{method}({series:?}): it is a {kind}, not {wanted}; use {right}()");
    }
}

impl fmt::Debug for TestBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestBus")
            .field("now", &self.clock.now())
            .field("rules", &self.bus.rules())
            .finish()
    }
}

/// The time `seconds` after the beginning.
///
/// ```
/// assert_eq!(metricbus::testing::at(1.5).as_nanos(), 1_500_000_000);
/// ```
///
/// # Panics
///
/// When it is negative, NaN, or more than 584 years.
#[track_caller]
pub fn at(seconds: f64) -> Time {
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) => Time::ZERO + duration,
        Err(error) => panic!("at({seconds}): {error}"),
    }
}

/// Asserts that a rule has fired, on a [`TestBus`](crate::testing::TestBus): takes the first alert that says so, and gives
/// it. With labels, those of the alert have to include them.
///
/// ```
/// # use metricbus::{Condition, Rule, Threshold, assert_fired, testing::TestBus};
/// let kit = TestBus::new();
/// kit.add_rule(Rule::new("Deep", Condition::when("queue_depth", Threshold::above(10.0))));
/// kit.set(r#"queue_depth{role="decode"}"#, 11.0);
/// assert_fired!(kit, "Deep", labels {"role" => "decode"});
/// ```
///
/// # Panics
///
/// When there is none. The message has the state and the history of the rule, and all alerts captured.
#[macro_export]
macro_rules! assert_fired {
    ($kit:expr, $rule:expr $(, labels {$($name:expr => $value:expr),* $(,)?})? $(,)?) => {
        $kit.expect_alert($crate::AlertState::Firing, $rule, &[$($(($name, $value)),*)?])
    };
}

/// Asserts that a rule was resolved, as [`assert_fired!`](crate::assert_fired).
///
/// # Panics
///
/// As [`assert_fired!`](crate::assert_fired).
#[macro_export]
macro_rules! assert_resolved {
    ($kit:expr, $rule:expr $(, labels {$($name:expr => $value:expr),* $(,)?})? $(,)?) => {
        $kit.expect_alert($crate::AlertState::Resolved, $rule, &[$($(($name, $value)),*)?])
    };
}

/// Asserts that a rule is pending now: its condition holds, but not for long enough. Gives the
/// [group](crate::RuleGroup). With labels, those of the group have to include them.
///
/// # Panics
///
/// When it isn't, with a message as that of [`assert_fired!`](crate::assert_fired).
#[macro_export]
macro_rules! assert_pending {
    ($kit:expr, $rule:expr $(, labels {$($name:expr => $value:expr),* $(,)?})? $(,)?) => {
        $kit.expect_pending($rule, &[$($(($name, $value)),*)?])
    };
}

/// Asserts that there is no alert that no assertion has consumed.
///
/// # Panics
///
/// When there is, with a message that has all of them.
#[macro_export]
macro_rules! assert_quiet {
    ($kit:expr $(,)?) => {
        $kit.expect_quiet()
    };
}
