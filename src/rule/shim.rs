use crate::{cell::Listener, interest::Interval, series::SeriesCore, time::Time};
use std::{sync::Arc, time::Duration};
#[derive(Debug)]
pub(crate) struct Pane;
#[derive(Clone, Copy)]
pub(crate) enum Detail {
    Numbers,
    Sketch,
}
pub(crate) struct Part;
pub(crate) struct WindowStats {
    pub count: u64,
    pub sum: Option<f64>,
    pub avg: Option<f64>,
    pub min: Option<f64>,
    pub max: Option<f64>,
    pub last: Option<f64>,
    pub rate: Option<f64>,
    pub increase: Option<f64>,
    pub stddev: Option<f64>,
}
impl WindowStats {
    pub fn quantile(&self, _q: f64) -> Option<f64> {
        None
    }
}
impl Pane {
    pub(crate) fn part(&self, _now: Time, _d: Detail) -> Part {
        Part
    }
}
struct L(u64);
impl Listener for L {
    fn id(&self) -> u64 {
        self.0
    }
    fn quiet(&self) -> Interval {
        Interval::EVERYTHING
    }
}
pub(crate) fn pane(
    id: u64,
    _s: &Arc<SeriesCore>,
    _n: bool,
    _since: Time,
    _w: Duration,
) -> (Arc<Pane>, Box<dyn Listener>) {
    (Arc::new(Pane), Box::new(L(id)))
}
pub(crate) fn merge(_p: &[Part], _w: Duration) -> WindowStats {
    WindowStats {
        count: 0,
        sum: None,
        avg: None,
        min: None,
        max: None,
        last: None,
        rate: None,
        increase: None,
        stddev: None,
    }
}
pub(crate) fn slot_of(w: Duration) -> Duration {
    (w / 100).max(Duration::from_millis(10))
}
pub(crate) const WIDTH_MIN: Duration = Duration::from_millis(100);
