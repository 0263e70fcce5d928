//! What crosses the border to a library that is a backend: the table it exports, and what is told to it.
//!
//! Plain C types under their C names; `capi/include/metricbus.h` is generated from here, and what stands here is what a
//! C programmer reads. Nothing in this file runs.

#![allow(non_camel_case_types)]

use std::ffi::{c_char, c_void};

/// Changes when old libraries and programs can't work any more. Both sides must have the same.
pub const MB_ABI_MAJOR: u32 = 1;

/// Grows when something is added at the end of a structure. Both sides may have their own.
pub const MB_ABI_MINOR: u32 = 0;

/// As the length of a string: it ends at its first NUL byte.
pub const MB_NUL: usize = usize::MAX;

/// All is well.
pub const MB_OK: i32 = 0;

/// A counter that only grows, by whole numbers.
pub const MB_COUNTER: i32 = 1;
/// A gauge: it goes up and down, as a double.
pub const MB_GAUGE: i32 = 2;
/// A histogram: it counts observations in buckets.
pub const MB_HISTOGRAM: i32 = 3;
/// A counter that only grows, in doubles.
pub const MB_REAL_COUNTER: i32 = 4;

/// UTF-8 text. `len` is its length in bytes, or MB_NUL. With a length it may hold NUL bytes, and need not end in one.
/// No pointer and no length is the empty text.
///
/// It belongs to who made it. Whoever is given one may read it until the call returns, and copies what is to be kept.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct mb_str {
    /// The first byte.
    pub ptr: *const c_char,
    /// How many bytes, or MB_NUL.
    pub len: usize,
}

/// A label.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct mb_label {
    /// `[a-zA-Z_][a-zA-Z0-9_]*`
    pub name: mb_str,
    /// Any text.
    pub value: mb_str,
}

/// What a backend is set up with. Valid during the call.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct mb_backend_config {
    /// sizeof(mb_backend_config) of the program that calls.
    pub size: usize,
    /// The version that the program was built with.
    pub abi_major: u32,
    /// See above.
    pub abi_minor: u32,
    /// What the service is called. Never empty.
    pub service: mb_str,
    /// What stands before the names of all metrics, which have it already. May be empty.
    pub prefix: mb_str,
}

/// A series that there is from now on. Valid during the call.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct mb_series {
    /// sizeof(mb_series) of the program that calls.
    pub size: usize,
    /// The full name, with the prefix.
    pub name: mb_str,
    /// What it means. May be empty.
    pub help: mb_str,
    /// The unit; empty where none was given.
    pub unit: mb_str,
    /// MB_COUNTER, MB_GAUGE, MB_HISTOGRAM or MB_REAL_COUNTER. A library that doesn't know what it is given should fail.
    pub kind: i32,
    /// In the order in which they are shown.
    pub labels: *const mb_label,
    /// How many.
    pub labels_len: usize,
    /// Of a histogram: the upper bounds of its buckets, increasing, without the last one, which is +Inf. A value belongs
    /// to the first bucket whose bound it does not exceed; NaN to the last one.
    pub bounds: *const f64,
    /// How many.
    pub bounds_len: usize,
}

/// The value of a series, as the library has it. The program fills in `size`, `kind`, `buckets` and `buckets_len`, and
/// zeros; the library what belongs to the kind.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct mb_value {
    /// sizeof(mb_value) of the program that calls.
    pub size: usize,
    /// MB_COUNTER, MB_GAUGE, MB_HISTOGRAM or MB_REAL_COUNTER.
    pub kind: i32,
    /// Of an MB_COUNTER.
    pub whole: u64,
    /// Of an MB_GAUGE or MB_REAL_COUNTER.
    pub real: f64,
    /// Of a histogram: the sum of all observations.
    pub sum: f64,
    /// Of a histogram: room for how many observations there were in each bucket, not added up, the last one for +Inf.
    pub buckets: *mut u64,
    /// How many: bounds_len + 1.
    pub buckets_len: usize,
}

/// What a library that is a backend gives from the one function that it exports:
/// `const struct mb_backend_table *metricbus_backend(void)`.
///
/// The table is never freed or changed. Size and version are looked at before anything else: of a table from another
/// minor version, what both know is used.
///
/// All functions may be called from any thread, and from several at once. Of `inc`, `add`, `set` and `observe` there is one
/// call at a time for one series, in the order of the mutations; `get_value` may come at any time. None may throw, unwind or
/// longjmp out. Those that can fail return MB_OK or another number, and `last_error` then says why. `inc`, `add`, `set` and
/// `observe` are called by the threads that count, right after they have counted: they must not block, and must not call
/// back into the bus.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct mb_backend_table {
    /// MB_ABI_MAJOR.
    pub abi_major: u32,
    /// MB_ABI_MINOR.
    pub abi_minor: u32,
    /// sizeof(mb_backend_table).
    pub size: usize,
    /// What the library is called, for people. Ends in NUL; lives as long as the table.
    pub name: *const c_char,
    /// Why the last call of this thread that failed did so. Ends in NUL; valid until this thread calls the library
    /// again. NULL if there is nothing to say.
    pub last_error: Option<unsafe extern "C" fn() -> *const c_char>,
    /// Sets up a backend, and stores what is to be handed to all other functions. There may be several in one process.
    pub init: Option<
        unsafe extern "C" fn(config: *const mb_backend_config, backend: *mut *mut c_void) -> i32,
    >,
    /// The last call for a backend, when none of its series is held any more.
    pub destroy: Option<unsafe extern "C" fn(backend: *mut c_void)>,
    /// Takes a series, and stores what is to be handed to the functions that follow. A series is declared once, until
    /// it has been removed.
    pub declare: Option<
        unsafe extern "C" fn(
            backend: *mut c_void,
            series: *const mb_series,
            handle: *mut *mut c_void,
        ) -> i32,
    >,
    /// No one holds the series any more: the last call with this handle, which may be freed.
    pub release: Option<unsafe extern "C" fn(backend: *mut c_void, handle: *mut c_void)>,
    /// Of an MB_COUNTER: it has grown by this.
    pub inc:
        Option<unsafe extern "C" fn(backend: *mut c_void, handle: *mut c_void, by: u64) -> i32>,
    /// Of an MB_REAL_COUNTER: it has grown by this. NULL in a library that takes no such series.
    pub add:
        Option<unsafe extern "C" fn(backend: *mut c_void, handle: *mut c_void, by: f64) -> i32>,
    /// Of an MB_GAUGE: it is now this. NaN and infinities are values, too.
    pub set:
        Option<unsafe extern "C" fn(backend: *mut c_void, handle: *mut c_void, value: f64) -> i32>,
    /// Of an MB_HISTOGRAM: this was observed.
    pub observe:
        Option<unsafe extern "C" fn(backend: *mut c_void, handle: *mut c_void, value: f64) -> i32>,
    /// What the value is, as the library counted it.
    pub get_value: Option<
        unsafe extern "C" fn(
            backend: *mut c_void,
            handle: *mut c_void,
            value: *mut mb_value,
        ) -> i32,
    >,
    /// The series was removed, or has expired, and should be shown no more. Nothing comes after it but `get_value` and
    /// `release`. May be NULL.
    pub remove: Option<unsafe extern "C" fn(backend: *mut c_void, handle: *mut c_void) -> i32>,
    /// Sends on what waits, within this many nanoseconds. May be NULL.
    pub flush: Option<unsafe extern "C" fn(backend: *mut c_void, deadline_ns: u64) -> i32>,
    /// The last chance to send on what waits, within this many nanoseconds. Called at most once. After it, for this backend,
    /// come only `release` and `destroy`: what the other functions need may be freed here. Calls of other threads that are
    /// under way are waited for, within the program's deadline; one that takes longer is still at it when this is called, and
    /// so may a `release` be. May be NULL.
    pub shutdown: Option<unsafe extern "C" fn(backend: *mut c_void, deadline_ns: u64) -> i32>,
}

/// The one symbol of a library.
pub type mb_backend_fn = Option<unsafe extern "C" fn() -> *const mb_backend_table>;
