//! Ten thousand scrapes at once, over real sockets, while two threads mutate what is scraped.
//!
//! Method: all connections are made; then each sends its request before any answer is read, twice over. No time is
//! asserted. A scrape that holds up the mutators shows as a counter that stood still, a torn histogram as a count
//! that is not its last bucket, and a lost answer as a test that does not end.

use std::{
    collections::BTreeMap,
    error::Error,
    io::{self, BufRead, BufReader},
    process::{Command, Stdio},
    rc::Rc,
    sync::atomic::{AtomicUsize, Ordering},
};

use metricbus_integration_tests::process::Running;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{Barrier, Semaphore},
    task::LocalSet,
};

const SCRAPES: usize = 10_000;

/// Connections being made at a time: fewer than the server's queue of those not accepted yet, so that none is lost and
/// tried again a second later.
const CONNECTING_MAX: usize = 256;

const REQUEST: &[u8] =
    b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: text/plain;version=0.0.4\r\n\r\n";

/// An answer, without `process_*` and the exporter's own.
#[derive(Debug, Clone)]
struct Scrape {
    /// When its answer had been read, among all.
    arrival: usize,
    mutations: f64,
    work: f64,
    buckets: Vec<f64>,
    infinite_bucket: f64,
    count: f64,
}

#[test]
fn ten_thousand_scrapes_at_once_stall_no_mutation_and_tear_no_histogram()
-> Result<(), Box<dyn Error>> {
    let files = rlimit::increase_nofile_limit(u64::MAX)?;
    let scrapes = SCRAPES.min(usize::try_from(files)?.saturating_sub(200));
    if scrapes < SCRAPES {
        eprintln!(
            "only {scrapes} scrapes at once: the limit of open files is {files} (see `ulimit -Hn`)"
        );
    }

    let mut target = Running::start(
        Command::new(env!("CARGO_BIN_EXE_scrape-target"))
            .arg((scrapes + 100).to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped()),
    )?;
    let stdout = target.child().stdout.take().ok_or("no standard output")?;
    let mut address = String::new();
    BufReader::new(stdout).read_line(&mut address)?;
    let address = address.trim().to_owned();

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let rounds = LocalSet::new().block_on(&runtime, scrape_all(address, scrapes))?;
    assert_eq!(
        rounds.len(),
        scrapes,
        "every connection got both its answers"
    );

    for [first, second] in &rounds {
        for scrape in [first, second] {
            assert!(
                scrape.buckets.is_sorted(),
                "buckets are cumulative: {scrape:?}"
            );
            assert_eq!(
                scrape.buckets.last(),
                Some(&scrape.infinite_bucket),
                "the last bucket is +Inf: {scrape:?}"
            );
            assert_eq!(
                scrape.count, scrape.infinite_bucket,
                "the count is that of the last bucket: {scrape:?}"
            );
        }
        assert!(
            first.mutations <= second.mutations,
            "{first:?} then {second:?}"
        );
        assert!(first.work <= second.work, "{first:?} then {second:?}");
        assert!(first.count <= second.count, "{first:?} then {second:?}");
        for (earlier, later) in first.buckets.iter().zip(&second.buckets) {
            assert!(earlier <= later, "{first:?} then {second:?}");
        }
    }

    // All requests of a round are on their way before its first answer is read, so what was counted between its first
    // answer and its last was counted while scrapes were in flight.
    for round in 0..2 {
        let mut answers: Vec<&Scrape> = rounds.iter().map(|both| &both[round]).collect();
        answers.sort_by_key(|scrape| scrape.arrival);
        if let [first, .., last] = &*answers {
            assert!(
                first.mutations < last.mutations,
                "mutations went on during round {round}: {} then {}",
                first.mutations,
                last.mutations
            );
        }
    }

    // At the end of its input the target stops its threads, and fails if one of them panicked.
    drop(target.child().stdin.take());
    assert!(target.child().wait()?.success());
    Ok(())
}

async fn scrape_all(address: String, scrapes: usize) -> io::Result<Vec<[Scrape; 2]>> {
    let address: Rc<str> = address.into();
    let connecting = Rc::new(Semaphore::new(CONNECTING_MAX));
    let together = Rc::new(Barrier::new(scrapes));
    let arrivals = Rc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..scrapes)
        .map(|_| {
            let (address, connecting, together, arrivals) = (
                Rc::clone(&address),
                Rc::clone(&connecting),
                Rc::clone(&together),
                Rc::clone(&arrivals),
            );
            tokio::task::spawn_local(async move {
                let mut stream = {
                    let _place = connecting.acquire().await.map_err(io::Error::other)?;
                    TcpStream::connect(&*address).await?
                };
                let first = scrape(&mut stream, &together, &arrivals).await?;
                let second = scrape(&mut stream, &together, &arrivals).await?;
                io::Result::Ok([first, second])
            })
        })
        .collect();
    let mut rounds = Vec::with_capacity(scrapes);
    for task in tasks {
        rounds.push(task.await.map_err(io::Error::other)??);
    }
    Ok(rounds)
}

async fn scrape(
    stream: &mut TcpStream,
    together: &Barrier,
    arrivals: &AtomicUsize,
) -> io::Result<Scrape> {
    together.wait().await;
    stream.write_all(REQUEST).await?;
    together.wait().await;
    let body = answer(stream).await?;
    read(&body, arrivals.fetch_add(1, Ordering::Relaxed))
        .ok_or_else(|| io::Error::other(format!("incomplete: {body}")))
}

/// The body of an answer with a length, on a connection that stays open.
async fn answer(stream: &mut TcpStream) -> io::Result<String> {
    let mut raw = Vec::new();
    let (length, begin) = loop {
        if let Some(end) = raw.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&raw[..end]).to_ascii_lowercase();
            let length: Option<usize> = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
            match length {
                Some(length) if head.starts_with("http/1.1 200 ") => break (length, end + 4),
                _ => {
                    return Err(io::Error::other(format!(
                        "not the answer of a scrape: {head}"
                    )));
                }
            }
        }
        more(stream, &mut raw).await?;
    };
    while raw.len() < begin + length {
        more(stream, &mut raw).await?;
    }
    String::from_utf8(raw.split_off(begin)).map_err(io::Error::other)
}

async fn more(stream: &mut TcpStream, raw: &mut Vec<u8>) -> io::Result<()> {
    match stream.read_buf(raw).await? {
        0 => Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the server closed the connection",
        )),
        _ => Ok(()),
    }
}

fn read(body: &str, arrival: usize) -> Option<Scrape> {
    let mut values = BTreeMap::new();
    let mut buckets = Vec::new();
    for line in body.lines().filter(|line| !line.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ')?;
        let value: f64 = value.parse().ok()?;
        if series.starts_with("latency_seconds_bucket") {
            buckets.push(value);
        }
        values.insert(series, value);
    }
    Some(Scrape {
        arrival,
        mutations: *values.get("mutations_total")?,
        work: *values.get("work_seconds_total")?,
        infinite_bucket: *values.get("latency_seconds_bucket{le=\"+Inf\"}")?,
        count: *values.get("latency_seconds_count")?,
        buckets,
    })
}
