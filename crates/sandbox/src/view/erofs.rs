//! The view as an EROFS image.
//!
//! Format: `Documentation/filesystems/erofs.rst` and `fs/erofs/erofs_fs.h` of Linux. Used of it: 4 KiB blocks,
//! compact inodes, inline extended attributes; directories and symlinks with their data inline, the store
//! directory with its data in blocks of its own, files as one hole. The first block holds the superblock and
//! the two fixed directories; inodes follow, then the blocks of the store directory.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use super::{DIRECTORY_MODE, Entry, Kind, MTIME, OPAQUE, STORE};
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

/// One inode, all but its number.
struct Inode {
    mode: u32,
    size: u32,
    layout: Layout,
    /// First block (plain), or chunk format (chunks).
    place: u32,
    xattrs: Vec<u8>,
    /// Follows the inode: data (inline), or the chunk index.
    tail: Vec<u8>,
}

/// A name, the slot of its inode, a `TYPE_`.
type Name<'a> = (&'a [u8], usize, u8);

/// The image, or `None` for entries that need more than compact inodes. Names must be sorted and different.
fn image(entries: &[Entry<'_>]) -> Option<Vec<u8>> {
    let mut bytes = vec![0; BLOCK];
    let root_slot = ROOT_AT / SLOT;
    let store_slot = STORE_AT / SLOT;
    let store_xattrs = encode_xattrs(&[OPAQUE]);
    let mut end = STORE_AT + INODE_LEN + store_xattrs.len();

    let mut names: Vec<Name> = vec![(b".", store_slot, TYPE_DIRECTORY), (b"..", root_slot, TYPE_DIRECTORY)];
    for entry in entries {
        let mut inode = inode(entry)?;
        let len = inode.len();
        let at = fit(end, len)?;
        let slot = at / SLOT;
        if let Kind::Directory = entry.kind {
            inode.tail = directory(&[(b".", slot, TYPE_DIRECTORY), (b"..", store_slot, TYPE_DIRECTORY)]);
        }
        end = at + len;
        bytes.resize(bytes.len().max(end.next_multiple_of(BLOCK)), 0);
        inode.write(&mut bytes[at..end], slot);
        names.push((entry.name.as_bytes(), slot, inode.file_type()));
    }
    // `.` and `..` are not before every name.
    names.sort_unstable();

    let store = directory(&names);
    let root = directory(&[
        (b".", root_slot, TYPE_DIRECTORY),
        (b"..", root_slot, TYPE_DIRECTORY),
        (STORE.as_bytes(), store_slot, TYPE_DIRECTORY),
    ]);
    let store = Inode {
        mode: S_IFDIR | 0o1775,
        size: u32::try_from(store.len()).ok()?,
        layout: Layout::Plain,
        place: u32::try_from(bytes.len() / BLOCK).ok()?,
        xattrs: store_xattrs,
        tail: store,
    };
    let root = Inode {
        mode: S_IFDIR | 0o755,
        size: root.len() as u32,
        layout: Layout::Inline,
        place: 0,
        xattrs: Vec::new(),
        tail: root,
    };
    bytes.extend_from_slice(&store.tail);
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    root.write(&mut bytes[ROOT_AT..STORE_AT], root_slot);
    store.write_head(&mut bytes[STORE_AT..], store_slot);
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

/// The first place from `end` on where `len` bytes begin at a slot and do not cross into another block.
fn fit(end: usize, len: usize) -> Option<usize> {
    let at = end.next_multiple_of(SLOT);
    let fits = at / BLOCK == (at + len - 1) / BLOCK;
    let at = if fits { at } else { at.next_multiple_of(BLOCK) };
    (len <= BLOCK).then_some(at)
}

fn inode(entry: &Entry<'_>) -> Option<Inode> {
    let xattrs = encode_xattrs(&entry.xattrs());
    let inline = |mode, tail: Vec<u8>, xattrs| Inode {
        mode,
        size: tail.len() as u32,
        layout: Layout::Inline,
        place: 0,
        xattrs,
        tail,
    };
    Some(match &entry.kind {
        Kind::Directory => {
            let names = directory(&[(b".", 0, TYPE_DIRECTORY), (b"..", 0, TYPE_DIRECTORY)]);
            inline(S_IFDIR | DIRECTORY_MODE, names, xattrs)
        }
        Kind::Symlink { target } => inline(S_IFLNK | 0o777, target.clone(), xattrs),
        Kind::File { size: 0, mode } => Inode { layout: Layout::Plain, ..inline(S_IFREG | mode, Vec::new(), xattrs) },
        Kind::File { size, mode } => Inode {
            mode: S_IFREG | mode,
            size: u32::try_from(*size).ok()?,
            layout: Layout::Chunks,
            place: ONE_CHUNK,
            xattrs,
            tail: HOLE.to_vec(),
        },
    })
}

impl Inode {
    fn len(&self) -> usize {
        INODE_LEN + self.xattrs.len() + self.tail.len()
    }

    fn file_type(&self) -> u8 {
        match self.mode & 0o170000 {
            S_IFDIR => TYPE_DIRECTORY,
            S_IFLNK => TYPE_SYMLINK,
            _ => TYPE_FILE,
        }
    }

    fn write(&self, to: &mut [u8], slot: usize) {
        self.write_head(to, slot);
        let tail_at = INODE_LEN + self.xattrs.len();
        to[tail_at..tail_at + self.tail.len()].copy_from_slice(&self.tail);
    }

    /// `struct erofs_inode_compact` and the extended attributes behind it.
    fn write_head(&self, to: &mut [u8], slot: usize) {
        let is_dir = self.mode & 0o170000 == S_IFDIR;
        let xattr_count = match self.xattrs.len() {
            0 => 0,
            len => (len - XATTR_HEADER_LEN) / 4 + 1,
        };
        let mut head = [0; INODE_LEN];
        let mut put = |at: usize, field: &[u8]| head[at..at + field.len()].copy_from_slice(field);
        put(0, &((self.layout as u16) << 1).to_le_bytes());
        put(2, &(xattr_count as u16).to_le_bytes());
        put(4, &(self.mode as u16).to_le_bytes());
        put(6, &(if is_dir { 2u16 } else { 1 }).to_le_bytes());
        put(8, &self.size.to_le_bytes());
        put(16, &self.place.to_le_bytes());
        put(20, &(slot as u32).to_le_bytes());
        to[..INODE_LEN].copy_from_slice(&head);
        to[INODE_LEN..INODE_LEN + self.xattrs.len()].copy_from_slice(&self.xattrs);
    }
}

/// `struct erofs_xattr_ibody_header` and entries, or nothing.
fn encode_xattrs(xattrs: &[(&str, &[u8])]) -> Vec<u8> {
    if xattrs.is_empty() {
        return Vec::new();
    }
    let mut bytes = vec![0; XATTR_HEADER_LEN];
    for (name, value) in xattrs {
        bytes.extend([name.len() as u8, TRUSTED]);
        bytes.extend((value.len() as u16).to_le_bytes());
        bytes.extend(name.as_bytes());
        bytes.extend(*value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// The blocks of a directory with these names, sorted. In each block first the `struct erofs_dirent`s, then
/// the names; all blocks but the last are filled up with zeros.
fn directory(names: &[Name<'_>]) -> Vec<u8> {
    const DIRENT_LEN: usize = 12;
    let mut bytes = Vec::new();
    let mut rest = names;
    while !rest.is_empty() {
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        let mut room = BLOCK;
        let fitting = rest
            .iter()
            .take_while(|(name, ..)| {
                let fits = room.checked_sub(DIRENT_LEN + name.len());
                room = fits.unwrap_or(0);
                fits.is_some()
            })
            .count();
        let (block, after) = rest.split_at(fitting.max(1));
        let mut name_at = block.len() * DIRENT_LEN;
        for (name, slot, kind) in block {
            bytes.extend((*slot as u64).to_le_bytes());
            bytes.extend((name_at as u16).to_le_bytes());
            bytes.extend([*kind, 0]);
            name_at += name.len();
        }
        bytes.extend(block.iter().flat_map(|(name, ..)| *name));
        rest = after;
    }
    bytes
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
