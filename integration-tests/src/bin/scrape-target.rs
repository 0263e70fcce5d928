//! What `tests/scrapes.rs` scrapes: an exporter whose metrics two threads mutate without pause.
//!
//! A process of its own, for with client and server in one process each connection would take two of its file
//! descriptors. It prints its address, and ends when its standard input does, so that it can't outlive the test.

use std::{
    error::Error,
    io::Read,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use metricbus::{Buckets, Counter, Desc, MetricBus, export::Exporter};

fn main() -> Result<(), Box<dyn Error>> {
    let connections_max = std::env::args()
        .nth(1)
        .ok_or("usage: scrape-target CONNECTIONS_MAX")?
        .parse()?;
    rlimit::increase_nofile_limit(u64::MAX)?;

    let bus = MetricBus::new();
    let mutations = bus.counter("mutations_total", "Rounds of the mutating threads.")?;
    let work =
        bus.declare::<Counter<f64>>(Desc::new("work_seconds_total", "Work done.").unit("seconds"))?;
    let in_flight = bus.gauge("in_flight", "Up and down.")?;
    let latency = bus.histogram(
        "latency_seconds",
        "Times.",
        Buckets::exponential(0.001, 2.0, 12)?,
    )?;

    let exporter = Exporter::builder(&bus)
        .connections_max(connections_max)
        .build();
    let server = exporter.serve_in_background("127.0.0.1:0")?;
    println!("{}", server.local_addr());

    let stop = Arc::new(AtomicBool::new(false));
    let mutators: Vec<_> = (0..2)
        .map(|_| {
            let (mutations, work, in_flight, latency, stop) = (
                mutations.clone(),
                work.clone(),
                in_flight.clone(),
                latency.clone(),
                Arc::clone(&stop),
            );
            thread::spawn(move || {
                let mut round = 0_u32;
                while !stop.load(Ordering::Relaxed) {
                    in_flight.inc();
                    mutations.inc();
                    work.inc_by(0.25);
                    latency.observe(f64::from(round % 5_000) / 1_000.0);
                    in_flight.dec();
                    round = round.wrapping_add(1);
                }
            })
        })
        .collect();

    std::io::stdin().read_to_end(&mut Vec::new())?;
    stop.store(true, Ordering::Relaxed);
    for mutator in mutators {
        mutator.join().map_err(|_| "a mutating thread panicked")?;
    }
    server.shutdown();
    Ok(())
}
