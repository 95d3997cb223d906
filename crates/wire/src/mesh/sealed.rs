//! Values that somebody answers for, with the bytes that were signed.
//!
//! Encoding: that of the value, then 64 bytes of Ed25519 signature over `shoal-mesh/<what>\0` and the encoding. So a
//! signature over one kind of value is none over another, and a value is passed on as it came, with everything that a
//! newer program put in.

use super::format::{Format, FormatError, decode, encode};
use crate::nix::signature::{SecretKey, verify};
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::ops::Deref;
use std::sync::Arc;

pub const SIGNATURE_LEN: usize = 64;

/// A value that names the key it must be signed by.
pub trait Signable: Format {
    fn author(&self) -> &[u8; 32];
}

/// A value and its signed encoding.
#[derive(Clone, PartialEq, Eq)]
pub struct Sealed<T> {
    value: T,
    bytes: SealedBytes,
}

/// A sealed value that was not opened. Cheap to copy.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SealedBytes(pub Arc<[u8]>);

/// An Ed25519 signature inside another value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RawSignature([u8; 32], [u8; 32]);

impl RawSignature {
    pub fn bytes(&self) -> [u8; SIGNATURE_LEN] {
        let mut bytes = [0; SIGNATURE_LEN];
        bytes[..32].copy_from_slice(&self.0);
        bytes[32..].copy_from_slice(&self.1);
        bytes
    }

    pub(super) fn make<T: Format>(key: &SecretKey, encoded: &[u8]) -> Self {
        let signature = key.sign(&message::<T>(encoded));
        let mut halves = Self([0; 32], [0; 32]);
        halves.0.copy_from_slice(&signature.bytes()[..32]);
        halves.1.copy_from_slice(&signature.bytes()[32..]);
        halves
    }

    pub(super) fn holds<T: Format>(&self, author: &[u8; 32], encoded: &[u8]) -> bool {
        verify(author, &message::<T>(encoded), &self.bytes())
    }
}

impl<T: Signable> Sealed<T> {
    /// Longest sealed encoding.
    pub const LEN_MAX: usize = T::LEN_MAX + SIGNATURE_LEN;

    /// Signs. An error where the value is outside its limits or `key` is not its author's.
    pub fn seal(value: T, key: &SecretKey) -> Result<Self, FormatError> {
        if key.public().bytes() != value.author() {
            return Err(FormatError::Forged(T::WHAT));
        }
        let mut bytes = encode(&value);
        // What is not carried is not kept either.
        let value = decode(&bytes)?;
        bytes.extend(RawSignature::make::<T>(key, &bytes).bytes());
        Ok(Self { value, bytes: SealedBytes(bytes.into()) })
    }

    /// Decodes strictly and verifies.
    pub fn open(bytes: &[u8]) -> Result<Self, FormatError> {
        let end = FormatError::Encoding { what: T::WHAT, error: postcard::Error::DeserializeUnexpectedEnd };
        let (encoded, signature) = bytes.split_last_chunk::<SIGNATURE_LEN>().ok_or(end)?;
        let value: T = decode(encoded)?;
        match verify(value.author(), &message::<T>(encoded), signature) {
            true => Ok(Self { value, bytes: SealedBytes(bytes.into()) }),
            false => Err(FormatError::Forged(T::WHAT)),
        }
    }
}

impl<T> Sealed<T> {
    /// What goes over the wire.
    pub fn bytes(&self) -> &SealedBytes {
        &self.bytes
    }
}

impl<T> Deref for Sealed<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: std::fmt::Debug> std::fmt::Debug for Sealed<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.value.fmt(f)
    }
}

impl Deref for SealedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for SealedBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} sealed bytes", self.0.len())
    }
}

impl Serialize for SealedBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for SealedBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = SealedBytes;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<SealedBytes, E> {
                Ok(SealedBytes(bytes.into()))
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}

fn message<T: Format>(encoded: &[u8]) -> Vec<u8> {
    [b"shoal-mesh/", T::WHAT.as_bytes(), b"\0", encoded].concat()
}
