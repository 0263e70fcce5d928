//! The time side of a rule: M of N slots, hold, keep firing. A pure state machine, one per group and level: no clock, no
//! lock, no values; it is stepped with times and with whether the condition holds.
//!
//! ```text
//!              begins            hold is over
//!   Inactive ──────────► Pending ───────────► Firing ◄─────┐
//!      ▲  ▲    ceases       │                   │ ceases   │ begins
//!      │  └─────────────────┘                   ▼          │
//!      └───────────────────────────────────── Clearing ────┘
//!                    keep is over
//! ```
//!
//! Whoever steps it at a time first lets pass what was [due](Machine::due) until then, so that a timer that comes late
//! changes nothing but the moment at which one hears of it.

use std::time::Duration;

use super::{RuleState, Slots};
use crate::time::{Time, nanos};

/// How a rule treats time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timing {
    pub(crate) hold: Duration,
    pub(crate) keep: Duration,
    pub(crate) slots: Option<Slots>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum Phase {
    #[default]
    Inactive,
    /// Holds since.
    Pending {
        since: Time,
    },
    Firing {
        since: Time,
    },
    /// Pending since before a restart, and until `due`: time in which the process was down does not count.
    #[cfg_attr(not(feature = "persist"), allow(dead_code))]
    Restored {
        since: Time,
        due: Time,
    },
    /// Fires since, and does not hold since `ceased`.
    Clearing {
        since: Time,
        ceased: Time,
    },
}

impl Phase {
    pub(crate) fn state(self) -> RuleState {
        match self {
            Phase::Inactive => RuleState::Inactive,
            Phase::Pending { .. } | Phase::Restored { .. } => RuleState::Pending,
            Phase::Firing { .. } => RuleState::Firing,
            Phase::Clearing { .. } => RuleState::Clearing,
        }
    }
}

/// In which of the last slots the condition held: bit 0 is the present one.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    bits: u64,
    slot: u64,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Machine {
    phase: Phase,
    /// Whether the condition holds now.
    holds: bool,
    tally: Tally,
}

impl Machine {
    /// As it was before a restart or a change of its rule.
    pub(crate) fn restored(phase: Phase) -> Machine {
        let holds = !matches!(phase, Phase::Inactive | Phase::Clearing { .. });
        Machine {
            phase,
            holds,
            // Until more is known: as far back as one looks it was as it is.
            tally: Tally {
                bits: if holds { u64::MAX } else { 0 },
                slot: 0,
            },
        }
    }

    /// In which slots before a restart the condition held.
    pub(crate) fn recall(&mut self, bits: u64) {
        self.tally.bits = bits;
    }

    /// In which slots the condition held, by bits from the present one on.
    #[cfg(feature = "persist")]
    pub(crate) fn slots(&self) -> u64 {
        self.tally.bits
    }

    /// Goes on from before a restart: the present slot is the one of then, since those in between count neither for nor
    /// against.
    pub(crate) fn resume(&mut self, slots: Option<Slots>, now: Time) {
        if let Some(slots) = slots {
            self.tally.bits &= slots.all();
            self.tally.slot = now.0 / nanos(slots.width);
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    pub(crate) fn state(&self) -> RuleState {
        self.phase.state()
    }

    pub(crate) fn is_firing(&self) -> bool {
        self.state().is_firing()
    }

    /// Since when the condition has held; `None` while inactive.
    pub(crate) fn since(&self) -> Option<Time> {
        match self.phase {
            Phase::Inactive => None,
            Phase::Pending { since }
            | Phase::Restored { since, .. }
            | Phase::Firing { since }
            | Phase::Clearing { since, .. } => Some(since),
        }
    }

    /// When time alone changes something next.
    pub(crate) fn due(&self, timing: &Timing) -> Option<Time> {
        let phase = self.phase_due(timing);
        let slot = timing.slots.and_then(|slots| {
            // While it goes on holding, or not, in all slots, the next is like them.
            let like_all = if self.holds { slots.all() } else { 0 };
            let next = (self.tally.slot + 1).checked_mul(nanos(slots.width))?;
            (self.tally.bits != like_all).then_some(Time(next))
        });
        match (phase, slot) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    fn phase_due(&self, timing: &Timing) -> Option<Time> {
        match self.phase {
            Phase::Pending { since } => Some(since + timing.hold),
            Phase::Restored { due, .. } => Some(due),
            Phase::Clearing { ceased, .. } => Some(ceased + timing.keep),
            Phase::Inactive | Phase::Firing { .. } => None,
        }
    }

    /// Time comes to `at`: a hold or a keep that ends here is over. What was held for long enough up to here was, even
    /// where a slot that ends at the same instant takes the ground away; so this comes before [`turn`](Machine::turn), and
    /// is told by itself.
    pub(crate) fn expire(&mut self, timing: &Timing, at: Time) {
        if self.phase_due(timing).is_none_or(|due| due > at) {
            return;
        }
        self.phase = match self.phase {
            Phase::Pending { since } | Phase::Restored { since, .. } => Phase::Firing { since },
            _ => Phase::Inactive,
        };
    }

    /// Time comes to `at`: a slot may begin here.
    pub(crate) fn turn(&mut self, timing: &Timing, at: Time) {
        if timing.slots.is_some() {
            let holds = self.count(timing, self.holds, self.holds, at);
            self.flow(timing, holds, at);
        }
    }

    /// The condition holds, or does not, from `now` on. Nothing is due before.
    pub(crate) fn step(&mut self, timing: &Timing, holds: bool, now: Time) {
        let held = std::mem::replace(&mut self.holds, holds);
        let holds = self.count(timing, held, holds, now);
        self.flow(timing, holds, now);
    }

    /// Forgets in which slots the condition held: the rule has slots of another width from `now` on.
    pub(crate) fn reslot(&mut self, slots: Option<Slots>, now: Time) {
        self.tally = Tally {
            bits: 0,
            slot: slots.map_or(0, |slots| now.0 / nanos(slots.width)),
        };
    }

    /// The rule has other times from `now` on. A hold that is longer than the condition has held for makes a firing
    /// machine pending.
    pub(crate) fn retime(&mut self, timing: &Timing, now: Time) {
        match self.phase {
            Phase::Firing { since } if now.since(since) < timing.hold => {
                self.phase = Phase::Pending { since };
            }
            Phase::Clearing { since, ceased } if ceased.since(since) < timing.hold => {
                self.phase = Phase::Inactive;
            }
            _ => {}
        }
        self.expire(timing, now);
    }

    /// Whether the condition counts as holding, by M of N where the rule says so. `held`: whether it held until now.
    fn count(&mut self, timing: &Timing, held: bool, holds: bool, now: Time) -> bool {
        let Some(slots) = timing.slots else {
            return holds;
        };
        let slot = now.0 / nanos(slots.width);
        let passed = slot.saturating_sub(self.tally.slot);
        self.tally.slot = self.tally.slot.max(slot);
        for _ in 0..passed.min(u64::from(slots.n)) {
            // It held in each slot that has begun since, if it held.
            self.tally.bits = (self.tally.bits << 1) | u64::from(held);
        }
        self.tally.bits = (self.tally.bits | u64::from(holds)) & slots.all();
        self.tally.bits.count_ones() >= slots.m
    }

    fn flow(&mut self, timing: &Timing, holds: bool, now: Time) {
        self.phase = match (self.phase, holds) {
            (Phase::Inactive, true) => Phase::Pending { since: now },
            (Phase::Pending { .. } | Phase::Restored { .. }, false) => Phase::Inactive,
            (Phase::Firing { since }, false) => Phase::Clearing { since, ceased: now },
            (Phase::Clearing { since, .. }, true) => Phase::Firing { since },
            (phase, _) => phase,
        };
        // A hold of zero is over at once.
        self.expire(timing, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(s: u64) -> Time {
        Time::ZERO + Duration::from_secs(s)
    }

    fn timing(hold: u64, keep: u64) -> Timing {
        Timing {
            hold: Duration::from_secs(hold),
            keep: Duration::from_secs(keep),
            slots: None,
        }
    }

    /// Lets time pass and then steps; what it went through on the way.
    fn run(timing: &Timing, steps: &[(u64, bool)], until: u64) -> Vec<(u64, RuleState)> {
        let mut machine = Machine::default();
        let mut seen = Vec::new();
        let mut note = |at: Time, machine: &Machine| {
            if seen.last().map_or(RuleState::Inactive, |&(_, s)| s) != machine.state() {
                seen.push((at.as_secs_f64() as u64, machine.state()));
            }
        };
        let ends = [(until, None)];
        let steps = steps.iter().map(|&(at, holds)| (at, Some(holds)));
        for (at, holds) in steps.chain(ends) {
            while let Some(due) = machine.due(timing).filter(|due| *due <= secs(at)) {
                machine.expire(timing, due);
                machine.turn(timing, due);
                note(due, &machine);
            }
            if let Some(holds) = holds {
                machine.step(timing, holds, secs(at));
                note(secs(at), &machine);
            }
        }
        seen
    }

    #[test]
    fn it_goes_through_its_states_as_documented() {
        use RuleState::*;
        let steps = [
            (0, true),
            (4, false),
            (10, true),
            (17, false),
            (19, true),
            (30, false),
        ];
        assert_eq!(
            run(&timing(5, 3), &steps, 60),
            [
                (0, Pending),
                (4, Inactive),
                (10, Pending),
                (15, Firing),
                (17, Clearing),
                (19, Firing),
                (30, Clearing),
                (33, Inactive),
            ]
        );
    }

    #[test]
    fn m_of_n_counts_slots_in_which_it_held_for_a_moment() {
        use RuleState::*;
        let timing = Timing {
            slots: Some(Slots {
                m: 2,
                n: 3,
                width: Duration::from_secs(1),
            }),
            ..timing(0, 0)
        };
        let steps = [(1, true), (1, false), (3, true), (3, false)];
        assert_eq!(run(&timing, &steps, 20), [(3, Firing), (4, Inactive)]);
        // One that goes on holding is in every slot.
        let steps = [(1, true), (9, false)];
        assert_eq!(run(&timing, &steps, 20), [(2, Firing), (11, Inactive)]);
    }

    #[test]
    fn a_longer_hold_makes_it_pending_and_a_shorter_one_fires() {
        let mut machine = Machine::default();
        machine.step(&timing(0, 0), true, secs(10));
        assert_eq!(machine.state(), RuleState::Firing);
        machine.retime(&timing(5, 0), secs(12));
        assert_eq!(machine.state(), RuleState::Pending);
        assert_eq!(machine.due(&timing(5, 0)), Some(secs(15)));
        machine.retime(&timing(1, 0), secs(13));
        assert_eq!(machine.state(), RuleState::Firing);
        assert_eq!(machine.since(), Some(secs(10)));
    }
}
