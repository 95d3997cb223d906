//! Derived paths: a store path, or outputs of a derivation that may itself be an output.
//! On the wire `<path>` or `<drv path>!<outputs>`; `^` is the CLI's spelling. Source: `libstore/derived-path.cc`,
//! `path-with-outputs.cc`, `outputs-spec.cc`.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use super::derivation::DYNAMIC_DEPTH_MAX;
use super::store_path::{NameError, StoreDir, StorePath, StorePathError, check_name};

/// What separates a derivation from its outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Separator {
    /// `!`, in the protocols.
    Wire,
    /// `^`, on the command line.
    Cli,
}

impl Separator {
    const fn char(self) -> char {
        match self {
            Self::Wire => '!',
            Self::Cli => '^',
        }
    }
}

/// Which outputs of a derivation. Text: `*`, or names with commas.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OutputsSpec {
    All,
    /// Never empty where it was parsed.
    Names(BTreeSet<String>),
}

/// One store object: a path, or one output of a derivation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SingleDerivedPath {
    Opaque(StorePath),
    Built { drv: Box<SingleDerivedPath>, output: String },
}

/// What a client wants: that a path be valid, or that outputs of a derivation be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DerivedPath {
    Opaque(StorePath),
    Built { drv: Box<SingleDerivedPath>, outputs: OutputsSpec },
}

/// Why a text is not a derived path.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DerivedPathError {
    #[error(transparent)]
    Path(#[from] StorePathError),
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("derived path '{0}' nests deeper than {DYNAMIC_DEPTH_MAX} derivations")]
    TooDeep(String),
    #[error("'{0}' cannot be expressed in this version of the protocol")]
    NotExpressible(String),
}

impl OutputsSpec {
    /// The given names. An empty set is every output.
    pub fn names<S: Into<String>>(names: impl IntoIterator<Item = S>) -> Self {
        Self::Names(names.into_iter().map(Into::into).collect())
    }

    pub fn contains(&self, output: &str) -> bool {
        match self {
            Self::All => true,
            Self::Names(names) => names.contains(output),
        }
    }

    /// Both together.
    pub fn union(&self, other: &Self) -> Self {
        match (self, other) {
            (Self::Names(a), Self::Names(b)) => Self::Names(a | b),
            _ => Self::All,
        }
    }

    /// Whether `other` has every output that this has.
    pub fn is_subset_of(&self, other: &Self) -> bool {
        match (self, other) {
            (_, Self::All) => true,
            (Self::All, Self::Names(_)) => false,
            (Self::Names(a), Self::Names(b)) => a.is_subset(b),
        }
    }
}

impl FromStr for OutputsSpec {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text == "*" {
            return Ok(Self::All);
        }
        let checked = |name: &str| check_name(name).map(|()| name.to_owned());
        Ok(Self::Names(text.split(',').map(checked).collect::<Result<_, _>>()?))
    }
}

impl fmt::Display for OutputsSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Names(names) = self else {
            return f.write_str("*");
        };
        for (index, name) in names.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{name}")?;
        }
        Ok(())
    }
}

impl SingleDerivedPath {
    /// Parses `<path>` or `<path>!<output>!<output>…`.
    pub fn parse(dir: &StoreDir, text: &str, separator: Separator) -> Result<Self, DerivedPathError> {
        let mut parts = text.split(separator.char());
        let path = parts.next().unwrap_or_default();
        let mut single = Self::Opaque(dir.parse(path)?);
        for (depth, output) in parts.enumerate() {
            if depth >= DYNAMIC_DEPTH_MAX {
                return Err(DerivedPathError::TooDeep(text.to_owned()));
            }
            check_name(output)?;
            single = Self::Built { drv: Box::new(single), output: output.to_owned() };
        }
        Ok(single)
    }

    pub fn print(&self, dir: &StoreDir, separator: Separator) -> String {
        match self {
            Self::Opaque(path) => dir.print(path),
            Self::Built { drv, output } => {
                let mut text = drv.print(dir, separator);
                text.push(separator.char());
                text.push_str(output);
                text
            }
        }
    }

    /// The store path at the bottom.
    pub fn base_path(&self) -> &StorePath {
        let mut single = self;
        loop {
            match single {
                Self::Opaque(path) => return path,
                Self::Built { drv, .. } => single = drv,
            }
        }
    }
}

impl DerivedPath {
    /// Parses with the separator of the protocols; the outputs follow the last one.
    pub fn parse(dir: &StoreDir, text: &str) -> Result<Self, DerivedPathError> {
        Self::parse_with(dir, text, Separator::Wire)
    }

    pub fn parse_with(dir: &StoreDir, text: &str, separator: Separator) -> Result<Self, DerivedPathError> {
        match text.rsplit_once(separator.char()) {
            None => Ok(Self::Opaque(dir.parse(text)?)),
            Some((drv, outputs)) => {
                let drv = Box::new(SingleDerivedPath::parse(dir, drv, separator)?);
                Ok(Self::Built { drv, outputs: outputs.parse()? })
            }
        }
    }

    /// With the separator of the protocols.
    pub fn print(&self, dir: &StoreDir) -> String {
        self.print_with(dir, Separator::Wire)
    }

    pub fn print_with(&self, dir: &StoreDir, separator: Separator) -> String {
        match self {
            Self::Opaque(path) => dir.print(path),
            Self::Built { drv, outputs } => {
                format!("{}{}{outputs}", drv.print(dir, separator), separator.char())
            }
        }
    }

    /// As clients before worker protocol 1.30 mean it: a bare `.drv` is all its outputs.
    pub fn parse_pre_30(dir: &StoreDir, text: &str) -> Result<Self, DerivedPathError> {
        Ok(match Self::parse(dir, text)? {
            Self::Opaque(path) if path.is_derivation() => {
                let drv = Box::new(SingleDerivedPath::Opaque(path));
                Self::Built { drv, outputs: OutputsSpec::All }
            }
            other => other,
        })
    }

    /// For servers before worker protocol 1.30, which know neither an opaque `.drv` nor dynamic derivations.
    pub fn print_pre_30(&self, dir: &StoreDir) -> Result<String, DerivedPathError> {
        let inexpressible = || DerivedPathError::NotExpressible(self.print(dir));
        match self {
            Self::Opaque(path) if path.is_derivation() => Err(inexpressible()),
            Self::Opaque(path) => Ok(dir.print(path)),
            Self::Built { drv, outputs } => match (&**drv, outputs) {
                (SingleDerivedPath::Built { .. }, _) => Err(inexpressible()),
                // Without `.drv` it would read as a plain path.
                (SingleDerivedPath::Opaque(path), OutputsSpec::All) if !path.is_derivation() => Err(inexpressible()),
                (SingleDerivedPath::Opaque(path), OutputsSpec::All) => Ok(dir.print(path)),
                (SingleDerivedPath::Opaque(path), names) => Ok(format!("{dir}/{path}!{names}")),
            },
        }
    }

    /// The store path at the bottom.
    pub fn base_path(&self) -> &StorePath {
        match self {
            Self::Opaque(path) => path,
            Self::Built { drv, .. } => drv.base_path(),
        }
    }
}

impl From<SingleDerivedPath> for DerivedPath {
    fn from(single: SingleDerivedPath) -> Self {
        match single {
            SingleDerivedPath::Opaque(path) => Self::Opaque(path),
            SingleDerivedPath::Built { drv, output } => Self::Built { drv, outputs: OutputsSpec::names([output]) },
        }
    }
}
