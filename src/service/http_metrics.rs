//! `HttpMetrics`: requests, their outcome and latency, of any HTTP server or client made of tower services.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use http::{Method, Request, Response, StatusCode};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    clock::Clock,
    desc::{Buckets, Desc},
    error::DeclareError,
    metric::{Counter, Family, Gauge, Histogram, InProgress},
    scope::Scope,
    time::Time,
};

/// Measures the requests that go through a service: a layer for any `Service<http::Request<B>>`, as those of axum, tonic
/// and hyper.
///
/// | metric | is |
/// |---|---|
/// | `http_requests_total{method, code}` | requests that have ended, by what came of them |
/// | `http_requests_in_flight` | requests being answered |
/// | `http_request_duration_seconds` | time from the call until the head of the response is there, or the request ended without one |
///
/// `method` is one of the nine of RFC 9110 and 5789, else `OTHER`. `code` is the class of the status (`2xx`), `error` where the
/// service failed or panicked, `cancelled` where the response was dropped before it was there (a client that went away, a
/// timeout above). So there are at most 80 series, whatever clients send. A request is in flight from the call until the
/// future of its response ends or is dropped; a body that is still streaming is not seen here. Each request that ended
/// is in the histogram, cancelled ones included: those are often the slow ones.
///
/// ```
/// use http::{Request, Response};
/// use metricbus::{MetricBus, service::HttpMetrics};
/// use tower::{BoxError, Service, ServiceBuilder, service_fn};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), BoxError> {
/// let bus = MetricBus::new();
/// let mut service = ServiceBuilder::new()
///     .layer(HttpMetrics::new(&bus.scope())?)
///     .service(service_fn(async |_request: Request<()>| Ok::<_, BoxError>(Response::new("hello"))));
///
/// service.call(Request::new(())).await?;
/// let requests = &bus.series(r#"http_requests_total{method="GET",code="2xx"}"#)?[0];
/// assert_eq!(requests.value(), Some(metricbus::Value::U64(1)));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct HttpMetrics {
    requests: Family<Counter>,
    in_flight: Gauge,
    duration: Histogram,
    clock: Clock,
}

impl HttpMetrics {
    /// Declares the metrics on `scope`, the histogram with [`Buckets::default`]. Layers of one scope count together.
    ///
    /// # Errors
    ///
    /// As [`Scope::declare`], such as when a label of the scope is called `method` or `code`.
    pub fn new(scope: &Scope) -> Result<Self, DeclareError> {
        HttpMetrics::with_buckets(scope, Buckets::default())
    }

    /// As [`new`](HttpMetrics::new), with the buckets of the histogram, in seconds.
    ///
    /// # Errors
    ///
    /// As [`Scope::declare`].
    pub fn with_buckets(scope: &Scope, buckets: Buckets) -> Result<Self, DeclareError> {
        Ok(HttpMetrics {
            requests: scope.family(
                Desc::new("http_requests_total", "HTTP requests that have ended.")
                    .labels(["method", "code"]),
            )?,
            in_flight: scope.gauge(
                "http_requests_in_flight",
                "HTTP requests that are being answered.",
            )?,
            duration: scope.declare(
                Desc::new(
                    "http_request_duration_seconds",
                    "Time until the head of the response, or the end of a request without one.",
                )
                .unit("seconds")
                .buckets(buckets),
            )?,
            clock: scope.bus().clock().clone(),
        })
    }
}

impl fmt::Debug for HttpMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HttpMetrics").field(&self.requests).finish()
    }
}

impl<S> Layer<S> for HttpMetrics {
    type Service = HttpMetricsService<S>;

    fn layer(&self, inner: S) -> HttpMetricsService<S> {
        HttpMetricsService {
            metrics: self.clone(),
            inner,
        }
    }
}

/// The service of [`HttpMetrics`]: answers as its inner one does, and is ready when that is.
#[derive(Clone, Debug)]
pub struct HttpMetricsService<S> {
    metrics: HttpMetrics,
    inner: S,
}

impl<S, B, R> Service<Request<B>> for HttpMetricsService<S>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = HttpMetricsFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let measured = Measured {
            method: known(request.method()),
            began: self.metrics.clock.now(),
            _in_flight: self.metrics.in_flight.track_inprogress(),
            metrics: self.metrics.clone(),
            code: None,
        };
        HttpMetricsFuture {
            response: self.inner.call(request),
            measured: Some(measured),
        }
    }
}

pin_project! {
    /// The future of an [`HttpMetricsService`].
    pub struct HttpMetricsFuture<F> {
        #[pin]
        response: F,
        measured: Option<Measured>,
    }
}

impl<F, R, E> Future for HttpMetricsFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        // What a panic leaves behind, should this be dropped only after it.
        if let Some(measured) = this.measured {
            measured.code = Some(ERROR);
        }
        let polled = this.response.poll(cx);
        if let Some(measured) = this.measured {
            measured.code = match &polled {
                Poll::Pending => None,
                Poll::Ready(Ok(response)) => Some(class(response.status())),
                Poll::Ready(Err(_)) => Some(ERROR),
            };
        }
        if polled.is_ready() {
            *this.measured = None;
        }
        polled
    }
}

impl<F> fmt::Debug for HttpMetricsFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HttpMetricsFuture")
    }
}

const ERROR: &str = "error";
const CANCELLED: &str = "cancelled";

/// A request under way; counted when this is dropped, however that comes about.
struct Measured {
    method: &'static str,
    began: Time,
    metrics: HttpMetrics,
    _in_flight: InProgress,
    code: Option<&'static str>,
}

impl Drop for Measured {
    fn drop(&mut self) {
        let without_answer = if std::thread::panicking() {
            ERROR
        } else {
            CANCELLED
        };
        let code = self.code.unwrap_or(without_answer);
        let metrics = &self.metrics;
        // There are two labels, and two values for them.
        if let Ok(requests) = metrics.requests.with_label_values(&[self.method, code]) {
            requests.inc();
        }
        let took = metrics.clock.now().since(self.began);
        metrics.duration.observe(took.as_secs_f64());
    }
}

fn known(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        "CONNECT" => "CONNECT",
        "OPTIONS" => "OPTIONS",
        "TRACE" => "TRACE",
        "PATCH" => "PATCH",
        _ => "OTHER",
    }
}

fn class(status: StatusCode) -> &'static str {
    match status.as_u16() / 100 {
        1 => "1xx",
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        5 => "5xx",
        // HTTP has no others; the type allows up to 999.
        _ => "other",
    }
}
