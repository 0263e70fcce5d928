//! The backend that sends metrics to an OpenTelemetry collector, by OTLP.
//!
//! Each interval a thread of its own reads the cells of the bus, and sends what they hold. A mutation pays nothing for it
//! and waits for nothing: a histogram's new extreme takes the slow path, and that is all.

mod collect;
mod encode;
mod options;
mod own;
mod sender;
#[cfg(test)]
mod tests;
mod worker;

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    process,
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::Ordering::Relaxed,
        mpsc::{Receiver, RecvTimeoutError, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, SystemTime},
};

use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

pub use self::options::{
    OtlpCompression, OtlpHistograms, OtlpOptions, OtlpProtocol, OtlpTemporality,
};
use self::{
    collect::Collector,
    options::Ready,
    own::Stats,
    sender::Sender,
    worker::{Command, FLUSHES_MAX, Flushed, Reply, Worker},
};
use crate::{
    MetricBus,
    backend::{Backend, BackendError},
    client::{redacted, runtime},
    component::BackendContainer,
    own::Counts,
    signal::keep_out_broken_pipes,
    sync::lock,
};

const NAME: &str = "otlp";

/// Sends the metrics of a bus to an OpenTelemetry collector, each interval.
///
/// It has a thread of its own, and needs no runtime. All series of the bus are exported, but what comes from other
/// processes, gauges that were never set, and (unless [told otherwise](OtlpOptions::own_metrics)) what the bus counts of
/// itself. Clones are the same exporter.
///
/// # When the collector does not answer
///
/// What is to be sent waits in a queue with a [bound](OtlpOptions::queue_bytes), and is tried again with longer and longer
/// waits, as OTLP has it. What does not fit, is refused, or could not be delivered [for too
/// long](OtlpOptions::give_up_after) is dropped; `metricbus_otlp_points_dropped_total` counts it, and
/// [`status`](Self::status) says why. Nobody who counts ever waits.
///
/// # When the process ends
///
/// What was counted since the last interval is delivered by [`shutdown`](Self::shutdown); call it before the end. When
/// the last clone is dropped without it, the thread tries for [one request's time](OtlpOptions::timeout) to deliver the rest,
/// and nobody waits for that: at the end of `main` it ends with the process.
///
/// # After a fork
///
/// A child has no exporter: its thread is the parent's. [`flush`](Self::flush) and [`shutdown`](Self::shutdown) say so
/// there. Start an exporter in each process that counts, on a bus that was made there: locks and timers of the parent's bus may
/// be held, or wait, for threads that the child does not have.
///
/// ```no_run
/// use std::time::Duration;
/// use metricbus::{MetricBus, backend::{OtlpExporter, OtlpOptions}};
///
/// let bus = MetricBus::new();
/// let exporter = OtlpExporter::start(&bus, OtlpOptions::from_env()?)?;
/// let requests = bus.counter("requests_total", "Requests served.")?;
/// requests.inc();
/// exporter.shutdown(Duration::from_secs(5))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct OtlpExporter(Arc<Handle>);

struct Handle {
    stats: Arc<Stats>,
    /// `None` where OpenTelemetry is switched off.
    commands: Option<UnboundedSender<Command>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    timeout: Duration,
    /// The process that has the thread.
    process: u32,
}

/// How an exporter is doing.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct OtlpStatus {
    /// Where it sends to, without what may be secret in it.
    pub endpoint: String,
    /// Whether it exports: not after it was shut down, and not where `OTEL_SDK_DISABLED` is true.
    pub running: bool,
    /// Points that the collector took.
    pub points_exported: u64,
    /// Points that the collector left out of requests that it took.
    pub points_rejected: u64,
    /// Points that were dropped: refused, given up, without room in the queue, or left at the end.
    pub points_dropped: u64,
    /// Requests so far.
    pub requests: u64,
    /// Requests that had to be tried again.
    pub retries: u64,
    /// How often all metrics were read.
    pub collections: u64,
    /// How often they were not, or not at once, as there was no room in the queue.
    pub collections_postponed: u64,
    /// Bytes that wait to be sent.
    pub queue_bytes: u64,
    /// Points that wait to be sent.
    pub queue_points: u64,
    /// When the collector last took a request.
    pub last_success: Option<SystemTime>,
    /// What went wrong last; it may be long over.
    pub last_error: Option<String>,
}

fn setup(why: impl fmt::Display) -> BackendError {
    BackendError::Setup {
        backend: NAME.to_owned(),
        why: why.to_string(),
    }
}

impl OtlpExporter {
    /// Starts to export the metrics of `bus`. The first export is after one interval.
    ///
    /// Nothing is asked of the collector here: one that can't be reached is no error, but a state.
    ///
    /// # Errors
    ///
    /// Where an option is wrong, a certificate can't be used, or there is no thread to be had.
    pub fn start(bus: &MetricBus, options: OtlpOptions) -> Result<OtlpExporter, BackendError> {
        let ready = options.ready()?;
        let endpoint = redacted(&ready.url.to_string());
        let stats = Arc::new(Stats::new(endpoint, ready.queue_bytes));
        let mut handle = Handle {
            stats: stats.clone(),
            commands: None,
            thread: Mutex::default(),
            timeout: ready.timeout,
            process: process::id(),
        };
        if !ready.disabled {
            let (commands, thread) = begin(bus, ready, &stats)?;
            handle.commands = Some(commands);
            handle.thread = Mutex::new(Some(thread));
            let counts: Weak<Stats> = Arc::downgrade(&stats);
            let counts: Weak<dyn Counts> = counts;
            bus.inner().show_own(counts);
        }
        Ok(OtlpExporter(Arc::new(handle)))
    }

    /// Has what was counted until now at the collector when it returns. Blocks, `deadline` at most.
    ///
    /// What waits for a retry is tried at once, unless the collector asked to be left alone.
    ///
    /// # Errors
    ///
    /// Where it was not all there in time, where the collector refused a part of it, and after
    /// [`shutdown`](Self::shutdown) or a fork. What is not there yet is tried further.
    pub fn flush(&self, deadline: Duration) -> Result<(), BackendError> {
        let Some(commands) = self.commands()? else {
            return Ok(());
        };
        let (reply, answer, _caller) = reply();
        // The thread may be reading for a while, and whoever gives up meanwhile and comes again is not to fill the memory.
        let flushes = &self.0.stats.flushes;
        if flushes.fetch_add(1, Relaxed) >= FLUSHES_MAX {
            flushes.fetch_sub(1, Relaxed);
            return Err(too_many());
        }
        if commands.send(Command::Flush(reply)).is_err() {
            flushes.fetch_sub(1, Relaxed);
            return Err(self.ended());
        }
        self.wait(&answer, deadline)
    }

    /// The last [`flush`](Self::flush), and the end of the exporter. Blocks, `deadline` at most. Calling it again does
    /// nothing.
    ///
    /// # Errors
    ///
    /// As [`flush`](Self::flush). What is not at the collector then is dropped, and counted.
    pub fn shutdown(&self, deadline: Duration) -> Result<(), BackendError> {
        let Some(commands) = self.commands()? else {
            return Ok(());
        };
        let Some(thread) = lock(&self.0.thread).take() else {
            return Ok(());
        };
        let (reply, answer, _caller) = reply();
        // Its own end is later than the one here, which says what was left.
        let ending = deadline.saturating_add(self.0.timeout);
        let outcome = match commands.send(Command::Finish(Some(reply), ending)) {
            Ok(()) => self.wait(&answer, deadline),
            Err(_) => Err(self.ended()),
        };
        // Waits for nothing but this, which may have come too late already.
        let _ = commands.send(Command::Stop);
        if thread.join().is_err() {
            return Err(self.ended());
        }
        outcome
    }

    /// How it is doing.
    pub fn status(&self) -> OtlpStatus {
        self.0.stats.status()
    }

    /// `None` where there is nothing to be done.
    fn commands(&self) -> Result<Option<&UnboundedSender<Command>>, BackendError> {
        if self.0.process != process::id() {
            return Err(BackendError::other(
                NAME,
                "this process was forked from the one that has the exporter; start one here, on a bus made after the fork",
            ));
        }
        Ok(self.0.commands.as_ref())
    }

    fn ended(&self) -> BackendError {
        BackendError::other(
            NAME,
            "the exporter has ended: it was shut down, or its thread failed",
        )
    }

    fn wait(&self, answer: &Receiver<Flushed>, deadline: Duration) -> Result<(), BackendError> {
        let stats = &self.0.stats;
        match answer.recv_timeout(deadline) {
            Ok(Flushed { lost: 0 }) => Ok(()),
            Ok(Flushed { lost }) => {
                let why = stats.last_error().unwrap_or_default();
                let why = format!("{lost} points were not taken: {why}");
                Err(BackendError::other(NAME, why))
            }
            Err(RecvTimeoutError::Timeout) => {
                let points = stats.queue_points.load(Relaxed);
                let why = match stats.last_error() {
                    Some(error) => format!("{points} points are left; {error}"),
                    None => format!("{points} points are left, and the collector has not answered"),
                };
                Err(BackendError::Deadline {
                    backend: NAME.to_owned(),
                    deadline,
                    why,
                })
            }
            Err(RecvTimeoutError::Disconnected) if stats.running.load(Relaxed) => Err(too_many()),
            Err(RecvTimeoutError::Disconnected) => Err(self.ended()),
        }
    }
}

/// What is given to the thread, where its answer comes, and what is held by who waits for it.
fn reply() -> (Reply, Receiver<Flushed>, Arc<()>) {
    let (answer, receiver) = sync_channel(1);
    let held = Arc::new(());
    let caller = Arc::downgrade(&held);
    (Reply { answer, caller }, receiver, held)
}

fn too_many() -> BackendError {
    let why = format!("more than {FLUSHES_MAX} flushes wait for the collector");
    BackendError::other(NAME, why)
}

/// Starts the thread.
fn begin(
    bus: &MetricBus,
    ready: Ready,
    stats: &Arc<Stats>,
) -> Result<(UnboundedSender<Command>, JoinHandle<()>), BackendError> {
    let clock = bus.clock().clone();
    let sender = Sender::new(&ready, &clock)?;
    let runtime = runtime().map_err(|error| setup(format!("there is no runtime: {error}")))?;
    let collector = Collector::attach(bus, &ready, stats);
    let (commands, receiver) = unbounded_channel();
    let worker = Worker::new(collector, sender, ready, clock, stats.clone(), receiver);
    let stats = stats.clone();
    stats.running.store(true, Relaxed);
    let running = Running(stats);
    let thread = std::thread::Builder::new()
        .name("metricbus-otlp".to_owned())
        .spawn(move || {
            let _running = running;
            keep_out_broken_pipes();
            runtime.block_on(worker.run());
            // Whoever still looks up the collector's name is not waited for.
            runtime.shutdown_background();
        })
        .map_err(|error| setup(format!("there is no thread for it: {error}")))?;
    Ok((commands, thread))
}

/// Says at its end, whatever that is, that the exporter has ended.
struct Running(Arc<Stats>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.store(false, Relaxed);
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if self.process != process::id() {
            // The thread is the parent's, and so is whoever waits at the other end.
            std::mem::forget(self.commands.take());
            std::mem::forget(lock(&self.thread).take());
            return;
        }
        if let Some(commands) = &self.commands {
            let _ = commands.send(Command::Finish(None, self.timeout));
        }
    }
}

impl fmt::Debug for OtlpExporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stats = &self.0.stats;
        f.debug_struct("OtlpExporter")
            .field("endpoint", &stats.endpoint())
            .field("running", &stats.running.load(Relaxed))
            .finish_non_exhaustive()
    }
}

/// Random enough to keep exporters apart, also those of forked children: what the standard library has would go on in each of
/// them where it was in the parent.
fn random() -> u64 {
    getrandom::u64().unwrap_or_else(|_| RandomState::new().hash_one(process::id()))
}

/// The backend that exports to an OpenTelemetry collector: an [`OtlpExporter`] that starts when the backend is given to a
/// container.
#[derive(Debug)]
pub struct Otlp {
    options: OtlpOptions,
    exporter: OnceLock<OtlpExporter>,
}

impl Otlp {
    /// One with these options. They are checked when it is given to a container.
    pub fn new(options: OtlpOptions) -> Self {
        Otlp {
            options,
            exporter: OnceLock::new(),
        }
    }

    /// The exporter; `None` until the backend is given to a container.
    pub fn exporter(&self) -> Option<&OtlpExporter> {
        self.exporter.get()
    }
}

impl Backend for Otlp {
    fn name(&self) -> &str {
        NAME
    }

    fn attach(&self, bus: &MetricBus) -> Result<(), BackendError> {
        if self.exporter.get().is_some() {
            return Err(setup(
                "it has a bus already; make another one for another bus",
            ));
        }
        let exporter = OtlpExporter::start(bus, self.options.clone())?;
        // One that was attached by two threads at once keeps the first, and the other ends.
        let _ = self.exporter.set(exporter);
        Ok(())
    }

    fn flush(&self, deadline: Duration) -> Result<(), BackendError> {
        match self.exporter.get() {
            Some(exporter) => exporter.flush(deadline),
            None => Ok(()),
        }
    }

    fn shutdown(&self, deadline: Duration) -> Result<(), BackendError> {
        match self.exporter.get() {
            Some(exporter) => exporter.shutdown(deadline),
            None => Ok(()),
        }
    }
}

/// The container whose metrics an OpenTelemetry collector gets.
///
/// ```
/// use std::time::Duration;
/// use metricbus::{MetricContainer, OtlpContainer, backend::OtlpOptions};
///
/// let options = OtlpOptions::new().endpoint("http://127.0.0.1:9").interval(Duration::from_secs(10));
/// let container = OtlpContainer::with(options, "myapp")?;
/// container.create_counter("jobs_total", "Jobs done.", &[])?.inc();
/// // Nobody listens there, and what was counted is not at the collector when the time is over.
/// let error = container.shutdown(Duration::from_millis(50)).unwrap_err();
/// assert!(error.to_string().contains("1 points are left"), "{error}");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub type OtlpContainer = BackendContainer<Otlp>;

impl BackendContainer<Otlp> {
    /// A container on a bus of its own, exported as [OpenTelemetry's variables](OtlpOptions::from_env) say. `prefix` is
    /// that of [`PrometheusContainer::new`](crate::PrometheusContainer), and the service's name where no variable names it.
    ///
    /// # Errors
    ///
    /// Where a variable has a wrong value, or the exporter [can't be started](OtlpExporter::start).
    pub fn new(prefix: &str) -> Result<Self, BackendError> {
        OtlpContainer::with(OtlpOptions::from_env()?, prefix)
    }

    /// As [`new`](OtlpContainer::new), with options that do not come from the environment.
    ///
    /// # Errors
    ///
    /// Where the exporter [can't be started](OtlpExporter::start).
    pub fn with(options: OtlpOptions, prefix: &str) -> Result<Self, BackendError> {
        OtlpContainer::on(&MetricBus::new(), options, prefix)
    }

    /// On a bus that there is already. All of its metrics are exported, and not only those of the container.
    ///
    /// # Errors
    ///
    /// As [`with`](OtlpContainer::with).
    pub fn on(bus: &MetricBus, options: OtlpOptions, prefix: &str) -> Result<Self, BackendError> {
        let options = options.service_name_or(prefix.trim_end_matches('_'));
        BackendContainer::with_backend(bus, prefix, Arc::new(Otlp::new(options)))
    }
}
