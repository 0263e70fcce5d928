//! What waits in a mailbox that is full: at least the last state of each subject.
//!
//! A letter that tells the state of something (a series, a group of a rule) is *superseded* once a later one of the same subject waits
//! behind it. Of those the oldest goes first, and then the oldest of those that have no subject. Where there are none, every letter is the last word on its subject, and the backlog grows: it
//! holds no more letters than its capacity, or than there are subjects.
//!
//! Subjects that come and go for ever leave a last word each. Those of subjects that are no more are looked for each time the backlog has
//! doubled, and of them so many stay as the capacity says, the newest. (Where it can't be known whether a subject comes again, a larger number stays.)
//!
//! Letters stay in the order in which they came. A push costs a few look-ups in trees and tables, whatever is in there.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use smallvec::SmallVec;

/// Letters that had to go, to be freed once no lock is held: one, mostly.
pub(crate) type Evicted<T> = SmallVec<[T; 1]>;

/// A letter that tells the state of something.
pub trait Subject {
    /// What tells its subject from others; `None` for one that has none, such as an event, or a mark.
    fn subject(&self) -> Option<u64>;

    /// Whether it may be the last for ever: its subject is no more, or nobody knows. Asked under a mailbox's lock: it waits for none.
    fn is_final(&self) -> bool;

    /// So many of those that may be final stay in any case.
    const FINAL_KEPT: usize = 0;
}

/// The same as functions, for mailboxes of letters of whatever type.
pub(crate) struct Subjects<T> {
    of: fn(&T) -> Option<u64>,
    is_final: fn(&T) -> bool,
    final_kept: usize,
}

impl<T: Subject> Subjects<T> {
    pub(crate) fn new() -> Self {
        Subjects {
            of: T::subject,
            is_final: T::is_final,
            final_kept: T::FINAL_KEPT,
        }
    }
}

impl<T> Subjects<T> {
    pub(crate) fn of(&self, letter: &T) -> Option<u64> {
        (self.of)(letter)
    }
}

impl<T> Clone for Subjects<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Subjects<T> {}

/// Letters in their order, more than a ring has places for.
pub(crate) struct Backlog<T> {
    subjects: Subjects<T>,
    capacity: usize,
    /// By the order in which they came.
    letters: BTreeMap<u64, T>,
    next: u64,
    /// The last word on each subject.
    newest: HashMap<u64, u64>,
    superseded: BTreeSet<u64>,
    /// Those without a subject that are no marks: they go before any last word does.
    events: BTreeSet<u64>,
    /// How many letters there are when those of subjects that are no more are looked for.
    tidy_at: usize,
}

impl<T> Backlog<T> {
    /// `capacity` of at least 1.
    pub(crate) fn new(subjects: Subjects<T>, capacity: usize) -> Self {
        Backlog {
            subjects,
            capacity,
            letters: BTreeMap::new(),
            next: 0,
            newest: HashMap::new(),
            superseded: BTreeSet::new(),
            events: BTreeSet::new(),
            tidy_at: capacity.saturating_mul(2),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.letters.len()
    }

    pub(crate) fn into_letters(self) -> impl ExactSizeIterator<Item = T> {
        self.letters.into_values()
    }

    /// Puts a letter behind the others, and what has to go for it into `evicted`.
    pub(crate) fn push(&mut self, letter: T, evicted: &mut Evicted<T>) {
        let number = self.next;
        self.next += 1;
        match self.subjects.of(&letter) {
            Some(subject) => self.superseded.extend(self.newest.insert(subject, number)),
            None if (self.subjects.is_final)(&letter) => drop(self.events.insert(number)),
            None => {}
        }
        self.letters.insert(number, letter);
        while self.letters.len() > self.capacity
            && let Some(oldest) = self
                .superseded
                .pop_first()
                .or_else(|| self.events.pop_first())
        {
            evicted.extend(self.letters.remove(&oldest));
        }
        if self.letters.len() > self.tidy_at {
            self.tidy(evicted);
        }
    }

    /// Nothing here is superseded, nor an event.
    fn tidy(&mut self, evicted: &mut Evicted<T>) {
        let is_final = self.subjects.is_final;
        let over = self.letters.iter().filter(|(_, letter)| is_final(letter));
        let over: Vec<u64> = over.map(|(&number, _)| number).collect();
        let kept = self.capacity.max(self.subjects.final_kept);
        for number in &over[..over.len().saturating_sub(kept)] {
            if let Some(letter) = self.letters.remove(number) {
                if let Some(subject) = self.subjects.of(&letter) {
                    self.newest.remove(&subject);
                }
                evicted.push(letter);
            }
        }
        self.tidy_at = self.letters.len().max(self.capacity).saturating_mul(2);
    }
}

#[cfg(all(test, not(metricbus_loom)))]
mod tests {
    use super::*;

    /// Subject, number, and whether the subject is no more.
    type Letter = (u64, u32, bool);

    impl Subject for Letter {
        fn subject(&self) -> Option<u64> {
            (self.0 > 0).then_some(self.0)
        }

        fn is_final(&self) -> bool {
            self.2
        }
    }

    fn backlog(capacity: usize) -> Backlog<Letter> {
        Backlog::new(Subjects::new(), capacity)
    }

    fn push(backlog: &mut Backlog<Letter>, letters: &[Letter]) -> Vec<Letter> {
        let mut evicted = Evicted::new();
        for letter in letters {
            backlog.push(*letter, &mut evicted);
        }
        evicted.into_vec()
    }

    #[test]
    fn the_oldest_that_is_superseded_goes_first() {
        let mut full = backlog(3);
        let letters = [1, 2, 1, 3, 1, 2].map(|subject| (subject, 0, false));
        let numbered: Vec<Letter> = (0..).zip(letters).map(|(n, l)| (l.0, n, l.2)).collect();
        let evicted = push(&mut full, &numbered);
        assert_eq!(evicted, [numbered[0], numbered[2], numbered[1]]);
        let left: Vec<_> = full.into_letters().collect();
        assert_eq!(left, numbered[3..]);
    }

    #[test]
    fn the_last_word_on_each_subject_stays_and_so_does_what_nothing_supersedes() {
        let mut full = backlog(2);
        let letters: Vec<Letter> = (0..50).map(|n| (n, 0, false)).collect();
        assert!(push(&mut full, &letters).is_empty());
        let evicted = push(
            &mut full,
            &(1..50).map(|n| (n, 1, false)).collect::<Vec<_>>(),
        );
        assert_eq!(evicted, letters[1..]);
        assert_eq!(full.len(), 50);
        assert_eq!(full.into_letters().next(), Some((0, 0, false)));
    }

    #[test]
    fn what_has_no_subject_goes_before_any_last_word_does() {
        let mut full = backlog(2);
        let letters = [(0, 0, true), (1, 0, false), (0, 1, true), (2, 0, false)];
        assert_eq!(push(&mut full, &letters), [letters[0], letters[2]]);
    }

    #[test]
    fn of_subjects_that_are_no_more_so_many_stay_as_the_capacity_says() {
        let mut full = backlog(4);
        push(&mut full, &[(1_000_000, 0, false)]);
        let mut most = 0;
        for subject in 1..10_000 {
            push(&mut full, &[(subject, 0, true)]);
            most = most.max(full.len());
        }
        assert!(most <= 2 * (4 + 1) + 1, "{most} letters at once");
        let left: Vec<_> = full.into_letters().collect();
        assert_eq!(left[0], (1_000_000, 0, false));
        assert_eq!(left.last(), Some(&(9_999, 0, true)));
    }
}
