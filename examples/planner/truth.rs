//! When a fleet was really overloaded, from the simulation's own books, not from its metrics.
//!
//! An *excursion* begins when a worker goes over its limit (KV usage of a decode worker, queue of a prefill worker) and
//! ends when every worker of that role is back under the lower limit; excursions less than [`MERGE`] apart are one. It is
//! an *overload episode* when a request missed its target at a worker of that role meanwhile; otherwise it harmed nobody,
//! and whoever acted on it acted for nothing.
//!
//! Callbacks and polls look for these same limits. So a callback is late by nothing but its own latency, by construction:
//! what is compared is being told with looking now and then, not one threshold with another.

use std::time::Duration;

use crate::worker::Role;

/// Over which value a worker is over its limit, and under which it is back, by role.
pub struct Limit {
    pub raise: f64,
    pub clear: f64,
}

/// Requests in the queue of a prefill worker.
pub const QUEUE: Limit = Limit {
    raise: 6.0,
    clear: 2.0,
};

/// Share of a decode worker's KV cache in use.
pub const KV: Limit = Limit {
    raise: 0.9,
    clear: 0.8,
};

/// Excursions closer than this are one.
pub const MERGE: Duration = Duration::from_secs(10);

impl Limit {
    pub fn of(role: Role) -> &'static Limit {
        match role {
            Role::Prefill => &QUEUE,
            Role::Decode => &KV,
        }
    }

    /// The next state, with hysteresis.
    pub fn judge(&self, over: bool, value: f64) -> bool {
        if over {
            value >= self.clear
        } else {
            value > self.raise
        }
    }
}

/// A stretch over the limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Excursion {
    pub role: Role,
    pub onset: Duration,
    /// Meaningless while it lasts.
    pub end: Duration,
    /// The highest value.
    pub peak: f64,
    /// Requests that missed a target at this role meanwhile.
    pub misses: u64,
}

impl Excursion {
    pub fn is_overload(&self) -> bool {
        self.misses > 0
    }
}

/// The excursions of one fleet.
#[derive(Debug, Default)]
pub struct Truth {
    roles: [Tracker; 2],
    /// Targets missed at a role that was not over its limit.
    pub missed_outside: u64,
}

#[derive(Debug, Default)]
struct Tracker {
    /// By worker.
    over: Vec<bool>,
    /// The last one lasts while any worker is over.
    excursions: Vec<Excursion>,
}

impl Tracker {
    fn lasts(&self) -> bool {
        self.over.contains(&true)
    }
}

impl Truth {
    /// A worker's KV usage or queue has this value now.
    pub fn note(&mut self, role: Role, worker: usize, value: f64, now: Duration) {
        let tracker = &mut self.roles[role as usize];
        if worker >= tracker.over.len() {
            tracker.over.resize(worker + 1, false);
        }
        let lasted = tracker.lasts();
        tracker.over[worker] = Limit::of(role).judge(tracker.over[worker], value);
        if tracker.lasts() {
            let goes_on = |last: &&mut Excursion| lasted || now < last.end + MERGE;
            match tracker.excursions.last_mut().filter(goes_on) {
                Some(last) => last.peak = last.peak.max(value),
                None => tracker.excursions.push(Excursion {
                    role,
                    onset: now,
                    end: now,
                    peak: value,
                    misses: 0,
                }),
            }
        } else if lasted {
            self.close(role, now);
        }
    }

    /// A worker is gone.
    pub fn gone(&mut self, role: Role, worker: usize, now: Duration) {
        self.note(role, worker, 0.0, now);
    }

    /// A request that was at this role from `since` until now missed its target there.
    pub fn missed(&mut self, role: Role, since: Duration, now: Duration) {
        let tracker = &mut self.roles[role as usize];
        let lasts = tracker.lasts();
        let meanwhile = |e: &&mut Excursion| e.onset <= now && (lasts || e.end >= since);
        match tracker.excursions.last_mut().filter(meanwhile) {
            Some(excursion) => excursion.misses += 1,
            None => self.missed_outside += 1,
        }
    }

    /// Nothing happens any more.
    pub fn end(&mut self, now: Duration) {
        for role in Role::ALL {
            let tracker = &mut self.roles[role as usize];
            if tracker.lasts() {
                tracker.over.fill(false);
                self.close(role, now);
            }
        }
    }

    /// All excursions, in order of their onset.
    pub fn excursions(&self) -> Vec<Excursion> {
        let mut all: Vec<_> = self
            .roles
            .iter()
            .flat_map(|t| t.excursions.clone())
            .collect();
        all.sort_by_key(|e| (e.onset, e.role as usize));
        all
    }

    fn close(&mut self, role: Role, now: Duration) {
        if let Some(last) = self.roles[role as usize].excursions.last_mut() {
            last.end = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    /// Usage of decode worker 0 at each second, from 0 on.
    fn truth(values: &[f64]) -> Truth {
        let mut truth = Truth::default();
        for (second, value) in values.iter().enumerate() {
            truth.note(Role::Decode, 0, *value, secs(second as u64));
        }
        truth
    }

    #[test]
    fn an_excursion_ends_at_the_lower_limit() {
        let excursions = truth(&[0.5, 0.92, 0.85, 0.97, 0.79, 0.85]).excursions();
        let expected = Excursion {
            role: Role::Decode,
            onset: secs(1),
            end: secs(4),
            peak: 0.97,
            misses: 0,
        };
        assert_eq!(excursions, [expected]);
    }

    #[test]
    fn excursions_close_together_are_one() {
        let mut values = vec![0.5; 40];
        (values[2], values[11], values[30]) = (0.95, 0.95, 0.95);
        let excursions = truth(&values).excursions();
        let spans: Vec<_> = excursions.iter().map(|e| (e.onset, e.end)).collect();
        assert_eq!(spans, [(secs(2), secs(12)), (secs(30), secs(31))]);
    }

    #[test]
    fn one_worker_over_its_limit_is_enough() {
        let mut truth = truth(&[0.95]);
        truth.note(Role::Decode, 1, 0.95, secs(1));
        truth.note(Role::Decode, 0, 0.1, secs(2));
        truth.gone(Role::Decode, 1, secs(3));
        assert_eq!(truth.excursions()[0].end, secs(3));
        assert_eq!(truth.excursions().len(), 1);
    }

    #[test]
    fn a_miss_belongs_to_the_excursion_that_it_overlaps_and_to_that_role() {
        let mut truth = truth(&[0.95, 0.1]);
        truth.missed(Role::Decode, secs(0), secs(8));
        truth.missed(Role::Decode, secs(3), secs(9));
        truth.missed(Role::Prefill, secs(0), secs(1));
        assert_eq!(truth.excursions()[0].misses, 1);
        assert_eq!(truth.missed_outside, 2);
    }
}
