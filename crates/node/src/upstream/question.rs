//! What an upstream can be asked for, and what it may answer.

use std::sync::Arc;

use shoal_grid::upstreams::UpstreamId;
use shoal_wire::nix::realisation::{BuildTrace, BuildTraceKey, DrvOutput, Realisation};
use shoal_wire::nix::store_path::StorePath;

use super::offer::Offer;
use super::origin::Origin;
use super::web::Refusal;
use crate::session::admission::Admission;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Question {
    /// The path with this hash part.
    Path(String),
    /// Where an output came out, in the form up to Nix 2.34.
    Output(DrvOutput),
    /// The same in the form from Nix 2.35 on.
    Trace(BuildTraceKey),
    /// The log of this derivation's build.
    Log(StorePath),
}

/// What somebody trusted vouches for, or what proves itself; but for logs, which nobody signs and only people read.
#[derive(Clone, Debug)]
pub enum Finding {
    Offer(Arc<Offer>),
    Output(Arc<Realisation>),
    Trace(Arc<BuildTrace>),
    Log(Arc<Vec<u8>>),
}

impl Question {
    /// Asks one cache. Outer error: it has no answer; inner error: why the answer is not believed, or of no use.
    pub fn put_to(
        &self,
        cache: &Origin,
        id: UpstreamId,
        admission: &Admission,
    ) -> Result<Result<Finding, String>, Refusal> {
        let keys = admission.trusted_keys();
        let signed = |count: usize| if count > 0 { Ok(()) } else { Err("nobody trusted signed it".to_string()) };
        Ok(match self {
            Question::Path(hash_part) => {
                let narinfo = cache.narinfo(hash_part)?;
                Offer::judge(admission, id, narinfo).map(|offer| Finding::Offer(Arc::new(offer)))
            }
            Question::Output(output) => {
                let found = cache.realisation(output)?;
                signed(found.count_valid_signatures(keys)).map(|()| Finding::Output(Arc::new(found)))
            }
            Question::Trace(key) => {
                let found = cache.build_trace(key)?;
                signed(found.count_valid_signatures(keys)).map(|()| Finding::Trace(Arc::new(found)))
            }
            Question::Log(derivation) => Ok(Finding::Log(Arc::new(cache.log(derivation)?))),
        })
    }
}
