//! Windows that others look through: opened by the first question, kept as long as they are asked for.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use super::{Failure, leases::Leases};
use crate::{
    Windows,
    bus::MetricBus,
    nats::wire::query::{
        EncodedWindow, WindowReply, WindowRequest, WindowSeries, encode_window_within,
    },
    sync::lock,
    time::Time,
    window::{WIDTH_MIN, merge},
};

/// Windows that are open at once, and series in them. A gauge's window takes some kilobytes.
const WINDOWS_MAX: usize = 256;
const SERIES_MAX: usize = 50_000;

/// Series that one window may have.
const SERIES_PER_WINDOW_MAX: usize = 10_000;

/// A window is kept for this long after the last question, or for two widths if that is more.
const KEEP: Duration = Duration::from_secs(60);

/// By the text of the selector, and the width.
type Key = (String, Duration);

/// Shared by its clones.
#[derive(Clone)]
pub(super) struct Panes(Arc<Mutex<Leases<Key, Arc<Windows>>>>);

impl Panes {
    pub(super) fn new() -> Panes {
        Panes(Arc::new(Mutex::new(Leases::new(WINDOWS_MAX, SERIES_MAX))))
    }

    /// What a window has seen. Blocks for as long as it takes to go over its series.
    pub(super) fn ask(
        &self,
        bus: &MetricBus,
        request: WindowRequest,
        bytes_max: usize,
    ) -> Result<EncodedWindow, Failure> {
        let windows = self.open(bus, request.selector, request.width)?;
        let now = bus.clock().now();
        let parts = windows.parts();
        let own = parts
            .into_iter()
            .filter(|(series, _)| !series.core().meta.mirrored);
        let series: Vec<_> = own
            .map(|(series, part)| WindowSeries {
                name: series.name().to_owned(),
                labels: series.labels(),
                part,
            })
            .collect();
        let width = request.width.max(WIDTH_MIN);
        let parts: Vec<_> = series.iter().map(|series| series.part.clone()).collect();
        let stats = merge(&parts, width);
        let reply = WindowReply {
            width,
            at: bus.clock().wall(now),
            series,
        };
        Ok(encode_window_within(reply, &stats, bytes_max))
    }

    fn open(
        &self,
        bus: &MetricBus,
        selector: crate::Selector,
        width: Duration,
    ) -> Result<Arc<Windows>, Failure> {
        let now = bus.clock().now();
        let key = (selector.to_string(), width);
        // Held while it is opened: of two who ask the same at once one opens it.
        let mut panes = lock(&self.0);
        if let Some(windows) = panes.get(&key, now) {
            return Ok(windows.clone());
        }
        let wrong = |error: crate::SelectorError| Failure::wrong(error.to_string());
        let series = bus.series(&selector).map_err(wrong)?.len();
        if series > SERIES_PER_WINDOW_MAX {
            let why = format!(
                "{} matches {series} series, and a window that is asked for from elsewhere may have {SERIES_PER_WINDOW_MAX}: select fewer",
                key.0
            );
            return Err(Failure::new(413, why));
        }
        let windows = Arc::new(bus.window(selector, width).map_err(wrong)?);
        let keep = KEEP.max(width.saturating_mul(2));
        let gone = panes.put(key, windows.clone(), series.max(1), keep, now);
        drop(panes);
        drop(gone);
        Ok(windows)
    }

    /// Closes what nobody has asked for. When to come next; `None` as long as none is open.
    pub(super) fn expire(&self, now: Time) -> Option<Time> {
        // Held by somebody who goes over many series: another time.
        let Ok(mut panes) = self.0.try_lock() else {
            return Some(now + Duration::from_secs(1));
        };
        let gone = panes.expire(now);
        let next = panes.next();
        drop(panes);
        drop(gone);
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Clock, Counter, Desc, nats::wire::query::decode_window_reply};

    fn request(selector: &str, width: Duration) -> WindowRequest {
        WindowRequest {
            selector: selector.parse().unwrap(),
            width,
        }
    }

    #[test]
    fn a_window_sees_from_the_first_question_on_and_is_closed_when_nobody_asks() {
        let clock = Clock::manual();
        let bus = MetricBus::builder().clock(clock.clone()).build();
        let family = bus
            .family::<Counter>(Desc::new("c_total", "Of a test.").labels(["l"]))
            .unwrap();
        let counter = family.with_label_values(&["a"]).unwrap();
        let panes = Panes::new();
        let width = Duration::from_secs(10);
        let ask = || {
            let encoded = panes.ask(&bus, request("c_total", width), 1 << 20).unwrap();
            assert_eq!(encoded.bodies.len(), 1);
            decode_window_reply(&encoded.bodies[0]).unwrap()
        };
        counter.inc_by(100);
        assert_eq!(ask().series[0].part.increase, 0.0);
        counter.inc_by(5);
        clock.advance(Duration::from_secs(5));
        let reply = ask();
        assert_eq!(reply.width, width);
        assert_eq!(reply.series[0].labels, [("l".to_owned(), "a".to_owned())]);
        assert_eq!(reply.series[0].part.increase, 5.0);
        assert_eq!(panes.expire(clock.now()), Some(clock.now() + KEEP));
        clock.advance(KEEP);
        assert_eq!(panes.expire(clock.now()), None);
        assert_eq!(ask().series[0].part.increase, 0.0);
    }

    #[test]
    fn a_window_over_too_many_series_is_refused_with_what_would_be_right() {
        let bus = MetricBus::builder()
            .clock(Clock::manual())
            .cardinality_limit(usize::MAX)
            .build();
        let family = bus
            .family::<Counter>(Desc::new("c_total", "Of a test.").labels(["l"]))
            .unwrap();
        for l in 0..=SERIES_PER_WINDOW_MAX {
            family.with_label_values(&[&l.to_string()]).unwrap();
        }
        let panes = Panes::new();
        let error = panes
            .ask(&bus, request("c_total", KEEP), 1 << 20)
            .unwrap_err();
        assert_eq!(error.code, 413);
        assert!(error.why.contains("10001 series"), "{}", error.why);
        assert!(
            panes
                .ask(&bus, request(r#"c_total{l="1"}"#, KEEP), 1 << 20)
                .is_ok()
        );
    }
}
