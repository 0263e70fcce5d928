use metricbus::{Counter, Family, Gauge, Histogram, Metrics};

#[derive(Metrics)]
#[metrics(prefix = "my\nworker_", label("pod\nname" = "a"))]
struct Names {
    /// A name from elsewhere.
    #[metric(name = "requests\\total")]
    requests: Counter,
    /// A name with quotes.
    #[metric(name = "\"errors\"_total")]
    errors: Counter,
    /// Any text can be a name.
    größe: Gauge,
    /// No name.
    #[metric(name = "")]
    nameless: Gauge,
}

#[derive(Metrics)]
#[metrics(label("role" = "decode"))]
struct LabelNames {
    /// Names that are taken.
    #[metric(labels("le", "quantile", "__address__", "otel_metric_overflow"))]
    taken: Family<Counter>,
    /// Names that no label has.
    #[metric(labels("http\nmethod", "\"5xx\"", ""))]
    wrong: Family<Counter>,
    /// The same name twice.
    #[metric(labels("method", "code", "method"))]
    twice: Family<Counter>,
    /// The same name in two ways.
    #[metric(label("method" = "GET"), labels("method"))]
    both: Family<Counter>,
    /// A name that the struct gave.
    #[metric(label("role" = "prefill"))]
    role: Counter,
}

#[derive(Metrics)]
#[metrics(prefix = "wait_")]
struct Units {
    /// No unit in the name.
    #[metric(unit = "seconds")]
    latency: Histogram,
    /// The unit after what comes last.
    #[metric(unit = "bytes")]
    received_bytes_count: Counter,
    /// Another unit.
    #[metric(unit = "seconds")]
    latency_milliseconds: Histogram,
    /// No unit at all.
    #[metric(unit = "")]
    nothing: Histogram,
}

#[derive(Metrics)]
struct Twice {
    /// Requests.
    requests_total: Counter,
    /// More of them.
    #[metric(name = "requests_total")]
    more: Counter,
    /// Reads.
    #[metric(name = "operations_total", label("kind" = "read"))]
    reads: Counter,
    /// Reads as well.
    #[metric(name = "operations_total", label("kind" = "read"))]
    writes: Counter,
    /// Operations by another label.
    #[metric(name = "operations_total", label("way" = "fast"))]
    fast: Counter,
}

#[derive(Metrics)]
struct Helpless {
    requests_total: Counter,
    ///
    errors_total: Counter,
    #[metric(help = " ")]
    retries_total: Counter,
    #[doc = concat!("not", "a", "literal")]
    made_total: Counter,
}

fn main() {}
