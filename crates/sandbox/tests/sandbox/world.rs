//! A directory with trees and scratch directories, and builds in them.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use shoal_sandbox::{Event, Input, Outcome, Program, Running, Spec, remove_tree, spawn};

/// The store path of a busybox with all its commands in `bin`.
pub const BUSYBOX: &str = "00000000000000000000000000000000-busybox";

/// Commands of busybox that scripts here use.
const COMMANDS: [&str; 36] = [
    "sh", "ls", "id", "cat", "env", "sort", "stat", "grep", "hostname", "ifconfig", "mkdir", "touch", "chmod", "ln",
    "sleep", "kill", "ps", "seq", "wget", "nc", "readlink", "mknod", "mkfifo", "cp", "rm", "mv", "uname", "head", "wc",
    "dd", "yes", "tr", "true", "setsid", "ping", "test",
];

/// Longer than any build here takes, on the slowest machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Root,
    User,
}

impl Who {
    pub fn current() -> Who {
        if rustix::process::geteuid().is_root() { Who::Root } else { Who::User }
    }

    pub fn name(self) -> &'static str {
        match self {
            Who::Root => "root",
            Who::User => "user",
        }
    }
}

/// What one test has. Removed in the end.
pub struct World {
    pub dir: PathBuf,
    pub who: Who,
    scratches: AtomicU32,
}

impl World {
    pub fn create(test: &str) -> World {
        // Below /var/tmp and not in the target directory, which other users may not be able to reach.
        let name = format!("shoal-sandbox-{}-{}", test.replace(':', "-"), std::process::id());
        let dir = Path::new("/var/tmp").join(name);
        fs::create_dir(&dir).unwrap();
        let world = World { dir, who: Who::current(), scratches: AtomicU32::new(0) };
        let bin = world.trees().join(BUSYBOX).join("bin");
        fs::create_dir_all(&bin).unwrap();
        fs::copy("/bin/busybox", bin.join("busybox")).expect("busybox-static is installed");
        COMMANDS.iter().for_each(|command| symlink("busybox", bin.join(command)).unwrap());
        for dir in [bin.parent().unwrap(), &bin] {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o555)).unwrap();
            set_mtime(dir);
        }
        world
    }

    /// Where all inputs lie.
    pub fn trees(&self) -> PathBuf {
        self.dir.join("trees")
    }

    /// An input that is a directory with one file, `file`.
    pub fn directory(&self, name: &str, content: &str) -> Input {
        let tree = self.trees().join(name);
        fs::create_dir_all(&tree).unwrap();
        fs::write(tree.join("file"), content).unwrap();
        fs::set_permissions(tree.join("file"), fs::Permissions::from_mode(0o444)).unwrap();
        fs::set_permissions(&tree, fs::Permissions::from_mode(0o555)).unwrap();
        set_mtime(&tree);
        Input { name: name.to_owned(), tree }
    }

    pub fn busybox(&self) -> Input {
        Input { name: BUSYBOX.to_owned(), tree: self.trees().join(BUSYBOX) }
    }

    pub fn scratch(&self) -> PathBuf {
        let number = self.scratches.fetch_add(1, Ordering::Relaxed);
        let scratch = self.dir.join(format!("scratch-{number}"));
        fs::create_dir(&scratch).unwrap();
        scratch
    }

    /// A build of a shell script that has busybox and nothing else.
    pub fn script(&self, script: &str) -> Spec {
        let bin = format!("/nix/store/{BUSYBOX}/bin");
        let program = Program::Exec {
            path: format!("{bin}/sh").into(),
            argv: ["sh", "-c", script].map(|arg| arg.as_bytes().to_vec()).to_vec(),
        };
        let mut spec = Spec::new(self.scratch(), program);
        spec.env = vec![(b"PATH".to_vec(), bin.into())];
        spec.inputs = vec![self.busybox()];
        spec
    }

    /// A build of one of `builtins.rs`.
    pub fn builtin(&self, name: &str) -> Spec {
        let program = Program::Builtin { name: name.to_owned(), payload: b"payload".to_vec() };
        Spec::new(self.scratch(), program)
    }

    /// What a script writes, without asking how it ended.
    pub fn output(&self, script: &str) -> String {
        run(&self.script(script)).log
    }
}

impl Drop for World {
    fn drop(&mut self) {
        remove_tree(&self.dir).unwrap();
    }
}

fn set_mtime(path: &Path) {
    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
    let one = Timespec { tv_sec: 1, tv_nsec: 0 };
    let times = Timestamps { last_access: one, last_modification: one };
    utimensat(CWD, path, &times, AtFlags::empty()).unwrap();
}

/// A build that is over.
#[derive(Debug)]
pub struct Ran {
    pub outcome: Outcome,
    pub log: String,
}

pub fn run(spec: &Spec) -> Ran {
    finish(spawn(spec).unwrap())
}

/// Everything from here on.
pub fn finish(mut running: Running) -> Ran {
    let deadline = Instant::now() + PATIENCE;
    let mut log = Vec::new();
    loop {
        match running.next(Some(deadline)).unwrap().expect("a build that ends") {
            Event::Output(bytes) => log.extend(bytes),
            Event::Exited(outcome) => {
                return Ran { outcome, log: String::from_utf8_lossy(&log).into_owned() };
            }
        }
    }
}
