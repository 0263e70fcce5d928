//! A rule made ready to run: checked, its conditions numbered, its selectors at hand. Pure data.

use std::{sync::Arc, time::Duration};

use super::{
    Group, Rule, Test,
    compute::{Judge, PERIOD_MIN, Program, Truth},
    expr::{Node, Source},
    template,
};
use crate::{
    bus::Inner,
    error::{RuleError, SelectorError},
    labels::{self, OVERFLOW_LABEL},
    selector::Selector,
    series::SeriesCore,
};

/// What a rule does, ready to be done.
pub(crate) struct Plan {
    pub(crate) leaves: Vec<Leaf>,
    pub(crate) levels: Vec<(Option<Arc<str>>, Tree)>,
    pub(crate) group: Group,
    pub(crate) by: Vec<String>,
    /// Where series come in.
    pub(crate) places: Vec<Place>,
    /// One metric by one selector: its name tells series apart, too.
    pub(crate) single: bool,
    /// Whether the name is shown: where the selector does not say it.
    pub(crate) shows_name: bool,
    /// Whether there is a leaf about absence.
    pub(crate) has_absence: bool,
    /// How often time alone changes something.
    pub(crate) period: Option<Duration>,
}

/// A part of a condition that is about numbers or about absence.
pub(crate) enum Leaf {
    /// The value of a series.
    Direct {
        selector: Selector,
        judge: Judge,
    },
    Computed {
        program: Program,
        judge: Judge,
    },
    Stale {
        selector: Selector,
        ttl: Duration,
    },
    Gone {
        selector: Selector,
        keep: Duration,
    },
}

/// A place for series in a rule: an input of a leaf.
pub(crate) struct Place {
    /// Which of the plan's it is.
    pub(crate) index: usize,
    pub(crate) leaf: usize,
    pub(crate) input: usize,
    pub(crate) selector: Selector,
    /// Of series that are gathered: by which labels.
    by: Option<Vec<String>>,
}

impl Place {
    /// The labels by which it tells series apart, sorted.
    pub(crate) fn labels_of(&self, series: &SeriesCore) -> Vec<(String, String)> {
        let mut pairs = labels::pairs(&series.text);
        if let Some(by) = &self.by {
            pairs.retain(|(name, _)| by.contains(name));
        }
        pairs.sort();
        pairs
    }
}

/// Parts put together.
#[derive(Clone, Debug)]
pub(crate) enum Tree {
    Leaf(usize),
    And(Box<Tree>, Box<Tree>),
    Or(Box<Tree>, Box<Tree>),
    Not(Box<Tree>),
}

impl Tree {
    /// Kleene's logic of three values.
    pub(crate) fn truth(&self, leaf: &impl Fn(usize) -> Truth) -> Truth {
        use Truth::{False, True, Unknown};
        match self {
            Tree::Leaf(i) => leaf(*i),
            Tree::And(a, b) => match (a.truth(leaf), b.truth(leaf)) {
                (False, _) | (_, False) => False,
                (True, True) => True,
                _ => Unknown,
            },
            Tree::Or(a, b) => match (a.truth(leaf), b.truth(leaf)) {
                (True, _) | (_, True) => True,
                (False, False) => False,
                _ => Unknown,
            },
            Tree::Not(a) => match a.truth(leaf) {
                True => False,
                False => True,
                Unknown => Unknown,
            },
        }
    }
}

/// The most series and selectors that a rule may name. Each series that comes is held against all of them.
pub(super) const PLACES_MAX: usize = 1_000;

/// The most slots of an M of N: they are bits of one word.
const SLOTS_MAX: u32 = 64;

impl Plan {
    pub(crate) fn new(rule: &Rule) -> Result<Plan, RuleError> {
        check(rule)?;
        let mut leaves = Vec::new();
        let mut levels = Vec::new();
        for level in &rule.levels {
            let tree = plant(&level.test, &mut leaves)?;
            levels.push((level.name.as_deref().map(Arc::from), tree));
        }
        let mut plan = Plan::of(leaves, levels)?;
        plan.group = rule.group;
        plan.by = rule.by.clone();
        plan.period = plan.period.map(|period| rule.every.unwrap_or(period));
        Ok(plan)
    }

    /// That all it looks at can be of this bus, and that a series can have each label that an annotation asks for. Of a metric
    /// that nobody has declared yet anything can be.
    pub(crate) fn check_rule_for(&self, rule: &Rule, bus: &Inner) -> Result<(), RuleError> {
        self.check_for(bus)?;
        for (annotation, text) in &rule.annotations {
            for label in template::labels(text) {
                let own = rule.labels.iter().any(|(name, _)| name == label);
                // By the selector's name series are told apart.
                if own || label == "__name__" || self.could_have(label, bus) {
                    continue;
                }
                return Err(RuleError::Rule {
                    rule: rule.name.clone(),
                    why: format!(
                        "annotation {annotation:?} asks for label {label:?}, which no series that the rule looks at can have"
                    ),
                });
            }
        }
        Ok(())
    }

    fn could_have(&self, label: &str, bus: &Inner) -> bool {
        self.places.iter().any(|place| {
            if let Some(by) = &place.by {
                // Whether one of the series has it is not asked: most will be declared later.
                return by.iter().any(|name| name == label);
            }
            let names = place
                .selector
                .metric_name()
                .and_then(|name| bus.label_names_of(name));
            names.is_none_or(|names| {
                label == OVERFLOW_LABEL || names.iter().any(|name| **name == *label)
            })
        })
    }

    /// That all it looks at can be of this bus.
    pub(crate) fn check_for(&self, bus: &Inner) -> Result<(), SelectorError> {
        let mut places = self.places.iter();
        places.try_for_each(|place| bus.check_owns(&place.selector))
    }

    fn of(leaves: Vec<Leaf>, levels: Vec<(Option<Arc<str>>, Tree)>) -> Result<Plan, RuleError> {
        let mut places: Vec<_> = leaves
            .iter()
            .enumerate()
            .flat_map(|(leaf, l)| l.places(leaf))
            .collect();
        for (index, place) in places.iter_mut().enumerate() {
            place.index = index;
        }
        if places.len() > PLACES_MAX {
            return Err(too_many());
        }
        let Some(first) = places.first() else {
            return Err(RuleError::Expression {
                expression: "the condition".to_owned(),
                why: "it looks at no metric".to_owned(),
            });
        };
        let single = places
            .iter()
            .all(|place| place.by.is_none() && place.selector == first.selector);
        Ok(Plan {
            single,
            shows_name: single && first.selector.metric_name().is_none(),
            has_absence: leaves.iter().any(Leaf::is_about_absence),
            period: leaves.iter().filter_map(Leaf::period).min(),
            places,
            leaves,
            levels,
            group: Group::Each,
            by: Vec::new(),
        })
    }

    /// The plan of an expression alone, of a derived gauge.
    pub(crate) fn of_expression(node: &Node) -> Result<Plan, RuleError> {
        let program = Program::new(node)?;
        let leaf = Leaf::Computed {
            program,
            judge: Judge::Changed,
        };
        let mut plan = Plan::of(vec![leaf], vec![(None, Tree::Leaf(0))])?;
        // A derived gauge has a name of its own.
        plan.single = false;
        plan.shows_name = false;
        Ok(plan)
    }
}

impl Leaf {
    fn places(&self, leaf: usize) -> Vec<Place> {
        let place = |input, selector: &Selector, by| Place {
            index: 0,
            leaf,
            input,
            selector: selector.clone(),
            by,
        };
        match self {
            Leaf::Direct { selector, .. }
            | Leaf::Stale { selector, .. }
            | Leaf::Gone { selector, .. } => vec![place(0, selector, None)],
            Leaf::Computed { program, .. } => {
                let inputs = program.inputs.iter().enumerate();
                inputs
                    .filter_map(|(i, input)| {
                        let selector = input.source.selector.as_ref().ok()?;
                        let gather = input.source.gather.as_ref();
                        Some(place(i, selector, gather.map(|gather| gather.by.clone())))
                    })
                    .collect()
            }
        }
    }

    /// What it does with the numbers it is shown; `None` where it is about absence.
    #[cfg_attr(not(feature = "persist"), allow(dead_code))]
    pub(crate) fn judge(&self) -> Option<&Judge> {
        match self {
            Leaf::Direct { judge, .. } | Leaf::Computed { judge, .. } => Some(judge),
            Leaf::Stale { .. } | Leaf::Gone { .. } => None,
        }
    }

    fn is_about_absence(&self) -> bool {
        matches!(self, Leaf::Stale { .. } | Leaf::Gone { .. })
    }

    fn period(&self) -> Option<Duration> {
        match self {
            Leaf::Computed { program, .. } => program.period,
            _ => None,
        }
    }
}

fn check(rule: &Rule) -> Result<(), RuleError> {
    for (name, text) in &rule.annotations {
        template::parse(text).map_err(|why| RuleError::Rule {
            rule: rule.name.clone(),
            why: format!("annotation {name:?}: {why}"),
        })?;
    }
    let wrong = |why: String| {
        Err(RuleError::Rule {
            rule: rule.name.clone(),
            why,
        })
    };
    if rule.name.is_empty() {
        return wrong(
            "its name is empty; give it one that says what is wrong when it fires".into(),
        );
    }
    let names: Vec<_> = rule.levels.iter().map(|level| &level.name).collect();
    if names.is_empty() {
        return wrong("it has no level; give it at least one".into());
    }
    for (i, name) in names.iter().enumerate() {
        if name.as_deref() == Some("") {
            return wrong(format!(
                "the name of level {} is empty; it is what an alert says of it",
                i + 1
            ));
        }
        if names[..i].contains(name) {
            return wrong(format!(
                "level {} is named {:?} like another; names of levels must differ",
                i + 1,
                name.as_deref().unwrap_or_default()
            ));
        }
    }
    if let Some(slots) = rule.slots {
        if slots.n == 0 || slots.n > SLOTS_MAX || slots.m == 0 || slots.m > slots.n {
            return wrong(format!(
                "{} of {} slots cannot be; n is from 1 to {SLOTS_MAX}, and m from 1 to n",
                slots.m, slots.n
            ));
        }
        if slots.width < PERIOD_MIN {
            return wrong(format!(
                "its slots are {:?} wide; they must be at least {PERIOD_MIN:?}",
                slots.width
            ));
        }
    }
    if let Some(every) = rule.every
        && every < PERIOD_MIN
    {
        return wrong(format!(
            "it is to be evaluated every {every:?}; at least {PERIOD_MIN:?} have to be in between"
        ));
    }
    if rule.group == Group::AtLeast(0) {
        return wrong("at_least(0) always holds; at_least(1) is the least".into());
    }
    if rule.group == Group::Each && !rule.by.is_empty() {
        return wrong(format!(
            "by({}) needs any(), all() or at_least(k): with each() every series is on its own",
            rule.by.join(", ")
        ));
    }
    for (name, _) in &rule.labels {
        let valid = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty()
            || name.starts_with(|c: char| c.is_ascii_digit())
            || !name.chars().all(valid)
        {
            return wrong(format!(
                "label name {name:?} is not valid; a label name is letters, digits and '_', not beginning with a digit"
            ));
        }
    }
    Ok(())
}

pub(super) fn too_many() -> RuleError {
    RuleError::Wrong {
        why: format!(
            "it names more than {PLACES_MAX} series or selectors; name many at once by a selector, as in \"{{worker=~\\\"a.*\\\"}}\""
        ),
    }
}

fn plant(test: &Test, leaves: &mut Vec<Leaf>) -> Result<Tree, RuleError> {
    if leaves.len() > PLACES_MAX {
        return Err(too_many());
    }
    let leaf = match test {
        Test::When(node, threshold) => numeric(node, Judge::Threshold(threshold.cuts()?))?,
        Test::Moved(node, delta) => numeric(node, Judge::Moved(delta.distance()?))?,
        Test::Changed(node) => numeric(node, Judge::Changed)?,
        Test::Stale(selector, ttl) => {
            if *ttl < PERIOD_MIN {
                return Err(RuleError::Expression {
                    expression: test.to_string(),
                    why: format!("a series is stale after {PERIOD_MIN:?} at the earliest"),
                });
            }
            Leaf::Stale {
                selector: selector.clone()?,
                ttl: *ttl,
            }
        }
        Test::Gone(selector, keep) => Leaf::Gone {
            selector: selector.clone()?,
            keep: *keep,
        },
        Test::And(a, b) => {
            return Ok(Tree::And(
                Box::new(plant(a, leaves)?),
                Box::new(plant(b, leaves)?),
            ));
        }
        Test::Or(a, b) => {
            return Ok(Tree::Or(
                Box::new(plant(a, leaves)?),
                Box::new(plant(b, leaves)?),
            ));
        }
        Test::Not(a) => return Ok(Tree::Not(Box::new(plant(a, leaves)?))),
    };
    leaves.push(leaf);
    Ok(Tree::Leaf(leaves.len() - 1))
}

fn numeric(node: &Node, judge: Judge) -> Result<Leaf, RuleError> {
    let program = Program::new(node)?;
    if program.is_plain()
        && let Node::Value(Source { selector, .. }) = node
    {
        return Ok(Leaf::Direct {
            selector: selector.clone()?,
            judge,
        });
    }
    Ok(Leaf::Computed { program, judge })
}
