//! Callers that wait for something the catalogue says later.

use crate::command::Outcome;
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::announcement::Holding;
use shoal_wire::mesh::path_record::PathKey;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use tokio::sync::oneshot;

#[derive(Default)]
pub(crate) struct Waiting {
    lookups: HashMap<u64, oneshot::Sender<Outcome>>,
    claims: HashMap<u64, oneshot::Sender<NodeKey>>,
    deletions: HashMap<u64, oneshot::Sender<Vec<PathKey>>>,
    /// Callers that wait for copies of several paths, and which of each are open.
    keepers: BTreeMap<u64, (BTreeSet<PathKey>, oneshot::Sender<()>)>,
    by_path: HashMap<PathKey, BTreeSet<u64>>,
    ids: u64,
}

impl Waiting {
    pub fn for_lookup(&mut self, id: u64, reply: oneshot::Sender<Outcome>) {
        self.lookups.insert(id, reply);
    }

    /// Who has gone away meanwhile is not told; nobody else waits.
    pub fn looked_up(&mut self, id: u64, outcome: Outcome) {
        if let Some(reply) = self.lookups.remove(&id) {
            let _ = reply.send(outcome);
        }
    }

    pub fn for_claim(&mut self, id: u64, reply: oneshot::Sender<NodeKey>) {
        self.claims.insert(id, reply);
    }

    pub fn claimed(&mut self, id: u64, by: NodeKey) {
        if let Some(reply) = self.claims.remove(&id) {
            let _ = reply.send(by);
        }
    }

    pub fn for_deletion(&mut self, id: u64, reply: oneshot::Sender<Vec<PathKey>>) {
        self.deletions.insert(id, reply);
    }

    pub fn may_delete(&mut self, id: u64, keys: Vec<PathKey>) {
        if let Some(reply) = self.deletions.remove(&id) {
            let _ = reply.send(keys);
        }
    }

    /// Before the catalogue is told of `holdings`, so that no answer comes too early.
    pub fn for_copies(&mut self, holdings: &[Holding], reply: oneshot::Sender<()>) {
        if holdings.is_empty() {
            let _ = reply.send(());
            return;
        }
        self.ids += 1;
        let open: BTreeSet<PathKey> = holdings.iter().map(|holding| holding.key).collect();
        for key in &open {
            self.by_path.entry(*key).or_default().insert(self.ids);
        }
        self.keepers.insert(self.ids, (open, reply));
    }

    pub fn acknowledged(&mut self, key: &PathKey) {
        for id in self.by_path.remove(key).unwrap_or_default() {
            let Some((open, _)) = self.keepers.get_mut(&id) else { continue };
            open.remove(key);
            if open.is_empty()
                && let Some((_, reply)) = self.keepers.remove(&id)
            {
                let _ = reply.send(());
            }
        }
    }

    /// Drops the waiting of who waits for this path: too many do.
    pub fn refuse_copies(&mut self, key: &PathKey) {
        for id in self.by_path.remove(key).unwrap_or_default() {
            self.drop_keeper(id);
        }
    }

    /// Forgets callers that have gone away.
    pub fn sweep(&mut self) {
        self.lookups.retain(|_, reply| !reply.is_closed());
        self.claims.retain(|_, reply| !reply.is_closed());
        self.deletions.retain(|_, reply| !reply.is_closed());
        let gone: Vec<u64> =
            self.keepers.iter().filter(|(_, (_, reply))| reply.is_closed()).map(|(id, _)| *id).collect();
        gone.into_iter().for_each(|id| self.drop_keeper(id));
    }

    fn drop_keeper(&mut self, id: u64) {
        let Some((open, _)) = self.keepers.remove(&id) else { return };
        for key in open {
            if let Some(ids) = self.by_path.get_mut(&key) {
                ids.remove(&id);
                if ids.is_empty() {
                    self.by_path.remove(&key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holdings(keys: &[u8]) -> Vec<Holding> {
        keys.iter().map(|key| Holding { key: [*key; 32], content: [0; 16] }).collect()
    }

    #[test]
    fn who_waits_for_several_copies_is_told_when_the_last_is_there() {
        let mut waiting = Waiting::default();
        let (reply, mut told) = oneshot::channel();
        let (other, mut other_told) = oneshot::channel();
        waiting.for_copies(&holdings(&[1, 2]), reply);
        waiting.for_copies(&holdings(&[2]), other);
        waiting.acknowledged(&[1; 32]);
        assert!(told.try_recv().is_err());
        waiting.acknowledged(&[2; 32]);
        assert_eq!(told.try_recv(), Ok(()));
        assert_eq!(other_told.try_recv(), Ok(()));
        assert!(waiting.by_path.is_empty() && waiting.keepers.is_empty());
    }

    #[test]
    fn what_nobody_waits_for_takes_no_room() {
        let mut waiting = Waiting::default();
        let (reply, told) = oneshot::channel();
        waiting.for_copies(&holdings(&[1, 2]), reply);
        drop(told);
        waiting.sweep();
        assert!(waiting.by_path.is_empty() && waiting.keepers.is_empty());
    }

    #[test]
    fn who_is_refused_hears_it_at_once() {
        let mut waiting = Waiting::default();
        let (reply, mut told) = oneshot::channel();
        waiting.for_copies(&holdings(&[1, 2]), reply);
        waiting.refuse_copies(&[1; 32]);
        assert_eq!(told.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        assert!(waiting.by_path.is_empty());
    }
}
