//! The node's own keys, in `<data-dir>/keys`: made on first start, never replaced.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use shoal_wire::nix::base64::encode_hex;
use shoal_wire::nix::signature::SecretKey;

use crate::config::Config;
use crate::files;

const NODE_KEY: &str = "node-key";
/// Signs what the node builds, in Nix's format.
const SIGNING_KEY: &str = "signing-key";
/// Sign what a mesh builds; a file in the directory of what is kept of it.
const MESH_SIGNING_KEYS: &str = "signing-keys";
/// A key file is some short lines.
const KEY_FILE_BYTES_MAX: u64 = 4096;

pub fn directory(data_dir: &Path) -> PathBuf {
    data_dir.join("keys")
}

/// Says who the node is to other nodes.
pub fn node_key(data_dir: &Path) -> Result<SecretKey> {
    read_or_make(&directory(data_dir).join(NODE_KEY), "node")
}

/// The node's identity: the public half of its node key, in hexadecimal.
pub fn node_id(data_dir: &Path) -> Result<String> {
    Ok(encode_hex(node_key(data_dir)?.public().bytes()))
}

/// The keys that sign what is built here: those of the configuration, else those of the mesh, else the node's own, which
/// is made if absent.
pub fn signing_keys(config: &Config) -> Result<Vec<SecretKey>> {
    match given_signing_keys(config)? {
        Some(keys) => Ok(keys),
        None => Ok(vec![own_signing_key(config)?]),
    }
}

/// The same where nothing is to be made.
pub fn existing_signing_keys(config: &Config) -> Result<Vec<SecretKey>> {
    match given_signing_keys(config)? {
        Some(keys) => Ok(keys),
        None => Ok(vec![read(&directory(&config.data_dir).join(SIGNING_KEY))?]),
    }
}

fn given_signing_keys(config: &Config) -> Result<Option<Vec<SecretKey>>> {
    if !config.secret_key_file.is_empty() {
        return config.secret_key_file.iter().map(|path| read(path)).collect::<Result<_>>().map(Some);
    }
    if let Some(secret) = &config.mesh_secret_file {
        return Ok(Some(vec![of_mesh_secret(&read(secret)?)?]));
    }
    let of_mesh = crate::mesh::directory(&config.data_dir).join(MESH_SIGNING_KEYS);
    if of_mesh.exists() { read_all(&of_mesh).map(Some) } else { Ok(None) }
}

/// What this node signs with while it is in no mesh, and what it signed with before it was in one.
pub fn own_signing_key(config: &Config) -> Result<SecretKey> {
    read_or_make(&directory(&config.data_dir).join(SIGNING_KEY), &format!("{}-1", config.name))
}

/// The key that nodes sign with which share the secret of their mesh as a file: each of them makes the same of it.
fn of_mesh_secret(secret: &SecretKey) -> Result<SecretKey> {
    let seed = blake3::derive_key("shoal 2026 signing key of a mesh secret", secret.seed());
    Ok(SecretKey::from_seed(&format!("{}-signing", secret.name()), seed)?)
}

/// Secret keys in Nix's form, one a line.
fn read_all(path: &Path) -> Result<Vec<SecretKey>> {
    let no_key = || format!("{} holds no secret keys", path.display());
    read_text(path)?.lines().map(|line| line.parse().with_context(no_key)).collect()
}

/// A secret key in Nix's form, `name:base64`.
pub fn read(path: &Path) -> Result<SecretKey> {
    read_text(path)?.parse().with_context(|| format!("{} holds no secret key", path.display()))
}

fn read_text(path: &Path) -> Result<String> {
    let text = fs::metadata(path).and_then(|meta| match meta.len() {
        len if len > KEY_FILE_BYTES_MAX => Err(io::Error::other("too large for a key")),
        _ => fs::read_to_string(path),
    });
    text.with_context(|| format!("cannot read the key {}", path.display()))
}

/// Writes a new key to `path`, which must not exist.
pub fn make(path: &Path, name: &str) -> Result<SecretKey> {
    anyhow::ensure!(!path.exists(), "{} exists already", path.display());
    let key = SecretKey::generate(name)?;
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    }
    files::replace(path, files::SECRET, format!("{}\n", key.to_secret_text()).as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(key)
}

fn read_or_make(path: &Path, name: &str) -> Result<SecretKey> {
    if path.exists() { read(path) } else { make(path, name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::detected();
        config.data_dir = dir.path().into();
        config.name = "here".into();
        let first = signing_keys(&config).unwrap()[0].public();
        assert_eq!(first.name(), "here-1");
        assert_eq!(signing_keys(&config).unwrap()[0].public(), first);
        assert_eq!(node_id(dir.path()).unwrap(), node_id(dir.path()).unwrap());
    }

    #[test]
    fn nodes_with_one_mesh_secret_show_one_signing_key() {
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("secret");
        make(&secret, "shoal-mesh").unwrap();
        let shown = |name: &str| {
            let mut config = Config::detected();
            config.data_dir = dir.path().join(name);
            config.mesh_secret_file = Some(secret.clone());
            existing_signing_keys(&config).unwrap().iter().map(|key| key.public().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(shown("one"), shown("two"));
        assert!(shown("one")[0].starts_with("shoal-mesh-signing:"), "{:?}", shown("one"));
    }

    #[test]
    fn to_show_keys_makes_none() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::detected();
        config.data_dir = dir.path().join("data");
        assert!(existing_signing_keys(&config).is_err());
        assert!(!config.data_dir.exists());
    }

    #[test]
    fn a_broken_key_is_an_error_that_names_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k");
        fs::write(&path, "no key").unwrap();
        assert!(format!("{:#}", read(&path).err().unwrap()).contains(path.to_str().unwrap()));
        assert!(make(&path, "x").is_err(), "an existing file is never replaced");
    }
}
