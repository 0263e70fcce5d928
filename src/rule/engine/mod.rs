//! The engine of one rule: its members, groups and timers, fed by listeners in the threads that mutate.
//!
//! ```text
//!  mutation ─► listener ─► leaf ──────────────► member ─────► group ──────► machine ────► alert ─► feeds
//!              (in the     (threshold, delta,   (and, or,     (each, any,   (hold, keep,
//!              desk)       computation)         not: levels)  all, k of n)  m of n)
//! ```
//!
//! A *member* is all series with the same labels; a *group* the members that are judged together. A leaf about the value
//! of one series is a machine of `interest.rs` in that series' cell, with its quiet band: a mutation that crosses nothing
//! costs what it always does. Operands of an expression come to the engine with each change, and meet in the member's
//! own *work*, whose lock only the series of that member share. Only a leaf that turns takes the rule's lock.
//!
//! # Locks
//!
//! Family table → watches → cell desk → work (that of the member without labels first) → state → log → mailbox. Nothing
//! is woken, and no other series is touched, while one is held.
//!
//! # Time
//!
//! Each step first lets pass what was due before it, so an alert has the time at which it was due, however late a timer
//! runs. A rule has one timer at a time with the clock, for the earliest thing that is due; one that comes too early does
//! nothing. Windows and moving averages are evaluated at multiples of the plan's period.
//!
//! # Settling
//!
//! While the present series are being attached, leaves note what they find and nobody is judged: a rule about *all*
//! series must not fire for the first. Then all groups are judged at once.
//!
//! # Batches
//!
//! One mutation, or one tick, may turn several leaves and members. They are counted first, and then each group is judged
//! once. Another thread that turns a leaf of the same group in between judges what is there.

mod judge;
mod listener;
mod members;
mod slab;
mod state;
mod time;

use std::{
    cmp::Reverse,
    collections::HashMap,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use smallvec::SmallVec;

use super::{
    AlertCause, Group, Pairs, Quality, Rule, RuleState,
    compute::{Program, Reading, Truth},
    log::{Log, Turn},
    plan::{Leaf, Plan},
};
use crate::{
    bus::Inner,
    cell::{Listener, Wakes, wake_all},
    clock::Clock,
    mailbox::Mailbox,
    selector::Selector,
    series::SeriesCore,
    stats::next_id,
    sync::lock,
    time::Time,
    watch::{Make, Watch},
};
use state::{Due, GroupState, State};

/// Groups as they were, by key.
pub(crate) type Groups = HashMap<Box<str>, Inherited>;

pub(crate) use state::{GroupView, Inherited, Memory, Recalled, View};

/// Where what is computed goes.
pub(crate) trait Sink: Send + Sync {
    /// The expression has this value for these labels. Under the member's lock: hands what is to be done to `wakes`.
    fn put(&self, key: &str, labels: &[(String, String)], value: Reading, wakes: &mut Wakes);
    /// There are no such series any more.
    fn end(&self, key: &str, wakes: &mut Wakes);
    /// Whether the engine must not look at this series, since it may come of what it computes. `named`: the selector says
    /// the metric's name.
    fn is_own(&self, series: &SeriesCore, named: bool) -> bool;
}

pub(crate) struct Engine {
    me: Weak<Engine>,
    /// Of its listeners.
    id: u64,
    plan: Plan,
    inner: Weak<Inner>,
    clock: Clock,
    log: Arc<Log>,
    sink: Option<Arc<dyn Sink>>,
    /// When it was made: windows look from here on.
    since: Time,
    /// Weak: what a watch makes listeners with holds the engine. The bus holds them, and ends with them.
    watches: Mutex<Vec<Weak<Watch>>>,
    settled: AtomicBool,
    closed: AtomicBool,
    state: Mutex<State>,
}

/// A group that is shown.
enum Shown<'a> {
    Here(usize),
    /// From before a restart, and not here again yet.
    Awaited(&'a str, &'a Inherited),
}

/// What one mutation, or one tick, has turned.
#[derive(Default)]
struct Batch {
    /// Groups of which a member was counted anew; some perhaps several times.
    dirty: SmallVec<[usize; 4]>,
    /// Leaves that hold for this moment: member, leaf, value.
    pulses: SmallVec<[(usize, usize, Reading); 1]>,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.dirty.is_empty() && self.pulses.is_empty()
    }

    /// The groups to be judged, each once and in order; none are left.
    fn take_dirty(&mut self) -> SmallVec<[usize; 4]> {
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.sort_unstable();
        dirty.dedup();
        dirty
    }
}

impl Engine {
    /// Ready to [start](Engine::start).
    pub(crate) fn new(
        inner: &Arc<Inner>,
        rule: Rule,
        plan: Plan,
        log: Arc<Log>,
        sink: Option<Arc<dyn Sink>>,
    ) -> Arc<Engine> {
        let state = State::new(rule, plan.places.len());
        Arc::new_cyclic(|me| Engine {
            me: me.clone(),
            id: next_id(),
            plan,
            inner: Arc::downgrade(inner),
            clock: inner.clock.clone(),
            log,
            sink,
            since: inner.clock.now(),
            watches: Mutex::default(),
            settled: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            state: Mutex::new(state),
        })
    }

    /// The rule as it is now.
    pub(crate) fn rule(&self) -> Arc<Rule> {
        lock(&self.state).rule.clone()
    }

    /// What members and groups remember of before a restart; it counts until `until`. Before [`start`](Engine::start).
    pub(crate) fn recall(&self, memory: Memory, until: Time) {
        lock(&self.state).recalled = Some((memory, until));
    }

    /// What members and groups would have to remember, should it end here.
    #[cfg(feature = "persist")]
    pub(crate) fn memory(&self) -> Memory {
        use super::compute::Judge;

        let state = lock(&self.state);
        // Who is not known yet goes on remembering.
        let mut memory = state
            .recalled
            .as_ref()
            .map_or_else(Memory::default, |(memory, _)| memory.clone());
        for member in state.members.iter() {
            let before = memory.leaves.remove(&*member.key);
            let leaves = self.plan.leaves.iter().zip(&member.leaves).enumerate();
            let leaves: Box<[_]> = leaves
                .map(|(at, (leaf, slot))| match leaf.judge()? {
                    _ if slot.truth == Truth::Unknown && slot.reference.is_none() => {
                        *before.as_ref()?.get(at)?
                    }
                    Judge::Threshold(_) => (slot.truth == Truth::True).then_some(Recalled::Raised),
                    Judge::Moved(_) | Judge::Changed => slot.reference.map(Recalled::Reference),
                })
                .collect();
            if leaves.iter().any(Option::is_some) {
                memory.leaves.insert(Box::from(&*member.key), leaves);
            }
        }
        if let Some(slots) = state.timing.slots {
            for group in state.groups.iter().filter(|group| group.grace.is_none()) {
                memory.slots.remove(&*group.key);
                let bits: Box<[_]> = group
                    .machines
                    .iter()
                    .map(|machine| machine.slots() & slots.all())
                    .collect();
                if bits.iter().any(|bits| *bits != 0) {
                    memory.slots.insert(Box::from(&*group.key), bits);
                }
            }
        }
        memory
    }

    /// Attaches to all series there are. Nobody is judged before [`settle`](Engine::settle).
    pub(crate) fn start(self: &Arc<Self>, inner: &Arc<Inner>, wakes: &mut Wakes) {
        // One id for all: a series that several selectors match is refused the second time.
        let mut seen = Vec::new();
        for place in &self.plan.places {
            if seen.contains(&&place.selector) {
                continue;
            }
            seen.push(&place.selector);
            let engine = self.clone();
            let make: Make =
                Box::new(move |series, newborn, wakes| engine.listener(series, newborn, wakes));
            let nothing = Arc::new(Mailbox::<()>::new(1));
            let watch = Arc::new(Watch::of_rule(
                self.id,
                place.selector.clone(),
                make,
                nothing,
            ));
            lock(&self.watches).push(Arc::downgrade(&watch));
            inner.watch_waking(&watch, wakes);
        }
    }

    /// Judges all groups for the first time, as `cause`. `inherited`: what they were before, by group; those that do not
    /// come back until `grace` are let go then.
    pub(crate) fn settle(
        self: &Arc<Self>,
        inherited: Groups,
        cause: AlertCause,
        grace: Option<Time>,
        wakes: &mut Wakes,
    ) {
        let now = self.clock.now();
        // In this order: who comes after the look at what there is evaluates itself.
        self.settled.store(true, Ordering::SeqCst);
        let works = self.works();
        let mut batch = Batch::default();
        for (member, leaf, work) in works {
            self.look(&work, member, leaf, now, &mut batch, wakes);
        }
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        state.latest = state.latest.max(now);
        state.settled = true;
        state.inherited = inherited;
        if let Some(grace) =
            grace.filter(|_| !state.inherited.is_empty() || state.recalled.is_some())
        {
            state.due.insert((grace, Due::Grace));
        }
        for member in state.members.indices() {
            self.inherit_shared(state, member);
        }
        for member in state.members.indices() {
            self.regroup(state, member, wakes);
        }
        for group in state.groups.indices() {
            self.judge_group(state, group, now, cause, wakes);
        }
        batch.pulses.extend(std::mem::take(&mut state.early));
        self.finish_under(state, &mut batch, now, wakes);
        if cause == AlertCause::RuleChanged {
            // Groups that the changed rule does not have.
            for (key, was) in std::mem::take(&mut state.inherited) {
                self.let_go(state, &key, was, now, cause, wakes);
            }
        }
        self.arm(state);
        drop(guard);
        if let Some(period) = self.plan.period {
            self.tick_after(now, period);
        }
    }

    /// Goes on with a rule that differs in what is not about conditions and groups.
    pub(crate) fn change(&self, rule: Rule, wakes: &mut Wakes) {
        let now = self.clock.now();
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        // What others have turned already is none of this change's doing.
        for group in state.groups.indices() {
            self.judge_group(state, group, now, AlertCause::Condition, wakes);
        }
        if state.rule.dry_run != rule.dry_run {
            // Those who heard that it fires hear the end of it; those who did not, below, that it does.
            for group in state.groups.indices() {
                if state.groups.get(group).is_some_and(|group| group.level > 0) {
                    self.tell(state, group, 0, now, AlertCause::RuleChanged, wakes);
                }
            }
        }
        let before = std::mem::replace(&mut state.timing, rule.timing());
        state.rule = Arc::new(rule);
        if before.slots != state.timing.slots {
            for group in state.groups.indices() {
                let machines = state.groups.get_mut(group).map(|group| &mut group.machines);
                for machine in machines.into_iter().flatten() {
                    machine.reslot(state.timing.slots, now);
                }
            }
        }
        for group in state.groups.indices() {
            self.judge_group(state, group, now, AlertCause::RuleChanged, wakes);
        }
        self.arm(state);
    }

    /// Ends it. `cause`: what is firing is resolved for this reason; `None`: it goes on elsewhere, as what is returned.
    pub(crate) fn close(&self, cause: Option<AlertCause>, wakes: &mut Wakes) -> Groups {
        let now = self.clock.now();
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        if state.closed {
            return HashMap::new();
        }
        for group in state.groups.indices() {
            self.pass(state, group, now, wakes);
        }
        state.closed = true;
        // Timers far away would keep the engine's memory until then.
        let timers = [state.armed.take().map(|(_, key)| key), state.ticking.take()];
        for key in timers.into_iter().flatten() {
            self.clock.cancel(key);
        }
        self.closed.store(true, Ordering::SeqCst);
        let mut kept = std::mem::take(&mut state.inherited);
        for index in state.groups.indices() {
            let Some(group) = state.groups.get(index) else {
                continue;
            };
            match cause {
                None => {
                    kept.insert(Box::from(&*group.key), self.inherit(group));
                }
                Some(cause) if group.level > 0 => self.tell(state, index, 0, now, cause, wakes),
                Some(_) => {}
            }
        }
        if let Some(cause) = cause {
            // From before a restart, and never here again.
            for (key, was) in kept.drain() {
                self.let_go(state, &key, was, now, cause, wakes);
            }
        }
        kept
    }

    /// Takes its listeners out. After [`close`](Engine::close), without any lock.
    #[must_use]
    pub(crate) fn stop(&self, inner: &Inner, wakes: &mut Wakes) -> Vec<Box<dyn Listener>> {
        let mut listeners = Vec::new();
        let watches = std::mem::take(&mut *lock(&self.watches));
        for watch in watches.iter().filter_map(Weak::upgrade) {
            listeners.extend(inner.unwatch_waking(&watch, wakes));
        }
        let mut state = lock(&self.state);
        let gone = (
            std::mem::take(&mut state.members),
            std::mem::take(&mut state.groups),
        );
        state.by_state = [0; 4];
        drop(state);
        drop(gone);
        listeners
    }

    fn inherit(&self, group: &GroupState) -> Inherited {
        let names = self.plan.levels.iter();
        let phases = names
            .zip(&group.machines)
            .map(|((name, _), machine)| (name.as_deref().map(str::to_owned), machine.phase()));
        Inherited {
            labels: group.labels.clone(),
            phases: phases.collect(),
            level: self
                .level_name(group.level)
                .map(|name| name.map(|n| n.to_string())),
            epoch: group.epoch,
            since: group.since,
            origin: group.before(),
            grace: None,
        }
    }

    /// `None` for no level; `Some(None)` for the only one.
    fn level_name(&self, level: usize) -> Option<Option<Arc<str>>> {
        let (name, _) = self.plan.levels.get(level.checked_sub(1)?)?;
        Some(name.clone())
    }

    /// What a rule about one set of labels looks at now; of one about several, what it judged last.
    fn present(&self, state: &State) -> Reading {
        if state.members.len() != 1 {
            return state.value;
        }
        let member = state.members.iter().next()?;
        let judged = member.leaves.iter().find_map(|slot| slot.value);
        // A plain value is judged only where it crosses something; it may have moved since.
        let series = member.series.upgrade().filter(|_| self.plan.single);
        match (self.plan.leaves.first(), series) {
            (Some(Leaf::Direct { .. }), Some(series)) if series.buckets.is_none() => {
                judged.map(|_| series.value().as_f64())
            }
            _ => judged,
        }
    }

    /// Its selectors that have never matched a series.
    pub(crate) fn unmatched(&self) -> Vec<Selector> {
        self.never_matched(&lock(&self.state))
    }

    fn never_matched(&self, state: &State) -> Vec<Selector> {
        let places = self.plan.places.iter();
        let never = places.filter(|place| !state.places[place.index]);
        never.map(|place| place.selector.clone()).collect()
    }

    /// The rule and its counts, without any group: takes the rule's lock for a moment that does not grow with them, but
    /// for those that are awaited after a restart.
    pub(crate) fn summary(&self) -> (Arc<Rule>, View) {
        let state = lock(&self.state);
        let mut view = View {
            by_state: state.by_state,
            series: state.series,
            matched: state.matched,
            value: self.present(&state),
            evaluated: state.evaluated,
            ..View::default()
        };
        for was in state.inherited.values() {
            view.by_state[was.state() as usize] += 1;
        }
        (state.rule.clone(), view)
    }

    #[cfg(feature = "persist")]
    pub(crate) fn view(&self) -> View {
        self.view_up_to(usize::MAX).1
    }

    /// The rule, and how it stands, with so many groups at most, the gravest first to be shown.
    pub(crate) fn view_up_to(&self, groups_max: usize) -> (Arc<Rule>, View) {
        let now = self.clock.now();
        let mut wakes = Wakes::new();
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        let mut view = View {
            series: state.series,
            matched: state.matched,
            value: self.present(state),
            evaluated: state.evaluated,
            ..View::default()
        };
        view.unmatched = self.never_matched(state);
        let mut active = Vec::new();
        for index in state.groups.indices() {
            // As it is, even where a timer is late.
            if state.settled && !state.closed {
                self.pass(state, index, now, &mut wakes);
            }
            let Some(group) = state.groups.get(index) else {
                continue;
            };
            let rule_state = group.state();
            view.no_data += usize::from(group.quality == Quality::NoData);
            view.by_state[rule_state as usize] += 1;
            if rule_state != RuleState::Inactive {
                active.push((rule_state, Shown::Here(index)));
            }
        }
        debug_assert!(!state.settled || view.by_state == state.by_state);
        for (key, was) in &state.inherited {
            let rule_state = was.state();
            view.by_state[rule_state as usize] += 1;
            if rule_state != RuleState::Inactive {
                active.push((rule_state, Shown::Awaited(key, was)));
            }
        }
        if active.len() > groups_max {
            active.sort_by_key(|&(rule_state, _)| Reverse(rule_state));
            view.left_out = active.len() - groups_max;
            active.truncate(groups_max);
        }
        view.active.reserve_exact(active.len());
        let mut holding = self.holding_by_group(state);
        for (rule_state, shown) in active {
            let group = match shown {
                Shown::Awaited(key, was) => GroupView {
                    state: rule_state,
                    level: was.level.clone().flatten().map(Arc::from),
                    since: Some(was.since),
                    before: was.origin,
                    value: None,
                    quality: Quality::NoData,
                    key: key.into(),
                    kept: was.clone(),
                    holding: Vec::new(),
                    holds: 0,
                },
                Shown::Here(index) => {
                    let Some(group) = state.groups.get(index) else {
                        continue;
                    };
                    GroupView {
                        state: rule_state,
                        level: self.level_name(group.level).flatten(),
                        since: group.machines.iter().rev().find_map(|m| m.since()),
                        before: group.before(),
                        value: group.value,
                        quality: group.quality,
                        key: Box::from(&*group.key),
                        kept: self.inherit(group),
                        holding: holding.remove(&index).unwrap_or_default(),
                        holds: group.trues
                            [group.level.saturating_sub(1).min(group.trues.len() - 1)],
                    }
                }
            };
            view.active.push(group);
        }
        let rule = state.rule.clone();
        drop(guard);
        self.wake(wakes);
        (rule, view)
    }

    /// Of groups of several: some of the members that hold at the level in force.
    fn holding_by_group(&self, state: &State) -> HashMap<usize, Vec<Pairs>> {
        let mut found: HashMap<usize, Vec<Pairs>> = HashMap::new();
        if self.plan.group == Group::Each {
            return found;
        }
        for member in state.members.iter() {
            let Some(at) = member.group else { continue };
            let level = state.groups.get(at).map_or(0, |group| group.level);
            if member.truths.get(level.saturating_sub(1)) == Some(&Truth::True) {
                let holding = found.entry(at).or_default();
                if holding.len() < judge::HOLDING_MAX {
                    holding.push(member.labels.clone());
                }
            }
        }
        found
    }

    /// Calls `f` with what is firing, under the rule's lock: nothing fires or is resolved meanwhile.
    pub(crate) fn with_firing(&self, f: impl FnOnce(&Rule, Vec<Turn>)) {
        let state = lock(&self.state);
        let firing = if state.closed || !state.settled {
            Vec::new()
        } else {
            let here = state.groups.indices().into_iter();
            let here = here.filter_map(|at| {
                let group = state.groups.get(at).filter(|group| group.level > 0)?;
                let mut turn = self.turn(group, group.level, state.latest, AlertCause::Initial);
                turn.holding = judge::labels_of(self.holding(&state, at, group.level));
                Some(turn)
            });
            // From before a restart, and not here again yet.
            let awaited = state.inherited.iter().map(|(key, was)| {
                let labels = was.labels.clone();
                let group = self.new_group((&**key).into(), labels, Weak::new(), Some(was.clone()));
                self.turn(&group, group.level, state.latest, AlertCause::Initial)
            });
            here.chain(awaited.filter(|turn| turn.firing)).collect()
        };
        f(&state.rule, firing);
    }

    /// Epochs of groups that are not here yet go on from these.
    pub(crate) fn remember(&self, epochs: &HashMap<Box<str>, u64>) {
        let mut state = lock(&self.state);
        for (key, epoch) in epochs {
            state.past.put(Arc::from(&**key), *epoch);
        }
    }

    /// Goes on with what another engine knows of groups that have gone.
    pub(crate) fn remember_as(&self, before: &Engine) {
        let past = std::mem::take(&mut lock(&before.state).past);
        lock(&self.state).past = past;
    }

    /// Epochs of groups that are inactive, or have gone.
    #[cfg(feature = "persist")]
    pub(crate) fn epochs(&self) -> HashMap<String, u64> {
        let state = lock(&self.state);
        let groups = state.groups.indices().into_iter();
        let groups = groups.filter_map(|at| state.groups.get(at));
        let inactive = groups.filter(|group| group.level == 0 && group.epoch > 0);
        let past = state.past.iter();
        let past = past.map(|(key, epoch)| (key.to_owned(), epoch));
        inactive
            .map(|group| (group.key.to_string(), group.epoch))
            .chain(past)
            .collect()
    }

    fn program(&self, leaf: usize) -> Option<&Program> {
        match &self.plan.leaves[leaf] {
            Leaf::Computed { program, .. } => Some(program),
            _ => None,
        }
    }

    fn common_member(&self) -> Option<usize> {
        lock(&self.state).common
    }

    /// Wakes in this thread on a virtual clock, where the test wants to see what comes of it. Elsewhere the threads of
    /// the bus do: this one may be the clock's, and all buses share it.
    fn wake(&self, mut wakes: Wakes) {
        if self.clock.is_manual() {
            return wake_all(&mut wakes);
        }
        if let Some(inner) = self.inner.upgrade() {
            inner.wake_elsewhere(wakes);
        }
    }
}
