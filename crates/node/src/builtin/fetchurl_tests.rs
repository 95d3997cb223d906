//! Downloads from servers on the loopback, good and bad ones.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use expect_test::{Expect, expect};
use shoal_wire::nix::hash::{Hash, HashAlgo};
use shoal_wire::nix::nar::write::NarWriter;

use super::*;

/// As long as a busy machine may need.
const ENOUGH: Patience = Patience { connect: Duration::from_secs(10), stalled: Duration::from_secs(10) };
pub(super) const FEW: Retries = Retries {
    attempts: 3,
    delay: Duration::from_millis(1),
    delay_overloaded: Duration::from_millis(1),
    delay_max: Duration::from_millis(1),
};

/// Request line and headers, and how many requests came before it.
struct Request {
    text: String,
    number: usize,
}

impl Request {
    fn path(&self) -> &str {
        self.text.split(' ').nth(1).unwrap()
    }

    fn header(&self, name: &str) -> Option<&str> {
        let lines = self.text.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }
}

/// A server that answers each connection's only request with what `answer` writes.
struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn new(answer: impl Fn(&Request, &mut TcpStream) -> io::Result<()> + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, answer) = (requests.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (seen, answer, mut stream) = (seen.clone(), answer.clone(), stream.unwrap());
                std::thread::spawn(move || {
                    let text = head(&mut stream);
                    let mut seen = seen.lock().unwrap();
                    let request = Request { text: text.clone(), number: seen.len() };
                    seen.push(text);
                    drop(seen);
                    // The client may hang up first.
                    let _ = answer(&request, &mut stream);
                });
            }
        });
        Server { address, requests }
    }

    fn saying(answer: impl Into<Vec<u8>>) -> Server {
        let answer = answer.into();
        Server::new(move |_, stream| stream.write_all(&answer))
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

/// Reads a request up to the empty line.
pub(super) fn head(stream: &mut impl Read) -> String {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    lines.by_ref().take_while(|line| !line.is_empty()).map(|line| line + "\n").collect()
}

fn ok(body: &[u8]) -> Vec<u8> {
    [format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes(), body].concat()
}

pub(super) struct Lab {
    dir: tempfile::TempDir,
    pub(super) payload: Payload,
    patience: Patience,
}

impl Lab {
    pub(super) fn new(env: &[(&str, &str)]) -> Lab {
        let dir = tempfile::tempdir().unwrap();
        let env = env.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec())).collect();
        let outputs = [("out".to_owned(), dir.path().join("out"))].into();
        let payload = Payload::new("fetched", &BTreeMap::new(), env, outputs, dir.path());
        Lab { dir, payload: Payload { fixed_output: true, ..payload }, patience: ENOUGH }
    }

    pub(super) fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    pub(super) fn build(&self) -> Result<(), String> {
        let built = build_with(&self.payload, self.patience, FEW).map_err(|failure| failure.to_string());
        assert_eq!(
            built.is_ok(),
            self.out().symlink_metadata().is_ok(),
            "an output exists if and only if all went well"
        );
        built
    }
}

fn fetch(url: &str) -> Result<Vec<u8>, String> {
    fetch_with(&[("url", url)])
}

fn fetch_with(env: &[(&str, &str)]) -> Result<Vec<u8>, String> {
    let lab = Lab::new(env);
    lab.build().map(|()| fs::read(lab.out()).unwrap())
}

/// Compares a failure, in which the server's address and the lab's directory are left out.
fn refuses(server: &Server, path: &str, expected: Expect) {
    let error = fetch(&server.url(path)).unwrap_err();
    expected.assert_eq(&error.replace(&server.address.to_string(), "server"));
}

fn nar() -> Vec<u8> {
    let mut nar = NarWriter::new(Vec::new());
    nar.directory(b"").unwrap();
    nar.regular(b"empty", false, 0).unwrap();
    nar.symlink(b"link", b"/nowhere").unwrap();
    nar.regular(b"run", true, 3).unwrap();
    nar.contents(b"#!x").unwrap();
    nar.directory(b"sub").unwrap();
    nar.regular(b"file", false, 5).unwrap();
    nar.contents(b"hello").unwrap();
    nar.end_directory().unwrap();
    nar.end_directory().unwrap();
    nar.finish().unwrap()
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn a_file_is_what_was_sent() {
    let server = Server::saying(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\n\x1f\x8b\0");
    assert_eq!(fetch(&server.url("/a?b#c")).unwrap(), b"\x1f\x8b\0");
    let request = server.requests().remove(0);
    let request = Request { text: request, number: 0 };
    assert_eq!(request.path(), "/a?b");
    assert_eq!(request.header("Accept-Encoding"), None);
    assert_eq!(request.header("Authorization"), None);
    assert_eq!(request.header("Host"), Some(server.address.to_string().as_str()));
}

#[test]
fn a_body_may_be_empty_chunked_or_end_with_the_connection() {
    assert_eq!(fetch(&Server::saying(ok(b"")).url("/")).unwrap(), b"");
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1;x=y\r\nd\r\n0\r\n\r\n";
    assert_eq!(fetch(&Server::saying(chunked).url("/")).unwrap(), b"abcd");
    assert_eq!(fetch(&Server::saying("HTTP/1.0 200 OK\r\n\r\nto the end").url("/")).unwrap(), b"to the end");
}

#[test]
fn a_truncated_body_is_an_error() {
    let short = Server::saying("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort");
    refuses(&short, "/x", expect!["unable to download 'http://server/x': Peer disconnected"]);
    assert_eq!(short.requests().len(), 3);
    let chunked = Server::saying("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc");
    refuses(&chunked, "/x", expect!["unable to download 'http://server/x': Peer disconnected"]);
    let reset = Server::new(|_, stream| {
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\npart")?;
        std::thread::sleep(Duration::from_millis(50));
        rustix::net::sockopt::set_socket_linger(&*stream, Some(Duration::ZERO)).map_err(Into::into)
    });
    refuses(&reset, "/x", expect!["unable to download 'http://server/x': Connection reset by peer"]);
}

#[test]
fn an_interrupted_body_begins_again() {
    let server = Server::new(|request, stream| match request.number {
        0 => stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nOLD"),
        _ => stream.write_all(&ok(b"0123456789")),
    });
    assert_eq!(fetch(&server.url("/")).unwrap(), b"0123456789");
}

#[test]
fn an_interrupted_body_is_continued_where_ranges_are_offered() {
    let server = Server::new(|request, stream| match request.header("Range") {
        None => stream.write_all(b"HTTP/1.1 200 OK\r\nAccept-Ranges: bytes\r\nContent-Length: 10\r\n\r\n0123"),
        Some("bytes=4-") => stream.write_all(
            b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 4-9/10\r\nContent-Length: 6\r\n\r\n456789",
        ),
        Some(other) => panic!("unexpected range {other}"),
    });
    assert_eq!(fetch(&server.url("/")).unwrap(), b"0123456789");
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn broken_promises_of_ranges_do_no_harm() {
    let whole_again = Server::new(|request, stream| match request.number {
        0 => stream.write_all(b"HTTP/1.1 200 OK\r\nAccept-Ranges: bytes\r\nContent-Length: 10\r\n\r\nOLD"),
        _ => stream.write_all(&ok(b"0123456789")),
    });
    assert_eq!(fetch(&whole_again.url("/")).unwrap(), b"0123456789");
    let other_part = Server::new(|request, stream| match request.number {
        0 => stream.write_all(b"HTTP/1.1 200 OK\r\nAccept-Ranges: bytes\r\nContent-Length: 10\r\n\r\n0123"),
        _ => stream.write_all(b"HTTP/1.1 206 X\r\nContent-Range: bytes 5-9/10\r\nContent-Length: 5\r\n\r\n56789"),
    });
    refuses(
        &other_part,
        "/",
        expect!["unable to download 'http://server/': the server sent another range than it was asked for"],
    );
}

#[test]
fn refusals_are_final_or_not() {
    let not_found = Server::saying("HTTP/1.1 404 Not Found\r\nContent-Length: 8\r\n\r\nnothing\n");
    refuses(
        &not_found,
        "/x",
        expect![[r#"
        unable to download 'http://server/x': HTTP error 404

        response body:

        nothing"#]],
    );
    assert_eq!(not_found.requests().len(), 1);
    let long_page = format!("HTTP/1.1 403 Forbidden\r\nContent-Length: 5000\r\n\r\n{}", "x".repeat(5000));
    refuses(&Server::saying(long_page), "/x", expect!["unable to download 'http://server/x': HTTP error 403"]);
    let down = Server::saying("HTTP/1.1 503 Busy\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n");
    refuses(&down, "/x", expect!["unable to download 'http://server/x': HTTP error 503"]);
    assert_eq!(down.requests().len(), 3);
    let soon_up = Server::new(|request, stream| match request.number {
        0 => stream.write_all(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n"),
        1 => Ok(()),
        _ => stream.write_all(&ok(b"up")),
    });
    assert_eq!(fetch(&soon_up.url("/")).unwrap(), b"up");
}

#[test]
fn a_silent_server_is_given_up() {
    const STALLED: Duration = Duration::from_millis(200);
    let server = Server::new(|request, stream| {
        if request.path() == "/body" {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")?;
        }
        std::thread::sleep(STALLED * 2);
        Ok(())
    });
    for path in ["/", "/body"] {
        let mut lab = Lab::new(&[("url", &server.url(path))]);
        lab.patience.stalled = STALLED;
        let error = lab.build().unwrap_err();
        assert!(error.ends_with(": no data for 200ms"), "{error}");
    }
    assert_eq!(server.requests().len(), 2 * FEW.attempts as usize);
}

#[test]
fn a_slow_server_is_waited_for() {
    const STALLED: Duration = Duration::from_secs(2);
    let server = Server::new(|_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n")?;
        (0..6).try_for_each(|i| {
            std::thread::sleep(STALLED / 5);
            stream.write_all(&[b'0' + i])
        })
    });
    let mut lab = Lab::new(&[("url", &server.url("/"))]);
    lab.patience.stalled = STALLED;
    lab.build().unwrap();
    assert_eq!(fs::read(lab.out()).unwrap(), b"012345");
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn nobody_listening_is_an_error() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = fetch(&format!("http://{gone}/")).unwrap_err();
    assert_eq!(error, format!("unable to download 'http://{gone}/': Connection refused"));
    let error = fetch("http://host.invalid/").unwrap_err();
    assert!(error.starts_with("unable to download 'http://host.invalid/': "), "{error}");
}

#[test]
fn redirects_are_followed_to_the_end() {
    let end = Server::saying(ok(b"end"));
    let to = end.url("/end");
    let server = Server::new(move |request, stream| match request.path() {
        "/start/here" => stream.write_all(b"HTTP/1.1 302 Found\r\nLocation: ../next?x\r\nContent-Length: 2\r\n\r\nno"),
        "/next?x" => stream.write_all(format!("HTTP/1.1 308 Moved\r\nLocation: {to}\r\n\r\n").as_bytes()),
        "/loop" => stream.write_all(b"HTTP/1.1 301 Moved\r\nLocation: /loop\r\nContent-Length: 0\r\n\r\n"),
        "/file" => stream.write_all(b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n"),
        _ => stream.write_all(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n"),
    });
    assert_eq!(fetch(&server.url("/start/here")).unwrap(), b"end");
    refuses(&server, "/loop", expect!["unable to download 'http://server/loop': more than 10 redirects"]);
    refuses(&server, "/file", expect!["unable to download 'http://server/file': protocol 'file' is not supported"]);
    refuses(&server, "/nowhere", expect!["unable to download 'http://server/nowhere': HTTP error 302"]);
}

#[test]
fn logins_come_from_the_url_or_the_netrc_and_do_not_travel() {
    let other = Server::saying(ok(b"x"));
    let to = other.url("/");
    let to = to.replace("127.0.0.1", "localhost");
    let server = Server::new(move |_, stream| {
        stream.write_all(format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n").as_bytes())
    });
    let logins = |server: &Server| -> Vec<Option<String>> {
        let requests = server.requests().into_iter().map(|text| Request { text, number: 0 });
        requests.map(|request| request.header("Authorization").map(str::to_owned)).collect()
    };
    let url = server.url("/");
    fetch(&url.replace("http://", "http://aladdin:opensesame@")).unwrap();
    let lab = Lab::new(&[("url", &url)]);
    fs::write(&lab.payload.netrc_file, "machine 127.0.0.1 login me password secret").unwrap();
    lab.build().unwrap();
    let expected = ["Basic YWxhZGRpbjpvcGVuc2VzYW1l", "Basic bWU6c2VjcmV0"].map(|login| Some(login.to_owned()));
    assert_eq!(logins(&server), expected);
    assert_eq!(logins(&other), [None, None]);
    let closed = Server::saying("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n");
    let error = fetch(&closed.url("/").replace("http://", "http://me:secret@")).unwrap_err();
    assert!(!error.contains("secret") && error.ends_with("HTTP error 401"), "{error}");
}

#[test]
fn plain_urls_are_asked_of_the_proxy_whole() {
    let proxy = Server::saying(ok(b"by proxy"));
    let proxy_url = proxy.url("").replace("http://", "http://u:p@");
    let env = [("url", "http://host.invalid:81/a?b"), ("http_proxy", proxy_url.as_str())];
    assert_eq!(fetch_with(&env).unwrap(), b"by proxy");
    let request = Request { text: proxy.requests().remove(0), number: 0 };
    assert_eq!(request.path(), "http://host.invalid:81/a?b");
    assert_eq!(request.header("Host"), Some("host.invalid:81"));
    assert_eq!(request.header("Proxy-Authorization"), Some("Basic dTpw"));

    let direct = Server::saying(ok(b"direct"));
    let env = [("url", &*direct.url("/")), ("http_proxy", proxy_url.as_str()), ("no_proxy", "127.0.0.0/8")];
    assert_eq!(fetch_with(&env).unwrap(), b"direct");
}

#[test]
fn the_executable_bit_is_set_on_demand() {
    let server = Server::saying(ok(b"#!x"));
    let mode = |executable: &str| {
        let lab = Lab::new(&[("url", &server.url("/")), ("executable", executable)]);
        lab.build().unwrap();
        fs::metadata(lab.out()).unwrap().permissions().mode() & 0o777
    };
    assert_eq!(mode("1"), 0o755);
    assert_eq!(mode("") & 0o111, 0);
}

#[test]
fn an_unpacked_nar_is_a_tree() {
    for (path, body) in
        [("/x.nar.xz", xz(&nar())), ("/x.nar", nar()), ("/y.nar.xz", [xz(&nar()[..50]), xz(&nar()[50..])].concat())]
    {
        let server = Server::saying(ok(&body));
        let lab = Lab::new(&[("url", &server.url(path)), ("unpack", "1")]);
        lab.build().unwrap();
        assert_eq!(crate::dump::dump(&lab.out(), Vec::new()).unwrap(), nar());
    }
}

#[test]
fn what_is_no_nar_is_refused() {
    let unpack = |path: &str, body: &[u8]| {
        let server = Server::saying(ok(body));
        let lab = Lab::new(&[("url", &server.url(path)), ("unpack", "1")]);
        (lab.build().unwrap_err().replace(lab.dir.path().to_str().unwrap(), ""), server.requests().len())
    };
    let (error, requests) = unpack("/x.nar", b"hello");
    expect!["unable to unpack the download into '/out': not a NAR at offset 0: expected the NAR magic"]
        .assert_eq(&error);
    assert_eq!(requests, 1);
    let (error, _) = unpack("/x.nar", &nar()[..nar().len() - 20]);
    expect!["unable to unpack the download into '/out': NAR ends at offset 1036 before it is complete"]
        .assert_eq(&error);
    let (error, _) = unpack("/x.nar.xz", &nar());
    expect!["unable to unpack the download into '/out': stream/file format not recognized"].assert_eq(&error);
    unpack("/x.nar.xz", &xz(&nar())[..100]);
}

#[test]
fn an_interrupted_nar_begins_again() {
    let nar = nar();
    let server = Server::new(move |request, stream| match request.number {
        0 => stream.write_all(&ok(&nar)[..600]),
        _ => stream.write_all(&ok(&nar)),
    });
    let lab = Lab::new(&[("url", &server.url("/")), ("unpack", "1"), ("executable", "1")]);
    lab.build().unwrap();
    assert_eq!(fs::read(lab.out().join("sub/file")).unwrap(), b"hello");
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn mirrors_are_asked_by_hash_first() {
    let hash = Hash::of(HashAlgo::Sha256, b"x");
    let path = format!("/base/sha256/{}", hash.to_base16());
    let wanted = path.clone();
    let mirror = Server::new(move |request, stream| match request.path() == wanted {
        true => stream.write_all(&ok(b"x")),
        false => stream.write_all(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n"),
    });
    let origin = Server::saying(ok(b"x"));
    let mut lab = Lab::new(&[("url", &origin.url("/x"))]);
    lab.payload.flat_hash = Some(hash);
    lab.payload.hashed_mirrors = vec![mirror.url(""), mirror.url("/base")];
    lab.build().unwrap();
    assert_eq!((mirror.requests().len(), origin.requests().len()), (2, 0));

    lab.payload.hashed_mirrors.truncate(1);
    fs::remove_file(lab.out()).unwrap();
    lab.build().unwrap();
    assert_eq!((mirror.requests().len(), origin.requests().len()), (3, 1));
}

#[test]
fn files_are_read_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a b");
    fs::write(&path, "here").unwrap();
    assert_eq!(fetch(&format!("file://{}/a%20b", dir.path().display())).unwrap(), b"here");
    let error = fetch("file:///nowhere").unwrap_err();
    expect!["unable to download 'file:///nowhere': Could not open file /nowhere: No such file or directory"]
        .assert_eq(&error);
    fetch(&format!("file://{}", dir.path().display())).unwrap_err();
}

#[test]
fn only_derivations_of_known_content_may_fetch() {
    let mut lab = Lab::new(&[("url", "http://host.invalid/")]);
    lab.payload.fixed_output = false;
    expect!["'builtin:fetchurl' must be a fixed-output or impure derivation"].assert_eq(&lab.build().unwrap_err());
    expect!["attribute 'url' missing"].assert_eq(&Lab::new(&[]).build().unwrap_err());
    expect!["unable to download 'x': URL has no scheme"].assert_eq(&fetch("x").unwrap_err());
    expect!["unable to download 's3://x/y': protocol 's3' is not supported"].assert_eq(&fetch("s3://x/y").unwrap_err());
    expect!["unable to download 'https://x/': there are no CA certificates to check the server's with"]
        .assert_eq(&fetch("https://x/").unwrap_err());
}

#[test]
fn a_big_body_passes_through_little_memory() {
    const BODY_BYTES: usize = 256 << 20;
    const GROWTH_KB_MAX: u64 = 48 << 10;
    let server = Server::new(|_, stream| {
        stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {BODY_BYTES}\r\n\r\n").as_bytes())?;
        let block = [7; 64 << 10];
        (0..BODY_BYTES / block.len()).try_for_each(|_| stream.write_all(&block))
    });
    let lab = Lab::new(&[("url", &server.url("/"))]);
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = peak_kb();
    lab.build().unwrap();
    assert_eq!(fs::metadata(lab.out()).unwrap().len(), BODY_BYTES as u64);
    let growth = peak_kb() - before;
    assert!(growth < GROWTH_KB_MAX, "{growth} KiB more");
}

/// The most memory this process had since it was last reset, in KiB.
fn peak_kb() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
