//! One component, and the line that says where its metrics go.
//!
//! ```sh
//! cargo run --example switch_backend                                              # prometheus
//! cargo run --example switch_backend -- --backend null
//! cargo run --example switch_backend --features otlp -- --backend otlp            # to http://localhost:4318
//! cargo run --example switch_backend --features libnv -- --backend libnv:capi/examples/build/libcounting.so
//! cargo run --example switch_backend --features otlp -- --backend tee:prometheus,otlp
//! ```
//!
//! `METRICBUS_BACKEND`, `METRICBUS_PREFIX` and OpenTelemetry's own variables say the same without an argument.

use std::{
    io::{self, Write},
    sync::mpsc,
    time::Duration,
};

use clap::Parser;
use metricbus::{
    BaseComponentMetrics, Buckets, Counter, DeclareError, MetricCounter, MetricFamily, MetricGauge,
    MetricHistogram, Metrics, Threshold, component::Backends,
};

/// Serves 100 made-up requests, and reports them wherever you say.
#[derive(Debug, Parser)]
struct Options {
    /// Where the metrics go: prometheus, otlp, libnv:PATH, null, or tee:A,B. Default: what METRICBUS_BACKEND says, or
    /// prometheus.
    #[arg(long)]
    backend: Option<String>,

    /// What all names begin with. Default: what METRICBUS_PREFIX says, or "switch".
    #[arg(long)]
    prefix: Option<String>,

    /// Seconds to wait at the end until everything is where it belongs.
    #[arg(long, default_value_t = 5.0)]
    deadline: f64,
}

/// The component. Nothing in it knows of a backend.
struct Api {
    requests: Box<dyn MetricFamily<dyn MetricCounter>>,
    kv_usage: Box<dyn MetricGauge>,
    latency: Box<dyn MetricHistogram>,
    /// Metrics that are a struct go the same way.
    cache: CacheMetrics,
}

/// The cache of the component.
#[derive(Metrics)]
struct CacheMetrics {
    /// Lookups that found something.
    cache_hits_total: Counter,
}

impl Api {
    fn new(base: &BaseComponentMetrics) -> Result<Api, DeclareError> {
        let container = &base.container;
        let labels = [("service", "api")];
        let names = ["method"];
        Ok(Api {
            requests: container.create_counter_family(
                "requests_total",
                "Requests served.",
                &labels,
                &names,
            )?,
            kv_usage: container.create_gauge(
                "kv_usage_ratio",
                "Share of the KV cache in use.",
                &labels,
            )?,
            latency: container.create_histogram(
                "latency_seconds",
                "Time to answer.",
                &labels,
                Buckets::default(),
            )?,
            cache: base.register()?,
        })
    }

    fn serve(&self) -> Result<(), metricbus::LabelError> {
        let get = self.requests.with_label_values(&["GET"])?;
        let post = self.requests.with_label_values(&["POST"])?;
        for i in 0..100_u32 {
            match i % 4 {
                0 => post.inc(),
                _ => get.inc(),
            }
            if i % 3 == 0 {
                self.cache.cache_hits_total.inc();
            }
            self.kv_usage.set(f64::from(i) / 100.0);
            self.latency.observe(f64::from(i) / 1_000.0);
        }
        Ok(())
    }
}

fn run(options: &Options, out: &mut impl Write) -> Result<(), Box<dyn std::error::Error>> {
    let vars = |name: &str| match (name, &options.backend, &options.prefix) {
        ("METRICBUS_BACKEND", Some(backend), _) => Some(backend.clone()),
        ("METRICBUS_PREFIX", _, Some(prefix)) => Some(prefix.clone()),
        ("METRICBUS_PREFIX", _, None) => Some(std::env::var(name).unwrap_or("switch".to_owned())),
        _ => std::env::var(name).ok(),
    };
    // The line. Without arguments of one's own it is `BaseComponentMetrics::from_env()?`.
    let base = Backends::new().from_vars(vars)?;

    let api = Api::new(&base)?;
    // Whatever the backend is, the bus is there, and thresholds fire.
    let bus = base.container.bus().ok_or("a container without a bus")?;
    let (heard, hear) = mpsc::channel();
    let _subscription = bus
        .on_threshold(
            r#"{__name__=~".*kv_usage_ratio"}"#,
            Threshold::above(0.9).clear_below(0.8),
        )
        .call(move |crossing| {
            let _ = heard.send(format!("{} reached {}", crossing.series, crossing.value));
        })?;

    api.serve()?;

    let asked = vars("METRICBUS_BACKEND").unwrap_or("prometheus".to_owned());
    writeln!(out, "backend: {asked}")?;
    let crossing = hear.recv_timeout(Duration::from_secs(5))?;
    writeln!(out, "threshold: {crossing}")?;
    let get = api.requests.with_label_values(&["GET"])?;
    writeln!(out, "GET requests: {}", get.get_value())?;
    writeln!(out, "KV cache in use: {}", api.kv_usage.get_value())?;
    writeln!(out, "answers: {}", api.latency.get_count())?;

    let deadline = Duration::try_from_secs_f64(options.deadline)?;
    match base.container.shutdown(deadline) {
        Ok(()) => writeln!(out, "everything is where it belongs")?,
        Err(error) => writeln!(out, "not everything arrived: {error}")?,
    }
    writeln!(out, "\nas Prometheus would see it:\n")?;
    write!(out, "{}", base.container.export_prometheus())?;
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    if let Err(error) = run(&options, &mut io::stdout()) {
        eprintln!("switch_backend: {error}");
        std::process::exit(1);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(backend: &str) -> String {
        let options = Options {
            backend: Some(backend.to_owned()),
            prefix: Some("app".to_owned()),
            deadline: 5.0,
        };
        let mut out = Vec::new();
        run(&options, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_component_says_the_same_with_each_backend() {
        let what_it_says = |backend| {
            let out = output(backend);
            out.split_once('\n').unwrap().1.to_owned()
        };
        let prometheus = what_it_says("prometheus");
        assert!(prometheus.contains("GET requests: 75\n"), "{prometheus}");
        assert!(prometheus.contains("\neverything is where it belongs\n"));
        assert!(prometheus.contains("\napp_cache_hits_total 34\n"));
        assert_eq!(what_it_says("null"), prometheus);
        assert_eq!(what_it_says("tee:null,prometheus"), prometheus);
    }

    #[test]
    fn a_wrong_backend_is_said_before_anything_happens() {
        let options = Options::parse_from(["switch_backend", "--backend", "statsd"]);
        let error = run(&options, &mut io::sink()).unwrap_err().to_string();
        assert!(
            error.contains("nothing is called \"statsd\"; there are prometheus"),
            "{error}"
        );
    }
}
