//! The directory that a mount lies over, as it was before: what it has goes on being shown.
//!
//! Invariants:
//! - nothing is written, and no symlink is followed on the way to an entry;
//! - a node is one state of one entry. What has another inode, time or size is another node, so what the kernel keeps of
//!   a node stays true; the kernel asks again after [`TTL`] which node a name is;
//! - a file that is read stays open as long as there is room for it, so whoever reads it goes on when its name is another
//!   file of the same contents by now, as after a store was optimised, or is gone;
//! - every method waits for a disk, so none is called by a thread that answers the kernel.

mod lists;
mod opened;

pub use lists::List;

use crate::table::ROOT;
use fuser::{Errno, FileAttr, FileType, INodeNo};
use lists::{Listed, Lists};
use opened::Opened;
use rustix::fs::{
    AtFlags, CWD, Dir, FileType as Kind, Mode, OFlags, ResolveFlags, Stat, StatxFlags, fstat, openat, openat2,
    readlinkat, statx,
};
use std::collections::HashMap;
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
/// From so many on the kernel is asked to forget some.
const NODES_MANY: usize = NODES_MAX / 4 * 3;
/// Names that the kernel is asked to forget at a time, with all that is in them.
const FORGOTTEN_AT_ONCE_MAX: usize = 1024;

pub struct Beneath {
    dir: OwnedFd,
    nodes: Mutex<Nodes>,
    opened: Opened,
    lists: Lists,
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
    stamp: Stamp,
    mode: u32,
    size: u64,
    /// When the inode came to be, where the file system says so: nobody can set that.
    born: Option<(i64, u32)>,
}

/// An inode, and when its contents and it itself last changed. All of a store was last modified at one time, and numbers
/// of inodes are used again: only the second time tells what was built anew from what was there before.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: (u64, u64),
    modified: (i64, i64),
    changed: (i64, i64),
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
        let nodes = Mutex::new(Nodes { last, ..Nodes::default() });
        Beneath { dir, nodes, opened: Opened::default(), lists: Lists::default() }
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
        let (stat, state) = state_of(&self.open_at(&path, OFlags::PATH)?)?;
        let number = self.nodes().enter(path, state).ok_or(Errno::ENOMEM)?;
        Ok(attr(number, &stat))
    }

    pub fn forgotten(&self, node: u64, lookups: u64) {
        if self.nodes().forget(node, lookups) {
            self.opened.close(node);
        }
    }

    /// Names of the directory that the kernel should forget, as it knows almost as much as there is room for.
    pub fn too_many(&self) -> Vec<Arc<[u8]>> {
        self.nodes().beyond(NODES_MANY)
    }

    pub fn attr(&self, node: u64) -> Result<FileAttr, Errno> {
        let (path, state) = self.known(node)?;
        let (stat, now) = state_of(&self.open_at(&path, OFlags::PATH)?)?;
        // Who is in a directory stays in it while it changes.
        match state.is_same_entry(&now, false) {
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
        let (file, was_open) = match self.opened.get(node) {
            Some(file) => (file, true),
            None => (Arc::new(self.open_at(&path, OFlags::RDONLY | OFlags::NONBLOCK)?), false),
        };
        if !state.is_same_entry(&state_of(&file)?.1, was_open) {
            return Err(Errno::ESTALE);
        }
        self.opened.keep(node, file.clone());
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

    /// What a directory has. For who begins with it, it is read anew.
    pub fn list(&self, node: u64, begins: bool) -> Result<Arc<List>, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let dir = match node {
            ROOT => openat(&self.dir, c".", flags | OFlags::CLOEXEC, Mode::empty()).map_err(errno)?,
            node => self.open_at(&self.known(node)?.0, flags)?,
        };
        // As it was before it is read, so that what comes meanwhile is not missed.
        let stamp = Stamp::of(&fstat(&dir).map_err(errno)?);
        if let Some(list) = self.lists.get(node, stamp).filter(|_| !begins) {
            return Ok(list);
        }
        let mut listed = Vec::new();
        for entry in Dir::new(dir).map_err(errno)? {
            let entry = entry.map_err(errno)?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                listed.push(Listed::new(name, entry.file_type()));
            }
        }
        let list = Arc::new(List::new(listed));
        self.lists.keep(node, stamp, list.clone());
        Ok(list)
    }

    /// All of a directory was told.
    pub fn is_told(&self, node: u64) {
        self.lists.forget(node);
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

    /// Whether the kernel does not know it any more.
    fn forget(&mut self, number: u64, lookups: u64) -> bool {
        let Some(known) = self.by_number.get_mut(&number) else { return true };
        known.lookups = known.lookups.saturating_sub(lookups);
        if known.lookups > 0 {
            return false;
        }
        if let Some(known) = self.by_number.remove(&number)
            && self.by_path.get(&known.path) == Some(&number)
        {
            self.by_path.remove(&known.path);
        }
        true
    }

    /// Names in the directory itself, some, if more than `many` nodes are known.
    fn beyond(&self, many: usize) -> Vec<Arc<[u8]>> {
        if self.by_number.len() <= many {
            return Vec::new();
        }
        let is_name = |path: &&Arc<[u8]>| !path.contains(&b'/');
        self.by_path.keys().filter(is_name).take(FORGOTTEN_AT_ONCE_MAX).cloned().collect()
    }
}

impl Stamp {
    fn of(stat: &Stat) -> Stamp {
        let nanos = |nanos| i64::try_from(nanos).unwrap_or(0);
        Stamp {
            inode: (stat.st_dev, stat.st_ino),
            modified: (stat.st_mtime, nanos(stat.st_mtime_nsec)),
            changed: (stat.st_ctime, nanos(stat.st_ctime_nsec)),
        }
    }
}

impl State {
    /// `is_held`: it was open since, so that its number is no other inode's.
    fn is_same_entry(&self, other: &State, is_held: bool) -> bool {
        if self.stamp.inode != other.stamp.inode || self.born != other.born {
            return false;
        }
        // A link more or less, or another mode, changes the inode and not the contents. Where nobody knows how old an inode
        // is, it may be another of that number.
        let has_same_contents = self.size == other.size
            && self.stamp.modified == other.stamp.modified
            && (is_held || self.born.is_some() || self.stamp.changed == other.stamp.changed);
        let [kind, other_kind] = [self.mode, other.mode].map(Kind::from_raw_mode);
        kind == other_kind && (kind == Kind::Directory || has_same_contents)
    }
}

fn state_of(entry: &OwnedFd) -> Result<(Stat, State), Errno> {
    let stat = fstat(entry).map_err(errno)?;
    // A kernel that has no such call knows of no time either.
    let born = statx(entry, c"", AtFlags::EMPTY_PATH, StatxFlags::BTIME).ok();
    let born = born.filter(|born| StatxFlags::from_bits_retain(born.stx_mask).contains(StatxFlags::BTIME));
    let state = State {
        stamp: Stamp::of(&stat),
        mode: stat.st_mode,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        born: born.map(|born| (born.stx_btime.tv_sec, born.stx_btime.tv_nsec)),
    };
    Ok((stat, state))
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
    use std::os::unix::fs::{MetadataExt, symlink};

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
        assert!(beneath.list(d, true).is_err());
        let link = beneath.look_up(ROOT, b"d").unwrap();
        assert_eq!((link.kind, beneath.target(link.ino.0).unwrap()), (FileType::Symlink, b"/etc".to_vec()));
        for name in [&b""[..], b".", b"..", b"../etc", b"d/passwd"] {
            assert!(beneath.look_up(ROOT, name).is_err());
        }
    }

    fn changed(file: &Path) -> (i64, i64) {
        let meta = fs::metadata(file).unwrap();
        (meta.ctime(), meta.ctime_nsec())
    }

    /// As Nix leaves files: last modified a second after the beginning.
    fn write_as_nix(file: &Path, contents: &str) {
        fs::write(file, contents).unwrap();
        let opened = fs::File::options().write(true).open(file).unwrap();
        opened.set_modified(UNIX_EPOCH + Duration::from_secs(1)).unwrap();
    }

    #[test]
    fn what_is_built_anew_is_another_node_though_its_size_and_time_are_the_same() {
        let (dir, beneath) = beneath();
        let file = dir.path().join("a");
        write_as_nix(&file, "one");
        let first = beneath.look_up(ROOT, b"a").unwrap();
        let before = changed(&file);
        // In the same inode, as if its number were used again. The clock of a file system is coarse.
        while changed(&file) == before {
            write_as_nix(&file, "two");
        }
        let second = beneath.look_up(ROOT, b"a").unwrap();
        assert_eq!((second.size, second.mtime), (first.size, first.mtime));
        assert_ne!(second.ino, first.ino);
    }

    #[test]
    fn who_reads_a_file_goes_on_when_another_has_its_name_or_none() {
        let (dir, beneath) = beneath();
        let [file, twin] = ["a", "twin"].map(|name| dir.path().join(name));
        write_as_nix(&file, "contents");
        write_as_nix(&twin, "contents");
        let node = beneath.look_up(ROOT, b"a").unwrap().ino.0;
        assert_eq!(beneath.read(node, 0, 3).unwrap(), b"con");
        fs::rename(&twin, &file).unwrap();
        assert_eq!(beneath.read(node, 3, 10).unwrap(), b"tents");
        assert_ne!(beneath.look_up(ROOT, b"a").unwrap().ino.0, node);
        fs::remove_file(&file).unwrap();
        assert_eq!(beneath.read(node, 0, 10).unwrap(), b"contents");
        beneath.forgotten(node, 1);
        assert!(beneath.opened.get(node).is_none());
    }

    #[test]
    fn a_link_more_makes_no_other_file_of_one_that_nobody_holds() {
        let (dir, beneath) = beneath();
        let file = dir.path().join("a");
        write_as_nix(&file, "contents");
        let node = beneath.look_up(ROOT, b"a").unwrap().ino.0;
        let is_age_known = beneath.known(node).unwrap().1.born.is_some();
        let before = changed(&file);
        let mut links = 0;
        while changed(&file) == before {
            fs::hard_link(&file, dir.path().join(format!("link{links}"))).unwrap();
            links += 1;
        }
        assert_eq!(beneath.read(node, 0, 10).is_ok(), is_age_known);
        assert_eq!(beneath.attr(node).is_ok(), is_age_known);
    }

    #[test]
    fn a_list_is_read_once_unless_somebody_begins_with_it_or_it_changed() {
        let (dir, beneath) = beneath();
        fs::write(dir.path().join("a"), "").unwrap();
        let first = beneath.list(ROOT, true).unwrap();
        assert!(Arc::ptr_eq(&first, &beneath.list(ROOT, false).unwrap()));
        assert!(!Arc::ptr_eq(&first, &beneath.list(ROOT, true).unwrap()));
        let before = changed(dir.path());
        let mut more = 0;
        while changed(dir.path()) == before {
            fs::write(dir.path().join(format!("more{more}")), "").unwrap();
            more += 1;
        }
        let list = beneath.list(ROOT, false).unwrap();
        assert!(list.has(b"a") && list.has(b"more0"));
        beneath.is_told(ROOT);
        assert!(!Arc::ptr_eq(&list, &beneath.list(ROOT, false).unwrap()));
    }

    #[test]
    fn names_in_the_directory_are_forgotten_when_too_much_is_known() {
        let (dir, beneath) = beneath();
        fs::create_dir(dir.path().join("d")).unwrap();
        fs::write(dir.path().join("d/file"), "").unwrap();
        let d = beneath.look_up(ROOT, b"d").unwrap().ino.0;
        beneath.look_up(d, b"file").unwrap();
        assert!(beneath.nodes().beyond(2).is_empty());
        assert_eq!(beneath.nodes().beyond(1), [Arc::from(&b"d"[..])]);
        assert!(beneath.too_many().is_empty());
    }
}
