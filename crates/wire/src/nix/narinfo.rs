//! narinfo: what a binary cache says about a path. Source: `libstore/nar-info.cc`.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::str::FromStr;

use thiserror::Error;

use super::base32;
use super::hash::{Hash, HashAlgo};
use super::path_info::PathInfo;
use super::store_path::{StoreDir, StorePath};

/// Bytes of a narinfo that are read at most. References of the largest paths take some hundred kilobytes.
pub const NARINFO_LEN_MAX: usize = 4 << 20;

/// What stands for no deriver.
const UNKNOWN_DERIVER: &str = "unknown-deriver";

/// The compressions that Nix has names for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Compression {
    None,
    Brotli,
    Bzip2,
    Compress,
    Grzip,
    Gzip,
    Lrzip,
    Lz4,
    Lzip,
    Lzma,
    Lzop,
    Xz,
    Zstd,
}

impl Compression {
    const NAMES: [(Compression, &'static str); 13] = [
        (Self::None, "none"),
        (Self::Brotli, "br"),
        (Self::Bzip2, "bzip2"),
        (Self::Compress, "compress"),
        (Self::Grzip, "grzip"),
        (Self::Gzip, "gzip"),
        (Self::Lrzip, "lrzip"),
        (Self::Lz4, "lz4"),
        (Self::Lzip, "lzip"),
        (Self::Lzma, "lzma"),
        (Self::Lzop, "lzop"),
        (Self::Xz, "xz"),
        (Self::Zstd, "zstd"),
    ];

    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(compression, _)| *compression == self).map_or("none", |(_, name)| name)
    }
}

/// The name is none of Nix's.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("unknown compression method '{0}'")]
pub struct UnknownCompression(pub String);

impl FromStr for Compression {
    type Err = UnknownCompression;

    fn from_str(name: &str) -> Result<Self, UnknownCompression> {
        let found = Self::NAMES.iter().find(|(_, known)| *known == name);
        found.map(|(compression, _)| *compression).ok_or_else(|| UnknownCompression(name.to_owned()))
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A path, and the file it can be fetched as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NarInfo {
    /// `registration_time` and `ultimate` are not part of a narinfo; they are read as 0 and false.
    pub info: PathInfo,
    /// Relative to the cache's root, or absolute. Never empty.
    pub url: String,
    pub compression: Compression,
    /// Hash of the compressed file.
    pub file_hash: Option<Hash>,
    /// Bytes of the compressed file. 0 is read as unknown.
    pub file_size: Option<u64>,
}

/// Why a text is no narinfo.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NarInfoError {
    #[error("NAR info is {0} bytes long, more than {NARINFO_LEN_MAX}")]
    TooLong(usize),
    #[error("NAR info is corrupt: {0}")]
    Incomplete(&'static str),
    #[error("NAR info is corrupt: {reason} at line {line}")]
    Line { reason: String, line: usize },
}

#[derive(Default)]
struct Fields {
    path: Option<StorePath>,
    url: String,
    compression: Option<Compression>,
    file_hash: Option<Hash>,
    file_size: Option<u64>,
    nar_hash: Option<[u8; 32]>,
    nar_size: u64,
    references: BTreeSet<StorePath>,
    deriver: Option<StorePath>,
    signatures: BTreeSet<super::signature::Signature>,
    ca: Option<super::content_address::ContentAddress>,
}

impl Fields {
    fn set(&mut self, dir: &StoreDir, name: &str, value: &str) -> Result<(), String> {
        let text = |error: &dyn fmt::Display| error.to_string();
        match name {
            "StorePath" => self.path = Some(dir.parse(value).map_err(|error| text(&error))?),
            "URL" => self.url = value.to_owned(),
            // An empty value has always meant bzip2.
            "Compression" if value.is_empty() => self.compression = None,
            "Compression" => {
                self.compression = Some(value.parse().map_err(|_| "invalid Compression".to_owned())?);
            }
            "FileHash" => self.file_hash = Some(Hash::parse_any(value).map_err(|_| "bad hash".to_owned())?),
            "FileSize" => self.file_size = Some(decimal(value).ok_or("invalid FileSize")?).filter(|&size| size != 0),
            "NarHash" => {
                let hash = Hash::parse_any(value).map_err(|_| "bad hash".to_owned())?;
                self.nar_hash = Some(hash.as_sha256().ok_or("bad hash")?);
            }
            "NarSize" => self.nar_size = decimal(value).ok_or("invalid NarSize")?,
            "References" if !self.references.is_empty() => return Err("extra References".to_owned()),
            "References" => {
                let names = value.split(' ').filter(|name| !name.is_empty());
                let references = names.map(StorePath::from_base_name).collect::<Result<_, _>>();
                self.references = references.map_err(|error| text(&error))?;
            }
            "Deriver" if value == UNKNOWN_DERIVER => {}
            "Deriver" => {
                self.deriver = Some(StorePath::from_base_name(value).map_err(|error| text(&error))?);
            }
            "Sig" => {
                self.signatures.insert(value.parse().map_err(|error| text(&error))?);
            }
            "CA" if self.ca.is_some() => return Err("extra CA".to_owned()),
            "CA" if value.is_empty() => {}
            "CA" => self.ca = Some(value.parse().map_err(|error| text(&error))?),
            _ => {}
        }
        Ok(())
    }
}

fn decimal(text: &str) -> Option<u64> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

impl NarInfo {
    /// Reads lines `Name: value`, each ended by a newline. Unknown names are skipped.
    pub fn parse(dir: &StoreDir, text: &[u8]) -> Result<Self, NarInfoError> {
        if text.len() > NARINFO_LEN_MAX {
            return Err(NarInfoError::TooLong(text.len()));
        }
        let text = std::str::from_utf8(text).map_err(|_| NarInfoError::Incomplete("not UTF-8"))?;
        let mut fields = Fields::default();
        for (index, line) in text.split_inclusive('\n').enumerate() {
            let corrupt = |reason: String| NarInfoError::Line { reason, line: index + 1 };
            let line = line.strip_suffix('\n').ok_or_else(|| corrupt("expecting '\\n'".to_owned()))?;
            let (name, rest) = line.split_once(':').ok_or_else(|| corrupt("expecting ':'".to_owned()))?;
            // Exactly one character after the colon is skipped, whatever it is; real files have a space.
            let mut value = rest.chars();
            value.next().ok_or_else(|| corrupt("expecting ' '".to_owned()))?;
            fields.set(dir, name, value.as_str()).map_err(corrupt)?;
        }
        let Fields { path, url, compression, file_hash, file_size, nar_hash, nar_size, .. } = fields;
        let path = path.ok_or(NarInfoError::Incomplete("StorePath missing"))?;
        let nar_hash = nar_hash.ok_or(NarInfoError::Incomplete("NarHash missing"))?;
        if url.is_empty() {
            return Err(NarInfoError::Incomplete("URL missing"));
        }
        if nar_size == 0 {
            return Err(NarInfoError::Incomplete("NarSize missing or zero"));
        }
        let Fields { references, deriver, signatures, ca, .. } = fields;
        let info = PathInfo { references, deriver, signatures, ca, ..PathInfo::new(path, nar_hash, nar_size) };
        let compression = compression.unwrap_or(Compression::Bzip2);
        Ok(Self { info, url, compression, file_hash, file_size })
    }

    /// The text, in the order in which Nix writes it.
    pub fn print(&self, dir: &StoreDir) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: &dyn fmt::Display| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{name}: {value}");
        };
        line("StorePath", &dir.print(&self.info.path));
        line("URL", &self.url);
        line("Compression", &self.compression);
        if let Some(hash) = &self.file_hash {
            line("FileHash", hash);
        }
        if let Some(size) = self.file_size.filter(|&size| size != 0) {
            line("FileSize", &size);
        }
        line("NarHash", &format_args!("{}:{}", HashAlgo::Sha256, base32::encode(&self.info.nar_hash)));
        line("NarSize", &self.info.nar_size);
        let references: Vec<&str> = self.info.references.iter().map(StorePath::base_name).collect();
        line("References", &references.join(" "));
        if let Some(deriver) = &self.info.deriver {
            line("Deriver", deriver);
        }
        for signature in &self.info.signatures {
            line("Sig", signature);
        }
        if let Some(ca) = &self.info.ca {
            line("CA", ca);
        }
        text
    }
}
