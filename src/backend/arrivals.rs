//! Arrivals: a thread waits for something that others bring about, and those pay next to nothing when nobody waits.
//!
//! # The protocol
//!
//! Who waits notes how often it has been rung, puts up a sign (`awaited`), and looks whether it is done; no lock is held
//! meanwhile, so that looking may bring about something itself. If it is not, it sleeps until it has been rung again.
//! Who has brought something about takes the sign down, and if it was up rings.
//!
//! # Why nobody sleeps through it
//!
//! Both sides exchange the sign, so one of the exchanges comes first. The waiting side's: then the other finds the sign and
//! rings, after the waiting side has noted how often; so that one does not fall asleep, or is woken. The other side's: then the
//! waiting one, whose exchange reads from it, sees all that was brought about before, and finds that it is done. Another one
//! who waits may have put up the sign that is taken down: the ring is for all.
//!
//! The loom model is in `loom/`.

use crate::sync::{AtomicBool, Condvar, Mutex, Ordering, lock};

pub(crate) struct Arrivals {
    awaited: AtomicBool,
    rung: Mutex<u64>,
    bell: Condvar,
}

impl Arrivals {
    pub(crate) fn new() -> Self {
        Arrivals {
            awaited: AtomicBool::new(false),
            rung: Mutex::new(0),
            bell: Condvar::new(),
        }
    }

    /// Something that somebody may wait for has been brought about.
    pub(crate) fn tell(&self) {
        if self.awaited.swap(false, Ordering::AcqRel) {
            *lock(&self.rung) += 1;
            self.bell.notify_all();
        }
    }

    /// Waits until it is `done`, which is asked again after each [`tell`](Self::tell). `false`: the time is over.
    #[cfg(not(metricbus_loom))]
    pub(crate) fn wait_until(
        &self,
        deadline: std::time::Duration,
        mut done: impl FnMut() -> bool,
    ) -> bool {
        let start = std::time::Instant::now();
        loop {
            let before = *lock(&self.rung);
            self.awaited.swap(true, Ordering::AcqRel);
            if done() {
                return true;
            }
            let left = deadline.saturating_sub(start.elapsed());
            if left.is_zero() {
                return false;
            }
            let silent = |rung: &mut u64| *rung == before;
            drop(self.bell.wait_timeout_while(lock(&self.rung), left, silent));
        }
    }

    /// As it is without loom, but for the deadline.
    #[cfg(metricbus_loom)]
    pub(crate) fn wait_until(&self, mut done: impl FnMut() -> bool) {
        loop {
            let before = *lock(&self.rung);
            self.awaited.swap(true, Ordering::AcqRel);
            if done() {
                return;
            }
            let mut rung = lock(&self.rung);
            while *rung == before {
                rung = self.bell.wait(rung).unwrap();
            }
        }
    }
}
