//! A store with upstreams, and caches to put behind it.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use shoal_node::build::derivations::Derivations;
use shoal_node::neighbours::Neighbours;
use shoal_node::upstream::{Authorities, HEDGE, Location, Options, Patience, Upstreams};
use shoal_store::Store;
use shoal_wire::nix::hash::{Hash, sha256};
use shoal_wire::nix::nar::write::NarWriter;
use shoal_wire::nix::narinfo::{Compression, NarInfo};
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::signature::SecretKey;
use shoal_wire::nix::store_path::{StoreDir, StorePath};

use super::server::{Reply, Server};

/// Short, so that faults are seen soon; long enough for a busy machine where all is well.
pub const PATIENCE: Patience = Patience {
    ask: Duration::from_secs(4),
    connect: Duration::from_secs(4),
    first_byte: Duration::from_secs(4),
    stall: Duration::from_secs(2),
};

pub fn key() -> SecretKey {
    SecretKey::from_seed("cache-1", [7; 32]).unwrap()
}

/// What came, and why no more did.
pub type BrokenOff = (Vec<u8>, String);

pub struct Lab {
    _dir: tempfile::TempDir,
    pub store: Store,
    pub upstreams: Upstreams,
}

impl Lab {
    pub fn new(urls: &[String]) -> Lab {
        Lab::with_authorities(urls, Authorities::default())
    }

    pub fn with_authorities(urls: &[String], authorities: Authorities) -> Lab {
        Lab::with(urls, authorities, PATIENCE, HEDGE)
    }

    pub fn with(urls: &[String], authorities: Authorities, patience: Patience, hedge: Duration) -> Lab {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store"), shoal_store::Options::default()).unwrap();
        let options = Options {
            cold: None,
            locations: urls.iter().map(|url| Location::parse(url).unwrap()).collect(),
            authorities,
            patience,
            hedge,
            trusted_keys: [key().public()].into_iter().collect(),
            require_sigs: true,
        };
        let derivations = Arc::new(Derivations::new(store.clone(), StoreDir::default()));
        let upstreams =
            Upstreams::open(store.clone(), StoreDir::default(), derivations, Neighbours::default(), options);
        Lab { _dir: dir, store, upstreams }
    }

    pub fn behind(servers: &[&Server]) -> Lab {
        Lab::new(&servers.iter().map(|server| server.url()).collect::<Vec<_>>())
    }

    /// Where the next server is asked when the one before has answered, however long a busy machine takes for that.
    pub fn one_by_one(servers: &[&Server]) -> Lab {
        let urls: Vec<String> = servers.iter().map(|server| server.url()).collect();
        Lab::with(&urls, Authorities::default(), PATIENCE, Duration::from_secs(60))
    }

    /// The path's NAR, if it is valid.
    pub fn stored(&self, path: &StorePath) -> Option<Vec<u8>> {
        let mut export = self.store.export(path).unwrap()?;
        let mut nar = Vec::new();
        loop {
            let bytes = export.fill_buf().unwrap();
            if bytes.is_empty() {
                return Some(nar);
            }
            nar.extend_from_slice(bytes);
            let n = bytes.len();
            export.consume(n);
        }
    }

    /// The NAR as it streams through, or why it broke off and what came before.
    pub fn streamed(&self, path: &StorePath) -> Option<Result<Vec<u8>, BrokenOff>> {
        let mut stream = self.upstreams.nar(path).unwrap()?;
        let mut nar = Vec::new();
        Some(match stream.read_to_end(&mut nar) {
            Ok(_) => Ok(nar),
            Err(error) => Err((nar, error.to_string())),
        })
    }
}

/// A path in a cache, with all that can be wrong about it.
pub struct Published {
    pub path: StorePath,
    pub nar: Vec<u8>,
    pub file: Vec<u8>,
    pub narinfo: NarInfo,
}

/// Bytes that do not compress and are the same for the same `seed`.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(next).collect()
}

pub fn nar_of(contents: &[u8]) -> Vec<u8> {
    let mut nar = Vec::new();
    let mut writer = NarWriter::new(&mut nar);
    writer.regular(b"", false, contents.len() as u64).unwrap();
    writer.contents(contents).unwrap();
    writer.finish().unwrap();
    nar
}

pub fn compress(compression: Compression, nar: &[u8]) -> Vec<u8> {
    match compression {
        Compression::None => nar.to_vec(),
        Compression::Zstd => zstd::encode_all(nar, 3).unwrap(),
        Compression::Xz => {
            let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
            encoder.write_all(nar).unwrap();
            encoder.finish().unwrap()
        }
        Compression::Bzip2 => {
            let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
            encoder.write_all(nar).unwrap();
            encoder.finish().unwrap()
        }
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(nar).unwrap();
            encoder.finish().unwrap()
        }
        other => panic!("no encoder for {}", other.name()),
    }
}

impl Published {
    /// `digit` tells paths apart.
    pub fn new(digit: char, contents: &[u8], references: &[&StorePath], compression: Compression) -> Published {
        let path = StorePath::from_base_name(&format!("{}-p{digit}", digit.to_string().repeat(32))).unwrap();
        let nar = nar_of(contents);
        let mut info = PathInfo::new(path.clone(), sha256(&nar), nar.len() as u64);
        info.references = references.iter().map(|path| (*path).clone()).collect();
        let file = compress(compression, &nar);
        let narinfo = NarInfo {
            info,
            url: format!("nar/{digit}.nar"),
            compression,
            file_hash: Some(Hash::sha256(sha256(&file))),
            file_size: Some(file.len() as u64),
        };
        Published { path, nar, file, narinfo }.signed()
    }

    /// Signs again, after something was changed.
    pub fn signed(mut self) -> Published {
        self.narinfo.info.signatures.clear();
        self.narinfo.info.sign(&StoreDir::default(), &key()).unwrap();
        self
    }

    pub fn narinfo_url(&self) -> String {
        format!("/{}.narinfo", self.path.hash_part())
    }

    pub fn nar_url(&self) -> String {
        format!("/{}", self.narinfo.url)
    }

    pub fn narinfo_text(&self) -> Vec<u8> {
        self.narinfo.print(&StoreDir::default()).into_bytes()
    }

    pub fn on(&self, server: &Server) {
        server.put(&self.narinfo_url(), Reply::Body(self.narinfo_text()));
        server.put(&self.nar_url(), Reply::Body(self.file.clone()));
    }

    /// The same, but the file is served in this way.
    pub fn on_with(&self, server: &Server, file: Reply) {
        self.on(server);
        server.put(&self.nar_url(), file);
    }
}

pub fn cache(priority: u32) -> Arc<Server> {
    as_cache(Server::start(), priority)
}

pub fn as_cache(server: Server, priority: u32) -> Arc<Server> {
    let info = format!("StoreDir: /nix/store\nWantMassQuery: 1\nPriority: {priority}\n");
    server.put("/nix-cache-info", Reply::Body(info.into_bytes()));
    Arc::new(server)
}
