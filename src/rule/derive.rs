//! Derived gauges: an expression as a metric like any other, so that rules, taps, windows and `/metrics` apply to it.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Wake, Waker},
    time::Duration,
};

use super::{
    AlertCause, Condition, Expr, Rule,
    compute::Reading,
    engine::{Engine, Sink},
    log::Log,
    plan::Plan,
};
use crate::{
    bus::{Inner, MetricBus},
    cell::{Wakes, wake_all},
    desc::Desc,
    error::{RuleError, SelectorError},
    handoff::{Handoff, Turn, this_thread},
    labels::push_label,
    metric::FamilyCore,
    selector::{IntoSelector, Selector},
    series::{Series, SeriesCore},
    stats::{Stats, bump},
    steps::{at_step, steps},
    sync::lock,
    threshold::Threshold,
    window::Windows,
};

impl MetricBus {
    /// Declares a gauge that shows an expression: one series for each set of labels that the expression has, for as long
    /// as the [`Derived`] is held.
    ///
    /// It is set when the expression is evaluated, by the thread that mutates an operand, after its mutation, or by a
    /// timer. Each value is set, in order, so that a rule on it sees every excursion. A series comes with the first
    /// value; while there is no data it is NaN.
    ///
    /// An expression without a metric's name never looks at derived gauges. Where callbacks that run inline close a circle, by
    /// setting what the gauge comes from, it is cut off after 128 steps: what would be set then is not, which
    /// `metricbus_derived_cut_off_total` counts, and the first time is logged.
    ///
    /// ```
    /// use metricbus::{Desc, Expr, Gauge, MetricBus};
    ///
    /// let bus = MetricBus::new();
    /// let used = bus.family::<Gauge>(Desc::new("kv_blocks_used", "Blocks in use.").labels(["worker"]))?;
    /// let total = bus.gauge("kv_blocks", "Blocks there are.")?;
    /// let _share = bus.derive(
    ///     Desc::new("kv_usage_ratio", "Share of KV blocks in use."),
    ///     Expr::value("kv_blocks_used") / Expr::value("kv_blocks"),
    /// )?;
    ///
    /// total.set(200.0);
    /// used.with_label_values(&["a"])?.set(150.0);
    /// let share = &bus.series(r#"kv_usage_ratio{worker="a"}"#)?[0];
    /// assert_eq!(share.value(), Some(metricbus::Value::F64(0.75)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When the expression is wrong, or the gauge can't be declared, or is declared already; when it would be derived from
    /// itself, also by way of others, or in a row of more than 64 derived gauges.
    pub fn derive(&self, desc: Desc, expr: impl Into<Expr>) -> Result<Derived, RuleError> {
        let expr = expr.into();
        let plan = Plan::of_expression(&expr.0)?;
        let inner = self.inner();
        plan.check_for(inner)?;
        if inner.has_family(&desc.name) {
            return Err(RuleError::Rule {
                rule: desc.name.clone(),
                why: "a metric of that name is declared already; a derived gauge needs a name of its own".to_owned(),
            });
        }
        let added = lock(&inner.rules.derivations).add(&desc, &plan);
        added.map_err(|why| RuleError::Rule {
            rule: desc.name.clone(),
            why,
        })?;
        let forget = |_: &_| lock(&inner.rules.derivations).remove(&desc.name);
        let family = inner.derived_family(&desc).inspect_err(forget)?;
        let sink = Arc::new_cyclic(|me| Gauges {
            family,
            bus: Arc::downgrade(inner),
            stats: inner.stats.clone(),
            constant: desc.constant.clone(),
            series: Mutex::default(),
            closed: AtomicBool::new(false),
            cut_off: AtomicBool::new(false),
            me: me.clone(),
        });
        let log = Log::new(&desc.name, Vec::new(), Arc::new(|| {}));
        // What it shows is the expression; the condition is never asked.
        let rule = Rule::new(
            &desc.name,
            Condition::when(expr.clone(), Threshold::above(0.0)),
        );
        let engine = Engine::new(inner, rule, plan, log, Some(sink.clone()));
        let mut wakes = Wakes::new();
        engine.start(inner, &mut wakes);
        engine.settle(HashMap::new(), AlertCause::Initial, None, &mut wakes);
        wake_all(&mut wakes);
        Ok(Derived {
            bus: Arc::downgrade(inner),
            engine,
            sink,
            expr,
        })
    }
}

/// A gauge that shows an expression. Dropping it removes its series; [`forget`](Derived::forget) keeps them for the life of
/// the bus.
#[must_use = "dropping it removes the gauge at once: name it, or call `forget()`"]
pub struct Derived {
    bus: Weak<Inner>,
    engine: Arc<Engine>,
    sink: Arc<Gauges>,
    expr: Expr,
}

impl Derived {
    /// The gauge's name.
    pub fn name(&self) -> &str {
        &self.sink.family.meta.name
    }

    /// What it shows.
    pub fn expr(&self) -> &Expr {
        &self.expr
    }

    /// Its present value, where it is one series; `None` where there is no data, no series, or more than one.
    ///
    /// ```
    /// use metricbus::{Desc, Expr, MetricBus};
    ///
    /// let bus = MetricBus::new();
    /// let (used, total) = (bus.gauge("used", "Used.")?, bus.gauge("total", "There are.")?);
    /// let share = bus.derive(Desc::new("share_ratio", "Share."), Expr::value(&used) / Expr::value(&total))?;
    /// assert_eq!(share.get(), None);
    /// (total.set(8.0), used.set(2.0));
    /// assert_eq!(share.get(), Some(0.25));
    /// assert_eq!(share.series()[0].name(), "share_ratio");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn get(&self) -> Option<f64> {
        match &self.series()[..] {
            [one] => Some(one.value()?.as_f64()).filter(|value| !value.is_nan()),
            _ => None,
        }
    }

    /// Its series: one for each set of labels that the expression has a value for.
    pub fn series(&self) -> Vec<Series> {
        let children = self.sink.family.children();
        children.into_iter().map(Series::of).collect()
    }

    /// A sliding window over its series, those to come too, from now on. See [`Windows`].
    ///
    /// # Errors
    ///
    /// When the bus has ended.
    pub fn window(&self, width: Duration) -> Result<Windows, SelectorError> {
        let selector = self.into_selector()?;
        match self.sink.bus.upgrade() {
            Some(inner) => Ok(Windows::over(&inner, selector, width)),
            None => Err(SelectorError::Elsewhere {
                series: self.name().to_owned(),
            }),
        }
    }

    /// Keeps it for as long as the bus lives.
    pub fn forget(mut self) {
        self.bus = Weak::new();
    }
}

/// All its series, those to come too.
impl IntoSelector for &Derived {
    fn into_selector(self) -> Result<Selector, SelectorError> {
        self.name().into_selector()
    }
}

impl Drop for Derived {
    fn drop(&mut self) {
        let Some(inner) = self.bus.upgrade() else {
            return;
        };
        let mut wakes = Wakes::new();
        self.engine.close(None, &mut wakes);
        drop(self.engine.stop(&inner, &mut wakes));
        wake_all(&mut wakes);
        // Whoever sets one meanwhile looks at the sign after that, and removes it.
        self.sink.closed.store(true, Ordering::SeqCst);
        self.sink.family.remove_where(|_| true);
        inner.withdraw(self.name());
        lock(&inner.rules.derivations).remove(self.name());
    }
}

impl fmt::Debug for Derived {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Derived({} = {})", self.name(), self.expr)
    }
}

/// The series of a derived gauge.
struct Gauges {
    family: Arc<FamilyCore>,
    bus: Weak<Inner>,
    /// Of the bus, which must not be held, and so perhaps end, under the locks of an evaluation.
    stats: Arc<Stats>,
    constant: Vec<(String, String)>,
    series: Mutex<HashMap<Box<str>, Arc<Setter>>>,
    /// It was dropped.
    closed: AtomicBool,
    /// It was cut off, and that was logged.
    cut_off: AtomicBool,
    me: Weak<Gauges>,
}

impl Sink for Gauges {
    fn put(&self, key: &str, labels: &[(String, String)], value: Reading, wakes: &mut Wakes) {
        let mut series = lock(&self.series);
        let setter = match series.get(key) {
            Some(setter) => setter.clone(),
            // Nobody has measured anything yet.
            None if value.is_none() => return,
            None => {
                let setter = Arc::new(self.setter(key, labels));
                series.insert(key.into(), setter.clone());
                setter
            }
        };
        let steps = steps() + 1;
        let step = if steps > STEPS_MAX {
            Step::CutOff
        } else {
            Step::Value(value.unwrap_or(f64::NAN), steps)
        };
        let dropped = setter.values.push(step, VALUES_MAX);
        drop(series);
        if dropped.is_some() {
            self.stats.dropped(1);
        }
        wakes.push(Waker::from(setter));
    }

    fn end(&self, key: &str, wakes: &mut Wakes) {
        let series = lock(&self.series);
        if let Some(setter) = series.get(key) {
            // It goes when it gets there, unless its labels are back by then.
            setter.values.push(Step::End, usize::MAX);
            wakes.push(Waker::from(setter.clone()));
        }
    }

    fn is_own(&self, series: &SeriesCore, named: bool) -> bool {
        Arc::ptr_eq(&series.meta, &self.family.meta) || (series.meta.derived && !named)
    }
}

/// Sets one series of a derived gauge, once whoever evaluated holds no lock any more.
struct Setter {
    family: Arc<FamilyCore>,
    bus: Weak<Inner>,
    gauges: Weak<Gauges>,
    key: Box<str>,
    text: String,
    /// To be done, in order.
    values: Handoff<Step>,
    /// What it set last.
    series: Mutex<Option<Arc<SeriesCore>>>,
}

enum Step {
    /// To be set; and how many gauges were set one because of the other, this one included.
    Value(f64, usize),
    /// There were too many of them.
    CutOff,
    /// The series ends.
    End,
}

/// Steps that one mutation may lead to. More than the longest chain that can be declared: only callbacks that set what a gauge
/// is derived from get there. Fewer than the runs after which an inline callback is left to the dispatcher, where nobody knows
/// what came of what.
const STEPS_MAX: usize = 128;

/// Values that may wait. They come as fast as one thread sets them; more wait only where several evaluate at once.
const VALUES_MAX: usize = 1_024;

/// Values that a thread sets in one go, its own and those of others; the rest is left to the dispatcher.
const TURN: usize = 64;

impl Gauges {
    fn setter(&self, key: &str, labels: &[(String, String)]) -> Setter {
        let mut text = String::new();
        let constant = &self.constant;
        let own = labels
            .iter()
            .filter(|(name, _)| !constant.iter().any(|(n, _)| n == name));
        for (name, value) in constant.iter().chain(own) {
            push_label(&mut text, name, value);
        }
        Setter {
            family: self.family.clone(),
            bus: self.bus.clone(),
            gauges: self.me.clone(),
            key: key.into(),
            text,
            values: Handoff::new(),
            series: Mutex::default(),
        }
    }
}

impl Setter {
    fn remove(&self, series: Option<Arc<SeriesCore>>) {
        if let Some(series) = series {
            self.family
                .remove_where(|found| Arc::ptr_eq(found, &series));
        }
    }

    fn set(&self, step: Step) {
        let Some(gauges) = self.gauges.upgrade() else {
            return;
        };
        let (value, steps) = match step {
            Step::Value(value, steps) => (value, steps),
            Step::CutOff => {
                bump(&gauges.stats.derived_cut_off);
                if !gauges.cut_off.swap(true, Ordering::Relaxed) {
                    tracing::error!(
                        gauge = %self.family.meta.name,
                        "metricbus: a callback sets what this derived gauge is derived from; it was cut off after {STEPS_MAX} steps"
                    );
                }
                return;
            }
            Step::End => {
                self.remove(lock(&self.series).take());
                let mut setters = lock(&gauges.series);
                // What is put is put under this lock.
                if self.values.is_empty() {
                    setters.remove(&self.key);
                }
                return;
            }
        };
        at_step(steps, || self.set_value(value, &gauges));
    }

    fn set_value(&self, value: f64, gauges: &Gauges) {
        let series = lock(&self.series).take();
        let mut series = series.unwrap_or_else(|| self.family.child(&self.text));
        series.cell.set_real(value + 0.0, &*series);
        if series.cell.is_retired() {
            // By the user.
            series = self.family.child(&self.text);
            series.cell.set_real(value + 0.0, &*series);
        }
        if gauges.closed.load(Ordering::SeqCst) {
            return self.remove(Some(series));
        }
        *lock(&self.series) = Some(series);
    }
}

impl Wake for Setter {
    fn wake(self: Arc<Self>) {
        let turn = self.values.run(this_thread(), TURN, |step| self.set(step));
        match turn {
            Turn::Done | Turn::Others(_) => {}
            Turn::More => {
                if let Some(bus) = self.bus.upgrade() {
                    bus.timers.start();
                    bus.timers.spawn(async move { self.wake() });
                }
            }
        }
    }
}
