//! What an upstream would give for a path.

use shoal_grid::upstreams::UpstreamId;
use shoal_wire::nix::hash::Hash;
use shoal_wire::nix::narinfo::{Compression, NarInfo};
use shoal_wire::nix::path_info::PathInfo;

use super::decode;
use crate::session::admission::Admission;

/// A path that somebody trusted vouches for, or that proves itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// With the signatures that came.
    pub info: PathInfo,
    pub upstream: UpstreamId,
    /// As the narinfo names it.
    pub url: String,
    pub compression: Compression,
    pub file_hash: Option<Hash>,
    /// Bytes to be downloaded, where that is known.
    pub file_size: Option<u64>,
}

impl Offer {
    /// Error: why it is not believed, or of no use.
    pub fn judge(admission: &Admission, upstream: UpstreamId, narinfo: NarInfo) -> Result<Offer, String> {
        let NarInfo { info, url, compression, file_hash, file_size } = narinfo;
        if !decode::is_known(compression) {
            return Err(format!("its compression '{}' is not known here", compression.name()));
        }
        admission.check_claim(&info, true).map_err(|fault| format!("{fault:?}"))?;
        Ok(Offer { info, upstream, url, compression, file_hash, file_size })
    }

    /// What has to be downloaded, as far as anybody can say.
    pub fn download_size(&self) -> u64 {
        self.file_size.unwrap_or(0)
    }
}
