//! Streams of JetStream that do not take alerts, or never say that they do: nothing is sent again and again, what is new is
//! not held up, and an end does not wait for them.

use std::{collections::BTreeSet, error::Error, time::Duration};

use async_nats::jetstream::{
    self, Context,
    stream::{Config as StreamConfig, DiscardPolicy, Source, Stream},
};
use metricbus::nats::{Delivery, NatsOptions, OutboxStatus};
use metricbus_integration_tests::{
    nats::{
        Config, NatsServer, Outcome, Pod, Raw, Release, User, raw::header, source, until,
        until_async,
    },
    on_each_server,
};

const ALERTS: &str = "metricbus.v1.*.*.*.a.>";

/// Nobody waits that long: what ends before has not used its deadline up.
const HOUR: Duration = Duration::from_secs(3_600);

struct Bench {
    context: Context,
    raw: Raw,
    pod: Pod,
}

impl Bench {
    async fn start(server: &NatsServer, delivery: Delivery) -> Result<Bench, Box<dyn Error>> {
        let client = server.client().await;
        let options = NatsOptions::new(&server.url())?;
        Ok(Bench {
            context: jetstream::new(client.clone()),
            raw: Raw::of(&client, ALERTS).await,
            pod: Pod::with(options, source("pod-1"), |f| f.delivery(delivery)).await?,
        })
    }

    fn outbox(&self) -> OutboxStatus {
        self.pod.forwarder.status().outbox
    }

    /// Waits for a state of the outbox.
    async fn until(&self, what: &str, is: impl Fn(&OutboxStatus) -> bool) {
        until(what, || is(&self.outbox()).then_some(())).await;
    }

    async fn until_told(&self, what: &str) {
        until(&format!("a word of {what:?}"), || {
            let told = self.pod.forwarder.status().last_error?;
            told.contains(what).then_some(())
        })
        .await;
    }
}

fn demanded() -> Delivery {
    Delivery::JetStream {
        stream: "ALERTS".to_owned(),
        create: false,
    }
}

async fn make(server: &NatsServer, config: StreamConfig) -> Result<Stream, Box<dyn Error>> {
    let context = jetstream::new(server.client().await);
    Ok(context.create_stream(named(config)).await?)
}

fn named(config: StreamConfig) -> StreamConfig {
    let subjects = match config.mirror.is_none() && config.subjects.is_empty() {
        true => vec![ALERTS.to_owned()],
        false => config.subjects,
    };
    StreamConfig {
        name: "ALERTS".to_owned(),
        subjects,
        ..config
    }
}

async fn until_it_has(stream: &Stream, messages: u64) {
    until_async("the stream to have them", || async {
        let info = stream.get_info().await.ok()?;
        (info.state.messages == messages).then_some(())
    })
    .await;
}

fn ids(raw: &Raw) -> BTreeSet<String> {
    let all = raw.all();
    let ids = all.iter().map(|m| header(m, "Nats-Msg-Id").to_owned());
    ids.collect()
}

async fn a_stream_that_never_acknowledges_gets_each_alert_once(release: Release) -> Outcome {
    for subjects in [ALERTS, ">"] {
        for delivery in [Delivery::Auto, demanded()] {
            let server = NatsServer::jetstream(release);
            let config = StreamConfig {
                subjects: vec![subjects.to_owned()],
                no_ack: true,
                ..Default::default()
            };
            let stream = make(&server, config).await?;
            let bench = Bench::start(&server, delivery.clone()).await?;
            bench.pod.flap("a", 3)?;
            // Confirmed, and not because the time for an acknowledgement was over.
            bench.until("all six", |outbox| outbox.confirmed == 6).await;
            let outbox = bench.outbox();
            assert_eq!((outbox.sent, outbox.retried), (6, 0), "{delivery:?}");
            if subjects == ALERTS {
                until_it_has(&stream, 6).await;
            }
            bench.pod.forwarder.shutdown(HOUR).await;
            assert_eq!(bench.raw.until(6).await.len(), 6);
        }
    }
    Ok(())
}

async fn a_sealed_stream_is_not_waited_for(release: Release) -> Outcome {
    for delivery in [Delivery::Auto, demanded()] {
        let server = NatsServer::jetstream(release);
        let stream = make(&server, StreamConfig::default()).await?;
        let bench = Bench::start(&server, delivery.clone()).await?;
        bench.pod.flap("a", 3)?;
        bench.until("the first six", |o| o.confirmed == 6).await;
        assert_eq!(bench.outbox().retried, 0);
        // From one moment to the next.
        let mut sealed = stream.get_info().await?.config;
        sealed.sealed = true;
        bench.context.update_stream(sealed).await?;
        bench.pod.flap("a", 3)?;
        bench.raw.until(12).await;
        until("it to be known", || {
            let delivery = bench.pod.forwarder.status().delivery;
            delivery.contains("sealed").then_some(())
        })
        .await;
        // Now it is known. Where the stream is demanded nothing is sent; else all is, once.
        bench.pod.flap("a", 3)?;
        let (unconfirmed, messages) = match delivery {
            Delivery::Auto => (0, 18),
            _ => (12, 12),
        };
        bench
            .until("what can be", |o| {
                o.unconfirmed == unconfirmed && o.confirmed + o.unconfirmed as u64 == 18
            })
            .await;
        bench.pod.forwarder.shutdown(HOUR).await;
        let outbox = bench.outbox();
        assert_eq!(outbox.unconfirmed, unconfirmed, "{outbox:?}");
        assert_eq!(outbox.sent, messages, "{outbox:?}");
        assert_eq!(
            bench.raw.until(messages as usize).await.len(),
            messages as usize
        );
        until_it_has(&stream, 6).await;
    }
    Ok(())
}

/// Streams that have room for some alerts and refuse the rest.
fn full() -> [StreamConfig; 3] {
    let discard = DiscardPolicy::New;
    [
        StreamConfig {
            max_messages: 2,
            discard,
            ..Default::default()
        },
        StreamConfig {
            max_bytes: 2_500,
            discard,
            ..Default::default()
        },
        StreamConfig {
            max_messages: 2,
            max_bytes: 1 << 20,
            discard,
            ..Default::default()
        },
    ]
}

async fn what_a_full_stream_refuses_went_to_who_listened_where_no_stream_is_demanded(
    release: Release,
) -> Outcome {
    for config in full() {
        let server = NatsServer::jetstream(release);
        let stream = make(&server, config).await?;
        let bench = Bench::start(&server, Delivery::Auto).await?;
        bench.pod.flap("a", 3)?;
        bench.until("all six", |outbox| outbox.confirmed == 6).await;
        let stored = stream.get_info().await?.state.messages;
        assert!((1..6).contains(&stored), "{stored}");
        let outbox = bench.outbox();
        assert_eq!((outbox.sent, outbox.retried), (6, 0), "{outbox:?}");
        assert_eq!(outbox.unstored, 6 - stored, "{outbox:?}");
        bench.pod.forwarder.shutdown(HOUR).await;
        assert_eq!(bench.raw.until(6).await.len(), 6);
    }
    Ok(())
}

async fn what_a_full_stream_refuses_does_not_hold_up_what_is_new_and_is_stored_when_there_is_room(
    release: Release,
) -> Outcome {
    let server = NatsServer::jetstream(release);
    let [mut config, ..] = full();
    let stream = make(&server, config.clone()).await?;
    let bench = Bench::start(&server, demanded()).await?;
    bench.pod.flap("a", 10)?;
    bench.raw.until(20).await;
    bench.until_told("10077").await;
    // All 18 that were refused wait for more than this.
    bench.pod.flap("b", 1)?;
    until("the new ones to be sent", || {
        (ids(&bench.raw).len() == 22).then_some(())
    })
    .await;
    config.max_messages = 100;
    bench.context.update_stream(named(config)).await?;
    bench.until("all to be stored", |o| o.confirmed == 22).await;
    until_it_has(&stream, 22).await;
    let outbox = bench.outbox();
    // One or a few tried again while it was full, and each once after.
    assert!(outbox.retried <= 60, "{outbox:?}");
    assert_eq!(outbox.unstored, 0, "{outbox:?}");
    Ok(())
}

async fn a_full_stream_is_tried_once_more_at_the_end_and_not_waited_for(
    release: Release,
) -> Outcome {
    let server = NatsServer::jetstream(release);
    let [config, ..] = full();
    let stream = make(&server, config).await?;
    let bench = Bench::start(&server, demanded()).await?;
    bench.pod.flap("a", 3)?;
    bench.raw.until(6).await;
    bench.until("two to be stored", |o| o.confirmed == 2).await;
    bench.until_told("10077").await;
    bench.pod.forwarder.shutdown(HOUR).await;
    let outbox = bench.outbox();
    assert_eq!((outbox.confirmed, outbox.unconfirmed), (2, 4), "{outbox:?}");
    assert!(outbox.retried <= 8, "{outbox:?}");
    until_it_has(&stream, 2).await;
    Ok(())
}

async fn a_mirror_is_named_as_such_and_not_waited_for(release: Release) -> Outcome {
    let server = NatsServer::jetstream(release);
    let context = jetstream::new(server.client().await);
    context
        .create_stream(StreamConfig {
            name: "ORIGIN".to_owned(),
            subjects: vec!["elsewhere.>".to_owned()],
            ..Default::default()
        })
        .await?;
    let mirror = Some(Source {
        name: "ORIGIN".to_owned(),
        ..Default::default()
    });
    make(
        &server,
        StreamConfig {
            mirror,
            ..Default::default()
        },
    )
    .await?;
    let bench = Bench::start(&server, demanded()).await?;
    bench.pod.flap("a", 3)?;
    bench
        .until_told("is a mirror, and takes only what ORIGIN has")
        .await;
    bench.pod.forwarder.shutdown(HOUR).await;
    assert_eq!(bench.outbox().unconfirmed, 6);
    assert_eq!(bench.raw.all().len(), 0);
    Ok(())
}

async fn a_server_that_does_not_let_us_publish_is_not_waited_for(release: Release) -> Outcome {
    let user = User::password("pod", "secret").deny_publish(&["metricbus.v1.*.*.*.a.>"]);
    let other = User::password("reader", "secret");
    let server = NatsServer::with(release, Config::jetstream().user(user).user(other));
    let reader =
        async_nats::ConnectOptions::with_user_and_password("reader".into(), "secret".into());
    let reader = reader.connect(server.url()).await?;
    let raw = Raw::of(&reader, ALERTS).await;
    for delivery in [Delivery::Core, Delivery::Auto] {
        let options = NatsOptions::new(&server.url())?.user_and_password("pod", "secret");
        let pod = Pod::with(options, source("pod-1"), |f| f.delivery(delivery)).await?;
        pod.flap("a", 3)?;
        until("a word of the denial", || {
            (pod.forwarder.status().connection.denied > 0).then_some(())
        })
        .await;
        pod.forwarder.shutdown(HOUR).await;
        let outbox = pod.forwarder.status().outbox;
        assert_eq!(outbox.unconfirmed, 6, "{outbox:?}");
    }
    assert_eq!(raw.all().len(), 0);
    Ok(())
}

async fn a_stream_that_is_demanded_and_not_there_is_not_waited_for_at_the_end(
    release: Release,
) -> Outcome {
    for (server, word) in [
        (NatsServer::jetstream(release), "does not exist"),
        (NatsServer::start(release), "there is no JetStream"),
    ] {
        let bench = Bench::start(&server, demanded()).await?;
        bench.pod.flap("a", 3)?;
        bench.until_told(word).await;
        bench.pod.forwarder.shutdown(HOUR).await;
        assert_eq!(bench.outbox().unconfirmed, 6);
        assert_eq!(bench.raw.all().len(), 0);
    }
    Ok(())
}

async fn alerts_to_a_stream_that_vanishes_go_over_core(release: Release) -> Outcome {
    let server = NatsServer::jetstream(release);
    make(&server, StreamConfig::default()).await?;
    let bench = Bench::start(&server, Delivery::Auto).await?;
    bench.pod.flap("a", 1)?;
    bench.until("the first two", |o| o.confirmed == 2).await;
    bench.context.delete_stream("ALERTS").await?;
    // Those who listen keep the server from saying that nobody does: only the silence of the stream tells.
    bench.pod.flap("a", 2)?;
    bench.until("the next four", |o| o.confirmed == 6).await;
    let outbox = bench.outbox();
    assert!(outbox.retried <= 4, "{outbox:?}");
    bench.pod.flap("a", 2)?;
    bench.until("the rest", |o| o.confirmed == 10).await;
    assert_eq!(bench.outbox().retried, outbox.retried, "it is known now");
    assert_eq!(ids(&bench.raw).len(), 10);
    Ok(())
}

on_each_server!(
    a_stream_that_never_acknowledges_gets_each_alert_once,
    a_sealed_stream_is_not_waited_for,
    what_a_full_stream_refuses_went_to_who_listened_where_no_stream_is_demanded,
    what_a_full_stream_refuses_does_not_hold_up_what_is_new_and_is_stored_when_there_is_room,
    a_full_stream_is_tried_once_more_at_the_end_and_not_waited_for,
    a_mirror_is_named_as_such_and_not_waited_for,
    a_server_that_does_not_let_us_publish_is_not_waited_for,
    a_stream_that_is_demanded_and_not_there_is_not_waited_for_at_the_end,
    alerts_to_a_stream_that_vanishes_go_over_core,
);
