//! `histogram_observe`: observing one of 65 536 unpredictable values, with the field's 11 buckets from 5 ms to 10 s.
//!
//! The values are spread so that each bucket is hit, the one above the last bound included.
//!
//! - Subject: `Histogram::observe`.
//! - Floor: the two read-modify-writes that any histogram with a sum and independent buckets needs: `fetch_add` on a
//!   bucket, and a compare-and-swap of the sum. The bucket's number was found beforehand.
//! - Peers: the histograms of `prometheus`, `prometheus-client` and `measured`, with the same bounds.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use metricbus::{Buckets, MetricBus};

use crate::{
    Failure,
    harness::{Effort, Lane, Role, VALUES, Values, interleave},
    report::{Bar, Figures, Unit},
};

/// The upper bounds, in seconds: the default of `prometheus`, which the field took over.
pub(crate) const BOUNDS: [f64; 11] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// From 2 ms to 20 s, each order of magnitude as often as the other.
pub(crate) fn durations() -> Values {
    Values::new(|random| 0.002 * 10_000_f64.powf(random.unit()))
}

struct Floor {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    sum: AtomicU64,
}

pub(crate) fn observe(effort: Effort) -> Result<Figures, Failure> {
    let bus = MetricBus::new();
    let ours = bus.histogram(
        "request_duration_seconds",
        "Time to serve a request.",
        Buckets::new(BOUNDS)?,
    )?;
    let values = &durations();
    let found: Vec<u8> = values
        .iter()
        .map(|v| {
            BOUNDS
                .iter()
                .position(|bound| v <= *bound)
                .unwrap_or(BOUNDS.len()) as u8
        })
        .collect();
    let found: &[u8; VALUES] = found.as_slice().try_into()?;
    let floor = Arc::new(Floor {
        buckets: Default::default(),
        sum: AtomicU64::new(0),
    });
    let options =
        prometheus::HistogramOpts::new("request_duration_seconds", "Time to serve a request.")
            .buckets(BOUNDS.to_vec());
    let thresholds = measured::metric::histogram::Thresholds::with_buckets(BOUNDS);

    let lanes = &mut [
        Lane::of(Role::Subject, "metricbus", ours.clone(), |h, i| {
            h.observe(values.get(i))
        }),
        Lane::of(Role::Floor, "bucket fetch_add + sum CAS", floor, |f, i| {
            f.buckets[usize::from(found[i % VALUES]) % 12].fetch_add(1, Ordering::Relaxed);
            let mut sum = f.sum.load(Ordering::Relaxed);
            loop {
                let new = (f64::from_bits(sum) + values.get(i)).to_bits();
                match f
                    .sum
                    .compare_exchange_weak(sum, new, Ordering::AcqRel, Ordering::Relaxed)
                {
                    Ok(_) => break,
                    Err(now) => sum = now,
                }
            }
        }),
        Lane::of(
            Role::Peer,
            "prometheus",
            prometheus::Histogram::with_opts(options)?,
            |h, i| h.observe(values.get(i)),
        ),
        Lane::of(
            Role::Other,
            "prometheus-client",
            prometheus_client::metrics::histogram::Histogram::new(BOUNDS),
            |h, i| h.observe(values.get(i)),
        ),
        Lane::of(
            Role::Other,
            "measured",
            Arc::new(measured::Histogram::with_metadata(thresholds)),
            |h, i| h.observe(values.get(i)),
        ),
    ];
    let rounds = interleave(effort.fast(), lanes)?;
    Ok(Figures::new(
        "histogram_observe",
        Unit::Ns,
        rounds,
        Bar::Peer(0.5),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bucket_is_hit_about_as_often_as_chance_says() {
        let mut hits = [0_u32; BOUNDS.len() + 1];
        for v in durations().iter() {
            hits[BOUNDS.iter().position(|b| v <= *b).unwrap_or(BOUNDS.len())] += 1;
        }
        assert!(
            hits.iter().all(|hits| *hits > VALUES as u32 / 50),
            "{hits:?}"
        );
    }
}
