//! Counters: only grow.

use metricbus::{Counter, Family};

use crate::{
    bus::{desc, mb_bus, mb_desc},
    input::{borrowed, place, taken, texts, write},
    mb_str,
    status::{guard, guard_quietly},
};

/// A counter: one series.
pub struct mb_counter(Counter);

/// Counters of one name, that differ in the values of their labels.
pub struct mb_counter_family(Family<Counter>);

/// Declares a counter, or gives the one that was declared before in the same way.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mb_counter_new(
    bus: *const mb_bus,
    description: *const mb_desc,
    counter: *mut *mut mb_counter,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise, here and below.
        let place = unsafe { place(counter, "the place for the counter") }?;
        // SAFETY: as above.
        let bus = unsafe { mb_bus::borrowed(bus) }?;
        // SAFETY: as above.
        let desc = unsafe { desc(description) }?;
        place.put(mb_counter(bus.declare(desc)?));
        Ok(())
    })
}

/// Another handle to the same counter.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mb_counter_clone(
    counter: *const mb_counter,
    clone: *mut *mut mb_counter,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise, here and below.
        let place = unsafe { place(clone, "the place for the counter") }?;
        // SAFETY: as above.
        let counter = unsafe { borrowed(counter, "the counter") }?;
        place.put(mb_counter(counter.0.clone()));
        Ok(())
    })
}

/// Gives a handle back. The counter stays on the bus, with its value. NULL is none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mb_counter_free(counter: *mut mb_counter) {
    // SAFETY: the caller's promise.
    guard_quietly(|| drop(unsafe { taken(counter) }));
}

/// Adds 1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mb_counter_inc(counter: *const mb_counter) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        unsafe { borrowed(counter, "the counter") }?.0.inc();
        Ok(())
    })
}

/// Adds `amount`. A counter wraps at 2^64.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mb_counter_inc_by(counter: *const mb_counter, amount: u64) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        unsafe { borrowed(counter, "the counter") }?
            .0
            .inc_by(amount);
        Ok(())
    })
}

/// The present value.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mb_counter_get(counter: *const mb_counter, value: *mut u64) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise, here and below.
        let now = unsafe { borrowed(counter, "the counter") }?.0.get();
        // SAFETY: as above.
        unsafe { write(value, "the place for the value", now) }
    })
}

/// Declares a family of counters: `label_names` of the description are the labels whose values are given per child.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mb_counter_family_new(
    bus: *const mb_bus,
    description: *const mb_desc,
    family: *mut *mut mb_counter_family,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise, here and below.
        let place = unsafe { place(family, "the place for the family") }?;
        // SAFETY: as above.
        let bus = unsafe { mb_bus::borrowed(bus) }?;
        // SAFETY: as above.
        let desc = unsafe { desc(description) }?;
        place.put(mb_counter_family(bus.family(desc)?));
        Ok(())
    })
}

/// The child with these values, in the order of the names; made where there is none. Worth keeping: to look it up costs
/// more than to count.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mb_counter_family_with(
    family: *const mb_counter_family,
    values: *const mb_str,
    values_len: usize,
    counter: *mut *mut mb_counter,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise, here and below.
        let place = unsafe { place(counter, "the place for the counter") }?;
        // SAFETY: as above.
        let family = unsafe { borrowed(family, "the family") }?;
        // SAFETY: as above.
        let values = unsafe { texts(values, values_len, "the list of label values") }?;
        place.put(mb_counter(family.0.with_label_values(&values)?));
        Ok(())
    })
}

/// Removes the child with these values, and says whether there was one (`removed` may be NULL). Who still holds it counts
/// for nobody.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mb_counter_family_remove(
    family: *const mb_counter_family,
    values: *const mb_str,
    values_len: usize,
    removed: *mut bool,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise, here and below.
        let family = unsafe { borrowed(family, "the family") }?;
        // SAFETY: as above.
        let values = unsafe { texts(values, values_len, "the list of label values") }?;
        let was_there = family.0.remove(&values)?;
        if !removed.is_null() {
            // SAFETY: as above.
            unsafe { write(removed, "the place for the answer", was_there) }?;
        }
        Ok(())
    })
}

/// Gives a handle back. The family stays on the bus. NULL is none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mb_counter_family_free(family: *mut mb_counter_family) {
    // SAFETY: the caller's promise.
    guard_quietly(|| drop(unsafe { taken(family) }));
}
