//! `forward_inc`: adding 1 to a counter that is forwarded over NATS.
//!
//! - Subject: `Counter::inc` of a forwarded counter, after the first one since it was last sent. That one takes the slow
//!   path and is not measured; there are at most ten in a second. No server is there, so none comes in between.
//! - Floor: `AtomicU64::fetch_add(1, AcqRel)` behind an `Arc`.
//! - Peer: the counter of `prometheus`, which tells nobody.
//! - For orientation: a counter with a threshold that is never crossed, and one that nobody listens to.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use metricbus::{
    Counter, MetricBus, SourceId, Threshold,
    nats::{NatsForwarder, NatsOptions},
};

use crate::{
    Failure,
    harness::{Effort, Lane, Role, interleave},
    report::{Bar, Figures, Unit},
};

pub(crate) fn inc(effort: Effort) -> Result<Figures, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let _inside = runtime.enter();
    let bus = MetricBus::new();
    let [forwarded, armed, quiet] = ["forwarded_total", "armed_total", "quiet_total"]
        .map(|name| bus.counter(name, "Requests."));
    let (forwarded, armed, quiet) = (forwarded?, armed?, quiet?);
    // Nobody listens at the discard port of this machine.
    let options = NatsOptions::new("nats://127.0.0.1:9")?;
    let builder = NatsForwarder::builder(&bus, options).source(SourceId::new("n", "c", "i"));
    let forwarder = runtime.block_on(builder.start())?;
    let _frames = forwarder.forward(&forwarded).start()?;
    let _armed = bus
        .on_threshold(&armed, Threshold::above(1e18))
        .call(|_| {})?;
    forwarded.inc();
    let inc = |counter: &Counter, _: usize| counter.inc();
    let lanes = &mut [
        Lane::of(Role::Subject, "forwarded", forwarded, inc),
        Lane::of(
            Role::Floor,
            "fetch_add(AcqRel)",
            Arc::new(AtomicU64::new(0)),
            |a, _| {
                a.fetch_add(1, Ordering::AcqRel);
            },
        ),
        Lane::of(
            Role::Peer,
            "prometheus",
            prometheus::IntCounter::new("requests_total", "Requests.")?,
            |c, _| c.inc(),
        ),
        Lane::of(Role::Other, "armed", armed, inc),
        Lane::of(Role::Other, "quiet", quiet, inc),
    ];
    let rounds = interleave(effort.fast(), lanes)?;
    Ok(Figures::new(
        "forward_inc",
        Unit::Ns,
        rounds,
        Bar::Floor(1.2),
    ))
}
