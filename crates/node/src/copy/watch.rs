//! Pushes what a store gains.
//!
//! The store's directory tells when something changes there, and the store which paths are valid; without a directory
//! that can be watched it is asked every now and then. What is new goes to the [`Queue`] first. A node that is away is
//! asked again with growing pauses, a path that it refuses is left out.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use shoal_wire::nix::store_path::StorePath;
use shoal_wire::nix::worker::{CallError, HandshakeError};

use super::local::LocalStore;
use super::push::push;
use super::queue::Queue;
use super::remote::{Remote, RemoteError};
use super::{Progress, Report};

/// Paths pushed together, with what they refer to: what fails together is tried one by one.
const BATCH_PATHS: usize = 64;
/// Attempts at the same batch that fail because the node, or Nix here, is away or busy: with these pauses some six minutes.
const ATTEMPTS: u32 = 12;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// A path's files come before it is valid.
const SETTLING: Duration = Duration::from_secs(1);
const EVENT_BYTES: usize = 16 << 10;

/// Hears what happens.
pub trait Events: Progress {
    fn pushed(&self, report: &Report);
    /// The node does not take this path, and is not asked again.
    fn refused(&self, path: &StorePath, error: &anyhow::Error);
    fn waits(&self, pause: Duration, error: &anyhow::Error);
}

pub struct Watch<'a> {
    pub local: &'a LocalStore,
    pub remote: &'a Remote,
    pub queue: Queue,
    pub events: &'a dyn Events,
    /// How often the store is asked whatever its directory tells.
    pub interval: Duration,
}

impl Watch<'_> {
    /// Pushes what was gained since the last time, and with `once` no more. An error leaves what is queued for the next
    /// time.
    pub fn run(&mut self, once: bool) -> Result<()> {
        let changes = Changes::of(&self.local.real_dir());
        loop {
            self.queue.note(&self.local.connect()?.paths()?)?;
            while !self.queue.is_empty() {
                let batch = self.queue.first(BATCH_PATHS);
                self.push(batch)?;
            }
            if once {
                return Ok(());
            }
            changes.wait(self.interval);
        }
    }

    fn push(&mut self, batch: Vec<StorePath>) -> Result<()> {
        let Err(error) = self.try_push(&batch)? else { return self.queue.settle(&batch) };
        if let [path] = &batch[..] {
            self.events.refused(path, &error);
            return self.queue.settle(&batch);
        }
        // One of them may be what is wrong.
        batch.into_iter().try_for_each(|path| self.push(vec![path]))
    }

    /// The inner error is about the paths; the outer one about the node, or the store here.
    fn try_push(&self, batch: &[StorePath]) -> Result<Result<()>> {
        let (mut pause, mut attempts) = (FIRST_PAUSE, 0);
        loop {
            attempts += 1;
            let error = match push(self.local, self.remote, batch, true, self.events) {
                Ok(report) => {
                    self.events.pushed(&report);
                    return Ok(Ok(()));
                }
                Err(error) => error,
            };
            match concern(&error) {
                Concern::Paths => return Ok(Err(error)),
                Concern::Node => return Err(error),
                Concern::Moment if attempts >= ATTEMPTS => return Err(error),
                Concern::Moment => {}
            }
            self.events.waits(pause, &error);
            thread::sleep(pause);
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

/// What an error is about.
#[derive(Debug, PartialEq, Eq)]
enum Concern {
    /// These paths: others may go.
    Paths,
    /// Any path, now and later.
    Node,
    /// Any path, for now.
    Moment,
}

fn concern(error: &anyhow::Error) -> Concern {
    match error.chain().find_map(RemoteError::within) {
        None if error.chain().any(is_local_trouble) => Concern::Moment,
        None => Concern::Paths,
        Some(RemoteError::Unreachable { .. }) => Concern::Moment,
        Some(RemoteError::Failed { .. } | RemoteError::Forbidden { .. }) => Concern::Moment,
        Some(RemoteError::Refused { status: 401, .. } | RemoteError::Alien { .. }) => Concern::Node,
        Some(RemoteError::Refused { .. } | RemoteError::Conflict { .. }) => Concern::Paths,
    }
}

/// Whether Nix's daemon here cannot be asked, whatever about.
fn is_local_trouble(cause: &(dyn std::error::Error + 'static)) -> bool {
    let is_broken = |error: &CallError| matches!(error, CallError::Proto(_));
    cause.is::<io::Error>() || cause.is::<HandshakeError>() || cause.downcast_ref::<CallError>().is_some_and(is_broken)
}

/// Tells when something changes in a directory.
struct Changes(Option<OwnedFd>);

impl Changes {
    /// Of a directory that cannot be watched nothing is told.
    fn of(dir: &Path) -> Changes {
        let watch = || {
            let changes = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
            inotify::add_watch(&changes, dir, WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR)?;
            rustix::io::Result::Ok(changes)
        };
        let changes = watch();
        if let Err(error) = &changes {
            tracing::debug!("cannot watch {}: {error}", dir.display());
        }
        Changes(changes.ok())
    }

    /// Returns some moments after something changed, or after `at_most`.
    fn wait(&self, at_most: Duration) {
        let Some(changes) = &self.0 else { return thread::sleep(at_most) };
        let timeout = Timespec { tv_sec: at_most.as_secs() as i64, tv_nsec: i64::from(at_most.subsec_nanos()) };
        // An interrupted wait is only a short one.
        if poll(&mut [PollFd::new(&changes.as_fd(), PollFlags::IN)], Some(&timeout)).is_ok_and(|ready| ready > 0) {
            thread::sleep(SETTLING);
            // That something changed is all there is to know.
            let mut events = vec![0; EVENT_BYTES];
            while rustix::io::read(changes, &mut events[..]).is_ok_and(|n| n > 0) {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;
    use shoal_wire::nix::proto::{Dialect, Reader, Writer};
    use shoal_wire::nix::store_path::StoreDir;
    use shoal_wire::nix::worker::{MINOR_MAX, Offer, RemoteError, Request, StderrMessage, Trust, handshake};

    #[test]
    fn errors_concern_a_path_or_the_node() {
        let url = || "http://node".to_owned();
        use super::RemoteError;
        let of = |error: RemoteError| concern(&anyhow::Error::from(error).context("cannot push"));
        let refused = |status| RemoteError::Refused { url: url(), status, text: String::new() };
        assert_eq!(of(refused(403)), Concern::Paths);
        assert_eq!(of(refused(401)), Concern::Node);
        // A token of another role, or a node that takes nothing for now: the paths may go later.
        assert_eq!(of(RemoteError::Forbidden { url: url(), text: String::new() }), Concern::Moment);
        assert_eq!(of(RemoteError::Unreachable { url: url(), text: String::new() }), Concern::Moment);
        assert_eq!(of(RemoteError::Failed { url: url(), status: 503, text: String::new() }), Concern::Moment);
        assert_eq!(concern(&anyhow::anyhow!("a file is gone")), Concern::Paths);
        let away = anyhow::Error::from(io::Error::from(io::ErrorKind::ConnectionRefused)).context("no daemon");
        assert_eq!(concern(&away), Concern::Moment);
    }

    /// A daemon that has lost its files, as Nix's is then: it says that a NAR comes, and in its place why there is none.
    /// It is gone after so many connections.
    fn daemon_without_files(dir: &Path, connections: usize) -> LocalStore {
        let socket = dir.join(connections.to_string());
        let listener = UnixListener::bind(&socket).unwrap();
        thread::spawn(move || listener.incoming().take(connections).for_each(|stream| answer(stream.unwrap())));
        LocalStore::find(Some(&format!("unix://{}", socket.display())), |_| None)
    }

    fn answer(stream: UnixStream) {
        let dialect = Dialect::new(StoreDir::default(), MINOR_MAX);
        let mut reader = Reader::new(stream.try_clone().unwrap(), dialect.clone());
        let mut writer = Writer::new(stream, dialect);
        let (nix_version, trust) = ("2.34.8".to_owned(), Trust::Trusted);
        let offer = Offer { store_dir: StoreDir::default(), features: BTreeSet::new(), nix_version, trust };
        handshake::accept(&mut reader, &mut writer, &offer).unwrap();
        writer.put(&StderrMessage::Last).unwrap();
        while let Ok(Some(request)) = Request::read_next(&mut reader) {
            writer.put(&StderrMessage::Last).unwrap();
            match request {
                Request::IsValidPath(_) => writer.bool(true).unwrap(),
                _ => return writer.put(&StderrMessage::Error(RemoteError::new("no such file"))).unwrap(),
            }
        }
    }

    #[test]
    fn files_that_are_gone_concern_their_path_and_a_daemon_that_is_gone_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = StorePath::from_base_name("dd2s755w68andyyr5makbwzidf6whr5d-ht").unwrap();
        let error_of = |connections| {
            let local = daemon_without_files(dir.path(), connections);
            local.connect().unwrap().nar(&path, Vec::new()).unwrap_err().context("cannot push")
        };
        let gone = error_of(3);
        assert_eq!(concern(&gone), Concern::Paths, "{gone:#}");
        assert!(format!("{gone:#}").contains("cannot give its files"), "{gone:#}");
        assert_eq!(concern(&error_of(1)), Concern::Moment);
    }

    #[test]
    fn what_happens_in_a_directory_ends_a_wait() {
        let dir = tempfile::tempdir().unwrap();
        let changes = Changes::of(dir.path());
        std::fs::write(dir.path().join("new"), "").unwrap();
        // Would be an hour otherwise.
        changes.wait(Duration::from_secs(3600));
        assert!(Changes::of(&dir.path().join("none")).0.is_none());
    }
}
