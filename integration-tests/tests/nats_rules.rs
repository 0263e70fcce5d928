//! Rules that a planner sends to the pods: kept in a KV bucket, evaluated at each source, so that transitions travel alone.

use std::error::Error;

use metricbus::{
    Condition, Rule, SourceId, Threshold,
    nats::{Delivery, Fleet, NatsOptions, RuleTarget},
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
    without_jetstream_there_is_no_bucket_and_that_is_told,
);
