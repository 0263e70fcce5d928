//! The alerts of one life of a source, in order and exactly once: a pure state machine.
//!
//! Alerts are numbered 1, 2, 3 … in each life. The source keeps the newest, and gives them again when asked.
//!
//! | known | what comes | what is done |
//! |---|---|---|
//! | all up to n | alert n+1 | delivered |
//! | all up to n | alert ≤ n | nothing, counted: a duplicate |
//! | all up to n | alert m > n+1 | held back; n+1 … m−1 are asked for |
//! | all up to n | a pulse that speaks of m > n, and m has not come [`GRACE`] later | n+1 … m are asked for |
//! | a gap before what is held | the answer | delivered, and what was held; what is not in it is lost, counted |
//! | a gap before what is held | more than [`HELD_MAX`] to hold | the newest is let go, to be asked for later |
//! | a gap before what is held | [`TRIES`] questions failed, and nothing came for [`HOLD`]; or nothing for [`HOLD_MAX`]; own connection up | the gap is lost, counted; what was held is delivered |
//! | nothing: we came late | a pulse that speaks of m | 1 … m are asked for: they tell what is firing, and are no news |
//! | nothing: we came late | an alert | held back until that is known |
//! | nothing: we came late | [`TRIES`] questions failed | what comes is news; what was said until then is asked for all the same, ever later, until it is known |
//! | all up to n, for [`SETTLED`] already | a pulse that speaks of m < n | we were misled: n is m |
//! | all up to n | a pulse that speaks of m > n + [`AHEAD_MAX`] | ignored, unless it goes on for [`SETTLED`]: then what the source has no more is lost, counted |
//!
//! Where the source keeps not all from 1 on, it is also asked what is firing: what it fired for longest is not among the
//! alerts it keeps.

use std::{collections::BTreeMap, time::Duration};

use super::frames::{GRACE, SETTLED, backoff};
use crate::time::Time;

/// How long alerts are held back for those before them, where nobody answers.
pub(super) const HOLD: Duration = Duration::from_secs(2);

/// The same where an answer may still come: a source that has a lot to send after an outage is slow to answer.
pub(super) const HOLD_MAX: Duration = Duration::from_secs(15);

pub(super) const HELD_MAX: usize = 1_000;

/// How many are asked for at once: no more than a source tells at once, as what an answer lacks is lost.
pub(super) const ASK_MAX: u64 = crate::nats::wire::limits::ALERTS_ASKED_MAX as u64;

/// Nobody misses more. What is further ahead is a mistake, or malice.
const AHEAD_MAX: u64 = 1_000_000;

/// How often something is asked for, before we do without.
const TRIES: u32 = 5;

#[derive(Debug)]
pub(super) struct Alerts<A> {
    /// The number of the next to deliver.
    next: u64,
    /// Whether those up to `joined` are told as what is firing, rather than as news.
    joined: Joined,
    /// Where that could not be had at first: what is still to be told of it.
    late: Option<Late>,
    held: BTreeMap<u64, A>,
    /// Since when the first of the held waits.
    held_since: Time,
    /// The greatest number that a pulse spoke of; and when it should have come.
    claimed: Option<(u64, Time)>,
    /// So many there are, as pulses say.
    known: u64,
    /// The oldest that could be asked for when we came.
    oldest: u64,
    /// Nothing has been told yet of what was said before we came.
    untold: bool,
    /// The oldest that can be asked for, as far as is known. What is before it is not asked for one by one.
    kept_from: u64,
    /// Since when pulses speak of more than can be.
    beyond_since: Option<Time>,
    /// What we knew some time ago, and when that was.
    next_then: (u64, Time),
    asked: Option<(u64, u64)>,
    not_before: Time,
    failures: u32,
    pub(super) counts: AlertCounts,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Joined {
    /// We came late, and know nothing yet.
    Not,
    /// We came late: those up to here tell what is firing.
    UpTo(u64),
    /// All is news.
    Done,
}

/// A takeover that goes on while there is news. It ends when it has caught up with the news: only all together tells what
/// is firing.
#[derive(Clone, Copy, Debug)]
struct Late {
    /// The next to tell.
    next: u64,
    asked: Option<(u64, u64)>,
    not_before: Time,
    failures: u32,
}

/// Since the source is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct AlertCounts {
    pub(super) delivered: u64,
    pub(super) duplicates: u64,
    /// Which the source had said, and nobody could get any more.
    pub(super) lost: u64,
    pub(super) failed: u64,
}

/// What is to be done with the alerts of a source, in this order.
#[derive(Debug, PartialEq)]
pub(super) enum Step<A> {
    /// It is news.
    Deliver(A),
    /// It was said before we came: it tells what is firing.
    Recall(A),
    /// All that was said before we came has been told.
    Recalled,
    /// So many can't be had any more.
    Lost(u64),
}

impl<A> Alerts<A> {
    /// Of a life that began under our eyes: all is news.
    pub(super) fn from_birth(counts: AlertCounts) -> Alerts<A> {
        Alerts {
            joined: Joined::Done,
            ..Alerts::joining(counts)
        }
    }

    /// Of a life that we have known before, up to this number: what was said since is news, and all before that tells what
    /// is firing.
    pub(super) fn resumed(next: u64, counts: AlertCounts) -> Alerts<A> {
        let late = (next > 1).then_some(Late {
            next: 1,
            asked: None,
            not_before: Time::ZERO,
            failures: 0,
        });
        Alerts {
            next,
            late,
            ..Alerts::from_birth(counts)
        }
    }

    /// The next that is to come.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Of a life that we come to late.
    pub(super) fn joining(counts: AlertCounts) -> Alerts<A> {
        Alerts {
            next: 1,
            joined: Joined::Not,
            late: None,
            held: BTreeMap::new(),
            held_since: Time::ZERO,
            claimed: None,
            known: 0,
            oldest: 0,
            untold: true,
            kept_from: 0,
            beyond_since: None,
            next_then: (0, Time::ZERO),
            asked: None,
            not_before: Time::ZERO,
            failures: 0,
            counts,
        }
    }

    /// It turns out that the life began under our eyes.
    pub(super) fn is_birth(&mut self) -> Vec<Step<A>> {
        if self.joined == Joined::Done || self.next > 1 {
            return Vec::new();
        }
        self.joined = Joined::Done;
        self.release()
    }

    /// Whether what was firing before we came is known.
    pub(super) fn taken_over(&self) -> bool {
        self.joined == Joined::Done && self.late.is_none()
    }

    /// Whether all from some number on has been told, or counted, as news.
    pub(super) fn is_known(&self) -> bool {
        self.joined == Joined::Done
    }

    /// Whether that could not be had so far. It is still asked for, and nobody should wait for it.
    pub(super) fn is_late(&self) -> bool {
        self.late.is_some()
    }

    /// Whether all that pulses spoke of has been delivered.
    pub(super) fn caught_up(&self) -> bool {
        self.taken_over() && self.next > self.known && self.held.is_empty()
    }

    pub(super) fn alert(&mut self, sequence: u64, alert: A, now: Time) -> Vec<Step<A>> {
        if sequence < self.next || sequence - self.next > AHEAD_MAX {
            self.counts.duplicates = self.counts.duplicates.saturating_add(1);
            return Vec::new();
        }
        if self.held.is_empty() {
            self.held_since = now;
        }
        if self.held.insert(sequence, alert).is_some() {
            self.counts.duplicates = self.counts.duplicates.saturating_add(1);
        }
        if self.joined != Joined::Done {
            // A pulse is late by seconds: the newest count.
            if self.held.len() > HELD_MAX {
                self.held.pop_first();
            }
            return Vec::new();
        }
        let steps = self.release();
        if self.held.len() > HELD_MAX
            && let Some((newest, _)) = self.held.pop_last()
        {
            // A burst must not cost what the source still has. It keeps the newest the longest.
            self.known = self.known.max(newest);
            self.claimed = self.claimed.max(Some((newest, now + GRACE)));
        }
        steps
    }

    /// A pulse says that so many have been said, and which is the oldest that can be asked for.
    pub(super) fn claim(&mut self, said: u64, oldest: u64, now: Time) -> Vec<Step<A>> {
        let (then, at) = self.next_then;
        if now.since(at) >= SETTLED {
            if self.joined != Joined::Not && said.saturating_add(1) < then {
                // None of what that number made us believe may stay.
                self.next = said.saturating_add(1);
                self.known = said;
                self.kept_from = 0;
                self.held.clear();
                self.asked = None;
                self.claimed = None;
                // What is firing is to be had again, too.
                if self.joined != Joined::Done || self.late.take().is_some() {
                    self.joined = Joined::Not;
                }
            }
            self.next_then = (self.next, now);
        }
        let end = said.saturating_add(1);
        let mut steps = Vec::new();
        if self.joined != Joined::Done || said.saturating_sub(self.next) <= AHEAD_MAX {
            self.beyond_since = None;
        } else {
            // One such number is a mistake. It can also be that we have been away for very long.
            let since = *self.beyond_since.get_or_insert(now);
            if now.since(since) < SETTLED {
                return steps;
            }
            self.beyond_since = None;
            steps = self.skip_to(oldest.clamp(end.saturating_sub(AHEAD_MAX), end), now);
        }
        self.known = self.known.max(said);
        self.kept_from = self.kept_from.max(oldest.min(end));
        if self.joined == Joined::Not {
            self.joined = Joined::UpTo(said);
            // What can't be had any more tells nothing.
            self.oldest = oldest.clamp(end.saturating_sub(AHEAD_MAX).max(1), end);
            self.next = self.oldest;
            return self.see_joined();
        }
        if said >= self.next && self.claimed.is_none_or(|(claimed, _)| claimed < self.next) {
            self.claimed = Some((said, now + GRACE));
        }
        steps
    }

    /// Does without all before this one that has not come.
    fn skip_to(&mut self, sequence: u64, now: Time) -> Vec<Step<A>> {
        let mut steps = Vec::new();
        while self.held.keys().next().is_some_and(|held| *held < sequence) {
            steps.extend(self.give_up(now));
        }
        if self.next < sequence {
            self.lose(sequence - self.next, &mut steps);
            self.next = sequence;
            self.asked = None;
        }
        steps.extend(self.release());
        steps
    }

    /// The numbers that are to be asked for now. Then they count as asked.
    pub(super) fn wants(&mut self, now: Time) -> Option<(u64, u64)> {
        self.wants_missing(now).or_else(|| self.wants_late(now))
    }

    fn wants_late(&mut self, now: Time) -> Option<(u64, u64)> {
        let late = self.late.as_mut()?;
        if late.asked.is_some() || now < late.not_before {
            return None;
        }
        let to = self.next - 1;
        let from = late.next.max(self.kept_from.min(to));
        late.asked = Some((from, to.min(from.saturating_add(ASK_MAX - 1))));
        late.asked
    }

    fn wants_missing(&mut self, now: Time) -> Option<(u64, u64)> {
        if self.asked.is_some() || now < self.not_before {
            return None;
        }
        let to = match (self.joined, self.held.first_key_value(), self.claimed) {
            (Joined::Not, ..) => return None,
            (Joined::UpTo(said), ..) => said,
            (Joined::Done, Some((first, _)), _) => first - 1,
            (Joined::Done, None, Some((said, until))) if now >= until => said,
            _ => return None,
        };
        if to < self.next {
            return None;
        }
        // What the source has no more is not asked for: that could take very many questions.
        let from = self.next.max(self.kept_from.min(to));
        self.asked = Some((from, to.min(from.saturating_add(ASK_MAX - 1))));
        self.asked
    }

    /// Whether with these it is also to be asked what is firing.
    pub(super) fn wants_firing(&self, asked: (u64, u64)) -> bool {
        let late = self.late.is_some_and(|late| late.asked == Some(asked));
        let recalls = late || matches!(self.joined, Joined::UpTo(_));
        recalls && self.untold && asked.0 > 1
    }

    /// What was asked for has come, or what there still is of it; and what was firing before.
    pub(super) fn answer(
        &mut self,
        asked: (u64, u64),
        firing: Vec<A>,
        given: Vec<(u64, A)>,
        now: Time,
    ) -> Vec<Step<A>> {
        if self.late.is_some_and(|late| late.asked == Some(asked)) {
            return self.late_answer(asked, firing, given);
        }
        // A question that was given up has no answer.
        let Some((from, to)) = self.asked.take_if(|open| *open == asked) else {
            return Vec::new();
        };
        self.failures = 0;
        let mut given: BTreeMap<u64, A> = given.into_iter().collect();
        let mut steps = Vec::new();
        let recall = matches!(self.joined, Joined::UpTo(_));
        if recall {
            self.untold = false;
            steps.extend(firing.into_iter().map(Step::Recall));
        }
        given.retain(|sequence, _| (from..=to).contains(sequence));
        // What came by itself meanwhile is as good.
        while let Some((&first, _)) = self.held.first_key_value()
            && first <= to
            && let Some(alert) = self.held.remove(&first)
        {
            given.entry(first).or_insert(alert);
        }
        for (sequence, alert) in given {
            if sequence < self.next {
                continue;
            }
            if recall {
                steps.push(Step::Recall(alert));
            } else {
                self.lose(sequence - self.next, &mut steps);
                self.deliver(alert, &mut steps);
            }
            self.next = sequence.saturating_add(1);
        }
        let end = to.saturating_add(1);
        if !recall {
            self.lose(end.saturating_sub(self.next), &mut steps);
        }
        self.next = self.next.max(end);
        if !self.held.is_empty() {
            self.held_since = now;
        }
        steps.extend(self.see_joined());
        steps
    }

    fn late_answer(
        &mut self,
        (_, to): (u64, u64),
        firing: Vec<A>,
        given: Vec<(u64, A)>,
    ) -> Vec<Step<A>> {
        let Some(late) = &mut self.late else {
            return Vec::new();
        };
        let all: BTreeMap<u64, A> = given.into_iter().collect();
        let told = all
            .into_iter()
            .filter(|(n, _)| (late.next..=to).contains(n));
        let all = firing.into_iter().chain(told.map(|(_, alert)| alert));
        let mut steps: Vec<_> = all.map(Step::Recall).collect();
        self.untold = false;
        late.next = to.saturating_add(1);
        late.asked = None;
        late.failures = 0;
        if late.next >= self.next {
            self.late = None;
            steps.push(Step::Recalled);
        }
        steps
    }

    /// It did not come, or could not be read.
    pub(super) fn failed(&mut self, asked: (u64, u64), now: Time) -> Vec<Step<A>> {
        if let Some(late) = &mut self.late
            && late.asked.take_if(|open| *open == asked).is_some()
        {
            self.counts.failed = self.counts.failed.saturating_add(1);
            late.failures = late.failures.saturating_add(1);
            late.not_before = now + backoff(late.failures);
            return Vec::new();
        }
        if self.asked.take_if(|open| *open == asked).is_none() {
            return Vec::new();
        }
        self.counts.failed = self.counts.failed.saturating_add(1);
        self.failures = self.failures.saturating_add(1);
        self.not_before = now + backoff(self.failures);
        if let Joined::UpTo(said) = self.joined
            && self.failures >= TRIES
        {
            // News must not wait for it for ever: it may be that we may not ask.
            self.late = Some(Late {
                next: self.next,
                asked: None,
                not_before: self.not_before,
                failures: self.failures,
            });
            self.next = said.saturating_add(1);
            return self.see_joined();
        }
        Vec::new()
    }

    /// The own connection came up: what failed may go well now, and who was waited for could not be heard.
    pub(super) fn encourage(&mut self, now: Time) {
        self.failures = 0;
        self.not_before = Time::ZERO;
        if let Some(late) = &mut self.late {
            late.failures = 0;
            late.not_before = Time::ZERO;
        }
        self.held_since = now;
    }

    /// Sees whether the first of the held has waited for long enough. Not while the own connection is down.
    pub(super) fn tick(&mut self, now: Time) -> Vec<Step<A>> {
        if self.claimed.is_some_and(|(said, _)| said < self.next) {
            self.claimed = None;
        }
        let hold = match self.failures >= TRIES {
            true => HOLD,
            false => HOLD_MAX,
        };
        let due = self.joined == Joined::Done && now.since(self.held_since) >= hold;
        if self.held.is_empty() || !due {
            return Vec::new();
        }
        self.give_up(now)
    }

    /// The life is over, and nobody can be asked any more: what is held is delivered, and what is missing is lost.
    pub(super) fn finish(&mut self, now: Time) -> Vec<Step<A>> {
        if self.joined != Joined::Done {
            // What we came late to is no news, and so no loss.
            return Vec::new();
        }
        let mut steps = Vec::new();
        while !self.held.is_empty() {
            steps.extend(self.give_up(now));
        }
        if self.known >= self.next {
            let end = self.known.saturating_add(1);
            self.lose(end - self.next, &mut steps);
            self.next = end;
        }
        self.asked = None;
        self.late = None;
        steps
    }

    /// Ends a takeover that is complete.
    fn see_joined(&mut self) -> Vec<Step<A>> {
        let mut steps = Vec::new();
        if let Joined::UpTo(said) = self.joined {
            if self.next <= said {
                return steps;
            }
            self.joined = Joined::Done;
            self.failures = 0;
            self.not_before = Time::ZERO;
            self.held = self.held.split_off(&self.next);
            if self.late.is_none() {
                steps.push(Step::Recalled);
            }
        }
        steps.extend(self.release());
        steps
    }

    fn give_up(&mut self, now: Time) -> Vec<Step<A>> {
        let mut steps = Vec::new();
        if let Some((&first, _)) = self.held.first_key_value() {
            self.lose(first - self.next, &mut steps);
            self.next = first;
            // An answer that comes after all has nothing to add to that.
            self.asked = None;
            self.held_since = now;
        }
        steps.extend(self.release());
        steps
    }

    fn lose(&mut self, alerts: u64, steps: &mut Vec<Step<A>>) {
        if alerts == 0 {
            return;
        }
        self.counts.lost = self.counts.lost.saturating_add(alerts);
        match steps.last_mut() {
            Some(Step::Lost(lost)) => *lost = lost.saturating_add(alerts),
            _ => steps.push(Step::Lost(alerts)),
        }
    }

    fn deliver(&mut self, alert: A, steps: &mut Vec<Step<A>>) {
        self.counts.delivered = self.counts.delivered.saturating_add(1);
        steps.push(Step::Deliver(alert));
    }

    /// What is held and is next.
    fn release(&mut self) -> Vec<Step<A>> {
        let mut steps = Vec::new();
        while let Some(alert) = self.held.remove(&self.next) {
            self.next = self.next.saturating_add(1);
            self.deliver(alert, &mut steps);
        }
        steps
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(ms: u64) -> Time {
        Time::ZERO + Duration::from_millis(ms)
    }

    fn given(sequences: impl IntoIterator<Item = u64>) -> Vec<(u64, u64)> {
        sequences.into_iter().map(|s| (s, s)).collect()
    }

    fn born() -> Alerts<u64> {
        Alerts::from_birth(AlertCounts::default())
    }

    use Step::{Deliver, Lost, Recall, Recalled};

    #[test]
    fn alerts_in_order_are_delivered_once() {
        let mut alerts = born();
        assert_eq!(alerts.alert(1, 1, ms(0)), [Deliver(1)]);
        assert_eq!(alerts.alert(1, 1, ms(0)), []);
        assert_eq!(alerts.alert(2, 2, ms(0)), [Deliver(2)]);
        assert_eq!(alerts.counts.duplicates, 1);
    }

    #[test]
    fn a_gap_is_asked_for_and_mended_in_order() {
        let mut alerts = born();
        assert_eq!(alerts.alert(4, 4, ms(0)), []);
        assert_eq!(alerts.wants(ms(0)), Some((1, 3)));
        assert_eq!(alerts.wants(ms(0)), None, "one question at a time");
        assert_eq!(alerts.alert(5, 5, ms(1)), []);
        let steps = alerts.answer((1, 3), Vec::new(), given([1, 2, 3]), ms(2));
        assert_eq!(steps, [1, 2, 3, 4, 5].map(Deliver));
        assert_eq!(alerts.counts.lost, 0);
    }

    #[test]
    fn what_the_answer_lacks_is_lost_exactly() {
        let mut alerts = born();
        alerts.alert(6, 6, ms(0));
        assert_eq!(alerts.wants(ms(0)), Some((1, 5)));
        let steps = alerts.answer((1, 5), Vec::new(), given([3, 5]), ms(1));
        assert_eq!(
            steps,
            [Lost(2), Deliver(3), Lost(1), Deliver(5), Deliver(6)]
        );
        assert_eq!(alerts.counts.lost, 3);
    }

    #[test]
    fn alerts_are_held_back_for_two_seconds_where_nobody_answers() {
        let mut alerts = born();
        alerts.alert(3, 3, ms(0));
        for _ in 0..TRIES {
            alerts.not_before = ms(0);
            assert_eq!(alerts.wants(ms(0)), Some((1, 2)));
            alerts.failed((1, 2), ms(0));
        }
        assert_eq!(alerts.tick(ms(1999)), []);
        assert_eq!(alerts.tick(ms(2000)), [Lost(2), Deliver(3)]);
        // One that comes after all is no news any more.
        assert_eq!(alerts.alert(2, 2, ms(2001)), []);
        assert_eq!(alerts.counts.lost, 2);
    }

    #[test]
    fn alerts_are_held_back_for_longer_where_an_answer_may_still_come() {
        let mut alerts = born();
        alerts.alert(3, 3, ms(0));
        assert_eq!(alerts.wants(ms(0)), Some((1, 2)));
        alerts.failed((1, 2), ms(1000));
        assert_eq!(alerts.tick(ms(14_999)), []);
        assert_eq!(alerts.tick(ms(15_000)), [Lost(2), Deliver(3)]);
    }

    #[test]
    fn an_outage_of_our_own_gives_the_held_more_time() {
        let mut alerts = born();
        alerts.alert(3, 3, ms(0));
        alerts.encourage(ms(60_000));
        assert_eq!(alerts.tick(ms(74_999)), []);
        assert_eq!(alerts.wants(ms(74_999)), Some((1, 2)));
    }

    #[test]
    fn a_burst_after_a_gap_is_bounded_and_costs_nothing() {
        let mut alerts = born();
        for sequence in 2..=3_000 {
            assert_eq!(alerts.alert(sequence, sequence, ms(0)), []);
            assert!(alerts.held.len() <= HELD_MAX);
        }
        assert_eq!(alerts.wants(ms(0)), Some((1, 1)));
        let mut heard = alerts.answer((1, 1), Vec::new(), given([1]), ms(1)).len() as u64;
        assert_eq!(heard, 1001);
        // The rest is there as soon as it is asked for.
        while let Some((from, to)) = alerts.wants(ms(1000)) {
            assert_eq!(from, heard + 1);
            heard += alerts
                .answer((from, to), Vec::new(), given(from..=to), ms(1000))
                .len() as u64;
        }
        assert_eq!((heard, alerts.counts.lost), (3_000, 0));
        assert!(alerts.caught_up());
    }

    #[test]
    fn the_loss_of_the_last_alert_is_found_by_the_pulse() {
        let mut alerts = born();
        alerts.alert(1, 1, ms(0));
        assert_eq!(alerts.claim(3, 1, ms(1000)), []);
        assert_eq!(alerts.wants(ms(1199)), None);
        assert_eq!(alerts.alert(2, 2, ms(1199)), [Deliver(2)]);
        assert_eq!(alerts.wants(ms(1200)), Some((3, 3)));
        assert_eq!(
            alerts.answer((3, 3), Vec::new(), given([3]), ms(1201)),
            [Deliver(3)]
        );
        assert!(alerts.caught_up());
        assert_eq!(alerts.wants(ms(9000)), None);
    }

    #[test]
    fn a_late_joiner_recalls_what_was_said_and_then_hears_news() {
        let mut alerts = Alerts::joining(AlertCounts::default());
        assert_eq!(alerts.alert(8, 8, ms(0)), [], "held until it is known");
        assert_eq!(alerts.wants(ms(0)), None);
        assert_eq!(alerts.claim(7, 4, ms(1)), []);
        assert_eq!(alerts.wants(ms(1)), Some((4, 7)));
        let steps = alerts.answer((4, 7), Vec::new(), given([4, 6, 7]), ms(2));
        assert_eq!(
            steps,
            [Recall(4), Recall(6), Recall(7), Recalled, Deliver(8)]
        );
        assert_eq!((alerts.counts.lost, alerts.counts.delivered), (0, 1));
    }

    #[test]
    fn a_late_joiner_of_a_silent_source_has_nothing_to_recall() {
        let mut alerts = Alerts::<u64>::joining(AlertCounts::default());
        assert_eq!(alerts.claim(0, 1, ms(0)), [Recalled]);
        assert_eq!(alerts.alert(1, 1, ms(1)), [Deliver(1)]);
        // None of those that were said is kept.
        let mut alerts = Alerts::<u64>::joining(AlertCounts::default());
        assert_eq!(alerts.claim(7, 8, ms(0)), [Recalled]);
        assert_eq!(alerts.alert(8, 8, ms(1)), [Deliver(8)]);
    }

    #[test]
    fn a_late_joiner_hears_news_where_nobody_answers_and_goes_on_asking() {
        let mut alerts = Alerts::joining(AlertCounts::default());
        alerts.claim(7, 1, ms(0));
        alerts.alert(8, 8, ms(0));
        let mut now = ms(0);
        let mut said = Vec::new();
        for _ in 0..TRIES {
            assert_eq!(alerts.wants(now), Some((1, 7)));
            said = alerts.failed((1, 7), now);
            now = now + Duration::from_secs(10);
        }
        assert_eq!(said, [Deliver(8)]);
        assert!(!alerts.taken_over() && alerts.is_late());
        // What has been said since is asked for as well: it tells what still fires.
        let asked = alerts.wants(now).unwrap();
        assert_eq!(asked, (1, 8));
        assert_eq!(alerts.failed(asked, now), []);
        assert_eq!(alerts.wants(now + Duration::from_secs(7)), None, "later");
        now = now + Duration::from_secs(10);
        assert_eq!(alerts.wants(now), Some(asked));
        // Meanwhile there is news, which has to be told of, too.
        assert_eq!(alerts.alert(9, 9, now), [Deliver(9)]);
        let steps = alerts.answer(asked, Vec::new(), given(1..=8), now);
        assert_eq!(steps, (1..=8).map(Recall).collect::<Vec<_>>());
        let asked = alerts.wants(now).unwrap();
        assert_eq!(asked, (9, 9));
        let steps = alerts.answer(asked, Vec::new(), given([9]), now);
        assert_eq!(steps, [Recall(9), Recalled]);
        assert!(alerts.taken_over());
        assert_eq!((alerts.counts.delivered, alerts.counts.lost), (2, 0));
    }

    #[test]
    fn a_takeover_that_is_late_does_not_keep_a_gap_from_being_mended() {
        let mut alerts = Alerts::joining(AlertCounts::default());
        alerts.claim(7, 5, ms(0));
        let mut now = ms(0);
        for _ in 0..TRIES {
            assert_eq!(alerts.wants(now), Some((5, 7)));
            alerts.failed((5, 7), now);
            now = now + Duration::from_secs(10);
        }
        assert_eq!(alerts.wants(now), Some((5, 7)));
        assert!(alerts.wants_firing((5, 7)));
        assert_eq!(alerts.alert(9, 9, now), []);
        assert_eq!(alerts.wants(now), Some((8, 8)));
        assert!(!alerts.wants_firing((8, 8)));
        let steps = alerts.answer((8, 8), Vec::new(), given([8]), now);
        assert_eq!(steps, [Deliver(8), Deliver(9)]);
        let steps = alerts.answer((5, 7), vec![0], given([5, 6, 7]), now);
        assert_eq!(steps, [0, 5, 6, 7].map(Recall));
        assert_eq!(alerts.wants(now), Some((8, 9)));
        assert!(!alerts.wants_firing((8, 9)));
    }

    #[test]
    fn of_a_life_that_was_known_before_only_the_rest_is_news() {
        let mut alerts = Alerts::resumed(4, AlertCounts::default());
        assert_eq!(alerts.alert(3, 3, ms(0)), []);
        assert_eq!(alerts.claim(5, 2, ms(0)), []);
        assert_eq!(alerts.alert(4, 4, ms(0)), [Deliver(4)]);
        let asked = alerts.wants(ms(0)).unwrap();
        assert_eq!(asked, (2, 4));
        assert!(alerts.wants_firing(asked));
        let steps = alerts.answer(asked, vec![0], given([2, 3, 4]), ms(1));
        assert_eq!(
            steps,
            [Recall(0), Recall(2), Recall(3), Recall(4), Recalled]
        );
        assert_eq!(alerts.alert(5, 5, ms(2)), [Deliver(5)]);
    }

    #[test]
    fn a_question_that_was_given_up_has_no_answer() {
        let mut alerts = born();
        alerts.alert(3, 3, ms(0));
        assert_eq!(alerts.wants(ms(0)), Some((1, 2)));
        assert_eq!(alerts.tick(ms(15_000)), [Lost(2), Deliver(3)]);
        alerts.alert(6, 6, ms(15_000));
        assert_eq!(alerts.wants(ms(15_000)), Some((4, 5)));
        assert_eq!(
            alerts.answer((1, 2), Vec::new(), given([1, 2]), ms(15_001)),
            []
        );
        let steps = alerts.answer((4, 5), Vec::new(), given([4, 5]), ms(15_002));
        assert_eq!(steps, [4, 5, 6].map(Deliver));
    }

    #[test]
    fn at_the_end_of_a_life_what_is_held_is_delivered_and_the_rest_is_lost() {
        let mut alerts = born();
        alerts.alert(3, 3, ms(0));
        alerts.alert(5, 5, ms(0));
        alerts.claim(7, 1, ms(0));
        assert_eq!(alerts.wants(ms(0)), Some((1, 2)));
        let steps = alerts.finish(ms(1));
        assert_eq!(steps, [Lost(2), Deliver(3), Lost(1), Deliver(5), Lost(2)]);
        assert_eq!(alerts.answer((1, 2), Vec::new(), given([1, 2]), ms(2)), []);
        assert_eq!(alerts.finish(ms(3)), []);
    }

    #[test]
    fn where_not_all_is_kept_what_is_firing_is_asked_for_too_and_comes_first() {
        let mut alerts = Alerts::<u64>::joining(AlertCounts::default());
        alerts.claim(7, 1, ms(0));
        assert!(!alerts.wants_firing((1, 7)));
        let mut alerts = Alerts::joining(AlertCounts::default());
        alerts.claim(7, 6, ms(0));
        assert!(alerts.wants_firing((6, 7)));
        assert_eq!(alerts.wants(ms(0)), Some((6, 7)));
        let steps = alerts.answer((6, 7), vec![0], given([6, 7]), ms(1));
        assert_eq!(steps, [Recall(0), Recall(6), Recall(7), Recalled]);
    }

    #[test]
    fn a_number_beyond_all_measure_is_ignored_and_one_that_misled_us_is_mended() {
        let mut alerts = born();
        assert_eq!(alerts.alert(u64::MAX, 0, ms(0)), []);
        assert_eq!(alerts.alert(1, 1, ms(0)), [Deliver(1)]);
        alerts.alert(900, 900, ms(0));
        let steps = alerts.tick(ms(15_000));
        assert_eq!(steps, [Lost(898), Deliver(900)]);
        assert_eq!(alerts.claim(2, 1, ms(16_000)), [], "it may be late");
        assert_eq!(alerts.alert(3, 3, ms(16_001)), []);
        assert_eq!(alerts.claim(2, 1, ms(26_000)), []);
        assert_eq!(alerts.alert(3, 3, ms(26_001)), [Deliver(3)]);
    }

    #[test]
    fn a_pulse_beyond_all_measure_is_ignored() {
        let mut alerts = born();
        assert_eq!(alerts.alert(1, 1, ms(0)), [Deliver(1)]);
        assert_eq!(alerts.claim(1 << 60, 1, ms(0)), []);
        for second in 1..60 {
            assert_eq!(alerts.wants(ms(second * 1000)), None);
            assert_eq!(alerts.claim(1, 1, ms(second * 1000)), []);
        }
        assert_eq!(alerts.alert(2, 2, ms(60_000)), [Deliver(2)]);
        assert!(alerts.caught_up());
        assert_eq!(alerts.counts.lost, 0);
    }

    #[test]
    fn who_was_away_for_very_long_skips_what_is_kept_no_more_at_once() {
        let mut alerts = born();
        alerts.alert(1, 1, ms(0));
        let (said, oldest) = (5_000_000, 4_999_998);
        assert_eq!(alerts.claim(said, oldest, ms(1000)), []);
        assert_eq!(alerts.wants(ms(2000)), None);
        assert_eq!(
            alerts.claim(said, oldest, ms(11_000)),
            [Lost(oldest - 2)],
            "it goes on saying so"
        );
        let asked = alerts.wants(ms(12_000)).unwrap();
        assert_eq!(asked, (oldest, said));
        let steps = alerts.answer(asked, Vec::new(), given(oldest..=said), ms(12_001));
        assert_eq!(steps, [oldest, oldest + 1, said].map(Deliver));
    }

    #[test]
    fn what_the_source_has_no_more_is_not_asked_for() {
        let mut alerts = born();
        alerts.alert(1, 1, ms(0));
        assert_eq!(alerts.claim(500_000, 499_999, ms(1000)), []);
        let asked = alerts.wants(ms(2000)).unwrap();
        assert_eq!(asked, (499_999, 500_000));
        let steps = alerts.answer(asked, Vec::new(), given([499_999, 500_000]), ms(2001));
        assert_eq!(steps, [Lost(499_997), Deliver(499_999), Deliver(500_000)]);
        assert_eq!(alerts.wants(ms(3000)), None);
    }

    #[test]
    fn who_was_misled_by_a_pulse_asks_no_more_for_what_it_spoke_of() {
        let mut alerts = born();
        alerts.alert(1, 1, ms(0));
        // Just believable.
        alerts.claim(900_000, 1, ms(0));
        let asked = alerts.wants(ms(1000)).unwrap();
        alerts.answer(asked, Vec::new(), Vec::new(), ms(1001));
        alerts.claim(1, 1, ms(2000));
        alerts.claim(1, 1, ms(13_000));
        alerts.claim(1, 1, ms(24_000));
        assert_eq!(alerts.wants(ms(25_000)), None);
        assert_eq!(alerts.alert(2, 2, ms(25_001)), [Deliver(2)]);
    }

    #[test]
    fn a_late_joiner_is_misled_for_a_while_only() {
        let mut alerts = Alerts::joining(AlertCounts::default());
        alerts.claim(1 << 60, 1, ms(0));
        let (from, _) = alerts.wants(ms(0)).unwrap();
        assert!(from >= (1 << 60) - AHEAD_MAX);
        alerts.claim(2, 1, ms(10_000));
        alerts.claim(2, 1, ms(21_000));
        assert_eq!(alerts.wants(ms(21_000)), Some((1, 2)));
        let steps = alerts.answer((1, 2), Vec::new(), given([1, 2]), ms(21_001));
        assert_eq!(steps, [Recall(1), Recall(2), Recalled]);
    }

    #[test]
    fn long_histories_are_asked_for_in_steps() {
        let mut alerts = Alerts::joining(AlertCounts::default());
        alerts.claim(2500, 1, ms(0));
        let mut asked = Vec::new();
        while let Some((from, to)) = alerts.wants(ms(0)) {
            asked.push((from, to));
            alerts.answer((from, to), Vec::new(), given(from..=to), ms(0));
        }
        assert_eq!(asked, [(1, 1000), (1001, 2000), (2001, 2500)]);
        assert!(alerts.taken_over());
    }

    #[derive(Clone, Debug)]
    enum Event {
        Say { lost: bool },
        Again(u64),
        Pulse,
        Answer { fails: bool },
        Wait(u64),
    }

    proptest! {
        /// Whatever is lost, doubled or late: each alert is delivered once at most, in order, and what is not delivered is
        /// counted as lost, to the last one.
        #[test]
        fn each_is_delivered_once_and_in_order_or_counted(events in prop::collection::vec(prop_oneof![
            4 => any::<bool>().prop_map(|lost| Event::Say { lost }),
            1 => (1u64..40).prop_map(Event::Again),
            1 => Just(Event::Pulse),
            2 => any::<bool>().prop_map(|fails| Event::Answer { fails }),
            1 => (0u64..2500).prop_map(Event::Wait),
        ], 0..80), retained in 1u64..20) {
            let mut alerts = born();
            let (mut said, mut now) = (0u64, Time::ZERO);
            let mut asked = None;
            let (mut heard, mut lost) = (0u64, 0u64);
            let settle = (0..90).flat_map(|_| [Event::Pulse, Event::Wait(12_000), Event::Answer { fails: false }]);
            for event in events.into_iter().chain(settle) {
                let steps = match event {
                    Event::Say { lost } => {
                        said += 1;
                        if lost { Vec::new() } else { alerts.alert(said, said, now) }
                    }
                    Event::Again(n) if n <= said => alerts.alert(n, n, now),
                    Event::Again(_) => Vec::new(),
                    Event::Pulse => alerts.claim(said, said.saturating_sub(retained) + 1, now),
                    Event::Answer { fails } => match asked.take() {
                        Some(ask) if fails => alerts.failed(ask, now),
                        Some((from, to)) => {
                            let oldest = said.saturating_sub(retained) + 1;
                            alerts.answer((from, to), Vec::new(), given((from..=to).filter(|s| *s >= oldest)), now)
                        }
                        None => Vec::new(),
                    },
                    Event::Wait(ms) => {
                        now = now + Duration::from_millis(ms);
                        Vec::new()
                    }
                };
                for step in steps.into_iter().chain(alerts.tick(now)) {
                    match step {
                        Deliver(n) => {
                            prop_assert_eq!(n, heard + lost + 1);
                            heard += 1;
                        }
                        Lost(n) => lost += n,
                        other => prop_assert!(false, "{:?}", other),
                    }
                }
                if let Some(ask) = alerts.wants(now) {
                    asked = Some(ask);
                }
            }
            prop_assert_eq!(heard + lost, said);
            prop_assert_eq!((alerts.counts.delivered, alerts.counts.lost), (heard, lost));
        }
    }
}
