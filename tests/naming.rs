//! Selectors and the naming lint, over a bus.

use metricbus::{Buckets, Counter, Desc, MetricBus};

#[test]
fn matchers_are_those_of_promql() {
    let bus = MetricBus::new();
    let family = bus
        .family::<Counter>(Desc::new("requests_total", "r").labels(["method", "path"]))
        .unwrap();
    for (method, path) in [
        ("GET", "/"),
        ("GET", "/a\"b"),
        ("POST", ""),
        ("PUT", "/a\nb"),
    ] {
        family.with_label_values(&[method, path]).unwrap().inc();
    }
    bus.gauge("other", "o").unwrap().set(1.0);
    for (selector, matched) in [
        ("requests_total", 4),
        ("requests", 0),
        ("{__name__=~\"requests.*|other\"}", 5),
        ("{__name__!=\"other\",__name__!=\"\"}", 4),
        ("requests_total{method=\"GET\"}", 2),
        ("requests_total{method!=\"GET\"}", 2),
        ("requests_total{method=~\"GE\"}", 0),
        ("requests_total{method=~\"G.*|P.T\"}", 3),
        ("requests_total{method!~\"P.*\"}", 2),
        ("requests_total{path=\"\"}", 1),
        ("requests_total{nothing=\"\"}", 4),
        ("requests_total{nothing!=\"\"}", 0),
        ("requests_total{path=\"/a\\\"b\"}", 1),
        ("requests_total{path=~\"/a.b\"}", 2),
        ("{method=\"GET\",path=\"/\"}", 1),
    ] {
        assert_eq!(bus.series(selector).unwrap().len(), matched, "{selector}");
    }
}

#[test]
fn the_lint_says_what_would_be_usual_and_refuses_nothing() {
    for (declare, words) in [
        ("counter requests", "_total"),
        ("gauge requests_total", "_total"),
        ("gauge wait_milliseconds", "seconds"),
        ("gauge wait_ms", "abbreviated"),
        ("gauge depth_gauge", "type"),
        ("counter depth_counter_total", "type"),
        ("gauge queueDepth", "snake_case"),
        ("gauge job:depth", "recording rules"),
        ("gauge depth_count", "_count"),
        ("histogram wait_minutes", "seconds"),
    ] {
        let bus = MetricBus::new();
        let (kind, name) = declare.split_once(' ').unwrap();
        match kind {
            "counter" => bus.counter(name, "h").unwrap().inc(),
            "gauge" => bus.gauge(name, "h").unwrap().inc(),
            _ => bus
                .histogram(name, "h", Buckets::default())
                .unwrap()
                .observe(1.0),
        }
        let lints = bus.lints();
        assert_eq!(lints.len(), 1, "{declare}: {lints:?}");
        assert!(lints[0].text.contains(words), "{declare}: {lints:?}");
    }
    let bus = MetricBus::new();
    for name in ["requests_total", "read_bytes_total", "cpu_seconds_total"] {
        bus.counter(name, "h").unwrap().inc();
    }
    for name in ["kv_usage_ratio", "queue_depth", "temperature_celsius"] {
        bus.gauge(name, "h").unwrap().inc();
    }
    assert_eq!(bus.lints(), []);
    bus.gauge("no_help", " ").unwrap().inc();
    assert_eq!(bus.lints()[0].text, "no help text");
}

#[test]
fn a_name_that_nothing_has_is_told_with_the_one_that_may_have_been_meant() {
    let bus = MetricBus::new();
    let _declared = bus.counter("reqs_total", "Requests.").unwrap();
    let slip = bus.on_change("req_total").call(|_| {}).unwrap();
    assert_eq!(slip.stats().did_you_mean.as_deref(), Some("reqs_total"));
    let right = bus.on_change("reqs_total").call(|_| {}).unwrap();
    assert_eq!(right.stats().did_you_mean, None);
    let over = metricbus::Condition::when("req_total", metricbus::Threshold::above(1.0));
    let rule = bus.add_rule(metricbus::Rule::new("Slip", over)).unwrap();
    let status = rule.status();
    assert_eq!(
        (status.unmatched, status.did_you_mean),
        (vec!["req_total".to_owned()], vec!["reqs_total".to_owned()])
    );
    let _late = bus.counter("req_total", "Others.").unwrap();
    assert!(rule.status().did_you_mean.is_empty());
}

#[test]
fn any_text_can_be_a_name_and_is_told_from_what_escaping_makes_of_another() {
    let bus = MetricBus::new();
    let requests = bus
        .family::<Counter>(Desc::new("http.requests", "r").labels(["http.method"]))
        .unwrap();
    let series = requests.with_label_values(&["a=\"b\""]).unwrap();
    assert_eq!(
        series.series().to_string(),
        r#"{"http.requests","http.method"="a=\"b\""}"#
    );
    assert_eq!(
        series.series().label("http.method").as_deref(),
        Some("a=\"b\"")
    );
    let lints: Vec<_> = bus.lints().into_iter().map(|lint| lint.text).collect();
    for plain in ["\"http_requests\"", "\"http_method\""] {
        assert!(lints.iter().any(|text| text.contains(plain)), "{lints:?}");
    }
    // All that a scrape could ask for, and names of samples.
    for taken in [
        "http_requests",
        "http_requests_total",
        "http-requests",
        "http.requests_total",
        "U__http_2e_requests",
    ] {
        let error = bus.gauge(taken, "g").unwrap_err();
        assert!(
            matches!(error, metricbus::DeclareError::SampleClash { .. }),
            "{taken}: {error}"
        );
    }
    bus.gauge("http__requests", "g").unwrap();
    let own = bus.gauge("metricbus.mine", "g").unwrap_err();
    assert!(own.to_string().contains("metricbus_"), "{own}");
}

#[test]
fn names_that_prometheus_writes_itself_are_warned_of() {
    let bus = MetricBus::new();
    for name in ["up", "scrape_duration_seconds", "scrape_samples_scraped"] {
        bus.gauge(name, "g").unwrap();
    }
    let lints = bus.lints();
    assert_eq!(lints.len(), 3, "{lints:?}");
    assert!(
        lints
            .iter()
            .all(|l| l.text.contains("writes a metric of this name itself"))
    );
}

#[test]
fn a_name_may_say_what_it_is_about_though_that_is_another_metrics_type() {
    let bus = MetricBus::new();
    bus.counter("dropped_histogram_buckets_total", "c").unwrap();
    bus.gauge("open_counter_files", "g").unwrap();
    assert_eq!(bus.lints(), []);
}
