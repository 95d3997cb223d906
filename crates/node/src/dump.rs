//! A tree on disk as a NAR.
//!
//! Follows no symlink, reads each file once, and holds one open directory a level; depth is bounded as in Nix.

use std::ffi::CStr;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, CWD, FileType, Mode, OFlags};
use shoal_wire::nix::nar::write::NarWriter;
use thiserror::Error;

/// Directories that may lie within each other in a NAR, as Nix 2.34 has it.
const DEPTH_MAX: usize = 64;

/// What is read from a file at once.
const READ_BYTES: usize = 256 << 10;

#[derive(Debug, Error)]
pub enum DumpError {
    #[error("path '{}' exceeds maximum NAR directory depth of {DEPTH_MAX}", .0.display())]
    TooDeep(PathBuf),
    #[error("path '{}' has an unsupported type", .0.display())]
    UnsupportedType(PathBuf),
    #[error("'{}' changed while it was read", .0.display())]
    Changed(PathBuf),
    #[error("cannot read '{}': {error}", path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error(transparent)]
    Write(io::Error),
}

/// Writes the NAR of `path`.
pub fn dump<W: Write>(path: &Path, writer: W) -> Result<W, DumpError> {
    let mut dump = Dump { nar: NarWriter::new(writer), buffer: vec![0; READ_BYTES], depth: 0 };
    let name = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())
        .map_err(|_| DumpError::UnsupportedType(path.to_path_buf()))?;
    dump.node(CWD, &name, b"", path)?;
    dump.nar.finish().map_err(DumpError::Write)
}

struct Dump<W: Write> {
    nar: NarWriter<W>,
    buffer: Vec<u8>,
    depth: usize,
}

impl<W: Write> Dump<W> {
    /// One node: `at`/`name` on disk, `nar_name` in the NAR (empty for the top), `path` for messages.
    fn node(&mut self, at: BorrowedFd<'_>, name: &CStr, nar_name: &[u8], path: &Path) -> Result<(), DumpError> {
        let failed = |error: rustix::io::Errno| DumpError::Read { path: path.to_path_buf(), error: error.into() };
        let stat = fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = fs::openat(at, name, flags, Mode::empty()).map_err(failed)?;
                let executable = Mode::from_raw_mode(stat.st_mode).contains(Mode::XUSR);
                self.nar.regular(nar_name, executable, stat.st_size as u64).map_err(DumpError::Write)?;
                self.contents(file, stat.st_size as u64, path)
            }
            FileType::Symlink => {
                let target = fs::readlinkat(at, name, Vec::new()).map_err(failed)?;
                self.nar.symlink(nar_name, target.as_bytes()).map_err(DumpError::Write)
            }
            FileType::Directory => {
                if self.depth >= DEPTH_MAX {
                    return Err(DumpError::TooDeep(path.to_path_buf()));
                }
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let dir = fs::openat(at, name, flags, Mode::empty()).map_err(failed)?;
                self.nar.directory(nar_name).map_err(DumpError::Write)?;
                self.depth += 1;
                self.directory(dir, path)?;
                self.depth -= 1;
                self.nar.end_directory().map_err(DumpError::Write)
            }
            _ => Err(DumpError::UnsupportedType(path.to_path_buf())),
        }
    }

    fn directory(&mut self, dir: OwnedFd, path: &Path) -> Result<(), DumpError> {
        let failed = |error: rustix::io::Errno| DumpError::Read { path: path.to_path_buf(), error: error.into() };
        let mut names = Vec::new();
        for entry in fs::Dir::read_from(&dir).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name().to_owned();
            if !matches!(name.as_bytes(), b"." | b"..") {
                names.push(name);
            }
        }
        names.sort_unstable_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
        for name in names {
            let child = path.join(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(name.as_bytes()));
            self.node(dir.as_fd(), &name, name.as_bytes(), &child)?;
        }
        Ok(())
    }

    fn contents(&mut self, file: OwnedFd, size: u64, path: &Path) -> Result<(), DumpError> {
        let mut left = size;
        while left > 0 {
            let want = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let got = rustix::io::read(&file, &mut self.buffer[..want])
                .map_err(|error| DumpError::Read { path: path.to_path_buf(), error: error.into() })?;
            if got == 0 {
                return Err(DumpError::Changed(path.to_path_buf()));
            }
            self.nar.contents(&self.buffer[..got]).map_err(DumpError::Write)?;
            left -= got as u64;
        }
        Ok(())
    }
}
