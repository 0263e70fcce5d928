//! A recording played onto a bus: declares, mutates and removes as was recorded, on a clock that it moves.

use std::{sync::Arc, time::Duration};

use super::{
    error::ReplayError,
    format::{Base, Decoder, RecordedSeries, Step},
    recording::Input,
};
use crate::{
    bus::MetricBus,
    clock::Clock,
    desc::MetricKind,
    labels::OVERFLOW_LABEL,
    metric::FamilyCore,
    raw::{Handle, amount, label_text},
    series::is_unmeasured,
    time::Time,
};

pub(crate) struct Player {
    pub(crate) bus: MetricBus,
    pub(crate) clock: Clock,
    now: u64,
    /// By the number of the metric in the recording.
    families: Vec<Option<Arc<FamilyCore>>>,
    /// By the number of the series.
    handles: Vec<Handle>,
}

impl Player {
    /// A bus whose clock says `start`.
    pub(crate) fn new(start: Time) -> Player {
        let clock = Clock::manual();
        clock.advance(start.since(Time::ZERO));
        Player {
            bus: MetricBus::builder().clock(clock.clone()).build(),
            clock,
            now: start.as_nanos(),
            families: Vec::new(),
            handles: Vec::new(),
        }
    }

    /// What the clock says.
    pub(crate) fn now(&self) -> u64 {
        self.now
    }

    /// Lets time pass until `at`; what is due on the way happens at its own time. A time that is past changes nothing.
    #[inline]
    pub(crate) fn advance_to(&mut self, at: u64) {
        if at > self.now {
            self.clock.advance(Duration::from_nanos(at - self.now));
            self.now = at;
        }
    }

    #[inline]
    pub(crate) fn mutate(&self, series: usize, before: u64, after: u64) {
        match &self.handles[series] {
            Handle::Whole(counter) => counter.inc_by(after.wrapping_sub(before)),
            Handle::Amount(counter) => {
                counter.inc_by(amount(f64::from_bits(before), f64::from_bits(after)));
            }
            Handle::Gauge(gauge) => gauge.set(f64::from_bits(after)),
            Handle::Histogram(histogram) => histogram.observe(f64::from_bits(after)),
        }
    }

    /// Does what a record says, mutations apart, at the time at which the clock is.
    pub(crate) fn apply(
        &mut self,
        decoder: &Decoder<Input>,
        step: Step,
    ) -> Result<(), ReplayError> {
        match step {
            Step::Series { series, .. } => self.declare(decoder.series(series)),
            Step::Removed { series, .. } => {
                let series = decoder.series(series);
                if let Some(Some(family)) = self.families.get(series.metric) {
                    family.remove(&text(family, series).unwrap_or_default());
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn declare(&mut self, series: &RecordedSeries) -> Result<(), ReplayError> {
        if self.families.len() <= series.metric {
            self.families.resize(series.metric + 1, None);
        }
        let family = match &self.families[series.metric] {
            Some(family) => family.clone(),
            None => {
                let family = match has_own_labels(series) {
                    true => series.shape.declare_derived(&self.bus)?,
                    false => series.shape.declare(&self.bus)?,
                };
                self.families[series.metric] = Some(family.clone());
                family
            }
        };
        let text = text(&family, series).ok_or_else(|| ReplayError::Labels {
            series: series.to_string(),
            names: series.shape.label_names.clone(),
        })?;
        let core = family.child(&text);
        match (&series.base, &core.buckets) {
            (Base::Histogram { sum, counts }, Some(buckets)) if counts.iter().any(|n| *n > 0) => {
                core.cell.absorb(*sum, &[], &*core, || buckets.add(counts));
            }
            (Base::Value(bits), _) => match Handle::of(core.clone()) {
                Handle::Whole(counter) if *bits > 0 => counter.inc_by(*bits),
                Handle::Amount(counter) if f64::from_bits(*bits) > 0.0 => {
                    counter.inc_by(f64::from_bits(*bits));
                }
                Handle::Gauge(gauge) if !is_unmeasured(f64::from_bits(*bits)) => {
                    gauge.set(f64::from_bits(*bits));
                }
                _ => {}
            },
            _ => {}
        }
        self.handles.push(Handle::of(core));
        Ok(())
    }
}

/// The labels as the family writes them.
fn text(family: &FamilyCore, series: &RecordedSeries) -> Option<String> {
    if is_overflow(series) || has_own_labels(series) {
        return Some(series.label_text());
    }
    label_text(family, &series.labels)
}

/// Beyond the cardinality limit there was one series, with a label of its own.
fn is_overflow(series: &RecordedSeries) -> bool {
    matches!(&series.labels[..], [(name, _)] if name == OVERFLOW_LABEL)
}

/// A derived gauge says no names of labels: its series have those of what they were derived from.
fn has_own_labels(series: &RecordedSeries) -> bool {
    let shape = &series.shape;
    shape.kind == MetricKind::Gauge && shape.label_names.is_empty() && !series.labels.is_empty()
}
