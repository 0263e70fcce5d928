//! The one HTTP client: a request, an answer, and errors that say what to do. Redirects are not followed and proxies not
//! asked: what is sent here goes to the address that was given, or nowhere.

use std::{
    error::Error as _,
    fmt,
    future::Future,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client as Pooled, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
};
use tokio::runtime::{Builder, Runtime};

use crate::signal::keep_out_broken_pipes;

/// Of an answer's body as much is kept: it is for people, or short.
const ANSWER_MAX: usize = 64 * 1024;
/// As much more is read, as trailers come after it.
const SKIPPED_MAX: usize = 4 << 20;
/// For how long a connection is kept that nothing is asked on.
const IDLE_MAX: Duration = Duration::from_secs(90);

/// While something is asked over HTTP/2, whether the server is there is asked this often.
#[cfg(feature = "otlp-grpc")]
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// The end of a connection whose server has not said so for this long.
#[cfg(feature = "otlp-grpc")]
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a client could not be made, or a request has no answer. Holds no secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ClientError {
    #[error("URL {url:?} can't be used: {why}")]
    Url { url: String, why: String },
    #[error("{what} {path:?}: {why}")]
    File {
        what: &'static str,
        path: PathBuf,
        why: String,
    },
    #[error("TLS can't be set up: {why}")]
    Tls { why: String },
    #[error("{server} can't be reached: {why}")]
    Unreachable { server: String, why: String },
    #[error(
        "{server} has not answered within {after:?}: it is slow or frozen, or the way to it is"
    )]
    Late { server: String, after: Duration },
    #[error("the connection to {server} broke: {why}")]
    Broken { server: String, why: String },
}

/// How a server is reached, and what it is shown.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reach {
    /// PEM files with the certificates of those who may vouch for a server; the system's where there is none.
    pub(crate) roots: Vec<PathBuf>,
    /// PEM files with the certificate to show, with those in between, and its key.
    pub(crate) client_certificate: Option<(PathBuf, PathBuf)>,
    /// HTTP/2 from the first byte, also without TLS: what gRPC wants.
    #[cfg_attr(not(feature = "otlp-grpc"), allow(dead_code))]
    pub(crate) http2: bool,
}

/// What a server said.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// The first 64 KiB.
    pub(crate) body: Bytes,
    /// Empty where there were none.
    pub(crate) trailers: HeaderMap,
}

impl Answer {
    /// The body as a line for people.
    pub(crate) fn words(&self) -> String {
        words(&self.body)
    }
}

/// Somebody else's text as a short line for people.
pub(crate) fn words(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(&text[..text.len().min(2_000)]);
    let mut line = String::new();
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()) {
        if line.chars().count() + word.chars().count() > 300 {
            line.push('…');
            break;
        }
        if !word.is_empty() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    line
}

/// Keeps connections, and makes them anew. Clones share them. Works in the runtime that it is used in.
#[derive(Clone)]
pub(crate) struct Client {
    pool: Pooled<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

/// Checks a URL that requests shall go to: `http` or `https`, with a host, without a user.
pub(crate) fn check_url(url: &str) -> Result<Uri, ClientError> {
    let wrong = |why: String| {
        Err(ClientError::Url {
            url: redacted(url),
            why,
        })
    };
    let right = "http://localhost:4318 or https://example.com would be right";
    let uri: Uri = match url.parse() {
        Ok(uri) => uri,
        Err(error) => return wrong(format!("{error}; {right}")),
    };
    match uri.scheme_str() {
        Some("http" | "https") => {}
        Some(other) => return wrong(format!("{other:?} is neither http nor https; {right}")),
        None => {
            return wrong(format!(
                "it does not begin with http:// or https://; {right}"
            ));
        }
    }
    // It would be left out without a word.
    if url.contains('#') {
        return wrong(
            "it has a fragment, which no server is sent; leave out what begins with #".to_owned(),
        );
    }
    let Some(authority) = uri.authority() else {
        return wrong(format!("it has no host; {right}"));
    };
    if authority.as_str().contains('@') {
        return wrong("user and password belong into a header, not into the URL".to_owned());
    }
    if authority.host().is_empty() {
        return wrong(format!("it has no host; {right}"));
    }
    // `http` lets any text pass as a port.
    if authority.as_str().len() > authority.host().len()
        && authority.port_u16().is_none_or(|p| p == 0)
    {
        return wrong("its port is not a number from 1 to 65535".to_owned());
    }
    Ok(uri)
}

/// A URL without what stands before the host and what is asked of it; also of text that is none.
pub(crate) fn redacted(url: &str) -> String {
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => (String::new(), url),
    };
    // A password may hold anything, and so may a query: up to the last `@` all may be a secret, and after a `?`.
    let (before, host) = rest.rsplit_once('@').unwrap_or(("", rest));
    let ends = ['?', '#'];
    if before.contains(ends) {
        return format!("{scheme}…");
    }
    let shown = host.split(ends).next().unwrap_or("");
    format!("{scheme}{shown}")
}

impl Client {
    /// A client for `url` and what is below it. Reads the files now, and the system's certificates only where they are
    /// needed.
    ///
    /// # Errors
    ///
    /// Files that can't be read or hold something else, and a system without certificates where they are needed.
    pub(crate) fn new(url: &Uri, reach: &Reach) -> Result<Client, ClientError> {
        let tls = config(url.scheme_str() == Some("https"), reach)?;
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http();
        #[cfg(feature = "otlp-grpc")]
        let connector = if reach.http2 {
            connector.enable_http2().wrap_connector(tcp)
        } else {
            connector.enable_http1().wrap_connector(tcp)
        };
        #[cfg(not(feature = "otlp-grpc"))]
        let connector = connector.enable_http1().wrap_connector(tcp);
        let mut builder = Pooled::builder(TokioExecutor::new());
        builder
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_MAX)
            .pool_max_idle_per_host(2);
        #[cfg(feature = "otlp-grpc")]
        builder
            .http2_only(reach.http2)
            // A request that was given up does not end a connection that others share. One that is dead has to.
            .http2_keep_alive_interval(PING_INTERVAL)
            .http2_keep_alive_timeout(PING_TIMEOUT);
        Ok(Client {
            pool: builder.build(connector),
        })
    }

    /// Sends `request` and waits for the whole answer, `timeout` at most. Any status is an answer.
    #[allow(dead_code)] // Not all that use the client go by the runtime's clock.
    pub(crate) async fn request(
        &self,
        request: Request<Bytes>,
        timeout: Duration,
    ) -> Result<Answer, ClientError> {
        self.request_until(request, timeout, tokio::time::sleep(timeout))
            .await
    }

    /// As [`request`](Client::request), by another clock than the runtime's: `late` is done after `timeout`.
    pub(crate) async fn request_until(
        &self,
        request: Request<Bytes>,
        timeout: Duration,
        late: impl Future<Output = ()>,
    ) -> Result<Answer, ClientError> {
        let server = match (request.uri().scheme_str(), request.uri().authority()) {
            (Some(scheme), Some(authority)) => format!("{scheme}://{authority}"),
            _ => redacted(&request.uri().to_string()),
        };
        tokio::select! {
            answer = self.exchange(request, &server) => answer,
            () = late => Err(ClientError::Late { server: server.clone(), after: timeout }),
        }
    }

    async fn exchange(&self, request: Request<Bytes>, server: &str) -> Result<Answer, ClientError> {
        let answer = self
            .pool
            .request(request.map(Full::new))
            .await
            .map_err(|error| failure(server, &error))?;
        let (parts, mut body) = answer.into_parts();
        let mut kept = BytesMut::new();
        let mut skipped = 0;
        let mut trailers = HeaderMap::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| ClientError::Broken {
                server: server.to_owned(),
                why: chain(&error),
            })?;
            match frame.into_data() {
                Ok(data) => {
                    let room = ANSWER_MAX - kept.len();
                    kept.extend_from_slice(&data[..data.len().min(room)]);
                    skipped += data.len().saturating_sub(room);
                    if skipped > SKIPPED_MAX {
                        break;
                    }
                }
                Err(frame) => {
                    if let Ok(more) = frame.into_trailers() {
                        trailers = more;
                    }
                }
            }
        }
        Ok(Answer {
            status: parts.status,
            headers: parts.headers,
            body: kept.freeze(),
            trailers,
        })
    }
}

/// An error with all that caused it, as a line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        // Some repeat what caused them.
        if !line.contains(&words) {
            line = format!("{line}: {words}");
        }
        cause = error.source();
    }
    line
}

fn find<'a, E: std::error::Error + 'static>(
    error: &'a (dyn std::error::Error + 'static),
) -> Option<&'a E> {
    if let Some(found) = error.downcast_ref::<E>() {
        return Some(found);
    }
    // An I/O error around another one does not name it as its source, but that one's.
    let inner = error
        .downcast_ref::<io::Error>()
        .and_then(io::Error::get_ref);
    match inner {
        Some(inner) => find(inner),
        None => find(error.source()?),
    }
}

fn failure(server: &str, error: &hyper_util::client::legacy::Error) -> ClientError {
    let server = server.to_owned();
    if !error.is_connect() {
        let why = match error.source() {
            Some(cause) => chain(cause),
            None => chain(error),
        };
        return ClientError::Broken { server, why };
    }
    let advice = match find::<rustls::Error>(error) {
        Some(rustls::Error::InvalidCertificate(fault)) => match fault {
            rustls::CertificateError::UnknownIssuer => {
                "; name the certificate of who vouches for the server, or ask whether it is the right server"
            }
            rustls::CertificateError::NotValidForName
            | rustls::CertificateError::NotValidForNameContext { .. } => {
                "; the certificate is for another name than the URL has"
            }
            _ => "",
        },
        Some(rustls::Error::InvalidMessage(_)) => {
            "; the server seems not to speak TLS: http:// instead of https://?"
        }
        Some(_) => "",
        None => match find::<io::Error>(error).map(io::Error::kind) {
            Some(io::ErrorKind::ConnectionRefused) => "; nothing listens there",
            Some(io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => {
                "; the server closed the connection: is it one that speaks this protocol?"
            }
            _ => "",
        },
    };
    let why = match error.source() {
        Some(cause) => chain(cause),
        None => chain(error),
    };
    ClientError::Unreachable {
        server,
        why: format!("{why}{advice}"),
    }
}

fn config(needed: bool, reach: &Reach) -> Result<ClientConfig, ClientError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| ClientError::Tls {
            why: error.to_string(),
        })?;
    let mut roots = RootCertStore::empty();
    for path in &reach.roots {
        for certificate in certificates("certificate", path)? {
            roots.add(certificate).map_err(|error| ClientError::File {
                what: "certificate",
                path: path.clone(),
                why: format!("a certificate in it can't be used: {error}"),
            })?;
        }
    }
    let builder = if needed && reach.roots.is_empty() {
        builder.with_native_roots().map_err(|error| ClientError::Tls {
            why: format!(
                "the system's certificates can't be used ({error}); install them (Debian: ca-certificates), or name a PEM file with the one that vouches for the server"
            ),
        })?
    } else {
        builder.with_root_certificates(roots)
    };
    let Some((certificate, key)) = &reach.client_certificate else {
        return Ok(builder.with_no_client_auth());
    };
    let shown = certificates("client certificate", certificate)?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| ClientError::File {
        what: "client key",
        path: key.clone(),
        why: pem_words(&error, "a PEM file with a private key"),
    })?;
    builder
        .with_client_auth_cert(shown, secret)
        .map_err(|error| ClientError::File {
            what: "client key",
            path: key.clone(),
            why: format!("it can't be used with the client certificate {certificate:?}: {error}"),
        })
}

fn certificates(
    what: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, ClientError> {
    let wrong = |why| ClientError::File {
        what,
        path: path.to_owned(),
        why,
    };
    let right = "a PEM file with certificates";
    let found = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| wrong(pem_words(&error, right)))?;
    if found.is_empty() {
        return Err(wrong(
            "it holds no certificate; a PEM file with -----BEGIN CERTIFICATE----- would be right"
                .to_owned(),
        ));
    }
    Ok(found)
}

fn pem_words(error: &pem::Error, right: &str) -> String {
    match error {
        pem::Error::Io(error) => format!("it can't be read: {error}"),
        other => format!("{other}; {right} would be right"),
    }
}

/// A runtime for a thread of ours, which keeps out broken pipes before it runs anything in it.
pub(crate) fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

/// Runs `work` to its end on a thread of its own, so that also those may wait who are in a runtime already (they hold up
/// its thread).
#[allow(dead_code)] // Not all that use the client block.
pub(crate) fn block_on<T: Send>(work: impl Future<Output = T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("metricbus-http".to_owned())
            .spawn_scoped(scope, || {
                keep_out_broken_pipes();
                let runtime = runtime()?;
                let done = runtime.block_on(work);
                // Who still looks up a name is not waited for.
                runtime.shutdown_background();
                Ok(done)
            })?
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Servers whose answers a test writes.
#[cfg(test)]
#[allow(dead_code)] // Not all who use the client are tested with all of it.
pub(crate) mod served {
    use std::{
        convert::Infallible,
        net::SocketAddr,
        sync::{Mutex, mpsc},
        thread::JoinHandle,
    };

    use http::Response;
    use http_body_util::StreamBody;
    use hyper::{body::Frame, service::service_fn};
    use hyper_util::rt::TokioIo;
    use tokio::{net::TcpListener, sync::oneshot};

    use super::*;

    /// A request as the server got it.
    #[derive(Clone, Debug)]
    pub(crate) struct Seen {
        pub(crate) method: http::Method,
        pub(crate) path: String,
        pub(crate) headers: HeaderMap,
        pub(crate) body: Bytes,
    }

    /// What the server does with a request.
    #[derive(Debug)]
    pub(crate) enum Reply {
        Answer(Response<Bytes>),
        /// An answer and its trailers.
        Trailed(Response<Bytes>, HeaderMap),
        /// Nothing, for as long as the server lives.
        Hang,
        /// The connection is closed.
        Close,
    }

    impl Reply {
        pub(crate) fn status(status: u16) -> Reply {
            Reply::with(status, &[], Bytes::new())
        }

        pub(crate) fn with(status: u16, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Reply {
            let mut answer = Response::builder().status(status);
            for (name, value) in headers {
                answer = answer.header(*name, *value);
            }
            Reply::Answer(answer.body(body.into()).unwrap())
        }
    }

    /// A real HTTP server on a free port of this machine, in a thread of its own until dropped.
    pub(crate) struct Server {
        pub(crate) address: SocketAddr,
        seen: mpsc::Receiver<Seen>,
        stop: Option<oneshot::Sender<()>>,
        thread: Option<JoinHandle<()>>,
    }

    type Script = Arc<Mutex<dyn FnMut(&Seen) -> Reply + Send>>;

    impl Server {
        pub(crate) fn start(script: impl FnMut(&Seen) -> Reply + Send + 'static) -> Server {
            Server::begin(Arc::new(Mutex::new(script)), false, None)
        }

        /// HTTP/2 without TLS.
        #[cfg(feature = "otlp-grpc")]
        pub(crate) fn start_http2(script: impl FnMut(&Seen) -> Reply + Send + 'static) -> Server {
            Server::begin(Arc::new(Mutex::new(script)), true, None)
        }

        pub(crate) fn start_tls(
            tls: rustls::ServerConfig,
            script: impl FnMut(&Seen) -> Reply + Send + 'static,
        ) -> Server {
            let tls = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
            Server::begin(Arc::new(Mutex::new(script)), false, Some(tls))
        }

        fn begin(script: Script, http2: bool, tls: Option<tokio_rustls::TlsAcceptor>) -> Server {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.set_nonblocking(true).unwrap();
            let address = listener.local_addr().unwrap();
            let (tell, seen) = mpsc::channel();
            let (stop, stopped) = oneshot::channel();
            let thread = std::thread::spawn(move || {
                let runtime = runtime().unwrap();
                runtime.block_on(async move {
                    let listener = TcpListener::from_std(listener).unwrap();
                    let serve = async {
                        loop {
                            let (stream, _) = listener.accept().await.unwrap();
                            let (script, tell, tls) = (script.clone(), tell.clone(), tls.clone());
                            tokio::spawn(async move {
                                match tls {
                                    Some(tls) => {
                                        if let Ok(stream) = tls.accept(stream).await {
                                            connection(stream, http2, script, tell).await;
                                        }
                                    }
                                    None => connection(stream, http2, script, tell).await,
                                }
                            });
                        }
                    };
                    tokio::select! {
                        () = serve => {}
                        _ = stopped => {}
                    }
                });
            });
            Server {
                address,
                seen,
                stop: Some(stop),
                thread: Some(thread),
            }
        }

        pub(crate) fn url(&self) -> String {
            format!("http://{}", self.address)
        }

        /// The next request, waited for.
        pub(crate) fn next(&self) -> Seen {
            self.seen
                .recv_timeout(Duration::from_secs(60))
                .expect("a request comes")
        }

        /// The next request that is there already.
        pub(crate) fn seen(&self) -> Option<Seen> {
            self.seen.try_recv().ok()
        }
    }

    impl Drop for Server {
        fn drop(&mut self) {
            drop(self.stop.take());
            if let Some(thread) = self.thread.take() {
                let _ = thread.join();
            }
        }
    }

    async fn connection(
        stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
        http2: bool,
        script: Script,
        tell: mpsc::Sender<Seen>,
    ) {
        let service = service_fn(move |request: Request<hyper::body::Incoming>| {
            let (script, tell) = (script.clone(), tell.clone());
            async move {
                let (parts, body) = request.into_parts();
                let seen = Seen {
                    method: parts.method,
                    path: parts
                        .uri
                        .path_and_query()
                        .map_or(String::new(), |p| p.to_string()),
                    headers: parts.headers,
                    body: body
                        .collect()
                        .await
                        .map_or(Bytes::new(), |body| body.to_bytes()),
                };
                let reply = (script.lock().unwrap())(&seen);
                let _ = tell.send(seen);
                let (answer, trailers) = match reply {
                    Reply::Answer(answer) => (answer, None),
                    Reply::Trailed(answer, trailers) => (answer, Some(trailers)),
                    Reply::Hang => std::future::pending().await,
                    Reply::Close => return Err(io::Error::other("closed")),
                };
                let (parts, body) = answer.into_parts();
                let frames = [Some(Frame::data(body)), trailers.map(Frame::trailers)];
                let frames = frames.into_iter().flatten().map(Ok::<_, Infallible>);
                let body = StreamBody::new(futures::stream::iter(frames));
                Ok::<_, io::Error>(Response::from_parts(parts, body))
            }
        });
        let stream = TokioIo::new(stream);
        #[cfg(feature = "otlp-grpc")]
        if http2 {
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection(stream, service).await;
            return;
        }
        assert!(!http2);
        let server = hyper::server::conn::http1::Builder::new();
        let _ = server.serve_connection(stream, service).await;
    }
}

#[cfg(test)]
mod tests {
    use super::{
        served::{Reply, Server},
        *,
    };

    const LONG: Duration = Duration::from_secs(60);

    fn get(url: &str) -> Result<Answer, ClientError> {
        ask(url, &Reach::default(), LONG)
    }

    fn ask(url: &str, reach: &Reach, timeout: Duration) -> Result<Answer, ClientError> {
        let url = check_url(url)?;
        let client = Client::new(&url, reach)?;
        let request = Request::get(url).body(Bytes::new()).unwrap();
        block_on(client.request(request, timeout)).unwrap()
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_server_that_goes_away_can_not_end_the_program_by_a_signal() {
        use crate::signal::has_broken_pipes_kept_out;

        let kept_out = block_on(async { has_broken_pipes_kept_out("metricbus-http") });
        assert_eq!(kept_out.unwrap(), Some(true));
    }

    #[test]
    fn any_status_is_an_answer_and_a_redirect_is_not_followed() {
        let server =
            Server::start(|_| Reply::with(302, &[("location", "http://x/")], "over\n\n there"));
        let answer = get(&format!("{}/a?b=c", server.url())).unwrap();
        assert_eq!(
            (answer.status.as_u16(), &*answer.words()),
            (302, "over there")
        );
        assert_eq!(server.next().path, "/a?b=c");
    }

    #[test]
    fn of_an_endless_answer_the_beginning_is_kept() {
        let server = Server::start(|_| Reply::with(400, &[], vec![b'x'; 4 * ANSWER_MAX]));
        let answer = get(&server.url()).unwrap();
        assert_eq!(answer.body.len(), ANSWER_MAX);
    }

    #[cfg(feature = "otlp-grpc")]
    #[test]
    fn a_long_answer_does_not_hide_its_trailers() {
        let server = Server::start_http2(|_| {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
            let long = Bytes::from(vec![b'x'; 4 * ANSWER_MAX]);
            Reply::Trailed(http::Response::new(long), trailers)
        });
        let reach = Reach {
            http2: true,
            ..Reach::default()
        };
        let answer = ask(&server.url(), &reach, LONG).unwrap();
        assert_eq!(answer.body.len(), ANSWER_MAX);
        assert_eq!(answer.trailers["grpc-status"], "0");
    }

    #[test]
    fn urls_that_can_not_be_asked_are_refused_and_no_secret_is_shown() {
        for (url, why) in [
            ("localhost:4318", "does not begin with http://"),
            ("/v1/metrics", "does not begin with http://"),
            ("ftp://x", "\"ftp\" is neither"),
            ("http://", ""),
            ("http://me:s3cr3t@x/?k=s3cr3t", "belong into a header"),
            ("http://x:99999", "port"),
            ("http://x:0", "port"),
            ("http://a b", ""),
            ("http://x/#s3cr3t", "has a fragment"),
        ] {
            let error = check_url(url).unwrap_err().to_string();
            assert!(error.contains(why), "{url}: {error}");
            assert!(!error.contains("s3cr3t"), "{error}");
        }
        for url in ["http://x", "https://[::1]:4318/a", "HTTP://x:80/"] {
            assert!(check_url(url).is_ok(), "{url}");
        }
    }

    #[test]
    fn a_url_is_shown_without_anything_that_may_be_a_secret() {
        for (url, shown) in [
            ("http://c:1/a?k=s3cr3t", "http://c:1/a"),
            ("http://me:s3cr3t@c/a", "http://c/a"),
            ("http://me:s3/cr3t@c", "http://c"),
            ("http://me:s3@cr3t@c", "http://c"),
            ("http://me:s3?cr3t@c", "http://…"),
            ("http://me:s3#cr3t@c", "http://…"),
            ("http://c/?k=a@s3cr3t", "http://…"),
            ("http://c#s3cr3t", "http://c"),
            ("me:s3cr3t@c", "c"),
            ("", ""),
        ] {
            assert_eq!(redacted(url), shown, "{url}");
        }
    }

    #[test]
    fn a_port_where_nobody_listens_is_an_error_that_says_so() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let error = get(&format!("http://{address}/")).unwrap_err();
        assert!(
            matches!(error, ClientError::Unreachable { .. }),
            "{error:?}"
        );
        assert!(
            error.to_string().contains("nothing listens there"),
            "{error}"
        );
    }

    #[test]
    fn a_server_that_hangs_is_given_up_and_one_that_hangs_up_is_an_error() {
        let server = Server::start(|_| Reply::Hang);
        let short = Duration::from_millis(30);
        let error = ask(&server.url(), &Reach::default(), short).unwrap_err();
        assert!(
            matches!(error, ClientError::Late { after, .. } if after == short),
            "{error:?}"
        );

        let server = Server::start(|_| Reply::Close);
        let error = get(&server.url()).unwrap_err();
        assert!(matches!(error, ClientError::Broken { .. }), "{error:?}");
    }

    #[test]
    fn blocking_is_possible_in_a_runtime_too() {
        let server = Server::start(|_| Reply::status(204));
        let url = server.url();
        let answer = runtime().unwrap().block_on(async { get(&url) }).unwrap();
        assert_eq!(answer.status, StatusCode::NO_CONTENT);
    }

    /// A certificate for 127.0.0.1 that vouches for itself, as PEM, with its key.
    fn identity(name: &str) -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        let certificate = params.self_signed(&key).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    fn tls(certificate: &str, key: &str, of_clients: Option<&str>) -> rustls::ServerConfig {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let pem = |text: &str| CertificateDer::from_pem_slice(text.as_bytes()).unwrap();
        let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = match of_clients {
            Some(text) => {
                let mut roots = RootCertStore::empty();
                roots.add(pem(text)).unwrap();
                let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
                    roots.into(),
                    provider,
                );
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
            None => builder.with_no_client_auth(),
        };
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        builder
            .with_single_cert(vec![pem(certificate)], key)
            .unwrap()
    }

    #[test]
    fn tls_is_checked_against_the_certificates_that_were_named_and_shows_the_clients_own() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let ((cert, key), (mine, my_key)) = (identity("server"), identity("client"));
        let (root, key_file) = (file("root.pem", &cert), file("key.pem", &my_key));
        let (mine_file, other) = (file("mine.pem", &mine), file("other.pem", &key));
        let server = Server::start_tls(tls(&cert, &key, Some(&mine)), |_| Reply::status(200));
        let url = format!("https://{}/", server.address);
        let known = Reach {
            roots: vec![root.clone()],
            client_certificate: Some((mine_file.clone(), key_file)),
            ..Reach::default()
        };
        assert_eq!(ask(&url, &known, LONG).unwrap().status, StatusCode::OK);

        let stranger = Reach {
            roots: vec![mine_file.clone()],
            ..known.clone()
        };
        let error = ask(&url, &stranger, LONG).unwrap_err().to_string();
        assert!(
            error.contains("name the certificate of who vouches"),
            "{error}"
        );

        let unshown = Reach {
            client_certificate: None,
            ..known.clone()
        };
        assert!(ask(&url, &unshown, LONG).is_err());

        let mixed = Reach {
            client_certificate: Some((mine_file, other)),
            ..known.clone()
        };
        let error = ask(&url, &mixed, LONG).unwrap_err().to_string();
        assert!(
            error.contains("can't be used with the client certificate"),
            "{error}"
        );

        let plain = Server::start(|_| Reply::status(200));
        let error = ask(&format!("https://{}/", plain.address), &known, LONG).unwrap_err();
        assert!(
            error.to_string().contains("http:// instead of https://"),
            "{error}"
        );
    }

    #[test]
    fn files_that_are_not_there_or_hold_something_else_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let empty = dir.path().join("empty.pem");
        std::fs::write(&empty, "nothing").unwrap();
        for (path, why) in [
            (empty, "holds no certificate"),
            (dir.path().join("none.pem"), "can't be read"),
        ] {
            let reach = Reach {
                roots: vec![path.clone()],
                ..Reach::default()
            };
            let error = ask("http://127.0.0.1:1/", &reach, LONG)
                .unwrap_err()
                .to_string();
            assert!(
                error.contains(why) && error.contains(path.to_str().unwrap()),
                "{error}"
            );
        }
    }
}
