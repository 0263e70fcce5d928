//! What a fleet tells of sources, and shows of them: plain values.

use std::collections::BTreeMap;

use metricbus::nats::{self, GoneWhy, SourceChange};
use pyo3::prelude::*;

use super::Date;
use crate::{deliver::Letter, source::SourceId, values::value};

/// Something has become of a source.
///
/// | `change` | |
/// |---|---|
/// | `"born"` | it is known, with all its series |
/// | `"restarted"` | it is another life of the process, with all its series; `other_boot` is the one before |
/// | `"live"` | it was stale, and was heard again |
/// | `"back"` | it was gone, and is there again, with all its series |
/// | `"stale"` | nothing was heard of it for too long; its series are still there, as they were |
/// | `"gone"` | it is dead, or nobody can vouch for it any more: see `gone`; its series are gone |
/// | `"conflict"` | a second process, of `other_boot`, has the same identity, and is ignored |
/// | `"alerts_lost"` | it said `alerts` alerts that nobody can get any more |
/// | `"refused"` | its metric `metric` can't be taken over, and is left out: `why` |
#[pyclass(frozen, get_all, module = "metricbus")]
pub(crate) struct SourceEvent {
    /// Which one.
    source: SourceId,
    /// Which life of it.
    boot: u64,
    /// What: `"born"`, `"restarted"`, `"live"`, `"back"`, `"stale"`, `"gone"`, `"conflict"`, `"alerts_lost"` or `"refused"`.
    change: &'static str,
    /// How it is known that it is gone: `"died"` (it said so), `"silent"`, `"no_responders"` (the server says that nobody
    /// answers for it) or `"unreachable"` (the fleet itself has no connection).
    gone: Option<&'static str>,
    /// In words, why it is gone or a metric was refused.
    why: Option<String>,
    /// The boot of the life before, or of the double.
    other_boot: Option<u64>,
    /// How many alerts were lost.
    alerts: Option<u64>,
    /// The name of the metric that was refused.
    metric: Option<String>,
    /// When, in seconds on the clock of the fleet's bus.
    at: f64,
    /// `at` as a date, in UTC.
    date: Date,
    /// It was so when the subscriber came, and is no news.
    initial: bool,
    /// All of it in words, such as `prod/decode/pod-7 is stale`.
    text: String,
}

#[pymethods]
impl SourceEvent {
    fn __str__(&self) -> &str {
        &self.text
    }

    fn __repr__(&self) -> String {
        format!("<SourceEvent {}>", self.text)
    }
}

impl Letter for nats::SourceEvent {
    fn into_python(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let mut event = SourceEvent {
            text: self.to_string(),
            source: SourceId(self.source),
            boot: self.boot,
            change: "other",
            gone: None,
            why: None,
            other_boot: None,
            alerts: None,
            metric: None,
            at: self.at.as_secs_f64(),
            date: Date(self.date),
            initial: self.initial,
        };
        event.change = match self.change {
            SourceChange::Born => "born",
            SourceChange::Restarted { before } => {
                event.other_boot = Some(before);
                "restarted"
            }
            SourceChange::Live => "live",
            SourceChange::Back => "back",
            SourceChange::Stale => "stale",
            SourceChange::Gone { why } => {
                event.why = Some(why.to_string());
                event.gone = Some(match why {
                    GoneWhy::Died { .. } => "died",
                    GoneWhy::Silent => "silent",
                    GoneWhy::NoResponders => "no_responders",
                    GoneWhy::Unreachable => "unreachable",
                    GoneWhy::Failed => "failed",
                    // `GoneWhy` may grow.
                    _ => "other",
                });
                "gone"
            }
            SourceChange::Conflict { other } => {
                event.other_boot = Some(other);
                "conflict"
            }
            SourceChange::AlertsLost { alerts } => {
                event.alerts = Some(alerts);
                "alerts_lost"
            }
            SourceChange::Refused { metric, why } => {
                event.metric = Some(metric);
                event.why = Some(why);
                "refused"
            }
            // `SourceChange` may grow.
            _ => "other",
        };
        Ok(Py::new(py, event)?.into_any())
    }
}

/// How a source stands.
///
/// Counts are since the fleet knows of the source; it forgets one that has been gone for ten minutes.
#[pyclass(frozen, get_all, module = "metricbus")]
pub(crate) struct SourceStatus {
    /// Which one.
    source: SourceId,
    /// Whether it lives: `"live"`, `"stale"` (nothing was heard of it for too long; what it last said is still shown) or
    /// `"gone"`.
    state: &'static str,
    /// Which life: microseconds since 1970 by its own clock, when that began.
    boot: u64,
    /// Whether all its series, and what it has firing, are known.
    synced: bool,
    /// Its series on the fleet's bus. It may have more: see `refused`.
    series: usize,
    /// How many series it says that it forwards.
    series_said: u64,
    /// Seconds since it was last heard.
    age: f64,
    /// How often it says that it lives, in seconds.
    interval: f64,
    /// By how many seconds its clock was ahead of ours in its last pulse, the time on the way included; negative where it was
    /// behind. `None` before the first pulse.
    skew: Option<f64>,
    /// The version of metricbus that it says it runs; empty before the first pulse.
    version: String,
    /// Frames that were applied …
    frames: u64,
    /// … that came twice …
    frames_duplicate: u64,
    /// … and that never came.
    frames_missed: u64,
    /// Times at which something was found missing, and a snapshot was asked for.
    gaps: u64,
    /// Snapshots that came …
    snapshots: u64,
    /// … and that did not.
    snapshots_failed: u64,
    /// Alerts that were delivered …
    alerts: u64,
    /// … that came twice …
    alerts_duplicate: u64,
    /// … and that nobody can get any more.
    alerts_lost: u64,
    /// Restarts.
    restarts: u64,
    /// Messages of another life than the present one: old ones, or those of a second process with this identity.
    other_life: u64,
    /// Metrics of this life that are left out, and why: sixteen at most.
    refused: BTreeMap<String, String>,
    /// The last that went wrong with it.
    last_error: Option<String>,
}

impl From<nats::SourceStatus> for SourceStatus {
    fn from(status: nats::SourceStatus) -> SourceStatus {
        SourceStatus {
            source: SourceId(status.source),
            state: status.state.as_str(),
            boot: status.boot,
            synced: status.synced,
            series: status.series,
            series_said: status.series_said,
            age: status.age.as_secs_f64(),
            interval: status.interval.as_secs_f64(),
            skew: status.skew,
            version: status.version,
            frames: status.frames,
            frames_duplicate: status.frames_duplicate,
            frames_missed: status.frames_missed,
            gaps: status.gaps,
            snapshots: status.snapshots,
            snapshots_failed: status.snapshots_failed,
            alerts: status.alerts,
            alerts_duplicate: status.alerts_duplicate,
            alerts_lost: status.alerts_lost,
            restarts: status.restarts,
            other_life: status.other_life,
            refused: status.refused.into_iter().collect(),
            last_error: status.last_error,
        }
    }
}

#[pymethods]
impl SourceStatus {
    fn __repr__(&self) -> String {
        format!(
            "<SourceStatus {} {}, {} series>",
            self.source.0, self.state, self.series
        )
    }
}

value!(SourceEvent {
    source,
    boot,
    change,
    gone,
    why,
    other_boot,
    alerts,
    metric,
    at,
    date,
    initial,
    text
});
