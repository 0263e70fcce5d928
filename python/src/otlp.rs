//! Options of what exports to an OpenTelemetry collector.

use std::{path::PathBuf, time::Duration};

use metricbus::backend::{self, BackendError};
use pyo3::{exceptions::PyTypeError, prelude::*};

use crate::{
    convert::{self, OneOrMore},
    error::Raise,
};

/// Where metrics are exported to, and how. Without arguments: to a collector on this machine, each minute.
///
/// Nothing is opened or read before an exporter is started with them, and a wrong value is told then.
#[pyclass(frozen, module = "metricbus")]
pub(crate) struct OtlpOptions(backend::OtlpOptions);

impl OtlpOptions {
    /// As an argument.
    pub(crate) fn of(value: &Bound<'_, PyAny>) -> PyResult<backend::OtlpOptions> {
        match value.cast::<OtlpOptions>() {
            Ok(options) => Ok(options.get().0.clone()),
            Err(_) => Err(PyTypeError::new_err(format!(
                "a {} is no options; OtlpOptions(\"http://localhost:4318\") or OtlpOptions.from_env() would be right",
                value.get_type().name()?
            ))),
        }
    }
}

/// One of several words.
fn word<T: Copy>(setting: &str, said: &str, words: &[(&str, T)]) -> PyResult<T> {
    match words.iter().find(|(word, _)| *word == said) {
        Some((_, meant)) => Ok(*meant),
        None => {
            let words: Vec<_> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
            Err(BackendError::Setting {
                setting: setting.to_owned(),
                value: said.to_owned(),
                why: format!("{} would be right", words.join(" or ")),
            })
            .or_raise()
        }
    }
}

#[pymethods]
impl OtlpOptions {
    #[new]
    #[pyo3(signature = (endpoint=None, *, metrics_endpoint=None, protocol="http/protobuf", headers=None, timeout=None, give_up_after=None, compression="none", interval=None, temporality="cumulative", histograms="explicit", buckets_max=None, resource=None, service_name=None, root_certificates=None, client_certificate=None, batch_points=None, queue_bytes=None, retry=None, own_metrics=false))]
    #[expect(clippy::too_many_arguments, reason = "keywords in Python")]
    fn new(
        endpoint: Option<String>,
        metrics_endpoint: Option<String>,
        protocol: &str,
        headers: Option<&Bound<'_, PyAny>>,
        timeout: Option<&Bound<'_, PyAny>>,
        give_up_after: Option<&Bound<'_, PyAny>>,
        compression: &str,
        interval: Option<&Bound<'_, PyAny>>,
        temporality: &str,
        histograms: &str,
        buckets_max: Option<usize>,
        resource: Option<&Bound<'_, PyAny>>,
        service_name: Option<String>,
        root_certificates: Option<OneOrMore<PathBuf>>,
        client_certificate: Option<(PathBuf, PathBuf)>,
        batch_points: Option<usize>,
        queue_bytes: Option<usize>,
        retry: Option<(Bound<'_, PyAny>, Bound<'_, PyAny>)>,
        own_metrics: bool,
    ) -> PyResult<OtlpOptions> {
        use backend::{OtlpCompression, OtlpHistograms, OtlpProtocol, OtlpTemporality};

        let protocols = [
            ("http/protobuf", OtlpProtocol::HttpProtobuf),
            ("grpc", OtlpProtocol::Grpc),
        ];
        let compressions = [
            ("none", OtlpCompression::None),
            ("gzip", OtlpCompression::Gzip),
        ];
        let temporalities = [
            ("cumulative", OtlpTemporality::Cumulative),
            ("delta", OtlpTemporality::Delta),
            ("lowmemory", OtlpTemporality::LowMemory),
        ];
        let forms = [
            ("explicit", OtlpHistograms::Explicit),
            ("exponential", OtlpHistograms::Exponential),
        ];
        let mut options = backend::OtlpOptions::new()
            .protocol(word("protocol", protocol, &protocols)?)
            .compression(word("compression", compression, &compressions)?)
            .temporality(word("temporality", temporality, &temporalities)?)
            .histograms(word("histograms", histograms, &forms)?)
            .own_metrics(own_metrics);
        match (endpoint, metrics_endpoint) {
            (Some(_), Some(_)) => {
                return Err(PyTypeError::new_err(
                    "endpoint= and metrics_endpoint= are both given; the latter is the whole URL, for metrics alone",
                ));
            }
            (Some(url), None) => options = options.endpoint(url),
            (None, Some(url)) => options = options.metrics_endpoint(url),
            (None, None) => {}
        }
        if let Some(headers) = headers {
            for (name, value) in convert::pairs(headers)? {
                options = options.header(name, value);
            }
        }
        if let Some(resource) = resource {
            for (key, value) in convert::pairs(resource)? {
                options = options.resource_attribute(key, value);
            }
        }
        let time = |what, value: Option<&Bound<'_, PyAny>>| -> PyResult<Option<Duration>> {
            value
                .map(|value| convert::duration(what, value))
                .transpose()
        };
        if let Some(timeout) = time("timeout", timeout)? {
            options = options.timeout(timeout);
        }
        if let Some(after) = time("give_up_after", give_up_after)? {
            options = options.give_up_after(after);
        }
        if let Some(interval) = time("interval", interval)? {
            options = options.interval(interval);
        }
        if let Some((first, max)) = retry {
            let (first, max) = (
                convert::duration("retry", &first)?,
                convert::duration("retry", &max)?,
            );
            options = options.retry(first, max);
        }
        if let Some(max) = buckets_max {
            options = options.buckets_max(max);
        }
        if let Some(name) = service_name {
            options = options.service_name(name);
        }
        for path in root_certificates.map(Vec::from).unwrap_or_default() {
            options = options.root_certificates(path);
        }
        if let Some((certificate, key)) = client_certificate {
            options = options.client_certificate(certificate, key);
        }
        if let Some(points) = batch_points {
            options = options.batch_points(points);
        }
        if let Some(bytes) = queue_bytes {
            options = options.queue_bytes(bytes);
        }
        Ok(OtlpOptions(options))
    }

    /// As the environment says, with OpenTelemetry's own variables. A wrong value is an error that names the variable.
    #[staticmethod]
    fn from_env() -> PyResult<OtlpOptions> {
        backend::OtlpOptions::from_env().or_raise().map(OtlpOptions)
    }

    /// Without secrets.
    fn __repr__(&self) -> String {
        format!("{:?}", self.0)
    }
}
