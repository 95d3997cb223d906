//! What a node is told: defaults, then a TOML file, then `SHOAL_*` variables, then flags; the later one wins.
//!
//! [`key::KEYS`] is the one list of keys. Flags, file and environment are all read through it, so a key has the same
//! name, values and help everywhere.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use crate::http::link::Offer;
use crate::inputs::InputsKind;

pub mod detect;
pub mod flags;
pub mod key;
pub mod load;
pub mod nearest;
pub mod units;

pub use flags::ConfigFlags;
pub use load::{ConfigError, Loaded, Origin, load};

use units::{Quota, duration_text, optional_duration_text};

/// The file that is read when none is named; it may be absent.
pub const DEFAULT_FILE: &str = "/etc/shoal/config.toml";

/// A node's settings. Field `a_b` is key `a-b`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Config {
    pub data_dir: PathBuf,
    pub name: String,
    /// `None`: no ssh door.
    pub ssh: Option<SocketAddr>,
    /// `None`: no binary cache.
    pub http: Option<SocketAddr>,
    pub http_read: HttpRead,
    pub http_compression: Offer,
    /// Certificate chain and key in PEM; both or none. `None`: plain HTTP.
    pub http_certificate: Option<PathBuf>,
    pub http_key: Option<PathBuf>,
    /// HTTP/3 besides, which takes a certificate.
    pub http3: bool,
    /// `None`: in no mesh.
    pub mesh: Option<SocketAddr>,
    /// Empty: the machine's own.
    pub mesh_address: Vec<SocketAddr>,
    pub mesh_secret_file: Option<PathBuf>,
    /// Tickets, or files that hold them.
    pub join: Vec<String>,
    /// `KEY@ADDR`.
    pub peer: Vec<String>,
    pub peer_dns: Vec<String>,
    pub mdns: bool,
    /// Copies of a path, at least 1.
    pub copies: u32,
    pub build_quorum: u32,
    /// Bytes a second; `None`: no limit.
    pub mesh_upload_rate: Option<u64>,
    pub socket: PathBuf,
    pub authorized_keys: PathBuf,
    pub no_build: bool,
    /// Builds that run at once, at least 1.
    pub max_jobs: u32,
    /// `NIX_BUILD_CORES` of a build whose client names none, at least 1.
    pub cores: u32,
    pub system: Vec<String>,
    pub feature: Vec<String>,
    #[serde(serialize_with = "optional_duration_text")]
    pub timeout: Option<Duration>,
    #[serde(serialize_with = "optional_duration_text")]
    pub max_silent_time: Option<Duration>,
    /// Bytes.
    pub max_build_log_size: Option<u64>,
    /// Bytes that one build may have.
    pub build_memory_max: Option<u64>,
    pub keep_failed: bool,
    pub keep_going: bool,
    /// A static shell, seen by builders as `/bin/sh`.
    pub sandbox_shell: Option<PathBuf>,
    pub inputs: InputsKind,
    /// Where the store is mounted; `None`: nowhere.
    pub mount: Option<PathBuf>,
    /// Whether what lies at `mount` goes on being shown.
    pub mount_overlay: bool,
    /// How long the mount outlives the node.
    #[serde(serialize_with = "duration_text")]
    pub mount_keep: Duration,
    /// `name:base64`.
    pub trusted_public_key: Vec<String>,
    pub require_sigs: bool,
    /// URLs of the binary caches behind this node.
    pub upstream: Vec<String>,
    /// `None`: the machine's bundle.
    pub upstream_ca_file: Option<PathBuf>,
    /// URL of the bucket behind the mesh; `None`: there is none.
    pub cold: Option<String>,
    /// URL of the S3 server; `None`: AWS's.
    pub cold_endpoint: Option<String>,
    pub cold_region: Option<String>,
    /// `None`: what the environment says.
    pub cold_credentials_file: Option<PathBuf>,
    /// Bytes a second; `None`: no limit.
    pub cold_upload_rate: Option<u64>,
    pub cold_read_only: bool,
    /// The bucket may be the only place where a path is.
    pub cold_last_copies: bool,
    /// Empty: the key that the node made for itself.
    pub secret_key_file: Vec<PathBuf>,
    pub store_quota: Quota,
    /// `None`: 5 % below the quota.
    pub store_quota_low: Option<Quota>,
    /// Stored bytes a second; `None`: no limit.
    pub scrub_rate: Option<u64>,
    /// `None`: only on demand.
    #[serde(serialize_with = "optional_duration_text")]
    pub scrub_interval: Option<Duration>,
    #[serde(serialize_with = "duration_text")]
    pub drain_timeout: Duration,
    pub log: Log,
}

/// Who may read over HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HttpRead {
    Open,
    /// Who has a token, of any role.
    Token,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Log {
    /// `error`, `warn`, `info`, `debug` or `trace`; or a list of `part=level`.
    pub level: String,
    pub format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    Text,
    Json,
}

impl Config {
    /// What holds when nobody says anything, on this machine and for this user.
    pub fn detected() -> Self {
        let cpus = detect::cpus();
        Config {
            data_dir: detect::data_dir(),
            name: detect::host_name(),
            ssh: Some(SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 2222))),
            http: Some(SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 8080))),
            http_read: HttpRead::Open,
            http_compression: Offer::Auto,
            http_certificate: None,
            http_key: None,
            http3: false,
            mesh: Some(SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 7433))),
            mesh_address: Vec::new(),
            mesh_secret_file: None,
            join: Vec::new(),
            peer: Vec::new(),
            peer_dns: Vec::new(),
            mdns: false,
            copies: 2,
            build_quorum: 1,
            mesh_upload_rate: None,
            socket: PathBuf::new(),
            authorized_keys: PathBuf::new(),
            no_build: false,
            max_jobs: cpus,
            cores: cpus,
            system: detect::systems(),
            feature: detect::features(),
            timeout: None,
            max_silent_time: None,
            max_build_log_size: Some(1 << 30),
            build_memory_max: None,
            keep_failed: false,
            keep_going: false,
            sandbox_shell: detect::sandbox_shell(),
            inputs: InputsKind::Auto,
            mount: None,
            mount_overlay: false,
            mount_keep: Duration::from_secs(60),
            trusted_public_key: Vec::new(),
            require_sigs: true,
            upstream: Vec::new(),
            upstream_ca_file: None,
            cold: None,
            cold_endpoint: None,
            cold_region: None,
            cold_credentials_file: None,
            cold_upload_rate: None,
            cold_read_only: false,
            cold_last_copies: false,
            secret_key_file: Vec::new(),
            store_quota: Quota::Share(80),
            store_quota_low: None,
            scrub_rate: Some(20 << 20),
            scrub_interval: Some(Duration::from_secs(30 * 86_400)),
            drain_timeout: Duration::from_secs(600),
            log: Log { level: "info".into(), format: LogFormat::Auto },
        }
    }

    /// Paths that hang on the data directory, once it is known; relative ones start where the command was given.
    fn settle(&mut self) {
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
        let or_inside = |path: &Path, dir: &Path, name: &str| {
            if path.as_os_str().is_empty() { dir.join(name) } else { absolute(path) }
        };
        self.data_dir = absolute(&self.data_dir);
        self.socket = or_inside(&self.socket, &self.data_dir, "daemon.sock");
        self.authorized_keys = or_inside(&self.authorized_keys, &self.data_dir, "authorized_keys");
        self.secret_key_file = self.secret_key_file.iter().map(|path| absolute(path)).collect();
        self.upstream_ca_file = self.upstream_ca_file.as_deref().map(absolute);
        self.cold_credentials_file = self.cold_credentials_file.as_deref().map(absolute);
        self.http_certificate = self.http_certificate.as_deref().map(absolute);
        self.http_key = self.http_key.as_deref().map(absolute);
        self.mesh_secret_file = self.mesh_secret_file.as_deref().map(absolute);
        self.sandbox_shell = self.sandbox_shell.as_deref().map(absolute);
        self.mount = self.mount.as_deref().map(absolute);
    }
}
