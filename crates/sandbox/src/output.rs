//! What happens to a tree that an untrusted builder made, before anybody reads it.

use std::collections::HashSet;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, Stat, Timespec, Timestamps, UTIME_OMIT, Uid, chmodat, chownat, llistxattr,
    lremovexattr, statat, unlinkat, utimensat,
};
use rustix::io::Errno;

use crate::identity::Ids;
use crate::walk::{Stopped, Visitor, walk};

/// Why an output can't be taken. The texts are Nix's.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// The builder did not make it.
    #[error("{}: no such output", .0.display())]
    Missing(PathBuf),
    /// Top level writable by group or others, or not the builder's.
    #[error("suspicious ownership or permission on '{}'", .0.display())]
    Suspicious(PathBuf),
    #[error("file '{}' has an unsupported type", .0.display())]
    UnsupportedType(PathBuf),
    /// Not the builder's own file: a hard link to something foreign.
    #[error("invalid ownership on file '{}'", .0.display())]
    InvalidOwnership(PathBuf),
    #[error("{}: {source}", .path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// Attributes that belong to the system and not to the file; some can't be removed by anybody.
const KEPT_XATTRS: [&[u8]; 3] = [b"security.csm", b"security.selinux", b"system.nfs4_acl"];

/// Room for the names that a file usually has. Asked for their length first, with an empty buffer, rustix gives 0 back
/// whatever the kernel said.
const XATTR_LIST_COMMON: usize = 1024;

/// More than a file can have on any file system of Linux (64 KiB).
const XATTR_LIST_MAX: usize = 64 * 1024;

/// Brings a builder's tree into the form of a store path, in place and without following a symlink.
///
/// Everything must be a regular file, directory or symlink and belong to `uid`, and all processes that could
/// change it must be dead. Afterwards modes are 0444 or 0555, the modification time is 1, the owner is the
/// caller, extended attributes are gone.
pub fn canonicalise(tree: &Path, uid: u32) -> Result<(), OutputError> {
    let top = match rustix::fs::lstat(tree) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Err(OutputError::Missing(tree.to_owned())),
        Err(error) => return Err(OutputError::Io { path: tree.to_owned(), source: error.into() }),
    };
    let is_symlink = FileType::from_raw_mode(top.st_mode) == FileType::Symlink;
    if (!is_symlink && top.st_mode & 0o022 != 0) || top.st_uid != uid {
        return Err(OutputError::Suspicious(tree.to_owned()));
    }
    let mut canonicaliser = Canonicaliser { from: uid, to: Ids::own(), linked: HashSet::new() };
    walk(tree, &mut canonicaliser).map_err(|Stopped { path, error }| match error {
        Objection::UnsupportedType => OutputError::UnsupportedType(path),
        Objection::InvalidOwnership => OutputError::InvalidOwnership(path),
        Objection::System(error) => OutputError::Io { path, source: error.into() },
    })
}

struct Canonicaliser {
    from: u32,
    to: Ids,
    /// Files with several names that were dealt with under an earlier one.
    linked: HashSet<(u64, u64)>,
}

enum Objection {
    UnsupportedType,
    InvalidOwnership,
    System(Errno),
}

impl From<Errno> for Objection {
    fn from(error: Errno) -> Self {
        Objection::System(error)
    }
}

impl Visitor for Canonicaliser {
    type Error = Objection;

    fn entry(&mut self, dir: &OwnedFd, name: &CStr, _kind: FileType) -> Result<bool, Objection> {
        let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if !matches!(kind, FileType::RegularFile | FileType::Directory | FileType::Symlink) {
            return Err(Objection::UnsupportedType);
        }
        let is_dir = kind == FileType::Directory;
        if stat.st_nlink > 1 && !is_dir && !self.linked.insert((stat.st_dev, stat.st_ino)) {
            return Ok(false);
        }
        if stat.st_uid != self.from {
            return Err(Objection::InvalidOwnership);
        }
        remove_xattrs(dir, name, &stat)?;
        if self.from != self.to.uid {
            let (uid, gid) = (Uid::from_raw(self.to.uid), Gid::from_raw(self.to.gid));
            chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        let executable = is_dir || stat.st_mode & 0o100 != 0;
        let mode = if executable { 0o555 } else { 0o444 };
        if kind != FileType::Symlink && stat.st_mode & 0o7777 != mode {
            chmodat(dir, name, Mode::from_raw_mode(mode), AtFlags::empty())?;
        }
        let keep = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
        let one = Timespec { tv_sec: 1, tv_nsec: 0 };
        let times = Timestamps { last_access: keep, last_modification: one };
        utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(is_dir)
    }

    fn leave(&mut self, _dir: &OwnedFd, _name: &CStr) -> Result<(), Objection> {
        Ok(())
    }
}

/// Removes what attributes can be removed.
pub(crate) fn remove_xattrs(dir: &OwnedFd, name: &CStr, stat: &Stat) -> Result<(), Errno> {
    // Before Linux 6.13 there is no call that takes a directory and a name.
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name.to_bytes());
    let (mut few, mut many) = ([0; XATTR_LIST_COMMON], Vec::new());
    let names = match llistxattr(path.as_slice(), few.as_mut_slice()) {
        Ok(0) | Err(Errno::NOTSUP) => return Ok(()),
        Ok(length) => few.get(..length).unwrap_or_default(),
        Err(Errno::RANGE) => {
            many.resize(XATTR_LIST_MAX, 0);
            let length = llistxattr(path.as_slice(), many.as_mut_slice())?;
            many.get(..length).unwrap_or_default()
        }
        Err(error) => return Err(error),
    };
    let removable = |name: &&[u8]| !name.is_empty() && !KEPT_XATTRS.contains(name);
    let mut names = names.split(|byte| *byte == 0).filter(removable).peekable();
    let is_symlink = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
    if names.peek().is_some() && !is_symlink && stat.st_mode & 0o200 == 0 {
        // Only who may write a file may remove its attributes.
        let mode = Mode::from_raw_mode(stat.st_mode & 0o555 | 0o200);
        chmodat(dir, name, mode, AtFlags::empty())?;
        names.try_for_each(|name| lremovexattr(path.as_slice(), name))?;
        return chmodat(dir, name, Mode::from_raw_mode(stat.st_mode), AtFlags::empty());
    }
    names.try_for_each(|name| lremovexattr(path.as_slice(), name))
}

/// Gives a tree that the builder owns to the caller, modes unchanged: for a build directory that is kept.
pub fn release(tree: &Path) -> io::Result<()> {
    walk(tree, &mut Releaser(Ids::own())).map_err(|stopped| stopped.error.into())
}

struct Releaser(Ids);

impl Visitor for Releaser {
    type Error = Errno;

    fn entry(&mut self, dir: &OwnedFd, name: &CStr, _kind: FileType) -> Result<bool, Errno> {
        let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if stat.st_uid != self.0.uid {
            let (uid, gid) = (Uid::from_raw(self.0.uid), Gid::from_raw(self.0.gid));
            chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
    }

    fn leave(&mut self, _dir: &OwnedFd, _name: &CStr) -> Result<(), Errno> {
        Ok(())
    }
}

/// Removes a tree whatever its modes and depth. A tree that is not there is fine.
pub fn remove_tree(tree: &Path) -> io::Result<()> {
    match walk(tree, &mut Remover) {
        Ok(()) => Ok(()),
        // Also when somebody else was faster.
        Err(Stopped { error: Errno::NOENT, .. }) if rustix::fs::lstat(tree).is_err() => Ok(()),
        Err(stopped) => Err(stopped.error.into()),
    }
}

struct Remover;

impl Visitor for Remover {
    type Error = Errno;

    fn entry(&mut self, dir: &OwnedFd, name: &CStr, kind: FileType) -> Result<bool, Errno> {
        if !matches!(kind, FileType::Directory | FileType::Unknown) {
            unlinkat(dir, name, AtFlags::empty())?;
            return Ok(false);
        }
        let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            unlinkat(dir, name, AtFlags::empty())?;
            return Ok(false);
        }
        if stat.st_mode & 0o700 != 0o700 {
            chmodat(dir, name, Mode::from_raw_mode(0o700), AtFlags::empty())?;
        }
        Ok(true)
    }

    fn leave(&mut self, dir: &OwnedFd, name: &CStr) -> Result<(), Errno> {
        unlinkat(dir, name, AtFlags::REMOVEDIR)
    }
}
