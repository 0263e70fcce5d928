//! The bus, and what a metric is declared as.

use std::{
    ffi::c_char,
    mem::{offset_of, size_of},
    ptr,
};

use metricbus::{
    Buckets, Desc, MetricBus, Scope,
    export::text::{Format, encode},
};

use crate::{
    input::{Growing, borrowed, end, labels, place, several, sized, taken, text, texts, write},
    mb_label, mb_str,
    status::{Fault, MB_ERROR_FOREIGN, MB_ERROR_VALUE, guard, guard_quietly},
};

/// A bus: metrics are declared on it, and whoever wants to hear of them subscribes to it. A handle may carry a prefix and
/// labels for what is declared with it.
#[repr(C)]
pub struct mb_bus {
    /// First, and the same in all versions: which copy of this library has made the handle.
    copy: *const u8,
    scope: Scope,
}

/// There is one in each copy of this library. A process can have two: one in a Rust program, and a shared library that its
/// C++ code was linked with. Neither may touch what the other has made.
static COPY: u8 = 0;

impl mb_bus {
    pub(crate) fn new(scope: Scope) -> mb_bus {
        mb_bus {
            copy: &raw const COPY,
            scope,
        }
    }

    /// # Safety
    ///
    /// Unless it is null or not aligned, it points to a bus that lives for `'a`.
    pub(crate) unsafe fn borrowed<'a>(bus: *const mb_bus) -> Result<&'a Scope, Fault> {
        // SAFETY: the caller's promise. Of a bus of another copy, nothing but the first field is looked at.
        let copy = unsafe { borrowed(bus.cast::<*const u8>(), "the bus") }?;
        if *copy != &raw const COPY {
            return Err(foreign());
        }
        // SAFETY: this copy has made it.
        Ok(&unsafe { &*bus }.scope)
    }
}

#[cold]
fn foreign() -> Fault {
    Fault::new(
        MB_ERROR_FOREIGN,
        "the bus was made by another copy of this library in the same process; do not link C++ code with libmetricbus_capi \
         that a Rust program gives its bus to, and export the program's own symbols (-rdynamic)",
    )
}

/// What a metric is declared as. Set `size`, and zeros for what is not wanted.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct mb_desc {
    /// sizeof(mb_desc)
    pub size: usize,
    /// `[a-zA-Z_:][a-zA-Z0-9_:]*`; the prefix of the bus's handle comes before it. That of a counter ends in `_total`.
    pub name: mb_str,
    /// What it means.
    pub help: mb_str,
    /// A base unit such as `seconds` or `bytes`, in which the name must end (before `_total`). Empty: none.
    pub unit: mb_str,
    /// Labels with their values, for all series of the declaration.
    pub labels: *const mb_label,
    /// How many.
    pub labels_len: usize,
    /// Of a family: the names of the labels whose values are given per child.
    pub label_names: *const mb_str,
    /// How many.
    pub label_names_len: usize,
    /// Of a histogram: the upper bounds of its buckets, increasing; +Inf is added. None: the usual ones for seconds.
    pub bounds: *const f64,
    /// How many, at most 1024.
    pub bounds_len: usize,
    /// How many series the family may have; 0: as many as the bus says, which is 2000. Those beyond it share one.
    pub series_max: usize,
    /// Of a gauge: where it begins, and each child of a family. NULL: it has no value until it is set, and is not shown.
    pub initial: *const f64,
}

// SAFETY: repr(C), begins with its size, and numbers and pointers may be any bytes.
unsafe impl Growing for mb_desc {
    const LEAST: usize = end(offset_of!(mb_desc, series_max), size_of::<usize>());
    const NAME: &str = "mb_desc";
}

// What programs that were built with version 1.0 say.
#[cfg(target_pointer_width = "64")]
const _: () = assert!(<mb_desc as Growing>::LEAST == 112);

/// # Safety
///
/// Unless it is null, it points to a description as its fields' comments have it.
pub(crate) unsafe fn desc(pointer: *const mb_desc) -> Result<Desc, Fault> {
    // SAFETY: the caller's promise, here and below.
    let given = unsafe { sized(pointer, "the description") }?;
    // SAFETY: as above.
    let name = unsafe { text(given.name, "the metric's name") }?;
    // SAFETY: as above.
    let help = unsafe { text(given.help, "the metric's help") }?;
    // SAFETY: as above.
    let unit = unsafe { text(given.unit, "the metric's unit") }?;
    // SAFETY: as above.
    let constant = unsafe { labels(given.labels, given.labels_len) }?;
    // SAFETY: as above.
    let names = unsafe {
        texts(
            given.label_names,
            given.label_names_len,
            "the list of label names",
        )
    }?;
    // SAFETY: as above.
    let bounds = unsafe { several(given.bounds, given.bounds_len, "the list of bounds") }?;
    let mut desc = Desc::new(name, help).labels(names);
    for (name, value) in constant {
        desc = desc.label(name, value);
    }
    if !unit.is_empty() {
        desc = desc.unit(unit);
    }
    if !bounds.is_empty() {
        desc = desc.buckets(Buckets::new(bounds)?);
    }
    if given.series_max > 0 {
        desc = desc.series_max(given.series_max);
    }
    if !given.initial.is_null() {
        // SAFETY: as above.
        let initial = unsafe { several(given.initial, 1, "the initial value") }?;
        desc = desc.initial(initial[0]);
    }
    Ok(desc)
}

/// Makes a bus.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mb_bus_new(bus: *mut *mut mb_bus) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let place = unsafe { place(bus, "the place for the bus") }?;
        place.put(mb_bus::new(MetricBus::new().scope()));
        Ok(())
    })
}

/// Another handle to the same bus, with the same prefix and labels.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mb_bus_clone(bus: *const mb_bus, clone: *mut *mut mb_bus) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let place = unsafe { place(clone, "the place for the bus") }?;
        // SAFETY: the caller's promise.
        let bus = unsafe { mb_bus::borrowed(bus) }?;
        place.put(mb_bus::new(bus.clone()));
        Ok(())
    })
}

/// Another handle to the same bus, whose prefix comes after the prefix of this one, and whose labels after its labels. They
/// are checked when something is declared.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mb_bus_scope(
    bus: *const mb_bus,
    prefix: mb_str,
    labels: *const mb_label,
    labels_len: usize,
    scope: *mut *mut mb_bus,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise, here and below.
        let place = unsafe { place(scope, "the place for the bus") }?;
        // SAFETY: as above.
        let bus = unsafe { mb_bus::borrowed(bus) }?;
        // SAFETY: as above.
        let prefix = unsafe { text(prefix, "the prefix") }?;
        // SAFETY: as above.
        let labels = unsafe { crate::input::labels(labels, labels_len) }?;
        let scope = labels
            .iter()
            .fold(bus.with_prefix(prefix), |scope, (name, value)| {
                scope.with_label(name, value)
            });
        place.put(mb_bus::new(scope));
        Ok(())
    })
}

/// Gives a handle back. With the last one the bus ends, and with it its subscriptions; metrics that are still held count
/// for nobody. NULL is none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mb_bus_free(bus: *mut mb_bus) {
    guard_quietly(|| {
        // SAFETY: the caller's promise, here and below. One of another copy is let be.
        if unsafe { mb_bus::borrowed(bus) }.is_ok() {
            // SAFETY: as above.
            drop(unsafe { taken(bus) });
        }
    });
}

/// Removes the series that a selector matches, such as `{worker="3"}`, and says how many there were (`removed` may be
/// NULL). They are shown no more, and late mutations do not bring them back.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mb_bus_remove(
    bus: *const mb_bus,
    selector: mb_str,
    removed: *mut usize,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise, here and below.
        let bus = unsafe { mb_bus::borrowed(bus) }?;
        // SAFETY: as above.
        let selector = unsafe { text(selector, "the selector") }?;
        let count = bus.bus().remove(selector)?;
        if !removed.is_null() {
            // SAFETY: as above.
            unsafe { write(removed, "the place for the count", count) }?;
        }
        Ok(())
    })
}

/// The value of the one series that a selector matches; of a histogram, how many observations there were. More or fewer
/// than one is MB_ERROR_VALUE; MB_NO_VALUE is a gauge that was never set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mb_bus_value(
    bus: *const mb_bus,
    selector: mb_str,
    value: *mut f64,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise, here and below.
        let bus = unsafe { mb_bus::borrowed(bus) }?;
        // SAFETY: as above.
        let selector = unsafe { text(selector, "the selector") }?;
        let series = bus.bus().series(selector)?;
        let [one] = &series[..] else {
            return Err(Fault::new(
                MB_ERROR_VALUE,
                format!(
                    "{selector} matches {} series; name the labels of one",
                    series.len()
                ),
            ));
        };
        let now = one.value().ok_or_else(|| Fault::no_value(one))?;
        // SAFETY: as above.
        unsafe { write(value, "the place for the value", now.as_f64()) }
    })
}

/// All metrics of the bus in Prometheus's text format 0.0.4, ending in NUL; `len`, if it is not NULL, is the length without
/// it. To be given back with mb_text_free.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mb_bus_text(
    bus: *const mb_bus,
    text: *mut *mut c_char,
    len: *mut usize,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise, here and below.
        unsafe { write(text, "the place for the text", std::ptr::null_mut()) }?;
        // SAFETY: as above.
        let bus = unsafe { mb_bus::borrowed(bus) }?;
        let mut out = Vec::new();
        encode(bus.bus(), Format::Text, &mut out);
        // A help or a label's value may hold a NUL, which would end the text too early.
        if out.contains(&0) {
            out = String::from_utf8_lossy(&out)
                .replace('\0', "\u{fffd}")
                .into_bytes();
        }
        let bytes = out.len();
        if !len.is_null() {
            // SAFETY: as above.
            unsafe { write(len, "the place for the length", bytes) }?;
        }
        // SAFETY: as above.
        unsafe { write(text, "the place for the text", given(&out)) }
    })
}

/// A text for the caller, ending in NUL. The word before it says how many words it takes: the caller may write into the text,
/// and shorten it.
fn given(text: &[u8]) -> *mut c_char {
    const WORD: usize = size_of::<usize>();
    let words = 1 + text.len() / WORD + 1;
    let mut room = vec![0_usize; words].into_boxed_slice();
    room[0] = words;
    let room = Box::into_raw(room).cast::<usize>();
    // SAFETY: behind the first word there is room for the text and at least one byte more, which is zero.
    unsafe {
        let start = room.add(1).cast::<u8>();
        ptr::copy_nonoverlapping(text.as_ptr(), start, text.len());
        start.cast()
    }
}

/// Gives a text back. NULL is none. What was written into it meanwhile, also a NUL that makes it shorter, does not matter.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mb_text_free(text: *mut c_char) {
    let text = text.cast::<usize>();
    if text.is_null() || !text.is_aligned() {
        return;
    }
    guard_quietly(|| {
        // SAFETY: the caller's promise: it was made by `given`, and before it is how many words it takes.
        drop(unsafe {
            let room = text.sub(1);
            Box::from_raw(ptr::slice_from_raw_parts_mut(room, *room))
        });
    });
}
