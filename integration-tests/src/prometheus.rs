//! A real Prometheus server that scrapes exporters of ours and answers queries.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::PathBuf,
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
        let program = parts::prometheus_program("prometheus")?;
        Some(
            Prometheus::start(program, targets)
                .unwrap_or_else(|why| panic!("prometheus did not start: {why}")),
        )
    }

    fn start(program: PathBuf, targets: &[(&str, SocketAddr)]) -> Result<Prometheus, String> {
        let folder = tempfile::tempdir().map_err(|why| why.to_string())?;
        let config = folder.path().join("prometheus.yml");
        std::fs::write(&config, configuration(targets)).map_err(|why| why.to_string())?;
        let mut server = Running::start(
            Command::new(program)
                .arg(format!("--config.file={}", config.display()))
                .arg(format!(
                    "--storage.tsdb.path={}",
                    folder.path().join("data").display()
                ))
                .arg("--web.listen-address=127.0.0.1:0")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::piped()),
        )
        .map_err(|why| why.to_string())?;

        let stderr = server.child().stderr.take().ok_or("no standard error")?;
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
        let server = Prometheus {
            address,
            log,
            _server: server,
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

fn configuration(targets: &[(&str, SocketAddr)]) -> String {
    let mut config = String::from(
        "global:\n  scrape_interval: 200ms\n  scrape_timeout: 200ms\nscrape_configs:\n",
    );
    for (job, address) in targets {
        let _ = writeln!(
            config,
            "  - job_name: {job}\n    static_configs:\n      - targets: ['{address}']"
        );
    }
    config
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
    let value = match series["value"][1].as_str()? {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        number => number.parse().ok()?,
    };
    Some(Sample { labels, value })
}
