//! A component that takes its metrics from whichever container it is given.
//!
//! Run with `cargo run --example component`. Its last six lines of output are what a Prometheus would scrape.

use std::io::{self, Write};

use metricbus::{BaseComponentMetrics, DeclareError, MetricCounter, MetricGauge};

pub(crate) struct ApiMetrics {
    pub(crate) base: BaseComponentMetrics,
    pub(crate) requests: Box<dyn MetricCounter>,
    pub(crate) response_time: Box<dyn MetricGauge>,
}

impl ApiMetrics {
    pub(crate) fn new(base: BaseComponentMetrics) -> Result<Self, DeclareError> {
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

/// Works a little, and writes what there is to see.
pub(crate) fn run(out: &mut impl Write) -> Result<(), Box<dyn std::error::Error>> {
    // The one line that chooses the backend.
    let base = BaseComponentMetrics::new_prometheus("myapp");

    let metrics = ApiMetrics::new(base)?;
    metrics.requests.inc();
    metrics.requests.inc_by(5);
    metrics.response_time.set(0.15);
    metrics.response_time.inc(0.05);

    writeln!(out, "requests: {}", metrics.requests.get_value())?;
    writeln!(
        out,
        "response time: {} s",
        metrics.response_time.get_value()
    )?;
    writeln!(out)?;
    // `print_metrics()` writes the same to standard output.
    write!(out, "{}", metrics.base.container.export_prometheus())?;
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    run(&mut io::stdout())
}
