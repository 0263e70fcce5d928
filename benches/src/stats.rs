//! The statistics: medians and quartiles, of rounds and of ratios between rounds. No clock, no output.
//!
//! Medians, because a neighbour on a shared machine makes some rounds slow and none fast. Ratios are taken within a
//! round and only then summed up: what disturbed a whole round cancels out.

/// Where the middle half of some samples lies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Summary {
    pub(crate) q1: f64,
    pub(crate) median: f64,
    pub(crate) q3: f64,
}

impl Summary {
    /// `None` without samples.
    pub(crate) fn of(samples: &[f64]) -> Option<Summary> {
        Some(Summary {
            q1: quantile(samples, 0.25)?,
            median: quantile(samples, 0.5)?,
            q3: quantile(samples, 0.75)?,
        })
    }

    /// Whether the middle half has `x` inside: then a repetition may well come out on its other side.
    pub(crate) fn straddles(&self, x: f64) -> bool {
        self.q1 < x && x < self.q3
    }
}

/// The `q`-quantile, interpolated linearly between the two nearest samples (type 7 of Hyndman and Fan, the default of R
/// and NumPy). `None` without samples.
pub(crate) fn quantile(samples: &[f64], q: f64) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    let position = q.clamp(0.0, 1.0) * last as f64;
    let below = position.floor() as usize;
    let above = position.ceil() as usize;
    let share = position - below as f64;
    Some(sorted[below] + (sorted[above] - sorted[below]) * share)
}

/// Round by round, `subject` over `reference`. Rounds that only one side has are left out.
pub(crate) fn ratios(subject: &[f64], reference: &[f64]) -> Vec<f64> {
    subject.iter().zip(reference).map(|(s, r)| s / r).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_odd_number_is_the_one_in_the_middle() {
        assert_eq!(quantile(&[9.0, 1.0, 2.0], 0.5), Some(2.0));
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_the_two_in_the_middle() {
        assert_eq!(quantile(&[4.0, 1.0, 3.0, 2.0], 0.5), Some(2.5));
    }

    #[test]
    fn quantiles_reach_from_the_smallest_to_the_largest() {
        let samples = [5.0, 1.0, 3.0];
        assert_eq!(quantile(&samples, 0.0), Some(1.0));
        assert_eq!(quantile(&samples, 1.0), Some(5.0));
        assert_eq!(quantile(&samples, 7.0), Some(5.0));
    }

    #[test]
    fn without_samples_there_is_no_quantile_rather_than_zero() {
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn one_slow_round_does_not_move_the_median() {
        let calm = [2.0, 2.0, 2.0, 2.0, 2.0];
        let disturbed = [2.0, 2.0, 900.0, 2.0, 2.0];
        assert_eq!(quantile(&calm, 0.5), quantile(&disturbed, 0.5));
    }

    #[test]
    fn what_slows_a_whole_round_leaves_its_ratio_alone() {
        let subject = [2.0, 20.0, 2.0];
        let floor = [1.0, 10.0, 1.0];
        assert_eq!(ratios(&subject, &floor), [2.0, 2.0, 2.0]);
    }

    #[test]
    fn a_bar_between_the_quartiles_is_straddled() {
        let summary = Summary {
            q1: 1.1,
            median: 1.15,
            q3: 1.3,
        };
        assert!(summary.straddles(1.2));
        assert!(!summary.straddles(1.3));
        assert!(!summary.straddles(1.05));
    }
}
