//! A real Prometheus server that scrapes exporters of ours and answers queries.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{http, parts, process::Running};

/// How long a server may take to start, or to show what a test waits for. Generous: it only bounds a failing test.
const DEADLINE: Duration = Duration::from_secs(60);

/// How often its API is asked while waiting. Prometheus has no way to tell us of a scrape.
const POLL: Duration = Duration::from_millis(50);

/// A running server; stopped when dropped.
#[derive(Debug)]
pub struct Prometheus {
    address: SocketAddr,
    log: Arc<Mutex<String>>,
    // Before the folder: the server is stopped first, and then its files are removed.
    _server: Running,
    _folder: TempDir,
}

/// One series of an answer, with its value at the time of the query.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Without `__name__`, `job` and `instance`.
    pub labels: BTreeMap<String, String>,
    /// NaN and the infinities included.
    pub value: f64,
}

impl Prometheus {
    /// Scrapes each exporter five times a second, as the job of the given name. `None` if there is no Prometheus here.
    pub fn scraping(targets: &[(&str, SocketAddr)]) -> Option<Prometheus> {
        Prometheus::with(&Options::default(), targets)
    }

    /// As [`scraping`](Prometheus::scraping), with options.
    pub fn with(options: &Options, targets: &[(&str, SocketAddr)]) -> Option<Prometheus> {
        let program = parts::prometheus_program("prometheus")?;
        Some(Prometheus::of(&program, options, targets))
    }

    /// As [`with`](Prometheus::with), of the release that this program is.
    pub fn of(program: &Path, options: &Options, targets: &[(&str, SocketAddr)]) -> Prometheus {
        Prometheus::start(program.to_owned(), options, targets)
            .unwrap_or_else(|why| panic!("{} did not start: {why}", program.display()))
    }

    /// Its version, as it says itself.
    pub fn version(&self) -> String {
        let answer = self.api("/api/v1/status/buildinfo");
        answer["data"]["version"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    fn start(
        program: PathBuf,
        options: &Options,
        targets: &[(&str, SocketAddr)],
    ) -> Result<Prometheus, String> {
        let folder = tempfile::tempdir().map_err(|why| why.to_string())?;
        let config = folder.path().join("prometheus.yml");
        std::fs::write(&config, configuration(options, targets)).map_err(|why| why.to_string())?;
        let announced = Announced::start(
            Command::new(program)
                .arg(format!("--config.file={}", config.display()))
                .arg(format!(
                    "--storage.tsdb.path={}",
                    folder.path().join("data").display()
                ))
                .args(
                    options
                        .features
                        .iter()
                        .map(|f| format!("--enable-feature={f}")),
                )
                .arg("--web.listen-address=127.0.0.1:0"),
        )?;
        let server = Prometheus {
            address: announced.address,
            log: announced.log,
            _server: announced.running,
            _folder: folder,
        };
        server.wait_for("the server to be ready", |server| {
            http::get(server.address, "/-/ready", &[])
                .is_ok_and(|answer| answer.status == 200)
                .then_some(())
        });
        Ok(server)
    }

    /// The instant vector that a PromQL expression yields now.
    pub fn query(&self, expression: &str) -> Vec<Sample> {
        let answer = self.api(&format!(
            "/api/v1/query?query={}",
            http::percent_encoded(expression)
        ));
        let series = answer["data"]["result"]
            .as_array()
            .unwrap_or_else(|| panic!("{expression}: {answer}"));
        series
            .iter()
            .map(|series| sample(series).unwrap_or_else(|| panic!("{expression}: {series}")))
            .collect()
    }

    /// The value of an expression that yields exactly one series; otherwise `None`.
    pub fn value(&self, expression: &str) -> Option<f64> {
        match &*self.query(expression) {
            [sample] => Some(sample.value),
            _ => None,
        }
    }

    /// What the server says of the exporters: `health`, `lastError`, `scrapeUrl` and more of each.
    pub fn targets(&self) -> Vec<Value> {
        let answer = self.api("/api/v1/targets");
        answer["data"]["activeTargets"]
            .as_array()
            .unwrap_or_else(|| panic!("no targets in {answer}"))
            .clone()
    }

    /// What the server knows of a metric's type, help and unit.
    pub fn metadata(&self, metric: &str) -> Vec<Value> {
        let answer = self.api(&format!("/api/v1/metadata?metric={metric}"));
        answer["data"][metric]
            .as_array()
            .cloned()
            .unwrap_or_default()
    }

    /// Labels and value of each exemplar that the server has of the series which an expression names.
    pub fn exemplars(&self, expression: &str) -> Vec<(BTreeMap<String, String>, f64)> {
        let answer = self.api(&format!(
            "/api/v1/query_exemplars?query={}&start=0&end=9999999999",
            http::percent_encoded(expression)
        ));
        let series = answer["data"].as_array().cloned().unwrap_or_default();
        let all = series.iter().filter_map(|s| s["exemplars"].as_array());
        let exemplar = |it: &Value| {
            let labels = it["labels"].as_object()?.iter();
            let labels = labels.map(|(n, v)| Some((n.clone(), v.as_str()?.to_owned())));
            Some((
                labels.collect::<Option<_>>()?,
                number(it["value"].as_str()?)?,
            ))
        };
        all.flatten()
            .map(|it| exemplar(it).unwrap_or_else(|| panic!("{it}")))
            .collect()
    }

    fn api(&self, path: &str) -> Value {
        let answer =
            http::get(self.address, path, &[]).unwrap_or_else(|why| panic!("{path}: {why}"));
        let json: Value = serde_json::from_str(&answer.body)
            .unwrap_or_else(|why| panic!("{path}: {why}: {answer:?}"));
        assert_eq!(json["status"], "success", "{path}: {json}");
        json
    }

    /// Asks again until there is an answer, and fails the test after a minute without.
    pub fn wait_for<T>(&self, what: &str, mut probe: impl FnMut(&Prometheus) -> Option<T>) -> T {
        let begin = Instant::now();
        loop {
            if let Some(answer) = probe(self) {
                return answer;
            }
            assert!(
                begin.elapsed() < DEADLINE,
                "waited in vain for {what}\n{}",
                self.state()
            );
            thread::sleep(POLL);
        }
    }

    /// Waits until an expression has this value.
    pub fn wait_for_value(&self, expression: &str, wanted: f64) {
        self.wait_for(&format!("{expression} to be {wanted}"), |server| {
            server.value(expression).filter(|&value| value == wanted)
        });
    }

    fn state(&self) -> String {
        let mut state = String::new();
        if let Ok(answer) = http::get(self.address, "/api/v1/targets", &[]) {
            let _ = writeln!(state, "targets: {}", answer.body);
        }
        let _ = write!(
            state,
            "log:\n{}",
            self.log.lock().unwrap_or_else(PoisonError::into_inner)
        );
        state
    }
}

/// What a server is told beside its targets.
#[derive(Debug, Default)]
pub struct Options {
    /// Names for `--enable-feature`.
    pub features: &'static [&'static str],
    /// Whether labels `job` and `instance` of what is scraped stay, as they should for a Pushgateway.
    pub honor_labels: bool,
}

fn configuration(options: &Options, targets: &[(&str, SocketAddr)]) -> String {
    let mut config = String::from(
        "global:\n  scrape_interval: 200ms\n  scrape_timeout: 200ms\nscrape_configs:\n",
    );
    for (job, address) in targets {
        let _ = writeln!(
            config,
            "  - job_name: {job}\n    honor_labels: {}\n    static_configs:\n      - targets: ['{address}']",
            options.honor_labels
        );
    }
    config
}

/// A server of the Prometheus project that was started on a free port, and has said which.
#[derive(Debug)]
pub(crate) struct Announced {
    pub(crate) running: Running,
    pub(crate) address: SocketAddr,
    /// All it has said so far.
    pub(crate) log: Arc<Mutex<String>>,
}

impl Announced {
    pub(crate) fn start(command: &mut Command) -> Result<Announced, String> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut running = Running::start(command).map_err(|why| why.to_string())?;
        let stderr = running.child().stderr.take().ok_or("no standard error")?;
        let log = Arc::new(Mutex::new(String::new()));
        let (found, address) = mpsc::channel();
        let copy = Arc::clone(&log);
        // Ends with the server, whose end closes the pipe.
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                // It chose the port itself, and only its log says which.
                if let Some(address) = listening_on(&line) {
                    let _ = found.send(address);
                }
                let mut log = copy.lock().unwrap_or_else(PoisonError::into_inner);
                log.push_str(&line);
                log.push('\n');
            }
        });
        let address = address.recv_timeout(DEADLINE).map_err(|_| {
            format!(
                "it never listened; its log:\n{}",
                log.lock().unwrap_or_else(PoisonError::into_inner)
            )
        })?;
        Ok(Announced {
            running,
            address,
            log,
        })
    }
}

fn listening_on(line: &str) -> Option<SocketAddr> {
    if !line.contains("msg=\"Listening on\"") {
        return None;
    }
    line.split(' ')
        .find_map(|word| word.strip_prefix("address=")?.parse().ok())
}

fn sample(series: &Value) -> Option<Sample> {
    let labels = series["metric"]
        .as_object()?
        .iter()
        .filter(|(name, _)| !matches!(name.as_str(), "__name__" | "job" | "instance"))
        .map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
        .collect::<Option<_>>()?;
    let value = number(series["value"][1].as_str()?)?;
    Some(Sample { labels, value })
}

fn number(text: &str) -> Option<f64> {
    match text {
        "+Inf" => Some(f64::INFINITY),
        "-Inf" => Some(f64::NEG_INFINITY),
        number => number.parse().ok(),
    }
}
