//! Families: a metric with labels, and its children.

use std::{cell::RefCell, marker::PhantomData, sync::Arc};

use super::{FamilyCore, Made, Metric};
use crate::{
    error::LabelError,
    labels::{Labels, push_label, push_label_display, value_of},
    series::{Series, SeriesCore},
};

/// A metric with labels: a child for each set of values.
///
/// `Family<M>` takes values as text; `Family<M, L>` takes a [`Labels`] type and can't be given too few. A child is found
/// by its values each time; hold on to it where it is used often. Clones are the same family.
///
/// ```
/// use metricbus::{Counter, Desc, MetricBus};
///
/// let bus = MetricBus::new();
/// let requests = bus.family::<Counter>(
///     Desc::new("requests_total", "Requests served.").labels(["method", "code"]),
/// )?;
/// requests.with_label_values(&["GET", "200"])?.inc();
/// assert_eq!(requests.len(), 1);
///
/// let error = requests.with_label_values(&["GET"]).unwrap_err();
/// assert!(error.to_string().contains("takes 2 label values"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Limits
///
/// A family has a [cardinality limit](crate::Desc::series_max). Values beyond it get the overflow series,
/// `name{otel_metric_overflow="true"}`, so that counts are kept whole and memory stays bounded.
pub struct Family<M, L = ()> {
    core: Arc<FamilyCore>,
    plan: Arc<Plan>,
    types: PhantomData<fn(L) -> M>,
}

/// Where the values of a declaration's labels come from, in the order in which the family exposes them.
pub(crate) struct Plan {
    pub(crate) slots: Vec<(Arc<str>, Slot)>,
    pub(crate) variable: Vec<String>,
    /// What a child begins at.
    pub(crate) initial: Option<f64>,
}

pub(crate) enum Slot {
    Constant(String),
    Variable(usize),
}

thread_local! {
    static TEXT: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Lends a buffer that keeps its memory; a nested use (a label's `Display` that looks up a child) gets one of its own.
fn with_text<T>(f: impl FnOnce(&mut String) -> T) -> T {
    let mut f = Some(f);
    let lent = TEXT.try_with(|text| {
        let mut text = text.try_borrow_mut().ok()?;
        text.clear();
        Some(f.take()?(&mut text))
    });
    match (lent, f) {
        (Ok(Some(done)), _) => done,
        // In use already, or the thread is being torn down.
        (_, Some(f)) => f(&mut String::new()),
        (_, None) => unreachable!("`f` is taken only to be called"),
    }
}

impl Plan {
    /// A series of this declaration, at its initial value if it has none yet.
    pub(crate) fn metric<M: Metric>(&self, core: Arc<SeriesCore>) -> M {
        let metric = M::from_spec(Made(core));
        if let Some(initial) = self.initial {
            metric.begin_at(initial);
        }
        metric
    }

    /// The labels of a declaration that has no variable ones.
    pub(crate) fn constant_text(&self) -> String {
        let mut text = String::new();
        self.render_values::<&str>(&mut text, &[]);
        text
    }

    fn render_values<S: AsRef<str>>(&self, out: &mut String, values: &[S]) {
        for (name, slot) in &self.slots {
            match slot {
                Slot::Constant(value) => push_label(out, name, value),
                Slot::Variable(i) => push_label(out, name, values[*i].as_ref()),
            }
        }
    }

    fn render_typed<L: Labels>(&self, out: &mut String, labels: &L) {
        for (name, slot) in &self.slots {
            match slot {
                Slot::Constant(value) => push_label(out, name, value),
                Slot::Variable(wanted) => {
                    let mut given = false;
                    labels.visit(&mut |i, value| {
                        if i == *wanted && !given {
                            given = true;
                            push_label_display(out, name, value);
                        }
                    });
                    if !given {
                        push_label(out, name, "");
                    }
                }
            }
        }
    }

    /// Whether a child was made by this declaration: its constant labels are the ones here.
    fn owns(&self, series: &SeriesCore) -> bool {
        self.slots.iter().all(|(name, slot)| match slot {
            Slot::Variable(_) => true,
            Slot::Constant(value) => {
                value_of(&series.text, name).is_some_and(|present| present == *value)
            }
        })
    }
}

impl<M: Metric, L> Family<M, L> {
    pub(crate) fn new(core: Arc<FamilyCore>, plan: Plan) -> Self {
        Family {
            core,
            plan: Arc::new(plan),
            types: PhantomData,
        }
    }

    /// The child with these values, in the order in which the labels were declared; made where there is none.
    ///
    /// # Errors
    ///
    /// When there are too few or too many values. Any text can be a value.
    pub fn with_label_values<S: AsRef<str>>(&self, values: &[S]) -> Result<M, LabelError> {
        self.check(values)?;
        let core = with_text(|text| {
            self.plan.render_values(text, values);
            self.core.child(text)
        });
        Ok(self.plan.metric(core))
    }

    /// Removes the child with these values: it is exposed no more, its subscribers hear that it is gone, and late
    /// writes by a handle still held do not bring it back. `false` when there is no such child.
    ///
    /// # Errors
    ///
    /// When there are too few or too many values.
    pub fn remove<S: AsRef<str>>(&self, values: &[S]) -> Result<bool, LabelError> {
        self.check(values)?;
        Ok(with_text(|text| {
            self.plan.render_values(text, values);
            self.core.remove(text)
        }))
    }

    fn check<S>(&self, values: &[S]) -> Result<(), LabelError> {
        if values.len() == self.plan.variable.len() {
            return Ok(());
        }
        Err(LabelError::Count {
            metric: self.core.meta.name.to_string(),
            wanted: self.plan.variable.len(),
            got: values.len(),
            names: self.plan.variable.clone(),
        })
    }

    /// Removes all children that have this declaration's constant labels.
    pub fn clear(&self) {
        self.core.remove_where(|series| self.plan.owns(series));
    }

    /// How many children have this declaration's constant labels.
    pub fn len(&self) -> usize {
        self.series().len()
    }

    /// Whether there is no child yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All children that have this declaration's constant labels.
    pub fn series(&self) -> Vec<Series> {
        let mut all = self.core.children();
        all.retain(|series| self.plan.owns(series));
        all.into_iter().map(Series::of).collect()
    }

    /// The metric's full name.
    pub fn name(&self) -> &str {
        &self.core.meta.name
    }
}

impl<M: Metric, L: Labels> Family<M, L> {
    /// The child with these labels; made where there is none.
    pub fn with(&self, labels: &L) -> M {
        let core = with_text(|text| {
            self.plan.render_typed(text, labels);
            self.core.child(text)
        });
        self.plan.metric(core)
    }

    /// As [`remove`](Family::remove), by typed labels.
    pub fn remove_labels(&self, labels: &L) -> bool {
        with_text(|text| {
            self.plan.render_typed(text, labels);
            self.core.remove(text)
        })
    }
}

impl<M, L> Clone for Family<M, L> {
    fn clone(&self) -> Self {
        Family {
            core: self.core.clone(),
            plan: self.plan.clone(),
            types: PhantomData,
        }
    }
}

impl<M, L> std::fmt::Debug for Family<M, L> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Family")
            .field("name", &self.core.meta.name)
            .field("series", &self.core.len())
            .finish()
    }
}
