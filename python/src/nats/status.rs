//! How a connection and a forwarder stand: plain values.

use std::time::Duration;

use metricbus::nats;
use pyo3::prelude::*;

use super::Date;
use crate::source::SourceId;

/// A connection as it is now, for people.
#[pyclass(frozen, get_all, module = "metricbus")]
#[derive(Clone)]
pub(crate) struct ConnectionStatus {
    /// `"connecting"`: not yet connected, tried again and again. `"connected"`. `"disconnected"`: it was connected, and is
    /// tried again. `"refused"`: there is a server, and credentials or certificates are wrong; tried again all the same.
    pub(super) state: &'static str,
    /// Since when.
    since: Date,
    /// The addresses it was given, without secrets.
    servers: Vec<String>,
    /// The name of the server it is connected to, or was last.
    server: Option<String>,
    /// The version of that.
    version: Option<String>,
    /// The last that went wrong, and what to do about it. Stays after it was put right, with `last_error_at`.
    last_error: Option<String>,
    /// When that was.
    last_error_at: Option<Date>,
    /// How many times it was connected.
    connects: u64,
    /// What the server did not permit: publications and subscriptions.
    denied: u64,
    /// Messages that were dropped because a subscription's reader did not keep up.
    slow: u64,
}

impl From<nats::ConnectionStatus> for ConnectionStatus {
    fn from(status: nats::ConnectionStatus) -> ConnectionStatus {
        ConnectionStatus {
            state: status.state.as_str(),
            since: Date(status.since),
            servers: status.servers,
            server: status.server,
            version: status.version,
            last_error: status.last_error,
            last_error_at: status.last_error_at.map(Date),
            connects: status.connects,
            denied: status.denied,
            slow: status.slow,
        }
    }
}

#[pymethods]
impl ConnectionStatus {
    fn __repr__(&self) -> String {
        match &self.last_error {
            Some(error) if self.state != "connected" => {
                format!("<ConnectionStatus {}: {error}>", self.state)
            }
            _ => format!("<ConnectionStatus {}>", self.state),
        }
    }
}

/// What a forwarder is doing.
#[pyclass(frozen, get_all, module = "metricbus")]
#[derive(Clone)]
pub(crate) struct ForwarderStatus {
    /// Who it says it is.
    source: SourceId,
    /// Which life of that source this is: microseconds since 1970 at its start.
    boot: u64,
    /// The connection.
    connection: ConnectionStatus,
    /// How alerts are sent at the moment, for people: `core NATS`, `stream NAME`, or that it is not known yet.
    delivery: String,
    /// Alerts.
    outbox: OutboxStatus,
    /// Frames of updates.
    frames: FramesStatus,
    /// Rules taken from others, where `rules_from` was given.
    rules_in: Option<RulesInStatus>,
    /// The last that went wrong other than with the connection, and what to do about it.
    last_error: Option<String>,
    /// When that was.
    last_error_at: Option<Date>,
}

impl From<nats::ForwarderStatus> for ForwarderStatus {
    fn from(status: nats::ForwarderStatus) -> ForwarderStatus {
        ForwarderStatus {
            source: SourceId(status.source),
            boot: status.boot,
            connection: status.connection.into(),
            delivery: status.delivery,
            outbox: status.outbox.into(),
            frames: status.frames.into(),
            rules_in: status.rules_in.map(RulesInStatus::from),
            last_error: status.last_error,
            last_error_at: status.last_error_at.map(Date),
        }
    }
}

#[pymethods]
impl ForwarderStatus {
    fn __repr__(&self) -> String {
        format!(
            "<ForwarderStatus of {}: {}, {} alerts unconfirmed>",
            self.source.0, self.connection.state, self.outbox.unconfirmed
        )
    }
}

/// The alerts of a forwarder.
#[pyclass(frozen, get_all, module = "metricbus")]
#[derive(Clone)]
pub(crate) struct OutboxStatus {
    /// In the outbox, confirmed or not …
    held: usize,
    /// … at most so many …
    limit: usize,
    /// … of so many bytes, by estimate.
    bytes: usize,
    /// Of them: not confirmed.
    unconfirmed: usize,
    /// For how many seconds the oldest of those is there, by the bus's clock.
    oldest_unconfirmed: Option<f64>,
    /// Given to the client, each time it was.
    sent: u64,
    /// Of those: not for the first time.
    retried: u64,
    /// Confirmed.
    confirmed: u64,
    /// Lost because the outbox was full.
    dropped: u64,
    /// Lost because they are larger than the server takes, or the outbox.
    too_large: u64,
    /// Of those that are confirmed: sent to a stream that did not take them, so that only those who listened have them.
    unstored: u64,
    /// Refused because they came from another process.
    looped: u64,
}

impl From<nats::OutboxStatus> for OutboxStatus {
    fn from(status: nats::OutboxStatus) -> OutboxStatus {
        OutboxStatus {
            held: status.held,
            limit: status.limit,
            bytes: status.bytes,
            unconfirmed: status.unconfirmed,
            oldest_unconfirmed: status
                .oldest_unconfirmed
                .as_ref()
                .map(Duration::as_secs_f64),
            sent: status.sent,
            retried: status.retried,
            confirmed: status.confirmed,
            dropped: status.dropped,
            too_large: status.too_large,
            unstored: status.unstored,
            looped: status.looped,
        }
    }
}

#[pymethods]
impl OutboxStatus {
    fn __repr__(&self) -> String {
        format!(
            "<OutboxStatus {} of {} alerts, {} unconfirmed, {} dropped>",
            self.held, self.limit, self.unconfirmed, self.dropped
        )
    }
}

/// The frames of updates of a forwarder.
#[pyclass(frozen, get_all, module = "metricbus")]
#[derive(Clone)]
pub(crate) struct FramesStatus {
    /// How many forwardings there are.
    forwardings: usize,
    /// How many series are forwarded; one that several forward is counted once.
    series: u64,
    /// Given to the client.
    sent: u64,
    /// Their bytes.
    bytes: u64,
    /// Not taken by the client in time; the next one holds what they held.
    dropped: u64,
    /// Times that a forwarding sent nothing, as the source had sent as many as it may; it was sent later, together.
    merged: u64,
    /// Times that a series was left out because it alone is larger than a message may be.
    too_large: u64,
    /// Sequences left out on purpose, so that consumers ask for a snapshot: more series had gone than could be told.
    skipped: u64,
}

impl From<nats::FramesStatus> for FramesStatus {
    fn from(status: nats::FramesStatus) -> FramesStatus {
        FramesStatus {
            forwardings: status.forwardings,
            series: status.series,
            sent: status.sent,
            bytes: status.bytes,
            dropped: status.dropped,
            merged: status.merged,
            too_large: status.too_large,
            skipped: status.skipped,
        }
    }
}

#[pymethods]
impl FramesStatus {
    fn __repr__(&self) -> String {
        format!(
            "<FramesStatus {} series in {} forwardings, {} frames sent>",
            self.series, self.forwardings, self.sent
        )
    }
}

/// Rules from a bucket, as they stand.
#[pyclass(frozen, get_all, module = "metricbus")]
#[derive(Clone)]
pub(crate) struct RulesInStatus {
    /// The bucket.
    bucket: String,
    /// Where the reading of it stands: `"waiting"` (for a connection), `"watching"`, `"missing"` (there is no such bucket) or
    /// `"failing"`. It is tried again in any case, and rules that are in force go on.
    state: &'static str,
    /// Why it can't be read, where it is failing.
    why: Option<String>,
    /// How many rules are in force because the bucket says so.
    in_force: usize,
    /// Keys about this source that give no rule, and why.
    refused: Vec<RefusedRule>,
}

impl From<nats::RulesInStatus> for RulesInStatus {
    fn from(status: nats::RulesInStatus) -> RulesInStatus {
        use nats::RulesInState;
        let (state, why) = match status.state {
            RulesInState::Waiting => ("waiting", None),
            RulesInState::Watching => ("watching", None),
            RulesInState::Missing => ("missing", None),
            RulesInState::Failing(why) => ("failing", Some(why)),
            // `RulesInState` may grow.
            other => ("failing", Some(other.to_string())),
        };
        let refused = status.refused.into_iter().map(|refused| RefusedRule {
            key: refused.key,
            why: refused.why,
        });
        RulesInStatus {
            bucket: status.bucket,
            state,
            why,
            in_force: status.in_force,
            refused: refused.collect(),
        }
    }
}

#[pymethods]
impl RulesInStatus {
    fn __repr__(&self) -> String {
        format!(
            "<RulesInStatus {:?} {}, {} in force, {} refused>",
            self.bucket,
            self.state,
            self.in_force,
            self.refused.len()
        )
    }
}

/// A key of a bucket that gives no rule.
#[pyclass(frozen, get_all, module = "metricbus")]
#[derive(Clone)]
pub(crate) struct RefusedRule {
    /// The key.
    pub(super) key: String,
    /// What is wrong, and what would be right.
    pub(super) why: String,
}

#[pymethods]
impl RefusedRule {
    fn __repr__(&self) -> String {
        format!("<RefusedRule {}: {}>", self.key, self.why)
    }
}
