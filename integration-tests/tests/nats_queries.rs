//! What a source answers to those who ask, metricbus or not: pulse, snapshot, window, rules, alerts, and the service API
//! of NATS.

use std::{error::Error, time::Duration};

use async_nats::Client;
use metricbus::{
    SourceId,
    nats::{Delivery, Fleet, NatsOptions},
};
use metricbus_integration_tests::{
    nats::{
        NatsServer, Outcome, Pod, Raw, Release,
        raw::{ask, header, json, number},
        source, until, until_async, until_it_answers,
    },
    on_each_server,
};

async fn pod(server: &NatsServer, id: SourceId) -> Result<Pod, Box<dyn Error>> {
    Pod::with(NatsOptions::new(&server.url())?, id, |f| {
        f.delivery(Delivery::Core)
    })
    .await
}

/// Asks the one source of these tests, as soon as it is there to be asked.
async fn ask_pod(client: &Client, query: &str, body: &str) -> Vec<async_nats::Message> {
    let subject = format!("metricbus.v1.prod.decode.pod-1.q.{query}");
    until_async("the source to be there", || async {
        client
            .request(subject.clone(), body.to_owned().into())
            .await
            .ok()
    })
    .await;
    ask(client, &subject, body).await
}

async fn info_and_hello_answer_with_a_pulse(release: Release) -> Outcome {
    let server = NatsServer::start(release);
    let client = server.client().await;
    let _one = pod(&server, source("pod-1")).await?;
    let _two = pod(&server, source("pod-2")).await?;
    let info = json(&ask_pod(&client, "info", "").await[0]);
    assert_eq!(info["source"]["namespace"], "prod", "{info}");
    assert_eq!(info["source"]["instance"], "pod-1", "{info}");
    assert_eq!(info["version"], 1, "{info}");
    assert_eq!(info["interval_ms"], 100, "{info}");

    let inbox = client.new_inbox();
    let answers = Raw::of(&client, &inbox).await;
    client
        .publish_with_reply("metricbus.v1.hello", inbox, "".into())
        .await?;
    let answers = answers.until(2).await;
    let mut instances: Vec<String> = answers
        .iter()
        .filter_map(|answer| {
            json(answer)["source"]["instance"]
                .as_str()
                .map(str::to_owned)
        })
        .collect();
    instances.sort();
    assert_eq!(instances, ["pod-1", "pod-2"]);
    Ok(())
}

async fn a_snapshot_is_there_for_machines_and_for_people(release: Release) -> Outcome {
    let server = NatsServer::start(release);
    let client = server.client().await;
    let pod = pod(&server, source("pod-1")).await?;
    pod.requests.inc_by(5);
    pod.kv.with_label_values(&["a"])?.set(0.5);
    let parts = ask_pod(&client, "snapshot", "").await;
    let content = header(&parts[0], "Content-Type");
    assert!(content.starts_with("application/x-protobuf"), "{content}");
    assert_eq!(
        header(&parts[0], "Metricbus-Part"),
        format!("1/{}", parts.len())
    );

    let people = ask_pod(&client, "snapshot", r#"{"format":"json"}"#).await;
    let text: String = people.iter().map(|part| json(part).to_string()).collect();
    for word in ["requests_total", "kv_usage_ratio", "latency_seconds", "0.5"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    let some = r#"{"format":"json","selector":"kv_usage_ratio{worker=\"a\"}"}"#;
    let text = json(&ask_pod(&client, "snapshot", some).await[0]).to_string();
    assert!(
        text.contains("kv_usage_ratio") && !text.contains("requests_total"),
        "{text}"
    );
    Ok(())
}

async fn rules_are_shown_with_their_states(release: Release) -> Outcome {
    let server = NatsServer::start(release);
    let client = server.client().await;
    let pod = pod(&server, source("pod-1")).await?;
    pod.kv.with_label_values(&["a"])?.set(0.95);
    let rules = json(&ask_pod(&client, "rules", "").await[0]).to_string();
    assert!(
        rules.contains("KvFull") && rules.contains("firing"),
        "{rules}"
    );
    Ok(())
}

async fn alerts_can_be_asked_for_again(release: Release) -> Outcome {
    let server = NatsServer::start(release);
    let client = server.client().await;
    let raw = Raw::of(&client, "metricbus.v1.*.*.*.a.>").await;
    let pod = pod(&server, source("pod-1")).await?;
    pod.flap("a", 5)?;
    pod.flush().await;
    let sent = raw.until(10).await;
    let epoch = number(&sent[0], "Metricbus-Epoch");
    let body = format!(r#"{{"epoch":{epoch},"from":3,"to":7}}"#);
    let again = ask_pod(&client, "alerts", &body).await;
    assert_eq!(again.len(), 5);
    for (again, sent) in again.iter().zip(&sent[2..7]) {
        assert_eq!(again.payload, sent.payload);
        assert_eq!(header(again, "Nats-Msg-Id"), header(sent, "Nats-Msg-Id"));
        assert_eq!(number(again, "Metricbus-Alerts-From"), 1);
    }
    Ok(())
}

async fn alerts_are_told_a_thousand_at_a_time(release: Release) -> Outcome {
    let server = NatsServer::start(release);
    let client = server.client().await;
    let pod = pod(&server, source("pod-1")).await?;
    pod.flap("a", 600)?;
    pod.flush().await;
    let info = ask_pod(&client, "info", "").await;
    let epoch = number(&info[0], "Metricbus-Epoch");
    for (from, first, last) in [(1, 1, 1000), (101, 101, 1100), (1001, 1001, 1200)] {
        let body = format!(r#"{{"epoch":{epoch},"from":{from},"to":9223372036854775807}}"#);
        let told = ask_pod(&client, "alerts", &body).await;
        let told: Vec<u64> = told
            .iter()
            .map(|part| number(part, "Metricbus-Sequence"))
            .collect();
        let expected: Vec<u64> = (first..=last).collect();
        assert_eq!(told, expected, "from {from}");
    }
    Ok(())
}

async fn a_question_that_is_none_is_answered_with_what_is_wrong(release: Release) -> Outcome {
    let server = NatsServer::start(release);
    let client = server.client().await;
    let _pod = pod(&server, source("pod-1")).await?;
    let wrong = [
        ("snapshot", "no json"),
        ("snapshot", r#"{"selector":"{"}"#),
        ("window", ""),
        ("window", r#"{"selector":"kv_usage_ratio","width_ms":-1}"#),
        (
            "window",
            r#"{"selector":"kv_usage_ratio","width_ms":99999999999999999999}"#,
        ),
        ("alerts", r#"{"epoch":1}"#),
        ("alerts", r#"{"epoch":1,"from":7,"to":3}"#),
    ];
    for (query, body) in wrong {
        let answer = ask_pod(&client, query, body).await;
        assert_eq!(
            header(&answer[0], "Nats-Service-Error-Code"),
            "400",
            "{query} {body}"
        );
        let why = header(&answer[0], "Nats-Service-Error");
        assert!(why.len() > 10, "{query} {body}: {why:?}");
    }
    Ok(())
}

async fn the_service_api_lists_every_source_once(release: Release) -> Outcome {
    let server = NatsServer::start(release);
    let client = server.client().await;
    let _one = pod(&server, source("pod-1")).await?;
    let _two = pod(&server, source("pod-2")).await?;
    ask_pod(&client, "info", "").await;
    for verb in ["PING", "INFO", "STATS"] {
        let services = until_async("both services", || async {
            let inbox = client.new_inbox();
            let answers = Raw::of(&client, &inbox).await;
            client
                .publish_with_reply(format!("$SRV.{verb}"), inbox, "".into())
                .await
                .ok()?;
            // An answer of the server's own to this client: by then those of the services have had their time.
            until_it_answers(&client).await;
            let answers = answers.all();
            (answers.len() >= 2).then_some(answers)
        })
        .await;
        assert_eq!(services.len(), 2, "{services:?}");
        for service in services {
            let service = json(&service);
            assert_eq!(service["name"], "metricbus", "{service}");
            if verb != "STATS" {
                let about = service["metadata"].to_string();
                assert!(
                    about.contains("decode") && about.contains("pod-"),
                    "{service}"
                );
            }
            if verb != "PING" {
                let endpoints = service["endpoints"].to_string();
                for query in ["info", "snapshot", "window", "rules", "alerts"] {
                    assert!(endpoints.contains(query), "{service}");
                }
            }
        }
    }
    Ok(())
}

async fn windows_of_many_pods_merge_without_loss(release: Release) -> Outcome {
    const WIDTH: Duration = Duration::from_secs(30);
    let server = NatsServer::start(release);
    let fleet = Fleet::builder(NatsOptions::new(&server.url())?)
        .start()
        .await?;
    let mut pods = Vec::new();
    for i in 0..3 {
        pods.push(pod(&server, source(&format!("pod-{i}"))).await?);
    }
    until("all sources", || (fleet.sources().len() == 3).then_some(())).await;
    // The first question opens the windows.
    let first = fleet.window("latency_seconds", WIDTH).await?;
    assert_eq!((first.asked, first.answered), (3, 3), "{first:?}");
    assert_eq!(first.stats.count, 0, "{first:?}");
    // A window of the same width over all of it, without pods.
    let whole = metricbus::MetricBus::new();
    let latency = whole.histogram(
        "latency_seconds",
        "Time to answer.",
        metricbus::Buckets::new([0.1, 0.2, 0.4, 0.8])?,
    )?;
    let window = whole.window("latency_seconds", WIDTH)?;
    for i in 0..3_000_u32 {
        let seconds = 0.001 * f64::from(i % 997);
        pods[i as usize % 3].latency.observe(seconds);
        latency.observe(seconds);
    }
    let merged = until_async("all observations", || async {
        let merged = fleet.window("latency_seconds", WIDTH).await.ok()?;
        (merged.stats.count == 3_000).then_some(merged)
    })
    .await;
    let wanted = window.stats();
    assert_eq!(merged.stats.count, wanted.count);
    assert_eq!(merged.stats.min, wanted.min);
    assert_eq!(merged.stats.max, wanted.max);
    for q in [0.01, 0.5, 0.9, 0.99] {
        assert_eq!(merged.stats.quantile(q), wanted.quantile(q), "{q}");
    }
    let (sum, exact) = (merged.stats.sum.unwrap_or(0.0), wanted.sum.unwrap_or(0.0));
    assert!((sum - exact).abs() < 1e-6, "{sum} {exact}");
    assert_eq!(
        (merged.asked, merged.answered, merged.is_complete()),
        (3, 3, true),
        "{merged:?}"
    );
    assert_eq!(merged.each.len(), 3, "{merged:?}");
    Ok(())
}

async fn a_fleet_asks_one_source_for_its_snapshot_and_its_rules(release: Release) -> Outcome {
    let server = NatsServer::start(release);
    let fleet = Fleet::builder(NatsOptions::new(&server.url())?)
        .start()
        .await?;
    let id = source("pod-1");
    let pod = pod(&server, id.clone()).await?;
    pod.requests.inc_by(5);
    until("the source", || (fleet.sources().len() == 1).then_some(())).await;
    let snapshot = fleet.snapshot(&id, "requests_total").await?;
    assert_eq!(snapshot.families.len(), 1, "{snapshot:?}");
    assert_eq!(snapshot.families[0].name, "requests_total");
    let rules = fleet.rules_of(&id).await?;
    assert!(format!("{rules:?}").contains("KvFull"), "{rules:?}");
    let nobody = source("nobody");
    let error = fleet
        .snapshot(&nobody, "requests_total")
        .await
        .err()
        .ok_or("no error")?;
    assert!(error.to_string().contains("nobody"), "{error}");
    Ok(())
}

on_each_server!(
    info_and_hello_answer_with_a_pulse,
    a_snapshot_is_there_for_machines_and_for_people,
    rules_are_shown_with_their_states,
    alerts_can_be_asked_for_again,
    alerts_are_told_a_thousand_at_a_time,
    a_question_that_is_none_is_answered_with_what_is_wrong,
    the_service_api_lists_every_source_once,
    windows_of_many_pods_merge_without_loss,
    a_fleet_asks_one_source_for_its_snapshot_and_its_rules,
);
