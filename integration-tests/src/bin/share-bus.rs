//! A program that hands its bus to C++ code in a library which it loads: the one its first argument names. What the Rust
//! side orders, the C++ side sets, and the Rust side hears of it.

use std::{error::Error, sync::mpsc};

use metricbus::{MetricBus, Threshold};
use metricbus_capi::{MB_OK, mb_bus, share};

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os()
        .nth(1)
        .ok_or("usage: share-bus LIBRARY")?;
    let bus = MetricBus::new();
    let orders = bus.gauge("orders", "What the C++ side is to use, in percent.")?;

    // SAFETY: the test has built it.
    let engine = unsafe { libloading::Library::new(path) }?;
    // SAFETY: it is of this type.
    let start = unsafe { engine.get::<unsafe extern "C" fn(*mut mb_bus) -> i32>("engine_start") }?;
    // SAFETY: it is of this type.
    let stop = unsafe { engine.get::<unsafe extern "C" fn()>("engine_stop") }?;

    // SAFETY: the handle is the library's from here on.
    let status = unsafe { start(share(&bus)) };
    if status != MB_OK {
        println!("refused {status}");
        return Ok(());
    }
    let (tell, hear) = mpsc::channel();
    let subscription = bus
        .on_threshold("engine_usage_ratio", Threshold::above(0.9))
        .call(move |crossing| drop(tell.send(crossing)))?;
    orders.set(95.0);
    let crossing = hear.recv()?;
    println!(
        "{} {:?} {}",
        crossing.series, crossing.state, crossing.value
    );
    drop(subscription);
    // SAFETY: nothing of it is used after this.
    unsafe { stop() };
    Ok(())
}
