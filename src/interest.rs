//! Interests: what somebody wants to hear of a value, as pure state machines.
//!
//! A machine is stepped with values and answers two questions: is there something to say, and inside which
//! [`Interval`] is there nothing to say? No atomics, no locks, no clock, no I/O; the cell does those.
//!
//! | machine | its quiet interval |
//! |---|---|
//! | [`ThresholdState`] | clear: up to the raise bound; raised: down to the clear bound |
//! | [`DeltaState`] | the value last notified ± d |
//! | [`ExtremesState`] | [min, max] seen so far |
//! | [`ChangeState`] | the value last delivered, until marked; then everything until drained |
//! | [`TouchState`] | nothing until touched, then everything until re-armed |
//!
//! Rules shared by all: NaN says nothing and changes no state (except for a change, where NaN is a different value),
//! −0 equals 0, ±∞ compare as numbers. A machine stepped with a value inside its quiet interval does nothing.
//!
//! Counters of 64 bits are judged as `f64`: exact up to 2^53.

/// A half-open interval `[lo, hi)`. NaN bounds contain nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Interval {
    pub(crate) lo: f64,
    pub(crate) hi: f64,
}

impl Interval {
    /// Every number but +∞, which costs a visit to the slow path and nothing else.
    pub(crate) const EVERYTHING: Interval = Interval {
        lo: f64::NEG_INFINITY,
        hi: f64::INFINITY,
    };
    /// No number at all.
    pub(crate) const NOTHING: Interval = Interval {
        lo: f64::NAN,
        hi: f64::NAN,
    };

    pub(crate) fn is_nothing(self) -> bool {
        self.lo.is_nan()
    }

    pub(crate) fn intersect(self, other: Interval) -> Interval {
        if self.is_nothing() || other.is_nothing() {
            return Interval::NOTHING;
        }
        Interval {
            lo: self.lo.max(other.lo),
            hi: self.hi.min(other.hi),
        }
    }

    /// Whether every value of `other` is in here.
    pub(crate) fn covers(self, other: Interval) -> bool {
        other.is_nothing() || (self.lo <= other.lo && self.hi >= other.hi)
    }
}

/// A threshold as two cuts. A value is *beyond* a cut when it is ≥ it (rising) or < it (falling).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Cuts {
    /// Rising thresholds (`above`, `at_least`) raise at or over `raise` and clear under `clear`; falling ones
    /// (`below`, `at_most`) raise under `raise` and clear at or over `clear`.
    pub(crate) rising: bool,
    pub(crate) raise: f64,
    pub(crate) clear: f64,
}

/// A threshold with hysteresis.
#[derive(Clone, Debug)]
pub(crate) struct ThresholdState {
    cuts: Cuts,
    raised: bool,
}

impl ThresholdState {
    pub(crate) fn new(cuts: Cuts) -> Self {
        ThresholdState {
            cuts,
            raised: false,
        }
    }

    /// One that was raised before, and has not come back since.
    pub(crate) fn raised(cuts: Cuts) -> Self {
        ThresholdState { cuts, raised: true }
    }

    pub(crate) fn is_raised(&self) -> bool {
        self.raised
    }

    /// Takes a value. `Some(true)`: now raised; `Some(false)`: now clear; `None`: as before.
    pub(crate) fn step(&mut self, value: f64) -> Option<bool> {
        let Cuts {
            rising,
            raise,
            clear,
        } = self.cuts;
        let turns = match (rising, self.raised) {
            (true, false) => value >= raise,
            (true, true) => value < clear,
            (false, false) => value < raise,
            (false, true) => value >= clear,
        };
        if turns {
            self.raised = !self.raised;
            return Some(self.raised);
        }
        None
    }

    pub(crate) fn quiet(&self) -> Interval {
        let Cuts {
            rising,
            raise,
            clear,
        } = self.cuts;
        if rising != self.raised {
            // Waiting for a value at or over a cut.
            Interval {
                lo: f64::NEG_INFINITY,
                hi: if self.raised { clear } else { raise },
            }
        } else {
            Interval {
                lo: if self.raised { clear } else { raise },
                hi: f64::INFINITY,
            }
        }
    }
}

/// How far a value has to go before it is worth a word.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Distance {
    Absolute(f64),
    /// A share of max(|reference|, floor).
    Relative {
        share: f64,
        floor: f64,
    },
}

impl Distance {
    fn from(self, reference: f64) -> f64 {
        match self {
            Distance::Absolute(d) => d,
            Distance::Relative { share, floor } => share * reference.abs().max(floor),
        }
    }
}

/// A delta, which OPC UA calls a deadband: |value − reference| ≥ d, where the reference is the value last notified to
/// this very subscriber, so that a slow drift is seen.
#[derive(Clone, Debug)]
pub(crate) struct DeltaState {
    distance: Distance,
    reference: Option<f64>,
    /// Says something at or under `down` and at or over `up`. Kept rather than computed per step, so that `step` and
    /// `quiet` cannot round differently.
    down: f64,
    up: f64,
}

impl DeltaState {
    pub(crate) fn new(distance: Distance) -> Self {
        DeltaState {
            distance,
            reference: None,
            down: f64::NAN,
            up: f64::NAN,
        }
    }

    pub(crate) fn distance(&self) -> Distance {
        self.distance
    }

    /// Takes a value as the one that the next are compared with.
    pub(crate) fn refer(&mut self, value: f64) {
        let d = self.distance.from(value);
        self.reference = Some(value);
        self.down = value - d;
        self.up = value + d;
    }

    /// Takes a value. `Some((from, to))` when it has moved far enough. The first value becomes the reference silently.
    pub(crate) fn step(&mut self, value: f64) -> Option<(f64, f64)> {
        if value.is_nan() {
            return None;
        }
        let Some(from) = self.reference else {
            self.refer(value);
            return None;
        };
        // The first test: where d is lost in rounding (or the reference is infinite), standing still is not a move.
        if value != from && (from.is_infinite() || value <= self.down || value >= self.up) {
            self.refer(value);
            return Some((from, value));
        }
        None
    }

    pub(crate) fn quiet(&self) -> Interval {
        match self.reference {
            Some(reference) if reference.is_finite() => Interval {
                lo: self.down.next_up(),
                hi: self.up,
            },
            _ => Interval::NOTHING,
        }
    }
}

/// Smallest and largest value since it was last taken.
#[derive(Clone, Debug)]
pub(crate) struct ExtremesState {
    min: f64,
    max: f64,
}

impl ExtremesState {
    pub(crate) fn new() -> Self {
        ExtremesState {
            min: f64::NAN,
            max: f64::NAN,
        }
    }

    /// Takes a value; NaN is passed over.
    pub(crate) fn step(&mut self, value: f64) {
        // `f64::min` and `max` return the other operand where one is NaN.
        self.min = self.min.min(value);
        self.max = self.max.max(value);
    }

    /// `None` as long as no number was seen.
    pub(crate) fn get(&self) -> Option<(f64, f64)> {
        (!self.min.is_nan()).then_some((self.min, self.max))
    }

    /// Forgets all; the next step starts anew.
    pub(crate) fn reset(&mut self) {
        *self = ExtremesState::new();
    }

    pub(crate) fn quiet(&self) -> Interval {
        if self.min.is_nan() {
            return Interval::NOTHING;
        }
        Interval {
            lo: self.min,
            hi: self.max.next_up(),
        }
    }
}

/// Any change, conflated: says "changed" once, then nothing until the reader has come to look.
#[derive(Clone, Debug)]
pub(crate) struct ChangeState {
    known: Option<f64>,
    marked: bool,
}

impl ChangeState {
    pub(crate) fn new() -> Self {
        ChangeState {
            known: None,
            marked: false,
        }
    }

    /// Takes a value; `true` when the reader has to be told.
    pub(crate) fn step(&mut self, value: f64) -> bool {
        let Some(known) = self.known else {
            self.known = Some(value);
            return false;
        };
        if self.marked || known == value || (known.is_nan() && value.is_nan()) {
            return false;
        }
        self.marked = true;
        true
    }

    /// The reader has seen `value`; speak again when it is another.
    pub(crate) fn drained(&mut self, value: f64) {
        self.known = Some(value);
        self.marked = false;
    }

    /// As a step with a changed value, for signals where every value is a change.
    pub(crate) fn mark(&mut self) {
        self.marked = true;
    }

    pub(crate) fn is_marked(&self) -> bool {
        self.marked
    }

    pub(crate) fn quiet(&self) -> Interval {
        match self.known {
            _ if self.marked => Interval::EVERYTHING,
            Some(known) if known.is_finite() => Interval {
                lo: known,
                hi: known.next_up(),
            },
            _ => Interval::NOTHING,
        }
    }
}

/// Whether there was any mutation at all since it was last asked, whatever the value.
#[derive(Clone, Debug)]
pub(crate) struct TouchState {
    touched: bool,
}

impl TouchState {
    pub(crate) fn new() -> Self {
        TouchState { touched: false }
    }

    pub(crate) fn step(&mut self) {
        self.touched = true;
    }

    /// Answers, and asks again from here on.
    pub(crate) fn take(&mut self) -> bool {
        std::mem::replace(&mut self.touched, false)
    }

    pub(crate) fn quiet(&self) -> Interval {
        if self.touched {
            Interval::EVERYTHING
        } else {
            Interval::NOTHING
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rising(raise: f64, clear: f64) -> ThresholdState {
        ThresholdState::new(Cuts {
            rising: true,
            raise,
            clear,
        })
    }

    #[test]
    fn a_threshold_raises_at_its_cut_and_clears_under_the_other() {
        let mut t = rising(90.0, 80.0);
        let said: Vec<_> = [89.9, 90.0, 95.0, 80.0, 79.9, 85.0, 90.0]
            .map(|v| t.step(v))
            .into();
        assert_eq!(
            said,
            [None, Some(true), None, None, Some(false), None, Some(true)]
        );
    }

    #[test]
    fn a_falling_threshold_mirrors_a_rising_one() {
        let mut t = ThresholdState::new(Cuts {
            rising: false,
            raise: 10.0,
            clear: 20.0,
        });
        assert_eq!(t.step(10.0), None);
        assert_eq!(t.step(9.9), Some(true));
        assert_eq!(t.step(19.9), None);
        assert_eq!(t.step(20.0), Some(false));
    }

    #[test]
    fn nan_neither_enters_nor_leaves_a_threshold() {
        let mut t = rising(90.0, 80.0);
        assert_eq!(t.step(f64::NAN), None);
        t.step(f64::INFINITY);
        assert!(t.is_raised());
        assert_eq!(t.step(f64::NAN), None);
        assert!(t.is_raised());
    }

    #[test]
    fn a_slow_drift_is_seen_by_a_delta() {
        let mut d = DeltaState::new(Distance::Absolute(1.0));
        let moves: Vec<_> = (0..=40)
            .filter_map(|i| d.step(f64::from(i) * 0.25))
            .collect();
        assert_eq!(moves.len(), 10);
        assert_eq!(moves[0], (0.0, 1.0));
    }

    #[test]
    fn a_relative_delta_near_zero_goes_by_its_floor() {
        let mut d = DeltaState::new(Distance::Relative {
            share: 0.1,
            floor: 10.0,
        });
        d.step(0.0);
        assert_eq!(d.step(0.5), None);
        assert_eq!(d.step(1.0), Some((0.0, 1.0)));
    }

    #[test]
    fn a_delta_leaves_infinity_and_does_not_repeat_it() {
        let mut d = DeltaState::new(Distance::Absolute(1.0));
        d.step(0.0);
        assert_eq!(d.step(f64::INFINITY), Some((0.0, f64::INFINITY)));
        assert_eq!(d.step(f64::INFINITY), None);
        assert_eq!(d.step(3.0), Some((f64::INFINITY, 3.0)));
    }

    #[test]
    fn a_change_speaks_once_until_it_is_drained() {
        let mut c = ChangeState::new();
        assert!(!c.step(1.0));
        assert!(!c.step(1.0));
        assert!(c.step(2.0));
        assert!(!c.step(3.0));
        c.drained(3.0);
        assert!(!c.step(3.0));
        assert!(c.step(f64::NAN));
    }

    /// Inside the quiet interval a machine must have nothing to say: the cell relies on it.
    #[test]
    fn no_machine_speaks_inside_its_quiet_interval() {
        let values = [
            f64::NEG_INFINITY,
            -1e300,
            -2.0,
            -0.0,
            0.0,
            0.1,
            0.30000000000000004,
            1.0,
            1e16,
            1e300,
        ];
        for &start in &values {
            for &v in &values {
                for d in [
                    Distance::Absolute(0.1),
                    Distance::Relative {
                        share: 0.1,
                        floor: 1.0,
                    },
                ] {
                    let mut m = DeltaState::new(d);
                    m.step(start);
                    let quiet = m.quiet();
                    if v >= quiet.lo && v < quiet.hi {
                        assert_eq!(m.step(v), None, "delta from {start} to {v}");
                    } else if v != start {
                        assert!(m.step(v).is_some(), "delta from {start} to {v}");
                    }
                }
                let mut m = rising(1.0, 0.1);
                m.step(start);
                let quiet = m.quiet();
                assert_eq!(
                    v >= quiet.lo && v < quiet.hi,
                    m.step(v).is_none(),
                    "threshold from {start} to {v}"
                );
            }
        }
    }
}
