//! A shared library with a C interface as a backend: it is told of each mutation, and counts by itself.
//!
//! The library exports one function, `metricbus_backend`, which gives a [table](abi::mb_backend_table) of others. Its
//! header is `capi/include/metricbus.h`; `capi/include/metricbus.hpp` makes of it a class to derive from in C++, and
//! `capi/examples/backend.cpp` is a whole one. `capi/README.md` says what a library must do about threads, ownership and
//! lifetimes.
//!
//! | what goes wrong | then |
//! |---|---|
//! | no library there, or one of its symbols can't be found | an error, with the loader's words |
//! | another version, a table that is too short, a function that is NULL | an error that says which |
//! | `init` fails | an error with the library's words |
//! | `declare` fails | an error of what is created, with its words; of a child of a family it is counted and logged |
//! | a mutation fails | it has happened on the bus; counted in `metricbus_libnv_failed_calls_total`, and logged at the 1st, 2nd, 4th … |
//! | `get_value` fails | counted and logged likewise, and the bus's value is given |
//! | it was [shut down](Backend::shutdown) | it is called no more: mutations are the bus's own, the bus's value is given, and `flush` is an error |
//! | a call throws, unwinds or crashes | the process ends: nothing can be done about foreign code in one's own process |

pub mod abi;
mod instance;
mod table;
#[cfg(test)]
mod tests;

use std::{env, ffi::OsStr, fmt, sync::Arc, time::Duration};

use self::{
    abi::mb_backend_fn,
    instance::Instance,
    table::{load, read},
};
use super::{Backend, BackendError, Declared, Mirror};
use crate::{
    MetricBus,
    component::{BackendContainer, Choice},
    own::Counts,
};

/// What it is called where a backend is chosen.
const NAME: &str = "libnv";

/// The variable with the path of the library.
const VARIABLE: &str = "METRICBUS_LIBNV";

/// A backend that is a shared library.
///
/// The library stays loaded until the process ends. Its backend is [shut down](Backend::shutdown) when it is told to, and
/// destroyed when this and all metrics that were made with it are gone. After it was shut down metrics still count on the bus, and
/// the library hears of nothing more but that series are released.
#[derive(Clone)]
pub struct Libnv(Arc<Instance>);

/// The container whose metrics go to a shared library, mutation by mutation.
///
/// Handles count on the bus and in the library; `get_value` is what the library says.
pub type LibnvContainer = BackendContainer<Libnv>;

impl Libnv {
    /// Loads a library and sets up a backend of it. A path without a `/` is looked for where the system looks for
    /// libraries.
    ///
    /// Initialisers of the library run in this process, and its functions are called: load only what you trust.
    ///
    /// ```
    /// use metricbus::backend::libnv::Libnv;
    ///
    /// let error = Libnv::load("/nowhere/libnv.so", "api", "myapp").unwrap_err();
    /// assert!(error.to_string().contains(r#"the library "/nowhere/libnv.so" can't be loaded"#), "{error}");
    /// ```
    ///
    /// # Errors
    ///
    /// Where the library can't be loaded or is none of ours, is of another version, lacks a function, or fails to set
    /// itself up; and where `service_name` is empty.
    pub fn load(
        path: impl AsRef<OsStr>,
        service_name: &str,
        prefix: &str,
    ) -> Result<Libnv, BackendError> {
        check_service_name(service_name)?;
        // SAFETY: it is the library that the operator of this process has named; what stands behind its symbol can't be
        // known here, as with any library.
        let table = unsafe { load(path.as_ref()) };
        Libnv::init(table, service_name, prefix)
    }

    /// Sets up a backend of a library that is linked into the program: `entry` is its `metricbus_backend`.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    ///
    /// # Safety
    ///
    /// `entry` gives NULL or a table as the header has it.
    pub unsafe fn linked(
        entry: mb_backend_fn,
        service_name: &str,
        prefix: &str,
    ) -> Result<Libnv, BackendError> {
        check_service_name(service_name)?;
        // SAFETY: the caller's promise.
        let table = unsafe { read(entry) }.map_err(|why| format!("the linked library: {why}"));
        Libnv::init(table, service_name, prefix)
    }

    /// As [`load`](Self::load), from the path in the environment variable `METRICBUS_LIBNV`.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load), and where the variable is not set, or empty.
    pub fn from_env(service_name: &str, prefix: &str) -> Result<Libnv, BackendError> {
        match env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
            Some(path) => Libnv::load(path, service_name, prefix),
            None => Err(no_path()),
        }
    }

    /// What was chosen as `libnv` or `libnv:PATH`.
    pub(crate) fn chosen(choice: &Choice<'_>) -> Result<Arc<dyn Backend>, BackendError> {
        let path = choice.argument.map(str::to_owned);
        let Some(path) = path
            .filter(|path| !path.is_empty())
            .or_else(|| choice.var(VARIABLE))
        else {
            return Err(no_path());
        };
        let libnv = Libnv::load(path, &choice.service_name(), choice.prefix)?;
        Ok(Arc::new(libnv))
    }

    fn init(
        table: Result<table::Table, String>,
        service_name: &str,
        prefix: &str,
    ) -> Result<Libnv, BackendError> {
        let table = table.map_err(|why| BackendError::Setup {
            backend: NAME.to_owned(),
            why,
        })?;
        let instance = Instance::init(table, service_name, prefix)?;
        Ok(Libnv(Arc::new(instance)))
    }

    /// What the library calls itself.
    pub fn library(&self) -> &str {
        self.0.library()
    }

    /// How many calls have failed: mutations that are missing there, and values that could not be read back. On
    /// `/metrics` they are `metricbus_libnv_failed_calls_total`.
    pub fn failed_calls(&self) -> u64 {
        self.0.failed()
    }
}

fn check_service_name(service_name: &str) -> Result<(), BackendError> {
    if !service_name.is_empty() {
        return Ok(());
    }
    Err(BackendError::Setting {
        setting: "service_name".to_owned(),
        value: String::new(),
        why: "a library is told whose metrics it counts; give the service a name".to_owned(),
    })
}

fn no_path() -> BackendError {
    BackendError::Setting {
        setting: VARIABLE.to_owned(),
        value: String::new(),
        why: "no library is named; set it to the path of a shared library that exports \"metricbus_backend\", \
              or name the path where the backend is chosen"
            .to_owned(),
    }
}

impl Backend for Libnv {
    fn name(&self) -> &str {
        NAME
    }

    fn attach(&self, bus: &MetricBus) -> Result<(), BackendError> {
        let shown: std::sync::Weak<dyn Counts> = Arc::<Instance>::downgrade(&self.0);
        bus.inner().show_own(shown);
        Ok(())
    }

    fn mirrors(&self) -> bool {
        true
    }

    fn declare(&self, series: &Declared<'_>) -> Result<Option<Box<dyn Mirror>>, BackendError> {
        let handle = self.0.declare(series)?;
        Ok(handle.map(|handle| Box::new(handle) as Box<dyn Mirror>))
    }

    fn flush(&self, deadline: Duration) -> Result<(), BackendError> {
        self.0.flush(deadline)
    }

    fn shutdown(&self, deadline: Duration) -> Result<(), BackendError> {
        self.0.shutdown(deadline)
    }
}

impl fmt::Debug for Libnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl BackendContainer<Libnv> {
    /// A container on a bus of its own, with the library whose path is in the environment variable `METRICBUS_LIBNV`.
    /// `prefix` is that of [`PrometheusContainer::new`](crate::PrometheusContainer::new).
    ///
    /// ```no_run
    /// use metricbus::{MetricContainer, backend::libnv::LibnvContainer};
    ///
    /// let container = LibnvContainer::new("api", "myapp")?;
    /// let jobs = container.create_counter("jobs_total", "Jobs done.", &[])?;
    /// jobs.inc();
    /// println!("the library counted {}", jobs.get_value());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Libnv::from_env`].
    pub fn new(service_name: &str, prefix: &str) -> Result<Self, BackendError> {
        let libnv = Libnv::from_env(service_name, prefix)?;
        BackendContainer::with_backend(&MetricBus::new(), prefix, Arc::new(libnv))
    }

    /// A container on a bus of its own, with the library of this path.
    ///
    /// ```
    /// use metricbus::backend::libnv::LibnvContainer;
    ///
    /// assert!(LibnvContainer::load("/nowhere/libnv.so", "api", "myapp").is_err());
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Libnv::load`].
    pub fn load(
        path: impl AsRef<OsStr>,
        service_name: &str,
        prefix: &str,
    ) -> Result<Self, BackendError> {
        LibnvContainer::load_on(&MetricBus::new(), path, service_name, prefix)
    }

    /// As [`load`](Self::load), on a bus that there is already.
    ///
    /// # Errors
    ///
    /// As [`Libnv::load`].
    pub fn load_on(
        bus: &MetricBus,
        path: impl AsRef<OsStr>,
        service_name: &str,
        prefix: &str,
    ) -> Result<Self, BackendError> {
        let libnv = Libnv::load(path, service_name, prefix)?;
        BackendContainer::with_backend(bus, prefix, Arc::new(libnv))
    }
}
