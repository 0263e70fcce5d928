use metricbus::{Counter, Family, Histogram, Metrics};

#[derive(Metrics)]
#[metrics(prefx = "worker_", component = "")]
#[metric(name = "worker")]
struct Worker {
    /// A word that does not exist.
    #[metric(bucket = [1.0, 2.0], unit = "seconds")]
    latency: Histogram,
    /// Twice, in one attribute and in two.
    #[metric(name = "a_total", name = "b_total")]
    #[metric(unit = "a", unit = "a")]
    twice: Counter,
    /// The struct's attribute.
    #[metrics(name = "requests_total")]
    requests: Counter,
    #[metrics(nested, component = "inner")]
    inner: Inner,
    #[metrics(nested)]
    #[metric(name = "other")]
    other: Inner,
}

#[derive(Metrics)]
#[metrics(prefix = "a_", prefix = "b_")]
struct Inner {}

#[derive(Metrics)]
struct Malformed {
    /// No value.
    #[metric(name)]
    a: Counter,
    /// Not text.
    #[metric(name = 5)]
    b: Counter,
    /// No brackets.
    #[metric(labels = "method")]
    c: Family<Counter>,
    /// Nothing in the brackets.
    #[metric(labels())]
    d: Family<Counter>,
    /// No label's value.
    #[metric(label("method"))]
    e: Counter,
    /// No brackets at all.
    #[metric]
    f: Counter,
    /// A path.
    #[metric(metric::name = "g")]
    g: Counter,
}

fn main() {}
