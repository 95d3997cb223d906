//! What is kept and what may go: roots, collection, verification, signatures, logs.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use shoal_store::{GcError, Object, Root as StoreRoot};
use shoal_wire::nix::signature::Signature;
use shoal_wire::nix::store_path::StorePath;
use shoal_wire::nix::worker::ops::{AddPermRoot, CollectGarbage, Collected, GcAction, GcPaths, Root};

use super::Client;
use super::admission::SIGNATURES_MAX;
use super::fault::Fault;
use crate::door::Role;

impl Client {
    pub(super) fn collect(&self, request: CollectGarbage) -> Result<Collected, Fault> {
        let CollectGarbage { action, paths, ignore_liveness, max_freed } = request;
        if ignore_liveness {
            return Err(Fault::refused("ignoring liveness is not allowed: it would delete paths that are in use"));
        }
        let action = match action {
            GcAction::ReturnLive => shoal_store::GcAction::ReturnLive,
            GcAction::ReturnDead => shoal_store::GcAction::ReturnDead,
            GcAction::DeleteDead => shoal_store::GcAction::DeleteDead,
            GcAction::DeleteSpecific => shoal_store::GcAction::DeleteSpecific,
        };
        if matches!(action, shoal_store::GcAction::DeleteDead | shoal_store::GcAction::DeleteSpecific) {
            self.require(Role::Admin, "delete paths from this node")?;
        }
        let mut collect = shoal_store::GcRequest { max_freed, ..shoal_store::GcRequest::new(action) };
        if let GcPaths::Paths { paths, delete_referrers } = paths {
            if action == shoal_store::GcAction::DeleteDead && !delete_referrers {
                return Err(Fault::refused(
                    "deleting dead paths out of a list is not understood by this version of the protocol",
                ));
            }
            collect.paths = paths.into_iter().collect();
        }
        let report = self.services.builds.collect(&collect).map_err(|error| self.explain_gc(error))?;
        if let Some(kept) = report.kept.first().filter(|_| action == shoal_store::GcAction::DeleteSpecific) {
            let path = self.dir().print(kept);
            return Err(Fault::refused(format!(
                "Cannot delete path '{path}' since no other node of the mesh says that it has it (nor, with cold-last-copies, the bucket), since it is open in a mounted store, or since something began to use it"
            )));
        }
        Ok(Collected { paths: report.paths, bytes_freed: report.freed })
    }

    fn explain_gc(&self, error: GcError) -> Fault {
        match error {
            GcError::Alive(path) => {
                let path = self.dir().print(&path);
                let hint = "To find out why, use: nix-store --query --roots and nix-store --query --referrers";
                Fault::refused(format!("Cannot delete path '{path}' since it is still alive. {hint}"))
            }
            GcError::NotValid(path) => self.not_valid(&path),
            GcError::Store(error) => error.into(),
        }
    }

    /// Roots, each with what leads to it. Where the files of others lie is nobody's business but an admin's.
    pub(super) fn roots(&self) -> Result<Vec<Root>, Fault> {
        let link = |root: StoreRoot| match root {
            _ if !self.is_trusted() => b"{censored}".to_vec(),
            StoreRoot::Named(name) => name.into_bytes(),
            StoreRoot::Pin(name) => format!("{{pin:{name}}}").into_bytes(),
            StoreRoot::Link(link) => link.as_os_str().as_bytes().to_vec(),
            StoreRoot::Temporary => b"{temp}".to_vec(),
        };
        let roots = self.store().roots()?;
        Ok(roots.into_iter().map(|(root, target)| Root { link: link(root), target }).collect())
    }

    /// Keeps what the symlink leads to, on this machine.
    pub(super) fn add_indirect_root(&self, link: &[u8]) -> Result<(), Fault> {
        self.require(Role::Push, "add roots to this node")?;
        let link = Path::new(std::ffi::OsStr::from_bytes(link));
        if !link.is_absolute() {
            return Err(Fault::refused(format!("not an absolute path: '{}'", link.display())));
        }
        // No such file can be, so the root would never be looked up, nor go.
        if link.as_os_str().len() >= libc::PATH_MAX as usize {
            return Err(Fault::refused(format!("a path of {} bytes is too long for a root", link.as_os_str().len())));
        }
        Ok(self.store().add_link_root(link)?)
    }

    /// Makes a symlink to the path, and keeps the path as long as the link is there.
    pub(super) fn add_perm_root(&self, request: AddPermRoot) -> Result<Vec<u8>, Fault> {
        if !self.is_trusted() {
            let text = "you are not privileged to create perm roots\n\nhint: you can just do this client-side without \
                        special privileges, and probably want to do that instead.";
            return Err(Fault::fatal(text));
        }
        let AddPermRoot { path, link } = request;
        self.path_info_here(&path)?;
        let at = PathBuf::from(std::ffi::OsStr::from_bytes(&link));
        if !at.is_absolute() {
            return Err(Fault::refused(format!("not an absolute path: '{}'", at.display())));
        }
        let cannot = |error: std::io::Error| Fault::refused(format!("cannot make the root {}: {error}", at.display()));
        let mut new = at.clone().into_os_string();
        new.push(".new");
        match std::fs::symlink_metadata(&at) {
            Ok(there) if !there.is_symlink() => return Err(cannot(std::io::ErrorKind::AlreadyExists.into())),
            _ => {}
        }
        let _ = std::fs::remove_file(&new);
        std::os::unix::fs::symlink(self.dir().print(&path), &new).map_err(cannot)?;
        std::fs::rename(&new, &at).map_err(cannot)?;
        self.store().add_link_root(&at)?;
        Ok(link)
    }

    /// Looks for damage, and has it repaired from upstreams where that is wanted. Lines of text, and whether damage is
    /// left.
    pub(super) fn verify(&self, contents: bool, repair: bool) -> Result<(Vec<String>, bool), Fault> {
        if repair && !self.is_trusted() {
            return Err(Fault::refused("you are not privileged to repair paths"));
        }
        let report = match contents {
            // Which takes as long as reading the whole store.
            true => self.store().scrub(&mut |_| !self.hangup.is_gone())?,
            false => self.store().verify(false)?,
        };
        let mut lines: Vec<String> = report.damage.iter().map(|damage| damage.to_string()).collect();
        if !repair {
            return Ok((lines, !report.damage.is_empty()));
        }
        // What is missing beside a path no NAR brings back.
        let mut is_left = report.damage.iter().any(|damage| matches!(damage.object, Object::Record(_)));
        for (path, outcome) in self.upstreams().heal_all(self.store(), &|| !self.hangup.is_gone())? {
            let path = self.dir().print(&path);
            is_left |= outcome.is_err();
            lines.push(match outcome {
                Ok(()) => format!("repaired '{path}'"),
                Err(why) => format!("cannot repair '{path}': {why}"),
            });
        }
        Ok((lines, is_left))
    }

    /// Signatures are kept unseen: whoever asks for the path judges them.
    pub(super) fn add_signatures(&self, path: &StorePath, signatures: Vec<Signature>) -> Result<(), Fault> {
        self.require(Role::Push, "sign paths of this node")?;
        let info = self.path_info_here(path)?;
        if info.signatures.len() + signatures.len() > SIGNATURES_MAX {
            let path = self.dir().print(path);
            return Err(Fault::refused(format!("path '{path}' cannot have more than {SIGNATURES_MAX} signatures")));
        }
        self.store().add_signatures(path, &signatures)?;
        Ok(())
    }
}
