//! Realisations in both schemes, as JSON.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shoal_wire::nix::realisation::{BuildTrace, Realisation, UnkeyedRealisation};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(value) = Realisation::from_json(bytes) {
        let text = value.to_json();
        assert_eq!(Realisation::from_json(text.as_bytes()).expect("what was written is read"), value);
        assert!(text.starts_with(value.fingerprint().trim_end_matches('}')));
    }
    if let Ok(value) = BuildTrace::from_json(bytes) {
        let text = value.to_json();
        assert_eq!(BuildTrace::from_json(text.as_bytes()).expect("what was written is read"), value);
        assert!(text.starts_with(value.fingerprint().trim_end_matches('}')));
    }
    if let Ok(value) = UnkeyedRealisation::from_json(bytes) {
        let text = value.to_json();
        assert_eq!(UnkeyedRealisation::from_json(text.as_bytes()).expect("what was written is read"), value);
    }
});
