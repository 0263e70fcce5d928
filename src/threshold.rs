//! What a subscriber asks for: thresholds and deltas, as plain values that are checked when they are used.

use std::fmt;

use crate::{
    error::SubscribeError,
    interest::{Cuts, Distance},
};

/// A bound, with the bound at which it is over again.
///
/// Words carry strictness: `above` is >, `at_least` is ≥, `below` is <, `at_most` is ≤. Without a clear bound the
/// threshold clears as soon as its condition no longer holds; a value that dances on such a bound fires each time, so
/// give it hysteresis. Bounds are in the unit of the metric, and must be finite. A clear bound on the wrong side is an
/// error when the subscription is made.
///
/// NaN neither raises nor clears. −0 equals 0. ±∞ compare as numbers.
///
/// ```
/// use metricbus::Threshold;
///
/// let busy = Threshold::above(0.9).clear_below(0.8);
/// assert_eq!(busy.to_string(), "above 0.9, clear below 0.8");
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[must_use]
pub struct Threshold {
    raise: (Word, f64),
    clear: Option<(Word, f64)>,
}

/// A word and its bound.
#[cfg(feature = "nats")]
pub(crate) type Bound = (&'static str, f64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Above,
    AtLeast,
    Below,
    AtMost,
}

impl Word {
    fn rising(self) -> bool {
        matches!(self, Word::Above | Word::AtLeast)
    }

    /// The least value at or over which the word's condition changes.
    fn cut(self, bound: f64) -> f64 {
        match self {
            Word::AtLeast | Word::Below => bound,
            Word::Above | Word::AtMost => bound.next_up(),
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Word::Above => "above",
            Word::AtLeast => "at least",
            Word::Below => "below",
            Word::AtMost => "at most",
        }
    }
}

impl Threshold {
    const fn raise(word: Word, bound: f64) -> Self {
        Threshold {
            raise: (word, bound),
            clear: None,
        }
    }

    const fn clear(mut self, word: Word, bound: f64) -> Self {
        self.clear = Some((word, bound));
        self
    }

    /// Raised when the value is greater than `bound`.
    pub const fn above(bound: f64) -> Self {
        Self::raise(Word::Above, bound)
    }

    /// Raised when the value is `bound` or more.
    pub const fn at_least(bound: f64) -> Self {
        Self::raise(Word::AtLeast, bound)
    }

    /// Raised when the value is less than `bound`.
    pub const fn below(bound: f64) -> Self {
        Self::raise(Word::Below, bound)
    }

    /// Raised when the value is `bound` or less.
    pub const fn at_most(bound: f64) -> Self {
        Self::raise(Word::AtMost, bound)
    }

    /// Cleared only when the value is less than `bound`.
    pub const fn clear_below(self, bound: f64) -> Self {
        self.clear(Word::Below, bound)
    }

    /// Cleared only when the value is `bound` or less.
    pub const fn clear_at_most(self, bound: f64) -> Self {
        self.clear(Word::AtMost, bound)
    }

    /// Cleared only when the value is greater than `bound`.
    pub const fn clear_above(self, bound: f64) -> Self {
        self.clear(Word::Above, bound)
    }

    /// Cleared only when the value is `bound` or more.
    pub const fn clear_at_least(self, bound: f64) -> Self {
        self.clear(Word::AtLeast, bound)
    }

    /// The bound and the clear bound, as written.
    pub(crate) fn bounds(&self) -> (f64, f64) {
        let (_, raise) = self.raise;
        (raise, self.clear.map_or(raise, |(_, clear)| clear))
    }

    /// The words and their bounds, as they are called: `above`, `at_least`, `below` or `at_most`.
    #[cfg(feature = "nats")]
    pub(crate) fn words(&self) -> (Bound, Option<Bound>) {
        let name = |(word, bound): (Word, f64)| {
            let name = match word {
                Word::Above => "above",
                Word::AtLeast => "at_least",
                Word::Below => "below",
                Word::AtMost => "at_most",
            };
            (name, bound)
        };
        (name(self.raise), self.clear.map(name))
    }

    pub(crate) fn cuts(&self) -> Result<Cuts, SubscribeError> {
        let (word, bound) = self.raise;
        let rising = word.rising();
        for bound in [Some(bound), self.clear.map(|(_, b)| b)]
            .into_iter()
            .flatten()
        {
            if !bound.is_finite() {
                return Err(SubscribeError::Bound { bound });
            }
        }
        let raise = word.cut(bound);
        let Some((clear_word, clear_bound)) = self.clear else {
            return Ok(Cuts {
                rising,
                raise,
                clear: raise,
            });
        };
        let clear = clear_word.cut(clear_bound);
        let right_side = if rising {
            clear <= raise
        } else {
            clear >= raise
        };
        if clear_word.rising() == rising || !right_side {
            let right = if rising {
                format!(
                    "it should clear below {bound} or a lower bound, or at most at a bound under it"
                )
            } else {
                format!(
                    "it should clear above {bound} or a higher bound, or at least at a bound over it"
                )
            };
            return Err(SubscribeError::ClearBound {
                threshold: self.to_string(),
                right,
            });
        }
        Ok(Cuts {
            rising,
            raise,
            clear,
        })
    }
}

impl fmt::Display for Threshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, bound) = self.raise;
        write!(f, "{} {bound}", word.as_str())?;
        if let Some((word, bound)) = self.clear {
            write!(f, ", clear {} {bound}", word.as_str())?;
        }
        Ok(())
    }
}

/// How far a value has to move, from the value last notified to *this* subscriber, to be worth a word. OPC UA calls it
/// a deadband.
///
/// The reference is the value last notified, so a slow drift is seen. At first it is the value found. NaN is passed
/// over.
#[derive(Clone, Copy, Debug, PartialEq)]
#[must_use]
pub struct Delta(Distance);

impl Delta {
    /// Moved by `distance` or more, in the unit of the metric. Must be greater than 0.
    pub const fn absolute(distance: f64) -> Self {
        Delta(Distance::Absolute(distance))
    }

    /// Moved by this share of the reference or more: 0.1 is 10 %. Must be greater than 0. Give it a
    /// [`floor`](Delta::floor) where the value can be near 0.
    pub const fn relative(share: f64) -> Self {
        Delta(Distance::Relative { share, floor: 0.0 })
    }

    /// Of a relative delta: the share is of max(|reference|, `floor`). An absolute one has none, and ignores it.
    pub const fn floor(self, floor: f64) -> Self {
        match self.0 {
            Distance::Relative { share, .. } => Delta(Distance::Relative { share, floor }),
            Distance::Absolute(_) => self,
        }
    }

    /// Moved by this share of the range from `lo` to `hi`, or more: OPC UA's percent deadband. `lo` must be less than
    /// `hi`.
    pub const fn of_range(share: f64, lo: f64, hi: f64) -> Self {
        // NaN where the range is none: refused when it is used.
        let range = if lo < hi { hi - lo } else { f64::NAN };
        Delta(Distance::Absolute(share * range))
    }

    /// As it was written, right or wrong.
    #[cfg(feature = "nats")]
    pub(crate) fn written(self) -> Distance {
        self.0
    }

    pub(crate) fn distance(self) -> Result<Distance, SubscribeError> {
        let (delta, floor) = match self.0 {
            Distance::Absolute(d) => (d, 0.0),
            Distance::Relative { share, floor } => (share, floor),
        };
        if !(delta > 0.0 && delta.is_finite()) {
            return Err(SubscribeError::Delta { delta });
        }
        if !(floor >= 0.0 && floor.is_finite()) {
            return Err(SubscribeError::Delta { delta: floor });
        }
        Ok(self.0)
    }
}

impl fmt::Display for Delta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Distance::Absolute(d) => write!(f, "moved by {d}"),
            Distance::Relative { share, floor } if floor > 0.0 => {
                write!(f, "moved by {} % of at least {floor}", share * 100.0)
            }
            Distance::Relative { share, .. } => write!(f, "moved by {} %", share * 100.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_carry_strictness() {
        let cuts = |t: Threshold| t.cuts().unwrap();
        assert_eq!(cuts(Threshold::at_least(1.0)).raise, 1.0);
        assert_eq!(cuts(Threshold::above(1.0)).raise, 1.0_f64.next_up());
        assert_eq!(cuts(Threshold::below(1.0)).raise, 1.0);
        assert_eq!(cuts(Threshold::at_most(1.0)).raise, 1.0_f64.next_up());
    }

    #[test]
    fn a_clear_bound_on_the_wrong_side_is_an_error_that_says_what_would_be_right() {
        for bad in [
            Threshold::above(0.8).clear_below(0.9),
            Threshold::above(0.8).clear_above(0.7),
            Threshold::below(0.2).clear_above(0.1),
            Threshold::at_most(0.2).clear_below(0.3),
        ] {
            let error = bad.cuts().unwrap_err();
            assert!(error.to_string().contains("it should clear"), "{error}");
        }
        for good in [
            Threshold::above(0.8).clear_below(0.8),
            Threshold::above(0.8).clear_at_most(0.8),
            Threshold::at_least(0.8).clear_below(0.8),
            Threshold::below(0.2).clear_at_least(0.2),
            Threshold::at_most(0.2).clear_above(0.2),
        ] {
            assert!(good.cuts().is_ok(), "{good}");
        }
        assert!(Threshold::above(f64::NAN).cuts().is_err());
        assert!(
            Threshold::above(1.0)
                .clear_below(f64::NEG_INFINITY)
                .cuts()
                .is_err()
        );
    }

    #[test]
    fn a_delta_must_be_a_distance() {
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(Delta::absolute(bad).distance().is_err());
            assert!(Delta::relative(bad).distance().is_err());
        }
        assert!(Delta::relative(0.1).floor(-1.0).distance().is_err());
    }
}
