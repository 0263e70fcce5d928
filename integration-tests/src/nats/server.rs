//! A running nats-server, and the ways in which it can fail.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpSocket;

use super::{Config, DEADLINE, Release};
use crate::{http, parts, process::Running};

/// How often a starting server is asked whether it answers. It has no way to tell us.
const POLL: Duration = Duration::from_millis(2);

/// A server on a port of its own, which stays its own while it is down; killed when dropped, frozen or not.
#[derive(Debug)]
pub struct NatsServer {
    release: Release,
    config: Config,
    port: Port,
    monitoring: Port,
    log: Arc<Mutex<String>>,
    // Before the folder: the server is killed first, and then its files are removed.
    running: Option<Running>,
    folder: TempDir,
}

impl NatsServer {
    /// A core server that everybody may do everything with.
    pub fn start(release: Release) -> NatsServer {
        NatsServer::with(release, Config::core())
    }

    /// A server with JetStream.
    pub fn jetstream(release: Release) -> NatsServer {
        NatsServer::with(release, Config::jetstream())
    }

    /// A server that was told this; it answers when this returns.
    pub fn with(release: Release, config: Config) -> NatsServer {
        let mut server = NatsServer {
            release,
            config,
            port: Port::reserve(),
            monitoring: Port::reserve(),
            log: Arc::default(),
            running: None,
            folder: tempfile::tempdir().unwrap_or_else(|why| panic!("no folder: {why}")),
        };
        server.run();
        server
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// The same as a URL.
    pub fn url(&self) -> String {
        format!("nats://{}", self.address())
    }

    /// A client of the test's own, without any rights.
    pub async fn client(&self) -> async_nats::Client {
        async_nats::connect(self.url())
            .await
            .unwrap_or_else(|why| panic!("no client: {why}\n{}", self.log()))
    }

    /// SIGKILL: nobody is told, and what was not yet written is lost.
    pub fn kill(&mut self) {
        self.running = None;
    }

    /// SIGTERM, as an operator does it; waits for its end. A frozen one thaws for it.
    pub fn stop(&mut self) {
        if let Some(mut running) = self.running.take() {
            let _ = kill_process(pid(&mut running), Signal::TERM);
            let _ = kill_process(pid(&mut running), Signal::CONT);
            let _ = running.child().wait();
        }
    }

    /// Starts it again on the same port, with what its store kept. Kills it first if it runs.
    pub fn restart(&mut self) {
        self.kill();
        self.run();
    }

    /// Starts it again on the same port with an empty store.
    pub fn restart_without_store(&mut self) {
        self.kill();
        let _ = fs::remove_dir_all(self.folder.path().join("store"));
        self.run();
    }

    /// Stops it as an operator does, and copies its store.
    pub fn back_up(&mut self) -> TempDir {
        self.stop();
        let backup = tempfile::tempdir().unwrap_or_else(|why| panic!("no folder: {why}"));
        copy(
            &self.folder.path().join("store"),
            &backup.path().join("store"),
        );
        backup
    }

    /// Starts it again on the same port with a store that was [backed up](NatsServer::back_up).
    pub fn restart_from(&mut self, backup: &TempDir) {
        self.stop();
        let store = self.folder.path().join("store");
        let _ = fs::remove_dir_all(&store);
        copy(&backup.path().join("store"), &store);
        self.run();
    }

    /// Starts it again on the same port, told something else.
    pub fn restart_with(&mut self, config: Config) {
        self.config = config;
        self.restart();
    }

    /// SIGSTOP: its connections stay open, and nothing answers.
    pub fn freeze(&mut self) {
        let frozen = self.signal(Signal::STOP);
        // The signal is sent; wait until all its threads have stopped.
        let status = waitpid(Some(frozen), WaitOptions::UNTRACED)
            .unwrap_or_else(|why| panic!("not frozen: {why}"));
        assert!(
            status.is_some_and(|(_, status)| status.stopped()),
            "the nats-server ended instead of freezing: {status:?}\n{}",
            self.log()
        );
    }

    /// SIGCONT, after [`freeze`](NatsServer::freeze).
    pub fn thaw(&mut self) {
        let _ = self.signal(Signal::CONT);
    }

    /// What it printed so far.
    pub fn log(&self) -> String {
        self.log
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// A page of its monitoring, such as `/varz` or `/connz`.
    pub fn monitoring(&self, path: &str) -> Value {
        let answer = http::get(self.monitoring.address(), path, &[])
            .unwrap_or_else(|why| panic!("{path}: {why}\n{}", self.log()));
        serde_json::from_str(&answer.body).unwrap_or_else(|why| panic!("{path}: {why}"))
    }

    fn signal(&mut self, signal: Signal) -> Pid {
        let running = self.running.as_mut();
        let running = running.unwrap_or_else(|| panic!("the nats-server is down"));
        let pid = pid(running);
        kill_process(pid, signal).unwrap_or_else(|why| panic!("{signal:?}: {why}"));
        pid
    }

    fn run(&mut self) {
        let program = parts::nats_server(self.release)
            .unwrap_or_else(|| panic!("no nats-server {:?}", self.release));
        let file = self.folder.path().join("nats.conf");
        let text = self.config.text(
            self.port.number,
            self.monitoring.number,
            &self.folder.path().join("store"),
        );
        fs::write(&file, text).unwrap_or_else(|why| panic!("{}: {why}", file.display()));
        let mut running = Running::start(
            Command::new(program)
                .arg("--config")
                .arg(&file)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::piped()),
        )
        .unwrap_or_else(|why| panic!("nats-server did not start: {why}"));
        if let Some(stderr) = running.child().stderr.take() {
            let log = Arc::clone(&self.log);
            // Ends with the server, whose end closes the pipe.
            thread::spawn(move || {
                for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                    let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
                    log.push_str(&line);
                    log.push('\n');
                }
            });
        }
        self.running = Some(running);
        self.wait_until_it_answers();
    }

    /// A server greets whoever connects; one with `handshake_first` waits for the client instead, and then that it
    /// listens has to do. Monitoring comes up before JetStream does, and says when that is ready.
    fn wait_until_it_answers(&mut self) {
        let begin = Instant::now();
        loop {
            if greets(self.address()) && self.is_healthy() {
                return;
            }
            let ended = match self.running.as_mut().map(|r| r.child().try_wait()) {
                Some(Ok(Some(status))) => format!("it ended with {status}"),
                _ if begin.elapsed() > DEADLINE => "it never answered".to_owned(),
                _ => {
                    thread::sleep(POLL);
                    continue;
                }
            };
            // What it wrote last is on its way through the pipe.
            thread::sleep(Duration::from_millis(50));
            panic!("nats-server did not start, {ended}:\n{}", self.log());
        }
    }

    fn is_healthy(&self) -> bool {
        http::get(self.monitoring.address(), "/healthz", &[])
            .is_ok_and(|answer| answer.status == 200)
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        // A test that passed does not show it.
        eprintln!("log of {}:\n{}", self.url(), self.log());
    }
}

/// A folder with all that is in it.
fn copy(from: &Path, to: &Path) {
    let copy = || -> std::io::Result<()> {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            let to = to.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                self::copy(&entry.path(), &to);
            } else {
                fs::copy(entry.path(), to)?;
            }
        }
        Ok(())
    };
    copy().unwrap_or_else(|why| panic!("{}: {why}", from.display()));
}

fn greets(server: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect(server) else {
        return false;
    };
    let mut greeting = [0; 4];
    let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
    match stream.read_exact(&mut greeting) {
        Ok(()) => &greeting == b"INFO",
        Err(why) => matches!(
            why.kind(),
            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
        ),
    }
}

fn pid(running: &mut Running) -> Pid {
    // The id of a child that was not reaped can't belong to anybody else.
    Pid::from_child(running.child())
}

/// A port of 127.0.0.1 that nobody else gets, whether our server listens on it or is down.
///
/// A bound socket that does not listen keeps it. Allowing reuse only after it was bound lets the server's socket, which
/// allows it too, have the port all the same; others, bound to any free port, are never given this one, and neither is a
/// client that connects (it might otherwise be given the very port it calls, and then talks to itself).
#[derive(Debug)]
pub(crate) struct Port {
    number: u16,
    _keeper: TcpSocket,
}

impl Port {
    pub(crate) fn reserve() -> Port {
        let reserve = || {
            let keeper = TcpSocket::new_v4()?;
            keeper.bind((Ipv4Addr::LOCALHOST, 0).into())?;
            keeper.set_reuseaddr(true)?;
            Ok::<_, std::io::Error>(Port {
                number: keeper.local_addr()?.port(),
                _keeper: keeper,
            })
        };
        reserve().unwrap_or_else(|why| panic!("no free port: {why}"))
    }

    pub(crate) fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.number).into()
    }
}
