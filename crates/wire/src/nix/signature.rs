//! Ed25519 keys and detached signatures in Nix's text form `<name>:<base64>`.
//! Source: `libutil/signature/local-keys.cc`; secret keys have libsodium's layout (32 seed, 32 public).

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::base64;

/// Longest key name; real ones are host names with a number.
const KEY_NAME_LEN_MAX: usize = 1024;

/// Why a text is not a key or a signature.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum KeyError {
    #[error("{0} is corrupt")]
    Corrupt(&'static str),
    #[error("{0} is not valid")]
    WrongLength(&'static str),
    #[error("secret key does not belong to its public half")]
    Inconsistent,
    #[error("key generation failed")]
    Generation,
}

fn split(text: &str, what: &'static str) -> Result<(String, Vec<u8>), KeyError> {
    let corrupt = || KeyError::Corrupt(what);
    let (name, data) = text.split_once(':').ok_or_else(corrupt)?;
    // Names end up in narinfo lines and in configuration lists.
    let bad = |c: char| c.is_whitespace() || c.is_control();
    if name.is_empty() || name.len() > KEY_NAME_LEN_MAX || name.contains(bad) {
        return Err(corrupt());
    }
    let bytes = base64::decode(data).map_err(|_| corrupt())?;
    Ok((name.to_owned(), bytes))
}

/// A detached signature with the name of its key. Ordered by name, then bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signature {
    key_name: String,
    bytes: [u8; 64],
}

impl Signature {
    pub fn new(key_name: &str, bytes: [u8; 64]) -> Result<Self, KeyError> {
        format!("{key_name}:{}", base64::encode(&bytes)).parse()
    }

    pub fn key_name(&self) -> &str {
        &self.key_name
    }

    pub fn bytes(&self) -> &[u8; 64] {
        &self.bytes
    }
}

impl FromStr for Signature {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let (key_name, bytes) = split(text, "signature")?;
        let bytes = bytes.try_into().map_err(|_| KeyError::WrongLength("signature"))?;
        Ok(Self { key_name, bytes })
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.key_name, base64::encode(&self.bytes))
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// As `name:base64`.
impl Serialize for Signature {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum SignatureForm {
    Text(String),
    #[serde(rename_all = "camelCase")]
    Object {
        key_name: String,
        sig: String,
    },
}

/// From `name:base64`, or Nix's newer `{"keyName": …, "sig": …}`.
impl<'de> Deserialize<'de> for Signature {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Formats that do not describe themselves hold what `serialize` wrote.
        if !deserializer.is_human_readable() {
            return String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom);
        }
        let text = match SignatureForm::deserialize(deserializer)? {
            SignatureForm::Text(text) => text,
            SignatureForm::Object { key_name, sig } => format!("{key_name}:{sig}"),
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A key that verifies.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey {
    name: String,
    bytes: [u8; 32],
}

impl PublicKey {
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn bytes(&self) -> &[u8; 32] {
        &self.bytes
    }

    /// Whether `signature` names this key and is its signature of `data`.
    pub fn verify(&self, data: &[u8], signature: &Signature) -> bool {
        self.name == signature.key_name && verify(&self.bytes, data, &signature.bytes)
    }
}

/// Whether `signature` is one of `data` by the Ed25519 key `public`.
pub fn verify(public: &[u8; 32], data: &[u8], signature: &[u8; 64]) -> bool {
    UnparsedPublicKey::new(&ED25519, public).verify(data, signature).is_ok()
}

impl FromStr for PublicKey {
    type Err = KeyError;

    /// White space around the key, such as the last newline of a key file, is tolerated.
    fn from_str(text: &str) -> Result<Self, KeyError> {
        let (name, bytes) = split(text.trim(), "public key")?;
        let bytes = bytes.try_into().map_err(|_| KeyError::WrongLength("public key"))?;
        Ok(Self { name, bytes })
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, base64::encode(&self.bytes))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A key that signs. `Debug` shows its name only.
#[derive(Clone)]
pub struct SecretKey {
    name: String,
    seed: [u8; 32],
    pair: Ed25519KeyPair,
}

impl SecretKey {
    /// A new key from the system's randomness.
    pub fn generate(name: &str) -> Result<Self, KeyError> {
        let mut seed = [0; 32];
        SystemRandom::new().fill(&mut seed).map_err(|_| KeyError::Generation)?;
        Self::from_seed(name, seed)
    }

    pub fn from_seed(name: &str, seed: [u8; 32]) -> Result<Self, KeyError> {
        let (name, _) = split(&format!("{name}:"), "secret key")?;
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed);
        Ok(Self { name, seed, pair: pair.map_err(|_| KeyError::WrongLength("secret key"))? })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn public(&self) -> PublicKey {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.pair.public_key().as_ref());
        PublicKey { name: self.name.clone(), bytes }
    }

    pub fn sign(&self, data: &[u8]) -> Signature {
        let mut bytes = [0; 64];
        bytes.copy_from_slice(self.pair.sign(data).as_ref());
        Signature { key_name: self.name.clone(), bytes }
    }

    /// What the key is made from. It is the secret itself.
    pub fn seed(&self) -> &[u8; 32] {
        &self.seed
    }

    /// The text of a key file, without newline. It is the secret itself.
    pub fn to_secret_text(&self) -> String {
        let mut bytes = self.seed.to_vec();
        bytes.extend_from_slice(self.pair.public_key().as_ref());
        format!("{}:{}", self.name, base64::encode(&bytes))
    }
}

impl FromStr for SecretKey {
    type Err = KeyError;

    /// White space around the key, such as the last newline of a key file, is tolerated.
    fn from_str(text: &str) -> Result<Self, KeyError> {
        let (name, bytes) = split(text.trim(), "secret key")?;
        let wrong_length = || KeyError::WrongLength("secret key");
        let (seed, public) = bytes.split_first_chunk::<32>().ok_or_else(wrong_length)?;
        if public.len() != 32 {
            return Err(wrong_length());
        }
        let key = Self::from_seed(&name, *seed)?;
        let consistent = key.pair.public_key().as_ref() == public;
        consistent.then_some(key).ok_or(KeyError::Inconsistent)
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretKey").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The public keys whose signatures count. Keys of the same name all do: machines of the same name each make their own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedKeys(BTreeMap<String, Vec<PublicKey>>);

impl TrustedKeys {
    pub fn insert(&mut self, key: PublicKey) {
        let same_name = self.0.entry(key.name.clone()).or_default();
        if !same_name.contains(&key) {
            same_name.push(key);
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &PublicKey> {
        self.0.values().flatten()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a trusted key made `signature` over `data`.
    pub fn verify(&self, data: &[u8], signature: &Signature) -> bool {
        self.0.get(&signature.key_name).into_iter().flatten().any(|key| key.verify(data, signature))
    }

    /// Whether one of `signatures` is a good one over `data`.
    pub fn any_valid<'a>(&self, data: &[u8], signatures: impl IntoIterator<Item = &'a Signature>) -> bool {
        signatures.into_iter().any(|signature| self.verify(data, signature))
    }

    /// How many of `signatures` are good ones over `data`.
    pub fn count_valid<'a>(&self, data: &[u8], signatures: impl IntoIterator<Item = &'a Signature>) -> usize {
        signatures.into_iter().filter(|signature| self.verify(data, signature)).count()
    }
}

impl FromIterator<PublicKey> for TrustedKeys {
    fn from_iter<I: IntoIterator<Item = PublicKey>>(keys: I) -> Self {
        let mut trusted = Self::default();
        keys.into_iter().for_each(|key| trusted.insert(key));
        trusted
    }
}
