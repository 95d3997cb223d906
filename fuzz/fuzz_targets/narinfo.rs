//! narinfo: what was read is written, and reads as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shoal_wire::nix::narinfo::NarInfo;
use shoal_wire::nix::store_path::StoreDir;

fuzz_target!(|bytes: &[u8]| {
    let dir = StoreDir::default();
    let Ok(narinfo) = NarInfo::parse(&dir, bytes) else { return };
    let text = narinfo.print(&dir);
    assert_eq!(NarInfo::parse(&dir, text.as_bytes()).as_ref(), Ok(&narinfo));
    assert!(narinfo.info.fingerprint(&dir).is_ok(), "the size of a narinfo is known");
    let _ = narinfo.info.is_content_addressed(&dir);
});
