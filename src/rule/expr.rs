//! Expressions: what a condition looks at, and what a derived gauge shows. Plain values; evaluated by `compute.rs`.

use std::{
    fmt,
    ops::{Add, Div, Mul, Sub},
    time::Duration,
};

use crate::{
    error::SelectorError,
    selector::{IntoSelector, Selector},
};

/// A number made from metrics: the value of a series, a statistic of a window, a sum over series, or arithmetic on
/// these. A condition judges it; [`MetricBus::derive`](crate::MetricBus::derive) makes a gauge of it.
///
/// | | is evaluated |
/// |---|---|
/// | [`value`](Expr::value), sums and other gatherings of values | by each mutation, in the thread that makes it, with its own value |
/// | [`over`](Expr::over): windows | at each slot boundary of the narrowest window, at most a second apart |
/// | [`ewma`](Expr::ewma) | when what it averages is, and in between at each hundredth of its time constant (10 ms to 1 s) |
/// | arithmetic on these | whenever one of them is; windows count as they were last evaluated |
///
/// An expression is evaluated once for each set of labels. Operands with the same labels belong together, whatever the
/// names of their metrics; an operand without labels (a single metric, a sum over all) goes with all of them. Operands
/// whose labels merely overlap do not meet: bring them to the same ones by [`by`](Expr::by).
///
/// *No data* is not a number: a gauge that was never set, a window that has seen nothing, an operand whose series does
/// not exist, and arithmetic on numbers that has no result (0/0, ∞−∞). Whatever is computed from it is no data either. NaN
/// is a number that somebody has measured, and goes through arithmetic as such.
///
/// | `used` | `total` | `used / total` |
/// |---|---|---|
/// | 95 | 100 | 0.95 |
/// | 1 | 0 | ∞ |
/// | 0 | 0 | no data |
/// | never set | 100 | no data |
/// | NaN | 100 | NaN |
/// | `{worker="a"}` 95 | `{worker="b"}` 100 | no data, for either worker |
/// | `{worker="a"}` 95, `{worker="b"}` 50 | 100, without labels | 0.95 for a, 0.5 for b |
///
/// Operands that are mutated one after the other are judged in between: where errors are counted before requests, the
/// first error is a share of 1/0 = ∞ for a moment. Count the whole first; or compare windows, which are looked at together.
///
/// An expression may be nested 256 deep (a sum of 257 terms, written down, is), and a rule may name 1 000 series or selectors in
/// all. What is beyond that is an error where it is used.
///
/// A series that is an operand takes the slow path with each change of its value (some 100 ns); one that is compared
/// with a threshold alone does not.
///
/// ```
/// use std::time::Duration;
/// use metricbus::Expr;
///
/// let share = Expr::value("kv_blocks_used") / Expr::value("kv_blocks");
/// assert_eq!(share.to_string(), "(kv_blocks_used / kv_blocks)");
///
/// let errors = Expr::over(r#"requests_total{code=~"5.."}"#, Duration::from_secs(300)).by(["service"]).rate();
/// assert_eq!(errors.to_string(), r#"rate by (service) (requests_total{code=~"5.."}[300s])"#);
/// ```
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub struct Expr(pub(crate) Node);

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Node {
    Constant(f64),
    Value(Source),
    Window {
        source: Source,
        width: Duration,
        stat: Stat,
    },
    Binary(Op, Box<Node>, Box<Node>),
    Scaled {
        of: Box<Node>,
        from: f64,
        to: f64,
    },
    Ewma {
        of: Box<Node>,
        tau: Duration,
    },
    /// Something that means nothing; said when the expression is used.
    Wrong(String),
}

/// How deep expressions and conditions may be nested: what goes over them does so by recursion, on the stack of whichever
/// thread mutates.
pub(crate) const DEPTH_MAX: usize = 256;

impl Node {
    fn depth(&self) -> usize {
        let below = match self {
            Node::Binary(_, a, b) => a.depth().max(b.depth()),
            Node::Scaled { of, .. } | Node::Ewma { of, .. } => of.depth(),
            Node::Constant(_) | Node::Value(_) | Node::Window { .. } | Node::Wrong(_) => 0,
        };
        below + 1
    }
}

/// Which series, and what is made of several.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Source {
    pub(crate) selector: Result<Selector, SelectorError>,
    pub(crate) gather: Option<Gather>,
}

/// Series as one number for each value of `by`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Gather {
    pub(crate) how: How,
    pub(crate) by: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    Sum,
    Avg,
    Min,
    Max,
    Count,
    /// Of windows: as if it were one window over all.
    Merge,
}

/// A statistic of a window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Stat {
    Count,
    Sum,
    Avg,
    Min,
    Max,
    Last,
    Rate,
    Increase,
    Stddev,
    Quantile(f64),
    Coverage,
    Age,
    Sources,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Add,
    Sub,
    Mul,
    Div,
}

impl Source {
    fn each(selector: impl IntoSelector) -> Source {
        Source {
            selector: selector.into_selector(),
            gather: None,
        }
    }

    fn gathered(selector: impl IntoSelector, how: How) -> Source {
        Source {
            gather: Some(Gather {
                how,
                by: Vec::new(),
            }),
            ..Source::each(selector)
        }
    }
}

impl Expr {
    /// Made of expressions, each of which is not too deep.
    fn nested(node: Node) -> Expr {
        // What is wrong stays what it is, whatever is made of it.
        let node = match node {
            Node::Binary(_, a, _) if matches!(*a, Node::Wrong(_)) => *a,
            Node::Binary(_, _, b) if matches!(*b, Node::Wrong(_)) => *b,
            Node::Scaled { of, .. } | Node::Ewma { of, .. } if matches!(*of, Node::Wrong(_)) => *of,
            node => node,
        };
        if node.depth() > DEPTH_MAX {
            return Expr(Node::Wrong(format!(
                "an expression is nested more than {DEPTH_MAX} deep; to add up many series use a sum over a selector, or derive \
                 a gauge of a part"
            )));
        }
        Expr(node)
    }

    /// The value of each selected series; of a histogram, each observation.
    ///
    /// In arithmetic a selector should mean one metric: of two with the same labels the one that was mutated last counts. To
    /// put several together say how: [`sum`](Expr::sum), [`max`](Expr::max) …
    pub fn value(selector: impl IntoSelector) -> Expr {
        Expr(Node::Value(Source::each(selector)))
    }

    /// A number.
    pub fn constant(value: f64) -> Expr {
        Expr(Node::Constant(value))
    }

    /// The sum of the selected series: of all, unless grouped [`by`](Expr::by) labels. Series without a value, and NaN,
    /// are left out, here and in the other gatherings; without any there is no data.
    pub fn sum(selector: impl IntoSelector) -> Expr {
        Expr(Node::Value(Source::gathered(selector, How::Sum)))
    }

    /// The mean of the selected series' values.
    pub fn avg(selector: impl IntoSelector) -> Expr {
        Expr(Node::Value(Source::gathered(selector, How::Avg)))
    }

    /// The least of the selected series' values.
    pub fn min(selector: impl IntoSelector) -> Expr {
        Expr(Node::Value(Source::gathered(selector, How::Min)))
    }

    /// The greatest of the selected series' values.
    pub fn max(selector: impl IntoSelector) -> Expr {
        Expr(Node::Value(Source::gathered(selector, How::Max)))
    }

    /// How many of the selected series have a value.
    pub fn count(selector: impl IntoSelector) -> Expr {
        Expr(Node::Value(Source::gathered(selector, How::Count)))
    }

    /// One number for each value of these labels, rather than one for all. Of a sum, avg, min, max or count of series.
    pub fn by<I>(self, labels: I) -> Expr
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        match self.0 {
            Node::Value(Source {
                selector,
                gather: Some(gather),
            }) => Expr(Node::Value(Source {
                selector,
                gather: Some(Gather {
                    by: labels.into_iter().map(Into::into).collect(),
                    ..gather
                }),
            })),
            other => Expr(Node::Wrong(format!(
                "by({}) groups a sum, avg, min, max or count of series, and not {other}; of a window it comes before the \
                 statistic: Expr::over(selector, width).by([…]).rate()",
                labels
                    .into_iter()
                    .map(Into::into)
                    .collect::<Vec<String>>()
                    .join(", ")
            ))),
        }
    }

    /// A window of this width over each selected series; say next which statistic of it is meant.
    pub fn over(selector: impl IntoSelector, width: Duration) -> Over {
        Over {
            source: Source::each(selector),
            width,
        }
    }

    /// The change per second over a window of this width: `over(selector, width).rate()`.
    pub fn rate(selector: impl IntoSelector, width: Duration) -> Expr {
        Expr::over(selector, width).rate()
    }

    /// The increase over a window of this width: `over(selector, width).increase()`.
    pub fn increase(selector: impl IntoSelector, width: Duration) -> Expr {
        Expr::over(selector, width).increase()
    }

    /// A trigger between 0 and 1: 0 at `from` and before it, 1 at `to` and beyond, linear in between. `from` may be the
    /// greater of the two. Both must be finite and differ.
    ///
    /// | value | 0 | 50 | 75 | 100 | 500 | NaN |
    /// |---|---|---|---|---|---|---|
    /// | `scaled(50.0, 100.0)` | 0 | 0 | 0.5 | 1 | 1 | NaN |
    pub fn scaled(self, from: f64, to: f64) -> Expr {
        Expr::nested(Node::Scaled {
            of: Box::new(self.0),
            from,
            to,
        })
    }

    /// The exponentially weighted moving average with time constant `tau`, weighted by time: a value that is held for
    /// `tau` takes 63 % of the way, for 3 `tau` 95 %. It begins at the first value. NaN is passed over. `tau` must be
    /// at least 10 ms.
    ///
    /// | time | value set | `ewma(1 s)` |
    /// |---|---|---|
    /// | 0 s | 0 | 0 |
    /// | 60 s | 10 | 0 |
    /// | 61 s | | 6.32 |
    /// | 63 s | | 9.50 |
    pub fn ewma(self, tau: Duration) -> Expr {
        Expr::nested(Node::Ewma {
            of: Box::new(self.0),
            tau,
        })
    }
}

/// A window in an [`Expr`], of which a statistic is to be chosen. Made by [`Expr::over`].
///
/// What the statistics mean for a counter, a gauge and a histogram: [`WindowStats`](crate::WindowStats).
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub struct Over {
    source: Source,
    width: Duration,
}

impl Over {
    /// One window over all selected series together, rather than one each.
    pub fn merged(self) -> Over {
        self.by([] as [&str; 0])
    }

    /// One window over all series that have the same values of these labels.
    pub fn by<I>(mut self, labels: I) -> Over
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        self.source.gather = Some(Gather {
            how: How::Merge,
            by: labels.into_iter().map(Into::into).collect(),
        });
        self
    }

    fn stat(self, stat: Stat) -> Expr {
        Expr(Node::Window {
            source: self.source,
            width: self.width,
            stat,
        })
    }

    /// Mutations of a gauge, observations of a histogram.
    pub fn count(self) -> Expr {
        self.stat(Stat::Count)
    }

    /// The sum.
    pub fn sum(self) -> Expr {
        self.stat(Stat::Sum)
    }

    /// The average: of a gauge over time, of a histogram over observations.
    pub fn avg(self) -> Expr {
        self.stat(Stat::Avg)
    }

    /// The least value.
    pub fn min(self) -> Expr {
        self.stat(Stat::Min)
    }

    /// The greatest value.
    pub fn max(self) -> Expr {
        self.stat(Stat::Max)
    }

    /// The last value.
    pub fn last(self) -> Expr {
        self.stat(Stat::Last)
    }

    /// The change per second; of a histogram, observations per second.
    pub fn rate(self) -> Expr {
        self.stat(Stat::Rate)
    }

    /// The increase of a counter, the change of a gauge.
    pub fn increase(self) -> Expr {
        self.stat(Stat::Increase)
    }

    /// The standard deviation.
    pub fn stddev(self) -> Expr {
        self.stat(Stat::Stddev)
    }

    /// The share of the width that was observed, 0 to 1: a rule about a long window may want most of it, or all.
    pub fn coverage(self) -> Expr {
        self.stat(Stat::Coverage)
    }

    /// Seconds since the newest mutation in the window; no data where there was none.
    pub fn age(self) -> Expr {
        self.stat(Stat::Age)
    }

    /// How many series took part.
    pub fn sources(self) -> Expr {
        self.stat(Stat::Sources)
    }

    /// The `q`-quantile, 0 to 1, with a relative error of at most 1.1 %.
    pub fn quantile(self, q: f64) -> Expr {
        self.stat(Stat::Quantile(q))
    }
}

impl<S: IntoSelector> From<S> for Expr {
    /// The value of the selected series.
    fn from(selector: S) -> Expr {
        Expr::value(selector)
    }
}

macro_rules! arithmetic {
    ($($trait:ident :: $method:ident => $op:ident),*) => {$(
        impl $trait for Expr {
            type Output = Expr;

            fn $method(self, other: Expr) -> Expr {
                Expr::nested(Node::Binary(Op::$op, Box::new(self.0), Box::new(other.0)))
            }
        }

        impl $trait<f64> for Expr {
            type Output = Expr;

            fn $method(self, other: f64) -> Expr {
                $trait::$method(self, Expr::constant(other))
            }
        }

        impl $trait<Expr> for f64 {
            type Output = Expr;

            fn $method(self, other: Expr) -> Expr {
                $trait::$method(Expr::constant(self), other)
            }
        }
    )*};
}

arithmetic!(Add::add => Add, Sub::sub => Sub, Mul::mul => Mul, Div::div => Div);

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Node::Constant(value) => value.fmt(f),
            Node::Value(source) => match &source.gather {
                None => source.fmt(f),
                Some(gather) => write!(f, "{gather}({source})"),
            },
            Node::Window {
                source,
                width,
                stat,
            } => {
                match stat {
                    Stat::Quantile(q) => write!(f, "quantile {q}")?,
                    other => f.write_str(&format!("{other:?}").to_lowercase())?,
                }
                match &source.gather {
                    None => {}
                    Some(gather) if gather.by.is_empty() => f.write_str(" of all ")?,
                    Some(gather) => write!(f, " by ({}) ", gather.by.join(", "))?,
                }
                write!(f, "({source}[{width:?}])")
            }
            Node::Binary(op, a, b) => {
                let op = match op {
                    Op::Add => '+',
                    Op::Sub => '-',
                    Op::Mul => '*',
                    Op::Div => '/',
                };
                write!(f, "({a} {op} {b})")
            }
            Node::Scaled { of, from, to } => write!(f, "scaled({of}, {from}, {to})"),
            Node::Ewma { of, tau } => write!(f, "ewma({of}, {tau:?})"),
            Node::Wrong(why) => f.write_str(why),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.selector {
            Ok(selector) => selector.fmt(f),
            Err(error) => error.fmt(f),
        }
    }
}

impl fmt::Display for Gather {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format!("{:?}", self.how).to_lowercase())?;
        if !self.by.is_empty() {
            write!(f, " by ({}) ", self.by.join(", "))?;
        }
        Ok(())
    }
}
