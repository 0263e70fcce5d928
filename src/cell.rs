//! The cell: a value, the quiet band beside it, and the handshake between those who mutate and those who listen.
//!
//! It owns the 64-bit value, the band `[lo, hi)` inside which nobody has to hear of the value, and the desk: the list of
//! listeners, behind this series' lock. It knows nothing of names, buses, mailboxes or rules, and runs no user code.
//! Nothing outside this file depends on the layout.
//!
//! # The protocol
//!
//! A **mutation** is one atomic read-modify-write of the value with `AcqRel` (a `set` is a `swap`), then relaxed loads of
//! `lo` and `hi`, and a compare. Inside the band it is done. Outside, the same thread goes through the slow path, with
//! *its own* value, so that a spike which is over by then is still judged.
//!
//! The **slow path**, under the desk's lock, in this order:
//!
//! 1. step every listener with this thread's value; they note what is to be said;
//! 2. store the new band;
//! 3. re-read the value by a read-modify-write, `fetch_add(0, AcqRel)`;
//! 4. only now let the listeners push into their mailboxes;
//! 5. if the value re-read lies outside the new band, go round again with it;
//! 6. unlock, then wake.
//!
//! **Attach**, **visit** (which a conflated reader uses to re-arm itself) and **detach** do steps 2 to 6.
//!
//! # Why nothing is lost
//!
//! Mutator M and re-armer R both do a read-modify-write of the same atomic, M before it loads the band, R after it has
//! stored the band. Read-modify-writes of one atomic are totally ordered, so one of the two came first.
//!
//! - M's first: R's re-read (step 3) sees M's value or a later one. If that lies outside the new band, R goes round
//!   with it. If M's own value was overwritten by M2 in between, the same holds for M2.
//! - R's first: M's read-modify-write reads from R's, or from one that follows it in the release sequence; both are
//!   `AcqRel`, so R's stores of the band happen before M's loads of it. M sees the new band, or a newer one.
//!
//! No `SeqCst` fence is needed; it would double the cost of a mutation.
//!
//! *Races that are safe.* `lo` and `hi` may be read torn, one old and one new. Either half being old means that the
//! re-armer's read-modify-write comes after M's, so the first case applies. A NaN fails the compare and reaches the slow
//! path by itself, whatever the band. A band that only widens needs no re-read: any value outside the wider band was
//! outside the narrower one, so its mutator is on its way.
//!
//! *What goes wrong otherwise* (each has a test in `loom/`, or was found by one): speaking before the band is stored (a
//! listener hears "cleared", sets 90 then 70 under the old band, and the 90 is never reported); a plain load in step 3,
//! or a plain store for `set` (crossings are lost).
//!
//! *Order.* Between its read-modify-write and its loads of the band a mutator may be overtaken, and then be judged after
//! one that came later. What only grows can be put right: a value lower than the one judged last came before it, and the
//! later one is judged again instead. A gauge cannot tell; such an excursion is reported late, and the re-read follows it
//! with the present state. It is never lost, and what was said last agrees with the value.
//!
//! # Recorders: those who want every mutation
//!
//! A tap or a gauge's window is a listener that [takes all](Listener::takes_all). While there is one the band is *shut*: `lo`
//! holds a value that no band has, and a mutator that sees it **before** its read-modify-write takes the lock first and
//! mutates under it. So recorded mutations have one total order per series, `before` of each is `after` of the one
//! before it, and the last `after` is the value.
//!
//! A mutator that looked just before the band was shut mutates without the lock, is sent to the slow path by the compare
//! (nothing lies inside a shut band) or was already counted by the attach. To keep the chain whole, the desk remembers
//! the last `after` recorded. A gap between it and what is found next is closed by one record which spans it. So
//! mutations that race with the *first* recorder's attach may be merged with each other; their sum is never lost.
//!
//! # Histograms
//!
//! The value of a histogram's cell is its sum, and the band is on the observed value, which the sum does not tell. So
//! there is nothing to re-read: an observation that races with a change of the band is judged by either band.
//!
//! Whatever `count` has written is published by the read-modify-write of the sum, and so is a new band: after
//! [`visit`](Cell::visit) has re-armed the band, who observed under the old one is found in the counts, and who is not
//! found there is judged by the new band. Windows begin their slots so.

use std::{any::Any, task::Waker};

use smallvec::SmallVec;

use crate::{
    interest::Interval,
    sync::{AtomicU64, Mutex, Ordering, lock, lock_politely},
    time::{Now, Stamp, Time},
};

/// Readers to wake once no lock is held.
pub(crate) type Wakes = SmallVec<[Waker; 2]>;

/// Stored in `lo` while there is a recorder. As `f64` it is a NaN, as `u64` no counter gets there.
const SHUT: u64 = u64::MAX;

/// How the 64 bits of a cell are read.
pub(crate) trait Repr: 'static {
    fn decode(bits: u64) -> f64;
    fn inside(bits: u64, lo: u64, hi: u64) -> bool;
    fn band(interval: Interval) -> (u64, u64);

    /// Whichever of the two came later, where that can be told: of what only grows, the greater. Otherwise `bits`.
    fn latest(bits: u64, judged: u64) -> u64;
}

/// Bits are an unsigned integer that only grows.
pub(crate) enum Whole {}
/// Bits are a double that only grows.
pub(crate) enum Amount {}
/// Bits are a double.
pub(crate) enum Real {}

impl Repr for Whole {
    fn decode(bits: u64) -> f64 {
        bits as f64
    }

    #[inline(always)]
    fn inside(bits: u64, lo: u64, hi: u64) -> bool {
        bits >= lo && bits < hi
    }

    fn band(interval: Interval) -> (u64, u64) {
        if interval.is_nothing() {
            return (SHUT, 0);
        }
        // For a whole v: v >= x exactly when v >= ceil(x), and v < x exactly when v < ceil(x). `as` saturates.
        (interval.lo.ceil() as u64, interval.hi.ceil() as u64)
    }

    fn latest(bits: u64, judged: u64) -> u64 {
        bits.max(judged)
    }
}

impl Repr for Amount {
    fn decode(bits: u64) -> f64 {
        Real::decode(bits)
    }

    #[inline(always)]
    fn inside(bits: u64, lo: u64, hi: u64) -> bool {
        Real::inside(bits, lo, hi)
    }

    fn band(interval: Interval) -> (u64, u64) {
        Real::band(interval)
    }

    fn latest(bits: u64, judged: u64) -> u64 {
        f64::from_bits(bits).max(f64::from_bits(judged)).to_bits()
    }
}

impl Repr for Real {
    fn decode(bits: u64) -> f64 {
        f64::from_bits(bits)
    }

    #[inline(always)]
    fn inside(bits: u64, lo: u64, hi: u64) -> bool {
        let value = f64::from_bits(bits);
        value >= f64::from_bits(lo) && value < f64::from_bits(hi)
    }

    fn band(interval: Interval) -> (u64, u64) {
        if interval.is_nothing() {
            return (SHUT, SHUT);
        }
        (interval.lo.to_bits(), interval.hi.to_bits())
    }

    fn latest(bits: u64, _judged: u64) -> u64 {
        bits
    }
}

/// One mutation, as a recorder gets it. The bits are in the cell's representation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Recorded {
    Moved { before: u64, after: u64 },
    Observed(f64),
}

/// Somebody who listens at a cell. All methods run under the series' lock: no user code, no waiting.
pub(crate) trait Listener: Send + Any {
    /// Unique within the bus.
    fn id(&self) -> u64;

    /// Wants [`record`](Listener::record) for every mutation.
    fn takes_all(&self) -> bool {
        false
    }

    /// It is in place; from here on no mutation escapes it. `bits`: the value it starts from.
    fn begin(&mut self, bits: u64, stamp: &mut Stamp<'_>) {
        let _ = (bits, stamp);
    }

    /// Somebody [asks](Cell::ask) it something; the answer goes into the question. Who wraps a listener passes it on.
    fn ask(&mut self, question: &mut dyn Any) {
        let _ = question;
    }

    /// Takes a value, and notes what is to be said. `mutated`: somebody has just made it so; otherwise a listener came
    /// or went, and the value is shown again.
    fn judge(&mut self, value: f64, mutated: bool, stamp: &mut Stamp<'_>) {
        let _ = (value, mutated, stamp);
    }

    /// Where nothing needs saying.
    fn quiet(&self) -> Interval;

    /// Pushes what was noted.
    fn speak(&mut self, wakes: &mut Wakes) {
        let _ = wakes;
    }

    /// Takes a mutation in full; pushes at once. `sequence` counts this series' recorded mutations without gaps.
    fn record(&mut self, mutation: Recorded, sequence: u64, at: Time, wakes: &mut Wakes) {
        let _ = (mutation, sequence, at, wakes);
    }

    /// The series is gone; the last word. `value` is the last one.
    fn removed(&mut self, value: f64, stamp: &mut Stamp<'_>, wakes: &mut Wakes) {
        let _ = (value, stamp, wakes);
    }
}

pub(crate) struct Cell {
    value: AtomicU64,
    lo: AtomicU64,
    hi: AtomicU64,
    /// `None` as long as nobody has ever listened.
    desk: Mutex<Option<Box<Desk>>>,
}

struct Desk {
    listeners: Vec<Box<dyn Listener>>,
    /// The band in force.
    band: Interval,
    recorders: usize,
    /// The last `after` that was recorded.
    chain: u64,
    sequence: u64,
    /// The value judged last.
    judged: u64,
    retired: bool,
}

impl Cell {
    pub(crate) fn new<R: Repr>(bits: u64) -> Self {
        let (lo, hi) = R::band(Interval::EVERYTHING);
        Cell {
            value: AtomicU64::new(bits),
            lo: AtomicU64::new(lo),
            hi: AtomicU64::new(hi),
            desk: Mutex::new(None),
        }
    }

    /// Whether nobody hears of any mutation.
    #[cfg(test)]
    pub(crate) fn is_open(&self) -> bool {
        self.lo.load(Ordering::Relaxed) != SHUT
            && lock(&self.desk)
                .as_ref()
                .is_none_or(|desk| desk.band == Interval::EVERYTHING)
    }

    /// The value's bits. Takes no lock.
    pub(crate) fn load(&self) -> u64 {
        self.value.load(Ordering::Acquire)
    }

    #[inline(always)]
    pub(crate) fn add_whole(&self, n: u64, host: &impl Now) {
        self.mutate::<Whole>(host, |value| {
            let before = value.fetch_add(n, Ordering::AcqRel);
            (before, before.wrapping_add(n))
        });
    }

    #[inline(always)]
    pub(crate) fn add_real(&self, d: f64, host: &impl Now) {
        self.mutate::<Real>(host, |value| {
            let before = add_bits(value, d);
            (before, (f64::from_bits(before) + d).to_bits())
        });
    }

    #[inline(always)]
    pub(crate) fn add_amount(&self, d: f64, host: &impl Now) {
        self.mutate::<Amount>(host, |value| {
            let before = add_bits(value, d);
            (before, (f64::from_bits(before) + d).to_bits())
        });
    }

    #[inline(always)]
    pub(crate) fn set_real(&self, v: f64, host: &impl Now) {
        self.mutate::<Real>(host, |value| {
            (value.swap(v.to_bits(), Ordering::AcqRel), v.to_bits())
        });
    }

    /// Replaces the value by `v` where `better(value)`; otherwise there is no mutation.
    pub(crate) fn set_real_if(&self, v: f64, host: &impl Now, better: impl Fn(f64) -> bool) {
        let mut seen = self.value.load(Ordering::Relaxed);
        while better(f64::from_bits(seen)) {
            // Tried without the lock of a shut band first: whether there is a mutation at all depends on the value.
            if self.lo.load(Ordering::Relaxed) == SHUT {
                return self.mutate_shut::<Real>(host, &|value| {
                    let mut before = value.load(Ordering::Relaxed);
                    while better(f64::from_bits(before)) {
                        match value.compare_exchange_weak(
                            before,
                            v.to_bits(),
                            Ordering::AcqRel,
                            Ordering::Relaxed,
                        ) {
                            Ok(_) => return Some((before, v.to_bits())),
                            Err(now) => before = now,
                        }
                    }
                    None
                });
            }
            match self.value.compare_exchange_weak(
                seen,
                v.to_bits(),
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return self.check::<Real>(seen, v.to_bits(), host),
                Err(now) => seen = now,
            }
        }
    }

    /// Adds `v` to the sum that this cell holds and shows `v` to those who listen. `count` counts it in its bucket.
    #[inline(always)]
    pub(crate) fn observe(&self, v: f64, host: &impl Now, count: impl Fn()) {
        if self.lo.load(Ordering::Relaxed) == SHUT {
            return self.observe_shut(v, host, &count);
        }
        count();
        add_bits(&self.value, v);
        let (lo, hi) = (
            self.lo.load(Ordering::Relaxed),
            self.hi.load(Ordering::Relaxed),
        );
        if !Real::inside(v.to_bits(), lo, hi) {
            self.observed_outside(v, host);
        }
    }

    /// Shows an observation to those who listen, and counts it nowhere.
    pub(crate) fn show(&self, v: f64, host: &impl Now) {
        self.observed_outside(v, host);
    }

    /// Takes over what was observed elsewhere: `count` counts it in its buckets, the sum becomes `sum`, and of the values
    /// `seen` those are shown that somebody has to hear of. One thread at a time; not beside [`observe`](Cell::observe),
    /// whose addition would be lost.
    #[allow(dead_code)] // Of the features that take values from elsewhere.
    pub(crate) fn absorb(&self, sum: f64, seen: &[f64], host: &impl Now, count: impl Fn()) {
        count();
        self.value.swap(sum.to_bits(), Ordering::AcqRel);
        for &v in seen {
            let (lo, hi) = (
                self.lo.load(Ordering::Relaxed),
                self.hi.load(Ordering::Relaxed),
            );
            if lo == SHUT || !Real::inside(v.to_bits(), lo, hi) {
                self.observed_outside(v, host);
            }
        }
    }

    #[inline(always)]
    fn mutate<R: Repr>(&self, host: &impl Now, op: impl Fn(&AtomicU64) -> (u64, u64)) {
        if self.lo.load(Ordering::Relaxed) == SHUT {
            return self.mutate_shut::<R>(host, &|value| Some(op(value)));
        }
        let (before, after) = op(&self.value);
        self.check::<R>(before, after, host);
    }

    #[inline(always)]
    fn check<R: Repr>(&self, before: u64, after: u64, host: &impl Now) {
        let (lo, hi) = (
            self.lo.load(Ordering::Relaxed),
            self.hi.load(Ordering::Relaxed),
        );
        if !R::inside(after, lo, hi) {
            let _ = before;
            self.outside::<R>(after, host);
        }
    }

    /// The slow path of a mutation that left the band.
    #[cold]
    #[inline(never)]
    fn outside<R: Repr>(&self, after: u64, host: &dyn Now) {
        self.mutated(host, |desk, stamp, wakes| {
            if desk.recorders > 0 {
                // This thread did not see that the band was shut: its mutation is in the value, but perhaps not yet in
                // the chain.
                let value = self.value.fetch_add(0, Ordering::AcqRel);
                desk.record_up_to(value, stamp, wakes);
            }
            self.settle::<R>(desk, after, true, stamp, wakes);
        });
    }

    /// A mutation while there is a recorder: under the lock from the start.
    #[cold]
    #[inline(never)]
    fn mutate_shut<R: Repr>(&self, host: &dyn Now, op: &dyn Fn(&AtomicU64) -> Option<(u64, u64)>) {
        let mut wakes = Wakes::new();
        {
            let mut stamp = Stamp::new(host);
            let mut guard = lock(&self.desk);
            let Some((before, after)) = op(&self.value) else {
                return;
            };
            if let Some(desk) = guard.as_deref_mut() {
                if desk.recorders > 0 {
                    desk.record_up_to(before, &mut stamp, &mut wakes);
                    desk.record(Recorded::Moved { before, after }, &mut stamp, &mut wakes);
                    desk.chain = after;
                }
                self.settle::<R>(desk, after, true, &mut stamp, &mut wakes);
            }
        }
        wake_all(&mut wakes);
    }

    #[cold]
    #[inline(never)]
    fn observed_outside(&self, v: f64, host: &dyn Now) {
        self.mutated(host, |desk, stamp, wakes| {
            if desk.recorders > 0 {
                desk.record(Recorded::Observed(v), stamp, wakes);
            }
            self.settle_observed(desk, v, stamp, wakes);
        });
    }

    #[cold]
    #[inline(never)]
    fn observe_shut(&self, v: f64, host: &dyn Now, count: &dyn Fn()) {
        count();
        add_bits(&self.value, v);
        self.observed_outside(v, host);
    }

    /// Puts a listener in place. `false` when it is there already or the series is gone. The caller wakes whom `wakes`
    /// says, once it holds no lock of its own.
    pub(crate) fn attach<R: Repr>(
        &self,
        listener: Box<dyn Listener>,
        signal: Signal,
        host: &dyn Now,
        wakes: &mut Wakes,
    ) -> bool {
        let mut stamp = Stamp::new(host);
        let mut guard = lock(&self.desk);
        let desk = guard.get_or_insert_with(Desk::new);
        if desk.retired || desk.listeners.iter().any(|l| l.id() == listener.id()) {
            return false;
        }
        let records = listener.takes_all();
        let first_recorder = records && desk.recorders == 0;
        desk.recorders += usize::from(records);
        desk.listeners.push(listener);
        let mut bits = self.value.fetch_add(0, Ordering::AcqRel);
        match signal {
            Signal::Value => {
                self.settle::<R>(desk, bits, false, &mut stamp, wakes);
                if first_recorder {
                    // After the band was shut: what mutates from here on comes to the desk.
                    desk.chain = self.value.fetch_add(0, Ordering::AcqRel);
                }
                if records {
                    bits = desk.chain;
                }
            }
            Signal::Observation => self.rearm_observed(desk),
        }
        if let Some(listener) = desk.listeners.last_mut() {
            listener.begin(bits, &mut stamp);
        }
        true
    }

    /// Takes a listener out. `None` when it isn't there. The caller wakes, as for [`attach`](Cell::attach).
    pub(crate) fn detach<R: Repr>(
        &self,
        id: u64,
        signal: Signal,
        host: &dyn Now,
        wakes: &mut Wakes,
    ) -> Option<Box<dyn Listener>> {
        let mut taken = None;
        self.at_desk(host, wakes, |desk, stamp, wakes| {
            let Some(position) = desk.listeners.iter().position(|l| l.id() == id) else {
                return;
            };
            let listener = desk.listeners.remove(position);
            desk.recorders -= usize::from(listener.takes_all());
            taken = Some(listener);
            match signal {
                Signal::Value => {
                    let value = self.value.fetch_add(0, Ordering::AcqRel);
                    self.settle::<R>(desk, value, false, stamp, wakes);
                }
                Signal::Observation => self.rearm_observed(desk),
            }
        });
        taken
    }

    /// Shows a listener to `f` together with the value's bits, then re-arms the band. `None` when it isn't there. The
    /// caller wakes, as for [`attach`](Cell::attach).
    pub(crate) fn visit<R: Repr, T>(
        &self,
        id: u64,
        signal: Signal,
        host: &dyn Now,
        wakes: &mut Wakes,
        f: impl FnOnce(&mut dyn Listener, u64) -> T,
    ) -> Option<T> {
        let mut result = None;
        self.at_desk(host, wakes, |desk, stamp, wakes| {
            let Some(listener) = desk.listeners.iter_mut().find(|l| l.id() == id) else {
                return;
            };
            let value = self.value.fetch_add(0, Ordering::AcqRel);
            result = Some(f(listener.as_mut(), value));
            match signal {
                Signal::Value => self.settle::<R>(desk, value, false, stamp, wakes),
                Signal::Observation => self.rearm_observed(desk),
            }
        });
        result
    }

    /// Asks a listener something that changes nothing about where it is quiet. `false` when it isn't there.
    pub(crate) fn ask(&self, id: u64, question: &mut dyn Any) -> bool {
        let mut guard = lock_politely(&self.desk);
        let Some(desk) = guard.as_deref_mut() else {
            return false;
        };
        let Some(listener) = desk.listeners.iter_mut().find(|l| l.id() == id) else {
            return false;
        };
        listener.ask(question);
        true
    }

    /// The series is gone: every listener hears so and leaves, and none can come any more but `last`, who hears of late
    /// writes. They go to the value and nowhere else.
    pub(crate) fn retire<R: Repr>(
        &self,
        host: &dyn Now,
        last: Box<dyn Listener>,
        wakes: &mut Wakes,
    ) {
        let mut stamp = Stamp::new(host);
        let mut guard = lock(&self.desk);
        let desk = guard.get_or_insert_with(Desk::new);
        desk.retired = true;
        desk.recorders = 0;
        let value = R::decode(self.value.load(Ordering::Acquire));
        for listener in &mut desk.listeners {
            listener.removed(value, &mut stamp, wakes);
        }
        let gone = std::mem::replace(&mut desk.listeners, vec![last]);
        let _ = self.store_band::<R>(desk);
        drop(guard);
        drop(gone);
    }

    /// Takes all listeners out, without a word to them.
    pub(crate) fn silence<R: Repr>(&self) {
        let mut guard = lock(&self.desk);
        let Some(desk) = guard.as_deref_mut() else {
            return;
        };
        desk.recorders = 0;
        let gone = std::mem::take(&mut desk.listeners);
        let _ = self.store_band::<R>(desk);
        drop(guard);
        drop(gone);
    }

    pub(crate) fn is_retired(&self) -> bool {
        lock(&self.desk).as_ref().is_some_and(|desk| desk.retired)
    }

    /// As [`is_retired`](Cell::is_retired), for those who may hold a desk: `false` where somebody is at it.
    pub(crate) fn is_known_retired(&self) -> bool {
        self.desk
            .try_lock()
            .is_ok_and(|desk| desk.as_ref().is_some_and(|desk| desk.retired))
    }

    /// Runs `f` at the desk, if there is one.
    fn at_desk(
        &self,
        host: &dyn Now,
        wakes: &mut Wakes,
        f: impl FnOnce(&mut Desk, &mut Stamp<'_>, &mut Wakes),
    ) {
        let mut stamp = Stamp::new(host);
        if let Some(desk) = lock(&self.desk).as_deref_mut() {
            f(desk, &mut stamp, wakes);
        }
    }

    /// Takes a mutation to the desk, and wakes whom that concerns once the desk is free. The mutating thread holds no
    /// lock of this crate.
    fn mutated(&self, host: &dyn Now, f: impl FnOnce(&mut Desk, &mut Stamp<'_>, &mut Wakes)) {
        let mut wakes = Wakes::new();
        self.at_desk(host, &mut wakes, f);
        wake_all(&mut wakes);
    }

    /// Steps 1 to 5.
    fn settle<R: Repr>(
        &self,
        desk: &mut Desk,
        mut bits: u64,
        mut mutated: bool,
        stamp: &mut Stamp<'_>,
        wakes: &mut Wakes,
    ) {
        if desk.recorders > 0 && desk.recorders == desk.listeners.len() && desk.band.is_nothing() {
            // Recorders alone: nobody judges, and the band is shut already.
            return;
        }
        loop {
            bits = R::latest(bits, desk.judged);
            desk.judged = bits;
            let value = R::decode(bits);
            for listener in &mut desk.listeners {
                listener.judge(value, mutated, stamp);
            }
            let narrowed = self.store_band::<R>(desk);
            let again = if narrowed {
                self.value.fetch_add(0, Ordering::AcqRel)
            } else {
                bits
            };
            for listener in &mut desk.listeners {
                listener.speak(wakes);
            }
            // A value that is still the one just judged has been judged; a NaN changes no state, and a change interest
            // hears of it from the thread that set it.
            let (lo, hi) = R::band(desk.band);
            if again == bits || R::inside(again, lo, hi) || R::decode(again).is_nan() {
                return;
            }
            bits = again;
            mutated = true;
        }
    }

    fn settle_observed(&self, desk: &mut Desk, v: f64, stamp: &mut Stamp<'_>, wakes: &mut Wakes) {
        for listener in &mut desk.listeners {
            listener.judge(v, true, stamp);
        }
        self.rearm_observed(desk);
        for listener in &mut desk.listeners {
            listener.speak(wakes);
        }
    }

    fn rearm_observed(&self, desk: &mut Desk) {
        if self.store_band::<Real>(desk) {
            // Orders the stores of the band before whatever observes next.
            add_bits(&self.value, 0.0);
        }
    }

    /// Stores the band that the listeners leave. `true` when some value that was inside is outside now.
    fn store_band<R: Repr>(&self, desk: &mut Desk) -> bool {
        let band = if desk.recorders > 0 {
            Interval::NOTHING
        } else {
            desk.listeners
                .iter()
                .fold(Interval::EVERYTHING, |band, l| band.intersect(l.quiet()))
        };
        if band == desk.band || (band.is_nothing() && desk.band.is_nothing()) {
            return false;
        }
        let narrowed = !band.covers(desk.band);
        desk.band = band;
        let (lo, hi) = R::band(band);
        self.lo.store(lo, Ordering::Relaxed);
        self.hi.store(hi, Ordering::Relaxed);
        narrowed
    }
}

/// What the listeners of a cell judge.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Signal {
    /// The value of the cell: counters and gauges.
    Value,
    /// What is observed: histograms.
    Observation,
}

impl Desk {
    fn new() -> Box<Desk> {
        Box::new(Desk {
            listeners: Vec::new(),
            band: Interval::EVERYTHING,
            recorders: 0,
            chain: 0,
            sequence: 0,
            judged: 0,
            retired: false,
        })
    }

    fn record(&mut self, mutation: Recorded, stamp: &mut Stamp<'_>, wakes: &mut Wakes) {
        self.sequence += 1;
        let at = stamp.at();
        for listener in &mut self.listeners {
            if listener.takes_all() {
                listener.record(mutation, self.sequence, at, wakes);
            }
        }
    }

    /// Closes the gap between the last recorded value and `bits`, if there is one.
    fn record_up_to(&mut self, bits: u64, stamp: &mut Stamp<'_>, wakes: &mut Wakes) {
        if self.chain != bits {
            let mutation = Recorded::Moved {
                before: self.chain,
                after: bits,
            };
            self.chain = bits;
            self.record(mutation, stamp, wakes);
        }
    }
}

/// Adds `d` to the double in `value`; the bits before.
#[inline(always)]
fn add_bits(value: &AtomicU64, d: f64) -> u64 {
    let mut seen = value.load(Ordering::Relaxed);
    loop {
        let sum = (f64::from_bits(seen) + d).to_bits();
        match value.compare_exchange_weak(seen, sum, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => return seen,
            Err(now) => seen = now,
        }
    }
}

/// Wakes whom a visit to a desk collected. Most visits wake nobody.
#[inline(always)]
pub(crate) fn wake_all(wakes: &mut Wakes) {
    if !wakes.is_empty() {
        wake_each(wakes);
    }
}

#[cold]
fn wake_each(wakes: &mut Wakes) {
    let wake = |wakes: &mut Wakes| wakes.drain(..).for_each(std::task::Waker::wake);
    #[cfg(not(metricbus_loom))]
    crate::dispatch::inline_last(|| wake(wakes));
    #[cfg(metricbus_loom)]
    wake(wakes);
}
