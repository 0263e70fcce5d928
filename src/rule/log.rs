//! What a rule has said: its last transitions, and the feeds that hear of the next ones. It outlives changes of the rule.

use std::{
    collections::VecDeque,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{
    Alert, AlertCause, AlertState, Group, Notice, Quality, Rule, alert::Pairs, compute::Reading,
    live::Told, template::Facts,
};
use crate::{
    backlog::Subject,
    cell::Wakes,
    clock::Clock,
    listen::{Event, Post, sealed},
    series::{Series, SeriesCore},
    stats::bump,
    subscription::Shared,
    time::Time,
};

/// A transition of a group, as the engine knows it.
pub(crate) struct Turn {
    pub(crate) firing: bool,
    pub(crate) level: Option<Arc<str>>,
    pub(crate) previous: Option<Arc<str>>,
    pub(crate) group: Pairs,
    pub(crate) series: Option<Arc<SeriesCore>>,
    pub(crate) value: Reading,
    pub(crate) quality: Quality,
    pub(crate) epoch: u64,
    pub(crate) cause: AlertCause,
    pub(crate) at: Time,
    pub(crate) since: Time,
    /// How long before that it really began.
    pub(crate) before: Duration,
    pub(crate) holding: Vec<Pairs>,
    /// The first that held when it was told last that it fires.
    pub(crate) first: Pairs,
    pub(crate) holds: usize,
    pub(crate) members: usize,
}

/// A subscription to alerts.
pub(crate) struct Feed {
    pub(crate) post: Post<Letter>,
    /// Whether it hears of one rule, and ends with it.
    pub(crate) of_one: bool,
    /// Whether it wants to hear what is firing when it comes.
    pub(crate) initial: bool,
    pub(crate) ended: Arc<AtomicBool>,
    /// Rules that it hears of.
    pub(crate) rules: AtomicU64,
    /// Weak, since that may hold this.
    pub(crate) subscription: Weak<Shared>,
}

/// An alert, or the mark, in a feed's mailbox.
pub struct Letter {
    alert: Option<Arc<Alert>>,
    ended: Arc<AtomicBool>,
    /// Where it counts when it is dropped unread.
    missed: Option<Arc<AtomicU64>>,
}

impl Letter {
    /// Of an alert that no rule here has made.
    #[cfg(feature = "nats")]
    pub(crate) fn of(alert: Arc<Alert>, ended: &Arc<AtomicBool>) -> Letter {
        Letter {
            alert: Some(alert),
            ended: ended.clone(),
            missed: None,
        }
    }

    pub(crate) fn sync(feed: &Arc<Feed>) -> Letter {
        Letter {
            alert: None,
            ended: feed.ended.clone(),
            missed: None,
        }
    }
}

/// Groups of rules of all sources, told apart. By a table that nobody outside knows, so that nobody can make two be one.
static TABLE: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// An alert tells the state of a group of a rule, of one source where it came from another process.
impl Subject for Alert {
    fn subject(&self) -> Option<u64> {
        let source = self.origin.as_ref().map(|origin| &origin.source);
        Some(TABLE.hash_one((&self.rule, &self.group, source)))
    }

    /// Nobody knows which groups will come again.
    fn is_final(&self) -> bool {
        !self.is_firing()
    }

    const FINAL_KEPT: usize = 1 << 16;
}

impl Subject for Letter {
    /// Nothing supersedes the mark.
    fn subject(&self) -> Option<u64> {
        self.alert.as_ref().and_then(|alert| alert.subject())
    }

    fn is_final(&self) -> bool {
        self.alert.as_ref().is_some_and(|alert| alert.is_final())
    }

    const FINAL_KEPT: usize = Alert::FINAL_KEPT;
}

impl Drop for Letter {
    fn drop(&mut self) {
        if let Some(missed) = &self.missed
            && !self.ended.load(Ordering::Acquire)
        {
            bump(missed);
        }
    }
}

impl Event for Alert {}

impl sealed::Event for Alert {
    type Letter = Letter;

    fn open(mut letter: Letter, _listener: u64) -> Option<Alert> {
        letter.missed = None;
        letter.alert.take().map(Arc::unwrap_or_clone)
    }
}

impl Event for Notice {}

impl sealed::Event for Notice {
    type Letter = Letter;

    fn open(letter: Letter, listener: u64) -> Option<Notice> {
        Some(Alert::open(letter, listener).map_or(Notice::Sync, Notice::Alert))
    }
}

pub(crate) struct Log {
    pub(crate) name: Arc<str>,
    said: Mutex<Said>,
    fired: AtomicU64,
    resolved: AtomicU64,
    missed: Arc<AtomicU64>,
    /// Told after each transition, for whoever keeps the state on disk.
    pub(crate) changed: Told,
}

#[derive(Default)]
struct Said {
    feeds: Vec<Arc<Feed>>,
    history: VecDeque<Alert>,
}

impl Log {
    pub(crate) fn new(name: &str, feeds: Vec<Arc<Feed>>, changed: Told) -> Arc<Log> {
        for feed in &feeds {
            bump(&feed.rules);
        }
        Arc::new(Log {
            name: name.into(),
            said: Mutex::new(Said {
                feeds,
                history: VecDeque::new(),
            }),
            fired: AtomicU64::new(0),
            resolved: AtomicU64::new(0),
            missed: Arc::default(),
            changed,
        })
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers a transition, and posts it to whoever listens. Under the engine's lock.
    pub(crate) fn tell(&self, rule: &Rule, turn: Turn, clock: &Clock, wakes: &mut Wakes) {
        bump(if turn.firing {
            &self.fired
        } else {
            &self.resolved
        });
        let alert = Arc::new(self.alert(rule, turn, clock));
        let mut said = self.said();
        said.feeds
            .retain(|feed| !feed.ended.load(Ordering::Acquire));
        if !rule.dry_run {
            for feed in &said.feeds {
                self.post(feed, &alert, wakes);
            }
        }
        if rule.history > 0 {
            said.history.push_back(Arc::unwrap_or_clone(alert));
        }
        while said.history.len() > rule.history {
            said.history.pop_front();
        }
        drop(said);
        (self.changed)();
    }

    fn post(&self, feed: &Arc<Feed>, alert: &Arc<Alert>, wakes: &mut Wakes) {
        let letter = Letter {
            alert: Some(alert.clone()),
            ended: feed.ended.clone(),
            missed: Some(self.missed.clone()),
        };
        feed.post.send(letter, wakes);
    }

    /// A new feed: hears what is firing, then every transition. Under the engine's lock.
    pub(crate) fn subscribe(
        &self,
        feed: &Arc<Feed>,
        rule: &Rule,
        firing: Vec<Turn>,
        clock: &Clock,
        wakes: &mut Wakes,
    ) {
        let mut said = self.said();
        if feed.initial && !rule.dry_run {
            for turn in firing {
                let alert = Arc::new(self.alert(rule, turn, clock));
                self.post(feed, &alert, wakes);
            }
        }
        bump(&feed.rules);
        said.feeds.push(feed.clone());
    }

    /// The rule has said its last: nothing more comes to those who hear of it alone.
    pub(crate) fn end(&self, wakes: &mut Wakes) {
        for feed in std::mem::take(&mut self.said().feeds) {
            if feed.of_one {
                wakes.extend(feed.post.close());
            }
        }
    }

    pub(crate) fn history(&self) -> Vec<Alert> {
        self.said().history.iter().cloned().collect()
    }

    /// So many of the last, the newest first.
    #[cfg(any(feature = "http", feature = "nats"))]
    pub(crate) fn last(&self, transitions: usize) -> Vec<Alert> {
        let said = self.said();
        said.history
            .iter()
            .rev()
            .take(transitions)
            .cloned()
            .collect()
    }

    pub(crate) fn fired(&self) -> u64 {
        self.fired.load(Ordering::Relaxed)
    }

    pub(crate) fn resolved(&self) -> u64 {
        self.resolved.load(Ordering::Relaxed)
    }

    pub(crate) fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }

    /// How often callbacks of its subscribers were said to hang.
    pub(crate) fn hung(&self) -> u64 {
        let said = self.said();
        let subscriptions = said
            .feeds
            .iter()
            .filter_map(|feed| feed.subscription.upgrade());
        subscriptions.map(|subscription| subscription.hung()).sum()
    }

    fn alert(&self, rule: &Rule, turn: Turn, clock: &Clock) -> Alert {
        let labels = labels_of(rule, &turn.group);
        // Of one series: itself.
        let alone = [turn.group.clone()];
        let (holding, holds) = if rule.group == Group::Each {
            let holds = usize::from(turn.firing);
            (&alone[..holds], holds)
        } else {
            (&turn.holding[..], turn.holds)
        };
        let annotations = annotations_of(
            rule,
            &Facts {
                value: turn.value,
                labels: &labels,
                first: turn.holding.first().unwrap_or(&turn.first),
                holding,
                holds,
            },
        );
        Alert {
            rule: self.name.clone(),
            state: if turn.firing {
                AlertState::Firing
            } else {
                AlertState::Resolved
            },
            level: turn.level,
            previous_level: turn.previous,
            group: turn.group,
            labels: labels.into(),
            annotations: annotations.into(),
            series: turn.series.map(Series::of),
            value: turn.value,
            quality: turn.quality,
            epoch: turn.epoch,
            cause: turn.cause,
            at: turn.at,
            since: turn.since,
            since_date: clock.wall_before(turn.since, turn.before),
            holding: turn.holding.into(),
            holds: turn.holds,
            members: turn.members,
            date: clock.wall(turn.at),
            repeat: 0,
            origin: None,
        }
    }
}

/// The labels of a group's alerts, sorted: those of the group and the rule's own, which win.
pub(crate) fn labels_of(rule: &Rule, group: &[(String, String)]) -> Vec<(String, String)> {
    let mut labels = group.to_vec();
    for (name, value) in &rule.labels {
        match labels.iter_mut().find(|(n, _)| n == name) {
            Some((_, old)) => value.clone_into(old),
            None => labels.push((name.clone(), value.clone())),
        }
    }
    labels.sort();
    labels
}

/// The rule's annotations, sorted and filled in.
pub(crate) fn annotations_of(rule: &Rule, facts: &Facts<'_>) -> Vec<(String, String)> {
    let annotations = rule.annotations.iter();
    let mut filled: Vec<_> = annotations
        .map(|(name, text)| (name.clone(), facts.fill(text)))
        .collect();
    filled.sort();
    filled
}
