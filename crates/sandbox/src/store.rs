//! The store directory: the inputs, read-only, and room for the outputs.
//!
//! Who starts a build may give it a view, a directory that holds all inputs already: then an overlay of that is all
//! there is to do. Else three ways, the best that the machine allows: an overlay of a [`view`] that shows all inputs
//! by itself; an overlay of empty places with a bind mount of its input on each; places in the directory of the
//! outputs, with the same. The first needs root's rights in the first user name space, and trees on a file system
//! that overlays can read. For a few inputs the last is the fastest.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, mkdirat, openat, readlinkat, statat, symlinkat};

use crate::failure::{Attempt, Doing, Failure};
use crate::identity::Rights;
use crate::overlay::Layers;
use crate::recycle::Places;
use crate::rootfs::{Root, attach, copy_mount};
use crate::spec::EncodedInput;
use crate::view::{self, Entry, Kind, Redirect, STORE};
use crate::{Scratch, Spec, sys};

/// Up to this many inputs bind mounts (30 us each, measured) cost less than a view (350 us).
pub(crate) const BIND_MAX: usize = 8;

/// What shall be shown, looked at before anything is mounted. Sorted by name, each name once.
pub(crate) struct Plan<'a> {
    inputs: Vec<Planned<'a>>,
    /// A mount of the directory above all inputs, in their place.
    given: Option<OwnedFd>,
}

/// An input and what its tree is.
struct Planned<'a> {
    input: EncodedInput<'a>,
    kind: Kind,
}

impl<'a> Plan<'a> {
    /// Looks at every tree.
    pub fn new(inputs: Vec<EncodedInput<'a>>, given: Option<OwnedFd>) -> Attempt<Plan<'a>> {
        let mut trees = Trees::default();
        let mut planned = inputs
            .into_iter()
            .map(|input| Ok(Planned { input, kind: kind(input, &mut trees)? }))
            .collect::<Attempt<Vec<_>>>()?;
        planned.sort_unstable_by_key(|planned| planned.input.name);
        planned.dedup_by_key(|planned| planned.input.name);
        Ok(Plan { inputs: planned, given })
    }

    /// Shows the store in `root`.
    pub fn mount(&self, spec: &Spec, scratch: &Scratch, root: &Root, rights: Rights) -> Attempt<()> {
        root.make_dir(&spec.store_dir)?;
        let site = Site { spec, scratch, root };
        if let Some(given) = &self.given {
            return site.attach_overlay(given, None, &make_work(scratch)?, rights);
        }
        if self.inputs.len() > BIND_MAX && !spec.binds_inputs {
            let work = make_work(scratch)?;
            if rights == Rights::Root && self.mount_view(&site, &work).is_ok() {
                return Ok(());
            }
            if self.mount_places(&site, &work, rights).is_ok() {
                return Ok(());
            }
        }
        let outputs = copy_mount(CWD, &scratch.store()).doing("opening the output directory")?;
        root.attach(outputs, &spec.store_dir)?;
        let mut places = Places::default();
        self.inputs.iter().try_for_each(|planned| make_room(planned, scratch, &mut places))?;
        self.cover(&site, |_| true)
    }

    /// One overlay for all inputs, and singly those that do not lie where the first one does.
    fn mount_view(&self, site: &Site<'_>, work: &OwnedFd) -> Attempt<()> {
        let (home, _) = self.inputs.first().map_or((Path::new("/"), OsStr::new("")), |first| split(first.input.tree));
        let (Some(below), Some(home_name)) = (home.parent(), home.file_name()) else {
            return Err(Failure::new("trees in the root directory"));
        };
        let is_home = |tree: &Path| split(tree).0.as_os_str() == home.as_os_str();
        let home_path = [b"/", home_name.as_bytes(), b"/"].concat();
        let entry = |planned: &Planned<'a>| {
            let redirect = Redirect { home: &home_path, name: split(planned.input.tree).1.as_bytes() };
            planned.entry(is_home(planned.input.tree).then_some(redirect))
        };
        let entries: Vec<Entry> = self.inputs.iter().map(entry).collect();
        let view = view::mount(&entries, site.scratch).doing("mounting the view of the inputs")?;
        let below = open_dir(below)?;
        site.attach_overlay(&view, Some(&below), work, Rights::Root)?;
        self.cover(site, |planned| !is_home(planned.input.tree))
    }

    /// One overlay of places for inputs. Making them in a tmpfs costs a hundredth of making them on a disk.
    fn mount_places(&self, site: &Site<'_>, work: &OwnedFd, rights: Rights) -> Attempt<()> {
        let entries: Vec<Entry> = self.inputs.iter().map(|planned| planned.entry(None)).collect();
        let places = view::mount_places(&entries, site.scratch).doing("mounting places for the inputs")?;
        site.attach_overlay(&places, None, work, rights)?;
        self.cover(site, |_| true)
    }

    /// Mounts inputs on their empty places in the store directory. Symlinks are there already.
    fn cover(&self, site: &Site<'_>, which: impl Fn(&Planned<'a>) -> bool) -> Attempt<()> {
        let mut trees = Trees::default();
        for planned in self.inputs.iter().filter(|planned| which(planned)) {
            if let Kind::Symlink { .. } = planned.kind {
                continue;
            }
            let EncodedInput { name, tree } = planned.input;
            let doing = || format!("binding input '{}'", tree.display());
            let (dir, tree_name) = trees.locate(tree)?;
            let mount = copy_mount(dir, Path::new(tree_name)).doing_with(doing)?;
            sys::set_read_only(&mount).doing_with(doing)?;
            site.root.attach(mount, &site.spec.store_dir.join(name))?;
        }
        Ok(())
    }
}

/// Where all this happens.
struct Site<'a> {
    spec: &'a Spec,
    scratch: &'a Scratch,
    root: &'a Root,
}

impl Site<'_> {
    /// Makes the store directory of an overlay the builder's. Layers must be attached somewhere; what is attached
    /// to the work directory vanishes with the old root.
    fn attach_overlay(&self, view: &OwnedFd, below: Option<&OwnedFd>, work: &OwnedFd, rights: Rights) -> Attempt<()> {
        let place = self.scratch.work();
        attach(view, CWD, &place).doing("attaching a layer")?;
        let layers = Layers { view, below, upper: &open_dir(&self.scratch.upper())?, work };
        let overlay = layers.mount(rights, self.spec.personality).doing("mounting the overlay of the inputs")?;
        attach(&overlay, CWD, &place).doing("attaching the overlay")?;
        let store = copy_mount(CWD, &place.join(STORE)).doing("opening the overlay")?;
        self.root.attach(store, &self.spec.store_dir)
    }
}

/// The work directory itself, whatever is mounted there later.
fn make_work(scratch: &Scratch) -> Attempt<OwnedFd> {
    mkdirat(CWD, scratch.work(), Mode::from_raw_mode(0o700)).doing("creating a work directory")?;
    open_dir(&scratch.work())
}

impl<'a> Planned<'a> {
    fn entry<'b>(&self, redirect: Option<Redirect<'b>>) -> Entry<'b>
    where
        'a: 'b,
    {
        Entry { name: self.input.name, kind: self.kind.clone(), redirect }
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
fn make_room(input: &Planned<'_>, scratch: &Scratch, places: &mut Places) -> Attempt<()> {
    let target = scratch.store().join(input.input.name);
    let made = match &input.kind {
        Kind::Symlink { target: link } => symlinkat(link.as_slice(), CWD, target),
        Kind::Directory if places.put(scratch, FileType::Directory, &target) => Ok(()),
        // Writable to its owner, without which only root could move it to another directory.
        Kind::Directory => mkdirat(CWD, &target, Mode::from_raw_mode(0o755)),
        Kind::File { .. } if places.put(scratch, FileType::RegularFile, &target) => Ok(()),
        Kind::File { .. } => {
            let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
            openat(CWD, &target, flags, Mode::from_raw_mode(0o444)).map(drop)
        }
    };
    made.doing(format_args!("making room for input '{}'", input.input.tree.display()))
}
