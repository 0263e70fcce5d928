//! `Repeat`: what fires is said again and again.

use std::time::Duration;

use super::{
    keys::{AlertKey, KEYS_MAX_DEFAULT, Keys, key_of},
    relay::{Effects, Ground, Machine, relayed},
};
use crate::{MetricBus, rule::Alert, time::Time};

/// Sends the last firing alert of a rule and group again in every interval while it fires.
///
/// Each alert is passed on at once. A repetition is the alert as it was, with [`repeat`](Alert::repeat) = 1, 2 …; another
/// firing alert (of another level) begins anew. It stops at the resolved one.
///
/// | `Repeat` of 60 s | 0 s | 60 s | 120 s | 130 s |
/// |---|---|---|---|---|
/// | comes | firing | | | resolved |
/// | is sent | firing | firing, `repeat` 1 | firing, `repeat` 2 | resolved |
///
/// ```
/// use std::time::Duration;
/// use metricbus::{Alert, AlertState, Clock, MetricBus, service::{Repeat, callback}};
/// use tower::{Service, ServiceBuilder};
///
/// let clock = Clock::manual();
/// let bus = MetricBus::builder().clock(clock.clone()).build();
/// let (tell, told) = std::sync::mpsc::channel();
/// let mut service = ServiceBuilder::new()
///     .layer(Repeat::new(&bus, Duration::from_secs(60)))
///     .service(callback(move |alert: Alert| drop(tell.send(alert.repeat))));
///
/// let _ = service.call(Alert::new("QueueDeep", AlertState::Firing, clock.now()));
/// clock.advance(Duration::from_secs(120));
/// assert_eq!([told.recv()?, told.recv()?, told.recv()?], [0, 1, 2]);
/// # Ok::<(), std::sync::mpsc::RecvError>(())
/// ```
#[derive(Clone)]
pub struct Repeat {
    ground: Ground,
    interval: Duration,
    keys: usize,
}

/// A shorter interval would be a busy loop.
const INTERVAL_MIN: Duration = Duration::from_millis(10);

impl Repeat {
    /// Repeats on the bus's clock, every `interval`; less than 10 ms counts as 10 ms.
    pub fn new(bus: &MetricBus, interval: Duration) -> Self {
        Repeat {
            ground: Ground::of(bus),
            interval: interval.max(INTERVAL_MIN),
            keys: KEYS_MAX_DEFAULT,
        }
    }

    /// How many rules and groups it repeats at once: 10 000 unless told otherwise; 0 counts as 1. Beyond that the one
    /// that began first is repeated no more.
    pub fn keys(mut self, max: usize) -> Self {
        self.keys = max;
        self
    }

    /// How many alerts may wait for the inner service: 256 unless told otherwise. The oldest is dropped and counted.
    pub fn capacity(mut self, alerts: usize) -> Self {
        self.ground = self.ground.with_capacity(alerts);
        self
    }

    fn machine(&self) -> RepeatMachine {
        RepeatMachine {
            interval: self.interval,
            keys: Keys::new(self.keys),
        }
    }
}

relayed! {
    /// The service of a [`Repeat`].
    RepeatService, Repeat, RepeatMachine => Alert
}

struct RepeatMachine {
    interval: Duration,
    /// The last alert of those that fire, as it was sent last; due when it is repeated.
    keys: Keys<AlertKey, Alert>,
}

impl Machine for RepeatMachine {
    type Out = Alert;
    const NAME: &'static str = "repeat";

    fn take(&mut self, alert: Alert, now: Time, effects: &mut Effects<Alert>) {
        let key = key_of(&alert);
        let next = Some(now + self.interval);
        if !alert.is_firing() {
            self.keys.remove(&key);
        } else if let Some(last) = self.keys.get(&key) {
            *last = alert.clone();
            self.keys.set_due(&key, next);
        } else if self.keys.insert(key, alert.clone(), next).is_some() {
            effects.forgotten += 1;
        }
        effects.send.push(alert);
    }

    fn expire(&mut self, now: Time, effects: &mut Effects<Alert>) {
        while let Some(key) = self.keys.pop_due(now) {
            if let Some(last) = self.keys.get(&key) {
                last.repeat = last.repeat.saturating_add(1);
                effects.send.push(last.clone());
            }
            // After a pause of the machine once, and not for each interval that was missed.
            self.keys.set_due(&key, Some(now + self.interval));
        }
    }

    fn next_due(&self) -> Option<Time> {
        self.keys.next_due()
    }

    fn end(&mut self, _effects: &mut Effects<Alert>) {}
}

#[cfg(test)]
mod tests {
    use super::super::by_hand::{ByHand, firing, level, resolved};
    use super::*;

    fn repeat(secs: u64, keys: usize) -> ByHand<RepeatMachine> {
        ByHand::new(RepeatMachine {
            interval: Duration::from_secs(secs),
            keys: Keys::new(keys),
        })
    }

    #[test]
    fn a_firing_is_repeated_until_it_is_resolved() {
        let mut repeat = repeat(10, 8);
        assert_eq!(repeat.at(0, firing("a")), ["firing"]);
        assert_eq!(repeat.until(9), [""; 0]);
        assert_eq!(repeat.until(10), ["firing again 1"]);
        assert_eq!(repeat.until(20), ["firing again 2"]);
        assert_eq!(repeat.at(25, resolved("a")), ["resolved"]);
        assert_eq!(repeat.next(), None);
    }

    #[test]
    fn another_level_begins_anew() {
        let mut repeat = repeat(10, 8);
        repeat.at(0, level("a", "warn"));
        assert_eq!(repeat.until(10), ["warn again 1"]);
        assert_eq!(repeat.at(15, level("a", "critical")), ["critical"]);
        assert_eq!(repeat.until(24), [""; 0]);
        assert_eq!(repeat.until(25), ["critical again 1"]);
    }

    #[test]
    fn a_pause_of_the_machine_is_made_up_for_once() {
        let mut repeat = repeat(10, 8);
        repeat.at(0, firing("a"));
        assert_eq!(repeat.late(95), ["firing again 1"]);
        assert_eq!(repeat.next(), Some(105));
    }

    #[test]
    fn of_too_many_the_one_longest_unused_is_repeated_no_more() {
        let mut repeat = repeat(10, 1);
        repeat.at(0, firing("a"));
        assert_eq!(repeat.at(1, firing("b")), ["firing"]);
        assert_eq!(repeat.until(11), ["firing again 1"]);
        assert_eq!(repeat.forgotten, 1);
    }
}
