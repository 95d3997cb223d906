//! Both halves of both handshakes against a peer that says anything.
#![no_main]

use std::collections::BTreeSet;
use std::io;

use libfuzzer_sys::fuzz_target;
use shoal_wire::nix::proto::{Dialect, Feature, Reader, Writer};
use shoal_wire::nix::serve;
use shoal_wire::nix::store_path::StoreDir;
use shoal_wire::nix::worker::handshake::{accept, connect};
use shoal_wire::nix::worker::{MINOR_MAX, MINOR_MIN, Offer, Trust};

fuzz_target!(|bytes: &[u8]| {
    let store_dir = StoreDir::default();
    let dialect = Dialect::new(store_dir.clone(), 0);
    let features: BTreeSet<Feature> = Feature::ALL.into_iter().collect();
    let offer = Offer { store_dir, features: features.clone(), nix_version: "2.34.8".into(), trust: Trust::Trusted };
    let mut reader = Reader::new(bytes, dialect.clone());
    let mut writer = Writer::new(io::sink(), dialect.clone());
    if accept(&mut reader, &mut writer, &offer).is_ok() {
        let agreed = reader.dialect();
        assert!((MINOR_MIN..=MINOR_MAX).contains(&agreed.minor) && agreed == writer.dialect());
        assert!(agreed.minor == 38 || agreed.features.is_empty());
    }
    let mut reader = Reader::new(bytes, dialect.clone());
    if connect(&mut reader, &mut writer, MINOR_MAX, &features).is_ok() {
        assert!((MINOR_MIN..=MINOR_MAX).contains(&reader.dialect().minor));
    }
    let mut reader = Reader::new(bytes, dialect.clone());
    if serve::handshake::accept(&mut reader, &mut writer).is_ok() {
        assert!((serve::MINOR_MIN..=serve::MINOR_MAX).contains(&reader.dialect().minor));
    }
    let _ = serve::handshake::connect(&mut Reader::new(bytes, dialect), &mut writer, serve::MINOR_MAX);
});
