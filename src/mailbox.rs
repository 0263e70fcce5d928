//! A bounded mailbox between a mutating thread and one reader.
//!
//! It owns the queue, the count of what was dropped, and the reader's waker. It never blocks a writer on a reader, never
//! allocates after it was made, and never wakes by itself: [`Mailbox::push`] hands back the waker of a parked reader,
//! and the caller wakes it once it holds no lock.
//!
//! What a full mailbox gives up is counted. One of states ([`Mailbox::of_states`]) gives up what is superseded, and grows where nothing
//! is, so the last state of each subject always arrives (`backlog.rs`); any other drops its *oldest* letter. The reader takes all
//! letters at once by swapping buffers: one lock per batch, and one wake per batch, since a waker is handed out only
//! once per park.
//!
//! Until it is full a mailbox of states is a ring like any other: a push compares nothing and allocates nothing. The push that finds it
//! full, with an oldest letter of another subject, moves the letters into a backlog, once, and the reader takes that whole.

use std::task::{Context, Poll, Waker};

use crate::{
    backlog::{Backlog, Evicted, Subject, Subjects},
    hint::prefetch_write,
    steps::steps,
    sync::{Mutex, lock, lock_politely},
};

pub(crate) struct Mailbox<T> {
    inner: Mutex<Inner<T>>,
    /// Of letters that tell states.
    subjects: Option<Subjects<T>>,
}

struct Inner<T> {
    queue: Letters<T>,
    /// All letters, from when the queue was full until the reader comes. The queue is empty then.
    backlog: Option<Box<Backlog<T>>>,
    /// Letters dropped since the reader last came, and since the mailbox was made.
    lagged: u64,
    dropped: u64,
    /// Letters that left the queue, taken or dropped, since the mailbox was made.
    gone: u64,
    /// The farthest that a letter here is from a mutation that nobody derived.
    steps: usize,
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

    fn front(&self) -> Option<&T> {
        self.places.get(self.first)?.as_ref()
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
    /// `capacity` of 0 counts as 1: the last letter always arrives.
    pub(crate) fn new(capacity: usize) -> Self {
        Mailbox {
            subjects: None,
            inner: Mutex::new(Inner {
                queue: Letters::with_capacity(capacity.max(1)),
                backlog: None,
                lagged: 0,
                dropped: 0,
                gone: 0,
                steps: 0,
                closed: false,
                parked: None,
            }),
        }
    }

    /// As [`new`](Mailbox::new), for letters that tell the state of something.
    pub(crate) fn of_states(capacity: usize) -> Self
    where
        T: Subject,
    {
        Mailbox {
            subjects: Some(Subjects::new()),
            ..Mailbox::new(capacity)
        }
    }

    /// The waker of a parked reader, to be woken once no lock is held.
    #[must_use]
    pub(crate) fn push(&self, letter: T) -> Option<Waker> {
        // What is evicted is freed after the lock.
        let mut evicted = Evicted::new();
        let mut inner = lock(&self.inner);
        if inner.closed {
            return None;
        }
        inner.steps = inner.steps.max(steps());
        if inner.queue.is_full() || inner.backlog.is_some() {
            inner.push_full(self.subjects, letter, &mut evicted);
        } else {
            inner.queue.push_back(letter);
        }
        let wake = inner.parked.take();
        drop(inner);
        drop(evicted);
        wake
    }

    /// How far the letters taken last are from a mutation that nobody derived, at most. Once per batch.
    pub(crate) fn take_steps(&self) -> usize {
        std::mem::take(&mut lock_politely(&self.inner).steps)
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
        inner.lost(thrown.len());
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
        inner.gone + inner.waiting() as u64
    }

    /// No more letters. Those inside stay readable unless `discard`.
    pub(crate) fn close(&self, discard: bool) -> Option<Waker> {
        let mut inner = lock(&self.inner);
        inner.closed = true;
        let thrown = discard.then(|| {
            let none = Letters::with_capacity(0);
            (
                std::mem::replace(&mut inner.queue, none),
                inner.backlog.take(),
            )
        });
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
        if inner.waiting() == 0 {
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
        let (position, lagged) = (inner.gone, std::mem::take(&mut inner.lagged));
        inner.gone += inner.waiting() as u64;
        if let Some(backlog) = inner.backlog.take() {
            // Writers go on with the empty queue meanwhile.
            drop(inner);
            *batch = Letters::with_capacity(backlog.len());
            backlog
                .into_letters()
                .for_each(|letter| batch.push_back(letter));
        } else {
            if batch.places.len() != inner.queue.places.len() {
                // Here, on the reader's side, so that the writer never grows a queue. Once: the two buffers change places
                // from then on.
                *batch = Letters::with_capacity(inner.queue.places.len());
            }
            std::mem::swap(&mut inner.queue, batch);
        }
        Poll::Ready(Taken::Letters { lagged, position })
    }
}

impl<T> Inner<T> {
    fn waiting(&self) -> usize {
        let backlog = self.backlog.as_ref().map_or(0, |backlog| backlog.len());
        self.queue.len() + backlog
    }

    /// So many letters were given up.
    fn lost(&mut self, letters: usize) {
        self.lagged += letters as u64;
        self.dropped += letters as u64;
        self.gone += letters as u64;
    }

    /// A letter for which there is no place in the queue.
    #[cold]
    fn push_full(&mut self, subjects: Option<Subjects<T>>, letter: T, evicted: &mut Evicted<T>) {
        let oldest_may_go = match subjects {
            None => true,
            // The commonest case, all letters being of one series: what is superseded is the oldest, and nothing has to be moved.
            Some(subjects) => self.queue.front().is_some_and(|oldest| {
                let subject = subjects.of(&letter);
                subject.is_some() && subjects.of(oldest) == subject
            }),
        };
        let Some(subjects) = subjects.filter(|_| !oldest_may_go) else {
            evicted.extend(self.queue.pop_front());
            self.queue.push_back(letter);
            return self.lost(evicted.len());
        };
        let queue = &mut self.queue;
        let backlog = self.backlog.get_or_insert_with(|| {
            let mut backlog = Backlog::new(subjects, queue.places.len());
            while let Some(letter) = queue.pop_front() {
                backlog.push(letter, evicted);
            }
            Box::new(backlog)
        });
        backlog.push(letter, evicted);
        self.lost(evicted.len());
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

    /// The subject, and the number of its state.
    #[derive(Debug, PartialEq, Clone, Copy)]
    struct State(u64, u32);

    impl Subject for State {
        fn subject(&self) -> Option<u64> {
            Some(self.0)
        }

        fn is_final(&self) -> bool {
            false
        }
    }

    #[test]
    fn of_states_the_last_of_each_subject_arrives_and_what_is_missed_is_counted() {
        let mailbox = Mailbox::of_states(4);
        let mut batch = Letters::with_capacity(4);
        for round in 0..3 {
            for subject in 0..100 {
                let _ = mailbox.push(State(subject, 2 * round));
                let _ = mailbox.push(State(subject, 2 * round + 1));
            }
            let lagged = 100;
            let position = u64::from(round) * 200 + lagged;
            let taken = mailbox.try_take(&mut batch);
            assert_eq!(taken, Poll::Ready(Taken::Letters { lagged, position }));
            let read: Vec<_> = std::iter::from_fn(|| batch.pop_front()).collect();
            let last: Vec<_> = (0..100)
                .map(|subject| State(subject, 2 * round + 1))
                .collect();
            assert_eq!(read, last);
        }
        // And then it is a ring again.
        for number in 0..5 {
            let _ = mailbox.push(State(1, number));
        }
        assert!(mailbox.try_take(&mut batch).is_ready());
        let read: Vec<_> = std::iter::from_fn(|| batch.pop_front()).collect();
        assert_eq!(read, [1, 2, 3, 4].map(|number| State(1, number)));
        assert_eq!(mailbox.dropped(), 301);
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
