//! The C ABI of metricbus: what C and C++ code calls to publish into a bus and to listen to it.
//!
//! `capi/include/metricbus.h` is generated from this crate and says what each function does; `metricbus.hpp` makes C++17
//! of it; `capi/README.md` says what holds for all: threads, ownership, lifetimes, versions.
//!
//! A Rust program that hosts C++ code hands it a bus with [`share`]:
//!
//! ```
//! use metricbus::MetricBus;
//! use metricbus_capi::{mb_bus, mb_bus_free, share};
//!
//! unsafe extern "C" fn begin(_bus: *mut mb_bus) { /* the C++ side */ }
//!
//! let bus = MetricBus::new();
//! let shared = share(&bus);
//! // SAFETY: the handle is alive, and freed once.
//! unsafe {
//!     begin(shared);
//!     mb_bus_free(shared);
//! }
//! ```
//!
//! C++ code that is linked into the program finds the functions there. A shared library that the program loads finds them
//! if the program exports its symbols: with `cargo:rustc-link-arg-bins=-rdynamic` in its `build.rs`. It must not be linked
//! with `libmetricbus_capi`: that would be a second copy, which refuses the bus of the first
//! ([`MB_ERROR_FOREIGN`]).

// The names are C's.
#![allow(non_camel_case_types)]
// What callers promise is the same everywhere, and said in the README: handles are alive, pointers lead to what they say,
// places may be written.
#![allow(clippy::missing_safety_doc)]

mod bus;
mod counter;
mod exports;
mod gauge;
mod histogram;
mod input;
mod listen;
mod serve;
mod status;
mod window;

pub use self::{
    bus::*, counter::*, gauge::*, histogram::*, listen::*, serve::*, status::*, window::*,
};
pub use metricbus::backend::libnv::abi::*;
use metricbus::{MetricBus, Scope};

/// A handle to this bus for C and C++, to be freed with [`mb_bus_free`]. It keeps the bus alive.
#[must_use = "it leaks unless it is freed with mb_bus_free"]
pub fn share(bus: &MetricBus) -> *mut mb_bus {
    share_scope(&bus.scope())
}

/// As [`share`], with a prefix and labels for all that is declared with it.
#[must_use = "it leaks unless it is freed with mb_bus_free"]
pub fn share_scope(scope: &Scope) -> *mut mb_bus {
    exports::keep();
    Box::into_raw(Box::new(mb_bus::new(scope.clone())))
}

/// Handles may be used by several threads at once, and given back by any.
const _: () = {
    const fn shared<T: Send + Sync>() {}
    shared::<Scope>();
    shared::<mb_counter>();
    shared::<mb_counter_family>();
    shared::<mb_gauge>();
    shared::<mb_gauge_family>();
    shared::<mb_histogram>();
    shared::<mb_histogram_family>();
    shared::<mb_window>();
    shared::<mb_subscription>();
    shared::<mb_server>();
};
