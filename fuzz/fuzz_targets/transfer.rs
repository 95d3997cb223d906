//! Messages of `shoal push` and `pull`: none panics, and what decodes keeps its limits and comes back.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shoal_wire::mesh::transfer::{ChunkBatch, ChunkQuery, ChunkRequest, Commit, Entry, Lacking, Message, PathQuery};

fn round<M: Message + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    if let Ok(message) = M::decode(bytes) {
        assert_eq!(M::decode(&message.encode()).as_ref(), Ok(&message));
    }
}

fuzz_target!(|bytes: &[u8]| {
    round::<PathQuery>(bytes);
    round::<ChunkQuery>(bytes);
    round::<ChunkRequest>(bytes);
    round::<Lacking>(bytes);
    round::<Commit>(bytes);
    round::<Entry>(bytes);
    if let Ok(chunks) = ChunkBatch::decode(bytes) {
        let mut batch = ChunkBatch::default();
        chunks.iter().for_each(|(chunk, frame)| batch.push(chunk, frame));
        assert_eq!(batch.encode(), bytes);
    }
});
