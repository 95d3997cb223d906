//! The recorded data lies outside the repository; where it is missing, tests say so by name and pass.

use std::path::{Path, PathBuf};

/// The file or folder `path` of the shared data; prints why `test` is skipped where there is none.
pub fn find(test: &str, path: &str) -> Option<PathBuf> {
    let named = std::env::var_os("SHOAL_SHARED").map(PathBuf::from);
    let sibling = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|dir| dir.join("shared"));
    let found = named.into_iter().chain(sibling).map(|shared| shared.join(path)).find(|path| path.exists());
    if found.is_none() {
        println!("skipped: {test}: no shared/{path}");
    }
    found
}

/// A golden file of Nix's store library.
pub fn golden(test: &str, path: &str) -> Option<Vec<u8>> {
    let file = find(test, &format!("conformance/nix/libstore/{path}"))?;
    Some(std::fs::read(file).expect("golden file is readable"))
}

/// A golden JSON file of Nix's store library.
pub fn golden_json(test: &str, path: &str) -> Option<serde_json::Value> {
    Some(serde_json::from_slice(&golden(test, path)?).expect("golden file is JSON"))
}
