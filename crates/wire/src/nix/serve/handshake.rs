//! Magic and version, each way.

use super::{CLIENT_MAGIC, MAJOR, MINOR_MAX, MINOR_MIN, SERVER_MAGIC};
use crate::nix::proto::{ProtoError, Reader, Writer};
use std::io::{self, Read, Write};
use thiserror::Error;

/// Why there is no connection.
#[derive(Debug, Error)]
pub enum HandshakeError {
    #[error(transparent)]
    Proto(#[from] ProtoError),
    #[error("protocol mismatch: the peer began with {0:#x}")]
    Magic(u64),
    #[error("the peer speaks version {}.{} of the protocol; {MAJOR}.{MINOR_MIN} is the oldest supported", .0 >> 8, .0 & 0xff)]
    Version(u64),
}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        HandshakeError::Proto(error.into())
    }
}

/// The server's half. Sets the minor version in both dialects.
pub fn accept<R: Read, W: Write>(r: &mut Reader<R>, w: &mut Writer<W>) -> Result<(), HandshakeError> {
    r.begin();
    match r.u64()? {
        CLIENT_MAGIC => {}
        other => return Err(HandshakeError::Magic(other)),
    }
    w.u64(SERVER_MAGIC)?;
    w.u64(MAJOR << 8 | u64::from(MINOR_MAX))?;
    w.flush()?;
    agree(r, w, MINOR_MAX)
}

/// The client's half, announcing version 2.`minor`. Sets the minor version in both dialects.
pub fn connect<R: Read, W: Write>(r: &mut Reader<R>, w: &mut Writer<W>, minor: u8) -> Result<(), HandshakeError> {
    w.u64(CLIENT_MAGIC)?;
    w.u64(MAJOR << 8 | u64::from(minor))?;
    w.flush()?;
    r.begin();
    match r.u64()? {
        SERVER_MAGIC => agree(r, w, minor),
        other => Err(HandshakeError::Magic(other)),
    }
}

/// Reads the peer's version; the lower one counts.
fn agree<R: Read, W: Write>(r: &mut Reader<R>, w: &mut Writer<W>, own: u8) -> Result<(), HandshakeError> {
    let version = r.u64()?;
    let theirs = (version & 0xff) as u8;
    if version >> 8 != MAJOR || theirs < MINOR_MIN {
        return Err(HandshakeError::Version(version));
    }
    let mut dialect = r.dialect().clone();
    dialect.minor = theirs.min(own);
    r.set_dialect(dialect.clone());
    w.set_dialect(dialect);
    Ok(())
}
