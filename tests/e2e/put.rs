//! What clients put into a node's binary cache.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use shoal_tests::{Cmd, Machine, Nix, Node, shapes};
use shoal_wire::nix::hash::{Hash, sha256};
use shoal_wire::nix::nar::write::NarWriter;

by_each_version!(copies_to_a_binary_cache, a_push_token_cannot_forge);

fn token(node: &Node, role: &str) -> String {
    node.shoal(&format!("token create --role {role}")).ok().text().to_owned()
}

/// `nix copy --to` the node's cache, with a token in netrc.
fn copy(machine: &Machine, node: &Node, token: &str, parameters: &str) -> Cmd {
    let netrc = machine.path("netrc");
    fs::write(&netrc, format!("machine 127.0.0.1 login any password {token}\n")).unwrap();
    let store = format!("{}?{parameters}", node.ready().http);
    machine.local("nix").arg("copy").arg("--netrc-file").arg(netrc).args(["--to", &store])
}

/// Every compression that Nix offers, and what it does by default; another machine then substitutes what was put.
fn copies_to_a_binary_cache(nix: &Nix) {
    let (here, there) = (Machine::new(nix), Machine::new(nix));
    let node = Node::start(&[]);
    let admin = token(&node, "admin");
    for compression in
        ["", "compression=none", "compression=zstd", "compression=br", "compression=bzip2", "compression=gzip"]
    {
        let salt = format!("salt {compression}");
        let build =
            here.local("nix-build").arg("--no-out-link").args(shapes::args(&here, &salt, &["chain", "twice"])).ok();
        let paths: Vec<String> = build.lines().into_iter().map(String::from).collect();
        copy(&here, &node, &admin, &format!("{compression}&write-nar-listing=1")).args(&paths).ok();
        let key = node.shoal("key show").ok();
        let config = format!("substituters = {}\ntrusted-public-keys = {}\n", node.ready().http, key.text());
        let build = there.local("nix-build").env("NIX_CONFIG", config).args(["--no-out-link", "--max-jobs", "0"]);
        assert_eq!(build.args(shapes::args(&there, &salt, &["chain", "twice"])).ok().lines(), paths, "{compression}");
    }
    there.local("nix-store").args(["--verify", "--check-contents"]).ok();
}

/// Without a signature that is trusted, a path from who may only push is refused; with one it comes in.
fn a_push_token_cannot_forge(nix: &Nix) {
    let machine = Machine::new(nix);
    let secret = machine.path("secret");
    let generate = Cmd::new(shoal_tests::node::program()).args(["key", "generate", "mine-1", "--output"]).arg(&secret);
    let public = generate.ok().text().to_owned();
    let node = Node::start_with(&[], &["--trusted-public-key", &public]);
    let path = shapes::build_locally(&machine, &["hello"]).remove(0);
    copy(&machine, &node, "shoal-wrong", "").arg(&path).fails();
    copy(&machine, &node, &token(&node, "read"), "").arg(&path).fails();
    let push = token(&node, "push");
    let refused = copy(&machine, &node, &push, "").arg(&path).fails();
    assert!(refused.stderr.contains("403"), "{refused}");
    assert!(node.paths().iter().all(|known| known["path"] != path.as_str()));
    copy(&machine, &node, &push, &format!("secret-key={}", secret.display())).arg(&path).ok();
    assert!(node.paths().iter().any(|known| known["path"] == path.as_str()));
}

/// A request as bytes; the body may be less than it says. The status of the answer, if one comes.
fn request(node: &Node, token: &str, method: &str, path: &str, len: usize, body: &[u8]) -> Option<u16> {
    let address = node.ready().http.trim_start_matches("http://").to_owned();
    let mut stream = TcpStream::connect(&address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\nContent-Length: {len}\r\n\
         Connection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    // A server that has seen enough may have closed already.
    let _ = stream.write_all(body);
    if body.len() < len {
        stream.shutdown(Shutdown::Both).unwrap();
        return None;
    }
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).split(' ').nth(1)?.parse().ok()
}

/// A NAR of one file, the name of its file in the cache, and a narinfo for it.
fn sample(len: usize) -> (Vec<u8>, String, String) {
    let mut writer = NarWriter::new(Vec::new());
    writer.regular(b"", false, len as u64).unwrap();
    let contents: Vec<u8> = (0..len as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect();
    writer.contents(&contents).unwrap();
    let nar = writer.finish().unwrap();
    let hash = Hash::sha256(sha256(&nar)).to_nix32();
    let narinfo = format!(
        "StorePath: /nix/store/{PART}-sample\nURL: nar/{hash}.nar\nCompression: none\nFileHash: sha256:{hash}\n\
         FileSize: {size}\nNarHash: sha256:{hash}\nNarSize: {size}\nReferences: \n",
        size = nar.len()
    );
    (nar, format!("/nar/{hash}.nar"), narinfo)
}

const PART: &str = "dd2s755w68andyyr5makbwzidf6whr5d";

/// A PUT that breaks off leaves nothing, wherever it does; the whole one makes a path once its narinfo comes.
#[test]
fn a_put_that_breaks_off_leaves_nothing() {
    const CUTS: usize = 50;
    let node = Node::start(&[]);
    let admin = token(&node, "admin");
    let (nar, file, narinfo) = sample(300_000);
    let place = format!("/{PART}.narinfo");
    for cut in 0..CUTS {
        request(&node, &admin, "PUT", &file, nar.len(), &nar[..nar.len() * cut / CUTS]);
        assert_eq!(request(&node, &admin, "PUT", &place, narinfo.len(), narinfo.as_bytes()), Some(400), "cut {cut}");
    }
    assert_eq!(request(&node, &admin, "PUT", &file, nar.len() - 8, &nar[..nar.len() - 8]), Some(400));
    assert_eq!(request(&node, &admin, "HEAD", &file, 0, b""), Some(404));
    assert_eq!(node.paths().len(), 0);
    assert_eq!(request(&node, &admin, "PUT", &file, nar.len(), &nar), Some(200));
    assert_eq!(request(&node, &admin, "HEAD", &file, 0, b""), Some(200));
    assert_eq!(request(&node, &admin, "HEAD", &place, 0, b""), Some(404), "visible before its narinfo");
    for cut in [1, narinfo.len() / 2, narinfo.len() - 1] {
        request(&node, &admin, "PUT", &place, narinfo.len(), &narinfo.as_bytes()[..cut]);
    }
    assert_eq!(node.paths().len(), 0);
    assert_eq!(request(&node, &admin, "PUT", &place, narinfo.len(), narinfo.as_bytes()), Some(200));
    assert_eq!(request(&node, &admin, "GET", &place, 0, b""), Some(200));
}

/// What is said of a NAR must be so.
#[test]
fn lies_are_refused() {
    let node = Node::start(&[]);
    let admin = token(&node, "admin");
    let (nar, file, narinfo) = sample(1000);
    let place = format!("/{PART}.narinfo");
    let put = |path: &str, body: &[u8]| request(&node, &admin, "PUT", path, body.len(), body);
    assert_eq!(put(&file, &[&nar[..], b"more"].concat()), Some(400));
    assert_eq!(put(&file, b"no NAR at all"), Some(400));
    assert_eq!(put(&file, &nar), Some(200));
    let other = Hash::sha256([1; 32]).to_nix32();
    let hash = Hash::sha256(sha256(&nar)).to_nix32();
    let lie = |from: &str, to: &str| narinfo.replacen(from, to, 1);
    let lies = [
        lie(&format!("FileHash: sha256:{hash}"), &format!("FileHash: sha256:{other}")),
        lie(&format!("NarHash: sha256:{hash}"), &format!("NarHash: sha256:{other}")),
        lie(&format!("FileSize: {}", nar.len()), "FileSize: 1"),
        lie(&format!("NarSize: {}", nar.len()), "NarSize: 1"),
        lie(&format!("nar/{hash}"), &format!("nar/{other}")),
        lie("References: ", &format!("CA: fixed:r:sha256:{hash}\nReferences: "))
            .replace("Compression", "X-Compression"),
        lie(PART, "p739rmdv0wi5lbnnwrw9kfmw0r3mxr64"),
    ];
    for lie in &lies {
        let status = put(&place, lie.as_bytes());
        assert!(matches!(status, Some(400 | 403)), "{status:?} for\n{lie}");
    }
    let dangling = lie("References: ", "References: p739rmdv0wi5lbnnwrw9kfmw0r3mxr64-absent");
    assert_eq!(put(&place, dangling.as_bytes()), Some(409));
    for odd in ["/nar/..%2f..%2fx.nar", "/nar/.nar", "/nar/x", "/..narinfo"] {
        assert!(matches!(put(odd, &nar), Some(400 | 404 | 405)), "{odd}");
    }
    assert_eq!(put("/nix-cache-info", b"StoreDir: /other\n"), Some(400));
    assert_eq!(put("/nix-cache-info", b"StoreDir: /nix/store\n"), Some(200));
    assert_eq!(request(&node, "shoal-wrong", "PUT", &file, nar.len(), &nar), Some(401));
    assert_eq!(node.paths().len(), 0);
    assert_eq!(put(&place, narinfo.as_bytes()), Some(200));
}

/// With `http-read = token` nobody reads without one.
#[test]
fn reading_can_take_a_token() {
    let node = Node::start_with(&[], &["--http-read", "token"]);
    let read = token(&node, "read");
    for path in ["/nix-cache-info", "/metrics", &format!("/{PART}.narinfo")] {
        assert_eq!(request(&node, "none", "GET", path, 0, b""), Some(401), "{path}");
        assert!(matches!(request(&node, &read, "GET", path, 0, b""), Some(200 | 404)), "{path}");
    }
    assert_eq!(request(&node, "none", "GET", "/healthz", 0, b""), Some(200));
    let printed = node.shoal("use --host 127.0.0.1").ok();
    assert!(printed.stdout.contains("\nmachine 127.0.0.1 login any password shoal-"), "{printed}");
}
