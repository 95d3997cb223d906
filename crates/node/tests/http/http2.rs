//! HTTP/2, by prior knowledge and over TLS: many requests on one connection, and clients that misuse that.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::SendStream;
use h2::client::{Connection, ResponseFuture, SendRequest};
use http::{Method, Request, Response};
use rustls::pki_types::ServerName;
use shoal_node::http::Limits;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::certificates::{Authority, Files};
use crate::lab::{Lab, PATIENCE, Wanted, file_nar, nar_url, noise, tree_nar, words};
use crate::tls::{self, identity};

struct Client {
    requests: SendRequest<Bytes>,
    ended: JoinHandle<Result<(), h2::Error>>,
}

/// A client that lets each stream and the connection run this far ahead.
async fn over<S>(stream: S, stream_window: u32) -> Client
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(stream_window).initial_connection_window_size(1 << 30);
    let (requests, connection): (_, Connection<S>) = builder.handshake(stream).await.unwrap();
    Client { requests, ended: tokio::spawn(connection) }
}

async fn in_clear(lab: &Lab, stream_window: u32) -> Client {
    over(TcpStream::connect(lab.address()).await.unwrap(), stream_window).await
}

impl Client {
    async fn ask(&mut self, method: Method, path: &str) -> Result<Response<h2::RecvStream>, h2::Error> {
        let request = Request::builder().method(method).uri(format!("http://here{path}")).body(()).unwrap();
        self.requests = self.requests.clone().ready().await?;
        let (response, _) = self.requests.send_request(request, true)?;
        timeout(PATIENCE, response).await.expect("no answer")
    }

    /// The head of an upload; its body is still to be sent.
    async fn begin_upload(&mut self, lab: &Lab, path: &str, len: usize) -> (ResponseFuture, SendStream<Bytes>) {
        let request = Request::put(format!("http://here{path}"))
            .header("authorization", format!("Bearer {}", lab.token))
            .header("content-length", len);
        self.requests = self.requests.clone().ready().await.unwrap();
        self.requests.send_request(request.body(()).unwrap(), false).unwrap()
    }

    async fn get(&mut self, path: &str) -> (u16, Vec<u8>) {
        let response = self.ask(Method::GET, path).await.unwrap();
        let status = response.status().as_u16();
        (status, whole(response.into_body()).await.unwrap())
    }
}

/// The body to its end, with room made for what follows.
async fn whole(mut body: h2::RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut all = Vec::new();
    while let Some(piece) = timeout(PATIENCE, body.data()).await.expect("the body stands still") {
        let piece = piece?;
        body.flow_control().release_capacity(piece.len())?;
        all.extend_from_slice(&piece);
    }
    Ok(all)
}

/// More NARs at once than any client asks for.
async fn many_at_once(lab: &Lab, mut client: Client) {
    const STREAMS: usize = 100;
    let nars: Vec<_> = (0..STREAMS).map(|n| file_nar(&[words(10_000 * (n % 10)), noise(1000 + n)].concat())).collect();
    let urls: Vec<_> = nars.iter().enumerate().map(|(n, nar)| nar_url(lab, &lab.add(&format!("p{n}"), nar))).collect();
    let mut asked = Vec::new();
    for url in &urls {
        let request = Request::get(format!("http://here{url}")).body(()).unwrap();
        client.requests = client.requests.ready().await.unwrap();
        asked.push(client.requests.send_request(request, true).unwrap().0);
    }
    // All are under way before the first one is read.
    let mut bodies = Vec::new();
    for response in asked {
        let response = timeout(PATIENCE, response).await.expect("no answer").unwrap();
        assert_eq!(response.status(), 200);
        bodies.push(response.into_body());
    }
    for (body, nar) in bodies.into_iter().zip(&nars) {
        assert!(whole(body).await.unwrap() == *nar);
    }
    let head = client.ask(Method::HEAD, &urls[7]).await.unwrap();
    assert_eq!(head.headers()["content-length"], nars[7].len().to_string());
    assert!(whole(head.into_body()).await.unwrap().is_empty());
    assert_eq!(client.get("/nar/x.nar").await.0, 404);
}

#[test]
fn a_hundred_requests_at_once_in_clear() {
    let lab = Lab::with(Wanted::default());
    lab.runtime.block_on(async { many_at_once(&lab, in_clear(&lab, 65_535).await).await });
}

#[test]
fn a_hundred_requests_at_once_over_tls() {
    let authority = Authority::make();
    let files = Files::of(&authority.pair());
    let lab = Lab::with(Wanted::default());
    let secure = Lab::with(Wanted { identity: identity(&files), ..Wanted::default() });
    // Paths are added to both by what the client in clear is told; names and hashes are the same.
    secure.runtime.block_on(async {
        let tls = tokio_rustls::TlsConnector::from(tls::client(&authority, &["h2"]));
        let stream = TcpStream::connect(secure.address()).await.unwrap();
        let stream = tls.connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let mut client = over(stream, 65_535).await;
        let nar = file_nar(&noise(500_000));
        let info = secure.add("secret", &nar);
        lab.add("secret", &nar);
        assert!(client.get(&nar_url(&lab, &info)).await.1 == nar);
        for _ in 0..100 {
            assert_eq!(client.get("/healthz").await, (200, b"ok\n".to_vec()));
        }
    });
}

/// A stream that is not read holds up no other one of its connection.
#[test]
fn a_stream_that_stands_still_stands_alone() {
    let lab = Lab::with(Wanted::default());
    let (large, small) = (file_nar(&noise(8 << 20)), file_nar(&noise(400_000)));
    let (large_url, small_url) = (nar_url(&lab, &lab.add("large", &large)), nar_url(&lab, &lab.add("small", &small)));
    lab.runtime.block_on(async {
        let mut client = in_clear(&lab, 65_535).await;
        let mut stalled = Vec::new();
        for _ in 0..20 {
            stalled.push(client.ask(Method::GET, &large_url).await.unwrap().into_body());
        }
        for _ in 0..10 {
            assert!(client.get(&small_url).await.1 == small);
        }
        // What stood still is all there once it is read.
        assert!(whole(stalled.swap_remove(0)).await.unwrap() == large);
    });
}

/// The client lives and asks, but takes nothing of what it asked for.
#[test]
fn a_connection_whose_answers_stand_still_is_hung_up_on() {
    let limits = Limits { piece: Duration::from_millis(300), ..Limits::USUAL };
    let lab = Lab::with(Wanted { limits, ..Wanted::default() });
    let url = nar_url(&lab, &lab.add("large", &file_nar(&noise(8 << 20))));
    lab.runtime.block_on(async {
        let mut client = in_clear(&lab, 65_535).await;
        let body = client.ask(Method::GET, &url).await.unwrap().into_body();
        // Ends only when the server does it: nobody here lets go. That small things are asked for does not help.
        let asks = async {
            while client.ask(Method::GET, "/healthz").await.is_ok() {
                tokio::time::sleep(limits.piece / 10).await;
            }
        };
        timeout(PATIENCE, asks).await.expect("the connection stays");
        drop(body);
    });
    assert_eq!(lab.get("/healthz").status, 200);
    assert_eq!(lab.server.unanswered(), 0);
}

/// The same of answers that are whole in memory, small as they may be, of which not even the first byte is taken, or not
/// the last.
#[test]
fn a_connection_whose_small_answers_stand_still_is_hung_up_on() {
    let limits = Limits { piece: Duration::from_millis(300), ..Limits::USUAL };
    let lab = Lab::with(Wanted { limits, ..Wanted::default() });
    let page = format!("/serve/{}/", lab.add("tree", &tree_nar(&[("file", b"x")], &[])).path.base_name());
    lab.runtime.block_on(async {
        for window in [0, 1] {
            let mut client = in_clear(&lab, window).await;
            let body = client.ask(Method::GET, &page).await.unwrap().into_body();
            // A clean end or a cut, whichever.
            let _ = timeout(PATIENCE, client.ended).await.expect("the connection stays");
            drop(body);
        }
    });
    let deadline = std::time::Instant::now() + PATIENCE;
    while lab.server.unanswered() > 0 {
        assert!(std::time::Instant::now() < deadline, "{} requests stay", lab.server.unanswered());
        std::thread::yield_now();
    }
}

/// Pages, listings and what paths are made of are whole in memory until their clients have them.
#[test]
fn answers_that_nobody_takes_leave_no_room_for_more() {
    let lab = Lab::with(Wanted { answer_bytes: 100, ..Wanted::default() });
    let info = lab.add("tree", &tree_nar(&[("file", &noise(1000))], &[]));
    let (page, hash_part) = (format!("/serve/{}/", info.path.base_name()), info.path.hash_part());
    lab.runtime.block_on(async {
        for path in [page.clone(), format!("/{hash_part}.ls"), format!("/api/v1/pull/{hash_part}")] {
            let mut client = in_clear(&lab, 0).await;
            let taken_by_nobody = client.ask(Method::GET, &path).await.unwrap();
            assert_eq!(taken_by_nobody.status(), 200, "{path}");
            let mut other = in_clear(&lab, 65_535).await;
            assert_eq!(other.get(&page).await.0, 503, "{path}");
            drop(taken_by_nobody);
            let deadline = tokio::time::Instant::now() + PATIENCE;
            while other.get(&page).await.0 == 503 {
                assert!(tokio::time::Instant::now() < deadline, "{path} takes its room for ever");
            }
        }
    });
}

/// Uploads that wait for their turn, with all that a stream may run ahead, do not keep one of the same connection from
/// its end.
#[test]
fn uploads_that_wait_hold_up_no_other() {
    // Those of one token.
    const TURNS: usize = 48;
    let lab = Lab::with(Wanted { takes_uploads: true, ..Wanted::default() });
    let nar = file_nar(&noise(2 << 20));
    lab.runtime.block_on(async {
        let (mut others, mut client) = (in_clear(&lab, 65_535).await, in_clear(&lab, 65_535).await);
        let mut held = Vec::new();
        for n in 1..TURNS {
            held.push(others.begin_upload(&lab, &format!("/nar/o{n}.nar"), 1 << 30).await);
        }
        until_unanswered(&lab, TURNS - 1).await;
        let (response, mut body) = client.begin_upload(&lab, "/nar/first.nar", nar.len()).await;
        // Bytes are only taken of one that has its turn; until then another could get it.
        body.send_data(Bytes::copy_from_slice(&nar[..1000]), false).unwrap();
        timeout(PATIENCE, has_received(&lab)).await.expect("the first upload gets no turn");
        for n in 1..25 {
            let (response, mut body) = client.begin_upload(&lab, &format!("/nar/w{n}.nar"), nar.len()).await;
            body.send_data(Bytes::copy_from_slice(&nar[..1 << 20]), false).unwrap();
            held.push((response, body));
        }
        until_unanswered(&lab, TURNS + 24).await;
        body.send_data(Bytes::from(nar).slice(1000..), true).unwrap();
        let answer = timeout(PATIENCE / 4, response).await.expect("an upload stands still").unwrap();
        assert_eq!(answer.status(), 200);
    });
}

/// Waits until some of an upload was taken.
async fn has_received(lab: &Lab) {
    while lab.get("/metrics").text().lines().any(|line| line == "shoal_http_received_bytes_total 0") {
        tokio::task::yield_now().await;
    }
}

async fn until_unanswered(lab: &Lab, requests: usize) {
    let reached = async {
        while lab.server.unanswered() < requests as u64 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, reached).await.expect("requests do not arrive");
}

#[test]
fn a_stopping_server_says_goodbye_and_ends_what_is_under_way() {
    let lab = Lab::with(Wanted::default());
    let nar = file_nar(&noise(8 << 20));
    let url = nar_url(&lab, &lab.add("large", &nar));
    lab.runtime.block_on(async {
        let mut client = in_clear(&lab, 65_535).await;
        let body = client.ask(Method::GET, &url).await.unwrap().into_body();
        lab.server.stop_accepting();
        assert!(whole(body).await.unwrap() == nar);
        // A clean end by GOAWAY is no error.
        timeout(PATIENCE, client.ended).await.expect("the connection stays").unwrap().unwrap();
    });
}

#[test]
fn long_lists_of_headers_are_refused() {
    let lab = Lab::with(Wanted::default());
    lab.runtime.block_on(async {
        let mut client = in_clear(&lab, 65_535).await;
        let mut request = Request::get("http://here/healthz");
        for n in 0..60 {
            request = request.header(format!("x-{n}"), "y".repeat(1000));
        }
        let (response, _) = client.requests.send_request(request.body(()).unwrap(), true).unwrap();
        let refused = timeout(PATIENCE, response).await.expect("no answer");
        assert!(refused.map_or(true, |response| response.status() == 431));
        assert_eq!(in_clear(&lab, 65_535).await.get("/healthz").await.0, 200);
    });
}

/// Streams that are opened and given up at once (CVE-2023-44487) end their connection, not the server.
#[test]
fn streams_given_up_by_the_thousand_end_their_connection() {
    let lab = Arc::new(Lab::with(Wanted::default()));
    let url = nar_url(&lab, &lab.add("p", &file_nar(&noise(2 << 20))));
    lab.runtime.block_on(async {
        let mut stream = TcpStream::connect(lab.address()).await.unwrap();
        let mut attack = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        attack.extend(frame(4, 0, 0, b""));
        for n in 0..20_000u32 {
            attack.extend(frame(1, 0x5, 2 * n + 1, &headers(&url)));
            attack.extend(frame(3, 0, 2 * n + 1, &8u32.to_be_bytes()));
        }
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        // The server may hang up before it has heard all of it.
        let _ = timeout(PATIENCE, stream.write_all(&attack)).await.expect("the server neither reads nor hangs up");
        let mut said = Vec::new();
        let _ = timeout(PATIENCE, stream.read_to_end(&mut said)).await.expect("the connection stays");
        assert_eq!(in_clear(&lab, 65_535).await.get("/healthz").await.0, 200);
    });
    let deadline = std::time::Instant::now() + PATIENCE;
    while lab.server.unanswered() > 0 {
        assert!(std::time::Instant::now() < deadline, "{} requests of the attack stay", lab.server.unanswered());
        std::thread::yield_now();
    }
}

/// RFC 9113, section 4.1.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = (payload.len() as u32).to_be_bytes();
    [&len[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// GET by RFC 7541: method and scheme from the static table, path and authority as literals.
fn headers(path: &str) -> Vec<u8> {
    let literal = |index: u8, text: &str| [&[index, text.len() as u8], text.as_bytes()].concat();
    [vec![0x82, 0x86], literal(0x04, path), literal(0x01, "here")].concat()
}
