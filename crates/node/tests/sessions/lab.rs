//! A node without doors, and clients of any role.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufReader, BufWriter, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use shoal_grid::can_run::Machine;
use shoal_node::build::service::{BuildService, Config, Defaults};
use shoal_node::door::pipe::{Lane, Outgoing, pipe};
use shoal_node::door::{Grant, Peer, Program, Role, SESSIONS_MAX, Sessions};
use shoal_node::inputs::Inputs;
use shoal_node::session::SessionHost;
use shoal_node::trees::Trees;
use shoal_store::Store;
use shoal_wire::nix::aterm;
use shoal_wire::nix::content_address::{CaMethod, ContentAddress};
use shoal_wire::nix::derivation::{Derivation, Output};
use shoal_wire::nix::hash::{Hash, HashAlgo, sha256};
use shoal_wire::nix::hash_modulo::HashModulo;
use shoal_wire::nix::make_path::CaReferences;
use shoal_wire::nix::nar::write::NarWriter;
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::proto::Feature;
use shoal_wire::nix::signature::{SecretKey, TrustedKeys};
use shoal_wire::nix::store_path::{StoreDir, StorePath};
use shoal_wire::nix::worker::{self, CallError, MINOR_MAX};

/// A test that waits so long has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub type WorkerClient = worker::Client<BufReader<UnixStream>, BufWriter<UnixStream>>;

/// Exit status, and what the client's terminal shows.
pub type Ended = thread::JoinHandle<(Option<u32>, Vec<u8>)>;

pub struct Lab {
    pub store: Store,
    pub sessions: Sessions,
    /// Trusted by the node.
    pub key: SecretKey,
    pub trusted: TrustedKeys,
    _dir: tempfile::TempDir,
}

impl Lab {
    pub fn new() -> Lab {
        Lab::with_require_sigs(true)
    }

    pub fn with_require_sigs(require_sigs: bool) -> Lab {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store"), shoal_store::Options::default()).unwrap();
        let inputs = Arc::new(Inputs::unpacked(Trees::open(store.clone(), dir.path()).unwrap()));
        // It offers no system, so whatever must be built is refused.
        let config = Config {
            data_dir: dir.path().to_owned(),
            machine: Machine { systems: BTreeSet::new(), features: BTreeSet::new() },
            max_jobs: 1,
            defaults: Defaults::default(),
            sandbox_shell: None,
            cgroups: shoal_sandbox::cgroups(),
            memory_mib: 1 << 10,
            quorum: 1,
            signing_keys: Vec::new(),
        };
        let builds = BuildService::start(store.clone(), StoreDir::default(), inputs, config).unwrap();
        let [key, own] =
            [("lab-1", 7), ("node-1", 8)].map(|(name, seed)| SecretKey::from_seed(name, [seed; 32]).unwrap());
        let trusted = TrustedKeys::from_iter([key.public(), own.public()]);
        let host =
            SessionHost::new(store.clone(), builds, trusted.clone(), require_sigs).signing_with(vec![Arc::new(own)]);
        let sessions = Sessions::new(Arc::new(host), SESSIONS_MAX);
        Lab { store, sessions, key, trusted, _dir: dir }
    }

    /// A session's other end.
    pub fn open(&self, program: Program, role: Role) -> (UnixStream, Ended) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        ours.set_write_timeout(Some(PATIENCE)).unwrap();
        let (session, door) = pipe(Arc::default());
        let grant = Grant { role, tenant: None, who: "test".into() };
        self.sessions.start(program, Peer { grant, from: "test".into() }, session);
        let (mut from, mut to) = (theirs.try_clone().unwrap(), theirs);
        let feed = door.feed;
        thread::spawn(move || {
            let mut buffer = [0; 64 << 10];
            while let Ok(n @ 1..) = from.read(&mut buffer) {
                feed.push(&buffer[..n]);
            }
            feed.end();
            // What lies in the pipe is still to be answered.
            thread::sleep(PATIENCE);
        });
        let mut drain = door.drain;
        let pump = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let (mut status, mut terminal) = (None, Vec::new());
            while let Some(outgoing) = runtime.block_on(drain.next()) {
                match outgoing {
                    Outgoing::Piece(Lane::Data, bytes) if to.write_all(&bytes).is_ok() => {}
                    Outgoing::Piece(Lane::Data, _) => break,
                    Outgoing::Piece(Lane::Stderr, bytes) => terminal.extend(bytes),
                    Outgoing::End(ended) => {
                        status = Some(ended);
                        break;
                    }
                }
            }
            let _ = to.shutdown(std::net::Shutdown::Both);
            (status, terminal)
        });
        (ours, pump)
    }

    pub fn raw(&self, role: Role) -> UnixStream {
        self.open(Program::Daemon, role).0
    }

    pub fn client(&self, role: Role) -> WorkerClient {
        self.client_at(role, MINOR_MAX, &BTreeSet::new())
    }

    pub fn client_at(&self, role: Role, minor: u8, features: &BTreeSet<Feature>) -> WorkerClient {
        let stream = self.raw(role);
        let (reader, writer) = (BufReader::new(stream.try_clone().unwrap()), BufWriter::new(stream));
        worker::Client::connect(reader, writer, StoreDir::default(), minor, features).unwrap()
    }
}

/// The message of a refusal; panics if the call went well or the connection broke.
pub fn refusal<T: std::fmt::Debug>(result: Result<T, CallError>) -> String {
    match result {
        Err(CallError::Remote(error)) => error.to_string(),
        other => panic!("expected a refusal, got {other:?}"),
    }
}

pub fn path(name: &str) -> StorePath {
    StorePath::from_parts(&sha256(name.as_bytes())[..20].try_into().unwrap(), name).unwrap()
}

/// The NAR of a plain file.
pub fn file_nar(contents: &[u8]) -> Vec<u8> {
    let mut nar = Vec::new();
    let mut writer = NarWriter::new(&mut nar);
    writer.regular(b"", false, contents.len() as u64).unwrap();
    writer.contents(contents).unwrap();
    writer.finish().unwrap();
    nar
}

/// An input-addressed path with these contents, unsigned.
pub fn unsigned(name: &str, contents: &[u8]) -> (PathInfo, Vec<u8>) {
    let nar = file_nar(contents);
    (PathInfo::new(path(name), sha256(&nar), nar.len() as u64), nar)
}

/// A content-addressed NAR without references.
pub fn addressed(name: &str, contents: &[u8]) -> (PathInfo, Vec<u8>) {
    let nar = file_nar(contents);
    let ca = ContentAddress { method: CaMethod::Nar, hash: Hash::sha256(sha256(&nar)) };
    let path = StoreDir::default().make_ca_path(&ca, &CaReferences::none(), name).unwrap();
    (PathInfo { ca: Some(ca), ..PathInfo::new(path, sha256(&nar), nar.len() as u64) }, nar)
}

/// A derivation that lies where it should, with the outputs that follow from it.
pub fn derivation(name: &str, change: impl FnOnce(&mut Derivation)) -> (PathInfo, Vec<u8>, Derivation) {
    let dir = StoreDir::default();
    let mut drv = Derivation {
        name: name.into(),
        outputs: BTreeMap::from([("out".into(), Output::Deferred)]),
        input_drvs: BTreeMap::new(),
        input_srcs: BTreeSet::new(),
        system: "test-system".into(),
        builder: b"/bin/sh".to_vec(),
        args: Vec::new(),
        env: BTreeMap::from([(b"out".to_vec(), Vec::new())]),
    };
    let hash = HashModulo::new(dir.clone()).own_hash_basic(&drv.to_basic());
    let out = dir.make_output_path(&hash, name, "out").unwrap();
    drv.env.insert(b"out".to_vec(), dir.print(&out).into_bytes());
    drv.outputs.insert("out".into(), Output::InputAddressed(out));
    change(&mut drv);
    let text = aterm::print(&dir, &drv);
    let (info, nar) = text_file(&format!("{name}.drv"), &text, drv.references());
    (info, nar, drv)
}

/// A text file as `builtins.toFile` makes it.
pub fn text_file(name: &str, text: &[u8], references: BTreeSet<StorePath>) -> (PathInfo, Vec<u8>) {
    let nar = file_nar(text);
    let path = StoreDir::default().make_text_path(name, &sha256(text), &references).unwrap();
    let ca = ContentAddress { method: CaMethod::Text, hash: Hash::of(HashAlgo::Sha256, text) };
    (PathInfo { ca: Some(ca), references, ..PathInfo::new(path, sha256(&nar), nar.len() as u64) }, nar)
}

pub fn silent(_: worker::StderrMessage) {}
