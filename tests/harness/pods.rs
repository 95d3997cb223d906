//! Nodes in containers from the project's image, on a network of their own, as the chart starts them in pods.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit};

use crate::command::{Cmd, wait_for};
use crate::machine::Machine;
use crate::mesh::is_live;
use crate::node::program;
use crate::place::{self, Place};

const IMAGE_PATIENCE: Duration = Duration::from_secs(120);
/// From the start of the container to a node that answers.
const READY_PATIENCE: Duration = Duration::from_secs(60);
const DRAIN_PATIENCE: Duration = Duration::from_secs(300);
/// Of the image: whom it runs as, where it is not root.
const USER: u32 = 65532;

/// As the chart writes it.
const CONFIG: &str = r#"ssh = "[::]:2222"
http = "[::]:8080"
mesh = "[::]:7433"
mesh-secret-file = "/run/secrets/mesh-secret"
authorized-keys = "/etc/shoal/authorized_keys"
peer-dns = ["shoal-mesh"]
max-jobs = 1
keep-failed = true
"#;

/// How much a pod may do: the chart's value of that name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    Privileged,
    Userns,
    Cache,
}

impl Privilege {
    /// The pod's security context in `deploy/chart`, in podman's words.
    fn flags(self) -> Vec<String> {
        let words = match self {
            Privilege::Privileged => "--privileged --user 0".to_owned(),
            Privilege::Userns => format!(
                "--user {USER}:{USER} --cap-drop all --security-opt no-new-privileges --read-only \
                 --security-opt seccomp=unconfined --security-opt unmask=ALL"
            ),
            Privilege::Cache => {
                format!("--user {USER}:{USER} --cap-drop all --security-opt no-new-privileges --read-only")
            }
        };
        words.split_whitespace().map(String::from).collect()
    }
}

pub struct Pods {
    place: Place,
    network: String,
    privilege: Privilege,
    /// By ordinal; those that were removed are empty.
    addresses: Vec<Option<String>>,
}

fn podman() -> Cmd {
    // Debian's podman takes crun else, which not every machine has.
    Cmd::new("podman").env("HOME", "/root").args(["--runtime", "runc"])
}

/// The image as podman knows it. `None`, after saying why, where there is none, or no podman.
fn image() -> Option<String> {
    static IMAGE: OnceLock<Option<String>> = OnceLock::new();
    let load = || {
        let file =
            std::env::var_os("SHOAL_IMAGE").map_or(place::repository().join("target/image/shoal.tar"), PathBuf::from);
        let has = |name: &str| {
            let path = std::env::var("PATH").unwrap_or_default();
            path.split(':').any(|dir| Path::new(dir).join(name).exists())
        };
        if !file.exists() || !has("podman") || !has("runc") || !rustix::process::geteuid().is_root() {
            println!(
                "skipped: containers take root, podman, runc and an image; deploy/image/build makes {}",
                file.display()
            );
            return None;
        }
        let loaded = podman().args(["load", "-q", "-i"]).arg(file).patience(IMAGE_PATIENCE).ok();
        let name = loaded.text().rsplit(' ').next().unwrap_or_default().to_owned();
        assert!(!name.is_empty(), "podman does not say what it loaded: {loaded}");
        Some(name)
    };
    IMAGE.get_or_init(load).clone()
}

impl Pods {
    /// So many nodes that let `machine` in. `None`, after saying why, where there are no containers.
    pub fn start(count: usize, privilege: Privilege, machine: &Machine) -> Option<Pods> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        image()?;
        let place = Place::new("c");
        let secret = place.join("mesh-secret");
        Cmd::new(program())
            .args(["mesh", "create", "--secret-file"])
            .arg(&secret)
            .arg("--data-dir")
            .arg(place.join("none"))
            .ok();
        chown(&secret, Some(USER), Some(USER)).unwrap_or_else(|error| panic!("chown: {error}"));
        let no_build = privilege == Privilege::Cache;
        let files = [
            ("etc/authorized_keys", machine.public_key()),
            ("etc/config.toml", format!("{CONFIG}no-build = {no_build}\n")),
        ];
        fs::create_dir(place.join("etc")).unwrap_or_else(|error| panic!("etc: {error}"));
        for (name, text) in files {
            fs::write(place.join(name), text).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        let network = format!("shoal-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        podman().args(["network", "create", &network]).ok();
        let mut pods = Pods { place, network, privilege, addresses: Vec::new() };
        (0..count).for_each(|_| pods.add());
        Some(pods)
    }

    fn name(&self, ordinal: usize) -> String {
        format!("{}-{ordinal}", self.network)
    }

    fn data(&self, ordinal: usize) -> PathBuf {
        self.place.join(&format!("data-{ordinal}"))
    }

    /// One more, which finds the others by the name that all have, and waits until it is ready.
    pub fn add(&mut self) {
        let ordinal = self.addresses.len();
        let data = self.data(ordinal);
        fs::create_dir(&data).unwrap_or_else(|error| panic!("data: {error}"));
        if self.privilege != Privilege::Privileged {
            chown(&data, Some(USER), Some(USER)).unwrap_or_else(|error| panic!("chown: {error}"));
        }
        let mount = |from: PathBuf, to: &str| format!("{}:{to}", from.display());
        // Not more than who starts it may have, which a machine within a machine cannot raise.
        let files = getrlimit(Resource::Nofile).maximum.unwrap_or(65_536);
        let run =
            podman().args(["run", "-d", "--name", &self.name(ordinal), "--hostname", &format!("shoal-{ordinal}")]);
        let run = run.args(["--network", &self.network, "--network-alias", "shoal-mesh"]);
        let run = run.args(["--ulimit", &format!("nofile={files}:{files}"), "--ulimit", "nproc=4096:4096"]);
        let run = run.args(["--tmpfs", "/tmp:mode=1777,exec", "--tmpfs", "/run/shoal:mode=1777"]);
        let run = run.args(["-v", &mount(data, "/var/lib/shoal")]);
        let run = run.args(["-v", &(mount(self.place.join("mesh-secret"), "/run/secrets/mesh-secret") + ":ro")]);
        let run = run.args(["-v", &(mount(self.place.join("etc"), "/etc/shoal") + ":ro")]);
        run.args(self.privilege.flags()).args([image().expect("it was there"), "serve".into()]).ok();
        self.addresses.push(None);
        let format = format!("{{{{(index .NetworkSettings.Networks \"{}\").IPAddress}}}}", self.network);
        let address = podman().args(["inspect", "-f", &format, &self.name(ordinal)]).ok().text().to_owned();
        self.addresses[ordinal] = Some(address);
        self.wait_until_ready(ordinal);
    }

    fn wait_until_ready(&self, ordinal: usize) {
        wait_for("a container that is ready", READY_PATIENCE, || {
            let ready = self.data(ordinal).join("ready.json").exists();
            assert!(ready || self.is_running(ordinal), "it ended: {}", self.log(ordinal));
            ready.then_some(())
        });
    }

    /// Ends one in good order and starts it with the store that it had; the time from the start to a node that answers.
    pub fn restart(&self, ordinal: usize) -> Duration {
        podman().args(["stop", "-t", "30", &self.name(ordinal)]).patience(DRAIN_PATIENCE).ok();
        let since = Instant::now();
        podman().args(["start", &self.name(ordinal)]).ok();
        self.wait_until_ready(ordinal);
        since.elapsed()
    }

    /// Has one drain, as a pod that is told to stop does, and ends it. Its data stay.
    pub fn remove(&mut self, ordinal: usize) {
        self.shoal(ordinal, "drain").patience(DRAIN_PATIENCE).ok();
        podman().args(["stop", "-t", "30", &self.name(ordinal)]).patience(DRAIN_PATIENCE).ok();
        self.addresses[ordinal] = None;
    }

    fn is_running(&self, ordinal: usize) -> bool {
        podman().args(["inspect", "-f", "{{.State.Running}}", &self.name(ordinal)]).ok().text() == "true"
    }

    pub fn log(&self, ordinal: usize) -> String {
        let logs = podman().args(["logs", &self.name(ordinal)]).run();
        logs.stdout + &logs.stderr
    }

    /// A `shoal` command within the container.
    pub fn shoal(&self, ordinal: usize, command: &str) -> Cmd {
        podman().args(["exec", &self.name(ordinal), "/shoal"]).args(command.split_whitespace())
    }

    /// Live members, as one of them sees it.
    pub fn live(&self, ordinal: usize) -> usize {
        let peers = self.shoal(ordinal, "peers --json").ok().json();
        let peers = peers.as_array().cloned().unwrap_or_default();
        peers.iter().filter(|peer| peer["state"].as_str().is_some_and(is_live)).count()
    }

    /// Builds that one of them made itself.
    pub fn built(&self, ordinal: usize) -> usize {
        let builds = self.shoal(ordinal, "builds --json").ok().json();
        builds.as_array().into_iter().flatten().filter(|build| build["state"] == "built").count()
    }

    /// Where failed builds of one are kept.
    pub fn kept(&self, ordinal: usize) -> PathBuf {
        self.data(ordinal).join("kept")
    }

    /// A Nix program of the machine that can reach the node over ssh, and the store's name for it.
    pub fn reach(&self, machine: &Machine, program: &str, ordinal: usize) -> (Cmd, String) {
        let address = self.addresses[ordinal].as_deref().unwrap_or_else(|| panic!("{ordinal} was removed"));
        let key = fs::read_to_string(self.data(ordinal).join("ssh_host_ed25519_key.pub"));
        let key = key.unwrap_or_else(|error| panic!("host key: {error}"));
        let options = machine.ssh_options_to(address, 2222, &key);
        (machine.local(program).env("NIX_SSHOPTS", options), format!("ssh-ng://nix@{address}"))
    }
}

impl Drop for Pods {
    fn drop(&mut self) {
        for ordinal in 0..self.addresses.len() {
            if std::thread::panicking() {
                println!("--- the log of {}\n{}", self.name(ordinal), self.log(ordinal));
            }
            podman().args(["rm", "-f", "-t", "0", &self.name(ordinal)]).run();
        }
        podman().args(["network", "rm", "-f", &self.network]).run();
    }
}
