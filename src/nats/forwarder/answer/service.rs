//! The service API of NATS: what `nats service list`, `info` and `stats` show of a source.
//!
//! The client's own implementation is not used, for three reasons. Its answers have one part; it sends errors without a
//! body, while a person who asks by hand should see what is wrong; and all processes that answer the same subject share
//! its queue, so that a dead one whose connection the server still holds would get half of the questions. Its types are
//! used.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Mutex,
    time::Duration,
};

use async_nats::{
    datetime::{self, DateTime},
    service::{self, PingResponse, endpoint},
};

use crate::{
    SourceId,
    nats::subject::{Query, Subjects, source_tokens},
    sync::lock,
};

/// The name of the service: that of all sources.
pub(super) const NAME: &str = "metricbus";

const DESCRIPTION: &str =
    "Metrics, windows, rules and alerts of a process, asked for when they are wanted.";

/// What can be asked of any service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Ping,
    Info,
    Stats,
}

impl Verb {
    const ALL: [Verb; 3] = [Verb::Ping, Verb::Info, Verb::Stats];

    fn as_str(self) -> &'static str {
        match self {
            Verb::Ping => "PING",
            Verb::Info => "INFO",
            Verb::Stats => "STATS",
        }
    }

    /// The verb of a subject; `None`: it is none of them.
    pub(super) fn of(subject: &str) -> Option<Verb> {
        let verb = subject.strip_prefix("$SRV.")?.split('.').next()?;
        Verb::ALL.into_iter().find(|v| v.as_str() == verb)
    }
}

/// A source as a service.
pub(super) struct Service {
    id: String,
    started: DateTime,
    metadata: HashMap<String, String>,
    /// By question, with its subject.
    endpoints: Vec<(Query, String)>,
    seen: Mutex<HashMap<Query, Seen>>,
}

#[derive(Clone, Default)]
struct Seen {
    answered: usize,
    failed: usize,
    took: Duration,
    last_error: Option<service::error::Error>,
}

impl Service {
    pub(super) fn new(source: &SourceId, epoch: u64, prefix: &str, subjects: &Subjects) -> Service {
        let metadata = [
            ("source", source.to_string()),
            ("epoch", epoch.to_string()),
            ("prefix", prefix.to_owned()),
        ];
        Service {
            id: id(source, epoch),
            started: datetime::now(),
            metadata: metadata
                .map(|(name, value)| (name.to_owned(), value))
                .into(),
            endpoints: Query::ALL
                .map(|query| (query, subjects.query(source, query)))
                .into(),
            seen: Mutex::default(),
        }
    }

    /// Where questions to it, and to all services, come in.
    pub(super) fn subjects(source: &SourceId, epoch: u64) -> Vec<String> {
        let id = id(source, epoch);
        let of = |verb: Verb| {
            let verb = verb.as_str();
            [
                format!("$SRV.{verb}"),
                format!("$SRV.{verb}.{NAME}"),
                format!("$SRV.{verb}.{NAME}.{id}"),
            ]
        };
        Verb::ALL.into_iter().flat_map(of).collect()
    }

    pub(super) fn answered(&self, query: Query, took: Duration) {
        let mut seen = lock(&self.seen);
        let seen = seen.entry(query).or_default();
        seen.answered += 1;
        seen.took = seen.took.saturating_add(took);
    }

    pub(super) fn failed(&self, query: Query, code: u16, why: &str, took: Duration) {
        self.answered(query, took);
        let mut seen = lock(&self.seen);
        let seen = seen.entry(query).or_default();
        seen.failed += 1;
        seen.last_error = Some(service::error::Error {
            status: why.to_owned(),
            code: code.into(),
        });
    }

    /// The answer to a verb, in JSON.
    pub(super) fn respond(&self, verb: Verb) -> Vec<u8> {
        let (name, version) = (NAME.to_owned(), env!("CARGO_PKG_VERSION").to_owned());
        let json = match verb {
            Verb::Ping => serde_json::to_vec(&PingResponse {
                kind: "io.nats.micro.v1.ping_response".to_owned(),
                name,
                id: self.id.clone(),
                version,
                metadata: self.metadata.clone(),
            }),
            Verb::Info => serde_json::to_vec(&service::Info {
                kind: "io.nats.micro.v1.info_response".to_owned(),
                name,
                id: self.id.clone(),
                description: DESCRIPTION.to_owned(),
                version,
                metadata: self.metadata.clone(),
                endpoints: self.infos(),
            }),
            Verb::Stats => serde_json::to_vec(&service::Stats {
                kind: "io.nats.micro.v1.stats_response".to_owned(),
                name,
                id: self.id.clone(),
                version,
                started: self.started,
                endpoints: self.stats(),
            }),
        };
        // Writing plain values into memory does not fail.
        json.unwrap_or_default()
    }

    fn infos(&self) -> Vec<endpoint::Info> {
        let info = |(query, subject): &(Query, String)| endpoint::Info {
            name: query.as_str().to_owned(),
            subject: subject.clone(),
            queue_group: String::new(),
            metadata: HashMap::new(),
        };
        self.endpoints.iter().map(info).collect()
    }

    fn stats(&self) -> Vec<endpoint::Stats> {
        let seen = lock(&self.seen);
        let stats = |(query, subject): &(Query, String)| {
            let seen = seen.get(query).cloned().unwrap_or_default();
            let answered = u32::try_from(seen.answered).unwrap_or(u32::MAX);
            endpoint::Stats {
                name: query.as_str().to_owned(),
                subject: subject.clone(),
                requests: seen.answered,
                errors: seen.failed,
                processing_time: seen.took,
                average_processing_time: seen.took.checked_div(answered).unwrap_or_default(),
                last_error: seen.last_error,
                data: None,
                queue_group: String::new(),
            }
        };
        self.endpoints.iter().map(stats).collect()
    }
}

/// Which instance of the service: another one for each life of each source.
fn id(source: &SourceId, epoch: u64) -> String {
    let mut hasher = DefaultHasher::new();
    source_tokens(source).hash(&mut hasher);
    format!("{epoch:x}{:016x}", hasher.finish())
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn service() -> Service {
        let source = SourceId::new("n", "c", "i");
        let subjects = Subjects::new("metricbus").unwrap();
        Service::new(&source, 7, "metricbus", &subjects)
    }

    fn respond(service: &Service, verb: Verb) -> Value {
        serde_json::from_slice(&service.respond(verb)).unwrap()
    }

    #[test]
    fn it_says_who_it_is_where_it_can_be_asked_and_how_often_it_was() {
        let service = service();
        let ping = respond(&service, Verb::Ping);
        assert_eq!(ping["type"], "io.nats.micro.v1.ping_response");
        assert_eq!(ping["name"], "metricbus");
        assert_eq!(ping["metadata"]["source"], "n/c/i");
        assert_eq!(ping["metadata"]["epoch"], "7");
        let info = respond(&service, Verb::Info);
        assert_eq!(info["id"], ping["id"]);
        assert_eq!(info["endpoints"][1]["name"], "snapshot");
        assert_eq!(
            info["endpoints"][1]["subject"],
            "metricbus.v1.n.c.i.q.snapshot"
        );
        service.answered(Query::Window, Duration::from_millis(2));
        service.failed(Query::Window, 400, "no selector", Duration::from_millis(4));
        let stats = respond(&service, Verb::Stats);
        let window = &stats["endpoints"][2];
        assert_eq!(window["num_requests"], 2);
        assert_eq!(window["num_errors"], 1);
        assert_eq!(window["average_processing_time"], 3_000_000);
        assert_eq!(window["last_error"], "400:no selector");
        assert_eq!(stats["endpoints"][0]["num_requests"], 0);
    }

    #[test]
    fn it_hears_what_is_asked_of_all_of_its_kind_and_of_itself_alone() {
        let service = service();
        let subjects = Service::subjects(&SourceId::new("n", "c", "i"), 7);
        assert_eq!(subjects.len(), 9);
        assert!(subjects.contains(&"$SRV.PING".to_owned()));
        assert!(subjects.contains(&format!("$SRV.INFO.metricbus.{}", service.id)));
        for subject in &subjects {
            assert!(Verb::of(subject).is_some(), "{subject}");
        }
        assert_eq!(Verb::of("$SRV.STATS.metricbus"), Some(Verb::Stats));
        assert_eq!(Verb::of("$SRV.NOTHING"), None);
        assert_eq!(Verb::of("metricbus.v1.n.c.i.q.info"), None);
    }

    #[test]
    fn two_lives_are_two_instances() {
        let source = SourceId::new("n", "c", "i");
        assert_ne!(id(&source, 1), id(&source, 2));
        assert_ne!(id(&source, 1), id(&SourceId::new("n", "c", "j"), 1));
    }
}
