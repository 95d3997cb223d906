//! Membership frames, holder messages and first words from peers: none panics, and what decodes has one encoding.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shoal_wire::mesh::announcement::HolderMessage;
use shoal_wire::mesh::format::{decode, encode};
use shoal_wire::mesh::frame::Frame;
use shoal_wire::mesh::hello::Hello;
use shoal_wire::mesh::join::{JoinAnswer, JoinRequest};
use shoal_wire::mesh::node_record::NodeRecord;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(frame) = decode::<Frame>(bytes) {
        assert_eq!(encode(&frame), bytes);
        if let Frame::Facts { facts, .. } = frame {
            for fact in facts {
                assert!(fact.frame_len() > fact.bytes().len());
                let _ = NodeRecord::open(fact.bytes());
            }
        }
    }
    if let Ok(message) = decode::<HolderMessage>(bytes) {
        assert_eq!(encode(&message), bytes);
    }
    if let Ok(hello) = decode::<Hello>(bytes) {
        assert_eq!(encode(&hello), bytes);
    }
    if let Ok(request) = decode::<JoinRequest>(bytes) {
        assert_eq!(encode(&request), bytes);
    }
    if let Ok(answer) = decode::<JoinAnswer>(bytes) {
        assert_eq!(encode(&answer), bytes);
    }
});
