//! Answers the kernel.
//!
//! Invariants:
//! - a thread that answers the kernel never waits for the source: what is not in memory is answered by others;
//! - everything below the root is answered from memory but the contents of files;
//! - what was answered once stays true, so the kernel keeps it for ever: also that a name is not there, but at the root;
//! - nothing here panics, which would take the mount down.

use crate::ahead;
use crate::counts::{Stats, Upcalls, count};
use crate::fetches::Fetches;
use crate::loads::{Found, Loads};
use crate::table::{GREETING, ROOT, Shown, Table};
use crate::tree::{Kind, Tree};
use fuser::{
    AccessFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};
use shoal_wire::nix::store_path::StorePath;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What never changes is kept by the kernel for so long: ten years, since it takes no word for ever.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Reads that the kernel has under way for nobody in particular, which is what it reads ahead.
const BACKGROUND_MAX: u16 = 64;
/// Longest request that is not a read; nothing is written here.
const WRITE_LEN_MAX: u32 = 128 << 10;
/// Longest name that the kernel takes.
const NAME_LEN_MAX: usize = 255;
/// Bytes that `stat` calls a block.
const BLOCK_LEN: u64 = 512;
/// Offsets in a listing: after `.`, after `..`, and from there what comes next.
const AFTER_DOT: u64 = 1;
const AFTER_DOTS: u64 = 2;

/// What the file system shares with the mount that runs it.
pub struct Shared {
    pub table: Arc<Table>,
    pub loads: Arc<Loads>,
    pub fetches: Arc<Fetches>,
    pub upcalls: Upcalls,
}

pub struct FileSystem(pub Arc<Shared>);

impl Shared {
    pub fn stats(&self) -> Stats {
        let get = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let (upcalls, counts) = (&self.upcalls, &self.fetches.counts);
        let (paths, files) = self.table.size();
        Stats {
            lookups: get(&upcalls.lookup),
            getattrs: get(&upcalls.getattr),
            readlinks: get(&upcalls.readlink),
            opens: get(&upcalls.open),
            reads: get(&upcalls.read),
            readdirs: get(&upcalls.readdir),
            forgets: get(&upcalls.forget),
            others: get(&upcalls.other),
            waited_reads: get(&counts.waited_reads),
            failed_reads: get(&counts.failed_reads),
            asked_chunks: get(&counts.asked_chunks),
            fetched_bytes: get(&counts.fetched_bytes),
            corrupt_chunks: get(&counts.corrupt_chunks),
            paths: paths as u64,
            files,
        }
    }

    fn read(&self, shown: &Arc<Shown>, number: u32, offset: u64, size: u32, reply: ReplyData) {
        let (file_size, contents_at) = match shown.tree.kind(number) {
            Some(Kind::Regular { size, offset, .. }) => (size, offset),
            Some(Kind::Directory { .. }) => return reply.error(Errno::EISDIR),
            _ => return reply.error(Errno::EINVAL),
        };
        let from = contents_at + offset.min(file_size);
        let to = from.saturating_add(u64::from(size)).min(contents_at + file_size);
        let pieces = shown.tree.pieces(from..to);
        let needed = pieces.first().map_or(0, |piece| piece.number)..pieces.last().map_or(0, |piece| piece.number + 1);
        let waits = self.fetches.read(
            shown,
            pieces,
            Box::new(|bytes| match bytes {
                Ok(bytes) => reply.data(bytes),
                Err(_) => reply.error(Errno::EIO),
            }),
        );
        if needed.is_empty() {
            return;
        }
        if waits {
            self.bring_near(shown, ahead::first_touch(&shown.tree, number));
        }
        let file = shown.tree.chunks_of(contents_at..contents_at + file_size);
        let window = ahead::window(&file, &needed);
        let are_near = self.fetches.are_near(shown, window.clone());
        let is_near = |chunk: usize| are_near.get(chunk.wrapping_sub(window.start)).copied().unwrap_or(false);
        let next = ahead::read_ahead(&file, &needed, is_near);
        if !next.is_empty() {
            self.fetches.read_ahead(shown, next);
        }
    }

    /// Has chunks brought near that were not before.
    fn bring_near(&self, shown: &Arc<Shown>, chunks: std::ops::Range<usize>) {
        let mut new: Option<std::ops::Range<usize>> = None;
        for chunk in chunks {
            match (shown.hint(chunk), &mut new) {
                (true, Some(run)) if run.end == chunk => run.end += 1,
                (true, run) => {
                    if let Some(run) = run.replace(chunk..chunk + 1) {
                        self.fetches.bring_near(shown, run);
                    }
                }
                (false, _) => {}
            }
        }
        if let Some(run) = new {
            self.fetches.bring_near(shown, run);
        }
    }
}

/// The attributes of an entry, whose node has this number.
fn attributes(tree: &Tree, number: u32, node: u64) -> Option<FileAttr> {
    Some(match tree.kind(number)? {
        Kind::Regular { executable, size, .. } => {
            attr(node, FileType::RegularFile, if executable { 0o555 } else { 0o444 }, size)
        }
        Kind::Directory { .. } => attr(node, FileType::Directory, 0o555, 0),
        Kind::Symlink { target_len } => attr(node, FileType::Symlink, 0o777, target_len),
    })
}

fn attr(node: u64, kind: FileType, perm: u16, size: u64) -> FileAttr {
    // What every file of a Nix store has: a second after the beginning.
    let time: SystemTime = UNIX_EPOCH + Duration::from_secs(1);
    FileAttr {
        ino: INodeNo(node),
        size,
        blocks: size.div_ceil(BLOCK_LEN),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind,
        perm,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// Attributes of nodes that are of no path.
fn own_attr(node: u64) -> Option<FileAttr> {
    match node {
        ROOT => Some(root_attr()),
        GREETING => Some(attr(GREETING, FileType::RegularFile, 0o444, 0)),
        _ => None,
    }
}

fn root_attr() -> FileAttr {
    attr(ROOT, FileType::Directory, 0o555, 0)
}

/// What the kernel takes for: this name is not there, and will not be.
fn nothing() -> FileAttr {
    attr(0, FileType::RegularFile, 0, 0)
}

fn enter(shown: &Shown, number: u32, reply: ReplyEntry) {
    let node = shown.node(number);
    match attributes(&shown.tree, number, node) {
        Some(attr) => {
            // Before the kernel knows it, so that it is never forgotten before.
            shown.looked_up();
            reply.entry(&FOREVER, &attr, Generation(0));
        }
        None => reply.error(Errno::EIO),
    }
}

/// A listing that is being answered: with attributes, or without.
trait Listing: Send + 'static {
    /// Whether it is full, and this was not added.
    fn entry(&mut self, after: u64, name: &[u8], attr: &FileAttr) -> bool;
    /// Whether the kernel takes entries as looked up.
    fn looks_up(&self) -> bool;
    fn end(self);
    fn fail(self);
}

impl Listing for ReplyDirectory {
    fn entry(&mut self, after: u64, name: &[u8], attr: &FileAttr) -> bool {
        self.add(attr.ino, after, attr.kind, OsStr::from_bytes(name))
    }

    fn looks_up(&self) -> bool {
        false
    }

    fn end(self) {
        self.ok();
    }

    fn fail(self) {
        self.error(Errno::EIO);
    }
}

impl Listing for ReplyDirectoryPlus {
    fn entry(&mut self, after: u64, name: &[u8], attr: &FileAttr) -> bool {
        self.add(attr.ino, after, OsStr::from_bytes(name), &FOREVER, attr, Generation(0))
    }

    fn looks_up(&self) -> bool {
        true
    }

    fn end(self) {
        self.ok();
    }

    fn fail(self) {
        self.error(Errno::EIO);
    }
}

/// `.` and `..`, which the kernel never takes as looked up. Whether there is room for more.
fn dots(listing: &mut impl Listing, offset: u64, own: &FileAttr, parent: &FileAttr) -> bool {
    let is_full = (offset < AFTER_DOT && listing.entry(AFTER_DOT, b".", own))
        || (offset < AFTER_DOTS && listing.entry(AFTER_DOTS, b"..", parent));
    !is_full
}

impl Shared {
    fn list(self: &Arc<Self>, node: u64, offset: u64, listing: impl Listing) {
        if node != ROOT {
            return self.list_directory(node, offset, listing);
        }
        let shared = self.clone();
        self.loads.when_listed(Box::new(move |is_listed| match is_listed {
            true => shared.list_root(offset, listing),
            false => listing.fail(),
        }));
    }

    fn list_root(&self, offset: u64, mut listing: impl Listing) {
        if dots(&mut listing, offset, &root_attr(), &root_attr()) {
            // Offsets are the numbers of nodes, of which the first few are not given out.
            self.table.list(offset.max(AFTER_DOTS), |shown| {
                let number = shown.tree.root();
                let Some(attr) = attributes(&shown.tree, number, shown.node(number)) else { return true };
                let is_full = listing.entry(shown.node(0) + 1, shown.name.as_bytes(), &attr);
                if !is_full && listing.looks_up() {
                    shown.looked_up();
                }
                !is_full
            });
        }
        listing.end();
    }

    fn list_directory(&self, node: u64, offset: u64, mut listing: impl Listing) {
        let Some((shown, number)) = self.table.by_node(node) else { return listing.fail() };
        let Some(Kind::Directory { children }) = shown.tree.kind(number) else { return listing.fail() };
        let own = attr(node, FileType::Directory, 0o555, 0);
        let parent = shown.tree.parent(number).map_or(ROOT, |parent| shown.node(parent));
        if dots(&mut listing, offset, &own, &FileAttr { ino: INodeNo(parent), ..own }) {
            let first = offset.saturating_sub(AFTER_DOTS);
            for (place, child) in children.enumerate().skip(usize::try_from(first).unwrap_or(usize::MAX)) {
                let name = shown.tree.name(child);
                let Some(attr) = attributes(&shown.tree, child, shown.node(child)) else { continue };
                if name.len() > NAME_LEN_MAX {
                    // Nobody could open it.
                    continue;
                }
                if listing.entry(AFTER_DOTS + place as u64 + 1, name, &attr) {
                    break;
                }
                if listing.looks_up() {
                    shown.looked_up();
                }
            }
        }
        listing.end();
    }
}

impl Filesystem for FileSystem {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = [
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_NO_OPEN_SUPPORT,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
        ];
        for flag in wanted {
            // An old kernel has less, and is slower.
            if config.add_capabilities(flag).is_err() {
                tracing::info!(?flag, "the kernel's file systems in user space lack something");
            }
        }
        // Both are within what the kernel and the library take.
        let _ = config.set_max_background(BACKGROUND_MAX);
        let _ = config.set_max_write(WRITE_LEN_MAX);
        // An overlay may lie on this.
        let _ = config.set_max_stack_depth(1);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        count(&self.0.upcalls.lookup);
        if parent.0 == ROOT {
            if name == crate::greeting::NAME
                && let Some(attr) = own_attr(GREETING)
            {
                return reply.entry(&FOREVER, &attr, Generation(0));
            }
            let Some(name) = name.to_str().filter(|name| StorePath::from_base_name(name).is_ok()) else {
                return reply.error(Errno::ENOENT);
            };
            if let Some(shown) = self.0.table.by_name(name) {
                return enter(&shown, shown.tree.root(), reply);
            }
            let tell = |found| match found {
                Found::Path(shown) => enter(&shown, shown.tree.root(), reply),
                Found::Nothing => reply.error(Errno::ENOENT),
                Found::Failed => reply.error(Errno::EIO),
            };
            return self.0.loads.look_up(name, Box::new(tell));
        }
        let Some((shown, directory)) = self.0.table.by_node(parent.0) else { return reply.error(Errno::ESTALE) };
        match shown.tree.child(directory, name.as_bytes()) {
            Some(number) => enter(&shown, number, reply),
            None => reply.entry(&FOREVER, &nothing(), Generation(0)),
        }
    }

    fn forget(&self, _: &Request, node: INodeNo, lookups: u64) {
        count(&self.0.upcalls.forget);
        self.0.table.forgotten(node.0, lookups);
    }

    fn getattr(&self, _: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        count(&self.0.upcalls.getattr);
        let of_path = || {
            let (shown, number) = self.0.table.by_node(node.0)?;
            attributes(&shown.tree, number, node.0)
        };
        match own_attr(node.0).or_else(of_path) {
            Some(attr) => reply.attr(&FOREVER, &attr),
            None => reply.error(Errno::ESTALE),
        }
    }

    fn readlink(&self, _: &Request, node: INodeNo, reply: ReplyData) {
        count(&self.0.upcalls.readlink);
        let Some((shown, number)) = self.0.table.by_node(node.0) else { return reply.error(Errno::ESTALE) };
        match shown.tree.target(number) {
            Some(target) => reply.data(target),
            None => reply.error(Errno::EINVAL),
        }
    }

    /// From the first such answer on the kernel opens files without asking.
    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        count(&self.0.upcalls.open);
        reply.error(Errno::ENOSYS);
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        count(&self.0.upcalls.open);
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        _: &Request,
        node: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        count(&self.0.upcalls.read);
        match self.0.table.by_node(node.0) {
            Some((shown, number)) => self.0.read(&shown, number, offset, size, reply),
            None => reply.error(Errno::ESTALE),
        }
    }

    fn readdir(&self, _: &Request, node: INodeNo, _: FileHandle, offset: u64, reply: ReplyDirectory) {
        count(&self.0.upcalls.readdir);
        self.0.list(node.0, offset, reply);
    }

    fn readdirplus(&self, _: &Request, node: INodeNo, _: FileHandle, offset: u64, reply: ReplyDirectoryPlus) {
        count(&self.0.upcalls.readdir);
        self.0.list(node.0, offset, reply);
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        count(&self.0.upcalls.other);
        let (_, files) = self.0.table.size();
        reply.statfs(0, 0, 0, files, 0, 4096, NAME_LEN_MAX as u32, 4096);
    }

    /// The kernel judges by modes, and asks no more after this answer; so with what follows.
    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        count(&self.0.upcalls.other);
        reply.error(Errno::ENOSYS);
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        count(&self.0.upcalls.other);
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        count(&self.0.upcalls.other);
        reply.error(Errno::ENOSYS);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        count(&self.0.upcalls.other);
        reply.error(Errno::ENOSYS);
    }

    fn lseek(&self, _: &Request, _: INodeNo, _: FileHandle, _: i64, _: i32, reply: ReplyLseek) {
        count(&self.0.upcalls.other);
        reply.error(Errno::ENOSYS);
    }
}
