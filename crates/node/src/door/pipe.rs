//! Bytes between an async door and the blocking thread of one session.
//!
//! - The door never waits for the session: [`Feed::push`] takes all it is given, and the door stops reading its
//!   transport while the [`Gate`] is shut. So a session that reads slowly slows its own client down.
//! - The session waits in [`PipeWriter`] while [`OUTPUT_MAX`] bytes lie unsent. The door's pump bounds that wait: it
//!   closes the pipe when the transport takes nothing for [`STALL_LIMIT`].
//! - Whoever waits is woken, and nobody else: a wake-up takes longer than moving a piece.
//! - [`Hangup`] fires once: when the client can send nothing more, or was given up.

use std::collections::VecDeque;
use std::io::{self, BufRead, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

pub use gate::Gate;
pub use hangup::{Hangup, Watch};

mod gate;
mod hangup;

/// Input at which the door stops reading, until the session takes all of it. An ssh client sends at most its window
/// beyond it. The session may have as much in hand that it took before.
pub const INPUT_MAX: usize = 2 << 20;
/// Unsent output at which the session waits: some 20 ms of a 1 Gbit/s link and its round trip.
pub const OUTPUT_MAX: usize = 2 << 20;
/// Unsent output at which a session that waits goes on: late enough that it does not stop and go with every piece.
const OUTPUT_RESUME: usize = 1 << 20;
/// Unsent output at which messages that may be lost (log lines, progress) are.
pub const OUTPUT_CONGESTED: usize = 1 << 20;
/// Output is handed over in pieces of this size: eight ssh packets, which leave in one write.
const PIECE: usize = 256 << 10;
/// A piece that grows beyond this is given room for all of [`PIECE`].
const PIECE_SMALL: usize = 16 << 10;
/// Buffers of input that were grown beyond this are given back when they run empty.
const KEPT_CAPACITY: usize = 128 << 10;
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
    input: Vec<u8>,
    input_ended: bool,
    /// The session waits for input.
    reader_waits: bool,
    gate_shut: bool,
    output: VecDeque<(Lane, Vec<u8>)>,
    output_len: usize,
    output_closed: bool,
    /// Writers of the session that wait for room.
    writers_waiting: usize,
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
        input: PipeReader { shared: shared.clone(), taken: Vec::new(), at: 0 },
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
pub struct PipeReader {
    shared: Arc<Shared>,
    /// Taken from the door; what follows `at` is not read yet.
    taken: Vec<u8>,
    at: usize,
}

impl PipeReader {
    /// Takes all that the door has, once that is something.
    fn take(&mut self) {
        self.taken.clear();
        self.at = 0;
        let mut state = self.shared.lock();
        while state.input.is_empty() && !state.input_ended {
            // Neither buffer of an upload that is over is kept while the client is silent.
            for buffer in [&mut self.taken, &mut state.input] {
                if buffer.capacity() > KEPT_CAPACITY {
                    *buffer = Vec::new();
                }
            }
            state.reader_waits = true;
            state = self.shared.readable.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.reader_waits = false;
        std::mem::swap(&mut self.taken, &mut state.input);
        self.shared.open_gate(&mut state);
    }
}

impl BufRead for PipeReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.taken.len() {
            self.take();
        }
        Ok(&self.taken[self.at..])
    }

    fn consume(&mut self, n: usize) {
        self.at = self.taken.len().min(self.at + n);
    }
}

impl Read for PipeReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let n = self.fill_buf()?.read(buffer)?;
        self.consume(n);
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
            state.writers_waiting += 1;
            state = self.shared.writable.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.writers_waiting -= 1;
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
        if self.buffer.len() + n > PIECE_SMALL {
            self.buffer.reserve_exact(PIECE - self.buffer.len());
        }
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
        state.input = Vec::new();
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
        state.input.extend_from_slice(bytes);
        if state.input.len() >= INPUT_MAX && !state.gate_shut {
            state.gate_shut = true;
            self.0.gate.shut();
        }
        let reader_waits = std::mem::take(&mut state.reader_waits);
        drop(state);
        if reader_waits {
            self.0.readable.notify_one();
        }
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
                    if state.writers_waiting > 0 && state.output_len <= OUTPUT_RESUME {
                        self.0.writable.notify_all();
                    }
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
