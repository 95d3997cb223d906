//! The store as a file system, at directories of this machine.
//!
//! Mounts are served by the node itself: what is read comes out of its store without another process between, what it
//! deletes and what becomes valid reach the mounts at once, and what somebody has open is not deleted. The node never
//! looks into its own mounts.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use shoal_fuse::{Handle, Mount, Options};
use shoal_store::{Store, Watcher};
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::store_path::StorePath;

use crate::inputs::InputViews;
use keeper::Keeper;

pub use keeper::{KEEPER_ARG, keeper_main};
pub use source::NodeSource;

mod holds;
mod keeper;
mod source;

/// A machine has one store, and a few for trying things out.
const MOUNTS_MAX: usize = 16;

/// All mounts of a node.
pub struct Mounts {
    store: Store,
    source: Arc<NodeSource>,
    /// Of builds, which are told what is deleted.
    views: Option<Arc<InputViews>>,
    mounted: Mutex<BTreeMap<PathBuf, Mount>>,
    /// Held by who starts one, which may take as long as a dead mount takes to go. Who tells mounts something waits for
    /// it, since that one may have listed what was there before; who asks them does not.
    starting: Mutex<()>,
    /// Of the mount that outlives this node, where there is one.
    kept: Mutex<Option<(PathBuf, Keeper)>>,
    /// Whether there are any, or one is on its way: read by who must not wait for that.
    is_any: AtomicBool,
    /// Whether the mount that the node begins with is yet to come. If it was kept, somebody may have anything of it open.
    awaits_first: AtomicBool,
    news: Mutex<News>,
    told: Condvar,
}

/// What became of paths since mounts were told last: at most one word for each path.
#[derive(Default)]
struct News {
    paths: HashMap<StorePath, Word>,
    is_over: bool,
}

/// What became of one path.
#[derive(Default)]
struct Word {
    /// It was deleted, whatever came after: what is shown of it is not it any more.
    was_deleted: bool,
    is_valid: bool,
}

impl News {
    fn note<'a>(&mut self, paths: impl Iterator<Item = &'a StorePath>, is_valid: bool) {
        for path in paths {
            let word = self.paths.entry(path.clone()).or_default();
            word.was_deleted |= !is_valid;
            word.is_valid = is_valid;
        }
    }
}

impl Mounts {
    /// None yet. `awaits_first`: [`Mounts::mount_to_keep`] comes next, and until then nothing is deleted.
    pub fn new(
        store: Store,
        source: Arc<NodeSource>,
        views: Option<Arc<InputViews>>,
        awaits_first: bool,
    ) -> Result<Arc<Mounts>> {
        let (mounted, starting, kept) = (Mutex::default(), Mutex::default(), Mutex::default());
        let (news, told) = (Mutex::default(), Condvar::new());
        let (is_any, awaits_first) = (AtomicBool::new(views.is_some()), AtomicBool::new(awaits_first));
        let mounts = Arc::new(Mounts {
            store: store.clone(),
            source,
            views,
            mounted,
            starting,
            kept,
            is_any,
            awaits_first,
            news,
            told,
        });
        store.watch(Arc::new(MountWatcher(Arc::downgrade(&mounts))));
        let teller = mounts.clone();
        thread::Builder::new().name("tell mounts".into()).spawn(move || teller.tell())?;
        Ok(mounts)
    }

    fn mounted(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Mount>> {
        self.mounted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn news(&self) -> MutexGuard<'_, News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handles(&self) -> Vec<Handle> {
        self.mounted().values().map(|mount| mount.handle().clone()).collect()
    }

    /// Of all that may have something of a path: mounts, and the views of builds.
    fn holders(&self) -> Vec<Handle> {
        let views = self.views.as_ref().and_then(|views| views.handle());
        self.handles().into_iter().chain(views).collect()
    }

    fn starting(&self) -> MutexGuard<'_, ()> {
        self.starting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The turn to start one: one after the other, but beside all that asks those that are there.
    fn turn(&self) -> Result<MutexGuard<'_, ()>> {
        let turn = self.starting();
        if self.news().is_over {
            bail!("the node is stopping");
        }
        Ok(turn)
    }

    /// Mounts at a directory, which is there. `is_overlay`: what it has goes on being shown.
    pub fn mount(&self, dir: &Path, is_overlay: bool) -> Result<()> {
        let _turn = self.turn()?;
        self.start(dir, is_overlay)
    }

    /// As [`Mounts::mount`], for who has the turn.
    fn start(&self, dir: &Path, is_overlay: bool) -> Result<()> {
        {
            let mut mounted = self.mounted();
            // Those that somebody else unmounted.
            mounted.retain(|_, mount| !mount.has_ended());
            if mounted.contains_key(dir) {
                bail!("the store is mounted at {} already", dir.display());
            }
            if mounted.len() >= MOUNTS_MAX {
                bail!("the node has {MOUNTS_MAX} mounts already");
            }
        }
        // Before it lists what is valid, so that nothing falls between.
        self.is_any.store(true, Ordering::Release);
        let mount = Mount::start(dir, self.source.clone(), &Options { is_overlay, ..Options::default() })?;
        tracing::info!(dir = %dir.display(), is_overlay, "the store is mounted");
        self.mounted().insert(dir.to_owned(), mount);
        Ok(())
    }

    /// Mounts at a directory, or goes on with the mount there that an earlier life of this node left. It stays for
    /// `patience` after this one, for the next.
    pub fn mount_to_keep(&self, dir: &Path, is_overlay: bool, data_dir: &Path, patience: Duration) -> Result<()> {
        let _turn = self.turn()?;
        let mounted = self.resume_or_start(dir, is_overlay, data_dir, patience);
        // It says itself from now on what somebody has open.
        self.awaits_first.store(false, Ordering::Release);
        mounted
    }

    /// For who has the turn.
    fn resume_or_start(&self, dir: &Path, is_overlay: bool, data_dir: &Path, patience: Duration) -> Result<()> {
        let options = Options { is_overlay, ..Options::default() };
        // As the keeper finds it in the kernel's list.
        let place = shoal_fuse::absolute(dir).with_context(|| format!("cannot mount at {}", dir.display()))?;
        // Only root can hand a mount over: others have it by a helper.
        let can_keep = !patience.is_zero() && rustix::process::geteuid().is_root();
        let found = Keeper::find(data_dir).unwrap_or_else(|error| {
            tracing::info!(error = format!("{error:#}"), "the mount of an earlier run is made anew");
            None
        });
        if let Some((keeper, _, kept)) =
            found.filter(|(_, kept_at, kept)| can_keep && *kept_at == place && kept.beneath.is_some() == is_overlay)
        {
            self.is_any.store(true, Ordering::Release);
            match Mount::resume(dir, kept, self.source.clone(), &options) {
                Ok(mount) => {
                    tracing::info!(dir = %dir.display(), "the mount of an earlier run goes on");
                    self.mounted().insert(dir.to_owned(), mount);
                    *self.kept() = Some((dir.to_owned(), keeper));
                    return Ok(());
                }
                Err(error) => tracing::warn!(%error, "the mount of an earlier run does not go on"),
            }
        }
        if !can_keep {
            return self.start(dir, is_overlay);
        }
        self.is_any.store(true, Ordering::Release);
        let (mount, kept) = Mount::start_to_keep(dir, self.source.clone(), &options)?;
        tracing::info!(dir = %dir.display(), is_overlay, "the store is mounted");
        self.mounted().insert(dir.to_owned(), mount);
        let keeper = kept.map(|kept| Keeper::start(data_dir, &place, &kept, patience)).transpose();
        match keeper {
            Ok(Some(keeper)) => *self.kept() = Some((dir.to_owned(), keeper)),
            Ok(None) => tracing::info!("this kernel lets no mount outlive its node; that takes Linux 6.9"),
            Err(error) => tracing::warn!(error = format!("{error:#}"), "the mount ends with this node"),
        }
        Ok(())
    }

    fn kept(&self) -> MutexGuard<'_, Option<(PathBuf, Keeper)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a mount is there and served.
    pub fn is_mounted(&self, dir: &Path) -> bool {
        self.mounted().get(dir).is_some_and(|mount| !mount.has_ended())
    }

    /// Unmounts, where it is mounted.
    pub fn unmount(&self, dir: &Path) -> Result<()> {
        let mount = self.mounted().remove(dir);
        mount.map_or(Ok(()), Mount::stop).with_context(|| format!("cannot unmount {}", dir.display()))
    }

    /// Unmounts all but what is kept for the next run; nothing is told to mounts any more, and none is started.
    pub fn stop(&self) {
        self.news().is_over = true;
        self.told.notify_all();
        // One that is on its way would stay behind.
        let _turn = self.starting();
        if let Some(views) = &self.views {
            views.stop();
        }
        if let Some((dir, keeper)) = self.kept().take()
            && let Some(mount) = self.mounted().remove(&dir).filter(|mount| !mount.has_ended())
        {
            mount.leave();
            // Until this process ends, and the next one asks for the mount.
            std::mem::forget(keeper);
        }
        let dirs: Vec<PathBuf> = self.mounted().keys().cloned().collect();
        for dir in dirs {
            if let Err(error) = self.unmount(&dir) {
                tracing::warn!(error = format!("{error:#}"), "a mount stays");
            }
        }
    }

    /// Gives up so many bytes of what was only read in mounts and views, or all there is of it; whether there was any.
    pub fn let_go(&self, bytes: u64) -> bool {
        self.source.let_go(bytes)
    }

    /// What mounts did, for people.
    pub fn status(&self) -> Value {
        let mounts = self.mounted();
        let one = |(dir, mount): (&PathBuf, &Mount)| {
            let stats = mount.handle().stats();
            json!({
                "dir": dir,
                "paths": stats.paths,
                "files": stats.files,
                "upcalls": stats.upcalls(),
                "reads": stats.reads,
                "waited_reads": stats.waited_reads,
                "failed_reads": stats.failed_reads,
            })
        };
        json!({
            "mounted": mounts.iter().map(one).collect::<Vec<_>>(),
            "fetched_chunks": self.source.moved_chunks.load(Ordering::Relaxed),
            "fetched_bytes": self.source.moved_bytes.load(Ordering::Relaxed),
        })
    }

    /// Tells mounts what becomes of paths, on a thread of its own: the kernel takes its time.
    fn tell(&self) {
        loop {
            let paths = {
                let quiet = |news: &mut News| news.paths.is_empty() && !news.is_over;
                let mut news = self.told.wait_while(self.news(), quiet).unwrap_or_else(PoisonError::into_inner);
                if news.is_over {
                    return;
                }
                std::mem::take(&mut news.paths)
            };
            let gone = paths.iter().filter(|(_, word)| word.was_deleted);
            let gone: Vec<String> = gone.map(|(path, _)| path.base_name().to_owned()).collect();
            // Views list nothing, so that they need not wait for a mount that starts.
            if let Some(views) = self.views.as_ref().and_then(|views| views.handle()).filter(|_| !gone.is_empty()) {
                views.vanished(&gone);
            }
            self.tell_mounts(&paths, &gone);
        }
    }

    fn tell_mounts(&self, paths: &HashMap<StorePath, Word>, gone: &[String]) {
        // One that is on its way may have listed what was there before, and is told too. One that starts later lists what
        // is there now.
        drop(self.starting());
        let handles = self.handles();
        if handles.is_empty() {
            return;
        }
        if !gone.is_empty() {
            handles.iter().for_each(|handle| handle.vanished(gone));
        }
        for (path, _) in paths.iter().filter(|(_, word)| word.is_valid) {
            match self.store.manifest(path) {
                Ok(Some(manifest)) => {
                    handles.iter().for_each(|handle| handle.appeared(path.base_name(), &manifest));
                }
                // Deleted since.
                Ok(None) => {}
                Err(error) => tracing::warn!(path = path.base_name(), %error, "a path is not shown in mounts"),
            }
        }
    }

    fn note<'a>(&self, paths: impl Iterator<Item = &'a StorePath>, is_valid: bool) {
        if !self.is_any.load(Ordering::Acquire) {
            return;
        }
        self.news().note(paths, is_valid);
        self.told.notify_one();
    }
}

/// Follows the store for as long as there is somebody to tell.
struct MountWatcher(Weak<Mounts>);

impl Watcher for MountWatcher {
    fn committed(&self, paths: &[PathInfo]) {
        if let Some(mounts) = self.0.upgrade() {
            mounts.note(paths.iter().map(|info| &info.path), true);
        }
    }

    /// What somebody has open stays. Of a mount that starts the kernel has nothing yet, unless it was kept.
    fn may_delete(&self, paths: &[StorePath]) -> Vec<StorePath> {
        let Some(mounts) = self.0.upgrade() else { return paths.to_vec() };
        if mounts.awaits_first.load(Ordering::Acquire) {
            return Vec::new();
        }
        if !mounts.is_any.load(Ordering::Acquire) {
            return paths.to_vec();
        }
        let names: Vec<String> = paths.iter().map(|path| path.base_name().to_owned()).collect();
        let in_use: Vec<String> = mounts.holders().iter().flat_map(|handle| handle.in_use(&names)).collect();
        paths.iter().filter(|path| !in_use.iter().any(|name| name == path.base_name())).cloned().collect()
    }

    fn deleted(&self, gone: &[StorePath], _: &[StorePath]) {
        if let Some(mounts) = self.0.upgrade() {
            mounts.note(gone.iter(), false);
        }
    }

    fn damage_changed(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{self, RecvTimeoutError};

    /// So long it is looked whether something waits that should.
    const WAITS: Duration = Duration::from_millis(100);
    /// What does not wait takes microseconds.
    const ENDS: Duration = Duration::from_secs(60);

    fn mounts(awaits_first: bool) -> (tempfile::TempDir, Arc<Mounts>) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store"), shoal_store::Options::default()).unwrap();
        let source = NodeSource::new(store.clone(), crate::neighbours::Neighbours::default(), 0);
        let mounts = Mounts::new(store, Arc::new(source), None, awaits_first).unwrap();
        (dir, mounts)
    }

    /// Is told when this has ended.
    fn aside(mounts: &Arc<Mounts>, what: fn(&Arc<Mounts>)) -> mpsc::Receiver<()> {
        let (tell, told) = mpsc::channel();
        let mounts = mounts.clone();
        thread::spawn(move || {
            what(&mounts);
            tell.send(())
        });
        told
    }

    #[test]
    fn a_mount_that_starts_is_told_what_changes_meanwhile_and_does_not_stay_behind() {
        let (dir, mounts) = mounts(false);
        let tell: fn(&Arc<Mounts>) = |mounts| mounts.tell_mounts(&HashMap::new(), &[]);
        for waits in [tell, |mounts| mounts.stop()] {
            let starting = mounts.starting();
            let ended = aside(&mounts, waits);
            assert_eq!(ended.recv_timeout(WAITS), Err(RecvTimeoutError::Timeout));
            drop(starting);
            ended.recv_timeout(ENDS).unwrap();
        }
        let refused = mounts.mount(dir.path(), false).unwrap_err();
        assert_eq!(refused.to_string(), "the node is stopping");
    }

    #[test]
    fn who_asks_mounts_does_not_wait_for_one_that_starts() {
        let (_dir, mounts) = mounts(false);
        let _starting = mounts.starting();
        let status: fn(&Arc<Mounts>) = |mounts| drop(mounts.status());
        for asks in [status, |mounts| drop(MountWatcher(Arc::downgrade(mounts)).may_delete(&[]))] {
            aside(&mounts, asks).recv_timeout(ENDS).unwrap();
        }
    }

    #[test]
    fn nothing_is_deleted_until_the_mount_that_may_have_been_kept_says_what_is_open() {
        let path = StorePath::from_base_name(&format!("{}-x", "0".repeat(32))).unwrap();
        let (dir, mounts) = mounts(true);
        let may_delete = || MountWatcher(Arc::downgrade(&mounts)).may_delete(std::slice::from_ref(&path));
        assert_eq!(may_delete(), []);
        // It cannot be mounted, and the node does not begin.
        mounts.mount_to_keep(&dir.path().join("none"), false, dir.path(), Duration::ZERO).unwrap_err();
        assert_eq!(may_delete(), std::slice::from_ref(&path));
    }

    #[test]
    fn a_path_that_is_deleted_and_made_again_is_both() {
        let path = StorePath::from_base_name(&format!("{}-x", "0".repeat(32))).unwrap();
        let told = |words: &[bool]| {
            let mut news = News::default();
            words.iter().for_each(|is_valid| news.note([&path].into_iter(), *is_valid));
            (news.paths[&path].was_deleted, news.paths[&path].is_valid)
        };
        assert_eq!(told(&[false, true]), (true, true));
        assert_eq!(told(&[true, false]), (true, false));
        assert_eq!(told(&[true]), (false, true));
    }
}
