//! Would this rule have fired, and when? Runs rules over a recording or a CSV file.
//!
//! ```text
//! cargo run --release --example backtest --features backtest -- --help
//! ```

use std::{
    error::Error,
    fmt::Write as _,
    io::{IsTerminal, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, SystemTime},
};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use metricbus::{
    Clock, Condition, Counter, Desc, Expr, Gauge, MetricBus, Rule, Threshold, Time,
    backtest::{CsvColumns, CsvError, Recorder, Recording, Replay, Report, RuleReport},
};

type Failure = Box<dyn Error>;

/// Runs rules over recorded mutations, and tells every alert that they would have made.
///
/// FILE is a recording (made by `metricbus::backtest::Recorder`) or CSV. Without one, an hour of a small fleet is made
/// up, recorded, and replayed, with rules that fit it.
///
/// A rule is given by a flag; its name is made from it. SERIES is a selector, as in PromQL: each series that it
/// matches is judged alone. --hold and --keep hold for all rules.
#[derive(Parser, Debug)]
#[command(name = "backtest", after_long_help = EXAMPLES)]
struct Arguments {
    /// A recording, or a file whose name ends in .csv.
    file: Option<PathBuf>,

    /// Fires above BOUND, until below CLEAR.
    #[arg(long, value_name = "SERIES=BOUND[:CLEAR]")]
    above: Vec<String>,

    /// Fires below BOUND, until above CLEAR.
    #[arg(long, value_name = "SERIES=BOUND[:CLEAR]")]
    below: Vec<String>,

    /// Fires when the rate per second over --window is above BOUND, until below CLEAR.
    #[arg(long, value_name = "SERIES=BOUND[:CLEAR]")]
    rate_above: Vec<String>,

    /// Fires when a series had no mutation for TIME.
    #[arg(long, value_name = "SERIES=TIME")]
    stale: Vec<String>,

    /// The window of rates.
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = time)]
    window: Duration,

    /// How long a condition has to hold before it fires.
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = time)]
    hold: Duration,

    /// How long a condition must not hold before it is resolved.
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = time)]
    keep: Duration,

    /// How long to go on after the end of the file.
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = time)]
    tail: Duration,

    /// Of CSV: the column with the time, in seconds or as a date.
    #[arg(long, value_name = "COLUMN", default_value = "time")]
    time: String,

    /// Of CSV: the columns that name a series and give its value. Without this, each column is a series.
    #[arg(long, value_name = "SERIES_COLUMN,VALUE_COLUMN")]
    long: Option<String>,

    /// Of CSV: what a column is called. For names that are no series.
    #[arg(long, value_name = "COLUMN=SERIES")]
    rename: Vec<String>,

    /// Of CSV: a column to leave out.
    #[arg(long, value_name = "COLUMN")]
    skip: Vec<String>,

    /// Of CSV: values of this metric are totals of a counter.
    #[arg(long, value_name = "METRIC")]
    total: Vec<String>,

    /// Of CSV: values of this metric are added to a counter.
    #[arg(long, value_name = "METRIC")]
    amount: Vec<String>,

    /// Of CSV: a counter of this name grows by 1 with each row.
    #[arg(long, value_name = "METRIC")]
    count_rows: Option<String>,

    /// How many alerts to print at most; the summary counts all.
    #[arg(long, value_name = "N", default_value_t = 40)]
    show: usize,

    /// Keep what was replayed as a recording in this file.
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Times are numbers with a unit: 500ms, 5s, 2m, 1h.

Examples:
  Something to look at:
    backtest
  Would a bound of 0.95 have been quieter than one of 0.9?
    backtest prod.rec --above 'kv_usage_ratio=0.9:0.8' --above 'kv_usage_ratio=0.95:0.8' --hold 500ms
  CSV with a column for each gauge:
    backtest load.csv --time timestamp --above 'queue_depth=100:50'
  CSV with a row for each value:
    backtest load.csv --long series,value --below 'replicas{role=\"decode\"}=2'
  Bursts in the Azure LLM inference trace of 2023:
    backtest AzureLLMInferenceTrace_conv.csv --time TIMESTAMP --skip ContextTokens \\
        --rename GeneratedTokens=tokens_total --amount tokens_total --count-rows requests_total \\
        --rate-above requests_total=8:6 --rate-above tokens_total=2000 --window 30s --hold 5s";

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads us has had enough.
        Err(error) if is_broken_pipe(&*error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("backtest: {error}");
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &(dyn Error + 'static)) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut rules = rules(arguments)?;
    let mut scratch = None;
    let recording = match &arguments.file {
        Some(path) if is_csv(path) => {
            Recording::from_csv(path, columns(arguments)?).map_err(|error| of_file(path, error))?
        }
        Some(path) => Recording::open(path)?,
        None => {
            if rules.is_empty() {
                rules = demo_rules(arguments);
            }
            let path = scratch.insert(Scratch::new()).0.clone();
            eprintln!(
                "No file given: an hour of a made-up fleet is recorded in {}",
                path.display()
            );
            record_demo(&path)?;
            Recording::open(&path)?
        }
    };
    if let Some(to) = &arguments.save {
        recording
            .save(to)
            .map_err(|error| format!("{}: {error}", to.display()))?;
    }
    if rules.is_empty() {
        return Err("no rule given: try --above 'SERIES=BOUND', or --help".into());
    }
    let bar = bar();
    let report = Replay::new(recording)
        .rules(rules)
        .tail(arguments.tail)
        .run(|progress| {
            bar.set_length(progress.bytes_total);
            bar.set_position(progress.bytes);
            bar.set_message(format!(
                "{} mutations, {} alerts",
                progress.mutations, progress.alerts
            ));
        });
    bar.finish_and_clear();
    std::io::stdout()
        .lock()
        .write_all(render(&report?, arguments.show).as_bytes())?;
    Ok(())
}

/// Says which file it is, unless it is said already.
fn of_file(path: &Path, error: CsvError) -> String {
    match error {
        CsvError::Open { .. } => error.to_string(),
        error => format!("{}: {error}", path.display()),
    }
}

fn bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {percent:>3} %  {msg}") {
        bar.set_style(style);
    }
    bar
}

fn is_csv(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("csv"))
}

fn columns(arguments: &Arguments) -> Result<CsvColumns, Failure> {
    let mut columns = match &arguments.long {
        None => CsvColumns::wide(&arguments.time),
        Some(text) => {
            let (series, value) = text.split_once(',').ok_or_else(|| {
                format!("--long {text:?}: name two columns, as in --long series,value")
            })?;
            CsvColumns::long(&arguments.time, series.trim(), value.trim())
        }
    };
    for text in &arguments.rename {
        let (column, series) = text
            .split_once('=')
            .ok_or_else(|| format!("--rename {text:?}: right would be --rename COLUMN=SERIES"))?;
        columns = columns.rename(column, series);
    }
    for column in &arguments.skip {
        columns = columns.skip(column);
    }
    for metric in &arguments.total {
        columns = columns.totals(metric);
    }
    for metric in &arguments.amount {
        columns = columns.amounts(metric);
    }
    if let Some(series) = &arguments.count_rows {
        columns = columns.count_rows(series);
    }
    Ok(columns)
}

/// A number with a unit.
fn time(text: &str) -> Result<Duration, String> {
    let wrong =
        || format!("{text:?} is not a time; right would be one such as 500ms, 5s, 2m or 1h");
    let digits = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .ok_or_else(wrong)?;
    let number: f64 = text[..digits].parse().map_err(|_| wrong())?;
    let unit = match &text[digits..] {
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        _ => return Err(wrong()),
    };
    Duration::try_from_secs_f64(number * unit).map_err(|_| wrong())
}

/// `SERIES=WHAT`: at the last `=`, since a selector has some, too.
fn split<'a>(flag: &str, text: &'a str) -> Result<(&'a str, &'a str), Failure> {
    text.rsplit_once('=')
        .ok_or_else(|| format!("{flag} {text:?}: right would be {flag} 'queue_depth=100'").into())
}

fn bounds(flag: &str, text: &str) -> Result<(String, f64, Option<f64>), Failure> {
    let (series, bounds) = split(flag, text)?;
    let (bound, clear) = match bounds.split_once(':') {
        Some((bound, clear)) => (bound, Some(clear)),
        None => (bounds, None),
    };
    let number = |text: &str| {
        text.parse::<f64>().map_err(|_| {
            format!("{flag}: {text:?} is not a number; right would be 'queue_depth=100:50'")
        })
    };
    let clear = clear.map(number).transpose()?;
    Ok((series.to_owned(), number(bound)?, clear))
}

/// The rules of the flags, each with a name that says what they say.
fn rules(arguments: &Arguments) -> Result<Vec<Rule>, Failure> {
    let mut conditions = Vec::new();
    for text in &arguments.above {
        let (series, bound, clear) = bounds("--above", text)?;
        let name = format!("{series} > {}", split("--above", text)?.1);
        conditions.push((name, Condition::when(series, above(bound, clear))));
    }
    for text in &arguments.below {
        let (series, bound, clear) = bounds("--below", text)?;
        let name = format!("{series} < {}", split("--below", text)?.1);
        let below = match clear {
            Some(clear) => Threshold::below(bound).clear_above(clear),
            None => Threshold::below(bound),
        };
        conditions.push((name, Condition::when(series, below)));
    }
    for text in &arguments.rate_above {
        let (series, bound, clear) = bounds("--rate-above", text)?;
        let (window, bounds) = (arguments.window, split("--rate-above", text)?.1);
        let name = format!("rate of {series} over {window:?} > {bounds}");
        let rate = Expr::rate(series, window);
        conditions.push((name, Condition::when(rate, above(bound, clear))));
    }
    for text in &arguments.stale {
        let (series, ttl) = split("--stale", text)?;
        conditions.push((
            format!("{series} stale for {ttl}"),
            Condition::stale(series, time(ttl)?),
        ));
    }
    let mut rules: Vec<Rule> = Vec::new();
    for (mut name, condition) in conditions {
        if !arguments.hold.is_zero() {
            name += &format!(", hold {:?}", arguments.hold);
        }
        if !arguments.keep.is_zero() {
            name += &format!(", keep {:?}", arguments.keep);
        }
        if rules.iter().any(|rule| rule.name() == name) {
            return Err(format!("the rule {name:?} is given twice; once is enough").into());
        }
        let rule = Rule::new(name, condition)
            .hold_for(arguments.hold)
            .keep_firing_for(arguments.keep);
        rules.push(rule);
    }
    Ok(rules)
}

fn above(bound: f64, clear: Option<f64>) -> Threshold {
    match clear {
        Some(clear) => Threshold::above(bound).clear_below(clear),
        None => Threshold::above(bound),
    }
}

/// A file that goes with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        let name = format!("metricbus-backtest-{}.rec", std::process::id());
        Scratch(std::env::temp_dir().join(name))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nothing depends on it.
        let _ = std::fs::remove_file(&self.0);
    }
}

fn demo_rules(arguments: &Arguments) -> Vec<Rule> {
    let full = || Condition::when("kv_usage_ratio", Threshold::above(0.9).clear_below(0.8));
    vec![
        Rule::new("KvCacheFull", full()).keep_firing_for(arguments.keep),
        Rule::new("KvCacheFull5s", full())
            .hold_for(Duration::from_secs(5))
            .keep_firing_for(arguments.keep),
        Rule::new(
            "Burst",
            Condition::when(
                Expr::rate("requests_total", Duration::from_secs(60)),
                Threshold::above(9.0).clear_below(7.0),
            ),
        ),
    ]
}

/// An hour of three workers, on a clock of its own: bursts come and go, and fill their caches. A cache is full for a
/// second or two in between, as when a long prompt comes; a hold keeps these spikes out.
fn record_demo(path: &Path) -> Result<(), Failure> {
    let clock = Clock::manual();
    let bus = MetricBus::builder().clock(clock.clone()).build();
    let usage = bus.family::<Gauge>(
        Desc::new("kv_usage_ratio", "Share of KV blocks in use.").labels(["worker"]),
    )?;
    let workers = ["a", "b", "c"]
        .iter()
        .map(|worker| usage.with_label_values(&[worker]))
        .collect::<Result<Vec<_>, _>>()?;
    let requests: Counter = bus.declare(Desc::new("requests_total", "Requests that came."))?;
    let recorder = Recorder::start(&bus, r#"{__name__!=""}"#, path)?;
    let mut random = Random(7);
    let mut made = 0;
    // Steps that each worker's spike still lasts.
    let mut spikes = [0_u32; 3];
    for step in 0..36_000 {
        let minute = f64::from(step) / 600.0;
        let load = 0.55 + 0.3 * (minute / 7.0).sin() + 0.15 * (minute / 1.7).sin();
        if random.next() < load * 1.4 {
            requests.inc();
            made += 1;
        }
        for (i, worker) in workers.iter().enumerate() {
            let noise = 0.06 * (random.next() - 0.5);
            let skew = 0.03 * i as f64;
            spikes[i] = match spikes[i] {
                0 if random.next() < 1.0 / 3_000.0 => 10 + (random.next() * 20.0) as u32,
                left => left.saturating_sub(1),
            };
            let used = match spikes[i] {
                0 => load + skew,
                _ => (load + skew).max(0.95),
            };
            worker.set((used + noise).clamp(0.0, 1.0));
            made += 1;
        }
        // An hour in the blink of an eye is more than any disk keeps up with. A real load doesn't wait.
        while made > recorder.stats().mutations + 10_000 && !recorder.stats().failed {
            std::thread::yield_now();
        }
        clock.advance(Duration::from_millis(100));
    }
    let summary = recorder.finish()?;
    eprintln!(
        "{} mutations of {} series in {} bytes",
        summary.mutations, summary.series, summary.bytes
    );
    Ok(())
}

/// Enough for a demo: a linear congruential generator.
struct Random(u64);

impl Random {
    /// 0 to 1.
    fn next(&mut self) -> f64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// A duration as people say it.
fn human(duration: Duration) -> String {
    let secs = duration.as_secs();
    match duration {
        d if d < Duration::from_secs(1) => format!("{} ms", d.as_millis()),
        d if d < Duration::from_secs(60) => format!("{:.1} s", d.as_secs_f64()),
        _ if secs < 3_600 => format!("{} m {:02} s", secs / 60, secs % 60),
        _ => format!("{} h {:02} m", secs / 3_600, secs / 60 % 60),
    }
}

/// A number as people say it.
fn rounded(number: f64) -> String {
    match number {
        n if n >= 1e6 => format!("{:.1} million", n / 1e6),
        n if n >= 1e3 => format!("{:.0} thousand", n / 1e3),
        n => format!("{n:.0}"),
    }
}

/// Clocks that begin at 0 have no dates: a manual one, or a CSV file with seconds since its beginning.
fn has_dates(report: &Report) -> bool {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3_600);
    report.date(report.start) > SystemTime::UNIX_EPOCH + YEAR
}

/// A time as the file has it: a date, or seconds by its own clock.
fn in_file(report: &Report, at: Time) -> String {
    let seconds = || format!("{:.3} s", at.as_secs_f64());
    match has_dates(report) {
        true => Timestamp::try_from(report.date(at))
            .map_or_else(|_| seconds(), |date| format!("{date:.3}")),
        false => seconds(),
    }
}

fn render(report: &Report, show: usize) -> String {
    // Writing to a string does not fail.
    let mut out = String::new();
    let width = widest(report);
    for rule in &report.rules {
        let _ = writeln!(out, "{:width$}  {}", rule.rule, rule.condition);
    }
    out.push('\n');

    // Where the file counts from 0, too, its times would say nothing new.
    let own_times = has_dates(report) || report.start > Time::ZERO;
    let rows: Vec<Vec<String>> = report
        .transitions
        .iter()
        .take(show)
        .map(|alert| {
            let group: Vec<_> = alert
                .group
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            let mut row = vec![format!(
                "+{:.3} s",
                alert.at.since(report.start).as_secs_f64()
            )];
            if own_times {
                row.push(in_file(report, alert.at));
            }
            row.extend([
                alert.rule.to_string(),
                group.join(" "),
                alert.state.to_string(),
                alert
                    .value
                    .map_or("-".to_owned(), |value| format!("{value:.4}")),
            ]);
            row
        })
        .collect();
    if rows.is_empty() {
        out.push_str("No rule would have fired.\n");
    } else {
        let mut head = vec!["time", "rule", "labels", "state", "value"];
        if own_times {
            head.insert(
                1,
                if has_dates(report) {
                    "date"
                } else {
                    "in the file"
                },
            );
        }
        let _ = writeln!(
            out,
            "Times count from the beginning of the file, which is at {}.",
            in_file(report, report.start)
        );
        table(&mut out, &head, &rows);
    }
    let hidden = report.transitions.len() - rows.len();
    if hidden > 0 {
        let _ = writeln!(
            out,
            "... and {hidden} more; --show {} shows all",
            report.transitions.len()
        );
    }
    out.push('\n');

    let head = [
        "rule",
        "series",
        "fired",
        "firing",
        "share",
        "longest",
        "at the end",
    ];
    let span = report.span().as_secs_f64();
    let rows: Vec<Vec<String>> = report
        .rules
        .iter()
        .map(|rule| {
            let share = match span > 0.0 {
                true => format!("{:.1} %", 100.0 * rule.firing.as_secs_f64() / span),
                false => "-".to_owned(),
            };
            vec![
                rule.rule.to_string(),
                rule.series.to_string(),
                rule.fired.to_string(),
                human(rule.firing),
                share,
                human(rule.longest),
                match rule.still_firing {
                    0 => "quiet".to_owned(),
                    n => format!("{n} firing"),
                },
            ]
        })
        .collect();
    table(&mut out, &head, &rows);
    for rule in report.rules.iter().filter(|rule| !rule.ever_matched) {
        let _ = writeln!(
            out,
            "{}: no series in the file ever matched; is the selector right?",
            rule.rule
        );
    }
    out.push('\n');
    timeline(&mut out, report);

    let _ = writeln!(
        out,
        "\n{} mutations over {}, replayed in {} ({} mutations per second)",
        report.mutations,
        human(report.span()),
        human(report.elapsed),
        rounded(report.rate()),
    );
    if report.dropped > 0 {
        let _ = writeln!(
            out,
            "{} mutations are missing: they were not written fast enough when recorded",
            report.dropped
        );
    }
    if report.cut_off {
        out.push_str("The recording was never finished; it was replayed as far as it goes.\n");
    }
    out
}

fn table(out: &mut String, head: &[&str], rows: &[Vec<String>]) {
    let head = head.iter().map(|&name| name.to_owned()).collect();
    let all = || std::iter::once(&head).chain(rows);
    let widths: Vec<usize> = (0..head.len())
        .map(|i| all().map(|row| row[i].chars().count()).max().unwrap_or(0))
        .collect();
    for row in all() {
        let cells: Vec<_> = row
            .iter()
            .zip(&widths)
            .map(|(cell, &width)| format!("{cell:width$}"))
            .collect();
        let _ = writeln!(out, "{}", cells.join("  ").trim_end());
    }
}

/// The length of the longest name of a rule.
fn widest(report: &Report) -> usize {
    let names = report.rules.iter().map(|rule| rule.rule.chars().count());
    names.max().unwrap_or(0)
}

const COLUMNS: usize = 60;

/// A line for each rule: `#` where it was firing throughout, `+` where in part.
fn timeline(out: &mut String, report: &Report) {
    let span = report.span();
    if span.is_zero() {
        return;
    }
    let width = widest(report);
    let _ = writeln!(
        out,
        "# firing throughout, + in part, . quiet; each place is {}",
        human(span / COLUMNS as u32)
    );
    for rule in &report.rules {
        let _ = writeln!(out, "{:width$}  |{}|", rule.rule, line(rule, report));
    }
    let _ = writeln!(out, "{:width$}  0{:>COLUMNS$}", "", human(span));
}

fn line(rule: &RuleReport, report: &Report) -> String {
    let span = report.span().as_secs_f64();
    let of = |time: Time| time.since(report.start).as_secs_f64() / span * COLUMNS as f64;
    (0..COLUMNS)
        .map(|i| {
            let (from, to) = (i as f64, (i + 1) as f64);
            let spans = || rule.spans.iter().map(|s| (of(s.from), of(s.to)));
            if spans().any(|(a, b)| a <= from && b >= to) {
                '#'
            } else if spans().any(|(a, b)| a < to && b >= from) {
                '+'
            } else {
                '.'
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_time_is_a_number_with_a_unit() {
        assert_eq!(time("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(time("1.5m"), Ok(Duration::from_secs(90)));
        for wrong in ["", "5", "s", "5 s", "5d", "-1s", "1e3s"] {
            assert!(time(wrong).unwrap_err().contains("500ms"), "{wrong}");
        }
    }

    #[test]
    fn bounds_come_after_the_last_equals_sign() {
        assert_eq!(
            bounds("--above", r#"kv{worker="a"}=0.9:0.8"#).unwrap(),
            (r#"kv{worker="a"}"#.to_owned(), 0.9, Some(0.8))
        );
        assert!(
            bounds("--above", "kv")
                .unwrap_err()
                .to_string()
                .contains("queue_depth=100")
        );
        assert!(
            bounds("--above", "kv=x")
                .unwrap_err()
                .to_string()
                .contains("\"x\"")
        );
    }

    #[test]
    fn the_demo_fires_and_is_shown() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("demo.rec");
        record_demo(&path).unwrap();
        let arguments = Arguments::parse_from(["backtest"]);

        let report = Replay::new(Recording::open(&path).unwrap())
            .rules(demo_rules(&arguments))
            .run(|_| {})
            .unwrap();
        assert_eq!(report.dropped, 0);
        assert!(report.rules.iter().all(|rule| rule.fired > 0), "{report:?}");
        let fired = |name| report.rule(name).unwrap().fired;
        // Spikes are most of what fires without a hold.
        assert!(
            fired("KvCacheFull") > 2 * fired("KvCacheFull5s"),
            "{report}"
        );
        assert_ne!(
            line(report.rule("KvCacheFull").unwrap(), &report),
            line(report.rule("KvCacheFull5s").unwrap(), &report)
        );
        let shown = render(&report, 5);
        for part in [
            "KvCacheFull5s  kv_usage_ratio above 0.9, clear below 0.8; each series; hold_for 5s",
            "beginning of the file, which is at 0.000 s",
            "# firing throughout",
            "worker=b",
            "firing",
            "more; --show",
            "|",
            "#",
        ] {
            assert!(shown.contains(part), "{part:?} is not in\n{shown}");
        }
    }

    #[test]
    fn csv_is_read_as_the_flags_say() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("load.csv");
        std::fs::write(&path, "when,CPU %,note\n1,50,x\n2,99,y\n").unwrap();
        let arguments = Arguments::parse_from([
            "backtest",
            "--time",
            "when",
            "--rename",
            "CPU %=cpu",
            "--skip",
            "note",
            "--above",
            "cpu=90",
        ]);
        let recording = Recording::from_csv(&path, columns(&arguments).unwrap()).unwrap();
        let report = Replay::new(recording)
            .rules(rules(&arguments).unwrap())
            .run(|_| {})
            .unwrap();
        let shown = render(&report, 40);
        assert!(shown.contains("+1.000 s  2.000 s      cpu > 90"), "{shown}");
        assert!(shown.contains("which is at 1.000 s"), "{shown}");
        assert!(!shown.contains("0.0 million"), "{shown}");
    }

    #[test]
    fn a_file_with_dates_is_told_by_dates() {
        let csv = "time,cpu\n2023-11-16T18:15:46.5Z,50\n2023-11-16T18:15:48Z,99\n";
        let arguments = Arguments::parse_from(["backtest", "--above", "cpu=90"]);
        let recording = Recording::from_csv_text(csv, columns(&arguments).unwrap()).unwrap();
        let report = Replay::new(recording)
            .rules(rules(&arguments).unwrap())
            .run(|_| {})
            .unwrap();
        let shown = render(&report, 40);
        for part in [
            "which is at 2023-11-16T18:15:46.500Z",
            "+1.500 s  2023-11-16T18:15:48.000Z  cpu > 90",
        ] {
            assert!(shown.contains(part), "{part:?} is not in\n{shown}");
        }
    }

    #[test]
    fn a_rule_is_named_as_its_flags_say() {
        let names = |flags: &[&str]| {
            let arguments = Arguments::parse_from([&["backtest"], flags].concat());
            rules(&arguments).map_or_else(
                |error| vec![error.to_string()],
                |rules| rules.iter().map(|rule| rule.name().to_owned()).collect(),
            )
        };
        assert_eq!(
            names(&[
                "--above",
                "kv{worker='a'}=0.9:0.8",
                "--below",
                "replicas=2",
                "--stale",
                "beat=30s",
                "--rate-above",
                "requests_total=8",
                "--window",
                "30s",
                "--hold",
                "500ms",
                "--keep",
                "2s",
            ]),
            [
                "kv{worker='a'} > 0.9:0.8, hold 500ms, keep 2s",
                "replicas < 2, hold 500ms, keep 2s",
                "rate of requests_total over 30s > 8, hold 500ms, keep 2s",
                "beat stale for 30s, hold 500ms, keep 2s",
            ]
        );
        assert_eq!(
            names(&["--above", "kv=1", "--above", "kv=1"]),
            ["the rule \"kv > 1\" is given twice; once is enough"]
        );
    }

    #[test]
    fn an_error_names_its_file_once() {
        let scratch = tempfile::tempdir().unwrap();
        let said = |name: &str, content: Option<&str>| {
            let path = scratch.path().join(name);
            if let Some(content) = content {
                std::fs::write(&path, content).unwrap();
            }
            let path = path.display().to_string();
            let arguments = Arguments::parse_from(["backtest", &path, "--above", "kv=1"]);
            let error = run(&arguments).unwrap_err().to_string();
            assert_eq!(error.matches(&path).count(), 1, "{error}");
            error
        };
        assert!(said("none.csv", None).contains("No such file"));
        assert!(said("empty.csv", Some("")).contains("the file is empty"));
        assert!(said("row.csv", Some("time,kv\n1,x\n")).contains("line 2"));
        assert!(said("text.rec", Some("time,kv\n")).contains("not a recording"));
        said("none.rec", None);
    }
}
