//! Store paths, hashes, content addresses, keys and signatures: texts that stand for themselves.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shoal_wire::nix::content_address::{CaMethodAlgo, ContentAddress};
use shoal_wire::nix::hash::{Hash, HashAlgo};
use shoal_wire::nix::make_path::CaReferences;
use shoal_wire::nix::realisation::DrvOutput;
use shoal_wire::nix::signature::{PublicKey, SecretKey, Signature};
use shoal_wire::nix::store_path::{StoreDir, StorePath};
use shoal_wire::nix::{base32, base64};

fuzz_target!(|text: &str| {
    let dir = StoreDir::default();
    if let Ok(path) = text.parse::<StorePath>() {
        assert_eq!(path.to_string(), text);
        assert_eq!(format!("{}-{}", path.hash_part(), path.name()), text);
    }
    if let Ok(path) = dir.parse(text) {
        assert_eq!(dir.print(&path), text);
    }
    if let Ok((path, rest)) = dir.parse_prefix(text) {
        assert_eq!(dir.print(&path) + rest, text);
    }
    if let Ok(other) = StoreDir::new(text) {
        assert_eq!(other.as_str(), text);
    }
    if let Ok(bytes) = base32::decode(text) {
        assert_eq!(base32::encode(&bytes), text);
    }
    if let Ok(bytes) = base64::decode(text) {
        assert_eq!(base64::encode(&bytes), text);
    }
    if let Ok(hash) = Hash::parse_any(text) {
        assert_eq!(Hash::parse(text, hash.algo()), Ok(hash));
        assert_eq!(hash.to_string().parse(), Ok(hash));
        assert_eq!(hash.to_sri().parse(), Ok(hash));
    }
    for algo in HashAlgo::ALL {
        if let Ok(hash) = Hash::parse_digits(text, algo) {
            assert_eq!(Hash::parse_digits(&hash.to_base16(), algo), Ok(hash));
        }
    }
    if let Ok(ca) = text.parse::<ContentAddress>() {
        assert_eq!(ca.to_string().parse(), Ok(ca));
        let _ = dir.make_ca_path(&ca, &CaReferences::none(), "fuzz");
    }
    if let Ok(method) = text.parse::<CaMethodAlgo>() {
        assert_eq!(method.to_string(), text);
    }
    if let Ok(method) = CaMethodAlgo::from_output_form(text) {
        assert_eq!(method.to_output_form(), text);
    }
    if let Ok(id) = text.parse::<DrvOutput>() {
        assert_eq!(id.to_string().parse(), Ok(id));
    }
    if let Ok(signature) = text.parse::<Signature>() {
        assert_eq!(signature.to_string(), text);
    }
    if let Ok(key) = text.parse::<PublicKey>() {
        assert_eq!(key.to_string(), text.trim());
    }
    if let Ok(key) = text.parse::<SecretKey>() {
        assert_eq!(key.to_secret_text(), text.trim());
    }
});
