//! What is told of sources and shown of them: plain values, and whoever hears of them.

use std::{
    collections::BTreeMap,
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::{Duration, SystemTime},
};

use super::life::{GoneWhy, SourceState};
use crate::{
    MetricBus, SourceId, Time,
    backlog::Subject,
    hub::{Enclose, Hub},
    listen::{Event, Listen, sealed},
    sync::lock,
};

/// Something has become of a source. Told by [`Fleet::on_source`](super::Fleet::on_source).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SourceEvent {
    /// Which one.
    pub source: SourceId,
    /// Which life of it.
    pub boot: u64,
    /// What.
    pub change: SourceChange,
    /// When, by the clock of the fleet's bus.
    pub at: Time,
    /// `at` as a date.
    pub date: SystemTime,
    /// It was so when the subscriber came, and is no news: [`Live`](SourceChange::Live) or [`Stale`](SourceChange::Stale).
    pub initial: bool,
}

impl fmt::Display for SourceEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.change {
            // Who has only just come has not heard it before.
            SourceChange::Live if self.initial => write!(f, "{} is there", self.source),
            ref change => write!(f, "{} {change}", self.source),
        }
    }
}

/// What has become of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SourceChange {
    /// It is known, with all its series.
    Born,
    /// It is another life of the process, with all its series; those of the life before have gone.
    Restarted {
        /// The boot of the life before.
        before: u64,
    },
    /// It was stale, and was heard again.
    Live,
    /// It was gone, and is there again, with all its series.
    Back,
    /// Nothing was heard of it for too long. Its series are still there, as they were.
    Stale,
    /// It is dead, or nobody can vouch for it any more. Its series are gone, and what it had firing was told as resolved.
    Gone {
        /// How that is known.
        why: GoneWhy,
    },
    /// A second process has the same identity. It is ignored: give one of the two another instance.
    Conflict {
        /// The boot of the other.
        other: u64,
    },
    /// It said alerts that nobody can get any more.
    AlertsLost {
        /// How many.
        alerts: u64,
    },
    /// It has a metric that can't be taken over: others declare it otherwise, or it can't be declared at all. The metric is
    /// left out; the rest of the source is not.
    Refused {
        /// Its name.
        metric: String,
        /// What is wrong.
        why: String,
    },
}

impl fmt::Display for SourceChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SourceChange::Born => f.write_str("is there"),
            SourceChange::Restarted { .. } => f.write_str("has restarted"),
            SourceChange::Live => f.write_str("was heard again"),
            SourceChange::Back => f.write_str("is back"),
            SourceChange::Stale => f.write_str("is stale"),
            SourceChange::Gone { why } => write!(f, "is gone: {why}"),
            SourceChange::Conflict { other } => {
                write!(f, "has a double, of boot {other}, which is ignored")
            }
            SourceChange::AlertsLost { alerts } => write!(f, "lost {alerts} alerts"),
            SourceChange::Refused { metric, why } => {
                write!(f, "has a metric {metric:?} that is left out: {why}")
            }
        }
    }
}

/// What becomes of a source supersedes what became of it before. Losses and what is refused are told one by one.
impl Subject for SourceEvent {
    fn subject(&self) -> Option<u64> {
        match self.change {
            SourceChange::AlertsLost { .. }
            | SourceChange::Conflict { .. }
            | SourceChange::Refused { .. } => None,
            _ => {
                let mut hasher = DefaultHasher::new();
                self.source.hash(&mut hasher);
                Some(hasher.finish())
            }
        }
    }

    fn is_final(&self) -> bool {
        !matches!(
            self.change,
            SourceChange::Born
                | SourceChange::Restarted { .. }
                | SourceChange::Live
                | SourceChange::Back
                | SourceChange::Stale
        )
    }

    const FINAL_KEPT: usize = 1 << 12;
}

impl Event for SourceEvent {}

impl sealed::Event for SourceEvent {
    type Letter = SourceEvent;

    fn open(letter: SourceEvent, _listener: u64) -> Option<SourceEvent> {
        Some(letter)
    }
}

impl Enclose for SourceEvent {
    fn enclose(&self, _ended: &Arc<AtomicBool>) -> SourceEvent {
        self.clone()
    }
}

/// Events of all sources, and whoever hears of them.
pub(super) struct Events {
    bus: MetricBus,
    hub: Arc<Hub<SourceEvent>>,
    /// Those that are there, as a late subscriber hears of them.
    present: Arc<Mutex<BTreeMap<SourceId, SourceEvent>>>,
}

impl Events {
    pub(super) fn new(bus: &MetricBus) -> Events {
        Events {
            bus: bus.clone(),
            hub: Hub::new(),
            present: Arc::default(),
        }
    }

    /// What is there first, then what comes.
    pub(super) fn listen(&self) -> Listen<SourceEvent> {
        let present = self.present.clone();
        self.hub.listen(&self.bus, "sources", move || {
            lock(&present).values().cloned().collect()
        })
    }

    pub(super) fn tell(&self, source: &SourceId, boot: u64, change: SourceChange) {
        let at = self.bus.clock().now();
        let event = SourceEvent {
            source: source.clone(),
            boot,
            change,
            at,
            date: self.bus.clock().wall(at),
            initial: false,
        };
        self.hub
            .tell(&event, || note(&mut lock(&self.present), &event));
    }
}

fn note(present: &mut BTreeMap<SourceId, SourceEvent>, event: &SourceEvent) {
    let change = match event.change {
        SourceChange::Born
        | SourceChange::Restarted { .. }
        | SourceChange::Live
        | SourceChange::Back => SourceChange::Live,
        SourceChange::Stale => SourceChange::Stale,
        SourceChange::Gone { .. } => {
            present.remove(&event.source);
            return;
        }
        SourceChange::Conflict { .. }
        | SourceChange::AlertsLost { .. }
        | SourceChange::Refused { .. } => return,
    };
    let event = SourceEvent {
        change,
        initial: true,
        ..event.clone()
    };
    present.insert(event.source.clone(), event);
}

/// How a source stands. Given by [`Fleet::sources`](super::Fleet::sources).
///
/// Counts are since the fleet knows of the source; it forgets one that has been gone for ten minutes.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SourceStatus {
    /// Which one.
    pub source: SourceId,
    /// Whether it lives.
    pub state: SourceState,
    /// Which life: microseconds since 1970 by its own clock, when that began.
    pub boot: u64,
    /// Whether all its series, and what it has firing, are known. `false` until it has been taken over by snapshot, and while
    /// something is missing that is being asked for.
    pub synced: bool,
    /// Its series on the fleet's bus. It may have more: see `refused`.
    pub series: usize,
    /// How many series it says that it forwards.
    pub series_said: u64,
    /// Time since it was last heard.
    pub age: Duration,
    /// How often it says that it lives.
    pub interval: Duration,
    /// By how many seconds its clock was ahead of ours in its last pulse, the time on the way included; negative where it was
    /// behind. `None` before the first pulse.
    pub skew: Option<f64>,
    /// The version of metricbus that it says it runs; empty before the first pulse.
    pub version: String,
    /// Frames that were applied …
    pub frames: u64,
    /// … that came twice …
    pub frames_duplicate: u64,
    /// … and that never came.
    pub frames_missed: u64,
    /// Times at which something was found missing, and a snapshot was asked for.
    pub gaps: u64,
    /// Snapshots that came …
    pub snapshots: u64,
    /// … and that did not.
    pub snapshots_failed: u64,
    /// Alerts that were delivered …
    pub alerts: u64,
    /// … that came twice …
    pub alerts_duplicate: u64,
    /// … and that nobody can get any more.
    pub alerts_lost: u64,
    /// Restarts.
    pub restarts: u64,
    /// Messages of another life than the present one: old ones, or those of a second process with this identity.
    pub other_life: u64,
    /// Metrics of this life that are left out, and why: sixteen at most.
    pub refused: Vec<(String, String)>,
    /// The last that went wrong with it.
    pub last_error: Option<String>,
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, StreamExt};

    use super::*;
    use crate::Clock;

    #[test]
    fn a_late_subscriber_hears_which_sources_are_there_and_how_they_stand() {
        let bus = MetricBus::builder().clock(Clock::manual()).build();
        let events = Events::new(&bus);
        let pod = |name| SourceId::new("ns", "c", name);
        let tell = |name, change| events.tell(&pod(name), 7, change);
        tell("a", SourceChange::Born);
        tell("a", SourceChange::AlertsLost { alerts: 2 });
        tell("b", SourceChange::Born);
        tell("b", SourceChange::Stale);
        tell("c", SourceChange::Born);
        let why = GoneWhy::Silent;
        tell("c", SourceChange::Gone { why });
        let mut late = events.listen().stream().unwrap();
        tell("b", SourceChange::Live);
        let heard: Vec<_> = std::iter::from_fn(|| late.next().now_or_never().flatten())
            .map(|event| (event.to_string(), event.initial))
            .collect();
        let heard: Vec<_> = heard.iter().map(|(t, i)| (t.as_str(), *i)).collect();
        assert_eq!(
            heard,
            [
                ("ns/c/a is there", true),
                ("ns/c/b is stale", true),
                ("ns/c/b was heard again", false)
            ]
        );
    }
}
