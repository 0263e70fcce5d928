//! Series come and go: seats, members, groups.

use std::{
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use smallvec::SmallVec;

use super::{
    Batch, Engine,
    listener::{Deaf, Hears, RuleListener, Seat, Touch},
    lock,
    state::{Due, GroupState, Inherited, Member, Recalled, Slot, State, Work},
    time::resolution,
};
use crate::{
    cell::{Listener, Wakes},
    desc::MetricKind,
    labels::push_label,
    rule::{
        AlertCause, Group, Pairs, Quality, RuleState,
        compute::{Computation, LeafState, Truth},
        machine::Machine,
        plan::{Leaf, Place},
    },
    series::SeriesCore,
    stats::next_id,
    time::Time,
    window,
};

/// Where a series has sat down: its member, the computation that it feeds, and what the leaf remembers.
type Sat = (usize, Option<Arc<Mutex<Work>>>, Option<(Recalled, Time)>);

impl Engine {
    /// The listener of a series, with a seat for each place that it takes in the rule.
    pub(super) fn listener(
        self: &Arc<Self>,
        series: &Arc<SeriesCore>,
        newborn: bool,
        wakes: &mut Wakes,
    ) -> Box<dyn Listener> {
        let mut batch = Batch::default();
        let mut seats = SmallVec::new();
        for place in &self.plan.places {
            let own = |sink: &dyn super::Sink| {
                sink.is_own(series, place.selector.metric_name().is_some())
            };
            if place.selector.matches(series) && !self.sink.as_deref().is_some_and(own) {
                seats.push(self.seat(series, place, newborn, &mut batch, wakes));
            }
        }
        if seats.is_empty() {
            return Box::new(Deaf { id: self.id });
        }
        let now = self.clock.now();
        if series.meta.kind == MetricKind::Histogram {
            self.finish(&mut batch, now, wakes);
        }
        // Of the others the cell shows the value next: they are judged with it.
        Box::new(RuleListener::new(self.id, self.clone(), seats, batch, now))
    }

    fn seat(
        &self,
        series: &Arc<SeriesCore>,
        place: &Place,
        newborn: bool,
        batch: &mut Batch,
        wakes: &mut Wakes,
    ) -> Seat {
        let (leaf, input) = (place.leaf, place.input);
        let now = self.clock.now();
        let (member, work, recalled) = self.sit(series, place, now, batch, wakes);
        let hears = match (&self.plan.leaves[leaf], work) {
            (Leaf::Direct { judge, .. }, _) => Hears::Direct {
                state: LeafState::recalling(*judge, recalled),
                noted: None,
            },
            (Leaf::Computed { program, .. }, Some(work)) => {
                let window = program.inputs[input].window.map(|(width, _)| {
                    let id = next_id();
                    let (pane, feeder) = window::pane(id, series, newborn, self.since, width);
                    series.attach(feeder, wakes);
                    (id, pane)
                });
                let (id, pane) = window.unzip();
                let seat = lock(&work).computation.join(input, pane);
                self.adopt(member, leaf, &work);
                match id {
                    Some(id) => Hears::Window {
                        work,
                        input,
                        seat,
                        series: Arc::downgrade(series),
                        id,
                    },
                    None => Hears::Operand {
                        work,
                        input,
                        seat,
                        known: f64::NAN,
                        noted: false,
                    },
                }
            }
            (Leaf::Stale { ttl, .. }, _) => {
                let mut state = lock(&self.state);
                if let Some(slot) = state.slot(member, leaf) {
                    slot.last = slot.last.max(now);
                    slot.truth = Truth::False;
                    self.watch_silence(&mut state, member, leaf, *ttl);
                    self.spread(&mut state, member, leaf, batch);
                }
                Hears::Touch(Touch::new(series, resolution(*ttl), now))
            }
            (Leaf::Gone { .. } | Leaf::Computed { .. }, _) => Hears::Nothing,
        };
        Seat {
            member,
            leaf,
            hears,
        }
    }

    /// Finds or makes the member to which a series belongs in a place, and counts a seat of it.
    fn sit(
        &self,
        series: &Arc<SeriesCore>,
        place: &Place,
        now: Time,
        batch: &mut Batch,
        wakes: &mut Wakes,
    ) -> Sat {
        let labels = place.labels_of(series);
        let mut key = String::new();
        for (name, value) in &labels {
            push_label(&mut key, name, value);
        }
        if self.plan.single {
            key = format!("{}|{key}", series.meta.name);
        }
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        state.matched += 1;
        state.places[place.index] = true;
        state.series += 1;
        let member = match state.by_key.get(key.as_str()) {
            Some(&member) => member,
            None => {
                let is_common = key.is_empty();
                let key: Arc<str> = key.into();
                let member = self.new_member(state, key.clone(), labels.into(), series);
                let member = state.members.add(member);
                state.by_key.insert(key, member);
                if is_common {
                    state.common = Some(member);
                }
                self.inherit_shared(state, member);
                if state.settled && !state.closed {
                    state.latest = state.latest.max(now);
                    self.regroup(state, member, wakes);
                    batch
                        .dirty
                        .extend(state.members.get(member).and_then(|m| m.group));
                }
                member
            }
        };
        let Some(found) = state.members.get_mut(member) else {
            return (member, None, None);
        };
        found.seats += 1;
        let work = found.works[place.leaf].clone();
        let key = found.key.clone();
        let slot = &mut found.leaves[place.leaf];
        slot.own += 1;
        if matches!(self.plan.leaves[place.leaf], Leaf::Gone { .. }) {
            // It is there, and perhaps there again.
            slot.truth = Truth::False;
            if std::mem::replace(&mut slot.remembered, false) {
                found.seats -= 1;
                state.call_off(member, place.leaf);
            }
            self.spread(state, member, place.leaf, batch);
        }
        (member, work, state.recall(&key, place.leaf))
    }

    fn new_member(
        &self,
        state: &State,
        key: Arc<str>,
        labels: Pairs,
        series: &Arc<SeriesCore>,
    ) -> Member {
        let plan = self.plan.leaves.iter().enumerate();
        let works = plan.map(|(at, leaf)| match leaf {
            Leaf::Computed { program, judge } => Some(Arc::new(Mutex::new(Work {
                computation: Computation::new(program),
                leaf: LeafState::recalling(*judge, state.recall(&key, at)),
            }))),
            _ => None,
        });
        let works = works.collect();
        let mut leaves = vec![Slot::default(); self.plan.leaves.len()];
        for (at, slot) in leaves.iter_mut().enumerate() {
            if let Some((Recalled::Reference(value), _)) = state.recall(&key, at) {
                slot.reference = Some(value);
            }
        }
        Member {
            key,
            labels,
            name: series.meta.name.clone(),
            series: Arc::downgrade(series),
            group: None,
            leaves: leaves.into(),
            works,
            truths: vec![Truth::Unknown; self.plan.levels.len()].into(),
            seats: 0,
        }
    }

    /// A member takes the truths of series without labels.
    pub(super) fn inherit_shared(&self, state: &mut State, member: usize) {
        let Some(common) = state.common.filter(|&common| common != member) else {
            return;
        };
        let shared: Vec<Truth> = match state.members.get(common) {
            Some(common) => common.leaves.iter().map(|slot| slot.truth).collect(),
            None => return,
        };
        if let Some(member) = state.members.get_mut(member) {
            for (slot, truth) in member.leaves.iter_mut().zip(shared) {
                slot.shared = truth;
            }
        }
    }

    /// A member's computation takes the operands of series without labels.
    fn adopt(&self, member: usize, leaf: usize, work: &Arc<Mutex<Work>>) {
        let common = {
            let state = lock(&self.state);
            state
                .common
                .filter(|&common| common != member)
                .and_then(|common| state.members.get(common)?.works[leaf].clone())
        };
        let Some(common) = common else { return };
        let common = lock(&common);
        let mut work = lock(work);
        for input in 0..self.program(leaf).map_or(0, |program| program.inputs.len()) {
            work.computation.share(input, common.computation.own(input));
        }
    }

    /// A series leaves. `at`: others are judged without it; `None`: it never came, or the rule has ended.
    pub(super) fn leave(&self, listener: &mut RuleListener, at: Option<Time>, wakes: &mut Wakes) {
        if std::mem::replace(&mut listener.left, true) {
            return;
        }
        let mut batch = Batch::default();
        let seats_of = |member: usize| listener.seats.iter().filter(|s| s.member == member).count();
        for seat in &listener.seats {
            let (Hears::Operand {
                work,
                input,
                seat: place,
                ..
            }
            | Hears::Window {
                work,
                input,
                seat: place,
                ..
            }) = &seat.hears
            else {
                continue;
            };
            let stays = {
                let state = lock(&self.state);
                let member = state.members.get(seat.member);
                // One that leads has to say to the others that they have lost an operand.
                let stays =
                    |m: &Member| state.leads(seat.member) || m.seats > seats_of(seat.member);
                !state.closed && member.is_some_and(stays)
            };
            match at {
                Some(at) if stays => {
                    self.work(
                        work,
                        seat.member,
                        seat.leaf,
                        at,
                        &mut batch,
                        wakes,
                        |work| {
                            work.computation.leave(*input, *place);
                        },
                    );
                }
                _ => lock(work).computation.leave(*input, *place),
            }
        }
        {
            let mut guard = lock(&self.state);
            let state = &mut *guard;
            if state.closed {
                return;
            }
            for seat in &listener.seats {
                self.stand_up(state, seat, at, &mut batch);
            }
            for seat in &listener.seats {
                if state.members.get(seat.member).is_some_and(|m| m.seats == 0) {
                    let now = at.unwrap_or(state.latest);
                    let cause = at.map(|_| AlertCause::Removed);
                    self.drop_member(state, seat.member, now, cause, &mut batch, wakes);
                }
            }
        }
        if let Some(at) = at {
            self.finish(&mut batch, at, wakes);
        }
    }

    /// Gives one seat back.
    fn stand_up(&self, state: &mut State, seat: &Seat, at: Option<Time>, batch: &mut Batch) {
        state.series = state.series.saturating_sub(1);
        let (member, leaf) = (seat.member, seat.leaf);
        let Some(found) = state.members.get_mut(member) else {
            return;
        };
        found.seats -= 1;
        let slot = &mut found.leaves[leaf];
        slot.own = slot.own.saturating_sub(1);
        if slot.own > 0 {
            return;
        }
        match (&self.plan.leaves[leaf], at) {
            (Leaf::Gone { keep, .. }, Some(at)) => {
                let forget = at + *keep;
                slot.remembered = true;
                slot.truth = Truth::True;
                slot.due = Some(forget);
                found.seats += 1;
                state.due.insert((forget, Due::Forget(member, leaf)));
            }
            _ => {
                slot.truth = Truth::Unknown;
                slot.value = None;
                slot.nan = false;
                slot.reference = None;
                state.call_off(member, leaf);
            }
        }
        if at.is_some() && state.members.get(member).is_some_and(|m| m.seats > 0) {
            self.spread(state, member, leaf, batch);
        }
    }

    /// A member without series goes, and its group with the last one: it is resolved for `cause`. `None`: it was never
    /// judged.
    pub(super) fn drop_member(
        &self,
        state: &mut State,
        index: usize,
        now: Time,
        cause: Option<AlertCause>,
        batch: &mut Batch,
        wakes: &mut Wakes,
    ) {
        batch
            .dirty
            .extend(self.ungroup(state, index, now, cause, wakes));
        for leaf in 0..self.plan.leaves.len() {
            state.call_off(index, leaf);
        }
        let was_common = state.common == Some(index);
        let Some(member) = state.members.remove(index) else {
            return;
        };
        state.by_key.remove(&member.key);
        if let Some(sink) = &self.sink {
            sink.end(&member.key, wakes);
        }
        if was_common {
            state.common = None;
            // Nothing is shared any more.
            for other in state.members.indices() {
                for leaf in 0..self.plan.leaves.len() {
                    if let Some(slot) = state.slot(other, leaf) {
                        slot.shared = Truth::Unknown;
                    }
                    self.spread(state, other, leaf, batch);
                }
            }
        } else if state.by_key.len() == 1
            && state.settled
            && let Some(common) = state.common
        {
            // Whoever has no labels is on its own again.
            self.regroup(state, common, wakes);
            batch
                .dirty
                .extend(state.members.get(common).and_then(|m| m.group));
        }
    }

    /// Takes a member out of its group. The group, where there still is one.
    fn ungroup(
        &self,
        state: &mut State,
        index: usize,
        now: Time,
        cause: Option<AlertCause>,
        wakes: &mut Wakes,
    ) -> Option<usize> {
        let member = state.members.get_mut(index)?;
        let at = member.group.take()?;
        let truths = member.truths.clone();
        let group = state.groups.get_mut(at)?;
        group.members -= 1;
        for (count, truth) in group.trues.iter_mut().zip(truths) {
            *count -= usize::from(truth == Truth::True);
        }
        if group.members > 0 {
            return Some(at);
        }
        if let Some(cause) = cause {
            self.pass(state, at, now, wakes);
            if state.groups.get(at).is_some_and(|group| group.level > 0) {
                self.tell(state, at, 0, now, cause, wakes);
            }
        }
        let group = state.groups.remove(at)?;
        state.by_state[group.counted as usize] -= 1;
        state.by_group.remove(&group.key);
        if let Some(due) = group.due {
            state.due.remove(&(due, Due::Group(at)));
        }
        if group.epoch > 0 {
            state.past.put(group.key, group.epoch);
        }
        None
    }

    /// Puts a member into its group, with what is known of it. Judges nobody. A member without labels takes part only
    /// while it is alone: the first that has some takes it out.
    pub(super) fn regroup(&self, state: &mut State, index: usize, wakes: &mut Wakes) {
        if let Some(common) = state.common.filter(|_| state.by_key.len() > 1) {
            if common == index {
                return;
            }
            let cause = Some(AlertCause::Removed);
            self.ungroup(state, common, state.latest, cause, wakes);
        }
        let truths = self.truths(state, index);
        let Some(member) = state.members.get_mut(index).filter(|m| m.group.is_none()) else {
            return;
        };
        member.truths = truths.clone();
        let labels: Pairs = match self.plan.group {
            Group::Each if self.plan.shows_name => {
                let mut labels = member.labels.to_vec();
                labels.push(("__name__".to_owned(), member.name.to_string()));
                labels.sort();
                labels.into()
            }
            Group::Each => member.labels.clone(),
            _ => {
                let labels = member.labels.iter();
                let by = &self.plan.by;
                labels
                    .filter(|(name, _)| by.contains(name))
                    .cloned()
                    .collect()
            }
        };
        let mut series = Weak::new();
        let key: Arc<str> = if self.plan.group == Group::Each {
            if self.plan.single {
                series = member.series.clone();
            }
            member.key.clone()
        } else {
            let mut key = String::new();
            for (name, value) in &*labels {
                push_label(&mut key, name, value);
            }
            key.into()
        };
        let at = match state.by_group.get(&key) {
            Some(&at) => at,
            None => {
                let was = state.inherited.remove(&*key);
                let mut group = self.new_group(key.clone(), labels, series, was);
                if let Some((memory, until)) = &state.recalled
                    && let Some(slots) = memory.slots.get(&*key)
                {
                    for (machine, bits) in group.machines.iter_mut().zip(slots) {
                        machine.recall(*bits);
                    }
                    group.grace = group.grace.or(Some(*until));
                }
                if let Some(epoch) = state.past.take(&key) {
                    group.epoch = group.epoch.max(epoch);
                }
                group.counted = group.state();
                state.by_state[group.counted as usize] += 1;
                let at = state.groups.add(group);
                state.by_group.insert(key, at);
                at
            }
        };
        if let Some(member) = state.members.get_mut(index) {
            member.group = Some(at);
        }
        if let Some(group) = state.groups.get_mut(at) {
            group.members += 1;
            for (count, truth) in group.trues.iter_mut().zip(truths) {
                *count += usize::from(truth == Truth::True);
                group.known |= truth != Truth::Unknown;
            }
        }
        self.requalify(state, index);
    }

    pub(super) fn new_group(
        &self,
        key: Arc<str>,
        labels: Pairs,
        series: Weak<SeriesCore>,
        was: Option<Inherited>,
    ) -> GroupState {
        let levels = &self.plan.levels;
        let mut group = GroupState {
            key,
            labels,
            machines: vec![Machine::default(); levels.len()].into(),
            counted: RuleState::default(),
            initial: vec![false; levels.len()].into(),
            trues: vec![0; levels.len()].into(),
            members: 0,
            level: 0,
            epoch: 0,
            due: None,
            since: Time::ZERO,
            origin: Duration::ZERO,
            known: false,
            value: None,
            quality: Quality::NoData,
            first: Pairs::default(),
            series,
            grace: None,
        };
        let Some(was) = was else { return group };
        for ((name, _), machine) in levels.iter().zip(group.machines.iter_mut()) {
            let mut phases = was.phases.iter();
            if let Some((_, phase)) = phases.find(|(n, _)| n.as_deref() == name.as_deref()) {
                *machine = Machine::restored(*phase);
            }
        }
        group.epoch = was.epoch;
        group.since = was.since;
        group.origin = was.origin;
        group.grace = was.grace;
        group.level = was.level.map_or(0, |level| {
            let mut names = levels.iter().map(|(name, _)| name.as_deref());
            // A level that is no more still was one: the next alert says what became of it.
            names
                .position(|name| name == level.as_deref())
                .map_or(levels.len(), |at| at + 1)
        });
        group
    }

    /// A group from before that is no more.
    pub(super) fn let_go(
        &self,
        state: &mut State,
        key: &str,
        was: Inherited,
        now: Time,
        cause: AlertCause,
        wakes: &mut Wakes,
    ) {
        let labels = was.labels.clone();
        let group = self.new_group(key.into(), labels, Weak::new(), Some(was));
        let at = state.groups.add(group);
        if state.groups.get(at).is_some_and(|group| group.level > 0) {
            self.tell(state, at, 0, now, cause, wakes);
        }
        if let Some(group) = state.groups.remove(at) {
            state.past.put(group.key, group.epoch);
        }
    }
}
