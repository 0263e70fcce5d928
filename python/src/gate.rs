//! Code of Python's that runs with Rust below it, and how the interpreter ends meanwhile.
//!
//! While the interpreter ends, a daemon thread that asks for its lock is ended by CPython before 3.14, wherever it is. pyo3 sees to the
//! places where Rust asks for it: there the thread hangs instead. But where Rust calls Python code, that code gives the lock away
//! whenever another thread wants it, and is ended in the midst of Rust code when it wants it back, which aborts the process. So
//! nothing that takes its time runs so: callbacks, hooks, merged registries and handlers of the log run in Python's own threads, with
//! no Rust below them. What is left (a number or a label that is no `float` or `str`, the making of an object of a class that is written
//! in Python, the end of a future) is short, and goes through this gate. It is closed when the interpreter begins to end, after
//! those inside have come out. A thread that comes later waits for the end of the process.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread::ThreadId,
    time::{Duration, Instant},
};

use pyo3::prelude::*;

use crate::fork::Forked;

/// How long the interpreter's end waits for those inside. One that hangs would hang the process.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Gate {
    inside: AtomicUsize,
    closed: AtomicBool,
    /// The thread that ends the interpreter: it goes on.
    closer: OnceLock<ThreadId>,
}

fn gate() -> &'static Gate {
    static GATE: OnceLock<Forked<Gate>> = OnceLock::new();
    let forked = GATE.get_or_init(|| Forked::new(Gate::default()));
    match forked.get_or(|| Ok::<_, std::convert::Infallible>(Gate::default())) {
        Ok(gate) => gate,
        Err(never) => match never {},
    }
}

/// May run Python code as long as it lives.
pub(crate) struct Inside(&'static Gate);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, SeqCst);
    }
}

/// `None`: the interpreter ends.
pub(crate) fn enter() -> Option<Inside> {
    let gate = gate();
    // Counted before it looks: either the one who closes sees it, or it sees that the gate is closed.
    gate.inside.fetch_add(1, SeqCst);
    let inside = Inside(gate);
    let open = !gate.closed.load(SeqCst) || gate.closer.get() == Some(&std::thread::current().id());
    open.then_some(inside)
}

/// Runs `f` with the interpreter's lock, if there is an interpreter; for threads that are not Python's.
pub(crate) fn attach<R>(f: impl FnOnce(Python<'_>) -> R) -> Option<R> {
    let _inside = enter()?;
    Python::try_attach(f)
}

/// Runs `f`, which calls Python code, in a thread of Python's. Does not come back where the interpreter ends.
pub(crate) fn foreign<R>(py: Python<'_>, f: impl FnOnce() -> R) -> R {
    let Some(_inside) = enter() else {
        py.detach(|| {
            loop {
                std::thread::park();
            }
        })
    };
    f()
}

/// Called when the interpreter begins to end, by the thread that ends it.
#[pyfunction]
pub(crate) fn close_gate(py: Python<'_>) {
    let gate = gate();
    let _ = gate.closer.set(std::thread::current().id());
    gate.closed.store(true, SeqCst);
    py.detach(|| {
        let end = Instant::now() + PATIENCE;
        while gate.inside.load(SeqCst) > 0 && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
    });
}

/// Whether the interpreter has begun to end.
pub(crate) fn is_closed() -> bool {
    gate().closed.load(SeqCst)
}
