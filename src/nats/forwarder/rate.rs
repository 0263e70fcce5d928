//! How many messages may go out in a second: a bucket of tokens. Pure.

use std::time::{Duration, Instant};

/// Holds as many tokens as a second brings, and at least one, so that what comes after quiet goes at once.
#[derive(Debug)]
pub(crate) struct Bucket {
    per_second: f64,
    tokens: f64,
    at: Instant,
}

impl Bucket {
    /// `per_second` is above 0.
    pub(crate) fn new(per_second: f64, now: Instant) -> Bucket {
        Bucket {
            per_second,
            tokens: per_second.max(1.0),
            at: now,
        }
    }

    /// Takes one.
    ///
    /// # Errors
    ///
    /// How long until there is one.
    pub(crate) fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        self.tokens = (self.tokens + passed * self.per_second).min(self.per_second.max(1.0));
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        let wait = (1.0 - self.tokens) / self.per_second;
        // Not less than a timer can tell apart.
        Err(Duration::try_from_secs_f64(wait)
            .unwrap_or(Duration::MAX)
            .max(Duration::from_millis(1)))
    }

    /// So many more were used than were taken: they are waited for before the next one, though not for more than ten
    /// seconds.
    pub(crate) fn owe(&mut self, more: usize) {
        let least = -10.0 * self.per_second.max(1.0);
        self.tokens = (self.tokens - more as f64).max(least);
    }

    /// Gives one back that was not used.
    pub(crate) fn give_back(&mut self) {
        self.tokens = (self.tokens + 1.0).min(self.per_second.max(1.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_a_second_s_worth_at_once_and_then_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(10.0, start);
        let taken = (0..100).filter(|_| bucket.take(start).is_ok()).count();
        assert_eq!(taken, 10);
        let wait = bucket.take(start).unwrap_err();
        assert_eq!(wait, Duration::from_millis(100));
        assert_eq!(bucket.take(start + wait), Ok(()));
        assert!(bucket.take(start + wait).is_err());
        // However long it was quiet.
        let later = start + Duration::from_secs(3600);
        let taken = (0..100).filter(|_| bucket.take(later).is_ok()).count();
        assert_eq!(taken, 10);
    }

    #[test]
    fn what_was_used_beyond_it_is_waited_for_but_not_for_ever() {
        let start = Instant::now();
        let mut bucket = Bucket::new(10.0, start);
        assert_eq!(bucket.take(start), Ok(()));
        bucket.owe(29);
        assert_eq!(bucket.take(start), Err(Duration::from_millis(2_100)));
        bucket.owe(1_000_000);
        assert_eq!(bucket.take(start), Err(Duration::from_millis(10_100)));
        assert_eq!(bucket.take(start + Duration::from_millis(10_200)), Ok(()));
    }

    #[test]
    fn a_rate_below_one_a_second_still_lets_the_first_pass() {
        let start = Instant::now();
        let mut bucket = Bucket::new(0.1, start);
        assert_eq!(bucket.take(start), Ok(()));
        assert_eq!(bucket.take(start), Err(Duration::from_secs(10)));
        bucket.give_back();
        assert_eq!(bucket.take(start), Ok(()));
    }
}
