//! The command line, and what to say when it is wrong.

use std::{path::PathBuf, str::FromStr, time::Duration};

use clap::Parser;

/// How long a run takes unless told otherwise.
const RUN: Duration = Duration::from_secs(25);

// Lines are broken by hand: clap breaks them only with a feature that nothing else here needs.

/// A small fleet of LLM workers in one process, and a planner that reacts to its metrics.
///
/// The same requests go through five fleets side by side: one of a fixed size, one whose planner
/// hears of a full worker by callback, and three whose planners poll every 1, 5 and 15 s. What
/// fires on the fleet with callbacks is shown as it happens; at the end, two tables tell how soon
/// each way of hearing sees an overload, and what that does for the requests.
#[derive(Debug, Parser)]
#[command(
    name = "planner",
    verbatim_doc_comment,
    after_help = "\
Examples:
  planner --trace azure_llm_inference_conv_2023.csv    an hour of requests, recorded by Azure
  planner                                              bursts made up here, for 20 minutes
  planner --speed max                                  no waiting: the tables at once
  planner --speed 20 --port 9464                       slower, to watch /metrics meanwhile

The tables depend on the trace and the seed only, not on --speed or the machine; but for the times
of callbacks, which are real ones. With cargo, options go after --:
  cargo run --release --example planner --features http -- --speed max"
)]
pub struct Cli {
    /// Requests to serve: CSV with the columns TIMESTAMP, ContextTokens and GeneratedTokens, as
    /// 2023-11-16 18:15:46.6805900,374,44. Without it, bursts are made up
    #[arg(long, value_name = "FILE", verbatim_doc_comment)]
    pub trace: Option<PathBuf>,

    /// Trace time against real time: a number such as 100, or `max` for no waiting. Unless given,
    /// what makes the run take about 25 s
    #[arg(long, value_name = "TIMES", verbatim_doc_comment)]
    pub speed: Option<Speed>,

    /// Port of /metrics on 127.0.0.1. If it is taken, or 0, any that is free
    #[arg(long, default_value_t = 9464)]
    pub port: u16,

    /// Where the bursts and the routers' choices start from; another seed is another run
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// How fast trace time goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Speed {
    Times(f64),
    Max,
}

impl FromStr for Speed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "max" {
            return Ok(Speed::Max);
        }
        match text.trim_end_matches('x').parse::<f64>() {
            Ok(times) if times.is_finite() && times >= 0.01 => Ok(Speed::Times(times)),
            _ => Err("it should be a number of at least 0.01, such as 100, or `max`".into()),
        }
    }
}

impl Speed {
    /// What makes a trace of this length take [`RUN`], but not slower than it was.
    pub fn for_length(length: Duration) -> Speed {
        Speed::Times((length.as_secs_f64() / RUN.as_secs_f64()).max(1.0))
    }

    /// The real time at which trace time should be `at`.
    pub fn real(self, at: Duration) -> Duration {
        match self {
            Speed::Times(times) => at.div_f64(times),
            Speed::Max => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn speed(text: &str) -> Result<Speed, String> {
        text.parse()
    }

    #[test]
    fn a_speed_is_a_number_or_max() {
        assert_eq!(speed("100"), Ok(Speed::Times(100.0)));
        assert_eq!(speed("2.5x"), Ok(Speed::Times(2.5)));
        assert_eq!(speed("max"), Ok(Speed::Max));
        for bad in ["", "fast", "0", "-1", "nan", "inf", "1e-9"] {
            assert!(
                speed(bad).is_err_and(|e| e.contains("such as 100")),
                "{bad}"
            );
        }
    }

    #[test]
    fn without_a_speed_a_long_trace_is_sped_up_and_a_short_one_is_not_slowed_down() {
        assert_eq!(
            Speed::for_length(Duration::from_secs(2500)),
            Speed::Times(100.0)
        );
        assert_eq!(Speed::for_length(Duration::from_secs(5)), Speed::Times(1.0));
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
