//! The view as files of a tmpfs.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, Timespec, Timestamps, XattrFlags, ftruncate, mkdirat, openat, setxattr, symlinkat,
    utimensat,
};

use super::{DIRECTORY_MODE, Entry, Kind, METACOPY, MTIME, OPAQUE, OPAQUE_VALUE, REDIRECT, STORE};
use crate::Scratch;
use crate::rootfs::new_filesystem;

/// A detached tmpfs with the view in it. The process' umask must be 0.
pub(super) fn mount(entries: &[Entry<'_>], _scratch: &Scratch) -> io::Result<OwnedFd> {
    let root = new_filesystem("tmpfs", &[("mode", "0755")])?;
    mkdirat(&root, STORE, Mode::from_raw_mode(0o1775))?;
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let store = openat(&root, STORE, flags, Mode::empty())?;
    // There is no call to set attributes by descriptor and name, so names are relative to where we are.
    let here = openat(CWD, ".", flags, Mode::empty())?;
    rustix::process::fchdir(&store)?;
    let is_view = entries.iter().any(|entry| entry.redirect.is_some());
    let opaque = if is_view { set(Path::new("."), OPAQUE, OPAQUE_VALUE) } else { Ok(()) };
    let filled = opaque.and_then(|()| entries.iter().try_for_each(make));
    rustix::process::fchdir(here)?;
    filled.map(|()| root)
}

/// Makes one entry in the current directory.
fn make(entry: &Entry<'_>) -> io::Result<()> {
    let name = Path::new(entry.name);
    match &entry.kind {
        Kind::Directory => mkdirat(CWD, name, Mode::from_raw_mode(DIRECTORY_MODE))?,
        Kind::Symlink { target } => symlinkat(target.as_slice(), CWD, name)?,
        Kind::File { size, mode } => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            let file = openat(CWD, name, flags, Mode::from_raw_mode(*mode))?;
            ftruncate(file, *size)?;
        }
    }
    if let Some(redirect) = entry.effective_redirect() {
        set(name, REDIRECT, &[redirect.home, redirect.name].concat())?;
        if let Kind::File { .. } = entry.kind {
            set(name, METACOPY, b"")?;
        }
    }
    let time = Timespec { tv_sec: MTIME, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(utimensat(CWD, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn set(path: &Path, name: &str, value: &[u8]) -> io::Result<()> {
    let name = PathBuf::from(format!("trusted.{name}"));
    Ok(setxattr(path, name, value, XattrFlags::CREATE)?)
}
