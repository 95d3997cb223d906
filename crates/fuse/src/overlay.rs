//! A mount that shows what its directory has besides store paths: the directory's own names first.

use crate::beneath::{Beneath, List, TTL, is_beneath, is_place};
use crate::errands::{Errands, Pause};
use crate::file_system::Shared;
use crate::listing::{Listing, dots};
use crate::mount::Handle;
use crate::table::ROOT;
use fuser::{Errno, FileAttr, Generation, ReplyAttr, ReplyData, ReplyEntry};
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::SystemTime;

pub struct Overlay {
    beneath: Beneath,
    errands: Errands,
    /// As it was at first, where it cannot be asked any more.
    top: FileAttr,
}

impl Overlay {
    /// Of a directory that nothing is mounted at yet.
    pub fn start(dir: &Path) -> io::Result<(Arc<Overlay>, Pause, Vec<JoinHandle<()>>)> {
        Overlay::of(Beneath::open(dir)?)
    }

    /// Of one that was opened before.
    pub fn over(dir: OwnedFd) -> io::Result<(Arc<Overlay>, Pause, Vec<JoinHandle<()>>)> {
        Overlay::of(Beneath::at(dir))
    }

    fn of(beneath: Beneath) -> io::Result<(Arc<Overlay>, Pause, Vec<JoinHandle<()>>)> {
        let top = beneath.top()?;
        let (errands, pause, threads) = Errands::start()?;
        Ok((Arc::new(Overlay { beneath, errands, top }), pause, threads))
    }

    /// The directory beneath, for whoever goes on with this.
    pub fn dir(&self) -> io::Result<OwnedFd> {
        self.beneath.dir()
    }

    /// The attributes of the directory itself, which change when something comes or goes beneath.
    pub fn tell_top(self: &Arc<Self>, reply: ReplyAttr) {
        let overlay = self.clone();
        self.errands.run(move || reply.attr(&TTL, &overlay.beneath.top().unwrap_or(overlay.top)));
    }

    pub fn end(&self) {
        self.errands.end();
    }

    /// Looks a name up at the root. `otherwise` answers for what is not there.
    pub fn look_up_first(
        self: &Arc<Self>,
        name: &OsStr,
        reply: ReplyEntry,
        otherwise: impl FnOnce(&OsStr, ReplyEntry) + Send + 'static,
    ) {
        let (overlay, name) = (self.clone(), name.to_owned());
        self.errands.run(move || match overlay.beneath.look_up(ROOT, name.as_bytes()) {
            Err(Errno::ENOENT) => otherwise(&name, reply),
            found => enter(found, reply),
        });
    }

    pub fn look_up(self: &Arc<Self>, parent: u64, name: &OsStr, reply: ReplyEntry) {
        let (overlay, name) = (self.clone(), name.to_owned());
        self.errands.run(move || enter(overlay.beneath.look_up(parent, name.as_bytes()), reply));
    }

    pub fn forgotten(&self, node: u64, lookups: u64) {
        self.beneath.forgotten(node, lookups);
    }

    pub fn tell_attr(self: &Arc<Self>, node: u64, reply: ReplyAttr) {
        let overlay = self.clone();
        self.errands.run(move || match overlay.beneath.attr(node) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(error) => reply.error(error),
        });
    }

    pub fn tell_target(self: &Arc<Self>, node: u64, reply: ReplyData) {
        let overlay = self.clone();
        self.errands.run(move || tell(overlay.beneath.target(node), reply));
    }

    pub fn read(self: &Arc<Self>, node: u64, offset: u64, size: u32, reply: ReplyData) {
        let overlay = self.clone();
        self.errands.run(move || tell(overlay.beneath.read(node, offset, size), reply));
    }

    /// A directory beneath.
    pub fn list(self: &Arc<Self>, node: u64, offset: u64, mut listing: impl Listing) {
        let overlay = self.clone();
        self.errands.run(move || match overlay.beneath.list(node, !is_place(offset)) {
            Ok(listed) => {
                // Who leaves it by `..` does so in the kernel, which knows where that is.
                if dots(&mut listing, offset, node, node) {
                    overlay.add(node, offset, &listed, &mut listing);
                }
                listing.end();
            }
            Err(error) => listing.refuse(error),
        });
    }

    /// The root: `paths` adds store paths but those that the list has which it is given.
    pub fn list_first<L: Listing>(
        self: &Arc<Self>,
        offset: u64,
        mut listing: L,
        paths: impl FnOnce(&List, &mut L) -> bool + Send + 'static,
    ) {
        let overlay = self.clone();
        self.errands.run(move || match overlay.beneath.list(ROOT, offset == 0) {
            Ok(listed) => {
                if is_place(offset) || paths(&listed, &mut listing) {
                    overlay.add(ROOT, offset, &listed, &mut listing);
                }
                listing.end();
            }
            Err(error) => listing.refuse(error),
        });
    }

    /// Adds those that come after `offset`, until there is no more room.
    fn add(&self, directory: u64, offset: u64, list: &List, listing: &mut impl Listing) {
        let left = if is_place(offset) { list.after(offset) } else { list.after(0) };
        if left.is_empty() {
            self.beneath.is_told(directory);
        }
        for one in left {
            let is_full = match listing.looks_up().then(|| self.beneath.look_up(directory, &one.name)) {
                Some(Ok(attr)) => {
                    let is_full = listing.entry(one.place, &one.name, &attr, &TTL);
                    if is_full {
                        self.beneath.forgotten(attr.ino.0, 1);
                    }
                    is_full
                }
                Some(Err(Errno::ENOENT | Errno::ESTALE)) => continue,
                // It is there. Who looks it up is told what is wrong with it.
                Some(Err(_)) => listing.name(one.place, &one.name, &one.attr()),
                None => listing.entry(one.place, &one.name, &one.attr(), &TTL),
            };
            if is_full {
                return;
            }
        }
    }
}

impl Shared {
    /// What answers for a node of the directory beneath.
    pub fn overlay_of(&self, node: u64) -> Option<&Arc<Overlay>> {
        self.overlay.as_ref().filter(|_| is_beneath(node))
    }
}

fn enter(found: Result<FileAttr, Errno>, reply: ReplyEntry) {
    match found {
        Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
        // That it is not there is not kept.
        Err(error) => reply.error(error),
    }
}

fn tell(bytes: Result<Vec<u8>, Errno>, reply: ReplyData) {
    match bytes {
        Ok(bytes) => reply.data(&bytes),
        Err(error) => reply.error(error),
    }
}

/// Tells the kernel when its list of the root is old: it keeps lists until it is told, and nothing else tells what others
/// do beneath. Names are looked up whether it was told or not. Has it forget names where it knows too many.
pub fn watch(overlay: Arc<Overlay>, handle: Handle, pause: Pause) -> io::Result<JoinHandle<()>> {
    let watch = move || {
        let mut before = None;
        while pause.wait(TTL) {
            let now = overlay.beneath.changed_at().ok();
            if now != before || now.is_none_or(is_recent) {
                handle.list_changed();
            }
            before = now;
            for name in overlay.beneath.too_many() {
                handle.forget_name(OsStr::from_bytes(&name));
            }
        }
    };
    thread::Builder::new().name("beneath".into()).spawn(watch)
}

/// Whether more may have happened at a time than what it is known by, as clocks of file systems are coarse.
fn is_recent(changed: SystemTime) -> bool {
    changed.elapsed().is_ok_and(|ago| ago < 2 * TTL)
}
