//! Series made from what is known at run time only, such as a line of a file, and rules in words: what replay and test
//! kit share.

use crate::{
    bus::MetricBus,
    desc::{Buckets, Desc, MetricKind, Numbers},
    error::{BucketError, DeclareError},
    labels::push_label,
    metric::{Counter, Family, FamilyCore, Gauge, Histogram, Made, Metric},
    rule::{Group, Rule},
    series::SeriesCore,
};
use std::sync::Arc;

/// A metric as it is declared.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Shape {
    pub(crate) name: String,
    pub(crate) help: String,
    pub(crate) unit: Option<String>,
    pub(crate) kind: MetricKind,
    pub(crate) numbers: Numbers,
    pub(crate) label_names: Vec<String>,
    /// Of a histogram, without +Inf.
    pub(crate) bounds: Vec<f64>,
}

/// A handle whose type is known at run time only.
#[derive(Clone)]
pub(crate) enum Handle {
    Whole(Counter),
    Amount(Counter<f64>),
    Gauge(Gauge),
    Histogram(Histogram),
}

/// How many series a family made here may have: what a file or a test says is all there.
const SERIES_MAX: usize = usize::MAX;

impl Shape {
    /// Declares the metric, its children to be asked for by label text.
    pub(crate) fn declare(&self, bus: &MetricBus) -> Result<Arc<FamilyCore>, DeclareError> {
        match (self.kind, self.numbers) {
            (MetricKind::Counter, Numbers::Amount) => self.enter::<Counter<f64>>(bus)?,
            (MetricKind::Counter, _) => self.enter::<Counter>(bus)?,
            (MetricKind::Gauge, _) => self.enter::<Gauge>(bus)?,
            (MetricKind::Histogram, _) => self.enter::<Histogram>(bus)?,
        }
        find(bus, &self.name).ok_or_else(|| DeclareError::Labels {
            metric: self.name.clone(),
            why: "it was declared, and is not there".to_owned(),
        })
    }

    /// Declares a gauge whose series come with labels of their own, as a derived one.
    #[cfg(feature = "backtest")]
    pub(crate) fn declare_derived(&self, bus: &MetricBus) -> Result<Arc<FamilyCore>, DeclareError> {
        let mut desc = Desc::new(&self.name, &self.help).series_max(SERIES_MAX);
        desc.unit.clone_from(&self.unit);
        bus.inner().derived_family(&desc)
    }

    fn enter<M: Metric>(&self, bus: &MetricBus) -> Result<(), DeclareError> {
        let mut desc = Desc::new(&self.name, &self.help).series_max(SERIES_MAX);
        desc.unit.clone_from(&self.unit);
        if self.kind == MetricKind::Histogram {
            let buckets = self.buckets().map_err(|source| DeclareError::Buckets {
                metric: self.name.clone(),
                source,
            })?;
            desc = desc.buckets(buckets);
        }
        let family: Result<Family<M>, _> = match self.label_names.is_empty() {
            true => return bus.declare::<M>(desc).map(drop),
            false => bus.family(desc.labels(&self.label_names)),
        };
        family.map(drop)
    }

    fn buckets(&self) -> Result<Buckets, BucketError> {
        Buckets::new(self.bounds.clone())
    }
}

/// How a rule judges, its condition apart: groups and times, as far as they are not what they are unless told.
pub(crate) fn manner(rule: &Rule) -> String {
    let mut manner = match rule.group {
        Group::Each => "each series".to_owned(),
        Group::Any => "any series".to_owned(),
        Group::All => "all series".to_owned(),
        Group::AtLeast(k) => format!("at least {k} series"),
    };
    if !rule.by.is_empty() {
        manner += &format!(" by {}", rule.by.join(", "));
    }
    if let Some(slots) = rule.slots {
        manner += &format!(
            "; m_of_n: {} of {} slots of {:?}",
            slots.m, slots.n, slots.width
        );
    }
    if !rule.hold.is_zero() {
        manner += &format!("; hold_for {:?}", rule.hold);
    }
    if !rule.keep.is_zero() {
        manner += &format!("; keep_firing_for {:?}", rule.keep);
    }
    if let Some(every) = rule.every {
        manner += &format!("; every {every:?}");
    }
    if !rule.initial {
        manner += "; initial(false)";
    }
    manner
}

/// The family of this name.
pub(crate) fn find(bus: &MetricBus, name: &str) -> Option<Arc<FamilyCore>> {
    let families = bus.inner().families();
    families.into_iter().find(|f| &*f.meta.name == name)
}

/// Labels as a family writes them: in its order. `None` where they are not the family's labels.
pub(crate) fn label_text(family: &FamilyCore, labels: &[(String, String)]) -> Option<String> {
    let names = &family.meta.label_names;
    if names.len() != labels.len() {
        return None;
    }
    let mut text = String::new();
    for name in names {
        let (_, value) = labels.iter().find(|(n, _)| **n == **name)?;
        push_label(&mut text, name, value);
    }
    Some(text)
}

impl Handle {
    pub(crate) fn of(core: Arc<SeriesCore>) -> Handle {
        let (kind, numbers) = (core.meta.kind, core.meta.numbers);
        match (kind, numbers) {
            (MetricKind::Counter, Numbers::Amount) => Handle::Amount(Metric::from_spec(Made(core))),
            (MetricKind::Counter, _) => Handle::Whole(Metric::from_spec(Made(core))),
            (MetricKind::Gauge, _) => Handle::Gauge(Metric::from_spec(Made(core))),
            (MetricKind::Histogram, _) => Handle::Histogram(Metric::from_spec(Made(core))),
        }
    }
}

/// What makes `after` of `before`, to the last bit: the difference is rounded, and its sum with `before` can be, too.
#[cfg(any(feature = "backtest", feature = "nats"))]
pub(crate) fn amount(before: f64, after: f64) -> f64 {
    let amount = after - before;
    [amount, amount.next_down(), amount.next_up()]
        .into_iter()
        .find(|&a| before + a == after)
        .unwrap_or(amount)
}

#[cfg(all(test, any(feature = "backtest", feature = "nats")))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_amount_makes_of_one_value_the_other(before in 0.0..1e300_f64, grown in 0.0..1e300_f64, scale in -600..1_i32) {
            let after = before + grown * 2.0_f64.powi(scale);
            prop_assert_eq!(before + amount(before, after), after);
        }
    }
}
