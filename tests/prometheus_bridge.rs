//! The bridge to the `prometheus` crate, with the real crate on the other side.
#![cfg(feature = "prometheus")]

use metricbus::{Buckets, Counter, Desc, Gauge, Histogram, MetricBus, export::PrometheusCollector};
use prometheus::{Encoder, IntCounter, Registry, TextEncoder};

fn text(registry: &Registry) -> String {
    let mut out = Vec::new();
    TextEncoder::new()
        .encode(&registry.gather(), &mut out)
        .unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn a_registry_shows_the_metrics_of_a_bus_as_the_bus_itself_does() {
    let bus = MetricBus::new();
    bus.declare::<Counter>(Desc::new("requests_total", "Requests.").label("service", "a\"b\\c\nd"))
        .unwrap()
        .inc_by(6);
    let depth = bus
        .family::<Gauge>(Desc::new("depth", "A depth,\nin two lines.").labels(["queue"]))
        .unwrap();
    depth.with_label_values(&["fast"]).unwrap().set(-0.5);
    depth.with_label_values(&["slow"]).unwrap().set(1e9);
    let size: Histogram = bus
        .histogram("size", "Size.", Buckets::new([1.0, 2.5]).unwrap())
        .unwrap();
    for observed in [0.5, 2.0, 9.0] {
        size.observe(observed);
    }
    let registry = Registry::new();
    registry
        .register(Box::new(PrometheusCollector::new(&bus)))
        .unwrap();

    let mut own = Vec::new();
    metricbus::export::text::encode(&bus, metricbus::export::Format::Text, &mut own);
    assert_eq!(text(&registry), String::from_utf8(own).unwrap());
}

#[test]
fn what_is_declared_or_counted_later_is_gathered_too() {
    let bus = MetricBus::new();
    let registry = Registry::new();
    registry
        .register(Box::new(PrometheusCollector::new(&bus)))
        .unwrap();
    assert_eq!(text(&registry), "");
    let counter = bus.counter("later_total", "").unwrap();
    assert!(text(&registry).ends_with("\nlater_total 0\n"));
    counter.inc();
    assert!(text(&registry).ends_with("\nlater_total 1\n"));
    let family = bus
        .family::<Gauge>(Desc::new("empty", "Empty.").labels(["x"]))
        .unwrap();
    assert!(!text(&registry).contains("empty"));
    assert!(family.is_empty());
}

#[test]
fn a_clash_is_an_error_when_the_collector_is_registered() {
    let bus = MetricBus::new();
    bus.gauge("jobs", "Jobs.").unwrap().set(1.0);
    let registry = Registry::new();
    let theirs = IntCounter::new("jobs", "Jobs.").unwrap();
    registry.register(Box::new(theirs)).unwrap();
    assert!(
        registry
            .register(Box::new(PrometheusCollector::new(&bus)))
            .is_err()
    );

    // Two buses in one registry are fine, and one bus twice is not.
    let registry = Registry::new();
    registry
        .register(Box::new(PrometheusCollector::new(&bus)))
        .unwrap();
    registry
        .register(Box::new(PrometheusCollector::new(&MetricBus::new())))
        .unwrap();
    assert!(
        registry
            .register(Box::new(PrometheusCollector::new(&bus)))
            .is_err()
    );
}

#[cfg(feature = "http")]
mod merged {
    use std::{
        collections::HashMap,
        sync::{Mutex, mpsc},
        time::{Duration, Instant},
    };

    use http::{Request, header::ACCEPT};
    use http_body_util::BodyExt;
    use metricbus::export::Exporter;
    use prometheus::{
        Gauge as TheirGauge, HistogramOpts, HistogramVec, IntCounterVec, Opts,
        core::{Collector, Desc as PrometheusDesc},
        proto,
    };
    use tower_service::Service;

    use super::*;

    /// Gives whatever it was made of, as a custom collector may.
    struct Anything(Vec<proto::MetricFamily>, PrometheusDesc);

    impl Anything {
        fn new(families: Vec<proto::MetricFamily>) -> Box<Self> {
            let desc = PrometheusDesc::new(
                "anything".into(),
                "Anything.".into(),
                vec![],
                HashMap::new(),
            );
            Box::new(Anything(families, desc.unwrap()))
        }
    }

    impl Collector for Anything {
        fn desc(&self) -> Vec<&PrometheusDesc> {
            vec![&self.1]
        }

        fn collect(&self) -> Vec<proto::MetricFamily> {
            self.0.clone()
        }
    }

    fn family(
        name: &str,
        kind: proto::MetricType,
        metrics: Vec<proto::Metric>,
    ) -> proto::MetricFamily {
        let mut family = proto::MetricFamily::default();
        family.set_name(name.into());
        family.set_help("Help.".into());
        family.set_field_type(kind);
        family.set_metric(metrics);
        family
    }

    fn metric(labels: &[(&str, &str)]) -> proto::Metric {
        let pairs = labels.iter().map(|(name, value)| {
            let mut pair = proto::LabelPair::default();
            pair.set_name((*name).into());
            pair.set_value((*value).into());
            pair
        });
        proto::Metric::from_label(pairs.collect())
    }

    async fn scrape(exporter: &Exporter, accept: &str) -> String {
        let request = Request::get("/metrics")
            .header(ACCEPT, accept)
            .body(())
            .unwrap();
        let response = exporter.clone().call(request).await.unwrap();
        assert_eq!(response.status(), 200);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(body.to_vec()).unwrap()
    }

    async fn text_of(exporter: &Exporter) -> String {
        scrape(exporter, "text/plain").await
    }

    fn exporter(bus: &MetricBus, registry: Registry) -> Exporter {
        Exporter::builder(bus)
            .process_metrics(false)
            .merge(registry)
            .build()
    }

    #[tokio::test]
    async fn a_registry_is_exposed_as_its_own_encoder_would() {
        let registry = Registry::new();
        let opts = Opts::new("rpc_calls_total", "Calls.").const_label("service", "a\"b\\c\nd");
        let calls = IntCounterVec::new(opts, &["method", "code"]).unwrap();
        calls.with_label_values(&["get", "200"]).inc_by(3);
        calls.with_label_values(&["put", "500"]).inc();
        let seconds = HistogramVec::new(
            HistogramOpts::new("rpc_seconds", "Time of calls,\nin seconds.")
                .buckets(vec![0.1, 1.0]),
            &["method"],
        )
        .unwrap();
        seconds.with_label_values(&["get"]).observe(0.5);
        seconds.with_label_values(&["get"]).observe(50.0);
        let load = TheirGauge::new("load", "Load.").unwrap();
        load.set(0.25);
        registry.register(Box::new(calls)).unwrap();
        registry.register(Box::new(seconds)).unwrap();
        registry.register(Box::new(load)).unwrap();

        let bus = MetricBus::new();
        bus.counter("ours_total", "Ours.").unwrap().inc();
        let exporter = exporter(&bus, registry.clone());
        let scraped = text_of(&exporter).await;
        assert!(
            scraped
                .starts_with("# HELP ours_total Ours.\n# TYPE ours_total counter\nours_total 1\n")
        );
        assert!(scraped.contains(&text(&registry)), "{scraped}");

        let open = scrape(&exporter, "application/openmetrics-text").await;
        assert!(
            open.contains("# TYPE rpc_calls counter\nrpc_calls_total{"),
            "{open}"
        );
        assert!(open.ends_with("\n# EOF\n"));
    }

    #[tokio::test]
    async fn of_two_families_with_one_name_the_bus_has_the_right_of_way_and_the_other_is_counted() {
        let bus = MetricBus::new();
        bus.gauge("jobs", "Ours.").unwrap().set(1.0);
        bus.histogram("wait", "Ours.", Buckets::default())
            .unwrap()
            .observe(1.0);
        let (first, second) = (Registry::new(), Registry::new());
        for (registry, name) in [
            (&first, "jobs"),
            // The name of a sample of ours.
            (&first, "wait_count"),
            // Its OpenMetrics family would be called "jobs".
            (&first, "jobs_total"),
            (&first, "metricbus_exporter_connections_open"),
            (&first, "theirs"),
            (&second, "theirs"),
        ] {
            registry
                .register(Box::new(IntCounter::new(name, "Theirs.").unwrap()))
                .unwrap();
        }
        let exporter = Exporter::builder(&bus)
            .process_metrics(false)
            .merge(first)
            .merge(second)
            .build();
        for n in 1..=2 {
            let scraped = text_of(&exporter).await;
            assert_eq!(scraped.matches("Theirs.").count(), 1, "{scraped}");
            assert!(scraped.contains("# HELP theirs Theirs.\n# TYPE theirs counter\ntheirs 0\n"));
            assert!(scraped.contains("# HELP jobs Ours.\n# TYPE jobs gauge\njobs 1\n"));
            let skipped = format!("\nmetricbus_exporter_skipped_families_total {}\n", n * 5);
            assert!(scraped.contains(&skipped), "{scraped}");
        }
    }

    #[tokio::test]
    async fn a_bus_that_is_in_the_merged_registry_itself_is_there_once() {
        let bus = MetricBus::new();
        bus.counter("c_total", "A counter.").unwrap().inc();
        let registry = Registry::new();
        registry
            .register(Box::new(PrometheusCollector::new(&bus)))
            .unwrap();
        let scraped = text_of(&exporter(&bus, registry)).await;
        assert_eq!(scraped.matches("\nc_total 1\n").count(), 1);
    }

    #[tokio::test]
    async fn whatever_a_custom_collector_gives_the_scrape_stays_readable() {
        use proto::MetricType::*;

        let gauge = |labels: &[(&str, &str)]| {
            let mut value = proto::Gauge::default();
            value.set_value(1.0);
            let mut metric = metric(labels);
            metric.set_gauge(value);
            metric
        };
        let histogram = |labels: &[(&str, &str)], buckets: &[(f64, u64)]| {
            let buckets = buckets.iter().map(|(bound, count)| {
                let mut bucket = proto::Bucket::default();
                bucket.set_upper_bound(*bound);
                bucket.set_cumulative_count(*count);
                bucket
            });
            let mut value = proto::Histogram::default();
            value.set_bucket(buckets.collect());
            value.set_sample_count(3);
            value.set_sample_sum(4.5);
            let mut metric = metric(labels);
            metric.set_histogram(value);
            metric
        };
        let mut summary = metric(&[("x", "y")]);
        let mut value = proto::Summary::default();
        value.set_sample_count(7);
        value.set_sample_sum(3.5);
        let mut quantile = proto::Quantile::default();
        quantile.set_quantile(0.99);
        quantile.set_value(0.75);
        value.set_quantile(vec![quantile]);
        summary.set_summary(value);

        let mut value = proto::Counter::default();
        value.set_value(-1.0);
        let mut negative = metric(&[]);
        negative.set_counter(value);

        let unfit = [
            family("", GAUGE, vec![gauge(&[])]),
            family("bad\nname 1\n# EOF", GAUGE, vec![gauge(&[])]),
            family("label_twice", GAUGE, vec![gauge(&[("a", "1"), ("a", "2")])]),
            family(
                "bad_le",
                HISTOGRAM,
                vec![histogram(&[("le", "1")], &[(1.0, 1)])],
            ),
            family(
                "falling",
                HISTOGRAM,
                vec![histogram(&[], &[(1.0, 2), (2.0, 1)])],
            ),
            family(
                "unordered",
                HISTOGRAM,
                vec![histogram(&[], &[(2.0, 1), (1.0, 2)])],
            ),
            family("nan", HISTOGRAM, vec![histogram(&[], &[(f64::NAN, 1)])]),
            family("over", HISTOGRAM, vec![histogram(&[], &[(1.0, 4)])]),
            family("untyped", UNTYPED, vec![gauge(&[])]),
            family("negative_total", COUNTER, vec![negative]),
        ];
        let fit = [
            family("fine", GAUGE, vec![gauge(&[("a", "x\ny\"")])]),
            // Names of any text are escaped for those who do not ask for more.
            family("odd name", GAUGE, vec![gauge(&[])]),
            family("9odd", GAUGE, vec![gauge(&[])]),
            family("odd_label", GAUGE, vec![gauge(&[("a-b", "c")])]),
            family(
                "fine_histogram",
                HISTOGRAM,
                vec![histogram(&[], &[(1.0, 2)])],
            ),
            family("fine_summary", SUMMARY, vec![summary]),
            // One bad child does not take its family with it.
            family(
                "series_twice",
                GAUGE,
                vec![gauge(&[("a", "1")]), gauge(&[("a", "1")])],
            ),
            family(
                "one_bad",
                HISTOGRAM,
                vec![
                    histogram(&[("a", "1")], &[(1.0, 2), (2.0, 1)]),
                    histogram(&[("a", "2")], &[(1.0, 2)]),
                ],
            ),
        ];
        let count = unfit.len();
        let registry = Registry::new();
        registry
            .register(Anything::new(unfit.into_iter().chain(fit).collect()))
            .unwrap();
        let exporter = exporter(&MetricBus::new(), registry);
        let scraped = text_of(&exporter).await;
        for line in [
            "fine{a=\"x\\ny\\\"\"} 1",
            "fine_histogram_bucket{le=\"+Inf\"} 3",
            "fine_summary{x=\"y\",quantile=\"0.99\"} 0.75",
            "fine_summary_sum{x=\"y\"} 3.5",
            "fine_summary_count{x=\"y\"} 7",
            "odd_name 1",
            "odd_label{a_b=\"c\"} 1",
            "series_twice{a=\"1\"} 1",
            "one_bad_count{a=\"2\"} 3",
        ] {
            assert!(
                scraped.contains(&format!("\n{line}\n")),
                "{line}\n{scraped}"
            );
        }
        assert_eq!(scraped.matches("Help.").count(), 8);
        assert!(!scraped.contains("one_bad_count{a=\"1\"}"), "{scraped}");
        assert!(scraped.contains("\nmetricbus_exporter_skipped_series_total 2\n"));
        let skipped = format!("\nmetricbus_exporter_skipped_families_total {count}\n");
        assert!(scraped.contains(&skipped), "{scraped}");
    }

    #[tokio::test]
    async fn histograms_of_one_name_and_other_buckets_are_not_mixed_up() {
        let registry = Registry::new();
        for (part, buckets) in [("a", vec![1.0]), ("b", vec![5.0, 10.0])] {
            let opts = HistogramOpts::new("size", "Size.")
                .const_label("part", part)
                .buckets(buckets);
            let histogram = prometheus::Histogram::with_opts(opts).unwrap();
            histogram.observe(7.0);
            registry.register(Box::new(histogram)).unwrap();
        }
        let scraped = text_of(&exporter(&MetricBus::new(), registry)).await;
        let buckets: Vec<_> = scraped
            .lines()
            .filter(|line| line.starts_with("size_bucket"))
            .collect();
        assert_eq!(
            buckets,
            [
                "size_bucket{part=\"a\",le=\"1\"} 0",
                "size_bucket{part=\"a\",le=\"+Inf\"} 1",
                "size_bucket{part=\"b\",le=\"5\"} 0",
                "size_bucket{part=\"b\",le=\"10\"} 1",
                "size_bucket{part=\"b\",le=\"+Inf\"} 1",
            ]
        );
    }

    #[tokio::test]
    async fn a_label_or_name_that_would_cost_the_whole_scrape_costs_its_family() {
        let registry = Registry::new();
        for opts in [
            prometheus::Opts::new("x_ratio", "X.").const_label("__name__", "y"),
            prometheus::Opts::new("metricbus_series", "Not theirs."),
        ] {
            let gauge = prometheus::Gauge::with_opts(opts).unwrap();
            registry.register(Box::new(gauge)).unwrap();
        }
        let scraped = text_of(&exporter(&MetricBus::new(), registry)).await;
        assert!(!scraped.contains("__name__"), "{scraped}");
        assert_eq!(scraped.matches("# TYPE metricbus_series gauge").count(), 1);
        assert!(
            scraped.contains("\nmetricbus_exporter_skipped_families_total 2\n"),
            "{scraped}"
        );
    }

    /// Does what it is told when it is gathered.
    struct Acting(Mutex<Box<dyn FnMut() + Send>>, PrometheusDesc);

    impl Acting {
        fn new(act: impl FnMut() + Send + 'static) -> Box<Self> {
            let desc =
                PrometheusDesc::new("acting".into(), "Acting.".into(), vec![], HashMap::new());
            Box::new(Acting(Mutex::new(Box::new(act)), desc.unwrap()))
        }
    }

    impl Collector for Acting {
        fn desc(&self) -> Vec<&PrometheusDesc> {
            vec![&self.1]
        }

        fn collect(&self) -> Vec<proto::MetricFamily> {
            self.0
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)();
            Vec::new()
        }
    }

    #[tokio::test]
    async fn a_collector_that_panics_or_hangs_costs_its_registry_and_nothing_else() {
        let bus = MetricBus::new();
        bus.counter("ours_total", "Ours.").unwrap().inc();
        let (panicking, hanging, good) = (Registry::new(), Registry::new(), Registry::new());
        panicking
            .register(Acting::new(|| panic!("as it should")))
            .unwrap();
        let (_keep, never) = mpsc::channel::<()>();
        hanging
            .register(Acting::new(move || {
                let _ = never.recv();
            }))
            .unwrap();
        good.register(Box::new(IntCounter::new("good_total", "Good.").unwrap()))
            .unwrap();
        let exporter = Exporter::builder(&bus)
            .merge(panicking)
            .merge(hanging)
            .merge(good)
            .build();
        let began = Instant::now();
        text_of(&exporter).await;
        let scraped = text_of(&exporter).await;
        assert!(began.elapsed() < Duration::from_secs(20));
        for line in [
            "ours_total 1",
            "good_total 0",
            "metricbus_exporter_hook_failures_total{hook=\"registry-0\"} 2",
            "metricbus_exporter_hook_timeouts_total{hook=\"registry-1\"} 1",
            "metricbus_exporter_hook_skips_total{hook=\"registry-1\"} 1",
        ] {
            assert!(
                scraped.contains(&format!("\n{line}\n")),
                "{line}\n{scraped}"
            );
        }
    }
}
