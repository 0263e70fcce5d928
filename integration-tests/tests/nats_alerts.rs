//! Alerts on a real nats-server: what is sent, where, how often, and to whom.

use std::{collections::BTreeSet, error::Error, time::Duration};

use async_nats::jetstream;
use futures_util::StreamExt as _;
use metricbus::{
    Condition, Desc, Gauge, MetricBus, Rule, SourceId, Threshold,
    nats::{Delivery, Fleet, NatsForwarder, NatsOptions},
};
use metricbus_integration_tests::{
    nats::{
        Config, NatsServer, Outcome, Pod, Raw, Release, Told,
        pod::RULE,
        raw::{header, json, number},
        source, until,
    },
    on_each_server,
};

const PATIENCE: Duration = Duration::from_secs(30);

async fn core_pod(server: &NatsServer) -> Result<Pod, Box<dyn Error>> {
    Pod::with(NatsOptions::new(&server.url())?, source("pod-1"), |f| {
        f.delivery(Delivery::Core)
    })
    .await
}

async fn a_crossing_becomes_a_cloudevent_on_its_subject(release: Release) -> Outcome {
    let server = NatsServer::start(release);
    let raw = Raw::of(&server.client().await, "metricbus.v1.*.*.*.a.>").await;
    let pod = core_pod(&server).await?;
    pod.flap("a", 1)?;
    pod.flush().await;
    let heard = raw.until(2).await;
    let [firing, resolved] = &heard[..] else {
        return Err(format!("{heard:?}").into());
    };
    assert_eq!(
        firing.subject.as_str(),
        "metricbus.v1.prod.decode.pod-1.a.KvFull.firing"
    );
    assert_eq!(
        resolved.subject.as_str(),
        "metricbus.v1.prod.decode.pod-1.a.KvFull.resolved"
    );
    assert_eq!(
        header(firing, "Content-Type"),
        "application/cloudevents+json"
    );
    assert_eq!(header(firing, "Metricbus-Source"), "prod.decode.pod-1");
    let epoch = number(firing, "Metricbus-Epoch");
    assert_eq!(number(firing, "Metricbus-Sequence"), 1);
    assert_eq!(number(resolved, "Metricbus-Sequence"), 2);
    assert_eq!(
        header(firing, "Nats-Msg-Id"),
        format!("prod.decode.pod-1-{epoch}-1")
    );

    let event = json(firing);
    assert_eq!(event["specversion"], "1.0", "{event}");
    assert_eq!(event["id"], header(firing, "Nats-Msg-Id"), "{event}");
    assert_eq!(event["source"], "/metricbus/prod/decode/pod-1", "{event}");
    assert_eq!(event["type"], "io.metricbus.alert.firing", "{event}");
    assert_eq!(event["sequence"], "1", "{event}");
    assert_eq!(event["metricbusepoch"], epoch.to_string(), "{event}");
    let data = &event["data"];
    assert_eq!(data["rule"], RULE, "{event}");
    assert_eq!(data["state"], "firing", "{event}");
    assert_eq!(data["value"], 0.95, "{event}");
    assert_eq!(data["group"]["worker"], "a", "{event}");
    assert_eq!(data["epoch"], 1, "{event}");
    Ok(())
}

async fn numbers_that_json_has_not_are_strings(release: Release) -> Outcome {
    let server = NatsServer::start(release);
    let raw = Raw::of(&server.client().await, "metricbus.v1.*.*.*.a.>").await;
    let pod = core_pod(&server).await?;
    let fleet = Fleet::builder(NatsOptions::new(&server.url())?)
        .start()
        .await?;
    let heard = Told::of(fleet.on_alert())?;
    fleet.synced().await;
    let kv = pod.kv.with_label_values(&["a"])?;
    kv.set(f64::INFINITY);
    kv.set(f64::NEG_INFINITY);
    kv.set(1e300);
    kv.set(-0.0);
    let messages = raw.until(4).await;
    let values: Vec<_> = messages
        .iter()
        .map(|m| json(m)["data"]["value"].clone())
        .collect();
    assert_eq!(values[0], "+Inf");
    assert_eq!(values[1], "-Inf");
    assert_eq!(values[2], 1e300);
    until("all of them", || (heard.count() == 4).then_some(())).await;
    assert_eq!(heard.by_group(), pod.told.by_group());
    Ok(())
}

async fn every_transition_of_many_threads_arrives_once(release: Release) -> Outcome {
    let server = NatsServer::start(release);
    let raw = Raw::of(&server.client().await, "metricbus.v1.*.*.*.a.>").await;
    let pod = core_pod(&server).await?;
    let fleet = Fleet::builder(NatsOptions::new(&server.url())?)
        .start()
        .await?;
    let heard = Told::of(fleet.on_alert())?;
    fleet.synced().await;
    std::thread::scope(|scope| {
        for worker in ["a", "b", "c", "d"] {
            let pod = &pod;
            scope.spawn(move || pod.flap(worker, 500).unwrap_or_else(|why| panic!("{why}")));
        }
    });
    pod.flush().await;
    let ids: BTreeSet<String> = raw
        .until(4_000)
        .await
        .iter()
        .map(|message| header(message, "Nats-Msg-Id").to_owned())
        .collect();
    assert_eq!(ids.len(), 4_000);
    until("all of them", || (heard.count() == 4_000).then_some(())).await;
    assert_eq!(heard.by_group(), pod.told.by_group());
    let status = pod.forwarder.status();
    assert_eq!(status.outbox.sent, 4_000, "{status:?}");
    Ok(())
}

async fn a_stream_that_takes_the_subject_is_used_without_being_told(release: Release) -> Outcome {
    let server = NatsServer::jetstream(release);
    let client = server.client().await;
    let context = jetstream::new(client);
    let stream = context
        .create_stream(jetstream::stream::Config {
            name: "OPERATORS_OWN".to_owned(),
            subjects: vec!["metricbus.v1.*.*.*.a.>".to_owned()],
            ..Default::default()
        })
        .await?;
    let pod = Pod::start(&server.url(), source("pod-1")).await?;
    pod.flap("a", 5)?;
    pod.flush().await;
    assert_eq!(
        stream.get_info().await?.state.messages,
        10,
        "confirmed is stored"
    );
    Ok(())
}

/// A bus whose rule has annotations of so many bytes in all its alerts.
fn wordy(bytes: usize) -> Result<(MetricBus, Gauge), Box<dyn Error>> {
    let bus = MetricBus::new();
    let queue = bus.gauge("queue_depth", "Requests waiting.")?;
    bus.add_rule(
        Rule::new(
            "QueueFull",
            Condition::when("queue_depth", Threshold::above(10.0)),
        )
        .annotation("runbook", "x".repeat(bytes)),
    )?;
    Ok((bus, queue))
}

async fn an_alert_that_is_too_large_for_its_stream_goes_in_part_and_holds_up_no_others(
    release: Release,
) -> Outcome {
    let server = NatsServer::jetstream(release);
    let context = jetstream::new(server.client().await);
    let stream = |max_message_size| jetstream::stream::Config {
        name: "ALERTS".to_owned(),
        subjects: vec!["metricbus.v1.*.*.*.a.>".to_owned()],
        max_message_size,
        ..Default::default()
    };
    let made = context.create_stream(stream(4_096)).await?;
    let (bus, queue) = wordy(8_192)?;
    let forwarder = NatsForwarder::builder(&bus, NatsOptions::new(&server.url())?)
        .source(source("pod-1"))
        .delivery(Delivery::JetStream {
            stream: "ALERTS".to_owned(),
            create: false,
        })
        .start()
        .await?;
    let _alerts = forwarder.forward_alerts()?;
    let confirmed = async |alerts| {
        until("the stream to have them", || {
            (forwarder.status().outbox.confirmed == alerts).then_some(())
        })
        .await;
    };
    queue.set(11.0);
    confirmed(1).await;
    // It takes less than it did when the way of alerts was looked up.
    context.update_stream(stream(2_048)).await?;
    queue.set(1.0);
    confirmed(2).await;
    for sequence in 1..=2 {
        let kept = made.get_raw_message(sequence).await?;
        let body: serde_json::Value = serde_json::from_slice(&kept.payload)?;
        assert_eq!(body["data"]["truncated"], true, "{body}");
    }
    // And now less than any alert is.
    context.update_stream(stream(100)).await?;
    queue.set(11.0);
    until("the next one to be dropped", || {
        (forwarder.status().outbox.too_large == 1).then_some(())
    })
    .await;
    let status = forwarder.status();
    assert_eq!(status.outbox.unconfirmed, 0, "{status:?}");
    Ok(())
}

async fn what_is_too_large_for_a_stream_that_nobody_demands_goes_to_who_listens(
    release: Release,
) -> Outcome {
    let server = NatsServer::jetstream(release);
    let client = server.client().await;
    jetstream::new(client.clone())
        .create_stream(jetstream::stream::Config {
            name: "ALERTS".to_owned(),
            subjects: vec!["metricbus.v1.*.*.*.a.>".to_owned()],
            max_message_size: 100,
            ..Default::default()
        })
        .await?;
    let raw = Raw::of(&client, "metricbus.v1.*.*.*.a.>").await;
    let pod = Pod::start(&server.url(), source("pod-1")).await?;
    pod.flap("a", 5)?;
    pod.flush().await;
    raw.until(10).await;
    let status = pod.forwarder.status();
    assert_eq!(status.outbox.confirmed, 10, "{status:?}");
    assert_eq!(status.outbox.too_large, 0, "{status:?}");
    Ok(())
}

async fn without_a_stream_alerts_go_over_core(release: Release) -> Outcome {
    let server = NatsServer::jetstream(release);
    let raw = Raw::of(&server.client().await, "metricbus.v1.*.*.*.a.>").await;
    let pod = Pod::start(&server.url(), source("pod-1")).await?;
    pod.flap("a", 5)?;
    pod.flush().await;
    raw.until(10).await;
    Ok(())
}

async fn what_does_not_concern_alerts_is_no_reason_why_they_are_not_confirmed(
    release: Release,
) -> Outcome {
    let mut server = NatsServer::jetstream(release);
    let pod = Pod::with(NatsOptions::new(&server.url())?, source("pod-1"), |f| {
        f.delivery(Delivery::Core).rules_from("no-such-bucket")
    })
    .await?;
    pod.flap("a", 1)?;
    pod.flush().await;
    until("a word about the bucket", || {
        pod.forwarder.status().last_error
    })
    .await;
    server.freeze();
    pod.flap("a", 1)?;
    let flushed = pod.forwarder.flush(Duration::from_millis(100)).await;
    server.thaw();
    let error = flushed.err().ok_or("a frozen server confirmed alerts")?;
    assert!(!error.to_string().contains("bucket"), "{error}");
    assert!(error.to_string().contains("has not confirmed"), "{error}");
    Ok(())
}

async fn a_stream_is_made_where_that_was_asked_for_and_keeps_alerts_for_who_comes_later(
    release: Release,
) -> Outcome {
    let server = NatsServer::jetstream(release);
    let delivery = Delivery::JetStream {
        stream: "ALERTS".to_owned(),
        create: true,
    };
    let pod = Pod::with(NatsOptions::new(&server.url())?, source("pod-1"), |f| {
        f.delivery(delivery)
    })
    .await?;
    pod.flap("a", 5)?;
    pod.flush().await;
    let context = jetstream::new(server.client().await);
    let stream = context.get_stream("ALERTS").await?;
    let consumer = stream
        .create_consumer(jetstream::consumer::pull::Config {
            ack_policy: jetstream::consumer::AckPolicy::None,
            ..Default::default()
        })
        .await?;
    let mut messages = consumer.messages().await?;
    for sequence in 1..=10 {
        let message = messages.next().await.ok_or("no more messages")??;
        assert_eq!(number(&message, "Metricbus-Sequence"), sequence);
    }
    Ok(())
}

async fn a_template_puts_alerts_where_the_reader_wants_them(release: Release) -> Outcome {
    let server = NatsServer::start(release);
    let raw = Raw::of(&server.client().await, "alerts.>").await;
    let bus = MetricBus::new();
    let queue = bus.gauge("queue_depth", "Requests waiting.")?;
    bus.add_rule(
        Rule::new(
            "Queue full",
            Condition::when("queue_depth", Threshold::above(10.0)),
        )
        .label("team", "a.b>*"),
    )?;
    let forwarder = NatsForwarder::builder(&bus, NatsOptions::new(&server.url())?)
        .source(source("pod.1"))
        .delivery(Delivery::Core)
        .subject("alerts.{component}.{instance}.{rule}.{label.team}.{state}")
        .start()
        .await?;
    let _alerts = bus.on_alert().service(forwarder.clone())?;
    queue.set(11.0);
    queue.set(1.0);
    let heard = raw.until(2).await;
    let subjects: Vec<_> = heard
        .iter()
        .map(|message| message.subject.as_str())
        .collect();
    assert_eq!(
        subjects,
        [
            "alerts.decode.pod=2E1.Queue=20full.a=2Eb=3E=2A.firing",
            "alerts.decode.pod=2E1.Queue=20full.a=2Eb=3E=2A.resolved"
        ]
    );
    Ok(())
}

const HOSTILE: [&str; 9] = [
    "a.b",
    "a b",
    "*",
    ">",
    "nul\0",
    "ünï🦀",
    "",
    "a\r\nPUB x 0\r\n",
    "=2E",
];

async fn names_with_dots_spaces_wildcards_and_line_breaks_stay_in_their_token(
    release: Release,
) -> Outcome {
    let server = NatsServer::start(release);
    let raw = Raw::of(&server.client().await, ">").await;
    let fleet = Fleet::builder(NatsOptions::new(&server.url())?)
        .start()
        .await?;
    let heard = Told::of(fleet.on_alert())?;
    fleet.synced().await;
    for (i, name) in HOSTILE.iter().enumerate() {
        let bus = MetricBus::new();
        let family = bus.family::<Gauge>(Desc::new("queue_depth", "Waiting.").labels(["queue"]))?;
        let rule = if name.is_empty() { "none" } else { name };
        bus.add_rule(
            Rule::new(rule, Condition::when("queue_depth", Threshold::above(10.0))).each(),
        )?;
        let id = SourceId::new(*name, *name, format!("{name}{i}"));
        let forwarder = NatsForwarder::builder(&bus, NatsOptions::new(&server.url())?)
            .source(id.clone())
            .delivery(Delivery::Core)
            .start()
            .await?;
        let _alerts = bus.on_alert().service(forwarder.clone())?;
        let _frames = forwarder
            .forward("queue_depth")
            .every(Duration::from_millis(10))
            .start()?;
        family.with_label_values(&[name])?.set(11.0);
        forwarder.flush(PATIENCE).await?;
        let alert = until(&format!("the alert of {name:?}"), || {
            heard.all().into_iter().find(|alert| {
                alert
                    .origin
                    .as_ref()
                    .is_some_and(|origin| origin.source == id)
            })
        })
        .await;
        assert_eq!(&*alert.rule, rule);
        let group: Vec<_> = alert.group.iter().filter(|(n, _)| n == "queue").collect();
        assert_eq!(group, [&("queue".to_owned(), (*name).to_owned())]);
        until(&format!("the series of {name:?}"), || {
            let series = fleet.bus().series("queue_depth").ok()?;
            let own = series.iter().any(|series| {
                series.label("instance").as_deref() == Some(&*id.instance)
                    && series.label("queue").as_deref() == Some(*name)
            });
            own.then_some(())
        })
        .await;
        forwarder.shutdown(PATIENCE).await;
    }
    for message in raw.all() {
        let subject = message.subject.as_str();
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-.=$".contains(c);
        assert!(subject.chars().all(plain), "{subject:?}");
        if subject.starts_with("metricbus.v1.") && !subject.ends_with("hello") {
            let tokens = subject.split('.').count();
            assert!((7..=8).contains(&tokens), "{subject:?}");
        }
    }
    Ok(())
}

async fn an_alert_that_came_from_elsewhere_is_not_sent_again(release: Release) -> Outcome {
    let server = NatsServer::start(release);
    let raw = Raw::of(&server.client().await, "metricbus.v1.*.*.*.a.>").await;
    let pod = core_pod(&server).await?;
    let fleet = Fleet::builder(NatsOptions::new(&server.url())?)
        .start()
        .await?;
    let heard = Told::of(fleet.on_alert())?;
    // A planner that has a forwarder of its own and gives it everything: a loop, if it were let.
    let planner = NatsForwarder::builder(fleet.bus(), NatsOptions::new(&server.url())?)
        .source(SourceId::new("prod", "planner", "planner-1"))
        .delivery(Delivery::Core)
        .start()
        .await?;
    let _loop = fleet.on_alert().service(planner.clone())?;
    let _own = fleet.bus().on_alert().service(planner.clone())?;
    fleet.synced().await;
    // The planner's own rule over the pods is its own alert, and is sent.
    let full = Condition::when("kv_usage_ratio", Threshold::above(0.9).clear_below(0.8));
    fleet.add_rule(Rule::new("AnyFull", full).any())?;
    let kv = pod.kv.with_label_values(&["a"])?;
    kv.set(0.95);
    until("the planner's own alert", || {
        raw.all()
            .iter()
            .any(|m| m.subject.contains("planner-1.a.AnyFull.firing"))
            .then_some(())
    })
    .await;
    kv.set(0.5);
    until("the planner's own alert", || {
        raw.all()
            .iter()
            .any(|m| m.subject.contains("planner-1.a.AnyFull.resolved"))
            .then_some(())
    })
    .await;
    until("the pod's alerts", || {
        let ours = |alert: &metricbus::Alert| &*alert.rule == RULE;
        (heard.all().into_iter().filter(ours).count() == 2).then_some(())
    })
    .await;
    planner.flush(PATIENCE).await?;
    let subjects: Vec<_> = raw.all().iter().map(|m| m.subject.to_string()).collect();
    let again = subjects
        .iter()
        .filter(|s| s.contains("planner-1.a.KvFull"))
        .count();
    assert_eq!(again, 0, "{subjects:?}");
    assert_eq!(subjects.len(), 4, "{subjects:?}");
    Ok(())
}

async fn alerts_that_are_too_large_for_the_server_are_shortened(release: Release) -> Outcome {
    let server = NatsServer::with(release, Config::core().max_payload(4096));
    let raw = Raw::of(&server.client().await, "metricbus.v1.*.*.*.a.>").await;
    let bus = MetricBus::new();
    let queue = bus.gauge("queue_depth", "Requests waiting.")?;
    let full = || Condition::when("queue_depth", Threshold::above(10.0));
    bus.add_rule(Rule::new("Long", full()).annotation("runbook", "x".repeat(10_000)))?;
    bus.add_rule(Rule::new("Short", full()))?;
    let forwarder = NatsForwarder::builder(&bus, NatsOptions::new(&server.url())?)
        .source(source("pod-1"))
        .delivery(Delivery::Core)
        .start()
        .await?;
    let _alerts = bus.on_alert().service(forwarder.clone())?;
    queue.set(11.0);
    forwarder.flush(PATIENCE).await?;
    let heard = raw.until(2).await;
    let long = heard
        .iter()
        .map(json)
        .find(|event| event["data"]["rule"] == "Long");
    let long = long.ok_or("the long one is missing")?;
    assert_eq!(long["data"]["truncated"], true, "{long}");
    assert_eq!(
        forwarder.status().connection.connects,
        1,
        "the server did not cut us"
    );
    Ok(())
}

on_each_server!(
    a_crossing_becomes_a_cloudevent_on_its_subject,
    numbers_that_json_has_not_are_strings,
    every_transition_of_many_threads_arrives_once,
    a_stream_that_takes_the_subject_is_used_without_being_told,
    an_alert_that_is_too_large_for_its_stream_goes_in_part_and_holds_up_no_others,
    what_is_too_large_for_a_stream_that_nobody_demands_goes_to_who_listens,
    without_a_stream_alerts_go_over_core,
    what_does_not_concern_alerts_is_no_reason_why_they_are_not_confirmed,
    a_stream_is_made_where_that_was_asked_for_and_keeps_alerts_for_who_comes_later,
    a_template_puts_alerts_where_the_reader_wants_them,
    names_with_dots_spaces_wildcards_and_line_breaks_stay_in_their_token,
    an_alert_that_came_from_elsewhere_is_not_sent_again,
    alerts_that_are_too_large_for_the_server_are_shortened,
);
