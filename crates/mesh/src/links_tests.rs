use super::*;
use crate::clock::wall_s;
use crate::fixture::*;
use crate::log_lab::Log;
use crate::protocol::name_at;
use shoal_wire::mesh::certificate::Certificate;
use shoal_wire::mesh::format::Format;
use shoal_wire::mesh::hello::Hello;
use std::collections::BTreeSet;
use std::time::Duration;

#[tokio::test]
async fn members_exchange_frames_of_any_length_and_messages_in_their_order() {
    let (mut a, mut b) = (Node::new(1).await, Node::new(2).await);
    a.knows(&b);
    for len in [1, 1_000, 5_000, FRAME_LEN_MAX] {
        a.links.send_frame(b.key(), vec![len as u8; len]);
        assert_eq!(b.frame().await, (a.key(), vec![len as u8; len]));
        // On the connection that the other one opened.
        b.links.send_frame(a.key(), vec![1; len]);
        assert_eq!(a.frame().await, (b.key(), vec![1; len]));
    }
    for id in 0..500 {
        assert!(a.links.send_message(b.key(), &numbered(id)));
        assert!(b.links.send_message(a.key(), &numbered(id)));
    }
    for id in 0..500 {
        let (from, message) = b.message().await;
        assert_eq!((from, number(&message)), (a.key(), id));
        assert_eq!(number(&a.message().await.1), id);
    }
    let peers = a.links.peers();
    assert_eq!(peers.len(), 1);
    assert_eq!((peers[0].node, peers[0].address), (b.key(), Some(b.links.local_addr())));
    assert!(peers[0].sent_bytes > 500 && peers[0].received_bytes > 500 && peers[0].rtt.is_some());
    within(a.links.close()).await;
    until("the other end hears of it", || !b.is_linked(&a)).await;
}

#[tokio::test]
async fn a_connection_for_chunks_is_opened_once_and_serves_both() {
    let (a, b) = (Node::new(1).await, Node::new(2).await);
    assert_eq!(a.links.chunks(b.key()).await.unwrap_err(), DialError::NoAddress);
    a.knows(&b);
    let both = async { tokio::join!(a.links.chunks(b.key()), a.links.chunks(b.key())) };
    let (first, second) = within(both).await;
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!(first.stable_id(), second.stable_id());
    assert_eq!(within(echo(&first, &[7; 100_000])).await, [7; 100_000]);
    // `b` knows no address, and needs none.
    let back = within(b.links.chunks(a.key())).await.unwrap();
    assert_eq!(within(echo(&back, b"back")).await, b"back");
}

#[tokio::test]
async fn a_node_of_another_mesh_is_refused_with_the_reason_on_both_ends() {
    let (a, mut b) = (Node::new(1).await, Node::of_mesh(2, 201).await);
    let log = Log::begin();
    a.knows(&b);
    let refused = within(a.links.chunks(b.key())).await.unwrap_err();
    assert_eq!(refused, DialError::Refused("the certificate is of another mesh".to_owned()));
    assert_eq!(within(a.links.chunks(b.key())).await.unwrap_err(), refused, "it is not asked again at once");
    until("the refusal is counted", || b.links.counts().refused == 1).await;
    log.tells(&a.key(), "the certificate is of another mesh").await;
    // The other way round, and with something that waits.
    b.knows(&a);
    b.links.send_frame(a.key(), vec![1]);
    assert!(b.links.send_message(a.key(), &numbered(1)));
    until("it is given up", || b.links.counts().frames_dropped == 1 && b.links.counts().messages_lost == 1).await;
    assert!(b.events.try_recv().is_err() && b.links.peers().is_empty() && a.links.peers().is_empty());
}

async fn refusal_of(certificate: &Certificate) -> (DialError, DialError) {
    let (member, other) = (Node::new(1).await, Node::with_certificate(2, certificate).await);
    let log = Log::begin();
    acquaint(&member, &other);
    let by_member = within(member.links.chunks(other.key())).await.unwrap_err();
    // It heard nothing yet of being refused.
    until("it hears", || other.links.peers().is_empty()).await;
    let by_other = within(other.links.chunks(member.key())).await.unwrap_err();
    until("the refusal is counted", || member.links.counts().refused == 1).await;
    assert!(member.links.peers().is_empty() && other.links.peers().is_empty());
    log.tells(&other.key(), "the certificate does not hold now").await;
    (by_member, by_other)
}

/// Whoever dials, the member does not let the other in, and the other hears why.
#[tokio::test]
async fn a_certificate_that_is_over_or_not_begun_or_forged_is_refused_with_its_reason() {
    let now = wall_s();
    let reason = "the certificate does not hold now";
    for (from, to) in [(now - 2_000, now - 1_000), (now + 1_000, now + 2_000)] {
        let (by_member, by_other) = refusal_of(&certificate(MESH, 2, from, to)).await;
        assert_eq!(by_member, DialError::Barred(reason.to_owned()));
        assert_eq!(by_other, DialError::Refused(reason.to_owned()));
    }
    let longer = Certificate { term: certificate(MESH, 2, now, now + 9).term, ..good_certificate(MESH, 2) };
    // No identity opens with it, so the hello is said by hand.
    assert_eq!(hello_refused(&longer).await, "the mesh key did not sign the certificate");
    // A certificate that was seen elsewhere, by who has not its key.
    assert_eq!(hello_refused(&good_certificate(MESH, 3)).await, "the certificate is of another node");
}

/// What node 2 hears when it says hello with `certificate`.
async fn hello_refused(certificate: &Certificate) -> String {
    let member = Node::new(1).await;
    let stranger = stranger(2).await;
    let log = Log::begin();
    let connection = dial(&stranger, &member, SYNC).await;
    let hello = encode(&Hello::new(certificate.clone()));
    let reason = say(&connection, &hello).await;
    log.tells(&public(2), &reason).await;
    assert!(member.links.peers().is_empty());
    reason
}

/// Sends `bytes` as the first thing, and tells why the connection was closed.
async fn say(connection: &Connection, bytes: &[u8]) -> String {
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    let _ = send.write_all(bytes).await;
    let _ = send.finish();
    closed(connection).await
}

async fn closed(connection: &Connection) -> String {
    match within(connection.closed()).await {
        iroh::endpoint::ConnectionError::ApplicationClosed(closed) => {
            String::from_utf8(closed.reason.to_vec()).unwrap()
        }
        other => panic!("closed by {other}"),
    }
}

async fn stranger(seed: u8) -> Endpoint {
    endpoint::bind(&key(seed), loopback(), &[SYNC, CHUNKS, BUILDS, JOIN]).await.unwrap()
}

async fn dial(stranger: &Endpoint, to: &Node, protocol: &[u8]) -> Connection {
    let address = locate(&to.key(), &to.links.addresses()).unwrap();
    within(stranger.connect(address, &name_at(protocol, &to.key()))).await.unwrap()
}

/// Lets node `seed` in by hand.
async fn enter(stranger: &Endpoint, seed: u8, to: &Node) -> Connection {
    let connection = dial(stranger, to, SYNC).await;
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(&encode(&Hello::new(good_certificate(MESH, seed)))).await.unwrap();
    send.finish().unwrap();
    assert!(!within(recv.read_to_end(Hello::LEN_MAX)).await.unwrap().is_empty());
    connection
}

#[tokio::test]
async fn who_is_barred_is_cut_off_and_refused_from_then_on() {
    let (a, mut b) = (Node::new(1).await, Node::new(2).await);
    acquaint(&a, &b);
    a.links.send_frame(b.key(), vec![1]);
    b.frame().await;
    let log = Log::begin();
    b.links.bar(a.key());
    log.tells(&a.key(), "the node was thrown out of the mesh").await;
    until("it is cut off", || !a.is_linked(&b) && !b.is_linked(&a)).await;
    let reason = "the node was thrown out of the mesh";
    let refused = within(a.links.chunks(b.key())).await.unwrap_err();
    assert_eq!(refused, DialError::Refused(reason.to_owned()));
    assert_eq!(b.links.chunks(a.key()).await.unwrap_err(), DialError::Barred("it was thrown out".to_owned()));
}

#[tokio::test]
async fn who_was_cut_off_comes_back_when_it_has_rested() {
    let (a, mut b) = (Node::new(1).await, Node::new(2).await);
    a.knows(&b);
    a.links.send_frame(b.key(), vec![1]);
    b.frame().await;
    b.links.cut(a.key(), "it was rude");
    until("it is cut off", || !a.is_linked(&b) && !b.is_linked(&a)).await;
    let resting = within(a.links.chunks(b.key())).await.unwrap_err();
    assert_eq!(resting, DialError::Refused("it was cut off a moment ago: it was rude".to_owned()));
    until("it comes back", || {
        a.links.send_frame(b.key(), vec![2]);
        b.events.try_recv().is_ok()
    })
    .await;
}

#[tokio::test]
async fn of_a_node_that_is_dead_no_connection_is_left_and_none_is_opened_until_it_is_back() {
    let (a, b) = (Node::new(1).await, Node::new(2).await);
    a.knows(&b);
    let before = within(a.links.chunks(b.key())).await.unwrap();
    a.links.died(b.key());
    assert!(before.close_reason().is_some(), "nobody would answer on it");
    let refused = within(a.links.chunks(b.key())).await.unwrap_err();
    assert_eq!(refused, DialError::Silent("members agree that it is dead".to_owned()));
    a.knows(&b);
    a.links.suspected(b.key());
    let after = within(a.links.chunks(b.key())).await.unwrap();
    a.links.died(b.key());
    assert!(after.close_reason().is_none(), "it was opened after what was its end");
}

#[tokio::test]
async fn garbage_on_any_protocol_is_refused_with_a_reason() {
    let member = Node::new(1).await;
    let stranger = stranger(2).await;
    for protocol in [SYNC, CHUNKS, BUILDS, JOIN] {
        for garbage in [&[0xff; 20][..], &[1; 20_000], b""] {
            let log = Log::begin();
            let connection = dial(&stranger, &member, protocol).await;
            let reason = say(&connection, garbage).await;
            log.tells(&public(2), &reason).await;
            assert!(reason.contains("decode") || reason.contains("version") || reason.contains("long"), "{reason}");
        }
    }
    assert_eq!(member.links.counts().refused, 12);
    assert!(member.links.peers().is_empty());
}

#[tokio::test]
async fn talk_resumes_when_a_node_is_killed_and_started_again_with_its_key() {
    let mut a = Node::new(1).await;
    let (mut b, runtime) = Node::mortal(2).await;
    b.knows(&a);
    b.links.send_frame(a.key(), vec![1]);
    a.frame().await;
    a.links.send_message(b.key(), &numbered(1));
    assert_eq!(number(&b.message().await.1), 1);
    let mut b = b.killed_and_started_again(runtime, 2).await;
    assert!(a.links.send_message(public(2), &numbered(2)), "nobody told it");
    b.knows(&a);
    b.links.send_frame(a.key(), vec![2]);
    assert_eq!(a.frame().await, (b.key(), vec![2]));
    until("the new connection is the one", || a.links.queued(&b.key()) == (0, 0)).await;
    a.links.send_message(b.key(), &numbered(3));
    assert_eq!(number(&b.message().await.1), 3, "what the dead one did not get is lost, and nothing after it");
}

/// The smaller key's connection takes precedence over one that is dialled at the same time, but not when nobody is at its
/// other end any more.
#[tokio::test]
async fn who_is_started_again_at_once_reaches_those_that_had_just_dialled_it() {
    let [smaller, larger] = if public(1) < public(2) { [1, 2] } else { [2, 1] };
    let a = Node::new(smaller).await;
    let (b, runtime) = Node::mortal(larger).await;
    a.knows(&b);
    let of_a = within(a.links.chunks(b.key())).await.unwrap();
    assert_eq!(within(echo(&of_a, b"first life")).await, b"first life");
    let b = b.killed_and_started_again(runtime, larger).await;
    assert_eq!(of_a.close_reason(), None, "nobody told it");
    b.knows(&a);
    let of_b = within(b.links.chunks(a.key())).await.unwrap();
    assert_eq!(within(echo(&of_b, b"second life")).await, b"second life");
    let of_a = within(a.links.chunks(b.key())).await.unwrap();
    assert_eq!(within(echo(&of_a, b"both ways")).await, b"both ways");
}

#[tokio::test]
async fn two_that_dial_each_other_at_once_end_with_one_connection_and_lose_nothing() {
    for round in 0..10 {
        let (mut a, mut b) = (Node::new(1 + round).await, Node::new(100 - round).await);
        acquaint(&a, &b);
        for id in 0..20 {
            assert!(a.links.send_message(b.key(), &numbered(id)));
            assert!(b.links.send_message(a.key(), &numbered(id)));
        }
        for id in 0..20 {
            assert_eq!(number(&b.message().await.1), id);
            assert_eq!(number(&a.message().await.1), id);
        }
        let both = async { tokio::join!(a.links.chunks(b.key()), b.links.chunks(a.key())) };
        let (of_a, of_b) = within(both).await;
        assert_eq!(within(echo(&of_a.unwrap(), b"a")).await, b"a");
        assert_eq!(within(echo(&of_b.unwrap(), b"b")).await, b"b");
        let lost = |node: &Node| (node.links.counts().messages_lost, node.links.counts().frames_dropped);
        assert_eq!((lost(&a), lost(&b)), ((0, 0), (0, 0)));
    }
}

/// Node 2 misbehaves after it was let in: it is cut off with `reason`, while what node 3 sends arrives.
async fn misbehaves(reason: &str, how: impl AsyncFn(&Connection)) {
    let (mut member, good) = (Node::new(1).await, Node::new(3).await);
    good.knows(&member);
    good.links.send_frame(member.key(), vec![0]);
    member.frame().await;
    let stranger = stranger(2).await;
    let connection = enter(&stranger, 2, &member).await;
    let bad = public(2);
    let log = Log::begin();
    let (told, ()) = tokio::join!(
        async {
            how(&connection).await;
            closed(&connection).await
        },
        async {
            for id in 0..50 {
                good.links.send_message(member.key(), &numbered(id));
                // Whatever the other one sends between.
                while !matches!(member.event().await, Incoming::Message { from, message }
                    if from == good.key() && number(&message) == id)
                {}
            }
            while connection.close_reason().is_none() {
                let _ = tokio::time::timeout(std::time::Duration::from_millis(5), member.events.recv()).await;
            }
        }
    );
    assert_eq!(told, reason);
    log.tells(&bad, reason).await;
    assert_eq!(member.links.counts().cut_off, 1);
    assert!(!member.links.peers().iter().any(|peer| peer.node == bad));
    assert!(member.is_linked(&good));
}

async fn open_stream(connection: &Connection, bytes: &[u8]) -> iroh::endpoint::SendStream {
    let mut stream = connection.open_uni().await.unwrap();
    let _ = stream.write_all(bytes).await;
    stream
}

#[tokio::test]
async fn who_sends_a_frame_that_is_too_long_is_cut_off() {
    misbehaves("sent a frame of more than 16384 bytes", async |connection| {
        drop(open_stream(connection, &[0; FRAME_LEN_MAX + 2]).await);
    })
    .await;
}

#[tokio::test]
async fn who_names_a_length_that_is_too_long_is_cut_off_before_it_sends_so_much() {
    misbehaves("sent a message of 4294967295 bytes", async |connection| {
        let _stream = open_stream(connection, &[1, 255, 255, 255, 255]).await;
        connection.closed().await;
    })
    .await;
}

#[tokio::test]
async fn who_sends_messages_that_do_not_decode_is_cut_off() {
    misbehaves("sent a bad message: holder message has version 9, this program knows 1", async |connection| {
        let _stream = open_stream(connection, &[1, 2, 0, 0, 0, 9, 9]).await;
        connection.closed().await;
    })
    .await;
}

#[tokio::test]
async fn who_opens_what_nobody_asked_for_is_cut_off() {
    misbehaves("opened a stream of kind 7", async |connection| drop(open_stream(connection, &[7]).await)).await;
    misbehaves("opened a stream that nobody asked for", async |connection| {
        let (mut send, _recv) = connection.open_bi().await.unwrap();
        let _ = send.write_all(&[1]).await;
        connection.closed().await;
    })
    .await;
    misbehaves("opened a second stream of messages", async |connection| {
        let _first = open_stream(connection, &[1]).await;
        let _second = open_stream(connection, &[1]).await;
        connection.closed().await;
    })
    .await;
}

#[tokio::test]
async fn who_floods_with_frames_is_cut_off_and_others_are_heard() {
    misbehaves("sent more frames than it may", async |connection| {
        while connection.close_reason().is_none() {
            let _ = connection.send_datagram_wait(Bytes::from_static(&[1; 8])).await;
        }
    })
    .await;
}

#[tokio::test]
async fn who_floods_with_messages_is_cut_off_and_others_are_heard() {
    misbehaves("sent more messages than it may", async |connection| {
        let message = encode(&numbered(1));
        let one = [&(message.len() as u32).to_le_bytes()[..], &message].concat();
        let mut stream = open_stream(connection, &[1]).await;
        while stream.write_all(&one.repeat(100)).await.is_ok() {}
    })
    .await;
}

#[tokio::test]
async fn who_never_says_hello_is_closed_and_holds_no_place() {
    let member = Node::new(1).await;
    let stranger = stranger(2).await;
    let connection = dial(&stranger, &member, SYNC).await;
    // A first byte, and no more.
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    send.write_all(&[1]).await.unwrap();
    assert_eq!(closed(&connection).await, "no hello came in time");
    assert!(!member.links.inner.gate.is_crowded() && member.links.peers().is_empty());
}

#[tokio::test]
async fn what_waits_for_a_dead_peer_has_a_bound_and_is_given_up() {
    let a = Node::new(1).await;
    // Takes packets and answers none.
    let dead = std::net::UdpSocket::bind(loopback()).unwrap();
    a.links.learn_addresses(public(2), &[dead.local_addr().unwrap()]);
    let long = HolderMessage::Records(vec![vec![7; 1 << 20]]);
    for _ in 0..20 {
        a.links.send_message(public(2), &long);
        a.links.send_frame(public(2), vec![1]);
    }
    let (count, bytes) = a.links.queued(&public(2));
    assert!(count > 10 && bytes <= limits::MESSAGE_BYTES_QUEUED_MAX, "{count} messages of {bytes} bytes");
    a.links.learn_addresses(public(3), &[dead.local_addr().unwrap()]);
    for id in 0..limits::MESSAGES_QUEUED_MAX as u64 {
        assert!(a.links.send_message(public(3), &numbered(id)));
    }
    assert!(!a.links.send_message(public(3), &numbered(0)));
    until("it is given up", || a.links.queued(&public(2)).0 + a.links.queued(&public(3)).0 == 0).await;
    let counts = a.links.counts();
    assert_eq!(counts.messages_lost, 20 + limits::MESSAGES_QUEUED_MAX as u64 + 1);
    assert_eq!(counts.frames_dropped, 20);
    assert!(!a.links.send_message(public(2), &numbered(1)), "it is not dialled again at once");
}

#[tokio::test]
async fn three_talk_and_the_longest_messages_arrive() {
    let mut nodes = [Node::new(1).await, Node::new(2).await, Node::new(3).await];
    for (a, b) in [(0, 1), (0, 2), (1, 2)] {
        acquaint(&nodes[a], &nodes[b]);
    }
    let long = HolderMessage::Records(vec![vec![9; 32 << 10]; 255]);
    assert!(encode(&long).len() <= HolderMessage::LEN_MAX);
    let keys = nodes.each_ref().map(Node::key);
    for from in &nodes {
        for to in keys.iter().filter(|to| **to != from.key()) {
            from.links.send_frame(*to, from.key().to_vec());
            assert!(from.links.send_message(*to, &numbered(1)));
        }
    }
    assert!(nodes[0].links.send_message(keys[1], &long) && nodes[0].links.send_message(keys[1], &numbered(1)));
    for (node, long_messages) in nodes.iter_mut().zip([0, 1, 0]) {
        let (mut frames, mut long_ones, mut ends) = (0, 0, 0);
        for _ in 0..4 + 2 * long_messages {
            match node.event().await {
                Incoming::Frame { from, frame } => {
                    assert_eq!(frame, from);
                    frames += 1;
                }
                Incoming::Message { message, .. } if *message == long => long_ones += 1,
                Incoming::Message { message, .. } => ends += number(&message),
            }
        }
        assert_eq!((frames, long_ones, ends), (2, long_messages, 2 + long_messages));
        assert_eq!(node.links.peers().len(), 2);
    }
}

/// Its machine stops, and nothing closes the connection.
#[tokio::test]
async fn a_peer_that_freezes_is_given_up_and_holds_nothing_any_more() {
    let mut a = Node::new(1).await;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let b = runtime.spawn(Node::new(2)).await.unwrap();
    b.knows(&a);
    b.links.send_frame(a.key(), vec![1]);
    a.frame().await;
    let (freeze, frozen) = std::sync::mpsc::channel::<()>();
    runtime.spawn(async move {
        let _ = frozen.recv();
    });
    let long = HolderMessage::Records(vec![vec![7; 1 << 20]]);
    let sent = (0..20).filter(|_| a.links.send_message(b.key(), &long)).count();
    assert!(sent >= 10);
    until("it is given up", || a.links.peers().is_empty()).await;
    assert_eq!(a.links.queued(&b.key()), (0, 0));
    drop(freeze);
    runtime.shutdown_background();
}

/// Who decides reads slowly: each of the three gets its share, though one has a thousand times as much to say.
#[tokio::test]
async fn peers_take_turns_when_the_reader_is_slow() {
    let mut reader = Node::new(1).await;
    let loud = Node::new(2).await;
    let quiet = [Node::new(3).await, Node::new(4).await];
    for node in [&loud, &quiet[0], &quiet[1]] {
        node.knows(&reader);
    }
    for id in 0..2_000 {
        loud.links.send_message(reader.key(), &numbered(id));
    }
    until("the channel is full", || reader.events.len() == reader.events.max_capacity()).await;
    for node in &quiet {
        assert!((0..5).all(|id| node.links.send_message(reader.key(), &numbered(id))));
    }
    until("all are linked", || reader.links.peers().len() == 3 && reader.links.counts().messages_received >= 67).await;
    let mut heard = 0;
    let mut read = 0;
    while heard < 10 {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        let (from, _) = reader.message().await;
        read += 1;
        heard += usize::from(from != loud.key());
    }
    let full = reader.events.max_capacity();
    assert!(read <= full + 40, "10 messages of the quiet ones came among {read}");
}

/// What happens when half of the mesh is out of reach.
#[tokio::test]
async fn many_dead_peers_do_not_hold_up_the_dial_of_a_live_one() {
    let (a, b) = (Node::new(1).await, Node::new(2).await);
    let dead = std::net::UdpSocket::bind(loopback()).unwrap();
    let started = Instant::now();
    for seed in 50..150 {
        a.links.learn_addresses(public(seed), &[dead.local_addr().unwrap()]);
        a.links.send_frame(public(seed), vec![1]);
    }
    a.knows(&b);
    within(a.links.chunks(b.key())).await.unwrap();
    // Each of the others holds its turn for a quarter of a second, sixteen at once.
    assert!(started.elapsed() < limits::DIAL_TIMEOUT, "{:?}", started.elapsed());
    assert_eq!(a.links.counts().frames_dropped, 0, "the dead ones were still waited for");
}

#[tokio::test]
async fn who_listens_everywhere_announces_where_others_find_it() {
    for wildcard in ["[::]:0", "0.0.0.0:0"] {
        let (mut everywhere, other) = (Node::at(1, wildcard.parse().unwrap()).await, Node::new(2).await);
        let local = everywhere.links.local_addr();
        let announced = everywhere.links.addresses();
        assert!(local.port() != 0 && !announced.is_empty());
        for address in &announced {
            assert!(!address.ip().is_unspecified() && address.port() == local.port(), "{address}");
        }
        // In both families at one port.
        let over_v4 = SocketAddr::from(([127, 0, 0, 1], local.port()));
        other.links.learn_addresses(everywhere.key(), &[over_v4]);
        other.links.send_frame(everywhere.key(), vec![1]);
        assert_eq!(everywhere.frame().await, (other.key(), vec![1]));
    }
    let taken = std::net::UdpSocket::bind(loopback()).unwrap();
    let bind = taken.local_addr().unwrap();
    let error = endpoint::bind(&key(1), bind, &[]).await.unwrap_err();
    assert!(error.to_string().starts_with(&format!("cannot listen on udp {bind}")), "{error}");
}

/// A copied data directory: it must not cost the others more than a connection now and then.
#[tokio::test]
async fn two_nodes_of_one_key_take_each_others_place_only_now_and_then() {
    let mut c = Node::new(3).await;
    let twins = [Node::new(1).await, Node::new(1).await];
    let mut links = BTreeSet::new();
    let (begun, mut elapsed) = (Instant::now(), Duration::ZERO);
    // A crossing may hold a newcomer for three seconds.
    while elapsed < Duration::from_secs(4) || links.len() < 2 {
        assert!(elapsed < Duration::from_secs(30), "the second is never let in");
        for twin in &twins {
            twin.knows(&c);
            twin.links.send_frame(c.key(), vec![1]);
        }
        while c.events.try_recv().is_ok() {}
        links.extend(c.links.peers().iter().map(|peer| peer.since));
        tokio::time::sleep(Duration::from_millis(5)).await;
        elapsed = begun.elapsed();
    }
    assert!(links.len() < 8 * elapsed.as_secs() as usize, "{} links in {elapsed:?}", links.len());
}

#[tokio::test]
async fn a_connection_for_chunks_is_closed_when_it_is_not_used_and_opened_again_when_it_is_wanted() {
    let (a, b) = (Node::new(1).await, Node::new(2).await);
    a.knows(&b);
    let first = within(a.links.chunks(b.key())).await.unwrap();
    let mut now = Instant::now();
    let mut after = |time| {
        now += time;
        a.links.inner.sweep(now);
    };
    for _ in 0..3 {
        within(echo(&first, b"used")).await;
        after(limits::CHUNKS_IDLE);
        assert_eq!(first.close_reason(), None);
    }
    after(limits::CHUNKS_IDLE / 2);
    assert_eq!(first.close_reason(), None);
    after(limits::CHUNKS_IDLE / 2);
    assert!(first.close_reason().is_some());
    let second = within(a.links.chunks(b.key())).await.unwrap();
    assert_eq!(within(echo(&second, b"again")).await, b"again");
}

#[tokio::test]
async fn a_link_on_which_nothing_is_said_is_closed_and_opened_again_by_the_next_word() {
    let (a, mut b) = (Node::new(1).await, Node::new(2).await);
    a.knows(&b);
    a.links.send_frame(b.key(), vec![1]);
    assert_eq!(b.frame().await.1, [1]);
    a.links.inner.sweep(Instant::now());
    a.links.inner.sweep(Instant::now() + limits::SYNC_IDLE / 2);
    assert!(a.is_linked(&b));
    a.links.inner.sweep(Instant::now() + limits::SYNC_IDLE);
    until("it is closed", || !a.is_linked(&b) && !b.is_linked(&a)).await;
    a.links.send_frame(b.key(), vec![2]);
    assert_eq!(b.frame().await.1, [2]);
}
