//! What a nats-server is told: its configuration file, as text.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use super::{Authority, Operator};

/// Which server is wanted. The default is a core one that everybody may do everything with.
#[derive(Debug, Clone, Default)]
pub struct Config {
    jetstream: bool,
    users: Vec<User>,
    tls: Option<Tls>,
    lines: Vec<String>,
}

#[derive(Debug, Clone)]
struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    root: PathBuf,
    clients: bool,
    first: bool,
}

/// Somebody who may connect, and what to.
#[derive(Debug, Clone)]
pub struct User {
    identity: String,
    publish: Permission,
    subscribe: Permission,
}

#[derive(Debug, Clone, Default)]
struct Permission {
    allow: Vec<String>,
    deny: Vec<String>,
}

impl Config {
    /// A core server without anything.
    pub fn core() -> Config {
        Config::default()
    }

    /// With JetStream, its store in the server's folder.
    pub fn jetstream() -> Config {
        Config {
            jetstream: true,
            ..Config::default()
        }
    }

    /// Only those that were named here may connect.
    pub fn user(mut self, user: User) -> Config {
        self.users.push(user);
        self
    }

    /// Users come with credentials that this operator's account signed.
    pub fn operator(mut self, operator: &Operator) -> Config {
        self.lines.extend(operator.config());
        self
    }

    /// Over TLS, with a certificate of this authority for 127.0.0.1 and localhost.
    pub fn tls(mut self, authority: &Authority) -> Config {
        let server = authority.server();
        self.tls = Some(Tls {
            certificate: server.certificate,
            key: server.key,
            root: authority.root(),
            clients: false,
            first: false,
        });
        self
    }

    /// With [`tls`](Config::tls): who has no certificate of the same authority is refused.
    pub fn verify_clients(mut self) -> Config {
        if let Some(tls) = &mut self.tls {
            tls.clients = true;
        }
        self
    }

    /// With [`tls`](Config::tls): the handshake comes before anything else. Needs 2.10.
    pub fn tls_first(mut self) -> Config {
        if let Some(tls) = &mut self.tls {
            tls.first = true;
        }
        self
    }

    /// The greatest message, in bytes.
    pub fn max_payload(self, bytes: usize) -> Config {
        self.line(format!("max_payload: {bytes}"))
    }

    /// Any other line of the file.
    pub fn line(mut self, line: impl Into<String>) -> Config {
        self.lines.push(line.into());
        self
    }

    pub(super) fn text(&self, port: u16, monitoring: u16, store: &Path) -> String {
        let mut text = format!(
            "server_name: metricbus-test\nlisten: \"127.0.0.1:{port}\"\nhttp: \"127.0.0.1:{monitoring}\"\n"
        );
        if self.jetstream {
            let _ = writeln!(
                text,
                "jetstream {{ store_dir: {store:?}, max_mem: 64MB, max_file: 1GB }}"
            );
        }
        if !self.users.is_empty() {
            let users: Vec<_> = self.users.iter().map(User::text).collect();
            let _ = writeln!(text, "authorization {{ users: [{}] }}", users.join(", "));
        }
        if let Some(tls) = &self.tls {
            let first = if tls.first {
                ", handshake_first: true"
            } else {
                ""
            };
            let _ = writeln!(
                text,
                "tls {{ cert_file: {:?}, key_file: {:?}, ca_file: {:?}, verify: {}, timeout: 5{first} }}",
                tls.certificate, tls.key, tls.root, tls.clients
            );
        }
        for line in &self.lines {
            let _ = writeln!(text, "{line}");
        }
        text
    }
}

impl User {
    /// Who comes with a name and a password, and may do everything.
    pub fn password(name: &str, password: &str) -> User {
        User::of(format!("user: {name:?}, password: {password:?}"))
    }

    /// Who proves to have the seed of this public nkey, and may do everything.
    pub fn nkey(public: &str) -> User {
        User::of(format!("nkey: {public:?}"))
    }

    fn of(identity: String) -> User {
        User {
            identity,
            publish: Permission::default(),
            subscribe: Permission::default(),
        }
    }

    /// Must not publish to these subjects.
    pub fn deny_publish(mut self, subjects: &[&str]) -> User {
        self.publish.deny = subjects.iter().map(|&s| s.to_owned()).collect();
        self
    }

    /// Must not subscribe to these subjects.
    pub fn deny_subscribe(mut self, subjects: &[&str]) -> User {
        self.subscribe.deny = subjects.iter().map(|&s| s.to_owned()).collect();
        self
    }

    /// May publish to nothing but these subjects.
    pub fn allow_publish(mut self, subjects: &[&str]) -> User {
        self.publish.allow = subjects.iter().map(|&s| s.to_owned()).collect();
        self
    }

    /// May subscribe to nothing but these subjects.
    pub fn allow_subscribe(mut self, subjects: &[&str]) -> User {
        self.subscribe.allow = subjects.iter().map(|&s| s.to_owned()).collect();
        self
    }

    fn text(&self) -> String {
        let mut permissions = Vec::new();
        for (verb, permission) in [("publish", &self.publish), ("subscribe", &self.subscribe)] {
            let mut lists = Vec::new();
            if !permission.allow.is_empty() {
                lists.push(format!("allow: {:?}", permission.allow));
            }
            if !permission.deny.is_empty() {
                lists.push(format!("deny: {:?}", permission.deny));
            }
            if !lists.is_empty() {
                permissions.push(format!("{verb}: {{ {} }}", lists.join(", ")));
            }
        }
        if permissions.is_empty() {
            format!("{{ {} }}", self.identity)
        } else {
            format!(
                "{{ {}, permissions: {{ {} }} }}",
                self.identity,
                permissions.join(", ")
            )
        }
    }
}
