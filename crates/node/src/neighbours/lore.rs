//! What other nodes know beside paths: where outputs came out, and what builds printed. No owner keeps these, so several
//! nodes are asked at once, and the first that knows answers.

use std::collections::BTreeSet;
use std::future::Future;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use shoal_grid::catalogue::SMALL_MESH;
use shoal_mesh::fetcher::{AskError, Realised};
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::chunks::RealisationKey;
use shoal_wire::nix::realisation::{BuildTrace, BuildTraceKey, DrvOutput, Realisation};
use shoal_wire::nix::store_path::StorePath;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{Inner, Neighbours};
use crate::upstream::LOG_LEN_MAX;

/// Nodes that are asked; in a larger mesh some may know it and are not.
pub(super) const ASKED_MAX: usize = SMALL_MESH;
/// How long one is waited for.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

impl Neighbours {
    /// Where an output came out, by the word of a member.
    pub fn realisation(&self, id: &DrvOutput) -> Option<Realisation> {
        match self.realised(RealisationKey::Output(id.clone()))? {
            Realised::Output(realisation) => Some(realisation),
            Realised::Trace(_) => None,
        }
    }

    /// The same in the form from Nix 2.35 on.
    pub fn build_trace(&self, key: &BuildTraceKey) -> Option<BuildTrace> {
        match self.realised(RealisationKey::Trace(key.clone()))? {
            Realised::Trace(trace) => Some(trace),
            Realised::Output(_) => None,
        }
    }

    fn realised(&self, key: RealisationKey) -> Option<Realised> {
        let inner = self.others()?;
        let ask = move |inner: Arc<Inner>, node: NodeKey| {
            let key = key.clone();
            async move { Ok(inner.fetcher.realisations(&[key], node).await?.pop().flatten()) }
        };
        inner.runtime.block_on(inner.clone().first_answer(&BTreeSet::new(), ask))
    }

    /// What a build of this derivation printed.
    pub fn log(&self, derivation: &StorePath) -> Option<Vec<u8>> {
        let inner = self.others()?;
        let wanted = derivation.clone();
        let ask = move |inner: Arc<Inner>, node: NodeKey| {
            let wanted = wanted.clone();
            async move { inner.fetcher.log(&wanted, node).await }
        };
        let packed = inner.runtime.block_on(inner.clone().first_answer(&BTreeSet::new(), ask))?;
        let mut log = Vec::new();
        let unpacked = zstd::stream::read::Decoder::new(&packed[..])
            .and_then(|decoder| decoder.take(LOG_LEN_MAX as u64).read_to_end(&mut log));
        match unpacked {
            Ok(_) => Some(log),
            Err(error) => {
                tracing::warn!(derivation = derivation.base_name(), %error, "the log that a node sent does not unpack");
                None
            }
        }
    }
}

impl Inner {
    /// The first answer of up to [`ASKED_MAX`] live nodes that are not in `not`.
    pub(super) async fn first_answer<T, F>(
        self: Arc<Self>,
        not: &BTreeSet<NodeKey>,
        ask: impl Fn(Arc<Inner>, NodeKey) -> F,
    ) -> Option<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<Option<T>, AskError>> + Send + 'static,
    {
        let (roster, me) = (self.mesh.roster(), self.mesh.me());
        let others = roster
            .live()
            .map(|peer| peer.record.node)
            .filter(|node| *node != me && !not.contains(node))
            .take(ASKED_MAX);
        let mut asked = JoinSet::new();
        for node in others {
            asked.spawn(timeout(PATIENCE, ask(self.clone(), node)));
        }
        while let Some(answer) = asked.join_next().await {
            match answer {
                Ok(Ok(Ok(Some(found)))) => return Some(found),
                Ok(Ok(Err(error))) => tracing::debug!(%error, "a node does not say what it knows"),
                // It does not know, or takes too long.
                _ => {}
            }
        }
        None
    }
}
