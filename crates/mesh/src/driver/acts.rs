//! Carries out what was decided.

use super::{Driver, outcome};
use crate::command::{Command, Order};
use shoal_grid::membership::Change;
use shoal_grid::{catalogue, membership};
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::announcement::{Enclosed, HolderMessage, KEEP_SINCE, RECORDS_MAX, SYNC_VERSION, Wanted};
use shoal_wire::mesh::format::Format;
use shoal_wire::mesh::path_record::{PathKey, PathRecord};
use shoal_wire::mesh::sealed::Sealed;
use shoal_wire::nix::base64::encode_hex;
use std::collections::HashMap;

/// Digits by which people tell nodes apart in the log.
const SHORT_BYTES: usize = 5;
/// Bytes of records in one message: the limit of a message, and room for its own.
const RECORDS_BYTES_MAX: usize = HolderMessage::LEN_MAX - (64 << 10);

impl Driver {
    pub(super) fn carry_out(&mut self, actions: Vec<membership::Action>) {
        let mut is_changed = false;
        for action in actions {
            match action {
                membership::Action::Send { to, frame } => self.links.send_frame(to, frame),
                membership::Action::Changed(change) => {
                    match change {
                        Change::Updated(_) => self.has_updates = true,
                        _ => is_changed = true,
                    }
                    match change {
                        Change::Updated(node) if !self.is_new_life(&node) => self.is_outdated = true,
                        _ => self.is_saved = false,
                    }
                    self.changed(change);
                }
                membership::Action::Cut { peer, offence } => {
                    let (node, offence) = (self.name(&peer), format!("{offence:?}"));
                    tracing::warn!(node, offence, "a node breaks the rules of the mesh; its connections are closed");
                    self.links.cut(peer, &offence);
                }
                membership::Action::LivedBefore => {
                    let actions = self.catalogue.lived_before(self.now().ms);
                    self.carry_out_all(actions);
                }
                membership::Action::Incarnation(incarnation) => {
                    let identity = self.identity.clone();
                    tokio::task::spawn_blocking(move || {
                        if let Err(error) = identity.keep_incarnation(incarnation) {
                            tracing::warn!(%error, "cannot keep what this node is to begin with at its next start");
                        }
                    });
                }
            }
        }
        if is_changed {
            self.members_changed();
        }
    }

    /// Whether a member was started or contradicted, and is elsewhere perhaps.
    fn is_new_life(&self, node: &NodeKey) -> bool {
        self.membership.view().get(node).is_some_and(|member| member.version.sequence <= 1)
    }

    fn changed(&mut self, change: Change) {
        let said = match change {
            Change::Joined(node) | Change::Returned(node) | Change::Updated(node) => {
                if let Some(member) = self.membership.view().get(&node) {
                    self.links.learn_addresses(node, &member.record.addresses);
                }
                match change {
                    Change::Joined(_) => "a node joined",
                    Change::Returned(_) => "a node is back",
                    _ => return,
                }
            }
            Change::Suspected(node) => {
                self.links.suspected(node);
                "a node does not answer"
            }
            Change::Cleared(_) => "a node answers again",
            Change::Died(node) => {
                self.links.died(node);
                "a node is dead"
            }
            Change::Expired(node) => {
                self.links.cut(node, "its certificate has expired");
                "a node's certificate has expired"
            }
            Change::Left(node) => {
                self.catalogue.forget(&node);
                "a node left"
            }
            Change::Revoked(node) => {
                self.catalogue.forget(&node);
                self.links.bar(node);
                "a node was revoked"
            }
        };
        let (Change::Joined(node)
        | Change::Updated(node)
        | Change::Suspected(node)
        | Change::Cleared(node)
        | Change::Died(node)
        | Change::Returned(node)
        | Change::Left(node)
        | Change::Expired(node)
        | Change::Revoked(node)) = change;
        if node != self.membership.me() {
            tracing::info!(node = self.name(&node), "{said}");
        }
    }

    /// A member's name with the beginning of its key.
    fn name(&self, node: &NodeKey) -> String {
        let short = encode_hex(&node[..SHORT_BYTES]);
        match self.membership.view().get(node) {
            Some(member) => format!("{} ({short})", member.record.name),
            None => short,
        }
    }

    pub(super) fn carry_out_all(&mut self, actions: Vec<catalogue::Action>) {
        for action in actions {
            if let Some((id, outcome)) = outcome(&action) {
                self.waiting.looked_up(id, outcome);
                continue;
            }
            match action {
                catalogue::Action::Send { to, message } => {
                    let is_sent = self.links.send_message(to, &message);
                    if !is_sent {
                        self.catalogue.unsent(&to);
                    }
                    // Everything else is told again.
                    match message {
                        HolderMessage::Copy(wanted) if !is_sent => {
                            self.undelivered.extend(wanted.iter().map(|wanted| (to, wanted.holding.key)));
                        }
                        HolderMessage::Keep { holding, .. } if !is_sent => self.undelivered.push((to, holding.key)),
                        _ => {}
                    }
                }
                catalogue::Action::Fetch { holding, from } => self.order(Order { holding, from, enclosed: None }),
                catalogue::Action::SendRecords { to, keys } => self.send_records(to, keys),
                catalogue::Action::Acknowledged { key } => self.waiting.acknowledged(&key),
                catalogue::Action::MayDelete { id, keys } => self.waiting.may_delete(id, keys),
                catalogue::Action::Claimed { id, by } => self.waiting.claimed(id, by),
                catalogue::Action::Conflict(conflict) => {
                    let path = shoal_wire::mesh::path_record::hash_part(&conflict.key).unwrap_or_default();
                    let node = self.name(&conflict.other_holder);
                    tracing::warn!(
                        path,
                        node,
                        "two nodes hold different contents of one path; those that were stored first are given out"
                    );
                }
                catalogue::Action::Found { .. }
                | catalogue::Action::Missing { .. }
                | catalogue::Action::Unreachable { .. } => {}
            }
        }
    }

    pub(super) fn order(&mut self, order: Order) {
        let key = order.holding.key;
        if self.orders.try_send(order).is_err() {
            let actions = self.catalogue.fetch_failed(&key, self.now().ms);
            // Those that say so to others; this node's own orders fail again when their turn comes.
            actions.into_iter().for_each(|action| {
                if let catalogue::Action::Send { to, message } = action {
                    self.links.send_message(to, &message);
                }
            });
        }
    }

    /// A request for a copy with the path itself, if that is at hand and the other can take it.
    pub(super) fn enclose(
        &self,
        action: catalogue::Action,
        enclosed: &HashMap<PathKey, Enclosed>,
    ) -> catalogue::Action {
        let catalogue::Action::Send { to, message: HolderMessage::Copy(wanted) } = &action else { return action };
        let [Wanted { holding, .. }] = &wanted[..] else { return action };
        let takes_it = self.membership.view().get(to).is_some_and(|member| {
            let spoken = member.record.protocols.sync;
            spoken.oldest <= SYNC_VERSION && spoken.newest >= KEEP_SINCE
        });
        match enclosed.get(&holding.key).filter(|_| takes_it) {
            Some(enclosed) => {
                let message = HolderMessage::Keep { holding: *holding, enclosed: enclosed.clone() };
                catalogue::Action::Send { to: *to, message }
            }
            None => action,
        }
    }

    fn send_records(&self, to: NodeKey, keys: Vec<PathKey>) {
        let Ok(turn) = self.record_workers.clone().try_acquire_owned() else { return };
        let (records, links) = (self.records.clone(), self.links.clone());
        tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let (mut batch, mut bytes) = (Vec::new(), 0);
            for key in keys {
                let record = match records.record(&key) {
                    Ok(Some(record)) => record.bytes().to_vec(),
                    Ok(None) => continue,
                    Err(error) => return tracing::warn!(%error, "cannot read what is to be told of a path"),
                };
                if batch.len() >= RECORDS_MAX || bytes + record.len() > RECORDS_BYTES_MAX {
                    links.send_message(to, &HolderMessage::Records(std::mem::take(&mut batch)));
                    bytes = 0;
                }
                // Its length goes with it.
                bytes += record.len() + size_of::<u64>();
                batch.push(record);
            }
            if !batch.is_empty() {
                links.send_message(to, &HolderMessage::Records(batch));
            }
        });
    }

    /// Verifies what a holder sent, and has the catalogue learn what a live member answers for.
    pub(super) fn verify(&self, from: NodeKey, records: Vec<Vec<u8>>) {
        let Ok(turn) = self.record_workers.clone().try_acquire_owned() else { return };
        let (commands, roster) = (self.commands.clone(), self.roster.borrow().clone());
        let (links, name) = (self.links.clone(), self.name(&from));
        tokio::task::spawn_blocking(move || {
            let _turn = turn;
            for sealed in records {
                let Ok(record) = Sealed::<PathRecord>::open(&sealed) else {
                    tracing::warn!(
                        node = name,
                        "a node sends a path record that nobody signed; its connections are closed"
                    );
                    return links.cut(from, "it sent a path record that nobody signed");
                };
                if !roster.is_live(&record.author) {
                    continue;
                }
                let (key, content) = (record.key(), record.content_tag());
                let Some(commands) = commands.upgrade() else { return };
                if commands.blocking_send(Command::Learn { key, content, sealed }).is_err() {
                    return;
                }
            }
        });
    }
}
