//! What a node of the file system is, and what the kernel is told of it.

use crate::file_system::Shared;
use crate::table::{GREETING, ROOT, Shown};
use crate::tree::Kind;
use crate::views::{self, Node, ViewPaths};
use fuser::{FileAttr, FileType, INodeNo};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Bytes that `stat` calls a block.
const BLOCK_LEN: u64 = 512;

/// Where a node is.
pub enum Place {
    Root,
    /// The file of [`crate::greeting`].
    Greeting,
    View(Arc<ViewPaths>),
    /// The directory of a view that holds its paths.
    ViewStore(Arc<ViewPaths>),
    Entry(Entry),
}

/// An entry of a path, seen in the view of this number or, with 0, in none.
#[derive(Clone)]
pub struct Entry {
    pub shown: Arc<Shown>,
    pub number: u32,
    pub view: u32,
}

impl Shared {
    /// `None` for what the kernel was never given, and what is beneath.
    pub fn place(&self, node: u64) -> Option<Place> {
        match views::divide(node) {
            Some((view, Node::Top)) => self.views.by_number(view).map(Place::View),
            Some((view, Node::Store)) => self.views.by_number(view).map(Place::ViewStore),
            Some((view, Node::Inside(node))) => self.entry(node, view).map(Place::Entry),
            None if node == ROOT => Some(Place::Root),
            None if node == GREETING => Some(Place::Greeting),
            None => self.entry(node, 0).map(Place::Entry),
        }
    }

    fn entry(&self, node: u64, view: u32) -> Option<Entry> {
        let (shown, number) = self.table.by_node(node)?;
        Some(Entry { shown, number, view })
    }
}

impl Place {
    pub fn attr(&self) -> Option<FileAttr> {
        Some(match self {
            Place::Root => directory_attr(ROOT),
            Place::Greeting => attr(GREETING, FileType::RegularFile, 0o444, 0),
            Place::View(view) => directory_attr(view.top()),
            Place::ViewStore(view) => directory_attr(view.store()),
            Place::Entry(entry) => entry.attr()?,
        })
    }

    /// Of a symlink.
    pub fn target(&self) -> Option<&[u8]> {
        match self {
            Place::Entry(entry) => entry.shown.tree.target(entry.number),
            Place::Root | Place::Greeting | Place::View(_) | Place::ViewStore(_) => None,
        }
    }
}

impl Entry {
    /// The top of a path.
    pub fn top(shown: Arc<Shown>, view: u32) -> Entry {
        Entry { number: shown.tree.root(), shown, view }
    }

    /// Another one of the same path, in the same view.
    pub fn other(&self, number: u32) -> Entry {
        Entry { number, ..self.clone() }
    }

    pub fn attr(&self) -> Option<FileAttr> {
        let node = self.shown.node(self.number);
        Some(match self.shown.tree.kind(self.number)? {
            Kind::Regular { executable, size, .. } => {
                attr(node, FileType::RegularFile, if executable { 0o555 } else { 0o444 }, size)
            }
            Kind::Directory { .. } => directory_attr(views::within(self.view, node)),
            Kind::Symlink { target_len } => attr(node, FileType::Symlink, 0o777, target_len),
        })
    }
}

pub fn directory_attr(node: u64) -> FileAttr {
    attr(node, FileType::Directory, 0o555, 0)
}

/// What the kernel takes for: this name is not there, and will not be.
pub fn nothing() -> FileAttr {
    attr(0, FileType::RegularFile, 0, 0)
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
