//! What can go wrong when a fleet is asked for something. That nobody is there is mostly none of it, but a state.

use std::fmt;

use super::ask::AskError;
use crate::{DeclareError, RuleError, SelectorError, SourceId, nats::NatsError};

/// Why a fleet could not be made, or could not answer.
#[derive(Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum FleetError {
    /// The options, the connection, the prefix.
    #[error(transparent)]
    Nats(#[from] NatsError),
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
    /// A selector can't be read.
    #[error(transparent)]
    Selector(#[from] SelectorError),
    /// A rule that is to be sent is wrong.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// A rule that is to be sent can't be written down.
    #[error("rule {rule:?} can't be sent: {why}")]
    Unsendable {
        /// Its name.
        rule: String,
        /// What is wrong, and what would be right.
        why: String,
    },
    /// No source of this name is known, or it is gone.
    #[error("no source {0} is there")]
    Unknown(SourceId),
    /// A source gave no answer, or one that can't be read.
    #[error("{source_id}: {why}")]
    Unanswered {
        /// Which source.
        source_id: SourceId,
        /// What went wrong, in words.
        why: String,
    },
    /// The bucket of rules can't be used.
    #[error("bucket {bucket:?} of rules: {why}")]
    Bucket {
        /// Its name.
        bucket: String,
        /// What went wrong.
        why: String,
    },
    /// Something could not be declared on the fleet's bus.
    #[error(transparent)]
    Declare(#[from] DeclareError),
}

impl FleetError {
    pub(super) fn unanswered(source: &SourceId, error: &AskError) -> FleetError {
        FleetError::Unanswered {
            source_id: source.clone(),
            why: error.to_string(),
        }
    }
}

impl fmt::Debug for FleetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
