//! What parts of the crate count of themselves, shown beside what the bus does (`metricbus_*`).

use std::sync::{Mutex, Weak};

use crate::{
    series::Value,
    snapshot::{FamilySnapshot, SampleValue},
    sync::lock,
};

/// Whoever counts something of itself.
pub(crate) trait Counts: Send + Sync {
    /// The numbers as they are. Where several count the same they do it in families of the same name, told apart by
    /// their labels.
    fn families(&self) -> Vec<FamilySnapshot>;
}

/// All of them that a bus knows of.
#[derive(Default)]
pub(crate) struct Own(Mutex<Vec<Weak<dyn Counts>>>);

impl Own {
    pub(crate) fn show(&self, whose: Weak<dyn Counts>) {
        lock(&self.0).push(whose);
    }

    /// One family for each name, and one series for each set of labels: what several count alike is added up.
    pub(crate) fn families(&self) -> Vec<FamilySnapshot> {
        // Outside of the lock: it is foreign to who counts.
        let all: Vec<_> = {
            let mut own = lock(&self.0);
            own.retain(|whose| whose.strong_count() > 0);
            own.iter().filter_map(Weak::upgrade).collect()
        };
        let mut families: Vec<FamilySnapshot> = Vec::new();
        for family in all.iter().flat_map(|whose| whose.families()) {
            match families.iter_mut().find(|f| f.name == family.name) {
                Some(found) => family.series.into_iter().for_each(|series| {
                    match found.series.iter_mut().find(|s| s.labels == series.labels) {
                        Some(same) => same.value = sum(&same.value, &series.value),
                        None => found.series.push(series),
                    }
                }),
                None => families.push(family),
            }
        }
        families
    }
}

/// Of numbers; of anything else the latter.
fn sum(a: &SampleValue, b: &SampleValue) -> SampleValue {
    match (a, b) {
        (SampleValue::Counter(Value::U64(a)), SampleValue::Counter(Value::U64(b))) => {
            SampleValue::Counter(Value::U64(a.saturating_add(*b)))
        }
        (SampleValue::Counter(a), SampleValue::Counter(b)) => {
            SampleValue::Counter(Value::F64(a.as_f64() + b.as_f64()))
        }
        (SampleValue::Gauge(a), SampleValue::Gauge(b)) => SampleValue::Gauge(a + b),
        (_, other) => other.clone(),
    }
}
