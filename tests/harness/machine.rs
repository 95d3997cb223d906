//! A simulated machine with Nix on it: a store, a home and an ssh key of its own.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use crate::clients::Nix;
use crate::command::{Cmd, Finished};
use crate::node::Node;
use crate::place::{self, Place};

/// A way to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remote {
    /// `ssh-ng://`, the worker protocol.
    SshNg,
    /// `ssh://`, the serve protocol.
    Ssh,
    /// `unix://`, the worker protocol on the node's socket.
    Unix,
}

impl Remote {
    /// This way, or ssh: Nix expects the store of a socket in its own file system, and reads contents there.
    pub fn to_fetch(self) -> Remote {
        if self == Remote::Unix { Remote::SshNg } else { self }
    }
}

/// Runs a program where `/nix/store` is another directory and all else is this machine's: `sh -c … sh ROOT STORE PROGRAM…`.
/// What it mounts goes with it.
const BESIDE_STORE: &str = r#"
root=$1 store=$2
shift 2
mount --make-rprivate /
mount -t tmpfs none "$root"
for entry in /*; do
    if [ -L "$entry" ]; then
        cp -P "$entry" "$root/"
    elif [ -d "$entry" ] && [ "$entry" != /nix ]; then
        mkdir "$root$entry"
        mount --rbind "$entry" "$root$entry"
    fi
done
mkdir -p "$root/nix/store"
mount --rbind "$store" "$root/nix/store"
exec chroot "$root" "$@"
"#;

pub struct Machine {
    place: Place,
    pub nix: Nix,
}

impl Machine {
    pub fn new(nix: &Nix) -> Machine {
        let place = Place::new("m");
        for name in ["root", "home"] {
            fs::create_dir(place.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        let machine = Machine { place, nix: nix.clone() };
        Cmd::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"]).arg(machine.key()).ok();
        machine
    }

    /// The same machine before it had anything in its store.
    pub fn emptied(self) -> Machine {
        place::remove(&self.root());
        fs::create_dir(self.root()).unwrap_or_else(|error| panic!("root: {error}"));
        self
    }

    fn key(&self) -> PathBuf {
        self.place.join("id")
    }

    pub fn public_key(&self) -> String {
        fs::read_to_string(self.key().with_extension("pub")).unwrap_or_else(|error| panic!("public key: {error}"))
    }

    /// The root of the machine's own store; paths in it are still `/nix/store/...`.
    pub fn root(&self) -> PathBuf {
        self.place.join("root")
    }

    pub fn home(&self) -> PathBuf {
        self.place.join("home")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.place.join(name)
    }

    /// A Nix program that uses the machine's own store.
    pub fn local(&self, program: &str) -> Cmd {
        let cmd = Cmd::new(self.nix.program(program));
        cmd.env("HOME", self.home()).env("NIX_CLIENT_ROOT", self.root()).env("LC_ALL", "C.UTF-8")
    }

    /// The same, that can also reach `node` over ssh under the name [`Machine::store`] gives it.
    pub fn near(&self, program: &str, node: &Node) -> Cmd {
        self.local(program).env("NIX_SSHOPTS", self.ssh_options(node)).beside(node)
    }

    /// A Nix program that works on `node`'s store.
    pub fn remote(&self, program: &str, node: &Node, remote: Remote) -> Cmd {
        self.near(program, node).without_env("NIX_CLIENT_ROOT").env("NIX_REMOTE", self.store(node, remote))
    }

    /// A program on this machine as it would be if `store` were its `/nix/store`, and `node`'s socket its Nix daemon's.
    /// Takes root.
    pub fn mounted(&self, program: impl AsRef<OsStr>, node: &Node, store: &Path) -> Cmd {
        let root = self.place.join("beside");
        // It is there from the first one on.
        let _ = fs::create_dir(&root);
        let cmd = Cmd::new("unshare").args(["--mount", "sh", "-euc", BESIDE_STORE, "sh"]).arg(root).arg(store);
        let cmd = cmd.arg(program).env("HOME", self.home()).env("LC_ALL", "C.UTF-8");
        cmd.env("NIX_REMOTE", self.store(node, Remote::Unix))
    }

    pub fn store(&self, node: &Node, remote: Remote) -> String {
        match remote {
            Remote::SshNg => "ssh-ng://nix@127.0.0.1".into(),
            Remote::Ssh => "ssh://nix@127.0.0.1".into(),
            Remote::Unix => format!("unix://{}", node.ready().socket),
        }
    }

    /// A build on `node` of attributes of `expression` (a file, and what it is called with), with the builders' logs on
    /// stderr; see [`built`]. The socket takes the new command line: the old one looks for the node's files itself.
    pub fn build(&self, node: &Node, remote: Remote, expression: &[String], attributes: &[&str]) -> Cmd {
        if remote != Remote::Unix {
            let attributes = attributes.iter().flat_map(|attribute| ["-A", attribute]);
            return self.remote("nix-build", node, remote).arg("--no-out-link").args(expression).args(attributes);
        }
        let own = format!("local?root={}", self.root().display());
        let cmd = self.local("nix").args(["build", "--no-link", "--json", "-L", "--eval-store", &own]);
        cmd.args(["--store", &self.store(node, remote), "-f"]).args(expression).args(attributes)
    }

    pub fn ssh_options(&self, node: &Node) -> String {
        self.ssh_options_by(node, node.ready().ssh_port)
    }

    /// The same, by another port that leads to it.
    pub fn ssh_options_by(&self, node: &Node, port: u16) -> String {
        self.ssh_options_to("127.0.0.1", port, &node.host_key())
    }

    /// To whatever is at an address and has this key.
    pub fn ssh_options_to(&self, host: &str, port: u16, host_key: &str) -> String {
        // Nobody finds it empty: clients that were started before read it while the next one's is written.
        let known = self.place.join(&format!("known_hosts-{host}-{port}"));
        let draft = known.with_extension(format!("{:?}", std::thread::current().id()));
        fs::write(&draft, format!("[{host}]:{port} {host_key}\n"))
            .and_then(|()| fs::rename(&draft, &known))
            .unwrap_or_else(|error| panic!("known_hosts: {error}"));
        format!(
            "-p {port} -i {} -F none -o IdentitiesOnly=yes -o BatchMode=yes -o StrictHostKeyChecking=yes \
             -o UserKnownHostsFile={} -o LogLevel=ERROR",
            self.key().display(),
            known.display()
        )
    }

    /// Where a store path's files lie in the machine's own store.
    pub fn real_path(&self, store_path: &str) -> PathBuf {
        self.root().join(store_path.trim_start_matches('/'))
    }
}

/// The paths that a [`Machine::build`] built: the first output of each attribute.
pub fn built(build: &Finished) -> Vec<String> {
    if !build.stdout.starts_with('[') {
        return build.lines().into_iter().map(String::from).collect();
    }
    let json = build.json();
    let outputs = json.as_array().into_iter().flatten().map(|built| &built["outputs"]);
    let path = |outputs: &serde_json::Value| {
        let outputs = outputs.as_object()?;
        outputs.get("out").or_else(|| outputs.values().next())?.as_str().map(String::from)
    };
    outputs.filter_map(path).collect()
}
