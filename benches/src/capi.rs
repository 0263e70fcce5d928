//! `c_api_inc`: adding 1 to a counter from C.
//!
//! - Subject: a loop in C that calls `mb_counter_inc`, and looks at what it returns.
//! - Floor: a loop in C around a C11 `atomic_fetch_add` of the same memory order.
//! - For orientation: the same counter from Rust.

use std::{
    ffi::c_void,
    ptr,
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use metricbus::{MetricBus, backend::libnv::abi::MB_OK};
use metricbus_capi::{
    mb_bus_free, mb_counter, mb_counter_free, mb_counter_new, mb_desc, mb_str, share,
};

use crate::{
    Failure,
    harness::{Effort, Lane, Role, interleave},
    report::{Bar, Figures, Unit},
};

unsafe extern "C" {
    fn bench_atomic_add(value: *const AtomicU64, n: u64);
    fn bench_counter_inc(counter: *const c_void, n: u64) -> i32;
}

pub(crate) fn inc(effort: Effort) -> Result<Figures, Failure> {
    let bus = MetricBus::new();
    let from_rust = bus.counter("from_rust_total", "Requests.")?;
    let counter = Handle::new(&bus)?;
    let value = AtomicU64::new(0);
    let lanes = &mut [
        Lane::new(Role::Subject, "mb_counter_inc", |n| {
            let start = Instant::now();
            // SAFETY: the counter lives as long as the handle does.
            let status = unsafe { bench_counter_inc(counter.0.cast(), n) };
            let took = start.elapsed();
            match status {
                MB_OK => Ok(took),
                status => Err(format!("mb_counter_inc said {status}").into()),
            }
        }),
        Lane::new(Role::Floor, "C11 atomic_fetch_add", |n| {
            let start = Instant::now();
            // SAFETY: the value lives, and is an atomic there, too.
            unsafe { bench_atomic_add(&value, n) };
            Ok(start.elapsed())
        }),
        Lane::of(Role::Other, "from Rust", from_rust, |c, _| c.inc()),
    ];
    let rounds = interleave(effort.fast(), lanes)?;
    if value.load(Ordering::Relaxed) == 0 {
        return Err("the floor did not count".into());
    }
    Ok(Figures::new("c_api_inc", Unit::Ns, rounds, Bar::Floor(1.5)))
}

/// A counter as C has it.
struct Handle(*mut mb_counter);

impl Handle {
    fn new(bus: &MetricBus) -> Result<Handle, Failure> {
        let text = |text: &'static str| mb_str {
            ptr: text.as_ptr().cast(),
            len: text.len(),
        };
        // SAFETY: a description of zeros is an empty one.
        let mut description: mb_desc = unsafe { std::mem::zeroed() };
        description.size = size_of::<mb_desc>();
        description.name = text("requests_total");
        description.help = text("Requests.");
        let mut counter = ptr::null_mut();
        let shared = share(bus);
        // SAFETY: all of it lives during the call, and the bus's handle is freed once.
        let status = unsafe {
            let status = mb_counter_new(shared, &description, &mut counter);
            mb_bus_free(shared);
            status
        };
        match status {
            MB_OK => Ok(Handle(counter)),
            status => Err(format!("mb_counter_new said {status}").into()),
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: nobody has it any more.
        unsafe { mb_counter_free(self.0) };
    }
}
