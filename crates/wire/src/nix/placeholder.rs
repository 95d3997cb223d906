//! Placeholders: texts that stand for output paths until these are known. `/` and 52 nix32 digits.
//! Source: `libstore/downstream-placeholder.cc`, `hashPlaceholder` in `derivations.cc`.

use std::collections::HashMap;

use super::base32;
use super::derived_path::SingleDerivedPath;
use super::hash::sha256;
use super::make_path::{fold, output_path_name};
use super::store_path::{DRV_EXTENSION, StorePath};

/// Bytes of a placeholder.
pub const PLACEHOLDER_LEN: usize = 53;

fn render(digest: &[u8; 32]) -> String {
    format!("/{}", base32::encode(digest))
}

/// An output of the derivation that the text is part of.
pub fn own(output: &str) -> String {
    render(&sha256(format!("nix-output:{output}").as_bytes()))
}

/// An output, not known yet, of the input derivation in `drv`.
pub fn upstream(drv: &StorePath, output: &str) -> String {
    render(&upstream_digest(drv, output))
}

/// An output of a derivation that may itself be an output not built yet. `None` for a plain store path,
/// which needs no placeholder.
pub fn derived(path: &SingleDerivedPath) -> Option<String> {
    let mut outputs = Vec::new();
    let mut single = path;
    let base = loop {
        match single {
            SingleDerivedPath::Opaque(base) => break base,
            SingleDerivedPath::Built { drv, output } => {
                outputs.push(output);
                single = drv;
            }
        }
    };
    let mut digest = upstream_digest(base, outputs.pop()?);
    while let Some(output) = outputs.pop() {
        let known = base32::encode(&fold(&digest));
        digest = sha256(format!("nix-computed-output:{known}:{output}").as_bytes());
    }
    Some(render(&digest))
}

fn upstream_digest(drv: &StorePath, output: &str) -> [u8; 32] {
    let drv_name = drv.name().strip_suffix(DRV_EXTENSION).unwrap_or(drv.name());
    let name = output_path_name(drv_name, output);
    sha256(format!("nix-upstream-output:{}:{name}", drv.hash_part()).as_bytes())
}

/// Placeholders and the texts to put in their place.
#[derive(Debug, Clone, Default)]
pub struct Rewrites(HashMap<Vec<u8>, Vec<u8>>);

impl Rewrites {
    pub fn insert(&mut self, placeholder: &str, text: &str) {
        self.0.insert(placeholder.as_bytes().to_vec(), text.as_bytes().to_vec());
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `text` with every placeholder replaced, in one pass.
    pub fn apply(&self, text: &[u8]) -> Vec<u8> {
        if self.0.is_empty() {
            return text.to_vec();
        }
        let mut rewritten = Vec::with_capacity(text.len());
        let mut rest = text;
        while let Some(slash) = rest.iter().position(|&byte| byte == b'/') {
            rewritten.extend_from_slice(&rest[..slash]);
            rest = &rest[slash..];
            let replacement = rest.get(..PLACEHOLDER_LEN).and_then(|candidate| self.0.get(candidate));
            let skip = match replacement {
                Some(replacement) => {
                    rewritten.extend_from_slice(replacement);
                    PLACEHOLDER_LEN
                }
                None => {
                    rewritten.push(b'/');
                    1
                }
            };
            rest = &rest[skip..];
        }
        rewritten.extend_from_slice(rest);
        rewritten
    }
}
