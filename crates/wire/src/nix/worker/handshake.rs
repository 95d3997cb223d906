//! The first words of a connection.
//!
//! The server answers the client's magic before it reads the client's version: clients before 2.23 wait for
//! that. Clients 2.23 send their version twice; the second one is read as the obsolete CPU affinity flag.

use super::stderr::{RemoteError, StderrMessage};
use super::{CLIENT_MAGIC, MAJOR, MINOR_MAX, MINOR_MIN, SERVER_MAGIC};
use crate::nix::proto::{Codec, Dialect, Feature, ProtoError, Reader, TOKEN_LEN_MAX, Writer, number_enum};
use crate::nix::store_path::StoreDir;
use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use thiserror::Error;

/// First minor versions with each part.
const FEATURES_SINCE: u8 = 38;
const TRUST_SINCE: u8 = 35;
const NIX_VERSION_SINCE: u8 = 33;

/// Most features that a peer may name; Nix knows five.
const FEATURES_MAX: u64 = 256;
/// Messages before the first request that a client keeps; servers have a few warnings at most.
const MESSAGES_MAX: usize = 256;

number_enum! {
    /// Whether the server trusts the client. Clients choose by it how they send builds.
    Trust ("trust level") { Unknown = 0, Trusted = 1, NotTrusted = 2 }
}

/// What a server announces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    pub store_dir: StoreDir,
    pub features: BTreeSet<Feature>,
    /// The version of Nix that clients are told, such as `2.34.8`.
    pub nix_version: String,
    pub trust: Trust,
}

/// What a client learned from a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerInfo {
    /// From 1.33 on.
    pub nix_version: Option<String>,
    pub trust: Trust,
    /// What the server logged before the first request.
    pub messages: Vec<StderrMessage>,
}

/// Why there is no connection.
#[derive(Debug, Error)]
pub enum HandshakeError {
    #[error(transparent)]
    Proto(#[from] ProtoError),
    #[error("protocol mismatch: the peer began with {0:#x}")]
    Magic(u64),
    #[error("the peer speaks version {}.{} of the protocol; {MAJOR}.{MINOR_MIN} is the oldest supported", .0 >> 8, .0 & 0xff)]
    Version(u64),
    #[error("the server refused: {0}")]
    Refused(RemoteError),
}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        HandshakeError::Proto(error.into())
    }
}

/// The server's half, up to the log stream: write messages where there are some, then
/// [`StderrMessage::Last`] and flush, or [`StderrMessage::Error`] to refuse. Sets both dialects.
pub fn accept<R: Read, W: Write>(r: &mut Reader<R>, w: &mut Writer<W>, offer: &Offer) -> Result<(), HandshakeError> {
    r.begin();
    match r.u64()? {
        CLIENT_MAGIC => {}
        other => return Err(HandshakeError::Magic(other)),
    }
    w.u64(SERVER_MAGIC)?;
    w.u64(version_word())?;
    w.flush()?;
    let mut dialect = Dialect::new(offer.store_dir.clone(), common_minor(r.u64()?)?);
    if dialect.minor >= FEATURES_SINCE {
        dialect.features = &read_features(r)? & &offer.features;
        write_features(&offer.features, w)?;
        w.flush()?;
    }
    let has_affinity: bool = r.get()?;
    if has_affinity {
        let _cpu = r.u64()?;
    }
    let _reserve_space = r.u64()?;
    if dialect.minor >= NIX_VERSION_SINCE {
        w.string(&offer.nix_version)?;
    }
    if dialect.minor >= TRUST_SINCE {
        w.put(&offer.trust)?;
    }
    r.set_dialect(dialect.clone());
    w.set_dialect(dialect);
    Ok(())
}

/// The client's half, to its end. `minor` is what the client announces, [`MINOR_MIN`] to [`MINOR_MAX`]. Sets
/// both dialects.
pub fn connect<R: Read, W: Write>(
    r: &mut Reader<R>,
    w: &mut Writer<W>,
    minor: u8,
    features: &BTreeSet<Feature>,
) -> Result<ServerInfo, HandshakeError> {
    w.u64(CLIENT_MAGIC)?;
    w.u64(MAJOR << 8 | u64::from(minor))?;
    w.flush()?;
    r.begin();
    match r.u64()? {
        SERVER_MAGIC => {}
        other => return Err(HandshakeError::Magic(other)),
    }
    let mut dialect = r.dialect().clone();
    dialect.minor = common_minor(r.u64()?)?.min(minor);
    if dialect.minor >= FEATURES_SINCE {
        write_features(features, w)?;
        w.flush()?;
        dialect.features = &read_features(r)? & features;
    }
    w.bool(false)?;
    w.u64(0)?;
    w.flush()?;
    let has_version = dialect.minor >= NIX_VERSION_SINCE;
    let nix_version = has_version.then(|| r.string("version", TOKEN_LEN_MAX)).transpose()?;
    let trust = if dialect.minor >= TRUST_SINCE { r.get()? } else { Trust::Unknown };
    r.set_dialect(dialect.clone());
    w.set_dialect(dialect);
    let mut messages = Vec::new();
    loop {
        match r.get()? {
            StderrMessage::Last => return Ok(ServerInfo { nix_version, trust, messages }),
            StderrMessage::Error(error) => return Err(HandshakeError::Refused(error)),
            message if messages.len() < MESSAGES_MAX => messages.push(message),
            _ => {}
        }
    }
}

fn version_word() -> u64 {
    MAJOR << 8 | u64::from(MINOR_MAX)
}

/// The lower of our version and the peer's.
fn common_minor(version: u64) -> Result<u8, HandshakeError> {
    let minor = (version & 0xff) as u8;
    match version >> 8 == MAJOR && minor >= MINOR_MIN {
        true => Ok(minor.min(MINOR_MAX)),
        false => Err(HandshakeError::Version(version)),
    }
}

/// The features that have a name here; a peer may know others.
fn read_features<R: Read>(r: &mut Reader<R>) -> Result<BTreeSet<Feature>, ProtoError> {
    let len = r.u64()?;
    if len > FEATURES_MAX {
        return Err(ProtoError::TooLong { what: "feature list", len, limit: FEATURES_MAX });
    }
    let mut features = BTreeSet::new();
    for _ in 0..len {
        let name = r.string("feature", TOKEN_LEN_MAX)?;
        features.extend(Feature::from_name(&name));
    }
    Ok(features)
}

fn write_features<W: Write>(features: &BTreeSet<Feature>, w: &mut Writer<W>) -> io::Result<()> {
    let names: BTreeSet<String> = features.iter().map(|feature| feature.name().to_owned()).collect();
    names.write(w)
}
