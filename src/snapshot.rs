//! All metrics at one moment, as plain values.

use crate::{
    desc::MetricKind,
    labels,
    metric::{FamilyCore, HistogramSnapshot},
    series::{SeriesCore, Value},
};

/// What a bus holds at one moment. Made by [`MetricBus::snapshot`](crate::MetricBus::snapshot).
///
/// Each value is read atomically; the whole is not one instant: mutations go on while it is taken.
#[derive(Clone, Debug, PartialEq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Snapshot {
    /// Sorted by name.
    pub families: Vec<FamilySnapshot>,
}

impl Snapshot {
    /// The family of this name.
    pub fn family(&self, name: &str) -> Option<&FamilySnapshot> {
        self.families.iter().find(|family| family.name == name)
    }
}

/// A declared metric with its series.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct FamilySnapshot {
    /// The full name.
    pub name: String,
    /// What it means.
    pub help: String,
    /// The unit, where one was declared.
    pub unit: Option<String>,
    /// The type.
    pub kind: MetricKind,
    /// The series, in the order in which they were made, more or less.
    pub series: Vec<SeriesSnapshot>,
}

impl FamilySnapshot {
    pub(crate) fn of(family: &FamilyCore) -> Self {
        let meta = &family.meta;
        let mut series = Vec::new();
        family.for_each(|core| series.push(SeriesSnapshot::of(core)));
        FamilySnapshot {
            name: meta.name.to_string(),
            help: meta.help.clone(),
            unit: meta.unit.clone(),
            kind: meta.kind,
            series,
        }
    }
}

/// One series with its value.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SeriesSnapshot {
    /// Names and values of the labels, as they are exposed.
    pub labels: Vec<(String, String)>,
    /// The value.
    pub value: SampleValue,
}

impl SeriesSnapshot {
    fn of(core: &SeriesCore) -> Self {
        let value = match (&core.buckets, core.meta.kind, core.value()) {
            (Some(buckets), ..) => SampleValue::Histogram(HistogramSnapshot::of(core, buckets)),
            (None, MetricKind::Gauge, value) => SampleValue::Gauge(value.as_f64()),
            (None, _, value) => SampleValue::Counter(value),
        };
        SeriesSnapshot {
            labels: labels::pairs(&core.text),
            value,
        }
    }
}

/// The value of a series, by its type.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum SampleValue {
    /// Of a counter.
    Counter(Value),
    /// Of a gauge.
    Gauge(f64),
    /// Of a histogram.
    Histogram(HistogramSnapshot),
}
