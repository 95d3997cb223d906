//! The unix socket door: `NIX_REMOTE=unix://...`. Who is at the other end, the kernel says.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tracing::{debug, info, warn};

use super::pipe::{Drain, Feed, Gate, Outgoing, STALL_LIMIT, pipe};
use super::{Grant, Peer, Program, Role, Sessions};

/// Connections at once, silent ones included; beyond it the oldest silent one is dropped.
pub const CONNECTIONS_MAX: usize = 4096;
/// A client says its first word within this time, or goes.
pub const FIRST_WORD_LIMIT: Duration = Duration::from_secs(60);
/// Magic and version.
const FIRST_WORD_SIZE: usize = 16;
/// One read of the socket.
const READ_SIZE: usize = 64 << 10;
/// Pause after `accept` failed for want of descriptors or memory.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// An open door. Closes, and removes a socket that it made, when dropped.
pub struct UnixDoor {
    path: PathBuf,
    /// Somebody else opened it, and may have it served by another process later.
    is_lent: bool,
    shared: Arc<Shared>,
    accepting: tokio::task::JoinHandle<()>,
}

struct Shared {
    sessions: Sessions,
    /// Who runs this node.
    uid: u32,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    next_id: u64,
    tasks: BTreeMap<u64, tokio::task::AbortHandle>,
    silent: BTreeMap<u64, tokio::task::AbortHandle>,
}

impl UnixDoor {
    /// Listens at `path`, in the place of a socket that a dead node left there. Must be called within a tokio runtime.
    pub fn open(path: &Path, sessions: Sessions) -> io::Result<UnixDoor> {
        remove_dead_socket(path)?;
        let listener = UnixListener::bind(path)?;
        // Everybody may connect; what each may do depends on who it is.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
        Ok(Self::start(listener, path, false, sessions))
    }

    /// At a socket that listens already at `path`, and stays when the door closes.
    pub fn on(listener: UnixListener, path: &Path, sessions: Sessions) -> UnixDoor {
        Self::start(listener, path, true, sessions)
    }

    fn start(listener: UnixListener, path: &Path, is_lent: bool, sessions: Sessions) -> UnixDoor {
        super::raise_descriptor_limit();
        let uid = rustix::process::geteuid().as_raw();
        let shared = Arc::new(Shared { sessions, uid, open: Mutex::default() });
        let accepting = tokio::spawn(accept(listener, shared.clone()));
        UnixDoor { path: path.to_owned(), is_lent, shared, accepting }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lets nobody in any more; who is in stays.
    pub fn stop_accepting(&self) {
        self.accepting.abort();
        if !self.is_lent {
            let _ = std::fs::remove_file(&self.path);
        }
    }

    /// Also hangs up on everybody.
    pub fn close(&self) {
        self.stop_accepting();
        for task in self.shared.open().tasks.values() {
            task.abort();
        }
    }
}

impl Drop for UnixDoor {
    fn drop(&mut self) {
        self.close();
    }
}

/// A socket that nobody answers is removed; a live one, or another kind of file, is an error.
fn remove_dead_socket(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => {
                Err(io::Error::new(io::ErrorKind::AddrInUse, format!("another process answers at {}", path.display())))
            }
            Err(_) => std::fs::remove_file(path),
        },
        Ok(_) => {
            Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{} exists and is not a socket", path.display())))
        }
        Err(_) => Ok(()),
    }
}

async fn accept(listener: UnixListener, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => shared.clone().admit(stream),
            Err(error) => {
                warn!("cannot accept a connection on the unix socket: {error}");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

impl Shared {
    fn open(&self) -> std::sync::MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn peer(&self, stream: &UnixStream) -> io::Result<Peer> {
        let credentials = stream.peer_cred()?;
        let uid = credentials.uid();
        let role = if uid == 0 || uid == self.uid { Role::Admin } else { Role::Build };
        let who = format!("uid {uid}");
        let from = match credentials.pid() {
            Some(pid) => format!("socket uid {uid} pid {pid}"),
            None => format!("socket uid {uid}"),
        };
        Ok(Peer { grant: Grant { role, tenant: None, who }, from })
    }

    fn admit(self: Arc<Self>, stream: UnixStream) {
        let peer = match self.peer(&stream) {
            Ok(peer) => peer,
            Err(error) => {
                return warn!("refused a client of the unix socket, the kernel does not say who it is: {error}");
            }
        };
        let mut open = self.open();
        if open.tasks.len() >= CONNECTIONS_MAX {
            match open.silent.pop_first() {
                Some((_, oldest)) => oldest.abort(),
                None => return warn!("refused {}: {CONNECTIONS_MAX} connections are open", peer.from),
            }
        }
        let id = open.next_id;
        open.next_id += 1;
        let leave = Leave { shared: self.clone(), id };
        let shared = self.clone();
        // Runs only once `open` is unlocked, so that it finds itself listed.
        let task = tokio::spawn(async move {
            let leave = leave;
            shared.serve(stream, peer, leave.id).await;
        });
        open.tasks.insert(id, task.abort_handle());
        open.silent.insert(id, task.abort_handle());
    }

    async fn serve(&self, stream: UnixStream, peer: Peer, id: u64) {
        let (mut reader, writer) = stream.into_split();
        // The session's thread starts with the client's first word: one that never speaks costs none.
        let mut first_word = [0; FIRST_WORD_SIZE];
        let first_word = match tokio::time::timeout(FIRST_WORD_LIMIT, reader.read(&mut first_word)).await {
            Ok(Ok(n)) if n > 0 => &first_word[..n],
            Ok(_) => return,
            Err(_) => return debug!("{} said nothing", peer.from),
        };
        self.open().silent.remove(&id);
        let gate = Arc::<Gate>::default();
        let (session, door) = pipe(gate.clone());
        door.feed.push(first_word);
        self.sessions.start(Program::Daemon, peer, session);
        let reading = read(reader, door.feed, &gate);
        let writing = write(writer, door.drain);
        tokio::pin!(reading, writing);
        tokio::select! {
            () = &mut writing => {}
            feed = &mut reading => {
                // The client ended its side; it may still wait for answers. Dropping `feed` would cut them off.
                writing.await;
                drop(feed);
            }
        }
    }
}

/// Takes a connection off the lists however its task ends.
struct Leave {
    shared: Arc<Shared>,
    id: u64,
}

impl Drop for Leave {
    fn drop(&mut self) {
        let mut open = self.shared.open();
        open.tasks.remove(&self.id);
        open.silent.remove(&self.id);
    }
}

async fn read(mut reader: OwnedReadHalf, feed: Feed, gate: &Gate) -> Feed {
    let mut buffer = vec![0; READ_SIZE];
    loop {
        if std::future::poll_fn(|context| gate.poll_open(context)).await.is_err() {
            break;
        }
        match reader.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(n) => feed.push(&buffer[..n]),
        }
    }
    feed.end();
    feed
}

async fn write(mut writer: OwnedWriteHalf, mut drain: Drain) {
    while let Some(outgoing) = drain.next().await {
        let bytes = match outgoing {
            Outgoing::Piece(super::pipe::Lane::Data, bytes) => bytes,
            // A unix client has no second stream.
            Outgoing::Piece(super::pipe::Lane::Stderr, _) => continue,
            Outgoing::End(_) => break,
        };
        match tokio::time::timeout(STALL_LIMIT, writer.write_all(&bytes)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return,
            Err(_) => return info!("a client of the unix socket took nothing for {} s", STALL_LIMIT.as_secs()),
        }
    }
    let _ = writer.shutdown().await;
}
