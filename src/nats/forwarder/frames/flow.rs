//! One forwarding at work: the clock's tick, the task that sends, the end.
//!
//! Nothing is queued. What can't be sent stays marked, so a forwarding takes memory by the number of its series and not
//! by how much they change or how long the server is away.

use std::{
    future::{Future, pending},
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use super::{ear::Ears, teller::Teller};
use crate::{
    bus::Inner,
    clock::Tick,
    nats::{
        error::NatsError,
        forwarder::Core,
        wire::{
            envelope::FRAME_TYPE,
            frame::{Frame, encode_within},
        },
    },
    stats::bump,
    sync::lock,
    time::Time,
    watch::Watch,
};

/// Series of a frame, about. At 100 to 200 bytes each that is what fits into a message; and to read and write them takes a
/// few milliseconds, after which others have their turn.
const SERIES_PER_FRAME: usize = 2_048;

/// How often it is found out what has arrived: so long a time's changes are sent twice after a reconnect.
const CONFIRM_EVERY: Duration = Duration::from_secs(2);

/// Bytes on their way, of which it is not known whether they have arrived. A server that has stopped reading would have
/// the client keep what it is given; so it is given no more than this.
const ON_THE_WAY_MAX: u64 = 16 << 20;

/// A forwarding.
pub(super) struct Flow {
    pub(super) stream: String,
    subject: String,
    pub(super) ears: Arc<Ears>,
    pub(super) watch: Arc<Watch>,
    /// Something is marked, and it is time.
    due: Notify,
    ended: AtomicBool,
    ending: Notify,
    pub(super) sent: AtomicU64,
}

impl Flow {
    pub(super) fn new(
        stream: String,
        subject: String,
        ears: Arc<Ears>,
        watch: Arc<Watch>,
    ) -> Arc<Flow> {
        Arc::new(Flow {
            stream,
            subject,
            ears,
            watch,
            due: Notify::new(),
            ended: AtomicBool::new(false),
            ending: Notify::new(),
            sent: AtomicU64::new(0),
        })
    }

    /// No more is heard; what was forwarded is told to be no more.
    pub(super) fn end(&self, bus: &Weak<Inner>) {
        if self.ended.swap(true, Ordering::AcqRel) {
            return;
        }
        match bus.upgrade() {
            Some(bus) => bus.unwatch(&self.watch),
            None => self.watch.close(true),
        }
        self.ending.notify_one();
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }
}

impl Tick for Flow {
    fn tick(&self, _now: Time) -> bool {
        if self.ears.marks.is_empty() {
            return true;
        }
        self.due.notify_one();
        false
    }
}

/// However its task ends, nobody listens any more in vain.
struct Ending<'a>(&'a Core, &'a Arc<Flow>);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.1.end(&self.0.bus);
        self.0.frames.forget(self.1);
    }
}

/// Sends as long as the forwarder runs and the flow has not ended.
pub(super) async fn run(flow: Arc<Flow>, core: Arc<Core>) {
    let _stay = core.stay();
    let _ending = Ending(&core, &flow);
    let mut link = core.connection.watch();
    let mut work = Work {
        teller: Teller::new(flow.ears.clone(), core.bus.clone()),
        flow: &flow,
        core: &core,
        generation: link.borrow_and_update().generation,
        not_before: None,
        confirming: None,
        confirm_at: Instant::now(),
        on_the_way: 0,
        broken_off: false,
    };
    loop {
        let (mut due, mut last) = (false, false);
        tokio::select! {
            () = flow.due.notified() => due = work.not_before.is_none(),
            () = flow.ending.notified() => last = true,
            () = core.closing() => last = true,
            () = until(work.not_before) => {
                work.not_before = None;
                due = true;
            }
            confirmed = or_never(work.confirming.as_mut()) => {
                work.confirmed(confirmed);
                due = work.broken_off;
            }
            () = sleep_until(work.confirm_at), if work.wants_confirmation() => {}
            changed = link.changed() => {
                if changed.is_err() {
                    return;
                }
                let generation = link.borrow_and_update().generation;
                if generation != work.generation {
                    work.generation = generation;
                    work.confirming = None;
                    work.on_the_way = 0;
                    work.teller.doubt();
                    due = true;
                }
            }
        }
        if due || last {
            work.send(last).await;
        }
        if last {
            work.leave().await;
            return;
        }
        work.confirm();
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => pending().await,
    }
}

async fn or_never<F: Future + Unpin>(future: Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => pending().await,
    }
}

type Confirming = Pin<Box<dyn Future<Output = Confirmed> + Send>>;

/// What came of asking whether all has arrived.
struct Confirmed {
    outcome: Result<(), NatsError>,
    /// Up to where it was asked: the round, and the bytes on their way.
    round: u64,
    bytes: u64,
}

struct Work<'a> {
    flow: &'a Flow,
    core: &'a Core,
    teller: Teller,
    generation: u64,
    /// The source has sent as much as it may.
    not_before: Option<Instant>,
    confirming: Option<Confirming>,
    /// No confirmation is asked for before.
    confirm_at: Instant,
    /// Bytes sent and not confirmed.
    on_the_way: u64,
    /// There was more to send than may be on the way.
    broken_off: bool,
}

impl Work<'_> {
    /// Sends all that is marked.
    async fn send(&mut self, last: bool) {
        let core = self.core;
        let nothing = self.flow.ears.marks.is_empty();
        if nothing || !core.connection.is_up() || self.on_the_way >= ON_THE_WAY_MAX {
            return;
        }
        let taken = lock(&core.frame_rate).take(std::time::Instant::now());
        if let (Err(wait), false) = (taken, last) {
            bump(&core.stats.frames_merged);
            self.not_before = Some(Instant::now() + wait);
            return;
        }
        if self.teller.begin() > 0 {
            core.frames.skip(core).await;
        }
        let mut sent = 0;
        loop {
            self.broken_off = self.on_the_way >= ON_THE_WAY_MAX;
            if self.broken_off {
                break;
            }
            // From the reading of values to the sending of their frame: whoever takes a snapshot comes before or after.
            let order = core.frames.order.lock().await;
            let Some(frame) = self.teller.frame(SERIES_PER_FRAME) else {
                break;
            };
            let published = publish(core, self.flow, frame).await;
            drop(order);
            match published {
                Ok((messages, bytes)) => {
                    sent += messages;
                    self.on_the_way += bytes;
                }
                Err(()) => {
                    self.teller.doubt();
                    break;
                }
            }
            // A flow that has much to send does not keep others from it.
            tokio::task::yield_now().await;
        }
        self.teller.abandon();
        let mut rate = lock(&core.frame_rate);
        match sent {
            0 => rate.give_back(),
            sent => rate.owe(sent - 1),
        }
    }

    fn wants_confirmation(&self) -> bool {
        self.confirming.is_none() && !self.teller.is_confirmed()
    }

    /// Asks the server whether it has all: now and then, and before there is too much on the way.
    fn confirm(&mut self) {
        let now = Instant::now();
        let due = now >= self.confirm_at || self.on_the_way >= ON_THE_WAY_MAX;
        if !due || !self.wants_confirmation() || !self.core.connection.is_up() {
            return;
        }
        self.confirm_at = now + CONFIRM_EVERY;
        let (connection, generation) = (self.core.connection.clone(), self.generation);
        let (round, bytes) = (self.teller.round(), self.on_the_way);
        self.confirming = Some(Box::pin(async move {
            let outcome = connection.confirm_since(generation).await;
            Confirmed {
                outcome,
                round,
                bytes,
            }
        }));
    }

    fn confirmed(&mut self, confirmed: Confirmed) {
        self.confirming = None;
        let Confirmed {
            outcome,
            round,
            bytes,
        } = confirmed;
        match outcome {
            Ok(()) => {
                self.teller.confirm(round);
                self.on_the_way = self.on_the_way.saturating_sub(bytes);
            }
            // It can't be known, and never will; frames go on.
            Err(NatsError::Denied { .. }) => self.on_the_way = 0,
            // It is asked again; or doubtful, once there is another connection.
            Err(_) => self.confirm_at = Instant::now() + CONFIRM_EVERY,
        }
    }

    /// The end: what could not be told is left to snapshots.
    async fn leave(&mut self) {
        let untold = self.teller.begin() > 0 || self.teller.frame(1).is_some();
        if untold && self.flow.has_ended() {
            self.core.frames.skip(self.core).await;
        }
    }
}

/// Sends a frame, in as many messages as it takes; how many, and their bytes.
async fn publish(core: &Core, flow: &Flow, frame: Frame) -> Result<(usize, u64), ()> {
    let stats = &core.stats;
    let encoded = encode_within(frame, &core.source, core.room());
    if encoded.too_large > 0 {
        let points = encoded.too_large as u64;
        stats.points_too_large.fetch_add(points, Ordering::Relaxed);
        core.note(format!(
            "{points} series can't be forwarded: each is larger than a message may be, or has more labels than can be sent"
        ));
    }
    let messages = encoded.bodies.len();
    let mut all_bytes = 0;
    for body in encoded.bodies {
        let sequence = core.frame_sequence.load(Ordering::Acquire) + 1;
        let headers = core.envelope(sequence).headers(FRAME_TYPE);
        let bytes = body.len() as u64;
        let sent = core
            .connection
            .publish(flow.subject.clone(), None, Some(headers), body.into())
            .await;
        // Also where it was not sent: whoever counts sees that something is missing.
        core.frame_sequence.store(sequence, Ordering::Release);
        if sent.is_err() {
            bump(&stats.frames_dropped);
            return Err(());
        }
        bump(&stats.frames_sent);
        bump(&flow.sent);
        stats.frame_bytes.fetch_add(bytes, Ordering::Relaxed);
        all_bytes += bytes;
    }
    Ok((messages, all_bytes))
}
