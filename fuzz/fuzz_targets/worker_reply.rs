//! What a client reads: log messages, then the reply to an operation that the first two bytes choose.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shoal_wire::nix::proto::{Codec, Dialect, Feature, Reader, Writer};
use shoal_wire::nix::store_path::StoreDir;
use shoal_wire::nix::worker::{Op, Reply, StderrMessage};

fuzz_target!(|input: &[u8]| {
    let [choice, op, bytes @ ..] = input else { return };
    let mut dialect = Dialect::new(StoreDir::default(), 26 + choice % 13);
    dialect.features = Feature::ALL.into_iter().filter(|feature| choice & 64 << (*feature as u8) != 0).collect();
    let op = Op::ALL[usize::from(*op) % Op::ALL.len()];
    let mut reader = Reader::new(bytes, dialect.clone());
    loop {
        let Ok(message) = StderrMessage::read(&mut reader) else { return };
        let mut writer = Writer::new(Vec::new(), dialect.clone());
        writer.put(&message).expect("what was read is written");
        let written = writer.into_inner();
        let again = StderrMessage::read(&mut Reader::new(written.as_slice(), dialect.clone()));
        assert_eq!(again.expect("what was written is read"), message);
        if message == StderrMessage::Last {
            break;
        }
    }
    let Ok(reply) = Reply::read(op, &mut reader) else { return };
    let mut writer = Writer::new(Vec::new(), dialect.clone());
    // A derived path can be read before 1.30 that cannot be written.
    if reply.write(&mut writer).is_ok() {
        let written = writer.into_inner();
        let again = Reply::read(op, &mut Reader::new(written.as_slice(), dialect));
        assert_eq!(again.expect("what was written is read"), reply);
    }
});
