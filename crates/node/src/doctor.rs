//! Checks a machine for what a node needs, and says the fix for what it lacks.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Resource, getrlimit};
use serde::Serialize;
use shoal_sandbox::State;

use crate::config::units::size_text;
use crate::config::{Config, detect};
use crate::inputs;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    Ok,
    Warn,
    Fail,
}

#[derive(Clone, Debug, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub verdict: Verdict,
    pub found: String,
    /// What to do about it; empty when all is well.
    pub fix: String,
}

/// Kernels before have no `clone3` into a cgroup, or lack parts of the mount API.
const KERNEL_MIN: (u32, u32) = (5, 12);
/// A commit waits for this; slower disks make every build slower.
const FSYNC_SLOW: Duration = Duration::from_millis(20);
const FSYNC_ROUNDS: u32 = 8;
/// Less free space than a larger build needs.
const DISK_FREE_LOW_BYTES: u64 = 10 << 30;
const DISK_FREE_MIN_BYTES: u64 = 1 << 30;
/// What the front doors may have open at once, with room for the store.
const FILES_WANTED: u64 = 16_384;
/// Any machine whose clock says less has a wrong one: shoal did not exist.
const CLOCK_MIN: Duration = Duration::from_secs(1_763_000_000);

fn check(name: &'static str, verdict: Verdict, found: impl Into<String>, fix: impl Into<String>) -> Check {
    Check { name, verdict, found: found.into(), fix: fix.into() }
}

/// All checks. `running`: a node runs in this data directory, so its ports are taken by itself.
pub fn examine(config: &Config, running: bool) -> Vec<Check> {
    let mut checks = vec![kernel(), clock(), open_files(), shell(config.sandbox_shell.as_deref())];
    checks.extend(data_dir(&config.data_dir));
    if !running {
        checks.extend(port(config));
    }
    checks.extend(shoal_sandbox::capabilities(existing(&config.data_dir)).into_iter().map(|capability| {
        let verdict = match capability.state {
            State::Good => Verdict::Ok,
            State::Degraded => Verdict::Warn,
            State::Missing => Verdict::Fail,
        };
        Check { name: capability.name, verdict, found: capability.found, fix: capability.fix }
    }));
    checks.push(mount());
    checks.push(lazy_inputs(existing(&config.data_dir)));
    checks
}

/// What `shoal mount` needs, for the user who runs this.
fn mount() -> Check {
    let name = "mount";
    if let Err(error) = fs::File::options().read(true).write(true).open("/dev/fuse") {
        let fix = "load the fuse module and allow this user /dev/fuse; in a container: pass the device in";
        return check(name, Verdict::Warn, format!("the store cannot be mounted: /dev/fuse: {error}"), fix);
    }
    if rustix::process::geteuid().is_root() {
        return check(name, Verdict::Ok, "the store can be mounted, for all users", "");
    }
    match Command::new("fusermount3").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status() {
        Ok(_) => check(name, Verdict::Ok, "the store can be mounted by fusermount3, for this user alone", ""),
        Err(error) => {
            let found = format!("the store cannot be mounted: fusermount3: {error}");
            check(name, Verdict::Warn, found, "install fuse3, or run the node as root")
        }
    }
}

fn lazy_inputs(dir: &Path) -> Check {
    let name = "lazy-inputs";
    match inputs::try_out(dir) {
        Ok(setup_us) => {
            check(name, Verdict::Ok, format!("a builder whose inputs are a view starts in {setup_us} us"), "")
        }
        Err(why) => check(
            name,
            Verdict::Warn,
            format!("builds get their inputs unpacked: {why}"),
            "for inputs that are fetched as they are read: run the node as root, with /dev/fuse, on Linux 6.15 or later",
        ),
    }
}

fn kernel() -> Check {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    match version(&release) {
        Some(version) if version >= KERNEL_MIN => check("kernel", Verdict::Ok, release, ""),
        Some(_) => {
            let fix = format!("builds need Linux {}.{} or newer", KERNEL_MIN.0, KERNEL_MIN.1);
            check("kernel", Verdict::Fail, release, fix)
        }
        None => check("kernel", Verdict::Warn, release, "this version's name is not understood"),
    }
}

/// Major and minor version from `6.1.0-18-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn clock() -> Check {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    match now >= CLOCK_MIN {
        true => check("clock", Verdict::Ok, format!("{} seconds since 1970", now.as_secs()), ""),
        false => check("clock", Verdict::Fail, "set to the past", "set the clock, for example with chrony"),
    }
}

fn open_files() -> Check {
    let limit = getrlimit(Resource::Nofile);
    // A node raises the soft limit to the hard one itself.
    match limit.maximum {
        Some(max) if max < FILES_WANTED => check(
            "open-files",
            Verdict::Warn,
            format!("at most {max}"),
            format!("raise the hard limit to {FILES_WANTED}: LimitNOFILE= in the service, or limits.conf"),
        ),
        max => check("open-files", Verdict::Ok, max.map_or("no limit".into(), |max| format!("at most {max}")), ""),
    }
}

fn shell(shell: Option<&Path>) -> Check {
    let install = "install a static busybox (Debian: busybox-static), or name one with --sandbox-shell";
    match shell {
        None => check("sandbox-shell", Verdict::Warn, "builds will have no /bin/sh", install),
        Some(path) if detect::is_static_elf(path) => {
            check("sandbox-shell", Verdict::Ok, path.display().to_string(), "")
        }
        Some(path) => {
            check("sandbox-shell", Verdict::Fail, format!("{} is no static program", path.display()), install)
        }
    }
}

/// The first directory at or above `path` that exists.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"))
}

fn data_dir(path: &Path) -> Vec<Check> {
    let dir = existing(path);
    let mut checks = vec![free_space(dir), file_system(dir)];
    checks.push(match fsync_time(dir) {
        Ok(time) => {
            let slow = time > FSYNC_SLOW;
            let found = format!("{:.1} ms a commit in {}", time.as_secs_f64() * 1000.0, dir.display());
            let fix = if slow { "use a faster disk: every commit of the store waits for it" } else { "" };
            check("fsync", if slow { Verdict::Warn } else { Verdict::Ok }, found, fix)
        }
        Err(error) => check(
            "data-dir",
            Verdict::Fail,
            format!("cannot write in {}: {error}", dir.display()),
            "run as its owner, or choose another one with --data-dir",
        ),
    });
    checks
}

fn free_space(dir: &Path) -> Check {
    match rustix::fs::statvfs(dir) {
        Err(error) => check("disk-space", Verdict::Fail, error.to_string(), "choose another --data-dir"),
        Ok(disk) => {
            let free = disk.f_bavail.saturating_mul(disk.f_frsize);
            let verdict = match free {
                _ if free < DISK_FREE_MIN_BYTES => Verdict::Fail,
                _ if free < DISK_FREE_LOW_BYTES => Verdict::Warn,
                _ => Verdict::Ok,
            };
            let fix = if verdict == Verdict::Ok { "" } else { "free some space, or choose another --data-dir" };
            check("disk-space", verdict, format!("{} free for {}", size_text(free), dir.display()), fix)
        }
    }
}

/// Kinds of file system by their magic numbers, of which some keep nothing or lock badly.
fn file_system(dir: &Path) -> Check {
    const KINDS: [(u32, &str, &str); 10] = [
        (0xef53, "ext4", ""),
        (0x5846_5342, "xfs", ""),
        (0x9123_683e, "btrfs", ""),
        (0x2fc1_2fc1, "zfs", ""),
        (0xf2f5_2010, "f2fs", ""),
        (0xca45_1a4e, "bcachefs", ""),
        (0x0102_1994, "tmpfs", "its contents are gone after a restart of the machine"),
        (0x6969, "nfs", "locks and fsync over a network are slow and fragile; use a local disk"),
        (0xff53_4d42, "cifs", "it lacks Unix modes and locks; use a local disk"),
        (0x794c_7630, "overlayfs", "in a container: put the data directory on a volume"),
    ];
    match rustix::fs::statfs(dir) {
        Err(error) => check("file-system", Verdict::Warn, error.to_string(), ""),
        Ok(found) => {
            let magic = found.f_type as u32;
            match KINDS.iter().find(|kind| kind.0 == magic) {
                Some((_, name, "")) => check("file-system", Verdict::Ok, *name, ""),
                Some((_, name, fix)) => check("file-system", Verdict::Warn, *name, *fix),
                None => check("file-system", Verdict::Ok, format!("of kind {magic:#x}"), ""),
            }
        }
    }
}

/// The mean of a few small durable writes.
fn fsync_time(dir: &Path) -> std::io::Result<Duration> {
    let path = dir.join(format!(".shoal-doctor.{}", std::process::id()));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).open(&path)?;
    let start = Instant::now();
    let mut write = || -> std::io::Result<()> {
        for _ in 0..FSYNC_ROUNDS {
            file.write_all(&[0x5a; 4096])?;
            file.sync_data()?;
        }
        Ok(())
    };
    let written = write();
    let time = start.elapsed() / FSYNC_ROUNDS;
    fs::remove_file(&path)?;
    written.map(|()| time)
}

fn port(config: &Config) -> Option<Check> {
    let address = config.ssh?;
    Some(match TcpListener::bind(address) {
        Ok(_) => check("ssh-port", Verdict::Ok, format!("{address} is free"), ""),
        Err(error) => check(
            "ssh-port",
            Verdict::Fail,
            format!("cannot listen on {address}: {error}"),
            "stop what listens there, or choose another address with --ssh",
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions() {
        assert_eq!(version("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(version("5.15-rc1"), Some((5, 15)));
        assert_eq!(version("next"), None);
    }

    #[test]
    fn every_complaint_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut config = Config::detected();
        config.data_dir = dir.path().join("not/there/yet");
        config.sandbox_shell = Some("/etc/passwd".into());
        config.ssh = taken.local_addr().ok();
        let checks = examine(&config, false);
        for check in &checks {
            assert_eq!(check.verdict == Verdict::Ok, check.fix.is_empty(), "{check:?}");
        }
        let verdict = |name| checks.iter().find(|check| check.name == name).map(|check| check.verdict);
        assert_eq!(verdict("ssh-port"), Some(Verdict::Fail));
        assert_eq!(verdict("sandbox-shell"), Some(Verdict::Fail));
        assert!(checks.iter().any(|check| check.name == "fsync"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind");
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_named() {
        let checks = data_dir(Path::new("/proc/shoal"));
        let failed = checks.iter().find(|check| check.name == "data-dir").unwrap();
        assert!(failed.verdict == Verdict::Fail && failed.found.contains("/proc"), "{failed:?}");
    }
}
