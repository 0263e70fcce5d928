//! A hand-off: several threads bring things to be done, and whichever of them is at it does them all, one at a time and in
//! order. Nobody waits for anybody.
//!
//! # The protocol
//!
//! Whoever brings something puts it in the queue, under its lock, and then tries to become the one who is `busy`. If
//! somebody else is, that one will do it. Who is busy takes from the queue until it is empty, takes down the sign, and
//! looks at the queue once more.
//!
//! # Why nothing is left lying
//!
//! Say B brings something while A is busy. B's push comes either before or after A's last look at the queue; the queue's
//! lock puts them in order. Before: A finds it. After: A took down the sign before it looked, and B tries to put its own
//! up after it pushed; so B finds no sign, or one that was put up later, by somebody who will look after that.
//!
//! # Waiting for what was brought before
//!
//! Things are numbered as they are brought, and whoever is busy writes down the number of each when it is done. Since they are
//! done in order, what had been brought by a moment is done when the number of then is reached, or a later one; the queue need
//! not have been empty meanwhile, which it may never be. What is brought after that moment, under the queue's lock, sees all
//! that came before it.
//!
//! The loom models are in `loom/`.

use std::collections::VecDeque;

use crate::sync::{AtomicU64, Mutex, Ordering, lock};

pub(crate) struct Handoff<T> {
    waiting: Mutex<Waiting<T>>,
    /// Who is at it; 0 for nobody.
    busy: AtomicU64,
    /// The number of the last that was done. Written by whoever is at it.
    done: AtomicU64,
}

struct Waiting<T> {
    things: VecDeque<T>,
    /// The number of the last of them, or of the last there was: 1 for the first.
    brought: u64,
}

impl<T> Waiting<T> {
    /// The oldest, and its number.
    fn pop(&mut self) -> Option<(T, u64)> {
        let number = self.brought + 1 - self.things.len() as u64;
        Some((self.things.pop_front()?, number))
    }
}

/// How a [turn](Handoff::run) ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// All is done, also what others brought.
    Done,
    /// This one is at it and will do it.
    Others(u64),
    /// There is more than was to be done in one turn.
    More,
}

/// A number that no other thread has now: the `me` of a [turn](Handoff::run).
#[cfg(not(metricbus_loom))]
pub(crate) fn this_thread() -> u64 {
    thread_local!(static HERE: u8 = const { 1 });
    HERE.try_with(|here| std::ptr::from_ref(here).addr() as u64)
        .unwrap_or(1)
}

impl<T> Handoff<T> {
    pub(crate) fn new() -> Self {
        Handoff {
            waiting: Mutex::new(Waiting {
                things: VecDeque::new(),
                brought: 0,
            }),
            busy: AtomicU64::new(0),
            done: AtomicU64::new(0),
        }
    }

    /// Brings something. Where more than `room` wait the oldest is dropped, and handed back.
    pub(crate) fn push(&self, thing: T, room: usize) -> Option<T> {
        let mut waiting = lock(&self.waiting);
        waiting.things.push_back(thing);
        waiting.brought += 1;
        if waiting.things.len() > room {
            return waiting.things.pop_front();
        }
        None
    }

    /// The number of the last that was brought; 0 before the first.
    pub(crate) fn brought(&self) -> u64 {
        lock(&self.waiting).brought
    }

    /// Whether all up to this number is done, but for what was dropped or thrown out. `false` may be said where the last of
    /// them were, until something else is done; then nothing is left, and a [turn](Self::run) says so.
    pub(crate) fn has_done(&self, number: u64) -> bool {
        self.done.load(Ordering::Acquire) >= number
    }

    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.waiting).things.is_empty()
    }

    /// Nothing waits, and nobody is at it.
    pub(crate) fn is_at_rest(&self) -> bool {
        // In this order: whoever has taken the last was busy before.
        self.is_empty() && self.busy.load(Ordering::Acquire) == 0
    }

    /// Does what waits, `turn` things at most, unless somebody is at it. `me` is not 0, and no other thread's.
    pub(crate) fn run(&self, me: u64, turn: usize, mut f: impl FnMut(T)) -> Turn {
        loop {
            let sign = self
                .busy
                .compare_exchange(0, me, Ordering::AcqRel, Ordering::Acquire);
            if let Err(busy) = sign {
                return Turn::Others(busy);
            }
            let mut empty = false;
            for _ in 0..turn {
                // In a statement of its own, so that the lock is free while it is done.
                let thing = lock(&self.waiting).pop();
                let Some((thing, number)) = thing else {
                    empty = true;
                    break;
                };
                f(thing);
                self.done.store(number, Ordering::Release);
            }
            self.busy.store(0, Ordering::Release);
            if !empty {
                return Turn::More;
            }
            if self.is_empty() {
                return Turn::Done;
            }
        }
    }
}
