//! The planner's view of pods that live in processes of their own: born, killed, frozen, restarted, doubled; and of a
//! planner that is restarted itself, reads too slowly, or has a clock that differs.

use std::{
    error::Error,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use metricbus::{
    Clock, Condition, MetricBus, Rule, SourceId, Subscription, Threshold,
    nats::{
        Delivery, Fleet, FleetBuilder, GoneWhy, NatsOptions, SourceChange, SourceEvent, SourceState,
    },
};
use metricbus_integration_tests::{
    nats::{
        Config, NatsServer, Outcome, Pod, Proxy, Release, Told, Worker, WorkerOptions, source,
        until, values,
    },
    on_each_server,
};

async fn worker(url: &str, id: &SourceId) -> Worker {
    options(url, id).start().await
}

fn options(url: &str, id: &SourceId) -> WorkerOptions {
    WorkerOptions::new(env!("CARGO_BIN_EXE_nats-worker"), url, id.clone())
}

/// What becomes of sources, in the order in which it is told.
#[derive(Clone)]
struct Seen {
    events: Arc<Mutex<Vec<SourceEvent>>>,
    _subscription: Arc<Subscription>,
}

impl Seen {
    fn of(fleet: &Fleet) -> Result<Seen, Box<dyn Error>> {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let list = Arc::clone(&seen);
        let subscription = fleet.on_source().capacity(100_000).call(move |event| {
            list.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(event);
        })?;
        Ok(Seen {
            events: seen,
            _subscription: Arc::new(subscription),
        })
    }

    fn of_source(&self, id: &SourceId) -> Vec<SourceChange> {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let own = events.iter().filter(|event| event.source == *id);
        own.map(|event| event.change.clone()).collect()
    }

    async fn until(&self, id: &SourceId, what: &str, is: impl Fn(&SourceChange) -> bool) {
        until(what, || self.of_source(id).iter().any(&is).then_some(())).await;
    }
}

struct Planner {
    fleet: Fleet,
    seen: Seen,
    heard: Told,
}

impl Planner {
    async fn start(url: &str) -> Result<Planner, Box<dyn Error>> {
        Planner::with(url, |fleet| fleet).await
    }

    async fn with(
        url: &str,
        adapt: impl FnOnce(FleetBuilder) -> FleetBuilder,
    ) -> Result<Planner, Box<dyn Error>> {
        let fleet = adapt(Fleet::builder(NatsOptions::new(url)?))
            .start()
            .await?;
        Ok(Planner {
            seen: Seen::of(&fleet)?,
            heard: Told::of(fleet.on_alert())?,
            fleet,
        })
    }

    fn state(&self, id: &SourceId) -> Option<SourceState> {
        let sources = self.fleet.sources();
        sources
            .into_iter()
            .find(|s| s.source == *id)
            .map(|s| s.state)
    }

    /// A gauge or counter of one source.
    fn value(&self, id: &SourceId, name: &str) -> Option<f64> {
        let selector = format!(
            "{name}{{namespace={:?},component={:?},instance={:?}}}",
            id.namespace, id.component, id.instance
        );
        let series = self.fleet.bus().series(&*selector).ok()?;
        Some(series.first()?.value().as_f64())
    }

    async fn until_value(&self, id: &SourceId, name: &str, wanted: f64) {
        until(&format!("{name} of {id} to be {wanted}"), || {
            (self.value(id, name) == Some(wanted)).then_some(())
        })
        .await;
    }
}

async fn a_killed_worker_is_gone_within_heartbeats_and_comes_back_as_a_restart(
    release: Release,
) -> Outcome {
    let server = NatsServer::start(release);
    let id = source("pod-1");
    // Silence alone would not tell of its death in this test's time.
    let planner = Planner::with(&server.url(), |fleet| {
        fleet.gone_after(Duration::from_secs(3600))
    })
    .await?;
    let mut pod = worker(&server.url(), &id).await;
    pod.tell("requests 5").await;
    pod.tell("kv a 0.95").await;
    planner.until_value(&id, "requests_total", 5.0).await;
    until("the alert", || (planner.heard.count() == 1).then_some(())).await;

    pod.kill();
    planner
        .seen
        .until(&id, "the worker to be gone", |change| {
            matches!(
                change,
                SourceChange::Gone {
                    why: GoneWhy::NoResponders
                }
            )
        })
        .await;
    assert_eq!(planner.state(&id), Some(SourceState::Gone));
    assert_eq!(
        planner.value(&id, "requests_total"),
        None,
        "its series are gone with it"
    );
    // What it had firing nobody can vouch for any more.
    until("the alert to be withdrawn", || {
        planner
            .heard
            .all()
            .last()
            .is_some_and(|alert| !alert.is_firing())
            .then_some(())
    })
    .await;

    let mut pod = worker(&server.url(), &id).await;
    pod.tell("requests 2").await;
    planner.until_value(&id, "requests_total", 2.0).await;
    let changes = planner.seen.of_source(&id);
    assert!(
        matches!(changes.last(), Some(SourceChange::Restarted { .. })),
        "{changes:?}"
    );
    Ok(())
}

async fn a_worker_that_says_goodbye_is_gone_at_once(release: Release) -> Outcome {
    let server = NatsServer::start(release);
    let id = source("pod-1");
    let planner = Planner::with(&server.url(), |fleet| {
        fleet.gone_after(Duration::from_secs(3600))
    })
    .await?;
    let mut pod = options(&server.url(), &id)
        .heartbeat(Duration::from_secs(60))
        .start()
        .await;
    planner
        .seen
        .until(&id, "the worker to be born", |c| *c == SourceChange::Born)
        .await;
    pod.tell("shutdown").await;
    planner
        .seen
        .until(&id, "the worker to be gone", |change| {
            matches!(
                change,
                SourceChange::Gone {
                    why: GoneWhy::Died { .. }
                }
            )
        })
        .await;
    Ok(())
}

async fn a_frozen_worker_becomes_stale_with_its_values_and_is_live_when_it_thaws(
    release: Release,
) -> Outcome {
    let server = NatsServer::start(release);
    let id = source("pod-1");
    let planner = Planner::start(&server.url()).await?;
    let mut pod = worker(&server.url(), &id).await;
    pod.tell("requests 5").await;
    planner.until_value(&id, "requests_total", 5.0).await;
    pod.freeze();
    planner
        .seen
        .until(&id, "the worker to be stale", |c| *c == SourceChange::Stale)
        .await;
    assert_eq!(planner.value(&id, "requests_total"), Some(5.0));
    pod.thaw();
    planner
        .seen
        .until(&id, "the worker to be live", |c| *c == SourceChange::Live)
        .await;
    pod.tell("requests 1").await;
    planner.until_value(&id, "requests_total", 6.0).await;
    // It is the same life.
    let restarted = |c: &SourceChange| matches!(c, SourceChange::Restarted { .. });
    assert!(!planner.seen.of_source(&id).iter().any(restarted));
    Ok(())
}

async fn a_worker_silent_for_too_long_is_gone_and_comes_back_whole(release: Release) -> Outcome {
    let server = NatsServer::start(release);
    let id = source("pod-1");
    let planner = Planner::with(&server.url(), |fleet| {
        fleet.gone_after(Duration::from_millis(600))
    })
    .await?;
    let mut pod = worker(&server.url(), &id).await;
    pod.tell("requests 5").await;
    pod.tell("kv a 0.95").await;
    planner.until_value(&id, "requests_total", 5.0).await;
    until("the alert", || (planner.heard.count() == 1).then_some(())).await;
    pod.freeze();
    planner
        .seen
        .until(&id, "the worker to be gone", |change| {
            matches!(
                change,
                SourceChange::Gone {
                    why: GoneWhy::Silent
                }
            )
        })
        .await;
    assert_eq!(planner.value(&id, "requests_total"), None);
    pod.thaw();
    planner
        .seen
        .until(&id, "the worker to be back", |c| *c == SourceChange::Back)
        .await;
    assert_eq!(
        planner.value(&id, "requests_total"),
        Some(5.0),
        "told when it is complete"
    );
    assert_eq!(planner.value(&id, "kv_usage_ratio"), Some(0.95));
    Ok(())
}

async fn what_a_source_that_was_cut_off_had_firing_is_resolved_once(release: Release) -> Outcome {
    let server = NatsServer::start(release);
    let proxy = Proxy::before(server.address());
    let id = source("pod-1");
    let planner = Planner::with(&server.url(), |fleet| {
        fleet.gone_after(Duration::from_millis(600))
    })
    .await?;
    let pod = Pod::start(&proxy.url(), id.clone()).await?;
    planner
        .seen
        .until(&id, "it", |c| *c == SourceChange::Born)
        .await;
    let kv = pod.kv.with_label_values(&["a"])?;
    kv.set(0.95);
    until("the alert", || (planner.heard.count() == 1).then_some(())).await;
    proxy.refuse();
    proxy.cut();
    let is_gone = |c: &SourceChange| matches!(c, SourceChange::Gone { .. });
    planner.seen.until(&id, "it to be gone", is_gone).await;
    until("it to be withdrawn", || {
        (planner.heard.count() == 2).then_some(())
    })
    .await;
    // Nobody hears that it is over by itself, and it was told to be.
    kv.set(0.5);
    proxy.pass();
    planner
        .seen
        .until(&id, "it to be back", |c| *c == SourceChange::Back)
        .await;
    kv.set(0.96);
    until("it to fire again", || {
        let all = planner.heard.all();
        all.iter()
            .any(|alert| alert.value == Some(0.96))
            .then_some(())
    })
    .await;
    let all = planner.heard.all();
    let fires: Vec<_> = all.iter().map(metricbus::Alert::is_firing).collect();
    assert_eq!(fires, [true, false, true], "{all:#?}");
    Ok(())
}

async fn a_restarted_planner_is_complete_after_synced(release: Release) -> Outcome {
    let server = NatsServer::start(release);
    let ids: Vec<SourceId> = (0..3).map(|i| source(&format!("pod-{i}"))).collect();
    let mut pods = Vec::new();
    for id in &ids {
        // Frames and heartbeats would not make it complete: only what it asks for can.
        let mut pod = options(&server.url(), id)
            .heartbeat(Duration::from_secs(60))
            .start()
            .await;
        pod.tell("requests 7").await;
        pod.tell("kv a 0.95").await;
        pod.tell("kv b 0.5").await;
        pod.tell("latency 0.3").await;
        pod.tell("flush").await;
        pods.push(pod);
    }
    for _ in 0..2 {
        let planner = Planner::start(&server.url()).await?;
        planner.fleet.synced().await;
        for id in &ids {
            assert_eq!(planner.state(id), Some(SourceState::Live));
            assert_eq!(planner.value(id, "requests_total"), Some(7.0));
            assert_eq!(values(planner.fleet.bus(), Some(id)).len(), 5);
        }
        // What is firing is told to who comes late.
        until("what is firing", || {
            (planner.heard.count() == 3).then_some(())
        })
        .await;
        assert!(planner.heard.all().iter().all(metricbus::Alert::is_firing));
    }
    drop(pods);
    Ok(())
}

async fn a_counter_that_starts_anew_with_its_process_is_no_fall(release: Release) -> Outcome {
    let server = NatsServer::start(release);
    let id = source("pod-1");
    let planner = Planner::start(&server.url()).await?;
    planner.fleet.synced().await;
    let window = planner
        .fleet
        .bus()
        .window("requests_total", Duration::from_secs(60))?;
    let mut pod = worker(&server.url(), &id).await;
    pod.tell("requests 10").await;
    planner.until_value(&id, "requests_total", 10.0).await;
    pod.kill();
    let mut pod = worker(&server.url(), &id).await;
    pod.tell("requests 3").await;
    planner.until_value(&id, "requests_total", 3.0).await;
    let stats = window.stats();
    // The series of the old life is gone; what the new one has counted is all news.
    assert_eq!(stats.increase, Some(3.0), "{stats:?}");
    Ok(())
}

async fn series_of_the_same_name_are_kept_apart_and_judged_together(release: Release) -> Outcome {
    let server = NatsServer::start(release);
    let (one, two) = (source("pod-1"), source("pod-2"));
    let planner = Planner::start(&server.url()).await?;
    let both = Condition::when("kv_usage_ratio", Threshold::above(0.9).clear_below(0.8));
    planner
        .fleet
        .add_rule(Rule::new("BothFull", both).at_least(2))?;
    let rules = Told::of(planner.fleet.bus().on_alert())?;
    let mut first = worker(&server.url(), &one).await;
    let mut second = worker(&server.url(), &two).await;
    first.tell("requests 5").await;
    second.tell("requests 7").await;
    planner.until_value(&one, "requests_total", 5.0).await;
    planner.until_value(&two, "requests_total", 7.0).await;
    assert_eq!(planner.fleet.bus().series("requests_total")?.len(), 2);

    first.tell("kv a 0.95").await;
    planner.until_value(&one, "kv_usage_ratio", 0.95).await;
    assert_eq!(rules.count(), 0, "one is not two");
    second.tell("kv a 0.97").await;
    until("both to be full", || (rules.count() == 1).then_some(())).await;
    first.kill();
    // A source that is gone is no longer full.
    until("the rule to resolve", || (rules.count() == 2).then_some(())).await;
    Ok(())
}

async fn two_processes_with_one_identity_are_told_of(release: Release) -> Outcome {
    let server = NatsServer::start(release);
    let id = source("pod-1");
    let planner = Planner::start(&server.url()).await?;
    let mut first = worker(&server.url(), &id).await;
    first.tell("requests 5").await;
    planner.until_value(&id, "requests_total", 5.0).await;
    let mut second = worker(&server.url(), &id).await;
    second.tell("requests 7").await;
    planner.until_value(&id, "requests_total", 7.0).await;
    // The first goes on, and is not believed: its boot is the lower one.
    planner
        .seen
        .until(&id, "the conflict", |c| {
            matches!(c, SourceChange::Conflict { .. })
        })
        .await;
    first.tell("requests 1").await;
    second.tell("requests 1").await;
    planner.until_value(&id, "requests_total", 8.0).await;
    second.kill();
    first.tell("requests 1").await;
    planner.until_value(&id, "requests_total", 7.0).await;
    Ok(())
}

async fn a_planner_that_reads_too_slowly_is_mended_by_snapshots(release: Release) -> Outcome {
    // A server that cuts who is behind soon.
    let config = Config::core()
        .line("write_deadline: \"300ms\"")
        .max_payload(65_536)
        .line("max_pending: 65536");
    let server = NatsServer::with(release, config);
    let proxy = Proxy::before(server.address());
    let id = source("pod-1");
    let pod = Pod::with(NatsOptions::new(&server.url())?, id.clone(), |f| {
        f.delivery(Delivery::Core)
    })
    .await?;
    let planner = Planner::start(&proxy.url()).await?;
    planner.fleet.synced().await;

    proxy.stall();
    let mut round = 0_u32;
    until("the server to cut the planner", || {
        round += 1;
        // Enough bytes to fill every buffer on the way.
        for worker in 0..200 {
            let kv = pod
                .kv
                .with_label_values(&[&*format!("{worker:0>100}")])
                .ok()?;
            kv.set(f64::from(round % 50) / 100.0);
        }
        pod.requests.inc();
        let slow = &server.monitoring("/varz")["slow_consumers"];
        slow.as_u64().filter(|&slow| slow > 0)
    })
    .await;
    pod.flap("late", 50)?;
    pod.flush().await;
    proxy.pass();

    pod.until_same_on(planner.fleet.bus(), &id).await;
    until("the alerts", || {
        (planner.heard.count() >= pod.told.count()).then_some(())
    })
    .await;
    assert_eq!(planner.heard.by_group(), pod.told.by_group());
    Ok(())
}

async fn a_planner_without_a_connection_vouches_for_nobody(release: Release) -> Outcome {
    let server = NatsServer::start(release);
    let proxy = Proxy::before(server.address());
    let id = source("pod-1");
    let planner = Planner::with(&proxy.url(), |fleet| {
        fleet.gone_after(Duration::from_millis(600))
    })
    .await?;
    let mut pod = worker(&server.url(), &id).await;
    pod.tell("requests 5").await;
    planner.until_value(&id, "requests_total", 5.0).await;
    proxy.refuse();
    planner
        .seen
        .until(&id, "the worker to be stale", |c| *c == SourceChange::Stale)
        .await;
    planner
        .seen
        .until(&id, "the worker to be gone", |change| {
            matches!(
                change,
                SourceChange::Gone {
                    why: GoneWhy::Unreachable
                }
            )
        })
        .await;
    assert_eq!(planner.value(&id, "requests_total"), None);
    pod.tell("requests 1").await;
    proxy.pass();
    planner.until_value(&id, "requests_total", 6.0).await;
    planner
        .seen
        .until(&id, "the worker to be back", |c| *c == SourceChange::Back)
        .await;
    Ok(())
}

async fn a_fleet_of_one_component_hears_nothing_of_others(release: Release) -> Outcome {
    let server = NatsServer::start(release);
    let planner = Planner::with(&server.url(), |fleet| {
        fleet.namespace("prod").component("decode")
    })
    .await?;
    let ours = source("pod-1");
    let others = [
        SourceId::new("prod", "prefill", "pod-1"),
        SourceId::new("test", "decode", "pod-1"),
    ];
    let mut pods = Vec::new();
    for id in &others {
        let mut pod = worker(&server.url(), id).await;
        pod.tell("requests 5").await;
        pod.tell("flap a 1").await;
        pod.tell("flush").await;
        pods.push(pod);
    }
    let mut pod = worker(&server.url(), &ours).await;
    pod.tell("requests 7").await;
    planner.until_value(&ours, "requests_total", 7.0).await;
    let known: Vec<_> = planner
        .fleet
        .sources()
        .into_iter()
        .map(|s| s.source)
        .collect();
    assert_eq!(known, [ours]);
    assert_eq!(planner.heard.count(), 0);
    Ok(())
}

async fn more_sources_than_allowed_are_refused_and_counted(release: Release) -> Outcome {
    let server = NatsServer::start(release);
    let planner = Planner::with(&server.url(), |fleet| fleet.sources_max(2)).await?;
    let mut pods = Vec::new();
    for i in 0..3 {
        pods.push(worker(&server.url(), &source(&format!("pod-{i}"))).await);
    }
    until("two sources, and one refused", || {
        let ignored = planner.fleet.status().ignored;
        let refused: u64 = ignored
            .iter()
            .filter(|(what, _)| *what == "source_limit")
            .map(|(_, n)| n)
            .sum();
        (planner.fleet.sources().len() == 2 && refused > 0).then_some(())
    })
    .await;
    Ok(())
}

/// Lets a manual clock run with real time, in steps, until it is dropped.
struct Ticking(Option<std::thread::JoinHandle<()>>, Arc<AtomicBool>);

impl Ticking {
    fn of(clock: Clock) -> Ticking {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut last = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(5));
                let now = Instant::now();
                clock.advance(now - last);
                last = now;
            }
        });
        Ticking(Some(thread), stop)
    }
}

impl Drop for Ticking {
    fn drop(&mut self) {
        self.1.store(true, Ordering::Relaxed);
        if let Some(thread) = self.0.take() {
            let _ = thread.join();
        }
    }
}

async fn a_pod_whose_dates_are_wrong_is_as_alive_as_any_and_the_skew_is_shown(
    release: Release,
) -> Outcome {
    let server = NatsServer::start(release);
    let id = source("pod-1");
    let planner = Planner::start(&server.url()).await?;
    // To this clock it is 1970.
    let clock = Clock::manual();
    let bus = MetricBus::builder().clock(clock.clone()).build();
    let pod = Pod::on(bus, NatsOptions::new(&server.url())?, id.clone(), |f| f).await?;
    let ticking = Ticking::of(clock);
    pod.flap("a", 3)?;
    pod.requests.inc();
    planner.until_value(&id, "requests_total", 1.0).await;
    until("the alerts", || (planner.heard.count() == 6).then_some(())).await;
    let skew = until("the skew to be shown", || {
        let sources = planner.fleet.sources();
        sources.first()?.skew
    })
    .await;
    assert!(skew.abs() > 3600.0 * 24.0 * 365.0, "{skew}");
    assert_eq!(planner.state(&id), Some(SourceState::Live));
    drop(ticking);
    Ok(())
}

on_each_server!(
    a_pod_whose_dates_are_wrong_is_as_alive_as_any_and_the_skew_is_shown,
    a_killed_worker_is_gone_within_heartbeats_and_comes_back_as_a_restart,
    a_worker_that_says_goodbye_is_gone_at_once,
    a_frozen_worker_becomes_stale_with_its_values_and_is_live_when_it_thaws,
    a_worker_silent_for_too_long_is_gone_and_comes_back_whole,
    what_a_source_that_was_cut_off_had_firing_is_resolved_once,
    a_restarted_planner_is_complete_after_synced,
    a_counter_that_starts_anew_with_its_process_is_no_fall,
    series_of_the_same_name_are_kept_apart_and_judged_together,
    two_processes_with_one_identity_are_told_of,
    a_planner_that_reads_too_slowly_is_mended_by_snapshots,
    a_planner_without_a_connection_vouches_for_nobody,
    a_fleet_of_one_component_hears_nothing_of_others,
    more_sources_than_allowed_are_refused_and_counted,
);
