//! Who this node is over TLS: a certificate chain and its key, in PEM, read again when their files change.
//!
//! A handshake looks whether a file has another stamp than before, which costs two `stat`s. A pair that cannot be used
//! leaves the one before in use, so that half of a renewal locks nobody out.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, ensure};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, SupportedProtocolVersion};

use crate::files::Stamp;

/// A chain has a few certificates of some KiB.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// What a client may choose from, the best first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// A chain with its key, as the files have it.
pub struct Identity {
    certificate: PathBuf,
    key: PathBuf,
    state: Mutex<State>,
}

struct State {
    seen: [Stamp; 2],
    /// A file was so new when it was read that a later change may bear the same stamp.
    racy: bool,
    pair: Arc<CertifiedKey>,
    /// What was said last of a pair that cannot be used; it is said once.
    complaint: Option<String>,
}

impl Identity {
    /// Error: why the pair cannot be used.
    pub fn open(certificate: &Path, key: &Path) -> Result<Identity> {
        let seen = stamps(certificate, key);
        let pair = Arc::new(read(certificate, key)?);
        let state = State { seen, racy: seen.iter().any(|stamp| stamp.is_fresh()), pair, complaint: None };
        Ok(Identity { certificate: certificate.into(), key: key.into(), state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the files again, changed or not.
    pub fn reload(&self) {
        self.read_again(&mut self.lock());
    }

    fn current(&self) -> Arc<CertifiedKey> {
        let mut state = self.lock();
        if state.racy || state.seen != stamps(&self.certificate, &self.key) {
            self.read_again(&mut state);
        }
        state.pair.clone()
    }

    fn read_again(&self, state: &mut State) {
        state.seen = stamps(&self.certificate, &self.key);
        state.racy = state.seen.iter().any(|stamp| stamp.is_fresh());
        match read(&self.certificate, &self.key) {
            Ok(pair) => {
                if pair.cert != state.pair.cert {
                    tracing::info!(certificate = %self.certificate.display(), "new TLS connections get a new certificate");
                }
                state.pair = Arc::new(pair);
                state.complaint = None;
            }
            Err(error) => {
                let complaint = format!("{error:#}");
                if state.complaint.as_ref() != Some(&complaint) {
                    tracing::error!("the certificate stays the one from before: {complaint}");
                }
                state.complaint = Some(complaint);
            }
        }
    }

    /// How HTTP/1.1 and HTTP/2 are served with it.
    pub fn config(self: &Arc<Self>) -> Result<ServerConfig> {
        self.config_for(rustls::ALL_VERSIONS, &PROTOCOLS)
    }

    /// How HTTP/3 is.
    pub fn quic_config(self: &Arc<Self>) -> Result<ServerConfig> {
        self.config_for(&[&rustls::version::TLS13], &[b"h3"])
    }

    fn config_for(
        self: &Arc<Self>,
        versions: &[&'static SupportedProtocolVersion],
        protocols: &[&[u8]],
    ) -> Result<ServerConfig> {
        let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(versions)?;
        let mut config = builder.with_no_client_auth().with_cert_resolver(self.clone());
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        Ok(config)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("certificate", &self.certificate).field("key", &self.key).finish()
    }
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// A file that cannot be looked at is as good as none: reading it says why.
fn stamps(certificate: &Path, key: &Path) -> [Stamp; 2] {
    [certificate, key].map(|path| Stamp::of(path).unwrap_or(Stamp::Missing))
}

fn read(certificate: &Path, key: &Path) -> Result<CertifiedKey> {
    let (chain_name, key_name) = (certificate.display(), key.display());
    let pem = bytes(certificate).with_context(|| format!("cannot read the certificate {chain_name}"))?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .with_context(|| format!("{chain_name} is not the PEM of certificates"))?;
    ensure!(
        !chain.is_empty(),
        "{chain_name} holds no certificate; it takes the node's own in PEM, then those above it"
    );
    let pem = bytes(key).with_context(|| format!("cannot read the key {key_name}"))?;
    let private = PrivateKeyDer::from_pem_slice(&pem)
        .with_context(|| format!("{key_name} holds no private key in PEM, or one with a password"))?;
    CertifiedKey::from_der(chain, private, &provider())
        .with_context(|| format!("the key in {key_name} does not go with the first certificate in {chain_name}"))
}

fn bytes(path: &Path) -> io::Result<Vec<u8>> {
    let mut pem = Vec::new();
    let n = File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut pem)?;
    match n as u64 > FILE_BYTES_MAX {
        true => Err(io::Error::other(format!("it is longer than {FILE_BYTES_MAX} bytes"))),
        false => Ok(pem),
    }
}
