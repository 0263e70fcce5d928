//! A real Prometheus server scrapes the exporter, and its query API says what was set.

use std::{collections::BTreeMap, error::Error, net::SocketAddr};

use metricbus::{
    Buckets, Counter, Desc, Family, Gauge, Histogram, MetricBus,
    export::{BackgroundServer, Exporter},
};
use metricbus_integration_tests::{http::AcceptProxy, prometheus::Prometheus, random::HOSTILE};

type Outcome = Result<(), Box<dyn Error>>;

fn serve(bus: &MetricBus) -> Result<BackgroundServer, Box<dyn Error>> {
    Ok(Exporter::new(bus).serve_in_background("127.0.0.1:0")?)
}

/// Prometheus's word that an exporter's scrapes are in order.
fn wait_until_up(prometheus: &Prometheus, job: &str) {
    prometheus.wait_for_value(&format!("up{{job=\"{job}\"}}"), 1.0);
    let targets = prometheus.targets();
    let target = targets.iter().find(|target| target["labels"]["job"] == job);
    let target = target.unwrap_or_else(|| panic!("no target {job} in {targets:?}"));
    assert_eq!(target["health"], "up", "{target}");
    assert_eq!(target["lastError"], "", "{target}");
}

#[test]
fn prometheus_answers_queries_with_the_values_that_were_set() -> Outcome {
    let bus = MetricBus::new();
    let requests = bus.counter("requests_total", "Requests served.")?;
    let busy = bus
        .declare::<Counter<f64>>(Desc::new("busy_seconds_total", "Time worked.").unit("seconds"))?;
    let depth = bus.gauge("queue_depth", "Requests waiting.")?;
    let latency = bus.histogram(
        "latency_seconds",
        "Time to answer.",
        Buckets::new([0.1, 0.2, 0.4, 0.8])?,
    )?;
    requests.inc_by(3);
    busy.inc_by(0.1);
    depth.set(-2.5);
    for _ in 0..90 {
        latency.observe(0.15);
    }
    for _ in 0..10 {
        latency.observe(0.75);
    }

    let server = serve(&bus)?;
    let Some(prometheus) = Prometheus::scraping(&[("ours", server.local_addr())]) else {
        return Ok(());
    };
    wait_until_up(&prometheus, "ours");

    prometheus.wait_for_value("requests_total", 3.0);
    prometheus.wait_for_value("busy_seconds_total", 0.1);
    prometheus.wait_for_value("queue_depth", -2.5);
    for (bound, count) in [
        ("0.1", 0.0),
        ("0.2", 90.0),
        ("0.4", 90.0),
        ("0.8", 100.0),
        ("+Inf", 100.0),
    ] {
        // The format decides whether a bound is written 1 or 1.0; none of these is whole.
        prometheus.wait_for_value(&format!("latency_seconds_bucket{{le=\"{bound}\"}}"), count);
    }
    prometheus.wait_for_value("latency_seconds_count", 100.0);
    let sum = prometheus.value("latency_seconds_sum").ok_or("no sum")?;
    assert!((sum - 21.0).abs() < 1e-9, "{sum}");

    // Interpolated within the bucket of the quantile: rank 50 of 90 between 0.1 and 0.2, rank 5 of 10 between 0.4 and 0.8.
    let median = prometheus
        .value("histogram_quantile(0.5, latency_seconds_bucket)")
        .ok_or("no median")?;
    assert!(
        (median - (0.1 + 0.1 * 50.0 / 90.0)).abs() < 1e-9,
        "{median}"
    );
    let p95 = prometheus
        .value("histogram_quantile(0.95, latency_seconds_bucket)")
        .ok_or("no quantile")?;
    assert!((p95 - 0.6).abs() < 1e-9, "{p95}");

    let metadata = prometheus.metadata("latency_seconds");
    assert_eq!(metadata[0]["type"], "histogram", "{metadata:?}");
    assert_eq!(metadata[0]["help"], "Time to answer.", "{metadata:?}");

    requests.inc();
    depth.set(f64::INFINITY);
    prometheus.wait_for_value("requests_total", 4.0);
    prometheus.wait_for_value("queue_depth", f64::INFINITY);
    depth.set(f64::NAN);
    prometheus.wait_for("queue_depth to be NaN", |p| {
        p.value("queue_depth").filter(|depth| depth.is_nan())
    });
    Ok(())
}

#[test]
fn labels_with_hostile_values_come_back_from_prometheus_as_they_were_set() -> Outcome {
    let bus = MetricBus::new();
    let family: Family<Gauge> =
        bus.family(Desc::new("hostile", "Line\nbreak, \"quotes\" and a \\.").labels(["value"]))?;
    let long: String = "long \"\\\n🦀".chars().cycle().take(10_000).collect();
    let mut wanted = BTreeMap::new();
    for (i, value) in HOSTILE.iter().copied().chain([&*long]).enumerate() {
        family.with_label_values(&[value])?.set(i as f64);
        wanted.insert(value.to_owned(), i as f64);
    }

    let server = serve(&bus)?;
    let proxy = AcceptProxy::start(server.local_addr(), "text/plain;version=0.0.4")?;
    let targets = [
        ("openmetrics", server.local_addr()),
        ("text", proxy.local_addr()),
    ];
    let Some(prometheus) = Prometheus::scraping(&targets) else {
        return Ok(());
    };
    for (job, _) in targets {
        wait_until_up(&prometheus, job);
        let samples = prometheus.wait_for("the hostile series", |p| {
            let samples = p.query(&format!("hostile{{job=\"{job}\"}}"));
            (!samples.is_empty()).then_some(samples)
        });
        // To Prometheus a label with an empty value is no label.
        let got: BTreeMap<String, f64> = samples
            .into_iter()
            .map(|sample| {
                (
                    sample.labels.get("value").cloned().unwrap_or_default(),
                    sample.value,
                )
            })
            .collect();
        assert_eq!(got, wanted, "{job}");
    }
    Ok(())
}

#[test]
fn both_formats_are_scraped_and_say_the_same() -> Outcome {
    let bus = MetricBus::new();
    let scope = bus.scope().with_prefix("shop_").with_label("zone", "a");
    scope
        .counter("orders_total", "Orders.")?
        .inc_by(u64::from(u32::MAX) + 7);
    scope
        .declare::<Counter<f64>>(Desc::new("income_total", "Income."))?
        .inc_by(1e-9);
    scope.gauge("stock", "On the shelves.")?.set(5e-324);
    let prices: Family<Histogram> = scope.family(
        Desc::new("price_ratio", "Prices.")
            .unit("ratio")
            .labels(["kind"])
            .buckets(Buckets::new([0.001, 1.0, 1e6])?),
    )?;
    for (kind, price) in [("apple", 0.5), ("apple", 2.0), ("pear", 1e300)] {
        prices.with_label_values(&[kind])?.observe(price);
    }

    let server = serve(&bus)?;
    let proxy = AcceptProxy::start(server.local_addr(), "text/plain;version=0.0.4")?;
    let targets = [
        ("openmetrics", server.local_addr()),
        ("text", proxy.local_addr()),
    ];
    let Some(prometheus) = Prometheus::scraping(&targets) else {
        return Ok(());
    };
    for (job, _) in targets {
        wait_until_up(&prometheus, job);
    }

    // Bounds are compared as numbers: OpenMetrics writes 1.0 where the text format may write 1.
    let series = |job: &str| {
        let samples = prometheus.query(&format!("{{__name__=~\"shop_.*\",job=\"{job}\"}}"));
        let mut lines: Vec<String> = samples
            .into_iter()
            .map(|mut sample| {
                if let Some(bound) = sample.labels.get_mut("le")
                    && let Ok(number) = bound.parse::<f64>()
                {
                    *bound = number.to_string();
                }
                format!("{:?} {}", sample.labels, sample.value)
            })
            .collect();
        lines.sort();
        lines
    };
    // Three metrics without buckets; and for each kind of price four buckets, a sum and a count.
    let wanted = 3 + 2 * 6;
    prometheus.wait_for("all series of both", |_| {
        targets
            .iter()
            .all(|(job, _)| series(job).len() == wanted)
            .then_some(())
    });
    assert_eq!(series("openmetrics"), series("text"));

    // That the two were really scraped in different formats: only OpenMetrics has units.
    let units = |scheme: &SocketAddr| {
        let answer = metricbus_integration_tests::http::get(
            *scheme,
            "/metrics",
            &[(
                "Accept",
                "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5",
            )],
        )?;
        std::io::Result::Ok(answer.body.contains("\n# UNIT shop_price_ratio ratio\n"))
    };
    assert!(units(&server.local_addr())?);
    assert!(!units(&proxy.local_addr())?);
    Ok(())
}

#[test]
fn metrics_of_a_merged_registry_are_scraped_with_ours() -> Outcome {
    let registry = prometheus::Registry::new();
    let theirs = prometheus::IntCounterVec::new(
        prometheus::Opts::new("theirs_total", "Theirs."),
        &["path"],
    )?;
    let times = prometheus::Histogram::with_opts(
        prometheus::HistogramOpts::new("their_seconds", "Their times.").buckets(vec![0.5, 1.5]),
    )?;
    registry.register(Box::new(theirs.clone()))?;
    registry.register(Box::new(times.clone()))?;
    theirs.with_label_values(&["C:\\ \"x\"\n"]).inc_by(5);
    times.observe(1.0);

    let bus = MetricBus::new();
    bus.counter("ours_total", "Ours.")?.inc_by(2);
    let server = Exporter::builder(&bus)
        .merge(registry)
        .build()
        .serve_in_background("127.0.0.1:0")?;
    let proxy = AcceptProxy::start(server.local_addr(), "text/plain;version=0.0.4")?;
    let targets = [
        ("openmetrics", server.local_addr()),
        ("text", proxy.local_addr()),
    ];
    let Some(prometheus) = Prometheus::scraping(&targets) else {
        return Ok(());
    };
    for (job, _) in targets {
        wait_until_up(&prometheus, job);
        prometheus.wait_for_value(&format!("ours_total{{job=\"{job}\"}}"), 2.0);
        prometheus.wait_for_value(
            &format!("theirs_total{{job=\"{job}\",path=\"C:\\\\ \\\"x\\\"\\n\"}}"),
            5.0,
        );
        prometheus.wait_for_value(
            &format!("their_seconds_bucket{{job=\"{job}\",le=\"0.5\"}}"),
            0.0,
        );
        prometheus.wait_for_value(
            &format!("their_seconds_bucket{{job=\"{job}\",le=\"1.5\"}}"),
            1.0,
        );
        prometheus.wait_for_value(&format!("their_seconds_sum{{job=\"{job}\"}}"), 1.0);
    }
    theirs.with_label_values(&["C:\\ \"x\"\n"]).inc();
    prometheus.wait_for_value("sum by (job) (theirs_total{job=\"text\"})", 6.0);
    Ok(())
}

#[test]
fn a_removed_child_becomes_stale_and_the_others_stay() -> Outcome {
    let bus = MetricBus::new();
    let family: Family<Counter> =
        bus.family(Desc::new("jobs_total", "Jobs.").labels(["worker"]))?;
    let gone = family.with_label_values(&["gone"])?;
    gone.inc_by(7);
    family.with_label_values(&["stays"])?.inc_by(8);

    let server = serve(&bus)?;
    let Some(prometheus) = Prometheus::scraping(&[("ours", server.local_addr())]) else {
        return Ok(());
    };
    prometheus.wait_for_value("jobs_total{worker=\"gone\"}", 7.0);

    assert!(family.remove(&["gone"])?);
    gone.inc();
    // Stale at the next scrape; a series that merely has no new samples is shown for five minutes.
    prometheus.wait_for("the removed child to be gone", |p| {
        p.query("jobs_total{worker=\"gone\"}")
            .is_empty()
            .then_some(())
    });
    assert_eq!(prometheus.value("jobs_total{worker=\"stays\"}"), Some(8.0));
    assert_eq!(prometheus.value("up"), Some(1.0));

    // A child of the same labels is a new one, and begins at nothing.
    family.with_label_values(&["gone"])?.inc();
    prometheus.wait_for_value("jobs_total{worker=\"gone\"}", 1.0);
    Ok(())
}

#[test]
fn what_the_process_and_the_bus_say_of_themselves_is_scraped_too() -> Outcome {
    let bus = MetricBus::new();
    bus.gauge("queue_depth", "Requests waiting.")?.set(1.0);
    let server = serve(&bus)?;
    let Some(prometheus) = Prometheus::scraping(&[("ours", server.local_addr())]) else {
        return Ok(());
    };
    prometheus.wait_for_value("metricbus_series", 1.0);
    let resident = prometheus
        .value("process_resident_memory_bytes")
        .ok_or("no process_resident_memory_bytes")?;
    assert!(resident > 0.0);
    let age = prometheus
        .value("time() - process_start_time_seconds")
        .ok_or("no process_start_time_seconds")?;
    // Within a day: a start time in other units or since another epoch is far off.
    assert!((-1.0..86_400.0).contains(&age), "{age}");
    Ok(())
}
