//! Builds that members ask of each other: a stream each, of frames until one that ends it.
//!
//! Invariants:
//! - an executor never waits for an asker for longer than [`SILENCE_MAX`], and an asker never longer than [`ALIVE_MAX`] for a
//!   sign of life, of which there is one each [`ALIVE_PERIOD`];
//! - who stops asking says so, and that is told apart from a connection that breaks: a build that nobody wants is stopped,
//!   one whose asker is lost is kept for a while;
//! - what does not decode closes the connection, and the log names the node.

mod answering;
mod asking;

pub use answering::{Answer, BuildServer, Execute, Gone};
pub use asking::{Building, ask};

use iroh::endpoint::{ReadExactError, RecvStream, SendStream, VarInt, WriteError};
use shoal_wire::mesh::format::{Format, FormatError, decode, encode};
use std::time::Duration;
use thiserror::Error;
use tokio::time::timeout;

/// How long an executor says nothing at most.
pub const ALIVE_PERIOD: Duration = Duration::from_secs(1);
/// An executor that says nothing for so long is taken for dead, and what it builds is built elsewhere: three signs of life
/// are missing. A client waits for that, so it is less than members need to agree on a death; what it costs to be wrong is
/// that something is built twice.
pub const ALIVE_MAX: Duration = Duration::from_secs(3);
/// Who reads nothing for so long is taken for dead.
pub const SILENCE_MAX: Duration = Duration::from_secs(10);
/// Memory for a frame is taken as it comes, by this much.
const PIECE_LEN: usize = 64 << 10;
const LEN_OF_LEN: usize = 4;

/// The code of a stream that is reset since nobody wants the build any more.
const CANCELLED: VarInt = VarInt::from_u32(1);
/// The same where an executor gave no end.
const BROKEN: VarInt = VarInt::from_u32(2);

/// Why no value came.
#[derive(Debug, Error)]
enum ReadFailure {
    #[error("nothing came in time")]
    Silent,
    #[error(transparent)]
    Broke(#[from] ReadExactError),
    /// Nobody sends that by accident.
    #[error(transparent)]
    Bad(#[from] FormatError),
}

/// Reads a value after its length.
async fn read<T: Format>(recv: &mut RecvStream, patience: Duration) -> Result<T, ReadFailure> {
    let mut len = [0; LEN_OF_LEN];
    timeout(patience, recv.read_exact(&mut len)).await.map_err(|_| ReadFailure::Silent)??;
    let len = u32::from_le_bytes(len) as usize;
    if len > T::LEN_MAX {
        return Err(FormatError::TooLong { what: T::WHAT, len, max: T::LEN_MAX }.into());
    }
    let mut bytes = Vec::new();
    while bytes.len() < len {
        let at = bytes.len();
        bytes.resize(at + (len - at).min(PIECE_LEN), 0);
        timeout(patience, recv.read_exact(&mut bytes[at..])).await.map_err(|_| ReadFailure::Silent)??;
    }
    Ok(decode(&bytes)?)
}

/// Writes a value after its length. `None`: nothing of it was taken for [`SILENCE_MAX`].
async fn write<T: Format>(send: &mut SendStream, value: &T) -> Option<Result<(), WriteError>> {
    let body = encode(value);
    let mut bytes = Vec::with_capacity(LEN_OF_LEN + body.len());
    bytes.extend(u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend(body);
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        match timeout(SILENCE_MAX, send.write(rest)).await.ok()? {
            Ok(written) => rest = &rest[written..],
            Err(error) => return Some(Err(error)),
        }
    }
    Some(Ok(()))
}

#[cfg(test)]
#[path = "builds_tests.rs"]
mod tests;
