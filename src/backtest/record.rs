//! The recorder: a tap, and a thread that writes what it tells into a file.

use std::{
    collections::VecDeque,
    fmt,
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread::{JoinHandle, Thread},
    time::{Duration, Instant, SystemTime},
};

use futures_core::Stream;
use hashbrown::HashMap;

use super::{
    error::RecordError,
    format::{Base, Encoder, Header},
};
use crate::{
    bus::{Inner, MetricBus},
    cell::{Listener, Wakes, wake_all},
    clock::Clock,
    desc::{MetricKind, Numbers},
    error::SelectorError,
    interest::Interval,
    mailbox::Mailbox,
    metric::HistogramSnapshot,
    raw::Shape,
    selector::{IntoSelector, Selector},
    series::{Series, SeriesCore, UNMEASURED, Value},
    stats::next_id,
    tap::{Change, Lagged, Mutation, Mutations},
    time::{Stamp, Time},
    watch::Watch,
};

/// Records every mutation of the selected series, present and future, in a file.
///
/// The file begins with the value of each series, so that a [`Replay`](super::Replay) begins where the recording did. It
/// is read by [`Recording::open`](super::Recording::open).
///
/// ```
/// use metricbus::{MetricBus, backtest::{Recorder, Recording}};
///
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("queue.rec");
/// let bus = MetricBus::new();
/// let queue = bus.gauge("queue_depth", "Requests waiting.")?;
/// let recorder = Recorder::start(&bus, "queue_depth", &path)?;
/// queue.set(3.0);
/// queue.set(4.0);
/// let summary = recorder.finish()?;
/// assert_eq!((summary.mutations, summary.dropped), (2, 0));
/// # Recording::open(&path)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Cost and loss
///
/// A recorded series is mutated as one with a [tap](MetricBus::subscribe): under its lock, with a look at the clock.
/// Packing and writing are on a thread of the recorder's own; a mutating thread never waits for it. If the disk
/// can't keep up, the oldest mutations that wait are dropped (there is room for 65 536), which is counted and written down
/// in their place. The counter or gauge is right again with its next mutation that is recorded.
///
/// What was told is in the file a second later at most. After a crash the file is good up to that.
///
/// If the disk is full, or the file can't be written for another reason, recording ends there, a `tracing` error says
/// so, and [`finish`](Recorder::finish) tells why. The bus goes on.
///
/// # Order
///
/// As that of a tap: per series as it happened, with the time by the bus's clock; none is promised between series that
/// are mutated by several threads at once.
///
/// A histogram that is being observed while recording starts may be written down with a count that has these
/// observations twice. Rules judge observations, and are not concerned.
#[must_use = "dropping a recorder ends the recording"]
pub struct Recorder {
    path: PathBuf,
    clock: Clock,
    tally: Arc<Tally>,
    thread: Option<JoinHandle<Result<Summary, io::Error>>>,
}

/// What a recorder has done so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct RecorderStats {
    /// Mutations written down.
    pub mutations: u64,
    /// Series written down.
    pub series: u64,
    /// Bytes in the file.
    pub bytes: u64,
    /// Mutations that were lost because the file was written too slowly.
    pub dropped: u64,
    /// Whether recording has ended before its time because the file can't be written.
    pub failed: bool,
}

/// What was recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// Mutations in the file.
    pub mutations: u64,
    /// Series in the file.
    pub series: u64,
    /// Size of the file.
    pub bytes: u64,
    /// Mutations that are not in the file, because it was written too slowly. The file says where.
    pub dropped: u64,
    /// From start to finish, by the bus's clock.
    pub span: Duration,
}

#[derive(Default)]
struct Tally {
    mutations: AtomicU64,
    series: AtomicU64,
    bytes: AtomicU64,
    dropped: AtomicU64,
    failed: AtomicBool,
    stop: AtomicBool,
    /// When the recording was finished, by the clock. Known once `stop` is set.
    end: AtomicU64,
}

/// How many mutations may wait to be written: 5 MB, and a twentieth of a second at full speed.
const CAPACITY: usize = 65_536;
/// How long what was recorded may wait for the block to be full.
const FLUSH_AFTER: Duration = Duration::from_secs(1);

impl Recorder {
    /// Records the selected series in a file, until [`finish`](Recorder::finish). A file that is there is replaced.
    ///
    /// # Errors
    ///
    /// When the selector is wrong, the file can't be made, or there is no thread to be had.
    pub fn start(
        bus: &MetricBus,
        selector: impl IntoSelector,
        path: impl AsRef<Path>,
    ) -> Result<Recorder, RecordError> {
        let selector = selector.into_selector()?;
        let path = path.as_ref();
        let create = |source| RecordError::Create {
            path: path.to_owned(),
            source,
        };
        let file = File::create(path).map_err(create)?;
        Recorder::start_on(bus, selector, path, file).map_err(|error| match error {
            Fault::Write(source) => create(source),
            Fault::Thread(source) => RecordError::Thread(source),
            Fault::Selector(error) => error.into(),
        })
    }

    fn start_on<W: Sink>(
        bus: &MetricBus,
        selector: Selector,
        path: &Path,
        sink: W,
    ) -> Result<Recorder, Fault> {
        let (mut scribe, watch, mutations) = Scribe::of(bus, selector, sink)?;
        let tally = scribe.tally.clone();
        let thread = std::thread::Builder::new()
            .name("metricbus-recorder".into())
            .spawn(move || {
                let _watch = watch;
                let done = scribe.run(mutations);
                if let Err(error) = &done {
                    scribe.tally.failed.store(true, Ordering::Release);
                    tracing::error!(%error, "metricbus: recording ended: the file can't be written");
                }
                done.and_then(|summary| {
                    scribe.encoder.into_inner().keep()?;
                    Ok(summary)
                })
            })
            .map_err(Fault::Thread)?;
        Ok(Recorder {
            path: path.to_owned(),
            clock: bus.clock().clone(),
            tally,
            thread: Some(thread),
        })
    }

    /// What it has done so far.
    pub fn stats(&self) -> RecorderStats {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RecorderStats {
            mutations: load(&self.tally.mutations),
            series: load(&self.tally.series),
            bytes: load(&self.tally.bytes),
            dropped: load(&self.tally.dropped),
            failed: self.tally.failed.load(Ordering::Acquire),
        }
    }

    /// Where it is recorded.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes what waits, and the end. All mutations made before this call are in the file (or counted as dropped) when
    /// it returns, and the file is on disk. Waits for the disk.
    ///
    /// # Errors
    ///
    /// When the file could not be written, now or before.
    pub fn finish(mut self) -> Result<Summary, RecordError> {
        self.stop().map_err(|source| RecordError::Write {
            path: self.path.clone(),
            source,
        })
    }

    fn stop(&mut self) -> io::Result<Summary> {
        let Some(thread) = self.thread.take() else {
            return Err(io::Error::other("it has ended already"));
        };
        self.tally
            .end
            .store(self.clock.now().as_nanos(), Ordering::Relaxed);
        self.tally.stop.store(true, Ordering::Release);
        thread.thread().unpark();
        match thread.join() {
            Ok(done) => done,
            Err(_) => Err(io::Error::other("the thread that writes has panicked")),
        }
    }
}

/// Finishes, as well as can be. An error was logged.
impl Drop for Recorder {
    fn drop(&mut self) {
        if self.thread.is_some() {
            let _ = self.stop();
        }
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder")
            .field("path", &self.path)
            .field("stats", &self.stats())
            .finish()
    }
}

enum Fault {
    Write(io::Error),
    Thread(io::Error),
    Selector(SelectorError),
}

/// What a recording is written on.
trait Sink: Write + Send + 'static {
    /// Sees to it that what was written stays.
    fn keep(self) -> io::Result<()>;
}

impl Sink for File {
    fn keep(self) -> io::Result<()> {
        match self.sync_data() {
            // A pipe or a device, which can't.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
            other => other,
        }
    }
}

/// Nanoseconds from the Unix epoch to the clock's origin.
fn origin_of(clock: &Clock) -> i64 {
    let now = clock.now();
    let signed = |nanos: u128| i64::try_from(nanos).unwrap_or(i64::MAX);
    let wall = match clock.wall(now).duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => signed(after.as_nanos()),
        Err(before) => -signed(before.duration().as_nanos()),
    };
    wall.saturating_sub_unsigned(now.as_nanos())
}

/// Series that come and go, in order. Not on the path of mutations.
#[derive(Default)]
struct Births {
    log: Mutex<Log>,
    /// How many mutations the tap has been told, once there is one.
    counter: OnceLock<Box<dyn Fn() -> u64 + Send + Sync>>,
    /// How many entries were made so far.
    count: AtomicU64,
}

#[derive(Default)]
struct Log {
    entries: VecDeque<Logged>,
    lost: u64,
}

struct Logged {
    at: Time,
    /// So many mutations were told before it.
    place: u64,
    event: Event,
}

enum Event {
    Born(Series),
    /// It was there when the recording began, with this value then.
    Found(Series),
    Gone(Series),
}

/// How many may wait. More than that come and go within a second only by mistake; what is lost is counted.
const EVENTS_MAX: usize = 1 << 20;

impl Births {
    fn log(&self, at: Time, event: Event) {
        let place = self.counter.get().map_or(0, |counter| counter());
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        if log.entries.len() >= EVENTS_MAX {
            log.lost += 1;
            return;
        }
        log.entries.push_back(Logged { at, place, event });
        drop(log);
        self.count.fetch_add(1, Ordering::Release);
    }

    fn watch(self: &Arc<Self>, bus: &MetricBus, selector: Selector) -> Watching {
        let id = next_id();
        let births = self.clone();
        let make = Box::new(
            move |series: &Arc<SeriesCore>, newborn: bool, _: &mut Wakes| -> Box<dyn Listener> {
                let at = series.meta.clock.now();
                let handle = Series::of(series.clone());
                births.log(
                    at,
                    match newborn {
                        true => Event::Born(handle),
                        false => Event::Found(handle),
                    },
                );
                Box::new(Life {
                    id,
                    series: Series::of(series.clone()),
                    births: births.clone(),
                })
            },
        );
        // Nothing is ever put into it: nobody has to be woken for this.
        let mailbox = Arc::new(Mailbox::<()>::new(1));
        let watch = Arc::new(Watch::new(id, selector, make, mailbox));
        bus.inner().watch(&watch);
        Watching {
            bus: Arc::downgrade(bus.inner()),
            watch,
        }
    }

    /// The series so far, once the tap is in place, each with its value now.
    fn close_present(&self) -> Vec<Present> {
        let entries = {
            let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut log.entries)
        };
        let mut present: Vec<Present> = Vec::new();
        for Logged { event, .. } in entries {
            match event {
                Event::Found(series) | Event::Born(series) => present.push(Present::of(series)),
                Event::Gone(series) => present.retain(|p| p.series != series),
            }
        }
        present
    }

    fn take(&self, into: &mut VecDeque<Logged>) -> u64 {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        into.append(&mut log.entries);
        std::mem::take(&mut log.lost)
    }
}

/// Ends with it.
struct Watching {
    bus: Weak<Inner>,
    watch: Arc<Watch>,
}

impl Drop for Watching {
    fn drop(&mut self) {
        if let Some(bus) = self.bus.upgrade() {
            bus.unwatch(&self.watch);
        }
    }
}

/// Notes that a series has gone.
struct Life {
    id: u64,
    series: Series,
    births: Arc<Births>,
}

impl Listener for Life {
    fn id(&self) -> u64 {
        self.id
    }

    fn quiet(&self) -> Interval {
        Interval::EVERYTHING
    }

    fn removed(&mut self, _value: f64, stamp: &mut Stamp<'_>, _wakes: &mut Wakes) {
        self.births
            .log(stamp.at(), Event::Gone(self.series.clone()));
    }
}

/// A series that was there before the first mutation was recorded.
struct Present {
    series: Series,
    value: Base,
}

impl Present {
    fn of(series: Series) -> Present {
        let core = series.core();
        // Through the series' lock: a mutation seen in the value has been told to the tap.
        let mut wakes = Wakes::new();
        let value = present_value(core);
        core.visit(u64::MAX, &mut wakes, |_, _| {});
        wake_all(&mut wakes);
        Present { value, series }
    }
}

fn present_value(core: &SeriesCore) -> Base {
    let Some(buckets) = &core.buckets else {
        return Base::Value(core.cell.load());
    };
    let cumulative = HistogramSnapshot::of(core, buckets);
    let mut below = 0;
    let counts = cumulative.buckets.iter().map(|&(_, count)| {
        let own = count - below;
        below = count;
        own
    });
    Base::Histogram {
        counts: counts.collect(),
        sum: cumulative.sum,
    }
}

/// Until every series that was there is written with the value that it began with. Mutations are held meanwhile: the
/// first one of a series tells the value before it.
struct Opening {
    present: Vec<Present>,
    held: Vec<Result<Mutation, Lagged>>,
}

/// The writing thread's own.
struct Scribe<W> {
    encoder: Encoder<W>,
    births: Arc<Births>,
    tally: Arc<Tally>,
    metrics: HashMap<String, (usize, Arc<Shape>)>,
    known: HashMap<Series, usize>,
    last: Option<(Series, usize)>,
    opening: Option<Opening>,
    start: u64,
    /// When the block that is being filled has to be written.
    due: Option<Instant>,
    /// Taken from the births' log, and not written yet.
    events: VecDeque<Logged>,
    /// How many were ever logged when it was looked at last.
    seen: u64,
    /// Mutations that the tap has told, dropped ones included.
    told: u64,
}

/// Wakes the writing thread.
struct Bell(Thread);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

impl<W: Sink> Scribe<W> {
    /// From now on the selected series are told, to be written by [`run`](Scribe::run).
    fn of(
        bus: &MetricBus,
        selector: Selector,
        sink: W,
    ) -> Result<(Scribe<W>, Watching, Mutations), Fault> {
        let clock = bus.clock().clone();
        let start = clock.now();
        let header = Header {
            start: start.as_nanos(),
            origin: origin_of(&clock),
        };
        let encoder = Encoder::new(sink, header).map_err(Fault::Write)?;

        // Births and deaths first, so that of each series met later it is known whether it is new.
        let births = Arc::new(Births::default());
        let watch = births.watch(bus, selector.clone());
        let mutations = bus
            .subscribe_with_capacity(selector, CAPACITY)
            .map_err(Fault::Selector)?;
        let _ = births.counter.set(Box::new(mutations.counter()));
        let present = births.close_present();

        let scribe = Scribe {
            encoder,
            births,
            tally: Arc::default(),
            metrics: HashMap::new(),
            known: HashMap::new(),
            last: None,
            opening: Some(Opening {
                present,
                held: Vec::new(),
            }),
            start: header.start,
            due: None,
            events: VecDeque::new(),
            // What was taken already makes a difference to the count, and costs one look more.
            seen: 0,
            told: 0,
        };
        Ok((scribe, watch, mutations))
    }

    fn run(&mut self, mut mutations: Mutations) -> io::Result<Summary> {
        let waker = Waker::from(Arc::new(Bell(std::thread::current())));
        let mut cx = Context::from_waker(&waker);
        // Letters that may still be taken once it is to stop: those that can have been waiting by then.
        let mut left = None;
        loop {
            let stopping = self.tally.stop.load(Ordering::Acquire);
            if stopping {
                let left = left.get_or_insert(2 * CAPACITY);
                *left -= 1;
                if *left == 0 {
                    break;
                }
            }
            match Pin::new(&mut mutations).poll_next(&mut cx) {
                Poll::Ready(Some(letter)) => self.letter(letter)?,
                Poll::Ready(None) => break,
                Poll::Pending => {
                    self.open()?;
                    self.look_at_births()?;
                    self.lives(self.told, usize::MAX)?;
                    if stopping {
                        break;
                    }
                    self.count();
                    self.wait()?;
                }
            }
        }
        self.open()?;
        self.look_at_births()?;
        self.lives(u64::MAX, usize::MAX)?;
        let stopped = match self.tally.stop.load(Ordering::Acquire) {
            true => self.tally.end.load(Ordering::Relaxed),
            false => 0,
        };
        let end = self.encoder.now().max(stopped);
        self.encoder.end(end)?;
        self.count();
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Ok(Summary {
            mutations: load(&self.tally.mutations),
            series: load(&self.tally.series),
            bytes: load(&self.tally.bytes),
            dropped: load(&self.tally.dropped),
            span: Duration::from_nanos(end - self.start),
        })
    }

    fn count(&self) {
        let (series, bytes) = (self.known.len() as u64, self.encoder.bytes);
        self.tally.series.fetch_max(series, Ordering::Relaxed);
        self.tally.bytes.store(bytes, Ordering::Relaxed);
    }

    /// Nothing to write: sleeps until there is, and writes a block that has waited long enough.
    fn wait(&mut self) -> io::Result<()> {
        self.flush_when_due()?;
        // Births ring no bell.
        let wait = self.due.map_or(FLUSH_AFTER, |due| {
            due.saturating_duration_since(Instant::now())
        });
        std::thread::park_timeout(wait);
        Ok(())
    }

    fn flush_when_due(&mut self) -> io::Result<()> {
        if !self.encoder.is_dirty() {
            self.due = None;
            return Ok(());
        }
        let now = Instant::now();
        let due = *self.due.get_or_insert(now + FLUSH_AFTER);
        if now >= due {
            self.encoder.flush()?;
            self.due = None;
        }
        Ok(())
    }

    fn letter(&mut self, letter: Result<Mutation, Lagged>) -> io::Result<()> {
        if let Some(opening) = &mut self.opening {
            opening.held.push(letter);
            // All that was told while the values were read has come by now.
            if opening.held.len() > 2 * CAPACITY {
                self.open()?;
            }
            return Ok(());
        }
        match letter {
            Err(Lagged(n)) => {
                self.told += n;
                self.tally.dropped.fetch_add(n, Ordering::Relaxed);
                self.encoder.dropped(self.encoder.now(), n)
            }
            Ok(mutation) => {
                self.look_at_births()?;
                self.lives(self.told, usize::MAX)?;
                self.told += 1;
                self.mutation(&mutation)
            }
        }
    }

    fn look_at_births(&mut self) -> io::Result<()> {
        let count = self.births.count.load(Ordering::Acquire);
        if count == self.seen {
            return Ok(());
        }
        self.seen = count;
        let lost = self.births.take(&mut self.events);
        if lost > 0 {
            self.tally.dropped.fetch_add(lost, Ordering::Relaxed);
            self.encoder.dropped(self.encoder.now(), lost)?;
        }
        Ok(())
    }

    /// Writes which series came and went before mutation number `place`, at most `most` of them.
    fn lives(&mut self, place: u64, most: usize) -> io::Result<()> {
        for _ in 0..most {
            if self
                .events
                .front()
                .is_none_or(|logged| logged.place > place)
            {
                break;
            }
            let Some(Logged { at, event, .. }) = self.events.pop_front() else {
                break;
            };
            match event {
                Event::Born(series) | Event::Found(series) => {
                    if !self.known.contains_key(&series) {
                        let base = newborn(&series);
                        self.define(&series, at.as_nanos(), &base)?;
                    }
                }
                Event::Gone(series) => {
                    self.last = None;
                    if let Some(index) = self.known.remove(&series) {
                        self.encoder.removed(index, at.as_nanos())?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Writes down what each series began with, and the mutations that were held.
    fn open(&mut self) -> io::Result<()> {
        let Some(opening) = self.opening.take() else {
            return Ok(());
        };
        let mut first: HashMap<&Series, &Change> = HashMap::new();
        for mutation in opening.held.iter().flatten() {
            first.entry(&mutation.series).or_insert(&mutation.change);
        }
        for present in &opening.present {
            let base = match first.get(&present.series) {
                Some(change) => before(change, present),
                None => present.value.clone(),
            };
            self.define(&present.series, self.start, &base)?;
        }
        drop(first);
        self.encoder.begun()?;
        for letter in opening.held {
            self.letter(letter)?;
        }
        Ok(())
    }

    fn mutation(&mut self, mutation: &Mutation) -> io::Result<()> {
        let index = match &self.last {
            Some((series, index)) if *series == mutation.series => *index,
            _ => {
                // Threads that race can be logged out of order; its birth is there.
                while !self.known.contains_key(&mutation.series) && !self.events.is_empty() {
                    self.lives(u64::MAX, 1)?;
                }
                let index = match self.known.get(&mutation.series) {
                    Some(&index) => index,
                    None if mutation.series.is_removed() => {
                        // Of a series whose removal has been written down: too late.
                        self.tally.dropped.fetch_add(1, Ordering::Relaxed);
                        return self.encoder.dropped(mutation.at.as_nanos(), 1);
                    }
                    None => {
                        let base = newborn(&mutation.series);
                        self.define(&mutation.series, mutation.at.as_nanos(), &base)?
                    }
                };
                self.last = Some((mutation.series.clone(), index));
                index
            }
        };
        let bits = match mutation.change {
            Change::Counted { after, .. } => match after {
                Value::U64(after) => after,
                Value::F64(after) => after.to_bits(),
            },
            Change::Set { after, .. } => after.to_bits(),
            Change::Observed { value } => value.to_bits(),
        };
        let written = self.encoder.bytes;
        self.encoder.mutation(index, mutation.at.as_nanos(), bits)?;
        self.tally.mutations.fetch_add(1, Ordering::Relaxed);
        if self.encoder.bytes != written {
            self.due = None;
            self.count();
        }
        Ok(())
    }

    fn define(&mut self, series: &Series, at: u64, base: &Base) -> io::Result<usize> {
        let core = series.core();
        let meta = &core.meta;
        let (metric, shape) = match self.metrics.get(&*meta.name) {
            Some((metric, shape)) => (*metric, shape.clone()),
            None => {
                let shape = Arc::new(Shape {
                    name: meta.name.to_string(),
                    help: meta.help.clone(),
                    unit: meta.unit.clone(),
                    kind: meta.kind,
                    numbers: meta.numbers,
                    label_names: meta.label_names.iter().map(|n| n.to_string()).collect(),
                    bounds: meta.bounds.to_vec(),
                });
                let metric = self.metrics.len();
                self.encoder.metric(&shape)?;
                self.metrics
                    .insert(shape.name.clone(), (metric, shape.clone()));
                (metric, shape)
            }
        };
        let index = self.tally.series.load(Ordering::Relaxed) as usize;
        self.encoder
            .series(metric, &shape, at, &series.labels(), base)?;
        self.tally.series.fetch_add(1, Ordering::Relaxed);
        self.known.insert(series.clone(), index);
        Ok(index)
    }
}

/// What a series held before its first mutation, as that tells.
fn before(change: &Change, present: &Present) -> Base {
    let bits = match *change {
        // Whichever is less: what was dropped before this mutation, after the value was read, is a jump in the recording.
        Change::Counted { before, .. } => match (before, &present.value) {
            (Value::U64(before), Base::Value(read)) => before.min(*read),
            (Value::F64(before), Base::Value(read)) => before.min(f64::from_bits(*read)).to_bits(),
            (_, Base::Histogram { .. }) => return present.value.clone(),
        },
        Change::Set { before, .. } => before.unwrap_or(UNMEASURED).to_bits(),
        Change::Observed { .. } => return present.value.clone(),
    };
    Base::Value(bits)
}

/// What a series holds when it is made.
fn newborn(series: &Series) -> Base {
    let meta = &series.core().meta;
    match (meta.kind, meta.numbers) {
        (MetricKind::Gauge, _) => Base::Value((-0.0_f64).to_bits()),
        (MetricKind::Counter, Numbers::Amount) => Base::Value(0.0_f64.to_bits()),
        (MetricKind::Counter, _) => Base::Value(0),
        (MetricKind::Histogram, _) => Base::Histogram {
            sum: 0.0,
            counts: vec![0; meta.bounds.len() + 1],
        },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// A disk that is full after some writes.
    struct Full {
        left: usize,
        told: mpsc::Sender<()>,
    }

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.left < bytes.len() {
                let _ = self.told.send(());
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.left -= bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Sink for Full {
        fn keep(self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_disk_that_fills_up_ends_the_recording_and_nothing_else() {
        let bus = MetricBus::builder().clock(Clock::manual()).build();
        let gauge = bus.gauge("queue_depth", "Requests waiting.").unwrap();
        let (told, full) = mpsc::channel();
        let sink = Full { left: 20_000, told };
        let path = Path::new("full.rec");
        let recorder = Recorder::start_on(&bus, "queue_depth".parse().unwrap(), path, sink)
            .ok()
            .unwrap();
        let mut i = 0_u64;
        while full.try_recv().is_err() {
            i = i.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            gauge.set(i as f64);
        }
        gauge.set(7.0);
        assert_eq!(gauge.get(), Some(7.0));
        let error = recorder.finish().unwrap_err().to_string();
        assert!(error.contains("full.rec"), "{error}");
        assert!(error.contains("can be read"), "{error}");
        // Unsubscribed: a mutation costs what it did.
        assert!(gauge.series().core().cell.is_open());
    }

    #[test]
    fn what_is_dropped_before_the_thread_runs_leaves_the_beginning_as_it_was() {
        let bus = MetricBus::builder().clock(Clock::manual()).build();
        let counter = bus.counter("c_total", "c").unwrap();
        counter.inc_by(5);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("late.rec");
        let sink = File::create(&path).unwrap();
        let (mut scribe, _watch, mutations) = Scribe::of(&bus, "c_total".parse().unwrap(), sink)
            .ok()
            .unwrap();
        let told = 2 * CAPACITY as u64;
        (0..told).for_each(|_| counter.inc());
        scribe.tally.stop.store(true, Ordering::Release);
        let summary = scribe.run(mutations).unwrap();
        assert!(summary.dropped > 0, "{summary:?}");
        assert_eq!(summary.mutations + summary.dropped, told);

        let mut first = None;
        for entry in crate::backtest::Recording::open(&path)
            .unwrap()
            .entries()
            .unwrap()
        {
            if let crate::backtest::Entry::Mutation { change, .. } = entry.unwrap() {
                first.get_or_insert(change);
            }
        }
        let Some(Change::Counted { before, after }) = first else {
            panic!("{first:?}");
        };
        assert_eq!(before, Value::U64(5));
        assert_eq!(after, Value::U64(5 + summary.dropped + 1));
    }
}
