//! Rules that a planner sends to the pods: kept in a KV bucket, evaluated at each source, so that transitions travel alone.

use std::error::Error;

use async_nats::jetstream::kv::Operation;
use metricbus::{
    Condition, Rule, SourceId, Threshold,
    nats::{Delivery, Fleet, NatsOptions, RuleTarget, RulesInState},
};
use metricbus_integration_tests::{
    nats::{NatsServer, Outcome, Pod, Raw, Release, Told, source, until, until_async},
    on_each_server,
};

const BUCKET: &str = "metricbus-rules";

async fn pod(server: &NatsServer, id: SourceId) -> Result<Pod, Box<dyn Error>> {
    Pod::with(NatsOptions::new(&server.url())?, id, |f| {
        f.delivery(Delivery::Core).rules_from(BUCKET)
    })
    .await
}

async fn planner(server: &NatsServer) -> Result<(Fleet, Told), Box<dyn Error>> {
    let fleet = Fleet::builder(NatsOptions::new(&server.url())?)
        .rules_bucket(BUCKET)
        .start()
        .await?;
    let heard = Told::of(fleet.on_alert())?;
    Ok((fleet, heard))
}

fn deep(name: &str, bound: f64) -> Rule {
    Rule::new(
        name,
        Condition::when("queue_depth", Threshold::above(bound)),
    )
}

/// Sends a rule, and sees it written.
async fn send(fleet: &Fleet, target: RuleTarget, rule: Rule) -> Outcome {
    let sent = fleet.send_rule(target, rule).await?;
    assert!(sent.written, "{sent:?}");
    Ok(())
}

/// Sends a rule after the server was away: it is written when the planner is connected again.
async fn send_in_time(fleet: &Fleet, target: RuleTarget, rule: Rule) -> Outcome {
    fleet.send_rule(target, rule).await?;
    until("it to be written", || {
        (fleet.status().rules_unwritten == 0).then_some(())
    })
    .await;
    Ok(())
}

/// Whether a pod's bus has a rule.
async fn until_it_has(pod: &Pod, rule: &str) {
    until(&format!("the pod to have {rule}"), || pod.bus.rule(rule)).await;
}

async fn a_rule_is_sent_to_the_pods_evaluated_there_and_retracted(release: Release) -> Outcome {
    let server = NatsServer::jetstream(release);
    let (fleet, heard) = planner(&server).await?;
    let ours = pod(&server, source("pod-1")).await?;
    let other = pod(&server, SourceId::new("prod", "prefill", "pod-2")).await?;
    let target = || RuleTarget::component("prod", "decode");
    send(&fleet, target(), deep("Deep", 10.0)).await?;
    until_it_has(&ours, "Deep").await;
    let sent = fleet.sent_rules().await?;
    assert_eq!(sent.len(), 1, "{sent:?}");

    // Only the transition travels: its pod forwards no such series.
    ours.queue.set(11.0);
    let alert = until("the transition", || heard.all().into_iter().next()).await;
    assert_eq!((&*alert.rule, alert.value), ("Deep", Some(11.0)));
    assert_eq!(
        alert.origin.as_ref().map(|o| &o.source),
        Some(&source("pod-1"))
    );

    // Sent again with another bound it is the same rule, changed.
    send(&fleet, target(), deep("Deep", 20.0)).await?;
    until("the rule to be changed", || {
        (heard.count() == 2).then_some(())
    })
    .await;
    assert!(!heard.all()[1].is_firing());

    // A pod that comes later has it, too.
    let late = pod(&server, source("pod-3")).await?;
    until_it_has(&late, "Deep").await;

    fleet.retract_rule(target(), "Deep").await?;
    until("the pods to have lost it", || {
        (ours.bus.rule("Deep").is_none() && late.bus.rule("Deep").is_none()).then_some(())
    })
    .await;
    assert!(fleet.sent_rules().await?.is_empty());
    assert!(other.bus.rule("Deep").is_none(), "it was not for that one");
    Ok(())
}

async fn a_rule_for_everybody_reaches_everybody(release: Release) -> Outcome {
    let server = NatsServer::jetstream(release);
    let (fleet, _heard) = planner(&server).await?;
    let pods = [
        pod(&server, source("pod-1")).await?,
        pod(&server, SourceId::new("prod", "prefill", "pod-2")).await?,
        pod(&server, SourceId::new("test", "decode", "pod-3")).await?,
    ];
    send(&fleet, RuleTarget::all(), deep("Deep", 10.0)).await?;
    for pod in &pods {
        until_it_has(pod, "Deep").await;
    }
    Ok(())
}

async fn a_rule_that_a_pod_refuses_is_reported_with_the_reason(release: Release) -> Outcome {
    let server = NatsServer::jetstream(release);
    let (fleet, _heard) = planner(&server).await?;
    let id = source("pod-1");
    let pod = pod(&server, id.clone()).await?;
    until("the source", || (!fleet.sources().is_empty()).then_some(())).await;
    // The pod has a rule of this name itself, and that one stays.
    let target = RuleTarget::component("prod", "decode");
    send(&fleet, target, deep("KvFull", 10.0)).await?;
    until_async("the refusal", || async {
        let rules = format!("{:?}", fleet.rules_of(&id).await.ok()?);
        (rules.contains("refused") && rules.contains("KvFull")).then_some(())
    })
    .await;
    pod.flap("a", 1)?;
    until("the pod's own rule to fire", || {
        (pod.told.count() == 2).then_some(())
    })
    .await;
    Ok(())
}

async fn bytes_in_the_bucket_that_are_no_rule_harm_nobody(release: Release) -> Outcome {
    let server = NatsServer::jetstream(release);
    let (fleet, _heard) = planner(&server).await?;
    let id = source("pod-1");
    let target = || RuleTarget::component("prod", "decode");
    send(&fleet, target(), deep("Deep", 10.0)).await?;
    let context = async_nats::jetstream::new(server.client().await);
    let bucket = context.get_key_value(BUCKET).await?;
    for (key, value) in [
        ("prod.decode.Junk", "no json"),
        ("prod.decode.Empty", "{}"),
        ("prod.decode.Other", r#"{"name":"AnotherName"}"#),
        ("prod.decode", "{}"),
        ("strange", "{}"),
        ("prod.decode.a.b.c", "{}"),
        ("=all.=all.=41", "{}"),
    ] {
        bucket.put(key, value.into()).await?;
    }
    bucket
        .put("prod.decode.Long", "[".repeat(100_000).into())
        .await?;
    let pod = pod(&server, id.clone()).await?;
    until_it_has(&pod, "Deep").await;
    until_async("the refusals", || async {
        let rules = format!("{:?}", fleet.rules_of(&id).await.ok()?);
        ["Junk", "Empty", "Other", "Long"]
            .iter()
            .all(|name| rules.contains(name))
            .then_some(())
    })
    .await;
    // What is right is still taken, and who made the bucket dirty can clean it.
    send(&fleet, target(), deep("Deeper", 20.0)).await?;
    until_it_has(&pod, "Deeper").await;
    bucket.purge("prod.decode.Junk").await?;
    until_async("the refusal to be forgotten", || async {
        let rules = format!("{:?}", fleet.rules_of(&id).await.ok()?);
        (!rules.contains("Junk")).then_some(())
    })
    .await;
    Ok(())
}

async fn a_pod_that_did_not_ask_for_rules_takes_none(release: Release) -> Outcome {
    let server = NatsServer::jetstream(release);
    let (fleet, _heard) = planner(&server).await?;
    let closed = Pod::with(NatsOptions::new(&server.url())?, source("pod-1"), |f| f).await?;
    let open = pod(&server, source("pod-2")).await?;
    send(&fleet, RuleTarget::all(), deep("Deep", 10.0)).await?;
    until_it_has(&open, "Deep").await;
    assert!(closed.bus.rule("Deep").is_none());
    Ok(())
}

async fn rules_stay_through_a_restart_of_the_server_and_follow_what_was_changed(
    release: Release,
) -> Outcome {
    let mut server = NatsServer::jetstream(release);
    let (fleet, heard) = planner(&server).await?;
    let pod = pod(&server, source("pod-1")).await?;
    let target = || RuleTarget::component("prod", "decode");
    send(&fleet, target(), deep("Deep", 10.0)).await?;
    send(&fleet, target(), deep("Gone", 10.0)).await?;
    until_it_has(&pod, "Deep").await;
    until_it_has(&pod, "Gone").await;
    server.kill();
    // Evaluated at the source, with or without a server.
    pod.queue.set(11.0);
    until("both rules to fire", || {
        (pod.told.count() == 2).then_some(())
    })
    .await;
    server.restart();
    fleet.retract_rule(target(), "Gone").await?;
    until("the pod to have lost it", || {
        pod.bus.rule("Gone").is_none().then_some(())
    })
    .await;
    assert!(pod.bus.rule("Deep").is_some());
    until("all transitions", || (heard.count() >= 3).then_some(())).await;
    Ok(())
}

/// Whether the pod has these of the rules that were sent, and no others.
async fn until_it_has_only(pod: &Pod, rules: &[&str]) {
    until(&format!("the pod to have {rules:?} only"), || {
        let mut own: Vec<_> = pod
            .bus
            .rules()
            .iter()
            .map(|r| r.name().to_owned())
            .collect();
        own.retain(|name| name != metricbus_integration_tests::nats::pod::RULE);
        own.sort();
        (own == rules).then_some(())
    })
    .await;
}

async fn a_rule_that_is_taken_back_ends_also_where_its_bucket_was_lost(
    release: Release,
) -> Outcome {
    let mut server = NatsServer::jetstream(release);
    let (fleet, _heard) = planner(&server).await?;
    let pod = pod(&server, source("pod-1")).await?;
    let target = || RuleTarget::component("prod", "decode");
    send(&fleet, target(), deep("Deep", 10.0)).await?;
    send(&fleet, target(), deep("Kept", 10.0)).await?;
    until_it_has_only(&pod, &["Deep", "Kept"]).await;
    drop(fleet);
    server.restart_without_store();
    // Who comes after that knows of nothing.
    let (fleet, _heard) = planner(&server).await?;
    let taken_back = fleet.retract_rule(target(), "Deep").await?;
    assert!(taken_back.written, "{taken_back:?}");
    until_it_has_only(&pod, &["Kept"]).await;
    // What was taken back stays so, should that be lost as well.
    let late = self::pod(&server, source("pod-2")).await?;
    server.restart_without_store();
    send_in_time(&fleet, target(), deep("New", 10.0)).await?;
    until_it_has_only(&pod, &["Kept", "New"]).await;
    until_it_has_only(&late, &["New"]).await;
    until_async("the planner to say the same again", || async {
        let context = async_nats::jetstream::new(server.client().await);
        let bucket = context.get_key_value(BUCKET).await.ok()?;
        let entry = bucket.entry("prod.decode.Deep").await.ok()??;
        (entry.operation == Operation::Delete).then_some(())
    })
    .await;
    Ok(())
}

async fn pods_and_planner_agree_after_a_bucket_was_restored(release: Release) -> Outcome {
    let mut server = NatsServer::jetstream(release);
    let (fleet, _heard) = planner(&server).await?;
    let pod = pod(&server, source("pod-1")).await?;
    let target = || RuleTarget::component("prod", "decode");
    send(&fleet, target(), deep("Changed", 10.0)).await?;
    send(&fleet, target(), deep("TakenBack", 10.0)).await?;
    until_it_has_only(&pod, &["Changed", "TakenBack"]).await;
    let backup = server.back_up();
    server.restart();
    send_in_time(&fleet, target(), deep("Changed", 20.0)).await?;
    send(&fleet, target(), deep("Later", 10.0)).await?;
    assert!(fleet.retract_rule(target(), "TakenBack").await?.written);
    until_it_has_only(&pod, &["Changed", "Later"]).await;

    server.restart_from(&backup);
    until_async("the bucket to be as the planner wants it", || async {
        let sent = fleet.sent_rules().await.ok()?;
        let names: Vec<_> = sent.iter().map(|sent| &*sent.name).collect();
        let written = sent.iter().all(|sent| sent.written);
        (names == ["Changed", "Later"] && written).then_some(())
    })
    .await;
    until_it_has_only(&pod, &["Changed", "Later"]).await;
    let bound = |rule: metricbus::LiveRule| rule.status().thresholds[0].raise;
    until("the bound to be the later one", || {
        (pod.bus.rule("Changed").map(bound) == Some(20.0)).then_some(())
    })
    .await;
    Ok(())
}

async fn a_bucket_that_is_deleted_and_made_again_unheard_gets_its_rules_back(
    release: Release,
) -> Outcome {
    let server = NatsServer::jetstream(release);
    let (fleet, _heard) = planner(&server).await?;
    let pod = pod(&server, source("pod-1")).await?;
    let target = || RuleTarget::component("prod", "decode");
    send(&fleet, target(), deep("Deep", 10.0)).await?;
    send(&fleet, target(), deep("TakenBack", 10.0)).await?;
    until_it_has_only(&pod, &["Deep", "TakenBack"]).await;
    let context = async_nats::jetstream::new(server.client().await);
    let old = context.get_stream(format!("KV_{BUCKET}")).await?;
    let config = old.cached_info().config.clone();
    context.delete_stream(&config.name).await?;
    context.create_stream(config).await?;
    assert!(fleet.retract_rule(target(), "TakenBack").await?.written);
    let bucket = context.get_key_value(BUCKET).await?;
    until_async("the planner to write what is missing", || async {
        bucket.get("prod.decode.Deep").await.ok()?
    })
    .await;
    until_it_has_only(&pod, &["Deep"]).await;
    Ok(())
}

async fn what_is_purged_ends_and_the_planner_does_not_bring_it_back(release: Release) -> Outcome {
    let mut server = NatsServer::jetstream(release);
    let (fleet, _heard) = planner(&server).await?;
    let pod = pod(&server, source("pod-1")).await?;
    send(&fleet, RuleTarget::all(), deep("Deep", 10.0)).await?;
    until_it_has_only(&pod, &["Deep"]).await;
    let context = async_nats::jetstream::new(server.client().await);
    context
        .get_stream(format!("KV_{BUCKET}"))
        .await?
        .purge()
        .await?;
    // Whoever reads it anew sees it; else that takes some seconds.
    server.stop();
    server.restart();
    until_it_has_only(&pod, &[]).await;
    until_async("the planner to know", || async {
        fleet.sent_rules().await.ok()?.is_empty().then_some(())
    })
    .await;
    send_in_time(&fleet, RuleTarget::all(), deep("Deep", 20.0)).await?;
    until_it_has_only(&pod, &["Deep"]).await;
    Ok(())
}

async fn a_rule_whose_key_expires_ends(release: Release) -> Outcome {
    let server = NatsServer::jetstream(release);
    let context = async_nats::jetstream::new(server.client().await);
    let json = r#"{"name":"Deep","when":{"value":"queue_depth","above":10.0}}"#;
    let config = |name: &str| {
        serde_json::json!({
            "name": format!("KV_{name}"),
            "subjects": [format!("$KV.{name}.>")],
            "max_msgs_per_subject": 1,
            "allow_direct": true,
            "allow_rollup_hdrs": true,
            "storage": "file",
            "retention": "limits",
            "discard": "new",
        })
    };
    // All keys of a bucket: no server tells.
    let mut aging = config("aging");
    aging["max_age"] = 2_000_000_000.into();
    let mut buckets = vec![("aging", aging)];
    if release == Release::Newest {
        // Single keys: watchers are told, or not.
        let mut silent = config("silent");
        silent["allow_msg_ttl"] = true.into();
        let mut marking = config("marking");
        marking["allow_msg_ttl"] = true.into();
        marking["subject_delete_marker_ttl"] = 3_600_000_000_000_u64.into();
        buckets.extend([("silent", silent), ("marking", marking)]);
    }
    for (name, config) in buckets {
        let create = format!("STREAM.CREATE.KV_{name}");
        let made: serde_json::Value = context.request(create, &config).await?;
        assert_eq!(made["error"], serde_json::Value::Null, "{made}");
        let options = NatsOptions::new(&server.url())?;
        let pod = Pod::with(options, source(name), |f| f.rules_from(name)).await?;
        until("the pod to read it", || {
            let state = pod.forwarder.status().rules_in?.state;
            (state == RulesInState::Watching).then_some(())
        })
        .await;
        let mut headers = async_nats::HeaderMap::new();
        if name != "aging" {
            headers.insert("Nats-TTL", "2");
        }
        let subject = format!("$KV.{name}.prod.decode.Deep");
        let put = context.publish_with_headers(subject, headers, json.into());
        put.await?.await?;
        until_it_has(&pod, "Deep").await;
        until_it_has_only(&pod, &[]).await;
    }
    Ok(())
}

async fn without_jetstream_there_is_no_bucket_and_that_is_told(release: Release) -> Outcome {
    let server = NatsServer::start(release);
    let (fleet, _heard) = planner(&server).await?;
    let raw = Raw::of(&server.client().await, "metricbus.v1.*.*.*.a.>").await;
    let pod = pod(&server, source("pod-1")).await?;
    // It is kept until it can be written, and why it can't is told.
    let sent = fleet
        .send_rule(RuleTarget::all(), deep("Deep", 10.0))
        .await?;
    assert!(!sent.written, "{sent:?}");
    assert!(
        sent.why
            .as_deref()
            .is_some_and(|why| why.contains("JetStream")),
        "{sent:?}"
    );
    assert_eq!(fleet.status().rules_unwritten, 1);
    // The pod goes on without.
    pod.flap("a", 1)?;
    raw.until(2).await;
    Ok(())
}

on_each_server!(
    a_rule_is_sent_to_the_pods_evaluated_there_and_retracted,
    a_rule_for_everybody_reaches_everybody,
    a_rule_that_a_pod_refuses_is_reported_with_the_reason,
    bytes_in_the_bucket_that_are_no_rule_harm_nobody,
    a_pod_that_did_not_ask_for_rules_takes_none,
    rules_stay_through_a_restart_of_the_server_and_follow_what_was_changed,
    a_rule_that_is_taken_back_ends_also_where_its_bucket_was_lost,
    pods_and_planner_agree_after_a_bucket_was_restored,
    a_bucket_that_is_deleted_and_made_again_unheard_gets_its_rules_back,
    what_is_purged_ends_and_the_planner_does_not_bring_it_back,
    a_rule_whose_key_expires_ends,
    without_jetstream_there_is_no_bucket_and_that_is_told,
);
