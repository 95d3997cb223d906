//! The key by which ssh clients know this node.

use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::rand::SecureRandom;
use russh::keys::PrivateKey;
use russh::keys::ssh_key::LineEnding;
use russh::keys::ssh_key::private::Ed25519Keypair;
use tracing::warn;

/// Name of the file in the data directory; its public half lies beside it with `.pub`.
pub const FILE_NAME: &str = "ssh_host_ed25519_key";

#[derive(Debug, thiserror::Error)]
pub enum HostKeyError {
    #[error("cannot {what} {}: {source}", path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is not an OpenSSH private key without passphrase ({reason}); move it away to get a new one", path.display())]
    Unusable { path: PathBuf, reason: String },
    #[error("the machine gives no random numbers for a new ssh host key")]
    NoRandomness,
}

/// The key in `data_dir`, made there (mode 0600) when there is none.
pub fn load_or_create(data_dir: &Path) -> Result<PrivateKey, HostKeyError> {
    let path = data_dir.join(FILE_NAME);
    match std::fs::read_to_string(&path) {
        Ok(text) => parse(&path, &text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => create(&path),
        Err(source) => Err(HostKeyError::Io { what: "read", path, source }),
    }
}

/// Public half in one line of `known_hosts` and `authorized_keys` form: `ssh-ed25519 <base64>`.
pub fn public_line(key: &PrivateKey) -> String {
    let mut public = key.public_key().clone();
    public.set_comment("");
    public.to_openssh().unwrap_or_default().trim_end().to_owned()
}

fn parse(path: &Path, text: &str) -> Result<PrivateKey, HostKeyError> {
    let unusable = |reason: String| HostKeyError::Unusable { path: path.to_owned(), reason };
    let key = PrivateKey::from_openssh(text).map_err(|error| unusable(error.to_string()))?;
    if key.is_encrypted() {
        return Err(unusable("it has a passphrase".into()));
    }
    if let Ok(meta) = std::fs::metadata(path)
        && meta.permissions().mode() & 0o077 != 0
    {
        warn!("{} can be read by others; chmod 600 it", path.display());
    }
    Ok(key)
}

/// A new key in `path` (mode 0600), its public half beside it.
pub fn create(path: &Path) -> Result<PrivateKey, HostKeyError> {
    let mut seed = [0; 32];
    aws_lc_rs::rand::SystemRandom::new().fill(&mut seed).map_err(|_| HostKeyError::NoRandomness)?;
    let mut key = PrivateKey::from(Ed25519Keypair::from_seed(&seed));
    key.set_comment("shoal");
    let unusable = |error: russh::keys::ssh_key::Error| HostKeyError::Unusable {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    let text = key.to_openssh(LineEnding::LF).map_err(unusable)?;
    let public = public_line(&key) + " shoal\n";
    write_new(path, text.as_bytes(), 0o600)?;
    write_new(&path.with_extension("pub"), public.as_bytes(), 0o644)?;
    Ok(key)
}

/// Whole or not at all, whenever the machine stops.
fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), HostKeyError> {
    let temporary = path.with_extension("new");
    let io = |what, path: &Path| {
        let path = path.to_owned();
        move |source| HostKeyError::Io { what, path, source }
    };
    let _ = std::fs::remove_file(&temporary);
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)
        .map_err(io("create", &temporary))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io("write", &temporary))?;
    std::fs::rename(&temporary, path).map_err(io("create", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_made_once_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let first = load_or_create(dir.path()).unwrap();
        let mode = std::fs::metadata(dir.path().join(FILE_NAME)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let again = load_or_create(dir.path()).unwrap();
        assert_eq!(public_line(&first), public_line(&again));
        assert!(public_line(&first).starts_with("ssh-ed25519 AAAA"), "{}", public_line(&first));
        let beside = std::fs::read_to_string(dir.path().join("ssh_host_ed25519_key.pub")).unwrap();
        assert!(beside.starts_with(&public_line(&first)));
    }

    #[test]
    fn a_key_that_cannot_be_used_is_named_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        std::fs::write(&path, "junk").unwrap();
        let error = load_or_create(dir.path()).unwrap_err().to_string();
        assert!(error.contains(FILE_NAME), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "junk");
    }
}
