//! Manifests from peers: none panics, and what decodes has one encoding.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shoal_wire::mesh::manifest::Manifest;

fuzz_target!(|bytes: &[u8]| {
    let Ok(manifest) = Manifest::decode(bytes) else { return };
    assert_eq!(manifest.encode(), bytes);
    assert_eq!(manifest.index.walk().count(), manifest.index.entries().len());
    let chunks: u64 = manifest.chunks.iter().map(|chunk| u64::from(chunk.len)).sum();
    assert_eq!(chunks, manifest.index.nar_size());
    for (_, entry) in manifest.index.walk() {
        for child in manifest.index.children(entry) {
            assert!(manifest.index.child(entry, &child.name).is_some());
        }
    }
});
