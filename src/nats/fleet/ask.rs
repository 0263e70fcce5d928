//! Questions to sources, and their answers in one or several parts. Checks that an answer is whole and of whom it should be;
//! what it means is for others.

use std::{collections::BTreeMap, pin::pin, sync::Arc, time::Duration};

use async_nats::{Message, StatusCode, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout, timeout_at},
};

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

/// How much an answer may be, with its headers.
const BYTES_MAX: usize = 64 << 20;
const PARTS_MAX: u32 = 10_000;

/// How much all answers together may be that are coming in, or are not yet done with.
const ROOM: usize = 256 << 20;

/// In what pieces that is given out: each part of an answer takes one at least, however small it is.
const PIECE: usize = 1 << 10;

/// So many questions of a kind …
const TURNS: usize = 64;

/// … begin in such a time, however long answers take: those that never come keep nobody else waiting.
const TURN: Duration = Duration::from_millis(50);

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
    /// It is asked again.
    #[error(
        "there is no room for it: answers that are coming in may take {} bytes in all",
        ROOM
    )]
    Full,
    /// The source could not, or would not.
    #[error(transparent)]
    Wrong(#[from] WireError),
    #[error("the answer is of {0}, who was not asked")]
    Other(SourceId),
    #[error(transparent)]
    Nats(#[from] NatsError),
}

/// The room for all answers together.
#[derive(Clone)]
pub(super) struct Room(Arc<Semaphore>);

/// Room that an answer takes, until this is dropped.
#[derive(Default)]
pub(super) struct Taken(Option<OwnedSemaphorePermit>);

impl Room {
    pub(super) fn new() -> Room {
        Room::of(ROOM)
    }

    fn of(bytes: usize) -> Room {
        Room(Arc::new(Semaphore::new(bytes / PIECE)))
    }

    /// Takes room for so many bytes more. Waits for nobody: all might wait for each other.
    fn take(&self, taken: &mut Taken, bytes: usize) -> Result<(), AskError> {
        let pieces = u32::try_from(bytes.div_ceil(PIECE).max(1)).unwrap_or(u32::MAX);
        let more = self.0.clone().try_acquire_many_owned(pieces);
        let more = more.map_err(|_| AskError::Full)?;
        match &mut taken.0 {
            Some(permit) => permit.merge(more),
            none => *none = Some(more),
        }
        Ok(())
    }
}

/// Whoever is to ask takes turns.
#[derive(Clone)]
pub(super) struct Turns(Arc<Semaphore>);

impl Turns {
    pub(super) fn new() -> Turns {
        Turns(Arc::new(Semaphore::new(TURNS)))
    }

    /// Asks when it is its turn, which lasts until the answer is there, but not for long.
    pub(super) async fn ask<T>(&self, question: impl Future<Output = T>) -> T {
        // Never closed.
        let turn = self.0.acquire().await;
        let mut question = pin!(question);
        if let Ok(answer) = timeout(TURN, &mut question).await {
            return answer;
        }
        drop(turn);
        question.await
    }
}

/// Whoever asks.
#[derive(Clone)]
pub(super) struct Asker {
    pub(super) connection: Connection,
    pub(super) subjects: Subjects,
    pub(super) room: Room,
}

/// A part of an answer: who says it, and its body. Nothing else of its headers is kept.
pub(super) struct Part {
    pub(super) envelope: Result<Envelope, WireError>,
    pub(super) payload: Bytes,
}

impl Part {
    fn of(message: Message) -> Part {
        let payload = message.payload;
        Part {
            envelope: Envelope::read(message.headers.as_ref()),
            // It would keep all of what it was received with.
            payload: match message.length > 2 * payload.len() {
                true => Bytes::copy_from_slice(&payload),
                false => payload,
            },
        }
    }

    fn envelope(&self) -> Result<&Envelope, WireError> {
        self.envelope.as_ref().map_err(Clone::clone)
    }
}

/// All parts of an answer, in order, and the room that they take.
pub(super) struct Whole {
    pub(super) parts: Vec<Part>,
    pub(super) taken: Taken,
}

/// All series of a source as they were after this frame.
pub(super) struct Snapshot {
    pub(super) boot: u64,
    pub(super) sequence: u64,
    pub(super) frames: Vec<Bytes>,
    /// That the frames take.
    pub(super) taken: Taken,
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
    ) -> Result<Whole, AskError> {
        let subject = self.subjects.query(source, query);
        let (_, denied) = self.connection.denied_since(u64::MAX);
        let asked = async {
            let answers = self.call(subject.clone(), body.into()).await?;
            gather(answers, life, &self.room).await
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
        let Whole { parts, .. } = self.ask(source, None, Query::Info, Vec::new()).await?;
        let pulse = decode_pulse(&parts.first().ok_or(AskError::Empty)?.payload)?;
        if pulse.source != *source {
            return Err(AskError::Other(pulse.source));
        }
        Ok(pulse)
    }

    /// All its series.
    pub(super) async fn snapshot(
        &self,
        source: &SourceId,
        life: Option<u64>,
        request: &SnapshotRequest,
    ) -> Result<Snapshot, AskError> {
        let body = encode_snapshot_request(request);
        let Whole { parts, taken } = self.ask(source, life, Query::Snapshot, body).await?;
        let mut of: Option<(u64, u64)> = None;
        if parts.is_empty() {
            return Err(AskError::Empty);
        }
        for part in &parts {
            let envelope = part.envelope()?;
            if envelope.source != *source {
                return Err(AskError::Other(envelope.source.clone()));
            }
            let this = (envelope.epoch, envelope.sequence);
            if *of.get_or_insert(this) != this {
                let why = "its parts are of different moments";
                return Err(WireError::field("snapshot", why).into());
            }
        }
        let (boot, sequence) = of.unwrap_or_default();
        Ok(Snapshot {
            boot,
            sequence,
            frames: parts.into_iter().map(|part| part.payload).collect(),
            taken,
        })
    }

    /// What there still is of these alerts, and the room that it takes. Those that can't be read are left out.
    pub(super) async fn alerts(
        &self,
        source: &SourceId,
        boot: u64,
        (from, to): (u64, u64),
        now: Time,
    ) -> Result<(Vec<(u64, Alert)>, Taken), AskError> {
        let request = AlertsRequest {
            epoch: boot,
            from,
            to,
        };
        let body = encode_alerts_request(&request);
        let Whole { parts, taken } = self.ask(source, Some(boot), Query::Alerts, body).await?;
        let given = parts.iter().filter_map(|part| {
            let envelope = part.envelope().ok()?;
            let wanted = envelope.source == *source
                && envelope.epoch == boot
                && (from..=to).contains(&envelope.sequence);
            let alert = wanted.then(|| read_body(envelope, &part.payload, now))?;
            Some((envelope.sequence, alert.ok()?))
        });
        Ok((given.collect(), taken))
    }
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

/// Waits for all parts of an answer.
async fn gather(
    mut answers: Subscriber,
    life: Option<u64>,
    room: &Room,
) -> Result<Whole, AskError> {
    let end = Instant::now() + WHOLE;
    let mut parts = Parts::new(room.clone(), life);
    loop {
        let patience = (Instant::now() + ANSWER).min(end);
        match timeout_at(patience, answers.next()).await {
            Err(_) => return Err(parts.too_late()),
            Ok(Some(_)) if Instant::now() >= end => return Err(parts.too_late()),
            Ok(None) => return Err(NatsError::Ended.into()),
            Ok(Some(message)) if is_nobody(&message) => return Err(AskError::Nobody),
            Ok(Some(message)) => {
                if let Some(whole) = parts.take(message)? {
                    return Ok(whole);
                }
            }
        }
    }
}

/// Parts of one answer, in whatever order they come.
struct Parts {
    room: Room,
    /// What is of another one is passed over.
    life: Option<u64>,
    /// How many there are, once one has said so.
    of: Option<u32>,
    parts: BTreeMap<u32, Part>,
    bytes: usize,
    taken: Taken,
}

impl Parts {
    fn new(room: Room, life: Option<u64>) -> Parts {
        Parts {
            room,
            life,
            of: None,
            parts: BTreeMap::new(),
            bytes: 0,
            taken: Taken::default(),
        }
    }

    /// The answer, when this was the last of its parts.
    fn take(&mut self, message: Message) -> Result<Option<Whole>, AskError> {
        let headers = message.headers.as_ref();
        let place = envelope::check_error(headers).and_then(|()| envelope::part_of(headers));
        let oldest = envelope::alerts_from(headers);
        // With what names it, and its headers.
        let bytes = message.length.max(message.payload.len());
        let part = Part::of(message);
        if let (Ok(said), Some(life)) = (&part.envelope, self.life)
            && said.epoch != life
        {
            return Ok(None);
        }
        let (place, of) = match (place, oldest) {
            (Ok(place), _) => place,
            // The oldest that it has is later than what was asked for: there is nothing of that.
            (Err(WireError::Refused { .. }), Ok(Some(_))) => {
                self.parts.clear();
                return Ok(Some(self.whole()));
            }
            (Err(error), _) => return Err(error.into()),
        };
        if of > PARTS_MAX {
            return Err(AskError::TooLarge {
                what: "parts",
                max: PARTS_MAX as usize,
            });
        }
        if *self.of.get_or_insert(of) != of {
            let why = "its parts don't agree how many there are";
            return Err(WireError::field("answer", why).into());
        }
        self.bytes += bytes;
        if self.bytes > BYTES_MAX {
            return Err(AskError::TooLarge {
                what: "bytes",
                max: BYTES_MAX,
            });
        }
        self.room.take(&mut self.taken, bytes)?;
        self.parts.insert(place, part);
        Ok((self.parts.len() == of as usize).then(|| self.whole()))
    }

    fn whole(&mut self) -> Whole {
        Whole {
            parts: std::mem::take(&mut self.parts).into_values().collect(),
            taken: std::mem::take(&mut self.taken),
        }
    }

    fn too_late(&self) -> AskError {
        match self.of {
            None => AskError::TimedOut(ANSWER),
            Some(of) => AskError::Incomplete {
                got: self.parts.len(),
                of,
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

    fn parts() -> Parts {
        Parts::new(Room::new(), None)
    }

    fn bodies(whole: Whole) -> Vec<Bytes> {
        whole.parts.into_iter().map(|part| part.payload).collect()
    }

    /// A part as it is received, with so many bytes of a header that nobody knows.
    fn padded(i: u32, of: u32, bytes: usize) -> Message {
        let mut message = part(i, of, "x");
        if let Some(headers) = &mut message.headers {
            headers.insert("Padding", "x".repeat(bytes));
        }
        message.length = bytes;
        message
    }

    #[test]
    fn parts_are_put_in_order_and_counted_once() {
        let mut parts = parts();
        assert!(parts.take(part(3, 3, "c")).unwrap().is_none());
        assert!(parts.take(part(3, 3, "c")).unwrap().is_none());
        assert!(parts.take(part(1, 3, "a")).unwrap().is_none());
        assert_eq!(parts.too_late(), AskError::Incomplete { got: 2, of: 3 });
        let whole = parts.take(part(2, 3, "b")).unwrap().unwrap();
        assert_eq!(bodies(whole), ["a", "b", "c"]);
    }

    #[test]
    fn an_answer_that_contradicts_itself_is_refused() {
        let mut parts = parts();
        assert!(parts.take(part(1, 3, "a")).unwrap().is_none());
        let error = parts.take(part(2, 4, "b")).err();
        assert!(matches!(error, Some(AskError::Wrong(_))));
    }

    #[test]
    fn an_answer_has_a_bound() {
        let huge = parts().take(part(1, PARTS_MAX + 1, "a"));
        let error = huge.err();
        assert!(matches!(
            error,
            Some(AskError::TooLarge { what: "parts", .. })
        ));
    }

    #[test]
    fn headers_count_and_are_not_kept() {
        let mut parts = parts();
        let (bytes, of) = (900_000, 1_000);
        let mut took = 0;
        let error = (1..=of).find_map(|i| {
            let error = parts.take(padded(i, of, bytes)).err();
            took += usize::from(error.is_none());
            error
        });
        let large = AskError::TooLarge {
            what: "bytes",
            max: BYTES_MAX,
        };
        assert_eq!(error, Some(large));
        assert_eq!(took, BYTES_MAX / bytes);
        assert!(parts.parts.values().all(|part| part.payload.len() == 1));
    }

    #[test]
    fn all_answers_together_have_a_bound_and_give_their_room_back() {
        let room = Room::of(100 * PIECE);
        let part = |i, of, pieces| padded(i, of, pieces * PIECE);
        let mut first = Parts::new(room.clone(), None);
        assert!(first.take(part(1, 2, 60)).is_ok());
        let mut second = Parts::new(room.clone(), None);
        assert!(second.take(part(1, 2, 40)).is_ok());
        assert_eq!(second.take(part(2, 2, 1)).err(), Some(AskError::Full));
        drop(second);
        let whole = first.take(part(2, 2, 40)).ok().flatten().unwrap();
        // As long as what is in it is not done with.
        drop(first);
        let mut third = Parts::new(room.clone(), None);
        assert_eq!(third.take(part(1, 1, 1)).err(), Some(AskError::Full));
        drop(whole);
        assert!(third.take(part(1, 1, 100)).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn questions_without_an_answer_keep_others_waiting_for_moments_only() {
        let turns = Turns::new();
        let start = Instant::now();
        let silent = (0..2_000).map(|_| turns.ask(tokio::time::sleep(ANSWER)));
        let silent = futures_util::future::join_all(silent);
        let answered = async {
            // It comes last.
            tokio::task::yield_now().await;
            turns.ask(std::future::ready(())).await;
            start.elapsed()
        };
        let (_, waited) = tokio::join!(silent, answered);
        assert!(waited <= TURN * (2_000 / TURNS as u32 + 1), "{waited:?}");
    }

    #[test]
    fn of_alerts_that_are_not_kept_there_are_none_and_that_is_an_answer() {
        let mut message = part(1, 1, "");
        let headers = message.headers.as_mut().unwrap();
        envelope::set_error(headers, 404, "none of them is kept any more");
        envelope::set_alerts_from(headers, 7);
        assert_eq!(parts().take(message).unwrap().unwrap().parts.len(), 0);
    }

    #[test]
    fn an_answer_that_says_what_went_wrong_is_an_error() {
        let mut message = part(1, 1, "");
        let headers = message.headers.as_mut().unwrap();
        envelope::set_error(headers, 400, "no such thing");
        let error = parts().take(message).err().unwrap().to_string();
        assert!(error.contains("no such thing"), "{error}");
    }
}
