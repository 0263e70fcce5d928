//! Frames: the values of chosen series, sent when they have changed, as OTLP metrics.
//!
//! | file | owns |
//! |---|---|
//! | `worth.rs` | when a series is worth telling again: pure |
//! | `marks.rs` | which series have something to be told |
//! | `ear.rs` | the listener in each series |
//! | `births.rs` | since when each series has been there |
//! | `teller.rs` | from marks to frames; what was not confirmed |
//! | `flow.rs` | one forwarding at work: tick, task, end |
//!
//! Here: what all forwardings of a source have in common, and what users see of them. Where two of them have the same
//! series both send it, each to its own subject and at its own pace: a consumer of one would miss what only the other
//! sends, and values are absolute, so twice does no harm. A snapshot has it once.

mod births;
mod ear;
mod flow;
mod marks;
mod teller;
mod worth;

use std::{
    collections::HashSet,
    fmt,
    sync::{Arc, Mutex, Weak, atomic::Ordering},
    time::Duration,
};

use tokio::runtime::Handle;

use super::Core;
use crate::{
    Delta, IntoSelector, Selector,
    bus::{Inner, MetricBus},
    cell::Wakes,
    error::{SelectorError, SubscribeError},
    mailbox::Mailbox,
    mirror::{MirrorValue, read_value},
    nats::{
        subject::{SubjectError, check_part},
        wire::frame::{Frame, FrameValue},
    },
    series::SeriesCore,
    stats::{bump, next_id},
    sync::lock,
    watch::Watch,
};
use births::Births;
use ear::{Ears, unix_nanos};
use flow::Flow;
use marks::Marks;
use teller::Builder;

/// How often frames are sent, unless told otherwise.
const EVERY_DEFAULT: Duration = Duration::from_millis(100);
const EVERY_MIN: Duration = Duration::from_millis(10);

/// The name of a forwarding unless it is given one.
const STREAM_DEFAULT: &str = "all";

/// Series that a snapshot reads before others have their turn: less than a millisecond.
const SNAPSHOT_STEP: usize = 2_048;

/// What all forwardings of a source have in common.
pub(super) struct Frames {
    births: Arc<Births>,
    /// When the forwarder began, in nanoseconds since 1970.
    boot: u64,
    flows: Mutex<Vec<Arc<Flow>>>,
    /// Held from the reading of values to the sending of their frame, and while a snapshot reads: what a snapshot says is
    /// never older than a frame before it, nor newer than one after it.
    order: tokio::sync::Mutex<()>,
}

/// A present value, for a snapshot.
pub(super) struct Present {
    core: Arc<SeriesCore>,
    born: u64,
    value: MirrorValue,
}

impl Frames {
    /// `epoch`: when the forwarder began, in microseconds since 1970.
    pub(super) fn new(epoch: u64) -> Frames {
        Frames {
            births: Arc::default(),
            boot: epoch.saturating_mul(1_000),
            flows: Mutex::default(),
            order: tokio::sync::Mutex::default(),
        }
    }

    /// How many forwardings there are.
    pub(super) fn forwardings(&self) -> usize {
        lock(&self.flows).len()
    }

    /// How many series are forwarded.
    pub(super) fn series(&self) -> usize {
        self.births.len()
    }

    fn forget(&self, flow: &Arc<Flow>) {
        lock(&self.flows).retain(|f| !Arc::ptr_eq(f, flow));
    }

    /// Leaves a number out: whoever counts asks for a snapshot, which tells what is no more.
    async fn skip(&self, core: &Core) {
        let _order = self.order.lock().await;
        core.frame_sequence.fetch_add(1, Ordering::AcqRel);
        bump(&core.stats.frames_skipped);
    }

    /// The present values of all forwarded series that match, each once, and the number of the last frame before them.
    /// Frames wait meanwhile.
    pub(super) async fn snapshot(
        &self,
        forwarder: &Core,
        selector: Option<&Selector>,
    ) -> (u64, Vec<Present>) {
        let order = self.order.lock().await;
        let sequence = forwarder.frame_sequence.load(Ordering::Acquire);
        let flows = lock(&self.flows).clone();
        let mut seen = HashSet::new();
        let mut present = Vec::with_capacity(self.births.len());
        for flow in flows.iter().filter(|flow| !flow.has_ended()) {
            for step in flow.ears.marks.tell_all().chunks(SNAPSHOT_STEP) {
                for member in step {
                    let Some(core) = member.core.upgrade() else {
                        continue;
                    };
                    if selector.is_some_and(|selector| !selector.matches(&core))
                        || !seen.insert(Arc::as_ptr(&core).addr())
                        || core.cell.is_retired()
                    {
                        continue;
                    }
                    // A gauge that was never set has none.
                    if let Some(value) = read_value(&core) {
                        let born = member.born;
                        present.push(Present { core, born, value });
                    }
                }
                tokio::task::yield_now().await;
            }
        }
        drop(order);
        (sequence, present)
    }
}

/// As frames of about so many series each; at least one.
pub(super) fn frames_of(
    present: Vec<Present>,
    bus: &MetricBus,
) -> impl Iterator<Item = Frame> + use<> {
    let clock = bus.clock().clone();
    let at = unix_nanos(clock.wall(clock.now()));
    let mut left = present.into_iter();
    let mut first = true;
    std::iter::from_fn(move || {
        let mut frame = Builder::default();
        for Present { core, born, value } in left.by_ref().take(SNAPSHOT_STEP) {
            frame.push(&core, born, FrameValue::Value(value));
        }
        (frame.points > 0 || std::mem::take(&mut first)).then(|| {
            first = false;
            frame.finish(at)
        })
    })
}

/// Why a forwarding can't be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ForwardError {
    /// The selector is wrong.
    #[error(transparent)]
    Selector(#[from] SelectorError),
    /// The deadband is wrong.
    #[error(transparent)]
    Deadband(#[from] SubscribeError),
    /// The period is too short.
    #[error("frames every {every:?} are too many: a forwarding sends at most every {EVERY_MIN:?}")]
    Every {
        /// What was asked for.
        every: Duration,
    },
    /// The name can't be in a subject.
    #[error("a forwarding can't be called so: {why}")]
    Name {
        /// What is wrong with it.
        why: String,
    },
    /// There is no tokio runtime here to run it on.
    #[error("a forwarding runs on tokio: start it inside of a runtime")]
    NoRuntime,
    /// The bus, or the forwarder, has ended.
    #[error("there is nothing to forward: the {what} has ended")]
    Ended {
        /// Which of the two.
        what: &'static str,
    },
}

impl From<SubjectError> for ForwardError {
    fn from(error: SubjectError) -> Self {
        ForwardError::Name {
            why: error.to_string(),
        }
    }
}

/// A forwarding being made: nothing is sent until [`start`](Forward::start).
///
/// The series that match are sent when they have changed, and not otherwise: the present value, whole, however often it
/// has changed in between. So a consumer can begin anywhere, a lost message costs nothing but time, and the rate of
/// messages does not grow with the rate of mutations.
///
/// At first every series that matches is sent, and so is one that is made later. A gauge that was never set is not
/// sent until it is. A series that is removed is told to be gone. Series that came from other processes (those of a
/// [`Fleet`](crate::nats::Fleet)) are not sent on. Two forwardings that have the same series both send it.
///
/// # Cost
///
/// The first mutation of a series after it was sent takes the slow path and marks it; those that follow until it is sent
/// again cost what they cost without any subscriber. Memory is bounded by the number of series: while there is no
/// connection they stay marked, and nothing is queued.
///
/// ```no_run
/// use std::time::Duration;
/// use metricbus::{Delta, MetricBus, SourceId, nats::{NatsForwarder, NatsOptions}};
///
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let bus = MetricBus::new();
/// let forwarder = NatsForwarder::builder(&bus, NatsOptions::from_env()?)
///     .source(SourceId::new("prod", "decode", "pod-7"))
///     .start()
///     .await?;
/// let _frames = forwarder
///     .forward(r#"{__name__=~"kv_.*|requests_total"}"#)
///     .every(Duration::from_millis(100))
///     .deadband(Delta::absolute(0.01))
///     .start()?;
/// # Ok(())
/// # }
/// ```
#[must_use = "nothing is forwarded until `start`"]
pub struct Forward {
    core: Weak<Core>,
    selector: Result<Selector, SelectorError>,
    every: Duration,
    deadband: Option<Delta>,
    name: String,
}

impl Forward {
    pub(super) fn new(core: &Arc<Core>, selector: impl IntoSelector) -> Forward {
        Forward {
            core: Arc::downgrade(core),
            selector: selector.into_selector(),
            every: EVERY_DEFAULT,
            deadband: None,
            name: STREAM_DEFAULT.to_owned(),
        }
    }

    /// How often a frame is sent at most: every 100 ms unless told otherwise, at least 10 ms. Frames are sent at multiples
    /// of it by the bus's clock, where there is something to send.
    pub fn every(mut self, every: Duration) -> Self {
        self.every = every;
        self
    }

    /// A gauge is sent only when it has moved by this much since it was last sent. Unless told otherwise any other value
    /// is. From a number to NaN and back is always a move. Counters and histograms are sent after any mutation.
    pub fn deadband(mut self, delta: Delta) -> Self {
        self.deadband = Some(delta);
        self
    }

    /// The last token of the subject, `….m.{name}`: what consumers choose by. `all` unless told otherwise. Any text;
    /// what a subject can't have is escaped.
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Begins to forward, until what it returns is dropped. Has to be called inside of a tokio runtime.
    ///
    /// # Errors
    ///
    /// When selector, deadband, period or name are wrong, outside of a tokio runtime, or when bus or forwarder have
    /// ended.
    pub fn start(self) -> Result<Forwarding, ForwardError> {
        let selector = self.selector?;
        let deadband = self.deadband.map(Delta::distance).transpose()?;
        if self.every < EVERY_MIN {
            return Err(ForwardError::Every { every: self.every });
        }
        check_part("forwarding", &self.name)?;
        let runtime = Handle::try_current().map_err(|_| ForwardError::NoRuntime)?;
        let ended = |what| ForwardError::Ended { what };
        let core = self.core.upgrade().ok_or(ended("forwarder"))?;
        if !core.is_running() {
            return Err(ended("forwarder"));
        }
        let bus = core.bus().ok_or(ended("bus"))?;
        let inner = bus.inner();

        let ears = Arc::new(Ears {
            id: next_id(),
            deadband,
            marks: Marks::new(),
            births: core.frames.births.clone(),
            boot: core.frames.boot,
        });
        let make = {
            let ears = ears.clone();
            move |series: &Arc<SeriesCore>,
                  newborn: bool,
                  _: &mut Wakes|
                  -> Box<dyn crate::cell::Listener> { ears.ear(series, newborn) }
        };
        // Marks are looked for, not posted.
        let nothing = Arc::new(Mailbox::new(1));
        let watch = Arc::new(Watch::of_forwarding(
            ears.id,
            selector,
            Box::new(make),
            nothing,
        ));
        let subject = core.subjects.frames(&core.source, &self.name);
        let flow = Flow::new(self.name, subject, ears, watch.clone());
        lock(&core.frames.flows).push(flow.clone());
        inner.watch(&watch);
        let ticking: Weak<Flow> = Arc::downgrade(&flow);
        bus.clock().every(self.every, ticking);
        runtime.spawn(flow::run(flow.clone(), core.clone()));
        Ok(Forwarding {
            bus: Arc::downgrade(inner),
            flow,
            forgotten: false,
        })
    }
}

impl fmt::Debug for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forward")
            .field("name", &self.name)
            .field("every", &self.every)
            .field("deadband", &self.deadband)
            .finish_non_exhaustive()
    }
}

/// A forwarding. Dropping it ends it, and tells consumers that its series are no more (unless another forwarding of the
/// same source has them); [`forget`](Forwarding::forget) keeps it for as long as the forwarder lives.
#[must_use = "dropping a forwarding ends it at once, and `let _ =` drops it: name it (`let _frames =`), or call `forget()`"]
pub struct Forwarding {
    bus: Weak<Inner>,
    flow: Arc<Flow>,
    forgotten: bool,
}

impl Forwarding {
    /// Keeps it for as long as the forwarder lives.
    pub fn forget(mut self) {
        self.forgotten = true;
    }

    /// How many series it forwards now.
    #[must_use]
    pub fn series(&self) -> usize {
        self.flow.ears.marks.len()
    }

    /// How many frames it has sent.
    #[must_use]
    pub fn frames_sent(&self) -> u64 {
        self.flow.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        if !self.forgotten {
            self.flow.end(&self.bus);
        }
    }
}

impl fmt::Debug for Forwarding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forwarding")
            .field("name", &self.flow.stream)
            .field("about", &self.flow.watch.selector.to_string())
            .field("series", &self.series())
            .field("frames_sent", &self.frames_sent())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Clock, SourceId,
        nats::{NatsForwarder, NatsOptions},
    };

    /// A forwarder whose server is not there.
    async fn forwarder(bus: &MetricBus) -> NatsForwarder {
        // A port that was free a moment ago.
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .unwrap()
            .port();
        let options = NatsOptions::new(&format!("nats://127.0.0.1:{port}")).unwrap();
        let builder = NatsForwarder::builder(bus, options).source(SourceId::new("n", "c", "i"));
        builder.start().await.unwrap()
    }

    #[tokio::test]
    async fn what_cannot_be_forwarded_is_an_error_with_the_value_and_what_would_be_right() {
        let bus = MetricBus::new();
        let forwarder = forwarder(&bus).await;
        let forward = || forwarder.forward("g");
        for (forward, right) in [
            (forwarder.forward("g{"), "expected a label name"),
            (
                forward().every(Duration::from_millis(9)),
                "at most every 10ms",
            ),
            (forward().deadband(Delta::absolute(0.0)), "delta"),
            (forward().deadband(Delta::absolute(f64::NAN)), "delta"),
            (forward().named("x".repeat(600)), "512"),
        ] {
            let error = forward.start().unwrap_err().to_string();
            assert!(error.contains(right), "{error}");
        }
        forwarder.shutdown(Duration::ZERO).await;
        let error = forward().start().unwrap_err();
        assert!(matches!(error, ForwardError::Ended { what: "forwarder" }));
    }

    #[tokio::test]
    async fn outside_of_a_runtime_there_is_an_error() {
        let bus = MetricBus::new();
        let forwarder = forwarder(&bus).await;
        let forward = forwarder.forward("g");
        let error = std::thread::spawn(|| forward.start().unwrap_err()).join();
        assert!(matches!(error.unwrap(), ForwardError::NoRuntime));
    }

    #[tokio::test]
    async fn without_a_server_series_stay_marked_and_nothing_is_queued() {
        let clock = Clock::manual();
        let bus = MetricBus::builder().clock(clock.clone()).build();
        let forwarder = forwarder(&bus).await;
        let gauge = bus.gauge("g", "Of a test.").unwrap();
        let frames = forwarder.forward("g").start().unwrap();
        for v in 0..1_000 {
            gauge.set(f64::from(v));
            clock.advance(EVERY_DEFAULT);
            tokio::task::yield_now().await;
        }
        assert_eq!(frames.series(), 1);
        let status = forwarder.status().frames;
        assert_eq!((status.forwardings, status.series), (1, 1));
        assert_eq!((status.sent, status.dropped), (0, 0));
        assert!(!frames.flow.ears.marks.is_empty());
    }

    #[tokio::test]
    async fn a_forwarding_ends_when_it_is_dropped_and_one_forgotten_with_its_forwarder() {
        let bus = MetricBus::new();
        let gauge = bus.gauge("g", "Of a test.").unwrap();
        let forwarder = forwarder(&bus).await;
        let frames = forwarder.forward("g").start().unwrap();
        forwarder
            .forward("g")
            .named("other")
            .start()
            .unwrap()
            .forget();
        let is_heard = || !gauge.series().core().cell.is_open();
        let forwardings = || forwarder.status().frames.forwardings;
        assert_eq!(forwardings(), 2);
        drop(frames);
        while forwardings() > 1 {
            tokio::task::yield_now().await;
        }
        assert_eq!(forwarder.status().frames.series, 1);
        gauge.set(1.0);
        forwarder.shutdown(Duration::ZERO).await;
        while forwardings() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(forwarder.status().frames.series, 0);
        assert!(!is_heard());
    }

    #[tokio::test]
    async fn a_snapshot_has_each_series_once_that_has_a_value() {
        let bus = MetricBus::new();
        for name in ["a", "b", "unset", "other"] {
            let gauge = bus.gauge(name, "Of a test.").unwrap();
            if name != "unset" {
                gauge.set(1.0);
            }
        }
        let forwarder = forwarder(&bus).await;
        let of = |selector: &str| forwarder.forward(selector).start().unwrap();
        let _forwardings = [
            of(r#"{__name__=~"a|b|unset"}"#),
            of(r#"{__name__=~"b|unset"}"#),
        ];
        let core = forwarder.core();
        core.frame_sequence.store(7, Ordering::Release);
        let taken = async |selector: Option<&str>| {
            let selector = selector.map(|text| text.parse().unwrap());
            let (sequence, present) = core.frames.snapshot(core, selector.as_ref()).await;
            let names = present.iter().map(|p| p.core.meta.name.to_string());
            (sequence, names.collect::<Vec<_>>())
        };
        let all = (7, vec!["a".to_owned(), "b".to_owned()]);
        assert_eq!(taken(None).await, all);
        assert_eq!(taken(Some("b")).await, (7, vec!["b".to_owned()]));
        bus.remove("a").unwrap();
        assert_eq!(taken(None).await.1, ["b"]);
        // Nothing at all is a frame, too: it says that there is nothing.
        assert_eq!(frames_of(Vec::new(), &bus).count(), 1);
    }
}
