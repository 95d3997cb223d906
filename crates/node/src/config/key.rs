//! The list of keys. A key added here exists as a flag, in the file, in the environment and in the help.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use super::units::{Quota, parse_duration, parse_optional_duration, parse_optional_size};
use super::{Config, HttpRead, LogFormat};
use crate::cold;
use crate::http::link::Offer;
use crate::inputs::InputsKind;
use crate::upstream::Location;
use shoal_mesh::bootstrap::PeerAddress;

pub struct Key {
    /// The file's table that holds it; empty at the top level.
    pub section: &'static str,
    /// The flag without its dashes: the section, where there is one, then the name.
    pub flag: &'static str,
    /// What holds when nobody says anything, in words.
    pub default: &'static str,
    pub help: &'static str,
    pub set: Set,
}

type SetOne = fn(&mut Config, &str) -> Result<(), String>;
type SetMany = fn(&mut Config, Vec<String>) -> Result<(), String>;

/// How a key's text becomes a setting; the string names the value in the help.
pub enum Set {
    Switch(fn(&mut Config, bool)),
    One(&'static str, SetOne),
    Many(&'static str, SetMany),
}

const fn key(flag: &'static str, default: &'static str, set: Set, help: &'static str) -> Key {
    Key { section: "", flag, default, help, set }
}

pub const KEYS: &[Key] = &[
    key(
        "data-dir",
        "$STATE_DIRECTORY, /var/lib/shoal as root, else $XDG_STATE_HOME/shoal",
        Set::One("DIR", |c, v| path(v).map(|p| c.data_dir = p)),
        "Everything the node keeps",
    ),
    key("name", "host name", Set::One("NAME", |c, v| name(v).map(|n| c.name = n)), "The node's name, shown to people"),
    key(
        "ssh",
        "[::]:2222",
        Set::One("ADDR", |c, v| listen(v).map(|a| c.ssh = a)),
        "Where ssh-ng:// and ssh:// are served, port 0 for any free one; or none",
    ),
    key(
        "http",
        "[::]:8080",
        Set::One("ADDR", |c, v| listen(v).map(|a| c.http = a)),
        "Where the binary cache is served, port 0 for any free one; or none",
    ),
    key(
        "http-read",
        "open",
        Set::One("WHO", |c, v| http_read(v).map(|r| c.http_read = r)),
        "Who may read over HTTP: open for everybody, token for who has one; writing always takes a token",
    ),
    key(
        "http-compression",
        "auto",
        Set::One("FORM", |c, v| offer(v).map(|o| c.http_compression = o)),
        "How NARs are offered: none, zstd, or auto: plain to clients nearby, zstd to those far away",
    ),
    key(
        "http-certificate",
        "none, and plain HTTP",
        Set::One("FILE", |c, v| optional_path(v).map(|p| c.http_certificate = p)),
        "Certificate for HTTPS with those above it, in PEM; read again when it changes, as is the key",
    ),
    key(
        "http-key",
        "none, and plain HTTP",
        Set::One("FILE", |c, v| optional_path(v).map(|p| c.http_key = p)),
        "Private key of the certificate, in PEM",
    ),
    key("http3", "false", Set::Switch(|c, v| c.http3 = v), "HTTP/3 besides HTTPS, on the UDP port of the same number"),
    key(
        "mesh",
        "[::]:7433",
        Set::One("ADDR", |c, v| listen(v).map(|a| c.mesh = a)),
        "Where other nodes are heard (UDP), port 0 for any free one; or none to be in no mesh",
    ),
    key(
        "mesh-address",
        "this machine's addresses",
        Set::Many("ADDR", |c, v| addresses(v).map(|v| c.mesh_address = v)),
        "Where other nodes reach this one, where they cannot by its own addresses",
    ),
    key(
        "mesh-secret-file",
        "none",
        Set::One("FILE", |c, v| optional_path(v).map(|p| c.mesh_secret_file = p)),
        "Key of the mesh, as 'shoal mesh create --secret-file' writes it: nodes that share it are one mesh without tickets",
    ),
    key(
        "join",
        "none",
        Set::Many("TICKET", |c, v| words(v).map(|v| c.join = v)),
        "Ticket of 'shoal mesh invite', or a file that holds it: joins that mesh, if the node is in none yet",
    ),
    key(
        "peer",
        "none",
        Set::Many("KEY@ADDR", |c, v| peers(v).map(|v| c.peer = v)),
        "Node of the mesh to look for there; its key is the node_id of its ready.json",
    ),
    key(
        "peer-dns",
        "none",
        Set::Many("NAME", |c, v| words(v).map(|v| c.peer_dns = v)),
        "Name whose addresses are nodes of the mesh, with the port of their binary cache if it is not this one's",
    ),
    key(
        "mdns",
        "false",
        Set::Switch(|c, v| c.mdns = v),
        "Look for nodes of the mesh on the local network, and be found there",
    ),
    key(
        "copies",
        "2",
        Set::One("N", |c, v| positive(v).map(|n| c.copies = n)),
        "Nodes that a path is on before an upload or a build of it counts as done, as far as there are as many",
    ),
    key(
        "mesh-upload-rate",
        "none",
        Set::One("SIZE", |c, v| parse_optional_size(v).map(|s| c.mesh_upload_rate = s)),
        "Bytes that are sent to other nodes a second, at most",
    ),
    key(
        "socket",
        "<data-dir>/daemon.sock",
        Set::One("PATH", |c, v| path(v).map(|p| c.socket = p)),
        "Unix socket that speaks Nix's daemon protocol",
    ),
    key(
        "authorized-keys",
        "<data-dir>/authorized_keys",
        Set::One("FILE", |c, v| path(v).map(|p| c.authorized_keys = p)),
        "SSH keys that may use the node; read again when it changes",
    ),
    key("no-build", "false", Set::Switch(|c, v| c.no_build = v), "Serve the store, build nothing"),
    key(
        "max-jobs",
        "one for each CPU",
        Set::One("N", |c, v| positive(v).map(|n| c.max_jobs = n)),
        "Builds that run at once",
    ),
    key(
        "build-quorum",
        "1",
        Set::One("N", |c, v| votes(v).map(|n| c.build_quorum = n)),
        "Nodes that must build the same of an input-addressed derivation before it is published and signed; 1 asks for no second",
    ),
    key(
        "cores",
        "all CPUs",
        Set::One("N", |c, v| positive(v).map(|n| c.cores = n)),
        "CPUs that one build is told it may use (NIX_BUILD_CORES)",
    ),
    key(
        "system",
        "this machine's",
        Set::Many("SYSTEM", |c, v| words(v).map(|v| c.system = v)),
        "System that this node builds for, like x86_64-linux",
    ),
    key(
        "feature",
        "benchmark, big-parallel, ca-derivations, nixos-test; kvm where usable",
        Set::Many("FEATURE", |c, v| words(v).map(|v| c.feature = v)),
        "System feature that this node offers to builds",
    ),
    key(
        "timeout",
        "none",
        Set::One("TIME", |c, v| parse_optional_duration(v).map(|t| c.timeout = t)),
        "Longest a build may run, unless its client says otherwise",
    ),
    key(
        "max-silent-time",
        "none",
        Set::One("TIME", |c, v| parse_optional_duration(v).map(|t| c.max_silent_time = t)),
        "Longest a build may print nothing, unless its client says otherwise",
    ),
    key(
        "max-build-log-size",
        "1GiB",
        Set::One("SIZE", |c, v| parse_optional_size(v).map(|s| c.max_build_log_size = s)),
        "A build that prints more is ended; or none",
    ),
    key(
        "build-memory-max",
        "none",
        Set::One("SIZE", |c, v| parse_optional_size(v).map(|s| c.build_memory_max = s)),
        "Most memory that one build may have, where the machine can limit it; or none",
    ),
    key("keep-failed", "false", Set::Switch(|c, v| c.keep_failed = v), "Keep the directories of failed builds"),
    key(
        "keep-going",
        "false",
        Set::Switch(|c, v| c.keep_going = v),
        "After a failure go on with what does not depend on it, unless the client says otherwise",
    ),
    key(
        "sandbox-shell",
        "the first static busybox of this machine",
        Set::One("FILE", |c, v| optional_path(v).map(|p| c.sandbox_shell = p)),
        "Static shell that builds see as /bin/sh; or none",
    ),
    key(
        "inputs",
        "auto",
        Set::One("KIND", |c, v| inputs(v).map(|i| c.inputs = i)),
        "How builds see their inputs: lazy, fetched as they are read; materialised, unpacked before; bind, each mounted by itself; or auto: unpacked where that takes little",
    ),
    key(
        "mount",
        "none",
        Set::One("DIR", |c, v| optional_path(v).map(|p| c.mount = p)),
        "Directory at which the store is mounted: every path of the mesh, fetched as it is read",
    ),
    key(
        "mount-overlay",
        "false",
        Set::Switch(|c, v| c.mount_overlay = v),
        "Go on showing what the directory of mount has, beside the paths of the mesh",
    ),
    key(
        "mount-keep",
        "1m",
        Set::One("TIME", |c, v| parse_duration(v).map(|t| c.mount_keep = t)),
        "How long the mount waits for a node that is gone to come back; 0s: it goes with the node",
    ),
    key(
        "trusted-public-key",
        "none",
        Set::Many("NAME:KEY", |c, v| public_keys(v).map(|v| c.trusted_public_key = v)),
        "Signing key whose store paths any client may upload, and any upstream may serve",
    ),
    key(
        "require-sigs",
        "true",
        Set::Switch(|c, v| c.require_sigs = v),
        "Refuse unsigned paths from clients that are not trusted",
    ),
    key(
        "upstream",
        "none",
        Set::Many("URL", |c, v| upstreams(v).map(|v| c.upstream = v)),
        "Binary cache behind this node, http or https; ?priority=N overrides what it says of itself",
    ),
    key(
        "upstream-ca-file",
        "this machine's certificates",
        Set::One("FILE", |c, v| path(v).map(|p| c.upstream_ca_file = Some(p))),
        "Certificates that vouch for upstream caches, as a PEM bundle",
    ),
    key(
        "cold",
        "none",
        Set::One("URL", |c, v| bucket(v).map(|b| c.cold = b)),
        "Bucket behind the mesh, s3://bucket/prefix, that paths are written to some time after and read from when no node has them",
    ),
    key(
        "cold-endpoint",
        "$AWS_ENDPOINT_URL, else that of AWS",
        Set::One("URL", |c, v| endpoint(v).map(|e| c.cold_endpoint = e)),
        "The bucket's server, http or https, where it is not AWS's",
    ),
    key(
        "cold-region",
        "$AWS_REGION, else us-east-1",
        Set::One("NAME", |c, v| word(v).map(|r| c.cold_region = r)),
        "The bucket's region",
    ),
    key(
        "cold-credentials-file",
        "$AWS_ACCESS_KEY_ID and $AWS_SECRET_ACCESS_KEY, else the machine's role",
        Set::One("FILE", |c, v| optional_path(v).map(|p| c.cold_credentials_file = p)),
        "Who this node is to the bucket: aws_access_key_id and aws_secret_access_key, as in ~/.aws/credentials",
    ),
    key(
        "cold-upload-rate",
        "none",
        Set::One("SIZE", |c, v| parse_optional_size(v).map(|s| c.cold_upload_rate = s)),
        "Bytes that are written to the bucket a second, at most",
    ),
    key(
        "cold-read-only",
        "false",
        Set::Switch(|c, v| c.cold_read_only = v),
        "Read from the bucket and write nothing to it",
    ),
    key(
        "cold-last-copies",
        "false",
        Set::Switch(|c, v| c.cold_last_copies = v),
        "Let collections delete the last copies of paths that the bucket has whole: it is the only place then where they are",
    ),
    key(
        "secret-key-file",
        "<data-dir>/keys/signing-key, made on first start",
        Set::Many("FILE", |c, v| v.iter().map(|f| path(f)).collect::<Result<_, _>>().map(|v| c.secret_key_file = v)),
        "Key that signs what is built here",
    ),
    key(
        "store-quota",
        "80%",
        Set::One("SIZE", |c, v| Quota::parse(v).map(|q| c.store_quota = q)),
        "Disk the store may fill, in bytes or as a share of the file system",
    ),
    key(
        "store-quota-low",
        "5 % below store-quota",
        Set::One("SIZE", |c, v| Quota::parse(v).map(|q| c.store_quota_low = Some(q))),
        "Down to where the store is collected once it is beyond store-quota",
    ),
    key(
        "scrub-rate",
        "20MiB",
        Set::One("SIZE", |c, v| parse_optional_size(v).map(|s| c.scrub_rate = s)),
        "Bytes that a scrub of the store reads a second; or none for as many as it can",
    ),
    key(
        "scrub-interval",
        "30d",
        Set::One("TIME", |c, v| parse_optional_duration(v).map(|t| c.scrub_interval = t)),
        "How long after a scrub of the store the next one begins; or none for never",
    ),
    key(
        "drain-timeout",
        "10m",
        Set::One("TIME", |c, v| parse_duration(v).map(|t| c.drain_timeout = t)),
        "How long a node that was told to stop waits for running builds",
    ),
    Key {
        section: "log",
        ..key(
            "log-level",
            "info",
            Set::One("LEVEL", |c, v| level(v).map(|l| c.log.level = l)),
            "error, warn, info, debug or trace; or a list like info,shoal_store=debug",
        )
    },
    Key {
        section: "log",
        ..key(
            "log-format",
            "auto",
            Set::One("FORMAT", |c, v| format(v).map(|f| c.log.format = f)),
            "text, json, or auto: text on a terminal and JSON otherwise",
        )
    },
];

impl Key {
    /// The name inside its section of the file.
    pub fn name(&self) -> &'static str {
        let section = self.flag.strip_prefix(self.section).unwrap_or(self.flag);
        section.strip_prefix('-').unwrap_or(section)
    }

    /// The name with its section, as messages show it.
    pub fn path(&self) -> String {
        if self.section.is_empty() { self.flag.into() } else { format!("{}.{}", self.section, self.name()) }
    }

    pub fn variable(&self) -> String {
        let upper = |text: &str| text.replace('-', "_").to_uppercase();
        let section = if self.section.is_empty() { String::new() } else { format!("{}__", upper(self.section)) };
        format!("SHOAL_{section}{}", upper(self.name()))
    }

    /// Sets the key from texts: one for a flag or a scalar, any number for a list.
    pub fn apply(&self, config: &mut Config, texts: Vec<String>) -> Result<(), String> {
        let last = || texts.last().map(String::as_str).unwrap_or_default();
        match self.set {
            Set::Switch(set) => switch(last()).map(|value| set(config, value)),
            Set::One(_, set) => set(config, last()),
            Set::Many(_, set) => set(config, texts),
        }
    }
}

fn switch(text: &str) -> Result<bool, String> {
    match text {
        "true" | "yes" | "on" | "1" => Ok(true),
        "false" | "no" | "off" | "0" => Ok(false),
        _ => Err(format!("'{text}' is neither true nor false")),
    }
}

fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("an empty path".into()) } else { Ok(PathBuf::from(text)) }
}

fn optional_path(text: &str) -> Result<Option<PathBuf>, String> {
    if text == "none" { Ok(None) } else { path(text).map(Some) }
}

fn name(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    match text {
        "" => Err("an empty name".into()),
        text if text.len() <= 64 && text.chars().all(fits) => Ok(text.into()),
        _ => Err(format!("'{text}' is not a name: up to 64 letters, digits, '-', '_' and '.'")),
    }
}

fn positive(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(number @ 1..) => Ok(number),
        _ => Err(format!("'{text}' is not a number of at least 1")),
    }
}

fn votes(text: &str) -> Result<u32, String> {
    let most = shoal_grid::ballot::VOTES_MAX as u32;
    match positive(text) {
        Ok(number) if number <= most => Ok(number),
        _ => Err(format!("'{text}' is not a number of nodes from 1 to {most}")),
    }
}

/// `ADDR:PORT`, `:PORT` for every address, or `none`.
fn listen(text: &str) -> Result<Option<SocketAddr>, String> {
    let bad = || format!("'{text}' is not an address to listen on; write it like [::]:2222, 127.0.0.1:0 or none");
    match text {
        "none" => Ok(None),
        _ => match text.strip_prefix(':') {
            Some(port) => port.parse().map(|port| Some((Ipv6Addr::UNSPECIFIED, port).into())).map_err(|_| bad()),
            None => text.parse().map(Some).map_err(|_| bad()),
        },
    }
}

fn addresses(values: Vec<String>) -> Result<Vec<SocketAddr>, String> {
    let address = |text: &String| {
        text.parse().map_err(|_| format!("'{text}' is not an address with a port, like 192.0.2.1:7433"))
    };
    values.iter().map(address).collect()
}

fn peers(values: Vec<String>) -> Result<Vec<String>, String> {
    values.iter().try_for_each(|text| text.parse::<PeerAddress>().map(drop).map_err(|error| error.to_string()))?;
    Ok(values)
}

fn inputs(text: &str) -> Result<InputsKind, String> {
    let all = [InputsKind::Auto, InputsKind::Lazy, InputsKind::Materialised, InputsKind::Bind];
    let found = all.into_iter().find(|kind| kind.to_string() == text);
    found.ok_or_else(|| format!("'{text}' is none of auto, lazy, materialised and bind"))
}

fn http_read(text: &str) -> Result<HttpRead, String> {
    match text {
        "open" => Ok(HttpRead::Open),
        "token" => Ok(HttpRead::Token),
        _ => Err(format!("'{text}' is neither open nor token")),
    }
}

fn words(values: Vec<String>) -> Result<Vec<String>, String> {
    match values.iter().find(|v| v.is_empty() || v.contains(char::is_whitespace)) {
        Some(bad) => Err(format!("'{bad}' is not one word")),
        None => Ok(values),
    }
}

fn public_keys(values: Vec<String>) -> Result<Vec<String>, String> {
    let fits = |v: &String| v.split_once(':').is_some_and(|(name, key)| !name.is_empty() && key.len() == 44);
    match values.iter().find(|v| !fits(v)) {
        Some(bad) => Err(format!("'{bad}' is not a public key in the form name:base64")),
        None => Ok(values),
    }
}

fn upstreams(values: Vec<String>) -> Result<Vec<String>, String> {
    values.iter().try_for_each(|url| Location::parse(url).map(drop))?;
    Ok(values)
}

fn bucket(text: &str) -> Result<Option<String>, String> {
    if text == "none" { Ok(None) } else { cold::Location::parse(text).map(|location| Some(location.url())) }
}

fn endpoint(text: &str) -> Result<Option<String>, String> {
    let has_host = |scheme| text.strip_prefix(scheme).is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'));
    match text {
        "none" => Ok(None),
        _ if has_host("http://") || has_host("https://") => Ok(Some(text.into())),
        _ => Err(format!("'{text}' is not the URL of a server, like https://s3.example.org")),
    }
}

fn word(text: &str) -> Result<Option<String>, String> {
    match text {
        "none" => Ok(None),
        "" => Err("an empty name".into()),
        text if text.contains(char::is_whitespace) => Err(format!("'{text}' is not one word")),
        text => Ok(Some(text.into())),
    }
}

fn level(text: &str) -> Result<String, String> {
    match text.parse::<tracing_subscriber::filter::Targets>() {
        Ok(_) if !text.is_empty() => Ok(text.into()),
        _ => Err(format!("'{text}' is not a log level")),
    }
}

fn offer(text: &str) -> Result<Offer, String> {
    match text {
        "auto" => Ok(Offer::Auto),
        "none" => Ok(Offer::None),
        "zstd" => Ok(Offer::Zstd),
        _ => Err(format!("'{text}' is not a form of NARs: none, zstd or auto")),
    }
}

fn format(text: &str) -> Result<LogFormat, String> {
    match text {
        "auto" => Ok(LogFormat::Auto),
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(format!("'{text}' is not a log format: text, json or auto")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every key reaches a field of the configuration, and every field has its key.
    #[test]
    fn keys_and_fields_are_the_same() {
        let json = serde_json::to_value(Config::detected()).unwrap();
        let mut fields = Vec::new();
        for (name, value) in json.as_object().unwrap() {
            match value.as_object() {
                Some(section) => fields.extend(section.keys().map(|inner| format!("{name}.{inner}"))),
                None => fields.push(name.clone()),
            }
        }
        let mut keys: Vec<String> = KEYS.iter().map(Key::path).collect();
        fields.sort();
        keys.sort();
        assert_eq!(fields, keys);
    }

    #[test]
    fn a_section_is_a_prefix_of_the_flag() {
        for key in KEYS.iter().filter(|key| !key.section.is_empty()) {
            assert_eq!(key.flag, format!("{}-{}", key.section, key.name()));
        }
        let level = KEYS.iter().find(|key| key.flag == "log-level").unwrap();
        assert_eq!((level.path().as_str(), level.variable().as_str()), ("log.level", "SHOAL_LOG__LEVEL"));
    }

    #[test]
    fn listening_addresses() {
        assert_eq!(listen(":0").unwrap().unwrap().to_string(), "[::]:0");
        assert_eq!(listen("127.0.0.1:22").unwrap().unwrap().to_string(), "127.0.0.1:22");
        assert_eq!(listen("none"), Ok(None));
        assert!(listen("localhost").is_err() && listen("22").is_err());
    }
}
