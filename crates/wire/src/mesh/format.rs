//! What all formats of the mesh have in common: a version byte, postcard, limits, one encoding.

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// A value with an encoding of its own.
pub trait Format: Serialize + DeserializeOwned {
    /// What it is called in errors.
    const WHAT: &'static str;
    /// A change that old programs must not read past takes a new version.
    const VERSION: u8;
    /// Longest encoding that is decoded, version byte included.
    const LEN_MAX: usize;

    /// Whether all parts are within their limits and agree with each other.
    fn check(&self) -> Result<(), FormatError>;
}

/// Why bytes are refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FormatError {
    #[error("{what} of {len} bytes is longer than {max}")]
    TooLong { what: &'static str, len: usize, max: usize },
    #[error("{what} does not decode: {error}")]
    Encoding { what: &'static str, error: postcard::Error },
    #[error("{what} has version {found}, this program knows {known}")]
    Version { what: &'static str, found: u8, known: u8 },
    #[error("{0} is not in its one encoding")]
    NotCanonical(&'static str),
    #[error("{what}: {field} is outside its limits")]
    Limit { what: &'static str, field: &'static str },
    #[error("{0} is not signed by the key that it names")]
    Forged(&'static str),
    #[error("ticket is not whole: {0}")]
    Ticket(&'static str),
}

/// The one encoding of `value`.
pub fn encode<T: Format>(value: &T) -> Vec<u8> {
    // Serializing into a Vec fails only for types whose length is unknown.
    postcard::to_extend(value, vec![T::VERSION]).unwrap_or_default()
}

/// Decodes, checks limits, and accepts only the encoding that [`encode`] gives.
pub fn decode<T: Format>(bytes: &[u8]) -> Result<T, FormatError> {
    let (what, max) = (T::WHAT, T::LEN_MAX);
    if bytes.len() > max {
        return Err(FormatError::TooLong { what, len: bytes.len(), max });
    }
    let end = FormatError::Encoding { what, error: postcard::Error::DeserializeUnexpectedEnd };
    let (&found, body) = bytes.split_first().ok_or(end)?;
    if found != T::VERSION {
        return Err(FormatError::Version { what, found, known: T::VERSION });
    }
    let value: T = postcard::from_bytes(body).map_err(|error| FormatError::Encoding { what, error })?;
    value.check()?;
    match encode(&value) == bytes {
        true => Ok(value),
        false => Err(FormatError::NotCanonical(what)),
    }
}

/// An error for `field` unless `holds`.
pub(super) fn within<T: Format>(field: &'static str, holds: bool) -> Result<(), FormatError> {
    match holds {
        true => Ok(()),
        false => Err(FormatError::Limit { what: T::WHAT, field }),
    }
}
