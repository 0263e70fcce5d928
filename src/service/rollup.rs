//! `Rollup`: many alerts as one notification.

use std::time::Duration;

use super::{
    keys::{KEYS_MAX_DEFAULT, Keys, key_of},
    relay::{Effects, Ground, Machine, relayed},
};
use crate::{
    MetricBus,
    backlog::Subject,
    rule::{Alert, Pairs},
    time::Time,
};

/// Gathers alerts, and sends them together as [`Rolled`].
///
/// The first alert begins a batch, which is sent a time later (as Alertmanager's `group_wait`), or when it is full. The
/// inner service is a `Service<Rolled>`.
///
/// ```
/// use std::time::Duration;
/// use metricbus::{Alert, AlertState, Clock, MetricBus, service::{Rolled, Rollup, callback}};
/// use tower::{Service, ServiceBuilder};
///
/// let clock = Clock::manual();
/// let bus = MetricBus::builder().clock(clock.clone()).build();
/// let (tell, told) = std::sync::mpsc::channel();
/// let mut service = ServiceBuilder::new()
///     .layer(Rollup::new(&bus, Duration::from_secs(5)).max(50))
///     .service(callback(move |rolled: Rolled| drop(tell.send(rolled.alerts.len()))));
///
/// for rule in ["QueueDeep", "KvCacheFull"] {
///     let _ = service.call(Alert::new(rule, AlertState::Firing, clock.now()));
/// }
/// clock.advance(Duration::from_secs(5));
/// assert_eq!(told.recv()?, 2);
/// # Ok::<(), std::sync::mpsc::RecvError>(())
/// ```
#[derive(Clone)]
pub struct Rollup {
    ground: Ground,
    limits: Limits,
    keys: usize,
}

#[derive(Clone)]
struct Limits {
    wait: Duration,
    max: usize,
    by: Vec<String>,
    latest_only: bool,
}

/// How many alerts a batch holds unless told otherwise.
const MAX_DEFAULT: usize = 100;

/// Alerts that were gathered. Never empty.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Rolled {
    /// In the order in which they came.
    pub alerts: Vec<Alert>,
    /// What they have in common: the labels of [`Rollup::by`], empty where an alert has none of that name.
    pub group: Pairs,
    /// With [`Rollup::latest_only`], how many others of the same rules and groups were left out.
    pub superseded: u64,
    /// When the first came, by the bus's clock.
    pub since: Time,
}

impl Rollup {
    /// Waits for `wait` on the bus's clock after the first alert of a batch. Zero sends each by itself.
    pub fn new(bus: &MetricBus, wait: Duration) -> Self {
        Rollup {
            ground: Ground::of(bus),
            limits: Limits {
                wait,
                max: MAX_DEFAULT,
                by: Vec::new(),
                latest_only: false,
            },
            keys: KEYS_MAX_DEFAULT,
        }
    }

    /// How many alerts a batch holds: 100 unless told otherwise; 0 counts as 1. A full one is sent at once.
    pub fn max(mut self, alerts: usize) -> Self {
        self.limits.max = alerts.max(1);
        self
    }

    /// A batch for each set of values of these labels, rather than one for all.
    pub fn by<I>(mut self, labels: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        self.limits.by = labels.into_iter().map(Into::into).collect();
        self.limits.by.sort();
        self.limits.by.dedup();
        self
    }

    /// Of several alerts of one rule and group only the last, in its place. Otherwise all are kept, in order.
    pub fn latest_only(mut self, latest_only: bool) -> Self {
        self.limits.latest_only = latest_only;
        self
    }

    /// How many batches it gathers at once: 10 000 unless told otherwise; 0 counts as 1. Beyond that it sends the one
    /// longest unused.
    pub fn keys(mut self, max: usize) -> Self {
        self.keys = max;
        self
    }

    /// How many batches may wait for the inner service: 256 unless told otherwise. The oldest is dropped and counted.
    pub fn capacity(mut self, batches: usize) -> Self {
        self.ground = self.ground.with_capacity(batches);
        self
    }

    fn machine(&self) -> RollupMachine {
        RollupMachine {
            limits: self.limits.clone(),
            batches: Keys::new(self.keys),
        }
    }
}

relayed! {
    /// The service of a [`Rollup`].
    RollupService, Rollup, RollupMachine => Rolled
}

pub(super) struct RollupMachine {
    limits: Limits,
    batches: Keys<Pairs, Rolled>,
}

/// A batch is told once, and supersedes none.
impl Subject for Rolled {
    fn subject(&self) -> Option<u64> {
        None
    }

    fn is_final(&self) -> bool {
        true
    }
}

impl Machine for RollupMachine {
    type Out = Rolled;
    const NAME: &'static str = "rollup";

    fn take(&mut self, alert: Alert, now: Time, effects: &mut Effects<Rolled>) {
        let value = |name: &String| alert.label(name).unwrap_or_default().to_owned();
        let group: Pairs = self
            .limits
            .by
            .iter()
            .map(|name| (name.clone(), value(name)))
            .collect();
        if self.batches.get(&group).is_none() {
            let batch = Rolled {
                alerts: Vec::new(),
                group: group.clone(),
                superseded: 0,
                since: now,
            };
            let due = Some(now + self.limits.wait);
            if let Some(forgotten) = self.batches.insert(group.clone(), batch, due) {
                effects.forgotten += 1;
                effects.send.push(forgotten);
            }
        }
        let Some(batch) = self.batches.get(&group) else {
            return;
        };
        if self.limits.latest_only {
            let key = key_of(&alert);
            let before = batch.alerts.len();
            batch.alerts.retain(|other| key_of(other) != key);
            let superseded = (before - batch.alerts.len()) as u64;
            batch.superseded += superseded;
            effects.passed_over += superseded;
        }
        batch.alerts.push(alert);
        if batch.alerts.len() >= self.limits.max {
            effects.send.extend(self.batches.remove(&group));
        }
    }

    fn expire(&mut self, now: Time, effects: &mut Effects<Rolled>) {
        while let Some(group) = self.batches.pop_due(now) {
            effects.send.extend(self.batches.remove(&group));
        }
    }

    fn next_due(&self) -> Option<Time> {
        self.batches.next_due()
    }

    fn end(&mut self, effects: &mut Effects<Rolled>) {
        effects.send.extend(self.batches.drain());
    }
}

#[cfg(test)]
pub(super) fn machine(secs: u64, max: usize) -> RollupMachine {
    RollupMachine {
        limits: Limits {
            wait: Duration::from_secs(secs),
            max,
            by: Vec::new(),
            latest_only: false,
        },
        batches: Keys::new(KEYS_MAX_DEFAULT),
    }
}

#[cfg(test)]
mod tests {
    use super::super::by_hand::{ByHand, firing, resolved};
    use super::*;

    fn rollup(change: impl FnOnce(&mut Limits), keys: usize) -> ByHand<RollupMachine> {
        let mut machine = machine(10, MAX_DEFAULT);
        change(&mut machine.limits);
        machine.batches = Keys::new(keys);
        ByHand::new(machine)
    }

    fn of(alert: Alert, worker: &str) -> Alert {
        Alert {
            labels: [("worker".to_owned(), worker.to_owned())].into(),
            ..alert
        }
    }

    #[test]
    fn alerts_are_gathered_for_a_time_after_the_first() {
        let mut rollup = rollup(|_| (), 8);
        assert_eq!(rollup.at(0, firing("a")), [""; 0]);
        assert_eq!(rollup.at(9, resolved("a")), [""; 0]);
        assert_eq!(rollup.until(10), ["[a firing, a resolved]"]);
        assert_eq!(rollup.at(15, firing("b")), [""; 0]);
        assert_eq!(rollup.until(25), ["[b firing]"]);
        assert_eq!(rollup.next(), None);
    }

    #[test]
    fn a_full_batch_is_sent_at_once() {
        let mut rollup = rollup(|limits| limits.max = 2, 8);
        rollup.at(0, firing("a"));
        assert_eq!(rollup.at(1, firing("b")), ["[a firing, b firing]"]);
        assert_eq!(rollup.next(), None);
    }

    #[test]
    fn each_value_of_the_labels_has_a_batch_of_its_own() {
        let mut rollup = rollup(|limits| limits.by = vec!["worker".to_owned()], 8);
        rollup.at(0, of(firing("a"), "1"));
        rollup.at(1, of(firing("b"), "2"));
        rollup.at(2, of(firing("c"), "1"));
        assert_eq!(rollup.until(10), ["worker=1 [a firing, c firing]"]);
        assert_eq!(rollup.until(11), ["worker=2 [b firing]"]);
        assert_eq!(rollup.at(12, firing("d")), [""; 0]);
        assert_eq!(rollup.until(22), ["worker= [d firing]"]);
    }

    #[test]
    fn latest_only_keeps_the_last_of_each_and_counts_the_others() {
        let mut rollup = rollup(|limits| limits.latest_only = true, 8);
        rollup.at(0, firing("a"));
        rollup.at(1, firing("b"));
        rollup.at(2, resolved("a"));
        assert_eq!(rollup.until(10), ["[b firing, a resolved] superseded 1"]);
        assert_eq!(rollup.passed_over, 1);
    }

    #[test]
    fn of_too_many_batches_the_one_longest_unused_is_sent_early() {
        let mut rollup = rollup(|limits| limits.by = vec!["worker".to_owned()], 1);
        rollup.at(0, of(firing("a"), "1"));
        assert_eq!(rollup.at(1, of(firing("b"), "2")), ["worker=1 [a firing]"]);
        assert_eq!(rollup.end(), ["worker=2 [b firing]"]);
        assert_eq!(rollup.forgotten, 1);
    }

    #[test]
    fn no_wait_sends_each_by_itself() {
        let mut rollup = rollup(|limits| limits.wait = Duration::ZERO, 8);
        assert_eq!(rollup.at(0, firing("a")), ["[a firing]"]);
        assert_eq!(rollup.at(0, firing("a")), ["[a firing]"]);
    }
}
