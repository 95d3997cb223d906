//! A NAR as files.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{self, CWD, Mode, OFlags};
use shoal_wire::nix::nar::stream::NarReader;
use shoal_wire::nix::nar::{NarLimits, NarSink};

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const NEW_FILE: OFlags = OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::EXCL).union(OFlags::CLOEXEC);

/// Makes `top`, which must not exist, of the NAR that `nar` begins with. What follows the NAR is not read.
pub fn restore(nar: impl BufRead, top: &Path) -> io::Result<()> {
    let files = Files { top, open: Vec::new(), file: None };
    NarReader::new(nar, NarLimits::default(), files).finish().map(|_| ())
}

struct Files<'a> {
    top: &'a Path,
    /// The directories being filled, the innermost last.
    open: Vec<OwnedFd>,
    file: Option<File>,
}

impl Files<'_> {
    /// Where to make a node: its directory and its name there.
    fn place<'b>(&'b self, name: &'b [u8]) -> (BorrowedFd<'b>, &'b OsStr) {
        match self.open.last() {
            Some(directory) => (directory.as_fd(), OsStr::from_bytes(name)),
            None => (CWD, self.top.as_os_str()),
        }
    }
}

impl NarSink for Files<'_> {
    type Error = io::Error;

    fn directory(&mut self, name: &[u8], _offset: u64) -> io::Result<()> {
        let (parent, name) = self.place(name);
        fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
        let directory = fs::openat(parent, name, DIRECTORY, Mode::empty())?;
        self.open.push(directory);
        Ok(())
    }

    fn end_directory(&mut self, _offset: u64) -> io::Result<()> {
        self.open.pop();
        Ok(())
    }

    fn regular(&mut self, name: &[u8], executable: bool, _size: u64, _offset: u64) -> io::Result<()> {
        let (parent, name) = self.place(name);
        let mode = Mode::from_raw_mode(if executable { 0o755 } else { 0o644 });
        self.file = Some(fs::openat(parent, name, NEW_FILE, mode)?.into());
        Ok(())
    }

    fn contents(&mut self, bytes: &[u8], _offset: u64) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), |file| file.write_all(bytes))
    }

    fn end_regular(&mut self, _offset: u64) -> io::Result<()> {
        self.file = None;
        Ok(())
    }

    fn symlink(&mut self, name: &[u8], target: &[u8], _offset: u64) -> io::Result<()> {
        let (parent, name) = self.place(name);
        Ok(fs::symlinkat(OsStr::from_bytes(target), parent, name)?)
    }
}
