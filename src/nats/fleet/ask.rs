//! Questions to sources, and their answers in one or several parts. Checks that an answer is whole and of whom it should be;
//! what it means is for others.

use std::time::Duration;

use async_nats::{Message, StatusCode, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::time::{Instant, timeout_at};

use crate::{
    Alert, SourceId, Time,
    nats::{
        NatsError,
        connection::Connection,
        subject::{Query, Subjects},
        wire::{
            WireError,
            alert::decode_alert,
            envelope::{self, Envelope},
            pulse::{Pulse, decode_pulse},
            query::{
                AlertsRequest, SnapshotRequest, encode_alerts_request, encode_snapshot_request,
            },
        },
    },
};

/// How long an answer, or the next part of it, may take.
pub(super) const ANSWER: Duration = Duration::from_secs(2);

/// How long all parts together may take.
const WHOLE: Duration = Duration::from_secs(30);

/// How much an answer may be.
const BYTES_MAX: usize = 64 << 20;
const PARTS_MAX: u32 = 10_000;

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(super) enum AskError {
    /// The server says that nobody listens there.
    #[error("nobody answers for it: it is not there, or it may not listen to questions")]
    Nobody,
    #[error(
        "no answer within {0:?}: it is busy or frozen, or we may not ask it, or not hear its answers"
    )]
    TimedOut(Duration),
    #[error("its answer is empty")]
    Empty,
    #[error("of {of} parts of the answer {got} came")]
    Incomplete { got: usize, of: u32 },
    #[error("an answer of more than {max} {what} is too large")]
    TooLarge { what: &'static str, max: usize },
    /// The source could not, or would not.
    #[error(transparent)]
    Wrong(#[from] WireError),
    #[error("the answer is of {0}, who was not asked")]
    Other(SourceId),
    #[error(transparent)]
    Nats(#[from] NatsError),
}

/// Whoever asks.
#[derive(Clone)]
pub(super) struct Asker {
    pub(super) connection: Connection,
    pub(super) subjects: Subjects,
}

impl Asker {
    /// Asks, and opens a place where answers come in.
    pub(super) async fn call(&self, subject: String, body: Bytes) -> Result<Subscriber, AskError> {
        if !self.connection.is_up() {
            // A subscription would wait in line with many others.
            let why = self.connection.why_down();
            return Err(NatsError::Disconnected { why }.into());
        }
        let inbox = self.connection.client().new_inbox();
        let open = self.connection.client().subscribe(inbox.clone());
        let answers = tokio::time::timeout(ANSWER, open)
            .await
            .map_err(|_| AskError::TimedOut(ANSWER))?
            .map_err(|_| NatsError::Ended)?;
        self.connection
            .publish(subject, Some(inbox), None, body)
            .await?;
        Ok(answers)
    }

    /// All parts of an answer, in order. What another life answers than this one is passed over: a second process with the
    /// same identity hears the question, too.
    pub(super) async fn ask(
        &self,
        source: &SourceId,
        life: Option<u64>,
        query: Query,
        body: Vec<u8>,
    ) -> Result<Vec<Message>, AskError> {
        let subject = self.subjects.query(source, query);
        let (_, denied) = self.connection.denied_since(u64::MAX);
        let asked = async {
            let answers = self.call(subject.clone(), body.into()).await?;
            gather(answers, life).await
        };
        let answer = asked.await;
        if let Err(AskError::TimedOut(_)) = answer {
            // Why, if the server has said so.
            let (denials, _) = self.connection.denied_since(denied);
            if denials.iter().any(|d| d.publish && d.subject == subject) {
                let what = "publish to";
                return Err(NatsError::Denied { what, subject }.into());
            }
        }
        answer
    }

    /// Who it is.
    pub(super) async fn info(&self, source: &SourceId) -> Result<Pulse, AskError> {
        let parts = self.ask(source, None, Query::Info, Vec::new()).await?;
        let pulse = decode_pulse(&parts.first().ok_or(AskError::Empty)?.payload)?;
        if pulse.source != *source {
            return Err(AskError::Other(pulse.source));
        }
        Ok(pulse)
    }

    /// All its series, as they were after the frame of this number: boot, number, frames.
    pub(super) async fn snapshot(
        &self,
        source: &SourceId,
        life: Option<u64>,
        request: &SnapshotRequest,
    ) -> Result<(u64, u64, Vec<Bytes>), AskError> {
        let body = encode_snapshot_request(request);
        let parts = self.ask(source, life, Query::Snapshot, body).await?;
        let mut of: Option<(u64, u64)> = None;
        if parts.is_empty() {
            return Err(AskError::Empty);
        }
        for part in &parts {
            let envelope = Envelope::read(part.headers.as_ref())?;
            if envelope.source != *source {
                return Err(AskError::Other(envelope.source));
            }
            let this = (envelope.epoch, envelope.sequence);
            if *of.get_or_insert(this) != this {
                let why = "its parts are of different moments";
                return Err(WireError::field("snapshot", why).into());
            }
        }
        let (boot, sequence) = of.unwrap_or_default();
        let bodies = parts.into_iter().map(|part| part.payload).collect();
        Ok((boot, sequence, bodies))
    }

    /// What there still is of these alerts. Those that can't be read are left out.
    pub(super) async fn alerts(
        &self,
        source: &SourceId,
        boot: u64,
        (from, to): (u64, u64),
        now: Time,
    ) -> Result<Vec<(u64, Alert)>, AskError> {
        let request = AlertsRequest {
            epoch: boot,
            from,
            to,
        };
        let body = encode_alerts_request(&request);
        let parts = self.ask(source, Some(boot), Query::Alerts, body).await?;
        let mut given = Vec::new();
        for part in &parts {
            let read = read_alert(part, now).ok();
            given.extend(read.filter(|(envelope, _)| {
                envelope.source == *source
                    && envelope.epoch == boot
                    && (from..=to).contains(&envelope.sequence)
            }));
        }
        let numbered = |(envelope, alert): (Envelope, Alert)| (envelope.sequence, alert);
        Ok(given.into_iter().map(numbered).collect())
    }
}

/// An alert, and whose: headers and body agree.
fn read_alert(message: &Message, now: Time) -> Result<(Envelope, Alert), WireError> {
    let envelope = Envelope::read(message.headers.as_ref())?;
    let alert = read_body(&envelope, &message.payload, now)?;
    Ok((envelope, alert))
}

/// The alert of a message that has these headers.
pub(super) fn read_body(
    envelope: &Envelope,
    payload: &[u8],
    now: Time,
) -> Result<Alert, WireError> {
    let alert = decode_alert(payload, now)?;
    let agrees = alert.origin.as_ref().is_some_and(|origin| {
        origin.source == envelope.source
            && origin.boot == envelope.epoch
            && origin.sequence == envelope.sequence
    });
    if !agrees {
        return Err(WireError::field(
            "alert",
            "its body and its headers disagree",
        ));
    }
    Ok(alert)
}

pub(super) fn is_nobody(message: &Message) -> bool {
    message.status == Some(StatusCode::NO_RESPONDERS)
}

/// Whether a message says that it is of another life.
fn is_of_another(message: &Message, life: Option<u64>) -> bool {
    let said = Envelope::read(message.headers.as_ref());
    matches!((said, life), (Ok(said), Some(life)) if said.epoch != life)
}

/// Waits for all parts of an answer.
async fn gather(mut answers: Subscriber, life: Option<u64>) -> Result<Vec<Message>, AskError> {
    let end = Instant::now() + WHOLE;
    let mut parts = Parts::default();
    loop {
        let patience = (Instant::now() + ANSWER).min(end);
        match timeout_at(patience, answers.next()).await {
            Err(_) => return Err(parts.too_late()),
            Ok(Some(_)) if Instant::now() >= end => return Err(parts.too_late()),
            Ok(None) => return Err(NatsError::Ended.into()),
            Ok(Some(message)) if is_nobody(&message) => return Err(AskError::Nobody),
            Ok(Some(message)) if is_of_another(&message, life) => {}
            Ok(Some(message)) => {
                if let Some(whole) = parts.take(message)? {
                    return Ok(whole);
                }
            }
        }
    }
}

/// Parts of one answer, in whatever order they come.
#[derive(Default)]
struct Parts {
    parts: Vec<Option<Message>>,
    got: usize,
    bytes: usize,
}

impl Parts {
    /// The answer, when this was the last of its parts.
    fn take(&mut self, message: Message) -> Result<Option<Vec<Message>>, AskError> {
        if let Err(error) = envelope::check_error(message.headers.as_ref()) {
            // The oldest that it has is later than what was asked for: there is nothing of that.
            return match envelope::alerts_from(message.headers.as_ref()) {
                Ok(Some(_)) => Ok(Some(Vec::new())),
                _ => Err(error.into()),
            };
        }
        let (part, of) = envelope::part_of(message.headers.as_ref())?;
        if of > PARTS_MAX {
            return Err(AskError::TooLarge {
                what: "parts",
                max: PARTS_MAX as usize,
            });
        }
        if self.parts.is_empty() {
            self.parts.resize_with(of as usize, || None);
        }
        if self.parts.len() != of as usize {
            let why = "its parts don't agree how many there are";
            return Err(WireError::field("answer", why).into());
        }
        self.bytes += message.payload.len();
        if self.bytes > BYTES_MAX {
            return Err(AskError::TooLarge {
                what: "bytes",
                max: BYTES_MAX,
            });
        }
        // From 1, and at most `of`.
        if let Some(place) = self.parts.get_mut(part as usize - 1)
            && place.replace(message).is_none()
        {
            self.got += 1;
        }
        if self.got < self.parts.len() {
            return Ok(None);
        }
        let parts = std::mem::take(&mut self.parts);
        Ok(Some(parts.into_iter().flatten().collect()))
    }

    fn too_late(&self) -> AskError {
        match self.parts.len() {
            0 => AskError::TimedOut(ANSWER),
            of => AskError::Incomplete {
                got: self.got,
                of: of as u32,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use async_nats::HeaderMap;

    use super::*;

    fn part(i: u32, of: u32, body: &'static str) -> Message {
        let mut headers = HeaderMap::new();
        envelope::set_part(&mut headers, i, of);
        Message {
            subject: "a".into(),
            reply: None,
            payload: Bytes::from_static(body.as_bytes()),
            headers: Some(headers),
            status: None,
            description: None,
            length: 0,
        }
    }

    fn bodies(whole: Vec<Message>) -> Vec<Bytes> {
        whole.into_iter().map(|part| part.payload).collect()
    }

    #[test]
    fn parts_are_put_in_order_and_counted_once() {
        let mut parts = Parts::default();
        assert!(parts.take(part(3, 3, "c")).unwrap().is_none());
        assert!(parts.take(part(3, 3, "c")).unwrap().is_none());
        assert!(parts.take(part(1, 3, "a")).unwrap().is_none());
        assert_eq!(parts.too_late(), AskError::Incomplete { got: 2, of: 3 });
        let whole = parts.take(part(2, 3, "b")).unwrap().unwrap();
        assert_eq!(bodies(whole), ["a", "b", "c"]);
    }

    #[test]
    fn an_answer_that_contradicts_itself_is_refused() {
        let mut parts = Parts::default();
        assert!(parts.take(part(1, 3, "a")).unwrap().is_none());
        assert!(matches!(
            parts.take(part(2, 4, "b")),
            Err(AskError::Wrong(_))
        ));
    }

    #[test]
    fn an_answer_has_a_bound() {
        let huge = Parts::default().take(part(1, PARTS_MAX + 1, "a"));
        assert!(matches!(
            huge,
            Err(AskError::TooLarge { what: "parts", .. })
        ));
    }

    #[test]
    fn of_alerts_that_are_not_kept_there_are_none_and_that_is_an_answer() {
        let mut message = part(1, 1, "");
        let headers = message.headers.as_mut().unwrap();
        envelope::set_error(headers, 404, "none of them is kept any more");
        envelope::set_alerts_from(headers, 7);
        assert_eq!(Parts::default().take(message).unwrap().unwrap().len(), 0);
    }

    #[test]
    fn an_answer_that_says_what_went_wrong_is_an_error() {
        let mut message = part(1, 1, "");
        let headers = message.headers.as_mut().unwrap();
        envelope::set_error(headers, 400, "no such thing");
        let error = Parts::default().take(message).unwrap_err().to_string();
        assert!(error.contains("no such thing"), "{error}");
    }
}
