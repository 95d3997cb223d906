//! Chunks that are here only because somebody read them: no path that is valid here has them.
//!
//! Each hold keeps its chunks from being deleted. The oldest are let go where they are too many, and before any path is
//! deleted for their room. Who reads such a chunk again fetches it again.

use std::collections::VecDeque;
use std::sync::Arc;

use shoal_store::ChunkHold;

/// Chunks held at a time: 50 MB of memory.
const CHUNKS_MAX: usize = 1 << 18;

pub struct Holds {
    /// The oldest first, each with the stored bytes that came for it.
    holds: VecDeque<(Arc<ChunkHold>, u64)>,
    chunks: usize,
    bytes: u64,
    bytes_max: u64,
}

impl Holds {
    pub fn new(bytes_max: u64) -> Holds {
        Holds { holds: VecDeque::new(), chunks: 0, bytes: 0, bytes_max }
    }

    pub fn keep(&mut self, hold: Arc<ChunkHold>, bytes: u64) {
        self.chunks += hold.len();
        self.bytes += bytes;
        self.holds.push_back((hold, bytes));
        while (self.bytes > self.bytes_max || self.chunks > CHUNKS_MAX) && self.let_go_oldest().is_some() {}
    }

    /// Lets go of so many bytes, or of all there are. Returns how many that were.
    pub fn let_go(&mut self, bytes: u64) -> u64 {
        let mut gone = 0;
        while gone < bytes
            && let Some(more) = self.let_go_oldest()
        {
            gone += more;
        }
        gone
    }

    /// Lets go of the older half.
    pub fn let_go_half(&mut self) -> u64 {
        self.let_go(self.bytes.div_ceil(2))
    }

    fn let_go_oldest(&mut self) -> Option<u64> {
        let (hold, bytes) = self.holds.pop_front()?;
        self.chunks -= hold.len();
        self.bytes -= bytes;
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_grid::random::Random;
    use shoal_store::{Effort, Encoder, Options, Store};
    use shoal_wire::mesh::manifest::ChunkRef;

    /// A chunk of 256 KiB that nothing compresses, held.
    fn brought(store: &Store, encoder: &mut Encoder, seed: u64) -> (Arc<ChunkHold>, u64) {
        let mut random = Random::new(seed);
        let contents: Vec<u8> = (0..256 << 10).map(|_| random.word() as u8).collect();
        let mut frame = Vec::new();
        encoder.encode(&contents, Effort::Level, &mut frame).unwrap();
        let mut hold = store.hold_chunks();
        let chunk = ChunkRef::of(&contents);
        hold.lacks(&[chunk.hash]).unwrap();
        hold.bring([(chunk, &frame[..])]).unwrap();
        (Arc::new(hold), frame.len() as u64)
    }

    /// On a node that commits nothing.
    #[test]
    fn what_is_read_without_end_takes_no_more_of_the_disk_than_it_may() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { segment_bytes: 4 << 20, ..Options::default() };
        let store = Store::open(dir.path(), options).unwrap();
        let mut encoder = Encoder::new(1).unwrap();
        let used = || store.stats().unwrap().segment_bytes;
        let mut holds = Holds::new(8 << 20);
        for seed in 0..80 {
            let (hold, bytes) = brought(&store, &mut encoder, seed);
            holds.keep(hold, bytes);
        }
        assert!(used() >= 20 << 20, "all of it is counted: {}", used());
        store.reclaim().unwrap();
        assert!(used() <= 16 << 20, "the segments that are held, and the one that is open: {}", used());
        assert!(holds.let_go(1) > 0);
        assert!((3 << 20..5 << 20).contains(&holds.let_go_half()));
        holds.let_go(u64::MAX);
        assert_eq!((holds.chunks, holds.bytes), (0, 0));
        store.reclaim().unwrap();
        assert!(used() <= 4 << 20, "{}", used());
    }
}
