//! A series: one cell with its name and labels, and the public handle to it.

use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering, fence},
    },
    time::SystemTime,
};

use once_cell::race::OnceBox;

use crate::{
    cell::{Amount, Cell, Listener, Real, Signal, Wakes, Whole},
    desc::{Meta, MetricKind, Numbers},
    exemplar::{Exemplar, Exemplars},
    hint::bounds_under,
    interest::Interval,
    labels,
    names::is_plain,
    sketch::Sketch,
    stats::{LATE_WRITES, bump},
    time::{Now, Stamp, Time},
};

/// The value of a counter, a gauge, or (as a count) a histogram.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(untagged))]
pub enum Value {
    /// Of a counter that counts in `u64`, or the number of observations of a histogram.
    U64(u64),
    /// Of a gauge, or of a counter that counts in `f64`.
    F64(f64),
}

impl Value {
    /// As a double; integers above 2^53 are rounded.
    pub fn as_f64(self) -> f64 {
        match self {
            Value::U64(v) => v as f64,
            Value::F64(v) => v,
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::U64(v) => v.fmt(f),
            Value::F64(v) => v.fmt(f),
        }
    }
}

/// What a gauge holds until it has a value: nobody has measured it, nothing is said of it, and no format has a sample of it.
/// Whoever adds to it starts at 0. No mutation makes one: −0 comes of additions only where both sides are −0, and gauges
/// take every −0 that they are given for a 0.
pub(crate) const UNMEASURED: f64 = -0.0;

/// Whether this is what a gauge holds that was never set.
pub(crate) fn is_unmeasured(value: f64) -> bool {
    value.to_bits() == UNMEASURED.to_bits()
}

/// Whether bits of a cell are a value of a metric of this type.
pub(crate) fn is_measured(kind: MetricKind, bits: u64) -> bool {
    kind != MetricKind::Gauge || !is_unmeasured(f64::from_bits(bits))
}

/// Named by the sealed traits of metrics, and so `pub`; no path leads here from outside the crate.
pub struct SeriesCore {
    pub(crate) meta: Arc<Meta>,
    /// `a="x",b="y"`, as it is exposed.
    pub(crate) text: Box<str>,
    /// The value; of a histogram, the sum.
    pub(crate) cell: Cell,
    pub(crate) buckets: Option<Arc<BucketCells>>,
    /// Made for the first exemplar.
    pub(crate) exemplars: OnceBox<Exemplars>,
    born: Time,
}

/// The buckets of one histogram.
pub(crate) struct BucketCells {
    /// Padded with +Inf to whole groups, so that the search has no remainder to handle.
    padded: Box<[f64]>,
    /// One more than there are bounds. Not cumulative.
    counts: Box<[AtomicU64]>,
    /// How many windows want the sketch kept.
    sketching: AtomicUsize,
    /// Made for the first window.
    sketch: OnceLock<Box<Sketch>>,
}

/// Bounds compared at a time. Four doubles are two SSE2 registers, and pad a histogram of 11 bounds by one.
const GROUP: usize = 4;

/// From here on a binary search does fewer compares than one look at every bound.
const LINEAR_MAX: usize = 64;

impl BucketCells {
    fn new(bounds: &[f64], native: bool) -> Self {
        let mut padded = bounds.to_vec();
        padded.resize(bounds.len().next_multiple_of(GROUP), f64::INFINITY);
        let cells = BucketCells {
            padded: padded.into(),
            counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            sketching: AtomicUsize::new(0),
            sketch: OnceLock::new(),
        };
        if native {
            // One that nobody ends.
            cells.begin_sketch();
        }
        cells
    }

    /// How many buckets there are, that of +Inf included.
    pub(crate) fn len(&self) -> usize {
        self.counts.len()
    }

    /// The bucket of `v`: the first whose bound is ≥ `v`. NaN goes to the last one.
    #[inline(always)]
    pub(crate) fn find(&self, v: f64) -> usize {
        let last = self.counts.len() - 1;
        let under = if self.padded.len() <= LINEAR_MAX {
            // No branch, so nothing for unpredictable values to mispredict.
            bounds_under::<GROUP>(&self.padded, v)
        } else {
            #[allow(clippy::neg_cmp_op_on_partial_ord)]
            self.padded.partition_point(|bound| !(v <= *bound))
        };
        under.min(last)
    }

    #[inline(always)]
    pub(crate) fn count(&self, v: f64) {
        // The only cost of windows to a histogram that has none.
        if self.sketching.load(Ordering::Relaxed) > 0
            && let Some(sketch) = self.sketch.get()
        {
            sketch.count(v);
        }
        // Release: who finds the total as it was finds the sketch complete. The read-modify-write of the sum that follows
        // publishes both.
        self.counts[self.find(v)].fetch_add(1, Ordering::Release);
    }

    /// The sketch, kept from here on until as many [`end_sketch`](BucketCells::end_sketch) have come.
    pub(crate) fn begin_sketch(&self) -> &Sketch {
        let sketch = self.sketch.get_or_init(Sketch::new);
        self.sketching.fetch_add(1, Ordering::AcqRel);
        sketch
    }

    pub(crate) fn end_sketch(&self) {
        self.sketching.fetch_sub(1, Ordering::AcqRel);
    }

    /// What the windows have in common, if there was ever one.
    pub(crate) fn sketch(&self) -> Option<&Sketch> {
        self.sketch.get().map(|sketch| &**sketch)
    }

    /// The total, such that a sketch read after it holds all observations that it counts.
    pub(crate) fn total_before_sketch(&self) -> u64 {
        let total = self.total();
        fence(Ordering::Acquire);
        total
    }

    /// Counts per bucket, not cumulative, the last one for +Inf.
    pub(crate) fn counts(&self) -> impl Iterator<Item = u64> {
        self.counts.iter().map(|c| c.load(Ordering::Relaxed))
    }

    pub(crate) fn total(&self) -> u64 {
        self.counts().sum()
    }

    /// Counts one observation of a bucket, beside the sketch.
    #[cfg(test)]
    pub(crate) fn count_bucket(&self, at: usize) {
        self.counts[at].fetch_add(1, Ordering::Release);
    }

    /// Adds to the buckets what was counted elsewhere, one number per bucket; what is too many is left out.
    #[cfg(any(feature = "backtest", feature = "nats"))]
    pub(crate) fn add(&self, counts: &[u64]) {
        for (bucket, n) in self.counts.iter().zip(counts) {
            // Release, as for a single observation.
            bucket.fetch_add(*n, Ordering::Release);
        }
    }

    /// Counts `n` observations of one bucket of the sketch, if there is a window that wants them.
    #[cfg(feature = "nats")]
    pub(crate) fn add_to_sketch(&self, index: i32, n: u64) {
        if self.sketching.load(Ordering::Relaxed) > 0
            && let Some(sketch) = self.sketch.get()
        {
            sketch.add(index, n);
        }
    }
}

/// Counts what is written to a series that was removed. Has no size, so a box of it allocates nothing.
struct LateWrites;

impl Listener for LateWrites {
    fn id(&self) -> u64 {
        u64::MAX
    }

    fn judge(&mut self, _value: f64, mutated: bool, _stamp: &mut Stamp<'_>) {
        if mutated {
            bump(&LATE_WRITES);
        }
    }

    fn quiet(&self) -> Interval {
        Interval::NOTHING
    }
}

impl Now for SeriesCore {
    fn now(&self) -> Time {
        self.meta.clock.now()
    }
}

impl SeriesCore {
    pub(crate) fn new(meta: Arc<Meta>, text: &str) -> Arc<Self> {
        let cell = match meta.numbers {
            Numbers::Whole => Cell::new::<Whole>(0),
            Numbers::Amount => Cell::new::<Amount>(0.0_f64.to_bits()),
            Numbers::Real if meta.kind == MetricKind::Gauge => {
                Cell::new::<Real>(UNMEASURED.to_bits())
            }
            Numbers::Real => Cell::new::<Real>(0.0_f64.to_bits()),
        };
        let buckets = (meta.kind == MetricKind::Histogram)
            .then(|| Arc::new(BucketCells::new(&meta.bounds, meta.native)));
        Arc::new(SeriesCore {
            born: meta.clock.now(),
            meta,
            text: text.into(),
            cell,
            buckets,
            exemplars: OnceBox::new(),
        })
    }

    /// When the series was made, and so since when it has counted. [`Clock::date`](crate::Clock::date) gives the date.
    pub(crate) fn born(&self) -> Time {
        self.born
    }

    /// Keeps an exemplar of a counter, or of a bucket of a histogram, instead of the one before.
    pub(crate) fn keep_exemplar(&self, labels: Vec<(String, String)>, value: f64) {
        let (places, place) = match &self.buckets {
            Some(buckets) => (buckets.len(), buckets.find(value)),
            None => (1, 0),
        };
        let clock = &self.meta.clock;
        let at = clock.wall(clock.now());
        let kept = self.exemplars.get_or_init(|| Exemplars::new(places));
        kept.keep(place, Exemplar { labels, value, at });
    }

    /// The latest exemplars: of a counter with no place, of a histogram each with the index of its bucket.
    pub(crate) fn exemplars(&self) -> Vec<(Option<usize>, Exemplar)> {
        let Some(kept) = self.exemplars.get() else {
            return Vec::new();
        };
        let place = |at| self.buckets.is_some().then_some(at);
        let all = kept.all().into_iter();
        all.map(|(at, exemplar)| (place(at), exemplar)).collect()
    }

    pub(crate) fn signal(&self) -> Signal {
        match self.meta.kind {
            MetricKind::Histogram => Signal::Observation,
            _ => Signal::Value,
        }
    }

    /// Bits of this series' cell as a value; `None` of a gauge that has none.
    pub(crate) fn value_of(&self, bits: u64) -> Option<Value> {
        match self.meta.numbers {
            Numbers::Whole => Some(Value::U64(bits)),
            Numbers::Real if !is_measured(self.meta.kind, bits) => None,
            Numbers::Amount | Numbers::Real => Some(Value::F64(f64::from_bits(bits))),
        }
    }

    pub(crate) fn value(&self) -> Option<Value> {
        match &self.buckets {
            Some(buckets) => Some(Value::U64(buckets.total())),
            None => self.value_of(self.cell.load()),
        }
    }

    /// Whether there is a sample of it. Counters and histograms have one from their birth on.
    pub(crate) fn has_value(&self) -> bool {
        is_measured(self.meta.kind, self.cell.load())
    }

    pub(crate) fn attach(&self, listener: Box<dyn Listener>, wakes: &mut Wakes) -> bool {
        match self.meta.numbers {
            Numbers::Whole => self
                .cell
                .attach::<Whole>(listener, self.signal(), self, wakes),
            Numbers::Amount => self
                .cell
                .attach::<Amount>(listener, self.signal(), self, wakes),
            Numbers::Real => self
                .cell
                .attach::<Real>(listener, self.signal(), self, wakes),
        }
    }

    pub(crate) fn detach(&self, id: u64, wakes: &mut Wakes) -> Option<Box<dyn Listener>> {
        let signal = self.signal();
        match self.meta.numbers {
            Numbers::Whole => self.cell.detach::<Whole>(id, signal, self, wakes),
            Numbers::Amount => self.cell.detach::<Amount>(id, signal, self, wakes),
            Numbers::Real => self.cell.detach::<Real>(id, signal, self, wakes),
        }
    }

    /// Shows listener `id` to `f`, with the present value, and re-arms the band.
    pub(crate) fn visit<T>(
        &self,
        id: u64,
        wakes: &mut Wakes,
        f: impl FnOnce(&mut dyn Listener, Option<Value>) -> T,
    ) -> Option<T> {
        self.visit_bits(id, wakes, |listener, bits| f(listener, self.value_of(bits)))
    }

    /// As [`visit`](SeriesCore::visit), with the bits of the cell: they tell a gauge that was never set.
    pub(crate) fn visit_bits<T>(
        &self,
        id: u64,
        wakes: &mut Wakes,
        f: impl FnOnce(&mut dyn Listener, u64) -> T,
    ) -> Option<T> {
        let signal = self.signal();
        match self.meta.numbers {
            Numbers::Whole => self.cell.visit::<Whole, T>(id, signal, self, wakes, f),
            Numbers::Amount => self.cell.visit::<Amount, T>(id, signal, self, wakes, f),
            Numbers::Real => self.cell.visit::<Real, T>(id, signal, self, wakes, f),
        }
    }

    /// Asks listener `id` something. `false` when it isn't there.
    pub(crate) fn ask(&self, id: u64, question: &mut dyn std::any::Any) -> bool {
        self.cell.ask(id, question)
    }

    /// Takes out whoever listens, without a word: the bus is gone.
    pub(crate) fn silence(&self) {
        match self.meta.numbers {
            Numbers::Whole => self.cell.silence::<Whole>(),
            Numbers::Amount => self.cell.silence::<Amount>(),
            Numbers::Real => self.cell.silence::<Real>(),
        }
    }

    pub(crate) fn retire(&self, wakes: &mut Wakes) {
        let late = Box::new(LateWrites);
        match self.meta.numbers {
            Numbers::Whole => self.cell.retire::<Whole>(self, late, wakes),
            Numbers::Amount => self.cell.retire::<Amount>(self, late, wakes),
            Numbers::Real => self.cell.retire::<Real>(self, late, wakes),
        }
    }
}

/// One metric with one set of label values, whatever its type.
///
/// Displayed as it is exposed: `http_requests_total{method="GET"}`, or `{"http.requests",method="GET"}` where the name
/// needs quotes. Two handles are equal when they are the same series
/// of the same bus.
#[derive(Clone)]
pub struct Series(Held);

/// As `name` and `labels`.
#[cfg(feature = "serde")]
impl serde::Serialize for Series {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;

        let labels: std::collections::BTreeMap<_, _> = self.labels().into_iter().collect();
        let mut series = serializer.serialize_struct("Series", 2)?;
        series.serialize_field("name", self.name())?;
        series.serialize_field("labels", &labels)?;
        series.end()
    }
}

/// The reference count of a series lies beside its value. A reader that clones a handle for every mutation would take
/// that cache line away from the mutating thread each time, and counts a reference of its own instead.
#[derive(Clone)]
enum Held {
    Directly(Arc<SeriesCore>),
    #[allow(clippy::redundant_allocation)] // The outer count is the point of it.
    Shared(Arc<Arc<SeriesCore>>),
}

impl Series {
    pub(crate) fn of(core: Arc<SeriesCore>) -> Series {
        Series(Held::Directly(core))
    }

    /// A handle whose clones leave the series alone.
    pub(crate) fn shared(core: Arc<SeriesCore>) -> Series {
        Series(Held::Shared(Arc::new(core)))
    }

    pub(crate) fn core(&self) -> &Arc<SeriesCore> {
        match &self.0 {
            Held::Directly(core) => core,
            Held::Shared(core) => core,
        }
    }

    /// The metric's full name.
    pub fn name(&self) -> &str {
        &self.core().meta.name
    }

    /// What the metric means.
    pub fn help(&self) -> &str {
        &self.core().meta.help
    }

    /// The metric's unit, where one was declared.
    pub fn unit(&self) -> Option<&str> {
        self.core().meta.unit.as_deref()
    }

    /// The metric's type.
    pub fn kind(&self) -> MetricKind {
        self.core().meta.kind
    }

    /// All labels, in the order in which they are exposed.
    pub fn labels(&self) -> Vec<(String, String)> {
        labels::pairs(&self.core().text)
    }

    /// The value of one label; `None` where the series does not have it.
    pub fn label(&self, name: &str) -> Option<String> {
        labels::value_of(&self.core().text, name)
    }

    /// The present value; of a histogram, the number of observations. `None` of a gauge that was never set.
    ///
    /// ```
    /// use metricbus::{MetricBus, Value};
    ///
    /// let bus = MetricBus::new();
    /// let depth = bus.gauge("queue_depth", "Requests waiting.")?;
    /// assert_eq!(depth.series().value(), None);
    /// depth.set(3.0);
    /// assert_eq!(depth.series().value(), Some(Value::F64(3.0)));
    /// # Ok::<(), metricbus::DeclareError>(())
    /// ```
    pub fn value(&self) -> Option<Value> {
        self.core().value()
    }

    /// When the series was made, and so since when it has counted. The date stays what it was said to be first, also
    /// where the machine's clock is set meanwhile.
    ///
    /// ```
    /// use std::time::{Duration, SystemTime};
    /// use metricbus::{Clock, MetricBus};
    ///
    /// let clock = Clock::manual();
    /// let bus = MetricBus::builder().clock(clock.clone()).build();
    /// clock.advance(Duration::from_secs(60));
    /// let requests = bus.counter("requests_total", "Requests served.")?;
    /// assert_eq!(requests.series().created(), SystemTime::UNIX_EPOCH + Duration::from_secs(60));
    /// # Ok::<(), metricbus::DeclareError>(())
    /// ```
    pub fn created(&self) -> SystemTime {
        self.core().meta.clock.date(self.core().born())
    }

    /// A time of the series' bus as a date.
    pub(crate) fn date(&self, at: Time) -> SystemTime {
        self.core().meta.clock.wall(at)
    }

    /// Whether the series was removed or has expired. Writes to it go nowhere.
    pub fn is_removed(&self) -> bool {
        self.core().cell.is_retired()
    }

    pub(crate) fn is(&self, core: &Arc<SeriesCore>) -> bool {
        Arc::ptr_eq(self.core(), core)
    }
}

impl PartialEq for Series {
    fn eq(&self, other: &Self) -> bool {
        self.is(other.core())
    }
}

impl Eq for Series {}

impl Hash for Series {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(self.core()).hash(state);
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, text) = (self.name(), &self.core().text);
        match (is_plain(name, true), text.is_empty()) {
            (true, true) => f.write_str(name),
            (true, false) => write!(f, "{name}{{{text}}}"),
            (false, true) => write!(f, "{{\"{name}\"}}"),
            (false, false) => write!(f, "{{\"{name}\",{text}}}"),
        }
    }
}

impl fmt::Debug for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.value() {
            Some(value) => write!(f, "{self} = {value}"),
            None => write!(f, "{self} without a value"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Buckets, Clock, Counter, Desc, Histogram, MetricBus};

    fn sketched(h: &Histogram) -> Option<u64> {
        let core = h.series().core().clone();
        let sketch = core.buckets.as_ref()?.sketch()?.snapshot();
        Some(sketch.iter().map(|(_, n)| n).sum())
    }

    #[test]
    fn a_native_histogram_keeps_its_sketch_from_its_first_observation_on() {
        let bus = MetricBus::new();
        let native: Histogram = bus.declare(Desc::new("native", "h").native(true)).unwrap();
        let classic: Histogram = bus.declare(Desc::new("classic", "h")).unwrap();
        for h in [&native, &classic] {
            h.observe(0.3);
            drop(h.series().window(Duration::from_secs(10)));
            h.observe(0.4);
        }
        assert_eq!(sketched(&native), Some(2));
        // Kept for the window alone, and it may end where it was not there.
        assert!(sketched(&classic).is_none_or(|n| n < 2));
    }

    #[test]
    fn a_bus_can_have_all_histograms_native_but_those_that_say_otherwise() {
        let bus = MetricBus::builder().native_histograms(true).build();
        let native = bus.histogram("native", "h", Buckets::default()).unwrap();
        let classic: Histogram = bus
            .declare(Desc::new("classic", "h").native(false))
            .unwrap();
        bus.gauge("gauge", "h").unwrap();
        assert_eq!((sketched(&native), sketched(&classic)), (Some(0), None));

        let again = bus.declare::<Histogram>(Desc::new("classic", "h").native(true));
        let error = again.unwrap_err().to_string();
        assert!(
            error.contains("native was false, and now is true"),
            "{error}"
        );
        assert!(bus.declare::<Histogram>(Desc::new("classic", "h")).is_ok());
        let error = bus
            .declare::<Counter>(Desc::new("c_total", "h").native(true))
            .unwrap_err();
        assert!(
            error.to_string().contains("a counter can't be native"),
            "{error}"
        );
    }

    #[test]
    fn a_series_knows_when_it_was_made_and_one_made_again_is_a_new_one() {
        let clock = Clock::manual();
        let bus = MetricBus::builder().clock(clock.clone()).build();
        let family = bus
            .family::<Counter>(Desc::new("c_total", "h").labels(["x"]))
            .unwrap();
        let made = |after: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(after);
        clock.advance(Duration::from_secs(5));
        let first = family.with_label_values(&["1"]).unwrap().series();
        clock.advance(Duration::from_secs(5));
        assert_eq!(first.created(), made(5));
        family.remove(&["1"]).unwrap();
        let second = family.with_label_values(&["1"]).unwrap().series();
        assert_eq!((first.created(), second.created()), (made(5), made(10)));
    }

    #[test]
    fn every_value_finds_the_first_bucket_that_holds_it() {
        for n in [0, 1, 3, 4, 11, 18, 63, 64, 65, 200] {
            let bounds: Vec<f64> = (0..n).map(|i| f64::from(i) * 1.5 - 3.0).collect();
            let cells = BucketCells::new(&bounds, false);
            let values = bounds.iter().flat_map(|b| [*b, b.next_up(), b.next_down()]);
            for v in values.chain([f64::INFINITY, f64::NEG_INFINITY, -0.0, 1e9]) {
                let expected = bounds.iter().position(|b| v <= *b).unwrap_or(bounds.len());
                assert_eq!(cells.find(v), expected, "{v} among {n}");
            }
            assert_eq!(cells.find(f64::NAN), bounds.len(), "NaN among {n}");
        }
    }
}
