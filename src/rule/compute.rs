//! Expressions at work: operands that come and go, and what is computed of them for one set of labels. No lock, no clock.

use std::{cmp::Reverse, collections::BinaryHeap, sync::Arc, time::Duration};

use smallvec::SmallVec;

use super::{
    engine::Recalled,
    expr::{Gather, How, Node, Op, Source, Stat},
};
use crate::{
    error::RuleError,
    interest::{Cuts, DeltaState, Distance, Interval, ThresholdState},
    time::{Time, nanos},
    window::{self, Detail, DoubleDouble, Pane, WindowStats},
};

/// An expression ready to be evaluated, with its operands numbered.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    calc: Calc,
    pub(crate) inputs: Vec<Input>,
    ewmas: usize,
    /// The narrowest period at which time alone changes it.
    pub(crate) period: Option<Duration>,
}

/// An operand as it was written.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    pub(crate) source: Source,
    pub(crate) window: Option<(Duration, Stat)>,
}

#[derive(Clone, Debug)]
enum Calc {
    Constant(f64),
    Input(usize),
    Binary(Op, Box<Calc>, Box<Calc>),
    Scaled { of: Box<Calc>, from: f64, to: f64 },
    Ewma { of: Box<Calc>, tau: u64, at: usize },
}

/// The longest time between two evaluations of a window or a moving average.
const PERIOD_MAX: Duration = Duration::from_secs(1);
/// The shortest.
pub(crate) const PERIOD_MIN: Duration = Duration::from_millis(10);
/// Evaluations of a moving average per time constant.
const EWMA_STEPS: u32 = 100;

impl Program {
    pub(crate) fn new(node: &Node) -> Result<Program, RuleError> {
        let mut program = Program {
            calc: Calc::Constant(f64::NAN),
            inputs: Vec::new(),
            ewmas: 0,
            period: None,
        };
        program.calc = program.compile(node)?;
        Ok(program)
    }

    /// The one series' own value, and nothing else.
    pub(crate) fn is_plain(&self) -> bool {
        matches!(self.calc, Calc::Input(_))
            && self
                .inputs
                .iter()
                .all(|input| input.window.is_none() && input.source.gather.is_none())
    }

    fn wants(&mut self, period: Duration) {
        let period = period.clamp(PERIOD_MIN, PERIOD_MAX);
        self.period = Some(self.period.map_or(period, |p| p.min(period)));
    }

    fn compile(&mut self, node: &Node) -> Result<Calc, RuleError> {
        let wrong = |why: String| RuleError::Expression {
            expression: node.to_string(),
            why,
        };
        Ok(match node {
            Node::Constant(value) => Calc::Constant(*value),
            Node::Value(source) => self.input(source, None)?,
            Node::Window {
                source,
                width,
                stat,
            } => {
                if *width < window::WIDTH_MIN {
                    return Err(wrong(format!(
                        "the window is {width:?} wide; it must be at least {:?}",
                        window::WIDTH_MIN
                    )));
                }
                if let Stat::Quantile(q) = stat
                    && !(0.0..=1.0).contains(q)
                {
                    return Err(wrong(format!(
                        "quantile {q} does not exist; it must be from 0 to 1"
                    )));
                }
                self.wants(window::slot_of(*width));
                self.input(source, Some((*width, *stat)))?
            }
            Node::Binary(op, a, b) => {
                Calc::Binary(*op, Box::new(self.compile(a)?), Box::new(self.compile(b)?))
            }
            Node::Scaled { of, from, to } => {
                if !(from.is_finite() && to.is_finite() && from != to) {
                    return Err(wrong(format!(
                        "a trigger from {from} to {to} has no scale; both must be finite, and differ"
                    )));
                }
                Calc::Scaled {
                    of: Box::new(self.compile(of)?),
                    from: *from,
                    to: *to,
                }
            }
            Node::Ewma { of, tau } => {
                if *tau < PERIOD_MIN {
                    return Err(wrong(format!(
                        "the time constant is {tau:?}; it must be at least {PERIOD_MIN:?}"
                    )));
                }
                self.wants(*tau / EWMA_STEPS);
                let of = Box::new(self.compile(of)?);
                self.ewmas += 1;
                Calc::Ewma {
                    of,
                    tau: nanos(*tau),
                    at: self.ewmas - 1,
                }
            }
            Node::Wrong(why) => return Err(RuleError::Wrong { why: why.clone() }),
        })
    }

    fn input(
        &mut self,
        source: &Source,
        window: Option<(Duration, Stat)>,
    ) -> Result<Calc, RuleError> {
        source.selector.clone()?;
        let input = Input {
            source: source.clone(),
            window,
        };
        if self.inputs.len() >= super::plan::PLACES_MAX {
            return Err(super::plan::too_many());
        }
        self.inputs.push(input);
        Ok(Calc::Input(self.inputs.len() - 1))
    }
}

/// A number, NaN included, or `None`: no data.
pub(crate) type Reading = Option<f64>;

/// One operand for one set of labels.
pub(crate) struct Operand {
    kind: Kind,
    /// How many series feed it.
    series: usize,
    latest: Reading,
    /// What the series without labels say, for a set of labels that has none of its own.
    shared: Reading,
}

enum Kind {
    /// One series, by its seat; for a moment, or by a selector that means several, more. Then the last to be mutated counts.
    One {
        values: Vec<Option<Reading>>,
    },
    Many {
        how: How,
        tree: Tree,
    },
    Window {
        width: Duration,
        stat: Stat,
        panes: Vec<Option<Arc<Pane>>>,
        /// Places among them, the first one first.
        free: BinaryHeap<Reverse<usize>>,
    },
}

impl Operand {
    fn new(input: &Input) -> Operand {
        let kind = match (&input.window, &input.source.gather) {
            (Some((width, stat)), _) => Kind::Window {
                width: *width,
                stat: *stat,
                panes: Vec::new(),
                free: BinaryHeap::new(),
            },
            (None, Some(Gather { how, .. })) => Kind::Many {
                how: *how,
                tree: Tree::default(),
            },
            (None, None) => Kind::One { values: Vec::new() },
        };
        Operand {
            kind,
            series: 0,
            latest: None,
            shared: None,
        }
    }

    fn read(&self) -> Reading {
        if self.series > 0 {
            self.latest
        } else {
            self.shared
        }
    }

    /// A series comes. Where its values go.
    fn join(&mut self, pane: Option<Arc<Pane>>) -> usize {
        self.series += 1;
        match &mut self.kind {
            Kind::One { values } => {
                let seat = values.iter().position(Option::is_none);
                let seat = seat.unwrap_or(values.len());
                if seat == values.len() {
                    values.push(None);
                }
                values[seat] = Some(None);
                seat
            }
            Kind::Many { tree, .. } => tree.add(),
            Kind::Window { panes, free, .. } => match free.pop() {
                Some(Reverse(seat)) => {
                    panes[seat] = pane;
                    seat
                }
                None => {
                    panes.push(pane);
                    panes.len() - 1
                }
            },
        }
    }

    fn leave(&mut self, seat: usize) {
        self.series = self.series.saturating_sub(1);
        match &mut self.kind {
            Kind::One { values } => {
                if let Some(place) = values.get_mut(seat) {
                    *place = None;
                }
                self.latest = values.iter().flatten().find_map(|value| *value);
            }
            Kind::Many { how, tree } => {
                tree.remove(seat);
                self.latest = tree.get(*how);
            }
            Kind::Window { panes, free, .. } => {
                if panes.get_mut(seat).and_then(Option::take).is_some() {
                    free.push(Reverse(seat));
                }
                if self.series == 0 {
                    self.latest = None;
                }
            }
        }
    }

    fn set(&mut self, seat: usize, value: f64) {
        match &mut self.kind {
            Kind::One { values } => {
                if let Some(place) = values.get_mut(seat) {
                    *place = Some(Some(value));
                }
                self.latest = Some(value);
            }
            Kind::Many { how, tree } => {
                tree.set(seat, value);
                self.latest = tree.get(*how);
            }
            Kind::Window { .. } => {}
        }
    }
}

/// A window to look at. That takes the locks of its series, and so happens without any other.
pub(crate) struct Glance {
    input: usize,
    width: Duration,
    stat: Stat,
    panes: SmallVec<[Arc<Pane>; 1]>,
}

impl Glance {
    pub(crate) fn look(&self, now: Time) -> (usize, Reading) {
        let detail = match self.stat {
            Stat::Quantile(_) | Stat::Stddev => Detail::Sketch,
            _ => Detail::Numbers,
        };
        let parts: SmallVec<[_; 1]> = self
            .panes
            .iter()
            .map(|pane| pane.part(now, detail))
            .collect();
        let reading = self.stat.of(&window::merge(&parts, self.width));
        (self.input, reading.filter(|_| !parts.is_empty()))
    }
}

impl Stat {
    fn of(self, stats: &WindowStats) -> Reading {
        match self {
            Stat::Count => Some(stats.count as f64),
            Stat::Sum => stats.sum,
            Stat::Avg => stats.avg,
            Stat::Min => stats.min,
            Stat::Max => stats.max,
            Stat::Last => stats.last,
            Stat::Rate => stats.rate,
            Stat::Increase => stats.increase,
            Stat::Stddev => stats.stddev,
            Stat::Quantile(q) => stats.quantile(q),
            Stat::Coverage => Some(stats.coverage),
            Stat::Age => stats.age.map(|age| age.as_secs_f64()),
            Stat::Sources => Some(stats.sources as f64),
        }
    }
}

/// An expression for one set of labels.
pub(crate) struct Computation {
    operands: Vec<Operand>,
    ewmas: Vec<Ewma>,
    /// What was computed last.
    pub(crate) latest: Reading,
}

impl Computation {
    pub(crate) fn new(program: &Program) -> Computation {
        Computation {
            operands: program.inputs.iter().map(Operand::new).collect(),
            ewmas: vec![Ewma::default(); program.ewmas],
            latest: None,
        }
    }

    pub(crate) fn join(&mut self, input: usize, pane: Option<Arc<Pane>>) -> usize {
        self.operands[input].join(pane)
    }

    pub(crate) fn leave(&mut self, input: usize, seat: usize) {
        self.operands[input].leave(seat);
    }

    pub(crate) fn set(&mut self, input: usize, seat: usize, value: f64) {
        self.operands[input].set(seat, value);
    }

    /// Takes what the series without labels say.
    pub(crate) fn share(&mut self, input: usize, value: Reading) {
        self.operands[input].shared = value;
    }

    /// What an operand says by its own series.
    pub(crate) fn own(&self, input: usize) -> Reading {
        self.operands[input].latest
    }

    /// Its windows, to be looked at.
    pub(crate) fn glances(&self) -> SmallVec<[Glance; 1]> {
        let windows = self.operands.iter().enumerate();
        let glance = |(input, operand): (usize, &Operand)| match &operand.kind {
            Kind::Window {
                width, stat, panes, ..
            } => Some(Glance {
                input,
                width: *width,
                stat: *stat,
                panes: panes.iter().flatten().cloned().collect(),
            }),
            _ => None,
        };
        windows.filter_map(glance).collect()
    }

    /// Takes what a window had to say.
    pub(crate) fn see(&mut self, input: usize, reading: Reading) {
        let operand = &mut self.operands[input];
        if operand.series > 0 {
            operand.latest = reading;
        }
    }

    pub(crate) fn evaluate(&mut self, program: &Program, now: Time) -> Reading {
        self.latest = evaluate(&program.calc, &self.operands, &mut self.ewmas, now);
        self.latest
    }
}

fn evaluate(calc: &Calc, operands: &[Operand], ewmas: &mut [Ewma], now: Time) -> Reading {
    match calc {
        Calc::Constant(value) => Some(*value),
        Calc::Input(i) => operands[*i].read(),
        Calc::Binary(op, a, b) => {
            let a = evaluate(a, operands, ewmas, now);
            let b = evaluate(b, operands, ewmas, now);
            let (a, b) = (a?, b?);
            let value = match op {
                Op::Add => a + b,
                Op::Sub => a - b,
                Op::Mul => a * b,
                Op::Div => a / b,
            };
            // 0/0, ∞−∞: a share of nothing is not known. A NaN that was measured is.
            let unknown = value.is_nan() && !a.is_nan() && !b.is_nan();
            (!unknown).then_some(value)
        }
        Calc::Scaled { of, from, to } => {
            let value = evaluate(of, operands, ewmas, now)?;
            // NaN stays NaN.
            Some(((value - from) / (to - from)).clamp(0.0, 1.0))
        }
        Calc::Ewma { of, tau, at } => {
            let value = evaluate(of, operands, ewmas, now);
            ewmas[*at].step(value, *tau, now)
        }
    }
}

/// A moving average weighted by time: y' = (x − y) / τ, solved exactly for an x that is held.
#[derive(Clone, Debug, Default)]
struct Ewma {
    average: Reading,
    held: Reading,
    since: Time,
}

impl Ewma {
    fn step(&mut self, value: Reading, tau: u64, now: Time) -> Reading {
        if let (Some(average), Some(held)) = (self.average, self.held) {
            let passed = now.0.saturating_sub(self.since.0) as f64;
            let share = -(-passed / tau as f64).exp_m1();
            // At a share of 1 an infinite average would make NaN of itself.
            self.average = Some(if held == average {
                average
            } else {
                average + share * (held - average)
            });
        }
        self.since = now.max(self.since);
        match value {
            Some(value) if !value.is_nan() => {
                self.held = Some(value);
                if self.average.is_none_or(|average| !average.is_finite()) {
                    self.average = Some(value);
                }
                self.average
            }
            // Time without data does not count.
            None => {
                self.held = None;
                None
            }
            Some(_) => self.average,
        }
    }
}

/// Values of several series and what they make together, kept as a tree of partial results: a change costs a logarithm,
/// and nothing is ever subtracted, so that sums do not drift.
#[derive(Debug, Default)]
struct Tree {
    /// A complete binary tree; the second half are the leaves.
    nodes: Vec<Partial>,
    free: Vec<usize>,
    used: usize,
}

#[derive(Clone, Copy, Debug)]
struct Partial {
    sum: DoubleDouble,
    min: f64,
    max: f64,
    count: u64,
}

impl Partial {
    const NONE: Partial = Partial {
        sum: DoubleDouble::ZERO,
        min: f64::NAN,
        max: f64::NAN,
        count: 0,
    };

    fn with(self, other: Partial) -> Partial {
        Partial {
            sum: self.sum + other.sum,
            min: self.min.min(other.min),
            max: self.max.max(other.max),
            count: self.count + other.count,
        }
    }
}

impl Tree {
    fn leaves(&self) -> usize {
        self.nodes.len() / 2
    }

    fn add(&mut self) -> usize {
        if let Some(seat) = self.free.pop() {
            return seat;
        }
        if self.used == self.leaves() {
            self.grow();
        }
        self.used += 1;
        self.used - 1
    }

    fn grow(&mut self) {
        let (old, leaves) = (self.leaves(), (self.leaves() * 2).max(1));
        let mut nodes = vec![Partial::NONE; leaves * 2];
        nodes[leaves..leaves + old].copy_from_slice(&self.nodes[old..]);
        self.nodes = nodes;
        for node in (1..leaves).rev() {
            self.nodes[node] = self.nodes[2 * node].with(self.nodes[2 * node + 1]);
        }
    }

    fn put(&mut self, seat: usize, partial: Partial) {
        let mut node = self.leaves() + seat;
        self.nodes[node] = partial;
        while node > 1 {
            node /= 2;
            self.nodes[node] = self.nodes[2 * node].with(self.nodes[2 * node + 1]);
        }
    }

    fn set(&mut self, seat: usize, value: f64) {
        let partial = if value.is_nan() {
            Partial::NONE
        } else {
            Partial {
                sum: value.into(),
                min: value,
                max: value,
                count: 1,
            }
        };
        self.put(seat, partial);
    }

    fn remove(&mut self, seat: usize) {
        self.put(seat, Partial::NONE);
        self.free.push(seat);
    }

    fn get(&self, how: How) -> Reading {
        let all = *self.nodes.get(1)?;
        if all.count == 0 {
            return None;
        }
        let value = match how {
            How::Sum | How::Merge => all.sum.value(),
            How::Avg => (all.sum / all.count.into()).value(),
            How::Min => all.min,
            How::Max => all.max,
            How::Count => all.count as f64,
        };
        // Infinities of both signs: their sum is not known.
        (!value.is_nan()).then_some(value)
    }
}

/// What a condition does with the numbers it is shown.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Judge {
    Threshold(Cuts),
    Moved(Distance),
    Changed,
}

/// A condition's part about one number.
#[derive(Clone, Debug)]
pub(crate) struct LeafState {
    judge: Judging,
    /// Whether a number has been seen since there last was no data.
    known: bool,
    /// The last reading was NaN.
    pub(crate) nan: bool,
    /// It remembers something of before a restart, which counts for a first number before then.
    recalled: Option<Time>,
}

#[derive(Clone, Debug)]
enum Judging {
    Threshold(Cuts, ThresholdState),
    Moved(DeltaState),
    Changed(f64),
}

/// What has become of a condition's part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Edge {
    Is(Truth),
    /// True for this moment.
    Pulse,
}

/// Whether something holds, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum Truth {
    #[default]
    Unknown,
    False,
    True,
}

impl From<bool> for Truth {
    fn from(holds: bool) -> Truth {
        if holds { Truth::True } else { Truth::False }
    }
}

impl LeafState {
    pub(crate) fn new(judge: Judge) -> LeafState {
        LeafState {
            judge: match judge {
                Judge::Threshold(cuts) => Judging::Threshold(cuts, ThresholdState::new(cuts)),
                Judge::Moved(distance) => Judging::Moved(DeltaState::new(distance)),
                Judge::Changed => Judging::Changed(f64::NAN),
            },
            known: false,
            nan: false,
            recalled: None,
        }
    }

    /// One that remembers something of before a restart, for a first number before then.
    pub(crate) fn recalling(judge: Judge, recalled: Option<(Recalled, Time)>) -> LeafState {
        let mut leaf = LeafState::new(judge);
        if let Some((recalled, until)) = recalled {
            leaf.recalled = Some(until);
            match (&mut leaf.judge, recalled) {
                (Judging::Threshold(cuts, state), Recalled::Raised) => {
                    *state = ThresholdState::raised(*cuts);
                }
                (Judging::Moved(state), Recalled::Reference(value)) => state.refer(value),
                (Judging::Changed(known), Recalled::Reference(value)) => *known = value,
                _ => leaf.recalled = None,
            }
        }
        leaf
    }

    /// Forgets what was before a restart where that counts no more.
    pub(crate) fn forget_after(&mut self, now: impl FnOnce() -> Time) {
        let Some(until) = self.recalled else { return };
        if now() >= until {
            let judge = match &self.judge {
                Judging::Threshold(cuts, _) => Judge::Threshold(*cuts),
                Judging::Moved(state) => Judge::Moved(state.distance()),
                Judging::Changed(_) => Judge::Changed,
            };
            *self = LeafState::new(judge);
        }
    }

    /// Takes a reading. What has changed by it, if anything.
    pub(crate) fn step(&mut self, reading: Reading) -> Option<Edge> {
        let Some(value) = reading else {
            self.nan = false;
            if let Judging::Threshold(cuts, state) = &mut self.judge
                && self.recalled.is_none()
            {
                *state = ThresholdState::new(*cuts);
            }
            return std::mem::replace(&mut self.known, false).then_some(Edge::Is(Truth::Unknown));
        };
        self.nan = value.is_nan();
        if self.nan {
            return None;
        }
        let first = !std::mem::replace(&mut self.known, true);
        self.recalled = None;
        let edge = match &mut self.judge {
            Judging::Threshold(_, state) => state.step(value).map(|r| Edge::Is(r.into())),
            Judging::Moved(state) => state.step(value).map(|_| Edge::Pulse),
            Judging::Changed(known) => {
                let before = std::mem::replace(known, value);
                (before != value && !before.is_nan()).then_some(Edge::Pulse)
            }
        };
        let holds = matches!(&self.judge, Judging::Threshold(_, state) if state.is_raised());
        edge.or(first.then_some(Edge::Is(holds.into())))
    }

    /// Where no reading would change anything.
    pub(crate) fn quiet(&self) -> Interval {
        if !self.known || self.nan {
            return Interval::NOTHING;
        }
        match &self.judge {
            Judging::Threshold(_, state) => state.quiet(),
            Judging::Moved(state) => state.quiet(),
            Judging::Changed(known) => same(*known),
        }
    }
}

/// This very value.
pub(crate) fn same(value: f64) -> Interval {
    if !value.is_finite() {
        return Interval::NOTHING;
    }
    Interval {
        lo: value,
        hi: value.next_up(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_what_its_values_make() {
        let mut tree = Tree::default();
        assert_eq!(tree.get(How::Sum), None);
        let seats: Vec<_> = (0..9).map(|_| tree.add()).collect();
        for (i, seat) in seats.iter().enumerate() {
            tree.set(*seat, i as f64);
        }
        assert_eq!(tree.get(How::Sum), Some(36.0));
        assert_eq!(tree.get(How::Avg), Some(4.0));
        tree.remove(seats[0]);
        tree.set(seats[8], f64::NAN);
        assert_eq!(tree.get(How::Min), Some(1.0));
        assert_eq!(tree.get(How::Max), Some(7.0));
        assert_eq!(tree.get(How::Count), Some(7.0));
        assert_eq!(tree.add(), seats[0]);
        tree.set(seats[0], 100.0);
        assert_eq!(tree.get(How::Sum), Some(128.0));
    }

    #[test]
    fn a_moving_average_goes_63_percent_of_the_way_in_its_time_constant() {
        let mut ewma = Ewma::default();
        let tau = 1_000_000_000;
        assert_eq!(ewma.step(Some(0.0), tau, Time(0)), Some(0.0));
        assert_eq!(ewma.step(Some(10.0), tau, Time(tau)), Some(0.0));
        let after = ewma.step(Some(10.0), tau, Time(2 * tau)).unwrap();
        assert!((after - 6.321).abs() < 1e-3, "{after}");
        // In many steps or in one: the same.
        let mut steps = ewma.clone();
        for i in 1..=10 {
            steps.step(Some(10.0), tau, Time(2 * tau + i * tau / 10));
        }
        ewma.step(Some(10.0), tau, Time(3 * tau));
        assert!((ewma.average.unwrap() - steps.average.unwrap()).abs() < 1e-12);
        assert_eq!(ewma.step(None, tau, Time(4 * tau)), None);
    }

    #[test]
    fn a_threshold_forgets_where_it_was_while_there_was_no_data() {
        let cuts = crate::Threshold::above(0.9)
            .clear_below(0.8)
            .cuts()
            .unwrap();
        let mut leaf = LeafState::new(Judge::Threshold(cuts));
        let rows = [
            (None, None),
            (Some(f64::NAN), None),
            (Some(0.85), Some(Edge::Is(Truth::False))),
            (Some(0.95), Some(Edge::Is(Truth::True))),
            (Some(0.85), None),
            (Some(f64::NAN), None),
            (None, Some(Edge::Is(Truth::Unknown))),
            (Some(0.85), Some(Edge::Is(Truth::False))),
        ];
        for (reading, edge) in rows {
            assert_eq!(leaf.step(reading), edge, "{reading:?}");
        }
    }
}
