//! Resolution: a derivation with the outputs of its input derivations put in as plain store paths.
//! Source: `libstore/derivation/resolution.cc`.

use std::collections::BTreeMap;

use thiserror::Error;

use super::derivation::{BasicDerivation, Derivation, DerivationKind, DerivedOutputs, KindError};
use super::derived_path::{Separator, SingleDerivedPath};
use super::invariants::{InvariantError, fill_outputs};
use super::placeholder::{self, Rewrites};
use super::store_path::{StoreDir, StorePath};

/// Why a derivation cannot be resolved.
#[derive(Debug, Error)]
pub enum ResolveError {
    #[error("output of unbuilt derivation '{0}' is not known")]
    Unknown(String),
    #[error(transparent)]
    Outputs(#[from] InvariantError<std::convert::Infallible>),
}

/// Whether the derivation has to be resolved before it can be built.
pub fn must_resolve(drv: &Derivation) -> Result<bool, KindError> {
    let by_kind = match drv.kind()? {
        DerivationKind::InputAddressed | DerivationKind::Fixed => false,
        DerivationKind::Deferred | DerivationKind::Floating | DerivationKind::Impure => true,
    };
    Ok(!drv.input_drvs.is_empty() && (by_kind || drv.has_dynamic_inputs()))
}

/// All outputs of input derivations that `drv` wants, those of dynamic derivations too.
pub fn derived_inputs(drv: &Derivation) -> Vec<SingleDerivedPath> {
    let mut inputs = Vec::new();
    for (path, node) in &drv.input_drvs {
        collect(SingleDerivedPath::Opaque(path.clone()), node, &mut inputs);
    }
    inputs
}

/// Recursion is bounded, because nodes are never deeper than [`super::derivation::DYNAMIC_DEPTH_MAX`].
fn collect(drv: SingleDerivedPath, node: &DerivedOutputs, inputs: &mut Vec<SingleDerivedPath>) {
    let built = |output: &String| SingleDerivedPath::Built { drv: Box::new(drv.clone()), output: output.clone() };
    inputs.extend(node.outputs.iter().map(built));
    for (output, child) in &node.dynamic {
        collect(built(output), child, inputs);
    }
}

/// The resolved derivation. `lookup` gives the path that an output of an input derivation came out as; the
/// placeholder for that output is replaced with it wherever it occurs. Deferred outputs get their paths.
pub fn resolve(
    dir: &StoreDir,
    drv: &Derivation,
    lookup: &mut dyn FnMut(&SingleDerivedPath) -> Option<StorePath>,
) -> Result<BasicDerivation, ResolveError> {
    let mut resolved = drv.to_basic();
    let mut rewrites = Rewrites::default();
    for input in derived_inputs(drv) {
        let path = lookup(&input).ok_or_else(|| ResolveError::Unknown(input.print(dir, Separator::Cli)))?;
        if let Some(placeholder) = placeholder::derived(&input) {
            rewrites.insert(&placeholder, &dir.print(&path));
        }
        resolved.input_srcs.insert(path);
    }
    rewrite(&mut resolved, &rewrites);
    fill_outputs(dir, &mut resolved)?;
    Ok(resolved)
}

/// Replaces placeholders in builder, arguments, environment (keys too) and structured attributes.
pub fn rewrite(drv: &mut BasicDerivation, rewrites: &Rewrites) {
    if rewrites.is_empty() {
        return;
    }
    drv.builder = rewrites.apply(&drv.builder);
    drv.args.iter_mut().for_each(|arg| *arg = rewrites.apply(arg));
    let mut env = BTreeMap::new();
    for (key, value) in std::mem::take(&mut drv.env) {
        env.entry(rewrites.apply(&key)).or_insert_with(|| rewrites.apply(&value));
    }
    drv.env = env;
}
