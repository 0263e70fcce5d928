//! Rules across restarts: what is firing and pending is kept in a file, and goes on from there.
//!
//! What goes on how is Prometheus's way (`rules/manager.go`, `RestoreForState`): time in which the process was down counts
//! neither for nor against a hold.

use std::{collections::HashMap, time::Duration};

use super::{
    Rule,
    engine::{Engine, Groups, Inherited, Memory},
    machine::Phase,
};
use crate::time::Time;

/// What a file said of a rule.
#[derive(Debug, Default)]
pub(crate) struct Restored {
    pub(crate) groups: Vec<Kept>,
    /// Of groups that were inactive.
    pub(crate) epochs: HashMap<Box<str>, u64>,
    pub(crate) memory: KeptMemory,
    pub(crate) grace_period: Duration,
    /// How long the process was down.
    pub(crate) down: Duration,
}

/// A group in a file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Kept {
    pub(crate) key: Box<str>,
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) epoch: u64,
    /// `None` for no level in force; `Some(None)` for the only one.
    pub(crate) level: Option<Option<String>>,
    pub(crate) phases: Vec<(Option<String>, KeptPhase)>,
}

/// What the members of a rule remember, and of what rule that is: by other conditions it means nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct KeptMemory {
    /// The condition of each level, as text.
    pub(crate) conditions: Vec<String>,
    /// Of a slot of M of N.
    pub(crate) slot: Duration,
    pub(crate) memory: Memory,
}

impl KeptMemory {
    /// What a rule with this memory is.
    pub(crate) fn of(rule: &Rule, memory: Memory) -> KeptMemory {
        let levels = rule.levels.iter();
        KeptMemory {
            conditions: levels.map(|level| level.test.to_string()).collect(),
            slot: rule.slots.map_or(Duration::ZERO, |slots| slots.width),
            memory,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.memory == Memory::default()
    }

    /// What of it still counts for a rule.
    fn of_rule(self, rule: &Rule) -> Option<Memory> {
        if self.is_empty() {
            return None;
        }
        let now = KeptMemory::of(rule, Memory::default());
        let mut memory = self.memory;
        if self.conditions != now.conditions {
            return None;
        }
        if self.slot != now.slot {
            memory.slots.clear();
        }
        Some(memory)
    }
}

/// How far a group had come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum KeptPhase {
    Inactive,
    /// Had held for so long.
    Pending(Duration),
    Firing(Duration),
}

impl Restored {
    /// An engine that has not begun goes on from here: its groups, and until when they are waited for.
    pub(crate) fn go_on(mut self, engine: &Engine, now: Time) -> (Groups, Option<Time>) {
        engine.remember(&self.epochs);
        let rule = engine.rule();
        if let Some(memory) = std::mem::take(&mut self.memory).of_rule(&rule) {
            engine.recall(memory, now + self.grace_period);
        }
        self.groups(&rule, now)
    }

    /// Its groups as they go on from `now`, and until when they are waited for.
    fn groups(self, rule: &Rule, now: Time) -> (Groups, Option<Time>) {
        let grace = now + self.grace_period;
        let back = |by: Duration| Time(now.0.saturating_sub(crate::time::nanos(by)));
        let group = |kept: Kept| {
            let (mut since, mut origin) = (now, Duration::ZERO);
            let phases = kept.phases.into_iter().map(|(level, phase)| {
                let phase = match phase {
                    KeptPhase::Inactive => Phase::Inactive,
                    // Too short for it to matter: it begins anew, as Prometheus has it.
                    KeptPhase::Pending(_) if rule.hold < self.grace_period => Phase::Inactive,
                    KeptPhase::Pending(held) => {
                        // What is left of the hold, and at least the grace period.
                        let left = rule.hold.saturating_sub(held).max(self.grace_period);
                        Phase::Restored {
                            due: now + left,
                            since: back(held),
                        }
                    }
                    KeptPhase::Firing(held) => {
                        let ago = held + self.down;
                        since = back(ago);
                        origin = ago.saturating_sub(now.since(since));
                        Phase::Firing { since }
                    }
                };
                (level, phase)
            });
            let phases = phases.collect();
            let inherited = Inherited {
                labels: kept.labels.into(),
                phases,
                level: kept.level,
                epoch: kept.epoch,
                since,
                origin,
                grace: Some(grace),
            };
            (kept.key, inherited)
        };
        (self.groups.into_iter().map(group).collect(), Some(grace))
    }
}
