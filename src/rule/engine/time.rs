//! Time in an engine: what is due, silence, and ticks.

use std::{
    any::Any,
    sync::{Arc, Mutex, Weak, atomic::Ordering},
    time::Duration,
};

use super::{
    Batch, Engine,
    listener::RuleListener,
    lock,
    state::{Due, State, Work},
};
use crate::{
    cell::{Wakes, wake_all},
    rule::{
        AlertCause,
        compute::{PERIOD_MIN, Truth},
        plan::Leaf,
    },
    series::SeriesCore,
    time::{Time, nanos},
};

/// How finely a `stale` condition looks at a busy series: a hundredth of its time to live.
pub(super) fn resolution(ttl: Duration) -> Duration {
    (ttl / 100).clamp(PERIOD_MIN, Duration::from_secs(1))
}

impl Engine {
    /// Lets pass what is due for a group, up to and including `until`.
    pub(super) fn pass(&self, state: &mut State, at: usize, until: Time, wakes: &mut Wakes) {
        let timing = state.timing;
        loop {
            let Some(group) = state.groups.get_mut(at) else {
                return;
            };
            let due = group
                .machines
                .iter()
                .filter_map(|machine| machine.due(&timing))
                .min();
            let grace = group.grace;
            // What was pending before a restart waits to be known again.
            let due = due
                .filter(|_| grace.is_none())
                .into_iter()
                .chain(grace)
                .min();
            let Some(due) = due.filter(|due| *due <= until) else {
                return;
            };
            if grace.is_some() {
                group.grace = None;
                for level in 0..group.machines.len() {
                    let holds = self.holds(group, level);
                    let machine = &mut group.machines[level];
                    if !group.known {
                        machine.recall(0);
                    }
                    machine.resume(timing.slots, due);
                    machine.step(&timing, holds, due);
                }
                self.settle_level(state, at, due, AlertCause::Restored, wakes);
                continue;
            }
            for machine in &mut group.machines {
                machine.expire(&timing, due);
            }
            self.settle_level(state, at, due, AlertCause::Condition, wakes);
            let Some(group) = state.groups.get_mut(at) else {
                return;
            };
            for machine in &mut group.machines {
                if machine.due(&timing) == Some(due) {
                    machine.turn(&timing, due);
                }
            }
            self.settle_level(state, at, due, AlertCause::Condition, wakes);
        }
    }

    /// Notes when something is due for a group next.
    pub(super) fn schedule(&self, state: &mut State, at: usize) {
        let timing = state.timing;
        let Some(group) = state.groups.get_mut(at) else {
            return;
        };
        let machines = group.machines.iter();
        let due = machines.filter_map(|machine| machine.due(&timing)).min();
        let due = group.grace.or(due);
        if due == group.due {
            return;
        }
        let before = std::mem::replace(&mut group.due, due);
        if let Some(before) = before {
            state.due.remove(&(before, Due::Group(at)));
        }
        if let Some(due) = due {
            state.due.insert((due, Due::Group(at)));
        }
    }

    /// Makes sure that the clock calls when something is due.
    pub(super) fn arm(&self, state: &mut State) {
        let Some(&(first, _)) = state.due.first() else {
            return;
        };
        if !state.settled || state.closed || state.armed.is_some_and(|(at, _)| at <= first) {
            return;
        }
        if let Some((_, later)) = state.armed.take() {
            // Otherwise each thing that is due soon would leave another timer for what is due late.
            self.clock.cancel(later);
        }
        let me = self.me.clone();
        let key = self.clock.at(first, move || {
            if let Some(engine) = me.upgrade() {
                engine.on_time(first);
            }
        });
        state.armed = Some((first, key));
    }

    fn on_time(&self, armed: Time) {
        let now = self.clock.now();
        let mut wakes = Wakes::new();
        let mut rearm = Vec::new();
        {
            let mut guard = lock(&self.state);
            let state = &mut *guard;
            state.armed = state.armed.filter(|(at, _)| *at != armed);
            if state.closed {
                return;
            }
            let mut batch = Batch::default();
            while let Some(&(at, due)) = state.due.first().filter(|(at, _)| *at <= now) {
                state.due.pop_first();
                self.on_due(state, at, due, &mut rearm, &mut batch, &mut wakes);
                // What falls due at one instant is judged as one: nobody hears of a state between two silences.
                if state.due.first().is_none_or(|(next, _)| *next > at) {
                    self.finish_under(state, &mut batch, at, &mut wakes);
                }
            }
            self.arm(state);
        }
        for series in rearm.iter().filter_map(Weak::upgrade) {
            series.visit(self.id, &mut wakes, |listener, _| {
                let listener: &mut dyn Any = listener;
                if let Some(listener) = listener.downcast_mut::<RuleListener>() {
                    listener.rearm(now);
                }
            });
        }
        self.wake(wakes);
    }

    fn on_due(
        &self,
        state: &mut State,
        at: Time,
        due: Due,
        rearm: &mut Vec<Weak<SeriesCore>>,
        batch: &mut Batch,
        wakes: &mut Wakes,
    ) {
        match due {
            Due::Group(index) => {
                if let Some(group) = state.groups.get_mut(index) {
                    group.due = None;
                }
                state.latest = state.latest.max(at);
                self.pass(state, index, at, wakes);
                self.schedule(state, index);
            }
            Due::Stale(member, leaf) => {
                let Leaf::Stale { ttl, .. } = self.plan.leaves[leaf] else {
                    return;
                };
                let Some(slot) = state.slot(member, leaf) else {
                    return;
                };
                slot.due = None;
                if slot.last + ttl <= at {
                    slot.truth = Truth::True;
                    self.spread(state, member, leaf, batch);
                } else {
                    self.watch_silence(state, member, leaf, ttl);
                }
            }
            Due::Rearm(member, leaf) => {
                let Leaf::Stale { ttl, .. } = self.plan.leaves[leaf] else {
                    return;
                };
                let Some(slot) = state.slot(member, leaf) else {
                    return;
                };
                // It was busy until now, for all that is known.
                slot.last = slot.last.max(at);
                slot.rearm = None;
                rearm.append(&mut slot.busy);
                self.watch_silence(state, member, leaf, ttl);
            }
            Due::Forget(member, leaf) => {
                let Some(found) = state.members.get_mut(member) else {
                    return;
                };
                let slot = &mut found.leaves[leaf];
                if !std::mem::replace(&mut slot.remembered, false) {
                    return;
                }
                slot.truth = Truth::False;
                slot.due = None;
                slot.own += 1;
                found.seats -= 1;
                let empty = found.seats == 0;
                let holds = self.truths(state, member).contains(&Truth::True);
                if let Some(slot) = state.slot(member, leaf) {
                    slot.truth = Truth::Unknown;
                    slot.own -= 1;
                }
                if empty {
                    // It is over since it is forgotten; or goes though it would still hold, or be kept firing.
                    let cause = if holds || !state.timing.keep.is_zero() {
                        AlertCause::Removed
                    } else {
                        AlertCause::Condition
                    };
                    self.drop_member(state, member, at, Some(cause), batch, wakes);
                } else {
                    self.spread(state, member, leaf, batch);
                }
            }
            Due::Grace => {
                // Who is not known by now begins anew. A leaf that has not heard anything yet sees to itself.
                state.recalled = None;
                for member in state.members.indices() {
                    let member = state.members.get_mut(member).into_iter();
                    for slot in member.flat_map(|member| &mut member.leaves) {
                        if slot.truth == Truth::Unknown {
                            slot.reference = None;
                        }
                    }
                }
                for (key, was) in std::mem::take(&mut state.inherited) {
                    self.let_go(state, &key, was, at, AlertCause::Restored, wakes);
                }
            }
        }
    }

    /// Looks at a series when it could be stale, unless that is seen to already.
    pub(super) fn watch_silence(
        &self,
        state: &mut State,
        member: usize,
        leaf: usize,
        ttl: Duration,
    ) {
        let Some(slot) = state.slot(member, leaf) else {
            return;
        };
        if slot.due.is_some() || slot.truth == Truth::True {
            return;
        }
        let due = slot.last + ttl;
        slot.due = Some(due);
        state.due.insert((due, Due::Stale(member, leaf)));
    }

    /// A series under a `stale` condition was mutated. `busy`: this one, which will not be heard until it is asked again.
    pub(super) fn touched(
        &self,
        member: usize,
        leaf: usize,
        at: Time,
        busy: Option<&Weak<SeriesCore>>,
        batch: &mut Batch,
        wakes: &mut Wakes,
    ) {
        let Leaf::Stale { ttl, .. } = self.plan.leaves[leaf] else {
            return;
        };
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        if state.closed {
            return;
        }
        state.evaluated = Some(at);
        let settled = state.settled;
        let Some(slot) = state.slot(member, leaf) else {
            return;
        };
        let silent_until = slot.last + ttl;
        if slot.truth != Truth::True && silent_until <= at && settled {
            // It was stale for a moment, and the timer is late.
            slot.truth = Truth::True;
            let mut late = Batch::default();
            self.spread(state, member, leaf, &mut late);
            self.finish_under(state, &mut late, silent_until, wakes);
        }
        let Some(slot) = state.slot(member, leaf) else {
            return;
        };
        slot.last = slot.last.max(at);
        if slot.truth != Truth::False {
            slot.truth = Truth::False;
            self.spread(state, member, leaf, batch);
        }
        self.watch_silence(state, member, leaf, ttl);
        if let (Some(series), Some(slot)) = (busy, state.slot(member, leaf)) {
            slot.busy.push(series.clone());
            if slot.rearm.is_none() {
                let due = at + resolution(ttl);
                slot.rearm = Some(due);
                state.due.insert((due, Due::Rearm(member, leaf)));
            }
        }
    }

    /// Ticks at the next multiple of `period`.
    pub(super) fn tick_after(self: &Arc<Self>, now: Time, period: Duration) {
        let period = nanos(period);
        let next = Time((now.0 / period + 1).saturating_mul(period));
        let me = Arc::downgrade(self);
        let mut state = lock(&self.state);
        if state.closed {
            return;
        }
        let key = self.clock.at(next, move || {
            let Some(engine) = me.upgrade() else { return };
            if engine.closed.load(Ordering::SeqCst) {
                return;
            }
            if engine.clock.is_manual() {
                return engine.tick(next);
            }
            // Not on the clock's thread: all timers of the process share it.
            if let Some(inner) = engine.inner.upgrade() {
                inner.timers.start();
                inner
                    .timers
                    .spawn(async move { engine.tick(engine.clock.now()) });
            }
        });
        state.ticking = Some(key);
    }

    /// Windows and moving averages have moved on.
    fn tick(self: &Arc<Self>, now: Time) {
        let mut wakes = Wakes::new();
        let mut batch = Batch::default();
        for (member, leaf, work) in self.works() {
            if self
                .program(leaf)
                .is_some_and(|program| program.period.is_some())
            {
                self.look(&work, member, leaf, now, &mut batch, &mut wakes);
            }
        }
        self.finish(&mut batch, now, &mut wakes);
        wake_all(&mut wakes);
        if let Some(period) = self.plan.period {
            self.tick_after(now, period);
        }
    }

    /// All computations, those of series without labels first.
    pub(super) fn works(&self) -> Vec<(usize, usize, Arc<Mutex<Work>>)> {
        let state = lock(&self.state);
        let common = state.common;
        let rest = state.members.indices().into_iter();
        let rest = rest.filter(|&member| Some(member) != common);
        let mut works = Vec::new();
        for index in common.into_iter().chain(rest) {
            let Some(member) = state.members.get(index) else {
                continue;
            };
            for (leaf, work) in member.works.iter().enumerate() {
                works.extend(work.clone().map(|work| (index, leaf, work)));
            }
        }
        works
    }
}
