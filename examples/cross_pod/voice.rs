//! How a program speaks to the person at its terminal, and to the conductor; and how it is spoken to.
//!
//! To a person it writes lines. Where it was started by the conductor it writes *facts* beside them, as JSON behind a mark:
//! the conductor compares those, and shows the rest. Commands are the same lines for both.

use std::io::{self, Write};

use metricbus::Alert;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines, Stdin},
    sync::mpsc,
};

/// Begins a line that is a fact.
const MARK: &str = "\u{1}";

/// Something that was made or seen, as the conductor compares it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Fact {
    /// It does its work from now on.
    Ready,
    /// An alert of a worker: at the worker that made it, or at whoever heard it.
    Alert(Transition),
    /// How long the planner's callback came after a worker's crossing, in milliseconds.
    Delay(f64),
    /// The planner's own rule over all workers.
    Fleet {
        firing: bool,
        /// From the worker's crossing to the planner's callback, in milliseconds.
        after: Option<f64>,
    },
    /// The planner knows a worker …
    Born(String),
    /// … and that it is no more.
    Gone(String),
    /// The answer to a question over all workers.
    Window {
        p99: Option<f64>,
        answered: usize,
        /// Whether that is all of them.
        complete: bool,
    },
    /// A rule that was sent is in force at so many workers.
    RuleInForce(usize),
}

/// One transition of a worker's rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Transition {
    pub instance: String,
    pub rule: String,
    /// Per worker and rule, 1 more each time.
    pub epoch: u64,
    pub firing: bool,
}

/// An alert in a line.
pub fn transition(alert: &Alert) -> String {
    let value = alert.value.unwrap_or(f64::NAN);
    format!("{} {} at {value:.3}", alert.rule, alert.state)
}

/// Where lines and facts go. Cheap to clone.
#[derive(Clone, Copy, Debug)]
pub struct Voice {
    conducted: bool,
}

impl Voice {
    pub fn new(conducted: bool) -> Voice {
        Voice { conducted }
    }

    /// A line for a person.
    pub fn say(&self, text: impl AsRef<str>) {
        write_line(text.as_ref());
    }

    /// A fact for the conductor.
    pub fn note(&self, fact: Fact) {
        if self.conducted
            && let Ok(json) = serde_json::to_string(&fact)
        {
            write_line(&format!("{MARK}{json}"));
        }
    }

    /// The commands, until the program is to end: at Ctrl-C, or when the conductor ends.
    pub fn commands(&self) -> Commands {
        let (sender, commands) = mpsc::channel(16);
        tokio::spawn(read(
            BufReader::new(tokio::io::stdin()).lines(),
            self.conducted,
            sender,
        ));
        Commands(commands)
    }
}

/// The fact of a line, or the line, if it is for a person.
pub fn heard(line: String) -> Result<Fact, String> {
    let fact = line.strip_prefix(MARK).map(serde_json::from_str);
    match fact {
        Some(Ok(fact)) => Ok(fact),
        _ => Err(line),
    }
}

/// Lines from whoever controls the program.
pub struct Commands(mpsc::Receiver<String>);

impl Commands {
    /// The next one; `None` when the program is to end.
    pub async fn next(&mut self) -> Option<String> {
        tokio::select! {
            command = self.0.recv() => command,
            // Where no signal can be waited for, it simply ends the program.
            Ok(()) = tokio::signal::ctrl_c() => None,
        }
    }
}

async fn read(mut lines: Lines<BufReader<Stdin>>, conducted: bool, sender: mpsc::Sender<String>) {
    while let Ok(Some(line)) = lines.next_line().await {
        let line = line.trim();
        if line == "quit" {
            return;
        }
        if !line.is_empty() && sender.send(line.to_owned()).await.is_err() {
            return;
        }
    }
    // By hand it may run in the background, without a terminal: then it goes on until a signal ends it.
    if !conducted {
        sender.closed().await;
    }
}

/// In one piece, also when several threads write. Nobody who reads is no reason to stop.
fn write_line(text: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fact_is_told_from_what_is_for_people() {
        let fact = Fact::Born("decode-0".into());
        let line = format!("{MARK}{}", serde_json::to_string(&fact).unwrap());
        assert_eq!(heard(line), Ok(fact));
        for line in ["", "{}", "Born", "\u{1}nonsense"] {
            assert_eq!(heard(line.into()), Err(line.into()));
        }
    }
}
