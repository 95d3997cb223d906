//! A depth-first walk over a tree that somebody hostile made but does not touch any more.
//!
//! Never follows a symlink, holds two descriptors however deep the tree is, and does not recurse. Going up
//! is `..`, checked against the directory that was left.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, fstat, openat, statat};
use rustix::io::Errno;

/// What is done on the way.
pub(crate) trait Visitor {
    type Error: From<Errno>;

    /// Every entry, the tree itself first, directories before what is in them. `true` to enter it, which
    /// only directories can be. `kind` may be `Unknown`.
    fn entry(&mut self, dir: &OwnedFd, name: &CStr, kind: FileType) -> Result<bool, Self::Error>;

    /// A directory after all that is in it.
    fn leave(&mut self, dir: &OwnedFd, name: &CStr) -> Result<(), Self::Error>;
}

/// Where the walk stopped, and why.
pub(crate) struct Stopped<E> {
    pub path: PathBuf,
    pub error: E,
}

/// A directory that the walk is in.
struct Level {
    name: CString,
    parent: Id,
    /// Entries that were not visited yet, and what they are.
    rest: Vec<(CString, FileType)>,
}

/// Device and inode number.
type Id = (u64, u64);

/// Visits `tree` and everything in it.
pub(crate) fn walk<V: Visitor>(tree: &Path, visitor: &mut V) -> Result<(), Stopped<V::Error>> {
    let mut levels = Vec::new();
    visit(tree, visitor, &mut levels).map_err(|error| {
        let inner = levels.iter().skip(1).map(|level| OsStr::from_bytes(level.name.to_bytes()));
        Stopped { path: inner.fold(tree.to_owned(), |path, name| path.join(name)), error }
    })
}

/// On an error `levels` say where.
fn visit<V: Visitor>(tree: &Path, visitor: &mut V, levels: &mut Vec<Level>) -> Result<(), V::Error> {
    let parent = tree.parent().filter(|parent| !parent.as_os_str().is_empty());
    let name = tree.file_name().ok_or(Errno::INVAL)?;
    let mut dir = openat(CWD, parent.unwrap_or(Path::new(".")), OPEN_PATH, Mode::empty())?;
    let name = CString::new(name.as_bytes()).map_err(|_| Errno::INVAL)?;
    let kind = FileType::from_raw_mode(statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode);
    let mut next = Some((name, kind));
    loop {
        if let Some((name, kind)) = next.take() {
            // Named before the visit, so that a failing visit is reported there.
            levels.push(Level { name, parent: id(&dir)?, rest: Vec::new() });
            let Some(level) = levels.last_mut() else { return Ok(()) };
            if visitor.entry(&dir, &level.name, kind)? {
                (dir, level.rest) = enter(&dir, &level.name)?;
            } else {
                levels.pop();
            }
        } else if let Some(level) = levels.pop() {
            dir = openat(&dir, "..", OPEN_PATH, Mode::empty())?;
            if id(&dir)? != level.parent {
                return Err(Errno::STALE.into());
            }
            visitor.leave(&dir, &level.name)?;
        }
        match levels.last_mut() {
            Some(level) => next = level.rest.pop(),
            None => return Ok(()),
        }
    }
}

const OPEN_PATH: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Opens a directory and reads all of it.
fn enter(dir: &OwnedFd, name: &CStr) -> Result<(OwnedFd, Vec<(CString, FileType)>), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = openat(dir, name, flags, Mode::empty())?;
    let mut entries = Vec::new();
    for entry in Dir::read_from(&opened)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            entries.push((entry.file_name().to_owned(), entry.file_type()));
        }
    }
    Ok((opened, entries))
}

fn id(dir: &OwnedFd) -> Result<Id, Errno> {
    let stat = fstat(dir)?;
    Ok((stat.st_dev, stat.st_ino))
}
