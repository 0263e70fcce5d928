//! The backend that reports to nobody.

use super::Backend;

/// Metrics go nowhere: for tests, and to switch reporting off. They are counted on the bus as ever, so that thresholds,
/// windows and `get_value` work.
///
/// ```
/// use metricbus::BaseComponentMetrics;
///
/// let base = BaseComponentMetrics::new_null("myapp");
/// let jobs = base.container.create_counter("jobs_total", "Jobs done.", &[])?;
/// jobs.inc();
/// assert_eq!(jobs.get_value(), 1);
/// # Ok::<(), metricbus::DeclareError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Null;

impl Backend for Null {
    fn name(&self) -> &str {
        "null"
    }
}
