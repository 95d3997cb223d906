//! Derivations in ATerm form, the contents of `.drv` files. Source: `libstore/derivation/aterm.cc`.
//!
//! The reader is one pass over the bytes. It takes entries in any order, as Nix does, but no duplicates, no
//! space, nothing after the end, and store paths in canonical form only; so what it read and what
//! [`print`] writes are the same derivation, and the same bytes where Nix wrote them.

mod parse;
mod print;

pub use parse::{AtermError, parse};
pub use print::print;
pub(crate) use print::print_parts;

/// Bytes of a `.drv` that are read at most. The largest real ones are a few megabytes.
pub const ATERM_LEN_MAX: usize = 64 << 20;
