//! Frames of series that are known, without taking them apart: the bytes that say which series a value is of are the same in
//! each frame of a source, so they lead to it at once, and nothing is allocated.
//!
//! Nothing is believed here that was not read and checked before: a metric's head, a point's labels, who the source is, all
//! have to be, byte by byte, what [`decode_frame`](crate::nats::wire::frame::decode_frame) has accepted. Whatever is not of
//! that kind, such as histograms, new series, removed ones and odd orders of fields, is left over, for that to read.
//!
//! A thousand sources with fifty series and ten frames a second are half a million values a second.

use hashbrown::HashMap;

use crate::mirror::MirrorValue;

/// Wire types of protocol buffers.
const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const LEN: u8 = 2;

/// How a metric's numbers are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// A gauge: as doubles.
    Real,
    /// A counter: as integers.
    Whole,
    /// A counter: as doubles.
    Amount,
}

impl Written {
    /// `None`: it is not written as usual, or can't be.
    fn read(self, number: Number) -> Option<MirrorValue> {
        // From here on integers are written as doubles.
        const INT_MAX: f64 = 9_223_372_036_854_775_808.0;
        match (self, number) {
            (Written::Real, Number::Double(v)) => Some(MirrorValue::Real(v)),
            (Written::Amount, Number::Double(d)) if (0.0..INT_MAX).contains(&d) => {
                Some(MirrorValue::Amount(d))
            }
            (Written::Whole, Number::Int(n)) => u64::try_from(n).ok().map(MirrorValue::Whole),
            _ => None,
        }
    }
}

/// A number of a point.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Number {
    Double(f64),
    Int(i64),
}

/// A point as it lies in a frame.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Point<'a> {
    /// The fields that say its labels.
    labels: &'a [u8],
    born: u64,
    number: Number,
}

/// What leads to the series of one source.
#[derive(Default)]
pub(super) struct Paths {
    /// Who the source is.
    resource: Vec<u8>,
    /// By all of a metric before its points.
    metrics: HashMap<Box<[u8]>, MetricPaths>,
}

/// What leads to the series of one metric.
struct MetricPaths {
    written: Written,
    /// What comes after the points.
    tail: Box<[u8]>,
    /// By the fields that say the labels: where it is kept, and its number there.
    series: HashMap<Box<[u8]>, Place>,
}

/// Where a series is kept, and which one that was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) slot: u32,
    pub(super) number: u64,
}

/// Whoever keeps the series of a source.
pub(super) trait Atlas {
    /// How the metric of this name is written; `None`: there is none, or it is of another kind.
    fn written(&self, metric: &str) -> Option<Written>;
    /// Where the series is whose labels these fields of a point say.
    fn find(&self, metric: &str, labels: &[u8]) -> Option<Place>;
    /// Whether the series that was in this place still is.
    fn is_there(&self, place: Place) -> bool;
}

/// The most ways to one metric's series that are remembered; far more than there are series in a sane one.
const PATHS_MAX: usize = 20_000;

impl Paths {
    /// Takes over what it can: `set` is told each value and since when its series is there, and says whether it was taken. What is left over, as a frame of its
    /// own; `Some` of nothing, where that is all. `None`: this is no frame of a kind that is known here.
    pub(super) fn take(
        &self,
        frame: &[u8],
        mut set: impl FnMut(Place, u64, &MirrorValue) -> bool,
    ) -> Option<Vec<u8>> {
        let resource_metrics = only(frame, 1)?;
        let mut left = Vec::new();
        let mut resource = None;
        for field in Fields(resource_metrics) {
            let field = field?;
            match (field.tag, field.body) {
                (1, Body::Bytes(body)) if resource.is_none() => {
                    resource = Some(field.raw);
                    if *body != *self.resource {
                        return None;
                    }
                }
                (2, Body::Bytes(scope)) if resource.is_some() => {
                    self.scope(scope, &mut set, &mut left)?;
                }
                _ => return None,
            }
        }
        let resource = resource?;
        if left.is_empty() {
            return Some(left);
        }
        let mut all = Vec::with_capacity(left.len() + resource.len() + 16);
        push_len(&mut all, 1, resource.len() + left.len());
        all.extend_from_slice(resource);
        all.extend_from_slice(&left);
        Some(all)
    }

    fn scope(
        &self,
        scope: &[u8],
        set: &mut impl FnMut(Place, u64, &MirrorValue) -> bool,
        left: &mut Vec<u8>,
    ) -> Option<()> {
        let (mut head, mut over) = (None, Vec::new());
        for field in Fields(scope) {
            let field = field?;
            match (field.tag, field.body) {
                (1, Body::Bytes(_)) if head.is_none() => head = Some(field.raw),
                (2, Body::Bytes(metric)) if head.is_some() => {
                    if self.metric(metric, set).is_none() {
                        over.extend_from_slice(field.raw);
                    }
                }
                _ => return None,
            }
        }
        let head = head?;
        if !over.is_empty() {
            push_len(left, 2, head.len() + over.len());
            left.extend_from_slice(head);
            left.extend_from_slice(&over);
        }
        Some(())
    }

    fn metric(
        &self,
        metric: &[u8],
        set: &mut impl FnMut(Place, u64, &MirrorValue) -> bool,
    ) -> Option<()> {
        let parts = Metric::of(metric)?;
        let paths = self.metrics.get(parts.head)?;
        if *paths.tail != *parts.tail {
            return None;
        }
        let mut all = true;
        for point in parts.points() {
            let point = point?;
            let place = *paths.series.get(point.labels)?;
            let value = paths.written.read(point.number);
            // To say a value twice does no harm: what is read again is the same.
            all &= value.is_some_and(|value| set(place, point.born, &value));
        }
        all.then_some(())
    }

    /// Learns the ways of a frame that was read and applied.
    pub(super) fn learn(&mut self, frame: &[u8], atlas: &impl Atlas) -> Option<()> {
        let resource_metrics = only(frame, 1)?;
        for field in Fields(resource_metrics) {
            let field = field?;
            match (field.tag, field.body) {
                (1, Body::Bytes(body)) => {
                    if *body != *self.resource {
                        self.resource = body.to_vec();
                        self.metrics.clear();
                    }
                }
                (2, Body::Bytes(scope)) => {
                    for field in Fields(scope) {
                        if let (2, Body::Bytes(metric)) = (field?.tag, field?.body) {
                            // One that is not of this kind is always left over.
                            let _ = self.learn_metric(metric, atlas);
                        }
                    }
                }
                _ => return None,
            }
        }
        Some(())
    }

    fn learn_metric(&mut self, metric: &[u8], atlas: &impl Atlas) -> Option<()> {
        let parts = Metric::of(metric)?;
        let written = atlas.written(parts.name)?;
        if parts.sum == (written == Written::Real) {
            return None;
        }
        let room = self.metrics.len() < PATHS_MAX;
        let paths = match self.metrics.get_mut(parts.head) {
            Some(paths) => paths,
            None if room => self
                .metrics
                .entry(parts.head.into())
                .or_insert_with(|| MetricPaths {
                    written,
                    tail: parts.tail.into(),
                    series: HashMap::new(),
                }),
            None => return None,
        };
        if paths.written != written || *paths.tail != *parts.tail {
            paths.written = written;
            paths.tail = parts.tail.into();
            paths.series.clear();
        }
        for point in parts.points() {
            let point = point?;
            let known = paths.series.get(point.labels);
            if known.is_some_and(|place| atlas.is_there(*place)) {
                continue;
            }
            if let Some(place) = atlas.find(parts.name, point.labels) {
                if paths.series.len() >= PATHS_MAX {
                    paths.series.clear();
                }
                paths.series.insert(point.labels.into(), place);
            }
        }
        Some(())
    }

    /// Forgets the ways to series that are there no more.
    pub(super) fn tidy(&mut self, atlas: &impl Atlas) {
        for paths in self.metrics.values_mut() {
            paths.series.retain(|_, place| atlas.is_there(*place));
        }
        self.metrics.retain(|_, paths| !paths.series.is_empty());
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.metrics.values().map(|paths| paths.series.len()).sum()
    }
}

/// The parts of a metric: all before its points, its points, all behind them.
struct Metric<'a> {
    name: &'a str,
    /// Else a gauge.
    sum: bool,
    head: &'a [u8],
    points: &'a [u8],
    tail: &'a [u8],
}

impl<'a> Metric<'a> {
    /// `None`: no gauge and no sum, or in another order.
    fn of(metric: &'a [u8]) -> Option<Metric<'a>> {
        let mut name = None;
        let mut fields = Fields(metric);
        loop {
            let before = metric.len() - fields.0.len();
            let field = fields.next()??;
            let Body::Bytes(body) = field.body else {
                return None;
            };
            match field.tag {
                1 => name = Some(std::str::from_utf8(body).ok()?),
                2 | 3 | 12 => {}
                // A gauge, or a sum: the last.
                5 | 7 if fields.0.is_empty() => {
                    let points = leading(body, 1)?;
                    return Some(Metric {
                        name: name?,
                        sum: field.tag == 7,
                        // With the tag, which tells the one from the other.
                        head: metric.get(..=before)?,
                        points: body.get(..points)?,
                        tail: body.get(points..)?,
                    });
                }
                _ => return None,
            }
        }
    }

    fn points(&self) -> impl Iterator<Item = Option<Point<'a>>> + use<'a> {
        Fields(self.points).map(|field| match field?.body {
            Body::Bytes(point) => point_of(point),
            _ => None,
        })
    }
}

/// `None`: something in it is not of the usual kind.
fn point_of(point: &[u8]) -> Option<Point<'_>> {
    let (mut begin, mut end) = (None, 0);
    let (mut born, mut number) = (0, None);
    let mut fields = Fields(point);
    loop {
        let at = point.len() - fields.0.len();
        let Some(field) = fields.next() else { break };
        let field = field?;
        match (field.tag, field.body) {
            (7, Body::Bytes(_)) => {
                // One after the other.
                if begin.is_some() && end != at {
                    return None;
                }
                begin = begin.or(Some(at));
                end = at + field.raw.len();
            }
            (2, Body::Fixed(time)) => born = time,
            (3, Body::Fixed(_)) => {}
            (4, Body::Fixed(bits)) if number.is_none() => {
                number = Some(Number::Double(f64::from_bits(bits)));
            }
            (6, Body::Fixed(bits)) if number.is_none() => {
                number = Some(Number::Int(bits.cast_signed()));
            }
            // Flags that say nothing.
            (8, Body::Varint(0)) => {}
            _ => return None,
        }
    }
    Some(Point {
        labels: point.get(begin.unwrap_or(0)..end)?,
        born,
        number: number?,
    })
}

/// The body of the one field of a message.
fn only(message: &[u8], tag: u32) -> Option<&[u8]> {
    let mut fields = Fields(message);
    let field = fields.next()??;
    match (field.tag, field.body) {
        (t, Body::Bytes(body)) if t == tag && fields.0.is_empty() => Some(body),
        _ => None,
    }
}

/// How many bytes the fields with this tag take at the beginning of a message.
fn leading(message: &[u8], tag: u32) -> Option<usize> {
    let mut fields = Fields(message);
    loop {
        let at = message.len() - fields.0.len();
        match fields.next() {
            Some(field) if field?.tag == tag => {}
            _ => return Some(at),
        }
    }
}

fn push_len(out: &mut Vec<u8>, tag: u8, len: usize) {
    out.push(tag << 3 | LEN);
    let mut len = len as u64;
    while len >= 0x80 {
        out.push(len as u8 | 0x80);
        len >>= 7;
    }
    out.push(len as u8);
}

/// The fields of a message. `None` where it is none, and nothing after that.
struct Fields<'a>(&'a [u8]);

#[derive(Clone, Copy)]
struct Field<'a> {
    tag: u32,
    body: Body<'a>,
    /// All of it.
    raw: &'a [u8],
}

#[derive(Clone, Copy)]
enum Body<'a> {
    Varint(u64),
    Fixed(u64),
    Bytes(&'a [u8]),
}

impl<'a> Iterator for Fields<'a> {
    type Item = Option<Field<'a>>;

    fn next(&mut self) -> Option<Option<Field<'a>>> {
        if self.0.is_empty() {
            return None;
        }
        let field = read_field(self.0);
        self.0 = match field {
            Some(field) => &self.0[field.raw.len()..],
            None => &[],
        };
        Some(field)
    }
}

fn read_field(bytes: &[u8]) -> Option<Field<'_>> {
    let (key, mut at) = varint(bytes)?;
    let body = match (key & 7) as u8 {
        VARINT => {
            let (value, len) = varint(bytes.get(at..)?)?;
            at += len;
            Body::Varint(value)
        }
        FIXED64 => {
            let fixed: [u8; 8] = bytes.get(at..at + 8)?.try_into().ok()?;
            at += 8;
            Body::Fixed(u64::from_le_bytes(fixed))
        }
        LEN => {
            let (len, prefix) = varint(bytes.get(at..)?)?;
            at += prefix;
            let end = at.checked_add(usize::try_from(len).ok()?)?;
            let body = bytes.get(at..end)?;
            at = end;
            Body::Bytes(body)
        }
        _ => return None,
    };
    Some(Field {
        tag: u32::try_from(key >> 3).ok()?,
        body,
        raw: bytes.get(..at)?,
    })
}

fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0u64;
    for (i, byte) in bytes.iter().take(10).enumerate() {
        // The tenth byte has room for one bit.
        if i == 9 && *byte > 1 {
            return None;
        }
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return Some((value, i + 1));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        Clock, MetricBus, MetricKind, SourceId,
        desc::Numbers,
        mirror::Mirror,
        nats::{
            fleet::shown::Shown,
            wire::frame::{Frame, FrameMetric, FramePoint, FrameValue, decode_frame, encode_frame},
        },
    };

    fn pod() -> SourceId {
        SourceId::new("ns", "c", "pod")
    }

    struct World {
        bus: MetricBus,
        shown: Shown,
        quick: bool,
        /// Bytes that had to be read in full.
        read: usize,
    }

    impl World {
        fn new(quick: bool) -> World {
            let bus = MetricBus::builder().clock(Clock::manual()).build();
            World {
                shown: Shown::new(Mirror::new(&bus), 1_000),
                bus,
                quick,
                read: 0,
            }
        }

        fn replace(&mut self, frame: &Frame) {
            self.shown.replace(&pod(), vec![frame.clone()], false);
        }

        fn apply(&mut self, body: &[u8]) {
            let left = match self.quick {
                true => self.shown.quick(&pod(), body),
                false => None,
            };
            let left = left.as_deref().unwrap_or(body);
            self.read += left.len();
            if let Ok(decoded) = decode_frame(left) {
                self.shown.apply(&pod(), decoded.frame);
            }
            if self.quick {
                self.shown.learn(&pod(), left);
            }
        }

        fn all(&self) -> Vec<String> {
            let series = self.bus.series(r#"{__name__!=""}"#).unwrap();
            let mut all: Vec<String> = series.iter().map(|series| format!("{series:?}")).collect();
            all.sort();
            all
        }
    }

    fn value(kind: u8) -> BoxedStrategy<FrameValue> {
        let value = match kind {
            0 => prop_oneof![any::<f64>(), Just(f64::NAN), Just(-0.0)]
                .prop_map(MirrorValue::Real)
                .boxed(),
            1 => prop_oneof![0u64..9, any::<u64>()]
                .prop_map(MirrorValue::Whole)
                .boxed(),
            2 => prop_oneof![0.0..9.0, 1e18..1e20]
                .prop_map(MirrorValue::Amount)
                .boxed(),
            _ => prop::collection::vec(0u64..5, 3)
                .prop_map(|counts| MirrorValue::Histogram {
                    counts,
                    sum: 1.0,
                    sketch: Vec::new(),
                })
                .boxed(),
        };
        prop_oneof![
            9 => value.prop_map(FrameValue::Value),
            1 => Just(FrameValue::Removed),
        ]
        .boxed()
    }

    fn metric() -> impl Strategy<Value = FrameMetric> {
        (0u8..4).prop_flat_map(|kind| {
            let point = (0u8..4, 1u64..3, value(kind)).prop_map(|(k, born, value)| FramePoint {
                labels: match k {
                    0 => Vec::new(),
                    k => vec![
                        ("k".to_owned(), k.to_string()),
                        ("l".to_owned(), String::new()),
                    ],
                },
                born,
                value,
            });
            prop::collection::vec(point, 1..4).prop_map(move |points| FrameMetric {
                name: format!("m{kind}"),
                help: "Help.".to_owned(),
                unit: None,
                kind: match kind {
                    0 => MetricKind::Gauge,
                    1 | 2 => MetricKind::Counter,
                    _ => MetricKind::Histogram,
                },
                numbers: match kind {
                    1 => Numbers::Whole,
                    2 => Numbers::Amount,
                    _ => Numbers::Real,
                },
                bounds: match kind {
                    3 => vec![1.0, 2.0],
                    _ => Vec::new(),
                },
                points,
            })
        })
    }

    fn frame() -> impl Strategy<Value = Frame> {
        // Nothing is there twice: that would be refused, or not, as it comes.
        prop::collection::vec(metric(), 0..4).prop_map(|mut metrics| {
            metrics.sort_by(|a, b| a.name.cmp(&b.name));
            metrics.dedup_by(|a, b| a.name == b.name);
            for metric in &mut metrics {
                metric.points.sort_by(|a, b| a.labels.cmp(&b.labels));
                metric.points.dedup_by(|a, b| a.labels == b.labels);
            }
            Frame { at: 1, metrics }
        })
    }

    proptest! {
        /// Whether frames are taken as they lie or read in full: what is shown is the same.
        #[test]
        fn the_quick_way_and_the_long_one_lead_to_the_same(frames in prop::collection::vec(frame(), 1..12)) {
            let (mut quick, mut long) = (World::new(true), World::new(false));
            for frame in &frames {
                let body = encode_frame(frame, &pod());
                quick.apply(&body);
                long.apply(&body);
                prop_assert_eq!(quick.all(), long.all());
            }
        }

        #[test]
        fn noise_is_no_frame_and_does_no_harm(
            noise in prop::collection::vec(any::<u8>(), 0..200),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let mut world = World::new(true);
            let body = encode_frame(&gauges(3, 1.0), &pod());
            world.apply(&body);
            world.apply(&body);
            let _ = world.shown.quick(&pod(), &noise);
            let mut mutant = body.clone();
            mutant[at.index(body.len())] = byte;
            world.apply(&mutant);
            mutant.truncate(at.index(body.len()));
            world.apply(&mutant);
        }
    }

    fn gauges(n: usize, value: f64) -> Frame {
        let point = |i: usize| FramePoint {
            labels: vec![("k".to_owned(), i.to_string())],
            born: 1,
            value: FrameValue::Value(MirrorValue::Real(value)),
        };
        let metric = FrameMetric {
            name: "g".to_owned(),
            help: String::new(),
            unit: None,
            kind: MetricKind::Gauge,
            numbers: Numbers::Real,
            bounds: Vec::new(),
            points: (0..n).map(point).collect(),
        };
        Frame {
            at: 1,
            metrics: vec![metric],
        }
    }

    #[test]
    fn what_is_known_is_not_read_again() {
        let mut world = World::new(true);
        world.replace(&gauges(3, 1.0));
        world.apply(&encode_frame(&gauges(3, 2.0), &pod()));
        assert!(world.read > 0);
        world.read = 0;
        world.apply(&encode_frame(&gauges(3, 3.0), &pod()));
        assert_eq!(world.read, 0);
        // A series that was removed is not led to any more.
        world.replace(&gauges(1, 4.0));
        world.apply(&encode_frame(&gauges(3, 5.0), &pod()));
        assert_eq!(world.all().len(), 3);
        assert!(world.all().iter().all(|series| series.ends_with("= 5")));
    }

    #[test]
    fn a_frame_of_another_source_is_not_taken() {
        let mut world = World::new(true);
        world.replace(&gauges(1, 1.0));
        world.apply(&encode_frame(&gauges(1, 1.0), &pod()));
        let other = SourceId::new("ns", "c", "other");
        let body = encode_frame(&gauges(1, 9.0), &other);
        assert_eq!(world.shown.quick(&pod(), &body), None);
        assert!(world.all()[0].ends_with("= 1"));
    }
}
