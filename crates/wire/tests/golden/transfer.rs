//! What `shoal push` and `pull` say: it comes back as it was, and what is cut, changed or too much is refused.

use proptest::prelude::*;
use shoal_wire::mesh::manifest::{CHUNK_LEN_MAX, ChunkRef};
use shoal_wire::mesh::transfer::{
    BATCH_LEN_MAX, ChunkBatch, ChunkQuery, ChunkRequest, Commit, ENTRIES_MAX, Entry, FRAME_LEN_MAX, FRAMES_MAX,
    HASHES_MAX, Lacking, MESSAGE_LEN_MAX, Message, PATHS_MAX, PathQuery, TransferError,
};
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::store_path::StorePath;

fn chunk(n: u8) -> ChunkRef {
    ChunkRef { hash: [n; 32], len: 100 + u32::from(n) }
}

fn path() -> StorePath {
    StorePath::from_base_name("dd2s755w68andyyr5makbwzidf6whr5d-ht").unwrap()
}

fn entry(chunks: Vec<ChunkRef>) -> Entry {
    let size = chunks.iter().map(|chunk| u64::from(chunk.len)).sum();
    Entry { info: PathInfo::new(path(), [7; 32], size), chunks }
}

fn chunks() -> impl Strategy<Value = Vec<ChunkRef>> {
    prop::collection::vec((any::<[u8; 32]>(), 1..=CHUNK_LEN_MAX), 0..20)
        .prop_map(|chunks| chunks.into_iter().map(|(hash, len)| ChunkRef { hash, len }).collect())
}

proptest! {
    #[test]
    fn messages_come_back(chunks in chunks(), lacking in prop::collection::vec(any::<bool>(), 0..50)) {
        let hashes = ChunkQuery(chunks.iter().map(|chunk| chunk.hash).collect());
        prop_assert_eq!(ChunkQuery::decode(&hashes.encode()), Ok(hashes));
        let commit = Commit(vec![entry(chunks), entry(Vec::new())]);
        prop_assert_eq!(Commit::decode(&commit.encode()), Ok(commit));
        let lacking = Lacking(lacking);
        prop_assert_eq!(Lacking::decode(&lacking.encode()), Ok(lacking));
    }

    #[test]
    fn what_is_cut_is_refused(chunks in chunks(), at in any::<prop::sample::Index>()) {
        let bytes = Commit(vec![entry(chunks)]).encode();
        prop_assert!(Commit::decode(&bytes[..at.index(bytes.len())]).is_err());
    }

    #[test]
    fn batches_come_back_whole_or_not_at_all(
        frames in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..300)), 0..20),
        at in any::<prop::sample::Index>(),
    ) {
        let mut batch = ChunkBatch::default();
        frames.iter().for_each(|(n, frame)| batch.push(&chunk(*n), frame));
        let bytes = batch.encode();
        let expected: Vec<_> = frames.iter().map(|(n, frame)| (chunk(*n), &frame[..])).collect();
        prop_assert_eq!(ChunkBatch::decode(&bytes).unwrap(), expected);
        prop_assert!(ChunkBatch::decode(&bytes[..at.index(bytes.len())]).is_err());
        let longer = [&bytes[..], b"x"].concat();
        prop_assert_eq!(ChunkBatch::decode(&longer), Err(TransferError::Trailing(1)));
    }
}

#[test]
fn heads_are_checked() {
    let bytes = PathQuery(vec![path()]).encode();
    assert_eq!(ChunkQuery::decode(&bytes), Err(TransferError::Kind { expected: 2, found: 1 }));
    assert_eq!(PathQuery::decode(&[&[9][..], &bytes[1..]].concat()), Err(TransferError::Version(9)));
    assert_eq!(PathQuery::decode(&[&bytes[..], &[0]].concat()), Err(TransferError::Trailing(1)));
    assert_eq!(PathQuery::decode(&bytes[..1]), Err(TransferError::Truncated));
    let long = vec![1; MESSAGE_LEN_MAX + 1];
    assert_eq!(PathQuery::decode(&long), Err(TransferError::TooLong(long.len())));
    assert_eq!(ChunkBatch::decode(&long[..=BATCH_LEN_MAX]), Err(TransferError::TooLong(BATCH_LEN_MAX + 1)));
}

fn is_too_many<M: Message + std::fmt::Debug>(message: &M) -> bool {
    matches!(M::decode(&message.encode()), Err(TransferError::TooMany { .. }))
}

#[test]
fn counts_have_limits() {
    assert!(is_too_many(&PathQuery(vec![path(); PATHS_MAX + 1])));
    assert!(!is_too_many(&PathQuery(vec![path(); PATHS_MAX])));
    assert!(is_too_many(&ChunkQuery(vec![[0; 32]; HASHES_MAX + 1])));
    assert!(!is_too_many(&ChunkQuery(vec![[0; 32]; HASHES_MAX])));
    assert!(is_too_many(&ChunkRequest((0..=HASHES_MAX as u32).collect())));
    assert!(is_too_many(&Lacking(vec![true; PATHS_MAX.max(HASHES_MAX) + 1])));
    assert!(is_too_many(&Commit(vec![entry(Vec::new()); ENTRIES_MAX + 1])));
    let mut batch = ChunkBatch::default().encode();
    batch[2..6].copy_from_slice(&(FRAMES_MAX as u32 + 1).to_le_bytes());
    assert!(matches!(ChunkBatch::decode(&batch), Err(TransferError::TooMany { .. })));
}

#[test]
fn what_does_not_add_up_is_refused() {
    let mut short = entry(vec![chunk(1), chunk(2)]);
    short.info.nar_size -= 1;
    assert!(matches!(Entry::decode(&short.encode()), Err(TransferError::Size { chunks: 203, nar: 202, .. })));
    for len in [0, CHUNK_LEN_MAX + 1] {
        let odd = entry(vec![ChunkRef { hash: [0; 32], len }]);
        assert_eq!(Entry::decode(&odd.encode()), Err(TransferError::ChunkLen(len)));
        let mut batch = ChunkBatch::default();
        batch.push(&odd.chunks[0], b"");
        assert_eq!(ChunkBatch::decode(&batch.encode()), Err(TransferError::ChunkLen(len)));
    }
    let twice = ChunkRequest(vec![1, 3, 3]);
    assert_eq!(ChunkRequest::decode(&twice.encode()), Err(TransferError::Order { before: 3, number: 3 }));
    let mut batch = ChunkBatch::default();
    batch.push(&chunk(1), b"");
    let mut bytes = batch.encode();
    let at = bytes.len() - 4;
    bytes[at..].copy_from_slice(&(FRAME_LEN_MAX as u32 + 1).to_le_bytes());
    assert_eq!(ChunkBatch::decode(&bytes), Err(TransferError::FrameLen(FRAME_LEN_MAX as u32 + 1)));
}

#[test]
fn a_batch_with_room_stays_within_its_limit() {
    let mut batch = ChunkBatch::default();
    while batch.has_room(FRAME_LEN_MAX) {
        batch.push(&chunk(3), &[0; FRAME_LEN_MAX]);
    }
    assert!(!batch.is_empty() && ChunkBatch::decode(&batch.encode()).is_ok());
    let mut batch = ChunkBatch::default();
    while batch.has_room(1) {
        batch.push(&chunk(3), b"x");
    }
    assert_eq!(ChunkBatch::decode(&batch.encode()).unwrap().len(), FRAMES_MAX);
}

#[test]
fn the_longest_request_for_chunks_is_taken_and_nothing_longer() {
    let longest = ChunkRequest((u32::MAX - HASHES_MAX as u32 + 1..=u32::MAX).collect());
    let mut bytes = longest.encode();
    assert!(bytes.len() <= ChunkRequest::LEN_MAX);
    assert_eq!(ChunkRequest::decode(&bytes), Ok(longest));
    bytes.resize(ChunkRequest::LEN_MAX + 1, 0);
    assert_eq!(ChunkRequest::decode(&bytes), Err(TransferError::TooLong(bytes.len())));
}
