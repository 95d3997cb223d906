//! A row of the table of valid paths: `1u8`, content root, postcard of the [`PathInfo`].

use crate::error::{Damage, Result};
use shoal_wire::nix::path_info::PathInfo;

const VERSION: u8 = 1;
const HEAD_LEN: usize = 1 + 32;

/// What the index keeps of a valid path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathRecord {
    pub content_root: [u8; 32],
    pub info: PathInfo,
}

impl PathRecord {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(512);
        out.push(VERSION);
        out.extend_from_slice(&self.content_root);
        // Extending a Vec fails only for types whose length is unknown, which none here is.
        postcard::to_extend(&self.info, out).unwrap_or_default()
    }

    /// `key` is the row's key, for the error.
    pub fn decode(key: &str, bytes: &[u8]) -> Result<Self> {
        let content_root = content_root(key, bytes)?;
        let info = postcard::from_bytes(&bytes[HEAD_LEN..]).map_err(|e| Damage::record(key, e))?;
        Ok(PathRecord { content_root, info })
    }
}

/// The content root of a row, without decoding the rest.
pub fn content_root(key: &str, bytes: &[u8]) -> Result<[u8; 32]> {
    match bytes.split_first_chunk::<HEAD_LEN>() {
        Some(([VERSION, root @ ..], _)) => Ok(*root),
        _ => Err(Damage::record(key, "unknown version or too short").into()),
    }
}
