//! The attributes of a derivation that its builder honours. Source: `libstore/derivation-options.cc`.
//!
//! They stand in the environment (a boolean is `1` or anything else, a set is separated by white space), or,
//! with structured attributes, in that JSON with its own types.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use self::parse::{Attrs, parse};
use super::derivation::{BasicDerivation, ByteString, Derivation, DerivationKind};
use super::derived_path::SingleDerivedPath;
use super::placeholder::{self, PLACEHOLDER_LEN};
use super::resolve::derived_inputs;
use super::store_path::{StoreDir, StorePath, StorePathError};
use super::structured::StructuredError;

mod parse;

/// Feature that every derivation with unknown output paths needs, though it does not say so.
const CA_FEATURE: &str = "ca-derivations";

/// Options of a derivation. `P` is how inputs are named: store paths, or derived paths before resolution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DerivationOptions<P = StorePath> {
    pub output_checks: OutputChecks<P>,
    /// Outputs that are registered without references, and those that say explicitly they are not.
    pub unsafe_discard_references: BTreeMap<String, bool>,
    /// Environment variables that are passed as files.
    pub pass_as_file: BTreeSet<String>,
    /// File name (or structured attribute) to the paths whose closure it lists.
    pub export_references_graph: BTreeMap<String, BTreeSet<P>>,
    pub additional_sandbox_profile: String,
    pub no_chroot: bool,
    pub impure_host_deps: BTreeSet<String>,
    pub impure_env_vars: BTreeSet<String>,
    pub allow_local_networking: bool,
    /// As stated; see [`needed_features`](Self::needed_features).
    pub required_system_features: BTreeSet<String>,
    pub prefer_local_build: bool,
    pub allow_substitutes: bool,
}

/// Limits on what outputs may refer to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutputChecks<P = StorePath> {
    /// The same for every output, from the environment.
    All(OutputCheck<P>),
    /// By output, from structured attributes.
    PerOutput(BTreeMap<String, OutputCheck<P>>),
}

/// Limits on what one output may refer to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputCheck<P = StorePath> {
    /// An output's references to itself do not count.
    pub ignore_self_refs: bool,
    /// Bytes of the NAR.
    pub max_size: Option<u64>,
    /// Bytes of the NARs of the closure.
    pub max_closure_size: Option<u64>,
    pub allowed_references: Option<BTreeSet<Reference<P>>>,
    pub disallowed_references: BTreeSet<Reference<P>>,
    pub allowed_requisites: Option<BTreeSet<Reference<P>>>,
    pub disallowed_requisites: BTreeSet<Reference<P>>,
}

impl<P> Default for OutputCheck<P> {
    fn default() -> Self {
        Self {
            ignore_self_refs: false,
            max_size: None,
            max_closure_size: None,
            allowed_references: None,
            disallowed_references: BTreeSet::new(),
            allowed_requisites: None,
            disallowed_requisites: BTreeSet::new(),
        }
    }
}

/// What an output check names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reference<P = StorePath> {
    /// An output of this derivation. Whatever is no store path is taken for one.
    Output(String),
    Input(P),
}

/// Why attributes are not options, in Nix's words.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum OptionsError {
    #[error("attribute '{0}' is not UTF-8")]
    NotUtf8(String),
    #[error("while parsing attribute \"{name}\": expected {expected}")]
    Type { name: String, expected: &'static str },
    #[error("odd number of tokens in 'exportReferencesGraph': '{0}'")]
    OddGraph(String),
    #[error("invalid file name '{0}' in 'exportReferencesGraph'")]
    GraphName(String),
    #[error(transparent)]
    Path(#[from] StorePathError),
    #[error(transparent)]
    Structured(#[from] StructuredError),
}

impl DerivationOptions<StorePath> {
    /// Options of a derivation whose placeholders have been replaced.
    pub fn of_basic(dir: &StoreDir, drv: &BasicDerivation) -> Result<Self, OptionsError> {
        let attrs = Attrs::of(&drv.env)?;
        parse(&attrs, &|text| named_path(dir, text))
    }
}

impl DerivationOptions<SingleDerivedPath> {
    /// Options of a derivation in which placeholders stand for outputs of its inputs.
    pub fn of(dir: &StoreDir, drv: &Derivation) -> Result<Self, OptionsError> {
        let inputs = derived_inputs(drv).into_iter();
        let placeholders: BTreeMap<String, SingleDerivedPath> =
            inputs.filter_map(|input| Some((placeholder::derived(&input)?, input))).collect();
        let attrs = Attrs::of(&drv.env)?;
        parse(&attrs, &|text| {
            let (stem, rest) = text.split_at_checked(PLACEHOLDER_LEN).unwrap_or((text, ""));
            match placeholders.get(stem) {
                Some(input) if rest.is_empty() || rest.starts_with('/') => Ok((input.clone(), rest.is_empty())),
                _ => named_path(dir, text).map(|(path, whole)| (SingleDerivedPath::Opaque(path), whole)),
            }
        })
    }

    /// The options with the paths that inputs came out as; `None` if `lookup` does not know one.
    pub fn resolve(
        &self,
        lookup: &mut dyn FnMut(&SingleDerivedPath) -> Option<StorePath>,
    ) -> Option<DerivationOptions<StorePath>> {
        let mut path = |single: &SingleDerivedPath| match single {
            SingleDerivedPath::Opaque(path) => Some(path.clone()),
            built => lookup(built),
        };
        let output_checks = match &self.output_checks {
            OutputChecks::All(check) => OutputChecks::All(check.resolve(&mut path)?),
            OutputChecks::PerOutput(checks) => {
                let mut resolve =
                    |(name, check): (&String, &OutputCheck<_>)| Some((name.clone(), check.resolve(&mut path)?));
                OutputChecks::PerOutput(checks.iter().map(&mut resolve).collect::<Option<_>>()?)
            }
        };
        let graph = self.export_references_graph.iter();
        let graph =
            graph.map(|(name, paths)| Some((name.clone(), paths.iter().map(&mut path).collect::<Option<_>>()?)));
        Some(DerivationOptions {
            output_checks,
            export_references_graph: graph.collect::<Option<_>>()?,
            unsafe_discard_references: self.unsafe_discard_references.clone(),
            pass_as_file: self.pass_as_file.clone(),
            additional_sandbox_profile: self.additional_sandbox_profile.clone(),
            no_chroot: self.no_chroot,
            impure_host_deps: self.impure_host_deps.clone(),
            impure_env_vars: self.impure_env_vars.clone(),
            allow_local_networking: self.allow_local_networking,
            required_system_features: self.required_system_features.clone(),
            prefer_local_build: self.prefer_local_build,
            allow_substitutes: self.allow_substitutes,
        })
    }
}

impl<P> DerivationOptions<P> {
    /// The features a builder must have: those stated, and `ca-derivations` where paths are unknown.
    pub fn needed_features(&self, kind: DerivationKind) -> BTreeSet<String> {
        let mut features = self.required_system_features.clone();
        if !kind.has_known_paths() {
            features.insert(CA_FEATURE.to_owned());
        }
        features
    }
}

impl OutputCheck<SingleDerivedPath> {
    fn resolve(&self, path: &mut dyn FnMut(&SingleDerivedPath) -> Option<StorePath>) -> Option<OutputCheck<StorePath>> {
        let mut set = |references: &BTreeSet<Reference<SingleDerivedPath>>| {
            let resolve = |reference: &Reference<SingleDerivedPath>| match reference {
                Reference::Output(name) => Some(Reference::Output(name.clone())),
                Reference::Input(input) => path(input).map(Reference::Input),
            };
            references.iter().map(resolve).collect::<Option<BTreeSet<_>>>()
        };
        let allowed_references = self.allowed_references.as_ref().map(&mut set);
        let allowed_requisites = self.allowed_requisites.as_ref().map(&mut set);
        Some(OutputCheck {
            ignore_self_refs: self.ignore_self_refs,
            max_size: self.max_size,
            max_closure_size: self.max_closure_size,
            allowed_references: allowed_references.map_or(Some(None), |set| set.map(Some))?,
            disallowed_references: set(&self.disallowed_references)?,
            allowed_requisites: allowed_requisites.map_or(Some(None), |set| set.map(Some))?,
            disallowed_requisites: set(&self.disallowed_requisites)?,
        })
    }
}

/// The stated `requiredSystemFeatures`; none where the attribute is malformed.
pub fn required_system_features(env: &BTreeMap<ByteString, ByteString>) -> BTreeSet<String> {
    let attrs = Attrs::of(env).ok();
    attrs.and_then(|attrs| attrs.set("requiredSystemFeatures").ok()?).unwrap_or_default()
}

/// Top-level attributes that have no effect because the derivation has structured attributes.
pub fn ineffective_attributes(env: &BTreeMap<ByteString, ByteString>) -> Result<Vec<&'static str>, OptionsError> {
    const UNSTRUCTURED_ONLY: [&str; 7] = [
        "allowedReferences",
        "allowedRequisites",
        "disallowedReferences",
        "disallowedRequisites",
        "maxSize",
        "maxClosureSize",
        "passAsFile",
    ];
    let Some(structured) = Attrs::of(env)?.structured else {
        return Ok(Vec::new());
    };
    Ok(UNSTRUCTURED_ONLY.into_iter().filter(|name| structured.contains_key(*name)).collect())
}

/// The store path that `text` names, and whether it names the path itself, not something in it.
fn named_path(dir: &StoreDir, text: &str) -> Result<(StorePath, bool), StorePathError> {
    dir.parse_prefix(text).map(|(path, rest)| (path, rest.is_empty()))
}
