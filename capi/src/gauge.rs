//! Gauges: go up and down.

use metricbus::{Family, Gauge};

use crate::{
    bus::{desc, mb_bus, mb_desc},
    input::{borrowed, place, taken, texts, write},
    mb_str,
    status::{Fault, guard, guard_quietly},
};

/// A gauge: one series.
pub struct mb_gauge(Gauge);

/// Gauges of one name, that differ in the values of their labels.
pub struct mb_gauge_family(Family<Gauge>);

/// Declares a gauge, or gives the one that was declared before in the same way.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mb_gauge_new(
    bus: *const mb_bus,
    description: *const mb_desc,
    gauge: *mut *mut mb_gauge,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise, here and below.
        let place = unsafe { place(gauge, "the place for the gauge") }?;
        // SAFETY: as above.
        let bus = unsafe { mb_bus::borrowed(bus) }?;
        // SAFETY: as above.
        let desc = unsafe { desc(description) }?;
        place.put(mb_gauge(bus.declare(desc)?));
        Ok(())
    })
}

/// Another handle to the same gauge.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mb_gauge_clone(gauge: *const mb_gauge, clone: *mut *mut mb_gauge) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise, here and below.
        let place = unsafe { place(clone, "the place for the gauge") }?;
        // SAFETY: as above.
        let gauge = unsafe { borrowed(gauge, "the gauge") }?;
        place.put(mb_gauge(gauge.0.clone()));
        Ok(())
    })
}

/// Gives a handle back. The gauge stays on the bus, with its value. NULL is none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mb_gauge_free(gauge: *mut mb_gauge) {
    // SAFETY: the caller's promise.
    guard_quietly(|| drop(unsafe { taken(gauge) }));
}

/// Makes `value` the value. NaN and infinities can be set, and are shown as such.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mb_gauge_set(gauge: *const mb_gauge, value: f64) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        unsafe { borrowed(gauge, "the gauge") }?.0.set(value);
        Ok(())
    })
}

/// Adds `amount`, which may be negative.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mb_gauge_add(gauge: *const mb_gauge, amount: f64) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        unsafe { borrowed(gauge, "the gauge") }?.0.add(amount);
        Ok(())
    })
}

/// The present value. MB_NO_VALUE where it was never set; `value` is left as it was.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mb_gauge_get(gauge: *const mb_gauge, value: *mut f64) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise, here and below.
        let gauge = &unsafe { borrowed(gauge, "the gauge") }?.0;
        let now = gauge.get().ok_or_else(|| Fault::no_value(gauge.series()))?;
        // SAFETY: as above.
        unsafe { write(value, "the place for the value", now) }
    })
}

/// Declares a family of gauges: `label_names` of the description are the labels whose values are given per child.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mb_gauge_family_new(
    bus: *const mb_bus,
    description: *const mb_desc,
    family: *mut *mut mb_gauge_family,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise, here and below.
        let place = unsafe { place(family, "the place for the family") }?;
        // SAFETY: as above.
        let bus = unsafe { mb_bus::borrowed(bus) }?;
        // SAFETY: as above.
        let desc = unsafe { desc(description) }?;
        place.put(mb_gauge_family(bus.family(desc)?));
        Ok(())
    })
}

/// The child with these values, in the order of the names; made where there is none. Worth keeping: to look it up costs
/// more than to count.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mb_gauge_family_with(
    family: *const mb_gauge_family,
    values: *const mb_str,
    values_len: usize,
    gauge: *mut *mut mb_gauge,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise, here and below.
        let place = unsafe { place(gauge, "the place for the gauge") }?;
        // SAFETY: as above.
        let family = unsafe { borrowed(family, "the family") }?;
        // SAFETY: as above.
        let values = unsafe { texts(values, values_len, "the list of label values") }?;
        place.put(mb_gauge(family.0.with_label_values(&values)?));
        Ok(())
    })
}

/// Removes the child with these values, and says whether there was one (`removed` may be NULL). Who still holds it counts
/// for nobody.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mb_gauge_family_remove(
    family: *const mb_gauge_family,
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
pub unsafe extern "C" fn mb_gauge_family_free(family: *mut mb_gauge_family) {
    // SAFETY: the caller's promise.
    guard_quietly(|| drop(unsafe { taken(family) }));
}
