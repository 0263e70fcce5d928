//! Bytes that no source of ours would send, on every subject, from somebody who may publish: counted and ignored, while the
//! true source goes on.

use std::{error::Error, fs};

use async_nats::{Client, HeaderMap, Message};
use metricbus::{
    Condition, Rule, Threshold,
    nats::{Delivery, Fleet, NatsOptions},
};
use metricbus_integration_tests::{
    nats::{
        NatsServer, Outcome, Pod, Raw, Release, Told,
        raw::{ask, number},
        source, until, until_it_answers,
    },
    on_each_server,
    random::Random,
};

const SOURCE: &str = "metricbus.v1.prod.decode.pod-1";

struct Scene {
    server: NatsServer,
    client: Client,
    pod: Pod,
    fleet: Fleet,
    heard: Told,
}

impl Scene {
    async fn start(release: Release) -> Result<Scene, Box<dyn Error>> {
        let server = NatsServer::start(release);
        let client = server.client().await;
        let fleet = Fleet::builder(NatsOptions::new(&server.url())?)
            .start()
            .await?;
        let heard = Told::of(fleet.on_alert())?;
        fleet.synced().await;
        let options = NatsOptions::new(&server.url())?;
        let pod = Pod::with(options, source("pod-1"), |f| f.delivery(Delivery::Core)).await?;
        let scene = Scene {
            server,
            client,
            pod,
            fleet,
            heard,
        };
        scene.goes_on(1).await?;
        Ok(scene)
    }

    /// Something happens at the source, and everything of it arrives.
    async fn goes_on(&self, rounds: usize) -> Outcome {
        self.pod.requests.inc();
        self.pod.latency.observe(0.3);
        self.pod.flap("a", rounds)?;
        self.pod.flush().await;
        self.pod
            .until_same_on(self.fleet.bus(), &source("pod-1"))
            .await;
        until("the alerts of the source", || {
            (self.heard.by_group() == self.pod.told.by_group()).then_some(())
        })
        .await;
        Ok(())
    }

    async fn publish(&self, subject: &str, headers: HeaderMap, body: Vec<u8>) -> Outcome {
        self.client
            .publish_with_headers(subject.to_owned(), headers, body.into())
            .await?;
        Ok(())
    }

    fn hostile(&self) -> u64 {
        self.fleet
            .status()
            .ignored
            .iter()
            .map(|(_, times)| times)
            .sum()
    }

    /// What a true message of each channel looks like.
    async fn samples(&self) -> Result<Vec<Message>, Box<dyn Error>> {
        let raw = Raw::of(&self.client, &format!("{SOURCE}.*.>")).await;
        self.pod.requests.inc();
        self.pod.flap("a", 1)?;
        let all = until("a message of each channel", || {
            let all = raw.all();
            let has = |channel: &str| all.iter().any(|m| m.subject.contains(channel));
            (has(".m.") && has(".a.") && has(".s.")).then_some(all)
        })
        .await;
        Ok(all)
    }
}

fn headers(source: &str, epoch: &str, sequence: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("Metricbus-Source", source);
    headers.insert("Metricbus-Epoch", epoch);
    headers.insert("Metricbus-Sequence", sequence);
    headers
}

const SUBJECTS: [&str; 12] = [
    "m.all",
    "a.KvFull.firing",
    "a.KvFull.resolved",
    "s.birth",
    "s.heartbeat",
    "s.death",
    "m",
    "a.KvFull",
    "a.KvFull.burning",
    "s.resurrection",
    "x.y.z",
    "m.a.b.c",
];

async fn random_bytes_on_every_subject_are_counted_and_ignored(release: Release) -> Outcome {
    let scene = Scene::start(release).await?;
    let before = scene.hostile();
    let mut random = Random::new(7);
    for round in 0..1_000 {
        let subject = format!("{SOURCE}.{}", random.one_of(&SUBJECTS));
        let body: Vec<u8> = (0..random.below(300))
            .map(|_| random.bits() as u8)
            .collect();
        let headers = match round % 3 {
            0 => HeaderMap::new(),
            1 => headers("prod.decode.pod-1", "1", "1"),
            _ => headers(
                "prod.decode.pod-1",
                &random.bits().to_string(),
                &random.bits().to_string(),
            ),
        };
        scene.publish(&subject, headers, body).await?;
    }
    scene.goes_on(5).await?;
    until("all of it to be counted", || {
        (scene.hostile() > before + 500).then_some(())
    })
    .await;
    assert_eq!(scene.fleet.sources().len(), 1);
    Ok(())
}

async fn true_messages_with_a_byte_changed_harm_nobody(release: Release) -> Outcome {
    let scene = Scene::start(release).await?;
    let samples = scene.samples().await?;
    let mut random = Random::new(11);
    for _ in 0..1_000 {
        let sample = random.one_of(&samples);
        let mut body = sample.payload.to_vec();
        match random.below(3) {
            0 => body.truncate(random.below(body.len() + 1)),
            1 if !body.is_empty() => {
                let at = random.below(body.len());
                body[at] ^= 1 << random.below(8);
            }
            _ => body.extend((0..random.below(50)).map(|_| random.bits() as u8)),
        }
        // As old as the sample: what is left whole in it has long been said.
        let headers = sample.headers.clone().unwrap_or_default();
        // A death or a birth of this life would be believed, and rightly so.
        if !sample.subject.contains(".s.") {
            scene
                .publish(sample.subject.as_str(), headers, body)
                .await?;
        }
    }
    scene.goes_on(5).await
}

async fn messages_under_a_false_name_are_ignored(release: Release) -> Outcome {
    let scene = Scene::start(release).await?;
    let samples = scene.samples().await?;
    let before = scene.hostile();
    let mut counted = 0;
    for sample in &samples {
        let headers = sample.headers.clone().unwrap_or_default();
        // The true headers and body of pod-1, on the subject of somebody else.
        let subject = sample.subject.replace(".pod-1.", ".pod-2.");
        scene
            .publish(&subject, headers.clone(), sample.payload.to_vec())
            .await?;
        // The right subject, and somebody else in the headers.
        let mut headers = headers;
        headers.insert("Metricbus-Source", "prod.decode.pod-2");
        scene
            .publish(sample.subject.as_str(), headers, sample.payload.to_vec())
            .await?;
        counted += 2;
        // Subject and headers of pod-2, and pod-1 in the body. (A frame's is read when there is a snapshot of its source.)
        if sample.subject.contains(".m.") {
            continue;
        }
        counted += 1;
        let mut both = sample.headers.clone().unwrap_or_default();
        both.insert("Metricbus-Source", "prod.decode.pod-2");
        scene
            .publish(&subject, both, sample.payload.to_vec())
            .await?;
    }
    until("all of it to be counted", || {
        (scene.hostile() >= before + counted).then_some(())
    })
    .await;
    scene.goes_on(5).await?;
    let known: Vec<_> = scene
        .fleet
        .sources()
        .into_iter()
        .map(|s| s.source)
        .collect();
    assert_eq!(known, [source("pod-1")]);
    Ok(())
}

async fn sequences_that_jump_are_mended_and_epochs_beyond_reason_are_refused(
    release: Release,
) -> Outcome {
    let scene = Scene::start(release).await?;
    let samples = scene.samples().await?;
    let epoch = number(&samples[0], "Metricbus-Epoch");
    for sample in &samples {
        let body = || sample.payload.to_vec();
        for (epoch, sequence) in [
            (epoch.to_string(), "0".to_owned()),
            (epoch.to_string(), u64::MAX.to_string()),
            (epoch.to_string(), "-1".to_owned()),
            (u64::MAX.to_string(), "1".to_owned()),
            ("0".to_owned(), "1".to_owned()),
            ("1".to_owned(), "1".to_owned()),
            ("99999999999999999999999".to_owned(), "1".to_owned()),
            (String::new(), String::new()),
        ] {
            let headers = headers("prod.decode.pod-1", &epoch, &sequence);
            scene
                .publish(sample.subject.as_str(), headers, body())
                .await?;
        }
    }
    scene.goes_on(5).await?;
    // A frame that pretends that a million came before it: the fleet asks the source, and believes that.
    let frame = samples
        .iter()
        .find(|m| m.subject.contains(".m."))
        .ok_or("no frame")?;
    let far = number(frame, "Metricbus-Sequence") + 1_000_000;
    let headers = headers("prod.decode.pod-1", &epoch.to_string(), &far.to_string());
    scene
        .publish(frame.subject.as_str(), headers, frame.payload.to_vec())
        .await?;
    scene.goes_on(5).await
}

async fn giant_bodies_and_names_are_bounded(release: Release) -> Outcome {
    let scene = Scene::start(release).await?;
    let mut random = Random::new(13);
    for subject in SUBJECTS {
        let subject = format!("{SOURCE}.{subject}");
        for body in [
            vec![b'['; 1_000_000],
            vec![0xff; 1_000_000],
            (0..1_000_000).map(|_| random.bits() as u8).collect(),
            format!("{{\"a\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000)).into_bytes(),
            // Protobuf: a length that goes far beyond the end.
            vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0x7f],
        ] {
            scene
                .publish(&subject, headers("prod.decode.pod-1", "1", "1"), body)
                .await?;
        }
    }
    until_it_answers(&scene.client).await;
    let long = format!("metricbus.v1.{0}.{0}.{0}.s.heartbeat", "x".repeat(1_000));
    scene.publish(&long, HeaderMap::new(), Vec::new()).await?;
    scene.goes_on(5).await?;
    assert_eq!(scene.fleet.sources().len(), 1);
    Ok(())
}

/// A heartbeat of somebody who forwards frames and has said an alert.
fn heartbeat(instance: &str, interval_ms: u64) -> (String, HeaderMap, Vec<u8>) {
    let body = serde_json::json!({
        "version": 1,
        "state": "heartbeat",
        "source": { "namespace": "hostile", "component": "silent", "instance": instance },
        "epoch": 1_700_000_000_000_000_u64,
        "interval_ms": interval_ms,
        "frames": 1,
        "alerts": 1,
        "alerts_from": 1,
        "series": 1,
        "at": "2026-01-01T00:00:00Z",
        "metricbus": "0.1.0",
    });
    let subject = format!("metricbus.v1.hostile.silent.{instance}.s.heartbeat");
    let source = format!("hostile.silent.{instance}");
    let headers = headers(&source, "1700000000000000", "1");
    (subject, headers, body.to_string().into_bytes())
}

async fn thousands_that_do_not_answer_keep_nobody_waiting(release: Release) -> Outcome {
    let scene = Scene::start(release).await?;
    // Somebody listens to their questions, and so nobody says that they are not there.
    let questions = Raw::of(&scene.client, "metricbus.v1.hostile.silent.*.q.>").await;
    for i in 0..2_000 {
        let (subject, headers, body) = heartbeat(&format!("i{i}"), 3_600_000);
        scene.publish(&subject, headers, body).await?;
    }
    until_it_answers(&scene.client).await;
    until("all of them to be known", || {
        (scene.fleet.sources().len() == 2_001).then_some(())
    })
    .await;
    let late = source("late");
    let options = NatsOptions::new(&scene.server.url())?;
    let pod = Pod::with(options, late.clone(), |f| f.delivery(Delivery::Core)).await?;
    pod.requests.inc();
    pod.kv.with_label_values(&["late"])?.set(0.95);
    pod.until_same_on(scene.fleet.bus(), &late).await;
    until("the alert of the late one", || {
        let heard = scene.heard.all();
        let own = |alert: &metricbus::Alert| {
            let origin = alert.origin.as_ref();
            origin.is_some_and(|origin| origin.source == late)
        };
        heard.iter().any(own).then_some(())
    })
    .await;
    // They have been asked meanwhile, all of them.
    questions.until(4_000).await;
    Ok(())
}

async fn hostile_questions_are_answered_or_ignored_and_the_pod_goes_on(
    release: Release,
) -> Outcome {
    let scene = Scene::start(release).await?;
    let mut random = Random::new(17);
    for _ in 0..500 {
        let query = random.one_of(&[
            "info", "snapshot", "window", "rules", "alerts", "nothing", "a.b",
        ]);
        let mut body: Vec<u8> = (0..random.below(200))
            .map(|_| random.bits() as u8)
            .collect();
        if random.once_in(2) {
            body = random
                .one_of(&[
                    r#"{"selector":"{__name__=~\"(a*)*b\"}","width_ms":1000}"#,
                    r#"{"selector":"kv_usage_ratio","width_ms":18446744073709551615}"#,
                    r#"{"epoch":"18446744073709551615","from":1,"to":18446744073709551615}"#,
                    r#"{"selector":""}"#,
                    "null",
                    "[]",
                ])
                .as_bytes()
                .to_vec();
        }
        let subject = format!("{SOURCE}.q.{query}");
        let reply = random.one_of(&[
            "_INBOX.nobody",
            "metricbus.v1.prod.decode.pod-1.m.all",
            "a.*.b",
        ]);
        // An answer to a wildcard, or to a subject of the schema, must harm nobody either.
        let _ = scene
            .client
            .publish_with_reply(subject, (*reply).to_owned(), body.into())
            .await;
    }
    scene.goes_on(5).await?;
    // A thousand windows, each of another width: their number is bounded.
    for width in 0..1_000 {
        let body = format!(
            r#"{{"selector":"kv_usage_ratio","width_ms":{}}}"#,
            1_000 + width
        );
        scene
            .client
            .publish_with_reply(format!("{SOURCE}.q.window"), "_INBOX.nobody", body.into())
            .await?;
    }
    scene.goes_on(5).await
}

async fn a_flood_of_false_sources_is_bounded(release: Release) -> Outcome {
    let server = NatsServer::start(release);
    let client = server.client().await;
    let fleet = Fleet::builder(NatsOptions::new(&server.url())?)
        .sources_max(10)
        .start()
        .await?;
    let options = NatsOptions::new(&server.url())?;
    let pod = Pod::with(options, source("pod-1"), |f| f.delivery(Delivery::Core)).await?;
    until("the true source", || {
        (!fleet.sources().is_empty()).then_some(())
    })
    .await;
    for i in 0..1_000 {
        let id = format!("prod.decode.false-{i}");
        let body = format!(
            r#"{{"version":1,"state":"birth","source":{{"namespace":"prod","component":"decode","instance":"false-{i}"}},"epoch":"1","interval_ms":1000,"frames":"0","alerts":"0","alerts_from":"1","series":0,"at":"2026-01-01T00:00:00Z","metricbus":"0.1.0"}}"#
        );
        client
            .publish_with_headers(
                format!("metricbus.v1.{id}.s.birth"),
                headers(&id, "1", "0"),
                body.into(),
            )
            .await?;
    }
    pod.requests.inc();
    pod.until_same_on(fleet.bus(), &source("pod-1")).await;
    assert!(fleet.sources().len() <= 10);
    drop(server);
    Ok(())
}

/// Bytes of memory that this process has occupied at most.
fn peak() -> Result<usize, Box<dyn Error>> {
    let text = fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: usize = line
        .and_then(|line| line.trim().strip_suffix(" kB"))
        .ok_or("no peak")?
        .parse()?;
    Ok(kib << 10)
}

async fn many_questions_about_all_alerts_cost_little_memory(release: Release) -> Outcome {
    const QUESTIONS: usize = 60;
    const ALERTS: usize = 250;
    let server = NatsServer::start(release);
    let client = server.client().await;
    let options = NatsOptions::new(&server.url())?;
    let pod = Pod::with(options, source("pod-1"), |f| f.delivery(Delivery::Core)).await?;
    let long = Condition::when("queue_depth", Threshold::above(10.0));
    pod.bus
        .add_rule(Rule::new("QueueLong", long).annotation("runbook", "x".repeat(8 << 10)))?;
    for _ in 0..ALERTS / 2 {
        pod.queue.set(11.0);
        pod.queue.set(1.0);
    }
    pod.flush().await;
    let body = format!(
        r#"{{"epoch":{},"from":1,"to":1000000}}"#,
        pod.forwarder.status().boot
    );
    let subject = format!("{SOURCE}.q.alerts");
    assert_eq!(ask(&client, &subject, &body).await.len(), ALERTS);
    let before = peak()?;
    for _ in 0..QUESTIONS {
        let nobody = client.new_inbox();
        client
            .publish_with_reply(subject.clone(), nobody, body.clone().into())
            .await?;
    }
    // In turn: when this one is answered, so are they.
    let last = ask(&client, &subject, &body).await;
    assert_eq!(last.len(), ALERTS);
    let grown = peak()? - before;
    let all = QUESTIONS * ALERTS * (8 << 10);
    assert!(grown < all / 2, "{grown} of {all} bytes");
    Ok(())
}

on_each_server!(
    random_bytes_on_every_subject_are_counted_and_ignored,
    true_messages_with_a_byte_changed_harm_nobody,
    messages_under_a_false_name_are_ignored,
    sequences_that_jump_are_mended_and_epochs_beyond_reason_are_refused,
    giant_bodies_and_names_are_bounded,
    thousands_that_do_not_answer_keep_nobody_waiting,
    hostile_questions_are_answered_or_ignored_and_the_pod_goes_on,
    a_flood_of_false_sources_is_bounded,
    many_questions_about_all_alerts_cost_little_memory,
);
