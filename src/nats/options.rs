//! What is needed to reach a NATS server: addresses, credentials, TLS. Checked in full before the first connection, so that
//! a typing error is an error, and only the network is waited for.

use std::{
    env, fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_nats::{
    AuthError, ConnectOptions, ServerAddr,
    rustls::{
        self,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};
use nkeys::{KeyPair, KeyPairType};
use percent_encoding::percent_decode_str;

use super::error::NatsError;

/// After two of these without an answer the connection is given up.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// For one attempt to connect to one address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Messages that wait in a subscription for its reader; beyond it the client drops new ones, and says so.
const SUBSCRIPTION_CAPACITY: usize = 16_384;
/// Messages that wait for the socket. Small: what is here is lost with the connection.
const COMMAND_CAPACITY: usize = 512;

/// Where the NATS servers are, and how to be let in: as `nats`, the command line tool, has it.
///
/// Nothing is read or opened before something is started with it. Files of credentials, keys and certificates are read
/// again at each connection, so that they can be replaced while a process runs.
///
/// ```
/// use metricbus::nats::NatsOptions;
///
/// let options = NatsOptions::new("nats://worker:s3cr3t@nats-0:4222,nats-1:4222")?
///     .name("decode-7")
///     .root_certificates("/etc/nats/ca.pem");
/// assert!(!format!("{options:?}").contains("s3cr3t"));
///
/// let error = NatsOptions::new("http://worker:s3cr3t@nats-0").unwrap_err().to_string();
/// assert!(error.starts_with(r#"NATS URL "http://nats-0" can't be used"#), "{error}");
/// # Ok::<(), metricbus::nats::NatsError>(())
/// ```
#[derive(Clone)]
#[must_use]
pub struct NatsOptions {
    /// Without user and password.
    servers: Vec<ServerAddr>,
    name: Option<String>,
    /// More than one is an error; told when started.
    auth: Vec<Auth>,
    root_certificates: Vec<PathBuf>,
    client_certificate: Option<(PathBuf, PathBuf)>,
    require_tls: bool,
    tls_first: bool,
    ping_interval: Duration,
    inbox_prefix: Option<String>,
}

#[derive(Clone, PartialEq)]
enum Auth {
    Password { user: String, password: String },
    Token(String),
    Nkey(String),
    NkeyFile(PathBuf),
    Credentials(String),
    CredentialsFile(PathBuf),
}

impl Auth {
    /// For people: which one, and no secret.
    fn words(&self) -> String {
        match self {
            Auth::Password { user, .. } => format!("user {user:?} with a password"),
            Auth::Token(_) => "a token".to_owned(),
            Auth::Nkey(seed) => match key_pair("nkey", seed) {
                Ok(pair) => format!("nkey {}", pair.public_key()),
                Err(_) => "an nkey".to_owned(),
            },
            Auth::NkeyFile(path) => format!("the nkey in {}", path.display()),
            Auth::Credentials(_) => "credentials given as text".to_owned(),
            Auth::CredentialsFile(path) => format!("the credentials file {}", path.display()),
        }
    }
}

/// Checked, and ready to connect.
pub(crate) struct Ready {
    pub(crate) servers: Vec<ServerAddr>,
    pub(crate) connect: ConnectOptions,
    /// With what it asks to be let in, for people.
    pub(crate) who: String,
    pub(crate) inbox_prefix: String,
    pub(crate) ping_interval: Duration,
}

impl NatsOptions {
    /// For these servers: one URL, or several with commas between them. `nats://` and port 4222 may be left out; `tls://`
    /// demands TLS; `user:password@` or `token@` may stand before the host, percent-encoded, and hold for all servers.
    ///
    /// # Errors
    ///
    /// A URL that can't be parsed or is of another kind, no URL at all, or users that differ.
    pub fn new(urls: &str) -> Result<NatsOptions, NatsError> {
        let mut options = NatsOptions {
            servers: Vec::new(),
            name: None,
            auth: Vec::new(),
            root_certificates: Vec::new(),
            client_certificate: None,
            require_tls: false,
            tls_first: false,
            ping_interval: PING_INTERVAL,
            inbox_prefix: None,
        };
        for url in urls.split(',').map(str::trim).filter(|url| !url.is_empty()) {
            let (server, auth) =
                server(url).map_err(|error| match (error, urls.rsplit_once('@')) {
                    // Perhaps a password with a comma in it: then a piece of it is all there is of this URL.
                    (NatsError::Url { why, .. }, Some((_, end))) if urls.contains(',') => {
                        NatsError::Url {
                            url: format!("…@{end}"),
                            why,
                        }
                    }
                    (error, _) => error,
                })?;
            options.servers.push(server);
            match (auth, options.auth.first()) {
                (Some(auth), Some(first)) if auth != *first => {
                    return Err(NatsError::Url {
                        url: redacted(url),
                        why: "it has another user, password or token than the one before, and one connection has only one"
                            .to_owned(),
                    });
                }
                (Some(auth), None) => options.auth.push(auth),
                _ => {}
            }
        }
        if options.servers.is_empty() {
            return Err(NatsError::Url {
                url: redacted(urls),
                why: "it names no server".to_owned(),
            });
        }
        Ok(options)
    }

    /// As the environment says, with the variables of the `nats` command line tool:
    ///
    /// | variable | as |
    /// |---|---|
    /// | `NATS_URL` | [`new`](NatsOptions::new); `nats://127.0.0.1:4222` if not set |
    /// | `NATS_CREDS` | [`credentials_file`](NatsOptions::credentials_file) |
    /// | `NATS_NKEY` | [`nkey_file`](NatsOptions::nkey_file) |
    /// | `NATS_USER`, `NATS_PASSWORD` | [`user_and_password`](NatsOptions::user_and_password); a user without a password is a token |
    /// | `NATS_TOKEN` | [`token`](NatsOptions::token) |
    /// | `NATS_CA` | [`root_certificates`](NatsOptions::root_certificates) |
    /// | `NATS_CERT`, `NATS_KEY` | [`client_certificate`](NatsOptions::client_certificate) |
    ///
    /// An empty variable counts as one that is not set.
    ///
    /// # Errors
    ///
    /// As [`new`](NatsOptions::new); a variable that is not Unicode; a password without a user; a certificate without its
    /// key, or the other way round.
    pub fn from_env() -> Result<NatsOptions, NatsError> {
        NatsOptions::from_vars(|name| match env::var(name) {
            Ok(value) => Ok(Some(value).filter(|value| !value.is_empty())),
            Err(env::VarError::NotPresent) => Ok(None),
            Err(env::VarError::NotUnicode(_)) => Err(NatsError::Setting {
                setting: name,
                value: "…".to_owned(),
                why: "the environment variable is not Unicode".to_owned(),
            }),
        })
    }

    fn from_vars(
        var: impl Fn(&'static str) -> Result<Option<String>, NatsError>,
    ) -> Result<NatsOptions, NatsError> {
        let url = var("NATS_URL")?;
        let mut options = NatsOptions::new(url.as_deref().unwrap_or("nats://127.0.0.1:4222"))?;
        let alone = |what: &'static str, missing: &str| NatsError::Credentials {
            what,
            why: format!("it is set, and {missing} is not: set both, or neither"),
        };
        if let Some(path) = var("NATS_CREDS")? {
            options = options.credentials_file(path);
        }
        if let Some(path) = var("NATS_NKEY")? {
            options = options.nkey_file(path);
        }
        match (var("NATS_USER")?, var("NATS_PASSWORD")?) {
            (Some(user), Some(password)) => options = options.user_and_password(user, password),
            (Some(token), None) => options = options.token(token),
            (None, Some(_)) => return Err(alone("NATS_PASSWORD", "NATS_USER")),
            (None, None) => {}
        }
        if let Some(token) = var("NATS_TOKEN")? {
            options = options.token(token);
        }
        if let Some(path) = var("NATS_CA")? {
            options = options.root_certificates(path);
        }
        match (var("NATS_CERT")?, var("NATS_KEY")?) {
            (Some(cert), Some(key)) => options = options.client_certificate(cert, key),
            (Some(_), None) => return Err(alone("NATS_CERT", "NATS_KEY")),
            (None, Some(_)) => return Err(alone("NATS_KEY", "NATS_CERT")),
            (None, None) => {}
        }
        Ok(options)
    }

    /// What the connection is called in the server's lists; `metricbus` and what it is for, unless told otherwise.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// The file with a user's JWT and seed, as `nsc` writes it.
    pub fn credentials_file(self, path: impl Into<PathBuf>) -> Self {
        self.with(Auth::CredentialsFile(path.into()))
    }

    /// The content of such a file.
    pub fn credentials(self, text: impl Into<String>) -> Self {
        self.with(Auth::Credentials(text.into()))
    }

    /// A user's nkey: its seed, which begins with `SU`.
    pub fn nkey(self, seed: impl Into<String>) -> Self {
        self.with(Auth::Nkey(seed.into()))
    }

    /// A file with such a seed.
    pub fn nkey_file(self, path: impl Into<PathBuf>) -> Self {
        self.with(Auth::NkeyFile(path.into()))
    }

    /// A user and a password, in place of those of the URL.
    pub fn user_and_password(self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.with(Auth::Password {
            user: user.into(),
            password: password.into(),
        })
    }

    /// A token, in place of that of the URL.
    pub fn token(self, token: impl Into<String>) -> Self {
        self.with(Auth::Token(token.into()))
    }

    /// In place of another of its kind.
    fn with(mut self, auth: Auth) -> Self {
        let kind = std::mem::discriminant(&auth);
        self.auth
            .retain(|other| std::mem::discriminant(other) != kind);
        self.auth.push(auth);
        self
    }

    /// A PEM file with the certificates of those who may vouch for a server, in place of the system's. May be called
    /// several times. Does not by itself demand TLS: the server does, or [`require_tls`](NatsOptions::require_tls).
    pub fn root_certificates(mut self, path: impl Into<PathBuf>) -> Self {
        self.root_certificates.push(path.into());
        self
    }

    /// PEM files with the certificate to show to the server, with those in between, and its key.
    pub fn client_certificate(
        mut self,
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Self {
        self.client_certificate = Some((certificate.into(), key.into()));
        self
    }

    /// No connection without TLS.
    pub fn require_tls(mut self) -> Self {
        self.require_tls = true;
        self
    }

    /// TLS from the first byte, for a server with `handshake_first`. Demands TLS.
    pub fn tls_first(mut self) -> Self {
        self.tls_first = true;
        self.require_tls = true;
        self
    }

    /// How often the server is asked whether it is there, while it says nothing else; two questions without an answer
    /// are the end of a connection. 5 s unless told otherwise, so that a dead one is noticed within 15 s.
    pub fn ping_interval(mut self, interval: Duration) -> Self {
        self.ping_interval = interval;
        self
    }

    /// Under what answers are received; `_INBOX` unless told otherwise. For users who may only subscribe to an inbox of
    /// their own.
    pub fn inbox_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.inbox_prefix = Some(prefix.into());
        self
    }

    /// Checks everything that can be checked without the network, and reads the files once to see that they are right.
    pub(crate) fn ready(&self, role: &str) -> Result<Ready, NatsError> {
        let who = match &self.auth[..] {
            [] => "no credentials".to_owned(),
            [auth] => auth.words(),
            [one, two, ..] => {
                return Err(NatsError::Credentials {
                    what: "two kinds of credentials",
                    why: format!("{} and {}: leave one", one.words(), two.words()),
                });
            }
        };
        if self.ping_interval < Duration::from_millis(10) {
            return Err(NatsError::Setting {
                setting: "ping_interval",
                value: format!("{:?}", self.ping_interval),
                why: "it must be at least 10ms, and 5s is usual".to_owned(),
            });
        }
        let inbox_prefix = self.inbox_prefix.as_deref().unwrap_or("_INBOX");
        check_inbox_prefix(inbox_prefix)?;
        let mut connect = match self.auth.first() {
            None => ConnectOptions::new(),
            Some(Auth::Password { user, password }) => {
                ConnectOptions::with_user_and_password(user.clone(), password.clone())
            }
            Some(Auth::Token(token)) => ConnectOptions::with_token(token.clone()),
            Some(other) => {
                // Once now, for the error; then at each connection, since files may have changed.
                signer(other)?;
                let auth = Arc::new(other.clone());
                ConnectOptions::with_auth_callback(move |nonce| {
                    let auth = auth.clone();
                    async move { sign(&auth, &nonce) }
                })
            }
        };
        self.check_tls()?;
        for path in &self.root_certificates {
            connect = connect.add_root_certificates(path.clone());
        }
        if let Some((certificate, key)) = &self.client_certificate {
            connect = connect.add_client_certificate(certificate.clone(), key.clone());
        }
        if self.require_tls {
            connect = connect.require_tls(true);
        }
        if self.tls_first {
            connect = connect.tls_first();
        }
        let name = match &self.name {
            Some(name) => name.clone(),
            None => format!("metricbus {role}"),
        };
        connect = connect
            .name(name)
            .ping_interval(self.ping_interval)
            .connection_timeout(CONNECT_TIMEOUT)
            .subscription_capacity(SUBSCRIPTION_CAPACITY)
            .client_capacity(COMMAND_CAPACITY)
            .custom_inbox_prefix(inbox_prefix)
            .retry_on_initial_connect();
        Ok(Ready {
            servers: self.servers.clone(),
            connect,
            who,
            inbox_prefix: inbox_prefix.to_owned(),
            ping_interval: self.ping_interval,
        })
    }

    fn check_tls(&self) -> Result<(), NatsError> {
        let mut roots = rustls::RootCertStore::empty();
        for path in &self.root_certificates {
            for certificate in certificates("root certificates", path)? {
                roots.add(certificate).map_err(|error| NatsError::File {
                    what: "root certificates",
                    path: path.clone(),
                    why: format!("a certificate in it can't be used: {error}"),
                })?;
            }
        }
        let Some((certificate, key)) = &self.client_certificate else {
            return Ok(());
        };
        let chain = certificates("client certificate", certificate)?;
        let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| NatsError::File {
            what: "client key",
            path: key.clone(),
            why: pem_words(&error, "a PEM file with a private key"),
        })?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| {
                builder
                    .with_root_certificates(roots)
                    .with_client_auth_cert(chain, secret)
            })
            .map_err(|error| NatsError::File {
                what: "client key",
                path: key.clone(),
                why: format!(
                    "it can't be used with the client certificate {certificate:?}: {error}"
                ),
            })?;
        Ok(())
    }
}

impl fmt::Debug for NatsOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let servers: Vec<_> = self.servers.iter().map(address).collect();
        let auth: Vec<_> = self.auth.iter().map(Auth::words).collect();
        f.debug_struct("NatsOptions")
            .field("servers", &servers)
            .field("name", &self.name)
            .field("auth", &auth)
            .field("root_certificates", &self.root_certificates)
            .field("client_certificate", &self.client_certificate)
            .field("require_tls", &self.require_tls)
            .field("tls_first", &self.tls_first)
            .field("ping_interval", &self.ping_interval)
            .field("inbox_prefix", &self.inbox_prefix)
            .finish()
    }
}

/// An address for people: without anything secret.
pub(crate) fn address(server: &ServerAddr) -> String {
    redacted(server.as_url_str())
}

/// Parses one URL, and takes user and password out of it.
fn server(url: &str) -> Result<(ServerAddr, Option<Auth>), NatsError> {
    let wrong = |why: String| NatsError::Url {
        url: redacted(url),
        why,
    };
    let parsed: ServerAddr = url
        .parse()
        .map_err(|error: std::io::Error| wrong(error.to_string()))?;
    if parsed.is_websocket() {
        return Err(wrong("WebSocket is not supported".to_owned()));
    }
    if parsed.host().is_empty() {
        return Err(wrong("it has no host".to_owned()));
    }
    if parsed.port() == 0 {
        return Err(wrong("port 0 is no port".to_owned()));
    }
    let decode = |text: &str| {
        percent_decode_str(text)
            .decode_utf8()
            .map(|text| text.into_owned())
            .map_err(|_| wrong("its user or password is not UTF-8 once percent-decoded".to_owned()))
    };
    let auth = match (parsed.username(), parsed.password()) {
        (Some(user), Some(password)) => Some(Auth::Password {
            user: decode(user)?,
            password: decode(password)?,
        }),
        (Some(token), None) => Some(Auth::Token(decode(token)?)),
        (None, Some(_)) => return Err(wrong("it has a password and no user".to_owned())),
        (None, None) => None,
    };
    let mut bare = parsed.into_inner();
    // Both refuse only URLs without a host.
    let _ = bare.set_username("");
    let _ = bare.set_password(None);
    let bare = ServerAddr::from_url(bare).map_err(|error| wrong(error.to_string()))?;
    Ok((bare, auth))
}

/// A URL without what stands before the host; also of text that is none.
fn redacted(url: &str) -> String {
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => (String::new(), url),
    };
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    format!("{scheme}{host}")
}

fn check_inbox_prefix(prefix: &str) -> Result<(), NatsError> {
    let right = !prefix.is_empty()
        && prefix.split('.').all(|token| {
            !token.is_empty()
                && !token
                    .chars()
                    .any(|c| c.is_whitespace() || c.is_control() || matches!(c, '*' | '>'))
        });
    if right {
        return Ok(());
    }
    Err(NatsError::Setting {
        setting: "inbox_prefix",
        value: prefix.to_owned(),
        why: "it must be tokens with dots between them, without spaces, '*' and '>', such as _INBOX.worker"
            .to_owned(),
    })
}

fn certificates(
    what: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, NatsError> {
    let wrong = |why| NatsError::File {
        what,
        path: path.to_owned(),
        why,
    };
    let read = |error: &_| wrong(pem_words(error, "a PEM file with certificates"));
    let found = CertificateDer::pem_file_iter(path)
        .map_err(|error| read(&error))?
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| read(&error))?;
    if found.is_empty() {
        return Err(wrong(
            "it holds no certificate; a PEM file with -----BEGIN CERTIFICATE----- would be right"
                .to_owned(),
        ));
    }
    Ok(found)
}

fn pem_words(error: &rustls::pki_types::pem::Error, right: &str) -> String {
    match error {
        rustls::pki_types::pem::Error::Io(error) => format!("it can't be read: {error}"),
        other => format!("{other}; {right} would be right"),
    }
}

/// What is wrong with credentials, with the file that they are in.
fn in_file(error: NatsError, path: &Path) -> NatsError {
    match error {
        NatsError::Credentials { what, why } => NatsError::File {
            what,
            path: path.to_owned(),
            why,
        },
        other => other,
    }
}

/// A user's JWT, where there is one, and the key that signs.
struct Signer {
    jwt: Option<String>,
    pair: KeyPair,
}

fn signer(auth: &Auth) -> Result<Signer, NatsError> {
    let nkey = |what, seed: &str| {
        Ok(Signer {
            jwt: None,
            pair: key_pair(what, seed)?,
        })
    };
    match auth {
        Auth::Nkey(seed) => nkey("nkey", seed),
        Auth::NkeyFile(path) => {
            nkey("nkey file", &read("nkey file", path)?).map_err(|error| in_file(error, path))
        }
        Auth::Credentials(text) => parse_credentials("credentials", text),
        Auth::CredentialsFile(path) => {
            let text = read("credentials file", path)?;
            parse_credentials("credentials file", &text).map_err(|error| in_file(error, path))
        }
        Auth::Password { .. } | Auth::Token(_) => Err(NatsError::Credentials {
            what: "password or token",
            why: "it signs nothing".to_owned(),
        }),
    }
}

fn sign(auth: &Auth, nonce: &[u8]) -> Result<async_nats::Auth, AuthError> {
    let Signer { jwt, pair } = signer(auth).map_err(AuthError::new)?;
    let signature = pair
        .sign(nonce)
        .map_err(|_| AuthError::new("the key can't sign"))?;
    let mut answer = async_nats::Auth::new();
    if jwt.is_none() {
        answer.nkey = Some(pair.public_key());
    }
    answer.jwt = jwt;
    answer.signature = Some(signature);
    Ok(answer)
}

/// Reads a small file with a secret. Blocks for as long as a local file takes.
fn read(what: &'static str, path: &Path) -> Result<String, NatsError> {
    // Somebody may have given the secret itself, which must not end in a log as a path that does not exist.
    let text = path.to_string_lossy();
    if text.contains("-----BEGIN") || text.contains('\n') || key_pair(what, &text).is_ok() {
        return Err(NatsError::Credentials {
            what,
            why: "the secret itself was given where the path of a file is meant".to_owned(),
        });
    }
    std::fs::read_to_string(path).map_err(|error| NatsError::File {
        what,
        path: path.to_owned(),
        why: format!("it can't be read: {error}"),
    })
}

fn key_pair(what: &'static str, seed: &str) -> Result<KeyPair, NatsError> {
    let right = "a user's seed begins with SU and has 58 characters; `nsc generate nkey --user` or `nk -gen user` makes one";
    let pair = KeyPair::from_seed(seed.trim()).map_err(|error| NatsError::Credentials {
        what,
        why: format!("its seed can't be used ({}); {right}", error.kind()),
    })?;
    if pair.key_pair_type() != KeyPairType::User {
        return Err(NatsError::Credentials {
            what,
            why: format!(
                "its seed is that of a key of type {:?}, not of a user; {right}",
                pair.key_pair_type()
            ),
        });
    }
    Ok(pair)
}

/// The first block is the JWT, the second the seed.
fn parse_credentials(what: &'static str, text: &str) -> Result<Signer, NatsError> {
    let mut lines = text.lines().map(str::trim);
    let mut block = |name: &str| {
        lines
            .by_ref()
            .find(|line| line.starts_with("---") && line.contains("BEGIN"))
            .and_then(|_| lines.by_ref().find(|line| !line.is_empty()))
            .map(str::to_owned)
            .ok_or_else(|| NatsError::Credentials {
                what,
                why: format!("it holds no {name}; a file as `nsc generate creds` writes it would be right, with -----BEGIN NATS USER JWT----- and -----BEGIN USER NKEY SEED-----"),
            })
    };
    let jwt = block("user JWT")?;
    let seed = block("seed")?;
    if jwt.split('.').count() != 3 {
        return Err(NatsError::Credentials {
            what,
            why: "its JWT is not one: it takes three parts with dots between them".to_owned(),
        });
    }
    Ok(Signer {
        jwt: Some(jwt),
        pair: key_pair(what, &seed)?,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn user_seed() -> String {
        KeyPair::new_user().seed().unwrap()
    }

    fn why(options: &NatsOptions) -> String {
        match options.ready("test") {
            Ok(_) => "nothing".to_owned(),
            Err(error) => error.to_string(),
        }
    }

    fn from(vars: &[(&'static str, &str)]) -> Result<NatsOptions, NatsError> {
        let vars: HashMap<_, _> = vars.iter().copied().collect();
        NatsOptions::from_vars(|name| Ok(vars.get(name).map(|&value| value.to_owned())))
    }

    #[test]
    fn a_url_may_leave_out_scheme_and_port_and_there_may_be_several() {
        let options = NatsOptions::new("a, nats://b:1 ,tls://[::1]:5").unwrap();
        let addresses: Vec<_> = options.servers.iter().map(address).collect();
        assert_eq!(addresses, ["nats://a", "nats://b:1", "tls://[::1]:5"]);
        assert_eq!(options.servers[0].port(), 4222);
    }

    #[test]
    fn the_user_of_a_url_is_decoded_and_kept_out_of_the_address() {
        let options = NatsOptions::new("nats://me:p%40ss@a,b").unwrap();
        assert!(
            options.auth
                == [Auth::Password {
                    user: "me".to_owned(),
                    password: "p@ss".to_owned()
                }]
        );
        assert_eq!(address(&options.servers[0]), "nats://a");
        let token = NatsOptions::new("t0k3n@a").unwrap();
        assert!(token.auth == [Auth::Token("t0k3n".to_owned())]);
    }

    #[test]
    fn a_wrong_url_is_an_error_that_shows_no_secret() {
        for (url, shown) in [
            ("", "names no server"),
            (" , ", "names no server"),
            ("http://u:s3cr3t@a", "scheme"),
            ("ws://u:s3cr3t@a", "WebSocket"),
            ("nats://u:s3cr3t@a:99999", "invalid"),
            ("nats://u:s3cr3t@a:0", "port 0"),
            ("u:s3cr3t@a b", "invalid"),
            ("nats://u:s3cr3t,s3cr3t@a:x", "invalid"),
            ("nats://u:s3cr3t@a,nats://u:0ther@b", "another user"),
        ] {
            let error = NatsOptions::new(url).unwrap_err().to_string();
            assert!(error.contains(shown), "{url}: {error}");
            for secret in ["s3cr3t", "0ther"] {
                assert!(!error.contains(secret), "{url}: {error}");
            }
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let seed = user_seed();
        let options = NatsOptions::new("nats://me:s3cr3t@a")
            .unwrap()
            .token("t0k3n")
            .nkey(&seed)
            .credentials("cr3ds");
        let shown = format!("{options:?}");
        for secret in ["s3cr3t", "t0k3n", &seed, "cr3ds"] {
            assert!(!shown.contains(secret), "{shown}");
        }
        assert!(shown.contains("user \\\"me\\\""), "{shown}");
    }

    #[test]
    fn the_environment_is_read_as_the_command_line_tool_does() {
        let options = from(&[]).unwrap();
        assert_eq!(address(&options.servers[0]), "nats://127.0.0.1:4222");
        assert!(options.auth.is_empty());
        let options = from(&[("NATS_URL", "a"), ("NATS_USER", "tok")]).unwrap();
        assert!(options.auth == [Auth::Token("tok".to_owned())]);
        let options = from(&[("NATS_USER", "me"), ("NATS_PASSWORD", "pw")]).unwrap();
        assert_eq!(options.auth[0].words(), r#"user "me" with a password"#);
        let options = from(&[("NATS_CREDS", "/c"), ("NATS_CA", "/ca")]).unwrap();
        assert!(options.auth == [Auth::CredentialsFile("/c".into())]);
        assert_eq!(options.root_certificates, [PathBuf::from("/ca")]);
        for half in ["NATS_PASSWORD", "NATS_CERT", "NATS_KEY"] {
            let error = from(&[(half, "s3cr3t")]).unwrap_err().to_string();
            assert!(
                error.starts_with(half) && !error.contains("s3cr3t"),
                "{error}"
            );
        }
    }

    #[test]
    fn two_kinds_of_credentials_are_an_error_and_two_of_one_kind_are_the_later() {
        let options = NatsOptions::new("a").unwrap().token("one").token("two");
        assert!(options.auth == [Auth::Token("two".to_owned())]);
        let both = why(&options.user_and_password("me", "pw"));
        assert_eq!(
            both,
            r#"two kinds of credentials: a token and user "me" with a password: leave one"#
        );
    }

    #[test]
    fn seeds_are_checked() {
        let options = || NatsOptions::new("a").unwrap();
        assert_eq!(
            why(&options().nkey(format!(" {}\n", user_seed()))),
            "nothing"
        );
        let wrong = why(&options().nkey("SUNOSEED"));
        assert!(
            wrong.contains("begins with SU") && !wrong.contains("NOSEED"),
            "{wrong}"
        );
        let account = KeyPair::new_account().seed().unwrap();
        let wrong = why(&options().nkey(account));
        assert!(wrong.contains("Account, not of a user"), "{wrong}");
        let seed = user_seed();
        let wrong = why(&options().nkey_file(&seed));
        assert!(
            wrong.contains("the secret itself") && !wrong.contains(&seed),
            "{wrong}"
        );
    }

    #[test]
    fn credentials_are_checked() {
        let seed = user_seed();
        let text = |jwt: &str, seed: &str| {
            format!(
                "-----BEGIN NATS USER JWT-----\r\n{jwt}\r\n------END NATS USER JWT------\r\n\r\n****\r\n-----BEGIN USER NKEY SEED-----\r\n{seed}\r\n------END USER NKEY SEED------\r\n"
            )
        };
        let options = || NatsOptions::new("a").unwrap();
        assert_eq!(why(&options().credentials(text("a.b.c", &seed))), "nothing");
        assert!(why(&options().credentials(text("abc", &seed))).contains("three parts"));
        assert!(why(&options().credentials(text("a.b.c", "S"))).contains("begins with SU"));
        assert!(why(&options().credentials("what?")).contains("holds no user JWT"));
        assert!(why(&options().credentials_file(text("a.b.c", &seed))).contains("secret itself"));
        assert!(why(&options().credentials_file("/no/such.creds")).contains("/no/such.creds"));
    }

    #[test]
    fn files_of_certificates_are_checked() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let options = || NatsOptions::new("a").unwrap();
        let missing = why(&options().root_certificates("/no/ca.pem"));
        assert!(
            missing.contains("/no/ca.pem") && missing.contains("can't be read"),
            "{missing}"
        );
        let empty = file("empty.pem", "");
        assert!(why(&options().root_certificates(&empty)).contains("no certificate"));
        let rubbish = file(
            "rubbish.pem",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        );
        assert!(why(&options().root_certificates(&rubbish)).contains("can't be used"));
        let key = why(&options().client_certificate(&rubbish, "/no/key.pem"));
        assert!(key.starts_with("client key \"/no/key.pem\""), "{key}");
    }

    #[test]
    fn an_inbox_prefix_is_a_subject_without_wildcards() {
        let options = || NatsOptions::new("a").unwrap();
        assert_eq!(why(&options().inbox_prefix("_INBOX.me")), "nothing");
        for wrong in ["", "a..b", "a.*", ">", "a b"] {
            assert!(why(&options().inbox_prefix(wrong)).starts_with("inbox_prefix"));
        }
    }
}
