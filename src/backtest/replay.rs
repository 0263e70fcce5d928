//! The replay: rules over a recording, on virtual time.

use std::{
    collections::HashMap,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant, SystemTime},
};

use futures_core::Stream;

use super::{
    error::{ReadError, ReplayError},
    format::{Header, Step},
    player::Player,
    recording::{Recording, date},
};
use crate::{
    error::RuleError,
    listen::Events,
    raw::manner,
    rule::{Alert, AlertState, LiveRule, Pairs, Rule},
    time::{Time, nanos},
};

/// Rules, run over a recording.
///
/// What was recorded happens again on a bus of its own, at the same times of a manual clock, so that holds, windows and
/// absences come out as they would have: to the nanosecond, and the same each time. It runs as fast as it can: an hour
/// takes as long as its mutations do.
///
/// ```
/// use std::time::Duration;
/// use metricbus::{Condition, Rule, Threshold, backtest::{CsvColumns, Recording, Replay}};
///
/// let csv = "\
/// time,kv_usage_ratio
/// 0,0.5
/// 10,0.95
/// 12,0.4
/// 20,0.92
/// 30,0.3
/// ";
/// let recording = Recording::from_csv_text(csv, CsvColumns::wide("time"))?;
/// let full = Condition::when("kv_usage_ratio", Threshold::above(0.9).clear_below(0.8));
/// let report = Replay::new(recording)
///     .rule(Rule::new("KvCacheFull", full).hold_for(Duration::from_secs(5)))
///     .run(|_| {})?;
///
/// // From 10 to 12 s was too short; from 20 s on it was not.
/// let at: Vec<_> = report.transitions.iter().map(|alert| alert.at.as_secs_f64()).collect();
/// assert_eq!(at, [25.0, 30.0]);
/// assert_eq!(report.rules[0].firing, Duration::from_secs(5));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # What is the same, and what is not
///
/// Rules come before the first mutation, when every series that there was has the value that it had. A condition that
/// holds then fires at once ([`AlertCause::Initial`](crate::AlertCause::Initial)). Windows, averages and absences begin
/// there, too: what was before is not known.
///
/// A rule that is a dry run is told as if it weren't.
#[derive(Debug)]
#[must_use = "nothing happens until `run`"]
pub struct Replay {
    recording: Recording,
    rules: Vec<Rule>,
    tail: Duration,
}

/// How far a replay is.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Progress {
    /// Mutations so far.
    pub mutations: u64,
    /// Alerts so far.
    pub alerts: usize,
    /// Where it is, by the recording's clock.
    pub at: Time,
    /// Bytes of the recording that were read.
    pub bytes: u64,
    /// Bytes of the recording.
    pub bytes_total: u64,
}

/// What came of a replay.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Report {
    /// Every alert, in order. [`Alert::at`] is the recording's time, [`Alert::date`] its date.
    pub transitions: Vec<Alert>,
    /// What each rule did, in the order in which they were given.
    pub rules: Vec<RuleReport>,
    /// How many mutations there were.
    pub mutations: u64,
    /// Mutations that the recording says are missing.
    pub dropped: u64,
    /// Alerts that are missing above, because more than 65 536 came at one moment.
    pub missed: u64,
    /// Whether the recording was never finished: it was read as far as it goes.
    pub cut_off: bool,
    /// When the recording begins, by its clock.
    pub start: Time,
    /// When it ends, the tail included.
    pub end: Time,
    /// How long the replay took.
    pub elapsed: Duration,
    header: Header,
}

/// What a rule did.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RuleReport {
    /// The rule's name.
    pub rule: Arc<str>,
    /// What it judged, and how: `kv above 0.9, clear below 0.8; each series; hold_for 5s`. For people; the words may
    /// change.
    pub condition: String,
    /// Whether a series ever matched. If not, that is why it never fired: often a typing error.
    pub ever_matched: bool,
    /// How many series match at the end, counted once for each place in the rule.
    pub series: usize,
    /// How often it began to fire, over all groups.
    pub fired: u64,
    /// How often it was resolved.
    pub resolved: u64,
    /// How long at least one group was firing.
    pub firing: Duration,
    /// The longest that one group was firing without a break.
    pub longest: Duration,
    /// How many groups are firing at the end.
    pub still_firing: usize,
    /// From when to when each group fired, in order of their beginnings.
    pub spans: Vec<Firing>,
}

/// A time in which a rule fired for one group, at whatever level.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Firing {
    /// The group.
    pub group: Pairs,
    /// When it began.
    pub from: Time,
    /// When it was resolved, or else the end of the replay.
    pub to: Time,
    /// Whether it was resolved.
    pub resolved: bool,
}

impl Report {
    /// How much time was replayed, the tail included.
    pub fn span(&self) -> Duration {
        self.end.since(self.start)
    }

    /// Mutations per second that it took.
    pub fn rate(&self) -> f64 {
        self.mutations as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// The date of one of its times.
    pub fn date(&self, at: Time) -> SystemTime {
        date(self.header, at)
    }

    /// What the rule of this name did.
    pub fn rule(&self, name: &str) -> Option<&RuleReport> {
        self.rules.iter().find(|report| &*report.rule == name)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} mutations over {:?} in {:?} ({} mutations per second), {} alerts",
            self.mutations,
            self.span(),
            self.elapsed,
            rounded(self.rate()),
            self.transitions.len()
        )?;
        for rule in self.rules.iter().filter(|rule| !rule.ever_matched) {
            write!(f, "; {:?} never matched a series", rule.rule)?;
        }
        Ok(())
    }
}

/// A number as people say it.
fn rounded(number: f64) -> String {
    match number {
        n if n >= 1e6 => format!("{:.1} million", n / 1e6),
        n if n >= 1e3 => format!("{:.0} thousand", n / 1e3),
        n => format!("{n:.0}"),
    }
}

/// Alerts that may wait between two looks.
const ALERTS_MAX: usize = 65_536;
/// Mutations between two looks for alerts. Each makes a few at most.
const LOOK_EVERY: u64 = 1_024;
/// Time between two looks while nothing is mutated.
const STRIDE: Duration = Duration::from_secs(60);
/// Looks between two words on progress.
const TELL_EVERY: u64 = 64;

impl Replay {
    /// A replay of this recording.
    pub fn new(recording: Recording) -> Replay {
        Replay {
            recording,
            rules: Vec::new(),
            tail: Duration::ZERO,
        }
    }

    /// Adds a rule.
    pub fn rule(mut self, rule: Rule) -> Replay {
        self.rules.push(rule);
        self
    }

    /// Adds rules.
    pub fn rules(mut self, rules: impl IntoIterator<Item = Rule>) -> Replay {
        self.rules.extend(rules);
        self
    }

    /// How long the clock runs on after the recording's end (0 unless told otherwise), for what is held or kept then.
    pub fn tail(mut self, time: Duration) -> Replay {
        self.tail = time;
        self
    }

    /// Runs it, in this thread. `progress` is called every 65 536 mutations, and at the end.
    ///
    /// # Errors
    ///
    /// When the recording is damaged (one that was only cut off is replayed as far as it goes), has a metric that can't
    /// be declared, or a rule is wrong.
    pub fn run(self, mut progress: impl FnMut(Progress)) -> Result<Report, ReplayError> {
        let begun = Instant::now();
        let mut decoder = self.recording.decoder()?;
        let header = decoder.header();
        let mut stage = Stage {
            player: Player::new(Time(header.start)),
            alerts: None,
            live: Vec::new(),
            transitions: Vec::new(),
            header,
        };
        let mut rules = Some(self.rules);
        let (mut mutations, mut dropped, mut cut_off) = (0, 0, false);
        let mut until_look = LOOK_EVERY;
        let mut until_told = TELL_EVERY;
        let mut last = header.start;
        loop {
            let step = match decoder.step() {
                Ok(Some(step)) => step,
                Ok(None) => break,
                Err(ReadError::CutOff { .. }) => {
                    cut_off = true;
                    break;
                }
                Err(error) => return Err(error.of(self.recording.path()).into()),
            };
            match step {
                Step::Mutation {
                    at,
                    series,
                    before,
                    after,
                } => {
                    if let Some(rules) = rules.take() {
                        stage.begin(rules)?;
                    }
                    stage.advance_to(at);
                    last = last.max(at);
                    stage.player.mutate(series, before, after);
                    mutations += 1;
                    until_look -= 1;
                    if until_look == 0 {
                        until_look = LOOK_EVERY;
                        stage.collect();
                        until_told -= 1;
                        if until_told == 0 {
                            until_told = TELL_EVERY;
                            progress(Progress {
                                mutations,
                                alerts: stage.transitions.len(),
                                at: Time(last),
                                bytes: decoder.offset(),
                                bytes_total: self.recording.size(),
                            });
                        }
                    }
                }
                Step::Begun => {
                    if let Some(rules) = rules.take() {
                        stage.begin(rules)?;
                    }
                }
                Step::Series { at, .. } | Step::Removed { at, .. } => {
                    stage.advance_to(at);
                    last = last.max(at);
                    stage.player.apply(&decoder, step)?;
                }
                Step::Dropped { mutations, .. } => dropped += mutations,
                Step::End { at } => {
                    last = last.max(at);
                    stage.advance_to(at);
                }
            }
        }
        if let Some(rules) = rules.take() {
            stage.begin(rules)?;
        }
        let end = Time(last) + self.tail;
        stage.advance_to(end.as_nanos());
        stage.collect();
        progress(Progress {
            mutations,
            alerts: stage.transitions.len(),
            at: end,
            bytes: decoder.offset(),
            bytes_total: self.recording.size(),
        });
        let rules = stage
            .live
            .iter()
            .map(|live| RuleReport::of(live, &stage.transitions, end))
            .collect();
        Ok(Report {
            rules,
            mutations,
            dropped,
            missed: stage.missed(),
            cut_off,
            start: Time(header.start),
            end,
            elapsed: begun.elapsed(),
            transitions: stage.transitions,
            header,
        })
    }
}

/// What a replay runs on.
struct Stage {
    player: Player,
    /// Once the rules are there.
    alerts: Option<Events<Alert>>,
    live: Vec<LiveRule>,
    transitions: Vec<Alert>,
    header: Header,
}

impl Stage {
    fn begin(&mut self, rules: Vec<Rule>) -> Result<(), ReplayError> {
        let bus = self.player.bus.clone();
        let wrong = |rule: &str, why: String| ReplayError::Rule {
            rule: rule.to_owned(),
            why,
        };
        let alerts = bus
            .on_alert()
            .capacity(ALERTS_MAX)
            .stream()
            .map_err(|error| wrong("", error.to_string()))?;
        self.alerts = Some(alerts);
        for rule in rules {
            let name = rule.name().to_owned();
            // A dry run tells nobody; here it is to be seen.
            let live = bus
                .add_rule(rule.dry_run(false))
                .map_err(|error| match error {
                    // There is no set_rule here.
                    RuleError::Exists { .. } => wrong(
                        &name,
                        "it is there already; each rule of a replay needs a name of its own"
                            .to_owned(),
                    ),
                    error => wrong(&name, error.to_string()),
                })?;
            self.live.push(live);
        }
        self.collect();
        Ok(())
    }

    #[inline]
    fn advance_to(&mut self, at: u64) {
        if at.saturating_sub(self.player.now()) <= nanos(STRIDE) {
            return self.player.advance_to(at);
        }
        self.stride_to(at);
    }

    #[cold]
    fn stride_to(&mut self, at: u64) {
        self.collect();
        while self.player.now() < at {
            let next = self.player.now().saturating_add(nanos(STRIDE));
            self.player.advance_to(next.min(at));
            self.collect();
        }
    }

    /// Takes what has been told. It is all there: on a manual clock alerts are made by the thread that mutates or moves
    /// the clock.
    fn collect(&mut self) {
        let Some(alerts) = &mut self.alerts else {
            return;
        };
        let mut cx = Context::from_waker(Waker::noop());
        while let Poll::Ready(Some(mut alert)) = Pin::new(&mut *alerts).poll_next(&mut cx) {
            alert.date = date(self.header, alert.at);
            self.transitions.push(alert);
        }
    }

    fn missed(&self) -> u64 {
        self.alerts
            .as_ref()
            .map_or(0, |alerts| alerts.subscription().stats().dropped)
    }
}

impl RuleReport {
    fn of(live: &LiveRule, transitions: &[Alert], end: Time) -> RuleReport {
        let name = live.name();
        let mut spans: Vec<Firing> = Vec::new();
        // The span that is open, by group.
        let mut open: HashMap<&Pairs, usize> = HashMap::new();
        let mut resolved = 0;
        for alert in transitions.iter().filter(|alert| &*alert.rule == name) {
            match alert.state {
                AlertState::Firing => {
                    open.entry(&alert.group).or_insert_with(|| {
                        spans.push(Firing {
                            group: alert.group.clone(),
                            from: alert.at,
                            to: end,
                            resolved: false,
                        });
                        spans.len() - 1
                    });
                }
                AlertState::Resolved => {
                    resolved += 1;
                    if let Some(i) = open.remove(&alert.group) {
                        spans[i].to = alert.at;
                        spans[i].resolved = true;
                    }
                }
            }
        }
        let status = live.status();
        RuleReport {
            rule: name.into(),
            condition: condition(live, &status.conditions),
            ever_matched: status.ever_matched,
            series: status.series,
            fired: spans.len() as u64,
            resolved,
            firing: union(&spans),
            longest: spans
                .iter()
                .map(|span| span.to.since(span.from))
                .max()
                .unwrap_or_default(),
            still_firing: open.len(),
            spans,
        }
    }
}

/// A rule in words.
fn condition(live: &LiveRule, conditions: &[(Option<String>, String)]) -> String {
    let mut parts: Vec<String> = conditions
        .iter()
        .map(|(level, condition)| match level {
            Some(level) => format!("{level}: {condition}"),
            None => condition.clone(),
        })
        .collect();
    parts.push(manner(&live.rule()));
    parts.join("; ")
}

/// How long at least one of them lasts. They are in order of their beginnings.
fn union(spans: &[Firing]) -> Duration {
    let mut total = Duration::ZERO;
    let mut covered = Time::ZERO;
    for span in spans {
        let from = span.from.max(covered);
        total += span.to.since(from);
        covered = covered.max(span.to);
    }
    total
}
