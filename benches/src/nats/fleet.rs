//! `nats_fleet_1000`: 1 000 pods of 50 series each, one nats-server, one `Fleet`.
//!
//! Processes of their own on this machine, so that each one's processor time can be told: the server, the fleet, and 20 with
//! 50 pods each; this one only waits. A pod is a bus with a real `NatsForwarder` and a connection of its own; 20 processes,
//! since all buses of one process send by the same clock, and pods of real life don't. Once a second each pod changes
//! all of its series, and sends them as one frame, and a heartbeat. Every tenth time its rule fires or is resolved.
//!
//! There is nothing to compare with. Figures, each with its unit last:
//!
//! - `synced_ms`: from the fleet's start, when all pods have long been there, until it has all series of all of them;
//! - `fleet_cpu_cores`, `server_cpu_cores`, `pods_cpu_cores`: processor time per time, while all goes on;
//! - `rss_per_series_bytes`: by how much the fleet's process grew, over all series;
//! - `messages_per_second`, `bytes_per_second`: what the pods send, headers included, as a bare subscription counts it
//!   when the fleet has ended;
//! - `alert_p50_ms`, `alert_p99_ms`: from the crossing in a pod to the fleet's callback, by the machine's clock;
//! - `killed_pod_ms`: from the SIGKILL of a pod in a process of its own until the fleet says that it has gone.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    process::{Child, ChildStdout, Command, Stdio},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::{Duration, Instant, SystemTime},
};

use futures::StreamExt;
use metricbus::{
    Alert, AlertCause, Condition, Counter, Desc, Gauge, MetricBus, Rule, SourceId, Subscription,
    nats::{
        ConnectionState, Delivery, Fleet, Forwarding, NatsForwarder, NatsOptions, SourceChange,
        SourceEvent, SourceState,
    },
};

use super::server;
use crate::{
    Failure,
    crossing::{OVER, UNDER, busy},
    harness::Effort,
    report::{Figures, Skipped},
    stats::quantile,
};

const SERIES: usize = 50;
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn thousand(effort: Effort) -> Result<Figures, Failure> {
    if !cfg!(target_os = "linux") {
        return Err(
            Skipped("it reads processor times from /proc, which only Linux has".into()).into(),
        );
    }
    let server = server()?;
    let url = server.url();
    let server_id = server.id().ok_or("the server has ended")?.to_string();
    // Processes, and pods in each.
    let (processes, each) = effort.pick((4, 10), (20, 50));
    let (seconds, kills) = effort.pick(("3", "1"), ("15", "4"));

    let mut pods = Vec::new();
    for i in 0..processes {
        let name = format!("pod-{i}");
        pods.push(Part::start(&["pods", &url, &name, &each.to_string()])?);
        // They would else begin, and go on, all at once.
        thread::sleep(Duration::from_secs(1) / processes);
    }
    for pods in &mut pods {
        pods.line()?;
    }
    let pods_ids: Vec<_> = pods
        .iter()
        .map(|pods| pods.child.id().to_string())
        .collect();
    let count = (processes * each).to_string();
    let ids = pods_ids.join(",");
    let mut fleet = Part::start(&["fleet", &url, &count, seconds, kills, &ids, &server_id])?;
    let answer: BTreeMap<String, f64> = serde_json::from_str(&fleet.line()?)?;
    let mut figures = Figures::alone("nats_fleet_1000");
    drop(fleet);
    for (name, value) in answer {
        figures.more(name, value);
    }
    let (messages, bytes) = traffic(&url, Duration::from_secs(seconds.parse()?))?;
    figures.more("messages_per_second", messages);
    figures.more("bytes_per_second", bytes);
    Ok(figures)
}

/// Messages and bytes per second that the pods send.
fn traffic(url: &str, time: Duration) -> Result<(f64, f64), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let client = async_nats::connect(url).await?;
        let mut all = client.subscribe("metricbus.v1.>").await?;
        let (mut messages, mut bytes) = (0, 0);
        let count = async {
            while let Some(message) = all.next().await {
                messages += 1;
                bytes += message.length;
            }
        };
        // It has no end of its own.
        let _ = tokio::time::timeout(time, count).await;
        let seconds = time.as_secs_f64();
        Ok((f64::from(messages) / seconds, bytes as f64 / seconds))
    })
}

/// What a child does, by its arguments.
pub(crate) fn part(arguments: &[String]) -> Result<(), Failure> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    match arguments[..] {
        ["pods", url, name, pods] => runtime.block_on(be_pods(url, name, pods.parse()?)),
        ["fleet", url, pods, seconds, kills, pods_ids, server_id] => {
            let load = Load {
                pods: pods.parse()?,
                seconds: seconds.parse()?,
                kills: kills.parse()?,
                pods_ids: pods_ids.split(',').collect(),
                server_id,
            };
            let figures = runtime.block_on(be_fleet(url, &load))?;
            println!("{}", serde_json::to_string(&figures)?);
            Ok(())
        }
        _ => Err(format!("no part of the bench: {arguments:?}").into()),
    }
}

/// This program again, as a part; killed when dropped.
struct Part {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Part {
    fn start(arguments: &[&str]) -> Result<Part, Failure> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("--nats-part")
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take();
        let (sender, lines) = mpsc::channel();
        if let Some(stdout) = stdout {
            thread::spawn(move || read(stdout, &sender));
        }
        Ok(Part { child, lines })
    }

    /// Its next line.
    fn line(&mut self) -> Result<String, Failure> {
        self.lines
            .recv_timeout(2 * PATIENCE)
            .map_err(|_| "a part of the bench has ended, or says nothing".into())
    }
}

fn read(stdout: ChildStdout, sender: &mpsc::Sender<String>) {
    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
        if sender.send(line).is_err() {
            return;
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // Both fail only for a child that has ended and been reaped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One pod.
struct Pod {
    kv: Gauge,
    gauges: Vec<Gauge>,
    counters: Vec<Counter>,
    forwarder: NatsForwarder,
    full: bool,
    _bus: MetricBus,
    _alerts: Subscription,
    _frames: Forwarding,
}

impl Pod {
    async fn start(url: &str, instance: String) -> Result<Pod, Failure> {
        let bus = MetricBus::new();
        let kv = bus.gauge("kv_usage_ratio", "Share of KV blocks in use.")?;
        kv.set(UNDER);
        let gauges = bus.family::<Gauge>(Desc::new("depth", "Waiting.").labels(["queue"]))?;
        let counters =
            bus.family::<Counter>(Desc::new("requests_total", "Served.").labels(["route"]))?;
        let label = |i: usize| format!("number-{i}");
        let half = SERIES / 2;
        let gauges = (1..half)
            .map(|i| gauges.with_label_values(&[&label(i)]))
            .collect::<Result<Vec<_>, _>>()?;
        // A gauge that was never set is sent to nobody, and the fleet is to find all series before the first turn.
        gauges.iter().for_each(|gauge| gauge.set(0.0));
        let counters = (half..SERIES)
            .map(|i| counters.with_label_values(&[&label(i)]))
            .collect::<Result<_, _>>()?;
        bus.add_rule(Rule::new("Full", Condition::when(&kv, busy())))?;
        let forwarder = NatsForwarder::builder(&bus, NatsOptions::new(url)?)
            .source(SourceId::new("bench", "fleet", instance))
            .delivery(Delivery::Core)
            .start()
            .await?;
        let alerts = forwarder.forward_alerts()?;
        let frames = forwarder
            .forward(r#"{__name__=~"kv_usage_ratio|depth|requests_total"}"#)
            .every(Duration::from_secs(1))
            .start()?;
        Ok(Pod {
            kv,
            gauges,
            counters,
            forwarder,
            full: false,
            _bus: bus,
            _alerts: alerts,
            _frames: frames,
        })
    }

    /// What happens in a second, at once. No value is the same as before.
    fn turn(&mut self, i: u64, crosses: bool) {
        for gauge in &self.gauges {
            gauge.set((i % 97) as f64);
        }
        for counter in &self.counters {
            counter.inc_by(i % 7 + 1);
        }
        self.full ^= crosses;
        let noise = (i % 11) as f64 / 1e3;
        self.kv.set(if self.full { OVER } else { UNDER } + noise);
    }
}

async fn be_pods(url: &str, name: &str, count: usize) -> Result<(), Failure> {
    let mut pods = Vec::with_capacity(count);
    for i in 0..count {
        pods.push(Pod::start(url, format!("{name}-{i}")).await?);
    }
    let connected = || {
        pods.iter()
            .all(|pod| pod.forwarder.status().connection.state == ConnectionState::Connected)
    };
    wait_for("all pods to be connected", connected).await?;
    println!("ready");
    // A pod per tick, so that each has its turn once a second, and a tenth of them crosses.
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / count as u32);
    for round in 1.. {
        for (i, pod) in pods.iter_mut().enumerate() {
            ticks.tick().await;
            pod.turn(round, (round + i as u64).is_multiple_of(10));
        }
    }
    Ok(())
}

/// What the fleet is to measure.
struct Load<'a> {
    pods: usize,
    seconds: u64,
    kills: usize,
    pods_ids: Vec<&'a str>,
    server_id: &'a str,
}

async fn be_fleet(url: &str, load: &Load<'_>) -> Result<BTreeMap<&'static str, f64>, Failure> {
    let mut figures = BTreeMap::new();
    let before = rss_bytes("self")?;
    let begin = Instant::now();
    let fleet = Fleet::builder(NatsOptions::new(url)?).start().await?;
    tokio::time::timeout(PATIENCE, fleet.synced()).await?;
    figures.insert("synced_ms", ms(begin.elapsed()));
    let sources = fleet.sources();
    let series: usize = sources.iter().map(|source| source.series).sum();
    if (sources.len(), series) != (load.pods, load.pods * SERIES) {
        return Err(format!("synced with {} pods and {series} series", sources.len()).into());
    }
    figures.insert("all_series", series as f64);

    let delays: Arc<Mutex<Vec<f64>>> = Arc::default();
    let list = delays.clone();
    let heard = fleet.on_alert().call(move |alert: Alert| {
        let now = SystemTime::now();
        if alert.is_firing() && alert.cause == AlertCause::Condition {
            let delay = now.duration_since(alert.date).unwrap_or_default();
            list.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(ms(delay));
        }
    })?;

    let cpus = || {
        let mut pods = 0.0;
        for id in &load.pods_ids {
            pods += cpu(id)?;
        }
        Ok::<_, Failure>([
            ("fleet_cpu_cores", cpu("self")?),
            ("server_cpu_cores", cpu(load.server_id)?),
            ("pods_cpu_cores", pods),
        ])
    };
    let cpu_before = cpus()?;
    let begin = Instant::now();
    tokio::time::sleep(Duration::from_secs(load.seconds)).await;
    let cpu_after = cpus()?;
    let seconds = begin.elapsed().as_secs_f64();
    for ((name, before), (_, after)) in cpu_before.into_iter().zip(cpu_after) {
        figures.insert(name, (after - before) / seconds);
    }
    figures.insert(
        "rss_per_series_bytes",
        (rss_bytes("self")? - before) / series as f64,
    );
    drop(heard);
    let delays = delays
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    figures.insert("alerts", delays.len() as f64);
    for (name, q) in [("alert_p50_ms", 0.5), ("alert_p99_ms", 0.99)] {
        figures.insert(name, quantile(&delays, q).ok_or("no alert came")?);
    }

    let mut killed = Vec::new();
    for i in 0..load.kills {
        killed.push(kill_one(url, &fleet, i).await?);
    }
    figures.insert(
        "killed_pod_ms",
        quantile(&killed, 0.5).ok_or("no pod was killed")?,
    );
    Ok(figures)
}

/// How long the fleet takes to tell that a pod was killed.
async fn kill_one(url: &str, fleet: &Fleet, i: usize) -> Result<f64, Failure> {
    let name = format!("victim-{i}");
    let source = SourceId::new("bench", "fleet", format!("{name}-0"));
    let (gone, mut goes) = tokio::sync::mpsc::unbounded_channel();
    let wanted = source.clone();
    let _listening = fleet.on_source().call(move |event: SourceEvent| {
        if event.source == wanted && matches!(event.change, SourceChange::Gone { .. }) {
            let _ = gone.send(Instant::now());
        }
    })?;
    let mut victim = Part::start(&["pods", url, &name, "1"])?;
    let lives = || {
        fleet
            .sources()
            .iter()
            .any(|known| known.source == source && known.state == SourceState::Live)
    };
    wait_for("the victim to be known", lives).await?;
    // Somewhere between two of its heartbeats.
    tokio::time::sleep(Duration::from_millis(1_000 + 370 * i as u64)).await;
    let begin = Instant::now();
    victim.child.kill()?;
    let at = tokio::time::timeout(PATIENCE, goes.recv()).await?;
    let at = at.ok_or("the fleet has ended")?;
    Ok(ms(at - begin))
}

async fn wait_for(what: &str, is: impl Fn() -> bool) -> Result<(), Failure> {
    let begin = Instant::now();
    while !is() {
        if begin.elapsed() > PATIENCE {
            return Err(format!("waited in vain for {what}").into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Processor seconds of a process, so far.
fn cpu(process: &str) -> Result<f64, Failure> {
    // USER_HZ, which is 100 on every Linux that there is.
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = proc_file(process, "stat")?;
    // "12 (name) S 1 …": a name may contain anything, but what follows the last parenthesis is fixed.
    let fields: Vec<_> = stat
        .rsplit(") ")
        .next()
        .unwrap_or_default()
        .split(' ')
        .collect();
    let ticks = |i: usize| fields.get(i).and_then(|field| field.parse::<f64>().ok());
    let (user, system) = ticks(11)
        .zip(ticks(12))
        .ok_or("/proc/…/stat is not as expected")?;
    Ok((user + system) / TICKS_PER_SECOND)
}

fn rss_bytes(process: &str) -> Result<f64, Failure> {
    let status = proc_file(process, "status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
    Ok(kib.ok_or("/proc/…/status is not as expected")? * 1024.0)
}

fn proc_file(process: &str, name: &str) -> Result<String, Failure> {
    let path = format!("/proc/{process}/{name}");
    fs::read_to_string(&path).map_err(|error| format!("{path}: {error}").into())
}
