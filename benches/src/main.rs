//! metricbus, its floors and its peers, side by side in one run.
//!
//! Each entry has a file that says what is measured and how: [`counters`], [`gauge`], [`histogram`], [`tap`],
//! [`window`], [`forward`], [`replay`], [`backends`], [`capi`], [`otlp`],
//! [`rules`], [`crossing`], [`nats`], [`encode`], [`memory`]. They share the [`harness`], which lets contenders take turns,
//! and the
//! [`report`]. [`naive`] is the obvious design as a peer.
//!
//! ```text
//! cargo run --release -p metricbus-bench -- --help
//! ```

mod backends;
mod capi;
mod counters;
mod crossing;
mod encode;
mod forward;
mod gauge;
mod harness;
mod histogram;
mod labels;
mod memory;
mod naive;
mod nats;
mod otlp;
mod replay;
mod report;
mod rules;
mod stats;
mod tap;
mod window;

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;

use crate::{
    harness::Effort,
    report::{Entry, Figures, Skipped},
};

/// What keeps an entry from being measured.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// An entry's name, what it measures, and how.
type Measure = (
    &'static str,
    &'static str,
    fn(Effort) -> Result<Figures, Failure>,
);

const ENTRIES: &[Measure] = &[
    (
        "counter_inc",
        "Counter::inc, nobody subscribed",
        counters::inc,
    ),
    (
        "counter_inc_armed",
        "the same with a threshold that is never crossed",
        counters::inc_armed,
    ),
    ("gauge_set", "Gauge::set, nobody subscribed", gauge::set),
    (
        "gauge_set_armed",
        "the same with a threshold that is never crossed",
        gauge::set_armed,
    ),
    (
        "counter_inc_2_threads_same",
        "Counter::inc of one counter by two threads",
        counters::inc_2_threads_same,
    ),
    (
        "forward_inc",
        "Counter::inc of a counter that is forwarded, between two frames",
        forward::inc,
    ),
    (
        "backend_null",
        "Counter::inc in a container whose metrics go nowhere",
        backends::null,
    ),
    (
        "backend_prometheus",
        "the same in one that is scraped",
        backends::prometheus,
    ),
    (
        "backend_otlp",
        "the same in one that is exported by OTLP",
        backends::otlp,
    ),
    (
        "backend_libnv",
        "the same in one that tells a C library each time",
        backends::libnv,
    ),
    ("c_api_inc", "mb_counter_inc, called from C", capi::inc),
    (
        "tap_one_subscriber",
        "Gauge::set with a live subscriber to every set",
        tap::one_subscriber,
    ),
    (
        "histogram_observe",
        "Histogram::observe with 11 buckets",
        histogram::observe,
    ),
    (
        "window_observe_gauge",
        "Gauge::set with a window of 10 s open",
        window::observe_gauge,
    ),
    (
        "window_observe_histogram",
        "Histogram::observe with a window of 10 s open",
        window::observe_histogram,
    ),
    (
        "window_inc_counter",
        "Counter::inc with a window of 10 s open",
        window::inc_counter,
    ),
    (
        "window_query",
        "stats() of a gauge's window with 100 full slots",
        window::query,
    ),
    (
        "quantile_query",
        "p99 of a histogram's window with 100 full slots",
        window::quantile_query,
    ),
    (
        "replay",
        "a mutation of a recording, replayed with a threshold rule",
        replay::threshold,
    ),
    (
        "rule_evaluation_quiet",
        "Gauge::set under a threshold rule that stays quiet",
        rules::quiet,
    ),
    (
        "rule_evaluation_ten",
        "the same under ten rules",
        rules::ten,
    ),
    (
        "rule_evaluation_stale",
        "Counter::inc under a rule about silence",
        rules::stale,
    ),
    (
        "rule_evaluation_crossed",
        "Gauge::set that makes a rule fire or resolves it, each time",
        rules::crossed,
    ),
    (
        "rule_evaluation_held",
        "Gauge::set that makes a rule pending or inactive, each time",
        rules::held,
    ),
    (
        "rule_evaluation_ratio",
        "Gauge::set under a rule about a ratio of two gauges",
        rules::ratio,
    ),
    (
        "rule_evaluation_sum",
        "Gauge::set under a rule about the sum of 1 000",
        rules::sum,
    ),
    (
        "rules_10k",
        "Gauge::set among 10 000 rules, and what those take",
        rules::ten_thousand,
    ),
    (
        "crossing_to_callback",
        "from the mutation to its callback",
        crossing::to_callback,
    ),
    (
        "nats_crossing_to_remote_callback",
        "from the mutation to a callback in another process",
        nats::crossing::to_remote_callback,
    ),
    (
        "nats_fleet_1000",
        "1 000 pods of 50 series: one server, one fleet",
        nats::fleet::thousand,
    ),
    (
        "encode_100k_counters",
        "the text of 100 000 counters",
        encode::counters,
    ),
    (
        "encode_10k_histograms",
        "the text of 10 000 histograms",
        encode::histograms,
    ),
    (
        "otlp_export_100k",
        "100 000 counters to an OTLP receiver",
        otlp::export,
    ),
    (
        "bytes_per_counter_series",
        "memory per counter with 3 labels",
        memory::per_counter_series,
    ),
];

/// Measures metricbus beside its floors and its peers, and says which bars are met.
///
/// The *floor* of an entry is the least that any implementation has to do (a bare atomic, a bare wake, text rendered
/// before). *Peers* are other metrics libraries, and the naive bus: what one writes who has never measured it. All of
/// them take turns in short rounds within this one process. Read the ratios: absolute times are those of this machine,
/// now. A ratio is the median of the ratios within each round, with the quartiles beside it; wide quartiles mean that
/// somebody else is using the machine.
///
/// A bar that is missed is said in the table, and is no failure: the exit code stays 0.
#[derive(Parser)]
#[command(name = "side-by-side", after_long_help = examples())]
struct Arguments {
    /// Few and short rounds: checks that everything works, in seconds. Its figures are not to be quoted.
    #[arg(long)]
    quick: bool,

    /// Only entries whose name contains NAME. Can be given more than once.
    #[arg(long, value_name = "NAME")]
    filter: Vec<String>,

    /// Where to write the report as JSON: a list of objects with name, ns, floor_ns, peer, peer_ns and more.
    #[arg(long, value_name = "FILE", default_value = "target/bench-report.json")]
    out: PathBuf,

    /// Be a part of nats_fleet_1000, as another process.
    #[arg(long, hide = true, num_args = 1.., value_name = "PART")]
    nats_part: Vec<String>,
}

fn entries() -> String {
    ENTRIES
        .iter()
        .map(|(name, what, _)| format!("  {name:<34}{what}\n"))
        .collect()
}

fn examples() -> String {
    format!(
        "Entries:\n{}\n\
         Examples:\n  \
         cargo run --release -p metricbus-bench\n  \
         cargo run --release -p metricbus-bench -- --filter counter --filter gauge\n  \
         cargo run --release -p metricbus-bench -- --quick --out target/quick.json",
        entries()
    )
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match &arguments.nats_part[..] {
        [] => run(&arguments),
        part => nats::fleet::part(part),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("side-by-side: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let effort = Effort {
        quick: arguments.quick,
    };
    let wanted = |name: &str| {
        arguments.filter.is_empty() || arguments.filter.iter().any(|f| name.contains(f.as_str()))
    };
    let chosen: Vec<_> = ENTRIES.iter().filter(|(name, ..)| wanted(name)).collect();
    if chosen.is_empty() {
        let filter = arguments.filter.join(", ");
        return Err(format!(
            "no entry's name contains {filter}; there are:\n{}",
            entries()
        )
        .into());
    }
    if cfg!(debug_assertions) {
        eprintln!("WARNING: built without --release; the figures mean nothing.");
    }
    let machine = report::machine();
    eprint!("{machine}");
    let mut all: Vec<Option<Figures>> = chosen.iter().map(|_| None).collect();
    let mut skipped: Vec<String> = Vec::new();
    for pass in 1..=effort.passes() {
        for (i, (name, what, measure)) in chosen.iter().enumerate() {
            eprintln!(
                "pass {pass}/{}, {}/{}: {name}: {what}",
                effort.passes(),
                i + 1,
                chosen.len()
            );
            let figures = match measure(effort) {
                Ok(figures) => figures,
                Err(error) if error.is::<Skipped>() => {
                    let line = format!("{name} is skipped: {error}");
                    eprintln!("{line}");
                    if pass == 1 {
                        skipped.push(line);
                    }
                    continue;
                }
                Err(error) => return Err(format!("{name}: {error}").into()),
            };
            match all.get_mut(i) {
                Some(Some(before)) => before.absorb(figures),
                Some(none) => *none = Some(figures),
                None => {}
            }
        }
    }
    let report = all
        .iter()
        .flatten()
        .map(Entry::of)
        .collect::<Result<Vec<_>, _>>()?;
    report::write_json(&arguments.out, &report)?;
    println!("{machine}");
    if effort.quick {
        println!("A quick run: not to be quoted.\n");
    }
    print!("{}", report::table(&report));
    for line in skipped {
        println!("\n{line}");
    }
    eprintln!("written to {}", arguments.out.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_long_help_names_every_entry() {
        let help = Arguments::command().render_long_help().to_string();
        for (name, ..) in ENTRIES {
            assert!(help.contains(name), "{name} is not in the help");
        }
    }

    #[test]
    fn a_filter_that_matches_nothing_is_an_error_that_lists_what_there_is() {
        let arguments = Arguments::parse_from(["side-by-side", "--filter", "nonsense"]);
        let error = run(&arguments).unwrap_err().to_string();
        assert!(error.contains("counter_inc"), "{error}");
    }
}
