//! The directory that a mount lies over, as it was before: what it has goes on being shown.
//!
//! Invariants:
//! - nothing is written, and no symlink is followed on the way to an entry;
//! - a node is one state of one entry. What has another inode, time or size is another node, so what the kernel keeps of
//!   a node stays true; the kernel asks again after [`TTL`] which node a name is;
//! - every method waits for a disk, so none is called by a thread that answers the kernel.

use crate::table::ROOT;
use fuser::{Errno, FileAttr, FileType, INodeNo};
use rustix::fs::{CWD, Dir, FileType as Kind, Mode, OFlags, ResolveFlags, Stat, fstat, openat, openat2, readlinkat};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long the kernel takes a name for what it was: paths that somebody else adds are seen at once, those that he
/// removes or writes to after so long.
pub const TTL: Duration = Duration::from_secs(1);
/// Nodes here have this bit, and no others have.
const BENEATH: u64 = 1 << 63;
/// More than a million entries are not looked up in a millisecond.
const NUMBERS_A_MS_BITS: u32 = 20;
/// Places in a listing of what is here have this bit, which those of store paths have not.
const PLACE: u64 = 1 << 62;
/// Entries that the kernel knows at a time; some 200 bytes each.
const NODES_MAX: usize = 4 << 20;

pub struct Beneath {
    dir: OwnedFd,
    nodes: Mutex<Nodes>,
}

#[derive(Default)]
struct Nodes {
    by_number: HashMap<u64, Known>,
    /// The last state of each path that the kernel was given.
    by_path: HashMap<Arc<[u8]>, u64>,
    last: u64,
}

struct Known {
    /// From the directory.
    path: Arc<[u8]>,
    state: State,
    lookups: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct State {
    device: u64,
    inode: u64,
    mode: u32,
    size: u64,
    changed: (i64, i64),
}

/// A name in a directory.
pub struct Listed {
    /// Where it is in a listing: no other name changes it.
    pub place: u64,
    pub name: Vec<u8>,
    kind: Kind,
}

/// Whether a node is of a directory beneath.
pub fn is_beneath(node: u64) -> bool {
    node & BENEATH != 0
}

/// Whether a listing has come so far that only what is beneath is left.
pub fn is_place(offset: u64) -> bool {
    offset & PLACE != 0
}

impl Beneath {
    /// Opens a directory before something is mounted there.
    pub fn open(dir: &Path) -> io::Result<Beneath> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Beneath::at(openat(CWD, dir, flags, Mode::empty())?))
    }

    pub fn at(dir: OwnedFd) -> Beneath {
        // The kernel may have numbers of an earlier server, which mean nothing any more: all here are greater.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let last = (since.as_millis() as u64) << NUMBERS_A_MS_BITS & !BENEATH;
        Beneath { dir, nodes: Mutex::new(Nodes { last, ..Nodes::default() }) }
    }

    pub fn dir(&self) -> io::Result<OwnedFd> {
        self.dir.try_clone()
    }

    fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the directory itself is like.
    pub fn top(&self) -> io::Result<FileAttr> {
        Ok(attr(ROOT, &fstat(&self.dir)?))
    }

    /// When something last came into the directory or went.
    pub fn changed_at(&self) -> io::Result<SystemTime> {
        Ok(modified(&fstat(&self.dir)?))
    }

    /// Gives the kernel the node that a name is now; counted until it is forgotten.
    pub fn look_up(&self, parent: u64, name: &[u8]) -> Result<FileAttr, Errno> {
        let path = self.path_in(parent, name)?;
        let stat = fstat(self.open_at(&path, OFlags::PATH)?).map_err(errno)?;
        let number = self.nodes().enter(path, State::of(&stat)).ok_or(Errno::ENOMEM)?;
        Ok(attr(number, &stat))
    }

    pub fn forgotten(&self, node: u64, lookups: u64) {
        self.nodes().forget(node, lookups);
    }

    pub fn attr(&self, node: u64) -> Result<FileAttr, Errno> {
        let (path, state) = self.known(node)?;
        let stat = fstat(self.open_at(&path, OFlags::PATH)?).map_err(errno)?;
        // Who is in a directory stays in it while it changes.
        match state.is_same_entry(&State::of(&stat)) {
            true => Ok(attr(node, &stat)),
            false => Err(Errno::ESTALE),
        }
    }

    pub fn target(&self, node: u64) -> Result<Vec<u8>, Errno> {
        let (path, _) = self.known(node)?;
        let link = self.open_at(&path, OFlags::PATH)?;
        Ok(readlinkat(link, c"", Vec::new()).map_err(errno)?.into_bytes())
    }

    /// Bytes of a file, fewer than `size` only at its end.
    pub fn read(&self, node: u64, offset: u64, size: u32) -> Result<Vec<u8>, Errno> {
        let (path, state) = self.known(node)?;
        // The kernel asks only for what it was told to be a regular file; opening a pipe would wait.
        if Kind::from_raw_mode(state.mode) != Kind::RegularFile {
            return Err(Errno::EINVAL);
        }
        let file = self.open_at(&path, OFlags::RDONLY | OFlags::NONBLOCK)?;
        if State::of(&fstat(&file).map_err(errno)?) != state {
            return Err(Errno::ESTALE);
        }
        let mut bytes = vec![0; size as usize];
        let mut len = 0;
        while len < bytes.len() {
            match rustix::io::pread(&file, &mut bytes[len..], offset + len as u64) {
                Ok(0) => break,
                Ok(read) => len += read,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(errno(error)),
            }
        }
        bytes.truncate(len);
        Ok(bytes)
    }

    /// What a directory has, in the order of places.
    pub fn list(&self, node: u64) -> Result<Vec<Listed>, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let dir = match node {
            ROOT => openat(&self.dir, c".", flags | OFlags::CLOEXEC, Mode::empty()).map_err(errno)?,
            node => self.open_at(&self.known(node)?.0, flags)?,
        };
        let mut listed = Vec::new();
        for entry in Dir::new(dir).map_err(errno)? {
            let entry = entry.map_err(errno)?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                listed.push(Listed { place: place(name), name: name.to_vec(), kind: entry.file_type() });
            }
        }
        listed.sort_unstable_by_key(|listed| listed.place);
        Ok(listed)
    }

    fn path_in(&self, parent: u64, name: &[u8]) -> Result<Arc<[u8]>, Errno> {
        if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') {
            return Err(Errno::ENOENT);
        }
        match parent {
            ROOT => Ok(name.into()),
            parent => Ok([&*self.known(parent)?.0, b"/", name].concat().into()),
        }
    }

    fn known(&self, node: u64) -> Result<(Arc<[u8]>, State), Errno> {
        let nodes = self.nodes();
        let known = nodes.by_number.get(&node).ok_or(Errno::ESTALE)?;
        Ok((known.path.clone(), known.state))
    }

    fn open_at(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // With `PATH` a symlink at the end is opened as itself.
        let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        openat2(&self.dir, path, flags, Mode::empty(), within).map_err(errno)
    }
}

impl Nodes {
    /// The number of a path in this state; `None` where there is no room for it.
    fn enter(&mut self, path: Arc<[u8]>, state: State) -> Option<u64> {
        if let Some(&number) = self.by_path.get(&path)
            && let Some(known) = self.by_number.get_mut(&number).filter(|known| known.state == state)
        {
            known.lookups += 1;
            return Some(number);
        }
        if self.by_number.len() >= NODES_MAX {
            return None;
        }
        self.last += 1;
        let number = BENEATH | self.last;
        self.by_path.insert(path.clone(), number);
        self.by_number.insert(number, Known { path, state, lookups: 1 });
        Some(number)
    }

    fn forget(&mut self, number: u64, lookups: u64) {
        let Some(known) = self.by_number.get_mut(&number) else { return };
        known.lookups = known.lookups.saturating_sub(lookups);
        if known.lookups > 0 {
            return;
        }
        if let Some(known) = self.by_number.remove(&number)
            && self.by_path.get(&known.path) == Some(&number)
        {
            self.by_path.remove(&known.path);
        }
    }
}

impl State {
    fn of(stat: &Stat) -> State {
        State {
            device: stat.st_dev,
            inode: stat.st_ino,
            mode: stat.st_mode,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            changed: (stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or(0)),
        }
    }

    fn is_same_entry(&self, other: &State) -> bool {
        let is_directory = Kind::from_raw_mode(self.mode) == Kind::Directory;
        self == other || (is_directory && (self.device, self.inode) == (other.device, other.inode))
    }
}

impl Listed {
    /// What a listing without attributes says of it.
    pub fn attr(&self) -> FileAttr {
        FileAttr { ino: INodeNo(BENEATH | self.place), kind: kind(self.kind), ..crate::place::nothing() }
    }
}

fn place(name: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    PLACE | hasher.finish() >> 2
}

fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_i32(error.raw_os_error())
}

fn kind(kind: Kind) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::CharacterDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::RegularFile | Kind::Unknown => FileType::RegularFile,
    }
}

fn modified(stat: &Stat) -> SystemTime {
    let seconds = Duration::from_secs(u64::try_from(stat.st_mtime).unwrap_or(0));
    UNIX_EPOCH + seconds + Duration::from_nanos(stat.st_mtime_nsec)
}

fn attr(number: u64, stat: &Stat) -> FileAttr {
    let time = modified(stat);
    FileAttr {
        ino: INodeNo(number),
        size: u64::try_from(stat.st_size).unwrap_or(0),
        blocks: u64::try_from(stat.st_blocks).unwrap_or(0),
        atime: time,
        mtime: time,
        ctime: time,
        kind: kind(Kind::from_raw_mode(stat.st_mode)),
        perm: (stat.st_mode & 0o7777) as u16,
        nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: u32::try_from(stat.st_rdev).unwrap_or(0),
        ..crate::place::nothing()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn beneath() -> (tempfile::TempDir, Beneath) {
        let dir = tempfile::tempdir().unwrap();
        let beneath = Beneath::open(dir.path()).unwrap();
        (dir, beneath)
    }

    #[test]
    fn what_changes_is_another_node_and_a_node_is_never_something_else() {
        let (dir, beneath) = beneath();
        fs::write(dir.path().join("a"), "one").unwrap();
        let first = beneath.look_up(ROOT, b"a").unwrap();
        assert_eq!(beneath.look_up(ROOT, b"a").unwrap().ino, first.ino);
        fs::write(dir.path().join("a"), "three").unwrap();
        assert_eq!(beneath.read(first.ino.0, 0, 10).unwrap_err().code(), Errno::ESTALE.code());
        let second = beneath.look_up(ROOT, b"a").unwrap();
        assert_ne!(second.ino, first.ino);
        assert_eq!(beneath.read(second.ino.0, 1, 3).unwrap(), b"hre");
        beneath.forgotten(first.ino.0, 1);
        assert_eq!(beneath.nodes().by_number.len(), 2, "it was given twice");
        beneath.forgotten(first.ino.0, 1);
        beneath.forgotten(second.ino.0, 1);
        let nodes = beneath.nodes();
        assert!(nodes.by_number.is_empty() && nodes.by_path.is_empty());
    }

    #[test]
    fn no_symlink_leads_out_of_it() {
        let (dir, beneath) = beneath();
        fs::create_dir(dir.path().join("d")).unwrap();
        fs::write(dir.path().join("d/file"), "inside").unwrap();
        let d = beneath.look_up(ROOT, b"d").unwrap().ino.0;
        let file = beneath.look_up(d, b"file").unwrap().ino.0;
        assert_eq!(beneath.read(file, 0, 100).unwrap(), b"inside");
        fs::rename(dir.path().join("d"), dir.path().join("e")).unwrap();
        symlink("/etc", dir.path().join("d")).unwrap();
        assert!(beneath.look_up(d, b"passwd").is_err());
        assert!(beneath.list(d).is_err());
        let link = beneath.look_up(ROOT, b"d").unwrap();
        assert_eq!((link.kind, beneath.target(link.ino.0).unwrap()), (FileType::Symlink, b"/etc".to_vec()));
        for name in [&b""[..], b".", b"..", b"../etc", b"d/passwd"] {
            assert!(beneath.look_up(ROOT, name).is_err());
        }
    }
}
