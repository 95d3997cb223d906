//! A client's connection, hung up on when it stalls.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// How long a client may do nothing.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the first byte to the end of a TLS handshake.
    pub handshake: Duration,
    /// A connection without a request is kept this long; a head that comes in takes no longer either.
    pub idle: Duration,
    /// A client takes some bytes of its answer within this time.
    pub stall: Duration,
    /// A client takes a whole piece of one of its answers within this time, however many bytes of what it is sent.
    pub piece: Duration,
    /// A client that sends a body sends something within this time, and [`Limits::BODY_BYTES_MIN`] in each such time
    /// that is spent waiting for it.
    pub silence: Duration,
}

impl Limits {
    /// A handshake takes a few round trips. A client builds between two downloads, and comes back. Who takes nothing
    /// for a minute takes nothing more. Nix itself gives up on a download that stands still for five.
    pub const USUAL: Limits = Limits {
        handshake: Duration::from_secs(10),
        idle: Duration::from_secs(120),
        stall: Duration::from_secs(60),
        piece: Duration::from_secs(300),
        silence: Duration::from_secs(60),
    };
    /// Who sends less only keeps others from their turn.
    pub const BODY_BYTES_MIN: u64 = 64 << 10;
}

/// Bytes of small answers that count as a piece of a large one: a usual chunk.
const SMALL_ANSWERS_BYTES_MIN: u64 = 64 << 10;

/// What is under way on one connection.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Requests that are not answered to their end.
    unanswered: AtomicU64,
    /// Requests that were.
    answered: AtomicU64,
    /// Grows whenever a client took a piece of an answer and has room for more of it.
    taken: AtomicU64,
    /// Bytes of the last pieces of answers that are over.
    last_bytes: AtomicU64,
    offers: Mutex<Offers>,
}

#[derive(Debug, Default)]
struct Offers {
    next: u64,
    /// By number, and so by age: since when an answer waits for its client.
    since: BTreeMap<u64, Instant>,
}

/// A request that is not answered to its end, until dropped.
pub struct Unanswered(Arc<Traffic>);

/// An answer of which the next piece, or the end, waits for the client, until dropped.
pub struct Offered {
    traffic: Arc<Traffic>,
    number: u64,
}

impl Traffic {
    pub fn unanswered(&self) -> u64 {
        self.unanswered.load(Ordering::Relaxed)
    }

    /// Answers that wait for the client.
    pub fn offered(&self) -> usize {
        self.offers().since.len()
    }

    fn offers(&self) -> MutexGuard<'_, Offers> {
        self.offers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn begin(self: &Arc<Self>) -> Unanswered {
        self.unanswered.fetch_add(1, Ordering::Relaxed);
        Unanswered(self.clone())
    }

    /// Ends when an answer waited for the client for `limit` and the client took no piece of any other, nor as much of
    /// small ones. On a connection with several this is no wait for a socket: flow control may hold back each of them.
    pub async fn stands_still(&self, limit: Duration) {
        let taken = || (self.taken.load(Ordering::Relaxed), self.last_bytes.load(Ordering::Relaxed));
        loop {
            let ((pieces, bytes), began) = (taken(), Instant::now());
            tokio::time::sleep(limit).await;
            let waited = self.offers().since.first_key_value().is_some_and(|(_, since)| *since <= began);
            let (pieces_now, bytes_now) = taken();
            if waited && pieces_now == pieces && bytes_now.saturating_sub(bytes) < SMALL_ANSWERS_BYTES_MIN {
                return;
            }
        }
    }
}

impl Unanswered {
    pub fn offer(&self) -> Offered {
        let mut offers = self.0.offers();
        let number = offers.next;
        offers.next += 1;
        offers.since.insert(number, Instant::now());
        Offered { traffic: self.0.clone(), number }
    }

    /// The client has room for more of an answer of which it has a piece.
    pub fn took(&self) {
        self.0.taken.fetch_add(1, Ordering::Relaxed);
    }

    /// The last piece of an answer, of so many bytes, is gone.
    pub fn took_last(&self, bytes: u64) {
        self.0.last_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        self.0.answered.fetch_add(1, Ordering::Relaxed);
        self.0.unanswered.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Offered {
    fn drop(&mut self) {
        self.traffic.offers().since.remove(&self.number);
    }
}

/// Passes bytes through and fails when the other end does nothing for too long.
pub struct Guarded<S> {
    stream: S,
    limits: Limits,
    traffic: Arc<Traffic>,
    idle: Option<Pin<Box<Sleep>>>,
    is_reading: bool,
    /// Of the traffic, when the idle time began.
    answered: u64,
    stall: Option<Pin<Box<Sleep>>>,
    is_writing: bool,
}

impl<S> Guarded<S> {
    /// `traffic`: of the requests that come in on this connection.
    pub fn new(stream: S, limits: Limits, traffic: Arc<Traffic>) -> Guarded<S> {
        Guarded { stream, limits, traffic, idle: None, is_reading: false, answered: 0, stall: None, is_writing: false }
    }

    fn wrote<T>(&mut self, context: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.is_writing = false;
            return outcome;
        }
        let begins = !std::mem::replace(&mut self.is_writing, true);
        match poll_limit(&mut self.stall, begins, self.limits.stall, context) {
            true => Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing"))),
            false => Poll::Pending,
        }
    }
}

/// Whether a wait is over its limit. The timer is made once and set again for each wait.
fn poll_limit(timer: &mut Option<Pin<Box<Sleep>>>, begins: bool, limit: Duration, context: &mut Context<'_>) -> bool {
    let sleep = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
    if begins {
        sleep.as_mut().reset(Instant::now() + limit);
    }
    sleep.as_mut().poll(context).is_ready()
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let outcome = Pin::new(&mut this.stream).poll_read(context, buffer);
        if outcome.is_ready() {
            this.is_reading = false;
            return outcome;
        }
        let begins = !std::mem::replace(&mut this.is_reading, true);
        let mut is_over = poll_limit(&mut this.idle, begins, this.limits.idle, context);
        if begins {
            this.answered = this.traffic.answered.load(Ordering::Relaxed);
        }
        while is_over {
            // Who took an answer meanwhile was not idle, nor is who does not have all of what is being written.
            let answered = this.traffic.answered.load(Ordering::Relaxed);
            let was_answered = std::mem::replace(&mut this.answered, answered) != answered;
            if this.traffic.unanswered() == 0 && !was_answered && !this.is_writing {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client asks nothing")));
            }
            is_over = poll_limit(&mut this.idle, true, this.limits.idle, context);
        }
        Poll::Pending
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.wrote(context, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.wrote(context, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_flush(context);
        self.wrote(context, outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_shutdown(context);
        self.wrote(context, outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const SHORT: Duration = Duration::from_millis(20);

    fn guarded(limits: Limits) -> (Guarded<tokio::io::DuplexStream>, tokio::io::DuplexStream, Arc<Traffic>) {
        let (here, there) = tokio::io::duplex(16);
        let traffic = Arc::<Traffic>::default();
        (Guarded::new(here, limits, traffic.clone()), there, traffic)
    }

    #[tokio::test]
    async fn who_asks_nothing_is_hung_up_on_unless_an_answer_is_due() {
        let (mut connection, _there, traffic) = guarded(Limits { idle: SHORT, ..Limits::USUAL });
        let unanswered = traffic.begin();
        let mut byte = [0];
        let read = tokio::time::timeout(5 * SHORT, connection.read(&mut byte)).await;
        assert!(read.is_err(), "hung up on while an answer was due");
        drop(unanswered);
        let error = connection.read(&mut byte).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    /// The last bytes of an answer may be all that is under way.
    #[tokio::test]
    async fn who_does_not_have_all_that_is_being_written_is_not_idle() {
        let (mut connection, mut there, _) = guarded(Limits { idle: SHORT, ..Limits::USUAL });
        let read_or_write = std::future::poll_fn(|context| {
            let mut byte = [0];
            let read = Pin::new(&mut connection).poll_read(context, &mut ReadBuf::new(&mut byte));
            assert!(!matches!(read, Poll::Ready(Ok(()))));
            // The first 16 bytes are taken by what lies between, the others by nobody.
            while Pin::new(&mut connection).poll_write(context, &[1; 16]).is_ready() {}
            read.map(|_| ())
        });
        assert!(tokio::time::timeout(5 * SHORT, read_or_write).await.is_err(), "hung up on");
        there.read_exact(&mut [0; 16]).await.unwrap();
        connection.write_all(&[1; 16]).await.unwrap();
        let error = connection.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn who_takes_nothing_is_hung_up_on_and_who_takes_a_little_is_not() {
        let (mut connection, mut there, _) = guarded(Limits { stall: SHORT, ..Limits::USUAL });
        let takes = async {
            for _ in 0..8 {
                tokio::time::sleep(SHORT / 4).await;
                there.read_exact(&mut [0; 16]).await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(connection.write_all(&[1; 16 * 9]), takes);
        written.unwrap();
        let error = connection.write_all(&[1; 16]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
