//! A fleet of workers as a discrete-event simulation in trace time: routes requests, starts and drains workers, and
//! keeps the books (who missed the targets, what the fleet cost, when it was overloaded).
//!
//! It decides nothing, and reads no metric: the books are the truth that detectors are held against.

use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};

use metricbus::{DeclareError, MetricBus, Scope, dynamo};

use crate::{
    trace::{Random, Request},
    truth::Truth,
    worker::{self, Decode, Job, Prefill, Role},
};

/// What a request was promised.
#[derive(Clone, Copy, Debug)]
pub struct Targets {
    /// Longest time from arrival to the first token.
    pub ttft: Duration,
    /// Longest mean time from one token to the next.
    pub itl: Duration,
}

/// How a fleet begins and grows.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Prefill and decode workers at the start; a planner never goes below.
    pub min: [usize; 2],
    /// And never above.
    pub max: [usize; 2],
    /// From the decision to add a worker until it serves.
    pub start_up: Duration,
}

/// Of one role, workers by what they are doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub starting: usize,
    pub serving: usize,
    pub draining: usize,
}

impl Count {
    /// Workers that take requests, now or soon.
    pub fn present(self) -> usize {
        self.starting + self.serving
    }
}

/// What became of the requests, and what it cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct Books {
    pub arrived: u64,
    pub finished: u64,
    /// Too long for any worker; they count as missed.
    pub refused: u64,
    pub missed_ttft: u64,
    pub missed_itl: u64,
    /// Requests that missed either target, or both.
    pub missed: u64,
    pub added: u64,
    pub removed: u64,
    pub peak: [usize; 2],
    /// Sum over workers of the time for which they were there.
    pub worker_time: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    PrefillDone(usize),
    DecodeStep(usize),
    Started(usize, usize),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Starting,
    Serving,
    Draining,
}

struct Member<W> {
    state: State,
    since: Duration,
    worker: W,
}

/// A fleet; its name is the `dynamo_namespace` of its metrics.
pub struct Fleet {
    pub books: Books,
    pub truth: Truth,
    scopes: [Scope; 2],
    size: Size,
    targets: Targets,
    /// By number; that of a worker which is gone is given to the next new one.
    prefill: Vec<Option<Member<Prefill>>>,
    decode: Vec<Option<Member<Decode>>>,
    /// Time, then order of making, so that events at the same time have one order.
    events: BinaryHeap<Reverse<(Duration, u64, Event)>>,
    events_made: u64,
    random: Random,
    done: Vec<Job>,
}

impl Fleet {
    pub fn new(
        bus: &MetricBus,
        namespace: &str,
        size: Size,
        targets: Targets,
        seed: u64,
    ) -> Result<Fleet, DeclareError> {
        let namespace = dynamo::namespace(bus, namespace);
        let scope = |role: Role| namespace.component(role.name()).endpoint("generate");
        let mut fleet = Fleet {
            books: Books::default(),
            truth: Truth::default(),
            scopes: [scope(Role::Prefill), scope(Role::Decode)],
            size,
            targets,
            prefill: Vec::new(),
            decode: Vec::new(),
            events: BinaryHeap::new(),
            events_made: 0,
            random: Random::new(seed),
            done: Vec::new(),
        };
        for role in Role::ALL {
            for _ in 0..size.min[role as usize] {
                fleet.enter(role, State::Serving, Duration::ZERO)?;
            }
        }
        Ok(fleet)
    }

    /// When something happens next by itself.
    pub fn next_event(&self) -> Option<Duration> {
        self.events.peek().map(|Reverse((at, ..))| *at)
    }

    /// Handles the next event, which is due at `now`.
    pub fn step(&mut self, now: Duration) {
        let Some(Reverse((_, _, event))) = self.events.pop() else {
            return;
        };
        match event {
            Event::PrefillDone(index) => self.prefill_done(index, now),
            Event::DecodeStep(index) => self.decode_step(index, now),
            Event::Started(role, index) => {
                let state = match role {
                    0 => self.prefill[index].as_mut().map(|m| &mut m.state),
                    _ => self.decode[index].as_mut().map(|m| &mut m.state),
                };
                if let Some(state) = state {
                    *state = State::Serving;
                }
            }
        }
    }

    /// A request arrives.
    pub fn arrive(&mut self, request: &Request, now: Duration) {
        self.books.arrived += 1;
        if !worker::fits(request.context, request.generated) {
            self.books.refused += 1;
            self.books.missed += 1;
            return;
        }
        let job = Job {
            arrived: now,
            first_token: Duration::ZERO,
            context: request.context,
            generated: request.generated.max(1),
        };
        let Some(index) = pick(&self.prefill, Prefill::load, &mut self.random) else {
            return;
        };
        let Some(member) = &mut self.prefill[index] else {
            return;
        };
        let done = member.worker.accept(job, now);
        let queue = member.worker.queue();
        self.truth.note(Role::Prefill, index, queue as f64, now);
        if let Some(at) = done {
            self.schedule(at, Event::PrefillDone(index));
        }
    }

    /// Starts a worker, which serves after the start-up time. Its name; `None` where the fleet is as big as it may be.
    pub fn add(&mut self, role: Role, now: Duration) -> Result<Option<String>, DeclareError> {
        if self.count(role).present() >= self.size.max[role as usize] {
            return Ok(None);
        }
        let index = self.enter(role, State::Starting, now)?;
        let started = now + self.size.start_up;
        self.schedule(started, Event::Started(role as usize, index));
        self.books.added += 1;
        Ok(Some(worker_name(role, index)))
    }

    /// Takes the youngest worker out of service; it finishes what it has. Its name; `None` where the fleet is as small
    /// as it may be.
    pub fn remove(&mut self, role: Role, now: Duration) -> Result<Option<String>, DeclareError> {
        if self.count(role).serving <= self.size.min[role as usize] {
            return Ok(None);
        }
        let index = match role {
            Role::Prefill => drain_youngest(&mut self.prefill),
            Role::Decode => drain_youngest(&mut self.decode),
        };
        let Some(index) = index else {
            return Ok(None);
        };
        self.books.removed += 1;
        self.leave_if_drained(role, index, now);
        Ok(Some(worker_name(role, index)))
    }

    pub fn count(&self, role: Role) -> Count {
        match role {
            Role::Prefill => count(&self.prefill),
            Role::Decode => count(&self.decode),
        }
    }

    /// Closes the books.
    pub fn end(&mut self, now: Duration) {
        let since = |since: Duration| now.saturating_sub(since);
        self.books.worker_time += self
            .prefill
            .iter()
            .flatten()
            .map(|m| since(m.since))
            .sum::<Duration>();
        self.books.worker_time += self
            .decode
            .iter()
            .flatten()
            .map(|m| since(m.since))
            .sum::<Duration>();
        self.truth.end(now);
    }

    fn schedule(&mut self, at: Duration, event: Event) {
        self.events_made += 1;
        self.events.push(Reverse((at, self.events_made, event)));
    }

    fn enter(&mut self, role: Role, state: State, now: Duration) -> Result<usize, DeclareError> {
        let index = match role {
            Role::Prefill => free_slot(&mut self.prefill),
            Role::Decode => free_slot(&mut self.decode),
        };
        let name = worker_name(role, index);
        let scope = self.scopes[role as usize].with_label("worker", &name);
        match role {
            Role::Prefill => {
                let worker = Prefill::new(scope.register()?);
                self.prefill[index] = Some(Member {
                    state,
                    since: now,
                    worker,
                });
            }
            Role::Decode => {
                let worker = Decode::new(scope.register()?);
                self.decode[index] = Some(Member {
                    state,
                    since: now,
                    worker,
                });
            }
        }
        let peak = &mut self.books.peak[role as usize];
        *peak = (*peak).max(match role {
            Role::Prefill => count(&self.prefill).present(),
            Role::Decode => count(&self.decode).present(),
        });
        Ok(index)
    }

    fn prefill_done(&mut self, index: usize, now: Duration) {
        let Some(member) = &mut self.prefill[index] else {
            return;
        };
        let (job, next) = member.worker.finish(now);
        let queue = member.worker.queue();
        self.truth.note(Role::Prefill, index, queue as f64, now);
        if let Some(at) = next {
            self.schedule(at, Event::PrefillDone(index));
        }
        if let Some(job) = job {
            if now - job.arrived > self.targets.ttft {
                self.books.missed_ttft += 1;
                self.truth.missed(Role::Prefill, job.arrived, now);
            }
            if job.generated > 1 {
                self.hand_over(job, now);
            } else {
                self.close(&job, now);
            }
        }
        self.leave_if_drained(Role::Prefill, index, now);
    }

    /// From prefill to decode; moving the KV cache is not modelled.
    fn hand_over(&mut self, job: Job, now: Duration) {
        let Some(index) = pick(&self.decode, Decode::load, &mut self.random) else {
            return;
        };
        let Some(member) = &mut self.decode[index] else {
            return;
        };
        let next = member.worker.accept(job, now);
        let usage = member.worker.kv_usage();
        self.truth.note(Role::Decode, index, usage, now);
        if let Some(at) = next {
            self.schedule(at, Event::DecodeStep(index));
        }
    }

    fn decode_step(&mut self, index: usize, now: Duration) {
        let Some(member) = &mut self.decode[index] else {
            return;
        };
        let mut done = std::mem::take(&mut self.done);
        let next = member.worker.step(now, &mut done);
        let usage = member.worker.kv_usage();
        self.truth.note(Role::Decode, index, usage, now);
        if let Some(at) = next {
            self.schedule(at, Event::DecodeStep(index));
        }
        for job in done.drain(..) {
            self.close(&job, now);
        }
        self.done = done;
        self.leave_if_drained(Role::Decode, index, now);
    }

    /// A request is done: were its targets met?
    fn close(&mut self, job: &Job, now: Duration) {
        self.books.finished += 1;
        let late = job.first_token - job.arrived > self.targets.ttft;
        let gaps = job.generated.saturating_sub(1);
        let slow = gaps > 0 && (now - job.first_token) / gaps > self.targets.itl;
        if slow {
            self.books.missed_itl += 1;
            self.truth.missed(Role::Decode, job.first_token, now);
        }
        self.books.missed += u64::from(late || slow);
    }

    /// A draining worker with nothing left to do is gone, and its gauges with it.
    fn leave_if_drained(&mut self, role: Role, index: usize, now: Duration) {
        let bus = self.scopes[role as usize].bus();
        let since = match role {
            Role::Prefill => {
                let idle = |m: &Member<Prefill>| m.state == State::Draining && m.worker.is_idle();
                match self.prefill[index].take_if(|m| idle(m)) {
                    Some(gone) => {
                        gone.worker.metrics.retire(bus);
                        gone.since
                    }
                    None => return,
                }
            }
            Role::Decode => {
                let idle = |m: &Member<Decode>| m.state == State::Draining && m.worker.is_idle();
                match self.decode[index].take_if(|m| idle(m)) {
                    Some(gone) => {
                        gone.worker.metrics.retire(bus);
                        gone.since
                    }
                    None => return,
                }
            }
        };
        self.truth.gone(role, index, now);
        self.books.worker_time += now - since;
    }
}

fn worker_name(role: Role, index: usize) -> String {
    format!("{}-{index}", role.name())
}

/// The less loaded of two serving workers picked at random: near the best that can be done, with what a router can know.
fn pick<W>(
    members: &[Option<Member<W>>],
    load: impl Fn(&W) -> f64,
    random: &mut Random,
) -> Option<usize> {
    let serving: Vec<usize> = (0..members.len())
        .filter(|&i| {
            members[i]
                .as_ref()
                .is_some_and(|m| m.state == State::Serving)
        })
        .collect();
    let one = *serving.get(random.below(serving.len()))?;
    let two = *serving.get(random.below(serving.len()))?;
    let load = |i: usize| {
        members[i]
            .as_ref()
            .map_or(f64::INFINITY, |m| load(&m.worker))
    };
    Some(if load(two) < load(one) { two } else { one })
}

fn free_slot<W>(members: &mut Vec<Option<W>>) -> usize {
    members.iter().position(Option::is_none).unwrap_or_else(|| {
        members.push(None);
        members.len() - 1
    })
}

fn drain_youngest<W>(members: &mut [Option<Member<W>>]) -> Option<usize> {
    let serving = members
        .iter_mut()
        .enumerate()
        .filter_map(|(index, member)| {
            let member = member.as_mut().filter(|m| m.state == State::Serving)?;
            Some((index, member))
        });
    let (index, youngest) = serving.max_by_key(|(index, m)| (m.since, *index))?;
    youngest.state = State::Draining;
    Some(index)
}

fn count<W>(members: &[Option<Member<W>>]) -> Count {
    let mut count = Count::default();
    for member in members.iter().flatten() {
        match member.state {
            State::Starting => count.starting += 1,
            State::Serving => count.serving += 1,
            State::Draining => count.draining += 1,
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size {
        min: [1, 1],
        max: [2, 3],
        start_up: Duration::from_secs(5),
    };
    const TARGETS: Targets = Targets {
        ttft: Duration::from_secs(1),
        itl: Duration::from_millis(50),
    };

    fn fleet(bus: &MetricBus) -> Fleet {
        Fleet::new(bus, "test", SIZE, TARGETS, 1).expect("valid declarations")
    }

    fn request(context: u32, generated: u32) -> Request {
        Request {
            at: Duration::ZERO,
            context,
            generated,
        }
    }

    fn run_until_idle(fleet: &mut Fleet) -> Duration {
        let mut now = Duration::ZERO;
        while let Some(at) = fleet.next_event() {
            assert!(at >= now, "time goes forward");
            now = at;
            fleet.step(now);
        }
        now
    }

    #[test]
    fn a_lone_request_meets_its_targets() {
        let bus = MetricBus::new();
        let mut fleet = fleet(&bus);
        fleet.arrive(&request(1000, 100), Duration::ZERO);
        let end = run_until_idle(&mut fleet);
        fleet.end(end);
        let books = fleet.books;
        assert_eq!((books.arrived, books.finished, books.missed), (1, 1, 0));
        assert_eq!(books.worker_time, end * 2);
    }

    #[test]
    fn a_flood_misses_its_targets_and_every_request_is_counted_once() {
        let bus = MetricBus::new();
        let mut fleet = fleet(&bus);
        for _ in 0..60 {
            fleet.arrive(&request(1500, 100), Duration::ZERO);
        }
        fleet.arrive(&request(100, 1), Duration::ZERO);
        fleet.arrive(&request(1_000_000, 10), Duration::ZERO);
        let end = run_until_idle(&mut fleet);
        fleet.end(end);
        let books = fleet.books;
        assert_eq!((books.arrived, books.finished, books.refused), (62, 61, 1));
        assert!(books.missed_ttft > 30, "{books:?}");
        assert!(books.missed <= books.missed_ttft + books.missed_itl + books.refused);
        assert!(
            fleet
                .truth
                .excursions()
                .iter()
                .any(|e| e.role == Role::Prefill && e.misses > 0)
        );
    }

    #[test]
    fn a_new_worker_serves_after_its_start_up_and_a_drained_one_goes() {
        let bus = MetricBus::new();
        let mut fleet = fleet(&bus);
        let name = fleet
            .add(Role::Decode, Duration::ZERO)
            .expect("valid declarations");
        assert_eq!(name.as_deref(), Some("decode-1"));
        assert_eq!(
            fleet.count(Role::Decode),
            Count {
                starting: 1,
                serving: 1,
                draining: 0
            }
        );
        assert_eq!(run_until_idle(&mut fleet), SIZE.start_up);
        assert_eq!(
            fleet.count(Role::Decode),
            Count {
                starting: 0,
                serving: 2,
                draining: 0
            }
        );

        let later = Duration::from_secs(8);
        let gone = fleet
            .remove(Role::Decode, later)
            .expect("valid declarations");
        assert_eq!(gone.as_deref(), Some("decode-1"));
        assert_eq!(fleet.count(Role::Decode).present(), 1);
        assert_eq!(fleet.books.worker_time, later);
        let left = bus
            .series("dynamo_component_kv_usage_ratio")
            .expect("a valid selector");
        assert_eq!(left.len(), 1);
    }

    #[test]
    fn a_fleet_keeps_within_its_bounds() {
        let bus = MetricBus::new();
        let mut fleet = fleet(&bus);
        let now = Duration::ZERO;
        assert_eq!(
            fleet
                .remove(Role::Prefill, now)
                .expect("valid declarations"),
            None
        );
        assert!(
            fleet
                .add(Role::Prefill, now)
                .expect("valid declarations")
                .is_some()
        );
        assert_eq!(
            fleet.add(Role::Prefill, now).expect("valid declarations"),
            None
        );
        assert_eq!(fleet.books.peak, [2, 1]);
    }

    #[test]
    fn a_draining_worker_finishes_what_it_has() {
        let bus = MetricBus::new();
        let mut fleet = fleet(&bus);
        fleet
            .add(Role::Prefill, Duration::ZERO)
            .expect("valid declarations");
        let mut now = run_until_idle(&mut fleet);
        for _ in 0..20 {
            fleet.arrive(&request(1000, 1), now);
        }
        fleet
            .remove(Role::Prefill, now)
            .expect("valid declarations");
        assert_eq!(fleet.count(Role::Prefill).draining, 1);
        while let Some(at) = fleet.next_event() {
            now = at;
            fleet.step(now);
        }
        assert_eq!(fleet.books.finished, 20);
        assert_eq!(
            fleet.count(Role::Prefill),
            Count {
                starting: 0,
                serving: 1,
                draining: 0
            }
        );
    }
}
