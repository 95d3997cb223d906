//! A path's NAR to a directory tree, as Nix lays it down: files 0444 or 0555, directories 0555,
//! modification times 1.

use crate::error::{Error, Result};
use crate::export::Export;
use crate::store::Store;
use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT};
use shoal_wire::nix::nar::index::{Entry, Node};
use shoal_wire::nix::store_path::StorePath;
use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// While a directory is being filled.
const DIRECTORY_OPEN: Mode = Mode::RWXU;
const DIRECTORY: Mode = Mode::from_raw_mode(0o555);
const FILE: Mode = Mode::from_raw_mode(0o444);
const EXECUTABLE: Mode = Mode::from_raw_mode(0o555);

/// Second 1 of 1970, which Nix gives to everything in its store.
const MODIFIED: Timestamps = Timestamps {
    last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT as _ },
    last_modification: Timespec { tv_sec: 1, tv_nsec: 0 },
};

impl Store {
    /// Writes a valid path to `dest`, which must not exist; its parent must. `false` if the path is
    /// not valid. After an error a part of the tree may be there.
    pub fn unpack(&self, path: &StorePath, dest: &Path) -> Result<bool> {
        let Some(mut export) = self.export(path)? else {
            return Ok(false);
        };
        let wrong = |what| Error::io("write", dest)(std::io::Error::new(std::io::ErrorKind::InvalidInput, what));
        let parent = match dest.parent() {
            Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) => parent,
            None => return Err(wrong("no parent directory")),
        };
        let name = dest.file_name().ok_or_else(|| wrong("no file name"))?;
        let parent_fd = open_directory(rustix::fs::CWD, parent).map_err(|e| Error::io("open", parent)(e.into()))?;
        let name = CString::new(name.as_encoded_bytes()).map_err(|_| wrong("file name with a NUL"))?;
        let manifest = export.manifest().clone();
        let mut unpacker = Unpacker { export: &mut export, at: parent.to_owned() };
        unpacker.entry(&manifest.index, manifest.index.root(), parent_fd.as_fd(), &name)?;
        Ok(true)
    }
}

struct Unpacker<'a> {
    export: &'a mut Export,
    /// Where we are, for errors.
    at: PathBuf,
}

impl Unpacker<'_> {
    fn entry(
        &mut self,
        index: &shoal_wire::nix::nar::index::NarIndex,
        entry: &Entry,
        parent: BorrowedFd<'_>,
        name: &CString,
    ) -> Result<()> {
        self.at.push(std::ffi::OsStr::new(&*String::from_utf8_lossy(name.as_bytes())));
        match &entry.node {
            Node::Regular { executable, size, offset } => self.regular(parent, name, *executable, *offset, *size)?,
            Node::Symlink { target } => self.symlink(parent, name, target)?,
            Node::Directory { .. } => {
                let dir = self.begin_directory(parent, name)?;
                for child in index.children(entry) {
                    let child_name = CString::new(child.name.as_ref());
                    let child_name = child_name.map_err(|error| Error::io("write", &self.at)(error.into()))?;
                    self.entry(index, child, dir.as_fd(), &child_name)?;
                }
                self.checked("finish", rustix::fs::fchmod(&dir, DIRECTORY))?;
                self.checked("finish", rustix::fs::futimens(&dir, &MODIFIED))?;
            }
        }
        self.at.pop();
        Ok(())
    }

    fn begin_directory(&mut self, parent: BorrowedFd<'_>, name: &CString) -> Result<OwnedFd> {
        self.checked("create", rustix::fs::mkdirat(parent, name, DIRECTORY_OPEN))?;
        let dir = open_directory(parent, name.as_c_str());
        self.checked("open", dir)
    }

    fn regular(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &CString,
        executable: bool,
        offset: u64,
        size: u64,
    ) -> Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = if executable { EXECUTABLE } else { FILE };
        let file = self.checked("create", rustix::fs::openat(parent, name, flags, mode))?;
        let mut file = File::from(file);
        self.export.seek(offset, size);
        loop {
            let bytes = self.export.fill_buf()?;
            if bytes.is_empty() {
                break;
            }
            let written = file.write(bytes).map_err(Error::io("write", &self.at))?;
            self.export.consume(written);
        }
        // The process's umask may have taken bits from the mode.
        self.checked("finish", rustix::fs::fchmod(&file, mode))?;
        self.checked("finish", rustix::fs::futimens(&file, &MODIFIED))
    }

    fn symlink(&mut self, parent: BorrowedFd<'_>, name: &CString, target: &[u8]) -> Result<()> {
        self.checked("create", rustix::fs::symlinkat(target, parent, name))?;
        let times = rustix::fs::utimensat(parent, name, &MODIFIED, AtFlags::SYMLINK_NOFOLLOW);
        self.checked("finish", times)
    }

    fn checked<T>(&self, action: &'static str, done: rustix::io::Result<T>) -> Result<T> {
        done.map_err(|error| Error::io(action, &self.at)(error.into()))
    }
}

fn open_directory(parent: impl AsFd, name: impl rustix::path::Arg) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}
