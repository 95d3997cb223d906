//! A mount and its threads, from beginning to end.

use crate::counts::{Stats, Upcalls};
use crate::errands::Pause;
use crate::fetches::Fetches;
use crate::file_system::{FileSystem, Shared};
use crate::loads::Loads;
use crate::numbers::Numbers;
use crate::options::Options;
use crate::overlay::{self, Overlay};
use crate::recovery;
use crate::source::Source;
use crate::table::{ROOT, Shown, Table};
use crate::views::ViewPaths;
use crate::{greeting, mountinfo, resumed, tree::Tree};
use fuser::{BackgroundSession, Config, INodeNo, MountOption, Notifier, Session, SessionACL};
use rustix::io::Errno;
use shoal_wire::mesh::manifest::Manifest;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use thiserror::Error;

/// What mounts of ours are called in the list of mounts.
pub const SOURCE_NAME: &str = "shoal";
/// Threads that answer the kernel. What they do takes microseconds; a second one is there for the second core.
const ANSWERERS: usize = 2;
/// Symlinks at the place of a mount that are followed one after the other: as many as the kernel follows.
const SYMLINKS_MAX: usize = 40;
/// The kernel says by itself what it forgot after it was told that names are gone: so long it is waited for.
const FORGET_PATIENCE: Duration = Duration::from_millis(500);
/// An aborted session ends at once.
pub(crate) const END_PATIENCE: Duration = Duration::from_secs(2);
pub(crate) const FORGET_LOOK: Duration = Duration::from_millis(5);

/// Why nothing was mounted.
#[derive(Debug, Error)]
pub enum MountError {
    #[error("cannot mount at {dir}: {error}")]
    Directory { dir: PathBuf, error: io::Error },
    #[error("cannot mount at {dir}: {error}")]
    Mount { dir: PathBuf, error: io::Error },
    /// Who serves it reads his own program through it, and is not started again once he was killed.
    #[error(
        "an overlay at {dir} would have this program in it, which could not be started again if it were killed: copy it to \
         somewhere else and start it from there, or mount at another directory"
    )]
    OwnProgram { dir: PathBuf },
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
}

/// A store that is mounted. Unmounts when dropped.
pub struct Mount {
    dir: PathBuf,
    session: Option<BackgroundSession>,
    handle: Handle,
    threads: Vec<JoinHandle<()>>,
}

/// What is needed to go on with a mount. For as long as somebody holds it, the mount is there, and who asks it waits.
pub struct Kept {
    pub device: OwnedFd,
    pub numbers: OwnedFd,
    /// The directory that an overlay lies over.
    pub beneath: Option<OwnedFd>,
}

type Started = (Arc<Overlay>, Pause, Vec<JoinHandle<()>>);

/// All of a mount but the connection to the kernel.
struct Parts {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    pause: Option<Pause>,
}

impl Parts {
    fn start(
        source: Arc<dyn Source>,
        options: &Options,
        table: Table,
        overlay: Option<Started>,
    ) -> Result<Parts, MountError> {
        let (overlay, pause, on_disk) = match overlay {
            Some((overlay, pause, threads)) => (Some(overlay), Some(pause), threads),
            None => (None, None, Vec::new()),
        };
        let table = Arc::new(table);
        let (fetches, mut threads) = Fetches::start(source.clone(), options).map_err(MountError::Thread)?;
        let (loads, more) =
            Loads::start(source, table.clone(), options.lookup_deadline, true).map_err(MountError::Thread)?;
        threads.extend(more.into_iter().chain(on_disk));
        let shared = Arc::new(Shared { overlay, ..Shared::new(table, loads, fetches) });
        Ok(Parts { shared, threads, pause })
    }

    fn run(self, dir: &Path, session: io::Result<Session<FileSystem>>) -> Result<Mount, MountError> {
        let Parts { shared, mut threads, pause } = self;
        let session = match session.and_then(Session::spawn) {
            Ok(session) => session,
            Err(error) => {
                shared.end();
                return Err(MountError::Mount { dir: dir.to_owned(), error });
            }
        };
        let handle = Handle { shared, notifier: session.notifier() };
        threads.push(handle.follow_losses().map_err(MountError::Thread)?);
        if let (Some(overlay), Some(pause)) = (handle.shared.overlay.clone(), pause) {
            threads.push(overlay::watch(overlay, handle.clone(), pause).map_err(MountError::Thread)?);
        }
        Ok(Mount { dir: dir.to_owned(), session: Some(session), handle, threads })
    }
}

/// Tells a mount what became of paths. Cheap to clone. Its methods wait for the kernel, so they are never called from
/// within a source.
#[derive(Clone)]
pub struct Handle {
    pub(crate) shared: Arc<Shared>,
    pub(crate) notifier: Notifier,
}

impl Mount {
    /// Mounts at an existing directory, after what is left of an earlier mount there was taken away.
    pub fn start(dir: &Path, source: Arc<dyn Source>, options: &Options) -> Result<Mount, MountError> {
        let dir = cleared(dir)?;
        let overlay = overlay_at(&dir, options)?;
        let parts = Parts::start(source, options, Table::default(), overlay)?;
        let session = Session::new(FileSystem(parts.shared.clone()), &dir, &config(options));
        let mount = parts.run(&dir, session)?;
        greeting::greet(&dir);
        Ok(mount)
    }

    /// As [`Mount::start`], for a mount that others may go on with, and what they need for that. `None` where the kernel
    /// does not ask again what was not answered.
    pub fn start_to_keep(
        dir: &Path,
        source: Arc<dyn Source>,
        options: &Options,
    ) -> Result<(Mount, Option<Kept>), MountError> {
        let dir = cleared(dir)?;
        let fails = |error| MountError::Mount { dir: dir.clone(), error };
        let overlay = overlay_at(&dir, options)?;
        let beneath = overlay.as_ref().map(|(overlay, ..)| overlay.dir()).transpose().map_err(fails)?;
        let numbers = Numbers::new().map_err(fails)?;
        let shared = numbers.share().map_err(fails)?;
        let parts = Parts::start(source, options, Table::keeping(numbers, Vec::new()), overlay)?;
        let session = Session::new(FileSystem(parts.shared.clone()), &dir, &config(options));
        let device = session.as_ref().ok().map(|session| session.as_fd().try_clone_to_owned()).transpose();
        let mount = parts.run(&dir, session)?;
        greeting::greet(&dir);
        let can_be_kept = mount.handle.shared.asks_again.load(Ordering::Acquire);
        let device = device.map_err(fails)?.filter(|_| can_be_kept);
        Ok((mount, device.map(|device| Kept { device, numbers: shared, beneath })))
    }

    /// Goes on with a mount that another process served, and that is still there.
    pub fn resume(dir: &Path, kept: Kept, source: Arc<dyn Source>, options: &Options) -> Result<Mount, MountError> {
        let Kept { device, numbers, beneath } = kept;
        let dir = absolute(dir).map_err(|error| MountError::Directory { dir: dir.to_owned(), error })?;
        let fails = |error| MountError::Mount { dir: dir.clone(), error };
        // Its connection lives on in mount namespaces that were copied while it was there, as builders' are.
        if mountinfo::ours_at(&mountinfo::read().map_err(fails)?, &dir).is_none() {
            return Err(fails(io::Error::new(io::ErrorKind::NotFound, "it was unmounted")));
        }
        let (numbers, reserved) = Numbers::reopen(numbers).map_err(fails)?;
        let overlay = beneath.map(Overlay::over).transpose().map_err(fails)?;
        let mut parts = Parts::start(source, options, Table::keeping(numbers, reserved), overlay)?;
        let Shared { late, loads, .. } = &*parts.shared;
        parts.threads.push(late.start(loads.clone()).map_err(MountError::Thread)?);
        let session = resumed::session(FileSystem(parts.shared.clone()), &device, config(options));
        let mount = parts.run(&dir, session)?;
        let device = mount.handle.shared.device.get_or_init(|| device);
        resumed::ask_again(device.as_fd()).map_err(fails)?;
        // What is listed may be other paths by now.
        mount.handle.list_changed();
        Ok(mount)
    }

    /// Leaves the mount to whoever goes on with it. This process serves it until it ends, which should be soon; what
    /// fails here from now on is not answered, and asked of the next.
    pub fn leave(mut self) {
        self.handle.shared.is_left.store(true, Ordering::Release);
        // Dropped, it would unmount.
        std::mem::forget(self.session.take());
    }

    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Whether somebody else unmounted it, or it broke.
    pub fn has_ended(&self) -> bool {
        self.session.as_ref().is_none_or(|session| session.guard.is_finished())
    }

    /// Unmounts, although it may be in use: who has something open gets errors from then on. Waits for those threads
    /// that are not waiting for the source.
    pub fn stop(mut self) -> io::Result<()> {
        self.end()
    }

    fn end(&mut self) -> io::Result<()> {
        let Some(session) = self.session.take() else { return Ok(()) };
        self.handle.shared.end();
        let lines = mountinfo::read()?;
        let removed = match mountinfo::ours_at(&lines, &self.dir) {
            Some(line) if !session.guard.is_finished() => recovery::remove(line),
            _ => Ok(()),
        };
        removed?;
        // Detached and not aborted, it goes on for as long as somebody uses it.
        let deadline = Instant::now() + END_PATIENCE;
        while !session.guard.is_finished() && Instant::now() < deadline {
            thread::sleep(FORGET_LOOK);
        }
        if session.guard.is_finished() {
            // It is unmounted by now, and is not to be again: `umount_and_join` would.
            session.join()?;
        }
        self.threads.retain(|thread| !thread.is_finished());
        Ok(())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::warn!(dir = %self.dir.display(), %error, "the store was not unmounted");
        }
    }
}

impl Handle {
    /// A path became valid: it is listed from now on.
    pub fn appeared(&self, name: &str, manifest: &Manifest) {
        self.shared.table.insert(name, Tree::new(manifest));
        self.list_changed();
    }

    /// These paths are not valid any more. Who has something of them open keeps what is in memory.
    pub fn vanished(&self, names: &[String]) {
        for name in names {
            let removed = self.shared.table.remove(name);
            self.forget(name);
            self.drop_if_unknown(removed);
        }
        self.list_changed();
    }

    /// What somebody read of a path is nowhere: it is shown no more, and who looks its name up again has it asked for. It
    /// may have been deleted where it was, and made again with other contents.
    pub(crate) fn lost(&self, shown: &Arc<Shown>) {
        if !self.shared.is_left.load(Ordering::Acquire) && self.shared.table.remove_this(shown) {
            self.forget(&shown.name);
            self.drop_if_unknown(Some(shown.clone()));
            self.list_changed();
        }
    }

    /// A path that is not found any more, and of which nobody counted what the kernel knows: that is asked once more, and
    /// where it is nothing the path goes.
    fn drop_if_unknown(&self, removed: Option<Arc<Shown>>) {
        if let Some((shown, device)) = removed.filter(|shown| shown.is_restored()).zip(self.shared.device.get())
            && shown.known_node(|node| resumed::is_known(device.as_fd(), node)).is_none()
        {
            self.shared.table.drop_restored(&shown);
        }
    }

    /// Follows what reads find to be lost, on a thread of its own: telling the kernel waits for look-ups.
    pub(crate) fn follow_losses(&self) -> io::Result<JoinHandle<()>> {
        let (handle, losses) = (self.clone(), self.shared.fetches.losses());
        let follow = move || losses.iter().for_each(|shown| handle.lost(&shown));
        thread::Builder::new().name("losses".into()).spawn(follow)
    }

    /// Which of these paths somebody has open, or is in. The kernel is made to forget the others.
    pub fn in_use(&self, names: &[String]) -> Vec<String> {
        let known = |name: &&String| self.shared.is_known(name);
        let deadline = Instant::now() + FORGET_PATIENCE;
        let mut left: Vec<&String> = names.iter().filter(known).collect();
        // Each may wait for look-ups at the root. Those that there is no time for count as used.
        left.iter().take_while(|_| Instant::now() < deadline).for_each(|name| self.forget(name));
        loop {
            left.retain(known);
            if left.is_empty() || Instant::now() >= deadline {
                return left.into_iter().cloned().collect();
            }
            thread::sleep(FORGET_LOOK);
        }
    }

    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// Whether all that the source listed when the mount began is in memory.
    pub fn is_listed(&self) -> bool {
        self.shared.loads.is_listed()
    }

    /// A view is not used any more.
    pub(crate) fn end_view(&self, view: &Arc<ViewPaths>) {
        self.forget_all(&self.shared.views.end(view));
    }

    /// Has the kernel forget ended views.
    pub(crate) fn forget_views(&self, which: impl Fn(&ViewPaths) -> bool) {
        self.forget_all(&self.shared.views.give_up(which));
    }

    fn forget_all(&self, views: &[Arc<ViewPaths>]) {
        // As below.
        views.iter().for_each(|view| drop(self.notifier.inval_entry(INodeNo(ROOT), OsStr::new(&view.name()))));
    }

    fn forget(&self, name: &str) {
        self.forget_views(|view| view.path(name.as_bytes()).is_some());
        self.forget_name(OsStr::new(name));
    }

    pub(crate) fn forget_name(&self, name: &OsStr) {
        // The kernel may not know it, or the mount may be gone: then there is nothing to forget.
        let _ = self.notifier.inval_entry(INodeNo(ROOT), name);
    }

    pub(crate) fn list_changed(&self) {
        let _ = self.notifier.inval_inode(INodeNo(ROOT), 0, 0);
    }
}

impl Shared {
    pub(crate) fn new(table: Arc<Table>, loads: Arc<Loads>, fetches: Arc<Fetches>) -> Shared {
        Shared {
            table,
            loads,
            fetches,
            views: Arc::default(),
            overlay: None,
            late: Arc::default(),
            device: OnceLock::new(),
            asks_again: false.into(),
            upcalls: Upcalls::default(),
            has_ended: false.into(),
            is_left: false.into(),
        }
    }

    /// Whether the kernel may have something of a path, also where it is not found any more. What it was given by an
    /// earlier server nobody counted, so it is asked.
    fn is_known(&self, name: &str) -> bool {
        let mut shown = self.table.all_of(name).into_iter();
        let Some(device) = self.device.get() else {
            return shown.any(|shown| shown.is_known());
        };
        let is_known = |node| resumed::is_known(device.as_fd(), node);
        let is_shown_known = |shown: Arc<Shown>| match shown.is_restored() {
            true => shown.known_node(is_known).is_some(),
            false => shown.is_known(),
        };
        shown.any(is_shown_known) || self.table.restored(name).is_some_and(|mut nodes| nodes.any(is_known))
    }

    pub(crate) fn end(&self) {
        self.late.end();
        self.loads.end();
        self.fetches.end();
        if let Some(overlay) = &self.overlay {
            overlay.end();
        }
    }
}

/// A directory to mount at, at which nothing of ours is mounted.
fn cleared(dir: &Path) -> Result<PathBuf, MountError> {
    let fails = |error| MountError::Directory { dir: dir.to_owned(), error };
    // Not by looking at it, which would ask a server that may be dead.
    let dir = absolute(dir).map_err(fails)?;
    recovery::clear(&dir).map_err(fails)?;
    // The kernel takes a file too, and gives nothing but errors from then on.
    match dir.metadata().map_err(fails)?.is_dir() {
        true => Ok(dir),
        false => Err(fails(io::ErrorKind::NotADirectory.into())),
    }
}

/// What the directory has, which is out of sight once something is mounted there.
fn overlay_at(dir: &Path, options: &Options) -> Result<Option<Started>, MountError> {
    if !options.is_overlay {
        return Ok(None);
    }
    // The last part of it may be a symlink.
    let own = dir.canonicalize().map_err(|error| MountError::Directory { dir: dir.to_owned(), error })?;
    if std::env::current_exe().is_ok_and(|program| program.starts_with(own)) {
        return Err(MountError::OwnProgram { dir: dir.to_owned() });
    }
    let started = Overlay::start(dir).map_err(|error| MountError::Directory { dir: dir.to_owned(), error });
    started.map(Some)
}

/// The directory as the kernel will list it: absolute, and without symlinks. What it is itself, nobody who serves a mount
/// there is asked.
pub fn absolute(dir: &Path) -> io::Result<PathBuf> {
    let mut dir = std::path::absolute(dir)?;
    for _ in 0..SYMLINKS_MAX {
        let (Some(parent), Some(name)) = (dir.parent(), dir.file_name()) else { return dir.canonicalize() };
        let parent = parent.canonicalize()?;
        let here = parent.join(name);
        match here.read_link() {
            Ok(target) => dir = parent.join(target),
            // It is none, or not there.
            Err(_) => return Ok(here),
        }
    }
    Err(Errno::LOOP.into())
}

pub(crate) fn config(options: &Options) -> Config {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(SOURCE_NAME.into()),
        MountOption::RO,
        MountOption::NoSuid,
        MountOption::NoDev,
        MountOption::NoAtime,
        MountOption::DefaultPermissions,
    ];
    config.acl = if options.is_shared { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(ANSWERERS);
    config
}

#[cfg(test)]
#[path = "mount_tests.rs"]
pub(crate) mod tests;
