//! What a node answers for when it says that a path is valid: path, NAR and references together with the content root,
//! so that a part of the contents can be verified without the whole NAR.

use super::NodeKey;
use super::format::{Format, FormatError, within};
use super::manifest::ContentRoot;
use super::sealed::Signable;
use crate::nix::base32;
use crate::nix::content_address::ContentAddress;
use crate::nix::path_info::PathInfo;
use crate::nix::signature::Signature;
use crate::nix::store_path::{HASH_LEN, StorePath};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Most references: large environments have some thousands.
pub const REFERENCES_MAX: usize = 1 << 14;
/// Most signatures of caches, the mesh and clients; more than any path has, few enough that nobody can fill an index with
/// them.
pub const SIGNATURES_MAX: usize = 128;
/// Bytes of a [`ContentTag`].
pub const CONTENT_TAG_LEN: usize = 16;

/// What owners of a path are found by: the 20 bytes of its hash part, which is what binary caches are asked by, and zeros.
pub type PathKey = [u8; 32];
/// Tells apart different contents of one path: the first bytes of the BLAKE3 of NAR hash, size and references. Content
/// root and signatures are not in it: they may differ while the contents are the same.
pub type ContentTag = [u8; CONTENT_TAG_LEN];

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathRecord {
    pub author: NodeKey,
    pub path: StorePath,
    /// SHA-256.
    pub nar_hash: [u8; 32],
    pub nar_size: u64,
    pub references: BTreeSet<StorePath>,
    pub content_root: ContentRoot,
    pub deriver: Option<StorePath>,
    pub ca: Option<ContentAddress>,
    /// For clients: the upstream's as they came, and the mesh key's.
    pub signatures: BTreeSet<Signature>,
}

/// The key of all paths with this hash part; `None` where it is none.
pub fn path_key(hash_part: &str) -> Option<PathKey> {
    let mut key = PathKey::default();
    base32::decode_into(hash_part.as_bytes(), &mut key[..HASH_LEN]).ok()?;
    Some(key)
}

/// The hash part that a key was made of.
pub fn hash_part(key: &PathKey) -> Option<String> {
    let (hash, rest) = key.split_at(HASH_LEN);
    rest.iter().all(|byte| *byte == 0).then(|| base32::encode(hash))
}

/// Tells apart different contents of one path.
pub fn content_tag(nar_hash: &[u8; 32], nar_size: u64, references: &BTreeSet<StorePath>) -> ContentTag {
    let mut hasher = blake3::Hasher::new();
    hasher.update(nar_hash).update(&nar_size.to_le_bytes());
    for reference in references {
        hasher.update(reference.base_name().as_bytes()).update(b"\0");
    }
    let mut tag = [0; CONTENT_TAG_LEN];
    tag.copy_from_slice(&hasher.finalize().as_bytes()[..CONTENT_TAG_LEN]);
    tag
}

impl PathRecord {
    /// What `author` says of a path that is valid at it. When it was stored there and by whom it was built is not in it.
    pub fn of(author: NodeKey, info: PathInfo, content_root: ContentRoot) -> Self {
        let PathInfo { path, deriver, nar_hash, nar_size, references, signatures, ca, .. } = info;
        PathRecord { author, path, nar_hash, nar_size, references, content_root, deriver, ca, signatures }
    }

    /// The path as another store may know it, registered at no time yet.
    pub fn info(&self) -> PathInfo {
        PathInfo {
            deriver: self.deriver.clone(),
            references: self.references.clone(),
            signatures: self.signatures.clone(),
            ca: self.ca,
            ..PathInfo::new(self.path.clone(), self.nar_hash, self.nar_size)
        }
    }

    pub fn key(&self) -> PathKey {
        // A store path has a hash part.
        path_key(self.path.hash_part()).unwrap_or_default()
    }

    pub fn content_tag(&self) -> ContentTag {
        content_tag(&self.nar_hash, self.nar_size, &self.references)
    }
}

impl Format for PathRecord {
    const WHAT: &'static str = "path record";
    const VERSION: u8 = 1;
    /// [`REFERENCES_MAX`] base names of the longest kind, and room for the rest.
    const LEN_MAX: usize = 4 << 20;

    fn check(&self) -> Result<(), FormatError> {
        within::<Self>("NAR size", self.nar_size > 0)?;
        within::<Self>("references", self.references.len() <= REFERENCES_MAX)?;
        within::<Self>("signatures", self.signatures.len() <= SIGNATURES_MAX)
    }
}

impl Signable for PathRecord {
    fn author(&self) -> &[u8; 32] {
        &self.author
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_gives_the_hash_part_back_that_it_was_made_of() {
        let part = "0c6kzph7l0dcbfmjap64f0czdafn3b7x";
        assert_eq!(hash_part(&path_key(part).unwrap()).as_deref(), Some(part));
    }

    #[test]
    fn what_is_no_hash_part_has_no_key() {
        for text in ["", "0c6kzph7l0dcbfmjap64f0czdafn3b7", "0c6kzph7l0dcbfmjap64f0czdafn3b7e", "é".repeat(16).as_str()]
        {
            assert_eq!(path_key(text), None, "{text}");
        }
    }

    #[test]
    fn a_key_of_something_else_has_no_hash_part() {
        assert_eq!(hash_part(&[1; 32]), None);
    }
}
