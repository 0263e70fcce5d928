//! The naming lint: what `promtool check metrics` would say of a name, said at declaration.
//!
//! A lint never refuses a metric. The rules are those of Prometheus's `util/promlint` (naming conventions at
//! prometheus.io/docs/practices/naming), as of Prometheus 3.5, and what else a scrape would make of a name.

use std::fmt;

use crate::{
    desc::{Meta, MetricKind},
    names::{Escaping, is_plain},
};

/// A warning about a declaration's name.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lint {
    /// The metric.
    pub metric: String,
    /// What is unusual, and what would be usual.
    pub text: String,
}

impl fmt::Display for Lint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.metric, self.text)
    }
}

/// Units, and the base unit that ought to be used instead. Any of them may have a prefix.
const UNITS: &[(&str, &str)] = &[
    ("amperes", "amperes"),
    ("bytes", "bytes"),
    ("celsius", "celsius"),
    ("grams", "grams"),
    ("joules", "joules"),
    ("kelvin", "kelvin"),
    ("meters", "meters"),
    ("metres", "metres"),
    ("seconds", "seconds"),
    ("volts", "volts"),
    ("minutes", "seconds"),
    ("hours", "seconds"),
    ("days", "seconds"),
    ("weeks", "seconds"),
    ("kelvins", "kelvin"),
    ("fahrenheit", "celsius"),
    ("rankine", "celsius"),
    ("inches", "meters"),
    ("yards", "meters"),
    ("miles", "meters"),
    ("bits", "bytes"),
    ("calories", "joules"),
    ("pounds", "grams"),
    ("ounces", "grams"),
    // Not in promlint, but in the naming conventions.
    ("percent", "ratio"),
];

/// promlint has "mibi" where "mebi" is meant, and so lets mebibytes pass.
const PREFIXES: &[&str] = &[
    "", "pico", "nano", "micro", "milli", "centi", "deci", "deca", "hecto", "kilo", "kibi", "mega",
    "mebi", "mibi", "giga", "gibi", "tera", "tebi", "peta", "pebi",
];

/// What Prometheus says of each scrape, and of alerts, under names of its own.
const PROMETHEUS_OWN: &[&str] = &[
    "up",
    "scrape_duration_seconds",
    "scrape_samples_scraped",
    "scrape_samples_post_metric_relabeling",
    "scrape_series_added",
    "scrape_timeout_seconds",
    "scrape_sample_limit",
    "scrape_body_size_bytes",
    "ALERTS",
    "ALERTS_FOR_STATE",
];

const ABBREVIATED: &[&str] = &[
    "s", "ms", "us", "ns", "sec", "b", "kb", "mb", "gb", "tb", "pb", "m", "h", "d",
];

/// Everything there is to say of a declaration.
pub(crate) fn lint(meta: &Meta) -> Vec<Lint> {
    let name = &*meta.name;
    let mut lints = Vec::new();
    let mut say = |text: String| {
        lints.push(Lint {
            metric: name.to_owned(),
            text,
        });
    };
    if meta.help.trim().is_empty() {
        say("no help text".to_owned());
    }
    match meta.kind {
        MetricKind::Counter if !name.ends_with("_total") => {
            say(format!(
                "counter metrics should end in \"_total\", as in {name}_total"
            ));
        }
        MetricKind::Gauge | MetricKind::Histogram if name.ends_with("_total") => {
            say("metrics that are not counters should not end in \"_total\"".to_owned());
        }
        _ => {}
    }
    if meta.kind != MetricKind::Histogram {
        for suffix in ["_bucket", "_count", "_sum"] {
            if name.ends_with(suffix) {
                say(format!(
                    "metrics that are not histograms should not end in {suffix:?}"
                ));
            }
        }
    }
    if name.contains(':') {
        say("':' is meant for the names of recording rules".to_owned());
    }
    if is_camel_case(name) {
        say("names should be in snake_case, not camelCase".to_owned());
    }
    for label in &meta.label_names {
        if is_camel_case(label) {
            say(format!(
                "label {label:?} should be in snake_case, not camelCase"
            ));
        }
    }
    let lower = name.to_lowercase();
    let words: Vec<&str> = lower.split('_').collect();
    // A first word that is a type or a unit names the thing counted, as promlint sees it. Another type than its own may be
    // what the metric is about.
    let kind = meta.kind.as_str();
    if words.iter().skip(1).any(|word| *word == kind) {
        say(format!("the name should not include its type, {kind:?}"));
    }
    if PROMETHEUS_OWN.contains(&name) {
        say("Prometheus writes a metric of this name itself about each target, and the two mix; choose another".to_owned());
    }
    if !is_plain(name, true) {
        let plain = Escaping::Underscores.of_metric(name);
        say(format!(
            "names of letters of ASCII, digits and '_' are understood everywhere; this one is {plain:?} to many"
        ));
    }
    for label in meta
        .label_names
        .iter()
        .filter(|label| !is_plain(label, false))
    {
        let plain = Escaping::Underscores.of_label(label);
        say(format!(
            "label names of letters of ASCII, digits and '_' are understood everywhere; {label:?} is {plain:?} to many"
        ));
    }
    for word in name.split('_') {
        for (unit, base) in UNITS {
            let prefixed = word
                .strip_suffix(unit)
                .is_some_and(|prefix| PREFIXES.contains(&prefix));
            if prefixed && word != *base {
                say(format!("use the base unit {base:?} instead of {word:?}"));
            }
        }
    }
    for word in words
        .iter()
        .skip(1)
        .filter(|word| ABBREVIATED.contains(word))
    {
        say(format!("units should not be abbreviated, as {word:?} is"));
    }
    lints
}

fn is_camel_case(name: &str) -> bool {
    name.as_bytes()
        .windows(2)
        .any(|pair| pair[0].is_ascii_lowercase() && pair[1].is_ascii_uppercase())
}
