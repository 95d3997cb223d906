//! What a NAR holds and where: names, kinds, modes, targets, and the offset of every file's bytes.
//!
//! In memory the children of a directory lie side by side, sorted by name, before the directory
//! itself; the root is last. So a lookup is a binary search a level and an entry's number never
//! changes. Encoded (serde) it is the same tree in NAR order with child counts and no offsets:
//! decoding computes them, so an index that decodes is a tree and its offsets are true.

mod build;
mod listing;
mod replay;
mod wire;

pub use build::IndexBuilder;
pub use listing::NotUtf8;

use std::ops::Range;

/// Most files, directories and symlinks in one NAR: six times the largest package known (TeX Live
/// full), and about 300 MB of index.
pub const ENTRIES_MAX: usize = 1 << 22;
/// Most bytes of all names and symlink targets together: 64 for each of [`ENTRIES_MAX`] entries.
pub const TEXT_LEN_MAX: usize = 1 << 28;

/// The file tree of one NAR.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NarIndex {
    entries: Vec<Entry>,
    nar_size: u64,
}

/// One file, directory or symlink. The root's name is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub name: Box<[u8]>,
    pub node: Node,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// `children` are entry numbers for [`NarIndex::get`], in name order.
    Directory {
        children: Range<u32>,
    },
    /// `offset` is where the contents start in the NAR.
    Regular {
        executable: bool,
        size: u64,
        offset: u64,
    },
    Symlink {
        target: Box<[u8]>,
    },
}

impl NarIndex {
    /// Bytes of the whole NAR.
    pub fn nar_size(&self) -> u64 {
        self.nar_size
    }

    /// All entries; the position of one is its number. Children come before their directory.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The root's entry number.
    pub fn root_number(&self) -> u32 {
        // Built with at least the root and at most `ENTRIES_MAX` entries.
        (self.entries.len() - 1) as u32
    }

    pub fn root(&self) -> &Entry {
        &self.entries[self.entries.len() - 1]
    }

    pub fn get(&self, number: u32) -> Option<&Entry> {
        self.entries.get(number as usize)
    }

    /// The children of `entry` in name order; none unless it is a directory.
    pub fn children<'a>(&'a self, entry: &Entry) -> &'a [Entry] {
        match &entry.node {
            Node::Directory { children } => {
                self.entries.get(children.start as usize..children.end as usize).unwrap_or(&[])
            }
            Node::Regular { .. } | Node::Symlink { .. } => &[],
        }
    }

    /// The number of the child called `name`.
    pub fn child(&self, directory: &Entry, name: &[u8]) -> Option<u32> {
        let Node::Directory { children } = &directory.node else {
            return None;
        };
        let found = self.children(directory).binary_search_by(|entry| entry.name.as_ref().cmp(name)).ok()?;
        Some(children.start + found as u32)
    }

    /// The entry at `path`, given by its components; an empty path is the root. Symlinks are not
    /// followed.
    pub fn lookup<'a>(&self, path: impl IntoIterator<Item = &'a [u8]>) -> Option<&Entry> {
        let mut entry = self.root();
        for name in path {
            entry = self.get(self.child(entry, name)?)?;
        }
        Some(entry)
    }

    /// All entries in NAR order, each with its depth (0 for the root).
    pub fn walk(&self) -> Walk<'_> {
        Walk { index: self, stack: vec![(0, self.root_number()..self.root_number() + 1)] }
    }
}

/// Iterator of [`NarIndex::walk`].
pub struct Walk<'a> {
    index: &'a NarIndex,
    /// For each open directory its depth and the children still to come.
    stack: Vec<(usize, Range<u32>)>,
}

impl<'a> Iterator for Walk<'a> {
    type Item = (usize, &'a Entry);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (depth, pending) = self.stack.last_mut()?;
            let Some(number) = pending.next() else {
                self.stack.pop();
                continue;
            };
            let depth = *depth;
            let entry = self.index.get(number)?;
            if let Node::Directory { children } = &entry.node {
                self.stack.push((depth + 1, children.clone()));
            }
            return Some((depth, entry));
        }
    }
}
