//! A bounded mailbox between a mutating thread and one reader.
//!
//! It owns the queue, the count of what was dropped, and the reader's waker. It never blocks a writer on a reader, never
//! allocates after it was made, and never wakes by itself: [`Mailbox::push`] hands back the waker of a parked reader,
//! and the caller wakes it once it holds no lock.
//!
//! A full mailbox drops the *oldest* letter and counts it, so the last state always arrives. The reader takes all
//! letters at once by swapping buffers: one lock per batch, and one wake per batch, since a waker is handed out only
//! once per park.

use std::task::{Context, Poll, Waker};

use crate::{
    hint::prefetch_write,
    sync::{Mutex, lock, lock_politely},
};

pub(crate) struct Mailbox<T> {
    inner: Mutex<Inner<T>>,
}

struct Inner<T> {
    queue: Letters<T>,
    /// Letters dropped since the reader last came, and since the mailbox was made.
    lagged: u64,
    dropped: u64,
    /// Letters that left the queue, taken or dropped, since the mailbox was made.
    gone: u64,
    closed: bool,
    parked: Option<Waker>,
}

/// A ring of letters with a fixed number of places.
///
/// The standard library's `VecDeque` does not tell where its next place is. The reader has just had the places that the
/// writer fills next, so each would be a cache miss in the middle of a mutation; asked for some letters ahead, it isn't.
pub(crate) struct Letters<T> {
    places: Box<[Option<T>]>,
    first: usize,
    len: usize,
}

/// How many letters ahead the writer asks for a place: two to five cache lines, about what comes in while one travels
/// between cores.
const AHEAD: usize = 8;

impl<T> Letters<T> {
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Letters {
            places: (0..capacity).map(|_| None).collect(),
            first: 0,
            len: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    fn is_full(&self) -> bool {
        self.len == self.places.len()
    }

    /// `offset` less than twice the number of places.
    fn place(&self, offset: usize) -> usize {
        let place = self.first + offset;
        if place >= self.places.len() {
            place - self.places.len()
        } else {
            place
        }
    }

    /// There is a free place.
    fn push_back(&mut self, letter: T) {
        let place = self.place(self.len);
        if let Some(later) = self.places.get(place + AHEAD) {
            prefetch_write(later);
        }
        self.places[place] = Some(letter);
        self.len += 1;
    }

    pub(crate) fn pop_front(&mut self) -> Option<T> {
        let letter = self.places.get_mut(self.first)?.take()?;
        self.len -= 1;
        // An empty ring begins anew, so that a writer that is kept up with uses the same few places.
        self.first = if self.len == 0 { 0 } else { self.place(1) };
        Some(letter)
    }

    fn grow(&mut self, capacity: usize) {
        let mut larger = Letters::with_capacity(capacity);
        while let Some(letter) = self.pop_front() {
            larger.push_back(letter);
        }
        *self = larger;
    }
}

/// What a reader found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// Letters are in the buffer; `lagged` before them were dropped, and `position` letters in all were before the
    /// first of them.
    Letters { lagged: u64, position: u64 },
    /// No letter will come any more.
    Closed,
}

impl<T> Mailbox<T> {
    /// `capacity` of 0 counts as 1: the last state always arrives.
    pub(crate) fn new(capacity: usize) -> Self {
        Mailbox {
            inner: Mutex::new(Inner {
                queue: Letters::with_capacity(capacity.max(1)),
                lagged: 0,
                dropped: 0,
                gone: 0,
                closed: false,
                parked: None,
            }),
        }
    }

    /// The waker of a parked reader, to be woken once no lock is held.
    #[must_use]
    pub(crate) fn push(&self, letter: T) -> Option<Waker> {
        let mut evicted = None;
        let mut inner = lock(&self.inner);
        if inner.closed {
            return None;
        }
        if inner.queue.is_full() {
            evicted = inner.queue.pop_front();
            inner.lagged += 1;
            inner.dropped += 1;
            inner.gone += 1;
        }
        inner.queue.push_back(letter);
        let wake = inner.parked.take();
        // The evicted letter is freed after the lock.
        drop(inner);
        drop(evicted);
        wake
    }

    /// How many letters were dropped since the mailbox was made.
    pub(crate) fn dropped(&self) -> u64 {
        lock(&self.inner).dropped
    }

    pub(crate) fn capacity(&self) -> usize {
        lock(&self.inner).queue.places.len()
    }

    /// Throws out the letters that `unwanted` says, and counts them as dropped.
    pub(crate) fn purge(&self, mut unwanted: impl FnMut(&T) -> bool) {
        let mut thrown = Vec::new();
        let mut inner = lock(&self.inner);
        for _ in 0..inner.queue.len() {
            if let Some(letter) = inner.queue.pop_front() {
                if unwanted(&letter) {
                    thrown.push(letter);
                } else {
                    inner.queue.push_back(letter);
                }
            }
        }
        inner.dropped += thrown.len() as u64;
        inner.lagged += thrown.len() as u64;
        inner.gone += thrown.len() as u64;
        drop(inner);
    }

    /// Makes room for at least `capacity` letters. For mailboxes whose letters are bounded by something else, such as
    /// one per series.
    pub(crate) fn grow_to(&self, capacity: usize) {
        let mut inner = lock(&self.inner);
        if capacity > inner.queue.places.len() {
            inner.queue.grow(capacity.next_power_of_two());
        }
    }

    /// The position that the next letter will have.
    pub(crate) fn next_position(&self) -> u64 {
        let inner = lock(&self.inner);
        inner.gone + inner.queue.len() as u64
    }

    /// No more letters. Those inside stay readable unless `discard`.
    pub(crate) fn close(&self, discard: bool) -> Option<Waker> {
        let mut inner = lock(&self.inner);
        inner.closed = true;
        let thrown = if discard {
            std::mem::replace(&mut inner.queue, Letters::with_capacity(0))
        } else {
            Letters::with_capacity(0)
        };
        let wake = inner.parked.take();
        drop(inner);
        drop(thrown);
        wake
    }

    /// Takes every letter into `batch`, which must be empty, or parks.
    pub(crate) fn poll_take(&self, cx: &mut Context<'_>, batch: &mut Letters<T>) -> Poll<Taken> {
        self.take(Some(cx), batch)
    }

    /// As [`poll_take`](Mailbox::poll_take), without parking: the reader comes again by itself.
    pub(crate) fn try_take(&self, batch: &mut Letters<T>) -> Poll<Taken> {
        self.take(None, batch)
    }

    fn take(&self, cx: Option<&mut Context<'_>>, batch: &mut Letters<T>) -> Poll<Taken> {
        debug_assert!(batch.len() == 0);
        let mut inner = lock_politely(&self.inner);
        if inner.queue.len() == 0 {
            if inner.closed {
                return Poll::Ready(Taken::Closed);
            }
            if let Some(cx) = cx {
                match &mut inner.parked {
                    Some(waker) => waker.clone_from(cx.waker()),
                    none => *none = Some(cx.waker().clone()),
                }
            }
            return Poll::Pending;
        }
        if batch.places.len() < inner.queue.places.len() {
            // Here, on the reader's side, so that the writer never grows a queue. Once: the two buffers change places
            // from then on.
            *batch = Letters::with_capacity(inner.queue.places.len());
        }
        std::mem::swap(&mut inner.queue, batch);
        let position = inner.gone;
        inner.gone += batch.len() as u64;
        let lagged = std::mem::take(&mut inner.lagged);
        Poll::Ready(Taken::Letters { lagged, position })
    }
}

#[cfg(all(test, not(metricbus_loom)))]
mod tests {
    use super::*;

    fn take(mailbox: &Mailbox<u32>) -> Option<(u64, Vec<u32>)> {
        let mut batch = Letters::with_capacity(0);
        match mailbox.poll_take(&mut Context::from_waker(Waker::noop()), &mut batch) {
            Poll::Ready(Taken::Letters { lagged, .. }) => {
                Some((lagged, std::iter::from_fn(|| batch.pop_front()).collect()))
            }
            _ => None,
        }
    }

    #[test]
    fn a_full_mailbox_drops_the_oldest_and_counts_it() {
        let mailbox = Mailbox::new(2);
        for letter in 1..=5 {
            let _ = mailbox.push(letter);
        }
        assert_eq!(take(&mailbox), Some((3, vec![4, 5])));
        assert_eq!(take(&mailbox), None);
    }

    #[test]
    fn a_parked_reader_is_handed_out_to_be_woken_once() {
        let mailbox = Mailbox::new(8);
        assert!(mailbox.push(1).is_none());
        take(&mailbox);
        assert_eq!(take(&mailbox), None);
        assert!(mailbox.push(2).is_some());
        assert!(mailbox.push(3).is_none());
    }

    #[test]
    fn what_was_said_before_closing_is_still_read() {
        let mailbox = Mailbox::new(8);
        let _ = mailbox.push(1);
        mailbox.close(false);
        let _ = mailbox.push(2);
        assert_eq!(take(&mailbox), Some((0, vec![1])));
        let mut batch = Letters::with_capacity(0);
        let end = mailbox.poll_take(&mut Context::from_waker(Waker::noop()), &mut batch);
        assert_eq!(end, Poll::Ready(Taken::Closed));
    }

    #[test]
    fn positions_go_on_over_batches_and_drops() {
        let mailbox = Mailbox::new(2);
        for letter in 0..5 {
            assert_eq!(mailbox.next_position(), letter);
            let _ = mailbox.push(letter);
        }
        let mut batch = Letters::with_capacity(2);
        let taken = mailbox.try_take(&mut batch);
        let (lagged, position) = (3, 3);
        assert_eq!(taken, Poll::Ready(Taken::Letters { lagged, position }));
        assert_eq!(mailbox.next_position(), 5);
    }

    #[test]
    fn a_purge_keeps_the_others_in_order_and_counts_the_rest() {
        let mailbox = Mailbox::new(8);
        for letter in 0..6 {
            let _ = mailbox.push(letter);
        }
        mailbox.purge(|letter| letter % 2 == 0);
        assert_eq!(mailbox.dropped(), 3);
        assert_eq!(take(&mailbox), Some((3, vec![1, 3, 5])));
    }

    #[test]
    fn a_mailbox_that_grows_keeps_what_it_has() {
        let mailbox = Mailbox::new(3);
        for letter in 0..5 {
            let _ = mailbox.push(letter);
        }
        mailbox.grow_to(5);
        for letter in 5..9 {
            let _ = mailbox.push(letter);
        }
        assert_eq!(take(&mailbox), Some((2, vec![2, 3, 4, 5, 6, 7, 8])));
    }
}
