use metricbus::{Counter, Family, Labels, Metrics};

#[derive(Labels)]
struct Request {
    method: &'static str,
    code: Option<u16>,
}

struct Plain {
    method: &'static str,
}

#[derive(Metrics)]
struct Worker {
    #[metrics(nested)]
    inner: Plain,
    /// Labels that are none.
    requests: Family<Counter, Plain>,
}

fn main() {}
