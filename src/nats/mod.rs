//! Across pods, over NATS: alerts, series, windows and rules of other processes.
//!
//! A *source* is a process with a [`MetricBus`](crate::MetricBus) and a [`NatsForwarder`]; a *fleet* is a process with a
//! [`Fleet`], which knows many sources. NATS carries it all: there is nothing else to run. What goes over the wire is
//! written down in `docs/nats.md`, so that programs without this crate can read it (`examples/alerts.py`).
//!
//! `make cross-pod` shows all of it in twenty seconds; `examples/cross_pod/` is a worker, a planner and a plain consumer to
//! begin with.
//!
//! # A worker
//!
//! ```no_run
//! use std::time::Duration;
//! use metricbus::{Condition, Delta, MetricBus, Rule, SourceId, Threshold, nats::{NatsForwarder, NatsOptions}};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let bus = MetricBus::new();
//! let kv = bus.gauge("kv_usage_ratio", "Share of KV blocks in use.")?;
//! bus.add_rule(Rule::new("KvCacheFull", Condition::when(&kv, Threshold::above(0.9).clear_below(0.8))))?;
//!
//! let options = NatsOptions::from_env()?; // NATS_URL, NATS_CREDS, NATS_CA …, as for the `nats` tool
//! let forwarder = NatsForwarder::builder(&bus, options)
//!     .source(SourceId::new("prod", "decode", "pod-7")) // or METRICBUS_NAMESPACE, METRICBUS_COMPONENT, HOSTNAME
//!     .rules_from("metricbus-rules")
//!     .start()
//!     .await?;
//!
//! // Alerts: each, at once, until it is confirmed. Through layers of `metricbus::service` and tower, it is a service:
//! // `bus.on_alert().service(ServiceBuilder::new().layer(…).service(forwarder.clone()))`.
//! let _alerts = forwarder.forward_alerts()?;
//! // Series: conflated, ten times a second at most, and only gauges that have moved.
//! let _frames = forwarder
//!     .forward(r#"{__name__=~"kv_usage_ratio|requests_total|ttft_seconds"}"#)
//!     .every(Duration::from_millis(100))
//!     .deadband(Delta::absolute(0.01))
//!     .start()?;
//!
//! // … the work …
//! forwarder.shutdown(Duration::from_secs(5)).await; // the last alerts, and a goodbye
//! # Ok(())
//! # }
//! ```
//!
//! No server is no error: the bus works, its rules fire, the outbox holds the alerts. A mutation never waits for any of
//! this. Wrong options, missing files and impossible subjects *are* errors, of `start`.
//!
//! [`Delivery`] says how far an alert has to get. By [`Auto`](Delivery::Auto) it goes into a JetStream stream where one takes
//! its subject; then consumers that were away get it later. A [`Fleet`] needs no stream: it asks the source for what it missed.
//!
//! # A planner
//!
//! ```no_run
//! use std::time::Duration;
//! use metricbus::{Condition, Expr, Rule, Threshold, nats::{Fleet, NatsOptions, RuleTarget}};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let fleet = Fleet::builder(NatsOptions::from_env()?).namespace("prod").component("decode").start().await?;
//! fleet.synced().await;
//!
//! let _pods = fleet.on_source().call(|event| println!("{event}"))?;
//! let _alerts = fleet.on_alert().call(|alert| println!("{:?}: {alert}", alert.origin))?;
//!
//! // Judged here, over all sources there are and will be. Their labels: namespace, component, instance, and their own.
//! let queue = Expr::sum("queue_depth").by(["component"]);
//! let rule = Rule::new("FleetBacklog", Condition::when(queue, Threshold::above(500.0).clear_below(200.0)));
//! let _backlog = fleet.add_rule(rule)?.on_alert().call(|alert| println!("{alert}"))?;
//!
//! // Judged in each source, by each mutation; only transitions travel.
//! let full = Condition::when("kv_usage_ratio", Threshold::above(0.95).clear_below(0.9));
//! fleet.send_rule(RuleTarget::component("prod", "decode"), Rule::new("KvCacheTight", full)).await?;
//!
//! // Asked of each source, and merged without loss: the p99 of all requests, not a mean of p99s.
//! let ttft = fleet.window("ttft_seconds", Duration::from_secs(60)).await?;
//! println!("{:?}, of {} of {} sources", ttft.stats.quantile(0.99), ttft.answered, ttft.asked + ttft.stale.len());
//! # std::future::pending().await
//! # }
//! ```
//!
//! Which to choose?
//!
//! | | hears of | after | costs |
//! |---|---|---|---|
//! | a rule at the source, [`Fleet::on_alert`] | every crossing, however short | a millisecond | a message per transition |
//! | [`Fleet::send_rule`] | the same, of rules that the planner makes up | the same | the same |
//! | [`Fleet::add_rule`] | what is so in frames; sums and ratios over sources | the period of the frames | a message per period and source |
//! | [`Fleet::window`] | what each source has seen, exactly | a round trip | a request per source |
//!
//! # Who is there
//!
//! A source says that it is born, then lives (each second, see [`heartbeat`](NatsForwarderBuilder::heartbeat)), then that it
//! dies. A fleet that starts asks all at once who is there, and takes each over by a snapshot: it need not wait for anything
//! to change. [`Fleet`] says what is live, stale and gone, and what is shown of each.
//!
//! A source that restarts has a new *boot*; its counters begin at 0, and that is no reset. Two processes that call themselves
//! the same are told as a [`Conflict`](SourceChange::Conflict): give each its own instance, such as the pod's name.
//!
//! # What is guaranteed
//!
//! - **Alerts**: at a `Fleet` each exactly once, in the order of its source; through lost connections, a server killed and
//!   restarted with or without its store, a fleet that fell behind. The limit is the outbox: 10 000 alerts, confirmed or not
//!   ([`outbox`](NatsForwarderBuilder::outbox)), and the last of every group beyond them; what has fallen out of it is counted and told
//!   ([`AlertsLost`](SourceChange::AlertsLost)). Alerts die with their process: what it had not sent when it was killed is
//!   lost. A fleet that starts hears what is firing, not what had fired before.
//! - **Values** converge: each frame has a number, what is missing is noticed, and mended by a snapshot. Between two frames
//!   only the latest is seen. Histograms come with their buckets for quantiles, so nothing is lost in merging.
//! - **Absence** is told. What nobody can vouch for is stale and then gone, not shown as present.
//! - **Rules** that were sent stay in force at a source while server and planner are away; they end when they are
//!   [taken back](Fleet::retract_rule).
//! - **No loops, no floods**: an alert that came from elsewhere is not forwarded again; alerts and frames have a rate that they
//!   don't exceed; messages keep to the server's `max_payload`; every buffer is bounded, and what it drops is counted.
//! - **Nothing that is received is trusted**: what is not as it should be is counted, and ignored.
//!
//! Other consumers of alerts, on a plain subscription, hear each at least once, while they listen; with a stream, all. The same
//! alert always has the same id (`Nats-Msg-Id`, and `id` in the body).
//!
//! # What an operator looks at
//!
//! Sources have `metricbus_nats_*`, fleets `metricbus_fleet_*` on `/metrics`; [`NatsForwarder::status`] and [`Fleet::status`]
//! have the same, and [`last_error`](ForwarderStatus::last_error) what to do.
//!
//! | look at | it means |
//! |---|---|
//! | `metricbus_nats_connection_state{state="connected"}` is 0 | no server, or it refuses: the log has one line, `metricbus forwarder: …`, with the address, the reason, and what to check |
//! | `metricbus_nats_outbox_unconfirmed` stays above 0 | alerts wait; for how long: `metricbus_nats_outbox_oldest_unconfirmed_seconds` |
//! | `metricbus_nats_alerts_dropped_total` grows | alerts are lost: the outbox is too small for the outage, or `reason="too_large"`: raise `max_payload` of the server, or `max_msg_size` of the stream |
//! | `metricbus_nats_permission_denials_total` grows | the server does not permit a subject, which is in the log |
//! | `metricbus_nats_frames_merged_total` grows | more is to be sent than [`frames_per_second_max`](NatsForwarderBuilder::frames_per_second_max) permits; values come later, none is wrong |
//! | `metricbus_nats_rules_not_in_force` is above 0 | a rule from the bucket was refused: [`Fleet::rules_of`] says why |
//! | `metricbus_fleet_sources{state="stale"}`, or `"gone"` | who, and why: [`Fleet::sources`], and the log |
//! | `metricbus_fleet_gaps_total` grows | frames get lost; they are mended. With `metricbus_fleet_dropped_total`: the fleet does not keep up |
//! | `metricbus_fleet_alerts_lost_total` grows | a fleet was away for longer than an outbox holds |
//! | `metricbus_fleet_ignored_total` grows, by `reason` | somebody sends what can't be read, or in another's name |
//! | `metricbus_fleet_rules_unwritten` stays above 0 | no JetStream, or no permission: [`SentRule::why`] |
//!
//! With the `nats` tool: `nats sub 'metricbus.v1.*.*.*.a.>'` shows alerts, `nats service list metricbus` the sources,
//! `nats req metricbus.v1.prod.decode.pod-7.q.info ''` one of them, `nats kv ls metricbus-rules` the rules.
//!
//! # Security
//!
//! Whoever may publish `metricbus.v1.prod.decode.pod-7.>` *is* that source; whoever may write the bucket of rules decides what
//! sources evaluate; whoever may publish `….q.*` may ask. So give each side what it needs, and no more. With these users a worker
//! can't speak for another component, nor send rules, and a planner can't speak for a worker:
//!
//! ```text
//! jetstream {}
//! authorization {
//!   worker = {
//!     publish = [
//!       "metricbus.v1.prod.decode.>"                    # what it says
//!       "$JS.API.STREAM.LIST"                           # is there a stream for alerts?
//!       "$JS.API.STREAM.INFO.*"                         # the same, of one it is told, and of the bucket of rules
//!       "$JS.API.CONSUMER.CREATE.KV_metricbus-rules.>"  # only with rules_from: to read rules
//!       "$JS.API.CONSUMER.DELETE.KV_metricbus-rules.>"
//!       "$JS.FC.KV_metricbus-rules.>"
//!     ]
//!     subscribe = ["metricbus.v1.prod.decode.*.q.*", "metricbus.v1.hello", "$SRV.>", "_INBOX.>"]
//!     # To answer questions, in several parts: to whom asked, for a while.
//!     allow_responses = { max: 10000, expires: "1m" }
//!   }
//!   planner = {
//!     publish = [
//!       "metricbus.v1.hello", "metricbus.v1.prod.decode.*.q.*"   # its questions
//!       "$JS.API.STREAM.*.KV_metricbus-rules"                    # only to send rules: the bucket …
//!       "$JS.API.INFO", "$JS.API.DIRECT.GET.KV_metricbus-rules.>"
//!       "$JS.API.CONSUMER.*.KV_metricbus-rules.>"
//!       "$KV.metricbus-rules.>"                                  # … and what is in it
//!     ]
//!     subscribe = ["metricbus.v1.prod.decode.*.*.>", "_INBOX.>"]
//!   }
//!   users = [
//!     { user: worker, password: $WORKER_PASSWORD, permissions: $worker }
//!     { user: planner, password: $PLANNER_PASSWORD, permissions: $planner }
//!   ]
//! }
//! ```
//!
//! A worker that is told [`JetStream { create: true }`](Delivery::JetStream) also needs `$JS.API.STREAM.CREATE.` and the
//! stream's name. What is missing is told, once per subject: `the server does not permit …`. For TLS use `tls://` or
//! [`require_tls`](NatsOptions::require_tls), with [`root_certificates`](NatsOptions::root_certificates) for an authority of your own.
//! No log line, error or `Debug` shows a password, token or seed.

mod connection;
mod error;
mod fleet;
mod forwarder;
mod options;
pub(crate) mod subject;
pub(crate) mod wire;

pub use self::{
    connection::{ConnectionState, ConnectionStatus},
    error::NatsError,
    fleet::{
        Fleet, FleetBuilder, FleetError, FleetStatus, FleetWindow, GoneWhy, RuleTarget, SentRule,
        SeriesWindow, SourceChange, SourceEvent, SourceRule, SourceRules, SourceState,
        SourceStatus, SourceWindow,
    },
    forwarder::{
        Delivery, Forward, ForwardError, Forwarded, ForwarderStatus, Forwarding, FramesStatus,
        NatsForwarder, NatsForwarderBuilder, OutboxStatus, Queued, RefusedRule, RulesInState,
        RulesInStatus,
    },
    options::NatsOptions,
};

/// The decoders, for the fuzzer alone: each panics where one takes what it should not.
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing {
    use super::wire::hostile;

    macro_rules! targets {
        ($($name:ident),*) => {$(
            #[allow(missing_docs)]
            pub fn $name(bytes: &[u8]) {
                hostile::$name(bytes);
            }
        )*};
    }

    #[allow(missing_docs)]
    pub fn decode(kind: &str, bytes: &[u8]) {
        hostile::decode(kind, bytes);
    }

    targets!(subject, headers, frame, alert, pulse, query, rule);
}
