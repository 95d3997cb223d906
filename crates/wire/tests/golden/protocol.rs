//! The protocols' codecs: limits, frames, and our client against our server.

mod calls;

use proptest::prelude::*;
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::proto::{
    COUNT_MAX, Codec, Dialect, FramedReader, FramedWriter, MESSAGE_LEN_MAX, ProtoError, Reader, STRING_LEN_MAX, Writer,
};
use shoal_wire::nix::store_path::{StoreDir, StorePath};
use shoal_wire::nix::worker::ops::Request;
use shoal_wire::nix::worker::upload::{UploadEntries, UploadWriter};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};

fn dialect() -> Dialect {
    Dialect::new(StoreDir::default(), 38)
}

fn reader<R: Read>(bytes: R) -> Reader<R> {
    Reader::new(bytes, dialect())
}

fn encoded<T: Codec>(value: &T) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), dialect());
    writer.put(value).expect("value");
    writer.into_inner()
}

pub fn store_path() -> impl Strategy<Value = StorePath> {
    ("[0-9a-df-np-sv-z]{32}", "[a-zA-Z0-9+_?=][a-zA-Z0-9+._?=-]{0,30}")
        .prop_map(|(hash, name)| StorePath::from_base_name(&format!("{hash}-{name}")).expect("store path"))
}

/// Yields one byte at a time, so that nothing relies on how reads are cut.
struct Trickle<R>(R);

impl<R: Read> Read for Trickle<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = out.len().min(1);
        self.0.read(&mut out[..n])
    }
}

proptest! {
    #[test]
    fn values_survive(
        numbers in prop::collection::vec(any::<u64>(), 0..5),
        strings in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..5),
        paths in prop::collection::btree_set(store_path(), 0..5),
        map in prop::collection::btree_map(".*", prop::option::of(store_path()), 0..4),
    ) {
        type All = (Vec<u64>, Vec<Vec<u8>>, BTreeSet<StorePath>, BTreeMap<String, Option<StorePath>>);
        let mut writer = Writer::new(Vec::new(), dialect());
        writer.put(&numbers).unwrap();
        writer.put(&strings).unwrap();
        writer.put(&paths).unwrap();
        writer.put(&map).unwrap();
        let bytes = writer.into_inner();
        prop_assert_eq!(bytes.len() % 8, 0);
        let mut reader = reader(Trickle(bytes.as_slice()));
        let all: All = (reader.get().unwrap(), reader.get().unwrap(), reader.get().unwrap(), reader.get().unwrap());
        prop_assert_eq!(all, (numbers, strings, paths, map));
        prop_assert!(reader.u64_or_end().unwrap().is_none());
    }

    #[test]
    fn frames_carry_what_was_written(
        pieces in prop::collection::vec((any::<u8>(), 0..3000usize).prop_map(|(byte, len)| vec![byte; len]), 0..60),
        flushes in any::<u64>(),
        read in 1..5000usize,
    ) {
        let mut writer = FramedWriter::new(Vec::new());
        for (index, piece) in pieces.iter().enumerate() {
            writer.write_all(piece).unwrap();
            if flushes >> (index % 64) & 1 == 1 {
                writer.flush().unwrap();
            }
        }
        let mut bytes = writer.finish().unwrap();
        bytes.extend_from_slice(b"next");
        let mut frames = FramedReader::new(bytes.as_slice());
        let (mut all, mut buffer) = (Vec::new(), vec![0; read]);
        loop {
            let n = frames.read(&mut buffer).unwrap();
            if n == 0 {
                break;
            }
            all.extend_from_slice(&buffer[..n]);
        }
        prop_assert!(frames.is_ended());
        prop_assert_eq!(&all, &pieces.concat());
        let mut frames = FramedReader::new(bytes.as_slice());
        let mut copied = Vec::new();
        io::copy(&mut io::BufReader::new(&mut frames), &mut copied).unwrap();
        prop_assert_eq!(&copied, &all);
        let mut rest = bytes.as_slice();
        prop_assert_eq!(FramedReader::new(&mut rest).drain().unwrap(), all.len() as u64);
        prop_assert_eq!(rest, b"next");
    }

    #[test]
    fn cut_frames_are_an_error(len in 0..300usize, cut in any::<prop::sample::Index>()) {
        let mut writer = FramedWriter::new(Vec::new());
        writer.write_all(&vec![1; len]).unwrap();
        let bytes = writer.finish().unwrap();
        let cut = &bytes[..cut.index(bytes.len())];
        let error = FramedReader::new(cut).read_to_end(&mut Vec::new()).unwrap_err();
        prop_assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        let drained = FramedReader::new(cut).drain();
        prop_assert!(matches!(drained, Err(ProtoError::Truncated)));
    }

    /// An entry's reader never gives bytes of the next one, and what is left unread is skipped.
    #[test]
    fn uploads_are_read_entry_by_entry(
        entries in prop::collection::vec((store_path(), prop::collection::vec(any::<u8>(), 1..500), any::<u16>()), 0..8),
    ) {
        let mut upload = UploadWriter::new(FramedWriter::new(Vec::new()), dialect(), entries.len() as u64).unwrap();
        for (path, nar, _) in &entries {
            let info = PathInfo::new(path.clone(), [7; 32], nar.len() as u64);
            upload.entry(&info).unwrap().write_all(nar).unwrap();
        }
        let bytes = upload.finish().unwrap();
        let mut upload = UploadEntries::new(FramedReader::new(bytes.as_slice()), dialect()).unwrap();
        for (path, nar, read) in &entries {
            let info = upload.next_entry().unwrap();
            prop_assert_eq!(info.map(|info| info.path), Some(path.clone()));
            let read = usize::from(*read) % (nar.len() + 1);
            let mut some = vec![0; read];
            upload.read_exact(&mut some).unwrap();
            prop_assert_eq!(&some, &nar[..read]);
        }
        prop_assert_eq!(upload.next_entry().unwrap(), None);
        prop_assert_eq!(upload.into_frames().drain().unwrap(), 0);
    }
}

/// A reader that has announced much and sends nothing.
fn announcing(len: u64) -> impl Read {
    io::Cursor::new(len.to_le_bytes()).chain(io::repeat(0).take(1000))
}

#[test]
fn announced_lengths_cost_nothing() {
    for len in [STRING_LEN_MAX, STRING_LEN_MAX - 1] {
        assert!(matches!(reader(announcing(len)).get::<Vec<u8>>(), Err(ProtoError::Truncated)));
    }
    for len in [STRING_LEN_MAX + 1, u64::MAX, u64::MAX - 7] {
        let error = reader(announcing(len)).get::<Vec<u8>>();
        assert!(matches!(error, Err(ProtoError::TooLong { .. })), "{error:?}");
    }
    assert!(matches!(reader(announcing(COUNT_MAX)).get::<Vec<StorePath>>(), Err(ProtoError::Invalid { .. })));
    let error = reader(announcing(COUNT_MAX + 1)).get::<Vec<u64>>();
    assert!(matches!(error, Err(ProtoError::TooLong { .. })), "{error:?}");
    let frame = FramedReader::new(announcing(1 << 32)).read(&mut [0; 8]);
    assert_eq!(frame.map_err(|error| error.kind()), Err(io::ErrorKind::InvalidData));
}

/// The word 2^20 without end, which is strings of 1 MiB without end.
struct Megabytes {
    words: Vec<u8>,
    at: usize,
}

impl Read for Megabytes {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let words = &self.words[self.at % 8..];
        let n = out.len().min(words.len());
        out[..n].copy_from_slice(&words[..n]);
        self.at += n;
        Ok(n)
    }
}

/// Strings within their limit, one after the other, end at the message's limit.
#[test]
fn a_message_is_bounded_as_a_whole() {
    let mut reader = reader(Megabytes { words: (1u64 << 20).to_le_bytes().repeat(1 << 13), at: 0 });
    let mut total = 0;
    let error = loop {
        match reader.get::<Vec<u8>>() {
            Ok(string) => total += string.len() as u64 + 8,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, ProtoError::TooLong { what: "message", .. }), "{error}");
    assert!((MESSAGE_LEN_MAX - (1 << 20) - 8..=MESSAGE_LEN_MAX).contains(&total));
    reader.begin();
    assert!(reader.u64().is_ok(), "the next message has its own");
}

#[test]
fn padding_and_ranges_are_checked() {
    let mut bytes = encoded(&b"abc".to_vec());
    bytes[15] = 1;
    assert!(matches!(reader(bytes.as_slice()).get::<Vec<u8>>(), Err(ProtoError::Padding)));
    assert!(matches!(reader(encoded(&vec![0xff_u8]).as_slice()).get::<String>(), Err(ProtoError::NotUtf8 { .. })));
    assert!(matches!(reader(encoded(&2u64).as_slice()).get::<bool>(), Ok(true)));
    for path in ["", "/nix/store", "/nix/store/", "/tmp/g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-x"] {
        let bytes = encoded(&path.to_owned());
        assert!(matches!(reader(bytes.as_slice()).get::<StorePath>(), Err(ProtoError::Invalid { .. })), "{path}");
    }
}

#[test]
fn the_ways_a_request_can_fail_are_told_apart() {
    let next = |bytes: &[u8]| Request::read_next(&mut reader(bytes));
    assert!(matches!(next(b""), Ok(None)), "the end");
    assert!(matches!(next(&[1, 0, 0]), Err(ProtoError::Truncated)), "half a word");
    assert!(matches!(next(&encoded(&1u64)), Err(ProtoError::Truncated)), "no path");
    for unknown in [0, 2, 4, 5, 16, 48, 1000, 1001, u64::MAX] {
        assert!(matches!(next(&encoded(&unknown)), Err(ProtoError::UnknownOp(op)) if op == unknown));
    }
    let cut = next(&encoded(&1u64)).expect_err("truncated");
    let wrong = next(&[encoded(&1u64), encoded(&"x".to_owned())].concat()).expect_err("no store path");
    assert!(cut.is_disconnect() && !wrong.is_disconnect());
}
