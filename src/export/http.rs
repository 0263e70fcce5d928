//! The exporter as a tower service: routes, what goes into a scrape, and how scrapes that come at once share the work.
//!
//! # A scrape
//!
//! 1. The collect hooks run, and merged registries are gathered, all at once and each until its deadline.
//! 2. The scrape joins the next batch for its format and encoding, or begins one. A batch starts when one of the few
//!    places for encoding is free; from then on it takes no more scrapes. So everyone gets values read after the
//!    request came, while any number of scrapes at once costs a few encodings, and the memory of a few bodies. Clients
//!    that read slowly hold on to older ones; from 64 MiB (or eight bodies) on further scrapes are refused with 503.
//! 3. The batch is encoded on the blocking pool, off the async workers, into buffers that come back when the last
//!    client has read its answer.
//!
//! `/rules` is written on the blocking pool, too, by itself each time, and a few at once at most; its buffers and their
//! bound are its own, so that neither stands in the way of the other.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    convert::Infallible,
    fmt,
    future::Future,
    io::Write,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{
        ALLOW, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, VARY,
        X_CONTENT_TYPE_OPTIONS,
    },
};
use http_body_util::Full;
use tokio::{
    runtime::Handle,
    sync::{Semaphore, watch},
    task::{JoinError, spawn_blocking},
};

use super::{
    collect::{Job, lock},
    foreign::Foreign,
    health::{self, Check, CheckResult},
    join_all,
    negotiate::{self, Encoding, Wanted},
    own::Own,
    process,
    rules::{self, Query},
    server::Limits,
    text::{self, Format, Style},
};
use crate::{MetricBus, desc::exposed_names};

/// How long a health check may take. Kubernetes waits one second for a probe, unless told otherwise.
const CHECK_DEADLINE: Duration = Duration::from_millis(500);

/// How long gathering a merged registry may take.
#[cfg(feature = "prometheus")]
const MERGE_DEADLINE: Duration = Duration::from_secs(1);

/// How long a scrape may take altogether; far above Prometheus's own patience (10 s by default).
const SCRAPE_DEADLINE: Duration = Duration::from_secs(30);

/// Buffers kept for the next scrapes, and the largest that is kept.
const BUFFERS_MAX: usize = 4;
const BUFFER_BYTES_MAX: usize = 64 << 20;

/// What slow clients may hold of earlier answers, as bodies or as bytes, whichever is more, before a scrape is refused.
const LENT_BODIES: usize = 8;
const LENT_BYTES: usize = 64 << 20;

/// Answers about rules that are written at a time.
const RULE_WRITERS: usize = 2;

/// Names of families left out that are remembered, so that each is logged once.
const TOLD_MAX: usize = 1_000;

const PATHS: &str = "/metrics\n/rules\n/health\n/live\n";

const PAGE: &str = "<!doctype html>\n\
<html lang=\"en\"><head><meta charset=\"utf-8\"><title>metricbus</title></head><body>\n\
<h1>metricbus</h1>\n\
<ul>\n\
<li><a href=\"metrics\">metrics</a>: Prometheus text 0.0.4, or OpenMetrics 1.0 or protobuf where it is asked for</li>\n\
<li><a href=\"rules\">rules</a>: how each rule stands, what it last said, and which have never matched anything; JSON</li>\n\
<li><a href=\"health\">health</a>: whether all checks pass</li>\n\
<li><a href=\"live\">live</a>: whether the process answers</li>\n\
</ul>\n\
</body></html>\n";

/// Serves a bus over HTTP: `/metrics`, `/rules`, `/health`, `/live`.
///
/// It is a [tower service](tower_service::Service), so it mounts in axum, hyper or tonic, and it is a
/// [server of its own](Exporter::serve) where there is none. Clones share everything.
///
/// - `GET /metrics`: every family of the bus, what was merged, `process_*` (on Linux) and `metricbus_*`. Prometheus text
///   0.0.4, or OpenMetrics 1.0 or protobuf for a client that names it in `Accept`; gzip for one that takes it.
///   `?name[]=requests_total&name[]=…` asks for the samples of these names only, as text.
/// - `GET /rules`: JSON that says of each rule what it watches, how it stands, and what it said last. See
///   [below](#rules).
/// - `GET /health`: 200 where all checks pass, else 503; JSON that names each check and its error.
/// - `GET /live`: 200, if anything answers at all.
///
/// Other paths are 404, other methods than GET and HEAD 405. A family has one name and one type: where a merged registry
/// or `process_*` has a name that the bus has too, the bus's stays, the other is left out, counted in
/// `metricbus_exporter_skipped_families_total`, and logged once. A single series of a merged registry that would break the
/// format is left out alone, and counted in `metricbus_exporter_skipped_series_total`.
///
/// # Rules
///
/// `/rules` answers with `now`, the `rules` sorted by name, and `rules_left_out`: those that would begin behind 16 MiB.
/// Fields that Prometheus's `/api/v1/rules` has, too, have its names. Dates are RFC 3339 in UTC, durations are seconds,
/// and numbers that JSON does not have are text: `"NaN"`, `"+Inf"`, `"-Inf"`. `null` is no data.
///
/// | of a rule | |
/// |---|---|
/// | `name`, `labels`, `annotations`, `conditions`, `thresholds`, `hold_for`, `keep_firing_for`, `m_of_n`, `every`, `grouping`, `by`, `dry_run` | as the rule was [made](crate::Rule); `type` is `metric` |
/// | `state` | the gravest of its groups: `inactive`, `pending`, `clearing` or `firing` |
/// | `note` | only where there is reason for one: no series has ever matched, or none does now, and which metric may have been meant; a dry run |
/// | `groups` | how many are in each state |
/// | `series`, `ever_matched` | how many series match now, and whether any ever has |
/// | `value`, `lastEvaluation`, `since_evaluation` | what was judged last, and when |
/// | `fired`, `resolved`, `missed`, `hung` | alerts, those dropped from full mailboxes, and how often a callback was said to hang |
/// | `alerts` | groups that are not inactive, the gravest first, 1 000 at most: `state`, `level`, `labels`, `value` (that which turned it last), `quality`, `activeAt` and `active_for` (since when the condition holds), `epoch`, and the `annotations` filled in |
/// | `groups_left_out` | how many more there are |
/// | `history` | its last transitions, the newest first: `at`, `state`, `level`, `previous_level`, `group`, `value`, `quality`, `cause`, `epoch` |
///
/// `?rule=NAME` and `?state=firing` choose rules by name and by `state`; each can be given more than once. `?history=N`
/// gives so many transitions of each rule: 10 unless told otherwise, at most 1 000, and no more than the rule
/// [remembers](crate::Rule::history). Any other question is answered with 400, and what would be right.
///
/// On `/metrics` each rule has `metricbus_rule_groups` by `state`, `metricbus_rule_value`, `metricbus_rule_threshold` by `bound`,
/// `metricbus_rule_series`, `metricbus_rule_since_evaluation_seconds`, `metricbus_rule_fired_total`, `metricbus_rule_resolved_total` and
/// `metricbus_rule_missed_total`; beyond 2 000 rules the others are counted in `metricbus_rules_left_out`. `metricbus_rules_unmatched` is the number of rules that have never matched a
/// series; alert on it.
///
/// # Where it runs
///
/// It has to be called inside a tokio runtime, or it answers 503; one without timers makes it panic. Clones share the work
/// of a scrape: where they serve on several runtimes, one that stands still holds up the scrapes that joined it.
///
/// ```
/// use http::Request;
/// use http_body_util::BodyExt;
/// use metricbus::{MetricBus, export::Exporter};
/// use tower_service::Service;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let bus = MetricBus::new();
/// bus.counter("requests_total", "Requests.")?.inc();
///
/// let mut exporter = Exporter::new(&bus);
/// let response = exporter.call(Request::get("/metrics").body(())?).await?;
/// let body = response.into_body().collect().await?.to_bytes();
/// assert!(std::str::from_utf8(&body)?.contains("\nrequests_total 1\n"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Exporter {
    pub(super) inner: Arc<Inner>,
    /// Whether paths that lead nowhere lead to the metrics.
    everywhere: bool,
}

pub(super) struct Inner {
    bus: MetricBus,
    checks: Vec<Check>,
    hooks: Vec<Job<()>>,
    sources: Vec<Job<Arc<Foreign>>>,
    process_metrics: bool,
    /// Of whatever format.
    style: Style,
    pub(super) limits: Limits,
    pub(super) own: Own,
    /// How many batches may be encoded at a time.
    encoders: Arc<Semaphore>,
    /// For each format and encoding, the batch that has not started yet.
    batches: Mutex<HashMap<(Wanted, Encoding), Batch>>,
    buffers: Arc<Buffers>,
    /// The same for `/rules`.
    rule_writers: Arc<Semaphore>,
    rule_buffers: Arc<Buffers>,
    told: Mutex<HashSet<String>>,
}

/// Options of an [`Exporter`].
///
/// ```
/// use std::time::Duration;
/// use metricbus::{MetricBus, export::Exporter};
///
/// let bus = MetricBus::new();
/// let free = bus.gauge("disk_free_bytes", "Free space on the disk.")?;
/// let exporter = Exporter::builder(&bus)
///     .check("disk", || Ok(()))
///     .collect_hook("disk", Duration::from_millis(200), move || free.set(1e9))
///     .connections_max(64)
///     .build();
/// # let _ = exporter;
/// # Ok::<(), metricbus::DeclareError>(())
/// ```
#[must_use]
pub struct ExporterBuilder {
    bus: MetricBus,
    checks: Vec<(String, Box<dyn FnMut() -> CheckResult + Send>)>,
    check_deadline: Duration,
    hooks: Vec<Job<()>>,
    sources: Vec<Job<Arc<Foreign>>>,
    process_metrics: bool,
    style: Style,
    limits: Limits,
}

impl Exporter {
    /// An exporter of this bus, with no checks and no hooks.
    ///
    /// ```
    /// let exporter = metricbus::export::Exporter::new(&metricbus::MetricBus::new());
    /// # let _ = exporter;
    /// ```
    pub fn new(bus: &MetricBus) -> Self {
        Exporter::builder(bus).build()
    }

    /// An exporter with checks, hooks, or limits of its own.
    ///
    /// ```
    /// use metricbus::{MetricBus, export::Exporter};
    ///
    /// let exporter = Exporter::builder(&MetricBus::new())
    ///     .check("model", || Err("weights are not loaded yet".into()))
    ///     .build();
    /// # let _ = exporter;
    /// ```
    pub fn builder(bus: &MetricBus) -> ExporterBuilder {
        ExporterBuilder {
            bus: bus.clone(),
            checks: Vec::new(),
            check_deadline: CHECK_DEADLINE,
            hooks: Vec::new(),
            sources: Vec::new(),
            process_metrics: true,
            style: Style::of(Format::default()),
            limits: Limits::default(),
        }
    }

    /// The bus.
    ///
    /// ```
    /// use metricbus::{MetricBus, export::Exporter};
    ///
    /// let exporter = Exporter::new(&MetricBus::new());
    /// exporter.bus().gauge("ready", "Whether all is set up.")?.set(1.0);
    /// # Ok::<(), metricbus::DeclareError>(())
    /// ```
    pub fn bus(&self) -> &MetricBus {
        &self.inner.bus
    }

    /// This exporter, but with the metrics also under `/` and all other paths that lead nowhere, as Prometheus's client for
    /// Python serves them. `/rules`, `/health` and `/live` stay what they are, and `/stream` and `/api/` are not taken.
    ///
    /// ```
    /// # use http::Request;
    /// # use metricbus::{MetricBus, export::Exporter};
    /// # use tower_service::Service;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let mut exporter = Exporter::new(&MetricBus::new()).metrics_on_every_path();
    /// let answer = exporter.call(Request::get("/").body(())?).await?;
    /// assert_eq!(answer.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn metrics_on_every_path(mut self) -> Exporter {
        self.everywhere = true;
        self
    }
}

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exporter")
            .field("checks", &self.inner.checks.len())
            .field("hooks", &self.inner.hooks.len())
            .field("sources", &self.inner.sources.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ExporterBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExporterBuilder")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl ExporterBuilder {
    /// A check for `/health`. It runs on a thread of its own, for each request anew, and may block; one that panics or
    /// isn't done in time (500 ms, see [`check_deadline`](Self::check_deadline)) has failed. Of two checks with one name
    /// the second replaces the first.
    ///
    /// ```
    /// # use metricbus::{MetricBus, export::Exporter};
    /// let exporter = Exporter::builder(&MetricBus::new())
    ///     .check("cache dir", || {
    ///         std::fs::metadata("/tmp")?;
    ///         Ok(())
    ///     })
    ///     .build();
    /// # let _ = exporter;
    /// ```
    pub fn check(
        mut self,
        name: impl Into<String>,
        check: impl FnMut() -> Result<(), Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
    ) -> Self {
        let name = name.into();
        self.checks.retain(|(n, _)| *n != name);
        self.checks.push((name, Box::new(check)));
        self
    }

    /// How long each check may take. They run side by side, so `/health` takes no longer than this.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use metricbus::{MetricBus, export::Exporter};
    /// let builder = Exporter::builder(&MetricBus::new()).check_deadline(Duration::from_secs(2));
    /// # let _ = builder;
    /// ```
    pub fn check_deadline(mut self, deadline: Duration) -> Self {
        self.check_deadline = deadline;
        self
    }

    /// Runs `hook` before each scrape, to set metrics that are only worth measuring when somebody looks.
    ///
    /// It has a thread of its own and may block. All hooks run side by side; a scrape waits until they are done, or
    /// until their `deadline`. A hook that hangs is not started again while it runs, and from its deadline on no scrape
    /// waits for it (`metricbus_exporter_hook_timeouts_total`, `_hook_skips_total`). One that panics is caught
    /// (`metricbus_exporter_hook_failures_total`) and runs again with the next scrape. Scrapes at the same time share
    /// one run. A scrape as a whole is given up after 30 s, with 503. Of two hooks with one name the second replaces the
    /// first.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use metricbus::{MetricBus, export::Exporter};
    /// let bus = MetricBus::new();
    /// let sessions = bus.gauge("sessions", "Open sessions.")?;
    /// let exporter = Exporter::builder(&bus)
    ///     .collect_hook("sessions", Duration::from_millis(100), move || sessions.set(3.0))
    ///     .build();
    /// # let _ = exporter;
    /// # Ok::<(), metricbus::DeclareError>(())
    /// ```
    pub fn collect_hook(
        mut self,
        name: impl Into<String>,
        deadline: Duration,
        hook: impl FnMut() + Send + 'static,
    ) -> Self {
        let name = name.into();
        self.hooks.retain(|hook| hook.name != name);
        self.hooks.push(Job::new(name, deadline, hook));
        self
    }

    /// Exposes what is registered with a registry of the `prometheus` crate too, now or later.
    ///
    /// It is gathered like a [collect hook](Self::collect_hook) with a deadline of one second, named `registry-0`,
    /// `registry-1` … Names that the bus has are left out, and so are families that would break the format: a custom
    /// collector can give anything. Of a family's types only `UNTYPED` is not taken; timestamps are not passed on.
    ///
    /// ```
    /// # use metricbus::{MetricBus, export::Exporter};
    /// let registry = prometheus::Registry::new();
    /// let jobs = prometheus::IntCounter::new("jobs_total", "Jobs.")?;
    /// registry.register(Box::new(jobs.clone()))?;
    ///
    /// let exporter = Exporter::builder(&MetricBus::new()).merge(registry).build();
    /// # let _ = exporter;
    /// # Ok::<(), prometheus::Error>(())
    /// ```
    #[cfg(feature = "prometheus")]
    pub fn merge(mut self, registry: prometheus::Registry) -> Self {
        let name = format!("registry-{}", self.sources.len());
        let gather = move || Arc::new(super::bridge::gather(&registry));
        self.sources.push(Job::new(name, MERGE_DEADLINE, gather));
        self
    }

    /// Whether `process_*` is exposed: it is, unless this says `false`.
    ///
    /// ```
    /// # use metricbus::{MetricBus, export::Exporter};
    /// let builder = Exporter::builder(&MetricBus::new()).process_metrics(false);
    /// # let _ = builder;
    /// ```
    pub fn process_metrics(mut self, exposed: bool) -> Self {
        self.process_metrics = exposed;
        self
    }

    /// Whether OpenMetrics has a line `NAME_created` for each counter and histogram of the bus, which says since when it
    /// counts (protobuf always says so): no, unless this says `true`. A Prometheus before 3, or one without its feature
    /// `created-timestamp-zero-ingestion`, stores each of them as one more series.
    ///
    /// ```
    /// # use metricbus::{MetricBus, export::Exporter};
    /// let builder = Exporter::builder(&MetricBus::new()).created_lines(true);
    /// # let _ = builder;
    /// ```
    pub fn created_lines(mut self, written: bool) -> Self {
        self.style.created = written;
        self
    }

    /// The most exponential buckets that one series of a [native](crate::Desc::native) histogram has in a scrape (160).
    /// There are 32 to the octave where that is enough, and otherwise half of it, or a quarter, and so on down to one for
    /// 16 octaves; each halving doubles the error of quantiles, which is 1.1 % at first. 160 buckets are 5 octaves at
    /// full resolution; latencies from a millisecond to a minute span 16, and need 512.
    ///
    /// ```
    /// # use metricbus::{MetricBus, export::Exporter};
    /// let builder = Exporter::builder(&MetricBus::new()).native_buckets_max(512);
    /// # let _ = builder;
    /// ```
    pub fn native_buckets_max(mut self, buckets: usize) -> Self {
        self.style.native_buckets_max = buckets;
        self
    }

    /// The most connections that [`serve`](Exporter::serve) has open at once (1 024; at least 1). Further ones wait in
    /// the kernel's accept queue. When the limit is reached, idle connections are closed to make room.
    ///
    /// ```
    /// # use metricbus::{MetricBus, export::Exporter};
    /// let builder = Exporter::builder(&MetricBus::new()).connections_max(32);
    /// # let _ = builder;
    /// ```
    pub fn connections_max(mut self, connections: usize) -> Self {
        self.limits.connections = connections.clamp(1, u32::MAX as usize >> 3);
        self
    }

    /// The largest request head, in bytes (16 KiB; at least 8 KiB). A larger one is answered with 431.
    ///
    /// ```
    /// # use metricbus::{MetricBus, export::Exporter};
    /// let builder = Exporter::builder(&MetricBus::new()).head_bytes_max(64 * 1024);
    /// # let _ = builder;
    /// ```
    pub fn head_bytes_max(mut self, bytes: usize) -> Self {
        self.limits.head_bytes = bytes.max(Limits::HEAD_BYTES_MIN);
        self
    }

    /// How long a client may take to send a request's head (5 s), from the connection's beginning or the request's first
    /// byte.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use metricbus::{MetricBus, export::Exporter};
    /// let builder = Exporter::builder(&MetricBus::new()).head_timeout(Duration::from_secs(1));
    /// # let _ = builder;
    /// ```
    pub fn head_timeout(mut self, timeout: Duration) -> Self {
        self.limits.head = timeout;
        self
    }

    /// How long a connection may be kept open between requests (75 s).
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use metricbus::{MetricBus, export::Exporter};
    /// let builder = Exporter::builder(&MetricBus::new()).idle_timeout(Duration::from_secs(10));
    /// # let _ = builder;
    /// ```
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.limits.idle = timeout;
        self
    }

    /// How long a client may read nothing of its answer (10 s), and how long it may take for all of it (60 s).
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use metricbus::{MetricBus, export::Exporter};
    /// let builder = Exporter::builder(&MetricBus::new())
    ///     .write_timeouts(Duration::from_secs(2), Duration::from_secs(20));
    /// # let _ = builder;
    /// ```
    pub fn write_timeouts(mut self, stalled: Duration, total: Duration) -> Self {
        self.limits.stalled = stalled;
        self.limits.written = total;
        self
    }

    /// How long a shutdown waits for answers that are on their way (10 s) before it cuts the connections.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use metricbus::{MetricBus, export::Exporter};
    /// let builder = Exporter::builder(&MetricBus::new()).shutdown_deadline(Duration::from_secs(1));
    /// # let _ = builder;
    /// ```
    pub fn shutdown_deadline(mut self, deadline: Duration) -> Self {
        self.limits.shutdown = deadline;
        self
    }

    /// The exporter.
    ///
    /// ```
    /// # use metricbus::{MetricBus, export::Exporter};
    /// let exporter = Exporter::builder(&MetricBus::new()).build();
    /// # let _ = exporter;
    /// ```
    pub fn build(mut self) -> Exporter {
        self.limits.clamp();
        let deadline = self.check_deadline;
        let checks = self.checks.into_iter();
        // Encoding is bound by the processor: more at a time only take memory.
        let encoders = std::thread::available_parallelism()
            .map_or(2, |n| n.get())
            .clamp(1, 4);
        Exporter {
            everywhere: false,
            inner: Arc::new(Inner {
                bus: self.bus,
                checks: checks
                    .map(|(name, check)| health::check(name, deadline, check))
                    .collect(),
                hooks: self.hooks,
                sources: self.sources,
                process_metrics: self.process_metrics,
                style: self.style,
                limits: self.limits,
                own: Own::default(),
                encoders: Arc::new(Semaphore::new(encoders)),
                batches: Default::default(),
                buffers: Arc::default(),
                rule_writers: Arc::new(Semaphore::new(RULE_WRITERS)),
                rule_buffers: Arc::default(),
                told: Mutex::default(),
            }),
        }
    }
}

/// The answer of an [`Exporter`], on its way.
///
/// ```
/// # use http::Request;
/// # use metricbus::{MetricBus, export::{Exporter, ResponseFuture}};
/// # use tower_service::Service;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut exporter = Exporter::new(&MetricBus::new());
/// let answer: ResponseFuture = exporter.call(Request::get("/live").body(())?);
/// assert_eq!(answer.await?.status(), 200);
/// # Ok(())
/// # }
/// ```
#[must_use = "futures do nothing unless polled"]
pub struct ResponseFuture(Pin<Box<dyn Future<Output = Response<Full<Bytes>>> + Send>>);

impl Future for ResponseFuture {
    type Output = Result<Response<Full<Bytes>>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx).map(Ok)
    }
}

impl fmt::Debug for ResponseFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResponseFuture")
    }
}

impl<B> tower_service::Service<Request<B>> for Exporter {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = ResponseFuture;

    /// Always ready: scrapes wait for their batch, not for each other.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    /// A request's body is not read.
    fn call(&mut self, request: Request<B>) -> ResponseFuture {
        let inner = self.inner.clone();
        let path = request.uri().path();
        let mut route = Route::of(request.method(), path);
        let leads_nowhere = match route {
            Route::Page => true,
            Route::Unknown => path != "/stream" && !path.starts_with("/api/"),
            _ => false,
        };
        if self.everywhere && leads_nowhere {
            route = Route::Metrics;
        }
        let names = super::names::wanted(request.uri().query());
        let head_only = request.method() == Method::HEAD;
        let wanted = negotiate::wanted(request.headers());
        let encoding = negotiate::encoding(request.headers());
        let query = match route {
            Route::Rules => Query::parse(request.uri().query().unwrap_or_default()),
            _ => Ok(Query::default()),
        };
        ResponseFuture(Box::pin(async move {
            let mut response = match route {
                Route::Metrics => inner.metrics(wanted, encoding, &names).await,
                Route::Rules => inner.rules(query, encoding).await,
                Route::Health => inner.health().await,
                Route::Live => answer(StatusCode::OK, JSON, "{\"status\":\"ok\"}\n"),
                Route::Page => answer(StatusCode::OK, "text/html; charset=utf-8", PAGE),
                Route::Unknown => answer(
                    StatusCode::NOT_FOUND,
                    PLAIN,
                    format!("not found; there is:\n{PATHS}"),
                ),
                Route::Method => {
                    let text = "only GET and HEAD are answered here\n";
                    let mut response = answer(StatusCode::METHOD_NOT_ALLOWED, PLAIN, text);
                    response
                        .headers_mut()
                        .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
                    response
                }
            };
            if head_only {
                // The length stays in the header.
                *response.body_mut() = Full::default();
            }
            response
        }))
    }
}

enum Route {
    Metrics,
    Rules,
    Health,
    Live,
    Page,
    Unknown,
    Method,
}

impl Route {
    fn of(method: &Method, path: &str) -> Self {
        let route = match path {
            "/metrics" => Route::Metrics,
            "/rules" => Route::Rules,
            "/health" => Route::Health,
            "/live" => Route::Live,
            "/" | "" => Route::Page,
            _ => return Route::Unknown,
        };
        if method == Method::GET || method == Method::HEAD {
            route
        } else {
            Route::Method
        }
    }
}

const PLAIN: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

fn answer(
    status: StatusCode,
    kind: impl Into<Cow<'static, str>>,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let body = body.into();
    let length = HeaderValue::from(body.len());
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    let kind = match kind.into() {
        Cow::Borrowed(kind) => HeaderValue::from_static(kind),
        // Made of words of ours.
        Cow::Owned(kind) => HeaderValue::try_from(kind).unwrap_or(HeaderValue::from_static(PLAIN)),
    };
    headers.insert(CONTENT_TYPE, kind);
    headers.insert(CONTENT_LENGTH, length);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Why a scrape was not answered.
#[derive(Debug, thiserror::Error)]
enum ScrapeError {
    #[error("the exporter was called outside of a tokio runtime; call it inside one")]
    NoRuntime,
    #[error("not done within {SCRAPE_DEADLINE:?}: the runtime's blocking threads may all be taken")]
    Late,
    #[error("{0} bytes of earlier answers are still being read by slow clients; try again later")]
    Crowded(usize),
    #[error("the runtime is shutting down")]
    Closing,
    #[error("encoding panicked; this is a fault of metricbus")]
    Panicked,
}

impl ScrapeError {
    fn of_task(error: &JoinError) -> Self {
        if error.is_panic() {
            ScrapeError::Panicked
        } else {
            ScrapeError::Closing
        }
    }
}

/// What a batch of scrapes gets.
type Encoded = Result<Bytes, Arc<ScrapeError>>;

/// Scrapes that will get the same answer.
struct Batch {
    /// By source; the latest that a scrape of this batch has gathered.
    foreign: Arc<Mutex<Vec<Option<Arc<Foreign>>>>>,
    encoded: watch::Receiver<Option<Encoded>>,
}

impl Inner {
    async fn health(&self) -> Response<Full<Bytes>> {
        if Handle::try_current().is_err() {
            return self.no_answer(&ScrapeError::NoRuntime);
        }
        let (well, body) = health::report(&self.checks).await;
        let status = if well {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        answer(status, JSON, body)
    }

    async fn metrics(
        self: Arc<Self>,
        mut wanted: Wanted,
        mut encoding: Encoding,
        names: &[String],
    ) -> Response<Full<Bytes>> {
        if !names.is_empty() {
            // Chosen from the text.
            encoding = Encoding::Identity;
            if wanted.format == Format::Protobuf {
                wanted = Wanted::TEXT;
            }
        }
        let began = Instant::now();
        let encoded = match Handle::try_current() {
            Err(_) => Err(Arc::new(ScrapeError::NoRuntime)),
            Ok(_) => {
                match tokio::time::timeout(SCRAPE_DEADLINE, self.scrape(wanted, encoding)).await {
                    Ok(encoded) => encoded,
                    Err(_elapsed) => Err(Arc::new(ScrapeError::Late)),
                }
            }
        };
        let body = match encoded {
            Ok(body) if names.is_empty() => body,
            Ok(body) => super::names::only(&body, names),
            Err(error) => {
                self.own.scrapes_failed.fetch_add(1, Relaxed);
                return self.no_answer(&error);
            }
        };
        self.own.scraped(wanted.format, began.elapsed(), body.len());
        let mut response = answer(StatusCode::OK, wanted.content_type(), body);
        let headers = response.headers_mut();
        headers.insert(VARY, HeaderValue::from_static("accept, accept-encoding"));
        if encoding == Encoding::Gzip {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        response
    }

    async fn rules(
        self: Arc<Self>,
        query: Result<Query, rules::QueryError>,
        encoding: Encoding,
    ) -> Response<Full<Bytes>> {
        let asked = match query {
            Ok(query) => query,
            Err(error) => return answer(StatusCode::BAD_REQUEST, JSON, error.json()),
        };
        let written = match Handle::try_current() {
            Err(_) => Err(ScrapeError::NoRuntime),
            Ok(_) => {
                let inner = self.clone();
                let writing = inner.write_rules(asked, encoding);
                match tokio::time::timeout(SCRAPE_DEADLINE, writing).await {
                    Ok(written) => written,
                    Err(_elapsed) => Err(ScrapeError::Late),
                }
            }
        };
        let mut response = match written {
            Ok(Ok(body)) => answer(StatusCode::OK, JSON, body),
            Ok(Err(error)) => return answer(StatusCode::BAD_REQUEST, JSON, error.json()),
            Err(error) => return self.no_answer(&error),
        };
        let headers = response.headers_mut();
        headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
        if encoding == Encoding::Gzip {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        response
    }

    async fn write_rules(
        self: Arc<Self>,
        query: Query,
        encoding: Encoding,
    ) -> Result<Result<Bytes, rules::QueryError>, ScrapeError> {
        let permit = self.rule_writers.clone().acquire_owned().await;
        let writing = spawn_blocking(move || {
            let _permit = permit;
            self.rule_buffers.check()?;
            let mut text = Buffer::from(&self.rule_buffers);
            if let Err(error) = rules::write(&self.bus, &query, &mut text.bytes) {
                return Ok(Err(error));
            }
            let body = match encoding {
                Encoding::Identity => text,
                Encoding::Gzip => text.gzip(),
            };
            Ok(Ok(body.lend()))
        });
        writing
            .await
            .unwrap_or_else(|error| Err(ScrapeError::of_task(&error)))
    }

    fn no_answer(&self, error: &ScrapeError) -> Response<Full<Bytes>> {
        tracing::warn!(%error, "metricbus: a request was not answered");
        let status = match error {
            ScrapeError::Panicked => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        answer(status, PLAIN, format!("{error}\n"))
    }

    async fn scrape(self: &Arc<Self>, wanted: Wanted, encoding: Encoding) -> Encoded {
        let hooks = join_all(self.hooks.iter().map(Job::run));
        let sources = join_all(self.sources.iter().map(Job::run));
        let (_outcomes, foreign) = tokio::join!(hooks, sources);
        let foreign = foreign.into_iter().map(Result::ok).collect();
        let mut encoded = self.join_batch((wanted, encoding), foreign);
        match encoded.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(encoded)) => encoded.clone(),
            _ => Err(Arc::new(ScrapeError::Closing)),
        }
    }

    fn join_batch(
        self: &Arc<Self>,
        kind: (Wanted, Encoding),
        foreign: Vec<Option<Arc<Foreign>>>,
    ) -> watch::Receiver<Option<Encoded>> {
        let mut batches = lock(&self.batches);
        if let Some(batch) = batches.get(&kind)
            // Closed where the runtime that was to encode it is gone: another one may be running this.
            && batch.encoded.has_changed().is_ok()
        {
            for (kept, latest) in lock(&batch.foreign).iter_mut().zip(foreign) {
                if latest.is_some() {
                    *kept = latest;
                }
            }
            return batch.encoded.clone();
        }
        let (send, encoded) = watch::channel(None);
        let foreign = Arc::new(Mutex::new(foreign));
        let batch = Batch {
            foreign: foreign.clone(),
            encoded: encoded.clone(),
        };
        batches.insert(kind, batch);
        drop(batches);

        let inner = self.clone();
        let pending = encoded.clone();
        // A task of its own, so that the client that began the batch can leave it to the others.
        tokio::spawn(async move {
            let permit = inner.encoders.clone().acquire_owned().await;
            {
                let mut batches = lock(&inner.batches);
                if batches
                    .get(&kind)
                    .is_some_and(|batch| batch.encoded.same_channel(&pending))
                {
                    batches.remove(&kind);
                }
            }
            let done = spawn_blocking(move || {
                let _permit = permit;
                let foreign = std::mem::take(&mut *lock(&foreign));
                inner.encode(kind, &foreign)
            });
            let encoded = done
                .await
                .unwrap_or_else(|error| Err(Arc::new(ScrapeError::of_task(&error))));
            send.send_replace(Some(encoded));
        });
        encoded
    }

    /// The whole answer. Blocks the thread for as long as it takes.
    fn encode(
        &self,
        (wanted, encoding): (Wanted, Encoding),
        foreign: &[Option<Arc<Foreign>>],
    ) -> Encoded {
        self.buffers.check().map_err(Arc::new)?;
        let mut text = Buffer::from(&self.buffers);
        let style = Style {
            format: wanted.format,
            escaping: wanted.escaping.unwrap_or_default(),
            strict: wanted.strict,
            ..self.style
        };
        text::encode_as(&self.bus, style, &mut text.bytes);
        // Only now: a metric that is declared after this can't be in the text, and one declared before is known here.
        let mut taken = HashSet::new();
        let mut take = |name: &str, exposed: Vec<String>| {
            let free = exposed
                .iter()
                .all(|n| !taken.contains(n) && !self.bus.exposes(n));
            if free {
                taken.extend(exposed);
            } else {
                self.skipped(name, "its name, or that of one of its samples, is taken");
            }
            free
        };
        if self.process_metrics {
            let mut families = process::families();
            families.retain(|f| take(&f.name, exposed_names(&f.name, f.kind)));
            text::encode_families_as(&families, style, &mut text.bytes);
        }
        // Nobody else can have a name that begins like these.
        text::encode_families_as(&self.bus.self_families(), style, &mut text.bytes);
        for foreign in foreign.iter().flatten() {
            for family in &foreign.families {
                if take(&family.name, exposed_names(&family.name, family.kind)) {
                    text::encode_families_as(std::slice::from_ref(family), style, &mut text.bytes);
                }
            }
            for summary in &foreign.summaries {
                if take(&summary.name, summary.exposed_names()) {
                    summary.encode(style, &mut text.bytes);
                }
            }
            for (name, fault) in &foreign.unfit {
                self.skipped(name, fault);
            }
            for (name, fault) in &foreign.unfit_series {
                self.own.series_skipped.fetch_add(1, Relaxed);
                if self.is_new(&format!("a series of {name}")) {
                    tracing::warn!(
                        family = name,
                        why = fault,
                        "metricbus: series left out of the scrape"
                    );
                }
            }
        }
        // Last, with what was left out counted.
        let own = self.own.families(&self.hooks, &self.sources);
        text::encode_families_as(&own, style, &mut text.bytes);
        text::finish(wanted.format, &mut text.bytes);
        let body = match encoding {
            Encoding::Identity => text,
            Encoding::Gzip => text.gzip(),
        };
        Ok(body.lend())
    }

    /// Whether something is to be logged: each once.
    fn is_new(&self, what: &str) -> bool {
        let mut told = lock(&self.told);
        told.len() < TOLD_MAX && told.insert(what.to_owned())
    }

    fn skipped(&self, name: &str, why: &str) {
        self.own.families_skipped.fetch_add(1, Relaxed);
        if self.is_new(name) {
            tracing::warn!(
                family = name,
                why,
                "metricbus: family left out of the scrape"
            );
        }
    }
}

/// Buffers between two scrapes.
#[derive(Default)]
struct Buffers {
    kept: Mutex<Vec<Vec<u8>>>,
    /// Bytes of bodies that clients are still reading, and of the body encoded last.
    lent: AtomicUsize,
    last: AtomicUsize,
}

impl Buffers {
    /// Whether slow clients leave room for another body.
    fn check(&self) -> Result<(), ScrapeError> {
        let lent = self.lent.load(Relaxed);
        let last = self.last.load(Relaxed);
        if lent > last.saturating_mul(LENT_BODIES).max(LENT_BYTES) {
            return Err(ScrapeError::Crowded(lent));
        }
        Ok(())
    }
}

/// A buffer that goes back when the last response with its bytes is gone.
struct Buffer {
    bytes: Vec<u8>,
    /// How many of them are counted as lent.
    lent: usize,
    home: Arc<Buffers>,
}

impl Buffer {
    fn from(home: &Arc<Buffers>) -> Self {
        Buffer {
            bytes: lock(&home.kept).pop().unwrap_or_default(),
            lent: 0,
            home: home.clone(),
        }
    }

    fn lend(mut self) -> Bytes {
        self.lent = self.bytes.len();
        self.home.last.store(self.lent, Relaxed);
        self.home.lent.fetch_add(self.lent, Relaxed);
        Bytes::from_owner(self)
    }

    fn gzip(self) -> Buffer {
        let mut zipped = Buffer::from(&self.home);
        // The fastest level: the text repeats itself so much that the others gain little, and a scrape is waiting.
        let mut encoder = GzEncoder::new(&mut zipped.bytes, Compression::fast());
        // Writing into a Vec can't fail.
        let _ = encoder.write_all(&self.bytes);
        let _ = encoder.finish();
        zipped
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.home.lent.fetch_sub(self.lent, Relaxed);
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        let mut kept = lock(&self.home.kept);
        if kept.len() < BUFFERS_MAX && bytes.capacity() <= BUFFER_BYTES_MAX {
            kept.push(bytes);
        }
    }
}
