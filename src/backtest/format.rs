//! The file of a recording, written and read. Owns the bytes and their checks; knows no bus and no rule.
//!
//! # The file
//!
//! A header, then blocks. Numbers of fixed size are little-endian. A block says its size and carries a checksum, so that
//! a file which ends in the middle of one (a crash, a full disk) is read up to the last that is whole. Blocks build on
//! those before them: a file is read from its beginning.
//!
//! | header | bytes | |
//! |---|---|---|
//! | magic | 8 | `89 4D 42 52 45 43 0D 0A`: not text, and spoilt by whoever converts line ends |
//! | version | 2 | 1; a reader refuses a greater one |
//! | start | 8 | time of the clock when recording began, in nanoseconds since the clock's origin |
//! | origin | 8 | date of the clock's origin, in nanoseconds since the Unix epoch, signed |
//! | check | 4 | CRC-32 of the bytes before it |
//!
//! | block | bytes | |
//! |---|---|---|
//! | size | 4 | of the records in it, at most 16 MiB; never 0 |
//! | packed size | 4 | of what follows the check |
//! | check | 4 | CRC-32 of the two sizes and of what follows |
//! | records | packed size | deflated (RFC 1951) |
//!
//! # Records
//!
//! A *varint* is a number in groups of 7 bits, the lowest first, each but the last with its highest bit set. A *text* is
//! a varint with its length and that many bytes of UTF-8. A *time* is a varint with the distance to the time of the
//! record before it (the first: to the start), in nanoseconds, zigzag: `2d` for `d ≥ 0`, `-2d-1` for `d < 0`. Threads
//! that mutate at once may be told in another order than they looked at the clock, so it can be negative.
//!
//! Each record begins with a varint. If it is not 0, then it is a mutation of the series of that number, counted from 1
//! in the order of their definitions:
//!
//! | mutation of | time | then |
//! |---|---|---|
//! | a counter of `u64` | yes | varint: by how much it is more than the series' last value, modulo 2^64 |
//! | a counter of `f64`, a gauge | yes | double: the value, against the series' last value |
//! | a histogram | yes | double: the value observed, against the one observed last (the first: against 0.0) |
//!
//! A *double* is XORed, as bits, with what it is said to be against; bytes of the result that are 0 are left out at both
//! ends. It is written as a byte `16 t + n`, and `n` bytes: `t` zero bytes were left out below them, and the rest above.
//!
//! If it is 0, a byte says what it is:
//!
//! | byte | record | then |
//! |---|---|---|
//! | 1 | a metric | byte: 0 counter of `u64`, 1 counter of `f64`, 2 gauge, 3 histogram; texts: name, help; byte: 1 if there is a unit, and its text; varint and texts: label names, none of a derived gauge, whose series may have labels all the same; of a histogram varint and doubles of 8 bytes: bounds without +Inf |
//! | 2 | a series | varint: its metric, counted from 0; time; varint and pairs of texts: labels; then its value: 8 bytes, of a histogram 8 bytes of sum and for each bucket, that of +Inf included, a varint: its count |
//! | 3 | all series that there were at the beginning have been told | |
//! | 4 | a series was removed | varint: its number, counted from 0; time |
//! | 5 | mutations were lost here: the writer was too slow | time; varint: how many |
//! | 6 | the recording was finished | time. Nothing follows it |
//!
//! A gauge that nobody has set yet has the value −0.

use std::{
    fmt,
    io::{self, Read, Write},
    sync::Arc,
};

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::error::ReadError;
use crate::{
    desc::{BUCKETS_MAX, MetricKind, Numbers},
    labels::push_label,
    raw::Shape,
    series::{Value, is_unmeasured},
};

pub(crate) const MAGIC: [u8; 8] = [0x89, b'M', b'B', b'R', b'E', b'C', b'\r', b'\n'];
pub(crate) const VERSION: u16 = 1;
const HEADER_LEN: usize = 8 + 2 + 8 + 8 + 4;

/// A block is written once it has this many bytes; or before, when the writer has waited for long enough.
const BLOCK_FULL: usize = 64 * 1024;
/// A reader's bound. A block is larger than [`BLOCK_FULL`] by one record at most.
const BLOCK_MAX: usize = 16 << 20;
/// Deflate makes nothing longer by more than this.
const PACKED_MAX: usize = BLOCK_MAX + BLOCK_MAX / 1_000 + 1_024;
/// Longer texts are cut when written, and refused when read.
const TEXT_MAX: usize = 64 * 1024;
const LABELS_MAX: usize = 128;
/// So that a small file can't ask for all memory.
const SERIES_MAX: usize = 1 << 22;

const METRIC: u8 = 1;
const SERIES: u8 = 2;
const BEGUN: u8 = 3;
const REMOVED: u8 = 4;
const DROPPED: u8 = 5;
const END: u8 = 6;

/// Where time begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// By the clock.
    pub(crate) start: u64,
    /// Nanoseconds from the Unix epoch to the clock's origin.
    pub(crate) origin: i64,
}

/// What a series holds before its first recorded mutation.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Base {
    /// Bits of the value.
    Value(u64),
    Histogram {
        sum: f64,
        counts: Vec<u64>,
    },
}

/// A series as a file knows it.
#[derive(Clone, PartialEq)]
pub struct RecordedSeries {
    pub(crate) index: usize,
    pub(crate) metric: usize,
    pub(crate) shape: Arc<Shape>,
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) base: Base,
}

impl RecordedSeries {
    /// The metric's full name.
    pub fn name(&self) -> &str {
        &self.shape.name
    }

    /// Names and values of the labels, in the order in which they are exposed.
    pub fn labels(&self) -> &[(String, String)] {
        &self.labels
    }

    /// The type.
    pub fn kind(&self) -> MetricKind {
        self.shape.kind
    }

    /// What the metric means.
    pub fn help(&self) -> &str {
        &self.shape.help
    }

    /// The unit, where one was declared.
    pub fn unit(&self) -> Option<&str> {
        self.shape.unit.as_deref()
    }

    /// Upper bounds of a histogram's buckets without +Inf; none of other types.
    pub fn bounds(&self) -> &[f64] {
        &self.shape.bounds
    }

    /// The number of the series in its recording: 0 for the first that it defines, 1 for the next …
    pub fn index(&self) -> usize {
        self.index
    }

    /// What it holds before its first recorded mutation.
    pub(crate) fn base_value(&self) -> Option<Value> {
        match (&self.base, self.shape.numbers) {
            (Base::Histogram { counts, .. }, _) => {
                let count = counts.iter().fold(0_u64, |sum, n| sum.wrapping_add(*n));
                Some(Value::U64(count))
            }
            (Base::Value(bits), Numbers::Whole) => Some(Value::U64(*bits)),
            (Base::Value(bits), _) => {
                let value = f64::from_bits(*bits);
                let unset = self.shape.kind == MetricKind::Gauge && is_unmeasured(value);
                (!unset).then_some(Value::F64(value))
            }
        }
    }

    pub(crate) fn label_text(&self) -> String {
        let mut text = String::new();
        for (name, value) in &self.labels {
            push_label(&mut text, name, value);
        }
        text
    }
}

impl fmt::Display for RecordedSeries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        if self.labels.is_empty() {
            return Ok(());
        }
        write!(f, "{{{}}}", self.label_text())
    }
}

impl fmt::Debug for RecordedSeries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// What a mutation's value is written against.
#[derive(Clone, Copy, Debug)]
struct Track {
    whole: bool,
    bits: u64,
}

impl Track {
    fn new(shape: &Shape, base: &Base) -> Track {
        Track {
            whole: shape.numbers == Numbers::Whole,
            bits: match base {
                Base::Value(bits) => *bits,
                Base::Histogram { .. } => 0,
            },
        }
    }
}

/// Writes a recording.
pub(crate) struct Encoder<W> {
    out: W,
    block: Vec<u8>,
    packed: Vec<u8>,
    deflate: Compress,
    now: u64,
    series: Vec<Track>,
    /// Bytes that went out.
    pub(crate) bytes: u64,
}

impl<W: Write> Encoder<W> {
    /// Writes the header.
    pub(crate) fn new(mut out: W, header: Header) -> io::Result<Encoder<W>> {
        let mut bytes = Vec::with_capacity(HEADER_LEN);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(header.start.to_le_bytes());
        bytes.extend(header.origin.to_le_bytes());
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        out.write_all(&bytes)?;
        out.flush()?;
        Ok(Encoder {
            out,
            block: Vec::with_capacity(BLOCK_FULL + 1_024),
            packed: Vec::new(),
            deflate: Compress::new(Compression::fast(), false),
            now: header.start,
            series: Vec::new(),
            bytes: bytes.len() as u64,
        })
    }

    /// Whether anything waits to be written.
    pub(crate) fn is_dirty(&self) -> bool {
        !self.block.is_empty()
    }

    /// The time of the last record.
    pub(crate) fn now(&self) -> u64 {
        self.now
    }

    /// A metric; those after it name it by its number, from 0.
    pub(crate) fn metric(&mut self, shape: &Shape) -> io::Result<()> {
        self.block.extend([0, METRIC]);
        self.block.push(match (shape.kind, shape.numbers) {
            (MetricKind::Counter, Numbers::Amount) => 1,
            (MetricKind::Counter, _) => 0,
            (MetricKind::Gauge, _) => 2,
            (MetricKind::Histogram, _) => 3,
        });
        text(&mut self.block, &shape.name);
        text(&mut self.block, &shape.help);
        self.block.push(u8::from(shape.unit.is_some()));
        if let Some(unit) = &shape.unit {
            text(&mut self.block, unit);
        }
        varint(&mut self.block, shape.label_names.len() as u64);
        for name in &shape.label_names {
            text(&mut self.block, name);
        }
        if shape.kind == MetricKind::Histogram {
            varint(&mut self.block, shape.bounds.len() as u64);
            for bound in &shape.bounds {
                self.block.extend(bound.to_bits().to_le_bytes());
            }
        }
        self.done()
    }

    /// A series; its mutations name it by its number, from 0.
    pub(crate) fn series(
        &mut self,
        metric: usize,
        shape: &Shape,
        at: u64,
        labels: &[(String, String)],
        base: &Base,
    ) -> io::Result<()> {
        if labels.len() > LABELS_MAX {
            return Err(io::Error::other(format!(
                "a series of {} has {} labels, and a recording can hold {LABELS_MAX}",
                shape.name,
                labels.len()
            )));
        }
        self.block.extend([0, SERIES]);
        varint(&mut self.block, metric as u64);
        self.time(at);
        varint(&mut self.block, labels.len() as u64);
        for (name, value) in labels {
            text(&mut self.block, name);
            text(&mut self.block, value);
        }
        match base {
            Base::Value(bits) => self.block.extend(bits.to_le_bytes()),
            Base::Histogram { sum, counts } => {
                self.block.extend(sum.to_bits().to_le_bytes());
                for count in counts {
                    varint(&mut self.block, *count);
                }
            }
        }
        self.series.push(Track::new(shape, base));
        self.done()
    }

    pub(crate) fn begun(&mut self) -> io::Result<()> {
        self.block.extend([0, BEGUN]);
        self.done()
    }

    /// A mutation: the bits of the value after it, or of what was observed. A series that was not defined is passed over.
    pub(crate) fn mutation(&mut self, series: usize, at: u64, bits: u64) -> io::Result<()> {
        let Some(&track) = self.series.get(series) else {
            return Ok(());
        };
        varint(&mut self.block, series as u64 + 1);
        self.time(at);
        if track.whole {
            varint(&mut self.block, bits.wrapping_sub(track.bits));
        } else {
            double(&mut self.block, bits ^ track.bits);
        }
        self.series[series].bits = bits;
        self.done()
    }

    pub(crate) fn removed(&mut self, series: usize, at: u64) -> io::Result<()> {
        self.block.extend([0, REMOVED]);
        varint(&mut self.block, series as u64);
        self.time(at);
        self.done()
    }

    pub(crate) fn dropped(&mut self, at: u64, mutations: u64) -> io::Result<()> {
        self.block.extend([0, DROPPED]);
        self.time(at);
        varint(&mut self.block, mutations);
        self.done()
    }

    /// The end: everything goes out. Nothing may follow.
    pub(crate) fn end(&mut self, at: u64) -> io::Result<()> {
        self.block.extend([0, END]);
        self.time(at);
        self.flush()
    }

    pub(crate) fn into_inner(self) -> W {
        self.out
    }

    fn time(&mut self, at: u64) {
        let distance = at.wrapping_sub(self.now) as i64;
        varint(&mut self.block, ((distance << 1) ^ (distance >> 63)) as u64);
        self.now = at;
    }

    fn done(&mut self) -> io::Result<()> {
        if self.block.len() >= BLOCK_FULL {
            return self.flush();
        }
        Ok(())
    }

    /// Writes what there is as a block.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        if self.block.is_empty() {
            return Ok(());
        }
        if self.block.len() > BLOCK_MAX {
            return Err(io::Error::other(format!(
                "a record of {} bytes; a recording can hold {BLOCK_MAX}",
                self.block.len()
            )));
        }
        self.packed.clear();
        // Its worst case, so that one call does it.
        self.packed
            .reserve(self.block.len() + self.block.len() / 1_000 + 1_024);
        self.deflate.reset();
        let status =
            self.deflate
                .compress_vec(&self.block, &mut self.packed, FlushCompress::Finish)?;
        if status != Status::StreamEnd {
            return Err(io::Error::other("deflate needed more room than it may"));
        }
        let mut head = [0; 12];
        head[..4].copy_from_slice(&(self.block.len() as u32).to_le_bytes());
        head[4..8].copy_from_slice(&(self.packed.len() as u32).to_le_bytes());
        let check = checksum(&head[..8], &self.packed);
        head[8..].copy_from_slice(&check.to_le_bytes());
        self.out.write_all(&head)?;
        self.out.write_all(&self.packed)?;
        self.out.flush()?;
        self.bytes += (head.len() + self.packed.len()) as u64;
        self.block.clear();
        Ok(())
    }
}

fn checksum(sizes: &[u8], packed: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(sizes);
    hasher.update(packed);
    hasher.finalize()
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn text(out: &mut Vec<u8>, value: &str) {
    let value = &value[..value.floor_char_boundary_at(TEXT_MAX)];
    varint(out, value.len() as u64);
    out.extend(value.as_bytes());
}

trait FloorCharBoundary {
    /// The greatest place at or before `at` where the text can be cut.
    fn floor_char_boundary_at(&self, at: usize) -> usize;
}

impl FloorCharBoundary for str {
    fn floor_char_boundary_at(&self, at: usize) -> usize {
        let mut at = at.min(self.len());
        while !self.is_char_boundary(at) {
            at -= 1;
        }
        at
    }
}

fn double(out: &mut Vec<u8>, xor: u64) {
    if xor == 0 {
        return out.push(0);
    }
    let below = xor.trailing_zeros() / 8;
    let above = xor.leading_zeros() / 8;
    let n = 8 - below - above;
    out.push((below << 4 | n) as u8);
    out.extend(&(xor >> (8 * below)).to_le_bytes()[..n as usize]);
}

/// One record of a file, the metrics apart: they are told with their series.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Step {
    /// The series of this number is there from now on; see [`Decoder::series`].
    Series {
        at: u64,
        series: usize,
    },
    Begun,
    /// Bits before and after; of a histogram both are observations.
    Mutation {
        at: u64,
        series: usize,
        before: u64,
        after: u64,
    },
    Removed {
        at: u64,
        series: usize,
    },
    Dropped {
        at: u64,
        mutations: u64,
    },
    End {
        at: u64,
    },
}

/// Reads a recording. Whatever the bytes are, it neither panics nor takes more memory than a block and what the series of
/// the file need.
pub(crate) struct Decoder<R> {
    input: R,
    header: Header,
    /// Where the next block begins.
    offset: u64,
    packed: Vec<u8>,
    block: Vec<u8>,
    at: usize,
    inflate: Decompress,
    now: u64,
    metrics: Vec<Arc<Shape>>,
    series: Vec<(Arc<RecordedSeries>, Track)>,
    ended: bool,
}

/// What is wrong with a record.
type Wrong = String;

impl<R: Read> Decoder<R> {
    pub(crate) fn new(mut input: R) -> Result<Decoder<R>, ReadError> {
        let mut bytes = [0; HEADER_LEN];
        let got = read_full(&mut input, &mut bytes)?;
        if !bytes[..got].starts_with(&MAGIC[..got.min(MAGIC.len())]) || got == 0 {
            return Err(ReadError::NotARecording { path: None });
        }
        if got < HEADER_LEN {
            return Err(ReadError::CutOff { offset: 0 });
        }
        let corrupt = |why: &str| ReadError::Corrupt {
            path: None,
            offset: 0,
            why: why.to_owned(),
        };
        let (body, check) = bytes.split_at(HEADER_LEN - 4);
        let version = u16::from_le_bytes([body[8], body[9]]);
        if version > VERSION || version == 0 {
            return Err(ReadError::Version {
                path: None,
                version,
            });
        }
        if check != crc32fast::hash(body).to_le_bytes() {
            return Err(corrupt("the header does not have the checksum it says"));
        }
        let mut number = [0; 8];
        number.copy_from_slice(&body[10..18]);
        let start = u64::from_le_bytes(number);
        number.copy_from_slice(&body[18..26]);
        let origin = i64::from_le_bytes(number);
        Ok(Decoder {
            input,
            header: Header { start, origin },
            offset: HEADER_LEN as u64,
            packed: Vec::new(),
            block: Vec::new(),
            at: 0,
            inflate: Decompress::new(false),
            now: start,
            metrics: Vec::new(),
            series: Vec::new(),
            ended: false,
        })
    }

    pub(crate) fn header(&self) -> Header {
        self.header
    }

    /// How many bytes of the file were read.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    pub(crate) fn series(&self, index: usize) -> &Arc<RecordedSeries> {
        &self.series[index].0
    }

    /// The next record; `None` after the end.
    #[inline]
    pub(crate) fn step(&mut self) -> Result<Option<Step>, ReadError> {
        loop {
            if self.at >= self.block.len() {
                if self.ended {
                    return Ok(None);
                }
                self.next_block()?;
            }
            match self.record() {
                Ok(Some(step)) => return Ok(Some(step)),
                Ok(None) => {}
                Err(why) => {
                    return Err(ReadError::Corrupt {
                        path: None,
                        offset: self.offset,
                        why,
                    });
                }
            }
        }
    }

    fn next_block(&mut self) -> Result<(), ReadError> {
        let begin = self.offset;
        let cut = ReadError::CutOff { offset: begin };
        let corrupt = |why: String| ReadError::Corrupt {
            path: None,
            offset: begin,
            why,
        };
        let mut head = [0; 12];
        // Zeros: room that a file system had set aside when the machine went down.
        if read_full(&mut self.input, &mut head)? < head.len() || head == [0; 12] {
            return Err(cut);
        }
        let number =
            |i: usize| u32::from_le_bytes([head[i], head[i + 1], head[i + 2], head[i + 3]]);
        let (size, packed) = (number(0) as usize, number(4) as usize);
        if size == 0 || size > BLOCK_MAX || packed > PACKED_MAX {
            return Err(corrupt(format!(
                "a block of {size} bytes, {packed} packed, can't be"
            )));
        }
        // As it comes: a size that is wrong does not take memory that no file fills.
        self.packed.clear();
        let got = (&mut self.input)
            .take(packed as u64)
            .read_to_end(&mut self.packed)
            .map_err(unreadable)?;
        if got < packed {
            return Err(cut);
        }
        if checksum(&head[..8], &self.packed) != number(8) {
            return Err(corrupt(
                "a block does not have the checksum it says".to_owned(),
            ));
        }
        self.block.clear();
        self.block.reserve(size);
        self.inflate.reset(false);
        let inflated =
            self.inflate
                .decompress_vec(&self.packed, &mut self.block, FlushDecompress::Finish);
        match inflated {
            Ok(Status::StreamEnd) if self.block.len() == size => {}
            _ => return Err(corrupt("a block can't be unpacked".to_owned())),
        }
        self.at = 0;
        self.offset += (head.len() + packed) as u64;
        Ok(())
    }

    #[inline]
    fn record(&mut self) -> Result<Option<Step>, Wrong> {
        let key = self.varint()?;
        if key == 0 {
            return self.control();
        }
        let series = usize::try_from(key - 1).unwrap_or(usize::MAX);
        let at = self.time()?;
        let Some(&(_, track)) = self.series.get(series) else {
            return Err(format!(
                "a mutation of series {series}, of {}",
                self.series.len()
            ));
        };
        let before = track.bits;
        let after = if track.whole {
            before.wrapping_add(self.varint()?)
        } else {
            before ^ self.double()?
        };
        self.series[series].1.bits = after;
        Ok(Some(Step::Mutation {
            at,
            series,
            before,
            after,
        }))
    }

    #[cold]
    fn control(&mut self) -> Result<Option<Step>, Wrong> {
        Ok(Some(match self.byte()? {
            METRIC => {
                let shape = self.metric()?;
                self.metrics.push(Arc::new(shape));
                return Ok(None);
            }
            SERIES => self.new_series()?,
            BEGUN => Step::Begun,
            REMOVED => {
                let series = self.varint()? as usize;
                if series >= self.series.len() {
                    return Err(format!(
                        "the removal of series {series}, of {}",
                        self.series.len()
                    ));
                }
                let at = self.time()?;
                Step::Removed { at, series }
            }
            DROPPED => Step::Dropped {
                at: self.time()?,
                mutations: self.varint()?,
            },
            END => {
                self.ended = true;
                let at = self.time()?;
                if self.at < self.block.len() {
                    return Err("something follows the end".to_owned());
                }
                Step::End { at }
            }
            other => return Err(format!("a record of unknown type {other}")),
        }))
    }

    fn metric(&mut self) -> Result<Shape, Wrong> {
        let (kind, numbers) = match self.byte()? {
            0 => (MetricKind::Counter, Numbers::Whole),
            1 => (MetricKind::Counter, Numbers::Amount),
            2 => (MetricKind::Gauge, Numbers::Real),
            3 => (MetricKind::Histogram, Numbers::Real),
            other => return Err(format!("a metric of unknown type {other}")),
        };
        if self.metrics.len() >= SERIES_MAX {
            return Err(format!("more than {SERIES_MAX} metrics"));
        }
        let name = self.text()?;
        let help = self.text()?;
        let unit = match self.byte()? {
            0 => None,
            _ => Some(self.text()?),
        };
        let label_names = (0..self.count("labels", LABELS_MAX)?)
            .map(|_| self.text())
            .collect::<Result<_, _>>()?;
        let bounds = match kind {
            MetricKind::Histogram => (0..self.count("bounds", BUCKETS_MAX)?)
                .map(|_| self.fixed().map(f64::from_bits))
                .collect::<Result<_, _>>()?,
            _ => Vec::new(),
        };
        Ok(Shape {
            name,
            help,
            unit,
            kind,
            numbers,
            label_names,
            bounds,
        })
    }

    fn new_series(&mut self) -> Result<Step, Wrong> {
        if self.series.len() >= SERIES_MAX {
            return Err(format!("more than {SERIES_MAX} series"));
        }
        let metric = self.varint()? as usize;
        let Some(shape) = self.metrics.get(metric).cloned() else {
            return Err(format!(
                "a series of metric {metric}, of {}",
                self.metrics.len()
            ));
        };
        let at = self.time()?;
        let labels = (0..self.count("labels", LABELS_MAX)?)
            .map(|_| Ok((self.text()?, self.text()?)))
            .collect::<Result<_, Wrong>>()?;
        let base = match shape.kind {
            MetricKind::Histogram => Base::Histogram {
                sum: f64::from_bits(self.fixed()?),
                counts: (0..=shape.bounds.len())
                    .map(|_| self.varint())
                    .collect::<Result<_, _>>()?,
            },
            _ => Base::Value(self.fixed()?),
        };
        let series = self.series.len();
        let track = Track::new(&shape, &base);
        let recorded = RecordedSeries {
            index: series,
            metric,
            shape,
            labels,
            base,
        };
        self.series.push((Arc::new(recorded), track));
        Ok(Step::Series { at, series })
    }

    #[inline]
    fn byte(&mut self) -> Result<u8, Wrong> {
        let byte = self.block.get(self.at).copied().ok_or_else(short)?;
        self.at += 1;
        Ok(byte)
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, Wrong> {
        let first = self.byte()?;
        if first < 0x80 {
            return Ok(u64::from(first));
        }
        let mut value = u64::from(first & 0x7f);
        for shift in (7..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            value |= bits << shift;
            if byte < 0x80 {
                if shift == 63 && bits > 1 {
                    break;
                }
                return Ok(value);
            }
        }
        Err("a number of more than 64 bits".to_owned())
    }

    #[inline]
    fn time(&mut self) -> Result<u64, Wrong> {
        let zigzag = self.varint()?;
        let distance = (zigzag >> 1) as i64 ^ -((zigzag & 1) as i64);
        let at = self
            .now
            .checked_add_signed(distance)
            .ok_or("a time before the clock's origin")?;
        self.now = at;
        Ok(at)
    }

    #[inline]
    fn double(&mut self) -> Result<u64, Wrong> {
        let code = self.byte()?;
        let (below, n) = (u32::from(code >> 4), usize::from(code & 15));
        if below as usize + n > 8 {
            return Err(format!("a double coded as {code:#04x}"));
        }
        let bytes = self.block.get(self.at..self.at + n).ok_or_else(short)?;
        let mut wide = [0; 8];
        wide[..n].copy_from_slice(bytes);
        self.at += n;
        if n == 0 {
            return Ok(0);
        }
        Ok(u64::from_le_bytes(wide) << (8 * below))
    }

    fn fixed(&mut self) -> Result<u64, Wrong> {
        let bytes = self.block.get(self.at..self.at + 8).ok_or_else(short)?;
        let mut wide = [0; 8];
        wide.copy_from_slice(bytes);
        self.at += 8;
        Ok(u64::from_le_bytes(wide))
    }

    fn count(&mut self, what: &str, max: usize) -> Result<usize, Wrong> {
        let count = self.varint()?;
        match usize::try_from(count) {
            Ok(count) if count <= max => Ok(count),
            _ => Err(format!("{count} {what}; there can be {max}")),
        }
    }

    fn text(&mut self) -> Result<String, Wrong> {
        let len = self.count("bytes of text", TEXT_MAX)?;
        let bytes = self.block.get(self.at..self.at + len).ok_or_else(short)?;
        let text = std::str::from_utf8(bytes).map_err(|_| "a text that is not UTF-8")?;
        let text = text.to_owned();
        self.at += len;
        Ok(text)
    }
}

#[cold]
fn short() -> Wrong {
    "a record goes beyond its block".to_owned()
}

fn unreadable(source: io::Error) -> ReadError {
    ReadError::Read { path: None, source }
}

/// Fills `buffer` as far as the input goes; how far that was.
fn read_full(input: &mut impl Read, buffer: &mut [u8]) -> Result<usize, ReadError> {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(error)),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shape(kind: MetricKind, numbers: Numbers) -> Shape {
        Shape {
            name: "m".to_owned(),
            help: "h".to_owned(),
            unit: None,
            kind,
            numbers,
            label_names: Vec::new(),
            bounds: match kind {
                MetricKind::Histogram => vec![1.0],
                _ => Vec::new(),
            },
        }
    }

    fn read(bytes: &[u8]) -> (Vec<Step>, Result<(), ReadError>) {
        let mut steps = Vec::new();
        let mut decoder = match Decoder::new(bytes) {
            Ok(decoder) => decoder,
            Err(error) => return (steps, Err(error)),
        };
        loop {
            match decoder.step() {
                Ok(Some(step)) => steps.push(step),
                Ok(None) => return (steps, Ok(())),
                Err(error) => return (steps, Err(error)),
            }
        }
    }

    /// A file whose sizes and checksums are right, and whose records are these bytes.
    fn file(records: &[u8]) -> Vec<u8> {
        let header = Header {
            start: 5,
            origin: 0,
        };
        let mut encoder = Encoder::new(Vec::new(), header).unwrap();
        let shapes = [
            shape(MetricKind::Counter, Numbers::Whole),
            shape(MetricKind::Gauge, Numbers::Real),
            shape(MetricKind::Histogram, Numbers::Real),
        ];
        for (i, shape) in shapes.iter().enumerate() {
            encoder.metric(shape).unwrap();
            let base = match shape.kind {
                MetricKind::Histogram => Base::Histogram {
                    sum: 0.0,
                    counts: vec![0; 2],
                },
                _ => Base::Value(0),
            };
            encoder.series(i, shape, 5, &[], &base).unwrap();
        }
        encoder.block.extend(records);
        encoder.flush().unwrap();
        encoder.into_inner()
    }

    proptest! {
        #[test]
        fn records_that_nobody_wrote_are_refused_without_a_panic(
            records in prop::collection::vec(prop_oneof![0..8_u8, any::<u8>()], 1..200),
        ) {
            let (steps, ended) = read(&file(&records));
            prop_assert!(steps.len() >= 3);
            // By chance it can be the record that ends a file.
            let finished = matches!(steps.last(), Some(Step::End { .. }));
            prop_assert!(ended.is_err() || finished);
        }

        #[test]
        fn bytes_after_a_header_are_refused_without_a_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let mut all = file(&[]);
            all.truncate(HEADER_LEN);
            all.extend(&bytes);
            let (steps, ended) = read(&all);
            prop_assert!(steps.is_empty() && ended.is_err());
        }

        #[test]
        fn values_and_times_come_back_to_the_bit(
            told in prop::collection::vec((0..3_usize, any::<u64>(), any::<u64>()), 0..300),
        ) {
            let header = Header { start: 0, origin: -1 };
            let mut encoder = Encoder::new(Vec::new(), header).unwrap();
            let shape = shape(MetricKind::Counter, Numbers::Whole);
            encoder.metric(&shape).unwrap();
            let real = Shape { numbers: Numbers::Amount, ..shape.clone() };
            encoder.metric(&real).unwrap();
            encoder.series(0, &shape, 0, &[], &Base::Value(7)).unwrap();
            encoder.series(1, &real, 0, &[], &Base::Value(8)).unwrap();
            encoder.series(1, &real, 0, &[], &Base::Value(9)).unwrap();
            let mut last = [7, 8, 9];
            let mut expected = Vec::new();
            for &(series, at, bits) in &told {
                // Any two times that a clock can give are within 2^63 of each other.
                let at = at >> 1;
                encoder.mutation(series, at, bits).unwrap();
                let before = std::mem::replace(&mut last[series], bits);
                expected.push(Step::Mutation { at, series, before, after: bits });
            }
            encoder.end(encoder.now()).unwrap();
            let (steps, ended) = read(&encoder.into_inner());
            prop_assert!(ended.is_ok());
            prop_assert_eq!(&steps[3..steps.len() - 1], &expected[..]);
        }
    }

    #[test]
    fn a_claim_of_gigabytes_takes_no_memory() {
        let mut bytes = file(&[]);
        bytes.truncate(HEADER_LEN);
        bytes.extend(u32::MAX.to_le_bytes());
        bytes.extend(u32::MAX.to_le_bytes());
        bytes.extend([0; 4]);
        let (_, ended) = read(&bytes);
        assert!(matches!(ended, Err(ReadError::Corrupt { .. })));
    }

    #[test]
    fn a_text_too_long_is_cut_between_characters() {
        let header = Header {
            start: 0,
            origin: 0,
        };
        let mut encoder = Encoder::new(Vec::new(), header).unwrap();
        let shape = Shape {
            help: "é".repeat(TEXT_MAX),
            ..shape(MetricKind::Gauge, Numbers::Real)
        };
        encoder.metric(&shape).unwrap();
        encoder.series(0, &shape, 0, &[], &Base::Value(0)).unwrap();
        encoder.end(0).unwrap();
        let bytes = encoder.into_inner();
        let mut decoder = Decoder::new(&bytes[..]).unwrap();
        decoder.step().unwrap();
        assert_eq!(decoder.series(0).help().len(), TEXT_MAX);
    }
}
