//! What an engine knows: members, groups, and what is due. Plain data, under the engine's lock.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use super::slab::Slab;
use crate::{
    clock::TimerKey,
    rule::{
        Pairs, Quality, Rule, RuleState,
        compute::{Computation, Edge, LeafState, Reading, Truth},
        machine::{Machine, Phase, Timing},
    },
    selector::Selector,
    series::SeriesCore,
    time::Time,
};

pub(super) struct State {
    /// The rule as it is now: its conditions are the engine's for life, the rest can change.
    pub(super) rule: Arc<Rule>,
    pub(super) timing: Timing,
    pub(super) settled: bool,
    pub(super) closed: bool,
    pub(super) members: Slab<Member>,
    pub(super) by_key: HashMap<Arc<str>, usize>,
    /// The member without labels, whose series take part everywhere.
    pub(super) common: Option<usize>,
    pub(super) groups: Slab<GroupState>,
    /// How many groups are in each state, so that a scrape need not go over them.
    pub(super) by_state: [usize; 4],
    pub(super) by_group: HashMap<Arc<str>, usize>,
    pub(super) due: BTreeSet<(Time, Due)>,
    /// The timers that are set: for what is due first, and for the next tick.
    pub(super) armed: Option<(Time, TimerKey)>,
    pub(super) ticking: Option<TimerKey>,
    /// Time never goes back, whichever thread comes late.
    pub(super) latest: Time,
    pub(super) evaluated: Option<Time>,
    pub(super) value: Reading,
    pub(super) matched: u64,
    /// Per place of the plan: whether any series has matched.
    pub(super) places: Box<[bool]>,
    pub(super) series: usize,
    pub(super) past: Past,
    /// Groups as they were before a restart or a change of the rule, until they are here again.
    pub(super) inherited: HashMap<Box<str>, Inherited>,
    /// What members and groups remember of before a restart, and until when that counts.
    pub(super) recalled: Option<(Memory, Time)>,
    /// What held for a moment while the present series were being attached: member, leaf, value.
    pub(super) early: Vec<(usize, usize, Reading)>,
}

impl State {
    pub(super) fn new(rule: Rule, places: usize) -> State {
        State {
            timing: rule.timing(),
            rule: Arc::new(rule),
            settled: false,
            closed: false,
            members: Slab::default(),
            by_key: HashMap::new(),
            common: None,
            groups: Slab::default(),
            by_state: [0; 4],
            by_group: HashMap::new(),
            due: BTreeSet::new(),
            armed: None,
            ticking: None,
            latest: Time::ZERO,
            evaluated: None,
            value: None,
            matched: 0,
            places: vec![false; places].into(),
            series: 0,
            past: Past::default(),
            inherited: HashMap::new(),
            recalled: None,
            early: Vec::new(),
        }
    }

    /// What a leaf of a member remembers of before a restart, and until when that counts.
    pub(super) fn recall(&self, member: &str, leaf: usize) -> Option<(Recalled, Time)> {
        let (memory, until) = self.recalled.as_ref()?;
        Some(((*memory.leaves.get(member)?.get(leaf)?)?, *until))
    }

    pub(super) fn slot(&mut self, member: usize, leaf: usize) -> Option<&mut Slot> {
        self.members
            .get_mut(member)
            .map(|member| &mut member.leaves[leaf])
    }

    /// Whether others go by this member: it has no labels, and is not alone.
    pub(super) fn leads(&self, member: usize) -> bool {
        self.common == Some(member) && self.by_key.len() > 1
    }

    /// Nothing is due for a leaf of a member any more.
    pub(super) fn call_off(&mut self, member: usize, leaf: usize) {
        let Some(slot) = self.slot(member, leaf) else {
            return;
        };
        slot.busy.clear();
        let (due, rearm) = (slot.due.take(), slot.rearm.take());
        if let Some(at) = due {
            self.due.remove(&(at, Due::Stale(member, leaf)));
            self.due.remove(&(at, Due::Forget(member, leaf)));
        }
        if let Some(at) = rearm {
            self.due.remove(&(at, Due::Rearm(member, leaf)));
        }
    }
}

/// Epochs of groups that have gone, so that they go on should they come back.
#[derive(Default)]
pub(super) struct Past {
    /// With the number under which it is in `order`.
    epochs: HashMap<Arc<str>, (u64, u64)>,
    /// The oldest first.
    order: BTreeMap<u64, Arc<str>>,
    next: u64,
}

/// Groups that have gone and whose epoch is remembered.
const PAST_MAX: usize = 10_000;

impl Past {
    pub(super) fn put(&mut self, key: Arc<str>, epoch: u64) {
        self.next += 1;
        self.order.insert(self.next, key.clone());
        if let Some((_, before)) = self.epochs.insert(key, (epoch, self.next)) {
            self.order.remove(&before);
        }
        if self.order.len() > PAST_MAX
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.epochs.remove(&oldest);
        }
    }

    pub(super) fn take(&mut self, key: &str) -> Option<u64> {
        let (epoch, number) = self.epochs.remove(key)?;
        self.order.remove(&number);
        Some(epoch)
    }

    #[cfg(feature = "persist")]
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.epochs.iter().map(|(key, (epoch, _))| (&**key, *epoch))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Due {
    Group(usize),
    Stale(usize, usize),
    Rearm(usize, usize),
    Forget(usize, usize),
    /// What was restored and has not come back is let go.
    Grace,
}

/// A set of labels and what is known of it.
pub(super) struct Member {
    pub(super) key: Arc<str>,
    pub(super) labels: Pairs,
    pub(super) name: Arc<str>,
    pub(super) series: Weak<SeriesCore>,
    pub(super) group: Option<usize>,
    pub(super) leaves: Box<[Slot]>,
    /// Of computed leaves.
    pub(super) works: Box<[Option<Arc<Mutex<Work>>>]>,
    /// Per level.
    pub(super) truths: Box<[Truth]>,
    /// Series times the places they take, and memories of those that are gone.
    pub(super) seats: usize,
}

/// What a member knows of one leaf.
#[derive(Clone, Default)]
pub(super) struct Slot {
    pub(super) truth: Truth,
    /// Series of the member's own that feed it; without any, what those without labels say counts.
    pub(super) own: usize,
    pub(super) shared: Truth,
    pub(super) value: Reading,
    pub(super) nan: bool,
    /// Of `stale`: the last mutation known.
    pub(super) last: Time,
    /// Of `stale`: when that is looked at next. Of `gone`: when it is forgotten.
    pub(super) due: Option<Time>,
    /// Of `stale`: series that were too busy to be heard, and when they are asked to be heard again.
    pub(super) busy: Vec<Weak<SeriesCore>>,
    pub(super) rearm: Option<Time>,
    /// Of `gone`: a memory holds a seat.
    pub(super) remembered: bool,
    /// Of `moved` and `changed`: the value that the next ones are compared with.
    pub(super) reference: Reading,
}

impl Slot {
    /// Keeps what the next values are compared with; the leaf itself may be out of reach, under the lock of a series.
    pub(super) fn refer(&mut self, edge: Edge, reading: Reading) {
        match edge {
            Edge::Pulse => self.reference = reading,
            Edge::Is(_) => self.reference = self.reference.or(reading),
        }
    }

    pub(super) fn truth(&self) -> Truth {
        if self.own > 0 || self.remembered {
            self.truth
        } else {
            self.shared
        }
    }
}

/// A computed leaf of one member.
pub(super) struct Work {
    pub(super) computation: Computation,
    pub(super) leaf: LeafState,
}

pub(super) struct GroupState {
    pub(super) key: Arc<str>,
    pub(super) labels: Pairs,
    pub(super) machines: Box<[Machine]>,
    /// The state as which it is counted.
    pub(super) counted: RuleState,
    /// Per level: it has held since the rule was added.
    pub(super) initial: Box<[bool]>,
    /// Per level: members of which the condition is true.
    pub(super) trues: Box<[usize]>,
    pub(super) members: usize,
    /// The level in force: 0 for none.
    pub(super) level: usize,
    pub(super) epoch: u64,
    pub(super) due: Option<Time>,
    pub(super) since: Time,
    /// How long before the clock's origin that was, of one that was firing before a restart.
    pub(super) origin: Duration,
    /// Whether anything was ever known of a member.
    pub(super) known: bool,
    pub(super) value: Reading,
    pub(super) quality: Quality,
    /// Of a group of several: the labels of the first that held when it was told last that it fires.
    pub(super) first: Pairs,
    pub(super) series: Weak<SeriesCore>,
    /// Until then it stays as it was before the restart while nothing is known.
    pub(super) grace: Option<Time>,
}

impl GroupState {
    /// How long before `since` it really began.
    pub(super) fn before(&self) -> Duration {
        if self.since == Time::ZERO {
            self.origin
        } else {
            Duration::ZERO
        }
    }

    pub(super) fn state(&self) -> RuleState {
        let states = self.machines.iter().map(Machine::state);
        states.max().unwrap_or_default()
    }
}

/// What decides beside the states of groups: what the next value alone does not tell. Kept across restarts.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Memory {
    /// By member; per leaf.
    pub(crate) leaves: HashMap<Box<str>, Box<[Option<Recalled>]>>,
    /// By group; per level: in which slots the condition held, of M of N.
    pub(crate) slots: HashMap<Box<str>, Box<[u64]>>,
}

/// What a leaf remembers.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(not(feature = "persist"), allow(dead_code))]
pub(crate) enum Recalled {
    /// It is beyond its bound, and has not come back over the clear bound.
    Raised,
    /// Of `moved` and `changed`: what the next value is compared with.
    Reference(f64),
}

/// A group as it was.
#[derive(Clone, Debug)]
pub(crate) struct Inherited {
    pub(crate) labels: Pairs,
    /// By the level's name.
    pub(crate) phases: Vec<(Option<String>, Phase)>,
    /// `None` for no level in force; `Some(None)` for the only one.
    pub(crate) level: Option<Option<String>>,
    pub(crate) epoch: u64,
    pub(crate) since: Time,
    /// How long before the clock's origin that was.
    pub(crate) origin: Duration,
    /// Of one from before a restart: how long it waits to be known again.
    pub(crate) grace: Option<Time>,
}

impl Inherited {
    pub(super) fn state(&self) -> RuleState {
        let states = self.phases.iter().map(|(_, phase)| phase.state());
        states.max().unwrap_or_default()
    }
}

/// One group, as it is shown.
#[derive(Clone, Debug)]
pub(crate) struct GroupView {
    pub(crate) state: RuleState,
    pub(crate) level: Option<Arc<str>>,
    pub(crate) since: Option<Time>,
    /// How long before that it really began.
    pub(crate) before: Duration,
    pub(crate) value: Reading,
    pub(crate) quality: Quality,
    /// What it goes on by after a restart.
    #[cfg_attr(not(feature = "persist"), allow(dead_code))]
    pub(crate) key: Box<str>,
    pub(crate) kept: Inherited,
    /// Of a group of several that fires: some of those that hold, and how many do.
    pub(crate) holding: Vec<Pairs>,
    pub(crate) holds: usize,
}

/// An engine, as it is shown.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    pub(crate) by_state: [usize; 4],
    pub(crate) series: usize,
    pub(crate) matched: u64,
    /// Selectors that have never matched a series.
    pub(crate) unmatched: Vec<Selector>,
    /// Groups of which nothing is known.
    pub(crate) no_data: usize,
    pub(crate) value: Reading,
    pub(crate) evaluated: Option<Time>,
    /// Those that are not inactive.
    pub(crate) active: Vec<GroupView>,
    /// How many more of them there are.
    pub(crate) left_out: usize,
}
