//! `Stable`: only what goes on firing for a time.

use std::time::Duration;

use super::{
    keys::{AlertKey, KEYS_MAX_DEFAULT, Keys, key_of},
    relay::{Effects, Ground, Machine, relayed},
};
use crate::{MetricBus, rule::Alert, time::Time};

/// Passes a firing alert on only if its rule and group still fires after a time, and a resolved one only if its firing
/// was passed on.
///
/// As [`Rule::hold_for`](crate::Rule::hold_for), for one destination. While it waits the last of several firing alerts
/// (of other levels) counts; once it was passed on, they pass at once.
///
/// | `Stable` for 10 s | 0 s | 4 s | 20 s | 30 s | 40 s |
/// |---|---|---|---|---|---|
/// | comes | firing | resolved | firing | | resolved |
/// | is sent | | | | firing | resolved |
///
/// ```
/// use std::time::Duration;
/// use metricbus::{Alert, AlertState, Clock, MetricBus, service::{Stable, callback}};
/// use tower::{Service, ServiceBuilder};
///
/// let clock = Clock::manual();
/// let bus = MetricBus::builder().clock(clock.clone()).build();
/// let (tell, told) = std::sync::mpsc::channel();
/// let mut service = ServiceBuilder::new()
///     .layer(Stable::new(&bus, Duration::from_secs(10)))
///     .service(callback(move |alert: Alert| drop(tell.send(alert.state))));
///
/// let _ = service.call(Alert::new("QueueDeep", AlertState::Firing, clock.now()));
/// clock.advance(Duration::from_secs(9));
/// assert!(told.try_recv().is_err());
/// clock.advance(Duration::from_secs(1));
/// assert_eq!(told.recv()?, AlertState::Firing);
/// # Ok::<(), std::sync::mpsc::RecvError>(())
/// ```
#[derive(Clone)]
pub struct Stable {
    ground: Ground,
    time: Duration,
    keys: usize,
}

impl Stable {
    /// Waits for `time` on the bus's clock; zero lets everything pass.
    pub fn new(bus: &MetricBus, time: Duration) -> Self {
        Stable {
            ground: Ground::of(bus),
            time,
            keys: KEYS_MAX_DEFAULT,
        }
    }

    /// How many firing rules and groups it remembers at once: 10 000 unless told otherwise; 0 counts as 1. Beyond that
    /// it forgets the one longest unused, whose firing it sends at once if it has not yet. From then on it also passes on
    /// resolved alerts of which it does not know whether it sent the firing: rather one too many than one missing.
    pub fn keys(mut self, max: usize) -> Self {
        self.keys = max;
        self
    }

    /// How many alerts may wait for the inner service: 256 unless told otherwise. The oldest is dropped and counted.
    pub fn capacity(mut self, alerts: usize) -> Self {
        self.ground = self.ground.with_capacity(alerts);
        self
    }

    fn machine(&self) -> StableMachine {
        StableMachine {
            time: self.time,
            keys: Keys::new(self.keys),
            forgetful: false,
        }
    }
}

relayed! {
    /// The service of a [`Stable`].
    StableService, Stable, StableMachine => Alert
}

pub(super) struct StableMachine {
    time: Duration,
    /// Those that fire: with an alert while it waits, without once it was sent.
    keys: Keys<AlertKey, Option<Alert>>,
    /// Some were forgotten.
    forgetful: bool,
}

impl Machine for StableMachine {
    type Out = Alert;
    const NAME: &'static str = "stable";

    fn take(&mut self, alert: Alert, now: Time, effects: &mut Effects<Alert>) {
        let key = key_of(&alert);
        if !alert.is_firing() {
            match self.keys.remove(&key) {
                Some(Some(_waiting)) if !self.forgetful => effects.passed_over += 2,
                Some(Some(_waiting)) => {
                    // It may have been told before it was forgotten, and fires at another level since.
                    effects.passed_over += 1;
                    effects.send.push(alert);
                }
                Some(None) => effects.send.push(alert),
                None if self.forgetful => effects.send.push(alert),
                None => effects.passed_over += 1,
            }
            return;
        }
        match self.keys.get(&key) {
            Some(Some(waiting)) => {
                *waiting = alert;
                effects.passed_over += 1;
            }
            Some(None) => effects.send.push(alert),
            None => {
                let due = Some(now + self.time);
                if let Some(forgotten) = self.keys.insert(key, Some(alert), due) {
                    effects.forgotten += 1;
                    effects.send.extend(forgotten);
                    self.forgetful = true;
                }
            }
        }
    }

    fn expire(&mut self, now: Time, effects: &mut Effects<Alert>) {
        while let Some(key) = self.keys.pop_due(now) {
            let waited = self.keys.get(&key).and_then(Option::take);
            effects.send.extend(waited);
        }
    }

    fn next_due(&self) -> Option<Time> {
        self.keys.next_due()
    }

    /// What has not yet been firing for long enough is not known to be stable.
    fn end(&mut self, effects: &mut Effects<Alert>) {
        let waiting = self.keys.drain().into_iter().flatten().count();
        effects.passed_over += waiting as u64;
    }
}

#[cfg(test)]
pub(super) fn machine(secs: u64, keys: usize) -> StableMachine {
    StableMachine {
        time: Duration::from_secs(secs),
        keys: Keys::new(keys),
        forgetful: false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::by_hand::{ByHand, firing, level, resolved};
    use super::*;

    fn stable(secs: u64, keys: usize) -> ByHand<StableMachine> {
        ByHand::new(machine(secs, keys))
    }

    #[test]
    fn a_firing_that_is_over_before_its_time_is_never_told() {
        let mut stable = stable(10, 8);
        assert_eq!(stable.at(0, firing("a")), [""; 0]);
        assert_eq!(stable.at(9, resolved("a")), [""; 0]);
        assert_eq!(stable.until(30), [""; 0]);
        assert_eq!((stable.passed_over, stable.next()), (2, None));
    }

    #[test]
    fn one_that_goes_on_is_told_at_its_time_and_so_is_its_end() {
        let mut stable = stable(10, 8);
        stable.at(0, firing("a"));
        assert_eq!(stable.until(10), ["firing"]);
        assert_eq!(stable.at(20, resolved("a")), ["resolved"]);
        // The next one waits again.
        assert_eq!(stable.at(21, firing("a")), [""; 0]);
        assert_eq!(stable.until(31), ["firing"]);
    }

    #[test]
    fn a_change_of_level_does_not_begin_the_time_anew_and_passes_once_it_is_over() {
        let mut stable = stable(10, 8);
        stable.at(0, level("a", "warn"));
        assert_eq!(stable.at(8, level("a", "critical")), [""; 0]);
        assert_eq!(stable.until(10), ["critical"]);
        assert_eq!(stable.at(11, level("a", "warn")), ["warn"]);
    }

    #[test]
    fn a_resolved_whose_firing_never_came_is_passed_over() {
        let mut stable = stable(10, 8);
        assert_eq!(stable.at(0, resolved("a")), [""; 0]);
        assert_eq!(stable.passed_over, 1);
    }

    #[test]
    fn the_end_of_one_that_was_forgotten_is_still_told() {
        let mut stable = stable(10, 1);
        stable.at(0, firing("a"));
        assert_eq!(stable.at(1, firing("b")), ["firing"]);
        assert_eq!(stable.at(2, resolved("a")), ["resolved"]);
        assert_eq!(stable.forgotten, 1);
    }

    #[test]
    fn the_end_of_one_that_was_told_forgotten_and_fires_at_another_level_is_told() {
        let mut stable = stable(10, 1);
        stable.at(0, level("a", "warn"));
        assert_eq!(stable.at(1, firing("b")), ["warn"]);
        assert_eq!(stable.at(2, level("a", "critical")), ["firing"]);
        assert_eq!(stable.at(3, resolved("a")), ["resolved"]);
    }

    #[test]
    fn no_time_at_all_lets_everything_pass() {
        let mut stable = stable(0, 8);
        assert_eq!(stable.at(0, firing("a")), ["firing"]);
        assert_eq!(stable.at(0, resolved("a")), ["resolved"]);
    }
}
