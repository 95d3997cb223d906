//! What the machine lets a sandbox do, and what to do about what it does not.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustix::io::Errno;

use crate::failure::reason;
use crate::identity::Rights;
use crate::supervisor::SUPERVISOR_ARG;
use crate::{Cgroups, End, Event, Identity, Program, Spec, cgroup, remove_tree, seccomp, spawn};

/// One thing a sandbox wants of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Short and stable: `sandbox`, `overlay`, …
    pub name: &'static str,
    pub state: State,
    /// What was found.
    pub found: String,
    /// What an administrator can do about it; empty when all is well.
    pub fix: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    Good,
    /// Builds work, but slower or with less isolation or metering.
    Degraded,
    /// No build can run.
    Missing,
}

impl Capability {
    fn good(name: &'static str, found: impl Into<String>) -> Self {
        Capability { name, state: State::Good, found: found.into(), fix: String::new() }
    }

    fn bad(name: &'static str, state: State, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Capability { name, state, found: found.into(), fix: fix.into() }
    }
}

/// Tries everything out, which takes some ten milliseconds. `data_dir` is where scratch directories and trees
/// will lie.
pub fn capabilities(data_dir: &Path) -> Vec<Capability> {
    let rights = Rights::detect();
    vec![
        sandbox(data_dir),
        user_namespaces(),
        rights_capability(rights),
        overlay(data_dir, rights),
        control_groups(&cgroup::available()),
        filter(),
        kvm(),
    ]
}

/// Runs a whole sandbox with nothing in it.
fn sandbox(data_dir: &Path) -> Capability {
    let name = "sandbox";
    match try_sandbox(&data_dir.join(format!(".probe-sandbox-{}", std::process::id()))) {
        Ok(setup_us) => Capability::good(name, format!("a builder starts in {setup_us} us")),
        Err(text) => {
            let fix = "allow what failed; in a container: run it privileged, or with CAP_SYS_ADMIN, \
                       unmasked /proc and a seccomp profile that lets name spaces be made";
            Capability::bad(name, State::Missing, text, fix)
        }
    }
}

/// Microseconds, or why it failed.
fn try_sandbox(scratch: &Path) -> Result<u64, String> {
    // There is nothing to execute in an empty root, and finding that out is the last step.
    try_program(scratch, None, "/nothing", Errno::NOENT)
}

/// Runs a sandbox that has `view` (see [`Spec::view`]) and executes `program` in it, a file that is no program but may be
/// executed: that shows only once it is read. Microseconds of the set-up, or why it failed.
pub fn try_view(data_dir: &Path, view: Arc<OwnedFd>, program: &str) -> Result<u64, String> {
    let scratch = data_dir.join(format!(".probe-view-{}", std::process::id()));
    try_program(&scratch, Some(view), program, Errno::NOEXEC)
}

fn try_program(scratch: &Path, view: Option<Arc<OwnedFd>>, program: &str, expected: Errno) -> Result<u64, String> {
    fs::create_dir(scratch).map_err(|error| format!("{}: {error}", scratch.display()))?;
    let program = Program::Exec { path: program.as_bytes().to_vec(), argv: vec![b"nothing".to_vec()] };
    let mut log = Vec::new();
    let tried = spawn(&Spec { view, ..Spec::new(scratch, program) }).and_then(|mut running| {
        loop {
            match running.next(None)? {
                Some(Event::Output(bytes)) => log.extend(bytes),
                Some(Event::Exited(outcome)) => return Ok(outcome),
                None => {}
            }
        }
    });
    let removed = remove_tree(scratch);
    let outcome = tried.map_err(|error| error.to_string())?;
    removed.map_err(|error| format!("{}: {error}", scratch.display()))?;
    let log = String::from_utf8_lossy(&log);
    match outcome.end {
        End::SetupFailed(text) => Err(text),
        End::Exited(1) if log.contains(&reason(&expected.into())) => Ok(outcome.setup_us),
        end => Err(format!("a sandbox with nothing to do ended with {end:?}: {}", log.trim_end())),
    }
}

/// Switches that forbid user name spaces, and the value that does.
const SWITCHES: [(&str, &str, &str); 3] = [
    ("/proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=65536"),
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile with `userns,`",
    ),
];

fn user_namespaces() -> Capability {
    let name = "user-namespaces";
    let value = |path| fs::read_to_string(path).map(|text| text.trim().to_owned());
    let off = SWITCHES.iter().find(|(path, off, _)| value(path).is_ok_and(|value| value == *off));
    match (off, Path::new("/proc/self/ns/user").exists()) {
        (_, false) => Capability::bad(
            name,
            State::Missing,
            "the kernel has no user name spaces",
            "use a kernel with CONFIG_USER_NS",
        ),
        (Some((path, off, fix)), _) => {
            // Only the first switch is for root, too.
            let forbidden = Rights::detect() == Rights::User || path.ends_with("max_user_namespaces");
            let state = if forbidden { State::Missing } else { State::Good };
            let fix = if forbidden { *fix } else { "" };
            Capability::bad(name, state, format!("{path} is {off}"), fix)
        }
        (None, true) => Capability::good(name, "allowed"),
    }
}

fn rights_capability(rights: Rights) -> Capability {
    let Identity { first_uid, count, lock_dir } = Identity::default();
    match rights {
        Rights::Root => Capability::good(
            "build-users",
            format!(
                "each build has a user id of its own, of {first_uid} to {}, locked in {}",
                first_uid + count - 1,
                lock_dir.display()
            ),
        ),
        Rights::User => Capability::bad(
            "build-users",
            State::Degraded,
            "builds run under the node's own user id, each in a user name space",
            "run the node as root for a user id per build and faster set-up",
        ),
    }
}

fn overlay(data_dir: &Path, rights: Rights) -> Capability {
    let name = "overlay";
    let slow = "each input is a mount of its own: some 20 us an input";
    if rights == Rights::User {
        let fix = "run the node as root";
        return Capability::bad(name, State::Degraded, format!("needs root; {slow}"), fix);
    }
    match probe_overlay(data_dir) {
        Ok(kinds) if kinds.contains("erofs") => Capability::good(name, "with EROFS views"),
        Ok(kinds) if kinds.contains("tmpfs") => Capability::bad(
            name,
            State::Degraded,
            "with tmpfs views: some 7 us an input",
            "use Linux 6.12 or later with CONFIG_EROFS_FS_BACKED_BY_FILE",
        ),
        Ok(why) | Err(why) => Capability::bad(
            name,
            State::Degraded,
            format!("not usable in {}: {}; {slow}", data_dir.display(), why.trim()),
            "put the data directory on ext4, xfs or btrfs, not on an overlay or a network file system",
        ),
    }
}

/// The argument after [`SUPERVISOR_ARG`] that makes a process try views and overlays in the directory that is
/// its next argument.
pub(crate) const TASK: &str = "probe";

/// What [`crate::probe::overlays`] printed, run in a process that may change its name spaces.
fn probe_overlay(data_dir: &Path) -> Result<String, String> {
    let dir = data_dir.join(format!(".probe-overlay-{}", std::process::id()));
    fs::create_dir(&dir).map_err(|error| error.to_string())?;
    let output = Command::new("/proc/self/exe").args([SUPERVISOR_ARG, TASK]).arg(&dir).stdin(Stdio::null()).output();
    let removed = remove_tree(&dir);
    let output = output.and_then(|output| removed.map(|()| output));
    let output = output.map_err(|error| error.to_string())?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn control_groups(found: &Cgroups) -> Capability {
    let name = "control-groups";
    match found {
        Cgroups::V2 { parent, .. } => Capability::good(name, format!("version 2, in {}", parent.display())),
        Cgroups::V1 { memory, cpuacct, .. } => {
            let show = |dir: &Option<PathBuf>| dir.as_ref().map_or("none".to_owned(), |dir| dir.display().to_string());
            let found = format!("version 1, memory: {}, cpuacct: {}", show(memory), show(cpuacct));
            Capability::bad(name, State::Degraded, found, "boot with the unified hierarchy only")
        }
        Cgroups::Off => Capability::bad(
            name,
            State::Degraded,
            "none that we may use: builds are metered by resource usage, memory is not limited",
            "run the node as a systemd service with Delegate=yes",
        ),
    }
}

fn filter() -> Capability {
    let actions = fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    match seccomp::compile() {
        Ok(program) if actions.contains("errno") => {
            Capability::good("seccomp", format!("a filter of {} bytes", program.len()))
        }
        Ok(_) => Capability::bad(
            "seccomp",
            State::Missing,
            "the kernel has no system call filters",
            "use a kernel with CONFIG_SECCOMP_FILTER",
        ),
        Err(error) => Capability::bad("seccomp", State::Missing, error.to_string(), "install libseccomp 2.5 or later"),
    }
}

fn kvm() -> Capability {
    match fs::metadata("/dev/kvm") {
        Ok(node) => Capability::good("kvm", format!("/dev/kvm, mode {:o}", node.mode() & 0o777)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Capability::bad(
            "kvm",
            State::Degraded,
            "no /dev/kvm: derivations that require kvm are built elsewhere",
            "load the kvm module, or allow nested virtualisation",
        ),
        Err(error) => Capability::bad("kvm", State::Degraded, error.to_string(), "allow /dev/kvm"),
    }
}
