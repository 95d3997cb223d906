//! The log file of a build.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Bytes in, in order, up to a limit; bytes out from any offset.
#[derive(Debug)]
pub(crate) struct Log {
    file: File,
    len: u64,
    max: u64,
}

/// What [`Log::append`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Appended {
    All,
    /// As much as fits; the rest is lost.
    UpToLimit,
}

impl Log {
    /// An empty log, in the file that an earlier build had if there is one. Locked until it is closed.
    pub fn create(path: &Path, max: Option<u64>) -> io::Result<Log> {
        let mut options = OpenOptions::new();
        let file = options.read(true).append(true).create(true).mode(0o600).open(path)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        empty(&file)?;
        Ok(Log { file, len: 0, max: max.unwrap_or(u64::MAX) })
    }

    /// Forgets a log that is not written any more.
    pub fn clear(path: &Path) -> io::Result<()> {
        match OpenOptions::new().write(true).open(path) {
            Ok(file) => empty(&file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Nothing will be written any more.
    pub fn close(&self) -> io::Result<()> {
        Ok(flock(&self.file, FlockOperation::Unlock)?)
    }

    /// Whether a build is under way that writes this log.
    pub fn is_open(path: &Path) -> io::Result<bool> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(false),
            Err(Errno::WOULDBLOCK) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// For a build that never came so far as to have one.
    pub fn empty() -> io::Result<Log> {
        Ok(Log { file: File::open("/dev/null")?, len: 0, max: 0 })
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn append(&mut self, bytes: &[u8]) -> io::Result<Appended> {
        let room = usize::try_from(self.max - self.len).unwrap_or(usize::MAX);
        let (fitting, rest) = bytes.split_at(bytes.len().min(room));
        self.file.write_all(fitting)?;
        self.len += fitting.len() as u64;
        Ok(if rest.is_empty() { Appended::All } else { Appended::UpToLimit })
    }

    /// Reads what is there from `offset` on, at most a buffer full.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }
}

/// Truncating what is empty has a cost, too, on some file systems.
fn empty(file: &File) -> io::Result<()> {
    if file.metadata()?.len() > 0 {
        file.set_len(0)?;
    }
    Ok(())
}
