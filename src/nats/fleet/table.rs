//! All sources that a fleet knows: the state machine of each, what is known of it besides, and how many there may be. Sends
//! nothing and shows nothing: what is to be done is handed out.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use bytes::Bytes;

use super::{
    event::SourceStatus,
    frames::Weigh,
    life::{OwnLink, Patience, SourceState},
    source::{Effect, Source, Wants, Word, WordKind},
};
use crate::{
    Alert, SourceId,
    nats::{subject::PulseKind, wire::pulse::Pulse},
    time::Time,
};

/// How long a source that is gone is remembered.
const GONE_KEPT: Duration = Duration::from_secs(600);

/// How many refused metrics are named.
const REFUSED_MAX: usize = 16;

pub(super) type Effects = Vec<Effect<Bytes, Alert>>;

impl Weigh for Bytes {
    fn bytes(&self) -> usize {
        self.len()
    }
}

/// Why something that was received is ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Invalid {
    /// Not of the schema.
    Subject,
    Headers,
    /// Subject, headers and body disagree.
    Mismatch,
    Body,
    /// Points of a frame that can't be right.
    Point,
    /// Points of a metric that others declare otherwise.
    Clash,
    /// Points of series beyond the limit of a source.
    SeriesLimit,
    /// Sources beyond the limit.
    SourceLimit,
}

impl Invalid {
    pub(super) const ALL: [Invalid; 8] = [
        Invalid::Subject,
        Invalid::Headers,
        Invalid::Mismatch,
        Invalid::Body,
        Invalid::Point,
        Invalid::Clash,
        Invalid::SeriesLimit,
        Invalid::SourceLimit,
    ];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Invalid::Subject => "subject",
            Invalid::Headers => "headers",
            Invalid::Mismatch => "mismatch",
            Invalid::Body => "body",
            Invalid::Point => "point",
            Invalid::Clash => "clash",
            Invalid::SeriesLimit => "series_limit",
            Invalid::SourceLimit => "source_limit",
        }
    }
}

/// What has to be done for a source.
#[derive(Debug, Default)]
pub(super) struct Reaction {
    pub(super) boot: u64,
    pub(super) effects: Effects,
    pub(super) wants: Wants,
}

impl Reaction {
    fn is_empty(&self) -> bool {
        self.effects.is_empty() && !self.wants.any()
    }
}

/// Sums over all sources, those that were forgotten included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) live: usize,
    pub(super) stale: usize,
    pub(super) gone: usize,
    pub(super) unsynced: usize,
    pub(super) frames: u64,
    pub(super) frames_duplicate: u64,
    pub(super) frames_missed: u64,
    pub(super) gaps: u64,
    pub(super) snapshots: u64,
    pub(super) snapshots_failed: u64,
    pub(super) alerts: u64,
    pub(super) alerts_duplicate: u64,
    pub(super) alerts_lost: u64,
    pub(super) restarts: u64,
    pub(super) other_life: u64,
}

pub(super) struct Table {
    sources: HashMap<SourceId, Entry>,
    sources_max: usize,
    patience: Patience,
    link: OwnLink,
    /// All who answered the last greeting are known.
    greeted: bool,
    invalid: [u64; Invalid::ALL.len()],
    last_error: Option<String>,
    /// Of those that were forgotten.
    past: Totals,
    /// Those that were forgotten since the last tick, and what was still to be done for them.
    forgotten: Vec<(SourceId, Reaction)>,
    /// Nobody could be forgotten then.
    full_at: Option<Time>,
}

struct Entry {
    source: Source<Bytes, Alert>,
    gone_at: Option<Time>,
    skew: Option<f64>,
    version: String,
    series: usize,
    series_said: u64,
    refused: Vec<(String, String)>,
    last_error: Option<String>,
}

impl Table {
    pub(super) fn new(sources_max: usize, patience: Patience) -> Table {
        Table {
            sources: HashMap::new(),
            sources_max,
            patience,
            link: OwnLink::Down,
            greeted: false,
            invalid: [0; Invalid::ALL.len()],
            last_error: None,
            past: Totals::default(),
            forgotten: Vec::new(),
            full_at: None,
        }
    }

    /// Something was ignored. `true` where these words are new.
    pub(super) fn ignore(&mut self, what: Invalid, times: u64, why: Option<String>) -> bool {
        let count = &mut self.invalid[what as usize];
        *count = count.saturating_add(times);
        let new = why.is_some() && why != self.last_error;
        self.last_error = why.or(self.last_error.take());
        new
    }

    pub(super) fn ignored(&self) -> impl Iterator<Item = (Invalid, u64)> {
        Invalid::ALL.into_iter().zip(self.invalid)
    }

    pub(super) fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    pub(super) fn link(&self) -> OwnLink {
        self.link
    }

    /// The own connection came up, or went down.
    pub(super) fn set_link(&mut self, up: bool, now: Time) {
        self.greeted = false;
        if !up {
            self.link = OwnLink::Down;
            return;
        }
        self.link = OwnLink::Up { since: now };
        for entry in self.sources.values_mut() {
            entry.source.linked(now);
        }
    }

    /// All who answered are known.
    pub(super) fn greeted(&mut self) {
        self.greeted = true;
    }

    /// Messages were dropped on our side.
    pub(super) fn distrust_all(&mut self) {
        for entry in self.sources.values_mut() {
            entry.source.distrust();
        }
    }

    pub(super) fn distrust(&mut self, source: &SourceId) {
        if let Some(entry) = self.sources.get_mut(source) {
            entry.source.distrust();
        }
    }

    /// Whether everybody who is there is known, with everything.
    pub(super) fn is_synced(&self) -> bool {
        let link = self.link;
        let settled = |entry: &Entry| entry.source.settled(link);
        self.greeted && self.sources.values().all(settled)
    }

    pub(super) fn pulse(
        &mut self,
        id: &SourceId,
        pulse: &Pulse,
        kind: WordKind,
        now: Time,
        date: SystemTime,
    ) -> Reaction {
        let word = Word {
            kind,
            boot: pulse.epoch,
            interval: pulse.interval,
            frames: pulse.frames,
            alerts: pulse.alerts,
            alerts_from: pulse.alerts_from,
            reason: pulse.reason.clone().unwrap_or_default(),
        };
        let known = kind == WordKind::Death || self.admit(id, pulse.epoch, now);
        if !known {
            return Reaction::default();
        }
        self.with(id, now, |entry, _| {
            let effects = entry.source.word(&word, now);
            if entry.source.boot() == pulse.epoch {
                entry.skew = Some(ahead(pulse.at, date));
                entry.series_said = pulse.series;
                if entry.version != pulse.version {
                    entry.version.clone_from(&pulse.version);
                }
            }
            effects
        })
    }

    pub(super) fn frame(
        &mut self,
        id: &SourceId,
        boot: u64,
        sequence: u64,
        body: Bytes,
        now: Time,
    ) -> Reaction {
        if !self.admit(id, boot, now) {
            return Reaction::default();
        }
        let known = self.sources.get(id).map(|entry| &entry.source);
        if known.is_some_and(|known| known.boot() == boot && known.frames().is_beyond(sequence)) {
            let why = format!("a frame of {id} says that it is number {sequence}");
            self.ignore(Invalid::Headers, 1, Some(why));
            return Reaction::default();
        }
        self.with(id, now, |entry, _| {
            entry.source.frame(boot, sequence, body, now)
        })
    }

    pub(super) fn alert(
        &mut self,
        id: &SourceId,
        boot: u64,
        sequence: u64,
        alert: Alert,
        now: Time,
    ) -> Reaction {
        if !self.admit(id, boot, now) {
            return Reaction::default();
        }
        self.with(id, now, |entry, _| {
            entry.source.alert(boot, sequence, alert, now)
        })
    }

    pub(super) fn snapshot(
        &mut self,
        id: &SourceId,
        boot: u64,
        sequence: u64,
        parts: Vec<Bytes>,
        now: Time,
    ) -> Reaction {
        self.with(id, now, |entry, _| {
            entry.source.snapshot(boot, sequence, parts, now)
        })
    }

    pub(super) fn snapshot_failed(&mut self, id: &SourceId, why: String, now: Time) -> Reaction {
        self.with(id, now, |entry, _| {
            entry.last_error = Some(why);
            entry.source.snapshot_failed(now)
        })
    }

    pub(super) fn alerts_answer(
        &mut self,
        id: &SourceId,
        boot: u64,
        asked: (u64, u64),
        firing: Vec<Alert>,
        given: Vec<(u64, Alert)>,
        now: Time,
    ) -> Reaction {
        self.with(id, now, |entry, _| {
            entry.source.alerts_answer(boot, asked, firing, given, now)
        })
    }

    pub(super) fn alerts_failed(
        &mut self,
        id: &SourceId,
        boot: u64,
        asked: (u64, u64),
        why: String,
        now: Time,
    ) -> Reaction {
        self.with(id, now, |entry, _| {
            entry.last_error = Some(why);
            entry.source.alerts_failed(boot, asked, now)
        })
    }

    /// The server says that nobody is there to answer.
    pub(super) fn nobody(&mut self, id: &SourceId, now: Time) -> Reaction {
        self.with(id, now, |entry, link| entry.source.nobody(now, link))
    }

    /// A question whether it is there had no answer.
    pub(super) fn unanswered(&mut self, id: &SourceId, why: String, now: Time) -> Reaction {
        self.with(id, now, |entry, _| {
            entry.last_error = Some(why);
            entry.source.unanswered(now);
            Effects::new()
        })
    }

    /// Time passes. What is to be done for whom, and who is forgotten.
    pub(super) fn tick(&mut self, now: Time) -> (Vec<(SourceId, Reaction)>, Vec<SourceId>) {
        let (link, patience) = (self.link, self.patience);
        let mut reactions = Vec::new();
        let mut due = Vec::new();
        for (id, entry) in &mut self.sources {
            let effects = entry.source.tick(now, link, patience);
            let reaction = entry.react(effects, now, link);
            if !reaction.is_empty() {
                reactions.push((id.clone(), reaction));
            }
            if entry.gone_at.is_some_and(|at| now.since(at) >= GONE_KEPT) {
                due.push(id.clone());
            }
        }
        for id in &due {
            self.forget(id, now);
        }
        let mut forgotten = Vec::new();
        for (id, reaction) in std::mem::take(&mut self.forgotten) {
            reactions.push((id.clone(), reaction));
            // One that made room for another may be there again.
            if !self.sources.contains_key(&id) {
                forgotten.push(id);
            }
        }
        (reactions, forgotten)
    }

    /// How many series are shown, and which metrics are not.
    pub(super) fn note(
        &mut self,
        id: &SourceId,
        series: Option<usize>,
        refused: &[(String, String)],
    ) {
        let Some(entry) = self.sources.get_mut(id) else {
            return;
        };
        entry.series = series.unwrap_or(entry.series);
        for refused in refused {
            let new = entry.refused.iter().all(|(name, _)| *name != refused.0);
            if new && entry.refused.len() < REFUSED_MAX {
                entry.refused.push(refused.clone());
            }
            entry.last_error = Some(refused.1.clone());
        }
    }

    /// Its series were removed.
    pub(super) fn cleared(&mut self, id: &SourceId) {
        if let Some(entry) = self.sources.get_mut(id) {
            entry.series = 0;
            entry.refused.clear();
        }
    }

    /// Which life of a source is known.
    pub(super) fn boot(&self, id: &SourceId) -> Option<u64> {
        Some(self.sources.get(id)?.source.boot())
    }

    /// The sources in this state.
    pub(super) fn in_state(&self, state: SourceState) -> Vec<SourceId> {
        let in_state =
            |(id, entry): (&SourceId, &Entry)| (entry.source.state() == state).then(|| id.clone());
        let mut all: Vec<_> = self.sources.iter().filter_map(in_state).collect();
        all.sort();
        all
    }

    /// All of them, sorted.
    pub(super) fn statuses(&self, now: Time) -> Vec<SourceStatus> {
        let mut all: Vec<_> = self
            .sources
            .iter()
            .map(|(id, entry)| entry.status(id, now))
            .collect();
        all.sort_by(|a, b| a.source.cmp(&b.source));
        all
    }

    pub(super) fn status(&self, id: &SourceId, now: Time) -> Option<SourceStatus> {
        Some(self.sources.get(id)?.status(id, now))
    }

    pub(super) fn totals(&self) -> Totals {
        let mut totals = self.past;
        for entry in self.sources.values() {
            totals.add(entry);
            match entry.source.state() {
                SourceState::Live => totals.live += 1,
                SourceState::Stale => totals.stale += 1,
                SourceState::Gone => totals.gone += 1,
            }
            totals.unsynced += usize::from(!entry.source.complete());
        }
        totals
    }

    /// Sees that a source is known, if there is room for it.
    fn admit(&mut self, id: &SourceId, boot: u64, now: Time) -> bool {
        if self.sources.contains_key(id) {
            return true;
        }
        if self.sources.len() >= self.sources_max && !self.make_room(now) {
            self.ignore(Invalid::SourceLimit, 1, None);
            return false;
        }
        self.sources.insert(
            id.clone(),
            Entry {
                source: Source::new(boot, now),
                gone_at: None,
                skew: None,
                version: String::new(),
                series: 0,
                series_said: 0,
                refused: Vec::new(),
                last_error: None,
            },
        );
        true
    }

    /// Forgets the one that is gone for longest.
    fn make_room(&mut self, now: Time) -> bool {
        // Not for each message of a flood.
        let lately = |at: Time| now.since(at) < Duration::from_secs(1);
        if self.full_at.is_some_and(lately) {
            return false;
        }
        let gone = |(id, entry): (&SourceId, &Entry)| Some((entry.gone_at?, id.clone()));
        match self.sources.iter().filter_map(gone).min() {
            Some((_, id)) => {
                self.forget(&id, now);
                true
            }
            None => {
                self.full_at = Some(now);
                false
            }
        }
    }

    /// Nobody takes anything in any more: nothing that is known can be relied on. Who was known.
    pub(super) fn end(&mut self, now: Time) -> Vec<(SourceId, u64)> {
        self.link = OwnLink::Down;
        self.greeted = false;
        let boot = |(id, entry): (&SourceId, &Entry)| (id.clone(), entry.source.boot());
        let known: Vec<_> = self.sources.iter().map(boot).collect();
        for (id, _) in &known {
            self.forget(id, now);
        }
        self.forgotten.clear();
        known
    }

    fn forget(&mut self, id: &SourceId, now: Time) {
        if let Some(mut entry) = self.sources.remove(id) {
            let effects = entry.source.finish(now);
            self.past.add(&entry);
            let reaction = Reaction {
                boot: entry.source.boot(),
                effects,
                wants: Wants::default(),
            };
            self.forgotten.push((id.clone(), reaction));
        }
    }

    fn with(
        &mut self,
        id: &SourceId,
        now: Time,
        f: impl FnOnce(&mut Entry, OwnLink) -> Effects,
    ) -> Reaction {
        let link = self.link;
        let Some(entry) = self.sources.get_mut(id) else {
            return Reaction::default();
        };
        let effects = f(entry, link);
        entry.react(effects, now, link)
    }
}

impl Entry {
    fn react(&mut self, effects: Effects, now: Time, link: OwnLink) -> Reaction {
        self.gone_at = match self.source.state() {
            SourceState::Gone => self.gone_at.or(Some(now)),
            _ => None,
        };
        Reaction {
            boot: self.source.boot(),
            effects,
            wants: self.source.wants(now, link),
        }
    }

    fn status(&self, id: &SourceId, now: Time) -> SourceStatus {
        let source = &self.source;
        let (frames, alerts) = (source.frames().counts, source.alerts().counts);
        SourceStatus {
            source: id.clone(),
            state: source.state(),
            boot: source.boot(),
            synced: source.complete(),
            series: self.series,
            series_said: self.series_said,
            age: now.since(source.life().heard_at()),
            interval: source.life().said_interval(),
            skew: self.skew,
            version: self.version.clone(),
            frames: frames.applied,
            frames_duplicate: frames.duplicates,
            frames_missed: frames.missed,
            gaps: frames.gaps,
            snapshots: frames.snapshots,
            snapshots_failed: frames.failed,
            alerts: alerts.delivered,
            alerts_duplicate: alerts.duplicates,
            alerts_lost: alerts.lost,
            restarts: source.counts.restarts,
            other_life: source.counts.other_life,
            refused: self.refused.clone(),
            last_error: self.last_error.clone(),
        }
    }
}

impl Totals {
    fn add(&mut self, entry: &Entry) {
        let (frames, alerts) = (entry.source.frames().counts, entry.source.alerts().counts);
        self.frames = self.frames.saturating_add(frames.applied);
        self.frames_duplicate = self.frames_duplicate.saturating_add(frames.duplicates);
        self.frames_missed = self.frames_missed.saturating_add(frames.missed);
        self.gaps = self.gaps.saturating_add(frames.gaps);
        self.snapshots = self.snapshots.saturating_add(frames.snapshots);
        self.snapshots_failed = self.snapshots_failed.saturating_add(frames.failed);
        self.alerts = self.alerts.saturating_add(alerts.delivered);
        self.alerts_duplicate = self.alerts_duplicate.saturating_add(alerts.duplicates);
        self.alerts_lost = self.alerts_lost.saturating_add(alerts.lost);
        self.restarts = self.restarts.saturating_add(entry.source.counts.restarts);
        self.other_life = self
            .other_life
            .saturating_add(entry.source.counts.other_life);
    }
}

impl From<PulseKind> for WordKind {
    fn from(kind: PulseKind) -> WordKind {
        match kind {
            PulseKind::Birth => WordKind::Birth,
            PulseKind::Heartbeat => WordKind::Heartbeat,
            PulseKind::Death => WordKind::Death,
        }
    }
}

/// By how many seconds one date is ahead of another.
fn ahead(date: SystemTime, of: SystemTime) -> f64 {
    match date.duration_since(of) {
        Ok(ahead) => ahead.as_secs_f64(),
        Err(behind) => -behind.duration().as_secs_f64(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nats::fleet::event::SourceChange;

    const PATIENCE: Patience = Patience {
        stale_after: None,
        gone_after: Duration::from_secs(10),
    };

    fn pod() -> SourceId {
        SourceId::new("n", "c", "i")
    }

    fn seconds(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    fn pulse(frames: u64, alerts: u64) -> Pulse {
        Pulse {
            kind: PulseKind::Heartbeat,
            source: pod(),
            epoch: 7,
            interval: Duration::from_secs(1),
            frames,
            alerts,
            alerts_from: 1,
            series: 0,
            at: SystemTime::UNIX_EPOCH,
            version: String::new(),
            reason: None,
        }
    }

    /// One source that is known.
    fn world(sources_max: usize) -> Table {
        let mut table = Table::new(sources_max, PATIENCE);
        table.set_link(true, seconds(0));
        hear(&mut table, &pod(), 3, 0);
        table.snapshot(&pod(), 7, 3, Vec::new(), seconds(0));
        table
    }

    fn hear(table: &mut Table, id: &SourceId, frames: u64, alerts: u64) {
        let date = SystemTime::UNIX_EPOCH;
        let kind = WordKind::Heartbeat;
        table.pulse(id, &pulse(frames, alerts), kind, seconds(0), date);
    }

    #[test]
    fn what_a_source_said_and_nobody_got_is_lost_when_it_is_forgotten() {
        let mut table = world(10);
        hear(&mut table, &pod(), 3, 2);
        table.tick(seconds(20));
        let (reactions, forgotten) = table.tick(seconds(21));
        assert_eq!((reactions.len(), forgotten.len()), (1, 0));
        assert_eq!((table.totals().gone, table.totals().alerts_lost), (1, 0));
        let (reactions, forgotten) = table.tick(seconds(700));
        assert_eq!(forgotten, [pod()]);
        let lost = SourceChange::AlertsLost { alerts: 2 };
        assert_eq!(reactions[0].1.effects, [Effect::Tell(lost)]);
        assert_eq!((table.totals().gone, table.totals().alerts_lost), (0, 2));
    }

    #[test]
    fn who_made_room_for_another_is_told_of_as_forgotten_too() {
        let mut table = world(1);
        hear(&mut table, &pod(), 3, 2);
        table.tick(seconds(20));
        table.tick(seconds(21));
        let other = SourceId::new("n", "c", "other");
        table.frame(&other, 1, 1, Bytes::new(), seconds(22));
        assert_eq!(table.boot(&other), Some(1));
        assert_eq!(table.totals().alerts_lost, 2);
        let (reactions, forgotten) = table.tick(seconds(22));
        assert_eq!(forgotten, [pod()]);
        let lost = SourceChange::AlertsLost { alerts: 2 };
        let of_pod = reactions.iter().find(|(id, _)| *id == pod()).unwrap();
        assert_eq!(of_pod.1.effects, [Effect::Tell(lost)]);
    }

    #[test]
    fn a_frame_of_a_number_that_can_t_be_is_refused_and_counted() {
        let mut table = world(10);
        table.frame(&pod(), 7, (1 << 63) - 1, Bytes::new(), seconds(1));
        let refused = table.ignored().find(|(what, _)| *what == Invalid::Headers);
        assert_eq!(refused, Some((Invalid::Headers, 1)));
        assert!(table.last_error().is_some());
        assert_eq!(
            (table.totals().frames, table.totals().frames_missed),
            (0, 0)
        );
        table.frame(&pod(), 7, 4, Bytes::new(), seconds(1));
        assert_eq!(table.totals().frames, 1);
    }
}
