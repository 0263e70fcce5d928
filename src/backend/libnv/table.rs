//! A library's table: read as far as both sides know it, and checked before anything is called.

use std::{
    ffi::{CStr, OsStr, c_char, c_void},
    mem::{MaybeUninit, offset_of, size_of},
    ptr,
};

use super::abi::{
    MB_ABI_MAJOR, MB_ABI_MINOR, mb_backend_config, mb_backend_fn, mb_backend_table, mb_series,
    mb_value,
};

/// The one symbol of a library.
const SYMBOL: &str = "metricbus_backend";

/// Up to here a table of version 1 has everything.
const LEAST: usize = offset_of!(mb_backend_table, remove);

// What libraries that were built with version 1.0 say at least.
#[cfg(target_pointer_width = "64")]
const _: () = assert!(LEAST == 104);

/// Far more than a table will ever have: a size beyond it is something else.
const SIZE_MAX: usize = 4_096;

type OnSeries<A> = unsafe extern "C" fn(*mut c_void, *mut c_void, A) -> i32;
type OnBackend = unsafe extern "C" fn(*mut c_void, u64) -> i32;

/// The functions of a library; those it may do without are options.
#[derive(Clone, Copy)]
pub(super) struct Calls {
    pub(super) last_error: unsafe extern "C" fn() -> *const c_char,
    pub(super) init: unsafe extern "C" fn(*const mb_backend_config, *mut *mut c_void) -> i32,
    pub(super) destroy: unsafe extern "C" fn(*mut c_void),
    pub(super) declare: OnDeclare,
    pub(super) release: unsafe extern "C" fn(*mut c_void, *mut c_void),
    pub(super) inc: OnSeries<u64>,
    pub(super) add: Option<OnSeries<f64>>,
    pub(super) set: OnSeries<f64>,
    pub(super) observe: OnSeries<f64>,
    pub(super) get_value: OnSeries<*mut mb_value>,
    pub(super) remove: Option<unsafe extern "C" fn(*mut c_void, *mut c_void) -> i32>,
    pub(super) flush: Option<OnBackend>,
    pub(super) shutdown: Option<OnBackend>,
}

type OnDeclare = unsafe extern "C" fn(*mut c_void, *const mb_series, *mut *mut c_void) -> i32;

/// What was read from a library.
pub(super) struct Table {
    pub(super) calls: Calls,
    /// What the library calls itself.
    pub(super) name: String,
}

/// Loads a library and reads its table. `Err`: why not, and what to do. In either case it stays for as long as the process:
/// threads of its own, and what it does at their end, may outlive every handle, and a library that is refused has run its
/// initialisers, too.
///
/// # Safety
///
/// The library's initialisers run, and its functions are what the header says.
pub(super) unsafe fn load(path: &OsStr) -> Result<Table, String> {
    // SAFETY: the caller's promise.
    let library = unsafe { open(path) }.map_err(|error| {
        format!(
            "the library {path:?} can't be loaded: {}",
            words(&error as &dyn std::error::Error)
        )
    })?;
    let library = std::mem::ManuallyDrop::new(library);
    // SAFETY: it is of this type by the header.
    let entry = unsafe { library.get::<mb_backend_fn>(SYMBOL) }.map_err(|_| {
        format!(
            "the library {path:?} exports no function {SYMBOL:?}: it is no backend of metricbus, or the \
             function is not extern \"C\", or it is hidden"
        )
    })?;
    // SAFETY: the caller's promise.
    unsafe { read(*entry) }.map_err(|why| format!("the library {path:?}: {why}"))
}

/// With all its symbols found now, rather than in the middle of a mutation.
#[cfg(unix)]
unsafe fn open(path: &OsStr) -> Result<libloading::Library, libloading::Error> {
    use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
    // SAFETY: the caller's promise.
    unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.map(Into::into)
}

#[cfg(not(unix))]
unsafe fn open(path: &OsStr) -> Result<libloading::Library, libloading::Error> {
    // SAFETY: the caller's promise.
    unsafe { libloading::Library::new(path) }
}

/// What the loader said is the source of the error, not the error itself.
fn words(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => source.to_string(),
        None => error.to_string(),
    }
}

/// Asks for the table and reads it.
///
/// # Safety
///
/// The function gives NULL or a table as the header has it.
pub(super) unsafe fn read(entry: mb_backend_fn) -> Result<Table, String> {
    let Some(entry) = entry else {
        return Err(format!("its {SYMBOL} is NULL"));
    };
    // SAFETY: the caller's promise.
    let table = unsafe { entry() };
    if table.is_null() {
        return Err(format!("its {SYMBOL}() returned NULL instead of a table"));
    }
    if !table.is_aligned() {
        return Err(format!(
            "its {SYMBOL}() returned {table:?}, which can't be a table: it is not aligned"
        ));
    }
    // The version comes first in every version; only then is it known what else there is.
    // SAFETY: not null, aligned; the rest is the caller's promise.
    let (major, minor, size) = unsafe { ((*table).abi_major, (*table).abi_minor, (*table).size) };
    if major != MB_ABI_MAJOR {
        return Err(format!(
            "it was built for version {major}.{minor} of metricbus's C interface, and this program has version \
             {MB_ABI_MAJOR}.{MB_ABI_MINOR}; build it with the metricbus.h of this version"
        ));
    }
    if !(LEAST..=SIZE_MAX).contains(&size) {
        return Err(format!(
            "its table says that it has {size} bytes, and one of version {major}.{minor} has at least {LEAST}; set size to \
             sizeof(mb_backend_table)"
        ));
    }
    let mut copy = MaybeUninit::<mb_backend_table>::zeroed();
    // SAFETY: there are `size` bytes in the one and the size of the type in the other, and they don't overlap.
    unsafe {
        ptr::copy_nonoverlapping(
            table.cast::<u8>(),
            copy.as_mut_ptr().cast(),
            size.min(size_of::<mb_backend_table>()),
        );
    }
    // SAFETY: numbers and pointers may be zero, and a function that is zero is `None`.
    let table = unsafe { copy.assume_init() };
    let name = match table.name.is_null() {
        true => "unnamed".to_owned(),
        // SAFETY: not null; that it ends in NUL is the caller's promise.
        false => unsafe { CStr::from_ptr(table.name) }
            .to_string_lossy()
            .into_owned(),
    };
    let missing = |function: &str| {
        format!("its table has NULL for {function}, which a backend can't do without")
    };
    let calls = Calls {
        last_error: table.last_error.ok_or_else(|| missing("last_error"))?,
        init: table.init.ok_or_else(|| missing("init"))?,
        destroy: table.destroy.ok_or_else(|| missing("destroy"))?,
        declare: table.declare.ok_or_else(|| missing("declare"))?,
        release: table.release.ok_or_else(|| missing("release"))?,
        inc: table.inc.ok_or_else(|| missing("inc"))?,
        add: table.add,
        set: table.set.ok_or_else(|| missing("set"))?,
        observe: table.observe.ok_or_else(|| missing("observe"))?,
        get_value: table.get_value.ok_or_else(|| missing("get_value"))?,
        remove: table.remove,
        flush: table.flush,
        shutdown: table.shutdown,
    };
    Ok(Table { calls, name })
}
