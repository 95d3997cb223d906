//! Copies that other nodes want kept here.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use shoal_mesh::command::Order;
use shoal_mesh::handle::Mesh;
use shoal_mesh::records::holding;
use shoal_store::{Ingested, Store};
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::announcement::{Enclosed, Holding, SOURCES_MAX};
use shoal_wire::mesh::path_record::hash_part;
use shoal_wire::nix::path_info::PathInfo;
use tokio::runtime::Handle;
use tokio::sync::mpsc::Receiver;

use super::Neighbours;
use crate::upstream::Upstreams;

/// Orders that are carried out together: as many as one round of questions asks for, and few enough that a client who
/// wants something does not wait behind more.
const TOGETHER_MAX: usize = 64;
/// Orders are carried out by so many threads, so that a path that takes long keeps few others waiting.
const COPIERS: usize = 4;
/// Copies of one path that take longer are given up; the owner orders them again.
const PATIENCE: Duration = Duration::from_secs(600);

/// Carries orders out for as long as there are any, on threads of its own.
pub struct Orders {
    pub neighbours: Neighbours,
    pub upstreams: Upstreams,
    pub store: Store,
    pub mesh: Mesh,
    pub runtime: Handle,
}

impl Orders {
    pub fn start(self, orders: Receiver<Order>) -> std::io::Result<()> {
        let (copies, orders) = (Arc::new(self), Arc::new(Mutex::new(orders)));
        for _ in 0..COPIERS {
            let (copies, orders) = (copies.clone(), orders.clone());
            let run = move || {
                while let Some(together) = next_orders(&orders) {
                    let carried = catch_unwind(AssertUnwindSafe(|| copies.carry_out(together)));
                    if carried.is_err() {
                        // Those who wait for these copies order them elsewhere when they are late.
                        tracing::error!("a bug ended the making of some copies");
                    }
                }
            };
            thread::Builder::new().name("copies".into()).spawn(run)?;
        }
        Ok(())
    }

    /// Each from the first of its holders; what that did not give, from the next.
    fn carry_out(&self, mut orders: Vec<Order>) {
        self.keep_enclosed(&mut orders);
        for turn in 0..SOURCES_MAX {
            let mut by_holder: BTreeMap<NodeKey, Vec<&Order>> = BTreeMap::new();
            for order in &orders {
                if let Some(holder) = order.from.get(turn) {
                    // Any of them has all that the path refers to.
                    by_holder.entry(*holder).or_default().push(order);
                }
            }
            for (holder, orders) in by_holder {
                if let Err(error) = self.copy(holder, &orders) {
                    let node = self.neighbours.name(&holder);
                    tracing::warn!(error = format!("{error:#}"), node, "cannot copy paths");
                }
            }
            orders.retain(|order| !self.is_answered(order, turn));
        }
    }

    /// Makes valid what came along with its order. What cannot be, since something that it refers to is not here for
    /// instance, is fetched.
    fn keep_enclosed(&self, orders: &mut Vec<Order>) {
        let roots = self.store.temp_roots();
        let (mut kept, mut batch) = (BTreeSet::new(), Vec::new());
        for order in orders.iter_mut() {
            let Some(enclosed) = order.enclosed.take() else { continue };
            if let Some((info, ingested)) = self.open(&order.holding, &enclosed) {
                roots.add(&info.path);
                kept.insert(order.holding.key);
                batch.push((info, ingested));
            }
        }
        if batch.is_empty() {
            return;
        }
        match self.store.commit(batch) {
            Ok(()) => orders.retain(|order| !(kept.contains(&order.holding.key) && self.is_answered(order, 0))),
            Err(error) => tracing::debug!(%error, "what was sent along with an order is fetched"),
        }
    }

    /// The path that was sent along with an order, if a live member answers for it and it is what was ordered.
    fn open(&self, holding: &Holding, enclosed: &Enclosed) -> Option<(PathInfo, Ingested)> {
        let record = self.mesh.believed(&holding.key, &enclosed.record)?;
        let mut ingest = self.store.ingest();
        ingest.write_all(&enclosed.nar).ok()?;
        let ingested = ingest.finish().ok()?;
        let is_right = record.content_tag() == holding.content
            && (ingested.nar_hash, ingested.nar_size) == (record.nar_hash, record.nar_size);
        let mut info = record.info();
        info.registration_time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        is_right.then_some((info, ingested))
    }

    fn copy(&self, holder: NodeKey, orders: &[&Order]) -> anyhow::Result<()> {
        let closure = self.upstreams.closure_at(holder, orders.iter().map(|order| order.holding.key))?;
        let roots = self.store.temp_roots();
        closure.offers.keys().for_each(|path| roots.add(path));
        if let Some(fetch) = self.upstreams.begin_copy(&closure) {
            // Dropping it gives up what is not there by then.
            fetch.wait(PATIENCE);
        }
        Ok(())
    }

    /// Says that the path is here now, with the contents that were wanted, or after the last holder's turn that it is not.
    fn is_answered(&self, order: &Order, turn: usize) -> bool {
        let is_here = || {
            let path = self.store.path_from_hash_part(&hash_part(&order.holding.key)?).ok()??;
            let info = self.store.path_info(&path).ok()??;
            (holding(&info)? == order.holding).then_some(())
        };
        let is_last = turn + 1 >= order.from.len();
        match is_here() {
            Some(()) => self.runtime.block_on(self.mesh.fetched(order.holding)),
            None if is_last => self.runtime.block_on(self.mesh.fetch_failed(order.holding.key)),
            None => return false,
        }
        true
    }
}

/// What has been ordered, some of it together.
fn next_orders(orders: &Mutex<Receiver<Order>>) -> Option<Vec<Order>> {
    let mut orders = orders.lock().unwrap_or_else(PoisonError::into_inner);
    let mut together = vec![orders.blocking_recv()?];
    while together.len() < TOGETHER_MAX
        && let Ok(next) = orders.try_recv()
    {
        together.push(next);
    }
    Some(together)
}
