//! Certificates that a test makes for itself.

use std::{
    fs,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use tempfile::TempDir;

/// Somebody who signs certificates. Two of them do not know each other.
#[derive(Debug)]
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: TempDir,
}

/// A certificate and its key, as PEM files that live as long as their authority.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// The certificate alone; its authority's is not in it.
    pub certificate: PathBuf,
    /// PKCS #8.
    pub key: PathBuf,
}

impl Authority {
    /// An authority with a certificate that it signed itself.
    pub fn new() -> Authority {
        Authority::try_new().unwrap_or_else(|why| panic!("no certificates: {why}"))
    }

    fn try_new() -> Result<Authority, Box<dyn std::error::Error>> {
        let mut params = CertificateParams::new(Vec::new())?;
        let key = KeyPair::generate()?;
        // As with real ones, no two have the same name.
        let name = URL_SAFE_NO_PAD.encode(key.public_key_raw());
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, key)?;
        let authority = Authority {
            issuer,
            folder: tempfile::tempdir()?,
        };
        fs::write(authority.root(), authority.issuer.pem())?;
        authority.sign("server", &["127.0.0.1", "localhost"])?;
        authority.sign("client", &["worker"])?;
        // For a name that nobody connects to.
        authority.sign("elsewhere", &["elsewhere.example"])?;
        Ok(authority)
    }

    /// Its own certificate.
    pub fn root(&self) -> PathBuf {
        self.path("root", "pem")
    }

    /// For a server on 127.0.0.1.
    pub fn server(&self) -> Certificate {
        self.files("server")
    }

    /// For a client.
    pub fn client(&self) -> Certificate {
        self.files("client")
    }

    /// For a server on another host.
    pub fn elsewhere(&self) -> Certificate {
        self.files("elsewhere")
    }

    fn sign(&self, name: &str, hosts: &[&str]) -> Result<(), Box<dyn std::error::Error>> {
        let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
        let mut params = CertificateParams::new(hosts)?;
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate()?;
        let files = self.files(name);
        fs::write(
            files.certificate,
            params.signed_by(&key, &self.issuer)?.pem(),
        )?;
        fs::write(files.key, key.serialize_pem())?;
        Ok(())
    }

    fn files(&self, name: &str) -> Certificate {
        Certificate {
            certificate: self.path(name, "pem"),
            key: self.path(name, "key"),
        }
    }

    fn path(&self, name: &str, extension: &str) -> PathBuf {
        Path::new(self.folder.path()).join(format!("{name}.{extension}"))
    }
}

impl Default for Authority {
    fn default() -> Self {
        Authority::new()
    }
}
