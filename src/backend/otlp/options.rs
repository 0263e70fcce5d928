//! What an exporter is told: in code, or by OpenTelemetry's environment variables. Checked in full before anything is
//! started, so that a typing error is an error, and only the network is waited for.

use std::{env, fmt, path::PathBuf, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use percent_encoding::percent_decode_str;

use crate::{
    backend::BackendError,
    client::{Reach, check_url, redacted},
};

/// How often metrics are exported unless told otherwise; OpenTelemetry's default.
const INTERVAL: Duration = Duration::from_secs(60);
/// For one request.
const TIMEOUT: Duration = Duration::from_secs(10);
/// For one batch, with all its retries.
const GIVE_UP_AFTER: Duration = Duration::from_secs(300);
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);
const BATCH_POINTS: usize = 8_192;
const QUEUE_BYTES: usize = 32 << 20;
/// OpenTelemetry's default for exponential histograms.
const BUCKETS_MAX: usize = 160;
/// What "no limit" is taken for: nothing here waits for ever.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// How metrics travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OtlpProtocol {
    /// Protobuf in HTTP/1.1 requests: port 4318, usually.
    #[default]
    HttpProtobuf,
    /// gRPC: port 4317, usually. Needs the feature `otlp-grpc`.
    Grpc,
}

/// What a point of a counter or a histogram counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OtlpTemporality {
    /// Everything since the series was made. A point that is lost is made up for by the next one.
    #[default]
    Cumulative,
    /// What has come since the point before. A series without anything new has no point.
    Delta,
    /// As OpenTelemetry defines it: delta for counters and histograms, which are all that have a temporality here. So it
    /// is the same as `Delta`.
    LowMemory,
}

/// In which form histograms are exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OtlpHistograms {
    /// With the buckets they were declared with.
    #[default]
    Explicit,
    /// With base-2 exponential buckets: quantiles to about 1 % at any magnitude, whatever the declared buckets are.
    ///
    /// The buckets are kept from the moment at which the exporter is attached. What a histogram observed before is left
    /// out of its points, whose start time is that moment then; attach the exporter before, or declare histograms as
    /// [native](crate::Desc::native), which keeps the buckets from birth.
    Exponential,
}

/// How requests are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OtlpCompression {
    /// Not at all.
    #[default]
    None,
    /// With gzip: about a tenth of the bytes, for some milliseconds of the exporter's own thread.
    Gzip,
}

/// Where metrics are exported to, and how.
///
/// Nothing is opened or read before an exporter is started with it, and a wrong value is told then.
///
/// ```
/// use std::time::Duration;
/// use metricbus::backend::{OtlpCompression, OtlpOptions, OtlpTemporality};
///
/// let options = OtlpOptions::new()
///     .endpoint("https://collector.example.com:4318")
///     .header("authorization", "Bearer s3cr3t")
///     .service_name("decode")
///     .interval(Duration::from_secs(10))
///     .temporality(OtlpTemporality::Delta)
///     .compression(OtlpCompression::Gzip);
/// assert!(!format!("{options:?}").contains("s3cr3t"));
/// ```
#[derive(Clone)]
#[must_use]
pub struct OtlpOptions {
    endpoint: Option<String>,
    /// As it is, without a path to be added.
    metrics_endpoint: Option<String>,
    /// The variables that they came from, for errors.
    endpoint_origin: &'static str,
    /// Whether an endpoint without a scheme is reached without TLS.
    insecure: Option<bool>,
    protocol: OtlpProtocol,
    headers: Vec<(String, String)>,
    timeout: Duration,
    give_up_after: Duration,
    compression: OtlpCompression,
    interval: Duration,
    temporality: OtlpTemporality,
    histograms: OtlpHistograms,
    buckets_max: usize,
    attributes: Vec<(String, String)>,
    service_name: Option<String>,
    root_certificates: Vec<PathBuf>,
    client_certificate: Option<(PathBuf, PathBuf)>,
    /// The variables that files came from, for errors.
    files: Vec<String>,
    batch_points: usize,
    queue_bytes: usize,
    retry_first: Duration,
    retry_max: Duration,
    own_metrics: bool,
    before_collect: Option<Hook>,
    disabled: bool,
}

/// What runs before metrics are read.
#[derive(Clone)]
pub(super) struct Hook(pub(super) Arc<dyn Fn() + Send + Sync>);

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hook")
    }
}

/// Checked.
#[derive(Clone, Debug)]
pub(super) struct Ready {
    pub(super) url: Uri,
    pub(super) grpc: bool,
    pub(super) headers: HeaderMap,
    pub(super) timeout: Duration,
    pub(super) give_up_after: Duration,
    pub(super) gzip: bool,
    pub(super) interval: Duration,
    pub(super) delta: bool,
    /// The most buckets of an exponential histogram; `None` for explicit ones.
    pub(super) exponential: Option<usize>,
    pub(super) resource: Vec<(String, String)>,
    pub(super) reach: Reach,
    /// The variables that its files came from.
    pub(super) files: Vec<String>,
    pub(super) batch_points: usize,
    pub(super) queue_bytes: usize,
    pub(super) retry_first: Duration,
    pub(super) retry_max: Duration,
    pub(super) own_metrics: bool,
    pub(super) before_collect: Option<Hook>,
    pub(super) disabled: bool,
}

impl Default for OtlpOptions {
    fn default() -> Self {
        OtlpOptions::new()
    }
}

fn setting(name: &str, value: &str, why: impl Into<String>) -> BackendError {
    BackendError::Setting {
        setting: name.to_owned(),
        value: value.to_owned(),
        why: why.into(),
    }
}

impl OtlpOptions {
    /// To a collector on this machine, as OpenTelemetry's defaults have it: `http://localhost:4318/v1/metrics`, HTTP with
    /// protobuf, each minute, cumulative, explicit buckets. The environment is not looked at.
    pub fn new() -> OtlpOptions {
        OtlpOptions {
            endpoint: None,
            metrics_endpoint: None,
            endpoint_origin: "endpoint",
            insecure: None,
            protocol: OtlpProtocol::default(),
            headers: Vec::new(),
            timeout: TIMEOUT,
            give_up_after: GIVE_UP_AFTER,
            compression: OtlpCompression::default(),
            interval: INTERVAL,
            temporality: OtlpTemporality::default(),
            histograms: OtlpHistograms::default(),
            buckets_max: BUCKETS_MAX,
            attributes: Vec::new(),
            service_name: None,
            root_certificates: Vec::new(),
            client_certificate: None,
            files: Vec::new(),
            batch_points: BATCH_POINTS,
            queue_bytes: QUEUE_BYTES,
            retry_first: RETRY_FIRST,
            retry_max: RETRY_MAX,
            own_metrics: false,
            before_collect: None,
            disabled: false,
        }
    }

    /// As the environment says, with OpenTelemetry's variables:
    ///
    /// | variable | as |
    /// |---|---|
    /// | `OTEL_EXPORTER_OTLP_ENDPOINT` | [`endpoint`](Self::endpoint) |
    /// | `OTEL_EXPORTER_OTLP_METRICS_ENDPOINT` | [`metrics_endpoint`](Self::metrics_endpoint) |
    /// | `OTEL_EXPORTER_OTLP_INSECURE` | `true` or `false`: whether a gRPC endpoint without a scheme is reached without TLS |
    /// | `OTEL_EXPORTER_OTLP_PROTOCOL` | [`protocol`](Self::protocol): `http/protobuf` or `grpc` |
    /// | `OTEL_EXPORTER_OTLP_HEADERS` | [`header`](Self::header): `name=value,name=value`, values percent-encoded |
    /// | `OTEL_EXPORTER_OTLP_TIMEOUT` | [`timeout`](Self::timeout), in milliseconds; 0 is no limit (a day) |
    /// | `OTEL_EXPORTER_OTLP_COMPRESSION` | [`compression`](Self::compression): `gzip` or `none` |
    /// | `OTEL_EXPORTER_OTLP_CERTIFICATE` | [`root_certificates`](Self::root_certificates) |
    /// | `OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE`, `…_CLIENT_KEY` | [`client_certificate`](Self::client_certificate) |
    /// | `OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE` | [`temporality`](Self::temporality): `cumulative`, `delta` or `lowmemory` |
    /// | `OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION` | [`histograms`](Self::histograms): `explicit_bucket_histogram` or `base2_exponential_bucket_histogram` |
    /// | `OTEL_RESOURCE_ATTRIBUTES` | [`resource_attribute`](Self::resource_attribute): `key=value,key=value`, percent-encoded |
    /// | `OTEL_SERVICE_NAME` | [`service_name`](Self::service_name) |
    /// | `OTEL_METRIC_EXPORT_INTERVAL` | [`interval`](Self::interval), in milliseconds |
    /// | `OTEL_METRIC_EXPORT_TIMEOUT` | [`give_up_after`](Self::give_up_after), in milliseconds; 0 is no limit (a day) |
    /// | `OTEL_SDK_DISABLED` | `true`: nothing is exported |
    ///
    /// Those that begin with `OTEL_EXPORTER_OTLP_` also exist for metrics alone, as `OTEL_EXPORTER_OTLP_METRICS_…`, which
    /// then count instead of the general ones. An empty variable counts as one that is not set. So does, with a warning in
    /// the log, one with a word or a number that is not known, as OpenTelemetry has it; a switch counts as `false` then.
    ///
    /// # Errors
    ///
    /// An endpoint, headers or certificates that can't be used, since metrics would go to somebody else or without what
    /// opens the door; `grpc` without the feature `otlp-grpc`; a variable that is not Unicode. The error names the variable, and what
    /// would be right.
    pub fn from_env() -> Result<OtlpOptions, BackendError> {
        let not_unicode = std::cell::RefCell::new(None);
        let options = OtlpOptions::from_vars(|name| match env::var(name) {
            Ok(value) => Some(value),
            Err(env::VarError::NotPresent) => None,
            Err(env::VarError::NotUnicode(_)) => {
                *not_unicode.borrow_mut() = Some(setting(name, "…", "it is not UTF-8"));
                None
            }
        });
        match not_unicode.into_inner() {
            Some(error) => Err(error),
            None => options,
        }
    }

    /// As [`from_env`](Self::from_env), with variables that come from elsewhere.
    ///
    /// # Errors
    ///
    /// As `from_env`.
    ///
    /// ```
    /// use metricbus::backend::OtlpOptions;
    ///
    /// let wrong = OtlpOptions::from_vars(|name| {
    ///     (name == "OTEL_EXPORTER_OTLP_ENDPOINT").then(|| "collector".to_owned())
    /// });
    /// let error = wrong.unwrap_err().to_string();
    /// assert!(error.starts_with(r#"OTEL_EXPORTER_OTLP_ENDPOINT is "collector": "#), "{error}");
    /// assert!(error.contains("http://localhost:4318"), "{error}");
    /// ```
    pub fn from_vars(vars: impl Fn(&str) -> Option<String>) -> Result<OtlpOptions, BackendError> {
        let var = |name: &str| vars(name).filter(|value| !value.trim().is_empty());
        // That of metrics, else that of all signals; with its name.
        let of_signal = |suffix: &str| {
            let names = [
                format!("OTEL_EXPORTER_OTLP_METRICS_{suffix}"),
                format!("OTEL_EXPORTER_OTLP_{suffix}"),
            ];
            names
                .into_iter()
                .find_map(|name| var(&name).map(|value| (name, value.trim().to_owned())))
        };
        let mut options = OtlpOptions::new();

        if let Some((name, value)) = of_signal("PROTOCOL") {
            match &*value.to_ascii_lowercase() {
                "http/protobuf" => options.protocol = OtlpProtocol::HttpProtobuf,
                "grpc" if cfg!(feature = "otlp-grpc") => options.protocol = OtlpProtocol::Grpc,
                "grpc" => return Err(setting(&name, &value, NO_GRPC)),
                _ => ignored(&name, &value, PROTOCOLS),
            }
        }
        if let Some((name, value)) = of_signal("INSECURE") {
            options.insecure = Some(boolean(&name, &value));
        }
        const OF_METRICS: &str = "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT";
        const OF_ALL: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
        if let Some(url) = var(OF_METRICS) {
            options = options.metrics_endpoint(url.trim());
            options.endpoint_origin = OF_METRICS;
            options.url()?;
        } else if let Some(url) = var(OF_ALL) {
            options = options.endpoint(url.trim());
            options.endpoint_origin = OF_ALL;
            options.url()?;
        }
        if let Some((name, value)) = of_signal("HEADERS") {
            for (header, value) in pairs(&name, &value, true)? {
                check_header(&name, &header, &value)?;
                options = options.header(header, value);
            }
        }
        if let Some((name, value)) = of_signal("TIMEOUT") {
            options.timeout = millis(&name, &value, true).unwrap_or(options.timeout);
        }
        if let Some((name, value)) = of_signal("COMPRESSION") {
            match &*value.to_ascii_lowercase() {
                "gzip" => options.compression = OtlpCompression::Gzip,
                "none" => options.compression = OtlpCompression::None,
                _ => ignored(&name, &value, "\"gzip\" or \"none\""),
            }
        }
        if let Some((name, path)) = of_signal("CERTIFICATE") {
            options = options.root_certificates(path);
            options.files.push(name);
        }
        options.client_certificate =
            match (of_signal("CLIENT_CERTIFICATE"), of_signal("CLIENT_KEY")) {
                (Some((of_certificate, certificate)), Some((of_key, key))) => {
                    options.files.extend([of_certificate, of_key]);
                    Some((certificate.into(), key.into()))
                }
                (None, None) => None,
                (Some((name, value)), None) | (None, Some((name, value))) => {
                    let other = match name.strip_suffix("KEY") {
                        Some(stem) => format!("{stem}CERTIFICATE"),
                        None => name.replace("CERTIFICATE", "KEY"),
                    };
                    let why = format!("{other} is not set: set both, or neither");
                    return Err(setting(&name, &value, why));
                }
            };
        let name = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE";
        if let Some(value) = var(name) {
            match &*value.trim().to_ascii_lowercase() {
                "cumulative" => options.temporality = OtlpTemporality::Cumulative,
                "delta" => options.temporality = OtlpTemporality::Delta,
                "lowmemory" => options.temporality = OtlpTemporality::LowMemory,
                _ => ignored(name, &value, "\"cumulative\", \"delta\" or \"lowmemory\""),
            }
        }
        let name = "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION";
        if let Some(value) = var(name) {
            match &*value.trim().to_ascii_lowercase() {
                "explicit_bucket_histogram" => options.histograms = OtlpHistograms::Explicit,
                "base2_exponential_bucket_histogram" => {
                    options.histograms = OtlpHistograms::Exponential;
                }
                _ => ignored(
                    name,
                    &value,
                    "\"explicit_bucket_histogram\" or \"base2_exponential_bucket_histogram\"",
                ),
            }
        }
        let name = "OTEL_RESOURCE_ATTRIBUTES";
        if let Some(value) = var(name) {
            match pairs(name, &value, false) {
                Ok(pairs) => {
                    for (key, value) in pairs {
                        options = options.resource_attribute(key, value);
                    }
                }
                Err(error) => tracing::warn!("metricbus: {error}; the variable is ignored"),
            }
        }
        options.service_name = var("OTEL_SERVICE_NAME");
        let name = "OTEL_METRIC_EXPORT_INTERVAL";
        if let Some(value) = var(name) {
            options.interval = millis(name, &value, false).unwrap_or(options.interval);
        }
        let name = "OTEL_METRIC_EXPORT_TIMEOUT";
        if let Some(value) = var(name) {
            options.give_up_after = millis(name, &value, true).unwrap_or(options.give_up_after);
        }
        let name = "OTEL_SDK_DISABLED";
        if let Some(value) = var(name) {
            options.disabled = boolean(name, &value);
        }
        Ok(options)
    }

    /// The collector's URL, to which `/v1/metrics` is added for HTTP: `http://localhost:4318`, or `http://localhost:4317`
    /// for gRPC, unless told otherwise. For gRPC a host and a port (`collector:4317`), or a port of this machine (`:4317`), will do: without
    /// a scheme, TLS is used but for this machine, unless `OTEL_EXPORTER_OTLP_INSECURE` says something else.
    pub fn endpoint(mut self, url: impl Into<String>) -> Self {
        self.endpoint = Some(url.into());
        self.endpoint_origin = "endpoint";
        self.metrics_endpoint = None;
        self
    }

    /// The URL for metrics as it is: nothing is added. In place of [`endpoint`](Self::endpoint).
    pub fn metrics_endpoint(mut self, url: impl Into<String>) -> Self {
        self.metrics_endpoint = Some(url.into());
        self.endpoint_origin = "metrics_endpoint";
        self
    }

    /// How metrics travel; HTTP with protobuf unless told otherwise.
    pub fn protocol(mut self, protocol: OtlpProtocol) -> Self {
        self.protocol = protocol;
        self
    }

    /// A header of each request, such as `authorization`; for gRPC it is metadata. One that was given before is replaced.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        let name = name.into();
        self.headers
            .retain(|(other, _)| !other.eq_ignore_ascii_case(&name));
        self.headers.push((name, value.into()));
        self
    }

    /// For how long an answer to one request is waited for; 10 s unless told otherwise. One that has not come then is
    /// tried again.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// For how long a batch is tried, retries included, before it is dropped and counted; 5 min unless told otherwise.
    ///
    /// OpenTelemetry's own SDKs give up after 30 s, and lose what was counted while a collector was being replaced where
    /// the temporality is delta.
    pub fn give_up_after(mut self, time: Duration) -> Self {
        self.give_up_after = time;
        self
    }

    /// Whether requests are compressed; they are not unless told otherwise.
    pub fn compression(mut self, compression: OtlpCompression) -> Self {
        self.compression = compression;
        self
    }

    /// How often metrics are exported; each minute unless told otherwise, and at least each millisecond.
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Runs `hook` each time before metrics are read, for an interval as for a flush, to set what is only worth measuring when
    /// somebody looks. Nothing runs unless told otherwise; of two hooks the later one counts.
    ///
    /// It runs on the exporter's thread, which sends nothing meanwhile, and for which
    /// [`shutdown`](super::OtlpExporter::shutdown) waits: so it must be quick, or give up after a time of its own, and must
    /// not flush the exporter. A panic in it is caught and logged, and metrics are read as they are then.
    ///
    /// ```
    /// use std::{sync::Arc, time::Duration};
    /// use metricbus::{MetricBus, backend::{OtlpExporter, OtlpOptions}};
    ///
    /// let bus = MetricBus::new();
    /// let threads = bus.gauge("threads", "Threads that may run at a time.")?;
    /// let measured = threads.clone();
    /// let hook = move || measured.set(std::thread::available_parallelism().map_or(1.0, |n| n.get() as f64));
    /// let options = OtlpOptions::new().endpoint("http://127.0.0.1:9").before_collect(Arc::new(hook));
    /// let exporter = OtlpExporter::start(&bus, options)?;
    /// // Nobody listens there, but it was measured.
    /// exporter.shutdown(Duration::from_secs(1)).unwrap_err();
    /// assert!(threads.get() >= Some(1.0));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn before_collect(mut self, hook: Arc<dyn Fn() + Send + Sync>) -> Self {
        self.before_collect = Some(Hook(hook));
        self
    }

    /// What points of counters and histograms count; all since the series was made unless told otherwise.
    pub fn temporality(mut self, temporality: OtlpTemporality) -> Self {
        self.temporality = temporality;
        self
    }

    /// In which form histograms are exported; with their own buckets unless told otherwise.
    pub fn histograms(mut self, histograms: OtlpHistograms) -> Self {
        self.histograms = histograms;
        self
    }

    /// How many buckets an exponential histogram has at most, on each side of zero: 160 unless told otherwise, and at
    /// least 4. Data that spans more is put into wider ones.
    pub fn buckets_max(mut self, buckets: usize) -> Self {
        self.buckets_max = buckets;
        self
    }

    /// An attribute of the resource, that is of all that is exported: `deployment.environment.name`. One that was given
    /// before is replaced.
    ///
    /// `telemetry.sdk.name`, `.language` and `.version` are there anyway, and so is `service.instance.id`: a random UUID
    /// unless given here.
    pub fn resource_attribute(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        let key = key.into();
        self.attributes.retain(|(other, _)| *other != key);
        self.attributes.push((key, value.into()));
        self
    }

    /// The attribute `service.name`, before one that was given as [`resource_attribute`](Self::resource_attribute);
    /// `unknown_service:` and the name of the program where there is none.
    pub fn service_name(mut self, name: impl Into<String>) -> Self {
        self.service_name = Some(name.into());
        self
    }

    /// As [`service_name`](Self::service_name), where neither that nor an attribute `service.name` was given. An empty one is
    /// none.
    ///
    /// ```
    /// use metricbus::backend::OtlpOptions;
    ///
    /// let options = OtlpOptions::new().service_name("decode").service_name_or("myapp");
    /// assert!(format!("{options:?}").contains("decode"));
    /// ```
    pub fn service_name_or(self, name: &str) -> Self {
        let given = self.attributes.iter().any(|(key, _)| key == SERVICE_NAME);
        if name.is_empty() || given || self.service_name.is_some() {
            return self;
        }
        self.service_name(name)
    }

    /// A PEM file with the certificates of those who may vouch for the collector, in place of the system's. May be called
    /// several times.
    pub fn root_certificates(mut self, path: impl Into<PathBuf>) -> Self {
        self.root_certificates.push(path.into());
        self
    }

    /// PEM files with the certificate to show to the collector, with those in between, and its key.
    pub fn client_certificate(
        mut self,
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Self {
        self.client_certificate = Some((certificate.into(), key.into()));
        self
    }

    /// How many points a request has at most; 8 192 unless told otherwise. It also has at most about 3 MiB (a gRPC server
    /// takes 4 unless told otherwise).
    pub fn batch_points(mut self, points: usize) -> Self {
        self.batch_points = points;
        self
    }

    /// How many bytes may wait to be sent; 32 MiB unless told otherwise. What is too much is dropped, the oldest first,
    /// and counted. Deltas are not: they stay in their metrics until there is room.
    pub fn queue_bytes(mut self, bytes: usize) -> Self {
        self.queue_bytes = bytes;
        self
    }

    /// How long is waited before a first retry, and before one at most: 1 s and 30 s unless told otherwise. Each wait is
    /// twice the one before, less a random part of up to a half. Where the collector says how long to wait, that counts.
    pub fn retry(mut self, first: Duration, max: Duration) -> Self {
        self.retry_first = first;
        self.retry_max = max;
        self
    }

    /// Whether what the bus counts of itself (`metricbus_*`) is exported, too; it is not unless told otherwise.
    pub fn own_metrics(mut self, export: bool) -> Self {
        self.own_metrics = export;
        self
    }

    fn url(&self) -> Result<Uri, BackendError> {
        let grpc = self.protocol == OtlpProtocol::Grpc;
        let given = self.metrics_endpoint.as_ref().or(self.endpoint.as_ref());
        let url = match given {
            Some(url) if grpc => grpc_url(url.trim(), self.insecure),
            Some(url) => url.trim().to_owned(),
            None if grpc => "http://localhost:4317".to_owned(),
            None => "http://localhost:4318".to_owned(),
        };
        let wrong = |why: String| setting(self.endpoint_origin, &redacted(&url), why);
        let check = |text: &str| {
            check_url(text).map_err(|error| match error {
                crate::client::ClientError::Url { why, .. } => wrong(why),
                other => wrong(other.to_string()),
            })
        };
        let parsed = check(&url)?;
        if grpc {
            if parsed.path() != "/" || parsed.query().is_some() {
                return Err(wrong(
                    "gRPC has a path of its own; http://localhost:4317 would be right".to_owned(),
                ));
            }
            let (scheme, authority) = (parsed.scheme_str(), parsed.authority());
            let base = format!(
                "{}://{}{GRPC_PATH}",
                scheme.unwrap_or("http"),
                authority.map_or("", |a| a.as_str()),
            );
            return check(&base);
        }
        if self.metrics_endpoint.is_some() {
            return Ok(parsed);
        }
        if parsed.query().is_some() {
            return Err(wrong(
                "\"/v1/metrics\" is added to it, and so it can't have a query".to_owned(),
            ));
        }
        check(&format!("{}/v1/metrics", url.trim_end_matches('/')))
    }

    /// Checks everything that can be checked without the network and the files.
    pub(super) fn ready(&self) -> Result<Ready, BackendError> {
        if self.protocol == OtlpProtocol::Grpc && !cfg!(feature = "otlp-grpc") {
            return Err(setting("protocol", "Grpc", NO_GRPC));
        }
        let url = self.url()?;
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            let (name, value) = check_header("header", name, value)?;
            headers.insert(name, value);
        }
        for (name, value) in [
            ("interval", self.interval),
            ("timeout", self.timeout),
            ("give_up_after", self.give_up_after),
            ("retry", self.retry_first),
        ] {
            if value < Duration::from_millis(1) {
                let why = "it must be at least 1ms";
                return Err(setting(name, &format!("{value:?}"), why));
            }
        }
        if self.retry_max < self.retry_first {
            let (first, max) = (self.retry_first, self.retry_max);
            let why = "the longest wait is shorter than the first one";
            return Err(setting("retry", &format!("{first:?}, {max:?}"), why));
        }
        for (name, value, least) in [
            ("batch_points", self.batch_points, 1),
            ("queue_bytes", self.queue_bytes, 64 * 1024),
            ("buckets_max", self.buckets_max, 4),
        ] {
            if value < least {
                let why = format!("it must be at least {least}");
                return Err(setting(name, &value.to_string(), why));
            }
        }
        Ok(Ready {
            url,
            grpc: self.protocol == OtlpProtocol::Grpc,
            headers,
            timeout: self.timeout.min(LONGEST),
            give_up_after: self.give_up_after.min(LONGEST),
            gzip: self.compression == OtlpCompression::Gzip,
            interval: self.interval,
            delta: self.temporality != OtlpTemporality::Cumulative,
            exponential: (self.histograms == OtlpHistograms::Exponential)
                .then_some(self.buckets_max),
            resource: self.resource(),
            reach: Reach {
                roots: self.root_certificates.clone(),
                client_certificate: self.client_certificate.clone(),
                http2: self.protocol == OtlpProtocol::Grpc,
            },
            files: self.files.clone(),
            batch_points: self.batch_points,
            queue_bytes: self.queue_bytes,
            retry_first: self.retry_first.min(LONGEST),
            retry_max: self.retry_max.min(LONGEST),
            own_metrics: self.own_metrics,
            before_collect: self.before_collect.clone(),
            disabled: self.disabled,
        })
    }

    /// All attributes, sorted by key.
    fn resource(&self) -> Vec<(String, String)> {
        let mut all: std::collections::BTreeMap<String, String> = [
            ("telemetry.sdk.name", "metricbus".to_owned()),
            ("telemetry.sdk.language", "rust".to_owned()),
            (
                "telemetry.sdk.version",
                env!("CARGO_PKG_VERSION").to_owned(),
            ),
            ("service.instance.id", uuid()),
            (SERVICE_NAME, unknown_service()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into();
        all.extend(self.attributes.iter().cloned());
        if let Some(name) = &self.service_name {
            all.insert(SERVICE_NAME.to_owned(), name.clone());
        }
        all.into_iter().collect()
    }
}

const SERVICE_NAME: &str = "service.name";
const GRPC_PATH: &str = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";
const NO_GRPC: &str = "this program was built without metricbus's feature \"otlp-grpc\"; \"http/protobuf\" would be right";
const PROTOCOLS: &str = if cfg!(feature = "otlp-grpc") {
    "\"http/protobuf\" or \"grpc\""
} else {
    "\"http/protobuf\""
};

fn unknown_service() -> String {
    let program = env::current_exe().ok();
    let name = program.as_ref().and_then(|path| path.file_name());
    match name {
        Some(name) => format!("unknown_service:{}", name.to_string_lossy()),
        None => "unknown_service".to_owned(),
    }
}

/// A random one, version 4.
fn uuid() -> String {
    let (a, b) = (super::random(), super::random());
    format!(
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        a >> 32,
        (a >> 16) & 0xffff,
        a & 0xfff,
        0x8000 | (b >> 50),
        b & 0xffff_ffff_ffff,
    )
}

/// A word or a number that is not known. OpenTelemetry has it that a variable which can't be understood is warned of, and counts as
/// one that is not set: a deployment's setting for other programs must not keep this one from starting.
fn ignored(name: &str, value: &str, right: &str) {
    tracing::warn!("metricbus: {name} is {value:?}, which is ignored; {right} would be right");
}

/// Whatever is not `true` is `false`.
fn boolean(name: &str, value: &str) -> bool {
    let value = value.trim();
    if !value.eq_ignore_ascii_case("true") && !value.eq_ignore_ascii_case("false") {
        ignored(name, value, "\"true\" or \"false\" (as which it counts)");
    }
    value.eq_ignore_ascii_case("true")
}

fn millis(name: &str, value: &str, zero_is_endless: bool) -> Option<Duration> {
    match value.trim().parse::<u64>() {
        Ok(0) if zero_is_endless => Some(LONGEST),
        Ok(millis) if millis > 0 => Some(Duration::from_millis(millis)),
        _ => {
            let right = "a whole number of milliseconds, such as 10000,";
            ignored(name, value, right);
            None
        }
    }
}

/// What a gRPC client takes as an endpoint, as a URL: `collector:4317`, `:4317` and `4317` have no scheme. As OpenTelemetry has it, they are
/// reached by TLS unless `insecure`; on this machine, where no collector has a certificate, without it unless `insecure` is `false`.
fn grpc_url(given: &str, insecure: Option<bool>) -> String {
    if given.contains("://") {
        return given.to_owned();
    }
    let authority = match given.strip_prefix(':') {
        Some(port) => format!("localhost:{port}"),
        None if given.parse::<u16>().is_ok() => format!("localhost:{given}"),
        None => given.to_owned(),
    };
    let host = authority
        .rsplit_once(':')
        .map_or(&*authority, |(host, _)| host)
        .trim_matches(['[', ']']);
    let here = host.eq_ignore_ascii_case("localhost")
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback());
    let scheme = if insecure.unwrap_or(here) {
        "http"
    } else {
        "https"
    };
    format!("{scheme}://{authority}")
}

/// `key=value,key=value`, percent-encoded. `secret`: values are not shown in errors.
fn pairs(name: &str, text: &str, secret: bool) -> Result<Vec<(String, String)>, BackendError> {
    let shown = |pair: &str| match pair.split_once('=') {
        Some((key, _)) if secret => format!("{}=…", shown_header(key.trim())),
        None if secret => "…".to_owned(),
        _ => pair.to_owned(),
    };
    let decoded = |pair: &str, part: &str| {
        let text = percent_decode_str(part.trim()).decode_utf8();
        text.map(|text| text.into_owned())
            .map_err(|_| setting(name, &shown(pair), "it is not UTF-8 once percent-decoded"))
    };
    let mut all = Vec::new();
    for pair in text.split(',').filter(|pair| !pair.trim().is_empty()) {
        let Some((key, value)) = pair
            .split_once('=')
            .filter(|(key, _)| !key.trim().is_empty())
        else {
            let why = "it takes key=value, and several with commas between them; a comma in a value is %2C";
            return Err(setting(name, &shown(pair), why));
        };
        all.push((decoded(pair, key)?, decoded(pair, value)?));
    }
    Ok(all)
}

/// Headers that are the exporter's own.
const RESERVED: [&str; 9] = [
    "content-type",
    "content-length",
    "content-encoding",
    "host",
    "te",
    "transfer-encoding",
    "connection",
    "grpc-encoding",
    "grpc-timeout",
];

/// What is no name of a header may be a value, where somebody wrote `name: value`.
fn shown_header(name: &str) -> &str {
    match HeaderName::try_from(name) {
        Ok(_) => name,
        Err(_) => "…",
    }
}

fn check_header(
    setting_name: &str,
    name: &str,
    value: &str,
) -> Result<(HeaderName, HeaderValue), BackendError> {
    let shown = format!("{}=…", shown_header(name));
    let wrong = |why: &str| Err(setting(setting_name, &shown, why));
    let Ok(header) = HeaderName::try_from(name) else {
        return wrong("a header's name has letters, digits and some of !#$%&'*+-.^_`|~ only");
    };
    if RESERVED.contains(&header.as_str()) {
        return wrong("the exporter sets this header itself");
    }
    let Ok(mut value) = HeaderValue::from_str(value) else {
        return wrong("a header's value has visible ASCII characters only");
    };
    value.set_sensitive(true);
    Ok((header, value))
}

impl fmt::Debug for OtlpOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let headers = self.headers.iter();
        let headers: Vec<_> = headers.map(|(name, _)| shown_header(name)).collect();
        let url = self.metrics_endpoint.as_ref().or(self.endpoint.as_ref());
        f.debug_struct("OtlpOptions")
            .field("endpoint", &url.map(|url| redacted(url)))
            .field("protocol", &self.protocol)
            .field("headers", &headers)
            .field("interval", &self.interval)
            .field("timeout", &self.timeout)
            .field("give_up_after", &self.give_up_after)
            .field("compression", &self.compression)
            .field("temporality", &self.temporality)
            .field("histograms", &self.histograms)
            .field("service_name", &self.service_name)
            .field("resource_attributes", &self.attributes)
            .field("root_certificates", &self.root_certificates)
            .field("client_certificate", &self.client_certificate)
            .field("batch_points", &self.batch_points)
            .field("queue_bytes", &self.queue_bytes)
            .field("own_metrics", &self.own_metrics)
            .field("before_collect", &self.before_collect)
            .field("disabled", &self.disabled)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn from(vars: &[(&str, &str)]) -> Result<OtlpOptions, BackendError> {
        let vars: HashMap<_, _> = vars.iter().copied().collect();
        OtlpOptions::from_vars(|name| vars.get(name).map(|&value| value.to_owned()))
    }

    fn ready(vars: &[(&str, &str)]) -> Ready {
        from(vars).unwrap().ready().unwrap()
    }

    /// What is logged meanwhile, and what comes of it.
    fn logged<T>(run: impl FnOnce() -> T) -> (String, T) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let log = Arc::new(file.reopen().unwrap());
        let subscriber = tracing_subscriber::fmt().with_writer(log).finish();
        let made = tracing::subscriber::with_default(subscriber, run);
        let mut log = String::new();
        std::io::Read::read_to_string(&mut file, &mut log).unwrap();
        (log, made)
    }

    #[test]
    fn without_variables_it_is_as_open_telemetry_has_it() {
        let ready = ready(&[]);
        assert_eq!(ready.url, "http://localhost:4318/v1/metrics");
        assert_eq!((ready.interval, ready.timeout), (INTERVAL, TIMEOUT));
        assert!(!ready.delta && !ready.gzip && !ready.disabled);
        assert_eq!(ready.exponential, None);
        let get = |key: &str| ready.resource.iter().find(|(k, _)| k == key).unwrap();
        assert!(get("service.name").1.starts_with("unknown_service:"));
        assert_eq!(get("service.instance.id").1.len(), 36);
    }

    #[test]
    fn a_path_is_added_to_the_general_endpoint_and_not_to_that_of_metrics() {
        let general = "OTEL_EXPORTER_OTLP_ENDPOINT";
        let own = "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT";
        for (url, expected) in [
            ("http://c:1", "http://c:1/v1/metrics"),
            ("http://c:1/", "http://c:1/v1/metrics"),
            ("https://c/otlp", "https://c/otlp/v1/metrics"),
        ] {
            assert_eq!(ready(&[(general, url)]).url, expected);
        }
        let both = ready(&[(general, "http://c:1"), (own, "http://d:2/in?key=1")]);
        assert_eq!(both.url, "http://d:2/in?key=1");
    }

    #[test]
    fn variables_of_metrics_count_before_those_of_all_signals() {
        let ready = ready(&[
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "1"),
            ("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "250"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_EXPORTER_OTLP_METRICS_COMPRESSION", "none"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=1"),
            (
                "OTEL_EXPORTER_OTLP_METRICS_HEADERS",
                " api-key = k%2C1 ,x=y=z",
            ),
        ]);
        assert_eq!(ready.timeout, Duration::from_millis(250));
        assert!(!ready.gzip);
        assert_eq!(ready.headers.len(), 2);
        assert_eq!(
            (&ready.headers["api-key"], &ready.headers["x"]),
            (
                &HeaderValue::from_static("k,1"),
                &HeaderValue::from_static("y=z")
            )
        );
    }

    #[test]
    fn the_service_name_counts_before_the_attribute_and_the_prefix_after_it() {
        let attributes = (
            "OTEL_RESOURCE_ATTRIBUTES",
            "service.name=b,deployment=x%20y",
        );
        let name = |options: OtlpOptions| {
            let ready = options.ready().unwrap();
            let found = ready
                .resource
                .into_iter()
                .find(|(key, _)| key == "service.name");
            found.unwrap().1
        };
        let both = from(&[attributes, ("OTEL_SERVICE_NAME", "a")]).unwrap();
        assert_eq!(name(both.service_name_or("prefix")), "a");
        let one = from(&[attributes]).unwrap();
        assert!(
            one.ready()
                .unwrap()
                .resource
                .contains(&("deployment".into(), "x y".into()))
        );
        assert_eq!(name(one.service_name_or("prefix")), "b");
        assert_eq!(name(from(&[]).unwrap().service_name_or("prefix")), "prefix");
    }

    #[test]
    fn what_says_where_and_as_whom_is_an_error_that_names_the_variable_and_what_would_be_right() {
        for (name, value, why) in [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4318", "http://"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", ":4318", "http://"),
            (
                "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
                "ftp://c",
                "neither http nor https",
            ),
            (
                "OTEL_EXPORTER_OTLP_CLIENT_KEY",
                "k.pem",
                "CLIENT_CERTIFICATE is not set",
            ),
            (
                "OTEL_EXPORTER_OTLP_METRICS_CLIENT_CERTIFICATE",
                "c.pem",
                "METRICS_CLIENT_KEY is not set",
            ),
        ] {
            let error = from(&[(name, value)]).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{name} is ")), "{error}");
            assert!(error.contains(value) && error.contains(why), "{error}");
        }
    }

    #[test]
    fn words_and_numbers_that_are_not_known_are_warned_of_and_count_as_not_set() {
        for (name, value, right) in [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s", "milliseconds"),
            ("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "-1", "milliseconds"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "1e3", "milliseconds"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd", "gzip"),
            (
                "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE",
                "none",
                "lowmemory",
            ),
            (
                "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION",
                "x",
                "explicit_bucket_histogram",
            ),
            ("OTEL_RESOURCE_ATTRIBUTES", "a=1,b", "key=value"),
            ("OTEL_RESOURCE_ATTRIBUTES", "a=%ff", "UTF-8"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "0", "milliseconds"),
            ("OTEL_METRIC_EXPORT_TIMEOUT", "x", "milliseconds"),
            ("OTEL_SDK_DISABLED", "1", "true"),
            ("OTEL_SDK_DISABLED", "yes", "true"),
            ("OTEL_EXPORTER_OTLP_INSECURE", "on", "true"),
        ] {
            let (log, read) = logged(|| ready(&[(name, value)]));
            let mut expected = ready(&[]);
            // A random one each.
            let id = read
                .resource
                .iter()
                .find(|(key, _)| key == "service.instance.id");
            for attribute in &mut expected.resource {
                if attribute.0 == "service.instance.id" {
                    attribute.1 = id.unwrap().1.clone();
                }
            }
            assert_eq!(
                format!("{read:?}"),
                format!("{expected:?}"),
                "{name}={value}"
            );
            assert!(log.contains(name) && log.contains("ignored"), "{log}");
            assert!(log.contains(right), "{log}");
        }
    }

    #[test]
    fn a_general_endpoint_can_not_have_a_query() {
        let url = "http://c/?key=s3cr3t";
        let error = from(&[("OTEL_EXPORTER_OTLP_ENDPOINT", url)]).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("query") && !error.contains("s3cr3t"),
            "{error}"
        );
    }

    #[test]
    fn no_error_shows_a_header_or_a_password() {
        let name = "OTEL_EXPORTER_OTLP_HEADERS";
        for wrong in [
            "s3cr3t",
            "a b=s3cr3t",
            "x=s3cr3t%0A",
            "x=s3cr3t%ff",
            "host=s3cr3t",
            "Authorization: Basic s3cr3t=",
            "Bearer s3cr3t==",
            "authorization:s3cr3t=%ff",
        ] {
            let error = from(&[(name, wrong)]).unwrap_err().to_string();
            assert!(
                error.starts_with(name) && !error.contains("s3cr3t"),
                "{error}"
            );
        }
        let url = "http://me:s3cr3t@c";
        let error = from(&[("OTEL_EXPORTER_OTLP_ENDPOINT", url)])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("http://c") && !error.contains("s3cr3t"),
            "{error}"
        );
    }

    #[test]
    fn words_are_read_whatever_their_case() {
        let read = ready(&[
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "HTTP/Protobuf"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "GZIP"),
            ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "Delta"),
        ]);
        assert_eq!((read.grpc, read.gzip, read.delta), (false, true, true));
    }

    #[test]
    fn a_file_that_is_not_there_is_told_with_its_variable() {
        for (name, other) in [
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", None),
            ("OTEL_EXPORTER_OTLP_METRICS_CERTIFICATE", None),
            (
                "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
                Some("OTEL_EXPORTER_OTLP_CLIENT_KEY"),
            ),
        ] {
            let vars: Vec<_> = [Some(name), other]
                .into_iter()
                .flatten()
                .map(|name| (name, "/none.pem"))
                .collect();
            let bus = crate::MetricBus::new();
            let options = from(&vars).unwrap();
            let error = super::super::OtlpExporter::start(&bus, options).unwrap_err();
            let error = error.to_string();
            let begin = format!("{name} is \"/none.pem\": it can't be read");
            assert!(error.starts_with(&begin), "{error}");
        }
    }

    #[test]
    fn empty_variables_are_not_set_and_zero_is_no_limit() {
        let empty = OtlpOptions::from_vars(|_| Some(" ".to_owned())).unwrap();
        assert_eq!(empty.ready().unwrap().url, ready(&[]).url);
        let ready = ready(&[("OTEL_EXPORTER_OTLP_TIMEOUT", "0")]);
        assert_eq!(ready.timeout, LONGEST);
    }

    #[test]
    fn settings_that_can_not_be_are_errors_when_it_is_started() {
        let why = |options: OtlpOptions| options.ready().unwrap_err().to_string();
        let new = OtlpOptions::new;
        assert!(why(new().interval(Duration::ZERO)).starts_with("interval is \"0ns\""));
        assert!(why(new().batch_points(0)).contains("at least 1"));
        assert!(why(new().queue_bytes(1)).contains("at least 65536"));
        assert!(why(new().header("te", "x")).contains("sets this header itself"));
        assert!(why(new().retry(INTERVAL, TIMEOUT)).contains("shorter than the first"));
    }

    #[cfg(feature = "otlp-grpc")]
    #[test]
    fn grpc_has_a_port_and_a_path_of_its_own() {
        let protocol = ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
        let url = ready(&[protocol]).url;
        assert_eq!(url.port_u16(), Some(4317));
        assert!(url.path().ends_with("MetricsService/Export"));
        const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
        for (given, insecure, expected) in [
            ("c:1", None, "https://c:1/"),
            ("c:1", Some("true"), "http://c:1/"),
            ("c", None, "https://c/"),
            ("localhost:1", None, "http://localhost:1/"),
            ("localhost:1", Some("false"), "https://localhost:1/"),
            ("127.0.0.2:1", None, "http://127.0.0.2:1/"),
            ("[::1]:1", None, "http://[::1]:1/"),
            ("[2001:db8::1]:1", None, "https://[2001:db8::1]:1/"),
            (":1", None, "http://localhost:1/"),
            ("4317", None, "http://localhost:4317/"),
            // With a scheme the variable says nothing.
            ("http://c:1", Some("false"), "http://c:1/"),
            ("https://c:1", Some("true"), "https://c:1/"),
        ] {
            let mut vars = vec![protocol, (ENDPOINT, given)];
            vars.extend(insecure.map(|insecure| ("OTEL_EXPORTER_OTLP_INSECURE", insecure)));
            let url = ready(&vars).url.to_string();
            assert!(url.starts_with(expected), "{given}, {insecure:?}: {url}");
        }
        for wrong in [":0", ":x", "c:99999", "c:1/path"] {
            from(&[protocol, (ENDPOINT, wrong)]).unwrap_err();
        }
        let endpoint = (ENDPOINT, "http://c:1/v1/metrics");
        let error = from(&[protocol, endpoint]).unwrap_err().to_string();
        assert!(error.contains("a path of its own"), "{error}");
    }

    #[cfg(not(feature = "otlp-grpc"))]
    #[test]
    fn grpc_that_was_not_built_in_is_an_error_that_says_so() {
        let error = from(&[("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]).unwrap_err();
        assert!(
            error.to_string().contains("feature \"otlp-grpc\""),
            "{error}"
        );
    }
}
