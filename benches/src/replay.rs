//! `replay`: rules over a recording.
//!
//! - Subject: `Replay` of 50 000 mutations of 8 gauges, one every millisecond, with a rule for each series: above 0.9 for
//!   50 ms. Values go to and fro slowly, so that about one mutation in a hundred crosses a bound. To make the bus and to
//!   add the rule are part of it.
//! - Floor: a loop over the same entries that only decodes: `Recording::entries`.
//! - Peer: the floor, and what one would write by hand: the rule's state in a map, looked up by the series' name.
//! - Also shown: a replay of values that can't be predicted, of which one in five crosses a bound.

use std::{
    collections::HashMap,
    fmt::Write as _,
    hint::black_box,
    time::{Duration, Instant},
};

use metricbus::{
    Change, Condition, Rule, Threshold, Time,
    backtest::{CsvColumns, Entry, Recording, Replay},
};

use crate::{
    Failure,
    harness::{Effort, Lane, Role, Values, interleave},
    report::{Bar, Figures, Unit},
    stats::quantile,
};

const MUTATIONS: u64 = 50_000;
const RAISE: f64 = 0.9;
const CLEAR: f64 = 0.8;
const HOLD: Duration = Duration::from_millis(50);

fn recording(value: impl Fn(u64) -> f64) -> Result<Recording, Failure> {
    let mut csv = "time,series,value\n".to_owned();
    for i in 0..MUTATIONS {
        let (worker, value) = (i % 8, value(i));
        writeln!(
            csv,
            "{}.{:03},kv{{worker='{worker}'}},{value}",
            i / 1_000,
            i % 1_000
        )?;
    }
    let columns = CsvColumns::long("time", "series", "value");
    Ok(Recording::from_csv_text(&csv, columns)?)
}

/// Does it as often as it takes for `n` mutations, and says how long that many take.
fn times(n: u64, mut once: impl FnMut() -> Result<(), Failure>) -> Result<Duration, Failure> {
    let rounds = n.div_ceil(MUTATIONS).max(1);
    let start = Instant::now();
    for _ in 0..rounds {
        once()?;
    }
    let per_mutation = start.elapsed().as_secs_f64() / (rounds * MUTATIONS) as f64;
    Ok(Duration::from_secs_f64(per_mutation * n as f64))
}

fn replay(recording: &Recording) -> Result<(), Failure> {
    let full = Condition::when("kv", Threshold::above(RAISE).clear_below(CLEAR));
    let report = Replay::new(recording.clone())
        .rule(Rule::new("Full", full).hold_for(HOLD))
        .run(|_| {})?;
    if report.mutations != MUTATIONS {
        return Err(format!("{} mutations of {MUTATIONS}", report.mutations).into());
    }
    Ok(())
}

fn decode(recording: &Recording) -> Result<(), Failure> {
    for entry in recording.entries()? {
        black_box(entry?);
    }
    Ok(())
}

/// Since when a series is above the bound, and whether that was told.
type State = Option<(Time, bool)>;

fn by_hand(recording: &Recording) -> Result<(), Failure> {
    let mut states: HashMap<String, State> = HashMap::new();
    let mut fired = 0;
    for entry in recording.entries()? {
        let Entry::Mutation { at, series, change } = entry? else {
            continue;
        };
        let Change::Set { after, .. } = change else {
            continue;
        };
        let state = states.entry(series.to_string()).or_default();
        match state {
            None if after > RAISE => *state = Some((at, false)),
            Some(_) if after < CLEAR => *state = None,
            Some((since, told)) if !*told && at.since(*since) >= HOLD => {
                *told = true;
                fired += 1;
            }
            _ => {}
        }
    }
    black_box(fired);
    Ok(())
}

pub(crate) fn threshold(effort: Effort) -> Result<Figures, Failure> {
    let slow = &recording(|i| 0.5 + 0.5 * (i as f64 / 600.0 + (i % 8) as f64).sin())?;
    let values = Values::unit();
    let wild = &recording(|i| values.get(i as usize))?;
    let lanes = &mut [
        Lane::new(Role::Subject, "metricbus", |n| times(n, || replay(slow))),
        Lane::new(Role::Floor, "decoding alone", |n| times(n, || decode(slow))),
        Lane::new(Role::Peer, "by hand", |n| times(n, || by_hand(slow))),
        Lane::new(Role::Other, "crossing all the time", |n| {
            times(n, || replay(wild))
        }),
    ];
    let rounds = interleave(effort.fast(), lanes)?;
    let of = |role| {
        let (_, samples) = rounds.lane(role)?;
        quantile(samples, 0.5)
    };
    let rates = [
        ("replayed_per_second", of(Role::Subject)),
        ("decoded_per_second", of(Role::Floor)),
    ];
    let mut figures = Figures::new("replay", Unit::Ns, rounds, Bar::None);
    for (name, ns) in rates {
        if let Some(ns) = ns {
            figures.more(name, 1e9 / ns);
        }
    }
    Ok(figures)
}
