//! Tells the mesh of paths that this node's store has and that are whole no more, and of those that are whole again.
//!
//! Who looks for such a path is not sent here, and its owners see to another copy, which heals it if it is made here.

use crate::command::Command;
use crate::records::holding;
use shoal_store::Store;
use shoal_wire::mesh::path_record::path_key;
use shoal_wire::nix::store_path::StorePath;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc;

pub(crate) struct Damage {
    store: Store,
    commands: mpsc::Sender<Command>,
    /// Those that the mesh takes for gone.
    told: Mutex<BTreeSet<StorePath>>,
    /// Somebody is about to look.
    looking: AtomicBool,
}

impl Damage {
    pub fn new(store: Store, commands: mpsc::Sender<Command>) -> Damage {
        Damage { store, commands, told: Mutex::default(), looking: AtomicBool::new(false) }
    }

    /// What is damaged at the start is not among what the mesh is told that this node has. Blocks.
    pub fn begin(&self) -> shoal_store::Result<()> {
        let damaged = self.store.damaged_paths()?.into_iter().map(|info| info.path).collect();
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = damaged;
        Ok(())
    }

    /// Has it looked at, on a thread of its own: whoever found it is in the middle of something.
    pub fn changed(self: &Arc<Self>) {
        if self.looking.swap(true, Ordering::AcqRel) {
            return;
        }
        let damage = self.clone();
        let spawned = std::thread::Builder::new().name("damage".into()).spawn(move || {
            if let Err(error) = damage.tell() {
                tracing::warn!(%error, "cannot tell the mesh what of this store is damaged");
            }
        });
        if let Err(error) = spawned {
            self.looking.store(false, Ordering::Release);
            tracing::warn!(%error, "cannot start a thread to tell the mesh what of this store is damaged");
        }
    }

    fn tell(&self) -> shoal_store::Result<()> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        // What changes from now on is looked at again.
        self.looking.store(false, Ordering::Release);
        let damaged: BTreeSet<StorePath> = self.store.damaged_paths()?.into_iter().map(|info| info.path).collect();
        let gone: Vec<_> = damaged.difference(&told).filter_map(|path| path_key(path.hash_part())).collect();
        let mut whole = Vec::new();
        for path in told.difference(&damaged) {
            // One that was deleted is told of as such.
            whole.extend(self.store.path_info(path)?.as_ref().and_then(holding));
        }
        *told = damaged;
        if !gone.is_empty() {
            tracing::warn!(paths = gone.len(), "paths of this store are damaged; other nodes are asked for copies");
            // It has ended where the node stops.
            let _ = self.commands.blocking_send(Command::Gone(gone));
        }
        if !whole.is_empty() {
            let _ = self.commands.blocking_send(Command::Added(whole));
        }
        Ok(())
    }
}
