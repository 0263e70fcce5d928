//! Rules: conditions over metrics, with time, groups and names.

mod alert;
mod compute;
mod condition;
mod derivations;
mod derive;
mod engine;
mod expr;
#[cfg(feature = "persist")]
mod keeper;
mod live;
mod log;
mod machine;
mod metrics;
mod plan;
#[cfg(any(feature = "http", feature = "nats"))]
pub(crate) mod show;
// Without a file there is nothing to go on from.
#[cfg_attr(not(feature = "persist"), allow(dead_code))]
mod store;
mod template;

use std::time::Duration;

pub use alert::{Alert, AlertCause, AlertState, Notice, Pairs, Quality, RuleState};
pub use condition::Condition;
pub use derive::Derived;
pub use expr::{Expr, Over};
#[cfg(feature = "persist")]
pub use keeper::RuleStateFile;
pub use live::{LiveRule, RuleGroup, RuleStatus, RuleThreshold};

pub(crate) use condition::Test;
#[cfg(feature = "nats")]
pub(crate) use expr::{Gather, How, Node, Op, Source, Stat};
pub(crate) use live::Rules;
use machine::Timing;
pub(crate) use metrics::families;
#[cfg(feature = "nats")]
pub(crate) use template::check as check_template;

/// What to watch, and when it is worth a word: a plain value, checked when it is
/// [added to a bus](crate::MetricBus::add_rule).
///
/// ```
/// use std::time::Duration;
/// use metricbus::{Condition, Expr, Rule, Threshold};
///
/// let rule = Rule::new(
///     "KvCacheFull",
///     Condition::when(
///         Expr::value("kv_blocks_used") / Expr::value("kv_blocks"),
///         Threshold::above(0.9).clear_below(0.8),
///     ),
/// )
/// .hold_for(Duration::from_millis(500))
/// .any()
/// .by(["component"])
/// .label("severity", "page")
/// .annotation("summary", "KV cache of {{ $labels.component }} is {{ $value }} full");
/// assert_eq!(rule.name(), "KvCacheFull");
/// ```
///
/// # Which series
///
/// A rule judges every series that its selectors match, present and future. Series with the same labels are judged
/// together, each in its part of the condition; a series without labels takes part everywhere. Where a rule looks at one
/// metric by one selector, each series is judged alone, and its name tells it apart, too.
///
/// [`each`](Rule::each) (unless told otherwise) keeps a state for each of them. [`any`](Rule::any), [`all`](Rule::all)
/// and [`at_least`](Rule::at_least) make groups of them: one of all, or one for each value of the labels given to
/// [`by`](Rule::by). `all` over no series does not hold, and neither does it while of some series nothing is known.
///
/// | condition holds for | `each` | `any` | `all` | `at_least(2)` |
/// |---|---|---|---|---|
/// | none of 3 | – | no | no | no |
/// | 1 of 3 | that one | yes | no | no |
/// | 2 of 3 | those two | yes | no | yes |
/// | 3 of 3 | all three | yes | yes | yes |
/// | 2 of 2, and a third is unknown | those two | yes | no | yes |
/// | the third is removed | those two | yes | yes | yes |
/// | no series is left | resolved | resolved | resolved | resolved |
///
/// # Time
///
/// The condition of the group, as it holds or not, goes through [`m_of_n`](Rule::m_of_n), then through
/// [`hold_for`](Rule::hold_for) and [`keep_firing_for`](Rule::keep_firing_for). All go by timers, and need no further
/// mutation. With `hold_for(5 s)` and `keep_firing_for(3 s)`:
///
/// | time | condition | state | alert |
/// |---|---|---|---|
/// | 0 s | begins to hold | pending | |
/// | 4 s | ceases | inactive | none: a pending that ends is silent |
/// | 10 s | begins | pending | |
/// | 15 s | | firing | firing, at 15 s, since 10 s |
/// | 17 s | ceases | clearing | |
/// | 19 s | begins | firing | none |
/// | 30 s | ceases | clearing | |
/// | 33 s | | inactive | resolved, at 33 s |
///
/// At one instant holds end first, then slots, then windows are looked at, and mutations come last: a condition that
/// ceases at the very instant at which its hold ends has held.
///
/// One mutation, one tick, a birth or a removal is judged once, however many parts of the condition, series and levels it
/// turns: there is one alert per group and instant. (What holds [for a moment](Condition::moved) fires and is resolved.)
///
/// # Levels
///
/// A rule can have several conditions, each with the name of a level, the least severe first. Each goes through its own
/// times; the rule's level is the highest that fires, and one alert tells each change of it.
///
/// | value | `warn`: above 80, clear below 70; `critical`: above 90, clear below 85 | alert |
/// |---|---|---|
/// | 75 | inactive | |
/// | 85 | warn | firing (warn) |
/// | 95 | critical | firing (critical), previous level warn |
/// | 86 | critical | |
/// | 75 | warn | firing (warn), previous level critical |
/// | 95 | critical | firing (critical), previous level warn |
/// | 60 | inactive | resolved, previous level critical |
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub struct Rule {
    pub(crate) name: String,
    pub(crate) levels: Vec<Level>,
    pub(crate) group: Group,
    pub(crate) by: Vec<String>,
    pub(crate) hold: Duration,
    pub(crate) keep: Duration,
    pub(crate) slots: Option<Slots>,
    pub(crate) every: Option<Duration>,
    pub(crate) initial: bool,
    pub(crate) dry_run: bool,
    pub(crate) history: usize,
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) annotations: Vec<(String, String)>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Level {
    /// `None`: the only one.
    pub(crate) name: Option<String>,
    pub(crate) test: Test,
}

/// Which of the series of a group have to meet the condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    Each,
    Any,
    All,
    AtLeast(usize),
}

/// M of the last N slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slots {
    pub(crate) m: u32,
    pub(crate) n: u32,
    pub(crate) width: Duration,
}

impl Slots {
    /// A bit for each slot.
    fn all(self) -> u64 {
        u64::MAX >> (64 - self.n)
    }
}

/// How many transitions a rule remembers unless told otherwise.
pub(crate) const HISTORY_DEFAULT: usize = 100;

impl Rule {
    /// A rule that fires when `condition` holds. The name must not be empty, and no other rule of the bus may have it.
    pub fn new(name: impl Into<String>, condition: Condition) -> Rule {
        Rule::of_levels(
            name,
            vec![Level {
                name: None,
                test: condition.0,
            }],
        )
    }

    /// A rule with several levels, the least severe first.
    ///
    /// ```
    /// use metricbus::{Condition, Rule, Threshold};
    ///
    /// let rule = Rule::levels("QueueDeep", [
    ///     ("warn", Condition::when("queue_depth", Threshold::above(80.0).clear_below(70.0))),
    ///     ("critical", Condition::when("queue_depth", Threshold::above(90.0).clear_below(85.0))),
    /// ]);
    /// # let _ = rule;
    /// ```
    pub fn levels<N: Into<String>>(
        name: impl Into<String>,
        levels: impl IntoIterator<Item = (N, Condition)>,
    ) -> Rule {
        let level = |(name, condition): (N, Condition)| Level {
            name: Some(name.into()),
            test: condition.0,
        };
        Rule::of_levels(name, levels.into_iter().map(level).collect())
    }

    fn of_levels(name: impl Into<String>, levels: Vec<Level>) -> Rule {
        Rule {
            name: name.into(),
            levels,
            group: Group::Each,
            by: Vec::new(),
            hold: Duration::ZERO,
            keep: Duration::ZERO,
            slots: None,
            every: None,
            initial: true,
            dry_run: false,
            history: HISTORY_DEFAULT,
            labels: Vec::new(),
            annotations: Vec::new(),
        }
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it watches for, each with the name of its level; a rule without levels has one condition, without a name.
    ///
    /// ```
    /// use metricbus::{Condition, Rule, Threshold};
    ///
    /// let rule = Rule::new("KvFull", Condition::when("kv_usage_ratio", Threshold::above(0.9).clear_below(0.8)));
    /// let shown: Vec<String> = rule.conditions().map(|(_, condition)| condition.to_string()).collect();
    /// assert_eq!(shown, ["kv_usage_ratio above 0.9, clear below 0.8"]);
    /// ```
    pub fn conditions(&self) -> impl Iterator<Item = (Option<&str>, Condition)> {
        let levels = self.levels.iter();
        levels.map(|level| (level.name.as_deref(), Condition(level.test.clone())))
    }

    /// Fires only once the condition has held for `time` without a break. (Prometheus calls it `for`.)
    pub fn hold_for(mut self, time: Duration) -> Rule {
        self.hold = time;
        self
    }

    /// Is resolved only once the condition has not held for `time` without a break. A group whose last series is removed is
    /// resolved at once.
    pub fn keep_firing_for(mut self, time: Duration) -> Rule {
        self.keep = time;
        self
    }

    /// The condition counts as holding while it held, at least for a moment, in `m` of the last `n` slots of width
    /// `slot`, the present one included. Slots begin at multiples of their width on the bus's clock. `n` is at most 64,
    /// `slot` at least 10 ms.
    ///
    /// A condition that goes on holding does so in each slot from its beginning.
    ///
    /// | slot of 1 s | 0 | 1 | 2 | 3 | 4 | 5 | 6 |
    /// |---|---|---|---|---|---|---|---|
    /// | held in it | no | yes | no | yes | no | no | no |
    /// | `m_of_n(2, 3, 1 s)` | no | no | no | yes | no | no | no |
    pub fn m_of_n(mut self, m: u32, n: u32, slot: Duration) -> Rule {
        self.slots = Some(Slots { m, n, width: slot });
        self
    }

    /// A state for each series. (So it is unless told otherwise.)
    pub fn each(self) -> Rule {
        self.grouped(Group::Each)
    }

    /// Holds for a group when it does for at least one of its series.
    pub fn any(self) -> Rule {
        self.grouped(Group::Any)
    }

    /// Holds for a group when it does for all of its series, and there are some.
    pub fn all(self) -> Rule {
        self.grouped(Group::All)
    }

    /// Holds for a group when it does for at least `k` of its series. `k` must be at least 1.
    pub fn at_least(self, k: usize) -> Rule {
        self.grouped(Group::AtLeast(k))
    }

    fn grouped(mut self, group: Group) -> Rule {
        self.group = group;
        self
    }

    /// A group for each value of these labels, rather than one of all series. A label that a series does not have counts
    /// as empty. Not for [`each`](Rule::each).
    pub fn by<I>(mut self, labels: I) -> Rule
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        self.by = labels.into_iter().map(Into::into).collect();
        self
    }

    /// How often windows and moving averages are evaluated: at multiples of `period` on the bus's clock, at least 10 ms.
    /// Otherwise at each slot boundary of the narrowest window, at most a second apart.
    pub fn every(mut self, period: Duration) -> Rule {
        self.every = Some(period);
        self
    }

    /// Whether to say that the condition holds already when the rule is added (yes unless told otherwise). If not, the
    /// rule goes to firing silently, and its first alert is the resolved one.
    pub fn initial(mut self, initial: bool) -> Rule {
        self.initial = initial;
        self
    }

    /// Evaluates and records, and tells no subscriber. A rule that becomes a dry run while it fires tells them that it is
    /// resolved, and one that ceases to be that it fires, because of [`AlertCause::RuleChanged`].
    pub fn dry_run(mut self, dry_run: bool) -> Rule {
        self.dry_run = dry_run;
        self
    }

    /// How many of its last transitions the rule remembers: 100 unless told otherwise.
    pub fn history(mut self, transitions: usize) -> Rule {
        self.history = transitions;
        self
    }

    /// Adds a label to its alerts. It wins over a label of the series.
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Rule {
        self.labels.push((name.into(), value.into()));
        self
    }

    /// Adds an annotation to its alerts. It is a template, of which `promtool` takes the same: nothing else may stand in
    /// double braces.
    ///
    /// | | is filled with |
    /// |---|---|
    /// | `{{ $value }}` | the value; `(no data)` without one |
    /// | `{{ $labels.name }}` | a label of the alert; of a group of several that does not have it, of the first series that holds (or did, once resolved); nothing where there is none |
    /// | `{{ .Holding }}` | the labels of all series that hold, ten at most and how many more: `{worker="a"}, {worker="b"}` |
    /// | `{{ "{{" }}` | this text |
    ///
    /// Anything else in braces is an error when the rule is added, and so is a label that no series of it can have: none of its
    /// metrics is declared with it. A metric that is not declared yet may have any.
    pub fn annotation(mut self, name: impl Into<String>, text: impl Into<String>) -> Rule {
        self.annotations.push((name.into(), text.into()));
        self
    }

    pub(crate) fn timing(&self) -> Timing {
        Timing {
            hold: self.hold,
            keep: self.keep,
            slots: self.slots,
        }
    }

    /// Whether it has the same conditions and groups as another: all else can be changed while it runs.
    pub(crate) fn judges_as(&self, other: &Rule) -> bool {
        self.levels == other.levels
            && self.group == other.group
            && self.by == other.by
            && self.every == other.every
    }

    /// Its thresholds, as numbers.
    pub(crate) fn thresholds(&self) -> Vec<RuleThreshold> {
        fn collect(test: &Test, level: Option<&str>, found: &mut Vec<RuleThreshold>) {
            match test {
                Test::When(input, threshold) => {
                    let (raise, clear) = threshold.bounds();
                    found.push(RuleThreshold {
                        level: level.map(str::to_owned),
                        input: input.to_string(),
                        raise,
                        clear,
                    });
                }
                Test::And(a, b) | Test::Or(a, b) => {
                    collect(a, level, found);
                    collect(b, level, found);
                }
                Test::Not(a) => collect(a, level, found),
                Test::Moved(..) | Test::Changed(_) | Test::Stale(..) | Test::Gone(..) => {}
            }
        }
        let mut found = Vec::new();
        for level in &self.levels {
            collect(&level.test, level.name.as_deref(), &mut found);
        }
        found
    }
}
