//! Three programs that share metrics over NATS, and what happens when parts of that die.
//!
//! ```text
//! cargo run --release --example cross_pod --features nats              the story, in 20 seconds
//! cargo run --release --example cross_pod --features nats -- --help    each program by itself
//! ```
//!
//! A *worker* simulates a decode worker of an LLM fleet. Its metrics are on its own bus, and its own rule watches them. A
//! forwarder publishes alerts and series. A *planner* has a `Fleet`: all series of all workers, their alerts, rules of its
//! own over all of them, windows merged over all of them, and rules that it sends to the workers. A *consumer* is a program
//! without metricbus: an async-nats subscription and JSON. (`alerts.py` is the same in Python.)
//!
//! Without a sub-command this program is the *conductor*: it starts a nats-server and the three as processes of their own,
//! tells them what to do as a person at their terminals would, kills some of them, and in the end says what was seen.
//!
//! | file | |
//! |---|---|
//! | `cross_pod/worker.rs`, `planner.rs`, `consumer.rs` | the three programs: read these |
//! | `cross_pod/conductor.rs`, `child.rs`, `server.rs` | the story, the processes in it, the nats-server |
//! | `cross_pod/voice.rs` | how the three speak to a person, and to the conductor |

#[path = "cross_pod/child.rs"]
mod child;
#[path = "cross_pod/conductor.rs"]
mod conductor;
#[path = "cross_pod/consumer.rs"]
mod consumer;
#[path = "cross_pod/planner.rs"]
mod planner;
#[path = "cross_pod/server.rs"]
mod server;
#[path = "cross_pod/voice.rs"]
mod voice;
#[path = "cross_pod/worker.rs"]
mod worker;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use metricbus::nats::{NatsError, NatsOptions};

use crate::{server::Failure, voice::Voice};

/// The namespace of all workers of the example, and what they are.
const NAMESPACE: &str = "demo";
const COMPONENT: &str = "decode";

/// The JetStream stream that keeps alerts, so that who was away gets them later.
const STREAM: &str = "CROSS_POD_ALERTS";

/// The KV bucket in which the planner leaves rules for the workers.
const RULES: &str = "metricbus-rules";

// Lines are broken by hand: clap breaks them only with a feature that nothing else here needs.

/// Three programs that share metrics over NATS: a worker, a planner and a plain consumer.
///
/// Without a command it tells a story of 20 seconds: it starts a nats-server and the three
/// programs, has a burst of load at one worker, kills another worker, then kills the server and
/// starts it again; and says what reached whom, and when. Its exit code is 1 if anything that
/// should have been seen was not.
///
/// With a command it is one of the three, for a terminal each.
#[derive(Debug, Parser)]
#[command(
    name = "cross_pod",
    verbatim_doc_comment,
    after_help = "\
Examples:
  cross_pod                                    the story, on a nats-server of its own
  cross_pod --url nats://127.0.0.1:4222        the story, on a server that is running;
                                               it is not killed, so that part is left out

By hand, in four terminals:
  nats-server -js                              JetStream keeps alerts and rules
  cross_pod worker --instance decode-0         then type burst, calm or spikes 10
  cross_pod planner                            then type pods, p99 or rule 40
  cross_pod consumer                           or: python examples/alerts.py

With cargo, all of it goes after --:
  cargo run --release --example cross_pod --features nats -- worker --help"
)]
struct Args {
    #[command(subcommand)]
    program: Option<Program>,

    /// A running nats-server with JetStream. Without it the story starts one of its own, and the
    /// programs go by NATS_URL, NATS_CREDS and so on, or to nats://127.0.0.1:4222
    #[arg(long, global = true, value_name = "URL", verbatim_doc_comment)]
    url: Option<String>,

    /// The nats-server to start for the story. Without it: the one in .tools, where
    /// scripts/setup.sh puts it, or else the first on the PATH
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with = "url",
        verbatim_doc_comment
    )]
    server: Option<PathBuf>,

    /// Speaks to the conductor, and ends with it.
    #[arg(long, global = true, hide = true)]
    conducted: bool,
}

#[derive(Debug, Subcommand)]
enum Program {
    /// A decode worker under a load that you control, with a rule of its own
    ///
    /// It publishes kv_usage_ratio, queue_depth, ttft_seconds and requests_total every 100 ms
    /// where they change, and the alerts of its rule KvCacheFull at once: firing above 0.9,
    /// resolved below 0.8. Rules that a planner sends are evaluated here.
    ///
    /// It reads commands, a line each:
    ///   burst       more load than it can take: the cache fills within 300 ms, the queue grows
    ///   calm        little load again
    ///   spikes N    fills the cache N times for 5 ms each, which no scrape would see
    ///   status      what its forwarder holds, has sent, and why it can't
    ///   quit        says goodbye and ends (Ctrl-C does, too; kill -9 does not)
    #[command(verbatim_doc_comment)]
    Worker(worker::Args),

    /// A planner that sees all workers, with rules and windows over all of them
    ///
    /// It prints workers that come, go and come back, their alerts with the time from crossing to
    /// callback, and the alerts of its own rule over the fleet: any worker full for 500 ms.
    ///
    /// It reads commands, a line each:
    ///   pods        every worker it knows of
    ///   p99         time to first token over the last 10 s, merged over all workers without loss
    ///   rule N      sends a rule to all workers: QueueLong, queue_depth above N
    ///   unrule      takes that rule back
    ///   quit        ends
    #[command(verbatim_doc_comment)]
    Planner,

    /// A program that reads alerts, and knows nothing of metricbus
    ///
    /// It is async-nats and JSON: the protocol is open, and written down in docs/nats.md.
    /// Alerts are CloudEvents in a JetStream stream, so it gets those of the time it was away.
    #[command(verbatim_doc_comment)]
    Consumer,
}

impl Args {
    /// For the programs that know metricbus.
    fn options(&self) -> Result<NatsOptions, NatsError> {
        match &self.url {
            Some(url) => NatsOptions::new(url),
            None => NatsOptions::from_env(),
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let voice = Voice::new(args.conducted);
    let outcome = match &args.program {
        None => return conductor::run(args.url.as_deref(), args.server.as_deref()).await,
        Some(Program::Worker(worker)) => {
            async { worker::run(worker, args.options()?, voice).await }.await
        }
        Some(Program::Planner) => async { planner::run(args.options()?, voice).await }.await,
        Some(Program::Consumer) => consumer::run(args.url.as_deref(), voice).await,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cross_pod: {}", Told(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error with its causes.
struct Told<'a>(&'a Failure);

impl std::fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn the_url_may_stand_behind_the_command() {
        let args = Args::parse_from(["cross_pod", "planner", "--url", "nats://a"]);
        assert_eq!(args.url.as_deref(), Some("nats://a"));
        assert!(matches!(args.program, Some(Program::Planner)));
    }
}
