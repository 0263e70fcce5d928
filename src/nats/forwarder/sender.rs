//! From the outbox to the server. An alert is sent until it is known that the server has it: by an acknowledgement of
//! JetStream, or on core NATS by a round trip on the same connection that was sent after it. After a reconnect whatever is
//! unconfirmed goes again, in order, with the same id.
//!
//! A stream may refuse an alert (it is full, sealed, without a leader), or not answer. What has been refused, or has no way,
//! goes again after a pause of its own that grows, a few at a time and only when nothing new is to be sent; the first that
//! is taken lets the others follow. Where no stream is demanded core NATS does for it, and what the stream refused has been
//! sent to who listens. Meanwhile it is asked what the streams are by now, beside everything else.
//!
//! Whoever hands in an alert sends it at once, in the same thread, where nothing is before it; one task does all the rest.
//! Only one of them publishes at a time: it has the pen.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::{
        Arc,
        atomic::Ordering::{Acquire, Relaxed},
    },
    time::{Duration, Instant},
};

use async_nats::{HeaderMap, StatusCode, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, future::BoxFuture};
use tokio::time::sleep_until;

use super::{
    Core, Delivery, Phase,
    outbox::Outbox,
    rate::Bucket,
    route::{self, Route, Way},
};
use crate::{
    Alert,
    nats::{
        connection::{Connection, Denial, jittered},
        error::NatsError,
        wire::alert,
    },
    sync::lock,
};

/// How many may be on their way to the server at a time: what the client's queue bears, with room for others. What has got
/// there and waits for its stream does not count.
const FLIGHT_MAX: usize = 256;
/// For JetStream to acknowledge.
const ACK_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to gather before a confirmation is asked for: nobody waits for it, and one does for all before it.
const GATHER: Duration = Duration::from_millis(1);
/// When so many are on their way that no more may be, and a stream says nothing: it is asked whether they have got there.
const SILENCE: Duration = Duration::from_millis(100);
/// What was denied is tried again after this; what was refused, or has no way, after this at first, twice as long each time …
const HOLD: Duration = Duration::from_secs(5);
/// … up to this, …
const HOLD_MAX: Duration = Duration::from_secs(300);
/// … so many of all those together …
const RETRIES: usize = 16;
/// … in such a time.
const RETRIES_EVERY: Duration = Duration::from_secs(1);
/// How often an alert is sent to a stream that says nothing, before core NATS does for it where no stream is demanded.
const UNANSWERED_MAX: u32 = 3;
/// How often it is asked which streams there are, at most, …
const LOOK_MIN: Duration = Duration::from_secs(1);
/// … and at least, while there are alerts.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// In vain so often it is asked at the end, before alerts are given up.
const LOOKS_AT_THE_END: u32 = 3;
/// After failures: from this on, twice as long each time, …
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// … up to this.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How many confirmed alerts are remembered whose denial may still come.
const RECENT_MAX: usize = 256;
/// How many are remembered that were too large for their stream.
const REFUSED_MAX: usize = 1_024;
/// How many denied subjects are known at a time; alerts to others are simply tried.
const BLOCKED_MAX: usize = 1_024;

/// The outbox, and how far sending it is. Pure but for its lock, which is the core's.
pub(crate) struct Desk {
    pub(crate) outbox: Outbox<Alert>,
    /// Somebody is publishing.
    pen: bool,
    /// What is on its way was sent on this connection.
    generation: u64,
    route: Route,
    /// When the route was last asked for, and when it is to be asked for again.
    looked: Instant,
    look_at: Option<Instant>,
    flight: BTreeMap<u64, Flight>,
    /// How many of them may not have got there.
    underway: usize,
    /// Not to be sent before; and the same by when that is: of what was denied, and of what was refused or had no way.
    held: HashMap<u64, Instant>,
    denied_until: BTreeSet<(Instant, u64)>,
    refused_until: BTreeSet<(Instant, u64)>,
    /// How often each was refused, or had no way.
    tries: HashMap<u64, u32>,
    /// How many of those may go again now, and when some more may.
    retries: usize,
    retries_at: Instant,
    /// Before everything else.
    beginning: Instant,
    /// Each is tried once more, and no longer.
    closing: bool,
    /// We may not hear what would confirm them.
    deaf: bool,
    /// Subjects that were denied, with when to try again. The value moves on when somebody tries.
    blocked: HashMap<Arc<str>, Instant>,
    /// Confirmed a moment ago, and may turn out to have been denied.
    recent: VecDeque<(u64, Arc<str>)>,
    /// Their stream has called them too large: it takes less than was known, and they were to go again as it has them.
    refused: BTreeSet<u64>,
    bucket: Bucket,
    /// Nothing is sent before.
    pause: Option<Instant>,
    failures: u32,
    /// The greatest sequence that was ever sent.
    sent_up_to: u64,
}

#[derive(Clone)]
struct Flight {
    subject: Arc<str>,
    /// The stream has to acknowledge it.
    acked: bool,
    /// The client has it: what is sent from now on comes after it.
    gone: bool,
    /// The server has it, though its stream may not.
    there: bool,
    since: Instant,
}

/// An alert that is about to be published by whoever has the pen.
struct Letter {
    sequence: u64,
    alert: Arc<Alert>,
    route: Route,
    generation: u64,
}

/// What becomes of an alert that is too large for its stream.
#[derive(Debug, PartialEq)]
enum TooLarge {
    /// It was confirmed before, or is gone.
    Known,
    Again,
    Confirmed,
    Dropped,
}

/// What becomes of an alert that its stream has not taken.
#[derive(Debug, PartialEq)]
enum Refused {
    /// It was confirmed before, or is gone.
    Known,
    /// It goes again later.
    Held,
    /// To core NATS it is confirmed.
    Confirmed,
}

/// Why nothing is sent at the moment.
#[derive(Debug, PartialEq)]
enum Wait {
    /// Until something happens that wakes the sender.
    Event,
    Until(Instant),
}

impl Desk {
    pub(super) fn new(items_max: usize, bytes_max: usize, bucket: Bucket, now: Instant) -> Desk {
        Desk {
            outbox: Outbox::new(items_max, bytes_max),
            pen: false,
            generation: 0,
            route: Route::Unknown,
            looked: now,
            look_at: None,
            flight: BTreeMap::new(),
            underway: 0,
            held: HashMap::new(),
            denied_until: BTreeSet::new(),
            refused_until: BTreeSet::new(),
            tries: HashMap::new(),
            retries: RETRIES,
            retries_at: now,
            beginning: now,
            closing: false,
            deaf: false,
            blocked: HashMap::new(),
            recent: VecDeque::new(),
            refused: BTreeSet::new(),
            bucket,
            pause: None,
            failures: 0,
            sent_up_to: 0,
        }
    }

    /// For people.
    pub(super) fn delivery_words(&self) -> String {
        self.route.words()
    }

    /// Whether all up to this sequence are confirmed, or gone.
    pub(super) fn is_confirmed_until(&self, sequence: u64) -> bool {
        let oldest = self.outbox.oldest_unconfirmed();
        oldest.is_none_or(|(oldest, _)| oldest > sequence)
    }

    /// Whether something does not work, and is tried again after a pause.
    pub(super) fn is_tried_again(&self) -> bool {
        self.failures > 0 || !self.held.is_empty()
    }

    /// How many up to this sequence are not confirmed.
    pub(super) fn unconfirmed_until(&self, sequence: u64) -> usize {
        self.outbox.unconfirmed_until(sequence)
    }

    /// It is another connection: all that is unconfirmed goes again. How many of those were sent before.
    fn reconnected(&mut self, generation: u64) -> usize {
        self.generation = generation;
        self.route = Route::Unknown;
        let flight = std::mem::take(&mut self.flight);
        self.underway = 0;
        self.release_denied();
        // The streams may be others now.
        self.retry_now();
        self.look_at = None;
        self.deaf = false;
        // Permissions may be others now.
        self.blocked.clear();
        self.recent.clear();
        self.refused.clear();
        self.pause = None;
        self.failures = 0;
        // One by one: whoever mutates a metric may be waiting for this desk, and the outbox may be large.
        let back = flight
            .into_keys()
            .map(|sequence| self.outbox.again(sequence));
        back.filter(|&again| again).count()
    }

    /// The next to be published, with the pen for it.
    fn next(&mut self, generation: u64, now: Instant) -> Result<Letter, Wait> {
        if self.pen
            || generation != self.generation
            || self.route == Route::Unknown
            || self.underway >= FLIGHT_MAX
            || self.outbox.unsent() == 0
        {
            return Err(Wait::Event);
        }
        if now.saturating_duration_since(self.looked) >= LOOK_EVERY {
            self.look_again(now);
        }
        if let Some(pause) = self.pause.filter(|&pause| pause > now) {
            return Err(Wait::Until(pause));
        }
        self.bucket
            .take(now)
            .map_err(|wait| Wait::Until(now + wait))?;
        let Some((sequence, alert)) = self.outbox.take() else {
            return Err(Wait::Event);
        };
        self.pen = true;
        Ok(Letter {
            sequence,
            alert,
            route: self.route.clone(),
            generation,
        })
    }

    /// Whether an alert to this subject has to wait: it was denied, and it is not yet time to try. When it is, whoever
    /// asks is the one who tries.
    fn is_blocked(&mut self, subject: &str, now: Instant) -> Option<Instant> {
        let until = self.blocked.get_mut(subject)?;
        if *until > now {
            return Some(*until);
        }
        *until = now + HOLD;
        None
    }

    /// It goes out now. `false`: it does not, since it was dropped or confirmed meanwhile.
    fn leaves(&mut self, sequence: u64, flight: Flight) -> bool {
        let wanted = self.outbox.is_unconfirmed(sequence);
        if wanted {
            self.land(sequence);
            self.underway += 1;
            self.flight.insert(sequence, flight);
        }
        wanted
    }

    /// It is not on its way any more.
    fn land(&mut self, sequence: u64) -> Option<Flight> {
        let flight = self.flight.remove(&sequence)?;
        self.underway -= usize::from(!flight.there);
        Some(flight)
    }

    /// The server has these, whatever their streams make of them.
    fn are_there(&mut self, sequences: &[u64]) {
        for sequence in sequences {
            if let Some(flight) = self.flight.get_mut(sequence)
                && !std::mem::replace(&mut flight.there, true)
            {
                self.underway -= 1;
            }
        }
    }

    /// It went out. Whether it had before.
    fn left(&mut self, sequence: u64) -> bool {
        if let Some(flight) = self.flight.get_mut(&sequence) {
            flight.gone = true;
        }
        let again = sequence <= self.sent_up_to;
        self.sent_up_to = self.sent_up_to.max(sequence);
        again
    }

    /// It was not sent.
    fn stays(&mut self, sequence: u64) {
        self.land(sequence);
        self.outbox.again(sequence);
        self.bucket.give_back();
    }

    fn hold(&mut self, sequence: u64, until: Instant) {
        self.land(sequence);
        self.let_go(sequence);
        if self.outbox.is_unconfirmed(sequence) {
            self.held.insert(sequence, until);
            let by = match self.tries.contains_key(&sequence) {
                true => &mut self.refused_until,
                false => &mut self.denied_until,
            };
            by.insert((until, sequence));
        }
    }

    fn let_go(&mut self, sequence: u64) {
        if let Some(until) = self.held.remove(&sequence) {
            self.denied_until.remove(&(until, sequence));
            self.refused_until.remove(&(until, sequence));
        }
    }

    /// It goes again after a pause of its own.
    fn hold_longer(&mut self, sequence: u64, now: Instant) {
        if self.tries.len() > self.outbox.items_max() {
            let outbox = &self.outbox;
            self.tries.retain(|&tried, _| outbox.is_unconfirmed(tried));
        }
        let tries = self.tries.entry(sequence).or_insert(0);
        let pause = HOLD_MAX.min(HOLD * 2u32.pow((*tries).min(10)));
        *tries = tries.saturating_add(1);
        self.hold(sequence, now + pause);
        self.retries = 0;
        self.retries_at = now + RETRIES_EVERY;
    }

    /// Its stream does not take it (`passing`: for now), or has not said that it does.
    fn refused(&mut self, sequence: u64, passing: bool, or_core: bool, now: Instant) -> Refused {
        if self.land(sequence).is_none() {
            return Refused::Known;
        }
        // The stream may be another one by now, or none.
        self.look_again(now);
        let tries = self.tries.get(&sequence).map_or(0, |tries| *tries) + 1;
        if or_core && (!passing || tries >= UNANSWERED_MAX) {
            // Whoever listened has it, and that is what core NATS does.
            return match self.confirm(sequence) {
                true => Refused::Confirmed,
                false => Refused::Known,
            };
        }
        self.hold_longer(sequence, now);
        Refused::Held
    }

    /// It is to be asked which streams there are.
    fn look_again(&mut self, now: Instant) {
        let at = now.max(self.looked + LOOK_MIN);
        self.look_at = Some(self.look_at.map_or(at, |before| before.min(at)));
    }

    /// Whether that is to be done now. Then it counts as done.
    fn looks(&mut self, now: Instant) -> bool {
        let due = self.route != Route::Unknown && self.look_at.is_some_and(|at| at <= now);
        if due {
            self.look_at = None;
            self.looked = now;
        }
        due
    }

    /// Which way alerts go from now on. Whether that is another one.
    fn found(&mut self, route: Route) -> bool {
        let other = self.route != route;
        if other {
            self.route = route;
            self.retry_now();
        }
        other
    }

    /// The server has it. `false`: that was known.
    fn confirm(&mut self, sequence: u64) -> bool {
        self.let_go(sequence);
        self.refused.remove(&sequence);
        if let Some(flight) = self.land(sequence) {
            if self.tries.remove(&sequence).is_some() && flight.acked {
                // It is taken now: let the others go, too.
                self.retry_now();
            }
            if self.blocked.remove(&flight.subject).is_some() {
                // It is allowed now: let the others go, too.
                self.release_denied();
            }
            if !flight.acked {
                if self.recent.len() == RECENT_MAX {
                    self.recent.pop_front();
                }
                self.recent.push_back((sequence, flight.subject));
            }
        }
        self.tries.remove(&sequence);
        let confirmed = self.outbox.confirm(sequence);
        if confirmed {
            self.failures = 0;
            self.pause = None;
        }
        confirmed
    }

    /// Its stream takes nothing that large. Others must not wait for that: it is written anew, once, when it is known what
    /// the stream takes by now; if that does not help, it is done with.
    fn too_large(&mut self, sequence: u64, or_core: bool) -> TooLarge {
        if self.land(sequence).is_none() {
            return TooLarge::Known;
        }
        self.route = Route::Unknown;
        if !self.refused.remove(&sequence) {
            if self.refused.len() == REFUSED_MAX {
                self.refused.pop_first();
            }
            if self.outbox.again(sequence) {
                self.refused.insert(sequence);
            }
            return TooLarge::Again;
        }
        if or_core {
            // Whoever listened has it, and that is what core NATS does.
            return match self.confirm(sequence) {
                true => TooLarge::Confirmed,
                false => TooLarge::Known,
            };
        }
        match self.outbox.discard(sequence) {
            true => TooLarge::Dropped,
            false => TooLarge::Known,
        }
    }

    /// A subject was denied: what was sent to it stays here, also what seemed to be confirmed.
    fn denied(&mut self, subject: &str, now: Instant) {
        let until = now + HOLD;
        let mut back: Vec<u64> = Vec::new();
        for (&sequence, flight) in &self.flight {
            if *flight.subject == *subject {
                back.push(sequence);
            }
        }
        let outbox = &mut self.outbox;
        self.recent.retain(|(sequence, to)| {
            let denied = **to == *subject;
            if denied && outbox.unconfirm(*sequence) {
                back.push(*sequence);
            }
            !denied
        });
        if self.blocked.len() < BLOCKED_MAX || self.blocked.contains_key(subject) {
            self.blocked.insert(subject.into(), until);
        }
        for sequence in back {
            self.hold(sequence, until);
        }
    }

    /// Those whose time has come are to be sent again: what was denied, and of what was refused one, where nothing else is to
    /// be sent.
    fn release(&mut self, now: Instant) {
        while let Some(&(until, sequence)) = self.denied_until.first()
            && until <= now
        {
            self.let_go(sequence);
            self.outbox.again(sequence);
        }
        while let Some(&(until, sequence)) = self.refused_until.first()
            && until <= now
            && self.outbox.unsent() == 0
            && self.may_retry(now)
        {
            self.retries = self.retries.saturating_sub(1);
            self.let_go(sequence);
            if !self.outbox.again(sequence) {
                self.tries.remove(&sequence);
            }
        }
    }

    fn may_retry(&mut self, now: Instant) -> bool {
        if self.retries == 0 && !self.closing && self.retries_at <= now {
            self.retries = RETRIES;
            self.retries_at = now + RETRIES_EVERY;
        }
        self.retries > 0
    }

    fn release_denied(&mut self) {
        for (_, sequence) in std::mem::take(&mut self.denied_until) {
            self.held.remove(&sequence);
            self.outbox.again(sequence);
        }
    }

    /// What was refused may be taken by now: it goes again when nothing else is to be sent, all of it unless one is refused.
    fn retry_now(&mut self) {
        for (_, sequence) in std::mem::take(&mut self.refused_until) {
            self.hold(sequence, self.beginning);
        }
        self.retries = usize::MAX;
    }

    /// When the first of them is to be tried again.
    fn held_next(&self, now: Instant) -> Option<Instant> {
        let denied = self.denied_until.first().map(|&(until, _)| until);
        let refused = self.refused_until.first().map(|&(until, _)| until);
        let refused = refused.and_then(|until| match until > now {
            true => Some(until),
            // What is to be sent before it brings us back.
            false if self.outbox.unsent() > 0 => None,
            false if self.retries > 0 => Some(until),
            false => (!self.closing).then_some(self.retries_at),
        });
        denied.into_iter().chain(refused).min()
    }

    /// It ends: what was denied or refused is tried once more.
    pub(super) fn close(&mut self) {
        self.closing = true;
        self.failures = 0;
        self.pause = None;
        self.blocked.clear();
        self.release_denied();
        self.retry_now();
        self.retries = RETRIES;
    }

    /// Whether there is nothing to be hoped for the rest any more, at the end.
    pub(super) fn is_in_vain(&self) -> bool {
        let first = self.refused_until.first();
        let untried = self.retries > 0 && first.is_some_and(|&(until, _)| until <= self.beginning);
        let tried = self.flight.is_empty() && self.outbox.unsent() == 0 && !untried;
        let nowhere = self.route == Route::Unknown && self.failures >= LOOKS_AT_THE_END;
        self.closing && (self.deaf || tried || nowhere)
    }

    /// Something does not work: wait, longer each time.
    fn fail(&mut self, now: Instant) {
        let exponent = self.failures.min(10);
        self.failures = self.failures.saturating_add(1);
        self.pause = Some(now + jittered(PAUSE_MAX.min(PAUSE_MIN * 2u32.pow(exponent))));
    }

    /// On their way to streams that say nothing, where no more may be: those that may have got there, with the time of the
    /// oldest.
    fn silent(&self) -> (Vec<u64>, Option<Instant>) {
        if self.underway < FLIGHT_MAX {
            return (Vec::new(), None);
        }
        let waits = |flight: &Flight| flight.gone && flight.acked && !flight.there;
        let silent = || self.flight.iter().filter(|(_, flight)| waits(flight));
        let sequences = silent().map(|(&sequence, _)| sequence).collect();
        (sequences, silent().map(|(_, flight)| flight.since).min())
    }

    /// On their way over core NATS, with the time of the oldest.
    fn unconfirmed_core(&self) -> (Vec<u64>, Option<Instant>) {
        let waits = |flight: &Flight| flight.gone && !flight.acked;
        let core = || self.flight.iter().filter(|(_, flight)| waits(flight));
        let sequences = core().map(|(&sequence, _)| sequence).collect();
        (sequences, core().map(|(_, flight)| flight.since).min())
    }

    /// When the first acknowledgement is overdue.
    fn ack_due(&self) -> Option<Instant> {
        let acked = self.flight.values().filter(|flight| flight.acked);
        acked.map(|flight| flight.since + ACK_TIMEOUT).min()
    }

    /// What was not acknowledged in time is refused: how many, and how many of those are confirmed all the same.
    fn overdue(&mut self, or_core: bool, now: Instant) -> (usize, usize) {
        let overdue = |flight: &Flight| flight.acked && flight.since + ACK_TIMEOUT <= now;
        let sequences: Vec<_> = self
            .flight
            .iter()
            .filter(|(_, flight)| overdue(flight))
            .map(|(&sequence, _)| sequence)
            .collect();
        let fates = sequences
            .iter()
            .map(|&sequence| self.refused(sequence, true, or_core, now));
        let confirmed = fates.filter(|fate| *fate == Refused::Confirmed).count();
        (sequences.len(), confirmed)
    }
}

/// A message, ready to be published.
struct Message {
    subject: Arc<str>,
    reply: Option<String>,
    headers: HeaderMap,
    body: Bytes,
}

/// Where acknowledgements come in: `{inbox}.{sequence}`.
pub(super) async fn subscribe(connection: &Connection) -> Result<(String, Subscriber), NatsError> {
    let inbox = connection.client().new_inbox();
    let acks = super::subscribe(connection, format!("{inbox}.*")).await?;
    Ok((inbox, acks))
}

/// Puts an alert into the outbox, and sends it at once if it may be and is to be sent in this thread. Never waits.
pub(super) fn offer(core: &Core, alert: Alert, here: bool) -> Result<u64, NatsError> {
    if !core.is_running() {
        return Err(NatsError::Ended);
    }
    if let Some(origin) = &alert.origin {
        core.stats.looped.fetch_add(1, Relaxed);
        return Err(NatsError::Looped {
            rule: alert.rule.to_string(),
            source_id: origin.source.to_string(),
        });
    }
    let bytes = alert::weigh(&alert);
    let (now, time) = (Instant::now(), core.clock.now());
    let up = core.connection.is_up();
    let generation = core.connection.generation();
    let (sequence, letter) = {
        let mut desk = lock(&core.desk);
        let Some(sequence) = desk.outbox.push(alert, bytes, time) else {
            let max = desk.outbox.bytes_max();
            drop(desk);
            core.stats.too_large.fetch_add(1, Relaxed);
            return Err(NatsError::TooLarge {
                what: "an alert",
                bytes,
                max,
            });
        };
        // Only if none is before it.
        let first = here && up && desk.outbox.unsent() == 1;
        let letter = first.then(|| desk.next(generation, now).ok()).flatten();
        (sequence, letter)
    };
    if let Some(letter) = letter {
        let _pen = Pen(core);
        if let Some(message) = prepare(core, &letter, now) {
            // Waits for nothing: where the client has no room, the sender has time.
            let published = core.connection.try_publish(
                &message.subject,
                message.reply,
                message.headers,
                message.body,
            );
            settle(core, letter.sequence, published);
        }
    }
    Ok(sequence)
}

/// Gives the pen back, whatever happens.
struct Pen<'a>(&'a Core);

impl Drop for Pen<'_> {
    fn drop(&mut self) {
        lock(&self.0.desk).pen = false;
    }
}

/// Writes the message, and notes that it goes out. `None`: it does not, and was put where it belongs.
fn prepare(core: &Core, letter: &Letter, now: Instant) -> Option<Message> {
    let Letter {
        sequence, alert, ..
    } = letter;
    let subject: Arc<str> = core.alert_subject(alert).into();
    let mut headers = core.letterhead.headers(*sequence);
    let inbox = &core.acks;
    // Through which stream, and what it takes; and whether core NATS will do where that is too little.
    let (mut reply, room, or_core) = match letter.route.way(&subject) {
        Way::Core => (None, usize::MAX, true),
        Way::Stream {
            name,
            message_max,
            acks,
            demanded,
        } => {
            // Where nobody answers, nobody would say that it is another stream by now.
            let reply = acks.then(|| format!("{inbox}.{sequence}"));
            if acks {
                headers.insert(async_nats::header::NATS_EXPECTED_STREAM, name);
            }
            (reply, message_max.unwrap_or(usize::MAX), !demanded)
        }
        Way::Nowhere(why) => {
            {
                let mut desk = lock(&core.desk);
                desk.bucket.give_back();
                desk.hold_longer(*sequence, now);
                desk.look_again(now + HOLD);
            }
            core.note_of_alerts(why);
            core.progress.notify_waiters();
            return None;
        }
    };
    {
        let mut desk = lock(&core.desk);
        if let Some(until) = desk.is_blocked(&subject, now) {
            desk.bucket.give_back();
            desk.hold(*sequence, until);
            return None;
        }
    }
    let max = core.connection.max_payload();
    let encode = |headers: &HeaderMap, room: usize| {
        let room = room.saturating_sub(wire_len(headers));
        core.letterhead.encode(alert, *sequence, room)
    };
    let mut encoded = encode(&headers, max.min(room));
    if encoded.is_err() && room < max && or_core {
        // Not into the stream, then, but to who listens.
        core.note_of_alerts(words_too_large("goes to those who listen only"));
        headers = core.letterhead.headers(*sequence);
        reply = None;
        encoded = encode(&headers, max);
    }
    let body = match encoded {
        Ok(body) => body,
        Err(error) => {
            let mut desk = lock(&core.desk);
            desk.bucket.give_back();
            if desk.outbox.discard(*sequence) {
                drop(desk);
                core.stats.too_large.fetch_add(1, Relaxed);
                core.note_of_alerts(format!(
                    "an alert of rule {:?} can't be sent, and is dropped: {error}",
                    alert.rule
                ));
                core.progress.notify_waiters();
            }
            return None;
        }
    };
    {
        let mut desk = lock(&core.desk);
        // Another connection, and with it perhaps another way.
        if desk.generation != letter.generation {
            desk.stays(*sequence);
            return None;
        }
        let flight = Flight {
            subject: subject.clone(),
            acked: reply.is_some(),
            gone: false,
            there: false,
            since: now,
        };
        if !desk.leaves(*sequence, flight) {
            return None;
        }
    }
    Some(Message {
        subject,
        reply,
        headers,
        body: body.into(),
    })
}

/// What became of it.
fn settle(core: &Core, sequence: u64, published: Result<(), NatsError>) {
    match published {
        Ok(()) => {
            let again = lock(&core.desk).left(sequence);
            core.stats.sent.fetch_add(1, Relaxed);
            if again {
                core.stats.retried.fetch_add(1, Relaxed);
            }
        }
        Err(NatsError::Full | NatsError::Disconnected { .. } | NatsError::Ended) => {
            lock(&core.desk).stays(sequence);
        }
        Err(error) => {
            {
                let mut desk = lock(&core.desk);
                desk.stays(sequence);
                desk.fail(Instant::now());
            }
            core.stats.publish_errors.fetch_add(1, Relaxed);
            core.note_of_alerts(format!("an alert was not sent: {error}"));
        }
    }
}

impl Core {
    fn alert_subject(&self, alert: &Alert) -> String {
        match &self.alert_subject {
            Some(template) => template.of(&self.source, alert),
            None => self.subjects.alert(&self.source, &alert.rule, alert.state),
        }
    }

    /// What all of them match, of all sources that are set up as this one.
    pub(super) fn alert_pattern(&self) -> String {
        use crate::nats::subject::Channel;
        match &self.alert_subject {
            Some(template) => template.pattern(),
            None => self.subjects.all(None, None, Channel::Alerts),
        }
    }
}

pub(super) fn start(core: &Arc<Core>, acks: Subscriber) {
    tokio::spawn(run(core.clone(), acks));
}

async fn run(core: Arc<Core>, mut acks: Subscriber) {
    let mut link = core.connection.watch();
    let mut phase = core.phase.subscribe();
    let mut denied_seen = 0;
    // Which streams there are, as it is being asked.
    let mut looking: Option<(u64, BoxFuture<'_, Result<Route, String>>)> = None;
    loop {
        if *phase.borrow_and_update() == Phase::Ended {
            return;
        }
        link.borrow_and_update();
        let wait = work(&core, &mut acks, &mut denied_seen).await;
        if looking.is_none() && lock(&core.desk).looks(Instant::now()) {
            let generation = core.connection.generation();
            looking = Some((generation, route::find(&core).boxed()));
        }
        let found = async {
            match &mut looking {
                Some((_, looking)) => looking.await,
                None => std::future::pending().await,
            }
        };
        let timer = async {
            match wait {
                Wait::Until(at) => sleep_until(at.into()).await,
                Wait::Event => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = phase.changed() => if ended.is_err() { return },
            changed = link.changed() => if changed.is_err() { return },
            ack = acks.next() => match ack {
                Some(ack) => acknowledged(&core, &ack),
                None => return,
            },
            found = found => {
                if let Some((generation, _)) = looking.take() {
                    looked(&core, generation, found);
                }
            }
            () = core.bell.notified() => {}
            () = timer => {}
        }
    }
}

/// What came of asking again which streams there are.
fn looked(core: &Core, generation: u64, found: Result<Route, String>) {
    match found {
        Ok(route) => {
            let words = route.words();
            let other = {
                let mut desk = lock(&core.desk);
                // Else it is asked anyway.
                let valid = desk.generation == generation && desk.route != Route::Unknown;
                valid && desk.found(route)
            };
            if other {
                tracing::info!(
                    "metricbus forwarder of {}: alerts go by {words}",
                    core.source
                );
            }
        }
        // It goes on as it was: what is refused is held.
        Err(why) => core.note_of_alerts(why),
    }
}

/// Does what can be done now, and says when to come back if nothing happens.
async fn work(core: &Core, acks: &mut Subscriber, denied_seen: &mut u64) -> Wait {
    if !core.connection.is_up() {
        // The link tells when it is; but what it tells may be lost where too much happens at once.
        return Wait::Until(Instant::now() + PAUSE_MAX);
    }
    let generation = core.connection.generation();
    if lock(&core.desk).generation != generation {
        lock(&core.desk).reconnected(generation);
    }
    lock(&core.desk).release(Instant::now());
    if let Some(wait) = find_route(core, generation).await {
        return wait;
    }
    while let Some(Some(ack)) = acks.next().now_or_never() {
        acknowledged(core, &ack);
    }
    hear_denials(core, denied_seen);
    let wait = publish_all(core, generation).await;
    // The client's task was woken by that and may be next on this very thread: its turn, before confirmations are.
    tokio::task::yield_now().await;
    let gather = confirm_core(core, generation, denied_seen).await;
    let due = ask_for_acks(core, generation).await;
    let (held, look) = {
        let desk = lock(&core.desk);
        (desk.held_next(Instant::now()), desk.look_at)
    };
    let next = [gather, due, held, look].into_iter().flatten().min();
    match (wait, next) {
        (Wait::Until(one), Some(other)) => Wait::Until(one.min(other)),
        (Wait::Event, Some(at)) | (Wait::Until(at), None) => Wait::Until(at),
        (Wait::Event, None) => Wait::Event,
    }
}

/// Finds out how alerts get to the server, where that is not known. `Some`: it is not known, and alerts have to wait.
async fn find_route(core: &Core, generation: u64) -> Option<Wait> {
    {
        let desk = lock(&core.desk);
        if desk.route != Route::Unknown {
            return None;
        }
        if let Some(pause) = desk.pause.filter(|&pause| pause > Instant::now()) {
            return Some(Wait::Until(pause));
        }
    }
    if core.born.load(Acquire) != generation {
        // The birth rings the bell.
        return Some(Wait::Until(Instant::now() + PAUSE_MAX));
    }
    let found = route::find(core).await;
    let now = Instant::now();
    let mut desk = lock(&core.desk);
    if core.connection.generation() != generation {
        // It is about another server, perhaps.
        return Some(Wait::Until(now));
    }
    match found {
        Ok(route) => {
            let words = route.words();
            desk.found(route);
            desk.looked = now;
            desk.look_at = None;
            drop(desk);
            let words = format!("alerts go by {words}");
            if core.connection.says(&words) {
                tracing::info!("metricbus forwarder of {}: {words}", core.source);
            }
            None
        }
        Err(why) => {
            desk.fail(now);
            let pause = desk.pause;
            drop(desk);
            core.note_of_alerts(why);
            core.progress.notify_waiters();
            Some(Wait::Until(pause.unwrap_or(now)))
        }
    }
}

/// Publishes what is to be sent, in order, until there is no more or it may not go on.
async fn publish_all(core: &Core, generation: u64) -> Wait {
    loop {
        let now = Instant::now();
        let letter = {
            let mut desk = lock(&core.desk);
            desk.release(now);
            match desk.next(generation, now) {
                Ok(letter) => letter,
                Err(wait) => return wait,
            }
        };
        let _pen = Pen(core);
        let Some(message) = prepare(core, &letter, now) else {
            continue;
        };
        let published = core
            .connection
            .publish(
                async_nats::Subject::from(&*message.subject),
                message.reply,
                Some(message.headers),
                message.body,
            )
            .await;
        let failed = published.is_err();
        settle(core, letter.sequence, published);
        if failed {
            return Wait::Until(now + PAUSE_MIN);
        }
    }
}

/// Confirms what was sent over core NATS; gives when to do so, where it is too early.
async fn confirm_core(core: &Core, generation: u64, denied_seen: &mut u64) -> Option<Instant> {
    let ((sequences, oldest), (silent, silent_since)) = {
        let desk = lock(&core.desk);
        (desk.unconfirmed_core(), desk.silent())
    };
    let gathered = oldest.map(|oldest| oldest + GATHER);
    let heard = silent_since.map(|since| since + SILENCE);
    let due = gathered.into_iter().chain(heard).min()?;
    let now = Instant::now();
    if due > now && sequences.len() < FLIGHT_MAX / 2 {
        return Some(due);
    }
    match core.connection.confirm_since(generation).await {
        Ok(()) => {
            hear_denials(core, denied_seen);
            let mut confirmed = 0;
            {
                let mut desk = lock(&core.desk);
                if desk.generation == generation {
                    desk.deaf = false;
                    desk.are_there(&silent);
                    for sequence in sequences {
                        // What was denied is not on its way any more.
                        if desk.flight.contains_key(&sequence) {
                            confirmed += u64::from(desk.confirm(sequence));
                        }
                    }
                }
            }
            core.stats.confirmed.fetch_add(confirmed, Relaxed);
            core.progress.notify_waiters();
            // There may be more by now, and room for it.
            Some(Instant::now())
        }
        // They are on their way as long as it is the same connection: ask again.
        Err(error @ NatsError::TimedOut { .. }) => {
            core.note_of_alerts(format!("alerts are not confirmed: {error}"));
            Some(Instant::now() + PAUSE_MIN)
        }
        Err(error @ NatsError::Denied { .. }) => {
            core.note_of_alerts(format!("alerts can't be confirmed: {error}"));
            is_deaf(core);
            Some(Instant::now() + HOLD)
        }
        // The link tells what comes next.
        Err(_) => Some(Instant::now() + PAUSE_MIN),
    }
}

/// Sends again what JetStream has not acknowledged in time, if the connection works; gives when that is due.
async fn ask_for_acks(core: &Core, generation: u64) -> Option<Instant> {
    let due = lock(&core.desk).ack_due()?;
    if due > Instant::now() {
        return Some(due);
    }
    if let Err(error) = core.connection.confirm_since(generation).await {
        // Then it is not the stream, and what was sent is not lost yet. Of another connection the link tells.
        if let NatsError::TimedOut { .. } | NatsError::Denied { .. } = error {
            core.note_of_alerts(format!("alerts are not acknowledged: {error}"));
        }
        if let NatsError::Denied { .. } = error {
            is_deaf(core);
            return Some(Instant::now() + HOLD);
        }
        return Some(Instant::now() + PAUSE_MIN);
    }
    let now = Instant::now();
    let (overdue, confirmed) = lock(&core.desk).overdue(or_core(core), now);
    if overdue > 0 {
        core.stats.publish_errors.fetch_add(overdue as u64, Relaxed);
        core.stats.confirmed.fetch_add(confirmed as u64, Relaxed);
        core.stats.unstored.fetch_add(confirmed as u64, Relaxed);
        let fate = match overdue - confirmed {
            0 => "they went to those who listened only".to_owned(),
            again => format!("sending {again} of them again"),
        };
        core.note_of_alerts(format!(
            "JetStream did not acknowledge {overdue} alerts within {ACK_TIMEOUT:?}; {fate}"
        ));
        core.progress.notify_waiters();
    }
    Some(now)
}

/// We may not hear what would confirm alerts.
fn is_deaf(core: &Core) {
    lock(&core.desk).deaf = true;
    core.progress.notify_waiters();
}

/// Whether core NATS does for what a stream does not take.
fn or_core(core: &Core) -> bool {
    !matches!(core.delivery, Delivery::JetStream { .. })
}

/// An answer of JetStream to an alert.
fn acknowledged(core: &Core, ack: &async_nats::Message) {
    let Some(sequence) = ack
        .subject
        .rsplit('.')
        .next()
        .and_then(|sequence| sequence.parse().ok())
    else {
        return;
    };
    let (why, passing) = if ack.status == Some(StatusCode::NO_RESPONDERS) {
        ("no stream takes it any more".to_owned(), true)
    } else {
        match serde_json::from_slice::<serde_json::Value>(&ack.payload) {
            Ok(answer) => match route::read_error(&answer) {
                None if answer["stream"].is_string() => {
                    if lock(&core.desk).confirm(sequence) {
                        core.stats.confirmed.fetch_add(1, Relaxed);
                    }
                    core.progress.notify_waiters();
                    return;
                }
                None => return,
                Some((_, route::MESSAGE_TOO_LARGE)) => return too_large(core, sequence),
                Some((text, code)) => (
                    format!("JetStream says: {text} ({code})"),
                    route::PASSING.contains(&code),
                ),
            },
            Err(_) => return,
        }
    };
    let now = Instant::now();
    let fate = match lock(&core.desk).refused(sequence, passing, or_core(core), now) {
        Refused::Known => return,
        Refused::Held => "it is tried again later",
        Refused::Confirmed => {
            core.stats.confirmed.fetch_add(1, Relaxed);
            core.stats.unstored.fetch_add(1, Relaxed);
            "it went to those who listened only"
        }
    };
    core.stats.publish_errors.fetch_add(1, Relaxed);
    core.note_of_alerts(format!("an alert was not taken: {why}; {fate}"));
    core.progress.notify_waiters();
}

/// An alert is larger than its stream takes.
fn too_large(core: &Core, sequence: u64) {
    let became = lock(&core.desk).too_large(sequence, or_core(core));
    let words = match became {
        TooLarge::Known => return,
        TooLarge::Again => {
            core.stats.publish_errors.fetch_add(1, Relaxed);
            return;
        }
        TooLarge::Confirmed => {
            core.stats.confirmed.fetch_add(1, Relaxed);
            core.stats.unstored.fetch_add(1, Relaxed);
            "went to those who listened only"
        }
        TooLarge::Dropped => {
            core.stats.too_large.fetch_add(1, Relaxed);
            "is dropped"
        }
    };
    core.note_of_alerts(words_too_large(words));
    core.progress.notify_waiters();
}

fn words_too_large(fate: &str) -> String {
    format!("an alert is larger than its stream takes, and {fate}: raise the stream's max_msg_size")
}

fn hear_denials(core: &Core, seen: &mut u64) {
    let (denials, now_seen) = core.connection.denied_since(*seen);
    *seen = now_seen;
    if denials.is_empty() {
        return;
    }
    let now = Instant::now();
    let mut desk = lock(&core.desk);
    for Denial { publish, subject } in &denials {
        if *publish {
            desk.denied(subject, now);
        }
    }
    drop(desk);
    core.progress.notify_waiters();
}

/// The bytes of the headers in a message.
pub(super) fn wire_len(headers: &HeaderMap) -> usize {
    let lines = headers.iter().map(|(name, values)| {
        let name: &str = name.as_ref();
        values
            .iter()
            .map(|value| name.len() + value.as_str().len() + ": \r\n".len())
            .sum::<usize>()
    });
    "NATS/1.0\r\n\r\n".len() + lines.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AlertState, Time};

    /// A desk with a connection, and the time.
    struct Bench {
        desk: Desk,
        now: Instant,
    }

    impl Bench {
        fn new(alerts: usize) -> Bench {
            let now = Instant::now();
            let mut desk = Desk::new(1000, 1 << 20, Bucket::new(1e6, now), now);
            desk.reconnected(1);
            desk.route = Route::Core;
            let mut bench = Bench { desk, now };
            bench.push(alerts);
            bench
        }

        fn push(&mut self, alerts: usize) {
            for _ in 0..alerts {
                let alert = Alert::new("R", AlertState::Firing, Time::ZERO);
                self.desk.outbox.push(alert, 1, Time::ZERO);
            }
        }

        fn flight(&self, subject: &str, acked: bool) -> Flight {
            Flight {
                subject: subject.into(),
                acked,
                gone: false,
                there: false,
                since: self.now,
            }
        }

        /// Sends all that can be, to these subjects in turn; what is blocked is held.
        fn send(&mut self, subjects: &[&str], acked: bool) -> Vec<u64> {
            let mut sent = Vec::new();
            while let Ok(letter) = self.desk.next(self.desk.generation, self.now) {
                let sequence = letter.sequence;
                let subject = subjects[sequence as usize % subjects.len()];
                if let Some(until) = self.desk.is_blocked(subject, self.now) {
                    self.desk.hold(sequence, until);
                } else if self.desk.leaves(sequence, self.flight(subject, acked)) {
                    self.desk.left(sequence);
                    sent.push(sequence);
                }
                self.desk.pen = false;
            }
            sent
        }

        /// As the sender does, until nothing more is to be sent to a stream.
        fn retry(&mut self) -> Vec<u64> {
            let mut sent = Vec::new();
            loop {
                self.desk.release(self.now);
                match self.send(&["a"], true) {
                    again if again.is_empty() => return sent,
                    again => sent.extend(again),
                }
            }
        }

        /// As an echo does.
        fn confirm(&mut self) {
            for sequence in self.desk.unconfirmed_core().0 {
                self.desk.confirm(sequence);
            }
        }
    }

    #[test]
    fn only_one_publishes_at_a_time() {
        let mut bench = Bench::new(2);
        let letter = bench.desk.next(1, bench.now).unwrap();
        assert_eq!(letter.sequence, 1);
        assert!(bench.desk.next(1, bench.now).is_err());
        bench.desk.pen = false;
        assert_eq!(bench.desk.next(1, bench.now).unwrap().sequence, 2);
    }

    #[test]
    fn nothing_is_sent_on_a_connection_whose_ways_are_not_known() {
        let mut bench = Bench::new(1);
        assert!(bench.desk.next(2, bench.now).is_err());
        bench.desk.reconnected(2);
        assert!(bench.desk.next(2, bench.now).is_err());
        bench.desk.route = Route::Core;
        assert!(bench.desk.next(2, bench.now).is_ok());
    }

    #[test]
    fn after_a_reconnect_all_that_is_unconfirmed_goes_again_in_order() {
        let mut bench = Bench::new(4);
        assert_eq!(bench.send(&["a"], false), [1, 2, 3, 4]);
        bench.desk.confirm(2);
        assert_eq!(bench.desk.reconnected(2), 3);
        bench.desk.route = Route::Core;
        bench.push(1);
        assert_eq!(bench.send(&["a"], false), [1, 3, 4, 5]);
        bench.confirm();
        assert_eq!(bench.desk.outbox.unconfirmed(), 0);
    }

    #[test]
    fn an_echo_confirms_only_what_the_client_had_before() {
        let mut bench = Bench::new(1);
        let letter = bench.desk.next(1, bench.now).unwrap();
        let flight = bench.flight("a", false);
        assert!(bench.desk.leaves(letter.sequence, flight));
        assert_eq!(bench.desk.unconfirmed_core(), (vec![], None));
        assert!(!bench.desk.left(letter.sequence));
        assert_eq!(bench.desk.unconfirmed_core(), (vec![1], Some(bench.now)));
    }

    #[test]
    fn what_the_client_did_not_take_is_the_next_again_and_counts_as_sent_once() {
        let mut bench = Bench::new(2);
        let letter = bench.desk.next(1, bench.now).unwrap();
        let flight = bench.flight("a", false);
        bench.desk.leaves(letter.sequence, flight);
        bench.desk.stays(letter.sequence);
        bench.desk.pen = false;
        assert!(bench.desk.flight.is_empty());
        assert_eq!(bench.send(&["a"], false), [1, 2]);
        assert!(bench.desk.left(1), "now it went out before");
    }

    #[test]
    fn what_is_on_its_way_is_bounded() {
        let mut bench = Bench::new(FLIGHT_MAX + 10);
        assert_eq!(bench.send(&["a"], false).len(), FLIGHT_MAX);
        bench.confirm();
        assert_eq!(bench.send(&["a"], false).len(), 10);
    }

    #[test]
    fn a_denied_subject_holds_its_alerts_and_no_others_and_one_tries_again() {
        let mut bench = Bench::new(4);
        let subjects = ["even", "odd"];
        bench.send(&subjects, false);
        bench.desk.denied("odd", bench.now);
        bench.confirm();
        assert_eq!(bench.desk.outbox.unconfirmed(), 2);
        // Later ones of that subject are not even tried.
        bench.push(2);
        assert_eq!(bench.send(&subjects, false), [6]);
        bench.confirm();
        bench.now += HOLD;
        bench.desk.release(bench.now);
        assert_eq!(bench.send(&subjects, false), [1], "only one, to see");
        bench.desk.denied("odd", bench.now);
        bench.now += HOLD;
        bench.desk.release(bench.now);
        assert_eq!(bench.send(&subjects, false), [1]);
        // It is allowed now: the others follow at once.
        bench.confirm();
        assert_eq!(bench.send(&subjects, false), [3, 5]);
        bench.confirm();
        assert_eq!(bench.desk.outbox.unconfirmed(), 0);
    }

    #[test]
    fn a_denial_that_comes_late_takes_the_confirmation_back() {
        let mut bench = Bench::new(2);
        bench.send(&["even", "odd"], false);
        bench.confirm();
        assert_eq!(bench.desk.outbox.unconfirmed(), 0);
        bench.desk.denied("odd", bench.now);
        assert_eq!(
            bench.desk.outbox.oldest_unconfirmed(),
            Some((1, Time::ZERO))
        );
        assert_eq!(bench.desk.held_next(bench.now), Some(bench.now + HOLD));
    }

    #[test]
    fn what_a_stream_does_not_acknowledge_goes_again_later_and_what_it_does_is_not() {
        let mut bench = Bench::new(3);
        bench.send(&["a"], true);
        assert!(bench.desk.unconfirmed_core().0.is_empty());
        bench.desk.confirm(2);
        assert_eq!(bench.desk.ack_due(), Some(bench.now + ACK_TIMEOUT));
        assert_eq!(bench.desk.overdue(false, bench.now), (0, 0));
        bench.now += ACK_TIMEOUT;
        assert_eq!(bench.desk.overdue(false, bench.now), (2, 0));
        assert_eq!(bench.retry(), [0; 0]);
        bench.now += HOLD;
        assert_eq!(bench.retry(), [1, 3]);
    }

    #[test]
    fn what_a_stream_refuses_waits_for_longer_each_time_and_holds_up_nothing_new() {
        let mut bench = Bench::new(1);
        let mut waited = Duration::ZERO;
        for n in 0..10 {
            let pause = HOLD_MAX.min(HOLD * 2u32.pow(n));
            if n > 0 {
                assert_eq!(bench.retry(), [1]);
            } else {
                assert_eq!(bench.send(&["a"], true), [1]);
            }
            let fate = bench.desk.refused(1, false, false, bench.now);
            assert_eq!(fate, Refused::Held);
            assert_eq!(bench.desk.held_next(bench.now), Some(bench.now + pause));
            assert_eq!(bench.desk.pause, None, "others go");
            bench.now += pause;
            waited += pause;
        }
        assert!(waited > Duration::from_secs(1_000));
        // What is new goes first, though the time of the other has come.
        bench.push(2);
        bench.desk.release(bench.now);
        assert_eq!(bench.send(&["a"], true), [2, 3]);
    }

    #[test]
    fn what_was_refused_goes_again_a_few_at_a_time_until_one_is_taken() {
        let all = 5 * RETRIES;
        let mut bench = Bench::new(all);
        let refuse = |bench: &mut Bench, sent: Vec<u64>| {
            for sequence in sent {
                bench.desk.refused(sequence, false, false, bench.now);
            }
        };
        let sent = bench.send(&["a"], true);
        assert_eq!(sent.len(), all);
        refuse(&mut bench, sent);
        bench.now += HOLD;
        let again = bench.retry();
        assert_eq!(again.len(), RETRIES);
        refuse(&mut bench, again);
        assert_eq!(bench.retry(), [0; 0]);
        bench.now += RETRIES_EVERY;
        let again = bench.retry();
        assert_eq!(again.len(), RETRIES);
        bench.desk.confirm(again[0]);
        assert_eq!(bench.retry().len(), all - RETRIES, "it takes them again");
    }

    #[test]
    fn where_no_stream_is_demanded_core_does_for_what_it_refuses_or_says_nothing_of() {
        let mut bench = Bench::new(2);
        bench.send(&["a"], true);
        let fate = bench.desk.refused(1, false, true, bench.now);
        assert_eq!(fate, Refused::Confirmed);
        assert_eq!(
            bench.desk.refused(1, false, true, bench.now),
            Refused::Known
        );
        for n in 1..=UNANSWERED_MAX {
            bench.now += ACK_TIMEOUT;
            let confirmed = usize::from(n == UNANSWERED_MAX);
            assert_eq!(bench.desk.overdue(true, bench.now), (1, confirmed));
            bench.now += HOLD_MAX;
            assert_eq!(bench.retry().len(), 1 - confirmed);
        }
        assert_eq!(bench.desk.outbox.unconfirmed(), 0);
        assert!(bench.desk.tries.is_empty());
    }

    #[test]
    fn a_stream_that_says_nothing_does_not_keep_others_from_being_sent() {
        let mut bench = Bench::new(FLIGHT_MAX + 10);
        assert_eq!(bench.send(&["a"], true).len(), FLIGHT_MAX);
        let (silent, since) = bench.desk.silent();
        assert_eq!((silent.len(), since), (FLIGHT_MAX, Some(bench.now)));
        bench.desk.are_there(&silent);
        bench.desk.are_there(&silent);
        assert_eq!(bench.send(&["a"], true).len(), 10);
        assert_eq!(bench.desk.underway, 10);
        for sequence in 1..=FLIGHT_MAX as u64 + 10 {
            bench.desk.confirm(sequence);
        }
        assert_eq!((bench.desk.underway, bench.desk.flight.len()), (0, 0));
    }

    #[test]
    fn it_is_asked_again_which_streams_there_are_when_one_refuses_and_now_and_then() {
        let mut bench = Bench::new(1);
        bench.send(&["a"], true);
        assert!(!bench.desk.looks(bench.now));
        bench.desk.refused(1, false, false, bench.now);
        bench.now += LOOK_MIN;
        assert!(bench.desk.looks(bench.now));
        assert!(!bench.desk.looks(bench.now), "once");
        // Another way: what was refused goes again at once.
        let streams = [].into();
        let other = Route::Streams {
            streams,
            demanded: false,
        };
        assert!(bench.desk.found(other.clone()));
        assert!(!bench.desk.found(other));
        assert_eq!(bench.retry(), [1]);
        // Without alerts nobody asks.
        bench.now += 10 * LOOK_EVERY;
        assert!(!bench.desk.looks(bench.now));
        bench.push(1);
        bench.send(&["a"], true);
        assert!(bench.desk.looks(bench.now));
    }

    #[test]
    fn at_the_end_what_was_refused_is_tried_once_more_and_then_given_up() {
        let all = 3 * RETRIES;
        let mut bench = Bench::new(all);
        for sequence in bench.send(&["a"], true) {
            bench.desk.refused(sequence, false, false, bench.now);
        }
        assert!(!bench.desk.is_in_vain(), "it goes on");
        bench.desk.close();
        assert!(!bench.desk.is_in_vain());
        let again = bench.retry();
        assert_eq!(again.len(), RETRIES);
        for sequence in again {
            assert!(!bench.desk.is_in_vain());
            bench.desk.refused(sequence, false, false, bench.now);
        }
        assert!(bench.desk.is_in_vain());
        bench.now += HOLD_MAX;
        assert_eq!(bench.retry(), [0; 0]);
        // Where it is not even known how they could go.
        let mut bench = Bench::new(1);
        bench.desk.route = Route::Unknown;
        bench.desk.close();
        for _ in 0..LOOKS_AT_THE_END {
            assert!(!bench.desk.is_in_vain());
            bench.desk.fail(bench.now);
        }
        assert!(bench.desk.is_in_vain());
    }

    #[test]
    fn what_is_too_large_for_its_stream_is_tried_once_more_and_holds_up_no_others() {
        for or_core in [false, true] {
            let mut bench = Bench::new(2);
            let sent = |bench: &mut Bench| {
                bench.desk.route = Route::Core;
                bench.send(&["a"], true)
            };
            assert_eq!(sent(&mut bench), [1, 2]);
            assert_eq!(bench.desk.too_large(1, or_core), TooLarge::Again);
            assert_eq!(bench.desk.route, Route::Unknown, "it takes less than known");
            assert_eq!(bench.desk.pause, None);
            bench.push(1);
            assert_eq!(sent(&mut bench), [1, 3]);
            let done = match or_core {
                true => TooLarge::Confirmed,
                false => TooLarge::Dropped,
            };
            assert_eq!(bench.desk.too_large(1, or_core), done);
            assert_eq!(bench.desk.too_large(1, or_core), TooLarge::Known);
            assert!(sent(&mut bench).is_empty());
            bench.desk.confirm(2);
            bench.desk.confirm(3);
            assert_eq!(bench.desk.outbox.unconfirmed(), 0);
            assert_eq!(bench.desk.outbox.held(), 2 + usize::from(or_core));
            assert!(bench.desk.refused.is_empty());
        }
    }

    #[test]
    fn after_failures_it_pauses_for_longer_and_longer_until_something_is_confirmed() {
        let mut bench = Bench::new(1);
        for n in 0..20 {
            bench.desk.fail(bench.now);
            assert!(bench.desk.is_tried_again());
            let pause = bench.desk.pause.unwrap() - bench.now;
            let full = PAUSE_MAX.min(PAUSE_MIN * 2u32.pow(n.min(10)));
            assert!(pause >= full / 2 && pause <= full, "{pause:?}");
        }
        let wait = bench.desk.next(1, bench.now).err().unwrap();
        assert_eq!(wait, Wait::Until(bench.desk.pause.unwrap()));
        bench.now += PAUSE_MAX;
        assert_eq!(bench.send(&["a"], false), [1]);
        bench.confirm();
        assert_eq!((bench.desk.failures, bench.desk.pause), (0, None));
        assert!(!bench.desk.is_tried_again());
    }

    #[test]
    fn too_many_in_a_second_wait_and_are_not_lost() {
        let mut bench = Bench::new(3);
        bench.desk.bucket = Bucket::new(2.0, bench.now);
        assert_eq!(bench.send(&["a"], false), [1, 2]);
        let wait = bench.desk.next(1, bench.now).err().unwrap();
        assert_eq!(wait, Wait::Until(bench.now + Duration::from_millis(500)));
        bench.now += Duration::from_millis(500);
        assert_eq!(bench.send(&["a"], false), [3]);
    }

    #[test]
    fn what_was_dropped_while_it_was_held_is_forgotten() {
        let mut bench = Bench::new(0);
        bench.desk.outbox = Outbox::new(1, 1 << 20);
        bench.push(1);
        bench.send(&["a"], false);
        bench.desk.denied("a", bench.now);
        bench.push(1);
        bench.now += HOLD;
        bench.desk.release(bench.now);
        assert_eq!(bench.send(&["b"], false), [2]);
    }

    #[test]
    fn the_length_of_headers_is_as_on_the_wire() {
        let mut headers = HeaderMap::new();
        headers.insert("A", "b");
        headers.append("A", "cc");
        assert_eq!(
            wire_len(&headers),
            "NATS/1.0\r\nA: b\r\nA: cc\r\n\r\n".len()
        );
    }
}
