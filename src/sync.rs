//! The one place that chooses between `std` and `loom`.
//!
//! Files whose protocol has a loom model (`cell`, `mailbox`, `handoff`, `backend/arrivals`) take their atomics and locks from here and from
//! nowhere else; others take [`lock`] alone. The crate in `loom/` compiles those same files with `cfg(metricbus_loom)` set by its build script, so that the
//! models run the code that ships.

#[cfg(not(metricbus_loom))]
pub(crate) use std::sync::{
    Condvar, Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

#[cfg(metricbus_loom)]
pub(crate) use loom::sync::{
    Condvar, Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use std::sync::PoisonError;

/// Locks, and goes on where a holder panicked.
///
/// No user code runs under a lock of this crate, so a poisoned lock means a bug of ours; the data behind each of them
/// is valid after every statement, and one bug must not take every later mutation with it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// As [`lock`], for the side that may wait: tries again for a while before it queues.
///
/// Whoever queues for a lock makes its holder wake them, by a system call. A reader must not cost a mutating thread
/// that; what mutating threads do under the lock is over in nanoseconds.
#[cfg(not(metricbus_loom))]
pub(crate) fn lock_politely<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    /// A few microseconds in all: longer than any critical section here whose thread is running.
    const TRIES: u32 = 64;
    for _ in 0..TRIES {
        match mutex.try_lock() {
            Ok(guard) => return guard,
            Err(std::sync::TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
            Err(std::sync::TryLockError::WouldBlock) => std::hint::spin_loop(),
        }
    }
    // Its thread was put aside. Give it the processor.
    std::thread::yield_now();
    lock(mutex)
}

/// To loom the two are the same.
#[cfg(metricbus_loom)]
pub(crate) fn lock_politely<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    lock(mutex)
}
