//! What a cache or another node would give for a path.

use std::sync::Arc;

use shoal_grid::upstreams::UpstreamId;
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::path_record::PathRecord;
use shoal_wire::mesh::sealed::Sealed;
use shoal_wire::nix::hash::Hash;
use shoal_wire::nix::narinfo::{Compression, NarInfo};
use shoal_wire::nix::path_info::PathInfo;

use super::decode;
use crate::session::admission::Admission;

/// A path that somebody trusted vouches for, or that proves itself.
#[derive(Clone, Debug)]
pub struct Offer {
    /// With the signatures that came.
    pub info: PathInfo,
    pub source: Source,
}

#[derive(Clone, Debug)]
pub enum Source {
    Cache(CacheFile),
    Mesh(Held),
}

/// A NAR as a file of a binary cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheFile {
    pub upstream: UpstreamId,
    /// As the narinfo names it.
    pub url: String,
    pub compression: Compression,
    pub file_hash: Option<Hash>,
    /// Bytes to be downloaded, where that is known.
    pub file_size: Option<u64>,
}

/// A path that other nodes of the mesh have.
#[derive(Clone, Debug)]
pub struct Held {
    /// What one of them answers for.
    pub record: Arc<Sealed<PathRecord>>,
    pub holders: Vec<NodeKey>,
}

impl Offer {
    /// The node that has it, where no more are known to.
    pub fn only_holder(&self) -> Option<NodeKey> {
        match &self.source {
            Source::Mesh(held) => <[NodeKey; 1]>::try_from(&held.holders[..]).ok().map(|[holder]| holder),
            _ => None,
        }
    }

    /// Error: why it is not believed, or of no use.
    pub fn judge(admission: &Admission, upstream: UpstreamId, narinfo: NarInfo) -> Result<Offer, String> {
        let NarInfo { info, url, compression, file_hash, file_size } = narinfo;
        if !decode::is_known(compression) {
            return Err(format!("its compression '{}' is not known here", compression.name()));
        }
        admission.check_claim(&info, true).map_err(|fault| format!("{fault:?}"))?;
        let file = CacheFile { upstream, url, compression, file_hash, file_size };
        Ok(Offer { info, source: Source::Cache(file) })
    }

    /// A member of the mesh is believed: whoever let it in vouched for it.
    pub fn of_member(held: Held) -> Offer {
        Offer { info: held.record.info(), source: Source::Mesh(held) }
    }

    /// Who has it, if it is nodes of the mesh.
    pub fn held(&self) -> Option<&Held> {
        match &self.source {
            Source::Cache(_) => None,
            Source::Mesh(held) => Some(held),
        }
    }

    /// The cache it comes from, if it is one.
    pub fn upstream(&self) -> Option<UpstreamId> {
        match &self.source {
            Source::Cache(file) => Some(file.upstream),
            Source::Mesh(_) => None,
        }
    }

    /// What has to be downloaded, as far as anybody can say.
    pub fn download_size(&self) -> u64 {
        match &self.source {
            Source::Cache(file) => file.file_size.unwrap_or(0),
            // Fewer: what other paths here share does not come again, and the rest comes compressed.
            Source::Mesh(_) => self.info.nar_size,
        }
    }
}
