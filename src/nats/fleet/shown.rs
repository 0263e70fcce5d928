//! The series of all sources on the fleet's bus: makes, moves and removes them as frames and snapshots say. Knows nothing
//! of sequences: what it is given is applied.
//!
//! A series has the labels `namespace`, `component` and `instance` in front. A label of such a name that the source gave
//! it itself becomes `exported_namespace` and so on, as in Prometheus.
//!
//! | what comes | what is done |
//! |---|---|
//! | a series that is there | its value is taken over; what a counter has more is news |
//! | a series that is there, made later than the one known | the one known is removed, and one made anew: all of it is news |
//! | a counter that fell, made when the one known was | a fault of the source, counted; as above |
//! | a series that is not there, made after its source was taken over | made: what it counted is news |
//! | a series that is not there, made before that | made: what it counted is none |
//! | a metric that others declare otherwise | left out and told, until the others are gone |
//! | more series than a source may have | left out, counted |
//! | "removed" | removed |
//! | a snapshot that lacks a series | removed |
//!
//! A metric of which no source has a series any more is declared no more.

use hashbrown::HashMap;
use opentelemetry_proto::tonic::{common::v1::any_value, metrics::v1::NumberDataPoint};
use prost::Message;

use super::quick::{Atlas, Paths, Place, Written};
use crate::{
    DeclareError, MetricKind, SourceId,
    desc::Numbers,
    mirror::{Mirror, MirrorFamily, MirrorSeries, MirrorShape},
    nats::wire::frame::{Frame, FrameMetric, FramePoint, FrameValue},
};

/// The labels that tell sources apart.
pub(super) const OUTER: [&str; 3] = ["namespace", "component", "instance"];

const EXPORTED: &str = "exported_";

type Labels = Vec<(String, String)>;

/// What came of applying something.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Outcome {
    /// Metrics that were refused, and why, told once for each life of a source.
    pub(super) refused: Vec<(String, String)>,
    /// Points that were left out as there are too many series.
    pub(super) too_many: u64,
    /// Points of metrics that are refused.
    pub(super) clashing: u64,
    /// Counters that fell.
    pub(super) fell: u64,
    /// A metric that was refused is taken now: what was left out until now has to be had.
    pub(super) incomplete: bool,
    /// How many series the source has now, where that has changed.
    pub(super) series: Option<usize>,
}

/// All of them. Held by one task alone.
pub(super) struct Shown {
    mirror: Mirror,
    series_max: usize,
    families: HashMap<String, Declared>,
    sources: HashMap<SourceId, Shelf>,
    /// How often a metric was taken back: what was refused may be tried again.
    withdrawn: u64,
}

struct Declared {
    family: MirrorFamily,
    /// Sources that have series of it.
    users: usize,
}

/// The series of one source.
#[derive(Default)]
struct Shelf {
    outer: Labels,
    metrics: HashMap<String, Known>,
    places: Places,
    paths: Paths,
    /// From when on a new series is news, by the source's clock; `None` before it was taken over.
    news_since: Option<u64>,
    /// Of the last snapshot.
    mark: u32,
}

/// A metric of one source.
enum Known {
    Taken {
        family: MirrorFamily,
        shape: MirrorShape,
        /// Where each is among the places.
        series: HashMap<Labels, u32>,
        /// It was told that the source has it otherwise now.
        told: bool,
    },
    Refused {
        /// When it was tried, by [`Shown::withdrawn`].
        tried: u64,
    },
}

/// All series of a source, in places that are used again.
#[derive(Default)]
struct Places {
    slots: Vec<Option<Held>>,
    free: Vec<u32>,
    /// How many there have been.
    numbers: u64,
}

struct Held {
    series: MirrorSeries,
    /// Which one it is of all that have been in these places.
    number: u64,
    born: u64,
    /// The last snapshot it was in.
    mark: u32,
}

impl Shown {
    pub(super) fn new(mirror: Mirror, series_max: usize) -> Shown {
        Shown {
            mirror,
            series_max,
            families: HashMap::new(),
            sources: HashMap::new(),
            withdrawn: 0,
        }
    }

    /// How many series a source has.
    fn series_of(&self, source: &SourceId) -> usize {
        self.sources
            .get(source)
            .map_or(0, |shelf| shelf.places.len())
    }

    /// Applies what a frame says of numbers that are known, as it lies there. What is left over, as a frame of its own;
    /// `None`: all of it.
    pub(super) fn quick(&mut self, source: &SourceId, body: &[u8]) -> Option<Vec<u8>> {
        let Shelf { places, paths, .. } = self.sources.get_mut(source)?;
        paths.take(body, |place, born, value| {
            let held = places.get_mut(place.slot);
            held.is_some_and(|held| {
                held.number == place.number && held.born == born && held.series.set(value).is_ok()
            })
        })
    }

    /// Remembers how the series are told of that a frame is about, now that it was applied.
    pub(super) fn learn(&mut self, source: &SourceId, body: &[u8]) {
        let Some(shelf) = self.sources.get_mut(source) else {
            return;
        };
        let mut paths = std::mem::take(&mut shelf.paths);
        let _ = paths.learn(body, shelf);
        // Those to series that have gone.
        if paths.len() > 2 * shelf.places.len() + 64 {
            paths.tidy(shelf);
        }
        shelf.paths = paths;
    }

    /// Applies what a frame says.
    pub(super) fn apply(&mut self, source: &SourceId, frame: Frame) -> Outcome {
        let mut outcome = Outcome::default();
        let before = self.series_of(source);
        self.take(source, frame, &mut outcome);
        let after = self.series_of(source);
        outcome.series = (before != after).then_some(after);
        outcome
    }

    /// These frames are all series of the source. `news`: of a source that is not shown yet, that what they have counted
    /// is.
    pub(super) fn replace(&mut self, source: &SourceId, frames: Vec<Frame>, news: bool) -> Outcome {
        let mut outcome = Outcome::default();
        let shelf = self.shelf(source);
        shelf.mark = shelf.mark.wrapping_add(1);
        let mark = shelf.mark;
        if shelf.news_since.is_none() {
            let at = frames.iter().map(|frame| frame.at).min().unwrap_or(0);
            shelf.news_since = Some(if news { 0 } else { at });
        }
        for frame in frames {
            self.take(source, frame, &mut outcome);
        }
        self.sweep(source, mark);
        // It was all there was.
        outcome.incomplete = false;
        outcome.series = Some(self.series_of(source));
        outcome
    }

    /// The source is gone, or its life is over: all its series are.
    pub(super) fn clear(&mut self, source: &SourceId) {
        let Some(mut shelf) = self.sources.remove(source) else {
            return;
        };
        for (name, known) in shelf.metrics {
            if let Known::Taken { series, .. } = known {
                for slot in series.into_values() {
                    shelf.places.remove(slot);
                }
                self.release(&name);
            }
        }
    }

    /// The fleet ends.
    pub(super) fn clear_all(&mut self) {
        let sources: Vec<SourceId> = self.sources.keys().cloned().collect();
        for source in &sources {
            self.clear(source);
        }
    }

    fn shelf(&mut self, source: &SourceId) -> &mut Shelf {
        self.sources
            .entry(source.clone())
            .or_insert_with(|| Shelf::of(source))
    }

    fn take(&mut self, source: &SourceId, frame: Frame, outcome: &mut Outcome) {
        for metric in frame.metrics {
            self.take_metric(source, metric, outcome);
        }
    }

    fn take_metric(&mut self, source: &SourceId, metric: FrameMetric, outcome: &mut Outcome) {
        let only_removed = metric.points.iter().all(FramePoint::is_removed);
        if !only_removed && !self.enter(source, &metric, outcome) {
            outcome.clashing += metric.points.iter().filter(|p| !p.is_removed()).count() as u64;
            return;
        }
        let series_max = self.series_max;
        let Some(shelf) = self.sources.get_mut(source) else {
            return;
        };
        let Some(Known::Taken { family, series, .. }) = shelf.metrics.get_mut(&metric.name) else {
            return;
        };
        let places = &mut shelf.places;
        let news_since = shelf.news_since.unwrap_or(u64::MAX);
        for point in metric.points {
            let FrameValue::Value(value) = point.value else {
                if let Some(slot) = series.remove(&point.labels) {
                    places.remove(slot);
                }
                continue;
            };
            let slot = series.get(&point.labels).copied();
            let held = slot.and_then(|slot| places.get_mut(slot));
            let mut news = point.born >= news_since;
            if let Some(held) = held {
                held.mark = shelf.mark;
                let reborn = point.born > held.born;
                if !reborn && held.series.set(&value).is_ok() {
                    continue;
                }
                outcome.fell += u64::from(!reborn);
                news = true;
            }
            // The old one first: the new one has its name.
            if let Some(slot) = slot {
                places.remove(slot);
            }
            if places.len() >= series_max {
                outcome.too_many += 1;
                continue;
            }
            let labels: Labels = shelf
                .outer
                .iter()
                .cloned()
                .chain(exported(&point.labels))
                .collect();
            let made = family.series(&labels, &value, news);
            let slot = places.put(made, point.born, shelf.mark);
            series.insert(point.labels, slot);
        }
        if series.is_empty() {
            shelf.metrics.remove(&metric.name);
            self.release(&metric.name);
        }
    }

    /// Sees that the metric is declared as the source has it. `false`: it can't be.
    fn enter(&mut self, source: &SourceId, metric: &FrameMetric, outcome: &mut Outcome) -> bool {
        let withdrawn = self.withdrawn;
        let known = self.shelf(source).metrics.get_mut(&metric.name);
        let tried = match known {
            Some(Known::Taken { shape, told, .. }) => {
                let Some(why) = differs(shape, metric) else {
                    return true;
                };
                // Of one source it is one thing at a time.
                if !std::mem::replace(told, true) {
                    outcome.refused.push((metric.name.clone(), why));
                }
                return false;
            }
            Some(Known::Refused { tried }) if *tried == withdrawn => return false,
            Some(Known::Refused { .. }) => true,
            None => false,
        };
        if !tried && self.shelf(source).metrics.len() >= self.series_max {
            return false;
        }
        let shape = MirrorShape {
            name: metric.name.clone(),
            help: metric.help.clone(),
            unit: metric.unit.clone(),
            kind: metric.kind,
            numbers: metric.numbers,
            bounds: metric.bounds.clone(),
        };
        let known = match self.declare(&shape) {
            Ok(family) => {
                outcome.incomplete |= tried;
                Known::Taken {
                    family,
                    shape,
                    series: HashMap::new(),
                    told: false,
                }
            }
            Err(error) => {
                if !tried {
                    outcome
                        .refused
                        .push((metric.name.clone(), error.to_string()));
                }
                Known::Refused { tried: withdrawn }
            }
        };
        let taken = matches!(known, Known::Taken { .. });
        let shelf = self.shelf(source);
        shelf.metrics.insert(metric.name.clone(), known);
        taken
    }

    fn declare(&mut self, shape: &MirrorShape) -> Result<MirrorFamily, DeclareError> {
        // Also where it is declared: whether it is the same is for the bus to say.
        let family = self.mirror.family(shape)?;
        let declared = self
            .families
            .entry(shape.name.clone())
            .or_insert_with(|| Declared { family, users: 0 });
        declared.users += 1;
        Ok(declared.family.clone())
    }

    /// One source less has series of the metric.
    fn release(&mut self, name: &str) {
        let Some(declared) = self.families.get_mut(name) else {
            return;
        };
        declared.users -= 1;
        if declared.users == 0
            && let Some(declared) = self.families.remove(name)
        {
            self.mirror.withdraw(&declared.family);
            self.withdrawn += 1;
        }
    }

    /// Removes what was not in the snapshot of this mark.
    fn sweep(&mut self, source: &SourceId, mark: u32) {
        let Some(shelf) = self.sources.get_mut(source) else {
            return;
        };
        let mut empty = Vec::new();
        for (name, known) in &mut shelf.metrics {
            let Known::Taken { series, .. } = known else {
                continue;
            };
            let places = &mut shelf.places;
            series.retain(|_, slot| {
                let stays = places.get_mut(*slot).is_some_and(|held| held.mark == mark);
                if !stays {
                    places.remove(*slot);
                }
                stays
            });
            if series.is_empty() {
                empty.push(name.clone());
            }
        }
        for name in &empty {
            shelf.metrics.remove(name);
        }
        for name in &empty {
            self.release(name);
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.clear_all();
    }
}

impl Shelf {
    fn of(source: &SourceId) -> Shelf {
        let values = [&source.namespace, &source.component, &source.instance];
        let outer = OUTER.iter().zip(values);
        Shelf {
            outer: outer
                .map(|(name, value)| ((*name).to_owned(), value.clone()))
                .collect(),
            ..Shelf::default()
        }
    }
}

impl Places {
    fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn get(&self, slot: u32) -> Option<&Held> {
        self.slots.get(slot as usize)?.as_ref()
    }

    fn get_mut(&mut self, slot: u32) -> Option<&mut Held> {
        self.slots.get_mut(slot as usize)?.as_mut()
    }

    fn put(&mut self, series: MirrorSeries, born: u64, mark: u32) -> u32 {
        self.numbers += 1;
        let held = Some(Held {
            series,
            number: self.numbers,
            born,
            mark,
        });
        match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = held;
                slot
            }
            None => {
                self.slots.push(held);
                // A source has not nearly so many.
                (self.slots.len() - 1) as u32
            }
        }
    }

    /// Removes the series in this place, for whoever listens to it, too.
    fn remove(&mut self, slot: u32) {
        let place = self.slots.get_mut(slot as usize);
        if let Some(held) = place.and_then(Option::take) {
            held.series.remove();
            self.free.push(slot);
        }
    }
}

impl Atlas for Shelf {
    fn written(&self, metric: &str) -> Option<Written> {
        let Some(Known::Taken { shape, .. }) = self.metrics.get(metric) else {
            return None;
        };
        match (shape.kind, shape.numbers) {
            (MetricKind::Gauge, _) => Some(Written::Real),
            (MetricKind::Counter, Numbers::Whole) => Some(Written::Whole),
            (MetricKind::Counter, _) => Some(Written::Amount),
            (MetricKind::Histogram, _) => None,
        }
    }

    fn find(&self, metric: &str, labels: &[u8]) -> Option<Place> {
        let Some(Known::Taken { series, .. }) = self.metrics.get(metric) else {
            return None;
        };
        let mut read = Labels::new();
        for attribute in NumberDataPoint::decode(labels).ok()?.attributes {
            match attribute.value?.value? {
                any_value::Value::StringValue(value) => read.push((attribute.key, value)),
                _ => return None,
            }
        }
        let slot = *series.get(&read)?;
        let number = self.places.get(slot)?.number;
        Some(Place { slot, number })
    }

    fn is_there(&self, Place { slot, number }: Place) -> bool {
        self.places
            .get(slot)
            .is_some_and(|held| held.number == number)
    }
}

impl FramePoint {
    fn is_removed(&self) -> bool {
        self.value == FrameValue::Removed
    }
}

/// What a source has otherwise now than before, in words.
fn differs(was: &MirrorShape, now: &FrameMetric) -> Option<String> {
    let numbers = |numbers: Numbers| match numbers {
        Numbers::Whole => "integers",
        Numbers::Amount | Numbers::Real => "doubles",
    };
    let what = if was.kind != now.kind {
        format!("type was {}, and now is {}", was.kind, now.kind)
    } else if was.numbers != now.numbers {
        let (was, now) = (numbers(was.numbers), numbers(now.numbers));
        format!("it counted in {was}, and now does in {now}")
    } else if was.bounds != now.bounds {
        "its buckets are others now".to_owned()
    } else {
        return None;
    };
    let name = &now.name;
    Some(format!(
        "metric {name:?} clashes with what the source itself has said before: {what}"
    ))
}

/// The source's own labels as they are here.
fn exported(labels: &[(String, String)]) -> impl Iterator<Item = (String, String)> {
    labels.iter().map(|(name, value)| {
        let mut here = name.clone();
        if OUTER.contains(&name.as_str()) {
            here.insert_str(0, EXPORTED);
            // Where the source has such a label as well.
            while labels.iter().any(|(other, _)| *other == here) {
                here.insert_str(0, EXPORTED);
            }
        }
        (here, value.clone())
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        Clock, MetricBus, MetricKind, desc::Numbers, mirror::MirrorValue, window::Windows,
    };

    struct World {
        bus: MetricBus,
        shown: Shown,
    }

    fn world() -> World {
        let bus = MetricBus::builder().clock(Clock::manual()).build();
        let shown = Shown::new(Mirror::new(&bus), 100);
        World { bus, shown }
    }

    impl World {
        /// `name{labels} = value`, sorted.
        fn all(&self) -> Vec<String> {
            let mut all: Vec<String> = self
                .bus
                .series(r#"{__name__!=""}"#)
                .unwrap()
                .iter()
                .map(|series| format!("{series:?}"))
                .collect();
            all.sort();
            all
        }

        fn increases(&self) -> Windows {
            self.bus
                .window(r#"{__name__!=""}"#, Duration::from_secs(10))
                .unwrap()
        }
    }

    fn pod(instance: &str) -> SourceId {
        SourceId::new("ns", "c", instance)
    }

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        let owned = |(n, v): &(&str, &str)| ((*n).to_owned(), (*v).to_owned());
        pairs.iter().map(owned).collect()
    }

    fn metric(name: &str, kind: MetricKind, points: Vec<FramePoint>) -> FrameMetric {
        FrameMetric {
            name: name.to_owned(),
            help: String::new(),
            unit: None,
            kind,
            numbers: match kind {
                MetricKind::Counter => Numbers::Whole,
                _ => Numbers::Real,
            },
            bounds: Vec::new(),
            points,
        }
    }

    fn point(pairs: &[(&str, &str)], born: u64, value: MirrorValue) -> FramePoint {
        FramePoint {
            labels: labels(pairs),
            born,
            value: FrameValue::Value(value),
        }
    }

    fn counts(pairs: &[(&str, &str)], born: u64, count: u64) -> Frame {
        let point = point(pairs, born, MirrorValue::Whole(count));
        Frame {
            at: 100,
            metrics: vec![metric("c_total", MetricKind::Counter, vec![point])],
        }
    }

    fn gauge(pairs: &[(&str, &str)], value: f64) -> Frame {
        let point = point(pairs, 1, MirrorValue::Real(value));
        Frame {
            at: 100,
            metrics: vec![metric("g", MetricKind::Gauge, vec![point])],
        }
    }

    fn removed(name: &str, kind: MetricKind, pairs: &[(&str, &str)]) -> Frame {
        let point = FramePoint {
            labels: labels(pairs),
            born: 1,
            value: FrameValue::Removed,
        };
        Frame {
            at: 100,
            metrics: vec![metric(name, kind, vec![point])],
        }
    }

    #[test]
    fn sources_are_told_apart_and_their_own_labels_of_such_names_are_kept() {
        let mut world = world();
        world.shown.replace(&pod("a"), vec![gauge(&[], 1.0)], false);
        let own = [("instance", "x"), ("exported_instance", "y"), ("z", "z")];
        world
            .shown
            .replace(&pod("b"), vec![gauge(&own, 2.0)], false);
        assert_eq!(
            world.all(),
            [
                r#"g{namespace="ns",component="c",instance="a"} = 1"#,
                r#"g{namespace="ns",component="c",instance="b",exported_exported_instance="x",exported_instance="y",z="z"} = 2"#,
            ]
        );
    }

    #[test]
    fn what_was_counted_before_we_came_is_no_news_and_what_a_new_life_counted_is() {
        let mut world = world();
        let seen = world.increases();
        world
            .shown
            .replace(&pod("old"), vec![counts(&[], 1, 1_000)], false);
        assert_eq!(seen.stats().increase, Some(0.0));
        world.shown.apply(&pod("old"), counts(&[], 1, 1_003));
        assert_eq!(seen.stats().increase, Some(3.0));
        world
            .shown
            .replace(&pod("new"), vec![counts(&[], 1, 7)], true);
        assert_eq!(seen.stats().increase, Some(10.0));
    }

    #[test]
    fn a_series_made_after_its_source_was_taken_over_is_news() {
        let mut world = world();
        let seen = world.increases();
        // The snapshot is of 100.
        world
            .shown
            .replace(&pod("a"), vec![counts(&[("k", "0")], 1, 9)], false);
        world.shown.apply(&pod("a"), counts(&[("k", "1")], 101, 5));
        assert_eq!(seen.stats().increase, Some(5.0));
        // Made before, and forwarded only now.
        world
            .shown
            .apply(&pod("a"), counts(&[("k", "2")], 50, 1_000));
        assert_eq!(seen.stats().increase, Some(5.0));
    }

    #[test]
    fn what_a_gap_had_is_news_once_it_is_mended() {
        let mut world = world();
        let seen = world.increases();
        world
            .shown
            .replace(&pod("a"), vec![counts(&[], 1, 10)], false);
        world
            .shown
            .replace(&pod("a"), vec![counts(&[], 1, 25)], false);
        assert_eq!(seen.stats().increase, Some(15.0));
    }

    #[test]
    fn a_series_that_a_snapshot_lacks_is_gone_and_so_is_one_that_was_removed() {
        let mut world = world();
        let snapshot = vec![gauge(&[("k", "0")], 0.0), gauge(&[("k", "1")], 1.0)];
        world.shown.replace(&pod("a"), snapshot, false);
        world.shown.apply(&pod("a"), gauge(&[("k", "2")], 2.0));
        assert_eq!(world.shown.series_of(&pod("a")), 3);
        world
            .shown
            .replace(&pod("a"), vec![gauge(&[("k", "1")], 1.5)], false);
        assert_eq!(world.all().len(), 1);
        assert_eq!(world.shown.series_of(&pod("a")), 1);
        let frame = removed("g", MetricKind::Gauge, &[("k", "1")]);
        world.shown.apply(&pod("a"), frame);
        assert_eq!(world.all(), [""; 0]);
        // Nobody has it any more: it may be declared otherwise.
        let frame = removed("g", MetricKind::Gauge, &[("k", "1")]);
        world.shown.apply(&pod("a"), frame);
        assert!(world.bus.snapshot().families.is_empty());
    }

    #[test]
    fn a_counter_made_anew_is_another_and_all_of_it_is_news() {
        let mut world = world();
        let seen = world.increases();
        world
            .shown
            .replace(&pod("a"), vec![counts(&[], 1, 10)], false);
        let old = world.bus.series("c_total").unwrap().remove(0);
        assert_eq!(world.shown.apply(&pod("a"), counts(&[], 200, 3)).fell, 0);
        assert!(old.is_removed());
        assert_eq!(seen.stats().increase, Some(3.0));
        // It has more than the one before had, and is another all the same.
        assert_eq!(world.shown.apply(&pod("a"), counts(&[], 300, 8)).fell, 0);
        assert_eq!(seen.stats().increase, Some(8.0));
    }

    #[test]
    fn a_counter_that_falls_without_having_been_made_anew_is_a_fault_and_counted() {
        let mut world = world();
        world
            .shown
            .replace(&pod("a"), vec![counts(&[], 1, 10)], false);
        let old = world.bus.series("c_total").unwrap().remove(0);
        assert_eq!(world.shown.apply(&pod("a"), counts(&[], 1, 4)).fell, 1);
        assert!(old.is_removed());
        assert_eq!(
            world.all(),
            [r#"c_total{namespace="ns",component="c",instance="a"} = 4"#]
        );
    }

    #[test]
    fn a_metric_that_others_declare_otherwise_is_left_out_until_they_are_gone() {
        let mut world = world();
        world.shown.replace(&pod("a"), vec![gauge(&[], 1.0)], false);
        let counter = |n| {
            let points = vec![point(&[], 1, MirrorValue::Whole(n))];
            let metric = metric("g", MetricKind::Counter, points);
            Frame {
                at: 1,
                metrics: vec![metric],
            }
        };
        let outcome = world.shown.replace(&pod("b"), vec![counter(1)], false);
        assert_eq!(outcome.clashing, 1);
        let (name, why) = &outcome.refused[0];
        assert_eq!(name, "g");
        assert!(why.contains("type was gauge, and now is counter"), "{why}");
        let outcome = world.shown.apply(&pod("b"), counter(2));
        assert_eq!(
            (outcome.clashing, outcome.refused.len()),
            (1, 0),
            "told once"
        );
        world.shown.clear(&pod("a"));
        let outcome = world.shown.apply(&pod("b"), counter(3));
        assert!(outcome.incomplete, "what was left out is wanted");
        assert_eq!(
            world.all(),
            [r#"g{namespace="ns",component="c",instance="b"} = 3"#]
        );
    }

    #[test]
    fn a_metric_that_a_source_has_otherwise_than_before_is_told_once() {
        let mut world = world();
        let frame = |kind, numbers, bounds: &[f64]| {
            let value = match kind {
                MetricKind::Counter => MirrorValue::Amount(1.0),
                _ => MirrorValue::Histogram {
                    counts: vec![0; bounds.len() + 1],
                    sum: 0.0,
                    sketch: Vec::new(),
                },
            };
            let metric = FrameMetric {
                numbers,
                bounds: bounds.to_vec(),
                ..metric("m", kind, vec![point(&[], 1, value)])
            };
            Frame {
                at: 1,
                metrics: vec![metric],
            }
        };
        let histogram = |bounds: &[f64]| frame(MetricKind::Histogram, Numbers::Real, bounds);
        world
            .shown
            .replace(&pod("a"), vec![histogram(&[1.0])], false);
        let outcome = world.shown.apply(&pod("a"), histogram(&[2.0]));
        assert_eq!(outcome.refused.len(), 1);
        let why = &outcome.refused[0].1;
        assert!(why.ends_with("its buckets are others now"), "{why}");
        for _ in 0..3 {
            let outcome = world.shown.apply(&pod("a"), histogram(&[2.0]));
            assert_eq!((outcome.clashing, outcome.refused.len()), (1, 0));
        }
        // Another life has not been told of.
        world.shown.clear(&pod("a"));
        world
            .shown
            .replace(&pod("a"), vec![counts(&[], 1, 1)], false);
        let mut amounts = frame(MetricKind::Counter, Numbers::Amount, &[]);
        amounts.metrics[0].name = "c_total".to_owned();
        let outcome = world.shown.apply(&pod("a"), amounts.clone());
        let why = &outcome.refused[0].1;
        assert!(
            why.ends_with("it counted in integers, and now does in doubles"),
            "{why}"
        );
        assert_eq!(world.shown.apply(&pod("a"), amounts).refused, []);
    }

    #[test]
    fn a_metric_of_the_fleet_s_own_bus_is_not_taken_over() {
        let mut world = world();
        let own = world.bus.gauge("g", "Ours.").unwrap();
        own.set(5.0);
        let outcome = world.shown.replace(&pod("a"), vec![gauge(&[], 1.0)], false);
        assert!(outcome.refused[0].1.contains("this bus itself"));
        assert_eq!(world.all(), ["g = 5"]);
    }

    #[test]
    fn a_source_has_so_many_series_and_no_more() {
        let mut world = world();
        world.shown.series_max = 2;
        let points = (0..5).map(|i| point(&[("k", &i.to_string())], 1, MirrorValue::Real(1.0)));
        let frame = Frame {
            at: 1,
            metrics: vec![metric("g", MetricKind::Gauge, points.collect())],
        };
        assert_eq!(world.shown.apply(&pod("a"), frame.clone()).too_many, 3);
        assert_eq!(world.all().len(), 2);
        // Room that is left can be had.
        let gone = removed("g", MetricKind::Gauge, &[("k", "0")]);
        world.shown.apply(&pod("a"), gone);
        assert_eq!(world.shown.apply(&pod("a"), frame).too_many, 3);
        assert_eq!(world.all().len(), 2);
    }

    #[test]
    fn a_source_that_is_cleared_takes_nothing_of_others_with_it() {
        let mut world = world();
        world.shown.replace(&pod("a"), vec![gauge(&[], 1.0)], false);
        world.shown.replace(&pod("b"), vec![gauge(&[], 2.0)], false);
        world.shown.clear(&pod("a"));
        world.shown.clear(&pod("never there"));
        assert_eq!(
            world.all(),
            [r#"g{namespace="ns",component="c",instance="b"} = 2"#]
        );
        world.shown.apply(&pod("a"), gauge(&[], 3.0));
        assert_eq!(world.all().len(), 2);
    }
}
