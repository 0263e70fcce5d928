//! The view of other pods: what they measure, whether they live, what they say, and what is asked of them.
//!
//! One task takes everything in (`intake`). What a source says goes to its state machine (`source`, made of `life`, `frames`
//! and `alerts`), of which `table` has one for each; what comes of it is carried out: series are moved (`shown`), alerts
//! and events told (`firing`, `event`), questions asked (`ask`).

mod alerts;
mod ask;
mod error;
mod event;
mod firing;
mod frames;
mod intake;
mod life;
mod own;
mod quick;
mod rules;
mod rules_out;
mod shown;
mod source;
mod table;
mod window;

use std::{
    fmt,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::watch, task::JoinHandle};

use self::{
    ask::{Asker, Room},
    event::Events,
    intake::Intake,
    life::Patience,
    rules_out::RulesOut,
    shown::OUTER,
    table::{Invalid, Table},
};
pub use self::{
    error::FleetError,
    event::{SourceChange, SourceEvent, SourceStatus},
    life::{GoneWhy, SourceState},
    rules::{SourceRule, SourceRules},
    rules_out::{RuleTarget, SentRule},
    window::{FleetWindow, SeriesWindow, SourceWindow},
};
use super::{
    NatsError, NatsOptions,
    connection::{Connection, ConnectionStatus},
    subject::{Channel, Subjects},
    wire::{
        frame::{FrameMetric, FramePoint, FrameValue, decode_frame},
        query::SnapshotRequest,
    },
};
use crate::{
    Alert, Clock, Desc, Family, FamilySnapshot, Gauge, HistogramSnapshot, IntoSelector, Listen,
    LiveRule, MetricBus, Rule, RuleError, SampleValue, SeriesSnapshot, Snapshot, SourceId, Value,
    mirror::MirrorValue, own::Counts, sync::lock,
};

/// All sources of a fleet: their series, as they are, on a bus of its own; their alerts; whether they live.
///
/// It finds by itself who is there, and takes each over by snapshot; it finds out what it missed, and mends it. Clones are
/// the same fleet. When the last is dropped it ends, and its bus is left without the sources' series.
///
/// ```no_run
/// use std::time::Duration;
/// use metricbus::{Condition, Expr, Rule, Threshold, nats::{Fleet, NatsOptions}};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let fleet = Fleet::builder(NatsOptions::from_env()?)
///     .component("decode")
///     .start()
///     .await?;
/// fleet.synced().await;
///
/// // The same rules as within one process, over all pods.
/// fleet.add_rule(
///     Rule::new(
///         "AnyDecodeFull",
///         Condition::when("kv_usage_ratio", Threshold::above(0.9).clear_below(0.8)),
///     )
///     .hold_for(Duration::from_millis(500))
///     .any(),
/// )?;
/// let _alerts = fleet.bus().on_alert().call(|alert| println!("{alert}"))?;
///
/// // What the pods themselves judge.
/// let _theirs = fleet.on_alert().call(|alert| println!("{alert}"))?;
/// let _sources = fleet.on_source().call(|event| println!("{event}"))?;
///
/// let ttft = fleet.window("ttft_seconds", Duration::from_secs(60)).await?;
/// println!("{:?} over {} pods", ttft.stats.quantile(0.99), ttft.answered);
/// # Ok(())
/// # }
/// ```
///
/// # Series
///
/// Each has the labels `namespace`, `component` and `instance` in front, so that sources are told apart always; a label of
/// that name which a source gave it itself becomes `exported_namespace` and so on. They are ordinary series of
/// [`bus`](Fleet::bus): selectors, thresholds, rules, windows and `/metrics` apply. What differs:
///
/// - They move when a frame comes. What happened between two frames is not seen one by one: a gauge shows its last value, a
///   counter its sum, a histogram what its buckets tell. So a window on this bus is less exact than
///   [`window`](Fleet::window), which asks the sources, and a spike between two frames is seen by rules at the source only
///   ([`send_rule`](Fleet::send_rule)).
/// - What a source had counted before the fleet knew it is no news: counters begin where they are. What a source that is
///   born, or restarts, under the fleet's eyes has counted is news from 0 on; so is what was missed and mended.
/// - After a restart of a source all its series are others: the old ones are removed.
/// - A callback on this bus that is [`inline`](Listen::inline) runs in the task that takes messages in, and must be short.
///
/// A metric that one source declares otherwise than others do (its type, its unit, its buckets) is left out for that source, and told:
/// [`SourceChange::Refused`], [`SourceStatus::refused`].
///
/// `fleet_source_up{namespace,component,instance}` is 1 for a source that lives and 0 for one that is stale; of one that is
/// gone there is none. Rules can count them.
///
/// # Sources
///
/// | state | since | what is shown |
/// |---|---|---|
/// | live | it was heard lately | its series |
/// | stale | nothing was heard for [`stale_after`](FleetBuilder::stale_after) | its series, as they were |
/// | gone | it said that it ends; or nobody answers for it; or nothing was heard for [`gone_after`](FleetBuilder::gone_after) | nothing |
///
/// A source that was killed is gone within two of its heartbeats: it is late, and the server says that nobody answers for it. One that
/// is frozen, or cut off, is gone after `gone_after`. A fleet that has lost its own connection can vouch for nobody: its sources get stale
/// and gone just so.
///
/// A source is told by its [`SourceId`]. A second process with the same one is ignored as long as the first lives, and
/// told: [`SourceChange::Conflict`]. It is the one that began later which counts.
///
/// # Alerts
///
/// [`on_alert`](Fleet::on_alert) tells what rules at the sources say: each alert once, in order for each source, after whatever
/// failure; what nobody can get any more is counted, to the last one. First comes what is firing. What a source had firing
/// that is gone, or has restarted, is told as resolved, with the cause [`Removed`](crate::AlertCause::Removed): nobody can vouch for it any more.
#[derive(Clone)]
pub struct Fleet(Arc<Handle>);

/// Ends everything when it is dropped.
struct Handle {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

/// What the parts of a fleet share.
struct Shared {
    bus: MetricBus,
    namespace: Option<String>,
    component: Option<String>,
    asker: Asker,
    table: Mutex<Table>,
    alerts: firing::Alerts,
    events: Events,
    rules_out: RulesOut,
    synced: watch::Sender<bool>,
    fell: AtomicU64,
}

impl Shared {
    /// Whether a source is of those that are listened to.
    fn wants(&self, source: &SourceId) -> bool {
        self.namespace
            .as_ref()
            .is_none_or(|n| *n == source.namespace)
            && self
                .component
                .as_ref()
                .is_none_or(|c| *c == source.component)
    }

    /// Something was received and is ignored.
    fn ignore(&self, what: Invalid, times: u64, why: Option<String>) {
        let said = why.clone().unwrap_or_default();
        if lock(&self.table).ignore(what, times, why) {
            tracing::debug!(reason = what.as_str(), "metricbus: ignored: {said}");
        }
    }

    fn warn(&self, source: &SourceId, why: &str) {
        if self.asker.connection.says(&format!("{source}: {why}")) {
            tracing::warn!(source = %source, "metricbus: {why}");
        }
    }

    fn count_fell(&self, counters: u64) {
        if counters > 0 {
            self.fell.fetch_add(counters, Ordering::Relaxed);
        }
    }

    fn fell(&self) -> u64 {
        self.fell.load(Ordering::Relaxed)
    }
}

/// Sees that nothing is shown as live any more, should the task fail that takes everything in.
async fn watch_over(intake: JoinHandle<()>, shared: Arc<Shared>, up: Family<Gauge>) {
    let Err(error) = intake.await else {
        return;
    };
    if error.is_panic() {
        tracing::error!(
            "metricbus: the fleet has failed, and takes nothing in any more: {error}; please report this, and start the fleet anew"
        );
    }
    // Its series went with the task itself.
    shared.synced.send_replace(false);
    let now = shared.bus.clock().now();
    let known = lock(&shared.table).end(now);
    for (source, boot) in known {
        let _ = up.remove(&[&source.namespace, &source.component, &source.instance]);
        shared.alerts.withdraw(&source, true);
        let why = GoneWhy::Failed;
        shared
            .events
            .tell(&source, boot, SourceChange::Gone { why });
    }
}

/// A fleet being made. Made by [`Fleet::builder`].
#[derive(Clone, Debug)]
#[must_use]
pub struct FleetBuilder {
    options: NatsOptions,
    namespace: Option<String>,
    component: Option<String>,
    prefix: String,
    stale_after: Option<Duration>,
    gone_after: Duration,
    sources_max: usize,
    series_max: usize,
    bucket: String,
    clock: Clock,
}

/// How a fleet stands. Given by [`Fleet::status`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct FleetStatus {
    /// Its connection.
    pub connection: ConnectionStatus,
    /// Whether it knows all who are there, with everything.
    pub synced: bool,
    /// Sources that live …
    pub live: usize,
    /// … that are stale …
    pub stale: usize,
    /// … and that are gone, of the last ten minutes.
    pub gone: usize,
    /// Sources of which something is missing: not yet taken over, or being mended.
    pub unsynced: usize,
    /// Times at which frames of a source were found missing.
    pub gaps: u64,
    /// Alerts that nobody can get any more.
    pub alerts_lost: u64,
    /// Groups of rules that fire at sources.
    pub firing: usize,
    /// Messages that were dropped since the fleet did not keep up.
    pub dropped: u64,
    /// What was received and ignored, by reason.
    pub ignored: Vec<(&'static str, u64)>,
    /// Why something was last ignored.
    pub last_ignored: Option<String>,
    /// Rules to be sent, or taken back, that are not yet in the bucket.
    pub rules_unwritten: usize,
}

impl FleetBuilder {
    /// Listens to sources of this namespace only.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = Some(namespace.into());
        self
    }

    /// Listens to sources of this component only.
    pub fn component(mut self, component: impl Into<String>) -> Self {
        self.component = Some(component.into());
        self
    }

    /// The prefix of all subjects, as the forwarders have it; `metricbus` unless told otherwise.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// A source of which nothing was heard for so long is stale. Three of its heartbeats unless told otherwise.
    pub fn stale_after(mut self, silence: Duration) -> Self {
        self.stale_after = Some(silence);
        self
    }

    /// A source of which nothing was heard for so long is gone: 10 s unless told otherwise, and never sooner than it is
    /// stale.
    pub fn gone_after(mut self, silence: Duration) -> Self {
        self.gone_after = silence;
        self
    }

    /// How many sources there may be, those that were gone in the last ten minutes included: 10 000 unless told
    /// otherwise. What further ones say is ignored, and counted.
    pub fn sources_max(mut self, sources: usize) -> Self {
        self.sources_max = sources;
        self
    }

    /// How many series a source may have: 10 000 unless told otherwise. Further ones are left out, and counted.
    pub fn series_max_per_source(mut self, series: usize) -> Self {
        self.series_max = series;
        self
    }

    /// The bucket in which sources look for rules; `metricbus-rules` unless told otherwise.
    pub fn rules_bucket(mut self, bucket: impl Into<String>) -> Self {
        self.bucket = bucket.into();
        self
    }

    /// The clock of the fleet's bus, by which sources live and die; the system's unless told otherwise. What goes over the
    /// network goes by the system's in any case.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    fn check(&self) -> Result<(), FleetError> {
        let wrong = |setting, value: String, why: &str| {
            Err(FleetError::Setting {
                setting,
                value,
                why: why.to_owned(),
            })
        };
        if self.stale_after.is_some_and(|after| after.is_zero()) {
            return wrong("stale_after", "0".to_owned(), "it must be more than 0");
        }
        if self.gone_after.is_zero() {
            return wrong("gone_after", "0".to_owned(), "it must be more than 0");
        }
        if self.sources_max == 0 || self.series_max == 0 {
            let setting = match self.sources_max {
                0 => "sources_max",
                _ => "series_max_per_source",
            };
            return wrong(setting, "0".to_owned(), "it must be at least 1");
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if self.bucket.is_empty() || !self.bucket.chars().all(plain) {
            let why = "a bucket's name has letters, digits, '-' and '_', and at least one";
            return wrong("rules_bucket", self.bucket.clone(), why);
        }
        Ok(())
    }

    /// Begins to listen. An unreachable server is no error: it is tried again and again, and
    /// [`status`](Fleet::status) says how it goes.
    ///
    /// # Errors
    ///
    /// When options or settings are wrong, a file they name is missing, or there is no tokio runtime here.
    pub async fn start(self) -> Result<Fleet, FleetError> {
        self.check()?;
        let subjects = Subjects::new(&self.prefix).map_err(|error| FleetError::Setting {
            setting: "prefix",
            value: self.prefix.clone(),
            why: error.to_string(),
        })?;
        let bus = MetricBus::builder().clock(self.clock.clone()).build();
        let up = bus.family::<Gauge>(
            Desc::new(
                "fleet_source_up",
                "1 for a source that lives, 0 for one that is stale.",
            )
            .labels(OUTER)
            .series_max(self.sources_max),
        )?;
        let connection = Connection::open(&self.options, "fleet").await?;
        let subscribe = async |channel| {
            let (namespace, component) = (self.namespace.as_deref(), self.component.as_deref());
            let pattern = subjects.all(namespace, component, channel);
            let made = connection.client().subscribe(pattern.clone()).await;
            made.map_err(|error| NatsError::Setting {
                setting: "subscription",
                value: pattern,
                why: error.to_string(),
            })
        };
        let subscribers = [
            subscribe(Channel::Frames).await?,
            subscribe(Channel::Alerts).await?,
            subscribe(Channel::Pulses).await?,
        ];
        let patience = Patience {
            stale_after: self.stale_after,
            gone_after: self.gone_after,
        };
        let shared = Arc::new(Shared {
            asker: Asker {
                connection: connection.clone(),
                subjects,
                room: Room::new(),
            },
            namespace: self.namespace,
            component: self.component,
            table: Mutex::new(Table::new(self.sources_max, patience)),
            alerts: firing::Alerts::new(&bus),
            events: Events::new(&bus),
            rules_out: RulesOut::new(self.bucket, connection),
            synced: watch::Sender::new(false),
            fell: AtomicU64::new(0),
            bus,
        });
        let counts: Arc<dyn Counts> = shared.clone();
        let counts: Weak<dyn Counts> = Arc::downgrade(&counts);
        shared.bus.inner().show_own(counts);
        let (stop, stopped) = watch::channel(false);
        let intake = Intake::new(shared.clone(), self.series_max, up.clone(), subscribers);
        let intake = tokio::spawn(intake.run(stopped.clone()));
        tokio::spawn(watch_over(intake, shared.clone(), up));
        let rules = shared.clone();
        tokio::spawn(async move { rules.rules_out.run(stopped).await });
        Ok(Fleet(Arc::new(Handle { shared, stop })))
    }
}

impl Fleet {
    /// A fleet to be, over NATS.
    pub fn builder(options: NatsOptions) -> FleetBuilder {
        FleetBuilder {
            options,
            namespace: None,
            component: None,
            prefix: "metricbus".to_owned(),
            stale_after: None,
            gone_after: Duration::from_secs(10),
            sources_max: 10_000,
            series_max: 10_000,
            bucket: "metricbus-rules".to_owned(),
            clock: Clock::system(),
        }
    }

    fn shared(&self) -> &Shared {
        &self.0.shared
    }

    /// The bus with all series of all sources. Metrics may be declared on it, too.
    pub fn bus(&self) -> &MetricBus {
        &self.shared().bus
    }

    /// Done when the fleet is connected and knows everybody who is there: each source that answered its greeting has
    /// been taken over with all its series, and what it has firing was told. At once, where it is so already. After an outage
    /// it is so again when each source that was known has been heard again, or is gone.
    ///
    /// A source that answers three times that it is there, and gives no snapshot, is not waited for; nor is one that five
    /// times does not say what it has firing, which goes on being asked. [`SourceStatus::synced`] says so of them.
    pub async fn synced(&self) {
        let mut synced = self.shared().synced.subscribe();
        // The sender is in `self`.
        let _ = synced.wait_for(|synced| *synced).await;
    }

    /// Whether it [is in sync](Fleet::synced) now.
    pub fn is_synced(&self) -> bool {
        *self.shared().synced.borrow()
    }

    /// All sources, sorted; those that were gone in the last ten minutes, too.
    pub fn sources(&self) -> Vec<SourceStatus> {
        let now = self.bus().clock().now();
        lock(&self.shared().table).statuses(now)
    }

    /// How one source stands; `None`: it is not known.
    pub fn source(&self, source: &SourceId) -> Option<SourceStatus> {
        let now = self.bus().clock().now();
        lock(&self.shared().table).status(source, now)
    }

    /// What becomes of sources. First, unless [`initial(false)`](Listen::initial), which are there, with
    /// [`initial`](SourceEvent::initial) set.
    pub fn on_source(&self) -> Listen<SourceEvent> {
        self.shared().events.listen()
    }

    /// The alerts that rules *at the sources* make: what is firing first, with the cause
    /// [`Initial`](crate::AlertCause::Initial) (unless [`initial(false)`](Listen::initial)), then each once and in order
    /// for each source. [`Alert::origin`] says of whom.
    ///
    /// Alerts of rules on the fleet's own bus: `fleet.bus().on_alert()`.
    pub fn on_alert(&self) -> Listen<Alert> {
        self.shared().alerts.listen()
    }

    /// Runs a rule over the series of all sources; as [`MetricBus::add_rule`] of [`bus`](Fleet::bus).
    ///
    /// # Errors
    ///
    /// When the rule is wrong, or there is one of its name.
    pub fn add_rule(&self, rule: Rule) -> Result<LiveRule, RuleError> {
        self.bus().add_rule(rule)
    }

    /// Asks all live sources what a window of this width has seen, and merges what they say without loss: quantiles are
    /// those of all observations of all pods.
    ///
    /// The selector is one of the fleet's bus: matchers on `namespace`, `component` and `instance` choose whom to ask.
    /// Widths are whole milliseconds; what is less counts as one more. A source opens a window when it is first asked, so
    /// the first answers cover little of it: see [`WindowStats::coverage`](crate::WindowStats::coverage). It keeps it as
    /// long as somebody asks at least once a minute.
    ///
    /// Sources that don't answer within two seconds are named in the result; so are those that are stale. With nobody to
    /// ask, everything is `None`.
    ///
    /// # Errors
    ///
    /// When the selector is wrong, or the width is 0 or more than 31 days. Never for a source that does not answer.
    pub async fn window(
        &self,
        selector: impl IntoSelector,
        width: Duration,
    ) -> Result<FleetWindow, FleetError> {
        let selector = selector.into_selector()?;
        self.shared().window(selector, width).await
    }

    /// Asks one source for the selected series as they are this moment. Their labels are those that the source gave them.
    ///
    /// # Errors
    ///
    /// When the selector is wrong, or the source does not answer, or says something that can't be read.
    pub async fn snapshot(
        &self,
        source: &SourceId,
        selector: impl IntoSelector,
    ) -> Result<Snapshot, FleetError> {
        let selector = selector.into_selector()?;
        let Some(inside) = window::inside(&selector, source) else {
            return Ok(Snapshot::default());
        };
        let request = SnapshotRequest {
            selector: Some(inside),
            ..SnapshotRequest::default()
        };
        let life = lock(&self.shared().table).boot(source);
        let asked = self.shared().asker.snapshot(source, life, &request);
        let asked = asked.await;
        let unanswered = |error| FleetError::unanswered(source, &error);
        let answer = asked.map_err(unanswered)?;
        let mut snapshot = Snapshot::default();
        for part in answer.frames {
            let decoded = decode_frame(&part).map_err(|error| unanswered(error.into()))?;
            decoded
                .frame
                .metrics
                .into_iter()
                .for_each(|metric| add(&mut snapshot, metric));
        }
        snapshot.families.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(snapshot)
    }

    /// Asks one source how its rules stand.
    ///
    /// # Errors
    ///
    /// When it does not answer, or says something that can't be read.
    pub async fn rules_of(&self, source: &SourceId) -> Result<SourceRules, FleetError> {
        self.shared().rules_of(source).await
    }

    /// Sends a rule to sources, which run it themselves (where they were told to take rules from this bucket): each mutation
    /// is judged, and only transitions travel. It replaces the one of its name that was sent to the same target.
    ///
    /// Without a connection, or JetStream, it is kept and written as soon as that can be;
    /// [`written`](SentRule::written) and [`why`](SentRule::why) say so, now and in [`sent_rules`](Fleet::sent_rules). It
    /// stays in the bucket when the fleet ends. Whether sources took it: [`rules_of`](Fleet::rules_of).
    ///
    /// # Errors
    ///
    /// When the rule is wrong, or something in it can't be written down, such as a selector made from a handle.
    pub async fn send_rule(&self, target: RuleTarget, rule: Rule) -> Result<SentRule, FleetError> {
        self.shared().rules_out.send(target, rule).await
    }

    /// Takes a rule back that was sent to this target, by whomever: sources end it. Where it can't be written yet it is
    /// kept, as with [`send_rule`](Fleet::send_rule). One that is not there is no error; that it was taken back is written all
    /// the same, as a source may have it from a bucket that was lost. `written` says that the bucket says so: a source that is
    /// cut off hears of it when it is back.
    ///
    /// # Errors
    ///
    /// When a name is too long for a key.
    pub async fn retract_rule(
        &self,
        target: RuleTarget,
        name: &str,
    ) -> Result<SentRule, FleetError> {
        self.shared().rules_out.retract(target, name).await
    }

    /// All rules in the bucket, by whomever they were sent, and those that this fleet could not yet write. Without a
    /// connection: those that this fleet has sent.
    ///
    /// # Errors
    ///
    /// When the bucket can't be read.
    pub async fn sent_rules(&self) -> Result<Vec<SentRule>, FleetError> {
        self.shared().rules_out.list().await
    }

    /// How it stands.
    pub fn status(&self) -> FleetStatus {
        let shared = self.shared();
        let (totals, ignored, last_ignored) = {
            let table = lock(&shared.table);
            let ignored = table.ignored().map(|(what, n)| (what.as_str(), n));
            let last = table.last_error().map(str::to_owned);
            (table.totals(), ignored.collect(), last)
        };
        let connection = shared.asker.connection.status();
        FleetStatus {
            synced: self.is_synced(),
            live: totals.live,
            stale: totals.stale,
            gone: totals.gone,
            unsynced: totals.unsynced,
            gaps: totals.gaps,
            alerts_lost: totals.alerts_lost,
            firing: shared.alerts.counts().0,
            dropped: connection.slow,
            ignored,
            last_ignored,
            rules_unwritten: shared.rules_out.unwritten(),
            connection,
        }
    }
}

impl fmt::Debug for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Fleet").field(&self.status()).finish()
    }
}

/// Puts a metric of a frame to a snapshot.
fn add(snapshot: &mut Snapshot, metric: FrameMetric) {
    let bounds = metric.bounds;
    let points = metric.points.into_iter();
    let series = points.filter_map(|point| sample(point, &bounds));
    match snapshot.families.iter_mut().find(|f| f.name == metric.name) {
        Some(family) => family.series.extend(series),
        None => {
            let series = series.collect();
            snapshot.families.push(FamilySnapshot {
                name: metric.name,
                help: metric.help,
                unit: metric.unit,
                kind: metric.kind,
                series,
            });
        }
    }
}

fn sample(point: FramePoint, bounds: &[f64]) -> Option<SeriesSnapshot> {
    let FrameValue::Value(value) = point.value else {
        return None;
    };
    let value = match value {
        MirrorValue::Whole(n) => SampleValue::Counter(Value::U64(n)),
        MirrorValue::Amount(d) => SampleValue::Counter(Value::F64(d)),
        MirrorValue::Real(v) => SampleValue::Gauge(v),
        MirrorValue::Histogram { counts, sum, .. } => {
            let mut count = 0u64;
            let bounds = bounds.iter().copied().chain([f64::INFINITY]);
            let buckets = bounds.zip(counts).map(|(bound, n)| {
                count = count.saturating_add(n);
                (bound, count)
            });
            let buckets = buckets.collect();
            SampleValue::Histogram(HistogramSnapshot {
                buckets,
                sum,
                count,
            })
        }
    };
    Some(SeriesSnapshot {
        labels: point.labels,
        value,
    })
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::{
        AlertState,
        nats::{subject::PulseKind, wire::pulse::Pulse},
    };

    fn pod() -> SourceId {
        SourceId::new("n", "c", "i")
    }

    fn pulse() -> Pulse {
        Pulse {
            kind: PulseKind::Heartbeat,
            source: pod(),
            epoch: 7,
            interval: Duration::from_secs(1),
            frames: 0,
            alerts: 0,
            alerts_from: 1,
            series: 0,
            at: SystemTime::UNIX_EPOCH,
            version: String::new(),
            reason: None,
        }
    }

    #[tokio::test]
    async fn a_fleet_that_fails_shows_nobody_as_live() {
        // A port that was free a moment ago.
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .unwrap()
            .port();
        let options = NatsOptions::new(&format!("nats://127.0.0.1:{port}")).unwrap();
        let fleet = Fleet::builder(options).start().await.unwrap();
        let shared = fleet.0.shared.clone();
        let up = fleet
            .bus()
            .family::<Gauge>(Desc::new("up", "Up.").labels(OUTER))
            .unwrap();
        up.with_label_values(&["n", "c", "i"]).unwrap().set(1.0);
        let now = fleet.bus().clock().now();
        lock(&shared.table).pulse(
            &pod(),
            &pulse(),
            source::WordKind::Heartbeat,
            now,
            SystemTime::UNIX_EPOCH,
        );
        let alert = Alert::new("R", AlertState::Firing, now);
        shared.alerts.deliver(&pod(), alert);
        shared.synced.send_replace(true);
        assert_eq!((fleet.status().live, fleet.status().firing), (1, 1));
        let failing = tokio::spawn(async { panic!("a mistake") });
        watch_over(failing, shared, up).await;
        assert_eq!((fleet.status().live, fleet.status().firing), (0, 0));
        assert!(!fleet.is_synced());
        assert!(fleet.bus().series("up").unwrap().is_empty());
    }
}
