//! What is in the messages: bodies and headers, written and read. Pure; sends nothing, knows no bus.
//!
//! What is read comes from anybody. So every name, number, length and depth is checked before it is believed; nothing
//! panics, and nothing allocates more than a small multiple of what was received. How it all looks on the wire is told to
//! people who write other clients in `docs/nats.md`.

pub(crate) mod alert;
mod census;
pub(crate) mod envelope;
pub(crate) mod frame;
#[cfg(any(test, fuzzing))]
pub(crate) mod hostile;
pub(crate) mod number;
pub(crate) mod pulse;
pub(crate) mod query;
pub(crate) mod rule;

use crate::{
    Selector,
    desc::{check_label_name, check_name},
    export::Escaping,
    labels::OVERFLOW_LABEL,
    nats::subject::{SubjectError, shown},
};

/// Why something could not be written or read.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(crate) enum WireError {
    /// A header is missing, there twice, or not what it should be.
    #[error("header {header}: {why}")]
    Header { header: &'static str, why: String },
    /// A field of a body is not what it should be.
    #[error("{field}: {why}")]
    Field { field: String, why: String },
    /// A body is not in the format that it should be in.
    #[error("it can't be read as {format}: {why}")]
    Format { format: &'static str, why: String },
    /// A body would be, or is, too large.
    #[error("{what} of {bytes} bytes is too large: at most {max}")]
    TooLarge {
        what: &'static str,
        bytes: usize,
        max: usize,
    },
    /// A name that can't be in a subject.
    #[error(transparent)]
    Subject(#[from] SubjectError),
    /// The other side says that it could not answer.
    #[error("the source answered with error {code}: {why}")]
    Refused { code: u16, why: String },
}

impl WireError {
    pub(crate) fn field(field: impl Into<String>, why: impl Into<String>) -> WireError {
        WireError::Field {
            field: field.into(),
            why: why.into(),
        }
    }

    fn json(error: &serde_json::Error) -> WireError {
        WireError::Format {
            format: "JSON",
            // It quotes what was received.
            why: plain(&error.to_string()),
        }
    }
}

/// What somebody else has written, fit for a line of a log.
fn plain(text: &str) -> String {
    let seen = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    shown(text).chars().map(seen).collect()
}

/// The object of a JSON.
fn read_json<'a, T: serde::Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, WireError> {
    // Lists of values, in the order of the fields, would be taken, too.
    if !bytes.trim_ascii_start().starts_with(b"{") {
        return Err(WireError::Format {
            format: "JSON",
            why: "it is no object".to_owned(),
        });
    }
    // Once for all of it is cheaper than for each of its texts.
    let text = std::str::from_utf8(bytes).map_err(|error| WireError::Format {
        format: "JSON",
        why: error.to_string(),
    })?;
    serde_json::from_str(text).map_err(|error| WireError::json(&error))
}

/// `Err` with why there can't be a series of this name and these labels.
fn check_series(name: &str, labels: &[(String, String)]) -> Result<(), String> {
    check_length("name", name, limits::NAME_MAX)?;
    check_name(name).map_err(|error| error.to_string())?;
    if labels.len() > limits::LABELS_MAX {
        return Err(format!(
            "{name:?} has {} labels: at most {}",
            labels.len(),
            limits::LABELS_MAX
        ));
    }
    for (i, (label, value)) in labels.iter().enumerate() {
        check_length("label name", label, limits::NAME_MAX)?;
        check_length("label value", value, limits::LABEL_VALUE_MAX)?;
        check_label_name(name, label).map_err(|error| error.to_string())?;
        let underscored = Escaping::Underscores.of_label(label);
        let same = |(earlier, _): &&(String, String)| {
            Escaping::Underscores.of_label(earlier) == underscored
        };
        if labels[..i].iter().any(|pair| same(&pair)) {
            return Err(format!("{name:?} has the label {label:?} twice"));
        }
        // Of labels that mean something else, one is there: that of the series beyond a family's limit.
        let overflow = label == OVERFLOW_LABEL && value != "true";
        if overflow || label == "le" || label == "quantile" || underscored.starts_with("__") {
            return Err(format!(
                "{name:?} has the label {label:?}, which is reserved"
            ));
        }
    }
    Ok(())
}

fn check_length(what: &str, text: &str, max: usize) -> Result<(), String> {
    match text.len() {
        bytes if bytes > max => Err(format!(
            "{what} {:?} is {bytes} bytes long: at most {max}",
            shown(text)
        )),
        _ => Ok(()),
    }
}

/// A selector that somebody else has written. `regexes`: how many regular expressions it may have, and then what is left
/// of them.
fn read_selector(field: &str, text: &str, regexes: &mut usize) -> Result<Selector, WireError> {
    check_length("a selector", text, limits::SELECTOR_MAX)
        .map_err(|why| WireError::field(field, why))?;
    Selector::parse_within(text, regexes, limits::REGEX_MAX)
        .map_err(|error| WireError::field(field, error.to_string()))
}

/// What the limits are. They hold for what is sent as well, so that whoever sends too much hears of it.
pub(crate) mod limits {
    use std::time::Duration;

    /// Bytes of the name of a metric, a label or a level.
    pub(crate) const NAME_MAX: usize = 256;
    /// Bytes of a label's value.
    pub(crate) const LABEL_VALUE_MAX: usize = 4_096;
    /// Labels of a series, a group, an alert.
    pub(crate) const LABELS_MAX: usize = 64;
    /// Bytes of a metric's help. What is longer is cut when it is sent.
    pub(crate) const HELP_MAX: usize = 4_096;
    /// Bytes of a unit.
    pub(crate) const UNIT_MAX: usize = 64;
    /// Bytes of the text of a selector, …
    pub(crate) const SELECTOR_MAX: usize = 4_096;
    /// … and of each of its regular expressions once it is compiled.
    pub(crate) const REGEX_MAX: usize = 512 << 10;
    /// How many of them there may be in a selector, and in a rule.
    pub(crate) const REGEXES_MAX: usize = 16;
    /// Bytes of the JSON of a rule, or of a question.
    pub(crate) const RULE_MAX: usize = 64 << 10;
    /// How deep a rule's conditions and expressions are nested.
    pub(crate) const DEPTH_MAX: usize = 32;
    /// How many conditions, expressions and numbers a rule is made of.
    pub(crate) const NODES_MAX: usize = 256;
    /// Transitions that a received rule may remember.
    pub(crate) const HISTORY_MAX: usize = 10_000;
    /// Alerts of one answer. Whoever asks for so many or fewer gets all that there still are.
    pub(crate) const ALERTS_ASKED_MAX: usize = 1_000;
    /// How often a source may say that it lives.
    pub(crate) const INTERVAL_MIN: Duration = Duration::from_millis(10);
    pub(crate) const INTERVAL_MAX: Duration = Duration::from_secs(3600);
    /// How wide a window that is asked for may be.
    pub(crate) const WIDTH_MAX: Duration = Duration::from_secs(31 * 86_400);
}
