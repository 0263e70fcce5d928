use metricbus::{Counter, Labels, Metrics};

#[derive(Metrics)]
struct Tuple(Counter);

#[derive(Metrics)]
struct Unit;

#[derive(Metrics)]
enum Choice {
    One(Counter),
}

#[derive(Metrics)]
union Bits {
    a: u64,
    b: f64,
}

#[derive(Labels)]
struct Pair(&'static str, u16);

#[derive(Labels)]
enum Method {
    Get,
    Put,
}

#[derive(Labels)]
struct Nothing {}

fn main() {}
