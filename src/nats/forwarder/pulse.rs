//! Signs of life: birth at each connect, heartbeats between, death at the end, and an answer to whoever says hello.

use std::{
    sync::{
        Arc,
        atomic::Ordering::{Relaxed, Release},
    },
    time::{Duration, Instant},
};

use async_nats::{HeaderMap, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;

use super::{Core, LAST_WORDS, close};
use crate::{
    nats::{
        error::NatsError,
        subject::PulseKind,
        wire::{
            envelope::{Envelope, JSON_TYPE},
            pulse::{Pulse, encode_pulse},
        },
    },
    sync::lock,
};

pub(super) fn start(core: &Arc<Core>, hello: Subscriber) {
    tokio::spawn(beat(core.clone()));
    tokio::spawn(answer(core.clone(), hello));
}

/// What we say of ourselves now; also the answer to `q.info`.
pub(crate) fn pulse(core: &Core, kind: PulseKind, reason: Option<&str>) -> Pulse {
    let (alerts, alerts_from) = {
        let desk = lock(&core.desk);
        (desk.outbox.last(), desk.outbox.oldest())
    };
    Pulse {
        kind,
        source: core.source.clone(),
        epoch: core.epoch,
        interval: core.heartbeat,
        frames: core.frame_sequence.load(Relaxed),
        alerts,
        alerts_from,
        series: core.frames.series() as u64,
        at: core.clock.wall(core.clock.now()),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        reason: reason.map(str::to_owned),
    }
}

/// A pulse as a message.
pub(crate) fn message(core: &Core, kind: PulseKind, reason: Option<&str>) -> (HeaderMap, Bytes) {
    let pulse = pulse(core, kind, reason);
    let envelope = Envelope {
        source: core.source.clone(),
        epoch: core.epoch,
        sequence: pulse.frames,
    };
    (envelope.headers(JSON_TYPE), encode_pulse(&pulse).into())
}

async fn publish(core: &Core, kind: PulseKind, reason: Option<&str>) -> Result<(), NatsError> {
    let subject = core.subjects.pulse(&core.source, kind);
    let (headers, body) = message(core, kind, reason);
    core.connection
        .publish(subject, None, Some(headers), body)
        .await
}

/// The last thing that is said.
pub(super) async fn die(core: &Core, reason: &str) {
    let generation = core.connection.generation();
    if publish(core, PulseKind::Death, Some(reason)).await.is_ok() {
        // Else it could be lost with the socket that is closed next.
        let _ = core.connection.confirm_since(generation).await;
    }
}

async fn beat(core: Arc<Core>) {
    let mut link = core.connection.watch();
    let mut born = 0;
    let mut next = core.clock.now() + core.heartbeat;
    loop {
        link.borrow_and_update();
        let generation = core.connection.generation();
        if generation != born && core.connection.is_up() {
            if publish(&core, PulseKind::Birth, None).await.is_ok() {
                core.stats.births.fetch_add(1, Relaxed);
                born = generation;
                core.born.store(generation, Release);
                core.bell.notify_one();
            } else {
                core.stats.publish_errors.fetch_add(1, Relaxed);
            }
        }
        tokio::select! {
            // Not before: sending the last alerts may take longer than others wait for a sign of life.
            () = core.ended() => return,
            changed = link.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = core.clock.sleep_until(next) => {
                if core.is_running() && core.bus.strong_count() == 0 {
                    let core = core.clone();
                    tokio::spawn(async move {
                        close(core, "its bus has ended", Instant::now() + LAST_WORDS).await;
                    });
                }
                if born == core.connection.generation()
                    && publish(&core, PulseKind::Heartbeat, None).await.is_ok()
                {
                    core.stats.heartbeats.fetch_add(1, Relaxed);
                }
                // After a time in which nothing could be sent, or a clock that leapt, there is nothing to make up for.
                let now = core.clock.now();
                next = next + core.heartbeat;
                if next <= now {
                    next = now + core.heartbeat;
                }
            }
        }
    }
}

async fn answer(core: Arc<Core>, mut hello: Subscriber) {
    /// Of those who come at once all get an answer, but not more than this in a second: each costs us a message, and
    /// them one for each source.
    const PER_SECOND: f64 = 100.0;
    let mut bucket = super::rate::Bucket::new(PER_SECOND, Instant::now());
    loop {
        let message = tokio::select! {
            () = core.closing() => return,
            message = hello.next() => message,
        };
        let Some(message) = message else { return };
        let Some(reply) = message.reply else { continue };
        if let Err(wait) = bucket.take(Instant::now()) {
            tokio::time::sleep(wait.min(Duration::from_secs(1))).await;
        }
        let (headers, body) = self::message(&core, PulseKind::Heartbeat, None);
        let sent = core.connection.publish(reply, None, Some(headers), body);
        if sent.await.is_ok() {
            core.stats.hellos.fetch_add(1, Relaxed);
        }
    }
}
