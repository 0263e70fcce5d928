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

use std::{
    any::Any,
    collections::{BTreeSet, HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use super::{
    AlertCause, Group, Quality, Rule, RuleState,
    alert::Pairs,
    compute::{Computation, Edge, LeafState, PERIOD_MIN, Program, Reading, Truth, same},
    log::{Log, Turn},
    machine::{Machine, Phase},
    plan::{Leaf, Plan},
};
use crate::{
    bus::Inner,
    cell::{Listener, Wakes, wake_all},
    clock::Clock,
    interest::Interval,
    labels::push_label,
    mailbox::Mailbox,
    selector::Selector,
    series::{SeriesCore, is_unmeasured},
    stats::next_id,
    time::{Stamp, Time, nanos},
    watch::{Make, Watch},
    window::{self, Pane},
};

/// Mutations of a series that a `stale` condition times exactly, in each hundredth of its time to live. Of a busier one
/// it notes only that there were some.
const TOUCHES_EXACT: u32 = 8;

/// Groups that have gone and whose epoch is remembered.
const PAST_MAX: usize = 10_000;

/// Where what is computed goes.
pub(crate) trait Sink: Send + Sync {
    /// The expression has this value for these labels. Under the member's lock: hands what is to be done to `wakes`.
    fn put(&self, key: &str, labels: &[(String, String)], value: Reading, wakes: &mut Wakes);
    /// There are no such series any more.
    fn end(&self, key: &str, wakes: &mut Wakes);
    /// Whether the engine must not look at this series: it made it.
    fn is_own(&self, series: &SeriesCore) -> bool;
}

pub(crate) struct Engine {
    me: Weak<Engine>,
    pub(crate) rule: Rule,
    plan: Plan,
    inner: Weak<Inner>,
    clock: Clock,
    log: Arc<Log>,
    sink: Option<Arc<dyn Sink>>,
    watches: Mutex<Vec<Arc<Watch>>>,
    /// Panes that were made, for whoever takes a seat next: the series, the input, the pane.
    panes: Mutex<Vec<(Weak<SeriesCore>, (usize, usize), Arc<Pane>)>>,
    settled: AtomicBool,
    closed: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    settled: bool,
    closed: bool,
    members: Slab<Member>,
    by_key: HashMap<Box<str>, usize>,
    groups: Slab<GroupState>,
    by_group: HashMap<Box<str>, usize>,
    due: BTreeSet<(Time, Due)>,
    armed: Option<Time>,
    /// Time never goes back, whichever thread comes late.
    latest: Time,
    evaluated: Option<Time>,
    value: Reading,
    matched: u64,
    series: usize,
    /// During a tick: groups of which a member has turned, judged at its end.
    ticked: Option<BTreeSet<usize>>,
    /// Epochs of groups that have gone, the oldest first, so that they go on should they come back.
    past: HashMap<Box<str>, u64>,
    past_order: VecDeque<Box<str>>,
    /// Groups as they were before a restart or a change of the rule, until they are here again.
    inherited: HashMap<Box<str>, Inherited>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Group(usize),
    Stale(usize, usize),
    Rearm(usize, usize),
    Forget(usize, usize),
    /// What was restored and has not come back is let go.
    Grace,
}

/// A set of labels and what is known of it.
struct Member {
    key: Box<str>,
    labels: Vec<(String, String)>,
    name: Arc<str>,
    series: Weak<SeriesCore>,
    group: Option<usize>,
    leaves: Box<[Slot]>,
    /// Of computed leaves.
    works: Box<[Option<Arc<Mutex<Work>>>]>,
    /// Per level.
    truths: Box<[Truth]>,
    /// Series times the inputs they feed, and memories of those that are gone.
    seats: usize,
}

/// What a member knows of one leaf.
#[derive(Clone, Default)]
struct Slot {
    truth: Truth,
    /// Series of the member's own that feed it; without any, what those without labels say counts.
    own: usize,
    shared: Truth,
    value: Reading,
    nan: bool,
    /// Of `stale`: the last mutation known, and when that is looked at next.
    last: Time,
    due: Option<Time>,
    /// Of `stale`: who listens, to be asked again.
    listener: Option<(Weak<SeriesCore>, u64)>,
    /// Of `gone`: a memory holds a seat.
    remembered: bool,
}

impl Slot {
    fn truth(&self) -> Truth {
        if self.own > 0 || self.remembered {
            self.truth
        } else {
            self.shared
        }
    }
}

/// A computed leaf of one member.
pub(crate) struct Work {
    computation: Computation,
    leaf: LeafState,
}

struct GroupState {
    key: Box<str>,
    labels: Pairs,
    machines: Box<[Machine]>,
    /// Per level: it has held since the rule was added.
    initial: Box<[bool]>,
    /// Per level: members of which the condition is true.
    trues: Box<[usize]>,
    members: usize,
    /// The level in force: 0 for none.
    level: usize,
    epoch: u64,
    due: Option<Time>,
    since: Time,
    value: Reading,
    quality: Quality,
    series: Weak<SeriesCore>,
    /// Until then it stays as it was before the restart while nothing is known.
    grace: Option<Time>,
}

/// A group as it was.
#[derive(Clone, Debug)]
pub(crate) struct Inherited {
    pub(crate) labels: Pairs,
    /// By the level's name.
    pub(crate) phases: Vec<(Option<String>, Phase)>,
    pub(crate) level: Option<Option<String>>,
    pub(crate) epoch: u64,
    pub(crate) since: Time,
    /// Of one from before a restart: how long it waits to be known again.
    pub(crate) grace: Option<Time>,
}

/// One group, as it is shown.
#[derive(Clone, Debug)]
pub(crate) struct GroupView {
    pub(crate) key: String,
    pub(crate) labels: Pairs,
    pub(crate) state: RuleState,
    pub(crate) level: Option<Arc<str>>,
    pub(crate) since: Option<Time>,
    pub(crate) value: Reading,
    pub(crate) quality: Quality,
    pub(crate) epoch: u64,
    pub(crate) phases: Vec<(Option<String>, Phase)>,
    pub(crate) alert_since: Time,
}

/// A rule's engine, as it is shown.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    pub(crate) groups: usize,
    pub(crate) by_state: [usize; 4],
    pub(crate) series: usize,
    pub(crate) matched: u64,
    pub(crate) value: Reading,
    pub(crate) evaluated: Option<Time>,
    /// Those that are not inactive.
    pub(crate) active: Vec<GroupView>,
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
        Arc::new_cyclic(|me| Engine {
            me: me.clone(),
            rule,
            plan,
            inner: Arc::downgrade(inner),
            clock: inner.clock.clone(),
            log,
            sink,
            watches: Mutex::default(),
            panes: Mutex::default(),
            settled: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            state: Mutex::default(),
        })
    }

    /// Attaches to all series there are. Nobody is judged before [`settle`](Engine::settle).
    pub(crate) fn start(self: &Arc<Self>, inner: &Arc<Inner>) {
        let since = self.clock.now();
        for (i, leaf) in self.plan.leaves.iter().enumerate() {
            match leaf {
                Leaf::Direct { selector, .. }
                | Leaf::Stale { selector, .. }
                | Leaf::Gone { selector, .. } => self.watch(inner, selector, i, 0),
                Leaf::Computed { program, .. } => {
                    for (j, input) in program.inputs.iter().enumerate() {
                        let Ok(selector) = &input.source.selector else {
                            continue;
                        };
                        if let Some((width, _)) = input.window {
                            self.watch_panes(inner, selector, (i, j), since, width);
                        }
                        self.watch(inner, selector, i, j);
                    }
                }
            }
        }
    }

    fn watch(self: &Arc<Self>, inner: &Arc<Inner>, selector: &Selector, leaf: usize, input: usize) {
        let id = next_id();
        let engine = self.clone();
        let make: Make = Box::new(move |series, newborn, wakes| {
            engine.listener(id, series, (leaf, input), newborn, wakes)
        });
        self.enter(inner, id, selector, make);
    }

    /// Windows get a listener of their own. It is in place before the series takes its seat.
    fn watch_panes(
        self: &Arc<Self>,
        inner: &Arc<Inner>,
        selector: &Selector,
        seat: (usize, usize),
        since: Time,
        width: Duration,
    ) {
        let id = next_id();
        let engine = Arc::downgrade(self);
        let make: Make = Box::new(move |series, newborn, _| {
            let (pane, listener) = window::pane(id, series, newborn, since, width);
            if let Some(engine) = engine.upgrade() {
                let mut panes = lock(&engine.panes);
                panes.retain(|(series, ..)| series.strong_count() > 0);
                panes.push((Arc::downgrade(series), seat, pane));
            }
            listener
        });
        self.enter(inner, id, selector, make);
    }

    fn enter(&self, inner: &Arc<Inner>, id: u64, selector: &Selector, make: Make) {
        let nothing = Arc::new(Mailbox::<()>::new(1));
        let watch = Arc::new(Watch::of_rule(id, selector.clone(), make, nothing));
        lock(&self.watches).push(watch.clone());
        inner.watch(&watch);
    }

    /// Judges all groups for the first time, as `cause`. `inherited`: what they were before, by group.
    pub(crate) fn settle(
        self: &Arc<Self>,
        inherited: HashMap<Box<str>, Inherited>,
        cause: AlertCause,
        grace: Option<Time>,
        wakes: &mut Wakes,
    ) {
        let now = self.clock.now();
        let works = self.works();
        self.settled.store(true, Ordering::SeqCst);
        for (member, leaf, work) in works {
            self.look(&work, member, leaf, now, wakes);
        }
        let mut state = lock(&self.state);

        state.latest = state.latest.max(now);
        state.settled = true;
        state.inherited = inherited;
        if let Some(grace) = grace.filter(|_| !state.inherited.is_empty()) {
            state.due.insert((grace, Due::Grace));
        }
        for member in state.members.indices() {
            self.regroup_member(&mut state, member, wakes);
        }
        for group in state.groups.indices() {
            self.judge_group(&mut state, group, now, cause, wakes);
        }
        if cause == AlertCause::RuleChanged {
            // Groups that the changed rule does not have.
            for (key, was) in std::mem::take(&mut state.inherited) {
                self.let_go(&mut state, &key, was, now, cause, wakes);
            }
        }
        self.arm(&mut state);
        drop(state);
        if let Some(period) = self.plan.period {
            self.tick_after(now, period);
        }
    }

    /// Ends it. `cause`: what is firing is resolved for this reason; `None`: it goes on elsewhere.
    pub(crate) fn close(
        &self,
        cause: Option<AlertCause>,
        wakes: &mut Wakes,
    ) -> HashMap<Box<str>, Inherited> {
        let now = self.clock.now();
        let mut state = lock(&self.state);
        let state = &mut *state;
        if state.closed {
            return HashMap::new();
        }
        for group in state.groups.indices() {
            self.pass(state, group, now, wakes);
        }
        state.closed = true;
        self.closed.store(true, Ordering::SeqCst);
        let mut kept = std::mem::take(&mut state.inherited);
        for index in state.groups.indices() {
            let Some(group) = state.groups.get(index) else {
                continue;
            };
            match cause {
                None => {
                    kept.insert(group.key.clone(), self.inherit(group));
                }
                Some(cause) if group.level > 0 => self.tell(state, index, 0, now, cause, wakes),
                Some(_) => {}
            }
        }
        if let Some(sink) = &self.sink {
            for member in state.members.indices() {
                if let Some(member) = state.members.get(member) {
                    sink.end(&member.key, wakes);
                }
            }
        }
        kept
    }

    /// Takes its listeners out. After [`close`](Engine::close), without any lock.
    pub(crate) fn stop(&self, inner: &Inner) {
        for watch in std::mem::take(&mut *lock(&self.watches)) {
            inner.unwatch(&watch);
        }
        let mut state = lock(&self.state);
        let gone = std::mem::take(&mut *state);
        state.closed = true;
        state.settled = true;
        state.matched = gone.matched;
        drop(state);
        drop(gone);
    }

    fn inherit(&self, group: &GroupState) -> Inherited {
        Inherited {
            labels: group.labels.clone(),
            phases: self.phases(group),
            level: self
                .level_name(group.level)
                .map(|name| name.map(|n| n.to_string())),
            epoch: group.epoch,
            since: group.since,
            grace: None,
        }
    }

    fn phases(&self, group: &GroupState) -> Vec<(Option<String>, Phase)> {
        let names = self
            .plan
            .levels
            .iter()
            .map(|(name, _)| name.as_deref().map(str::to_owned));
        names
            .zip(group.machines.iter().map(Machine::phase))
            .collect()
    }

    /// `None` for no level; `Some(None)` for the only one.
    fn level_name(&self, level: usize) -> Option<Option<Arc<str>>> {
        let (name, _) = self.plan.levels.get(level.checked_sub(1)?)?;
        Some(name.clone())
    }

    pub(crate) fn view(&self) -> View {
        let now = self.clock.now();
        let mut wakes = Wakes::new();
        let mut state = lock(&self.state);
        let mut view = View {
            groups: state.by_group.len(),
            series: state.series,
            matched: state.matched,
            value: state.value,
            evaluated: state.evaluated,
            ..View::default()
        };
        for index in state.groups.indices() {
            // As it is, even where a timer is late.
            if state.settled && !state.closed {
                self.pass(&mut state, index, now, &mut wakes);
            }
            let Some(group) = state.groups.get(index) else {
                continue;
            };
            let rule_state = self.state_of(group);
            view.by_state[rule_state as usize] += 1;
            if rule_state != RuleState::Inactive {
                view.active.push(self.view_of(group));
            }
        }
        drop(state);
        self.wake(wakes);
        view
    }

    fn view_of(&self, group: &GroupState) -> GroupView {
        GroupView {
            key: group.key.to_string(),
            labels: group.labels.clone(),
            state: self.state_of(group),
            level: self.level_name(group.level).flatten(),
            since: group.machines.iter().rev().find_map(Machine::since),
            value: group.value,
            quality: group.quality,
            epoch: group.epoch,
            phases: self.phases(group),
            alert_since: group.since,
        }
    }

    fn state_of(&self, group: &GroupState) -> RuleState {
        group
            .machines
            .iter()
            .map(Machine::state)
            .max()
            .unwrap_or_default()
    }

    /// Calls `f` with what is firing, under the rule's lock: nothing fires or is resolved meanwhile.
    pub(crate) fn with_firing(&self, f: impl FnOnce(Vec<Turn>)) {
        let state = lock(&self.state);
        let firing = if state.closed || !state.settled {
            Vec::new()
        } else {
            let groups = state
                .groups
                .indices()
                .into_iter()
                .filter_map(|i| state.groups.get(i));
            groups
                .filter(|group| group.level > 0)
                .map(|group| self.turn(group, group.level, state.latest, AlertCause::Initial))
                .collect()
        };
        f(firing);
    }

    /// Groups that have not come back yet after a restart.
    pub(crate) fn waiting(&self) -> Vec<(String, Inherited)> {
        let state = lock(&self.state);
        let waiting = state.inherited.iter();
        waiting
            .map(|(key, was)| (key.to_string(), was.clone()))
            .collect()
    }

    // ---- series come and go ----

    /// The listener of a series that feeds an input of a leaf. Takes a seat.
    fn listener(
        self: &Arc<Self>,
        id: u64,
        series: &Arc<SeriesCore>,
        (leaf, input): (usize, usize),
        newborn: bool,
        wakes: &mut Wakes,
    ) -> Box<dyn Listener> {
        let by = match &self.plan.leaves[leaf] {
            Leaf::Computed { program, .. } => {
                let source = &program.inputs[input].source;
                source.gather.as_ref().map(|gather| gather.by.as_slice())
            }
            _ => None,
        };
        if self.sink.as_ref().is_some_and(|sink| sink.is_own(series)) {
            return Box::new(Deaf { id });
        }
        let labels = self.plan.labels_of(series, by);
        let (member, work) = self.sit(series, labels, leaf, by.is_some(), wakes);
        let kind = match &self.plan.leaves[leaf] {
            Leaf::Direct { judge, .. } => Hears::Direct {
                state: LeafState::new(*judge),
                noted: None,
            },
            Leaf::Computed { program, .. } => match work {
                Some(work) => {
                    let pane = self.take_pane(series, (leaf, input));
                    let is_window = program.inputs[input].window.is_some();
                    let seat = lock(&work).computation.join(input, pane);
                    self.adopt(member, leaf, &work);
                    Hears::Operand {
                        work,
                        input,
                        seat,
                        known: f64::NAN,
                        noted: None,
                        deaf: is_window,
                    }
                }
                None => return Box::new(Deaf { id }),
            },
            Leaf::Stale { ttl, .. } => {
                let now = self.clock.now();
                let mut state = lock(&self.state);
                if let Some(slot) = slot_mut(&mut state, member, leaf) {
                    slot.listener = Some((Arc::downgrade(series), id));
                    slot.last = slot.last.max(now);
                    self.watch_silence(&mut state, member, leaf, *ttl);
                    self.arm(&mut state);
                }
                Hears::Touch(Touch {
                    step: resolution(*ttl),
                    since: now,
                    touches: 0,
                    open: false,
                    noted: None,
                })
            }
            Leaf::Gone { .. } => Hears::Nothing,
        };
        Box::new(RuleListener {
            id,
            engine: self.clone(),
            member,
            leaf,
            newborn,
            left: false,
            kind,
        })
    }

    /// Finds or makes the member of these labels, and counts a seat of it.
    fn sit(
        &self,
        series: &Arc<SeriesCore>,
        labels: Vec<(String, String)>,
        leaf: usize,
        gathered: bool,
        wakes: &mut Wakes,
    ) -> (usize, Option<Arc<Mutex<Work>>>) {
        let mut key = String::new();
        if self.plan.single && !gathered {
            key.push_str(&series.meta.name);
            key.push('|');
        }
        let mut text = String::new();
        for (name, value) in &labels {
            push_label(&mut text, name, value);
        }
        key.push_str(&text);
        let mut state = lock(&self.state);
        let state = &mut *state;
        state.matched += 1;
        state.series += 1;
        let member = match state.by_key.get(key.as_str()) {
            Some(&member) => member,
            None => {
                let works = self.plan.leaves.iter().map(|leaf| match leaf {
                    Leaf::Computed { program, judge } => Some(Arc::new(Mutex::new(Work {
                        computation: Computation::new(program),
                        leaf: LeafState::new(*judge),
                    }))),
                    _ => None,
                });
                let member = state.members.add(Member {
                    key: key.as_str().into(),
                    labels,
                    name: series.meta.name.clone(),
                    series: Arc::downgrade(series),
                    group: None,
                    leaves: vec![Slot::default(); self.plan.leaves.len()].into(),
                    works: works.collect(),
                    truths: vec![Truth::Unknown; self.plan.levels.len()].into(),
                    seats: 0,
                });
                state.by_key.insert(key.as_str().into(), member);
                self.inherit_shared(state, member);
                if state.settled && !state.closed {
                    self.regroup_member(state, member, wakes);
                }
                member
            }
        };
        let Some(found) = state.members.get_mut(member) else {
            return (member, None);
        };
        found.seats += 1;
        found.leaves[leaf].own += 1;
        let work = found.works[leaf].clone();
        if matches!(self.plan.leaves[leaf], Leaf::Gone { .. }) {
            // It is there, and perhaps there again.
            found.leaves[leaf].truth = Truth::False;
            if std::mem::replace(&mut found.leaves[leaf].remembered, false) {
                found.seats -= 1;
                self.spread(state, member, leaf, self.clock.now(), wakes);
                self.arm(state);
            }
        }
        (member, work)
    }

    fn take_pane(&self, series: &Arc<SeriesCore>, seat: (usize, usize)) -> Option<Arc<Pane>> {
        let mut panes = lock(&self.panes);
        let at = panes
            .iter()
            .position(|(s, at, _)| *at == seat && s.as_ptr() == Arc::as_ptr(series))?;
        Some(panes.swap_remove(at).2)
    }

    /// A new member takes the truths of series without labels.
    fn inherit_shared(&self, state: &mut State, member: usize) {
        let Some(common) = self.common(state).filter(|&common| common != member) else {
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
            self.common(&state)
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

    fn program(&self, leaf: usize) -> Option<&Program> {
        match &self.plan.leaves[leaf] {
            Leaf::Computed { program, .. } => Some(program),
            _ => None,
        }
    }

    /// The member without labels, whose series take part everywhere.
    fn common(&self, state: &State) -> Option<usize> {
        if self.plan.single {
            return None;
        }
        state.by_key.get("").copied()
    }

    /// Whether a member is judged: one without labels only while it is alone.
    fn takes_part(&self, state: &State, member: usize) -> bool {
        self.common(state) != Some(member) || state.by_key.len() == 1
    }

    /// A series leaves. `at`: others are judged without it; `None`: it never came.
    fn leave(&self, listener: &mut RuleListener, at: Option<Time>, wakes: &mut Wakes) {
        if std::mem::replace(&mut listener.left, true) {
            return;
        }
        let (member, leaf) = (listener.member, listener.leaf);
        let last = {
            let state = lock(&self.state);
            if state.closed {
                return;
            }
            state
                .members
                .get(member)
                .is_none_or(|member| member.seats <= 1)
        };
        if let Hears::Operand {
            work, input, seat, ..
        } = &listener.kind
        {
            let (input, seat) = (*input, *seat);
            match at {
                Some(at) if !last => self.work(&work.clone(), member, leaf, at, wakes, |work| {
                    work.computation.leave(input, seat);
                }),
                _ => lock(work).computation.leave(input, seat),
            }
        }
        let mut state = lock(&self.state);
        let state = &mut *state;
        if state.closed {
            return;
        }
        state.series = state.series.saturating_sub(1);
        let now = at.unwrap_or(state.latest);
        let gone_keep = match (&self.plan.leaves[leaf], at) {
            (Leaf::Gone { keep, .. }, Some(_)) => Some(*keep),
            _ => None,
        };
        let Some(found) = state.members.get_mut(member) else {
            return;
        };
        found.seats -= 1;
        let slot = &mut found.leaves[leaf];
        slot.own = slot.own.saturating_sub(1);
        let mut turned = false;
        if slot.own == 0 {
            match gone_keep {
                Some(keep) => {
                    slot.remembered = true;
                    slot.truth = Truth::True;
                    found.seats += 1;
                    state.due.insert((now + keep, Due::Forget(member, leaf)));
                }
                None => {
                    slot.truth = Truth::Unknown;
                    slot.value = None;
                    slot.nan = false;
                }
            }
            turned = true;
        }
        let empty = state
            .members
            .get(member)
            .is_some_and(|member| member.seats == 0);
        if empty {
            self.drop_member(state, member, now, at.is_some(), wakes);
        } else if turned && at.is_some() {
            self.spread(state, member, leaf, now, wakes);
        }
        self.arm(state);
    }

    /// A member without series goes, and its group with the last one.
    fn drop_member(
        &self,
        state: &mut State,
        index: usize,
        now: Time,
        tells: bool,
        wakes: &mut Wakes,
    ) {
        self.ungroup(state, index, now, tells, wakes);
        let Some(member) = state.members.remove(index) else {
            return;
        };
        state.by_key.remove(&member.key);
        let of_member = |due: &Due| match *due {
            Due::Stale(m, _) | Due::Rearm(m, _) | Due::Forget(m, _) => m == index,
            Due::Group(_) | Due::Grace => false,
        };
        if state.due.iter().any(|(_, due)| of_member(due)) {
            state.due.retain(|(_, due)| !of_member(due));
        }
        if let Some(sink) = &self.sink {
            sink.end(&member.key, wakes);
        }
        if !self.plan.single && state.by_key.len() == 1 && state.settled {
            // Whoever has no labels is on its own again.
            if let Some(common) = self.common(state) {
                self.regroup_member(state, common, wakes);
                if let Some(group) = state.members.get(common).and_then(|m| m.group) {
                    self.judge_group(state, group, now, AlertCause::Condition, wakes);
                }
            }
        }
    }

    fn ungroup(&self, state: &mut State, index: usize, now: Time, tells: bool, wakes: &mut Wakes) {
        let Some(member) = state.members.get_mut(index) else {
            return;
        };
        let Some(at) = member.group.take() else {
            return;
        };
        let truths = member.truths.clone();
        let Some(group) = state.groups.get_mut(at) else {
            return;
        };
        group.members -= 1;
        for (count, truth) in group.trues.iter_mut().zip(truths) {
            *count -= usize::from(truth == Truth::True);
        }
        if group.members > 0 {
            if tells {
                self.judge_group(state, at, now, AlertCause::Condition, wakes);
            }
            return;
        }
        if tells {
            self.pass(state, at, now, wakes);
        }
        if state.groups.get(at).is_some_and(|group| group.level > 0) {
            self.tell(state, at, 0, now, AlertCause::Removed, wakes);
        }
        if let Some(group) = state.groups.remove(at) {
            state.by_group.remove(&group.key);
            if let Some(due) = group.due {
                state.due.remove(&(due, Due::Group(at)));
            }
            if group.epoch > 0 {
                state.past.insert(group.key.clone(), group.epoch);
                state.past_order.push_back(group.key);
                if state.past_order.len() > PAST_MAX
                    && let Some(oldest) = state.past_order.pop_front()
                {
                    state.past.remove(&oldest);
                }
            }
        }
    }

    /// Puts a member into its group, with what is known of it. Judges nobody.
    fn regroup_member(&self, state: &mut State, index: usize, wakes: &mut Wakes) {
        if !self.takes_part(state, index) {
            return;
        }
        if state.by_key.len() == 2
            && let Some(common) = self.common(state)
            && common != index
        {
            self.ungroup(state, common, self.clock.now(), true, wakes);
        }
        let truths = self.truths(state, index);
        let Some(member) = state.members.get_mut(index) else {
            return;
        };
        if member.group.is_some() {
            return;
        }
        member.truths = truths.clone();
        let labels = match self.plan.group {
            Group::Each => {
                let mut labels = member.labels.clone();
                let named = match self.plan.leaves.first() {
                    Some(Leaf::Direct { selector, .. }) => selector.metric_name().is_some(),
                    _ => true,
                };
                if self.plan.single && !named {
                    labels.push(("__name__".to_owned(), member.name.to_string()));
                    labels.sort();
                }
                labels
            }
            _ => {
                let wanted = member.labels.iter();
                wanted
                    .filter(|(name, _)| self.plan.by.contains(name))
                    .cloned()
                    .collect()
            }
        };
        let mut key = String::new();
        if self.plan.group == Group::Each {
            key.push_str(&member.key);
        } else {
            for (name, value) in &labels {
                push_label(&mut key, name, value);
            }
        }
        let alone = self.plan.group == Group::Each && self.plan.single;
        let series = if alone {
            member.series.clone()
        } else {
            Weak::new()
        };
        let group = match state.by_group.get(key.as_str()) {
            Some(&group) => group,
            None => {
                let was = state.inherited.remove(key.as_str());
                let mut group = self.new_group(&key, labels, series, was);
                if let Some(epoch) = state.past.remove(key.as_str()) {
                    group.epoch = group.epoch.max(epoch);
                }
                let group = state.groups.add(group);
                state.by_group.insert(key.into(), group);
                group
            }
        };
        if let Some(member) = state.members.get_mut(index) {
            member.group = Some(group);
        }
        if let Some(group) = state.groups.get_mut(group) {
            group.members += 1;
            for (count, truth) in group.trues.iter_mut().zip(truths) {
                *count += usize::from(truth == Truth::True);
            }
        }
    }

    fn new_group(
        &self,
        key: &str,
        labels: Vec<(String, String)>,
        series: Weak<SeriesCore>,
        was: Option<Inherited>,
    ) -> GroupState {
        let levels = &self.plan.levels;
        let mut group = GroupState {
            key: key.into(),
            labels: labels.into(),
            machines: vec![Machine::default(); levels.len()].into(),
            initial: vec![false; levels.len()].into(),
            trues: vec![0; levels.len()].into(),
            members: 0,
            level: 0,
            epoch: 0,
            due: None,
            since: Time::ZERO,
            value: None,
            quality: Quality::NoData,
            series,
            grace: None,
        };
        let Some(was) = was else { return group };
        for ((name, _), machine) in levels.iter().zip(group.machines.iter_mut()) {
            let phase = was
                .phases
                .iter()
                .find(|(n, _)| n.as_deref() == name.as_deref());
            if let Some((_, phase)) = phase {
                *machine = Machine::restored(*phase);
            }
        }
        group.epoch = was.epoch;
        group.since = was.since;
        group.grace = was.grace;
        group.level = was.level.map_or(0, |level| {
            let same = |(name, _): &(Option<Arc<str>>, _)| name.as_deref() == level.as_deref();
            // A level that is no more still was one: the next alert says what became of it.
            levels
                .iter()
                .position(same)
                .map_or(levels.len(), |at| at + 1)
        });
        group
    }

    // ---- judging ----

    /// Changes a computation and hears what has become of the leaf.
    fn work(
        &self,
        work: &Arc<Mutex<Work>>,
        member: usize,
        leaf: usize,
        at: Time,
        wakes: &mut Wakes,
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
        self.evaluate(&mut guard, program, member, leaf, at, wakes);
        // Others that go by this one, while its lock keeps the order.
        let others: Vec<_> = {
            let state = lock(&self.state);
            if self.common(&state) != Some(member) {
                return;
            }
            let others = state
                .members
                .indices()
                .into_iter()
                .filter(|&other| other != member);
            others
                .filter_map(|other| Some((other, state.members.get(other)?.works[leaf].clone()?)))
                .collect()
        };
        for (other, work) in others {
            let mut work = lock(&work);
            for input in 0..program.inputs.len() {
                if guard.computation.has_own(input) {
                    work.computation.share(input, guard.computation.own(input));
                }
            }
            self.evaluate(&mut work, program, other, leaf, at, wakes);
        }
    }

    /// Looks at the windows of a computation, and evaluates it.
    fn look(
        &self,
        work: &Arc<Mutex<Work>>,
        member: usize,
        leaf: usize,
        now: Time,
        wakes: &mut Wakes,
    ) {
        let glances = lock(work).computation.glances();
        let seen: Vec<_> = glances.iter().map(|glance| glance.look(now)).collect();
        self.work(work, member, leaf, now, wakes, |work| {
            for (input, reading) in seen {
                work.computation.see(input, reading);
            }
        });
    }

    fn evaluate(
        &self,
        work: &mut Work,
        program: &Program,
        member: usize,
        leaf: usize,
        at: Time,
        wakes: &mut Wakes,
    ) {
        let reading = work.computation.evaluate(program, at);
        if let Some(sink) = &self.sink {
            let state = lock(&self.state);
            if !self.takes_part(&state, member) {
                return;
            }
            let Some((key, labels)) = state
                .members
                .get(member)
                .map(|m| (m.key.clone(), m.labels.clone()))
            else {
                return;
            };
            drop(state);
            sink.put(&key, &labels, reading, wakes);
            return;
        }
        let edge = work.leaf.step(reading);
        let nan = work.leaf.nan;
        self.edge(member, leaf, edge, reading, nan, at, wakes);
    }

    /// A leaf of a member has turned, or shows another value.
    #[allow(clippy::too_many_arguments)]
    fn edge(
        &self,
        member: usize,
        leaf: usize,
        edge: Option<Edge>,
        reading: Reading,
        nan: bool,
        at: Time,
        wakes: &mut Wakes,
    ) {
        let mut state = lock(&self.state);
        let state = &mut *state;
        if state.closed {
            return;
        }
        state.value = reading;
        state.evaluated = Some(at);
        let Some(slot) = slot_mut(state, member, leaf) else {
            return;
        };
        slot.value = reading;
        slot.nan = nan;
        match edge {
            None => {
                if state.settled {
                    self.requalify(state, member);
                }
            }
            Some(Edge::Is(truth)) => {
                slot.truth = truth;
                self.spread(state, member, leaf, at, wakes);
            }
            Some(Edge::Pulse) if state.settled => {
                // It is over before a tick is.
                let ticked = state.ticked.take();
                for truth in [Truth::True, Truth::False] {
                    if let Some(slot) = slot_mut(state, member, leaf) {
                        slot.truth = truth;
                    }
                    self.spread(state, member, leaf, at, wakes);
                }
                state.ticked = ticked;
            }
            Some(Edge::Pulse) => {}
        }
        self.arm(state);
    }

    /// Counts a member anew, and those that go by it, after one of its leaves has turned; then judges their groups, each
    /// once. During a tick that is left to its end.
    fn spread(&self, state: &mut State, member: usize, leaf: usize, at: Time, wakes: &mut Wakes) {
        if !state.settled || state.closed {
            return;
        }
        let mut groups = BTreeSet::new();
        groups.extend(self.count_member(state, member, leaf));
        if self.common(state) == Some(member) {
            let truth = state
                .members
                .get(member)
                .map_or(Truth::Unknown, |m| m.leaves[leaf].truth);
            for other in state.members.indices() {
                if other == member {
                    continue;
                }
                if let Some(slot) = slot_mut(state, other, leaf) {
                    slot.shared = truth;
                }
                groups.extend(self.count_member(state, other, leaf));
            }
        }
        if let Some(ticked) = &mut state.ticked {
            ticked.extend(groups);
            return;
        }
        for group in groups {
            self.judge_group(state, group, at, AlertCause::Condition, wakes);
        }
    }

    fn truths(&self, state: &State, member: usize) -> Box<[Truth]> {
        let Some(member) = state.members.get(member) else {
            return Box::new([]);
        };
        let levels = self.plan.levels.iter();
        levels
            .map(|(_, tree)| tree.truth(&|leaf| member.leaves[leaf].truth()))
            .collect()
    }

    /// Counts a member in its group as it is now. The group.
    fn count_member(&self, state: &mut State, index: usize, leaf: usize) -> Option<usize> {
        let truths = self.truths(state, index);
        let member = state.members.get_mut(index)?;
        let at = member.group?;
        let value = member.leaves[leaf].value;
        let before = std::mem::replace(&mut member.truths, truths.clone());
        let group = state.groups.get_mut(at)?;
        for ((count, before), after) in group.trues.iter_mut().zip(before).zip(truths) {
            *count += usize::from(after == Truth::True);
            *count -= usize::from(before == Truth::True);
        }
        group.value = value;
        self.requalify(state, index);
        Some(at)
    }

    /// How good what is known of a member is, for its group.
    fn requalify(&self, state: &mut State, index: usize) {
        let Some(member) = state.members.get(index) else {
            return;
        };
        let mut quality = Quality::Good;
        for (slot, leaf) in member.leaves.iter().zip(&self.plan.leaves) {
            let own = match (leaf, slot.truth()) {
                (Leaf::Gone { .. }, Truth::True) => Quality::Gone,
                (Leaf::Stale { .. }, Truth::True) => Quality::Stale,
                (Leaf::Gone { .. } | Leaf::Stale { .. }, _) => Quality::Good,
                (_, Truth::Unknown) => Quality::NoData,
                _ if slot.nan => Quality::Nan,
                _ => Quality::Good,
            };
            quality = worse(quality, own);
        }
        let value = member.leaves.iter().find_map(|slot| slot.value);
        let group = member.group;
        if let Some(group) = group.and_then(|group| state.groups.get_mut(group)) {
            group.quality = quality;
            if group.value.is_none() {
                group.value = value;
            }
        }
    }

    fn judge_group(
        &self,
        state: &mut State,
        at: usize,
        now: Time,
        cause: AlertCause,
        wakes: &mut Wakes,
    ) {
        let now = now.max(state.latest);
        state.latest = now;
        self.pass(state, at, now, wakes);
        let Some(group) = state.groups.get_mut(at) else {
            return;
        };
        let known = (0..self.plan.levels.len()).any(|level| self.holds(group, level));
        if group.grace.is_some_and(|grace| now < grace)
            && !known
            && group.quality == Quality::NoData
        {
            // From before a restart, and nothing is known yet: it stays what it was.
            return;
        }
        group.grace = None;
        for level in 0..group.machines.len() {
            let holds = self.holds(group, level);
            let machine = &mut group.machines[level];
            if cause == AlertCause::RuleChanged {
                machine.retime(&self.plan.timing, now);
            }
            machine.step(&self.plan.timing, holds, now);
            if cause == AlertCause::Initial {
                group.initial[level] = holds;
            }
        }
        self.settle_level(state, at, now, cause, wakes);
        self.schedule(state, at);
    }

    fn holds(&self, group: &GroupState, level: usize) -> bool {
        let trues = group.trues[level];
        match self.plan.group {
            Group::Each | Group::Any => trues > 0,
            Group::All => trues > 0 && trues == group.members,
            Group::AtLeast(k) => trues >= k,
        }
    }

    /// Lets pass what is due for a group, up to and including `until`.
    fn pass(&self, state: &mut State, at: usize, until: Time, wakes: &mut Wakes) {
        loop {
            let Some(group) = state.groups.get_mut(at) else {
                return;
            };
            let timing = &self.plan.timing;
            let due = group
                .machines
                .iter()
                .filter_map(|machine| machine.due(timing))
                .min();
            let grace = group.grace.filter(|_| group.members > 0);
            let Some(due) = due
                .into_iter()
                .chain(grace)
                .min()
                .filter(|due| *due <= until)
            else {
                return;
            };
            if grace == Some(due) {
                group.grace = None;
                for level in 0..group.machines.len() {
                    let holds = self.holds(group, level);
                    group.machines[level].step(timing, holds, due);
                }
                self.settle_level(state, at, due, AlertCause::Restored, wakes);
                continue;
            }
            for machine in &mut group.machines {
                if machine.due(timing) == Some(due) {
                    machine.tick(timing, due);
                }
            }
            self.settle_level(state, at, due, AlertCause::Condition, wakes);
        }
    }

    /// Tells when the level in force is another.
    fn settle_level(
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
        let cause = if initial && cause == AlertCause::Condition {
            AlertCause::Initial
        } else {
            cause
        };
        self.tell(state, at, level, now, cause, wakes);
    }

    fn tell(
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
        if let Some(since) = level
            .checked_sub(1)
            .and_then(|l| group.machines.get(l)?.since())
        {
            group.since = since;
        }
        if cause == AlertCause::Initial && !self.rule.initial {
            group.level = level;
            return;
        }
        group.epoch += 1;
        let turn = self.turn(group, level, now, cause);
        group.level = level;
        self.log.tell(&self.rule, turn, &self.clock, wakes);
    }

    fn turn(&self, group: &GroupState, level: usize, at: Time, cause: AlertCause) -> Turn {
        let previous = if cause == AlertCause::Initial {
            0
        } else {
            group.level
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
            cause,
            at,
            since: group.since,
        }
    }

    /// A group from before that is no more.
    fn let_go(
        &self,
        state: &mut State,
        key: &str,
        was: Inherited,
        now: Time,
        cause: AlertCause,
        wakes: &mut Wakes,
    ) {
        let labels = was.labels.to_vec();
        let at = state
            .groups
            .add(self.new_group(key, labels, Weak::new(), Some(was)));
        if state.groups.get(at).is_some_and(|group| group.level > 0) {
            self.tell(state, at, 0, now, cause, wakes);
        }
        state.groups.remove(at);
    }

    // ---- time ----

    fn schedule(&self, state: &mut State, at: usize) {
        let timing = &self.plan.timing;
        let Some(group) = state.groups.get_mut(at) else {
            return;
        };
        let due = group
            .machines
            .iter()
            .filter_map(|machine| machine.due(timing))
            .min();
        let due = due.into_iter().chain(group.grace).min();
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
    fn arm(&self, state: &mut State) {
        let Some(&(first, _)) = state.due.first() else {
            return;
        };
        if !state.settled || state.armed.is_some_and(|armed| armed <= first) {
            return;
        }
        state.armed = Some(first);
        let me = self.me.clone();
        self.clock.at(first, move || {
            if let Some(engine) = me.upgrade() {
                engine.on_time(first);
            }
        });
    }

    fn on_time(&self, armed: Time) {
        let now = self.clock.now();
        let mut wakes = Wakes::new();
        let mut rearm = Vec::new();
        {
            let mut state = lock(&self.state);
            let state = &mut *state;
            if state.armed == Some(armed) {
                state.armed = None;
            }
            if state.closed {
                return;
            }
            while let Some(&(at, due)) = state.due.first().filter(|(at, _)| *at <= now) {
                state.due.pop_first();
                self.on_due(state, at, due, &mut rearm, &mut wakes);
            }
            self.arm(state);
        }
        for (series, id) in rearm {
            if let Some(series) = Weak::upgrade(&series) {
                series.visit(id, &mut wakes, |listener, _| {
                    let listener: &mut dyn Any = listener;
                    if let Some(listener) = listener.downcast_mut::<RuleListener>() {
                        listener.rearm(now);
                    }
                });
            }
        }
        self.wake(wakes);
    }

    fn on_due(
        &self,
        state: &mut State,
        at: Time,
        due: Due,
        rearm: &mut Vec<(Weak<SeriesCore>, u64)>,
        wakes: &mut Wakes,
    ) {
        match due {
            Due::Group(group) => {
                if let Some(group) = state.groups.get_mut(group) {
                    group.due = None;
                }
                state.latest = state.latest.max(at);
                self.pass(state, group, at, wakes);
                self.schedule(state, group);
            }
            Due::Stale(member, leaf) => {
                let Leaf::Stale { ttl, .. } = self.plan.leaves[leaf] else {
                    return;
                };
                let Some(slot) = slot_mut(state, member, leaf) else {
                    return;
                };
                slot.due = None;
                if slot.last + ttl <= at {
                    slot.truth = Truth::True;
                    self.spread(state, member, leaf, at, wakes);
                } else {
                    self.watch_silence(state, member, leaf, ttl);
                }
            }
            Due::Rearm(member, leaf) => {
                let Leaf::Stale { ttl, .. } = self.plan.leaves[leaf] else {
                    return;
                };
                let Some(slot) = slot_mut(state, member, leaf) else {
                    return;
                };
                // It was busy until now, for all that is known.
                slot.last = slot.last.max(at);
                rearm.extend(slot.listener.clone());
                self.watch_silence(state, member, leaf, ttl);
            }
            Due::Forget(member, leaf) => {
                let Some(found) = state.members.get_mut(member) else {
                    return;
                };
                if !std::mem::replace(&mut found.leaves[leaf].remembered, false) {
                    return;
                }
                found.leaves[leaf].truth = Truth::False;
                found.seats -= 1;
                let empty = found.seats == 0;
                self.spread(state, member, leaf, at, wakes);
                if empty {
                    self.drop_member(state, member, at, true, wakes);
                }
            }
            Due::Grace => {
                for (key, was) in std::mem::take(&mut state.inherited) {
                    self.let_go(state, &key, was, at, AlertCause::Restored, wakes);
                }
            }
        }
    }

    /// Looks at a series when it could be stale, unless that is seen to already.
    fn watch_silence(&self, state: &mut State, member: usize, leaf: usize, ttl: Duration) {
        let Some(slot) = slot_mut(state, member, leaf) else {
            return;
        };
        if slot.truth == Truth::Unknown {
            slot.truth = Truth::False;
        }
        if slot.due.is_some() || slot.truth == Truth::True {
            return;
        }
        let due = slot.last + ttl;
        slot.due = Some(due);
        state.due.insert((due, Due::Stale(member, leaf)));
    }

    /// A series under a `stale` condition was mutated. `busy`: it will not be heard until it is asked again.
    fn touched(&self, member: usize, leaf: usize, at: Time, busy: bool, wakes: &mut Wakes) {
        let Leaf::Stale { ttl, .. } = self.plan.leaves[leaf] else {
            return;
        };
        let mut state = lock(&self.state);
        let state = &mut *state;
        if state.closed {
            return;
        }
        state.evaluated = Some(at);
        let Some(slot) = slot_mut(state, member, leaf) else {
            return;
        };
        let silent_until = slot.last + ttl;
        if slot.truth != Truth::True && silent_until <= at {
            // It was stale for a moment, and the timer is late.
            slot.truth = Truth::True;
            self.spread(state, member, leaf, silent_until, wakes);
        }
        let Some(slot) = slot_mut(state, member, leaf) else {
            return;
        };
        slot.last = slot.last.max(at);
        if slot.truth != Truth::False {
            slot.truth = Truth::False;
            self.spread(state, member, leaf, at, wakes);
        }
        self.watch_silence(state, member, leaf, ttl);
        if busy {
            state
                .due
                .insert((at + resolution(ttl), Due::Rearm(member, leaf)));
        }
        self.arm(state);
    }

    fn tick_after(self: &Arc<Self>, now: Time, period: Duration) {
        let period = nanos(period);
        let next = Time((now.0 / period + 1).saturating_mul(period));
        let me = Arc::downgrade(self);
        self.clock.at(next, move || {
            let Some(engine) = me.upgrade() else { return };
            if engine.closed.load(Ordering::SeqCst) {
                return;
            }
            if engine.clock.is_manual() {
                return engine.tick(next);
            }
            // Not on the clock's thread: all timers of the process share it.
            if let Some(inner) = engine.inner.upgrade() {
                inner.pool.start();
                inner
                    .pool
                    .spawn(async move { engine.tick(engine.clock.now()) });
            }
        });
    }

    /// Windows and moving averages have moved on.
    fn tick(self: &Arc<Self>, now: Time) {
        let mut wakes = Wakes::new();
        lock(&self.state).ticked = Some(BTreeSet::new());
        for (member, leaf, work) in self.works() {
            if self
                .program(leaf)
                .is_some_and(|program| program.period.is_some())
            {
                self.look(&work, member, leaf, now, &mut wakes);
            }
        }
        {
            let mut state = lock(&self.state);
            for group in state.ticked.take().into_iter().flatten() {
                self.judge_group(&mut state, group, now, AlertCause::Condition, &mut wakes);
            }
            self.arm(&mut state);
        }
        wake_all(&mut wakes);
        if let Some(period) = self.plan.period {
            self.tick_after(now, period);
        }
    }

    /// All computations, those of series without labels first.
    fn works(&self) -> Vec<(usize, usize, Arc<Mutex<Work>>)> {
        let state = lock(&self.state);
        let common = self.common(&state);
        let mut works = Vec::new();
        let rest = state
            .members
            .indices()
            .into_iter()
            .filter(|&member| Some(member) != common);
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

    /// Wakes in this thread on a virtual clock, where the test wants to see what comes of it. Elsewhere the threads of
    /// the bus do: this one is the clock's, and all buses share it.
    fn wake(&self, mut wakes: Wakes) {
        if self.clock.is_manual() {
            return wake_all(&mut wakes);
        }
        if let Some(inner) = self.inner.upgrade() {
            inner.wake_elsewhere(wakes);
        }
    }
}

/// How finely a `stale` condition looks at a busy series: a hundredth of its time to live.
fn resolution(ttl: Duration) -> Duration {
    (ttl / 100).clamp(PERIOD_MIN, Duration::from_secs(1))
}

fn worse(a: Quality, b: Quality) -> Quality {
    let rank = |quality| match quality {
        Quality::Good => 0,
        Quality::Nan => 1,
        Quality::NoData => 2,
        Quality::Stale => 3,
        Quality::Gone => 4,
    };
    if rank(b) > rank(a) { b } else { a }
}

fn slot_mut(state: &mut State, member: usize, leaf: usize) -> Option<&mut Slot> {
    state
        .members
        .get_mut(member)
        .map(|member| &mut member.leaves[leaf])
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hears of one series for one leaf.
struct RuleListener {
    id: u64,
    engine: Arc<Engine>,
    member: usize,
    leaf: usize,
    /// The series was made after the rule, and its value has not been measured yet.
    newborn: bool,
    left: bool,
    kind: Hears,
}

enum Hears {
    Direct {
        state: LeafState,
        noted: Option<(Option<Edge>, f64, bool, Time)>,
    },
    Operand {
        work: Arc<Mutex<Work>>,
        input: usize,
        seat: usize,
        known: f64,
        noted: Option<(f64, Time)>,
        /// A window has a listener of its own; this one holds the seat.
        deaf: bool,
    },
    Touch(Touch),
    Nothing,
}

struct Touch {
    step: Duration,
    since: Time,
    touches: u32,
    open: bool,
    noted: Option<(Time, bool)>,
}

impl RuleListener {
    fn rearm(&mut self, now: Time) {
        if let Hears::Touch(touch) = &mut self.kind {
            touch.open = false;
            touch.touches = 0;
            touch.since = now;
        }
    }
}

impl Listener for RuleListener {
    fn id(&self) -> u64 {
        self.id
    }

    fn judge(&mut self, value: f64, mutated: bool, stamp: &mut Stamp<'_>) {
        let unmeasured = !mutated && (self.newborn || is_unmeasured(value));
        self.newborn &= !mutated;
        match &mut self.kind {
            Hears::Direct { state, noted } if !unmeasured => {
                let was_nan = state.nan;
                let edge = state.step(Some(value));
                if edge.is_some() || state.nan != was_nan {
                    *noted = Some((edge, value, state.nan, stamp.at()));
                }
            }
            Hears::Operand {
                known,
                noted,
                deaf: false,
                ..
            } if !unmeasured => {
                if known.to_bits() != value.to_bits() || (known.is_nan() && mutated) {
                    *known = value;
                    *noted = Some((value, stamp.at()));
                }
            }
            Hears::Touch(touch) if mutated && !touch.open => {
                let at = stamp.at();
                if at.since(touch.since) >= touch.step {
                    touch.since = at;
                    touch.touches = 0;
                }
                touch.touches += 1;
                touch.open = touch.touches > TOUCHES_EXACT;
                touch.noted = Some((at, touch.open));
            }
            _ => {}
        }
    }

    fn quiet(&self) -> Interval {
        match &self.kind {
            Hears::Direct { state, .. } => state.quiet(),
            Hears::Operand {
                deaf: false, known, ..
            } => same(*known),
            Hears::Touch(touch) if !touch.open => Interval::NOTHING,
            _ => Interval::EVERYTHING,
        }
    }

    fn speak(&mut self, wakes: &mut Wakes) {
        let (member, leaf) = (self.member, self.leaf);
        match &mut self.kind {
            Hears::Direct { noted, .. } => {
                if let Some((edge, value, nan, at)) = noted.take() {
                    self.engine
                        .edge(member, leaf, edge, Some(value), nan, at, wakes);
                }
            }
            Hears::Operand {
                work,
                input,
                seat,
                noted,
                ..
            } => {
                if let Some((value, at)) = noted.take() {
                    let (input, seat) = (*input, *seat);
                    self.engine.work(work, member, leaf, at, wakes, |work| {
                        work.computation.set(input, seat, value);
                    });
                }
            }
            Hears::Touch(touch) => {
                if let Some((at, busy)) = touch.noted.take() {
                    self.engine.touched(member, leaf, at, busy, wakes);
                }
            }
            Hears::Nothing => {}
        }
    }

    fn removed(&mut self, _value: f64, stamp: &mut Stamp<'_>, wakes: &mut Wakes) {
        let engine = self.engine.clone();
        engine.leave(self, Some(stamp.at()), wakes);
    }
}

impl Drop for RuleListener {
    /// A listener that its cell refused gives its seat back; nobody has been judged by it.
    fn drop(&mut self) {
        if !self.left {
            let (engine, mut wakes) = (self.engine.clone(), Wakes::new());
            engine.leave(self, None, &mut wakes);
            engine.wake(wakes);
        }
    }
}

/// In the place of a listener where there is nothing to hear.
struct Deaf {
    id: u64,
}

impl Listener for Deaf {
    fn id(&self) -> u64 {
        self.id
    }

    fn quiet(&self) -> Interval {
        Interval::EVERYTHING
    }
}

/// Things that keep their place until they are taken out.
struct Slab<T> {
    places: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Slab {
            places: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Slab<T> {
    fn add(&mut self, thing: T) -> usize {
        match self.free.pop() {
            Some(at) => {
                self.places[at] = Some(thing);
                at
            }
            None => {
                self.places.push(Some(thing));
                self.places.len() - 1
            }
        }
    }

    fn get(&self, at: usize) -> Option<&T> {
        self.places.get(at)?.as_ref()
    }

    fn get_mut(&mut self, at: usize) -> Option<&mut T> {
        self.places.get_mut(at)?.as_mut()
    }

    fn remove(&mut self, at: usize) -> Option<T> {
        let thing = self.places.get_mut(at)?.take()?;
        self.free.push(at);
        Some(thing)
    }

    fn indices(&self) -> Vec<usize> {
        let taken = self
            .places
            .iter()
            .enumerate()
            .filter(|(_, place)| place.is_some());
        taken.map(|(at, _)| at).collect()
    }
}
