//! `promtool check metrics` over what the exporter writes, and the naming lints against promtool's.

use std::{collections::BTreeSet, error::Error};

use metricbus::{Buckets, Counter, DeclareError, Desc, Gauge, Histogram, MetricBus, MetricKind, export::Exporter};
use metricbus_integration_tests::{http, promtool, random::Random};

type Outcome = Result<(), Box<dyn Error>>;

fn declare(bus: &MetricBus, kind: MetricKind, name: &str, help: &str) -> Result<(), DeclareError> {
    match kind {
        MetricKind::Counter => bus.counter(name, help).map(|_| ()),
        MetricKind::Gauge => bus.gauge(name, help).map(|_| ()),
        _ => bus.histogram(name, help, Buckets::from_static(&[1.0])).map(|_| ()),
    }
}

/// All of `/metrics` in the text format, but `metricbus_*` and `process_*` only if asked for.
fn exposition(bus: &MetricBus) -> Result<String, Box<dyn Error>> {
    let server = Exporter::new(bus).serve_in_background("127.0.0.1:0")?;
    let answer = http::get(server.local_addr(), "/metrics", &[("Accept", "text/plain;version=0.0.4")])?;
    assert_eq!(answer.status, 200, "{answer:?}");
    Ok(answer.body)
}

#[test]
fn promtool_has_no_complaint_about_anything_the_exporter_writes() -> Outcome {
    let bus = MetricBus::new();
    let worker = bus
        .scope()
        .with_prefix("dynamo_component_")
        .with_label("dynamo_namespace", "prod")
        .with_label("dynamo_component", "decode")
        .with_label("dynamo_endpoint", "generate");
    worker.counter("requests_total", "Requests served.")?.inc();
    worker.declare::<Counter<f64>>(Desc::new("busy_seconds_total", "Time worked.").unit("seconds"))?.inc_by(0.5);
    worker.gauge("inflight_requests", "Requests being served.")?.set(3.0);
    let latency = Desc::new("request_duration_seconds", "Time to answer.").unit("seconds").labels(["model"]);
    let latency = worker.family::<Histogram>(latency)?;
    for model in ["small", "large \"quoted\" \\ \n 🦀"] {
        latency.with_label_values(&[model])?.observe(0.3);
    }
    let usage = worker.family::<Gauge>(Desc::new("kv_usage_ratio", "Share\nin use, \\ and \"quotes\".").labels(["gpu"]))?;
    usage.with_label_values(&["0"])?.set(f64::NAN);
    usage.with_label_values(&["1"])?.set(f64::INFINITY);
    assert_eq!(bus.lints(), []);

    // With a subscription, a callback that failed and a window, all of the bus's own metrics have something to say.
    let _subscription = bus
        .on_threshold("dynamo_component_inflight_requests", metricbus::Threshold::above(1.0))
        .inline(|_| {})?;

    let text = exposition(&bus)?;
    for family in ["process_resident_memory_bytes", "metricbus_series", "dynamo_component_requests_total"] {
        assert!(text.contains(&format!("\n# TYPE {family} ")), "{family} is missing in\n{text}");
    }
    let Some(verdict) = promtool::check_metrics(&text) else { return Ok(()) };
    assert!(verdict.clean && verdict.output.is_empty(), "{}", verdict.output);
    Ok(())
}

#[test]
fn a_bad_name_is_flagged_by_promtool_and_by_the_lints() -> Outcome {
    use MetricKind::{Counter, Gauge, Histogram};
    let bad = [
        (Counter, "requests", "A counter without _total."),
        (Gauge, "depth_total", "A gauge with _total."),
        (Histogram, "size_total", "A histogram with _total."),
        (Gauge, "wait_milliseconds", "Not a base unit."),
        (Histogram, "latency_minutes", "Not a base unit."),
        (Counter, "sent_kilobytes_total", "Not a base unit."),
        (Gauge, "disk_gibibytes", "Not a base unit."),
        (Gauge, "length_inches", "Not a base unit."),
        (Gauge, "heat_fahrenheit", "Not a base unit."),
        (Gauge, "pause_ms", "An abbreviated unit."),
        (Counter, "uptime_s_total", "An abbreviated unit in the middle."),
        (Gauge, "cache_mb", "An abbreviated unit."),
        (Counter, "hit_counter_total", "The type in the name."),
        (Gauge, "load_gauge", "The type in the name."),
        (Histogram, "size_histogram", "The type in the name."),
        (Gauge, "a_summary_of_it", "Another type in the name."),
        (Gauge, "queueDepth", "In camelCase."),
        (Gauge, "job:depth:sum5", "As of a recording rule."),
        (Gauge, "depth_count", "The suffix of a histogram."),
        (Gauge, "depth_sum", "The suffix of a histogram."),
        (Gauge, "depth_bucket", "The suffix of a histogram."),
        (Gauge, "without_help", ""),
        (Gauge, "with_blank_help", "  "),
    ];
    let bus = MetricBus::new();
    for (kind, name, help) in bad {
        declare(&bus, kind, name, help)?;
    }
    let lints = bus.lints();
    for (_, name, why) in bad {
        assert!(lints.iter().any(|lint| lint.metric == name), "the lints do not flag {name} ({why}): {lints:#?}");
    }
    let Some(verdict) = promtool::check_metrics(&exposition(&bus)?) else { return Ok(()) };
    assert!(!verdict.clean);
    let complaints = verdict.complaints();
    for (_, name, why) in bad {
        assert!(complaints.contains_key(name), "promtool does not flag {name} ({why}): {complaints:#?}");
    }
    assert_eq!(complaints.len(), bad.len(), "nothing else is flagged: {complaints:#?}");
    Ok(())
}

#[test]
fn a_bad_label_name_is_flagged_by_promtool_and_by_the_lints() -> Outcome {
    let bus = MetricBus::new();
    bus.family::<Gauge>(Desc::new("depth", "Waiting.").labels(["workerId"]))?.with_label_values(&["1"])?.set(1.0);
    assert_eq!(bus.lints().len(), 1, "{:?}", bus.lints());
    let Some(verdict) = promtool::check_metrics(&exposition(&bus)?) else { return Ok(()) };
    assert_eq!(verdict.complaints().keys().collect::<Vec<_>>(), [&"depth"], "{}", verdict.output);
    Ok(())
}

#[test]
fn the_lints_flag_those_metrics_that_promtool_flags_and_no_others() -> Outcome {
    const WORDS: &[&str] = &[
        "a", "b", "x", "http", "requests", "total", "count", "sum", "bucket", "info", "seconds", "milliseconds", "ms",
        "minutes", "hours", "days", "weeks", "bytes", "kilobytes", "mebibytes", "exbibytes", "bits", "kilobits", "kb",
        "ratio", "percent", "celsius", "kelvin", "kelvins", "kilokelvin", "fahrenheit", "rankine", "meters", "metres",
        "kilometers", "miles", "inches", "yards", "grams", "kilograms", "pounds", "ounces", "joules", "calories", "volts",
        "millivolts", "amperes", "milliamperes", "watts", "hertz", "counter", "gauge", "histogram", "summary", "untyped",
        "gaugehistogram", "S", "camelCase", "Upper", "minute", "hour", "day", "h", "m", "d", "us", "ns", "sec", "mb", "gb",
        "tb", "pb", "thermometers", "c:d",
    ];
    let mut random = Random::new(2);
    let bus = MetricBus::new();
    let kinds = [MetricKind::Counter, MetricKind::Gauge, MetricKind::Histogram];
    let mut declared = BTreeSet::new();
    let mut random_name = || {
        let words = 1 + random.below(3);
        let mut name = (0..words).map(|_| *random.one_of(WORDS)).collect::<Vec<_>>().join("_");
        let kind = *random.one_of(&kinds);
        if kind == MetricKind::Counter && !random.once_in(4) {
            name += "_total";
        }
        (kind, name)
    };
    for _ in 0..3_000 {
        let (kind, name) = random_name();
        // Some would clash with another's samples.
        if declare(&bus, kind, &name, "Help.").is_ok() {
            declared.insert(name);
        }
    }
    assert!(declared.len() > 1_500, "{}", declared.len());
    let lints = bus.lints();
    let flagged: BTreeSet<&str> = lints.iter().map(|lint| &*lint.metric).collect();
    let Some(verdict) = promtool::check_metrics(&exposition(&bus)?) else { return Ok(()) };
    let complaints = verdict.complaints();
    let missed: Vec<_> = complaints.iter().filter(|(name, _)| !flagged.contains(**name)).collect();
    let extra: Vec<_> = lints.iter().filter(|lint| !complaints.contains_key(&*lint.metric)).collect();
    assert!(missed.is_empty() && extra.is_empty(), "missed: {missed:#?}\nflagged without need: {extra:#?}");
    Ok(())
}
