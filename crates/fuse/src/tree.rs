//! The file tree of one store path, packed: 24 bytes a file beside its name, 40 a chunk.
//!
//! Entries have the numbers of [`NarIndex`]: the children of a directory lie side by side in name order, before the
//! directory; the root is last.

use shoal_wire::mesh::manifest::{ChunkRef, ContentRoot, Manifest};
use shoal_wire::nix::nar::index::{Entry, NarIndex, Node};
use std::ops::Range;

/// A tree that never changes.
pub struct Tree {
    entries: Box<[Packed]>,
    /// Of each entry its name, and behind that its target.
    text: Box<[u8]>,
    chunks: Box<[Chunk]>,
    /// Directories that have children: the number of the first child, by which they are sorted, and their own.
    directories: Box<[(u32, u32)]>,
    content_root: ContentRoot,
}

struct Packed {
    /// Regular: where its contents begin in the NAR. Directory: the numbers of its first child, and in the upper half of
    /// that after its last. Symlink: bytes of its target.
    a: u64,
    /// Regular: size.
    b: u64,
    text: u32,
    /// Bytes of its name, and in the lowest bits its kind.
    name_len_and_kind: u32,
}

const KIND_BITS: u32 = 2;
const REGULAR: u32 = 0;
const EXECUTABLE: u32 = 1;
const DIRECTORY: u32 = 2;
const SYMLINK: u32 = 3;

struct Chunk {
    hash: [u8; 32],
    /// Where it ends in the NAR.
    end: u64,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Regular { executable: bool, size: u64, offset: u64 },
    Directory { children: Range<u32> },
    Symlink { target_len: u64 },
}

/// A part of a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The chunk's number in its path.
    pub number: usize,
    pub chunk: ChunkRef,
    /// Of the chunk.
    pub bytes: Range<usize>,
}

impl Tree {
    pub fn new(manifest: &Manifest) -> Tree {
        let index = &manifest.index;
        let text_len = index.entries().iter().map(|entry| entry.name.len() + target(&entry.node).len()).sum();
        let mut text: Vec<u8> = Vec::with_capacity(text_len);
        let entries = index.entries().iter().map(|entry| {
            let at = text.len() as u32;
            text.extend_from_slice(&entry.name);
            text.extend_from_slice(target(&entry.node));
            let (a, b, kind) = match &entry.node {
                Node::Regular { executable, size, offset } => {
                    (*offset, *size, if *executable { EXECUTABLE } else { REGULAR })
                }
                Node::Directory { children } => {
                    (u64::from(children.start) | u64::from(children.end) << 32, 0, DIRECTORY)
                }
                Node::Symlink { target } => (target.len() as u64, 0, SYMLINK),
            };
            Packed { a, b, text: at, name_len_and_kind: (entry.name.len() as u32) << KIND_BITS | kind }
        });
        let entries = entries.collect();
        let mut end = 0;
        let chunks = manifest.chunks.iter().map(|chunk| {
            end += u64::from(chunk.len);
            Chunk { hash: chunk.hash, end }
        });
        let chunks = chunks.collect();
        let content_root = manifest.content_root();
        Tree { entries, chunks, text: text.into(), directories: directories(index), content_root }
    }

    /// The name of the manifest that it was made from.
    pub fn content_root(&self) -> &ContentRoot {
        &self.content_root
    }

    /// How many entries it has.
    pub fn len(&self) -> u32 {
        self.entries.len() as u32
    }

    pub fn root(&self) -> u32 {
        self.len().saturating_sub(1)
    }

    pub fn kind(&self, number: u32) -> Option<Kind> {
        let entry = self.entries.get(number as usize)?;
        Some(match entry.name_len_and_kind & ((1 << KIND_BITS) - 1) {
            DIRECTORY => Kind::Directory { children: entry.a as u32..(entry.a >> 32) as u32 },
            SYMLINK => Kind::Symlink { target_len: entry.a },
            kind => Kind::Regular { executable: kind == EXECUTABLE, size: entry.b, offset: entry.a },
        })
    }

    /// The name of an entry in its directory; the root's is empty.
    pub fn name(&self, number: u32) -> &[u8] {
        let Some(entry) = self.entries.get(number as usize) else { return &[] };
        let from = entry.text as usize;
        self.text.get(from..from + (entry.name_len_and_kind >> KIND_BITS) as usize).unwrap_or_default()
    }

    /// Where a symlink points to.
    pub fn target(&self, number: u32) -> Option<&[u8]> {
        let (entry, Kind::Symlink { target_len }) = (self.entries.get(number as usize)?, self.kind(number)?) else {
            return None;
        };
        let from = entry.text as usize + (entry.name_len_and_kind >> KIND_BITS) as usize;
        self.text.get(from..from + target_len as usize)
    }

    /// The child of a directory that has this name.
    pub fn child(&self, directory: u32, name: &[u8]) -> Option<u32> {
        let Some(Kind::Directory { children }) = self.kind(directory) else { return None };
        let (mut from, mut to) = (children.start, children.end);
        while from < to {
            let middle = from + (to - from) / 2;
            match self.name(middle).cmp(name) {
                std::cmp::Ordering::Less => from = middle + 1,
                std::cmp::Ordering::Greater => to = middle,
                std::cmp::Ordering::Equal => return Some(middle),
            }
        }
        None
    }

    /// The directory that an entry lies in; the root lies in none.
    pub fn parent(&self, number: u32) -> Option<u32> {
        let after = self.directories.partition_point(|(first_child, _)| *first_child <= number);
        let (_, directory) = self.directories.get(after.checked_sub(1)?)?;
        match self.kind(*directory)? {
            Kind::Directory { children } if children.contains(&number) => Some(*directory),
            _ => None,
        }
    }

    pub fn chunk_count(&self) -> usize {
        self.chunks.len()
    }

    /// Bytes of the whole NAR.
    pub fn nar_size(&self) -> u64 {
        self.chunks.last().map_or(0, |chunk| chunk.end)
    }

    pub fn chunk(&self, number: usize) -> Option<ChunkRef> {
        let chunk = self.chunks.get(number)?;
        // A chunk has at most 256 KiB.
        Some(ChunkRef { hash: chunk.hash, len: (chunk.end - self.begin(number)) as u32 })
    }

    fn begin(&self, number: usize) -> u64 {
        number.checked_sub(1).and_then(|before| self.chunks.get(before)).map_or(0, |chunk| chunk.end)
    }

    /// Numbers of the chunks that hold these bytes of the NAR.
    pub fn chunks_of(&self, bytes: Range<u64>) -> Range<usize> {
        if bytes.is_empty() {
            return 0..0;
        }
        let from = self.chunks.partition_point(|chunk| chunk.end <= bytes.start);
        let last = self.chunks.partition_point(|chunk| chunk.end < bytes.end);
        from..(last + 1).min(self.chunks.len()).max(from)
    }

    /// The pieces of chunks that these bytes of the NAR are.
    pub fn pieces(&self, bytes: Range<u64>) -> Vec<Piece> {
        let piece = |number| {
            let (begin, chunk) = (self.begin(number), self.chunk(number)?);
            let from = bytes.start.saturating_sub(begin) as usize;
            let to = (bytes.end - begin).min(u64::from(chunk.len)) as usize;
            Some(Piece { number, chunk, bytes: from..to })
        };
        self.chunks_of(bytes.clone()).filter_map(piece).collect()
    }
}

fn target(node: &Node) -> &[u8] {
    match node {
        Node::Symlink { target } => target,
        Node::Regular { .. } | Node::Directory { .. } => &[],
    }
}

fn directories(index: &NarIndex) -> Box<[(u32, u32)]> {
    let of = |(number, entry): (usize, &Entry)| match &entry.node {
        Node::Directory { children } if !children.is_empty() => Some((children.start, number as u32)),
        _ => None,
    };
    let mut directories: Vec<(u32, u32)> = index.entries().iter().enumerate().filter_map(of).collect();
    directories.sort_unstable();
    directories.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn a_packed_tree_says_what_the_index_says() {
        let (manifest, _) = testing::path(&[
            ("bin/run", testing::executable(b"#!/bin/sh\n")),
            ("share/empty", testing::file(b"")),
            ("share/long", testing::file(&[7; 300_000])),
            ("share/link", testing::link("../bin/run")),
        ]);
        let tree = Tree::new(&manifest);
        let walk =
            |path: &str| path.split('/').try_fold(tree.root(), |number, name| tree.child(number, name.as_bytes()));
        let share = walk("share").unwrap();
        assert_eq!(tree.kind(share), Some(Kind::Directory { children: 1..4 }));
        assert_eq!(tree.target(walk("share/link").unwrap()), Some(&b"../bin/run"[..]));
        assert!(matches!(tree.kind(walk("bin/run").unwrap()), Some(Kind::Regular { executable: true, size: 10, .. })));
        assert_eq!(tree.parent(walk("share/empty").unwrap()), Some(share));
        assert_eq!(tree.parent(walk("bin/run").unwrap()), walk("bin"));
        assert_eq!(tree.parent(share), Some(tree.root()));
        assert_eq!(tree.parent(tree.root()), None);
        assert_eq!(walk("share/nothing"), None);
        assert_eq!(walk("bin/run/nothing"), None);
        assert_eq!(tree.name(walk("share/long").unwrap()), b"long");
        assert_eq!(tree.target(share), None);
        assert_eq!(tree.kind(tree.len()), None);
    }

    #[test]
    fn pieces_of_a_range_are_its_bytes() {
        let (manifest, chunks) = testing::path(&[("a", testing::file(&testing::noise(1, 700_000)))]);
        let tree = Tree::new(&manifest);
        let nar: Vec<u8> = manifest.chunks.iter().flat_map(|chunk| chunks[&chunk.hash].clone()).collect();
        let size = nar.len() as u64;
        assert!(manifest.chunks.len() > 3);
        for (from, to) in [(0, 1), (0, size), (65_535, 65_536), (65_536, 65_537), (100, 400_000), (size - 1, size)] {
            let read =
                tree.pieces(from..to).into_iter().flat_map(|piece| chunks[&piece.chunk.hash][piece.bytes].to_vec());
            assert_eq!(read.collect::<Vec<_>>(), nar[from as usize..to as usize]);
        }
        assert!(tree.pieces(5..5).is_empty());
        assert!(tree.pieces(size..size + 9).is_empty(), "behind the end");
    }
}
