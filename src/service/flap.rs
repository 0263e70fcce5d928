//! `Flap`: silence about what changes all the time.

use std::{collections::VecDeque, time::Duration};

use super::{
    keys::{AlertKey, KEYS_MAX_DEFAULT, Keys, key_of},
    relay::{Effects, Ground, Machine, relayed},
    throttle::said,
};
use crate::{
    MetricBus,
    rule::{Alert, Pairs},
    time::Time,
};

/// Goes silent about a rule and group that is flapping: one with more than so many alerts within a window.
///
/// The alert that is one too many is the last that passes, with the annotation `flapping="true"`. Then there is silence
/// until no alert has come for the time of calm. If its state or level then is not that of the alert passed last, its
/// last alert is sent.
///
/// | `Flap`: 3 within 60 s, calm 30 s | 0 s | 5 s | 10 s | 15 s | 20 s | 50 s |
/// |---|---|---|---|---|---|---|
/// | comes | firing | resolved | firing | resolved | firing | |
/// | is sent | firing | resolved | firing | resolved, flapping | | firing |
///
/// ```
/// use std::time::Duration;
/// use metricbus::{Alert, AlertState, Clock, MetricBus, service::{Flap, callback}};
/// use tower::{Service, ServiceBuilder};
///
/// let clock = Clock::manual();
/// let bus = MetricBus::builder().clock(clock.clone()).build();
/// let (tell, told) = std::sync::mpsc::channel();
/// let flap = Flap::new(&bus, 1, Duration::from_secs(60)).calm(Duration::from_secs(30));
/// let mut service = ServiceBuilder::new()
///     .layer(flap)
///     .service(callback(move |alert: Alert| drop(tell.send(alert))));
///
/// for state in [AlertState::Firing, AlertState::Resolved, AlertState::Firing] {
///     let _ = service.call(Alert::new("QueueDeep", state, clock.now()));
/// }
/// assert_eq!(told.recv()?.annotation("flapping"), None);
/// assert_eq!(told.recv()?.annotation("flapping"), Some("true"));
/// assert!(told.try_recv().is_err());
/// clock.advance(Duration::from_secs(30));
/// assert_eq!(told.recv()?.state, AlertState::Firing);
/// # Ok::<(), std::sync::mpsc::RecvError>(())
/// ```
#[derive(Clone)]
pub struct Flap {
    ground: Ground,
    limits: Limits,
    keys: usize,
}

#[derive(Clone, Copy)]
struct Limits {
    alerts: usize,
    window: Duration,
    calm: Duration,
}

/// The times of so many alerts are remembered per rule and group.
const ALERTS_MAX: usize = 1_000;

impl Flap {
    /// Flapping is more than `alerts` (at most 1 000) within `window`, on the bus's clock; calm is no alert for as long as
    /// `window`, unless [told otherwise](Flap::calm). A window of zero lets everything pass.
    pub fn new(bus: &MetricBus, alerts: usize, window: Duration) -> Self {
        Flap {
            ground: Ground::of(bus),
            limits: Limits {
                alerts: alerts.min(ALERTS_MAX),
                window,
                calm: window,
            },
            keys: KEYS_MAX_DEFAULT,
        }
    }

    /// How long it has to be calm.
    pub fn calm(mut self, time: Duration) -> Self {
        self.limits.calm = time;
        self
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

    fn machine(&self) -> FlapMachine {
        FlapMachine {
            limits: self.limits,
            keys: Keys::new(self.keys),
        }
    }
}

relayed! {
    /// The service of a [`Flap`].
    FlapService, Flap, FlapMachine => Alert
}

pub(super) struct FlapMachine {
    limits: Limits,
    keys: Keys<AlertKey, Course>,
}

/// How it went with one rule and group.
enum Course {
    /// When its alerts came; due when the last is out of the window, and there is nothing to remember.
    Normal(VecDeque<Time>),
    /// Due when it has been calm for long enough.
    Flapping {
        passed: Box<Alert>,
        held: Option<Box<Alert>>,
    },
}

impl Course {
    /// What is to be said when silence ends.
    fn close(self, effects: &mut Effects<Alert>) {
        let Course::Flapping {
            passed,
            held: Some(held),
        } = self
        else {
            return;
        };
        if said(&held) == said(&passed) {
            effects.passed_over += 1;
        } else {
            effects.send.push(*held);
        }
    }
}

impl Machine for FlapMachine {
    type Out = Alert;
    const NAME: &'static str = "flap";

    fn take(&mut self, alert: Alert, now: Time, effects: &mut Effects<Alert>) {
        let Limits {
            alerts,
            window,
            calm,
        } = self.limits;
        if window.is_zero() {
            effects.send.push(alert);
            return;
        }
        let key = key_of(&alert);
        if self.keys.get(&key).is_none() {
            let forgotten = self
                .keys
                .insert(key.clone(), Course::Normal(VecDeque::new()), None);
            if let Some(course) = forgotten {
                effects.forgotten += 1;
                course.close(effects);
            }
        }
        let Some(course) = self.keys.get(&key) else {
            return;
        };
        let due = match course {
            Course::Normal(times) => {
                while times.front().is_some_and(|at| now.since(*at) >= window) {
                    times.pop_front();
                }
                times.push_back(now);
                if times.len() <= alerts {
                    effects.send.push(alert);
                    now + window
                } else {
                    let last = flapping(alert);
                    effects.send.push(last.clone());
                    *course = Course::Flapping {
                        passed: Box::new(last),
                        held: None,
                    };
                    now + calm
                }
            }
            Course::Flapping { held, .. } => {
                let before = held.replace(Box::new(alert));
                effects.passed_over += u64::from(before.is_some());
                now + calm
            }
        };
        self.keys.set_due(&key, Some(due));
    }

    fn expire(&mut self, now: Time, effects: &mut Effects<Alert>) {
        while let Some(key) = self.keys.pop_due(now) {
            if let Some(course) = self.keys.remove(&key) {
                course.close(effects);
            }
        }
    }

    fn next_due(&self) -> Option<Time> {
        self.keys.next_due()
    }

    fn end(&mut self, effects: &mut Effects<Alert>) {
        for course in self.keys.drain() {
            course.close(effects);
        }
    }
}

fn flapping(alert: Alert) -> Alert {
    Alert {
        annotations: with_pair(&alert.annotations, "flapping", "true"),
        ..alert
    }
}

/// With this pair rather than another of its name, and still sorted.
fn with_pair(pairs: &Pairs, name: &str, value: &str) -> Pairs {
    let mut all: Vec<_> = pairs.iter().filter(|(n, _)| n != name).cloned().collect();
    let place = all.partition_point(|(n, _)| n.as_str() < name);
    all.insert(place, (name.to_owned(), value.to_owned()));
    all.into()
}

#[cfg(test)]
pub(super) fn machine(alerts: usize, window: u64, calm: u64, keys: usize) -> FlapMachine {
    FlapMachine {
        limits: Limits {
            alerts,
            window: Duration::from_secs(window),
            calm: Duration::from_secs(calm),
        },
        keys: Keys::new(keys),
    }
}

#[cfg(test)]
mod tests {
    use super::super::by_hand::{ByHand, firing, resolved};
    use super::*;

    fn flap(alerts: usize, window: u64, calm: u64, keys: usize) -> ByHand<FlapMachine> {
        ByHand::new(machine(alerts, window, calm, keys))
    }

    #[test]
    fn one_alert_too_many_is_marked_and_then_there_is_silence_until_it_is_calm() {
        let mut flap = flap(3, 60, 30, 8);
        assert_eq!(flap.at(0, firing("a")), ["firing"]);
        assert_eq!(flap.at(5, resolved("a")), ["resolved"]);
        assert_eq!(flap.at(10, firing("a")), ["firing"]);
        assert_eq!(flap.at(15, resolved("a")), ["resolved flapping"]);
        assert_eq!(flap.at(20, firing("a")), [""; 0]);
        assert_eq!(flap.at(40, resolved("a")), [""; 0]);
        assert_eq!(flap.at(60, firing("a")), [""; 0]);
        assert_eq!(flap.until(89), [""; 0]);
        assert_eq!(flap.until(90), ["firing"]);
        assert_eq!(flap.passed_over, 2);
        assert_eq!(flap.next(), None);
    }

    #[test]
    fn a_state_that_is_what_was_passed_last_is_not_told_again() {
        let mut flap = flap(1, 60, 30, 8);
        flap.at(0, firing("a"));
        assert_eq!(flap.at(5, resolved("a")), ["resolved flapping"]);
        flap.at(10, firing("a"));
        flap.at(15, resolved("a"));
        assert_eq!(flap.until(45), [""; 0]);
        assert_eq!(flap.passed_over, 2);
    }

    #[test]
    fn alerts_that_are_far_apart_do_not_add_up() {
        let mut flap = flap(2, 10, 10, 8);
        for secs in [0, 5, 10, 15, 20] {
            assert_eq!(flap.at(secs, firing("a")), ["firing"], "{secs}");
        }
        assert_eq!(flap.at(21, firing("a")), ["firing flapping"]);
    }

    #[test]
    fn one_that_is_forgotten_tells_its_state() {
        let mut flap = flap(0, 60, 30, 1);
        assert_eq!(flap.at(0, firing("a")), ["firing flapping"]);
        flap.at(1, resolved("a"));
        assert_eq!(flap.at(2, firing("b")), ["resolved", "firing flapping"]);
        assert_eq!(flap.forgotten, 1);
    }

    #[test]
    fn the_mark_takes_its_place_among_the_annotations() {
        let pairs: Pairs = [("a", "1"), ("flapping", "no"), ("summary", "s")]
            .map(|(n, v)| (n.to_owned(), v.to_owned()))
            .into();
        let names: Vec<_> = with_pair(&pairs, "flapping", "true").to_vec();
        assert_eq!(names[1], ("flapping".to_owned(), "true".to_owned()));
        assert_eq!(names.len(), 3);
    }
}
