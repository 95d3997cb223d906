//! A mount in a temporary directory that is gone afterwards, whatever happens, and readers that can be killed.

use crate::fake::{Fake, Mood, name_of};
use shoal_fuse::{Mount, Options, mounts, remove};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Longer than anything here takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Whether nothing can be mounted here, which is said by name: no FUSE, or not root and without its helper.
pub fn cannot_mount() -> bool {
    let has_fuse = fs::File::options().read(true).write(true).open("/dev/fuse").is_ok();
    let helper = || Command::new("fusermount3").arg("--version").output().is_ok();
    let can = has_fuse && (rustix::process::geteuid().is_root() || helper());
    if !can {
        println!("skipped: FUSE cannot be mounted here");
    }
    !can
}

/// Deadlines that a test can wait for.
pub fn hasty() -> Options {
    Options {
        read_deadline: Duration::from_secs(1),
        lookup_deadline: Duration::from_secs(1),
        failure_memory: Duration::from_secs(1),
        ..Options::default()
    }
}

/// A directory whose mounts are taken away when it goes.
pub struct Place(TempDir);

impl Place {
    pub fn new() -> Place {
        Place(tempfile::tempdir().expect("a temporary directory"))
    }

    pub fn dir(&self) -> PathBuf {
        let dir = self.0.path().canonicalize().expect("it is there").join("store");
        // It is there already where something is mounted at it, which is not to be looked at.
        let _ = fs::create_dir(&dir);
        dir
    }

    pub fn is_mounted(&self) -> bool {
        let dir = self.0.path().canonicalize().expect("it is there").join("store");
        mounts().expect("the list of mounts").iter().any(|line| line.dir == dir)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let dir = self.0.path().to_owned();
        for line in mounts().unwrap_or_default().iter().filter(|line| line.dir.starts_with(&dir)) {
            // Nothing more can be done about what stays.
            let _ = remove(line);
        }
    }
}

/// A mount of a fake source. Fields are dropped in this order.
pub struct Lab {
    pub mount: Mount,
    pub fake: Arc<Fake>,
    place: Place,
}

impl Lab {
    pub fn new(options: &Options, fake: Fake) -> Lab {
        let (place, fake) = (Place::new(), Arc::new(fake));
        let mount = Mount::start(&place.dir(), fake.clone(), options).expect("a mount");
        Lab { mount, fake, place }
    }

    /// Of a store path, or of something in it.
    pub fn path(&self, of: &str, inside: &str) -> PathBuf {
        let path = self.root().join(name_of(of));
        if inside.is_empty() { path } else { path.join(inside) }
    }

    pub fn root(&self) -> PathBuf {
        self.place.dir()
    }

    pub fn read(&self, of: &str, inside: &str) -> std::io::Result<Vec<u8>> {
        fs::read(self.path(of, inside))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.fake.feel(Mood::Well);
        self.fake.let_lookups_hang(false);
    }
}

/// A process that reads a file, killed when it is dropped.
pub struct Reader(Child);

impl Reader {
    pub fn of(file: &Path) -> Reader {
        Reader::run(Command::new("cat").arg(file))
    }

    pub fn run(command: &mut Command) -> Reader {
        let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Reader(command.spawn().expect("a process"))
    }

    pub fn id(&self) -> u32 {
        self.0.id()
    }

    pub fn has_ended(&mut self) -> bool {
        self.0.try_wait().expect("a child").is_some()
    }

    pub fn kill(&mut self) {
        self.0.kill().expect("a child can be killed");
    }

    /// Waits for its end; `None` where it does not come.
    pub fn end(&mut self) -> Option<ExitStatus> {
        eventually(|| self.0.try_wait().expect("a child"))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.end();
    }
}

/// Asks until there is an answer, or [`PATIENCE`] is over.
pub fn eventually<T>(mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let begun = Instant::now();
    loop {
        match ask() {
            Some(answer) => return Some(answer),
            None if begun.elapsed() > PATIENCE => return None,
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

pub fn run(command: &mut Command) -> Output {
    command.output().expect("a process")
}
