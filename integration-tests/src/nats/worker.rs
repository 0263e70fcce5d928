//! A pod in a process of its own: the program `nats-worker`, which can be killed, frozen and told what to measure.

use std::{path::Path, process::Command, time::Duration};

use metricbus::SourceId;
use rustix::process::{Pid, Signal, kill_process};

use super::pod::HEARTBEAT;
use crate::process::Conversation;

/// A pod as a process; killed when dropped.
#[derive(Debug)]
pub struct Worker {
    conversation: Conversation,
}

/// What it is told when it starts.
#[derive(Debug, Clone)]
pub struct WorkerOptions {
    program: String,
    url: String,
    source: SourceId,
    heartbeat: Duration,
}

impl WorkerOptions {
    /// `program` is `env!("CARGO_BIN_EXE_nats-worker")`, which only tests have.
    pub fn new(program: &str, url: &str, source: SourceId) -> WorkerOptions {
        WorkerOptions {
            program: program.to_owned(),
            url: url.to_owned(),
            source,
            heartbeat: HEARTBEAT,
        }
    }

    /// How often it says that it lives.
    pub fn heartbeat(mut self, heartbeat: Duration) -> WorkerOptions {
        self.heartbeat = heartbeat;
        self
    }

    /// Starts it; it forwards when this returns, connected or not.
    pub async fn start(&self) -> Worker {
        let mut command = Command::new(Path::new(&self.program));
        command
            .arg(&self.url)
            .arg(&self.source.namespace)
            .arg(&self.source.component)
            .arg(&self.source.instance)
            .arg(self.heartbeat.as_millis().to_string());
        let conversation = Conversation::start(&mut command)
            .unwrap_or_else(|why| panic!("{} did not start: {why}", self.program));
        let mut worker = Worker { conversation };
        assert_eq!(worker.conversation.hear().await.as_deref(), Some("ready"));
        worker
    }
}

impl Worker {
    /// Tells it something, and waits until it has done that.
    pub async fn tell(&mut self, line: &str) {
        self.conversation
            .say(line)
            .unwrap_or_else(|why| panic!("{line}: {why}"));
        let answer = self.conversation.hear().await;
        assert_eq!(answer.as_deref(), Some("ok"), "{line}");
    }

    /// SIGKILL: nobody is told.
    pub fn kill(self) {}

    /// SIGSTOP: its connection stays open, and it says nothing.
    pub fn freeze(&mut self) {
        self.signal(Signal::STOP);
    }

    /// SIGCONT, after [`freeze`](Worker::freeze).
    pub fn thaw(&mut self) {
        self.signal(Signal::CONT);
    }

    fn signal(&mut self, signal: Signal) {
        // The id of a child that was not reaped can't belong to anybody else.
        let pid = Pid::from_child(self.conversation.running().child());
        kill_process(pid, signal).unwrap_or_else(|why| panic!("{signal:?}: {why}"));
    }
}
