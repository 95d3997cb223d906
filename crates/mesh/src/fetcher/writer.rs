//! What came of one request is verified and written beside the receiving of more, in the order in which it came.
//!
//! Handing work to a thread that sleeps costs more than verifying a megabyte does, most of all on virtual machines. So
//! batches queue up and one thread takes them as long as there are any.

use super::engine::Engine;
use super::error::AskError;
use super::flight::Flight;
use shoal_grid::transfer::{Outcome, RequestId};
use shoal_store::{Arrivals, ChunkError, ChunkHold};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// Batches of one request that wait or are written: enough that neither who receives nor who writes waits for the other.
const BATCHES_MAX: u32 = 4;
/// Batches written before others that wait for a core have a turn.
const TURN: usize = 8;
/// How often the peer is said not to be silent while there is no room for more.
const HEARD_EVERY: Duration = Duration::from_millis(200);

/// Arrivals, and what became of each part that came with them.
struct Batch {
    arrivals: Arrivals,
    outcomes: Vec<Outcome>,
    _room: OwnedSemaphorePermit,
    _buffer: OwnedSemaphorePermit,
}

#[derive(Default)]
struct Queue {
    batches: VecDeque<Batch>,
    is_written: bool,
    /// After it nothing is written any more.
    refused: Option<AskError>,
    is_cancelled: bool,
}

/// The writing end of one request. Cheap to clone.
#[derive(Clone)]
pub struct Writer(Arc<Inner>);

struct Inner {
    engine: Arc<Engine>,
    flight: Arc<Flight>,
    request: RequestId,
    queue: Mutex<Queue>,
    room: Arc<Semaphore>,
}

impl Writer {
    pub fn new(engine: Arc<Engine>, flight: Arc<Flight>, request: RequestId) -> Writer {
        let room = Arc::new(Semaphore::new(BATCHES_MAX as usize));
        Writer(Arc::new(Inner { engine, flight, request, queue: Mutex::default(), room }))
    }

    /// Queues a batch, once there is room. The error is that of one before it.
    pub async fn push(&self, arrivals: Arrivals, outcomes: Vec<Outcome>) -> Result<(), AskError> {
        let room = self.permits(&self.0.room, 1).await?;
        let buffer = self.permits(&self.0.engine.batches, 1).await?;
        let begins = {
            let mut queue = self.0.queue();
            if let Some(error) = &queue.refused {
                return Err(error.clone());
            }
            queue.batches.push_back(Batch { arrivals, outcomes, _room: room, _buffer: buffer });
            !std::mem::replace(&mut queue.is_written, true)
        };
        if begins {
            self.begin();
        }
        Ok(())
    }

    /// Waits until all that was queued is written.
    pub async fn finish(&self) -> Result<(), AskError> {
        let _all = self.permits(&self.0.room, BATCHES_MAX).await?;
        self.0.queue().refused.clone().map_or(Ok(()), Err)
    }

    /// Nobody waits for what became of the request's parts any more; what is queued is written all the same.
    pub fn cancel(&self) {
        self.0.queue().is_cancelled = true;
    }

    /// Waits for room. The peer is not silent meanwhile.
    async fn permits(&self, of: &Arc<Semaphore>, count: u32) -> Result<OwnedSemaphorePermit, AskError> {
        let mut permits = std::pin::pin!(of.clone().acquire_many_owned(count));
        loop {
            match timeout(HEARD_EVERY, &mut permits).await {
                Ok(got) => return got.map_err(|_| AskError::Broke("nothing is written any more".into())),
                Err(_) => self.0.engine.heard(self.0.request),
            }
        }
    }

    fn begin(&self) {
        let writer = self.clone();
        match self.0.engine.verifying.clone().try_acquire_owned() {
            Ok(core) => _ = spawn_blocking(move || writer.write(core)),
            Err(_) => _ = tokio::spawn(writer.write_when_due()),
        }
    }

    async fn write_when_due(self) {
        // It is never closed.
        if let Ok(core) = self.0.engine.verifying.clone().acquire_owned().await {
            spawn_blocking(move || self.write(core));
        }
    }

    /// Writes what is queued, for one turn.
    fn write(&self, core: OwnedSemaphorePermit) {
        for _ in 0..TURN {
            let Some(batch) = self.0.next() else { return };
            // A batch that was not stored must not leave those behind it, and who pushes them, waiting.
            let stored = catch_unwind(AssertUnwindSafe(|| self.0.store(batch)));
            let stored = stored.unwrap_or_else(|_| Err(AskError::Broke("what came was not stored".into())));
            if let Err(error) = stored {
                self.0.queue().refused.get_or_insert(error);
            }
        }
        drop(core);
        tokio::spawn(self.clone().write_when_due());
    }
}

impl Inner {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next to be written; without one, writing ends.
    fn next(&self) -> Option<Batch> {
        let mut queue = self.queue();
        if queue.refused.is_some() {
            queue.batches.clear();
        }
        let next = queue.batches.pop_front();
        queue.is_written = next.is_some();
        next
    }

    /// Verifies and writes what came, and tells what became of each, up to the first that is wrong.
    fn store(&self, Batch { arrivals, outcomes, _room, _buffer }: Batch) -> Result<(), AskError> {
        let is_lacked = |hold: &Arc<ChunkHold>| arrivals.chunks().any(|chunk| !hold.is_here(&chunk.hash));
        if self.queue().is_cancelled && !self.flight.hold().is_some_and(is_lacked) {
            return Ok(());
        }
        let verified = arrivals.verify()?;
        let refused = verified.refused().map(ChunkError::to_string);
        let mut here = verified.len();
        let names: Vec<[u8; 32]> = verified.names().copied().collect();
        let right = outcomes.iter().take_while(|outcome| match outcome {
            Outcome::Here => here.checked_sub(1).inspect(|left| here = *left).is_some(),
            Outcome::Absent | Outcome::Busy => true,
        });
        let right = right.count();
        self.flight.keep(verified)?;
        match self.queue().is_cancelled {
            true => self.engine.found(&names),
            false => self.engine.settle(self.request, &outcomes[..right]),
        }
        refused.map_or(Ok(()), |why| Err(AskError::Lied(why)))
    }
}
