//! A reference evaluator of rules, written from their documents and not from the engine: it keeps every mutation of
//! every series, walks through time millisecond by millisecond, and works everything out anew at each instant.
//!
//! Simple and slow. Where the documents leave the order of two things at one instant open, it does not say which of the
//! two orders is right; the tests choose times at which they do not meet.

use std::{collections::BTreeMap, collections::BTreeSet, time::Duration};

use metricbus::{Condition, Delta, Expr, Rule, Threshold};

/// Milliseconds since the clock's origin.
pub type Ms = u64;
pub type Pairs = Vec<(String, String)>;

pub fn ms(n: Ms) -> Duration {
    Duration::from_millis(n)
}

/// The metrics of the tests' world: two families of gauges, one of counters, one of histograms, and a single gauge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metric {
    G,
    H,
    C,
    L,
    U,
}

pub const CHILDREN: [(&str, &str); 3] = [("0", "a"), ("1", "a"), ("2", "b")];

impl Metric {
    pub fn name(self) -> &'static str {
        match self {
            Metric::G => "g",
            Metric::H => "h",
            Metric::C => "c_total",
            Metric::L => "l",
            Metric::U => "u",
        }
    }
}

/// A series: a metric and which of its children.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id(pub Metric, pub usize);

impl Id {
    pub fn labels(self) -> Pairs {
        if self.0 == Metric::U {
            return Vec::new();
        }
        let (i, pool) = CHILDREN[self.1];
        vec![("i".into(), i.into()), ("pool".into(), pool.into())]
    }
}

fn only_pool(labels: &Pairs) -> Pairs {
    let mut pool = labels.clone();
    pool.retain(|(name, _)| name == "pool");
    pool
}

// What is watched.

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum How {
    Sum,
    Avg,
    Min,
    Max,
    Count,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Stat {
    Count,
    Sum,
    Avg,
    Min,
    Max,
    Last,
    Rate,
    Increase,
    Quantile(f64),
}

/// Which series are one window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Over {
    Each,
    All,
    Pool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Op {
    Add,
    Sub,
    Mul,
    Div,
}

#[derive(Clone, Debug)]
pub enum E {
    Constant(f64),
    Value(Metric),
    /// The last: one number per pool.
    Gather(How, Metric, bool),
    Window(Metric, Ms, Stat, Over),
    Binary(Op, Box<E>, Box<E>),
    Scaled(Box<E>, f64, f64),
}

impl E {
    pub fn expr(&self) -> Expr {
        match self {
            E::Constant(x) => Expr::constant(*x),
            E::Value(m) => Expr::value(m.name()),
            E::Gather(how, m, by_pool) => {
                let gathered = match how {
                    How::Sum => Expr::sum(m.name()),
                    How::Avg => Expr::avg(m.name()),
                    How::Min => Expr::min(m.name()),
                    How::Max => Expr::max(m.name()),
                    How::Count => Expr::count(m.name()),
                };
                if *by_pool {
                    gathered.by(["pool"])
                } else {
                    gathered
                }
            }
            E::Window(m, width, stat, over) => {
                let window = Expr::over(m.name(), ms(*width));
                let window = match over {
                    Over::Each => window,
                    Over::All => window.merged(),
                    Over::Pool => window.by(["pool"]),
                };
                match stat {
                    Stat::Count => window.count(),
                    Stat::Sum => window.sum(),
                    Stat::Avg => window.avg(),
                    Stat::Min => window.min(),
                    Stat::Max => window.max(),
                    Stat::Last => window.last(),
                    Stat::Rate => window.rate(),
                    Stat::Increase => window.increase(),
                    Stat::Quantile(q) => window.quantile(*q),
                }
            }
            E::Binary(op, a, b) => match op {
                Op::Add => a.expr() + b.expr(),
                Op::Sub => a.expr() - b.expr(),
                Op::Mul => a.expr() * b.expr(),
                Op::Div => a.expr() / b.expr(),
            },
            E::Scaled(of, from, to) => of.expr().scaled(*from, *to),
        }
    }

    fn walk(&self, visit: &mut dyn FnMut(&E)) {
        visit(self);
        match self {
            E::Binary(_, a, b) => {
                a.walk(visit);
                b.walk(visit);
            }
            E::Scaled(of, ..) => of.walk(visit),
            _ => {}
        }
    }

    fn has_window(&self) -> bool {
        let mut found = false;
        self.walk(&mut |e| found |= matches!(e, E::Window(..)));
        found
    }

    /// Whether all its operands are without labels.
    fn has_no_labels(&self) -> bool {
        let mut found = true;
        self.walk(&mut |e| {
            found &= match e {
                E::Value(m) => *m == Metric::U,
                E::Gather(_, _, by_pool) => !by_pool,
                E::Window(m, _, _, over) => {
                    *over == Over::All || (*m == Metric::U && *over == Over::Each)
                }
                _ => true,
            }
        });
        found
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Word {
    Above,
    AtLeast,
    Below,
    AtMost,
}

impl Word {
    fn is(self, value: f64, bound: f64) -> bool {
        match self {
            Word::Above => value > bound,
            Word::AtLeast => value >= bound,
            Word::Below => value < bound,
            Word::AtMost => value <= bound,
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub raise: (Word, f64),
    pub clear: Option<(Word, f64)>,
}

impl Bounds {
    pub fn threshold(&self) -> Threshold {
        let (word, bound) = self.raise;
        let threshold = match word {
            Word::Above => Threshold::above(bound),
            Word::AtLeast => Threshold::at_least(bound),
            Word::Below => Threshold::below(bound),
            Word::AtMost => Threshold::at_most(bound),
        };
        match self.clear {
            None => threshold,
            Some((Word::Above, bound)) => threshold.clear_above(bound),
            Some((Word::AtLeast, bound)) => threshold.clear_at_least(bound),
            Some((Word::Below, bound)) => threshold.clear_below(bound),
            Some((Word::AtMost, bound)) => threshold.clear_at_most(bound),
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub enum Distance {
    Absolute(f64),
    Relative(f64, f64),
    OfRange(f64, f64, f64),
}

impl Distance {
    pub fn delta(&self) -> Delta {
        match *self {
            Distance::Absolute(d) => Delta::absolute(d),
            Distance::Relative(share, floor) => Delta::relative(share).floor(floor),
            Distance::OfRange(share, lo, hi) => Delta::of_range(share, lo, hi),
        }
    }

    fn is_passed(&self, reference: f64, value: f64) -> bool {
        let d = match *self {
            Distance::Absolute(d) => d,
            Distance::Relative(share, floor) => share * reference.abs().max(floor),
            Distance::OfRange(share, lo, hi) => share * (hi - lo),
        };
        value != reference && (value - reference).abs() >= d
    }
}

#[derive(Clone, Debug)]
pub enum Test {
    When(E, Bounds),
    Moved(E, Distance),
    Changed(E),
    Stale(Metric, Ms),
    Gone(Metric, Ms),
    And(Box<Test>, Box<Test>),
    Or(Box<Test>, Box<Test>),
    Not(Box<Test>),
}

impl Test {
    pub fn condition(&self) -> Condition {
        match self {
            Test::When(e, bounds) => Condition::when(e.expr(), bounds.threshold()),
            Test::Moved(e, distance) => Condition::moved(e.expr(), distance.delta()),
            Test::Changed(e) => Condition::changed(e.expr()),
            Test::Stale(m, ttl) => Condition::stale(m.name(), ms(*ttl)),
            Test::Gone(m, keep) => Condition::gone(m.name(), ms(*keep)),
            Test::And(a, b) => a.condition() & b.condition(),
            Test::Or(a, b) => a.condition() | b.condition(),
            Test::Not(a) => !a.condition(),
        }
    }

    /// The conditions that are not made of others, in a fixed order.
    fn atoms<'a>(&'a self, into: &mut Vec<&'a Test>) {
        match self {
            Test::And(a, b) | Test::Or(a, b) => {
                a.atoms(into);
                b.atoms(into);
            }
            Test::Not(a) => a.atoms(into),
            atom => into.push(atom),
        }
    }

    fn input(&self) -> Option<&E> {
        match self {
            Test::When(e, _) | Test::Moved(e, _) | Test::Changed(e) => Some(e),
            _ => None,
        }
    }

    /// Kleene's logic over what its atoms say.
    fn holds(&self, atoms: &mut dyn Iterator<Item = Option<bool>>) -> Option<bool> {
        match self {
            Test::And(a, b) => {
                let (a, b) = (a.holds(atoms), b.holds(atoms));
                match (a, b) {
                    (Some(false), _) | (_, Some(false)) => Some(false),
                    (Some(true), Some(true)) => Some(true),
                    _ => None,
                }
            }
            Test::Or(a, b) => {
                let (a, b) = (a.holds(atoms), b.holds(atoms));
                match (a, b) {
                    (Some(true), _) | (_, Some(true)) => Some(true),
                    (Some(false), Some(false)) => Some(false),
                    _ => None,
                }
            }
            Test::Not(a) => a.holds(atoms).map(|holds| !holds),
            _ => atoms.next().expect("an atom for each leaf"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Group {
    Each,
    Any,
    All,
    AtLeast(usize),
}

#[derive(Clone, Debug)]
pub struct Spec {
    /// The least severe first.
    pub levels: Vec<Test>,
    pub group: Group,
    pub by_pool: bool,
    pub hold: Ms,
    pub keep: Ms,
    /// m, n, and the width of a slot.
    pub m_of_n: Option<(usize, u64, Ms)>,
    pub every: Option<Ms>,
    pub initial: bool,
}

pub const LEVELS: [&str; 3] = ["info", "warn", "critical"];

impl Spec {
    pub fn of(test: Test) -> Spec {
        Spec {
            levels: vec![test],
            group: Group::Each,
            by_pool: false,
            hold: 0,
            keep: 0,
            m_of_n: None,
            every: None,
            initial: true,
        }
    }

    pub fn rule(&self, name: &str) -> Rule {
        let mut rule = match &self.levels[..] {
            [one] => Rule::new(name, one.condition()),
            several => Rule::levels(
                name,
                LEVELS.into_iter().zip(several.iter().map(Test::condition)),
            ),
        };
        rule = match self.group {
            Group::Each => rule.each(),
            Group::Any => rule.any(),
            Group::All => rule.all(),
            Group::AtLeast(k) => rule.at_least(k),
        };
        if self.by_pool {
            rule = rule.by(["pool"]);
        }
        if let Some((m, n, width)) = self.m_of_n {
            rule = rule.m_of_n(m as u32, n as u32, ms(width));
        }
        if let Some(every) = self.every {
            rule = rule.every(ms(every));
        }
        rule.hold_for(ms(self.hold))
            .keep_firing_for(ms(self.keep))
            .initial(self.initial)
            .history(1_000_000)
    }

    fn level_name(&self, level: usize) -> Option<String> {
        (self.levels.len() > 1).then(|| LEVELS[level].to_owned())
    }

    fn atoms(&self) -> Vec<&Test> {
        let mut atoms = Vec::new();
        for level in &self.levels {
            level.atoms(&mut atoms);
        }
        atoms
    }

    /// How often windows are looked at.
    fn tick_of(&self) -> Option<Ms> {
        let mut narrowest = None;
        for atom in self.atoms() {
            if let Some(e) = atom.input() {
                e.walk(&mut |e| {
                    if let E::Window(_, width, ..) = e {
                        let slot = slot_of(*width).min(1_000);
                        narrowest = Some(narrowest.map_or(slot, |n: Ms| n.min(slot)));
                    }
                });
            }
        }
        narrowest.map(|slot| self.every.unwrap_or(slot))
    }
}

fn slot_of(width: Ms) -> Ms {
    (width / 100).max(10)
}

// What has happened.

/// One life of a series, from its making to its removal.
#[derive(Clone, Debug)]
struct Life {
    born: Ms,
    /// Every mutation: when, and of a gauge the value set, of a counter the total, of a histogram what was observed.
    mutations: Vec<(Ms, f64)>,
    /// How many of them had been made when the rule came; `None`: the series came later than the rule.
    before_rule: Option<usize>,
}

impl Life {
    fn since_rule(&self) -> usize {
        self.before_rule.unwrap_or(0)
    }
}

/// One alert, as far as it is compared.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    pub at: Ms,
    pub firing: bool,
    pub level: Option<String>,
    pub previous: Option<String>,
    pub cause: &'static str,
    pub epoch: u64,
}

#[derive(Clone, Debug, Default)]
struct Atom {
    /// What it says of itself; `None` is unknown.
    holds: Option<bool>,
    /// Of a move or a change: the value that it goes by.
    reference: Option<f64>,
    /// It holds for this instant only.
    pulse: bool,
}

#[derive(Clone, Debug, Default)]
struct Machine {
    holding: bool,
    slots: BTreeSet<u64>,
    state: State,
    due: Ms,
    /// What holds has held since before the rule was added.
    initial: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum State {
    #[default]
    Inactive,
    Pending,
    Firing,
    Clearing,
}

#[derive(Clone, Debug)]
struct Grouped {
    machines: Vec<Machine>,
    /// The level told last, and whether it fires.
    told: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Why {
    Added,
    Tick,
    Mutation,
    /// A series came or went.
    Series,
    /// A time of absence is over.
    Absence,
}

pub struct Reference {
    spec: Spec,
    tick: Option<Ms>,
    has_absence: bool,
    now: Ms,
    added: Option<Ms>,
    lives: BTreeMap<Id, Life>,
    died: BTreeMap<Id, Ms>,
    subjects: BTreeMap<Pairs, Vec<Atom>>,
    shared: Vec<Atom>,
    groups: BTreeMap<Pairs, Grouped>,
    epochs: BTreeMap<Pairs, u64>,
    /// What each window was, for each set of labels, at the last tick.
    at_tick: BTreeMap<(Pairs, String), Answer>,
    pub told: BTreeMap<Pairs, Vec<Told>>,
    /// A number came so near to a bound that arithmetic may decide either way: no verdict from here on.
    pub undecided: bool,
}

impl Reference {
    pub fn new(spec: Spec) -> Reference {
        Reference {
            tick: spec.tick_of(),
            has_absence: spec
                .atoms()
                .iter()
                .any(|atom| matches!(atom, Test::Stale(..) | Test::Gone(..))),
            spec,
            now: 0,
            added: None,
            lives: BTreeMap::new(),
            died: BTreeMap::new(),
            subjects: BTreeMap::new(),
            shared: Vec::new(),
            groups: BTreeMap::new(),
            epochs: BTreeMap::new(),
            at_tick: BTreeMap::new(),
            told: BTreeMap::new(),
            undecided: false,
        }
    }

    /// The groups that are not inactive, of a rule without levels.
    pub fn active(&self) -> BTreeMap<Pairs, State> {
        let states = self
            .groups
            .iter()
            .map(|(group, g)| (group.clone(), g.machines[0].state));
        states
            .filter(|(_, state)| *state != State::Inactive)
            .collect()
    }

    pub fn exists(&self, id: Id) -> bool {
        self.lives.contains_key(&id)
    }

    pub fn add_rule(&mut self) {
        self.added = Some(self.now);
        for life in self.lives.values_mut() {
            life.before_rule = Some(life.mutations.len());
        }
        self.died.clear();
        self.settle(Why::Added);
    }

    pub fn declare(&mut self, id: Id) {
        if self.exists(id) {
            return;
        }
        self.died.remove(&id);
        let life = Life {
            born: self.now,
            mutations: Vec::new(),
            before_rule: None,
        };
        self.lives.insert(id, life);
        self.settle(Why::Series);
    }

    /// Of a gauge, the value set; of a counter, how much is added; of a histogram, what is observed.
    pub fn mutate(&mut self, id: Id, amount: f64) {
        self.declare(id);
        let now = self.now;
        if let Some(life) = self.lives.get_mut(&id) {
            let value = match id.0 {
                Metric::C => life.mutations.last().map_or(0.0, |m| m.1) + amount,
                _ => amount,
            };
            life.mutations.push((now, value));
        }
        self.settle(Why::Mutation);
    }

    pub fn remove(&mut self, id: Id) {
        if self.lives.remove(&id).is_some() {
            self.died.insert(id, self.now);
            self.settle(Why::Series);
        }
    }

    pub fn advance(&mut self, by: Ms) {
        for t in self.now + 1..=self.now + by {
            self.now = t;
            if self.added.is_none() {
                continue;
            }
            self.run_timers();
            if self.tick.is_some_and(|tick| t.is_multiple_of(tick)) {
                self.settle(Why::Tick);
            } else if self.has_absence && self.absence_is_due() {
                self.settle(Why::Absence);
            }
        }
    }

    fn absence_is_due(&self) -> bool {
        self.spec.atoms().into_iter().any(|atom| match atom {
            Test::Stale(m, ttl) => self
                .lives
                .iter()
                .any(|(id, life)| id.0 == *m && self.silent_since(life) + ttl == self.now),
            Test::Gone(m, keep) => self
                .died
                .iter()
                .any(|(id, died)| id.0 == *m && died + keep == self.now),
            _ => false,
        })
    }

    fn silent_since(&self, life: &Life) -> Ms {
        let last = life
            .mutations
            .get(life.since_rule()..)
            .and_then(<[_]>::last);
        last.map_or(self.added.unwrap_or(0).max(life.born), |m| m.0)
    }

    fn is_remembered(&self, id: Id, keep: Ms) -> bool {
        self.died
            .get(&id)
            .is_some_and(|died| self.now < died + keep)
    }

    // Which sets of labels are judged.

    fn labels_in_question(&self) -> BTreeSet<Pairs> {
        let mut sets = BTreeSet::new();
        for atom in self.spec.atoms() {
            match atom {
                Test::Stale(m, _) => sets.extend(self.labels_of(*m)),
                Test::Gone(m, keep) => {
                    sets.extend(self.labels_of(*m));
                    let remembered = self
                        .died
                        .keys()
                        .filter(|id| id.0 == *m && self.is_remembered(**id, *keep));
                    sets.extend(remembered.map(|id| id.labels()));
                }
                _ => {}
            }
            let Some(e) = atom.input() else { continue };
            e.walk(&mut |e| match e {
                E::Value(m) | E::Window(m, _, _, Over::Each) => sets.extend(self.labels_of(*m)),
                E::Gather(_, m, true) | E::Window(m, _, _, Over::Pool) => {
                    sets.extend(self.labels_of(*m).iter().map(only_pool));
                }
                E::Gather(_, m, false) | E::Window(m, _, _, Over::All) => {
                    sets.extend(self.ids_of(*m).map(|_| Vec::new()));
                }
                _ => {}
            });
        }
        // What has no labels goes with all that have; alone it stands only where there is nothing else.
        if sets.len() > 1 {
            sets.remove(&Vec::new());
        }
        sets
    }

    fn labels_of(&self, metric: Metric) -> Vec<Pairs> {
        self.ids_of(metric).map(Id::labels).collect()
    }

    fn ids_of(&self, metric: Metric) -> impl Iterator<Item = Id> + '_ {
        self.lives.keys().copied().filter(move |id| id.0 == metric)
    }

    /// The series of `metric` that takes part for these labels.
    fn part(&self, metric: Metric, labels: &Pairs) -> Option<Id> {
        self.ids_of(metric)
            .find(|id| id.labels().is_empty() || id.labels() == *labels)
    }

    fn parts(&self, metric: Metric, by_pool: bool, labels: &Pairs) -> Vec<Id> {
        let pool = only_pool(labels);
        self.ids_of(metric)
            .filter(|id| !by_pool || (labels.len() == 1 && only_pool(&id.labels()) == pool))
            .collect()
    }

    // Numbers.

    fn value_of(&self, id: Id) -> Option<f64> {
        let life = &self.lives[&id];
        match id.0 {
            Metric::C => Some(life.mutations.last().map_or(0.0, |m| m.1)),
            Metric::L => life.mutations[life.since_rule()..].last().map(|m| m.1),
            _ => life.mutations.last().map(|m| m.1),
        }
    }

    fn evaluate(&mut self, e: &E, labels: &Pairs, why: Why) -> Answer {
        match e {
            E::Constant(x) => Answer::of(*x),
            E::Value(m) => Answer(self.part(*m, labels).and_then(|id| self.value_of(id)), None),
            E::Gather(how, m, by_pool) => {
                let values: Vec<f64> = self
                    .parts(*m, *by_pool, labels)
                    .into_iter()
                    .filter_map(|id| self.value_of(id))
                    .filter(|v| !v.is_nan())
                    .collect();
                if values.is_empty() {
                    return Answer(None, None);
                }
                let n = values.len() as f64;
                Answer::of(match how {
                    How::Sum => values.iter().sum(),
                    How::Avg => values.iter().sum::<f64>() / n,
                    How::Min => values.into_iter().fold(f64::INFINITY, f64::min),
                    How::Max => values.into_iter().fold(f64::NEG_INFINITY, f64::max),
                    How::Count => n,
                })
            }
            E::Window(m, width, stat, over) => {
                let ids: Vec<Id> = match over {
                    Over::Each => self.part(*m, labels).into_iter().collect(),
                    Over::All => self.parts(*m, false, labels),
                    Over::Pool => self.parts(*m, true, labels),
                };
                // Windows are looked at at ticks; in between stands what was seen at the last one.
                let key = (labels.clone(), format!("{e:?}"));
                if ids.is_empty() {
                    self.at_tick.remove(&key);
                } else if matches!(why, Why::Tick | Why::Added) {
                    let panes: Vec<Pane> = ids.iter().map(|id| self.pane(*id, *width)).collect();
                    self.at_tick
                        .insert(key.clone(), statistic(*stat, &panes, *m));
                }
                self.at_tick
                    .get(&key)
                    .copied()
                    .unwrap_or(Answer(None, None))
            }
            E::Binary(op, a, b) => {
                let (a, b) = (self.evaluate(a, labels, why), self.evaluate(b, labels, why));
                // NaN is on neither side of any bound: no verdict.
                let unsure = a.1.or(b.1).map(|_| f64::NAN);
                let (Some(a), Some(b)) = (a.0, b.0) else {
                    return Answer(None, unsure);
                };
                let result = match op {
                    Op::Add => a + b,
                    Op::Sub => a - b,
                    Op::Mul => a * b,
                    Op::Div => a / b,
                };
                // Numbers without a result give no data; NaN is what somebody has measured, and goes on.
                let measured = a.is_nan() || b.is_nan();
                Answer((measured || !result.is_nan()).then_some(result), unsure)
            }
            E::Scaled(of, from, to) => {
                let Answer(value, other) = self.evaluate(of, labels, why);
                // `clamp` keeps NaN.
                let scaled = value.map(|v| ((v - from) / (to - from)).clamp(0.0, 1.0));
                Answer(scaled, other.map(|_| f64::NAN))
            }
        }
    }

    /// What a window sees of one series.
    fn pane(&self, id: Id, width: Ms) -> Pane {
        let life = &self.lives[&id];
        let added = self.added.unwrap_or(0);
        // What counts has counted nothing before it was made; what a gauge was then nobody knows.
        let from = match id.0 {
            Metric::C | Metric::L => added,
            _ => added.max(life.born),
        };
        let slot = slot_of(width);
        // It covers its width, and begins where a slot does.
        let start = (self.now.saturating_sub(width) / slot * slot).max(from);
        let known = life.since_rule();
        let inside = |i: usize, at: Ms| i >= known && at >= start;
        let mut pane = Pane {
            start,
            now: self.now,
            slot,
            held: None,
            inside: Vec::new(),
        };
        for (i, &(at, value)) in life.mutations.iter().enumerate() {
            if inside(i, at) {
                pane.inside.push((at, value));
            } else {
                pane.held = Some(value);
            }
        }
        pane
    }

    // From numbers to alerts.

    fn settle(&mut self, why: Why) {
        if self.added.is_none() {
            return;
        }
        let present = self.labels_in_question();
        self.subjects.retain(|labels, _| present.contains(labels));
        self.at_tick
            .retain(|(labels, _), _| labels.is_empty() || present.contains(labels));
        let spec = self.spec.clone();
        let atoms = spec.atoms();
        // What is about no labels has one state, whoever it goes with.
        let mut shared = std::mem::take(&mut self.shared);
        if present.is_empty() || shared.is_empty() {
            shared = vec![Atom::default(); atoms.len()];
        }
        let alone = |atom: &Test| atom.input().is_some_and(E::has_no_labels);
        for (atom, state) in atoms.iter().zip(&mut shared) {
            if alone(atom) {
                self.step(atom, state, &Vec::new(), why);
            }
        }
        for labels in present {
            let mut states = self
                .subjects
                .remove(&labels)
                .unwrap_or_else(|| vec![Atom::default(); atoms.len()]);
            for ((atom, state), shared) in atoms.iter().zip(&mut states).zip(&shared) {
                if alone(atom) {
                    *state = shared.clone();
                } else {
                    self.step(atom, state, &labels, why);
                }
            }
            self.subjects.insert(labels, states);
        }
        shared.iter_mut().for_each(|atom| atom.pulse = false);
        self.shared = shared;
        self.judge_groups(true, why);
        if self.subjects.values().flatten().any(|atom| atom.pulse) {
            self.subjects
                .values_mut()
                .flatten()
                .for_each(|atom| atom.pulse = false);
            self.judge_groups(false, why);
        }
    }

    fn step(&mut self, atom: &Test, state: &mut Atom, labels: &Pairs, why: Why) {
        if atom.input().is_some_and(|e| self.lacks_a_series(e, labels)) {
            // One that comes back is another.
            state.reference = None;
        }
        match atom {
            Test::Stale(m, ttl) => {
                state.holds = self
                    .part(*m, labels)
                    .map(|id| self.silent_since(&self.lives[&id]) + ttl <= self.now);
            }
            Test::Gone(m, keep) => {
                let dead = self
                    .died
                    .keys()
                    .find(|id| id.0 == *m && id.labels() == *labels);
                state.holds = if self.part(*m, labels).is_some() {
                    Some(false)
                } else {
                    dead.filter(|id| self.is_remembered(**id, *keep))
                        .map(|_| true)
                };
            }
            Test::When(e, bounds) => {
                let Answer(value, other) = self.evaluate(e, labels, why);
                let Some(value) = value else {
                    state.holds = None;
                    return;
                };
                if value.is_nan() {
                    return;
                }
                let near = |(_, bound): (Word, f64)| {
                    e.has_window() && (value - bound).abs() <= 1e-6 * bound.abs().max(1.0)
                };
                self.undecided |= near(bounds.raise) || bounds.clear.is_some_and(near);
                let judged = |value: f64| match (state.holds, bounds.clear) {
                    (Some(true), Some((word, bound))) => !word.is(value, bound),
                    _ => bounds.raise.0.is(value, bounds.raise.1),
                };
                self.undecided |= other.is_some_and(|o| o.is_nan() || judged(o) != judged(value));
                state.holds = Some(judged(value));
            }
            Test::Moved(e, distance) => {
                let Answer(value, other) = self.evaluate(e, labels, why);
                self.undecided |= other.is_some();
                let Some(value) = value else {
                    state.holds = None;
                    return;
                };
                if value.is_nan() {
                    return;
                }
                state.holds = Some(false);
                match state.reference {
                    None => state.reference = Some(value),
                    Some(reference) if distance.is_passed(reference, value) => {
                        state.reference = Some(value);
                        state.pulse = true;
                    }
                    Some(_) => {}
                }
            }
            Test::Changed(e) => {
                let Answer(value, other) = self.evaluate(e, labels, why);
                self.undecided |= other.is_some();
                let Some(value) = value else {
                    state.holds = None;
                    return;
                };
                if value.is_nan() {
                    return;
                }
                state.holds = Some(false);
                if state.reference.is_some_and(|known| known != value) {
                    state.pulse = true;
                }
                state.reference = Some(value);
            }
            _ => unreachable!("an atom"),
        }
    }

    fn lacks_a_series(&self, e: &E, labels: &Pairs) -> bool {
        let mut lacks = false;
        e.walk(&mut |e| {
            lacks |= match e {
                E::Value(m) | E::Window(m, _, _, Over::Each) => self.part(*m, labels).is_none(),
                E::Gather(_, m, by_pool) => self.parts(*m, *by_pool, labels).is_empty(),
                E::Window(m, _, _, over) => self.parts(*m, *over == Over::Pool, labels).is_empty(),
                _ => false,
            }
        });
        lacks
    }

    fn group_of(&self, labels: &Pairs) -> Pairs {
        match self.spec.group {
            Group::Each => labels.clone(),
            _ if self.spec.by_pool => only_pool(labels),
            _ => Vec::new(),
        }
    }

    fn judge_groups(&mut self, pulse: bool, why: Why) {
        let mut members: BTreeMap<Pairs, Vec<Vec<Option<bool>>>> = BTreeMap::new();
        for (labels, states) in &self.subjects {
            let mut atoms = states.iter().map(|atom| match atom.holds {
                Some(_) if atom.pulse => Some(pulse),
                holds => holds,
            });
            let levels: Vec<_> = self
                .spec
                .levels
                .iter()
                .map(|test| test.holds(&mut atoms))
                .collect();
            members
                .entry(self.group_of(labels))
                .or_default()
                .push(levels);
        }
        let gone: Vec<Pairs> = self
            .groups
            .keys()
            .filter(|group| !members.contains_key(*group))
            .cloned()
            .collect();
        for group in gone {
            let last = self.groups.remove(&group).and_then(|g| g.told);
            if let Some(level) = last {
                // What is forgotten was removed long ago.
                let forgotten = why == Why::Absence && self.spec.keep == 0;
                let cause = if forgotten { "condition" } else { "removed" };
                self.tell(&group, None, Some(level), cause);
            }
        }
        for (group, members) in members {
            for level in 0..self.spec.levels.len() {
                let holding = members.iter().filter(|m| m[level] == Some(true)).count();
                let holds = match self.spec.group {
                    Group::Each | Group::Any => holding >= 1,
                    Group::All => holding == members.len(),
                    Group::AtLeast(k) => holding >= k,
                };
                let (now, spec) = (self.now, self.spec.clone());
                let grouped = self.groups.entry(group.clone()).or_insert_with(|| Grouped {
                    machines: vec![Machine::default(); spec.levels.len()],
                    told: None,
                });
                let before = grouped.machines[level].state;
                grouped.machines[level].take(holds, now, &spec);
                if before == State::Inactive {
                    grouped.machines[level].initial = why == Why::Added;
                }
            }
            self.report(&group);
        }
    }

    fn run_timers(&mut self) {
        let now = self.now;
        let slot_begins = self
            .spec
            .m_of_n
            .is_some_and(|(_, _, width)| now.is_multiple_of(width));
        let waits =
            |m: &Machine| matches!(m.state, State::Pending | State::Clearing) && m.due == now;
        let mut machines = self.groups.values().flat_map(|group| &group.machines);
        if !slot_begins && !machines.any(waits) {
            return;
        }
        let (now, spec) = (self.now, self.spec.clone());
        let groups: Vec<Pairs> = self.groups.keys().cloned().collect();
        for group in groups {
            let Some(grouped) = self.groups.get_mut(&group) else {
                continue;
            };
            for machine in &mut grouped.machines {
                machine.time(now);
                if spec
                    .m_of_n
                    .is_some_and(|(_, _, width)| now.is_multiple_of(width))
                {
                    let before = machine.state;
                    machine.take(machine.holding, now, &spec);
                    machine.initial &= before != State::Inactive;
                }
            }
            self.report(&group);
        }
    }

    /// Tells the change of level, if there is one.
    fn report(&mut self, group: &Pairs) {
        let Some(grouped) = self.groups.get_mut(group) else {
            return;
        };
        let firing = |m: &Machine| matches!(m.state, State::Firing | State::Clearing);
        let level = grouped.machines.iter().rposition(firing);
        let before = std::mem::replace(&mut grouped.told, level);
        if level == before {
            return;
        }
        // It rose to a level that has been held for since the rule was added.
        let initial = level > before && level.is_some_and(|l| grouped.machines[l].initial);
        if let Some(level) = level {
            grouped.machines[level].initial = false;
        }
        if !initial {
            self.tell(group, level, before, "condition");
        } else if self.spec.initial {
            self.tell(group, level, before, "initial");
        }
    }

    fn tell(
        &mut self,
        group: &Pairs,
        level: Option<usize>,
        before: Option<usize>,
        cause: &'static str,
    ) {
        let epoch = self.epochs.entry(group.clone()).or_default();
        *epoch += 1;
        let told = Told {
            at: self.now,
            firing: level.is_some(),
            level: level.and_then(|l| self.spec.level_name(l)),
            previous: before.and_then(|l| self.spec.level_name(l)),
            cause,
            epoch: *epoch,
        };
        self.told.entry(group.clone()).or_default().push(told);
    }
}

impl Machine {
    fn take(&mut self, holds: bool, now: Ms, spec: &Spec) {
        self.holding = holds;
        let mut holds = holds;
        if let Some((m, n, width)) = spec.m_of_n {
            let slot = now / width;
            if holds {
                self.slots.insert(slot);
            }
            let oldest = (slot + 1).saturating_sub(n);
            holds = self.slots.range(oldest..=slot).count() >= m;
        }
        self.state = match (self.state, holds) {
            (State::Inactive, true) if spec.hold == 0 => State::Firing,
            (State::Inactive, true) => {
                self.due = now + spec.hold;
                State::Pending
            }
            (State::Pending, false) => State::Inactive,
            (State::Firing, false) if spec.keep == 0 => State::Inactive,
            (State::Firing, false) => {
                self.due = now + spec.keep;
                State::Clearing
            }
            (State::Clearing, true) => State::Firing,
            (same, _) => same,
        };
    }

    fn time(&mut self, now: Ms) {
        self.state = match self.state {
            State::Pending if self.due == now => State::Firing,
            State::Clearing if self.due == now => State::Inactive,
            same => same,
        };
    }
}

/// A number, or no data; and another number that would be as right.
#[derive(Clone, Copy, Debug)]
struct Answer(Option<f64>, Option<f64>);

impl Answer {
    fn of(value: f64) -> Answer {
        Answer(Some(value), None)
    }
}

/// What a window sees of one series.
#[derive(Debug)]
struct Pane {
    start: Ms,
    now: Ms,
    slot: Ms,
    /// The last mutation before the window begins.
    held: Option<f64>,
    inside: Vec<(Ms, f64)>,
}

impl Pane {
    fn numbers(&self) -> impl Iterator<Item = f64> + '_ {
        self.inside.iter().map(|m| m.1).filter(|v| !v.is_nan())
    }

    fn covered(&self) -> f64 {
        (self.now - self.start) as f64 / 1e3
    }

    /// Of a gauge: from when to when it held which value.
    fn spans(&self) -> Vec<(Ms, Ms, f64)> {
        let mut spans = Vec::new();
        let mut held = self.held.map(|v| (self.start, v));
        for (i, &(at, value)) in self.inside.iter().enumerate() {
            // What was set counts even if it was over at once; what was there before, only if it was still held.
            if let Some((from, v)) = held.filter(|_| i > 0 || at > self.start) {
                spans.push((from, at, v));
            }
            held = Some((at, value));
        }
        if let Some((from, v)) = held {
            spans.push((from, self.now, v));
        }
        spans.retain(|(_, _, v)| !v.is_nan());
        spans
    }

    fn last(&self) -> Option<f64> {
        let last = self.inside.last().map(|m| m.1).or(self.held);
        last.filter(|v| !v.is_nan())
    }

    /// Of a counter, what was added; of a gauge, from the first number to the last.
    fn change(&self, metric: Metric) -> Option<f64> {
        let first = match metric {
            Metric::C => Some(self.held.unwrap_or(0.0)),
            _ => self
                .held
                .filter(|v| !v.is_nan())
                .or_else(|| self.numbers().next()),
        };
        let last = match metric {
            Metric::C => Some(self.last().unwrap_or(0.0)),
            _ => self.last(),
        };
        Some(last? - first?).filter(|change| !change.is_nan())
    }

    fn rate(&self, metric: Metric) -> Option<f64> {
        if self.now - self.start < self.slot {
            return None;
        }
        let change = match metric {
            Metric::L => Some(self.numbers().count() as f64),
            _ => self.change(metric),
        };
        Some(change? / self.covered())
    }
}

fn statistic(stat: Stat, panes: &[Pane], metric: Metric) -> Answer {
    if panes.is_empty() {
        return Answer(None, None);
    }
    let is_gauge = !matches!(metric, Metric::C | Metric::L);
    let observed: Vec<f64> = panes.iter().flat_map(Pane::numbers).collect();
    let spans: Vec<_> = panes.iter().flat_map(Pane::spans).collect();
    let seen: Vec<f64> = if is_gauge {
        spans.iter().map(|s| s.2).collect()
    } else {
        observed.clone()
    };
    let sum_of = |all: Vec<Option<f64>>| {
        let known: Vec<f64> = all.into_iter().flatten().collect();
        (!known.is_empty()).then(|| known.iter().sum::<f64>())
    };
    let nonempty = |value: f64| (!seen.is_empty()).then_some(value);
    let number = match stat {
        Stat::Count => Some(observed.len() as f64),
        Stat::Sum if metric == Metric::C => {
            sum_of(panes.iter().map(|p| p.change(metric)).collect())
        }
        Stat::Sum => {
            let sum = observed.iter().sum();
            (!is_gauge || !observed.is_empty()).then_some(sum)
        }
        Stat::Avg if is_gauge => {
            let held: Ms = spans.iter().map(|s| s.1 - s.0).sum();
            let total: f64 = spans
                .iter()
                .filter(|s| s.1 > s.0)
                .map(|s| s.2 * (s.1 - s.0) as f64)
                .sum();
            if held > 0 {
                Some(total / held as f64)
            } else {
                let last: Vec<f64> = panes.iter().filter_map(Pane::last).collect();
                (!last.is_empty()).then(|| last.iter().sum::<f64>() / last.len() as f64)
            }
        }
        Stat::Avg => nonempty(observed.iter().sum::<f64>() / observed.len() as f64),
        Stat::Min => nonempty(seen.iter().copied().fold(f64::INFINITY, f64::min)),
        Stat::Max => nonempty(seen.iter().copied().fold(f64::NEG_INFINITY, f64::max)),
        Stat::Last => match panes {
            [one] if metric == Metric::C => Some(one.last().unwrap_or(0.0)),
            [one] => one.last(),
            _ => None,
        },
        Stat::Increase => sum_of(panes.iter().map(|p| p.change(metric)).collect()),
        Stat::Rate => sum_of(panes.iter().map(|p| p.rate(metric)).collect()),
        Stat::Quantile(q) => {
            let mut sorted = observed;
            sorted.sort_by(f64::total_cmp);
            if sorted.is_empty() {
                return Answer(None, None);
            }
            // Definitions of a quantile differ by the neighbour that they take: where that matters, no verdict.
            let rank = q * (sorted.len() - 1) as f64;
            let (below, above) = (sorted[rank.floor() as usize], sorted[rank.ceil() as usize]);
            return Answer(Some(below), (below != above).then_some(above));
        }
    };
    Answer(number, None)
}
