//! Edits the list of SSH keys that may use the node. What a line means is decided by [`authorized_keys`].

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use russh::keys::{HashAlg, PublicKey};

use crate::config::detect;
use crate::door::authorized_keys::{self, Grant, Role};
use crate::files;

const HEADER: &str = "\
# SSH keys that may use this node, one a line, in the form of OpenSSH's authorized_keys.
# role=\"read|push|build|admin\" and tenant=\"name\" may stand before a key; without a role it is admin.
# Changes count at once.
";

/// A key of the list.
#[derive(Clone, Debug)]
pub struct Client {
    pub key: PublicKey,
    pub grant: Grant,
}

impl Client {
    pub fn fingerprint(&self) -> String {
        self.key.fingerprint(HashAlg::Sha256).to_string()
    }

    /// Whether a person means this key by `what`: its comment, fingerprint, or the key itself.
    fn is(&self, what: &str) -> bool {
        self.grant.who == what
            || self.fingerprint() == what
            || PublicKey::from_openssh(what).is_ok_and(|key| key.key_data() == self.key.key_data())
    }
}

/// The usable keys of the file; an absent file has none.
pub fn list(path: &Path) -> Result<Vec<Client>> {
    Ok(read(path)?.lines().filter_map(client).collect())
}

/// Adds a key. One that is there already takes the new role and tenant.
pub fn add(path: &Path, key: &PublicKey, role: Role, tenant: Option<&str>) -> Result<()> {
    let tenant = match tenant {
        Some(tenant) if tenant.is_empty() || tenant.contains(['"', '\\', '\n']) => {
            bail!("'{tenant}' is no tenant's name")
        }
        Some(tenant) => format!(",tenant=\"{tenant}\""),
        None => String::new(),
    };
    let line = format!("role=\"{role}\"{tenant} {}", key.to_openssh().context("not a usable key")?.trim());
    let old = read(path)?;
    let others = old.lines().filter(|line| client(line).is_none_or(|client| client.key.key_data() != key.key_data()));
    let mut text: String = others.map(|line| format!("{line}\n")).collect();
    if text.is_empty() {
        text.push_str(HEADER);
    }
    write(path, &(text + &line + "\n"))
}

/// Removes the keys that `what` names, and returns them.
pub fn remove(path: &Path, what: &str) -> Result<Vec<Client>> {
    let old = read(path)?;
    let named = |line: &str| client(line).filter(|client| client.is(what));
    let removed: Vec<Client> = old.lines().filter_map(named).collect();
    if removed.is_empty() {
        bail!("{} has no key '{what}'; `shoal client list` shows what it has", path.display());
    }
    let kept: String = old.lines().filter(|line| named(line).is_none()).map(|line| format!("{line}\n")).collect();
    write(path, &kept)?;
    Ok(removed)
}

/// On the first start, when there is no file yet: lets in the SSH keys of whoever started the node. Returns how many,
/// or `None` when there is a file.
pub fn import(path: &Path) -> Result<Option<usize>> {
    if path.exists() {
        return Ok(None);
    }
    write(path, HEADER)?;
    let mut count = 0;
    for directory in ssh_directories() {
        for file in public_key_files(&directory) {
            match fs::read_to_string(&file).map_err(anyhow::Error::from).and_then(|text| Ok(text.parse()?)) {
                Ok(key) => {
                    add(path, &key, Role::Admin, None)?;
                    count += 1;
                }
                Err(error) => tracing::warn!("{} is left out: {error:#}", file.display()),
            }
        }
    }
    Ok(Some(count))
}

fn client(line: &str) -> Option<Client> {
    let (key, grant) = authorized_keys::read_line(line).ok()??;
    Some(Client { key, grant })
}

fn read(path: &Path) -> Result<String> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        other => other.with_context(|| format!("cannot read {}", path.display())),
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    files::replace(path, files::SECRET, text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}

/// `.ssh` of this user, and of the one behind sudo.
fn ssh_directories() -> Vec<PathBuf> {
    let behind_sudo = env::var("SUDO_USER").ok().and_then(|user| {
        let passwd = fs::read_to_string("/etc/passwd").ok()?;
        home_in(&passwd, &user)
    });
    let mut homes: Vec<PathBuf> = detect::home().into_iter().chain(behind_sudo).collect();
    homes.dedup();
    homes.into_iter().map(|home| home.join(".ssh")).collect()
}

/// A user's home directory by the lines of passwd(5).
fn home_in(passwd: &str, user: &str) -> Option<PathBuf> {
    let mut lines = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    lines.find(|fields| fields.first() == Some(&user))?.get(5).map(PathBuf::from)
}

fn public_key_files(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let is_key = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("id_") && name.ends_with(".pub")
    };
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(is_key).collect();
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBF7tYwKaNAqVpTMpcWnL7uMbNtGQz0rYWEbM6YQYvqK alice@laptop";
    const B: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIK0wmN/Cr3JXqmLW7u+g9pTh+wyqDHpSQEIQczXkVx9q bob";

    #[test]
    fn keys_come_and_go_and_other_lines_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("authorized_keys");
        let (a, b): (PublicKey, PublicKey) = (A.parse().unwrap(), B.parse().unwrap());
        add(&path, &a, Role::Build, Some("team")).unwrap();
        add(&path, &b, Role::Read, None).unwrap();
        add(&path, &a, Role::Admin, None).unwrap();
        let all = list(&path).unwrap();
        let seen: Vec<_> =
            all.iter().map(|c| (c.grant.who.as_str(), c.grant.role, c.grant.tenant.as_deref())).collect();
        assert_eq!(seen, [("bob", Role::Read, None), ("alice@laptop", Role::Admin, None)]);
        assert!(remove(&path, "carol").is_err());
        assert_eq!(remove(&path, &all[0].fingerprint()).unwrap().len(), 1);
        assert_eq!(remove(&path, A).unwrap().len(), 1);
        assert_eq!(fs::read_to_string(&path).unwrap(), HEADER);
        assert!(add(&path, &a, Role::Build, Some("a\" b")).is_err());
    }

    #[test]
    fn only_public_keys_with_their_usual_names_are_found() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["id_ed25519", "id_ed25519.pub", "known_hosts", "id_rsa.pub", "other.pub"] {
            fs::write(dir.path().join(name), A).unwrap();
        }
        let found = public_key_files(dir.path());
        assert_eq!(found, ["id_ed25519.pub", "id_rsa.pub"].map(|name| dir.path().join(name)));
    }

    #[test]
    fn homes_are_found_by_name() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nann:x:1:1::/home/ann:/bin/sh\nbroken\n";
        assert_eq!(home_in(passwd, "ann"), Some("/home/ann".into()));
        assert_eq!(home_in(passwd, "broken"), None);
        assert_eq!(home_in(passwd, "bob"), None);
    }
}
