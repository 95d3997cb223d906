//! HTTP/3: the same answers over QUIC.

use std::future::poll_fn;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use h3::client::{RequestStream, SendRequest};
use http::{HeaderMap, Method, Request};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, Endpoint};
use shoal_node::http::{Cache, HttpOptions, HttpServer, Limits};
use shoal_wire::nix::hash::{Hash, sha256};
use shoal_wire::nix::store_path::StoreDir;
use tokio::time::timeout;

use crate::certificates::{Authority, Files};
use crate::lab::{Lab, PATIENCE, Wanted, answer, file_nar, noise};
use crate::tls::{self, identity};

type Stream = RequestStream<h3_quinn::BidiStream<Bytes>, Bytes>;

struct Client {
    requests: SendRequest<h3_quinn::OpenStreams, Bytes>,
    /// Ends with the connection.
    driver: tokio::task::JoinHandle<h3::error::ConnectionError>,
    quic: Connection,
    _endpoint: Endpoint,
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Vec<u8>,
}

fn lab(files: &Files, limits: Limits) -> Lab {
    Lab::with(Wanted { identity: identity(files), http3: true, takes_uploads: true, limits, ..Wanted::default() })
}

async fn connect(lab: &Lab, authority: &Authority) -> Option<Client> {
    let mut endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let config = (*tls::client(authority, &["h3"])).clone();
    endpoint.set_default_client_config(ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap())));
    let quic = timeout(PATIENCE, endpoint.connect(lab.address(), "localhost").unwrap()).await.unwrap().ok()?;
    let (mut connection, requests) = h3::client::new(h3_quinn::Connection::new(quic.clone())).await.unwrap();
    let driver = tokio::spawn(async move { poll_fn(|context| connection.poll_close(context)).await });
    Some(Client { requests, driver, quic, _endpoint: endpoint })
}

impl Client {
    async fn begin(&mut self, method: Method, path: &str, headers: &[(&str, String)]) -> Stream {
        let mut request = Request::builder().method(method).uri(format!("https://localhost{path}"));
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        self.requests.send_request(request.body(()).unwrap()).await.unwrap()
    }

    async fn ask(&mut self, method: Method, path: &str, headers: &[(&str, String)]) -> Answer {
        let mut stream = self.begin(method, path, headers).await;
        stream.end().await;
        hear(stream).await
    }

    async fn get(&mut self, path: &str) -> Answer {
        self.ask(Method::GET, path, &[]).await
    }

    /// `len`: what is said of the body.
    async fn put(&mut self, lab: &Lab, path: &str, len: usize, body: &[u8]) -> u16 {
        let headers = [("authorization", format!("Bearer {}", lab.token)), ("content-length", len.to_string())];
        let mut stream = self.begin(Method::PUT, path, &headers).await;
        // The server may have heard enough before the end.
        let _ = stream.send_data(Bytes::copy_from_slice(body)).await;
        stream.end().await;
        hear(stream).await.status
    }
}

trait End {
    /// The server may have answered already, and then wants no end.
    async fn end(&mut self);
}

impl End for Stream {
    async fn end(&mut self) {
        let _ = self.finish().await;
    }
}

async fn hear(mut stream: Stream) -> Answer {
    let head = timeout(PATIENCE, stream.recv_response()).await.expect("no answer").unwrap();
    let mut body = Vec::new();
    while let Some(mut piece) = timeout(PATIENCE, stream.recv_data()).await.expect("the body stands still").unwrap() {
        body.extend_from_slice(&piece.copy_to_bytes(piece.remaining()));
    }
    Answer { status: head.status().as_u16(), headers: head.headers().clone(), body }
}

fn with_client(limits: Limits, test: impl AsyncFnOnce(&Lab, Client)) {
    let authority = Authority::make();
    let lab = lab(&Files::of(&authority.pair()), limits);
    lab.runtime.block_on(async { test(&lab, connect(&lab, &authority).await.unwrap()).await });
}

#[test]
fn what_is_there_is_served() {
    with_client(Limits::USUAL, async |lab, mut client| {
        let nar = file_nar(&noise(5 << 20));
        let info = lab.add("noise", &nar);
        let place = format!("/{}.narinfo", info.path.hash_part());
        let narinfo = client.get(&place).await;
        assert_eq!((narinfo.status, &narinfo.headers["content-type"]), (200, &"text/x-nix-narinfo".parse().unwrap()));
        let text = String::from_utf8(narinfo.body).unwrap();
        let url = format!("/{}", text.lines().find_map(|line| line.strip_prefix("URL: ")).unwrap());
        let whole = client.get(&url).await;
        assert!(whole.status == 200 && whole.body == nar);
        let part = client.ask(Method::GET, &url, &[("range", "bytes=1000000-1999999".into())]).await;
        assert!(part.status == 206 && part.body == nar[1_000_000..2_000_000]);
        let head = client.ask(Method::HEAD, &url, &[]).await;
        assert_eq!((head.status, head.body.len()), (200, 0));
        assert_eq!(head.headers["content-length"], nar.len().to_string());
        for absent in ["/00000000000000000000000000000000.narinfo", "/nar/../x", "/serve/..%2f..%2fetc/passwd"] {
            let answer = client.get(absent).await;
            assert_eq!((answer.status, &answer.headers["cache-control"]), (404, &"no-store".parse().unwrap()));
        }
        assert_eq!(client.ask(Method::DELETE, "/nix-cache-info", &[]).await.status, 405);
    });
}

#[test]
fn many_requests_at_once_and_one_that_is_not_read() {
    with_client(Limits::USUAL, async |lab, mut client| {
        let nars: Vec<_> = (0..100).map(|n| file_nar(&noise(20_000 + n))).collect();
        let mut streams = Vec::new();
        let large = nar_url(lab, &mut client, "large", &file_nar(&noise(20 << 20))).await;
        let mut unread = client.begin(Method::GET, &large, &[]).await;
        unread.end().await;
        for (n, nar) in nars.iter().enumerate() {
            let url = nar_url(lab, &mut client, &format!("p{n}"), nar).await;
            let mut stream = client.begin(Method::GET, &url, &[]).await;
            stream.end().await;
            streams.push(stream);
        }
        for (stream, nar) in streams.into_iter().zip(&nars) {
            assert!(hear(stream).await.body == *nar);
        }
        assert!(hear(unread).await.body.len() > 20 << 20);
    });
}

async fn nar_url(lab: &Lab, client: &mut Client, name: &str, nar: &[u8]) -> String {
    let info = lab.add(name, nar);
    let narinfo = client.get(&format!("/{}.narinfo", info.path.hash_part())).await;
    let text = String::from_utf8(narinfo.body).unwrap();
    format!("/{}", text.lines().find_map(|line| line.strip_prefix("URL: ")).unwrap())
}

/// Uploads take a token and are what they say, as over TCP.
#[test]
fn uploads_are_taken_and_lies_are_not() {
    with_client(Limits::USUAL, async |lab, mut client| {
        let nar = file_nar(&noise(2 << 20));
        let file = format!("/nar/{}.nar", Hash::sha256(sha256(&nar)).to_nix32());
        assert_eq!(client.ask(Method::PUT, &file, &[]).await.status, 401);
        assert_eq!(client.put(lab, &file, nar.len() - 8, &nar).await, 400, "longer than it says");
        assert_eq!(client.put(lab, &file, nar.len() + 8, &nar).await, 400, "shorter than it says");
        assert_eq!(client.put(lab, &file, nar.len() / 2, &nar[..nar.len() / 2]).await, 400, "half of a NAR");
        assert_eq!(client.ask(Method::HEAD, &file, &[]).await.status, 404);
        assert_eq!(client.put(lab, &file, nar.len(), &nar).await, 200);
        assert_eq!(client.ask(Method::HEAD, &file, &[]).await.status, 200);
    });
}

#[test]
fn clients_on_tcp_are_told_of_it() {
    let authority = Authority::make();
    let files = Files::of(&authority.pair());
    for http3 in [true, false] {
        let lab = Lab::with(Wanted { identity: identity(&files), http3, ..Wanted::default() });
        let mut stream = tls::connect(&lab, &tls::client(&authority, &[])).unwrap();
        write!(stream, "GET /healthz HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n").unwrap();
        let told = answer(stream, false).unwrap().header("alt-svc").map(str::to_owned);
        let expected = format!("h3=\":{}\"; ma=3600", lab.address().port());
        assert_eq!(told, http3.then_some(expected));
    }
}

#[test]
fn who_does_not_believe_the_certificate_gets_nothing_and_a_renewed_one_counts() {
    let (first, second) = (Authority::make(), Authority::make());
    let files = Files::of(&first.pair());
    let lab = lab(&files, Limits::USUAL);
    lab.runtime.block_on(async {
        let mut old = connect(&lab, &first).await.unwrap();
        assert!(connect(&lab, &second).await.is_none());
        files.write(&second.pair());
        assert_eq!(connect(&lab, &second).await.unwrap().get("/healthz").await.status, 200);
        assert_eq!(old.get("/healthz").await.status, 200);
    });
}

#[test]
fn a_stopping_server_ends_what_is_under_way() {
    with_client(Limits::USUAL, async |lab, mut client| {
        let nar = file_nar(&noise(20 << 20));
        let url = nar_url(lab, &mut client, "large", &nar).await;
        let mut stream = client.begin(Method::GET, &url, &[]).await;
        stream.end().await;
        let head = stream.recv_response().await.unwrap();
        assert_eq!(head.status(), 200);
        lab.server.stop_accepting();
        let mut body = Vec::new();
        while let Some(mut piece) = timeout(PATIENCE, stream.recv_data()).await.expect("it stands still").unwrap() {
            body.extend_from_slice(&piece.copy_to_bytes(piece.remaining()));
        }
        assert!(body == nar);
        timeout(PATIENCE, client.driver).await.expect("the connection stays").unwrap();
    });
}

#[test]
fn a_client_that_takes_nothing_is_hung_up_on() {
    let limits = Limits { piece: Duration::from_millis(300), ..Limits::USUAL };
    with_client(limits, async |lab, mut client| {
        let url = nar_url(lab, &mut client, "large", &file_nar(&noise(64 << 20))).await;
        let mut stream = client.begin(Method::GET, &url, &[]).await;
        stream.end().await;
        // That it asks for small things meanwhile does not help it.
        let asks = async {
            loop {
                let request = Request::get("https://localhost/healthz").body(()).unwrap();
                let Ok(mut small) = client.requests.send_request(request).await else { return };
                small.end().await;
                if small.recv_response().await.is_err() {
                    return;
                }
                tokio::time::sleep(limits.piece / 10).await;
            }
        };
        timeout(PATIENCE, asks).await.expect("the connection stays");
    });
}

/// Bytes that are no QUIC, and connections that are no HTTP/3.
#[test]
fn others_are_served_whatever_comes() {
    with_client(Limits::USUAL, async |lab, mut client| {
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        for len in [0, 1, 20, 1200, 1400] {
            socket.send_to(&noise(1400)[..len], lab.address()).await.unwrap();
        }
        let (mut sending, _receiving) = client.quic.open_bi().await.unwrap();
        sending.write_all(&noise(5000)).await.unwrap();
        let mut uni = client.quic.open_uni().await.unwrap();
        uni.write_all(&[0, 4, 1, 0xff]).await.unwrap();
        // A second stream for settings is an error of the whole connection.
        timeout(PATIENCE, client.quic.closed()).await.expect("the connection stays");
        assert!(
            client.requests.send_request(Request::get("https://localhost/healthz").body(()).unwrap()).await.is_err()
        );
    });
}

/// A port that is asked for by its number is free for both or it is an error that says so.
#[test]
fn a_port_that_is_taken_says_so() {
    // Of which only the half is taken that this is about.
    let taken = std::iter::repeat_with(|| std::net::UdpSocket::bind("127.0.0.1:0").unwrap())
        .find(|socket| std::net::TcpListener::bind(socket.local_addr().unwrap()).is_ok())
        .unwrap();
    let authority = Authority::make();
    let lab = lab(&Files::of(&authority.pair()), Limits::USUAL);
    let options = HttpOptions {
        listen: taken.local_addr().unwrap(),
        identity: identity(&Files::of(&authority.pair())),
        http3: true,
        limits: Limits::USUAL,
    };
    let cache = Arc::new(Cache::new(lab.store.clone(), StoreDir::default()));
    let refused = lab.runtime.block_on(async { HttpServer::open(&options, cache).err().unwrap() });
    assert!(format!("{refused:#}").contains("for HTTP/3"), "{refused:#}");
}
