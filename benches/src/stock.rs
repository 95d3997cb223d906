//! What a node is measured beside: a real nix-daemon behind a real sshd on loopback.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use shoal_tests::command::{Running, wait_for};
use shoal_tests::{Cmd, Nix, Place};

pub const STORE: &str = "ssh-ng://root@127.0.0.1";
/// From start to listening, on a busy machine.
const READY_PATIENCE: Duration = Duration::from_secs(20);

/// Ended, with its directory, when dropped. Its sessions end with their clients.
pub struct Stock {
    place: Place,
    port: u16,
    _sshd: Running,
}

pub const NO_STOCK: &str = "stock Nix over ssh needs root, for sshd: not measured";

/// sshd separates privileges, which only root can.
pub fn can_run() -> bool {
    rustix::process::geteuid().is_root()
}

impl Stock {
    /// Serves the store root `root` with `max_jobs` builds at once. `key_exchange` keeps sshd to these methods.
    pub fn start(nix: &Nix, root: &Path, max_jobs: usize, key_exchange: Option<&str>) -> Result<Stock> {
        if !can_run() {
            bail!("{NO_STOCK}");
        }
        let ssh = Nix::get("sshd");
        let place = Place::new("s");
        fs::create_dir(place.join("home"))?;
        for key in ["host", "client"] {
            let keygen = Cmd::new(ssh.program("ssh-keygen")).args(["-q", "-t", "ed25519", "-N", "", "-C", key, "-f"]);
            keygen.arg(place.join(key)).ok();
        }
        fs::copy(place.join("client.pub"), place.join("authorized"))?;
        fs::write(place.join("passwd"), passwd(&place.join("home"))?)?;
        write_session(&place.join("session"), nix, root, &place.join("home"), max_jobs)?;
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        fs::write(place.join("config"), config(&place, port, key_exchange))?;
        let host = fs::read_to_string(place.join("host.pub"))?;
        fs::write(place.join("known"), format!("[127.0.0.1]:{port} {host}"))?;
        let sshd = start_sshd(&ssh.program("sshd").canonicalize().context("sshd")?, &place)?;
        wait_for("an sshd that listens", READY_PATIENCE, || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok());
        Ok(Stock { place, port, _sshd: sshd })
    }

    /// For `NIX_SSHOPTS`.
    pub fn ssh_options(&self) -> String {
        format!(
            "-p {} -i {} -F none -o IdentitiesOnly=yes -o BatchMode=yes -o StrictHostKeyChecking=yes \
             -o UserKnownHostsFile={} -o LogLevel=ERROR",
            self.port,
            self.place.join("client").display(),
            self.place.join("known").display()
        )
    }
}

/// The host's users, with the one sshd drops to; root's shell reads no profile that would be measured with it.
fn passwd(home: &Path) -> Result<String> {
    let host = fs::read_to_string("/etc/passwd").context("/etc/passwd")?;
    let mut users: String = host
        .lines()
        .filter(|line| !line.starts_with("root:") && !line.starts_with("sshd:"))
        .fold(String::new(), |all, line| all + line + "\n");
    users.push_str(&format!("root:x:0:0:root:{}:/bin/sh\n", home.display()));
    users.push_str("sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin\n");
    Ok(users)
}

/// What a login runs: the command asked for, with this Nix in front.
fn write_session(file: &Path, nix: &Nix, root: &Path, home: &Path, max_jobs: usize) -> Result<()> {
    let bin = nix.program("nix").parent().map(PathBuf::from).unwrap_or_default();
    let script = format!(
        "#!/bin/sh\nexport PATH={}:/usr/bin:/bin HOME={} NIX_REMOTE='local?root={}' NIX_CONFIG='max-jobs = {max_jobs}'\n\
         exec $SSH_ORIGINAL_COMMAND\n",
        bin.display(),
        home.display(),
        root.display()
    );
    fs::write(file, script)?;
    fs::set_permissions(file, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn config(place: &Place, port: u16, key_exchange: Option<&str>) -> String {
    let path = |name: &str| place.join(name).display().to_string();
    let mut config = format!(
        "ListenAddress 127.0.0.1:{port}\nHostKey {}\nAuthorizedKeysFile {}\nForceCommand {}\nPidFile none\n\
         PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\nStrictModes no\n\
         PermitRootLogin yes\nMaxSessions 100\nMaxStartups 100\n",
        path("host"),
        path("authorized"),
        path("session")
    );
    if let Some(methods) = key_exchange {
        config.push_str(&format!("KexAlgorithms {methods}\n"));
    }
    config
}

/// In a mount namespace of its own, where the user list and /run are ours.
fn start_sshd(sshd: &Path, place: &Place) -> Result<Running> {
    let script = "mount --bind \"$1/passwd\" /etc/passwd && mount -t tmpfs -o mode=755 tmpfs /run && \
                  mkdir -p /run/sshd && exec \"$2\" -D -e -f \"$1/config\"";
    let log = fs::File::create(place.join("log"))?;
    let unshare = Cmd::new("unshare").args(["-m", "--propagation", "private", "sh", "-c", script, "sh"]);
    Ok(unshare.arg(place.path()).arg(sshd).start_into(Stdio::null(), Stdio::from(log)))
}
