//! A server of the exporter's own, for a process that has none. Owns addresses, the limits on clients, and the shutdown.
//!
//! Whatever a client does costs a bounded time and a bounded memory, and the process goes on:
//!
//! | a client that | gets |
//! |---|---|
//! | sends its head byte by byte, or nothing | closed after the head timeout |
//! | sends what isn't HTTP | 400, closed |
//! | sends a head above the limit | 431, closed |
//! | does not read its answer, or hardly | closed after the write timeouts |
//! | keeps its connection without a use | closed after the idle timeout, or when room is needed |
//! | comes when the most that may be open are | waits in the kernel's accept queue |
//! | comes when file descriptors have run out | waits likewise; accepting is tried again, ever more seldom up to a second |

use std::{
    convert::Infallible,
    fmt, io,
    net::{IpAddr, SocketAddr},
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    thread,
    time::Duration,
};

use http::{HeaderValue, Request, header::CONNECTION};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpSocket, TcpStream, lookup_host},
    runtime::{Builder, Handle},
    sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch},
    time::{Instant, Sleep, sleep, timeout},
};
use tower_service::Service;

use super::{
    collect::{FOR_EVER, lock},
    http::Exporter,
};
use crate::signal::keep_out_broken_pipes;

/// What a client may take.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    pub(super) connections: usize,
    pub(super) head_bytes: usize,
    pub(super) head: Duration,
    pub(super) idle: Duration,
    pub(super) stalled: Duration,
    pub(super) written: Duration,
    pub(super) shutdown: Duration,
}

impl Limits {
    /// hyper's least buffer.
    pub(super) const HEAD_BYTES_MIN: usize = 8 * 1024;

    /// `Duration::MAX` says "never" in many a program, and can't be added to any time.
    pub(super) fn clamp(&mut self) {
        for limit in [
            &mut self.head,
            &mut self.idle,
            &mut self.stalled,
            &mut self.written,
            &mut self.shutdown,
        ] {
            *limit = (*limit).min(FOR_EVER);
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 1_024,
            head_bytes: 16 * 1024,
            head: Duration::from_secs(5),
            idle: Duration::from_secs(75),
            stalled: Duration::from_secs(10),
            written: Duration::from_secs(60),
            shutdown: Duration::from_secs(10),
        }
    }
}

/// The most headers a request may have. Prometheus sends six.
const HEADERS_MAX: usize = 64;

/// How many connections the kernel is asked to hold for us. Linux gives at most `net.core.somaxconn`, 4096 by default.
const BACKLOG: u32 = 4_096;

/// Between two attempts to accept, after an error: doubling from the first to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

/// How long, and for how many bytes, a client that was refused may go on sending before its connection is closed.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES_MAX: usize = 1 << 20;

/// Why there is no server.
///
/// ```
/// use metricbus::{MetricBus, export::{Exporter, ServeError}};
///
/// let exporter = Exporter::new(&MetricBus::new());
/// let error = exporter.serve_in_background(":9464").unwrap_err();
/// assert!(matches!(error, ServeError::Address { .. }));
/// assert_eq!(
///     error.to_string(),
///     "\":9464\" is not an address to serve at: it has no host; \"127.0.0.1:9464\" would be right, \
///      or \"0.0.0.0:9464\" to be reachable from other machines"
/// );
/// ```
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The address can't be read.
    #[error("{address:?} is not an address to serve at: {why}")]
    Address {
        /// As given.
        address: String,
        /// What is wrong with it, and what would be right.
        why: String,
    },
    /// The host has no address.
    #[error(
        "the host of {address:?} can't be found: {source}; an IP address needs no name service"
    )]
    Resolve {
        /// As given.
        address: String,
        /// What the name service says.
        source: io::Error,
    },
    /// Somebody else listens there.
    #[error(
        "{address} is taken by another listener; choose another port, or port 0 for any that is free"
    )]
    Busy {
        /// The address.
        address: SocketAddr,
    },
    /// The port is one of those that not everyone may use.
    #[error("not allowed to listen on {address}; a port from 1024 up needs no privilege")]
    Forbidden {
        /// The address.
        address: SocketAddr,
    },
    /// The address is not one of this machine.
    #[error(
        "{address} is not an address of this machine; 127.0.0.1 is, and 0.0.0.0 stands for all it has"
    )]
    Elsewhere {
        /// The address.
        address: SocketAddr,
    },
    /// The system does not let us listen, for another reason.
    #[error("can't listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// There is no tokio runtime.
    #[error(
        "can't serve at {address:?} outside of a tokio runtime; serve_in_background brings its own"
    )]
    NoRuntime {
        /// As given.
        address: String,
    },
    /// The background server's thread or runtime can't be had.
    #[error("no thread to serve at {address:?}: {source}")]
    Thread {
        /// As given.
        address: String,
        /// What the system says.
        source: io::Error,
    },
}

impl fmt::Debug for ServeError {
    /// The message: what `main` prints.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Exporter {
    /// Serves at `address`, a host or IP address with a port: `"127.0.0.1:9464"`, `"[::1]:9464"`, `"localhost:9464"`;
    /// or a port alone, `"9464"`, which is one of 127.0.0.1. (9464 is where OpenTelemetry's exporters for Prometheus are; 9090 is
    /// Prometheus's own.) Port 0 takes any that is free; see [`ExporterServer::local_addr`].
    ///
    /// It listens where it is told and nowhere else. `127.0.0.1` is this machine only; say `0.0.0.0` to be reachable from
    /// others. There is no authentication.
    ///
    /// Where `main` is not Rust's, which ignores SIGPIPE, threads of that runtime should block it: a client that closes early
    /// ends the process otherwise. [`serve_in_background`](Self::serve_in_background) does that for its own.
    ///
    /// # Errors
    ///
    /// [`ServeError`], and nothing has been started. The bus works without an exporter.
    ///
    /// # Panics
    ///
    /// Where tokio does: in a runtime made without `enable_io` and `enable_time`.
    ///
    /// ```
    /// use metricbus::{MetricBus, export::Exporter};
    ///
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let server = Exporter::new(&MetricBus::new()).serve("127.0.0.1:0").await?;
    /// println!("http://{}/metrics", server.local_addr());
    /// server.shutdown().await;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn serve(&self, address: &str) -> Result<ExporterServer, ServeError> {
        if Handle::try_current().is_err() {
            return Err(ServeError::NoRuntime {
                address: address.to_owned(),
            });
        }
        let listener = bind(address).await?;
        let local_addr = listener.local_addr().map_err(|source| ServeError::Thread {
            address: address.to_owned(),
            source,
        })?;
        let (state, state_seen) = watch::channel(State::Open);
        let connections_max = self.inner.limits.connections;
        let places = Arc::new(Semaphore::new(connections_max));
        let acceptor = Acceptor {
            exporter: self.clone(),
            places: places.clone(),
            state: state_seen,
            crowded: watch::channel(false).0,
        };
        tokio::spawn(acceptor.run(listener));
        tracing::info!(%local_addr, "metricbus: serving /metrics");
        Ok(ExporterServer {
            local_addr,
            exporter: self.clone(),
            state,
            places,
            stays: false,
        })
    }

    /// Serves at `address`, like [`serve`](Self::serve), on a thread and a runtime of its own. For programs without
    /// tokio, and for those whose runtime is too busy to be asked how it is.
    ///
    /// # Errors
    ///
    /// [`ServeError`], and nothing has been started.
    ///
    /// ```
    /// use metricbus::{MetricBus, export::Exporter};
    ///
    /// let server = Exporter::new(&MetricBus::new()).serve_in_background("127.0.0.1:0")?;
    /// println!("http://{}/metrics", server.local_addr());
    /// server.shutdown();
    /// # Ok::<(), metricbus::export::ServeError>(())
    /// ```
    pub fn serve_in_background(&self, address: &str) -> Result<BackgroundServer, ServeError> {
        let no_thread = |address: &str, source| ServeError::Thread {
            address: address.to_owned(),
            source,
        };
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let (stop, stopped) = oneshot::channel::<()>();
        let exporter = self.clone();
        let wanted = address.to_owned();
        let run = move || {
            keep_out_broken_pipes();
            let runtime = match Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(source) => {
                    let _ = tell.send(Err(no_thread(&wanted, source)));
                    return;
                }
            };
            runtime.block_on(async {
                match exporter.serve(&wanted).await {
                    Ok(server) => {
                        let _ = tell.send(Ok(server.local_addr()));
                        // Also where the handle was dropped.
                        let _ = stopped.await;
                        server.shutdown().await;
                    }
                    Err(error) => {
                        let _ = tell.send(Err(error));
                    }
                }
            });
            runtime.shutdown_background();
        };
        let thread = thread::Builder::new()
            .name("metricbus-exporter".to_owned())
            .spawn(run)
            .map_err(|source| no_thread(address, source))?;
        let gone = || no_thread(address, io::Error::other("it ended at once"));
        let local_addr = told.recv().map_err(|_| gone())??;
        Ok(BackgroundServer {
            local_addr,
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

/// A running server. Dropping it closes the listener and lets go of the clients in the background; see
/// [`forget`](Self::forget).
///
/// ```
/// # use metricbus::{MetricBus, export::{Exporter, ExporterServer}};
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let server: ExporterServer = Exporter::new(&MetricBus::new()).serve("127.0.0.1:0").await?;
/// assert_ne!(server.local_addr().port(), 0);
/// # Ok(())
/// # }
/// ```
#[must_use = "dropping it stops the server; forget() keeps it"]
pub struct ExporterServer {
    local_addr: SocketAddr,
    exporter: Exporter,
    state: watch::Sender<State>,
    places: Arc<Semaphore>,
    stays: bool,
}

/// What connections and the acceptor are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Open,
    /// Finish what you have.
    Closing,
    /// Stop.
    Cut,
}

impl ExporterServer {
    /// Where it listens, with the port it was given.
    ///
    /// ```
    /// # use metricbus::{MetricBus, export::Exporter};
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let server = Exporter::new(&MetricBus::new()).serve("127.0.0.1:0").await?;
    /// assert!(server.local_addr().ip().is_loopback());
    /// # Ok(())
    /// # }
    /// ```
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Stops accepting, waits until answers that are on their way have been sent, and cuts what isn't done after the
    /// [deadline](super::ExporterBuilder::shutdown_deadline). Returns how many connections had to be cut.
    ///
    /// ```
    /// # use metricbus::{MetricBus, export::Exporter};
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let server = Exporter::new(&MetricBus::new()).serve("127.0.0.1:0").await?;
    /// assert_eq!(server.shutdown().await, 0);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn shutdown(self) -> usize {
        let inner = &self.exporter.inner;
        let all = u32::try_from(inner.limits.connections).unwrap_or(u32::MAX);
        self.state.send_replace(State::Closing);
        // Every connection has a place, and so has the acceptor.
        if timeout(inner.limits.shutdown, self.places.acquire_many(all))
            .await
            .is_ok()
        {
            return 0;
        }
        let cut = (all as usize).saturating_sub(self.places.available_permits());
        inner.own.connections_cut.fetch_add(cut as u64, Relaxed);
        tracing::warn!(cut, "metricbus: connections cut at shutdown");
        self.state.send_replace(State::Cut);
        let _ = self.places.acquire_many(all).await;
        cut
    }

    /// Leaves the server running for as long as the runtime does.
    ///
    /// ```
    /// # use metricbus::{MetricBus, export::Exporter};
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// Exporter::new(&MetricBus::new()).serve("127.0.0.1:0").await?.forget();
    /// # Ok(())
    /// # }
    /// ```
    pub fn forget(mut self) {
        self.stays = true;
    }
}

impl Drop for ExporterServer {
    fn drop(&mut self) {
        if !self.stays {
            self.state.send_if_modified(|state| {
                let open = *state == State::Open;
                if open {
                    *state = State::Closing;
                }
                open
            });
        }
    }
}

impl fmt::Debug for ExporterServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ExporterServer({})", self.local_addr)
    }
}

/// A server with its own thread. Dropping it stops the server without waiting; see [`forget`](Self::forget).
///
/// ```
/// # use metricbus::{MetricBus, export::{BackgroundServer, Exporter}};
/// let server: BackgroundServer = Exporter::new(&MetricBus::new()).serve_in_background("127.0.0.1:0")?;
/// assert_ne!(server.local_addr().port(), 0);
/// # Ok::<(), metricbus::export::ServeError>(())
/// ```
#[must_use = "dropping it stops the server; forget() keeps it"]
pub struct BackgroundServer {
    local_addr: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl BackgroundServer {
    /// Where it listens, with the port it was given.
    ///
    /// ```
    /// # use metricbus::{MetricBus, export::Exporter};
    /// let server = Exporter::new(&MetricBus::new()).serve_in_background("127.0.0.1:0")?;
    /// assert!(server.local_addr().ip().is_loopback());
    /// # Ok::<(), metricbus::export::ServeError>(())
    /// ```
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Stops accepting, lets answers that are on their way finish, and waits for the thread: at most the
    /// [deadline](super::ExporterBuilder::shutdown_deadline). It blocks; in async code use [`Exporter::serve`], or
    /// just drop the server.
    ///
    /// ```
    /// # use metricbus::{MetricBus, export::Exporter};
    /// let server = Exporter::new(&MetricBus::new()).serve_in_background("127.0.0.1:0")?;
    /// server.shutdown();
    /// # Ok::<(), metricbus::export::ServeError>(())
    /// ```
    pub fn shutdown(mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("metricbus: the exporter's thread panicked");
        }
    }

    /// Leaves the server running for the life of the process.
    ///
    /// ```
    /// # use metricbus::{MetricBus, export::Exporter};
    /// Exporter::new(&MetricBus::new()).serve_in_background("127.0.0.1:0")?.forget();
    /// # Ok::<(), metricbus::export::ServeError>(())
    /// ```
    pub fn forget(mut self) {
        std::mem::forget(self.stop.take());
    }
}

impl fmt::Debug for BackgroundServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BackgroundServer({})", self.local_addr)
    }
}

// ---- addresses ----------------------------------------------------------------------------------------------------

/// Splits `host:port`, or says what would have been right.
fn parse(address: &str) -> Result<(&str, u16), ServeError> {
    let fault = |why: String| {
        Err(ServeError::Address {
            address: address.to_owned(),
            why,
        })
    };
    let no_host = |port: &str| {
        fault(format!(
            "it has no host; \"127.0.0.1:{port}\" would be right, or \"0.0.0.0:{port}\" to be reachable from other \
             machines"
        ))
    };
    let is_port = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if address.trim().is_empty() {
        return fault("it is empty; \"127.0.0.1:9464\" would be right".to_owned());
    }
    if address.contains("://") || address.contains('/') {
        let bare = address.split_once("://").map_or(address, |(_, rest)| rest);
        let bare = bare.split('/').next().unwrap_or(bare);
        return fault(format!(
            "it is a URL; only its host and port are wanted, as in {bare:?}"
        ));
    }
    if address.parse::<IpAddr>().is_ok() {
        let host = if address.contains(':') {
            format!("[{address}]")
        } else {
            address.to_owned()
        };
        return fault(format!("it has no port; \"{host}:9464\" would be right"));
    }
    let (host, port) = match address.rsplit_once(':') {
        Some(parts) => parts,
        None if is_port(address) => ("127.0.0.1", address),
        None => return fault(format!("it has no port; \"{address}:9464\" would be right")),
    };
    if host.is_empty() && is_port(port) {
        return no_host(port);
    }
    let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    if bracketed.is_none() && host.contains(':') {
        return fault(format!(
            "an IPv6 address has brackets around it: \"[{host}]:{port}\""
        ));
    }
    match port.parse() {
        Ok(number) if is_port(port) => Ok((bracketed.unwrap_or(host), number)),
        _ => fault(format!(
            "{port:?} is not a port; a port is a number from 0 to 65535"
        )),
    }
}

/// Listens at the first address of the host where that is possible.
async fn bind(address: &str) -> Result<TcpListener, ServeError> {
    let (host, port) = parse(address)?;
    let resolve = |source| ServeError::Resolve {
        address: address.to_owned(),
        source,
    };
    let mut found: Vec<SocketAddr> = match host.parse::<IpAddr>() {
        Ok(ip) => vec![SocketAddr::new(ip, port)],
        Err(_) => lookup_host((host, port)).await.map_err(resolve)?.collect(),
    };
    // "localhost" is both; who scrapes 127.0.0.1 is more common than who scrapes ::1.
    found.sort_by_key(|address| address.is_ipv6());
    let mut first = None;
    for address in found {
        match listen(address) {
            Ok(listener) => return Ok(listener),
            Err(source) => {
                first.get_or_insert(match source.kind() {
                    io::ErrorKind::AddrInUse => ServeError::Busy { address },
                    io::ErrorKind::PermissionDenied => ServeError::Forbidden { address },
                    io::ErrorKind::AddrNotAvailable => ServeError::Elsewhere { address },
                    _ => ServeError::Listen { address, source },
                });
            }
        }
    }
    Err(first.unwrap_or_else(|| resolve(io::Error::other("it has no addresses"))))
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    // A restart must not wait for the old connections to leave TIME_WAIT. On Windows it means something else.
    #[cfg(not(windows))]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

// ---- connections ----------------------------------------------------------------------------------------------------

#[derive(Clone)]
struct Acceptor {
    exporter: Exporter,
    places: Arc<Semaphore>,
    state: watch::Receiver<State>,
    /// Whether the acceptor is waiting for a place, so that idle connections are to go.
    crowded: watch::Sender<bool>,
}

impl Acceptor {
    async fn run(mut self, listener: TcpListener) {
        let mut state = self.state.clone();
        tokio::select! {
            biased;
            () = at_least(&mut state, State::Closing) => {}
            never = self.accept(&listener) => match never {},
        }
    }

    async fn accept(&mut self, listener: &TcpListener) -> Infallible {
        let own = &self.exporter.inner.own;
        let mut backoff = BACKOFF.0;
        loop {
            let place = self.place().await;
            match listener.accept().await {
                Ok((stream, _peer)) => {
                    backoff = BACKOFF.0;
                    own.connections.fetch_add(1, Relaxed);
                    tokio::spawn(self.clone().connection(stream, place));
                }
                // What was wrong with one connection is no reason to wait for the next.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::ConnectionAborted
                            | io::ErrorKind::ConnectionReset
                            | io::ErrorKind::ConnectionRefused
                            | io::ErrorKind::Interrupted
                    ) => {}
                Err(error) => {
                    own.accept_errors.fetch_add(1, Relaxed);
                    if backoff == BACKOFF.0 {
                        tracing::warn!(%error, "metricbus: can't accept connections; will try again");
                    }
                    // Idle connections have file descriptors that may be what is missing.
                    self.crowded.send_replace(true);
                    sleep(backoff).await;
                    backoff = (backoff * 2).min(BACKOFF.1);
                }
            }
        }
    }

    /// A place for the next connection.
    async fn place(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(place) = self.places.clone().try_acquire_owned() {
            self.crowded
                .send_if_modified(|crowded| std::mem::replace(crowded, false));
            return Some(place);
        }
        self.exporter
            .inner
            .own
            .connections_delayed
            .fetch_add(1, Relaxed);
        self.crowded.send_replace(true);
        // The semaphore is never closed, so there is always one in the end.
        self.places.clone().acquire_owned().await.ok()
    }

    /// One connection, from its first byte to its last.
    async fn connection(mut self, stream: TcpStream, _place: Option<OwnedSemaphorePermit>) {
        let inner = self.exporter.inner.clone();
        let (own, limits) = (&inner.own, &inner.limits);
        let _open = OpenConnection::count(&own.connections_open);
        // Answers are written whole; waiting for more to send with them only delays them.
        let _ = stream.set_nodelay(true);

        let progress = Arc::new(Progress::begin(limits));
        let service = service_fn(|request: Request<Incoming>| {
            progress.set(Phase::Answering);
            let answer = self.exporter.clone().call(request);
            let (progress, crowded) = (progress.clone(), self.crowded.subscribe());
            async move {
                let mut answer = answer.await?;
                if *crowded.borrow() {
                    answer
                        .headers_mut()
                        .insert(CONNECTION, HeaderValue::from_static("close"));
                }
                progress.write();
                Ok::<_, Infallible>(answer)
            }
        });
        let io = TokioIo::new(Watched {
            stream,
            progress: progress.clone(),
        });
        let mut connection = http1::Builder::new()
            // `Progress` times what hyper would, and the rest; hyper's would end idle connections as slow ones.
            .header_read_timeout(None)
            // A client may say that it has no more to ask, and still wait for its answer.
            .half_close(true)
            .max_headers(HEADERS_MAX)
            .max_header_size(limits.head_bytes)
            .max_buf_size(limits.head_bytes)
            .serve_connection(io, service);

        let mut expiry = pin!(sleep(limits.head));
        let mut crowded = self.crowded.subscribe();
        let mut wanted = State::Closing;
        loop {
            tokio::select! {
                biased;
                done = &mut connection => {
                    match done {
                        Ok(()) => {}
                        Err(error) if error.is_parse() => {
                            own.connections_refused.fetch_add(1, Relaxed);
                            let refused = connection.into_parts().io.into_inner().stream;
                            let _ = timeout(LINGER, drain(&refused)).await;
                        }
                        Err(_) => {
                            own.connections_lost.fetch_add(1, Relaxed);
                        }
                    }
                    return;
                }
                late = progress.expired(expiry.as_mut()) => {
                    match late {
                        Late::Head => &own.timeouts_head,
                        Late::Write => &own.timeouts_write,
                        Late::Idle => &own.timeouts_idle,
                    }
                    .fetch_add(1, Relaxed);
                    if matches!(late, Late::Write) {
                        // The kernel would go on offering the rest to a client that does not read.
                        let _ = connection.into_parts().io.into_inner().stream.set_zero_linger();
                    }
                    return;
                }
                () = at_least(&mut self.state, wanted) => {
                    if wanted == State::Cut {
                        // The shutdown has counted it.
                        return;
                    }
                    wanted = State::Cut;
                    Pin::new(&mut connection).graceful_shutdown();
                }
                () = turns_true(&mut crowded) => {
                    // One that has not asked yet is still to be served; its answer will then close it.
                    if progress.is_idle() {
                        Pin::new(&mut connection).graceful_shutdown();
                    }
                }
            }
        }
    }
}

/// Reads what still comes in, up to a limit. A socket that is closed with something unread resets the connection, and
/// the client would lose the answer that tells it what was wrong.
async fn drain(stream: &TcpStream) {
    let mut discarded = [0; 4096];
    let mut left = LINGER_BYTES_MAX;
    while left > 0 && stream.readable().await.is_ok() {
        match stream.try_read(&mut discarded) {
            Ok(0) => return,
            Ok(n) => left = left.saturating_sub(n),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

/// Waits until the state is this or a later one; for ever, where the server was left to itself.
async fn at_least(state: &mut watch::Receiver<State>, wanted: State) {
    if state.wait_for(|state| *state >= wanted).await.is_err() {
        std::future::pending().await
    }
}

/// Waits for the next time that it becomes true; for ever, where nobody can set it any more.
async fn turns_true(flag: &mut watch::Receiver<bool>) {
    loop {
        if flag.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        if *flag.borrow_and_update() {
            return;
        }
    }
}

/// Counts a connection as open until it is dropped.
struct OpenConnection<'a>(&'a AtomicI64);

impl<'a> OpenConnection<'a> {
    fn count(open: &'a AtomicI64) -> Self {
        open.fetch_add(1, Relaxed);
        OpenConnection(open)
    }
}

impl Drop for OpenConnection<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// How far a connection has come, and until when it has to get further.
///
/// Its parts (the stream, the service and the timer) are all polled by the connection's own task, one after the other:
/// the lock is never waited for, and what one part sets is seen when the timer is polled last.
struct Progress {
    limits: Limits,
    phase: Mutex<Phase>,
}

#[derive(Clone, Copy)]
enum Phase {
    /// The head of a request is coming in.
    Head { until: Instant },
    /// The exporter is at work, which has deadlines of its own.
    Answering,
    /// The answer is going out.
    Writing { stalled: Instant, until: Instant },
    /// Nothing is going on.
    Idle { until: Instant },
}

/// What took too long.
enum Late {
    Head,
    Write,
    Idle,
}

impl Progress {
    fn begin(limits: &Limits) -> Self {
        Progress {
            limits: limits.clone(),
            phase: Mutex::new(Phase::Head {
                until: Instant::now() + limits.head,
            }),
        }
    }

    fn set(&self, phase: Phase) {
        *lock(&self.phase) = phase;
    }

    fn is_idle(&self) -> bool {
        matches!(*lock(&self.phase), Phase::Idle { .. })
    }

    /// An answer is ready to go out.
    fn write(&self) {
        let now = Instant::now();
        self.set(Phase::Writing {
            stalled: now + self.limits.stalled,
            until: now + self.limits.written,
        });
    }

    /// Something came in.
    fn has_read(&self) {
        let mut phase = lock(&self.phase);
        // A head has its time from its first byte on, however many follow.
        if matches!(*phase, Phase::Idle { .. }) {
            *phase = Phase::Head {
                until: Instant::now() + self.limits.head,
            };
        }
    }

    /// Something went out.
    fn has_written(&self) {
        if let Phase::Writing { stalled, .. } = &mut *lock(&self.phase) {
            *stalled = Instant::now() + self.limits.stalled;
        }
    }

    /// Nothing can go out for now. It may be hyper's own answer, to something that is no request.
    fn is_blocked(&self) {
        if !matches!(*lock(&self.phase), Phase::Writing { .. }) {
            self.write();
        }
    }

    /// Everything has gone out.
    fn has_flushed(&self) {
        let mut phase = lock(&self.phase);
        if matches!(*phase, Phase::Writing { .. }) {
            *phase = Phase::Idle {
                until: Instant::now() + self.limits.idle,
            };
        }
    }

    /// Completes when the phase lasts too long. Has to be polled after everything that can change the phase.
    async fn expired(&self, mut timer: Pin<&mut Sleep>) -> Late {
        std::future::poll_fn(|cx| {
            let (until, late) = match *lock(&self.phase) {
                Phase::Head { until } => (until, Late::Head),
                Phase::Answering => return Poll::Pending,
                Phase::Writing { stalled, until } => (stalled.min(until), Late::Write),
                Phase::Idle { until } => (until, Late::Idle),
            };
            if timer.deadline() != until {
                timer.as_mut().reset(until);
            }
            timer.as_mut().poll(cx).map(|()| late)
        })
        .await
    }
}

/// A stream that tells how it gets on.
struct Watched {
    stream: TcpStream,
    progress: Arc<Progress>,
}

impl Watched {
    fn wrote(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &written {
            Poll::Ready(_) => self.progress.has_written(),
            Poll::Pending => self.progress.is_blocked(),
        }
        written
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            self.progress.has_read();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.progress.has_flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn a_client_that_goes_away_can_not_end_the_program_by_a_signal() {
        use crate::{MetricBus, signal::has_broken_pipes_kept_out};

        let exporter = Exporter::new(&MetricBus::new());
        let server = exporter.serve_in_background("127.0.0.1:0").unwrap();
        assert_eq!(has_broken_pipes_kept_out("metricbus-exporter"), Some(true));
        server.shutdown();
    }

    #[test]
    fn an_address_that_can_not_be_read_is_explained_with_one_that_can() {
        for (address, right) in [
            ("", "\"127.0.0.1:9464\""),
            ("99999", "0 to 65535"),
            (":9464", "\"0.0.0.0:9464\""),
            ("127.0.0.1", "\"127.0.0.1:9464\""),
            ("::1", "\"[::1]:9464\""),
            ("localhost", "\"localhost:9464\""),
            ("http://127.0.0.1:9464/metrics", "\"127.0.0.1:9464\""),
            ("fe80::1:2:3:4:5:6:99999", "\"[fe80::1:2:3:4:5:6]:99999\""),
            ("127.0.0.1:99999", "0 to 65535"),
            ("127.0.0.1:+80", "0 to 65535"),
            ("127.0.0.1:http", "0 to 65535"),
            ("127.0.0.1:", "0 to 65535"),
        ] {
            let error = parse(address).unwrap_err().to_string();
            assert!(error.contains(right), "{address:?}: {error}");
        }
        for (address, host, port) in [
            ("127.0.0.1:0", "127.0.0.1", 0),
            ("[::1]:9464", "::1", 9464),
            ("localhost:80", "localhost", 80),
            ("9464", "127.0.0.1", 9464),
            ("my-host.example:65535", "my-host.example", 65535),
        ] {
            assert_eq!(parse(address).unwrap(), (host, port));
        }
    }
}
