//! What the processor can be asked for: prefetches, and a search by SSE2. The crate's only unsafe code.

/// Asks for the cache line at `at`, to read it soon.
#[inline(always)]
pub(crate) fn prefetch_read<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch does not access memory in the language's sense and can't fault, whatever the address; SSE
        // is part of x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Asks for the cache line at `at` to be ours alone, to write it soon.
#[inline(always)]
pub(crate) fn prefetch_write<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
        // SAFETY: as above. Where the processor does not know `prefetchw`, it is a no-op.
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(at.cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// How many of these bounds, whole groups of `GROUP` (a multiple of 4), `v` is over. A NaN is over all.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn bounds_under<const GROUP: usize>(padded: &[f64], v: f64) -> usize {
    use std::arch::x86_64::{
        _mm_add_epi64, _mm_castpd_si128, _mm_cmpnle_pd, _mm_cvtsi128_si64, _mm_set_pd, _mm_set1_pd,
        _mm_setzero_si128, _mm_sub_epi64, _mm_unpackhi_epi64,
    };
    const { assert!(GROUP.is_multiple_of(4)) };
    // SAFETY: SSE2 is part of x86-64, and none of these takes a pointer.
    unsafe {
        let v = _mm_set1_pd(v);
        let (mut low, mut high) = (_mm_setzero_si128(), _mm_setzero_si128());
        for four in padded.chunks_exact(4) {
            // "Not ≤" is true for NaN, and true is −1.
            let over = _mm_cmpnle_pd(v, _mm_set_pd(four[1], four[0]));
            low = _mm_sub_epi64(low, _mm_castpd_si128(over));
            let over = _mm_cmpnle_pd(v, _mm_set_pd(four[3], four[2]));
            high = _mm_sub_epi64(high, _mm_castpd_si128(over));
        }
        let sum = _mm_add_epi64(low, high);
        let sum = _mm_add_epi64(sum, _mm_unpackhi_epi64(sum, sum));
        _mm_cvtsi128_si64(sum) as usize
    }
}

/// How many of these bounds `v` is over. A NaN is over all.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
pub(crate) fn bounds_under<const GROUP: usize>(padded: &[f64], v: f64) -> usize {
    padded.len() - padded.iter().filter(|bound| v <= **bound).count()
}
