//! Goal: a struct that derives `Metrics` declares what its text says, no more and no less.
//! Method: register it on a bus and compare the bus's snapshot with the struct. What the derive refuses is in the crate
//! `compile-fail`.
#![cfg(feature = "derive")]

use std::{error::Error, fmt, time::Duration};

use metricbus::{
    Buckets, Clock, Counter, Desc, Family, FamilySnapshot, Gauge, Histogram, Labels, Metric,
    MetricBus, MetricKind, Metrics, SampleValue,
};

type Outcome = Result<(), Box<dyn Error>>;

/// What a worker of the fleet measures,
/// over two lines.
///
/// This paragraph is for readers of the source.
#[derive(Metrics)]
#[metrics(prefix = "worker_", component = "worker", label("role" = "decode"))]
struct Worker {
    /// Requests served,
    /// whatever came of them.
    requests_total: Counter,
    /// Tokens, in fractions of a batch.
    tokens_total: Counter<f64>,
    /// Share of the KV cache in use.
    #[metric(name = "kv_usage_ratio", unit = "ratio", label("tier" = "gpu"))]
    kv_usage: Gauge,
    #[metric(help = "Time to first token.", unit = "seconds", buckets = [0, 0.5, 1])]
    ttft_seconds: Histogram,
}

fn family(bus: &MetricBus, name: &str) -> FamilySnapshot {
    match bus.snapshot().family(name) {
        Some(family) => family.clone(),
        None => panic!("no {name} among {:?}", names(bus)),
    }
}

fn names(bus: &MetricBus) -> Vec<String> {
    bus.snapshot()
        .families
        .into_iter()
        .map(|family| family.name)
        .collect()
}

/// The series of a family, each as its labels and its value.
fn series(bus: &MetricBus, name: &str) -> Vec<String> {
    let mut series: Vec<_> = bus
        .series(name)
        .expect("a name is a selector")
        .iter()
        .map(|series| format!("{series} {}", series.value().unwrap().as_f64()))
        .collect();
    series.sort();
    series
}

fn bounds(bus: &MetricBus, name: &str) -> Vec<f64> {
    match &family(bus, name).series[0].value {
        SampleValue::Histogram(histogram) => {
            histogram.buckets.iter().map(|(bound, _)| *bound).collect()
        }
        other => panic!("{name} is {other:?}"),
    }
}

#[test]
fn a_struct_declares_its_fields_with_name_help_unit_type_and_labels() -> Outcome {
    let bus = MetricBus::new();
    let worker: Worker = bus.register()?;
    worker.requests_total.inc();
    worker.tokens_total.inc_by(0.5);
    worker.kv_usage.set(0.25);
    worker.ttft_seconds.observe(0.7);

    let declared: Vec<_> = bus
        .snapshot()
        .families
        .into_iter()
        .map(|family| (family.name, family.kind, family.unit, family.help))
        .collect();
    let row = |name: &str, kind, unit: Option<&str>, help: &str| {
        (
            name.to_owned(),
            kind,
            unit.map(str::to_owned),
            help.to_owned(),
        )
    };
    assert_eq!(
        declared,
        [
            row(
                "worker_kv_usage_ratio",
                MetricKind::Gauge,
                Some("ratio"),
                "Share of the KV cache in use."
            ),
            row(
                "worker_requests_total",
                MetricKind::Counter,
                None,
                "Requests served, whatever came of them."
            ),
            row(
                "worker_tokens_total",
                MetricKind::Counter,
                None,
                "Tokens, in fractions of a batch."
            ),
            row(
                "worker_ttft_seconds",
                MetricKind::Histogram,
                Some("seconds"),
                "Time to first token."
            ),
        ]
    );
    assert_eq!(
        series(&bus, "worker_requests_total"),
        [r#"worker_requests_total{role="decode"} 1"#]
    );
    assert_eq!(
        series(&bus, "worker_tokens_total"),
        [r#"worker_tokens_total{role="decode"} 0.5"#]
    );
    assert_eq!(
        series(&bus, "worker_kv_usage_ratio"),
        [r#"worker_kv_usage_ratio{role="decode",tier="gpu"} 0.25"#]
    );
    assert_eq!(
        bounds(&bus, "worker_ttft_seconds"),
        [0.0, 0.5, 1.0, f64::INFINITY]
    );
    Ok(())
}

#[test]
fn the_component_is_known_to_the_bus_by_its_name_its_first_paragraph_and_its_metrics() -> Outcome {
    let bus = MetricBus::new();
    let _worker: Worker = bus
        .scope()
        .with_prefix("fleet_")
        .with_label("pod", "a")
        .register()?;
    let components = bus.components();
    assert_eq!(components.len(), 1);
    assert_eq!(components[0].name, "worker");
    assert_eq!(
        components[0].help,
        "What a worker of the fleet measures, over two lines."
    );
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(
        components[0].labels,
        [pair("pod", "a"), pair("role", "decode")]
    );
    assert_eq!(
        components[0].metrics,
        [
            "fleet_worker_requests_total",
            "fleet_worker_tokens_total",
            "fleet_worker_kv_usage_ratio",
            "fleet_worker_ttft_seconds",
        ]
    );
    Ok(())
}

#[test]
fn a_component_without_a_name_of_its_own_has_the_name_of_the_struct() -> Outcome {
    #[derive(Metrics)]
    struct Router {
        /// Routes known.
        routes: Gauge,
    }
    let bus = MetricBus::new();
    let router: Router = bus.register()?;
    router.routes.set(3.0);
    assert_eq!(bus.components()[0].name, "Router");
    assert_eq!(bus.components()[0].help, "");
    Ok(())
}

#[test]
fn instances_under_different_labels_share_a_family_and_not_a_series() -> Outcome {
    let bus = MetricBus::new();
    for (pod, requests) in [("a", 2), ("b", 5)] {
        let worker: Worker = bus.scope().with_label("pod", pod).register()?;
        worker.requests_total.inc_by(requests);
    }
    assert_eq!(
        series(&bus, "worker_requests_total"),
        [
            r#"worker_requests_total{pod="a",role="decode"} 2"#,
            r#"worker_requests_total{pod="b",role="decode"} 5"#,
        ]
    );
    assert_eq!(family(&bus, "worker_requests_total").series.len(), 2);
    assert_eq!(bus.components().len(), 2);
    Ok(())
}

#[test]
fn a_struct_registered_twice_on_one_scope_has_the_same_series() -> Outcome {
    let bus = MetricBus::new();
    let first: Worker = bus.register()?;
    let second: Worker = bus.register()?;
    first.requests_total.inc();
    second.requests_total.inc();
    assert_eq!(first.requests_total.get(), 2);
    assert_eq!(bus.components().len(), 1);
    Ok(())
}

#[test]
fn nested_structs_are_registered_within_their_prefix_and_labels() -> Outcome {
    #[derive(Metrics)]
    struct Queue {
        /// Requests waiting.
        depth: Gauge,
    }

    const LANES: u32 = 4;

    #[derive(Metrics)]
    #[metrics(prefix = "router_", label("region" = "eu"))]
    struct Router {
        #[metrics(nested)]
        plain: Queue,
        #[metrics(nested, prefix = "slow_", label("lanes" = LANES * 2), label("order" = "fifo"))]
        slow: Queue,
    }

    let bus = MetricBus::new();
    let router: Router = bus.register()?;
    router.plain.depth.set(1.0);
    router.slow.depth.set(2.0);
    assert_eq!(names(&bus), ["router_depth", "router_slow_depth"]);
    assert_eq!(
        series(&bus, "router_depth"),
        [r#"router_depth{region="eu"} 1"#]
    );
    assert_eq!(
        series(&bus, "router_slow_depth"),
        [r#"router_slow_depth{region="eu",lanes="8",order="fifo"} 2"#]
    );
    let components: Vec<_> = bus
        .components()
        .into_iter()
        .map(|c| (c.name, c.metrics.join(" ")))
        .collect();
    let row = |name: &str, metrics: &str| (name.to_owned(), metrics.to_owned());
    assert_eq!(
        components,
        [
            row("Queue", "router_depth"),
            row("Queue", "router_slow_depth"),
            row("Router", "")
        ]
    );
    Ok(())
}

#[test]
fn families_take_their_labels_as_text_or_as_a_type() -> Outcome {
    enum Method {
        Get,
    }
    impl fmt::Display for Method {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("GET")
        }
    }

    #[derive(Labels)]
    struct Request<'a> {
        method: Method,
        #[label(name = "status_code")]
        code: u16,
        r#type: &'a str,
    }
    assert_eq!(Request::NAMES, ["method", "status_code", "type"]);

    #[derive(Metrics)]
    struct Api {
        /// Requests by text.
        #[metric(labels("method", "code"), label("service" = "api"))]
        requests_total: Family<Counter>,
        /// Requests by type.
        typed_total: Family<Counter<f64>, Request<'static>>,
        /// Latencies.
        #[metric(labels("method"), buckets = [1, 10])]
        latency: Family<Histogram, ()>,
    }

    let bus = MetricBus::new();
    let api: Api = bus.register()?;
    api.requests_total.with_label_values(&["GET", "200"])?.inc();
    api.typed_total
        .with(&Request {
            method: Method::Get,
            code: 404,
            r#type: "chat",
        })
        .inc_by(1.5);
    api.latency.with_label_values(&["GET"])?.observe(3.0);
    assert_eq!(
        series(&bus, "requests_total"),
        [r#"requests_total{service="api",method="GET",code="200"} 1"#]
    );
    assert_eq!(
        series(&bus, "typed_total"),
        [r#"typed_total{method="GET",status_code="404",type="chat"} 1.5"#]
    );
    assert_eq!(bounds(&bus, "latency"), [1.0, 10.0, f64::INFINITY]);
    Ok(())
}

#[test]
fn a_limit_on_series_sends_what_is_over_it_to_the_overflow_series() -> Outcome {
    #[derive(Metrics)]
    struct Api {
        /// Requests by user.
        #[metric(labels("user"), series_max = 2)]
        requests_total: Family<Counter>,
    }

    let bus = MetricBus::new();
    let api: Api = bus.register()?;
    for user in ["a", "b", "c", "d"] {
        api.requests_total.with_label_values(&[user])?.inc();
    }
    let overflowed: Vec<_> = bus.series(r#"requests_total{otel_metric_overflow="true"}"#)?;
    assert_eq!(overflowed.len(), 1);
    assert!(overflowed[0].value().unwrap().as_f64() >= 2.0);
    Ok(())
}

#[test]
fn children_of_a_family_expire_after_the_seconds_given() -> Outcome {
    #[derive(Metrics)]
    struct Api {
        /// Requests by user.
        #[metric(labels("user"), expire_after_secs = 60)]
        requests_total: Family<Counter>,
    }

    let clock = Clock::manual();
    let bus = MetricBus::builder().clock(clock.clone()).build();
    let api: Api = bus.register()?;
    api.requests_total.with_label_values(&["a"])?.inc();
    clock.advance(Duration::from_secs(50));
    assert_eq!(api.requests_total.len(), 1);
    // A quarter more is allowed.
    for _ in 0..50 {
        clock.advance(Duration::from_secs(1));
    }
    assert_eq!(api.requests_total.len(), 0);
    Ok(())
}

#[test]
fn buckets_are_an_array_or_any_expression_that_makes_them() -> Outcome {
    const LOW: f64 = 0.25;
    fn shared() -> Buckets {
        Buckets::from_static(&[2.0, 4.0])
    }

    #[derive(Metrics)]
    struct Sizes {
        /// Bounds with a constant.
        #[metric(buckets = [-1, LOW, LOW * 2.0])]
        constant: Histogram,
        /// Bounds from a function.
        #[metric(buckets = shared())]
        shared: Histogram,
        /// The usual bounds.
        usual: Histogram,
    }

    let bus = MetricBus::new();
    let sizes: Sizes = bus.register()?;
    sizes.constant.observe(0.0);
    sizes.shared.observe(0.0);
    sizes.usual.observe(0.0);
    assert_eq!(bounds(&bus, "constant"), [-1.0, 0.25, 0.5, f64::INFINITY]);
    assert_eq!(bounds(&bus, "shared"), [2.0, 4.0, f64::INFINITY]);
    assert_eq!(bounds(&bus, "usual")[..11], *Buckets::default().bounds());
    Ok(())
}

#[test]
fn a_histogram_is_native_if_its_field_says_so() -> Outcome {
    #[derive(Metrics)]
    struct Waits {
        /// Time waited.
        #[metric(native = true)]
        _wait_seconds: Histogram,
        /// The same, by who waited.
        #[metric(labels("who"), native = !cfg!(test))]
        _waits_seconds: Family<Histogram>,
    }

    let bus = MetricBus::builder().native_histograms(true).build();
    let _waits: Waits = bus.register()?;
    let again = Desc::new("_wait_seconds", "Time waited.").native(false);
    let error = bus.declare::<Histogram>(again).map(|_| ()).unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("native was true, and now is false"),
        "{error}"
    );
    let again = Desc::new("_waits_seconds", "The same, by who waited.")
        .labels(["who"])
        .native(true);
    let error = bus.family::<Histogram>(again).map(|_| ()).unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("native was false, and now is true"),
        "{error}"
    );
    Ok(())
}

#[test]
fn bounds_unknown_to_the_compiler_are_checked_when_registered() {
    const HIGH: f64 = 9.0;

    #[derive(Metrics)]
    struct Sizes {
        /// Sizes.
        #[metric(buckets = [HIGH, HIGH - 1.0])]
        _size: Histogram,
    }

    let error = MetricBus::new()
        .register::<Sizes>()
        .map(|_| ())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("_size") && error.contains("must increase") && error.contains('8'),
        "{error}"
    );
}

#[test]
fn two_fields_share_a_metric_when_constant_labels_tell_them_apart() -> Outcome {
    #[derive(Metrics)]
    struct Cache {
        #[metric(name = "lookups_total", help = "Lookups.", label("result" = "hit"))]
        hits: Counter,
        #[metric(name = "lookups_total", help = "Lookups.", label("result" = "miss"))]
        misses: Counter,
    }

    let bus = MetricBus::new();
    let cache: Cache = bus.register()?;
    cache.hits.inc_by(3);
    cache.misses.inc();
    assert_eq!(
        series(&bus, "lookups_total"),
        [
            r#"lookups_total{result="hit"} 3"#,
            r#"lookups_total{result="miss"} 1"#
        ]
    );
    assert_eq!(bus.components()[0].metrics, ["lookups_total"]);
    Ok(())
}

#[test]
fn a_clash_between_two_structs_names_both_sides() -> Outcome {
    #[derive(Metrics)]
    struct Frontend {
        /// Requests waiting.
        _depth: Gauge,
    }
    #[derive(Metrics)]
    struct Backend {
        /// Requests in flight.
        _depth: Gauge,
    }
    #[derive(Metrics)]
    struct Kernel {
        /// Requests waiting.
        _depth: Counter,
    }

    let bus = MetricBus::new();
    let _frontend: Frontend = bus.register()?;
    let refused = |result: Result<(), metricbus::DeclareError>| result.unwrap_err().to_string();
    let error = refused(bus.register::<Backend>().map(|_| ()));
    assert!(
        error.contains("_depth")
            && error.contains("Requests waiting.")
            && error.contains("Requests in flight."),
        "{error}"
    );
    let error = refused(bus.register::<Kernel>().map(|_| ()));
    assert!(
        error.contains("was gauge") && error.contains("now is counter"),
        "{error}"
    );
    // Only what was registered in whole is a component.
    assert_eq!(bus.components().len(), 1);
    Ok(())
}

#[test]
fn a_label_that_the_scope_has_already_is_an_error_when_registered() {
    let bus = MetricBus::new();
    let scope = bus.scope().with_label("role", "prefill");
    let error = scope
        .register::<Worker>()
        .map(|_| ())
        .unwrap_err()
        .to_string();
    assert!(error.contains("role") && error.contains("twice"), "{error}");
}

#[test]
fn generic_structs_are_derived_for_with_the_bounds_they_need() -> Outcome {
    #[derive(Labels)]
    struct By<T> {
        key: T,
    }
    #[derive(Metrics)]
    struct Inner<M: Metric> {
        /// Whatever it is.
        value: M,
        /// By something.
        #[metric(labels("key"))]
        values: Family<M>,
    }
    #[derive(Metrics)]
    struct Outer<T, L>
    where
        T: Send,
    {
        #[metrics(nested)]
        inner: T,
        /// By a type.
        typed: Family<Gauge, L>,
        /// By a type that has a parameter.
        by: Family<Gauge, By<L>>,
    }

    let bus = MetricBus::new();
    struct Key;
    impl fmt::Display for Key {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("k")
        }
    }
    impl Labels for Key {
        const NAMES: &'static [&'static str] = &["key"];
        fn visit(&self, value: &mut dyn FnMut(usize, &dyn fmt::Display)) {
            value(0, self);
        }
    }
    let outer: Outer<Inner<Counter>, Key> = bus.register()?;
    outer.inner.value.inc();
    outer.inner.values.with_label_values(&["a"])?.inc();
    outer.typed.with(&Key).set(1.0);
    outer.by.with(&By { key: Key }).set(2.0);
    assert_eq!(series(&bus, "by"), [r#"by{key="k"} 2"#]);
    assert_eq!(names(&bus), ["by", "typed", "value", "values"]);
    Ok(())
}

#[test]
fn a_struct_made_by_a_macro_takes_its_types_and_texts_from_there() -> Outcome {
    macro_rules! component {
        ($name:ident, $field:ident: $ty:ty, $help:literal) => {
            #[derive(Metrics)]
            struct $name {
                #[doc = $help]
                $field: $ty,
            }
        };
    }
    component!(Made, made_total: Counter, "Things made.");

    let bus = MetricBus::new();
    let made: Made = bus.register()?;
    made.made_total.inc();
    assert_eq!(family(&bus, "made_total").help, "Things made.");
    Ok(())
}

/// A library that takes metricbus under another name, with traits of its own in the place of ours.
mod renamed {
    pub use metricbus::{Buckets, DeclareError, Desc, Histogram, MetricBus, Scope};

    pub trait Metrics: Sized {
        fn register(scope: &Scope) -> Result<Self, DeclareError>;
    }

    pub trait Labels {
        const NAMES: &'static [&'static str];
        fn visit(&self, value: &mut dyn FnMut(usize, &dyn std::fmt::Display));
    }
}

#[test]
fn every_path_of_an_expansion_begins_with_the_crate_that_was_given() -> Outcome {
    #[derive(metricbus::Labels)]
    #[label(crate = self::renamed)]
    struct Request {
        method: &'static str,
    }
    #[derive(metricbus::Metrics)]
    #[metrics(crate = crate::renamed)]
    struct Api {
        /// Latencies.
        #[metric(buckets = [1])]
        latency: renamed::Histogram,
    }

    let bus = renamed::MetricBus::new();
    let api = <Api as renamed::Metrics>::register(&bus.scope())?;
    api.latency.observe(0.5);
    let mut methods = Vec::new();
    renamed::Labels::visit(&Request { method: "GET" }, &mut |i, value| {
        methods.push((i, value.to_string()))
    });
    assert_eq!(methods, [(0, "GET".to_owned())]);
    assert_eq!(<Request as renamed::Labels>::NAMES, ["method"]);
    Ok(())
}
