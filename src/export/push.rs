//! A push to a Pushgateway, for jobs that are over before anybody scrapes them.

use std::{fmt, io, path::PathBuf, time::Duration};

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Uri,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::runtime::Handle;

use super::text::{self, Format};
use crate::{
    bus::MetricBus,
    client::{Answer, Client, ClientError, Reach, block_on, check_url, redacted},
    names::plain_label_fault,
};

/// How long a push may take, unless told otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What stands in a path as it is.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// Sends the metrics of a bus to a Prometheus Pushgateway, which keeps them for Prometheus to scrape.
///
/// For batch jobs and nothing else: a service that lives on is scraped, or Prometheus can't know that it has died. A
/// gateway keeps what was pushed until it is [deleted](Push::delete), a *group* for each job and grouping labels.
///
/// All metrics of the bus are sent, but not what the bus counts of itself. To the gateway a group's labels are those of
/// all its metrics: a metric that has a label `job`, or one of those [grouped](Push::grouping) by, loses it to the
/// group's.
///
/// ```no_run
/// use metricbus::{MetricBus, export::Push};
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let bus = MetricBus::new();
/// bus.gauge("last_success_timestamp_seconds", "When the last backup succeeded.")?
///     .set(1_700_000_000.0);
/// Push::new("http://pushgateway:9091", "backup")
///     .grouping("database", "orders")
///     .push(&bus)
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use = "nothing is sent until `push`, `add` or `delete`"]
pub struct Push {
    url: String,
    job: String,
    grouping: Vec<(String, String)>,
    headers: HeaderMap,
    timeout: Duration,
    format: Format,
    reach: Reach,
    /// What is wrong with something that was given, told when it is used.
    fault: Option<PushError>,
}

/// Why something was not pushed.
///
/// ```
/// use metricbus::{MetricBus, export::{Push, PushError}};
///
/// let error = Push::new("pushgateway:9091", "backup").push_blocking(&MetricBus::new()).unwrap_err();
/// assert!(matches!(error, PushError::Url { .. }));
/// assert!(error.to_string().contains("does not begin with http://"));
/// ```
#[derive(Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PushError {
    /// The URL can't be read, or is of something else.
    #[error("{url:?} is not the URL of a Pushgateway: {why}; http://127.0.0.1:9091 would be one")]
    Url {
        /// As given, without a password.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// A group needs the name of a job.
    #[error("the job has no name, and a Pushgateway keeps metrics by it; \"backup\" would be one")]
    Job,
    /// A label can't be grouped by.
    #[error("can't group by label {label:?}: {why}")]
    Grouping {
        /// The label.
        label: String,
        /// Why not.
        why: String,
    },
    /// A header can't be sent.
    #[error("header {name:?} can't be sent: {why}")]
    Header {
        /// Its name.
        name: String,
        /// Why not.
        why: &'static str,
    },
    /// The format is one that a Pushgateway does not read.
    #[error("a Pushgateway does not read {format:?}; Format::Text and Format::Protobuf it does")]
    Format {
        /// The format.
        format: Format,
    },
    /// A certificate, TLS, or a thread can't be had.
    #[error("can't push: {why}")]
    Setup {
        /// What is wrong.
        why: String,
    },
    /// There is no tokio runtime.
    #[error("can't push outside of a tokio runtime; the methods that end in _blocking need none")]
    NoRuntime,
    /// No answer came: nobody is there, the way is broken, or it took too long.
    #[error("nothing was pushed as far as is known: {why}")]
    Unreachable {
        /// What happened, and what to look for.
        why: String,
    },
    /// The gateway did not take it.
    #[error("{url} refused it with status {status}: {said}")]
    Refused {
        /// Of the group, as it was asked.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The gateway's own words, shortened.
        said: String,
    },
}

impl fmt::Debug for PushError {
    /// The message: what `main` prints.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Push {
    /// Without what lets it in.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Push")
            .field("url", &redacted(&self.url))
            .field("job", &self.job)
            .field("grouping", &self.grouping)
            .field("format", &self.format)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

impl Push {
    /// To the Pushgateway at `url` (`http://host:9091`, or with the path that a proxy has before it), for the group of
    /// `job`. What is wrong with either is told by what sends.
    ///
    /// ```
    /// let push = metricbus::export::Push::new("http://127.0.0.1:9091", "backup");
    /// assert!(format!("{push:?}").contains("backup"));
    /// ```
    pub fn new(url: impl Into<String>, job: impl Into<String>) -> Self {
        Push {
            url: url.into(),
            job: job.into(),
            grouping: Vec::new(),
            headers: HeaderMap::new(),
            timeout: TIMEOUT,
            format: Format::Text,
            reach: Reach::default(),
            fault: None,
        }
    }

    /// Adds a label to those of the group, such as the instance that the job ran for. Any text can be a value; an empty one
    /// stands for no label, but makes the group another one.
    ///
    /// ```
    /// let push = metricbus::export::Push::new("http://127.0.0.1:9091", "backup").grouping("path", "/var/lib");
    /// # let _ = push;
    /// ```
    pub fn grouping(mut self, label: impl Into<String>, value: impl Into<String>) -> Self {
        let label = label.into();
        let why = match &*label {
            "job" => Some("the job is given to Push::new".to_owned()),
            name if name.starts_with("__") => {
                Some("names beginning with __ are Prometheus's own".to_owned())
            }
            name if self.grouping.iter().any(|(n, _)| n == name) => {
                Some("it is given twice".to_owned())
            }
            name => plain_label_fault(name).map(|why| {
                format!(
                    "{why}; a label name is letters, digits and '_', not beginning with a digit"
                )
            }),
        };
        match why {
            Some(why) => self.wrong(PushError::Grouping { label, why }),
            None => self.grouping.push((label, value.into())),
        }
        self
    }

    /// User and password for a gateway (or a proxy before it) that wants them.
    ///
    /// ```
    /// let push = metricbus::export::Push::new("https://push.example", "backup").basic_auth("backup", "s3cr3t");
    /// assert!(!format!("{push:?}").contains("s3cr3t"));
    /// ```
    pub fn basic_auth(mut self, user: &str, password: &str) -> Self {
        let basic = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
        match HeaderValue::try_from(basic) {
            Ok(mut value) if !user.contains(':') => {
                value.set_sensitive(true);
                self.headers.insert(AUTHORIZATION, value);
            }
            _ => self.wrong(PushError::Header {
                name: AUTHORIZATION.to_string(),
                why: "the user of basic authentication can have no ':'",
            }),
        }
        self
    }

    /// Adds a header to each request, such as a proxy's `Authorization: Bearer …`. One given again replaces the first.
    ///
    /// ```
    /// let push = metricbus::export::Push::new("http://127.0.0.1:9091", "backup").header("X-Scope-OrgID", "7");
    /// # let _ = push;
    /// ```
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let wrong = |why| PushError::Header {
            name: name.to_owned(),
            why,
        };
        match (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            (Ok(name), _)
                if matches!(name.as_str(), "content-type" | "content-length" | "host") =>
            {
                self.wrong(wrong("it says what is sent, and is set here"));
            }
            (Ok(name), Ok(mut value)) => {
                value.set_sensitive(true);
                self.headers.insert(name, value);
            }
            (Err(_), _) => self.wrong(wrong("the name is not one of a header")),
            (_, Err(_)) => {
                self.wrong(wrong("its value has characters that a header can't have"));
            }
        }
        self
    }

    /// How long a push may take altogether (10 s). What the gateway made of it is not known then; pushing again does no
    /// harm.
    ///
    /// ```
    /// # use std::time::Duration;
    /// let push = metricbus::export::Push::new("http://127.0.0.1:9091", "backup").timeout(Duration::from_secs(3));
    /// # let _ = push;
    /// ```
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The format: [`Format::Text`], which everything reads that can be pushed to, unless told otherwise.
    /// [`Format::Protobuf`] also carries native histograms.
    ///
    /// ```
    /// use metricbus::export::{Format, Push};
    ///
    /// let push = Push::new("http://127.0.0.1:9091", "backup").format(Format::Protobuf);
    /// # let _ = push;
    /// ```
    pub fn format(mut self, format: Format) -> Self {
        if format == Format::OpenMetrics {
            self.wrong(PushError::Format { format });
        }
        self.format = format;
        self
    }

    /// A PEM file with the certificates of those who may vouch for the gateway, instead of the system's.
    ///
    /// ```
    /// let push = metricbus::export::Push::new("https://push.example", "backup").root_certificate("/etc/ca.pem");
    /// # let _ = push;
    /// ```
    pub fn root_certificate(mut self, path: impl Into<PathBuf>) -> Self {
        self.reach.roots.push(path.into());
        self
    }

    /// PEM files with the certificate to show, and its key.
    ///
    /// ```
    /// let push = metricbus::export::Push::new("https://push.example", "backup")
    ///     .client_certificate("/etc/job.pem", "/etc/job.key");
    /// # let _ = push;
    /// ```
    pub fn client_certificate(
        mut self,
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Self {
        self.reach.client_certificate = Some((certificate.into(), key.into()));
        self
    }

    /// Replaces the whole group by the metrics of the bus (`PUT`): what it had before and `bus` has not is gone.
    ///
    /// ```no_run
    /// # use metricbus::{MetricBus, export::Push};
    /// # async fn example() -> Result<(), metricbus::export::PushError> {
    /// Push::new("http://127.0.0.1:9091", "backup").push(&MetricBus::new()).await
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`PushError`]. Where the gateway refused it, it took nothing of it; a group that was not there before may be shown without metrics
    /// of ours from then on (docs/prometheus.md).
    ///
    /// # Panics
    ///
    /// Where tokio does: in a runtime made without `enable_io` and `enable_time`.
    pub async fn push(&self, bus: &MetricBus) -> Result<(), PushError> {
        self.send(Method::PUT, Some(bus)).await
    }

    /// As [`push`](Push::push), but of what the group had before only metrics of the same names are replaced (`POST`).
    ///
    /// ```no_run
    /// # use metricbus::{MetricBus, export::Push};
    /// # async fn example() -> Result<(), metricbus::export::PushError> {
    /// Push::new("http://127.0.0.1:9091", "backup").add(&MetricBus::new()).await
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`push`](Push::push).
    ///
    /// # Panics
    ///
    /// As [`push`](Push::push).
    pub async fn add(&self, bus: &MetricBus) -> Result<(), PushError> {
        self.send(Method::POST, Some(bus)).await
    }

    /// Deletes the group. There need not be one. A gateway answers as soon as it has noted the wish, and deletes a moment later.
    ///
    /// ```no_run
    /// # use metricbus::export::Push;
    /// # async fn example() -> Result<(), metricbus::export::PushError> {
    /// Push::new("http://127.0.0.1:9091", "backup").grouping("database", "orders").delete().await
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`push`](Push::push).
    ///
    /// # Panics
    ///
    /// As [`push`](Push::push).
    pub async fn delete(&self) -> Result<(), PushError> {
        self.send(Method::DELETE, None).await
    }

    /// [`push`](Push::push) for programs without tokio. Blocks the thread, [`timeout`](Push::timeout) at most.
    ///
    /// ```no_run
    /// # use metricbus::{MetricBus, export::Push};
    /// Push::new("http://127.0.0.1:9091", "backup").push_blocking(&MetricBus::new())?;
    /// # Ok::<(), metricbus::export::PushError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`push`](Push::push).
    pub fn push_blocking(&self, bus: &MetricBus) -> Result<(), PushError> {
        self.block(self.push(bus))
    }

    /// [`add`](Push::add) for programs without tokio. Blocks the thread, [`timeout`](Push::timeout) at most.
    ///
    /// ```no_run
    /// # use metricbus::{MetricBus, export::Push};
    /// Push::new("http://127.0.0.1:9091", "backup").add_blocking(&MetricBus::new())?;
    /// # Ok::<(), metricbus::export::PushError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`push`](Push::push).
    pub fn add_blocking(&self, bus: &MetricBus) -> Result<(), PushError> {
        self.block(self.add(bus))
    }

    /// [`delete`](Push::delete) for programs without tokio. Blocks the thread, [`timeout`](Push::timeout) at most.
    ///
    /// ```no_run
    /// # use metricbus::export::Push;
    /// Push::new("http://127.0.0.1:9091", "backup").delete_blocking()?;
    /// # Ok::<(), metricbus::export::PushError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`push`](Push::push).
    pub fn delete_blocking(&self) -> Result<(), PushError> {
        self.block(self.delete())
    }

    /// The first fault is the one that is told.
    fn wrong(&mut self, fault: PushError) {
        self.fault.get_or_insert(fault);
    }

    fn block(
        &self,
        push: impl Future<Output = Result<(), PushError>> + Send,
    ) -> Result<(), PushError> {
        let no_thread = |error: io::Error| PushError::Setup {
            why: format!("no thread or runtime to do it: {error}"),
        };
        block_on(push).map_err(no_thread)?
    }

    async fn send(&self, method: Method, bus: Option<&MetricBus>) -> Result<(), PushError> {
        let url = self.group_url()?;
        if Handle::try_current().is_err() {
            return Err(PushError::NoRuntime);
        }
        let client = Client::new(&url, &self.reach).map_err(|error| self.of_client(error))?;
        let mut request = Request::new(Bytes::new());
        *request.method_mut() = method;
        *request.uri_mut() = url.clone();
        *request.headers_mut() = self.headers.clone();
        if let Some(bus) = bus {
            let mut body = Vec::new();
            text::encode(bus, self.format, &mut body);
            *request.body_mut() = body.into();
            let kind = HeaderValue::from_static(self.format.content_type());
            request.headers_mut().insert(CONTENT_TYPE, kind);
        }
        let answer = client
            .request(request, self.timeout)
            .await
            .map_err(|error| self.of_client(error))?;
        if answer.status.is_success() {
            return Ok(());
        }
        Err(refused(&url, &answer))
    }

    /// Where the group is.
    fn group_url(&self) -> Result<Uri, PushError> {
        if let Some(fault) = &self.fault {
            return Err(fault.clone());
        }
        let wrong = |why: &str| PushError::Url {
            url: redacted(&self.url),
            why: why.to_owned(),
        };
        let base = check_url(&self.url).map_err(|error| self.of_client(error))?;
        if base.query().is_some() {
            return Err(wrong(
                "it asks something (?…), and a group has no such part",
            ));
        }
        let parts: Vec<&str> = base.path().split('/').collect();
        let is_of_group =
            |two: &[&str]| two[0] == "metrics" && matches!(two[1], "job" | "job@base64");
        if parts.windows(2).any(is_of_group) {
            return Err(wrong(
                "it is that of a group; the job is given beside it, and the path is made here",
            ));
        }
        if self.job.is_empty() {
            return Err(PushError::Job);
        }
        let mut url = self.url.trim_end_matches('/').to_owned();
        url.push_str("/metrics");
        push_component(&mut url, "job", &self.job);
        for (label, value) in &self.grouping {
            push_component(&mut url, label, value);
        }
        url.parse()
            .map_err(|_| wrong("with the names of job and group it is too long"))
    }

    fn of_client(&self, error: ClientError) -> PushError {
        match error {
            ClientError::Url { url, why } => PushError::Url { url, why },
            ClientError::File { .. } | ClientError::Tls { .. } => PushError::Setup {
                why: error.to_string(),
            },
            ClientError::Unreachable { .. }
            | ClientError::Late { .. }
            | ClientError::Broken { .. } => PushError::Unreachable {
                why: error.to_string(),
            },
        }
    }
}

fn refused(url: &Uri, answer: &Answer) -> PushError {
    let said = match answer.words() {
        words if words.is_empty() => {
            let reason = answer
                .status
                .canonical_reason()
                .unwrap_or("no reason given");
            reason.to_owned()
        }
        words => words,
    };
    PushError::Refused {
        url: redacted(&url.to_string()),
        status: answer.status.as_u16(),
        said,
    }
}

/// `/label/value`; a value that a path can't hold as it is in base64, as the gateway has it.
fn push_component(url: &mut String, label: &str, value: &str) {
    url.push('/');
    url.push_str(label);
    // Whoever is on the way may take `.` and `..` for steps in the path.
    if value.contains('/') || matches!(value, "" | "." | "..") {
        url.push_str("@base64/");
        // Nothing at all would be no part of a path.
        match value {
            "" => url.push('='),
            value => URL_SAFE_NO_PAD.encode_string(value, url),
        }
    } else {
        url.push('/');
        url.extend(utf8_percent_encode(value, PLAIN));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::served::{Reply, Server};

    fn bus() -> MetricBus {
        let bus = MetricBus::new();
        bus.counter("c_total", "h").unwrap().inc();
        bus
    }

    #[test]
    fn a_group_has_the_path_that_a_gateway_reads() {
        for (url, job, grouping, path) in [
            ("http://h", "j", &[][..], "/metrics/job/j"),
            ("http://h:9091/", "j", &[("a", "b")], "/metrics/job/j/a/b"),
            (
                "http://h/p/q/",
                "a b?&%+",
                &[],
                "/p/q/metrics/job/a%20b%3F%26%25%2B",
            ),
            ("http://h", "ü🦀", &[], "/metrics/job/%C3%BC%F0%9F%A6%80"),
            (
                "http://h/metrics/jobs",
                "j",
                &[],
                "/metrics/jobs/metrics/job/j",
            ),
            (
                "http://h",
                "/",
                &[
                    ("path", "/var/tmp"),
                    ("empty", ""),
                    ("dots", ".."),
                    ("x", "y"),
                ],
                "/metrics/job@base64/Lw/path@base64/L3Zhci90bXA/empty@base64/=/dots@base64/Li4/x/y",
            ),
        ] {
            let mut push = Push::new(url, job);
            for (label, value) in grouping {
                push = push.grouping(*label, *value);
            }
            assert_eq!(push.group_url().unwrap().path(), path);
        }
    }

    #[test]
    fn a_push_replaces_an_add_adds_and_a_delete_deletes() {
        let server = Server::start(|_| Reply::status(202));
        let push = Push::new(server.url(), "j")
            .basic_auth("me", "s3cr3t")
            .header("X-Tenant", "7");
        push.push_blocking(&bus()).unwrap();
        push.clone()
            .format(Format::Protobuf)
            .add_blocking(&bus())
            .unwrap();
        push.delete_blocking().unwrap();
        let seen = server.next();
        assert_eq!((seen.method, &*seen.path), (Method::PUT, "/metrics/job/j"));
        assert_eq!(seen.headers["authorization"], "Basic bWU6czNjcjN0");
        assert_eq!(seen.headers["x-tenant"], "7");
        assert_eq!(seen.headers["content-type"], Format::Text.content_type());
        assert_eq!(
            seen.body,
            "# HELP c_total h\n# TYPE c_total counter\nc_total 1\n"
        );
        let seen = server.next();
        assert_eq!(seen.method, Method::POST);
        assert_eq!(
            seen.headers["content-type"],
            Format::Protobuf.content_type()
        );
        let seen = server.next();
        assert_eq!((seen.method, seen.body.len()), (Method::DELETE, 0));
        assert!(!format!("{push:?}").contains("s3cr3t"));
    }

    #[test]
    fn what_the_gateway_says_is_passed_on() {
        let server =
            Server::start(|_| Reply::with(400, &[], "text format parsing error\n in line 1"));
        let error = Push::new(server.url(), "j")
            .push_blocking(&bus())
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "{}/metrics/job/j refused it with status 400: text format parsing error in line 1",
                server.url()
            )
        );
        let server = Server::start(|_| Reply::status(401));
        let error = Push::new(server.url(), "j").delete_blocking().unwrap_err();
        assert!(error.to_string().ends_with("401: Unauthorized"), "{error}");
    }

    #[test]
    fn a_gateway_that_is_not_there_or_hangs_is_an_error_in_time() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let dead = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let error = Push::new(dead, "j").push_blocking(&bus()).unwrap_err();
        assert!(matches!(error, PushError::Unreachable { .. }), "{error}");
        assert!(
            error.to_string().contains("nothing listens there"),
            "{error}"
        );

        let server = Server::start(|_| Reply::Hang);
        let push = Push::new(server.url(), "j").timeout(Duration::from_millis(20));
        let error = push.push_blocking(&bus()).unwrap_err();
        assert!(
            error.to_string().contains("has not answered within 20ms"),
            "{error}"
        );
    }

    #[test]
    fn what_is_given_wrong_is_told_before_anything_is_sent() {
        let push = || Push::new("http://127.0.0.1:9091", "j");
        for (push, says) in [
            (
                Push::new("127.0.0.1:9091", "j"),
                "does not begin with http://",
            ),
            (
                Push::new("http://127.0.0.1:9091/?a=b", "j"),
                "asks something",
            ),
            (
                Push::new("http://h/metrics/job/x", "j"),
                "it is that of a group",
            ),
            (
                Push::new("http://127.0.0.1:9091", ""),
                "the job has no name",
            ),
            (push().grouping("job", "x"), "given to Push::new"),
            (push().grouping("a-b", "x"), "'-'"),
            (push().grouping("__name__", "x"), "Prometheus's own"),
            (push().grouping("a", "x").grouping("a", "y"), "given twice"),
            (push().header("a b", "x"), "not one of a header"),
            (
                push().header("a", "x\ny"),
                "characters that a header can't have",
            ),
            (push().header("Content-Type", "x"), "set here"),
            (push().basic_auth("a:b", "c"), "can have no ':'"),
            (
                push().format(Format::OpenMetrics),
                "does not read OpenMetrics",
            ),
            (push().root_certificate("/nowhere.pem"), "/nowhere.pem"),
        ] {
            let error = push.push_blocking(&bus()).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn outside_of_a_runtime_a_push_says_so_instead_of_panicking() {
        use futures::FutureExt;
        let push = Push::new("http://127.0.0.1:9091", "j");
        let error = push.push(&bus()).now_or_never().unwrap().unwrap_err();
        assert_eq!(error, PushError::NoRuntime);
    }
}
