//! Exemplars and times of birth in the text formats, as foreign parsers read them.

use std::{collections::BTreeMap, error::Error, time::Duration};

use metricbus::{
    Buckets, Clock, Counter, Desc, Family, Histogram, MetricBus,
    export::{BackgroundServer, Exporter},
};
use metricbus_integration_tests::{
    http, promtool,
    python::{self, ParsedSample, Parser},
    random::HOSTILE,
};

type Outcome = Result<(), Box<dyn Error>>;

fn served(bus: &MetricBus) -> Result<BackgroundServer, Box<dyn Error>> {
    let exporter = Exporter::builder(bus)
        .created_lines(true)
        .process_metrics(false)
        .build();
    Ok(exporter.serve_in_background("127.0.0.1:0")?)
}

#[test]
fn the_strict_parser_reads_exemplars_and_times_of_birth_as_they_were() -> Outcome {
    let clock = Clock::manual();
    let bus = MetricBus::builder()
        .clock(clock.clone())
        .native_histograms(true)
        .build();
    clock.advance(Duration::from_millis(1_700_000_000_250));
    let waits: Family<Histogram> = bus.family(
        Desc::new("wait_seconds", "h")
            .unit("seconds")
            .labels(["x"])
            .buckets(Buckets::new([0.5, 1.0])?),
    )?;
    let total: Family<Counter> = bus.family(Desc::new("c_total", "h").labels(["x"]))?;
    clock.advance(Duration::from_millis(1_750));
    // The parser takes an escaped quote in an exemplar for one that ends a value, and so loses its way with a single one.
    let texts = HOSTILE
        .iter()
        .filter(|text| text.chars().count() <= 110 && text.matches('"').count() % 2 == 0);
    let texts: Vec<&str> = texts.copied().collect();
    for (i, text) in texts.iter().enumerate() {
        let i = i.to_string();
        let labels = [("id", &*i), ("text", *text)];
        total
            .with_label_values(&[&i])?
            .inc_by_with_exemplar(7, &labels)?;
        let wait = waits.with_label_values(&[&i])?;
        wait.observe_with_exemplar(0.75, &labels)?;
        wait.observe_with_exemplar(f64::INFINITY, &[])?;
    }

    let server = served(&bus)?;
    let accept = [("Accept", "application/openmetrics-text;version=1.0.0")];
    let open = http::get(server.local_addr(), "/metrics", &accept)?.body;
    let Some(parsed) = python::parse(&[(Parser::OpenMetrics, &open)]) else {
        return Ok(());
    };
    let families = parsed.into_iter().next().ok_or("no answer")??;
    let all: Vec<ParsedSample> = families.into_iter().flat_map(|f| f.samples).collect();
    let find = |name: &str, labels: &[(&str, &str)]| {
        let found = all.iter().find(|s| {
            s.name == name
                && labels
                    .iter()
                    .all(|(n, v)| s.labels.get(*n).is_some_and(|w| w == v))
        });
        found.ok_or(format!("no {name} {labels:?} in {open}"))
    };
    for (i, text) in texts.iter().enumerate() {
        let i = i.to_string();
        let labels = BTreeMap::from([
            ("id".to_owned(), i.clone()),
            ("text".to_owned(), (*text).to_owned()),
        ]);
        let of = |labels: &BTreeMap<String, String>, value: &str| {
            Some((labels.clone(), value.to_owned(), "1700000002.0".to_owned()))
        };
        let x = ("x", &*i);
        let counter = find("c_total", &[x])?;
        assert_eq!(counter.value, "7");
        assert_eq!(counter.exemplar, of(&labels, "7"), "{text:?}");
        let bucket = |le| find("wait_seconds_bucket", &[x, ("le", le)]);
        assert_eq!(bucket("0.5")?.exemplar, None);
        assert_eq!(bucket("1.0")?.exemplar, of(&labels, "0.75"), "{text:?}");
        assert_eq!(bucket("+Inf")?.exemplar, of(&BTreeMap::new(), "inf"));
        for created in ["c_created", "wait_seconds_created"] {
            // Children are made when they are first used.
            assert_eq!(find(created, &[x])?.value, "1700000002.0");
        }
    }
    Ok(())
}

#[test]
fn promtool_has_no_complaint_about_what_has_exemplars_and_native_buckets() -> Outcome {
    let bus = MetricBus::builder().native_histograms(true).build();
    let requests = bus.counter("requests_total", "Requests.")?;
    requests.inc_with_exemplar(&[("trace_id", "a")])?;
    let wait = bus.histogram("wait_seconds", "Time waited.", Buckets::default())?;
    wait.observe_with_exemplar(0.2, &[("trace_id", "b")])?;
    let server = served(&bus)?;
    let text = http::get(server.local_addr(), "/metrics", &[])?.body;
    assert!(!text.contains("trace_id") && !text.contains("_created"));
    let Some(verdict) = promtool::check_metrics(&text) else {
        return Ok(());
    };
    assert!(verdict.clean && verdict.output.is_empty(), "{verdict:?}");
    Ok(())
}
