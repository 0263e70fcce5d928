//! Two ways for a planner to hear of its fleet: callbacks from the bus, and polling it every so often. Both give the
//! same signals, so that planners differ in nothing but how soon they hear.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, Receiver, Sender},
    },
    time::{Duration, Instant},
};

use metricbus::{
    Crossed, Crossing, Delta, MetricBus, Moved, SelectorError, Series, SubscribeError,
    Subscription, Threshold, Time, dynamo,
};

use crate::{
    truth::{self, Limit},
    worker::Role,
};

/// Requests that start waiting for a decode worker's memory at once, as a sign that one more worker will not do.
const JUMP: f64 = 8.0;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Quantity {
    /// KV usage of a decode worker against its limit.
    KvUsage,
    /// Queue of a prefill worker against its limit.
    PrefillQueue,
    /// Queue of a decode worker: by how much it moves.
    DecodeQueue,
}

impl Quantity {
    pub const ALL: [Quantity; 3] = [
        Quantity::KvUsage,
        Quantity::PrefillQueue,
        Quantity::DecodeQueue,
    ];

    pub fn role(self) -> Role {
        match self {
            Quantity::PrefillQueue => Role::Prefill,
            Quantity::KvUsage | Quantity::DecodeQueue => Role::Decode,
        }
    }

    /// The limit it is judged by, unless it is by its moves.
    pub fn limit(self) -> Option<&'static Limit> {
        (self != Quantity::DecodeQueue).then(|| Limit::of(self.role()))
    }

    /// Selects it at all workers of a fleet: those that are there and those that will be.
    fn selector(self, namespace: &str) -> String {
        let name = match self {
            Quantity::KvUsage => "kv_usage_ratio",
            Quantity::PrefillQueue | Quantity::DecodeQueue => "queue_depth",
        };
        selector(name, namespace, self.role())
    }
}

/// Selects a metric at all workers of one role.
pub fn selector(name: &str, namespace: &str, role: Role) -> String {
    format!(
        "{}{name}{{{}=\"{namespace}\",{}=\"{}\"}}",
        dynamo::PREFIX,
        dynamo::NAMESPACE_LABEL,
        dynamo::COMPONENT_LABEL,
        role.name()
    )
}

/// Something a planner hears.
#[derive(Clone, Debug, PartialEq)]
pub struct Signal {
    pub quantity: Quantity,
    pub worker: String,
    pub news: News,
    pub value: f64,
    /// When it was so, in trace time.
    pub at: Duration,
    /// From the mutation to the callback, in real time; zero for polls.
    pub took: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum News {
    /// It went over its limit.
    Raised,
    /// It is back under it.
    Cleared,
    /// It grew at once, from this.
    Jumped(f64),
}

fn worker_of(series: &Series) -> String {
    series.label("worker").unwrap_or_default()
}

/// Callbacks did not come.
#[derive(Debug)]
pub struct Silence;

impl fmt::Display for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the bus owes this program a callback, and it has not come for 10 s")
    }
}

impl std::error::Error for Silence {}

/// How long to wait for a callback before this program gives up; it takes microseconds.
const SILENCE: Duration = Duration::from_secs(10);

/// Subscriptions to one fleet, and the rendezvous with their callbacks.
///
/// Callbacks run on the bus's threads while trace time stands still: for each subscription there is a second, inline
/// one, which does nothing but count, in the simulation's thread; [`Callbacks::take`] waits until as many callbacks have
/// come. So a callback costs no trace time, however fast that runs, its real time is measured on its own, and two runs
/// give the same result.
pub struct Callbacks {
    _subscriptions: Vec<Subscription>,
    signals: Receiver<Signal>,
    owed: Arc<AtomicU64>,
    taken: u64,
    stopwatch: Stopwatch,
}

/// When the present step of the simulation began, in real time.
#[derive(Clone)]
struct Stopwatch {
    origin: Instant,
    began: Arc<AtomicU64>,
}

impl Stopwatch {
    fn start(&self) {
        self.began.store(self.elapsed(), Ordering::Release);
    }

    fn read(&self) -> Duration {
        Duration::from_nanos(
            self.elapsed()
                .saturating_sub(self.began.load(Ordering::Acquire)),
        )
    }

    fn elapsed(&self) -> u64 {
        self.origin.elapsed().as_nanos() as u64
    }
}

impl Callbacks {
    pub fn subscribe(bus: &MetricBus, namespace: &str) -> Result<Callbacks, SubscribeError> {
        let (sender, signals) = mpsc::channel();
        let owed = Arc::new(AtomicU64::new(0));
        let stopwatch = Stopwatch {
            origin: Instant::now(),
            began: Arc::default(),
        };
        let kv = Quantity::KvUsage.selector(namespace);
        let full = Threshold::above(truth::KV.raise).clear_below(truth::KV.clear);
        let queue = Quantity::PrefillQueue.selector(namespace);
        let long = Threshold::above(truth::QUEUE.raise).clear_below(truth::QUEUE.clear);
        let line = Quantity::DecodeQueue.selector(namespace);
        let jump = Delta::absolute(JUMP);
        let count = |owed: &Arc<AtomicU64>| {
            let owed = owed.clone();
            move || {
                owed.fetch_add(1, Ordering::Relaxed);
            }
        };
        let (count_kv, count_queue, count_line) = (count(&owed), count(&owed), count(&owed));
        let reporter = Reporter {
            sender,
            stopwatch: stopwatch.clone(),
        };
        let (on_kv, on_queue, on_line) = (reporter.clone(), reporter.clone(), reporter);
        let subscriptions = vec![
            bus.on_threshold(&*kv, full).inline(move |_| count_kv())?,
            bus.on_threshold(&*queue, long)
                .inline(move |_| count_queue())?,
            bus.on_delta(&*line, jump).inline(move |_| count_line())?,
            // The three that a planner has.
            bus.on_threshold(&*kv, full)
                .call(move |crossing| on_kv.crossed(Quantity::KvUsage, &crossing))?,
            bus.on_threshold(&*queue, long)
                .call_async(move |crossing| {
                    on_queue.crossed(Quantity::PrefillQueue, &crossing);
                    std::future::ready(())
                })?,
            bus.on_delta(&*line, jump)
                .call(move |moved| on_line.moved(&moved))?,
        ];
        Ok(Callbacks {
            _subscriptions: subscriptions,
            signals,
            owed,
            taken: 0,
            stopwatch,
        })
    }

    /// A step of the simulation begins.
    pub fn start(&self) {
        self.stopwatch.start();
    }

    /// What the step has set off, once all of it is here; in an order that does not depend on the threads.
    pub fn take(&mut self) -> Result<Vec<Signal>, Silence> {
        let owed = self.owed.load(Ordering::Relaxed);
        let mut signals = Vec::new();
        while self.taken < owed {
            signals.push(self.signals.recv_timeout(SILENCE).map_err(|_| Silence)?);
            self.taken += 1;
        }
        signals.sort_by(|a, b| (a.at, a.quantity, &a.worker).cmp(&(b.at, b.quantity, &b.worker)));
        Ok(signals)
    }
}

/// What the callbacks do: say what they heard, and how long it took.
#[derive(Clone)]
struct Reporter {
    sender: Sender<Signal>,
    stopwatch: Stopwatch,
}

impl Reporter {
    fn crossed(&self, quantity: Quantity, crossing: &Crossing) {
        let took = self.stopwatch.read();
        let news = match crossing.state {
            Crossed::Raised => News::Raised,
            Crossed::Cleared => News::Cleared,
        };
        self.send(
            quantity,
            &crossing.series,
            news,
            crossing.value,
            crossing.at,
            took,
        );
    }

    fn moved(&self, moved: &Moved) {
        let took = self.stopwatch.read();
        let news = if moved.to > moved.from {
            News::Jumped(moved.from)
        } else {
            News::Cleared
        };
        self.send(
            Quantity::DecodeQueue,
            &moved.series,
            news,
            moved.to,
            moved.at,
            took,
        );
    }

    fn send(
        &self,
        quantity: Quantity,
        series: &Series,
        news: News,
        value: f64,
        at: Time,
        took: Duration,
    ) {
        // Nobody listens any more once the simulation has ended.
        let _ = self.sender.send(Signal {
            quantity,
            worker: worker_of(series),
            news,
            value,
            at: at.since(Time::ZERO),
            took,
        });
    }
}

/// Samples a fleet every so often, as Prometheus does, and compares each sample with the one before.
pub struct Poller {
    pub period: Duration,
    next: Duration,
    bus: MetricBus,
    selectors: [String; 3],
    /// The last sample, and whether it is over the limit.
    known: BTreeMap<(Quantity, String), (f64, bool)>,
    /// Roles of which a worker was over its limit in the last sample.
    pub over: [bool; 2],
}

/// Where in its period a poller begins. Scrapes of Prometheus too have an offset that has nothing to do with the load.
const PHASE: f64 = 0.37;

impl Poller {
    pub fn new(bus: &MetricBus, namespace: &str, period: Duration) -> Poller {
        Poller {
            period,
            next: period.mul_f64(PHASE),
            bus: bus.clone(),
            selectors: Quantity::ALL.map(|quantity| quantity.selector(namespace)),
            known: BTreeMap::new(),
            over: [false; 2],
        }
    }

    pub fn next(&self) -> Duration {
        self.next
    }

    /// Takes a sample; what is new against the last one.
    pub fn poll(&mut self, now: Duration) -> Result<Vec<Signal>, SelectorError> {
        self.next = now + self.period;
        let mut signals = Vec::new();
        let mut seen = BTreeMap::new();
        self.over = [false; 2];
        for (quantity, selector) in Quantity::ALL.into_iter().zip(&self.selectors) {
            for series in self.bus.series(&**selector)? {
                let Some(value) = series.value() else {
                    continue;
                };
                let value = value.as_f64();
                let key = (quantity, worker_of(&series));
                let (last, was_over) = self.known.get(&key).copied().unwrap_or_default();
                let mut over = false;
                let news = match quantity.limit() {
                    Some(limit) => {
                        over = limit.judge(was_over, value);
                        self.over[quantity.role() as usize] |= value > limit.raise;
                        match (was_over, over) {
                            (false, true) => Some(News::Raised),
                            (true, false) => Some(News::Cleared),
                            _ => None,
                        }
                    }
                    None => (value - last >= JUMP).then_some(News::Jumped(last)),
                };
                signals.extend(news.map(|news| Signal {
                    quantity,
                    worker: key.1.clone(),
                    news,
                    value,
                    at: now,
                    took: Duration::ZERO,
                }));
                seen.insert(key, (value, over));
            }
        }
        // Over its limit when last seen, and gone since.
        for ((quantity, worker), (value, over)) in &self.known {
            if *over && !seen.contains_key(&(*quantity, worker.clone())) {
                signals.push(Signal {
                    quantity: *quantity,
                    worker: worker.clone(),
                    news: News::Cleared,
                    value: *value,
                    at: now,
                    took: Duration::ZERO,
                });
            }
        }
        self.known = seen;
        Ok(signals)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use metricbus::{Clock, Gauge, Scope};

    fn bus() -> MetricBus {
        MetricBus::builder().clock(Clock::manual()).build()
    }

    fn worker(bus: &MetricBus, role: Role, name: &str) -> Scope {
        let component = dynamo::namespace(bus, "test").component(role.name());
        component.scope().with_label("worker", name)
    }

    fn gauge(bus: &MetricBus, role: Role, name: &str, metric: &str) -> Gauge {
        worker(bus, role, name)
            .gauge(metric, "A test's.")
            .expect("a valid declaration")
    }

    fn told(signals: &[Signal]) -> Vec<(Quantity, &str, News)> {
        signals
            .iter()
            .map(|s| (s.quantity, &*s.worker, s.news))
            .collect()
    }

    #[test]
    fn callbacks_tell_of_workers_that_came_later_and_all_at_once() {
        let bus = bus();
        let mut callbacks = Callbacks::subscribe(&bus, "test").expect("valid subscriptions");
        let kv = gauge(&bus, Role::Decode, "decode-0", "kv_usage_ratio");
        let queue = gauge(&bus, Role::Prefill, "prefill-0", "queue_depth");
        let other = dynamo::namespace(&bus, "other").component("decode");
        let other = other.scope().with_label("worker", "decode-0");
        let other = other
            .gauge("kv_usage_ratio", "A test's.")
            .expect("a valid declaration");

        callbacks.start();
        kv.set(0.95);
        queue.set(9.0);
        other.set(1.0);
        kv.set(0.85);
        let signals = callbacks.take().expect("callbacks come");
        assert_eq!(
            told(&signals),
            [
                (Quantity::KvUsage, "decode-0", News::Raised),
                (Quantity::PrefillQueue, "prefill-0", News::Raised),
            ]
        );
        kv.set(0.5);
        assert_eq!(
            told(&callbacks.take().expect("callbacks come")),
            [(Quantity::KvUsage, "decode-0", News::Cleared)]
        );
        assert!(callbacks.take().expect("nothing is owed").is_empty());
    }

    #[test]
    fn a_queue_that_grows_at_once_is_told_of() {
        let bus = bus();
        let mut callbacks = Callbacks::subscribe(&bus, "test").expect("valid subscriptions");
        let mut poller = Poller::new(&bus, "test", Duration::from_secs(1));
        let line = gauge(&bus, Role::Decode, "decode-3", "queue_depth");
        line.set(3.0);
        assert!(callbacks.take().expect("nothing is owed").is_empty());
        line.set(12.0);
        let by_callback = callbacks.take().expect("callbacks come");
        let by_poll = poller.poll(Duration::ZERO).expect("valid selectors");
        for signals in [by_callback, by_poll] {
            assert_eq!(signals.len(), 1);
            assert!(matches!(signals[0].news, News::Jumped(_)), "{signals:?}");
        }
    }

    #[test]
    fn a_poller_does_not_see_what_is_over_between_two_polls() {
        let bus = bus();
        let mut poller = Poller::new(&bus, "test", Duration::from_secs(5));
        let kv = gauge(&bus, Role::Decode, "decode-0", "kv_usage_ratio");
        kv.set(0.95);
        kv.set(0.3);
        assert!(
            poller
                .poll(Duration::from_secs(5))
                .expect("valid selectors")
                .is_empty()
        );
        kv.set(0.95);
        let seen = poller
            .poll(Duration::from_secs(10))
            .expect("valid selectors");
        assert_eq!(told(&seen), [(Quantity::KvUsage, "decode-0", News::Raised)]);
        assert_eq!(poller.over, [false, true]);
        kv.set(0.85);
        assert!(
            poller
                .poll(Duration::from_secs(15))
                .expect("valid selectors")
                .is_empty()
        );
        assert_eq!(poller.over, [false, false]);
        assert_eq!(poller.next(), Duration::from_secs(20));
    }
}
