//! When a series is worth telling again: a pure state machine, stepped under the lock of its series.

use crate::{
    interest::{DeltaState, Distance, Interval},
    series::is_unmeasured,
};

/// Whether a series is to be told. Between being marked and being told it is quiet everywhere.
#[derive(Debug)]
pub(super) struct Worth {
    marked: bool,
    of: Of,
}

#[derive(Debug)]
enum Of {
    /// Of what only grows any mutation is a change: a double could not tell large counts apart.
    Growth,
    /// `known`: what was told; `None` where there was nothing to tell.
    Level {
        known: Option<f64>,
        deadband: Option<Distance>,
        delta: DeltaState,
    },
}

impl Worth {
    /// Of a counter or a histogram.
    pub(super) fn growth() -> Worth {
        Worth {
            marked: true,
            of: Of::Growth,
        }
    }

    /// Of a gauge.
    pub(super) fn level(deadband: Option<Distance>) -> Worth {
        // Without a deadband the machine is never asked.
        let distance = deadband.unwrap_or(Distance::Absolute(0.0));
        Worth {
            marked: true,
            of: Of::Level {
                known: None,
                deadband,
                delta: DeltaState::new(distance),
            },
        }
    }

    /// Takes a value; `true` when the series is to be marked now.
    pub(super) fn step(&mut self, value: f64, mutated: bool) -> bool {
        if self.marked {
            return false;
        }
        self.marked = match &mut self.of {
            Of::Growth => mutated,
            Of::Level { .. } if !mutated && is_unmeasured(value) => false,
            Of::Level { known: None, .. } => true,
            Of::Level {
                known: Some(known),
                deadband,
                delta,
            } => {
                // From a number to none and back is a move, however near.
                let turned = known.is_nan() != value.is_nan();
                let moved = match deadband {
                    None => !known.is_nan() && *known != value,
                    Some(_) => delta.step(value).is_some(),
                };
                turned || moved
            }
        };
        self.marked
    }

    /// It was told, or is about to be: this value. `None`: there is none to tell.
    pub(super) fn told(&mut self, value: Option<f64>) {
        self.marked = false;
        if let Of::Level {
            known,
            deadband,
            delta,
        } = &mut self.of
        {
            *known = value;
            if let (Some(distance), Some(value)) = (*deadband, value) {
                *delta = DeltaState::new(distance);
                delta.step(value);
            }
        }
    }

    pub(super) fn quiet(&self) -> Interval {
        match &self.of {
            _ if self.marked => Interval::EVERYTHING,
            Of::Growth | Of::Level { known: None, .. } => Interval::NOTHING,
            Of::Level {
                known: Some(known), ..
            } if known.is_nan() => Interval::NOTHING,
            Of::Level {
                deadband: Some(_),
                delta,
                ..
            } => delta.quiet(),
            Of::Level {
                known: Some(known), ..
            } if known.is_finite() => Interval {
                lo: *known,
                hi: known.next_up(),
            },
            Of::Level { .. } => Interval::NOTHING,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn told(mut worth: Worth, value: f64) -> Worth {
        worth.told(Some(value));
        worth
    }

    #[test]
    fn it_begins_marked_and_is_quiet_until_told() {
        for mut worth in [Worth::growth(), Worth::level(None)] {
            assert_eq!(worth.quiet(), Interval::EVERYTHING);
            assert!(!worth.step(1.0, true));
        }
    }

    #[test]
    fn growth_is_any_mutation_and_nothing_else() {
        let mut worth = told(Worth::growth(), 9e15);
        assert!(worth.quiet().is_nothing());
        assert!(!worth.step(9e15, false));
        assert!(worth.step(9e15, true));
        assert!(!worth.step(9e15, true));
    }

    #[test]
    fn a_gauge_that_was_never_set_is_worth_it_when_it_is_whatever_it_is_set_to() {
        for first in [0.0, 1.0, f64::NAN] {
            let mut worth = Worth::level(None);
            worth.told(None);
            assert!(!worth.step(-0.0, false));
            assert!(worth.quiet().is_nothing());
            assert!(worth.step(first, true), "{first}");
        }
    }

    #[test]
    fn a_gauge_is_worth_it_when_it_is_another_value() {
        let mut worth = told(Worth::level(None), 1.0);
        assert!(!worth.step(1.0, true));
        assert!(worth.step(1.0_f64.next_up(), true));
        let mut worth = told(Worth::level(None), f64::NAN);
        assert!(!worth.step(f64::NAN, true));
        assert!(worth.step(1.0, true));
    }

    #[test]
    fn with_a_deadband_it_is_worth_it_from_the_delta_on_and_when_it_ceases_to_be_a_number() {
        let deadband = Some(Distance::Absolute(0.5));
        let mut worth = told(Worth::level(deadband), 1.0);
        assert!(!worth.step(1.4, true));
        assert!(!worth.step(0.6, true));
        assert!(worth.step(1.5, true));
        worth.told(Some(1.5));
        assert!(!worth.step(1.1, true));
        assert!(worth.step(f64::NAN, true));
        worth.told(Some(f64::NAN));
        assert!(!worth.step(f64::NAN, true));
        assert!(worth.step(1.5, true));
        worth.told(Some(f64::INFINITY));
        assert!(!worth.step(f64::INFINITY, true));
        assert!(worth.step(0.0, true));
    }

    proptest! {
        /// The cell relies on it.
        #[test]
        fn inside_its_quiet_interval_it_says_nothing(
            from: f64, value: f64, deadband in prop::option::of(1e-3..1e3_f64), growth: bool,
        ) {
            let worth = if growth { Worth::growth() } else { Worth::level(deadband.map(Distance::Absolute)) };
            let mut worth = told(worth, from);
            let quiet = worth.quiet();
            if value >= quiet.lo && value < quiet.hi {
                prop_assert!(!worth.step(value, true));
            }
        }
    }
}
