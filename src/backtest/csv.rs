//! Recordings from CSV files, such as an export of another monitoring system.

use std::{collections::HashMap, fs::File, io, path::Path, sync::Arc};

use csv::{ReaderBuilder, StringRecord, Trim};
use jiff::{Timestamp, civil::DateTime, tz::TimeZone};

use super::{
    error::CsvError,
    format::{Base, Encoder, Header},
    recording::Recording,
};
use crate::{
    bus::MetricBus,
    desc::{Buckets, MetricKind, Numbers},
    error::SelectorError,
    raw::Shape,
    selector::Selector,
};

/// What the columns of a CSV file mean. The file has a header line.
///
/// There are two forms. In the [long](CsvColumns::long) one each row is a value of the series it names; in the
/// [wide](CsvColumns::wide) one each column is a series, named by its header, and an empty cell is no mutation. A series is
/// written as in PromQL: `kv_usage_ratio{worker="a"}`.
///
/// Times are seconds (`1700000000.25`), or dates (`2023-11-16T18:15:46.68Z`, `2023-11-16 18:15:46.68+01:00`; without a
/// zone they are UTC). Rows need not be in order. Values are numbers, also `NaN` and `inf`.
///
/// Every series is a gauge, unless the metric is named by one of these:
///
/// | | a value is | the metric |
/// |---|---|---|
/// | [`totals`](CsvColumns::totals) | the counter's total; one less than before means that it began anew at 0 | counter |
/// | [`amounts`](CsvColumns::amounts) | what is added to the counter | counter |
/// | [`observations`](CsvColumns::observations) | an observation | histogram |
///
/// ```
/// use metricbus::{Buckets, backtest::{CsvColumns, Recording}};
///
/// let csv = "\
/// TIMESTAMP,ContextTokens,GeneratedTokens
/// 2023-11-16 18:15:46.6805900,374,44
/// 2023-11-16 18:15:50.9951690,396,109
/// ";
/// let columns = CsvColumns::wide("TIMESTAMP")
///     .rename("ContextTokens", "context_tokens")
///     .observations("context_tokens", Buckets::exponential(16.0, 2.0, 10)?)
///     .rename("GeneratedTokens", "generated_tokens_total")
///     .amounts("generated_tokens_total")
///     .count_rows("requests_total");
/// let recording = Recording::from_csv_text(csv, columns)?;
/// // Two rows of three series, each series itself, a mark, and the end.
/// assert_eq!(recording.entries()?.count(), 2 * 3 + 3 + 1 + 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct CsvColumns {
    time: String,
    form: Form,
    delimiter: u8,
    /// By metric name.
    meanings: HashMap<String, Meaning>,
    count_rows: Option<String>,
}

#[derive(Clone, Debug)]
enum Form {
    Long {
        series: String,
        value: String,
    },
    Wide {
        /// Header to series.
        renamed: HashMap<String, String>,
        skipped: Vec<String>,
    },
}

#[derive(Clone, Debug)]
enum Meaning {
    Value,
    Total,
    Amount,
    Observation(Buckets),
}

impl CsvColumns {
    /// A row is a value: the names of the columns with its time, its series and itself.
    pub fn long(
        time: impl Into<String>,
        series: impl Into<String>,
        value: impl Into<String>,
    ) -> CsvColumns {
        CsvColumns::of(
            time,
            Form::Long {
                series: series.into(),
                value: value.into(),
            },
        )
    }

    /// A column is a series: the name of the one with the time. Of the others the header names the series, unless they
    /// are [renamed](CsvColumns::rename) or [skipped](CsvColumns::skip).
    pub fn wide(time: impl Into<String>) -> CsvColumns {
        CsvColumns::of(
            time,
            Form::Wide {
                renamed: HashMap::new(),
                skipped: Vec::new(),
            },
        )
    }

    fn of(time: impl Into<String>, form: Form) -> CsvColumns {
        CsvColumns {
            time: time.into(),
            form,
            delimiter: b',',
            meanings: HashMap::new(),
            count_rows: None,
        }
    }

    /// Of the wide form: which series a column is. Nothing of the long one.
    pub fn rename(mut self, column: impl Into<String>, series: impl Into<String>) -> CsvColumns {
        if let Form::Wide { renamed, .. } = &mut self.form {
            renamed.insert(column.into(), series.into());
        }
        self
    }

    /// Of the wide form: a column that is not read. Nothing of the long one.
    pub fn skip(mut self, column: impl Into<String>) -> CsvColumns {
        if let Form::Wide { skipped, .. } = &mut self.form {
            skipped.push(column.into());
        }
        self
    }

    /// Series of this metric are counters, and a value is the total. The first one is what it began with.
    pub fn totals(self, metric: impl Into<String>) -> CsvColumns {
        self.meaning(metric, Meaning::Total)
    }

    /// Series of this metric are counters that grow by each value.
    pub fn amounts(self, metric: impl Into<String>) -> CsvColumns {
        self.meaning(metric, Meaning::Amount)
    }

    /// Series of this metric are histograms, and each value is observed.
    pub fn observations(self, metric: impl Into<String>, buckets: Buckets) -> CsvColumns {
        self.meaning(metric, Meaning::Observation(buckets))
    }

    fn meaning(mut self, metric: impl Into<String>, meaning: Meaning) -> CsvColumns {
        self.meanings.insert(metric.into(), meaning);
        self
    }

    /// A counter of this name grows by 1 with each row.
    pub fn count_rows(mut self, series: impl Into<String>) -> CsvColumns {
        self.count_rows = Some(series.into());
        self
    }

    /// What separates the fields of a line; a comma unless told otherwise.
    pub fn delimiter(mut self, delimiter: u8) -> CsvColumns {
        self.delimiter = delimiter;
        self
    }
}

impl Recording {
    /// Reads a CSV file into memory, packed.
    ///
    /// # Errors
    ///
    /// When it can't be read, or a line of it is wrong: the first that is, with its number and what would be right.
    pub fn from_csv(path: impl AsRef<Path>, columns: CsvColumns) -> Result<Recording, CsvError> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|source| CsvError::Open {
            path: path.to_owned(),
            source,
        })?;
        read(file, columns)
    }

    /// Reads CSV that is in memory already.
    ///
    /// # Errors
    ///
    /// As [`from_csv`](Recording::from_csv).
    pub fn from_csv_text(text: &str, columns: CsvColumns) -> Result<Recording, CsvError> {
        read(text.as_bytes(), columns)
    }
}

/// What was read so far.
#[derive(Default)]
struct Rows {
    metrics: Vec<Arc<Shape>>,
    series: Vec<Column>,
    /// By the text that names it.
    by_text: HashMap<String, usize>,
    /// By metric and sorted labels: two texts can name one series.
    by_labels: HashMap<(usize, Vec<(String, String)>), usize>,
    mutations: Vec<Row>,
}

struct Column {
    metric: usize,
    labels: Vec<(String, String)>,
    meaning: Meaning,
}

struct Row {
    at: u64,
    series: usize,
    value: f64,
}

/// Where a cell stands, for errors.
struct Place<'a> {
    line: u64,
    column: &'a str,
    value: &'a str,
}

impl Place<'_> {
    fn wrong(&self, why: impl Into<String>) -> CsvError {
        CsvError::Cell {
            line: self.line,
            column: self.column.to_owned(),
            value: self.value.to_owned(),
            why: why.into(),
        }
    }
}

fn read(input: impl io::Read, columns: CsvColumns) -> Result<Recording, CsvError> {
    let mut reader = ReaderBuilder::new()
        .delimiter(columns.delimiter)
        .trim(Trim::All)
        .from_reader(input);
    let header = reader.headers().map_err(syntax)?.clone();
    if header.iter().all(str::is_empty) {
        return Err(CsvError::NoHeader);
    }
    let find = |name: &str| {
        header
            .iter()
            .position(|column| column == name)
            .ok_or_else(|| CsvError::NoColumn {
                column: name.to_owned(),
                header: header.iter().map(str::to_owned).collect(),
            })
    };
    let time = find(&columns.time)?;
    let mut rows = Rows::default();
    let of_header = |rows: &mut Rows, column: &str, text: &str| {
        rows.series(text, &columns.meanings)
            .map_err(|why| CsvError::Mapping {
                column: column.to_owned(),
                why,
            })
    };
    let wide: Vec<(usize, usize)> = match &columns.form {
        Form::Long { .. } => Vec::new(),
        Form::Wide { renamed, skipped } => {
            for name in renamed.keys().chain(skipped) {
                find(name)?;
            }
            let mut wide = Vec::new();
            for (i, name) in header.iter().enumerate() {
                if i == time || skipped.iter().any(|s| s == name) {
                    continue;
                }
                let text = renamed.get(name).map_or(name, String::as_str);
                wide.push((i, of_header(&mut rows, name, text)?));
            }
            wide
        }
    };
    let long = match &columns.form {
        Form::Long { series, value } => Some((find(series)?, find(value)?)),
        Form::Wide { .. } => None,
    };
    let counted = match &columns.count_rows {
        None => None,
        Some(text) => {
            let meanings = match text
                .parse::<Selector>()
                .ok()
                .as_ref()
                .and_then(|s| s.exact())
            {
                Some((name, _)) => HashMap::from([(name.to_owned(), Meaning::Amount)]),
                None => HashMap::new(),
            };
            Some(
                rows.series(text, &meanings)
                    .map_err(|why| CsvError::Mapping {
                        column: text.clone(),
                        why,
                    })?,
            )
        }
    };

    let mut record = StringRecord::new();
    while reader.read_record(&mut record).map_err(syntax)? {
        let line = record.position().map_or(0, csv::Position::line);
        let place = |i: usize| Place {
            line,
            column: &header[i],
            value: &record[i],
        };
        let at = time_of(&place(time))?;
        if let Some((series, value)) = long {
            let text = &record[series];
            let series = match rows.by_text.get(text) {
                Some(&known) => known,
                None => rows
                    .series(text, &columns.meanings)
                    .map_err(|why| place(series).wrong(why))?,
            };
            rows.push(at, series, &place(value))?;
        }
        for &(i, series) in &wide {
            if !record[i].is_empty() {
                rows.push(at, series, &place(i))?;
            }
        }
        if let Some(series) = counted {
            rows.mutations.push(Row {
                at,
                series,
                value: 1.0,
            });
        }
    }
    rows.encode()
}

fn syntax(error: csv::Error) -> CsvError {
    let line = error.position().map_or(1, csv::Position::line);
    let why = match error.kind() {
        csv::ErrorKind::UnequalLengths {
            expected_len, len, ..
        } => format!("it has {len} fields, and the header has {expected_len}"),
        csv::ErrorKind::Utf8 { .. } => "it is not UTF-8".to_owned(),
        _ => error.to_string(),
    };
    CsvError::Syntax { line, why }
}

impl Rows {
    /// The series that a text names.
    fn series(&mut self, text: &str, meanings: &HashMap<String, Meaning>) -> Result<usize, String> {
        const RIGHT: &str = "is not a series; write it as kv_usage_ratio{worker=\"a\"}";
        let selector: Selector = text
            .parse()
            .map_err(|error: SelectorError| format!("{RIGHT}: {error}"))?;
        let Some((name, mut labels)) = selector.exact() else {
            return Err(format!("{RIGHT}: a name, and labels with ="));
        };
        labels.sort();
        let meaning = meanings.get(name).cloned().unwrap_or(Meaning::Value);
        let known = self.metrics.iter().position(|shape| shape.name == name);
        let metric = match known {
            Some(metric) => metric,
            None => {
                let shape = shape(name, &labels, &meaning);
                // On a bus of its own: what can't be declared is said now, where the line is known.
                let trial = MetricBus::builder().build();
                shape.declare(&trial).map_err(|error| error.to_string())?;
                for other in &self.metrics {
                    other.declare(&trial).map_err(|error| error.to_string())?;
                }
                self.metrics.push(Arc::new(shape));
                self.metrics.len() - 1
            }
        };
        let names: Vec<&String> = labels.iter().map(|(name, _)| name).collect();
        let wanted: Vec<&String> = self.metrics[metric].label_names.iter().collect();
        if names != wanted {
            return Err(format!(
                "has the labels {names:?}; earlier series of {name} have {wanted:?}"
            ));
        }
        let key = (metric, labels);
        let series = match self.by_labels.get(&key) {
            Some(&series) => series,
            None => {
                let series = self.series.len();
                self.series.push(Column {
                    metric,
                    labels: key.1.clone(),
                    meaning,
                });
                self.by_labels.insert(key, series);
                series
            }
        };
        self.by_text.insert(text.to_owned(), series);
        Ok(series)
    }

    fn push(&mut self, at: u64, series: usize, place: &Place<'_>) -> Result<(), CsvError> {
        let value: f64 = place.value.parse().map_err(|_| {
            place.wrong("is not a number; right would be one such as 0.95, -3, 1e6, NaN or inf")
        })?;
        let amount = (0.0..f64::INFINITY).contains(&value);
        if !amount
            && matches!(
                self.series[series].meaning,
                Meaning::Total | Meaning::Amount
            )
        {
            return Err(place.wrong("can't be of a counter, which takes finite numbers from 0 up"));
        }
        self.mutations.push(Row { at, series, value });
        Ok(())
    }

    fn encode(mut self) -> Result<Recording, CsvError> {
        // Stable: rows of the same time stay in the order of the file.
        self.mutations.sort_by_key(|row| row.at);
        let (Some(first), Some(last)) = (self.mutations.first(), self.mutations.last()) else {
            return Err(CsvError::Empty);
        };
        let (start, end) = (first.at, last.at);
        let bytes = self.write(start, end).map_err(|error| CsvError::Syntax {
            line: 1,
            why: error.to_string(),
        })?;
        Recording::from_bytes(bytes).map_err(|error| CsvError::Syntax {
            line: 1,
            why: error.to_string(),
        })
    }

    fn write(&self, start: u64, end: u64) -> io::Result<Vec<u8>> {
        let mut encoder = Encoder::new(Vec::new(), Header { start, origin: 0 })?;
        for shape in &self.metrics {
            encoder.metric(shape)?;
        }
        let mut totals = vec![0.0_f64; self.series.len()];
        let mut lasts: Vec<Option<f64>> = vec![None; self.series.len()];
        for row in &self.mutations {
            lasts[row.series].get_or_insert(row.value);
        }
        for (i, column) in self.series.iter().enumerate() {
            let shape = &self.metrics[column.metric];
            let base = match (&column.meaning, shape.kind) {
                (_, MetricKind::Histogram) => Base::Histogram {
                    sum: 0.0,
                    counts: vec![0; shape.bounds.len() + 1],
                },
                (_, MetricKind::Gauge) => Base::Value((-0.0_f64).to_bits()),
                (Meaning::Total, _) => {
                    totals[i] = lasts[i].unwrap_or(0.0);
                    Base::Value(totals[i].to_bits())
                }
                _ => Base::Value(0.0_f64.to_bits()),
            };
            encoder.series(column.metric, shape, start, &column.labels, &base)?;
        }
        encoder.begun()?;
        for row in &self.mutations {
            let total = &mut totals[row.series];
            let value = match self.series[row.series].meaning {
                Meaning::Value | Meaning::Observation(_) => row.value,
                Meaning::Amount => {
                    *total += row.value;
                    *total
                }
                Meaning::Total => {
                    let last = lasts[row.series].replace(row.value).unwrap_or(0.0);
                    *total += match row.value >= last {
                        true => row.value - last,
                        false => row.value,
                    };
                    *total
                }
            };
            encoder.mutation(row.series, row.at, value.to_bits())?;
        }
        encoder.end(end)?;
        Ok(encoder.into_inner())
    }
}

fn shape(name: &str, labels: &[(String, String)], meaning: &Meaning) -> Shape {
    let (kind, numbers) = match meaning {
        Meaning::Value => (MetricKind::Gauge, Numbers::Real),
        Meaning::Total | Meaning::Amount => (MetricKind::Counter, Numbers::Amount),
        Meaning::Observation(_) => (MetricKind::Histogram, Numbers::Real),
    };
    Shape {
        name: name.to_owned(),
        help: "From a CSV file.".to_owned(),
        unit: None,
        kind,
        numbers,
        label_names: labels.iter().map(|(name, _)| name.clone()).collect(),
        bounds: match meaning {
            Meaning::Observation(buckets) => buckets.bounds().to_vec(),
            _ => Vec::new(),
        },
    }
}

/// Nanoseconds since 0, which of dates is the Unix epoch.
fn time_of(place: &Place<'_>) -> Result<u64, CsvError> {
    let text = place.value;
    let wrong = || {
        place.wrong("is not a time; right would be seconds (1700000000.25) or a date (2023-11-16T18:15:46.68Z)")
    };
    let early =
        || place.wrong("is before the beginning of time; times are 0 s (or 1970) and later");
    if let Some(nanos) = decimal_seconds(text) {
        return Ok(nanos);
    }
    if let Ok(seconds) = text.parse::<f64>() {
        let nanos = seconds * 1e9;
        return match nanos {
            n if n < 0.0 => Err(early()),
            n if n < u64::MAX as f64 => Ok(n.round() as u64),
            _ => Err(wrong()),
        };
    }
    let stamp = match text.parse::<Timestamp>() {
        Ok(stamp) => stamp,
        Err(_) => text
            .parse::<DateTime>()
            .and_then(|date| TimeZone::UTC.to_timestamp(date))
            .map_err(|_| wrong())?,
    };
    u64::try_from(stamp.as_nanosecond()).map_err(|_| early())
}

/// Digits, and a point with digits after it: to the nanosecond, where a double would be off by hundreds of them.
fn decimal_seconds(text: &str) -> Option<u64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(part) {
        return None;
    }
    let mut nanos = 0;
    for i in 0..9 {
        nanos = nanos * 10 + u64::from(part.as_bytes().get(i).map_or(0, |b| b - b'0'));
    }
    let whole: u64 = whole.parse().ok()?;
    whole.checked_mul(1_000_000_000)?.checked_add(nanos)
}
