//! Lines of a builder's output.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shoal_wire::nix::log::{PREFIX, parse_builder_line};

fuzz_target!(|line: &[u8]| {
    let plain = parse_builder_line(line);
    assert!(plain.is_none() || line.starts_with(PREFIX));
    parse_builder_line(&[PREFIX, line].concat());
});
