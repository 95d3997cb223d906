//! What makes all nodes of a mesh one store to a client: it is told of what others have, and that something is done only
//! when it is on as many nodes as it should be.

use std::collections::BTreeSet;
use std::sync::Arc;

use shoal_wire::mesh::path_record::path_key;
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::store_path::StorePath;
use shoal_wire::nix::worker::BuildResult;

use super::Client;
use super::fault::Fault;
use crate::upstream::Offer;

impl Client {
    /// What is known of a path, valid here or at another node.
    pub(super) fn known(&self, path: &StorePath) -> Result<Option<PathInfo>, Fault> {
        if let Some(info) = self.store().path_info(path)? {
            return Ok(Some(info));
        }
        let found = self.upstreams().in_mesh([path]).pop();
        Ok(found.filter(|offer| self.is_still_there(offer)).map(|offer| offer.info.clone()))
    }

    /// Whether what another node has may be relied on. A derivation that one node alone has was just added there, and no
    /// client has been told so yet; if that node has died since, whoever asks had better add it here.
    fn is_still_there(&self, offer: &Offer) -> bool {
        let path = &offer.info.path;
        let (Some(holder), true, Some(key)) = (offer.only_holder(), path.is_derivation(), path_key(path.hash_part()))
        else {
            return true;
        };
        let neighbours = self.upstreams().neighbours();
        !neighbours.is_quiet(&holder) && neighbours.find_at(holder, &[key]).pop().flatten().is_some()
    }

    pub(super) fn path_of_hash_part(&self, hash_part: &str) -> Result<Option<StorePath>, Fault> {
        if let Some(path) = self.store().path_from_hash_part(hash_part)? {
            return Ok(Some(path));
        }
        Ok(self.upstreams().hash_part_in_mesh(hash_part).map(|offer| offer.info.path.clone()))
    }

    /// The same of several, without those that are not valid.
    pub(super) fn known_of(&self, paths: &BTreeSet<StorePath>) -> Result<Vec<PathInfo>, Fault> {
        let (mut known, mut elsewhere) = (Vec::with_capacity(paths.len()), Vec::new());
        for path in paths {
            match self.store().path_info(path)? {
                Some(info) => known.push(info),
                None => elsewhere.push(path),
            }
        }
        known.extend(self.upstreams().in_mesh(elsewhere).into_iter().map(|offer| offer.info.clone()));
        Ok(known)
    }

    /// What is known of a path that must be valid.
    pub(super) fn valid_path_info(&self, path: &StorePath) -> Result<PathInfo, Fault> {
        self.known(path)?.ok_or_else(|| self.not_valid(path))
    }

    /// The same of one that is to be changed or kept here, to which it comes first if another node has it.
    pub(super) fn path_info_here(&self, path: &StorePath) -> Result<PathInfo, Fault> {
        if !self.store().is_valid(path)? && !self.upstreams().in_mesh([path]).is_empty() {
            self.bring(&BTreeSet::from([path.clone()]));
        }
        self.store().path_info(path)?.ok_or_else(|| self.not_valid(path))
    }

    /// Those that are valid, here or at other nodes. Who asks sends the others, so derivations that one other node alone
    /// has are not among them: they were just added there, and are lost if it dies now.
    pub(super) fn valid_of(&self, paths: &BTreeSet<StorePath>) -> Result<BTreeSet<StorePath>, Fault> {
        let mut valid: BTreeSet<StorePath> = self.store().valid_of(paths)?.into_iter().collect();
        let elsewhere = self.upstreams().in_mesh(paths.difference(&valid));
        let is_kept = |offer: &&Arc<Offer>| !offer.info.path.is_derivation() || offer.only_holder().is_none();
        valid.extend(elsewhere.iter().filter(is_kept).map(|offer| offer.info.path.clone()));
        Ok(valid)
    }

    /// Fetches what paths that come in refer to and is not here, but at other nodes or in caches. Clients are told of
    /// those as of this store's own, so who uploads does not send them.
    pub(super) fn bring_references<'a>(&self, coming: impl Iterator<Item = &'a PathInfo> + Clone) {
        let own: BTreeSet<&StorePath> = coming.clone().map(|info| &info.path).collect();
        let references = coming.flat_map(|info| &info.references).filter(|path| !own.contains(path)).cloned();
        self.bring(&references.collect());
    }

    /// Waits until these, which are valid here, are on as many nodes as they should be.
    pub(super) fn acknowledge<'a>(&self, paths: impl IntoIterator<Item = &'a PathInfo>) -> Result<(), Fault> {
        self.upstreams().neighbours().keep(paths).map_err(Fault::refused)
    }

    /// The same of what builds made.
    pub(super) fn acknowledge_outputs(&self, results: &[BuildResult]) -> Result<(), Fault> {
        if self.upstreams().neighbours().is_alone() {
            return Ok(());
        }
        let outputs = results.iter().flat_map(|result| result.built_outputs.values());
        let infos: Result<Vec<Option<PathInfo>>, _> =
            outputs.map(|output| self.store().path_info(&output.out_path)).collect();
        self.acknowledge(infos?.iter().flatten())
    }
}
