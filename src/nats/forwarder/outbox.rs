//! What waits to be sent, and what was sent and may be asked for again. Pure: no time of its own, no network, no lock.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use crate::{backlog::Subject, time::Time};

/// Alerts by sequence, bounded by count and bytes.
///
/// Each is unconfirmed until the server is known to have it; then it is history, for those who missed it. When there is no
/// room the oldest of the history goes, and when there is none the oldest unconfirmed that a later one of its rule and group supersedes,
/// which is a loss. Where none is superseded there may be more than the count: the last of every group. Then the bytes alone are the bound, and
/// the oldest goes. Nothing is ever merged with something else.
pub(crate) struct Outbox<T> {
    items_max: usize,
    bytes_max: usize,
    bytes: usize,
    last: u64,
    unconfirmed: BTreeMap<u64, Item<T>>,
    history: BTreeMap<u64, Item<T>>,
    /// Of the unconfirmed: those that are not on their way.
    unsent: BTreeSet<u64>,
    /// Of the unconfirmed: the last of each subject, and those behind which a later one of theirs waits.
    newest: HashMap<u64, u64>,
    superseded: BTreeSet<u64>,
    dropped: u64,
}

struct Item<T> {
    what: Arc<T>,
    bytes: usize,
    since: Time,
}

impl<T: Subject> Outbox<T> {
    /// At least one item has room.
    pub(crate) fn new(items_max: usize, bytes_max: usize) -> Outbox<T> {
        Outbox {
            items_max: items_max.max(1),
            bytes_max,
            bytes: 0,
            last: 0,
            unconfirmed: BTreeMap::new(),
            history: BTreeMap::new(),
            unsent: BTreeSet::new(),
            newest: HashMap::new(),
            superseded: BTreeSet::new(),
            dropped: 0,
        }
    }

    /// Takes one more, and gives its sequence: 1, 2, 3 … `None`, and nothing is changed, when it is larger than all the
    /// room there is.
    pub(crate) fn push(&mut self, what: T, bytes: usize, now: Time) -> Option<u64> {
        if bytes > self.bytes_max {
            return None;
        }
        if let Some(subject) = what.subject() {
            self.superseded
                .extend(self.newest.insert(subject, self.last + 1));
        }
        while self.held() >= self.items_max || self.bytes + bytes > self.bytes_max {
            if let Some((_, old)) = self.history.pop_first() {
                self.bytes -= old.bytes;
                continue;
            }
            let full = self.bytes + bytes > self.bytes_max;
            let oldest = self.unconfirmed.first_key_value();
            let oldest = oldest.filter(|(_, item)| full || item.what.subject().is_none());
            let Some(goes) = self
                .superseded
                .first()
                .or(oldest.map(|(sequence, _)| sequence))
            else {
                // It is empty and what comes fits, or all that is here is the last word on something.
                break;
            };
            let goes = *goes;
            self.dropped += u64::from(self.discard(goes));
        }
        self.last += 1;
        self.bytes += bytes;
        let item = Item {
            what: Arc::new(what),
            bytes,
            since: now,
        };
        self.unconfirmed.insert(self.last, item);
        self.unsent.insert(self.last);
        Some(self.last)
    }

    /// The oldest that is to be sent, which is on its way from now on.
    pub(crate) fn take(&mut self) -> Option<(u64, Arc<T>)> {
        let sequence = self.unsent.pop_first()?;
        let item = self.unconfirmed.get(&sequence)?;
        Some((sequence, item.what.clone()))
    }

    /// It has to be sent again, or does not go yet. Nothing happens if it is confirmed or gone.
    pub(crate) fn again(&mut self, sequence: u64) -> bool {
        self.unconfirmed.contains_key(&sequence) && self.unsent.insert(sequence)
    }

    /// The server has it. `false`: that was known, or it is gone.
    pub(crate) fn confirm(&mut self, sequence: u64) -> bool {
        let Some(item) = self.unconfirmed.remove(&sequence) else {
            return false;
        };
        self.unsent.remove(&sequence);
        self.settled(sequence, &item);
        self.history.insert(sequence, item);
        true
    }

    /// It is not unconfirmed any more.
    fn settled(&mut self, sequence: u64, item: &Item<T>) {
        self.superseded.remove(&sequence);
        if let Some(subject) = item.what.subject()
            && self.newest.get(&subject) == Some(&sequence)
        {
            self.newest.remove(&subject);
        }
    }

    /// The server does not have it after all. `false`: it was not confirmed, or is gone.
    pub(crate) fn unconfirm(&mut self, sequence: u64) -> bool {
        let Some(item) = self.history.remove(&sequence) else {
            return false;
        };
        if let Some(subject) = item.what.subject() {
            let newest = *self.newest.entry(subject).or_insert(sequence);
            self.superseded
                .extend((newest > sequence).then_some(sequence));
        }
        self.unconfirmed.insert(sequence, item);
        true
    }

    /// It can't be sent, ever.
    pub(crate) fn discard(&mut self, sequence: u64) -> bool {
        let Some(item) = self.unconfirmed.remove(&sequence) else {
            return false;
        };
        self.unsent.remove(&sequence);
        self.bytes -= item.bytes;
        self.settled(sequence, &item);
        true
    }

    /// Those from `from` to `to`, both included, that are still here; `most` at most, the oldest first.
    pub(crate) fn range(&self, from: u64, to: u64, most: usize) -> Vec<(u64, Arc<T>)> {
        if from > to {
            return Vec::new();
        }
        let of = |items: &BTreeMap<u64, Item<T>>| {
            items
                .range(from..=to)
                .take(most)
                .map(|(&sequence, item)| (sequence, item.what.clone()))
                .collect::<Vec<_>>()
        };
        let mut found = of(&self.history);
        found.extend(of(&self.unconfirmed));
        found.sort_unstable_by_key(|(sequence, _)| *sequence);
        found.truncate(most);
        found
    }

    /// The sequence of the newest; 0 before the first.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    /// The oldest that is still here, or the next one where none is. Some after it may be gone all the same.
    pub(crate) fn oldest(&self) -> u64 {
        let first = |items: &BTreeMap<u64, Item<T>>| items.keys().next().copied();
        [first(&self.history), first(&self.unconfirmed)]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(self.last + 1)
    }

    /// How many, confirmed or not.
    pub(crate) fn held(&self) -> usize {
        self.unconfirmed.len() + self.history.len()
    }

    pub(crate) fn unconfirmed(&self) -> usize {
        self.unconfirmed.len()
    }

    /// Of those up to this sequence.
    pub(crate) fn unconfirmed_until(&self, sequence: u64) -> usize {
        self.unconfirmed.range(..=sequence).count()
    }

    pub(crate) fn unsent(&self) -> usize {
        self.unsent.len()
    }

    pub(crate) fn is_unconfirmed(&self, sequence: u64) -> bool {
        self.unconfirmed.contains_key(&sequence)
    }

    /// The oldest that is not confirmed, and since when it is here.
    pub(crate) fn oldest_unconfirmed(&self) -> Option<(u64, Time)> {
        let (&sequence, item) = self.unconfirmed.first_key_value()?;
        Some((sequence, item.since))
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn items_max(&self) -> usize {
        self.items_max
    }

    pub(crate) fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// Unconfirmed ones that had to go for want of room.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Events without a subject.
    impl Subject for u64 {
        fn subject(&self) -> Option<u64> {
            None
        }

        fn is_final(&self) -> bool {
            true
        }
    }

    /// A state of a subject.
    struct Told(u64);

    impl Subject for Told {
        fn subject(&self) -> Option<u64> {
            Some(self.0)
        }

        fn is_final(&self) -> bool {
            false
        }
    }

    fn told(subjects: &[u64], items_max: usize) -> Outbox<Told> {
        let mut outbox = Outbox::new(items_max, 1000);
        for (sequence, subject) in (1..).zip(subjects) {
            assert_eq!(
                outbox.push(Told(*subject), 10, Time(sequence)),
                Some(sequence)
            );
        }
        outbox
    }

    fn sequences(outbox: &Outbox<Told>) -> Vec<u64> {
        let all = outbox.range(0, u64::MAX, usize::MAX);
        all.into_iter().map(|(sequence, _)| sequence).collect()
    }

    #[test]
    fn what_is_superseded_goes_first_and_the_last_of_every_subject_stays() {
        let outbox = told(&[1, 2, 1, 3, 4, 2], 3);
        assert_eq!(
            (sequences(&outbox), outbox.dropped()),
            (vec![3, 4, 5, 6], 2)
        );
        // More than the count, but never more than the bytes.
        let many: Vec<u64> = (1..=150).collect();
        let outbox = told(&many, 3);
        assert_eq!(sequences(&outbox), (51..=150).collect::<Vec<_>>());
        assert_eq!((outbox.dropped(), outbox.bytes()), (50, 1000));
    }

    #[test]
    fn what_is_confirmed_supersedes_nothing_and_what_is_taken_back_is_superseded_again() {
        let mut outbox = told(&[1, 2, 1], 3);
        assert!(outbox.confirm(1) && outbox.unconfirm(1));
        outbox.push(Told(3), 10, Time(4));
        assert_eq!((sequences(&outbox), outbox.dropped()), (vec![2, 3, 4], 1));
        assert!(outbox.confirm(3));
        outbox.push(Told(1), 10, Time(5));
        assert_eq!((sequences(&outbox), outbox.dropped()), (vec![2, 4, 5], 1));
    }

    fn filled(items: usize) -> Outbox<u64> {
        let mut outbox = Outbox::new(3, 1000);
        for n in 1..=items as u64 {
            assert_eq!(outbox.push(n, 10, Time(n)), Some(n));
        }
        outbox
    }

    fn here(outbox: &Outbox<u64>) -> Vec<u64> {
        let all = outbox.range(0, u64::MAX, usize::MAX);
        all.into_iter().map(|(sequence, _)| sequence).collect()
    }

    #[test]
    fn history_makes_room_before_what_is_unconfirmed() {
        let mut outbox = filled(3);
        assert!(outbox.confirm(2));
        outbox.push(4, 10, Time(4));
        assert_eq!((here(&outbox), outbox.dropped()), (vec![1, 3, 4], 0));
        outbox.push(5, 10, Time(5));
        assert_eq!((here(&outbox), outbox.dropped()), (vec![3, 4, 5], 1));
    }

    #[test]
    fn what_was_dropped_on_its_way_is_not_sent_again_nor_confirmed() {
        let mut outbox = filled(3);
        assert_eq!(outbox.take().map(|(n, _)| n), Some(1));
        outbox.push(4, 10, Time(4));
        assert!(!outbox.again(1));
        assert!(!outbox.confirm(1));
        assert_eq!(outbox.take().map(|(n, _)| n), Some(2));
    }

    #[test]
    fn what_goes_again_goes_in_order_before_what_was_never_sent() {
        let mut outbox = filled(3);
        for _ in 0..2 {
            outbox.take();
        }
        assert!(outbox.again(1));
        outbox.confirm(2);
        assert!(!outbox.again(2));
        let again: Vec<_> = std::iter::from_fn(|| outbox.take().map(|(n, _)| n)).collect();
        assert_eq!(again, [1, 3]);
    }

    #[test]
    fn what_is_larger_than_all_room_is_refused_and_takes_no_sequence() {
        let mut outbox = filled(2);
        assert_eq!(outbox.push(9, 1001, Time(9)), None);
        assert_eq!((here(&outbox), outbox.last()), (vec![1, 2], 2));
        assert_eq!(outbox.push(3, 1000, Time(9)), Some(3));
        assert_eq!((here(&outbox), outbox.dropped()), (vec![3], 2));
    }

    #[test]
    fn the_oldest_of_an_empty_box_is_the_next() {
        let mut outbox = filled(1);
        assert_eq!((outbox.oldest(), outbox.last()), (1, 1));
        assert!(outbox.discard(1));
        assert_eq!((outbox.oldest(), outbox.last(), outbox.bytes()), (2, 1, 0));
    }

    #[test]
    fn a_confirmation_that_was_wrong_is_taken_back() {
        let mut outbox = filled(2);
        outbox.take();
        outbox.confirm(1);
        assert!(outbox.unconfirm(1));
        assert!(!outbox.unconfirm(1));
        assert_eq!(outbox.oldest_unconfirmed(), Some((1, Time(1))));
        assert!(outbox.again(1));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push(usize),
        Take,
        Confirm(u64),
        Unconfirm(u64),
        Again(u64),
        Discard(u64),
        Range(u64, u64, usize),
    }

    fn steps() -> impl Strategy<Value = Step> {
        let sequence = 0..40u64;
        prop_oneof![
            4 => (0..60usize).prop_map(Step::Push),
            3 => Just(Step::Take),
            3 => sequence.clone().prop_map(Step::Confirm),
            1 => sequence.clone().prop_map(Step::Unconfirm),
            2 => sequence.clone().prop_map(Step::Again),
            1 => sequence.clone().prop_map(Step::Discard),
            1 => (sequence.clone(), sequence, 0..20usize).prop_map(|(a, b, n)| Step::Range(a, b, n)),
        ]
    }

    #[derive(Clone, Copy, PartialEq, Debug)]
    enum State {
        Unsent,
        Sent,
        Confirmed,
    }

    /// The same, as a list.
    #[derive(Default)]
    struct Naive {
        items: Vec<(u64, usize, State)>,
        last: u64,
        dropped: u64,
    }

    impl Naive {
        fn bytes(&self) -> usize {
            self.items.iter().map(|(_, bytes, _)| bytes).sum()
        }

        fn push(&mut self, bytes: usize, items_max: usize, bytes_max: usize) -> Option<u64> {
            if bytes > bytes_max {
                return None;
            }
            while self.items.len() >= items_max || self.bytes() + bytes > bytes_max {
                let confirmed = self.items.iter().position(|i| i.2 == State::Confirmed);
                self.dropped += u64::from(confirmed.is_none());
                self.items.remove(confirmed.unwrap_or(0));
            }
            self.last += 1;
            self.items.push((self.last, bytes, State::Unsent));
            Some(self.last)
        }

        fn turn(&mut self, sequence: u64, from: &[State], to: Option<State>) -> bool {
            let found = self.items.iter().position(|i| i.0 == sequence);
            let Some(n) = found.filter(|&n| from.contains(&self.items[n].2)) else {
                return false;
            };
            match to {
                Some(to) => self.items[n].2 = to,
                None => drop(self.items.remove(n)),
            }
            true
        }
    }

    proptest! {
        #[test]
        fn it_behaves_as_a_list_would(
            items_max in 1..8usize,
            bytes_max in 0..100usize,
            steps in proptest::collection::vec(steps(), 0..80),
        ) {
            use State::{Confirmed, Sent, Unsent};
            let mut outbox: Outbox<u64> = Outbox::new(items_max, bytes_max);
            let mut naive = Naive::default();
            for step in steps {
                match step {
                    Step::Push(bytes) => {
                        let sequence = naive.push(bytes, items_max, bytes_max);
                        prop_assert_eq!(outbox.push(naive.last, bytes, Time(0)), sequence);
                    }
                    Step::Take => {
                        let first = naive.items.iter().find(|i| i.2 == Unsent).map(|i| i.0);
                        if let Some(first) = first {
                            naive.turn(first, &[Unsent], Some(Sent));
                        }
                        let taken = outbox.take();
                        prop_assert_eq!(taken.as_ref().map(|(n, _)| *n), first);
                        prop_assert_eq!(taken.map(|(_, what)| *what), first);
                    }
                    Step::Confirm(n) => {
                        let turned = naive.turn(n, &[Unsent, Sent], Some(Confirmed));
                        prop_assert_eq!(outbox.confirm(n), turned);
                    }
                    Step::Unconfirm(n) => {
                        let turned = naive.turn(n, &[Confirmed], Some(Sent));
                        prop_assert_eq!(outbox.unconfirm(n), turned);
                    }
                    Step::Again(n) => {
                        let turned = naive.turn(n, &[Sent], Some(Unsent));
                        prop_assert_eq!(outbox.again(n), turned);
                    }
                    Step::Discard(n) => {
                        let turned = naive.turn(n, &[Unsent, Sent], None);
                        prop_assert_eq!(outbox.discard(n), turned);
                    }
                    Step::Range(from, to, most) => {
                        let expected: Vec<_> = naive
                            .items
                            .iter()
                            .map(|i| i.0)
                            .filter(|n| (from..=to).contains(n))
                            .take(most)
                            .collect();
                        let range = outbox.range(from, to, most);
                        let range: Vec<_> = range.into_iter().map(|(n, _)| n).collect();
                        prop_assert_eq!(range, expected);
                    }
                }
                let of = |state| naive.items.iter().filter(|i| i.2 == state).count();
                prop_assert_eq!(outbox.held(), naive.items.len());
                prop_assert_eq!(outbox.bytes(), naive.bytes());
                prop_assert_eq!(outbox.unsent(), of(Unsent));
                prop_assert_eq!(outbox.unconfirmed(), of(Unsent) + of(Sent));
                prop_assert_eq!(outbox.dropped(), naive.dropped);
                prop_assert_eq!(outbox.last(), naive.last);
                prop_assert_eq!(outbox.oldest(), naive.items.first().map_or(naive.last + 1, |i| i.0));
                prop_assert!(outbox.held() <= items_max && outbox.bytes() <= bytes_max);
            }
        }
    }
}
