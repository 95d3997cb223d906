//! A tar archive as files, all of them below one directory.
//!
//! An entry is made through descriptors of its parent directories, none of which may be a symlink, so whatever names
//! an archive has it reaches nothing outside. Later entries replace earlier ones. Owners, times and all of the mode but
//! the owner's execute bit are dropped: no store keeps them.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{self, AtFlags, Mode, OFlags};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};

use super::{Failure, failure, reason};

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const NEW_FILE: OFlags = OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::EXCL).union(OFlags::CLOEXEC);

/// Unpacks `archive`, not compressed, into the existing directory `top`.
pub(super) fn untar(archive: impl Read, top: &Path) -> Result<(), Failure> {
    let unpacked = || -> io::Result<()> {
        let top = fs::open(top, DIRECTORY, Mode::empty())?;
        for entry in Archive::new(archive).entries()? {
            unpack(&top, &mut entry?)?;
        }
        Ok(())
    };
    unpacked().map_err(|error| failure(format!("failed to extract archive ({})", reason(&error))))
}

fn unpack(top: &OwnedFd, entry: &mut Entry<'_, impl Read>) -> io::Result<()> {
    let path = entry.path_bytes().into_owned();
    let kind = entry.header().entry_type();
    if kind == EntryType::XGlobalHeader {
        return Ok(());
    }
    let components = components(&path)?;
    let Some((name, parents)) = components.split_last() else {
        return match kind {
            EntryType::Directory => Ok(()),
            _ => Err(invalid("a member that is no directory has no name")),
        };
    };
    let parent = descend(top, parents, &path)?;
    match kind {
        EntryType::Directory => directory(&parent, name),
        EntryType::Symlink => {
            let target = link_target(entry)?;
            remove(&parent, name)?;
            Ok(fs::symlinkat(OsStr::from_bytes(&target), &parent, *name)?)
        }
        EntryType::Link => hard_link(top, &parent, name, &link_target(entry)?),
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            remove(&parent, name)?;
            regular(&parent, name, entry)
        }
        other => {
            let path = String::from_utf8_lossy(&path);
            Err(invalid(&format!("file '{path}' has unsupported type '{}'", other.as_byte().escape_ascii())))
        }
    }
}

/// The names in a path, taken to be below the top even if it is absolute.
fn components(path: &[u8]) -> io::Result<Vec<&OsStr>> {
    let names = path.split(|&b| b == b'/').filter(|name| !matches!(*name, b"" | b"."));
    names
        .map(|name| if name == b".." { Err(invalid("Path contains '..'")) } else { Ok(OsStr::from_bytes(name)) })
        .collect()
}

/// Opens the directory that `names` lead to, making what is missing.
fn descend(top: &OwnedFd, names: &[&OsStr], path: &[u8]) -> io::Result<OwnedFd> {
    let mut directory = top.try_clone()?;
    for name in names {
        directory = match fs::openat(&directory, *name, DIRECTORY, Mode::empty()) {
            Err(Errno::NOENT) => {
                fs::mkdirat(&directory, *name, Mode::from_raw_mode(0o755))?;
                fs::openat(&directory, *name, DIRECTORY, Mode::empty())?
            }
            Err(Errno::LOOP | Errno::NOTDIR) => {
                let path = String::from_utf8_lossy(path);
                return Err(invalid(&format!("Cannot extract through symlink or file: {path}")));
            }
            opened => opened?,
        };
    }
    Ok(directory)
}

fn directory(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match fs::openat(parent, name, DIRECTORY, Mode::empty()) {
        Ok(_) => return Ok(()),
        Err(Errno::NOENT) => {}
        Err(_) => remove(parent, name)?,
    }
    Ok(fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))?)
}

fn regular(parent: &OwnedFd, name: &OsStr, entry: &mut Entry<'_, impl Read>) -> io::Result<()> {
    let executable = entry.header().mode()? & 0o100 != 0;
    let mode = Mode::from_raw_mode(if executable { 0o755 } else { 0o644 });
    let mut file = File::from(fs::openat(parent, name, NEW_FILE, mode)?);
    let written = io::copy(entry, &mut file)?;
    match written == entry.size() {
        true => Ok(()),
        false => Err(invalid("Truncated tar archive detected while reading data")),
    }
}

/// Makes a second name for what an earlier entry made.
fn hard_link(top: &OwnedFd, parent: &OwnedFd, name: &OsStr, target: &[u8]) -> io::Result<()> {
    let missing = || invalid(&format!("Hard-link target '{}' does not exist", String::from_utf8_lossy(target)));
    let components = components(target)?;
    let (target_name, target_parents) = components.split_last().ok_or_else(missing)?;
    let mut directory = top.try_clone()?;
    for name in target_parents {
        directory = fs::openat(&directory, *name, DIRECTORY, Mode::empty()).map_err(|_| missing())?;
    }
    let exists = fs::statat(&directory, *target_name, AtFlags::SYMLINK_NOFOLLOW).map_err(|_| missing())?;
    let there = fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW);
    if there.is_ok_and(|there| (there.st_dev, there.st_ino) == (exists.st_dev, exists.st_ino)) {
        return Ok(());
    }
    remove(parent, name)?;
    Ok(fs::linkat(&directory, *target_name, parent, name, AtFlags::empty())?)
}

fn link_target(entry: &Entry<'_, impl Read>) -> io::Result<Vec<u8>> {
    let target = entry.link_name_bytes().ok_or_else(|| invalid("a link has no target"))?;
    Ok(target.into_owned())
}

/// Makes room for a new entry: what is there goes, unless it is a directory with something in it.
fn remove(parent: impl AsFd, name: &OsStr) -> io::Result<()> {
    match fs::unlinkat(&parent, name, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR) => Ok(fs::unlinkat(&parent, name, AtFlags::REMOVEDIR)?),
        removed => Ok(removed?),
    }
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}
