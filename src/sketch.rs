//! A sketch of a distribution: base-2 exponential buckets, 32 to the octave, without gaps or limits.
//!
//! The schema is that of Prometheus's native histograms (schema 5) and OpenTelemetry's exponential histograms (scale 5):
//! bucket `n` holds what is greater than 2^((n−1)/32) and at most 2^(n/32). Negative numbers mirror positive ones; zero has
//! a bucket of its own. The schema is fixed, so sketches merge without loss, whoever made them.
//!
//! An *index* is a bucket's number as an `i32` that is ordered as the values are: zero is 0, the smallest double 1.

use std::{
    fmt,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

/// Buckets to the octave.
const SCALE: i32 = 32;

/// The index of everything from the last bound that is a finite double, +∞ included.
pub(crate) const INDEX_MAX: i32 = (1024 + 1074) * SCALE + 1;

/// 2^(j/32) − 1 as a mantissa of 52 bits, rounded down. All but the first are irrational, so a mantissa lies above the
/// bound exactly when it is greater than this.
const BOUNDS: [u64; 32] = [
    0x0,
    0x59b0d3158574,
    0xb5586cf9890f,
    0x11301d0125b50,
    0x172b83c7d517a,
    0x1d4873168b9aa,
    0x2387a6e756238,
    0x29e9df51fdee1,
    0x306fe0a31b715,
    0x371a7373aa9ca,
    0x3dea64c123422,
    0x44e086061892d,
    0x4bfdad5362a27,
    0x5342b569d4f81,
    0x5ab07dd485429,
    0x6247eb03a5584,
    0x6a09e667f3bcc,
    0x71f75e8ec5f73,
    0x7a11473eb0186,
    0x82589994cce12,
    0x8ace5422aa0db,
    0x93737b0cdc5e4,
    0x9c49182a3f090,
    0xa5503b23e255c,
    0xae89f995ad3ad,
    0xb7f76f2fb5e46,
    0xc199bdd85529c,
    0xcb720dcef9069,
    0xd5818dcfba487,
    0xdfc97337b9b5e,
    0xea4afa2a490d9,
    0xf50765b6e4540,
];

const MANTISSA: u64 = (1 << 52) - 1;

/// An octave cut into 64 equal parts. Bounds are further apart than that, so that a part has one at most: how many bounds
/// lie before the part, and the one to compare with.
const PARTS: ([u8; 64], [u64; 64]) = {
    let (mut before, mut next) = ([0; 64], [u64::MAX; 64]);
    let mut part = 0;
    while part < 64 {
        let start = (part as u64) << 46;
        let mut bound = 0;
        while bound < 32 && BOUNDS[bound] < start {
            bound += 1;
        }
        before[part] = bound as u8;
        if bound < 32 {
            next[part] = BOUNDS[bound];
        }
        part += 1;
    }
    (before, next)
};

/// The index of `v`'s bucket; `None` for NaN.
#[inline(always)]
pub(crate) fn index(v: f64) -> Option<i32> {
    let bits = v.to_bits();
    let exponent = (bits >> 52) as i32 & 0x7ff;
    if exponent.wrapping_sub(1) as u32 >= 0x7fe {
        return unusual(v);
    }
    // The least double is 2^−1074, and a normal one has its exponent raised by 1023.
    Some(signed(v, place(exponent - 1023 + 1074, bits & MANTISSA)))
}

/// The bucket in which 2^(octave − 1074) × 1.mantissa lies, counted from that of 2^−1074.
#[inline(always)]
fn place(octave: i32, mantissa: u64) -> i32 {
    let part = (mantissa >> 46) as usize;
    octave * SCALE + i32::from(PARTS.0[part]) + i32::from(mantissa > PARTS.1[part])
}

#[inline(always)]
fn signed(v: f64, place: i32) -> i32 {
    // −1 of what is negative; then this is the two's complement.
    let sign = (v.to_bits() as i64 >> 63) as i32;
    ((place + 1) ^ sign) - sign
}

/// Of zero, ±∞, NaN and what is below the normal doubles.
#[cold]
fn unusual(v: f64) -> Option<i32> {
    if v == 0.0 {
        return Some(0);
    }
    if v.is_nan() {
        return None;
    }
    if v.is_infinite() {
        return Some(signed(v, INDEX_MAX - 1));
    }
    // 2^54 times as much is a normal double.
    let bits = (v * f64::from_bits((1023 + 54) << 52)).to_bits();
    let exponent = (bits >> 52) as i32 & 0x7ff;
    Some(signed(
        v,
        place(exponent - 1023 + 1074 - 54, bits & MANTISSA),
    ))
}

/// 2^(n/32), times `factor`; without a detour over a power that no double can hold.
fn bound(n: i32, factor: f64) -> f64 {
    let mantissa = f64::from_bits(1023 << 52 | BOUNDS[n.rem_euclid(SCALE) as usize]);
    // In two steps, as the first of them may be 2^−1075 or 2^1024.
    let exponent = n.div_euclid(SCALE);
    let half = exponent / 2;
    mantissa * factor * power(half) * power(exponent - half)
}

/// 2^n for an n far from the ends of what a double can hold.
fn power(n: i32) -> f64 {
    f64::from_bits(((n + 1023) as u64) << 52)
}

/// Between what a bucket's values lie, least first; inclusive, give or take one rounding.
pub(crate) fn bounds(index: i32) -> (f64, f64) {
    if index == 0 {
        return (0.0, 0.0);
    }
    let n = index.abs() - 1 - 1074 * SCALE;
    // The next double up from a bound that was rounded down is outside of the bucket.
    let upper = bound(n, 1.0).min(f64::MAX);
    let lower = bound(n - 1, 1.0).min(f64::MAX);
    if index < 0 {
        (-upper, -lower)
    } else {
        (lower, upper)
    }
}

/// The value that stands for a bucket: at most 1.083 % from each of those in it (and of those below the normal doubles, a
/// rounding more).
pub(crate) fn middle(index: i32) -> f64 {
    if index == 0 {
        return 0.0;
    }
    let n = index.abs() - 1 - 1074 * SCALE;
    // Of (l, u] it is 2lu/(l + u), whose distance from either is the same share of it.
    let base = f64::from_bits(1023 << 52 | BOUNDS[1]);
    let middle = bound(n, 2.0 / (1.0 + base));
    if index < 0 { -middle } else { middle }
}

/// Sketches are kept in chunks of this many indices: what lies together in the data lies together in memory.
const CHUNK: usize = 32;

fn chunk_of(index: i32) -> (i32, usize) {
    // Rounds down, also below zero.
    (index >> 5, (index & 31) as usize)
}

/// Counts observations by bucket, from any number of threads, without a lock. Counts are never taken back: who wants
/// those of a span of time takes the difference of two [snapshots](Sketch::snapshot).
///
/// A chunk is made when its first observation comes.
pub(crate) struct Sketch {
    /// By the chunk's number modulo the length. Data that spans less than 64 octaves finds its chunk at once.
    heads: [Link; 64],
}

type Link = OnceLock<Box<Chunk>>;

struct Chunk {
    number: i32,
    counts: [AtomicU64; CHUNK],
    /// The next of those that share the place.
    next: Link,
}

impl Sketch {
    pub(crate) fn new() -> Box<Sketch> {
        Box::new(Sketch {
            heads: [const { OnceLock::new() }; 64],
        })
    }

    /// Counts `v`, unless it is NaN.
    #[inline(always)]
    pub(crate) fn count(&self, v: f64) {
        if let Some(index) = index(v) {
            self.add(index, 1);
        }
    }

    /// Counts `n` observations of one bucket.
    #[inline(always)]
    pub(crate) fn add(&self, index: i32, n: u64) {
        let (number, within) = chunk_of(index);
        let head = &self.heads[number as usize % 64];
        match head.get() {
            Some(chunk) if chunk.number == number => {
                chunk.counts[within].fetch_add(n, Ordering::Relaxed);
            }
            _ => count_further(head, number, within, n),
        }
    }

    /// Everything counted so far.
    pub(crate) fn snapshot(&self) -> Weights {
        let mut weights = Weights {
            chunks: Vec::with_capacity(16),
        };
        self.snapshot_into(&mut weights);
        weights
    }

    /// As [`snapshot`](Sketch::snapshot), in place of what `weights` had.
    pub(crate) fn snapshot_into(&self, weights: &mut Weights) {
        let chunks = &mut weights.chunks;
        chunks.clear();
        for head in &self.heads {
            let mut link = head;
            while let Some(chunk) = link.get() {
                let counts = std::array::from_fn(|i| chunk.counts[i].load(Ordering::Relaxed));
                chunks.push((chunk.number, counts));
                link = &chunk.next;
            }
        }
        chunks.sort_unstable_by_key(|(number, _)| *number);
    }
}

#[cold]
#[inline(never)]
fn count_further(head: &Link, number: i32, within: usize, n: u64) {
    let mut link = head;
    loop {
        // Who comes second takes what the first has made, which may be another chunk.
        let chunk = link.get_or_init(|| {
            Box::new(Chunk {
                number,
                counts: [const { AtomicU64::new(0) }; CHUNK],
                next: OnceLock::new(),
            })
        });
        if chunk.number == number {
            chunk.counts[within].fetch_add(n, Ordering::Relaxed);
            return;
        }
        link = &chunk.next;
    }
}

/// An index with its weight, in 64 bits: ordered by the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Packed(u64);

impl Packed {
    pub(crate) const WEIGHT_BITS: u32 = 46;

    pub(crate) const WEIGHT_MAX: u64 = (1 << Packed::WEIGHT_BITS) - 1;

    /// A weight beyond [`WEIGHT_MAX`](Packed::WEIGHT_MAX) becomes that.
    pub(crate) fn new(index: i32, weight: u64) -> Packed {
        let index = (index + (1 << 17)) as u64;
        Packed(index << Packed::WEIGHT_BITS | weight.min(Packed::WEIGHT_MAX))
    }

    pub(crate) fn index(self) -> i32 {
        (self.0 >> Packed::WEIGHT_BITS) as i32 - (1 << 17)
    }

    pub(crate) fn weight(self) -> u64 {
        self.0 & Packed::WEIGHT_MAX
    }
}

/// A distribution at rest: what each bucket weighs. Observations weigh 1 each, values of a gauge the nanoseconds for which
/// they were held.
#[derive(Clone, Default, PartialEq)]
pub(crate) struct Weights {
    /// In ascending order.
    chunks: Vec<(i32, [u64; CHUNK])>,
}

impl Weights {
    /// Adds weights whose indices ascend.
    pub(crate) fn add_ascending(&mut self, weights: impl IntoIterator<Item = (i32, u64)>) {
        let mut at = 0;
        for (index, weight) in weights {
            let (number, within) = chunk_of(index);
            while self.chunks.get(at).is_some_and(|c| c.0 < number) {
                at += 1;
            }
            if self.chunks.get(at).is_none_or(|c| c.0 != number) {
                self.chunks.insert(at, (number, [0; CHUNK]));
            }
            let cell = &mut self.chunks[at].1[within];
            *cell = cell.saturating_add(weight);
        }
    }

    /// Adds all of `other`.
    pub(crate) fn add(&mut self, other: &Weights) {
        let mut at = 0;
        for (number, counts) in &other.chunks {
            while self.chunks.get(at).is_some_and(|c| c.0 < *number) {
                at += 1;
            }
            match self.chunks.get_mut(at).filter(|c| c.0 == *number) {
                Some((_, mine)) => {
                    for (mine, theirs) in mine.iter_mut().zip(counts) {
                        *mine = mine.saturating_add(*theirs);
                    }
                }
                None => self.chunks.insert(at, (*number, *counts)),
            }
        }
    }

    /// Every bucket with its weight, where there is any, in ascending order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (i32, u64)> {
        self.chunks.iter().flat_map(|(number, counts)| {
            let weights = (number * CHUNK as i32..).zip(counts);
            weights.filter(|(_, n)| **n > 0).map(|(i, n)| (i, *n))
        })
    }

    /// The buckets as OpenTelemetry's exponential histograms have them: at scale 5, or at the highest lower one at which
    /// neither the positive nor the negative ones span more than `buckets_max` (at least 4). Nothing is left out; values
    /// beyond the greatest double count as that.
    #[allow(dead_code)] // Of those who send them.
    pub(crate) fn exponential(&self, buckets_max: usize) -> Exponential {
        let (mut zero, mut positive, mut negative) = (0, None, None);
        for (index, weight) in self.iter() {
            let Some(place) = otel_index(index) else {
                zero += weight;
                continue;
            };
            let ends = if index > 0 {
                &mut positive
            } else {
                &mut negative
            };
            let (first, last) = ends.get_or_insert((place, place));
            (*first, *last) = (place.min(*first), place.max(*last));
        }
        let spans = |ends: &Option<(i32, i32)>, shift: u32| {
            ends.map_or(0, |(first, last)| (last >> shift) - (first >> shift) + 1)
        };
        let max = i32::try_from(buckets_max.max(4)).unwrap_or(i32::MAX);
        let mut shift = 0;
        while spans(&positive, shift) > max || spans(&negative, shift) > max {
            shift += 1;
        }
        let span = |ends: Option<(i32, i32)>, sign: i32| {
            let Some((first, _)) = ends else {
                return Span::default();
            };
            let mut counts = vec![0_u64; spans(&ends, shift) as usize];
            for (index, weight) in self.iter().filter(|(index, _)| index.signum() == sign) {
                if let Some(place) = otel_index(index) {
                    let at = (place >> shift) - (first >> shift);
                    let count = &mut counts[at as usize];
                    *count = count.saturating_add(weight);
                }
            }
            Span {
                offset: first >> shift,
                counts,
            }
        };
        Exponential {
            scale: SCALE.ilog2() as i32 - shift as i32,
            zero,
            positive: span(positive, 1),
            negative: span(negative, -1),
        }
    }

    /// What has come since `earlier`, an earlier snapshot of the same sketch.
    pub(crate) fn since(&self, earlier: &Weights) -> Vec<Packed> {
        let mut all = Vec::new();
        let mut before = earlier.chunks.iter().peekable();
        for (number, counts) in &self.chunks {
            while before.peek().is_some_and(|c| c.0 < *number) {
                before.next();
            }
            let before = before.peek().filter(|c| c.0 == *number);
            for (within, &count) in counts.iter().enumerate() {
                let more = count.wrapping_sub(before.map_or(0, |c| c.1[within]));
                if more > 0 {
                    let index = number * CHUNK as i32 + within as i32;
                    all.push(Packed::new(index, more));
                }
            }
        }
        all
    }

    /// The bucket of the `q`-quantile: the first up to which at least the share `q` of all weight lies. `None` when there
    /// is no weight.
    pub(crate) fn quantile(&self, q: f64) -> Option<i32> {
        let total: u128 = self.iter().map(|(_, weight)| u128::from(weight)).sum();
        // Less a rounding: 0.07 of 100 is the 7th, though the double 0.07 is a little more than that.
        let wanted = (q * total as f64 - total as f64 * f64::EPSILON).ceil();
        let wanted = (wanted as u128).clamp(1, total.max(1));
        let mut reached = 0;
        self.iter()
            .find(|(_, weight)| {
                reached += u128::from(*weight);
                reached >= wanted
            })
            .map(|(index, _)| index)
    }
}

/// The number that OpenTelemetry gives a bucket at scale 5, where bucket `i` holds what is greater than 2^(i/32) and at most
/// 2^((i+1)/32): one less than Prometheus's. `None` for zero. At a scale lower by `s` it is this, shifted right by `s`.
pub(crate) fn otel_index(index: i32) -> Option<i32> {
    (index != 0).then(|| index.abs() - 2 - 1074 * SCALE)
}

/// [`Weights`] in contiguous buckets, as OpenTelemetry has them.
#[allow(dead_code)] // Of those who send them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Exponential {
    /// Bucket `i` holds what is greater than b^i and at most b^(i+1), where b = 2^(2^−scale). From 5 down to −11.
    pub(crate) scale: i32,
    /// Of 0 and −0.
    pub(crate) zero: u64,
    /// Of what is greater than 0.
    pub(crate) positive: Span,
    /// Of what is less than 0, by its distance from it.
    pub(crate) negative: Span,
}

/// Contiguous buckets, of which the first and the last are not empty; or none.
#[allow(dead_code)] // Of those who send them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Span {
    /// The number of the first.
    pub(crate) offset: i32,
    pub(crate) counts: Vec<u64>,
}

/// How many buckets there are; what they weigh would be pages.
impl fmt::Debug for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} buckets", self.iter().count())
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use proptest::prelude::*;

    use super::*;

    /// a × a, of little-endian digits.
    fn square(a: &[u32]) -> Vec<u32> {
        let mut product = vec![0_u32; 2 * a.len()];
        for (i, &x) in a.iter().enumerate() {
            let mut carry = 0;
            for (j, &y) in a.iter().enumerate() {
                let sum = u64::from(product[i + j]) + u64::from(x) * u64::from(y) + carry;
                product[i + j] = sum as u32;
                carry = sum >> 32;
            }
            product[i + a.len()] = carry as u32;
        }
        product
    }

    /// Whether x^32 < 2^n.
    fn is_below_root(x: u64, n: usize) -> bool {
        let mut power = vec![x as u32, (x >> 32) as u32];
        for _ in 0..5 {
            power = square(&power);
        }
        let bits = power
            .iter()
            .rposition(|d| *d > 0)
            .map_or(0, |i| 32 * (i + 1) - power[i].leading_zeros() as usize);
        bits <= n
    }

    #[test]
    fn every_bound_is_the_greatest_mantissa_that_is_not_above_it() {
        for (j, bound) in BOUNDS.iter().enumerate().skip(1) {
            let mantissa = (1 << 52) + bound;
            let n = 32 * 52 + j;
            assert!(is_below_root(mantissa, n), "{j}");
            assert!(!is_below_root(mantissa + 1, n), "{j}");
        }
    }

    #[test]
    fn powers_of_two_are_the_last_of_their_bucket() {
        for exponent in -1074..1024 {
            let v = 2_f64.powi(exponent / 2) * 2_f64.powi(exponent - exponent / 2);
            let at = (exponent + 1074) * 32 + 1;
            assert_eq!(index(v), Some(at), "2^{exponent}");
            assert_eq!(index(-v), Some(-at), "−2^{exponent}");
            let above = v.next_up();
            if exponent > -1022 {
                assert_eq!(index(above), Some(at + 1), "after 2^{exponent}");
                assert_eq!(index(v.next_down()), Some(at), "before 2^{exponent}");
            } else if v != v.next_down() && v.next_down() > 0.0 {
                assert!(index(v.next_down()) <= Some(at), "before 2^{exponent}");
            }
        }
    }

    #[test]
    fn zero_infinity_and_nan_have_their_places() {
        assert_eq!((index(0.0), index(-0.0)), (Some(0), Some(0)));
        assert_eq!(index(f64::INFINITY), Some(INDEX_MAX));
        assert_eq!(index(f64::NEG_INFINITY), Some(-INDEX_MAX));
        assert_eq!(index(f64::MAX), Some(INDEX_MAX));
        assert_eq!(index(f64::NAN), None);
        assert_eq!(index(5e-324), Some(1));
    }

    proptest! {
        #[test]
        fn a_bucket_holds_its_values_and_its_middle_is_near_all_of_them(bits: u64) {
            let v = f64::from_bits(bits);
            prop_assume!(v.is_finite());
            let i = index(v).unwrap();
            let (lower, upper) = bounds(i);
            prop_assert!(lower.next_down() <= v && v <= upper.next_up(), "{v} in {lower} to {upper}");
            let away = (middle(i) - v).abs();
            prop_assert!(away <= 0.010_831 * v.abs() + 5e-324, "{v}: {}", middle(i));
        }

        #[test]
        fn indices_are_ordered_as_the_values_are(a: f64, b: f64) {
            if a <= b {
                prop_assert!(index(a) <= index(b));
            } else {
                prop_assert!(index(a) >= index(b));
            }
        }

        #[test]
        fn what_is_packed_is_read_back(index in -INDEX_MAX..=INDEX_MAX, weight in 0..=Packed::WEIGHT_MAX) {
            let packed = Packed::new(index, weight);
            prop_assert_eq!((packed.index(), packed.weight()), (index, weight));
        }

        #[test]
        fn merged_weights_are_those_of_all_together(
            all in prop::collection::vec((-300_i32..300, 1_u64..9), 0..60), split in 0_usize..60,
        ) {
            let of = |part: &[(i32, u64)]| {
                let mut part = part.to_vec();
                part.sort_unstable();
                let mut weights = Weights::default();
                weights.add_ascending(part);
                weights
            };
            let (left, right) = all.split_at(split.min(all.len()));
            let mut merged = of(left);
            merged.add(&of(right));
            prop_assert!(merged.iter().eq(of(&all).iter()));
        }
    }

    /// 2^(i/2^scale), or the end of the doubles where it lies beyond.
    fn otel_bound(i: i32, scale: i32) -> f64 {
        let n = i64::from(i) << (5 - scale);
        let end = |n: i64| n.clamp(i64::from(-1074 * SCALE), i64::from(1024 * SCALE)) as i32;
        match end(n) {
            end if i64::from(end) == n => bound(end, 1.0),
            end if end < 0 => 0.0,
            _ => f64::INFINITY,
        }
    }

    proptest! {
        #[test]
        fn exponential_buckets_hold_all_there_is_each_value_in_its_own(
            values in prop::collection::vec(
                prop_oneof![any::<f64>(), -1e3..1e3, Just(0.0), 0.5..2.0, -1e-310..1e-310], 0..80),
            buckets_max in 1_usize..400,
        ) {
            let values: Vec<f64> = values.into_iter().filter(|v| v.is_finite()).collect();
            let sketch = Sketch::new();
            values.iter().for_each(|v| sketch.count(*v));
            let all = sketch.snapshot().exponential(buckets_max);
            let total = |span: &Span| span.counts.iter().sum::<u64>();
            prop_assert_eq!(all.zero, values.iter().filter(|v| **v == 0.0).count() as u64);
            prop_assert_eq!(total(&all.positive), values.iter().filter(|v| **v > 0.0).count() as u64);
            prop_assert_eq!(total(&all.negative), values.iter().filter(|v| **v < 0.0).count() as u64);
            prop_assert!((-11..=5).contains(&all.scale));
            for (span, sign) in [(&all.positive, 1.0), (&all.negative, -1.0)] {
                prop_assert!(span.counts.len() <= buckets_max.max(4));
                prop_assert!(span.counts.first() != Some(&0) && span.counts.last() != Some(&0));
                for (at, count) in span.counts.iter().enumerate() {
                    let i = span.offset + at as i32;
                    // A bound is no double; give or take a rounding.
                    let (lower, upper) = (otel_bound(i, all.scale), otel_bound(i + 1, all.scale));
                    let held = |v: f64| v > 0.0 && v > lower && v <= upper;
                    let near = |v: f64| v > 0.0 && v >= lower.next_down() && v <= upper.next_up();
                    let (held, near) = (
                        values.iter().filter(|v| held(**v * sign)).count() as u64,
                        values.iter().filter(|v| near(**v * sign)).count() as u64,
                    );
                    prop_assert!(held <= *count && *count <= near, "{i} at {}: {count}", all.scale);
                }
            }
        }
    }

    #[test]
    fn exponential_buckets_have_the_numbers_that_open_telemetry_gives_them() {
        let of = |values: &[f64], max| {
            let sketch = Sketch::new();
            values.iter().for_each(|v| sketch.count(*v));
            sketch.snapshot().exponential(max)
        };
        assert_eq!(
            of(&[], 160),
            Exponential {
                scale: 5,
                ..Exponential::default()
            }
        );
        // 1 is the upper bound of bucket -1 at every scale, and 2 of the last below 1 octave.
        let two = of(&[1.0, 2.0, -4.0, 0.0, -0.0], 160);
        assert_eq!((two.scale, two.zero), (5, 2));
        assert_eq!((two.positive.offset, two.positive.counts.len()), (-1, 33));
        assert_eq!(
            (two.negative.offset, &two.negative.counts[..]),
            (63, &[1][..])
        );
        // 1 to 16 spans 129 buckets at scale 5, and 5 at scale 0.
        let coarse = of(&[1.0, 16.0], 128);
        assert_eq!((coarse.scale, coarse.positive.counts.len()), (4, 65));
        let least = of(&[5e-324, f64::MAX, f64::INFINITY], 4);
        assert_eq!(least.positive.counts.iter().sum::<u64>(), 3);
    }

    #[test]
    fn far_apart_values_share_a_place_and_are_told_apart() {
        let sketch = Sketch::new();
        let values = [1e-300, 1e-150, 1.0, 1e19, 1e150, 1e300, -1.0, -1e300, 0.0];
        for v in values {
            sketch.count(v);
            sketch.count(v);
        }
        sketch.count(f64::NAN);
        let counted: Vec<_> = sketch.snapshot().iter().collect();
        let mut expected: Vec<_> = values.iter().map(|v| (index(*v).unwrap(), 2)).collect();
        expected.sort_unstable();
        assert_eq!(counted, expected);
    }

    #[test]
    fn no_observation_is_lost_between_threads_or_between_snapshots() {
        const EACH: u64 = 20_000;
        let sketch = Sketch::new();
        let (mut before, mut taken) = (Weights::default(), 0);
        thread::scope(|scope| {
            let observers: Vec<_> = (0..3)
                .map(|t| {
                    let sketch = &sketch;
                    scope.spawn(move || {
                        for i in 0..EACH {
                            sketch.count(2_f64.powi((i % 300) as i32 - 150) * f64::from(t + 1));
                        }
                    })
                })
                .collect();
            while !observers.iter().all(|o| o.is_finished()) {
                let now = sketch.snapshot();
                taken += now.since(&before).iter().map(|p| p.weight()).sum::<u64>();
                before = now;
            }
        });
        let now = sketch.snapshot();
        taken += now.since(&before).iter().map(|p| p.weight()).sum::<u64>();
        assert_eq!(taken, 3 * EACH);
    }
}
