//! Derived paths in the form of every protocol version.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shoal_wire::nix::derived_path::{DerivedPath, OutputsSpec, Separator, SingleDerivedPath};
use shoal_wire::nix::placeholder;
use shoal_wire::nix::store_path::StoreDir;

fuzz_target!(|text: &str| {
    let dir = StoreDir::default();
    for separator in [Separator::Wire, Separator::Cli] {
        if let Ok(path) = DerivedPath::parse_with(&dir, text, separator) {
            let printed = path.print_with(&dir, separator);
            assert_eq!(DerivedPath::parse_with(&dir, &printed, separator), Ok(path));
        }
        if let Ok(path) = SingleDerivedPath::parse(&dir, text, separator) {
            assert_eq!(path.print(&dir, separator), text);
            assert_eq!(placeholder::derived(&path).is_none(), matches!(path, SingleDerivedPath::Opaque(_)));
        }
    }
    if let Ok(path) = DerivedPath::parse_pre_30(&dir, text) {
        if let Ok(printed) = path.print_pre_30(&dir) {
            assert_eq!(DerivedPath::parse_pre_30(&dir, &printed), Ok(path));
        }
    }
    if let Ok(spec) = text.parse::<OutputsSpec>() {
        assert_eq!(spec.to_string().parse(), Ok(spec));
    }
});
