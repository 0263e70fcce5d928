//! What can go wrong with a recording, an enum per operation.

use std::{fmt, io, path::PathBuf};

use super::format::VERSION;
use crate::error::{DeclareError, SelectorError};

/// Why mutations could not be recorded.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The selector is wrong.
    #[error(transparent)]
    Selector(#[from] SelectorError),
    /// The file can't be made.
    #[error("recording to {}: {source}; give a path that can be written to", path.display())]
    Create {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file could not be written on. What was written before can be read; nothing was recorded since.
    #[error("recording to {}: {source}; what was recorded before it can be read", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// No thread to write with.
    #[error("recording: no thread to write with: {0}")]
    Thread(io::Error),
}

/// Why a recording could not be read, or no further.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The file can't be opened.
    #[error("recording {}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file could not be read on.
    #[error("recording: {0}")]
    Read(io::Error),
    /// It is something else.
    #[error(
        "not a recording: it does not begin as one; a Recorder writes them, and Recording::from_csv reads CSV"
    )]
    NotARecording,
    /// It was written by a later version of this library.
    #[error("recording of version {version}: this library reads {VERSION}; use a newer one")]
    Version {
        /// As the file says.
        version: u16,
    },
    /// The file ends before the recording does: whoever wrote it crashed, or is still writing. All there is was read.
    #[error("the recording was cut off: nothing can be read from byte {offset} on")]
    CutOff {
        /// How many bytes of the file are whole.
        offset: u64,
    },
    /// The file is damaged.
    #[error("the recording is damaged in the block at byte {offset}: {why}")]
    Corrupt {
        /// Where the damaged block is, or ends.
        offset: u64,
        /// What is wrong.
        why: String,
    },
}

/// Why a CSV file could not be read as a recording.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum CsvError {
    /// The file can't be opened.
    #[error("{}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It is not CSV: not UTF-8, or a line with another number of fields than the first.
    #[error("line {line}: {why}")]
    Syntax {
        /// Counted from 1, the header included.
        line: u64,
        /// What is wrong.
        why: String,
    },
    /// A column that was asked for is not there.
    #[error("there is no column {column:?}; the header has {header:?}")]
    NoColumn {
        /// The column.
        column: String,
        /// All columns.
        header: Vec<String>,
    },
    /// A column's mapping can't be.
    #[error("column {column:?}: {why}")]
    Mapping {
        /// The column.
        column: String,
        /// What is wrong, and what would be right.
        why: String,
    },
    /// A cell.
    #[error("line {line}, column {column:?}: {value:?} {why}")]
    Cell {
        /// Counted from 1, the header included.
        line: u64,
        /// The column.
        column: String,
        /// What it says.
        value: String,
        /// What would be right.
        why: String,
    },
    /// There is nothing in it.
    #[error("there are no rows under the header")]
    Empty,
}

/// Why a replay ended before its time.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// The recording can't be read.
    #[error(transparent)]
    Recording(#[from] ReadError),
    /// A metric of the recording can't be declared.
    #[error("the recording has a metric that can't be: {0}")]
    Declare(#[from] DeclareError),
    /// The labels of a series are not those of its metric.
    #[error("the recording is damaged: {series} does not have the labels of its metric, {names:?}")]
    Labels {
        /// The series.
        series: String,
        /// The metric's labels.
        names: Vec<String>,
    },
    /// A rule is wrong.
    #[error("rule {rule:?}: {why}")]
    Rule {
        /// The rule's name.
        rule: String,
        /// What is wrong.
        why: String,
    },
}

/// `main` and `unwrap` show errors by their `Debug`; there, too, the message is what helps.
macro_rules! debug_is_the_message {
    ($($error:ty),*) => {$(
        impl fmt::Debug for $error {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    )*};
}

debug_is_the_message!(RecordError, ReadError, CsvError, ReplayError);
