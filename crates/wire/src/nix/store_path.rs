//! Store paths: `<store dir>/<32 nix32 digits>-<name>`. Source: `libstore/path.cc`, `store-dir-config.cc`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::base32;

/// Digits of the hash part, the only part that identifies an object.
pub const HASH_PART_LEN: usize = 32;
/// Bytes of the hash that they are the digits of.
pub const HASH_LEN: usize = 20;

/// Longest name; with hash part and dash that leaves room for a file name extension below 255.
pub const NAME_LEN_MAX: usize = 211;

/// Name suffix of a derivation.
pub const DRV_EXTENSION: &str = ".drv";

const NAME_BYTES: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0u8;
    while byte < 128 {
        table[byte as usize] = byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.' | b'_' | b'?' | b'=');
        byte += 1;
    }
    table
};

/// Why a text is not a store path, in Nix's words.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum StorePathError {
    #[error("empty path is not a valid store path")]
    Empty,
    #[error("path '{0}' is not in the Nix store")]
    NotInStore(String),
    #[error("'{0}' is too short to be a valid store path")]
    TooShort(String),
    #[error("'{0}' can't name a store path because the hash part is not followed by a '-'")]
    NoDash(String),
    #[error("store path '{path}' contains illegal base-32 character '{}'", .byte.escape_ascii())]
    IllegalDigit { path: String, byte: u8 },
    #[error("path '{path}' is not a valid store path: {source}")]
    Name { path: String, source: NameError },
}

/// Why a text is not the name of a store object or of an output.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NameError {
    #[error("name must not be empty")]
    Empty,
    #[error("name '{0}' must be no longer than {NAME_LEN_MAX} characters")]
    TooLong(String),
    #[error("name '{0}' is not valid")]
    Dots(String),
    #[error("name '{0}' is not valid: first dash-separated component must not be '{1}'")]
    DotsDash(String, &'static str),
    #[error("name '{name}' contains illegal character '{}'", .byte.escape_ascii())]
    IllegalCharacter { name: String, byte: u8 },
}

/// Checks a name of 1 to 211 characters of `[A-Za-z0-9+._?=-]` that is not and does not begin like `.` or `..`.
/// Output names obey the same rule.
pub fn check_name(name: &str) -> Result<(), NameError> {
    let owned = || name.to_owned();
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > NAME_LEN_MAX {
        return Err(NameError::TooLong(owned()));
    }
    if name == "." || name == ".." {
        return Err(NameError::Dots(owned()));
    }
    if name.starts_with(".-") {
        return Err(NameError::DotsDash(owned(), "."));
    }
    if name.starts_with("..-") {
        return Err(NameError::DotsDash(owned(), ".."));
    }
    match name.bytes().find(|&byte| !NAME_BYTES[usize::from(byte)]) {
        Some(byte) => Err(NameError::IllegalCharacter { name: owned(), byte }),
        None => Ok(()),
    }
}

/// The base name of a store path. Ordered by bytes, which is the order of full paths too.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorePath(Arc<str>);

impl StorePath {
    pub fn from_base_name(base: &str) -> Result<Self, StorePathError> {
        let bytes = base.as_bytes();
        if bytes.len() <= HASH_PART_LEN {
            return Err(StorePathError::TooShort(base.to_owned()));
        }
        if bytes[HASH_PART_LEN] != b'-' {
            return Err(StorePathError::NoDash(base.to_owned()));
        }
        let illegal = bytes[..HASH_PART_LEN].iter().find(|&&byte| !base32::is_digit(byte));
        if let Some(&byte) = illegal {
            return Err(StorePathError::IllegalDigit { path: base.to_owned(), byte });
        }
        let bad_name = |source| StorePathError::Name { path: base.to_owned(), source };
        check_name(&base[HASH_PART_LEN + 1..]).map_err(bad_name)?;
        Ok(Self(base.into()))
    }

    /// From the 20 bytes of the hash part and a name.
    pub fn from_parts(hash: &[u8; 20], name: &str) -> Result<Self, NameError> {
        check_name(name)?;
        Ok(Self(format!("{}-{name}", base32::encode(hash)).into()))
    }

    pub fn base_name(&self) -> &str {
        &self.0
    }

    /// The 32 digits that identify the object.
    pub fn hash_part(&self) -> &str {
        &self.0[..HASH_PART_LEN]
    }

    pub fn name(&self) -> &str {
        &self.0[HASH_PART_LEN + 1..]
    }

    pub fn is_derivation(&self) -> bool {
        self.name().ends_with(DRV_EXTENSION)
    }

    /// The name of the derivation in this file; `None` if this is no `.drv`.
    pub fn derivation_name(&self) -> Option<&str> {
        self.name().strip_suffix(DRV_EXTENSION)
    }
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for StorePath {
    type Err = StorePathError;

    fn from_str(base: &str) -> Result<Self, StorePathError> {
        Self::from_base_name(base)
    }
}

impl Serialize for StorePath {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for StorePath {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let base = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        Self::from_base_name(&base).map_err(serde::de::Error::custom)
    }
}

/// The directory that all store paths are directly below. It is part of every hash.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreDir(Arc<str>);

/// Why a directory cannot be a store directory.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("'{0}' is not an absolute, canonical path")]
pub struct StoreDirError(pub String);

impl Default for StoreDir {
    fn default() -> Self {
        Self("/nix/store".into())
    }
}

impl StoreDir {
    /// `dir` must be absolute, and have no empty, `.` or `..` components, no control characters, and nothing
    /// that derivations or derived paths would have to escape.
    pub fn new(dir: &str) -> Result<Self, StoreDirError> {
        let special = |c: char| c.is_control() || matches!(c, '"' | '\\' | '!' | '^' | ':');
        let canonical = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(special);
        match dir.strip_prefix('/') {
            Some(rest) if rest.split('/').all(canonical) => Ok(Self(dir.into())),
            _ => Err(StoreDirError(dir.to_owned())),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A full store path in its canonical form: directly below this directory, nothing after the name.
    pub fn parse(&self, full: &str) -> Result<StorePath, StorePathError> {
        if full.is_empty() {
            return Err(StorePathError::Empty);
        }
        match self.strip(full) {
            Some(base) => StorePath::from_base_name(base),
            None => Err(StorePathError::NotInStore(full.to_owned())),
        }
    }

    /// The store path that `path` is or lies in, and what follows it (empty, or beginning with `/`).
    pub fn parse_prefix<'a>(&self, path: &'a str) -> Result<(StorePath, &'a str), StorePathError> {
        let rest = self.strip(path).ok_or_else(|| StorePathError::NotInStore(path.to_owned()))?;
        let end = rest.find('/').unwrap_or(rest.len());
        Ok((StorePath::from_base_name(&rest[..end])?, &rest[end..]))
    }

    /// The full path.
    pub fn print(&self, path: &StorePath) -> String {
        self.join(path.base_name())
    }

    /// This directory, a slash and `base`.
    pub fn join(&self, base: &str) -> String {
        let mut full = String::with_capacity(self.0.len() + 1 + base.len());
        full.push_str(&self.0);
        full.push('/');
        full.push_str(base);
        full
    }

    fn strip<'a>(&self, full: &'a str) -> Option<&'a str> {
        full.strip_prefix(&*self.0)?.strip_prefix('/')
    }
}

impl fmt::Display for StoreDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for StoreDir {
    type Err = StoreDirError;

    fn from_str(dir: &str) -> Result<Self, StoreDirError> {
        Self::new(dir)
    }
}

impl Serialize for StoreDir {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for StoreDir {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let dir = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        Self::new(&dir).map_err(serde::de::Error::custom)
    }
}
