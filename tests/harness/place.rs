//! Directories: where the repository is, where things that survive a run are kept, and throw-away ones.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// The repository's root.
pub fn repository() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_path_buf()
}

/// What survives between runs: clients and sources.
pub fn kept() -> PathBuf {
    repository().join("target/nix")
}

/// The directory with the larger package set, where there is one: `$SHOAL_SHARED`, or `shared` beside a directory above.
pub fn shared() -> Option<PathBuf> {
    let named = env::var_os("SHOAL_SHARED").map(PathBuf::from);
    let root = repository();
    let above = || root.ancestors().skip(1).map(|dir| dir.join("shared")).find(|dir| dir.join("nix-clients").is_dir());
    named.filter(|dir| dir.is_dir()).or_else(above)
}

/// A directory that is gone with the value, read-only trees and all.
pub struct Place {
    path: PathBuf,
}

impl Place {
    pub fn new(name: &str) -> Place {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // Short: a unix socket's path has 108 bytes.
        let path = repository().join("target/tmp").join(format!("{name}-{}-{number}", std::process::id()));
        remove(&path);
        fs::create_dir_all(&path).unwrap_or_else(|error| panic!("cannot make {}: {error}", path.display()));
        Place { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if env::var_os("SHOAL_KEEP").is_some() {
            println!("kept: {}", self.path.display());
            return;
        }
        remove(&self.path);
    }
}

/// Removes a tree whose directories may be read-only.
pub fn remove(path: &Path) {
    let Ok(meta) = fs::symlink_metadata(path) else { return };
    if meta.is_dir() {
        let _ = fs::set_permissions(path, fs::Permissions::from_mode(0o700));
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove(&entry.path());
            } else {
                let _ = fs::remove_file(entry.path());
            }
        }
        let _ = fs::remove_dir(path);
    } else {
        let _ = fs::remove_file(path);
    }
}
