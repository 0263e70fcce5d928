//! The C functions, called as C code would call them: from outside, with whatever comes.

use std::{
    ffi::{CStr, c_char, c_void},
    ptr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    thread,
    time::Duration,
};

use metricbus::{Clock, MetricBus};
use metricbus_capi::*;

fn s(text: &str) -> mb_str {
    mb_str {
        ptr: text.as_ptr().cast(),
        len: text.len(),
    }
}

fn desc(name: &str) -> mb_desc {
    // SAFETY: zeros are a value of it.
    let mut desc: mb_desc = unsafe { std::mem::zeroed() };
    desc.size = size_of::<mb_desc>();
    desc.name = mb_str {
        ptr: name.as_ptr().cast(),
        len: name.len(),
    };
    desc
}

fn above(bound: f64) -> mb_threshold {
    mb_threshold {
        size: size_of::<mb_threshold>(),
        raise: MB_ABOVE,
        clear: MB_NONE,
        raise_bound: bound,
        clear_bound: 0.0,
        no_initial: false,
        capacity: 0,
    }
}

fn error() -> String {
    // SAFETY: it is never NULL, and ends in NUL.
    unsafe { CStr::from_ptr(mb_last_error()) }
        .to_str()
        .unwrap()
        .to_owned()
}

/// A bus of this test's own.
struct Bus(*mut mb_bus, MetricBus);

impl Bus {
    fn new() -> Bus {
        Bus::on(&MetricBus::new())
    }

    fn on(bus: &MetricBus) -> Bus {
        Bus(share(bus), bus.clone())
    }

    fn gauge(&self, name: &str) -> *mut mb_gauge {
        let mut gauge = ptr::null_mut();
        // SAFETY: all of it lives.
        let status = unsafe { mb_gauge_new(self.0, &desc(name), &mut gauge) };
        assert_eq!(status, MB_OK);
        gauge
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        // SAFETY: freed once.
        unsafe { mb_bus_free(self.0) };
    }
}

#[test]
fn what_c_counts_is_on_the_bus_of_the_program_that_shared_it() {
    let bus = Bus::new();
    let (mut counter, mut same) = (ptr::null_mut(), ptr::null_mut());
    let mut value = 0;
    // SAFETY: handles are alive and freed once.
    unsafe {
        assert_eq!(
            mb_counter_new(bus.0, &desc("jobs_total"), &mut counter),
            MB_OK
        );
        assert_eq!(mb_counter_new(bus.0, &desc("jobs_total"), &mut same), MB_OK);
        assert_eq!(mb_counter_inc(counter), MB_OK);
        assert_eq!(mb_counter_inc_by(same, 4), MB_OK);
        mb_counter_free(same);
        assert_eq!(mb_counter_get(counter, &mut value), MB_OK);
        mb_counter_free(counter);
    }
    assert_eq!(value, 5);
    assert_eq!(bus.1.counter("jobs_total", "").unwrap().get(), 5);
}

#[test]
fn null_is_an_error_that_says_of_what() {
    let bus = Bus::new();
    let mut counter = ptr::null_mut();
    let mut gauge = ptr::without_provenance_mut(1);
    // SAFETY: NULL is what is tried here.
    unsafe {
        assert_eq!(mb_counter_inc(ptr::null()), MB_ERROR_POINTER);
        assert_eq!(error(), "the counter is NULL");
        assert_eq!(
            mb_counter_new(ptr::null(), &desc("a"), &mut counter),
            MB_ERROR_POINTER
        );
        assert_eq!(error(), "the bus is NULL");
        assert_eq!(
            mb_counter_new(bus.0, ptr::null(), &mut counter),
            MB_ERROR_POINTER
        );
        assert_eq!(error(), "the description is NULL");
        assert_eq!(
            mb_counter_new(bus.0, &desc("a"), ptr::null_mut()),
            MB_ERROR_POINTER
        );
        assert_eq!(error(), "the place for the counter is NULL");

        // A handle that was not made is NULL, whatever was there.
        assert_eq!(
            mb_gauge_new(bus.0, &desc("no\nname"), &mut gauge),
            MB_ERROR_DECLARE
        );
        assert!(gauge.is_null());

        // Giving back none is no error.
        mb_counter_free(ptr::null_mut());
        mb_bus_free(ptr::null_mut());
        mb_text_free(ptr::null_mut());
        mb_server_free(ptr::null_mut());
        mb_window_free(ptr::null_mut());
        mb_subscription_free(ptr::null_mut());
        assert_eq!(mb_subscription_join(ptr::null_mut(), 0), MB_OK);
    }
}

#[test]
fn a_pointer_that_is_not_aligned_is_not_followed() {
    let mut value = [0_u64; 2];
    let crooked = ptr::without_provenance::<mb_counter>(0x1001);
    // SAFETY: it is not followed.
    unsafe {
        assert_eq!(mb_counter_get(crooked, &mut value[0]), MB_ERROR_POINTER);
    }
    assert!(
        error().contains("the counter is not at a multiple of 8 bytes"),
        "{}",
        error()
    );
}

#[test]
fn a_text_may_end_in_nul_or_have_a_length_and_must_be_utf_8() {
    let bus = Bus::new();
    let mut counter = ptr::null_mut();
    let mut d = desc("");
    // SAFETY: texts live, and end where they say.
    unsafe {
        d.name = mb_str {
            ptr: c"ends_in_nul_total".as_ptr(),
            len: MB_NUL,
        };
        assert_eq!(mb_counter_new(bus.0, &d, &mut counter), MB_OK);
        mb_counter_free(counter);

        d.name = s("has_a_length_total_and_more");
        d.name.len = "has_a_length_total".len();
        assert_eq!(mb_counter_new(bus.0, &d, &mut counter), MB_OK);
        mb_counter_free(counter);

        d.name = mb_str {
            ptr: c"caf\xe9".as_ptr(),
            len: MB_NUL,
        };
        assert_eq!(mb_counter_new(bus.0, &d, &mut counter), MB_ERROR_UTF8);
        assert_eq!(
            error(),
            "the metric's name is not UTF-8: byte 3 of \"caf\u{fffd}\""
        );

        d.name = mb_str {
            ptr: ptr::null(),
            len: MB_NUL,
        };
        assert_eq!(mb_counter_new(bus.0, &d, &mut counter), MB_ERROR_POINTER);
        d.name.len = 3;
        assert_eq!(mb_counter_new(bus.0, &d, &mut counter), MB_ERROR_POINTER);
        // No pointer and no length is the empty text, which is no name.
        d.name.len = 0;
        assert_eq!(mb_counter_new(bus.0, &d, &mut counter), MB_ERROR_DECLARE);
        // A length that no memory has.
        d.name = s("a");
        d.name.len = usize::MAX - 1;
        assert_eq!(mb_counter_new(bus.0, &d, &mut counter), MB_ERROR_VALUE);
    }
    assert_eq!(
        bus.1.series("ends_in_nul_total").unwrap().len()
            + bus.1.series("has_a_length_total").unwrap().len(),
        2
    );
}

#[test]
fn the_size_of_a_structure_is_looked_at_before_anything_else() {
    let bus = Bus::new();
    let mut counter = ptr::null_mut();
    // A newer program's: more fields, which have to be zero.
    #[repr(C)]
    struct Newer(mb_desc, [u64; 2]);
    let mut newer = Newer(desc("jobs_total"), [0, 0]);
    newer.0.size = size_of::<Newer>();
    // SAFETY: it begins with a description, and has the size it says.
    unsafe {
        assert_eq!(
            mb_counter_new(bus.0, (&raw const newer).cast(), &mut counter),
            MB_OK
        );
        mb_counter_free(counter);
        newer.1[1] = 1;
        assert_eq!(
            mb_counter_new(bus.0, (&raw const newer).cast(), &mut counter),
            MB_ERROR_VALUE
        );
    }
    assert!(error().contains("built for a newer one"), "{}", error());
    // Without `initial`, which came later, it is whole.
    let least = std::mem::offset_of!(mb_desc, initial);
    for size in [0, least - 1, usize::MAX] {
        let mut wrong = desc("jobs_total");
        wrong.size = size;
        // SAFETY: no more than the size is read.
        let status = unsafe { mb_counter_new(bus.0, &wrong, &mut counter) };
        assert_eq!(status, MB_ERROR_VALUE);
        assert!(error().contains("set it to sizeof(mb_desc)"), "{}", error());
    }
}

#[test]
fn families_take_as_many_values_as_they_have_labels() {
    let bus = Bus::new();
    let names = [s("method"), s("code")];
    let constant = [mb_label {
        name: s("service"),
        value: s("api"),
    }];
    let mut d = desc("requests_total");
    (d.label_names, d.label_names_len) = (names.as_ptr(), names.len());
    (d.labels, d.labels_len) = (constant.as_ptr(), constant.len());
    let (mut family, mut child) = (ptr::null_mut(), ptr::null_mut());
    let mut removed = false;
    let values = [s("GET"), s("200\0 \"quoted\"")];
    // SAFETY: handles are alive and freed once.
    unsafe {
        assert_eq!(mb_counter_family_new(bus.0, &d, &mut family), MB_OK);
        assert_eq!(
            mb_counter_family_with(family, values.as_ptr(), 2, &mut child),
            MB_OK
        );
        assert_eq!(mb_counter_inc(child), MB_OK);
        mb_counter_free(child);
        assert_eq!(
            mb_counter_family_with(family, values.as_ptr(), 1, &mut child),
            MB_ERROR_LABELS
        );
        assert!(error().contains("takes 2 label values"), "{}", error());
        assert_eq!(
            mb_counter_family_remove(family, values.as_ptr(), 2, &mut removed),
            MB_OK
        );
        assert!(removed);
        assert_eq!(
            mb_counter_family_remove(family, values.as_ptr(), 2, &mut removed),
            MB_OK
        );
        assert!(!removed);
        mb_counter_family_free(family);
        // A family without labels is none.
        assert_eq!(
            mb_counter_family_new(bus.0, &desc("x_total"), &mut family),
            MB_ERROR_DECLARE
        );
    }
}

#[test]
fn a_text_of_all_metrics_ends_where_it_says() {
    let bus = Bus::new();
    let gauge = bus.gauge("depth");
    let names = [s("queue")];
    let mut d = desc("size");
    (d.label_names, d.label_names_len) = (names.as_ptr(), 1);
    let mut family = ptr::null_mut();
    let mut child = ptr::null_mut();
    let (mut text, mut len) = (ptr::null_mut::<c_char>(), 0);
    // SAFETY: handles are alive and freed once.
    let words = unsafe {
        assert_eq!(mb_gauge_family_new(bus.0, &d, &mut family), MB_OK);
        // A NUL in a label would end the text too early.
        assert_eq!(
            mb_gauge_family_with(family, &s("a\0b"), 1, &mut child),
            MB_OK
        );
        mb_gauge_set(child, 1.0);
        mb_gauge_set(gauge, 2.5);
        assert_eq!(mb_bus_text(bus.0, &mut text, &mut len), MB_OK);
        let words = CStr::from_ptr(text).to_str().unwrap().to_owned();
        mb_text_free(text);
        mb_gauge_free(child);
        mb_gauge_family_free(family);
        mb_gauge_free(gauge);
        words
    };
    assert_eq!(words.len(), len);
    assert!(words.contains("\ndepth 2.5\n"), "{words}");
    assert!(words.contains("size{queue=\"a\u{fffd}b\"} 1\n"), "{words}");
}

#[test]
fn the_value_of_a_selector_is_that_of_one_series() {
    let bus = Bus::new();
    let gauge = bus.gauge("depth");
    let mut value = 0.0;
    let mut removed = 0;
    // SAFETY: handles are alive and freed once.
    unsafe {
        assert_eq!(mb_gauge_get(gauge, &mut value), MB_NO_VALUE);
        assert_eq!(mb_bus_value(bus.0, s("depth"), &mut value), MB_NO_VALUE);
        assert_eq!(
            error(),
            "depth has no value: it was never set, and was declared without an initial one"
        );
        assert_eq!(value, 0.0);
        mb_gauge_set(gauge, 3.0);
        assert_eq!(mb_bus_value(bus.0, s("depth"), &mut value), MB_OK);
        assert_eq!(value, 3.0);
        assert_eq!(mb_bus_value(bus.0, s("{"), &mut value), MB_ERROR_SELECTOR);
        assert_eq!(mb_bus_remove(bus.0, s("depth"), &mut removed), MB_OK);
        assert_eq!(removed, 1);
        assert_eq!(mb_bus_value(bus.0, s("depth"), &mut value), MB_ERROR_VALUE);
        assert_eq!(error(), "depth matches 0 series; name the labels of one");
        // A late mutation is for nobody, and no error.
        assert_eq!(mb_gauge_set(gauge, 4.0), MB_OK);
        mb_gauge_free(gauge);
    }
}

#[test]
fn a_window_says_what_there_was_and_nan_where_there_was_nothing() {
    let clock = Clock::manual();
    let bus = Bus::on(&MetricBus::builder().clock(clock.clone()).build());
    let mut histogram = ptr::null_mut();
    let mut window = ptr::null_mut();
    // SAFETY: zeros are a value of it.
    let mut stats: mb_window_stats = unsafe { std::mem::zeroed() };
    stats.size = size_of::<mb_window_stats>();
    let mut quantiles = [0.5, 1.0];
    // SAFETY: handles are alive and freed once.
    unsafe {
        assert_eq!(
            mb_histogram_new(bus.0, &desc("size"), &mut histogram),
            MB_OK
        );
        assert_eq!(
            mb_window_open(bus.0, s("size"), 10_000_000_000, &mut window),
            MB_OK
        );
        assert_eq!(
            mb_window_read(
                window,
                &mut stats,
                quantiles.as_ptr(),
                2,
                quantiles.as_mut_ptr()
            ),
            MB_OK
        );
        assert!(stats.avg.is_nan() && quantiles[0].is_nan());
        for i in 1..=4 {
            mb_histogram_observe(histogram, f64::from(i));
        }
        clock.advance(Duration::from_secs(5));
        quantiles = [0.0, 1.0];
        assert_eq!(
            mb_window_read(
                window,
                &mut stats,
                quantiles.as_ptr(),
                2,
                quantiles.as_mut_ptr()
            ),
            MB_OK
        );
        assert_eq!(
            (stats.count, stats.avg, stats.min, stats.max),
            (4, 2.5, 1.0, 4.0)
        );
        assert_eq!(quantiles, [1.0, 4.0]);
        assert_eq!((stats.width_ns, stats.sources), (10_000_000_000, 1));
        assert_eq!(stats.size, size_of::<mb_window_stats>());

        assert_eq!(
            mb_window_read(window, ptr::null_mut(), &1.5, 1, quantiles.as_mut_ptr()),
            MB_ERROR_VALUE
        );
        assert_eq!(
            mb_window_read(window, ptr::null_mut(), &0.5, 1, ptr::null_mut()),
            MB_ERROR_POINTER
        );
        stats.size = 3;
        assert_eq!(
            mb_window_read(window, &mut stats, ptr::null(), 0, ptr::null_mut()),
            MB_ERROR_VALUE
        );
        assert_eq!(
            mb_window_open(bus.0, s("size{"), 1, &mut window.clone()),
            MB_ERROR_SELECTOR
        );
        mb_window_free(window);
        // As wide as can be said.
        assert_eq!(
            mb_window_open(bus.0, s("size"), u64::MAX, &mut window),
            MB_OK
        );
        stats.size = size_of::<mb_window_stats>();
        assert_eq!(
            mb_window_read(window, &mut stats, ptr::null(), 0, ptr::null_mut()),
            MB_OK
        );
        mb_window_free(window);
        mb_histogram_free(histogram);
    }
}

/// What a callback is given in these tests.
struct Listener {
    told: mpsc::Sender<(String, i32, i32, f64, u64)>,
    /// What it returns.
    status: i32,
    dropped: Arc<AtomicUsize>,
}

type Told = mpsc::Receiver<(String, i32, i32, f64, u64)>;

/// The data of a callback that returns `status`, what it is told, and how often it was dropped.
fn listener(status: i32) -> (*mut c_void, Told, Arc<AtomicUsize>) {
    let (told, hear) = mpsc::channel();
    let dropped = Arc::<AtomicUsize>::default();
    let listener = Listener {
        told,
        status,
        dropped: dropped.clone(),
    };
    (Box::into_raw(Box::new(listener)).cast(), hear, dropped)
}

unsafe extern "C" fn crossed(crossing: *const mb_crossing, user: *mut c_void) -> i32 {
    // SAFETY: both are valid during the call.
    let (crossing, listener) = unsafe { (&*crossing, &*user.cast::<Listener>()) };
    // SAFETY: it has a length.
    let series =
        unsafe { std::slice::from_raw_parts(crossing.series.ptr.cast(), crossing.series.len) };
    let series = String::from_utf8(series.to_vec()).unwrap();
    let _ = listener.told.send((
        series,
        crossing.state,
        crossing.cause,
        crossing.value,
        crossing.epoch,
    ));
    listener.status
}

unsafe extern "C" fn drop_listener(user: *mut c_void) {
    // SAFETY: it was a box, and is dropped once.
    let listener = unsafe { Box::from_raw(user.cast::<Listener>()) };
    listener.dropped.fetch_add(1, SeqCst);
}

#[test]
fn a_threshold_calls_back_and_its_data_is_given_back_once() {
    let bus = Bus::new();
    let gauge = bus.gauge("kv_usage");
    let (user, hear, dropped) = listener(0);
    let mut subscription = ptr::null_mut();
    // SAFETY: handles are alive and freed once.
    unsafe {
        mb_gauge_set(gauge, 2.0);
        assert_eq!(
            mb_on_threshold(
                bus.0,
                s("kv_usage"),
                &above(1.0),
                Some(crossed),
                user,
                Some(drop_listener),
                &mut subscription
            ),
            MB_OK
        );
        let name = "kv_usage".to_owned();
        assert_eq!(
            hear.recv().unwrap(),
            (name.clone(), MB_RAISED, MB_CAUSE_INITIAL, 2.0, 1)
        );
        mb_gauge_set(gauge, 0.5);
        assert_eq!(
            hear.recv().unwrap(),
            (name.clone(), MB_CLEARED, MB_CAUSE_CROSSING, 0.5, 2)
        );
        mb_gauge_add(gauge, 3.0);
        assert_eq!(
            hear.recv().unwrap(),
            (name.clone(), MB_RAISED, MB_CAUSE_CROSSING, 3.5, 3)
        );
        bus.1.remove("kv_usage").unwrap();
        assert_eq!(
            hear.recv().unwrap(),
            (name, MB_CLEARED, MB_CAUSE_REMOVED, 3.5, 4)
        );
        assert_eq!(dropped.load(SeqCst), 0);
        assert_eq!(mb_subscription_join(subscription, u64::MAX), MB_OK);
        assert_eq!(dropped.load(SeqCst), 1);
        assert!(hear.recv().is_err());
        mb_gauge_free(gauge);
    }
}

#[test]
fn the_data_is_given_back_where_nothing_was_subscribed() {
    let bus = Bus::new();
    let wrong = mb_threshold {
        clear: MB_ABOVE,
        ..above(1.0)
    };
    let unknown = mb_threshold {
        raise: 17,
        ..above(1.0)
    };
    let mut subscription = ptr::null_mut();
    let cases: [(
        *const mb_bus,
        &str,
        *const mb_threshold,
        mb_crossing_fn,
        i32,
    ); 6] = [
        (
            ptr::null(),
            "a",
            &above(1.0),
            Some(crossed),
            MB_ERROR_POINTER,
        ),
        (bus.0, "a{", &above(1.0), Some(crossed), MB_ERROR_SELECTOR),
        (bus.0, "a", ptr::null(), Some(crossed), MB_ERROR_POINTER),
        (bus.0, "a", &above(1.0), None, MB_ERROR_POINTER),
        (bus.0, "a", &wrong, Some(crossed), MB_ERROR_SUBSCRIBE),
        (bus.0, "a", &unknown, Some(crossed), MB_ERROR_VALUE),
    ];
    for (bus, selector, threshold, callback, status) in cases {
        let (user, _hear, dropped) = listener(0);
        // SAFETY: what is wrong here is found before it is used.
        let got = unsafe {
            mb_on_threshold(
                bus,
                s(selector),
                threshold,
                callback,
                user,
                Some(drop_listener),
                &mut subscription,
            )
        };
        assert_eq!(got, status, "{}", error());
        assert_eq!(dropped.load(SeqCst), 1);
        assert!(subscription.is_null());
    }
}

#[test]
fn any_byte_may_stand_where_a_bool_should() {
    let bus = Bus::new();
    let (user, _hear, _dropped) = listener(0);
    let mut threshold = above(1.0);
    let mut subscription = ptr::null_mut();
    // SAFETY: it is C code's way to be wrong; the function reads it as a byte.
    unsafe {
        (&raw mut threshold.no_initial).cast::<u8>().write(0xa5);
        assert_eq!(
            mb_on_threshold(
                bus.0,
                s("a"),
                &raw const threshold,
                Some(crossed),
                user,
                Some(drop_listener),
                &mut subscription
            ),
            MB_OK
        );
        mb_subscription_free(subscription);
    }
}

#[test]
fn a_callback_that_fails_three_times_in_a_row_is_detached() {
    let bus = Bus::new();
    let gauge = bus.gauge("kv_usage");
    let (user, hear, dropped) = listener(-1);
    let mut subscription = ptr::null_mut();
    // SAFETY: zeros are a value of it.
    let mut stats: mb_subscription_stats = unsafe { std::mem::zeroed() };
    stats.size = size_of::<mb_subscription_stats>();
    // SAFETY: handles are alive and freed once.
    unsafe {
        mb_on_threshold(
            bus.0,
            s("kv_usage"),
            &above(1.0),
            Some(crossed),
            user,
            Some(drop_listener),
            &mut subscription,
        );
        for value in [2.0, 0.0, 2.0, 0.0, 2.0] {
            mb_gauge_set(gauge, value);
        }
        assert_eq!(hear.iter().count(), 3);
        // The end of the channel is the drop of the data.
        assert_eq!(dropped.load(SeqCst), 1);
        assert_eq!(mb_subscription_read(subscription, &mut stats), MB_OK);
        assert_eq!(
            (stats.failed, stats.detached, stats.series_matched),
            (3, 1, 1)
        );
        mb_subscription_free(subscription);
        mb_gauge_free(gauge);
    }
    assert_eq!(dropped.load(SeqCst), 1);
}

/// A callback that waits until it is let go.
struct Gate {
    inside: mpsc::Sender<()>,
    go: Mutex<mpsc::Receiver<()>>,
    over: AtomicBool,
}

unsafe extern "C" fn at_the_gate(_: *const mb_changed, user: *mut c_void) -> i32 {
    // SAFETY: the test keeps it until the callback is over.
    let gate = unsafe { &*user.cast::<Gate>() };
    gate.inside.send(()).unwrap();
    gate.go.lock().unwrap().recv().unwrap();
    gate.over.store(true, SeqCst);
    0
}

#[test]
fn joining_waits_for_a_callback_that_runs_and_not_longer_than_it_should() {
    let bus = Bus::new();
    let gauge = bus.gauge("depth");
    let (inside, is_inside) = mpsc::channel();
    let (go, wait) = mpsc::channel();
    let gate = Gate {
        inside,
        go: Mutex::new(wait),
        over: AtomicBool::new(false),
    };
    let user = (&raw const gate).cast_mut().cast::<c_void>();
    let subscribe = || {
        let mut subscription = ptr::null_mut();
        // SAFETY: handles are alive and freed once.
        let status = unsafe {
            mb_on_change(
                bus.0,
                s("depth"),
                Some(at_the_gate),
                user,
                None,
                &mut subscription,
            )
        };
        assert_eq!(status, MB_OK);
        subscription
    };

    let subscription = subscribe();
    // SAFETY: handles are alive and freed once.
    unsafe {
        mb_gauge_set(gauge, 1.0);
        is_inside.recv().unwrap();
        assert_eq!(mb_subscription_join(subscription, 1), MB_ERROR_TIMEOUT);
    }
    assert!(!gate.over.load(SeqCst));
    go.send(()).unwrap();

    let subscription = subscribe();
    // SAFETY: handles are alive and freed once.
    unsafe { mb_gauge_set(gauge, 2.0) };
    is_inside.recv().unwrap();
    gate.over.store(false, SeqCst);
    go.send(()).unwrap();
    // SAFETY: handles are alive and freed once.
    unsafe {
        assert_eq!(mb_subscription_join(subscription, u64::MAX), MB_OK);
        mb_gauge_free(gauge);
    }
    assert!(gate.over.load(SeqCst));
}

/// A callback that ends its own subscription.
struct Own {
    subscription: Mutex<mpsc::Receiver<usize>>,
    joined: mpsc::Sender<i32>,
}

unsafe extern "C" fn end_oneself(_: *const mb_moved, user: *mut c_void) -> i32 {
    // SAFETY: it lives until it is dropped.
    let own = unsafe { &*user.cast::<Own>() };
    let handle = own.subscription.lock().unwrap().recv().unwrap();
    // SAFETY: the handle is alive, and freed here only.
    let status =
        unsafe { mb_subscription_join(ptr::with_exposed_provenance_mut(handle), u64::MAX) };
    own.joined.send(status).unwrap();
    0
}

unsafe extern "C" fn drop_own(user: *mut c_void) {
    // SAFETY: it was a box, and is dropped once.
    drop(unsafe { Box::from_raw(user.cast::<Own>()) });
}

#[test]
fn a_callback_may_end_its_own_subscription() {
    let bus = Bus::new();
    let gauge = bus.gauge("depth");
    let (tell, subscription) = mpsc::channel();
    let (joined, has_joined) = mpsc::channel();
    let own = Box::into_raw(Box::new(Own {
        subscription: Mutex::new(subscription),
        joined,
    }));
    let mut handle = ptr::null_mut();
    // SAFETY: handles are alive and freed once.
    unsafe {
        mb_gauge_set(gauge, 0.0);
        let status = mb_on_delta(
            bus.0,
            s("depth"),
            1.0,
            Some(end_oneself),
            own.cast(),
            Some(drop_own),
            &mut handle,
        );
        assert_eq!(status, MB_OK);
        mb_gauge_set(gauge, 5.0);
        tell.send(handle.expose_provenance()).unwrap();
        assert_eq!(has_joined.recv().unwrap(), MB_OK);
        // The data is dropped after the callback.
        assert!(has_joined.recv().is_err());
        mb_gauge_free(gauge);
    }
}

#[test]
fn a_subscription_outlives_its_bus_and_its_data_is_given_back_all_the_same() {
    let bus = MetricBus::new();
    let shared = share(&bus);
    let (user, hear, dropped) = listener(0);
    let mut subscription = ptr::null_mut();
    // SAFETY: handles are alive and freed once.
    unsafe {
        mb_on_threshold(
            shared,
            s("a"),
            &above(1.0),
            Some(crossed),
            user,
            Some(drop_listener),
            &mut subscription,
        );
        drop(bus);
        mb_bus_free(shared);
        assert!(hear.recv().is_err());
        assert_eq!(mb_subscription_join(subscription, u64::MAX), MB_OK);
    }
    assert_eq!(dropped.load(SeqCst), 1);
}

#[test]
fn a_forgotten_subscription_lives_as_long_as_the_bus() {
    let bus = MetricBus::new();
    let shared = Bus::on(&bus);
    let gauge = shared.gauge("depth");
    let (user, hear, dropped) = listener(0);
    let mut subscription = ptr::null_mut();
    // SAFETY: handles are alive and freed once.
    unsafe {
        mb_on_threshold(
            shared.0,
            s("depth"),
            &above(1.0),
            Some(crossed),
            user,
            Some(drop_listener),
            &mut subscription,
        );
        assert_eq!(mb_subscription_forget(subscription), MB_OK);
        assert_eq!(mb_subscription_forget(ptr::null_mut()), MB_ERROR_POINTER);
        mb_gauge_set(gauge, 2.0);
        assert_eq!(hear.recv().unwrap().1, MB_RAISED);
        mb_gauge_free(gauge);
    }
    drop(shared);
    drop(bus);
    assert!(hear.recv().is_err());
    assert_eq!(dropped.load(SeqCst), 1);
}

#[test]
fn threads_count_with_one_handle_and_each_has_its_own_last_error() {
    let bus = Bus::new();
    let mut counter = ptr::null_mut();
    // SAFETY: all of it lives.
    let status = unsafe { mb_counter_new(bus.0, &desc("jobs_total"), &mut counter) };
    assert_eq!(status, MB_OK);
    let handle = counter.expose_provenance();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(move || {
                let counter = ptr::with_exposed_provenance::<mb_counter>(handle);
                // SAFETY: it lives until all threads are done.
                unsafe {
                    for _ in 0..1_000 {
                        assert_eq!(mb_counter_inc(counter), MB_OK);
                    }
                    assert_eq!(error(), "");
                    mb_counter_inc(ptr::null());
                    assert_eq!(error(), "the counter is NULL");
                }
            });
        }
    });
    assert_eq!(error(), "");
    // SAFETY: freed once.
    unsafe { mb_counter_free(counter) };
    assert_eq!(bus.1.counter("jobs_total", "").unwrap().get(), 4_000);
}

#[test]
fn a_scope_adds_its_prefix_and_its_labels() {
    let bus = Bus::new();
    let labels = [mb_label {
        name: s("worker"),
        value: s("7"),
    }];
    let mut scope = ptr::null_mut();
    let mut other = ptr::null_mut();
    // SAFETY: handles are alive and freed once.
    unsafe {
        assert_eq!(
            mb_bus_scope(bus.0, s("engine_"), labels.as_ptr(), 1, &mut scope),
            MB_OK
        );
        assert_eq!(mb_bus_clone(scope, &mut other), MB_OK);
        mb_bus_free(scope);
        let other = Bus(other, bus.1.clone());
        mb_gauge_free(other.gauge("depth"));
    }
    assert_eq!(bus.1.series("engine_depth{worker=\"7\"}").unwrap().len(), 1);
}

#[test]
#[cfg(feature = "http")]
fn a_server_serves_until_it_is_freed() {
    use std::io::{Read, Write};
    let bus = Bus::new();
    let gauge = bus.gauge("depth");
    let mut server = ptr::null_mut();
    let mut address = ptr::null();
    // SAFETY: handles are alive and freed once.
    unsafe {
        mb_gauge_set(gauge, 3.0);
        assert_eq!(mb_serve(bus.0, s(":9464"), &mut server), MB_ERROR_SERVE);
        assert!(
            error().contains("is not an address to serve at"),
            "{}",
            error()
        );
        assert_eq!(
            mb_serve(bus.0, s("127.0.0.1:0"), &mut server),
            MB_OK,
            "{}",
            error()
        );
        assert_eq!(mb_server_address(server, &mut address), MB_OK);
        let address = CStr::from_ptr(address).to_str().unwrap().to_owned();
        let mut stream = std::net::TcpStream::connect(&address).unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains("\ndepth 3\n"), "{answer}");
        mb_server_free(server);
        assert!(std::net::TcpStream::connect(&address).is_err());
        mb_gauge_free(gauge);
    }
}

#[test]
fn the_version_is_that_of_the_header() {
    assert_eq!(mb_abi_version(), MB_ABI_MAJOR * 65_536 + MB_ABI_MINOR);
}
