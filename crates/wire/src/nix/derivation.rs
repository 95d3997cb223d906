//! Derivations as values. Text form: [`super::aterm`]. Source: `libstore/derivations.cc`, `derivation/output.cc`.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use super::content_address::{CaMethod, CaMethodAlgo, ContentAddress};
use super::hash::{Hash, HashAlgo, HashError};
use super::make_path::{MakePathError, output_path_name};
use super::store_path::{StoreDir, StorePath, StorePathError};

/// Builders, arguments and environments are bytes; they need not be UTF-8.
pub type ByteString = Vec<u8>;

/// How deep outputs of outputs of derivations (dynamic derivations) may nest. Real ones nest once.
pub const DYNAMIC_DEPTH_MAX: usize = 16;

/// Environment variable that holds structured attributes, as JSON text.
pub const STRUCTURED_ATTRS: &[u8] = b"__json";

/// A derivation as it stands in a `.drv` file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Derivation {
    /// Without `.drv`.
    pub name: String,
    pub outputs: BTreeMap<String, Output>,
    pub input_drvs: BTreeMap<StorePath, DerivedOutputs>,
    pub input_srcs: BTreeSet<StorePath>,
    /// The platform, such as `x86_64-linux` or `builtin`.
    pub system: String,
    pub builder: ByteString,
    pub args: Vec<ByteString>,
    pub env: BTreeMap<ByteString, ByteString>,
}

/// A derivation whose inputs are all store paths: the form that is built and sent to builders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BasicDerivation {
    /// Without `.drv`.
    pub name: String,
    pub outputs: BTreeMap<String, Output>,
    pub input_srcs: BTreeSet<StorePath>,
    /// The platform, such as `x86_64-linux` or `builtin`.
    pub system: String,
    pub builder: ByteString,
    pub args: Vec<ByteString>,
    pub env: BTreeMap<ByteString, ByteString>,
}

/// The outputs of an input derivation that are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DerivedOutputs {
    pub outputs: BTreeSet<String>,
    /// Output (itself a derivation) to the outputs wanted of it.
    pub dynamic: BTreeMap<String, DerivedOutputs>,
}

impl DerivedOutputs {
    /// The named outputs and nothing dynamic.
    pub fn of<S: Into<String>>(outputs: impl IntoIterator<Item = S>) -> Self {
        Self { outputs: outputs.into_iter().map(Into::into).collect(), dynamic: BTreeMap::new() }
    }
}

/// How one output gets its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Path from the hash of the derivation.
    InputAddressed(StorePath),
    /// Content known in advance.
    Fixed { ca: ContentAddress },
    /// Path from the content, once built.
    Floating { method: CaMethod, algo: HashAlgo },
    /// Input-addressed, but some input has no path yet.
    Deferred,
    /// As floating, and never the same twice.
    Impure { method: CaMethod, algo: HashAlgo },
}

/// What kind a whole derivation is; its outputs must agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DerivationKind {
    InputAddressed,
    Fixed,
    Floating,
    Deferred,
    Impure,
}

impl DerivationKind {
    /// Whether the output paths are known before the build.
    pub fn has_known_paths(self) -> bool {
        matches!(self, Self::InputAddressed | Self::Fixed)
    }

    /// Whether the build is cut off from the network.
    pub fn is_sandboxed(self) -> bool {
        !matches!(self, Self::Fixed | Self::Impure)
    }
}

/// Why outputs do not make a derivation, in Nix's words.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum KindError {
    #[error("must have at least one output")]
    NoOutputs,
    #[error("can't mix derivation output types")]
    Mixed,
    #[error("only one fixed output is allowed for now")]
    SeveralFixed,
    #[error("single fixed output must be named \"out\"")]
    FixedName,
    #[error("all floating outputs must use the same hash algorithm")]
    FloatingAlgos,
}

/// Why the four strings of an output are not an output.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum OutputError {
    #[error("impure derivation output should not specify output path")]
    ImpureWithPath,
    #[error("content-addressing derivation output should not specify output path")]
    FloatingWithPath,
    #[error("derivation output '{0}' has a hash but no hash algorithm")]
    HashWithoutAlgo(String),
    #[error("derivation output '{output}' has path '{path}', which does not match its content address")]
    FixedPathMismatch { output: String, path: String },
    #[error(transparent)]
    Path(#[from] StorePathError),
    #[error(transparent)]
    Hash(#[from] HashError),
    #[error(transparent)]
    MakePath(#[from] MakePathError),
}

/// The three strings that follow an output's name in a `.drv` and on the wire.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OutputFields {
    /// Full path, or empty.
    pub path: String,
    /// Empty, or method and algorithm such as `r:sha256`.
    pub hash_algo: String,
    /// Empty, base 16, or `impure`.
    pub hash: String,
}

impl Output {
    /// Reads an output from the strings after its name. A fixed output's path must follow from its hash.
    pub fn from_fields(
        dir: &StoreDir,
        drv_name: &str,
        output: &str,
        (path, hash_algo, hash): (&str, &str, &str),
    ) -> Result<Self, OutputError> {
        if hash_algo.is_empty() {
            return match (path, hash) {
                (_, hash) if !hash.is_empty() => Err(OutputError::HashWithoutAlgo(output.to_owned())),
                ("", _) => Ok(Self::Deferred),
                (path, _) => Ok(Self::InputAddressed(dir.parse(path)?)),
            };
        }
        let CaMethodAlgo { method, algo } = CaMethodAlgo::from_output_form(hash_algo)?;
        match hash {
            "impure" if !path.is_empty() => Err(OutputError::ImpureWithPath),
            "impure" => Ok(Self::Impure { method, algo }),
            "" if !path.is_empty() => Err(OutputError::FloatingWithPath),
            "" => Ok(Self::Floating { method, algo }),
            digits => {
                let ca = ContentAddress { method, hash: Hash::parse_digits(digits, algo)? };
                let stated = dir.parse(path)?;
                if dir.make_fixed_path(&ca, &output_path_name(drv_name, output))? != stated {
                    let (output, path) = (output.to_owned(), path.to_owned());
                    return Err(OutputError::FixedPathMismatch { output, path });
                }
                Ok(Self::Fixed { ca })
            }
        }
    }

    /// The strings that [`from_fields`](Self::from_fields) reads. The path of a fixed output that cannot have
    /// one (a name too long, say) is empty.
    pub fn to_fields(&self, dir: &StoreDir, drv_name: &str, output: &str) -> OutputFields {
        let path = self.path(dir, drv_name, output).ok().flatten();
        let path = path.map(|path| dir.print(&path)).unwrap_or_default();
        let (hash_algo, hash) = match self {
            Self::InputAddressed(_) | Self::Deferred => (String::new(), String::new()),
            Self::Fixed { ca } => (ca.method_algo().to_output_form(), ca.hash.to_base16()),
            &Self::Floating { method, algo } => (CaMethodAlgo { method, algo }.to_output_form(), String::new()),
            &Self::Impure { method, algo } => (CaMethodAlgo { method, algo }.to_output_form(), "impure".to_owned()),
        };
        OutputFields { path, hash_algo, hash }
    }

    /// The output's path, where it is known before the build.
    pub fn path(&self, dir: &StoreDir, drv_name: &str, output: &str) -> Result<Option<StorePath>, MakePathError> {
        match self {
            Self::InputAddressed(path) => Ok(Some(path.clone())),
            Self::Fixed { ca } => dir.make_fixed_path(ca, &output_path_name(drv_name, output)).map(Some),
            Self::Floating { .. } | Self::Deferred | Self::Impure { .. } => Ok(None),
        }
    }

    fn kind(&self) -> DerivationKind {
        match self {
            Self::InputAddressed(_) => DerivationKind::InputAddressed,
            Self::Fixed { .. } => DerivationKind::Fixed,
            Self::Floating { .. } => DerivationKind::Floating,
            Self::Deferred => DerivationKind::Deferred,
            Self::Impure { .. } => DerivationKind::Impure,
        }
    }
}

/// The kind that all `outputs` agree on.
pub fn kind_of(outputs: &BTreeMap<String, Output>) -> Result<DerivationKind, KindError> {
    let kind = outputs.values().next().ok_or(KindError::NoOutputs)?.kind();
    let mut floating = None;
    for (name, output) in outputs {
        match output {
            other if other.kind() != kind => return Err(KindError::Mixed),
            Output::Fixed { .. } if name != "out" => return Err(KindError::FixedName),
            Output::Fixed { .. } if outputs.len() > 1 => return Err(KindError::SeveralFixed),
            Output::Floating { algo, .. } if *floating.get_or_insert(*algo) != *algo => {
                return Err(KindError::FloatingAlgos);
            }
            _ => {}
        }
    }
    Ok(kind)
}

impl Derivation {
    /// The same without its input derivations.
    pub fn to_basic(&self) -> BasicDerivation {
        let Self { name, outputs, input_drvs: _, input_srcs, system, builder, args, env } = self.clone();
        BasicDerivation { name, outputs, input_srcs, system, builder, args, env }
    }

    pub fn kind(&self) -> Result<DerivationKind, KindError> {
        kind_of(&self.outputs)
    }

    /// Path of the named output, where it exists and its path is known before the build.
    pub fn output_path(&self, dir: &StoreDir, output: &str) -> Option<StorePath> {
        self.outputs.get(output)?.path(dir, &self.name, output).ok().flatten()
    }

    /// What the `.drv` file refers to: all inputs.
    pub fn references(&self) -> BTreeSet<StorePath> {
        self.input_srcs.iter().chain(self.input_drvs.keys()).cloned().collect()
    }

    /// Whether some input is an output of a derivation that must first be built itself.
    pub fn has_dynamic_inputs(&self) -> bool {
        self.input_drvs.values().any(|node| !node.dynamic.is_empty())
    }

    pub fn is_builtin(&self) -> bool {
        self.builder.starts_with(b"builtin:")
    }

    /// Path of its `.drv` file in the store.
    pub fn drv_path(&self, dir: &StoreDir) -> Result<StorePath, MakePathError> {
        let digest = super::hash::sha256(&super::aterm::print(dir, self));
        Ok(dir.make_text_path(&format!("{}.drv", self.name), &digest, &self.references())?)
    }
}

impl BasicDerivation {
    pub fn kind(&self) -> Result<DerivationKind, KindError> {
        kind_of(&self.outputs)
    }

    /// Path of the named output, where it exists and its path is known before the build.
    pub fn output_path(&self, dir: &StoreDir, output: &str) -> Option<StorePath> {
        self.outputs.get(output)?.path(dir, &self.name, output).ok().flatten()
    }

    pub fn is_builtin(&self) -> bool {
        self.builder.starts_with(b"builtin:")
    }

    /// The same with an empty set of input derivations.
    pub fn into_derivation(self) -> Derivation {
        let Self { name, outputs, input_srcs, system, builder, args, env } = self;
        Derivation { name, outputs, input_drvs: BTreeMap::new(), input_srcs, system, builder, args, env }
    }
}
