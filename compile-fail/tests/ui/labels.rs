use metricbus::Labels;

#[derive(Labels)]
struct Request {
    #[label(name = "http.method")]
    method: &'static str,
    #[label(rename = "status")]
    code: u16,
    #[label(name = "code", name = "code")]
    twice: u16,
    #[label(name = "le")]
    bound: f64,
    __host: String,
    #[label(name = "code")]
    clash: u16,
}

#[derive(Labels)]
#[label(prefix = "http_")]
struct Prefixed {
    method: &'static str,
}

fn main() {}
