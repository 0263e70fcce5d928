//! A small fleet of LLM workers in one process, and a planner that reacts to its metrics.
//!
//! ```text
//! cargo run --release --example planner --features http -- --help
//! ```
//!
//! Prefill and decode workers serve requests from a trace, each with its struct of metrics on one bus. A planner
//! subscribes to thresholds with hysteresis, to a delta and to windows, and adds or removes workers. What that is worth
//! is told by comparison: the same requests go through five fleets at once, one that stays as it is, one steered by
//! callbacks and three by polling. /metrics is up meanwhile.
//!
//! # Time
//!
//! An hour of requests is served in half a minute, so the fleets are a discrete-event simulation. The bus is on a manual
//! clock that the simulation advances: windows and the times of events are in *trace time*. Between two steps the
//! simulation sleeps as `--speed` demands, but no result depends on that.
//!
//! Callbacks are real: they run on the bus's threads, in real time. If trace time went on meanwhile, at 140 times the
//! speed a callback of 50 µs would seem to take 7 ms; and no two runs would be the same. So a step of the simulation ends
//! when the callbacks that it has set off have run ([`signals::Callbacks`]). They take no trace time, their real time is
//! measured, and the tables add it to the time from onset to detection. Decisions apply in the step that caused them.
//! Polls are samples in trace time, at their periods.
//!
//! # Files
//!
//! `trace` makes requests; `worker` and `fleet` serve them; `truth` keeps the books on overload; `signals` is how a
//! planner hears, by callback or by polling; `planner` decides; `simulation` runs it all; `report` shows it.

mod cli;
mod fleet;
mod planner;
mod report;
mod signals;
mod simulation;
mod trace;
mod truth;
mod worker;

use std::{
    error::Error,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use clap::Parser;
use metricbus::{
    Clock, MetricBus,
    export::{BackgroundServer, Exporter},
};

use crate::{
    cli::{Cli, Speed},
    fleet::{Size, Targets},
    report::Live,
    simulation::Simulation,
    trace::{Bursts, Request},
};

/// Enough for the trace's average load, not for its bursts.
const SIZE: Size = Size {
    min: [2, 3],
    max: [6, 8],
    start_up: Duration::from_secs(6),
};

const TARGETS: Targets = Targets {
    ttft: Duration::from_millis(1500),
    itl: Duration::from_millis(40),
};

/// How long the made-up bursts go on.
const BURSTS_LENGTH: Duration = Duration::from_secs(20 * 60);

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("planner: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<(), Box<dyn Error>> {
    let (source, requests) = requests(cli)?;
    let count = requests.len();
    let clock = Clock::manual();
    let bus = MetricBus::builder().clock(clock.clone()).build();
    let mut simulation = Simulation::new(&bus, clock, requests, SIZE, TARGETS, cli.seed)?;
    let speed = cli.speed.unwrap_or(Speed::for_length(simulation.length()));
    let exporter = Exporter::builder(&bus)
        .shutdown_deadline(Duration::from_secs(1))
        .build();
    let server = serve(&exporter, cli.port);
    let address = server.as_ref().map(BackgroundServer::local_addr);
    report::header(&source, &simulation, count, speed, address);

    let started = Instant::now();
    let mut live = Live::new();
    while let Some(at) = simulation.next_time() {
        // In short naps, so that the bar goes on meanwhile.
        while let Some(ahead) = speed
            .real(at)
            .checked_sub(started.elapsed())
            .filter(|a| *a > NAP_MIN)
        {
            live.progress(&simulation);
            thread::sleep(ahead.min(NAP_MAX));
        }
        simulation.step(&mut |notice| live.notice(notice))?;
        live.progress(&simulation);
    }
    simulation.end();
    live.clear();
    report::tables(&simulation, started.elapsed());
    if let Some(server) = server {
        server.shutdown();
    }
    Ok(())
}

/// /metrics at this port, or at any that is free, or not at all: the fleet does not depend on who looks at it.
fn serve(exporter: &Exporter, port: u16) -> Option<BackgroundServer> {
    let at = |port: u16| exporter.serve_in_background(&format!("127.0.0.1:{port}"));
    let error = match at(port) {
        Ok(server) => return Some(server),
        Err(error) => error,
    };
    eprintln!("planner: {error}");
    match at(0) {
        Ok(server) => {
            eprintln!("planner: /metrics is at a free port instead\n");
            Some(server)
        }
        Err(error) => {
            eprintln!("planner: {error}\nplanner: going on without /metrics\n");
            None
        }
    }
}

/// Less than this is not worth a sleep, which takes about a tenth of a millisecond longer than asked for.
const NAP_MIN: Duration = Duration::from_millis(1);
const NAP_MAX: Duration = Duration::from_millis(50);

fn requests(cli: &Cli) -> Result<(String, Vec<Request>), Box<dyn Error>> {
    match &cli.trace {
        Some(path) => {
            let name = path.file_name().unwrap_or(path.as_os_str());
            Ok((name.to_string_lossy().into_owned(), trace::read(path)?))
        }
        None => {
            let (length, seed) = (BURSTS_LENGTH, cli.seed);
            Ok((
                format!("made-up bursts, seed {seed}"),
                Bursts { length, seed }.requests(),
            ))
        }
    }
}
