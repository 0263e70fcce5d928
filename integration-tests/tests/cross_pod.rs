//! The example `cross_pod`: its story is told to the end, and whatever ends it sooner, nothing that it started is left.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Output, Stdio},
};

use metricbus_integration_tests::{
    nats::{Config, NatsServer, Outcome, Release},
    on_each_server, parts,
    process::Running,
};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

fn example() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cross-pod"));
    command.stdin(Stdio::null());
    command
}

fn text(output: &Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    format!("{}\n{}", text(&output.stdout), text(&output.stderr))
}

async fn the_story_is_told_to_its_end(release: Release) -> Outcome {
    let Some(program) = parts::nats_server(release) else {
        return Ok(());
    };
    let output = example().arg("--server").arg(program).output()?;
    let text = text(&output);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("Seen, all of it"), "{text}");
    assert!(!text.contains("NOT SEEN"), "{text}");
    assert!(text.contains(" ms after the crossing"), "{text}");
    assert!(!text.contains("NaN"), "{text}");
    Ok(())
}

async fn on_a_server_of_somebody_elses_it_leaves_that_alone(release: Release) -> Outcome {
    let server = NatsServer::with(release, Config::jetstream());
    let output = example().args(["--url", &server.url()]).output()?;
    let text = text(&output);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("The server is not killed"), "{text}");
    Ok(())
}

on_each_server!(
    the_story_is_told_to_its_end,
    on_a_server_of_somebody_elses_it_leaves_that_alone,
);

/// Interrupted in the middle of the story, as by Ctrl-C or by whoever stops services.
fn interrupted_by(signal: Signal) -> Outcome {
    let Some(program) = parts::nats_server(Release::Newest) else {
        return Ok(());
    };
    let mut running = Running::start(
        example()
            .arg("--server")
            .arg(program)
            .stdout(Stdio::piped()),
    )?;
    let stdout = running.child().stdout.take().ok_or("no output")?;
    let mut server = None;
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        // "nats-server 2.15.1 … is up on nats://… (process 123)"
        if let Some((_, number)) = line.split_once("(process ") {
            server = number
                .trim_end_matches(')')
                .parse()
                .ok()
                .and_then(Pid::from_raw);
        }
        if line.contains("is there") {
            kill_process(Pid::from_child(running.child()), signal)?;
        }
    }
    // Its output has ended, and with it everybody who wrote to it.
    assert_eq!(running.child().wait()?.code(), Some(130));
    let server = server.ok_or("no server was started")?;
    assert!(
        test_kill_process(server).is_err(),
        "the server is still there"
    );
    Ok(())
}

#[test]
fn after_ctrl_c_nothing_is_left() -> Outcome {
    interrupted_by(Signal::INT)
}

#[test]
fn asked_to_terminate_it_leaves_nothing() -> Outcome {
    interrupted_by(Signal::TERM)
}

#[test]
fn a_planner_that_is_asked_before_it_knows_anybody_goes_on() -> Outcome {
    let mut planner = example();
    // Nobody listens there.
    planner
        .args(["planner", "--url", "nats://127.0.0.1:1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut planner = planner.spawn()?;
    let mut stdin = planner.stdin.take().ok_or("no input")?;
    stdin.write_all(b"pods\nquit\n")?;
    let output = planner.wait_with_output()?;
    let text = text(&output);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("pods: as soon as"), "{text}");
    Ok(())
}

#[test]
fn without_a_server_it_says_how_to_get_one() -> Outcome {
    let output = example().env("PATH", Path::new("/nowhere")).output()?;
    let text = text(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for right in ["scripts/setup.sh nats", "--url"] {
        assert!(text.contains(right), "{text}");
    }
    Ok(())
}
