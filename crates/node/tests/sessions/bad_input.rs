//! Input that no client of good will sends: a clear error to that client, and nobody else notices.

use std::collections::BTreeSet;
use std::io::{BufReader, BufWriter, Read, Write};
use std::os::unix::net::UnixStream;

use shoal_node::door::{Program, Role};
use shoal_wire::nix::proto::{Codec, Dialect, Reader, Writer};
use shoal_wire::nix::store_path::StoreDir;
use shoal_wire::nix::worker::handshake::{self, HandshakeError};
use shoal_wire::nix::worker::ops::{AddToStoreNar, IsValidPath, NarFromPath, QueryAllValidPaths};
use shoal_wire::nix::worker::{self, CLIENT_MAGIC, MINOR_MAX, StderrMessage};

use super::lab::{Lab, PATIENCE, path, silent, unsigned};

/// A connection after its handshake, to write anything to.
struct Raw {
    reader: Reader<BufReader<UnixStream>>,
    writer: Writer<BufWriter<UnixStream>>,
}

impl Raw {
    fn open(lab: &Lab) -> Raw {
        let stream = lab.raw(Role::Build);
        let dialect = Dialect::new(StoreDir::default(), MINOR_MAX);
        let mut reader = Reader::new(BufReader::new(stream.try_clone().unwrap()), dialect.clone());
        let mut writer = Writer::new(BufWriter::new(stream), dialect);
        handshake::connect(&mut reader, &mut writer, MINOR_MAX, &BTreeSet::new()).unwrap();
        Raw { reader, writer }
    }

    fn words(mut self, words: &[u64]) -> Raw {
        words.iter().for_each(|word| self.writer.u64(*word).unwrap());
        self.writer.flush().unwrap();
        self
    }

    /// The error that comes, after which the connection is closed.
    fn last_error(mut self) -> String {
        let text = match StderrMessage::read(&mut self.reader).unwrap() {
            StderrMessage::Error(error) => error.to_string(),
            other => panic!("expected an error, got {other:?}"),
        };
        let mut rest = Vec::new();
        self.reader.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"", "the connection goes on after {text}");
        text
    }
}

/// Another client is served as if nothing had happened.
fn serves_others(lab: &Lab) {
    assert!(!lab.client(Role::Read).call(&IsValidPath { path: path("x") }, silent).unwrap());
}

#[test]
fn a_peer_of_another_protocol_is_hung_up_on() {
    let lab = Lab::new();
    for first in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0; 8], &[0xff; 64]] {
        let mut stream = lab.raw(Role::Build);
        stream.write_all(first).unwrap();
        let mut said = Vec::new();
        stream.read_to_end(&mut said).unwrap();
        assert!(String::from_utf8_lossy(&said).contains("protocol mismatch"));
    }
    serves_others(&lab);
}

#[test]
fn a_version_that_is_too_old_is_refused() {
    let lab = Lab::new();
    let mut stream = lab.raw(Role::Build);
    stream.write_all(&CLIENT_MAGIC.to_le_bytes()).unwrap();
    stream.write_all(&(1u64 << 8 | 31).to_le_bytes()).unwrap();
    let mut said = Vec::new();
    stream.read_to_end(&mut said).unwrap();
    assert!(String::from_utf8_lossy(&said).contains("version 1.31"));
}

#[test]
fn unknown_operations_end_the_connection() {
    let lab = Lab::new();
    for op in [0, 2, 4, 5, 13 << 32, 48, 1000, u64::MAX] {
        let text = Raw::open(&lab).words(&[op]).last_error();
        assert!(text.contains(&format!("invalid operation {op}")), "{text}");
    }
    serves_others(&lab);
}

#[test]
fn lengths_beyond_all_measure_are_refused_before_anything_is_allocated() {
    let lab = Lab::new();
    for (words, expected) in [
        (&[1, u64::MAX][..], "exceeds the limit"),
        (&[1, 1 << 40], "exceeds the limit"),
        (&[31, 1 << 60], "exceeds the limit"),
        (&[40, u64::MAX], "exceeds the limit"),
        (&[36, 5, 0x78], "invalid"),
        (&[9, 0, 77], "77 is no build mode"),
        // A frame.
        (&[45, 0], "store path"),
    ] {
        let text = Raw::open(&lab).words(words).last_error();
        assert!(text.contains(expected) || text.contains("too short"), "{words:?}: {text}");
    }
    serves_others(&lab);
}

#[test]
fn frames_and_counts_beyond_all_measure_are_refused() {
    let lab = Lab::new();
    let (info, _) = unsigned("x", b"x");
    let mut raw = Raw::open(&lab);
    raw.writer.u64(39).unwrap();
    let request = AddToStoreNar { info, repair: false, dont_check_sigs: true };
    raw.writer.put(&request).unwrap();
    // Refused for want of a signature first; then the frame has no end that could be drained to.
    let mut raw = raw.words(&[u64::MAX]);
    let first = StderrMessage::read(&mut raw.reader).unwrap();
    assert!(matches!(first, StderrMessage::Error(_)));
    let text = raw.last_error();
    assert!(text.contains("exceeds the limit"), "{text}");
    let text = Raw::open(&lab).words(&[44, 0, 0, 8, u64::MAX]).last_error();
    assert!(text.contains("exceeds the limit"), "{text}");
    serves_others(&lab);
}

#[test]
fn padding_must_be_zero() {
    let lab = Lab::new();
    let text = Raw::open(&lab).words(&[1, 3, u64::from_le_bytes(*b"abcdefgh")]).last_error();
    assert!(text.contains("padding"), "{text}");
}

#[test]
fn a_request_that_breaks_off_is_forgotten() {
    let lab = Lab::new();
    for words in [&[1][..], &[1, 20], &[36, 8], &[44, 0]] {
        let mut raw = Raw::open(&lab).words(words);
        raw.writer.inner_mut().get_ref().shutdown(std::net::Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        raw.reader.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"");
    }
    let start = std::time::Instant::now();
    while lab.sessions.running() > 0 {
        assert!(start.elapsed() < PATIENCE);
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn an_upload_that_breaks_off_leaves_nothing() {
    let lab = Lab::new();
    let (info, nar) = unsigned("half", &vec![5; 8 << 20]);
    for cut in [0, 8, 100, 1 << 20, nar.len()] {
        let stream = lab.raw(Role::Admin);
        let dialect = Dialect::new(StoreDir::default(), MINOR_MAX);
        let mut reader = Reader::new(BufReader::new(stream.try_clone().unwrap()), dialect.clone());
        let mut writer = Writer::new(BufWriter::new(stream), dialect);
        handshake::connect(&mut reader, &mut writer, MINOR_MAX, &BTreeSet::new()).unwrap();
        writer.u64(39).unwrap();
        let request = AddToStoreNar { info: info.clone(), repair: false, dont_check_sigs: true };
        writer.put(&request).unwrap();
        let mut frames = writer.frames();
        frames.write_all(&nar[..cut]).unwrap();
        frames.flush().unwrap();
        drop(frames);
        drop((reader, writer));
    }
    let start = std::time::Instant::now();
    while lab.sessions.running() > 0 {
        assert!(start.elapsed() < PATIENCE);
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_eq!(lab.client(Role::Read).call(&QueryAllValidPaths {}, silent).unwrap(), BTreeSet::new());
    assert!(lab.store.verify(true).unwrap().damage.is_empty());
}

#[test]
fn an_upload_that_promises_more_paths_than_it_sends_is_refused_and_the_connection_lives() {
    let lab = Lab::new();
    let mut client = lab.client(Role::Admin);
    let request = worker::ops::AddMultipleToStore { repair: false, dont_check_sigs: true };
    let result = client.call_with_upload(&request, |frames| frames.write_all(&2u64.to_le_bytes()), silent);
    assert!(super::lab::refusal(result).contains("ended before all paths"));
    let result = client.call_with_upload(
        &request,
        |frames| frames.write_all(&[1u8, 3].map(|n| u64::from(n).to_le_bytes()).concat()),
        silent,
    );
    assert!(super::lab::refusal(result).contains("ended before all paths"));
    let short = [1, 3, u64::from_le_bytes(*b"abc\0\0\0\0\0")].map(u64::to_le_bytes).concat();
    let result = client.call_with_upload(&request, |frames| frames.write_all(&short), silent);
    assert!(super::lab::refusal(result).contains("path 'abc' is not in the Nix store"));
    assert!(!client.call(&IsValidPath { path: path("x") }, silent).unwrap());
}

#[test]
fn a_nar_that_is_not_there_is_an_error_and_not_a_broken_stream() {
    let lab = Lab::new();
    let mut client = lab.client(Role::Read);
    let text = super::lab::refusal(client.call(&NarFromPath { path: path("x") }, silent));
    assert!(text.ends_with("is not valid"), "{text}");
    assert!(!client.call(&IsValidPath { path: path("x") }, silent).unwrap());
}

/// What a client sees when the node has no room for its session.
#[test]
fn a_refused_session_reads_as_an_error_in_the_handshake() {
    let said = shoal_node::session::worker::refusal(&StoreDir::default(), "no room");
    let dialect = Dialect::new(StoreDir::default(), MINOR_MAX);
    let mut reader = Reader::new(&said[..], dialect.clone());
    let mut writer = Writer::new(Vec::new(), dialect);
    for minor in [34, 38] {
        reader = Reader::new(&said[..], reader.dialect().clone());
        match handshake::connect(&mut reader, &mut writer, minor, &BTreeSet::new()) {
            Err(HandshakeError::Refused(error)) => assert_eq!(error.to_string(), "no room"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_serve_protocol_ends_with_a_text_and_a_status() {
    let lab = Lab::new();
    for (bytes, expected) in [
        (vec![1u64, 2, 3], "protocol mismatch"),
        (vec![0x390c_9deb, 0x207, 77], "invalid operation 77"),
        (vec![0x390c_9deb, 0x207, 1, 0, 0, u64::MAX], "exceeds the limit"),
        (vec![0x390c_9deb, 0x204], "version 2.4"),
    ] {
        let (mut stream, session) = lab.open(Program::Serve { write: true }, Role::Admin);
        bytes.iter().for_each(|word| stream.write_all(&word.to_le_bytes()).unwrap());
        let mut said = Vec::new();
        stream.read_to_end(&mut said).unwrap();
        let (status, terminal) = session.join().unwrap();
        let terminal = String::from_utf8(terminal).unwrap();
        assert!(terminal.starts_with("error: ") && terminal.contains(expected), "{terminal}");
        assert_eq!(status, Some(1));
    }
    serves_others(&lab);
}
