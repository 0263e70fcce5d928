//! `otlp_export_100k`: 100 000 counters with three labels to an OTLP receiver over HTTP, from the cells to its answer to the last
//! request.
//!
//! - Subject: `OtlpExporter::flush`, uncompressed, in batches as it makes them.
//! - Floor: the same bytes, kept from an export before, sent over one connection.
//! - Peer: the messages of `opentelemetry-proto` made of a snapshot by `prost`, as an exporter over read-only data has to, in one
//!   request; sent like the floor.
//!
//! The receiver is a thread of this process that reads a request and says that all is well; all three pay for it.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use metricbus::{
    Counter, Desc, MetricBus, SampleValue, Value,
    backend::{OtlpExporter, OtlpOptions},
};
use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value},
    metrics::v1::{
        AggregationTemporality, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum,
        metric, number_data_point,
    },
};
use prost::Message;

use crate::{
    Failure,
    harness::{Effort, Lane, Plan, Role, interleave},
    labels::{LABELS, Labels},
    report::{Bar, Figures, Unit},
};

const SERIES: usize = 100_000;

const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) fn export(effort: Effort) -> Result<Figures, Failure> {
    let receiver = Receiver::start()?;
    let bus = MetricBus::new();
    let desc = Desc::new("requests_total", "Requests served.").labels(LABELS);
    let family = bus.family::<Counter>(desc.series_max(SERIES))?;
    let mut labels = Labels::default();
    for i in 0..SERIES {
        labels.number(i);
        family.with_label_values(&labels.values())?.inc_by(i as u64);
    }
    let options = OtlpOptions::new()
        .endpoint(format!("http://{}", receiver.address))
        .interval(Duration::from_secs(3_600));
    let exporter = OtlpExporter::start(&bus, options)?;
    receiver.keep();
    exporter.flush(DEADLINE)?;
    let kept = receiver.kept();
    let bytes = kept.iter().map(Vec::len).sum::<usize>();
    let requests = kept.len();
    if exporter.status().points_exported != SERIES as u64 {
        return Err(format!("{:?}", exporter.status()).into());
    }

    let mut floor = Sender::connect(receiver.address)?;
    let mut peer = Sender::connect(receiver.address)?;
    let lanes = &mut [
        Lane::new(Role::Subject, "metricbus", |n| {
            let start = Instant::now();
            for _ in 0..n {
                exporter.flush(DEADLINE)?;
            }
            Ok(start.elapsed())
        }),
        Lane::new(Role::Floor, "bytes made before", |n| {
            let start = Instant::now();
            for _ in 0..n {
                for body in &kept {
                    floor.send(body)?;
                }
            }
            Ok(start.elapsed())
        }),
        Lane::new(Role::Peer, "opentelemetry-proto", |n| {
            let start = Instant::now();
            for _ in 0..n {
                peer.send(&request_of(&bus).encode_to_vec())?;
            }
            Ok(start.elapsed())
        }),
    ];
    let plan = Plan {
        rounds: effort.pick(2, 9),
        round: effort.pick(Duration::from_millis(1), Duration::from_millis(20)),
    };
    let rounds = interleave(plan, lanes)?;
    exporter.shutdown(DEADLINE)?;
    let mut figures = Figures::new("otlp_export_100k", Unit::Ns, rounds, Bar::Peer(0.5));
    figures.more("request_bytes", bytes as f64);
    figures.more("requests", requests as f64);
    Ok(figures)
}

/// What one writes who has `opentelemetry-proto` and a snapshot.
fn request_of(bus: &MetricBus) -> ExportMetricsServiceRequest {
    let text = |text: &str| AnyValue {
        value: Some(any_value::Value::StringValue(text.to_owned())),
    };
    let metrics = bus.snapshot().families.into_iter().map(|family| {
        let points = family.series.iter().map(|series| NumberDataPoint {
            attributes: series
                .labels
                .iter()
                .map(|(key, value)| KeyValue {
                    key: key.clone(),
                    value: Some(text(value)),
                    ..KeyValue::default()
                })
                .collect(),
            start_time_unix_nano: 1,
            time_unix_nano: 2,
            value: match series.value {
                SampleValue::Counter(Value::U64(value)) => {
                    Some(number_data_point::Value::AsInt(value as i64))
                }
                _ => None,
            },
            ..NumberDataPoint::default()
        });
        Metric {
            name: family.name,
            description: family.help,
            data: Some(metric::Data::Sum(Sum {
                data_points: points.collect(),
                aggregation_temporality: AggregationTemporality::Cumulative.into(),
                is_monotonic: true,
            })),
            ..Metric::default()
        }
    });
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics {
            scope_metrics: vec![ScopeMetrics {
                metrics: metrics.collect(),
                ..ScopeMetrics::default()
            }],
            ..ResourceMetrics::default()
        }],
    }
}

/// Posts bodies over one connection.
struct Sender {
    stream: BufReader<TcpStream>,
    address: SocketAddr,
}

impl Sender {
    fn connect(address: SocketAddr) -> io::Result<Sender> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        Ok(Sender {
            stream: BufReader::new(stream),
            address,
        })
    }

    fn send(&mut self, body: &[u8]) -> io::Result<()> {
        let head = format!(
            "POST /v1/metrics HTTP/1.1\r\nhost: {}\r\ncontent-type: application/x-protobuf\r\ncontent-length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        let stream = self.stream.get_mut();
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)?;
        match read_head(&mut self.stream)? {
            Some(_) => Ok(()),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// The length of what follows a head; `None` at the end.
fn read_head(from: &mut impl BufRead) -> io::Result<Option<usize>> {
    let mut length = 0;
    let mut line = String::new();
    loop {
        line.clear();
        if from.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let header = line.trim_end();
        if header.is_empty() {
            return Ok(Some(length));
        }
        if let Some((name, value)) = header.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().map_err(io::Error::other)?;
        }
    }
}

/// Reads requests, and answers each that all is well.
struct Receiver {
    address: SocketAddr,
    kept: Arc<Mutex<Option<Vec<Vec<u8>>>>>,
}

impl Receiver {
    /// Its threads end with the connections.
    fn start() -> io::Result<Receiver> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        let kept = Arc::new(Mutex::new(None));
        let receiver = Receiver {
            address,
            kept: kept.clone(),
        };
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let kept = kept.clone();
                thread::spawn(move || serve(stream, &kept));
            }
        });
        Ok(receiver)
    }

    /// From here on bodies are kept.
    fn keep(&self) {
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(Vec::new());
    }

    /// Those kept, and no more of them.
    fn kept(&self) -> Vec<Vec<u8>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.take().unwrap_or_default()
    }
}

fn serve(stream: TcpStream, kept: &Mutex<Option<Vec<Vec<u8>>>>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    let mut body = Vec::new();
    while let Some(length) = read_head(&mut stream)? {
        body.resize(length, 0);
        stream.read_exact(&mut body)?;
        if let Some(kept) = &mut *kept.lock().unwrap_or_else(PoisonError::into_inner) {
            kept.push(body.clone());
        }
        stream.get_mut().write_all(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n",
        )?;
    }
    Ok(())
}
