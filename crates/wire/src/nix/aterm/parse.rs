//! The reader.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use super::ATERM_LEN_MAX;
use crate::nix::derivation::{ByteString, DYNAMIC_DEPTH_MAX, Derivation, DerivedOutputs, Output, OutputError};
use crate::nix::store_path::{NameError, StoreDir, StorePath, StorePathError, check_name};

/// Why bytes are not a derivation. Positions are byte offsets.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AtermError {
    #[error("derivation is {0} bytes long, more than {ATERM_LEN_MAX}")]
    TooLong(usize),
    #[error("expected string '{expected}' at byte {offset}")]
    Expected { expected: &'static str, offset: usize },
    #[error("unterminated string in derivation")]
    Unterminated,
    #[error("derivation does not start with 'Derive' or 'DrvWithVersion'")]
    Start,
    #[error("Unknown derivation ATerm format version '{0}'")]
    UnknownVersion(String),
    #[error("string that must be text is not UTF-8, at byte {0}")]
    NotUtf8(usize),
    #[error("{what} '{entry}' occurs twice in derivation")]
    Duplicate { what: &'static str, entry: String },
    #[error("inputDrvs entry for '{0}' specifies no outputs")]
    NoOutputs(String),
    #[error("dynamic outputs nest deeper than {DYNAMIC_DEPTH_MAX}")]
    TooDeep,
    #[error("bytes after the end of the derivation, at byte {0}")]
    Trailing(usize),
    #[error(transparent)]
    Path(#[from] StorePathError),
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    Output(#[from] OutputError),
}

/// Reads a derivation. `name` is its name without `.drv`, which the text does not have.
pub fn parse(dir: &StoreDir, bytes: &[u8], name: &str) -> Result<Derivation, AtermError> {
    if bytes.len() > ATERM_LEN_MAX {
        return Err(AtermError::TooLong(bytes.len()));
    }
    check_name(name)?;
    let mut parser = Parser { dir, bytes, offset: 0, dynamic: false };
    parser.start()?;
    let outputs = parser.outputs(name)?;
    parser.expect(",")?;
    let input_drvs = parser.input_drvs()?;
    parser.expect(",")?;
    let input_srcs = parser.input_srcs()?;
    parser.expect(",")?;
    let system = parser.text()?.into_owned();
    parser.expect(",")?;
    let builder = parser.string()?.into_owned();
    parser.expect(",")?;
    let args = parser.args()?;
    parser.expect(",")?;
    let env = parser.env()?;
    parser.expect(")")?;
    match parser.offset == bytes.len() {
        true => {
            let name = name.to_owned();
            Ok(Derivation { name, outputs, input_drvs, input_srcs, system, builder, args, env })
        }
        false => Err(AtermError::Trailing(parser.offset)),
    }
}

struct Parser<'a> {
    dir: &'a StoreDir,
    bytes: &'a [u8],
    offset: usize,
    /// The format has dynamic outputs.
    dynamic: bool,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.offset..).unwrap_or_default()
    }

    fn accept(&mut self, token: &str) -> bool {
        let accepted = self.rest().starts_with(token.as_bytes());
        if accepted {
            self.offset += token.len();
        }
        accepted
    }

    fn expect(&mut self, expected: &'static str) -> Result<(), AtermError> {
        match self.accept(expected) {
            true => Ok(()),
            false => Err(AtermError::Expected { expected, offset: self.offset }),
        }
    }

    fn start(&mut self) -> Result<(), AtermError> {
        if self.accept("Derive(") {
            return Ok(());
        }
        if !self.accept("DrvWithVersion(") {
            return Err(AtermError::Start);
        }
        let version = self.text()?;
        if version != "xp-dyn-drv" {
            return Err(AtermError::UnknownVersion(version.into_owned()));
        }
        self.dynamic = true;
        self.expect(",")
    }

    /// A string; borrowed unless it has escapes.
    fn string(&mut self) -> Result<Cow<'a, [u8]>, AtermError> {
        self.expect("\"")?;
        let rest = self.rest();
        let special = |byte: &u8| matches!(byte, b'"' | b'\\');
        let plain = rest.iter().position(special).ok_or(AtermError::Unterminated)?;
        if rest[plain] == b'"' {
            self.offset += plain + 1;
            return Ok(Cow::Borrowed(&rest[..plain]));
        }
        let mut unescaped = Vec::with_capacity(plain * 2);
        let mut at = 0;
        loop {
            let tail = rest.get(at..).unwrap_or_default();
            let plain = tail.iter().position(special).ok_or(AtermError::Unterminated)?;
            unescaped.extend_from_slice(&tail[..plain]);
            if tail[plain] == b'"' {
                self.offset += at + plain + 1;
                return Ok(Cow::Owned(unescaped));
            }
            let escaped = *tail.get(plain + 1).ok_or(AtermError::Unterminated)?;
            unescaped.push(match escaped {
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                other => other,
            });
            at += plain + 2;
        }
    }

    fn text(&mut self) -> Result<Cow<'a, str>, AtermError> {
        let offset = self.offset;
        match self.string()? {
            Cow::Borrowed(bytes) => std::str::from_utf8(bytes).map(Cow::Borrowed).ok(),
            Cow::Owned(bytes) => String::from_utf8(bytes).map(Cow::Owned).ok(),
        }
        .ok_or(AtermError::NotUtf8(offset))
    }

    fn store_path(&mut self) -> Result<StorePath, AtermError> {
        Ok(self.dir.parse(&self.text()?)?)
    }

    fn output_name(&mut self) -> Result<String, AtermError> {
        let name = self.text()?;
        check_name(&name)?;
        Ok(name.into_owned())
    }

    /// `[` items `]`, with commas between them.
    fn list(&mut self, mut item: impl FnMut(&mut Self) -> Result<(), AtermError>) -> Result<(), AtermError> {
        self.expect("[")?;
        if self.accept("]") {
            return Ok(());
        }
        loop {
            item(self)?;
            if self.accept("]") {
                return Ok(());
            }
            self.expect(",")?;
        }
    }

    fn outputs(&mut self, drv_name: &str) -> Result<BTreeMap<String, Output>, AtermError> {
        let mut outputs = BTreeMap::new();
        self.list(|parser| {
            parser.expect("(")?;
            let name = parser.output_name()?;
            parser.expect(",")?;
            let path = parser.text()?;
            parser.expect(",")?;
            let algo = parser.text()?;
            parser.expect(",")?;
            let hash = parser.text()?;
            parser.expect(")")?;
            let output = Output::from_fields(parser.dir, drv_name, &name, (&path, &algo, &hash))?;
            match outputs.insert(name.clone(), output) {
                Some(_) => Err(AtermError::Duplicate { what: "output", entry: name }),
                None => Ok(()),
            }
        })?;
        Ok(outputs)
    }

    fn input_drvs(&mut self) -> Result<BTreeMap<StorePath, DerivedOutputs>, AtermError> {
        let mut drvs = BTreeMap::new();
        self.list(|parser| {
            parser.expect("(")?;
            let path = parser.store_path()?;
            parser.expect(",")?;
            let node = parser.derived_outputs(0)?;
            parser.expect(")")?;
            if node.outputs.is_empty() && node.dynamic.is_empty() {
                return Err(AtermError::NoOutputs(parser.dir.print(&path)));
            }
            match drvs.insert(path.clone(), node) {
                Some(_) => Err(AtermError::Duplicate { what: "input", entry: path.to_string() }),
                None => Ok(()),
            }
        })?;
        Ok(drvs)
    }

    /// `["out"]`, or `(["out"],[("out",…)])` in the dynamic format.
    fn derived_outputs(&mut self, depth: usize) -> Result<DerivedOutputs, AtermError> {
        if depth > DYNAMIC_DEPTH_MAX {
            return Err(AtermError::TooDeep);
        }
        let mut node = DerivedOutputs::default();
        let nested = self.dynamic && self.accept("(");
        self.list(|parser| {
            let name = parser.output_name()?;
            insert(&mut node.outputs, name, "output")
        })?;
        if nested {
            self.expect(",")?;
            self.list(|parser| {
                parser.expect("(")?;
                let name = parser.output_name()?;
                parser.expect(",")?;
                let child = parser.derived_outputs(depth + 1)?;
                parser.expect(")")?;
                match node.dynamic.insert(name.clone(), child) {
                    Some(_) => Err(AtermError::Duplicate { what: "output", entry: name }),
                    None => Ok(()),
                }
            })?;
            self.expect(")")?;
        }
        Ok(node)
    }

    fn input_srcs(&mut self) -> Result<BTreeSet<StorePath>, AtermError> {
        let mut srcs = BTreeSet::new();
        self.list(|parser| {
            let path = parser.store_path()?;
            insert(&mut srcs, path, "input")
        })?;
        Ok(srcs)
    }

    fn args(&mut self) -> Result<Vec<ByteString>, AtermError> {
        let mut args = Vec::new();
        self.list(|parser| {
            args.push(parser.string()?.into_owned());
            Ok(())
        })?;
        Ok(args)
    }

    fn env(&mut self) -> Result<BTreeMap<ByteString, ByteString>, AtermError> {
        let mut env = BTreeMap::new();
        self.list(|parser| {
            parser.expect("(")?;
            let name = parser.string()?.into_owned();
            parser.expect(",")?;
            let value = parser.string()?.into_owned();
            parser.expect(")")?;
            if env.contains_key(&name) {
                let entry = name.escape_ascii().to_string();
                return Err(AtermError::Duplicate { what: "environment variable", entry });
            }
            env.insert(name, value);
            Ok(())
        })?;
        Ok(env)
    }
}

fn insert<T: Ord + Clone + ToString>(set: &mut BTreeSet<T>, entry: T, what: &'static str) -> Result<(), AtermError> {
    match set.insert(entry.clone()) {
        true => Ok(()),
        false => Err(AtermError::Duplicate { what, entry: entry.to_string() }),
    }
}
