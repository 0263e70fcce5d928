//! What others ask, and the answers: who we are, a snapshot, windows, rules, alerts; and the service API of NATS.
//!
//! | file | owns |
//! |---|---|
//! | `leases.rs` | what is kept as long as it is asked for: pure |
//! | `windows.rs` | windows that others look through |
//! | `rules.rs` | how all rules stand, in parts |
//! | `service.rs` | what a service says of itself |
//!
//! Whoever asks is not known and not trusted: questions are bounded in size, in how many are answered at once and in what
//! an answer may take, and one too many gets an error. Nothing here holds up alerts or pulses; frames wait while a snapshot
//! reads values, which takes some 10 ms for 100 000 series.

mod leases;
mod rules;
mod service;
mod windows;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex},
    time::Instant,
};

use async_nats::{HeaderMap, Message, Subject, Subscriber};
use bytes::Bytes;
use futures_util::{StreamExt, stream::SelectAll};
use tokio::{
    sync::Semaphore,
    task::{spawn_blocking, yield_now},
};

use self::{
    service::{Service, Verb},
    windows::Panes,
};
use super::{Core, frames::frames_of, pulse, subscribe};
use crate::{
    nats::{
        error::NatsError,
        subject::{About, PulseKind, Query, shown},
        wire::{
            WireError,
            envelope::{FRAME_TYPE, JSON_TYPE, set_alerts_from, set_error, set_part},
            frame::{Encoded, encode_json_within, encode_within},
            limits,
            query::{
                Format, decode_alerts_request, decode_snapshot_request, decode_window_request,
            },
        },
    },
    stats::bump,
    sync::lock,
};

/// Questions that are being answered at once, and those of them that go over many series.
const QUESTIONS_MAX: usize = 256;
const HEAVY_MAX: usize = 4;

/// Bytes of a question.
const QUESTION_BYTES_MAX: usize = 64 << 10;

/// Those who may wait for one and the same snapshot.
const WAITING_MAX: usize = 4_096;

const TEXT_TYPE: &str = "text/plain; charset=utf-8";

/// What is asked comes in here.
pub(super) struct Questions(SelectAll<Subscriber>);

impl Questions {
    /// Subscribes; so that whoever hears of a birth is answered.
    pub(super) async fn subscribe(core: &Core) -> Result<Questions, NatsError> {
        let mut subjects = Service::subjects(&core.source, core.epoch);
        subjects.push(core.subjects.queries(&core.source));
        let mut all = SelectAll::new();
        for subject in subjects {
            all.push(subscribe(&core.connection, subject).await?);
        }
        Ok(Questions(all))
    }
}

/// A question that could not be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Failure {
    /// As in HTTP.
    code: u16,
    why: String,
    /// From which sequence on alerts can be asked for, where that is the answer.
    alerts_from: Option<u64>,
}

impl Failure {
    fn new(code: u16, why: impl Into<String>) -> Failure {
        Failure {
            code,
            why: why.into(),
            alerts_from: None,
        }
    }

    fn wrong(why: impl Into<String>) -> Failure {
        Failure::new(400, why)
    }

    fn busy() -> Failure {
        Failure::new(503, "too much is being asked at the moment: ask again")
    }

    fn ended() -> Failure {
        Failure::new(410, "the bus has ended")
    }
}

impl From<WireError> for Failure {
    fn from(error: WireError) -> Self {
        Failure::wrong(error.to_string())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

/// What all answers share.
struct Desk {
    core: Arc<Core>,
    service: Service,
    panes: Panes,
    questions: Arc<Semaphore>,
    heavy: Semaphore,
    /// Who waits for a snapshot that has not begun, by the question.
    waiting: Mutex<HashMap<Bytes, Vec<Asked>>>,
}

/// A question, to be answered.
struct Asked {
    query: Query,
    reply: Subject,
    since: Instant,
}

pub(super) fn start(core: &Arc<Core>, questions: Questions, prefix: &str) {
    let desk = Arc::new(Desk {
        service: Service::new(&core.source, core.epoch, prefix, &core.subjects),
        core: core.clone(),
        panes: Panes::new(),
        questions: Arc::new(Semaphore::new(QUESTIONS_MAX)),
        heavy: Semaphore::new(HEAVY_MAX),
        waiting: Mutex::default(),
    });
    tokio::spawn(desk.run(questions));
}

impl Desk {
    async fn run(self: Arc<Self>, Questions(mut questions): Questions) {
        let core = &self.core;
        loop {
            let now = core.clock.now();
            let next = self.panes.expire(now);
            let idle = async {
                match next {
                    Some(next) => core.clock.sleep_until(next).await,
                    None => std::future::pending().await,
                }
            };
            let message = tokio::select! {
                () = core.ended() => return,
                () = idle => continue,
                message = questions.next() => message,
            };
            match message {
                Some(message) => self.hear(message).await,
                None => return,
            }
        }
    }

    /// Begins to answer a message.
    async fn hear(self: &Arc<Self>, message: Message) {
        let since = Instant::now();
        // Told, not asked: there is nobody to answer.
        let Some(reply) = message.reply else { return };
        if let Some(verb) = Verb::of(&message.subject) {
            let _ = self
                .publish(reply, None, self.service.respond(verb).into())
                .await;
            return;
        }
        let query = match self.core.subjects.parse(&message.subject) {
            Ok(address) => match address.about {
                About::Query(query) => query,
                _ => return,
            },
            Err(_) => {
                let why = format!(
                    "{:?} is no question; there are info, snapshot, window, rules and alerts",
                    shown(message.subject.rsplit('.').next().unwrap_or_default())
                );
                self.refuse(reply, &Failure::new(404, why)).await;
                bump(&self.core.stats.queries_failed);
                return;
            }
        };
        let asked = Asked {
            query,
            reply,
            since,
        };
        if message.payload.len() > QUESTION_BYTES_MAX {
            let why = format!(
                "a question of {} bytes is too large: at most {QUESTION_BYTES_MAX}",
                message.payload.len()
            );
            return self.fail(asked, Failure::new(413, why)).await;
        }
        if query == Query::Info {
            let (headers, body) = pulse::message(&self.core, PulseKind::Heartbeat, None);
            let sent = self.publish(asked.reply.clone(), Some(headers), body).await;
            return self.done(&asked, sent);
        }
        let Ok(permit) = self.questions.clone().try_acquire_owned() else {
            return self.fail(asked, Failure::busy()).await;
        };
        let desk = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = desk.core.ended() => {}
                () = desk.answer(asked, message.payload) => {}
            }
            drop(permit);
        });
    }

    async fn answer(&self, asked: Asked, body: Bytes) {
        let outcome = match asked.query {
            // Answered at once.
            Query::Info => return,
            Query::Snapshot => return self.snapshot(asked, body).await,
            Query::Window => self.window(&asked, &body).await,
            Query::Rules => self.rules(&asked, &body).await,
            Query::Alerts => self.alerts(&asked, &body).await,
        };
        match outcome {
            Ok(sent) => self.done(&asked, sent),
            Err(failure) => self.fail(asked, failure).await,
        }
    }

    /// Those who ask the same while it has not begun share one.
    async fn snapshot(&self, asked: Asked, body: Bytes) {
        let waits = {
            let mut waiting = lock(&self.waiting);
            let same = waiting.entry(body.clone()).or_default();
            let room = same.len() < WAITING_MAX;
            let is_first = same.is_empty();
            if room {
                same.push(asked);
                Ok(is_first)
            } else {
                Err(asked)
            }
        };
        match waits {
            Ok(true) => {}
            Ok(false) => return,
            Err(asked) => return self.fail(asked, Failure::busy()).await,
        }
        let permit = self.heavy.acquire().await;
        let all = lock(&self.waiting).remove(&body).unwrap_or_default();
        match self.take_snapshot(&body).await {
            Ok((sequence, content, bodies)) => {
                let headers = self.core.envelope(sequence).headers(content);
                for asked in all {
                    let sent = self.send_parts(&asked.reply, &headers, &bodies).await;
                    self.done(&asked, sent);
                }
            }
            Err(failure) => {
                for asked in all {
                    self.fail(asked, failure.clone()).await;
                }
            }
        }
        drop(permit);
    }

    /// The number of the last frame before it, how it is written, and its parts.
    async fn take_snapshot(&self, body: &[u8]) -> Result<(u64, &'static str, Vec<Bytes>), Failure> {
        let core = &self.core;
        let request = decode_snapshot_request(body)?;
        let bus = core.bus().ok_or_else(Failure::ended)?;
        let (sequence, present) = core.frames.snapshot(core, request.selector.as_ref()).await;
        let (content, encode): (_, fn(_, &_, _) -> Encoded) = match request.format {
            Format::Otlp => (FRAME_TYPE, encode_within),
            Format::Json => (JSON_TYPE, encode_json_within),
        };
        let (mut bodies, mut too_large) = (Vec::new(), 0);
        for frame in frames_of(present, &bus) {
            let encoded = encode(frame, &core.source, core.room());
            bodies.extend(encoded.bodies.into_iter().map(Bytes::from));
            too_large += encoded.too_large;
            yield_now().await;
        }
        if too_large > 0 {
            core.note(format!(
                "{too_large} series are in no snapshot: each is larger than a message may be"
            ));
        }
        Ok((sequence, content, bodies))
    }

    async fn window(&self, asked: &Asked, body: &[u8]) -> Result<Sent, Failure> {
        let request = decode_window_request(body)?;
        let _permit = self.heavy.acquire().await;
        let bus = self.core.bus().ok_or_else(Failure::ended)?;
        let (panes, room) = (self.panes.clone(), self.core.room());
        let encoded = blocking(move || panes.ask(&bus, request, room)).await??;
        let bodies: Vec<_> = encoded.bodies.into_iter().map(Bytes::from).collect();
        let headers = self.headers(JSON_TYPE);
        Ok(self.send_parts(&asked.reply, &headers, &bodies).await)
    }

    async fn rules(&self, asked: &Asked, body: &[u8]) -> Result<Sent, Failure> {
        if !body.trim_ascii().is_empty() {
            return Err(Failure::wrong(
                "a question about rules is empty: all are told",
            ));
        }
        let _permit = self.heavy.acquire().await;
        let bus = self.core.bus().ok_or_else(Failure::ended)?;
        let refused = self.core.rules_in.as_ref().map(|rules| rules.refused());
        let room = self.core.room();
        let parts =
            blocking(move || rules::rule_parts(&bus, &refused.unwrap_or_default(), room)).await?;
        let parts: Vec<_> = parts.into_iter().map(Bytes::from).collect();
        let headers = self.headers(JSON_TYPE);
        Ok(self.send_parts(&asked.reply, &headers, &parts).await)
    }

    /// Those that are still here, as they were published; the oldest, where they are more than one answer has.
    async fn alerts(&self, asked: &Asked, body: &[u8]) -> Result<Sent, Failure> {
        let core = &self.core;
        let request = decode_alerts_request(body)?;
        if request.epoch != core.epoch {
            let why = format!(
                "this is life {} of the source: alerts of life {} are not kept",
                core.epoch, request.epoch
            );
            return Err(Failure::new(404, why));
        }
        // All that are found are held until the last of them is sent: so only a few such answers at once.
        let _permit = self.heavy.acquire().await;
        let (found, oldest) = {
            let desk = lock(&core.desk);
            let found = desk
                .outbox
                .range(request.from, request.to, limits::ALERTS_ASKED_MAX);
            (found, desk.outbox.oldest())
        };
        // The first part says how many there are, so it has to be known which of them fit into a message. Each is written
        // again when its turn comes: all of them at a time would be many times what the outbox holds.
        let mut written = Vec::with_capacity(found.len());
        for (n, (sequence, alert)) in found.into_iter().enumerate() {
            if core
                .letterhead
                .encode(&alert, sequence, core.room())
                .is_ok()
            {
                written.push((sequence, alert));
            }
            if n % 16 == 15 {
                yield_now().await;
            }
        }
        let of = u32::try_from(written.len()).unwrap_or(u32::MAX);
        if of == 0 {
            let why = format!("none of them is kept any more; the oldest is {oldest}");
            return Err(Failure {
                alerts_from: Some(oldest),
                ..Failure::new(404, why)
            });
        }
        for (part, (sequence, alert)) in (1..).zip(written) {
            let Ok(body) = core.letterhead.encode(&alert, sequence, core.room()) else {
                let why = "the server allows less than a moment ago: ask again";
                return Err(Failure::new(503, why));
            };
            let mut headers = core.letterhead.headers(sequence);
            set_alerts_from(&mut headers, oldest);
            set_part(&mut headers, part, of);
            let sent = self
                .publish(asked.reply.clone(), Some(headers), body.into())
                .await;
            if let Err(error) = sent {
                return Ok(Err(error));
            }
        }
        Ok(Ok(()))
    }

    fn headers(&self, content: &str) -> HeaderMap {
        let sequence = self
            .core
            .frame_sequence
            .load(std::sync::atomic::Ordering::Acquire);
        self.core.envelope(sequence).headers(content)
    }

    async fn send_parts(&self, reply: &Subject, headers: &HeaderMap, parts: &[Bytes]) -> Sent {
        let of = u32::try_from(parts.len()).unwrap_or(u32::MAX);
        for (part, body) in (1..).zip(parts) {
            let mut headers = headers.clone();
            set_part(&mut headers, part, of);
            self.publish(reply.clone(), Some(headers), body.clone())
                .await?;
        }
        Ok(())
    }

    async fn publish(&self, reply: Subject, headers: Option<HeaderMap>, body: Bytes) -> Sent {
        self.core
            .connection
            .publish(reply, None, headers, body)
            .await
    }

    fn done(&self, asked: &Asked, sent: Sent) {
        let took = asked.since.elapsed();
        match sent {
            Ok(()) => {
                bump(&self.core.stats.queries_answered);
                self.service.answered(asked.query, took);
            }
            // Whoever asked hears nothing, and asks again.
            Err(error) => {
                bump(&self.core.stats.queries_failed);
                self.service
                    .failed(asked.query, 503, &error.to_string(), took);
            }
        }
    }

    async fn fail(&self, asked: Asked, failure: Failure) {
        self.refuse(asked.reply, &failure).await;
        bump(&self.core.stats.queries_failed);
        let took = asked.since.elapsed();
        self.service
            .failed(asked.query, failure.code, &failure.why, took);
    }

    async fn refuse(&self, reply: Subject, failure: &Failure) {
        let mut headers = self.headers(TEXT_TYPE);
        set_error(&mut headers, failure.code, &failure.why);
        if let Some(oldest) = failure.alerts_from {
            set_alerts_from(&mut headers, oldest);
        }
        // Whoever asked hears nothing, then, and asks again.
        let body = failure.why.clone().into();
        let _ = self.publish(reply, Some(headers), body).await;
    }
}

type Sent = Result<(), NatsError>;

/// What takes long, off the async threads.
async fn blocking<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    let made = spawn_blocking(f).await;
    made.map_err(|_| Failure::new(500, "the answer could not be made"))
}
