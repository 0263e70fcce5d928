//! Reads the cells of a bus into requests, and remembers what has to be: of deltas, what was told; of histograms, the
//! extremes and since when the exponential buckets are kept. All of it lives in a listener at each series that needs one,
//! so that it goes when the series does.
//!
//! Where totals are exported, counters and gauges need no listener. A histogram has one for its extremes: a mutation finds
//! it only with a new extreme.

use std::{
    any::Any,
    collections::VecDeque,
    sync::{Arc, Mutex, Weak, atomic::Ordering::Relaxed},
};

use super::{
    encode::{
        Encoder, Form, Number, Observed, REQUEST_MAX, Request, Shape, Span64, Tags,
        encode_resource, nanos_of, write_exponential, write_histogram, write_number,
    },
    options::Ready,
    own::{Dropped, Stats},
};
use crate::{
    Exemplar, MetricBus,
    cell::{Listener, Wakes, wake_all},
    desc::{MetricKind, Numbers},
    interest::{ExtremesState, Interval},
    mailbox::Mailbox,
    metric::FamilyCore,
    series::{BucketCells, SeriesCore, is_unmeasured},
    sketch::Weights,
    snapshot::{FamilySnapshot, SampleValue},
    stats::next_id,
    sync::lock,
    time::{Stamp, Time},
    watch::Watch,
};

/// So many removed series may wait for their last delta to be told.
const DEPARTED_MAX: usize = 65_536;

/// When something is read.
#[derive(Clone, Copy)]
struct Moment {
    at: Time,
    /// In nanoseconds since 1970. The machine's clock may have been set back, and so it is not after all that was before.
    date: u64,
}

/// As much room in a queue of `queue_bytes` a request may take. It is filled to three quarters, so that the point that
/// fills it fits, too, if it is not one of many kilobytes.
pub(super) fn batch_room(queue_bytes: usize) -> usize {
    (queue_bytes / 4).min(REQUEST_MAX / 3 * 4)
}

/// The exemplars of `span`, of which the first moment is the one before's, but of a series' first point. So none is told
/// of in two deltas.
fn within(
    exemplars: &[(Option<usize>, Exemplar)],
    span: Span64,
    is_first: bool,
) -> Vec<(Option<usize>, Exemplar)> {
    let is_in = |(_, exemplar): &&(Option<usize>, Exemplar)| {
        let at = nanos_of(exemplar.at);
        let is_after = at > span.start || (is_first && at == span.start);
        is_after && at <= span.end
    };
    exemplars.iter().filter(is_in).cloned().collect()
}

/// What the exporter reads.
pub(super) struct Collector {
    bus: MetricBus,
    delta: bool,
    /// The most buckets.
    exponential: Option<usize>,
    resource: Vec<u8>,
    batch_points: usize,
    batch_bytes: usize,
    own_metrics: bool,
    started: u64,
    watch: Arc<Watch>,
    departed: Arc<Departed>,
    /// `None`: everything was read.
    pass: Option<Pass>,
}

/// What is left to be read.
struct Pass {
    gone: VecDeque<Last>,
    families: std::vec::IntoIter<Arc<FamilyCore>>,
    /// The one at work, and its series.
    family: Option<(Arc<FamilyCore>, std::vec::IntoIter<Arc<SeriesCore>>)>,
    /// `None` until they are due.
    own: Option<VecDeque<FamilySnapshot>>,
    /// Whether a request came of it already, and time may have passed since.
    resumed: bool,
}

/// Removed series whose last deltas nobody has told yet.
struct Departed {
    all: Mutex<Vec<Last>>,
    stats: Arc<Stats>,
}

struct Last {
    series: Arc<SeriesCore>,
    at: Time,
    reading: Reading,
    told: Option<(Reading, u64)>,
    extremes: ExtremesState,
    since: Option<Time>,
}

/// A series as it is, or as it was when it was told last.
#[derive(Clone, Debug)]
enum Reading {
    /// The bits of a counter.
    Counter(u64),
    Explicit {
        counts: Vec<u64>,
        sum: f64,
    },
    Exponential {
        weights: Weights,
        sum: f64,
    },
}

impl Reading {
    fn of(series: &SeriesCore, exponential: bool) -> Option<Reading> {
        let Some(buckets) = &series.buckets else {
            return Some(Reading::Counter(series.cell.load()));
        };
        // The sum is added to last, and so it is read last: what is in it may be missing in the counts by a moment's worth.
        Some(if exponential {
            let weights = buckets.sketch()?.snapshot();
            let sum = f64::from_bits(series.cell.load());
            Reading::Exponential { weights, sum }
        } else {
            let counts = buckets.counts().collect();
            let sum = f64::from_bits(series.cell.load());
            Reading::Explicit { counts, sum }
        })
    }

    /// What has come since `earlier`.
    fn since(self, earlier: &Reading, numbers: Numbers) -> Reading {
        match (self, earlier) {
            (Reading::Counter(now), Reading::Counter(then)) => Reading::Counter(match numbers {
                Numbers::Whole => now.wrapping_sub(*then),
                Numbers::Amount | Numbers::Real => {
                    (f64::from_bits(now) - f64::from_bits(*then)).to_bits()
                }
            }),
            (
                Reading::Explicit { mut counts, sum },
                Reading::Explicit {
                    counts: then,
                    sum: before,
                },
            ) => {
                for (now, then) in counts.iter_mut().zip(then) {
                    *now = now.wrapping_sub(*then);
                }
                let sum = sum - before;
                Reading::Explicit { counts, sum }
            }
            (
                Reading::Exponential { weights, sum },
                Reading::Exponential {
                    weights: then,
                    sum: before,
                },
            ) => {
                let more = weights.since(then);
                let mut weights = Weights::default();
                weights.add_ascending(more.into_iter().map(|p| (p.index(), p.weight())));
                let sum = sum - before;
                Reading::Exponential { weights, sum }
            }
            (now, _) => now,
        }
    }

    fn sum(&self) -> f64 {
        match self {
            Reading::Counter(_) => 0.0,
            Reading::Explicit { sum, .. } | Reading::Exponential { sum, .. } => *sum,
        }
    }

    /// Whether it counts what `earlier` counts, and has another sum: that of an observation was added after its count was
    /// told.
    fn is_late(&self, earlier: Option<&Reading>) -> bool {
        let sum = earlier.map_or(0.0, Reading::sum);
        if self.sum() == sum || (self.sum().is_nan() && sum.is_nan()) {
            return false;
        }
        match (self, earlier) {
            (Reading::Counter(_), _) => false,
            (_, None) => self.is_nothing(),
            (Reading::Explicit { counts, .. }, Some(Reading::Explicit { counts: then, .. })) => {
                counts == then
            }
            (
                Reading::Exponential { weights, .. },
                Some(Reading::Exponential { weights: then, .. }),
            ) => weights.since(then).is_empty(),
            _ => false,
        }
    }

    fn is_nothing(&self) -> bool {
        match self {
            // −0 does not come of counting.
            Reading::Counter(bits) => *bits == 0,
            Reading::Explicit { counts, .. } => counts.iter().all(|n| *n == 0),
            Reading::Exponential { weights, .. } => weights.iter().next().is_none(),
        }
    }
}

/// Listens at one series.
struct Ear {
    id: u64,
    series: Weak<SeriesCore>,
    /// Whether it hears observations, and not values.
    observed: bool,
    exponential: bool,
    /// Whether deltas are told, and another exporter told those before this one came.
    is_late: bool,
    /// Where deltas are told: what was told last, and when.
    told: Option<(Reading, u64)>,
    /// Where removed series go; `None` for totals.
    departed: Option<Arc<Departed>>,
    extremes: ExtremesState,
    /// Whether the extremes are those of all that the next point tells of.
    whole: bool,
    sketch: Option<Kept>,
}

/// Keeps a sketch kept.
struct Kept {
    buckets: Arc<BucketCells>,
    /// What it had counted when the ear came, where that was anything it can't vouch for, and when that was.
    before: Option<(Reading, Time)>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.buckets.end_sketch();
    }
}

/// What is asked of an ear.
enum Question {
    /// The extremes since last asked so; from here on anew.
    Anew(Option<ExtremesState>),
    /// The extremes, and where a sketch began.
    Look {
        extremes: Option<ExtremesState>,
        before: Option<(Reading, Time)>,
    },
    /// Here is the present reading, told of at this time: what was the one before?
    Tell(Option<(Reading, u64)>),
}

impl Listener for Ear {
    fn id(&self) -> u64 {
        self.id
    }

    fn begin(&mut self, bits: u64, stamp: &mut Stamp<'_>) {
        let Some(series) = self.series.upgrade() else {
            return;
        };
        let date = |at| nanos_of(series.meta.clock.date(at));
        // Whoever counts later than this finds the band, and comes here with a new extreme.
        let buckets = series.buckets.as_ref();
        self.whole = buckets.is_some_and(|buckets| buckets.total_before_sketch() == 0);
        if let Some(kept) = &mut self.sketch
            && !self.whole
            && !series.meta.native
            && let Some(sketch) = kept.buckets.sketch()
        {
            let weights = sketch.snapshot();
            let sum = f64::from_bits(bits);
            let at = stamp.at();
            let reading = Reading::Exponential { weights, sum };
            if self.departed.is_some() {
                self.told = Some((reading.clone(), date(at)));
            }
            kept.before = Some((reading, at));
            self.whole = true;
        } else if self.is_late
            && let Some(reading) = Reading::of(&series, self.exponential)
        {
            self.told = Some((reading, date(stamp.at())));
            self.whole = true;
        }
    }

    fn judge(&mut self, value: f64, mutated: bool, _stamp: &mut Stamp<'_>) {
        if mutated {
            self.extremes.step(value);
        }
    }

    fn quiet(&self) -> Interval {
        if self.observed {
            self.extremes.quiet()
        } else {
            Interval::EVERYTHING
        }
    }

    fn ask(&mut self, question: &mut dyn Any) {
        let Some(question) = question.downcast_mut::<Question>() else {
            return;
        };
        match question {
            Question::Anew(seen) => {
                *seen = self.whole.then(|| self.extremes.clone());
                self.extremes.reset();
                self.whole = true;
            }
            Question::Look { extremes, before } => {
                *extremes = self.whole.then(|| self.extremes.clone());
                *before = self.sketch.as_ref().and_then(|kept| kept.before.clone());
            }
            Question::Tell(reading) => {
                if let (Some((_, now)), Some((_, then))) = (&mut *reading, &self.told) {
                    *now = (*now).max(*then);
                }
                let told = self.told.as_ref().map(|(told, _)| told);
                let is_late = |(now, _): &(Reading, u64)| now.is_late(told);
                // A point that counts nothing has no sum: it is told with the next one that does.
                if reading.as_ref().is_some_and(is_late) {
                    reading.clone_from(&self.told);
                } else {
                    std::mem::swap(&mut self.told, reading);
                }
            }
        }
    }

    fn removed(&mut self, _value: f64, stamp: &mut Stamp<'_>, _wakes: &mut Wakes) {
        let Some(departed) = &self.departed else {
            return;
        };
        let Some(series) = self.series.upgrade() else {
            return;
        };
        let Some(reading) = Reading::of(&series, self.exponential) else {
            return;
        };
        let mut all = lock(&departed.all);
        if all.len() >= DEPARTED_MAX {
            drop(all);
            departed.stats.drop_points(Dropped::Full, 1);
            return;
        }
        let extremes = if self.whole {
            self.extremes.clone()
        } else {
            ExtremesState::new()
        };
        all.push(Last {
            at: stamp.at(),
            reading,
            told: self.told.take(),
            extremes,
            since: self
                .sketch
                .as_ref()
                .and_then(|kept| kept.before.as_ref())
                .map(|(_, at)| *at),
            series,
        });
    }
}

impl Collector {
    /// Attaches itself to `bus`: from here on extremes and exponential buckets are kept.
    pub(super) fn attach(bus: &MetricBus, ready: &Ready, stats: &Arc<Stats>) -> Collector {
        let id = next_id();
        let departed = Arc::new(Departed {
            all: Mutex::default(),
            stats: stats.clone(),
        });
        let (delta, exponential) = (ready.delta, ready.exponential);
        let make = {
            let departed = delta.then(|| departed.clone());
            let had_another = bus.inner().was_exported.swap(true, Relaxed);
            move |series: &Arc<SeriesCore>, is_newborn: bool, _: &mut Wakes| -> Box<dyn Listener> {
                let sketch = series.buckets.as_ref().filter(|_| exponential.is_some());
                Box::new(Ear {
                    id,
                    series: Arc::downgrade(series),
                    observed: series.buckets.is_some(),
                    exponential: exponential.is_some(),
                    is_late: delta && had_another && !is_newborn,
                    told: None,
                    departed: departed.clone(),
                    extremes: ExtremesState::new(),
                    whole: false,
                    sketch: sketch.map(|buckets| {
                        buckets.begin_sketch();
                        Kept {
                            buckets: buckets.clone(),
                            before: None,
                        }
                    }),
                })
            }
        };
        let only: fn(&SeriesCore) -> bool = if delta {
            |series| series.meta.kind != MetricKind::Gauge
        } else {
            |series| series.meta.kind == MetricKind::Histogram
        };
        // Nothing is posted: the cells are read.
        let nothing = Arc::new(Mailbox::new(1));
        let watch = Arc::new(Watch::of_export(id, only, Box::new(make), nothing));
        bus.inner().watch(&watch);
        let clock = bus.clock();
        Collector {
            bus: bus.clone(),
            delta,
            exponential,
            resource: encode_resource(&ready.resource),
            batch_points: ready.batch_points,
            batch_bytes: batch_room(ready.queue_bytes) / 4 * 3,
            own_metrics: ready.own_metrics,
            started: nanos_of(clock.wall(clock.now())),
            watch,
            departed,
            pass: None,
        }
    }

    /// Begins to read everything anew.
    pub(super) fn begin(&mut self) {
        let mut gone = std::mem::take(&mut *lock(&self.departed.all));
        gone.sort_by(|a, b| a.series.meta.name.cmp(&b.series.meta.name));
        self.pass = Some(Pass {
            gone: gone.into(),
            families: self.bus.inner().families().into_iter(),
            family: None,
            own: None,
            resumed: false,
        });
    }

    /// Whether there is something left to be read since [`begin`](Collector::begin).
    pub(super) fn is_at_work(&self) -> bool {
        self.pass.is_some()
    }

    /// Reads as much as goes into one request; the next call goes on there. `None`: there was nothing to tell. What is
    /// not read yet stays where it is: deltas in their metrics.
    pub(super) fn next(&mut self) -> Option<Request> {
        let mut pass = self.pass.take()?;
        let clock = self.bus.clock();
        let at = clock.now();
        let date = nanos_of(clock.wall(at));
        let now = Moment { at, date };
        let mut encoder = Encoder::new(&self.resource, self.batch_points, self.batch_bytes);
        let is_over = self.fill(&mut pass, &mut encoder, now);
        let request = encoder.finish();
        if !is_over {
            pass.resumed = true;
            self.pass = Some(pass);
        }
        request
    }

    /// Until the request is full, or (`true`) everything was read.
    fn fill(&self, pass: &mut Pass, encoder: &mut Encoder<'_>, now: Moment) -> bool {
        while let Some(last) = pass.gone.pop_front() {
            let shape = self.shape(&last.series.meta);
            self.last(encoder, &last, now.date);
            let next = pass.gone.front().map(|next| &next.series.meta);
            let is_full = encoder.is_full();
            if is_full || next.is_none_or(|next| !Arc::ptr_eq(next, &last.series.meta)) {
                encoder.end(&shape);
            }
            if is_full {
                return false;
            }
        }
        loop {
            let Some((family, left)) = &mut pass.family else {
                let Some(family) = pass.families.next() else {
                    break;
                };
                if !family.meta.mirrored {
                    // Asking an ear may wake others, which is not to happen under the family's lock.
                    let children = family.children().into_iter();
                    pass.family = Some((family, children));
                }
                continue;
            };
            let shape = self.shape(&family.meta);
            for series in left.by_ref() {
                if pass.resumed && series.cell.is_retired() {
                    continue;
                }
                self.series(encoder, &shape, &series, now);
                if encoder.is_full() {
                    encoder.end(&shape);
                    return false;
                }
            }
            encoder.end(&shape);
            pass.family = None;
        }
        if self.own_metrics {
            let own = pass
                .own
                .get_or_insert_with(|| self.bus.self_families().into());
            while let Some(family) = own.front_mut() {
                if !self.own(encoder, family, now.date) {
                    return false;
                }
                own.pop_front();
            }
        }
        true
    }

    fn shape<'a>(&self, meta: &'a crate::desc::Meta) -> Shape<'a> {
        Shape {
            name: &meta.name,
            help: &meta.help,
            unit: meta.unit.as_deref(),
            form: Form::of(meta.kind, self.exponential.is_some()),
            delta: self.delta,
        }
    }

    fn series(
        &self,
        encoder: &mut Encoder<'_>,
        shape: &Shape<'_>,
        series: &Arc<SeriesCore>,
        now: Moment,
    ) {
        // One that was made while others were read is told of next time.
        if series.born() > now.at {
            return;
        }
        let tags = Tags::Text(&series.text);
        if shape.form == Form::Gauge {
            let value = f64::from_bits(series.cell.load());
            // Nobody has measured it yet, and so there is nothing to report.
            if !is_unmeasured(value) {
                encoder.point(|out| {
                    write_number(out, tags, None, now.date, Number::Real(value), &[]);
                });
            }
            return;
        }
        let born = nanos_of(series.meta.clock.date(series.born()));
        let now = now.date;
        let exemplars = if series.exemplars.get().is_some() {
            series.exemplars()
        } else {
            Vec::new()
        };
        if self.delta {
            self.delta(encoder, series, (born, now), &exemplars);
        } else {
            self.total(encoder, series, (born, now), &exemplars);
        }
    }

    fn total(
        &self,
        encoder: &mut Encoder<'_>,
        series: &Arc<SeriesCore>,
        (born, now): (u64, u64),
        exemplars: &[(Option<usize>, Exemplar)],
    ) {
        if series.buckets.is_none() {
            let value = number(series.cell.load(), series.meta.numbers);
            let tags = Tags::Text(&series.text);
            encoder.point(|out| {
                write_number(out, tags, Some(born), now.max(born), value, exemplars);
            });
            return;
        }
        let Some(mut reading) = Reading::of(series, self.exponential.is_some()) else {
            return;
        };
        // The extremes after the counts: none of what was counted is missing among them, but what is on its way to them.
        let mut look = Question::Look {
            extremes: None,
            before: None,
        };
        series.ask(self.watch.id, &mut look);
        let Question::Look { extremes, before } = look else {
            return;
        };
        let mut start = born;
        let is_first = before.is_none();
        if let Some((before, at)) = before {
            reading = reading.since(&before, series.meta.numbers);
            start = nanos_of(series.meta.clock.date(at));
        }
        let span = Span64 {
            start,
            end: now.max(start),
        };
        let extremes = extremes.and_then(|extremes| extremes.get());
        let exemplars = within(exemplars, span, is_first);
        self.observed(encoder, series, span, &reading, extremes, &exemplars);
    }

    fn delta(
        &self,
        encoder: &mut Encoder<'_>,
        series: &Arc<SeriesCore>,
        (born, now): (u64, u64),
        exemplars: &[(Option<usize>, Exemplar)],
    ) {
        let is_histogram = series.buckets.is_some();
        let mut extremes = None;
        if is_histogram {
            let mut anew = Question::Anew(None);
            let mut wakes = Wakes::new();
            series.visit(self.watch.id, &mut wakes, |listener, _| {
                listener.ask(&mut anew);
            });
            wake_all(&mut wakes);
            if let Question::Anew(seen) = anew {
                extremes = seen;
            }
        }
        let Some(reading) = Reading::of(series, self.exponential.is_some()) else {
            return;
        };
        if let Some(seen) = &mut extremes {
            // What was observed between the two looks is counted, and its extremes are those of the next point, too.
            let mut look = Question::Look {
                extremes: None,
                before: None,
            };
            series.ask(self.watch.id, &mut look);
            if let Question::Look {
                extremes: Some(later),
                ..
            } = look
                && let Some((min, max)) = later.get()
            {
                seen.step(min);
                seen.step(max);
            }
        }
        let mut tell = Question::Tell(Some((reading.clone(), now.max(born))));
        if !series.ask(self.watch.id, &mut tell) {
            // It was removed meanwhile, and its last delta is told of among those of the departed.
            return;
        }
        let Question::Tell(told) = tell else {
            return;
        };
        let extremes = extremes.and_then(|extremes| extremes.get());
        self.difference(
            encoder,
            series,
            (born, now),
            reading,
            told,
            extremes,
            exemplars,
        );
    }

    /// A point of what has come since `told`, if anything has.
    #[allow(clippy::too_many_arguments)]
    fn difference(
        &self,
        encoder: &mut Encoder<'_>,
        series: &Arc<SeriesCore>,
        (born, now): (u64, u64),
        reading: Reading,
        told: Option<(Reading, u64)>,
        extremes: Option<(f64, f64)>,
        exemplars: &[(Option<usize>, Exemplar)],
    ) {
        let is_first = told.is_none();
        let (reading, start) = match told {
            Some((earlier, at)) => (reading.since(&earlier, series.meta.numbers), at),
            None => (reading, born),
        };
        if reading.is_nothing() {
            return;
        }
        let span = Span64 {
            start,
            end: now.max(start),
        };
        let newer = within(exemplars, span, is_first);
        if let Reading::Counter(bits) = reading {
            let value = number(bits, series.meta.numbers);
            let tags = Tags::Text(&series.text);
            encoder.point(|out| {
                write_number(out, tags, Some(span.start), span.end, value, &newer);
            });
            return;
        }
        self.observed(encoder, series, span, &reading, extremes, &newer);
    }

    #[allow(clippy::too_many_arguments)]
    fn observed(
        &self,
        encoder: &mut Encoder<'_>,
        series: &Arc<SeriesCore>,
        span: Span64,
        reading: &Reading,
        extremes: Option<(f64, f64)>,
        exemplars: &[(Option<usize>, Exemplar)],
    ) {
        let tags = Tags::Text(&series.text);
        match reading {
            Reading::Counter(_) => {}
            Reading::Explicit { counts, sum } => {
                let count = counts.iter().sum();
                let bounds = &series.meta.bounds;
                // Where nobody knows the least one, it may be in a bucket that holds nothing else.
                let mut buckets = bounds.iter().zip(counts);
                let is_below = extremes.is_some_and(|(min, _)| min < 0.0)
                    || buckets.any(|(bound, count)| *bound < 0.0 && *count > 0);
                let seen = Observed {
                    count,
                    sum: (!is_below).then_some(*sum),
                    extremes: extremes.filter(|_| count > 0),
                };
                encoder.point(|out| {
                    write_histogram(out, tags, span, seen, counts, bounds, exemplars);
                });
            }
            Reading::Exponential { weights, sum } => {
                let buckets = weights.exponential(self.exponential.unwrap_or(4));
                let spans = [&buckets.positive, &buckets.negative];
                let counts = spans.into_iter().flat_map(|span| &span.counts);
                let count = buckets.zero + counts.sum::<u64>();
                let seen = Observed {
                    count,
                    sum: buckets.negative.counts.is_empty().then_some(*sum),
                    extremes: extremes.filter(|_| count > 0),
                };
                encoder.point(|out| {
                    write_exponential(out, tags, span, seen, &buckets, exemplars);
                });
            }
        }
    }

    /// The last delta of a removed series.
    fn last(&self, encoder: &mut Encoder<'_>, last: &Last, now: u64) {
        let series = &last.series;
        let clock = &series.meta.clock;
        let at = nanos_of(clock.wall(last.at)).min(now);
        let born = nanos_of(clock.date(last.since.unwrap_or(series.born())));
        self.difference(
            encoder,
            series,
            (born, at),
            last.reading.clone(),
            last.told.clone(),
            last.extremes.get(),
            &series.exemplars(),
        );
    }

    /// What the bus counts of itself: always totals. `false`: the request is full.
    fn own(&self, encoder: &mut Encoder<'_>, family: &mut FamilySnapshot, now: u64) -> bool {
        let shape = Shape {
            name: &family.name,
            help: &family.help,
            unit: family.unit.as_deref(),
            form: Form::of(family.kind, false),
            delta: false,
        };
        let span = Span64 {
            start: self.started,
            end: now.max(self.started),
        };
        while let Some(series) = family.series.pop() {
            let tags = Tags::Pairs(&series.labels);
            match &series.value {
                SampleValue::Gauge(value) => encoder.point(|out| {
                    write_number(out, tags, None, now, Number::Real(*value), &[]);
                }),
                SampleValue::Counter(value) => {
                    let value = match value {
                        crate::Value::U64(value) => Number::Whole(*value),
                        crate::Value::F64(value) => Number::Real(*value),
                    };
                    encoder.point(|out| {
                        write_number(out, tags, Some(span.start), span.end, value, &[]);
                    });
                }
                SampleValue::Histogram(seen) => {
                    let mut before = 0;
                    let counts: Vec<u64> = seen
                        .buckets
                        .iter()
                        .map(|(_, n)| n - std::mem::replace(&mut before, *n))
                        .collect();
                    let bounds: Vec<f64> = seen.buckets.iter().map(|(bound, _)| *bound).collect();
                    let bounds = &bounds[..bounds.len().saturating_sub(1)];
                    let observed = Observed {
                        count: seen.count,
                        sum: Some(seen.sum),
                        extremes: None,
                    };
                    encoder.point(|out| {
                        write_histogram(out, tags, span, observed, &counts, bounds, &[]);
                    });
                }
            }
            if encoder.is_full() {
                encoder.end(&shape);
                return false;
            }
        }
        encoder.end(&shape);
        true
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.bus.inner().unwatch(&self.watch);
    }
}

fn number(bits: u64, numbers: Numbers) -> Number {
    match numbers {
        Numbers::Whole => Number::Whole(bits),
        Numbers::Amount | Numbers::Real => Number::Real(f64::from_bits(bits)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use opentelemetry_proto::tonic::{
        collector::metrics::v1::ExportMetricsServiceRequest, metrics::v1::metric::Data,
    };
    use prost::Message;

    use super::*;
    use crate::{Clock, backend::otlp::OtlpOptions};

    const SECOND: u64 = 1_000_000_000;

    /// Start and end of the points of counters.
    fn spans(collector: &Collector, now: Moment) -> Vec<(u64, u64)> {
        let mut encoder = Encoder::new(&[], 100, 100_000);
        for family in collector.bus.inner().families() {
            let shape = collector.shape(&family.meta);
            for series in family.children() {
                collector.series(&mut encoder, &shape, &series, now);
            }
            encoder.end(&shape);
        }
        let Some(request) = encoder.finish() else {
            return Vec::new();
        };
        let request = ExportMetricsServiceRequest::decode(&*request.body).unwrap();
        let metrics = &request.resource_metrics[0].scope_metrics[0].metrics;
        let points = metrics.iter().flat_map(|metric| match &metric.data {
            Some(Data::Sum(sum)) => &sum.data_points[..],
            _ => &[],
        });
        points
            .map(|point| (point.start_time_unix_nano, point.time_unix_nano))
            .collect()
    }

    #[test]
    fn the_start_of_a_series_stays_when_it_is_read_while_it_is_made_or_the_clock_is_set_back() {
        for delta in [false, true] {
            let clock = Clock::manual();
            clock.advance(Duration::from_secs(100));
            let bus = MetricBus::builder().clock(clock.clone()).build();
            let mut ready = OtlpOptions::new().ready().unwrap();
            ready.delta = delta;
            let stats = Arc::new(Stats::new(String::new(), 1));
            let collector = Collector::attach(&bus, &ready, &stats);
            let moment = |date| Moment {
                at: clock.now(),
                date: date * SECOND,
            };
            let early = moment(100);
            clock.advance(Duration::from_secs(1));
            let counter = bus.counter("c_total", "c").unwrap();
            counter.inc();
            assert_eq!(spans(&collector, early), []);
            // A minute too early, by the machine's clock.
            assert_eq!(
                spans(&collector, moment(40)),
                [(101 * SECOND, 101 * SECOND)]
            );
            counter.inc();
            assert_eq!(
                spans(&collector, moment(102)),
                [(101 * SECOND, 102 * SECOND)]
            );
            counter.inc();
            let (start, end) = if delta { (102, 102) } else { (101, 101) };
            assert_eq!(
                spans(&collector, moment(50)),
                [(start * SECOND, end * SECOND)]
            );
        }
    }
}
