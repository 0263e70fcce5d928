//! One suite over all backends and over Tee: the same component, the same mutations, the same values at the far end; and the
//! bus is there with each of them.

use std::{error::Error, sync::mpsc, time::Duration};

use metricbus::{
    BaseComponentMetrics, MetricBus, Threshold,
    component::Backends,
    export::{BackgroundServer, Exporter},
};
use metricbus_integration_tests::{
    component::{Component, Seen, Table, seen, table},
    cpp::{Under, Workshop, example},
    otlp::{Collector, Point},
    prometheus::Prometheus,
};

type Outcome = Result<(), Box<dyn Error>>;

const SOON: Duration = Duration::from_secs(60);

const PREFIX: &str = "app";

/// What the environment would ask for.
fn base(backend: &str, more: &[(&str, &str)]) -> Result<BaseComponentMetrics, Box<dyn Error>> {
    let vars = |name: &str| match name {
        "METRICBUS_BACKEND" => Some(backend.to_owned()),
        "METRICBUS_PREFIX" => Some(PREFIX.to_owned()),
        _ => {
            let found = more.iter().find(|(n, _)| *n == name);
            found.map(|(_, value)| (*value).to_owned())
        }
    };
    Ok(Backends::new().from_vars(vars)?)
}

fn bus(base: &BaseComponentMetrics) -> Result<&MetricBus, Box<dyn Error>> {
    Ok(base.container.bus().ok_or("no bus")?)
}

/// Runs the component: what holds with every backend. What its far end has seen is for the caller to say.
fn run(base: &BaseComponentMetrics) -> Outcome {
    let component = Component::new(base)?;
    let (heard, hear) = mpsc::channel();
    let _subscription = bus(base)?
        .on_threshold("app_queue_depth", Threshold::above(2.0))
        .call(move |crossing| {
            let _ = heard.send(crossing.series.label("queue"));
        })?;
    component.work()?;
    let mut queues = [hear.recv_timeout(SOON)?, hear.recv_timeout(SOON)?];
    queues.sort();
    assert_eq!(queues, [Some("fast".to_owned()), Some("slow".to_owned())]);

    assert_eq!(
        table(&base.container.get_metrics()),
        Component::expected(PREFIX)
    );
    base.container.flush(SOON)?;
    // Made again, a metric is the one that was made before.
    let again = Component::new(base)?;
    drop(again);
    assert_eq!(
        table(&base.container.get_metrics()),
        Component::expected(PREFIX)
    );
    Ok(())
}

#[test]
fn null_shows_what_was_counted_to_the_process_alone() -> Outcome {
    run(&base("null", &[])?)
}

/// The server of the bus, and what a real Prometheus has of it.
struct Scraped {
    _server: BackgroundServer,
    prometheus: Prometheus,
}

impl Scraped {
    fn of(bus: &MetricBus) -> Result<Option<Scraped>, Box<dyn Error>> {
        let server = Exporter::new(bus).serve_in_background("127.0.0.1:0")?;
        let prometheus = Prometheus::scraping(&[("ours", server.local_addr())]);
        Ok(prometheus.map(|prometheus| Scraped {
            _server: server,
            prometheus,
        }))
    }

    fn check(&self) {
        for ((name, labels), expected) in Component::expected(PREFIX) {
            let selector: Vec<String> = labels.iter().map(|(n, v)| format!("{n}={v:?}")).collect();
            let selector = selector.join(",");
            let value = |suffix: &str, more: &str, expected: f64| {
                let comma = if selector.is_empty() || more.is_empty() {
                    ""
                } else {
                    ","
                };
                let query = format!("{name}{suffix}{{{selector}{comma}{more}}}");
                self.prometheus.wait_for_value(&query, expected);
            };
            match expected {
                Seen::Counter(v) | Seen::Gauge(v) => value("", "", v),
                Seen::Histogram(counts, sum) => {
                    let bounds = ["0.1", "1(.0)?", "10(.0)?", "[+]Inf"];
                    for (bound, count) in bounds.iter().zip(&counts) {
                        value("_bucket", &format!("le=~{bound:?}"), *count as f64);
                    }
                    value("_count", "", counts[3] as f64);
                    value("_sum", "", sum);
                }
            }
        }
    }
}

#[test]
fn a_prometheus_server_sees_what_was_counted() -> Outcome {
    let base = base("prometheus", &[])?;
    run(&base)?;
    if let Some(scraped) = Scraped::of(bus(&base)?)? {
        scraped.check();
    }
    Ok(())
}

/// What the library behind the container has, series by series.
fn at_the_library(base: &BaseComponentMetrics) -> Result<Table, Box<dyn Error>> {
    let mut all = Table::new();
    for series in bus(base)?.series(r#"{__name__!=""}"#)? {
        let mirror = base.container.mirror(&series)?.ok_or("not mirrored")?;
        let value = mirror.read().ok_or("not to be read back")?;
        let labels = series.labels().into_iter().collect();
        all.insert((series.name().to_owned(), labels), seen(&value));
    }
    Ok(all)
}

#[test]
fn a_library_in_cpp_has_counted_what_was_counted() -> Outcome {
    let Some(workshop) = Workshop::new(Under::Nothing) else {
        return Ok(());
    };
    let library = workshop.library(&example("backend.cpp"), &[]);
    let base = base(&format!("libnv:{}", library.display()), &[])?;
    run(&base)?;
    assert_eq!(at_the_library(&base)?, Component::expected(PREFIX));
    base.container.shutdown(SOON)?;
    Ok(())
}

/// What a collector got last of each series. It prints a label's value on a line of its own, as it is: what follows a line
/// break is not seen.
fn at_the_collector(points: &[Point]) -> Table {
    let rows = points.iter().map(|point| {
        let seen = match &*point.kind {
            "Histogram" => {
                let cumulative = point.counts.iter().scan(0, |before, n| {
                    *before += n;
                    Some(*before)
                });
                assert_eq!(point.counts.iter().sum::<u64>(), point.count, "{point:?}");
                Seen::Histogram(cumulative.collect(), point.sum)
            }
            "Gauge" => Seen::Gauge(point.value.unwrap_or(f64::NAN)),
            _ => Seen::Counter(point.value.unwrap_or(f64::NAN)),
        };
        let labels = point.labels.iter();
        let labels = labels.map(|(n, v)| (n.clone(), v.trim_start_matches("Str(").to_owned()));
        ((point.metric.clone(), labels.collect()), seen)
    });
    rows.collect()
}

fn expected_at_a_collector() -> Table {
    let rows = Component::expected(PREFIX).into_iter();
    rows.map(|((name, labels), seen)| {
        let first_line = |value: &str| value.lines().next().unwrap_or("").to_owned();
        let labels = labels.iter().map(|(n, v)| (n.clone(), first_line(v)));
        ((name, labels.collect()), seen)
    })
    .collect()
}

fn check_collector(collector: &Collector) {
    let expected = expected_at_a_collector();
    collector.wait_for("all values", |points| {
        (at_the_collector(points) == expected).then_some(())
    });
}

#[test]
fn a_foreign_collector_has_what_was_counted_over_http_and_grpc() -> Outcome {
    for protocol in ["http/protobuf", "grpc"] {
        let Some(collector) = Collector::start() else {
            return Ok(());
        };
        let endpoint = match protocol {
            "grpc" => collector.grpc_url(),
            _ => collector.http_url(),
        };
        let base = base(
            "otlp",
            &[
                ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
                ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
                ("OTEL_SERVICE_NAME", "conformance"),
            ],
        )?;
        run(&base)?;
        base.container.shutdown(SOON)?;
        check_collector(&collector);
    }
    Ok(())
}

#[test]
fn all_far_ends_of_a_tee_have_what_was_counted() -> Outcome {
    let (Some(workshop), Some(collector)) = (Workshop::new(Under::Nothing), Collector::start())
    else {
        return Ok(());
    };
    let library = workshop.library(&example("backend.cpp"), &[]);
    let backend = format!("tee:prometheus,otlp,libnv:{},null", library.display());
    let base = base(
        &backend,
        &[("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.http_url())],
    )?;
    run(&base)?;
    assert_eq!(at_the_library(&base)?, Component::expected(PREFIX));
    if let Some(scraped) = Scraped::of(bus(&base)?)? {
        scraped.check();
    }
    base.container.shutdown(SOON)?;
    check_collector(&collector);
    Ok(())
}
