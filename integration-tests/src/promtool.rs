//! `promtool check metrics`: Prometheus's own judgement of an exposition.

use std::{
    collections::BTreeMap,
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
    thread,
};

use crate::parts;

/// What promtool said.
#[derive(Debug)]
pub struct Verdict {
    /// Whether its exit code was 0.
    pub clean: bool,
    /// All it printed.
    pub output: String,
}

impl Verdict {
    fn of(output: &Output) -> Verdict {
        Verdict {
            clean: output.status.success(),
            output: format!(
                "{}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            ),
        }
    }

    /// The complaints by metric.
    pub fn complaints(&self) -> BTreeMap<&str, Vec<&str>> {
        let mut complaints: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for line in self.output.lines() {
            if let Some((metric, text)) = line.split_once(' ') {
                complaints.entry(metric).or_default().push(text);
            }
        }
        complaints
    }
}

/// Checks a text in the format 0.0.4, the only one it reads. `None` if there is no promtool here.
pub fn check_metrics(exposition: &str) -> Option<Verdict> {
    let program = parts::prometheus_program("promtool")?;
    Some(check_metrics_with(&program, exposition))
}

/// As [`check_metrics`], by the promtool that this program is.
pub fn check_metrics_with(program: &Path, exposition: &str) -> Verdict {
    let mut promtool = Command::new(program)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|why| panic!("promtool did not start: {why}"));
    let mut stdin = promtool.stdin.take();
    let output = thread::scope(|scope| {
        // Beside the reading, so that neither side waits for the other with a full pipe.
        scope.spawn(move || {
            if let Some(stdin) = &mut stdin {
                // It stops reading at a fault, and then says so in its output.
                let _ = stdin.write_all(exposition.as_bytes());
            }
        });
        promtool.wait_with_output()
    })
    .unwrap_or_else(|why| panic!("promtool: {why}"));
    Verdict::of(&output)
}

/// Checks a file of alerting rules. `None` if there is no promtool here.
pub fn check_rules(file: &Path) -> Option<Verdict> {
    let program = parts::prometheus_program("promtool")?;
    let output = Command::new(program)
        .args(["check", "rules"])
        .arg(file)
        .output()
        .unwrap_or_else(|why| panic!("promtool did not start: {why}"));
    Some(Verdict::of(&output))
}
