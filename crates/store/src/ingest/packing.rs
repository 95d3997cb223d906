//! The blocks of one ingest, from its chunker to its manifest.
//!
//! Blocks are packed in any order, by whichever thread is free; their chunks are put in order here.
//! Invariants: every block that was handed on is settled once, by its chunks or an error; an ingest
//! that ends, one way or the other, waits for those that are being packed, and after that nothing but
//! itself holds the store.

use super::block::Block;
use super::packer::{Packer, Target};
use super::pool::Job;
use crate::error::{Error, Result};
use crate::pins::PinSet;
use crate::store::Store;
use shoal_wire::mesh::manifest::ChunkRef;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

pub struct Packing {
    store: Store,
    target: Arc<Target>,
    tally: Arc<Tally>,
    block: Block,
    /// For what is packed here and not by the pool.
    packer: Option<Packer>,
}

/// What all blocks of an ingest came to.
#[derive(Default)]
pub struct Tally {
    state: Mutex<State>,
    settled: Condvar,
}

#[derive(Default)]
struct State {
    /// Of each block its chunks, once it is packed.
    chunks: Vec<Vec<ChunkRef>>,
    /// Blocks that are not settled.
    open: usize,
    failed: Option<Error>,
}

/// The duty to settle one block.
pub struct Ticket {
    tally: Arc<Tally>,
    number: usize,
    settled: bool,
}

impl Packing {
    pub fn new(store: &Store) -> Packing {
        let pins = Mutex::new(PinSet::new(store.pins.clone()));
        let target = Target { store: store.clone(), pins, given_up: AtomicBool::new(false) };
        Packing {
            store: store.clone(),
            target: Arc::new(target),
            tally: Arc::default(),
            block: Block::default(),
            packer: None,
        }
    }

    /// Takes the next bytes of the current chunk, which may end with them. An error is that of any
    /// block before.
    pub fn push(&mut self, bytes: &[u8], ends: bool) -> Result<()> {
        self.block.extend(bytes);
        if !ends {
            return Ok(());
        }
        self.block.end_chunk();
        match self.block.is_full() {
            true => self.hand_on(),
            false => Ok(()),
        }
    }

    fn hand_on(&mut self) -> Result<()> {
        let block = std::mem::take(&mut self.block);
        let job = Job { block, target: self.target.clone(), ticket: self.tally.ticket() };
        let pool = &self.store.packers;
        let (spare, overflow) = pool.submit(job);
        self.block = spare;
        if let Some(job) = overflow {
            job.run(&mut self.packer, pool.level(), || crate::frame::Effort::Haste);
        }
        match self.tally.state().failed.take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Ends the last chunk and waits until all are in segments.
    pub fn finish(&mut self) -> Result<Vec<ChunkRef>> {
        self.block.end_chunk();
        let pool = &self.store.packers;
        let last = match self.block.is_empty() {
            true => Vec::new(),
            false => {
                let packer = ready(&mut self.packer, &self.store)?;
                packer.pack(&self.target, &self.block, || pool.effort())?
            }
        };
        while let Some(job) = pool.withdraw(&self.tally) {
            job.run(&mut self.packer, pool.level(), || pool.effort());
        }
        let mut state = self.tally.wait();
        if let Some(error) = state.failed.take() {
            return Err(error);
        }
        let mut chunks = std::mem::take(&mut state.chunks).concat();
        chunks.extend(last);
        Ok(chunks)
    }

    /// Compresses the manifest.
    pub fn encode_whole(&mut self, bytes: &[u8]) -> Result<Vec<u8>> {
        let encoded = ready(&mut self.packer, &self.store)?.encode_whole(bytes);
        encoded.map_err(Error::io("compress", &self.store.dir))
    }

    /// The pins of all chunks, after [`Packing::finish`].
    pub fn take_pins(&mut self) -> PinSet {
        let mut pins = self.target.pins.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut pins, PinSet::new(self.store.pins.clone()))
    }
}

/// The packer, from the store's idle ones the first time.
fn ready<'a>(slot: &'a mut Option<Packer>, store: &Store) -> Result<&'a mut Packer> {
    let level = store.packers.level();
    if slot.is_none() {
        *slot = Some(store.idle_packers.take(|| Packer::new(level))?);
    }
    Packer::ready(slot, level)
}

impl Drop for Packing {
    fn drop(&mut self) {
        self.target.given_up.store(true, Ordering::Relaxed);
        while let Some(job) = self.store.packers.withdraw(&self.tally) {
            drop(job);
        }
        drop(self.tally.wait());
        self.packer.take().into_iter().for_each(|packer| self.store.idle_packers.put(packer));
    }
}

impl Tally {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ticket(self: &Arc<Self>) -> Ticket {
        let mut state = self.state();
        state.open += 1;
        state.chunks.push(Vec::new());
        Ticket { tally: self.clone(), number: state.chunks.len() - 1, settled: false }
    }

    /// Waits until every block is settled.
    fn wait(&self) -> MutexGuard<'_, State> {
        let settled = self.settled.wait_while(self.state(), |state| state.open > 0);
        settled.unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    pub fn is_of(&self, tally: &Arc<Tally>) -> bool {
        Arc::ptr_eq(&self.tally, tally)
    }

    pub fn settle(mut self, packed: Result<Vec<ChunkRef>>) {
        self.enter(packed);
    }

    fn enter(&mut self, packed: Result<Vec<ChunkRef>>) {
        self.settled = true;
        let mut state = self.tally.state();
        state.open -= 1;
        match packed {
            Ok(chunks) => state.chunks[self.number] = chunks,
            Err(error) => _ = state.failed.get_or_insert(error),
        }
        self.tally.settled.notify_all();
    }
}

/// A block that was never packed, or whose packing panicked, fails its ingest.
impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.settled {
            self.enter(Err(Error::Stopped("a part of the NAR was not stored".into())));
        }
    }
}
