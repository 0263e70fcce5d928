//! Declaring, subscribing, unsubscribing, delivering: what a user of the bus meets.

use std::{
    sync::{Arc, Mutex, mpsc},
    task::Poll,
    thread::{self, ThreadId},
    time::Duration,
};

use futures::{FutureExt, StreamExt, executor::block_on};
use metricbus::{
    Buckets, Cause, Clock, Condition, Counter, Crossed, Crossing, DeclareError, Delta, Desc, Expr,
    Gauge, Histogram, MetricBus, Rule, SubscribeError, Threshold, Value,
};

// Declaring

#[test]
fn declaring_the_same_thing_twice_gives_the_same_metric() {
    let bus = MetricBus::new();
    let declare = || bus.gauge("g", "g").unwrap();
    declare().set(3.0);
    assert_eq!(declare().get(), Some(3.0));
    assert_eq!(declare().series(), declare().series());
    assert_eq!(bus.snapshot().families.len(), 1);
}

#[test]
fn a_clash_says_what_clashes_with_what() {
    let bus = MetricBus::new();
    bus.declare::<Histogram>(
        Desc::new("wait_seconds", "Waited.")
            .unit("seconds")
            .label("a", "b"),
    )
    .unwrap();
    let again = |desc: Desc| {
        bus.declare::<Histogram>(desc)
            .map(drop)
            .unwrap_err()
            .to_string()
    };
    let desc = || Desc::new("wait_seconds", "Waited.");
    for (error, parts) in [
        (
            bus.gauge("wait_seconds", "Waited.")
                .map(drop)
                .unwrap_err()
                .to_string(),
            vec!["type", "histogram", "gauge"],
        ),
        (
            again(Desc::new("wait_seconds", "Lost.")),
            vec!["help", "Waited.", "Lost."],
        ),
        (again(desc()), vec!["unit", "seconds", "none"]),
        (
            again(desc().unit("seconds")),
            vec!["label names", "[\"a\"]", "[]"],
        ),
        (
            again(
                desc()
                    .unit("seconds")
                    .label("a", "c")
                    .buckets(Buckets::new([1.0]).unwrap()),
            ),
            vec!["buckets", "0.005", "[1.0]"],
        ),
    ] {
        for part in parts {
            assert!(error.contains(part), "{error:?} does not say {part:?}");
        }
    }
    // The same labels with another value are another series of the same metric.
    bus.declare::<Histogram>(desc().unit("seconds").label("a", "c"))
        .unwrap();
}

#[test]
fn names_that_would_meet_on_the_metrics_page_clash_when_declared() {
    for (first, second) in [
        ("h", "c:h_count"),
        ("h", "c:h_bucket"),
        ("c:x_total", "g:x"),
        ("g:x", "c:x_total"),
        ("c:x", "c:x_total"),
        ("g:h_sum", "h"),
    ] {
        let bus = MetricBus::new();
        let declare = |spec: &str| match spec.split_once(':') {
            Some(("c", name)) => bus.counter(name, "").map(drop),
            Some((_, name)) => bus.gauge(name, "").map(drop),
            None => bus.histogram(spec, "", Buckets::default()).map(drop),
        };
        declare(first).unwrap();
        let error = declare(second).unwrap_err();
        assert!(
            matches!(error, DeclareError::SampleClash { .. }),
            "{first} {second}: {error}"
        );
    }
}

#[test]
fn scopes_nest_and_a_label_given_twice_is_refused() {
    let bus = MetricBus::new();
    let scope = bus
        .scope()
        .with_prefix("a_")
        .with_label("x", 1)
        .with_prefix("b_");
    let gauge = scope.gauge("g", "g").unwrap();
    assert_eq!(gauge.series().to_string(), "a_b_g{x=\"1\"}");
    assert!(matches!(
        scope.with_label("x", 2).gauge("h", "h"),
        Err(DeclareError::LabelTwice { .. })
    ));
    assert!(matches!(
        scope.with_prefix("\n").gauge("h", "h"),
        Err(DeclareError::Name { .. })
    ));
}

#[test]
fn scopes_that_give_labels_in_another_order_share_a_family() {
    let bus = MetricBus::new();
    let one = bus
        .scope()
        .with_label("a", 1)
        .with_label("b", 2)
        .gauge("g", "g")
        .unwrap();
    let two = bus
        .scope()
        .with_label("b", 2)
        .with_label("a", 1)
        .gauge("g", "g")
        .unwrap();
    one.set(5.0);
    assert_eq!(two.get(), Some(5.0));
}

// Families

#[test]
fn beyond_the_limit_children_share_the_overflow_series_and_are_counted() {
    let bus = MetricBus::new();
    let family = bus
        .family::<Counter>(Desc::new("c_total", "c").labels(["i"]).series_max(2))
        .unwrap();
    for i in 0..5 {
        family.with_label_values(&[i.to_string()]).unwrap().inc();
    }
    let names: Vec<_> = family.series().iter().map(|s| s.to_string()).collect();
    assert_eq!(
        names,
        [
            "c_total{i=\"0\"}",
            "c_total{i=\"1\"}",
            "c_total{otel_metric_overflow=\"true\"}"
        ]
    );
    assert_eq!(family.series()[2].value(), Some(Value::U64(3)));
    let own = bus.self_families();
    let overflowed = own
        .iter()
        .find(|f| f.name == "metricbus_series_overflowed_total")
        .unwrap();
    assert_eq!(
        overflowed.series[0].labels,
        [("metric".to_owned(), "c_total".to_owned())]
    );
    // A place that becomes free is used again.
    family.remove(&["0"]).unwrap();
    family.with_label_values(&["new"]).unwrap().inc();
    assert_eq!(family.len(), 3);
}

#[test]
fn a_removed_child_does_not_come_back_by_a_late_write() {
    let bus = MetricBus::new();
    let family = bus
        .family::<Counter>(Desc::new("c_total", "c").labels(["i"]))
        .unwrap();
    let late = family.with_label_values(&["1"]).unwrap();
    late.inc();
    assert!(family.remove(&["1"]).unwrap());
    assert!(!family.remove(&["1"]).unwrap());
    late.inc();
    assert!(late.series().is_removed());
    assert!(family.is_empty());
    assert_eq!(family.with_label_values(&["1"]).unwrap().get(), 0);
}

#[test]
fn a_child_expires_when_idle_and_not_while_it_is_written() {
    let clock = Clock::manual();
    let bus = MetricBus::builder().clock(clock.clone()).build();
    let ttl = Duration::from_secs(60);
    let family = bus
        .family::<Gauge>(Desc::new("g", "g").labels(["i"]).expire_after(ttl))
        .unwrap();
    let busy = family.with_label_values(&["busy"]).unwrap();
    family.with_label_values(&["idle"]).unwrap().set(1.0);
    for _ in 0..6 {
        clock.advance(Duration::from_secs(15));
        // The same value again is a mutation all the same.
        busy.set(7.0);
    }
    let left: Vec<_> = family
        .series()
        .iter()
        .map(|s| s.label("i").unwrap())
        .collect();
    assert_eq!(left, ["busy"]);
    clock.advance(Duration::from_secs(76));
    assert!(family.is_empty());
    // A child made after all were gone expires as well.
    let _child = family.with_label_values(&["again"]).unwrap();
    clock.advance(Duration::from_secs(76));
    assert!(family.is_empty());
}

#[test]
fn clearing_a_scopes_family_leaves_the_children_of_other_scopes() {
    let bus = MetricBus::new();
    let family = |worker: u32| {
        bus.scope()
            .with_label("worker", worker)
            .family::<Counter>(Desc::new("c_total", "c").labels(["i"]))
            .unwrap()
    };
    for worker in 0..3 {
        family(worker).with_label_values(&["x"]).unwrap().inc();
    }
    family(1).clear();
    assert_eq!(
        (family(0).len(), family(1).len(), family(2).len()),
        (1, 0, 1)
    );
}

// Counters, gauges, histograms

#[test]
fn a_float_counter_refuses_what_would_make_it_fall_and_goes_on() {
    let bus = MetricBus::new();
    let counter: Counter<f64> = bus.declare(Desc::new("c_total", "c")).unwrap();
    counter.inc_by(1.5);
    for bad in [-1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        counter.inc_by(bad);
        assert!(counter.try_inc_by(bad).is_err());
    }
    counter.inc();
    assert_eq!(counter.get(), 2.5);
}

#[test]
fn set_max_and_set_min_only_ever_move_one_way() {
    let bus = MetricBus::new();
    let gauge = bus.gauge("g", "g").unwrap();
    let mut tap = bus.subscribe("g").unwrap();
    for v in [3.0, 1.0, f64::NAN, 5.0] {
        gauge.set_max(v);
    }
    assert_eq!(gauge.get(), Some(5.0));
    gauge.set_min(7.0);
    gauge.set_min(-2.0);
    assert_eq!(gauge.get(), Some(-2.0));
    // What did not change the value was no mutation.
    let changes: Vec<_> = std::iter::from_fn(|| tap.next().now_or_never()?)
        .map(|m| m.unwrap().change.amount())
        .collect();
    assert_eq!(changes, [3.0, 2.0, -7.0]);
}

#[test]
fn guards_measure_by_the_buss_clock() {
    let clock = Clock::manual();
    let bus = MetricBus::builder().clock(clock.clone()).build();
    let last = bus.gauge("last_seconds", "g").unwrap();
    let all = bus
        .histogram("all_seconds", "h", Buckets::new([1.0, 2.0]).unwrap())
        .unwrap();
    {
        let _last = last.start_timer();
        let _all = all.start_timer();
        clock.advance(Duration::from_millis(1500));
    }
    assert_eq!(last.get(), Some(1.5));
    assert_eq!(
        all.snapshot().buckets,
        [(1.0, 0), (2.0, 1), (f64::INFINITY, 1)]
    );
}

// Subscribing

#[test]
fn a_wrong_selector_or_threshold_is_an_error_when_subscribing() {
    let bus = MetricBus::new();
    assert!(matches!(
        bus.on_change("a{").stream(),
        Err(SubscribeError::Selector(_))
    ));
    assert!(matches!(
        bus.on_threshold("a", Threshold::above(1.0).clear_below(2.0))
            .call(drop),
        Err(SubscribeError::ClearBound { .. })
    ));
    assert!(matches!(
        bus.on_delta("a", Delta::absolute(0.0)).inline(drop),
        Err(SubscribeError::Delta { .. })
    ));
    assert!(bus.subscribe("{a=~\"(\"}").is_err());
    assert!(bus.window("", Duration::from_secs(1)).is_err());
}

#[test]
fn what_holds_already_is_said_once_unless_told_otherwise() {
    let bus = MetricBus::new();
    let gauge = bus.gauge("g", "g").unwrap();
    gauge.set(95.0);
    let threshold = Threshold::above(90.0);
    let mut told = bus.on_threshold("g", threshold).stream().unwrap();
    let first = block_on(told.next()).unwrap();
    assert_eq!(
        (first.cause, first.value, first.epoch),
        (Cause::Initial, 95.0, 1)
    );

    let mut silent = bus
        .on_threshold("g", threshold)
        .initial(false)
        .stream()
        .unwrap();
    gauge.set(1.0);
    let first = block_on(silent.next()).unwrap();
    assert_eq!(
        (first.state, first.cause, first.epoch),
        (Crossed::Cleared, Cause::Crossing, 1)
    );
}

#[test]
fn a_series_that_is_removed_while_raised_is_cleared() {
    let bus = MetricBus::new();
    let family = bus
        .family::<Gauge>(Desc::new("g", "g").labels(["i"]))
        .unwrap();
    let mut crossings = bus
        .on_threshold("g", Threshold::above(1.0))
        .stream()
        .unwrap();
    family.with_label_values(&["a"]).unwrap().set(2.0);
    family.remove(&["a"]).unwrap();
    assert_eq!(block_on(crossings.next()).unwrap().state, Crossed::Raised);
    let last = block_on(crossings.next()).unwrap();
    assert_eq!(
        (last.state, last.cause, last.value),
        (Crossed::Cleared, Cause::Removed, 2.0)
    );
}

#[test]
fn histograms_are_judged_by_what_they_observe() {
    let bus = MetricBus::new();
    let h = bus.histogram("h", "h", Buckets::default()).unwrap();
    let mut slow = bus
        .on_threshold("h", Threshold::above(1.0))
        .stream()
        .unwrap();
    let mut changes = bus.on_change("h").stream().unwrap();
    for v in [0.5, 3.0, 0.5] {
        h.observe(v);
    }
    assert_eq!(block_on(slow.next()).unwrap().value, 3.0);
    assert_eq!(block_on(slow.next()).unwrap().state, Crossed::Cleared);
    assert_eq!(block_on(changes.next()).unwrap().value, Value::U64(3));
    h.observe(0.5);
    assert_eq!(block_on(changes.next()).unwrap().value, Value::U64(4));
}

#[test]
fn dropping_a_subscription_ends_it_and_forgetting_it_does_not() {
    let bus = MetricBus::new();
    let gauge = bus.gauge("g", "g").unwrap();
    let (tx, rx) = mpsc::channel();
    let subscribe = |name: &'static str| {
        let tx = tx.clone();
        bus.on_change("g")
            .call(move |_| tx.send(name).unwrap())
            .unwrap()
    };
    drop(subscribe("dropped"));
    subscribe("forgotten").forget();
    gauge.set(1.0);
    assert_eq!(rx.recv().unwrap(), "forgotten");
    // The bus going away ends the forgotten one, and with it its closure.
    drop(bus);
    drop(tx);
    assert!(rx.recv().is_err());
}

#[test]
fn a_stream_ends_with_the_bus_after_what_was_said_before() {
    let bus = MetricBus::new();
    let gauge = bus.gauge("g", "g").unwrap();
    let stream = bus
        .on_threshold("g", Threshold::above(1.0))
        .stream()
        .unwrap();
    gauge.set(2.0);
    drop(bus);
    gauge.set(0.0);
    assert_eq!(block_on(stream.collect::<Vec<_>>()).len(), 1);
}

#[test]
fn callbacks_run_elsewhere_and_inline_ones_right_here() {
    let bus = MetricBus::new();
    let gauge = bus.gauge("g", "g").unwrap();
    let (tx, rx) = mpsc::channel::<ThreadId>();
    let _call = bus
        .on_change("g")
        .call(move |_| tx.send(thread::current().id()).unwrap())
        .unwrap();
    let inline = Arc::new(Mutex::new(None));
    let told = inline.clone();
    let _inline = bus
        .on_change("g")
        .inline(move |c| *told.lock().unwrap() = Some((thread::current().id(), c.value)))
        .unwrap();
    gauge.set(4.0);
    // No waiting: it ran before `set` returned.
    assert_eq!(
        *inline.lock().unwrap(),
        Some((thread::current().id(), Value::F64(4.0)))
    );
    assert_ne!(rx.recv().unwrap(), thread::current().id());
}

#[test]
fn inline_callbacks_of_many_threads_run_one_at_a_time_and_in_order() {
    let bus = MetricBus::new();
    let counter = bus.counter("c_total", "c").unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let told = seen.clone();
    let _inline = bus
        .on_delta(&counter, Delta::absolute(10.0))
        .inline(move |m| told.try_lock().expect("two at a time").push(m.to))
        .unwrap();
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| (0..5_000).for_each(|_| counter.inc()));
        }
    });
    let seen = seen.lock().unwrap();
    assert!(seen.windows(2).all(|w| w[1] >= w[0] + 10.0), "{seen:?}");
    assert!(15_000.0 - seen.last().unwrap() < 10.0);
}

#[test]
fn an_async_callback_runs_without_any_runtime() {
    let bus = MetricBus::new();
    let gauge = bus.gauge("g", "g").unwrap();
    let (tx, rx) = mpsc::channel();
    let _subscription = bus
        .on_threshold("g", Threshold::above(1.0))
        .call_async(move |crossing| {
            let tx = tx.clone();
            async move {
                // Once to the back of the queue: a future that is really suspended and woken.
                let mut polled = false;
                std::future::poll_fn(|cx| {
                    cx.waker().wake_by_ref();
                    if std::mem::replace(&mut polled, true) {
                        Poll::Ready(())
                    } else {
                        Poll::Pending
                    }
                })
                .await;
                tx.send(crossing.value).unwrap();
            }
        })
        .unwrap();
    gauge.set(2.0);
    assert_eq!(rx.recv().unwrap(), 2.0);
}

#[cfg(feature = "tokio")]
#[tokio::test]
async fn an_async_callback_made_inside_tokio_can_use_its_timers() {
    let bus = MetricBus::new();
    let gauge = bus.gauge("g", "g").unwrap();
    let (tx, mut rx) = futures::channel::mpsc::unbounded();
    let _subscription = bus
        .on_threshold("g", Threshold::above(1.0))
        .call_async(move |crossing| {
            let tx = tx.clone();
            async move {
                // Panics outside of a tokio runtime.
                tokio::time::timeout(Duration::from_secs(60), async {})
                    .await
                    .unwrap();
                tx.unbounded_send(crossing.value).unwrap();
            }
        })
        .unwrap();
    gauge.set(2.0);
    assert_eq!(rx.next().await, Some(2.0));
}

#[test]
fn an_async_callback_that_panics_is_caught() {
    let bus = MetricBus::new();
    let gauge = bus.gauge("g", "g").unwrap();
    let (tx, rx) = mpsc::channel();
    let subscription = bus
        .on_threshold("g", Threshold::above(0.5))
        .call_async(move |c| {
            let tx = tx.clone();
            async move {
                tx.send(c.epoch).unwrap();
                assert!(c.epoch != 1, "the first one");
            }
        })
        .unwrap();
    gauge.set(1.0);
    gauge.set(0.0);
    assert_eq!(rx.iter().take(2).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(subscription.stats().panicked, 1);
}

#[test]
fn a_selector_means_series_of_the_future_too() {
    let bus = MetricBus::new();
    let mut crossings = bus
        .on_threshold("q{role=~\"pre.*\"}", Threshold::above(1.0))
        .stream()
        .unwrap();
    assert_eq!(crossings.subscription().stats().series_matched, 0);
    let family = bus
        .family::<Gauge>(Desc::new("q", "q").labels(["role"]))
        .unwrap();
    for role in ["decode", "prefill"] {
        family.with_label_values(&[role]).unwrap().set(2.0);
    }
    let crossing = block_on(crossings.next()).unwrap();
    assert_eq!(crossing.series.label("role").as_deref(), Some("prefill"));
    assert_eq!(crossings.subscription().stats().series_matched, 1);
}

#[test]
fn a_callback_may_declare_subscribe_and_unsubscribe() {
    let bus = MetricBus::new();
    let gauge = bus.gauge("g", "g").unwrap();
    let (tx, rx) = mpsc::channel();
    let weak = bus.clone();
    let subscription = bus
        .on_threshold("g", Threshold::above(0.5))
        .inline(move |c: Crossing| {
            let made = weak.gauge("made_in_callback", "g").unwrap();
            let nested = weak.on_change("made_in_callback").inline(drop).unwrap();
            made.set(c.value);
            drop(nested);
            tx.send(made.get()).unwrap();
        })
        .unwrap();
    gauge.set(3.0);
    assert_eq!(rx.recv().unwrap(), Some(3.0));
    drop(subscription);
}

#[test]
fn nothing_comes_after_unsubscribing() {
    let bus = MetricBus::new();
    let gauge = bus.gauge("g", "g").unwrap();
    let (tx, rx) = mpsc::channel();
    let (entered, inside) = mpsc::channel();
    let (go, gate) = mpsc::channel::<()>();
    let subscription = bus
        .on_threshold("g", Threshold::above(0.5))
        .call(move |crossing| {
            let _ = entered.send(());
            let _ = gate.recv();
            let _ = tx.send(crossing.epoch);
        })
        .unwrap();
    for i in 1..=6 {
        gauge.set(f64::from(i % 2));
    }
    inside.recv().unwrap();
    // One is running, five are waiting.
    subscription.unsubscribe();
    drop(go);
    assert_eq!(rx.iter().collect::<Vec<_>>(), [1]);
}

#[test]
fn the_removal_of_a_histogram_carries_its_last_observation() {
    let bus = MetricBus::new();
    let family = bus
        .family::<Histogram>(Desc::new("h", "h").labels(["i"]))
        .unwrap();
    let mut slow = bus
        .on_threshold("h", Threshold::above(1.0))
        .stream()
        .unwrap();
    let child = family.with_label_values(&["a"]).unwrap();
    for v in [2.0, 2.0, 3.0, 5.0] {
        child.observe(v);
    }
    family.remove(&["a"]).unwrap();
    assert_eq!(block_on(slow.next()).unwrap().value, 2.0);
    let last = block_on(slow.next()).unwrap();
    // The last one that was judged: 3 and 5 lay in the quiet band.
    assert_eq!((last.cause, last.value), (Cause::Removed, 2.0));
}

#[test]
fn a_panic_in_the_drop_of_what_a_callback_panicked_with_harms_nobody() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("in a drop");
        }
    }
    let bus = MetricBus::new();
    let gauge = bus.gauge("g", "g").unwrap();
    let bad = bus
        .on_threshold("g", Threshold::above(0.5))
        .inline(|_| std::panic::panic_any(Bomb))
        .unwrap();
    let seen = Arc::new(Mutex::new(0));
    let counted = seen.clone();
    let _good = bus
        .on_change("g")
        .inline(move |_| *counted.lock().unwrap() += 1)
        .unwrap();
    for i in 1..=8 {
        gauge.set(f64::from(i));
        gauge.set(0.0);
    }
    assert!(bad.is_detached());
    assert_eq!(*seen.lock().unwrap(), 16);
}

#[test]
fn metrics_may_be_touched_while_a_thread_ends() {
    let bus = MetricBus::new();
    let inflight = bus.gauge("inflight", "g").unwrap();
    let (tx, rx) = mpsc::channel();
    let _inline = bus
        .on_change("inflight")
        .call(move |c| tx.send(c.value.as_f64()).unwrap())
        .unwrap();
    let _also = bus
        .on_delta("inflight", Delta::absolute(0.5))
        .inline(drop)
        .unwrap();
    thread_local! {
        static HELD: std::cell::RefCell<Option<metricbus::InProgress>> = const { std::cell::RefCell::new(None) };
    }
    let held = inflight.clone();
    thread::spawn(move || HELD.with(|h| *h.borrow_mut() = Some(held.track_inprogress())))
        .join()
        .unwrap();
    while rx.recv().unwrap() != 0.0 {}
    assert_eq!(inflight.get(), Some(0.0));
}

#[test]
fn removing_by_selector_takes_a_workers_series_and_its_component() {
    let bus = MetricBus::new();
    for worker in 0..3 {
        let scope = bus.scope().with_label("worker", worker);
        scope.gauge("depth", "d").unwrap().set(1.0);
        scope.counter("requests_total", "r").unwrap().inc();
        scope
            .add_component("Worker", "A worker.", &["depth", "requests_total"])
            .unwrap();
    }
    assert_eq!(bus.remove("depth{worker=\"1\"}").unwrap(), 1);
    assert_eq!(bus.components().len(), 3);
    assert_eq!(bus.remove("{worker=\"1\"}").unwrap(), 1);
    let left: Vec<_> = bus
        .components()
        .iter()
        .map(|c| c.labels[0].1.clone())
        .collect();
    assert_eq!(left, ["0", "2"]);
    assert!(bus.remove("{").is_err());
}

#[test]
fn a_component_with_labels_that_would_break_the_metrics_page_is_refused() {
    let bus = MetricBus::new();
    let scope = bus.scope();
    for bad in [
        scope.with_label("bad\nname", 1),
        scope.with_label("x", 1).with_label("x", 2),
        scope.with_label("le", 1),
    ] {
        assert!(bad.add_component("C", "c", &[]).is_err());
    }
    assert!(bus.components().is_empty());
}

#[test]
fn a_handle_of_another_bus_is_refused_wherever_a_selector_is_asked_for() {
    let (bus, other) = (MetricBus::new(), MetricBus::new());
    let queue = bus.gauge("queue_depth", "Requests waiting.").unwrap();
    // The same name there makes it no less another's.
    other.gauge("queue_depth", "Requests waiting.").unwrap();
    let series = queue.series();
    let width = Duration::from_secs(10);
    let rule = |name: &str| {
        let high = Condition::when(&series, Threshold::above(1.0));
        Rule::new(name, high.and(Condition::stale(&series, width)))
    };
    let known = other
        .add_rule(Rule::new(
            "Known",
            Condition::when("queue_depth", Threshold::above(1.0)),
        ))
        .unwrap();
    let refusals = [
        other
            .on_threshold(&series, Threshold::above(1.0))
            .stream()
            .map(|_| ())
            .unwrap_err()
            .to_string(),
        other
            .on_delta(&series, Delta::absolute(1.0))
            .stream()
            .map(|_| ())
            .unwrap_err()
            .to_string(),
        other
            .on_change(&series)
            .stream()
            .map(|_| ())
            .unwrap_err()
            .to_string(),
        other
            .subscribe(&series)
            .map(|_| ())
            .unwrap_err()
            .to_string(),
        other
            .window(&series, width)
            .map(|_| ())
            .unwrap_err()
            .to_string(),
        other.series(&series).unwrap_err().to_string(),
        other.remove(&series).unwrap_err().to_string(),
        other
            .add_rule(rule("New"))
            .map(|_| ())
            .unwrap_err()
            .to_string(),
        known.update(rule("Known")).unwrap_err().to_string(),
        other
            .derive(Desc::new("twice", "Twice."), Expr::value(&series) * 2.0)
            .map(|_| ())
            .unwrap_err()
            .to_string(),
    ];
    for refusal in refusals {
        assert!(
            refusal.contains("series queue_depth is not one of this bus"),
            "{refusal}"
        );
    }
    assert_eq!(other.series("queue_depth").unwrap().len(), 1);
    assert_eq!(bus.series(&series).unwrap().len(), 1);
}
