//! What becomes of everything when the process forks.
//!
//! A child has one thread. Locks that other threads held at that moment stay held in it, and the threads of the bus, of the
//! exporter and of NATS are gone. So a child touches nothing that its parent made: each object that has a part in Rust keeps
//! it together with the number of forks before it was made. In a child that number has moved on, and the first use makes
//! the part anew: the same metric on a fresh bus, from zero. What is left of the parent is neither used nor dropped.

use std::sync::{
    OnceLock,
    atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed},
};

use pyo3::{exceptions::PyImportError, prelude::*};

static FORKS: AtomicU32 = AtomicU32::new(0);

/// How often this process and those it comes from were forked, since the module was loaded.
#[inline]
pub(crate) fn forks() -> u32 {
    FORKS.load(Relaxed)
}

/// Called in each child, before anything else of ours runs in it.
#[pyfunction]
pub(crate) fn after_fork_in_child() {
    FORKS.fetch_add(1, Relaxed);
    for (live, left) in LIVE.iter().zip(&LEFT) {
        left.store(live.swap(0, Relaxed), Relaxed);
    }
}

/// What a child does not get from its parent, and what is called so in the log.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Subscription,
    DerivedGauge,
    Server,
    Forwarder,
    Fleet,
}

const NAMES: [&str; 5] = [
    "subscription",
    "derived gauge",
    "server",
    "NATS forwarder",
    "fleet",
];

/// How many of each kind live in this process. Plain numbers, since a child may ask for nothing that has a lock.
static LIVE: [AtomicUsize; NAMES.len()] = [const { AtomicUsize::new(0) }; NAMES.len()];
/// How many the parent had at the moment of the fork.
static LEFT: [AtomicUsize; NAMES.len()] = [const { AtomicUsize::new(0) }; NAMES.len()];

/// Counts one of a kind, as long as it lives.
pub(crate) struct Counted {
    kind: Kind,
    made_after: u32,
}

impl Counted {
    pub(crate) fn new(kind: Kind) -> Counted {
        LIVE[kind as usize].fetch_add(1, Relaxed);
        Counted {
            kind,
            made_after: forks(),
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if self.made_after == forks() {
            LIVE[self.kind as usize].fetch_sub(1, Relaxed);
        }
    }
}

/// In a child: what stayed with its parent, by kind.
#[pyfunction]
pub(crate) fn stayed_with_parent() -> Vec<(&'static str, usize)> {
    let left = LEFT.iter().map(|left| left.load(Relaxed));
    NAMES.into_iter().zip(left).collect()
}

/// Called when the package is imported, with what tells interpreters apart. Parts of this module are shared by all of a
/// process's interpreters, and Python before 3.12 hands it to a second one without asking.
#[pyfunction]
pub(crate) fn claim_interpreter(identity: usize) -> PyResult<()> {
    static FIRST: OnceLock<usize> = OnceLock::new();
    if *FIRST.get_or_init(|| identity) == identity {
        return Ok(());
    }
    Err(PyImportError::new_err(
        "metricbus can't be used in subinterpreters: another interpreter of this process has imported it; \
         use threads, or processes of their own",
    ))
}

/// A value that belongs to the process that made it.
pub(crate) struct Forked<T> {
    made_after: u32,
    /// `None` only while it is dropped.
    value: Option<T>,
    /// In children, and in theirs.
    later: OnceLock<Box<Forked<T>>>,
}

impl<T> Forked<T> {
    pub(crate) fn new(value: T) -> Forked<T> {
        Forked {
            made_after: forks(),
            value: Some(value),
            later: OnceLock::new(),
        }
    }

    /// If it was made by this process.
    #[inline]
    pub(crate) fn here(&self) -> Option<&T> {
        if self.made_after == forks() {
            return self.value.as_ref();
        }
        self.later.get().and_then(|later| later.here())
    }

    /// Made anew where it was made by a parent.
    #[inline]
    pub(crate) fn get_or<E>(&self, make: impl FnOnce() -> Result<T, E>) -> Result<&T, E> {
        if let (true, Some(value)) = (self.made_after == forks(), &self.value) {
            return Ok(value);
        }
        self.remake(make)
    }

    #[cold]
    fn remake<E>(&self, make: impl FnOnce() -> Result<T, E>) -> Result<&T, E> {
        let later = match self.later.get() {
            Some(later) => later,
            None => {
                let made = make()?;
                return Ok(self
                    .later
                    .get_or_init(|| Box::new(Forked::new(made)))
                    .value
                    .as_ref()
                    .unwrap_or_else(|| unreachable!("it is dropped with us")));
            }
        };
        later.get_or(make)
    }
}

impl<T> Drop for Forked<T> {
    fn drop(&mut self) {
        if self.made_after != forks() {
            // Its locks may be held for ever, by threads that are not in this process.
            std::mem::forget(self.value.take());
        }
    }
}
