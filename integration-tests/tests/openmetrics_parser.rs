//! The parsers of `prometheus_client` read our output and get back what was set.
//!
//! Method: random registries (kinds, names, labels, values, help texts, as hostile as can be) are written in both
//! formats and parsed by the parser of each, many in one run of Python. What a parser understood must be what was set:
//! no sample more, none less, the same values. A failure names its seed.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    rc::Rc,
};

use metricbus::{
    Buckets, Condition, Counter, DeclareError, Desc, Family, Gauge, Histogram, MetricBus, Rule,
    Threshold,
    export::{Exporter, Format, text},
};
use metricbus_integration_tests::{
    http,
    python::{self, ParsedFamily, Parser},
    random::{HOSTILE, Random},
};

type Outcome = Result<(), Box<dyn Error>>;

const REGISTRIES: u64 = 500;

/// A sample's name and labels; the bound of a bucket as its number, which can be written in more than one way.
type Key = (String, BTreeMap<String, String>);

/// What is known to have been set.
#[derive(Debug, Default)]
struct Wanted {
    /// By the family's name, which for a counter is without `_total`: type, help and unit.
    families: BTreeMap<String, (&'static str, String, String)>,
    samples: BTreeMap<Key, Number>,
    /// Those that OpenMetrics can't express.
    text_only: Vec<Key>,
}

#[derive(Debug, Clone, Copy)]
enum Number {
    U64(u64),
    F64(f64),
}

impl Number {
    /// Whether Python's print of a number is this one. -0 is 0, and NaN is NaN.
    fn is(self, python: &str) -> bool {
        match self {
            Number::U64(number) => python.parse() == Ok(number),
            Number::F64(number) => match python.parse::<f64>() {
                Ok(parsed) => parsed == number || (parsed.is_nan() && number.is_nan()),
                Err(_) => false,
            },
        }
    }
}

impl Wanted {
    fn family(&mut self, name: &str, kind: &'static str, help: &str, unit: &str) {
        self.families
            .insert(name.to_owned(), (kind, help.to_owned(), unit.to_owned()));
    }

    fn sample(&mut self, name: String, labels: &BTreeMap<String, String>, value: Number) -> Key {
        let key = (name, labels.clone());
        self.samples.insert(key.clone(), value);
        key
    }

    fn histogram(
        &mut self,
        name: &str,
        labels: &BTreeMap<String, String>,
        bounds: &[f64],
        observed: &[f64],
    ) {
        for bound in bounds
            .iter()
            .copied()
            .filter(|bound| bound.is_finite())
            .chain([f64::INFINITY])
        {
            let below = observed.iter().filter(|&&value| value <= bound).count();
            // NaN is in the last bucket only.
            let count = if bound == f64::INFINITY {
                observed.len()
            } else {
                below
            };
            let mut labels = labels.clone();
            labels.insert("le".to_owned(), number(bound));
            self.sample(format!("{name}_bucket"), &labels, Number::U64(count as u64));
        }
        let sum = observed.iter().fold(0.0, |sum, value| sum + value);
        let sum_key = self.sample(format!("{name}_sum"), labels, Number::F64(sum));
        let count_key = self.sample(
            format!("{name}_count"),
            labels,
            Number::U64(observed.len() as u64),
        );
        // OpenMetrics: a histogram with negative bounds has no sum, a sum is neither negative nor NaN, and without a sum
        // there is no count either.
        if bounds.first().is_some_and(|&bound| bound < 0.0) || sum.is_nan() || sum < 0.0 {
            self.text_only.extend([sum_key, count_key]);
        }
    }
}

/// One text for each bound, however it was written. -0 is 0.
fn number(bound: f64) -> String {
    (bound + 0.0).to_string()
}

/// Compares, and says what is different.
fn check(wanted: &Wanted, parser: Parser, parsed: &[ParsedFamily]) -> Result<(), String> {
    let mut missing: BTreeMap<&Key, Number> = wanted
        .samples
        .iter()
        .map(|(key, value)| (key, *value))
        .collect();
    if parser == Parser::OpenMetrics {
        for key in &wanted.text_only {
            missing.remove(key);
        }
    }
    for family in parsed {
        let Some((kind, help, unit)) = wanted.families.get(&family.name) else {
            return Err(format!("nobody declared {family:?}"));
        };
        // The parsers themselves strip a help text.
        if family.kind != *kind || family.help.trim() != help.trim() {
            return Err(format!("wanted {kind} with {help:?}, got {family:?}"));
        }
        if parser == Parser::OpenMetrics && family.unit != *unit {
            return Err(format!("wanted unit {unit:?}, got {family:?}"));
        }
        for sample in &family.samples {
            let mut labels = sample.labels.clone();
            if let Some(bound) = labels.get_mut("le") {
                *bound = number(bound.parse().map_err(|why| format!("{why}: {sample:?}"))?);
            }
            let key = (sample.name.clone(), labels);
            match missing.remove(&key) {
                Some(value) if value.is(&sample.value) => {}
                Some(value) => return Err(format!("wanted {value:?}, got {sample:?}")),
                None => return Err(format!("unexpected or twice: {sample:?}")),
            }
        }
    }
    if missing.is_empty() {
        Ok(())
    } else {
        Err(format!("missing: {missing:?}"))
    }
}

/// Fills a bus at random, and says with what. A declaration that is refused leaves no trace.
fn random_registry(random: &mut Random) -> Result<(MetricBus, Wanted), Box<dyn Error>> {
    // Few enough to clash: with themselves, and with the suffixes of other kinds.
    const NAMES: &[&str] = &[
        "a",
        "a_total",
        "a_created",
        "a_info",
        "a_bucket",
        "a_count",
        "a_sum",
        "a_count_total",
        "a_seconds",
        "a_seconds_total",
        "a_total_total",
        "total",
        "_total",
        "_",
        "b",
        "b_ratio",
        "b_gcount",
        "b_gsum",
        "c:d",
        "C9",
        "e_unit",
    ];
    const LABELS: &[&str] = &["a", "b", "_c", "D_9", "name", "job"];
    const RESERVED: &[&str] = &["le", "quantile", "__name__", "otel_metric_overflow"];
    const UNITS: &[&str] = &["seconds", "ratio", "unit", "total"];

    let bus = MetricBus::new();
    let mut wanted = Wanted::default();
    for _ in 0..1 + random.below(8) {
        let name = *random.one_of(NAMES);
        let help = if random.once_in(3) {
            random.hostile_text()
        } else {
            "Help.".to_owned()
        };
        let mut desc = Desc::new(name, &*help);
        let mut unit = "";
        if random.once_in(3) {
            unit = *random.one_of(UNITS);
            desc = desc.unit(unit);
        }
        let mut names: Vec<&str> = Vec::new();
        for _ in 0..random.below(4) {
            let choices = if random.once_in(20) { RESERVED } else { LABELS };
            let label = *random.one_of(choices);
            if random.once_in(8) || !names.contains(&label) {
                names.push(label);
            }
        }
        let mut constant = BTreeMap::new();
        if random.once_in(3) {
            let (label, value) = (*random.one_of(LABELS), random.hostile_text());
            desc = desc.label(label, &*value);
            constant.insert(label.to_owned(), value);
        }
        let desc = desc.labels(names.iter().copied());
        // The label values of each child; without labels there is one child, which is the metric.
        let children: Vec<Vec<String>> = match names.len() {
            0 => vec![vec![]],
            n => (0..random.below(4))
                .map(|_| (0..n).map(|_| random.hostile_text()).collect())
                .collect(),
        };
        let labels = |values: &[String]| {
            let mut labels = constant.clone();
            labels.extend(
                names
                    .iter()
                    .map(|name| (*name).to_owned())
                    .zip(values.iter().cloned()),
            );
            labels
        };
        let base = name.strip_suffix("_total").unwrap_or(name);
        match random.below(4) {
            0 => {
                let Some(metrics) = metrics::<Counter>(&bus, desc, &children)? else {
                    continue;
                };
                wanted.family(base, "counter", &help, unit);
                for (values, counter) in metrics {
                    let amount = if random.once_in(3) {
                        u64::MAX
                    } else {
                        random.bits() >> random.below(64)
                    };
                    counter.inc_by(amount - counter.get());
                    wanted.sample(
                        format!("{base}_total"),
                        &labels(&values),
                        Number::U64(counter.get()),
                    );
                }
            }
            1 => {
                let Some(metrics) = metrics::<Counter<f64>>(&bus, desc, &children)? else {
                    continue;
                };
                wanted.family(base, "counter", &help, unit);
                for (values, counter) in metrics {
                    let amount = random.double();
                    // Refused, and counted as such, if it is not an amount.
                    counter.inc_by(amount);
                    wanted.sample(
                        format!("{base}_total"),
                        &labels(&values),
                        Number::F64(counter.get()),
                    );
                }
            }
            2 => {
                let Some(metrics) = metrics::<Gauge>(&bus, desc, &children)? else {
                    continue;
                };
                wanted.family(name, "gauge", &help, unit);
                for (values, gauge) in metrics {
                    let value = random.double();
                    gauge.set(value);
                    wanted.sample(name.to_owned(), &labels(&values), Number::F64(value));
                }
            }
            _ => {
                let mut bounds: Vec<f64> = (0..random.below(6))
                    .map(|_| random.double())
                    .filter(|b| !b.is_nan())
                    .collect();
                bounds.sort_by(f64::total_cmp);
                bounds.dedup();
                let Ok(buckets) = Buckets::new(bounds.clone()) else {
                    continue;
                };
                let Some(metrics) = metrics::<Histogram>(&bus, desc.buckets(buckets), &children)?
                else {
                    continue;
                };
                wanted.family(name, "histogram", &help, unit);
                for (values, histogram) in metrics {
                    let observed: Vec<f64> =
                        (0..random.below(5)).map(|_| random.double()).collect();
                    for &value in &observed {
                        histogram.observe(value);
                    }
                    wanted.histogram(name, &labels(&values), &bounds, &observed);
                }
            }
        }
    }
    Ok((bus, wanted))
}

/// Declares, and makes the children; with no labels there is one. `None` where the bus refused the declaration, or gave
/// one that it had.
#[expect(
    clippy::type_complexity,
    reason = "the labels of each child, and the child"
)]
fn metrics<M: metricbus::Metric>(
    bus: &MetricBus,
    desc: Desc,
    children: &[Vec<String>],
) -> Result<Option<Vec<(Vec<String>, M)>>, Box<dyn Error>> {
    let before = bus.snapshot().families.len();
    if let [only] = children
        && only.is_empty()
    {
        let metric = bus.declare::<M>(desc);
        return Ok(declared(bus, before, metric).map(|metric| vec![(vec![], metric)]));
    }
    let family: Option<Family<M>> = declared(bus, before, bus.family(desc));
    let Some(family) = family else {
        return Ok(None);
    };
    let mut made: Vec<(Vec<String>, M)> = Vec::new();
    for values in children {
        if made.iter().all(|(other, _)| other != values) {
            made.push((values.clone(), family.with_label_values(values)?));
        }
    }
    Ok(Some(made))
}

fn declared<T>(bus: &MetricBus, before: usize, outcome: Result<T, DeclareError>) -> Option<T> {
    outcome
        .ok()
        .filter(|_| bus.snapshot().families.len() > before)
}

fn written(bus: &MetricBus, format: Format) -> Result<String, Box<dyn Error>> {
    let mut out = Vec::new();
    text::encode(bus, format, &mut out);
    text::finish(format, &mut out);
    Ok(String::from_utf8(out)?)
}

#[test]
fn both_parsers_get_back_every_value_of_random_registries() -> Outcome {
    let mut cases = Vec::new();
    for seed in 0..REGISTRIES {
        let (bus, wanted) = random_registry(&mut Random::new(seed))?;
        let wanted = Rc::new(wanted);
        cases.push((
            seed,
            Parser::OpenMetrics,
            written(&bus, Format::OpenMetrics)?,
            Rc::clone(&wanted),
        ));
        cases.push((seed, Parser::Text, written(&bus, Format::Text)?, wanted));
    }
    let documents: Vec<(Parser, &str)> = cases
        .iter()
        .map(|(_, parser, text, _)| (*parser, &**text))
        .collect();
    let Some(outcomes) = python::parse(&documents) else {
        return Ok(());
    };

    let mut samples = 0;
    let mut faults = Vec::new();
    for ((seed, parser, document, wanted), outcome) in cases.iter().zip(outcomes) {
        samples += wanted.samples.len();
        let outcome = outcome.and_then(|families| check(wanted, *parser, &families));
        if let Err(why) = outcome {
            faults.push((
                document.len(),
                format!("seed {seed}, {parser:?}: {why:.2000}\n{document:.4000}"),
            ));
        }
    }
    faults.sort();
    assert!(
        faults.is_empty(),
        "{} of {} documents are wrong; the shortest are {:#?}",
        faults.len(),
        cases.len(),
        &faults[..faults.len().min(3)]
    );
    // That the generator makes what it should, and the bus does not refuse it all.
    assert!(samples > 5_000, "only {samples} samples");
    Ok(())
}

#[test]
fn hostile_label_values_and_help_texts_are_read_back_equal_by_both_parsers() -> Outcome {
    let bus = MetricBus::new();
    let mut wanted = Wanted::default();
    let long: String = "long \"\\\n🦀 ".chars().cycle().take(10_000).collect();
    for (i, text) in HOSTILE.iter().copied().chain([&*long]).enumerate() {
        let name = format!("metric_{i}");
        let family: Family<Gauge> = bus.family(
            Desc::new(&*name, text)
                .label("constant", text)
                .labels(["variable"]),
        )?;
        family.with_label_values(&[text])?.set(i as f64);
        wanted.family(&name, "gauge", text, "");
        let labels = [("constant", text), ("variable", text)]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        wanted.sample(name, &labels.into(), Number::F64(i as f64));
    }
    let (openmetrics, classic) = (
        written(&bus, Format::OpenMetrics)?,
        written(&bus, Format::Text)?,
    );
    let documents = [
        (Parser::OpenMetrics, &*openmetrics),
        (Parser::Text, &*classic),
    ];
    let Some(outcomes) = python::parse(&documents) else {
        return Ok(());
    };
    for ((parser, _), outcome) in documents.iter().zip(outcomes) {
        check(&wanted, *parser, &outcome?)?;
    }
    Ok(())
}

#[test]
fn what_is_told_of_rules_is_read_back_by_both_parsers() -> Outcome {
    let bus = MetricBus::new();
    let load = bus.gauge("load_ratio", "Load.")?;
    let above = |bound| Condition::when(&load, Threshold::above(bound));
    for (i, name) in HOSTILE.iter().enumerate() {
        // The number keeps apart what may be alike, and what may be empty.
        let twice = above(0.5) & !above(0.5) & above(0.7);
        bus.add_rule(Rule::levels(
            format!("{i}{name}"),
            [
                (format!("{name}1"), twice),
                (format!("{name}2"), above(0.9)),
            ],
        ))?;
    }
    bus.add_rule(Rule::new(
        "typo",
        Condition::when("laod_ratio", Threshold::above(0.5)),
    ))?;
    load.set(f64::INFINITY);
    load.set(f64::NAN);

    let server = Exporter::new(&bus).serve_in_background("127.0.0.1:0")?;
    let mut documents = Vec::new();
    for (parser, accept) in [
        (
            Parser::OpenMetrics,
            "application/openmetrics-text;version=1.0.0",
        ),
        (Parser::Text, "text/plain;version=0.0.4"),
    ] {
        let answer = http::get(server.local_addr(), "/metrics", &[("Accept", accept)])?;
        documents.push((parser, answer.body));
    }
    let texts: Vec<(Parser, &str)> = documents
        .iter()
        .map(|(parser, text)| (*parser, &**text))
        .collect();
    let Some(outcomes) = python::parse(&texts) else {
        return Ok(());
    };
    for ((parser, _), outcome) in documents.iter().zip(outcomes) {
        let families: BTreeMap<_, _> = outcome?
            .into_iter()
            .map(|family| (family.name.clone(), family))
            .collect();
        let samples = |name: &str| families.get(name).map_or(&[][..], |family| &family.samples);
        let mut seen = BTreeSet::new();
        for sample in families
            .iter()
            .filter(|(name, _)| name.starts_with("metricbus_rule"))
            .flat_map(|(_, family)| &family.samples)
        {
            let series = (sample.name.clone(), sample.labels.clone());
            assert!(seen.insert(series), "{parser:?} read twice: {sample:?}");
        }
        let fired: BTreeMap<&str, &str> = samples("metricbus_rule_fired")
            .iter()
            .map(|sample| (&*sample.labels["rule"], &*sample.value))
            .collect();
        for (i, name) in HOSTILE.iter().enumerate() {
            let rule = format!("{i}{name}");
            let fired = fired.get(&*rule).ok_or(format!("no {rule:?}"))?;
            assert!(
                Number::U64(1).is(fired) || Number::F64(1.0).is(fired),
                "{fired}"
            );
            let bounds: BTreeSet<_> = samples("metricbus_rule_threshold")
                .iter()
                .filter(|sample| sample.labels["rule"] == rule && sample.labels["bound"] == "raise")
                .map(|sample| (&*sample.labels["level"], &*sample.value))
                .collect();
            let (warn, critical) = (format!("{name}1"), format!("{name}2"));
            let wanted = [(&*warn, "0.5"), (&*warn, "0.7"), (&*critical, "0.9")];
            assert_eq!(bounds, BTreeSet::from(wanted));
        }
        let value = &samples("metricbus_rule_value")[0].value;
        assert!(Number::F64(f64::NAN).is(value), "{value}");
        let evaluated = &families["metricbus_rule_since_evaluation_seconds"];
        if *parser == Parser::OpenMetrics {
            assert_eq!(evaluated.unit, "seconds");
        }
        assert!(
            evaluated
                .samples
                .iter()
                .all(|sample| sample.labels["rule"] != "typo")
        );
        let [unmatched] = samples("metricbus_rules_unmatched") else {
            return Err("no metricbus_rules_unmatched".into());
        };
        assert!(Number::F64(1.0).is(&unmatched.value));
    }
    Ok(())
}

#[test]
fn the_exporters_whole_output_is_accepted_by_both_parsers() -> Outcome {
    let (bus, _) = random_registry(&mut Random::new(1))?;
    let registry = prometheus::Registry::new();
    let theirs = prometheus::IntGaugeVec::new(
        prometheus::Opts::new("theirs", "Quotes \" and\nlines \\."),
        &["path"],
    )?;
    registry.register(Box::new(theirs.clone()))?;
    for value in HOSTILE {
        theirs.with_label_values(&[*value]).inc();
    }
    let server = Exporter::builder(&bus)
        .merge(registry)
        .build()
        .serve_in_background("127.0.0.1:0")?;
    let asked = [
        (
            Parser::OpenMetrics,
            "application/openmetrics-text;version=1.0.0",
            "application/openmetrics-text",
        ),
        (Parser::Text, "text/plain;version=0.0.4", "text/plain"),
    ];
    let mut documents = Vec::new();
    for (parser, accept, media_type) in asked {
        let answer = http::get(server.local_addr(), "/metrics", &[("Accept", accept)])?;
        assert_eq!(answer.status, 200);
        let got = answer.header("content-type").unwrap_or_default();
        assert!(got.starts_with(media_type), "{got}");
        documents.push((parser, answer.body));
    }
    let texts: Vec<(Parser, &str)> = documents
        .iter()
        .map(|(parser, text)| (*parser, &**text))
        .collect();
    let Some(outcomes) = python::parse(&texts) else {
        return Ok(());
    };
    for outcome in outcomes {
        let families = outcome?;
        let theirs = families
            .iter()
            .find(|family| family.name == "theirs")
            .ok_or("no merged family")?;
        let paths: Vec<&str> = theirs
            .samples
            .iter()
            .filter_map(|sample| sample.labels.get("path"))
            .map(|p| &**p)
            .collect();
        assert_eq!(theirs.help, "Quotes \" and\nlines \\.");
        for value in HOSTILE {
            assert!(paths.contains(value), "{value:?} is not in {paths:?}");
        }
        for own in ["process_resident_memory_bytes", "metricbus_series"] {
            assert!(families.iter().any(|family| family.name == own), "no {own}");
        }
    }
    Ok(())
}
