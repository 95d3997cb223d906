//! Commands of the serve protocol as a server reads them, the export stream, and replies as a client reads
//! them. The first byte chooses.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shoal_wire::nix::nar::{Discard, NarLimits};
use shoal_wire::nix::proto::{Dialect, Reader, Writer};
use shoal_wire::nix::serve::{ExportReader, Op, Reply, Request};
use shoal_wire::nix::store_path::StoreDir;

fn import(reader: &mut Reader<&[u8]>) -> bool {
    let mut import = ExportReader::new(reader);
    loop {
        let Ok(next) = import.next_nar(NarLimits::STRICT, Discard) else { return false };
        let Some(nar) = next else { return true };
        if nar.finish().is_err() {
            return false;
        }
        if import.entry().is_err() {
            return false;
        }
    }
}

fn commands(bytes: &[u8], dialect: &Dialect) {
    let mut reader = Reader::new(bytes, dialect.clone());
    while let Ok(Some(request)) = Request::read_next(&mut reader) {
        let mut writer = Writer::new(Vec::new(), dialect.clone());
        if request.write(&mut writer).is_ok() {
            let written = writer.into_inner();
            let again = Request::read_next(&mut Reader::new(written.as_slice(), dialect.clone()));
            assert_eq!(again.expect("what was written is read"), Some(request.clone()));
        }
        if matches!(request, Request::ImportPaths(_)) && !import(&mut reader) {
            return;
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((&choice, bytes)) = input.split_first() else { return };
    let dialect = Dialect::new(StoreDir::default(), 5 + choice % 4);
    let Some(op) = Op::ALL.get(usize::from(choice >> 4)).copied() else {
        return commands(bytes, &dialect);
    };
    let Ok(reply) = Reply::read(op, &mut Reader::new(bytes, dialect.clone())) else { return };
    let mut writer = Writer::new(Vec::new(), dialect.clone());
    reply.write(&mut writer).expect("the dialect can express what was read in it");
    let written = writer.into_inner();
    let again = Reply::read(op, &mut Reader::new(written.as_slice(), dialect));
    assert_eq!(again.expect("what was written is read"), reply);
});
