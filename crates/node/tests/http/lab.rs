//! A server on a store of its own, and a client that writes its own bytes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use shoal_node::http::link::Offer;
use shoal_node::http::{Cache, HttpOptions, HttpServer};
use shoal_store::Store;
use shoal_wire::nix::hash::sha256;
use shoal_wire::nix::nar::write::NarWriter;
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::store_path::{StoreDir, StorePath};

pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Lab {
    pub store: Store,
    pub server: HttpServer,
    _runtime: tokio::runtime::Runtime,
    _dir: tempfile::TempDir,
}

/// What came back.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
    /// The body has as many bytes as the head announced.
    pub is_whole: bool,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Lab {
    pub fn new() -> Lab {
        Lab::offering(Offer::Auto)
    }

    pub fn offering(offer: Offer) -> Lab {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store"), shoal_store::Options::default()).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let mut cache = Cache::new(store.clone(), StoreDir::default());
        cache.offer = offer;
        let options = HttpOptions { listen: "127.0.0.1:0".parse().unwrap() };
        let server = runtime.block_on(async { HttpServer::open(&options, Arc::new(cache)) }).unwrap();
        Lab { store, server, _runtime: runtime, _dir: dir }
    }

    pub fn address(&self) -> SocketAddr {
        self.server.local_addr()
    }

    /// Makes a path of this NAR valid.
    pub fn add(&self, name: &str, nar: &[u8]) -> PathInfo {
        let mut ingest = self.store.ingest();
        ingest.write_all(nar).unwrap();
        let ingested = ingest.finish().unwrap();
        let mut hash = [0; 20];
        hash.copy_from_slice(&sha256(name.as_bytes())[..20]);
        let path = StorePath::from_parts(&hash, name).unwrap();
        let info = PathInfo::new(path, sha256(nar), nar.len() as u64);
        self.store.commit(vec![(info.clone(), ingested)]).unwrap();
        info
    }

    pub fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, "")
    }

    /// `None` where the connection was cut before there was a head.
    pub fn try_get(&self, path: &str) -> Option<Answer> {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n").as_bytes(), false)
    }

    /// `headers`: lines, each with its end.
    pub fn ask(&self, method: &str, path: &str, headers: &str) -> Answer {
        let request = format!("{method} {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n{headers}\r\n");
        self.send(request.as_bytes(), method == "HEAD").unwrap()
    }

    /// What the server says to these bytes; `None` where it says nothing.
    pub fn send(&self, bytes: &[u8], is_head: bool) -> Option<Answer> {
        let mut stream = self.connect();
        // The server may have hung up already.
        let _ = stream.write_all(bytes);
        answer(stream, is_head)
    }

    /// The same by a client that sends no more.
    pub fn send_and_end(&self, bytes: &[u8]) -> Option<Answer> {
        let mut stream = self.connect();
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        answer(stream, false)
    }

    pub fn connect(&self) -> TcpStream {
        connect(self.address())
    }
}

pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// What the server says; `None` where it says nothing.
pub fn answer(mut stream: TcpStream, is_head: bool) -> Option<Answer> {
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    let at = all.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&all[..at]).into_owned();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok())?;
    let mut answer = Answer { status, head, body: all[at..].to_vec(), is_whole: true };
    let announced = answer.header("content-length").and_then(|len| len.parse::<usize>().ok());
    answer.is_whole = is_head || announced.is_none_or(|len| len == answer.body.len());
    Some(answer)
}

/// Bytes that nothing compresses.
pub fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(step).collect()
}

/// Bytes that compress.
pub fn words(len: usize) -> Vec<u8> {
    (0u64..).flat_map(|n| format!("line {n} of {}\n", n * n).into_bytes()).take(len).collect()
}

/// A NAR of one file.
pub fn file_nar(contents: &[u8]) -> Vec<u8> {
    let mut writer = NarWriter::new(Vec::new());
    writer.regular(b"", false, contents.len() as u64).unwrap();
    writer.contents(contents).unwrap();
    writer.finish().unwrap()
}

/// A directory of files and symlinks, in the order of their names.
pub fn tree_nar(files: &[(&str, &[u8])], links: &[(&str, &str)]) -> Vec<u8> {
    let mut writer = NarWriter::new(Vec::new());
    writer.directory(b"").unwrap();
    let mut names: Vec<&str> = files.iter().map(|f| f.0).chain(links.iter().map(|l| l.0)).collect();
    names.sort_unstable();
    for name in names {
        if let Some((_, contents)) = files.iter().find(|file| file.0 == name) {
            writer.regular(name.as_bytes(), false, contents.len() as u64).unwrap();
            writer.contents(contents).unwrap();
        }
        if let Some((_, target)) = links.iter().find(|link| link.0 == name) {
            writer.symlink(name.as_bytes(), target.as_bytes()).unwrap();
        }
    }
    writer.end_directory().unwrap();
    writer.finish().unwrap()
}

/// The URL of a NAR, as the path's narinfo tells it.
pub fn nar_url(lab: &Lab, info: &PathInfo) -> String {
    let narinfo = lab.get(&format!("/{}.narinfo", info.path.hash_part()));
    assert_eq!(narinfo.status, 200, "{narinfo:?}");
    let text = narinfo.text();
    let url = text.lines().find_map(|line| line.strip_prefix("URL: ")).unwrap();
    format!("/{url}")
}
