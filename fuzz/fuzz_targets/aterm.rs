//! Derivations: what was read is written, and reads as the same. It survives JSON where it is text, hashing and
//! resolution do not panic.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use shoal_wire::nix::derivation::Derivation;
use shoal_wire::nix::hash_modulo::HashModulo;
use shoal_wire::nix::invariants::{check_outputs, fill_outputs};
use shoal_wire::nix::resolve::{must_resolve, resolve};
use shoal_wire::nix::store_path::{StoreDir, StorePath};
use shoal_wire::nix::{aterm, drv_json};

fuzz_target!(|bytes: &[u8]| {
    let dir = StoreDir::default();
    let Ok(drv) = aterm::parse(&dir, bytes, "fuzz") else { return };
    let text = aterm::print(&dir, &drv);
    assert_eq!(aterm::parse(&dir, &text, "fuzz").as_ref(), Ok(&drv));
    assert_eq!(aterm::print(&dir, &drv), text);
    if let Ok(json) = drv_json::to_json(&drv) {
        let again = drv_json::from_json(&json).expect("what was written is read");
        let json_again = drv_json::to_json(&again).expect("what was read is written");
        assert_eq!(json, json_again);
    }
    // Inputs that are leaves: nothing but a name.
    let mut lookup = |_: &StorePath| {
        let mut leaf: Derivation = drv.clone();
        leaf.input_drvs.clear();
        Ok::<_, String>(Arc::new(leaf))
    };
    let mut modulo = HashModulo::new(dir.clone());
    let _ = modulo.output_ids(&drv, &mut lookup);
    let _ = check_outputs(&mut modulo, &drv, &mut lookup);
    let _ = must_resolve(&drv);
    if let Ok(mut resolved) = resolve(&dir, &drv, &mut |input| Some(input.base_path().clone())) {
        // Filling in what is filled in changes nothing.
        let before = resolved.clone();
        if fill_outputs(&dir, &mut resolved).is_ok() {
            assert_eq!(before, resolved);
        }
    }
});
