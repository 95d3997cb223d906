//! Outputs that are kept beside those that are valid: what came out on one node, under the name of its contents.
//!
//! A check publishes nothing, and neither does a node that builds what several must agree on. What came out becomes a
//! content-addressed path of its own, without references to outputs of the same derivation, which need not be valid. So
//! nothing is overwritten, equal outputs of two nodes have one name, and each can be fetched and looked at until it is
//! collected as garbage. Content-addressed outputs are their own variants.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use shoal_store::Store;
use shoal_wire::nix::content_address::{CaMethod, ContentAddress};
use shoal_wire::nix::hash::Hash;
use shoal_wire::nix::make_path::CaReferences;
use shoal_wire::nix::nar::index::Node;
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::store_path::{StoreDir, StorePath};

use super::execute::KillSwitch;
use crate::dump::{DumpError, dump};

/// Where the contents of an output are.
pub(super) enum Source {
    /// As the builder left them.
    Tree(PathBuf),
    /// In the store, as this variant.
    Variant(StorePath),
}

impl Source {
    /// The tree, if it is one.
    pub fn tree(&self) -> Option<&Path> {
        match self {
            Source::Tree(tree) => Some(tree),
            Source::Variant(_) => None,
        }
    }

    /// Reads the NAR into `writer`, until nobody wants the build any more: a few bytes of disk can be petabytes of zeros.
    pub fn read<W: Write>(&self, store: &Store, writer: W, kill: &KillSwitch) -> Result<W, DumpError> {
        let mut writer = Stoppable { writer, kill };
        match self {
            Source::Tree(tree) => Ok(dump(tree, writer)?.writer),
            Source::Variant(path) => {
                let mut nar = export(store, path).map_err(|error| DumpError::Write(io::Error::other(error)))?;
                io::copy(&mut nar, &mut writer).map_err(DumpError::Write)?;
                Ok(writer.writer)
            }
        }
    }

    /// The contents if it is a plain file of at most `len_max` bytes.
    pub fn read_file(&self, store: &Store, len_max: u64) -> anyhow::Result<Option<Vec<u8>>> {
        let mut contents = Vec::new();
        match self {
            Source::Tree(tree) => {
                let meta = tree.symlink_metadata().context("cannot read an output")?;
                if !meta.is_file() || meta.len() > len_max {
                    return Ok(None);
                }
                File::open(tree)
                    .and_then(|file| file.take(len_max).read_to_end(&mut contents))
                    .context("cannot read an output")?;
            }
            Source::Variant(path) => {
                let nar = export(store, path)?;
                let &Node::Regular { size, offset, .. } = &nar.index().root().node else { return Ok(None) };
                if size > len_max {
                    return Ok(None);
                }
                nar.range(offset, size).read_to_end(&mut contents).context("cannot read an output")?;
            }
        }
        Ok(Some(contents))
    }
}

fn export(store: &Store, path: &StorePath) -> anyhow::Result<shoal_store::Export> {
    let nar = store.export(path).context("cannot read the store")?;
    nar.with_context(|| format!("'{path}', on which nodes agreed, is not here any more"))
}

struct Stoppable<'a, W> {
    writer: W,
    kill: &'a KillSwitch,
}

impl<W: Write> Write for Stoppable<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.kill.is_killed() {
            return Err(io::Error::other("the build was cancelled while its outputs were read"));
        }
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// The same contents as a path of their own. `own`: the paths of all outputs of the derivation.
pub(super) fn variant(dir: &StoreDir, info: &PathInfo, own: &BTreeSet<&StorePath>) -> anyhow::Result<PathInfo> {
    if info.ca.is_some() {
        return Ok(info.clone());
    }
    let references: BTreeSet<StorePath> = info.references.iter().filter(|path| !own.contains(path)).cloned().collect();
    let ca = ContentAddress { method: CaMethod::Nar, hash: Hash::sha256(info.nar_hash) };
    let refers = CaReferences { others: references.clone(), itself: false };
    // By that name it would be taken for a derivation that somebody may build.
    let name = info.path.name();
    let name = name.strip_suffix(".drv").filter(|rest| !rest.is_empty()).unwrap_or(name);
    let path =
        dir.make_ca_path(&ca, &refers, name).context("an output cannot be kept under the name of its contents")?;
    Ok(PathInfo { path, references, ca: Some(ca), signatures: BTreeSet::new(), ..info.clone() })
}

/// What nodes agreed on, as sources of the outputs.
pub(super) fn sources(agreed: &BTreeMap<String, StorePath>) -> BTreeMap<String, Source> {
    agreed.iter().map(|(output, path)| (output.clone(), Source::Variant(path.clone()))).collect()
}
