//! Attributes of a derivation, structured or not. The first byte says which; the rest is `__json`, or variables
//! `name=value` with NULs between them.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};

use libfuzzer_sys::fuzz_target;
use shoal_wire::nix::derivation::{BasicDerivation, STRUCTURED_ATTRS};
use shoal_wire::nix::options::{DerivationOptions, ineffective_attributes};
use shoal_wire::nix::store_path::StoreDir;
use shoal_wire::nix::structured::StructuredAttrs;

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    let mut env = BTreeMap::new();
    if kind % 2 == 0 {
        env.insert(STRUCTURED_ATTRS.to_vec(), bytes.to_vec());
        structured(bytes);
    } else {
        for variable in bytes.split(|&byte| byte == 0) {
            let mut parts = variable.splitn(2, |&byte| byte == b'=');
            let name = parts.next().unwrap_or_default().to_vec();
            env.insert(name, parts.next().unwrap_or_default().to_vec());
        }
    }
    let _ = ineffective_attributes(&env);
    let drv = BasicDerivation {
        name: "fuzz".to_owned(),
        outputs: BTreeMap::new(),
        input_srcs: BTreeSet::new(),
        system: String::new(),
        builder: Vec::new(),
        args: Vec::new(),
        env,
    };
    let dir = StoreDir::default();
    let basic = DerivationOptions::of_basic(&dir, &drv);
    // Without inputs there is nothing to resolve.
    let full = DerivationOptions::of(&dir, &drv.into_derivation());
    assert_eq!(basic.is_ok(), full.is_ok());
    if let (Ok(basic), Ok(full)) = (basic, full) {
        assert_eq!(full.resolve(&mut |_| None), Some(basic));
    }
});

fn structured(bytes: &[u8]) {
    let Ok(attrs) = StructuredAttrs::parse(bytes) else { return };
    let text = attrs.to_json();
    let again = StructuredAttrs::parse(text.as_bytes()).expect("what was written is read");
    assert_eq!(again.to_json(), text);
    if let Ok(values) = attrs.values() {
        assert_eq!(again.values().expect("as before"), values);
        let outputs = BTreeMap::from([("out".to_owned(), "/out".to_owned())]);
        let prepared = attrs.prepare(&outputs, &BTreeMap::new()).expect("outputs are text");
        assert_eq!(prepared.values().expect("as before")["outputs"]["out"], "/out");
        let shell = attrs.to_shell().expect("values are known");
        assert!(shell.is_empty() || shell.ends_with('\n'));
    }
}
