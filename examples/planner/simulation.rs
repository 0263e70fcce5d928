//! The same requests through several fleets side by side, on one bus and one clock in trace time: one that nobody
//! steers, and one for each way of hearing.

use std::{error::Error, time::Duration};

use metricbus::{Clock, MetricBus};

use crate::{
    fleet::{Count, Fleet, Size, Targets},
    planner::{Action, Loads, Planner},
    signals::{Callbacks, News, Poller, Signal},
    trace::Request,
    worker::Role,
};

/// Periods at which the fleets are polled; 15 s is what Prometheus does unless told otherwise in most installations.
pub const POLL_PERIODS: [Duration; 3] = [
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(15),
];

/// How often planners look at their windows; those that poll, no more often than they poll.
const THINK_EVERY: Duration = Duration::from_secs(1);

/// A fleet, and who steers it.
pub struct Contestant {
    pub fleet: Fleet,
    ears: Ears,
    steering: Option<Steering>,
}

enum Ears {
    Callbacks(Callbacks),
    Poller(Poller),
}

struct Steering {
    planner: Planner,
    loads: Loads,
    every: Duration,
    next: Duration,
}

/// A detector saw a role over its limit.
#[derive(Clone, Copy, Debug)]
pub struct Sighting {
    pub role: Role,
    pub at: Duration,
    /// From the mutation to the callback, in real time; zero for polls.
    pub took: Duration,
}

/// A planner heard or saw something, and what came of it.
pub struct Notice<'a> {
    /// Whose.
    pub contestant: usize,
    pub at: Duration,
    pub cause: Cause<'a>,
    /// Workers of the role, before anything was changed.
    pub count: Count,
    /// `None`: the planner let it be.
    pub change: Option<Change>,
}

/// What a planner went by.
pub enum Cause<'a> {
    Signal(&'a Signal),
    /// The average load of a role over its window.
    Load(Option<f64>),
}

/// The fleet was changed.
pub struct Change {
    pub action: Action,
    pub worker: String,
    /// Workers of the role, those starting included.
    pub before: usize,
    pub after: usize,
}

impl Change {
    pub fn role(&self) -> Role {
        let (Action::Add(role) | Action::Remove(role)) = self.action;
        role
    }
}

pub struct Simulation {
    clock: Clock,
    requests: Vec<Request>,
    arrived: usize,
    now: Duration,
    /// The first is the one that nobody steers, the second the one with callbacks.
    pub contestants: Vec<Contestant>,
    /// Pollers that look at the unsteered fleet, and do nothing else.
    watchers: Vec<Poller>,
    /// What was seen of the unsteered fleet: by callback, then by each watcher.
    pub sightings: Vec<Vec<Sighting>>,
    /// What every callback took, in real time.
    pub took: Vec<Duration>,
}

pub const FIXED: usize = 0;
pub const CALLBACKS: usize = 1;

/// What happens next.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Next {
    Fleet(usize),
    Arrival,
    Watch(usize),
    Poll(usize),
    Think(usize),
}

type Result<T> = std::result::Result<T, Box<dyn Error>>;

impl Simulation {
    /// The bus has to be on `clock`, a manual one at its start.
    pub fn new(
        bus: &MetricBus,
        clock: Clock,
        requests: Vec<Request>,
        size: Size,
        targets: Targets,
        seed: u64,
    ) -> Result<Simulation> {
        // Who steers hears before its fleet is made: subscriptions match workers that come later.
        let steering = |name: &str, every: Duration, next: Duration| -> Result<_> {
            Ok(Some(Steering {
                planner: Planner::new(size),
                loads: Loads::new(bus, name)?,
                every,
                next,
            }))
        };
        let contestant = |name, ears, steering| -> Result<_> {
            let fleet = Fleet::new(bus, name, size, targets, seed)?;
            Ok(Contestant {
                fleet,
                ears,
                steering,
            })
        };
        let callbacks = |name| Callbacks::subscribe(bus, name).map(Ears::Callbacks);
        let on_callbacks = steering("callbacks", THINK_EVERY, THINK_EVERY)?;
        let mut contestants = vec![
            contestant("fixed", callbacks("fixed")?, None)?,
            contestant("callbacks", callbacks("callbacks")?, on_callbacks)?,
        ];
        for (name, period) in ["poll-1s", "poll-5s", "poll-15s"]
            .into_iter()
            .zip(POLL_PERIODS)
        {
            let poller = Poller::new(bus, name, period);
            // Right after it has polled, when what it knows is fresh.
            let on_polls = steering(name, period.max(THINK_EVERY), poller.next())?;
            contestants.push(contestant(name, Ears::Poller(poller), on_polls)?);
        }
        Ok(Simulation {
            clock,
            requests,
            arrived: 0,
            now: Duration::ZERO,
            contestants,
            watchers: POLL_PERIODS
                .map(|period| Poller::new(bus, "fixed", period))
                .into(),
            sightings: vec![Vec::new(); 1 + POLL_PERIODS.len()],
            took: Vec::new(),
        })
    }

    pub fn now(&self) -> Duration {
        self.now
    }

    /// When the last request arrives.
    pub fn length(&self) -> Duration {
        self.requests
            .last()
            .map(|request| request.at)
            .unwrap_or_default()
    }

    /// The time of the next step; `None` once every request has been served.
    pub fn next_time(&self) -> Option<Duration> {
        self.next().map(|(at, _)| at)
    }

    fn next(&self) -> Option<(Duration, Next)> {
        let mut next = self
            .requests
            .get(self.arrived)
            .map(|r| (r.at, Next::Arrival));
        let mut sooner = |at: Duration, what| {
            if next.is_none_or(|(first, then)| (at, what) < (first, then)) {
                next = Some((at, what));
            }
        };
        for (index, contestant) in self.contestants.iter().enumerate() {
            if let Some(at) = contestant.fleet.next_event() {
                sooner(at, Next::Fleet(index));
            }
        }
        // Only now: nobody polls or thinks beyond the end.
        next?;
        let mut sooner = |at: Duration, what| {
            if next.is_none_or(|(first, then)| (at, what) < (first, then)) {
                next = Some((at, what));
            }
        };
        for (index, watcher) in self.watchers.iter().enumerate() {
            sooner(watcher.next(), Next::Watch(index));
        }
        for (index, contestant) in self.contestants.iter().enumerate() {
            if let Ears::Poller(poller) = &contestant.ears {
                sooner(poller.next(), Next::Poll(index));
            }
            if let Some(steering) = &contestant.steering {
                sooner(steering.next, Next::Think(index));
            }
        }
        next
    }

    /// Takes one step, and tells `notice` what the planners heard and did.
    pub fn step(&mut self, notice: &mut dyn FnMut(&Notice<'_>)) -> Result<()> {
        let Some((at, what)) = self.next() else {
            return Ok(());
        };
        self.clock.advance(at - self.now);
        self.now = at;
        match what {
            Next::Arrival => {
                let request = self.requests[self.arrived];
                self.arrived += 1;
                for index in 0..self.contestants.len() {
                    self.contestants[index].start();
                    self.contestants[index].fleet.arrive(&request, at);
                    self.hear_callbacks(index, notice)?;
                }
            }
            Next::Fleet(index) => {
                self.contestants[index].start();
                self.contestants[index].fleet.step(at);
                self.hear_callbacks(index, notice)?;
            }
            Next::Watch(index) => {
                let watcher = &mut self.watchers[index];
                watcher.poll(at)?;
                let over = watcher.over;
                let took = Duration::ZERO;
                let roles = Role::ALL.into_iter().filter(|role| over[*role as usize]);
                self.sightings[1 + index].extend(roles.map(|role| Sighting { role, at, took }));
            }
            Next::Poll(index) => {
                if let Ears::Poller(poller) = &mut self.contestants[index].ears {
                    let signals = poller.poll(at)?;
                    self.hear(index, &signals, notice)?;
                }
            }
            Next::Think(index) => self.think(index, notice)?,
        }
        Ok(())
    }

    /// Closes the books of all fleets.
    pub fn end(&mut self) {
        for contestant in &mut self.contestants {
            contestant.fleet.end(self.now);
        }
    }

    fn hear_callbacks(&mut self, index: usize, notice: &mut dyn FnMut(&Notice<'_>)) -> Result<()> {
        let Ears::Callbacks(callbacks) = &mut self.contestants[index].ears else {
            return Ok(());
        };
        let signals = callbacks.take()?;
        if signals.is_empty() {
            return Ok(());
        }
        self.took.extend(signals.iter().map(|signal| signal.took));
        if index == FIXED {
            let raised = signals.iter().filter(|s| s.news == News::Raised);
            self.sightings[0].extend(raised.map(|s| Sighting {
                role: s.quantity.role(),
                at: s.at,
                took: s.took,
            }));
        }
        self.hear(index, &signals, notice)
    }

    fn hear(
        &mut self,
        index: usize,
        signals: &[Signal],
        notice: &mut dyn FnMut(&Notice<'_>),
    ) -> Result<()> {
        let Contestant {
            fleet, steering, ..
        } = &mut self.contestants[index];
        let Some(steering) = steering else {
            return Ok(());
        };
        for signal in signals {
            let count = fleet.count(signal.quantity.role());
            let action = steering.planner.hear(signal, self.now, count);
            let change = match action {
                Some(action) => act(fleet, action, self.now)?,
                None => None,
            };
            notice(&Notice {
                contestant: index,
                at: self.now,
                cause: Cause::Signal(signal),
                count,
                change,
            });
        }
        Ok(())
    }

    fn think(&mut self, index: usize, notice: &mut dyn FnMut(&Notice<'_>)) -> Result<()> {
        let contestant = &mut self.contestants[index];
        contestant.start();
        let Contestant {
            fleet, steering, ..
        } = contestant;
        if let Some(steering) = steering {
            steering.next = self.now + steering.every;
            let counts = Role::ALL.map(|role| fleet.count(role));
            let loads = steering.loads.now();
            for action in steering.planner.think(self.now, &loads, &counts) {
                let (Action::Add(role) | Action::Remove(role)) = action;
                let change = act(fleet, action, self.now)?;
                notice(&Notice {
                    contestant: index,
                    at: self.now,
                    cause: Cause::Load(loads[role as usize].avg),
                    count: counts[role as usize],
                    change,
                });
            }
        }
        // A worker that goes takes its gauges with it, which may be told of.
        self.hear_callbacks(index, notice)
    }
}

impl Contestant {
    fn start(&self) {
        if let Ears::Callbacks(callbacks) = &self.ears {
            callbacks.start();
        }
    }
}

fn act(fleet: &mut Fleet, action: Action, now: Duration) -> Result<Option<Change>> {
    let (Action::Add(role) | Action::Remove(role)) = action;
    let before = fleet.count(role).present();
    let worker = match action {
        Action::Add(role) => fleet.add(role, now)?,
        Action::Remove(role) => fleet.remove(role, now)?,
    };
    let after = fleet.count(role).present();
    Ok(worker.map(|worker| Change {
        action,
        worker,
        before,
        after,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SIZE, TARGETS, trace::Bursts};

    fn run() -> (Simulation, Vec<String>) {
        let clock = Clock::manual();
        let bus = MetricBus::builder().clock(clock.clone()).build();
        let length = Duration::from_secs(150);
        let requests = Bursts { length, seed: 3 }.requests();
        let mut simulation = Simulation::new(&bus, clock, requests, SIZE, TARGETS, 3)
            .expect("valid declarations and subscriptions");
        let mut notices = Vec::new();
        while simulation.next_time().is_some() {
            let mut note = |n: &Notice<'_>| {
                let worker = n.change.as_ref().map(|c| c.worker.clone());
                let cause = match n.cause {
                    Cause::Signal(s) => format!("{:?} of {}: {:?}", s.quantity, s.worker, s.news),
                    Cause::Load(avg) => format!("load {avg:?}"),
                };
                notices.push(format!("{:?} {} {cause} {worker:?}", n.at, n.contestant));
            };
            simulation.step(&mut note).expect("a step");
        }
        simulation.end();
        (simulation, notices)
    }

    #[test]
    fn two_runs_are_the_same_though_callbacks_come_from_other_threads() {
        let ((first, heard), (second, heard_again)) = (run(), run());
        assert!(!heard.is_empty());
        assert_eq!(heard, heard_again);
        for (a, b) in first.contestants.iter().zip(&second.contestants) {
            assert_eq!(
                format!("{:?}", a.fleet.books),
                format!("{:?}", b.fleet.books)
            );
        }
    }

    #[test]
    fn every_fleet_serves_every_request() {
        let (simulation, _) = run();
        for (index, contestant) in simulation.contestants.iter().enumerate() {
            let books = contestant.fleet.books;
            assert_eq!(
                books.arrived,
                simulation.requests.len() as u64,
                "fleet {index}"
            );
            assert_eq!(
                books.finished + books.refused,
                books.arrived,
                "fleet {index}"
            );
        }
    }

    #[test]
    fn every_excursion_is_seen_by_callback_at_its_onset() {
        let (simulation, _) = run();
        let excursions = simulation.contestants[FIXED].fleet.truth.excursions();
        assert!(!excursions.is_empty());
        for excursion in excursions {
            let seen = |s: &&Sighting| s.role == excursion.role && s.at == excursion.onset;
            assert!(
                simulation.sightings[0].iter().any(|s| seen(&s)),
                "{excursion:?}"
            );
        }
    }

    #[test]
    fn the_planner_on_callbacks_misses_less_than_nobody() {
        let (simulation, _) = run();
        let missed = |index: usize| simulation.contestants[index].fleet.books.missed;
        assert!(
            missed(CALLBACKS) < missed(FIXED),
            "{} against {}",
            missed(CALLBACKS),
            missed(FIXED)
        );
    }
}
