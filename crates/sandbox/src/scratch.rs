//! The names in a build's scratch directory.

use std::io;
use std::path::{Path, PathBuf};

use crate::record;

/// The layout of a scratch directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Scratch(path.into())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Where the builder's `<store dir>/<name>` lies on the host, after the build.
    pub fn output(&self, name: &str) -> PathBuf {
        self.store().join(name)
    }

    /// The builder's `build_dir`.
    pub fn build_dir(&self) -> PathBuf {
        self.0.join("build")
    }

    /// Everything the builder wrote to its stdout and stderr, as it came.
    pub fn log(&self) -> PathBuf {
        self.0.join("log")
    }

    /// Leaves word for whoever finds the directory after the caller's death. Once, before the build is started.
    pub fn leave_note(&self, note: &[u8]) -> io::Result<()> {
        record::write(&self.note_file(), note)
    }

    /// The note of the build that is or was here.
    pub fn note(&self) -> io::Result<Option<Vec<u8>>> {
        record::read(&self.note_file())
    }

    pub(crate) fn note_file(&self) -> PathBuf {
        self.0.join("note")
    }

    /// The upper layer of the store's overlay: one directory, [`Scratch::store`].
    pub(crate) fn upper(&self) -> PathBuf {
        self.0.join("upper")
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.0.join("upper/store")
    }

    /// The overlay's work directory, if there is one; in the sandbox's mount name space layers are attached there.
    pub(crate) fn work(&self) -> PathBuf {
        self.0.join("work")
    }

    /// The builder's `/tmp`; in the sandbox's mount name space its root is attached there.
    pub(crate) fn tmp(&self) -> PathBuf {
        self.0.join("tmp")
    }

    /// The image of the view layer.
    pub(crate) fn view(&self) -> PathBuf {
        self.0.join("view")
    }

    pub(crate) fn exit(&self) -> PathBuf {
        self.0.join("exit")
    }

    /// Empty directories and files on which inputs were mounted, for the next build in this directory.
    pub(crate) fn places(&self) -> PathBuf {
        self.0.join("places")
    }
}
