//! The processes of the story: started, listened to line by line, told commands, and ended by their own ids.

use std::{io, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, Command},
    sync::mpsc::UnboundedSender,
    time::timeout,
};

/// For saying goodbye.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a child did. `who` is the number it was started with.
pub struct Heard {
    pub who: usize,
    pub what: What,
}

pub enum What {
    /// A line of its standard output or error.
    Line(String),
    /// It has closed its standard output: it has ended, or is about to.
    End,
}

/// A running child; killed when dropped.
pub struct Talker {
    child: Child,
    // Closed, it tells the child to end. A conductor that dies closes it, too.
    stdin: Option<ChildStdin>,
}

impl Talker {
    /// Starts this very program with these arguments.
    pub fn start(who: usize, args: &[&str], heard: &UnboundedSender<Heard>) -> io::Result<Talker> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        // Ctrl-C in a terminal goes to the whole group; the conductor tells its children itself.
        #[cfg(unix)]
        command.process_group(0);
        let mut child = command.spawn()?;
        if let Some(stderr) = child.stderr.take() {
            tokio::spawn(listen(who, stderr, heard.clone(), false));
        }
        if let Some(stdout) = child.stdout.take() {
            tokio::spawn(listen(who, stdout, heard.clone(), true));
        }
        let stdin = child.stdin.take();
        Ok(Talker { child, stdin })
    }

    /// Types a command.
    pub async fn tell(&mut self, command: &str) -> io::Result<()> {
        match &mut self.stdin {
            Some(stdin) => stdin.write_all(format!("{command}\n").as_bytes()).await,
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// SIGKILL: it can't tell anybody.
    pub async fn kill(&mut self) -> io::Result<()> {
        self.child.kill().await
    }

    /// Tells it to end, and kills it if it does not.
    pub async fn end(&mut self) {
        drop(self.stdin.take());
        if timeout(PATIENCE, self.child.wait()).await.is_err() {
            // Fails only for a child that has ended.
            let _ = self.child.kill().await;
        }
    }
}

async fn listen(
    who: usize,
    pipe: impl AsyncRead + Unpin,
    heard: UnboundedSender<Heard>,
    tells_end: bool,
) {
    let mut lines = BufReader::new(pipe).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let what = What::Line(line);
        if heard.send(Heard { who, what }).is_err() {
            return;
        }
    }
    if tells_end {
        let _ = heard.send(Heard {
            who,
            what: What::End,
        });
    }
}
