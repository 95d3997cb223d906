//! Bytes between an async door and the blocking thread of one session.
//!
//! - The door never waits for the session: [`Feed::push`] takes all it is given, and the door stops reading its
//!   transport while the [`Gate`] is shut. So a session that reads slowly slows its own client down.
//! - The session waits in [`PipeWriter`] while [`OUTPUT_MAX`] bytes lie unsent. The door's pump bounds that wait: it
//!   closes the pipe when the transport takes nothing for [`STALL_LIMIT`].
//! - [`Hangup`] fires once: when the client can send nothing more, or was given up.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

pub use gate::Gate;
pub use hangup::{Hangup, Watch};

mod gate;
mod hangup;

/// Unread input at which the door stops reading. An ssh client sends at most its window beyond it.
pub const INPUT_MAX: usize = 4 << 20;
/// Unread input at which the door reads on: late enough that it does not stop and go with every packet.
pub const INPUT_RESUME: usize = 2 << 20;
/// Unsent output at which the session waits: some 20 ms of a 1 Gbit/s link and its round trip.
pub const OUTPUT_MAX: usize = 2 << 20;
/// Unsent output at which messages that may be lost (log lines, progress) are.
pub const OUTPUT_CONGESTED: usize = 1 << 20;
/// Output is handed over in pieces of this size: two ssh packets.
const PIECE: usize = 64 << 10;
/// Buffers that were grown beyond this are given back when they run empty.
const KEPT_CAPACITY: usize = 64 << 10;
/// A client that takes no byte for this long is gone. Generous: a client may wait for a lock on its own store while a
/// NAR is on its way.
pub const STALL_LIMIT: Duration = Duration::from_secs(600);

/// Where output goes: to the client's program, or (ssh only) to its terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    Data,
    Stderr,
}

/// What a pump sends next.
#[derive(Debug, PartialEq, Eq)]
pub enum Outgoing {
    Piece(Lane, Vec<u8>),
    /// The session ended with this exit status; nothing follows.
    End(u32),
}

#[derive(Default)]
struct State {
    input: VecDeque<u8>,
    input_ended: bool,
    gate_shut: bool,
    output: VecDeque<(Lane, Vec<u8>)>,
    output_len: usize,
    output_closed: bool,
    ended: Option<u32>,
}

struct Shared {
    state: Mutex<State>,
    readable: Condvar,
    writable: Condvar,
    outgoing: Notify,
    gate: Arc<Gate>,
    hangup: Hangup,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_gate(&self, state: &mut State) {
        if std::mem::take(&mut state.gate_shut) {
            self.gate.open();
        }
    }

    fn close(&self) {
        let mut state = self.lock();
        state.input_ended = true;
        state.output_closed = true;
        state.output.clear();
        state.output_len = 0;
        self.open_gate(&mut state);
        drop(state);
        self.readable.notify_all();
        self.writable.notify_all();
        self.outgoing.notify_one();
        self.hangup.fire();
    }
}

/// A session's ends and the door's, joined. `gate` is shared by the pipes of one transport.
pub fn pipe(gate: Arc<Gate>) -> (SessionEnd, DoorEnd) {
    let shared = Arc::new(Shared {
        state: Mutex::default(),
        readable: Condvar::new(),
        writable: Condvar::new(),
        outgoing: Notify::new(),
        gate,
        hangup: Hangup::default(),
    });
    let session = SessionEnd {
        input: PipeReader(shared.clone()),
        output: PipeWriter { shared: shared.clone(), lane: Lane::Data, buffer: Vec::new() },
        hangup: shared.hangup.clone(),
        end: End(shared.clone()),
    };
    (session, DoorEnd { feed: Feed(shared.clone()), drain: Drain(shared) })
}

/// What a session thread holds of its client.
pub struct SessionEnd {
    pub input: PipeReader,
    pub output: PipeWriter,
    pub hangup: Hangup,
    pub end: End,
}

/// What a door holds of a session.
pub struct DoorEnd {
    pub feed: Feed,
    pub drain: Drain,
}

/// The client's bytes, blocking. Reads 0 when the client ended its side; what came before is read first.
pub struct PipeReader(Arc<Shared>);

impl io::Read for PipeReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let mut state = self.0.lock();
        while state.input.is_empty() {
            if state.input_ended {
                return Ok(0);
            }
            state = self.0.readable.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let n = state.input.read(buffer)?;
        if state.input.is_empty() && state.input.capacity() > KEPT_CAPACITY {
            state.input = VecDeque::new();
        }
        if state.input.len() <= INPUT_RESUME {
            self.0.open_gate(&mut state);
        }
        Ok(n)
    }
}

/// Bytes for the client, blocking. Buffered: nothing moves before `flush` or a full piece.
pub struct PipeWriter {
    shared: Arc<Shared>,
    lane: Lane,
    buffer: Vec<u8>,
}

impl PipeWriter {
    /// Another writer on the same pipe, for `lane`.
    pub fn with_lane(&self, lane: Lane) -> PipeWriter {
        PipeWriter { shared: self.shared.clone(), lane, buffer: Vec::new() }
    }

    /// The client reads slower than we write: what may be lost should be.
    pub fn is_congested(&self) -> bool {
        let state = self.shared.lock();
        state.output_closed || state.output_len + self.buffer.len() >= OUTPUT_CONGESTED
    }

    fn hand_over(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let mut state = self.shared.lock();
        while state.output_len >= OUTPUT_MAX && !state.output_closed {
            state = self.shared.writable.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.output_closed {
            self.buffer.clear();
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, "the client is gone"));
        }
        let piece = std::mem::take(&mut self.buffer);
        state.output_len += piece.len();
        state.output.push_back((self.lane, piece));
        drop(state);
        self.shared.outgoing.notify_one();
        Ok(())
    }
}

impl io::Write for PipeWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = bytes.len().min(PIECE - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..n]);
        if self.buffer.len() == PIECE {
            self.hand_over()?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.hand_over()
    }
}

/// Ends the session for the client. One that ends without [`End::finish`] has failed.
pub struct End(Arc<Shared>);

/// `EX_SOFTWARE`: the session broke off.
const EXIT_BROKEN: u32 = 70;

impl End {
    pub fn finish(self, status: u32) {
        self.0.lock().ended = Some(status);
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.ended.get_or_insert(EXIT_BROKEN);
        // Nobody reads any more; the transport must not wait for this session.
        state.input = VecDeque::new();
        state.input_ended = true;
        self.0.open_gate(&mut state);
        drop(state);
        self.0.outgoing.notify_one();
    }
}

/// The door's side of the input. Dropping it says that the client is gone: nothing reaches it any more.
pub struct Feed(Arc<Shared>);

impl Feed {
    /// Takes all of `bytes`. Shuts the gate when too much lies unread.
    pub fn push(&self, bytes: &[u8]) {
        let mut state = self.0.lock();
        if state.input_ended {
            return;
        }
        state.input.extend(bytes);
        if state.input.len() >= INPUT_MAX && !state.gate_shut {
            state.gate_shut = true;
            self.0.gate.shut();
        }
        drop(state);
        self.0.readable.notify_one();
    }

    /// The client ended its side. It may still read.
    pub fn end(&self) {
        self.0.lock().input_ended = true;
        self.0.readable.notify_one();
        self.0.hangup.fire();
    }
}

impl Feed {
    /// The link to the client broke.
    pub fn lose(&self) {
        self.0.hangup.lose();
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// The door's side of the output. Dropping it says that the client takes nothing any more.
pub struct Drain(Arc<Shared>);

impl Drain {
    /// The next thing to send; `None` when the client is gone. Cancel-safe.
    pub async fn next(&mut self) -> Option<Outgoing> {
        loop {
            {
                let mut state = self.0.lock();
                if let Some((lane, piece)) = state.output.pop_front() {
                    state.output_len -= piece.len();
                    self.0.writable.notify_all();
                    return Some(Outgoing::Piece(lane, piece));
                }
                if state.output_closed {
                    return None;
                }
                if let Some(status) = state.ended {
                    return Some(Outgoing::End(status));
                }
            }
            self.0.outgoing.notified().await;
        }
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        self.0.close();
    }
}

#[cfg(test)]
mod tests;
