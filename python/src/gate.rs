//! The interpreter's lock, for threads that are not Python's: hooks before a scrape, futures, log lines.
//!
//! While the interpreter ends, a thread that asks for its lock is ended by it, in the midst of Rust code, which takes the
//! process with it. So each of them goes through this gate, which is closed when the interpreter begins to end, after those
//! inside have come out. Whoever comes later is told that there is no interpreter any more.

use std::{
    sync::{OnceLock, PoisonError, RwLock, RwLockReadGuard, TryLockError},
    time::{Duration, Instant},
};

use pyo3::prelude::*;

use crate::fork::Forked;

/// How long the interpreter's end waits for those inside. One that hangs would hang the process.
const PATIENCE: Duration = Duration::from_secs(1);

/// Whether it is closed.
type Gate = RwLock<bool>;

fn gate() -> &'static Gate {
    static GATE: OnceLock<Forked<Gate>> = OnceLock::new();
    let forked = GATE.get_or_init(|| Forked::new(RwLock::new(false)));
    match forked.get_or(|| Ok::<_, std::convert::Infallible>(RwLock::new(false))) {
        Ok(gate) => gate,
        Err(never) => match never {},
    }
}

/// May ask for the interpreter's lock as long as it lives.
pub(crate) struct Inside(#[expect(dead_code, reason = "held")] RwLockReadGuard<'static, bool>);

/// `None`: the interpreter ends.
pub(crate) fn enter() -> Option<Inside> {
    let guard = gate().read().unwrap_or_else(PoisonError::into_inner);
    (!*guard).then_some(Inside(guard))
}

/// Runs `f` with the interpreter's lock, if there is an interpreter.
pub(crate) fn attach<R>(f: impl FnOnce(Python<'_>) -> R) -> Option<R> {
    let _inside = enter()?;
    Python::try_attach(f)
}

/// Called when the interpreter begins to end.
#[pyfunction]
pub(crate) fn close_gate(py: Python<'_>) {
    py.detach(|| {
        let end = Instant::now() + PATIENCE;
        loop {
            match gate().try_write() {
                Ok(mut closed) => {
                    *closed = true;
                    return;
                }
                Err(TryLockError::Poisoned(closed)) => {
                    *closed.into_inner() = true;
                    return;
                }
                Err(TryLockError::WouldBlock) if Instant::now() >= end => return,
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    });
}
