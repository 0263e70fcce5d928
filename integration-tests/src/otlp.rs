//! A real OpenTelemetry collector, rotel, that receives by gRPC and HTTP and prints each point that it got.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use tempfile::TempDir;

use crate::{http, nats::Port, parts, process::Running};

/// How long a collector may take to start, or to print what a test waits for. Generous: it only bounds a failing test.
const DEADLINE: Duration = Duration::from_secs(60);

/// How often is looked while waiting. It has no way to tell us.
const POLL: Duration = Duration::from_millis(5);

/// A collector on ports of its own, which stay its own while it is down; killed when dropped, frozen or not.
#[derive(Debug)]
pub struct Collector {
    grpc: Port,
    http: Port,
    heard: Arc<Mutex<Heard>>,
    // Before the folder: the collector is killed first, and then its files are removed.
    running: Option<Running>,
    folder: TempDir,
}

/// A point as the collector printed it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Point {
    /// The resource's attributes.
    pub resource: BTreeMap<String, String>,
    /// The metric's name.
    pub metric: String,
    /// Its description.
    pub description: String,
    /// Its unit.
    pub unit: String,
    /// `Sum`, `Gauge`, `Histogram` or `ExponentialHistogram`.
    pub kind: String,
    /// Whether it is a delta.
    pub delta: bool,
    /// The point's attributes.
    pub labels: BTreeMap<String, String>,
    /// Nanoseconds since 1970; 0 where there is none.
    pub start: u64,
    /// Nanoseconds since 1970.
    pub at: u64,
    /// Of a sum or a gauge.
    pub value: Option<f64>,
    /// Of a histogram.
    pub count: u64,
    /// Of a histogram.
    pub sum: f64,
    /// Of a histogram, where it is known.
    pub min: Option<f64>,
    /// Of a histogram, where it is known.
    pub max: Option<f64>,
    /// Upper bounds of an explicit histogram's buckets, without +Inf.
    pub bounds: Vec<f64>,
    /// Counts of an explicit histogram's buckets.
    pub counts: Vec<u64>,
    /// Buckets of an exponential histogram, from where to where, with their counts; empty ones left out.
    pub spans: Vec<(f64, f64, u64)>,
    /// The ids of the exemplars' traces.
    pub traces: Vec<String>,
}

/// What was printed so far.
#[derive(Debug, Default)]
struct Heard {
    log: String,
    points: Vec<Point>,
    reading: Reading,
}

/// Which attributes the next lines are.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Attributes {
    #[default]
    Resource,
    Descriptor,
    Point,
    Exemplar,
}

#[derive(Debug, Default)]
struct Reading {
    attributes: Attributes,
    resource: BTreeMap<String, String>,
    /// With what is known of the metric.
    metric: Point,
    point: Option<Point>,
}

impl Heard {
    fn line(&mut self, line: &str) {
        self.log.push_str(line);
        self.log.push('\n');
        let reading = &mut self.reading;
        if line.starts_with("ResourceMetrics #") {
            self.end();
            self.reading = Reading::default();
        } else if line.starts_with("Metric #") {
            self.end();
            self.reading.metric = Point {
                resource: self.reading.resource.clone(),
                ..Point::default()
            };
        } else if line == "Descriptor:" {
            reading.attributes = Attributes::Descriptor;
        } else if line.contains("DataPoints #") {
            self.end();
            self.reading.point = Some(self.reading.metric.clone());
            self.reading.attributes = Attributes::Point;
        } else if line.starts_with("Exemplar") {
            reading.attributes = Attributes::Exemplar;
        } else if let Some((name, value)) = line
            .trim_start()
            .strip_prefix("-> ")
            .and_then(|pair| pair.split_once(": "))
        {
            reading.attribute(name, value);
        } else if let (Some(point), Some((name, value))) =
            (&mut reading.point, line.split_once(": "))
        {
            point.field(name, value);
        }
    }

    /// The point that was being printed is whole.
    fn end(&mut self) {
        self.points.extend(self.reading.point.take());
    }
}

impl Reading {
    fn attribute(&mut self, name: &str, value: &str) {
        let text = |value: &str| {
            let inner = value.strip_prefix("Str(").and_then(|v| v.strip_suffix(')'));
            inner.unwrap_or(value).to_owned()
        };
        match (self.attributes, name) {
            (Attributes::Resource, _) => {
                self.resource.insert(name.to_owned(), text(value));
            }
            (Attributes::Descriptor, "Name") => self.metric.metric = value.to_owned(),
            (Attributes::Descriptor, "Description") => self.metric.description = value.to_owned(),
            (Attributes::Descriptor, "Unit") => self.metric.unit = value.to_owned(),
            (Attributes::Descriptor, "DataType") => self.metric.kind = value.to_owned(),
            (Attributes::Descriptor, "AggregationTemporality") => {
                self.metric.delta = value == "AGGREGATION_TEMPORALITY_DELTA";
            }
            (Attributes::Point, _) => {
                if let Some(point) = &mut self.point {
                    point.labels.insert(name.to_owned(), text(value));
                }
            }
            (Attributes::Exemplar, "Trace ID") => {
                if let Some(point) = &mut self.point {
                    point.traces.push(value.to_owned());
                }
            }
            _ => {}
        }
    }
}

impl Point {
    fn field(&mut self, name: &str, value: &str) {
        let real = || value.parse().unwrap_or(f64::NAN);
        let whole = || value.parse().unwrap_or(0);
        match name {
            "StartTimestamp" => self.start = whole(),
            "Timestamp" => self.at = whole(),
            "Value" => self.value = Some(real()),
            "Count" => self.count = whole(),
            "Sum" => self.sum = real(),
            "Min" => self.min = Some(real()),
            "Max" => self.max = Some(real()),
            _ if name.starts_with("ExplicitBounds #") => self.bounds.push(real()),
            _ if name.starts_with("Buckets #") => self.counts.push(whole()),
            _ if name.starts_with("Bucket ") => {
                let count = whole();
                let bounds = name.trim_start_matches("Bucket ");
                let bounds = bounds.trim_matches(['(', ']', '[', ')', ' ']);
                let bounds = bounds.split_once("], Count").map_or(bounds, |(b, _)| b);
                if let Some((lower, upper)) = bounds.split_once(", ")
                    && let (Ok(lower), Ok(upper)) = (lower.parse(), upper.parse())
                    && count > 0
                {
                    self.spans.push((lower, upper, count));
                }
            }
            _ => {}
        }
    }

    /// `name{label="value"}`, to find it by.
    pub fn name(&self) -> String {
        let labels = self.labels.iter();
        let labels: Vec<_> = labels
            .map(|(name, value)| format!("{name}={value:?}"))
            .collect();
        format!("{}{{{}}}", self.metric, labels.join(","))
    }
}

/// Without the sequences that colour a terminal.
fn plain(line: &str) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("\u{1b}[") {
        out.push_str(before);
        rest = after.split_once('m').map_or("", |(_, rest)| rest);
    }
    out + rest
}

impl Collector {
    /// A collector that answers when this returns. `None` if there is none here.
    pub fn start() -> Option<Collector> {
        parts::rotel()?;
        let mut collector = Collector::down()?;
        collector.restart();
        Some(collector)
    }

    /// The ports of a collector that is not there yet. `None` if there is none here.
    pub fn down() -> Option<Collector> {
        parts::rotel()?;
        Some(Collector {
            grpc: Port::reserve(),
            http: Port::reserve(),
            heard: Arc::default(),
            running: None,
            folder: tempfile::tempdir().unwrap_or_else(|why| panic!("no folder: {why}")),
        })
    }

    /// Where it receives by HTTP.
    pub fn http_url(&self) -> String {
        format!("http://{}", self.http.address())
    }

    /// Where it receives by gRPC.
    pub fn grpc_url(&self) -> String {
        format!("http://{}", self.grpc.address())
    }

    /// SIGKILL: nobody is told.
    pub fn kill(&mut self) {
        self.running = None;
    }

    /// Starts it again on the same ports. Kills it first if it runs.
    pub fn restart(&mut self) {
        self.kill();
        let program = parts::rotel().unwrap_or_else(|| panic!("no rotel"));
        let file = |name: &str| self.folder.path().join(name).display().to_string();
        let mut running = Running::start(
            Command::new(program)
                .args(["start", "--exporter", "blackhole"])
                .args([
                    "--debug-log",
                    "metrics",
                    "--debug-log-verbosity",
                    "detailed",
                ])
                .args(["--pid-file", &file("pid"), "--log-file", &file("log")])
                .args(["--otlp-grpc-endpoint", &self.grpc.address().to_string()])
                .args(["--otlp-http-endpoint", &self.http.address().to_string()])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::null()),
        )
        .unwrap_or_else(|why| panic!("rotel did not start: {why}"));
        let Some(stdout) = running.child().stdout.take() else {
            panic!("no standard output");
        };
        let heard = self.heard.clone();
        // Ends with the collector, whose end closes the pipe.
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
                heard.line(&plain(&line));
            }
        });
        self.running = Some(running);
        let address = self.http.address();
        self.wait_for("it to listen", |_| {
            http::get(address, "/v1/metrics", &[]).ok().map(drop)
        });
    }

    /// SIGSTOP: its connections stay open, and nothing answers.
    pub fn freeze(&mut self) {
        let frozen = self.signal(Signal::STOP);
        let status = waitpid(Some(frozen), WaitOptions::UNTRACED)
            .unwrap_or_else(|why| panic!("not frozen: {why}"));
        assert!(
            status.is_some_and(|(_, status)| status.stopped()),
            "rotel ended instead of freezing: {status:?}\n{}",
            self.log()
        );
    }

    /// SIGCONT, after [`freeze`](Collector::freeze).
    pub fn thaw(&mut self) {
        let _ = self.signal(Signal::CONT);
    }

    fn signal(&mut self, signal: Signal) -> Pid {
        let Some(running) = &mut self.running else {
            panic!("rotel is down");
        };
        let id = i32::try_from(running.child().id()).unwrap_or(0);
        let Some(pid) = Pid::from_raw(id) else {
            panic!("no process {id}");
        };
        kill_process(pid, signal).unwrap_or_else(|why| panic!("{signal:?}: {why}"));
        pid
    }

    /// All points so far, in the order in which they came. The last one may still be on its way.
    pub fn points(&self) -> Vec<Point> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let mut points = heard.points.clone();
        points.extend(heard.reading.point.clone());
        points
    }

    /// Everything it printed so far.
    pub fn log(&self) -> String {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.log.clone()
    }

    /// Looks again until there is an answer, and fails the test after a minute without.
    pub fn wait_for<T>(&self, what: &str, mut probe: impl FnMut(&[Point]) -> Option<T>) -> T {
        let begin = Instant::now();
        loop {
            if let Some(answer) = probe(&self.points()) {
                return answer;
            }
            assert!(
                begin.elapsed() < DEADLINE,
                "waited in vain for {what}\n{}",
                self.log()
            );
            thread::sleep(POLL);
        }
    }

    /// Waits for the latest point of each of these to have this value.
    pub fn wait_for_values(&self, wanted: &BTreeMap<String, f64>) {
        self.wait_for(&format!("{wanted:?}"), |points| {
            let mut latest = BTreeMap::new();
            for point in points {
                latest.insert(point.name(), point.value);
            }
            let is_there = |(name, value): (&String, &f64)| latest.get(name) == Some(&Some(*value));
            wanted.iter().all(is_there).then_some(())
        });
    }
}
