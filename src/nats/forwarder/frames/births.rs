//! Since when each forwarded series has been there. All forwardings of a source say the same of one.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, Weak},
};

use crate::{series::SeriesCore, sync::lock};

/// The dates of birth of the series that somebody forwards.
#[derive(Default)]
pub(super) struct Births(Mutex<HashMap<usize, Birth>>);

struct Birth {
    /// Nanoseconds since the Unix epoch.
    at: u64,
    forwardings: usize,
}

/// A series by where it lies. As long as a forwarding listens to it nothing else can lie there.
fn key(series: &Arc<SeriesCore>) -> usize {
    Arc::as_ptr(series).addr()
}

impl Births {
    /// One more forwarding of a series, born at `at` unless somebody knows better.
    pub(super) fn join(&self, series: &Arc<SeriesCore>, at: u64) -> u64 {
        let mut births = lock(&self.0);
        let birth = births
            .entry(key(series))
            .or_insert(Birth { at, forwardings: 0 });
        birth.forwardings += 1;
        birth.at
    }

    /// One forwarding less, which knows it as long as that is being told.
    pub(super) fn leave(&self, series: &Weak<SeriesCore>) {
        let key = series.as_ptr().addr();
        let mut births = lock(&self.0);
        if let Some(birth) = births.get_mut(&key) {
            birth.forwardings -= 1;
            if birth.forwardings == 0 {
                births.remove(&key);
            }
        }
    }

    /// Whether somebody forwards it.
    pub(super) fn has(&self, series: &Arc<SeriesCore>) -> bool {
        lock(&self.0).contains_key(&key(series))
    }

    /// How many series are forwarded.
    pub(super) fn len(&self) -> usize {
        lock(&self.0).len()
    }
}
