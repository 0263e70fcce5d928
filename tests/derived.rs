//! Derived gauges on virtual time.

use std::time::Duration;

use metricbus::{
    Clock, Condition, Desc, Expr, Gauge, MetricBus, Rule, RuleError, Threshold, Value,
};

fn bus() -> (MetricBus, Clock) {
    let clock = Clock::manual();
    (MetricBus::builder().clock(clock.clone()).build(), clock)
}

fn secs(s: f64) -> Duration {
    Duration::from_secs_f64(s)
}

fn values(bus: &MetricBus, selector: &str) -> Vec<(String, f64)> {
    let series = bus.series(selector).unwrap();
    let mut values: Vec<_> = series
        .iter()
        .map(|series| (series.to_string(), series.value().as_f64()))
        .collect();
    values.sort_by(|a, b| a.0.cmp(&b.0));
    values
}

#[test]
fn a_window_is_a_gauge_that_goes_on_by_itself() {
    let (bus, clock) = bus();
    let queue = bus.gauge("queue", "Waiting.").unwrap();
    let _avg = bus
        .derive(
            Desc::new("queue_avg_10s", "Waiting, on average.").label("window", "10s"),
            Expr::over("queue", secs(10.0)).avg(),
        )
        .unwrap();
    assert!(values(&bus, "queue_avg_10s").is_empty());
    queue.set(10.0);
    clock.advance(secs(5.0));
    queue.set(0.0);
    clock.advance(secs(5.0));
    let name = r#"queue_avg_10s{window="10s"}"#.to_owned();
    assert_eq!(values(&bus, "queue_avg_10s"), [(name.clone(), 5.0)]);
    clock.advance(secs(20.0));
    assert_eq!(values(&bus, "queue_avg_10s"), [(name, 0.0)]);
    assert_eq!(
        bus.snapshot().family("queue_avg_10s").unwrap().series.len(),
        1
    );
}

#[test]
fn a_rule_on_a_derived_gauge_sees_every_excursion() {
    let (bus, _) = bus();
    let family = |name: &str| {
        bus.family::<Gauge>(Desc::new(name, "Blocks.").labels(["worker"]))
            .unwrap()
    };
    let (used, total) = (family("used"), family("total"));
    let _share = bus
        .derive(
            Desc::new("share", "Share."),
            Expr::value("used") / Expr::value("total"),
        )
        .unwrap();
    let rule = bus
        .add_rule(Rule::new("Full", Condition::when("share", Threshold::above(0.9))).any())
        .unwrap();
    total.with_label_values(&["a"]).unwrap().set(100.0);
    let used = used.with_label_values(&["a"]).unwrap();
    used.set(95.0);
    used.set(10.0);
    let history = rule.history();
    let told: Vec<_> = history
        .iter()
        .map(|alert| (alert.is_firing(), alert.value))
        .collect();
    assert_eq!(told, [(true, Some(0.95)), (false, Some(0.1))]);
}

#[test]
fn no_data_is_nan_and_a_series_that_is_removed_takes_its_gauge_with_it() {
    let (bus, _) = bus();
    let worker = bus
        .family::<Gauge>(Desc::new("depth", "Depth.").labels(["worker"]))
        .unwrap();
    let limit = bus.gauge("limit", "Limit.").unwrap();
    let _share = bus
        .derive(
            Desc::new("share", "Share."),
            Expr::value("depth") / Expr::value("limit"),
        )
        .unwrap();
    worker.with_label_values(&["a"]).unwrap().set(0.0);
    limit.set(1.0);
    let name = r#"share{worker="a"}"#.to_owned();
    assert_eq!(values(&bus, "share"), [(name, 0.0)]);
    limit.set(0.0);
    assert!(values(&bus, "share")[0].1.is_nan());
    bus.remove("depth").unwrap();
    assert!(values(&bus, "share").is_empty());
}

#[test]
fn it_ends_when_dropped_and_its_name_is_free_again() {
    let (bus, _) = bus();
    let a = bus.gauge("a", "A.").unwrap();
    let derived = bus
        .derive(Desc::new("b", "B."), Expr::value("a") * 2.0)
        .unwrap();
    a.set(2.0);
    assert_eq!(values(&bus, "b"), [("b".to_owned(), 4.0)]);
    assert!(matches!(
        bus.derive(Desc::new("b", "B."), Expr::value("a")),
        Err(RuleError::Rule { .. })
    ));
    drop(derived);
    assert!(bus.snapshot().family("b").is_none());
    a.set(3.0);
    bus.counter("b_total", "B.").unwrap().inc();
    bus.derive(Desc::new("c", "C."), Expr::value("a") + 1.0)
        .unwrap()
        .forget();
    assert_eq!(values(&bus, "c"), [("c".to_owned(), 4.0)]);
}

#[test]
fn gauges_derived_in_a_circle_are_refused_by_whichever_closes_it() {
    let (bus, _) = bus();
    let start = bus.gauge("start", "Start.").unwrap();
    // A selector without a name never looks at what is derived.
    let _a = bus
        .derive(Desc::new("a", "A."), Expr::max(r#"{__name__=~"start|b"}"#))
        .unwrap();
    let _b = bus
        .derive(Desc::new("b", "B."), Expr::value("a") + 1.0)
        .unwrap();
    start.set(1.0);
    assert_eq!(values(&bus, "b"), [("b".to_owned(), 2.0)]);
    let why = |name: &str, expr: Expr| {
        bus.derive(Desc::new(name, "X."), expr)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        why("own", Expr::value("own") + 1.0),
        r#"rule "own": it is derived from itself: own, which looks at own"#
    );
    let c = bus
        .derive(Desc::new("c", "C."), Expr::value("d") + 1.0)
        .unwrap();
    let d = || Expr::over("c", secs(10.0)).avg() + Expr::value("start");
    assert_eq!(
        why("d", d()),
        r#"rule "d": it is derived from itself: d, which looks at c, which looks at d"#
    );
    // What was refused has left nothing behind; nor has what was dropped.
    assert!(bus.series("d").unwrap().is_empty());
    drop(c);
    let _d = bus.derive(Desc::new("d", "D."), d()).unwrap();
    assert!(
        bus.derive(Desc::new("c", "C."), Expr::value("d") + 1.0)
            .is_err()
    );
}

#[test]
fn a_circle_that_a_callback_closes_is_cut_off_and_counted() {
    let (bus, _) = bus();
    let start = bus.gauge("start", "Start.").unwrap();
    let _next = bus
        .derive(Desc::new("next", "Next."), Expr::value("start") + 1.0)
        .unwrap();
    let back = start.clone();
    let _circle = bus
        .on_change("next")
        .inline(move |change| back.set(change.value.as_f64()))
        .unwrap();
    let cut_off = || {
        let own = bus.self_families();
        let name = "metricbus_derived_cut_off_total";
        let family = own.iter().find(|family| family.name == name).unwrap();
        format!("{:?}", family.series[0].value)
    };
    // After some rounds it goes on in a thread of the bus.
    for times in 1..=2 {
        start.set(f64::from(times) / 4.0);
        let end = format!("Counter(U64({times}))");
        let mut turns = 0;
        while cut_off() != end {
            turns += 1;
            assert!(turns < 10_000_000, "{}", cut_off());
            std::thread::yield_now();
        }
    }
    // What it was cut off at is that many steps away from where it began: it did not go on beside that.
    let next = values(&bus, "next")[0].1;
    assert_eq!(next, 0.5 + 128.0);
}

#[test]
fn a_row_of_derived_gauges_has_a_bound_and_a_mutation_goes_through_it() {
    let (bus, _) = bus();
    let first = bus.gauge("g0", "First.").unwrap();
    let mut chain = Vec::new();
    let error = loop {
        let (i, next) = (chain.len(), chain.len() + 1);
        let expr = Expr::value(&*format!("g{i}")) + 1.0;
        match bus.derive(Desc::new(format!("g{next}"), "Next."), expr) {
            Ok(derived) => chain.push(derived),
            Err(error) => break error.to_string(),
        }
    };
    assert!(
        error.contains("65 gauges that are derived from each other in a row; at most 64 may be"),
        "{error}"
    );
    assert_eq!(chain.len(), 64);
    first.set(1.0);
    assert_eq!(values(&bus, "g64"), [("g64".to_owned(), 65.0)]);
    // Side by side there may be as many as one likes.
    for i in 0..2_000 {
        let expr = Expr::value("g1") * f64::from(i);
        bus.derive(Desc::new(format!("side{i}"), "Side."), expr)
            .unwrap()
            .forget();
    }
    first.set(2.0);
    assert_eq!(
        values(&bus, "side1999"),
        [("side1999".to_owned(), 3.0 * 1999.0)]
    );
}

#[test]
fn a_trigger_between_two_bounds_and_a_moving_average() {
    let (bus, clock) = bus();
    let queue = bus.gauge("queue", "Waiting.").unwrap();
    let _trigger = bus
        .derive(
            Desc::new("trigger", "Trigger."),
            Expr::value("queue").scaled(50.0, 100.0),
        )
        .unwrap();
    let _smooth = bus
        .derive(
            Desc::new("smooth", "Smooth."),
            Expr::value("queue").ewma(secs(1.0)),
        )
        .unwrap();
    let mut row = |value: f64| {
        queue.set(value);
        values(&bus, "trigger")[0].1
    };
    assert_eq!(
        [0.0, 50.0, 75.0, 100.0, 500.0].map(&mut row),
        [0.0, 0.0, 0.5, 1.0, 1.0]
    );
    assert!(row(f64::NAN).is_nan());
    queue.set(0.0);
    clock.advance(secs(60.0));
    queue.set(10.0);
    clock.advance(secs(1.0));
    let smooth = || values(&bus, "smooth")[0].1;
    assert!((smooth() - 6.321).abs() < 1e-3, "{}", smooth());
    clock.advance(secs(2.0));
    assert!((smooth() - 9.502).abs() < 1e-3, "{}", smooth());
}

#[test]
fn a_ratio_is_as_its_table_says() {
    let (bus, _) = bus();
    let gauge = |name: &str, worker: &str| {
        let family = bus.family::<Gauge>(Desc::new(name, "Blocks.").labels(["worker"]));
        family.unwrap().with_label_values(&[worker]).unwrap()
    };
    let _ratio = bus
        .derive(
            Desc::new("ratio", "Ratio."),
            Expr::value("used") / Expr::value("total"),
        )
        .unwrap();
    let (used, total) = (gauge("used", "a"), gauge("total", "a"));
    let shown = || values(&bus, "ratio").first().map(|(_, value)| *value);
    total.set(100.0);
    assert_eq!(shown(), None, "never set");
    used.set(95.0);
    assert_eq!(shown(), Some(0.95));
    used.set(f64::NAN);
    assert!(shown().unwrap().is_nan());
    used.set(1.0);
    total.set(0.0);
    assert_eq!(shown(), Some(f64::INFINITY));
    gauge("used", "c").set(95.0);
    gauge("total", "b").set(100.0);
    assert_eq!(values(&bus, "ratio").len(), 1, "b and c have no partner");
    bus.remove("total").unwrap();
    let (a, b) = (gauge("used", "a"), gauge("used", "b"));
    let _share = bus
        .derive(
            Desc::new("share", "Share."),
            Expr::value("used") / Expr::value("limit"),
        )
        .unwrap();
    bus.gauge("limit", "Limit.").unwrap().set(100.0);
    a.set(95.0);
    b.set(50.0);
    let share = values(&bus, "share");
    let of = |worker: &str| {
        share
            .iter()
            .find(|(name, _)| name.contains(worker))
            .unwrap()
            .1
    };
    assert_eq!((of("\"a\""), of("\"b\"")), (0.95, 0.5));
}

#[test]
fn values_set_by_many_threads_at_once_all_arrive_and_the_last_one_stays() {
    let bus = MetricBus::new();
    let counter = bus.counter("n_total", "N.").unwrap();
    let _twice = bus
        .derive(Desc::new("twice", "Twice."), Expr::value("n_total") * 2.0)
        .unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..5_000 {
                    counter.inc();
                }
            });
        }
    });
    assert_eq!(counter.series().value(), Value::U64(20_000));
    // Left to the dispatcher where one thread would have set too many.
    let twice = || values(&bus, "twice")[0].1;
    let mut turns = 0;
    while twice() != 40_000.0 && turns < 1_000_000 {
        std::thread::yield_now();
        turns += 1;
    }
    assert_eq!(twice(), 40_000.0);
}
