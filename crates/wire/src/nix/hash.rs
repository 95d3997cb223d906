//! Digests and their text forms: `<algo>:<base16|nix32|base64>` and SRI `<algo>-<base64>`.
//! The encoding is recognised by its length. Source: `libutil/hash.cc`.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest;
use md5::Digest as _;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{base32, base64};

/// Bytes of the longest digest.
const DIGEST_LEN_MAX: usize = 64;

/// The algorithms of stable Nix. (BLAKE3 in hashes is an experimental feature there.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HashAlgo {
    Md5,
    Sha1,
    Sha256,
    Sha512,
}

/// Why a text is not a hash.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum HashError {
    #[error("unknown hash algorithm '{0}'")]
    UnknownAlgo(String),
    #[error("hash '{0}' does not include a type")]
    NoAlgo(String),
    #[error("hash '{hash}' should have type '{expected}'")]
    WrongAlgo { hash: String, expected: HashAlgo },
    #[error("hash '{hash}' has wrong length for hash algorithm '{algo}'")]
    WrongLength { hash: String, algo: HashAlgo },
    #[error("invalid hash '{0}'")]
    BadDigits(String),
}

impl HashAlgo {
    pub const ALL: [HashAlgo; 4] = [Self::Md5, Self::Sha1, Self::Sha256, Self::Sha512];

    /// Bytes of a digest.
    pub const fn digest_len(self) -> usize {
        match self {
            Self::Md5 => 16,
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Md5 => "md5",
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }
}

impl fmt::Display for HashAlgo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for HashAlgo {
    type Err = HashError;

    fn from_str(name: &str) -> Result<Self, HashError> {
        let unknown = || HashError::UnknownAlgo(name.to_owned());
        Self::ALL.into_iter().find(|algo| algo.name() == name).ok_or_else(unknown)
    }
}

/// A digest with its algorithm. Ordered by algorithm, then bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash {
    algo: HashAlgo,
    // Zero beyond the digest's length, so that the derived comparisons hold.
    digest: [u8; DIGEST_LEN_MAX],
}

impl Hash {
    /// `None` when `digest` is not as long as the algorithm's digests are.
    pub fn new(algo: HashAlgo, digest: &[u8]) -> Option<Self> {
        let mut hash = Self { algo, digest: [0; DIGEST_LEN_MAX] };
        (digest.len() == algo.digest_len()).then(|| {
            hash.digest[..digest.len()].copy_from_slice(digest);
            hash
        })
    }

    pub fn sha256(digest: [u8; 32]) -> Self {
        let mut hash = Self { algo: HashAlgo::Sha256, digest: [0; DIGEST_LEN_MAX] };
        hash.digest[..32].copy_from_slice(&digest);
        hash
    }

    /// Hash of `bytes`.
    pub fn of(algo: HashAlgo, bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(algo);
        hasher.update(bytes);
        hasher.finish()
    }

    pub fn algo(&self) -> HashAlgo {
        self.algo
    }

    pub fn digest(&self) -> &[u8] {
        &self.digest[..self.algo.digest_len()]
    }

    /// The digest if this is SHA-256.
    pub fn as_sha256(&self) -> Option<[u8; 32]> {
        match self.algo {
            HashAlgo::Sha256 => self.digest().try_into().ok(),
            _ => None,
        }
    }

    /// A hash that names its algorithm: `sha256:…` or SRI `sha256-…`.
    pub fn parse_any(text: &str) -> Result<Self, HashError> {
        Self::parse_optional(text, None)
    }

    /// A hash of a known algorithm; the prefix may be missing, and must agree where present.
    pub fn parse(text: &str, algo: HashAlgo) -> Result<Self, HashError> {
        Self::parse_optional(text, Some(algo))
    }

    /// Digits without prefix, in whichever encoding has their length.
    pub fn parse_digits(digits: &str, algo: HashAlgo) -> Result<Self, HashError> {
        let len = algo.digest_len();
        let mut bytes = [0; DIGEST_LEN_MAX];
        let out = &mut bytes[..len];
        let read = if digits.len() == len * 2 {
            base64::decode_hex_into(digits.as_bytes(), out).is_ok()
        } else if digits.len() == base32::encoded_len(len) {
            base32::decode_into(digits.as_bytes(), out).is_ok()
        } else if digits.len() == base64::encoded_len(len) {
            return Self::from_base64(digits, algo, base64::decode);
        } else {
            return Err(HashError::WrongLength { hash: digits.to_owned(), algo });
        };
        let hash = Self { algo, digest: bytes };
        read.then_some(hash).ok_or_else(|| HashError::BadDigits(digits.to_owned()))
    }

    fn parse_optional(text: &str, expected: Option<HashAlgo>) -> Result<Self, HashError> {
        let (algo, digits, sri) = match (text.split_once(':'), text.split_once('-')) {
            (Some((algo, digits)), _) => (Some(algo), digits, false),
            (None, Some((algo, digits))) => (Some(algo), digits, true),
            (None, None) => (None, text, false),
        };
        let named = algo.map(HashAlgo::from_str).transpose()?;
        let algo = match (named, expected) {
            (Some(named), Some(expected)) if named != expected => {
                return Err(HashError::WrongAlgo { hash: text.to_owned(), expected });
            }
            (Some(algo), _) | (None, Some(algo)) => algo,
            (None, None) => return Err(HashError::NoAlgo(text.to_owned())),
        };
        if sri {
            // Nix takes SRI hashes without their padding too.
            let unpadded = |digits: &str| match digits.ends_with('=') {
                true => base64::decode(digits),
                false => base64::decode_unpadded(digits),
            };
            return Self::from_base64(digits, algo, unpadded);
        }
        Self::parse_digits(digits, algo)
    }

    fn from_base64(
        digits: &str,
        algo: HashAlgo,
        decode: impl FnOnce(&str) -> Result<Vec<u8>, base64::DecodeError>,
    ) -> Result<Self, HashError> {
        let bytes = decode(digits).map_err(|_| HashError::BadDigits(digits.to_owned()))?;
        let wrong_length = || HashError::WrongLength { hash: digits.to_owned(), algo };
        Self::new(algo, &bytes).ok_or_else(wrong_length)
    }

    /// Lower-case base 16, no prefix.
    pub fn to_base16(&self) -> String {
        base64::encode_hex(self.digest())
    }

    /// Nix base 32, no prefix.
    pub fn to_nix32(&self) -> String {
        base32::encode(self.digest())
    }

    /// `<algo>-<base64>`.
    pub fn to_sri(&self) -> String {
        format!("{}-{}", self.algo, base64::encode(self.digest()))
    }
}

/// `<algo>:<nix32>`, as narinfo and content addresses have it.
impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algo, self.to_nix32())
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Hash {
    type Err = HashError;

    fn from_str(text: &str) -> Result<Self, HashError> {
        Self::parse_any(text)
    }
}

/// As the SRI text.
impl Serialize for Hash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_sri())
    }
}

/// From any text that names its algorithm.
impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        Self::parse_any(&text).map_err(serde::de::Error::custom)
    }
}

/// A digest being computed.
#[derive(Clone)]
pub struct Hasher(State);

#[derive(Clone)]
enum State {
    Md5(md5::Md5),
    Ring(HashAlgo, digest::Context),
}

impl Hasher {
    pub fn new(algo: HashAlgo) -> Self {
        let context = |kind| State::Ring(algo, digest::Context::new(kind));
        Self(match algo {
            HashAlgo::Md5 => State::Md5(md5::Md5::new()),
            HashAlgo::Sha1 => context(&digest::SHA1_FOR_LEGACY_USE_ONLY),
            HashAlgo::Sha256 => context(&digest::SHA256),
            HashAlgo::Sha512 => context(&digest::SHA512),
        })
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Md5(md5) => md5.update(bytes),
            State::Ring(_, context) => context.update(bytes),
        }
    }

    pub fn finish(self) -> Hash {
        let (algo, mut digest) = match &self.0 {
            State::Md5(_) => (HashAlgo::Md5, [0; DIGEST_LEN_MAX]),
            State::Ring(algo, _) => (*algo, [0; DIGEST_LEN_MAX]),
        };
        match self.0 {
            State::Md5(md5) => digest[..16].copy_from_slice(&md5.finalize()),
            State::Ring(_, context) => {
                let value = context.finish();
                digest[..value.as_ref().len()].copy_from_slice(value.as_ref());
            }
        }
        Hash { algo, digest }
    }
}

/// SHA-256 of `bytes`.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}
