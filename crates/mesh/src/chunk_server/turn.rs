//! Waits for the turn that `shoal_grid::upload` gives.

use shoal_grid::upload::{Ticket, Upload};
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::chunks::Urgency;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How long one waits for a turn before it is told that this node is busy: another peer may have the chunk.
pub const TURN_TIME: Duration = Duration::from_secs(1);
/// Pieces under a cap last about this long, so that turns are short.
const PIECE_MS: u64 = 20;

pub struct Turns {
    began: Instant,
    rate: u64,
    state: Mutex<State>,
}

struct State {
    upload: Upload,
    waiting: HashMap<Ticket, oneshot::Sender<()>>,
}

/// Gives a turn up that was not taken.
struct Waiting<'a>(&'a Turns, Ticket);

impl Turns {
    pub fn new(rate: u64) -> Self {
        let state = State { upload: Upload::new(0, rate), waiting: HashMap::new() };
        Turns { began: Instant::now(), rate, state: Mutex::new(state) }
    }

    /// Bytes of one piece, of at most `len_max`.
    pub fn piece_len(&self, len_max: usize) -> usize {
        (self.rate * PIECE_MS / 1000).clamp(1, len_max as u64) as usize
    }

    /// Waits until `bytes` may be sent; whether they may.
    pub async fn take(&self, peer: NodeKey, urgency: Urgency, bytes: u64) -> bool {
        let (tell, mut told) = oneshot::channel();
        let waiting = {
            let mut state = self.state();
            let Some(ticket) = state.upload.want(peer, urgency, bytes) else { return false };
            state.waiting.insert(ticket, tell);
            Waiting(self, ticket)
        };
        let deadline = Instant::now() + TURN_TIME;
        loop {
            let next = self.grant();
            let until = next.map_or(deadline, |next| next.min(deadline));
            tokio::select! {
                biased;
                turn = &mut told => return turn.is_ok(),
                () = tokio::time::sleep_until(until.into()) => {}
            }
            if Instant::now() >= deadline {
                drop(waiting);
                // It may have come at the last moment.
                return told.try_recv().is_ok();
            }
        }
    }

    /// Tells all whose turn it is; when the next will be.
    fn grant(&self) -> Option<Instant> {
        let now = self.began.elapsed().as_millis() as u64;
        let mut state = self.state();
        for ticket in state.upload.grant(now) {
            if let Some(tell) = state.waiting.remove(&ticket) {
                // Who has gone does not take its turn, which costs the others a piece.
                let _ = tell.send(());
            }
        }
        state.upload.next_grant(now).map(|at| self.began + Duration::from_millis(at))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.upload.give_up(self.1);
        state.waiting.remove(&self.1);
    }
}
