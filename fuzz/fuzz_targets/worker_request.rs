//! Requests of the worker protocol as a server reads them. The first byte chooses version and features.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shoal_wire::nix::proto::{Dialect, Feature, Reader, Writer};
use shoal_wire::nix::store_path::StoreDir;
use shoal_wire::nix::worker::Request;

fuzz_target!(|input: &[u8]| {
    let Some((&choice, bytes)) = input.split_first() else { return };
    let mut dialect = Dialect::new(StoreDir::default(), 32 + choice % 7);
    dialect.features = Feature::ALL.into_iter().filter(|feature| choice & 64 << (*feature as u8) != 0).collect();
    let mut reader = Reader::new(bytes, dialect.clone());
    while let Ok(Some(request)) = Request::read_next(&mut reader) {
        let mut writer = Writer::new(Vec::new(), dialect.clone());
        request.write(&mut writer).expect("the dialect can express what was read in it");
        let written = writer.into_inner();
        let mut again = Reader::new(written.as_slice(), dialect.clone());
        assert_eq!(Request::read_next(&mut again).expect("what was written is read"), Some(request.clone()));
        assert!(again.inner_mut().is_empty());
        if request.op().is_framed() && reader.frames().drain().is_err() {
            return;
        }
    }
});
