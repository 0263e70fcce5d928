//! From marked series to frames: takes the marks of a forwarding, reads the values, and remembers what has not been
//! confirmed yet. Sends nothing.

use std::{
    collections::{HashMap, VecDeque},
    mem,
    sync::{Arc, Weak},
};

use super::{
    ear::{Departed, Ears, unix_nanos},
    marks::GONE_MAX,
};
use crate::{
    bus::Inner,
    desc::Meta,
    labels,
    mirror::read_value,
    nats::wire::frame::{Frame, FrameMetric, FramePoint, FrameValue},
    series::SeriesCore,
};

/// What one forwarding has to tell, and what it has told.
///
/// Work comes in rounds: [`begin`](Teller::begin) takes what is marked, [`frame`](Teller::frame) makes a frame of the
/// next part of it until there is no more. What was told in a round after the last one confirmed may have been lost with
/// a connection, and is told again.
pub(super) struct Teller {
    ears: Arc<Ears>,
    bus: Weak<Inner>,
    round: u64,
    confirmed: u64,
    list: Vec<u32>,
    /// Where on the list it is.
    next: usize,
    gone: Vec<Departed>,
    /// With the round in which it was told, oldest first.
    told_gone: VecDeque<(u64, Departed)>,
    /// Of those, how many more were told since the last confirmation.
    told_gone_forgotten: u64,
}

impl Teller {
    pub(super) fn new(ears: Arc<Ears>, bus: Weak<Inner>) -> Teller {
        Teller {
            ears,
            bus,
            round: 0,
            confirmed: 0,
            list: Vec::new(),
            next: 0,
            gone: Vec::new(),
            told_gone: VecDeque::new(),
            told_gone_forgotten: 0,
        }
    }

    /// Begins a round. How many series have gone of which nothing can be told but that.
    pub(super) fn begin(&mut self) -> u64 {
        self.abandon();
        self.round += 1;
        self.ears.marks.take(&mut self.list);
        self.next = 0;
        let gone = self.ears.marks.take_gone();
        self.gone = gone.all;
        gone.forgotten
    }

    /// The next frame of this round, of about so many series; `None`: there are no more.
    pub(super) fn frame(&mut self, series_max: usize) -> Option<Frame> {
        let mut frame = Builder::default();
        while frame.points < series_max {
            let Some(&number) = self.list.get(self.next) else {
                break;
            };
            self.next += 1;
            self.tell(number, &mut frame);
        }
        while frame.points < series_max {
            let Some(departed) = self.gone.pop() else {
                break;
            };
            self.tell_gone(departed, &mut frame);
        }
        if frame.points == 0 {
            // All that was marked has gone meanwhile, or there was nothing to tell.
            return None;
        }
        let clock = &self.bus.upgrade()?.clock;
        Some(frame.finish(unix_nanos(clock.wall(clock.now()))))
    }

    fn tell(&mut self, number: u32, frame: &mut Builder) {
        let Some((member, told_before)) = self.ears.marks.tell(number, self.round) else {
            return;
        };
        let Some(core) = member.core.upgrade() else {
            return;
        };
        match self.ears.read(&core) {
            Ok(Some(value)) => frame.push(&core, member.born, FrameValue::Value(value)),
            // It was set back to what it was before it was first set.
            Ok(None) if told_before => frame.push(&core, member.born, FrameValue::Removed),
            Ok(None) | Err(_) => {}
        }
    }

    /// A series that has gone is told to have, unless there is another of its name and labels by now, or another
    /// forwarding has it.
    fn tell_gone(&mut self, departed: Departed, frame: &mut Builder) {
        let core = &departed.core;
        let there = self
            .bus
            .upgrade()
            .and_then(|bus| bus.find(&core.meta.name, &core.text));
        if there.is_some_and(|c| self.ears.births.has(&c) && read_value(&c).is_some()) {
            return;
        }
        frame.push(core, departed.born, FrameValue::Removed);
        if self.told_gone.len() == GONE_MAX {
            self.told_gone.pop_front();
            self.told_gone_forgotten += 1;
        }
        self.told_gone.push_back((self.round, departed));
    }

    /// What is left of this round is marked again.
    pub(super) fn abandon(&mut self) {
        let left = self.list.get(self.next..).unwrap_or_default();
        self.ears.marks.put_back(left);
        self.list.clear();
        self.next = 0;
        if !self.gone.is_empty() {
            self.ears.marks.put_back_gone(mem::take(&mut self.gone), 0);
        }
    }

    /// The number of the round that was begun last.
    pub(super) fn round(&self) -> u64 {
        self.round
    }

    /// Whether all that was told is known to have arrived.
    pub(super) fn is_confirmed(&self) -> bool {
        self.confirmed >= self.round
    }

    /// All that was told up to this round has arrived.
    pub(super) fn confirm(&mut self, round: u64) {
        self.confirmed = self.confirmed.max(round);
        while self.told_gone.front().is_some_and(|(r, _)| *r <= round) {
            self.told_gone.pop_front();
        }
        if self.told_gone.is_empty() {
            self.told_gone_forgotten = 0;
        }
    }

    /// What was told since the last confirmation may be lost: it is marked again.
    pub(super) fn doubt(&mut self) {
        self.ears.marks.mark_told_after(self.confirmed);
        let gone = mem::take(&mut self.told_gone);
        let forgotten = mem::take(&mut self.told_gone_forgotten);
        if forgotten > 0 || !gone.is_empty() {
            let gone = gone.into_iter().map(|(_, departed)| departed).collect();
            self.ears.marks.put_back_gone(gone, forgotten);
        }
    }
}

/// A frame in the making.
#[derive(Default)]
pub(super) struct Builder {
    metrics: Vec<FrameMetric>,
    /// By where their declarations lie.
    by_meta: HashMap<usize, usize>,
    pub(super) points: usize,
}

impl Builder {
    pub(super) fn push(&mut self, core: &SeriesCore, born: u64, value: FrameValue) {
        let at = *self
            .by_meta
            .entry(Arc::as_ptr(&core.meta).addr())
            .or_insert_with(|| {
                self.metrics.push(metric(&core.meta));
                self.metrics.len() - 1
            });
        if let Some(metric) = self.metrics.get_mut(at) {
            metric.points.push(FramePoint {
                labels: labels::pairs(&core.text),
                born,
                value,
            });
            self.points += 1;
        }
    }

    /// `at`: in nanoseconds since 1970.
    pub(super) fn finish(self, at: u64) -> Frame {
        Frame {
            at,
            metrics: self.metrics,
        }
    }
}

fn metric(meta: &Meta) -> FrameMetric {
    FrameMetric {
        name: meta.name.to_string(),
        help: meta.help.clone(),
        unit: meta.unit.clone(),
        kind: meta.kind,
        numbers: meta.numbers,
        bounds: meta.bounds.to_vec(),
        points: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, Ordering},
        time::Duration,
    };

    use super::*;
    use crate::{
        Buckets, Clock, Counter, Delta, Desc, Gauge, MetricBus,
        cell::Listener,
        mailbox::Mailbox,
        mirror::MirrorValue,
        nats::forwarder::frames::{births::Births, marks::Marks},
        selector::IntoSelector,
        stats::next_id,
        watch::Watch,
    };

    /// A forwarding without anybody to send to.
    struct Bench {
        bus: MetricBus,
        watch: Arc<Watch>,
        teller: Teller,
    }

    const BOOT: u64 = 77;

    fn bench(bus: &MetricBus, births: &Arc<Births>, deadband: Option<Delta>) -> Bench {
        let ears = Arc::new(Ears {
            id: next_id(),
            deadband: deadband.map(|delta| delta.distance().unwrap()),
            marks: Marks::new(),
            births: births.clone(),
            boot: BOOT,
        });
        let make = {
            let ears = ears.clone();
            move |series: &Arc<SeriesCore>, newborn: bool, _: &mut crate::cell::Wakes| {
                let ear: Box<dyn Listener> = ears.ear(series, newborn);
                ear
            }
        };
        let all = crate::Selector::all().into_selector().unwrap();
        let nothing = Arc::new(Mailbox::new(1));
        let watch = Arc::new(Watch::of_forwarding(ears.id, all, Box::new(make), nothing));
        bus.inner().watch(&watch);
        Bench {
            bus: bus.clone(),
            watch,
            teller: Teller::new(ears, Arc::downgrade(bus.inner())),
        }
    }

    fn quiet_bus() -> MetricBus {
        MetricBus::builder().clock(Clock::manual()).build()
    }

    impl Bench {
        /// Name and labels of each series that is told in a round, with what is said of it.
        fn round(&mut self) -> Vec<(String, FrameValue)> {
            self.points()
                .into_iter()
                .map(|(name, point)| (name, point.value))
                .collect()
        }

        fn points(&mut self) -> Vec<(String, FramePoint)> {
            assert_eq!(self.teller.begin(), 0);
            let mut all = Vec::new();
            while let Some(frame) = self.teller.frame(3) {
                for metric in frame.metrics {
                    for point in metric.points {
                        let labels: Vec<_> = point.labels.iter().map(|(_, v)| v.as_str()).collect();
                        all.push((format!("{}{}", metric.name, labels.concat()), point));
                    }
                }
            }
            all.sort_by(|a, b| a.0.cmp(&b.0));
            all
        }
    }

    fn whole(name: &str, n: u64) -> (String, FrameValue) {
        (name.to_owned(), FrameValue::Value(MirrorValue::Whole(n)))
    }

    fn real(name: &str, v: f64) -> (String, FrameValue) {
        (name.to_owned(), FrameValue::Value(MirrorValue::Real(v)))
    }

    fn removed(name: &str) -> (String, FrameValue) {
        (name.to_owned(), FrameValue::Removed)
    }

    #[test]
    fn a_series_is_told_when_it_comes_and_when_it_has_changed_and_not_otherwise() {
        let bus = quiet_bus();
        let old = bus.counter("old_total", "Of a test.").unwrap();
        old.inc_by(5);
        let mut bench = bench(&bus, &Arc::default(), None);
        assert_eq!(bench.round(), [whole("old_total", 5)]);
        assert_eq!(bench.round(), []);
        let new = bus.gauge("new", "Of a test.").unwrap();
        // Never set, so there is nothing to tell.
        assert_eq!(bench.round(), []);
        new.set(0.0);
        old.inc();
        old.inc();
        assert_eq!(bench.round(), [real("new", 0.0), whole("old_total", 7)]);
        new.set(1.0);
        new.set(0.0);
        assert_eq!(bench.round(), [real("new", 0.0)]);
        new.set(0.0);
        assert_eq!(bench.round(), []);
        // Which is 0.
        new.set(-0.0);
        assert_eq!(bench.round(), []);
        new.set(2.0);
        bench.round();
        new.set(-0.0);
        assert_eq!(bench.round(), [real("new", 0.0)]);
    }

    #[test]
    fn within_the_deadband_of_what_was_told_a_gauge_is_not_told() {
        let bus = quiet_bus();
        let gauge = bus.gauge("g", "Of a test.").unwrap();
        gauge.set(1.0);
        let mut bench = bench(&bus, &Arc::default(), Some(Delta::absolute(0.5)));
        assert_eq!(bench.round(), [real("g", 1.0)]);
        gauge.set(1.4);
        assert_eq!(bench.round(), []);
        gauge.set(1.5);
        gauge.set(1.2);
        assert_eq!(bench.round(), [real("g", 1.2)]);
        gauge.set(1.6);
        assert_eq!(bench.round(), []);
        gauge.set(f64::NAN);
        let told = bench.round();
        assert!(
            matches!(told[..], [(_, FrameValue::Value(MirrorValue::Real(v)))] if v.is_nan()),
            "{told:?}"
        );
    }

    #[test]
    fn a_histogram_is_told_whole_with_its_sketch() {
        let bus = quiet_bus();
        let buckets = Buckets::new([1.0]).unwrap();
        let histogram = bus.histogram("h", "Of a test.", buckets).unwrap();
        histogram.observe(0.5);
        let mut bench = bench(&bus, &Arc::default(), None);
        histogram.observe(0.5);
        histogram.observe(8.0);
        histogram.observe(8.0);
        let told = bench.round();
        let [
            (
                _,
                FrameValue::Value(MirrorValue::Histogram {
                    counts,
                    sum,
                    sketch,
                }),
            ),
        ] = &told[..]
        else {
            panic!("{told:?}");
        };
        assert_eq!((&counts[..], *sum), (&[2, 2][..], 17.0));
        // Kept from when it was first forwarded.
        let counted: Vec<_> = sketch.iter().map(|(_, n)| *n).collect();
        assert_eq!(counted, [1, 2]);
        assert_eq!(bench.round(), []);
        histogram.observe(8.0);
        assert_eq!(bench.round().len(), 1);
    }

    #[test]
    fn what_was_removed_is_told_to_be_gone_unless_nobody_was_told_of_it() {
        let bus = quiet_bus();
        let family = bus
            .family::<Counter>(Desc::new("c_total", "Of a test.").labels(["l"]))
            .unwrap();
        let of = |l: &str| family.with_label_values(&[l]).unwrap();
        let mut bench = bench(&bus, &Arc::default(), None);
        of("a").inc();
        of("b").inc();
        bench.round();
        of("c").inc();
        bus.remove("c_total").unwrap();
        assert_eq!(bench.round(), [removed("c_totala"), removed("c_totalb")]);
        assert_eq!(bench.teller.ears.marks.len(), 0);
        assert_eq!(bench.teller.ears.births.len(), 0);
    }

    #[test]
    fn what_was_removed_and_made_again_is_told_as_born_again() {
        let bus = quiet_bus();
        let family = bus
            .family::<Gauge>(Desc::new("g", "Of a test.").labels(["l"]))
            .unwrap();
        let mut bench = bench(&bus, &Arc::default(), None);
        bus.clock().advance(Duration::from_secs(1));
        family.with_label_values(&["a"]).unwrap().set(1.0);
        assert_eq!(bench.points()[0].1.born, 1_000_000_000);
        bus.clock().advance(Duration::from_secs(1));
        bus.remove("g").unwrap();
        let again = family.with_label_values(&["a"]).unwrap();
        // It is there again, and has no value yet.
        assert_eq!(bench.round(), [removed("ga")]);
        again.set(2.0);
        let told = bench.points();
        assert_eq!((told.len(), told[0].1.born), (1, 2_000_000_000));
        bus.remove("g").unwrap();
        family.with_label_values(&["a"]).unwrap().set(3.0);
        assert_eq!(bench.round(), [real("ga", 3.0)]);
    }

    #[test]
    fn series_older_than_the_forwarding_are_as_old_as_the_forwarder_in_all_forwardings() {
        let bus = quiet_bus();
        bus.gauge("old", "Of a test.").unwrap().set(1.0);
        let births = Arc::default();
        let mut first = bench(&bus, &births, None);
        bus.clock().advance(Duration::from_secs(1));
        bus.gauge("young", "Of a test.").unwrap().set(1.0);
        let mut second = bench(&bus, &births, None);
        for bench in [&mut first, &mut second] {
            let born: Vec<_> = bench.points().iter().map(|(_, p)| p.born).collect();
            assert_eq!(born, [BOOT, 1_000_000_000]);
        }
        assert_eq!(births.len(), 2);
    }

    #[test]
    fn a_forwarding_that_ends_tells_so_unless_another_has_its_series() {
        let bus = quiet_bus();
        bus.gauge("g", "Of a test.").unwrap().set(1.0);
        let births = Arc::default();
        let (mut first, mut second) = (bench(&bus, &births, None), bench(&bus, &births, None));
        first.round();
        second.round();
        bus.inner().unwatch(&first.watch);
        assert_eq!(first.round(), []);
        bus.inner().unwatch(&second.watch);
        assert_eq!(second.round(), [removed("g")]);
        assert_eq!(births.len(), 0);
    }

    #[test]
    fn what_was_told_and_not_confirmed_is_told_again() {
        let bus = quiet_bus();
        let family = bus
            .family::<Counter>(Desc::new("c_total", "Of a test.").labels(["l"]))
            .unwrap();
        let of = |l: &str| family.with_label_values(&[l]).unwrap();
        let mut bench = bench(&bus, &Arc::default(), None);
        of("a").inc();
        bench.round();
        bench.teller.confirm(bench.teller.round());
        assert!(bench.teller.is_confirmed());
        of("b").inc();
        of("c").inc();
        bench.round();
        assert!(!bench.teller.is_confirmed());
        bus.remove(r#"c_total{l="c"}"#).unwrap();
        assert_eq!(bench.round(), [removed("c_totalc")]);
        bench.teller.doubt();
        assert_eq!(bench.round(), [whole("c_totalb", 1), removed("c_totalc")]);
        bench.teller.confirm(bench.teller.round());
        bench.teller.doubt();
        assert_eq!(bench.round(), []);
    }

    #[test]
    fn a_round_that_is_broken_off_is_taken_up_again() {
        let bus = quiet_bus();
        let family = bus
            .family::<Counter>(Desc::new("c_total", "Of a test.").labels(["l"]))
            .unwrap();
        for l in 0..10 {
            family.with_label_values(&[&l.to_string()]).unwrap().inc();
        }
        let mut bench = bench(&bus, &Arc::default(), None);
        bench.teller.begin();
        assert!(bench.teller.frame(3).is_some());
        bench.teller.abandon();
        assert_eq!(bench.round().len(), 7);
    }

    #[test]
    fn what_is_mirrored_from_elsewhere_is_not_sent_on() {
        let bus = quiet_bus();
        let mut bench = bench(&bus, &Arc::default(), None);
        let shape = crate::mirror::MirrorShape {
            name: "far_total".to_owned(),
            help: String::new(),
            unit: None,
            kind: crate::MetricKind::Counter,
            numbers: crate::desc::Numbers::Whole,
            bounds: Vec::new(),
        };
        let far = crate::mirror::Mirror::new(&bus).family(&shape).unwrap();
        let _far = far.series(&[], &MirrorValue::Whole(3), false);
        bus.counter("near_total", "Of a test.").unwrap().inc();
        assert_eq!(bench.round(), [whole("near_total", 1)]);
        assert_eq!(bench.bus.series("far_total").unwrap().len(), 1);
    }

    /// However threads and rounds interleave, what was told last is the value.
    #[test]
    fn no_change_is_lost_between_threads_that_mutate_and_rounds() {
        const SERIES: u64 = 8;
        const EACH: u64 = 30_000;
        let bus = MetricBus::new();
        let counters = bus
            .family::<Counter>(Desc::new("c_total", "Of a test.").labels(["l"]))
            .unwrap();
        let gauges = bus
            .family::<Gauge>(Desc::new("g", "Of a test.").labels(["l"]))
            .unwrap();
        let histogram = bus
            .histogram("h", "Of a test.", Buckets::new([2.0]).unwrap())
            .unwrap();
        let mut bench = bench(&bus, &Arc::default(), None);
        let mut told: HashMap<String, FrameValue> = HashMap::new();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..3)
                .map(|thread| {
                    let (counters, gauges, histogram) = (&counters, &gauges, &histogram);
                    scope.spawn(move || {
                        for i in 0..EACH {
                            let l = ((i + thread) % SERIES).to_string();
                            counters.with_label_values(&[&l]).unwrap().inc();
                            let gauge = gauges.with_label_values(&[&l]).unwrap();
                            gauge.set((i * 3 + thread) as f64);
                            histogram.observe((i % 5) as f64);
                        }
                    })
                })
                .collect();
            let teller = scope.spawn(|| {
                // Told after they were done, it is told once more.
                loop {
                    let last = done.load(Ordering::Acquire);
                    told.extend(bench.round());
                    if last {
                        return told;
                    }
                }
            });
            for thread in threads {
                thread.join().unwrap();
            }
            done.store(true, Ordering::Release);
            let told = teller.join().unwrap();
            let mut sum = 0;
            for l in 0..SERIES {
                let l = l.to_string();
                let counter = counters.with_label_values(&[&l]).unwrap().get();
                sum += counter;
                assert_eq!(told[&format!("c_total{l}")], whole("", counter).1);
                let gauge = gauges.with_label_values(&[&l]).unwrap().get().unwrap();
                assert_eq!(told[&format!("g{l}")], real("", gauge).1);
            }
            assert_eq!(sum, 3 * EACH);
            let FrameValue::Value(MirrorValue::Histogram {
                counts,
                sum,
                sketch,
            }) = &told["h"]
            else {
                panic!("{:?}", told["h"]);
            };
            assert_eq!(counts.iter().sum::<u64>(), 3 * EACH);
            assert_eq!(*sum, (3 * EACH * 2) as f64);
            assert_eq!(sketch.iter().map(|(_, n)| n).sum::<u64>(), 3 * EACH);
        });
    }
}
