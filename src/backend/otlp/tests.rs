//! Against a real HTTP server that answers as a test says, on the virtual clock.

use std::{
    collections::BTreeMap,
    io::Read,
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicU64, Ordering::SeqCst},
    },
};

use opentelemetry_proto::tonic::{
    collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse},
    common::v1::{KeyValue, any_value},
    metrics::v1::{Metric, NumberDataPoint, metric::Data, number_data_point},
};
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::{
    Buckets, Clock, Counter, Desc, Family, Histogram, MetricContainer,
    client::served::{Reply, Seen, Server},
    labels::push_label,
};

const MINUTE: Duration = Duration::from_secs(60);
/// Generous: it only bounds a failing test.
const LONG: Duration = Duration::from_secs(60);

fn bus() -> (MetricBus, Clock) {
    let clock = Clock::manual();
    // Not at the beginning of time, where nothing can be before.
    clock.advance(Duration::from_secs(1_000));
    (MetricBus::builder().clock(clock.clone()).build(), clock)
}

fn to(server: &Server) -> OtlpOptions {
    OtlpOptions::new()
        .endpoint(server.url())
        .timeout(Duration::from_secs(10))
        .service_name("tested")
}

fn all_well() -> Server {
    Server::start(|_| Reply::status(200))
}

fn start(bus: &MetricBus, options: OtlpOptions) -> OtlpExporter {
    OtlpExporter::start(bus, options).unwrap()
}

fn decode(seen: &Seen) -> ExportMetricsServiceRequest {
    let mut body = seen.body.to_vec();
    if seen
        .headers
        .get("content-encoding")
        .is_some_and(|value| value == "gzip")
    {
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(&*body)
            .read_to_end(&mut plain)
            .unwrap();
        body = plain;
    }
    ExportMetricsServiceRequest::decode(&*body).unwrap()
}

fn metrics(seen: &Seen) -> Vec<Metric> {
    let request = decode(seen);
    let scopes = request
        .resource_metrics
        .into_iter()
        .flat_map(|r| r.scope_metrics);
    scopes.flat_map(|scope| scope.metrics).collect()
}

fn labels(attributes: &[KeyValue]) -> String {
    let mut text = String::new();
    for pair in attributes {
        let Some(any_value::Value::StringValue(value)) =
            pair.value.as_ref().and_then(|value| value.value.as_ref())
        else {
            panic!("{pair:?}");
        };
        push_label(&mut text, &pair.key, value);
    }
    text
}

fn value(point: &NumberDataPoint) -> f64 {
    match point.value {
        Some(number_data_point::Value::AsInt(value)) => value as f64,
        Some(number_data_point::Value::AsDouble(value)) => value,
        None => f64::NAN,
    }
}

/// Of counters and gauges: `name{labels}` and the value.
fn values(seen: &Seen) -> BTreeMap<String, f64> {
    let mut all = BTreeMap::new();
    for metric in metrics(seen) {
        let points = match metric.data {
            Some(Data::Sum(sum)) => sum.data_points,
            Some(Data::Gauge(gauge)) => gauge.data_points,
            _ => continue,
        };
        for point in points {
            let name = format!("{}{{{}}}", metric.name, labels(&point.attributes));
            assert!(
                all.insert(name, value(&point)).is_none(),
                "twice in {}",
                metric.name
            );
        }
    }
    all
}

fn secs(seconds: u64) -> u64 {
    seconds * 1_000_000_000
}

#[test]
fn counters_and_gauges_are_exported_each_interval_with_all_that_is_known_of_them() {
    let server = all_well();
    let (bus, clock) = bus();
    let scope = bus.scope().with_label("pod", "a\"b\\c\nd");
    let wait: Counter<f64> = scope
        .declare(Desc::new("wait_seconds_total", "Waited.").unit("seconds"))
        .unwrap();
    let usage = bus.gauge("kv_usage", "Used.").unwrap();
    bus.gauge("never_set", "Nobody knows.").unwrap();
    let options = to(&server).interval(MINUTE).resource_attribute("zone", "x");
    let exporter = start(&bus, options);
    wait.inc_by(1.5);
    usage.set(0.25);
    clock.advance(MINUTE);

    let seen = server.next();
    assert_eq!((seen.method.as_str(), &*seen.path), ("POST", "/v1/metrics"));
    assert_eq!(seen.headers["content-type"], "application/x-protobuf");
    let request = decode(&seen);
    let resource = request.resource_metrics[0].resource.as_ref().unwrap();
    let attributes = labels(&resource.attributes);
    assert!(
        attributes.contains("\"service.name\"=\"tested\""),
        "{attributes}"
    );
    assert!(attributes.contains("zone=\"x\""), "{attributes}");
    let scope = request.resource_metrics[0].scope_metrics[0]
        .scope
        .as_ref()
        .unwrap();
    assert_eq!(
        (&*scope.name, &*scope.version),
        ("metricbus", env!("CARGO_PKG_VERSION"))
    );

    let metrics = metrics(&seen);
    let names: Vec<_> = metrics.iter().map(|metric| &*metric.name).collect();
    assert_eq!(names, ["kv_usage", "wait_seconds_total"]);
    let Some(Data::Sum(sum)) = &metrics[1].data else {
        panic!("{metrics:?}");
    };
    assert_eq!(
        (&*metrics[1].description, &*metrics[1].unit),
        ("Waited.", "s")
    );
    assert_eq!((sum.is_monotonic, sum.aggregation_temporality), (true, 2));
    let point = &sum.data_points[0];
    assert_eq!(labels(&point.attributes), r#"pod="a\"b\\c\nd""#);
    assert_eq!(
        (point.start_time_unix_nano, point.time_unix_nano),
        (secs(1_000), secs(1_060))
    );
    assert_eq!(value(point), 1.5);
    assert_eq!(values(&seen)["kv_usage{}"], 0.25);

    // Before the time of the answer passes, too.
    until("it is taken", || exporter.status().points_exported == 2);
    clock.advance(MINUTE);
    assert_eq!(values(&server.next()).len(), 2);
    exporter.shutdown(LONG).unwrap();
    let status = exporter.status();
    assert_eq!(
        (status.points_exported, status.requests, status.running),
        (6, 3, false)
    );
    assert_eq!((status.points_dropped, status.queue_bytes), (0, 0));
}

#[test]
fn a_hook_runs_before_metrics_are_read_for_each_interval_flush_and_end_and_may_panic() {
    let server = all_well();
    let (bus, clock) = bus();
    let depth = bus.gauge("depth", "d").unwrap();
    let (runs, set) = (Arc::new(AtomicU64::new(0)), depth.clone());
    let counted = runs.clone();
    let hook = move || {
        let run = counted.fetch_add(1, SeqCst) + 1;
        assert_ne!(run, 2, "the second one fails");
        set.set(run as f64);
    };
    let options = to(&server).interval(MINUTE).before_collect(Arc::new(hook));
    let exporter = start(&bus, options);
    assert_eq!(runs.load(SeqCst), 0);
    clock.advance(MINUTE);
    assert_eq!(values(&server.next())["depth{}"], 1.0);
    exporter.flush(LONG).unwrap();
    assert_eq!(values(&server.next())["depth{}"], 1.0);
    clock.advance(MINUTE);
    assert_eq!(values(&server.next())["depth{}"], 3.0);
    exporter.shutdown(LONG).unwrap();
    assert_eq!(values(&server.next())["depth{}"], 4.0);
    assert_eq!(runs.load(SeqCst), 4);
}

#[test]
fn a_counter_beyond_what_otlp_counts_in_is_a_double() {
    let server = all_well();
    let (bus, _) = bus();
    bus.counter("c_total", "c").unwrap().inc_by(u64::MAX);
    start(&bus, to(&server)).flush(LONG).unwrap();
    assert_eq!(values(&server.next())["c_total{}"], u64::MAX as f64);
}

fn histogram_bus() -> (MetricBus, Clock, Histogram) {
    let (bus, clock) = bus();
    let buckets = Buckets::new([1.0, 10.0]).unwrap();
    let histogram = bus.histogram("h", "h", buckets).unwrap();
    (bus, clock, histogram)
}

#[test]
fn a_histogram_has_its_buckets_and_the_extremes_of_all_observations() {
    let server = all_well();
    let (bus, clock, histogram) = histogram_bus();
    let exporter = start(&bus, to(&server));
    let point = || {
        exporter.flush(LONG).unwrap();
        match &metrics(&server.next())[0].data {
            Some(Data::Histogram(histogram)) => {
                assert_eq!(histogram.aggregation_temporality, 2);
                histogram.data_points[0].clone()
            }
            other => panic!("{other:?}"),
        }
    };
    let empty = point();
    assert_eq!((empty.count, empty.min, empty.max), (0, None, None));
    for value in [0.5, 30.0, 2.0, -3.0] {
        histogram.observe(value);
    }
    clock.advance(Duration::from_secs(1));
    let full = point();
    // No sum, as one of them was negative.
    assert_eq!((full.count, full.sum), (4, None));
    assert_eq!((full.min, full.max), (Some(-3.0), Some(30.0)));
    assert_eq!(full.bucket_counts, [2, 1, 1]);
    assert_eq!(full.explicit_bounds, [1.0, 10.0]);
    assert_eq!(full.start_time_unix_nano, secs(1_000));
    histogram.observe(4.0);
    assert_eq!((point().min, point().max), (Some(-3.0), Some(30.0)));
}

#[test]
fn extremes_that_nobody_kept_from_the_beginning_are_not_told() {
    let server = all_well();
    let (bus, _, histogram) = histogram_bus();
    histogram.observe(100.0);
    let exporter = start(&bus, to(&server));
    histogram.observe(1.0);
    exporter.flush(LONG).unwrap();
    let Some(Data::Histogram(told)) = &metrics(&server.next())[0].data else {
        panic!("no histogram");
    };
    let point = &told.data_points[0];
    assert_eq!((point.count, point.min, point.max), (2, None, None));
}

#[test]
fn an_exponential_histogram_has_what_was_observed_since_the_exporter_came() {
    let server = all_well();
    let (bus, clock, histogram) = histogram_bus();
    let native: Histogram = bus.declare(Desc::new("native", "n").native(true)).unwrap();
    for histogram in [&histogram, &native] {
        histogram.observe(1_000.0);
    }
    clock.advance(Duration::from_secs(5));
    let exporter = start(&bus, to(&server).histograms(OtlpHistograms::Exponential));
    for histogram in [&histogram, &native] {
        for value in [0.0, 1.5, 1.5, -2.0, f64::NAN] {
            histogram.observe(value);
        }
    }
    exporter.flush(LONG).unwrap();
    let metrics = metrics(&server.next());
    let point = |at: usize| match &metrics[at].data {
        Some(Data::ExponentialHistogram(histogram)) => histogram.data_points[0].clone(),
        other => panic!("{other:?}"),
    };
    let late = point(0);
    assert_eq!((late.count, late.zero_count, late.scale), (4, 1, 5));
    assert_eq!(late.start_time_unix_nano, secs(1_005));
    assert_eq!((late.min, late.max), (Some(-2.0), Some(1.5)));
    // 2^(18/32) < 1.5 ≤ 2^(19/32), and −2 is the last of its bucket.
    let (positive, negative) = (late.positive.unwrap(), late.negative.unwrap());
    assert_eq!(
        (positive.offset, &positive.bucket_counts[..]),
        (18, &[2][..])
    );
    assert_eq!(
        (negative.offset, &negative.bucket_counts[..]),
        (31, &[1][..])
    );
    assert_eq!(late.sum, None);

    let whole = point(1);
    assert_eq!((whole.count, whole.start_time_unix_nano), (5, secs(1_000)));
    assert_eq!((whole.min, whole.max), (None, None));
}

#[test]
fn deltas_add_up_to_what_was_counted_and_nothing_new_is_no_point() {
    let server = all_well();
    let (bus, clock, histogram) = histogram_bus();
    let counter = bus.counter("c_total", "c").unwrap();
    counter.inc_by(3);
    histogram.observe(50.0);
    let options = to(&server)
        .temporality(OtlpTemporality::Delta)
        .interval(MINUTE);
    let exporter = start(&bus, options);
    let (mut counted, mut observed, mut sum) = (0.0, 0, 0.0);
    let mut ends = Vec::new();
    for round in 0..4_u64 {
        if round % 2 == 0 {
            counter.inc_by(round + 1);
            histogram.observe(round as f64);
        }
        clock.advance(MINUTE);
        until("it is delivered", || {
            let status = exporter.status();
            status.collections == round + 1 && status.queue_points == 0
        });
        if round % 2 == 1 {
            // Nothing at all has happened, and so there is nothing to send.
            continue;
        }
        for metric in metrics(&server.next()) {
            match metric.data {
                Some(Data::Sum(told)) => {
                    assert_eq!(told.aggregation_temporality, 1);
                    counted += value(&told.data_points[0]);
                    let point = &told.data_points[0];
                    ends.push((point.start_time_unix_nano, point.time_unix_nano));
                }
                Some(Data::Histogram(told)) => {
                    let point = &told.data_points[0];
                    observed += point.count;
                    sum += point.sum.unwrap();
                    if round == 2 {
                        assert_eq!((point.min, point.max), (Some(2.0), Some(2.0)));
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!((counted, observed, sum), (7.0, 3, 52.0));
    assert_eq!(
        ends,
        [(secs(1_000), secs(1_060)), (secs(1_120), secs(1_180))]
    );
    exporter.shutdown(LONG).unwrap();
    assert_eq!(exporter.status().points_exported, 4);
}

#[test]
fn the_deltas_of_a_second_exporter_are_what_came_since_it_was_there() {
    for form in [OtlpHistograms::Explicit, OtlpHistograms::Exponential] {
        let server = all_well();
        let (bus, clock, histogram) = histogram_bus();
        let native: Histogram = bus.declare(Desc::new("native", "n").native(true)).unwrap();
        let counter = bus.counter("c_total", "c").unwrap();
        let options = || {
            to(&server)
                .interval(60 * MINUTE)
                .temporality(OtlpTemporality::Delta)
                .histograms(form)
        };
        counter.inc_by(10);
        let first = start(&bus, options());
        histogram.observe(100.0);
        native.observe(100.0);
        first.shutdown(LONG).unwrap();
        assert_eq!(values(&server.next())["c_total{}"], 10.0);

        clock.advance(MINUTE);
        let second = start(&bus, options());
        counter.inc();
        histogram.observe(2.0);
        native.observe(2.0);
        // And one that it sees being made is told from there.
        clock.advance(MINUTE);
        bus.counter("later_total", "l").unwrap().inc_by(5);
        second.shutdown(LONG).unwrap();
        let seen = server.next();
        let values = values(&seen);
        assert_eq!((values["c_total{}"], values["later_total{}"]), (1.0, 5.0));
        let mut histograms = 0;
        for metric in metrics(&seen) {
            let (count, sum, min, start) = match metric.data {
                Some(Data::Histogram(told)) => {
                    let point = &told.data_points[0];
                    (
                        point.count,
                        point.sum,
                        point.min,
                        point.start_time_unix_nano,
                    )
                }
                Some(Data::ExponentialHistogram(told)) => {
                    let point = &told.data_points[0];
                    (
                        point.count,
                        point.sum,
                        point.min,
                        point.start_time_unix_nano,
                    )
                }
                _ => continue,
            };
            assert_eq!((count, sum, min), (1, Some(2.0), Some(2.0)), "{form:?}");
            assert_eq!(start, secs(1_060));
            histograms += 1;
        }
        assert_eq!(histograms, 2);
    }
}

#[test]
fn a_series_that_is_removed_leaves_its_last_delta() {
    let server = all_well();
    let (bus, clock) = bus();
    let family: Family<Counter> = bus.family(Desc::new("c_total", "c").labels(["x"])).unwrap();
    let options = to(&server).temporality(OtlpTemporality::Delta);
    let exporter = start(&bus, options);
    let first = family.with_label_values(&["1"]).unwrap();
    first.inc_by(5);
    exporter.flush(LONG).unwrap();
    assert_eq!(values(&server.next())["c_total{x=\"1\"}"], 5.0);
    first.inc_by(2);
    clock.advance(Duration::from_secs(7));
    family.remove(&["1"]).unwrap();
    first.inc_by(100);
    clock.advance(Duration::from_secs(7));
    // The same labels again are another series.
    family.with_label_values(&["1"]).unwrap().inc();
    exporter.flush(LONG).unwrap();
    let told: Vec<_> = metrics(&server.next())
        .into_iter()
        .flat_map(|metric| match metric.data {
            Some(Data::Sum(sum)) => sum.data_points,
            _ => Vec::new(),
        })
        .map(|point| {
            (
                value(&point),
                point.start_time_unix_nano,
                point.time_unix_nano,
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            (2.0, secs(1_000), secs(1_007)),
            (1.0, secs(1_014), secs(1_014))
        ]
    );
}

#[test]
fn exponential_deltas_have_the_observations_of_their_interval_only() {
    let server = all_well();
    let (bus, _, histogram) = histogram_bus();
    let options = to(&server)
        .temporality(OtlpTemporality::LowMemory)
        .histograms(OtlpHistograms::Exponential);
    let exporter = start(&bus, options);
    for (value, times) in [(2.0, 3), (8.0, 1)] {
        (0..times).for_each(|_| histogram.observe(value));
        exporter.flush(LONG).unwrap();
        let Some(Data::ExponentialHistogram(told)) = &metrics(&server.next())[0].data else {
            panic!("no histogram");
        };
        let point = &told.data_points[0];
        assert_eq!((told.aggregation_temporality, point.count), (1, times));
        assert_eq!((point.min, point.max), (Some(value), Some(value)));
        assert_eq!(point.sum, Some(value * times as f64));
    }
}

#[test]
fn a_sum_that_comes_after_its_count_was_told_is_told_with_the_next_delta() {
    for form in [OtlpHistograms::Explicit, OtlpHistograms::Exponential] {
        let server = all_well();
        let (bus, _, histogram) = histogram_bus();
        let options = to(&server)
            .temporality(OtlpTemporality::Delta)
            .histograms(form);
        let exporter = start(&bus, options);
        let core = histogram.series().core().clone();
        let buckets = core.buckets.clone().unwrap();
        // The first is a new extreme, and so are these two again after a flush.
        for _ in 0..2 {
            histogram.observe(1.0);
            histogram.observe(9.0);
            exporter.flush(LONG).unwrap();
        }
        histogram.observe(1.0);
        histogram.observe(9.0);
        core.cell.observe(5.0, &*core, || {
            buckets.count(5.0);
            exporter.flush(LONG).unwrap();
        });
        // Nothing is told of these.
        exporter.flush(LONG).unwrap();
        exporter.flush(LONG).unwrap();
        histogram.observe(2.0);
        exporter.flush(LONG).unwrap();
        let (mut count, mut sum) = (0, 0.0);
        while let Some(seen) = server.seen() {
            for metric in metrics(&seen) {
                match metric.data {
                    Some(Data::Histogram(told)) => {
                        count += told.data_points[0].count;
                        sum += told.data_points[0].sum.unwrap();
                    }
                    Some(Data::ExponentialHistogram(told)) => {
                        count += told.data_points[0].count;
                        sum += told.data_points[0].sum.unwrap();
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        assert_eq!((count, sum), (8, 37.0), "{form:?}");
    }
}

#[test]
fn exemplars_go_with_their_points_and_ids_of_traces_have_fields_of_their_own() {
    let server = all_well();
    let (bus, _, histogram) = histogram_bus();
    let exporter = start(&bus, to(&server));
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let labels_of = [
        ("trace_id", trace),
        ("span_id", "00f067aa0ba902b7"),
        ("user", "x"),
    ];
    histogram.observe_with_exemplar(3.0, &labels_of).unwrap();
    histogram
        .observe_with_exemplar(0.5, &[("trace_id", "short")])
        .unwrap();
    exporter.flush(LONG).unwrap();
    let Some(Data::Histogram(told)) = &metrics(&server.next())[0].data else {
        panic!("no histogram");
    };
    let exemplars = &told.data_points[0].exemplars;
    assert_eq!(exemplars.len(), 2);
    assert_eq!(
        labels(&exemplars[0].filtered_attributes),
        "trace_id=\"short\""
    );
    assert_eq!(
        (exemplars[1].trace_id.len(), exemplars[1].span_id.len()),
        (16, 8)
    );
    assert_eq!(exemplars[1].trace_id[..2], [0x4b, 0xf9]);
    assert_eq!(labels(&exemplars[1].filtered_attributes), "user=\"x\"");
    assert_eq!(exemplars[1].time_unix_nano, secs(1_000));
}

#[test]
fn an_exemplar_is_told_with_one_delta_and_not_before_a_point_begins() {
    let server = all_well();
    let (bus, clock, histogram) = histogram_bus();
    let told = |exporter: &OtlpExporter| {
        exporter.flush(LONG).unwrap();
        match &metrics(&server.next())[0].data {
            Some(Data::Histogram(told)) => told.data_points[0].exemplars.len(),
            Some(Data::ExponentialHistogram(told)) => told.data_points[0].exemplars.len(),
            other => panic!("{other:?}"),
        }
    };
    let options = || to(&server).interval(60 * MINUTE);
    let deltas = start(&bus, options().temporality(OtlpTemporality::Delta));
    clock.advance(MINUTE);
    let with = [("trace_id", "a")];
    histogram.observe_with_exemplar(3.0, &with).unwrap();
    assert_eq!(told(&deltas), 1);
    clock.advance(MINUTE);
    histogram.observe(0.1);
    assert_eq!(told(&deltas), 0);
    let late = start(&bus, options().histograms(OtlpHistograms::Exponential));
    clock.advance(MINUTE);
    histogram.observe(1.0);
    assert_eq!(told(&late), 0);
    histogram.observe_with_exemplar(1.0, &with).unwrap();
    assert_eq!((told(&late), told(&late)), (1, 1));
}

#[test]
fn many_series_go_in_several_requests_none_of_them_twice_and_none_left_out() {
    let server = all_well();
    let (bus, _) = bus();
    let family: Family<Counter> = bus
        .family(Desc::new("c_total", "c").labels(["x"]).series_max(10_000))
        .unwrap();
    for i in 0..1_000_u64 {
        family
            .with_label_values(&[i.to_string()])
            .unwrap()
            .inc_by(i);
    }
    bus.gauge("g", "g").unwrap().set(1.0);
    let options = to(&server)
        .batch_points(300)
        .compression(OtlpCompression::Gzip);
    let exporter = start(&bus, options);
    exporter.flush(LONG).unwrap();
    let mut all = BTreeMap::new();
    let mut requests = 0;
    while let Some(seen) = server.seen() {
        assert_eq!(seen.headers["content-encoding"], "gzip");
        let values = values(&seen);
        assert!(values.len() <= 300);
        for (name, value) in values {
            assert!(all.insert(name, value).is_none());
        }
        requests += 1;
    }
    assert_eq!((requests, all.len()), (4, 1_001));
    assert_eq!(all["c_total{x=\"999\"}"], 999.0);
}

#[test]
fn what_the_bus_counts_of_itself_is_left_out_unless_asked_for() {
    let server = all_well();
    let (bus, _) = bus();
    bus.counter("c_total", "c").unwrap().inc();
    let silent = start(&bus, to(&server));
    silent.shutdown(LONG).unwrap();
    assert_eq!(values(&server.next()).len(), 1);
    let open = start(&bus, to(&server).own_metrics(true));
    open.shutdown(LONG).unwrap();
    let all = values(&server.next());
    let has = |wanted: &str| all.keys().any(|name| name.starts_with(wanted));
    assert!(
        has("metricbus_otlp_points_exported_total{exporter="),
        "{all:?}"
    );
    assert!(has("metricbus_families{}"), "{all:?}");
}

/// Answers with these statuses in turn, and then with the last of them.
fn answering(replies: Vec<(u16, Option<&'static str>)>) -> (Server, Arc<AtomicU64>) {
    let asked = Arc::new(AtomicU64::new(0));
    let count = asked.clone();
    let server = Server::start(move |_| {
        let at = count.fetch_add(1, SeqCst) as usize;
        let (status, after) = replies[at.min(replies.len() - 1)];
        match after {
            Some(after) => Reply::with(status, &[("retry-after", after)], "later"),
            None => Reply::status(status),
        }
    });
    (server, asked)
}

/// Looks again until it is so.
fn until(what: &str, is_so: impl Fn() -> bool) {
    let begin = std::time::Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < LONG, "waited in vain until {what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_collector_that_is_busy_is_tried_again_with_longer_and_longer_waits() {
    let (server, _) = answering(vec![(503, None), (429, None), (502, None), (200, None)]);
    let (bus, clock) = bus();
    bus.counter("c_total", "c").unwrap().inc();
    let exporter = start(&bus, to(&server).interval(MINUTE));
    clock.advance(MINUTE);
    server.next();
    for (retries, wait) in [(1, 1), (2, 2), (3, 4)] {
        // The answer is on its way to the exporter, which then begins to wait.
        until("it waits", || exporter.status().retries == retries);
        assert!(server.seen().is_none());
        clock.advance(Duration::from_secs(wait));
        server.next();
    }
    until("it is taken", || exporter.status().points_exported == 1);
    let status = exporter.status();
    assert_eq!(
        (status.retries, status.requests, status.points_dropped),
        (3, 4, 0)
    );
    assert!(status.last_error.unwrap().contains("502 Bad Gateway"));
    assert!(status.last_success.is_some());
}

#[test]
fn a_collector_that_says_when_is_left_alone_until_then_even_by_a_flush() {
    let (server, asked) = answering(vec![(429, Some("20")), (200, None)]);
    let (bus, clock) = bus();
    bus.counter("c_total", "c").unwrap().inc();
    let exporter = start(&bus, to(&server).interval(MINUTE));
    clock.advance(MINUTE);
    server.next();
    until("it waits", || exporter.status().retries == 1);
    let error = exporter.flush(Duration::from_millis(20)).unwrap_err();
    assert!(matches!(error, BackendError::Deadline { .. }), "{error:?}");
    assert!(
        error
            .to_string()
            .contains("2 points are left; the collector answered 429"),
        "{error}"
    );
    clock.advance(Duration::from_secs(19));
    assert_eq!(asked.load(SeqCst), 1);
    clock.advance(Duration::from_secs(1));
    server.next();
    exporter.flush(LONG).unwrap();
}

#[cfg(target_os = "linux")]
#[test]
fn a_collector_that_goes_away_can_not_end_the_program_by_a_signal() {
    use crate::signal::has_broken_pipes_kept_out;

    let (bus, _) = bus();
    let exporter = start(&bus, to(&all_well()));
    exporter.flush(LONG).unwrap();
    assert_eq!(has_broken_pipes_kept_out("metricbus-otlp"), Some(true));
}

#[test]
fn a_flush_does_not_wait_for_a_retry() {
    let (server, _) = answering(vec![(503, None), (200, None)]);
    let (bus, clock) = bus();
    bus.counter("c_total", "c").unwrap().inc();
    let exporter = start(&bus, to(&server).interval(MINUTE));
    clock.advance(MINUTE);
    until("it waits", || exporter.status().retries == 1);
    exporter.flush(LONG).unwrap();
    assert_eq!(exporter.status().points_exported, 2);
}

#[test]
fn what_the_collector_refuses_is_dropped_and_counted_and_never_tried_again() {
    let (server, asked) = answering(vec![(400, None), (200, None)]);
    let (bus, _) = bus();
    bus.counter("c_total", "c").unwrap().inc();
    let exporter = start(&bus, to(&server));
    let error = exporter.flush(LONG).unwrap_err().to_string();
    assert!(
        error.contains("1 points were not taken: the collector answered 400"),
        "{error}"
    );
    exporter.flush(LONG).unwrap();
    let status = exporter.status();
    assert_eq!((status.points_dropped, status.points_exported), (1, 1));
    assert_eq!((status.retries, asked.load(SeqCst)), (0, 2));
}

#[test]
fn what_is_rejected_in_part_is_counted_with_the_collectors_reason() {
    let server = Server::start(|_| {
        let mut answer = ExportMetricsServiceResponse::default();
        let partial = answer.partial_success.get_or_insert_default();
        partial.rejected_data_points = 1;
        partial.error_message = "too old".to_owned();
        let kind = [("content-type", "application/x-protobuf")];
        Reply::with(200, &kind, answer.encode_to_vec())
    });
    let (bus, _) = bus();
    bus.counter("a_total", "a").unwrap().inc();
    bus.counter("b_total", "b").unwrap().inc();
    let exporter = start(&bus, to(&server));
    let error = exporter.flush(LONG).unwrap_err().to_string();
    assert!(error.contains("rejected 1 points: too old"), "{error}");
    let status = exporter.status();
    assert_eq!((status.points_exported, status.points_rejected), (1, 1));
    let own = bus.self_families();
    let family = own
        .iter()
        .find(|f| f.name == "metricbus_otlp_points_rejected_total")
        .unwrap();
    assert_eq!(
        family.series[0].value,
        crate::SampleValue::Counter(crate::Value::U64(1))
    );
}

#[test]
fn what_can_not_be_delivered_for_too_long_is_given_up() {
    let (server, _) = answering(vec![(503, None)]);
    let (bus, clock) = bus();
    bus.counter("c_total", "c").unwrap().inc();
    let options = to(&server)
        .interval(MINUTE)
        // More than the first wait, which is up to a second. That and the second are longer, also where the second begins as
        // soon as the first is over and not at the end of the advance.
        .give_up_after(Duration::from_millis(1_400));
    let exporter = start(&bus, options);
    clock.advance(MINUTE);
    until("it waits", || exporter.status().retries == 1);
    clock.advance(Duration::from_secs(1));
    until("it is given up", || exporter.status().points_dropped == 1);
}

#[test]
fn a_wait_that_the_collector_asked_for_is_not_held_against_what_waits() {
    let (server, _) = answering(vec![(503, Some("60")), (503, None), (200, None)]);
    let (bus, clock) = bus();
    bus.counter("c_total", "c").unwrap().inc();
    let options = to(&server)
        .interval(Duration::from_secs(600))
        .give_up_after(Duration::from_secs(30));
    let exporter = start(&bus, options);
    clock.advance(Duration::from_secs(600));
    until("it waits", || exporter.status().retries == 1);
    assert_eq!(exporter.status().points_dropped, 0);
    clock.advance(MINUTE);
    until("it waits again", || exporter.status().retries == 2);
    clock.advance(Duration::from_secs(2));
    until("it is taken", || exporter.status().points_exported == 1);
}

#[test]
fn more_than_the_queue_holds_is_delivered_all_the_same_request_by_request() {
    for temporality in [OtlpTemporality::Delta, OtlpTemporality::Cumulative] {
        let server = all_well();
        let (bus, _) = bus();
        let family: Family<Counter> = bus
            .family(Desc::new("c_total", "c").labels(["x"]).series_max(10_000))
            .unwrap();
        for i in 0..8_000 {
            family.with_label_values(&[i.to_string()]).unwrap().inc();
        }
        let exporter = start(
            &bus,
            to(&server)
                .temporality(temporality)
                .queue_bytes(64 * 1024)
                .own_metrics(true),
        );
        exporter.flush(LONG).unwrap();
        let (mut sum, mut requests) = (0.0, 0);
        while let Some(seen) = server.seen() {
            assert!(seen.body.len() <= 16 * 1024, "{}", seen.body.len());
            let values = values(&seen).into_iter();
            sum += values
                .filter(|(name, _)| name.starts_with("c_total"))
                .map(|(_, value)| value)
                .sum::<f64>();
            requests += 1;
        }
        assert_eq!(sum, 8_000.0);
        assert!(requests > 4, "{requests}");
        assert_eq!(exporter.status().points_dropped, 0);
    }
}

#[test]
fn a_burst_after_a_quiet_time_pushes_out_no_delta() {
    let open = Arc::new(AtomicU16::new(503));
    let status = open.clone();
    let server = Server::start(move |_| Reply::status(status.load(SeqCst)));
    let (bus, clock) = bus();
    let family: Family<Counter> = bus
        .family(Desc::new("c_total", "c").labels(["x"]).series_max(2_000))
        .unwrap();
    let all: Vec<_> = (0..1_100)
        .map(|i| family.with_label_values(&[i.to_string()]).unwrap())
        .collect();
    let options = to(&server)
        .temporality(OtlpTemporality::Delta)
        .interval(MINUTE)
        .queue_bytes(64 * 1024)
        .give_up_after(Duration::from_secs(86_400));
    let exporter = start(&bus, options);
    for (round, n) in [500, 1, 1_100].into_iter().enumerate() {
        all[..n].iter().for_each(Counter::inc);
        clock.advance(MINUTE);
        until("its turn is over", || {
            let status = exporter.status();
            status.collections + status.collections_postponed == round as u64 + 1
        });
    }
    let status = exporter.status();
    assert!(status.queue_bytes <= 64 * 1024, "{status:?}");
    open.store(200, SeqCst);
    let short = Duration::from_millis(50);
    until("it is delivered", || exporter.flush(short).is_ok());
    let mut tried = BTreeMap::new();
    let mut sum = 0.0;
    while let Some(seen) = server.seen() {
        if tried.insert(seen.body.clone(), ()).is_none() {
            sum += values(&seen).values().sum::<f64>();
        }
    }
    assert_eq!((sum, exporter.status().points_dropped), (1_601.0, 0));
}

#[test]
fn a_flush_for_which_older_totals_had_to_go_says_that_the_queue_was_full() {
    let (server, _) = answering(vec![(503, Some("20")), (200, None)]);
    let (bus, clock) = bus();
    let family: Family<Counter> = bus.family(Desc::new("c_total", "c").labels(["x"])).unwrap();
    for i in 0..900 {
        family.with_label_values(&[i.to_string()]).unwrap().inc();
    }
    let options = to(&server).interval(MINUTE).queue_bytes(64 * 1024);
    let exporter = start(&bus, options);
    clock.advance(MINUTE);
    until("it waits", || exporter.status().retries == 1);
    until("it is read", || exporter.status().collections == 1);
    let other = exporter.clone();
    let flush = std::thread::spawn(move || other.flush(LONG));
    until("it is read again", || exporter.status().collections == 2);
    clock.advance(Duration::from_secs(20));
    let error = flush.join().unwrap().unwrap_err().to_string();
    assert!(error.contains("the queue is full"), "{error}");
}

#[test]
fn totals_that_have_no_room_are_dropped_the_oldest_first() {
    let (server, _) = answering(vec![(503, Some("300"))]);
    let (bus, clock) = bus();
    let family: Family<Counter> = bus.family(Desc::new("c_total", "c").labels(["x"])).unwrap();
    for i in 0..1_000 {
        family.with_label_values(&[i.to_string()]).unwrap().inc();
    }
    let options = to(&server)
        .interval(Duration::from_secs(10))
        .queue_bytes(128 * 1024);
    let exporter = start(&bus, options);
    for round in 1..=6 {
        clock.advance(Duration::from_secs(10));
        until("it is collected", || exporter.status().collections == round);
    }
    let status = exporter.status();
    assert!(status.queue_bytes <= 128 * 1024);
    assert_eq!(status.points_dropped + status.queue_points, 6_000);
    assert!(status.points_dropped >= 3_000, "{status:?}");
    exporter.shutdown(Duration::ZERO).unwrap_err();
    // And one more collection for the shutdown that had no time.
    until("it ended", || !exporter.status().running);
    assert_eq!(exporter.status().queue_points, 0);
}

#[test]
fn deltas_that_have_no_room_wait_in_their_metrics_and_none_is_lost() {
    let open = Arc::new(AtomicU16::new(503));
    let status = open.clone();
    let server = Server::start(move |_| Reply::status(status.load(SeqCst)));
    let (bus, clock) = bus();
    let family: Family<Counter> = bus.family(Desc::new("c_total", "c").labels(["x"])).unwrap();
    let counters: Vec<_> = (0..1_000)
        .map(|i| family.with_label_values(&[i.to_string()]).unwrap())
        .collect();
    let options = to(&server)
        .interval(Duration::from_secs(10))
        .queue_bytes(128 * 1024)
        .temporality(OtlpTemporality::Delta);
    let exporter = start(&bus, options);
    for _ in 0..6 {
        counters.iter().for_each(Counter::inc);
        let before = exporter.status();
        clock.advance(Duration::from_secs(10));
        let turns = before.collections + before.collections_postponed + 1;
        until("its turn is over", || {
            let now = exporter.status();
            now.collections + now.collections_postponed == turns
        });
    }
    assert!(exporter.status().collections_postponed > 2);
    open.store(200, SeqCst);
    // A request that is being refused at this moment begins another wait, which only a further flush ends on this clock.
    let short = Duration::from_millis(50);
    until("it is delivered", || exporter.flush(short).is_ok());
    let mut sum = 0.0;
    let mut tried = BTreeMap::new();
    while let Some(seen) = server.seen() {
        // What was refused is sent again, the same.
        if tried.insert(seen.body.clone(), ()).is_none() {
            sum += values(&seen).values().sum::<f64>();
        }
    }
    assert_eq!(sum, 6_000.0);
    assert_eq!(exporter.status().points_dropped, 0);
}

#[test]
fn a_collector_that_hangs_is_given_up_after_the_timeout_and_nobody_waits_meanwhile() {
    let server = Server::start(|_| Reply::Hang);
    let (bus, clock) = bus();
    let counter = bus.counter("c_total", "c").unwrap();
    let exporter = start(&bus, to(&server).interval(MINUTE));
    clock.advance(MINUTE);
    server.next();
    counter.inc();
    let error = exporter
        .flush(Duration::from_millis(10))
        .unwrap_err()
        .to_string();
    assert!(error.contains("has not answered"), "{error}");
    clock.advance(Duration::from_secs(10));
    until("it is late", || exporter.status().retries == 1);
    assert!(
        exporter
            .status()
            .last_error
            .unwrap()
            .contains("slow or frozen")
    );
    // Ends all the same.
    exporter.shutdown(Duration::from_millis(10)).unwrap_err();
    let status = exporter.status();
    assert!(!status.running && status.points_dropped >= 2, "{status:?}");
    assert!(
        exporter
            .flush(LONG)
            .unwrap_err()
            .to_string()
            .contains("was shut down")
    );
    exporter.shutdown(LONG).unwrap();
}

#[test]
fn nobody_there_is_a_state_and_garbage_is_an_error_that_ends() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let (bus, _) = bus();
    bus.counter("c_total", "c").unwrap().inc();
    let options = OtlpOptions::new().endpoint(format!("http://{address}"));
    let exporter = start(&bus, options);
    exporter.flush(Duration::from_millis(10)).unwrap_err();
    until("it is tried", || exporter.status().retries > 0);
    assert!(
        exporter
            .status()
            .last_error
            .unwrap()
            .contains("nothing listens there")
    );
    exporter.shutdown(Duration::ZERO).unwrap_err();

    let closing = Server::start(|_| Reply::Close);
    let exporter = start(&bus, to(&closing));
    exporter.flush(Duration::from_millis(10)).unwrap_err();
    until("it is tried", || exporter.status().retries > 0);
}

#[test]
fn the_last_clone_takes_the_rest_with_it_without_being_waited_for() {
    let server = all_well();
    let (bus, _) = bus();
    let exporter = start(&bus, to(&server));
    bus.counter("c_total", "c").unwrap().inc_by(4);
    drop((exporter.clone(), exporter));
    assert_eq!(values(&server.next())["c_total{}"], 4.0);
}

#[test]
fn an_exporter_that_ended_leaves_nothing_at_the_series() {
    let server = all_well();
    let (bus, _, histogram) = histogram_bus();
    let options = to(&server).histograms(OtlpHistograms::Exponential);
    let exporter = start(&bus, options);
    histogram.observe(1.0);
    exporter.shutdown(LONG).unwrap();
    histogram.observe(1.0);
    let core = histogram.series().core().clone();
    let sketch = core.buckets.as_ref().unwrap().sketch().unwrap().snapshot();
    assert_eq!(sketch.iter().map(|(_, n)| n).sum::<u64>(), 1);
    assert!(core.cell.is_open());
}

#[test]
fn a_forked_child_is_told_so_and_leaves_the_parents_exporter_alone() {
    let server = all_well();
    let (bus, _) = bus();
    let counter = bus.counter("c_total", "c").unwrap();
    let exporter = start(&bus, to(&server));
    // As a child finds it: with everything but the thread, in a process of another id.
    let child = OtlpExporter(Arc::new(Handle {
        stats: exporter.0.stats.clone(),
        commands: exporter.0.commands.clone(),
        thread: Mutex::default(),
        timeout: exporter.0.timeout,
        process: process::id() + 1,
    }));
    for outcome in [child.flush(LONG), child.shutdown(LONG)] {
        let error = outcome.unwrap_err().to_string();
        assert!(
            error.contains("start one here, on a bus made after the fork"),
            "{error}"
        );
    }
    drop(child);
    counter.inc();
    exporter.flush(LONG).unwrap();
    assert_eq!(values(&server.next())["c_total{}"], 1.0);
}

#[test]
fn flushes_beyond_the_bound_are_refused_but_those_who_gave_up_keep_nobody_out() {
    let server = Server::start(|_| Reply::Hang);
    let (bus, clock) = bus();
    bus.counter("c_total", "c").unwrap().inc();
    let exporter = start(&bus, to(&server));
    for _ in 0..2 * FLUSHES_MAX {
        let error = exporter.flush(Duration::from_micros(1)).unwrap_err();
        // Where the thread comes round to nothing, there are too many for a while.
        assert!(
            !exporter.ended().to_string().eq(&error.to_string()),
            "{error}"
        );
    }
    until("it has heard of all", || {
        exporter.0.stats.flushes.load(Relaxed) == 0
    });
    let commands = exporter.0.commands.as_ref().unwrap();
    let mut held = Vec::new();
    for _ in 0..FLUSHES_MAX {
        let (reply, answer, caller) = reply();
        exporter.0.stats.flushes.fetch_add(1, Relaxed);
        assert!(commands.send(Command::Flush(reply)).is_ok());
        held.push((answer, caller));
    }
    let error = exporter.flush(LONG).unwrap_err().to_string();
    assert!(error.contains("flushes wait"), "{error}");
    // All of them were let in.
    let gone = Err(std::sync::mpsc::TryRecvError::Disconnected);
    assert!(held.iter().all(|(answer, _)| answer.try_recv() != gone));
    let error = exporter.shutdown(Duration::from_millis(1)).unwrap_err();
    assert!(matches!(error, BackendError::Deadline { .. }), "{error:?}");
    drop(clock);
}

#[test]
fn a_stop_does_not_wait_for_the_collection_at_work() {
    let server = all_well();
    let (bus, clock) = bus();
    let family: Family<Counter> = bus
        .family(Desc::new("c_total", "c").labels(["x"]).series_max(10_000))
        .unwrap();
    for i in 0..5_000 {
        family.with_label_values(&[i.to_string()]).unwrap().inc();
    }
    let ready = to(&server).batch_points(1).ready().unwrap();
    let stats = Arc::new(Stats::new(String::new(), 1));
    let collector = Collector::attach(&bus, &ready, &stats);
    let sender = Sender::new(&ready, &clock).unwrap();
    let (commands, receiver) = unbounded_channel();
    let worker = Worker::new(collector, sender, ready, clock, stats.clone(), receiver);
    let (reply, answer, caller) = reply();
    stats.flushes.fetch_add(1, Relaxed);
    assert!(commands.send(Command::Flush(reply)).is_ok());
    let runtime = runtime().unwrap();
    let work = runtime.spawn(worker.run());
    // Once it has begun.
    runtime.block_on(async {
        while stats.status().queue_points == 0 {
            tokio::task::yield_now().await;
        }
        assert!(commands.send(Command::Stop).is_ok());
        work.await.unwrap();
    });
    assert_eq!(stats.status().collections, 0);
    drop((answer, caller));
}

#[test]
fn open_telemetry_switched_off_is_no_error_and_exports_nothing() {
    let options =
        OtlpOptions::from_vars(|name| (name == "OTEL_SDK_DISABLED").then(|| "TRUE".to_owned()));
    let (bus, clock) = bus();
    let exporter = start(&bus, options.unwrap());
    clock.advance(MINUTE);
    exporter.flush(Duration::ZERO).unwrap();
    exporter.shutdown(Duration::ZERO).unwrap();
    assert!(!exporter.status().running);
}

#[test]
fn a_container_exports_what_is_made_in_it_and_a_second_bus_is_refused() {
    let server = all_well();
    let container = OtlpContainer::with(OtlpOptions::new().endpoint(server.url()), "app").unwrap();
    container
        .create_counter("jobs_total", "Jobs.", &[("q", "x")])
        .unwrap()
        .inc_by(2);
    MetricContainer::flush(&container, LONG).unwrap();
    let seen = server.next();
    assert_eq!(values(&seen)["app_jobs_total{q=\"x\"}"], 2.0);
    let resource = decode(&seen).resource_metrics[0].resource.clone().unwrap();
    assert!(labels(&resource.attributes).contains("\"service.name\"=\"app\""));
    let error = container.backend().attach(&MetricBus::new()).unwrap_err();
    assert!(error.to_string().contains("has a bus already"), "{error}");
    MetricContainer::shutdown(&container, LONG).unwrap();
}

#[cfg(feature = "otlp-grpc")]
#[test]
fn over_grpc_a_request_is_framed_and_the_status_comes_after_it() {
    let asked = Arc::new(AtomicU64::new(0));
    let server = Server::start_http2(move |_| {
        let code = if asked.fetch_add(1, SeqCst) == 0 {
            "14"
        } else {
            "0"
        };
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", code.parse().unwrap());
        let answer = http::Response::builder().header("content-type", "application/grpc");
        let frame = bytes::Bytes::from_static(&[0; 5]);
        Reply::Trailed(answer.body(frame).unwrap(), trailers)
    });
    let (bus, clock) = bus();
    bus.counter("c_total", "c").unwrap().inc_by(3);
    let options = to(&server)
        .protocol(OtlpProtocol::Grpc)
        .compression(OtlpCompression::Gzip)
        .interval(MINUTE);
    let exporter = start(&bus, options);
    clock.advance(MINUTE);
    server.next();
    until("it waits", || exporter.status().retries == 1);
    clock.advance(Duration::from_secs(1));
    let seen = server.next();
    assert_eq!(
        seen.path,
        "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"
    );
    assert_eq!(seen.headers["te"], "trailers");
    assert_eq!(seen.headers["grpc-encoding"], "gzip");
    assert_eq!(seen.body[0], 1);
    let length = u32::from_be_bytes(seen.body[1..5].try_into().unwrap());
    assert_eq!(length as usize, seen.body.len() - 5);
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(&seen.body[5..])
        .read_to_end(&mut plain)
        .unwrap();
    let request = ExportMetricsServiceRequest::decode(&*plain).unwrap();
    assert_eq!(
        request.resource_metrics[0].scope_metrics[0].metrics[0].name,
        "c_total"
    );
    until("it is taken", || exporter.status().points_exported == 1);
}

fn requests(collector: &mut Collector) -> Vec<encode::Request> {
    collector.begin();
    let mut all = Vec::new();
    while collector.is_at_work() {
        all.extend(collector.next());
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn whatever_the_names_values_and_lengths_a_foreign_decoder_reads_what_was_written(
        values_set in prop::collection::vec((any::<String>(), any::<f64>()), 0..20),
        help in any::<String>(),
        batch in 1_usize..30,
    ) {
        let mut wanted = BTreeMap::new();
        let (bus, _) = bus();
        let family: Family<crate::Gauge> =
            bus.family(Desc::new("g", help.clone()).labels(["x", "y"])).unwrap();
        for (label, value) in &values_set {
            let long = label.repeat(20);
            let gauge = family.with_label_values(&[label, &long]).unwrap();
            gauge.set(*value);
            let mut text = String::new();
            push_label(&mut text, "x", label);
            push_label(&mut text, "y", &long);
            // −0 is 0.
            wanted.insert(format!("g{{{text}}}"), (value + 0.0).to_bits());
        }
        let ready = OtlpOptions::new().batch_points(batch).ready().unwrap();
        let stats = Arc::new(Stats::new(String::new(), 1));
        let mut collector = Collector::attach(&bus, &ready, &stats);
        let mut got = BTreeMap::new();
        for request in requests(&mut collector) {
            let seen = Seen {
                method: http::Method::POST,
                path: String::new(),
                headers: http::HeaderMap::new(),
                body: request.body.into(),
            };
            let values = values(&seen);
            assert_eq!(values.len() as u64, request.points);
            assert!(values.len() <= batch);
            assert!(metrics(&seen).iter().all(|metric| metric.description == help));
            got.extend(values.into_iter().map(|(name, value)| (name, value.to_bits())));
        }
        prop_assert_eq!(got, wanted);
    }
}
