//! Store paths as plain directories, for builds to read.
//!
//! Each tree lies at `<data-dir>/trees/<boot id>/<hash>-<name>` with the file modes and times of a Nix store. Trees are
//! a cache: they are made from chunks when a build needs them, or moved in from a finished build. They are not synced,
//! so trees of an earlier boot of the machine are thrown away.
//!
//! Invariants: a tree that is there is whole (made beside and renamed in), nothing writes into it afterwards, and one
//! that a running build uses is never evicted.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};

use anyhow::{Context, Result};
use shoal_store::Store;
use shoal_wire::nix::store_path::StorePath;

/// Trees may take this share of what is free for them before the least recently used go.
const FREE_SHARE: u64 = 4;

#[derive(Default)]
struct State {
    /// Known trees: last use (a counter) and size in bytes.
    known: HashMap<StorePath, Tree>,
    being_made: HashSet<StorePath>,
    clock: u64,
    bytes: u64,
}

#[derive(Default)]
struct Tree {
    last_use: u64,
    users: usize,
    bytes: u64,
}

pub struct Trees {
    store: Store,
    root: PathBuf,
    making: PathBuf,
    next_temporary: AtomicU64,
    state: Mutex<State>,
    made: Condvar,
}

/// Keeps the trees of one build from being evicted.
pub struct InUse {
    trees: Arc<Trees>,
    paths: Vec<StorePath>,
}

impl Trees {
    /// Opens the cache below `data_dir`, forgetting what an earlier boot or a crash left.
    pub fn open(store: Store, data_dir: &Path) -> Result<Arc<Trees>> {
        let all = data_dir.join("trees");
        let root = all.join(boot_id()?);
        let making = data_dir.join("trees-making");
        fs::create_dir_all(&root).with_context(|| format!("cannot make {}", root.display()))?;
        for entry in fs::read_dir(&all)?.flatten().filter(|entry| entry.path() != root) {
            remove(&entry.path());
        }
        remove(&making);
        fs::create_dir_all(&making).with_context(|| format!("cannot make {}", making.display()))?;
        let mut state = State::default();
        for entry in fs::read_dir(&root)?.flatten() {
            let path = entry.file_name().to_str().and_then(|name| StorePath::from_base_name(name).ok());
            let size = path.as_ref().and_then(|path| store.path_info(path).ok().flatten()).map(|info| info.nar_size);
            match (path, size) {
                (Some(path), Some(bytes)) => {
                    state.bytes += bytes;
                    state.known.insert(path, Tree { bytes, ..Tree::default() });
                }
                _ => remove(&entry.path()),
            }
        }
        let next_temporary = AtomicU64::new(0);
        Ok(Arc::new(Trees { store, root, making, next_temporary, state: Mutex::new(state), made: Condvar::new() }))
    }

    /// The directory that holds all trees.
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn path(&self, path: &StorePath) -> PathBuf {
        self.root.join(path.base_name())
    }

    /// Makes the trees of valid paths present, and keeps them until the guard is dropped.
    pub fn ensure<'a>(self: &Arc<Self>, paths: impl IntoIterator<Item = &'a StorePath>) -> Result<InUse> {
        let mut in_use = InUse { trees: self.clone(), paths: Vec::new() };
        for path in paths {
            self.ensure_one(path)?;
            in_use.paths.push(path.clone());
        }
        self.evict();
        Ok(in_use)
    }

    /// Bytes of those of these paths whose trees are not here. `None` where one is not valid here.
    pub fn missing_bytes<'a>(&self, paths: impl IntoIterator<Item = &'a StorePath>) -> Option<u64> {
        let missing: Vec<&StorePath> = {
            let state = self.lock();
            paths.into_iter().filter(|path| !state.known.contains_key(*path)).collect()
        };
        let size = |path: &StorePath| self.store.path_info(path).ok().flatten().map(|info| info.nar_size);
        missing.into_iter().map(size).sum()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ensure_one(&self, path: &StorePath) -> Result<()> {
        let mut state = self.lock();
        loop {
            state.clock += 1;
            let now = state.clock;
            if let Some(tree) = state.known.get_mut(path) {
                tree.last_use = now;
                tree.users += 1;
                return Ok(());
            }
            if state.being_made.insert(path.clone()) {
                break;
            }
            state = self.made.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        let unpacked = self.unpack(path);
        let mut state = self.lock();
        state.being_made.remove(path);
        if let Ok(bytes) = unpacked {
            let last_use = state.clock;
            state.bytes += bytes;
            state.known.insert(path.clone(), Tree { last_use, users: 1, bytes });
        }
        drop(state);
        self.made.notify_all();
        unpacked.map(drop)
    }

    fn unpack(&self, path: &StorePath) -> Result<u64> {
        let info = self.store.path_info(path)?.with_context(|| format!("{} is not valid here", path.base_name()))?;
        let temporary = self.temporary();
        self.store.unpack(path, &temporary).with_context(|| format!("cannot unpack {}", path.base_name()))?;
        move_tree(&temporary, &self.path(path)).with_context(|| format!("cannot move {} in", path.base_name()))?;
        Ok(info.nar_size)
    }

    fn temporary(&self) -> PathBuf {
        self.making.join(self.next_temporary.fetch_add(1, Ordering::Relaxed).to_string())
    }

    /// Takes a finished output of a build, already in canonical form, as the tree of a path that is now valid.
    pub fn adopt(&self, path: &StorePath, output: &Path, nar_size: u64) {
        let mut state = self.lock();
        let used = state.known.get(path).is_some_and(|tree| tree.users > 0);
        if used || state.being_made.contains(path) {
            return;
        }
        // A tree of the same name can only be left from before the path was collected.
        self.remove_known(&mut state, path);
        if move_tree(output, &self.path(path)).is_ok() {
            state.clock += 1;
            let last_use = state.clock;
            state.bytes += nar_size;
            state.known.insert(path.clone(), Tree { last_use, users: 0, bytes: nar_size });
        }
    }

    /// Forgets the trees of paths that are no longer in the store.
    pub fn forget(&self, paths: &[StorePath]) {
        for path in paths {
            let mut state = self.lock();
            if state.known.get(path).is_some_and(|tree| tree.users == 0) {
                self.remove_known(&mut state, path);
            }
        }
    }

    /// Moves the tree aside under the lock; deleting it is done by whoever holds no lock.
    fn remove_known(&self, state: &mut State, path: &StorePath) {
        let Some(tree) = state.known.remove(path) else { return };
        state.bytes = state.bytes.saturating_sub(tree.bytes);
        let aside = self.temporary();
        if move_tree(&self.path(path), &aside).is_ok() {
            remove_in_background(aside);
        }
    }

    /// Drops least recently used trees while they take more than their share of the file system.
    fn evict(&self) {
        let Ok(disk) = rustix::fs::statvfs(&self.root) else { return };
        let mut state = self.lock();
        let budget = (disk.f_bavail * disk.f_frsize + state.bytes) / FREE_SHARE;
        while state.bytes > budget {
            let idle = state.known.iter().filter(|(_, tree)| tree.users == 0);
            let Some(oldest) = idle.min_by_key(|(_, tree)| tree.last_use).map(|(path, _)| path.clone()) else { return };
            self.remove_known(&mut state, &oldest);
        }
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut state = self.trees.lock();
        for path in &self.paths {
            if let Some(tree) = state.known.get_mut(path) {
                tree.users = tree.users.saturating_sub(1);
            }
        }
    }
}

/// Moves a tree into another directory. Without the rights of root that takes a directory that its owner may write to.
fn move_tree(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && from.symlink_metadata()?.is_dir() => {
            fs::set_permissions(from, fs::Permissions::from_mode(0o755))?;
            fs::rename(from, to)?;
            fs::set_permissions(to, fs::Permissions::from_mode(0o555))
        }
        moved => moved,
    }
}

/// Another one each time the machine starts. What was not synced is only good as long as it stays.
pub fn boot_id() -> Result<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("cannot read the machine's boot id")?;
    Ok(boot.trim().to_string())
}

/// Deletes a tree.
pub fn remove(path: &Path) {
    if let Err(error) = shoal_sandbox::remove_tree(path) {
        tracing::warn!(path = %path.display(), %error, "cannot remove what is no longer needed");
    }
}

/// Deletes a tree that nothing refers to any more without keeping anybody waiting. What the process does not get to is
/// found at its next start, by whoever owns the directory it lies in.
pub fn remove_in_background(path: PathBuf) {
    in_background(move || remove(&path));
}

type Task = Box<dyn FnOnce() + Send>;

/// Tidies up without keeping anybody waiting, one thing after the other.
pub fn in_background(task: impl FnOnce() + Send + 'static) {
    static TIDIER: OnceLock<Option<mpsc::Sender<Task>>> = OnceLock::new();
    let tidier = TIDIER.get_or_init(|| {
        let (send, receive) = mpsc::channel::<Task>();
        let thread = std::thread::Builder::new().name("tidy".into());
        thread.spawn(move || receive.iter().for_each(|task| task())).ok().map(|_| send)
    });
    match tidier {
        Some(tidier) => drop(tidier.send(Box::new(task))),
        None => task(),
    }
}
