//! Realisations: which path an output of a derivation came out as.
//!
//! Two schemes: up to Nix 2.34 the key is a hash modulo (`sha256:<hex>!<output>`, [`Realisation`]); from 2.35
//! it is the derivation's store path ([`BuildTrace`]). Source: `libstore/realisation.cc`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::base64::encode_hex;
use super::hash::{Hash, HashAlgo};
use super::signature::{SecretKey, Signature, TrustedKeys};
use super::store_path::{NameError, StorePath, check_name};

/// Bytes of the JSON text of a realisation that are read at most: far above any with a sane number of
/// signatures and dependencies.
pub const JSON_LEN_MAX: usize = 4 << 20;

/// Why a text is not an output id.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DrvOutputError {
    #[error("Invalid derivation output id {0}")]
    Format(String),
    #[error("Invalid derivation output id {0}: not a SHA-256 hash")]
    Hash(String),
    #[error(transparent)]
    Name(#[from] NameError),
}

/// Why a text is not a realisation.
#[derive(Debug, Error)]
pub enum RealisationError {
    #[error("realisation is {0} bytes long, more than {JSON_LEN_MAX}")]
    TooLong(usize),
    #[error("invalid realisation: {0}")]
    Json(#[from] serde_json::Error),
}

/// Key up to Nix 2.34: the derivation's output id hash (see [`super::hash_modulo`]) and an output name.
/// Text form `sha256:<hex>!<output>`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DrvOutput {
    pub drv_hash: [u8; 32],
    pub output: String,
}

impl FromStr for DrvOutput {
    type Err = DrvOutputError;

    fn from_str(text: &str) -> Result<Self, DrvOutputError> {
        let format = || DrvOutputError::Format(text.to_owned());
        let (hash, output) = text.split_once('!').ok_or_else(format)?;
        let bad_hash = || DrvOutputError::Hash(text.to_owned());
        let digits = hash.strip_prefix("sha256:").ok_or_else(bad_hash)?;
        let hash = Hash::parse_digits(digits, HashAlgo::Sha256).map_err(|_| bad_hash())?;
        check_name(output)?;
        Ok(Self { drv_hash: hash.as_sha256().ok_or_else(bad_hash)?, output: output.to_owned() })
    }
}

impl fmt::Display for DrvOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}!{}", encode_hex(&self.drv_hash), self.output)
    }
}

impl fmt::Debug for DrvOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for DrvOutput {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DrvOutput {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A realisation as Nix up to 2.34 knows it.
///
/// JSON: `{"dependentRealisations":{"<id>":"<base name>"},"id":"<id>","outPath":"<base name>","signatures":[…]}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Realisation {
    // Fields in the order of their JSON keys, so that the text is the one that is signed.
    #[serde(default, rename = "dependentRealisations")]
    pub dependent: BTreeMap<DrvOutput, StorePath>,
    pub id: DrvOutput,
    pub out_path: StorePath,
    #[serde(default)]
    pub signatures: BTreeSet<Signature>,
}

impl Realisation {
    pub fn new(id: DrvOutput, out_path: StorePath) -> Self {
        Self { dependent: BTreeMap::new(), id, out_path, signatures: BTreeSet::new() }
    }

    pub fn from_json(text: &[u8]) -> Result<Self, RealisationError> {
        parse_json(text)
    }

    /// Compact, keys sorted.
    pub fn to_json(&self) -> String {
        print_json(self)
    }

    /// What signatures are over: the JSON without `signatures`.
    pub fn fingerprint(&self) -> String {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Unsigned<'a> {
            dependent_realisations: &'a BTreeMap<DrvOutput, StorePath>,
            id: &'a DrvOutput,
            out_path: &'a StorePath,
        }
        let (dependent_realisations, id, out_path) = (&self.dependent, &self.id, &self.out_path);
        print_json(&Unsigned { dependent_realisations, id, out_path })
    }

    pub fn sign(&mut self, key: &SecretKey) {
        self.signatures.insert(key.sign(self.fingerprint().as_bytes()));
    }

    pub fn count_valid_signatures(&self, keys: &TrustedKeys) -> usize {
        keys.count_valid(self.fingerprint().as_bytes(), &self.signatures)
    }
}

/// Key from Nix 2.35 on: an output of a derivation, resolved or not.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildTraceKey {
    pub drv_path: StorePath,
    #[serde(rename = "outputName", deserialize_with = "output_name")]
    pub output: String,
}

fn output_name<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    check_name(&name).map(|()| name).map_err(serde::de::Error::custom)
}

/// Value of a build trace entry. JSON `{"outPath":"<base name>","signatures":[…]}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UnkeyedRealisation {
    pub out_path: StorePath,
    #[serde(default)]
    pub signatures: BTreeSet<Signature>,
}

impl UnkeyedRealisation {
    pub fn from_json(text: &[u8]) -> Result<Self, RealisationError> {
        parse_json(text)
    }

    /// Compact, keys sorted.
    pub fn to_json(&self) -> String {
        print_json(self)
    }
}

/// A realisation as Nix from 2.35 knows it.
///
/// JSON: `{"key":{"drvPath":"<base name>","outputName":"out"},"value":{"outPath":"<base name>","signatures":[…]}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildTrace {
    pub key: BuildTraceKey,
    pub value: UnkeyedRealisation,
}

impl BuildTrace {
    pub fn from_json(text: &[u8]) -> Result<Self, RealisationError> {
        parse_json(text)
    }

    /// Compact, keys sorted.
    pub fn to_json(&self) -> String {
        print_json(self)
    }

    /// What signatures are over: the JSON without `signatures`.
    pub fn fingerprint(&self) -> String {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Value<'a> {
            out_path: &'a StorePath,
        }
        #[derive(Serialize)]
        struct Unsigned<'a> {
            key: &'a BuildTraceKey,
            value: Value<'a>,
        }
        print_json(&Unsigned { key: &self.key, value: Value { out_path: &self.value.out_path } })
    }

    pub fn sign(&mut self, key: &SecretKey) {
        self.value.signatures.insert(key.sign(self.fingerprint().as_bytes()));
    }

    pub fn count_valid_signatures(&self, keys: &TrustedKeys) -> usize {
        keys.count_valid(self.fingerprint().as_bytes(), &self.value.signatures)
    }
}

fn parse_json<T: for<'de> Deserialize<'de>>(text: &[u8]) -> Result<T, RealisationError> {
    if text.len() > JSON_LEN_MAX {
        return Err(RealisationError::TooLong(text.len()));
    }
    Ok(serde_json::from_slice(text)?)
}

fn print_json(value: &impl Serialize) -> String {
    // These types have string keys and no fallible `Serialize`, the only two things that can fail.
    serde_json::to_string(value).unwrap_or_default()
}
