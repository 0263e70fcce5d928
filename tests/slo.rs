//! The example of a service level objective, run in short.

/// The example itself, so that what it shows is what is tested.
#[path = "../examples/slo.rs"]
#[allow(dead_code, reason = "its `main` is for `cargo run`")]
mod example;

use clap::Parser;
use example::{Args, Outcome, run};

async fn run_with(options: &[&str]) -> (Outcome, String) {
    let args = Args::try_parse_from([&["slo"], options].concat()).unwrap();
    let mut out = Vec::new();
    let outcome = run(&args, &mut out).await.unwrap();
    (outcome, String::from_utf8(out).unwrap())
}

#[tokio::test]
async fn a_fault_is_told_while_it_lasts_and_its_end_after_it() {
    let (outcome, out) = run_with(&["--seconds", "4", "--long", "1", "--short", "0.3"]).await;
    let (fired, resolved) = (outcome.fired.unwrap(), outcome.resolved.unwrap());
    assert!(outcome.fault_began < fired, "{out}");
    assert!(fired < resolved, "{out}");
    assert!(
        outcome.told[0].starts_with("FIRING ErrorBudgetBurn [page] errors use up"),
        "{out}"
    );
    assert_eq!(
        outcome.told.last().unwrap(),
        "RESOLVED ErrorBudgetBurn",
        "{out}"
    );
    let burnt = outcome.burn.iter().filter_map(|burn| burn.long);
    let most = burnt.fold(0.0, f64::max);
    // Half of the requests fail, of which one in a hundred may.
    assert!((14.4..=75.0).contains(&most), "{most}: {out}");
    for line in [
        "the fault began",
        "the alert was resolved",
        "poll every 15 s",
        "alert |",
    ] {
        assert!(out.contains(line), "no {line:?} in:\n{out}");
    }
}

#[tokio::test]
async fn a_fault_within_the_budget_is_no_alert() {
    let (outcome, out) = run_with(&[
        "--seconds",
        "2",
        "--long",
        "0.5",
        "--errors",
        "0.1",
        "--objective",
        "0.9",
    ])
    .await;
    assert_eq!((outcome.fired, outcome.told.len()), (None, 0), "{out}");
    assert!(out.contains("never"), "{out}");
}

#[test]
fn options_that_mean_nothing_are_refused_with_what_would_be_right() {
    let refused = |option: &str, value: &str| {
        let error = Args::try_parse_from(["slo", option, value]).unwrap_err();
        error.to_string()
    };
    assert!(refused("--errors", "2").contains("from 0 to 1"));
    assert!(refused("--long", "0").contains("0.1"));
    assert!(refused("--rate", "NaN").contains("above 0"));
    assert!(refused("--objective", "1").contains("below 1"));
}
