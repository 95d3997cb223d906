//! Chunks pushed and pulled: whole, cut off, untrue, and by who may not.

use std::io::Read;

use shoal_node::door::Role;
use shoal_store::{GcAction, GcRequest};
use shoal_wire::mesh::manifest::ChunkRef;
use shoal_wire::mesh::transfer::{
    BATCH_LEN_MAX, ChunkBatch, ChunkQuery, ChunkRequest, Entry, HASHES_MAX, Lacking, Message, PathQuery,
};
use shoal_wire::nix::store_path::StoreDir;

use crate::lab::{noise, tree_nar, words};
use crate::writable::{Cut, Writable, batch, cut, entry, path};

fn sample() -> Vec<u8> {
    tree_nar(&[("a", &noise(900_000)), ("b", &words(400_000)), ("c", b"small")], &[("l", "a")])
}

fn export(node: &Writable, name: &str) -> Vec<u8> {
    let mut nar = Vec::new();
    node.store.export(&path(name)).unwrap().expect("a valid path").read_to_end(&mut nar).unwrap();
    nar
}

fn collect(node: &Writable) {
    node.store.collect(&GcRequest::new(GcAction::DeleteDead)).unwrap();
}

#[test]
fn what_is_pushed_is_a_path_and_comes_back() {
    let node = Writable::new();
    let admin = node.token(Role::Admin);
    let nar = sample();
    let chunks = cut(&nar);
    let query = PathQuery(vec![path("p"), path("q")]).encode();
    let ask = || Lacking::decode(&node.post(&admin, "push/paths", &query, None).unwrap().body).unwrap().0;
    assert_eq!(ask(), [true, true]);
    assert_eq!(node.lacking(&admin, "u", &chunks), vec![true; chunks.len()]);
    for part in chunks.chunks(5) {
        assert_eq!(node.status(&admin, "push/u/chunks", &batch(part)), 200);
    }
    assert_eq!(ask(), [true, true], "visible before its commit");
    assert_eq!(node.commit(&admin, "u", vec![entry("p", &nar, &chunks)]), 200);
    assert_eq!(ask(), [false, true]);
    assert!(export(&node, "p") == nar);
    assert_eq!(node.store.stats().unwrap().pinned, 0, "a hold outlives its upload");
    assert!(pulled(&node, &chunks) == chunks.iter().map(|cut| cut.chunk).collect::<Vec<_>>());
}

/// The chunks of `p`, asked for by number until all are there; every second one first.
fn pulled(node: &Writable, chunks: &[Cut]) -> Vec<ChunkRef> {
    let hash_part = path("p").hash_part().to_owned();
    let mut stream = crate::lab::connect(node.address());
    let get = format!("GET /api/v1/pull/{hash_part} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n");
    std::io::Write::write_all(&mut stream, get.as_bytes()).unwrap();
    let found = Entry::decode(&crate::lab::answer(stream, false).unwrap().body).unwrap();
    assert_eq!(found.info.path, path("p"));
    let mut got = vec![None; chunks.len()];
    for first in [0, 1] {
        let wanted = (first..chunks.len() as u32).step_by(2).collect();
        let answer = node.post("", &format!("pull/{hash_part}/chunks"), &ChunkRequest(wanted).encode(), None).unwrap();
        for ((chunk, frame), number) in ChunkBatch::decode(&answer.body).unwrap().iter().zip((first..).step_by(2)) {
            assert_eq!(ChunkRef::of(&zstd::decode_all(*frame).unwrap()), *chunk);
            got[number as usize] = Some(*chunk);
        }
    }
    assert_eq!(got.iter().flatten().copied().collect::<Vec<_>>(), found.chunks);
    let beyond = ChunkRequest(vec![0, chunks.len() as u32]).encode();
    assert_eq!(node.status("", &format!("pull/{hash_part}/chunks"), &beyond), 404);
    found.chunks
}

/// Wherever an upload is cut, in a message or between two, and whatever is collected then: what comes after brings
/// only what did not come before.
#[test]
fn an_upload_that_is_cut_goes_on_where_it_was() {
    const CUTS: usize = 50;
    let nar = sample();
    let chunks = cut(&nar);
    let whole = batch(&chunks[chunks.len() / 2..]);
    for turn in 0..CUTS {
        let node = Writable::new();
        let admin = node.token(Role::Admin);
        let first = &chunks[..chunks.len() * turn / CUTS / 2];
        assert_eq!(node.lacking(&admin, "u", &chunks), vec![true; chunks.len()]);
        assert_eq!(node.status(&admin, "push/u/chunks", &batch(first)), 200);
        // The rest breaks off within a message, of which nothing is taken.
        let at = whole.len() * turn / CUTS;
        assert!(node.post(&admin, "push/u/chunks", &whole, Some(at)).is_none_or(|answer| answer.status == 400));
        collect(&node);
        // The same upload by the same name, or one that has another.
        let again = if turn % 2 == 0 { "u" } else { "v" };
        let lacking = node.lacking(&admin, again, &chunks);
        let expected: Vec<bool> = (0..chunks.len()).map(|number| number >= first.len()).collect();
        assert_eq!(lacking, expected, "turn {turn}");
        assert_eq!(node.commit(&admin, again, vec![entry("p", &nar, &chunks)]), 409);
        assert_eq!(node.status(&admin, &format!("push/{again}/chunks"), &batch(&chunks[first.len()..])), 200);
        collect(&node);
        assert_eq!(node.commit(&admin, again, vec![entry("p", &nar, &chunks)]), 200);
        assert!(export(&node, "p") == nar);
    }
}

#[test]
fn lies_are_refused_and_leave_nothing() {
    let node = Writable::new();
    let admin = node.token(Role::Admin);
    let nar = sample();
    let chunks = cut(&nar);
    let put = |chunks: &[Cut]| node.status(&admin, "push/u/chunks", &batch(chunks));
    let mut other_bytes = chunks[..3].to_vec();
    other_bytes[1].frame = chunks[3].frame.clone();
    assert_eq!(put(&other_bytes), 400);
    let mut other_name = chunks[..3].to_vec();
    other_name[2].chunk.hash = [1; 32];
    assert_eq!(put(&other_name), 400);
    let mut no_frame = chunks[..3].to_vec();
    no_frame[0].frame = b"nothing".to_vec();
    assert_eq!(put(&no_frame), 400);
    assert_eq!(node.lacking(&admin, "u", &chunks[..3]), [true; 3]);
    let good = entry("p", &nar, &chunks);
    assert_eq!(node.commit(&admin, "u", vec![good.clone()]), 409, "of chunks that are not here");
    assert_eq!(put(&chunks), 200);
    let lie = |change: fn(&mut Entry)| {
        let mut entry = good.clone();
        change(&mut entry);
        node.commit(&admin, "u", vec![entry])
    };
    assert_eq!(lie(|entry| entry.info.nar_hash = [1; 32]), 400);
    assert_eq!(lie(|entry| entry.info.nar_size += 1), 400);
    assert_eq!(lie(|entry| entry.chunks.swap(0, 1)), 400);
    assert_eq!(lie(|entry| entry.info.references.extend([path("absent")])), 409);
    // All or none.
    let second = Entry { info: path_info("q", &good), ..good.clone() };
    let mut third = second.clone();
    third.info.nar_hash = [1; 32];
    assert_eq!(node.commit(&admin, "u", vec![second, third]), 400);
    assert_eq!(node.store.paths().unwrap(), []);
    assert_eq!(node.commit(&admin, "u", vec![good]), 200);
}

fn path_info(name: &str, of: &Entry) -> shoal_wire::nix::path_info::PathInfo {
    shoal_wire::nix::path_info::PathInfo { path: path(name), ..of.info.clone() }
}

#[test]
fn too_much_or_no_message_is_refused() {
    let node = Writable::new();
    let admin = node.token(Role::Admin);
    assert_eq!(node.status(&admin, "push/u/chunks", &vec![1; BATCH_LEN_MAX + 1]), 413);
    let many = ChunkQuery(vec![[0; 32]; HASHES_MAX + 1]).encode();
    assert_eq!(node.status(&admin, "push/u/lacking", &many), 400);
    assert_eq!(node.status(&admin, "push/u/lacking", b""), 400);
    assert_eq!(node.status(&admin, "push/paths", &noise(1000)), 400);
    assert_eq!(node.status(&admin, "push/u/commit", &ChunkQuery(Vec::new()).encode()), 400);
    let none = ChunkQuery(Vec::new()).encode();
    assert_eq!(node.status(&admin, &format!("push/{}/lacking", "u".repeat(65)), &none), 400);
    assert_eq!(node.status(&admin, "push/..%2f/lacking", &none), 400);
    assert_eq!(node.status("", "pull/0000000000000000000000000000000u/chunks", &ChunkRequest(vec![0]).encode()), 404);
    assert_eq!(node.status("", "pull/x/chunks", &noise(100)), 400);
    assert_eq!(node.status("", "pull/x/chunks", &vec![1; ChunkRequest::LEN_MAX + 1]), 413);
}

#[test]
fn who_may_not_write_leaves_nothing() {
    let node = Writable::new();
    let nar = sample();
    let chunks = cut(&nar);
    let query = ChunkQuery(chunks.iter().map(|cut| cut.chunk.hash).collect()).encode();
    for (token, status) in [("shoal-wrong".to_owned(), 401), (String::new(), 401), (node.token(Role::Read), 403)] {
        assert_eq!(node.status(&token, "push/u/lacking", &query), status);
        assert_eq!(node.status(&token, "push/u/chunks", &batch(&chunks)), status);
        assert_eq!(node.status(&token, "push/paths", &PathQuery(vec![path("p")]).encode()), status);
        assert_eq!(node.commit(&token, "u", vec![entry("p", &nar, &chunks)]), status);
    }
    assert_eq!(node.store.stats().unwrap().pinned, 0);
    // A push token can prove a path, not claim one.
    let push = node.token(Role::Push);
    assert_eq!(node.status(&push, "push/u/chunks", &batch(&chunks)), 200);
    let mut claimed = entry("p", &nar, &chunks);
    assert_eq!(node.commit(&push, "u", vec![claimed.clone()]), 403);
    assert_eq!(node.store.paths().unwrap(), []);
    claimed.info.sign(&StoreDir::default(), &node.key).unwrap();
    assert_eq!(node.commit(&push, "u", vec![claimed.clone()]), 200);
    let known = node.store.path_info(&path("p")).unwrap().unwrap();
    assert_eq!(known.signatures, claimed.info.signatures);
}
