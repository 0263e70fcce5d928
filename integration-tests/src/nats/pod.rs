//! A pod within the test's own process: a bus with metrics, a rule, and a forwarder of both. And what one compares.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use metricbus::{
    Alert, AlertCause, AlertState, Buckets, Condition, Counter, Desc, Family, Gauge, Histogram,
    Listen, MetricBus, Rule, SampleValue, SourceId, Subscription, Threshold,
    nats::{Forwarding, NatsForwarder, NatsForwarderBuilder, NatsOptions},
};

use super::{DEADLINE, POLL, until};

/// How often pods of tests say that they live, unless a test wants otherwise.
pub const HEARTBEAT: Duration = Duration::from_millis(100);

/// How often they send frames.
pub const FRAMES: Duration = Duration::from_millis(20);

/// What they forward.
pub const FORWARDED: &str =
    r#"{__name__=~"kv_usage_ratio|requests_total|latency_seconds|queue_depth"}"#;

/// The rule that each of them has.
pub const RULE: &str = "KvFull";

/// A bus with metrics that workers have, and what forwards it.
pub struct Pod {
    /// Its bus.
    pub bus: MetricBus,
    /// What forwards its alerts and frames.
    pub forwarder: NatsForwarder,
    /// `kv_usage_ratio{worker}`: above 0.9 [`RULE`] fires, and below 0.8 it resolves, each worker by itself.
    pub kv: Family<Gauge>,
    /// `requests_total`.
    pub requests: Counter,
    /// `queue_depth`, 0 for now.
    pub queue: Gauge,
    /// `latency_seconds`.
    pub latency: Histogram,
    /// Its alerts as they were made.
    pub told: Told,
    _alerts: Subscription,
    _frames: Forwarding,
}

impl Pod {
    /// With everything as most tests want it.
    pub async fn start(url: &str, source: SourceId) -> Result<Pod, Box<dyn Error>> {
        Pod::with(NatsOptions::new(url)?, source, |forwarder| forwarder).await
    }

    /// With a forwarder of the test's choice.
    pub async fn with(
        options: NatsOptions,
        source: SourceId,
        adapt: impl FnOnce(NatsForwarderBuilder) -> NatsForwarderBuilder,
    ) -> Result<Pod, Box<dyn Error>> {
        Pod::on(MetricBus::new(), options, source, adapt).await
    }

    /// On a bus of the test's own, with a clock of its own perhaps.
    pub async fn on(
        bus: MetricBus,
        options: NatsOptions,
        source: SourceId,
        adapt: impl FnOnce(NatsForwarderBuilder) -> NatsForwarderBuilder,
    ) -> Result<Pod, Box<dyn Error>> {
        let kv = bus
            .family(Desc::new("kv_usage_ratio", "Share of KV blocks in use.").labels(["worker"]))?;
        let requests = bus.counter("requests_total", "Requests served.")?;
        let queue = bus.gauge("queue_depth", "Requests waiting.")?;
        // So that none is without a value: nobody is told of such a one, though it reads as 0.
        queue.set(0.0);
        let latency = bus.histogram(
            "latency_seconds",
            "Time to answer.",
            Buckets::new([0.1, 0.2, 0.4, 0.8])?,
        )?;
        let full = Condition::when("kv_usage_ratio", Threshold::above(0.9).clear_below(0.8));
        bus.add_rule(Rule::new(RULE, full).each())?;

        let builder = NatsForwarder::builder(&bus, options)
            .source(source)
            .heartbeat(HEARTBEAT)
            // As quick as the machine: most tests are of something else.
            .alerts_per_second_max(1e6);
        let forwarder = adapt(builder).start().await?;
        let told = Told::at_once(bus.on_alert())?;
        let alerts = forwarder.forward_alerts()?;
        let frames = forwarder.forward(FORWARDED).every(FRAMES).start()?;
        Ok(Pod {
            bus,
            forwarder,
            kv,
            requests,
            queue,
            latency,
            told,
            _alerts: alerts,
            _frames: frames,
        })
    }

    /// Has the rule fire and resolve for a worker, so many times.
    pub fn flap(&self, worker: &str, times: usize) -> Result<(), Box<dyn Error>> {
        let kv = self.kv.with_label_values(&[worker])?;
        for _ in 0..times {
            kv.set(0.95);
            kv.set(0.5);
        }
        Ok(())
    }

    /// Waits until each alert that was made so far is confirmed, or counted as lost.
    ///
    /// Between the bus and the forwarder there is a mailbox, of which `flush` knows nothing.
    pub async fn flush(&self) {
        let made = self.told.count() as u64;
        until(&format!("{made} alerts to be confirmed"), || {
            let outbox = self.forwarder.status().outbox;
            (outbox.confirmed + outbox.dropped + outbox.too_large >= made).then_some(())
        })
        .await;
    }

    /// Waits until the bus of a fleet has just what this pod forwards, of this source.
    pub async fn until_same_on(&self, fleet: &MetricBus, source: &SourceId) {
        let begin = Instant::now();
        loop {
            let (here, there) = (self.values(), values(fleet, Some(source)));
            if here == there {
                return;
            }
            assert!(
                begin.elapsed() < DEADLINE / 2,
                "waited in vain for the values of {source}, here and there:\n{}",
                difference(&here, &there)
            );
            tokio::time::sleep(POLL).await;
        }
    }

    /// What it forwards, as it is now.
    pub fn values(&self) -> Values {
        values(&self.bus, None)
    }
}

/// Enough for every alert of a test: the bus drops none of them.
const ALERTS_MAX: usize = 1_000_000;

/// Alerts in the order in which they were heard.
#[derive(Clone)]
pub struct Told {
    alerts: Arc<Mutex<Vec<Alert>>>,
    _subscription: Arc<Subscription>,
}

impl Told {
    /// Writes down what is heard, as long as the last clone of this lives.
    pub fn of(alerts: Listen<Alert>) -> Result<Told, Box<dyn Error>> {
        let told = Arc::new(Mutex::new(Vec::new()));
        let list = Arc::clone(&told);
        let subscription = alerts.capacity(ALERTS_MAX).call(move |alert| {
            list.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(alert);
        })?;
        Ok(Told {
            alerts: told,
            _subscription: Arc::new(subscription),
        })
    }

    /// The same, in the thread that makes the alert: when a mutation has returned, its alerts are written down.
    pub fn at_once(alerts: Listen<Alert>) -> Result<Told, Box<dyn Error>> {
        let told = Arc::new(Mutex::new(Vec::new()));
        let list = Arc::clone(&told);
        let subscription = alerts.capacity(ALERTS_MAX).inline(move |alert| {
            list.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(alert);
        })?;
        Ok(Told {
            alerts: told,
            _subscription: Arc::new(subscription),
        })
    }

    /// All so far.
    pub fn all(&self) -> Vec<Alert> {
        self.alerts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Those that rules made as they judged a value; not those by which a fleet takes back what a source had firing that it
    /// does not hear of any more, or tells it again when it does.
    pub fn said(&self) -> Vec<Alert> {
        let mut all = self.all();
        all.retain(|alert| !matches!(alert.cause, AlertCause::Removed | AlertCause::Initial));
        all
    }

    /// How many so far.
    pub fn count(&self) -> usize {
        self.alerts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// The transitions of each series that were said, in order: what has to be the same at both ends, whatever the order among series.
    pub fn by_group(&self) -> BTreeMap<String, Vec<Transition>> {
        let mut groups: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for alert in self.said() {
            groups
                .entry(group_of(&alert))
                .or_default()
                .push(Transition {
                    state: alert.state,
                    epoch: alert.epoch,
                    value: alert.value.map(f64::to_bits),
                });
        }
        groups
    }

    /// Ends that a fleet has not told, by group and epoch: when the source said so, what it had firing had been withdrawn and
    /// so told as resolved already.
    pub fn withdrawn(&self) -> BTreeSet<(String, u64)> {
        let mut open = BTreeMap::new();
        let mut ends = BTreeSet::new();
        for alert in self.all() {
            let group = group_of(&alert);
            match alert.cause {
                AlertCause::Removed => drop(open.insert(group, alert.epoch)),
                // It was told again, and so is its end.
                AlertCause::Initial => drop(open.remove(&group)),
                _ => {
                    let before = open.remove(&group);
                    ends.extend(before.map(|epoch| (group, epoch + 1)));
                }
            }
        }
        let last = open.into_iter().map(|(group, epoch)| (group, epoch + 1));
        ends.extend(last);
        ends
    }
}

/// Rule and group of an alert. A fleet adds the source's labels, and an alert at its source has none.
fn group_of(alert: &Alert) -> String {
    let own = alert.group.iter().filter(|(name, _)| !is_of_source(name));
    own.fold(alert.rule.to_string(), |key, (name, value)| {
        format!("{key} {name}={value}")
    })
}

/// One alert, as far as it must be the same wherever it is heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transition {
    /// Firing or resolved.
    pub state: AlertState,
    /// Consecutive: a gap would be exactly what was missed.
    pub epoch: u64,
    /// The bits of its value.
    pub value: Option<u64>,
}

/// Series by name and labels.
pub type Values = BTreeMap<String, SampleValue>;

/// The values of what pods forward, of one source of a fleet's bus, or of a bus of a pod's own.
pub fn values(bus: &MetricBus, source: Option<&SourceId>) -> Values {
    const NAMES: [&str; 4] = [
        "kv_usage_ratio",
        "requests_total",
        "latency_seconds",
        "queue_depth",
    ];
    let mut values = Values::new();
    for family in bus.snapshot().families {
        if !NAMES.contains(&&*family.name) {
            continue;
        }
        for series in family.series {
            let (theirs, own): (Vec<_>, Vec<_>) = series
                .labels
                .into_iter()
                .partition(|(name, _)| is_of_source(name));
            let wanted = source.is_none_or(|source| {
                let is = |name: &str, part: &str| {
                    theirs.iter().any(|(n, value)| n == name && value == part)
                };
                is("namespace", &source.namespace)
                    && is("component", &source.component)
                    && is("instance", &source.instance)
            });
            if wanted {
                values.insert(format!("{}{own:?}", family.name), series.value);
            }
        }
    }
    values
}

/// The series that are not the same in both, a line for each.
fn difference(here: &Values, there: &Values) -> String {
    let names: BTreeSet<_> = here.keys().chain(there.keys()).collect();
    names
        .into_iter()
        .filter(|name| here.get(*name) != there.get(*name))
        .map(|name| format!("{name}: {:?} {:?}\n", here.get(name), there.get(name)))
        .collect()
}

fn is_of_source(label: &str) -> bool {
    matches!(label, "namespace" | "component" | "instance")
}

/// A source of the tests.
pub fn source(instance: &str) -> SourceId {
    SourceId::new("prod", "decode", instance)
}
