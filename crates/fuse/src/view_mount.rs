//! Views for builds, in a file system that is attached nowhere.
//!
//! Its mount exists as a descriptor only, and so does each view's: whoever gets one attaches it where it wants, and
//! nothing is left in any directory when the process that serves it dies. Takes root's rights, and Linux 6.15 or later,
//! which lets a part of such a mount be copied.

use crate::counts::Stats;
use crate::fetches::Fetches;
use crate::file_system::{FileSystem, Shared};
use crate::greeting;
use crate::loads::{Found, Loads};
use crate::mount::{END_PATIENCE, FORGET_LOOK, Handle, MountError, SOURCE_NAME, config};
use crate::options::Options;
use crate::profile::{self, Profile};
use crate::source::Source;
use crate::table::{Held, Table};
use crate::views::ViewPaths;
use fuser::{BackgroundSession, Session, SessionACL};
use rustix::fs::{CWD, Mode, OFlags, fstat, minor, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen, open_tree,
};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use thiserror::Error;

/// Paths looked up at a time for one view: together they take no longer than one look-up may.
const LOADS_MAX: usize = 128;

/// How often it is asked whether a view is still wanted.
const OVER_LOOK: Duration = Duration::from_millis(20);

/// Why there is no view.
#[derive(Debug, Error)]
pub enum ViewError {
    #[error("the files of {name} could not be learnt, so no view shows it")]
    Path { name: String },
    #[error("there is no room for the files of {name} beside those of all builds that run")]
    NoRoom { name: String },
    #[error("nobody wants the view any more")]
    Withdrawn,
    #[error("cannot open a view of inputs: {0}")]
    Open(#[from] io::Error),
    #[error("the file system of views is not served any more")]
    Ended,
}

/// A file system of views. Ends when it is dropped.
pub struct ViewMount {
    root: OwnedFd,
    session: Option<BackgroundSession>,
    handle: Handle,
    threads: Vec<JoinHandle<()>>,
}

/// Some store paths as one directory, for as long as it is not dropped.
pub struct View {
    dir: Arc<OwnedFd>,
    paths: Arc<ViewPaths>,
    handle: Handle,
    _held: Held,
}

impl ViewMount {
    /// Makes the file system, of which nothing is seen yet.
    pub fn start(source: Arc<dyn Source>, options: &Options) -> Result<ViewMount, MountError> {
        let table = Arc::<Table>::default();
        let (fetches, mut threads) = Fetches::start(source.clone(), options).map_err(MountError::Thread)?;
        let loads = Loads::start(source, table.clone(), options.lookup_deadline, false);
        let (loads, more) = loads.map_err(MountError::Thread)?;
        threads.extend(more);
        let shared = Arc::new(Shared::new(table, loads, fetches));
        match serve(&shared, options) {
            Ok((session, root)) => {
                let handle = Handle { shared, notifier: session.notifier() };
                threads.push(handle.follow_losses().map_err(MountError::Thread)?);
                greeting::greet(&descriptor_path(&root));
                Ok(ViewMount { root, session: Some(session), handle, threads })
            }
            Err(error) => {
                shared.end();
                Err(MountError::Mount { dir: PathBuf::from("a descriptor"), error })
            }
        }
    }

    /// A view of the paths with these base names. Waits for what is not known of them yet.
    pub fn view<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Result<View, ViewError> {
        self.view_unless(names, &|| false)
    }

    /// As [`ViewMount::view`], for as long as nobody says that it is over.
    pub fn view_unless<'a>(
        &self,
        names: impl IntoIterator<Item = &'a str>,
        is_over: &dyn Fn() -> bool,
    ) -> Result<View, ViewError> {
        let shared = &self.handle.shared;
        if self.has_ended() {
            return Err(ViewError::Ended);
        }
        let names: Vec<&str> = names.into_iter().collect();
        let held = match self.hold(&names, is_over) {
            // What ended views showed is used by nobody, though the kernel knows it.
            Err(ViewError::NoRoom { .. }) => {
                self.handle.forget_views(|_| true);
                self.hold(&names, is_over)?
            }
            held => held?,
        };
        let paths = shared.views.begin(held.paths().to_vec()).ok_or(ViewError::Ended)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        match open_tree(&self.root, paths.name(), flags) {
            Ok(dir) => Ok(View { dir: Arc::new(dir), paths, handle: self.handle.clone(), _held: held }),
            Err(error) => {
                self.handle.end_view(&paths);
                Err(ViewError::Open(error.into()))
            }
        }
    }

    fn hold(&self, names: &[&str], is_over: &dyn Fn() -> bool) -> Result<Held, ViewError> {
        let shared = &self.handle.shared;
        let shown = names.iter().filter_map(|name| shared.table.by_name(name));
        shown.filter(|shown| shared.fetches.is_outdated(shown)).for_each(|shown| self.handle.lost(&shown));
        hold(shared, names, is_over)
    }

    /// What is to be told of paths that come and go.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    pub fn stats(&self) -> Stats {
        self.handle.stats()
    }

    /// Whether it broke, or was stopped.
    pub fn has_ended(&self) -> bool {
        self.handle.shared.has_ended.load(Ordering::Acquire)
    }

    /// Ends it although views are in use: their readers get errors from then on.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let Some(session) = self.session.take() else { return };
        self.handle.shared.has_ended.store(true, Ordering::Release);
        self.handle.shared.end();
        if let Err(error) = abort(&self.root) {
            tracing::debug!(%error, "a file system of views cannot be aborted, and ends with its last user");
        }
        let deadline = Instant::now() + END_PATIENCE;
        while !session.guard.is_finished() && Instant::now() < deadline {
            thread::sleep(FORGET_LOOK);
        }
        self.threads.retain(|thread| !thread.is_finished());
    }
}

impl Drop for ViewMount {
    fn drop(&mut self) {
        self.end();
    }
}

impl View {
    /// Fetches what is likely to be read, since its like was: waits for it no longer than `patience`, and only until
    /// somebody says that it is over.
    pub fn expect(&self, before: &Profile, patience: Duration, is_over: &dyn Fn() -> bool) {
        let wanted = profile::wanted(before, self.paths.paths());
        if !wanted.is_empty() {
            self.handle.shared.fetches.expect(&wanted, patience, is_over);
        }
    }

    /// What to expect of the next view of its kind, by what was read in this one, and before.
    pub fn profile(&self, before: &Profile) -> Profile {
        self.paths.profile(before)
    }

    /// A mount that is attached nowhere: a directory that holds another, `store`, which holds the paths.
    pub fn dir(&self) -> &Arc<OwnedFd> {
        &self.dir
    }

    /// Whether somebody who read in it may have been given an error that is not the paths' own.
    pub fn has_failed(&self) -> bool {
        self.paths.failed_reads() > 0 || self.handle.shared.has_ended.load(Ordering::Acquire)
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.handle.end_view(&self.paths);
    }
}

/// Holds paths, and waits for what is not known of them yet.
fn hold(shared: &Shared, names: &[&str], is_over: &dyn Fn() -> bool) -> Result<Held, ViewError> {
    let mut held = Held::new(shared.table.clone());
    let missing: Vec<&str> = names.iter().copied().filter(|name| !held.add(name)).collect();
    for batch in missing.chunks(LOADS_MAX) {
        let (tell, told) = mpsc::channel::<Found>();
        for name in batch {
            let tell = tell.clone();
            // Who does not wait any more does not listen.
            shared.loads.look_up(name, Box::new(move |found| drop(tell.send(found))));
        }
        drop(tell);
        let (mut found, mut has_room) = (Vec::new(), true);
        loop {
            match told.recv_timeout(OVER_LOOK) {
                Ok(Found::Path(shown)) => found.push(shown),
                Ok(Found::NoRoom) => has_room = false,
                Ok(Found::Nothing | Found::Failed) => {}
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) if is_over() => return Err(ViewError::Withdrawn),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
        if let Some(name) = batch.iter().find(|name| !held.add(name)) {
            // What was found and is not there any more went for the room of others, perhaps of this batch.
            let had_room = has_room && !found.iter().any(|shown| *shown.name == **name);
            let name = (*name).to_owned();
            return Err(if had_room { ViewError::Path { name } } else { ViewError::NoRoom { name } });
        }
    }
    Ok(held)
}

fn serve(shared: &Arc<Shared>, options: &Options) -> io::Result<(BackgroundSession, OwnedFd)> {
    let device = openat(CWD, "/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let context = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let values = [
        ("source", SOURCE_NAME.to_owned()),
        ("fd", device.as_raw_fd().to_string()),
        // A directory, in octal digits.
        ("rootmode", "40000".to_owned()),
        ("user_id", "0".to_owned()),
        ("group_id", "0".to_owned()),
    ];
    for (key, value) in values {
        fsconfig_set_string(&context, key, value.as_str())?;
    }
    fsconfig_set_flag(&context, "default_permissions")?;
    fsconfig_set_flag(&context, "allow_other")?;
    fsconfig_create(&context)?;
    let session = Session::from_fd(FileSystem(shared.clone()), device, SessionACL::All, config(options))?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOATIME;
    let root = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    Ok((session.spawn()?, root))
}

fn descriptor_path(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Wakes all who wait in it, with errors. The kernel's file system for that is not mounted everywhere.
fn abort(root: &OwnedFd) -> io::Result<()> {
    let connection = minor(fstat(root)?.st_dev);
    let context = fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let control = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    let file = openat(control, format!("{connection}/abort"), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(file, b"1")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::tests::shared;
    use crate::numbers::Reservations;

    #[test]
    fn a_view_for_whose_paths_its_own_went_is_tried_again_and_finds_room() {
        // Two of three entries each.
        let shared = shared(Table::of(7, None, Reservations::default()));
        drop(hold(&shared, &["unused"], &|| false).unwrap());
        let both = hold(&shared, &["one", "two"], &|| false);
        assert!(matches!(both, Err(ViewError::NoRoom { .. })));
        let both = hold(&shared, &["one", "two"], &|| false).unwrap();
        assert_eq!(both.paths().len(), 2);
        let more = hold(&shared, &["more"], &|| false);
        assert!(matches!(more, Err(ViewError::NoRoom { .. })), "all there is is used");
        drop(both);
        shared.end();
    }
}
