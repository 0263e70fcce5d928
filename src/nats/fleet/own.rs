//! What a fleet counts of itself: `metricbus_fleet_*` on its bus.

use super::Shared;
use crate::{
    FamilySnapshot, MetricKind, SampleValue, SeriesSnapshot, Value,
    nats::connection::ConnectionState,
    own::Counts,
    stats::{counter, gauge},
    sync::lock,
};

impl Counts for Shared {
    fn families(&self) -> Vec<FamilySnapshot> {
        of(self)
    }
}

fn of(shared: &Shared) -> Vec<FamilySnapshot> {
    let (totals, ignored) = {
        let table = lock(&shared.table);
        (table.totals(), table.ignored().collect::<Vec<_>>())
    };
    let connection = shared.asker.connection.status();
    let (firing, forgotten) = shared.alerts.counts();
    let by_state = [
        ("live", totals.live),
        ("stale", totals.stale),
        ("gone", totals.gone),
    ];
    vec![
        labelled(
            "metricbus_fleet_sources",
            "Sources that the fleet knows, by state.",
            "state",
            MetricKind::Gauge,
            by_state.map(|(state, n)| (state, SampleValue::Gauge(n as f64))),
        ),
        gauge(
            "metricbus_fleet_sources_unsynced",
            "Sources of which something is missing: not yet taken over, or being mended.",
            totals.unsynced as f64,
        ),
        labelled(
            "metricbus_fleet_connection",
            "1 for the state of the fleet's connection to NATS, 0 for the others.",
            "state",
            MetricKind::Gauge,
            ConnectionState::ALL.map(|state| {
                let is = f64::from(u8::from(state == connection.state));
                (state.as_str(), SampleValue::Gauge(is))
            }),
        ),
        counter(
            "metricbus_fleet_frames_total",
            "Frames that were applied.",
            totals.frames,
        ),
        counter(
            "metricbus_fleet_frames_duplicate_total",
            "Frames that came twice, and were ignored.",
            totals.frames_duplicate,
        ),
        counter(
            "metricbus_fleet_frames_missed_total",
            "Frames that never came; what they held was had by snapshot.",
            totals.frames_missed,
        ),
        counter(
            "metricbus_fleet_gaps_total",
            "Times at which frames of a source were found missing.",
            totals.gaps,
        ),
        counter(
            "metricbus_fleet_snapshots_total",
            "Snapshots of sources that came.",
            totals.snapshots,
        ),
        counter(
            "metricbus_fleet_snapshots_failed_total",
            "Snapshots that were asked for and did not come.",
            totals.snapshots_failed,
        ),
        counter(
            "metricbus_fleet_alerts_total",
            "Alerts of sources that were delivered.",
            totals.alerts,
        ),
        counter(
            "metricbus_fleet_alerts_duplicate_total",
            "Alerts that came twice, and were ignored.",
            totals.alerts_duplicate,
        ),
        counter(
            "metricbus_fleet_alerts_lost_total",
            "Alerts of sources that nobody can get any more.",
            totals.alerts_lost,
        ),
        gauge(
            "metricbus_fleet_alerts_firing",
            "What sources have firing: groups of rules.",
            firing as f64,
        ),
        counter(
            "metricbus_fleet_alerts_forgotten_total",
            "Firing alerts that were told and could not be remembered, since there are too many.",
            forgotten,
        ),
        counter(
            "metricbus_fleet_restarts_total",
            "Restarts of sources.",
            totals.restarts,
        ),
        counter(
            "metricbus_fleet_other_life_total",
            "Messages of another life of a source than the present one: old, or of a second process with its identity.",
            totals.other_life,
        ),
        counter(
            "metricbus_fleet_counters_fell_total",
            "Counters that became less without having been made anew: faults of sources.",
            shared.fell(),
        ),
        counter(
            "metricbus_fleet_dropped_total",
            "Messages that were dropped since the fleet did not keep up; all sources are asked for snapshots then.",
            connection.slow,
        ),
        labelled(
            "metricbus_fleet_ignored_total",
            "What was received and ignored, by reason. Points of frames for point, clash and series_limit; else messages.",
            "reason",
            MetricKind::Counter,
            ignored
                .into_iter()
                .map(|(what, n)| (what.as_str(), SampleValue::Counter(Value::U64(n)))),
        ),
        gauge(
            "metricbus_fleet_rules_unwritten",
            "Rules that are to be sent, or taken back, and are not yet in the bucket.",
            shared.rules_out.unwritten() as f64,
        ),
    ]
}

fn labelled<'a>(
    name: &str,
    help: &str,
    label: &str,
    kind: MetricKind,
    values: impl IntoIterator<Item = (&'a str, SampleValue)>,
) -> FamilySnapshot {
    let series = values.into_iter().map(|(of, value)| SeriesSnapshot {
        labels: vec![(label.to_owned(), of.to_owned())],
        value,
    });
    FamilySnapshot {
        name: name.to_owned(),
        help: help.to_owned(),
        unit: None,
        kind,
        series: series.collect(),
    }
}
