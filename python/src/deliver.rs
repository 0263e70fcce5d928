//! How what happens on the bus gets to Python, without a thread of the bus ever taking the interpreter's lock.
//!
//! Letters wait in the subscription's own mailbox, bounded, which drops its oldest and counts them. Its reader is a
//! [`Receiver`], which is asked by Python code under the interpreter's lock. When a receiver has been emptied and then gets
//! a letter, it puts its key on the list of its [`Bell`], and if that list was empty, the bell's file descriptor becomes
//! readable: for an event loop by `add_reader`, for a thread by `poll`. So a burst of letters to any number of
//! subscriptions of one loop wakes it once. A callback that was given without a loop is a job of a [`ThreadPool`], on which its
//! receiver puts its key instead. All the rest, callbacks, coroutines and iterators, is `metricbus/_delivery.py`.
//!
//! The protocol of a bell. Ringing: under the lock, the key is pushed; who pushes the first one writes to the descriptor.
//! Taking: the descriptor is read, then under the lock the list is taken. A key pushed before the taking is taken; one
//! pushed after it finds the list empty, and so rings. A ring between the reading and the taking wakes the loop once for
//! nothing. A receiver is on the list once: `queued` is set by whoever puts it there, and cleared before the mailbox is
//! looked at; the mailbox wakes for what comes after it was found empty.

use std::{
    os::fd::{AsFd, AsRawFd, OwnedFd},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::AcqRel, Ordering::Release},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_core::Stream;
use metricbus::{CallbackReport, Event, Events, Subscription};
use pyo3::{exceptions::PyOSError, prelude::*, sync::PyOnceLock};
use rustix::io::Errno;

use crate::{
    error::raise,
    fork::{Counted, Forked, Kind},
    gate,
    thread_pool::{Pool, ThreadPool},
};

/// As elsewhere in the library: what a panicking holder left is taken as it is.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn os_error(error: Errno) -> PyErr {
    PyOSError::new_err((
        error.raw_os_error(),
        std::io::Error::from(error).to_string(),
    ))
}

/// Tells a loop, or a thread, that some of its receivers have letters.
#[pyclass(frozen, module = "metricbus._metricbus")]
pub(crate) struct Bell(Forked<Arc<BellCore>>);

struct BellCore {
    read: OwnedFd,
    /// Where there is no eventfd, the other end of a pipe.
    write: Option<OwnedFd>,
    ready: Mutex<Vec<u64>>,
}

impl BellCore {
    #[cfg(target_os = "linux")]
    fn new() -> Result<BellCore, Errno> {
        use rustix::event::{EventfdFlags, eventfd};
        Ok(BellCore {
            read: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            write: None,
            ready: Mutex::default(),
        })
    }

    #[cfg(not(target_os = "linux"))]
    fn new() -> Result<BellCore, Errno> {
        let (read, write) = rustix::pipe::pipe()?;
        for end in [&read, &write] {
            rustix::io::fcntl_setfd(end, rustix::io::FdFlags::CLOEXEC)?;
            rustix::fs::fcntl_setfl(end, rustix::fs::OFlags::NONBLOCK)?;
        }
        Ok(BellCore {
            read,
            write: Some(write),
            ready: Mutex::default(),
        })
    }

    fn put(&self, key: u64) {
        let first = {
            let mut ready = lock(&self.ready);
            ready.push(key);
            ready.len() == 1
        };
        if first {
            self.ring();
        }
    }

    fn ring(&self) {
        let to = self.write.as_ref().unwrap_or(&self.read);
        // It is full only if nobody has read for 2^64 rings, or a pipe's capacity: then it is readable anyhow.
        let _ = rustix::io::write(to, &1_u64.to_ne_bytes());
    }
}

#[pymethods]
impl Bell {
    #[new]
    fn new() -> PyResult<Bell> {
        let core = BellCore::new().map_err(os_error)?;
        Ok(Bell(Forked::new(Arc::new(core))))
    }

    /// Readable while a receiver waits to be looked at.
    fn fileno(&self) -> PyResult<i32> {
        Ok(self.core()?.read.as_fd().as_raw_fd())
    }

    /// The keys of the receivers that have letters.
    fn take(&self) -> PyResult<Vec<u64>> {
        let core = self.core()?;
        let mut rings = [0; 512];
        // A pipe may hold more than is read here: then it is readable still, and the loop comes again.
        let _ = rustix::io::read(&core.read, &mut rings);
        Ok(std::mem::take(&mut *lock(&core.ready)))
    }

    /// Wakes whoever waits, though there is nothing to be read.
    fn ring(&self) -> PyResult<()> {
        self.core()?.ring();
        Ok(())
    }
}

impl Bell {
    fn core(&self) -> PyResult<&Arc<BellCore>> {
        self.0.here().ok_or_else(forked)
    }
}

pub(crate) fn forked() -> PyErr {
    raise(
        "ForkedError",
        "this subscription is of the process from which this one was forked, and ends there; subscribe again here",
    )
}

/// Who looks for letters.
enum Looker {
    Bell(Arc<BellCore>),
    Pool(Arc<Pool>),
}

/// Wakes the reader of one receiver.
struct Ringer {
    key: u64,
    queued: AtomicBool,
    looker: Looker,
}

impl Wake for Ringer {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, AcqRel) {
            match &self.looker {
                Looker::Bell(bell) => bell.put(self.key),
                Looker::Pool(pool) => pool.push(self.key),
            }
        }
    }
}

/// Where letters come from, as Python objects.
pub(crate) trait Source: Send {
    fn poll(&mut self, py: Python<'_>, cx: &mut Context<'_>) -> Poll<Option<PyResult<Py<PyAny>>>>;

    fn subscription(&self) -> &Subscription;
}

/// What becomes a Python object.
pub(crate) trait Letter {
    fn into_python(self, py: Python<'_>) -> PyResult<Py<PyAny>>;
}

impl<E: Event + Letter + Send> Source for Events<E> {
    fn poll(&mut self, py: Python<'_>, cx: &mut Context<'_>) -> Poll<Option<PyResult<Py<PyAny>>>> {
        let letter = std::task::ready!(Pin::new(self).poll_next(cx));
        Poll::Ready(letter.map(|letter| letter.into_python(py)))
    }

    fn subscription(&self) -> &Subscription {
        Events::subscription(self)
    }
}

type Open = dyn Fn() -> PyResult<Box<dyn Source>> + Send + Sync;

/// A subscription that is described, and not yet made.
#[pyclass(frozen, module = "metricbus._metricbus")]
pub(crate) struct Opening(Box<Open>);

#[pymethods]
impl Opening {
    /// Subscribes. From now on letters wait. The bell is rung for them with this key once the receiver was asked to `ring`,
    /// for what it begins with: by whoever opens it, when there is somebody to look for it. Of a pool, the key is its job.
    fn open(&self, looker: &Bound<'_, PyAny>, key: u64) -> PyResult<Receiver> {
        let looker = match looker.cast::<ThreadPool>() {
            Ok(pool) => Looker::Pool(pool.get().pool()?.clone()),
            Err(_) => Looker::Bell(looker.cast::<Bell>()?.get().core()?.clone()),
        };
        let source = (self.0)()?;
        let ringer = Arc::new(Ringer {
            key,
            queued: AtomicBool::new(false),
            looker,
        });
        Ok(Receiver(Forked::new(Mailbox {
            _counted: Counted::new(Kind::Subscription),
            ringer,
            report: source.subscription().report(),
            slot: Mutex::new(Slot {
                stats: SubscriptionStats::of(source.as_ref()),
                source: Some(source),
                closed: false,
            }),
        })))
    }
}

/// What Python users hold: `metricbus._delivery.Listen`, around an [`Opening`]; or with a callback, the subscription.
pub(crate) fn listen(
    py: Python<'_>,
    open: impl Fn() -> PyResult<Box<dyn Source>> + Send + Sync + 'static,
    callback: Option<Bound<'_, PyAny>>,
) -> PyResult<Py<PyAny>> {
    static CLASS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let class = CLASS.get_or_try_init(py, || {
        let module = py.import("metricbus._delivery")?;
        PyResult::Ok(module.getattr("Listen")?.unbind())
    })?;
    gate::foreign(py, || {
        let listen = class.bind(py).call1((Opening(Box::new(open)),))?;
        match callback {
            None => Ok(listen.unbind()),
            Some(callback) => Ok(listen.call_method1("call", (callback,))?.unbind()),
        }
    })
}

/// The reading end of a subscription.
#[pyclass(frozen, module = "metricbus._metricbus")]
pub(crate) struct Receiver(Forked<Mailbox>);

struct Mailbox {
    _counted: Counted,
    ringer: Arc<Ringer>,
    report: CallbackReport,
    slot: Mutex<Slot>,
}

/// Making Python objects can run anybody's code, by way of the garbage collector, and let other threads run: so whoever
/// reads takes the source out, and no lock is held meanwhile.
struct Slot {
    source: Option<Box<dyn Source>>,
    closed: bool,
    /// As of the last look.
    stats: SubscriptionStats,
}

#[pymethods]
impl Receiver {
    /// At most `most` letters, oldest first; and whether more may be there, or it has ended: `"more"`, `"empty"`, `"ended"`.
    /// After `"empty"` the bell is rung for the next letter.
    fn take(&self, py: Python<'_>, most: usize) -> PyResult<(Vec<Py<PyAny>>, &'static str)> {
        let mailbox = self.mailbox()?;
        let waker = Waker::from(mailbox.ringer.clone());
        let mut cx = Context::from_waker(&waker);
        mailbox.ringer.queued.store(false, Release);
        let mut source = {
            let mut slot = lock(&mailbox.slot);
            match slot.source.take() {
                Some(source) => source,
                None if slot.closed => return Ok((Vec::new(), "ended")),
                // Somebody reads, and will find what there is.
                None => return Ok((Vec::new(), "empty")),
            }
        };
        let mut letters = Vec::new();
        let mut state = Ok("more");
        while letters.len() < most {
            match source.poll(py, &mut cx) {
                Poll::Ready(Some(Ok(letter))) => letters.push(letter),
                Poll::Ready(Some(Err(error))) => {
                    state = Err(error);
                    break;
                }
                Poll::Ready(None) => {
                    state = Ok("ended");
                    break;
                }
                Poll::Pending => {
                    state = Ok("empty");
                    break;
                }
            }
        }
        let stats = SubscriptionStats::of(source.as_ref());
        let left = {
            let mut slot = lock(&mailbox.slot);
            slot.stats = stats;
            match slot.closed {
                true => Some(source),
                false => {
                    slot.source = Some(source);
                    None
                }
            }
        };
        drop(left);
        Ok((letters, state?))
    }

    /// Puts it on the bell's list, as if a letter had come.
    fn ring(&self) -> PyResult<()> {
        self.mailbox()?.ringer.wake_by_ref();
        Ok(())
    }

    /// Unsubscribes. What waits is gone.
    fn close(&self, py: Python<'_>) {
        if let Some(mailbox) = self.0.here() {
            let source = {
                let mut slot = lock(&mailbox.slot);
                slot.closed = true;
                slot.source.take()
            };
            // Takes locks of the bus.
            py.detach(|| drop(source));
        }
    }

    /// Counts a call that failed, `in_a_row` times by now; 0 where it doesn't matter how often. Whether that was once too often: then
    /// the subscription is to be closed, and the log says so.
    fn failed(&self, in_a_row: u32, message: &str) -> bool {
        let mailbox = self.0.here();
        mailbox.is_some_and(|mailbox| mailbox.report.failed(in_a_row, message))
    }

    /// Counts a call that was given up, since its thread was needed and it did not come to its end.
    fn hangs(&self) {
        if let Some(mailbox) = self.0.here() {
            mailbox.report.hangs();
        }
    }

    fn stats(&self) -> PyResult<SubscriptionStats> {
        let slot = lock(&self.mailbox()?.slot);
        if slot.closed {
            return Err(raise("ClosedError", "this subscription was closed"));
        }
        Ok(match &slot.source {
            Some(source) => SubscriptionStats::of(source.as_ref()),
            None => slot.stats.clone(),
        })
    }
}

impl Receiver {
    fn mailbox(&self) -> PyResult<&Mailbox> {
        self.0.here().ok_or_else(forked)
    }
}

impl SubscriptionStats {
    fn of(source: &dyn Source) -> SubscriptionStats {
        source.subscription().stats().into()
    }
}

/// What a subscription has done so far.
#[pyclass(frozen, get_all, module = "metricbus")]
#[derive(Clone)]
pub(crate) struct SubscriptionStats {
    /// How many series it has listened to.
    series_matched: u64,
    /// Where it is none, and no metric has the name in the selector: the name of one that may have been meant, or None.
    did_you_mean: Option<String>,
    /// How many events were taken.
    delivered: u64,
    /// How many events were dropped because the reader was too slow.
    dropped: u64,
    /// How many calls raised.
    failed: u64,
    /// How many calls were given up, since they did not come to their end and their thread was needed.
    hung: u64,
}

impl From<metricbus::SubscriptionStats> for SubscriptionStats {
    fn from(stats: metricbus::SubscriptionStats) -> SubscriptionStats {
        SubscriptionStats {
            series_matched: stats.series_matched,
            did_you_mean: stats.did_you_mean,
            delivered: stats.delivered,
            dropped: stats.dropped,
            failed: stats.panicked,
            hung: stats.hung,
        }
    }
}

#[pymethods]
impl SubscriptionStats {
    fn __repr__(&self) -> String {
        format!(
            "SubscriptionStats(series_matched={}, delivered={}, dropped={}, failed={}, hung={})",
            self.series_matched, self.delivered, self.dropped, self.failed, self.hung
        )
    }
}
