use std::{
    ffi::{CStr, c_char, c_void},
    ptr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use super::{abi::*, *};
use crate::{Buckets, Counter, Desc, MetricContainer, SampleValue, component::Backends};

/// A library written in Rust, with one series at a time and switches to fail.
struct Far {
    /// The functions of its table.
    table: mb_backend_table,
}

/// One series there.
#[derive(Default)]
struct Account {
    kind: i32,
    whole: u64,
    real: f64,
    seen: Vec<f64>,
    removed: bool,
}

type Shared = Mutex<Account>;

static DESTROYED: AtomicUsize = AtomicUsize::new(0);
static RELEASED: AtomicUsize = AtomicUsize::new(0);
static CALLS: AtomicU32 = AtomicU32::new(0);
static FAIL: AtomicBool = AtomicBool::new(false);
/// The library is one for the process, as a real one would be.
static ALONE: Mutex<()> = Mutex::new(());

unsafe extern "C" fn last_error() -> *const c_char {
    c"the disk is full".as_ptr()
}

unsafe extern "C" fn no_words() -> *const c_char {
    ptr::null()
}

fn status() -> i32 {
    if FAIL.load(SeqCst) { 7 } else { MB_OK }
}

fn text(text: mb_str) -> String {
    // SAFETY: the program lends texts with their lengths.
    let bytes = unsafe { std::slice::from_raw_parts(text.ptr.cast::<u8>(), text.len) };
    String::from_utf8(bytes.to_vec()).unwrap()
}

unsafe extern "C" fn init(config: *const mb_backend_config, backend: *mut *mut c_void) -> i32 {
    // SAFETY: the program hands over a configuration and a place.
    let (config, backend) = unsafe { (&*config, &mut *backend) };
    assert_eq!(config.size, size_of::<mb_backend_config>());
    if text(config.service) == "refused" {
        return 3;
    }
    *backend = Box::into_raw(Box::new(text(config.prefix))).cast();
    MB_OK
}

unsafe extern "C" fn destroy(backend: *mut c_void) {
    // SAFETY: `init` made it, and it is destroyed once.
    drop(unsafe { Box::from_raw(backend.cast::<String>()) });
    DESTROYED.fetch_add(1, SeqCst);
}

unsafe extern "C" fn declare(
    _backend: *mut c_void,
    series: *const mb_series,
    handle: *mut *mut c_void,
) -> i32 {
    // SAFETY: the program hands over a series and a place.
    let (series, handle) = unsafe { (&*series, &mut *handle) };
    if text(series.name).contains("refused") {
        return 5;
    }
    let account = Account {
        kind: series.kind,
        ..Account::default()
    };
    *handle = Box::into_raw(Box::new(Shared::new(account))).cast();
    MB_OK
}

unsafe extern "C" fn release(_backend: *mut c_void, handle: *mut c_void) {
    // SAFETY: `declare` made it, and it is released once.
    drop(unsafe { Box::from_raw(handle.cast::<Shared>()) });
    RELEASED.fetch_add(1, SeqCst);
}

fn account<R>(handle: *mut c_void, f: impl FnOnce(&mut Account) -> R) -> R {
    CALLS.fetch_add(1, SeqCst);
    // SAFETY: `declare` made it, and it was not released.
    f(&mut unsafe { &*handle.cast::<Shared>() }.lock().unwrap())
}

unsafe extern "C" fn inc(_: *mut c_void, handle: *mut c_void, by: u64) -> i32 {
    account(handle, |account| account.whole += by);
    status()
}

unsafe extern "C" fn add(_: *mut c_void, handle: *mut c_void, by: f64) -> i32 {
    account(handle, |account| account.real += by);
    status()
}

unsafe extern "C" fn set(_: *mut c_void, handle: *mut c_void, value: f64) -> i32 {
    account(handle, |account| account.real = value);
    status()
}

unsafe extern "C" fn observe(_: *mut c_void, handle: *mut c_void, value: f64) -> i32 {
    account(handle, |account| account.seen.push(value));
    status()
}

unsafe extern "C" fn get_value(_: *mut c_void, handle: *mut c_void, value: *mut mb_value) -> i32 {
    // SAFETY: the program hands over a value, with room for as many buckets as it says.
    let value = unsafe { &mut *value };
    account(handle, |account| {
        assert_eq!(value.kind, account.kind);
        value.whole = account.whole;
        value.real = account.real;
        value.sum = account.seen.iter().sum();
        for i in 0..value.buckets_len {
            let in_last = i == value.buckets_len - 1;
            // SAFETY: as above.
            unsafe {
                *value.buckets.add(i) = if in_last {
                    account.seen.len() as u64
                } else {
                    0
                }
            };
        }
    });
    status()
}

unsafe extern "C" fn remove(_: *mut c_void, handle: *mut c_void) -> i32 {
    account(handle, |account| account.removed = true);
    status()
}

unsafe extern "C" fn flush(_: *mut c_void, deadline_ns: u64) -> i32 {
    assert!((1..=1_000_000_000).contains(&deadline_ns), "{deadline_ns}");
    status()
}

fn whole() -> mb_backend_table {
    mb_backend_table {
        abi_major: MB_ABI_MAJOR,
        abi_minor: MB_ABI_MINOR,
        size: size_of::<mb_backend_table>(),
        name: c"far".as_ptr(),
        last_error: Some(last_error),
        init: Some(init),
        destroy: Some(destroy),
        declare: Some(declare),
        release: Some(release),
        inc: Some(inc),
        add: Some(add),
        set: Some(set),
        observe: Some(observe),
        get_value: Some(get_value),
        remove: Some(remove),
        flush: Some(flush),
        shutdown: None,
    }
}

thread_local! {
    /// What the next `metricbus_backend` of this thread gives.
    static TABLE: std::cell::Cell<*const mb_backend_table> = const { std::cell::Cell::new(ptr::null()) };
}

unsafe extern "C" fn entry() -> *const mb_backend_table {
    TABLE.get()
}

impl Far {
    fn with(change: impl FnOnce(&mut mb_backend_table)) -> Far {
        let mut table = whole();
        change(&mut table);
        Far { table }
    }

    fn set_up(&self, service: &str) -> Result<Libnv, BackendError> {
        TABLE.set(&self.table);
        // SAFETY: it is a table, but for what it says of itself.
        unsafe { Libnv::linked(Some(entry), service, "myapp") }
    }

    fn container(&self) -> LibnvContainer {
        let libnv = self.set_up("api").unwrap();
        LibnvContainer::with_backend(&MetricBus::new(), "myapp", Arc::new(libnv)).unwrap()
    }

    fn error(&self) -> String {
        self.set_up("api").unwrap_err().to_string()
    }
}

fn alone() -> std::sync::MutexGuard<'static, ()> {
    let alone = ALONE
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    FAIL.store(false, SeqCst);
    alone
}

#[test]
fn handles_count_on_the_bus_and_in_the_library_and_the_library_answers() {
    let _alone = alone();
    let container = Far::with(|_| {}).container();
    let counter = container
        .create_counter("jobs_total", "Jobs.", &[])
        .unwrap();
    counter.inc();
    counter.inc_by(4);
    assert_eq!(counter.get_value(), 5);

    let gauge = container
        .create_gauge("depth", "Depth.", &[("queue", "a")])
        .unwrap();
    gauge.set(3.0);
    gauge.inc(0.5);
    assert_eq!(gauge.get_value(), 3.5);
    gauge.set(f64::NAN);
    assert!(gauge.get_value().is_nan());

    let buckets = Buckets::new([1.0, 2.0]).unwrap();
    let histogram = container
        .create_histogram("size", "Size.", &[], buckets)
        .unwrap();
    histogram.observe(1.5);
    histogram.observe(10.0);
    assert_eq!((histogram.get_count(), histogram.get_sum()), (2, 11.5));

    let text = container.export_prometheus();
    assert!(text.contains("\nmyapp_jobs_total 5\n"), "{text}");
    assert!(text.contains("\nmyapp_depth{queue=\"a\"} NaN\n"), "{text}");
}

#[test]
fn the_value_is_what_the_library_says_even_where_the_bus_says_otherwise() {
    let _alone = alone();
    unsafe extern "C" fn says_42(_: *mut c_void, _: *mut c_void, value: *mut mb_value) -> i32 {
        // SAFETY: the program hands over a value.
        unsafe { (*value).whole = 42 };
        MB_OK
    }
    let container = Far::with(|table| table.get_value = Some(says_42)).container();
    let counter = container
        .create_counter("jobs_total", "Jobs.", &[])
        .unwrap();
    counter.inc();
    assert_eq!(counter.get_value(), 42);
    assert!(
        container
            .export_prometheus()
            .ends_with("\nmyapp_jobs_total 1\n")
    );
}

#[test]
fn a_counter_in_doubles_goes_to_add_and_is_refused_where_there_is_none() {
    let _alone = alone();
    let far = Far::with(|_| {});
    let container = far.container();
    let busy: Counter<f64> = container
        .bus()
        .declare(Desc::new("busy_seconds_total", "Time spent."))
        .unwrap();
    let before = CALLS.load(SeqCst);
    busy.inc_by(0.25);
    assert_eq!(CALLS.load(SeqCst), before + 1);

    let libnv = Far::with(|table| table.add = None).set_up("api").unwrap();
    let mut series = Declared {
        name: "busy_seconds_total",
        help: "",
        unit: None,
        kind: crate::MetricKind::Counter,
        fractional: true,
        labels: &[],
        bounds: &[],
    };
    let error = libnv.declare(&series).unwrap_err().to_string();
    assert!(
        error.contains("takes no counters that count in doubles"),
        "{error}"
    );
    series.fractional = false;
    let mirror = libnv.declare(&series).unwrap().unwrap();
    mirror.inc(2);
    assert!(matches!(
        mirror.read(),
        Some(SampleValue::Counter(crate::Value::U64(2)))
    ));
}

#[test]
fn another_major_version_is_an_error_that_names_both() {
    let _alone = alone();
    let error = Far::with(|table| table.abi_major = 2).error();
    assert!(
        error.contains("it was built for version 2.0 of metricbus's C interface, and this program has version 1.0"),
        "{error}"
    );
}

#[test]
fn a_minor_version_may_be_newer_or_older() {
    let _alone = alone();
    // Newer: what lies behind the end is not looked at. Older: what is missing is as if NULL.
    for change in [
        |table: &mut mb_backend_table| table.abi_minor = 9,
        |table: &mut mb_backend_table| table.size = std::mem::offset_of!(mb_backend_table, remove),
        |table: &mut mb_backend_table| table.size = std::mem::offset_of!(mb_backend_table, flush),
    ] {
        let container = Far::with(change).container();
        let counter = container
            .create_counter("jobs_total", "Jobs.", &[])
            .unwrap();
        counter.inc_by(3);
        assert_eq!(counter.get_value(), 3);
        container.flush(Duration::from_secs(1)).unwrap();
    }
}

#[test]
fn a_newer_and_longer_table_is_read_as_far_as_it_is_known() {
    let _alone = alone();
    #[repr(C)]
    struct Longer(mb_backend_table, [usize; 4]);
    let mut longer = Longer(whole(), [usize::MAX; 4]);
    longer.0.size = size_of::<Longer>();
    longer.0.abi_minor = 1;
    TABLE.set((&raw const longer).cast());
    // SAFETY: it begins with a table.
    let libnv = unsafe { Libnv::linked(Some(entry), "api", "") }.unwrap();
    assert_eq!(libnv.library(), "far");
}

#[test]
fn a_table_that_is_too_short_or_no_table_is_an_error() {
    let _alone = alone();
    for size in [
        0,
        8,
        std::mem::offset_of!(mb_backend_table, get_value),
        usize::MAX,
    ] {
        let error = Far::with(|table| table.size = size).error();
        assert!(
            error.contains(&format!("its table says that it has {size} bytes")),
            "{error}"
        );
    }
    TABLE.set(ptr::null());
    // SAFETY: it gives NULL.
    let error = unsafe { Libnv::linked(Some(entry), "api", "") }.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("returned NULL instead of a table"),
        "{error}"
    );
    TABLE.set(ptr::without_provenance(3));
    // SAFETY: it gives what can't be a table, which is not read.
    let error = unsafe { Libnv::linked(Some(entry), "api", "") }.unwrap_err();
    assert!(error.to_string().contains("it is not aligned"), "{error}");
}

#[test]
fn each_function_that_is_needed_and_null_is_named() {
    let _alone = alone();
    type Change = fn(&mut mb_backend_table);
    let changes: [(&str, Change); 9] = [
        ("last_error", |table| table.last_error = None),
        ("init", |table| table.init = None),
        ("destroy", |table| table.destroy = None),
        ("declare", |table| table.declare = None),
        ("release", |table| table.release = None),
        ("inc", |table| table.inc = None),
        ("set", |table| table.set = None),
        ("observe", |table| table.observe = None),
        ("get_value", |table| table.get_value = None),
    ];
    for (function, change) in changes {
        let error = Far::with(change).error();
        assert!(
            error.contains(&format!("its table has NULL for {function}, which")),
            "{error}"
        );
    }
}

#[test]
fn a_failing_init_is_an_error_with_the_librarys_words() {
    let _alone = alone();
    let destroyed = DESTROYED.load(SeqCst);
    let error = Far::with(|_| {}).set_up("refused").unwrap_err();
    assert_eq!(
        error.to_string(),
        r#"backend "libnv" can't be used: library "far" failed in init (3): the disk is full"#
    );
    let error = Far::with(|table| table.last_error = Some(no_words))
        .set_up("refused")
        .unwrap_err();
    assert!(
        error.to_string().ends_with("(3): it gave no reason"),
        "{error}"
    );
    // What was never set up is not destroyed.
    assert_eq!(DESTROYED.load(SeqCst), destroyed);
}

#[test]
fn a_service_without_a_name_is_an_error() {
    let _alone = alone();
    let error = Far::with(|_| {}).set_up("").unwrap_err();
    assert!(matches!(error, BackendError::Setting { .. }), "{error}");
}

#[test]
fn a_failing_declare_is_an_error_of_what_is_created() {
    let _alone = alone();
    let container = Far::with(|_| {}).container();
    let error = container
        .create_counter("refused_total", "Refused.", &[])
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        r#"metric "myapp_refused_total": the backend refused it: library "far" failed in declare (5): the disk is full"#
    );
    // The others go on.
    let counter = container
        .create_counter("jobs_total", "Jobs.", &[])
        .unwrap();
    counter.inc();
    assert_eq!(counter.get_value(), 1);
}

#[test]
fn failing_mutations_have_happened_on_the_bus_and_are_counted() {
    let _alone = alone();
    let container = Far::with(|_| {}).container();
    let gauge = container.create_gauge("depth", "Depth.", &[]).unwrap();
    FAIL.store(true, SeqCst);
    for i in 0..5 {
        gauge.set(f64::from(i));
    }
    assert_eq!(container.backend().failed_calls(), 5);
    // What the library can't say, the bus does.
    assert_eq!(gauge.get_value(), 4.0);
    assert_eq!(container.backend().failed_calls(), 6);
    let own = container.bus().self_families();
    let family = own
        .iter()
        .find(|family| family.name == "metricbus_libnv_failed_calls_total")
        .unwrap();
    assert_eq!(
        family.series[0].value,
        SampleValue::Counter(crate::Value::U64(6))
    );
    assert_eq!(
        family.series[0].labels,
        [("library".to_owned(), "far".to_owned())]
    );

    let error = container.flush(Duration::from_secs(1)).unwrap_err();
    assert_eq!(
        error.to_string(),
        r#"backend "libnv": library "far" failed in flush (7): the disk is full"#
    );
}

#[test]
fn a_backend_is_destroyed_after_its_last_series_was_released() {
    let _alone = alone();
    let (destroyed, released) = (DESTROYED.load(SeqCst), RELEASED.load(SeqCst));
    let container = Far::with(|_| {}).container();
    let counter = container
        .create_counter("jobs_total", "Jobs.", &[])
        .unwrap();
    counter.inc();
    drop(container);
    assert_eq!(DESTROYED.load(SeqCst), destroyed);
    // Still counted by nobody but the bus, which is gone as well; and it can be asked.
    assert_eq!(counter.get_value(), 1);
    drop(counter);
    assert_eq!(RELEASED.load(SeqCst), released + 1);
    assert_eq!(DESTROYED.load(SeqCst), destroyed + 1);
}

#[test]
fn a_removed_series_is_told_and_released() {
    let _alone = alone();
    let container = Far::with(|_| {}).container();
    let released = RELEASED.load(SeqCst);
    let family = container
        .create_counter_family("jobs_total", "Jobs.", &[], &["queue"])
        .unwrap();
    family.with_label_values(&["a"]).unwrap().inc();
    assert!(family.remove(&["a"]).unwrap());
    assert_eq!(RELEASED.load(SeqCst), released + 1);
    // Made again it begins again, there too.
    let again = family.with_label_values(&["a"]).unwrap();
    again.inc_by(2);
    assert_eq!(again.get_value(), 2);
}

#[test]
fn shutting_down_twice_asks_the_library_once() {
    let _alone = alone();
    static SHUT: AtomicUsize = AtomicUsize::new(0);
    unsafe extern "C" fn shutdown(_: *mut c_void, _: u64) -> i32 {
        SHUT.fetch_add(1, SeqCst);
        MB_OK
    }
    let container = Far::with(|table| table.shutdown = Some(shutdown)).container();
    container.shutdown(Duration::from_secs(1)).unwrap();
    container.shutdown(Duration::from_secs(1)).unwrap();
    assert_eq!(SHUT.load(SeqCst), 1);
}

static SHUT: AtomicBool = AtomicBool::new(false);
/// Calls that came after `shutdown`, but for those to release and to destroy.
static LATE: AtomicUsize = AtomicUsize::new(0);
static INSIDE: AtomicUsize = AtomicUsize::new(0);
/// Calls that were under way when `shutdown` was called.
static OVERLAPPED: AtomicUsize = AtomicUsize::new(0);

/// Stays in a library's function for a moment.
fn stay<R>(f: impl FnOnce() -> R) -> R {
    LATE.fetch_add(usize::from(SHUT.load(SeqCst)), SeqCst);
    INSIDE.fetch_add(1, SeqCst);
    thread::yield_now();
    let r = f();
    INSIDE.fetch_sub(1, SeqCst);
    r
}

/// A library that frees what it works with when it is shut down.
fn closing() -> Far {
    unsafe extern "C" fn late_declare(
        backend: *mut c_void,
        series: *const mb_series,
        handle: *mut *mut c_void,
    ) -> i32 {
        // SAFETY: as it was called.
        stay(|| unsafe { declare(backend, series, handle) })
    }
    unsafe extern "C" fn late_inc(backend: *mut c_void, handle: *mut c_void, by: u64) -> i32 {
        // SAFETY: as it was called.
        stay(|| unsafe { inc(backend, handle, by) })
    }
    unsafe extern "C" fn late_add(backend: *mut c_void, handle: *mut c_void, by: f64) -> i32 {
        // SAFETY: as it was called.
        stay(|| unsafe { add(backend, handle, by) })
    }
    unsafe extern "C" fn late_set(backend: *mut c_void, handle: *mut c_void, to: f64) -> i32 {
        // SAFETY: as it was called.
        stay(|| unsafe { set(backend, handle, to) })
    }
    unsafe extern "C" fn late_observe(backend: *mut c_void, handle: *mut c_void, v: f64) -> i32 {
        // SAFETY: as it was called.
        stay(|| unsafe { observe(backend, handle, v) })
    }
    unsafe extern "C" fn late_get(
        backend: *mut c_void,
        handle: *mut c_void,
        value: *mut mb_value,
    ) -> i32 {
        // SAFETY: as it was called.
        stay(|| unsafe { get_value(backend, handle, value) })
    }
    unsafe extern "C" fn late_remove(backend: *mut c_void, handle: *mut c_void) -> i32 {
        // SAFETY: as it was called.
        stay(|| unsafe { remove(backend, handle) })
    }
    unsafe extern "C" fn late_flush(_: *mut c_void, _: u64) -> i32 {
        stay(status)
    }
    unsafe extern "C" fn shutdown(_: *mut c_void, _: u64) -> i32 {
        SHUT.store(true, SeqCst);
        OVERLAPPED.fetch_add(INSIDE.load(SeqCst), SeqCst);
        status()
    }
    SHUT.store(false, SeqCst);
    for counted in [&LATE, &INSIDE, &OVERLAPPED] {
        counted.store(0, SeqCst);
    }
    Far::with(|table| {
        table.declare = Some(late_declare);
        table.inc = Some(late_inc);
        table.add = Some(late_add);
        table.set = Some(late_set);
        table.observe = Some(late_observe);
        table.get_value = Some(late_get);
        table.remove = Some(late_remove);
        table.flush = Some(late_flush);
        table.shutdown = Some(shutdown);
    })
}

#[test]
fn after_a_shutdown_the_library_hears_of_nothing_more_and_the_bus_goes_on() {
    // By the container, or past it.
    type By = fn(&LibnvContainer, Duration) -> Result<(), BackendError>;
    let ways: [By; 2] = [
        |container, deadline| container.shutdown(deadline),
        |container, deadline| container.backend().shutdown(deadline),
    ];
    for shutdown in ways {
        let _alone = alone();
        let (destroyed, released) = (DESTROYED.load(SeqCst), RELEASED.load(SeqCst));
        let container = closing().container();
        let jobs = container
            .create_counter("jobs_total", "Jobs.", &[])
            .unwrap();
        let depth = container.create_gauge("depth", "Depth.", &[]).unwrap();
        let size = container
            .create_histogram("size", "Size.", &[], Buckets::new([1.0]).unwrap())
            .unwrap();
        let family = container
            .create_counter_family("by_queue_total", "By queue.", &[], &["queue"])
            .unwrap();
        let busy: Counter<f64> = container
            .bus()
            .declare(Desc::new("busy_seconds_total", "Time spent."))
            .unwrap();
        let removed = family.with_label_values(&["a"]).unwrap();
        let count = || {
            jobs.inc_by(2);
            depth.inc(1.5);
            size.observe(0.5);
            busy.inc_by(0.25);
        };
        count();
        removed.inc();

        shutdown(&container, Duration::from_secs(20)).unwrap();
        assert!(SHUT.load(SeqCst));
        count();
        removed.inc();
        assert_eq!((jobs.get_value(), depth.get_value()), (4, 3.0));
        assert_eq!((size.get_count(), size.get_sum()), (2, 1.0));
        assert_eq!((busy.get(), removed.get_value()), (0.5, 2));
        assert!(family.remove(&["a"]).unwrap());
        // New ones are the bus's alone, and nobody waits for the library to take them.
        let start = std::time::Instant::now();
        let late = container
            .create_counter("late_total", "Late.", &[])
            .unwrap();
        let child = family.with_label_values(&["b"]).unwrap();
        late.inc_by(3);
        child.inc();
        assert_eq!((late.get_value(), child.get_value()), (3, 1));
        assert!(start.elapsed() < Duration::from_secs(4));

        let deadline = Duration::from_secs(1);
        assert_eq!(
            container.flush(deadline).unwrap_err().to_string(),
            r#"backend "libnv": library "far" has ended: it was shut down"#
        );
        container.shutdown(deadline).unwrap();
        assert_eq!(LATE.load(SeqCst), 0);
        assert_eq!(container.backend().failed_calls(), 0);

        drop((jobs, depth, size, family, busy, removed, late, child));
        drop(container);
        assert_eq!(RELEASED.load(SeqCst), released + 5);
        assert_eq!(DESTROYED.load(SeqCst), destroyed + 1);
    }
}

#[test]
fn a_library_without_a_shutdown_is_flushed_once_more_and_then_left_alone() {
    let _alone = alone();
    static FLUSHED: AtomicUsize = AtomicUsize::new(0);
    unsafe extern "C" fn flush(_: *mut c_void, _: u64) -> i32 {
        FLUSHED.fetch_add(1, SeqCst);
        MB_OK
    }
    let container = Far::with(|table| table.flush = Some(flush)).container();
    container.flush(Duration::from_secs(1)).unwrap();
    container.shutdown(Duration::from_secs(1)).unwrap();
    container.flush(Duration::from_secs(1)).unwrap_err();
    assert_eq!(FLUSHED.load(SeqCst), 2);
}

#[test]
fn a_shutdown_waits_for_the_calls_of_other_threads() {
    let _alone = alone();
    for _ in 0..5 {
        let container = closing().container();
        let jobs = container
            .create_counter("jobs_total", "Jobs.", &[])
            .unwrap();
        let by_queue = container
            .create_counter_family("by_queue_total", "By queue.", &[], &["queue"])
            .unwrap();
        let (over, counted) = (AtomicBool::new(false), AtomicUsize::new(0));
        let repeated: [Box<dyn Fn() + Send + '_>; 4] = [
            Box::new(|| {
                jobs.inc();
                counted.fetch_add(1, SeqCst);
            }),
            Box::new(|| {
                jobs.get_value();
            }),
            Box::new(|| drop(container.flush(Duration::from_secs(1)))),
            Box::new(|| {
                by_queue.with_label_values(&["a"]).unwrap().inc();
                by_queue.remove(&["a"]).unwrap();
            }),
        ];
        thread::scope(|scope| {
            for f in repeated {
                let over = &over;
                scope.spawn(move || {
                    while !over.load(SeqCst) {
                        f();
                    }
                });
            }
            let count_on = || {
                let enough = counted.load(SeqCst) + 1_000;
                while counted.load(SeqCst) < enough {
                    thread::yield_now();
                }
            };
            count_on();
            let outcome = container.shutdown(Duration::from_secs(60));
            count_on();
            over.store(true, SeqCst);
            outcome.unwrap();
        });
        assert!(SHUT.load(SeqCst));
        assert_eq!((LATE.load(SeqCst), OVERLAPPED.load(SeqCst)), (0, 0));
    }
}

#[test]
fn a_call_that_never_returns_does_not_hold_up_a_shutdown_beyond_its_deadline() {
    let _alone = alone();
    static LET_GO: AtomicBool = AtomicBool::new(false);
    unsafe extern "C" fn stuck(_: *mut c_void, _: *mut c_void, _: u64) -> i32 {
        stay(|| {
            while !LET_GO.load(SeqCst) {
                thread::yield_now();
            }
        });
        MB_OK
    }
    let mut far = closing();
    far.table.inc = Some(stuck);
    let container = far.container();
    let jobs = container
        .create_counter("jobs_total", "Jobs.", &[])
        .unwrap();
    thread::scope(|scope| {
        scope.spawn(|| jobs.inc());
        while INSIDE.load(SeqCst) == 0 {
            thread::yield_now();
        }
        // One that is left to the other thread, and which that one drops.
        jobs.inc();
        let outcome = container.shutdown(Duration::from_millis(200));
        let overlapped = OVERLAPPED.load(SeqCst);
        LET_GO.store(true, SeqCst);
        let error = outcome.unwrap_err().to_string();
        assert!(
            error.ends_with("1 series have mutations that it has not taken"),
            "{error}"
        );
        assert_eq!(overlapped, 1);
    });
    assert_eq!((LATE.load(SeqCst), jobs.get_value()), (0, 2));
}

#[test]
fn a_value_that_is_being_read_during_a_shutdown_is_waited_for_within_the_deadline() {
    let _alone = alone();
    static LET_GO: AtomicBool = AtomicBool::new(false);
    unsafe extern "C" fn stuck(_: *mut c_void, _: *mut c_void, value: *mut mb_value) -> i32 {
        stay(|| {
            while !LET_GO.load(SeqCst) {
                thread::yield_now();
            }
        });
        // SAFETY: the program hands over a value.
        unsafe { (*value).whole = 42 };
        MB_OK
    }
    for (deadline, returns) in [
        (Duration::from_millis(200), false),
        (Duration::from_secs(60), true),
    ] {
        let mut far = closing();
        far.table.get_value = Some(stuck);
        LET_GO.store(false, SeqCst);
        let container = far.container();
        let jobs = container
            .create_counter("jobs_total", "Jobs.", &[])
            .unwrap();
        thread::scope(|scope| {
            let read = scope.spawn(|| jobs.get_value());
            while INSIDE.load(SeqCst) == 0 {
                thread::yield_now();
            }
            if returns {
                scope.spawn(|| {
                    let has_begun = |error: BackendError| error.to_string().contains("has ended");
                    while !container
                        .flush(Duration::from_secs(1))
                        .is_err_and(has_begun)
                    {
                        thread::yield_now();
                    }
                    LET_GO.store(true, SeqCst);
                });
            }
            let outcome = container.shutdown(deadline);
            LET_GO.store(true, SeqCst);
            assert_eq!(OVERLAPPED.load(SeqCst), usize::from(!returns));
            match outcome {
                Ok(()) => assert!(returns),
                Err(error) => assert!(
                    error.to_string().ends_with(
                        r#"library "far" was shut down while a call of another thread was under way"#
                    ) && !returns,
                    "{error}"
                ),
            }
            assert_eq!(read.join().unwrap(), 42);
        });
        assert_eq!(jobs.get_value(), 0);
    }
}

#[test]
fn without_a_path_the_error_says_which_variable_to_set() {
    let error = Backends::new()
        .from_vars(|name| (name == "METRICBUS_BACKEND").then(|| "libnv".to_owned()))
        .unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("METRICBUS_LIBNV is \"\": no library is named"),
        "{error}"
    );
    for path in ["libnv:/nowhere/lib.so", "tee:null,libnv:/nowhere/lib.so"] {
        let error = Backends::new()
            .from_vars(|name| (name == "METRICBUS_BACKEND").then(|| path.to_owned()))
            .unwrap_err();
        assert!(
            error
                .to_string()
                .contains("\"/nowhere/lib.so\" can't be loaded: "),
            "{error}"
        );
    }
}

#[test]
fn a_library_that_is_none_of_ours_is_an_error_that_names_the_symbol() {
    let Some(libc) = ["libc.so.6", "libSystem.dylib"]
        .into_iter()
        // SAFETY: it is loaded already.
        .find(|path| unsafe { libloading::Library::new(*path) }.is_ok())
    else {
        return;
    };
    let error = Libnv::load(libc, "api", "").unwrap_err().to_string();
    assert!(
        error.contains("exports no function \"metricbus_backend\": it is no backend of metricbus"),
        "{error}"
    );
}

#[test]
fn an_unnamed_library_is_no_error() {
    let _alone = alone();
    let libnv = Far::with(|table| table.name = ptr::null())
        .set_up("api")
        .unwrap();
    assert_eq!(libnv.library(), "unnamed");
    // SAFETY: a constant.
    assert_eq!(unsafe { CStr::from_ptr(last_error()) }, c"the disk is full");
}
