//! Handshakes: Nix's golden files of them, and our two halves against each other.

use crate::shared;
use shoal_wire::nix::proto::{Dialect, Feature, ProtoError, Reader, Writer};
use shoal_wire::nix::serve;
use shoal_wire::nix::store_path::StoreDir;
use shoal_wire::nix::worker::handshake::{accept, connect};
use shoal_wire::nix::worker::{
    CLIENT_MAGIC, HandshakeError, MINOR_MAX, Offer, SERVER_MAGIC, ServerInfo, StderrMessage, Trust,
};
use std::collections::BTreeSet;

fn reader(bytes: &[u8]) -> Reader<&[u8]> {
    Reader::new(bytes, Dialect::new(StoreDir::default(), 0))
}

fn writer() -> Writer<Vec<u8>> {
    Writer::new(Vec::new(), Dialect::new(StoreDir::default(), 0))
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn offer(features: &[Feature]) -> Offer {
    Offer {
        store_dir: StoreDir::default(),
        features: features.iter().copied().collect(),
        nix_version: "2.34.8".into(),
        trust: Trust::Trusted,
    }
}

const LAST: u64 = 0x616c_7473;

/// What a server says after the client's half, at each version.
#[test]
fn golden_server_halves() {
    for (version, file, expected) in [
        (33, "client-handshake-info_1_33", vec![(Some("foo"), Trust::Unknown), (Some("bar"), Trust::Unknown)]),
        (35, "client-handshake-info_1_35", vec![(Some("foo"), Trust::NotTrusted), (Some("bar"), Trust::Trusted)]),
    ] {
        let Some(bytes) = shared::golden(file, &format!("worker-protocol/{file}.bin")) else {
            return;
        };
        let size = bytes.len() / expected.len();
        for (info, (nix_version, trust)) in bytes.chunks(size).zip(expected) {
            let said = [words(&[SERVER_MAGIC, 0x100 | version]), info.to_vec(), words(&[LAST])].concat();
            let server = connect(&mut reader(&said), &mut writer(), MINOR_MAX, &BTreeSet::new()).expect("server");
            let nix_version = nix_version.map(str::to_owned);
            assert_eq!(server, ServerInfo { nix_version: nix_version.clone(), trust, messages: Vec::new() });
            let asked = words(&[CLIENT_MAGIC, 0x100 | version, 0, 0]);
            let mut answer = writer();
            let offer = Offer { nix_version: nix_version.unwrap_or_default(), trust, ..offer(&[]) };
            accept(&mut reader(&asked), &mut answer, &offer).expect("client");
            assert_eq!(answer.into_inner()[16..], *info, "{file}");
        }
    }
    let empty = shared::golden("golden_server_halves", "worker-protocol/client-handshake-info_1_30.bin");
    assert!(empty.is_none_or(|bytes| bytes.is_empty()), "nothing is said before 1.33");
}

#[test]
fn golden_first_words() {
    let test = "golden_first_words";
    let Some(bytes) = shared::golden(test, "worker-protocol/handshake-to-client.bin") else {
        return;
    };
    let too_old = connect(&mut reader(&bytes), &mut writer(), MINOR_MAX, &BTreeSet::new());
    assert!(matches!(too_old, Err(HandshakeError::Version(0x10a))), "{too_old:?}");
    let Some(bytes) = shared::golden(test, "serve-protocol/handshake-to-client.bin") else {
        return;
    };
    let mut from = reader(&bytes);
    serve::handshake::connect(&mut from, &mut writer(), serve::MINOR_MAX).expect("a 2.5 server");
    assert_eq!(from.dialect().minor, 5);
}

#[test]
fn versions_and_features_are_what_both_know() {
    use Feature::{DeleteDeadSpecificReferrers, RealisationWithPath};
    for minor in 32..=38 {
        let mut asked = words(&[CLIENT_MAGIC, 0x100 | minor]);
        let mut said_first = writer();
        if minor >= 38 {
            let names = ["disable-set-options", "realisation-with-path-not-hash"].map(str::to_owned);
            said_first.put(&BTreeSet::from(names)).expect("features");
        }
        asked.extend(said_first.into_inner());
        asked.extend(words(&[0, 0]));
        let (mut from, mut to) = (reader(&asked), writer());
        accept(&mut from, &mut to, &offer(&Feature::ALL)).expect("client");
        assert!(from.inner_mut().is_empty());
        let common: BTreeSet<Feature> = if minor >= 38 { [RealisationWithPath].into() } else { [].into() };
        for dialect in [from.dialect(), to.dialect()] {
            assert_eq!((u64::from(dialect.minor), &dialect.features), (minor, &common));
        }
        to.put(&StderrMessage::Last).expect("last");
        let said = to.into_inner();
        let mut from = reader(&said);
        let theirs = BTreeSet::from([RealisationWithPath]);
        let server = connect(&mut from, &mut writer(), minor as u8, &theirs).expect("server");
        assert!(from.inner_mut().is_empty());
        assert_eq!((u64::from(from.dialect().minor), &from.dialect().features), (minor, &common));
        assert_eq!(server.nix_version.is_some(), minor >= 33);
        assert_eq!(server.trust, if minor >= 35 { Trust::Trusted } else { Trust::Unknown });
        assert!(!from.dialect().has(DeleteDeadSpecificReferrers));
    }
}

/// Clients 2.23 send their version a second time.
#[test]
fn a_version_sent_twice_is_an_affinity() {
    let asked = words(&[CLIENT_MAGIC, 0x125, 0x125, 0, 0]);
    let (mut from, mut to) = (reader(&asked), writer());
    accept(&mut from, &mut to, &offer(&[])).expect("client");
    assert!(from.inner_mut().is_empty());
    assert_eq!(from.dialect().minor, 37);
}

/// A client that waits for the server's version before it sends its own.
#[test]
fn the_server_speaks_before_it_knows_the_version() {
    let mut to = writer();
    let asked = words(&[CLIENT_MAGIC]);
    let cut = accept(&mut reader(&asked), &mut to, &offer(&[]));
    assert!(matches!(&cut, Err(HandshakeError::Proto(ProtoError::Truncated))), "{cut:?}");
    assert_eq!(to.into_inner(), words(&[SERVER_MAGIC, 0x126]));
}

#[test]
fn strangers_are_told_apart() {
    let said = |bytes: &[u64]| accept(&mut reader(&words(bytes)), &mut writer(), &offer(&[]));
    assert!(matches!(said(&[0x1234]), Err(HandshakeError::Magic(0x1234))));
    assert!(matches!(said(&[CLIENT_MAGIC, 0x11f]), Err(HandshakeError::Version(0x11f))));
    assert!(matches!(said(&[CLIENT_MAGIC, 0x220]), Err(HandshakeError::Version(0x220))));
    assert!(matches!(said(&[CLIENT_MAGIC, 0x126, 1 << 40]), Err(HandshakeError::Proto(ProtoError::TooLong { .. }))));
    let refusing = words(&[SERVER_MAGIC, 0x120]);
    let mut answer = writer();
    let error = shoal_wire::nix::worker::RemoteError::new("too busy");
    answer.put(&StderrMessage::Error(error.clone())).expect("error");
    let said = [refusing, answer.into_inner()].concat();
    let refused = connect(&mut reader(&said), &mut writer(), MINOR_MAX, &BTreeSet::new());
    assert!(matches!(&refused, Err(HandshakeError::Refused(reason)) if *reason == error), "{refused:?}");
}
