//! What a foreign OpenTelemetry collector receives is what was counted, over HTTP and gRPC, whatever happens to it.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Duration,
};

use metricbus::{
    Buckets, Counter, Desc, Family, MetricBus, MetricContainer, OtlpContainer,
    backend::{
        OtlpCompression, OtlpExporter, OtlpHistograms, OtlpOptions, OtlpProtocol, OtlpTemporality,
    },
};
use metricbus_integration_tests::otlp::{Collector, Point};

/// Generous: it only bounds a failing test.
const LONG: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug)]
enum Way {
    Http,
    Grpc,
}

fn options(collector: &Collector, way: Way) -> OtlpOptions {
    let options = OtlpOptions::new()
        .service_name("tested")
        .retry(Duration::from_millis(20), Duration::from_millis(100));
    match way {
        Way::Http => options.endpoint(collector.http_url()),
        Way::Grpc => options
            .endpoint(collector.grpc_url())
            .protocol(OtlpProtocol::Grpc),
    }
}

#[test]
fn grpc_takes_an_endpoint_without_a_scheme_and_unknown_words_do_not_keep_it_from_exporting() {
    let Some(collector) = Collector::start() else {
        return;
    };
    let port = collector.grpc_url().rsplit(':').next().unwrap().to_owned();
    for (number, endpoint) in [
        format!("127.0.0.1:{port}"),
        format!("localhost:{port}"),
        format!(":{port}"),
        port,
    ]
    .into_iter()
    .enumerate()
    {
        let bus = MetricBus::new();
        let options = OtlpOptions::from_vars(|name| match name {
            "OTEL_EXPORTER_OTLP_ENDPOINT" => Some(endpoint.clone()),
            "OTEL_EXPORTER_OTLP_PROTOCOL" => Some("grpc".to_owned()),
            "OTEL_EXPORTER_OTLP_COMPRESSION" => Some("snappy".to_owned()),
            "OTEL_EXPORTER_OTLP_TIMEOUT" => Some("10s".to_owned()),
            "OTEL_SDK_DISABLED" => Some("0".to_owned()),
            _ => None,
        });
        let exporter = OtlpExporter::start(&bus, options.unwrap()).unwrap();
        let name = format!("endpoint_{number}_total");
        bus.counter(&name, "Counted.").unwrap().inc_by(7);
        exporter.shutdown(LONG).unwrap();
        collector.wait_for(&name, |points| {
            let point = points.iter().find(|point| point.metric == name)?;
            (point.value == Some(7.0)).then_some(())
        });
    }
}

fn bounds() -> Buckets {
    Buckets::new([1.0, 2.0]).unwrap()
}

fn of<'a>(points: &'a [Point], metric: &str) -> &'a Point {
    points
        .iter()
        .rfind(|point| point.metric == metric)
        .unwrap_or_else(|| panic!("no {metric} in {points:#?}"))
}

fn all_of_it(way: Way, compression: OtlpCompression) {
    let Some(collector) = Collector::start() else {
        return;
    };
    let bus = MetricBus::new();
    let scope = bus.scope().with_label("pod", "decode-7 \"é\"");
    let options = options(&collector, way)
        .compression(compression)
        .resource_attribute("deployment.environment.name", "test");
    let exporter = OtlpExporter::start(&bus, options.clone()).unwrap();
    let requests = scope.counter("requests_total", "Requests served.").unwrap();
    let busy: Counter<f64> = scope
        .declare(Desc::new("busy_seconds_total", "Time spent.").unit("seconds"))
        .unwrap();
    let usage = scope.gauge("kv_usage", "Used.").unwrap();
    let wait = scope
        .histogram("wait_seconds", "Waited.", bounds())
        .unwrap();
    requests.inc_by(7);
    busy.inc_by(0.125);
    usage.set(0.75);
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    for value in [0.5, 1.5, 1.75, 9.0] {
        wait.observe(value);
    }
    wait.observe_with_exemplar(1.0, &[("trace_id", trace)])
        .unwrap();
    exporter.flush(LONG).unwrap();

    let points = collector.wait_for("four points", |points| {
        (points.len() == 4 && !points[3].counts.is_empty() && !points[3].traces.is_empty())
            .then(|| points.to_vec())
    });
    let get = |metric: &str| of(&points, metric);
    let labels = BTreeMap::from([("pod".to_owned(), "decode-7 \"é\"".to_owned())]);
    for point in &points {
        assert_eq!(point.labels, labels);
        assert_eq!(point.resource["service.name"], "tested");
        assert_eq!(point.resource["deployment.environment.name"], "test");
        assert!(!point.delta && point.start <= point.at && point.at > 0);
    }
    let (requests, busy) = (get("requests_total"), get("busy_seconds_total"));
    assert_eq!((&*requests.kind, requests.value), ("Sum", Some(7.0)));
    assert_eq!(requests.description, "Requests served.");
    assert_eq!((&*busy.unit, busy.value), ("s", Some(0.125)));
    assert_eq!(
        (&*get("kv_usage").kind, get("kv_usage").value),
        ("Gauge", Some(0.75))
    );
    let wait = get("wait_seconds");
    assert_eq!((&*wait.kind, wait.count, wait.sum), ("Histogram", 5, 13.75));
    assert_eq!((wait.min, wait.max), (Some(0.5), Some(9.0)));
    assert_eq!(
        (&*wait.bounds, &*wait.counts),
        (&[1.0, 2.0][..], &[2, 2, 1][..])
    );
    assert_eq!(wait.traces, [trace]);
    exporter.shutdown(LONG).unwrap();

    let exponential = options.histograms(OtlpHistograms::Exponential);
    let exporter = OtlpExporter::start(&bus, exponential).unwrap();
    let wait = scope
        .histogram("wait_seconds", "Waited.", bounds())
        .unwrap();
    for value in [0.3, 0.3, 700.0, -2.0, 0.0] {
        wait.observe(value);
    }
    exporter.shutdown(LONG).unwrap();
    let last = collector.wait_for("the exponential histogram", |points| {
        let found = points.iter().rfind(|p| p.kind == "ExponentialHistogram")?;
        // The positive ones are printed last.
        let has = |value: f64| {
            found
                .spans
                .iter()
                .any(|(lower, upper, _)| *lower < value && value <= *upper)
        };
        (has(700.0)).then(|| found.clone())
    });
    // Those from before the exporter came are not in it.
    assert_eq!(
        (last.count, last.min, last.max),
        (5, Some(-2.0), Some(700.0))
    );
    let held = |value: f64| {
        let found = last
            .spans
            .iter()
            .find(|(lower, upper, _)| *lower < value && value <= *upper);
        found.map(|(_, _, count)| *count)
    };
    assert_eq!((held(0.3), held(700.0)), (Some(2), Some(1)), "{last:#?}");
}

#[test]
fn over_http_it_receives_what_was_counted() {
    all_of_it(Way::Http, OtlpCompression::None);
}

#[test]
fn over_http_compressed_it_receives_what_was_counted() {
    all_of_it(Way::Http, OtlpCompression::Gzip);
}

#[test]
fn over_grpc_it_receives_what_was_counted() {
    all_of_it(Way::Grpc, OtlpCompression::None);
}

#[test]
fn over_grpc_compressed_it_receives_what_was_counted() {
    all_of_it(Way::Grpc, OtlpCompression::Gzip);
}

/// Counts in several threads while the exporter is at work. What was counted, by label.
fn count_for_a_while(
    bus: &MetricBus,
    exporter: &OtlpExporter,
    rounds: u64,
) -> BTreeMap<String, f64> {
    let family: Family<Counter> = bus
        .family(Desc::new("work_total", "Work done.").labels(["worker"]))
        .unwrap();
    let done = AtomicBool::new(false);
    let workers = ["a", "b", "c"];
    thread::scope(|scope| {
        let threads: Vec<_> = workers
            .iter()
            .map(|worker| {
                let counter = family.with_label_values(&[worker]).unwrap();
                scope.spawn(move || (0..rounds).for_each(|_| counter.inc()))
            })
            .collect();
        scope.spawn(|| {
            while !done.load(Relaxed) {
                let _ = exporter.flush(LONG);
            }
        });
        threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
        done.store(true, Relaxed);
    });
    let name = |worker: &&str| (format!("work_total{{worker={worker:?}}}"), rounds as f64);
    workers.iter().map(name).collect()
}

#[test]
fn deltas_of_many_threads_add_up_to_what_was_counted() {
    for way in [Way::Http, Way::Grpc] {
        let Some(collector) = Collector::start() else {
            return;
        };
        let bus = MetricBus::new();
        let options = options(&collector, way).temporality(OtlpTemporality::Delta);
        let exporter = OtlpExporter::start(&bus, options).unwrap();
        let counted = count_for_a_while(&bus, &exporter, 20_000);
        exporter.shutdown(LONG).unwrap();
        collector.wait_for("all deltas", |points| {
            let mut sums: BTreeMap<String, f64> = BTreeMap::new();
            let mut ends: BTreeMap<String, u64> = BTreeMap::new();
            for point in points {
                assert!(point.delta);
                *sums.entry(point.name()).or_default() += point.value.unwrap_or(0.0);
                // One begins where the one before ended.
                let before = ends.insert(point.name(), point.at);
                assert!(before.is_none_or(|before| before == point.start || point.value.is_none()));
            }
            (sums == counted).then_some(())
        });
        assert_eq!(exporter.status().points_dropped, 0);
    }
}

#[test]
fn a_collector_that_comes_late_or_comes_back_has_all_deltas_once() {
    let Some(mut collector) = Collector::down() else {
        return;
    };
    let bus = MetricBus::new();
    let counter = bus.counter("jobs_total", "Jobs done.").unwrap();
    let options = options(&collector, Way::Http).temporality(OtlpTemporality::Delta);
    let exporter = OtlpExporter::start(&bus, options).unwrap();
    let mut counted = 0;
    let mut count = |by: u64| {
        counter.inc_by(by);
        counted += by;
        counted as f64
    };
    let sum = |points: &[Point]| points.iter().filter_map(|point| point.value).sum::<f64>();

    count(3);
    let error = exporter
        .flush(Duration::from_millis(100))
        .unwrap_err()
        .to_string();
    assert!(error.contains("nothing listens there"), "{error}");
    collector.restart();
    let before = count(4);
    exporter.flush(LONG).unwrap();
    collector.wait_for("what was counted before it was there", |points| {
        (sum(points) == before).then_some(())
    });

    collector.kill();
    count(5);
    exporter.flush(Duration::from_millis(100)).unwrap_err();
    collector.restart();
    let all = count(6);
    exporter.flush(LONG).unwrap();
    collector.wait_for("what was counted while it was away", |points| {
        (sum(points) == all).then_some(())
    });
    let status = exporter.status();
    assert_eq!(status.points_dropped, 0);
    assert!(status.retries > 0);
}

#[test]
fn a_frozen_collector_holds_nobody_up_and_has_the_last_totals_once_it_thaws() {
    for way in [Way::Http, Way::Grpc] {
        let Some(mut collector) = Collector::start() else {
            return;
        };
        let bus = MetricBus::new();
        let counter = bus.counter("jobs_total", "Jobs done.").unwrap();
        let options = options(&collector, way).timeout(Duration::from_millis(200));
        let exporter = OtlpExporter::start(&bus, options).unwrap();
        counter.inc();
        exporter.flush(LONG).unwrap();
        collector.freeze();
        counter.inc_by(10);
        exporter.flush(Duration::from_millis(100)).unwrap_err();
        counter.inc_by(100);
        collector.thaw();
        exporter.flush(LONG).unwrap();
        let wanted = BTreeMap::from([("jobs_total{}".to_owned(), 111.0)]);
        collector.wait_for_values(&wanted);
        exporter.shutdown(LONG).unwrap();
        assert_eq!(exporter.status().points_dropped, 0, "{way:?}");
    }
}

#[test]
fn a_shutdown_has_its_deadline_though_the_collector_is_frozen() {
    let Some(mut collector) = Collector::start() else {
        return;
    };
    collector.freeze();
    let options = options(&collector, Way::Grpc);
    let container = OtlpContainer::with(options, "app").unwrap();
    let jobs = container
        .create_counter("jobs_total", "Jobs.", &[])
        .unwrap();
    jobs.inc();
    let error = container.shutdown(Duration::from_millis(100)).unwrap_err();
    assert!(error.to_string().contains("1 points are left"), "{error}");
    let status = container.backend().exporter().map(|e| e.status()).unwrap();
    assert_eq!((status.running, status.points_dropped), (false, 1));
    jobs.inc();
    assert_eq!(jobs.get_value(), 2);
}

#[test]
fn many_thousands_of_series_get_there_whole() {
    let Some(collector) = Collector::start() else {
        return;
    };
    const SERIES: usize = 20_000;
    let bus = MetricBus::new();
    let family: Family<Counter> = bus
        .family(
            Desc::new("series_total", "Many.")
                .labels(["n"])
                .series_max(SERIES),
        )
        .unwrap();
    for n in 0..SERIES {
        family
            .with_label_values(&[n.to_string()])
            .unwrap()
            .inc_by(n as u64);
    }
    let options = options(&collector, Way::Grpc);
    let exporter = OtlpExporter::start(&bus, options).unwrap();
    exporter.shutdown(LONG).unwrap();
    assert!(exporter.status().requests >= 3);
    collector.wait_for("all series", |points| {
        if points.len() < SERIES {
            return None;
        }
        let sum: f64 = points.iter().filter_map(|point| point.value).sum();
        (sum == (SERIES * (SERIES - 1) / 2) as f64).then_some(())
    });
}

#[test]
fn a_path_that_is_not_there_is_an_error_that_says_so() {
    let Some(collector) = Collector::start() else {
        return;
    };
    let bus = MetricBus::new();
    bus.counter("c_total", "c").unwrap().inc();
    let options =
        OtlpOptions::new().metrics_endpoint(format!("{}/elsewhere", collector.http_url()));
    let exporter = OtlpExporter::start(&bus, options).unwrap();
    let error = exporter.flush(LONG).unwrap_err().to_string();
    assert!(
        error.contains("404") && error.contains("is its path right?"),
        "{error}"
    );
    assert_eq!(exporter.status().points_dropped, 1);
}
