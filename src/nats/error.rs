//! What can go wrong across pods. Nobody answering is none of it: that is a state, which ends.

use std::{fmt, path::PathBuf, time::Duration};

/// Why something over NATS could not be set up, or was not done.
///
/// No message holds a secret: passwords, tokens, seeds and the user part of URLs are left out.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NatsError {
    /// The address of a server can't be used.
    #[error(
        "NATS URL {url:?} can't be used: {why}; nats://127.0.0.1:4222 or tls://nats.example.com would be right, and several with commas between them"
    )]
    Url {
        /// The URL as given, without user, password and token.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// A file is not there, can't be read, or does not hold what it should.
    #[error("{what} {path:?}: {why}")]
    File {
        /// `credentials file`, `nkey file`, `root certificates`, `client certificate` or `client key`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong, and what would be right.
        why: String,
    },
    /// What is shown to the server to be let in can't be used.
    #[error("{what}: {why}")]
    Credentials {
        /// Which kind.
        what: &'static str,
        /// What is wrong, and what would be right.
        why: String,
    },
    /// A setting has a value that can't be.
    #[error("{setting} {value:?} can't be: {why}")]
    Setting {
        /// Which one.
        setting: &'static str,
        /// Its value.
        value: String,
        /// What is wrong, and what would be right.
        why: String,
    },
    /// There is no tokio runtime here.
    #[error(
        "there is no tokio runtime here, and what goes over NATS needs one with time and I/O: call start() in one"
    )]
    NoRuntime,
    /// There is no connection at the moment.
    #[error("not connected: {why}")]
    Disconnected {
        /// What is known of the reason.
        why: String,
    },
    /// The client has no room for a message at the moment.
    #[error("the client has no room for a message: the server takes them slower than they come")]
    Full,
    /// No answer in time.
    #[error("{what} took longer than {after:?}; the server or the way to it is slow or frozen")]
    TimedOut {
        /// What was waited for.
        what: &'static str,
        /// How long.
        after: Duration,
    },
    /// The connection was made anew meanwhile, and what was sent on the old one may be lost.
    #[error("the connection broke meanwhile, and what was sent on it may be lost")]
    Reconnected,
    /// The server does not permit it.
    #[error(
        "the server does not permit to {what} {subject:?}: allow it for this user in the server's configuration"
    )]
    Denied {
        /// `publish to` or `subscribe to`.
        what: &'static str,
        /// The subject.
        subject: String,
    },
    /// A message is larger than the server takes.
    #[error(
        "{what} of {bytes} bytes is larger than the {max} bytes that are allowed (max_payload of the server)"
    )]
    TooLarge {
        /// What.
        what: &'static str,
        /// Its size.
        bytes: usize,
        /// The largest that would do.
        max: usize,
    },
    /// An alert that came from another process is not sent on, lest it go round in circles.
    #[error(
        "alert {rule:?} was made by {source_id} and is not forwarded again; give the forwarder a bus's own alerts, from MetricBus::on_alert"
    )]
    Looped {
        /// Its rule.
        rule: String,
        /// Who made it.
        source_id: String,
    },
    /// Not all alerts were confirmed before the deadline.
    #[error("{left} alerts were not confirmed before the deadline: {why}")]
    Unconfirmed {
        /// How many are left.
        left: usize,
        /// What stood in the way.
        why: String,
    },
    /// It was shut down, or its bus has ended.
    #[error("it has ended: it was shut down, or its bus is gone")]
    Ended,
}

impl fmt::Debug for NatsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
