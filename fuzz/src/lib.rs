//! What all targets look at: that a decoder takes no more memory than a small multiple of what it was given.

use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Bytes of memory for each byte that was received, at most. The worst is the sketch of a window whose buckets lie far
/// apart.
const FACTOR: usize = 80;

/// What may be taken whatever was received.
const FREE: usize = 256 << 10;

/// As much for each regular expression of a selector, of which there are 16 at most: compiled, forward and backward.
const REGEX: usize = 4 << 20;

/// Decodes a message of this kind.
///
/// # Panics
///
/// When that takes too much memory.
pub fn bounded(kind: &str, bytes: &[u8]) {
    let selects = matches!(kind, "query" | "rule");
    let regexes = bytes.iter().filter(|byte| **byte == b'~').count().min(16);
    let free = FREE + if selects { regexes * REGEX } else { 0 };
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    metricbus::nats::fuzzing::decode(kind, bytes);
    let taken = MEMORY.peak_usage().saturating_sub(before);
    assert!(
        taken <= FACTOR * bytes.len() + free,
        "{taken} bytes of memory for {} received",
        bytes.len()
    );
}
