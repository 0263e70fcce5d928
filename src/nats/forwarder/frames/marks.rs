//! The marks of a forwarding: which of its series have something to be told. A list bounded by their number.
//!
//! A series is on the list at most once, however often it changes: that is the conflation. Marking allocates nothing and
//! wakes nobody; a ticker looks whether there is anything. Room is made where series come.
//!
//! A reader takes the list as a whole, goes over it at its leisure, and puts back what it could not tell. Lock order: a
//! series' desk, then this.

use std::{
    mem,
    sync::{Arc, Mutex},
};

use crate::sync::{lock, lock_politely};

/// Series that have gone and of which that has not been told yet, at most. Of those beyond it nothing is told but that
/// there were some.
pub(super) const GONE_MAX: usize = 16_384;

/// `M`: what is known of a series; `G`: what is left of one that has gone.
pub(super) struct Marks<M, G>(Mutex<State<M, G>>);

struct State<M, G> {
    places: Vec<Place<M>>,
    /// Places of which nobody has the number.
    free: Vec<u32>,
    /// Places to be looked at, with room for all.
    list: Vec<u32>,
    gone: Vec<G>,
    gone_forgotten: u64,
}

struct Place<M> {
    member: Option<Arc<M>>,
    /// Whether it is on the list.
    listed: bool,
    /// When it was last told, counted in rounds; 0: never.
    told: u64,
}

/// What has gone.
pub(super) struct Gone<G> {
    pub(super) all: Vec<G>,
    /// How many more there were.
    pub(super) forgotten: u64,
}

impl<M, G> Marks<M, G> {
    pub(super) fn new() -> Self {
        Marks(Mutex::new(State {
            places: Vec::new(),
            free: Vec::new(),
            list: Vec::new(),
            gone: Vec::new(),
            gone_forgotten: 0,
        }))
    }

    /// Takes a series in, marked. The number of its place.
    pub(super) fn join(&self, member: Arc<M>) -> u32 {
        let mut state = lock(&self.0);
        let state = &mut *state;
        let number = match state.free.pop() {
            Some(number) => number,
            None => {
                state.places.push(Place {
                    member: None,
                    listed: false,
                    told: 0,
                });
                // 2^32 series would need hundreds of gigabytes.
                (state.places.len() - 1) as u32
            }
        };
        let more = state.places.len() - state.list.len();
        state.list.reserve(more);
        if let Some(place) = state.places.get_mut(number as usize) {
            place.member = Some(member);
            place.told = 0;
        }
        state.mark(number);
        number
    }

    /// The series of this place leaves. Its number may be on the list still; whoever gets it next is marked anyway. What
    /// nobody was ever told of needs no telling that it is gone.
    pub(super) fn leave(&self, number: u32, gone: Option<G>) {
        let mut state = lock(&self.0);
        let state_now = &mut *state;
        let Some(place) = state_now.places.get_mut(number as usize) else {
            return;
        };
        let Some(member) = place.member.take() else {
            return;
        };
        let mut too_many = None;
        if place.told > 0 {
            match gone {
                Some(gone) if state_now.gone.len() < GONE_MAX => state_now.gone.push(gone),
                none_or_more => {
                    state_now.gone_forgotten += 1;
                    too_many = none_or_more;
                }
            }
        }
        state_now.free.push(number);
        // Dropping a series may drop more.
        drop(state);
        drop((member, too_many));
    }

    /// The series of this place has something to be told.
    pub(super) fn mark(&self, number: u32) {
        lock(&self.0).mark(number);
    }

    /// Marks each of these that was told after round `confirmed`.
    pub(super) fn mark_told_after(&self, confirmed: u64) {
        let mut state = lock_politely(&self.0);
        for number in 0..state.places.len() as u32 {
            if state.places[number as usize].told > confirmed {
                state.mark(number);
            }
        }
    }

    /// Whether there is nothing to be told.
    pub(super) fn is_empty(&self) -> bool {
        let state = lock_politely(&self.0);
        state.list.is_empty() && state.gone.is_empty() && state.gone_forgotten == 0
    }

    /// Exchanges the list for an empty one.
    pub(super) fn take(&self, list: &mut Vec<u32>) {
        list.clear();
        loop {
            let mut state = lock_politely(&self.0);
            let places = state.places.len();
            if list.capacity() < places {
                // Not under the lock, where a mutating thread would wait for it.
                drop(state);
                list.reserve(places);
                continue;
            }
            mem::swap(&mut state.list, list);
            for number in &*list {
                if let Some(place) = state.places.get_mut(*number as usize) {
                    place.listed = false;
                }
            }
            return;
        }
    }

    /// Those that have gone since it was last asked.
    pub(super) fn take_gone(&self) -> Gone<G> {
        let mut state = lock_politely(&self.0);
        Gone {
            all: mem::take(&mut state.gone),
            forgotten: mem::take(&mut state.gone_forgotten),
        }
    }

    /// Puts back what was taken and not told.
    pub(super) fn put_back(&self, list: &[u32]) {
        let mut state = lock_politely(&self.0);
        for number in list {
            state.mark(*number);
        }
    }

    /// Puts back what has gone and could not be told.
    pub(super) fn put_back_gone(&self, gone: Vec<G>, forgotten: u64) {
        let mut state = lock_politely(&self.0);
        let room = GONE_MAX.saturating_sub(state.gone.len());
        state.gone_forgotten += forgotten + gone.len().saturating_sub(room) as u64;
        state.gone.extend(gone.into_iter().take(room));
    }

    /// The series of this place is about to be told, in this round: from here on it is known to others. Whether it was
    /// before.
    pub(super) fn tell(&self, number: u32, round: u64) -> Option<(Arc<M>, bool)> {
        let mut state = lock_politely(&self.0);
        let place = state.places.get_mut(number as usize)?;
        let member = place.member.clone()?;
        Some((member, mem::replace(&mut place.told, round) > 0))
    }

    /// All that are there, about to be told in a snapshot: those that no frame has told yet are known to others from here
    /// on, too.
    pub(super) fn tell_all(&self) -> Vec<Arc<M>> {
        let mut state = lock_politely(&self.0);
        let places = state.places.iter_mut();
        let members = places.filter_map(|place| {
            let member = place.member.clone()?;
            place.told = place.told.max(1);
            Some(member)
        });
        members.collect()
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        let state = lock_politely(&self.0);
        state.places.len() - state.free.len()
    }
}

impl<M, G> State<M, G> {
    fn mark(&mut self, number: u32) {
        if let Some(place) = self.places.get_mut(number as usize)
            && place.member.is_some()
            && !mem::replace(&mut place.listed, true)
        {
            self.list.push(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(marks: &Marks<&'static str, &'static str>) -> Vec<&'static str> {
        let mut list = Vec::new();
        marks.take(&mut list);
        let member = |n: &u32| marks.tell(*n, 1).map(|(m, _)| *m);
        list.iter().filter_map(member).collect()
    }

    #[test]
    fn a_series_is_on_the_list_once_and_again_after_it_was_taken() {
        let marks = Marks::new();
        let (a, b) = (marks.join(Arc::new("a")), marks.join(Arc::new("b")));
        marks.mark(a);
        marks.mark(a);
        assert_eq!(taken(&marks), ["a", "b"]);
        assert!(marks.is_empty());
        marks.mark(b);
        marks.mark(b);
        assert_eq!(taken(&marks), ["b"]);
    }

    #[test]
    fn marking_never_makes_room() {
        let marks = Marks::<(), ()>::new();
        let numbers: Vec<_> = (0..100).map(|_| marks.join(Arc::new(()))).collect();
        let mut list = Vec::new();
        for _ in 0..3 {
            marks.take(&mut list);
            let room = lock(&marks.0).list.capacity();
            assert!(room >= numbers.len());
            numbers.iter().for_each(|n| marks.mark(*n));
            assert_eq!(lock(&marks.0).list.capacity(), room);
        }
    }

    #[test]
    fn who_gets_the_place_of_one_that_left_is_marked_once() {
        let marks = Marks::new();
        let a = marks.join(Arc::new("a"));
        marks.tell(a, 1);
        marks.leave(a, Some("a"));
        assert_eq!(marks.join(Arc::new("b")), a);
        assert_eq!(taken(&marks), ["b"]);
        assert_eq!(marks.take_gone().all, ["a"]);
        assert_eq!((marks.len(), marks.tell_all().len()), (1, 1));
    }

    #[test]
    fn a_mark_of_a_series_that_left_is_not_made() {
        let marks = Marks::<_, ()>::new();
        let a = marks.join(Arc::new("a"));
        let mut list = Vec::new();
        marks.take(&mut list);
        marks.leave(a, None);
        marks.mark(a);
        marks.leave(a, None);
        assert!(marks.is_empty());
        assert_eq!(marks.len(), 0);
    }

    #[test]
    fn what_was_told_after_the_last_confirmation_is_marked_again() {
        let marks = Marks::<_, ()>::new();
        let joined = ["a", "b", "c"].map(|name| marks.join(Arc::new(name)));
        let mut list = Vec::new();
        marks.take(&mut list);
        for (round, number) in (0..).zip(joined) {
            let (_, before) = marks.tell(number, round).unwrap();
            assert!(!before);
        }
        assert!(marks.tell(joined[2], 2).unwrap().1);
        marks.mark_told_after(1);
        marks.take(&mut list);
        assert_eq!(list, [joined[2]]);
        marks.mark_told_after(0);
        marks.take(&mut list);
        assert_eq!(list, [joined[1], joined[2]]);
    }

    #[test]
    fn what_only_a_snapshot_told_is_told_to_be_gone() {
        let marks = Marks::new();
        let number = marks.join(Arc::new("a"));
        marks.tell_all();
        marks.leave(number, Some("a"));
        assert_eq!(marks.take_gone().all, ["a"]);
    }

    #[test]
    fn those_that_went_are_remembered_up_to_a_bound_and_counted_beyond() {
        let marks = Marks::new();
        for i in 0..GONE_MAX + 3 {
            let number = marks.join(Arc::new(i));
            marks.tell(number, 1);
            marks.leave(number, Some(i));
        }
        let gone = marks.take_gone();
        assert_eq!((gone.all.len(), gone.forgotten), (GONE_MAX, 3));
        marks.put_back_gone(gone.all, gone.forgotten);
        marks.put_back_gone(vec![1, 2], 0);
        let gone = marks.take_gone();
        assert_eq!((gone.all.len(), gone.forgotten), (GONE_MAX, 5));
        let number = marks.join(Arc::new(0));
        marks.leave(number, Some(0));
        assert!(marks.take_gone().all.is_empty(), "nobody was told of it");
    }
}
