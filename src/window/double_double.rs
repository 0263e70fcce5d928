//! Numbers of about 106 bits, as the sum of two doubles (Dekker, 1971; Knuth). Sums and averages are taken in them and
//! rounded once, at the end: so what is exact on paper is exact, in whatever order it is added up.
//!
//! The high part is what plain doubles would have given, so infinities and NaN come through as they do there.

use std::{
    iter::Sum,
    ops::{Add, AddAssign, Div, Mul, Sub},
};

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct DoubleDouble {
    hi: f64,
    /// At most half a unit in the last place of `hi`; 0 where that is not finite.
    lo: f64,
}

impl DoubleDouble {
    pub(crate) const ZERO: DoubleDouble = DoubleDouble { hi: 0.0, lo: 0.0 };

    /// `hi + lo`, where `lo` is the smaller one. What is no number in `lo` is passed over.
    #[inline]
    pub(crate) fn new(hi: f64, lo: f64) -> DoubleDouble {
        let sum = hi + lo;
        if lo == 0.0 {
            DoubleDouble { hi, lo: 0.0 }
        } else if lo.is_finite() && sum.is_finite() {
            // Plus 0, as −0 is another one.
            let lo = lo - (sum - hi) + 0.0;
            DoubleDouble { hi: sum, lo }
        } else {
            DoubleDouble { hi, lo: 0.0 }
        }
    }

    /// `a + b`, without rounding.
    #[inline]
    pub(crate) fn sum(a: f64, b: f64) -> DoubleDouble {
        let sum = a + b;
        let from_b = sum - a;
        DoubleDouble::new(sum, (a - (sum - from_b)) + (b - from_b))
    }

    /// `a × b`, without rounding.
    #[inline]
    pub(crate) fn product(a: f64, b: f64) -> DoubleDouble {
        let product = a * b;
        DoubleDouble::new(product, a.mul_add(b, -product))
    }

    /// The nearest double.
    pub(crate) fn value(self) -> f64 {
        self.hi
    }

    /// What is lost when it is rounded to the nearest double.
    #[cfg(feature = "nats")]
    pub(crate) fn rest(self) -> f64 {
        self.lo
    }

    pub(crate) fn at_least_zero(self) -> DoubleDouble {
        if self.hi < 0.0 {
            DoubleDouble::ZERO
        } else {
            self
        }
    }
}

impl From<f64> for DoubleDouble {
    #[inline]
    fn from(hi: f64) -> DoubleDouble {
        DoubleDouble { hi, lo: 0.0 }
    }
}

impl From<u64> for DoubleDouble {
    fn from(n: u64) -> DoubleDouble {
        let low = n & 0xFFFF_FFFF;
        DoubleDouble::sum((n - low) as f64, low as f64)
    }
}

impl Add for DoubleDouble {
    type Output = DoubleDouble;

    #[inline]
    fn add(self, other: DoubleDouble) -> DoubleDouble {
        let sum = DoubleDouble::sum(self.hi, other.hi);
        DoubleDouble::new(sum.hi, sum.lo + (self.lo + other.lo))
    }
}

impl AddAssign for DoubleDouble {
    #[inline]
    fn add_assign(&mut self, other: DoubleDouble) {
        *self = *self + other;
    }
}

impl Sub for DoubleDouble {
    type Output = DoubleDouble;

    fn sub(self, other: DoubleDouble) -> DoubleDouble {
        self + DoubleDouble {
            hi: -other.hi,
            lo: -other.lo,
        }
    }
}

impl Mul for DoubleDouble {
    type Output = DoubleDouble;

    #[inline]
    fn mul(self, other: DoubleDouble) -> DoubleDouble {
        let product = DoubleDouble::product(self.hi, other.hi);
        let rest = product.lo + (self.hi * other.lo + self.lo * other.hi);
        DoubleDouble::new(product.hi, rest)
    }
}

impl Div for DoubleDouble {
    type Output = DoubleDouble;

    fn div(self, other: DoubleDouble) -> DoubleDouble {
        let first = self.hi / other.hi;
        let left = self - other * first.into();
        let second = left.hi / other.hi;
        let left = left - other * second.into();
        let quotient = DoubleDouble::new(first, second);
        DoubleDouble::new(quotient.hi, quotient.lo + left.hi / other.hi)
    }
}

impl Sum<f64> for DoubleDouble {
    fn sum<I: Iterator<Item = f64>>(numbers: I) -> DoubleDouble {
        numbers.fold(DoubleDouble::ZERO, |sum, n| sum + n.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sum(numbers: &[f64]) -> f64 {
        numbers.iter().copied().sum::<DoubleDouble>().value()
    }

    #[test]
    fn a_sum_is_rounded_once_whatever_its_order() {
        assert_eq!(sum(&[0.1; 10]), 1.0);
        assert_eq!(sum(&[1e17, 1.0, -1e17]), 1.0);
        assert_eq!(sum(&[1.0, 1e17, 1.0, -1e17]), 2.0);
    }

    #[test]
    fn what_is_infinite_or_no_number_is_as_with_doubles() {
        let inf = f64::INFINITY;
        assert_eq!(sum(&[1.0, inf, 2.0]), inf);
        assert_eq!(sum(&[1.0, -inf]), -inf);
        assert!(sum(&[inf, -inf]).is_nan());
        assert!(sum(&[f64::NAN, 1.0]).is_nan());
        assert_eq!(sum(&[f64::MAX, f64::MAX]), inf);
        let ratio = |a: f64, b: f64| (DoubleDouble::from(a) / b.into()).value();
        assert_eq!(ratio(1.0, 0.0), inf);
        assert_eq!(ratio(1.0, inf), 0.0);
        assert_eq!(ratio(-inf, 2.0), -inf);
        assert!(ratio(0.0, 0.0).is_nan());
        assert_eq!(DoubleDouble::product(1e300, -1e300).value(), -inf);
    }

    proptest! {
        /// Against integers, which are exact.
        #[test]
        fn integers_of_up_to_106_bits_are_exact(
            a in -(1_i64 << 52)..1 << 52,
            b in -(1_i64 << 52)..1 << 52,
            c in 1_i64..1 << 52,
        ) {
            let wide = |n: i64| DoubleDouble::from(n as f64);
            let whole = |d: DoubleDouble| d.hi as i128 + d.lo as i128;
            let product = wide(a) * wide(b);
            prop_assert_eq!(whole(product), i128::from(a) * i128::from(b));
            prop_assert_eq!(whole(product - wide(c)), i128::from(a) * i128::from(b) - i128::from(c));
            prop_assert_eq!((wide(a) * wide(c) / wide(c)).value(), a as f64);
        }

        #[test]
        fn every_integer_of_64_bits_is_exact(n: u64) {
            let wide = DoubleDouble::from(n);
            prop_assert_eq!(wide.hi as i128 + wide.lo as i128, i128::from(n));
        }
    }
}
