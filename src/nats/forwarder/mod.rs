//! The publisher's side: what a process says to others. This file owns what all its parts share, and its beginning and end.
//!
//! | part | does |
//! |---|---|
//! | `outbox.rs` | holds alerts until they are confirmed, and after |
//! | `sender.rs` | gets them to the server, once and in order as far as that can be |
//! | `route.rs` | finds out which of them JetStream takes |
//! | `pulse.rs` | birth, heartbeat, death |
//! | `frames.rs` | values of series, when they have changed |
//! | `answer.rs` | what others ask: snapshot, windows, rules, alerts |
//! | `rules_in.rs` | rules that others send |
//! | `rate.rs` | bounds how much goes out |
//! | `own.rs` | what is counted, and its metrics |

mod answer;
mod frames;

mod outbox;
mod own;
mod pulse;
mod rate;
mod route;
mod rules_in;
mod sender;

use std::{
    env, fmt,
    pin::Pin,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use async_nats::Subscriber;
use tokio::{
    runtime,
    sync::{Notify, watch},
    time::timeout_at,
};
use tower_service::Service;

use self::{
    answer::Questions, frames::Frames, own::Stats, rate::Bucket, rules_in::RulesIn, sender::Desk,
};
pub use self::{
    frames::{Forward, ForwardError, Forwarding},
    rules_in::{RefusedRule, RulesInState, RulesInStatus},
};
use super::{
    connection::{Connection, ConnectionStatus},
    error::NatsError,
    options::NatsOptions,
    subject::{AlertSubject, Subjects, check_source},
    wire::{
        alert::Letterhead,
        envelope::{Envelope, FRAME_TYPE, PARTS_MAX, SEQUENCE_MAX, set_part},
        limits,
    },
};
use crate::{
    Alert, Clock, IntoSelector, MetricBus, SourceId, Subscription, bus::Inner as BusInner,
    own::Counts, sync::lock,
};

const OUTBOX_MAX: usize = 10_000;
const OUTBOX_BYTES_MAX: usize = 64 << 20;
/// What several threads may say while one of them puts it into the outbox.
const ALERTS_AT_ONCE: usize = 16_384;
const HEARTBEAT: Duration = Duration::from_secs(1);
const ALERTS_PER_SECOND: f64 = 1_000.0;
const FRAMES_PER_SECOND: f64 = 100.0;
/// For the last alerts and the death of a forwarder that nobody holds any more.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// For something that was tried in vain to be tried again, and to be told again: the longest pause, and a question.
const TROUBLE: Duration = Duration::from_secs(10);
/// For the death itself, beyond a deadline that the alerts have used up.
const DEATH: Duration = Duration::from_millis(500);

/// How alerts get to the server.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Delivery {
    /// Through JetStream where a stream takes the alert's subject; else as [`Core`](Delivery::Core). Which streams there are
    /// is looked up at each connect, when one refuses an alert, and each minute while there are alerts. As over core goes,
    /// too, what a stream can't take: a sealed one anything, a full one what comes until it has room, any what is larger than
    /// its `max_msg_size` even when it is shortened. And a stream with `no_ack`, as one on `>` has to be, is given alerts
    /// that are confirmed as over core.
    #[default]
    Auto,
    /// To those who listen at the time. Confirmed once the server has processed it; whether anybody heard it is not known.
    Core,
    /// Into this stream of JetStream; confirmed once the stream has it, or with `no_ack`, where it never says so, as over
    /// core NATS. What it refuses, as when it is full, is tried again, after 5 s at first and 5 minutes at most, and at once
    /// when something else is taken; new alerts are sent meanwhile. To a sealed stream, a mirror, or one with other subjects
    /// nothing is sent until it is another one. What is larger than its `max_msg_size` even when it is shortened is lost,
    /// and counted.
    JetStream {
        /// Its name.
        stream: String,
        /// Whether to make it where it does not exist: in files, for 7 days and 256 MiB at most, without duplicates within
        /// 10 minutes, with the subjects of the alerts of all sources. One that exists is not changed.
        create: bool,
    },
}

/// Publishes what happens on a bus to NATS. Made by [`NatsForwarder::builder`].
///
/// It is a `tower::Service<Alert>` that is always ready and never waits: an alert goes into an outbox, and from there to
/// the server as soon as there is one. Nothing that the network does is an error; [`status`](NatsForwarder::status) and the
/// metrics `metricbus_nats_*` of the bus tell what it does.
///
/// Each alert is sent until it is confirmed, always with the same `Nats-Msg-Id`, so that whoever removes duplicates has it
/// exactly once. An outbox that is full drops the oldest, and counts it.
///
/// Each change of the connection's state is one line in the log, and the same trouble is not told again and again. The
/// client beneath logs each of its attempts as well: silence its target `async_nats` where that is too much.
///
/// Clones are the same forwarder. When the last is dropped, its bus ends, or it is [shut down](NatsForwarder::shutdown), it
/// says that it ends; it does not keep its bus.
///
/// ```no_run
/// use std::time::Duration;
/// use metricbus::{MetricBus, Rule, SourceId, Threshold, nats::{NatsForwarder, NatsOptions}};
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let bus = MetricBus::new();
/// let forwarder = NatsForwarder::builder(&bus, NatsOptions::new("nats://127.0.0.1:4222")?)
///     .source(SourceId::new("prod", "decode", "pod-7"))
///     .start()
///     .await?;
/// let _alerts = forwarder.forward_alerts()?;
/// // …
/// forwarder.shutdown(Duration::from_secs(5)).await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct NatsForwarder(Arc<Handle>);

struct Handle {
    core: Arc<Core>,
    runtime: runtime::Handle,
}

/// What all parts of a forwarder share. Their tasks hold it, and end with its [phase](Core::ended).
pub(crate) struct Core {
    /// Not held: a forwarder ends with its bus.
    pub(crate) bus: Weak<BusInner>,
    pub(crate) clock: Clock,
    pub(crate) source: SourceId,
    /// Which life of the source this is.
    pub(crate) epoch: u64,
    /// What its alerts have in common.
    letterhead: Letterhead,
    /// How much of a message the headers of frames and answers take.
    headers_len: usize,
    pub(crate) subjects: Subjects,
    pub(crate) connection: Connection,
    pub(crate) heartbeat: Duration,
    pub(crate) stats: Stats,
    /// The sequence of the last frame, of all streams.
    pub(crate) frame_sequence: AtomicU64,
    /// For each frame, before it gets its sequence.
    frame_rate: Mutex<Bucket>,
    frames: Frames,
    rules_in: Option<RulesIn>,
    /// A template, in place of our own subjects.
    alert_subject: Option<AlertSubject>,
    delivery: Delivery,
    /// Where acknowledgements of JetStream come in.
    acks: String,
    /// The outbox, and what is on its way.
    pub(crate) desk: Mutex<Desk>,
    /// The connection on which the birth was said. No alert goes before it: who hears of a source by an alert first takes it
    /// for one that was there before, and its alerts for no news.
    born: AtomicU64,
    /// Wakes the sender.
    bell: Notify,
    /// Something was confirmed or given up, or somebody has left.
    progress: Notify,
    phase: watch::Sender<Phase>,
    staying: AtomicUsize,
    last_error: Mutex<Option<Told>>,
    /// The same, of alerts alone.
    last_of_alerts: Mutex<Option<Told>>,
}

/// What was told to an operator, and when.
type Told = (String, SystemTime);

/// Where a forwarder is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Running,
    /// Takes no more alerts, and sends what there is.
    Closing,
    Ended,
}

/// Settings of a forwarder. Made by [`NatsForwarder::builder`].
#[derive(Clone, Debug)]
#[must_use]
pub struct NatsForwarderBuilder {
    bus: MetricBus,
    options: NatsOptions,
    source: Option<SourceId>,
    prefix: String,
    subject: Option<String>,
    delivery: Delivery,
    outbox: usize,
    outbox_bytes: usize,
    heartbeat: Duration,
    alerts_per_second: f64,
    frames_per_second: f64,
    rules_from: Option<String>,
}

/// An alert is in the outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Queued {
    /// 1 for the first alert of this forwarder, 2 for the next …
    pub sequence: u64,
}

impl NatsForwarder {
    /// A forwarder of what happens on `bus`.
    pub fn builder(bus: &MetricBus, options: NatsOptions) -> NatsForwarderBuilder {
        NatsForwarderBuilder {
            bus: bus.clone(),
            options,
            source: None,
            prefix: "metricbus".to_owned(),
            subject: None,
            delivery: Delivery::Auto,
            outbox: OUTBOX_MAX,
            outbox_bytes: OUTBOX_BYTES_MAX,
            heartbeat: HEARTBEAT,
            alerts_per_second: ALERTS_PER_SECOND,
            frames_per_second: FRAMES_PER_SECOND,
            rules_from: None,
        }
    }

    /// Sends every alert of the bus's rules, until what it returns is dropped: those that are firing now first.
    ///
    /// The thread that mutates puts the alert into the outbox, and the forwarder's own task does the rest: nothing lies
    /// between a rule and the outbox that could be full or forgotten, and [`flush`](NatsForwarder::flush) knows of all that
    /// was said before it. To send some alerts only, or through layers, use the forwarder as the tower service that it is:
    /// `bus.on_alert().service(forwarder.clone())`.
    ///
    /// # Errors
    ///
    /// When the bus or the forwarder has ended.
    pub fn forward_alerts(&self) -> Result<Subscription, NatsError> {
        let core = self.core();
        let bus = core.bus().ok_or(NatsError::Ended)?;
        let forwarder = Arc::downgrade(core);
        let subscribed = bus
            .on_alert()
            .capacity(ALERTS_AT_ONCE)
            .inline_trusted(move |alert| {
                let Some(core) = forwarder.upgrade() else {
                    return;
                };
                let rule = alert.rule.clone();
                match sender::offer(&core, alert, false) {
                    Ok(_) => core.bell.notify_one(),
                    Err(NatsError::Ended) => {}
                    Err(error) => {
                        core.note(format!("an alert of rule {rule:?} is dropped: {error}"))
                    }
                }
            });
        subscribed.map_err(|_| NatsError::Ended)
    }

    /// Sends the values of the selected series, present and future, when they have changed: see [`Forward`].
    pub fn forward(&self, selector: impl IntoSelector) -> Forward {
        Forward::new(self.core(), selector)
    }

    /// What it is doing.
    pub fn status(&self) -> ForwarderStatus {
        self.0.core.status()
    }

    /// Who it says it is.
    pub fn source(&self) -> &SourceId {
        &self.0.core.source
    }

    /// Waits until all alerts that are in the outbox now are confirmed. What a rule has just said may still be on its way
    /// from the bus to the outbox.
    ///
    /// # Errors
    ///
    /// `Unconfirmed` when `deadline` has passed, with what stood in the way. They stay in the outbox.
    pub async fn flush(&self, deadline: Duration) -> Result<(), NatsError> {
        self.0.core.flush(Instant::now() + deadline).await
    }

    /// Takes no more alerts, waits until those it has are confirmed, but not longer than `deadline`, says that it ends, and
    /// closes the connection. What is not confirmed by then is lost. What a stream has refused, or the server, is tried once
    /// more, and not waited for. It goes on where this future is dropped before.
    pub async fn shutdown(&self, deadline: Duration) {
        let until = Instant::now() + deadline;
        let core = self.0.core.clone();
        let closing = self
            .0
            .runtime
            .spawn(async move { close(core, "shut down", until).await });
        // It fails where the runtime has ended, and all with it.
        let _ = closing.await;
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.0.core
    }
}

impl NatsForwarderBuilder {
    /// Who we are. From the environment unless told: `METRICBUS_NAMESPACE`, `METRICBUS_COMPONENT`, and `HOSTNAME`, or
    /// without that what the machine is called.
    pub fn source(mut self, source: SourceId) -> Self {
        self.source = Some(source);
        self
    }

    /// With what all subjects begin; `metricbus` unless told otherwise. May be several tokens.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Subjects of your own for alerts, such as `alerts.{component}.{rule}.{state}`: there is `{namespace}`,
    /// `{component}`, `{instance}`, `{rule}`, `{state}`, `{level}` and `{label.NAME}`, each escaped so that it stays
    /// within its token. A [`Fleet`] hears only those with the usual subjects.
    ///
    /// [`Fleet`]: crate::nats::Fleet
    pub fn subject(mut self, template: impl Into<String>) -> Self {
        self.subject = Some(template.into());
        self
    }

    /// How alerts get to the server; [`Delivery::Auto`] unless told otherwise.
    pub fn delivery(mut self, delivery: Delivery) -> Self {
        self.delivery = delivery;
        self
    }

    /// How many alerts the outbox holds; 10 000 unless told otherwise. Those that are confirmed stay, as long as there is
    /// room, for those who missed them. When there is none, the oldest goes that a later one of its rule and group supersedes. The last of each group
    /// stays, as long as there is room in bytes.
    pub fn outbox(mut self, alerts: usize) -> Self {
        self.outbox = alerts;
        self
    }

    /// How many bytes the outbox holds, by estimate; 64 MiB unless told otherwise.
    pub fn outbox_bytes(mut self, bytes: usize) -> Self {
        self.outbox_bytes = bytes;
        self
    }

    /// How often to say that we live, by the bus's clock; each second unless told otherwise. A consumer thinks us gone
    /// after a multiple of it.
    pub fn heartbeat(mut self, interval: Duration) -> Self {
        self.heartbeat = interval;
        self
    }

    /// How many alerts may go out in a second, after a burst of as many; 1 000 unless told otherwise. More than that wait
    /// in the outbox.
    pub fn alerts_per_second_max(mut self, alerts: f64) -> Self {
        self.alerts_per_second = alerts;
        self
    }

    /// How many frames of updates may go out in a second, of all forwardings together; 100 unless told otherwise. Beyond
    /// it updates are conflated for longer.
    pub fn frames_per_second_max(mut self, frames: f64) -> Self {
        self.frames_per_second = frames;
        self
    }

    /// Takes rules from this bucket of JetStream's key-value store, `metricbus-rules` as a rule. Not unless told: whoever
    /// may write there decides what is evaluated here.
    ///
    /// A key is `{namespace}.{component}.{rule}`, escaped as in subjects, with `=all` for every namespace or component; its
    /// value is the rule in JSON. Of several keys about one name the one that is most closely about this source is in force.
    /// A rule ends when its key is deleted, purged or expired, which is seen within some 20 seconds at most. It goes on when the
    /// connection, the server or the bucket go away, and when a new value can't be read; but where another bucket is there
    /// that does not have it, for five minutes only. A rule that the program has added itself is never touched; one from the bucket that has its name
    /// is refused. What is refused is in the [status](ForwarderStatus::rules_in), with the reason, and in the answer to
    /// `q.rules`. A source takes at most 1 000 rules.
    ///
    /// Their alerts are those of any other rule: they are sent if the program sends what
    /// [`on_alert`](MetricBus::on_alert) says, `bus.on_alert().service(forwarder.clone())`, and not otherwise.
    pub fn rules_from(mut self, bucket: impl Into<String>) -> Self {
        self.rules_from = Some(bucket.into());
        self
    }

    /// Starts it, on the tokio runtime that this is called in. That no server answers is no error.
    ///
    /// # Errors
    ///
    /// Settings that can't be, files that are missing or wrong, and no runtime.
    pub async fn start(self) -> Result<NatsForwarder, NatsError> {
        let setting = |setting: &'static str, value: String, why: &str| {
            Err(NatsError::Setting {
                setting,
                value,
                why: why.to_owned(),
            })
        };
        let runtime = runtime::Handle::try_current().map_err(|_| NatsError::NoRuntime)?;
        let source = match self.source {
            Some(source) => source,
            None => source_from_env(|name| env::var(name).ok())?,
        };
        if let Err(error) = check_source(&source) {
            return setting("source", source.to_string(), &error.to_string());
        }
        let subjects = Subjects::new(&self.prefix).map_err(|error| NatsError::Setting {
            setting: "prefix",
            value: self.prefix.clone(),
            why: error.to_string(),
        })?;
        let alert_subject = self
            .subject
            .map(|template| {
                AlertSubject::parse(&template).map_err(|error| NatsError::Setting {
                    setting: "subject",
                    value: template,
                    why: error.to_string(),
                })
            })
            .transpose()?;
        if let Delivery::JetStream { stream, .. } = &self.delivery
            && let Err(why) = route::check_stream_name(stream)
        {
            return setting("stream", stream.clone(), why);
        }
        if self.outbox == 0 {
            return setting(
                "outbox",
                "0".to_owned(),
                "it needs room for one alert at least",
            );
        }
        if !(limits::INTERVAL_MIN..=limits::INTERVAL_MAX).contains(&self.heartbeat) {
            let (least, most) = (limits::INTERVAL_MIN, limits::INTERVAL_MAX);
            let why = format!("it must be from {least:?} to {most:?}; 1s is usual");
            return setting("heartbeat", format!("{:?}", self.heartbeat), &why);
        }
        for (name, rate) in [
            ("alerts_per_second_max", self.alerts_per_second),
            ("frames_per_second_max", self.frames_per_second),
        ] {
            if !(rate > 0.0 && rate.is_finite()) {
                return setting(name, rate.to_string(), "it must be above 0, and finite");
            }
        }
        let connection = Connection::open(&self.options, "forwarder").await?;
        let epoch = next_epoch(SystemTime::now());
        let (inbox, acks) = sender::subscribe(&connection).await?;
        let now = Instant::now();
        let core = Arc::new(Core {
            bus: Arc::downgrade(self.bus.inner()),
            clock: self.bus.clock().clone(),
            letterhead: Letterhead::new(source.clone(), epoch),
            headers_len: headers_len(&source, epoch),
            source,
            epoch,
            subjects,
            connection,
            heartbeat: self.heartbeat,
            stats: Stats::default(),
            frame_sequence: AtomicU64::new(0),
            frame_rate: Mutex::new(Bucket::new(self.frames_per_second, now)),
            frames: Frames::new(epoch),
            rules_in: self.rules_from.map(RulesIn::new),
            alert_subject,
            delivery: self.delivery,
            acks: inbox,
            desk: Mutex::new(Desk::new(
                self.outbox,
                self.outbox_bytes,
                Bucket::new(self.alerts_per_second, now),
                now,
            )),
            born: AtomicU64::new(0),
            bell: Notify::new(),
            progress: Notify::new(),
            phase: watch::Sender::new(Phase::Running),
            staying: AtomicUsize::new(0),
            last_error: Mutex::default(),
            last_of_alerts: Mutex::default(),
        });
        let shown: Weak<Core> = Arc::downgrade(&core);
        self.bus.inner().show_own(shown as Weak<dyn Counts>);
        // Who hears of the birth may ask at once: so whatever answers has subscribed before.
        let hello = subscribe(&core.connection, core.subjects.hello()).await?;
        let questions = Questions::subscribe(&core).await?;
        sender::start(&core, acks);
        pulse::start(&core, hello);
        answer::start(&core, questions, &self.prefix);
        rules_in::start(&core);
        Ok(NatsForwarder(Arc::new(Handle { core, runtime })))
    }
}

/// A subscription that is there whenever there is a connection.
pub(crate) async fn subscribe(
    connection: &Connection,
    subject: String,
) -> Result<Subscriber, NatsError> {
    let subscribed = connection.client().subscribe(subject.clone()).await;
    subscribed.map_err(|error| NatsError::Setting {
        setting: "subject",
        value: subject,
        why: error.to_string(),
    })
}

/// Of what was told, the newest that can be why alerts of this age are not confirmed: what is older has been overcome.
fn why_unconfirmed(told: impl Iterator<Item = Told>, age: Duration, now: SystemTime) -> String {
    let recent = told.filter(|(_, at)| now.duration_since(*at).unwrap_or_default() <= age);
    recent.max_by_key(|(_, at)| *at).map_or_else(
        || "the server has not confirmed them".to_owned(),
        |(words, _)| words,
    )
}

/// The most that the headers of a frame or an answer of this source take.
fn headers_len(source: &SourceId, epoch: u64) -> usize {
    let envelope = Envelope {
        source: source.clone(),
        epoch,
        sequence: SEQUENCE_MAX,
    };
    let mut headers = envelope.headers(FRAME_TYPE);
    set_part(&mut headers, PARTS_MAX, PARTS_MAX);
    sender::wire_len(&headers)
}

impl Core {
    pub(crate) fn bus(&self) -> Option<MetricBus> {
        self.bus.upgrade().map(MetricBus::of)
    }

    pub(crate) fn envelope(&self, sequence: u64) -> Envelope {
        Envelope {
            source: self.source.clone(),
            epoch: self.epoch,
            sequence,
        }
    }

    /// The room in a message beside the headers that frames and answers have.
    fn room(&self) -> usize {
        self.connection
            .max_payload()
            .saturating_sub(self.headers_len)
    }

    pub(crate) fn is_running(&self) -> bool {
        *self.phase.borrow() == Phase::Running
    }

    /// Is done when nothing new is to be begun: what there is should go out, and then the task end.
    pub(crate) async fn closing(&self) {
        // Its sender is in `self`.
        let _ = self
            .phase
            .subscribe()
            .wait_for(|phase| *phase >= Phase::Closing)
            .await;
    }

    /// Is done when all is over.
    pub(crate) async fn ended(&self) {
        let _ = self
            .phase
            .subscribe()
            .wait_for(|phase| *phase == Phase::Ended)
            .await;
    }

    /// As long as the guard is there, the end waits, though not beyond its deadline: for tasks that have something to send
    /// when it is [closing](Core::closing).
    pub(crate) fn stay(self: &Arc<Self>) -> Stay {
        self.staying.fetch_add(1, Ordering::AcqRel);
        Stay(self.clone())
    }

    /// Something that an operator should know: kept for the status, and logged, but not again and again.
    pub(crate) fn note(&self, words: String) {
        if self.connection.says(&words) {
            tracing::warn!("metricbus forwarder of {}: {words}", self.source);
        }
        *lock(&self.last_error) = Some((words, SystemTime::now()));
    }

    /// The same, where it is about alerts: it may be why some are not confirmed.
    fn note_of_alerts(&self, words: String) {
        *lock(&self.last_of_alerts) = Some((words.clone(), SystemTime::now()));
        self.note(words);
    }

    async fn flush(&self, until: Instant) -> Result<(), NatsError> {
        let mark = lock(&self.desk).outbox.last();
        let done = self
            .until(until, || lock(&self.desk).is_confirmed_until(mark))
            .await;
        if done {
            return Ok(());
        }
        let why = if self.connection.is_up() {
            let status = self.connection.status();
            let connection = status.last_error.zip(status.last_error_at);
            let alerts = lock(&self.last_of_alerts).clone();
            let (oldest, tried) = {
                let desk = lock(&self.desk);
                let oldest = desk.outbox.oldest_unconfirmed();
                (oldest.map(|(_, since)| since), desk.is_tried_again())
            };
            let age = oldest.map_or(Duration::ZERO, |since| self.clock.now().since(since));
            // What was tried in vain before it came, and will be again, stands in its way as well.
            let age = age.saturating_add(if tried { TROUBLE } else { Duration::ZERO });
            why_unconfirmed(alerts.into_iter().chain(connection), age, SystemTime::now())
        } else {
            self.connection.why_down()
        };
        let left = lock(&self.desk).unconfirmed_until(mark);
        Err(NatsError::Unconfirmed { left, why })
    }

    /// Waits for what [`progress`](Core::progress) tells of; `false` if it did not happen in time, or all ended before.
    async fn until(&self, until: Instant, is: impl Fn() -> bool) -> bool {
        let mut phase = self.phase.subscribe();
        let wait = async {
            loop {
                let progress = self.progress.notified();
                tokio::pin!(progress);
                // Before it is looked, so that nothing is missed in between.
                progress.as_mut().enable();
                if is() {
                    return true;
                }
                tokio::select! {
                    () = progress => {}
                    ended = phase.wait_for(|phase| *phase == Phase::Ended) => {
                        drop(ended);
                        return is();
                    }
                }
            }
        };
        timeout_at(until.into(), wait).await.unwrap_or(false)
    }
}

/// See [`Core::stay`].
pub(crate) struct Stay(Arc<Core>);

impl Drop for Stay {
    fn drop(&mut self) {
        self.0.staying.fetch_sub(1, Ordering::AcqRel);
        self.0.progress.notify_waiters();
    }
}

/// The end: alerts, then whoever has last words, then the death.
async fn close(core: Arc<Core>, reason: &str, until: Instant) {
    let first = core.phase.send_if_modified(|phase| {
        let running = *phase == Phase::Running;
        if running {
            *phase = Phase::Closing;
        }
        running
    });
    if !first {
        // Somebody else is at it.
        let _ = timeout_at(until.into(), core.ended()).await;
        return;
    }
    // Waiting is no use for what its stream refuses, or the server.
    lock(&core.desk).close();
    core.bell.notify_one();
    let done = || {
        let desk = lock(&core.desk);
        desk.outbox.unconfirmed() == 0 || desk.is_in_vain()
    };
    core.until(until, done).await;
    // Unconfirmed alerts are in the status and the metrics until the very end, and told here.
    if let Err(error) = core.flush(Instant::now()).await {
        tracing::warn!("metricbus forwarder of {}: at its end {error}", core.source);
    }
    let nobody = || core.staying.load(Ordering::Acquire) == 0;
    core.until(until, nobody).await;
    let last = until.max(Instant::now() + DEATH);
    let _ = timeout_at(last.into(), pulse::die(&core, reason)).await;
    core.phase.send_replace(Phase::Ended);
    core.bell.notify_one();
    let _ = timeout_at(last.into(), core.connection.close()).await;
}

impl Drop for Handle {
    fn drop(&mut self) {
        if self.core.is_running() {
            let until = Instant::now() + LAST_WORDS;
            let core = self.core.clone();
            // Where the runtime has ended, so have the tasks, and there is nobody to say anything.
            self.runtime
                .spawn(async move { close(core, "dropped", until).await });
        }
    }
}

impl Service<Alert> for NatsForwarder {
    type Response = Queued;
    type Error = NatsError;
    type Future = Forwarded;

    /// Always ready.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), NatsError>> {
        Poll::Ready(Ok(()))
    }

    /// Puts it into the outbox, and gives it to the client at once where nothing is before it. The future only says so.
    ///
    /// It fails for an alert that came from another process ([`NatsError::Looped`]), one that is larger than all of the
    /// outbox, and after the end. Never because of the network.
    fn call(&mut self, alert: Alert) -> Forwarded {
        let offered = sender::offer(&self.0.core, alert, true);
        Forwarded {
            ring: offered.as_ref().is_ok().then(|| Ring {
                core: self.0.core.clone(),
                given_way: false,
            }),
            answer: Some(offered.map(|sequence| Queued { sequence })),
        }
    }
}

/// Resolves to the place of an alert in the outbox, next time it is polled. Made by calling a [`NatsForwarder`].
#[must_use = "futures do nothing unless polled"]
pub struct Forwarded {
    answer: Option<Result<Queued, NatsError>>,
    ring: Option<Ring>,
}

/// Wakes the sender, who has to see to it that the alert is confirmed, but lets the client's task run first: that is on the
/// way of the alert, and the confirmation is not.
struct Ring {
    core: Arc<Core>,
    given_way: bool,
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.core.bell.notify_one();
    }
}

impl Future for Forwarded {
    type Output = Result<Queued, NatsError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(ring) = self.ring.as_mut().filter(|ring| !ring.given_way) {
            ring.given_way = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.ring = None;
        // Polled again after it was done: it has nothing more to say.
        self.answer.take().map_or(Poll::Pending, Poll::Ready)
    }
}

impl fmt::Debug for Forwarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Forwarded").field(&self.answer).finish()
    }
}

impl fmt::Debug for NatsForwarder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsForwarder")
            .field("source", self.source())
            .field("connection", &self.status().connection.state)
            .finish_non_exhaustive()
    }
}

/// What a forwarder is doing.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ForwarderStatus {
    /// Who it says it is.
    pub source: SourceId,
    /// Which life of that source this is: microseconds since 1970 at its start.
    pub boot: u64,
    /// The connection.
    pub connection: ConnectionStatus,
    /// How alerts are sent at the moment, for people: `core NATS`, `stream NAME`, or that it is not known yet.
    pub delivery: String,
    /// Alerts.
    pub outbox: OutboxStatus,
    /// Frames of updates.
    pub frames: FramesStatus,
    /// Rules taken from others, where a [bucket](NatsForwarderBuilder::rules_from) was given.
    pub rules_in: Option<RulesInStatus>,
    /// The last that went wrong other than with the connection, and what to do about it.
    pub last_error: Option<String>,
    /// When that was.
    pub last_error_at: Option<SystemTime>,
}

/// The alerts of a forwarder.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OutboxStatus {
    /// In the outbox, confirmed or not …
    pub held: usize,
    /// … at most so many …
    pub limit: usize,
    /// … of so many bytes, by estimate.
    pub bytes: usize,
    /// Of them: not confirmed.
    pub unconfirmed: usize,
    /// For how long the oldest of those is there, by the bus's clock.
    pub oldest_unconfirmed: Option<Duration>,
    /// Given to the client, each time it was.
    pub sent: u64,
    /// Of those: not for the first time.
    pub retried: u64,
    /// Confirmed.
    pub confirmed: u64,
    /// Lost because the outbox was full.
    pub dropped: u64,
    /// Lost because they are larger than the server takes, or the stream that is demanded, or the outbox.
    pub too_large: u64,
    /// Of those that are confirmed: sent to a stream that did not take them, so that only those who listened have them.
    pub unstored: u64,
    /// Refused because they came from another process.
    pub looped: u64,
}

/// The frames of updates of a forwarder.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FramesStatus {
    /// How many forwardings there are.
    pub forwardings: usize,
    /// How many series are forwarded; one that several forward is counted once.
    pub series: u64,
    /// Given to the client.
    pub sent: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Not taken by the client in time; the next one holds what they held.
    pub dropped: u64,
    /// Times that a forwarding sent nothing, as the source had sent as many as it may; it was sent later, together.
    pub merged: u64,
    /// Times that a series was left out because it alone is larger than a message may be.
    pub too_large: u64,
    /// Sequences left out on purpose, so that consumers ask for a snapshot: more series had gone than could be told.
    pub skipped: u64,
}

/// From `METRICBUS_NAMESPACE`, `METRICBUS_COMPONENT` and the machine's name.
fn source_from_env(var: impl Fn(&str) -> Option<String>) -> Result<SourceId, NatsError> {
    let given = |name: &str| var(name).filter(|value| !value.is_empty());
    let kernel = || {
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
        Some(name.trim().to_owned()).filter(|name| !name.is_empty())
    };
    let parts = (
        given("METRICBUS_NAMESPACE"),
        given("METRICBUS_COMPONENT"),
        given("HOSTNAME").or_else(kernel),
    );
    if let (Some(namespace), Some(component), Some(instance)) = parts {
        return Ok(SourceId::new(namespace, component, instance));
    }
    Err(NatsError::Setting {
        setting: "source",
        value: String::new(),
        why: "it is not known who this is: call source(SourceId::new(\"prod\", \"decode\", \"pod-7\")), or set METRICBUS_NAMESPACE, METRICBUS_COMPONENT and HOSTNAME"
            .to_owned(),
    })
}

/// Microseconds since 1970; never the same twice in a process.
fn next_epoch(now: SystemTime) -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = u64::try_from(since.as_micros()).unwrap_or(u64::MAX).max(1);
    let next = |last: u64| Some(now.max(last + 1));
    LAST.fetch_update(Ordering::AcqRel, Ordering::Acquire, next)
        .map_or(now, |last| now.max(last + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AlertState, Origin, Time};

    async fn nobody_answers(bus: &MetricBus) -> NatsForwarderBuilder {
        // A port that was free a moment ago.
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .unwrap()
            .port();
        let options = NatsOptions::new(&format!("nats://127.0.0.1:{port}")).unwrap();
        NatsForwarder::builder(bus, options).source(SourceId::new("n", "c", "i"))
    }

    fn alert() -> Alert {
        Alert::new("R", AlertState::Firing, Time::ZERO)
    }

    #[test]
    fn alerts_wait_for_what_was_told_since_they_came_and_for_nothing_older() {
        let now = SystemTime::now();
        let ago = |words: &str, secs| (words.to_owned(), now - Duration::from_secs(secs));
        let why = |told: &[Told], age| {
            why_unconfirmed(told.iter().cloned(), Duration::from_secs(age), now)
        };
        let told = [ago("no stream", 30), ago("denied", 3)];
        assert_eq!(why(&told, 60), "denied");
        assert_eq!(why(&told[..1], 60), "no stream");
        assert!(why(&told, 2).contains("has not confirmed"));
        assert!(why(&[], 60).contains("has not confirmed"));
        // Somebody has set the clock back.
        let later = ("later".to_owned(), now + Duration::from_secs(9));
        assert_eq!(why(&[later], 0), "later");
    }

    #[tokio::test]
    async fn without_a_server_alerts_are_held_and_the_oldest_dropped_and_nothing_waits() {
        let bus = MetricBus::new();
        let builder = nobody_answers(&bus).await;
        let mut forwarder = builder.outbox(3).start().await.unwrap();
        for sequence in 1..=5 {
            assert_eq!(forwarder.call(alert()).await, Ok(Queued { sequence }));
        }
        let outbox = forwarder.status().outbox;
        assert_eq!((outbox.held, outbox.unconfirmed, outbox.dropped), (3, 3, 2));
        let error = forwarder.flush(Duration::ZERO).await.unwrap_err();
        assert!(
            matches!(error, NatsError::Unconfirmed { left: 3, .. }),
            "{error}"
        );
        forwarder.shutdown(Duration::ZERO).await;
        assert_eq!(forwarder.call(alert()).await, Err(NatsError::Ended));
    }

    #[tokio::test]
    async fn an_alert_from_elsewhere_is_refused_and_counted() {
        let bus = MetricBus::new();
        let mut forwarder = nobody_answers(&bus).await.start().await.unwrap();
        let mut foreign = alert();
        foreign.origin = Some(Arc::new(Origin {
            source: SourceId::new("a", "b", "c"),
            boot: 1,
            sequence: 1,
        }));
        let error = forwarder.call(foreign).await.unwrap_err().to_string();
        assert!(error.contains("a/b/c"), "{error}");
        let outbox = forwarder.status().outbox;
        assert_eq!((outbox.looped, outbox.held), (1, 0));
    }

    #[tokio::test]
    async fn its_numbers_are_among_the_bus_s_own_for_as_long_as_it_lives() {
        let bus = MetricBus::new();
        let mut forwarder = nobody_answers(&bus).await.start().await.unwrap();
        forwarder.call(alert()).await.unwrap();
        let shown = |bus: &MetricBus| {
            let families = bus.self_families();
            families
                .into_iter()
                .find(|f| f.name == "metricbus_nats_outbox_unconfirmed")
        };
        let family = shown(&bus).unwrap();
        assert_eq!(family.series[0].value, crate::SampleValue::Gauge(1.0));
        assert!(
            family.series[0]
                .labels
                .contains(&("instance".to_owned(), "i".to_owned()))
        );
        forwarder.shutdown(Duration::ZERO).await;
        drop(forwarder);
        while shown(&bus).is_some() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn it_does_not_keep_its_bus_and_ends_with_it() {
        let clock = Clock::manual();
        let bus = MetricBus::builder().clock(clock.clone()).build();
        let forwarder = nobody_answers(&bus).await.start().await.unwrap();
        assert_eq!(Arc::strong_count(bus.inner()), 1);
        drop(bus);
        while !matches!(*forwarder.0.core.phase.borrow(), Phase::Ended) {
            clock.advance(HEARTBEAT);
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn what_cannot_be_is_an_error_with_the_value_and_what_would_be_right() {
        let bus = MetricBus::new();
        let builder = nobody_answers(&bus).await;
        let stream = |name: &str| Delivery::JetStream {
            stream: name.to_owned(),
            create: true,
        };
        for (builder, what) in [
            (builder.clone().prefix("a..b"), "prefix \"a..b\""),
            (
                builder.clone().subject("a.{nothing}"),
                "subject \"a.{nothing}\"",
            ),
            (builder.clone().outbox(0), "outbox \"0\""),
            (
                builder.clone().heartbeat(Duration::ZERO),
                "heartbeat \"0ns\"",
            ),
            (
                builder.clone().alerts_per_second_max(0.0),
                "alerts_per_second_max \"0\"",
            ),
            (
                builder.clone().frames_per_second_max(f64::NAN),
                "frames_per_second_max",
            ),
            (builder.clone().delivery(stream("a.b")), "stream \"a.b\""),
            (
                builder
                    .clone()
                    .source(SourceId::new("x".repeat(2000), "c", "i")),
                "source",
            ),
        ] {
            let error = builder.start().await.err().map(|error| error.to_string());
            let error = error.unwrap_or_default();
            assert!(error.starts_with(what), "{what}: {error}");
        }
    }

    #[test]
    fn without_a_runtime_there_is_an_error() {
        let bus = MetricBus::new();
        let options = NatsOptions::new("nats://127.0.0.1:1").unwrap();
        let builder = NatsForwarder::builder(&bus, options).source(SourceId::new("n", "c", "i"));
        let mut start = std::pin::pin!(builder.start());
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let Poll::Ready(Err(error)) = start.as_mut().poll(&mut cx) else {
            panic!("an error, and at once");
        };
        assert_eq!(error, NatsError::NoRuntime);
    }

    #[test]
    fn the_environment_says_who_we_are() {
        let from = |vars: &[(&str, &str)]| {
            source_from_env(|name| {
                let found = vars.iter().find(|(n, _)| *n == name);
                found.map(|(_, value)| (*value).to_owned())
            })
        };
        let all = [
            ("METRICBUS_NAMESPACE", "n"),
            ("METRICBUS_COMPONENT", "c"),
            ("HOSTNAME", "h"),
        ];
        assert_eq!(from(&all), Ok(SourceId::new("n", "c", "h")));
        let error = from(&all[1..]).unwrap_err().to_string();
        assert!(error.contains("METRICBUS_NAMESPACE"), "{error}");
    }

    #[test]
    fn no_two_epochs_of_a_process_are_the_same() {
        let now = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let (one, two) = (next_epoch(now), next_epoch(now));
        assert!(one >= 1_700_000_000_000_000 && two > one);
        assert!(next_epoch(UNIX_EPOCH) > two);
    }
}
