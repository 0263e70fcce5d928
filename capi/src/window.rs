//! Sliding windows.

use std::{
    mem::{offset_of, size_of},
    time::Duration,
};

use metricbus::{WindowStats, Windows};

use crate::{
    bus::mb_bus,
    input::{Growing, borrowed, end, place, several, taken, text, write_sized},
    mb_str,
    status::{Fault, MB_ERROR_POINTER, MB_ERROR_VALUE, guard, guard_quietly},
};

/// A sliding window over all series of a selector, present and future.
pub struct mb_window(Windows);

/// What a window has seen. NaN stands for what there was nothing to go by; it is never 0 instead.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct mb_window_stats {
    /// sizeof(mb_window_stats)
    pub size: usize,
    /// The width in force: what was asked for, at least 100 ms. In nanoseconds.
    pub width_ns: u64,
    /// The share of the width that was observed: 1 from when the window has existed for its width.
    pub coverage: f64,
    /// How many series took part.
    pub sources: u64,
    /// How many of them had no mutation in the window.
    pub stale: u64,
    /// Of gauges, how often they were set; of histograms, observations; of counters 0.
    pub count: u64,
    /// Of what was set or observed; of counters, the increase.
    pub sum: f64,
    /// Of gauges over time, of histograms over observations. Not of counters.
    pub avg: f64,
    /// Not of counters.
    pub min: f64,
    /// Not of counters.
    pub max: f64,
    /// As the average.
    pub stddev: f64,
    /// The value of the one series, now. Not of histograms, and not of several series.
    pub last: f64,
    /// Of counters; of gauges, by how much they changed; of histograms, observations.
    pub increase: f64,
    /// The increase per second.
    pub rate: f64,
    /// Seconds since the newest mutation.
    pub age: f64,
}

// SAFETY: repr(C), begins with its size, and numbers may be any bytes.
unsafe impl Growing for mb_window_stats {
    const LEAST: usize = end(offset_of!(mb_window_stats, age), size_of::<f64>());
    const NAME: &str = "mb_window_stats";
}

// What programs that were built with version 1.0 say.
#[cfg(target_pointer_width = "64")]
const _: () = assert!(<mb_window_stats as Growing>::LEAST == 120);

impl From<&WindowStats> for mb_window_stats {
    fn from(stats: &WindowStats) -> Self {
        let number = |number: Option<f64>| number.unwrap_or(f64::NAN);
        mb_window_stats {
            size: size_of::<mb_window_stats>(),
            width_ns: u64::try_from(stats.width.as_nanos()).unwrap_or(u64::MAX),
            coverage: stats.coverage,
            sources: stats.sources as u64,
            stale: stats.stale as u64,
            count: stats.count,
            sum: number(stats.sum),
            avg: number(stats.avg),
            min: number(stats.min),
            max: number(stats.max),
            stddev: number(stats.stddev),
            last: number(stats.last),
            increase: number(stats.increase),
            rate: number(stats.rate),
            age: number(stats.age.map(|age| age.as_secs_f64())),
        }
    }
}

/// Opens a window over the series that a selector matches, from now on. Its width is at least 100 ms.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mb_window_open(
    bus: *const mb_bus,
    selector: mb_str,
    width_ns: u64,
    window: *mut *mut mb_window,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise, here and below.
        let place = unsafe { place(window, "the place for the window") }?;
        // SAFETY: as above.
        let bus = unsafe { mb_bus::borrowed(bus) }?;
        // SAFETY: as above.
        let selector = unsafe { text(selector, "the selector") }?;
        place.put(mb_window(
            bus.bus().window(selector, Duration::from_nanos(width_ns))?,
        ));
        Ok(())
    })
}

/// What it has seen up to now. Set `size` of the result before.
///
/// For each share in `shares` (0 to 1; 0.99 is the 99th percentile) `quantiles` gets the quantile, off by at most 1.1 %, or
/// NaN. They are of the same moment as the rest. `result` may be NULL where only quantiles are wanted.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mb_window_read(
    window: *const mb_window,
    result: *mut mb_window_stats,
    shares: *const f64,
    shares_len: usize,
    quantiles: *mut f64,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise, here and below.
        let window = unsafe { borrowed(window, "the window") }?;
        // SAFETY: as above.
        let shares = unsafe { several(shares, shares_len, "the list of shares") }?;
        // The program may want its answers where its questions are.
        let shares = shares.to_vec();
        if let Some(share) = shares.iter().find(|share| !(0.0..=1.0).contains(*share)) {
            return Err(Fault::new(
                MB_ERROR_VALUE,
                format!(
                    "a share of {share}: a share is from 0 to 1, and 0.99 is the 99th percentile"
                ),
            ));
        }
        if !shares.is_empty() && (quantiles.is_null() || !quantiles.is_aligned()) {
            return Err(Fault::new(
                MB_ERROR_POINTER,
                "the place for the quantiles is NULL, or not aligned for doubles",
            ));
        }
        // That of one series can say more.
        let each = window.0.each();
        let stats = match &each[..] {
            [(_, one)] => one.clone(),
            _ => window.0.stats(),
        };
        if !result.is_null() {
            let values = mb_window_stats::from(&stats);
            // SAFETY: as above.
            unsafe { write_sized(result, "the place for the result", values) }?;
        }
        for (i, share) in shares.iter().enumerate() {
            let quantile = stats.quantile(*share).unwrap_or(f64::NAN);
            // SAFETY: as above: there is room for as many as there are shares.
            unsafe { quantiles.add(i).write(quantile) };
        }
        Ok(())
    })
}

/// Ends it. NULL is none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mb_window_free(window: *mut mb_window) {
    // SAFETY: the caller's promise.
    guard_quietly(|| drop(unsafe { taken(window) }));
}
