//! A backend of one's own, in a crate of one's own: StatsD datagrams, sent as mutations happen.
//!
//! ```sh
//! cargo run --example own_backend                          # prints what a StatsD server would get
//! cargo run --example own_backend -- --to 127.0.0.1:8125   # sends it to one
//! ```
//!
//! `docs/backends.md` says what a backend may and must do.

use std::{
    io::{self, Write},
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use clap::Parser;
use metricbus::{
    BaseComponentMetrics,
    backend::{Backend, BackendError, Declared, Mirror},
    component::Backends,
};

/// Sends each mutation to a StatsD server, with labels as DogStatsD has them.
#[derive(Debug)]
struct StatsD {
    socket: Arc<UdpSocket>,
    lost: Arc<AtomicU64>,
}

impl StatsD {
    fn connect(to: &str) -> io::Result<StatsD> {
        // Of the same family as the address it sends to.
        let any: [SocketAddr; 2] = [([0, 0, 0, 0], 0).into(), ([0_u16; 8], 0).into()];
        let connect = |from: SocketAddr| {
            let socket = UdpSocket::bind(from)?;
            socket.connect(to)?;
            // A full buffer loses a datagram, and never holds up who mutates.
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        let socket = connect(any[0]).or_else(|_: io::Error| connect(any[1]))?;
        Ok(StatsD {
            socket: Arc::new(socket),
            lost: Arc::default(),
        })
    }
}

impl Backend for StatsD {
    fn name(&self) -> &str {
        "statsd"
    }

    /// StatsD counts by itself, so it has to hear of each mutation.
    fn mirrors(&self) -> bool {
        true
    }

    fn declare(&self, series: &Declared<'_>) -> Result<Option<Box<dyn Mirror>>, BackendError> {
        // What separates the parts of a datagram can't be in one of them.
        let plain = |text: &str| text.replace(['|', ':', ',', '#', '\n'], "_");
        let tags = series.labels.iter();
        let tags: Vec<String> = tags.map(|(n, v)| format!("{n}:{}", plain(v))).collect();
        Ok(Some(Box::new(Line {
            name: series.name.to_owned(),
            tags: match tags.is_empty() {
                true => String::new(),
                false => format!("|#{}", tags.join(",")),
            },
            socket: self.socket.clone(),
            lost: self.lost.clone(),
        })))
    }

    /// Datagrams are gone when they are sent; only what was lost can be told.
    fn flush(&self, _deadline: Duration) -> Result<(), BackendError> {
        match self.lost.swap(0, Ordering::Relaxed) {
            0 => Ok(()),
            lost => Err(BackendError::other(
                self.name(),
                format!("{lost} datagrams could not be sent"),
            )),
        }
    }
}

/// One series.
#[derive(Debug)]
struct Line {
    name: String,
    tags: String,
    socket: Arc<UdpSocket>,
    lost: Arc<AtomicU64>,
}

impl Line {
    fn send(&self, value: impl std::fmt::Display, kind: &str) {
        let datagram = format!("{}:{value}|{kind}{}", self.name, self.tags);
        if self.socket.send(datagram.as_bytes()).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Mirror for Line {
    fn inc(&self, by: u64) {
        self.send(by, "c");
    }

    fn add(&self, by: f64) {
        self.send(by, "c");
    }

    fn set(&self, value: f64) {
        // StatsD knows no NaN, and a sign before a gauge's value means "by so much".
        if value.is_finite() && value < 0.0 {
            self.send(0, "g");
        }
        if value.is_finite() {
            self.send(value, "g");
        }
    }

    fn observe(&self, value: f64) {
        self.send(value, "h");
    }
}

/// Does a little work, reported by StatsD.
#[derive(Debug, Parser)]
struct Options {
    /// Address of a StatsD server. Without it, the datagrams are received here, and printed.
    #[arg(long)]
    to: Option<String>,
}

fn work(base: &BaseComponentMetrics) -> Result<(), Box<dyn std::error::Error>> {
    let container = &base.container;
    let jobs = container.create_counter_family("jobs_total", "Jobs done.", &[], &["queue"])?;
    let depth = container.create_gauge("queue_depth", "Jobs waiting.", &[])?;
    let seconds = container.create_histogram(
        "job_seconds",
        "Time for a job.",
        &[],
        metricbus::Buckets::default(),
    )?;
    depth.set(3.0);
    for i in 1..=3_u32 {
        jobs.with_label_values(&["fast"])?.inc();
        seconds.observe(f64::from(i) / 8.0);
        depth.dec(1.0);
    }
    depth.set(-2.5);
    container.shutdown(Duration::from_secs(1))?;
    Ok(())
}

fn run(options: &Options, out: &mut impl Write) -> Result<(), Box<dyn std::error::Error>> {
    let (to, here) = match &options.to {
        Some(to) => (to.clone(), None),
        None => {
            let here = UdpSocket::bind(("127.0.0.1", 0))?;
            (here.local_addr()?.to_string(), Some(here))
        }
    };

    // The backend joins those that METRICBUS_BACKEND can name: METRICBUS_BACKEND=statsd:127.0.0.1:8125.
    let backends = Backends::new().with("statsd", |choice| {
        let to = choice.argument.unwrap_or("127.0.0.1:8125");
        match StatsD::connect(to) {
            Ok(statsd) => Ok(Arc::new(statsd)),
            Err(error) => Err(BackendError::other("statsd", format!("{to}: {error}"))),
        }
    });
    let base = backends.from_vars(|name| match name {
        "METRICBUS_BACKEND" => Some(format!("statsd:{to}")),
        "METRICBUS_PREFIX" => Some("app".to_owned()),
        _ => None,
    })?;
    work(&base)?;

    if let Some(here) = here {
        here.set_nonblocking(true)?;
        let mut datagram = [0; 1_500];
        while let Ok(length) = here.recv(&mut datagram) {
            writeln!(out, "{}", String::from_utf8_lossy(&datagram[..length]))?;
        }
    }
    Ok(())
}

fn main() {
    if let Err(error) = run(&Options::parse(), &mut io::stdout()) {
        eprintln!("own_backend: {error}");
        std::process::exit(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statsd_server_gets_each_mutation() {
        let mut out = Vec::new();
        run(&Options { to: None }, &mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "app_queue_depth:3|g\n\
             app_jobs_total:1|c|#queue:fast\n\
             app_job_seconds:0.125|h\n\
             app_queue_depth:2|g\n\
             app_jobs_total:1|c|#queue:fast\n\
             app_job_seconds:0.25|h\n\
             app_queue_depth:1|g\n\
             app_jobs_total:1|c|#queue:fast\n\
             app_job_seconds:0.375|h\n\
             app_queue_depth:0|g\n\
             app_queue_depth:0|g\n\
             app_queue_depth:-2.5|g\n"
        );
    }

    #[test]
    fn an_address_that_is_none_is_an_error() {
        let options = Options {
            to: Some("nowhere".to_owned()),
        };
        let error = run(&options, &mut io::sink()).unwrap_err().to_string();
        assert!(
            error.starts_with("backend \"statsd\": nowhere: "),
            "{error}"
        );
    }
}
