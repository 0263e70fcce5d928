//! What can go wrong with a recording, an enum per operation.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

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
    #[error("{}{source}", named(path.as_deref()))]
    Read {
        /// The file; `None` where it is in memory.
        path: Option<PathBuf>,
        /// What the system says.
        source: io::Error,
    },
    /// It is something else.
    #[error(
        "{}this is not a recording: it does not begin as one; a Recorder writes them, and Recording::from_csv reads CSV",
        named(path.as_deref())
    )]
    NotARecording {
        /// The file; `None` where it is in memory.
        path: Option<PathBuf>,
    },
    /// It was written by a later version of this library.
    #[error(
        "{}it is of version {version}, and this library reads {VERSION}; use a newer one",
        named(path.as_deref())
    )]
    Version {
        /// The file; `None` where it is in memory.
        path: Option<PathBuf>,
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
    #[error(
        "{}it is damaged in the block at byte {offset}: {why}",
        named(path.as_deref())
    )]
    Corrupt {
        /// The file; `None` where it is in memory.
        path: Option<PathBuf>,
        /// Where the damaged block is, or ends.
        offset: u64,
        /// What is wrong.
        why: String,
    },
}

/// What is wrong begins with what it is wrong with.
fn named(path: Option<&Path>) -> String {
    match path {
        Some(path) => format!("recording {}: ", path.display()),
        None => "recording: ".to_owned(),
    }
}

impl ReadError {
    /// Says of which file it is. Whoever decodes knows none.
    pub(crate) fn of(mut self, file: Option<&Path>) -> ReadError {
        match &mut self {
            ReadError::Read { path, .. }
            | ReadError::NotARecording { path }
            | ReadError::Version { path, .. }
            | ReadError::Corrupt { path, .. } => *path = file.map(Path::to_owned),
            ReadError::Open { .. } | ReadError::CutOff { .. } => {}
        }
        self
    }
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
    /// There is a header, and nothing under it.
    #[error("there are no rows under the header")]
    Empty,
    /// There is not even a header.
    #[error(
        "the file is empty; right would be a line with the names of the columns, and rows under it"
    )]
    NoHeader,
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
