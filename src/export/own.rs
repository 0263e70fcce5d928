//! What the exporter counts of itself: plain atomics, rendered as `metricbus_exporter_*`.

use std::{
    sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use super::{collect::Job, text::Format};
use crate::{FamilySnapshot, HistogramSnapshot, MetricKind, SampleValue, SeriesSnapshot, Value};

/// Upper bounds, in seconds: from a small bus to the ten seconds after which Prometheus gives up by default.
const DURATION_BOUNDS: [f64; 10] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 10.0,
];

#[derive(Default)]
pub(super) struct Own {
    scrapes_text: AtomicU64,
    scrapes_openmetrics: AtomicU64,
    scrapes_protobuf: AtomicU64,
    pub(super) scrapes_failed: AtomicU64,
    /// The last one counts what is above all bounds.
    durations: [AtomicU64; DURATION_BOUNDS.len() + 1],
    durations_sum_ns: AtomicU64,
    bytes: AtomicU64,
    pub(super) families_skipped: AtomicU64,
    pub(super) series_skipped: AtomicU64,
    pub(super) connections: AtomicU64,
    pub(super) connections_open: AtomicI64,
    pub(super) connections_delayed: AtomicU64,
    pub(super) connections_refused: AtomicU64,
    pub(super) connections_lost: AtomicU64,
    pub(super) connections_cut: AtomicU64,
    pub(super) timeouts_head: AtomicU64,
    pub(super) timeouts_idle: AtomicU64,
    pub(super) timeouts_write: AtomicU64,
    pub(super) accept_errors: AtomicU64,
}

impl Own {
    pub(super) fn scraped(&self, format: Format, took: Duration, bytes: usize) {
        match format {
            Format::Text => &self.scrapes_text,
            Format::OpenMetrics => &self.scrapes_openmetrics,
            Format::Protobuf => &self.scrapes_protobuf,
        }
        .fetch_add(1, Relaxed);
        let seconds = took.as_secs_f64();
        let bucket = DURATION_BOUNDS.partition_point(|&bound| bound < seconds);
        self.durations[bucket].fetch_add(1, Relaxed);
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.durations_sum_ns.fetch_add(ns, Relaxed);
        self.bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// All of them, sorted by name.
    pub(super) fn families<T>(&self, hooks: &[Job<()>], sources: &[Job<T>]) -> Vec<FamilySnapshot> {
        let total = |name: &str, help: &str, value: &AtomicU64| {
            family(
                name,
                help,
                MetricKind::Counter,
                vec![count(None, value.load(Relaxed))],
            )
        };
        // A registry that is merged is one more piece of foreign code with a deadline.
        let per_job = |name: &str,
                       help: &str,
                       of_hook: fn(&Job<()>) -> u64,
                       of_source: fn(&Job<T>) -> u64| {
            let hooks = hooks
                .iter()
                .map(|j| count(Some(("hook", &j.name)), of_hook(j)));
            let sources = sources
                .iter()
                .map(|j| count(Some(("hook", &j.name)), of_source(j)));
            family(
                name,
                help,
                MetricKind::Counter,
                hooks.chain(sources).collect(),
            )
        };
        vec![
            total(
                "metricbus_exporter_accept_errors_total",
                "Times that a connection could not be accepted, as when file descriptors have run out.",
                &self.accept_errors,
            ),
            total(
                "metricbus_exporter_connections_cut_total",
                "Connections still busy when the shutdown's deadline had passed, and cut.",
                &self.connections_cut,
            ),
            total(
                "metricbus_exporter_connections_delayed_total",
                "Times that the next connection had to wait because the most that may be open were.",
                &self.connections_delayed,
            ),
            total(
                "metricbus_exporter_connections_lost_total",
                "Connections that the client broke off.",
                &self.connections_lost,
            ),
            gauge(
                "metricbus_exporter_connections_open",
                "Connections open now.",
                self.connections_open.load(Relaxed) as f64,
            ),
            total(
                "metricbus_exporter_connections_refused_total",
                "Connections closed because what came in was not HTTP, or its head too large.",
                &self.connections_refused,
            ),
            family(
                "metricbus_exporter_connections_timed_out_total",
                "Connections closed for being too slow, by what was waited for.",
                MetricKind::Counter,
                vec![
                    count(Some(("phase", "head")), self.timeouts_head.load(Relaxed)),
                    count(Some(("phase", "idle")), self.timeouts_idle.load(Relaxed)),
                    count(Some(("phase", "write")), self.timeouts_write.load(Relaxed)),
                ],
            ),
            total(
                "metricbus_exporter_connections_total",
                "Connections accepted.",
                &self.connections,
            ),
            per_job(
                "metricbus_exporter_hook_failures_total",
                "Runs of collect hooks and merged registries that panicked or could not be started.",
                |job| job.failures.load(Relaxed),
                |job| job.failures.load(Relaxed),
            ),
            per_job(
                "metricbus_exporter_hook_skips_total",
                "Scrapes that went without a collect hook or merged registry, since it was still running past its deadline.",
                |job| job.skips.load(Relaxed),
                |job| job.skips.load(Relaxed),
            ),
            per_job(
                "metricbus_exporter_hook_timeouts_total",
                "Runs of collect hooks and merged registries that were not done by their deadline.",
                |job| job.timeouts.load(Relaxed),
                |job| job.timeouts.load(Relaxed),
            ),
            total(
                "metricbus_exporter_response_bytes_total",
                "Bytes of answers to scrapes, compressed where they were.",
                &self.bytes,
            ),
            FamilySnapshot {
                unit: Some("seconds".to_owned()),
                ..family(
                    "metricbus_exporter_scrape_duration_seconds",
                    "Time from a scrape's request to its answer, without sending it.",
                    MetricKind::Histogram,
                    vec![SeriesSnapshot {
                        labels: Vec::new(),
                        value: SampleValue::Histogram(self.durations()),
                    }],
                )
            },
            total(
                "metricbus_exporter_scrape_failures_total",
                "Scrapes answered with an error.",
                &self.scrapes_failed,
            ),
            family(
                "metricbus_exporter_scrapes_total",
                "Scrapes answered.",
                MetricKind::Counter,
                vec![
                    count(
                        Some(("format", "openmetrics")),
                        self.scrapes_openmetrics.load(Relaxed),
                    ),
                    count(
                        Some(("format", "protobuf")),
                        self.scrapes_protobuf.load(Relaxed),
                    ),
                    count(Some(("format", "text")), self.scrapes_text.load(Relaxed)),
                ],
            ),
            total(
                "metricbus_exporter_skipped_families_total",
                "Families left out of a scrape because their name was taken, or could not be exposed.",
                &self.families_skipped,
            ),
            total(
                "metricbus_exporter_skipped_series_total",
                "Series of merged registries left out of a scrape because they could not be exposed.",
                &self.series_skipped,
            ),
        ]
    }

    fn durations(&self) -> HistogramSnapshot {
        let mut total = 0;
        let cumulative = self.durations.iter().map(|bucket| {
            total += bucket.load(Relaxed);
            total
        });
        let bounds = DURATION_BOUNDS.into_iter().chain([f64::INFINITY]);
        let buckets = bounds.zip(cumulative).collect();
        HistogramSnapshot {
            buckets,
            sum: self.durations_sum_ns.load(Relaxed) as f64 * 1e-9,
            count: total,
        }
    }
}

/// A counter family of one series.
#[cfg(target_os = "linux")]
pub(super) fn counter(name: &str, help: &str, value: f64) -> FamilySnapshot {
    let value = SampleValue::Counter(Value::F64(value));
    family(
        name,
        help,
        MetricKind::Counter,
        vec![SeriesSnapshot {
            labels: Vec::new(),
            value,
        }],
    )
}

/// A gauge family of one series.
pub(super) fn gauge(name: &str, help: &str, value: f64) -> FamilySnapshot {
    let value = SampleValue::Gauge(value);
    family(
        name,
        help,
        MetricKind::Gauge,
        vec![SeriesSnapshot {
            labels: Vec::new(),
            value,
        }],
    )
}

fn family(name: &str, help: &str, kind: MetricKind, series: Vec<SeriesSnapshot>) -> FamilySnapshot {
    FamilySnapshot {
        name: name.to_owned(),
        help: help.to_owned(),
        unit: None,
        kind,
        series,
    }
}

fn count(label: Option<(&str, &str)>, value: u64) -> SeriesSnapshot {
    SeriesSnapshot {
        labels: label
            .into_iter()
            .map(|(n, v)| (n.to_owned(), v.to_owned()))
            .collect(),
        value: SampleValue::Counter(Value::U64(value)),
    }
}
