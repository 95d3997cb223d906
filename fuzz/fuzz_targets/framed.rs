//! Framed uploads: reading, buffered reading and draining see the same bytes, and entries stay inside.
#![no_main]

use std::io::{BufRead, Read};

use libfuzzer_sys::fuzz_target;
use shoal_wire::nix::proto::{Dialect, FramedReader};
use shoal_wire::nix::store_path::StoreDir;
use shoal_wire::nix::worker::UploadEntries;

fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    let mut all = Vec::new();
    let read = FramedReader::new(&mut rest).read_to_end(&mut all);

    let mut drained_rest = bytes;
    let drained = FramedReader::new(&mut drained_rest).drain();
    assert_eq!(read.is_ok(), drained.is_ok());

    let mut frames = FramedReader::new(bytes);
    let mut buffered = Vec::new();
    while let Ok(buffer) = frames.fill_buf() {
        if buffer.is_empty() {
            break;
        }
        let n = buffer.len().div_ceil(2);
        buffered.extend_from_slice(&buffer[..n]);
        frames.consume(n);
    }
    assert_eq!(buffered, all);
    assert_eq!(frames.is_ended(), read.is_ok());
    if read.is_ok() {
        assert_eq!((rest, drained.ok()), (drained_rest, Some(all.len() as u64)));
    }

    let dialect = Dialect::new(StoreDir::default(), 38);
    let Ok(mut entries) = UploadEntries::new(FramedReader::new(bytes), dialect) else { return };
    let mut total = 0;
    while let Ok(Some(info)) = entries.next_entry() {
        let mut nar = Vec::new();
        if entries.by_ref().take(1 << 16).read_to_end(&mut nar).is_ok() {
            assert_eq!(nar.len() as u64, info.nar_size.min(1 << 16));
        }
        total += nar.len();
    }
    assert!(total <= all.len());
    assert_eq!(entries.into_frames().drain().is_ok(), read.is_ok());
});
