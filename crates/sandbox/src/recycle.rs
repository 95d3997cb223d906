//! Makes the scratch directory of a build fit for another one.
//!
//! A build makes and deletes a dozen files and directories beside its own. On a file system that does not use an
//! inode again for a while after it was deleted (ext4 without a journal) each makes all that follow slower, so
//! what can be used again is kept: the directories that the sandbox mounts if they are as they were, the places
//! on which inputs were mounted, and the small files.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, IFlags, RenameFlags, ioctl_getflags, renameat_with, statat};
use rustix::io::Errno;

use crate::log::Log;
use crate::output::remove_xattrs;
use crate::record;
use crate::store::{BIND_MAX, open_dir};
use crate::{Scratch, remove_tree};

/// What may stay between two builds.
const KEPT: [&str; 7] = ["build", "exit", "log", "note", "places", "tmp", "upper"];

/// A larger directory has had many entries, and is slow to read for ever after.
const DIRECTORY_BYTES_MAX: u64 = 4096;

/// Empties the scratch directory of a build that is over, keeping what the next build can use.
///
/// Only for a build that could not give an open directory away: it had no network but its own and saw nothing of
/// the host that others can write to. After an error the directory is good for nothing but [`remove_tree`].
pub fn recycle(scratch: &Scratch) -> io::Result<()> {
    // First, so that nobody who finds half of this done takes it for a build.
    record::clear(&scratch.note_file())?;
    record::clear(&scratch.exit())?;
    Log::clear(&scratch.log())?;
    for entry in fs::read_dir(scratch.path())? {
        let entry = entry?;
        if !KEPT.iter().any(|kept| entry.file_name() == **kept) {
            remove_tree(&entry.path())?;
        }
    }
    set_places_aside(scratch)?;
    let flags = flags(&File::open(scratch.path())?)?;
    for dir in [scratch.store(), scratch.tmp(), scratch.build_dir()] {
        if !restore(&dir, flags)? {
            remove_tree(&dir)?;
        }
    }
    Ok(())
}

/// Keeps what inputs were mounted on, and removes what else is left in the store directory.
fn set_places_aside(scratch: &Scratch) -> io::Result<()> {
    match fs::create_dir(scratch.places()) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let entries = match fs::read_dir(scratch.store()) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if !set_aside(scratch, &entry)? {
            remove_tree(&entry.path())?;
        }
    }
    Ok(())
}

/// `false` for what is no place, or if there are places enough. What somebody else made and left empty will do
/// as well: nobody ever sees more of a place than that it is there.
fn set_aside(scratch: &Scratch, entry: &fs::DirEntry) -> io::Result<bool> {
    let metadata = entry.metadata()?;
    let prefix = if metadata.is_dir() {
        DIRECTORY_PLACE
    } else if metadata.is_file() && metadata.len() == 0 && metadata.nlink() == 1 {
        FILE_PLACE
    } else {
        return Ok(false);
    };
    if metadata.is_dir() && !is_empty(&entry.path()) {
        return Ok(false);
    }
    for number in 0..BIND_MAX {
        let place = scratch.places().join(format!("{prefix}{number}"));
        match renameat_with(CWD, entry.path(), CWD, place, RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(true),
            Err(Errno::EXIST) => {}
            // Not every file system can, nor everybody with every directory.
            Err(_) => return Ok(false),
        }
    }
    Ok(false)
}

const DIRECTORY_PLACE: &str = "d";
const FILE_PLACE: &str = "f";

/// The places of earlier builds in a scratch directory, each given out once.
#[derive(Default)]
pub(crate) struct Places {
    directories: usize,
    files: usize,
}

impl Places {
    /// Moves an empty directory, or an empty file, to `target`. `false` when there is none left.
    pub fn put(&mut self, scratch: &Scratch, kind: FileType, target: &Path) -> bool {
        let (prefix, number) = match kind {
            FileType::Directory => (DIRECTORY_PLACE, &mut self.directories),
            _ => (FILE_PLACE, &mut self.files),
        };
        let place = scratch.places().join(format!("{prefix}{number}"));
        *number += 1;
        fs::rename(place, target).is_ok()
    }
}

/// Takes from a directory what a builder may have done to it that its next owner could not undo by setting mode,
/// owner and times. `false` if it is not as good as new then.
fn restore(dir: &Path, expected: IFlags) -> io::Result<bool> {
    let opened = match File::open(dir) {
        Ok(opened) => opened,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(true),
        // The builder took its own rights away.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => return Ok(false),
        Err(error) => return Err(error),
    };
    if !is_empty(dir) || opened.metadata()?.len() > DIRECTORY_BYTES_MAX || flags(&opened)? != expected {
        return Ok(false);
    }
    let (Some(parent), Some(name)) = (dir.parent(), dir.file_name()) else { return Ok(false) };
    let parent = open_dir(parent).map_err(|failure| io::Error::other(failure.to_string()))?;
    let name = std::ffi::CString::new(name.as_encoded_bytes())?;
    let stat = statat(&parent, &name, AtFlags::SYMLINK_NOFOLLOW)?;
    remove_xattrs(&parent, &name, &stat)?;
    Ok(true)
}

/// `false` also for a directory that its owner may not read.
fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none())
}

/// What `chattr` sets. None on file systems that have none.
fn flags(dir: impl AsFd) -> io::Result<IFlags> {
    match ioctl_getflags(dir) {
        Ok(flags) => Ok(flags),
        Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(IFlags::empty()),
        Err(error) => Err(error.into()),
    }
}
