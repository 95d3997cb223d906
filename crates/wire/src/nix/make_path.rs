//! Computing store paths: which hash of what names an object of each kind.
//! Source: `libstore/store-dir-config.cc`.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use thiserror::Error;

use super::base64::encode_hex;
use super::content_address::{CaMethod, ContentAddress};
use super::hash::{Hash, HashAlgo, sha256};
use super::store_path::{NameError, StoreDir, StorePath};

/// Why no path can be computed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MakePathError {
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("fixed output derivation '{0}' is not allowed to refer to other store paths")]
    ReferencesNotAllowed(String),
    #[error("self-reference not allowed with text hashing")]
    TextSelfReference,
    #[error("text hashing must use SHA-256, but instead using: {0}")]
    TextAlgo(HashAlgo),
    #[error("Git file ingestion must use SHA-1 or SHA-256 hash, but instead using: {0}")]
    GitAlgo(HashAlgo),
}

/// References of an object that has no path yet: the others, and whether it refers to itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CaReferences {
    pub others: BTreeSet<StorePath>,
    pub itself: bool,
}

impl CaReferences {
    pub fn none() -> Self {
        Self::default()
    }

    /// The references of an object that is at `path`.
    pub fn of(path: &StorePath, references: &BTreeSet<StorePath>) -> Self {
        let mut others = references.clone();
        let itself = others.remove(path);
        Self { others, itself }
    }

    pub fn is_empty(&self) -> bool {
        self.others.is_empty() && !self.itself
    }
}

/// XORs a SHA-256 into 20 bytes, as hash parts and computed-output placeholders are made.
pub(crate) fn fold(digest: &[u8; 32]) -> [u8; 20] {
    let mut folded = [0; 20];
    for (index, byte) in digest.iter().enumerate() {
        folded[index % 20] ^= byte;
    }
    folded
}

/// `<drv name>` for the output `out`, `<drv name>-<output>` for others.
pub fn output_path_name(drv_name: &str, output: &str) -> String {
    match output {
        "out" => drv_name.to_owned(),
        _ => format!("{drv_name}-{output}"),
    }
}

impl StoreDir {
    /// Hash part from the fingerprint `<type>:sha256:<inner hash>:<store dir>:<name>`.
    pub fn make_path(&self, type_: &str, inner_sha256: &[u8; 32], name: &str) -> Result<StorePath, NameError> {
        let inner = encode_hex(inner_sha256);
        let fingerprint = format!("{type_}:sha256:{inner}:{self}:{name}");
        StorePath::from_parts(&fold(&sha256(fingerprint.as_bytes())), name)
    }

    /// Path of output `output` of an input-addressed derivation with this hash modulo.
    pub fn make_output_path(&self, drv_hash: &[u8; 32], drv_name: &str, output: &str) -> Result<StorePath, NameError> {
        self.make_path(&format!("output:{output}"), drv_hash, &output_path_name(drv_name, output))
    }

    /// Path of a text file, such as a `.drv`, by the SHA-256 of its bytes.
    pub fn make_text_path(
        &self,
        name: &str,
        file_sha256: &[u8; 32],
        references: &BTreeSet<StorePath>,
    ) -> Result<StorePath, NameError> {
        self.make_path(&self.type_with_references("text", references, false), file_sha256, name)
    }

    /// Path of a content-addressed object without references (fixed outputs, flat and Git objects).
    pub fn make_fixed_path(&self, ca: &ContentAddress, name: &str) -> Result<StorePath, MakePathError> {
        self.make_ca_path(ca, &CaReferences::none(), name)
    }

    /// Path of any content-addressed object. Only text and SHA-256 NAR objects may have references.
    pub fn make_ca_path(
        &self,
        ca: &ContentAddress,
        references: &CaReferences,
        name: &str,
    ) -> Result<StorePath, MakePathError> {
        match (ca.method, ca.hash.as_sha256()) {
            (CaMethod::Text, _) if references.itself => Err(MakePathError::TextSelfReference),
            (CaMethod::Text, None) => Err(MakePathError::TextAlgo(ca.hash.algo())),
            (CaMethod::Text, Some(digest)) => Ok(self.make_text_path(name, &digest, &references.others)?),
            (CaMethod::Nar, Some(digest)) => {
                let type_ = self.type_with_references("source", &references.others, references.itself);
                Ok(self.make_path(&type_, &digest, name)?)
            }
            _ if !references.is_empty() => Err(MakePathError::ReferencesNotAllowed(name.to_owned())),
            _ => self.make_unreferring_path(ca.method, &ca.hash, name),
        }
    }

    fn make_unreferring_path(&self, method: CaMethod, hash: &Hash, name: &str) -> Result<StorePath, MakePathError> {
        if method == CaMethod::Git && !matches!(hash.algo(), HashAlgo::Sha1 | HashAlgo::Sha256) {
            return Err(MakePathError::GitAlgo(hash.algo()));
        }
        let (prefix, algo, digest) = (method.prefix(), hash.algo(), hash.to_base16());
        let inner = sha256(format!("fixed:out:{prefix}{algo}:{digest}:").as_bytes());
        Ok(self.make_path("output:out", &inner, name)?)
    }

    fn type_with_references(&self, type_: &str, others: &BTreeSet<StorePath>, itself: bool) -> String {
        let mut text = type_.to_owned();
        for path in others {
            // Writing to a String cannot fail.
            let _ = write!(text, ":{self}/{path}");
        }
        if itself {
            text.push_str(":self");
        }
        text
    }
}
