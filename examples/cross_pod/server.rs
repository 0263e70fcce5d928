//! A nats-server of one's own: found, started on a free port, killed, and started again on the same one.
//!
//! It needs std, tokio (a socket) and tempfile. The benches use it, too.

use std::{
    env, fs,
    io::{self, Read},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio::net::TcpSocket;

/// Where `scripts/setup.sh` puts it, the newest first.
const UNPACKED: [&str; 2] = [
    ".tools/nats-server-newest/bin/nats-server",
    ".tools/nats-server-oldest/usr/sbin/nats-server",
];

/// For starting. It takes some 20 ms, on a busy machine more.
const PATIENCE: Duration = Duration::from_secs(15);

/// What went wrong, for people.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The program: the one that `scripts/setup.sh` put into the checkout, or else the first on the `PATH`.
///
/// # Errors
///
/// When there is neither. The message says how to get one.
pub fn find(checkout: &Path) -> Result<PathBuf, Failure> {
    let path = env::var_os("PATH").unwrap_or_default();
    UNPACKED
        .iter()
        .map(|program| checkout.join(program))
        .chain(env::split_paths(&path).map(|folder| folder.join("nats-server")))
        .find(|program| program.is_file())
        .ok_or_else(|| {
            "there is no nats-server in .tools or on the PATH; to get one: scripts/setup.sh nats"
                .into()
        })
}

/// A server with JetStream; killed when dropped.
pub struct NatsServer {
    program: PathBuf,
    port: u16,
    // Bound and not listening, it keeps the port ours while the server is down: nobody else gets it, nor does a client that
    // tries to connect, which might else be given the very port it calls, and then talk to itself.
    _keeper: TcpSocket,
    // Before the folder: killed first, then its files are removed.
    child: Reaped,
    folder: TempDir,
}

impl NatsServer {
    /// Starts the program. It answers when this returns.
    ///
    /// # Errors
    ///
    /// When it does not, with the last that it logged.
    pub fn start(program: &Path) -> Result<NatsServer, Failure> {
        let keeper = TcpSocket::new_v4()?;
        keeper.bind((Ipv4Addr::LOCALHOST, 0).into())?;
        // Only now, so that the port is nobody's but the server's, which allows reuse as well.
        keeper.set_reuseaddr(true)?;
        let mut server = NatsServer {
            program: program.to_owned(),
            port: keeper.local_addr()?.port(),
            _keeper: keeper,
            child: Reaped(None),
            folder: tempfile::Builder::new()
                .prefix("metricbus-nats-")
                .tempdir()?,
        };
        server.restart()?;
        Ok(server)
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("nats://{}", self.address())
    }

    /// The number of its process, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.child.0.as_ref().map(Child::id)
    }

    /// SIGKILL: nobody is told.
    pub fn kill(&mut self) {
        self.child.end();
    }

    /// Starts it on the same port, with what it had stored. Kills it first, if it runs.
    ///
    /// # Errors
    ///
    /// As [`start`](NatsServer::start).
    pub fn restart(&mut self) -> Result<(), Failure> {
        self.kill();
        let log = self.folder.path().join("log");
        let mut command = Command::new(&self.program);
        command
            .args(["--addr", "127.0.0.1", "--port", &self.port.to_string()])
            .arg("--jetstream")
            .arg("--store_dir")
            .arg(self.folder.path().join("store"))
            .arg("--log")
            .arg(&log)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // Ctrl-C in a terminal goes to the whole group; when it ends is for its owner to say.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let child = command
            .spawn()
            .map_err(|error| format!("{} can't be run: {error}", self.program.display()))?;
        self.child = Reaped(Some(child));
        let begin = Instant::now();
        while !greets(self.address()) {
            let ended = self.child.0.as_mut().map(Child::try_wait);
            if let Some(Ok(Some(status))) = ended {
                return Err(self.failed(&format!("ended with {status}"), &log));
            }
            if begin.elapsed() > PATIENCE {
                return Err(self.failed("does not answer", &log));
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    fn failed(&self, what: &str, log: &Path) -> Failure {
        let log = fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<_> = log.lines().rev().take(5).collect();
        let last = lines.into_iter().rev().collect::<Vec<_>>().join("\n  ");
        format!("{} {what}; it logged:\n  {last}", self.program.display()).into()
    }
}

/// The release of the program, such as `2.15.1`.
///
/// # Errors
///
/// When it can't be run.
pub fn version(program: &Path) -> io::Result<String> {
    let output = Command::new(program).arg("--version").output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    // "nats-server: v2.15.1"
    let version = text
        .split_whitespace()
        .last()
        .unwrap_or("of unknown version");
    Ok(version.trim_start_matches('v').to_owned())
}

/// Killed and waited for when dropped.
struct Reaped(Option<Child>);

impl Reaped {
    fn end(&mut self) {
        if let Some(mut child) = self.0.take() {
            // Both fail only for a child that has ended and been reaped.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Reaped {
    fn drop(&mut self) {
        self.end();
    }
}

/// A server greets whoever connects.
fn greets(server: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect(server) else {
        return false;
    };
    let mut greeting = [0; 4];
    let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
    stream.read_exact(&mut greeting).is_ok() && &greeting == b"INFO"
}
