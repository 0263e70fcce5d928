//! What a layer that holds alerts back can say to whoever calls it.

use std::fmt;

/// The error of whatever a layer sends to, as tower has it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a layer takes no more alerts.
///
/// What fails behind a layer is not told to its caller, who has long gone on: it is counted and logged. This is for good.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    /// The service it sends to panicked time after time.
    #[error(
        "the service behind {layer} panicked 3 times in a row, and is not called any more; make a new one"
    )]
    Detached {
        /// `throttle`, `repeat`, `rollup`, `stable` or `flap`.
        layer: &'static str,
    },
    /// The task that delivers has ended.
    #[error(
        "{layer} delivers no more: the runtime it was made in, or its bus, has ended; make it in the one that goes on"
    )]
    Ended {
        /// `throttle`, `repeat`, `rollup`, `stable` or `flap`.
        layer: &'static str,
    },
}

impl fmt::Debug for LayerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a channel did not take an alert.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChannelError {
    /// Nobody receives any more.
    #[error("the channel is closed: its receiver is gone")]
    Closed,
    /// A bounded channel of the standard library is full; it can't be waited for without holding up a thread.
    #[error(
        "the channel is full: receive faster, make it larger, or use tokio's, which is waited for"
    )]
    Full,
}

impl fmt::Debug for ChannelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
