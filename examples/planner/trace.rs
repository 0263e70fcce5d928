//! Where requests come from: a recorded trace, or a generator of bursts. Knows nothing of workers or metrics.
//!
//! The format is that of the Azure LLM inference traces: a header, then `TIMESTAMP,ContextTokens,GeneratedTokens`, with
//! timestamps such as `2023-11-16 18:15:46.6805900`.

use std::{
    fmt,
    fs::File,
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
    time::Duration,
};

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// When it arrives, counted from the first one.
    pub at: Duration,
    /// Tokens of its prompt.
    pub context: u32,
    /// Tokens of its answer, the first one included.
    pub generated: u32,
}

/// Why a trace can't be used.
#[derive(Debug)]
pub enum TraceError {
    Open {
        path: PathBuf,
        error: io::Error,
    },
    Read {
        path: PathBuf,
        line: usize,
        error: io::Error,
    },
    Row {
        path: PathBuf,
        line: usize,
        what: String,
    },
    Empty {
        path: PathBuf,
    },
}

impl fmt::Display for TraceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TraceError::Open { path, error } => {
                write!(f, "cannot open the trace {}: {error}", path.display())
            }
            TraceError::Read { path, line, error } => {
                write!(
                    f,
                    "{}, line {line}: cannot be read: {error}",
                    path.display()
                )
            }
            TraceError::Row { path, line, what } => write!(
                f,
                "{}, line {line}: {what}\n  a row should be TIMESTAMP,ContextTokens,GeneratedTokens, \
                 such as\n  2023-11-16 18:15:46.6805900,374,44",
                path.display()
            ),
            TraceError::Empty { path } => {
                write!(f, "{}: there is no request in it", path.display())
            }
        }
    }
}

impl std::error::Error for TraceError {}

/// Reads a trace, in the order of arrival.
pub fn read(path: &Path) -> Result<Vec<Request>, TraceError> {
    let file = File::open(path).map_err(|error| TraceError::Open {
        path: path.to_owned(),
        error,
    })?;
    parse(path, BufReader::new(file))
}

fn parse(path: &Path, rows: impl BufRead) -> Result<Vec<Request>, TraceError> {
    let mut requests = Vec::new();
    for (index, row) in rows.lines().enumerate() {
        let line = index + 1;
        let row = row.map_err(|error| TraceError::Read {
            path: path.to_owned(),
            line,
            error,
        })?;
        // Some exports of these traces begin with a byte order mark and end their lines with CRLF.
        let row = row.trim_start_matches('\u{feff}').trim();
        let is_header = line == 1 && row.starts_with(|c: char| c.is_ascii_alphabetic());
        if row.is_empty() || is_header {
            continue;
        }
        let request = parse_row(row).map_err(|what| TraceError::Row {
            path: path.to_owned(),
            line,
            what,
        })?;
        requests.push(request);
    }
    requests.sort_by_key(|request| request.at);
    let Some(first) = requests.first().map(|request| request.at) else {
        return Err(TraceError::Empty {
            path: path.to_owned(),
        });
    };
    for request in &mut requests {
        request.at -= first;
    }
    Ok(requests)
}

fn parse_row(row: &str) -> Result<Request, String> {
    let fields: Vec<&str> = row.split(',').map(str::trim).collect();
    let [timestamp, context, generated] = fields[..] else {
        return Err(format!("3 fields expected, found {}", fields.len()));
    };
    let tokens = |field: &str, name: &str| {
        field
            .parse::<u32>()
            .map_err(|_| format!("{name} should be a whole number of tokens, not `{field}`"))
    };
    Ok(Request {
        at: parse_timestamp(timestamp).ok_or_else(|| {
            format!("the timestamp should look like 2023-11-16 18:15:46.6805900, not `{timestamp}`")
        })?,
        context: tokens(context, "ContextTokens")?,
        generated: tokens(generated, "GeneratedTokens")?,
    })
}

/// Time since the start of the year 0, without leap seconds.
fn parse_timestamp(text: &str) -> Option<Duration> {
    let (date, time) = text.split_once([' ', 'T'])?;
    let [year, month, day] = numbers(date, '-')?;
    let (time, fraction) = time.split_once('.').unwrap_or((time, ""));
    let [hour, minute, second] = numbers(time, ':')?;
    let in_range = (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && year <= 9999
        && hour < 24
        && minute < 60
        && second < 61;
    if !in_range || fraction.len() > 9 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nanos: u32 = format!("{fraction:0<9}").parse().ok()?;
    let days = days_before(year, month) + day - 1;
    Some(Duration::new(
        ((days * 24 + hour) * 60 + minute) * 60 + second,
        nanos,
    ))
}

fn numbers(text: &str, separator: char) -> Option<[u64; 3]> {
    let mut parts = text.split(separator);
    let mut next = || {
        let part = parts.next()?;
        // `parse` takes a sign as well.
        part.bytes()
            .all(|b| b.is_ascii_digit())
            .then(|| part.parse().ok())?
    };
    let numbers = [next()?, next()?, next()?];
    parts.next().is_none().then_some(numbers)
}

/// Days from the start of the year 0 to the first of this month, in the Gregorian calendar.
fn days_before(year: u64, month: u64) -> u64 {
    const BEFORE: [u64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    let leap = |y: u64| (y.is_multiple_of(4) && !y.is_multiple_of(100)) || y.is_multiple_of(400);
    let leap_days = if year == 0 {
        0
    } else {
        // The year 0 is a leap year, and is among the years before.
        (year - 1) / 4 - (year - 1) / 100 + (year - 1) / 400 + 1
    };
    let this_year = u64::from(month > 2 && leap(year));
    year * 365 + leap_days + BEFORE[month as usize - 1] + this_year
}

/// What the generator makes: a steady stream, and bursts on top of it.
pub struct Bursts {
    pub length: Duration,
    pub seed: u64,
}

/// Mean arrivals per second outside of bursts.
const BASE_PER_SECOND: f64 = 4.5;
/// Mean time from the end of one burst to the start of the next, seconds.
const BURST_EVERY: f64 = 75.0;
/// Shortest and longest burst, seconds.
const BURST_LENGTH: (f64, f64) = (3.0, 10.0);
/// Arrivals per second that the weakest and the strongest burst add.
const BURST_PER_SECOND: (f64, f64) = (4.0, 10.0);

impl Bursts {
    /// Arrivals are Poisson; lengths are log-normal around those of the Azure conversation trace.
    pub fn requests(&self) -> Vec<Request> {
        let mut random = Random::new(self.seed);
        let length = self.length.as_secs_f64();
        let mut requests = Vec::new();
        let mut burst = (0.0, 0.0);
        let mut burst_rate = 0.0;
        let mut now = 0.0;
        while now < length {
            if now >= burst.1 {
                let start = now + random.exponential(BURST_EVERY);
                burst = (start, start + random.between(BURST_LENGTH));
                burst_rate = random.between(BURST_PER_SECOND);
            }
            // Thinning: propose at the higher rate, keep what the present rate would have made.
            now += random.exponential(1.0 / (BASE_PER_SECOND + burst_rate));
            let rate = BASE_PER_SECOND + if now >= burst.0 { burst_rate } else { 0.0 };
            if random.unit() * (BASE_PER_SECOND + burst_rate) >= rate || now >= length {
                continue;
            }
            requests.push(Request {
                at: Duration::from_secs_f64(now),
                context: random.log_normal(900.0, 0.8).clamp(16.0, 8000.0) as u32,
                generated: random.log_normal(160.0, 0.7).clamp(4.0, 800.0) as u32,
            });
        }
        requests
    }
}

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From [0, 1).
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn between(&mut self, (low, high): (f64, f64)) -> f64 {
        low + self.unit() * (high - low)
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.unit()).ln()
    }

    fn log_normal(&mut self, median: f64, sigma: f64) -> f64 {
        // Box-Muller, one of its two values.
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        let normal = radius * (std::f64::consts::TAU * self.unit()).cos();
        median * (sigma * normal).exp()
    }

    /// From 0 to `n` − 1; `n` is small, so the bias of the remainder is far below what matters here.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Vec<Request>, TraceError> {
        parse(Path::new("trace.csv"), text.as_bytes())
    }

    fn complaint(text: &str) -> String {
        parsed(text).map_or_else(|error| error.to_string(), |_| "no complaint".into())
    }

    #[test]
    fn rows_are_read_with_crlf_a_header_and_an_empty_last_line() {
        let text = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n\
                    2023-11-16 18:15:46.6805900,374,44\r\n\
                    2023-11-16 18:15:50.9951690,396,109\r\n\r\n";
        let requests = parsed(text).expect("a good trace");
        assert_eq!(requests.len(), 2);
        assert_eq!(requests[0].at, Duration::ZERO);
        assert_eq!(requests[1].at, Duration::from_nanos(4_314_579_000));
        assert_eq!((requests[1].context, requests[1].generated), (396, 109));
    }

    #[test]
    fn time_goes_on_over_midnight_and_over_a_leap_day() {
        let text = "2024-02-28 23:59:59,1,1\n2024-02-29 00:00:01.5,1,1\n2024-03-01 00:00:00,1,1\n";
        let at: Vec<_> = parsed(text)
            .expect("a good trace")
            .iter()
            .map(|r| r.at)
            .collect();
        assert_eq!(at[1], Duration::from_millis(2500));
        assert_eq!(at[2], Duration::from_secs(86_401));
    }

    #[test]
    fn rows_out_of_order_are_put_in_order() {
        let text = "2023-01-01 00:00:05,5,1\n2023-01-01 00:00:02,2,1\n";
        let contexts: Vec<_> = parsed(text)
            .expect("a good trace")
            .iter()
            .map(|r| r.context)
            .collect();
        assert_eq!(contexts, [2, 5]);
    }

    #[test]
    fn a_bad_row_is_named_by_its_line_and_by_what_would_be_right() {
        let good = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,374,44\n";
        let two_fields = complaint(&format!("{good}2023-11-16 18:15:47,1\n"));
        assert!(
            two_fields.contains("trace.csv, line 3: 3 fields expected, found 2"),
            "{two_fields}"
        );
        let negative = complaint(&format!("{good}2023-11-16 18:15:47,-4,1\n"));
        assert!(
            negative.contains("ContextTokens should be a whole number"),
            "{negative}"
        );
        for bad in [
            "yesterday",
            "2023-13-01 00:00:00",
            "2023-11-16 24:00:00",
            "2023-11-16 1:2:3.x",
            "2023-11-16 +1:2:3",
        ] {
            let message = complaint(&format!("{good}{bad},1,1\n"));
            assert!(
                message.contains("line 3: the timestamp should look like"),
                "{bad}: {message}"
            );
        }
        assert!(complaint("TIMESTAMP,ContextTokens,GeneratedTokens\n").contains("no request"));
    }

    #[test]
    fn the_generator_makes_the_same_bursts_from_the_same_seed() {
        let bursts = |seed| {
            Bursts {
                length: Duration::from_secs(600),
                seed,
            }
            .requests()
        };
        assert_eq!(bursts(7), bursts(7));
        assert_ne!(bursts(7), bursts(8));
        let made = bursts(7);
        assert!(made.is_sorted_by_key(|r| r.at));
        let per_second = |from: u64| {
            let range = Duration::from_secs(from)..Duration::from_secs(from + 5);
            made.iter().filter(|r| range.contains(&r.at)).count() as f64 / 5.0
        };
        let busiest = (0..595).map(per_second).fold(0.0, f64::max);
        assert!(busiest > 2.0 * BASE_PER_SECOND, "{busiest}");
    }
}
