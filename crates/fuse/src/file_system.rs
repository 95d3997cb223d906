//! Answers the kernel.
//!
//! Invariants:
//! - a thread that answers the kernel never waits for the source: what is not in memory is answered by others;
//! - everything below the root is answered from memory but the contents of files;
//! - what was answered once stays true, so the kernel keeps it for ever: also that a name is not there, but at the root;
//! - nothing here panics, which would take the mount down.

use crate::ahead;
use crate::counts::{Stats, Upcalls, count};
use crate::fetches::{Fetches, ReadFailed};
use crate::late::Late;
use crate::loads::{Found, Loads};
use crate::options::{LOOKUP_DEADLINE, READ_DEADLINE};
use crate::overlay::Overlay;
use crate::place::{Entry, Place, directory_attr, nothing};
use crate::refusal::Refuse;
use crate::table::{Shown, Table};
use crate::tree::Kind;
use crate::views::{self, Node, Views};
use fuser::{
    AccessFlags, Errno, FileHandle, Filesystem, Generation, INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags,
    ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyXattr, Request,
};
use shoal_wire::nix::store_path::StorePath;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// What never changes is kept by the kernel for so long: ten years, since it takes no word for ever.
pub const FOREVER: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Reads that the kernel has under way for nobody in particular, which is what it reads ahead.
const BACKGROUND_MAX: u16 = 64;
/// Longest request that is not a read; nothing is written here.
const WRITE_LEN_MAX: u32 = 128 << 10;
/// Longest name that the kernel takes.
pub const NAME_LEN_MAX: usize = 255;

/// What the file system shares with the mount that runs it.
pub struct Shared {
    pub table: Arc<Table>,
    pub loads: Arc<Loads>,
    pub fetches: Arc<Fetches>,
    pub views: Arc<Views>,
    /// What the directory had before, where that is shown.
    pub overlay: Option<Arc<Overlay>>,
    /// Whoever asks for what the kernel has from an earlier server.
    pub late: Arc<Late>,
    /// Of a mount that somebody else served before: to ask what the kernel knows.
    pub device: OnceLock<OwnedFd>,
    /// Whether the kernel asks again what was not answered, when it is told to.
    pub asks_again: AtomicBool,
    pub upcalls: Upcalls,
    /// Nobody answers the kernel any more.
    pub has_ended: AtomicBool,
    /// The next server goes on with the mount, and is asked what is not answered here.
    pub is_left: AtomicBool,
}

#[derive(Clone)]
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
            expected_chunks: get(&counts.expected_chunks),
            paths: paths as u64,
            files,
        }
    }

    fn read(self: &Arc<Self>, entry: &Entry, offset: u64, size: u32, reply: ReplyData) {
        let (shown, number) = (&entry.shown, entry.number);
        let (file_size, contents_at) = match shown.tree.kind(number) {
            Some(Kind::Regular { size, offset, .. }) => (size, offset),
            Some(Kind::Directory { .. }) => return reply.error(Errno::EISDIR),
            _ => return reply.error(Errno::EINVAL),
        };
        let from = contents_at + offset.min(file_size);
        let to = from.saturating_add(u64::from(size)).min(contents_at + file_size);
        let pieces = shown.tree.pieces(from..to);
        self.views.note_read(shown, number, &(from - contents_at..to - contents_at));
        pieces.iter().for_each(|piece| shown.note_read(piece.number));
        let needed = pieces.first().map_or(0, |piece| piece.number)..pieces.last().map_or(0, |piece| piece.number + 1);
        let (shared, of) = (self.clone(), shown.clone());
        let answer = move |bytes: Result<&[u8], ReadFailed>| match bytes {
            Ok(bytes) => reply.data(bytes),
            Err(ReadFailed) => {
                // First, so that no build ends before it is known that it was given an error.
                shared.views.failed(&of);
                shared.refuse(reply, Errno::EIO);
            }
        };
        let waits = self.fetches.read(shown, pieces, Box::new(answer));
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

    fn look_up_at_root(self: &Arc<Self>, name: &OsStr, reply: ReplyEntry) {
        if name == crate::greeting::NAME
            && let Some(attr) = Place::Greeting.attr()
        {
            return reply.entry(&FOREVER, &attr, Generation(0));
        }
        if let Some(view) = self.views.by_name(name.as_bytes()) {
            return reply.entry(&FOREVER, &directory_attr(view.top()), Generation(0));
        }
        match &self.overlay {
            Some(overlay) => {
                let shared = self.clone();
                overlay.look_up_first(name, reply, move |name, reply| shared.look_up_path(name, reply));
            }
            None => self.look_up_path(name, reply),
        }
    }

    fn look_up_path(self: &Arc<Self>, name: &OsStr, reply: ReplyEntry) {
        let Some(name) = name.to_str().filter(|name| StorePath::from_base_name(name).is_ok()) else {
            return reply.error(Errno::ENOENT);
        };
        if let Some(shown) = self.table.by_name(name) {
            return self.enter(&Entry::top(shown, 0), reply, self.path_ttl());
        }
        let shared = self.clone();
        let tell = move |found| match found {
            Found::Path(shown) => shared.enter(&Entry::top(shown, 0), reply, shared.path_ttl()),
            Found::Nothing => shared.refuse(reply, Errno::ENOENT),
            Found::NoRoom | Found::Failed => shared.refuse(reply, Errno::EIO),
        };
        self.loads.look_up(name, Box::new(tell));
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

impl Shared {
    /// Answers with the place of a node. Where the kernel has it from an earlier server, that is when its path is in
    /// memory again, if that takes no longer than `patience`.
    pub fn with_place<R: Refuse>(
        self: &Arc<Self>,
        node: u64,
        patience: Duration,
        reply: R,
        answer: impl FnOnce(&Arc<Shared>, Place, R) + Send + 'static,
    ) {
        if let Some(place) = self.place(node) {
            return answer(self, place, reply);
        }
        // Views are never gone on with.
        let Some(name) = self.table.reserved(node & u64::from(u32::MAX)).filter(|_| node >> 32 == 0) else {
            return self.refuse(reply, Errno::ESTALE);
        };
        let shared = self.clone();
        self.late.wait(name, patience, move || match shared.place(node) {
            Some(place) => answer(&shared, place, reply),
            None => shared.refuse(reply, Errno::ESTALE),
        });
    }

    fn enter(&self, entry: &Entry, reply: ReplyEntry, ttl: &Duration) {
        match entry.attr() {
            // Before the kernel knows it, so that it is never forgotten before.
            Some(attr) if self.table.give(&entry.shown) => reply.entry(ttl, &attr, Generation(0)),
            // Gone since it was found: it is looked up anew.
            Some(_) => reply.error(Errno::ESTALE),
            None => reply.error(Errno::EIO),
        }
    }

    fn look_up(self: &Arc<Self>, parent: Place, name: &OsStr, reply: ReplyEntry) {
        match parent {
            Place::Root => self.look_up_at_root(name, reply),
            Place::View(view) if name == views::STORE => {
                reply.entry(&FOREVER, &directory_attr(view.store()), Generation(0));
            }
            Place::ViewStore(view) => match view.path(name.as_bytes()) {
                Some(shown) => self.enter(&Entry::top(shown.clone(), view.number()), reply, &FOREVER),
                None => reply.entry(&FOREVER, &nothing(), Generation(0)),
            },
            Place::Entry(entry) => match entry.shown.tree.child(entry.number, name.as_bytes()) {
                Some(number) => self.enter(&entry.other(number), reply, &FOREVER),
                None => reply.entry(&FOREVER, &nothing(), Generation(0)),
            },
            Place::View(_) => reply.error(Errno::ENOENT),
            Place::Greeting => reply.error(Errno::ENOTDIR),
        }
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
        let asks_again = config.add_capabilities(InitFlags::FUSE_HAS_RESEND).is_ok();
        self.0.asks_again.store(asks_again, Ordering::Release);
        // Both are within what the kernel and the library take.
        let _ = config.set_max_background(BACKGROUND_MAX);
        let _ = config.set_max_write(WRITE_LEN_MAX);
        // An overlay may lie on this.
        let _ = config.set_max_stack_depth(1);
        Ok(())
    }

    fn destroy(&mut self) {
        self.0.has_ended.store(true, Ordering::Release);
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        count(&self.0.upcalls.lookup);
        if let Some(overlay) = self.0.overlay_of(parent.0) {
            return overlay.look_up(parent.0, name, reply);
        }
        let name = name.to_owned();
        self.0.with_place(parent.0, LOOKUP_DEADLINE, reply, move |shared, place, reply| {
            shared.look_up(place, &name, reply);
        });
    }

    fn forget(&self, _: &Request, node: INodeNo, lookups: u64) {
        count(&self.0.upcalls.forget);
        if let Some(overlay) = self.0.overlay_of(node.0) {
            return overlay.forgotten(node.0, lookups);
        }
        match views::divide(node.0) {
            Some((_, Node::Top | Node::Store)) => {}
            Some((_, Node::Inside(node))) => self.0.table.forgotten(node, lookups),
            None => self.0.table.forgotten(node.0, lookups),
        }
    }

    fn getattr(&self, _: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        count(&self.0.upcalls.getattr);
        if let Some(overlay) = self.0.overlay_of(node.0) {
            return overlay.tell_attr(node.0, reply);
        }
        if let Some(overlay) = self.0.overlay.as_ref().filter(|_| node == INodeNo::ROOT) {
            return overlay.tell_top(reply);
        }
        self.0.with_place(node.0, LOOKUP_DEADLINE, reply, |_, place, reply| match place.attr() {
            Some(attr) => reply.attr(&FOREVER, &attr),
            None => reply.error(Errno::EIO),
        });
    }

    fn readlink(&self, _: &Request, node: INodeNo, reply: ReplyData) {
        count(&self.0.upcalls.readlink);
        if let Some(overlay) = self.0.overlay_of(node.0) {
            return overlay.tell_target(node.0, reply);
        }
        self.0.with_place(node.0, LOOKUP_DEADLINE, reply, |_, place, reply| match place.target() {
            Some(target) => reply.data(target),
            None => reply.error(Errno::EINVAL),
        });
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
        if let Some(overlay) = self.0.overlay_of(node.0) {
            return overlay.read(node.0, offset, size, reply);
        }
        self.0.with_place(node.0, READ_DEADLINE, reply, move |shared, place, reply| match place {
            Place::Entry(entry) => shared.read(&entry, offset, size, reply),
            // The greeting is empty.
            Place::Greeting => reply.data(&[]),
            Place::Root | Place::View(_) | Place::ViewStore(_) => reply.error(Errno::EISDIR),
        });
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
