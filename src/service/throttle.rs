//! `Throttle`: at most one alert of a rule and group in an interval.

use std::{sync::Arc, time::Duration};

use super::{
    keys::{AlertKey, KEYS_MAX_DEFAULT, Keys, key_of},
    relay::{Effects, Ground, Machine, relayed},
};
use crate::{
    MetricBus,
    rule::{Alert, AlertState},
    time::Time,
};

/// Sends at most one alert of a rule and group in an interval.
///
/// The first is sent at once and begins an interval. Of those that come within it the last is sent at its end, which
/// begins the next, unless its state and level are those of the alert sent last. The others are passed over, and
/// counted.
///
/// | `Throttle` of 10 s | 0 s | 2 s | 4 s | 10 s | 13 s | 20 s | 25 s |
/// |---|---|---|---|---|---|---|---|
/// | comes | firing | resolved | firing | | resolved | | firing |
/// | is sent | firing | | | (nothing: still firing) | resolved | | firing |
///
/// ```
/// use std::time::Duration;
/// use metricbus::{Alert, AlertState, MetricBus, service::{Throttle, callback}};
/// use tower::{Service, ServiceBuilder};
///
/// let bus = MetricBus::new();
/// let (tell, told) = std::sync::mpsc::channel();
/// let mut service = ServiceBuilder::new()
///     .layer(Throttle::new(&bus, Duration::from_secs(60)))
///     .service(callback(move |alert: Alert| drop(tell.send(alert.state))));
///
/// // `bus.on_alert().service(service)` would call it with each alert; here it is called by hand.
/// let _ = service.call(Alert::new("QueueDeep", AlertState::Firing, bus.clock().now()));
/// let _ = service.call(Alert::new("QueueDeep", AlertState::Resolved, bus.clock().now()));
/// drop(service);
/// assert_eq!(told.recv()?, AlertState::Firing);
/// // The end comes before the end of the minute, so the last state is sent now.
/// assert_eq!(told.recv()?, AlertState::Resolved);
/// # Ok::<(), std::sync::mpsc::RecvError>(())
/// ```
#[derive(Clone)]
pub struct Throttle {
    ground: Ground,
    interval: Duration,
    keys: usize,
}

impl Throttle {
    /// A throttle on the bus's clock. An interval of zero lets everything pass.
    pub fn new(bus: &MetricBus, interval: Duration) -> Self {
        Throttle {
            ground: Ground::of(bus),
            interval,
            keys: KEYS_MAX_DEFAULT,
        }
    }

    /// How many rules and groups it remembers at once: 10 000 unless told otherwise; 0 counts as 1. Beyond that it
    /// forgets the one longest unused, sending what it held back of it.
    pub fn keys(mut self, max: usize) -> Self {
        self.keys = max;
        self
    }

    /// How many alerts may wait for the inner service: 256 unless told otherwise. The oldest is dropped and counted.
    pub fn capacity(mut self, alerts: usize) -> Self {
        self.ground = self.ground.with_capacity(alerts);
        self
    }

    fn machine(&self) -> ThrottleMachine {
        ThrottleMachine {
            interval: self.interval,
            keys: Keys::new(self.keys),
        }
    }
}

relayed! {
    /// The service of a [`Throttle`].
    ThrottleService, Throttle, ThrottleMachine => Alert
}

pub(super) struct ThrottleMachine {
    interval: Duration,
    /// Those in whose interval we are; due at its end.
    keys: Keys<AlertKey, Interval>,
}

struct Interval {
    sent: Said,
    held: Option<Alert>,
}

/// What an alert says, and by which two are compared.
type Said = (AlertState, Option<Arc<str>>);

pub(super) fn said(alert: &Alert) -> Said {
    (alert.state, alert.level.clone())
}

impl Interval {
    /// What is worth sending at its end.
    fn close(&mut self, effects: &mut Effects<Alert>) -> Option<Alert> {
        let held = self.held.take()?;
        if said(&held) == self.sent {
            effects.passed_over += 1;
            return None;
        }
        Some(held)
    }
}

impl Machine for ThrottleMachine {
    type Out = Alert;
    const NAME: &'static str = "throttle";

    fn take(&mut self, alert: Alert, now: Time, effects: &mut Effects<Alert>) {
        let key = key_of(&alert);
        if let Some(interval) = self.keys.get(&key) {
            let before = interval.held.replace(alert);
            effects.passed_over += u64::from(before.is_some());
            return;
        }
        let interval = Interval {
            sent: said(&alert),
            held: None,
        };
        let forgotten = self.keys.insert(key, interval, Some(now + self.interval));
        if let Some(mut interval) = forgotten {
            effects.forgotten += 1;
            let held = interval.close(effects);
            effects.send.extend(held);
        }
        effects.send.push(alert);
    }

    fn expire(&mut self, now: Time, effects: &mut Effects<Alert>) {
        while let Some(key) = self.keys.pop_due(now) {
            let Some(interval) = self.keys.get(&key) else {
                continue;
            };
            match interval.close(effects) {
                Some(held) if !self.interval.is_zero() => {
                    interval.sent = said(&held);
                    effects.send.push(held);
                    self.keys.set_due(&key, Some(now + self.interval));
                }
                held => {
                    effects.send.extend(held);
                    self.keys.remove(&key);
                }
            }
        }
    }

    fn next_due(&self) -> Option<Time> {
        self.keys.next_due()
    }

    fn end(&mut self, effects: &mut Effects<Alert>) {
        for mut interval in self.keys.drain() {
            let held = interval.close(effects);
            effects.send.extend(held);
        }
    }
}

#[cfg(test)]
pub(super) fn machine(secs: u64, keys: usize) -> ThrottleMachine {
    ThrottleMachine {
        interval: Duration::from_secs(secs),
        keys: Keys::new(keys),
    }
}

#[cfg(test)]
mod tests {
    use super::super::by_hand::{ByHand, firing, level, resolved};
    use super::*;

    fn throttle(secs: u64, keys: usize) -> ByHand<ThrottleMachine> {
        ByHand::new(machine(secs, keys))
    }

    #[test]
    fn within_an_interval_the_last_state_is_sent_at_its_end_if_it_differs() {
        let mut throttle = throttle(10, 8);
        assert_eq!(throttle.at(0, firing("a")), ["firing"]);
        assert_eq!(throttle.at(2, resolved("a")), [""; 0]);
        assert_eq!(throttle.at(4, firing("a")), [""; 0]);
        assert_eq!(throttle.at(6, resolved("a")), [""; 0]);
        assert_eq!(throttle.until(9), [""; 0]);
        assert_eq!(throttle.until(10), ["resolved"]);
        assert_eq!(throttle.passed_over, 2);
        // And that begins the next interval.
        assert_eq!(throttle.at(12, firing("a")), [""; 0]);
        assert_eq!(throttle.until(20), ["firing"]);
    }

    #[test]
    fn a_state_that_is_back_to_what_was_sent_is_not_sent_again() {
        let mut throttle = throttle(10, 8);
        assert_eq!(throttle.at(0, firing("a")), ["firing"]);
        assert_eq!(throttle.at(2, resolved("a")), [""; 0]);
        assert_eq!(throttle.at(4, firing("a")), [""; 0]);
        assert_eq!(throttle.until(10), [""; 0]);
        assert_eq!(throttle.passed_over, 2);
        assert_eq!(throttle.next(), None);
        assert_eq!(throttle.at(11, resolved("a")), ["resolved"]);
    }

    #[test]
    fn another_level_is_another_state() {
        let mut throttle = throttle(10, 8);
        assert_eq!(throttle.at(0, level("a", "warn")), ["warn"]);
        assert_eq!(throttle.at(1, level("a", "critical")), [""; 0]);
        assert_eq!(throttle.until(10), ["critical"]);
    }

    #[test]
    fn each_rule_and_group_has_its_own_interval() {
        let mut throttle = throttle(10, 8);
        assert_eq!(throttle.at(0, firing("a")), ["firing"]);
        assert_eq!(throttle.at(1, firing("b")), ["firing"]);
    }

    #[test]
    fn one_forgotten_for_another_sends_what_it_held() {
        let mut throttle = throttle(10, 1);
        throttle.at(0, firing("a"));
        throttle.at(1, resolved("a"));
        assert_eq!(throttle.at(2, firing("b")), ["resolved", "firing"]);
        assert_eq!(throttle.forgotten, 1);
    }

    #[test]
    fn an_interval_of_nothing_lets_everything_pass() {
        let mut throttle = throttle(0, 8);
        assert_eq!(throttle.at(0, firing("a")), ["firing"]);
        assert_eq!(throttle.at(0, resolved("a")), ["resolved"]);
        assert_eq!(throttle.at(0, firing("a")), ["firing"]);
    }

    #[test]
    fn at_the_end_what_is_held_is_sent() {
        let mut throttle = throttle(10, 8);
        throttle.at(0, firing("a"));
        throttle.at(1, resolved("a"));
        assert_eq!(throttle.end(), ["resolved"]);
    }
}
