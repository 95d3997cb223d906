//! Finding and replacing the hash parts of store paths inside NAR bytes.
//!
//! A reference is any 32-byte window of base-32 characters that equals a candidate's hash part,
//! wherever in the NAR it stands: contents, file names, symlink targets. All three consumers here
//! take the bytes in pieces of any size and give the same answer for every way to cut them.

mod find;
mod modulo;
mod rewrite;
mod scan;

pub use modulo::{HashModulo, SelfHashes};
pub use rewrite::Rewriter;
pub use scan::Scanner;

/// Bytes of a hash part.
pub const HASH_PART_LEN: usize = 32;

/// The 32 base-32 characters before the `-` of a store path.
pub type HashPart = [u8; HASH_PART_LEN];
