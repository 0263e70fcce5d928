//! A child process that can't outlive its test, and one that is talked to by lines.

use std::{
    io::{self, BufRead, BufReader, Write},
    process::{Child, ChildStdin, Command, Stdio},
    thread,
};

use tokio::sync::mpsc;

/// Kills the child by its id and reaps it when dropped, on a panic too.
#[derive(Debug)]
pub struct Running(Child);

impl Running {
    /// Starts the command.
    pub fn start(command: &mut Command) -> io::Result<Running> {
        command.spawn().map(Running)
    }

    /// The child, to take its pipes or look whether it ended.
    pub fn child(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only for a child that has ended and been reaped already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A child that is told lines and answers with lines. Its standard error is the test's.
#[derive(Debug)]
pub struct Conversation {
    // First, so that a child is killed before it sees the end of its standard input, and can't say goodbye.
    running: Running,
    stdin: Option<ChildStdin>,
    lines: mpsc::UnboundedReceiver<String>,
}

impl Conversation {
    /// Starts the command.
    pub fn start(command: &mut Command) -> io::Result<Conversation> {
        let mut running = Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
        let child = running.child();
        let stdin = child.stdin.take();
        let (sender, lines) = mpsc::unbounded_channel();
        if let Some(stdout) = child.stdout.take() {
            // Ends with the child, whose end closes the pipe.
            thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    if sender.send(line).is_err() {
                        break;
                    }
                }
            });
        }
        Ok(Conversation {
            running,
            stdin,
            lines,
        })
    }

    /// Says a line, without waiting for an answer.
    pub fn say(&mut self, line: &str) -> io::Result<()> {
        let Some(stdin) = &mut self.stdin else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        writeln!(stdin, "{line}")
    }

    /// Its next line; `None` when it has ended.
    pub async fn hear(&mut self) -> Option<String> {
        self.lines.recv().await
    }

    /// The process.
    pub fn running(&mut self) -> &mut Running {
        &mut self.running
    }

    /// Ends what it is told, on which it should end, and waits for that.
    pub async fn end(mut self) -> io::Result<std::process::ExitStatus> {
        drop(self.stdin.take());
        // Its last lines; after them it is as good as gone.
        while self.lines.recv().await.is_some() {}
        self.running.child().wait()
    }
}
