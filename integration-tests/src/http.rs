//! The least HTTP a test needs: a blocking GET, and a proxy that asks for another format than the scraper did.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

/// No answer in this time is an error, so that a server that hangs fails its test.
const PATIENCE: Duration = Duration::from_secs(60);

/// An answer, its body as text.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Such as 200.
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// As it came: no encoding was asked for.
    pub body: String,
}

impl Answer {
    /// The header's value, its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| &**value)
    }
}

/// Asks for a path, with headers of the caller's. The request is HTTP/1.0, so that no server answers in chunks.
pub fn get(server: SocketAddr, path: &str, headers: &[(&str, &str)]) -> io::Result<Answer> {
    let (head, body) = exchange(server, path, headers)?;
    let body = String::from_utf8(body).map_err(invalid)?;
    answer(&head, body)
}

/// As [`get`], for what is no text: its body is left out.
pub fn head(server: SocketAddr, path: &str, headers: &[(&str, &str)]) -> io::Result<Answer> {
    let (head, _) = exchange(server, path, headers)?;
    answer(&head, String::new())
}

fn answer(head: &str, body: String) -> io::Result<Answer> {
    let mut lines = head.lines();
    let status = lines
        .next()
        .and_then(|line| line.split(' ').nth(1)?.parse().ok())
        .ok_or_else(|| invalid(format!("no status in {head:?}")))?;
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    Ok(Answer {
        status,
        headers,
        body,
    })
}

fn exchange(
    server: SocketAddr,
    path: &str,
    headers: &[(&str, &str)],
) -> io::Result<(String, Vec<u8>)> {
    let mut head = raw_exchange(server, path, headers)?;
    let end = head.windows(4).position(|four| four == b"\r\n\r\n");
    let end = end.ok_or_else(|| invalid("no end of the headers"))?;
    let body = head.split_off(end + 4);
    Ok((String::from_utf8(head).map_err(invalid)?, body))
}

fn raw_exchange(server: SocketAddr, path: &str, headers: &[(&str, &str)]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut request = format!("GET {path} HTTP/1.0\r\nHost: {server}\r\n");
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    request += "\r\n";
    stream.write_all(request.as_bytes())?;
    let mut raw = Vec::new();
    stream.read_to_end(&mut raw)?;
    Ok(raw)
}

fn invalid(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Text that can stand in a query string.
pub fn percent_encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

/// Passes every request on to a server with an `Accept` header of its own: Prometheus 2.42 always prefers OpenMetrics,
/// and has no option to ask for the text format.
#[derive(Debug)]
pub struct AcceptProxy {
    address: SocketAddr,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl AcceptProxy {
    /// A proxy on a free port, in a thread of its own.
    pub fn start(server: SocketAddr, accept: &'static str) -> io::Result<AcceptProxy> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stopping);
        let thread = std::thread::spawn(move || {
            for client in listener.incoming() {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                // A scrape that fails here is down for Prometheus, and the test that looks at `up` says so.
                let _ = client.and_then(|client| pass_on(client, server, accept));
            }
        });
        Ok(AcceptProxy {
            address,
            stopping,
            thread: Some(thread),
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }
}

fn pass_on(mut client: TcpStream, server: SocketAddr, accept: &str) -> io::Result<()> {
    client.set_read_timeout(Some(PATIENCE))?;
    client.set_write_timeout(Some(PATIENCE))?;
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte)?;
        request.push(byte[0]);
    }
    client.write_all(&raw_exchange(server, "/metrics", &[("Accept", accept)])?)?;
    client.shutdown(Shutdown::Write)
}

impl Drop for AcceptProxy {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        // Ends the wait for a client. If it can't connect, the listener is gone and so is the thread.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
