//! The ears of an engine: one listener in the cell of each series that a rule looks at, with a seat for each place that
//! the series takes in the rule. So a mutation is judged once, in all its places together.

use std::{
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use smallvec::SmallVec;

use super::{Batch, Engine, state::Work};
use crate::{
    cell::{Listener, Wakes},
    interest::Interval,
    rule::compute::{Edge, LeafState, same},
    series::{SeriesCore, is_unmeasured},
    time::{Stamp, Time},
};

/// Mutations of a series that a `stale` condition times exactly, in each hundredth of its time to live. Of a busier one
/// it notes only that there were some.
const TOUCHES_EXACT: u32 = 8;

pub(super) struct RuleListener {
    pub(super) id: u64,
    pub(super) engine: Arc<Engine>,
    pub(super) seats: SmallVec<[Seat; 1]>,
    /// When what was noted happened.
    noted: Option<Time>,
    /// What its coming has turned.
    born: Option<Box<Batch>>,
    pub(super) left: bool,
}

/// A place that a series takes in a rule: it feeds one leaf of one member.
pub(super) struct Seat {
    pub(super) member: usize,
    pub(super) leaf: usize,
    pub(super) hears: Hears,
}

pub(super) enum Hears {
    /// A condition about the value alone: its machine lives here, with its quiet band.
    Direct {
        state: LeafState,
        noted: Option<(Option<Edge>, f64)>,
    },
    /// An operand: every change is heard.
    Operand {
        work: Arc<Mutex<Work>>,
        input: usize,
        seat: usize,
        known: f64,
        noted: bool,
    },
    /// A window has a listener of its own (with this id), which is taken out with the seat.
    Window {
        work: Arc<Mutex<Work>>,
        input: usize,
        seat: usize,
        series: Weak<SeriesCore>,
        id: u64,
    },
    Touch(Touch),
    /// Hears of the removal only.
    Nothing,
}

/// Whether a series is mutated at all.
pub(super) struct Touch {
    /// To be asked to be heard again.
    series: Weak<SeriesCore>,
    step: Duration,
    since: Time,
    touches: u32,
    open: bool,
    noted: bool,
}

impl Touch {
    pub(super) fn new(series: &Arc<SeriesCore>, step: Duration, now: Time) -> Touch {
        Touch {
            series: Arc::downgrade(series),
            step,
            since: now,
            touches: 0,
            open: false,
            noted: false,
        }
    }

    fn note(&mut self, at: Time) {
        if at.since(self.since) >= self.step {
            self.since = at;
            self.touches = 0;
        }
        self.touches += 1;
        self.open = self.touches > TOUCHES_EXACT;
        self.noted = true;
    }
}

impl RuleListener {
    pub(super) fn new(
        id: u64,
        engine: Arc<Engine>,
        seats: SmallVec<[Seat; 1]>,
        born: Batch,
        now: Time,
    ) -> RuleListener {
        RuleListener {
            id,
            engine,
            seats,
            noted: Some(now),
            born: (!born.is_empty()).then(|| Box::new(born)),
            left: false,
        }
    }

    /// Listens again to a series that was busy.
    pub(super) fn rearm(&mut self, now: Time) {
        for seat in &mut self.seats {
            if let Hears::Touch(touch) = &mut seat.hears {
                touch.open = false;
                touch.touches = 0;
                touch.since = now;
            }
        }
    }
}

impl Listener for RuleListener {
    fn id(&self) -> u64 {
        self.id
    }

    fn judge(&mut self, value: f64, mutated: bool, stamp: &mut Stamp<'_>) {
        let unmeasured = !mutated && is_unmeasured(value);
        for seat in &mut self.seats {
            let noted = match &mut seat.hears {
                Hears::Direct { state, noted } if !unmeasured => {
                    state.forget_after(|| stamp.at());
                    let was_nan = state.nan;
                    let edge = state.step(Some(value));
                    let says = edge.is_some() || state.nan != was_nan;
                    if says {
                        *noted = Some((edge, value));
                    }
                    says
                }
                Hears::Operand { known, noted, .. } if !unmeasured => {
                    let says = known.to_bits() != value.to_bits();
                    *known = value;
                    *noted |= says;
                    says
                }
                Hears::Touch(touch) if mutated && !touch.open => {
                    touch.note(stamp.at());
                    true
                }
                _ => false,
            };
            if noted {
                self.noted = Some(stamp.at());
            }
        }
    }

    fn quiet(&self) -> Interval {
        self.seats.iter().fold(Interval::EVERYTHING, |band, seat| {
            band.intersect(match &seat.hears {
                Hears::Direct { state, .. } => state.quiet(),
                Hears::Operand { known, .. } => same(*known),
                Hears::Touch(touch) if !touch.open => Interval::NOTHING,
                Hears::Touch(_) | Hears::Window { .. } | Hears::Nothing => Interval::EVERYTHING,
            })
        })
    }

    fn speak(&mut self, wakes: &mut Wakes) {
        let Some(at) = self.noted.take() else {
            return;
        };
        let engine = &self.engine;
        let mut batch = self.born.take().map_or_else(Batch::default, |born| *born);
        let mut sets = Sets::default();
        for Seat {
            member,
            leaf,
            hears,
        } in &mut self.seats
        {
            match hears {
                Hears::Direct { state, noted } => {
                    if let Some((edge, value)) = noted.take() {
                        let nan = state.nan;
                        engine.edge(*member, *leaf, edge, Some(value), nan, at, &mut batch);
                    }
                }
                Hears::Operand {
                    work,
                    input,
                    seat,
                    known,
                    noted,
                } => {
                    if std::mem::take(noted) {
                        // Other places of this series in the same computation first: it is evaluated once.
                        sets.add(work, *member, *leaf, (*input, *seat), *known);
                    }
                }
                Hears::Touch(touch) => {
                    if std::mem::take(&mut touch.noted) {
                        let busy = touch.open.then_some(&touch.series);
                        engine.touched(*member, *leaf, at, busy, &mut batch, wakes);
                    }
                }
                Hears::Window { .. } | Hears::Nothing => {}
            }
        }
        sets.run(engine, at, &mut batch, wakes);
        engine.finish(&mut batch, at, wakes);
    }

    fn removed(&mut self, _value: f64, stamp: &mut Stamp<'_>, wakes: &mut Wakes) {
        let engine = self.engine.clone();
        engine.leave(self, Some(stamp.at()), wakes);
    }
}

impl Drop for RuleListener {
    /// A listener that its cell refused gives its seats back; nobody has been judged by it. Cells drop listeners without
    /// holding their lock.
    fn drop(&mut self) {
        let engine = self.engine.clone();
        let mut wakes = Wakes::new();
        engine.leave(self, None, &mut wakes);
        for seat in &self.seats {
            if let Hears::Window { series, id, .. } = &seat.hears
                && let Some(series) = series.upgrade()
            {
                drop(series.detach(*id, &mut wakes));
            }
        }
        engine.wake(wakes);
    }
}

/// In the place of a listener where there is nothing to hear.
pub(super) struct Deaf {
    pub(super) id: u64,
}

impl Listener for Deaf {
    fn id(&self) -> u64 {
        self.id
    }

    fn quiet(&self) -> Interval {
        Interval::EVERYTHING
    }
}

/// Values that one mutation sets in computations, each of which is then evaluated once.
#[derive(Default)]
pub(super) struct Sets<'a> {
    works: SmallVec<[Set<'a>; 1]>,
}

pub(super) struct Set<'a> {
    work: &'a Arc<Mutex<Work>>,
    member: usize,
    leaf: usize,
    inputs: SmallVec<[(usize, usize); 2]>,
    value: f64,
}

impl<'a> Sets<'a> {
    fn add(
        &mut self,
        work: &'a Arc<Mutex<Work>>,
        member: usize,
        leaf: usize,
        input: (usize, usize),
        value: f64,
    ) {
        let same = self
            .works
            .iter_mut()
            .find(|set| Arc::ptr_eq(set.work, work));
        match same {
            Some(set) => set.inputs.push(input),
            None => self.works.push(Set {
                work,
                member,
                leaf,
                inputs: SmallVec::from_slice(&[input]),
                value,
            }),
        }
    }

    /// What is set in this computation.
    pub(super) fn take(&mut self, work: &Arc<Mutex<Work>>) -> Option<Set<'a>> {
        let at = self
            .works
            .iter()
            .position(|set| Arc::ptr_eq(set.work, work))?;
        Some(self.works.remove(at))
    }

    /// Sets and evaluates; first where others go by it.
    fn run(mut self, engine: &Engine, at: Time, batch: &mut Batch, wakes: &mut Wakes) {
        if self.works.len() > 1
            && let Some(common) = engine.common_member()
        {
            self.works.sort_by_key(|set| set.member != common);
        }
        while !self.works.is_empty() {
            let set = self.works.remove(0);
            let place = (set.member, set.leaf);
            engine.work_with(set.work, place, at, batch, wakes, &mut self, |work| {
                set.apply(work)
            });
        }
    }
}

impl Set<'_> {
    pub(super) fn apply(&self, work: &mut Work) {
        for &(input, seat) in &self.inputs {
            work.computation.set(input, seat, self.value);
        }
    }
}
