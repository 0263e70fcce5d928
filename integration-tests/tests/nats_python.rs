//! A consumer in Python that knows nothing of metricbus: nats-py, json and opentelemetry-proto understand what is sent.

use std::{collections::BTreeMap, error::Error, process::Command, time::Duration};

use metricbus::nats::{Delivery, NatsOptions};
use metricbus_integration_tests::{
    nats::{NatsServer, Outcome, Pod, Release, source},
    on_each_server, parts,
    process::Conversation,
};
use serde_json::Value;

/// The consumer of `python/consumer.py`.
struct Consumer(Conversation);

impl Consumer {
    /// `None` if there is no Python with nats-py here.
    async fn start(url: &str) -> Result<Option<Consumer>, Box<dyn Error>> {
        let Some(python) = parts::python() else {
            return Ok(None);
        };
        let mut command = Command::new(python);
        command
            .arg(parts::checkout().join("integration-tests/python/consumer.py"))
            .arg(url);
        let mut consumer = Consumer(Conversation::start(&mut command)?);
        consumer.until("ready", |_| Some(())).await?;
        Ok(Some(consumer))
    }

    /// The first of what it hears from now on that is of this kind and is what is wanted.
    async fn until<T>(
        &mut self,
        kind: &str,
        wanted: impl Fn(&Value) -> Option<T>,
    ) -> Result<T, Box<dyn Error>> {
        loop {
            let line = self.0.hear().await.ok_or("the consumer ended")?;
            let heard: Value =
                serde_json::from_str(&line).map_err(|why| format!("{why}: {line}"))?;
            if heard["kind"] == kind
                && let Some(wanted) = wanted(&heard)
            {
                return Ok(wanted);
            }
        }
    }
}

async fn pod(server: &NatsServer) -> Result<Pod, Box<dyn Error>> {
    let options = NatsOptions::new(&server.url())?;
    Pod::with(options, source("pod-1"), |f| f.delivery(Delivery::Core)).await
}

/// The metrics of a frame, by scope and name.
fn metrics(frame: &Value) -> BTreeMap<(String, String), Value> {
    let mut metrics = BTreeMap::new();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    for resource in list(&frame["resourceMetrics"]) {
        for scope in list(&resource["scopeMetrics"]) {
            for metric in list(&scope["metrics"]) {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                metrics.insert(
                    (text(&scope["scope"]["name"]), text(&metric["name"])),
                    metric,
                );
            }
        }
    }
    metrics
}

async fn alerts_are_read_as_cloudevents(release: Release) -> Outcome {
    let server = NatsServer::start(release);
    let Some(mut consumer) = Consumer::start(&server.url()).await? else {
        return Ok(());
    };
    let pod = pod(&server).await?;
    pod.flap("a", 1)?;
    for (state, value) in [("firing", 0.95), ("resolved", 0.5)] {
        let alert = consumer.until("alert", |heard| Some(heard.clone())).await?;
        let event = &alert["event"];
        assert_eq!(
            event["type"],
            format!("io.metricbus.alert.{state}"),
            "{alert}"
        );
        assert_eq!(event["data"]["rule"], "KvFull", "{alert}");
        assert_eq!(event["data"]["value"], value, "{alert}");
        assert_eq!(event["data"]["group"]["worker"], "a", "{alert}");
        assert_eq!(event["id"], alert["headers"]["Nats-Msg-Id"], "{alert}");
    }
    Ok(())
}

async fn frames_are_read_as_opentelemetry_metrics(release: Release) -> Outcome {
    let server = NatsServer::start(release);
    let Some(mut consumer) = Consumer::start(&server.url()).await? else {
        return Ok(());
    };
    let pod = pod(&server).await?;
    pod.requests.inc_by(41);
    pod.requests.inc();
    pod.queue.set(f64::NAN);
    pod.kv.with_label_values(&["a"])?.set(0.5);
    for seconds in [0.05, 0.15, 0.3, 7.0] {
        pod.latency.observe(seconds);
    }
    // Values are absolute and frames conflate: the last word on each, whatever frame it came in.
    let mut latest: BTreeMap<(String, String), Value> = BTreeMap::new();
    let is_there = |latest: &BTreeMap<(String, String), Value>| {
        let of = |scope: &str, name: &str| latest.get(&(scope.to_owned(), name.to_owned()));
        let ours = |name: &str| of("metricbus", name);
        Some((
            ours("requests_total")
                .filter(|m| m["sum"]["dataPoints"][0]["asInt"] == "42")?
                .clone(),
            ours("kv_usage_ratio")?.clone(),
            ours("queue_depth")?.clone(),
            ours("latency_seconds")
                .filter(|m| m["histogram"]["dataPoints"][0]["count"] == "4")?
                .clone(),
            of("metricbus.exponential", "latency_seconds")
                .filter(|m| m["exponentialHistogram"]["dataPoints"][0]["count"] == "4")?
                .clone(),
        ))
    };
    let mut resource = Value::Null;
    let (requests, kv, queue, latency, exponential) = loop {
        if let Some(all) = is_there(&latest) {
            break all;
        }
        let frame = consumer
            .until("frame", |heard| Some(heard["frame"].clone()))
            .await?;
        resource = frame["resourceMetrics"][0]["resource"].clone();
        latest.extend(metrics(&frame));
    };
    let resource = resource.to_string();
    for part in [
        "service.namespace",
        "prod",
        "service.name",
        "decode",
        "service.instance.id",
        "pod-1",
    ] {
        assert!(resource.contains(part), "{part}: {resource}");
    }
    assert_eq!(requests["sum"]["isMonotonic"], true, "{requests}");
    assert_eq!(
        requests["sum"]["aggregationTemporality"],
        "AGGREGATION_TEMPORALITY_CUMULATIVE"
    );
    assert_eq!(requests["description"], "Requests served.");
    let point = &kv["gauge"]["dataPoints"][0];
    assert_eq!(point["asDouble"], 0.5, "{kv}");
    assert_eq!(point["attributes"][0]["key"], "worker", "{kv}");
    assert_eq!(point["attributes"][0]["value"]["stringValue"], "a", "{kv}");
    assert_eq!(
        queue["gauge"]["dataPoints"][0]["asDouble"], "NaN",
        "{queue}"
    );
    let point = &latency["histogram"]["dataPoints"][0];
    assert_eq!(
        point["explicitBounds"],
        serde_json::json!([0.1, 0.2, 0.4, 0.8]),
        "{latency}"
    );
    assert_eq!(
        point["bucketCounts"],
        serde_json::json!(["1", "1", "1", "0", "1"]),
        "{latency}"
    );
    assert_eq!(point["sum"], 7.5, "{latency}");
    let point = &exponential["exponentialHistogram"]["dataPoints"][0];
    assert_eq!(point["scale"], 5, "{exponential}");
    Ok(())
}

async fn services_and_questions_are_answered(release: Release) -> Outcome {
    let server = NatsServer::start(release);
    let Some(mut consumer) = Consumer::start(&server.url()).await? else {
        return Ok(());
    };
    let pod = pod(&server).await?;
    pod.requests.inc_by(5);
    // It answers when it has said that it lives.
    consumer.until("pulse", |_| Some(())).await?;
    consumer.0.say("services INFO")?;
    let services = consumer
        .until("services", |heard| Some(heard["answers"].clone()))
        .await?;
    assert_eq!(services[0]["name"], "metricbus", "{services}");
    consumer
        .0
        .say("request metricbus.v1.prod.decode.pod-1.q.snapshot")?;
    let snapshot = consumer
        .until("answer", |heard| Some(heard["frame"].clone()))
        .await?;
    let requests = &metrics(&snapshot)[&("metricbus".to_owned(), "requests_total".to_owned())];
    assert_eq!(requests["sum"]["dataPoints"][0]["asInt"], "5", "{snapshot}");
    tokio::time::timeout(Duration::from_secs(30), consumer.0.end()).await??;
    Ok(())
}

on_each_server!(
    alerts_are_read_as_cloudevents,
    frames_are_read_as_opentelemetry_metrics,
    services_and_questions_are_answered,
);
