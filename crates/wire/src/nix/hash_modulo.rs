//! Hashes of derivations modulo the provenance of fixed outputs. Source: `libstore/derivation/modulo.cc`, and
//! `hashDerivationModulo` up to Nix 2.35.
//!
//! - *Input hash*: what stands for a derivation in those that depend on it.
//! - *Own hash*: what the paths of an input-addressed derivation's outputs are computed from.
//! - *Output id hash*: the key of realisations up to Nix 2.34.
//!
//! A derivation's input hash needs those of its inputs, which are memoised; with the memo the cost is one
//! printing and one SHA-256 a derivation. The walk keeps its own stack, so chains of any length are safe.

use std::borrow::Cow;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use thiserror::Error;

use super::aterm::print_parts;
use super::content_address::ContentAddress;
use super::derivation::{BasicDerivation, Derivation, DerivationKind, DerivedOutputs, KindError, Output};
use super::hash::sha256;
use super::make_path::MakePathError;
use super::store_path::{StoreDir, StorePath};

/// Input hashes kept from one call to the next, about 200 bytes each. The largest package sets have some
/// hundred thousand derivations.
const MEMO_LEN_MAX: usize = 1 << 18;

/// Derivations visited in one call at most. No real closure comes near.
const CLOSURE_LEN_MAX: usize = 1 << 20;

/// Why no hash can be computed. `E` is the error of the look-up of input derivations.
#[derive(Debug, Error)]
pub enum HashModuloError<E> {
    #[error("cannot read derivation '{path}': {source}")]
    Lookup { path: StorePath, source: E },
    #[error("no hash for output '{output}' of derivation '{drv}'")]
    NoHash { output: String, drv: String },
    #[error("derivation '{0}' depends on itself")]
    Cycle(StorePath),
    #[error("closure has more than {CLOSURE_LEN_MAX} derivations")]
    TooLarge,
    #[error(transparent)]
    Kind(#[from] KindError),
    #[error(transparent)]
    MakePath(#[from] MakePathError),
}

/// How a derivation appears among the inputs of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InputHash {
    pub hash: [u8; 32],
    /// A fixed-output derivation: dependants see a derivation with the single output `out`.
    pub fixed: bool,
    /// Its paths are unknown until it is built, and so are those of its dependants.
    pub deferred: bool,
}

/// Computes hashes and remembers input hashes.
#[derive(Debug, Default)]
pub struct HashModulo {
    dir: StoreDir,
    memo: HashMap<StorePath, InputHash>,
}

/// A derivation whose inputs are being visited.
struct Frame {
    path: StorePath,
    drv: Arc<Derivation>,
    pending: std::vec::IntoIter<StorePath>,
}

impl Frame {
    fn new(path: StorePath, drv: Arc<Derivation>) -> Self {
        let pending: Vec<_> = drv.input_drvs.keys().cloned().collect();
        Self { path, drv, pending: pending.into_iter() }
    }
}

/// Digests are in the order of their base 16.
type Inputs<'a> = BTreeMap<[u8; 32], Cow<'a, DerivedOutputs>>;

impl HashModulo {
    pub fn new(dir: StoreDir) -> Self {
        Self { dir, memo: HashMap::new() }
    }

    pub fn store_dir(&self) -> &StoreDir {
        &self.dir
    }

    /// Forgets what is known of `path`, as must be done when its `.drv` file may have changed.
    pub fn forget(&mut self, path: &StorePath) {
        self.memo.remove(path);
    }

    /// The input hash of the derivation in `path`. `lookup` reads `.drv` files.
    pub fn input_hash<E>(
        &mut self,
        path: &StorePath,
        lookup: &mut dyn FnMut(&StorePath) -> Result<Arc<Derivation>, E>,
    ) -> Result<InputHash, HashModuloError<E>> {
        self.limit_memo();
        self.visit(path, lookup)
    }

    /// The hash that the output paths of `drv` come from; `None` when it is deferred.
    /// Only for derivations that are input-addressed or deferred.
    pub fn own_hash<E>(
        &mut self,
        drv: &Derivation,
        lookup: &mut dyn FnMut(&StorePath) -> Result<Arc<Derivation>, E>,
    ) -> Result<Option<[u8; 32]>, HashModuloError<E>> {
        Ok(self.masked_text(drv, lookup)?.map(|text| sha256(&text)))
    }

    /// What [`own_hash`](Self::own_hash) is the hash of.
    pub fn masked_text<E>(
        &mut self,
        drv: &Derivation,
        lookup: &mut dyn FnMut(&StorePath) -> Result<Arc<Derivation>, E>,
    ) -> Result<Option<Vec<u8>>, HashModuloError<E>> {
        let (inputs, deferred) = self.inputs(drv, lookup)?;
        Ok((!deferred).then(|| print_parts(&self.dir, &drv.into(), &inputs, true)))
    }

    /// The own hash of a derivation without input derivations, such as a resolved one.
    pub fn own_hash_basic(&self, drv: &BasicDerivation) -> [u8; 32] {
        sha256(&print_parts(&self.dir, &drv.into(), &Inputs::new(), true))
    }

    /// The output id hash of every output, of a derivation of any kind.
    pub fn output_ids<E>(
        &mut self,
        drv: &Derivation,
        lookup: &mut dyn FnMut(&StorePath) -> Result<Arc<Derivation>, E>,
    ) -> Result<BTreeMap<String, [u8; 32]>, HashModuloError<E>> {
        if drv.kind()? == DerivationKind::Fixed {
            return Ok(self.fixed_ids(&drv.name, &drv.outputs)?);
        }
        let (inputs, _) = self.inputs(drv, lookup)?;
        let hash = sha256(&print_parts(&self.dir, &drv.into(), &inputs, true));
        Ok(drv.outputs.keys().map(|output| (output.clone(), hash)).collect())
    }

    /// The same for a derivation without input derivations, as clients send to builders.
    pub fn output_ids_basic(
        &self,
        drv: &BasicDerivation,
    ) -> Result<BTreeMap<String, [u8; 32]>, HashModuloError<std::convert::Infallible>> {
        if drv.kind()? == DerivationKind::Fixed {
            return Ok(self.fixed_ids(&drv.name, &drv.outputs)?);
        }
        let hash = self.own_hash_basic(drv);
        Ok(drv.outputs.keys().map(|output| (output.clone(), hash)).collect())
    }

    fn fixed_ids(
        &self,
        drv_name: &str,
        outputs: &BTreeMap<String, Output>,
    ) -> Result<BTreeMap<String, [u8; 32]>, MakePathError> {
        let mut ids = BTreeMap::new();
        for (name, output) in outputs {
            if let Output::Fixed { ca } = output {
                ids.insert(name.clone(), self.fixed_hash(ca, drv_name, name)?);
            }
        }
        Ok(ids)
    }

    fn fixed_hash(&self, ca: &ContentAddress, drv_name: &str, output: &str) -> Result<[u8; 32], MakePathError> {
        let path = self.dir.make_fixed_path(ca, &super::make_path::output_path_name(drv_name, output))?;
        let (method, digest) = (ca.method_algo().to_output_form(), ca.hash.to_base16());
        Ok(sha256(format!("fixed:out:{method}:{digest}:{}/{path}", self.dir).as_bytes()))
    }

    fn limit_memo(&mut self) {
        if self.memo.len() > MEMO_LEN_MAX {
            self.memo.clear();
        }
    }

    /// The inputs of `drv` by hash, those of equal hash merged, and whether any of them is deferred.
    fn inputs<'a, E>(
        &mut self,
        drv: &'a Derivation,
        lookup: &mut dyn FnMut(&StorePath) -> Result<Arc<Derivation>, E>,
    ) -> Result<(Inputs<'a>, bool), HashModuloError<E>> {
        self.limit_memo();
        for path in drv.input_drvs.keys() {
            self.visit(path, lookup)?;
        }
        self.known_inputs(drv)
    }

    /// As [`inputs`](Self::inputs), when all of them are in the memo.
    fn known_inputs<'a, E>(&self, drv: &'a Derivation) -> Result<(Inputs<'a>, bool), HashModuloError<E>> {
        let mut inputs = Inputs::new();
        let mut any_deferred = false;
        for (path, node) in &drv.input_drvs {
            let no_hash = |output: &String| HashModuloError::NoHash { output: output.clone(), drv: drv.name.clone() };
            let Some(&InputHash { hash, fixed, deferred }) = self.memo.get(path) else {
                return Err(no_hash(&path.to_string()));
            };
            any_deferred |= deferred || !node.dynamic.is_empty();
            if let Some(output) = node.outputs.iter().find(|output| fixed && *output != "out") {
                return Err(no_hash(output));
            }
            if node.outputs.is_empty() {
                continue;
            }
            match inputs.entry(hash) {
                // Dynamic outputs are not printed; whoever has any is deferred.
                Entry::Vacant(entry) if node.dynamic.is_empty() => {
                    entry.insert(Cow::Borrowed(node));
                }
                entry => {
                    let merged = entry.or_insert_with(|| Cow::Owned(DerivedOutputs::default()));
                    merged.to_mut().outputs.extend(node.outputs.iter().cloned());
                }
            }
        }
        Ok((inputs, any_deferred))
    }

    /// Depth first over the inputs that are not in the memo.
    fn visit<E>(
        &mut self,
        root: &StorePath,
        lookup: &mut dyn FnMut(&StorePath) -> Result<Arc<Derivation>, E>,
    ) -> Result<InputHash, HashModuloError<E>> {
        if let Some(&known) = self.memo.get(root) {
            return Ok(known);
        }
        let mut read =
            |path: &StorePath| lookup(path).map_err(|source| HashModuloError::Lookup { path: path.clone(), source });
        let drv = read(root)?;
        if let Some(hash) = self.hash_of_fixed(&drv)? {
            self.memo.insert(root.clone(), hash);
            return Ok(hash);
        }
        let mut visited = HashSet::from([root.clone()]);
        let mut stack = vec![Frame::new(root.clone(), drv)];
        while let Some(frame) = stack.last_mut() {
            match frame.pending.find(|path| !self.memo.contains_key(path)) {
                Some(path) => {
                    // Whatever was visited and is not in the memo is further down on the stack.
                    if !visited.insert(path.clone()) {
                        return Err(HashModuloError::Cycle(path));
                    }
                    if visited.len() > CLOSURE_LEN_MAX {
                        return Err(HashModuloError::TooLarge);
                    }
                    let drv = read(&path)?;
                    // A fixed output's hash does not depend on its inputs, which need not even be present.
                    match self.hash_of_fixed(&drv)? {
                        Some(hash) => {
                            self.memo.insert(path, hash);
                        }
                        None => stack.push(Frame::new(path, drv)),
                    }
                }
                None => {
                    let hash = self.hash_of_known(&frame.drv)?;
                    self.memo.insert(frame.path.clone(), hash);
                    stack.pop();
                    if stack.is_empty() {
                        return Ok(hash);
                    }
                }
            }
        }
        Err(HashModuloError::TooLarge)
    }

    fn hash_of_fixed<E>(&self, drv: &Derivation) -> Result<Option<InputHash>, HashModuloError<E>> {
        if drv.kind()? != DerivationKind::Fixed {
            return Ok(None);
        }
        let ids = self.fixed_ids(&drv.name, &drv.outputs)?;
        Ok(ids.get("out").map(|&hash| InputHash { hash, fixed: true, deferred: false }))
    }

    fn hash_of_known<E>(&self, drv: &Derivation) -> Result<InputHash, HashModuloError<E>> {
        let (inputs, inputs_deferred) = self.known_inputs(drv)?;
        let deferred = inputs_deferred || drv.kind()? != DerivationKind::InputAddressed;
        let hash = sha256(&print_parts(&self.dir, &drv.into(), &inputs, false));
        Ok(InputHash { hash, fixed: false, deferred })
    }
}
