//! What real clients sent to real daemons, sent to our sessions: every request is understood and answered.

use std::collections::BTreeMap;
use std::io::{BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use shoal_node::door::{Program, Role};
use shoal_wire::nix::nar::stream::NarReader;
use shoal_wire::nix::nar::{Discard, NarLimits};
use shoal_wire::nix::proto::{Codec, Dialect, Reader};
use shoal_wire::nix::serve;
use shoal_wire::nix::store_path::StoreDir;
use shoal_wire::nix::worker::{self, Op, Reply, Request, StderrMessage};

use super::lab::Lab;

fn captures(test: &str) -> Vec<PathBuf> {
    let named = std::env::var_os("SHOAL_SHARED").map(PathBuf::from);
    let sibling = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|dir| dir.join("shared"));
    let found = named.into_iter().chain(sibling).map(|shared| shared.join("conformance/captures"));
    let Some(captures) = found.into_iter().find(|dir| dir.is_dir()) else {
        println!("skipped: {test}: no shared/conformance/captures");
        return Vec::new();
    };
    let list = |dir: &Path| -> Vec<PathBuf> {
        let mut list: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        list.sort();
        list
    };
    let is_request = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "c2s");
    list(&captures).iter().flat_map(|dir| list(dir)).filter(is_request).collect()
}

fn word(bytes: &[u8], index: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(8 * index..8 * index + 8)?.try_into().ok()?))
}

/// The operations of a worker session, in order.
fn worker_operations(bytes: &[u8]) -> (Dialect, Vec<Op>) {
    let minor = (word(bytes, 1).unwrap() & 0xff) as u8;
    let dialect = Dialect::new(StoreDir::default(), minor.min(worker::MINOR_MAX));
    let mut reader = Reader::new(BufReader::new(bytes), dialect.clone());
    reader.u64().and_then(|_| reader.u64()).unwrap();
    if minor >= 38 {
        let features = reader.u64().unwrap();
        (0..features).for_each(|_| drop(reader.get::<String>().unwrap()));
    }
    if reader.u64().unwrap() != 0 {
        reader.u64().unwrap();
    }
    reader.u64().unwrap();
    let mut operations = Vec::new();
    while let Some(request) = Request::read_next(&mut reader).unwrap() {
        operations.push(request.op());
        if request.op().is_framed() {
            reader.frames().drain().unwrap();
        }
    }
    (dialect, operations)
}

/// Sends a recorded session and reads every answer to its end. Returns the refusals.
fn replay_worker(lab: &Lab, bytes: &[u8]) -> Vec<(Op, String)> {
    let (dialect, operations) = worker_operations(bytes);
    let stream = lab.raw(Role::Admin);
    let mut to = stream.try_clone().unwrap();
    let sent = bytes.to_vec();
    std::thread::spawn(move || to.write_all(&sent));
    let mut reader = Reader::new(BufReader::new(stream), dialect.clone());
    read_greeting(&mut reader, &dialect);
    let mut refusals = Vec::new();
    for op in operations {
        match read_log(&mut reader) {
            Some(refusal) => refusals.push((op, refusal)),
            None => {
                Reply::read(op, &mut reader).unwrap_or_else(|error| panic!("reply to {op:?}: {error}"));
                if op == Op::NarFromPath {
                    NarReader::new(reader.inner_mut(), NarLimits::STRICT, Discard).finish().unwrap();
                }
            }
        }
    }
    refusals
}

fn read_greeting(reader: &mut Reader<BufReader<UnixStream>>, dialect: &Dialect) {
    assert_eq!(reader.u64().unwrap(), worker::SERVER_MAGIC);
    reader.u64().unwrap();
    if dialect.minor >= 38 {
        let _features: Vec<String> = reader.get().unwrap();
    }
    if dialect.minor >= 33 {
        let _version: String = reader.get().unwrap();
    }
    if dialect.minor >= 35 {
        assert_eq!(reader.u64().unwrap(), 1);
    }
    assert_eq!(read_log(reader), None);
}

/// The error, if that is how it ends.
fn read_log(reader: &mut Reader<BufReader<UnixStream>>) -> Option<String> {
    loop {
        match StderrMessage::read(reader).unwrap() {
            StderrMessage::Last => return None,
            StderrMessage::Error(error) => return Some(error.to_string()),
            _ => {}
        }
    }
}

#[test]
fn worker_sessions_of_real_clients_are_answered_to_the_end() {
    let mut counts: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for file in captures("worker_sessions_of_real_clients_are_answered_to_the_end") {
        let bytes = std::fs::read(&file).unwrap();
        let answered = std::fs::read(file.with_extension("s2c")).unwrap();
        // Where the daemon was older than we are, the client chose its words for that one.
        if word(&bytes, 0) != Some(worker::CLIENT_MAGIC) || word(&answered, 1) != Some(0x126) {
            continue;
        }
        let lab = Lab::with_require_sigs(false);
        let refusals = replay_worker(&lab, &bytes);
        let (_, operations) = worker_operations(&bytes);
        operations.iter().for_each(|op| counts.entry(op.name()).or_default().0 += 1);
        for (op, text) in refusals {
            counts.entry(op.name()).or_default().1 += 1;
            // The store is empty, so what was there in the recording is missing here; nothing else may be wrong.
            let expected = ["is not valid", "not in this node's store", "does not exist and cannot be created"];
            let build = matches!(op, Op::BuildPaths | Op::BuildPathsWithResults);
            assert!(build || expected.iter().any(|words| text.contains(words)), "{}: {op:?}: {text}", file.display());
        }
    }
    for (op, (asked, refused)) in counts {
        println!("{op}: {asked} asked, {refused} refused");
    }
}

#[test]
fn serve_sessions_of_real_clients_are_answered_or_ended_in_words() {
    for file in captures("serve_sessions_of_real_clients_are_answered_or_ended_in_words") {
        let bytes = std::fs::read(&file).unwrap();
        if word(&bytes, 0) != Some(serve::CLIENT_MAGIC) {
            continue;
        }
        let lab = Lab::with_require_sigs(false);
        let (stream, ended) = lab.open(Program::Serve { write: true }, Role::Admin);
        let mut to = stream.try_clone().unwrap();
        let sent = bytes.clone();
        let sender = std::thread::spawn(move || to.write_all(&sent));
        let mut answer = Vec::new();
        let mut from = stream.try_clone().unwrap();
        let reader = std::thread::spawn(move || {
            let _ = std::io::Read::read_to_end(&mut from, &mut answer);
            answer
        });
        let _ = sender.join().unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let (status, terminal) = ended.join().unwrap();
        let terminal = String::from_utf8_lossy(&terminal).into_owned();
        let answer = reader.join().unwrap();
        assert_eq!(word(&answer, 0), Some(serve::SERVER_MAGIC), "{}", file.display());
        let words = ["is not valid", "refers to"];
        let fine = status == Some(0) || words.iter().any(|words| terminal.contains(words));
        assert!(fine, "{}: status {status:?}: {terminal}", file.display());
    }
}
