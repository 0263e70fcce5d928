//! What can go wrong, an enum per operation. Every message says what was wrong, with the value, and what would be right.

use std::fmt;
#[cfg(feature = "persist")]
use std::path::PathBuf;

use crate::desc::MetricKind;

/// Why a metric could not be declared.
#[derive(Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DeclareError {
    /// The name is not `[a-zA-Z_:][a-zA-Z0-9_:]*`.
    #[error(
        "metric name {name:?} is not valid: {why}; a name is any text without '\"', '\\' and control characters, best of letters, digits and '_'"
    )]
    Name {
        /// The name as given.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// A label's name is empty, or has something in it that would have to be escaped.
    #[error(
        "metric {metric:?}: label name {label:?} is not valid: {why}; a label name is any text without '\"', '\\' and control characters, best of letters, digits and '_'"
    )]
    LabelName {
        /// The metric.
        metric: String,
        /// The label's name as given.
        label: String,
        /// What is wrong with it.
        why: String,
    },
    /// The label's name has a meaning of its own.
    #[error("metric {metric:?}: label {label:?} is reserved: {why}")]
    LabelReserved {
        /// The metric.
        metric: String,
        /// The label.
        label: String,
        /// For what.
        why: &'static str,
    },
    /// A label is there twice, perhaps once by a scope.
    #[error("metric {metric:?}: label {label:?} is given twice (labels in force: {labels:?})")]
    LabelTwice {
        /// The metric.
        metric: String,
        /// The label.
        label: String,
        /// All labels of the declaration.
        labels: Vec<String>,
    },
    /// Labels without values where a single metric was asked for, or none where a family was.
    #[error("metric {metric:?}: {why}")]
    Labels {
        /// The metric.
        metric: String,
        /// What is wrong and what would be right.
        why: String,
    },
    /// The unit isn't at the end of the name.
    #[error(
        "metric {metric:?} has unit {unit:?}: its name must end in it; {right:?} would be right"
    )]
    Unit {
        /// The metric.
        metric: String,
        /// The unit.
        unit: String,
        /// A name that would do.
        right: String,
    },
    /// A backend other than this library's own could not take the metric.
    #[error("metric {metric:?}: the backend refused it: {why}")]
    Backend {
        /// The metric.
        metric: String,
        /// What the backend said.
        why: String,
    },
    /// The buckets of a histogram can't be used.
    #[error("metric {metric:?}: {source}")]
    Buckets {
        /// The metric.
        metric: String,
        /// Why not.
        source: BucketError,
    },
    /// The same name was declared before, with something else.
    #[error(
        "metric {metric:?} clashes with its earlier declaration: {what} was {earlier}, and now is {now}"
    )]
    Clash {
        /// The metric.
        metric: String,
        /// Type, help, unit, label names, buckets, or a limit.
        what: &'static str,
        /// As declared first.
        earlier: String,
        /// As declared now.
        now: String,
    },
    /// One of the names under which the metric appears on `/metrics` belongs to another metric.
    #[error(
        "{kind} {metric:?} is exposed as {sample:?}, which belongs to {other_kind} {other:?}; rename one of the two"
    )]
    SampleClash {
        /// The metric being declared.
        metric: String,
        /// Its type.
        kind: MetricKind,
        /// The name both want.
        sample: String,
        /// The metric that has it.
        other: String,
        /// Its type.
        other_kind: MetricKind,
    },
}

/// Why a rule, or a derived gauge, could not be made.
#[derive(Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RuleError {
    /// One of its selectors can't be read.
    #[error(transparent)]
    Selector(#[from] SelectorError),
    /// One of its thresholds or deltas is wrong.
    #[error(transparent)]
    Bound(#[from] SubscribeError),
    /// An expression or a condition can't be evaluated.
    #[error("{expression}: {why}")]
    Expression {
        /// The expression.
        expression: String,
        /// What is wrong, and what would be right.
        why: String,
    },
    /// An expression that means nothing.
    #[error("{why}")]
    Wrong {
        /// What is wrong, and what would be right.
        why: String,
    },
    /// The rule as a whole is wrong.
    #[error("rule {rule:?}: {why}")]
    Rule {
        /// Its name.
        rule: String,
        /// What is wrong, and what would be right.
        why: String,
    },
    /// There is a rule of that name.
    #[error(
        "there is a rule {rule:?} already; change it with set_rule(), or give this one another name"
    )]
    Exists {
        /// The name.
        rule: String,
    },
    /// A rule keeps its name for life.
    #[error(
        "rule {rule:?} cannot become {now:?}: a rule keeps its name; remove it and add the other"
    )]
    Renamed {
        /// Its name.
        rule: String,
        /// The name of what it was to become.
        now: String,
    },
    /// The rule was removed, or its bus is gone.
    #[error("rule {rule:?} was removed, or its bus is gone")]
    Removed {
        /// Its name.
        rule: String,
    },
    /// The gauge that was to show it could not be declared.
    #[error(transparent)]
    Declare(#[from] DeclareError),
}

/// Why the state of rules could not be kept in a file.
#[cfg(feature = "persist")]
#[derive(Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RuleStateError {
    /// It can't be read.
    #[error("the state of rules can't be read from {}: {why}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        why: String,
    },
    /// It was read, and is not what it should be.
    #[error(
        "{} is no state of rules: {why}; move it away to begin anew, or name another file", path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// It can't be written.
    #[error("the state of rules can't be written to {}: {why}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        why: String,
    },
    /// Rules were added before their state was read.
    #[error("rule {rule:?} runs already; call keep_rule_state() before rules are added")]
    Late {
        /// One of the rules.
        rule: String,
    },
    /// There is no file to write to.
    #[error("no file keeps the state of rules; call keep_rule_state() first")]
    NoFile,
}

/// Why label values were refused.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LabelError {
    /// Too few or too many values.
    #[error("metric {metric:?} takes {wanted} label values ({names:?}), and got {got}")]
    Count {
        /// The metric.
        metric: String,
        /// How many it takes.
        wanted: usize,
        /// How many it got.
        got: usize,
        /// For which labels.
        names: Vec<String>,
    },
}

/// Why bucket bounds were refused.
#[derive(Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BucketError {
    /// A bound is NaN or -Inf.
    #[error("bucket bound {bound} at position {position} is not a number that can bound a bucket")]
    NotANumber {
        /// The bound.
        bound: f64,
        /// Where it stands, from 0.
        position: usize,
    },
    /// Bounds must grow.
    #[error("bucket bounds must increase: {bound} at position {position} follows {before}")]
    NotIncreasing {
        /// The bound before.
        before: f64,
        /// The bound.
        bound: f64,
        /// Where it stands, from 0.
        position: usize,
    },
    /// A helper got something from which no bounds can be made.
    #[error("{what} is {value}: {right}")]
    Argument {
        /// Which argument.
        what: &'static str,
        /// Its value.
        value: f64,
        /// What would be right.
        right: &'static str,
    },
    /// More bounds than are sensible.
    #[error("{count} bucket bounds are too many: at most {max}")]
    TooMany {
        /// How many were given.
        count: usize,
        /// How many can be.
        max: usize,
    },
}

/// Why a selector could not be read.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SelectorError {
    /// The text is not a selector.
    #[error(
        "selector {text:?}, at byte {position}: {what}; a selector looks like kv_usage{{component=\"decode\",pod!~\"test-.*\"}}"
    )]
    Syntax {
        /// The selector.
        text: String,
        /// Where it went wrong, in bytes from the beginning.
        position: usize,
        /// What was expected and what was found.
        what: String,
    },
    /// The regular expression of a matcher is not one.
    #[error("selector {text:?}: {pattern:?} is not a regular expression: {why}")]
    Regex {
        /// The selector.
        text: String,
        /// The pattern.
        pattern: String,
        /// What the regex engine says.
        why: String,
    },
    /// It was made from a handle or a series of another bus, or of a declaration that was taken back since.
    #[error(
        "series {series} is not one of this bus, which would never hear of it; ask the bus on which it was declared, or give its name as text"
    )]
    Elsewhere {
        /// The series.
        series: String,
    },
}

/// Why a subscription could not be made.
#[derive(Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SubscribeError {
    /// The selector is wrong.
    #[error(transparent)]
    Selector(#[from] SelectorError),
    /// A bound is not a finite number.
    #[error("threshold bound {bound}: a bound must be a finite number")]
    Bound {
        /// The bound.
        bound: f64,
    },
    /// The clear bound is on the wrong side of the raise bound.
    #[error("threshold {threshold}: it would clear while raised; {right}")]
    ClearBound {
        /// The threshold.
        threshold: String,
        /// What would be right.
        right: String,
    },
    /// The rule that was to be listened to is wrong, or gone.
    #[error(transparent)]
    Rule(#[from] Box<RuleError>),
    /// A delta must be a distance.
    #[error(
        "delta of {delta}: it must be greater than 0 and finite; any change at all is on_change, or Condition::changed in a rule"
    )]
    Delta {
        /// The delta.
        delta: f64,
    },
}

impl From<RuleError> for SubscribeError {
    fn from(error: RuleError) -> Self {
        SubscribeError::Rule(Box::new(error))
    }
}

/// Why a counter did not take an amount.
#[derive(Clone, Copy, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CounterError {
    /// A counter only grows.
    #[error("a counter can't be raised by {amount}: the amount must be finite and 0 or more")]
    Amount {
        /// The amount.
        amount: f64,
    },
}

/// Why an exemplar was not kept. What it stood for was counted all the same, unless it says otherwise.
#[derive(Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ExemplarError {
    /// A label's name is not `[a-zA-Z_][a-zA-Z0-9_]*`, or it begins with `__`.
    #[error(
        "exemplar label {label:?} is not valid: {why}; a label name is letters, digits and '_', not beginning with a digit"
    )]
    LabelName {
        /// The label's name as given.
        label: String,
        /// What is wrong with it.
        why: String,
    },
    /// A label is there twice.
    #[error("exemplar label {label:?} is given twice")]
    LabelTwice {
        /// The label.
        label: String,
    },
    /// OpenMetrics allows so many characters, and Prometheus refuses the whole scrape for one more.
    #[error(
        "the labels of an exemplar have {characters} characters, names and values together; {max} is the most"
    )]
    TooLong {
        /// How many there are.
        characters: usize,
        /// How many there can be.
        max: usize,
    },
    /// NaN lies in no bucket that an exemplar could stand for.
    #[error("NaN can't be an exemplar: it lies in no bucket")]
    NoNumber,
    /// A counter only grows: nothing was counted.
    #[error(
        "a counter can't be raised by {amount}, and nothing was counted: the amount must be finite and 0 or more"
    )]
    Amount {
        /// The amount.
        amount: f64,
    },
}

/// `main` and `unwrap` show errors by their `Debug`; there, too, the message is what helps.
macro_rules! debug_is_the_message {
    ($($error:ty),*) => {$(
        impl fmt::Debug for $error {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    )*};
}

debug_is_the_message!(
    DeclareError,
    LabelError,
    BucketError,
    SelectorError,
    SubscribeError,
    RuleError,
    CounterError,
    ExemplarError
);

#[cfg(feature = "persist")]
debug_is_the_message!(RuleStateError);
