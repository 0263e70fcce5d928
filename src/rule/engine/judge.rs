//! Judging: from a leaf that turns to an alert.

use std::sync::{Arc, Mutex, atomic::Ordering};

use smallvec::SmallVec;

use super::{
    Batch, Engine,
    listener::Sets,
    lock,
    state::{GroupState, Member, State, Work},
};
use crate::{
    cell::Wakes,
    rule::{
        AlertCause, Group, Pairs, Quality,
        compute::{Edge, Program, Reading, Truth},
        log::Turn,
        machine::{Machine, Phase},
        plan::Leaf,
    },
    time::Time,
};

/// Members that an alert of a group names.
pub(super) const HOLDING_MAX: usize = 10;

pub(super) fn labels_of(holding: Vec<(Pairs, Reading)>) -> Vec<Pairs> {
    holding.into_iter().map(|(labels, _)| labels).collect()
}

impl Engine {
    /// Changes a computation and hears what has become of the leaf; also of those that go by this one.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn work(
        &self,
        work: &Arc<Mutex<Work>>,
        member: usize,
        leaf: usize,
        at: Time,
        batch: &mut Batch,
        wakes: &mut Wakes,
        change: impl FnOnce(&mut Work),
    ) {
        self.work_with(
            work,
            (member, leaf),
            at,
            batch,
            wakes,
            &mut Sets::default(),
            change,
        );
    }

    /// As [`work`](Engine::work). `sets`: what the same mutation sets elsewhere. Those that go by this computation take it
    /// together with what they get from here.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn work_with(
        &self,
        work: &Arc<Mutex<Work>>,
        (member, leaf): (usize, usize),
        at: Time,
        batch: &mut Batch,
        wakes: &mut Wakes,
        sets: &mut Sets<'_>,
        change: impl FnOnce(&mut Work),
    ) {
        let Some(program) = self.program(leaf) else {
            return;
        };
        let mut guard = lock(work);
        change(&mut guard);
        if !self.settled.load(Ordering::SeqCst) || self.closed.load(Ordering::SeqCst) {
            return;
        }
        let leads = self.evaluate(&mut guard, program, member, leaf, at, batch, wakes);
        if !leads {
            return;
        }
        // This one's lock keeps the order for the others.
        let others: Vec<_> = {
            let state = lock(&self.state);
            if !state.leads(member) {
                return;
            }
            let others = state.members.indices().into_iter();
            others
                .filter(|&other| other != member)
                .filter_map(|other| Some((other, state.members.get(other)?.works[leaf].clone()?)))
                .collect()
        };
        for (other, work) in others {
            let set = sets.take(&work);
            let mut work = lock(&work);
            if let Some(set) = set {
                set.apply(&mut work);
            }
            for input in 0..program.inputs.len() {
                work.computation.share(input, guard.computation.own(input));
            }
            self.evaluate(&mut work, program, other, leaf, at, batch, wakes);
        }
    }

    /// Looks at the windows of a computation, and evaluates it. Without any lock: windows take those of their series.
    pub(super) fn look(
        &self,
        work: &Arc<Mutex<Work>>,
        member: usize,
        leaf: usize,
        now: Time,
        batch: &mut Batch,
        wakes: &mut Wakes,
    ) {
        let glances = lock(work).computation.glances();
        let seen: SmallVec<[_; 1]> = glances.iter().map(|glance| glance.look(now)).collect();
        self.work(work, member, leaf, now, batch, wakes, |work| {
            for (input, reading) in seen {
                work.computation.see(input, reading);
            }
        });
    }

    /// `true`: others go by this member.
    #[allow(clippy::too_many_arguments)]
    fn evaluate(
        &self,
        work: &mut Work,
        program: &Program,
        member: usize,
        leaf: usize,
        at: Time,
        batch: &mut Batch,
        wakes: &mut Wakes,
    ) -> bool {
        let reading = work.computation.evaluate(program, at);
        let Some(sink) = &self.sink else {
            work.leaf.forget_after(|| at);
            let edge = work.leaf.step(reading);
            return self.edge(member, leaf, edge, reading, work.leaf.nan, at, batch);
        };
        let (shown, leads) = {
            let state = lock(&self.state);
            let leads = state.leads(member);
            let member = state.members.get(member).filter(|_| !leads);
            let shown = member.map(|member| (member.key.clone(), member.labels.clone()));
            (shown, leads)
        };
        if let Some((key, labels)) = shown {
            sink.put(&key, &labels, reading, wakes);
        }
        leads
    }

    /// A leaf of a member has turned, or shows another value. `true`: others go by this member.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn edge(
        &self,
        member: usize,
        leaf: usize,
        edge: Option<Edge>,
        reading: Reading,
        nan: bool,
        at: Time,
        batch: &mut Batch,
    ) -> bool {
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        if state.closed {
            return false;
        }
        state.value = reading;
        state.evaluated = Some(at);
        let Some(slot) = state.slot(member, leaf) else {
            return false;
        };
        slot.value = reading;
        slot.nan = nan;
        if let Some(edge) = edge {
            slot.refer(edge, reading);
        }
        match edge {
            None => self.requalify(state, member),
            Some(Edge::Is(truth)) => {
                slot.truth = truth;
                self.spread(state, member, leaf, batch);
            }
            Some(Edge::Pulse) if state.settled => batch.pulses.push((member, leaf, reading)),
            // Since before a restart: told once all are there.
            Some(Edge::Pulse) => state.early.push((member, leaf, reading)),
        }
        state.leads(member)
    }

    /// Counts a member anew, and those that go by it, after one of its leaves has turned.
    pub(super) fn spread(&self, state: &mut State, member: usize, leaf: usize, batch: &mut Batch) {
        if !state.settled || state.closed {
            return;
        }
        batch.dirty.extend(self.count(state, member, leaf));
        if !state.leads(member) {
            return;
        }
        let common = state.members.get(member);
        let truth = common.map_or(Truth::Unknown, |common| common.leaves[leaf].truth());
        for other in state.members.indices() {
            if other == member {
                continue;
            }
            if let Some(slot) = state.slot(other, leaf) {
                slot.shared = truth;
            }
            batch.dirty.extend(self.count(state, other, leaf));
        }
    }

    /// Judges every group that a batch has to do with, once. What holds for the moment only is judged as holding, and
    /// then as over.
    pub(super) fn finish(&self, batch: &mut Batch, at: Time, wakes: &mut Wakes) {
        if batch.is_empty() && !self.plan.has_absence {
            return;
        }
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        self.finish_under(state, batch, at, wakes);
        self.arm(state);
    }

    pub(super) fn finish_under(
        &self,
        state: &mut State,
        batch: &mut Batch,
        at: Time,
        wakes: &mut Wakes,
    ) {
        if !state.settled || state.closed {
            return;
        }
        let pulses = std::mem::take(&mut batch.pulses);
        for &(member, leaf, value) in &pulses {
            if let Some(slot) = state.slot(member, leaf) {
                slot.truth = Truth::True;
                slot.value = value;
            }
            self.spread(state, member, leaf, batch);
        }
        for group in batch.take_dirty() {
            self.judge_group(state, group, at, AlertCause::Condition, wakes);
        }
        for &(member, leaf, _) in &pulses {
            if let Some(slot) = state.slot(member, leaf) {
                slot.truth = Truth::False;
            }
            self.spread(state, member, leaf, batch);
        }
        for group in batch.take_dirty() {
            self.judge_group(state, group, at, AlertCause::Condition, wakes);
        }
    }

    pub(super) fn truths(&self, state: &State, member: usize) -> Box<[Truth]> {
        let Some(member) = state.members.get(member) else {
            return Box::new([]);
        };
        let levels = self.plan.levels.iter();
        levels
            .map(|(_, tree)| tree.truth(&|leaf| member.leaves[leaf].truth()))
            .collect()
    }

    /// Counts a member in its group as it is now. The group.
    fn count(&self, state: &mut State, index: usize, leaf: usize) -> Option<usize> {
        let member = state.members.get_mut(index)?;
        let at = member.group?;
        let group = state.groups.get_mut(at)?;
        let mut turned = group.members == 1;
        for (level, (_, tree)) in self.plan.levels.iter().enumerate() {
            let after = tree.truth(&|leaf| member.leaves[leaf].truth());
            let before = std::mem::replace(&mut member.truths[level], after);
            group.known |= after != Truth::Unknown;
            turned |= (after == Truth::True) != (before == Truth::True);
            group.trues[level] += usize::from(after == Truth::True);
            group.trues[level] -= usize::from(before == Truth::True);
        }
        // Of several members the one that made the difference.
        if turned {
            group.value = member.leaves[leaf].value;
            self.requalify(state, index);
        }
        Some(at)
    }

    /// How good what is known of a member is, for its group.
    pub(super) fn requalify(&self, state: &mut State, index: usize) {
        let Some(member) = state.members.get(index) else {
            return;
        };
        let mut quality = Quality::Good;
        for (slot, leaf) in member.leaves.iter().zip(&self.plan.leaves) {
            let own = match (leaf, slot.truth()) {
                (Leaf::Gone { .. }, Truth::True) => Quality::Gone,
                (Leaf::Stale { .. }, Truth::True) => Quality::Stale,
                (Leaf::Gone { .. } | Leaf::Stale { .. }, _) => Quality::Good,
                _ if slot.nan => Quality::Nan,
                (_, Truth::Unknown) => Quality::NoData,
                _ => Quality::Good,
            };
            quality = quality.or_worse(own);
        }
        let value = member.leaves.iter().find_map(|slot| slot.value);
        let group = member.group;
        if let Some(group) = group.and_then(|group| state.groups.get_mut(group)) {
            group.quality = quality;
            group.value = group.value.or(value);
        }
    }

    /// Judges a group as it is counted now.
    pub(super) fn judge_group(
        &self,
        state: &mut State,
        at: usize,
        now: Time,
        cause: AlertCause,
        wakes: &mut Wakes,
    ) {
        let now = now.max(state.latest);
        state.latest = now;
        if cause != AlertCause::RuleChanged {
            self.pass(state, at, now, wakes);
        }
        let timing = state.timing;
        let Some(group) = state.groups.get_mut(at) else {
            return;
        };
        if !group.known && group.grace.is_some_and(|grace| now < grace) {
            // From before a restart, and nothing is known yet: it stays what it was.
            return self.schedule(state, at);
        }
        let resumes = group.grace.take().is_some();
        for level in 0..group.machines.len() {
            let holds = self.holds(group, level);
            let machine = &mut group.machines[level];
            if resumes {
                machine.resume(timing.slots, now);
            }
            if cause == AlertCause::RuleChanged {
                machine.retime(&timing, now);
            }
            machine.step(&timing, holds, now);
            if cause == AlertCause::Initial {
                // What was pending before a restart is news when it fires.
                let restored = matches!(machine.phase(), Phase::Restored { .. });
                group.initial[level] = holds && !restored;
            }
        }
        self.settle_level(state, at, now, cause, wakes);
        self.schedule(state, at);
    }

    pub(super) fn holds(&self, group: &GroupState, level: usize) -> bool {
        let trues = group.trues[level];
        match self.plan.group {
            Group::Each | Group::Any => trues > 0,
            Group::All => trues > 0 && trues == group.members,
            Group::AtLeast(k) => trues >= k,
        }
    }

    /// Counts the group as what it is now, and tells when the level in force is another.
    pub(super) fn settle_level(
        &self,
        state: &mut State,
        at: usize,
        now: Time,
        cause: AlertCause,
        wakes: &mut Wakes,
    ) {
        let Some(group) = state.groups.get_mut(at) else {
            return;
        };
        let now_is = group.state();
        state.by_state[group.counted as usize] -= 1;
        state.by_state[now_is as usize] += 1;
        group.counted = now_is;
        for (initial, machine) in group.initial.iter_mut().zip(&group.machines) {
            *initial &= machine.since().is_some();
        }
        let firing = group.machines.iter().rposition(Machine::is_firing);
        let level = firing.map_or(0, |level| level + 1);
        if level == group.level {
            return;
        }
        // It held when the rule was added, and has since: by a hold it is told only now.
        let initial = firing.is_some_and(|level| group.initial[level]) && group.epoch == 0;
        let cause = match cause {
            AlertCause::Condition if initial => AlertCause::Initial,
            // It was firing before a restart, and is not any more.
            AlertCause::Initial if level == 0 => AlertCause::Condition,
            cause => cause,
        };
        self.tell(state, at, level, now, cause, wakes);
    }

    pub(super) fn tell(
        &self,
        state: &mut State,
        at: usize,
        level: usize,
        now: Time,
        cause: AlertCause,
        wakes: &mut Wakes,
    ) {
        let Some(group) = state.groups.get_mut(at) else {
            return;
        };
        if let Some(machine) = level.checked_sub(1).and_then(|l| group.machines.get(l)) {
            group.since = machine.since().unwrap_or(now);
        }
        let holding = self.holding(state, at, level);
        let Some(group) = state.groups.get_mut(at) else {
            return;
        };
        if let Some((_, value)) = holding.first()
            && level > 0
        {
            group.value = value.or(group.value);
        }
        if let Some((labels, _)) = holding.first().filter(|_| level > 0) {
            group.first = labels.clone();
        }
        if cause == AlertCause::Initial && !state.rule.initial {
            group.level = level;
            return;
        }
        group.epoch += 1;
        let mut turn = self.turn(group, level, now, cause);
        turn.holding = labels_of(holding);
        group.level = level;
        self.log.tell(&state.rule, turn, &self.clock, wakes);
    }

    /// Members of a group of several for which a level's condition holds, with what was judged of them: some, if there are
    /// many. Without a level: for which the lowest one's still does.
    pub(super) fn holding(&self, state: &State, at: usize, level: usize) -> Vec<(Pairs, Reading)> {
        if self.plan.group == Group::Each {
            return Vec::new();
        }
        let level = level.saturating_sub(1);
        let members = state
            .members
            .iter()
            .filter(|member| member.group == Some(at));
        let holding = members.filter(|m| m.truths.get(level) == Some(&Truth::True));
        let value = |member: &Member| member.leaves.iter().find_map(|slot| slot.value);
        holding
            .take(HOLDING_MAX)
            .map(|m| (m.labels.clone(), value(m)))
            .collect()
    }

    pub(super) fn turn(
        &self,
        group: &GroupState,
        level: usize,
        at: Time,
        cause: AlertCause,
    ) -> Turn {
        let previous = match cause {
            AlertCause::Initial => 0,
            _ => group.level,
        };
        Turn {
            firing: level > 0,
            level: self.level_name(level).flatten(),
            previous: self.level_name(previous).flatten(),
            group: group.labels.clone(),
            series: group.series.upgrade(),
            value: group.value,
            quality: group.quality,
            epoch: group.epoch,
            holding: Vec::new(),
            first: group.first.clone(),
            holds: {
                let trues = group.trues.get(level.saturating_sub(1));
                trues.copied().unwrap_or(0)
            },
            members: group.members,
            before: group.before(),
            cause,
            at,
            since: group.since,
        }
    }
}
