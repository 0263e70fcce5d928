//! A server that is killed, freezes, or can't be reached any more, while a pod goes on measuring: no mutation waits, memory
//! stays bounded, every transition arrives once, and in the end the fleet has the pod's values.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fs, thread,
    time::{Duration, Instant},
};

use metricbus::{
    Alert, AlertState, SourceId,
    nats::{ConnectionState, Delivery, Fleet, NatsOptions},
};
use metricbus_integration_tests::{
    nats::{
        Config, NatsServer, Outcome, Pod, Proxy, Release, Told,
        pod::{HEARTBEAT, Transition},
        source, until,
    },
    on_each_server,
};

const MUTATIONS: usize = 100_000;
const THREADS: usize = 4;

/// How long a failing test waits.
const PATIENCE: Duration = Duration::from_secs(25);

/// How long the server is away. Not something to wait for: the outage itself.
const OUTAGE: Duration = Duration::from_secs(5);

/// A transition in so many mutations: more of them than the 2 000 messages that async-nats holds.
const FLAP: usize = 25;

fn options(url: &str) -> Result<NatsOptions, Box<dyn Error>> {
    Ok(NatsOptions::new(url)?.ping_interval(Duration::from_millis(200)))
}

async fn fleet(url: &str) -> Result<Fleet, Box<dyn Error>> {
    Ok(Fleet::builder(options(url)?).start().await?)
}

/// Bytes of memory that this process occupies.
fn resident() -> Result<usize, Box<dyn Error>> {
    let text = fs::read_to_string("/proc/self/statm")?;
    let pages: usize = text.split(' ').nth(1).ok_or("no pages")?.parse()?;
    Ok(pages * 4096)
}

/// A share of all mutations, by several threads: gauges of their own that cross a threshold now and then, and a counter
/// and a histogram in common.
fn mutate(pod: &Pod, share: usize) -> Vec<thread::JoinHandle<()>> {
    (0..THREADS)
        .map(|worker| {
            let kv = pod.kv.with_label_values(&[&*worker.to_string()]);
            let kv = kv.unwrap_or_else(|why| panic!("{why}"));
            let (requests, latency) = (pod.requests.clone(), pod.latency.clone());
            thread::spawn(move || {
                for i in 0..share / THREADS / 4 {
                    requests.inc();
                    latency.observe(i as f64 / 1_000.0 % 1.0);
                    kv.set(0.1 + (i % 100) as f64 / 1_000.0);
                    let crosses = i % (FLAP / 4) == 0;
                    kv.set(if crosses {
                        0.9 + (i % 7 + 1) as f64 / 100.0
                    } else {
                        0.7
                    });
                }
            })
        })
        .collect()
}

async fn until_joined(threads: Vec<thread::JoinHandle<()>>) {
    until("all mutations to be made", || {
        threads
            .iter()
            .all(thread::JoinHandle::is_finished)
            .then_some(())
    })
    .await;
    for thread in threads {
        thread
            .join()
            .unwrap_or_else(|_| panic!("a mutating thread panicked"));
    }
}

enum After {
    StoreKept,
    StoreLost,
}

async fn outage(release: Release, config: Config, delivery: Delivery, after: After) -> Outcome {
    let outbox = 20_000;
    let mut server = NatsServer::with(release, config);
    let id = source("pod-1");
    let pod = Pod::with(options(&server.url())?, id.clone(), |forwarder| {
        forwarder.delivery(delivery).outbox(outbox)
    })
    .await?;
    let fleet = fleet(&server.url()).await?;
    let heard = Told::of(fleet.on_alert())?;
    knows(&fleet, &id).await;
    until_joined(mutate(&pod, MUTATIONS / 4)).await;

    let before = resident()?;
    server.kill();
    let begin = tokio::time::Instant::now();
    // The server stays down until each of them has returned: none of them waits for it.
    until_joined(mutate(&pod, MUTATIONS / 2)).await;
    let status = pod.forwarder.status().outbox;
    assert!(
        status.unconfirmed > 2_000 && status.held <= outbox,
        "{status:?}"
    );
    tokio::time::sleep_until(begin + OUTAGE).await;
    let grown = resident()?.saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes more");
    match after {
        After::StoreKept => server.restart(),
        After::StoreLost => server.restart_without_store(),
    }
    until_joined(mutate(&pod, MUTATIONS / 4)).await;
    pod.flush().await;

    let status = pod.forwarder.status();
    assert_eq!(
        (status.outbox.unconfirmed, status.outbox.dropped),
        (0, 0),
        "{status:?}"
    );
    compare(&pod, &id, &fleet, &heard).await;
    Ok(())
}

/// What a pod says before the fleet knows it is no news, and a pod whose answers take long is known later than the fleet is synced.
async fn knows(fleet: &Fleet, id: &SourceId) {
    fleet.synced().await;
    until("the fleet to know the pod", || {
        let sources = fleet.sources();
        sources
            .iter()
            .any(|s| s.source == *id && s.synced)
            .then_some(())
    })
    .await;
}

/// Everything has arrived, once, in order; and the values agree.
async fn compare(pod: &Pod, id: &SourceId, fleet: &Fleet, heard: &Told) {
    compare_from(1, pod, id, fleet, heard).await;
    let told = pod.told.by_group();
    for transitions in told.values() {
        let epochs: Vec<u64> = transitions.iter().map(|t| t.epoch).collect();
        let wanted: Vec<u64> = (1..=epochs.len() as u64).collect();
        assert_eq!(epochs, wanted, "no gap in epochs");
    }
    assert_eq!(heard.by_group(), without(&told, &heard.withdrawn()));
}

/// All transitions but these.
fn without(
    told: &BTreeMap<String, Vec<Transition>>,
    ends: &BTreeSet<(String, u64)>,
) -> BTreeMap<String, Vec<Transition>> {
    let mut told = told.clone();
    for (group, transitions) in &mut told {
        let told = |t: &Transition| {
            t.state == AlertState::Firing || !ends.contains(&(group.clone(), t.epoch))
        };
        transitions.retain(told);
    }
    told
}

/// The same for the alerts from one on.
async fn compare_from(first: u64, pod: &Pod, id: &SourceId, fleet: &Fleet, heard: &Told) {
    // Where the source was thought gone for a while, what it had firing is told as resolved in its stead.
    let count = |groups: &BTreeMap<_, Vec<_>>| groups.values().map(Vec::len).sum::<usize>() as u64;
    let told = pod.told.by_group();
    let begin = Instant::now();
    loop {
        let wanted = count(&without(&told, &heard.withdrawn())) + 1 - first;
        let sequences = sequences(heard);
        if sequences.len() as u64 >= wanted {
            assert!(
                sequences.len() as u64 == wanted
                    && sequences.is_sorted_by(|a, b| a < b)
                    && sequences[0] == first,
                "each once, in order: {:#?} {:#?}",
                odd(heard),
                fleet.sources()
            );
            break;
        }
        assert!(
            begin.elapsed() < PATIENCE,
            "{wanted} alerts, and the last that was heard is {:?}: {:#?} {:#?} {:#?}",
            sequences.last(),
            fleet.status(),
            fleet.sources(),
            pod.forwarder.status(),
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let lost: u64 = fleet
        .sources()
        .iter()
        .map(|source| source.alerts_lost)
        .sum();
    assert_eq!(lost, 0, "{:#?}", fleet.sources());
    pod.until_same_on(fleet.bus(), id).await;
}

/// The places of alerts among those of their source.
fn sequences(heard: &Told) -> Vec<u64> {
    let all = heard.said();
    let origins = all.iter().filter_map(|alert| alert.origin.as_ref());
    origins.map(|origin| origin.sequence).collect()
}

/// Alerts whose place is not one after the place of the alert before.
fn odd(heard: &Told) -> Vec<String> {
    let all = heard.said();
    let pairs = all.iter().zip(all.iter().skip(1));
    let place = |alert: &Alert| alert.origin.as_ref().map_or(0, |origin| origin.sequence);
    pairs
        .filter(|(before, after)| place(before) + 1 != place(after))
        .map(|(before, after)| format!("{before:?} then {after:?}"))
        .collect()
}

async fn a_core_server_killed_for_five_seconds_costs_no_alert_and_no_value(
    release: Release,
) -> Outcome {
    outage(release, Config::core(), Delivery::Core, After::StoreKept).await
}

fn alerts_stream() -> Delivery {
    Delivery::JetStream {
        stream: "ALERTS".to_owned(),
        create: true,
    }
}

async fn a_jetstream_server_killed_for_five_seconds_costs_no_alert_and_no_value(
    release: Release,
) -> Outcome {
    outage(
        release,
        Config::jetstream(),
        alerts_stream(),
        After::StoreKept,
    )
    .await
}

async fn a_jetstream_server_that_loses_its_store_costs_no_alert_and_no_value(
    release: Release,
) -> Outcome {
    outage(
        release,
        Config::jetstream(),
        alerts_stream(),
        After::StoreLost,
    )
    .await
}

async fn an_outbox_that_overflows_is_bounded_and_says_what_it_dropped(release: Release) -> Outcome {
    let mut server = NatsServer::start(release);
    let id = source("pod-1");
    let outbox = 100;
    let pod = Pod::with(options(&server.url())?, id.clone(), |forwarder| {
        forwarder.delivery(Delivery::Core).outbox(outbox)
    })
    .await?;
    let fleet = fleet(&server.url()).await?;
    let heard = Told::of(fleet.on_alert())?;
    knows(&fleet, &id).await;

    server.kill();
    until("the connection to be down", || {
        (pod.forwarder.status().connection.state != ConnectionState::Connected).then_some(())
    })
    .await;
    pod.flap("a", 1_000)?;
    let told = pod.told.clone();
    until("all alerts to be made", || {
        (told.count() == 2_000).then_some(())
    })
    .await;
    let status = until("the outbox to be full", || {
        let status = pod.forwarder.status();
        let all = status.outbox.unconfirmed as u64 + status.outbox.dropped == 2_000;
        assert!(status.outbox.held <= outbox, "{status:?}");
        all.then_some(status)
    })
    .await;
    assert_eq!(status.outbox.dropped, 1_900, "{status:?}");

    server.restart();
    pod.flush().await;
    // The newest arrive, the last state among them; and the gap says how many did not.
    until("what was kept", || (heard.count() >= outbox).then_some(())).await;
    let all = heard.all();
    let sequences: Vec<u64> = all
        .iter()
        .filter_map(|alert| alert.origin.as_ref())
        .map(|origin| origin.sequence)
        .collect();
    assert_eq!(sequences, (1_901..=2_000).collect::<Vec<u64>>());
    assert_eq!(
        all.last().map(|a| a.epoch),
        told.all().last().map(|a| a.epoch)
    );
    assert!(!all.last().is_some_and(metricbus::Alert::is_firing));
    Ok(())
}

async fn a_frozen_server_is_noticed_and_costs_no_alert_and_no_value(release: Release) -> Outcome {
    let mut server = NatsServer::start(release);
    let id = source("pod-1");
    let pod = Pod::with(options(&server.url())?, id.clone(), |f| {
        f.delivery(Delivery::Core)
    })
    .await?;
    let fleet = fleet(&server.url()).await?;
    let heard = Told::of(fleet.on_alert())?;
    knows(&fleet, &id).await;
    until_joined(mutate(&pod, MUTATIONS / 10)).await;

    server.freeze();
    until_joined(mutate(&pod, MUTATIONS / 10)).await;
    // Nobody closed anything: only pings that are not answered tell.
    let why = until("the frozen server to be noticed", || {
        let connection = pod.forwarder.status().connection;
        (connection.state == ConnectionState::Disconnected).then_some(connection.last_error)
    })
    .await;
    let why = why.ok_or("no word of what is wrong")?;
    assert!(
        why.contains(&server.address().to_string()) || why.contains("answer"),
        "{why}"
    );
    until_joined(mutate(&pod, MUTATIONS / 10)).await;
    server.thaw();

    pod.flush().await;
    compare(&pod, &id, &fleet, &heard).await;
    Ok(())
}

async fn a_half_open_connection_is_noticed_and_costs_no_alert_and_no_value(
    release: Release,
) -> Outcome {
    let server = NatsServer::start(release);
    let proxy = Proxy::before(server.address());
    let id = source("pod-1");
    let pod = Pod::with(options(&proxy.url())?, id.clone(), |f| {
        f.delivery(Delivery::Core)
    })
    .await?;
    let fleet = fleet(&server.url()).await?;
    let heard = Told::of(fleet.on_alert())?;
    knows(&fleet, &id).await;
    until_joined(mutate(&pod, MUTATIONS / 10)).await;

    // What is written now is gone, though writing succeeds.
    proxy.swallow();
    until_joined(mutate(&pod, MUTATIONS / 10)).await;
    until("the half-open connection to be noticed", || {
        let state = pod.forwarder.status().connection.state;
        (state == ConnectionState::Disconnected).then_some(())
    })
    .await;
    proxy.pass();

    pod.flush().await;
    compare(&pod, &id, &fleet, &heard).await;
    Ok(())
}

async fn a_connection_that_is_cut_again_and_again_costs_no_alert_and_no_value(
    release: Release,
) -> Outcome {
    let server = NatsServer::start(release);
    let (ours, theirs) = (
        Proxy::before(server.address()),
        Proxy::before(server.address()),
    );
    let id = source("pod-1");
    let pod = Pod::with(options(&ours.url())?, id.clone(), |f| {
        f.delivery(Delivery::Core)
    })
    .await?;
    let fleet = fleet(&theirs.url()).await?;
    let heard = Told::of(fleet.on_alert())?;
    knows(&fleet, &id).await;
    for round in 0..6 {
        let threads = mutate(&pod, MUTATIONS / 50);
        // Now the one, now the other, now both; amid the traffic.
        if round % 3 != 1 {
            ours.cut();
        }
        if round % 3 != 0 {
            theirs.cut();
        }
        until_joined(threads).await;
        pod.flush().await;
    }
    compare(&pod, &id, &fleet, &heard).await;
    Ok(())
}

async fn a_slow_network_delays_alerts_and_loses_none(release: Release) -> Outcome {
    let server = NatsServer::start(release);
    let proxy = Proxy::before(server.address());
    proxy.delay(Duration::from_millis(50));
    let id = source("pod-1");
    let pod = Pod::with(options(&proxy.url())?, id.clone(), |f| {
        f.delivery(Delivery::Core)
    })
    .await?;
    let fleet = fleet(&server.url()).await?;
    let heard = Told::of(fleet.on_alert())?;
    knows(&fleet, &id).await;
    until_joined(mutate(&pod, MUTATIONS / 10)).await;
    pod.flush().await;
    compare(&pod, &id, &fleet, &heard).await;
    Ok(())
}

async fn a_bus_whose_server_was_never_there_works_and_says_so(release: Release) -> Outcome {
    let mut server = NatsServer::start(release);
    server.kill();
    let id = source("pod-1");
    let pod = Pod::with(options(&server.url())?, id.clone(), |f| {
        f.delivery(Delivery::Core)
    })
    .await?;
    let fleet = fleet(&server.url()).await?;
    let heard = Told::of(fleet.on_alert())?;
    until_joined(mutate(&pod, MUTATIONS / 10)).await;
    let status = until("a word of what is wrong", || {
        let status = pod.forwarder.status();
        status.connection.last_error.is_some().then_some(status)
    })
    .await;
    assert_eq!(
        status.connection.state,
        ConnectionState::Connecting,
        "{status:?}"
    );
    let why = status.connection.last_error.unwrap_or_default();
    assert!(why.contains(&server.address().to_string()), "{why}");
    let error = pod.forwarder.flush(HEARTBEAT).await;
    let error = error
        .err()
        .ok_or("nothing was confirmed, and flush says it was")?;
    assert!(error.to_string().contains("not confirmed"), "{error}");

    server.restart();
    pod.flush().await;
    fleet.synced().await;
    // What was said before the fleet knew the pod is no news to it, but for what still holds; what comes then is.
    let before = pod.told.count() as u64;
    until_joined(mutate(&pod, MUTATIONS / 10)).await;
    pod.flush().await;
    until("the first news", || sequences(&heard).first().copied()).await;
    let first = sequences(&heard)[0];
    assert!(first <= before + 1, "{first} {before}");
    compare_from(first, &pod, &id, &fleet, &heard).await;
    Ok(())
}

on_each_server!(
    a_core_server_killed_for_five_seconds_costs_no_alert_and_no_value,
    a_jetstream_server_killed_for_five_seconds_costs_no_alert_and_no_value,
    a_jetstream_server_that_loses_its_store_costs_no_alert_and_no_value,
    an_outbox_that_overflows_is_bounded_and_says_what_it_dropped,
    a_frozen_server_is_noticed_and_costs_no_alert_and_no_value,
    a_half_open_connection_is_noticed_and_costs_no_alert_and_no_value,
    a_connection_that_is_cut_again_and_again_costs_no_alert_and_no_value,
    a_slow_network_delays_alerts_and_loses_none,
    a_bus_whose_server_was_never_there_works_and_says_so,
);
