//! A real node: the `shoal` program on a data directory of its own.

use std::collections::BTreeSet;
use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::command::{Cmd, PATIENCE, Running, wait_for};
use crate::machine::Machine;
use crate::place::{self, Place};

/// From start to listening, on a busy machine.
const READY_PATIENCE: Duration = Duration::from_secs(60);
/// A build of the program from nothing, on a busy machine.
const BUILD_PATIENCE: Duration = Duration::from_secs(1800);
/// The hidden argument of the processes that run builds and outlive their node.
const SUPERVISOR_ARG: &str = "__sandbox";

/// In the log of a node that caught another in a lie.
const DISTRUSTED: &str = "it is distrusted";
/// Who does lie in tests, as logs have its name.
const LIAR: &str = "\"liar\"";

/// The program under test: `$SHOAL_BIN`, or what cargo builds now in the profile of this test.
pub fn program() -> PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let built = || {
        if let Some(program) = env::var_os("SHOAL_BIN") {
            return PathBuf::from(program);
        }
        // <target>/<profile>/deps/e2e-<hash>
        let me = env::current_exe().unwrap_or_else(|error| panic!("where am I: {error}"));
        let profile = me.ancestors().nth(2).map(Path::to_path_buf).unwrap_or_default();
        let target = profile.parent().map(Path::to_path_buf).unwrap_or_default();
        let mut cargo = Cmd::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        for name in ["HOME", "CARGO_HOME", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN"] {
            if let Some(value) = env::var_os(name) {
                cargo = cargo.env(name, value);
            }
        }
        let release = profile.ends_with("release").then_some("--release");
        let cargo = cargo.args(["build", "-q", "--workspace", "--bin", "shoal", "--target-dir"]).arg(target);
        cargo.args(release).dir(&place::repository()).patience(BUILD_PATIENCE).ok();
        profile.join("shoal")
    };
    PROGRAM.get_or_init(built).clone()
}

/// What `ready.json` says.
#[derive(Clone, Debug)]
pub struct Ready {
    pub ssh_port: u16,
    /// `http://127.0.0.1:port`, or `https:` where it speaks TLS.
    pub http: String,
    pub socket: String,
    pub pid: u32,
    pub json: Value,
}

impl Ready {
    fn read(data: &Path) -> Option<Ready> {
        let json: Value = serde_json::from_slice(&fs::read(data.join("ready.json")).ok()?).ok()?;
        let ssh_port = json["ssh"].as_str().and_then(|address| address.rsplit(':').next()?.parse().ok())?;
        let socket = json["socket"].as_str()?.to_string();
        let scheme = if json["http_tls"] == true { "https" } else { "http" };
        let http = json["http"].as_str().map(|address| format!("{scheme}://{address}")).unwrap_or_default();
        let pid = json["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok())?;
        Some(Ready { ssh_port, http, socket, pid, json })
    }
}

pub struct Node {
    place: Place,
    flags: Vec<String>,
    user: Option<u32>,
    namespace: Option<String>,
    environment: Vec<(String, String)>,
    running: Option<Running>,
    ready: Option<Ready>,
    /// How long the last start took until the node was ready.
    pub start_time: Duration,
}

impl Node {
    /// A node that lets `machines` in as trusted ones.
    pub fn start(machines: &[&Machine]) -> Node {
        Node::start_with(machines, &[])
    }

    pub fn start_with(machines: &[&Machine], flags: &[&str]) -> Node {
        let mut node = Node::prepare(flags);
        let keys: String = machines.iter().map(|machine| machine.public_key()).collect();
        node.write_keys(&keys);
        node.start_again();
        node
    }

    /// A node that is not started yet.
    pub fn prepare(flags: &[&str]) -> Node {
        let place = Place::new("n");
        fs::create_dir(place.join("data")).unwrap_or_else(|error| panic!("data directory: {error}"));
        let flags = flags.iter().map(|flag| flag.to_string()).collect();
        let (user, namespace, environment) = Default::default();
        Node { place, flags, user, namespace, environment, running: None, ready: None, start_time: Duration::ZERO }
    }

    /// Runs as an ordinary user from the next start on.
    pub fn as_user(mut self, uid: u32) -> Node {
        for path in [self.place.path().to_path_buf(), self.data_dir()] {
            std::os::unix::fs::chown(&path, Some(uid), Some(uid)).unwrap_or_else(|error| panic!("chown: {error}"));
        }
        self.user = Some(uid);
        self
    }

    /// Runs in this network namespace from the next start on.
    pub fn within(mut self, namespace: &str) -> Node {
        self.namespace = Some(namespace.to_string());
        self
    }

    /// Has this in its environment from the next start on.
    pub fn with_env(mut self, name: &str, value: &str) -> Node {
        self.environment.push((name.into(), value.into()));
        self
    }

    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// Starts with these flags from the next start on.
    pub fn use_flags(&mut self, flags: &[&str]) {
        self.flags = flags.iter().map(|flag| flag.to_string()).collect();
    }

    pub fn data_dir(&self) -> PathBuf {
        self.place.join("data")
    }

    pub fn write_keys(&self, lines: &str) {
        let path = self.data_dir().join("authorized_keys");
        fs::write(&path, lines).unwrap_or_else(|error| panic!("authorized_keys: {error}"));
    }

    /// Starts the program and waits until it listens. Its environment is empty: a node needs no program of the host.
    pub fn start_again(&mut self) {
        let since = Instant::now();
        let log = File::options().create(true).append(true).open(self.log_file());
        let log = log.unwrap_or_else(|error| panic!("log: {error}"));
        let mut cmd = Cmd::new(program()).without_env("PATH").env("HOME", self.place.path());
        if let Some(uid) = self.user {
            cmd = cmd.user(uid);
        }
        if let Some(namespace) = &self.namespace {
            cmd = cmd.within(namespace);
        }
        cmd = self.environment.iter().fold(cmd, |cmd, (name, value)| cmd.env(name, value));
        let data = self.data_dir();
        let cmd = cmd.arg("serve").arg("--data-dir").arg(&data);
        // Where other nodes look for it.
        let mesh =
            self.ready.as_ref().and_then(|ready| ready.json["mesh"].as_str()).unwrap_or("127.0.0.1:0").to_string();
        let unless_given = |flag: &'static str| match self.flags.iter().any(|given| given == flag) {
            true => [].to_vec(),
            false if flag == "--mesh" => vec![flag, &mesh],
            false => vec![flag, "127.0.0.1:0"],
        };
        let cmd =
            cmd.args(unless_given("--ssh")).args(unless_given("--http")).args(unless_given("--mesh")).args(&self.flags);
        let mut running = cmd.start_into(Stdio::null(), Stdio::from(log));
        let pid = running.pid().as_raw_nonzero().get() as u32;
        let ready = wait_for("a node that is ready", READY_PATIENCE, || {
            assert!(!running.has_ended(), "the node ended at once:\n{}", self.log());
            Ready::read(&data).filter(|ready| ready.pid == pid)
        });
        self.start_time = since.elapsed();
        self.ready = Some(ready);
        self.running = Some(running);
    }

    /// Waits until the node has started again by itself, which keeps its pid and takes other ports.
    pub fn wait_for_restart(&mut self) {
        let data = self.data_dir();
        let before = self.ready().ssh_port;
        let again = wait_for("a node that started again", READY_PATIENCE, || {
            assert!(!self.has_ended(), "the node ended:\n{}", self.log());
            Ready::read(&data).filter(|ready| ready.ssh_port != before)
        });
        self.ready = Some(again);
    }

    pub fn ready(&self) -> &Ready {
        self.ready.as_ref().unwrap_or_else(|| panic!("the node was not started"))
    }

    /// `ssh-ed25519 <base64>`.
    pub fn host_key(&self) -> String {
        let text = fs::read_to_string(self.data_dir().join("ssh_host_ed25519_key.pub"));
        let text = text.unwrap_or_else(|error| panic!("host key: {error}"));
        text.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
    }

    fn log_file(&self) -> PathBuf {
        self.place.join("log")
    }

    /// Everything the node logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// A `shoal` command that finds this node.
    pub fn shoal(&self, command: &str) -> Cmd {
        Cmd::new(program()).args(command.split_whitespace()).arg("--data-dir").arg(self.data_dir())
    }

    /// Every valid path, by `shoal paths --json`.
    pub fn paths(&self) -> Vec<Value> {
        match self.shoal("paths --json").ok().json() {
            Value::Array(paths) => paths,
            other => panic!("not a list: {other}"),
        }
    }

    /// Names of the valid paths.
    pub fn valid(&self) -> BTreeSet<String> {
        self.paths().iter().filter_map(|path| Some(path["path"].as_str()?.to_string())).collect()
    }

    /// Hash of the NAR of a valid path, in SRI form.
    pub fn nar_hash(&self, path: &str) -> Option<String> {
        let listed = self.shoal("paths --json").arg(path).run();
        if !listed.status.success() {
            return None;
        }
        listed.json()[0]["narHash"].as_str().map(String::from)
    }

    /// The key that it signs with, as clients trust it.
    pub fn key(&self) -> String {
        self.shoal("key show").ok().text().to_string()
    }

    /// A new token of its cache.
    pub fn token(&self, role: &str) -> String {
        self.shoal(&format!("token create --role {role}")).ok().text().to_string()
    }

    pub fn signal(&self, signal: Signal) {
        if let Some(running) = &self.running {
            running.signal(signal);
        }
    }

    /// Ends it at once. Its builders go on.
    pub fn kill(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.kill();
        }
    }

    /// Ends it and its builders, as a power cut would.
    pub fn crash(&mut self) {
        self.kill();
        self.kill_builders();
    }

    fn kill_builders(&self) {
        let sandboxes = self.sandboxes();
        for pid in descendants(&sandboxes).into_iter().chain(sandboxes) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    /// Asks it to stop, and waits until it did with exit code 0.
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        if let Some(mut running) = self.running.take() {
            let status = running.wait(PATIENCE);
            assert!(status.success(), "stopped with {status}:\n{}", self.log());
        }
    }

    /// Started, and neither killed nor stopped by the test.
    pub fn runs(&self) -> bool {
        self.running.is_some()
    }

    pub fn has_ended(&mut self) -> bool {
        self.running.as_mut().is_none_or(Running::has_ended)
    }

    /// Processes of builders, whether the node runs or not.
    pub fn builders(&self) -> Vec<Pid> {
        let sandboxes = self.sandboxes();
        descendants(&sandboxes).into_iter().filter(|pid| !sandboxes.contains(pid)).collect()
    }

    /// Processes that make sandboxes and stay with them. They have the node's environment, so its home tells whose
    /// they are.
    fn sandboxes(&self) -> Vec<Pid> {
        let home = format!("HOME={}", self.place.path().display());
        let has = |pid: Pid, file: &str, at: Option<usize>, word: &str| {
            let text = fs::read(format!("/proc/{}/{file}", pid.as_raw_nonzero())).unwrap_or_default();
            let text = String::from_utf8_lossy(&text).into_owned();
            let mut words = text.split('\0').enumerate();
            words.any(|(i, found)| found == word && at.is_none_or(|at| at == i))
        };
        let pids = processes();
        pids.filter(|pid| has(*pid, "cmdline", Some(1), SUPERVISOR_ARG) && has(*pid, "environ", None, &home)).collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.crash();
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(200).collect();
            println!("--- the node's log");
            tail.iter().rev().for_each(|line| println!("{line}"));
        } else if let Some(accused) = self.log().lines().find(|line| line.contains(DISTRUSTED) && !line.contains(LIAR))
        {
            panic!("an honest node is taken for a liar: {accused}");
        }
    }
}

fn processes() -> impl Iterator<Item = Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?))
}

/// Children of `roots`, and theirs.
fn descendants(roots: &[Pid]) -> Vec<Pid> {
    let parent = |pid: Pid| {
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
        // pid (name) state ppid ...; the name may hold anything but ends at the last parenthesis.
        Pid::from_raw(stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()?)
    };
    let all: Vec<(Pid, Option<Pid>)> = processes().map(|pid| (pid, parent(pid))).collect();
    let mut found: Vec<Pid> = Vec::new();
    loop {
        let is_new = |(pid, parent): &(Pid, Option<Pid>)| {
            parent.is_some_and(|parent| roots.contains(&parent) || found.contains(&parent)) && !found.contains(pid)
        };
        let new: Vec<Pid> = all.iter().filter(|process| is_new(process)).map(|(pid, _)| *pid).collect();
        if new.is_empty() {
            return found;
        }
        found.extend(new);
    }
}
