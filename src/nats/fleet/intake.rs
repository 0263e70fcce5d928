//! The one task that takes in what sources say: it checks that a message is what it claims to be, gives it to the table of
//! sources, and does what comes of it. It never waits for anybody: questions are asked by tasks of their own, which take
//! turns.

use std::{pin::pin, sync::Arc, time::Duration};

use async_nats::{Message, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use tokio::{
    sync::watch,
    task::{JoinSet, unconstrained},
    time::Instant,
};

use super::{
    Shared,
    ask::{self, AskError, Snapshot, Taken, Turns},
    event::{SourceChange, SourceStatus},
    shown::{Outcome, Shown},
    source::{Effect, WordKind},
    table::{Invalid, Reaction},
};
use crate::{
    Alert, Clock, Family, Gauge, SourceId,
    mirror::Mirror,
    nats::{
        connection::{ConnectionState, Link},
        subject::{About, SubjectError},
        wire::{
            WireError,
            envelope::{self, Envelope},
            frame::{Frame, decode_frame},
            pulse::{Pulse, decode_pulse},
            query::SnapshotRequest,
        },
    },
    sync::lock,
    time::Time,
};

/// Time is looked at so often.
const TICK: Duration = Duration::from_millis(50);

/// So many frames are taken in before anything else is looked at.
const CROWD: usize = 64;

/// When nobody else has answered a greeting for so long, all have; and in any case after the second.
const GREETING_QUIET: Duration = Duration::from_millis(300);
const GREETING_MAX: Duration = Duration::from_secs(3);

/// What came of a question.
enum Answer {
    Info(SourceId, Result<Pulse, AskError>),
    Snapshot(SourceId, Result<Snapshot, AskError>),
    Alerts {
        source: SourceId,
        boot: u64,
        asked: (u64, u64),
        given: Result<Given, AskError>,
    },
    Greeting(Result<Subscriber, AskError>),
}

pub(super) struct Intake {
    shared: Arc<Shared>,
    shown: Shown,
    up: Family<Gauge>,
    frames: Subscriber,
    alerts: Subscriber,
    pulses: Subscriber,
    link: watch::Receiver<Link>,
    seen: Link,
    greeting: Option<Greeting>,
    asked: JoinSet<Answer>,
    probes: Turns,
    snapshots: Turns,
    recalls: Turns,
}

/// Answers to a greeting.
struct Greeting {
    answers: Subscriber,
    quiet: Instant,
    end: Instant,
}

impl Intake {
    pub(super) fn new(
        shared: Arc<Shared>,
        series_max: usize,
        up: Family<Gauge>,
        [frames, alerts, pulses]: [Subscriber; 3],
    ) -> Intake {
        let link = shared.asker.connection.watch();
        Intake {
            shown: Shown::new(Mirror::new(&shared.bus), series_max),
            up,
            frames,
            alerts,
            pulses,
            // As if it had never been up: what it is comes as the first change.
            seen: Link {
                state: ConnectionState::Connecting,
                generation: 0,
                denied: 0,
                slow: 0,
            },
            link,
            greeting: None,
            asked: JoinSet::new(),
            probes: Turns::new(),
            snapshots: Turns::new(),
            recalls: Turns::new(),
            shared,
        }
    }

    /// Until `stop` says so, or whoever could say so is gone.
    pub(super) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        self.see_link();
        let clock = self.shared.bus.clock().clone();
        let mut tick = pin!(clock.sleep(TICK));
        loop {
            let greeting = self.greeting.as_mut();
            tokio::select! {
                _ = stop.changed() => break,
                Some(message) = self.frames.next() => {
                    // Whoever comes often comes in crowds.
                    let mut crowd = vec![message];
                    while crowd.len() < CROWD
                        && let Some(Some(message)) = self.frames.next().now_or_never()
                    {
                        crowd.push(message);
                    }
                    self.take_pulses();
                    crowd.into_iter().for_each(|message| self.take(message));
                }
                Some(message) = self.alerts.next() => {
                    self.take_pulses();
                    self.take(message);
                }
                Some(message) = self.pulses.next() => self.take(message),
                answer = hear(greeting) => self.greeted(answer),
                Some(Ok(answer)) = self.asked.join_next() => self.answered(answer),
                Ok(()) = self.link.changed() => self.see_link(),
                () = &mut tick => {
                    self.tick();
                    // From now on, should it have taken long to come here.
                    tick.set(clock.sleep(TICK));
                }
            }
        }
        self.shown.clear_all();
        let sources = lock(&self.shared.table).statuses(self.now());
        for SourceStatus { source, .. } in sources {
            // Of a source that was never up there is none.
            let _ = self
                .up
                .remove(&[&source.namespace, &source.component, &source.instance]);
        }
    }

    fn now(&self) -> Time {
        self.shared.bus.clock().now()
    }

    /// What came over the connection before a message that is at hand waits by now, in the subscriptions: a source's birth is
    /// taken in before its frames and alerts.
    fn take_pulses(&mut self) {
        // Tokio makes a task that has read much see nothing, for fairness' sake: that would not do here.
        while let Some(Some(message)) = unconstrained(self.pulses.next()).now_or_never() {
            self.take(message);
        }
    }

    /// A message of a subscription.
    fn take(&mut self, message: Message) {
        let now = self.now();
        let taken = self.read(&message, now);
        match taken {
            Ok((source, reaction)) => self.carry_out(&source, reaction),
            Err((what, why)) => self.shared.ignore(what, 1, Some(why)),
        }
    }

    fn read(
        &self,
        message: &Message,
        now: Time,
    ) -> Result<(SourceId, Reaction), (Invalid, String)> {
        let subject = message.subject.as_str();
        let address = self
            .shared
            .asker
            .subjects
            .parse(subject)
            .map_err(|error: SubjectError| (Invalid::Subject, error.to_string()))?;
        let of = |what: Invalid, why: &dyn std::fmt::Display| {
            (what, format!("{} at {subject}: {why}", address.source))
        };
        let envelope = Envelope::read(message.headers.as_ref())
            .map_err(|error| of(Invalid::Headers, &error))?;
        if envelope.source != address.source {
            let why = format!("its headers say {}", envelope.source);
            return Err(of(Invalid::Mismatch, &why));
        }
        let Envelope {
            ref source,
            epoch,
            sequence,
        } = envelope;
        let body = |error: WireError| of(Invalid::Body, &error);
        let reaction = match &address.about {
            About::Frame { .. } => {
                let body = message.payload.clone();
                self.table().frame(source, epoch, sequence, body, now)
            }
            About::Alert { rule, state } => {
                let alert = ask::read_body(&envelope, &message.payload, now).map_err(body)?;
                if *alert.rule != **rule || alert.state != *state {
                    let why = format!("its body says {} {}", alert.rule, alert.state);
                    return Err(of(Invalid::Mismatch, &why));
                }
                self.table().alert(source, epoch, sequence, alert, now)
            }
            About::Pulse(kind) => {
                let pulse = decode_pulse(&message.payload).map_err(body)?;
                if pulse.source != *source || pulse.epoch != epoch || pulse.kind != *kind {
                    return Err(of(Invalid::Mismatch, &"its body says something else"));
                }
                self.pulse(&pulse, WordKind::from(*kind), now)
            }
            About::Query(_) => return Err(of(Invalid::Subject, &"a question to somebody else")),
        };
        Ok((envelope.source, reaction))
    }

    fn table(&self) -> std::sync::MutexGuard<'_, super::table::Table> {
        lock(&self.shared.table)
    }

    fn pulse(&self, pulse: &Pulse, kind: WordKind, now: Time) -> Reaction {
        let date = self.shared.bus.clock().wall(now);
        self.table().pulse(&pulse.source, pulse, kind, now, date)
    }

    /// The answer of somebody to our greeting, or that no more are to be expected.
    fn greeted(&mut self, answer: Option<Message>) {
        let now = self.now();
        let nobody = answer.as_ref().is_some_and(ask::is_nobody);
        let Some(message) = answer.filter(|_| !nobody) else {
            self.greeting = None;
            self.table().greeted();
            self.see_synced();
            return;
        };
        if let Some(greeting) = &mut self.greeting {
            greeting.quiet = (Instant::now() + GREETING_QUIET).min(greeting.end);
        }
        let pulse = envelope::check_error(message.headers.as_ref())
            .and_then(|()| decode_pulse(&message.payload));
        match pulse {
            Ok(pulse) if self.shared.wants(&pulse.source) => {
                let reaction = self.pulse(&pulse, WordKind::Answer, now);
                self.carry_out(&pulse.source, reaction);
            }
            Ok(_) => {}
            Err(error) => {
                let why = format!("an answer to a greeting: {error}");
                self.shared.ignore(Invalid::Body, 1, Some(why));
            }
        }
    }

    fn answered(&mut self, answer: Answer) {
        let now = self.now();
        match answer {
            Answer::Greeting(Ok(answers)) => {
                let now = Instant::now();
                self.greeting = Some(Greeting {
                    answers,
                    quiet: now + GREETING_QUIET.max(ask::ANSWER / 2),
                    end: now + GREETING_MAX,
                });
            }
            Answer::Greeting(Err(error)) => {
                let up = self.table().link().is_up();
                if up && !matches!(error, AskError::Nats(_)) {
                    self.greet();
                }
            }
            Answer::Info(source, Ok(pulse)) => {
                let reaction = self.pulse(&pulse, WordKind::Answer, now);
                self.carry_out(&source, reaction);
            }
            Answer::Info(source, Err(AskError::Nobody)) => {
                let reaction = self.table().nobody(&source, now);
                self.carry_out(&source, reaction);
            }
            Answer::Info(source, Err(error)) => {
                let why = format!("asked whether it is there: {error}");
                let reaction = self.table().unanswered(&source, why, now);
                self.carry_out(&source, reaction);
            }
            Answer::Snapshot(source, Ok(snapshot)) => {
                let Snapshot {
                    boot,
                    sequence,
                    frames,
                    taken: _taken,
                } = snapshot;
                let reaction = self.table().snapshot(&source, boot, sequence, frames, now);
                self.carry_out(&source, reaction);
            }
            Answer::Snapshot(source, Err(error)) => {
                let why = format!("asked for a snapshot: {error}");
                self.shared.warn(&source, &why);
                let reaction = self.table().snapshot_failed(&source, why, now);
                self.carry_out(&source, reaction);
            }
            Answer::Alerts {
                source,
                boot,
                asked,
                given: Ok(given),
            } => {
                let Given {
                    alerts,
                    firing,
                    taken: _taken,
                } = given;
                let mut table = self.table();
                let reaction = table.alerts_answer(&source, boot, asked, firing, alerts, now);
                drop(table);
                self.carry_out(&source, reaction);
            }
            Answer::Alerts {
                source,
                boot,
                asked,
                given: Err(error),
            } => {
                let why = format!("asked for alerts {} to {}: {error}", asked.0, asked.1);
                self.shared.warn(&source, &why);
                let reaction = self.table().alerts_failed(&source, boot, asked, why, now);
                self.carry_out(&source, reaction);
            }
        }
        self.see_synced();
    }

    /// The own connection has changed.
    fn see_link(&mut self) {
        let link = self.link.borrow_and_update().clone();
        let now = self.now();
        let up = link.state == ConnectionState::Connected;
        let was_up = self.seen.state == ConnectionState::Connected;
        if up && (!was_up || link.generation != self.seen.generation) {
            self.table().set_link(true, now);
            self.greet();
        } else if was_up && !up {
            self.table().set_link(false, now);
            self.greeting = None;
        }
        if link.slow > self.seen.slow {
            tracing::warn!(
                dropped = link.slow - self.seen.slow,
                "metricbus: the fleet did not keep up, and messages of sources were dropped; all sources are asked for snapshots"
            );
            self.table().distrust_all();
        }
        self.seen = link;
        self.see_synced();
    }

    /// Asks who is there.
    fn greet(&mut self) {
        self.greeting = None;
        let asker = self.shared.asker.clone();
        self.asked.spawn(async move {
            let hello = asker.subjects.hello();
            Answer::Greeting(asker.call(hello, Bytes::new()).await)
        });
    }

    fn tick(&mut self) {
        let now = self.now();
        let (reactions, forgotten) = self.table().tick(now);
        for (source, reaction) in reactions {
            self.carry_out(&source, reaction);
        }
        for source in &forgotten {
            self.shared.alerts.withdraw(source, true);
        }
        self.see_synced();
    }

    fn see_synced(&self) {
        let up = self.seen.state == ConnectionState::Connected;
        let synced = up && self.table().is_synced();
        self.shared.synced.send_if_modified(|before| {
            let changed = *before != synced;
            *before = synced;
            changed
        });
    }

    fn carry_out(&mut self, source: &SourceId, reaction: Reaction) {
        let boot = reaction.boot;
        for effect in reaction.effects {
            match effect {
                Effect::Apply(body) => self.apply(source, boot, &body),
                Effect::Replace { parts, news } => {
                    let frames = parts
                        .iter()
                        .filter_map(|body| self.decode(source, body))
                        .collect();
                    let outcome = self.shown.replace(source, frames, news);
                    for body in &parts {
                        self.shown.learn(source, body);
                    }
                    self.note(source, boot, outcome);
                }
                Effect::Clear => {
                    self.shown.clear(source);
                    self.table().cleared(source);
                }
                Effect::Deliver(alert) => self.shared.alerts.deliver(source, alert),
                Effect::Recall(alert) => self.shared.alerts.recall(source, &alert),
                Effect::Recalled | Effect::Restore => self.shared.alerts.tell(source),
                Effect::Withdraw { forever } => self.shared.alerts.withdraw(source, forever),
                Effect::Tell(change) => self.tell(source, boot, change),
            }
        }
        let wants = reaction.wants;
        if wants.probe {
            let turns = self.probes.clone();
            self.ask(source, turns, |asker, source| async move {
                let info = asker.info(&source).await;
                Answer::Info(source, info)
            });
        }
        if wants.snapshot {
            let turns = self.snapshots.clone();
            self.ask(source, turns, move |asker, source| async move {
                let all = SnapshotRequest::default();
                let snapshot = asker.snapshot(&source, Some(boot), &all).await;
                Answer::Snapshot(source, snapshot)
            });
        }
        if let Some(asked) = wants.alerts {
            let clock = self.shared.bus.clock().clone();
            let turns = self.recalls.clone();
            self.ask(source, turns, move |asker, source| async move {
                let given = given(&asker, &source, boot, asked, wants.firing, &clock).await;
                Answer::Alerts {
                    source,
                    boot,
                    asked,
                    given,
                }
            });
        }
    }

    fn apply(&mut self, source: &SourceId, boot: u64, body: &Bytes) {
        let left = self.shown.quick(source, body).map(Bytes::from);
        let left = left.as_ref().unwrap_or(body);
        if left.is_empty() && !body.is_empty() {
            return;
        }
        if let Some(frame) = self.decode(source, left) {
            let outcome = self.shown.apply(source, frame);
            self.shown.learn(source, left);
            self.note(source, boot, outcome);
        }
    }

    fn ask<F>(
        &mut self,
        source: &SourceId,
        turns: Turns,
        question: impl FnOnce(ask::Asker, SourceId) -> F + Send + 'static,
    ) where
        F: Future<Output = Answer> + Send + 'static,
    {
        let (asker, source) = (self.shared.asker.clone(), source.clone());
        let question = question(asker, source);
        self.asked.spawn(async move { turns.ask(question).await });
    }

    fn decode(&self, source: &SourceId, body: &Bytes) -> Option<Frame> {
        match decode_frame(body) {
            Ok(decoded) if decoded.source != *source => {
                let why = format!("a frame of {source} says that it is of {}", decoded.source);
                self.shared.ignore(Invalid::Mismatch, 1, Some(why));
                None
            }
            Ok(decoded) => {
                if decoded.refused > 0 {
                    let why = decoded.why.unwrap_or_default();
                    let why = format!("in a frame of {source}: {why}");
                    self.shared
                        .ignore(Invalid::Point, decoded.refused as u64, Some(why));
                }
                Some(decoded.frame)
            }
            Err(error) => {
                let why = format!("a frame of {source}: {error}");
                self.shared.ignore(Invalid::Body, 1, Some(why));
                None
            }
        }
    }

    fn note(&self, source: &SourceId, boot: u64, outcome: Outcome) {
        if outcome.too_many > 0 {
            let why = format!("{source} has more series than a source may have");
            self.shared
                .ignore(Invalid::SeriesLimit, outcome.too_many, Some(why));
        }
        if outcome.clashing > 0 {
            self.shared.ignore(Invalid::Clash, outcome.clashing, None);
        }
        self.shared.count_fell(outcome.fell);
        if outcome.series.is_some() || outcome.incomplete || !outcome.refused.is_empty() {
            let mut table = self.table();
            table.note(source, outcome.series, &outcome.refused);
            if outcome.incomplete {
                table.distrust(source);
            }
        }
        for (metric, why) in outcome.refused {
            tracing::warn!(source = %source, metric, "metricbus: a metric is left out: {why}");
            let change = SourceChange::Refused { metric, why };
            self.shared.events.tell(source, boot, change);
        }
    }

    fn tell(&self, source: &SourceId, boot: u64, change: SourceChange) {
        let labels: [&str; 3] = [&source.namespace, &source.component, &source.instance];
        let up = match &change {
            SourceChange::Born
            | SourceChange::Restarted { .. }
            | SourceChange::Live
            | SourceChange::Back => Some(1.0),
            SourceChange::Stale => Some(0.0),
            SourceChange::Gone { .. } => {
                let _ = self.up.remove(&labels);
                None
            }
            SourceChange::Conflict { .. }
            | SourceChange::AlertsLost { .. }
            | SourceChange::Refused { .. } => None,
        };
        if let (Some(up), Ok(gauge)) = (up, self.up.with_label_values(&labels)) {
            gauge.set(up);
        }
        match &change {
            // Not a line for each: both can go on for as long as a source is wrong.
            SourceChange::Conflict { .. } | SourceChange::AlertsLost { .. } => {
                self.shared.warn(source, &format!("source {change}"));
            }
            SourceChange::Gone { .. } | SourceChange::Stale => {
                tracing::info!(source = %source, boot, "metricbus: source {change}");
            }
            _ => tracing::debug!(source = %source, boot, "metricbus: source {change}"),
        }
        self.shared.events.tell(source, boot, change);
    }
}

/// Alerts that were asked for, and what was firing before them; and the room that they take.
struct Given {
    alerts: Vec<(u64, Alert)>,
    firing: Vec<Alert>,
    taken: [Taken; 2],
}

async fn given(
    asker: &ask::Asker,
    source: &SourceId,
    boot: u64,
    asked: (u64, u64),
    firing: bool,
    clock: &Clock,
) -> Result<Given, AskError> {
    // First: what is said after this is among the alerts.
    let (firing, room_of_firing) = match firing {
        true => match asker.firing(source, boot, clock).await {
            // A source of another kind need not have rules, nor know that question.
            Err(AskError::Nobody | AskError::Wrong(WireError::Refused { code: 404, .. })) => {
                Default::default()
            }
            firing => firing?,
        },
        false => Default::default(),
    };
    let (alerts, room_of_alerts) = asker.alerts(source, boot, asked, clock.now()).await?;
    Ok(Given {
        alerts,
        firing,
        taken: [room_of_firing, room_of_alerts],
    })
}

/// The next answer to a greeting; `None` when no more are to be expected. Never, where nobody was greeted.
async fn hear(greeting: Option<&mut Greeting>) -> Option<Message> {
    match greeting {
        Some(greeting) => {
            let answer = tokio::time::timeout_at(greeting.quiet, greeting.answers.next());
            answer.await.ok().flatten()
        }
        None => std::future::pending().await,
    }
}
