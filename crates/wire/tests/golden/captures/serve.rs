//! The serve protocol.

use super::{Direction, connections};
use shoal_wire::nix::proto::Writer;
use shoal_wire::nix::serve::commands::{Op, Reply, Request};
use shoal_wire::nix::serve::handshake::{accept, connect};
use shoal_wire::nix::serve::{CLIENT_MAGIC, MINOR_MAX};
use std::collections::BTreeMap;

#[test]
fn every_connection_decodes_to_the_last_byte_and_back() {
    let test = "captures::serve::every_connection_decodes_to_the_last_byte_and_back";
    let connections = connections(test, CLIENT_MAGIC);
    if connections.is_empty() {
        return;
    }
    let mut seen = BTreeMap::new();
    for (name, (c2s, s2c)) in &connections {
        println!("{name}");
        replay(c2s, s2c, &mut seen);
    }
    println!("{} connections: {seen:?}", connections.len());
    // Import and export are of no client that was recorded.
    let expected: Vec<Op> = Op::ALL.iter().copied().filter(|op| *op != Op::ImportPaths).collect();
    assert_eq!(seen.into_keys().collect::<Vec<_>>(), expected);
}

fn replay(c2s: &[u8], s2c: &[u8], seen: &mut BTreeMap<Op, usize>) {
    let (mut client, mut server) = (Direction::new(c2s), Direction::new(s2c));
    let mut sent = Writer::new(Vec::new(), server.reader.dialect().clone());
    connect(&mut server.reader, &mut sent, MINOR_MAX).expect("their server");
    let said_by_us = sent.into_inner();
    assert_eq!(said_by_us, c2s[..16]);
    let mut sent = Writer::new(Vec::new(), client.reader.dialect().clone());
    accept(&mut client.reader, &mut sent).expect("their client");
    assert_eq!(sent.into_inner(), s2c[..16]);

    loop {
        let start = client.offset();
        let Some(request) = Request::read_next(&mut client.reader).expect("a command") else {
            break;
        };
        *seen.entry(request.op()).or_default() += 1;
        client.same_since(start, &request, |w| request.write(w));
        if let Request::AddToStoreNar(request) = &request {
            let start = client.offset();
            client.nar();
            assert_eq!((client.offset() - start) as u64, request.info.nar_size);
        }
        let start = server.offset();
        let reply = Reply::read(request.op(), &mut server.reader).expect("a reply");
        server.same_since(start, &reply, |w| reply.write(w));
        if let Request::DumpStorePath(_) = request {
            server.nar();
        }
    }
    assert_eq!(server.offset(), s2c.len(), "the server said more");
}
