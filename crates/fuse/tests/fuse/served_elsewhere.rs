//! Mounts whose process is killed, stopped or starved.

use crate::fake::{Fake, Mood, name_of};
use crate::lab::{Place, Reader, eventually, hasty};
use crate::paths::{file, noise};
use shoal_fuse::{Deliver, Health, Mount, Options, Source, SourceError, health};
use shoal_wire::mesh::manifest::{ChunkRef, Manifest};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;

/// Set for the process that serves: where.
const SERVER_DIR: &str = "SHOAL_TEST_SERVER_DIR";
/// And what its source does.
const SERVER_MOOD: &str = "SHOAL_TEST_SERVER_MOOD";
const ENOTCONN: i32 = 107;
const EIO: i32 = 5;

fn contents() -> Vec<u8> {
    noise(1, 3 << 20)
}

/// Opens a file for each chunk, as sources do that read from disks or dial.
struct Opening(Fake);

impl Source for Opening {
    fn names(&self) -> Result<Vec<String>, SourceError> {
        self.0.names()
    }

    fn manifest(&self, name: &str) -> Result<Option<Manifest>, SourceError> {
        self.0.manifest(name)
    }

    fn fetch(&self, name: &str, chunks: &[ChunkRef], deliver: Deliver<'_>) {
        match fs::File::open("/dev/null") {
            Ok(_) => self.0.fetch(name, chunks, deliver),
            Err(error) => {
                (0..chunks.len()).for_each(|place| deliver(place, Err(SourceError::Failed(error.to_string()))))
            }
        }
    }

    fn prefetch(&self, _: &str, _: &[ChunkRef]) {}
}

/// Serves until its input ends; takes all file descriptors when told `take`, and gives them back when told `give`.
#[test]
fn server() {
    let (Ok(dir), Ok(mood)) = (std::env::var(SERVER_DIR), std::env::var(SERVER_MOOD)) else {
        println!("skipped: only runs as a child of other tests");
        return;
    };
    let fake = Fake::default();
    fake.add_listed("big", &[("data", file(&contents()))]);
    fake.feel(if mood == "hangs" { Mood::Hangs } else { Mood::Well });
    let mount = Mount::start(Path::new(&dir), Arc::new(Opening(fake)), &hasty()).expect("a mount");
    println!("\nready");
    let mut taken = Vec::new();
    for line in std::io::stdin().lines() {
        match line.expect("a line").as_str() {
            "take" => {
                let allowed = rustix::process::getrlimit(rustix::process::Resource::Nofile);
                let limit = rustix::process::Rlimit { current: Some(64), ..allowed };
                rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).expect("fewer are allowed");
                while let Ok(file) = fs::File::open("/dev/null") {
                    taken.push(file);
                }
            }
            _ => taken.clear(),
        }
        println!("\ndone");
    }
    drop(mount);
}

/// A process that serves a mount, killed when it is dropped.
struct Server {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<std::process::ChildStdout>,
}

impl Server {
    fn start(dir: &Path, mood: &str) -> Server {
        let program = std::env::current_exe().expect("this program");
        let mut command = Command::new(program);
        command.args(["--exact", "served_elsewhere::server", "--nocapture"]);
        command.env(SERVER_DIR, dir).env(SERVER_MOOD, mood).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("a process");
        let (input, output) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        let mut server = Server { child, input: Some(input), output: BufReader::new(output) };
        server.wait_for("ready");
        server
    }

    fn wait_for(&mut self, word: &str) {
        let mut line = String::new();
        while line.trim() != word {
            line.clear();
            assert!(self.output.read_line(&mut line).expect("its output") > 0, "it ended");
        }
    }

    fn tell(&mut self, word: &str) {
        writeln!(self.input.as_mut().expect("open"), "{word}").expect("it reads");
        self.wait_for("done");
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("a child");
    }

    /// Ends it as it ends by itself.
    fn end(&mut self) {
        drop(self.input.take());
        assert!(self.child.wait().expect("a child").success());
    }

    fn kill(&mut self) {
        self.child.kill().expect("a child");
        self.child.wait().expect("a child");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn data(dir: &Path) -> PathBuf {
    dir.join(name_of("big")).join("data")
}

fn mount_here(dir: &Path) -> Mount {
    let fake = Fake::default();
    fake.add_listed("big", &[("data", file(&contents()))]);
    Mount::start(dir, Arc::new(fake), &Options::default()).expect("a mount")
}

#[test]
fn when_the_server_is_killed_readers_get_errors_and_the_next_one_takes_its_place() {
    if crate::lab::cannot_mount() {
        return;
    }
    let place = Place::new();
    let dir = place.dir();
    let mut server = Server::start(&dir, "hangs");
    let refused = Mount::start(&dir, Arc::new(Fake::default()), &Options::default());
    assert!(refused.is_err(), "what is served is not taken away");
    let mut reader = Reader::of(&data(&dir));
    let open = fs::File::open(data(&dir)).unwrap();
    server.kill();
    assert!(!reader.end().expect("it ends").success());
    assert_eq!(open.read_at(&mut [0; 10], 0).unwrap_err().raw_os_error(), Some(ENOTCONN));
    assert_eq!(health(&dir), Health::Dead);
    let mount = mount_here(&dir);
    assert!(fs::read(data(&dir)).unwrap() == contents());
    drop(mount);
    assert!(!place.is_mounted());
}

#[test]
fn when_the_server_is_stopped_readers_can_be_killed_and_the_next_one_takes_its_place() {
    if crate::lab::cannot_mount() {
        return;
    }
    let place = Place::new();
    let dir = place.dir();
    let server = Server::start(&dir, "well");
    let open = fs::File::open(data(&dir)).unwrap();
    assert!(open.read_at(&mut [0; 10], 0).is_ok());
    server.signal(rustix::process::Signal::STOP);
    assert!(open.read_at(&mut [0; 10], 0).is_ok(), "what was read is readable");
    let mut reader = Reader::of(&data(&dir));
    assert!(eventually(|| is_reading(&reader).then_some(())).is_some());
    reader.kill();
    assert!(reader.end().is_some(), "it stays, killed and waiting");
    let mut stuck = Reader::run(Command::new("stat").arg("-f").arg(&dir));
    let mount = mount_here(&dir);
    assert!(stuck.end().is_some(), "who was caught in the mount is freed");
    assert!(fs::read(data(&dir)).unwrap() == contents());
    drop(mount);
    assert!(!place.is_mounted());
}

/// Whether a process waits in a read of what is not in memory: it has the file open and does not run.
fn is_reading(reader: &Reader) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/stat", reader.id())).unwrap_or_default();
    let state = status.rsplit(") ").next().unwrap_or_default().chars().next();
    let calls = fs::read_to_string(format!("/proc/{}/syscall", reader.id())).unwrap_or_default();
    state != Some('R') && calls.starts_with("0 ")
}

#[test]
fn a_server_without_file_descriptors_gives_errors_and_goes_on_when_it_has_some() {
    if crate::lab::cannot_mount() {
        return;
    }
    let place = Place::new();
    let dir = place.dir();
    let mut server = Server::start(&dir, "well");
    server.tell("take");
    assert!(fs::metadata(data(&dir)).is_ok());
    assert_eq!(fs::read(data(&dir)).unwrap_err().raw_os_error(), Some(EIO));
    server.tell("give");
    let read = eventually(|| fs::read(data(&dir)).ok()).expect("it goes on");
    assert!(read == contents());
    server.end();
    assert!(!place.is_mounted());
}
