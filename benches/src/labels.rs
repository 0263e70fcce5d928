//! The three labels of the families that are encoded and weighed, in the form that each contender takes.

use std::fmt::Write as _;

use measured::LabelGroup;
use paracord::ParaCord;
use prometheus_client::encoding::EncodeLabelSet;

pub(crate) const LABELS: [&str; 3] = ["component", "endpoint", "worker"];

/// Values as a serving fleet has them: 8 components, 25 endpoints, and as many workers as it takes.
#[derive(Default)]
pub(crate) struct Labels {
    pub(crate) component: String,
    pub(crate) endpoint: String,
    pub(crate) worker: String,
}

impl Labels {
    /// Becomes the labels of series number `i`, without new memory.
    pub(crate) fn number(&mut self, i: usize) {
        const COMPONENTS: [&str; 8] = [
            "frontend", "router", "prefill", "decode", "encoder", "planner", "cache", "gateway",
        ];
        self.component.clear();
        self.component.push_str(COMPONENTS[i % COMPONENTS.len()]);
        self.endpoint.clear();
        let _ = write!(self.endpoint, "generate-{:02}", i / COMPONENTS.len() % 25);
        self.worker.clear();
        let _ = write!(self.worker, "7587888a3c1e{:04}", i / COMPONENTS.len() / 25);
    }

    pub(crate) fn values(&self) -> [&str; 3] {
        [&self.component, &self.endpoint, &self.worker]
    }
}

#[derive(Clone, Copy, LabelGroup)]
#[label(set = MeasuredSet)]
pub(crate) struct MeasuredLabels<'a> {
    #[label(dynamic_with = ParaCord)]
    component: &'a str,
    #[label(dynamic_with = ParaCord)]
    endpoint: &'a str,
    #[label(dynamic_with = ParaCord)]
    worker: &'a str,
}

impl MeasuredSet {
    pub(crate) fn interning() -> Self {
        MeasuredSet {
            component: ParaCord::default(),
            endpoint: ParaCord::default(),
            worker: ParaCord::default(),
        }
    }
}

impl<'a> From<&'a Labels> for MeasuredLabels<'a> {
    fn from(labels: &'a Labels) -> Self {
        MeasuredLabels {
            component: &labels.component,
            endpoint: &labels.endpoint,
            worker: &labels.worker,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ClientLabels {
    component: String,
    endpoint: String,
    worker: String,
}

impl From<&Labels> for ClientLabels {
    fn from(labels: &Labels) -> Self {
        ClientLabels {
            component: labels.component.clone(),
            endpoint: labels.endpoint.clone(),
            worker: labels.worker.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_two_series_have_the_same_labels() {
        let mut labels = Labels::default();
        let mut seen = HashSet::new();
        for i in 0..10_000 {
            labels.number(i);
            assert!(seen.insert(labels.values().map(str::to_owned)), "{i}");
        }
    }
}
