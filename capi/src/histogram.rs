//! Histograms: count observations in buckets.

use metricbus::{Family, Histogram};

use crate::{
    bus::{desc, mb_bus, mb_desc},
    input::{borrowed, place, taken, texts, write},
    mb_str,
    status::{guard, guard_quietly},
};

/// A histogram: one series.
pub struct mb_histogram(Histogram);

/// Histograms of one name, that differ in the values of their labels.
pub struct mb_histogram_family(Family<Histogram>);

/// Declares a histogram, or gives the one that was declared before in the same way.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mb_histogram_new(
    bus: *const mb_bus,
    description: *const mb_desc,
    histogram: *mut *mut mb_histogram,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise, here and below.
        let place = unsafe { place(histogram, "the place for the histogram") }?;
        // SAFETY: as above.
        let bus = unsafe { mb_bus::borrowed(bus) }?;
        // SAFETY: as above.
        let desc = unsafe { desc(description) }?;
        place.put(mb_histogram(bus.declare(desc)?));
        Ok(())
    })
}

/// Another handle to the same histogram.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mb_histogram_clone(
    histogram: *const mb_histogram,
    clone: *mut *mut mb_histogram,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise, here and below.
        let place = unsafe { place(clone, "the place for the histogram") }?;
        // SAFETY: as above.
        let histogram = unsafe { borrowed(histogram, "the histogram") }?;
        place.put(mb_histogram(histogram.0.clone()));
        Ok(())
    })
}

/// Gives a handle back. The histogram stays on the bus, with its value. NULL is none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mb_histogram_free(histogram: *mut mb_histogram) {
    // SAFETY: the caller's promise.
    guard_quietly(|| drop(unsafe { taken(histogram) }));
}

/// Counts `value` in its bucket, and adds it to the sum. NaN counts in the last bucket, and makes the sum NaN.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mb_histogram_observe(histogram: *const mb_histogram, value: f64) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        unsafe { borrowed(histogram, "the histogram") }?
            .0
            .observe(value);
        Ok(())
    })
}

/// How many observations there were, and their sum. Either place may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mb_histogram_get(
    histogram: *const mb_histogram,
    count: *mut u64,
    sum: *mut f64,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise, here and below.
        let seen = unsafe { borrowed(histogram, "the histogram") }?
            .0
            .snapshot();
        if !count.is_null() {
            // SAFETY: as above.
            unsafe { write(count, "the place for the count", seen.count) }?;
        }
        if !sum.is_null() {
            // SAFETY: as above.
            unsafe { write(sum, "the place for the sum", seen.sum) }?;
        }
        Ok(())
    })
}

/// Declares a family of histograms: `label_names` of the description are the labels whose values are given per child.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mb_histogram_family_new(
    bus: *const mb_bus,
    description: *const mb_desc,
    family: *mut *mut mb_histogram_family,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise, here and below.
        let place = unsafe { place(family, "the place for the family") }?;
        // SAFETY: as above.
        let bus = unsafe { mb_bus::borrowed(bus) }?;
        // SAFETY: as above.
        let desc = unsafe { desc(description) }?;
        place.put(mb_histogram_family(bus.family(desc)?));
        Ok(())
    })
}

/// The child with these values, in the order of the names; made where there is none. Worth keeping: to look it up costs
/// more than to count.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mb_histogram_family_with(
    family: *const mb_histogram_family,
    values: *const mb_str,
    values_len: usize,
    histogram: *mut *mut mb_histogram,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise, here and below.
        let place = unsafe { place(histogram, "the place for the histogram") }?;
        // SAFETY: as above.
        let family = unsafe { borrowed(family, "the family") }?;
        // SAFETY: as above.
        let values = unsafe { texts(values, values_len, "the list of label values") }?;
        place.put(mb_histogram(family.0.with_label_values(&values)?));
        Ok(())
    })
}

/// Removes the child with these values, and says whether there was one (`removed` may be NULL). Who still holds it counts
/// for nobody.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mb_histogram_family_remove(
    family: *const mb_histogram_family,
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
pub unsafe extern "C" fn mb_histogram_family_free(family: *mut mb_histogram_family) {
    // SAFETY: the caller's promise.
    guard_quietly(|| drop(unsafe { taken(family) }));
}
