//! Series whose values come from another process: made, moved and removed as their owner says.
//!
//! They are ordinary series to whoever listens, asks or scrapes. What differs: their values are absolute, so one writer
//! turns them into mutations; they can begin with what was counted long before; their labels are whatever the owner's
//! are; and they are never sent on.

use std::sync::Arc;

use crate::{
    bus::MetricBus,
    desc::{Desc, Meta, MetricKind, Numbers, validate},
    error::DeclareError,
    labels::push_label,
    metric::FamilyCore,
    raw::amount,
    series::{BucketCells, SeriesCore, is_unmeasured},
    sketch::{index, middle},
};

/// The value of a series, whole: with it somebody else can go on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum MirrorValue {
    /// Of a counter that counts in `u64`.
    Whole(u64),
    /// Of a counter that counts in `f64`.
    Amount(f64),
    /// Of a gauge.
    Real(f64),
    /// Of a histogram, since it was made.
    Histogram {
        /// By bucket, not cumulative, the last one for +Inf.
        counts: Vec<u64>,
        /// Of all observations.
        sum: f64,
        /// By index of the sketch, ascending; empty where no sketch is kept. May have begun later than the buckets.
        sketch: Vec<(i32, u64)>,
    },
}

/// The present value; `None` of a gauge that was never set.
pub(crate) fn read_value(core: &SeriesCore) -> Option<MirrorValue> {
    let bits = core.cell.load();
    Some(match (&core.buckets, core.meta.numbers) {
        (Some(buckets), _) => MirrorValue::Histogram {
            // The buckets before the sketch: what they hold it has, if not more.
            counts: buckets.counts().collect(),
            sum: f64::from_bits(bits),
            sketch: buckets
                .sketch()
                .map(|sketch| sketch.snapshot().iter().collect())
                .unwrap_or_default(),
        },
        (None, Numbers::Whole) => MirrorValue::Whole(bits),
        (None, Numbers::Amount) => MirrorValue::Amount(f64::from_bits(bits)),
        (None, Numbers::Real) if is_unmeasured(f64::from_bits(bits)) => return None,
        (None, Numbers::Real) => MirrorValue::Real(f64::from_bits(bits)),
    })
}

/// A metric as its owner declared it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct MirrorShape {
    pub(crate) name: String,
    pub(crate) help: String,
    pub(crate) unit: Option<String>,
    pub(crate) kind: MetricKind,
    pub(crate) numbers: Numbers,
    /// Of a histogram, without +Inf.
    pub(crate) bounds: Vec<f64>,
}

/// Makes mirrored metrics on a bus. Whoever holds it does not hold the bus.
#[derive(Clone)]
pub(crate) struct Mirror(std::sync::Weak<crate::bus::Inner>);

impl Mirror {
    pub(crate) fn new(bus: &MetricBus) -> Mirror {
        Mirror(Arc::downgrade(bus.inner()))
    }

    /// The metric, declared where it is not yet. Owners may word the help differently: the first one's stays.
    ///
    /// # Errors
    ///
    /// Where the name or the bounds can't be, or another owner has declared it otherwise.
    pub(crate) fn family(&self, shape: &MirrorShape) -> Result<MirrorFamily, DeclareError> {
        let Some(inner) = self.0.upgrade() else {
            return Err(DeclareError::Labels {
                metric: shape.name.clone(),
                why: "the bus it was to be on has ended".to_owned(),
            });
        };
        let mut desc = Desc::new(&shape.name, &shape.help);
        desc.unit.clone_from(&shape.unit);
        if shape.kind == MetricKind::Histogram {
            let buckets = crate::desc::Buckets::new(shape.bounds.clone());
            desc = desc.buckets(buckets.map_err(|source| DeclareError::Buckets {
                metric: shape.name.clone(),
                source,
            })?);
        }
        let bounds = validate(&desc, &shape.name, shape.kind, &[])?;
        let earlier = inner.families();
        let earlier = earlier.iter().find(|f| *f.meta.name == *shape.name);
        if earlier.is_some_and(|family| !family.meta.mirrored) {
            return Err(DeclareError::Labels {
                metric: shape.name.clone(),
                why: "a metric of that name was declared on this bus itself".to_owned(),
            });
        }
        let help = earlier.map_or_else(|| shape.help.clone(), |family| family.meta.help.clone());
        let family = inner.find_or_insert(Meta {
            name: shape.name.as_str().into(),
            help,
            unit: shape.unit.clone(),
            kind: shape.kind,
            numbers: shape.numbers,
            label_names: Box::default(),
            bounds,
            // Whoever mirrors has limits for each source.
            series_max: usize::MAX,
            expire_after: None,
            // The sketch would begin after the counts that it is to stand for.
            native: false,
            nan_observations: Default::default(),
            derived: false,
            mirrored: true,
            clock: inner.clock.clone(),
        })?;
        Ok(MirrorFamily(family))
    }

    /// Takes the declaration of a metric back that has no series any more, so that somebody else can declare it
    /// otherwise. Nobody must go on using `family`, or a clone of it.
    pub(crate) fn withdraw(&self, family: &MirrorFamily) {
        if let Some(inner) = self.0.upgrade()
            && family.0.len() == 0
        {
            inner.withdraw(&family.0.meta.name);
        }
    }
}

/// A mirrored metric.
#[derive(Clone)]
pub(crate) struct MirrorFamily(Arc<FamilyCore>);

impl MirrorFamily {
    /// The series with these labels, whose names must be valid and differ; made where there is none.
    ///
    /// `newborn`: it began at 0 while we were there to see, and what it has counted is news. Otherwise it has been there,
    /// and its value is where we come in.
    pub(crate) fn series(
        &self,
        labels: &[(String, String)],
        initial: &MirrorValue,
        newborn: bool,
    ) -> MirrorSeries {
        let mut text = String::new();
        for (name, value) in labels {
            push_label(&mut text, name, value);
        }
        let mut series = MirrorSeries {
            core: if newborn {
                self.0.child(&text)
            } else {
                self.0.child_from(&text, &|core| begin(core, initial))
            },
            family: self.0.clone(),
            sketch: Vec::new(),
        };
        if newborn {
            // Whatever is there, it is not less than nothing.
            let _ = series.set(initial);
        } else if let MirrorValue::Histogram { sketch, .. } = initial {
            series.sketch.clone_from(sketch);
        }
        series
    }
}

/// Gives a series that nobody listens to yet its first value.
fn begin(core: &SeriesCore, initial: &MirrorValue) {
    match (initial, &core.buckets) {
        (MirrorValue::Whole(n), None) => core.cell.add_whole(*n, core),
        (MirrorValue::Amount(d), None) => core.cell.add_amount(*d, core),
        (MirrorValue::Real(v), None) => core.cell.set_real(*v + 0.0, core),
        (MirrorValue::Histogram { counts, sum, .. }, Some(buckets)) => {
            core.cell.absorb(*sum, &[], core, || buckets.add(counts));
        }
        // Of another type than its family: whoever decodes has seen to that.
        _ => {}
    }
}

/// What only grows has become less: it is not the series that it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fell;

/// A series whose one writer holds this.
pub(crate) struct MirrorSeries {
    core: Arc<SeriesCore>,
    family: Arc<FamilyCore>,
    /// As last taken over.
    sketch: Vec<(i32, u64)>,
}

impl MirrorSeries {
    /// The series.
    #[cfg(test)]
    pub(crate) fn series(&self) -> crate::Series {
        crate::Series::of(self.core.clone())
    }

    /// Takes the value over. A value that it has already is no mutation. In a histogram the least and the greatest of the
    /// new observations are shown to listeners, as its buckets tell them; a single one is shown as it was.
    ///
    /// # Errors
    ///
    /// When a counter, or a bucket, would have to become less. Nothing has changed then.
    pub(crate) fn set(&mut self, value: &MirrorValue) -> Result<(), Fell> {
        let core = self.core.clone();
        let core = &*core;
        match (value, &core.buckets) {
            (MirrorValue::Whole(n), None) => match n.checked_sub(core.cell.load()) {
                Some(0) => {}
                Some(more) => core.cell.add_whole(more, core),
                None => return Err(Fell),
            },
            (MirrorValue::Amount(d), None) => {
                let before = f64::from_bits(core.cell.load());
                if *d < before {
                    return Err(Fell);
                }
                if *d > before {
                    core.cell.add_amount(amount(before, *d), core);
                }
            }
            (MirrorValue::Real(v), None) => {
                let before = f64::from_bits(core.cell.load());
                // -0 would say that it was never set.
                let v = *v + 0.0;
                if v.to_bits() != before.to_bits() {
                    core.cell.set_real(v, core);
                }
            }
            (
                MirrorValue::Histogram {
                    counts,
                    sum,
                    sketch,
                },
                Some(buckets),
            ) => {
                let more = more_than(buckets, counts).ok_or(Fell)?;
                self.observe(buckets, &more, *sum, sketch);
            }
            _ => {}
        }
        Ok(())
    }

    fn observe(&mut self, buckets: &BucketCells, more: &[u64], sum: f64, sketch: &[(i32, u64)]) {
        let core = &*self.core;
        let n: u64 = more.iter().fold(0, |n, m| n.saturating_add(*m));
        if n == 0 {
            return;
        }
        let coarse = by_bounds(&core.meta.bounds, more, sum);
        // What is finer is better. It may be ahead of the buckets by observations that were being made.
        let fine = sketch_since(sketch, &self.sketch);
        let shown = fine.as_ref().filter(|f| !f.is_empty()).unwrap_or(&coarse);
        let alone = sum - f64::from_bits(core.cell.load());
        let seen: &[f64] = match (n, &shown[..]) {
            (1, [(only, _)]) if index(alone) == Some(*only) => &[alone],
            (_, [(only, _)]) => &[middle(*only)],
            (_, [(first, _), .., (last, _)]) => &[middle(*first), middle(*last)],
            (_, []) => &[f64::NAN],
        };
        let sketched = fine.as_ref().unwrap_or(&coarse);
        core.cell.absorb(sum, seen, core, || {
            for (index, n) in sketched {
                buckets.add_to_sketch(*index, *n);
            }
            buckets.add(more);
        });
        if !sketch.is_empty() {
            self.sketch = sketch.to_vec();
        }
    }

    /// Removes the series: its listeners hear that it is gone.
    pub(crate) fn remove(self) {
        self.family.remove(&self.core.text);
    }
}

/// By bucket, what `counts` has more than the series. `None` where it has less, or is of other buckets.
fn more_than(buckets: &BucketCells, counts: &[u64]) -> Option<Vec<u64>> {
    let have: Vec<u64> = buckets.counts().collect();
    if have.len() != counts.len() {
        return None;
    }
    counts
        .iter()
        .zip(have)
        .map(|(now, had)| now.checked_sub(had))
        .collect()
}

/// What has come to the buckets, as a sketch would have it that knew no more than their bounds.
fn by_bounds(bounds: &[f64], more: &[u64], sum: f64) -> Vec<(i32, u64)> {
    let beyond = bounds.last().map_or(sum, |last| last.next_up());
    let mut coarse = Vec::new();
    for (i, n) in more.iter().enumerate().filter(|(_, n)| **n > 0) {
        if let Some(index) = index(bounds.get(i).copied().unwrap_or(beyond)) {
            coarse.push((index, *n));
        }
    }
    coarse
}

/// What has come to a sketch. `None` where that can't be told: there is none, or it began anew.
fn sketch_since(now: &[(i32, u64)], before: &[(i32, u64)]) -> Option<Vec<(i32, u64)>> {
    if now.is_empty() {
        return None;
    }
    let mut since = Vec::new();
    let mut before = before.iter().peekable();
    for &(index, n) in now {
        let had = match before.peek() {
            Some((i, _)) if *i < index => return None,
            Some((i, had)) if *i == index => *had,
            _ => 0,
        };
        if had > 0 {
            before.next();
        }
        let more = n.checked_sub(had)?;
        if more > 0 {
            since.push((index, more));
        }
    }
    before.next().is_none().then_some(since)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Buckets, Clock, Condition, MetricBus, Rule, Threshold};

    fn bus() -> (MetricBus, Clock) {
        let clock = Clock::manual();
        (MetricBus::builder().clock(clock.clone()).build(), clock)
    }

    fn shape(name: &str, kind: MetricKind, numbers: Numbers) -> MirrorShape {
        MirrorShape {
            name: name.to_owned(),
            help: "h".to_owned(),
            unit: None,
            kind,
            numbers,
            bounds: Vec::new(),
        }
    }

    fn labels(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        let owned = |(n, v): &(&str, &str)| ((*n).to_owned(), (*v).to_owned());
        pairs.iter().map(owned).collect()
    }

    #[test]
    fn what_a_series_had_counted_before_it_was_known_is_no_news() {
        let (bus, clock) = bus();
        let mirror = Mirror::new(&bus);
        let family = mirror
            .family(&shape("c_total", MetricKind::Counter, Numbers::Whole))
            .unwrap();
        let windows = bus.window("c_total", Duration::from_secs(10)).unwrap();
        let mut old = family.series(&labels(&[("i", "old")]), &MirrorValue::Whole(1_000), false);
        let mut new = family.series(&labels(&[("i", "new")]), &MirrorValue::Whole(5), true);
        clock.advance(Duration::from_secs(1));
        old.set(&MirrorValue::Whole(1_003)).unwrap();
        new.set(&MirrorValue::Whole(7)).unwrap();
        assert_eq!(windows.stats().increase, Some(3.0 + 7.0));
        assert_eq!(old.series().value(), Some(crate::Value::U64(1_003)));
        assert_eq!(old.set(&MirrorValue::Whole(2)), Err(Fell));
        assert_eq!(old.series().value(), Some(crate::Value::U64(1_003)));
        new.remove();
        assert_eq!(bus.series("c_total").unwrap().len(), 1);
    }

    #[test]
    fn a_mirrored_histogram_agrees_with_its_owner_and_so_do_its_quantiles() {
        let (owner, _) = bus();
        let (bus, clock) = bus();
        let ttft = owner
            .histogram("ttft_seconds", "h", Buckets::new([0.1, 1.0, 10.0]).unwrap())
            .unwrap();
        let core = ttft.series().core().clone();
        core.buckets.as_ref().unwrap().begin_sketch();
        let mirror = Mirror::new(&bus);
        let shape = MirrorShape {
            bounds: vec![0.1, 1.0, 10.0],
            ..shape("ttft_seconds", MetricKind::Histogram, Numbers::Real)
        };
        let family = mirror.family(&shape).unwrap();
        let window = bus.window("ttft_seconds", Duration::from_secs(60)).unwrap();
        ttft.observe(0.5);
        let mut mirrored = family.series(&[], &read_value(&core).unwrap(), false);
        for round in 1..=100 {
            for i in 0..10 {
                ttft.observe(f64::from(round * 10 + i) / 1_000.0);
            }
            mirrored.set(&read_value(&core).unwrap()).unwrap();
            clock.advance(Duration::from_millis(50));
        }
        assert_eq!(mirrored.series().core().value(), core.value());
        assert_eq!(mirrored.series().core().cell.load(), core.cell.load());
        let seen = window.stats();
        assert_eq!(seen.count, 1_000);
        let p90 = seen.quantile(0.9).unwrap();
        assert!((p90 - 0.91).abs() < 0.02 * 0.91, "{p90}");
        assert!((seen.max.unwrap() - 1.009).abs() < 0.011 * 1.009);
    }

    #[test]
    fn one_observation_is_shown_as_it_was_and_of_several_the_greatest_is_found() {
        let (bus, _) = bus();
        let mirror = Mirror::new(&bus);
        let shape = MirrorShape {
            bounds: vec![1.0, 10.0],
            ..shape("h_seconds", MetricKind::Histogram, Numbers::Real)
        };
        let family = mirror.family(&shape).unwrap();
        let slow = Condition::when("h_seconds", Threshold::above(3.0).clear_below(0.0));
        let rule = bus.add_rule(Rule::new("Slow", slow)).unwrap();
        let histogram = |counts: [u64; 3], sum, sketch: &[(f64, u64)]| MirrorValue::Histogram {
            counts: counts.to_vec(),
            sum,
            sketch: sketch
                .iter()
                .map(|(v, n)| (index(*v).unwrap(), *n))
                .collect(),
        };
        let mut series = family.series(&[], &histogram([0; 3], 0.0, &[]), false);
        series.set(&histogram([1, 0, 0], 0.5, &[(0.5, 1)])).unwrap();
        assert_eq!(rule.history().len(), 0);
        series
            .set(&histogram([1, 1, 0], 3.625, &[(0.5, 1), (3.125, 1)]))
            .unwrap();
        assert_eq!(rule.history()[0].value, Some(3.125));
        assert_eq!(series.set(&histogram([0, 1, 0], 3.0, &[])), Err(Fell));
    }

    #[test]
    fn owners_who_declare_a_metric_differently_are_told() {
        let (bus, _) = bus();
        let mirror = Mirror::new(&bus);
        let counter = shape("x", MetricKind::Counter, Numbers::Whole);
        mirror.family(&counter).unwrap();
        let worded = MirrorShape {
            help: "other words".to_owned(),
            ..counter.clone()
        };
        assert!(mirror.family(&worded).is_ok());
        let gauge = shape("x", MetricKind::Gauge, Numbers::Real);
        let clash = mirror.family(&gauge).err().unwrap().to_string();
        assert!(
            clash.contains("type was counter, and now is gauge"),
            "{clash}"
        );
        bus.gauge("own", "h").unwrap();
        let own = mirror
            .family(&shape("own", MetricKind::Gauge, Numbers::Real))
            .err()
            .unwrap();
        assert!(own.to_string().contains("this bus itself"), "{own}");
        let wrong = shape("no\nname", MetricKind::Gauge, Numbers::Real);
        assert!(mirror.family(&wrong).is_err());
    }

    #[test]
    fn a_gauge_is_unknown_until_it_was_measured() {
        let (bus, _) = bus();
        let gauge = bus.gauge("g", "g").unwrap();
        let core = gauge.series().core().clone();
        assert_eq!(read_value(&core), None);
        gauge.set(0.0);
        assert_eq!(read_value(&core), Some(MirrorValue::Real(0.0)));
    }
}
