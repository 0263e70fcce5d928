//! Backends: what a mirror is told, what several of them are, and how the environment names them.

use std::{
    sync::{
        Arc, Barrier, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use metricbus::{
    BaseComponentMetrics, Buckets, Clock, Counter, DeclareError, Desc, Gauge, MetricBus,
    MetricContainer, Metrics, PrometheusContainer, SampleValue, Scope, TeeContainer, Threshold,
    Value,
    backend::{Backend, BackendError, Declared, Mirror, Null, Prometheus, Tee},
    component::{BackendContainer, Backends},
};

const SOON: Duration = Duration::from_secs(20);

/// A far end that writes down what it is told, and counts by itself.
#[derive(Debug, Default)]
struct Ledger {
    lines: Mutex<Vec<String>>,
    counted: AtomicU64,
    observed: AtomicU64,
    refuses: Option<&'static str>,
}

impl Ledger {
    fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    fn write(&self, line: String) {
        self.lines.lock().unwrap().push(line);
    }
}

#[derive(Clone, Debug)]
struct Book(Arc<Ledger>);

#[derive(Debug)]
struct Page {
    title: String,
    ledger: Arc<Ledger>,
    value: AtomicU64,
}

impl Backend for Book {
    fn name(&self) -> &str {
        "book"
    }

    fn mirrors(&self) -> bool {
        true
    }

    fn declare(&self, series: &Declared<'_>) -> Result<Option<Box<dyn Mirror>>, BackendError> {
        if self.0.refuses == Some(series.name) {
            return Err(BackendError::Refused {
                backend: "book".to_owned(),
                metric: series.name.to_owned(),
                why: "no page is left".to_owned(),
            });
        }
        let labels: Vec<String> = series
            .labels
            .iter()
            .map(|(n, v)| format!("{n}={v}"))
            .collect();
        let title = format!("{}[{}]", series.name, labels.join(","));
        self.0.write(format!(
            "{title} is a {} of {:?}, {:?}",
            series.kind, series.bounds, series.help
        ));
        Ok(Some(Box::new(Page {
            title,
            ledger: self.0.clone(),
            value: AtomicU64::new(0),
        })))
    }
}

impl Mirror for Page {
    fn inc(&self, by: u64) {
        self.ledger.counted.fetch_add(by, Ordering::SeqCst);
        self.value.fetch_add(by, Ordering::SeqCst);
        self.ledger.write(format!("{} +{by}", self.title));
    }

    fn add(&self, by: f64) {
        self.ledger.write(format!("{} +{by:?}", self.title));
    }

    fn set(&self, value: f64) {
        self.ledger.write(format!("{} ={value:?}", self.title));
    }

    fn observe(&self, value: f64) {
        self.ledger.observed.fetch_add(1, Ordering::SeqCst);
        self.ledger.write(format!("{} saw {value:?}", self.title));
    }

    fn read(&self) -> Option<SampleValue> {
        // A hundred more than it was told, so that one sees who answers.
        let value = self.value.load(Ordering::SeqCst) + 100;
        Some(SampleValue::Counter(Value::U64(value)))
    }

    fn remove(&self) {
        self.ledger.write(format!("{} is gone", self.title));
    }
}

fn book() -> (Arc<Ledger>, BackendContainer<Book>) {
    let ledger = Arc::new(Ledger::default());
    let book = Arc::new(Book(ledger.clone()));
    let container = BackendContainer::with_backend(&MetricBus::new(), "app", book).unwrap();
    (ledger, container)
}

#[test]
fn a_mirror_is_told_each_mutation_in_the_thread_that_made_it() {
    let (ledger, container) = book();
    let labels = [("service", "api")];
    let counter = container.create_counter("c_total", "C.", &labels).unwrap();
    let gauge = container.create_gauge("g", "G.", &[]).unwrap();
    let buckets = Buckets::new([1.0, 2.0]).unwrap();
    let histogram = container.create_histogram("h", "H.", &[], buckets).unwrap();
    counter.inc();
    counter.inc_by(4);
    counter.inc_by(0);
    gauge.set(f64::NAN);
    gauge.set(1.5);
    gauge.inc(1.0);
    gauge.dec(5.0);
    gauge.set(-0.0);
    histogram.observe(f64::INFINITY);
    histogram.observe(-1.0);
    assert_eq!(
        ledger.lines(),
        [
            r#"app_c_total[service=api] is a counter of [], "C.""#,
            r#"app_g[] is a gauge of [], "G.""#,
            r#"app_h[] is a histogram of [1.0, 2.0], "H.""#,
            "app_c_total[service=api] +1",
            "app_c_total[service=api] +4",
            "app_g[] =NaN",
            "app_g[] =1.5",
            "app_g[] =2.5",
            "app_g[] =-2.5",
            "app_g[] =0.0",
            "app_h[] saw inf",
            "app_h[] saw -1.0",
        ]
    );
    // What the far end says; the types that it can't read back are read from the bus.
    assert_eq!(counter.get_value(), 105);
    assert_eq!(gauge.get_value(), 0.0);
    assert_eq!(
        (histogram.get_count(), histogram.get_sum()),
        (2, f64::INFINITY)
    );
}

#[test]
fn thresholds_fire_whatever_the_backend_is() {
    let (_, container) = book();
    let gauge = container.create_gauge("g", "G.", &[]).unwrap();
    let (heard, hear) = mpsc::channel();
    let _subscription = container
        .bus()
        .on_threshold("app_g", Threshold::above(0.9))
        .call(move |crossing| heard.send(crossing.value).unwrap())
        .unwrap();
    gauge.set(0.95);
    assert_eq!(hear.recv_timeout(SOON).unwrap(), 0.95);
}

struct WorkerMetrics {
    jobs: Counter,
    cost: Counter<f64>,
    by_queue: metricbus::Family<Gauge>,
}

// What `#[derive(Metrics)]` writes.
impl Metrics for WorkerMetrics {
    fn register(scope: &Scope) -> Result<Self, DeclareError> {
        Ok(WorkerMetrics {
            jobs: scope.counter("jobs_total", "Jobs.")?,
            cost: scope.declare(Desc::new("cost_total", "Cost."))?,
            by_queue: scope.family(Desc::new("depth", "Depth.").labels(["queue"]))?,
        })
    }
}

#[test]
fn a_derived_struct_is_mirrored_as_the_containers_own_metrics_are() {
    let (ledger, container) = book();
    let base = BaseComponentMetrics::new(Arc::new(container));
    let metrics: WorkerMetrics = base.register().unwrap();
    assert_eq!(ledger.lines(), [""; 0]);
    metrics.jobs.inc_by(2);
    metrics.cost.inc_by(0.5);
    metrics.cost.inc_by(0.25);
    let fast = metrics.by_queue.with_label_values(&["fast"]).unwrap();
    fast.set(3.0);
    metrics.by_queue.remove(&["fast"]).unwrap();
    fast.set(4.0);
    let told: Vec<String> = ledger
        .lines()
        .into_iter()
        .filter(|l| !l.contains(" is a "))
        .collect();
    assert_eq!(
        told,
        [
            "app_jobs_total[] +2",
            "app_cost_total[] +0.5",
            "app_cost_total[] +0.25",
            "app_depth[queue=fast] =3.0",
            "app_depth[queue=fast] is gone",
        ]
    );
}

#[test]
fn the_far_end_of_any_series_can_be_read() {
    let ledger = Arc::new(Ledger {
        refuses: Some("unwanted_total"),
        ..Ledger::default()
    });
    let bus = MetricBus::new();
    let container =
        BackendContainer::with_backend(&bus, "", Arc::new(Book(ledger.clone()))).unwrap();
    let container: &dyn MetricContainer = &container;
    let jobs = bus.counter("jobs_total", "Jobs.").unwrap();
    let mirror = container.mirror(&jobs.series()).unwrap().unwrap();
    assert_eq!(
        ledger.lines(),
        [r#"jobs_total[] is a counter of [], "Jobs.""#]
    );
    jobs.inc_by(2);
    assert_eq!(mirror.read(), Some(SampleValue::Counter(Value::U64(102))));
    let unwanted = bus.counter("unwanted_total", "U.").unwrap();
    let refused = container.mirror(&unwanted.series()).unwrap_err();
    assert!(refused.to_string().contains("no page is left"), "{refused}");
    let reading = PrometheusContainer::on(&bus, "");
    assert!(reading.mirror(&jobs.series()).unwrap().is_none());
}

#[test]
fn what_was_counted_before_the_container_came_is_told_first() {
    let bus = MetricBus::new();
    bus.counter("c_total", "C.").unwrap().inc_by(7);
    bus.gauge("g", "G.").unwrap().set(2.0);
    bus.gauge("never_set", "G.").unwrap();
    let ledger = Arc::new(Ledger::default());
    let container =
        BackendContainer::with_backend(&bus, "", Arc::new(Book(ledger.clone()))).unwrap();
    container.flush(SOON).unwrap();
    let mut lines = ledger.lines();
    lines.retain(|line| !line.contains(" is a "));
    lines.sort();
    assert_eq!(lines, ["c_total[] +7", "g[] =2.0"]);
    // Dropped with its container: nothing is told after that.
    drop(container);
    bus.counter("c_total", "C.").unwrap().inc();
    assert_eq!(ledger.counted.load(Ordering::SeqCst), 7);
}

#[test]
fn threads_that_mutate_together_lose_nothing_of_a_counter() {
    let (ledger, container) = book();
    let counter = container.create_counter("c_total", "C.", &[]).unwrap();
    let histogram = container
        .create_histogram("h", "H.", &[], Buckets::default())
        .unwrap();
    let (counter, histogram) = (&*counter, &*histogram);
    let start = Barrier::new(4);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                start.wait();
                for i in 0..2_000 {
                    counter.inc();
                    if i % 4 == 0 {
                        histogram.observe(1.0);
                    }
                }
            });
        }
    });
    container.flush(SOON).unwrap();
    assert_eq!(ledger.counted.load(Ordering::SeqCst), 8_000);
    assert_eq!(counter.get_value(), 8_100);
    assert_eq!(ledger.observed.load(Ordering::SeqCst), 2_000);
}

/// A far end whose calls take until they are let go.
#[derive(Debug)]
struct Slow(Mutex<mpsc::Receiver<()>>, Arc<AtomicU64>);

#[derive(Debug)]
struct SlowMirror(&'static Slow);

impl Backend for &'static Slow {
    fn name(&self) -> &str {
        "slow"
    }

    fn mirrors(&self) -> bool {
        true
    }

    fn declare(&self, _: &Declared<'_>) -> Result<Option<Box<dyn Mirror>>, BackendError> {
        Ok(Some(Box::new(SlowMirror(self))))
    }
}

impl Mirror for SlowMirror {
    fn observe(&self, _: f64) {
        if self.0.1.fetch_add(1, Ordering::SeqCst) == 0 {
            let _ = self.0.0.lock().unwrap().recv();
        }
    }

    fn inc(&self, _: u64) {
        panic!("out of paper");
    }
}

#[test]
fn a_thread_does_not_wait_for_a_far_end_that_another_one_is_at() {
    let (let_go, held) = mpsc::channel();
    let told = Arc::new(AtomicU64::new(0));
    let slow: &'static Slow = Box::leak(Box::new(Slow(Mutex::new(held), told.clone())));
    let container = BackendContainer::with_backend(&MetricBus::new(), "", Arc::new(slow)).unwrap();
    let histogram = container
        .create_histogram("h", "H.", &[], Buckets::default())
        .unwrap();
    thread::scope(|scope| {
        scope.spawn(|| histogram.observe(1.0));
        while told.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
        // The other thread is at it until it is let go; this one comes through all the same.
        for _ in 0..10_000 {
            histogram.observe(2.0);
        }
        let late = container.flush(Duration::from_millis(2)).unwrap_err();
        let_go.send(()).unwrap();
        assert!(
            late.to_string()
                .starts_with("backend \"slow\" was not done within 1ms: 1 series"),
            "{late}"
        );
    });
    container.flush(SOON).unwrap();
    // What can wait is bounded, and what is more is counted.
    let dropped = own(container.bus(), "metricbus_backend_dropped_total");
    assert_eq!(told.load(Ordering::SeqCst) as f64 + dropped, 10_001.0);
    assert_eq!(dropped, 10_000.0 - 8_192.0);
    assert_eq!(histogram.get_count(), 10_001);
}

/// Counts one more whenever it is told of one, so that there is always something left to tell.
#[derive(Debug, Default)]
struct Restless {
    counter: OnceLock<Counter>,
    told: AtomicU64,
    rests: AtomicBool,
}

#[derive(Debug)]
struct RestlessMirror(&'static Restless);

impl Backend for &'static Restless {
    fn name(&self) -> &str {
        "restless"
    }

    fn mirrors(&self) -> bool {
        true
    }

    fn declare(&self, _: &Declared<'_>) -> Result<Option<Box<dyn Mirror>>, BackendError> {
        Ok(Some(Box::new(RestlessMirror(self))))
    }
}

impl Mirror for RestlessMirror {
    fn inc(&self, by: u64) {
        self.0.told.fetch_add(by, Ordering::SeqCst);
        if !self.0.rests.load(Ordering::SeqCst) {
            self.0.counter.get().unwrap().inc();
        }
    }
}

#[test]
fn a_flush_waits_for_what_was_before_it_and_not_for_rest() {
    let restless: &'static Restless = Box::leak(Box::default());
    let container =
        BackendContainer::with_backend(&MetricBus::new(), "", Arc::new(restless)).unwrap();
    let counter: Counter = container.bus().counter("c_total", "C.").unwrap();
    restless.counter.set(counter.clone()).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| counter.inc_by(1_000));
        while restless.told.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
        for _ in 0..10 {
            let before = counter.get();
            container.flush(SOON).unwrap();
            assert!(restless.told.load(Ordering::SeqCst) >= before);
        }
        restless.rests.store(true, Ordering::SeqCst);
    });
    container.flush(SOON).unwrap();
    assert_eq!(restless.told.load(Ordering::SeqCst), counter.get());
}

#[test]
fn a_backend_that_panics_harms_nobody() {
    let (_let_go, held) = mpsc::channel();
    let slow: &'static Slow = Box::leak(Box::new(Slow(Mutex::new(held), Arc::default())));
    let container = BackendContainer::with_backend(&MetricBus::new(), "", Arc::new(slow)).unwrap();
    let counter = container.create_counter("c_total", "C.", &[]).unwrap();
    counter.inc();
    counter.inc();
    assert_eq!(counter.get_value(), 2);
    container.flush(SOON).unwrap();
    assert_eq!(
        own(container.bus(), "metricbus_backend_panicked_total"),
        2.0
    );
}

/// What the bus says of itself.
fn own(bus: &MetricBus, name: &str) -> f64 {
    let families = bus.self_families();
    let family = families.iter().find(|family| family.name == name).unwrap();
    match family.series[0].value {
        SampleValue::Counter(value) => value.as_f64(),
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn what_a_backend_refuses_is_an_error_with_its_words() {
    let ledger = Arc::new(Ledger {
        refuses: Some("c_total"),
        ..Ledger::default()
    });
    let bus = MetricBus::new();
    let container =
        BackendContainer::with_backend(&bus, "", Arc::new(Book(ledger.clone()))).unwrap();
    let error = container.create_counter("c_total", "C.", &[]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "metric \"c_total\": the backend refused it: no page is left"
    );
    // Made on the bus, it counts there.
    let counter = bus.counter("c_total", "C.").unwrap();
    counter.inc();
    assert_eq!(counter.get(), 1);
    assert_eq!(own(&bus, "metricbus_backend_refused_total"), 1.0);
    assert_eq!(ledger.lines(), [""; 0]);
}

#[test]
fn removed_and_expired_series_are_told_to_the_far_end() {
    let clock = Clock::manual();
    let bus = MetricBus::builder().clock(clock.clone()).build();
    let ledger = Arc::new(Ledger::default());
    let container =
        BackendContainer::with_backend(&bus, "", Arc::new(Book(ledger.clone()))).unwrap();
    let family = container
        .create_counter_family("c_total", "C.", &[], &["worker"])
        .unwrap();
    family.with_label_values(&["a"]).unwrap().inc();
    family.with_label_values(&["b"]).unwrap().inc();
    assert!(family.remove(&["a"]).unwrap());
    assert_eq!(bus.remove("c_total").unwrap(), 1);
    // It begins anew.
    let again = family.with_label_values(&["a"]).unwrap();
    again.inc_by(3);
    assert_eq!(again.get_value(), 103);
    let told: Vec<String> = ledger
        .lines()
        .into_iter()
        .filter(|l| !l.contains(" is a "))
        .collect();
    assert_eq!(
        told,
        [
            "c_total[worker=a] +1",
            "c_total[worker=b] +1",
            "c_total[worker=a] is gone",
            "c_total[worker=b] is gone",
            "c_total[worker=a] +3",
        ]
    );
}

#[test]
fn a_mirror_may_mutate_the_bus_itself() {
    /// Answers each mutation of `a_total` with one of `b_total`, and that with nothing.
    #[derive(Debug)]
    struct Echo(Counter);
    #[derive(Debug)]
    struct EchoMirror(Option<Counter>);
    impl Backend for Echo {
        fn name(&self) -> &str {
            "echo"
        }
        fn mirrors(&self) -> bool {
            true
        }
        fn declare(&self, series: &Declared<'_>) -> Result<Option<Box<dyn Mirror>>, BackendError> {
            let answer = (series.name == "a_total").then(|| self.0.clone());
            Ok(Some(Box::new(EchoMirror(answer))))
        }
    }
    impl Mirror for EchoMirror {
        fn inc(&self, by: u64) {
            if let Some(answer) = &self.0 {
                answer.inc_by(by);
            }
        }
    }
    let bus = MetricBus::new();
    let b = bus.counter("b_total", "B.").unwrap();
    let container = BackendContainer::with_backend(&bus, "", Arc::new(Echo(b.clone()))).unwrap();
    let a = container.create_counter("a_total", "A.", &[]).unwrap();
    a.inc_by(3);
    assert_eq!(b.get(), 3);
}

#[derive(Debug)]
struct Failing(&'static str, Mutex<Vec<&'static str>>);

impl Backend for Failing {
    fn name(&self) -> &str {
        self.0
    }

    fn attach(&self, _: &MetricBus) -> Result<(), BackendError> {
        self.1.lock().unwrap().push("attach");
        match self.0 {
            "broken" => Err(BackendError::other(self.0, "nobody is there")),
            _ => Ok(()),
        }
    }

    fn flush(&self, _: Duration) -> Result<(), BackendError> {
        self.1.lock().unwrap().push("flush");
        Err(BackendError::other(self.0, "the line is busy"))
    }

    fn shutdown(&self, _: Duration) -> Result<(), BackendError> {
        self.1.lock().unwrap().push("shutdown");
        Ok(())
    }
}

#[test]
fn all_of_a_tee_are_flushed_though_one_fails() {
    let one = Arc::new(Failing("one", Mutex::default()));
    let two = Arc::new(Failing("two", Mutex::default()));
    let tee = TeeContainer::new("", [one.clone() as Arc<dyn Backend>, two.clone()]).unwrap();
    let error = tee.flush(SOON).unwrap_err();
    assert_eq!(
        error.to_string(),
        "backend \"tee\": backend \"one\": the line is busy; backend \"two\": the line is busy"
    );
    tee.shutdown(SOON).unwrap();
    for backend in [one, two] {
        assert_eq!(*backend.1.lock().unwrap(), ["attach", "flush", "shutdown"]);
    }
}

#[test]
fn a_tee_that_can_not_be_made_leaves_no_backend_running() {
    let one = Arc::new(Failing("one", Mutex::default()));
    let broken = Arc::new(Failing("broken", Mutex::default()));
    let error = TeeContainer::new("", [one.clone() as Arc<dyn Backend>, broken]).unwrap_err();
    assert_eq!(error.to_string(), "backend \"broken\": nobody is there");
    assert_eq!(*one.1.lock().unwrap(), ["attach", "shutdown"]);
}

#[test]
fn a_tee_tells_all_that_mirror_once_per_mutation() {
    let (one, two) = (Arc::new(Ledger::default()), Arc::new(Ledger::default()));
    let tee = TeeContainer::new(
        "app",
        [
            Arc::new(Prometheus) as Arc<dyn Backend>,
            Arc::new(Book(one.clone())),
            Arc::new(Null),
            Arc::new(Book(two.clone())),
        ],
    )
    .unwrap();
    let counter = tee.create_counter("c_total", "C.", &[]).unwrap();
    counter.inc_by(2);
    assert_eq!(one.lines(), two.lines());
    assert_eq!(one.lines().last().unwrap(), "app_c_total[] +2");
    assert!(tee.export_prometheus().ends_with("\napp_c_total 2\n"));
    assert_eq!(counter.get_value(), 102);
    let names: Vec<_> = tee.backend().backends().iter().map(|b| b.name()).collect();
    assert_eq!(names, ["prometheus", "book", "null", "book"]);
}

#[test]
fn a_tee_declares_a_series_everywhere_or_nowhere() {
    let one = Arc::new(Ledger::default());
    let two = Arc::new(Ledger {
        refuses: Some("c_total"),
        ..Ledger::default()
    });
    let tee = Tee::new([
        Arc::new(Book(one.clone())) as Arc<dyn Backend>,
        Arc::new(Book(two)),
    ]);
    let container = BackendContainer::with_backend(&MetricBus::new(), "", Arc::new(tee)).unwrap();
    container.create_counter("c_total", "C.", &[]).unwrap_err();
    assert_eq!(one.lines().last().unwrap(), "c_total[] is gone");
}

/// The error of an environment.
fn refused(vars: &[(&str, &str)]) -> String {
    let vars = |name: &str| {
        let found = vars.iter().find(|(n, _)| *n == name);
        found.map(|(_, value)| (*value).to_owned())
    };
    Backends::new().from_vars(vars).unwrap_err().to_string()
}

#[test]
fn a_wrong_backend_is_an_error_that_lists_the_right_ones() {
    for (value, why) in [
        ("promethus", "nothing is called \"promethus\""),
        ("Prometheus", "nothing is called \"Prometheus\""),
        ("tee", "a tee is written \"tee:A,B\""),
        ("tee:", "a name is missing"),
        ("tee:prometheus,", "a name is missing"),
        ("tee:prometheus,tee:null", "a tee can't be in a tee"),
        ("tee:prometheus,stats", "nothing is called \"stats\""),
        (
            "tee:null,null",
            "\"null\" is there twice, and would be told everything twice",
        ),
    ] {
        let error = refused(&[("METRICBUS_BACKEND", value)]);
        let expected = format!(
            "METRICBUS_BACKEND is {value:?}, which names no backend: {why}; there are prometheus, "
        );
        assert!(error.starts_with(&expected), "{error}");
        assert!(
            error.contains("null") && error.ends_with("tee:A,B"),
            "{error}"
        );
    }
    assert_eq!(
        refused(&[("METRICBUS_BACKEND", "null:x")]),
        "METRICBUS_BACKEND is \"null:x\": null takes nothing after its name; \"null\" would be right"
    );
}

#[test]
fn a_wrong_prefix_is_an_error() {
    let error = refused(&[("METRICBUS_PREFIX", "my\"app")]);
    assert!(
        error
            .starts_with("METRICBUS_PREFIX is \"my\\\"app\": no metric's name can begin with it: "),
        "{error}"
    );
    assert!(refused(&[("METRICBUS_PREFIX", "metricbus_")]).contains("are the bus's own"));
}

#[test]
fn an_empty_environment_is_prometheus_without_a_prefix() {
    for vars in [None, Some(String::new())] {
        let base = Backends::new().from_vars(|_| vars.clone()).unwrap();
        base.container
            .create_gauge("up", "Up.", &[])
            .unwrap()
            .set(1.0);
        assert_eq!(
            base.container.export_prometheus(),
            "# HELP up Up.\n# TYPE up gauge\nup 1\n"
        );
    }
}

#[test]
fn a_backend_of_another_crate_is_asked_for_by_its_name() {
    let ledger = Arc::new(Ledger::default());
    let backends = {
        let ledger = ledger.clone();
        Backends::new().with("book", move |choice| {
            ledger.write(format!(
                "{:?} {:?} {} {:?}",
                choice.argument,
                choice.prefix,
                choice.service_name(),
                choice.var("BOOK_SIZE")
            ));
            Ok(Arc::new(Book(ledger.clone())))
        })
    };
    let vars = |name: &str| match name {
        "METRICBUS_BACKEND" => Some(" tee:null, book:/a:b ".to_owned()),
        "METRICBUS_PREFIX" => Some("app_".to_owned()),
        "BOOK_SIZE" => Some("A5".to_owned()),
        _ => None,
    };
    let base = backends.from_vars(vars).unwrap();
    base.container
        .create_counter("c_total", "C.", &[])
        .unwrap()
        .inc();
    assert_eq!(ledger.lines()[0], r#"Some("/a:b") "app_" app Some("A5")"#);
    assert_eq!(ledger.lines()[2], "app_c_total[] +1");
    assert_eq!(format!("{backends:?}").matches("book").count(), 1);
    assert_eq!(base.container.bus().unwrap().components()[0].name, "app");
}

/// A far end that panics whatever it is told, and whatever it is asked.
#[derive(Debug)]
struct Broken;

impl Backend for Broken {
    fn name(&self) -> &str {
        "broken_mirror"
    }

    fn mirrors(&self) -> bool {
        true
    }

    fn declare(&self, _: &Declared<'_>) -> Result<Option<Box<dyn Mirror>>, BackendError> {
        Ok(Some(Box::new(Broken)))
    }
}

impl Mirror for Broken {
    fn inc(&self, _: u64) {
        panic!("told");
    }

    fn read(&self) -> Option<SampleValue> {
        panic!("asked");
    }
}

#[test]
fn one_of_a_tee_that_panics_takes_nothing_from_the_others() {
    let ledger = Arc::new(Ledger::default());
    let backends = [
        Arc::new(Broken) as Arc<dyn Backend>,
        Arc::new(Book(ledger.clone())),
    ];
    let tee = TeeContainer::new("", backends).unwrap();
    let counter = tee.create_counter("c_total", "C.", &[]).unwrap();
    counter.inc_by(10);
    assert_eq!(ledger.counted.load(Ordering::SeqCst), 10);
    assert_eq!(counter.get_value(), 110);
    // Alone, it is asked in vain.
    let alone = BackendContainer::with_backend(&MetricBus::new(), "", Arc::new(Broken)).unwrap();
    let counter = alone.create_counter("c_total", "C.", &[]).unwrap();
    counter.inc();
    assert_eq!(counter.get_value(), 1);
}

/// Takes as long as it is given, but for what is told it.
#[derive(Debug)]
struct Dead(&'static str);

impl Backend for Dead {
    fn name(&self) -> &str {
        self.0
    }

    fn shutdown(&self, deadline: Duration) -> Result<(), BackendError> {
        Err(BackendError::other(self.0, format!("had {deadline:?}")))
    }
}

#[test]
fn each_of_a_tee_has_the_whole_deadline_and_all_failures_are_named() {
    let backends = [
        Arc::new(Dead("one")) as Arc<dyn Backend>,
        Arc::new(Dead("two")),
    ];
    let tee = TeeContainer::new("", backends).unwrap();
    assert_eq!(
        tee.shutdown(SOON).unwrap_err().to_string(),
        "backend \"tee\": backend \"one\": had 20s; backend \"two\": had 20s"
    );
}

#[test]
fn a_metric_is_mirrored_for_as_long_as_it_is_held() {
    let (ledger, container) = book();
    let counter = container.create_counter("c_total", "C.", &[]).unwrap();
    counter.inc();
    drop(container);
    counter.inc_by(10);
    assert_eq!(counter.get_value(), 111);
    assert_eq!(ledger.counted.load(Ordering::SeqCst), 11);
}

#[test]
fn the_largest_step_of_a_counter_is_told() {
    let (ledger, container) = book();
    let counter = container.create_counter("c_total", "C.", &[]).unwrap();
    counter.inc_by(u64::MAX - 5);
    assert_eq!(ledger.counted.load(Ordering::SeqCst), u64::MAX - 5);
}

#[test]
fn a_flush_waits_for_series_that_were_removed() {
    let (let_go, held) = mpsc::channel();
    let told = Arc::new(AtomicU64::new(0));
    let slow: &'static Slow = Box::leak(Box::new(Slow(Mutex::new(held), told.clone())));
    let container = BackendContainer::with_backend(&MetricBus::new(), "", Arc::new(slow)).unwrap();
    let histogram = container
        .create_histogram("h", "H.", &[], Buckets::default())
        .unwrap();
    thread::scope(|scope| {
        scope.spawn(|| histogram.observe(1.0));
        while told.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
        histogram.observe(2.0);
        container.bus().remove("h").unwrap();
        let late = container.flush(Duration::from_millis(2));
        let_go.send(()).unwrap();
        late.unwrap_err();
    });
    container.flush(SOON).unwrap();
    assert_eq!(told.load(Ordering::SeqCst), 2);
}

#[test]
fn after_a_shutdown_the_far_end_is_told_nothing_more() {
    let (ledger, container) = book();
    let jobs = container
        .create_counter("jobs_total", "Jobs.", &[])
        .unwrap();
    jobs.inc();
    container.shutdown(SOON).unwrap();
    let lines = ledger.lines();
    assert_eq!(lines.len(), 2, "{lines:?}");
    jobs.inc_by(4);
    let depth = container.create_gauge("depth", "Depth.", &[]).unwrap();
    depth.set(2.0);
    container.bus().remove("app_jobs_total").unwrap();
    assert_eq!(ledger.lines(), lines);
    // The bus counts on.
    assert_eq!(depth.get_value(), 2.0);
    container.flush(SOON).unwrap();
    container.shutdown(SOON).unwrap();
}

#[test]
fn looking_up_a_child_takes_no_room_from_observations() {
    let (let_go, held) = mpsc::channel();
    let told = Arc::new(AtomicU64::new(0));
    let slow: &'static Slow = Box::leak(Box::new(Slow(Mutex::new(held), told.clone())));
    let container = BackendContainer::with_backend(&MetricBus::new(), "", Arc::new(slow)).unwrap();
    let family = container
        .create_histogram_family("h", "H.", &[], &["i"], Buckets::default())
        .unwrap();
    let child = family.with_label_values(&["a"]).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| child.observe(1.0));
        while told.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
        for _ in 0..8_000 {
            child.observe(2.0);
            family.with_label_values(&["a"]).unwrap();
        }
        let_go.send(()).unwrap();
    });
    container.flush(SOON).unwrap();
    assert_eq!(told.load(Ordering::SeqCst), 8_001);
}

#[test]
fn two_backends_of_one_name_are_one_series_of_what_is_counted_of_them() {
    let bus = MetricBus::new();
    let [one, two] = [(); 2].map(|()| {
        let book = Arc::new(Book(Arc::new(Ledger::default())));
        BackendContainer::with_backend(&bus, "", book).unwrap()
    });
    one.create_counter("c_total", "C.", &[]).unwrap().inc();
    let families = bus.self_families();
    let family = families
        .iter()
        .find(|family| family.name == "metricbus_backend_mirrored_total")
        .unwrap();
    assert_eq!(family.series.len(), 1);
    assert_eq!(own(&bus, "metricbus_backend_mirrored_total"), 2.0);
    drop(two);
}
