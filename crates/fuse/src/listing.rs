//! Directories, listed.

use crate::beneath::TTL;
use crate::file_system::{FOREVER, NAME_LEN_MAX, Shared};
use crate::options::LOOKUP_DEADLINE;
use crate::place::{Entry, Place, directory_attr};
use crate::refusal::Refuse;
use crate::table::{ROOT, Shown};
use crate::tree::Kind;
use crate::views::{STORE_NODE, ViewPaths, within};
use fuser::{Errno, FileAttr, Generation, INodeNo, ReplyDirectory, ReplyDirectoryPlus};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

/// Offsets in a listing: after `.`, after `..`, and from there what comes next.
const AFTER_DOT: u64 = 1;
const AFTER_DOTS: u64 = 2;

/// A listing that is being answered: with attributes, or without.
pub trait Listing: Refuse {
    /// Whether it is full, and this was not added. `ttl`: how long the kernel may keep it.
    fn entry(&mut self, after: u64, name: &[u8], attr: &FileAttr, ttl: &Duration) -> bool;
    /// As `entry`, without that the kernel takes it as looked up.
    fn name(&mut self, after: u64, name: &[u8], attr: &FileAttr) -> bool;
    /// Whether the kernel takes entries as looked up.
    fn looks_up(&self) -> bool;
    fn end(self);
}

impl Listing for ReplyDirectory {
    fn entry(&mut self, after: u64, name: &[u8], attr: &FileAttr, _: &Duration) -> bool {
        self.add(attr.ino, after, attr.kind, OsStr::from_bytes(name))
    }

    fn name(&mut self, after: u64, name: &[u8], attr: &FileAttr) -> bool {
        self.add(attr.ino, after, attr.kind, OsStr::from_bytes(name))
    }

    fn looks_up(&self) -> bool {
        false
    }

    fn end(self) {
        self.ok();
    }
}

impl Listing for ReplyDirectoryPlus {
    fn entry(&mut self, after: u64, name: &[u8], attr: &FileAttr, ttl: &Duration) -> bool {
        self.add(attr.ino, after, OsStr::from_bytes(name), ttl, attr, Generation(0))
    }

    fn name(&mut self, after: u64, name: &[u8], attr: &FileAttr) -> bool {
        // The kernel looks at no attributes of node 0.
        let unknown = FileAttr { ino: INodeNo(0), ..*attr };
        self.add(attr.ino, after, OsStr::from_bytes(name), &Duration::ZERO, &unknown, Generation(0))
    }

    fn looks_up(&self) -> bool {
        true
    }

    fn end(self) {
        self.ok();
    }
}

/// `.` and `..`, which the kernel never takes as looked up. Whether there is room for more.
pub fn dots(listing: &mut impl Listing, offset: u64, own: u64, parent: u64) -> bool {
    let is_full = (offset < AFTER_DOT && listing.entry(AFTER_DOT, b".", &directory_attr(own), &FOREVER))
        || (offset < AFTER_DOTS && listing.entry(AFTER_DOTS, b"..", &directory_attr(parent), &FOREVER));
    !is_full
}

/// Adds an entry of a path. Whether there is room for more.
fn add(
    listing: &mut impl Listing,
    (after, ttl): (u64, &Duration),
    name: &[u8],
    shown: &Shown,
    attr: &FileAttr,
) -> bool {
    if name.len() > NAME_LEN_MAX {
        // Nobody could open it.
        return true;
    }
    if listing.entry(after, name, attr, ttl) {
        return false;
    }
    if listing.looks_up() {
        shown.looked_up();
    }
    true
}

/// How many entries of a list are to be passed over.
fn listed_before(offset: u64) -> usize {
    usize::try_from(offset.saturating_sub(AFTER_DOTS)).unwrap_or(usize::MAX)
}

impl Shared {
    pub fn list(self: &Arc<Self>, node: u64, offset: u64, listing: impl Listing) {
        if let Some(overlay) = self.overlay_of(node) {
            return overlay.list(node, offset, listing);
        }
        self.with_place(node, LOOKUP_DEADLINE, listing, move |shared, place, listing| {
            shared.list_at(place, offset, listing);
        });
    }

    fn list_at(self: &Arc<Self>, place: Place, offset: u64, mut listing: impl Listing) {
        match place {
            Place::Root => {
                let shared = self.clone();
                self.loads.when_listed(Box::new(move |is_listed| match is_listed {
                    true => shared.list_root(offset, listing),
                    false => shared.refuse(listing, Errno::EIO),
                }));
            }
            // Who looks into it knows the one name in it.
            Place::View(view) => {
                dots(&mut listing, offset, view.top(), ROOT);
                listing.end();
            }
            Place::ViewStore(view) => list_view(&view, offset, listing),
            Place::Entry(entry) => list_directory(&entry, offset, listing),
            Place::Greeting => listing.refuse(Errno::ENOTDIR),
        }
    }

    /// How long the kernel may take the name of a path for that path: in an overlay the directory may have it soon.
    pub fn path_ttl(&self) -> &'static Duration {
        if self.overlay.is_some() { &TTL } else { &FOREVER }
    }

    fn list_root(self: &Arc<Self>, offset: u64, mut listing: impl Listing) {
        match &self.overlay {
            Some(overlay) => {
                let shared = self.clone();
                overlay.list_first(offset, listing, move |beneath, listing| {
                    shared.list_paths(offset, listing, |name| beneath.has(name))
                });
            }
            None => {
                self.list_paths(offset, &mut listing, |_| false);
                listing.end();
            }
        }
    }

    /// Adds store paths but those that are hidden. Whether there is room for more.
    fn list_paths(&self, offset: u64, listing: &mut impl Listing, is_hidden: impl Fn(&[u8]) -> bool) -> bool {
        let mut has_room = dots(listing, offset, ROOT, ROOT);
        if has_room {
            // Offsets are the numbers of nodes, of which the first few are not given out.
            self.table.list(offset.max(AFTER_DOTS), |shown| {
                let Some(attr) = Entry::top(shown.clone(), 0).attr() else { return true };
                let is_added = is_hidden(shown.name.as_bytes())
                    || add(listing, (shown.node(0) + 1, self.path_ttl()), shown.name.as_bytes(), shown, &attr);
                has_room = is_added;
                is_added
            });
        }
        has_room
    }
}

fn list_view(view: &ViewPaths, offset: u64, mut listing: impl Listing) {
    if dots(&mut listing, offset, view.store(), view.top()) {
        for (place, shown) in view.paths().iter().enumerate().skip(listed_before(offset)) {
            let Some(attr) = Entry::top(shown.clone(), view.number()).attr() else { continue };
            if !add(&mut listing, (AFTER_DOTS + place as u64 + 1, &FOREVER), shown.name.as_bytes(), shown, &attr) {
                break;
            }
        }
    }
    listing.end();
}

fn list_directory(entry: &Entry, offset: u64, mut listing: impl Listing) {
    let Entry { shown, number, view } = entry;
    let Some(Kind::Directory { children }) = shown.tree.kind(*number) else {
        return listing.refuse(Errno::ENOTDIR);
    };
    let own = within(*view, shown.node(*number));
    let parent = match shown.tree.parent(*number) {
        Some(parent) => within(*view, shown.node(parent)),
        None => within(*view, if *view == 0 { ROOT } else { STORE_NODE }),
    };
    if dots(&mut listing, offset, own, parent) {
        for (place, child) in children.enumerate().skip(listed_before(offset)) {
            let Some(attr) = entry.other(child).attr() else { continue };
            if !add(&mut listing, (AFTER_DOTS + place as u64 + 1, &FOREVER), shown.tree.name(child), shown, &attr) {
                break;
            }
        }
    }
    listing.end();
}
