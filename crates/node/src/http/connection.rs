//! A client's connection, hung up on when it stalls.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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

/// What is under way on one connection.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Requests that are not answered to their end.
    unanswered: AtomicU64,
    /// Answers of which the next piece is made only when the client has room for it.
    offered: AtomicU64,
    /// Grows whenever a client had room for a piece.
    taken: AtomicU64,
}

impl Traffic {
    pub fn unanswered(&self) -> u64 {
        self.unanswered.load(Ordering::Relaxed)
    }

    pub fn began(&self) {
        self.unanswered.fetch_add(1, Ordering::Relaxed);
    }

    pub fn ended(&self) {
        self.unanswered.fetch_sub(1, Ordering::Relaxed);
    }

    pub fn offers(&self) {
        self.offered.fetch_add(1, Ordering::Relaxed);
    }

    /// An answer that was offered is asked for more, or is gone.
    pub fn takes(&self) {
        self.offered.fetch_sub(1, Ordering::Relaxed);
        self.taken.fetch_add(1, Ordering::Relaxed);
    }

    /// Ends when answers waited for the client, and for nothing else, for `limit`. On a connection with several this
    /// is no wait for a socket: flow control may hold back each of them.
    pub async fn stands_still(&self, limit: Duration) {
        loop {
            let before = self.taken.load(Ordering::Relaxed);
            tokio::time::sleep(limit).await;
            if self.offered.load(Ordering::Relaxed) > 0 && self.taken.load(Ordering::Relaxed) == before {
                return;
            }
        }
    }
}

/// Passes bytes through and fails when the other end does nothing for too long.
pub struct Guarded<S> {
    stream: S,
    limits: Limits,
    traffic: Arc<Traffic>,
    idle: Option<Pin<Box<Sleep>>>,
    is_reading: bool,
    stall: Option<Pin<Box<Sleep>>>,
    is_writing: bool,
}

impl<S> Guarded<S> {
    /// `traffic`: of the requests that come in on this connection.
    pub fn new(stream: S, limits: Limits, traffic: Arc<Traffic>) -> Guarded<S> {
        Guarded { stream, limits, traffic, idle: None, is_reading: false, stall: None, is_writing: false }
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
        let mut begins = !std::mem::replace(&mut this.is_reading, true);
        while poll_limit(&mut this.idle, begins, this.limits.idle, context) {
            if this.traffic.unanswered() == 0 {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client asks nothing")));
            }
            begins = true;
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
        traffic.began();
        let mut byte = [0];
        let read = tokio::time::timeout(5 * SHORT, connection.read(&mut byte)).await;
        assert!(read.is_err(), "hung up on while an answer was due");
        traffic.ended();
        let error = connection.read(&mut byte).await.unwrap_err();
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
