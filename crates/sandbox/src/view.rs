//! The view layer: an overlay layer of almost nothing, whose entries lead to the inputs.
//!
//! An overlay merges directories of the same path. The view holds an empty directory for each input directory
//! and says in `trusted.overlay.redirect` where its contents are in the layer below, which is the directory
//! above the trees. So one mount shows any selection of trees, at a cost of bytes and not of mounts. All
//! entries lie in [`STORE`], which is opaque: of the layer below nothing shows but what is redirected to.
//!
//! Made as an EROFS image (a file of some 200 bytes an entry, one mount), or where the kernel can't mount a
//! file (before 6.12) in a tmpfs (three system calls an entry).

mod erofs;
mod tmpfs;

use std::io;
use std::os::fd::OwnedFd;

use crate::Scratch;

/// The only directory in the root of the upper layer and of the view.
pub(crate) const STORE: &str = "store";

/// Modes and times of everything in a store.
const DIRECTORY_MODE: u32 = 0o555;
const MTIME: i64 = 1;

/// What [`Entry`] is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File { size: u64, mode: u32 },
    Symlink { target: Vec<u8> },
}

/// One name in the store directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry<'a> {
    pub name: &'a str,
    pub kind: Kind,
    /// Where the contents are in the layer below. Without it a directory or file is empty, for something to be
    /// mounted on.
    pub redirect: Option<Redirect<'a>>,
}

/// The absolute path of a tree in the layer below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Redirect<'a> {
    /// The directory of the trees, with slashes before and after it.
    pub home: &'a [u8],
    pub name: &'a [u8],
}

/// Makes a detached mount of a view. Names must be sorted and different.
pub(crate) type Mount = fn(&[Entry<'_>], &Scratch) -> io::Result<OwnedFd>;

/// The ways to make one, best first.
pub(crate) const KINDS: [(&str, Mount); 2] = [("erofs", erofs::mount), ("tmpfs", tmpfs::mount)];

/// The best view that can be made.
pub(crate) fn mount(entries: &[Entry<'_>], scratch: &Scratch) -> io::Result<OwnedFd> {
    let [(_, best), (_, second)] = KINDS;
    best(entries, scratch).or_else(|_| second(entries, scratch))
}

/// Empty places instead of a view: a file system of entries without redirects.
pub(crate) fn mount_places(entries: &[Entry<'_>], scratch: &Scratch) -> io::Result<OwnedFd> {
    tmpfs::mount(entries, scratch)
}

/// Extended attributes, without the `trusted.` before their names.
const REDIRECT: &str = "overlay.redirect";
const METACOPY: &str = "overlay.metacopy";
const OPAQUE: &str = "overlay.opaque";
const OPAQUE_VALUE: &[u8] = b"y";

impl Entry<'_> {
    /// Symlinks have all they need.
    fn effective_redirect(&self) -> Option<Redirect<'_>> {
        self.redirect.filter(|_| !matches!(self.kind, Kind::Symlink { .. }))
    }
}
