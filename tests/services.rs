//! Notification by tower services: what subscriptions, layers and channels do with alerts, alone and together with
//! tower's own. On the manual clock.

use std::{
    cell::Cell,
    convert::Infallible,
    future::{Ready, pending, ready},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use metricbus::{
    Alert, AlertState, Clock, Condition, Crossed, Crossing, Delta, Desc, Gauge, MetricBus, Origin,
    Rule, SampleValue, Threshold,
    service::{
        ChannelError, Flap, LayerError, Repeat, Rolled, Rollup, Stable, Throttle, async_callback,
        callback, channel,
    },
};
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt, retry, service_fn};

fn manual() -> (Clock, MetricBus) {
    let clock = Clock::manual();
    (clock.clone(), MetricBus::builder().clock(clock).build())
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn firing(rule: &str) -> Alert {
    Alert::new(rule, AlertState::Firing, metricbus::Time::ZERO)
}

fn resolved(rule: &str) -> Alert {
    Alert::new(rule, AlertState::Resolved, metricbus::Time::ZERO)
}

/// Lets all tasks of this runtime run until none has anything to do.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// What has arrived.
async fn told<T>(receiver: &mpsc::Receiver<T>) -> Vec<String>
where
    T: Told,
{
    settle().await;
    receiver.try_iter().map(|told| told.told()).collect()
}

trait Told {
    fn told(&self) -> String;
}

impl Told for Alert {
    fn told(&self) -> String {
        match self.repeat {
            0 => self.to_string(),
            n => format!("{self} again {n}"),
        }
    }
}

impl Told for Rolled {
    fn told(&self) -> String {
        let alerts: Vec<_> = self.alerts.iter().map(Told::told).collect();
        alerts.join(", ")
    }
}

/// A number that the bus counts of itself, over all labels.
fn own(bus: &MetricBus, name: &str) -> f64 {
    let families = bus.self_families();
    let family = families.iter().find(|family| family.name == name);
    let value = |sample: &SampleValue| match sample {
        SampleValue::Counter(value) => value.as_f64(),
        other => panic!("{name} is no counter but {other:?}"),
    };
    family
        .unwrap_or_else(|| panic!("no {name}"))
        .series
        .iter()
        .map(|series| value(&series.value))
        .sum()
}

/// A gauge and a subscription to each of its changes by a delta of 1.
fn of_each_move<S>(bus: &MetricBus, service: S) -> (metricbus::Gauge, metricbus::Subscription)
where
    S: Service<metricbus::Moved> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
{
    let gauge = bus.gauge("queue_depth", "Requests waiting.").unwrap();
    gauge.set(0.0);
    let subscription = bus
        .on_delta(&gauge, Delta::absolute(1.0))
        .service(service)
        .unwrap();
    (gauge, subscription)
}

#[test]
fn a_service_is_called_with_each_event_in_order_without_any_runtime() {
    let (_, bus) = manual();
    let gauge = bus.gauge("queue_depth", "Requests waiting.").unwrap();
    let (sender, receiver) = mpsc::channel();
    let _subscription = bus
        .on_threshold(&gauge, Threshold::above(10.0))
        .service(channel(sender))
        .unwrap();
    for value in [20.0, 5.0, 30.0] {
        gauge.set(value);
    }
    let crossings: Vec<Crossing> = receiver.iter().take(3).collect();
    let states: Vec<_> = crossings.iter().map(|c| (c.state, c.value)).collect();
    assert_eq!(
        states,
        [
            (Crossed::Raised, 20.0),
            (Crossed::Cleared, 5.0),
            (Crossed::Raised, 30.0)
        ]
    );
}

#[tokio::test]
async fn alerts_of_rules_go_through_layers_to_a_service() {
    let (clock, bus) = manual();
    let workers = bus
        .family::<Gauge>(
            Desc::new("kv_usage_ratio", "Share of KV blocks in use.").labels(["worker"]),
        )
        .unwrap();
    let full = Condition::when("kv_usage_ratio", Threshold::above(0.9).clear_below(0.8));
    bus.add_rule(Rule::new("KvFull", full).label("severity", "page"))
        .unwrap();
    let (sender, receiver) = mpsc::channel();
    let service = ServiceBuilder::new()
        .layer(Stable::new(&bus, secs(5)))
        .layer(Repeat::new(&bus, secs(60)))
        .service(channel(sender));
    let _subscription = bus.on_alert().service(service).unwrap();
    let worker = |n: &str| workers.with_label_values(&[n]).unwrap();

    worker("1").set(0.95);
    worker("2").set(0.95);
    settle().await;
    clock.advance(secs(2));
    worker("2").set(0.5);
    settle().await;
    clock.advance(secs(3));
    assert_eq!(
        told(&receiver).await,
        [r#"KvFull{worker="1"} firing at 0.95"#]
    );
    clock.advance(secs(60));
    assert_eq!(
        told(&receiver).await,
        [r#"KvFull{worker="1"} firing at 0.95 again 1"#]
    );
    worker("1").set(0.1);
    assert_eq!(
        told(&receiver).await,
        [r#"KvFull{worker="1"} resolved at 0.1"#]
    );
}

#[tokio::test]
async fn a_layer_that_is_called_inline_keeps_the_mutating_thread_s_time() {
    let (clock, bus) = manual();
    let gauge = bus.gauge("queue_depth", "Requests waiting.").unwrap();
    let deep = Condition::when("queue_depth", Threshold::above(10.0));
    bus.add_rule(Rule::new("QueueDeep", deep)).unwrap();
    let (sender, receiver) = mpsc::channel();
    let mut service = Stable::new(&bus, secs(5)).layer(channel(sender));
    let _subscription = bus
        .on_alert()
        .inline(move |alert| drop(service.call(alert)))
        .unwrap();
    // No task has had a chance to run when the time is over.
    gauge.set(20.0);
    clock.advance(secs(5));
    gauge.set(0.0);
    gauge.set(30.0);
    clock.advance(secs(4));
    gauge.set(0.0);
    clock.advance(secs(60));
    assert_eq!(
        told(&receiver).await,
        ["QueueDeep firing at 20", "QueueDeep resolved at 0"]
    );
}

#[tokio::test]
async fn a_rule_that_is_removed_is_repeated_no_more() {
    let (clock, bus) = manual();
    let gauge = bus.gauge("queue_depth", "Requests waiting.").unwrap();
    let deep = Condition::when("queue_depth", Threshold::above(10.0));
    let rule = bus.add_rule(Rule::new("QueueDeep", deep)).unwrap();
    let (sender, receiver) = mpsc::channel();
    let service = Repeat::new(&bus, secs(60)).layer(channel(sender));
    let _subscription = rule.on_alert().service(service).unwrap();
    gauge.set(20.0);
    settle().await;
    clock.advance(secs(60));
    assert_eq!(
        told(&receiver).await,
        ["QueueDeep firing at 20", "QueueDeep firing at 20 again 1"]
    );
    rule.remove();
    settle().await;
    clock.advance(secs(600));
    let rest: Vec<Alert> = { receiver.try_iter().collect() };
    assert_eq!(rest.len(), 1);
    assert_eq!(rest[0].state, AlertState::Resolved);
}

#[test]
fn a_wrong_threshold_is_an_error_when_a_service_is_subscribed() {
    let (_, bus) = manual();
    let wrong = Threshold::above(0.8).clear_below(0.9);
    let error = bus
        .on_threshold("queue_depth", wrong)
        .service(callback(drop))
        .unwrap_err();
    assert!(error.to_string().contains("clear"), "{error}");
}

#[tokio::test]
async fn errors_of_a_service_are_counted_and_the_next_event_comes_all_the_same() {
    let (_, bus) = manual();
    let (sender, receiver) = mpsc::channel();
    let service = service_fn(move |moved: metricbus::Moved| {
        let failed = moved.to == 1.0;
        let _ = sender.send(moved.to);
        ready(if failed { Err("no route") } else { Ok(()) })
    });
    let (gauge, subscription) = of_each_move(&bus, service);
    gauge.set(1.0);
    gauge.set(2.0);
    settle().await;
    assert_eq!(receiver.try_iter().collect::<Vec<_>>(), [1.0, 2.0]);
    assert_eq!(own(&bus, "metricbus_alert_delivery_errors_total"), 1.0);
    assert!(!subscription.is_detached());
}

/// Ready when it is told so; fails to become ready the first time.
#[derive(Clone)]
struct Reluctant {
    asked: Arc<AtomicU32>,
    called: Arc<AtomicU32>,
}

impl<T> Service<T> for Reluctant {
    type Response = ();
    type Error = &'static str;
    type Future = Ready<Result<(), &'static str>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        match self.asked.fetch_add(1, Ordering::Relaxed) {
            0 => Poll::Ready(Err("not connected")),
            1 => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            _ => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, _request: T) -> Self::Future {
        self.called.fetch_add(1, Ordering::Relaxed);
        ready(Ok(()))
    }
}

#[tokio::test]
async fn a_service_is_called_only_when_it_is_ready_and_asked_again_after_an_error() {
    let (_, bus) = manual();
    let service = Reluctant {
        asked: Arc::default(),
        called: Arc::default(),
    };
    let (gauge, _subscription) = of_each_move(&bus, service.clone());
    gauge.set(1.0);
    settle().await;
    assert_eq!(service.called.load(Ordering::Relaxed), 0);
    assert_eq!(own(&bus, "metricbus_alert_delivery_errors_total"), 1.0);
    gauge.set(2.0);
    settle().await;
    assert_eq!(service.asked.load(Ordering::Relaxed), 3);
    assert_eq!(service.called.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_service_that_panics_is_detached_after_three_in_a_row_as_a_callback_is() {
    let (_, bus) = manual();
    let calls = Arc::new(AtomicU32::new(0));
    let seen = calls.clone();
    let service = callback(move |moved: metricbus::Moved| {
        seen.fetch_add(1, Ordering::Relaxed);
        assert!(moved.to == 2.0, "as the test wants it");
    });
    let (gauge, subscription) = of_each_move(&bus, service);
    for value in [1.0, 2.0, 3.0, 4.0] {
        gauge.set(value);
    }
    settle().await;
    assert!(!subscription.is_detached());
    gauge.set(5.0);
    gauge.set(6.0);
    settle().await;
    assert!(subscription.is_detached());
    assert_eq!(calls.load(Ordering::Relaxed), 5);
    assert_eq!(subscription.stats().panicked, 4);
}

#[tokio::test]
async fn a_service_is_not_called_again_before_it_has_answered() {
    let (_, bus) = manual();
    let (open, gate) = tokio::sync::watch::channel(false);
    let running = Arc::new(AtomicU32::new(0));
    let most = Arc::new(AtomicU32::new(0));
    let (now, max) = (running.clone(), most.clone());
    let service = async_callback(move |_: metricbus::Moved| {
        let (now, max, mut gate) = (now.clone(), max.clone(), gate.clone());
        async move {
            let n = now.fetch_add(1, Ordering::Relaxed) + 1;
            max.fetch_max(n, Ordering::Relaxed);
            let _ = gate.wait_for(|open| *open).await;
            now.fetch_sub(1, Ordering::Relaxed);
        }
    });
    let (gauge, subscription) = of_each_move(&bus, service);
    for value in 1..=5 {
        gauge.set(f64::from(value));
    }
    settle().await;
    assert_eq!(running.load(Ordering::Relaxed), 1);
    open.send(true).unwrap();
    settle().await;
    assert_eq!(most.load(Ordering::Relaxed), 1);
    assert_eq!(subscription.stats().delivered, 5);
}

#[tokio::test]
async fn a_place_in_a_tokio_channel_is_reserved_by_readiness_and_no_clone_has_it() {
    let (sender, mut receiver) = tokio::sync::mpsc::channel(1);
    let mut first = channel(sender);
    let mut cx = Context::from_waker(Waker::noop());
    assert_eq!(first.poll_ready(&mut cx), Poll::Ready(Ok(())));
    let mut second = first.clone();
    assert_eq!(second.poll_ready(&mut cx), Poll::Pending);
    assert_eq!(second.call(2).await, Err(ChannelError::Full));
    assert_eq!(first.call(1).await, Ok(()));
    assert_eq!(receiver.recv().await, Some(1));
    assert_eq!(first.poll_ready(&mut cx), Poll::Ready(Ok(())));
    // A reservation that is given up is there for others.
    drop(first);
    second.ready().await.unwrap().call(3).await.unwrap();
    assert_eq!(receiver.recv().await, Some(3));
}

#[tokio::test]
async fn a_channel_whose_receiver_is_gone_says_so() {
    let (sender, receiver) = tokio::sync::mpsc::channel::<u32>(1);
    drop(receiver);
    let mut service = channel(sender);
    assert_eq!(service.ready().await.err(), Some(ChannelError::Closed));
    assert_eq!(service.call(1).await, Err(ChannelError::Closed));

    let (sender, receiver) = mpsc::sync_channel(1);
    let mut service = channel(sender);
    assert_eq!(service.call(1).await, Ok(()));
    assert_eq!(service.call(2).await, Err(ChannelError::Full));
    drop(receiver);
    assert_eq!(service.call(3).await, Err(ChannelError::Closed));

    let (sender, receiver) = mpsc::channel();
    drop(receiver);
    assert_eq!(channel(sender).call(1).await, Err(ChannelError::Closed));
}

#[tokio::test(start_paused = true)]
async fn throttle_above_timeout_a_delivery_that_hangs_is_cut_and_counted() {
    let (clock, bus) = manual();
    let (sender, receiver) = mpsc::channel();
    let mut service = ServiceBuilder::new()
        .layer(Throttle::new(&bus, secs(10)))
        .timeout(secs(1))
        .service(service_fn(move |alert: Alert| {
            let sender = sender.clone();
            async move {
                if alert.rule.starts_with("Hangs") {
                    pending::<()>().await;
                }
                sender.send(alert).map_err(BoxError::from)
            }
        }));
    service.call(firing("Hangs")).await.unwrap();
    service.call(firing("A")).await.unwrap();
    service.call(resolved("A")).await.unwrap();
    // tokio's own clock is paused, and jumps to the timeout when all else is idle.
    tokio::time::sleep(secs(2)).await;
    assert_eq!(told(&receiver).await, ["A firing"]);
    clock.advance(secs(10));
    assert_eq!(told(&receiver).await, ["A resolved"]);
    let stats = service.stats();
    assert_eq!(
        (stats.delivered, stats.errors, stats.passed_over),
        (2, 1, 0)
    );
    assert_eq!(own(&bus, "metricbus_alert_delivery_errors_total"), 1.0);
    assert_eq!(own(&bus, "metricbus_alert_layer_delivered_total"), 2.0);
}

#[derive(Clone)]
struct Attempts(u32);

impl<Res, Err> retry::Policy<Alert, Res, Err> for Attempts {
    type Future = Ready<()>;

    fn retry(&mut self, _: &mut Alert, result: &mut Result<Res, Err>) -> Option<Ready<()>> {
        if result.is_ok() || self.0 == 0 {
            return None;
        }
        self.0 -= 1;
        Some(ready(()))
    }

    fn clone_request(&mut self, alert: &Alert) -> Option<Alert> {
        Some(alert.clone())
    }
}

#[tokio::test]
async fn repeat_above_retry_an_alert_that_fails_is_tried_again_and_later_repeated() {
    let (clock, bus) = manual();
    let (sender, receiver) = mpsc::channel();
    let failures = Cell::new(2);
    let mut service = ServiceBuilder::new()
        .layer(Repeat::new(&bus, secs(60)))
        .retry(Attempts(3))
        .service(callback_result(move |alert: Alert| {
            if failures.get() > 0 {
                failures.set(failures.get() - 1);
                return Err("no route");
            }
            let _ = sender.send(alert);
            Ok(())
        }));
    service.call(firing("A")).await.unwrap();
    assert_eq!(told(&receiver).await, ["A firing"]);
    clock.advance(secs(120));
    assert_eq!(
        told(&receiver).await,
        ["A firing again 1", "A firing again 2"]
    );
    service.call(resolved("A")).await.unwrap();
    clock.advance(secs(120));
    assert_eq!(told(&receiver).await, ["A resolved"]);
    assert_eq!(service.stats().errors, 0);
}

/// A closure that can fail as a service that can be cloned, as `retry` wants it.
fn callback_result<E: Clone + Send + 'static>(
    f: impl FnMut(Alert) -> Result<(), E> + Send + 'static,
) -> impl Service<Alert, Response = (), Error = E, Future = Ready<Result<(), E>>> + Clone {
    let f = Arc::new(Mutex::new(f));
    service_fn(move |alert| {
        let mut f = f.lock().unwrap();
        ready(f(alert))
    })
}

#[tokio::test]
async fn rollup_above_concurrency_limit_batches_wait_for_their_turn() {
    let (clock, bus) = manual();
    let (sender, receiver) = mpsc::channel();
    let limit = Arc::new(tokio::sync::Semaphore::new(1));
    let mut service = ServiceBuilder::new()
        .layer(Rollup::new(&bus, secs(5)).max(2))
        .layer(tower::limit::GlobalConcurrencyLimitLayer::with_semaphore(
            limit.clone(),
        ))
        .service(channel(sender));
    let taken = limit.clone().acquire_owned().await.unwrap();
    for rule in ["A", "B", "C"] {
        service.call(firing(rule)).await.unwrap();
    }
    clock.advance(secs(5));
    assert_eq!(told::<Rolled>(&receiver).await, [""; 0]);
    drop(taken);
    assert_eq!(told(&receiver).await, ["A firing, B firing", "C firing"]);
}

#[tokio::test]
async fn stable_above_load_shed_what_is_refused_is_counted() {
    let (clock, bus) = manual();
    let (sender, mut receiver) = tokio::sync::mpsc::channel(1);
    let mut service = ServiceBuilder::new()
        .layer(Stable::new(&bus, secs(10)))
        .load_shed()
        .service(channel(sender));
    service.call(firing("Short")).await.unwrap();
    service.call(firing("A")).await.unwrap();
    service.call(firing("B")).await.unwrap();
    clock.advance(secs(9));
    service.call(resolved("Short")).await.unwrap();
    clock.advance(secs(1));
    settle().await;
    // The channel has one place: B was shed.
    assert_eq!(receiver.recv().await.unwrap().to_string(), "A firing");
    assert!(receiver.try_recv().is_err());
    let stats = service.stats();
    assert_eq!(
        (stats.delivered, stats.errors, stats.passed_over),
        (1, 1, 2)
    );
    service.call(resolved("A")).await.unwrap();
    assert_eq!(receiver.recv().await.unwrap().to_string(), "A resolved");
}

#[tokio::test]
async fn flap_above_buffer_says_once_that_it_flaps_and_then_how_it_ended() {
    let (clock, bus) = manual();
    let (sender, receiver) = mpsc::channel();
    let mut service = ServiceBuilder::new()
        .layer(Flap::new(&bus, 2, secs(60)).calm(secs(30)))
        .buffer(8)
        .service(channel(sender));
    for alert in [firing("A"), resolved("A"), firing("A"), resolved("A")] {
        service.call(alert).await.unwrap();
        clock.advance(secs(1));
    }
    settle().await;
    let sent: Vec<Alert> = receiver.try_iter().collect();
    let flapping: Vec<_> = sent.iter().map(|a| a.annotation("flapping")).collect();
    assert_eq!(flapping, [None, None, Some("true")]);
    clock.advance(secs(28));
    assert_eq!(told::<Alert>(&receiver).await, [""; 0]);
    clock.advance(secs(1));
    assert_eq!(told(&receiver).await, ["A resolved"]);
}

#[tokio::test]
async fn all_layers_in_one_stack_on_one_clock() {
    let (clock, bus) = manual();
    let (sender, receiver) = mpsc::channel();
    let mut service = ServiceBuilder::new()
        .layer(Flap::new(&bus, 100, secs(60)))
        .layer(Stable::new(&bus, secs(10)))
        .layer(Throttle::new(&bus, secs(5)))
        .layer(Repeat::new(&bus, secs(60)))
        .layer(Rollup::new(&bus, secs(1)).latest_only(true))
        .service(channel(sender));
    service.call(firing("A")).await.unwrap();
    service.call(firing("B")).await.unwrap();
    settle().await;
    for _ in 0..12 {
        clock.advance(secs(1));
        settle().await;
    }
    assert_eq!(told(&receiver).await, ["A firing, B firing"]);
    service.call(resolved("B")).await.unwrap();
    settle().await;
    for _ in 0..60 {
        clock.advance(secs(1));
        settle().await;
    }
    assert_eq!(told(&receiver).await, ["B resolved", "A firing again 1"]);
}

#[tokio::test]
async fn the_layers_keep_time_while_the_inner_service_is_slow() {
    let (clock, bus) = manual();
    let (open, gate) = tokio::sync::watch::channel(false);
    let (sender, receiver) = mpsc::channel();
    let inner = async_callback(move |alert: Alert| {
        let (sender, mut gate) = (sender.clone(), gate.clone());
        async move {
            let _ = gate.wait_for(|open| *open).await;
            let _ = sender.send(alert);
        }
    });
    let mut service = Stable::new(&bus, secs(10)).layer(inner);
    service.call(firing("A")).await.unwrap();
    clock.advance(secs(10));
    settle().await;
    // A's delivery hangs. B is over before its time, and C is not.
    service.call(firing("B")).await.unwrap();
    service.call(firing("C")).await.unwrap();
    clock.advance(secs(9));
    service.call(resolved("B")).await.unwrap();
    clock.advance(secs(1));
    open.send(true).unwrap();
    assert_eq!(told(&receiver).await, ["A firing", "C firing"]);
}

#[tokio::test]
async fn a_full_queue_drops_the_oldest_and_counts_it() {
    let (clock, bus) = manual();
    let (sender, receiver) = mpsc::channel();
    let mut service = Repeat::new(&bus, secs(10))
        .capacity(2)
        .layer(channel(sender));
    service.call(firing("A")).await.unwrap();
    clock.advance(secs(40));
    assert_eq!(
        told(&receiver).await,
        ["A firing again 3", "A firing again 4"]
    );
    assert_eq!(service.stats().dropped, 3);
    assert_eq!(own(&bus, "metricbus_alert_layer_dropped_total"), 3.0);
}

/// Two pods of a fleet have a rule of one name firing, and one of them resolves it.
#[test]
fn alerts_of_one_rule_from_two_sources_are_two() {
    let (clock, bus) = manual();
    let (tell, told) = mpsc::channel();
    let inner = callback(move |alert: Alert| {
        let source = alert.origin.map(|origin| origin.source.to_string());
        drop(tell.send((source.unwrap(), alert.repeat)));
    });
    let mut service = Repeat::new(&bus, secs(10)).layer(inner);
    let of = |pod: &str, state| {
        let mut alert = Alert::new("Full", state, clock.now());
        alert.origin = Some(
            Origin {
                source: format!("prod/decode/{pod}").parse().unwrap(),
                boot: 1,
                sequence: 1,
            }
            .into(),
        );
        alert
    };
    drop(service.call(of("a", AlertState::Firing)));
    drop(service.call(of("b", AlertState::Firing)));
    drop(service.call(of("b", AlertState::Resolved)));
    clock.advance(secs(10));
    let told: Vec<_> = (0..4).map(|_| told.recv().unwrap()).collect();
    assert_eq!(told[3], ("prod/decode/a".to_owned(), 1));
}

#[test]
fn what_a_full_queue_drops_is_counted_though_the_service_hangs() {
    let (clock, bus) = manual();
    let (entered, inside) = mpsc::channel();
    let (open, gate) = mpsc::channel::<()>();
    let hangs = callback(move |_: Alert| {
        let _ = entered.send(());
        let _ = gate.recv();
    });
    let mut service = Repeat::new(&bus, secs(10)).capacity(2).layer(hangs);
    drop(service.call(firing("A")));
    inside.recv().unwrap();
    clock.advance(secs(50));
    assert_eq!(service.stats().dropped, 3);
    assert_eq!(own(&bus, "metricbus_alert_layer_dropped_total"), 3.0);
    drop(open);
}

#[tokio::test]
async fn what_is_remembered_has_a_bound_and_what_is_forgotten_is_counted() {
    let (_, bus) = manual();
    let (sender, receiver) = mpsc::channel();
    let mut service = Throttle::new(&bus, secs(10))
        .keys(100)
        .layer(channel(sender));
    for n in 0..1_000 {
        service.call(firing(&format!("Rule{n}"))).await.unwrap();
        settle().await;
    }
    assert_eq!(told::<Alert>(&receiver).await.len(), 1_000);
    assert_eq!(service.stats().forgotten, 900);
    assert_eq!(own(&bus, "metricbus_alert_layer_forgotten_total"), 900.0);
}

#[tokio::test]
async fn a_service_behind_a_layer_that_panics_three_times_in_a_row_is_called_no_more() {
    let (_, bus) = manual();
    let calls = Arc::new(AtomicU32::new(0));
    let seen = calls.clone();
    let mut service = Throttle::new(&bus, secs(10)).layer(callback(move |_: Alert| {
        seen.fetch_add(1, Ordering::Relaxed);
        panic!("as the test wants it");
    }));
    for rule in ["A", "B", "C", "D"] {
        service.call(firing(rule)).await.unwrap();
    }
    settle().await;
    assert_eq!(calls.load(Ordering::Relaxed), 3);
    let detached = LayerError::Detached { layer: "throttle" };
    assert_eq!(service.ready().await.err(), Some(detached));
    assert_eq!(service.call(firing("E")).await, Err(detached));
    let stats = service.stats();
    assert_eq!((stats.errors, stats.dropped), (3, 1));
    assert_eq!(own(&bus, "metricbus_callback_panics_total"), 3.0);
}

#[test]
fn a_layer_whose_runtime_has_ended_says_so_and_counts_what_is_lost() {
    let (_, bus) = manual();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let mut service = {
        let _inside = runtime.enter();
        Throttle::new(&bus, secs(10)).layer(callback(|_: Alert| {}))
    };
    let mut cx = Context::from_waker(Waker::noop());
    assert_eq!(service.poll_ready(&mut cx), Poll::Ready(Ok(())));
    drop(service.call(firing("A")));
    drop(runtime);
    let ended = LayerError::Ended { layer: "throttle" };
    assert_eq!(service.poll_ready(&mut cx), Poll::Ready(Err(ended)));
    assert_eq!(service.stats().dropped, 1);
}

#[tokio::test]
async fn what_is_held_back_is_sent_when_the_last_clone_is_gone() {
    let (_, bus) = manual();
    let (sender, receiver) = mpsc::channel();
    let mut service = ServiceBuilder::new()
        .layer(Throttle::new(&bus, secs(10)))
        .layer(Rollup::new(&bus, secs(10)))
        .service(channel(sender));
    let clone = service.clone();
    service.call(firing("A")).await.unwrap();
    service.call(resolved("A")).await.unwrap();
    drop(service);
    assert_eq!(told::<Rolled>(&receiver).await, [""; 0]);
    drop(clone);
    assert_eq!(told(&receiver).await, ["A firing, A resolved"]);
}

#[tokio::test]
async fn clones_of_a_layered_service_share_what_it_remembers() {
    let (_, bus) = manual();
    let (sender, receiver) = mpsc::channel();
    let mut service = Throttle::new(&bus, secs(10)).layer(channel(sender));
    let mut clone = service.clone();
    service.call(firing("A")).await.unwrap();
    clone.call(resolved("A")).await.unwrap();
    assert_eq!(told(&receiver).await, ["A firing"]);
}

#[test]
fn without_a_runtime_a_layer_delivers_on_the_threads_of_the_bus() {
    let (clock, bus) = manual();
    let (sender, receiver) = mpsc::channel();
    let mut service = Repeat::new(&bus, secs(10)).layer(channel(sender));
    drop(service.call(firing("A")));
    clock.advance(secs(10));
    let repeats: Vec<_> = receiver.iter().take(2).map(|a: Alert| a.repeat).collect();
    assert_eq!(repeats, [0, 1]);
}

#[tokio::test]
async fn a_layer_does_not_keep_its_bus() {
    let (_, bus) = manual();
    let (sender, receiver) = mpsc::channel();
    let (gauge, subscription) = of_each_move(&bus, channel(sender));
    subscription.forget();
    let layer = Throttle::new(&bus, secs(10));
    let _service = layer.layer(callback(|_: Alert| {}));
    drop(bus);
    gauge.set(1.0);
    settle().await;
    // The subscription ended with the bus, and the sender with it.
    assert_eq!(receiver.try_recv(), Err(mpsc::TryRecvError::Disconnected));
    let mut orphan = layer.layer(callback(|_: Alert| {}));
    let ended = LayerError::Ended { layer: "throttle" };
    assert_eq!(orphan.call(firing("A")).await, Err(ended));
}

#[tokio::test]
async fn an_inner_service_of_infallible_calls_needs_no_conversion() {
    let (_, bus) = manual();
    let mut service = Throttle::new(&bus, secs(1)).layer(service_fn(async |_: Alert| {
        Ok::<_, Infallible>("thrown away")
    }));
    service.call(firing("A")).await.unwrap();
    settle().await;
    assert_eq!(service.stats().delivered, 1);
}

#[tokio::test]
async fn a_sleep_on_the_bus_s_clock_is_woken_by_the_test() {
    let (clock, bus) = manual();
    let sleeping = tokio::spawn(bus.clock().sleep(secs(5)));
    settle().await;
    clock.advance(secs(4));
    settle().await;
    assert!(!sleeping.is_finished());
    clock.advance(secs(1));
    sleeping.await.unwrap();
}

#[cfg(feature = "http")]
mod http_metrics {
    use http::{Method, Request, Response, StatusCode};
    use metricbus::{Buckets, DeclareError, service::HttpMetrics};

    use super::*;

    /// Answers with the status that the path names; hangs on `/hang`, fails on `/fail`, panics on `/panic`, takes two
    /// seconds on `/slow`.
    async fn handle(clock: Clock, request: Request<()>) -> Result<Response<()>, &'static str> {
        match request.uri().path() {
            "/hang" => pending().await,
            "/fail" => Err("reset"),
            "/panic" => panic!("as the test wants it"),
            "/slow" => {
                clock.sleep(secs(2)).await;
                Ok(Response::new(()))
            }
            path => {
                let mut response = Response::new(());
                *response.status_mut() = StatusCode::from_bytes(&path.as_bytes()[1..]).unwrap();
                Ok(response)
            }
        }
    }

    fn server(
        clock: &Clock,
        bus: &MetricBus,
    ) -> impl Service<
        Request<()>,
        Response = Response<()>,
        Error = &'static str,
        Future: Send + 'static,
    > + use<> {
        let clock = clock.clone();
        let buckets = Buckets::new([1.0, 3.0]).unwrap();
        HttpMetrics::with_buckets(&bus.scope(), buckets)
            .unwrap()
            .layer(service_fn(move |request| handle(clock.clone(), request)))
    }

    fn get(path: &str) -> Request<()> {
        Request::get(path).body(()).unwrap()
    }

    fn value(bus: &MetricBus, selector: &str) -> Option<f64> {
        let found = bus.series(selector).unwrap();
        assert!(found.len() <= 1, "{selector}: {found:?}");
        Some(found.first()?.value()?.as_f64())
    }

    #[tokio::test]
    async fn requests_are_counted_by_method_and_class_of_status() {
        let (clock, bus) = manual();
        let mut server = server(&clock, &bus);
        for path in ["/200", "/204", "/404", "/503", "/999"] {
            server.call(get(path)).await.unwrap();
        }
        server.call(get("/fail")).await.unwrap_err();
        for method in ["POST", "BREW", "GET2"] {
            let mut request = get("/200");
            *request.method_mut() = Method::from_bytes(method.as_bytes()).unwrap();
            server.call(request).await.unwrap();
        }
        let count = |method, code| {
            let selector = format!("http_requests_total{{method={method:?},code={code:?}}}");
            value(&bus, &selector)
        };
        assert_eq!(count("GET", "2xx"), Some(2.0));
        assert_eq!(count("GET", "4xx"), Some(1.0));
        assert_eq!(count("GET", "5xx"), Some(1.0));
        assert_eq!(count("GET", "other"), Some(1.0));
        assert_eq!(count("GET", "error"), Some(1.0));
        assert_eq!(count("POST", "2xx"), Some(1.0));
        assert_eq!(count("OTHER", "2xx"), Some(2.0));
        assert_eq!(count("GET", "3xx"), None);
        assert_eq!(value(&bus, "http_request_duration_seconds"), Some(9.0));
    }

    #[tokio::test]
    async fn a_request_that_is_dropped_before_its_answer_is_cancelled() {
        let (clock, bus) = manual();
        let mut server = server(&clock, &bus);
        let hanging = tokio::spawn(server.call(get("/hang")));
        // Counted from the call on, also before the future is first polled.
        assert_eq!(value(&bus, "http_requests_in_flight"), Some(1.0));
        settle().await;
        assert_eq!(value(&bus, "http_requests_in_flight"), Some(1.0));
        assert_eq!(value(&bus, "http_requests_total"), None);
        hanging.abort();
        assert!(hanging.await.unwrap_err().is_cancelled());
        assert_eq!(value(&bus, "http_requests_in_flight"), Some(0.0));
        assert_eq!(
            value(&bus, r#"http_requests_total{code="cancelled"}"#),
            Some(1.0)
        );
        assert_eq!(value(&bus, "http_request_duration_seconds"), Some(1.0));
    }

    #[tokio::test]
    async fn a_handler_that_panics_is_an_error_and_not_in_flight_for_ever() {
        let (clock, bus) = manual();
        let mut server = server(&clock, &bus);
        let panicking = tokio::spawn(server.call(get("/panic")));
        assert!(panicking.await.unwrap_err().is_panic());
        assert_eq!(value(&bus, "http_requests_in_flight"), Some(0.0));
        assert_eq!(value(&bus, "http_requests_total"), Some(1.0));
        assert_eq!(
            value(&bus, r#"http_requests_total{code="error"}"#),
            Some(1.0)
        );
    }

    #[tokio::test]
    async fn latency_is_that_of_the_bus_s_clock_in_the_buckets_asked_for() {
        let (clock, bus) = manual();
        let window = bus
            .window("http_request_duration_seconds", secs(60))
            .unwrap();
        let mut server = server(&clock, &bus);
        let slow = tokio::spawn(server.call(get("/slow")));
        settle().await;
        clock.advance(secs(2));
        slow.await.unwrap().unwrap();
        assert_eq!(window.stats().max, Some(2.0));
        let snapshot = bus.snapshot();
        let family = snapshot
            .families
            .iter()
            .find(|family| family.name == "http_request_duration_seconds")
            .unwrap();
        let SampleValue::Histogram(histogram) = &family.series[0].value else {
            panic!("{family:?}");
        };
        let buckets = [(1.0, 0), (3.0, 1), (f64::INFINITY, 1)];
        assert_eq!(histogram.buckets, buckets);
    }

    #[test]
    fn a_scope_whose_label_clashes_is_refused() {
        let (_, bus) = manual();
        let error = HttpMetrics::new(&bus.scope().with_label("code", "x")).unwrap_err();
        assert!(matches!(error, DeclareError::LabelTwice { .. }), "{error}");
    }

    #[tokio::test]
    async fn two_layers_of_one_scope_count_together() {
        let (clock, bus) = manual();
        let (mut one, mut two) = (server(&clock, &bus), server(&clock, &bus));
        one.call(get("/200")).await.unwrap();
        two.call(get("/200")).await.unwrap();
        assert_eq!(value(&bus, "http_requests_total"), Some(2.0));
    }
}
