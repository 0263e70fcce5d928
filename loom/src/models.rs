//! The models. Each explores every interleaving up to the preemption bound and every value a relaxed load may return.
//!
//! What is asserted is the promise, not the mechanism: when all threads are done, what was said last agrees with the
//! value (G1), and an excursion outside of a band that was in force is said by the thread that made it (G2).

use std::{
    sync::Arc as StdArc,
    task::{Wake, Waker},
};

use loom::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use crate::{
    arrivals::Arrivals,
    backlog::Subject,
    cell::{Cell, Listener, Real, Recorded, Signal, Wakes, Whole},
    handoff::{Handoff, Turn},
    interest::{ChangeState, Cuts, ExtremesState, Interval, ThresholdState},
    mailbox::{Letters, Mailbox, Taken},
    time::{Now, Stamp, Time},
};

/// No model looks at the time.
struct NoClock;

impl Now for NoClock {
    fn now(&self) -> Time {
        Time::ZERO
    }
}

/// Three preemptions find every bug that these models were ever seen to find, within seconds.
fn model(preemptions: usize, f: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(f);
}

/// What a listener has said, behind a plain lock that loom does not see: nothing of the protocol depends on it.
type Said<T> = StdArc<std::sync::Mutex<Vec<T>>>;

fn said<T: Clone>(said: &Said<T>) -> Vec<T> {
    said.lock().unwrap().clone()
}

struct Threshold {
    id: u64,
    state: ThresholdState,
    pending: Option<(bool, f64)>,
    said: Said<(bool, f64)>,
}

fn above(id: u64, raise: f64, clear: f64) -> (Box<Threshold>, Said<(bool, f64)>) {
    let said = Said::default();
    let listener = Threshold {
        id,
        state: ThresholdState::new(Cuts {
            rising: true,
            raise,
            clear,
        }),
        pending: None,
        said: said.clone(),
    };
    (Box::new(listener), said)
}

impl Listener for Threshold {
    fn id(&self) -> u64 {
        self.id
    }

    fn judge(&mut self, value: f64, _mutated: bool, _stamp: &mut Stamp<'_>) {
        if let Some(raised) = self.state.step(value) {
            self.pending = Some((raised, value));
        }
    }

    fn quiet(&self) -> Interval {
        self.state.quiet()
    }

    fn speak(&mut self, _wakes: &mut Wakes) {
        if let Some(pending) = self.pending.take() {
            self.said.lock().unwrap().push(pending);
        }
    }

    fn removed(&mut self, value: f64, _stamp: &mut Stamp<'_>, _wakes: &mut Wakes) {
        if self.state.is_raised() {
            self.said.lock().unwrap().push((false, value));
        }
    }
}

/// Raised and cleared alternate, beginning with raised, and the last agrees with the value.
fn assert_agrees(events: &[(bool, f64)], value: f64, raise: f64, clear: f64) {
    for (i, (raised, _)) in events.iter().enumerate() {
        assert_eq!(*raised, i % 2 == 0, "not alternating: {events:?}");
    }
    let raised = events.last().is_some_and(|(raised, _)| *raised);
    if value >= raise {
        assert!(raised, "{value} was never reported: {events:?}");
    }
    if value < clear {
        assert!(!raised, "{value} did not clear: {events:?}");
    }
}

fn attach<R: crate::cell::Repr>(cell: &Cell, listener: Box<dyn Listener>) {
    let mut wakes = Wakes::new();
    assert!(cell.attach::<R>(listener, Signal::Value, &NoClock, &mut wakes));
}

/// A thread that sets these values.
fn setting<const N: usize>(cell: &Arc<Cell>, values: [f64; N]) -> thread::JoinHandle<()> {
    let cell = cell.clone();
    thread::spawn(move || values.into_iter().for_each(|v| cell.set_real(v, &NoClock)))
}

/// A thread that adds these amounts.
fn adding<const N: usize>(cell: &Arc<Cell>, amounts: [u64; N]) -> thread::JoinHandle<()> {
    let cell = cell.clone();
    thread::spawn(move || {
        amounts
            .into_iter()
            .for_each(|n| cell.add_whole(n, &NoClock))
    })
}

#[test]
fn a_set_during_attach_is_judged_by_one_of_the_two() {
    model(4, || {
        let cell = Arc::new(Cell::new::<Real>(0));
        let setter = setting(&cell, [95.0]);
        let (listener, events) = above(1, 90.0, 80.0);
        attach::<Real>(&cell, listener);
        setter.join().unwrap();
        assert_eq!(said(&events), [(true, 95.0)]);
    });
}

#[test]
fn two_setters_leave_the_state_in_agreement_with_the_value() {
    model(3, || {
        let cell = Arc::new(Cell::new::<Real>(0));
        let (listener, events) = above(1, 90.0, 80.0);
        attach::<Real>(&cell, listener);
        let setter = setting(&cell, [95.0, 10.0]);
        cell.set_real(85.0, &NoClock);
        cell.set_real(91.0, &NoClock);
        setter.join().unwrap();
        assert_agrees(&said(&events), f64::from_bits(cell.load()), 90.0, 80.0);
    });
}

/// The spike is over before anybody could have read it; the thread that made it says so all the same.
#[test]
fn a_spike_that_is_over_is_still_reported() {
    model(3, || {
        let cell = Arc::new(Cell::new::<Real>(0));
        let (listener, events) = above(1, 90.0, 80.0);
        attach::<Real>(&cell, listener);
        let other = setting(&cell, [20.0]);
        cell.set_real(95.0, &NoClock);
        other.join().unwrap();
        let events = said(&events);
        assert!(events.contains(&(true, 95.0)), "{events:?}");
        assert_agrees(&events, f64::from_bits(cell.load()), 90.0, 80.0);
    });
}

#[test]
fn three_threads_that_count_cross_exactly_once() {
    model(2, || {
        let cell = Arc::new(Cell::new::<Whole>(0));
        let (listener, events) = above(1, 3.0, 3.0);
        attach::<Whole>(&cell, listener);
        let others: Vec<_> = (0..2)
            .map(|_| {
                let cell = cell.clone();
                thread::spawn(move || cell.add_whole(1, &NoClock))
            })
            .collect();
        cell.add_whole(1, &NoClock);
        for other in others {
            other.join().unwrap();
        }
        assert_eq!(cell.load(), 3);
        assert_eq!(said(&events), [(true, 3.0)]);
    });
}

#[test]
fn two_thresholds_on_one_cell_do_not_hide_each_other() {
    model(2, || {
        let cell = Arc::new(Cell::new::<Real>(0));
        let (low, low_events) = above(1, 10.0, 10.0);
        let (high, high_events) = above(2, 50.0, 50.0);
        attach::<Real>(&cell, low);
        attach::<Real>(&cell, high);
        let setter = setting(&cell, [60.0]);
        cell.set_real(20.0, &NoClock);
        setter.join().unwrap();
        let value = f64::from_bits(cell.load());
        assert_agrees(&said(&low_events), value, 10.0, 10.0);
        assert_agrees(&said(&high_events), value, 50.0, 50.0);
        assert!(said(&high_events).contains(&(true, 60.0)));
    });
}

#[test]
fn a_set_during_detach_is_heard_or_not_and_the_others_go_on() {
    model(3, || {
        let cell = Arc::new(Cell::new::<Real>(0));
        let (leaving, _) = above(1, 50.0, 50.0);
        let (staying, events) = above(2, 90.0, 80.0);
        attach::<Real>(&cell, leaving);
        attach::<Real>(&cell, staying);
        let setter = setting(&cell, [95.0, 60.0]);
        assert!(
            cell.detach::<Real>(1, Signal::Value, &NoClock, &mut Wakes::new())
                .is_some()
        );
        setter.join().unwrap();
        assert_eq!(said(&events), [(true, 95.0), (false, 60.0)]);
    });
}

struct Change {
    state: ChangeState,
    speaks: bool,
    posted: Arc<Mailbox<()>>,
}

impl Listener for Change {
    fn id(&self) -> u64 {
        1
    }

    fn judge(&mut self, value: f64, _mutated: bool, _stamp: &mut Stamp<'_>) {
        self.speaks |= self.state.step(value);
    }

    fn quiet(&self) -> Interval {
        self.state.quiet()
    }

    fn speak(&mut self, wakes: &mut Wakes) {
        if std::mem::take(&mut self.speaks) {
            wakes.extend(self.posted.push(()));
        }
    }
}

fn take<T>(mailbox: &Mailbox<T>, waker: &Waker) -> Option<(u64, Vec<T>)> {
    let mut batch = Letters::with_capacity(0);
    let mut cx = std::task::Context::from_waker(waker);
    match mailbox.poll_take(&mut cx, &mut batch) {
        std::task::Poll::Ready(Taken::Letters { lagged, .. }) => {
            Some((lagged, std::iter::from_fn(|| batch.pop_front()).collect()))
        }
        _ => None,
    }
}

/// What the reader of a conflated change does for each letter: re-arm, and take the value read after that.
fn drain(cell: &Cell) -> f64 {
    let mut wakes = Wakes::new();
    cell.visit::<Real, f64>(1, Signal::Value, &NoClock, &mut wakes, |listener, bits| {
        let listener: &mut dyn std::any::Any = listener;
        let value = f64::from_bits(bits);
        listener
            .downcast_mut::<Change>()
            .unwrap()
            .state
            .drained(value);
        value
    })
    .unwrap()
}

#[test]
fn a_set_during_drain_is_in_the_value_drained_or_makes_a_new_letter() {
    model(3, || {
        let cell = Arc::new(Cell::new::<Real>(0));
        let posted = Arc::new(Mailbox::new(4));
        attach::<Real>(
            &cell,
            Box::new(Change {
                state: ChangeState::new(),
                speaks: false,
                posted: posted.clone(),
            }),
        );
        let setter = setting(&cell, [1.0, 2.0]);
        let mut seen = 0.0;
        while let Some((_, letters)) = take(&posted, Waker::noop()) {
            for () in letters {
                seen = drain(&cell);
            }
        }
        setter.join().unwrap();
        while let Some((_, letters)) = take(&posted, Waker::noop()) {
            for () in letters {
                seen = drain(&cell);
            }
        }
        assert_eq!(seen, 2.0);
    });
}

struct Extremes {
    state: ExtremesState,
    seen: Said<(f64, f64)>,
}

impl Listener for Extremes {
    fn id(&self) -> u64 {
        1
    }

    fn judge(&mut self, value: f64, _mutated: bool, _stamp: &mut Stamp<'_>) {
        self.state.step(value);
        let mut seen = self.seen.lock().unwrap();
        seen.clear();
        seen.extend(self.state.get());
    }

    fn quiet(&self) -> Interval {
        self.state.quiet()
    }
}

#[test]
fn no_extreme_escapes() {
    model(3, || {
        let cell = Arc::new(Cell::new::<Real>(0));
        let seen = Said::default();
        attach::<Real>(
            &cell,
            Box::new(Extremes {
                state: ExtremesState::new(),
                seen: seen.clone(),
            }),
        );
        let setter = setting(&cell, [7.0, -1.0]);
        cell.set_real(9.0, &NoClock);
        cell.set_real(3.0, &NoClock);
        setter.join().unwrap();
        assert_eq!(said(&seen), [(-1.0, 9.0)]);
    });
}

struct Tap {
    id: u64,
    start: Said<u64>,
    moves: Said<(u64, u64)>,
    sequences: Said<u64>,
}

/// What a histogram's window does where a slot begins: it takes the extremes, which re-arms the band, and only then reads
/// how many there were. An observation that races with that is counted in a slot and an extreme of that or of the next one.
#[test]
fn an_observation_is_an_extreme_no_earlier_than_it_is_counted_and_is_never_lost() {
    struct Range(ExtremesState);
    impl Listener for Range {
        fn id(&self) -> u64 {
            1
        }
        fn judge(&mut self, value: f64, mutated: bool, _: &mut Stamp<'_>) {
            if mutated {
                self.0.step(value);
            }
        }
        fn quiet(&self) -> Interval {
            self.0.quiet()
        }
    }
    model(3, || {
        let cell = Arc::new(Cell::new::<Real>(0));
        let mut wakes = Wakes::new();
        let range = Box::new(Range(ExtremesState::new()));
        cell.attach::<Real>(range, Signal::Observation, &NoClock, &mut wakes);
        let counted = Arc::new(AtomicU64::new(0));
        let observe = |cell: &Cell, counted: &AtomicU64, v| {
            cell.observe(v, &NoClock, || {
                counted.fetch_add(1, Ordering::Relaxed);
            });
        };
        observe(&cell, &counted, 1.0);
        let observer = {
            let (cell, counted) = (cell.clone(), counted.clone());
            thread::spawn(move || observe(&cell, &counted, 1.0))
        };
        let take = || {
            let extremes = cell.visit::<Real, _>(
                1,
                Signal::Observation,
                &NoClock,
                &mut Wakes::new(),
                |l, _| {
                    let any: &mut dyn std::any::Any = l;
                    let range = any.downcast_mut::<Range>().unwrap();
                    let seen = range.0.get();
                    range.0.reset();
                    seen
                },
            );
            (extremes.unwrap(), counted.load(Ordering::Relaxed))
        };
        let (first, counted_first) = take();
        observer.join().unwrap();
        let (second, counted_both) = take();
        assert_eq!(counted_both, 2);
        assert_eq!(first, Some((1.0, 1.0)));
        // Who was not counted in the first slot is an extreme of the second.
        assert!(counted_first == 2 || second == Some((1.0, 1.0)));
    });
}

/// A tap, the value at which it began, the moves it was told of, and their sequence numbers.
type TapAndSaid = (Box<Tap>, Said<u64>, Said<(u64, u64)>, Said<u64>);

fn tap(id: u64) -> TapAndSaid {
    let (start, moves, sequences) = (Said::default(), Said::default(), Said::default());
    let tap = Tap {
        id,
        start: start.clone(),
        moves: moves.clone(),
        sequences: sequences.clone(),
    };
    (Box::new(tap), start, moves, sequences)
}

impl Listener for Tap {
    fn id(&self) -> u64 {
        self.id
    }

    fn takes_all(&self) -> bool {
        true
    }

    fn begin(&mut self, bits: u64, _stamp: &mut Stamp<'_>) {
        self.start.lock().unwrap().push(bits);
    }

    fn quiet(&self) -> Interval {
        Interval::NOTHING
    }

    fn record(&mut self, recorded: Recorded, sequence: u64, _at: Time, _wakes: &mut Wakes) {
        let Recorded::Moved { before, after } = recorded else {
            panic!("a cell of values observed something");
        };
        self.moves.lock().unwrap().push((before, after));
        self.sequences.lock().unwrap().push(sequence);
    }
}

/// From the value at which the tap began to the present one without a gap.
fn assert_chain(start: u64, moves: &[(u64, u64)], value: u64) {
    let mut at = start;
    for (before, after) in moves {
        assert_eq!(*before, at, "a gap in {moves:?}");
        at = *after;
    }
    assert_eq!(at, value, "the last of {moves:?} is not the value");
}

#[test]
fn a_tap_gets_every_mutation_in_order() {
    model(3, || {
        let cell = Arc::new(Cell::new::<Real>(0));
        let (listener, start, moves, sequences) = tap(1);
        attach::<Real>(&cell, listener);
        let setter = setting(&cell, [1.0, 2.0]);
        cell.set_real(3.0, &NoClock);
        setter.join().unwrap();
        let moves = said(&moves);
        assert_eq!(moves.len(), 3);
        assert_eq!(said(&sequences), [1, 2, 3]);
        assert_chain(said(&start)[0], &moves, cell.load());
    });
}

#[test]
fn a_tap_that_comes_in_the_middle_misses_no_amount() {
    model(3, || {
        let cell = Arc::new(Cell::new::<Whole>(0));
        let adder = adding(&cell, [1, 2]);
        let (listener, start, moves, _) = tap(1);
        attach::<Whole>(&cell, listener);
        cell.add_whole(4, &NoClock);
        adder.join().unwrap();
        assert_eq!(cell.load(), 7);
        assert_chain(said(&start)[0], &said(&moves), 7);
    });
}

#[test]
fn a_tap_that_leaves_and_one_that_comes_both_have_whole_chains() {
    model(2, || {
        let cell = Arc::new(Cell::new::<Whole>(0));
        let (first, ..) = tap(1);
        attach::<Whole>(&cell, first);
        let adder = adding(&cell, [1, 2]);
        cell.detach::<Whole>(1, Signal::Value, &NoClock, &mut Wakes::new());
        let (second, start, moves, _) = tap(2);
        attach::<Whole>(&cell, second);
        adder.join().unwrap();
        assert_chain(said(&start)[0], &said(&moves), 3);
    });
}

#[test]
fn after_the_last_recorder_the_band_is_open_whoever_mutates_meanwhile() {
    model(3, || {
        let cell = Arc::new(Cell::new::<Whole>(0));
        let (listener, ..) = tap(1);
        attach::<Whole>(&cell, listener);
        let adder = adding(&cell, [1]);
        cell.detach::<Whole>(1, Signal::Value, &NoClock, &mut Wakes::new());
        adder.join().unwrap();
        assert!(cell.is_open());
        assert_eq!(cell.load(), 1);
    });
}

#[test]
fn an_observation_is_recorded_once_or_came_before_the_tap() {
    struct Observations(Said<f64>);
    impl Listener for Observations {
        fn id(&self) -> u64 {
            1
        }
        fn takes_all(&self) -> bool {
            true
        }
        fn quiet(&self) -> Interval {
            Interval::NOTHING
        }
        fn record(&mut self, recorded: Recorded, _: u64, _: Time, _: &mut Wakes) {
            if let Recorded::Observed(value) = recorded {
                self.0.lock().unwrap().push(value);
            }
        }
    }
    model(3, || {
        let cell = Arc::new(Cell::new::<Real>(0));
        let observer = {
            let cell = cell.clone();
            thread::spawn(move || cell.observe(1.0, &NoClock, || {}))
        };
        let seen = Said::default();
        let mut wakes = Wakes::new();
        let listener = Box::new(Observations(seen.clone()));
        cell.attach::<Real>(listener, Signal::Observation, &NoClock, &mut wakes);
        cell.observe(2.0, &NoClock, || {});
        observer.join().unwrap();
        let mut seen = said(&seen);
        seen.sort_by(f64::total_cmp);
        assert!(seen == [2.0] || seen == [1.0, 2.0], "{seen:?}");
        assert_eq!(f64::from_bits(cell.load()), 3.0);
    });
}

#[test]
fn a_threshold_beside_a_tap_still_agrees() {
    model(2, || {
        let cell = Arc::new(Cell::new::<Real>(0));
        let (threshold, events) = above(1, 90.0, 80.0);
        attach::<Real>(&cell, threshold);
        let setter = setting(&cell, [95.0, 10.0]);
        let (listener, ..) = tap(2);
        attach::<Real>(&cell, listener);
        cell.detach::<Real>(2, Signal::Value, &NoClock, &mut Wakes::new());
        setter.join().unwrap();
        let events = said(&events);
        assert!(events.contains(&(true, 95.0)), "{events:?}");
        assert_agrees(&events, 10.0, 90.0, 80.0);
    });
}

#[test]
fn retiring_a_cell_while_it_is_set_is_the_last_word() {
    model(3, || {
        let cell = Arc::new(Cell::new::<Real>(0));
        let (listener, events) = above(1, 90.0, 80.0);
        attach::<Real>(&cell, listener);
        let setter = setting(&cell, [95.0]);
        let (last, _) = above(3, 200.0, 100.0);
        cell.retire::<Real>(&NoClock, last, &mut Wakes::new());
        setter.join().unwrap();
        // Raised and then cleared by the removal, or never heard of: but not raised for good.
        let events = said(&events);
        assert!(
            events.is_empty() || events == [(true, 95.0), (false, 95.0)],
            "{events:?}"
        );
        let (late, _) = above(2, 90.0, 80.0);
        assert!(!cell.attach::<Real>(late, Signal::Value, &NoClock, &mut Wakes::new()));
    });
}

struct Flag(loom::sync::atomic::AtomicBool);

impl Wake for Flag {
    fn wake(self: StdArc<Self>) {
        self.0.store(true, loom::sync::atomic::Ordering::SeqCst);
    }
}

/// A reader that found nothing and parked is woken by whoever pushes next: a letter never lies unread behind a parked
/// reader.
#[test]
fn a_parked_reader_is_woken_for_every_letter() {
    model(3, || {
        let mailbox = Arc::new(Mailbox::new(1));
        let writer = {
            let mailbox = mailbox.clone();
            thread::spawn(move || {
                for letter in 0..2 {
                    if let Some(waker) = mailbox.push(letter) {
                        waker.wake();
                    }
                }
            })
        };
        let woken = StdArc::new(Flag(loom::sync::atomic::AtomicBool::new(false)));
        let waker = Waker::from(woken.clone());
        let (mut got, mut lagged) = (0, 0);
        while let Some((dropped, letters)) = take(&mailbox, &waker) {
            lagged += dropped;
            got += letters.len() as u64;
        }
        // Parked. Whatever is pushed from here on wakes.
        writer.join().unwrap();
        if got + lagged < 2 {
            assert!(woken.0.load(loom::sync::atomic::Ordering::SeqCst));
            let (dropped, letters) = take(&mailbox, &waker).unwrap();
            assert_eq!(letters.last(), Some(&1), "the last letter always arrives");
            assert_eq!(got + lagged + dropped + letters.len() as u64, 2);
        }
    });
}

/// A state of one of two subjects.
#[derive(Clone, Copy, Debug, PartialEq)]
struct State(u64, u32);

impl Subject for State {
    fn subject(&self) -> Option<u64> {
        Some(self.0)
    }

    fn is_final(&self) -> bool {
        false
    }
}

/// Two writers fill a mailbox of one place, each with the states of a subject of its own, while a reader takes: the last state of both arrives,
/// each in its order, what was given up is counted, and a parked reader is woken.
#[test]
fn the_last_state_of_every_subject_arrives() {
    model(2, || {
        let mailbox = Arc::new(Mailbox::of_states(1));
        let writers = [1, 2].map(|subject| {
            let mailbox = mailbox.clone();
            thread::spawn(move || {
                for number in 1..=2 {
                    if let Some(waker) = mailbox.push(State(subject, number)) {
                        waker.wake();
                    }
                }
            })
        });
        let woken = StdArc::new(Flag(loom::sync::atomic::AtomicBool::new(false)));
        let waker = Waker::from(woken.clone());
        let (mut read, mut lagged) = (Vec::new(), 0);
        while let Some((dropped, letters)) = take(&mailbox, &waker) {
            lagged += dropped;
            read.extend(letters);
        }
        // Parked. Whatever is pushed from here on wakes.
        for writer in writers {
            writer.join().unwrap();
        }
        if read.len() as u64 + lagged < 4 {
            assert!(woken.0.load(loom::sync::atomic::Ordering::SeqCst));
            while let Some((dropped, letters)) = take(&mailbox, &waker) {
                lagged += dropped;
                read.extend(letters);
            }
        }
        assert_eq!(read.len() as u64 + lagged, 4);
        for subject in [1, 2] {
            let numbers: Vec<_> = read
                .iter()
                .filter(|s| s.0 == subject)
                .map(|s| s.1)
                .collect();
            assert!(numbers == [1, 2] || numbers == [2], "{read:?}");
        }
    });
}

/// What two threads do, in the order in which it was done.
fn hand_off(turn: usize) -> impl Fn() + Send + Sync + 'static {
    move || {
        let handoff = Arc::new(Handoff::new());
        let done = Said::<(u64, u32)>::default();
        let run = {
            let (handoff, done) = (handoff.clone(), done.clone());
            let at_it = Arc::new(AtomicU64::new(0));
            move |me: u64| {
                loop {
                    let turn = handoff.run(me, turn, |thing| {
                        assert_eq!(at_it.fetch_add(1, Ordering::Relaxed), 0, "two at once");
                        done.lock().unwrap().push(thing);
                        at_it.fetch_sub(1, Ordering::Relaxed);
                    });
                    if turn != Turn::More {
                        return;
                    }
                }
            }
        };
        let bringing = |me: u64| {
            let (handoff, run) = (handoff.clone(), run.clone());
            move || {
                for n in 0..2 {
                    handoff.push((me, n), 8);
                    run(me);
                }
            }
        };
        let other = thread::spawn(bringing(2));
        bringing(1)();
        other.join().unwrap();
        for me in [1, 2] {
            let mine: Vec<_> = said(&done)
                .into_iter()
                .filter(|(who, _)| *who == me)
                .collect();
            assert_eq!(mine, [(me, 0), (me, 1)]);
        }
    }
}

#[test]
fn what_was_brought_before_is_done_when_its_number_is_although_others_go_on() {
    model(3, || {
        let handoff = Arc::new(Handoff::new());
        let done = Arc::new(AtomicU64::new(0));
        let run = |handoff: &Handoff<u64>, done: &AtomicU64, me| {
            handoff.run(me, 8, |thing| done.store(thing, Ordering::Relaxed))
        };
        let other = {
            let (handoff, done) = (handoff.clone(), done.clone());
            thread::spawn(move || {
                for thing in 1..=3 {
                    handoff.push(thing, 8);
                    run(&handoff, &done, 2);
                }
            })
        };
        let before = handoff.brought();
        let is_done = handoff.has_done(before) || run(&handoff, &done, 1) == Turn::Done;
        if is_done {
            assert!(done.load(Ordering::Relaxed) >= before);
        }
        other.join().unwrap();
        assert!(handoff.has_done(3));
    });
}

#[test]
fn what_is_handed_off_is_done_once_in_order_and_never_left_lying() {
    model(3, hand_off(8));
}

#[test]
fn a_turn_that_ends_early_leaves_the_rest_to_whoever_comes() {
    model(3, hand_off(1));
}

/// `waiting` wait for two things, that are brought about by one thread each; loom finds who sleeps for ever.
fn arrivals(waiting: usize) -> impl Fn() + Send + Sync + 'static {
    move || {
        let arrivals = Arc::new(Arrivals::new());
        let arrived = Arc::new(AtomicU64::new(0));
        let mut threads = Vec::new();
        for _ in 0..2 {
            let (arrivals, arrived) = (arrivals.clone(), arrived.clone());
            threads.push(thread::spawn(move || {
                // Relaxed: that it is seen is for the arrivals to see to.
                arrived.fetch_add(1, Ordering::Relaxed);
                arrivals.tell();
            }));
        }
        let wait = {
            let (arrivals, arrived) = (arrivals.clone(), arrived.clone());
            move || arrivals.wait_until(|| arrived.load(Ordering::Relaxed) == 2)
        };
        if waiting == 2 {
            threads.push(thread::spawn(wait.clone()));
        }
        wait();
        for thread in threads {
            thread.join().unwrap();
        }
    }
}

#[test]
fn who_waits_for_arrivals_sees_the_last_of_them() {
    model(3, arrivals(1));
}

#[test]
fn two_who_wait_are_both_woken() {
    model(2, arrivals(2));
}

#[test]
fn who_brings_something_about_while_looking_is_not_stuck() {
    model(3, || {
        let arrivals = Arc::new(Arrivals::new());
        let arrived = Arc::new(AtomicU64::new(0));
        let other = {
            let (arrivals, arrived) = (arrivals.clone(), arrived.clone());
            thread::spawn(move || {
                arrived.fetch_add(1, Ordering::Relaxed);
                arrivals.tell();
            })
        };
        let mut looks = 0;
        arrivals.wait_until(|| {
            looks += 1;
            if looks == 1 {
                arrivals.tell();
            }
            arrived.load(Ordering::Relaxed) == 1
        });
        other.join().unwrap();
    });
}
