//! Tries overlays out, in a process and a mount name space made for it.

use std::ffi::OsStr;
use std::fs::{create_dir_all, metadata, read, write};
use std::io;
use std::path::Path;

use rustix::fs::{CWD, Mode};
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::umask;
use rustix::thread::UnshareFlags;

use crate::failure::{Attempt, Doing, Failure};
use crate::identity::Rights;
use crate::overlay::Layers;
use crate::store::open_dir;
use crate::view::{self, Entry, Kind, Redirect, STORE};
use crate::{Personality, Scratch, rootfs, sys};

const CONTENT: &[u8] = b"content";

/// Prints the kinds of view that can be used for inputs and outputs in `dir`, an empty directory, or why there
/// are none.
pub(crate) fn overlays(dir: Option<&OsStr>) -> io::Result<()> {
    let dir = Path::new(dir.ok_or(io::ErrorKind::InvalidInput)?);
    let mut failures = Vec::new();
    let mut found = Vec::new();
    sys::unshare(UnshareFlags::NEWNS)?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    umask(Mode::empty());
    for (kind, mount) in view::KINDS {
        match try_view(&dir.join(kind), mount) {
            Ok(()) => found.push(kind),
            Err(failure) => failures.push(format!("{kind}: {failure}")),
        }
    }
    let answer = if found.is_empty() { failures.join("; ") } else { found.join(" ") };
    println!("{answer}");
    Ok(())
}

fn try_view(dir: &Path, mount: view::Mount) -> Attempt<()> {
    let scratch = Scratch::new(dir);
    let trees = dir.join("trees");
    for made in [dir, &scratch.store(), &scratch.work(), &trees.join("directory/inner")] {
        create_dir_all(made).doing(format_args!("creating {}", made.display()))?;
    }
    write(trees.join("file"), CONTENT).doing("writing a file")?;
    let kinds = [
        ("directory", Kind::Directory),
        ("file", Kind::File { size: CONTENT.len() as u64, mode: 0o444 }),
        ("link", Kind::Symlink { target: b"file".to_vec() }),
    ];
    let entries = kinds.map(|(name, kind)| {
        let redirect = Some(Redirect { home: b"/trees/", name: name.as_bytes() });
        Entry { name, kind, redirect }
    });
    let view = mount(&entries, &scratch).doing("making a view")?;
    let (upper, work, below) = (open_dir(&scratch.upper())?, open_dir(&scratch.work())?, open_dir(dir)?);
    rootfs::attach(&view, CWD, &scratch.work()).doing("attaching the view")?;
    let layers = Layers { view: &view, below: Some(&below), upper: &upper, work: &work };
    let overlay = layers.mount(Rights::Root, Personality::Native).doing("mounting an overlay")?;
    rootfs::attach(&overlay, CWD, &scratch.work()).doing("attaching the overlay")?;
    let shown = scratch.work().join(STORE);
    metadata(shown.join("directory/inner")).doing("looking through the overlay")?;
    match read(shown.join("link")).doing("reading through the overlay")? == CONTENT {
        true => Ok(()),
        false => Err(Failure::new("the overlay shows other bytes")),
    }
}
