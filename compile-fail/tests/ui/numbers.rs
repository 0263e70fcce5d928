use metricbus::{Family, Histogram, Metrics};

#[derive(Metrics)]
struct Numbers {
    /// Down, and up again.
    #[metric(buckets = [0.1, 0.5, 0.2, 1])]
    falling: Histogram,
    /// The same twice.
    #[metric(buckets = [-1.0, 1, 1.0])]
    level: Histogram,
    /// Not a number.
    #[metric(buckets = [0.1, "0.5", 1e999])]
    text: Histogram,
    /// Room for none.
    #[metric(labels("method"), series_max = 0)]
    none: Family<Histogram>,
    /// Gone at once.
    #[metric(labels("method"), expire_after_secs = 0)]
    gone: Family<Histogram>,
}

fn main() {}
