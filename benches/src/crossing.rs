//! `crossing_to_callback`: from the call that makes a gauge cross its threshold to the first line of the callback. And
//! [`race`], which measures such times, also those of [`nats`](crate::nats).
//!
//! One crossing at a time, and each finds the receiver truly parked: before it, the receiver's state is read from
//! `/proc` until the kernel says that it sleeps (elsewhere than on Linux, a millisecond is waited), and then as long
//! again as an idle processor of a virtual machine polls before it halts. Otherwise a contender would gain from a
//! processor that the one before it has just left. The mutating thread spins before and after its call, as a busy
//! component does; it is not the one that hands over its processor. Contenders take turns crossing by crossing. A round
//! is a block of crossings and its sample the block's median; the 99th percentiles are over all crossings. How long the
//! mutating call itself took is shown, too.
//!
//! - Subject: `on_threshold(…).call(…)`, which runs on the bus's own threads.
//! - Floor: a bare wake, `tokio::sync::Notify::notify_one` of a task on a runtime with one worker.
//! - Peer: the naive bus; a task on such a runtime receives every set and compares.
//! - Other ways through metricbus: `call_async` and `stream` on such a runtime.
//!
//! Each contender on tokio has a runtime of its own, with the I/O driver off, as tokio then parks in the cheapest way it
//! has.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures::StreamExt;
use metricbus::{Crossed, Crossing, Gauge, MetricBus, Threshold};
use tokio::{
    runtime::Runtime,
    sync::{Notify, broadcast::error::RecvError},
};

use crate::{
    Failure,
    harness::{Effort, Role, Rounds, Turns, spin_until},
    naive::NaiveBus,
    report::{Bar, Figures, Unit},
    stats::quantile,
};

const THRESHOLD: f64 = 0.9;
pub(crate) const OVER: f64 = 0.95;
pub(crate) const UNDER: f64 = 0.1;

pub(crate) fn busy() -> Threshold {
    Threshold::above(THRESHOLD).clear_below(0.5)
}

/// What a receiver leaves behind when it is reached.
pub(crate) struct Probe {
    origin: Instant,
    /// Nanoseconds since the origin; 0 until reached.
    reached: AtomicU64,
    /// How often the clearing was received.
    cleared: AtomicU64,
    /// The receiver's thread, as the kernel counts.
    thread: AtomicU64,
}

impl Probe {
    pub(crate) fn new() -> Arc<Probe> {
        Arc::new(Probe {
            origin: Instant::now(),
            reached: AtomicU64::new(0),
            cleared: AtomicU64::new(0),
            thread: AtomicU64::new(0),
        })
    }

    fn now(&self) -> u64 {
        // Never the 0 that means "not yet".
        self.origin.elapsed().as_nanos() as u64 + 1
    }

    /// The first line of a receiver.
    pub(crate) fn reach(&self) {
        let now = self.now();
        // Before the other side is let go on: it looks at the thread next.
        self.thread.store(this_thread(), Ordering::Release);
        self.reached.store(now, Ordering::Release);
    }

    pub(crate) fn clear(&self) {
        self.thread.store(this_thread(), Ordering::Release);
        self.cleared.fetch_add(1, Ordering::AcqRel);
    }

    fn on(&self, crossing: &Crossing) {
        match crossing.state {
            Crossed::Raised => self.reach(),
            Crossed::Cleared => self.clear(),
        }
    }
}

/// The number of this thread, or 0 where the system has no `/proc`.
fn this_thread() -> u64 {
    let number = || {
        let link = std::fs::read_link("/proc/thread-self").ok()?;
        link.file_name()?.to_str()?.parse().ok()
    };
    number().unwrap_or(0)
}

/// Linux guests poll for at most 200 µs before they halt (`guest_halt_poll_ns`).
const HALT: Duration = Duration::from_micros(250);

/// Waits until the kernel says that the thread sleeps, and its processor, too, where nobody else wants it.
fn wait_until_parked(thread: u64) -> Result<(), Failure> {
    if thread == 0 {
        std::thread::sleep(Duration::from_millis(1));
        return Ok(());
    }
    let path = format!("/proc/self/task/{thread}/stat");
    spin_until("a receiver to park", || {
        // "12 (name) S 1 …"; a name may contain anything, but what follows the last parenthesis is fixed.
        std::fs::read_to_string(&path).is_ok_and(|stat| {
            stat.rsplit_once(") ")
                .is_some_and(|(_, rest)| rest.starts_with('S'))
        })
    })?;
    let start = Instant::now();
    while start.elapsed() < HALT {
        std::hint::spin_loop();
    }
    Ok(())
}

/// One contender.
pub(crate) struct Contender<'a> {
    role: Role,
    name: &'static str,
    /// Before the names of its further figures.
    prefix: &'static str,
    probe: Arc<Probe>,
    cross: Box<dyn Fn() + 'a>,
    /// Back to where the next crossing starts; whether the receiver is told of that.
    clear: Option<Box<dyn Fn() + 'a>>,
    /// Nanoseconds from before the call to the callback, and to the end of the call.
    latency: Vec<f64>,
    call: Vec<f64>,
}

impl<'a> Contender<'a> {
    pub(crate) fn new(
        role: Role,
        (name, prefix): (&'static str, &'static str),
        probe: &Arc<Probe>,
        cross: impl Fn() + 'a,
        clear: Option<Box<dyn Fn() + 'a>>,
    ) -> Self {
        Contender {
            role,
            name,
            prefix,
            probe: probe.clone(),
            cross: Box::new(cross),
            clear,
            latency: Vec::new(),
            call: Vec::new(),
        }
    }

    pub(crate) fn gauge(
        role: Role,
        names: (&'static str, &'static str),
        probe: &Arc<Probe>,
        gauge: &'a Gauge,
    ) -> Self {
        let clear = Box::new(|| gauge.set(UNDER));
        Contender::new(role, names, probe, || gauge.set(OVER), Some(clear))
    }

    /// One crossing.
    fn once(&mut self) -> Result<(), Failure> {
        let probe = &self.probe;
        wait_until_parked(probe.thread.load(Ordering::Acquire))?;
        probe.reached.store(0, Ordering::Release);
        let start = probe.now();
        (self.cross)();
        let called = probe.now();
        spin_until(self.name, || probe.reached.load(Ordering::Acquire) != 0)?;
        let reached = probe.reached.load(Ordering::Acquire);
        self.latency.push(reached.saturating_sub(start) as f64);
        self.call.push(called.saturating_sub(start) as f64);
        if let Some(clear) = &self.clear {
            let wanted = probe.cleared.load(Ordering::Acquire) + 1;
            clear();
            spin_until(self.name, || {
                probe.cleared.load(Ordering::Acquire) >= wanted
            })?;
        }
        Ok(())
    }
}

fn runtime() -> Result<Runtime, Failure> {
    Ok(tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .build()?)
}

pub(crate) fn to_callback(effort: Effort) -> Result<Figures, Failure> {
    let bus = MetricBus::new();
    let gauge = |name: &str| bus.gauge(name, "Share of the cache in use.");

    let called = &gauge("called")?;
    let called_probe = Probe::new();
    let probe = called_probe.clone();
    let _called = bus
        .on_threshold(called, busy())
        .call(move |crossing| probe.on(&crossing))?;

    let called_async = &gauge("called_async")?;
    let async_probe = Probe::new();
    let probe = async_probe.clone();
    let async_runtime = runtime()?;
    let entered = async_runtime.enter();
    let _called_async = bus
        .on_threshold(called_async, busy())
        .call_async(move |crossing| {
            probe.on(&crossing);
            std::future::ready(())
        })?;
    drop(entered);

    let streamed = &gauge("streamed")?;
    let stream_probe = Probe::new();
    let probe = stream_probe.clone();
    let mut crossings = bus.on_threshold(streamed, busy()).stream()?;
    let stream_runtime = runtime()?;
    stream_runtime.spawn(async move {
        while let Some(crossing) = crossings.next().await {
            probe.on(&crossing);
        }
    });

    let notify = Arc::new(Notify::new());
    let notify_probe = Probe::new();
    let (probe, notified) = (notify_probe.clone(), notify.clone());
    let notify_runtime = runtime()?;
    notify_runtime.spawn(async move {
        loop {
            notified.notified().await;
            probe.reach();
        }
    });

    let naive_bus = NaiveBus::new(1024);
    let naive = &naive_bus.gauge("naive", "Share of the cache in use.")?;
    let mut changes = naive_bus.subscribe();
    let naive_probe = Probe::new();
    let probe = naive_probe.clone();
    let naive_runtime = runtime()?;
    naive_runtime.spawn(async move {
        loop {
            match changes.recv().await {
                Ok(change) if change.value > THRESHOLD => probe.reach(),
                Ok(_) => probe.clear(),
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            }
        }
    });

    let mut contenders = [
        Contender::gauge(
            Role::Subject,
            ("metricbus, call", ""),
            &called_probe,
            called,
        ),
        Contender::new(
            Role::Floor,
            ("tokio Notify", "floor_"),
            &notify_probe,
            || notify.notify_one(),
            None,
        ),
        Contender::new(
            Role::Peer,
            ("naive bus", "peer_"),
            &naive_probe,
            || naive.set(OVER),
            Some(Box::new(|| naive.set(UNDER))),
        ),
        Contender::gauge(
            Role::Other,
            ("metricbus, call_async", "call_async_"),
            &async_probe,
            called_async,
        ),
        Contender::gauge(
            Role::Other,
            ("metricbus, stream", "stream_"),
            &stream_probe,
            streamed,
        ),
    ];
    let blocks = effort.pick((5, 20), (24, 80));
    let bar = Bar::Floor(1.3);
    race("crossing_to_callback", &mut contenders, blocks, bar)
}

/// Lets the contenders take turns, crossing by crossing, in so many blocks of so many.
pub(crate) fn race(
    name: &'static str,
    contenders: &mut [Contender<'_>],
    (blocks, block): (usize, usize),
    bar: Bar,
) -> Result<Figures, Failure> {
    let mut rounds = Rounds {
        lanes: contenders
            .iter()
            .map(|c| (c.role, c.name, Vec::new()))
            .collect(),
    };
    // Learns which threads the receivers are.
    for _ in 0..20 {
        for contender in contenders.iter_mut() {
            contender.once()?;
        }
    }
    for contender in contenders.iter_mut() {
        contender.latency.clear();
        contender.call.clear();
    }
    let mut turns = Turns::new(contenders.len());
    for _ in 0..blocks {
        for _ in 0..block {
            for &i in turns.shuffled() {
                contenders[i].once()?;
            }
        }
        for (contender, (.., samples)) in contenders.iter().zip(&mut rounds.lanes) {
            let latest = &contender.latency[contender.latency.len() - block..];
            samples.extend(quantile(latest, 0.5));
        }
    }

    let mut figures = Figures::new(name, Unit::Ns, rounds, bar);
    for contender in contenders.iter() {
        let more = [
            ("callback_p99_ns", &contender.latency, 0.99),
            ("call_itself_p50_ns", &contender.call, 0.5),
            ("call_itself_p99_ns", &contender.call, 0.99),
        ];
        for (name, samples, q) in more {
            if let Some(ns) = quantile(samples, q) {
                figures.more(format!("{}{name}", contender.prefix), ns);
            }
        }
    }
    Ok(figures)
}
