//! A server on a store of its own, and a client that writes its own bytes.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use shoal_grid::can_run::Machine;
use shoal_node::build::service::{BuildService, Config, Defaults};
use shoal_node::door::Role;
use shoal_node::http::budget::{ANSWER_BYTES_MAX, BEGUN_BYTES_MAX, Budget};
use shoal_node::http::link::Offer;
use shoal_node::http::put::Writer;
use shoal_node::http::tls::Identity;
use shoal_node::http::{Cache, HttpOptions, HttpServer, Limits};
use shoal_node::inputs::Inputs;
use shoal_node::session::SessionHost;
use shoal_node::session::deposit::Deposits;
use shoal_node::tokens::{self, Tokens};
use shoal_node::trees::Trees;
use shoal_node::upstream::Upstreams;
use shoal_store::Store;
use shoal_wire::nix::hash::sha256;
use shoal_wire::nix::nar::write::NarWriter;
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::signature::TrustedKeys;
use shoal_wire::nix::store_path::{StoreDir, StorePath};

pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Lab {
    pub store: Store,
    pub server: HttpServer,
    /// Of the role `admin`, where the server takes uploads.
    pub token: String,
    pub runtime: tokio::runtime::Runtime,
    _dir: tempfile::TempDir,
}

/// What a lab's server is to be.
pub struct Wanted {
    pub offer: Offer,
    pub limits: Limits,
    pub identity: Option<Arc<Identity>>,
    pub http3: bool,
    pub takes_uploads: bool,
    /// Whether reading takes a token.
    pub is_closed: bool,
    /// Where its store lies; a temporary directory unless named.
    pub store: Option<PathBuf>,
    /// Instead of a store of its own: one that is open, and the caches behind it.
    pub behind: Option<(Store, Upstreams)>,
    /// Threads of the runtime for what blocks.
    pub blocking_threads: usize,
    /// What NARs that are being sent may hold together.
    pub begun_bytes: usize,
    /// What answers that are whole in memory may take together.
    pub answer_bytes: usize,
}

impl Default for Wanted {
    fn default() -> Wanted {
        Wanted {
            // A client on a busy machine may seem far away.
            offer: Offer::None,
            limits: Limits::USUAL,
            identity: None,
            http3: false,
            takes_uploads: false,
            is_closed: false,
            store: None,
            behind: None,
            blocking_threads: 512,
            begun_bytes: BEGUN_BYTES_MAX,
            answer_bytes: ANSWER_BYTES_MAX,
        }
    }
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
        Lab::with(Wanted { offer, ..Wanted::default() })
    }

    pub fn with(wanted: Wanted) -> Lab {
        let dir = tempfile::tempdir().unwrap();
        let place = wanted.store.unwrap_or_else(|| dir.path().join("store"));
        let open = || (Store::open(&place, store_options()).unwrap(), Upstreams::default());
        let (store, upstreams) = wanted.behind.unwrap_or_else(open);
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        runtime.worker_threads(2).max_blocking_threads(wanted.blocking_threads).enable_all();
        let runtime = runtime.build().unwrap();
        let mut cache = Cache::new(store.clone(), StoreDir::default()).behind(&upstreams);
        cache.offer = wanted.offer;
        cache.is_closed = wanted.is_closed;
        cache.begun = Budget::of(wanted.begun_bytes).waiting(Duration::from_millis(100));
        cache.answers = Budget::of(wanted.answer_bytes);
        let mut token = String::new();
        if wanted.takes_uploads {
            let file = tokens::file(dir.path());
            token = tokens::create(&file, "lab", Role::Admin, None).unwrap();
            let deposits = deposits(&store, dir.path(), TrustedKeys::default(), upstreams);
            cache.writer = Some(Writer::new(deposits, Arc::new(Tokens::open(file))));
        }
        let listen = "127.0.0.1:0".parse().unwrap();
        let options = HttpOptions { listen, identity: wanted.identity, http3: wanted.http3, limits: wanted.limits };
        let server = runtime.block_on(async { HttpServer::open(&options, Arc::new(cache)) }).unwrap();
        Lab { store, server, token, runtime, _dir: dir }
    }

    /// A request to write that is not sent to its end: what to send before the body, of which `len` bytes are announced.
    pub fn put_head(&self, path: &str, len: usize) -> String {
        let token = &self.token;
        format!("PUT {path} HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer {token}\r\nContent-Length: {len}\r\n\r\n")
    }

    pub fn put(&self, path: &str, body: &[u8]) -> Answer {
        let head = self.put_head(path, body.len()).replacen("Host", "Connection: close\r\nHost", 1);
        self.send(&[head.as_bytes(), body].concat(), false).unwrap()
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

    /// A client that has taken the first bytes of an answer and takes no more.
    pub fn begin_reading(&self, url: &str) -> TcpStream {
        let mut stream = self.connect();
        stream.write_all(format!("GET {url} HTTP/1.1\r\nHost: here\r\n\r\n").as_bytes()).unwrap();
        stream.read_exact(&mut [0; 100]).unwrap();
        stream
    }
}

pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Small segments, so that a small disk holds some.
fn store_options() -> shoal_store::Options {
    shoal_store::Options { segment_bytes: 4 << 20, reserve_bytes: 4 << 20, ..shoal_store::Options::default() }
}

/// What takes uploads in, of a node that builds nothing.
pub fn deposits(store: &Store, dir: &Path, trusted: TrustedKeys, upstreams: Upstreams) -> Arc<Deposits> {
    let config = Config {
        data_dir: dir.to_owned(),
        machine: Machine { systems: BTreeSet::new(), features: BTreeSet::new() },
        max_jobs: 1,
        defaults: Defaults::default(),
        sandbox_shell: None,
        cgroups: shoal_sandbox::cgroups(),
        memory_mib: 1 << 10,
        quorum: 1,
        signing_keys: Vec::new(),
    };
    let inputs = Arc::new(Inputs::unpacked(Trees::open(store.clone(), dir).unwrap()));
    let builds = BuildService::start(store.clone(), StoreDir::default(), inputs, config).unwrap();
    let host = SessionHost::new(store.clone(), builds, trusted, true).behind(upstreams);
    Arc::new(Deposits::new(host.services()))
}

/// What the server says; `None` where it says nothing.
pub fn answer(mut stream: impl Read, is_head: bool) -> Option<Answer> {
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
