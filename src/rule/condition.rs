//! Conditions: what has to hold for a rule to fire. Plain values; judged by `engine.rs`.

use std::{
    fmt,
    ops::{BitAnd, BitOr, Not},
    time::Duration,
};

use super::expr::{DEPTH_MAX, Expr, Node};
use crate::{
    error::SelectorError,
    selector::{IntoSelector, Selector},
    threshold::{Delta, Threshold},
};

/// What has to hold.
///
/// | condition | holds |
/// |---|---|
/// | [`when`](Condition::when) | from where its expression crosses the threshold's bound until it crosses the clear bound |
/// | [`moved`](Condition::moved) | for the moment in which the expression has moved by a delta since it last did |
/// | [`changed`](Condition::changed) | for the moment in which the expression takes another value |
/// | [`stale`](Condition::stale) | while a series exists that had no mutation for a time |
/// | [`gone`](Condition::gone) | from a series' removal until it is back, or for a time |
/// | `a & b`, `a \| b`, `!a` | as in logic |
///
/// # Unknown
///
/// A condition about something that has no data is neither true nor false: nothing is reported that was not measured. It
/// does not fire, and neither does its opposite. `&`, `|` and `!` follow Kleene: unknown *and* false is false, unknown
/// *or* true is true.
///
/// | before | now | threshold `above 0.9, clear below 0.8` |
/// |---|---|---|
/// | (nothing yet) | no data | unknown |
/// | (nothing yet) | NaN | unknown |
/// | (nothing yet) | 0.85 | false |
/// | false | 0.95 | true |
/// | true | 0.85 | true: between the bounds |
/// | true | NaN | true: NaN neither enters nor leaves |
/// | true | 0.79 | false |
/// | true | no data | unknown: a rule that was firing is resolved |
/// | unknown, was true | 0.85 | false: what it was before is forgotten |
///
/// A counter that is there has a value, 0 included, from its birth on; a gauge that was never set, and a histogram without
/// observations, have none. A part about a series without labels has one state for all sets of labels.
///
/// ```
/// use std::time::Duration;
/// use metricbus::{Condition, Expr, Threshold};
///
/// let full = Condition::when("kv_usage_ratio", Threshold::above(0.9).clear_below(0.8));
/// let idle = Condition::when(Expr::rate("requests_total", Duration::from_secs(60)), Threshold::below(1.0));
/// let condition = full & !idle;
/// assert_eq!(
///     condition.to_string(),
///     "(kv_usage_ratio above 0.9, clear below 0.8 and not rate(requests_total[60s]) below 1)",
/// );
/// ```
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub struct Condition(pub(crate) Test);

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Test {
    When(Node, Threshold),
    Moved(Node, Delta),
    Changed(Node),
    Stale(Result<Selector, SelectorError>, Duration),
    Gone(Result<Selector, SelectorError>, Duration),
    And(Box<Test>, Box<Test>),
    Or(Box<Test>, Box<Test>),
    Not(Box<Test>),
}

impl Condition {
    /// The expression is beyond the threshold's bound, and has not crossed its clear bound since. A selector stands for
    /// the value of its series.
    pub fn when(input: impl Into<Expr>, threshold: Threshold) -> Condition {
        Condition(Test::When(input.into().0, threshold))
    }

    /// The expression has moved by `delta` or more since it last had. Holds for that moment only: a rule fires and is
    /// resolved at once, or stays firing for as long as [`keep_firing_for`](crate::Rule::keep_firing_for) says; with
    /// [`hold_for`](crate::Rule::hold_for) it never fires. The first value is the reference and says nothing; NaN is passed over;
    /// a series that was removed and comes back begins anew.
    ///
    /// | delta | values | fires at |
    /// |---|---|---|
    /// | absolute 1 | 10, 10.5, 11, 11.5, 12, 11 | 11, 12, 11 |
    /// | relative 0.1 | 100, 109, 110, 120, 121, 108 | 110, 121, 108 |
    /// | relative 0.1, floor 50 | 0, 4.9, 5, 9.9, 10 | 5, 10 |
    /// | share 0.25 of the range 0 to 8 | 1, 2.9, 3, 1.1, 1 | 3, 1 |
    pub fn moved(input: impl Into<Expr>, delta: Delta) -> Condition {
        Condition(Test::Moved(input.into().0, delta))
    }

    /// The expression takes another value. Holds for that moment only, as [`moved`](Condition::moved). Every change is
    /// seen, not only the last.
    ///
    /// | values | fires at |
    /// |---|---|
    /// | 1, 1, 2, 2, 0, −0, 3 | 2, 0, 3 |
    pub fn changed(input: impl Into<Expr>) -> Condition {
        Condition(Test::Changed(input.into().0))
    }

    /// A series had no mutation for `ttl`, at least 10 ms; before its first mutation, since the rule was added or the
    /// series made. A mutation that does not change the value is one.
    ///
    /// Never early. To the moment as long as a series has at most 8 mutations in each hundredth of `ttl` (at least
    /// 10 ms, at most a second); a busier one is looked at so often, and found stale that much late at most. So
    /// it costs a busy series next to nothing.
    ///
    /// | time | `stale(selector, 5 s)`, added at 1 s | alert |
    /// |---|---|---|
    /// | 6 s | | firing |
    /// | 8 s | a mutation | resolved |
    /// | 12 s | a mutation | |
    /// | 17 s | | firing |
    pub fn stale(selector: impl IntoSelector, ttl: Duration) -> Condition {
        Condition(Test::Stale(selector.into_selector(), ttl))
    }

    /// A series was removed or has expired. Holds until it is back, or for `keep`; then it is forgotten.
    ///
    /// | time | `gone(selector, 5 s)` | alert |
    /// |---|---|---|
    /// | 1 s | the series is removed | firing |
    /// | 3 s | it is back | resolved |
    /// | 4 s | it is removed | firing |
    /// | 9 s | it is forgotten | resolved |
    pub fn gone(selector: impl IntoSelector, keep: Duration) -> Condition {
        Condition(Test::Gone(selector.into_selector(), keep))
    }

    /// Made of conditions, each of which is not too deep.
    fn nested(test: Test) -> Condition {
        let is_wrong = |test: &Test| matches!(test, Test::Changed(Node::Wrong(_)));
        // What is wrong stays what it is, whatever is made of it.
        let test = match test {
            Test::And(a, _) | Test::Or(a, _) | Test::Not(a) if is_wrong(&a) => *a,
            Test::And(_, b) | Test::Or(_, b) if is_wrong(&b) => *b,
            test => test,
        };
        if test.depth() > DEPTH_MAX {
            // An expression that means nothing says why when the rule is made.
            let why = format!(
                "conditions are nested more than {DEPTH_MAX} deep; one about many series is a rule with any(), all() or \
                 at_least(k)"
            );
            return Condition(Test::Changed(Node::Wrong(why)));
        }
        Condition(test)
    }

    /// Both hold, 256 of them at most. As `a & b`.
    pub fn and(self, other: Condition) -> Condition {
        Condition::nested(Test::And(Box::new(self.0), Box::new(other.0)))
    }

    /// At least one holds, of 256 at most. As `a | b`.
    pub fn or(self, other: Condition) -> Condition {
        Condition::nested(Test::Or(Box::new(self.0), Box::new(other.0)))
    }
}

impl Test {
    fn depth(&self) -> usize {
        let below = match self {
            Test::And(a, b) | Test::Or(a, b) => a.depth().max(b.depth()),
            Test::Not(a) => a.depth(),
            _ => 0,
        };
        below + 1
    }
}

impl BitAnd for Condition {
    type Output = Condition;

    fn bitand(self, other: Condition) -> Condition {
        self.and(other)
    }
}

impl BitOr for Condition {
    type Output = Condition;

    fn bitor(self, other: Condition) -> Condition {
        self.or(other)
    }
}

impl Not for Condition {
    type Output = Condition;

    fn not(self) -> Condition {
        Condition::nested(Test::Not(Box::new(self.0)))
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let selected = |selector: &Result<Selector, SelectorError>| match selector {
            Ok(selector) => selector.to_string(),
            Err(error) => error.to_string(),
        };
        match self {
            Test::When(input, threshold) => write!(f, "{input} {threshold}"),
            Test::Moved(input, delta) => write!(f, "{input} {delta}"),
            Test::Changed(input) => write!(f, "{input} changed"),
            Test::Stale(selector, ttl) => write!(f, "{} stale for {ttl:?}", selected(selector)),
            Test::Gone(selector, keep) => {
                write!(f, "{} gone, for {keep:?} at most", selected(selector))
            }
            Test::And(a, b) => write!(f, "({a} and {b})"),
            Test::Or(a, b) => write!(f, "({a} or {b})"),
            Test::Not(a) => write!(f, "not {a}"),
        }
    }
}
