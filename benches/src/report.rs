//! What comes out: the entries, the table for people and the JSON for programs. It measures nothing.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    fs,
    path::Path,
};

use serde::Serialize;

use crate::{
    Failure,
    harness::{Role, Rounds},
    stats::{Summary, quantile, ratios},
};

/// What an entry has to reach.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bar {
    /// At most so many times the floor.
    Floor(f64),
    /// At most so many times the peer.
    Peer(f64),
    /// Nothing is promised.
    None,
}

/// What the figures of an entry are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Unit {
    /// Nanoseconds per operation.
    Ns,
    /// Bytes per series.
    Bytes,
}

/// What measuring an entry gave, in one pass or in several.
pub(crate) struct Figures {
    name: &'static str,
    unit: Unit,
    /// May be without a lane: then there is nothing to compare, only further figures.
    rounds: Rounds,
    bar: Bar,
    more: BTreeMap<String, Vec<f64>>,
}

/// An entry that can't be measured here, which is no failure.
#[derive(Debug)]
pub(crate) struct Skipped(pub(crate) String);

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skipped {}

impl Figures {
    pub(crate) fn new(name: &'static str, unit: Unit, rounds: Rounds, bar: Bar) -> Figures {
        Figures {
            name,
            unit,
            rounds,
            bar,
            more: BTreeMap::new(),
        }
    }

    /// Of an entry in which nothing takes turns with anything, and all figures are further ones.
    pub(crate) fn alone(name: &'static str) -> Figures {
        let rounds = Rounds { lanes: Vec::new() };
        Figures::new(name, Unit::Ns, rounds, Bar::None)
    }

    /// Adds a further figure; its unit comes last in its name. Shown is the median over the passes.
    pub(crate) fn more(&mut self, name: impl Into<String>, value: f64) {
        self.more.entry(name.into()).or_default().push(value);
    }

    /// Takes in what another pass gave.
    pub(crate) fn absorb(&mut self, other: Figures) {
        for ((.., mine), (.., theirs)) in self.rounds.lanes.iter_mut().zip(other.rounds.lanes) {
            mine.extend(theirs);
        }
        for (name, samples) in other.more {
            self.more.entry(name).or_default().extend(samples);
        }
    }
}

/// One line of the report. `ns`, `floor_ns` and `peer_ns` are in bytes where the unit says so. What an entry does not have
/// is null.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Entry {
    name: &'static str,
    unit: Unit,
    ns: Option<f64>,
    floor: Option<&'static str>,
    floor_ns: Option<f64>,
    peer: Option<&'static str>,
    peer_ns: Option<f64>,
    /// Medians of the ratios within each round, and the quartiles around them.
    ratio_to_floor: Option<f64>,
    ratio_to_floor_quartiles: Option<[f64; 2]>,
    ratio_to_peer: Option<f64>,
    ratio_to_peer_quartiles: Option<[f64; 2]>,
    rounds: usize,
    bar: Option<String>,
    meets_bar: Option<bool>,
    /// The bar lies between the quartiles: a repetition may well come out on its other side.
    bar_within_noise: bool,
    others: Vec<Other>,
    /// Further figures, each with its unit last in its name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    more: BTreeMap<String, f64>,
}

/// A peer, or another way through metricbus, for orientation.
#[derive(Clone, Debug, Serialize)]
struct Other {
    name: &'static str,
    ns: f64,
    /// metricbus over this one.
    ratio: f64,
}

impl Entry {
    pub(crate) fn of(figures: &Figures) -> Result<Entry, Failure> {
        let Figures {
            name,
            unit,
            rounds,
            bar,
            more,
        } = figures;
        let empty = || format!("{name}: no round was run");
        let lane = |role| match rounds.lane(role) {
            Some((lane, samples)) => match Summary::of(samples) {
                Some(summary) => Ok(Some((lane, samples, summary.median))),
                None => Err(format!("{lane}: no round was run")),
            },
            None => Ok(None),
        };
        let subject = lane(Role::Subject)?;
        let (floor, peer) = (lane(Role::Floor)?, lane(Role::Peer)?);
        let subject_samples: &[f64] = match subject {
            Some((_, samples, _)) => samples,
            None if rounds.lanes.is_empty() => &[],
            None => return Err(format!("{name} has no lane for the subject").into()),
        };
        let against = |samples| Summary::of(&ratios(subject_samples, samples)).ok_or_else(empty);
        let to_floor = floor.map(|(_, samples, _)| against(samples)).transpose()?;
        let to_peer = peer.map(|(_, samples, _)| against(samples)).transpose()?;
        let no_lane = |what: &str| format!("{name} has a bar, and no lane for the {what}");
        let judged = match *bar {
            Bar::Floor(at_most) => Some((at_most, to_floor, &floor, "floor")),
            Bar::Peer(at_most) => Some((at_most, to_peer, &peer, "peer")),
            Bar::None => None,
        };
        let judged = match judged {
            Some((at_most, Some(ratio), Some((of, ..)), _)) => Some((at_most, ratio, of)),
            Some((.., what)) => return Err(no_lane(what).into()),
            None => None,
        };
        let mut others = Vec::new();
        for (role, name, samples) in &rounds.lanes {
            if *role == Role::Other {
                let ns = Summary::of(samples).ok_or_else(empty)?;
                others.push(Other {
                    name,
                    ns: ns.median,
                    ratio: against(samples)?.median,
                });
            }
        }
        let median = |summary: Summary| summary.median;
        let quartiles = |summary: Summary| [summary.q1, summary.q3];
        Ok(Entry {
            name,
            unit: *unit,
            ns: subject.map(|(.., ns)| ns),
            floor: floor.map(|(name, ..)| name),
            floor_ns: floor.map(|(.., ns)| ns),
            peer: peer.map(|(name, ..)| name),
            peer_ns: peer.map(|(.., ns)| ns),
            ratio_to_floor: to_floor.map(median),
            ratio_to_floor_quartiles: to_floor.map(quartiles),
            ratio_to_peer: to_peer.map(median),
            ratio_to_peer_quartiles: to_peer.map(quartiles),
            rounds: subject_samples.len(),
            bar: judged.map(|(at_most, _, of)| format!("≤ {at_most} × {of}")),
            meets_bar: judged.map(|(at_most, ratio, _)| ratio.median <= at_most),
            bar_within_noise: judged.is_some_and(|(at_most, ratio, _)| ratio.straddles(at_most)),
            others,
            more: more
                .iter()
                .filter_map(|(name, samples)| Some((name.clone(), quantile(samples, 0.5)?)))
                .collect(),
        })
    }

    fn verdict(&self) -> String {
        let verdict = match self.meets_bar {
            None => return "no bar".into(),
            Some(true) => "meets the bar",
            Some(false) => "OVER THE BAR",
        };
        if self.bar_within_noise {
            format!("{verdict} (within the noise)")
        } else {
            verdict.into()
        }
    }
}

/// The table.
pub(crate) fn table(entries: &[Entry]) -> String {
    let mut rows = vec![
        [
            "entry",
            "metricbus",
            "floor",
            "× floor",
            "peer",
            "× peer",
            "bar",
            "",
        ]
        .map(String::from),
    ];
    let none = || "–".to_owned();
    for e in entries.iter().filter(|e| e.ns.is_some()) {
        let amount = |ns: Option<f64>| ns.map(|ns| Amount(ns, e.unit).to_string());
        let peer = e.peer.zip(amount(e.peer_ns));
        rows.push([
            e.name.into(),
            amount(e.ns).unwrap_or_else(none),
            amount(e.floor_ns).unwrap_or_else(none),
            ratio(e.ratio_to_floor, e.ratio_to_floor_quartiles).unwrap_or_else(none),
            peer.map_or_else(none, |(name, amount)| format!("{name} {amount}")),
            ratio(e.ratio_to_peer, e.ratio_to_peer_quartiles).unwrap_or_else(none),
            e.bar.clone().unwrap_or_else(none),
            e.verdict(),
        ]);
    }
    let mut text = align(&rows);
    text.push_str("\n× floor, × peer: median of the ratios within each round [quartiles].\n");
    for e in entries {
        if e.others.is_empty() && e.more.is_empty() {
            continue;
        }
        let _ = match e.floor {
            Some(floor) => writeln!(text, "\n{} (floor: {floor}; {} rounds)", e.name, e.rounds),
            None => writeln!(text, "\n{}", e.name),
        };
        for other in &e.others {
            let amount = Amount(other.ns, e.unit).to_string();
            let _ = writeln!(
                text,
                "  {amount:>10}  {}, metricbus takes {:.2} ×",
                other.name, other.ratio
            );
        }
        for (name, value) in &e.more {
            let _ = writeln!(text, "  {:>10}  {name}", significant(*value));
        }
    }
    text
}

/// Writes the JSON, making the folder where there is none.
pub(crate) fn write_json(path: &Path, entries: &[Entry]) -> Result<(), Failure> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)
            .map_err(|error| format!("can't make the folder {}: {error}", folder.display()))?;
    }
    let mut json = serde_json::to_string_pretty(entries)?;
    json.push('\n');
    fs::write(path, json).map_err(|error| format!("can't write {}: {error}", path.display()))?;
    Ok(())
}

/// The machine, in a line; and a warning where others are using it, too.
pub(crate) fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let model = fs::read_to_string("/proc/cpuinfo")
        .ok()
        .and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        })
        .unwrap_or_else(|| format!("{} (model unknown)", std::env::consts::ARCH));
    let mut text = format!(
        "{model}, {cores} cores. Absolute times mean nothing on another machine, or in another run; ratios do.\n"
    );
    if let Some(load) = load()
        && load > 0.5 * cores as f64
    {
        let _ = writeln!(
            text,
            "WARNING: the load is {load:.1} on {cores} cores: others compute here, too. Expect wide quartiles."
        );
    }
    text
}

/// Processes that ran or wanted to, on average over the last minute.
fn load() -> Option<f64> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    text.split_whitespace().next()?.parse().ok()
}

/// An amount with its unit, in three digits or so.
struct Amount(f64, Unit);

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (value, unit) = match (self.1, self.0) {
            (Unit::Bytes, v) => (v, "B"),
            (Unit::Ns, v) if v < 1e3 => (v, "ns"),
            (Unit::Ns, v) if v < 1e6 => (v / 1e3, "µs"),
            (Unit::Ns, v) => (v / 1e6, "ms"),
        };
        f.pad(&format!("{} {unit}", significant(value)))
    }
}

fn significant(value: f64) -> String {
    let decimals = match value.abs() {
        v if v < 10.0 => 2,
        v if v < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}")
}

fn ratio(median: Option<f64>, quartiles: Option<[f64; 2]>) -> Option<String> {
    let (median, [q1, q3]) = median.zip(quartiles)?;
    Some(format!("{median:.2} [{q1:.2}–{q3:.2}]"))
}

fn align<const N: usize>(rows: &[[String; N]]) -> String {
    let mut text = String::new();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = width(column).unwrap_or(0);
            let _ = write!(line, "{cell:<width$}  ");
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds(subject: &[f64]) -> Rounds {
        Rounds {
            lanes: vec![
                (Role::Subject, "metricbus", subject.to_vec()),
                (Role::Floor, "floor", vec![1.0; subject.len()]),
                (Role::Peer, "peer", vec![4.0; subject.len()]),
                (Role::Other, "other", vec![8.0; subject.len()]),
            ],
        }
    }

    fn entry(name: &'static str, subject: &[f64], bar: Bar) -> Result<Entry, Failure> {
        Entry::of(&Figures::new(name, Unit::Ns, rounds(subject), bar))
    }

    #[test]
    fn what_several_passes_gave_counts_as_one() {
        let mut figures = Figures::new("inc", Unit::Ns, rounds(&[1.0]), Bar::None);
        figures.more("share", 0.2);
        let mut second = Figures::new("inc", Unit::Ns, rounds(&[2.0, 9.0]), Bar::None);
        second.more("share", 0.4);
        figures.absorb(second);
        let entry = Entry::of(&figures).unwrap();
        assert_eq!((entry.ns, entry.rounds), (Some(2.0), 3));
        assert!((entry.more["share"] - 0.3).abs() < 1e-9);
    }

    #[test]
    fn an_entry_over_its_bar_says_so() {
        let entry = entry("inc", &[1.3; 3], Bar::Floor(1.2)).unwrap();
        assert_eq!(entry.meets_bar, Some(false));
        assert!(table(&[entry]).contains("OVER THE BAR"));
    }

    #[test]
    fn a_bar_is_judged_by_the_median_and_noise_is_admitted() {
        let entry = entry("inc", &[1.0, 1.1, 1.9], Bar::Floor(1.2)).unwrap();
        assert_eq!(entry.meets_bar, Some(true));
        assert!(table(&[entry]).contains("meets the bar (within the noise)"));
    }

    #[test]
    fn a_bar_can_be_a_share_of_the_peer() {
        let entry = entry("tap", &[2.0; 3], Bar::Peer(0.5)).unwrap();
        assert_eq!(entry.meets_bar, Some(true));
        assert_eq!(entry.bar.as_deref(), Some("≤ 0.5 × peer"));
        assert_eq!(entry.others[0].ratio, 0.25);
    }

    #[test]
    fn the_json_has_the_promised_fields() {
        let entry = entry("inc", &[1.0; 3], Bar::None).unwrap();
        let json = serde_json::to_value([entry]).unwrap();
        for field in ["name", "ns", "floor_ns", "peer", "peer_ns"] {
            assert!(json[0].get(field).is_some(), "{field} is missing");
        }
        assert_eq!(json[0]["meets_bar"], serde_json::Value::Null);
    }

    #[test]
    fn an_entry_without_a_round_is_an_error_rather_than_zero() {
        assert!(entry("inc", &[], Bar::None).is_err());
    }

    #[test]
    fn an_entry_that_compares_nothing_has_its_further_figures_only() {
        let mut figures = Figures::alone("fleet");
        figures.more("synced_ms", 120.0);
        let entry = Entry::of(&figures).unwrap();
        assert_eq!(
            (entry.ns, entry.floor_ns, entry.meets_bar),
            (None, None, None)
        );
        let table = table(&[entry]);
        assert!(table.contains("120  synced_ms"), "{table}");
        assert!(!table.contains("NaN"), "{table}");
    }

    #[test]
    fn a_bar_needs_what_it_is_a_multiple_of() {
        let mut rounds = rounds(&[1.0; 3]);
        rounds.lanes.truncate(2);
        let of = |bar| {
            Entry::of(&Figures::new(
                "inc",
                Unit::Ns,
                Rounds {
                    lanes: rounds.lanes.clone(),
                },
                bar,
            ))
        };
        assert!(of(Bar::Floor(1.0)).unwrap().peer.is_none());
        assert!(of(Bar::Peer(1.0)).is_err());
    }

    #[test]
    fn amounts_are_shown_in_the_unit_that_fits() {
        let shown = |ns| Amount(ns, Unit::Ns).to_string();
        assert_eq!(shown(2.04), "2.04 ns");
        assert_eq!(shown(21_300.0), "21.3 µs");
        assert_eq!(shown(287e6), "287 ms");
        assert_eq!(Amount(490.0, Unit::Bytes).to_string(), "490 B");
    }
}
