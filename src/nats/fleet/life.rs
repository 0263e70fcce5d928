//! Whether a source lives, by the fleet's own clock: a pure state machine that is told what was heard, and when.
//!
//! | state | what happens | next |
//! |---|---|---|
//! | live | something was heard | live |
//! | live | something was heard, but no pulse yet | asked for one |
//! | live | nothing for `stale_after` (three intervals unless told otherwise) | stale |
//! | live, stale | nothing for 1.5 intervals, own connection up | asked whether it is there, until it answers |
//! | live, stale | two answers in a row that nobody listens ("no responders") | gone |
//! | live, stale | it said that it dies | gone |
//! | stale | nothing for `gone_after` | gone |
//! | stale | something was heard | live |
//! | gone | a pulse was heard | live, "back" |
//!
//! "No responders" proves something only while the own connection is up, and a source that was cut off together with us
//! would be back: of a source not heard since the connection came up, once that is [`RETURN`] ago.
//!
//! Dates in messages decide nothing here. A source whose clock is wrong is as alive as any.

use std::time::Duration;

use crate::time::{Time, nanos};

/// How long a source may take to find back to a server, before its absence proves something.
pub(super) const RETURN: Duration = Duration::from_secs(5);

/// As what a source's own interval counts. With less we would probe it all the time; with more it would not be found dead
/// for long: nobody is left for live for more than three of these. One that says less often that it lives is asked.
const INTERVAL_MIN: Duration = Duration::from_millis(20);
const INTERVAL_MAX: Duration = Duration::from_secs(60);

/// What is assumed of a source that has not yet told its interval.
const INTERVAL_DEFAULT: Duration = Duration::from_secs(1);

/// How many answers that nobody is there prove it.
const PROOF: u8 = 2;

/// How long silence is borne.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// `None`: three intervals of the source.
    pub(super) stale_after: Option<Duration>,
    pub(super) gone_after: Duration,
}

/// The fleet's own connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OwnLink {
    Down,
    Up { since: Time },
}

impl OwnLink {
    pub(super) fn is_up(self) -> bool {
        self != OwnLink::Down
    }
}

/// How a source stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SourceState {
    /// It was heard lately.
    Live,
    /// Nothing was heard of it for too long. What it last said is still shown.
    Stale,
    /// It is dead, or nobody can vouch for it any more: nothing of it is shown.
    Gone,
}

impl SourceState {
    /// `live`, `stale` or `gone`.
    pub fn as_str(self) -> &'static str {
        match self {
            SourceState::Live => "live",
            SourceState::Stale => "stale",
            SourceState::Gone => "gone",
        }
    }
}

impl std::fmt::Display for SourceState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a source is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GoneWhy {
    /// It said so, and why.
    Died {
        /// In its own words; empty where it gave none.
        reason: String,
    },
    /// Nothing was heard of it for `gone_after`.
    Silent,
    /// The server says that nobody answers for it any more: it was killed, or has lost its connection.
    NoResponders,
    /// The fleet itself has had no connection for too long.
    Unreachable,
    /// The fleet itself has failed, by a mistake in this library.
    Failed,
}

impl std::fmt::Display for GoneWhy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            GoneWhy::Died { reason } if reason.is_empty() => f.write_str("it ended"),
            GoneWhy::Died { reason } => write!(f, "it ended: {reason}"),
            GoneWhy::Silent => f.write_str("nothing was heard of it"),
            GoneWhy::NoResponders => f.write_str("nobody answers for it"),
            GoneWhy::Unreachable => f.write_str("the fleet's own connection is down"),
            GoneWhy::Failed => f.write_str("the fleet itself has failed"),
        }
    }
}

/// A change of state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Stale,
    /// Was stale.
    Live,
    /// Was gone.
    Back,
    Gone(GoneWhy),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Probe {
    /// Not now; not before this time.
    Idle { not_before: Time },
    /// Asked, and no answer yet.
    Asked,
}

#[derive(Debug)]
pub(super) struct Life {
    state: SourceState,
    heard: Time,
    /// As it says, and as it counts.
    said: Duration,
    interval: Duration,
    probe: Probe,
    /// Answers in a row that nobody is there.
    nobody: u8,
    /// It said that it dies.
    died: bool,
    /// Its interval, and more, is not known yet.
    curious: bool,
}

impl Life {
    /// Of a source that was heard for the first time.
    pub(super) fn new(now: Time) -> Life {
        Life {
            state: SourceState::Live,
            heard: now,
            said: INTERVAL_DEFAULT,
            interval: INTERVAL_DEFAULT,
            probe: Probe::Idle {
                not_before: Time::ZERO,
            },
            nobody: 0,
            died: false,
            curious: true,
        }
    }

    pub(super) fn state(&self) -> SourceState {
        self.state
    }

    pub(super) fn is_gone(&self) -> bool {
        self.state == SourceState::Gone
    }

    /// Whether it is gone by its own word.
    pub(super) fn has_died(&self) -> bool {
        self.died
    }

    /// When it was last heard.
    pub(super) fn heard_at(&self) -> Time {
        self.heard
    }

    /// What it says of its own interval.
    pub(super) fn said_interval(&self) -> Duration {
        self.said
    }

    /// It says how often it says that it lives.
    pub(super) fn set_interval(&mut self, interval: Duration) {
        self.said = interval;
        self.interval = interval.clamp(INTERVAL_MIN, INTERVAL_MAX);
        self.curious = false;
    }

    /// Something was heard that proves it alive.
    pub(super) fn heard(&mut self, now: Time) -> Option<Turn> {
        self.heard = self.heard.max(now);
        self.nobody = 0;
        self.died = false;
        match std::mem::replace(&mut self.state, SourceState::Live) {
            SourceState::Live => None,
            SourceState::Stale => Some(Turn::Live),
            SourceState::Gone => Some(Turn::Back),
        }
    }

    /// It says that it dies.
    pub(super) fn died(&mut self, reason: &str) -> Option<Turn> {
        self.died = true;
        let reason = reason.to_owned();
        self.go(GoneWhy::Died { reason })
    }

    fn go(&mut self, why: GoneWhy) -> Option<Turn> {
        if self.is_gone() {
            return None;
        }
        self.state = SourceState::Gone;
        Some(Turn::Gone(why))
    }

    /// Whether it is to be asked now if it is there. Then it counts as asked.
    pub(super) fn wants_probe(&mut self, now: Time, link: OwnLink) -> bool {
        let OwnLink::Up { since } = link else {
            // What was answered before says nothing of what is after.
            self.probe = Probe::Idle { not_before: now };
            self.nobody = 0;
            return false;
        };
        let Probe::Idle { not_before } = self.probe else {
            return false;
        };
        let may_be_on_its_way = self.heard < since && now.since(since) < RETURN;
        let late = now.since(self.heard) >= self.interval + self.interval / 2;
        let wanted = self.curious || late && !may_be_on_its_way;
        let due = !self.is_gone() && wanted && now >= not_before;
        if due {
            self.probe = Probe::Asked;
        }
        due
    }

    /// The server says that nobody is there to answer.
    pub(super) fn nobody(&mut self, now: Time, link: OwnLink) -> Option<Turn> {
        if self.probe != Probe::Asked || !link.is_up() {
            return None;
        }
        self.nobody += 1;
        if self.nobody >= PROOF {
            self.nobody = 0;
            self.probe = Probe::Idle { not_before: now };
            return self.go(GoneWhy::NoResponders);
        }
        self.probe = Probe::Idle {
            not_before: now + self.interval / 4,
        };
        None
    }

    /// The answer did not come: it may be there, and busy.
    pub(super) fn unanswered(&mut self, now: Time) {
        self.nobody = 0;
        self.probe = Probe::Idle {
            not_before: now + self.interval,
        };
    }

    /// It answered. What it said is told by [`heard`](Life::heard).
    pub(super) fn answered(&mut self, now: Time) {
        self.unanswered(now);
    }

    pub(super) fn tick(&mut self, now: Time, link: OwnLink, patience: Patience) -> Option<Turn> {
        let silence = now.since(self.heard);
        let stale_after = patience.stale_after.unwrap_or(self.interval * 3);
        match self.state {
            SourceState::Live if silence >= stale_after => {
                self.state = SourceState::Stale;
                Some(Turn::Stale)
            }
            // Never without having been stale for a moment: who hears of it hears of both.
            SourceState::Stale if nanos(silence) >= nanos(patience.gone_after.max(stale_after)) => {
                self.go(if link.is_up() {
                    GoneWhy::Silent
                } else {
                    GoneWhy::Unreachable
                })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience {
        stale_after: None,
        gone_after: Duration::from_secs(10),
    };

    fn ms(ms: u64) -> Time {
        Time::ZERO + Duration::from_millis(ms)
    }

    fn up(since: u64) -> OwnLink {
        OwnLink::Up { since: ms(since) }
    }

    fn of_a_second() -> Life {
        let mut life = Life::new(ms(0));
        life.set_interval(Duration::from_secs(1));
        life
    }

    #[test]
    fn who_is_known_by_a_frame_only_is_asked_for_its_pulse() {
        let mut life = Life::new(ms(0));
        assert!(life.wants_probe(ms(0), up(0)));
        life.answered(ms(1));
        life.set_interval(Duration::from_secs(1));
        life.heard(ms(1));
        assert!(!life.wants_probe(ms(1500), up(0)));
    }

    #[test]
    fn silence_makes_stale_after_three_intervals_and_gone_after_its_time() {
        let mut life = Life::new(ms(0));
        life.set_interval(Duration::from_millis(500));
        assert_eq!(life.tick(ms(1499), up(0), PATIENCE), None);
        assert_eq!(life.tick(ms(1500), up(0), PATIENCE), Some(Turn::Stale));
        assert_eq!(life.tick(ms(9999), up(0), PATIENCE), None);
        let gone = Some(Turn::Gone(GoneWhy::Silent));
        assert_eq!(life.tick(ms(10_000), up(0), PATIENCE), gone);
        assert_eq!(life.tick(ms(20_000), up(0), PATIENCE), None);
        assert_eq!(life.heard(ms(20_001)), Some(Turn::Back));
    }

    #[test]
    fn a_long_interval_is_not_taken_for_death() {
        let mut life = Life::new(ms(0));
        life.set_interval(Duration::from_secs(30));
        assert_eq!(life.tick(ms(60_000), up(0), PATIENCE), None);
        assert_eq!(life.tick(ms(90_000), up(0), PATIENCE), Some(Turn::Stale));
    }

    #[test]
    fn whatever_interval_a_source_says_it_is_asked_and_gone_within_minutes() {
        let mut life = Life::new(ms(0));
        life.set_interval(Duration::from_secs(3600));
        assert_eq!(life.said_interval(), Duration::from_secs(3600));
        assert!(!life.wants_probe(ms(89_999), up(0)));
        // It is there, and answers: so it stays.
        assert!(life.wants_probe(ms(90_000), up(0)));
        life.answered(ms(90_001));
        life.heard(ms(90_001));
        assert_eq!(life.tick(ms(180_000), up(0), PATIENCE), None);
        assert_eq!(life.tick(ms(270_001), up(0), PATIENCE), Some(Turn::Stale));
        let gone = Some(Turn::Gone(GoneWhy::Silent));
        assert_eq!(life.tick(ms(270_001), up(0), PATIENCE), gone);
    }

    #[test]
    fn without_a_connection_of_our_own_the_reason_says_so() {
        let mut life = Life::new(ms(0));
        assert_eq!(
            life.tick(ms(10_000), OwnLink::Down, PATIENCE),
            Some(Turn::Stale)
        );
        assert_eq!(
            life.tick(ms(10_000), OwnLink::Down, PATIENCE),
            Some(Turn::Gone(GoneWhy::Unreachable))
        );
    }

    #[test]
    fn two_answers_that_nobody_is_there_prove_it_and_one_does_not() {
        let mut life = of_a_second();
        assert!(!life.wants_probe(ms(1499), up(0)));
        assert!(life.wants_probe(ms(1500), up(0)));
        assert!(!life.wants_probe(ms(1600), up(0)), "one question at a time");
        assert_eq!(life.nobody(ms(1501), up(0)), None);
        assert!(!life.wants_probe(ms(1700), up(0)));
        assert!(life.wants_probe(ms(1751), up(0)));
        let gone = Some(Turn::Gone(GoneWhy::NoResponders));
        assert_eq!(life.nobody(ms(1752), up(0)), gone);
    }

    #[test]
    fn a_question_without_an_answer_proves_nothing() {
        let mut life = of_a_second();
        assert!(life.wants_probe(ms(1500), up(0)));
        assert_eq!(life.nobody(ms(1501), up(0)), None);
        assert!(life.wants_probe(ms(1800), up(0)));
        life.unanswered(ms(2000));
        assert!(life.wants_probe(ms(3000), up(0)));
        assert_eq!(life.nobody(ms(3001), up(0)), None);
    }

    #[test]
    fn who_was_cut_off_with_us_gets_time_to_return() {
        let mut life = of_a_second();
        // Our connection came up after the source was last heard.
        assert!(!life.wants_probe(ms(7_999), up(3_000)));
        assert!(life.wants_probe(ms(8_000), up(3_000)));
        // The connection fails before the second answer: it begins anew.
        assert_eq!(life.nobody(ms(8_001), up(3_000)), None);
        assert!(!life.wants_probe(ms(8_300), OwnLink::Down));
        assert!(life.wants_probe(ms(14_000), up(9_000)));
        assert_eq!(life.nobody(ms(14_001), up(9_000)), None);
    }

    #[test]
    fn who_says_that_it_dies_is_gone_at_once_and_once() {
        let mut life = Life::new(ms(0));
        let reason = "shutdown".to_owned();
        let gone = Some(Turn::Gone(GoneWhy::Died { reason }));
        assert_eq!(life.died("shutdown"), gone);
        assert_eq!(life.died("shutdown"), None);
        assert!(!life.wants_probe(ms(60_000), up(0)));
    }
}
