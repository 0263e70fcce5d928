//! G4: a mutation allocates nothing. Counted by the allocator itself, in the thread that mutates.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

use metricbus::{
    Buckets, Counter, Delta, Desc, MetricBus, Threshold,
    export::text::{Format, encode},
};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator as it came; counting touches a thread-local without a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|n| n.set(n.get() + 1));
        // SAFETY: the caller keeps to the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps to the contract of `dealloc`.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(f: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.with(Cell::get);
    f();
    ALLOCATIONS.with(Cell::get) - before
}

#[test]
fn g4_a_mutation_allocates_nothing_with_or_without_subscribers() {
    let bus = MetricBus::new();
    let counter = bus.counter("c_total", "c").unwrap();
    let gauge = bus.gauge("g", "g").unwrap();
    let histogram = bus.histogram("h", "h", Buckets::default()).unwrap();
    let mutate = || {
        for i in 0..1_000 {
            counter.inc();
            gauge.set(f64::from(i % 100));
            gauge.set_max(f64::from(i));
            histogram.observe(f64::from(i));
        }
    };
    assert_eq!(allocations(mutate), 0);
    // Crossed over and over, moved, tapped and watched by a window, with nobody reading: still nothing.
    let _crossings = bus
        .on_threshold("g", Threshold::above(50.0))
        .stream()
        .unwrap();
    let _moves = bus
        .on_delta("c_total", Delta::absolute(10.0))
        .stream()
        .unwrap();
    let _changes = bus.on_change("g").stream().unwrap();
    let _tap = bus.subscribe(r#"{__name__!=""}"#).unwrap();
    let _window = gauge.series().window(std::time::Duration::from_secs(10));
    assert_eq!(allocations(mutate), 0);
}

#[test]
fn a_scrape_allocates_the_same_for_ten_series_as_for_a_thousand() {
    let scrape = |series: usize| {
        let bus = MetricBus::new();
        let family = bus
            .family::<Counter>(Desc::new("c_total", "c").labels(["i"]))
            .unwrap();
        for i in 0..series {
            family.with_label_values(&[i.to_string()]).unwrap().inc();
        }
        let mut out = Vec::with_capacity(1 << 20);
        allocations(|| encode(&bus, Format::Text, &mut out))
    };
    assert_eq!(scrape(10), scrape(1_000));
}
