//! NAR, Nix's archive of one file system object.
//!
//! ```text
//! nar  = str("nix-archive-1") node
//! node = str("(") str("type") ( reg | dir | lnk ) str(")")
//! reg  = str("regular") [ str("executable") str("") ] str("contents") bytes
//! dir  = str("directory") { str("entry") str("(") str("name") str(NAME) str("node") node str(")") }
//! lnk  = str("symlink") str("target") str(TARGET)
//! str  = u64 LE length, bytes, zero padding to 8
//! ```
//! There is one NAR for one tree: the parser refuses every other spelling, so a tree's index alone
//! determines all bytes around the file contents. Format: `libutil/archive.cc` of NixOS/nix.

pub mod compare;
pub mod index;
pub mod parse;
pub mod stream;
pub mod write;

use thiserror::Error;

/// `str("nix-archive-1") str("(") str("type")`: what every NAR begins with.
pub(crate) const START: [u8; 56] = literal(&["nix-archive-1", "(", "type"]);
/// Between the name of a directory entry and the kind of its node.
pub(crate) const NODE: [u8; 48] = literal(&["node", "(", "type"]);
/// Before the name of a directory entry, after `str("entry")`.
pub(crate) const NAME: [u8; 32] = literal(&["(", "name"]);
/// `str(")")`.
pub(crate) const CLOSE: [u8; 16] = literal(&[")"]);
/// `str("target")`.
pub(crate) const TARGET: [u8; 16] = literal(&["target"]);
/// `str("") str("contents")`, which follows `str("executable")`.
pub(crate) const EXECUTABLE_CONTENTS: [u8; 24] = literal(&["", "contents"]);

/// No byte of a NAR lies further from its start; arithmetic below it cannot overflow.
pub(crate) const OFFSET_MAX: u64 = u64::MAX / 2;

/// What the parser refuses beside what the format itself forbids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NarLimits {
    /// Levels of nodes; the root is one level.
    pub depth: usize,
    /// Bytes of a directory entry's name.
    pub name_len: usize,
    /// Bytes of a symlink's target.
    pub target_len: usize,
}

impl NarLimits {
    /// What Nix 2.36 accepts.
    pub const STRICT: NarLimits = NarLimits { depth: 64, name_len: 255, target_len: 4095 };
    /// What any released Nix can have written from a Linux file system: no path there is longer
    /// than 4,095 bytes when it is opened by its full name.
    pub const ANY_RELEASE: NarLimits = NarLimits { depth: 2048, name_len: 255, target_len: 4095 };
}

impl Default for NarLimits {
    fn default() -> Self {
        NarLimits::STRICT
    }
}

/// Why bytes, or a sequence of writer calls, are no NAR.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NarError {
    #[error("not a NAR at offset {offset}: expected {expected}")]
    Expected { expected: &'static str, offset: u64 },
    #[error("not a NAR at offset {offset}: non-zero padding")]
    Padding { offset: u64 },
    #[error("NAR contains an invalid file name {:?}", String::from_utf8_lossy(.0))]
    Name(Vec<u8>),
    #[error("NAR directory is not sorted at {:?}", String::from_utf8_lossy(.0))]
    Unsorted(Vec<u8>),
    #[error("NAR contains an invalid symlink target at offset {offset}")]
    Target { offset: u64 },
    #[error("NAR is nested deeper than {limit} levels")]
    Depth { limit: usize },
    #[error("NAR contents of {size} bytes do not fit at offset {offset}")]
    Size { size: u64, offset: u64 },
    #[error("NAR has more than {limit} files")]
    Entries { limit: usize },
    #[error("NAR has more than {limit} bytes of file names and symlink targets")]
    Text { limit: usize },
    #[error("NAR ends at offset {offset} before it is complete")]
    Truncated { offset: u64 },
    #[error("NAR written out of order: {0}")]
    Order(&'static str),
}

impl From<NarError> for std::io::Error {
    fn from(error: NarError) -> Self {
        let kind = match error {
            NarError::Truncated { .. } => std::io::ErrorKind::UnexpectedEof,
            _ => std::io::ErrorKind::InvalidData,
        };
        std::io::Error::new(kind, error)
    }
}

/// Receives a NAR in its own order. `name` is empty for the root only; `offset` counts bytes from
/// the start of the NAR. Every method may be left out.
pub trait NarSink {
    type Error: From<NarError>;

    /// A directory begins; `offset` is the byte after `str("directory")`.
    fn directory(&mut self, name: &[u8], offset: u64) -> Result<(), Self::Error> {
        let _ = (name, offset);
        Ok(())
    }

    /// The innermost open directory ends; `offset` is the byte after its `str(")")`.
    fn end_directory(&mut self, offset: u64) -> Result<(), Self::Error> {
        let _ = offset;
        Ok(())
    }

    /// A regular file of `size` bytes, the first of them at `offset`.
    fn regular(&mut self, name: &[u8], executable: bool, size: u64, offset: u64) -> Result<(), Self::Error> {
        let _ = (name, executable, size, offset);
        Ok(())
    }

    /// The next bytes of the regular file that was announced last; never empty.
    fn contents(&mut self, bytes: &[u8], offset: u64) -> Result<(), Self::Error> {
        let _ = (bytes, offset);
        Ok(())
    }

    /// All contents of the regular file have been delivered; `offset` is the byte after the last
    /// of them, before padding.
    fn end_regular(&mut self, offset: u64) -> Result<(), Self::Error> {
        let _ = offset;
        Ok(())
    }

    /// A symlink; `offset` is the byte after its target's padding.
    fn symlink(&mut self, name: &[u8], target: &[u8], offset: u64) -> Result<(), Self::Error> {
        let _ = (name, target, offset);
        Ok(())
    }
}

/// Checks a NAR and keeps nothing of it.
#[derive(Debug, Default, Clone, Copy)]
pub struct Discard;

impl NarSink for Discard {
    type Error = NarError;
}

/// Whether `name` may name a directory entry.
pub fn check_name(name: &[u8], limits: &NarLimits) -> Result<(), NarError> {
    let reserved = name.is_empty() || name == b"." || name == b"..";
    if reserved || name.len() > limits.name_len || name.iter().any(|&b| b == b'/' || b == 0) {
        return Err(NarError::Name(name[..name.len().min(256)].to_vec()));
    }
    Ok(())
}

/// Whether `target` may be a symlink's target; `offset` is only for the message.
pub fn check_target(target: &[u8], limits: &NarLimits, offset: u64) -> Result<(), NarError> {
    if target.is_empty() || target.len() > limits.target_len || target.contains(&0) {
        return Err(NarError::Target { offset });
    }
    Ok(())
}

/// Length of `str(s)` for a string of `len` bytes; `None` where it does not fit.
pub(crate) fn str_len(len: u64) -> Option<u64> {
    len.checked_next_multiple_of(8)?.checked_add(8)
}

/// The concatenated encodings of `parts`, which must fill exactly `N` bytes.
const fn literal<const N: usize>(parts: &[&str]) -> [u8; N] {
    let mut out = [0; N];
    let mut at = 0;
    let mut part = 0;
    while part < parts.len() {
        let bytes = parts[part].as_bytes();
        out[at] = bytes.len() as u8;
        at += 8;
        let mut i = 0;
        while i < bytes.len() {
            out[at + i] = bytes[i];
            i += 1;
        }
        at += bytes.len().next_multiple_of(8);
        part += 1;
    }
    assert!(at == N);
    out
}
