//! What a forwarder counts of itself: plain atomics, rendered as `metricbus_nats_*` on its bus.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::{Core, ForwarderStatus, FramesStatus, OutboxStatus, rules_in::RulesIn};
use crate::{
    FamilySnapshot, MetricKind, SampleValue, SeriesSnapshot, Value,
    nats::connection::ConnectionState, own::Counts, sync::lock,
};

/// Counted by all parts of a forwarder.
#[derive(Default)]
pub(crate) struct Stats {
    pub(crate) sent: AtomicU64,
    pub(crate) retried: AtomicU64,
    pub(crate) confirmed: AtomicU64,
    pub(crate) looped: AtomicU64,
    pub(crate) too_large: AtomicU64,
    pub(crate) unstored: AtomicU64,
    pub(crate) publish_errors: AtomicU64,
    pub(crate) births: AtomicU64,
    pub(crate) heartbeats: AtomicU64,
    pub(crate) hellos: AtomicU64,
    pub(crate) frames_sent: AtomicU64,
    pub(crate) frame_bytes: AtomicU64,
    pub(crate) frames_dropped: AtomicU64,
    pub(crate) frames_merged: AtomicU64,
    pub(crate) frames_skipped: AtomicU64,
    /// Points that are larger than a message may be.
    pub(crate) points_too_large: AtomicU64,
    pub(crate) queries_answered: AtomicU64,
    pub(crate) queries_failed: AtomicU64,
    pub(crate) rules_accepted: AtomicU64,
    pub(crate) rules_refused: AtomicU64,
}

impl Core {
    pub(super) fn status(&self) -> ForwarderStatus {
        let get = |counter: &AtomicU64| counter.load(Relaxed);
        let connection = self.connection.status();
        let (last_error, last_error_at) = lock(&self.last_error).clone().unzip();
        let stats = &self.stats;
        let desk = lock(&self.desk);
        let outbox = &desk.outbox;
        ForwarderStatus {
            source: self.source.clone(),
            boot: self.epoch,
            connection,
            delivery: desk.delivery_words(),
            outbox: OutboxStatus {
                held: outbox.held(),
                limit: outbox.items_max(),
                bytes: outbox.bytes(),
                unconfirmed: outbox.unconfirmed(),
                oldest_unconfirmed: outbox
                    .oldest_unconfirmed()
                    .map(|(_, since)| self.clock.now().since(since)),
                sent: get(&stats.sent),
                retried: get(&stats.retried),
                confirmed: get(&stats.confirmed),
                dropped: outbox.dropped(),
                too_large: get(&stats.too_large),
                unstored: get(&stats.unstored),
                looped: get(&stats.looped),
            },
            frames: FramesStatus {
                forwardings: self.frames.forwardings(),
                series: self.frames.series() as u64,
                sent: get(&stats.frames_sent),
                bytes: get(&stats.frame_bytes),
                dropped: get(&stats.frames_dropped),
                merged: get(&stats.frames_merged),
                too_large: get(&stats.points_too_large),
                skipped: get(&stats.frames_skipped),
            },
            rules_in: self.rules_in.as_ref().map(RulesIn::status),
            last_error,
            last_error_at,
        }
    }
}

/// The families of one forwarder, with its source in front.
struct Page {
    labels: Vec<(String, String)>,
    families: Vec<FamilySnapshot>,
}

impl Page {
    fn family<'a>(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricKind,
        series: impl IntoIterator<Item = (Option<(&'a str, &'a str)>, SampleValue)>,
    ) {
        let series = series.into_iter().map(|(label, value)| {
            let more = label.map(|(name, value)| (name.to_owned(), value.to_owned()));
            let labels = self.labels.iter().cloned().chain(more).collect();
            SeriesSnapshot { labels, value }
        });
        let series = series.collect();
        self.families.push(FamilySnapshot {
            name: format!("metricbus_nats_{name}"),
            help: help.to_owned(),
            unit: None,
            kind,
            series,
        });
    }

    fn total(&mut self, name: &str, help: &str, value: u64) {
        let value = SampleValue::Counter(Value::U64(value));
        self.family(name, help, MetricKind::Counter, [(None, value)]);
    }

    /// One total for each reason.
    fn totals(&mut self, name: &str, help: &str, by: [(&str, u64); 2]) {
        let series = by.map(|(reason, value)| {
            let value = SampleValue::Counter(Value::U64(value));
            (Some(("reason", reason)), value)
        });
        self.family(name, help, MetricKind::Counter, series);
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        let value = SampleValue::Gauge(value);
        self.family(name, help, MetricKind::Gauge, [(None, value)]);
    }
}

impl Counts for Core {
    fn families(&self) -> Vec<FamilySnapshot> {
        let status = self.status();
        let get = |counter: &AtomicU64| counter.load(Relaxed);
        let (stats, outbox, frames) = (&self.stats, status.outbox, status.frames);
        let bytes_max = lock(&self.desk).outbox.bytes_max();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let mut page = Page {
            labels: vec![
                pair("namespace", &self.source.namespace),
                pair("component", &self.source.component),
                pair("instance", &self.source.instance),
            ],
            families: Vec::new(),
        };
        page.total(
            "alerts_confirmed_total",
            "Alerts that the server has.",
            outbox.confirmed,
        );
        page.totals(
            "alerts_dropped_total",
            "Alerts lost: the outbox was full, or they are larger than the server or the outbox takes.",
            [("full", outbox.dropped), ("too_large", outbox.too_large)],
        );
        page.total(
            "alerts_looped_total",
            "Alerts refused because they came from another process.",
            outbox.looped,
        );
        page.total(
            "alerts_retried_total",
            "Times that an alert was sent again.",
            outbox.retried,
        );
        page.total(
            "alerts_sent_total",
            "Times that an alert was sent.",
            outbox.sent,
        );
        page.total(
            "alerts_unstored_total",
            "Alerts that were sent to a stream and not taken by it: only those who listened have them.",
            outbox.unstored,
        );
        page.total(
            "births_total",
            "Times that it was said that this source is there.",
            get(&stats.births),
        );
        let states = ConnectionState::ALL.map(|state| {
            let is = f64::from(u8::from(state == status.connection.state));
            (Some(("state", state.as_str())), SampleValue::Gauge(is))
        });
        page.family(
            "connection_state",
            "Where the connection stands: 1 for the state it is in.",
            MetricKind::Gauge,
            states,
        );
        page.total(
            "connects_total",
            "Times that it was connected.",
            status.connection.connects,
        );
        page.total(
            "frame_bytes_total",
            "Bytes of the frames of updates that were sent.",
            frames.bytes,
        );
        page.total(
            "frame_points_too_large_total",
            "Updates left out because they are larger than the server takes.",
            get(&stats.points_too_large),
        );
        page.total(
            "frames_dropped_total",
            "Frames of updates not sent, since there was no connection or it did not take them; the next holds what they held.",
            frames.dropped,
        );
        page.total(
            "frames_merged_total",
            "Times that a forwarding waited because the source had sent as many frames as it may.",
            frames.merged,
        );
        page.total("frames_sent_total", "Frames of updates sent.", frames.sent);
        page.total(
            "heartbeats_total",
            "Heartbeats sent.",
            get(&stats.heartbeats),
        );
        page.gauge(
            "outbox_bytes",
            "Bytes of the alerts in the outbox, by estimate.",
            outbox.bytes as f64,
        );
        page.gauge(
            "outbox_bytes_limit",
            "Bytes of alerts that the outbox holds at most.",
            bytes_max as f64,
        );
        page.gauge(
            "outbox_held",
            "Alerts in the outbox, confirmed or not.",
            outbox.held as f64,
        );
        page.gauge(
            "outbox_limit",
            "Alerts that the outbox holds at most.",
            outbox.limit as f64,
        );
        let age = outbox.oldest_unconfirmed.unwrap_or_default();
        page.gauge(
            "outbox_oldest_unconfirmed_seconds",
            "For how long the oldest alert that is not confirmed is in the outbox; 0: there is none.",
            age.as_secs_f64(),
        );
        page.gauge(
            "outbox_unconfirmed",
            "Alerts in the outbox that are not confirmed.",
            outbox.unconfirmed as f64,
        );
        page.total(
            "permission_denials_total",
            "Publications and subscriptions that the server did not permit.",
            status.connection.denied,
        );
        page.total(
            "publish_errors_total",
            "Messages that the client or a stream did not take.",
            get(&stats.publish_errors),
        );
        page.total(
            "queries_answered_total",
            "Questions answered.",
            get(&stats.queries_answered),
        );
        page.total(
            "queries_failed_total",
            "Questions answered with an error.",
            get(&stats.queries_failed),
        );
        page.total(
            "rules_accepted_total",
            "Rules taken from others.",
            get(&stats.rules_accepted),
        );
        page.total(
            "rules_refused_total",
            "Rules of others that can't be used here.",
            get(&stats.rules_refused),
        );
        page.total(
            "frames_skipped_total",
            "Sequences left out so that consumers ask for a snapshot: more series had gone than could be told.",
            frames.skipped,
        );
        if let Some(rules) = status.rules_in {
            page.gauge(
                "rules_in_force",
                "Rules of others that are in force.",
                rules.in_force as f64,
            );
            page.gauge(
                "rules_not_in_force",
                "Rules of others that are not in force: refused, or behind another.",
                rules.refused.len() as f64,
            );
        }
        page.gauge("series", "Series that are forwarded.", frames.series as f64);
        page.total(
            "subscription_drops_total",
            "Messages dropped because they were not read as fast as they came.",
            status.connection.slow,
        );
        page.families
    }
}
