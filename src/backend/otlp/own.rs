//! What an exporter counts of itself: plain atomics, shown as `metricbus_otlp_*` on its bus.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::SystemTime,
};

use super::OtlpStatus;
use crate::{
    FamilySnapshot, MetricKind, SampleValue, SeriesSnapshot, Value, own::Counts, sync::lock,
};

/// Why points were dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dropped {
    /// The collector will not have them.
    Refused,
    /// There was no room for them in the queue.
    Full,
    /// They could not be delivered for too long.
    GivenUp,
    /// The exporter ended before they were delivered.
    Ended,
}

impl Dropped {
    const ALL: [Dropped; 4] = [
        Dropped::Refused,
        Dropped::Full,
        Dropped::GivenUp,
        Dropped::Ended,
    ];

    fn word(self) -> &'static str {
        match self {
            Dropped::Refused => "refused",
            Dropped::Full => "queue_full",
            Dropped::GivenUp => "given_up",
            Dropped::Ended => "ended",
        }
    }
}

/// Counted by an exporter's thread, and read by anybody.
pub(super) struct Stats {
    /// Tells the exporters of a process apart.
    number: u64,
    endpoint: String,
    queue_bytes_max: u64,
    pub(super) running: AtomicBool,
    pub(super) exported: AtomicU64,
    /// By the collector, as part of a request that it took.
    pub(super) rejected: AtomicU64,
    dropped: [AtomicU64; 4],
    pub(super) requests: AtomicU64,
    pub(super) retries: AtomicU64,
    pub(super) collections: AtomicU64,
    pub(super) postponed: AtomicU64,
    pub(super) queue_bytes: AtomicU64,
    pub(super) queue_points: AtomicU64,
    /// That the thread has not heard of yet.
    pub(super) flushes: AtomicUsize,
    last: Mutex<Last>,
}

#[derive(Default)]
struct Last {
    success: Option<SystemTime>,
    error: Option<String>,
}

impl Stats {
    pub(super) fn new(endpoint: String, queue_bytes_max: usize) -> Stats {
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        Stats {
            number: NUMBER.fetch_add(1, Relaxed),
            endpoint,
            queue_bytes_max: queue_bytes_max as u64,
            running: AtomicBool::new(false),
            exported: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
            dropped: [const { AtomicU64::new(0) }; 4],
            requests: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            collections: AtomicU64::new(0),
            postponed: AtomicU64::new(0),
            queue_bytes: AtomicU64::new(0),
            queue_points: AtomicU64::new(0),
            flushes: AtomicUsize::new(0),
            last: Mutex::default(),
        }
    }

    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub(super) fn drop_points(&self, why: Dropped, points: u64) {
        self.dropped[why as usize].fetch_add(points, Relaxed);
    }

    /// Points that will never be at the collector, for whatever reason.
    pub(super) fn lost(&self) -> u64 {
        let dropped: u64 = self.dropped.iter().map(|n| n.load(Relaxed)).sum();
        dropped + self.rejected.load(Relaxed)
    }

    pub(super) fn succeeded(&self, at: SystemTime) {
        lock(&self.last).success = Some(at);
    }

    /// `false`: the same was said before.
    pub(super) fn failed(&self, why: &str) -> bool {
        let mut last = lock(&self.last);
        if last.error.as_deref() == Some(why) {
            return false;
        }
        last.error = Some(why.to_owned());
        true
    }

    pub(super) fn last_error(&self) -> Option<String> {
        lock(&self.last).error.clone()
    }

    pub(super) fn status(&self) -> OtlpStatus {
        let get = |counter: &AtomicU64| counter.load(Relaxed);
        let last = lock(&self.last);
        OtlpStatus {
            endpoint: self.endpoint.clone(),
            running: self.running.load(Relaxed),
            points_exported: get(&self.exported),
            points_rejected: get(&self.rejected),
            points_dropped: self.dropped.iter().map(get).sum(),
            requests: get(&self.requests),
            retries: get(&self.retries),
            collections: get(&self.collections),
            collections_postponed: get(&self.postponed),
            queue_bytes: get(&self.queue_bytes),
            queue_points: get(&self.queue_points),
            last_success: last.success,
            last_error: last.error.clone(),
        }
    }
}

impl Counts for Stats {
    fn families(&self) -> Vec<FamilySnapshot> {
        let get = |counter: &AtomicU64| counter.load(Relaxed);
        let labels = |more: Option<(&str, &str)>| {
            [
                ("exporter", &*self.number.to_string()),
                ("endpoint", &*self.endpoint),
            ]
            .into_iter()
            .chain(more)
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect::<Vec<_>>()
        };
        let family = |name: &str, help: &str, kind, series| FamilySnapshot {
            name: format!("metricbus_otlp_{name}"),
            help: help.to_owned(),
            unit: None,
            kind,
            series,
        };
        let one = |value| {
            let labels = labels(None);
            vec![SeriesSnapshot { labels, value }]
        };
        let total = |name: &str, help: &str, value: &AtomicU64| {
            let value = SampleValue::Counter(Value::U64(get(value)));
            family(name, help, MetricKind::Counter, one(value))
        };
        let gauge = |name: &str, help: &str, value: f64| {
            family(
                name,
                help,
                MetricKind::Gauge,
                one(SampleValue::Gauge(value)),
            )
        };
        let dropped = Dropped::ALL.map(|why| SeriesSnapshot {
            labels: labels(Some(("reason", why.word()))),
            value: SampleValue::Counter(Value::U64(get(&self.dropped[why as usize]))),
        });
        let mut all = vec![
            total(
                "points_exported_total",
                "Points that the collector took.",
                &self.exported,
            ),
            total(
                "points_rejected_total",
                "Points that the collector left out of a request that it took.",
                &self.rejected,
            ),
            family(
                "points_dropped_total",
                "Points that did not get to the collector, by reason.",
                MetricKind::Counter,
                dropped.into(),
            ),
            total(
                "requests_total",
                "Requests to the collector.",
                &self.requests,
            ),
            total(
                "retries_total",
                "Requests that had to be tried again.",
                &self.retries,
            ),
            total(
                "collections_total",
                "Times that all metrics were read.",
                &self.collections,
            ),
            total(
                "collections_postponed_total",
                "Times that metrics were not read, or not all at once, as the queue had no room.",
                &self.postponed,
            ),
            gauge(
                "queue_bytes",
                "Bytes that wait to be sent.",
                get(&self.queue_bytes) as f64,
            ),
            gauge(
                "queue_limit_bytes",
                "Bytes that may wait to be sent.",
                self.queue_bytes_max as f64,
            ),
        ];
        let success = lock(&self.last).success;
        if let Some(since) = success.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok()) {
            all.push(gauge(
                "last_success_timestamp_seconds",
                "When the collector last took a request.",
                since.as_secs_f64(),
            ));
        }
        all
    }
}
