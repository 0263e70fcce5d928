//! A planner: all workers on one bus, rules and windows over all of them, and rules that it sends to them.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use metricbus::{
    Alert, Condition, Rule, Subscription, Threshold,
    nats::{Fleet, NatsOptions, RuleTarget, SourceChange, SourceEvent, SourceState},
};

use tokio::time::{Instant, sleep};

use crate::{
    COMPONENT, NAMESPACE, RULES,
    server::Failure,
    voice::{Fact, Transition, Voice, transition},
};

/// The rule that is sent to the workers.
const SENT: &str = "QueueLong";

/// Commands that wait until the planner can answer them.
const EARLY_MAX: usize = 16;

const WINDOW: Duration = Duration::from_secs(10);

pub async fn run(options: NatsOptions, voice: Voice) -> Result<(), Failure> {
    let fleet = Fleet::builder(options)
        .namespace(NAMESPACE)
        .component(COMPONENT)
        .rules_bucket(RULES)
        .start()
        .await?;
    let _subscriptions = listen(&fleet, voice)?;
    voice.note(Fact::Ready);
    voice.say(format!(
        "I plan for {NAMESPACE}/{COMPONENT}; type pods, p99, rule N, unrule or quit"
    ));

    let mut commands = voice.commands();
    // Without a server it may take long: what is asked meanwhile is answered afterwards.
    let mut early = VecDeque::new();
    loop {
        tokio::select! {
            () = fleet.synced() => break,
            command = commands.next() => match command {
                Some(command) if early.len() < EARLY_MAX => {
                    voice.say(format!("{command}: as soon as I know all workers"));
                    early.push_back(command);
                }
                Some(command) => voice.say(format!("{command}: not before I know all workers")),
                None => return Ok(()),
            }
        }
    }
    // A worker opens a window at the first question about it, so the first is asked before the answer is needed.
    let _ = fleet.window("ttft_seconds", WINDOW).await;

    loop {
        let command = match early.pop_front() {
            Some(command) => Some(command),
            None => commands.next().await,
        };
        let Some(command) = command else { break };
        let outcome = match command.split_whitespace().collect::<Vec<_>>()[..] {
            ["pods"] => {
                pods(&fleet, voice);
                Ok(())
            }
            ["p99"] => p99(&fleet, voice).await,
            ["rule", bound] => send(&fleet, bound, voice).await,
            ["unrule"] => fleet
                .retract_rule(RuleTarget::component(NAMESPACE, COMPONENT), SENT)
                .await
                .map(drop)
                .map_err(Failure::from),
            _ => Err(format!("{command:?}? I know pods, p99, rule N, unrule and quit").into()),
        };
        if let Err(error) = outcome {
            voice.say(format!("{command}: {error}"));
        }
    }
    Ok(())
}

/// What the planner hears without asking.
fn listen(fleet: &Fleet, voice: Voice) -> Result<[Subscription; 3], Failure> {
    // When a worker last said that it is full.
    let crossed: Arc<Mutex<Option<SystemTime>>> = Arc::default();

    // Workers that come, go and come back.
    let sources = fleet.on_source().call(move |event: SourceEvent| {
        let instance = event.source.instance.clone();
        match &event.change {
            SourceChange::Born => voice.note(Fact::Born(instance)),
            SourceChange::Gone { .. } => voice.note(Fact::Gone(instance)),
            _ => {}
        }
        voice.say(event.to_string());
    })?;

    // Alerts that the workers' own rules made, each exactly once.
    let last = crossed.clone();
    let alerts = fleet.on_alert().call(move |alert: Alert| {
        let after = since(alert.date);
        let Some(origin) = &alert.origin else { return };
        let instance = &origin.source.instance;
        if alert.is_firing() && &*alert.rule == "KvCacheFull" {
            *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(alert.date);
        }
        // First, for who waits for the alert asks how long it took.
        voice.note(Fact::Delay(after.as_secs_f64() * 1e3));
        voice.note(Fact::Alert(Transition {
            instance: instance.clone(),
            rule: alert.rule.to_string(),
            epoch: alert.epoch,
            firing: alert.is_firing(),
        }));
        voice.say(format!(
            "{instance}: {}, heard {} after the crossing",
            transition(&alert),
            shown(after)
        ));
    })?;

    // A rule of the planner's own, over all workers there are and will be, and evaluated here.
    let full = Condition::when("kv_usage_ratio", Threshold::above(0.9).clear_below(0.8));
    let any = fleet.add_rule(
        Rule::new("AnyDecodeFull", full)
            .hold_for(Duration::from_millis(500))
            .any(),
    )?;
    let any = any.on_alert().call(move |alert: Alert| {
        let last = *crossed.lock().unwrap_or_else(PoisonError::into_inner);
        let after = last.filter(|_| alert.is_firing()).map(since);
        voice.note(Fact::Fleet {
            firing: alert.is_firing(),
            after: after.map(|after| after.as_secs_f64() * 1e3),
        });
        voice.say(match after {
            Some(after) => format!(
                "{}, {} of {} workers, {} after the crossing: 500 of its hold, the rest until a frame came",
                transition(&alert),
                alert.holds,
                alert.members,
                shown(after)
            ),
            None => transition(&alert),
        });
    })?;
    Ok([sources, alerts, any])
}

fn pods(fleet: &Fleet, voice: Voice) {
    for s in fleet.sources() {
        let skew = s
            .skew
            .map_or("unknown".into(), |skew| format!("{:.1} ms", skew * 1e3));
        voice.say(format!(
            "{:<12} {:<5} {} series, heard {} ago, {} gaps, clock off by {skew}",
            s.source.instance,
            s.state.as_str(),
            s.series,
            shown(s.age),
            s.gaps,
        ));
    }
}

/// Quantiles can't be averaged; buckets can be added. The workers send theirs.
async fn p99(fleet: &Fleet, voice: Voice) -> Result<(), Failure> {
    let window = fleet.window("ttft_seconds", WINDOW).await?;
    let p99 = window.stats.quantile(0.99);
    voice.note(Fact::Window {
        p99,
        answered: window.answered,
        complete: window.is_complete(),
    });
    voice.say(format!(
        "time to first token over {WINDOW:?}: p99 {}, p50 {}, {} tokens; {} of {} workers answered",
        seconds(p99),
        seconds(window.stats.quantile(0.5)),
        window.stats.count,
        window.answered,
        window.asked + window.stale.len(),
    ));
    Ok(())
}

/// Evaluated in each worker, with each mutation; only its transitions travel.
async fn send(fleet: &Fleet, bound: &str, voice: Voice) -> Result<(), Failure> {
    let bound: f64 = bound
        .parse()
        .map_err(|_| format!("{bound} is no number of requests"))?;
    let long = Condition::when(
        "queue_depth",
        Threshold::above(bound).clear_below(bound / 2.0),
    );
    let sent = fleet
        .send_rule(
            RuleTarget::component(NAMESPACE, COMPONENT),
            Rule::new(SENT, long),
        )
        .await?;
    voice.say(format!(
        "{SENT}, queue_depth above {bound}, is {}",
        match &sent.why {
            None if sent.written => "in the bucket".into(),
            None => "not in the bucket yet".into(),
            Some(why) => format!("not in the bucket yet: {why}"),
        }
    ));
    // The first rule makes the bucket, and workers look for one every 5 s.
    let begin = Instant::now();
    let mut holds = 0;
    while begin.elapsed() < Duration::from_secs(8) {
        let live: Vec<_> = fleet
            .sources()
            .into_iter()
            .filter(|s| s.state == SourceState::Live)
            .collect();
        let mut now = 0;
        for worker in &live {
            let rules = fleet.rules_of(&worker.source).await;
            let has = rules.is_ok_and(|rules| rules.rules.iter().any(|rule| rule.name == SENT));
            now += usize::from(has);
        }
        if now > holds {
            holds = now;
            voice.say(format!(
                "{SENT} is in force at {holds} of {} workers, {} after it was sent",
                live.len(),
                shown(begin.elapsed())
            ));
        }
        if holds >= live.len() {
            voice.note(Fact::RuleInForce(holds));
            break;
        }
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// By the clocks of two machines: as good as they agree.
fn since(date: SystemTime) -> Duration {
    SystemTime::now().duration_since(date).unwrap_or_default()
}

fn shown(time: Duration) -> String {
    match time.as_secs_f64() {
        seconds if seconds < 1.0 => format!("{:.1} ms", seconds * 1e3),
        seconds => format!("{seconds:.2} s"),
    }
}

fn seconds(value: Option<f64>) -> String {
    value.map_or("unknown".into(), |s| format!("{:.0} ms", s * 1e3))
}
