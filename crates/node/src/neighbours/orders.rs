//! Copies that other nodes want kept here.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::Duration;

use shoal_mesh::command::Order;
use shoal_mesh::handle::Mesh;
use shoal_mesh::records::holding;
use shoal_store::Store;
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::path_record::hash_part;
use tokio::runtime::Handle;
use tokio::sync::mpsc::Receiver;

use super::Neighbours;
use crate::upstream::Upstreams;

/// Orders that are carried out together: as many as one round of questions asks for, and few enough that a client who
/// wants something does not wait behind more.
const TOGETHER_MAX: usize = 64;
/// Copies of one path that take longer are given up; the owner orders them again.
const PATIENCE: Duration = Duration::from_secs(600);

/// Carries orders out for as long as there are any, on a thread of its own.
pub struct Orders {
    pub neighbours: Neighbours,
    pub upstreams: Upstreams,
    pub store: Store,
    pub mesh: Mesh,
    pub runtime: Handle,
}

impl Orders {
    pub fn start(self, mut orders: Receiver<Order>) -> std::io::Result<()> {
        let run = move || {
            while let Some(first) = orders.blocking_recv() {
                let mut together = vec![first];
                while together.len() < TOGETHER_MAX
                    && let Ok(next) = orders.try_recv()
                {
                    together.push(next);
                }
                let carried = catch_unwind(AssertUnwindSafe(|| self.carry_out(together)));
                if carried.is_err() {
                    // Those who wait for these copies order them elsewhere when they are late.
                    tracing::error!("a bug ended the making of some copies");
                }
            }
        };
        thread::Builder::new().name("copies".into()).spawn(run).map(drop)
    }

    fn carry_out(&self, orders: Vec<Order>) {
        let mut by_holder: BTreeMap<NodeKey, Vec<Order>> = BTreeMap::new();
        for order in orders {
            // Any of them has all that the path refers to.
            let first = order.from.first().copied().unwrap_or_default();
            by_holder.entry(first).or_default().push(order);
        }
        for (holder, orders) in by_holder {
            if let Err(error) = self.copy(holder, &orders) {
                tracing::warn!(error = format!("{error:#}"), node = self.neighbours.name(&holder), "cannot copy paths");
            }
            for order in orders {
                self.answer(&order);
            }
        }
    }

    fn copy(&self, holder: NodeKey, orders: &[Order]) -> anyhow::Result<()> {
        let closure = self.upstreams.closure_at(holder, orders.iter().map(|order| order.holding.key))?;
        let roots = self.store.temp_roots();
        closure.offers.keys().for_each(|path| roots.add(path));
        if let Some(fetch) = self.upstreams.begin_copy(&closure) {
            // Dropping it gives up what is not there by then.
            fetch.wait(PATIENCE);
        }
        Ok(())
    }

    /// Whether the path is here now, with the contents that were wanted.
    fn answer(&self, order: &Order) {
        let is_here = || {
            let path = self.store.path_from_hash_part(&hash_part(&order.holding.key)?).ok()??;
            let info = self.store.path_info(&path).ok()??;
            (holding(&info)? == order.holding).then_some(())
        };
        self.runtime.block_on(async {
            match is_here() {
                Some(()) => self.mesh.fetched(order.holding).await,
                None => self.mesh.fetch_failed(order.holding.key).await,
            }
        });
    }
}
