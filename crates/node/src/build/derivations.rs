//! Derivations of the store, parsed once and kept, with the hashes computed from them.
//!
//! A derivation is only worth what its output paths are: whoever could name another's would choose what that path holds.
//! [`Derivations::check_added`] judges one that becomes valid, [`Derivations::check_outputs`] one that is to be built.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, anyhow};
use shoal_store::Store;
use shoal_wire::nix::aterm;
use shoal_wire::nix::derivation::{BasicDerivation, Derivation};
use shoal_wire::nix::hash_modulo::HashModulo;
use shoal_wire::nix::invariants;
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::store_path::{StoreDir, StorePath};

/// Bytes of `.drv` text whose parsed form is kept; a parsed derivation takes two to three times its text.
const KEPT_TEXT_BYTES_MAX: usize = 8 << 20;

/// A `.drv` larger than this is refused; real ones reach a few hundred KiB.
pub(super) const DRV_BYTES_MAX: u64 = 64 << 20;

/// The hash a realisation goes by, of each output.
pub(super) type OutputHashes = BTreeMap<String, [u8; 32]>;

/// Derivations that are about to become valid, on which others that are may depend.
pub type PendingDerivations = HashMap<StorePath, Arc<Derivation>>;

#[derive(Default)]
struct Kept {
    derivations: HashMap<StorePath, Arc<Derivation>>,
    text_bytes: usize,
}

pub struct Derivations {
    store: Store,
    dir: StoreDir,
    kept: Mutex<Kept>,
    modulo: Mutex<HashModulo>,
}

impl Derivations {
    pub fn new(store: Store, dir: StoreDir) -> Derivations {
        let modulo = Mutex::new(HashModulo::new(dir.clone()));
        Derivations { store, dir, kept: Mutex::default(), modulo }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_modulo(&self) -> MutexGuard<'_, HashModulo> {
        self.modulo.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks the text of a `.drv` that is to become valid with what `info` says of it: that the path follows from it,
    /// and its output paths too. What it depends on is in the store or in `pending`.
    pub fn check_added(
        &self,
        info: &PathInfo,
        text: &[u8],
        pending: &[&PendingDerivations],
    ) -> Result<Arc<Derivation>> {
        let mut lookup = |path: &StorePath| match pending.iter().find_map(|pending| pending.get(path)) {
            Some(derivation) => Ok(derivation.clone()),
            None => self.look_up(path),
        };
        let mut modulo = self.lock_modulo();
        let checked = invariants::check_added(&mut modulo, &info.path, text, &info.references, &mut lookup);
        let derivation = Arc::new(checked.map_err(|error| anyhow!("{error:#}"))?);
        // Those that depend on it come next, and look here first.
        let mut lookup = |path: &StorePath| if *path == info.path { Ok(derivation.clone()) } else { lookup(path) };
        modulo.input_hash(&info.path, &mut lookup).map_err(|error| anyhow!("{error:#}"))?;
        Ok(derivation)
    }

    /// An error unless the output paths of a derivation are the ones that follow from it.
    pub(super) fn check_outputs(&self, derivation: &Derivation) -> Result<()> {
        let checked = invariants::check_outputs(&mut self.lock_modulo(), derivation, &mut |path| self.look_up(path));
        checked.map(drop).map_err(|error| anyhow!("{error:#}"))
    }

    /// As [`get`](Self::get), for those who show an error without its causes.
    fn look_up(&self, path: &StorePath) -> Result<Arc<Derivation>, String> {
        self.get(path).map_err(|error| format!("{error:#}"))
    }

    /// The derivation in a valid `.drv` path.
    pub fn get(&self, path: &StorePath) -> Result<Arc<Derivation>> {
        if let Some(known) = self.lock().derivations.get(path) {
            return Ok(known.clone());
        }
        let full = self.dir.print(path);
        let name = path.derivation_name().with_context(|| format!("'{full}' is not a derivation"))?;
        let text = self.read(path).with_context(|| format!("cannot read derivation '{full}'"))?;
        let derivation = aterm::parse(&self.dir, &text, name).with_context(|| format!("cannot parse '{full}'"))?;
        let derivation = Arc::new(derivation);
        let mut kept = self.lock();
        if kept.text_bytes + text.len() > KEPT_TEXT_BYTES_MAX {
            *kept = Kept::default();
        }
        kept.text_bytes += text.len();
        kept.derivations.insert(path.clone(), derivation.clone());
        Ok(derivation)
    }

    fn read(&self, path: &StorePath) -> Result<Vec<u8>> {
        let info = self.store.path_info(path)?.context("it is not in this node's store; copy it here first")?;
        anyhow::ensure!(
            info.nar_size <= DRV_BYTES_MAX,
            "it has {} bytes, at most {DRV_BYTES_MAX} are read",
            info.nar_size
        );
        let mut text = Vec::new();
        self.store.read_file(path, "")?.context("it vanished")?.read_to_end(&mut text)?;
        Ok(text)
    }

    pub(super) fn output_hashes(&self, derivation: &Derivation) -> Result<OutputHashes> {
        let ids = self.lock_modulo().output_ids(derivation, &mut |path| self.look_up(path));
        ids.map_err(|error| anyhow!("{error:#}"))
    }

    pub(super) fn output_hashes_of_basic(&self, derivation: &BasicDerivation) -> Result<OutputHashes> {
        Ok(self.lock_modulo().output_ids_basic(derivation)?)
    }
}
