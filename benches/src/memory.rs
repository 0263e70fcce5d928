//! `bytes_per_counter_series`: what one more counter child with three labels takes, text and index included.
//!
//! A global allocator counts the bytes asked for (what the system's allocator adds to each piece of memory is not
//! counted, which favours those who ask for many small ones). It counts only while a family grows, and costs one relaxed
//! load per allocation otherwise. A family is made with one child, then grown; handles are dropped, the family lives.
//!
//! Tables double when they are full, so the figure depends on how many series there are. It is taken at five sizes that
//! are spread over one doubling; each is a round, and the figure is their median.
//!
//! - Floor: the label text as it is exposed, and 8 bytes of value.
//! - Peers: `prometheus`, `prometheus-client`, `measured` with interned label values.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicBool, AtomicI64, Ordering},
};

use metricbus::{Counter, Desc, MetricBus};
use prometheus_client::metrics::family::Family as ClientFamily;

use crate::{
    Failure,
    harness::{Effort, Role, Rounds},
    labels::{ClientLabels, LABELS, Labels, MeasuredLabels, MeasuredSet},
    report::{Bar, Figures, Unit},
};

/// The system's allocator, counted while somebody weighs.
pub(crate) struct Scales {
    on: AtomicBool,
    live: AtomicI64,
}

impl Scales {
    pub(crate) const fn new() -> Scales {
        Scales {
            on: AtomicBool::new(false),
            live: AtomicI64::new(0),
        }
    }

    #[inline(always)]
    fn count(&self, bytes: i64) {
        if self.on.load(Ordering::Relaxed) {
            self.live.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// How many bytes more are in use after `f`.
    fn weigh(&self, f: impl FnOnce() -> Result<(), Failure>) -> Result<i64, Failure> {
        self.live.store(0, Ordering::SeqCst);
        self.on.store(true, Ordering::SeqCst);
        let result = f();
        self.on.store(false, Ordering::SeqCst);
        result?;
        Ok(self.live.load(Ordering::SeqCst))
    }
}

fn size(layout: Layout) -> i64 {
    // A layout is never larger than isize::MAX.
    layout.size() as i64
}

// SAFETY: every call is passed on to the system's allocator as it is, which keeps the contract; counting allocates
// nothing and can't panic.
unsafe impl GlobalAlloc for Scales {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.count(size(layout));
        // SAFETY: the caller keeps the contract of `alloc`, which is the same one.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.count(size(layout));
        // SAFETY: the caller keeps the contract of `alloc_zeroed`, which is the same one.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        self.count(-size(layout));
        // SAFETY: `at` came from `System` with this layout, as all memory of this allocator does.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        self.count(new_size as i64 - size(layout));
        // SAFETY: `at` came from `System` with this layout, and the caller vouches for the new size.
        unsafe { System.realloc(at, layout, new_size) }
    }
}

#[global_allocator]
static SCALES: Scales = Scales::new();

/// How many bytes more are in use after `f`, of the whole process.
pub(crate) fn in_use_after(f: impl FnOnce() -> Result<(), Failure>) -> Result<i64, Failure> {
    SCALES.weigh(f)
}

/// Weighs `count` series that `make` makes, after a first one; bytes for each.
fn weigh(
    count: usize,
    mut make: impl FnMut(&Labels) -> Result<(), Failure>,
) -> Result<f64, Failure> {
    let mut labels = Labels::default();
    // So that the labels' own memory is there already, for the longest values.
    labels.number(count);
    make(&labels)?;
    let bytes = SCALES.weigh(|| {
        for i in 0..count {
            labels.number(i);
            make(&labels)?;
        }
        Ok(())
    })?;
    Ok(bytes as f64 / count as f64)
}

pub(crate) fn per_counter_series(effort: Effort) -> Result<Figures, Failure> {
    let smallest = effort.pick(8_192, 65_536);
    let mut lanes = [
        (Role::Subject, "metricbus", Vec::new()),
        (Role::Floor, "label text + 8 B", Vec::new()),
        (Role::Peer, "prometheus", Vec::new()),
        (Role::Other, "prometheus-client", Vec::new()),
        (Role::Other, "measured, interned", Vec::new()),
    ];
    for step in 0..5 {
        let count = (f64::from(smallest) * 2_f64.powf((f64::from(step) + 0.5) / 5.0)) as usize;
        let samples = [
            ours(count)?,
            floor(count),
            prometheus(count)?,
            client(count)?,
            measured(count)?,
        ];
        for ((.., lane), sample) in lanes.iter_mut().zip(samples) {
            lane.push(sample);
        }
    }
    let rounds = Rounds {
        lanes: lanes.into(),
    };
    Ok(Figures::new(
        "bytes_per_counter_series",
        Unit::Bytes,
        rounds,
        Bar::Peer(0.5),
    ))
}

fn ours(count: usize) -> Result<f64, Failure> {
    let bus = MetricBus::new();
    let desc = Desc::new("requests_total", "Requests served.")
        .labels(LABELS)
        .series_max(count + 1);
    let family = bus.family::<Counter>(desc)?;
    weigh(count, |labels| {
        family.with_label_values(&labels.values())?.inc();
        Ok(())
    })
}

fn floor(count: usize) -> f64 {
    let mut labels = Labels::default();
    let mut bytes = 0;
    for i in 0..count {
        labels.number(i);
        let names: usize = LABELS.iter().map(|name| name.len()).sum();
        let values: usize = labels.values().iter().map(|value| value.len()).sum();
        // `="",` for each label.
        bytes += names + values + 4 * LABELS.len() + size_of::<u64>();
    }
    bytes as f64 / count as f64
}

fn prometheus(count: usize) -> Result<f64, Failure> {
    let options = prometheus::Opts::new("requests_total", "Requests served.");
    let vec = prometheus::IntCounterVec::new(options, &LABELS)?;
    weigh(count, |labels| {
        vec.with_label_values(&labels.values()).inc();
        Ok(())
    })
}

fn client(count: usize) -> Result<f64, Failure> {
    let family =
        ClientFamily::<ClientLabels, prometheus_client::metrics::counter::Counter>::default();
    weigh(count, |labels| {
        family.get_or_create(&ClientLabels::from(labels)).inc();
        Ok(())
    })
}

fn measured(count: usize) -> Result<f64, Failure> {
    let vec = measured::CounterVec::with_label_set(MeasuredSet::interning());
    weigh(count, |labels| {
        vec.inc(MeasuredLabels::from(labels));
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_is_weighed_and_what_goes_is_not() {
        let scales = Scales::new();
        let layout = Layout::from_size_align(64, 8).unwrap();
        let bytes = scales.weigh(|| {
            // SAFETY: the layout is not empty; what is freed was allocated with the layout just before.
            unsafe {
                let kept = scales.alloc(layout);
                let grown = scales.realloc(kept, layout, 100);
                let freed = scales.alloc(layout);
                scales.dealloc(freed, layout);
                assert!(!grown.is_null());
            }
            Ok(())
        });
        assert_eq!(bytes.unwrap(), 100);
    }
}
