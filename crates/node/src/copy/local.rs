//! The Nix store of this machine, through its daemon or, where there is none, through `nix-daemon --stdio`.
//!
//! Which store is meant follows Nix's own variables: `NIX_REMOTE` (`daemon`, `unix://SOCKET`, `local?root=DIR`) and
//! `NIX_DAEMON_SOCKET_PATH`. Contents are read from the store's files where they can be seen, which is faster.

use std::collections::BTreeSet;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use shoal_wire::nix::nar::write::NarWriter;
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::store_path::{StoreDir, StorePath};
use shoal_wire::nix::worker::ops::{AddTempRoot, AddToStoreNar, IsValidPath, QueryAllValidPaths, QueryPathInfo};
use shoal_wire::nix::worker::{CallError, Client, MINOR_MAX, StderrMessage};

use crate::dump;

const DEFAULT_SOCKET: &str = "/nix/var/nix/daemon-socket/socket";
const DAEMON_PROGRAM: &str = "nix-daemon";
const BUFFER_BYTES: usize = 256 << 10;

/// How to get at the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalStore {
    /// `None`: a process of our own.
    socket: Option<PathBuf>,
    /// What that process takes for `NIX_REMOTE`.
    remote: String,
    /// Where the files of `/nix/store/...` really lie, if not there.
    root: Option<PathBuf>,
    pub dir: StoreDir,
}

impl LocalStore {
    /// The store that is named, by the directory it is rooted in or as in `NIX_REMOTE`, or the one that Nix would use
    /// with this environment.
    pub fn find(named: Option<&str>, variable: impl Fn(&str) -> Option<String>) -> LocalStore {
        let remote = match named {
            Some(root) if root.starts_with('/') => format!("local?root={root}"),
            Some(store) => store.to_owned(),
            None => variable("NIX_REMOTE").unwrap_or_default(),
        };
        let (store, query) = remote.split_once('?').unwrap_or((&remote, ""));
        let root = query.split('&').find_map(|pair| pair.strip_prefix("root=")).map(PathBuf::from);
        let usual = || PathBuf::from(variable("NIX_DAEMON_SOCKET_PATH").unwrap_or_else(|| DEFAULT_SOCKET.to_owned()));
        let socket = match store {
            "" | "auto" => Some(usual()).filter(|socket| UnixStream::connect(socket).is_ok()),
            "daemon" | "unix" => Some(usual()),
            store => store.strip_prefix("unix://").map(PathBuf::from),
        };
        LocalStore { socket, root, dir: StoreDir::default(), remote }
    }

    /// Where the files of a path lie.
    pub fn real_path(&self, path: &StorePath) -> PathBuf {
        let full = self.dir.print(path);
        match &self.root {
            Some(root) => root.join(full.trim_start_matches('/')),
            None => full.into(),
        }
    }

    /// Where the files of all paths lie, if they can be seen.
    pub fn real_dir(&self) -> PathBuf {
        match &self.root {
            Some(root) => root.join(self.dir.as_str().trim_start_matches('/')),
            None => self.dir.as_str().into(),
        }
    }

    pub fn connect(&self) -> Result<Connection> {
        let (input, output, child): (Input, Output, _) = match &self.socket {
            Some(socket) => {
                let stream = UnixStream::connect(socket)
                    .with_context(|| format!("cannot reach the Nix daemon at {}", socket.display()))?;
                (Box::new(stream.try_clone()?), Box::new(stream), None)
            }
            None => {
                let mut child = Command::new(DAEMON_PROGRAM)
                    .arg("--stdio")
                    .env("NIX_REMOTE", &self.remote)
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .spawn()
                    .with_context(|| {
                        format!(
                            "no Nix daemon listens, and `{DAEMON_PROGRAM} --stdio` cannot be run; install Nix, or name \
                             the socket of a daemon with --store unix://PATH"
                        )
                    })?;
                let (Some(output), Some(input)) = (child.stdin.take(), child.stdout.take()) else {
                    bail!("`{DAEMON_PROGRAM}` was started without pipes");
                };
                (Box::new(input), Box::new(output), Some(child))
            }
        };
        let (input, output) =
            (BufReader::with_capacity(BUFFER_BYTES, input), BufWriter::with_capacity(BUFFER_BYTES, output));
        let client = Client::connect(input, output, self.dir.clone(), MINOR_MAX, &BTreeSet::new());
        let client = client.context("the Nix daemon does not answer as one")?;
        Ok(Connection { client: Some(client), child, store: self.clone() })
    }
}

impl LocalStore {
    /// Whether a path whose NAR broke off does so again, while the daemon answers before and after. Nix says that a NAR
    /// comes before it looks at the files: where they are gone, it is the connection that breaks.
    fn withholds(&self, path: &StorePath) -> bool {
        let valid = || {
            let mut connection = self.connect()?;
            Ok::<_, anyhow::Error>(connection.is_valid(path)?.then_some(connection))
        };
        let Ok(Some(mut connection)) = valid() else { return false };
        let Ok(client) = connection.client() else { return false };
        let again = client.nar_from_path(path, NarWriter::new(io::sink()), ignore);
        matches!(again, Err(CallError::Proto(_))) && matches!(valid(), Ok(Some(_)))
    }
}

type Input = Box<dyn Read + Send>;
type Output = Box<dyn Write + Send>;
type DaemonClient = Client<BufReader<Input>, BufWriter<Output>>;

pub struct Connection {
    /// Present until dropped.
    client: Option<DaemonClient>,
    child: Option<Child>,
    store: LocalStore,
}

impl Connection {
    fn client(&mut self) -> Result<&mut DaemonClient> {
        self.client.as_mut().context("the connection to the Nix daemon is closed")
    }

    pub fn path_info(&mut self, path: &StorePath) -> Result<Option<PathInfo>> {
        let info = self.client()?.call(&QueryPathInfo { path: path.clone() }, ignore);
        let info = info.with_context(|| format!("cannot ask the Nix daemon for {path}"))?;
        Ok(info.map(|info| info.with_path(path.clone())))
    }

    pub fn is_valid(&mut self, path: &StorePath) -> Result<bool> {
        let valid = self.client()?.call(&IsValidPath { path: path.clone() }, ignore);
        valid.with_context(|| format!("cannot ask the Nix daemon for {path}"))
    }

    /// Keeps a path, valid or not yet, from being collected until the connection ends.
    pub fn keep(&mut self, path: &StorePath) -> Result<()> {
        let kept = self.client()?.call(&AddTempRoot { path: path.clone() }, ignore);
        kept.with_context(|| format!("the Nix daemon does not keep {path}"))?;
        Ok(())
    }

    /// All paths that are valid.
    pub fn paths(&mut self) -> Result<BTreeSet<StorePath>> {
        self.client()?.call(&QueryAllValidPaths {}, ignore).context("cannot ask the Nix daemon for its paths")
    }

    /// Writes the NAR of a path: from its files where they can be seen, else by way of the daemon.
    pub fn nar<W: Write>(&mut self, path: &StorePath, writer: W) -> Result<W> {
        let real = self.store.real_path(path);
        if real.symlink_metadata().is_ok() {
            return dump::dump(&real, writer).with_context(|| format!("cannot read {}", real.display()));
        }
        match self.client()?.nar_from_path(path, NarWriter::new(writer), ignore) {
            Ok(writer) => Ok(writer.finish()?),
            Err(CallError::Proto(error)) if self.store.withholds(path) => {
                // Without its cause, which would be one of the connection's.
                Err(anyhow!(
                    "the Nix daemon calls {path} valid and cannot give its files ({error}); `nix-store --verify \
                     --check-contents` tells of such paths"
                ))
            }
            Err(error) => Err(error).with_context(|| format!("cannot fetch {path} from the Nix daemon")),
        }
    }

    /// Makes a path valid; `nar` is all of its NAR.
    pub fn add(&mut self, info: &PathInfo, nar: &mut impl Read, check_sigs: bool) -> Result<()> {
        let request = AddToStoreNar { info: info.clone(), repair: false, dont_check_sigs: !check_sigs };
        let added = self.client()?.call_with_upload(&request, |frames| io::copy(nar, frames).map(|_| ()), ignore);
        added.with_context(|| format!("the Nix daemon does not take {}", info.path))
    }
}

fn ignore(_: StderrMessage) {}

impl Drop for Connection {
    fn drop(&mut self) {
        // Its pipes close, and with them the process ends.
        self.client = None;
        if let Some(child) = &mut self.child {
            let _ = child.wait();
        }
    }
}

/// Whether a name in the store directory can be a path: locks and temporary files are none.
pub fn path_of_entry(name: &Path) -> Option<StorePath> {
    let name = name.to_str()?;
    let is_temporary = [".lock", ".chroot", ".check", ".tmp"].iter().any(|end| name.ends_with(end));
    StorePath::from_base_name(name).ok().filter(|_| !is_temporary)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(variables: &[(&str, &str)]) -> LocalStore {
        LocalStore::find(None, |name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string())
        })
    }

    #[test]
    fn the_store_is_the_one_that_nix_would_use() {
        let socket = Some(PathBuf::from("/s"));
        assert_eq!(found(&[("NIX_REMOTE", "daemon"), ("NIX_DAEMON_SOCKET_PATH", "/s")]).socket, socket);
        assert_eq!(found(&[("NIX_REMOTE", "unix:///s?root=/r")]).socket, socket);
        let rooted = found(&[("NIX_REMOTE", "local?root=/r")]);
        assert_eq!(rooted.socket, None);
        let path = StorePath::from_base_name("dd2s755w68andyyr5makbwzidf6whr5d-ht").unwrap();
        assert_eq!(rooted.real_path(&path), Path::new("/r/nix/store/dd2s755w68andyyr5makbwzidf6whr5d-ht"));
        assert_eq!(found(&[("NIX_DAEMON_SOCKET_PATH", "/does/not/exist")]).socket, None);
        let named = |store| LocalStore::find(Some(store), |_| Some("daemon".into()));
        assert_eq!(named("/r"), rooted);
        assert_eq!(named("unix:///s").socket, socket);
    }

    #[test]
    fn locks_are_no_paths() {
        let base = "dd2s755w68andyyr5makbwzidf6whr5d-ht";
        assert!(path_of_entry(Path::new(base)).is_some());
        for name in [format!("{base}.lock"), format!("{base}.chroot"), ".links".into(), "x".into()] {
            assert_eq!(path_of_entry(Path::new(&name)), None, "{name}");
        }
    }
}
