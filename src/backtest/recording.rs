//! A recording as it is read: entry by entry, from a file or from memory.

use std::{
    fmt,
    fs::File,
    io::{BufReader, Cursor, Read},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{
    error::ReadError,
    format::{Decoder, Header, RecordedSeries, Step},
};
use crate::{
    desc::{MetricKind, Numbers},
    series::{Value, is_measured},
    tap::Change,
    time::Time,
};

/// Mutations of some series over some time, to be [replayed](super::Replay) or looked at.
///
/// It is read anew for each replay, a block at a time, so a file can be larger than memory.
///
/// ```
/// use metricbus::{Change, MetricBus, backtest::{Entry, Recorder, Recording}};
///
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("queue.rec");
/// let bus = MetricBus::new();
/// let queue = bus.gauge("queue_depth", "Requests waiting.")?;
/// let recorder = Recorder::start(&bus, "queue_depth", &path)?;
/// queue.set(3.0);
/// recorder.finish()?;
///
/// for entry in Recording::open(&path)?.entries()? {
///     if let Entry::Mutation { series, change, .. } = entry? {
///         assert_eq!(series.to_string(), "queue_depth");
///         assert_eq!(change, Change::Set { before: None, after: 3.0 });
///     }
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Recording {
    source: Source,
    header: Header,
    len: u64,
}

#[derive(Clone)]
enum Source {
    File(PathBuf),
    Memory(Arc<[u8]>),
}

pub(crate) type Input = Box<dyn Read + Send>;

impl Recording {
    /// Opens a file that a [`Recorder`](super::Recorder) wrote, finished or not.
    ///
    /// # Errors
    ///
    /// When it can't be read, is not a recording, or is of a later version.
    pub fn open(path: impl AsRef<Path>) -> Result<Recording, ReadError> {
        let path = path.as_ref().to_owned();
        let len = std::fs::metadata(&path)
            .map_err(|source| ReadError::Open {
                path: path.clone(),
                source,
            })?
            .len();
        Recording::new(Source::File(path), len)
    }

    /// A recording in memory: the bytes of a file.
    ///
    /// # Errors
    ///
    /// When it is not a recording, or is of a later version.
    pub fn from_bytes(bytes: impl Into<Arc<[u8]>>) -> Result<Recording, ReadError> {
        let bytes = bytes.into();
        let len = bytes.len() as u64;
        Recording::new(Source::Memory(bytes), len)
    }

    fn new(source: Source, len: u64) -> Result<Recording, ReadError> {
        let header = source.decoder()?.header();
        Ok(Recording {
            source,
            header,
            len,
        })
    }

    /// When it begins, by the clock of the bus that was recorded.
    pub fn start(&self) -> Time {
        Time(self.header.start)
    }

    /// The date of a time in it.
    pub fn date(&self, at: Time) -> SystemTime {
        date(self.header, at)
    }

    /// Its size in bytes, as it is stored.
    pub fn size(&self) -> u64 {
        self.len
    }

    /// All that is in it, in order.
    ///
    /// # Errors
    ///
    /// When the file can't be opened any more.
    pub fn entries(&self) -> Result<Entries, ReadError> {
        Ok(Entries {
            decoder: self.decoder()?,
            source: self.source.clone(),
            done: false,
        })
    }

    pub(crate) fn decoder(&self) -> Result<Decoder<Input>, ReadError> {
        self.source.decoder()
    }

    /// The file, unless it is in memory.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.source.path()
    }

    /// Writes it to a file, as a [`Recorder`](super::Recorder) would have: what was read from a CSV file, say.
    ///
    /// # Errors
    ///
    /// When one of the two can't be read or written.
    pub fn save(&self, path: impl AsRef<Path>) -> std::io::Result<()> {
        match &self.source {
            Source::File(from) => std::fs::copy(from, path).map(drop),
            Source::Memory(bytes) => std::fs::write(path, bytes),
        }
    }
}

pub(crate) fn date(header: Header, at: Time) -> SystemTime {
    let nanos = i128::from(header.origin) + i128::from(at.as_nanos());
    let distance = Duration::from_nanos(u64::try_from(nanos.unsigned_abs()).unwrap_or(u64::MAX));
    let date = match nanos >= 0 {
        true => SystemTime::UNIX_EPOCH.checked_add(distance),
        false => SystemTime::UNIX_EPOCH.checked_sub(distance),
    };
    date.unwrap_or(SystemTime::UNIX_EPOCH)
}

impl Source {
    fn path(&self) -> Option<&Path> {
        match self {
            Source::File(path) => Some(path),
            Source::Memory(_) => None,
        }
    }

    fn decoder(&self) -> Result<Decoder<Input>, ReadError> {
        Decoder::new(self.open()?).map_err(|error| error.of(self.path()))
    }

    fn open(&self) -> Result<Input, ReadError> {
        Ok(match self {
            Source::File(path) => {
                let file = File::open(path).map_err(|source| ReadError::Open {
                    path: path.clone(),
                    source,
                })?;
                Box::new(BufReader::with_capacity(64 * 1024, file))
            }
            Source::Memory(bytes) => Box::new(Cursor::new(bytes.clone())),
        })
    }
}

impl fmt::Debug for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Recording");
        if let Source::File(path) = &self.source {
            out.field("path", path);
        }
        out.field("start", &self.start())
            .field("bytes", &self.len)
            .finish()
    }
}

/// Something in a recording.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Entry {
    /// A series that is there from now on.
    Series {
        /// When it was made; of one that was there already, when the recording began.
        at: Time,
        /// What it is.
        series: Arc<RecordedSeries>,
        /// Its value then; of a histogram the number of observations. `None` for a gauge that nobody had set.
        value: Option<Value>,
    },
    /// Series that were there when the recording began have all been told.
    Begun,
    /// A mutation.
    Mutation {
        /// When, by the clock of the bus that was recorded.
        at: Time,
        /// Of which series.
        series: Arc<RecordedSeries>,
        /// What was done.
        change: Change,
    },
    /// A series was removed.
    Removed {
        /// When.
        at: Time,
        /// Which one.
        series: Arc<RecordedSeries>,
    },
    /// Mutations were lost here: the file was written too slowly.
    Dropped {
        /// When that was noticed.
        at: Time,
        /// How many.
        mutations: u64,
    },
    /// The recording was finished.
    End {
        /// When.
        at: Time,
    },
}

/// What is in a recording, in order. Made by [`Recording::entries`].
///
/// Times of one series never fall; between series that several threads mutated they may, a little. An `Err` is the last
/// item: [`ReadError::CutOff`] where the file was not finished, [`ReadError::Corrupt`] where it is damaged. Everything
/// before it is as it was recorded.
pub struct Entries {
    decoder: Decoder<Input>,
    source: Source,
    done: bool,
}

impl Entries {
    fn entry(&self, step: Step) -> Entry {
        let series = |index: usize| self.decoder.series(index).clone();
        match step {
            Step::Series { at, series: index } => {
                let series = series(index);
                Entry::Series {
                    at: Time(at),
                    value: series.base_value(),
                    series,
                }
            }
            Step::Begun => Entry::Begun,
            Step::Mutation {
                at,
                series: index,
                before,
                after,
            } => {
                let series = series(index);
                Entry::Mutation {
                    at: Time(at),
                    change: change(&series, before, after),
                    series,
                }
            }
            Step::Removed { at, series: index } => Entry::Removed {
                at: Time(at),
                series: series(index),
            },
            Step::Dropped { at, mutations } => Entry::Dropped {
                at: Time(at),
                mutations,
            },
            Step::End { at } => Entry::End { at: Time(at) },
        }
    }
}

fn change(series: &RecordedSeries, before: u64, after: u64) -> Change {
    let real = |bits: u64| f64::from_bits(bits);
    match (series.shape.kind, series.shape.numbers) {
        (MetricKind::Histogram, _) => Change::Observed {
            value: f64::from_bits(after),
        },
        (MetricKind::Gauge, _) => Change::Set {
            before: is_measured(MetricKind::Gauge, before).then(|| real(before)),
            after: real(after),
        },
        (_, Numbers::Whole) => Change::Counted {
            before: Value::U64(before),
            after: Value::U64(after),
        },
        _ => Change::Counted {
            before: Value::F64(real(before)),
            after: Value::F64(real(after)),
        },
    }
}

impl Iterator for Entries {
    type Item = Result<Entry, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        match self.decoder.step() {
            Ok(Some(step)) => Some(Ok(self.entry(step))),
            Ok(None) => {
                self.done = true;
                None
            }
            Err(error) => {
                self.done = true;
                Some(Err(error.of(self.source.path())))
            }
        }
    }
}

impl fmt::Debug for Entries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entries")
            .field("bytes_read", &self.decoder.offset())
            .finish()
    }
}
