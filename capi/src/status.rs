//! What a call came to: a number, and words for it. Nothing unwinds past here.

use std::{
    any::Any,
    cell::RefCell,
    ffi::{CString, c_char},
    panic::{AssertUnwindSafe, catch_unwind},
};

use metricbus::{
    BucketError, DeclareError, LabelError, SelectorError, SubscribeError,
    backend::libnv::abi::{MB_ABI_MAJOR, MB_ABI_MINOR, MB_OK},
};

/// A pointer was NULL, or not aligned for what it should point to.
pub const MB_ERROR_POINTER: i32 = 1;
/// A text was not UTF-8.
pub const MB_ERROR_UTF8: i32 = 2;
/// A number was not one of those it can be: a size, a length, a word, a share.
pub const MB_ERROR_VALUE: i32 = 3;
/// A metric can't be declared so: a name, a label, a unit, buckets, or a clash with an earlier declaration.
pub const MB_ERROR_DECLARE: i32 = 4;
/// Too few or too many label values.
pub const MB_ERROR_LABELS: i32 = 5;
/// A selector can't be read.
pub const MB_ERROR_SELECTOR: i32 = 6;
/// A threshold or a delta is wrong.
pub const MB_ERROR_SUBSCRIBE: i32 = 7;
/// There can be no server at that address.
pub const MB_ERROR_SERVE: i32 = 8;
/// This build of the library can't do that.
pub const MB_ERROR_UNSUPPORTED: i32 = 9;
/// The time was over.
pub const MB_ERROR_TIMEOUT: i32 = 10;
/// A fault of the library itself. What was asked for may have been done in part; the bus goes on.
pub const MB_ERROR_PANIC: i32 = 11;

/// The bus was made by another copy of the library in the same process.
pub const MB_ERROR_FOREIGN: i32 = 12;

/// There is no value: the gauge was never set. Nothing is wrong, and there is nothing to read.
pub const MB_NO_VALUE: i32 = 13;

/// Why a call failed.
#[derive(Debug)]
pub(crate) struct Fault {
    code: i32,
    text: String,
}

impl Fault {
    #[cold]
    pub(crate) fn new(code: i32, text: impl Into<String>) -> Self {
        Fault {
            code,
            text: text.into(),
        }
    }

    #[cold]
    pub(crate) fn no_value(series: impl std::fmt::Display) -> Self {
        Fault::new(
            MB_NO_VALUE,
            format!(
                "{series} has no value: it was never set, and was declared without an initial one"
            ),
        )
    }

    /// Keeps the words for [`mb_last_error`], and gives the number.
    #[cold]
    fn keep(self) -> i32 {
        // Without any NUL, so that nothing is cut off.
        let text = self.text.replace('\0', "\u{fffd}");
        if let Ok(text) = CString::new(text) {
            // A thread that is being torn down has nowhere to keep them.
            let _ = LAST.try_with(|last| last.replace(text));
        }
        self.code
    }
}

macro_rules! fault_of {
    ($($error:ty => $code:expr),*) => {$(
        impl From<$error> for Fault {
            fn from(error: $error) -> Self {
                Fault::new($code, error.to_string())
            }
        }
    )*};
}

fault_of!(
    DeclareError => MB_ERROR_DECLARE,
    BucketError => MB_ERROR_DECLARE,
    LabelError => MB_ERROR_LABELS,
    SelectorError => MB_ERROR_SELECTOR
);

impl From<SubscribeError> for Fault {
    fn from(error: SubscribeError) -> Self {
        let code = match error {
            SubscribeError::Selector(_) => MB_ERROR_SELECTOR,
            _ => MB_ERROR_SUBSCRIBE,
        };
        Fault::new(code, error.to_string())
    }
}

thread_local! {
    static LAST: RefCell<CString> = RefCell::new(CString::default());
}

/// Runs what a call does, and gives its number.
#[inline(always)]
pub(crate) fn guard(f: impl FnOnce() -> Result<(), Fault>) -> i32 {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(())) => MB_OK,
        Ok(Err(fault)) => fault.keep(),
        Err(panic) => panicked(panic).keep(),
    }
}

/// For calls that have no number to give.
pub(crate) fn guard_quietly(f: impl FnOnce()) {
    let _ = guard(|| {
        f();
        Ok(())
    });
}

#[cold]
fn panicked(panic: Box<dyn Any + Send>) -> Fault {
    let message = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no message)");
    let fault = Fault::new(
        MB_ERROR_PANIC,
        format!("a fault of metricbus itself, please report it: {message}"),
    );
    // The drop of what was panicked with may panic, too.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(panic)));
    fault
}

/// Why the last call of this thread that failed did so. Never NULL; empty if none has failed. A call that succeeds leaves it
/// as it is. Valid until the next call of this thread fails, or the thread ends.
#[unsafe(no_mangle)]
pub extern "C" fn mb_last_error() -> *const c_char {
    LAST.try_with(|last| last.borrow().as_ptr())
        .unwrap_or(c"(this thread is being torn down)".as_ptr())
}

/// The version of the library that runs: MB_ABI_MAJOR × 65536 + MB_ABI_MINOR of its header. A program can use a library of
/// the same major version whose minor version is not less than that of the header it was built with.
#[unsafe(no_mangle)]
pub extern "C" fn mb_abi_version() -> u32 {
    (MB_ABI_MAJOR << 16) | MB_ABI_MINOR
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    fn error() -> String {
        // SAFETY: it ends in NUL, and nothing fails in between.
        let words = unsafe { CStr::from_ptr(mb_last_error()) };
        words.to_string_lossy().into_owned()
    }

    #[test]
    fn a_panic_becomes_a_number_and_words() {
        assert_eq!(guard(|| panic!("out of cheese")), MB_ERROR_PANIC);
        assert!(
            error().ends_with("please report it: out of cheese"),
            "{}",
            error()
        );

        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("again");
            }
        }
        assert_eq!(guard(|| std::panic::panic_any(Bomb)), MB_ERROR_PANIC);
        assert!(error().ends_with("(no message)"), "{}", error());
        guard_quietly(|| panic!("nobody hears"));
    }

    #[test]
    fn words_with_a_nul_are_kept_whole() {
        let status = guard(|| Err(Fault::new(MB_ERROR_VALUE, "a\0b")));
        assert_eq!((status, &*error()), (MB_ERROR_VALUE, "a\u{fffd}b"));
        assert_eq!(guard(|| Ok(())), MB_OK);
        assert_eq!(error(), "a\u{fffd}b");
    }
}
