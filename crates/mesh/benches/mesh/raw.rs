//! The same bytes on bare connections: one sender, one receiver that throws them away.

use crate::lab::{endpoint, key};
use crate::sample::new_dir;
use bytes::Bytes;
use shoal_mesh::protocol::CHUNKS;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

const BLOCK: usize = 256 << 10;

/// Into one new file, durably: who keeps what comes is no faster than this.
pub fn disk(bytes: &Bytes) -> Duration {
    let dir = new_dir();
    let mut file = File::create(dir.path().join("bytes")).expect("a file");
    let began = Instant::now();
    bytes.chunks(BLOCK).for_each(|block| file.write_all(block).expect("write"));
    file.sync_data().expect("sync");
    began.elapsed()
}

pub fn tcp(bytes: &Bytes) -> Duration {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
    let to = listener.local_addr().expect("an address");
    let sent = bytes.clone();
    let sender = std::thread::spawn(move || {
        let mut stream = TcpStream::connect(to).expect("a connection");
        sent.chunks(BLOCK).for_each(|block| stream.write_all(block).expect("send"));
    });
    let (mut stream, _) = listener.accept().expect("a connection");
    let mut block = vec![0; BLOCK];
    let began = Instant::now();
    while stream.read(&mut block).expect("receive") > 0 {}
    let took = began.elapsed();
    sender.join().expect("the sender");
    took
}

/// On `streams` streams of one connection, each a part of the bytes.
pub async fn iroh(bytes: &Bytes, streams: usize) -> Duration {
    let (server, client) = (endpoint(key()).await, endpoint(key()).await);
    let address = server.addr();
    let part = bytes.len().div_ceil(streams);
    let parts: Vec<Bytes> =
        (0..streams).map(|n| bytes.slice((n * part).min(bytes.len())..((n + 1) * part).min(bytes.len()))).collect();
    let serving = tokio::spawn(async move {
        let connection = server.accept().await.expect("open").await.expect("a connection");
        let mut sending = tokio::task::JoinSet::new();
        for part in parts {
            let mut stream = connection.open_uni().await.expect("a stream");
            sending.spawn(async move {
                for at in (0..part.len()).step_by(BLOCK) {
                    stream.write_chunk(part.slice(at..(at + BLOCK).min(part.len()))).await.expect("send");
                }
                stream.finish().expect("open");
                // Until all was received.
                let _ = stream.stopped().await;
            });
        }
        sending.join_all().await;
        server
    });
    let connection = client.connect(address, CHUNKS).await.expect("a connection");
    let began = Instant::now();
    let mut receiving = tokio::task::JoinSet::new();
    for _ in 0..streams {
        let mut stream = connection.accept_uni().await.expect("a stream");
        receiving.spawn(async move {
            let mut block = vec![0; BLOCK];
            while stream.read(&mut block).await.expect("receive").is_some() {}
        });
    }
    receiving.join_all().await;
    let took = began.elapsed();
    serving.await.expect("the sender").close().await;
    client.close().await;
    took
}

pub async fn quinn(bytes: &Bytes) -> Duration {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let certificate = made.cert.der().clone();
    let private = rustls::pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let config = quinn::ServerConfig::with_single_cert(vec![certificate.clone()], private).expect("a certificate");
    let server = quinn::Endpoint::server(config, (Ipv4Addr::LOCALHOST, 0).into()).expect("a socket");
    let address = server.local_addr().expect("an address");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).expect("a certificate");
    let mut client = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).expect("a socket");
    client.set_default_client_config(quinn::ClientConfig::with_root_certificates(Arc::new(roots)).expect("roots"));
    let sent = bytes.clone();
    let serving = tokio::spawn(async move {
        let connection = server.accept().await.expect("open").await.expect("a connection");
        let mut stream = connection.open_uni().await.expect("a stream");
        for at in (0..sent.len()).step_by(BLOCK) {
            stream.write_chunk(sent.slice(at..(at + BLOCK).min(sent.len()))).await.expect("send");
        }
        stream.finish().expect("open");
        // Until all was received.
        let _ = stream.stopped().await;
    });
    let connection = client.connect(address, "localhost").expect("a name").await.expect("a connection");
    let began = Instant::now();
    let mut stream = connection.accept_uni().await.expect("a stream");
    let mut block = vec![0; BLOCK];
    while stream.read(&mut block).await.expect("receive").is_some() {}
    let took = began.elapsed();
    serving.await.expect("the sender");
    took
}
