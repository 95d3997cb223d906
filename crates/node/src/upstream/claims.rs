//! One download for the whole mesh: of all nodes that want a path from a cache, one fetches it, and the others have it
//! from there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use shoal_wire::nix::store_path::StorePath;

use super::asks::{Asks, Query};
use super::offer::Offer;

/// How often it is looked whether a path that another node fetches is there.
const POLL: Duration = Duration::from_millis(200);
/// Another node that takes longer for one path is not waited for.
const PATIENCE: Duration = Duration::from_secs(600);
/// A claim is kept alive this often while its download goes on.
const RENEWAL: Duration = Duration::from_millis(shoal_grid::catalogue::claims::CLAIM_MS / 3);

/// Who is to fetch a path from a cache.
pub enum Turn {
    /// This node, for as long as it keeps the claim.
    Mine(Claim),
    /// Another node has it by now.
    Theirs(Arc<Offer>),
}

/// Given back when it is dropped, unless the path came to be stored.
pub struct Claim {
    asks: Arc<Asks>,
    path: StorePath,
    renewed: Instant,
    is_fulfilled: bool,
}

impl Asks {
    /// Waits for this node's turn, or for the node whose turn it is.
    pub fn take_turn(self: &Arc<Self>, path: &StorePath) -> Turn {
        let give_up = Instant::now() + PATIENCE;
        loop {
            if self.neighbours.claim(path) || Instant::now() >= give_up {
                let (asks, path) = (self.clone(), path.clone());
                return Turn::Mine(Claim { asks, path, renewed: Instant::now(), is_fulfilled: false });
            }
            if let Some(offer) = self.find_in_mesh(&[Query::Path(path)]).pop().flatten() {
                return Turn::Theirs(offer);
            }
            std::thread::sleep(POLL);
        }
    }
}

impl Claim {
    /// To be called while the download makes progress.
    pub fn renew(&mut self) {
        if self.renewed.elapsed() >= RENEWAL {
            self.renewed = Instant::now();
            self.asks.neighbours.renew_claim(&self.path);
        }
    }

    /// The path is here whole; its owners hear of it when it is valid.
    pub fn fulfil(mut self) {
        self.is_fulfilled = true;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.is_fulfilled {
            self.asks.neighbours.unclaim(&self.path);
        }
    }
}
