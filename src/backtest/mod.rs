//! Backtests: mutations recorded to a file (or read from CSV), and rules run over them at once, on virtual time.
//!
//! A [`Recorder`] writes every mutation of chosen series of a live bus to a file. [`Recording`] reads it, or a CSV file.
//! [`Replay`] runs rules over it, as fast as it goes, and reports every transition that they would have made, at its exact
//! time: what tells whether a threshold is right is the past.

mod csv;
mod error;
mod format;
mod player;
mod record;
mod recording;
mod replay;

pub use csv::CsvColumns;
pub use error::{CsvError, ReadError, RecordError, ReplayError};
pub use format::RecordedSeries;
pub use record::{Recorder, RecorderStats, Summary};
pub use recording::{Entries, Entry, Recording};
pub use replay::{Firing, Progress, Replay, Report, RuleReport};
