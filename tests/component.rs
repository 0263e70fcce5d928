//! The containers: a component made of boxed metrics, on a bus that it shares.

use std::sync::Arc;

use metricbus::{
    BaseComponentMetrics, Buckets, Counter, DeclareError, Desc, MetricBus, MetricContainer,
    MetricCounter, MetricFamily, MetricGauge, MetricHistogram, Metrics, PrometheusContainer, Scope,
    Snapshot,
};

/// The example itself, so that what it shows is what is tested.
#[path = "../examples/component.rs"]
#[allow(dead_code, reason = "its `main` is for `cargo run`")]
mod example;

use example::ApiMetrics;

fn exercise(metrics: &ApiMetrics) {
    metrics.requests.inc();
    metrics.requests.inc_by(5);
    metrics.response_time.set(0.15);
    metrics.response_time.inc(0.05);
}

#[test]
fn the_last_six_lines_of_the_example_are_what_a_prometheus_would_scrape() {
    let mut out = Vec::new();
    example::run(&mut out).unwrap();
    let out = String::from_utf8(out).unwrap();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(
        lines[lines.len() - 6..],
        [
            "# HELP myapp_requests_total Total number of requests",
            "# TYPE myapp_requests_total counter",
            "myapp_requests_total{service=\"api\",version=\"v1\"} 6",
            "# HELP myapp_response_time_seconds Response time in seconds",
            "# TYPE myapp_response_time_seconds gauge",
            "myapp_response_time_seconds{service=\"api\",version=\"v1\"} 0.2",
        ]
    );
}

#[test]
fn a_component_of_boxed_metrics_exports_exactly_what_it_counted() {
    let metrics = ApiMetrics::new(BaseComponentMetrics::new_prometheus("myapp")).unwrap();
    exercise(&metrics);
    assert_eq!(
        metrics.base.container.export_prometheus(),
        r#"# HELP myapp_requests_total Total number of requests
# TYPE myapp_requests_total counter
myapp_requests_total{service="api",version="v1"} 6
# HELP myapp_response_time_seconds Response time in seconds
# TYPE myapp_response_time_seconds gauge
myapp_response_time_seconds{service="api",version="v1"} 0.2
"#
    );
    assert_eq!(metrics.requests.get_value(), 6);
    metrics.response_time.dec(0.2);
    assert_eq!(metrics.response_time.get_value(), 0.0);
}

struct WorkerMetrics {
    jobs: Counter,
}

// What `#[derive(Metrics)]` writes.
impl Metrics for WorkerMetrics {
    fn register(scope: &Scope) -> Result<Self, DeclareError> {
        Ok(WorkerMetrics {
            jobs: scope.counter("jobs_total", "Jobs done.")?,
        })
    }
}

#[test]
fn metrics_of_a_container_and_of_a_struct_live_on_the_same_bus() {
    let bus = MetricBus::new();
    let worker: WorkerMetrics = bus.scope().with_prefix("myapp_").register().unwrap();
    worker.jobs.inc();
    let container = PrometheusContainer::on(&bus, "myapp");
    let same = container
        .create_counter("jobs_total", "Jobs done.", &[])
        .unwrap();
    same.inc();
    assert_eq!((worker.jobs.get(), same.get_value()), (2, 2));
    container
        .create_gauge("ready", "Ready.", &[])
        .unwrap()
        .set(1.0);
    let names: Vec<_> = container
        .get_metrics()
        .families
        .into_iter()
        .map(|f| f.name)
        .collect();
    assert_eq!(names, ["myapp_jobs_total", "myapp_ready"]);
    assert_eq!(container.bus().series("myapp_ready").unwrap().len(), 1);
}

#[test]
fn what_the_bus_refuses_the_container_refuses_with_the_same_words() {
    let container = PrometheusContainer::new("myapp");
    let name = container
        .create_counter("re\nquests", "Requests.", &[])
        .unwrap_err();
    assert!(
        matches!(&name, DeclareError::Name { name, .. } if name == "myapp_re\nquests"),
        "{name}"
    );
    let label = container
        .create_gauge("g", "A gauge.", &[("a\nb", "")])
        .unwrap_err();
    assert!(matches!(label, DeclareError::LabelName { .. }), "{label}");
    container.create_gauge("g", "A gauge.", &[]).unwrap();
    let clash = container.create_counter("g", "A gauge.", &[]).unwrap_err();
    assert!(matches!(clash, DeclareError::Clash { .. }), "{clash}");
    let none = container
        .create_gauge_family("f", "A family.", &[], &[])
        .unwrap_err();
    assert!(matches!(none, DeclareError::Labels { .. }), "{none}");
}

#[test]
fn prefixes_are_joined_with_one_underscore() {
    for (prefix, name) in [("", "up"), ("myapp", "myapp_up"), ("myapp_", "myapp_up")] {
        let container = PrometheusContainer::new(prefix);
        container.create_gauge("up", "Up.", &[]).unwrap();
        assert_eq!(container.get_metrics().families[0].name, name);
    }
}

#[test]
fn families_of_every_type_have_children() {
    let container: Arc<dyn MetricContainer> = Arc::new(PrometheusContainer::new(""));
    let labels = [("service", "api")];
    let requests = container
        .create_counter_family("requests_total", "Requests.", &labels, &["method", "code"])
        .unwrap();
    requests
        .with_label_values(&["GET", "200"])
        .unwrap()
        .inc_by(2);
    requests.with_label_values(&["PUT", "500"]).unwrap().inc();
    assert!(requests.with_label_values(&["GET"]).is_err());
    assert!(requests.remove(&["PUT", "500"]).unwrap());
    assert!(!requests.remove(&["PUT", "500"]).unwrap());

    let depth = container
        .create_gauge_family("depth", "Depth.", &labels, &["queue"])
        .unwrap();
    depth.with_label_values(&["fast"]).unwrap().set(-1.5);

    let buckets = Buckets::new([1.0, 2.0]).unwrap();
    let sizes = container
        .create_histogram_family("size", "Size.", &labels, &["model"], buckets.clone())
        .unwrap();
    let size = sizes.with_label_values(&["m"]).unwrap();
    size.observe(1.5);
    size.observe(5.0);
    assert_eq!((size.get_count(), size.get_sum()), (2, 6.5));
    let plain = container
        .create_histogram("plain", "Plain.", &[], buckets)
        .unwrap();
    plain.observe(1.0);

    assert_eq!(
        container.export_prometheus(),
        r#"# HELP depth Depth.
# TYPE depth gauge
depth{service="api",queue="fast"} -1.5
# HELP plain Plain.
# TYPE plain histogram
plain_bucket{le="1"} 1
plain_bucket{le="2"} 1
plain_bucket{le="+Inf"} 1
plain_sum 1
plain_count 1
# HELP requests_total Requests.
# TYPE requests_total counter
requests_total{service="api",method="GET",code="200"} 2
# HELP size Size.
# TYPE size histogram
size_bucket{service="api",model="m",le="1"} 0
size_bucket{service="api",model="m",le="2"} 1
size_bucket{service="api",model="m",le="+Inf"} 2
size_sum{service="api",model="m"} 6.5
size_count{service="api",model="m"} 2
"#
    );
}

/// A backend of somebody else's: nothing of Prometheus in it.
#[derive(Debug, Default)]
struct Recording {
    bus: MetricBus,
}

impl MetricContainer for Recording {
    fn create_counter(
        &self,
        name: &str,
        help: &str,
        labels: &[(&str, &str)],
    ) -> Result<Box<dyn MetricCounter>, DeclareError> {
        let desc = labels
            .iter()
            .fold(Desc::new(name, help), |d, (n, v)| d.label(*n, *v));
        Ok(Box::new(self.bus.declare::<Counter>(desc)?))
    }

    fn create_gauge(
        &self,
        name: &str,
        help: &str,
        _: &[(&str, &str)],
    ) -> Result<Box<dyn MetricGauge>, DeclareError> {
        Ok(Box::new(self.bus.gauge(name, help)?))
    }

    fn create_histogram(
        &self,
        name: &str,
        help: &str,
        _: &[(&str, &str)],
        buckets: Buckets,
    ) -> Result<Box<dyn MetricHistogram>, DeclareError> {
        Ok(Box::new(self.bus.histogram(name, help, buckets)?))
    }

    fn create_counter_family(
        &self,
        name: &str,
        _: &str,
        _: &[(&str, &str)],
        _: &[&str],
    ) -> Result<Box<dyn MetricFamily<dyn MetricCounter>>, DeclareError> {
        Err(DeclareError::Labels {
            metric: name.to_owned(),
            why: "this backend has no families".to_owned(),
        })
    }

    fn create_gauge_family(
        &self,
        name: &str,
        _: &str,
        _: &[(&str, &str)],
        _: &[&str],
    ) -> Result<Box<dyn MetricFamily<dyn MetricGauge>>, DeclareError> {
        Err(DeclareError::Labels {
            metric: name.to_owned(),
            why: "this backend has no families".to_owned(),
        })
    }

    fn create_histogram_family(
        &self,
        name: &str,
        _: &str,
        _: &[(&str, &str)],
        _: &[&str],
        _: Buckets,
    ) -> Result<Box<dyn MetricFamily<dyn MetricHistogram>>, DeclareError> {
        Err(DeclareError::Labels {
            metric: name.to_owned(),
            why: "this backend has no families".to_owned(),
        })
    }

    fn get_metrics(&self) -> Snapshot {
        self.bus.snapshot()
    }
}

#[test]
fn the_component_does_not_change_with_its_backend() {
    let metrics =
        ApiMetrics::new(BaseComponentMetrics::new(Arc::new(Recording::default()))).unwrap();
    exercise(&metrics);
    let container = &metrics.base.container;
    assert!(container.bus().is_none());
    assert!(
        container
            .export_prometheus()
            .contains("requests_total{service=\"api\",version=\"v1\"} 6\n")
    );
    let Err(no_bus) = metrics.base.register::<WorkerMetrics>() else {
        panic!("registered without a bus");
    };
    assert!(
        no_bus.to_string().ends_with(
            "the backend refused it: its container is not on a bus, and takes metrics one at a time only"
        ),
        "{no_bus}"
    );
    let refused = container
        .create_gauge_family("f", "A family.", &[], &["x"])
        .unwrap_err();
    assert_eq!(
        refused.to_string(),
        "metric \"f\": this backend has no families"
    );
}
