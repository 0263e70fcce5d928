//! A real Pushgateway that keeps what is pushed to it.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{http, parts, process::Running, prometheus::Announced};

const DEADLINE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(5);

/// A running gateway; stopped when dropped.
#[derive(Debug)]
pub struct Pushgateway {
    address: SocketAddr,
    log: Arc<Mutex<String>>,
    _server: Running,
}

/// A group: its labels, and of each metric in it that has no labels of its own the value.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// The job's name among them.
    pub labels: BTreeMap<String, String>,
    /// By name; the gateway's own left out.
    pub values: BTreeMap<String, f64>,
}

impl Pushgateway {
    /// A gateway that keeps nothing beyond its life. `None` if there is none here.
    pub fn start() -> Option<Pushgateway> {
        let program = parts::pushgateway_program()?;
        let announced = Announced::start(
            Command::new(program)
                .arg("--web.listen-address=127.0.0.1:0")
                .arg("--persistence.file="),
        )
        .unwrap_or_else(|why| panic!("the Pushgateway did not start: {why}"));
        Some(Pushgateway {
            address: announced.address,
            log: announced.log,
            _server: announced.running,
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All groups, in the order of their labels.
    pub fn groups(&self) -> Vec<Group> {
        let answer = http::get(self.address, "/api/v1/metrics", &[])
            .unwrap_or_else(|why| panic!("{why}\n{}", self.state()));
        let json: Value = serde_json::from_str(&answer.body)
            .unwrap_or_else(|why| panic!("{why}: {answer:?}\n{}", self.state()));
        let data = json["data"].as_array().cloned().unwrap_or_default();
        let mut groups: Vec<Group> = data.iter().map(group).collect();
        groups.sort_by(|a, b| a.labels.cmp(&b.labels));
        groups
    }

    /// Waits until nothing is left: it answers before it has deleted.
    pub fn wait_until_empty(&self) {
        let begin = Instant::now();
        while !self.groups().is_empty() {
            assert!(
                begin.elapsed() < DEADLINE,
                "{:?} is still there\n{}",
                self.groups(),
                self.state()
            );
            thread::sleep(POLL);
        }
    }

    fn state(&self) -> String {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        format!("log:\n{log}")
    }
}

fn group(json: &Value) -> Group {
    let labels = json["labels"].as_object().into_iter().flatten();
    let mut values = BTreeMap::new();
    for (name, metric) in json.as_object().into_iter().flatten() {
        let value = metric["metrics"][0]["value"].as_str();
        if let Some(value) = value.and_then(|v| v.parse().ok())
            && !name.starts_with("push_")
        {
            values.insert(name.clone(), value);
        }
    }
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    Group {
        labels: labels.map(|(n, v)| (n.clone(), text(v))).collect(),
        values,
    }
}
