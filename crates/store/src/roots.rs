//! Roots that outlive the process: names, and symlinks that root what they point at.

use crate::error::{Error, Result};
use crate::index::tables::{KEPT, LINKS, ROOTS};
use crate::kept;
use crate::paths::base_name;
use crate::store::Store;
use redb::{ReadableTable, WriteTransaction};
use shoal_wire::nix::store_path::{StoreDir, StorePath};
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Why something is kept.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Root {
    /// By a name given to [`Store::add_root`].
    Named(String),
    /// By a pin of this name.
    Pin(String),
    /// By a symlink given to [`Store::add_link_root`].
    Link(PathBuf),
    /// By a client, a build or a reader that is at work.
    Temporary,
}

impl Store {
    /// Keeps a path, valid or not yet, until [`Store::remove_root`]. A name is reused by pointing it elsewhere.
    pub fn add_root(&self, name: &str, path: &StorePath) -> Result<()> {
        let (name, path) = (name.to_owned(), path.clone());
        self.writer.write(false, move |txn| {
            txn.open_table(ROOTS)?.insert(name.as_str(), path.base_name())?;
            Ok(())
        })
    }

    /// Whether there was such a root.
    pub fn remove_root(&self, name: &str) -> Result<bool> {
        let name = name.to_owned();
        self.writer.write(false, move |txn| Ok(txn.open_table(ROOTS)?.remove(name.as_str())?.is_some()))
    }

    /// Keeps what the symlink `link`, an absolute path, points at, as long as it does.
    pub fn add_link_root(&self, link: &Path) -> Result<()> {
        let link = link.as_os_str().as_bytes().to_owned();
        self.writer.write(false, move |txn| {
            txn.open_table(LINKS)?.insert(link.as_slice(), ())?;
            Ok(())
        })
    }

    /// All roots and what they keep. Links that point nowhere in the store are left out.
    pub fn roots(&self) -> Result<Vec<(Root, StorePath)>> {
        let (store_dir, now) = (&self.options.store_dir, self.now());
        let mut roots = self.index.read(|txn| {
            let mut roots = lasting(&txn.open_table(ROOTS)?, &txn.open_table(LINKS)?, store_dir)?;
            roots.extend(by_pins(&txn.open_table(KEPT)?, now)?);
            Ok(roots)
        })?;
        roots.extend(self.leases.held().into_iter().map(|path| (Root::Temporary, path)));
        Ok(roots)
    }
}

/// The roots that a writing transaction sees at this second.
pub fn lasting_in(txn: &WriteTransaction, store_dir: &StoreDir, now: u64) -> Result<Vec<(Root, StorePath)>> {
    let mut roots = lasting(&txn.open_table(ROOTS)?, &txn.open_table(LINKS)?, store_dir)?;
    roots.extend(by_pins(&txn.open_table(KEPT)?, now)?);
    Ok(roots)
}

fn by_pins(
    kept: &impl ReadableTable<&'static str, &'static [u8]>,
    now: u64,
) -> Result<impl Iterator<Item = (Root, StorePath)>> {
    let pins = kept::holding(kept, now)?.into_iter();
    Ok(pins.flat_map(|pin| pin.paths.into_iter().map(move |path| (Root::Pin(pin.name.clone()), path))))
}

fn lasting(
    named: &impl ReadableTable<&'static str, &'static str>,
    links: &impl ReadableTable<&'static [u8], ()>,
    store_dir: &StoreDir,
) -> Result<Vec<(Root, StorePath)>> {
    let mut roots = Vec::new();
    for row in named.iter()? {
        let (name, path) = row?;
        roots.push((Root::Named(name.value().to_owned()), base_name(path.value())?));
    }
    for row in links.iter()? {
        let link = PathBuf::from(OsStr::from_bytes(row?.0.value()));
        if let Some(path) = link_target(&link, store_dir) {
            roots.push((Root::Link(link), path));
        }
    }
    Ok(roots)
}

/// The store path that a link points at or into.
fn link_target(link: &Path, store_dir: &StoreDir) -> Option<StorePath> {
    let target = std::fs::read_link(link).ok()?;
    Some(store_dir.parse_prefix(target.to_str()?).ok()?.0)
}

/// Forgets links that are gone.
pub fn forget_stale_links(store: &Store) -> Result<()> {
    let stale: Vec<Vec<u8>> = store.index.read(|txn| {
        let mut stale = Vec::new();
        for row in txn.open_table(LINKS)?.iter()? {
            let link = row?.0.value().to_owned();
            let gone = std::fs::symlink_metadata(OsStr::from_bytes(&link))
                .is_err_and(|error| matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory));
            if gone {
                stale.push(link);
            }
        }
        Ok(stale)
    })?;
    if stale.is_empty() {
        return Ok(());
    }
    store.writer.write(false, move |txn| {
        let mut links = txn.open_table(LINKS)?;
        for link in &stale {
            links.remove(link.as_slice())?;
        }
        Ok::<(), Error>(())
    })
}
