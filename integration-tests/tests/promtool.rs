//! `promtool check metrics` over what the exporter writes, and the naming lints against promtool's.

use std::{collections::BTreeSet, error::Error};

use metricbus::{
    Buckets, Condition, Counter, DeclareError, Desc, Family, Gauge, Histogram, MetricBus,
    MetricKind, Metrics, Rule, Threshold, dynamo, export::Exporter,
};
use metricbus_integration_tests::{http, promtool, random::Random};

type Outcome = Result<(), Box<dyn Error>>;

fn declare(bus: &MetricBus, kind: MetricKind, name: &str, help: &str) -> Result<(), DeclareError> {
    match kind {
        MetricKind::Counter => bus.counter(name, help).map(|_| ()),
        // One that was never set would not be there.
        MetricKind::Gauge => bus.gauge(name, help).map(|gauge| gauge.set(0.0)),
        _ => bus
            .histogram(name, help, Buckets::from_static(&[1.0]))
            .map(|_| ()),
    }
}

/// All of `/metrics` in the text format.
fn exposition(bus: &MetricBus) -> Result<String, Box<dyn Error>> {
    let server = Exporter::new(bus).serve_in_background("127.0.0.1:0")?;
    let answer = http::get(
        server.local_addr(),
        "/metrics",
        &[("Accept", "text/plain;version=0.0.4")],
    )?;
    assert_eq!(answer.status, 200, "{answer:?}");
    Ok(answer.body)
}

#[derive(Metrics)]
struct Generate {
    /// Requests served.
    #[metric(labels("model"))]
    requests_total: Family<Counter>,
    /// Time worked.
    #[metric(unit = "seconds")]
    busy_seconds_total: Counter<f64>,
    /// Requests being served.
    inflight_requests: Gauge,
    /// Share of each cache in use: \ and "quotes".
    #[metric(unit = "ratio", labels("gpu"))]
    kv_usage_ratio: Family<Gauge>,
    /// Time from a request to its first token.
    #[metric(unit = "seconds", buckets = dynamo::TTFT_SECONDS)]
    time_to_first_token_seconds: Histogram,
    /// Time between two tokens.
    #[metric(unit = "seconds", buckets = dynamo::ITL_SECONDS)]
    inter_token_latency_seconds: Histogram,
    /// Time of a whole request.
    #[metric(unit = "seconds", buckets = dynamo::REQUEST_DURATION_SECONDS)]
    request_duration_seconds: Histogram,
    /// Length of the input.
    #[metric(buckets = dynamo::INPUT_TOKENS)]
    input_sequence_tokens: Histogram,
}

#[test]
fn promtool_has_no_complaint_about_anything_the_exporter_writes() -> Outcome {
    let bus = MetricBus::new();
    let endpoint = dynamo::namespace(&bus, "prod")
        .component("decode")
        .endpoint("generate");
    let generate: Generate = endpoint.register()?;
    for model in ["small", "large \"quoted\" \\ \n 🦀"] {
        generate.requests_total.with_label_values(&[model])?.inc();
    }
    generate.busy_seconds_total.inc_by(0.5);
    generate
        .kv_usage_ratio
        .with_label_values(&["0"])?
        .set(f64::NAN);
    generate
        .kv_usage_ratio
        .with_label_values(&["1"])?
        .set(f64::INFINITY);
    generate.time_to_first_token_seconds.observe(0.3);
    generate.inter_token_latency_seconds.observe(-1.0);
    generate.request_duration_seconds.observe(f64::NAN);
    generate.input_sequence_tokens.observe(1e300);
    assert_eq!(bus.lints(), []);

    // Something for the bus's own metrics to count: a subscription, and a crossing that it hears of.
    let selector = &generate.inflight_requests;
    let _subscription = bus
        .on_threshold(selector, Threshold::above(1.0))
        .inline(|_| {})?;
    generate.inflight_requests.set(3.0);

    // Rules: one that has seen NaN, one whose name needs escapes, with levels and the same bound twice, one about nothing.
    let at_most =
        |bound| Condition::when("dynamo_component_kv_usage_ratio", Threshold::at_most(bound));
    bus.add_rule(Rule::new("KvEmpty", at_most(0.1)))?;
    let twice = at_most(0.1) & !at_most(0.1);
    bus.add_rule(Rule::levels(
        "\"odd\" \\ \n name 🦀",
        [("warn", twice.clone()), ("critical", twice & at_most(0.05))],
    ))?;
    bus.add_rule(Rule::new(
        "Typo",
        Condition::when(
            r#"no_such_metric{label="a \"quoted\" value"}"#,
            Threshold::above(1.0),
        ),
    ))?;
    generate
        .kv_usage_ratio
        .with_label_values(&["1"])?
        .set(f64::NAN);

    let text = exposition(&bus)?;
    for family in [
        "dynamo_component_requests_total",
        "dynamo_component_input_sequence_tokens",
        "metricbus_component_info",
        "metricbus_rule_fired_total",
        "metricbus_rule_groups",
        "metricbus_rule_since_evaluation_seconds",
        "metricbus_rule_threshold",
        "metricbus_rule_value",
        "metricbus_rules_unmatched",
        "metricbus_series",
        "process_resident_memory_bytes",
    ] {
        assert!(
            text.contains(&format!("\n# TYPE {family} ")),
            "{family} is missing in\n{text}"
        );
    }
    let Some(verdict) = promtool::check_metrics(&text) else {
        return Ok(());
    };
    assert!(
        verdict.clean && verdict.output.is_empty(),
        "{}",
        verdict.output
    );
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
        (
            Counter,
            "uptime_s_total",
            "An abbreviated unit in the middle.",
        ),
        (Gauge, "cache_mb", "An abbreviated unit."),
        (Counter, "hit_counter_total", "The type in the name."),
        (Gauge, "load_gauge", "The type in the name."),
        (Histogram, "size_histogram", "The type in the name."),
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
        assert!(
            lints.iter().any(|lint| lint.metric == name),
            "the lints do not flag {name} ({why}): {lints:#?}"
        );
    }
    let Some(verdict) = promtool::check_metrics(&exposition(&bus)?) else {
        return Ok(());
    };
    assert!(!verdict.clean);
    let complaints = verdict.complaints();
    for (_, name, why) in bad {
        assert!(
            complaints.contains_key(name),
            "promtool does not flag {name} ({why}): {complaints:#?}"
        );
    }
    assert_eq!(
        complaints.len(),
        bad.len(),
        "nothing else is flagged: {complaints:#?}"
    );
    Ok(())
}

#[test]
fn a_bad_label_name_is_flagged_by_promtool_and_by_the_lints() -> Outcome {
    let bus = MetricBus::new();
    bus.family::<Gauge>(Desc::new("depth", "Waiting.").labels(["workerId"]))?
        .with_label_values(&["1"])?
        .set(1.0);
    assert_eq!(bus.lints().len(), 1, "{:?}", bus.lints());
    let Some(verdict) = promtool::check_metrics(&exposition(&bus)?) else {
        return Ok(());
    };
    assert_eq!(
        verdict.complaints().keys().collect::<Vec<_>>(),
        [&"depth"],
        "{}",
        verdict.output
    );
    Ok(())
}

#[test]
fn the_lints_flag_all_that_promtool_flags_and_little_else() -> Outcome {
    const WORDS: &[&str] = &[
        "a",
        "b",
        "x",
        "http",
        "requests",
        "total",
        "count",
        "sum",
        "bucket",
        "info",
        "ms",
        "kb",
        "ratio",
        "hertz",
        "watts",
        "counter",
        "gauge",
        "histogram",
        "summary",
        "untyped",
        "gaugehistogram",
        "S",
        "camelCase",
        "Upper",
        "minute",
        "hour",
        "h",
        "m",
        "d",
        "us",
        "ns",
        "sec",
        "mb",
        "gb",
        "tb",
        "pb",
        "thermometers",
        "c:d",
        "",
    ];
    const UNITS: &[&str] = &[
        "amperes",
        "bytes",
        "celsius",
        "grams",
        "joules",
        "kelvin",
        "meters",
        "metres",
        "seconds",
        "volts",
        "minutes",
        "hours",
        "days",
        "weeks",
        "kelvins",
        "fahrenheit",
        "rankine",
        "inches",
        "yards",
        "miles",
        "bits",
        "calories",
        "pounds",
        "ounces",
        "Seconds",
        "percent",
    ];
    const PREFIXES: &[&str] = &[
        "", "", "", "pico", "nano", "micro", "milli", "centi", "deci", "deca", "hecto", "kilo",
        "kibi", "mega", "mebi", "giga", "gibi", "tera", "tebi", "peta", "pebi", "exa",
    ];
    // What the naming conventions want, and promtool does not know: ratios for percents; and it takes "mebi" for "mibi".
    let beyond_promtool = |text: &str| text.contains("percent\"") || text.contains("\"mebi");

    let mut random = Random::new(2);
    let bus = MetricBus::new();
    let kinds = [
        MetricKind::Counter,
        MetricKind::Gauge,
        MetricKind::Histogram,
    ];
    let mut declared = BTreeSet::new();
    for _ in 0..4_000 {
        // One unit at most: of two, promtool looks at one, and not always at the same.
        let unit = format!("{}{}", random.one_of(PREFIXES), random.one_of(UNITS));
        let mut words: Vec<&str> = (0..random.below(3))
            .map(|_| *random.one_of(WORDS))
            .collect();
        if random.once_in(2) {
            words.insert(random.below(words.len() + 1), &unit);
        }
        let kind = *random.one_of(&kinds);
        if kind == MetricKind::Counter && !random.once_in(4) {
            words.push("total");
        }
        let name = words.join("_");
        // Some are no names, and some would clash with another's samples.
        if declare(&bus, kind, &name, "Help.").is_ok() {
            declared.insert(name);
        }
    }
    assert!(declared.len() > 1_500, "{}", declared.len());

    let lints = bus.lints();
    let flagged: BTreeSet<&str> = lints.iter().map(|lint| &*lint.metric).collect();
    let Some(verdict) = promtool::check_metrics(&exposition(&bus)?) else {
        return Ok(());
    };
    let complaints = verdict.complaints();
    let missed: Vec<_> = complaints
        .iter()
        .filter(|(name, texts)| {
            // Up to 2.53 promtool complains of any type in a name; since then, as the lint, of the metric's own.
            let of_type = |text: &&str| text.contains("should not include type");
            !flagged.contains(**name) && !texts.iter().all(of_type)
        })
        .collect();
    let extra: Vec<_> = lints
        .iter()
        .filter(|lint| !complaints.contains_key(&*lint.metric) && !beyond_promtool(&lint.text))
        .collect();
    assert!(
        missed.is_empty() && extra.is_empty(),
        "{} missed, {} flagged without need; the first: {:#?} {:#?}",
        missed.len(),
        extra.len(),
        missed.first(),
        extra.first()
    );
    Ok(())
}

/// Annotations that a rule takes, and one that it refuses for a reason that promtool has, too.
#[test]
fn promtool_takes_the_templates_that_rules_take() -> Outcome {
    let template = "{{ $labels.worker }} of {{ .Holding }} at {{ $value }} {{ \"{{\" }}";
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("rules.json");
    for (template, is_right) in [
        (template, true),
        ("{{ $value", false),
        ("{{ $holding }}", false),
    ] {
        let bus = MetricBus::new();
        let rule = Rule::new("R", Condition::when("kv", Threshold::above(0.5)));
        let taken = bus
            .add_rule(rule.any().annotation("what", template))
            .is_ok();
        assert_eq!(taken, is_right, "{template}");
        // JSON is YAML.
        let rule = serde_json::json!({ "alert": "R", "expr": "kv > 0.5", "annotations": { "what": template } });
        let group = serde_json::json!({ "groups": [{ "name": "g", "rules": [rule] }] });
        std::fs::write(&file, group.to_string())?;
        let Some(verdict) = promtool::check_rules(&file) else {
            return Ok(());
        };
        assert_eq!(verdict.clean, is_right, "{template}: {}", verdict.output);
    }
    Ok(())
}
