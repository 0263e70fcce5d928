//! A real Prometheus with native histograms on, which then scrapes protobuf.

use std::{collections::BTreeMap, error::Error, net::SocketAddr, time::Duration};

use metricbus::{
    Buckets, Clock, Counter, Desc, Family, Gauge, Histogram, MetricBus,
    export::{BackgroundServer, Exporter},
};
use metricbus_integration_tests::{
    http::{self, AcceptProxy},
    prometheus::{Options, Prometheus},
    random::{HOSTILE, Random},
};

type Outcome = Result<(), Box<dyn Error>>;

const NATIVE: Options = Options {
    features: &["native-histograms", "exemplar-storage"],
    honor_labels: false,
};

/// What Prometheus 2.42 sends with the feature on.
const ACCEPT: &str = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,application/openmetrics-text;version=1.0.0;q=0.8,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";

const OPEN_METRICS: &str = "application/openmetrics-text;version=1.0.0";

fn serve(bus: &MetricBus) -> Result<BackgroundServer, Box<dyn Error>> {
    Ok(Exporter::new(bus).serve_in_background("127.0.0.1:0")?)
}

fn wait_until_up(prometheus: &Prometheus, job: &str) {
    prometheus.wait_for_value(&format!("up{{job=\"{job}\"}}"), 1.0);
    let targets = prometheus.targets();
    let target = targets.iter().find(|target| target["labels"]["job"] == job);
    let target = target.unwrap_or_else(|| panic!("no target {job} in {targets:?}"));
    assert_eq!(target["lastError"], "", "{target}");
}

/// How far our windows' quantiles are from anything in the same bucket, as a share of that, and a rounding. Prometheus
/// interpolates in it.
const BOUND: f64 = 0.010_84;

#[test]
fn quantiles_of_prometheus_are_those_of_our_window() -> Outcome {
    let bus = MetricBus::builder().native_histograms(true).build();
    let mut random = Random::new(7);
    let mut uniform = || (random.below(1_000_000) as f64 + 0.5) / 1e6;
    // From half a microsecond to a minute, a narrow one, one around zero, one at a few bounds only.
    let wide: Vec<f64> = (0..20_000)
        .map(|_| 5e-7 * 1.2e8_f64.powf(uniform()))
        .collect();
    let narrow: Vec<f64> = (0..5_000).map(|_| 0.2 + 0.01 * uniform()).collect();
    let signed: Vec<f64> = (0..5_000).map(|_| 40.0 * (uniform() - 0.3)).collect();
    let bounds: Vec<f64> = (0..1_000).map(|i| 2_f64.powi(i % 5 - 2)).collect();
    // What spans many octaves is sent in wider buckets, unless more are allowed: then both agree to such a bucket, of four
    // to the octave here.
    let families = [
        ("wide_seconds", wide, 0.19),
        ("narrow_seconds", narrow, BOUND),
        ("signed_celsius", signed, 0.19),
        ("bounds_ratio", bounds, BOUND),
    ];
    let mut windows = Vec::new();
    for (name, values, bound) in &families {
        let h = bus.histogram(name, "h", Buckets::new([0.1, 1.0, 10.0])?)?;
        let window = h.series().window(Duration::from_secs(3_600));
        values.iter().for_each(|v| h.observe(*v));
        windows.push((*name, h, window, *bound));
    }
    let server = serve(&bus)?;
    let finer = Exporter::builder(&bus)
        .native_buckets_max(2_000)
        .build()
        .serve_in_background("127.0.0.1:0")?;
    let targets = [("ours", server.local_addr()), ("finer", finer.local_addr())];
    let Some(prometheus) = Prometheus::with(&NATIVE, &targets) else {
        return Ok(());
    };
    wait_until_up(&prometheus, "ours");
    wait_until_up(&prometheus, "finer");
    let both = windows
        .iter()
        .flat_map(|w| [("ours", w.3, w), ("finer", BOUND, w)]);
    for (job, bound, (name, h, window, _)) in both {
        let name = &format!("{name}{{job=\"{job}\"}}");
        let seen = h.snapshot();
        prometheus.wait_for_value(&format!("histogram_count({name})"), seen.count as f64);
        let sum = prometheus.value(&format!("histogram_sum({name})"));
        assert_eq!(sum, Some(seen.sum), "{name}");
        let ours = window.stats();
        for q in [0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999] {
            let theirs = prometheus
                .value(&format!("histogram_quantile({q}, {name})"))
                .ok_or("no quantile")?;
            let stats = &ours;
            let ours = stats.quantile(q).ok_or("no quantile of ours")?;
            // At the ends we know better than the bucket: what was least and what was greatest.
            let at_end = [stats.min, stats.max].contains(&Some(ours));
            let bound = if at_end {
                bound.max(2.0 * BOUND + 0.001)
            } else {
                bound
            };
            assert!(
                (theirs - ours).abs() <= bound * theirs.abs(),
                "{name}, {q}: {theirs} and {ours}"
            );
        }
    }
    // The sketch is cumulative: further observations are further counts, and no reset.
    let (name, h, ..) = &windows[1];
    (0..500).for_each(|_| h.observe(0.205));
    let name = &format!("{name}{{job=\"ours\"}}");
    prometheus.wait_for_value(&format!("histogram_count({name})"), 5_500.0);
    assert_eq!(prometheus.value(&format!("resets({name}[1m])")), Some(0.0));
    Ok(())
}

#[test]
fn all_types_mean_the_same_in_protobuf_as_in_the_text_formats() -> Outcome {
    let bus = MetricBus::new();
    let scope = bus.scope().with_prefix("shop_").with_label("zone", "a");
    scope
        .counter("orders_total", "Orders.")?
        .inc_by(u64::from(u32::MAX) + 7);
    scope
        .declare::<Counter<f64>>(Desc::new("income_total", "Income."))?
        .inc_by(1e-9);
    scope.gauge("stock", "On the shelves.")?.set(5e-324);
    scope.gauge("debt", "Owed.")?.set(f64::NEG_INFINITY);
    let prices: Family<Histogram> = scope.family(
        Desc::new("price_ratio", "Prices.")
            .unit("ratio")
            .labels(["kind"])
            .buckets(Buckets::new([0.001, 1.0, 1e6])?),
    )?;
    for (kind, price) in [("apple", 0.5), ("apple", 2.0), ("pear", 1e300)] {
        prices.with_label_values(&[kind])?.observe(price);
    }
    let hostile: Family<Gauge> =
        scope.family(Desc::new("hostile", "Line\nbreak, \"quotes\", \\.").labels(["value"]))?;
    for (i, value) in HOSTILE.iter().enumerate() {
        hostile.with_label_values(&[value])?.set(i as f64);
    }

    let server = serve(&bus)?;
    let open = AcceptProxy::start(server.local_addr(), OPEN_METRICS)?;
    let text = AcceptProxy::start(server.local_addr(), "text/plain;version=0.0.4")?;
    let targets = [
        ("protobuf", server.local_addr()),
        ("openmetrics", open.local_addr()),
        ("text", text.local_addr()),
    ];
    let Some(prometheus) = Prometheus::with(&NATIVE, &targets) else {
        return Ok(());
    };
    for (job, _) in targets {
        wait_until_up(&prometheus, job);
    }
    // That it is what is meant to be compared.
    prometheus.wait_for("a scrape in each format", |p| {
        ["protobuf", "openmetrics", "text"]
            .iter()
            .all(|format| {
                p.value(&format!(
                    "metricbus_exporter_scrapes_total{{job=\"protobuf\",format=\"{format}\"}}"
                ))
                .is_some_and(|n| n > 0.0)
            })
            .then_some(())
    });
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
    let wanted = 4 + 2 * 6 + HOSTILE.len();
    prometheus.wait_for("all series of all", |_| {
        targets
            .iter()
            .all(|(job, _)| series(job).len() == wanted)
            .then_some(())
    });
    assert_eq!(series("protobuf"), series("text"));
    assert_eq!(series("openmetrics"), series("text"));
    let metadata = prometheus.metadata("shop_price_ratio");
    assert_eq!(metadata[0]["type"], "histogram", "{metadata:?}");
    Ok(())
}

fn wait_for_exemplars(
    prometheus: &Prometheus,
    selector: &str,
    wanted: &[(&str, f64)],
) -> BTreeMap<String, f64> {
    prometheus.wait_for(&format!("exemplars of {selector}"), |p| {
        let found: BTreeMap<String, f64> = p
            .exemplars(selector)
            .into_iter()
            .filter_map(|(labels, value)| Some((labels.get("trace_id")?.clone(), value)))
            .collect();
        wanted
            .iter()
            .all(|(id, value)| found.get(*id) == Some(value))
            .then_some(found)
    })
}

#[test]
fn exemplars_arrive_in_open_metrics_and_in_protobuf() -> Outcome {
    let bus = MetricBus::new();
    let requests = bus.counter("requests_total", "Requests.")?;
    let wait = bus.histogram("wait_seconds", "Waited.", Buckets::new([0.1, 1.0])?)?;
    let native: Histogram = bus.declare(Desc::new("native_seconds", "Waited.").native(true))?;
    requests.inc_by_with_exemplar(3, &[("trace_id", "counter")])?;
    wait.observe_with_exemplar(0.05, &[("trace_id", "fast")])?;
    wait.observe_with_exemplar(7.0, &[("trace_id", "slow"), ("pod", "ü")])?;
    native.observe_with_exemplar(0.3, &[("trace_id", "native")])?;

    let server = serve(&bus)?;
    let open = AcceptProxy::start(server.local_addr(), OPEN_METRICS)?;
    let targets = [
        ("protobuf", server.local_addr()),
        ("openmetrics", open.local_addr()),
    ];
    let Some(prometheus) = Prometheus::with(&NATIVE, &targets) else {
        return Ok(());
    };
    for (job, _) in targets {
        wait_until_up(&prometheus, job);
        let of = |name: &str| format!("{name}{{job=\"{job}\"}}");
        wait_for_exemplars(&prometheus, &of("requests_total"), &[("counter", 3.0)]);
        let both = [("fast", 0.05), ("slow", 7.0)];
        wait_for_exemplars(&prometheus, &of("wait_seconds_bucket"), &both);
    }
    wait_for_exemplars(
        &prometheus,
        "native_seconds{job=\"protobuf\"}",
        &[("native", 0.3)],
    );
    // The latest is the one that is shown.
    // Of text formats, 2.42 does not undo the escapes.
    requests.inc_with_exemplar(&[("trace_id", "\"later\"\n\\")])?;
    wait_for_exemplars(
        &prometheus,
        "requests_total{job=\"protobuf\"}",
        &[("\"later\"\n\\", 1.0)],
    );
    Ok(())
}

#[test]
fn created_lines_are_read_by_prometheus_where_they_are_asked_for() -> Outcome {
    let clock = Clock::system();
    let bus = MetricBus::builder().clock(clock).build();
    let requests = bus.counter("requests_total", "Requests.")?;
    requests.inc();
    let born = requests.series().created();
    let server = Exporter::builder(&bus)
        .created_lines(true)
        .build()
        .serve_in_background("127.0.0.1:0")?;
    let plain = serve(&bus)?;
    let targets = [
        ("with", server.local_addr()),
        ("without", plain.local_addr()),
    ];
    let Some(prometheus) = Prometheus::scraping(&targets) else {
        return Ok(());
    };
    for (job, _) in targets {
        wait_until_up(&prometheus, job);
        prometheus.wait_for_value(&format!("requests_total{{job=\"{job}\"}}"), 1.0);
    }
    let created = prometheus.wait_for("the time of birth", |p| {
        p.value("requests_created{job=\"with\"}")
    });
    let born = born.duration_since(std::time::UNIX_EPOCH)?.as_secs_f64();
    assert!((created - born).abs() < 0.002, "{created} and {born}");
    assert_eq!(prometheus.query("requests_created{job=\"without\"}"), []);
    Ok(())
}

#[test]
fn the_answer_says_what_it_is() -> Outcome {
    let bus = MetricBus::new();
    let server = serve(&bus)?;
    let kind = |accept: &str| -> Result<Option<String>, Box<dyn Error>> {
        let address: SocketAddr = server.local_addr();
        // Of the bus's own metrics, all text is ASCII, but lengths and doubles are not: only the head is read.
        let head = http::head(address, "/metrics", &[("Accept", accept)])?;
        Ok(head.header("content-type").map(str::to_owned))
    };
    assert_eq!(
        kind(ACCEPT)?.as_deref(),
        Some(
            "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
        )
    );
    assert_eq!(
        kind(OPEN_METRICS)?.as_deref(),
        Some("application/openmetrics-text; version=1.0.0; charset=utf-8")
    );
    assert_eq!(
        kind("*/*")?.as_deref(),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    Ok(())
}
