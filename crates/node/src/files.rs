//! Small files that must never be seen half-written, and whether one has changed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Only the owner reads.
pub const SECRET: u32 = 0o600;
pub const PUBLIC: u32 = 0o644;

/// Replaces `path` by `bytes`: who reads sees the old file or the new one, also after a crash.
pub fn replace(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let temporary = beside(path)?;
    let written = write_new(&temporary, mode, bytes).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_file(&temporary);
    }
    written?;
    sync_directory(path)
}

/// As [`replace`], for a file of somebody else: one that is there keeps its mode, its owner and its group. An error, and
/// the old file stays, where they cannot be kept.
pub fn replace_keeping(path: &Path, mode_of_new: u32, bytes: &[u8]) -> io::Result<()> {
    let old = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return replace(path, mode_of_new, bytes),
        other => other?,
    };
    let temporary = beside(path)?;
    // Nobody else reads it before it is known who may.
    let written = write_new(&temporary, SECRET, bytes)
        .and_then(|()| chown(&temporary, Some(old.uid()), Some(old.gid())))
        .and_then(|()| fs::set_permissions(&temporary, old.permissions()))
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_file(&temporary);
    }
    written?;
    sync_directory(path)
}

fn write_new(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn beside(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| io::Error::other("no file name"))?;
    Ok(path.with_file_name(format!(".{}.{}", name.to_string_lossy(), std::process::id())))
}

fn sync_directory(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// Tells one state of a file from another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stamp {
    Missing,
    Present { device: u64, inode: u64, len: u64, mtime: (i64, i64) },
}

impl Stamp {
    /// Of the file that is there now.
    pub fn of(path: &Path) -> io::Result<Stamp> {
        match fs::metadata(path) {
            Ok(meta) => Ok(Stamp::Present {
                device: meta.dev(),
                inode: meta.ino(),
                len: meta.len(),
                mtime: (meta.mtime(), meta.mtime_nsec()),
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Stamp::Missing),
            Err(error) => Err(error),
        }
    }

    /// Whether it was written within the coarsest tick that file systems stamp with: a later change may bear the same stamp.
    pub fn is_fresh(self) -> bool {
        let Stamp::Present { mtime: (seconds, _), .. } = self else { return false };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        seconds.unsigned_abs().saturating_add(2) >= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn replacing_keeps_nothing_of_the_old_file_and_leaves_nothing_beside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        replace(&path, PUBLIC, b"a long first text").unwrap();
        replace(&path, SECRET, b"short").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"short");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, SECRET);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_of_somebody_else_keeps_its_mode_and_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nix.conf");
        replace_keeping(&path, PUBLIC, b"new").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, PUBLIC);
        for mode in [0o600, 0o640, 0o666] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            // Only root may give a file away.
            let _ = chown(&path, Some(4321), Some(4322));
            let before = fs::metadata(&path).unwrap();
            replace_keeping(&path, PUBLIC, format!("{mode:o}").as_bytes()).unwrap();
            let after = fs::metadata(&path).unwrap();
            assert_eq!((after.mode(), after.uid(), after.gid()), (before.mode(), before.uid(), before.gid()));
            assert_eq!(fs::read_to_string(&path).unwrap(), format!("{mode:o}"));
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
