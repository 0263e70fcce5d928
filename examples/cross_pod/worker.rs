//! A decode worker: metrics on a bus of its own, a rule of its own, and what publishes both.

use std::time::Duration;

use metricbus::{
    Alert, Condition, Counter, Gauge, Histogram, MetricBus, Metrics, Rule, SourceId, Threshold,
    nats::{ConnectionState, Delivery, NatsForwarder, NatsOptions},
};
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    COMPONENT, NAMESPACE, RULES, STREAM,
    server::Failure,
    voice::{Fact, Transition, Voice, transition},
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// What tells this worker from the others: in real life the pod's name
    #[arg(long, default_value = "decode-0", value_name = "NAME")]
    pub instance: String,
}

/// What a decode worker tells of itself.
#[derive(Metrics)]
struct Decode {
    /// Share of KV blocks in use.
    kv_usage_ratio: Gauge,
    /// Requests waiting for a place in the batch.
    queue_depth: Gauge,
    /// Requests finished.
    requests_total: Counter,
    /// Time to the first token.
    #[metric(unit = "seconds", buckets = [0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0])]
    ttft_seconds: Histogram,
}

pub async fn run(args: &Args, options: NatsOptions, voice: Voice) -> Result<(), Failure> {
    // What any component has, NATS or not.
    let bus = MetricBus::new();
    let metrics: Decode = bus.register()?;
    let full = Condition::when("kv_usage_ratio", Threshold::above(0.9).clear_below(0.8));
    bus.add_rule(Rule::new("KvCacheFull", full).annotation(
        "summary",
        "KV cache is {{ $value }} full, requests will wait",
    ))?;

    // And what publishes it. No server is no error here: the bus works, and the outbox keeps the alerts.
    let forwarder = NatsForwarder::builder(&bus, options)
        .source(SourceId::new(NAMESPACE, COMPONENT, &args.instance))
        .delivery(Delivery::JetStream {
            stream: STREAM.into(),
            create: true,
        })
        .rules_from(RULES)
        .start()
        .await?;
    let _alerts = forwarder.forward_alerts()?;
    let _frames = forwarder
        .forward(r#"{__name__=~"kv_usage_ratio|queue_depth|requests_total|ttft_seconds"}"#)
        .every(Duration::from_millis(100))
        .start()?;

    let instance = args.instance.clone();
    let _printed = bus.on_alert().call(move |alert: Alert| {
        voice.note(Fact::Alert(Transition {
            instance: instance.clone(),
            rule: alert.rule.to_string(),
            epoch: alert.epoch,
            firing: alert.is_firing(),
        }));
        voice.say(transition(&alert));
    })?;
    voice.note(Fact::Ready);
    voice.say(format!(
        "I am {NAMESPACE}/{COMPONENT}/{}; type burst, calm, spikes N, status or quit",
        args.instance
    ));

    let mut load = Load::new(metrics);
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut commands = voice.commands();
    loop {
        let command = tokio::select! {
            _ = ticks.tick() => {
                load.tick();
                continue;
            }
            command = commands.next() => command,
        };
        let Some(command) = command else { break };
        match command.split_whitespace().collect::<Vec<_>>()[..] {
            ["burst"] => load.target = FULL,
            ["calm"] => load.target = CALM,
            ["spikes", times] => match times.parse() {
                Ok(times @ 1..=1_000) => load.spikes(times).await,
                _ => voice.say(format!("{times} spikes? A number from 1 to 1000 would do")),
            },
            ["status"] => status(&forwarder, voice),
            _ => voice.say(format!(
                "{command:?}? I know burst, calm, spikes N, status and quit"
            )),
        }
    }
    // The last alerts are sent, and everybody is told that this is the end rather than a failure.
    forwarder.shutdown(Duration::from_secs(2)).await;
    Ok(())
}

/// What an operator finds on /metrics, too, as metricbus_nats_*.
fn status(forwarder: &NatsForwarder, voice: Voice) {
    let status = forwarder.status();
    voice.say(format!(
        "{}: {} alerts wait, {} confirmed, {} sent again, {} lost; {} frames sent",
        status.connection.state.as_str(),
        status.outbox.unconfirmed,
        status.outbox.confirmed,
        status.outbox.retried,
        status.outbox.dropped,
        status.frames.sent,
    ));
    let connected = status.connection.state == ConnectionState::Connected;
    if let Some(error) = status.connection.last_error.filter(|_| !connected) {
        voice.say(error);
    }
    // It stays there when it was put right: how long ago tells which of the two it is.
    if let Some((error, at)) = status.last_error.zip(status.last_error_at) {
        let ago = at.elapsed().unwrap_or_default().as_secs();
        voice.say(format!("{ago} s ago: {error}"));
    }
}

const TICK: Duration = Duration::from_millis(20);
/// What share of the cache the load takes.
const CALM: f64 = 0.45;
const FULL: f64 = 0.97;

/// A crude model of a worker: the cache follows the load; where it is nearly full, requests wait; who waits gets the first
/// token late.
struct Load {
    metrics: Decode,
    target: f64,
    kv: f64,
    queue: f64,
    random: u64,
}

impl Load {
    fn new(metrics: Decode) -> Load {
        Load {
            metrics,
            target: CALM,
            kv: CALM,
            queue: 0.0,
            random: 0x9e37_79b9_7f4a_7c15,
        }
    }

    fn tick(&mut self) {
        self.kv += (self.target - self.kv) * 0.15 + (self.noise() - 0.5) * 0.01;
        self.queue = (self.queue + if self.kv > 0.9 { 3.0 } else { -5.0 }).max(0.0);
        self.metrics.kv_usage_ratio.set(self.kv);
        self.metrics.queue_depth.set(self.queue);
        for _ in 0..3 {
            let waited = self.queue * 0.01 * (0.5 + self.noise());
            let ttft = 0.04 + 0.04 * self.noise() + waited;
            self.metrics.ttft_seconds.observe(ttft);
            self.metrics.requests_total.inc();
        }
    }

    /// Over the bound and back, so many times. A rule is judged by each mutation, so none is missed.
    async fn spikes(&mut self, times: u32) {
        for _ in 0..times {
            self.metrics.kv_usage_ratio.set(0.95);
            tokio::time::sleep(Duration::from_millis(5)).await;
            self.metrics.kv_usage_ratio.set(self.kv.min(0.7));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// From 0 to 1 (xorshift64).
    fn noise(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as f64 / (1u64 << 53) as f64
    }
}
