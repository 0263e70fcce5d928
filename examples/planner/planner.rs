//! What a planner decides, from what it hears and from windows. Pure: it is told everything, and the time too.

use std::{collections::BTreeSet, time::Duration};

use metricbus::{MetricBus, SelectorError, WindowStats, Windows};

use crate::{
    fleet::{Count, Size},
    signals::{News, Signal, selector},
    worker::Role,
};

/// How far back a planner looks before it removes a worker.
const WINDOW: Duration = Duration::from_secs(30);
/// A role is left alone for so long after it was changed, before a worker is removed.
const CALM: Duration = Duration::from_secs(60);
/// A worker goes when the others would have no more than this on average: KV usage, or share of time busy.
const LOAD_MAX_AFTER: f64 = 0.65;
/// Workers of one role that may be starting at the same time.
const STARTING_MAX: usize = 2;

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Add(Role),
    Remove(Role),
}

/// Load per role over the last 30 s, from sliding windows; no scrape, no query.
pub struct Loads {
    windows: [Windows; 2],
}

/// Average load of a role's workers, 0 to 1, and how much of the window was observed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    pub avg: Option<f64>,
    pub coverage: f64,
}

impl Loads {
    pub fn new(bus: &MetricBus, namespace: &str) -> Result<Loads, SelectorError> {
        let window = |name, role| bus.window(selector(name, namespace, role), WINDOW);
        Ok(Loads {
            windows: [
                // 1 while it works and 0 while not: its average over time is the share of time for which it is busy.
                window("inflight_requests", Role::Prefill)?,
                window("kv_usage_ratio", Role::Decode)?,
            ],
        })
    }

    pub fn now(&self) -> [Load; 2] {
        self.windows.each_ref().map(|window| {
            let WindowStats { avg, coverage, .. } = window.stats();
            Load { avg, coverage }
        })
    }
}

/// Adds a worker as soon as one is over its limit, removes one when there has long been room.
pub struct Planner {
    size: Size,
    /// Workers over their limit.
    over: BTreeSet<(usize, String)>,
    changed: [Duration; 2],
}

impl Planner {
    pub fn new(size: Size) -> Planner {
        Planner {
            size,
            over: BTreeSet::new(),
            changed: [Duration::ZERO; 2],
        }
    }

    /// Something was heard.
    pub fn hear(&mut self, signal: &Signal, now: Duration, count: Count) -> Option<Action> {
        let role = signal.quantity.role();
        let key = (role as usize, signal.worker.clone());
        let starting_max = match signal.news {
            News::Raised => {
                self.over.insert(key);
                1
            }
            // A line forms behind a full worker: the one that is starting is not enough.
            News::Jumped(_) => STARTING_MAX,
            News::Cleared => {
                if signal.quantity.limit().is_some() {
                    self.over.remove(&key);
                }
                return None;
            }
        };
        self.add(role, now, count, starting_max)
    }

    /// Time has passed.
    pub fn think(&mut self, now: Duration, loads: &[Load; 2], counts: &[Count; 2]) -> Vec<Action> {
        let mut actions = Vec::new();
        for role in Role::ALL {
            let (load, count) = (loads[role as usize], counts[role as usize]);
            let over = self.over.iter().any(|(r, _)| *r == role as usize);
            let action = if over {
                // Still over its limit, and all that was started serves: that was not enough.
                self.add(role, now, count, 1)
            } else {
                self.remove(role, now, load, count)
            };
            actions.extend(action);
        }
        actions
    }

    fn add(
        &mut self,
        role: Role,
        now: Duration,
        count: Count,
        starting_max: usize,
    ) -> Option<Action> {
        let room = count.present() < self.size.max[role as usize] && count.starting < starting_max;
        room.then(|| {
            self.changed[role as usize] = now;
            Action::Add(role)
        })
    }

    fn remove(&mut self, role: Role, now: Duration, load: Load, count: Count) -> Option<Action> {
        let calm = now.saturating_sub(self.changed[role as usize]) >= CALM
            && count.starting == 0
            && count.draining == 0
            && count.serving > self.size.min[role as usize]
            && load.coverage > 0.9;
        let after = load.avg? * count.serving as f64 / (count.serving as f64 - 1.0);
        (calm && after <= LOAD_MAX_AFTER).then(|| {
            self.changed[role as usize] = now;
            Action::Remove(role)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signals::Quantity;

    const SIZE: Size = Size {
        min: [1, 2],
        max: [3, 4],
        start_up: Duration::from_secs(5),
    };
    const ADD: Option<Action> = Some(Action::Add(Role::Decode));

    fn signal(news: News) -> Signal {
        let quantity = match news {
            News::Jumped(_) => Quantity::DecodeQueue,
            _ => Quantity::KvUsage,
        };
        Signal {
            quantity,
            worker: "decode-0".into(),
            news,
            value: 0.95,
            at: Duration::ZERO,
            took: Duration::ZERO,
        }
    }

    fn count(starting: usize, serving: usize) -> Count {
        Count {
            starting,
            serving,
            draining: 0,
        }
    }

    fn secs(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    fn think(planner: &mut Planner, now: u64, avg: Option<f64>, decode: Count) -> Vec<Action> {
        let load = |avg| Load { avg, coverage: 1.0 };
        planner.think(
            secs(now),
            &[load(Some(0.5)), load(avg)],
            &[count(0, 1), decode],
        )
    }

    #[test]
    fn a_full_worker_brings_one_more_and_not_two() {
        let mut planner = Planner::new(SIZE);
        assert_eq!(
            planner.hear(&signal(News::Raised), secs(1), count(0, 2)),
            ADD
        );
        assert_eq!(
            planner.hear(&signal(News::Raised), secs(2), count(1, 2)),
            None
        );
        assert_eq!(think(&mut planner, 3, Some(0.9), count(1, 2)), []);
    }

    #[test]
    fn a_line_behind_a_full_worker_brings_a_second_one() {
        let mut planner = Planner::new(SIZE);
        assert_eq!(
            planner.hear(&signal(News::Jumped(0.0)), secs(1), count(1, 2)),
            ADD
        );
        assert_eq!(
            planner.hear(&signal(News::Jumped(8.0)), secs(1), count(2, 2)),
            None
        );
    }

    #[test]
    fn a_worker_that_stays_full_brings_another_one_once_the_first_serves() {
        let mut planner = Planner::new(SIZE);
        assert_eq!(
            planner.hear(&signal(News::Raised), secs(1), count(0, 2)),
            ADD
        );
        assert_eq!(
            think(&mut planner, 6, Some(0.9), count(0, 3)),
            [Action::Add(Role::Decode)]
        );
        assert_eq!(
            think(&mut planner, 12, Some(0.9), count(0, 4)),
            [],
            "as big as it may be"
        );
        assert_eq!(
            planner.hear(&signal(News::Cleared), secs(13), count(0, 3)),
            None
        );
        assert_eq!(think(&mut planner, 14, Some(0.9), count(0, 3)), []);
    }

    #[test]
    fn a_worker_goes_after_a_calm_time_in_which_the_others_would_have_done() {
        let remove = [Action::Remove(Role::Decode)];
        let mut planner = Planner::new(SIZE);
        let _ = planner.hear(&signal(News::Raised), secs(100), count(0, 2));
        let _ = planner.hear(&signal(News::Cleared), secs(101), count(0, 3));
        assert_eq!(
            think(&mut planner, 150, Some(0.2), count(0, 3)),
            [],
            "too soon"
        );
        assert_eq!(
            think(&mut planner, 160, Some(0.5), count(0, 3)),
            [],
            "0.75 for two"
        );
        assert_eq!(
            think(&mut planner, 160, None, count(0, 3)),
            [],
            "not measured"
        );
        assert_eq!(think(&mut planner, 160, Some(0.4), count(0, 3)), remove);
        assert_eq!(
            think(&mut planner, 161, Some(0.2), count(0, 3)),
            [],
            "one at a time"
        );
        assert_eq!(
            think(&mut planner, 300, Some(0.2), count(0, 2)),
            [],
            "as small as it may be"
        );
    }
}
