//! What the bus counts of itself, exposed as `metricbus_*`. Kept off the bus, so that a tap on everything does not feed
//! itself.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    desc::MetricKind,
    series::Value,
    snapshot::{FamilySnapshot, SampleValue, SeriesSnapshot},
};

/// Amounts that counters of this process refused. Process-wide: a counter does not know its bus.
pub(crate) static REFUSED_AMOUNTS: AtomicU64 = AtomicU64::new(0);

/// Writes to series that had been removed. Process-wide: a removed series has no bus.
pub(crate) static LATE_WRITES: AtomicU64 = AtomicU64::new(0);

/// A number that no other watch or listener of this process has. Starts above [`TOUCH_ID`](crate::metric).
pub(crate) fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Counts one more.
pub(crate) fn bump(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

#[derive(Default)]
pub(crate) struct Stats {
    overflowed: Mutex<BTreeMap<Arc<str>, u64>>,
    expired: AtomicU64,
    pub(crate) delivered: AtomicU64,
    /// By subscriptions that have ended.
    dropped: AtomicU64,
    pub(crate) panicked: AtomicU64,
    pub(crate) detached: AtomicU64,
    pub(crate) hung: AtomicU64,
    pub(crate) hooks_failed: AtomicU64,
    pub(crate) hooks_late: AtomicU64,
    pub(crate) inline_overruns: AtomicU64,
    pub(crate) rule_state_errors: AtomicU64,
    pub(crate) derived_cut_off: AtomicU64,
    /// Alerts that the service behind a subscription or a layer did not take.
    #[cfg(feature = "tower")]
    pub(crate) delivery_errors: AtomicU64,
    /// By the layer's name.
    #[cfg(feature = "tower")]
    layers: Mutex<BTreeMap<&'static str, Arc<LayerCounts>>>,
}

/// What all layers of one kind count.
#[cfg(feature = "tower")]
#[derive(Default)]
pub(crate) struct LayerCounts {
    pub(crate) delivered: AtomicU64,
    pub(crate) passed_over: AtomicU64,
    pub(crate) dropped: AtomicU64,
    pub(crate) forgotten: AtomicU64,
    pub(crate) errors: AtomicU64,
}

impl Stats {
    #[cfg(feature = "tower")]
    pub(crate) fn layer(&self, name: &'static str) -> Arc<LayerCounts> {
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        layers.entry(name).or_default().clone()
    }

    #[cfg(feature = "tower")]
    fn layer_families(&self) -> Vec<FamilySnapshot> {
        type Count = fn(&LayerCounts) -> &AtomicU64;
        let layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        let family = |name: &str, help: &str, count: Count| FamilySnapshot {
            name: name.to_owned(),
            help: help.to_owned(),
            unit: None,
            kind: MetricKind::Counter,
            series: layers
                .iter()
                .map(|(layer, counts)| SeriesSnapshot {
                    labels: vec![("layer".to_owned(), (*layer).to_owned())],
                    value: SampleValue::Counter(Value::U64(count(counts).load(Ordering::Relaxed))),
                })
                .collect(),
        };
        let errors = counter(
            "metricbus_alert_delivery_errors_total",
            "Alerts that failed in the service they were sent to.",
            self.delivery_errors.load(Ordering::Relaxed),
        );
        if layers.is_empty() {
            return vec![errors];
        }
        vec![
            errors,
            family(
                "metricbus_alert_layer_delivered_total",
                "Deliveries that a layer has made and that were taken; of a rollup they are batches.",
                |counts| &counts.delivered,
            ),
            family(
                "metricbus_alert_layer_passed_over_total",
                "Alerts that a layer did not send on, as it is meant to.",
                |counts| &counts.passed_over,
            ),
            family(
                "metricbus_alert_layer_dropped_total",
                "Alerts that were lost in a layer: its queue was full, what is superseded first, or what it sends to had ended.",
                |counts| &counts.dropped,
            ),
            family(
                "metricbus_alert_layer_forgotten_total",
                "Rules and groups that a layer forgot because there were too many.",
                |counts| &counts.forgotten,
            ),
        ]
    }

    pub(crate) fn overflowed(&self, metric: &Arc<str>) {
        let mut overflowed = self
            .overflowed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *overflowed.entry(metric.clone()).or_default() += 1;
    }

    pub(crate) fn dropped(&self, n: u64) {
        self.dropped.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn expired(&self, n: u64) {
        self.expired.fetch_add(n, Ordering::Relaxed);
    }

    /// `dropped`: by the subscriptions that live.
    pub(crate) fn families(&self, dropped: u64) -> Vec<FamilySnapshot> {
        let total = |name: &str, help: &str, value: &AtomicU64| {
            counter(name, help, value.load(Ordering::Relaxed))
        };
        let overflowed = self
            .overflowed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let per_metric = overflowed
            .iter()
            .map(|(metric, n)| SeriesSnapshot {
                labels: vec![("metric".to_owned(), metric.to_string())],
                value: SampleValue::Counter(Value::U64(*n)),
            })
            .collect();
        #[cfg_attr(not(feature = "tower"), expect(unused_mut))]
        let mut families = vec![
            total(
                "metricbus_callback_panics_total",
                "Callbacks that panicked; in Python, calls that raised.",
                &self.panicked,
            ),
            total(
                "metricbus_callbacks_hung_total",
                "Calls of callbacks that were given up, because all threads for callbacks were busy and this one for the longest time.",
                &self.hung,
            ),
            total(
                "metricbus_events_delivered_total",
                "Events handed to callbacks and streams.",
                &self.delivered,
            ),
            counter(
                "metricbus_events_dropped_total",
                "Events dropped from full mailboxes: what a later one of the same series supersedes, and of taps the oldest.",
                dropped + self.dropped.load(Ordering::Relaxed),
            ),
            total(
                "metricbus_hook_failures_total",
                "Hooks of other languages that failed before a scrape, a push or an export.",
                &self.hooks_failed,
            ),
            total(
                "metricbus_hook_timeouts_total",
                "Hooks of other languages that were not done by their deadline before a scrape, a push or an export.",
                &self.hooks_late,
            ),
            total(
                "metricbus_derived_cut_off_total",
                "Values of derived gauges that were not set, since setting the gauge had led to them over too many steps.",
                &self.derived_cut_off,
            ),
            total(
                "metricbus_inline_overruns_total",
                "Times that inline callbacks set each other off so often that the rest went to the dispatcher.",
                &self.inline_overruns,
            ),
            total(
                "metricbus_late_writes_total",
                "Writes to series that had been removed or had expired; they are lost. Of the whole process.",
                &LATE_WRITES,
            ),
            total(
                "metricbus_refused_amounts_total",
                "Amounts that counters refused: negative, NaN or infinite. Of the whole process.",
                &REFUSED_AMOUNTS,
            ),
            total(
                "metricbus_rule_state_errors_total",
                "Times that the state of rules could not be written to its file.",
                &self.rule_state_errors,
            ),
            total(
                "metricbus_series_expired_total",
                "Series removed because they had no mutation for too long.",
                &self.expired,
            ),
            FamilySnapshot {
                name: "metricbus_series_overflowed_total".to_owned(),
                help: "Look-ups of new label values beyond a family's cardinality limit."
                    .to_owned(),
                unit: None,
                kind: MetricKind::Counter,
                series: per_metric,
            },
            total(
                "metricbus_subscriptions_detached_total",
                "Subscriptions detached because their callback panicked time after time.",
                &self.detached,
            ),
        ];
        #[cfg(feature = "tower")]
        families.extend(self.layer_families());
        families
    }
}

pub(crate) fn counter(name: &str, help: &str, value: u64) -> FamilySnapshot {
    one(
        name,
        help,
        MetricKind::Counter,
        SampleValue::Counter(Value::U64(value)),
    )
}

pub(crate) fn gauge(name: &str, help: &str, value: f64) -> FamilySnapshot {
    one(name, help, MetricKind::Gauge, SampleValue::Gauge(value))
}

fn one(name: &str, help: &str, kind: MetricKind, value: SampleValue) -> FamilySnapshot {
    FamilySnapshot {
        name: name.to_owned(),
        help: help.to_owned(),
        unit: None,
        kind,
        series: vec![SeriesSnapshot {
            labels: Vec::new(),
            value,
        }],
    }
}
