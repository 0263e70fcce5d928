//! A pod in a process of its own, which tests of the fleet kill, stop and restart.
//!
//! `nats-worker URL NAMESPACE COMPONENT INSTANCE HEARTBEAT_MS`. It prints `ready`, then does what it is told by the lines
//! of its standard input, and answers each with `ok` or `error` and why:
//!
//! - `kv WORKER VALUE` sets a gauge, `requests N` counts, `latency SECONDS` observes, `queue VALUE` sets a gauge;
//! - `flap WORKER TIMES` has the rule fire and resolve; `flush` waits until all alerts are confirmed;
//! - `shutdown` says goodbye and ends. So does the end of standard input, without the goodbye.

use std::{
    error::Error,
    io::{BufRead, Write},
    time::Duration,
};

use metricbus::{SourceId, nats::NatsOptions};
use metricbus_integration_tests::nats::Pod;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, namespace, component, instance, heartbeat] = &arguments[..] else {
        return Err("usage: nats-worker URL NAMESPACE COMPONENT INSTANCE HEARTBEAT_MS".into());
    };
    let heartbeat = Duration::from_millis(heartbeat.parse()?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let pod = runtime.block_on(Pod::with(
        NatsOptions::new(url)?,
        SourceId::new(namespace, component, instance),
        |forwarder| forwarder.heartbeat(heartbeat),
    ))?;
    say("ready")?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        match runtime.block_on(obey(&pod, &line)) {
            Ok(()) => say("ok")?,
            Err(why) => say(&format!("error {why}"))?,
        }
        if line == "shutdown" {
            break;
        }
    }
    Ok(())
}

async fn obey(pod: &Pod, line: &str) -> Result<(), Box<dyn Error>> {
    const PATIENCE: Duration = Duration::from_secs(30);
    match &line.split(' ').collect::<Vec<_>>()[..] {
        ["kv", worker, value] => pod.kv.with_label_values(&[worker])?.set(value.parse()?),
        ["requests", n] => pod.requests.inc_by(n.parse()?),
        ["latency", seconds] => pod.latency.observe(seconds.parse()?),
        ["queue", value] => pod.queue.set(value.parse()?),
        ["flap", worker, times] => pod.flap(worker, times.parse()?)?,
        ["flush"] => pod.flush().await,
        ["shutdown"] => pod.forwarder.shutdown(PATIENCE).await,
        _ => return Err(format!("not understood: {line:?}").into()),
    }
    Ok(())
}

/// A line, at once: standard output is a pipe.
fn say(line: &str) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}
