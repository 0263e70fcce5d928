//! The exporter, as real clients see it: friendly, slow and hostile ones, over TCP.
//!
//! Clients are plain blocking sockets with a read timeout far above anything that is expected, so that a server that
//! does not answer fails a test rather than hanging it. Limits of the server are short; nothing is slept for.
#![cfg(feature = "http")]

use std::{
    collections::HashMap,
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::mpsc,
    time::{Duration, Instant},
};

use http::{Request, StatusCode};
use metricbus::{
    Buckets, MetricBus,
    export::{BackgroundServer, Exporter, ServeError},
};
use tower_service::Service;

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(50);
const LOCAL: &str = "127.0.0.1:0";

struct Reply {
    status: u16,
    headers: HashMap<String, String>,
    body: Vec<u8>,
}

impl Reply {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    fn parse(bytes: &[u8]) -> Self {
        let end = bytes
            .windows(4)
            .position(|w| w == b"\r\n\r\n")
            .expect("no head");
        let head = std::str::from_utf8(&bytes[..end]).unwrap();
        let mut lines = head.split("\r\n");
        let status = lines
            .next()
            .unwrap()
            .split(' ')
            .nth(1)
            .unwrap()
            .parse()
            .unwrap();
        let headers = lines
            .map(|line| line.split_once(": ").unwrap())
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        Reply {
            status,
            headers,
            body: bytes[end + 4..].to_vec(),
        }
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream
}

/// What comes until the server closes, politely or not.
fn read_all(mut stream: &TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("not closed: {error}"),
        _ => bytes,
    }
}

/// Waits until the server has closed the connection, politely or not.
fn closed(mut stream: &TcpStream) {
    let mut rest = [0; 4096];
    loop {
        match stream.read(&mut rest) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return,
            Err(error) => panic!("not closed: {error}"),
        }
    }
}

fn request(address: SocketAddr, method: &str, path: &str, headers: &str) -> Reply {
    let mut stream = connect(address);
    // A server that refuses a request may answer and close before it was sent in full.
    let _ = write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n{headers}\r\n"
    );
    Reply::parse(&read_all(&stream))
}

fn get(address: SocketAddr, path: &str) -> Reply {
    request(address, "GET", path, "")
}

fn serve(exporter: &Exporter) -> (BackgroundServer, SocketAddr) {
    let server = exporter.serve_in_background(LOCAL).unwrap();
    let address = server.local_addr();
    (server, address)
}

/// The value on the line that begins with `series`.
fn value(text: &str, series: &str) -> f64 {
    text.lines()
        .filter_map(|line| line.rsplit_once(' '))
        .find(|(name, _)| *name == series)
        .unwrap_or_else(|| panic!("no {series} in\n{text}"))
        .1
        .parse()
        .unwrap()
}

fn own(address: SocketAddr, series: &str) -> f64 {
    let name = format!("metricbus_exporter_{series}");
    value(get(address, "/metrics").text(), &name)
}

// ---- what is served -------------------------------------------------------------------------------------------------

#[test]
fn a_scrape_is_answered_in_the_format_that_the_client_reads_best() {
    let bus = MetricBus::new();
    bus.counter("requests_total", "Requests.")
        .unwrap()
        .inc_by(6);
    let (_server, address) = serve(&Exporter::new(&bus));

    let plain = get(address, "/metrics");
    assert_eq!(plain.status, 200);
    assert_eq!(
        plain.header("content-type"),
        "text/plain; version=0.0.4; charset=utf-8"
    );
    assert_eq!(plain.header("vary"), "accept, accept-encoding");
    assert!(plain.text().starts_with(
        "# HELP requests_total Requests.\n# TYPE requests_total counter\nrequests_total 6\n"
    ));
    assert!(!plain.text().contains("# EOF"));

    let open = request(
        address,
        "GET",
        "/metrics?x=y",
        "Accept: application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1\r\n",
    );
    assert_eq!(
        open.header("content-type"),
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    );
    assert!(
        open.text()
            .starts_with("# HELP requests Requests.\n# TYPE requests counter\nrequests_total 6\n")
    );
    assert!(open.text().ends_with("\n# EOF\n"));
    assert_eq!(open.text().matches("# EOF").count(), 1);

    let unknown = request(address, "GET", "/metrics", "Accept: application/json\r\n");
    assert_eq!(
        (unknown.status, unknown.header("content-type")),
        (200, plain.header("content-type"))
    );
}

#[test]
fn gzip_holds_the_same_text() {
    let bus = MetricBus::new();
    bus.gauge("g", "A gauge.").unwrap().set(0.5);
    let exporter = Exporter::builder(&bus).process_metrics(false).build();
    let (_server, address) = serve(&exporter);
    let zipped = request(
        address,
        "GET",
        "/metrics",
        "Accept-Encoding: br, gzip;q=0.9\r\n",
    );
    assert_eq!(zipped.header("content-encoding"), "gzip");
    assert_eq!(
        zipped.header("content-length"),
        zipped.body.len().to_string()
    );
    let mut text = String::new();
    flate2::read::GzDecoder::new(&zipped.body[..])
        .read_to_string(&mut text)
        .unwrap();
    assert!(text.starts_with("# HELP g A gauge.\n# TYPE g gauge\ng 0.5\n"));
    assert!(text.len() > zipped.body.len());

    let plain = request(address, "GET", "/metrics", "Accept-Encoding: gzip;q=0\r\n");
    assert_eq!(plain.header("content-encoding"), "");
}

#[test]
fn head_has_the_headers_of_get_and_no_body() {
    let bus = MetricBus::new();
    let (_server, address) = serve(&Exporter::builder(&bus).process_metrics(false).build());
    for path in ["/live", "/health", "/"] {
        let (get, head) = (get(address, path), request(address, "HEAD", path, ""));
        assert_eq!(head.status, 200);
        assert!(head.body.is_empty());
        assert_eq!(head.header("content-length"), get.body.len().to_string());
        assert_eq!(head.header("content-type"), get.header("content-type"));
    }
}

#[test]
fn other_paths_and_methods_are_told_what_there_is() {
    let (_server, address) = serve(&Exporter::new(&MetricBus::new()));
    let unknown = get(address, "/metrics/");
    assert_eq!(unknown.status, 404);
    for path in ["/metrics", "/health", "/live"] {
        assert!(unknown.text().contains(path));
    }
    for method in ["POST", "DELETE", "OPTIONS", "BREW"] {
        let refused = request(address, method, "/metrics", "");
        assert_eq!(
            (refused.status, refused.header("allow")),
            (405, "GET, HEAD"),
            "{method}"
        );
    }
    let page = get(address, "/");
    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    for link in ["href=\"metrics\"", "href=\"health\"", "href=\"live\""] {
        assert!(page.text().contains(link));
    }
}

#[test]
fn metrics_on_every_path_are_on_every_one_that_is_nobody_elses() {
    let bus = MetricBus::new();
    bus.counter("c_total", "A counter.").unwrap().inc();
    let exporter = Exporter::new(&bus);
    let (_plain, plain) = serve(&exporter);
    let (_server, address) = serve(&exporter.metrics_on_every_path());
    for path in ["/", "/anything", "/metrics/", "/api"] {
        let reply = get(address, path);
        assert_eq!(reply.status, 200, "{path}");
        assert!(reply.text().contains("\nc_total 1\n"), "{path}");
        assert!(!get(plain, path).text().contains("c_total"), "{path}");
    }
    for path in ["/stream", "/api/v1/query"] {
        assert_eq!(get(address, path).status, 404, "{path}");
    }
    assert!(get(address, "/live").text().contains("ok"));
    assert!(get(address, "/rules").text().contains("rules_left_out"));
}

#[test]
fn a_scrape_of_some_names_has_their_samples_only() {
    let bus = MetricBus::new();
    bus.counter("c_total", "A counter.").unwrap().inc();
    let buckets = Buckets::new([1.0]).unwrap();
    bus.histogram("h", "A histogram.", buckets)
        .unwrap()
        .observe(0.5);
    let (_server, address) = serve(&Exporter::new(&bus));
    let path = "/metrics?name[]=h_count&name%5B%5D=c_total";
    let text = "# HELP c_total A counter.\n# TYPE c_total counter\nc_total 1\n\
                # HELP h A histogram.\n# TYPE h histogram\nh_count 1\n";
    for accept in [
        "text/plain",
        "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited",
    ] {
        let headers = format!("Accept: {accept}\r\nAccept-Encoding: gzip\r\n");
        let reply = request(address, "GET", path, &headers);
        assert_eq!(reply.text(), text, "{accept}");
        assert!(
            reply
                .header("content-type")
                .starts_with("text/plain; version=0.0.4")
        );
    }
    let open = request(
        address,
        "GET",
        path,
        "Accept: application/openmetrics-text; version=1.0.0\r\n",
    );
    assert!(
        open.text().ends_with("h_count 1\n# EOF\n"),
        "{}",
        open.text()
    );
}

#[test]
fn a_body_that_is_announced_and_never_sent_is_not_waited_for() {
    let (_server, address) = serve(&Exporter::new(&MetricBus::new()));
    let reply = request(
        address,
        "POST",
        "/metrics",
        "Content-Length: 1000000000\r\n",
    );
    assert_eq!(reply.status, 405);
    let reply = request(address, "GET", "/live", "Content-Length: 1000000000\r\n");
    assert_eq!(reply.status, 200);
}

#[test]
fn every_family_has_one_type_line_and_the_bus_comes_first() {
    let bus = MetricBus::new();
    bus.gauge("process_threads", "Mine.").unwrap().set(-1.0);
    // What the exporter says of itself nobody else can say.
    assert!(
        bus.counter("metricbus_exporter_scrapes_total", "Mine too.")
            .is_err()
    );
    bus.histogram("h", "A histogram.", Buckets::default())
        .unwrap()
        .observe(1.0);
    let (_server, address) = serve(&Exporter::new(&bus));
    for accept in ["", "Accept: application/openmetrics-text\r\n"] {
        let reply = request(address, "GET", "/metrics", accept);
        let mut types: Vec<_> = reply
            .text()
            .lines()
            .filter(|l| l.starts_with("# TYPE "))
            .collect();
        let all = types.len();
        types.sort_unstable();
        types.dedup();
        assert_eq!(types.len(), all);
        assert_eq!(value(reply.text(), "process_threads"), -1.0);
    }
    // One name, in each of two scrapes, and in this one.
    let skipped = if cfg!(target_os = "linux") { 3.0 } else { 0.0 };
    assert_eq!(own(address, "skipped_families_total"), skipped);
}

#[cfg(target_os = "linux")]
#[test]
fn the_process_and_the_exporter_itself_are_measured() {
    let bus = MetricBus::new();
    let (_server, address) = serve(&Exporter::new(&bus));
    let first = get(address, "/metrics");
    for series in [
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_virtual_memory_bytes",
        "process_start_time_seconds",
        "process_open_fds",
        "process_max_fds",
        "process_threads",
    ] {
        assert!(value(first.text(), series) >= 0.0, "{series}");
    }
    assert!(
        first
            .text()
            .contains("\n# TYPE metricbus_events_dropped_total counter\n")
    );
    let second = get(address, "/metrics");
    assert_eq!(
        value(
            second.text(),
            "metricbus_exporter_scrapes_total{format=\"text\"}"
        ),
        1.0
    );
    assert_eq!(
        value(second.text(), "metricbus_exporter_response_bytes_total"),
        first.body.len() as f64
    );
    assert_eq!(
        value(
            second.text(),
            "metricbus_exporter_scrape_duration_seconds_count"
        ),
        1.0
    );
    // The first may just not have been noticed to be gone.
    assert!(value(second.text(), "metricbus_exporter_connections_open") >= 1.0);
    assert_eq!(
        value(second.text(), "metricbus_exporter_connections_total"),
        2.0
    );
}

#[tokio::test]
async fn as_a_service_it_takes_any_body_and_is_shared_by_its_clones() {
    let bus = MetricBus::new();
    let mut exporter = Exporter::new(&bus);
    let mut clone = exporter.clone();
    let live = exporter
        .call(Request::get("/live").body(()).unwrap())
        .await
        .unwrap();
    assert_eq!(live.status(), StatusCode::OK);
    for _ in 0..2 {
        let request = Request::get("http://host/metrics")
            .body(String::from("body"))
            .unwrap();
        assert_eq!(clone.call(request).await.unwrap().status(), StatusCode::OK);
    }
    let (server, address) = (exporter.serve(LOCAL).await.unwrap(), exporter.clone());
    let local = server.local_addr();
    drop(address);
    let scrapes = tokio::task::spawn_blocking(move || own(local, "scrapes_total{format=\"text\"}"));
    assert_eq!(scrapes.await.unwrap(), 2.0);
}

#[test]
fn outside_of_a_runtime_it_says_so_and_does_not_panic() {
    let mut exporter = Exporter::new(&MetricBus::new());
    for path in ["/metrics", "/health"] {
        let answer = exporter.call(Request::get(path).body(()).unwrap());
        assert_eq!(
            futures::executor::block_on(answer).unwrap().status(),
            503,
            "{path}"
        );
    }
    let error = futures::executor::block_on(exporter.serve(LOCAL)).unwrap_err();
    assert!(matches!(error, ServeError::NoRuntime { .. }), "{error}");
}

#[test]
fn an_exporter_outlives_the_runtime_of_its_server() {
    let bus = MetricBus::new();
    let exporter = Exporter::new(&bus);
    for _ in 0..3 {
        let (server, address) = serve(&exporter);
        assert_eq!(get(address, "/metrics").status, 200);
        server.shutdown();
    }
}

// ---- foreign code ---------------------------------------------------------------------------------------------------

#[test]
fn a_collect_hook_runs_before_each_scrape() {
    let bus = MetricBus::new();
    let runs = bus.counter("hook_runs_total", "Runs.").unwrap();
    let exporter = Exporter::builder(&bus)
        .collect_hook("runs", LONG, move || runs.inc())
        .build();
    let (_server, address) = serve(&exporter);
    for n in 1..=3 {
        assert_eq!(
            value(get(address, "/metrics").text(), "hook_runs_total"),
            f64::from(n)
        );
    }
}

#[test]
fn a_hook_that_hangs_costs_one_deadline_and_is_not_started_twice() {
    let bus = MetricBus::new();
    let starts = bus.counter("starts_total", "Starts.").unwrap();
    let (release, wait) = mpsc::channel::<()>();
    let exporter = Exporter::builder(&bus)
        .collect_hook("hung", SHORT, move || {
            starts.inc();
            let _ = wait.recv();
        })
        .build();
    let (server, address) = serve(&exporter);
    let began = Instant::now();
    assert_eq!(get(address, "/metrics").status, 200);
    assert!(began.elapsed() >= SHORT);
    get(address, "/metrics");
    let third = get(address, "/metrics");
    assert_eq!(value(third.text(), "starts_total"), 1.0);
    assert_eq!(
        value(
            third.text(),
            "metricbus_exporter_hook_timeouts_total{hook=\"hung\"}"
        ),
        1.0
    );
    assert_eq!(
        value(
            third.text(),
            "metricbus_exporter_hook_skips_total{hook=\"hung\"}"
        ),
        2.0
    );
    // Nor does it keep the server, or the process, from ending.
    server.shutdown();
    drop(release);
}

#[test]
fn a_hook_that_panics_is_counted_and_the_scrape_goes_on() {
    let bus = MetricBus::new();
    let exporter = Exporter::builder(&bus)
        .collect_hook("broken", LONG, || panic!("as it should"))
        .build();
    let (_server, address) = serve(&exporter);
    let series = "hook_failures_total{hook=\"broken\"}";
    assert_eq!(own(address, series), 1.0);
    assert_eq!(own(address, series), 2.0);
}

#[test]
fn health_is_200_or_503_with_the_reasons_and_live_is_200() {
    let (_keep, never) = mpsc::channel::<()>();
    let healthy = Exporter::builder(&MetricBus::new())
        .check("nats", || Ok(()))
        .build();
    let sick = Exporter::builder(&MetricBus::new())
        .check_deadline(Duration::from_secs(1))
        .check("nats", || Ok(()))
        .check("disk", || Err("full".into()))
        .check("panics", || panic!("as it should"))
        .check("hangs", move || Ok(never.recv()?))
        .build();
    let (_one, address) = serve(&healthy);
    let reply = get(address, "/health");
    assert_eq!(
        (reply.status, reply.header("content-type")),
        (200, "application/json")
    );
    assert_eq!(
        reply.text(),
        "{\"checks\":{\"nats\":{\"status\":\"ok\"}},\"status\":\"ok\"}\n"
    );

    let (_two, address) = serve(&sick);
    let reply = get(address, "/health");
    assert_eq!(reply.status, 503);
    let json: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!(json["status"], "unavailable");
    assert_eq!(json["checks"]["nats"]["status"], "ok");
    assert_eq!(json["checks"]["disk"]["error"], "full");
    assert_eq!(json["checks"]["panics"]["error"], "panicked: as it should");
    assert_eq!(json["checks"]["hangs"]["status"], "timeout");
    assert_eq!(get(address, "/live").status, 200);
}

// ---- clients --------------------------------------------------------------------------------------------------------

#[test]
fn a_client_that_sends_its_head_byte_by_byte_is_closed_while_others_are_served() {
    let exporter = Exporter::builder(&MetricBus::new())
        .head_timeout(SHORT)
        .build();
    let (_server, address) = serve(&exporter);
    let mut slow = connect(address);
    slow.set_nodelay(true).unwrap();
    // Until the server has had enough: each byte that is taken would have to extend the time for this not to end.
    let mut head = b"GET /metrics HTTP/1.1\r\nX-Slow: "
        .iter()
        .chain(std::iter::repeat(&b'x'));
    while slow.write_all(&[*head.next().unwrap()]).is_ok() {
        assert_eq!(get(address, "/live").status, 200);
    }
    assert_eq!(
        own(address, "connections_timed_out_total{phase=\"head\"}"),
        1.0
    );

    let silent = connect(address);
    closed(&silent);
    assert_eq!(
        own(address, "connections_timed_out_total{phase=\"head\"}"),
        2.0
    );
}

#[test]
fn an_idle_connection_is_kept_for_its_time_and_then_closed() {
    let exporter = Exporter::builder(&MetricBus::new())
        .head_timeout(LONG)
        .idle_timeout(SHORT)
        .build();
    let (_server, address) = serve(&exporter);
    let mut stream = connect(address);
    for _ in 0..2 {
        stream
            .write_all(b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n")
            .unwrap();
        let mut bytes = [0; 1024];
        let n = stream.read(&mut bytes).unwrap();
        assert!(bytes[..n].starts_with(b"HTTP/1.1 200"));
    }
    closed(&stream);
    assert_eq!(
        own(address, "connections_timed_out_total{phase=\"idle\"}"),
        1.0
    );
}

/// A bus whose text is far larger than what the kernel buffers for a connection.
fn large_bus() -> MetricBus {
    let bus = MetricBus::new();
    let help = "x".repeat(10_000);
    for i in 0..2_000 {
        bus.gauge(&format!("large_{i}"), &help).unwrap().set(1.0);
    }
    bus
}

#[test]
fn a_client_that_never_reads_is_cut_and_the_next_is_served() {
    let exporter = Exporter::builder(&large_bus())
        .write_timeouts(SHORT, LONG)
        .build();
    let (_server, address) = serve(&exporter);
    let mut deaf = connect(address);
    deaf.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    // One byte tells that the answer is on its way; there is no sign of the cut but the counter and the end of the data.
    deaf.read_exact(&mut [0]).unwrap();
    // On a busy machine the scrapes that look for it are cut as well.
    let counter = "metricbus_exporter_connections_timed_out_total{phase=\"write\"} ";
    let is_cut = |line: &str| line.strip_prefix(counter).is_some_and(|n| n != "0");
    while !get(address, "/metrics").text().lines().any(is_cut) {}
    let mut rest = Vec::new();
    let end = deaf.read_to_end(&mut rest);
    assert!(end.is_err() || rest.len() < 20_000_000);
    assert_eq!(get(address, "/live").status, 200);
}

/// Each of these clients asks alone, reads a byte and no more, and so holds a body of 20 MB.
#[test]
fn clients_that_hold_too_many_answers_are_refused_until_they_let_go() {
    // On a busy machine the first would be cut before the last has come.
    let exporter = Exporter::builder(&large_bus())
        .write_timeouts(LONG, LONG)
        .build();
    let (_server, address) = serve(&exporter);
    let mut deaf = Vec::new();
    let refused = (0..20).find_map(|_| {
        let mut client = connect(address);
        client
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            .unwrap();
        let mut status = [0; 12];
        client.read_exact(&mut status).unwrap();
        deaf.push(client);
        (status != *b"HTTP/1.1 200").then_some(status)
    });
    assert_eq!(refused, Some(*b"HTTP/1.1 503"));
    assert!((8..=10).contains(&deaf.len()), "{}", deaf.len());
    assert_eq!(get(address, "/live").status, 200);
    drop(deaf);
    while get(address, "/metrics").status != 200 {}
}

#[test]
fn durations_that_mean_never_are_taken() {
    let exporter = Exporter::builder(&MetricBus::new())
        .collect_hook("patient", Duration::MAX, || {})
        .check("patient", || Ok(()))
        .check_deadline(Duration::MAX)
        .head_timeout(Duration::MAX)
        .idle_timeout(Duration::MAX)
        .write_timeouts(Duration::MAX, Duration::MAX)
        .build();
    let (_server, address) = serve(&exporter);
    for path in ["/metrics", "/health", "/live"] {
        assert_eq!(get(address, path).status, 200, "{path}");
    }
}

#[test]
fn of_two_hooks_with_one_name_the_second_replaces_the_first() {
    let bus = MetricBus::new();
    let runs = bus.gauge("runs", "By the hooks.").unwrap();
    let (first, second) = (runs.clone(), runs.clone());
    let exporter = Exporter::builder(&bus)
        .collect_hook("disk", LONG, move || first.add(100.0))
        .collect_hook("disk", LONG, move || second.add(1.0))
        .build();
    let (_server, address) = serve(&exporter);
    let scraped = get(address, "/metrics");
    assert_eq!(value(scraped.text(), "runs"), 1.0);
    let hooks = scraped
        .text()
        .matches("metricbus_exporter_hook_timeouts_total{hook=\"disk\"}");
    assert_eq!(hooks.count(), 1);
}

#[test]
fn a_client_that_reads_too_slowly_in_all_is_cut() {
    let exporter = Exporter::builder(&large_bus())
        .write_timeouts(LONG, Duration::from_millis(200))
        .build();
    let (_server, address) = serve(&exporter);
    let mut slow = connect(address);
    slow.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    let mut piece = [0; 1024];
    let mut read = 0;
    // One piece for each whole scrape of somebody else; at this pace it would take minutes.
    while own(address, "connections_timed_out_total{phase=\"write\"}") == 0.0 {
        read += slow.read(&mut piece).unwrap_or(0);
    }
    assert!(read < 20_000_000);
}

#[test]
fn what_is_no_http_is_refused_with_an_answer_and_harms_nobody() {
    let exporter = Exporter::builder(&MetricBus::new())
        .head_timeout(SHORT)
        .build();
    let (_server, address) = serve(&exporter);
    let long = "x".repeat(100_000);
    let long_path = format!("GET /{long} HTTP/1.1\r\nHost: x\r\n\r\n");
    let long_header = format!("GET /live HTTP/1.1\r\nX-Long: {long}\r\n\r\n");
    let many_headers = format!("GET /live HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(1_000));
    let cases: [(&[u8], u16); 7] = [
        (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS client\r\n\r\n",
            400,
        ),
        (b"\0\0\0\0\0\0\0\0\r\n\r\n", 400),
        (b"GET /live\r\n\r\n", 400),
        (b"GET /live HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (long_path.as_bytes(), 414),
        (long_header.as_bytes(), 431),
        (many_headers.as_bytes(), 431),
    ];
    for (bytes, status) in cases {
        let mut stream = connect(address);
        stream.write_all(bytes).unwrap();
        let reply = Reply::parse(&read_all(&stream));
        let start = String::from_utf8_lossy(&bytes[..bytes.len().min(30)]);
        assert!((400..500).contains(&reply.status), "{start}");
        assert!(
            reply.status == status || status == 414,
            "{start}: {}",
            reply.status
        );
    }
    assert_eq!(own(address, "connections_refused_total"), 7.0);

    // An HTTP/2 client that takes HTTP/2 for granted is closed too.
    let mut h2 = connect(address);
    h2.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    closed(&h2);
    assert_eq!(get(address, "/live").status, 200);
}

#[test]
fn clients_that_leave_at_any_point_leave_nothing_behind() {
    let bus = large_bus();
    let (_server, address) = serve(&Exporter::builder(&bus).head_timeout(SHORT).build());
    let whole = b"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello";
    for sent in [0, 1, 10, 40, whole.len()] {
        let mut stream = connect(address);
        stream.write_all(&whole[..sent]).unwrap();
        if sent == whole.len() {
            stream.read_exact(&mut [0; 1000]).unwrap();
        }
        drop(stream);
    }
    // This connection is the one that stays.
    while own(address, "connections_open") > 1.0 {}
    assert_eq!(own(address, "connections_cut_total"), 0.0);
}

#[test]
fn a_client_that_has_no_more_to_ask_still_gets_its_answer() {
    let (_server, address) = serve(&Exporter::new(&MetricBus::new()));
    for version in ["1.0", "1.1"] {
        let mut stream = connect(address);
        write!(stream, "GET /metrics HTTP/{version}\r\nHost: x\r\n\r\n").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(Reply::parse(&read_all(&stream)).status, 200);
    }
}

#[test]
fn requests_in_one_piece_are_answered_in_order() {
    let (_server, address) = serve(&Exporter::new(&MetricBus::new()));
    let mut stream = connect(address);
    let requests = "GET /live HTTP/1.1\r\nHost: x\r\n\r\n".repeat(49);
    stream.write_all(requests.as_bytes()).unwrap();
    stream
        .write_all(b"GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .unwrap();
    let text = String::from_utf8(read_all(&stream)).unwrap();
    assert_eq!(text.matches("HTTP/1.1 200").count(), 49);
    assert!(text.rfind("HTTP/1.1 404") > text.rfind("HTTP/1.1 200"));
}

#[test]
fn when_all_places_are_taken_idle_connections_make_room() {
    let exporter = Exporter::builder(&MetricBus::new())
        .connections_max(1)
        .head_timeout(LONG)
        .idle_timeout(LONG)
        .build();
    let (_server, address) = serve(&exporter);
    let mut idle = connect(address);
    idle.write_all(b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    idle.read_exact(&mut [0; 10]).unwrap();
    let text = get(address, "/metrics");
    closed(&idle);
    assert!(value(text.text(), "metricbus_exporter_connections_delayed_total") >= 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_scrapes_at_once_are_all_answered() {
    // Clients have their file descriptors in this process too. Where there are too few for that many, fewer do.
    #[cfg(target_os = "linux")]
    let clients = match procfs::process::Process::myself()
        .unwrap()
        .limits()
        .unwrap()
        .max_open_files
        .soft_limit
    {
        procfs::process::LimitValue::Value(n) => (n as usize / 2).min(10_000),
        procfs::process::LimitValue::Unlimited => 10_000,
    };
    #[cfg(not(target_os = "linux"))]
    let clients = 100;

    let bus = MetricBus::new();
    for i in 0..100 {
        bus.counter(&format!("c{i}_total"), "A counter.")
            .unwrap()
            .inc_by(i);
    }
    let exporter = Exporter::builder(&bus)
        .head_timeout(LONG)
        .connections_max(clients / 10)
        .build();
    let server = exporter.serve(LOCAL).await.unwrap();
    let address = server.local_addr();
    let scrapes: Vec<_> = (0..clients)
        .map(|_| {
            tokio::spawn(async move {
                let stream = tokio::net::TcpStream::connect(address).await.unwrap();
                stream.writable().await.unwrap();
                let request = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
                assert_eq!(stream.try_write(request).unwrap(), request.len());
                let (mut reply, mut piece) = (Vec::new(), [0; 8192]);
                loop {
                    stream.readable().await.unwrap();
                    match stream.try_read(&mut piece) {
                        Ok(0) => break,
                        Ok(n) => reply.extend_from_slice(&piece[..n]),
                        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                        Err(error) => panic!("{error}"),
                    }
                }
                let reply = Reply::parse(&reply);
                assert_eq!(reply.status, 200);
                assert_eq!(value(reply.text(), "c99_total"), 99.0);
            })
        })
        .collect();
    for scrape in scrapes {
        scrape.await.unwrap();
    }
    assert_eq!(server.shutdown().await, 0);
}

/// Runs itself again in a process that may have few file descriptors, and takes all of them there.
#[cfg(target_os = "linux")]
#[test]
fn when_file_descriptors_run_out_clients_wait_until_there_are_some() {
    const INNER: &str = "METRICBUS_TEST_FEW_FILES";
    if std::env::var_os(INNER).is_none() {
        let this = std::env::current_exe().unwrap();
        let inner = std::process::Command::new("sh")
            .args(["-c", "ulimit -n 64 && exec \"$0\" \"$@\""])
            .arg(this)
            .args([
                "--exact",
                "when_file_descriptors_run_out_clients_wait_until_there_are_some",
            ])
            .env(INNER, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&inner.stdout).into_owned()
            + &String::from_utf8_lossy(&inner.stderr);
        assert!(inner.status.success(), "{said}");
        assert!(said.contains("1 passed"), "{said}");
        return;
    }
    let exporter = Exporter::new(&MetricBus::new());
    let (_server, address) = serve(&exporter);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut files = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        files.push(file);
    }
    // The client has the last one, so there is none to accept it with.
    files.pop();
    let mut stream = connect(address);
    // Nothing can be connected to ask, so the service is asked without. It needs no file descriptors.
    let errors = || {
        let answer = exporter
            .clone()
            .call(Request::get("/metrics").body(()).unwrap());
        let body = runtime.block_on(answer).unwrap().into_body();
        let body = runtime
            .block_on(http_body_util::BodyExt::collect(body))
            .unwrap()
            .to_bytes();
        value(
            std::str::from_utf8(&body).unwrap(),
            "metricbus_exporter_accept_errors_total",
        )
    };
    while errors() == 0.0 {}
    drop(files);
    stream
        .write_all(b"GET /live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .unwrap();
    assert_eq!(Reply::parse(&read_all(&stream)).status, 200);
}

// ---- addresses and ends ---------------------------------------------------------------------------------------------

#[test]
fn an_address_that_can_not_be_served_is_an_error_that_helps_and_the_bus_lives_on() {
    let bus = MetricBus::new();
    let counter = bus.counter("c_total", "A counter.").unwrap();
    let exporter = Exporter::new(&bus);

    let other = TcpListener::bind(LOCAL).unwrap();
    let taken = other.local_addr().unwrap();
    let error = exporter
        .serve_in_background(&taken.to_string())
        .unwrap_err();
    assert!(matches!(error, ServeError::Busy { address } if address == taken));
    assert!(error.to_string().contains(&taken.to_string()), "{error}");

    // A port alone is one of this machine.
    let server = exporter.serve_in_background("0").unwrap();
    assert!(server.local_addr().ip().is_loopback());

    let error = exporter.serve_in_background(":9464").unwrap_err();
    assert!(error.to_string().contains("127.0.0.1:9464"), "{error}");
    for wrong in [
        "",
        "localhost",
        "127.0.0.1:70000",
        "::1:80",
        "http://localhost:80",
    ] {
        let error = exporter.serve_in_background(wrong).unwrap_err();
        assert!(
            matches!(error, ServeError::Address { .. }),
            "{wrong}: {error}"
        );
    }
    // TEST-NET-1 (RFC 5737) belongs to nobody.
    let error = exporter.serve_in_background("192.0.2.1:9090").unwrap_err();
    assert!(matches!(error, ServeError::Elsewhere { .. }), "{error}");
    let error = exporter
        .serve_in_background("nowhere.invalid:9090")
        .unwrap_err();
    assert!(matches!(error, ServeError::Resolve { .. }), "{error}");

    counter.inc();
    let (_server, address) = serve(&exporter);
    assert_eq!(value(get(address, "/metrics").text(), "c_total"), 1.0);
}

#[test]
fn a_host_name_is_resolved() {
    let server = Exporter::new(&MetricBus::new())
        .serve_in_background("localhost:0")
        .unwrap();
    assert!(server.local_addr().ip().is_loopback());
    assert_eq!(get(server.local_addr(), "/live").status, 200);
}

#[test]
fn the_port_is_free_again_as_soon_as_the_server_has_shut_down() {
    let exporter = Exporter::new(&MetricBus::new());
    let (server, address) = serve(&exporter);
    let _kept = get(address, "/live");
    server.shutdown();
    let again = exporter.serve_in_background(&address.to_string()).unwrap();
    assert_eq!(get(again.local_addr(), "/live").status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scrape_on_its_way_is_answered_before_the_server_is_gone() {
    let (started, has_started) = mpsc::channel::<()>();
    let (release, wait) = mpsc::channel::<()>();
    let exporter = Exporter::builder(&MetricBus::new())
        .collect_hook("slow", LONG, move || {
            started.send(()).unwrap();
            let _ = wait.recv();
        })
        .shutdown_deadline(LONG)
        .build();
    let server = exporter.serve(LOCAL).await.unwrap();
    let address = server.local_addr();
    let idle = connect(address);
    let scrape = tokio::task::spawn_blocking(move || get(address, "/metrics"));
    tokio::task::spawn_blocking(move || has_started.recv().unwrap())
        .await
        .unwrap();

    let shutdown = tokio::spawn(server.shutdown());
    // The listener goes first, and so do those who have not asked for anything.
    tokio::task::spawn_blocking(move || closed(&idle))
        .await
        .unwrap();
    assert!(!shutdown.is_finished());
    release.send(()).unwrap();
    assert_eq!(scrape.await.unwrap().status, 200);
    assert_eq!(shutdown.await.unwrap(), 0);
    assert!(TcpStream::connect(address).is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scrape_that_is_not_done_by_the_deadline_is_cut() {
    let (started, has_started) = mpsc::channel::<()>();
    let (_keep, wait) = mpsc::channel::<()>();
    let exporter = Exporter::builder(&MetricBus::new())
        .collect_hook("slow", LONG, move || {
            started.send(()).unwrap();
            let _ = wait.recv();
        })
        .shutdown_deadline(SHORT)
        .build();
    let server = exporter.serve(LOCAL).await.unwrap();
    let mut stream = connect(server.local_addr());
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    tokio::task::spawn_blocking(move || has_started.recv().unwrap())
        .await
        .unwrap();
    assert_eq!(server.shutdown().await, 1);
    tokio::task::spawn_blocking(move || closed(&stream))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_dropped_stops_and_one_that_is_forgotten_stays() {
    let exporter = Exporter::new(&MetricBus::new());
    let server = exporter.serve(LOCAL).await.unwrap();
    let idle = connect(server.local_addr());
    drop(server);
    tokio::task::spawn_blocking(move || closed(&idle))
        .await
        .unwrap();

    let server = exporter.serve(LOCAL).await.unwrap();
    let address = server.local_addr();
    server.forget();
    let live = tokio::task::spawn_blocking(move || get(address, "/live"));
    assert_eq!(live.await.unwrap().status, 200);
}
