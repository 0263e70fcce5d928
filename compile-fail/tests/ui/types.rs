use std::sync::atomic::AtomicU64;

use metricbus::{Counter, Family, Gauge, Histogram, Labels, Metrics};

#[derive(Labels)]
struct Request {
    method: &'static str,
}

#[derive(Metrics)]
struct Nested {}

#[derive(Metrics)]
struct Foreign {
    /// A number that nobody would hear of.
    requests: AtomicU64,
    /// Perhaps.
    maybe: Option<Counter>,
    /// A struct without its attribute.
    nested: Nested,
    /// Not a path.
    both: (Counter, Gauge),
    /// A metric that is called nested.
    #[metrics(nested)]
    depth: Gauge,
}

#[derive(Metrics)]
struct Labelled {
    /// Labels without a family.
    #[metric(labels("method"))]
    requests: Counter,
    /// A family without labels.
    errors: Family<Counter>,
    /// A family of something else.
    #[metric(labels("method"))]
    strings: Family<String>,
    /// Labels both ways.
    #[metric(labels("method"))]
    typed: Family<Counter, Request>,
}

#[derive(Metrics)]
struct Misfit {
    /// Only histograms have buckets.
    #[metric(buckets = [1.0, 2.0])]
    depth: Gauge,
    /// Only histograms can be native.
    #[metric(native = true)]
    usage: Gauge,
    /// Only gauges have an initial value.
    #[metric(initial = 0)]
    served: Counter,
    /// Also in families.
    #[metric(labels("method"), buckets = [1.0, 2.0])]
    requests: Family<Counter<f64>>,
    /// Only the children of a family expire.
    #[metric(expire_after_secs = 60)]
    latency: Histogram,
}

fn main() {}
