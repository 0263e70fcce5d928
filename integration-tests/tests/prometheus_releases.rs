//! What the exporter says, as each release of Prometheus that `make test` got reads it: the oldest supported, and those after it.

use std::error::Error;

use metricbus::{Buckets, Counter, Desc, Family, Histogram, MetricBus, export::Exporter};
use metricbus_integration_tests::{
    parts,
    prometheus::{Options, Prometheus},
    promtool,
};

type Outcome = Result<(), Box<dyn Error>>;

#[test]
fn each_release_reads_any_name_a_sum_below_zero_and_a_native_histogram_that_met_nan() -> Outcome {
    let bus = MetricBus::new();
    let requests: Family<Counter> =
        bus.family(Desc::new("http.requests_total", "Requests.").labels(["http.method"]))?;
    let get = requests.with_label_values(&["GET"])?;
    get.inc_by_with_exemplar(3, &[("trace_id", "a")])?;
    let heat: Histogram =
        bus.declare(Desc::new("heat_celsius", "Heat.").buckets(Buckets::new([-5.0, 5.0])?))?;
    heat.observe(-20.0);
    heat.observe(1.0);
    let wait: Histogram = bus.declare(
        Desc::new("wait_seconds", "Time waited.")
            .native(true)
            .buckets(Buckets::new([1.0])?),
    )?;
    for value in [1.0, 1.0, 1.0, 4.0, f64::NAN] {
        wait.observe(value);
    }
    let server = Exporter::new(&bus).serve_in_background("127.0.0.1:0")?;
    let targets = [("ours", server.local_addr())];
    for (native, features) in [(false, &[][..]), (true, &["native-histograms"][..])] {
        let options = Options {
            features,
            ..Options::default()
        };
        for release in parts::prometheus_releases("prometheus") {
            let prometheus = Prometheus::of(&release, &options, &targets);
            println!("{}: {}", release.display(), prometheus.version());
            let newest = !prometheus.version().starts_with("2.");
            prometheus.wait_for_value("up", 1.0);
            // To a scrape in protobuf Prometheus adds no `escaping`, so that it has underscores even where quotes are known.
            if newest && !native {
                prometheus.wait_for_value("{\"http.requests_total\",\"http.method\"=\"GET\"}", 3.0);
            } else {
                prometheus.wait_for_value("http_requests_total{http_method=\"GET\"}", 3.0);
            }
            prometheus.wait_for_value("heat_celsius_sum", -19.0);
            prometheus.wait_for_value("heat_celsius_count", 2.0);
            prometheus.wait_for_value("metricbus_nan_observations_total", 1.0);
            if native {
                prometheus.wait_for_value("histogram_count(wait_seconds)", 4.0);
                prometheus.wait_for_value("histogram_sum(wait_seconds)", 7.0);
                let median = prometheus.value("histogram_quantile(0.5, wait_seconds)");
                let median = median.ok_or("no median")?;
                assert!((median - 1.0).abs() < 0.022, "{median}");
            } else {
                prometheus.wait_for_value("wait_seconds_count", 4.0);
            }
        }
    }
    Ok(())
}

#[test]
fn the_promtool_of_each_release_has_no_complaint_about_what_has_no_lint() -> Outcome {
    let bus = MetricBus::new();
    bus.counter("dropped_histogram_buckets_total", "c")?.inc();
    bus.gauge("kv_usage_ratio", "g")?.set(0.5);
    assert_eq!(bus.lints(), []);
    let mut text = Vec::new();
    metricbus::export::text::encode(&bus, metricbus::export::Format::Text, &mut text);
    let text = String::from_utf8(text)?;
    for release in parts::prometheus_releases("promtool") {
        let verdict = promtool::check_metrics_with(&release, &text);
        // Up to 2.53 it complains of any type in a name; since then of the metric's own.
        let complaints = verdict.complaints();
        let left = complaints
            .values()
            .flatten()
            .filter(|text| !text.contains("should not include type"));
        assert_eq!(left.count(), 0, "{}: {verdict:?}", release.display());
    }
    Ok(())
}
