//! Which alerts JetStream takes, as far as is known on the present connection: a question to the server for each connect, so
//! that no alert has to wait for one of its own.

use std::{sync::Arc, time::Duration};

use async_nats::{Request, RequestErrorKind};
use serde_json::{Value, json};

use super::{Core, Delivery};
use crate::nats::connection::Denial;

/// For an answer of JetStream. It gives none to those who may not ask.
const API_TIMEOUT: Duration = Duration::from_secs(2);
/// How many pages of streams are looked at.
const PAGES_MAX: usize = 4;

/// Of a stream that we make. Longer than most disturbances, so that what is sent again after one is still known.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(600);
const MAX_AGE: Duration = Duration::from_secs(7 * 86_400);
const MAX_BYTES: u64 = 256 << 20;

/// How alerts get to the server, on the present connection.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Route {
    /// It has to be found out first.
    Unknown,
    /// All over core NATS.
    Core,
    /// Through these streams; what none of them takes over core NATS, or not at all where a stream is demanded.
    Streams {
        streams: Arc<[Stream]>,
        demanded: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stream {
    pub(super) name: String,
    pub(super) subjects: Vec<String>,
    /// Bytes of a message, with its headers, that it takes; `None`: whatever the server does.
    pub(super) message_max: Option<usize>,
    /// It tells publishers what it has. With `no_ack`, which a server demands of a stream on `>`, it never does.
    pub(super) acks: bool,
    /// It takes nothing any more.
    pub(super) sealed: bool,
    /// It takes only what this other stream has.
    pub(super) mirror: Option<String>,
}

/// How one alert gets there.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Way {
    Core,
    /// Through a stream.
    Stream {
        name: String,
        /// As of the [`Stream`].
        message_max: Option<usize>,
        /// As of the [`Stream`]. Without, it is confirmed as over core NATS.
        acks: bool,
        /// Core NATS is no way for what the stream does not take.
        demanded: bool,
    },
    /// Not at all: for people, why not.
    Nowhere(String),
}

impl Route {
    pub(super) fn way(&self, subject: &str) -> Way {
        let (streams, demanded) = match self {
            Route::Core => return Way::Core,
            Route::Unknown => return Way::Nowhere("not known yet".to_owned()),
            Route::Streams { streams, demanded } => (streams, *demanded),
        };
        let takes = |stream: &&Stream| stream.subjects.iter().any(|s| matches(s, subject));
        match streams.iter().find(takes) {
            Some(stream) if stream.sealed && demanded => Way::Nowhere(format!(
                "stream {:?} is sealed, and takes nothing any more: make another one, or use another Delivery",
                stream.name
            )),
            Some(stream) if stream.sealed => Way::Core,
            Some(stream) => Way::Stream {
                name: stream.name.clone(),
                message_max: stream.message_max,
                acks: stream.acks,
                demanded,
            },
            None if demanded => Way::Nowhere(not_taken(streams, subject)),
            None => Way::Core,
        }
    }

    /// For people.
    pub(super) fn words(&self) -> String {
        match self {
            Route::Unknown => "not known yet".to_owned(),
            Route::Core => "core NATS".to_owned(),
            Route::Streams { streams, .. } => {
                let names: Vec<_> = streams.iter().map(Stream::words).collect();
                format!("stream {}", names.join(", "))
            }
        }
    }
}

impl Stream {
    /// For people.
    fn words(&self) -> String {
        let name = &self.name;
        match self {
            _ if self.sealed => format!("{name} (sealed: it takes nothing)"),
            _ if !self.acks => format!("{name} (no_ack: confirmed as over core NATS)"),
            _ => name.clone(),
        }
    }
}

fn not_taken(streams: &[Stream], subject: &str) -> String {
    let of = |stream: &Stream| match &stream.mirror {
        Some(of) => format!(
            "{} is a mirror, and takes only what {of} has: name that one",
            stream.name
        ),
        None => format!(
            "{} takes {}; add the subject to it",
            stream.name,
            stream.subjects.join(", ")
        ),
    };
    let streams: Vec<_> = streams.iter().map(of).collect();
    format!("no stream takes {subject:?}: {}", streams.join("; "))
}

/// Whether a pattern of subjects matches one.
fn matches(pattern: &str, subject: &str) -> bool {
    let mut subject = subject.split('.');
    let mut pattern = pattern.split('.').peekable();
    while let Some(wanted) = pattern.next() {
        if wanted == ">" && pattern.peek().is_none() {
            return subject.next().is_some();
        }
        match subject.next() {
            Some(token) if wanted == "*" || wanted == token => {}
            _ => return false,
        }
    }
    subject.next().is_none()
}

/// `Err` with why a stream can't be called that.
pub(super) fn check_stream_name(name: &str) -> Result<(), &'static str> {
    let forbidden =
        |c: char| c.is_whitespace() || c.is_control() || matches!(c, '.' | '*' | '>' | '/' | '\\');
    if name.is_empty() || name.len() > 255 || name.contains(forbidden) {
        return Err(
            "a stream's name is 1 to 255 characters without spaces, '.', '*', '>', '/' and '\\'; metricbus-alerts would be right",
        );
    }
    Ok(())
}

/// Why it is not known which streams there are.
#[derive(Debug, PartialEq)]
enum Failed {
    /// There is no JetStream, …
    Absent,
    /// … or it does not answer, as to those who may not ask.
    Silent,
    /// The stream is not there.
    NoStream,
    Other(String),
}

/// # Errors
///
/// For people, why alerts have to wait.
pub(super) async fn find(core: &Core) -> Result<Route, String> {
    let pattern = core.alert_pattern();
    match &core.delivery {
        Delivery::Core => Ok(Route::Core),
        Delivery::Auto => Ok(match streams_of(core, &pattern).await {
            Ok(streams) if !streams.is_empty() => Route::Streams {
                streams: streams.into(),
                demanded: false,
            },
            Ok(_) | Err(Failed::Absent) => Route::Core,
            Err(failed) => {
                let why = match failed {
                    Failed::Other(why) => why,
                    _ => "JetStream does not answer, as to users who may not publish to $JS.API.STREAM.LIST".to_owned(),
                };
                tracing::info!(
                    "metricbus forwarder of {}: it is not known whether a stream takes {pattern} ({why}); alerts go over core NATS",
                    core.source
                );
                Route::Core
            }
        }),
        Delivery::JetStream { stream, create } => {
            let found = match info(core, stream).await {
                Err(Failed::NoStream) if *create => {
                    let made = make(core, stream, &pattern).await;
                    if made.is_ok() {
                        tracing::info!(
                            "metricbus forwarder of {}: made stream {stream} for {pattern}",
                            core.source
                        );
                    }
                    made
                }
                found => found,
            };
            match found {
                Ok(stream) => Ok(Route::Streams {
                    streams: [stream].into(),
                    demanded: true,
                }),
                Err(Failed::NoStream) => Err(format!(
                    "stream {stream:?} does not exist: make it, with subjects that take {pattern}, or let it be made with create: true"
                )),
                Err(Failed::Absent) => Err(format!(
                    "stream {stream:?} is demanded and there is no JetStream: enable it at the server and for this account, or use another Delivery"
                )),
                Err(Failed::Silent) => Err(format!(
                    "JetStream does not answer about stream {stream:?}: it may be slow, without a leader, or this user may not publish to $JS.API.STREAM.INFO.{stream}"
                )),
                Err(Failed::Other(why)) => Err(format!("stream {stream:?}: {why}")),
            }
        }
    }
}

async fn streams_of(core: &Core, pattern: &str) -> Result<Vec<Stream>, Failed> {
    let mut found = Vec::new();
    for _ in 0..PAGES_MAX {
        let question = json!({ "subject": pattern, "offset": found.len() });
        let answer = ask(core, "STREAM.LIST", &question).await?;
        let page = answer["streams"].as_array().map_or(&[][..], Vec::as_slice);
        found.extend(page.iter().map(|stream| read_stream(&stream["config"])));
        let total = answer["total"].as_u64().unwrap_or(0);
        if page.is_empty() || found.len() as u64 >= total {
            break;
        }
    }
    Ok(found)
}

async fn info(core: &Core, name: &str) -> Result<Stream, Failed> {
    let answer = ask(core, &format!("STREAM.INFO.{name}"), &Value::Null).await?;
    Ok(read_stream(&answer["config"]))
}

async fn make(core: &Core, name: &str, pattern: &str) -> Result<Stream, Failed> {
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let config = json!({
        "name": name,
        "description": "Alerts of metricbus",
        "subjects": [pattern],
        "retention": "limits",
        "storage": "file",
        "discard": "old",
        "max_age": nanos(MAX_AGE),
        "max_bytes": MAX_BYTES,
        "max_msgs": -1,
        "max_consumers": -1,
        "num_replicas": 1,
        "duplicate_window": nanos(DUPLICATE_WINDOW),
    });
    let answer = ask(core, &format!("STREAM.CREATE.{name}"), &config).await?;
    Ok(read_stream(&answer["config"]))
}

fn read_stream(config: &Value) -> Stream {
    let subjects = config["subjects"].as_array().map_or(&[][..], Vec::as_slice);
    Stream {
        name: config["name"].as_str().unwrap_or_default().to_owned(),
        subjects: subjects
            .iter()
            .filter_map(|subject| Some(subject.as_str()?.to_owned()))
            .collect(),
        // -1: no limit.
        message_max: config["max_msg_size"]
            .as_u64()
            .map(|max| usize::try_from(max).unwrap_or(usize::MAX)),
        acks: config["no_ack"] != true,
        sealed: config["sealed"] == true,
        mirror: config["mirror"]["name"].as_str().map(str::to_owned),
    }
}

async fn ask(core: &Core, question: &str, body: &Value) -> Result<Value, Failed> {
    let client = core.connection.client();
    let payload = match body {
        Value::Null => Vec::new(),
        body => body.to_string().into_bytes(),
    };
    // An inbox of its own is forgotten when no answer comes; the client's shared one is not.
    let request = Request::new()
        .payload(payload.into())
        .inbox(client.new_inbox())
        .timeout(Some(API_TIMEOUT));
    let subject = format!("$JS.API.{question}");
    let denied = denied(core, &subject);
    let asked = client.send_request(subject.clone(), request);
    // Handing it over waits as well, where there is no connection any more.
    let asked = tokio::time::timeout(2 * API_TIMEOUT, asked);
    let answer = tokio::select! {
        asked = asked => asked,
        () = denied => return Err(Failed::Silent),
    };
    let answer = match answer {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            return Err(match error.kind() {
                RequestErrorKind::NoResponders => Failed::Absent,
                RequestErrorKind::TimedOut => Failed::Silent,
                _ => Failed::Other(error.to_string()),
            });
        }
        Err(_) => return Err(Failed::Silent),
    };
    let answer: Value = serde_json::from_slice(&answer.payload)
        .map_err(|error| Failed::Other(format!("JetStream's answer is no JSON: {error}")))?;
    match read_error(&answer) {
        None => Ok(answer),
        Some((_, NOT_ENABLED | NOT_ENABLED_FOR_ACCOUNT)) => Err(Failed::Absent),
        Some((_, STREAM_NOT_FOUND)) => Err(Failed::NoStream),
        Some((text, code)) => Err(Failed::Other(format!("JetStream says: {text} ({code})"))),
    }
}

/// Is done when publishing to this subject is denied from now on, or receiving answers is.
async fn denied(core: &Core, subject: &str) {
    let mut link = core.connection.watch();
    let mut seen = core.connection.denied();
    loop {
        link.borrow_and_update();
        let (denials, now_seen) = core.connection.denied_since(seen);
        seen = now_seen;
        let ours = |denial: &Denial| {
            if denial.publish {
                denial.subject == subject
            } else {
                core.connection.is_inbox(&denial.subject)
            }
        };
        if denials.iter().any(ours) || link.changed().await.is_err() {
            return;
        }
    }
}

/// Codes of JetStream's errors.
const NOT_ENABLED: u64 = 10076;
const NOT_ENABLED_FOR_ACCOUNT: u64 = 10039;
const STREAM_NOT_FOUND: u64 = 10059;
pub(super) const MESSAGE_TOO_LARGE: u64 = 10054;
/// No leader is there yet, or another stream takes the subject by now: it helps to ask again.
pub(super) const PASSING: [u64; 3] = [10008, 10009, 10060];

/// The error that an answer of JetStream tells, and its code.
pub(super) fn read_error(answer: &Value) -> Option<(String, u64)> {
    let error = answer.get("error")?;
    let code = error["err_code"].as_u64().or(error["code"].as_u64());
    let text = error["description"].as_str().unwrap_or("no reason given");
    Some((text.to_owned(), code.unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_the_server_has_it() {
        for (pattern, subject, expected) in [
            ("a.b", "a.b", true),
            ("a.b", "a.b.c", false),
            ("a.b.c", "a.b", false),
            ("a.*", "a.b", true),
            ("a.*", "a", false),
            ("a.>", "a.b.c", true),
            ("a.>", "a", false),
            (">", "a", true),
            ("*.*", "a.b", true),
            ("a.=2A", "a.b", false),
        ] {
            assert_eq!(matches(pattern, subject), expected, "{pattern} {subject}");
        }
    }

    #[test]
    fn what_no_stream_takes_goes_over_core_unless_a_stream_is_demanded() {
        let streams: Arc<[Stream]> = [Stream {
            name: "S".to_owned(),
            subjects: vec!["a.*.firing".to_owned()],
            message_max: None,
            acks: true,
            sealed: false,
            mirror: None,
        }]
        .into();
        let route = |demanded| Route::Streams {
            streams: streams.clone(),
            demanded,
        };
        let stream = Way::Stream {
            name: "S".to_owned(),
            message_max: None,
            acks: true,
            demanded: false,
        };
        assert_eq!(route(false).way("a.b.firing"), stream);
        assert_eq!(route(false).way("a.b.resolved"), Way::Core);
        let Way::Nowhere(why) = route(true).way("a.b.resolved") else {
            panic!("it has no way");
        };
        assert!(
            why.contains("a.b.resolved") && why.contains("a.*.firing"),
            "{why}"
        );
    }

    #[test]
    fn how_large_a_message_of_a_stream_may_be_is_read() {
        let of = |max: Value| read_stream(&json!({"name": "S", "max_msg_size": max})).message_max;
        assert_eq!(of(json!(2048)), Some(2048));
        assert_eq!(of(json!(-1)), None);
        assert_eq!(of(Value::Null), None);
    }

    #[test]
    fn what_a_stream_takes_and_whether_it_says_so_is_read() {
        let route = |more: Value, demanded| {
            let mut config = json!({"name": "S", "subjects": ["a.>"]});
            let fields = config.as_object_mut().unwrap();
            fields.extend(more.as_object().unwrap().clone());
            Route::Streams {
                streams: [read_stream(&config)].into(),
                demanded,
            }
        };
        let way = |more: Value, demanded| route(more, demanded).way("a.b");
        let acks = |way| matches!(way, Way::Stream { acks: true, .. });
        assert!(acks(way(json!({}), true)));
        assert!(acks(way(json!({"no_ack": false, "sealed": false}), true)));
        for demanded in [false, true] {
            let way = way(json!({"no_ack": true}), demanded);
            assert!(matches!(way, Way::Stream { acks: false, .. }), "{way:?}");
        }
        assert_eq!(way(json!({"sealed": true}), false), Way::Core);
        let Way::Nowhere(why) = way(json!({"sealed": true}), true) else {
            panic!("it has no way");
        };
        assert!(why.contains("sealed"), "{why}");
        let mirror = json!({"subjects": null, "mirror": {"name": "ORIGIN"}});
        let Way::Nowhere(why) = way(mirror, true) else {
            panic!("it has no way");
        };
        assert!(why.contains("ORIGIN"), "{why}");
    }

    #[test]
    fn errors_of_jetstream_are_understood() {
        let answer =
            json!({"error": {"code": 404, "err_code": 10059, "description": "stream not found"}});
        assert_eq!(
            read_error(&answer),
            Some(("stream not found".to_owned(), 10059))
        );
        assert_eq!(read_error(&json!({"stream": "S", "seq": 1})), None);
    }
}
