//! What the Nix world fixes: formats and protocols.

pub mod aterm;
pub mod base32;
pub mod base64;
pub mod content_address;
pub mod derivation;
pub mod derived_path;
pub mod drv_json;
pub mod hash;
pub mod hash_modulo;
pub mod invariants;
pub mod log;
pub mod make_path;
pub mod nar;
pub mod narinfo;
pub mod options;
pub mod path_info;
pub mod placeholder;
pub mod proto;
pub mod realisation;
pub mod references;
pub mod resolve;
pub mod serve;
pub mod signature;
pub mod store_path;
pub mod structured;
pub mod worker;
