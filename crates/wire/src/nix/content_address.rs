//! Content addresses: how an object's bytes were hashed, and the hash.
//! Text forms: `text:sha256:<nix32>`, `fixed:<algo>:<nix32>` (flat), `fixed:r:…` (NAR), `fixed:git:…`.
//! Source: `libstore/content-address.cc`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::hash::{Hash, HashAlgo, HashError};

/// What is hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CaMethod {
    /// The bytes of a file that may have references (`toFile`, `.drv` files).
    Text,
    /// The bytes of a file.
    Flat,
    /// The NAR.
    Nar,
    /// The Git object.
    Git,
}

/// Why a text is not a content address or a method.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ContentAddressError {
    #[error("not a content address because it is not in the form '<prefix>:<rest>': {0}")]
    NoPrefix(String),
    #[error("content address prefix '{0}' is unrecognized. Recogonized prefixes are 'text' or 'fixed'")]
    UnknownPrefix(String),
    #[error("content address hash must be in form '<algo>:<hash>', but found: {0}")]
    NoAlgo(String),
    #[error("unknown content address method '{0}'")]
    UnknownMethod(String),
    #[error(transparent)]
    Hash(#[from] HashError),
}

impl CaMethod {
    /// `text`, `flat`, `nar`, `git`, as in JSON and attributes.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Flat => "flat",
            Self::Nar => "nar",
            Self::Git => "git",
        }
    }

    /// From [`name`](Self::name), or the older `recursive` for NAR.
    pub fn from_name(name: &str) -> Result<Self, ContentAddressError> {
        match name {
            "text" => Ok(Self::Text),
            "flat" => Ok(Self::Flat),
            "nar" | "recursive" => Ok(Self::Nar),
            "git" => Ok(Self::Git),
            other => Err(ContentAddressError::UnknownMethod(other.to_owned())),
        }
    }

    /// What stands before the algorithm in a derivation's output: nothing for flat, `r:`, `git:`, `text:`.
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Text => "text:",
            Self::Flat => "",
            Self::Nar => "r:",
            Self::Git => "git:",
        }
    }
}

/// A method and an algorithm, with no hash yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CaMethodAlgo {
    pub method: CaMethod,
    pub algo: HashAlgo,
}

impl CaMethodAlgo {
    /// `sha256`, `r:sha256`, `git:sha1`, `text:sha256`: the form in a derivation's outputs.
    pub fn to_output_form(self) -> String {
        format!("{}{}", self.method.prefix(), self.algo)
    }

    /// From [`to_output_form`](Self::to_output_form).
    pub fn from_output_form(text: &str) -> Result<Self, HashError> {
        let (method, algo) = [CaMethod::Nar, CaMethod::Git, CaMethod::Text]
            .into_iter()
            .find_map(|method| text.strip_prefix(method.prefix()).map(|algo| (method, algo)))
            .unwrap_or((CaMethod::Flat, text));
        Ok(Self { method, algo: algo.parse()? })
    }
}

/// `text:sha256`, `fixed:sha256`, `fixed:r:sha256`, `fixed:git:sha1`: the form in the worker protocol.
impl fmt::Display for CaMethodAlgo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.method {
            CaMethod::Text => write!(f, "text:{}", self.algo),
            method => write!(f, "fixed:{}{}", method.prefix(), self.algo),
        }
    }
}

impl FromStr for CaMethodAlgo {
    type Err = ContentAddressError;

    fn from_str(text: &str) -> Result<Self, ContentAddressError> {
        let (method, rest) = split_method(text)?;
        Ok(Self { method, algo: rest.parse()? })
    }
}

/// A content address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentAddress {
    pub method: CaMethod,
    pub hash: Hash,
}

impl ContentAddress {
    pub fn method_algo(&self) -> CaMethodAlgo {
        CaMethodAlgo { method: self.method, algo: self.hash.algo() }
    }
}

impl fmt::Display for ContentAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.method_algo(), self.hash.to_nix32())
    }
}

impl fmt::Debug for ContentAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ContentAddress {
    type Err = ContentAddressError;

    fn from_str(text: &str) -> Result<Self, ContentAddressError> {
        let (method, rest) = split_method(text)?;
        let no_algo = || ContentAddressError::NoAlgo(text.to_owned());
        let (algo, digits) = rest.split_once(':').ok_or_else(no_algo)?;
        Ok(Self { method, hash: Hash::parse_digits(digits, algo.parse()?)? })
    }
}

fn split_method(text: &str) -> Result<(CaMethod, &str), ContentAddressError> {
    let no_prefix = || ContentAddressError::NoPrefix(text.to_owned());
    match text.split_once(':').ok_or_else(no_prefix)? {
        ("text", rest) => Ok((CaMethod::Text, rest)),
        ("fixed", rest) => Ok([CaMethod::Nar, CaMethod::Git]
            .into_iter()
            .find_map(|method| rest.strip_prefix(method.prefix()).map(|rest| (method, rest)))
            .unwrap_or((CaMethod::Flat, rest))),
        (prefix, _) => Err(ContentAddressError::UnknownPrefix(prefix.to_owned())),
    }
}

/// As [`CaMethod::name`].
impl Serialize for CaMethod {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for CaMethod {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        Self::from_name(&name).map_err(serde::de::Error::custom)
    }
}

/// As the colon-separated text, not as Nix's JSON object.
impl Serialize for ContentAddress {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ContentAddress {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}
