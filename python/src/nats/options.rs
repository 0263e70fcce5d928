//! Where the servers are, and as whom to connect.

use std::path::PathBuf;

use metricbus::nats;
use pyo3::{
    exceptions::PyTypeError,
    prelude::*,
    types::{PyString, PyStringMethods},
};

use crate::{
    convert::{self, OneOrMore},
    error::Raise,
};

/// Which NATS servers to connect to, and as whom.
///
/// `urls` is one URL, or several: with commas between them, or as a list. `nats://` and port 4222 may be left out; `tls://`
/// demands TLS; `user:password@` or `token@` may stand before the host.
///
/// What is shown to the server to be let in is one of: `user` and `password`, `token`, `credentials_file` (a user's JWT and
/// seed, as `nsc` writes them), `credentials` (the content of such a file), `nkey_file`, `nkey` (the seed itself).
///
/// `root_certificates`: PEM files with those who may vouch for a server, in place of the system's. `client_certificate`: the
/// certificate to show to the server, and its key. `require_tls`: no connection without TLS. `tls_first`: TLS from the first
/// byte. `name`: what the connection is called in the server's lists. `ping_interval`: how often a silent server is asked
/// whether it is there, 5 s unless told otherwise. `inbox_prefix`: under what answers are received.
///
/// No text of it, and of no error, holds a secret. Files are read when a connection is made.
#[pyclass(frozen, module = "metricbus")]
pub(crate) struct NatsOptions(nats::NatsOptions);

#[pymethods]
impl NatsOptions {
    #[new]
    #[pyo3(signature = (urls, *, user=None, password=None, token=None, credentials_file=None, credentials=None, nkey_file=None, nkey=None, root_certificates=None, client_certificate=None, require_tls=false, tls_first=false, name=None, ping_interval=None, inbox_prefix=None))]
    #[expect(clippy::too_many_arguments, reason = "keywords in Python")]
    fn new(
        urls: OneOrMore<String>,
        user: Option<String>,
        password: Option<String>,
        token: Option<String>,
        credentials_file: Option<PathBuf>,
        credentials: Option<String>,
        nkey_file: Option<PathBuf>,
        nkey: Option<String>,
        root_certificates: Option<OneOrMore<PathBuf>>,
        client_certificate: Option<(PathBuf, PathBuf)>,
        require_tls: bool,
        tls_first: bool,
        name: Option<String>,
        ping_interval: Option<&Bound<'_, PyAny>>,
        inbox_prefix: Option<String>,
    ) -> PyResult<NatsOptions> {
        let mut options = nats::NatsOptions::new(&Vec::from(urls).join(",")).or_raise()?;
        match (user, password) {
            (Some(user), Some(password)) => options = options.user_and_password(user, password),
            (None, None) => {}
            (user, _) => {
                let (given, missing) = match user {
                    Some(_) => ("user", "password"),
                    None => ("password", "user"),
                };
                return Err(PyTypeError::new_err(format!(
                    "{given}= is given without {missing}=; a token alone is given by token="
                )));
            }
        }
        if let Some(token) = token {
            options = options.token(token);
        }
        if let Some(path) = credentials_file {
            options = options.credentials_file(path);
        }
        if let Some(text) = credentials {
            options = options.credentials(text);
        }
        if let Some(path) = nkey_file {
            options = options.nkey_file(path);
        }
        if let Some(seed) = nkey {
            options = options.nkey(seed);
        }
        for path in root_certificates.map(Vec::from).unwrap_or_default() {
            options = options.root_certificates(path);
        }
        if let Some((certificate, key)) = client_certificate {
            options = options.client_certificate(certificate, key);
        }
        if require_tls {
            options = options.require_tls();
        }
        if tls_first {
            options = options.tls_first();
        }
        if let Some(name) = name {
            options = options.name(name);
        }
        if let Some(interval) = ping_interval {
            options = options.ping_interval(convert::duration("ping_interval", interval)?);
        }
        if let Some(prefix) = inbox_prefix {
            options = options.inbox_prefix(prefix);
        }
        Ok(NatsOptions(options))
    }

    /// As the environment says, with the variables of the `nats` command line tool: `NATS_URL` (`nats://127.0.0.1:4222` if
    /// not set), `NATS_CREDS`, `NATS_NKEY`, `NATS_USER` and `NATS_PASSWORD`, `NATS_TOKEN`, `NATS_CA`, `NATS_CERT` and
    /// `NATS_KEY`. An empty variable counts as one that is not set.
    #[staticmethod]
    fn from_env() -> PyResult<NatsOptions> {
        nats::NatsOptions::from_env().or_raise().map(NatsOptions)
    }

    /// Without secrets.
    fn __repr__(&self) -> String {
        format!("{:?}", self.0)
    }
}

impl NatsOptions {
    /// Options as an argument: as such, or as URLs alone.
    pub(super) fn of(value: &Bound<'_, PyAny>) -> PyResult<nats::NatsOptions> {
        if let Ok(options) = value.cast::<NatsOptions>() {
            return Ok(options.get().0.clone());
        }
        if let Ok(urls) = value.cast::<PyString>() {
            return nats::NatsOptions::new(&urls.to_cow()?).or_raise();
        }
        Err(PyTypeError::new_err(format!(
            "a {} is no options; NatsOptions(\"nats://127.0.0.1:4222\"), NatsOptions.from_env() or a URL would be right",
            value.get_type().name()?
        )))
    }
}
