//! A component that takes its metrics from whichever container it is given.
//!
//! Run with `cargo run --example component`. Its last six lines of output are what a Prometheus would scrape.

use metricbus::{BaseComponentMetrics, DeclareError, MetricCounter, MetricGauge};

struct ApiMetrics {
    base: BaseComponentMetrics,
    requests: Box<dyn MetricCounter>,
    response_time: Box<dyn MetricGauge>,
}

impl ApiMetrics {
    fn new(base: BaseComponentMetrics) -> Result<Self, DeclareError> {
        let labels = [("service", "api"), ("version", "v1")];
        let container = &base.container;
        Ok(ApiMetrics {
            requests: container.create_counter(
                "requests_total",
                "Total number of requests",
                &labels,
            )?,
            response_time: container.create_gauge(
                "response_time_seconds",
                "Response time in seconds",
                &labels,
            )?,
            base,
        })
    }
}

fn main() -> Result<(), DeclareError> {
    // The one line that chooses the backend.
    let base = BaseComponentMetrics::new_prometheus("myapp");

    let metrics = ApiMetrics::new(base)?;
    metrics.requests.inc();
    metrics.requests.inc_by(5);
    metrics.response_time.set(0.15);
    metrics.response_time.inc(0.05);

    println!("requests: {}", metrics.requests.get_value());
    println!("response time: {} s", metrics.response_time.get_value());
    println!();
    metrics.base.container.print_metrics();
    Ok(())
}
