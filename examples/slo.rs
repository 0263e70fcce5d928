//! A service level objective, watched over two windows: how soon an alert comes, and how soon it goes.
//!
//! ```text
//! cargo run --release --example slo --features http -- --help
//! ```
//!
//! A real HTTP server on 127.0.0.1 is measured by [`HttpMetrics`]; a client keeps it busy. For a while the server answers
//! part of the requests late, and with an error. A rule looks at how fast that burns the error budget; its alerts go
//! through layers to a notifier, which prints them.
//!
//! # The rule
//!
//! An objective of 99 % has an error budget of 1 %. *Burning* it at rate 1 uses it up exactly by the end of its period; at
//! rate 100 everything fails. The workbook of Google's site reliability engineers (chapter 5) pages on a rate above 14.4
//! over the last hour *and* over the last five minutes: the long window, so that a blip does not wake anybody, the short
//! one, so that the alert ends soon after the fault does. Here an hour lasts four seconds, unless told otherwise. Polls are
//! not scaled down: the table compares what each would see of a fault that lasts for seconds.

use std::{
    error::Error,
    io::{self, Write},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{Router, http::StatusCode, routing::get};
use clap::Parser;
use http_body_util::{BodyExt, Empty};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use metricbus::{
    Alert, Condition, Derived, Desc, Expr, MetricBus, Rule, RuleError, SelectorError, Threshold,
    Time,
    service::{Flap, HttpMetrics, Repeat, Rolled, Rollup, channel},
};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tower::ServiceBuilder;

// Lines are broken by hand: clap breaks them only with a feature that nothing else here needs.

/// Watches an HTTP server's error budget over two windows, and shows how soon an alert comes.
///
/// A server runs well, then fails for a while, then runs well again. What it fails is its error
/// budget: with an objective of 0.99, 1 % of requests may. The burn rate says how many times
/// faster than that it is used up. The rule fires when the burn rate is above --factor both over
/// the --long and over the --short window: long, so that one failed request is not an alert;
/// short, so that the alert is over soon after the fault.
///
/// At the end a table tells when the fault was and when the alert, beside what a poll of the same
/// rule would have seen, and a plot shows the burn rate. The windows are those of the workbook for
/// faults of hours, shrunk to seconds; the poll is not shrunk: it is here to be too slow for a fault
/// of seconds, and would do well for one of hours.
#[derive(Debug, Parser)]
#[command(
    name = "slo",
    verbatim_doc_comment,
    after_help = "\
Examples:
  slo                          the server fails every other request for a quarter of 20 s
  slo --errors 0.2             a milder fault burns slower, and is seen later
  slo --errors 0.1             burns at 10 times the rate: below 14.4, no alert
  slo --short 4                without a short window the alert outlasts the fault
  slo --seconds 10 --long 2    all at twice the speed

With cargo, options go after --:
  cargo run --release --example slo --features http -- --errors 0.2"
)]
pub(crate) struct Args {
    /// How long it takes: 30 % of it without a fault, 25 % with, and the rest without again
    #[arg(long, default_value_t = 20.0, value_parser = positive)]
    seconds: f64,

    /// Share of requests that fail during the fault, 0 to 1
    #[arg(long, default_value_t = 0.5, value_parser = share)]
    errors: f64,

    /// Share of requests that should succeed; what is left to 1 is the error budget
    #[arg(long, default_value_t = 0.99, value_parser = objective)]
    objective: f64,

    /// Burn rate above which the rule fires: 14.4 uses up 2 % of a month's budget in an hour
    #[arg(long, default_value_t = 14.4, value_parser = positive)]
    factor: f64,

    /// Width of the long window in seconds; an hour in real life
    #[arg(long, default_value_t = 4.0, value_parser = window)]
    long: f64,

    /// Width of the short window in seconds. Unless given, a twelfth of the long one, at least 0.1
    #[arg(long, value_parser = window)]
    short: Option<f64>,

    /// Requests per second
    #[arg(long, default_value_t = 200.0, value_parser = positive)]
    rate: f64,

    /// Seconds between the polls to compare with; Prometheus's default is 15 to 60
    #[arg(long, default_value_t = 15.0, value_parser = positive)]
    poll: f64,
}

fn number(text: &str, right: &str, is_right: impl Fn(f64) -> bool) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if is_right(number) => Ok(number),
        _ => Err(format!("it should be {right}")),
    }
}

fn positive(text: &str) -> Result<f64, String> {
    number(text, "a number above 0, at most 3600", |n| {
        n > 0.0 && n <= 3_600.0
    })
}

fn window(text: &str) -> Result<f64, String> {
    number(text, "a number of seconds from 0.1 to 3600", |n| {
        (0.1..=3_600.0).contains(&n)
    })
}

fn share(text: &str) -> Result<f64, String> {
    number(text, "a number from 0 to 1", |n| (0.0..=1.0).contains(&n))
}

fn objective(text: &str) -> Result<f64, String> {
    number(
        text,
        "a number from 0 to below 1: of nothing, no share is left to burn",
        |n| (0.0..1.0).contains(&n),
    )
}

impl Args {
    fn short(&self) -> f64 {
        self.short.unwrap_or(self.long / 12.0).max(0.1)
    }

    /// What no option says alone.
    fn check(&self) -> Result<(), String> {
        if self.short() > self.long {
            return Err(format!(
                "--short {} is longer than --long {}; it should be at most as long",
                self.short(),
                self.long
            ));
        }
        Ok(())
    }

    /// How fast the budget is burnt over a window of this width.
    fn burn_rate(&self, width: f64) -> Expr {
        let width = Duration::from_secs_f64(width);
        let failed = Expr::over(r#"http_requests_total{code="5xx"}"#, width).merged();
        let all = Expr::over("http_requests_total", width).merged();
        failed.increase() / all.increase() / (1.0 - self.objective)
    }

    fn rule(&self) -> Rule {
        // Where the rate moves about the bound, half of it has to be reached before the alert is over.
        let too_fast = Threshold::above(self.factor).clear_below(self.factor / 2.0);
        let burns = |width| Condition::when(self.burn_rate(width), too_fast);
        Rule::new("ErrorBudgetBurn", burns(self.long) & burns(self.short()))
            .label("severity", "page")
            .annotation("summary", "errors use up the budget too fast")
    }
}

/// What happened when, in seconds since the start.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) fault_began: f64,
    pub(crate) fault_ended: f64,
    pub(crate) fired: Option<f64>,
    pub(crate) resolved: Option<f64>,
    /// What the notifier printed.
    pub(crate) told: Vec<String>,
    /// Burn rates over the long and the short window, at each tick.
    pub(crate) burn: Vec<Burn>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Burn {
    at: f64,
    pub(crate) long: Option<f64>,
    short: Option<f64>,
}

/// The server's fault, switched on and off.
#[derive(Default)]
struct Fault {
    on: AtomicBool,
    requests: AtomicU64,
}

impl Fault {
    /// Whether the next request fails: evenly, `errors` of all.
    fn strikes(&self, errors: f64) -> bool {
        let n = self.requests.fetch_add(1, Ordering::Relaxed) as f64;
        self.on.load(Ordering::Relaxed) && ((n + 1.0) * errors).floor() > (n * errors).floor()
    }
}

/// How long what comes at once is gathered into one message.
const GATHERED: Duration = Duration::from_millis(50);

/// How late a failing request is answered.
const SLOW: Duration = Duration::from_millis(20);

async fn answer(fault: Arc<Fault>, errors: f64) -> (StatusCode, &'static str) {
    if fault.strikes(errors) {
        tokio::time::sleep(SLOW).await;
        return (StatusCode::SERVICE_UNAVAILABLE, "no\n");
    }
    (StatusCode::OK, "yes\n")
}

/// How many connections the client has.
const CONNECTIONS: u32 = 8;

/// Asks again and again, `rate` times a second over all connections, until it is dropped.
fn client(tasks: &mut JoinSet<()>, url: &str, rate: f64) -> Result<(), Box<dyn Error>> {
    let url: axum::http::Uri = url.parse()?;
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<axum::body::Bytes>>();
    for _ in 0..CONNECTIONS {
        let (client, url) = (client.clone(), url.clone());
        let mut turns = interval(Duration::from_secs_f64(f64::from(CONNECTIONS) / rate));
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tasks.spawn(async move {
            loop {
                turns.tick().await;
                // What goes wrong is what the server counts; the body is read, so that the connection can be used again.
                if let Ok(response) = client.get(url.clone()).await {
                    let _ = response.into_body().collect().await;
                }
            }
        });
    }
    Ok(())
}

/// Runs it all, and writes what there is to see.
pub(crate) async fn run(args: &Args, out: &mut impl Write) -> Result<Outcome, Box<dyn Error>> {
    args.check()?;
    let bus = MetricBus::new();
    let fault = Arc::new(Fault::default());
    let mut tasks = JoinSet::new();

    let handler = {
        let (fault, errors) = (fault.clone(), args.errors);
        move || answer(fault.clone(), errors)
    };
    let app = Router::new()
        .route("/", get(handler))
        .layer(HttpMetrics::new(&bus.scope())?);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/", listener.local_addr()?);
    tasks.spawn(async move {
        if let Err(error) = axum::serve(listener, app).await {
            eprintln!("slo: the server ended: {error}");
        }
    });

    let rule = bus.add_rule(args.rule())?;
    let rates = Rates::derive(&bus, args)?;

    // The way of an alert: silence if it flaps, a reminder every other second, and what comes within 50 ms as one message.
    let (sender, mut messages) = mpsc::channel::<Rolled>(16);
    let _subscription = rule.on_alert().service(
        ServiceBuilder::new()
            .layer(Flap::new(&bus, 6, Duration::from_secs(60)))
            .layer(Repeat::new(&bus, Duration::from_secs(2)))
            .layer(Rollup::new(&bus, GATHERED))
            .service(channel(sender)),
    )?;

    writeln!(
        out,
        "{url}: {} requests/s, objective {} %, error budget {:.3} %\n\
         alert when the burn rate is above {} over {} s and over {:.2} s\n",
        args.rate,
        args.objective * 100.0,
        (1.0 - args.objective) * 100.0,
        args.factor,
        args.long,
        args.short(),
    )?;
    client(&mut tasks, &url, args.rate)?;

    let began = bus.clock().now();
    let since = |at: Time| at.since(began).as_secs_f64();
    let start = Instant::now();
    let after = |secs: f64| start + Duration::from_secs_f64(secs);
    let (fault_at, well_at) = (args.seconds * 0.3, args.seconds * 0.55);
    // An alert that is still on when time is up may take until the windows have gone by.
    let last = args.seconds + args.long + 2.0;

    let mut outcome = Outcome::default();
    let mut ticks = interval(Duration::from_secs_f64((args.seconds / 200.0).max(0.02)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut phase = Phase::Before;
    loop {
        let next = match phase {
            Phase::Before => after(fault_at),
            Phase::Fault => after(well_at),
            Phase::After => after(args.seconds),
            Phase::Over => after(last),
        };
        tokio::select! {
            biased;
            Some(message) = messages.recv() => {
                notify(&message, since, bus.clock().now(), &mut outcome, out)?;
                if phase == Phase::Over && outcome.resolved.is_some() {
                    break;
                }
            }
            _ = ticks.tick() => {
                outcome.burn.push(rates.now(since(bus.clock().now()))?);
            }
            () = sleep_until(next) => {
                let now = since(bus.clock().now());
                match phase {
                    Phase::Before => {
                        fault.on.store(true, Ordering::Relaxed);
                        outcome.fault_began = now;
                        writeln!(out, "{now:7.2} s  the server begins to fail {} % of requests", args.errors * 100.0)?;
                        phase = Phase::Fault;
                    }
                    Phase::Fault => {
                        fault.on.store(false, Ordering::Relaxed);
                        outcome.fault_ended = now;
                        writeln!(out, "{now:7.2} s  the server is well again")?;
                        phase = Phase::After;
                    }
                    Phase::After if outcome.fired.is_some() && outcome.resolved.is_none() => {
                        phase = Phase::Over;
                    }
                    Phase::After | Phase::Over => break,
                }
            }
        }
    }
    writeln!(out)?;
    table(args, &outcome, out)?;
    plot(args, &outcome, out)?;
    Ok(outcome)
}

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    Before,
    Fault,
    After,
    /// Waits for the end of an alert.
    Over,
}

/// The notifier: prints a message, as it would send it to a pager.
fn notify(
    message: &Rolled,
    since: impl Fn(Time) -> f64,
    now: Time,
    outcome: &mut Outcome,
    out: &mut impl Write,
) -> io::Result<()> {
    for alert in &message.alerts {
        let line = line(alert);
        writeln!(out, "{:7.2} s  {line}", since(now))?;
        outcome.told.push(line);
        if alert.repeat > 0 {
            continue;
        }
        if alert.is_firing() {
            outcome.fired.get_or_insert(since(alert.at));
            outcome.resolved = None;
        } else {
            outcome.resolved = Some(since(alert.at));
        }
    }
    Ok(())
}

fn line(alert: &Alert) -> String {
    let mut line = format!("{} {}", alert.state.to_string().to_uppercase(), alert.rule);
    if alert.is_firing() {
        let summary = alert.annotation("summary").unwrap_or_default();
        line += &format!(" [{}] {summary}", alert.label("severity").unwrap_or("-"));
        if let Some(value) = alert.value {
            line += &format!(": {value:.1} times");
        }
    }
    if alert.repeat > 0 {
        // A repeat is the alert as it was; nobody has measured again for it.
        line += &format!(" (value when it fired; again, {})", alert.repeat);
    }
    line
}

/// The burn rates as gauges of the bus, where an exporter, other rules and the plot find them.
struct Rates {
    bus: MetricBus,
    /// Dropped, they would be gone.
    _derived: [Derived; 2],
}

impl Rates {
    fn derive(bus: &MetricBus, args: &Args) -> Result<Rates, RuleError> {
        let long = Desc::new("slo_burn_rate_long", "Burn rate over the long window.");
        let short = Desc::new("slo_burn_rate_short", "Burn rate over the short window.");
        Ok(Rates {
            bus: bus.clone(),
            _derived: [
                bus.derive(long, args.burn_rate(args.long))?,
                bus.derive(short, args.burn_rate(args.short()))?,
            ],
        })
    }

    fn now(&self, at: f64) -> Result<Burn, SelectorError> {
        let value = |name| {
            let found = self.bus.series(name)?;
            let value = found
                .first()
                .and_then(|series| Some(series.value()?.as_f64()));
            // NaN: no data.
            Ok(value.filter(|value| !value.is_nan()))
        };
        Ok(Burn {
            at,
            long: value("slo_burn_rate_long")?,
            short: value("slo_burn_rate_short")?,
        })
    }
}

/// When a poll every `period`, the first at the start, would see what began at `from` and was over at `until`.
fn polled(from: Option<f64>, until: Option<f64>, period: f64) -> Option<f64> {
    let poll = (from? / period).ceil() * period;
    until.is_none_or(|until| poll < until).then_some(poll)
}

fn table(args: &Args, outcome: &Outcome, out: &mut impl Write) -> io::Result<()> {
    let fired = outcome.fired;
    let seen = polled(fired, outcome.resolved, args.poll);
    let seen_over = seen.and(polled(outcome.resolved, None, args.poll));
    let time = |at: Option<f64>, after: f64| match at {
        Some(at) => format!("{at:.2} s ({:+.2} s)", at - after),
        None => "never".to_owned(),
    };
    let (began, ended) = (outcome.fault_began, outcome.fault_ended);
    let poll = format!("poll every {} s", args.poll);
    let rows = [
        ["".to_owned(), "metricbus".to_owned(), poll],
        [
            "the fault began".to_owned(),
            format!("{began:.2} s"),
            String::new(),
        ],
        [
            "the alert fired".to_owned(),
            time(fired, began),
            time(seen, began),
        ],
        [
            "the fault ended".to_owned(),
            format!("{ended:.2} s"),
            String::new(),
        ],
        [
            "the alert was resolved".to_owned(),
            time(outcome.resolved, ended),
            time(seen_over, ended),
        ],
    ];
    for [what, here, there] in rows {
        writeln!(out, "{}", format!("{what:<24}{here:<22}{there}").trim_end())?;
    }
    if fired.is_some() {
        writeln!(
            out,
            "\nThese are the times at which the rule fired and was resolved. The lines above have those of delivery:\n\
             the Rollup layer gathers alerts for {} ms before it passes them on.",
            GATHERED.as_millis()
        )?;
    }
    if let (Some(fired), Some(resolved)) = (fired, outcome.resolved) {
        // A poll's phase is chance: of all phases, those that see it, and how late they do on average.
        let lasted = resolved - fired;
        let sees = (lasted / args.poll).min(1.0) * 100.0;
        let late = lasted.min(args.poll) / 2.0;
        writeln!(
            out,
            "\nThe first poll is at 0 s here. Polls that begin at any other time see this alert in {sees:.0} % of cases,\n\
             {late:.1} s later than it fired on average, and otherwise not at all."
        )?;
    }
    writeln!(out)
}

/// Rows and columns of the plot.
const ROWS: usize = 8;
const COLUMNS: usize = 64;

fn plot(args: &Args, outcome: &Outcome, out: &mut impl Write) -> io::Result<()> {
    let end = outcome.burn.last().map_or(args.seconds, |burn| burn.at);
    let column = |at: f64| ((at / end * COLUMNS as f64) as usize).min(COLUMNS - 1);
    let mut long = [None::<f64>; COLUMNS];
    let mut short = [None::<f64>; COLUMNS];
    for burn in &outcome.burn {
        for (plotted, value) in [(&mut long, burn.long), (&mut short, burn.short)] {
            let place = &mut plotted[column(burn.at)];
            if let Some(value) = value {
                *place = Some(place.map_or(value, |before| before.max(value)));
            }
        }
    }
    let greatest = long.iter().chain(&short).flatten().copied();
    let top = greatest.fold(args.factor, f64::max) * 1.05;
    let row = |value: f64| (value / top * ROWS as f64) as usize;
    writeln!(
        out,
        "burn rate over {} s (#) and over {:.2} s (.); the rule's bound is {} (-)",
        args.long,
        args.short(),
        args.factor
    )?;
    for r in (0..ROWS).rev() {
        let line: String = (0..COLUMNS)
            .map(|c| match (long[c], short[c]) {
                (Some(value), _) if row(value) >= r && value > 0.0 => '#',
                (_, Some(value)) if row(value) >= r && value > 0.0 => '.',
                _ if row(args.factor) == r => '-',
                _ => ' ',
            })
            .collect();
        let bound = top / ROWS as f64 * r as f64;
        writeln!(out, "{}", format!("{bound:7.1} |{line}").trim_end())?;
    }
    let mut spans = |what: &str, from: Option<f64>, until: Option<f64>| {
        let Some(from) = from else { return Ok(()) };
        let (from, until) = (column(from), column(until.unwrap_or(end)));
        let span = " ".repeat(from) + &"=".repeat(until - from + 1);
        writeln!(out, "{what:>7} |{span}")
    };
    spans(
        "fault",
        Some(outcome.fault_began),
        Some(outcome.fault_ended),
    )?;
    spans("alert", outcome.fired, outcome.resolved)?;
    writeln!(out, "        0 s{:>width$.1} s", end, width = COLUMNS - 4)
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args, &mut io::stdout()).await {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("slo: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod checks {
    use super::*;

    #[tokio::test]
    async fn a_short_window_that_is_longer_than_the_long_one_is_refused() {
        let args = Args::try_parse_from(["slo", "--short", "9", "--long", "4"]).unwrap();
        let error = run(&args, &mut Vec::new()).await.unwrap_err().to_string();
        for part in ["--short 9", "--long 4", "at most"] {
            assert!(error.contains(part), "{error}");
        }
        let same = Args::try_parse_from(["slo", "--short", "4", "--long", "4"]).unwrap();
        assert_eq!(same.check(), Ok(()));
    }
}
