//! The lines that point a machine's Nix at a node, and the files they belong in.
//!
//! Every Nix can reach a node on any port through an alias in ssh's configuration; a port in the store's URL is
//! understood by recent versions only.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::config::detect;
use crate::files;

/// What a client needs to know of a node.
#[derive(Clone, Debug, Serialize)]
pub struct Setup {
    /// The node's name in ssh's configuration.
    pub alias: String,
    pub host: String,
    pub port: u16,
    /// `ssh-ed25519 <base64>`.
    pub host_key: String,
    /// Of the node's binary cache, like `http://host:8080`; absent where it has none.
    pub cache: Option<String>,
    /// Whether reading from it takes a token.
    pub needs_token: bool,
    /// `name:base64`.
    pub public_keys: Vec<String>,
    pub systems: Vec<String>,
    pub features: Vec<String>,
    pub max_jobs: u32,
}

/// Whose files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    System,
    User,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    pub nix_conf: PathBuf,
    pub machines: PathBuf,
    pub ssh_config: PathBuf,
    pub known_hosts: PathBuf,
    /// Whether Nix looks for the machines file there unasked.
    machines_by_default: bool,
}

impl Place {
    pub fn of_this_user() -> Place {
        if detect::is_root() { Place::System } else { Place::User }
    }

    pub fn files(self, alias: &str) -> Result<Files> {
        if self == Place::System {
            let nix = env::var_os("NIX_CONF_DIR").map_or_else(|| PathBuf::from("/etc/nix"), PathBuf::from);
            return Ok(Files {
                nix_conf: nix.join("nix.conf"),
                machines: nix.join("machines"),
                ssh_config: format!("/etc/ssh/ssh_config.d/{alias}.conf").into(),
                known_hosts: "/etc/ssh/ssh_known_hosts".into(),
                machines_by_default: true,
            });
        }
        let home = detect::home().context("HOME is not set, so your own files cannot be found")?;
        let config = env::var_os("XDG_CONFIG_HOME").map_or_else(|| home.join(".config"), PathBuf::from);
        Ok(Files {
            nix_conf: config.join("nix/nix.conf"),
            machines: config.join("nix/machines"),
            ssh_config: home.join(".ssh/config"),
            known_hosts: home.join(".ssh/known_hosts"),
            machines_by_default: false,
        })
    }
}

impl Setup {
    pub fn store_url(&self) -> String {
        format!("ssh-ng://{}", self.alias)
    }

    pub fn ssh_config(&self) -> String {
        let Setup { alias, host, port, .. } = self;
        format!("Host {alias}\n  HostName {host}\n  Port {port}\n  HostKeyAlias {alias}\n")
    }

    pub fn known_hosts(&self) -> String {
        format!("{} {}\n", self.alias, self.host_key)
    }

    /// A path that a node did not have a moment ago may have been built on it since, so a client must not remember
    /// for an hour, as it would by itself, that it is missing.
    pub fn nix_conf(&self) -> String {
        let cache = match &self.cache {
            Some(url) => format!("extra-substituters = {url}\nnarinfo-cache-negative-ttl = 0\n"),
            None => String::new(),
        };
        let keys = self.public_keys.join(" ");
        format!("{cache}extra-trusted-public-keys = {keys}\nbuilders-use-substitutes = true\n")
    }

    /// A line of the netrc for each machine that reads; `None` where that takes no token.
    pub fn netrc(&self) -> Option<String> {
        self.needs_token.then(|| format!("machine {} login any password shoal-...\n", self.host))
    }

    /// What people do themselves before the cache can be used.
    fn cache_notes(&self) -> String {
        let netrc = self.netrc().map(|line| {
            format!(
                "# /etc/nix/netrc, or the file that `netrc-file` in nix.conf names, with what \
                 `shoal token create --role read --name <machine>` prints on the node\n{line}\n"
            )
        });
        let is_encrypted = self.cache.as_ref().is_some_and(|url| url.starts_with("https:"));
        let trust = is_encrypted.then_some(
            "# Where the machine does not trust the certificate of the cache by itself:\n\
             #   ssl-cert-file = <bundle> in nix.conf from Nix 2.15 on, NIX_SSL_CERT_FILE for its daemon before\n\n",
        );
        format!("{}{}", netrc.unwrap_or_default(), trust.unwrap_or_default())
    }

    /// A line of Nix's `machines` file: store, systems, key, jobs, speed, features, mandatory features, host key.
    pub fn machines(&self) -> String {
        let list = |items: &[String]| if items.is_empty() { "-".into() } else { items.join(",") };
        format!(
            "{} {} - {} 1 {} - -\n",
            self.store_url(),
            list(&self.systems),
            self.max_jobs.max(1),
            list(&self.features)
        )
    }

    /// All of it, for people to read and to copy.
    pub fn text(&self) -> String {
        let store = self.store_url();
        format!(
            "# ~/.ssh/config, or /etc/ssh/ssh_config.d/{}.conf for a whole machine\n{}\n\
             # ~/.ssh/known_hosts, or /etc/ssh/ssh_known_hosts\n{}\n\
             # /etc/nix/nix.conf\n{}\n{}\
             # /etc/nix/machines, to have this node build whatever the machine is asked to build\n{}\n\
             # then, without changing nix.conf:\n\
             #   nix build --eval-store auto --store {store} <installable>\n\
             #   nix copy --to {store} <path>\n",
            self.alias,
            self.ssh_config(),
            self.known_hosts(),
            self.nix_conf(),
            self.cache_notes(),
            self.machines(),
        )
    }

    /// Puts each part into its file, in place of what an earlier call put there. Returns the files it changed.
    pub fn write(&self, files: &Files) -> Result<Vec<PathBuf>> {
        let mut nix_conf = self.nix_conf();
        if !files.machines_by_default {
            nix_conf.push_str(&format!("builders = @{}\n", files.machines.display()));
        }
        let parts = [
            (&files.ssh_config, self.ssh_config(), files::PUBLIC),
            (&files.known_hosts, self.known_hosts(), files::PUBLIC),
            (&files.nix_conf, nix_conf, files::PUBLIC),
            (&files.machines, self.machines(), files::PUBLIC),
        ];
        let mut changed = Vec::new();
        for (path, part, mode) in parts {
            if write_part(path, &self.alias, &part, mode).with_context(|| format!("cannot write {}", path.display()))? {
                changed.push(path.clone());
            }
        }
        Ok(changed)
    }
}

/// Whether the file had to change.
fn write_part(path: &Path, alias: &str, part: &str, mode: u32) -> io::Result<bool> {
    let old = match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        other => other?,
    };
    let new = with_part(&old, alias, part);
    if new == old {
        return Ok(false);
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    // A link (many people keep such files elsewhere) stays one.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    files::replace_keeping(&target, mode, new.as_bytes())?;
    Ok(true)
}

/// `text` with `part` between the marks of `alias`, at its end or where the marks are.
fn with_part(text: &str, alias: &str, part: &str) -> String {
    let begin = format!("# {alias}: begin, written by `shoal use`\n");
    let end = format!("# {alias}: end\n");
    let marked = format!("{begin}{part}{end}");
    if let Some(start) = text.find(&begin)
        && let Some(length) = text[start..].find(&end)
    {
        return format!("{}{marked}{}", &text[..start], &text[start + length + end.len()..]);
    }
    let gap = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    format!("{text}{gap}{marked}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use std::os::unix::fs::PermissionsExt;

    fn setup() -> Setup {
        Setup {
            alias: "shoal-n".into(),
            host: "h.example".into(),
            port: 2222,
            host_key: "ssh-ed25519 AAAA".into(),
            cache: Some("http://h.example:8080".into()),
            needs_token: false,
            public_keys: vec!["n-1:k".into()],
            systems: vec!["x86_64-linux".into(), "i686-linux".into()],
            features: vec!["kvm".into()],
            max_jobs: 4,
        }
    }

    #[test]
    fn the_lines_for_a_client() {
        expect![[r#"
            # ~/.ssh/config, or /etc/ssh/ssh_config.d/shoal-n.conf for a whole machine
            Host shoal-n
              HostName h.example
              Port 2222
              HostKeyAlias shoal-n

            # ~/.ssh/known_hosts, or /etc/ssh/ssh_known_hosts
            shoal-n ssh-ed25519 AAAA

            # /etc/nix/nix.conf
            extra-substituters = http://h.example:8080
            narinfo-cache-negative-ttl = 0
            extra-trusted-public-keys = n-1:k
            builders-use-substitutes = true

            # /etc/nix/machines, to have this node build whatever the machine is asked to build
            ssh-ng://shoal-n x86_64-linux,i686-linux - 4 1 kvm - -

            # then, without changing nix.conf:
            #   nix build --eval-store auto --store ssh-ng://shoal-n <installable>
            #   nix copy --to ssh-ng://shoal-n <path>
        "#]]
        .assert_eq(&setup().text());
    }

    #[test]
    fn what_a_cache_with_tokens_and_tls_takes() {
        expect![[r#"
            # /etc/nix/netrc, or the file that `netrc-file` in nix.conf names, with what `shoal token create --role read --name <machine>` prints on the node
            machine h.example login any password shoal-...

            # Where the machine does not trust the certificate of the cache by itself:
            #   ssl-cert-file = <bundle> in nix.conf from Nix 2.15 on, NIX_SSL_CERT_FILE for its daemon before

        "#]]
        .assert_eq(&Setup { needs_token: true, cache: Some("https://h.example:8080".into()), ..setup() }.cache_notes());
    }

    #[test]
    fn writing_twice_changes_nothing_and_keeps_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join("sub").join(name);
        let files = Files {
            nix_conf: file("nix.conf"),
            machines: file("machines"),
            ssh_config: file("config"),
            known_hosts: file("known_hosts"),
            machines_by_default: false,
        };
        fs::create_dir_all(dir.path().join("sub")).unwrap();
        fs::write(&files.nix_conf, "max-jobs = 2").unwrap();
        // It may hold what others must not read: access tokens.
        fs::set_permissions(&files.nix_conf, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(setup().write(&files).unwrap().len(), 4);
        assert_eq!(setup().write(&files).unwrap(), Vec::<PathBuf>::new());
        let moved = Setup { port: 1, ..setup() };
        assert_eq!(moved.write(&files).unwrap(), std::slice::from_ref(&files.ssh_config));
        let conf = fs::read_to_string(&files.nix_conf).unwrap();
        assert!(conf.starts_with("max-jobs = 2\n# shoal-n: begin"), "{conf}");
        assert_eq!(fs::metadata(&files.nix_conf).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(conf.contains(&format!("builders = @{}\n", files.machines.display())), "{conf}");
        let ssh = fs::read_to_string(&files.ssh_config).unwrap();
        assert_eq!((ssh.matches("Host shoal-n").count(), ssh.matches("Port 1\n").count()), (1, 1));
    }
}
