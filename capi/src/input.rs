//! What C code hands over, looked at before it is used.

use std::{
    ffi::CStr,
    mem::{MaybeUninit, align_of, size_of},
    ptr, slice,
    time::Duration,
};

use crate::{
    mb_label, mb_str,
    status::{Fault, MB_ERROR_POINTER, MB_ERROR_UTF8, MB_ERROR_VALUE},
};
use metricbus::backend::libnv::abi::MB_NUL;

/// A structure that may grow: its first field is its size, and all zeros is a value of it.
///
/// # Safety
///
/// The type is `repr(C)`, begins with a `usize` that is its size, and may hold any bytes.
pub(crate) unsafe trait Growing: Copy {
    /// Its size in version 1.0, and so for as long as there is a version 1: less is not accepted. It is the [`end`] of the last
    /// field that it had then, and goes nowhere when fields are added.
    const LEAST: usize;
    const NAME: &str;
}

/// Where a field ends that has this offset and size: the size of a structure that ended with it, since the last field of each is
/// as wide as its structure is aligned.
pub(crate) const fn end(offset: usize, size: usize) -> usize {
    offset + size
}

/// More than any structure here will ever be: a size beyond it was never set.
const SIZE_MAX: usize = 4_096;

#[cold]
#[inline(never)]
fn null(what: &str) -> Fault {
    Fault::new(MB_ERROR_POINTER, format!("{what} is NULL"))
}

#[cold]
#[inline(never)]
fn unaligned(what: &str, align: usize) -> Fault {
    Fault::new(
        MB_ERROR_POINTER,
        format!(
            "{what} is not at a multiple of {align} bytes, so it can't point to what it should"
        ),
    )
}

#[inline(always)]
fn check<T>(pointer: *const T, what: &str) -> Result<(), Fault> {
    if pointer.is_null() {
        return Err(null(what));
    }
    if !pointer.is_aligned() {
        return Err(unaligned(what, align_of::<T>()));
    }
    Ok(())
}

/// A handle, or another pointer to what lives during the call.
///
/// # Safety
///
/// Unless it is null or not aligned, it points to a `T` that lives, and is not written to, for `'a`.
#[inline(always)]
pub(crate) unsafe fn borrowed<'a, T>(pointer: *const T, what: &str) -> Result<&'a T, Fault> {
    check(pointer, what)?;
    // SAFETY: not null, aligned; the rest is the caller's promise.
    Ok(unsafe { &*pointer })
}

/// Where a result goes.
///
/// # Safety
///
/// Unless it is null or not aligned, a `T` may be written there.
pub(crate) unsafe fn write<T>(pointer: *mut T, what: &str, value: T) -> Result<(), Fault> {
    check(pointer, what)?;
    // SAFETY: not null, aligned; the rest is the caller's promise. What was there is not dropped: C code put it there.
    unsafe { pointer.write(value) };
    Ok(())
}

/// Where a new handle goes: checked before anything is made.
///
/// # Safety
///
/// As [`write`], and until the result is gone.
pub(crate) unsafe fn place<T>(pointer: *mut *mut T, what: &'static str) -> Result<Place<T>, Fault> {
    // SAFETY: the caller's promise. Nobody who forgets to look at the status frees what was there before.
    unsafe { write(pointer, what, ptr::null_mut()) }?;
    Ok(Place(pointer))
}

pub(crate) struct Place<T>(*mut *mut T);

impl<T> Place<T> {
    pub(crate) fn put(self, handle: T) {
        let handle = Box::into_raw(Box::new(handle));
        // SAFETY: `place` wrote there already, and its caller promised that it may be written.
        unsafe { self.0.write(handle) };
    }
}

/// Gives back a handle. NULL is none.
///
/// # Safety
///
/// It is null, or was put by [`Place::put`] and not taken since.
pub(crate) unsafe fn taken<T>(handle: *mut T) -> Option<Box<T>> {
    // SAFETY: the caller's promise.
    (!handle.is_null() && handle.is_aligned()).then(|| unsafe { Box::from_raw(handle) })
}

/// Several of them. None at all may be NULL.
///
/// # Safety
///
/// `pointer` is null, not aligned, or points to `len` times a `T` that lives, and is not written to, for `'a`.
pub(crate) unsafe fn several<'a, T>(
    pointer: *const T,
    len: usize,
    what: &str,
) -> Result<&'a [T], Fault> {
    if len == 0 {
        return Ok(&[]);
    }
    check(pointer, what)?;
    if len > isize::MAX as usize / size_of::<T>().max(1) {
        return Err(Fault::new(
            MB_ERROR_VALUE,
            format!("{what}: {len} of them don't fit into memory"),
        ));
    }
    // SAFETY: not null, aligned, no longer than a slice can be; the rest is the caller's promise.
    Ok(unsafe { slice::from_raw_parts(pointer, len) })
}

/// A text.
///
/// # Safety
///
/// Unless its pointer is null, it points to `len` bytes, or with MB_NUL to bytes that end in a NUL, which live, and are
/// not written to, for `'a`.
pub(crate) unsafe fn text<'a>(text: mb_str, what: &str) -> Result<&'a str, Fault> {
    let bytes: &[u8] = if text.len == MB_NUL {
        check(text.ptr, what)?;
        // SAFETY: not null; that it ends in a NUL is the caller's promise.
        unsafe { CStr::from_ptr(text.ptr) }.to_bytes()
    } else {
        // SAFETY: the caller's promise.
        unsafe { several(text.ptr.cast(), text.len, what) }?
    };
    str::from_utf8(bytes).map_err(|error| {
        Fault::new(
            MB_ERROR_UTF8,
            format!(
                "{what} is not UTF-8: byte {} of {:?}",
                error.valid_up_to(),
                String::from_utf8_lossy(&bytes[..bytes.len().min(200)])
            ),
        )
    })
}

/// Several texts.
///
/// # Safety
///
/// As [`several`] and, for each of them, [`text`].
pub(crate) unsafe fn texts<'a>(
    pointer: *const mb_str,
    len: usize,
    what: &str,
) -> Result<Vec<&'a str>, Fault> {
    // SAFETY: the caller's promise.
    unsafe { several(pointer, len, what) }?
        .iter()
        // SAFETY: the caller's promise.
        .map(|one| unsafe { text(*one, what) })
        .collect()
}

/// Names and values.
///
/// # Safety
///
/// As [`several`] and, for each name and value, [`text`].
pub(crate) unsafe fn labels<'a>(
    pointer: *const mb_label,
    len: usize,
) -> Result<Vec<(&'a str, &'a str)>, Fault> {
    // SAFETY: the caller's promise.
    unsafe { several(pointer, len, "the list of labels") }?
        .iter()
        .map(|label| {
            // SAFETY: the caller's promise.
            let name = unsafe { text(label.name, "the name of a label") }?;
            // SAFETY: the caller's promise.
            let value = unsafe { text(label.value, "the value of a label") }?;
            Ok((name, value))
        })
        .collect()
}

/// A structure of a program that may be older or newer than this library: what it doesn't have is zero, and what this
/// library doesn't know has to be.
///
/// # Safety
///
/// Unless it is null or not aligned, it points to a `usize`, and to as many bytes as that says.
pub(crate) unsafe fn sized<T: Growing>(pointer: *const T, what: &str) -> Result<T, Fault> {
    check(pointer, what)?;
    // SAFETY: not null, aligned, and its first field is its size.
    let size = unsafe { pointer.cast::<usize>().read() };
    if size < T::LEAST || size > SIZE_MAX {
        return Err(wrong_size::<T>(size));
    }
    let mut value = MaybeUninit::<T>::zeroed();
    let known = size.min(size_of::<T>());
    // SAFETY: both have that many bytes, and they don't overlap.
    unsafe { ptr::copy_nonoverlapping(pointer.cast::<u8>(), value.as_mut_ptr().cast(), known) };
    // SAFETY: there are `size` bytes.
    let more = unsafe { slice::from_raw_parts(pointer.cast::<u8>().add(known), size - known) };
    if more.iter().any(|byte| *byte != 0) {
        return Err(Fault::new(
            MB_ERROR_VALUE,
            format!(
                "{what}: it asks for something that this version of metricbus does not know; \
                 the program was built for a newer one"
            ),
        ));
    }
    // SAFETY: it may hold any bytes, zeros too.
    Ok(unsafe { value.assume_init() })
}

/// The same the other way: as much of a result as the program has room for. Its size stays what it was.
///
/// # Safety
///
/// Unless it is null or not aligned, it points to a `usize`, and as many bytes as that says may be written.
pub(crate) unsafe fn write_sized<T: Growing>(
    pointer: *mut T,
    what: &str,
    value: T,
) -> Result<(), Fault> {
    check(pointer, what)?;
    // SAFETY: not null, aligned, and its first field is its size.
    let size = unsafe { pointer.cast::<usize>().read() };
    if size < T::LEAST || size > SIZE_MAX {
        return Err(wrong_size::<T>(size));
    }
    let known = size.min(size_of::<T>());
    // SAFETY: both have that many bytes, they don't overlap, and the size is put back at once.
    unsafe {
        ptr::copy_nonoverlapping((&raw const value).cast::<u8>(), pointer.cast::<u8>(), known);
        pointer.cast::<usize>().write(size);
    }
    Ok(())
}

#[cold]
fn wrong_size<T: Growing>(size: usize) -> Fault {
    Fault::new(
        MB_ERROR_VALUE,
        format!(
            "the size in {name} is {size}: set it to sizeof({name}), which is {} here",
            size_of::<T>(),
            name = T::NAME
        ),
    )
}

/// A duration; `u64::MAX` is for ever.
pub(crate) fn nanos(ns: u64) -> Duration {
    if ns == u64::MAX {
        Duration::MAX
    } else {
        Duration::from_nanos(ns)
    }
}
