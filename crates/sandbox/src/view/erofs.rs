//! The view as an EROFS image.
//!
//! Format: `Documentation/filesystems/erofs.rst` and `fs/erofs/erofs_fs.h` of Linux. Used of it: 4 KiB blocks,
//! compact inodes, inline extended attributes; directories and symlinks with their data inline, the store
//! directory with its data in blocks of its own, files as one hole. The first block holds the superblock and
//! the two fixed directories; inodes follow, then the blocks of the store directory.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use super::{DIRECTORY_MODE, Entry, Kind, METACOPY, MTIME, OPAQUE, OPAQUE_VALUE, REDIRECT, STORE};
use crate::Scratch;
use crate::rootfs::new_filesystem;

const BLOCK: usize = 4096;
const BLOCK_BITS: u8 = 12;
const SUPERBLOCK_AT: usize = 1024;
const SUPERBLOCK_LEN: usize = 128;
const MAGIC: u32 = 0xE0F5_E1E2;
/// `EROFS_FEATURE_INCOMPAT_CHUNKED_FILE`.
const CHUNKED_FILES: u32 = 4;

/// An inode's number is its place, in these units.
const SLOT: usize = 32;
const INODE_LEN: usize = 32;
const ROOT_AT: usize = SUPERBLOCK_AT + SUPERBLOCK_LEN;
/// After the root, its three names and the space to the next slot.
const STORE_AT: usize = ROOT_AT + 3 * SLOT;

const TRUSTED: u8 = 4;
const XATTR_HEADER_LEN: usize = 12;
const DIRENT_LEN: usize = 12;

/// One chunk for the largest file that a compact inode can have, and the index that says it is a hole.
const ONE_CHUNK: u32 = 31;
const HOLE: [u8; 4] = [0xff; 4];

const S_IFDIR: u32 = 0o040000;
const S_IFREG: u32 = 0o100000;
const S_IFLNK: u32 = 0o120000;

/// `file_type` of a directory entry.
const TYPE_FILE: u8 = 1;
const TYPE_DIRECTORY: u8 = 2;
const TYPE_SYMLINK: u8 = 7;

/// Where an inode's data is.
#[derive(Clone, Copy)]
enum Layout {
    Plain = 0,
    Inline = 2,
    Chunks = 4,
}

/// What an inode says, all but its number.
struct Inode {
    mode: u32,
    size: u32,
    layout: Layout,
    /// First block (plain), or chunk format (chunks).
    place: u32,
    xattrs_len: usize,
}

/// A name, the slot of its inode, a `TYPE_`.
type Name<'a> = (&'a [u8], usize, u8);

/// `.` and `..`.
const NO_NAMES_LEN: usize = 2 * DIRENT_LEN + 3;

/// The image, or `None` for entries that need more than compact inodes. Names must be sorted and different.
fn image(entries: &[Entry<'_>]) -> Option<Vec<u8>> {
    let (root, store) = (ROOT_AT / SLOT, STORE_AT / SLOT);
    let mut store_xattrs = Vec::new();
    encode_xattrs(&[(OPAQUE, &[OPAQUE_VALUE])], &mut store_xattrs);

    // What typical entries need, with their names.
    let mut bytes = Vec::with_capacity(BLOCK + entries.len() * 8 * SLOT);
    bytes.resize(STORE_AT + INODE_LEN + store_xattrs.len(), 0);
    let mut names: Vec<Name> = Vec::with_capacity(entries.len() + 2);
    names.extend([(&b"."[..], store, TYPE_DIRECTORY), (b"..", root, TYPE_DIRECTORY)]);
    for entry in entries {
        names.push(push(entry, &mut bytes)?);
    }
    // `.` and `..` are not before every name.
    names.sort_unstable();

    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    let first_block = bytes.len() / BLOCK;
    directory(&names, &mut bytes);
    let store_size = bytes.len() - first_block * BLOCK;
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);

    let store_inode = Inode {
        mode: S_IFDIR | 0o1775,
        size: u32::try_from(store_size).ok()?,
        layout: Layout::Plain,
        place: u32::try_from(first_block).ok()?,
        xattrs_len: store_xattrs.len(),
    };
    let mut fixed = store_inode.encode(store).to_vec();
    fixed.extend(store_xattrs);
    bytes[STORE_AT..STORE_AT + fixed.len()].copy_from_slice(&fixed);

    let mut tail = Vec::new();
    let store_name = (STORE.as_bytes(), store, TYPE_DIRECTORY);
    directory(&[(b".", root, TYPE_DIRECTORY), (b"..", root, TYPE_DIRECTORY), store_name], &mut tail);
    let mut fixed = inline(S_IFDIR | 0o755, tail.len(), 0).encode(root).to_vec();
    fixed.extend(tail);
    bytes[ROOT_AT..ROOT_AT + fixed.len()].copy_from_slice(&fixed);

    let superblock = superblock(entries.len() as u64 + 2, u32::try_from(bytes.len() / BLOCK).ok()?);
    bytes[SUPERBLOCK_AT..ROOT_AT].copy_from_slice(&superblock);
    Some(bytes)
}

/// Writes the image to `<scratch>/view` and mounts it, read-only and detached.
pub(super) fn mount(entries: &[Entry<'_>], scratch: &Scratch) -> io::Result<OwnedFd> {
    let image = image(entries).ok_or(io::ErrorKind::Unsupported)?;
    let path = scratch.view();
    fs::write(&path, image)?;
    let file = File::open(path)?;
    // Option values are limited to 255 bytes, paths are not.
    let source = format!("/proc/self/fd/{}", file.as_raw_fd());
    new_filesystem("erofs", &[("source", &source)])
}

/// Appends an entry's inode, its attributes and what follows them.
fn push<'a>(entry: &Entry<'a>, bytes: &mut Vec<u8>) -> Option<Name<'a>> {
    let mut xattrs = Vec::new();
    if let Some(redirect) = entry.effective_redirect() {
        let redirect = [redirect.home, redirect.name];
        let all: [(&str, &[&[u8]]); 2] = [(REDIRECT, &redirect), (METACOPY, &[])];
        let count = if let Kind::File { .. } = entry.kind { 2 } else { 1 };
        encode_xattrs(&all[..count], &mut xattrs);
    }
    let (inode, tail_len, kind) = match &entry.kind {
        Kind::Directory => (inline(S_IFDIR | DIRECTORY_MODE, NO_NAMES_LEN, xattrs.len()), NO_NAMES_LEN, TYPE_DIRECTORY),
        Kind::Symlink { target } => (inline(S_IFLNK | 0o777, target.len(), xattrs.len()), target.len(), TYPE_SYMLINK),
        Kind::File { size, mode } => {
            let size = u32::try_from(*size).ok()?;
            let (layout, place, tail_len) = match size {
                0 => (Layout::Plain, 0, 0),
                _ => (Layout::Chunks, ONE_CHUNK, HOLE.len()),
            };
            let inode = Inode { mode: S_IFREG | mode, size, layout, place, xattrs_len: xattrs.len() };
            (inode, tail_len, TYPE_FILE)
        }
    };
    let at = fit(bytes.len(), INODE_LEN + xattrs.len() + tail_len)?;
    let slot = at / SLOT;
    bytes.resize(at, 0);
    bytes.extend_from_slice(&inode.encode(slot));
    bytes.extend_from_slice(&xattrs);
    match &entry.kind {
        Kind::Directory => {
            directory(&[(b".", slot, TYPE_DIRECTORY), (b"..", STORE_AT / SLOT, TYPE_DIRECTORY)], bytes);
        }
        Kind::Symlink { target } => bytes.extend_from_slice(target),
        Kind::File { .. } => bytes.extend_from_slice(&HOLE[..tail_len]),
    }
    Some((entry.name.as_bytes(), slot, kind))
}

fn inline(mode: u32, size: usize, xattrs_len: usize) -> Inode {
    // Checked by `fit` to be less than a block.
    Inode { mode, size: size as u32, layout: Layout::Inline, place: 0, xattrs_len }
}

/// The first place from `end` on where `len` bytes begin at a slot and do not cross into another block.
fn fit(end: usize, len: usize) -> Option<usize> {
    let at = end.next_multiple_of(SLOT);
    let fits = at / BLOCK == (at + len - 1) / BLOCK;
    let at = if fits { at } else { at.next_multiple_of(BLOCK) };
    (len <= BLOCK).then_some(at)
}

impl Inode {
    /// `struct erofs_inode_compact`. Times are the superblock's.
    fn encode(&self, slot: usize) -> [u8; INODE_LEN] {
        let is_dir = self.mode & 0o170000 == S_IFDIR;
        let xattr_count = match self.xattrs_len {
            0 => 0,
            len => (len - XATTR_HEADER_LEN) / 4 + 1,
        };
        let mut bytes = [0; INODE_LEN];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &((self.layout as u16) << 1).to_le_bytes());
        put(2, &(xattr_count as u16).to_le_bytes());
        put(4, &(self.mode as u16).to_le_bytes());
        put(6, &(if is_dir { 2u16 } else { 1 }).to_le_bytes());
        put(8, &self.size.to_le_bytes());
        put(16, &self.place.to_le_bytes());
        put(20, &(slot as u32).to_le_bytes());
        bytes
    }
}

/// Appends `struct erofs_xattr_ibody_header` and entries, each a name and the parts of its value.
fn encode_xattrs(xattrs: &[(&str, &[&[u8]])], bytes: &mut Vec<u8>) {
    bytes.extend([0; XATTR_HEADER_LEN]);
    for (name, value) in xattrs {
        let value_len: usize = value.iter().map(|part| part.len()).sum();
        bytes.extend([name.len() as u8, TRUSTED]);
        bytes.extend((value_len as u16).to_le_bytes());
        bytes.extend_from_slice(name.as_bytes());
        value.iter().for_each(|part| bytes.extend_from_slice(part));
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
}

/// Appends the blocks of a directory with these names, sorted. In each block first the `struct erofs_dirent`s,
/// then the names; all blocks but the last are filled up with zeros.
fn directory(names: &[Name<'_>], bytes: &mut Vec<u8>) {
    let start = bytes.len();
    let mut rest = names;
    while !rest.is_empty() {
        let filled = (bytes.len() - start).next_multiple_of(BLOCK);
        bytes.resize(start + filled, 0);
        let mut room = BLOCK;
        let fits = |(name, ..): &&Name| {
            let left = room.checked_sub(DIRENT_LEN + name.len());
            room = left.unwrap_or(0);
            left.is_some()
        };
        let (block, after) = rest.split_at(rest.iter().take_while(fits).count().max(1));
        let mut name_at = block.len() * DIRENT_LEN;
        for (name, slot, kind) in block {
            bytes.extend_from_slice(&(*slot as u64).to_le_bytes());
            bytes.extend_from_slice(&(name_at as u16).to_le_bytes());
            bytes.extend_from_slice(&[*kind, 0]);
            name_at += name.len();
        }
        block.iter().for_each(|(name, ..)| bytes.extend_from_slice(name));
        rest = after;
    }
}

/// `struct erofs_super_block`.
fn superblock(inodes: u64, blocks: u32) -> [u8; SUPERBLOCK_LEN] {
    let mut bytes = [0; SUPERBLOCK_LEN];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(0, &MAGIC.to_le_bytes());
    put(12, &[BLOCK_BITS]);
    put(14, &((ROOT_AT / SLOT) as u16).to_le_bytes());
    put(16, &inodes.to_le_bytes());
    put(24, &(MTIME as u64).to_le_bytes());
    put(36, &blocks.to_le_bytes());
    put(80, &CHUNKED_FILES.to_le_bytes());
    bytes
}
