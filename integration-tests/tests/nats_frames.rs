//! Frames on a real nats-server: what they hold, how often they come, how large they are, and what becomes of them.

use std::{collections::BTreeMap, error::Error, time::Duration};

use metricbus::{
    Buckets, Counter, Delta, Desc, Family, Gauge, Histogram, MetricBus, SampleValue,
    nats::{Fleet, NatsForwarder, NatsOptions},
};
use metricbus_integration_tests::{
    nats::{
        Config, NatsServer, Outcome, Pod, Raw, Release,
        pod::FRAMES,
        raw::{header, number},
        source, until,
    },
    on_each_server,
};

const PATIENCE: Duration = Duration::from_secs(30);

const ALL: &str = "metricbus.v1.*.*.*.m.>";

async fn fleet(server: &NatsServer) -> Result<Fleet, Box<dyn Error>> {
    let fleet = Fleet::builder(NatsOptions::new(&server.url())?)
        .start()
        .await?;
    fleet.synced().await;
    Ok(fleet)
}

async fn forwarder(server: &NatsServer, bus: &MetricBus) -> Result<NatsForwarder, Box<dyn Error>> {
    let forwarder = NatsForwarder::builder(bus, NatsOptions::new(&server.url())?)
        .source(source("pod-1"))
        .heartbeat(Duration::from_millis(100))
        .start();
    Ok(forwarder.await?)
}

/// Everything a fleet's bus shows of a metric, by the one label of its own.
fn by_label(bus: &MetricBus, name: &str, label: &str) -> BTreeMap<String, f64> {
    let Ok(series) = bus.series(name) else {
        return BTreeMap::new();
    };
    series
        .iter()
        .map(|series| {
            (
                series.label(label).unwrap_or_default(),
                series.value().as_f64(),
            )
        })
        .collect()
}

/// All that a bus declares, without what a fleet adds, as text: NaN is NaN there.
fn all(bus: &MetricBus) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for family in bus.snapshot().families {
        for mut series in family.series {
            series
                .labels
                .retain(|(name, _)| !["namespace", "component", "instance"].contains(&&**name));
            let (name, kind, unit) = (&family.name, family.kind, &family.unit);
            all.insert(
                format!("{name}{:?}", series.labels),
                format!("{kind:?} {unit:?} {:?} {:?}", family.help, series.value),
            );
        }
    }
    // Of the fleet's own, and what nobody has set.
    all.retain(|name, _| !name.starts_with("fleet_") && !name.starts_with("unset_"));
    all
}

async fn every_kind_of_metric_arrives_as_it_is(release: Release) -> Outcome {
    let server = NatsServer::start(release);
    let fleet = fleet(&server).await?;
    let bus = MetricBus::new();
    let whole = bus.counter("whole_total", "A counter of whole numbers.")?;
    let real =
        bus.declare::<Counter<f64>>(Desc::new("real_seconds_total", "Of others.").unit("seconds"))?;
    let gauge = bus.gauge("gauge_ratio", "A gauge.")?;
    let unset = bus.gauge("unset_ratio", "A gauge that nobody sets.")?;
    let histogram = bus.histogram(
        "times_seconds",
        "A histogram.",
        Buckets::new([0.1, 1.0, 10.0])?,
    )?;
    let family: Family<Gauge> = bus.family(Desc::new("many_ratio", "Labels.").labels(["of"]))?;
    let forwarder = forwarder(&server, &bus).await?;
    let _frames = forwarder
        .forward(r#"{__name__=~".+"}"#)
        .every(FRAMES)
        .start()?;

    whole.inc_by(u64::from(u32::MAX) * 1_000 + 7);
    real.inc_by(0.1);
    histogram.observe(0.05);
    histogram.observe(5.0);
    histogram.observe(1e9);
    for (label, value) in [
        ("nan", f64::NAN),
        ("+inf", f64::INFINITY),
        ("tiny", 5e-324),
        ("", -1.5),
    ] {
        family.with_label_values(&[label])?.set(value);
    }
    for value in [1.0, 2.0, 1e300, 0.0] {
        gauge.set(value);
    }
    let here = all(&bus);
    assert_eq!(here.len(), 8, "{here:?}");
    let mut there = BTreeMap::new();
    let same = tokio::time::timeout(PATIENCE, async {
        while there != here {
            tokio::time::sleep(Duration::from_millis(5)).await;
            there = all(fleet.bus());
        }
    });
    assert!(same.await.is_ok(), "{here:#?}\n{there:#?}");
    assert!(
        fleet.bus().series("unset_ratio")?.is_empty(),
        "nothing that was not measured"
    );
    unset.set(0.5);
    until("the gauge that is set at last", || {
        (fleet.bus().series("unset_ratio").ok()?.len() == 1).then_some(())
    })
    .await;
    Ok(())
}

async fn frames_are_numbered_without_gaps_over_all_streams(release: Release) -> Outcome {
    let server = NatsServer::start(release);
    let raw = Raw::of(&server.client().await, ALL).await;
    let bus = MetricBus::new();
    let (one, two) = (
        bus.gauge("one_ratio", "One.")?,
        bus.gauge("two_ratio", "Two.")?,
    );
    let forwarder = forwarder(&server, &bus).await?;
    let every = Duration::from_millis(10);
    let _one = forwarder
        .forward("one_ratio")
        .every(every)
        .named("one")
        .start()?;
    let _two = forwarder
        .forward("two_ratio")
        .every(every)
        .named("two.of*them")
        .start()?;
    let mut value = 0.0;
    until("frames of both", || {
        value += 1.0;
        one.set(value);
        two.set(value);
        (raw.all().len() >= 20).then_some(())
    })
    .await;
    let all = raw.all();
    let sequences: Vec<u64> = all
        .iter()
        .map(|m| number(m, "Metricbus-Sequence"))
        .collect();
    assert_eq!(sequences, (1..=all.len() as u64).collect::<Vec<_>>());
    for stream in ["one", "two=2Eof=2Athem"] {
        let subject = format!("metricbus.v1.prod.decode.pod-1.m.{stream}");
        assert!(
            all.iter().any(|m| m.subject.as_str() == subject),
            "{subject}"
        );
    }
    for message in all {
        let content = header(&message, "Content-Type");
        assert_eq!(
            content,
            "application/x-protobuf; type=opentelemetry.metrics.v1"
        );
    }
    Ok(())
}

async fn changes_between_two_frames_are_one_and_the_last_is_told(release: Release) -> Outcome {
    let server = NatsServer::start(release);
    let raw = Raw::of(&server.client().await, ALL).await;
    let fleet = fleet(&server).await?;
    let pod = Pod::start(&server.url(), source("pod-1")).await?;
    for i in 0..100_000 {
        pod.queue.set(f64::from(i));
        pod.requests.inc();
    }
    pod.until_same_on(fleet.bus(), &source("pod-1")).await;
    let frames = raw.all().len();
    assert!(frames < 1_000, "{frames} frames for 100 000 changes");
    Ok(())
}

async fn what_does_not_leave_the_deadband_is_not_sent(release: Release) -> Outcome {
    let server = NatsServer::start(release);
    let raw = Raw::of(&server.client().await, ALL).await;
    let fleet = fleet(&server).await?;
    let bus = MetricBus::new();
    let (calm, mark) = (
        bus.gauge("calm_ratio", "Calm.")?,
        bus.gauge("mark_ratio", "Mark.")?,
    );
    let forwarder = forwarder(&server, &bus).await?;
    let _calm = forwarder
        .forward("calm_ratio")
        .every(FRAMES)
        .deadband(Delta::absolute(0.1))
        .named("calm")
        .start()?;
    let _mark = forwarder
        .forward("mark_ratio")
        .every(FRAMES)
        .named("mark")
        .start()?;
    let told = |name: &str| {
        let series = fleet.bus().series(name).ok()?;
        Some(series.first()?.value().as_f64())
    };
    calm.set(0.5);
    until("the first value", || {
        (told("calm_ratio") == Some(0.5)).then_some(())
    })
    .await;
    for round in 1..=5 {
        calm.set(0.5 + 0.01 * f64::from(round));
        mark.set(f64::from(round));
        until("the mark", || {
            (told("mark_ratio") == Some(f64::from(round))).then_some(())
        })
        .await;
    }
    let calm_frames = raw
        .all()
        .iter()
        .filter(|m| m.subject.ends_with(".m.calm"))
        .count();
    // A snapshot, which the fleet may ask for at any time, has the value as it is.
    let shown = told("calm_ratio");
    assert!(shown.is_some_and(|v| (0.5..0.56).contains(&v)), "{shown:?}");
    assert_eq!(calm_frames, 1);
    calm.set(0.61);
    until("what left the deadband", || {
        (told("calm_ratio") == Some(0.61)).then_some(())
    })
    .await;
    Ok(())
}

async fn a_removed_series_is_removed_and_one_that_comes_again_begins_anew(
    release: Release,
) -> Outcome {
    let server = NatsServer::start(release);
    let fleet = fleet(&server).await?;
    let bus = MetricBus::new();
    let family: Family<Counter> =
        bus.family(Desc::new("sessions_total", "Sessions.").labels(["user"]))?;
    let forwarder = forwarder(&server, &bus).await?;
    let _frames = forwarder.forward("sessions_total").every(FRAMES).start()?;
    let window = fleet
        .bus()
        .window("sessions_total", Duration::from_secs(60))?;
    let shown = || by_label(fleet.bus(), "sessions_total", "user");
    family.with_label_values(&["a"])?.inc_by(5);
    family.with_label_values(&["b"])?.inc_by(7);
    until("both", || {
        (shown().len() == 2 && shown()["a"] == 5.0).then_some(())
    })
    .await;
    family.remove(&["a"])?;
    until("one", || (shown().len() == 1).then_some(())).await;
    family.with_label_values(&["a"])?.inc_by(2);
    until("both again", || {
        (shown().get("a") == Some(&2.0)).then_some(())
    })
    .await;
    // Removed and made anew between two frames: a reset, no fall.
    family.remove(&["b"])?;
    family.with_label_values(&["b"])?.inc_by(1);
    until("the new one", || {
        (shown().get("b") == Some(&1.0)).then_some(())
    })
    .await;
    // What those counted that are no more has gone with them; what the new ones did is all news.
    assert_eq!(window.stats().increase, Some(2.0 + 1.0));
    Ok(())
}

async fn a_server_with_a_small_max_payload_gets_frames_and_snapshots_in_parts(
    release: Release,
) -> Outcome {
    const SERIES: usize = 500;
    let max_payload = 4096;
    let server = NatsServer::with(release, Config::core().max_payload(max_payload));
    let raw = Raw::of(&server.client().await, ALL).await;
    let early = fleet(&server).await?;
    let bus = MetricBus::new();
    let family: Family<Gauge> = bus.family(Desc::new("many_ratio", "Many.").labels(["of"]))?;
    let times: Family<Histogram> = bus.family(
        Desc::new("times_seconds", "Times.")
            .labels(["of"])
            .buckets(Buckets::exponential(0.001, 2.0, 12)?),
    )?;
    for i in 0..SERIES {
        let label = format!("series {i:0>40}");
        family.with_label_values(&[&*label])?.set(i as f64);
        let times = times.with_label_values(&[&*label])?;
        for observation in 0..10 {
            times.observe(0.001 * f64::from(observation));
        }
    }
    let forwarder = forwarder(&server, &bus).await?;
    let _frames = forwarder
        .forward(r#"{__name__=~".+"}"#)
        .every(FRAMES)
        .start()?;
    let complete = |fleet: &Fleet| {
        by_label(fleet.bus(), "many_ratio", "of").len() == SERIES
            && fleet
                .bus()
                .snapshot()
                .family("times_seconds")
                .is_some_and(|family| {
                    family.series.len() == SERIES
                    && family.series.iter().all(|series| {
                        matches!(&series.value, SampleValue::Histogram(h) if h.count == 10)
                    })
                })
    };
    until("all series by frames", || complete(&early).then_some(())).await;
    // Who comes later gets them by a snapshot.
    let late = fleet(&server).await?;
    assert!(complete(&late), "{:?}", late.status());
    let frames = raw.all();
    assert!(
        frames.len() > SERIES * 100 / max_payload,
        "{}",
        frames.len()
    );
    for frame in &frames {
        // Name, value and line ends of each header count to the payload, too.
        assert!(frame.payload.len() < max_payload, "{}", frame.payload.len());
    }
    let status = forwarder.status();
    assert_eq!(status.connection.connects, 1, "{status:?}");
    Ok(())
}

async fn lost_frames_are_noticed_and_made_up_for(release: Release) -> Outcome {
    let server = NatsServer::start(release);
    let proxy = metricbus_integration_tests::nats::Proxy::before(server.address());
    let fleet =
        Fleet::builder(NatsOptions::new(&proxy.url())?.ping_interval(Duration::from_millis(200)))
            .start()
            .await?;
    fleet.synced().await;
    let pod = Pod::start(&server.url(), source("pod-1")).await?;
    pod.requests.inc();
    let id = source("pod-1");
    pod.until_same_on(fleet.bus(), &id).await;
    for round in 0..3 {
        // The planner hears nothing for a while, and what it does not hear is not said again: the series change once.
        proxy.cut();
        pod.requests.inc();
        pod.kv.with_label_values(&[&*round.to_string()])?.set(0.5);
        pod.until_same_on(fleet.bus(), &id).await;
    }
    Ok(())
}

async fn no_more_frames_are_sent_than_allowed(release: Release) -> Outcome {
    let server = NatsServer::start(release);
    let raw = Raw::of(&server.client().await, ALL).await;
    let fleet = fleet(&server).await?;
    let bus = MetricBus::new();
    let gauge = bus.gauge("busy_ratio", "Busy.")?;
    let forwarder = NatsForwarder::builder(&bus, NatsOptions::new(&server.url())?)
        .source(source("pod-1"))
        .frames_per_second_max(5.0)
        .start()
        .await?;
    let _frames = forwarder
        .forward("busy_ratio")
        .every(Duration::from_millis(10))
        .start()?;
    let begin = std::time::Instant::now();
    let mut value = 0.0;
    until("some frames", || {
        value += 1.0;
        gauge.set(value);
        (raw.all().len() >= 8).then_some(())
    })
    .await;
    // At 10 ms each they would be there in a tenth of a second. A burst of one second's worth is fair.
    assert!(
        begin.elapsed() >= Duration::from_millis(400),
        "{:?}",
        begin.elapsed()
    );
    gauge.set(-1.0);
    until("the last value", || {
        let series = fleet.bus().series("busy_ratio").ok()?;
        (series.first()?.value().as_f64() == -1.0).then_some(())
    })
    .await;
    Ok(())
}

async fn a_forwarding_that_is_dropped_says_nothing_more(release: Release) -> Outcome {
    let server = NatsServer::start(release);
    let fleet = fleet(&server).await?;
    let bus = MetricBus::new();
    let (kept, dropped) = (
        bus.gauge("kept_ratio", "Kept.")?,
        bus.gauge("dropped_ratio", "Dropped.")?,
    );
    let forwarder = forwarder(&server, &bus).await?;
    forwarder
        .forward("kept_ratio")
        .every(FRAMES)
        .named("kept")
        .start()?
        .forget();
    let guard = forwarder
        .forward("dropped_ratio")
        .every(FRAMES)
        .named("dropped")
        .start()?;
    kept.set(1.0);
    dropped.set(1.0);
    let shown = |name: &str| {
        let series = fleet.bus().series(name).ok()?;
        Some(series.first()?.value().as_f64())
    };
    until("both", || {
        (shown("kept_ratio").is_some() && shown("dropped_ratio").is_some()).then_some(())
    })
    .await;
    drop(guard);
    // Nobody vouches for it any more.
    until("one", || shown("dropped_ratio").is_none().then_some(())).await;
    kept.set(2.0);
    until("the kept one", || {
        (shown("kept_ratio") == Some(2.0)).then_some(())
    })
    .await;
    Ok(())
}

on_each_server!(
    every_kind_of_metric_arrives_as_it_is,
    frames_are_numbered_without_gaps_over_all_streams,
    changes_between_two_frames_are_one_and_the_last_is_told,
    what_does_not_leave_the_deadband_is_not_sent,
    a_removed_series_is_removed_and_one_that_comes_again_begins_anew,
    a_server_with_a_small_max_payload_gets_frames_and_snapshots_in_parts,
    lost_frames_are_noticed_and_made_up_for,
    no_more_frames_are_sent_than_allowed,
    a_forwarding_that_is_dropped_says_nothing_more,
);
