//! The obvious design, as a peer: what a competent person writes who has never measured it.
//!
//! A gauge of the `prometheus` crate holds the value, so that it can be scraped; each mutation is sent as an event, with
//! the metric's name and the time, over one `tokio::sync::broadcast` channel that all metrics share.

use std::{sync::Arc, time::Instant};

use tokio::sync::broadcast;

/// What a subscriber gets for each mutation.
#[derive(Clone, Debug)]
#[allow(
    dead_code,
    reason = "subscribers here look at the value only; a real one has use for all of it"
)]
pub(crate) struct Change {
    pub(crate) name: Arc<str>,
    pub(crate) value: f64,
    pub(crate) at: Instant,
}

/// One channel for everything.
pub(crate) struct NaiveBus {
    changes: broadcast::Sender<Change>,
}

impl NaiveBus {
    pub(crate) fn new(capacity: usize) -> Self {
        NaiveBus {
            changes: broadcast::Sender::new(capacity),
        }
    }

    pub(crate) fn gauge(&self, name: &str, help: &str) -> prometheus::Result<NaiveGauge> {
        Ok(NaiveGauge {
            name: name.into(),
            value: prometheus::Gauge::new(name, help)?,
            changes: self.changes.clone(),
        })
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }
}

/// A gauge whose mutations are sent.
pub(crate) struct NaiveGauge {
    name: Arc<str>,
    value: prometheus::Gauge,
    changes: broadcast::Sender<Change>,
}

impl NaiveGauge {
    pub(crate) fn set(&self, value: f64) {
        self.value.set(value);
        // An error says that nobody listens, which is fine.
        let _ = self.changes.send(Change {
            name: self.name.clone(),
            value,
            at: Instant::now(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subscriber_hears_of_every_set() {
        let bus = NaiveBus::new(8);
        let gauge = bus.gauge("depth", "Requests waiting.").unwrap();
        gauge.set(1.0);
        let mut changes = bus.subscribe();
        gauge.set(2.0);
        let change = changes.try_recv().unwrap();
        assert_eq!((&*change.name, change.value), ("depth", 2.0));
        assert!(changes.try_recv().is_err());
    }
}
