//! Rules as metrics of the bus: what an operator alerts on and draws beside the values.
//!
//! A scrape takes each rule's lock for as long as it takes to copy a few numbers, however many groups the rule has; what
//! is told of them is made after that.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{
    Rule, RuleState,
    engine::View,
    live::{Rules, Slot},
};
use crate::{
    desc::MetricKind,
    series::Value,
    snapshot::{FamilySnapshot, SampleValue, SeriesSnapshot},
    stats::gauge,
};

/// Rules that have series of their own; of those beyond, by name, only their number is told.
const RULES_MAX: usize = 2_000;

struct Seen {
    slot: Arc<Slot>,
    rule: Arc<Rule>,
    view: View,
}

/// All about all rules, in no order.
pub(crate) fn families(rules: &Rules) -> Vec<FamilySnapshot> {
    let seen: Vec<_> = rules
        .all()
        .into_iter()
        .map(|slot| {
            let (rule, view) = slot.engine().summary();
            Seen { slot, rule, view }
        })
        .collect();
    let unmatched = seen.iter().filter(|seen| seen.view.matched == 0).count();
    let mut families = vec![
        gauge("metricbus_rules", "Rules that run.", seen.len() as f64),
        gauge(
            "metricbus_rules_left_out",
            "Rules whose own metrics are left out, since there are too many.",
            seen.len().saturating_sub(RULES_MAX) as f64,
        ),
        gauge(
            "metricbus_rules_unmatched",
            "Rules whose selectors have never matched a series: they are about nothing.",
            unmatched as f64,
        ),
    ];
    if !seen.is_empty() {
        families.extend(of_each(&seen[..seen.len().min(RULES_MAX)]));
    }
    families
}

fn of_each(seen: &[Seen]) -> [FamilySnapshot; 8] {
    let count = |name, help, value: fn(&Seen) -> u64| {
        let sample = move |seen: &Seen| Some(SampleValue::Counter(Value::U64(value(seen))));
        family(name, help, MetricKind::Counter, one_each(seen, sample))
    };
    let number = |name, help, value: fn(&Seen) -> Option<f64>| {
        let sample = move |seen: &Seen| value(seen).map(SampleValue::Gauge);
        family(name, help, MetricKind::Gauge, one_each(seen, sample))
    };
    [
        count(
            "metricbus_rule_fired_total",
            "Alerts of a rule that said firing, dry runs included.",
            |seen| seen.slot.log.fired(),
        ),
        family(
            "metricbus_rule_groups",
            "Groups of a rule, by state.",
            MetricKind::Gauge,
            seen.iter().flat_map(groups).collect(),
        ),
        FamilySnapshot {
            unit: Some("seconds".to_owned()),
            ..number(
                "metricbus_rule_since_evaluation_seconds",
                "How long ago a rule last judged something. One about a plain value judges only what comes near its bounds.",
                |seen| {
                    let at = seen.view.evaluated?;
                    Some(seen.slot.clock.now().since(at).as_secs_f64())
                },
            )
        },
        count(
            "metricbus_rule_missed_total",
            "Alerts of a rule dropped from full mailboxes of its subscribers.",
            |seen| seen.slot.log.missed(),
        ),
        count(
            "metricbus_rule_resolved_total",
            "Alerts of a rule that said resolved, dry runs included.",
            |seen| seen.slot.log.resolved(),
        ),
        number(
            "metricbus_rule_series",
            "Series that match a rule now, counted once for each place in it.",
            |seen| Some(seen.view.series as f64),
        ),
        family(
            "metricbus_rule_threshold",
            "Bounds of a rule: where what it looks at begins to meet the condition, and where it ceases to.",
            MetricKind::Gauge,
            seen.iter()
                .flat_map(|seen| thresholds(&seen.rule))
                .collect(),
        ),
        number(
            "metricbus_rule_value",
            "What a rule looks at now; of a rule about several sets of labels, what it judged last, of whichever. Absent where there is no data.",
            |seen| seen.view.value,
        ),
    ]
}

fn one_each(seen: &[Seen], sample: impl Fn(&Seen) -> Option<SampleValue>) -> Vec<SeriesSnapshot> {
    let series = seen.iter().filter_map(|seen| {
        Some(SeriesSnapshot {
            labels: labels(&seen.rule, []),
            value: sample(seen)?,
        })
    });
    series.collect()
}

fn groups(seen: &Seen) -> [SeriesSnapshot; 4] {
    RuleState::ALL.map(|state| SeriesSnapshot {
        labels: labels(&seen.rule, [("state", state.as_str())]),
        value: SampleValue::Gauge(seen.view.by_state[state as usize] as f64),
    })
}

/// The bounds of a rule. A condition can say the same twice, which is one series; and it can compare one thing with two
/// bounds, as a range does: the second and later ones have an `index`.
fn thresholds(rule: &Rule) -> Vec<SeriesSnapshot> {
    let mut told = HashSet::new();
    let mut indices: HashMap<_, usize> = HashMap::new();
    let mut series = Vec::new();
    for threshold in rule.thresholds() {
        let of = (threshold.level, threshold.input);
        let bounds = (threshold.raise.to_bits(), threshold.clear.to_bits());
        if !told.insert((of.clone(), bounds)) {
            continue;
        }
        let (level, input) = of.clone();
        let index = indices.entry(of).or_insert(0);
        *index += 1;
        for (bound, value) in [("raise", threshold.raise), ("clear", threshold.clear)] {
            let mut labels = labels(rule, [("bound", bound)]);
            if *index > 1 {
                labels.push(("index".to_owned(), index.to_string()));
            }
            labels.push(("input".to_owned(), input.clone()));
            labels.extend(level.clone().map(|level| ("level".to_owned(), level)));
            series.push(SeriesSnapshot {
                labels,
                value: SampleValue::Gauge(value),
            });
        }
    }
    series
}

fn labels<const N: usize>(rule: &Rule, others: [(&str, &str); N]) -> Vec<(String, String)> {
    let rule = ("rule", rule.name());
    [rule]
        .into_iter()
        .chain(others)
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn family(name: &str, help: &str, kind: MetricKind, series: Vec<SeriesSnapshot>) -> FamilySnapshot {
    FamilySnapshot {
        name: name.to_owned(),
        help: help.to_owned(),
        unit: None,
        kind,
        series,
    }
}
