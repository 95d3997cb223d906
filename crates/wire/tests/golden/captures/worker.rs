//! The worker protocol.

use super::{Direction, connections};
use proptest::prelude::*;
use shoal_wire::nix::content_address::CaMethod;
use shoal_wire::nix::nar::stream::NarReader;
use shoal_wire::nix::nar::{Discard, NarLimits};
use shoal_wire::nix::proto::{Codec, Dialect, FramedReader, FramedWriter, Reader, Writer};
use shoal_wire::nix::store_path::StoreDir;
use shoal_wire::nix::worker::handshake::{accept, connect};
use shoal_wire::nix::worker::ops::{AddToStoreNar, Op, Reply, Request};
use shoal_wire::nix::worker::upload::{UploadEntries, UploadWriter};
use shoal_wire::nix::worker::{CLIENT_MAGIC, MINOR_MAX, Offer, StderrMessage};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};

/// Operations that real clients were seen to use.
const SEEN_AT_LEAST: [Op; 22] = [
    Op::IsValidPath,
    Op::QueryReferrers,
    Op::AddToStore,
    Op::BuildPaths,
    Op::EnsurePath,
    Op::AddTempRoot,
    Op::FindRoots,
    Op::CollectGarbage,
    Op::QueryAllValidPaths,
    Op::QueryPathInfo,
    Op::QueryValidPaths,
    Op::OptimiseStore,
    Op::VerifyStore,
    Op::BuildDerivation,
    Op::AddSignatures,
    Op::NarFromPath,
    Op::AddToStoreNar,
    Op::QueryMissing,
    Op::QueryDerivationOutputMap,
    Op::AddMultipleToStore,
    Op::AddBuildLog,
    Op::BuildPathsWithResults,
];

#[test]
fn every_connection_decodes_to_the_last_byte_and_back() {
    let test = "captures::worker::every_connection_decodes_to_the_last_byte_and_back";
    let connections = connections(test, CLIENT_MAGIC);
    if connections.is_empty() {
        return;
    }
    let mut seen = BTreeMap::new();
    for (name, (c2s, s2c)) in &connections {
        println!("{name}");
        replay(c2s, s2c, &mut seen);
    }
    println!("{} connections: {seen:?}", connections.len());
    for op in SEEN_AT_LEAST {
        assert!(seen.contains_key(&op), "no connection uses {op:?}");
    }
}

fn replay(c2s: &[u8], s2c: &[u8], seen: &mut BTreeMap<Op, usize>) {
    let (mut client, mut server) = (Direction::new(c2s), Direction::new(s2c));
    if s2c.is_empty() {
        // Servers that did not start.
        assert_eq!(c2s.len(), 16);
        return;
    }
    handshake(&mut client, &mut server);
    loop {
        let start = client.offset();
        let Some(request) = Request::read_next(&mut client.reader).expect("a request") else {
            break;
        };
        *seen.entry(request.op()).or_default() += 1;
        client.same_since(start, &request, |w| request.write(w));
        if request.op().is_framed() {
            upload(&mut client, &request);
        }
        if !log(&mut server) {
            if request.op() == Op::AddBuildLog {
                // A real server that refuses a log takes the log's text for requests.
                return;
            }
            continue;
        }
        let start = server.offset();
        let reply = Reply::read(request.op(), &mut server.reader).expect("a reply");
        server.same_since(start, &reply, |w| reply.write(w));
        if let Request::NarFromPath(_) = request {
            server.nar();
        }
    }
    assert_eq!(server.offset(), s2c.len(), "the server said more");
}

/// Both halves of our handshake against both halves of theirs.
fn handshake(client: &mut Direction, server: &mut Direction) {
    let word = |bytes: &[u8]| u64::from_le_bytes(bytes[8..16].try_into().expect("8 bytes"));
    let (client_version, server_version) = (word(client.all), word(server.all));
    let none = BTreeSet::new();
    let mut sent = Writer::new(Vec::new(), server.reader.dialect().clone());
    let info = connect(&mut server.reader, &mut sent, client_version as u8, &none).expect("their server");
    let said_by_us = sent.into_inner();
    assert_eq!(said_by_us, client.all[..said_by_us.len()]);

    if server_version == 0x100 | u64::from(MINOR_MAX) {
        let offer = Offer {
            store_dir: StoreDir::default(),
            features: none,
            nix_version: info.nix_version.unwrap_or_default(),
            trust: info.trust,
        };
        let mut sent = Writer::new(Vec::new(), client.reader.dialect().clone());
        accept(&mut client.reader, &mut sent, &offer).expect("their client");
        info.messages.iter().chain([&StderrMessage::Last]).for_each(|message| sent.put(message).expect("log"));
        assert_eq!(sent.into_inner(), server.all[..server.offset()]);
        assert_eq!(client.offset(), said_by_us.len(), "one half of ours reads what the other writes");
    } else {
        // We announce more than this server did.
        client.reader.read_exact(&mut vec![0; said_by_us.len()]).expect("the client's handshake");
    }
    client.reader.set_dialect(server.reader.dialect().clone());
}

/// Whether a reply follows.
fn log(server: &mut Direction) -> bool {
    loop {
        let start = server.offset();
        let message = StderrMessage::read(&mut server.reader).expect("a log message");
        server.same_since(start, &message, |w| w.put(&message));
        match message {
            StderrMessage::Last => return true,
            StderrMessage::Error(_) => return false,
            _ => {}
        }
    }
}

fn upload(client: &mut Direction, request: &Request) {
    let dialect = client.reader.dialect().clone();
    let mut payload = Vec::new();
    let mut frames = client.reader.frames();
    frames.read_to_end(&mut payload).expect("frames");
    assert!(frames.is_ended());
    match request {
        Request::AddToStore(request) if request.method.method == CaMethod::Nar => whole_nar(&payload),
        Request::AddToStoreNar(AddToStoreNar { info, .. }) => {
            assert_eq!(info.nar_size, payload.len() as u64);
            whole_nar(&payload);
        }
        Request::AddMultipleToStore(_) => entries(&payload, dialect),
        _ => {}
    }
}

fn whole_nar(nar: &[u8]) {
    let mut rest = nar;
    NarReader::new(&mut rest, NarLimits::STRICT, Discard).finish().expect("a NAR");
    assert!(rest.is_empty());
}

/// The payload of many paths, read from frames and written to frames.
fn entries(payload: &[u8], dialect: Dialect) {
    let mut framed = FramedWriter::new(Vec::new());
    framed.write_all(payload).expect("a Vec takes everything");
    let framed = framed.finish().expect("a Vec takes everything");
    let mut entries = UploadEntries::new(FramedReader::new(framed.as_slice()), dialect.clone()).expect("count");
    let frames = FramedWriter::new(Vec::new());
    let mut again = UploadWriter::new(frames, dialect, entries.remaining()).expect("count");
    while let Some(info) = entries.next_entry().expect("an entry") {
        let mut nar = Vec::new();
        entries.read_to_end(&mut nar).expect("a NAR");
        whole_nar(&nar);
        again.entry(&info).expect("info").write_all(&nar).expect("NAR");
    }
    assert_eq!(entries.into_frames().drain().expect("the end"), 0);
    assert!(again.finish().expect("the end") == framed);
}

/// Decodes as a server would, whatever the bytes are.
fn serve_anything(bytes: &[u8]) {
    let store_dir = StoreDir::default();
    let mut reader = Reader::new(bytes, Dialect::new(store_dir.clone(), 0));
    let mut writer = Writer::new(io::sink(), reader.dialect().clone());
    let (features, trust) = (BTreeSet::new(), shoal_wire::nix::worker::Trust::Trusted);
    let offer = Offer { store_dir, features, nix_version: String::new(), trust };
    if accept(&mut reader, &mut writer, &offer).is_err() {
        return;
    }
    while let Ok(Some(request)) = Request::read_next(&mut reader) {
        if request.op() == Op::AddMultipleToStore {
            let dialect = reader.dialect().clone();
            let Ok(mut entries) = UploadEntries::new(reader.frames(), dialect) else { return };
            while let Ok(Some(_)) = entries.next_entry() {}
            if entries.into_frames().drain().is_err() {
                return;
            }
        } else if request.op().is_framed() && reader.frames().drain().is_err() {
            return;
        }
    }
}

fn client_anything(bytes: &[u8], op: Op) {
    let mut reader = Reader::new(bytes, Dialect::new(StoreDir::default(), 0));
    let mut writer = Writer::new(io::sink(), reader.dialect().clone());
    if connect(&mut reader, &mut writer, MINOR_MAX, &BTreeSet::new()).is_err() {
        return;
    }
    while let Ok(message) = StderrMessage::read(&mut reader) {
        if message == StderrMessage::Last && Reply::read(op, &mut reader).is_err() {
            return;
        }
    }
}

#[test]
fn mutated_connections_never_panic() {
    let connections = connections("captures::worker::mutated_connections_never_panic", CLIENT_MAGIC);
    let connections: Vec<_> = connections.into_values().collect();
    if connections.is_empty() {
        return;
    }
    let mutations = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    proptest!(|(
        which in any::<prop::sample::Index>(),
        mutations in mutations,
        end in any::<prop::sample::Index>(),
        op in prop::sample::select(Op::ALL),
    )| {
        let (mut c2s, mut s2c) = which.get(&connections).clone();
        for bytes in [&mut c2s, &mut s2c] {
            for (at, byte) in &mutations {
                if let Some(mutated) = bytes.len().checked_sub(1).map(|last| at.index(last + 1)) {
                    bytes[mutated] = *byte;
                }
            }
            bytes.truncate(end.index(bytes.len() + 1));
        }
        serve_anything(&c2s);
        client_anything(&s2c, op);
    });
}
