//! The exporter's thread: collects each interval, sends one request after the other, waits where it is told to. Owns the
//! queue and its bound; nobody else waits for anything here but who flushes.

use std::{
    collections::VecDeque,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Arc, Weak, atomic::Ordering::Relaxed, mpsc::SyncSender},
    time::Duration,
};

use tokio::sync::mpsc::UnboundedReceiver;

use super::{
    collect::{Collector, batch_room},
    encode::Request,
    options::{Hook, Ready},
    own::{Dropped, Stats},
    random,
    sender::{Body, Sender, Verdict},
};
use crate::{Clock, time::Time};

/// However long a collector asks to be left alone.
const AFTER_MAX: Duration = Duration::from_secs(600);
/// A collector that asks to be left alone for less is tried again as if it had not asked.
const AFTER_MIN: Duration = Duration::from_millis(100);

/// So many flushes may wait at a time.
pub(super) const FLUSHES_MAX: usize = 1_024;
/// So many commands are taken between two steps of a collection.
const COMMANDS_MAX: usize = 64;

/// What the thread is asked to do.
pub(super) enum Command {
    /// Have what was counted until now delivered, or not, and say so.
    Flush(Reply),
    /// The same for the last time, and end: at once when it is done, or at the end of this time.
    Finish(Option<Reply>, Duration),
    /// End at once.
    Stop,
}

/// Whom to tell.
pub(super) struct Reply {
    pub(super) answer: SyncSender<Flushed>,
    /// Dropped by who has given up.
    pub(super) caller: Weak<()>,
}

/// What became of a flush.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Flushed {
    /// Points that were dropped or rejected meanwhile.
    pub(super) lost: u64,
}

/// A request that waits.
struct Batch {
    body: Body,
    points: u64,
    /// Requests are numbered in the order in which they were collected.
    number: u64,
    /// The collection it comes from.
    collection: u64,
    tried_since: Option<Time>,
    /// For how long the collector asked to be left alone meanwhile.
    asked: Duration,
}

/// Somebody who flushes.
struct Waiting {
    /// Whether the collection is theirs that is at work, or was.
    begun: bool,
    /// The last request of theirs; `None` until it is collected.
    up_to: Option<u64>,
    lost_before: u64,
    reply: Option<Reply>,
}

pub(super) struct Worker {
    collector: Collector,
    sender: Arc<Sender>,
    ready: Ready,
    clock: Clock,
    stats: Arc<Stats>,
    commands: UnboundedReceiver<Command>,
    queue: VecDeque<Batch>,
    /// In the queue.
    bytes: usize,
    next_number: u64,
    /// The collection at work, or the last one.
    collection: u64,
    /// Whether it has been without room.
    stalled: bool,
    next_collection: Time,
    /// How often in a row something was to be tried again.
    failures: u32,
    /// Not before, and whether the collector said so.
    wait: Option<(Time, bool)>,
    waiting: Vec<Waiting>,
    /// Until when there is time to end.
    ending: Option<Time>,
    in_flight: bool,
}

type Sending = Pin<Box<dyn Future<Output = Verdict> + Send>>;

impl Worker {
    pub(super) fn new(
        collector: Collector,
        sender: Sender,
        ready: Ready,
        clock: Clock,
        stats: Arc<Stats>,
        commands: UnboundedReceiver<Command>,
    ) -> Worker {
        let next_collection = clock.now() + ready.interval;
        Worker {
            collector,
            sender: Arc::new(sender),
            ready,
            clock,
            stats,
            commands,
            queue: VecDeque::new(),
            bytes: 0,
            next_number: 0,
            collection: 0,
            stalled: false,
            next_collection,
            failures: 0,
            wait: None,
            waiting: Vec::new(),
            ending: None,
            in_flight: false,
        }
    }

    /// Until somebody ends it.
    pub(super) async fn run(mut self) {
        let mut sending: Option<Sending> = None;
        let mut is_alone = false;
        'work: loop {
            // Who wants an end is heard between two requests' worth of reading, whoever else wants something.
            for _ in 0..COMMANDS_MAX {
                let Ok(command) = self.commands.try_recv() else {
                    break;
                };
                if self.is_stopped_by(command) {
                    break 'work;
                }
            }
            self.collect_for_flushes();
            if sending.is_none() && self.wait.is_none() {
                sending = self.send();
            }
            self.in_flight = sending.is_some();
            let goes_on = self.goes_on();
            self.answer_flushes();
            if self.ending.is_some() && self.queue.is_empty() && self.waiting.is_empty() {
                break;
            }
            let wait = self.wait.map(|(until, _)| until);
            tokio::select! {
                verdict = maybe(sending.as_mut()) => {
                    sending = None;
                    self.in_flight = false;
                    self.judged(verdict);
                }
                // Those who work on the connection have their turns in between.
                () = tokio::task::yield_now(), if goes_on => self.step(),
                () = until(&self.clock, wait) => self.wait = None,
                () = until(&self.clock, Some(self.next_collection)), if self.ending.is_none() => {
                    self.tick();
                }
                () = until(&self.clock, self.ending) => break,
                command = self.commands.recv(), if !is_alone => match command {
                    Some(command) => if self.is_stopped_by(command) {
                        break;
                    },
                    // Nobody can ask for anything any more; what was asked for is done.
                    None if self.ending.is_some() => is_alone = true,
                    None => break,
                }
            }
        }
        for batch in std::mem::take(&mut self.queue) {
            self.stats.drop_points(Dropped::Ended, batch.points);
        }
        self.bytes = 0;
        self.show_queue();
    }

    /// Does what it is asked to. `true`: it is to end at once.
    fn is_stopped_by(&mut self, command: Command) -> bool {
        match command {
            Command::Flush(reply) => {
                self.stats.flushes.fetch_sub(1, Relaxed);
                self.flush(Some(reply));
            }
            Command::Finish(reply, time) => {
                if self.ending.is_none() {
                    self.ending = Some(self.clock.now() + time);
                }
                self.flush(reply);
            }
            Command::Stop => return true,
        }
        false
    }

    fn tick(&mut self) {
        let now = self.clock.now();
        // What was missed is not made up for.
        while self.next_collection <= now {
            self.next_collection = match now.since(self.next_collection) {
                late if late > 100 * self.ready.interval => now + self.ready.interval,
                _ => self.next_collection + self.ready.interval,
            };
        }
        if self.collector.is_at_work() {
            // It goes on when there is room, and what it has not read yet is not older then.
            self.stats.postponed.fetch_add(1, Relaxed);
        } else {
            self.begin();
        }
    }

    /// Begins a collection, for all who wait for one.
    fn begin(&mut self) {
        if let Some(Hook(hook)) = &self.ready.before_collect
            && catch_unwind(AssertUnwindSafe(|| hook())).is_err()
        {
            let endpoint = self.stats.endpoint();
            tracing::error!(
                endpoint,
                "metricbus: what runs before metrics are read panicked; they are exported as they are"
            );
        }
        self.collector.begin();
        self.collection += 1;
        self.stalled = false;
        for one in &mut self.waiting {
            one.begun = true;
        }
    }

    /// Whether there is something to be read, and room for it.
    fn goes_on(&mut self) -> bool {
        if !self.collector.is_at_work() {
            return false;
        }
        let has_room = self.has_room();
        if !has_room && !std::mem::replace(&mut self.stalled, true) {
            self.stats.postponed.fetch_add(1, Relaxed);
        }
        has_room
    }

    /// Whether there is room for another request without losing what can't be had again: deltas, and what this collection
    /// has read already. Totals of earlier ones can, as this one tells the same.
    fn has_room(&self) -> bool {
        let stays = self.queue.iter().enumerate();
        let stays = stays.filter(|(at, batch)| !self.may_drop(*at, batch));
        let bytes: usize = stays.map(|(_, batch)| batch.body.bytes.len()).sum();
        // One that is larger than the whole queue goes when it is alone.
        bytes == 0 || bytes + batch_room(self.ready.queue_bytes) <= self.ready.queue_bytes
    }

    fn may_drop(&self, at: usize, batch: &Batch) -> bool {
        // Dropping the one that is being sent would free nothing.
        let is_sent = at == 0 && self.in_flight;
        !self.ready.delta && batch.collection != self.collection && !is_sent
    }

    /// Reads one request.
    fn step(&mut self) {
        if let Some(Request { body, points }) = self.collector.next() {
            self.push(self.sender.body(body), points);
        }
        if self.collector.is_at_work() {
            return;
        }
        // All that were there before are theirs, too.
        let up_to = self.next_number;
        for one in self.waiting.iter_mut().filter(|one| one.begun) {
            one.up_to.get_or_insert(up_to);
        }
        self.stats.collections.fetch_add(1, Relaxed);
    }

    /// Takes what [has room](Worker::has_room), and lets the oldest totals go for it.
    fn push(&mut self, body: Body, points: u64) {
        let size = body.bytes.len();
        let mut dropped = 0;
        while self.bytes + size > self.ready.queue_bytes {
            let oldest = self.queue.iter().enumerate();
            let oldest = oldest
                .filter(|(at, batch)| self.may_drop(*at, batch))
                .map(|(at, _)| at)
                .next();
            let Some(oldest) = oldest.and_then(|at| self.queue.remove(at)) else {
                break;
            };
            self.bytes -= oldest.body.bytes.len();
            dropped += oldest.points;
        }
        if dropped > 0 {
            self.stats.drop_points(Dropped::Full, dropped);
            let max = self.ready.queue_bytes;
            let why = format!(
                "the queue is full: {max} bytes wait for the collector, and older totals were dropped for newer ones"
            );
            self.stats.failed(&why);
        }
        self.bytes += size;
        self.queue.push_back(Batch {
            body,
            points,
            number: self.next_number,
            collection: self.collection,
            tried_since: None,
            asked: Duration::ZERO,
        });
        self.next_number += 1;
        self.show_queue();
    }

    fn show_queue(&self) {
        let points = self.queue.iter().map(|batch| batch.points).sum();
        self.stats.queue_bytes.store(self.bytes as u64, Relaxed);
        self.stats.queue_points.store(points, Relaxed);
    }

    fn send(&mut self) -> Option<Sending> {
        let now = self.clock.now();
        let batch = self.queue.front_mut()?;
        batch.tried_since.get_or_insert(now);
        let (sender, body) = (self.sender.clone(), batch.body.clone());
        self.stats.requests.fetch_add(1, Relaxed);
        Some(Box::pin(async move { sender.send(body).await }))
    }

    /// The first of the queue, which is done with.
    fn pop(&mut self) -> u64 {
        let Some(batch) = self.queue.pop_front() else {
            return 0;
        };
        self.bytes -= batch.body.bytes.len();
        self.show_queue();
        batch.points
    }

    fn judged(&mut self, verdict: Verdict) {
        let endpoint = self.stats.endpoint().to_owned();
        match verdict {
            Verdict::Taken { rejected, said } => {
                let points = self.pop();
                let rejected = rejected.min(points);
                self.stats.exported.fetch_add(points - rejected, Relaxed);
                self.stats.rejected.fetch_add(rejected, Relaxed);
                self.stats.succeeded(self.clock.wall(self.clock.now()));
                let was_failing = std::mem::take(&mut self.failures) > 0;
                if was_failing {
                    tracing::info!(endpoint, "metricbus: the collector takes metrics again");
                }
                let said = match (rejected, said) {
                    (0, None) => None,
                    (0, Some(said)) => Some(format!("the collector says: {said}")),
                    (n, said) => {
                        let said = said.unwrap_or_else(|| "it does not say why".to_owned());
                        Some(format!("the collector rejected {n} points: {said}"))
                    }
                };
                if let Some(said) = said
                    && self.stats.failed(&said)
                {
                    tracing::warn!(endpoint, said, "metricbus: not all was well with an export");
                }
            }
            Verdict::Never { why } => {
                let points = self.pop();
                self.failures = 0;
                self.stats.drop_points(Dropped::Refused, points);
                if self.stats.failed(&why) {
                    tracing::warn!(
                        endpoint,
                        why,
                        points,
                        "metricbus: metrics were refused, and dropped"
                    );
                }
            }
            Verdict::Later { why, after } => self.later(&why, after),
        }
    }

    fn later(&mut self, why: &str, after: Option<Duration>) {
        let endpoint = self.stats.endpoint().to_owned();
        let now = self.clock.now();
        let after = after.filter(|after| *after >= AFTER_MIN);
        let wait = match after {
            Some(after) => after.min(AFTER_MAX),
            None => self.back_off(),
        };
        let first = self.failures == 0;
        self.failures = self.failures.saturating_add(1);
        self.wait = Some((now + wait, after.is_some()));
        self.stats.failed(why);
        if first {
            tracing::warn!(
                endpoint,
                why,
                ?wait,
                "metricbus: metrics could not be exported, and will be tried again"
            );
        }
        // Waits that the collector asked for are not held against what waits.
        let more = if after.is_some() {
            Duration::ZERO
        } else {
            wait
        };
        let tried = self.queue.front_mut().map_or(Duration::ZERO, |batch| {
            let since = batch.tried_since.map_or(Duration::ZERO, |at| now.since(at));
            let tried = since.saturating_sub(batch.asked);
            batch.asked += wait - more;
            tried
        });
        if tried + more > self.ready.give_up_after {
            let points = self.pop();
            self.stats.drop_points(Dropped::GivenUp, points);
            let after = self.ready.give_up_after;
            tracing::warn!(
                endpoint,
                why,
                points,
                ?after,
                "metricbus: metrics were given up"
            );
        } else {
            self.stats.retries.fetch_add(1, Relaxed);
        }
    }

    /// Twice the wait before, less a random part of up to a half.
    fn back_off(&self) -> Duration {
        let doubled = 2_u32.saturating_pow(self.failures.min(20));
        let whole = self.ready.retry_first.saturating_mul(doubled);
        let whole = whole.min(self.ready.retry_max);
        whole.mul_f64(0.5 + (random() >> 11) as f64 / (1_u64 << 54) as f64)
    }

    fn flush(&mut self, reply: Option<Reply>) {
        if self.waiting.len() >= FLUSHES_MAX {
            let is_there = |reply: &Reply| reply.caller.strong_count() > 0;
            self.waiting
                .retain(|one| one.reply.as_ref().is_none_or(is_there));
        }
        // Dropping the reply tells whoever waits for it. A last flush is never refused.
        if self.ending.is_none() && self.waiting.len() >= FLUSHES_MAX {
            return;
        }
        self.waiting.push(Waiting {
            begun: false,
            up_to: None,
            lost_before: self.stats.lost(),
            reply,
        });
        // Somebody waits: tried now, unless the collector has asked to be left alone.
        if let Some((_, false)) = self.wait {
            self.wait = None;
        }
    }

    fn collect_for_flushes(&mut self) {
        // One that is at work has read some of it before they asked.
        if !self.collector.is_at_work() && self.waiting.iter().any(|one| !one.begun) {
            self.begin();
        }
    }

    fn answer_flushes(&mut self) {
        let first = self.queue.front().map_or(u64::MAX, |batch| batch.number);
        let lost = self.stats.lost();
        self.waiting.retain(|one| {
            if one.up_to.is_none_or(|up_to| first < up_to) {
                return true;
            }
            if let Some(reply) = &one.reply {
                // Nobody there: it took too long for them.
                let _ = reply.answer.try_send(Flushed {
                    lost: lost - one.lost_before,
                });
            }
            false
        });
    }
}

async fn maybe(sending: Option<&mut Sending>) -> Verdict {
    match sending {
        Some(sending) => sending.await,
        None => std::future::pending().await,
    }
}

async fn until(clock: &Clock, time: Option<Time>) {
    match time {
        Some(time) => clock.sleep_until(time).await,
        None => std::future::pending().await,
    }
}
