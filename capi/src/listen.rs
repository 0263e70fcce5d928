//! Callbacks: thresholds, deltas, changes.

use std::{
    cell::Cell,
    ffi::c_void,
    mem::{offset_of, size_of},
    ptr,
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

use metricbus::{
    Cause, Changed, Crossed, Crossing, Delta, Event, Listen, Moved, Series, Subscription, Threshold,
};

use crate::{
    bus::mb_bus,
    input::{Growing, borrowed, end, nanos, place, sized, taken, text, write_sized},
    mb_str,
    status::{Fault, MB_ERROR_POINTER, MB_ERROR_TIMEOUT, MB_ERROR_VALUE, guard, guard_quietly},
};

/// No bound at which it clears: it clears when its condition no longer holds.
pub const MB_NONE: i32 = 0;
/// Greater than the bound.
pub const MB_ABOVE: i32 = 1;
/// The bound or greater.
pub const MB_AT_LEAST: i32 = 2;
/// Less than the bound.
pub const MB_BELOW: i32 = 3;
/// The bound or less.
pub const MB_AT_MOST: i32 = 4;

/// The condition holds.
pub const MB_RAISED: i32 = 1;
/// It no longer does.
pub const MB_CLEARED: i32 = 2;

/// A mutation crossed the bound.
pub const MB_CAUSE_CROSSING: i32 = 1;
/// The condition held already when the subscription was made.
pub const MB_CAUSE_INITIAL: i32 = 2;
/// The series was removed while raised.
pub const MB_CAUSE_REMOVED: i32 = 3;

/// A live subscription.
pub struct mb_subscription {
    subscription: Subscription,
    turn: Arc<Turn>,
}

/// A threshold. Set `size`, and zeros for what is not wanted.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct mb_threshold {
    /// sizeof(mb_threshold)
    pub size: usize,
    /// MB_ABOVE, MB_AT_LEAST, MB_BELOW or MB_AT_MOST.
    pub raise: i32,
    /// MB_NONE, or the opposite direction: of above and at least, MB_BELOW or MB_AT_MOST. A value that dances on the bound
    /// calls back each time unless it clears somewhere else.
    pub clear: i32,
    /// In the unit of the metric; finite.
    pub raise_bound: f64,
    /// On the far side of it; finite.
    pub clear_bound: f64,
    /// Not to say at once of what is raised already when the subscription is made.
    pub no_initial: bool,
    /// How many events may wait for the callback; 0: 256. When there are more, the oldest is dropped that a later one of its
    /// series supersedes, so the last state of each series always arrives.
    pub capacity: usize,
}

// SAFETY: repr(C) and begins with its size. `no_initial` is read as a byte, see `threshold_of`.
unsafe impl Growing for Raw {
    const LEAST: usize = end(offset_of!(Raw, capacity), size_of::<usize>());
    const NAME: &str = "mb_threshold";
}

// What programs that were built with version 1.0 say.
#[cfg(target_pointer_width = "64")]
const _: () = assert!(<Raw as Growing>::LEAST == 48);

/// `mb_threshold` as it may come from C: any byte where a bool should be.
#[repr(C)]
#[derive(Clone, Copy)]
struct Raw {
    size: usize,
    raise: i32,
    clear: i32,
    raise_bound: f64,
    clear_bound: f64,
    no_initial: u8,
    capacity: usize,
}

const _: () = assert!(size_of::<Raw>() == size_of::<mb_threshold>());

/// A threshold was crossed. Valid during the call.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct mb_crossing {
    /// sizeof(mb_crossing) of the library.
    pub size: usize,
    /// Where: name and labels, as they are shown.
    pub series: mb_str,
    /// MB_RAISED or MB_CLEARED.
    pub state: i32,
    /// MB_CAUSE_CROSSING, MB_CAUSE_INITIAL or MB_CAUSE_REMOVED.
    pub cause: i32,
    /// The value that crossed; it may be over by now.
    pub value: f64,
    /// 1 for the first crossing of this series, 2 for the next: a gap is how many were dropped.
    pub epoch: u64,
    /// When, in nanoseconds by the bus's clock.
    pub at_ns: u64,
}

/// A value has moved by a delta or more. Valid during the call.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct mb_moved {
    /// sizeof(mb_moved) of the library.
    pub size: usize,
    /// Where.
    pub series: mb_str,
    /// The value last told, or found when subscribing.
    pub from: f64,
    /// The value now.
    pub to: f64,
    /// When, in nanoseconds by the bus's clock.
    pub at_ns: u64,
}

/// A value is not what it was when last told. Changes in between are told as one. Valid during the call.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct mb_changed {
    /// sizeof(mb_changed) of the library.
    pub size: usize,
    /// Where.
    pub series: mb_str,
    /// The value now; of a histogram, how many observations there are.
    pub value: f64,
    /// When it is told, in nanoseconds by the bus's clock.
    pub at_ns: u64,
}

/// What a subscription has done so far. Set `size` before asking.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct mb_subscription_stats {
    /// sizeof(mb_subscription_stats)
    pub size: usize,
    /// Series that matched, present and past. 0 is the commonest reason why a callback never comes.
    pub series_matched: u64,
    /// Events handed over.
    pub delivered: u64,
    /// Events dropped because too many waited.
    pub dropped: u64,
    /// Events whose callback failed.
    pub failed: u64,
    /// 1 if it was ended because its callback failed three times in a row.
    pub detached: u64,
}

// SAFETY: repr(C), begins with its size, and numbers may be any bytes.
unsafe impl Growing for mb_subscription_stats {
    const LEAST: usize = end(
        offset_of!(mb_subscription_stats, detached),
        size_of::<u64>(),
    );
    const NAME: &str = "mb_subscription_stats";
}

// What programs that were built with version 1.0 say.
#[cfg(target_pointer_width = "64")]
const _: () = assert!(<mb_subscription_stats as Growing>::LEAST == 48);

/// Called with each crossing, one at a time, on a thread of the dispatcher. Returns 0, or another number if it failed; after
/// three failures in a row it is detached. It must not throw. It may mutate metrics.
pub type mb_crossing_fn =
    Option<unsafe extern "C" fn(crossing: *const mb_crossing, user_data: *mut c_void) -> i32>;

/// As mb_crossing_fn.
pub type mb_moved_fn =
    Option<unsafe extern "C" fn(moved: *const mb_moved, user_data: *mut c_void) -> i32>;

/// As mb_crossing_fn.
pub type mb_changed_fn =
    Option<unsafe extern "C" fn(changed: *const mb_changed, user_data: *mut c_void) -> i32>;

/// Called once with the data of a callback, when it will never be called again. May be NULL.
pub type mb_drop_fn = Option<unsafe extern "C" fn(user_data: *mut c_void)>;

/// Whether a callback may still be called.
#[derive(Default)]
struct Turn {
    over: Mutex<bool>,
    bell: Condvar,
}

thread_local! {
    /// The innermost callback that this thread is in. A plain pointer: it works while the thread is torn down, too.
    static IN: Cell<*const Frame> = const { Cell::new(ptr::null()) };
}

/// A callback that this thread is in. One may be inside of another: what ends a subscription gives its data back.
struct Frame {
    turn: *const Turn,
    outer: *const Frame,
}

impl Frame {
    /// Runs C code as that of this turn.
    fn enter<T>(turn: &Arc<Turn>, call: impl FnOnce() -> T) -> T {
        let frame = Frame {
            turn: Arc::as_ptr(turn),
            outer: IN.get(),
        };
        let _leave = Leave(frame.outer);
        IN.set(&frame);
        call()
    }

    /// Whether this thread is in any callback.
    fn any() -> bool {
        !IN.get().is_null()
    }

    /// Whether it is in one of this turn.
    fn inside(turn: &Arc<Turn>) -> bool {
        let mut at = IN.get();
        // SAFETY: a frame is on this thread's stack until it is left, and then `IN` is its outer one.
        while let Some(frame) = unsafe { at.as_ref() } {
            if frame.turn == Arc::as_ptr(turn) {
                return true;
            }
            at = frame.outer;
        }
        false
    }
}

/// Goes back to the outer frame.
struct Leave(*const Frame);

impl Drop for Leave {
    fn drop(&mut self) {
        IN.set(self.0);
    }
}

impl Turn {
    fn end(&self) {
        *self.over.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.bell.notify_all();
    }

    /// Whether it came to its end in time.
    fn wait(&self, deadline: Option<Instant>) -> bool {
        let mut over = self.over.lock().unwrap_or_else(PoisonError::into_inner);
        while !*over {
            over = match deadline {
                None => self.bell.wait(over).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return false;
                    }
                    let woken = self.bell.wait_timeout(over, left);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        true
    }
}

/// What a callback was given. Its drop gives it back, once.
struct UserData {
    data: *mut c_void,
    drop: mb_drop_fn,
    turn: Arc<Turn>,
}

// SAFETY: the README says that it is used, and given back, on another thread, one at a time.
unsafe impl Send for UserData {}

impl UserData {
    fn new(data: *mut c_void, drop: mb_drop_fn) -> Self {
        UserData {
            data,
            drop,
            turn: Arc::default(),
        }
    }

    /// Calls the callback, as the one this thread is in.
    fn call(&self, callback: impl FnOnce(*mut c_void) -> i32) -> Result<(), String> {
        match Frame::enter(&self.turn, || callback(self.data)) {
            0 => Ok(()),
            status => Err(format!("the callback returned {status}")),
        }
    }
}

impl Drop for UserData {
    fn drop(&mut self) {
        if let Some(drop) = self.drop {
            // SAFETY: what C code gave for just this; called once, and nothing uses the data after it.
            Frame::enter(&self.turn, || unsafe { drop(self.data) });
        }
        self.turn.end();
    }
}

/// A text for the length of a call.
fn lend(text: &str) -> mb_str {
    mb_str {
        ptr: text.as_ptr().cast(),
        len: text.len(),
    }
}

fn shown(series: &Series) -> String {
    series.to_string()
}

/// Subscribes, with the data owned by the callback from the first moment: whatever goes wrong, it is given back.
fn subscribe<E: Event + Send + 'static>(
    listen: Listen<E>,
    data: UserData,
    call: impl Fn(&E, *mut c_void) -> i32 + Send + 'static,
) -> Result<mb_subscription, Fault> {
    let turn = data.turn.clone();
    let subscription = listen.call_fallible(move |event| data.call(|user| call(&event, user)))?;
    Ok(mb_subscription { subscription, turn })
}

fn no_callback() -> Fault {
    Fault::new(MB_ERROR_POINTER, "the callback is NULL")
}

fn threshold_of(raw: &Raw) -> Result<Threshold, Fault> {
    let word = |what: &str, word: i32, right: &str| {
        Fault::new(
            MB_ERROR_VALUE,
            format!("{what} of the threshold is {word}: it must be {right}"),
        )
    };
    let threshold = match raw.raise {
        MB_ABOVE => Threshold::above(raw.raise_bound),
        MB_AT_LEAST => Threshold::at_least(raw.raise_bound),
        MB_BELOW => Threshold::below(raw.raise_bound),
        MB_AT_MOST => Threshold::at_most(raw.raise_bound),
        other => {
            let right = "MB_ABOVE, MB_AT_LEAST, MB_BELOW or MB_AT_MOST";
            return Err(word("raise", other, right));
        }
    };
    Ok(match raw.clear {
        MB_NONE => threshold,
        MB_ABOVE => threshold.clear_above(raw.clear_bound),
        MB_AT_LEAST => threshold.clear_at_least(raw.clear_bound),
        MB_BELOW => threshold.clear_below(raw.clear_bound),
        MB_AT_MOST => threshold.clear_at_most(raw.clear_bound),
        other => {
            let right = "MB_NONE, MB_ABOVE, MB_AT_LEAST, MB_BELOW or MB_AT_MOST";
            return Err(word("clear", other, right));
        }
    })
}

/// Calls back when one of the series that a selector matches, present or future, crosses a threshold.
///
/// `user_data` is handed to each call, and to `drop_user_data` when there will be no more: after the subscription or the bus
/// has ended, or at once if this fails. Freeing the subscription ends it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mb_on_threshold(
    bus: *const mb_bus,
    selector: mb_str,
    threshold: *const mb_threshold,
    callback: mb_crossing_fn,
    user_data: *mut c_void,
    drop_user_data: mb_drop_fn,
    subscription: *mut *mut mb_subscription,
) -> i32 {
    guard(|| {
        let data = UserData::new(user_data, drop_user_data);
        // SAFETY: the caller's promise, here and below.
        let place = unsafe { place(subscription, "the place for the subscription") }?;
        // SAFETY: as above.
        let bus = unsafe { mb_bus::borrowed(bus) }?;
        // SAFETY: as above.
        let selector = unsafe { text(selector, "the selector") }?;
        // SAFETY: as above.
        let raw = unsafe { sized(threshold.cast::<Raw>(), "the threshold") }?;
        let callback = callback.ok_or_else(no_callback)?;
        let mut listen = bus
            .bus()
            .on_threshold(selector, threshold_of(&raw)?)
            .initial(raw.no_initial == 0);
        if raw.capacity > 0 {
            listen = listen.capacity(raw.capacity);
        }
        place.put(subscribe(
            listen,
            data,
            move |crossing: &Crossing, user| {
                let series = shown(&crossing.series);
                let told = mb_crossing {
                    size: size_of::<mb_crossing>(),
                    series: lend(&series),
                    state: match crossing.state {
                        Crossed::Raised => MB_RAISED,
                        Crossed::Cleared => MB_CLEARED,
                    },
                    cause: match crossing.cause {
                        Cause::Initial => MB_CAUSE_INITIAL,
                        Cause::Removed => MB_CAUSE_REMOVED,
                        _ => MB_CAUSE_CROSSING,
                    },
                    value: crossing.value,
                    epoch: crossing.epoch,
                    at_ns: crossing.at.as_nanos(),
                };
                // SAFETY: what C code gave for just this, with the data that belongs to it.
                unsafe { callback(&told, user) }
            },
        )?);
        Ok(())
    })
}

/// Calls back when one of the series has moved by `delta` or more, in the unit of the metric, since it was last told.
/// `user_data` is as in mb_on_threshold.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mb_on_delta(
    bus: *const mb_bus,
    selector: mb_str,
    delta: f64,
    callback: mb_moved_fn,
    user_data: *mut c_void,
    drop_user_data: mb_drop_fn,
    subscription: *mut *mut mb_subscription,
) -> i32 {
    guard(|| {
        let data = UserData::new(user_data, drop_user_data);
        // SAFETY: the caller's promise, here and below.
        let place = unsafe { place(subscription, "the place for the subscription") }?;
        // SAFETY: as above.
        let bus = unsafe { mb_bus::borrowed(bus) }?;
        // SAFETY: as above.
        let selector = unsafe { text(selector, "the selector") }?;
        let callback = callback.ok_or_else(no_callback)?;
        let listen = bus.bus().on_delta(selector, Delta::absolute(delta));
        place.put(subscribe(listen, data, move |moved: &Moved, user| {
            let series = shown(&moved.series);
            let told = mb_moved {
                size: size_of::<mb_moved>(),
                series: lend(&series),
                from: moved.from,
                to: moved.to,
                at_ns: moved.at.as_nanos(),
            };
            // SAFETY: what C code gave for just this, with the data that belongs to it.
            unsafe { callback(&told, user) }
        })?);
        Ok(())
    })
}

/// Calls back when one of the series has changed since it was last told: a slow callback hears of each series at most once
/// until it comes to look, and then gets its present value. `user_data` is as in mb_on_threshold.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mb_on_change(
    bus: *const mb_bus,
    selector: mb_str,
    callback: mb_changed_fn,
    user_data: *mut c_void,
    drop_user_data: mb_drop_fn,
    subscription: *mut *mut mb_subscription,
) -> i32 {
    guard(|| {
        let data = UserData::new(user_data, drop_user_data);
        // SAFETY: the caller's promise, here and below.
        let place = unsafe { place(subscription, "the place for the subscription") }?;
        // SAFETY: as above.
        let bus = unsafe { mb_bus::borrowed(bus) }?;
        // SAFETY: as above.
        let selector = unsafe { text(selector, "the selector") }?;
        let callback = callback.ok_or_else(no_callback)?;
        let listen = bus.bus().on_change(selector);
        place.put(subscribe(listen, data, move |changed: &Changed, user| {
            let series = shown(&changed.series);
            let told = mb_changed {
                size: size_of::<mb_changed>(),
                series: lend(&series),
                value: changed.value.as_f64(),
                at_ns: changed.at.as_nanos(),
            };
            // SAFETY: what C code gave for just this, with the data that belongs to it.
            unsafe { callback(&told, user) }
        })?);
        Ok(())
    })
}

/// What it has done so far.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mb_subscription_read(
    subscription: *const mb_subscription,
    result: *mut mb_subscription_stats,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise, here and below.
        let subscription = &unsafe { borrowed(subscription, "the subscription") }?.subscription;
        let stats = subscription.stats();
        let values = mb_subscription_stats {
            size: size_of::<mb_subscription_stats>(),
            series_matched: stats.series_matched,
            delivered: stats.delivered,
            dropped: stats.dropped,
            failed: stats.panicked,
            detached: subscription.is_detached().into(),
        };
        // SAFETY: as above.
        unsafe { write_sized(result, "the place for the result", values) }
    })
}

/// Ends it, and does not wait: a call that has begun goes on, and its data is given back after it. NULL is none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mb_subscription_free(subscription: *mut mb_subscription) {
    // SAFETY: the caller's promise.
    guard_quietly(|| drop(unsafe { taken(subscription) }));
}

/// Ends it, and waits until its callback has returned and its data was given back, for at most this many nanoseconds
/// (UINT64_MAX: for ever). After MB_OK it is never called again. The handle is given back in any case; MB_ERROR_TIMEOUT says
/// that a call was still under way.
///
/// In a callback, and in a drop_user_data, it never waits, whatever the time: callbacks that end each other would wait for each
/// other. There MB_ERROR_TIMEOUT says at once that a call of another subscription is under way, and MB_OK that none is, or
/// that it is the caller's own, after whose return nothing more comes. A thread that waits must hold no lock which the callback
/// wants. NULL is none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mb_subscription_join(
    subscription: *mut mb_subscription,
    timeout_ns: u64,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let Some(ended) = (unsafe { taken(subscription) }) else {
            return Ok(());
        };
        let mb_subscription { subscription, turn } = *ended;
        drop(subscription);
        if Frame::inside(&turn) {
            return Ok(());
        }
        let timeout = match Frame::any() {
            true => Duration::ZERO,
            false => nanos(timeout_ns),
        };
        let deadline = Instant::now().checked_add(timeout);
        if turn.wait(deadline) {
            return Ok(());
        }
        Err(Fault::new(
            MB_ERROR_TIMEOUT,
            "the callback had not returned when the time was over; its data is given back when it does",
        ))
    })
}

/// Leaves it in place for as long as the bus lives, and gives the handle back.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mb_subscription_forget(subscription: *mut mb_subscription) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        match unsafe { taken(subscription) } {
            Some(kept) => kept.subscription.forget(),
            None => return Err(Fault::new(MB_ERROR_POINTER, "the subscription is NULL")),
        }
        Ok(())
    })
}
