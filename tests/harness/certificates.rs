//! Authorities of the test's own, and servers they vouch for.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::CertificateDer;
use shoal_wire::nix::base64;

pub struct Authority {
    root: CertificateDer<'static>,
    /// A certificate between the root and the servers, as real authorities have one.
    between: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

/// A chain and its key, as PEM.
pub struct Pair {
    pub chain: String,
    pub key: String,
}

impl Authority {
    pub fn make() -> Authority {
        let (root, root_key) = (authority("root"), KeyPair::generate().unwrap());
        let root_certificate = root.self_signed(&root_key).unwrap();
        let (between, key) = (authority("between"), KeyPair::generate().unwrap());
        let between_certificate = between.signed_by(&key, &Issuer::new(root, root_key)).unwrap();
        Authority {
            root: root_certificate.der().clone(),
            between: between_certificate,
            issuer: Issuer::new(between, key),
        }
    }

    /// For `localhost` and 127.0.0.1.
    pub fn pair(&self) -> Pair {
        let params = CertificateParams::new(["localhost", "127.0.0.1"].map(String::from)).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let chain = [&certificate, &self.between].map(|part| pem("CERTIFICATE", part.der())).concat();
        Pair { chain, key: pem("PRIVATE KEY", &key.serialize_der()) }
    }

    /// What a client is given that is to believe it.
    pub fn root_pem(&self) -> String {
        pem("CERTIFICATE", &self.root)
    }
}

fn pem(kind: &str, der: &[u8]) -> String {
    format!("-----BEGIN {kind}-----\n{}\n-----END {kind}-----\n", base64::encode(der))
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new([]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

/// The files of a server's certificate and key.
pub struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    pub fn of(pair: &Pair) -> Files {
        let files = Files { dir: tempfile::tempdir().unwrap() };
        files.write(pair);
        files
    }

    pub fn write(&self, pair: &Pair) {
        self.write_raw(&pair.chain, &pair.key);
    }

    pub fn write_raw(&self, chain: &str, key: &str) {
        // As certificates are renewed: new files in the place of old ones.
        for (path, text) in [(self.certificate(), chain), (self.key(), key)] {
            let new = path.with_extension("new");
            fs::write(&new, text).unwrap();
            fs::rename(new, path).unwrap();
        }
    }

    pub fn certificate(&self) -> PathBuf {
        self.dir.path().join("chain.pem")
    }

    pub fn key(&self) -> PathBuf {
        self.dir.path().join("key.pem")
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}
