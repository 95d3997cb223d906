//! What must hold of a derivation before a store takes it: output paths are the ones that follow from it, and
//! the environment agrees. Source: `checkInvariants` and `fillInOutputPaths` in `libstore/derivations.cc`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use thiserror::Error;

use super::aterm::{self, AtermError};
use super::derivation::{BasicDerivation, ByteString, Derivation, DerivationKind, Output};
use super::hash::sha256;
use super::hash_modulo::{HashModulo, HashModuloError};
use super::make_path::MakePathError;
use super::options::required_system_features;
use super::store_path::{NameError, StoreDir, StorePath};

/// Feature of builders that are told their outputs over a socket, so that no environment variable names them.
const RPC_FEATURE: &str = "builder-rpc-v0";

/// Why a derivation is refused, in Nix's words where Nix has any. `E` is the error of the look-up of inputs.
#[derive(Debug, Error)]
pub enum InvariantError<E> {
    #[error("derivation has incorrect output '{actual}', should be '{expected}'")]
    IncorrectOutput { actual: String, expected: String },
    #[error("derivation has incorrect output '{0}', should be deferred")]
    ShouldBeDeferred(String),
    #[error("derivation has missing environment variable '{output}', should be '{expected}' but is not present")]
    MissingVariable { output: String, expected: String },
    #[error(
        "derivation has incorrect environment variable '{output}', should be '{expected}' but is actually '{actual}'"
    )]
    IncorrectVariable { output: String, expected: String, actual: String },
    #[error("derivation uses the '{RPC_FEATURE}' feature, which may only be used with content-addressing derivations")]
    RpcNotContentAddressed,
    #[error("'{0}' is not the name of a derivation")]
    NotADerivation(StorePath),
    #[error("error parsing derivation '{path}': {source}")]
    Parse { path: String, source: AtermError },
    #[error("ca hash mismatch importing path '{actual}';\n  specified: {actual}\n  got:       {expected}")]
    IncorrectPath { actual: String, expected: String },
    #[error("derivation '{path}' refers to '{reference}', which is not one of its inputs")]
    ExtraReference { path: String, reference: String },
    #[error("derivation '{path}' does not refer to its input '{input}'")]
    MissingReference { path: String, input: String },
    #[error(transparent)]
    Hash(#[from] HashModuloError<E>),
    #[error(transparent)]
    MakePath(#[from] MakePathError),
    #[error(transparent)]
    Name(#[from] NameError),
}

/// Something Nix only warns of: an output is deferred that need not be.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("derivation has incorrect deferred output, should be '{0}'")]
pub struct DeferredOutput(pub String);

/// Checks the text of a `.drv` that is to be added under `path` with these references, and everything that
/// follows from it. Needs the closure of input derivations.
pub fn check_added<E>(
    modulo: &mut HashModulo,
    path: &StorePath,
    contents: &[u8],
    references: &BTreeSet<StorePath>,
    lookup: &mut dyn FnMut(&StorePath) -> Result<Arc<Derivation>, E>,
) -> Result<Derivation, InvariantError<E>> {
    let dir = modulo.store_dir().clone();
    let name = path.derivation_name().ok_or_else(|| InvariantError::NotADerivation(path.clone()))?;
    let expected = dir.make_text_path(path.name(), &sha256(contents), references)?;
    if expected != *path {
        let (actual, expected) = (dir.print(path), dir.print(&expected));
        return Err(InvariantError::IncorrectPath { actual, expected });
    }
    let parse_error = |source| InvariantError::Parse { path: dir.print(path), source };
    let drv = aterm::parse(&dir, contents, name).map_err(parse_error)?;
    let inputs = drv.references();
    if let Some(reference) = references.difference(&inputs).next() {
        let (path, reference) = (dir.print(path), dir.print(reference));
        return Err(InvariantError::ExtraReference { path, reference });
    }
    if let Some(input) = inputs.difference(references).next() {
        let (path, input) = (dir.print(path), dir.print(input));
        return Err(InvariantError::MissingReference { path, input });
    }
    check_outputs(modulo, &drv, lookup)?;
    Ok(drv)
}

/// Checks output paths and the environment variables named after outputs.
pub fn check_outputs<E>(
    modulo: &mut HashModulo,
    drv: &Derivation,
    lookup: &mut dyn FnMut(&StorePath) -> Result<Arc<Derivation>, E>,
) -> Result<Vec<DeferredOutput>, InvariantError<E>> {
    let dir = modulo.store_dir().clone();
    let kind = drv.kind().map_err(HashModuloError::Kind)?;
    let own_hash = match kind {
        DerivationKind::InputAddressed | DerivationKind::Deferred => modulo.own_hash(drv, lookup)?,
        _ => None,
    };
    let rpc = uses_rpc(&drv.env, kind)?;
    let mut warnings = Vec::new();
    for (name, output) in &drv.outputs {
        let expected = match (output, own_hash) {
            (Output::Floating { .. } | Output::Impure { .. }, _) | (Output::Deferred, None) => continue,
            (Output::Fixed { .. }, _) => output.path(&dir, &drv.name, name)?,
            (Output::InputAddressed(path), None) => {
                return Err(InvariantError::ShouldBeDeferred(dir.print(path)));
            }
            (_, Some(hash)) => Some(dir.make_output_path(&hash, &drv.name, name)?),
        };
        let Some(expected) = expected else { continue };
        match output {
            Output::InputAddressed(path) if *path != expected => {
                let (actual, expected) = (dir.print(path), dir.print(&expected));
                return Err(InvariantError::IncorrectOutput { actual, expected });
            }
            Output::Deferred => warnings.push(DeferredOutput(dir.print(&expected))),
            _ if rpc => {}
            _ => check_variable(&drv.env, name, &dir.print(&expected))?,
        }
    }
    Ok(warnings)
}

/// Gives the deferred outputs of a derivation without input derivations their paths, and fills in environment
/// variables named after outputs. A variable that was filled in wrongly is put right, as Nix does for a
/// deferred output.
pub fn fill_outputs(dir: &StoreDir, drv: &mut BasicDerivation) -> Result<(), InvariantError<std::convert::Infallible>> {
    let kind = drv.kind().map_err(HashModuloError::Kind)?;
    let rpc = uses_rpc(&drv.env, kind)?;
    match kind {
        DerivationKind::Floating | DerivationKind::Impure => return Ok(()),
        DerivationKind::Fixed => {}
        DerivationKind::Deferred | DerivationKind::InputAddressed => {
            let hash = HashModulo::new(dir.clone()).own_hash_basic(drv);
            for (name, output) in &mut drv.outputs {
                let expected = dir.make_output_path(&hash, &drv.name, name)?;
                match output {
                    Output::InputAddressed(path) if *path != expected => {
                        let (actual, expected) = (dir.print(path), dir.print(&expected));
                        return Err(InvariantError::IncorrectOutput { actual, expected });
                    }
                    Output::Deferred => {
                        drv.env.insert(name.clone().into_bytes(), dir.print(&expected).into_bytes());
                        *output = Output::InputAddressed(expected);
                    }
                    _ => {}
                }
            }
        }
    }
    if rpc {
        return Ok(());
    }
    for (name, output) in &drv.outputs {
        if let Some(path) = output.path(dir, &drv.name, name)? {
            let value = drv.env.entry(name.clone().into_bytes()).or_default();
            if value.is_empty() {
                *value = dir.print(&path).into_bytes();
            }
            check_variable(&drv.env, name, &dir.print(&path))?;
        }
    }
    Ok(())
}

fn uses_rpc<E>(env: &BTreeMap<ByteString, ByteString>, kind: DerivationKind) -> Result<bool, InvariantError<E>> {
    let rpc = required_system_features(env).contains(RPC_FEATURE);
    match kind {
        DerivationKind::InputAddressed | DerivationKind::Deferred if rpc => Err(InvariantError::RpcNotContentAddressed),
        _ => Ok(rpc),
    }
}

fn check_variable<E>(
    env: &BTreeMap<ByteString, ByteString>,
    output: &str,
    expected: &str,
) -> Result<(), InvariantError<E>> {
    let (output, expected) = (output.to_owned(), expected.to_owned());
    match env.get(output.as_bytes()) {
        None => Err(InvariantError::MissingVariable { output, expected }),
        Some(actual) if actual != expected.as_bytes() => {
            let actual = String::from_utf8_lossy(actual).into_owned();
            Err(InvariantError::IncorrectVariable { output, expected, actual })
        }
        Some(_) => Ok(()),
    }
}
