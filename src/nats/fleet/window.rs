//! Windows over all pods: each source is asked for its own, and what they say is merged without loss.

use std::time::Duration;

use futures_util::future::join_all;

use super::{
    Shared,
    ask::{AskError, Asker, Turns},
    error::FleetError,
    life::SourceState,
    shown::OUTER,
};
use crate::{
    Selector, SourceId, WindowStats,
    nats::{
        subject::Query,
        wire::{
            WireError,
            limits::WIDTH_MAX,
            query::{WindowRequest, WindowSeries, decode_window_reply, encode_window_request},
        },
    },
    sync::lock,
    window::{Part, merge},
};

/// What windows of many sources have seen together. Made by [`Fleet::window`](super::Fleet::window).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FleetWindow {
    /// All of it: the windows of all series of all sources that answered, merged as if they were one. `sources` in it
    /// counts *series*, and so does `stale`.
    pub stats: WindowStats,
    /// Live sources that could have such series, and were asked.
    pub asked: usize,
    /// Those that answered; perhaps that they have no such series.
    pub answered: usize,
    /// Sources that are stale and were not asked: what they know is in none of this.
    pub stale: Vec<SourceId>,
    /// Sources that were asked and gave no answer, and why.
    pub silent: Vec<(SourceId, String)>,
    /// What each source that answered has seen.
    pub each: Vec<SourceWindow>,
}

/// What the windows of one source have seen.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SourceWindow {
    /// Which one.
    pub source: SourceId,
    /// All its series together.
    pub stats: WindowStats,
    /// Each of them.
    pub series: Vec<SeriesWindow>,
}

/// What the window of one series of a source has seen.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SeriesWindow {
    /// The metric's name.
    pub name: String,
    /// Labels as the source gave them.
    pub labels: Vec<(String, String)>,
    /// What was seen.
    pub stats: WindowStats,
}

impl FleetWindow {
    /// Whether everybody who could know something of it has told it: nobody is stale, and all who were asked answered.
    pub fn is_complete(&self) -> bool {
        self.stale.is_empty() && self.silent.is_empty()
    }
}

type Told = (SourceId, Result<Vec<WindowSeries>, AskError>);

impl Shared {
    pub(super) async fn window(
        &self,
        selector: Selector,
        width: Duration,
    ) -> Result<FleetWindow, FleetError> {
        // Sources count in milliseconds.
        let millis = width.as_micros().div_ceil(1_000);
        let asked_for = u64::try_from(millis).ok().map(Duration::from_millis);
        let Some(width) = asked_for.filter(|w| !w.is_zero() && *w <= WIDTH_MAX) else {
            return Err(FleetError::Setting {
                setting: "window",
                value: format!("{width:?}"),
                why: format!("it takes more than 0 and at most {WIDTH_MAX:?}"),
            });
        };
        let (live, stale) = {
            let table = lock(&self.table);
            (
                table.in_state(SourceState::Live),
                table.in_state(SourceState::Stale),
            )
        };
        let concerned = |source: &SourceId| inside(&selector, source);
        let asked: Vec<(SourceId, Selector)> = live
            .into_iter()
            .filter_map(|source| concerned(&source).map(|inside| (source, inside)))
            .collect();
        let stale = stale.into_iter().filter(|s| concerned(s).is_some());
        let stale: Vec<SourceId> = stale.collect();
        // Each question owns what it is about: the future as a whole could not be sent to a thread otherwise.
        let turns = Turns::new();
        let questions = asked.into_iter().map(|(source, selector)| {
            let turns = &turns;
            async move {
                let life = lock(&self.table).boot(&source);
                let question = ask(&self.asker, &source, life, &selector, width);
                turns.ask(question).await
            }
        });
        let told: Vec<Told> = join_all(questions).await;
        Ok(merged(told, stale, width))
    }
}

/// The selector for a source itself; `None` where its series can't match.
pub(super) fn inside(selector: &Selector, source: &SourceId) -> Option<Selector> {
    let [namespace, component, instance] = OUTER;
    selector.inside(&[
        (namespace, &source.namespace),
        (component, &source.component),
        (instance, &source.instance),
    ])
}

async fn ask(
    asker: &Asker,
    source: &SourceId,
    life: Option<u64>,
    selector: &Selector,
    width: Duration,
) -> Told {
    let request = WindowRequest {
        selector: selector.clone(),
        width,
    };
    let answer = async {
        let body = encode_window_request(&request);
        let answer = asker.ask(source, life, Query::Window, body).await?;
        let mut series = Vec::new();
        for part in &answer.parts {
            let reply = decode_window_reply(&part.payload)?;
            // It may be wider where it would be too narrow to mean anything.
            if reply.width < width {
                let why = format!("{:?} is narrower than {width:?}", reply.width);
                return Err(WireError::field("width_ms", why).into());
            }
            series.extend(reply.series);
        }
        Ok(series)
    };
    (source.clone(), answer.await)
}

fn merged(mut told: Vec<Told>, stale: Vec<SourceId>, width: Duration) -> FleetWindow {
    told.sort_by(|a, b| a.0.cmp(&b.0));
    let asked = told.len();
    let (mut each, mut silent, mut all) = (Vec::new(), Vec::new(), Vec::new());
    for (source, answer) in told {
        match answer {
            Ok(series) => each.push(of_source(source, series, &mut all, width)),
            Err(error) => silent.push((source, error.to_string())),
        }
    }
    FleetWindow {
        stats: together(&all, width),
        asked,
        answered: each.len(),
        stale,
        silent,
        each,
    }
}

fn of_source(
    source: SourceId,
    series: Vec<WindowSeries>,
    all: &mut Vec<Part>,
    width: Duration,
) -> SourceWindow {
    let first = all.len();
    let series = series.into_iter().map(|one| {
        let stats = merge(std::slice::from_ref(&one.part), of_part(&one.part));
        all.push(one.part);
        SeriesWindow {
            name: one.name,
            labels: one.labels,
            stats,
        }
    });
    let series = series.collect();
    SourceWindow {
        source,
        series,
        stats: together(&all[first..], width),
    }
}

fn together(parts: &[Part], width: Duration) -> WindowStats {
    let width = parts.iter().map(of_part).max().unwrap_or(width);
    merge(parts, width)
}

fn of_part(part: &Part) -> Duration {
    Duration::from_nanos(part.width)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        MetricKind,
        window::{Part, WIDTH_MIN},
    };

    const WIDTH: Duration = Duration::from_secs(10);

    fn pod(instance: &str) -> SourceId {
        SourceId::new("ns", "c", instance)
    }

    /// That it compiles is the test.
    #[test]
    fn a_window_can_be_asked_for_in_a_task() {
        fn spawnable(_: impl Future + Send + 'static) {}
        let _ = |fleet: super::super::Fleet| {
            spawnable(async move { fleet.window("ttft_seconds", WIDTH).await });
        };
    }

    fn counter(increase: f64) -> WindowSeries {
        let nanos = WIDTH.as_nanos() as u64;
        WindowSeries {
            name: "c_total".to_owned(),
            labels: Vec::new(),
            part: Part {
                covered: nanos,
                increase,
                sum: increase,
                stale: increase == 0.0,
                ..Part::nothing(MetricKind::Counter, nanos, nanos / 100)
            },
        }
    }

    #[test]
    fn what_sources_say_adds_up_and_who_says_nothing_is_named() {
        let told = vec![
            (pod("b"), Ok(vec![counter(5.0), counter(0.0)])),
            (pod("c"), Err(AskError::Nobody)),
            (pod("a"), Ok(vec![counter(2.0)])),
            (pod("d"), Ok(Vec::new())),
        ];
        let window = merged(told, vec![pod("e")], WIDTH);
        assert_eq!(window.stats.increase, Some(7.0));
        assert_eq!((window.stats.sources, window.stats.stale), (3, 1));
        assert_eq!((window.asked, window.answered), (4, 3));
        assert_eq!(window.silent[0].0, pod("c"));
        assert_eq!(window.each[0].source, pod("a"));
        assert_eq!(window.each[1].stats.rate, Some(0.5));
        assert_eq!(window.each[2].stats.sources, 0);
        assert!(!window.is_complete());
    }

    #[test]
    fn of_nobody_nothing_is_known() {
        let window = merged(Vec::new(), Vec::new(), WIDTH_MIN);
        assert_eq!((window.asked, window.stats.sum), (0, None));
        assert!(window.is_complete());
    }
}
