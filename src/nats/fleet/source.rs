//! One source: its lives, and in each of them whether it lives, its frames and its alerts. A pure state machine: what was
//! heard and what time it is goes in; what is to be done, and to be asked, comes out.
//!
//! Which life a message is of, its *boot* tells:
//!
//! | known | message | what is done |
//! |---|---|---|
//! | nobody | any but of death | a source that was there before us; born under our eyes where its birth is heard before any frame |
//! | boot b | of b | goes to its life |
//! | boot b | of more than b | a restart: everything of the old life ends, and all of the new one is news |
//! | boot b, live | of less than b | ignored, counted: old, or another process with this identity; a pulse is told as a conflict, once |
//! | boot b, stale or gone | a birth or heartbeat of less than b | its clock was set back, or b was of another process with this identity: as who was there before us, or where the life before was that one, as who is back |
//! | boot b, gone | a birth or heartbeat of b | back: taken over by snapshot again, which is no news |
//! | boot b, gone | a frame of b | ignored: it was on its way |
//! | boot b, gone | an alert of b | delivered: it was said; and withdrawn, if it says firing |
//! | boot b, died | the answer to a question | ignored: it was on its way |
//!
//! Born, restarted and back are told when the snapshot is there, and with it all series.

use std::time::Duration;

use super::{
    alerts::{self, AlertCounts, Alerts, HOLD},
    event::SourceChange,
    frames::{self, FrameCounts, Frames, Weigh},
    life::{Life, OwnLink, Patience, SourceState, Turn},
};
use crate::time::Time;

/// What a pulse says of a source.
#[derive(Clone, Debug)]
pub(super) struct Word {
    pub(super) kind: WordKind,
    pub(super) boot: u64,
    pub(super) interval: Duration,
    /// The last frame and the last alert, and the oldest alert that can be asked for.
    pub(super) frames: u64,
    pub(super) alerts: u64,
    pub(super) alerts_from: u64,
    /// Of death.
    pub(super) reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WordKind {
    Birth,
    Heartbeat,
    Death,
    /// It was asked.
    Answer,
}

/// What is to be done for a source, in this order.
#[derive(Debug, PartialEq)]
pub(super) enum Effect<F, A> {
    /// Its series are no more.
    Clear,
    /// These are all its series. `news`: what they have counted is, too.
    Replace {
        parts: Vec<F>,
        news: bool,
    },
    Apply(F),
    Deliver(A),
    Recall(A),
    /// What it is known to have firing is to be told.
    Recalled,
    /// Nobody can vouch any more for what it had firing. `forever`: not even if it comes back.
    Withdraw {
        forever: bool,
    },
    /// What was withdrawn is vouched for again.
    Restore,
    Tell(SourceChange),
}

/// What it is to be asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wants {
    pub(super) probe: bool,
    pub(super) snapshot: bool,
    pub(super) alerts: Option<(u64, u64)>,
    /// With those alerts, what was firing before them.
    pub(super) firing: bool,
}

impl Wants {
    pub(super) fn any(&self) -> bool {
        self.probe || self.snapshot || self.alerts.is_some()
    }
}

#[derive(Debug)]
pub(super) struct Source<F, A> {
    boot: u64,
    life: Life,
    frames: Frames<F>,
    alerts: Alerts<A>,
    /// The life before this one, and its next alert.
    before: Option<(u64, u64)>,
    /// The life began under our eyes.
    news: bool,
    /// The boot of which it was last told that it is there.
    told: Option<u64>,
    /// Whether the last that was told is that it is there …
    present: bool,
    /// … and stale.
    stale: bool,
    /// The other process it was told of.
    conflict: Option<u64>,
    /// When it died.
    died: Option<Time>,
    /// What was withdrawn may be vouched for again.
    restore: bool,
    pub(super) counts: SourceCounts,
}

/// Since the source is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SourceCounts {
    pub(super) restarts: u64,
    /// Messages of another life than the present one.
    pub(super) other_life: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Word(WordKind),
    Frame,
    Alert,
}

impl<F: Weigh, A> Source<F, A> {
    /// Of a source that was heard for the first time.
    pub(super) fn new(boot: u64, now: Time) -> Source<F, A> {
        Source {
            boot,
            life: Life::new(now),
            frames: Frames::new(FrameCounts::default()),
            alerts: Alerts::joining(AlertCounts::default()),
            before: None,
            news: false,
            told: None,
            present: false,
            stale: false,
            conflict: None,
            died: None,
            restore: false,
            counts: SourceCounts::default(),
        }
    }

    pub(super) fn boot(&self) -> u64 {
        self.boot
    }

    pub(super) fn state(&self) -> SourceState {
        self.life.state()
    }

    pub(super) fn life(&self) -> &Life {
        &self.life
    }

    pub(super) fn frames(&self) -> &Frames<F> {
        &self.frames
    }

    pub(super) fn alerts(&self) -> &Alerts<A> {
        &self.alerts
    }

    /// Whether its series, and what it has firing, are known as of the present connection; or it has been tried, and can't
    /// be had for now; or it is gone.
    pub(super) fn settled(&self, link: OwnLink) -> bool {
        let OwnLink::Up { since } = link else {
            return false;
        };
        let series = self.frames.complete() || self.frames.failures() >= 3;
        let heard = self.life.heard_at() >= since;
        let firing = self.alerts.taken_over() || self.alerts.is_late();
        self.life.is_gone() || heard && series && firing
    }

    /// Whether its series, and what it has firing, are known.
    pub(super) fn complete(&self) -> bool {
        self.frames.complete() && self.alerts.taken_over() && !self.life.is_gone()
    }

    /// Whether it has been told that it is there.
    #[cfg(test)]
    pub(super) fn present(&self) -> bool {
        self.present
    }

    /// What a pulse says, or an answer that is one.
    pub(super) fn word(&mut self, word: &Word, now: Time) -> Vec<Effect<F, A>> {
        let mut effects = Vec::new();
        if word.kind == WordKind::Answer {
            self.life.answered(now);
            if self.life.has_died() && word.boot == self.boot {
                return effects;
            }
        }
        if !self.admit(word.boot, By::Word(word.kind), now, &mut effects) {
            return effects;
        }
        self.life.set_interval(word.interval);
        if word.kind == WordKind::Birth && word.frames == 0 && !self.frames.taken_over() {
            self.news = true;
            let steps = self.alerts.is_birth();
            self.said(steps, &mut effects);
        }
        self.frames.claim(word.frames, now);
        let steps = self.alerts.claim(word.alerts, word.alerts_from, now);
        self.said(steps, &mut effects);
        let turn = if word.kind == WordKind::Death {
            self.died = Some(now);
            self.life.died(&word.reason)
        } else {
            self.died = None;
            self.life.heard(now)
        };
        self.turned(turn, &mut effects);
        self.see_restored(&mut effects);
        effects
    }

    /// `frame` is not looked at.
    pub(super) fn frame(
        &mut self,
        boot: u64,
        sequence: u64,
        frame: F,
        now: Time,
    ) -> Vec<Effect<F, A>> {
        let mut effects = Vec::new();
        if !self.admit(boot, By::Frame, now, &mut effects) || self.life.is_gone() {
            return effects;
        }
        let turn = self.life.heard(now);
        self.turned(turn, &mut effects);
        let step = self.frames.frame(sequence, frame);
        self.shown(step, &mut effects);
        effects
    }

    pub(super) fn alert(
        &mut self,
        boot: u64,
        sequence: u64,
        alert: A,
        now: Time,
    ) -> Vec<Effect<F, A>> {
        let mut effects = Vec::new();
        if !self.admit(boot, By::Alert, now, &mut effects) {
            return effects;
        }
        if !self.life.is_gone() {
            let turn = self.life.heard(now);
            self.turned(turn, &mut effects);
        }
        let steps = self.alerts.alert(sequence, alert, now);
        self.said(steps, &mut effects);
        self.see_restored(&mut effects);
        effects
    }

    /// A snapshot that was asked for has come, in parts.
    pub(super) fn snapshot(
        &mut self,
        boot: u64,
        sequence: u64,
        parts: Vec<F>,
        now: Time,
    ) -> Vec<Effect<F, A>> {
        let mut effects = Vec::new();
        if self.life.is_gone() {
            return effects;
        }
        if boot != self.boot {
            // Of the life before, or of the one after: its own messages will tell.
            self.counts.other_life = self.counts.other_life.saturating_add(1);
            return self.snapshot_failed(now);
        }
        let turn = self.life.heard(now);
        self.turned(turn, &mut effects);
        let steps = self.frames.snapshot(sequence, parts, now);
        self.shown(steps, &mut effects);
        effects
    }

    pub(super) fn snapshot_failed(&mut self, now: Time) -> Vec<Effect<F, A>> {
        let mut effects = Vec::new();
        let steps = self.frames.failed(now);
        if !self.life.is_gone() {
            self.shown(steps, &mut effects);
        }
        effects
    }

    /// Alerts of this boot that were asked for have come, or what there still is of them.
    pub(super) fn alerts_answer(
        &mut self,
        boot: u64,
        asked: (u64, u64),
        firing: Vec<A>,
        given: Vec<(u64, A)>,
        now: Time,
    ) -> Vec<Effect<F, A>> {
        let mut effects = Vec::new();
        if boot == self.boot {
            let steps = self.alerts.answer(asked, firing, given, now);
            self.said(steps, &mut effects);
            self.see_restored(&mut effects);
        }
        effects
    }

    pub(super) fn alerts_failed(
        &mut self,
        boot: u64,
        asked: (u64, u64),
        now: Time,
    ) -> Vec<Effect<F, A>> {
        let mut effects = Vec::new();
        if boot == self.boot {
            let steps = self.alerts.failed(asked, now);
            self.said(steps, &mut effects);
            self.see_restored(&mut effects);
        }
        effects
    }

    /// The server says that nobody is there to answer.
    pub(super) fn nobody(&mut self, now: Time, link: OwnLink) -> Vec<Effect<F, A>> {
        let mut effects = Vec::new();
        let turn = self.life.nobody(now, link);
        self.turned(turn, &mut effects);
        effects
    }

    pub(super) fn unanswered(&mut self, now: Time) {
        self.life.unanswered(now);
    }

    /// The own connection came up.
    pub(super) fn linked(&mut self, now: Time) {
        self.frames.encourage();
        self.alerts.encourage(now);
    }

    /// Messages were dropped on our side, nobody knows of whom.
    pub(super) fn distrust(&mut self) {
        self.frames.distrust();
    }

    pub(super) fn tick(
        &mut self,
        now: Time,
        link: OwnLink,
        patience: Patience,
    ) -> Vec<Effect<F, A>> {
        let mut effects = Vec::new();
        let turn = self.life.tick(now, link, patience);
        self.turned(turn, &mut effects);
        if link.is_up() {
            self.frames.tick(now);
            let mut steps = self.alerts.tick(now);
            if self.died.is_some_and(|died| now.since(died) >= HOLD) {
                self.died = None;
                steps.extend(self.alerts.finish(now));
            }
            self.said(steps, &mut effects);
            self.see_restored(&mut effects);
        }
        effects
    }

    /// It is forgotten: nobody will ask it any more for what is missing.
    pub(super) fn finish(&mut self, now: Time) -> Vec<Effect<F, A>> {
        let mut effects = Vec::new();
        let steps = self.alerts.finish(now);
        self.said(steps, &mut effects);
        effects
    }

    /// What it is to be asked now. Then it counts as asked.
    pub(super) fn wants(&mut self, now: Time, link: OwnLink) -> Wants {
        let probe = self.life.wants_probe(now, link);
        if !link.is_up() || self.life.is_gone() {
            return Wants {
                probe,
                ..Wants::default()
            };
        }
        let alerts = self.alerts.wants(now);
        Wants {
            probe,
            snapshot: self.frames.wants_snapshot(now),
            alerts,
            firing: alerts.is_some_and(|asked| self.alerts.wants_firing(asked)),
        }
    }

    /// Whether a message of this boot is of the present life, which it may begin.
    fn admit(&mut self, boot: u64, by: By, now: Time, effects: &mut Vec<Effect<F, A>>) -> bool {
        if boot == self.boot {
            return true;
        }
        let alive = matches!(by, By::Word(WordKind::Birth | WordKind::Heartbeat));
        if boot < self.boot && !(alive && self.state() != SourceState::Live) {
            self.counts.other_life = self.counts.other_life.saturating_add(1);
            if alive && self.conflict != Some(boot) {
                self.conflict = Some(boot);
                effects.push(Effect::Tell(SourceChange::Conflict { other: boot }));
            }
            return false;
        }
        self.restart(boot, now, effects);
        true
    }

    fn restart(&mut self, boot: u64, now: Time, effects: &mut Vec<Effect<F, A>>) {
        let steps = self.alerts.finish(now);
        self.said(steps, effects);
        effects.push(Effect::Withdraw { forever: true });
        effects.push(Effect::Clear);
        let counts = self.alerts.counts;
        // Of one that we came to late and never knew, all is still to come.
        let next = self.alerts.is_known().then(|| self.alerts.next());
        let after = boot > self.boot;
        let known = self.before.filter(|(before, _)| *before == boot);
        self.before = next.map(|next| (self.boot, next));
        self.boot = boot;
        self.life = Life::new(now);
        self.frames = Frames::new(self.frames.counts);
        self.news = after && known.is_none();
        self.alerts = match known {
            // What was told of it once is not told again.
            Some((_, next)) => Alerts::resumed(next, counts),
            None if after => Alerts::from_birth(counts),
            // It did not begin now.
            None => Alerts::joining(counts),
        };
        self.conflict = None;
        self.died = None;
        self.restore = false;
        self.counts.restarts = self.counts.restarts.saturating_add(1);
    }

    fn turned(&mut self, turn: Option<Turn>, effects: &mut Vec<Effect<F, A>>) {
        match turn {
            None => {}
            // Nobody hears of a source, or of a life, before its series are there.
            Some(Turn::Stale) if self.present && !self.stale => {
                self.stale = true;
                effects.push(Effect::Tell(SourceChange::Stale));
            }
            Some(Turn::Live) if self.stale && self.told == Some(self.boot) => {
                self.stale = false;
                effects.push(Effect::Tell(SourceChange::Live));
            }
            Some(Turn::Stale | Turn::Live) => {}
            Some(Turn::Back) => {
                self.frames = Frames::new(self.frames.counts);
                self.news = false;
                self.restore = true;
            }
            Some(Turn::Gone(why)) => {
                effects.push(Effect::Withdraw { forever: false });
                effects.push(Effect::Clear);
                if std::mem::take(&mut self.present) {
                    effects.push(Effect::Tell(SourceChange::Gone { why }));
                }
                self.stale = false;
                self.restore = false;
            }
        }
    }

    fn shown(
        &mut self,
        steps: impl IntoIterator<Item = frames::Step<F>>,
        effects: &mut Vec<Effect<F, A>>,
    ) {
        for step in steps {
            match step {
                frames::Step::Apply(frame) => effects.push(Effect::Apply(frame)),
                frames::Step::Replace(parts) => {
                    let news = self.news;
                    effects.push(Effect::Replace { parts, news });
                    self.see_present(effects);
                }
            }
        }
    }

    fn see_present(&mut self, effects: &mut Vec<Effect<F, A>>) {
        let change = match self.told {
            None => SourceChange::Born,
            Some(before) if before != self.boot => SourceChange::Restarted { before },
            Some(_) if !self.present => SourceChange::Back,
            Some(_) => return,
        };
        self.told = Some(self.boot);
        self.present = true;
        self.stale = false;
        effects.push(Effect::Tell(change));
    }

    fn said(&mut self, steps: Vec<alerts::Step<A>>, effects: &mut Vec<Effect<F, A>>) {
        let mut delivered = false;
        for step in steps {
            effects.push(match step {
                alerts::Step::Deliver(alert) => {
                    delivered = true;
                    Effect::Deliver(alert)
                }
                alerts::Step::Recall(alert) => Effect::Recall(alert),
                alerts::Step::Recalled => Effect::Recalled,
                alerts::Step::Lost(alerts) => Effect::Tell(SourceChange::AlertsLost { alerts }),
            });
        }
        if delivered && self.life.is_gone() {
            effects.push(Effect::Withdraw { forever: false });
        }
    }

    fn see_restored(&mut self, effects: &mut Vec<Effect<F, A>>) {
        if self.restore && !self.life.is_gone() && self.alerts.caught_up() {
            self.restore = false;
            effects.push(Effect::Restore);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::nats::fleet::life::GoneWhy;

    const PATIENCE: Patience = Patience {
        stale_after: None,
        gone_after: Duration::from_secs(10),
    };

    const UP: OwnLink = OwnLink::Up { since: Time::ZERO };

    fn ms(ms: u64) -> Time {
        Time::ZERO + Duration::from_millis(ms)
    }

    fn word(kind: WordKind, boot: u64, frames: u64, alerts: u64) -> Word {
        Word {
            kind,
            boot,
            interval: Duration::from_secs(1),
            frames,
            alerts,
            alerts_from: 1,
            reason: String::new(),
        }
    }

    type Pod = Source<&'static str, u64>;
    type Said = Vec<Effect<&'static str, u64>>;

    use Effect::{Apply, Clear, Deliver, Recall, Recalled, Replace, Restore, Tell, Withdraw};
    use WordKind::{Answer, Birth, Death, Heartbeat};

    /// Known since boot 5 with two frames, and no alerts.
    fn known() -> Pod {
        let mut pod = Pod::new(5, ms(0));
        let said = pod.word(&word(Heartbeat, 5, 2, 0), ms(0));
        assert_eq!(said, [Recalled]);
        assert!(pod.wants(ms(0), UP).snapshot);
        let said = pod.snapshot(5, 2, vec!["all"], ms(1));
        let parts = vec!["all"];
        let news = false;
        assert_eq!(said, [Replace { parts, news }, Tell(SourceChange::Born)]);
        pod
    }

    fn gone(pod: &mut Pod, at: u64) -> Said {
        let mut said = pod.tick(ms(at), UP, PATIENCE);
        said.extend(pod.tick(ms(at), UP, PATIENCE));
        said
    }

    #[test]
    fn a_source_that_was_there_before_us_is_told_with_its_series_and_they_are_no_news() {
        let mut pod = known();
        assert!(pod.complete() && pod.present());
        assert_eq!(pod.frame(5, 3, "c", ms(2)), [Apply("c")]);
    }

    #[test]
    fn a_source_that_is_born_under_our_eyes_is_news() {
        let mut pod = Pod::new(5, ms(0));
        // By another subscription, and a little earlier.
        assert_eq!(pod.frame(5, 1, "a", ms(0)), []);
        assert_eq!(pod.alert(5, 1, 1, ms(0)), []);
        assert_eq!(pod.word(&word(Birth, 5, 0, 0), ms(1)), [Deliver(1)]);
        assert!(pod.wants(ms(1), UP).snapshot);
        let said = pod.snapshot(5, 1, vec!["all"], ms(2));
        let (parts, news) = (vec!["all"], true);
        assert_eq!(said, [Replace { parts, news }, Tell(SourceChange::Born)]);
    }

    #[test]
    fn who_is_known_by_a_frame_only_is_asked_who_it_is() {
        let mut pod = Pod::new(5, ms(0));
        pod.frame(5, 9, "i", ms(0));
        let wants = pod.wants(ms(0), UP);
        assert!(wants.probe && wants.snapshot);
        assert_eq!(pod.word(&word(Answer, 5, 9, 0), ms(1)), [Recalled]);
        assert!(!pod.wants(ms(1000), UP).probe);
    }

    #[test]
    fn a_higher_boot_is_a_restart_and_everything_of_the_old_life_ends() {
        let mut pod = known();
        let said = pod.frame(8, 1, "a", ms(100));
        assert_eq!(said, [Withdraw { forever: true }, Clear]);
        assert!(pod.wants(ms(100), UP).snapshot);
        assert_eq!(pod.alert(8, 1, 1, ms(100)), [Deliver(1)]);
        let said = pod.snapshot(8, 1, vec!["new"], ms(101));
        let (parts, news, before) = (vec!["new"], true, 5);
        let restarted = Tell(SourceChange::Restarted { before });
        assert_eq!(said, [Replace { parts, news }, restarted]);
        assert_eq!(pod.counts.restarts, 1);
    }

    #[test]
    fn a_restart_before_the_first_life_was_taken_over_is_a_birth() {
        let mut pod = Pod::new(5, ms(0));
        pod.word(&word(Heartbeat, 5, 2, 0), ms(0));
        pod.word(&word(Heartbeat, 6, 2, 0), ms(1));
        assert!(pod.wants(ms(1), UP).snapshot);
        let said = pod.snapshot(6, 2, vec!["all"], ms(2));
        assert_eq!(said.last(), Some(&Tell(SourceChange::Born)));
    }

    #[test]
    fn a_snapshot_of_the_life_before_is_not_shown() {
        let mut pod = known();
        pod.frame(5, 9, "i", ms(0));
        assert!(pod.wants(ms(2000), UP).snapshot);
        pod.word(&word(Heartbeat, 8, 0, 0), ms(2000));
        assert!(pod.wants(ms(2000), UP).snapshot);
        assert_eq!(pod.snapshot(5, 9, vec!["old"], ms(2001)), []);
        assert!(!pod.complete());
        assert!(pod.wants(ms(3000), UP).snapshot, "asked again");
    }

    #[test]
    fn a_lower_boot_is_ignored_and_told_once_as_a_conflict() {
        let mut pod = known();
        assert_eq!(pod.frame(4, 7, "x", ms(10)), []);
        assert_eq!(pod.alert(4, 7, 7, ms(10)), []);
        let conflict = Tell(SourceChange::Conflict { other: 4 });
        assert_eq!(pod.word(&word(Heartbeat, 4, 7, 7), ms(10)), [conflict]);
        assert_eq!(pod.word(&word(Heartbeat, 4, 8, 7), ms(20)), []);
        assert_eq!(pod.counts.other_life, 4);
        assert_eq!(pod.boot(), 5);
    }

    #[test]
    fn the_death_of_the_life_before_is_no_conflict() {
        let mut pod = known();
        assert_eq!(pod.word(&word(Death, 4, 7, 7), ms(10)), []);
        assert_eq!(pod.state(), SourceState::Live);
    }

    #[test]
    fn a_lower_boot_counts_once_the_known_life_is_over_as_its_clock_was_set_back() {
        let mut pod = known();
        assert_eq!(
            pod.tick(ms(3001), UP, PATIENCE),
            [Tell(SourceChange::Stale)]
        );
        assert_eq!(pod.frame(4, 1, "a", ms(3002)), [], "a pulse has to say so");
        let said = pod.word(&word(Heartbeat, 4, 1, 0), ms(3003));
        assert_eq!(said, [Withdraw { forever: true }, Clear, Recalled]);
        assert_eq!(pod.boot(), 4);
    }

    #[test]
    fn a_double_that_lived_for_a_moment_does_not_make_news_of_old_alerts() {
        let mut pod = known();
        assert_eq!(pod.alert(5, 1, 1, ms(1)), [Deliver(1)]);
        assert_eq!(pod.alert(5, 2, 2, ms(2)), [Deliver(2)]);
        // A second process with its identity, which ends at once.
        pod.word(&word(Birth, 8, 0, 0), ms(100));
        pod.word(&word(Death, 8, 0, 0), ms(200));
        assert_eq!(pod.alert(5, 3, 3, ms(300)), [], "nobody knows of whom");
        let said = pod.word(&word(Heartbeat, 5, 2, 3), ms(1000));
        assert_eq!(said, [Withdraw { forever: true }, Clear]);
        // What was said meanwhile is news, and what was said before tells what is firing.
        let asked = pod.wants(ms(1200), UP).alerts.unwrap();
        assert_eq!(asked, (3, 3));
        let said = pod.alerts_answer(5, asked, Vec::new(), vec![(3, 3)], ms(1201));
        assert_eq!(said, [Deliver(3)]);
        let asked = pod.wants(ms(1202), UP).alerts.unwrap();
        assert_eq!(asked, (1, 3));
        let given = vec![(1, 1), (2, 2), (3, 3)];
        let said = pod.alerts_answer(5, asked, Vec::new(), given, ms(1203));
        assert_eq!(said, [Recall(1), Recall(2), Recall(3), Recalled]);
        let said = pod.snapshot(5, 2, vec!["all"], ms(1204));
        let (parts, news) = (vec!["all"], false);
        assert_eq!(said[0], Replace { parts, news });
        assert_eq!(
            (pod.alerts().counts.delivered, pod.alerts().counts.lost),
            (3, 0)
        );
    }

    #[test]
    fn a_lower_boot_that_was_not_known_before_is_joined_late() {
        let mut pod = known();
        pod.word(&word(Death, 5, 2, 0), ms(10));
        let said = pod.word(&word(Heartbeat, 4, 7, 2), ms(20));
        assert_eq!(said, [Withdraw { forever: true }, Clear]);
        assert_eq!(pod.wants(ms(20), UP).alerts, Some((1, 2)));
        let said = pod.alerts_answer(4, (1, 2), Vec::new(), vec![(1, 1), (2, 2)], ms(21));
        assert_eq!(said, [Recall(1), Recall(2), Recalled]);
        // One that says that it begins has said nothing before.
        pod.word(&word(Death, 4, 7, 2), ms(30));
        pod.word(&word(Birth, 3, 0, 0), ms(40));
        assert_eq!(pod.alert(3, 1, 1, ms(41)), [Deliver(1)]);
        let said = pod.snapshot(3, 0, Vec::new(), ms(1042));
        assert_eq!(said, []);
        assert!(pod.wants(ms(1043), UP).snapshot);
        let said = pod.snapshot(3, 0, Vec::new(), ms(1044));
        let (parts, news) = (Vec::new(), true);
        assert_eq!(said[0], Replace { parts, news });
    }

    #[test]
    fn a_boot_beyond_all_measure_does_not_lock_the_source_out() {
        let mut pod = known();
        pod.frame(u64::MAX, 1, "x", ms(10));
        assert_eq!(pod.boot(), u64::MAX);
        // Nobody says any more of that.
        pod.tick(ms(3100), UP, PATIENCE);
        pod.word(&word(Heartbeat, 5, 2, 0), ms(3100));
        assert_eq!(pod.boot(), 5);
    }

    #[test]
    fn a_source_that_says_that_it_dies_is_gone_at_once() {
        let mut pod = known();
        let said = pod.word(&word(Death, 5, 2, 0), ms(10));
        let why = GoneWhy::Died {
            reason: String::new(),
        };
        let gone = Tell(SourceChange::Gone { why });
        assert_eq!(said, [Withdraw { forever: false }, Clear, gone]);
        // What was on its way.
        assert_eq!(pod.frame(5, 3, "c", ms(11)), []);
        assert_eq!(pod.word(&word(Answer, 5, 3, 0), ms(11)), []);
        assert_eq!(pod.snapshot(5, 3, vec!["all"], ms(11)), []);
        let said = pod.alert(5, 1, 1, ms(11));
        assert_eq!(said, [Deliver(1), Withdraw { forever: false }]);
        assert_eq!(pod.state(), SourceState::Gone);
        assert!(!pod.wants(ms(60_000), UP).any());
    }

    #[test]
    fn alerts_that_a_dead_source_said_and_nobody_got_are_counted() {
        let mut pod = known();
        pod.word(&word(Death, 5, 2, 3), ms(10));
        assert_eq!(pod.alert(5, 1, 1, ms(11))[0], Deliver(1));
        assert_eq!(pod.tick(ms(2009), UP, PATIENCE), []);
        let lost = Tell(SourceChange::AlertsLost { alerts: 2 });
        assert_eq!(pod.tick(ms(2010), UP, PATIENCE), [lost]);
        assert_eq!(pod.alerts().counts.lost, 2);
    }

    #[test]
    fn what_a_life_said_and_nobody_got_is_lost_with_it() {
        let mut pod = known();
        pod.word(&word(Heartbeat, 5, 2, 4), ms(10));
        assert_eq!(pod.alert(5, 3, 3, ms(10)), []);
        let said = pod.word(&word(Birth, 8, 0, 0), ms(20));
        let lost = |alerts| Tell(SourceChange::AlertsLost { alerts });
        assert_eq!(
            said,
            [
                lost(2),
                Deliver(3),
                lost(1),
                Withdraw { forever: true },
                Clear
            ]
        );
    }

    #[test]
    fn a_source_that_is_silent_gets_stale_and_gone_and_comes_back_by_snapshot() {
        let mut pod = known();
        assert_eq!(
            pod.tick(ms(3001), UP, PATIENCE),
            [Tell(SourceChange::Stale)]
        );
        let why = GoneWhy::Silent;
        let told = Tell(SourceChange::Gone { why });
        let said = gone(&mut pod, 10_001);
        assert_eq!(said, [Withdraw { forever: false }, Clear, told]);
        // A frame does not bring it back: it may be an old one.
        assert_eq!(pod.frame(5, 3, "c", ms(10_002)), []);
        let said = pod.word(&word(Heartbeat, 5, 3, 0), ms(10_003));
        assert_eq!(said, [Restore]);
        assert!(pod.wants(ms(10_003), UP).snapshot);
        let said = pod.snapshot(5, 3, vec!["all"], ms(10_004));
        let (parts, news) = (vec!["all"], false);
        assert_eq!(said, [Replace { parts, news }, Tell(SourceChange::Back)]);
    }

    #[test]
    fn what_was_withdrawn_is_vouched_for_again_once_all_that_was_said_meanwhile_is_known() {
        let mut pod = known();
        pod.alert(5, 1, 1, ms(1));
        gone(&mut pod, 10_001);
        let said = pod.word(&word(Heartbeat, 5, 2, 3), ms(20_000));
        assert_eq!(said, []);
        let asked = pod.wants(ms(20_200), UP).alerts.unwrap();
        assert_eq!(asked, (2, 3));
        let said = pod.alerts_answer(5, asked, Vec::new(), vec![(2, 2), (3, 3)], ms(20_201));
        assert_eq!(said, [Deliver(2), Deliver(3), Restore]);
    }

    #[test]
    fn a_late_joiner_recalls_the_alerts_of_the_life_it_finds() {
        let mut pod = Pod::new(5, ms(0));
        assert_eq!(pod.word(&word(Answer, 5, 2, 2), ms(0)), []);
        assert_eq!(pod.wants(ms(0), UP).alerts, Some((1, 2)));
        assert!(!pod.settled(UP));
        let said = pod.alerts_answer(5, (1, 2), Vec::new(), vec![(1, 1), (2, 2)], ms(1));
        assert_eq!(said, [Recall(1), Recall(2), Recalled]);
        assert!(!pod.settled(UP), "its series are not known yet");
    }

    #[test]
    fn a_source_that_gives_no_snapshot_is_not_waited_for_and_never_told() {
        let mut pod = Pod::new(5, ms(0));
        pod.word(&word(Answer, 5, 2, 0), ms(0));
        for at in [0, 1000, 2000] {
            assert!(!pod.settled(UP));
            assert!(pod.wants(ms(at), UP).snapshot);
            assert_eq!(pod.snapshot_failed(ms(at)), []);
        }
        assert!(pod.settled(UP) && !pod.complete());
        assert_eq!(gone(&mut pod, 60_000), [Withdraw { forever: false }, Clear]);
    }

    #[test]
    fn without_a_connection_nobody_is_asked() {
        let mut pod = Pod::new(5, ms(0));
        pod.word(&word(Heartbeat, 5, 2, 2), ms(0));
        assert!(!pod.wants(ms(9000), OwnLink::Down).any());
        assert!(pod.wants(ms(9000), UP).any());
    }

    /// A message of some life, or the passing of time.
    #[derive(Clone, Debug)]
    enum Event {
        Word(WordKind, u64, u64, u64),
        Frame(u64, u64),
        Alert(u64, u64),
        Snapshot(u64, u64),
        Alerts(u64),
        Fails,
        Nobody,
        Link(bool),
        Wait(u64),
    }

    fn event() -> impl Strategy<Value = Event> {
        let kind = prop_oneof![Just(Birth), Just(Heartbeat), Just(Death), Just(Answer)];
        let boot = 1u64..4;
        let n = 0u64..12;
        prop_oneof![
            (kind, boot.clone(), n.clone(), n.clone())
                .prop_map(|(k, b, f, a)| Event::Word(k, b, f, a)),
            (boot.clone(), n.clone()).prop_map(|(b, s)| Event::Frame(b, s)),
            (boot.clone(), n.clone()).prop_map(|(b, s)| Event::Alert(b, s)),
            (boot.clone(), n).prop_map(|(b, s)| Event::Snapshot(b, s)),
            boot.prop_map(Event::Alerts),
            Just(Event::Fails),
            Just(Event::Nobody),
            any::<bool>().prop_map(Event::Link),
            (0u64..6000).prop_map(Event::Wait),
        ]
    }

    proptest! {
        /// Whatever comes, in whatever order: series are shown only between a snapshot and an end, nobody hears of a source
        /// that has no series, and events take turns.
        #[test]
        fn nothing_is_told_or_shown_that_is_not_there(events in prop::collection::vec(event(), 0..120)) {
            let mut pod = Pod::new(1, ms(0));
            let mut now = ms(0);
            let mut link = UP;
            let (mut shown, mut present, mut stale) = (false, false, false);
            for event in events {
                let wants = pod.wants(now, link);
                let mut said = match event {
                    Event::Word(kind, boot, frames, alerts) => pod.word(&word(kind, boot, frames, alerts), now),
                    Event::Frame(boot, sequence) => pod.frame(boot, sequence, "f", now),
                    Event::Alert(boot, sequence) => pod.alert(boot, sequence, sequence, now),
                    Event::Snapshot(boot, sequence) => pod.snapshot(boot, sequence, vec!["s"], now),
                    Event::Alerts(boot) => match wants.alerts {
                        Some((from, to)) => pod.alerts_answer(boot, (from, to), Vec::new(), (from..=to).map(|s| (s, s)).collect(), now),
                        None => Vec::new(),
                    },
                    Event::Fails => pod.snapshot_failed(now),
                    Event::Nobody => pod.nobody(now, link),
                    Event::Link(true) => {
                        link = OwnLink::Up { since: now };
                        pod.linked(now);
                        Vec::new()
                    }
                    Event::Link(false) => {
                        link = OwnLink::Down;
                        Vec::new()
                    }
                    Event::Wait(wait) => {
                        now = now + Duration::from_millis(wait);
                        Vec::new()
                    }
                };
                said.extend(pod.tick(now, link, PATIENCE));
                for effect in said {
                    match effect {
                        Replace { .. } => shown = true,
                        Apply(_) => prop_assert!(shown),
                        Clear => shown = false,
                        Tell(SourceChange::Born | SourceChange::Restarted { .. } | SourceChange::Back) => {
                            prop_assert!(shown);
                            (present, stale) = (true, false);
                        }
                        Tell(SourceChange::Stale) => {
                            prop_assert!(present && !stale);
                            stale = true;
                        }
                        Tell(SourceChange::Live) => {
                            prop_assert!(present && stale);
                            stale = false;
                        }
                        Tell(SourceChange::Gone { .. }) => {
                            prop_assert!(present && !shown);
                            present = false;
                        }
                        _ => {}
                    }
                }
                prop_assert_eq!(present, pod.present());
                if pod.state() == SourceState::Gone {
                    prop_assert!(!shown && !present);
                }
            }
        }
    }
}
