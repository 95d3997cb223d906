//! Derivations of the store, parsed once and kept, with the hashes computed from them.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use shoal_store::Store;
use shoal_wire::nix::aterm;
use shoal_wire::nix::derivation::{BasicDerivation, Derivation};
use shoal_wire::nix::hash_modulo::HashModulo;
use shoal_wire::nix::store_path::{StoreDir, StorePath};

/// Bytes of `.drv` text whose parsed form is kept; a parsed derivation takes two to three times its text.
const KEPT_TEXT_BYTES_MAX: usize = 8 << 20;

/// A `.drv` larger than this is refused; real ones reach a few hundred KiB.
const DRV_BYTES_MAX: u64 = 64 << 20;

/// The hash a realisation goes by, of each output.
pub(super) type OutputHashes = BTreeMap<String, [u8; 32]>;

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
        let mut modulo = self.modulo.lock().unwrap_or_else(PoisonError::into_inner);
        let ids = modulo.output_ids(derivation, &mut |path: &StorePath| self.get(path));
        ids.map_err(|error| anyhow::anyhow!("{error:#}"))
    }

    pub(super) fn output_hashes_of_basic(&self, derivation: &BasicDerivation) -> Result<OutputHashes> {
        let modulo = self.modulo.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(modulo.output_ids_basic(derivation)?)
    }
}
