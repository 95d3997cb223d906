//! The store directory: the inputs, read-only, and room for the outputs.
//!
//! Either one overlay of a [`view`] for all inputs, or one bind mount each on the directory of the outputs.
//! The overlay needs root's rights in the first user name space and trees on a file system that overlays can
//! read; for a few inputs bind mounts are faster.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, mkdirat, openat, readlinkat, statat, symlinkat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
};

use crate::failure::{Attempt, Doing, Failure};
use crate::identity::Rights;
use crate::rootfs::{Root, attach, copy_mount};
use crate::spec::EncodedInput;
use crate::view::{self, Entry, Kind, Redirect, STORE};
use crate::{Personality, Scratch, Spec, sys};

/// Up to this many inputs bind mounts (30 us each, measured) cost less than a view (350 us).
const BIND_MAX: usize = 8;

/// What shall be shown, looked at before anything is mounted. Sorted by name, each name once.
pub(crate) struct Plan<'a>(Vec<Planned<'a>>);

/// An input and what its tree is.
struct Planned<'a> {
    input: EncodedInput<'a>,
    kind: Kind,
}

impl<'a> Plan<'a> {
    /// Looks at every tree.
    pub fn new(inputs: Vec<EncodedInput<'a>>) -> Attempt<Plan<'a>> {
        let mut trees = Trees::default();
        let mut planned = inputs
            .into_iter()
            .map(|input| Ok(Planned { input, kind: kind(input, &mut trees)? }))
            .collect::<Attempt<Vec<_>>>()?;
        planned.sort_unstable_by_key(|planned| planned.input.name);
        planned.dedup_by_key(|planned| planned.input.name);
        Ok(Plan(planned))
    }

    /// Shows the store in `root`.
    pub fn mount(&self, spec: &Spec, scratch: &Scratch, root: &Root, rights: Rights) -> Attempt<()> {
        root.make_dir(&spec.store_dir)?;
        let many = self.0.len() > BIND_MAX;
        if rights == Rights::Root && many && overlay(spec, scratch, root, &self.0).is_ok() {
            return Ok(());
        }
        let outputs = copy_mount(CWD, &scratch.store()).doing("opening the output directory")?;
        root.attach(outputs, &spec.store_dir)?;
        let mut trees = Trees::default();
        self.0.iter().try_for_each(|planned| {
            make_room(planned, scratch)?;
            cover(planned, spec, root, &mut trees)
        })
    }
}

fn kind<'a>(input: EncodedInput<'a>, trees: &mut Trees<'a>) -> Attempt<Kind> {
    let doing = || format!("looking at input '{}'", input.tree.display());
    let (dir, name) = trees.locate(input.tree)?;
    let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).doing_with(doing)?;
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Kind::Directory,
        FileType::Symlink => {
            let target = readlinkat(dir, name, Vec::new()).doing_with(doing)?;
            Kind::Symlink { target: target.into_bytes() }
        }
        _ => Kind::File { size: stat.st_size as u64, mode: stat.st_mode & 0o555 },
    })
}

/// The directory that the last asked-for tree lies in, kept open: it is mostly the same for all.
#[derive(Default)]
struct Trees<'a> {
    last: Option<(&'a Path, OwnedFd)>,
}

impl<'a> Trees<'a> {
    /// A tree's directory and its name in there.
    fn locate(&mut self, tree: &'a Path) -> Attempt<(BorrowedFd<'_>, &'a OsStr)> {
        let (dir, name) = split(tree);
        // Not compared by components, which is slow.
        if self.last.as_ref().is_none_or(|(last, _)| last.as_os_str() != dir.as_os_str()) {
            self.last = None;
        }
        let (_, fd) = match &mut self.last {
            Some(last) => last,
            none => none.insert((dir, open_dir(dir)?)),
        };
        Ok((OwnedFd::as_fd(fd), name))
    }
}

/// Directory and name. A thousand times by `Path`'s components would take half a millisecond.
fn split(tree: &Path) -> (&Path, &OsStr) {
    let bytes = tree.as_os_str().as_bytes();
    let (dir, name) = match bytes.iter().rposition(|byte| *byte == b'/') {
        Some(0) => (&b"/"[..], &bytes[1..]),
        Some(slash) => (&bytes[..slash], &bytes[slash + 1..]),
        None => (&b"."[..], bytes),
    };
    (Path::new(OsStr::from_bytes(dir)), OsStr::from_bytes(name))
}

pub(crate) fn open_dir(path: &Path) -> Attempt<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).doing(format_args!("opening directory '{}'", path.display()))
}

/// Makes room for one input in the directory of the outputs.
fn make_room(input: &Planned<'_>, scratch: &Scratch) -> Attempt<()> {
    let target = scratch.store().join(input.input.name);
    let made = match &input.kind {
        Kind::Symlink { target: link } => symlinkat(link.as_slice(), CWD, target),
        Kind::Directory => mkdirat(CWD, &target, Mode::from_raw_mode(0o555)),
        Kind::File { .. } => {
            let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
            openat(CWD, &target, flags, Mode::from_raw_mode(0o444)).map(drop)
        }
    };
    made.doing(format_args!("making room for input '{}'", input.input.tree.display()))
}

/// Mounts all inputs at once, and singly those that do not lie with most of the others.
fn overlay<'a>(spec: &Spec, scratch: &Scratch, root: &Root, inputs: &[Planned<'a>]) -> Attempt<()> {
    let (home, _) = inputs.first().map_or((Path::new("/"), OsStr::new("")), |first| split(first.input.tree));
    let (Some(below), Some(home_name)) = (home.parent(), home.file_name()) else {
        return Err(Failure::new("trees in the root directory"));
    };
    let is_home = |tree: &Path| split(tree).0.as_os_str() == home.as_os_str();
    let home_path = [b"/", home_name.as_bytes(), b"/"].concat();
    let entry = |planned: &Planned<'a>| {
        let redirect = Redirect { home: &home_path, name: split(planned.input.tree).1.as_bytes() };
        let redirect = is_home(planned.input.tree).then_some(redirect);
        Entry { name: planned.input.name, kind: planned.kind.clone(), redirect }
    };
    let entries: Vec<Entry> = inputs.iter().map(entry).collect();
    let view = view::mount(&entries, scratch).doing("mounting the view of the inputs")?;
    // Layers must be attached somewhere; these places vanish with the old root.
    attach(&view, CWD, &scratch.tmp()).doing("attaching the view")?;
    let layers = [view, open_dir(below)?, open_dir(&scratch.upper())?, open_dir(&scratch.work())?];
    let overlay = new_overlay(&layers, spec.personality).doing("mounting the overlay of the inputs")?;
    attach(&overlay, CWD, &scratch.work()).doing("attaching the overlay")?;
    let store = copy_mount(CWD, &scratch.work().join(STORE)).doing("opening the overlay")?;
    root.attach(store, &spec.store_dir)?;
    let mut trees = Trees::default();
    let mut elsewhere = inputs.iter().filter(|planned| !is_home(planned.input.tree));
    elsewhere.try_for_each(|planned| cover(planned, spec, root, &mut trees))
}

/// Mounts an input on its empty place in the store directory. Symlinks are there already.
fn cover<'a>(input: &Planned<'a>, spec: &Spec, root: &Root, trees: &mut Trees<'a>) -> Attempt<()> {
    if let Kind::Symlink { .. } = input.kind {
        return Ok(());
    }
    let doing = || format!("binding input '{}'", input.input.tree.display());
    let (dir, tree) = trees.locate(input.input.tree)?;
    let mount = copy_mount(dir, Path::new(tree)).doing_with(doing)?;
    sys::set_read_only(&mount).doing_with(doing)?;
    root.attach(mount, &spec.store_dir.join(input.input.name))
}

/// A detached overlay of view, layer below, upper and work directory. They are named by their descriptors:
/// option values are limited to 255 bytes and would need quoting.
pub(crate) fn new_overlay(layers: &[OwnedFd; 4], personality: Personality) -> io::Result<OwnedFd> {
    let [view, below, upper, work] = layers.each_ref().map(|fd| format!("/proc/self/fd/{}", fd.as_raw_fd()));
    let lower = format!("{view}:{below}");
    // Old 32-bit programs can't stat a file whose inode number has a layer's number in its upper bits.
    let xino = if personality == Personality::Linux32 { "off" } else { "on" };
    let options = [
        ("lowerdir", lower.as_str()),
        ("upperdir", &upper),
        ("workdir", &work),
        ("redirect_dir", "on"),
        ("metacopy", "on"),
        ("index", "off"),
        ("xino", xino),
    ];
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        fsconfig_set_string(&context, key, value)?;
    }
    // Without it every end of a build would flush the whole file system below.
    fsconfig_set_flag(&context, "volatile")?;
    fsconfig_create(&context)?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
}
