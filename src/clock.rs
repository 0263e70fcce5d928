//! The injected clock: one source of time and timers for a whole bus, so that tests run on virtual time.
//!
//! Mutations never read it unless a listener of that very series wants to know the time. Timers run on a thread of the
//! clock's own (system), or inside [`Clock::advance`] (manual).

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    pin::Pin,
    process,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::{Duration, SystemTime},
};

use crate::{
    sync::lock,
    time::{Now, Time, nanos},
};

/// A monotonic clock, shared by its clones.
///
/// ```
/// use std::time::Duration;
/// use metricbus::{Clock, MetricBus};
///
/// let clock = Clock::manual();
/// let bus = MetricBus::builder().clock(clock.clone()).build();
/// let queue = bus.gauge("queue_depth", "Requests waiting.")?;
/// let window = queue.series().window(Duration::from_secs(10));
///
/// queue.set(4.0);
/// clock.advance(Duration::from_secs(5));
/// queue.set(8.0);
/// clock.advance(Duration::from_secs(5));
/// assert_eq!(window.stats().avg, Some(6.0));
/// # Ok::<(), metricbus::DeclareError>(())
/// ```
#[derive(Clone)]
pub struct Clock(Arc<Inner>);

struct Inner {
    source: Source,
    timers: Arc<Timers>,
    /// Who ticks, by the period in nanoseconds. A period that is here has a timer.
    tickers: Mutex<BTreeMap<u64, Vec<Weak<dyn Tick>>>>,
}

/// Somebody whom the clock calls at every multiple of a period.
pub(crate) trait Tick: Send + Sync {
    /// It is `now`: a multiple of the period, or later where the clock's thread was held up. Must be short, and must not
    /// panic. `true`: nothing has happened since the last call.
    fn tick(&self, now: Time) -> bool;
}

enum Source {
    System(Machine),
    Manual {
        now: AtomicU64,
        /// Where the present call of `advance` goes.
        target: AtomicU64,
        advancing: Mutex<()>,
    },
}

/// Reads the processor's counter where that is fit for it, at a third of what asking the kernel costs.
#[derive(Clone)]
struct Machine {
    clock: quanta::Clock,
    origin: u64,
    /// The date at the origin, as it was then.
    began: SystemTime,
}

/// The system clock of a process.
///
/// In a forked child there is one thread: the one that runs the timers is not, and their lock may be held for ever by one that
/// is not there either. So a child takes over what tells the time, which has no lock, and nothing else.
struct System {
    process: u32,
    machine: Machine,
    clock: Clock,
    /// Of a child, which got this one from its parent.
    later: OnceLock<Box<System>>,
}

impl System {
    fn new(process: u32, machine: Machine) -> System {
        System {
            process,
            clock: Clock::with(Source::System(machine.clone())),
            machine,
            later: OnceLock::new(),
        }
    }

    fn of(&self, process: u32) -> Clock {
        let mut last = self;
        while let Some(later) = last.later.get() {
            last = later;
        }
        if last.process == process {
            return last.clock.clone();
        }
        let make = || Box::new(System::new(process, last.machine.clone()));
        last.later.get_or_init(make).clock.clone()
    }
}

struct Timers {
    due: Mutex<Due>,
    changed: Condvar,
}

#[derive(Default)]
struct Due {
    jobs: BTreeMap<TimerKey, Job>,
    next_id: u64,
    thread_runs: bool,
    closed: bool,
}

type Job = Box<dyn FnOnce() + Send>;

/// A timer that was set, to cancel it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TimerKey {
    at: Time,
    /// Timers due at the same time run in the order in which they were set.
    id: u64,
}

impl Clock {
    /// The clock of the machine. All system clocks of a process are one; a forked child has one of its own, which tells the same
    /// time, since the thread of its parent's timers is not in it. A bus that a child got from its parent has its parent's.
    ///
    /// It reads the processor's time stamp counter where that runs at a constant rate on all cores, and
    /// `CLOCK_MONOTONIC` elsewhere (the crate `quanta`). The first call measures the counter's rate, which takes up to
    /// 200 ms.
    pub fn system() -> Clock {
        static SYSTEM: OnceLock<System> = OnceLock::new();
        let process = process::id();
        let first = SYSTEM.get_or_init(|| {
            let clock = quanta::Clock::new();
            let origin = clock.raw();
            let machine = Machine {
                clock,
                origin,
                began: SystemTime::now(),
            };
            System::new(process, machine)
        });
        first.of(process)
    }

    /// A clock that stands still at [`Time::ZERO`] until it is [advanced](Clock::advance).
    pub fn manual() -> Clock {
        Clock::with(Source::Manual {
            now: AtomicU64::new(0),
            target: AtomicU64::new(0),
            advancing: Mutex::new(()),
        })
    }

    fn with(source: Source) -> Clock {
        Clock(Arc::new(Inner {
            source,
            timers: Arc::new(Timers {
                due: Mutex::default(),
                changed: Condvar::new(),
            }),
            tickers: Mutex::default(),
        }))
    }

    /// The present.
    pub fn now(&self) -> Time {
        match &self.0.source {
            Source::System(Machine { clock, origin, .. }) => {
                Time(clock.delta_as_nanos(*origin, clock.raw()))
            }
            Source::Manual { now, .. } => Time(now.load(Ordering::Acquire)),
        }
    }

    /// The date of a time of this clock, for people and other machines. A manual clock starts at the Unix epoch.
    pub fn wall(&self, time: Time) -> SystemTime {
        match &self.0.source {
            Source::System(_) => {
                let now = SystemTime::now();
                let age = self.now().since(time);
                now.checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH)
            }
            Source::Manual { .. } => SystemTime::UNIX_EPOCH
                .checked_add(Duration::from_nanos(time.0))
                .unwrap_or(SystemTime::UNIX_EPOCH),
        }
    }

    /// The date of a time, the same whenever it is asked for: by the date at the clock's origin, whatever was done to the
    /// machine's clock since. For dates that tell one life of a series from another.
    pub(crate) fn date(&self, time: Time) -> SystemTime {
        let began = match &self.0.source {
            Source::System(machine) => machine.began,
            Source::Manual { .. } => SystemTime::UNIX_EPOCH,
        };
        began
            .checked_add(Duration::from_nanos(time.0))
            .unwrap_or(began)
    }

    /// As [`wall`](Clock::wall), of a time that really was this long before.
    pub(crate) fn wall_before(&self, time: Time, before: Duration) -> SystemTime {
        let date = self.wall(time).checked_sub(before);
        date.unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// Whether this is a manual clock.
    pub fn is_manual(&self) -> bool {
        matches!(self.0.source, Source::Manual { .. })
    }

    /// Moves a manual clock forward, running each timer at its own time, in order, in this thread.
    ///
    /// # Panics
    ///
    /// On the system clock, which moves by itself.
    pub fn advance(&self, by: Duration) {
        let Source::Manual {
            now,
            target: goal,
            advancing,
        } = &self.0.source
        else {
            panic!(
                "Clock::advance: the system clock moves by itself; use Clock::manual() in tests"
            );
        };
        let _one_at_a_time = advancing.lock().unwrap_or_else(PoisonError::into_inner);
        let target = self.now() + by;
        goal.store(target.0, Ordering::Release);
        while let Some((at, job)) = self.0.timers.pop_due(target) {
            now.fetch_max(at.0, Ordering::AcqRel);
            job();
        }
        now.fetch_max(target.0, Ordering::AcqRel);
    }

    /// Done once `time` of this clock has passed: at once for one that is past.
    pub fn sleep(&self, time: Duration) -> Sleep {
        self.sleep_until(self.now() + time)
    }

    /// Done at `time` of this clock, or at once where that is past.
    pub fn sleep_until(&self, time: Time) -> Sleep {
        Sleep {
            clock: self.clone(),
            at: time,
            alarm: None,
        }
    }

    /// Runs `job` at `time`, or at once (on the clock's thread) where that is past. `job` must be short.
    pub(crate) fn at(&self, time: Time, job: impl FnOnce() + Send + 'static) -> TimerKey {
        let timers = &self.0.timers;
        let mut due = timers.lock();
        let key = TimerKey {
            at: time,
            id: due.next_id,
        };
        due.next_id += 1;
        // The clock's thread waits for the earliest timer there was: only an earlier one is news to it.
        let is_earliest = due.jobs.keys().next().is_none_or(|first| key < *first);
        due.jobs.insert(key, Box::new(job));
        if self.is_manual() {
            return key;
        }
        if !due.thread_runs {
            due.thread_runs = true;
            let clock = Arc::downgrade(&self.0);
            let shared = timers.clone();
            let started = std::thread::Builder::new()
                .name("metricbus-clock".into())
                .spawn(move || shared.run(&clock));
            if let Err(error) = started {
                due.thread_runs = false;
                tracing::error!(%error, "metricbus: no thread for timers; expiry is off until one can be started");
            }
        }
        drop(due);
        if is_earliest {
            timers.changed.notify_one();
        }
        key
    }

    /// Drops the job of a timer that has not run yet.
    pub(crate) fn cancel(&self, key: TimerKey) {
        // What the job holds is dropped after the lock.
        let job = self.0.timers.lock().jobs.remove(&key);
        drop(job);
    }
}

/// A future that is done at a time of a [`Clock`]. Made by [`Clock::sleep`] and [`Clock::sleep_until`].
///
/// On a manual clock it is done by [`Clock::advance`], and never by waiting. Dropping it takes its timer away, and the
/// waker of whoever polled it.
///
/// ```
/// use std::{pin::pin, task::{Context, Poll, Waker}, time::Duration};
/// use metricbus::Clock;
///
/// let clock = Clock::manual();
/// let mut sleep = pin!(clock.sleep(Duration::from_secs(5)));
/// let mut cx = Context::from_waker(Waker::noop());
/// assert_eq!(sleep.as_mut().poll(&mut cx), Poll::Pending);
/// clock.advance(Duration::from_secs(5));
/// assert_eq!(sleep.as_mut().poll(&mut cx), Poll::Ready(()));
/// ```
#[must_use = "futures do nothing unless polled"]
pub struct Sleep {
    clock: Clock,
    at: Time,
    alarm: Option<(TimerKey, Arc<Mutex<Option<Waker>>>)>,
}

impl Sleep {
    /// When it is done.
    pub fn deadline(&self) -> Time {
        self.at
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.clock.now() >= self.at {
            return Poll::Ready(());
        }
        if let Some((_, sleeper)) = &self.alarm {
            // Cloning and dropping a waker is foreign code: outside of the lock.
            let waker = cx.waker().clone();
            let before = lock(sleeper).replace(waker);
            drop(before);
        } else {
            let sleeper = Arc::new(Mutex::new(Some(cx.waker().clone())));
            let alarmed = sleeper.clone();
            let key = self.clock.at(self.at, move || {
                let waker = lock(&alarmed).take();
                if let Some(waker) = waker {
                    waker.wake();
                }
            });
            self.alarm = Some((key, sleeper));
        }
        // The time may have come while the waker was put down: then the timer woke an older one, or none.
        if self.clock.now() >= self.at {
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some((key, _)) = &self.alarm {
            self.clock.cancel(*key);
        }
    }
}

impl fmt::Debug for Sleep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sleep(until {:?})", self.at)
    }
}

impl Clock {
    /// Calls `who` at every multiple of `period` from now on, as long as it is there. All who tick at one period share a
    /// timer, and are called in the order in which they came.
    ///
    /// A manual clock that is advanced by a long way leaps: once all have said that nothing happens, it calls them again
    /// when something else is due, or at the end of the way.
    pub(crate) fn every(&self, period: Duration, who: Weak<dyn Tick>) {
        let period = nanos(period).max(1);
        let first = {
            let mut tickers = lock(&self.0.tickers);
            let first = !tickers.contains_key(&period);
            let all = tickers.entry(period).or_default();
            if all.len() == all.capacity() {
                // Those of long periods may come and go many times before the next tick.
                all.retain(|who| who.strong_count() > 0);
            }
            all.push(who);
            first
        };
        if first {
            self.tick_at(next_multiple(self.now(), period), period);
        }
    }

    fn tick_at(&self, time: Time, period: u64) {
        let clock = Arc::downgrade(&self.0);
        self.at(time, move || {
            if let Some(inner) = clock.upgrade() {
                Clock(inner).tick(period);
            }
        });
    }

    fn tick(&self, period: u64) {
        let all: Vec<Arc<dyn Tick>> = {
            let mut tickers = lock(&self.0.tickers);
            let Some(all) = tickers.get_mut(&period) else {
                return;
            };
            all.retain(|who| who.strong_count() > 0);
            if all.is_empty() {
                tickers.remove(&period);
                return;
            }
            all.iter().filter_map(Weak::upgrade).collect()
        };
        let now = self.now();
        let mut idle = true;
        for who in all {
            idle &= who.tick(now);
        }
        let mut next = next_multiple(now, period);
        if let Some(horizon) = self.horizon().filter(|_| idle) {
            next = next.max(Time(horizon.0 / period * period));
        }
        self.tick_at(next, period);
    }

    /// Up to where nothing is due on a manual clock that is being advanced.
    fn horizon(&self) -> Option<Time> {
        let Source::Manual { target, .. } = &self.0.source else {
            return None;
        };
        let target = Time(target.load(Ordering::Acquire));
        let due = self.0.timers.lock();
        let next = due.jobs.keys().next().map(|&TimerKey { at, .. }| at);
        Some(next.map_or(target, |next| next.min(target)))
    }

    /// How many timers are set.
    #[cfg(test)]
    pub(crate) fn timers(&self) -> usize {
        self.0.timers.lock().jobs.len()
    }
}

/// The first multiple of `period` after `time`.
fn next_multiple(time: Time, period: u64) -> Time {
    Time((time.0 / period).saturating_add(1).saturating_mul(period))
}

impl Timers {
    fn lock(&self) -> MutexGuard<'_, Due> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pop_due(&self, now: Time) -> Option<(Time, Job)> {
        let mut due = self.lock();
        let first = due.jobs.first_entry()?;
        (first.key().at <= now).then(|| (first.key().at, first.remove()))
    }

    /// The system clock's thread: ends when the last clone of the clock is gone.
    fn run(&self, clock: &Weak<Inner>) {
        loop {
            let Some(now) = clock.upgrade().map(|inner| Clock(inner).now()) else {
                return;
            };
            if let Some((_, job)) = self.pop_due(now) {
                let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
                if caught.is_err() {
                    tracing::error!("metricbus: a timer panicked");
                }
                continue;
            }
            let due = self.lock();
            if due.closed {
                return;
            }
            match due.jobs.keys().next().map(|first| first.at) {
                Some(at) if at <= now => {}
                Some(at) => drop(self.changed.wait_timeout(due, at.since(now))),
                None => drop(self.changed.wait(due)),
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.timers.lock().closed = true;
        self.timers.changed.notify_all();
    }
}

impl Now for Clock {
    fn now(&self) -> Time {
        Clock::now(self)
    }
}

impl Default for Clock {
    fn default() -> Self {
        Clock::system()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.is_manual() { "manual" } else { "system" };
        write!(f, "Clock({kind}, {:?})", self.now())
    }
}

/// Nanoseconds.
#[cfg(feature = "serde")]
impl serde::Serialize for Time {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for Time {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Time, D::Error> {
        serde::Deserialize::deserialize(deserializer).map(Time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_run_in_order_each_at_its_own_time() {
        let clock = Clock::manual();
        let seen = Arc::new(Mutex::new(Vec::new()));
        for secs in [3, 1, 2, 9] {
            let (at, seen, clock2) = (
                Time::ZERO + Duration::from_secs(secs),
                seen.clone(),
                clock.clone(),
            );
            clock.at(at, move || seen.lock().unwrap().push(clock2.now()));
        }
        clock.advance(Duration::from_secs(5));
        let seen: Vec<_> = seen
            .lock()
            .unwrap()
            .iter()
            .map(|t| t.as_secs_f64())
            .collect();
        assert_eq!(seen, [1.0, 2.0, 3.0]);
        assert_eq!(clock.now().as_secs_f64(), 5.0);
    }

    #[test]
    fn a_forked_child_has_the_time_of_its_parent_but_timers_of_its_own() {
        let clock = quanta::Clock::new();
        let origin = clock.raw();
        let began = SystemTime::now();
        let machine = Machine {
            clock,
            origin,
            began,
        };
        let first = System::new(1, machine);
        let parent = first.of(1);
        assert!(Arc::ptr_eq(&parent.0, &first.of(1).0));
        // As another thread of the parent may have it when it forks: for ever, in the child.
        let held = parent.0.timers.lock();
        let before = parent.now();
        let child = first.of(2);
        assert!(child.now() >= before);
        assert_eq!(child.date(before), parent.date(before));
        let (told, hear) = std::sync::mpsc::channel();
        child.at(child.now(), move || told.send(()).unwrap());
        hear.recv().unwrap();
        assert!(Arc::ptr_eq(&child.0, &first.of(2).0));
        assert!(!Arc::ptr_eq(&child.0, &first.of(3).0));
        drop(held);
    }

    struct Ticks(Clock, Mutex<Vec<Time>>, bool);

    impl Tick for Ticks {
        fn tick(&self, now: Time) -> bool {
            assert_eq!(now, self.0.now());
            self.1.lock().unwrap().push(now);
            self.2
        }
    }

    #[test]
    fn those_who_tick_at_one_period_share_a_timer_which_ends_with_the_last() {
        let clock = Clock::manual();
        let period = Duration::from_secs(2);
        clock.advance(Duration::from_secs(3));
        let ticks = || Arc::new(Ticks(clock.clone(), Mutex::default(), false));
        let (one, other) = (ticks(), ticks());
        for who in [&one, &other] {
            let who: Weak<Ticks> = Arc::downgrade(who);
            clock.every(period, who);
        }
        assert_eq!(clock.timers(), 1);
        clock.advance(Duration::from_secs(5));
        drop(one);
        clock.advance(Duration::from_secs(2));
        let at = other.1.lock().unwrap().clone();
        let at: Vec<_> = at.iter().map(|t| t.as_secs_f64()).collect();
        assert_eq!(at, [4.0, 6.0, 8.0, 10.0]);
        drop(other);
        assert_eq!(clock.timers(), 1);
        clock.advance(period);
        assert_eq!(clock.timers(), 0);
    }

    #[test]
    fn where_nothing_happens_a_manual_clock_leaps_to_what_is_due_next() {
        let clock = Clock::manual();
        let idle = Arc::new(Ticks(clock.clone(), Mutex::default(), true));
        let who: Weak<Ticks> = Arc::downgrade(&idle);
        clock.every(Duration::from_secs(1), who);
        clock.at(Time::ZERO + Duration::from_millis(50_500), || {});
        clock.advance(Duration::from_secs(1_000_000));
        let at = idle.1.lock().unwrap().clone();
        let at: Vec<_> = at.iter().map(|t| t.as_secs_f64()).collect();
        assert_eq!(at, [1.0, 50.0, 51.0, 1_000_000.0]);
        assert_eq!(clock.timers(), 1);
    }

    fn jobs(clock: &Clock) -> usize {
        clock.0.timers.lock().jobs.len()
    }

    fn poll(sleep: &mut Sleep, waker: &Waker) -> Poll<()> {
        Pin::new(sleep).poll(&mut Context::from_waker(waker))
    }

    #[derive(Default)]
    struct Bell(AtomicU64);

    impl std::task::Wake for Bell {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_timer_that_is_cancelled_does_not_run_and_is_gone() {
        let clock = Clock::manual();
        let held = Arc::new(());
        let job = held.clone();
        let key = clock.at(Time::ZERO + Duration::from_secs(1), move || {
            drop(job);
            unreachable!()
        });
        clock.cancel(key);
        assert_eq!(Arc::strong_count(&held), 1);
        clock.advance(Duration::from_secs(2));
        clock.cancel(key);
    }

    #[test]
    fn a_sleep_is_done_at_its_time_and_wakes_the_last_that_polled_it() {
        let clock = Clock::manual();
        let (old, new) = (Arc::new(Bell::default()), Arc::new(Bell::default()));
        let mut sleep = clock.sleep(Duration::from_secs(2));
        assert_eq!(poll(&mut sleep, &old.clone().into()), Poll::Pending);
        assert_eq!(poll(&mut sleep, &new.clone().into()), Poll::Pending);
        assert_eq!(jobs(&clock), 1);
        clock.advance(Duration::from_secs(1));
        assert_eq!(poll(&mut sleep, &new.clone().into()), Poll::Pending);
        clock.advance(Duration::from_secs(1));
        assert_eq!(old.0.load(Ordering::Relaxed), 0);
        assert_eq!(new.0.load(Ordering::Relaxed), 1);
        assert_eq!(poll(&mut sleep, Waker::noop()), Poll::Ready(()));
    }

    #[test]
    fn a_sleep_that_is_dropped_leaves_neither_a_timer_nor_a_waker() {
        let clock = Clock::manual();
        let bell = Arc::new(Bell::default());
        let waker: Waker = bell.clone().into();
        let mut sleep = clock.sleep(Duration::from_secs(1));
        assert_eq!(poll(&mut sleep, &waker), Poll::Pending);
        drop(waker);
        assert_eq!(Arc::strong_count(&bell), 2);
        drop(sleep);
        assert_eq!((jobs(&clock), Arc::strong_count(&bell)), (0, 1));
        clock.advance(Duration::from_secs(2));
        assert_eq!(bell.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_sleep_until_the_past_is_done_at_once_and_sets_no_timer() {
        let clock = Clock::manual();
        clock.advance(Duration::from_secs(3));
        let mut sleep = clock.sleep_until(Time::ZERO + Duration::from_secs(3));
        assert_eq!(poll(&mut sleep, Waker::noop()), Poll::Ready(()));
        assert_eq!(jobs(&clock), 0);
    }

    #[test]
    fn an_earlier_timer_of_the_system_clock_is_not_kept_waiting_by_a_later_one() {
        let (tx, rx) = std::sync::mpsc::channel();
        let clock = Clock::system();
        let late = clock.at(clock.now() + Duration::from_secs(3600), || {});
        clock.at(clock.now() + Duration::from_millis(1), move || {
            tx.send(()).unwrap();
        });
        rx.recv().unwrap();
        clock.cancel(late);
    }

    #[test]
    fn a_timer_of_the_system_clock_runs() {
        let (tx, rx) = std::sync::mpsc::channel();
        let clock = Clock::system();
        let at = clock.now() + Duration::from_millis(1);
        clock.at(at, move || tx.send(()).unwrap());
        rx.recv().unwrap();
        assert!(clock.now() >= at);
    }
}
