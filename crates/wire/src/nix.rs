//! What the Nix world fixes: formats and protocols.

pub mod aterm;
pub mod base32;
pub mod base64;
pub mod content_address;
pub mod derivation;
pub mod derived_path;
pub mod hash;
pub mod make_path;
pub mod nar;
pub mod path_info;
pub mod realisation;
pub mod references;
pub mod signature;
pub mod store_path;
