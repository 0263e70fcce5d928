//! NATS credentials files: an operator, its one account, and users that the account signs.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use nkeys::KeyPair;
use serde_json::{Value, json};

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// An operator with one account, whose users a server of its admits.
#[derive(Debug)]
pub struct Operator {
    operator: KeyPair,
    account: KeyPair,
}

impl Operator {
    /// With keys of its own: another operator's users are strangers to it.
    pub fn new() -> Operator {
        Operator {
            operator: KeyPair::new_operator(),
            account: KeyPair::new_account(),
        }
    }

    /// What a server is told, to admit its users.
    pub(super) fn config(&self) -> Vec<String> {
        let operator = token(
            &self.operator,
            &self.operator,
            "operator",
            json!({ "type": "operator", "version": 2 }),
            None,
        );
        let unlimited = json!({
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
        });
        let account = token(
            &self.operator,
            &self.account,
            "account",
            json!({ "type": "account", "version": 2, "limits": unlimited }),
            None,
        );
        vec![
            format!("operator: {operator}"),
            "resolver: MEMORY".to_owned(),
            format!(
                "resolver_preload: {{ {}: {account} }}",
                self.account.public_key()
            ),
        ]
    }

    /// The text of a credentials file for a new user.
    pub fn credentials(&self) -> String {
        self.sign(None)
    }

    /// The same for a user whose time was over an hour ago.
    pub fn expired_credentials(&self) -> String {
        self.sign(Some(SystemTime::now() - Duration::from_secs(3600)))
    }

    /// The same for a user whose time will soon be over.
    pub fn credentials_until(&self, end: SystemTime) -> String {
        self.sign(Some(end))
    }

    fn sign(&self, expires: Option<SystemTime>) -> String {
        let user = KeyPair::new_user();
        let claims = json!({ "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1 });
        let token = token(&self.account, &user, "worker", claims, expires);
        let seed = user
            .seed()
            .unwrap_or_else(|why| panic!("a new key has a seed: {why}"));
        format!(
            "-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        )
    }
}

impl Default for Operator {
    fn default() -> Self {
        Operator::new()
    }
}

/// A JWT as NATS reads it.
fn token(
    issuer: &KeyPair,
    subject: &KeyPair,
    name: &str,
    nats: Value,
    expires: Option<SystemTime>,
) -> String {
    let unix = |time: SystemTime| {
        time.duration_since(UNIX_EPOCH)
            .map_or(0, |time| time.as_secs())
    };
    let mut claims = json!({
        "jti": subject.public_key(),
        "iat": unix(SystemTime::now()),
        "iss": issuer.public_key(),
        "sub": subject.public_key(),
        "name": name,
        "nats": nats,
    });
    if let Some(expires) = expires {
        claims["exp"] = unix(expires).into();
    }
    let header = json!({ "typ": "JWT", "alg": "ed25519-nkey" });
    let signed = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(header.to_string()),
        URL_SAFE_NO_PAD.encode(claims.to_string())
    );
    let signature = issuer
        .sign(signed.as_bytes())
        .unwrap_or_else(|why| panic!("a new key signs: {why}"));
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}
