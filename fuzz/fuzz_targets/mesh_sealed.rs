//! Values that somebody answers for: none panics, what decodes has one encoding, and nothing opens unsigned.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shoal_wire::mesh::certificate::Certificate;
use shoal_wire::mesh::format::{Format, decode, encode};
use shoal_wire::mesh::node_record::NodeRecord;
use shoal_wire::mesh::path_record::PathRecord;
use shoal_wire::mesh::revocation::Revocation;
use shoal_wire::mesh::sealed::{Sealed, Signable};
use shoal_wire::mesh::suspicion::Suspicion;
use shoal_wire::mesh::ticket::{Grant, Ticket};

fn one_encoding<T: Format>(bytes: &[u8]) {
    if let Ok(value) = decode::<T>(bytes) {
        assert_eq!(encode(&value), bytes);
    }
}

fn sealed<T: Signable>(bytes: &[u8]) {
    one_encoding::<T>(bytes);
    if let Ok(value) = Sealed::<T>::open(bytes) {
        assert_eq!(**value.bytes(), *bytes);
    }
}

fuzz_target!(|bytes: &[u8]| {
    sealed::<NodeRecord>(bytes);
    sealed::<PathRecord>(bytes);
    sealed::<Revocation>(bytes);
    sealed::<Suspicion>(bytes);
    sealed::<Grant>(bytes);
    one_encoding::<Certificate>(bytes);
    one_encoding::<Ticket>(bytes);
    if let Some(ticket) = std::str::from_utf8(bytes).ok().and_then(|text| text.parse::<Ticket>().ok()) {
        assert_eq!(ticket.to_string().parse::<Ticket>().unwrap(), ticket);
    }
});
