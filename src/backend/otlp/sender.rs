//! One request to a collector, and what its answer means: taken, to be tried again, or never to be tried again.

use std::{
    io::Write,
    time::{Duration, SystemTime},
};

use bytes::{BufMut, Bytes};
use flate2::{Compression, write::GzEncoder};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri, header};
use prost::Message;

use super::options::Ready;
use crate::{
    Clock,
    backend::BackendError,
    client::{Answer, Client, ClientError, words},
};

/// A request ready to be sent, as often as need be.
#[derive(Clone, Debug)]
pub(super) struct Body {
    pub(super) bytes: Bytes,
    pub(super) gzip: bool,
}

/// What a request came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The collector has it, but for `rejected` points.
    Taken {
        rejected: u64,
        /// What the collector had to say.
        said: Option<String>,
    },
    /// It may have it later.
    Later {
        why: String,
        /// When, if the collector says so.
        after: Option<Duration>,
    },
    /// The collector will not have it, however often it is tried.
    Never { why: String },
}

pub(super) struct Sender {
    client: Client,
    url: Uri,
    headers: HeaderMap,
    grpc: bool,
    gzip: bool,
    timeout: Duration,
    clock: Clock,
}

impl Sender {
    pub(super) fn new(ready: &Ready, clock: &Clock) -> Result<Sender, BackendError> {
        let client = Client::new(&ready.url, &ready.reach);
        let client = client.map_err(|error| wrong(error, &ready.files))?;
        let mut headers = ready.headers.clone();
        let own = |text| HeaderValue::from_static(text);
        let kind = if ready.grpc {
            "application/grpc"
        } else {
            "application/x-protobuf"
        };
        headers.insert(header::CONTENT_TYPE, own(kind));
        if ready.grpc {
            headers.insert(header::TE, own("trailers"));
            let millis = ready.timeout.as_millis().min(99_999_999);
            if let Ok(value) = HeaderValue::from_str(&format!("{millis}m")) {
                headers.insert(HeaderName::from_static("grpc-timeout"), value);
            }
        }
        if !headers.contains_key(header::USER_AGENT) {
            let agent = concat!("metricbus-otlp-exporter/", env!("CARGO_PKG_VERSION"));
            headers.insert(header::USER_AGENT, own(agent));
        }
        Ok(Sender {
            client,
            url: ready.url.clone(),
            headers,
            grpc: ready.grpc,
            gzip: ready.gzip,
            timeout: ready.timeout,
            clock: clock.clone(),
        })
    }

    /// Makes a message ready: compressed, and framed where that is to be.
    pub(super) fn body(&self, message: Vec<u8>) -> Body {
        let packed = if self.gzip { gzip(&message) } else { None };
        let is_gzip = packed.is_some();
        let message = packed.unwrap_or(message);
        let bytes = if self.grpc {
            let mut framed = Vec::with_capacity(message.len() + 5);
            framed.put_u8(u8::from(is_gzip));
            // A request has some megabytes at most; one that is a single point of 4 GiB is refused by any server.
            framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
            framed.extend_from_slice(&message);
            framed.into()
        } else {
            message.into()
        };
        Body {
            bytes,
            gzip: is_gzip,
        }
    }

    pub(super) async fn send(&self, body: Body) -> Verdict {
        let mut request = Request::post(self.url.clone());
        if let Some(headers) = request.headers_mut() {
            headers.extend(self.headers.clone());
            if body.gzip {
                let name = if self.grpc {
                    HeaderName::from_static("grpc-encoding")
                } else {
                    header::CONTENT_ENCODING
                };
                headers.insert(name, HeaderValue::from_static("gzip"));
            }
        }
        let request = match request.body(body.bytes) {
            Ok(request) => request,
            Err(error) => {
                return Verdict::Never {
                    why: error.to_string(),
                };
            }
        };
        let late = self.clock.sleep(self.timeout);
        let sent = self.client.request_until(request, self.timeout, late);
        match sent.await {
            Ok(answer) => {
                let now = self.clock.wall(self.clock.now());
                if self.grpc {
                    judge_grpc(&answer, now)
                } else {
                    judge(&answer, now)
                }
            }
            Err(error @ ClientError::Url { .. }) => Verdict::Never {
                why: error.to_string(),
            },
            Err(error) => Verdict::Later {
                why: error.to_string(),
                after: None,
            },
        }
    }
}

/// An error with the variable, of `files`, that named the file.
fn wrong(error: ClientError, files: &[String]) -> BackendError {
    if let ClientError::File { what, path, why } = &error {
        let is_it = |name: &&String| {
            let is_client = name.contains("_CLIENT_");
            match *what {
                "client key" => name.ends_with("_CLIENT_KEY"),
                "client certificate" => is_client && name.ends_with("_CERTIFICATE"),
                _ => !is_client,
            }
        };
        if let Some(name) = files.iter().find(is_it) {
            return BackendError::Setting {
                setting: name.clone(),
                value: path.display().to_string(),
                why: why.clone(),
            };
        }
    }
    BackendError::Setup {
        backend: super::NAME.to_owned(),
        why: error.to_string(),
    }
}

fn gzip(message: &[u8]) -> Option<Vec<u8>> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(message).ok()?;
    packed.finish().ok()
}

/// `ExportMetricsServiceResponse`.
#[derive(Clone, PartialEq, Message)]
struct Response {
    #[prost(message, optional, tag = "1")]
    partial_success: Option<PartialSuccess>,
}

#[derive(Clone, PartialEq, Message)]
struct PartialSuccess {
    #[prost(int64, tag = "1")]
    rejected_data_points: i64,
    #[prost(string, tag = "2")]
    error_message: String,
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Detail>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Message)]
struct Detail {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `google.rpc.RetryInfo`.
#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<Delay>,
}

/// `google.protobuf.Duration`.
#[derive(Clone, PartialEq, Message)]
struct Delay {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

/// What a collector says that takes a request. An answer that can't be read says nothing: the status has said that it was
/// taken.
fn taken(message: &[u8]) -> Verdict {
    let partial = Response::decode(message)
        .ok()
        .and_then(|response| response.partial_success)
        .unwrap_or_default();
    let said = words(partial.error_message.as_bytes());
    Verdict::Taken {
        rejected: u64::try_from(partial.rejected_data_points).unwrap_or(0),
        said: Some(said).filter(|said| !said.is_empty()),
    }
}

/// By OTLP's rules for HTTP. `now`: the date.
fn judge(answer: &Answer, now: SystemTime) -> Verdict {
    let status = answer.status;
    if status.is_success() {
        return taken(&answer.body);
    }
    let mut why = format!("the collector answered {status}");
    let said = match content_type(&answer.headers) {
        "application/x-protobuf" => Status::decode(&*answer.body)
            .map(|status| words(status.message.as_bytes()))
            .unwrap_or_default(),
        _ => answer.words(),
    };
    if !said.is_empty() {
        why = format!("{why}: {said}");
    }
    if let 429 | 502 | 503 | 504 = status.as_u16() {
        let after = answer.headers.get(header::RETRY_AFTER);
        let after = after.and_then(|value| retry_after(value.to_str().ok()?, now));
        return Verdict::Later { why, after };
    }
    let advice = match status.as_u16() {
        300..=399 => "; give the address that it redirects to",
        401 | 403 => "; does it want a header, such as authorization?",
        404 => "; is its path right? /v1/metrics is added to a general endpoint only",
        413 => "; make the batches smaller",
        415 => "; does it take protobuf over HTTP, or gRPC only?",
        _ => "",
    };
    why.push_str(advice);
    Verdict::Never { why }
}

fn content_type(headers: &HeaderMap) -> &str {
    let value = headers.get(header::CONTENT_TYPE);
    let value = value.and_then(|value| value.to_str().ok()).unwrap_or("");
    value.split(';').next().unwrap_or("").trim()
}

/// Seconds, or a date.
fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// By OTLP's rules for gRPC.
fn judge_grpc(answer: &Answer, now: SystemTime) -> Verdict {
    if !answer.status.is_success() {
        // Something between here and the collector that speaks HTTP only.
        return judge(answer, now);
    }
    let found = |name: &str| {
        let value = answer.trailers.get(name).or(answer.headers.get(name))?;
        value.to_str().ok()
    };
    let Some(code) = found("grpc-status").and_then(|code| code.parse::<u32>().ok()) else {
        // To gRPC it is UNKNOWN, which OTLP has not tried again.
        return Verdict::Never {
            why: "the answer has no grpc-status: is it a gRPC server?".to_owned(),
        };
    };
    if code == 0 {
        // One byte that says whether it is compressed, which nobody asked for, and its length.
        return taken(answer.body.get(5..).unwrap_or_default());
    }
    let said = found("grpc-message").unwrap_or("");
    let said = percent_encoding::percent_decode_str(said).decode_utf8_lossy();
    let mut why = format!("the collector answered {}", grpc_word(code));
    let said = words(said.as_bytes());
    if !said.is_empty() {
        why = format!("{why}: {said}");
    }
    let after = found("grpc-status-details-bin").and_then(retry_info);
    match code {
        // Cancelled, deadline exceeded, aborted, out of range, unavailable, data loss.
        1 | 4 | 10 | 11 | 14 | 15 => Verdict::Later { why, after },
        // Resources exhausted: only where it says that they will be there again.
        8 if after.is_some() => Verdict::Later { why, after },
        _ => Verdict::Never { why },
    }
}

fn grpc_word(code: u32) -> String {
    let words = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    match words.get(code as usize) {
        Some(word) => (*word).to_owned(),
        None => format!("gRPC status {code}"),
    }
}

/// From a status in base64.
fn retry_info(text: &str) -> Option<Duration> {
    let status = Status::decode(&*base64(text.trim())?).ok()?;
    let info = status
        .details
        .iter()
        .find(|detail| detail.type_url.ends_with("/google.rpc.RetryInfo"))?;
    let delay = RetryInfo::decode(&*info.value).ok()?.retry_delay?;
    let seconds = u64::try_from(delay.seconds).ok()?;
    let nanos = u32::try_from(delay.nanos)
        .ok()
        .filter(|n| *n < 1_000_000_000)?;
    Some(Duration::new(seconds, nanos))
}

fn base64(text: &str) -> Option<Vec<u8>> {
    use base64::{
        Engine,
        engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
    };
    let config =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let engine = GeneralPurpose::new(&base64::alphabet::STANDARD, config);
    engine.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, headers: &[(&'static str, &str)], body: &[u8]) -> Answer {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, HeaderValue::from_str(value).unwrap());
        }
        Answer {
            status: http::StatusCode::from_u16(status).unwrap(),
            headers: map,
            body: Bytes::copy_from_slice(body),
            trailers: HeaderMap::new(),
        }
    }

    const PROTOBUF: (&str, &str) = ("content-type", "application/x-protobuf");

    fn over_http(status: u16, headers: &[(&'static str, &str)], body: &[u8]) -> Verdict {
        let date = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        judge(&answer(status, headers, body), date)
    }

    #[test]
    fn an_answer_that_says_nothing_or_nonsense_has_taken_all() {
        let all = Verdict::Taken {
            rejected: 0,
            said: None,
        };
        for body in [&b""[..], b"<html>", &[0xff; 40]] {
            assert_eq!(over_http(200, &[PROTOBUF], body), all);
        }
    }

    #[test]
    fn a_partial_success_says_how_many_and_why() {
        let body = Response {
            partial_success: Some(PartialSuccess {
                rejected_data_points: 3,
                error_message: "too\nold".to_owned(),
            }),
        }
        .encode_to_vec();
        let expected = Verdict::Taken {
            rejected: 3,
            said: Some("too old".to_owned()),
        };
        assert_eq!(over_http(200, &[PROTOBUF], &body), expected);
    }

    #[test]
    fn only_what_may_pass_is_tried_again_and_when_the_collector_says() {
        for (after, expected) in [
            ("7", Some(7)),
            ("Sun, 06 Nov 1994 08:49:47 GMT", Some(10)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("soon", None),
        ] {
            let verdict = over_http(503, &[("retry-after", after)], b"");
            assert!(
                matches!(&verdict, Verdict::Later { after, .. } if *after == expected.map(Duration::from_secs)),
                "{verdict:?}"
            );
        }
        for status in [429, 502, 503, 504] {
            assert!(matches!(
                over_http(status, &[], b""),
                Verdict::Later { after: None, .. }
            ));
        }
        for status in [302, 400, 401, 404, 408, 413, 415, 500, 501] {
            assert!(
                matches!(over_http(status, &[], b""), Verdict::Never { .. }),
                "{status}"
            );
        }
    }

    #[test]
    fn the_collectors_words_are_told_whether_text_or_protobuf() {
        let why = |verdict| match verdict {
            Verdict::Never { why } => why,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            why(over_http(400, &[], b"bad\r\nthing")),
            "the collector answered 400 Bad Request: bad thing"
        );
        let status = Status {
            code: 3,
            message: "no".to_owned(),
            details: Vec::new(),
        };
        let body = status.encode_to_vec();
        assert!(why(over_http(400, &[PROTOBUF], &body)).ends_with("Bad Request: no"));
    }

    fn over_grpc(trailers: &[(&'static str, &str)]) -> Verdict {
        let mut said = answer(200, &[], b"");
        said.trailers = answer(200, trailers, b"").headers;
        judge_grpc(&said, SystemTime::UNIX_EPOCH)
    }

    #[test]
    fn over_grpc_the_status_is_in_the_trailers_and_some_of_them_may_pass() {
        assert!(matches!(
            over_grpc(&[("grpc-status", "0")]),
            Verdict::Taken { .. }
        ));
        for code in [1, 4, 10, 11, 14, 15] {
            let verdict = over_grpc(&[("grpc-status", &code.to_string())]);
            assert!(
                matches!(verdict, Verdict::Later { after: None, .. }),
                "{code}"
            );
        }
        for code in [2, 3, 5, 6, 7, 8, 9, 12, 13, 16, 99] {
            let verdict = over_grpc(&[("grpc-status", &code.to_string())]);
            assert!(matches!(verdict, Verdict::Never { .. }), "{code}");
        }
        let verdict = over_grpc(&[("grpc-status", "3"), ("grpc-message", "not%20so")]);
        let Verdict::Never { why } = verdict else {
            panic!("{verdict:?}");
        };
        assert_eq!(why, "the collector answered INVALID_ARGUMENT: not so");
        assert!(matches!(over_grpc(&[]), Verdict::Never { .. }));
    }

    #[test]
    fn over_grpc_exhausted_resources_may_be_there_again_when_the_collector_says() {
        let delay = Delay {
            seconds: 2,
            nanos: 500_000_000,
        };
        let info = RetryInfo {
            retry_delay: Some(delay),
        };
        let status = Status {
            code: 8,
            message: String::new(),
            details: vec![Detail {
                type_url: "type.googleapis.com/google.rpc.RetryInfo".to_owned(),
                value: info.encode_to_vec(),
            }],
        };
        use base64::Engine as _;
        let text = base64::engine::general_purpose::STANDARD_NO_PAD.encode(status.encode_to_vec());
        let verdict = over_grpc(&[("grpc-status", "8"), ("grpc-status-details-bin", &text)]);
        let after = Some(Duration::from_millis(2_500));
        assert!(matches!(verdict, Verdict::Later { after: said, .. } if said == after));
    }
}
