//! What a response carries.

use std::io::{self, Read};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::sync::Semaphore;

use super::budget::Room;
use super::metrics::InFlight;

/// Bytes that are read of a reader, or given of what is whole in memory, at a time.
const PIECE_BYTES: u64 = 256 << 10;

/// A body of known length, made as fast as the client takes it.
pub struct Body {
    kind: Kind,
    left: u64,
    in_flight: Option<InFlight>,
    room: Option<Room>,
}

/// The last piece of a body. What hyper or QUIC holds of it is not sent: until it is, neither is the request answered
/// nor its room free.
struct Last {
    piece: Bytes,
    _in_flight: Option<InFlight>,
    _room: Option<Room>,
}

impl AsRef<[u8]> for Last {
    fn as_ref(&self) -> &[u8] {
        &self.piece
    }
}

enum Kind {
    Whole(Bytes),
    Pieces(Box<dyn Pieces>),
    /// One piece is made already.
    Begun(Bytes, Box<dyn Pieces>),
    /// Only its length is told: HEAD.
    Untold,
}

/// Makes a body piece by piece. It is asked for the next one when the connection can take it.
pub trait Pieces: Send + 'static {
    /// The next piece, never an empty one. `None` only after as many bytes as were announced; an error cuts the
    /// connection.
    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>>;
}

/// Pieces that blocking code makes. It has a thread only while it makes one, so that a client that takes nothing holds
/// none.
struct Calls<F> {
    turns: Option<Arc<Semaphore>>,
    state: State<F>,
}

enum State<F> {
    Idle(F),
    Called(Call<F>),
    Ended,
}

/// The code comes back with its piece.
type Call<F> = Pin<Box<dyn Future<Output = io::Result<(F, Option<Bytes>)>> + Send>>;

impl<F: FnMut() -> io::Result<Option<Bytes>> + Send + 'static> Calls<F> {
    fn call(&self, mut next: F) -> Call<F> {
        let turns = self.turns.clone();
        Box::pin(async move {
            let turn = match turns {
                Some(turns) => Some(turns.acquire_owned().await.map_err(io::Error::other)?),
                None => None,
            };
            let called = tokio::task::spawn_blocking(move || {
                let _turn = turn;
                let piece = next()?;
                Ok((next, piece))
            });
            called.await.unwrap_or_else(|panicked| Err(io::Error::other(panicked)))
        })
    }
}

impl<F: FnMut() -> io::Result<Option<Bytes>> + Send + 'static> Pieces for Calls<F> {
    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        loop {
            match std::mem::replace(&mut self.state, State::Ended) {
                State::Idle(next) => self.state = State::Called(self.call(next)),
                State::Called(mut call) => match call.as_mut().poll(context) {
                    Poll::Pending => {
                        self.state = State::Called(call);
                        return Poll::Pending;
                    }
                    Poll::Ready(Ok((next, Some(piece)))) => {
                        self.state = State::Idle(next);
                        return Poll::Ready(Some(Ok(piece)));
                    }
                    Poll::Ready(Ok((_, None))) => return Poll::Ready(None),
                    Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(error))),
                },
                State::Ended => return Poll::Ready(None),
            }
        }
    }
}

impl Body {
    fn of(kind: Kind, left: u64) -> Body {
        Body { kind, left, in_flight: None, room: None }
    }

    pub fn empty() -> Body {
        Body::whole(Bytes::new())
    }

    pub fn whole(bytes: impl Into<Bytes>) -> Body {
        let bytes = bytes.into();
        let len = bytes.len() as u64;
        Body::of(Kind::Whole(bytes), len)
    }

    /// `len`: bytes of all pieces together.
    pub fn pieces(len: u64, pieces: impl Pieces) -> Body {
        Body::of(Kind::Pieces(Box::new(pieces)), len)
    }

    /// What a reader that may block, but never for long, gives to its end.
    pub fn reading(len: u64, mut reader: impl Read + Send + 'static) -> Body {
        Body::calls(len, None, move || {
            let mut piece = Vec::with_capacity(len.min(PIECE_BYTES) as usize);
            reader.by_ref().take(PIECE_BYTES).read_to_end(&mut piece)?;
            Ok((!piece.is_empty()).then(|| Bytes::from(piece)))
        })
    }

    /// The same of a reader that waits for others: it needs a turn for each piece, which has what there is.
    pub fn arriving(len: u64, mut reader: impl Read + Send + 'static, turns: Arc<Semaphore>) -> Body {
        let mut buffer = vec![0; PIECE_BYTES as usize];
        Body::calls(len, Some(turns), move || {
            loop {
                match reader.read(&mut buffer) {
                    Ok(n) => return Ok((n > 0).then(|| Bytes::copy_from_slice(&buffer[..n]))),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        })
    }

    fn calls(
        len: u64,
        turns: Option<Arc<Semaphore>>,
        next: impl FnMut() -> io::Result<Option<Bytes>> + Send + 'static,
    ) -> Body {
        Body::pieces(len, Calls { turns, state: State::Idle(next) })
    }

    /// The answer to HEAD where that to GET has `len` bytes.
    pub fn untold(len: u64) -> Body {
        Body::of(Kind::Untold, len)
    }

    /// Whether nothing of it is made yet.
    pub fn is_to_begin(&self) -> bool {
        self.left > 0 && matches!(self.kind, Kind::Pieces(_))
    }

    /// The body with its first piece made, or why it can't be. `room`: for what it holds while it is sent.
    pub async fn begun(self, room: Room) -> io::Result<Body> {
        let Body { kind: Kind::Pieces(mut pieces), left, in_flight, .. } = self else { return Ok(self) };
        if left == 0 {
            return Ok(Body::empty());
        }
        match std::future::poll_fn(|context| pieces.poll_piece(context)).await {
            Some(piece) => Ok(Body { kind: Kind::Begun(piece?, pieces), left, in_flight, room: Some(room) }),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Bytes still to be sent.
    pub fn len(&self) -> u64 {
        self.left
    }

    pub fn is_empty(&self) -> bool {
        self.left == 0
    }

    /// Counts the request as unanswered until the last byte is gone.
    pub fn counted(mut self, mut in_flight: InFlight) -> Body {
        if !self.is_over() {
            // Flow control may keep even the first piece from being asked for.
            in_flight.offer();
        }
        self.in_flight = Some(in_flight);
        self
    }

    fn is_over(&self) -> bool {
        self.left == 0 || matches!(self.kind, Kind::Untold)
    }

    fn sent(&mut self, piece: Bytes) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let Some(left) = self.left.checked_sub(piece.len() as u64) else {
            return Poll::Ready(Some(Err(io::Error::other("a body is longer than was announced"))));
        };
        self.left = left;
        if let Some(in_flight) = &mut self.in_flight {
            in_flight.sent(piece.len() as u64);
        }
        let piece = match left {
            0 => Bytes::from_owner(Last { piece, _in_flight: self.in_flight.take(), _room: self.room.take() }),
            _ => piece,
        };
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.in_flight.iter_mut().for_each(InFlight::asked);
        if self.is_over() {
            return Poll::Ready(None);
        }
        if let Kind::Begun(..) = self.kind
            && let Kind::Begun(first, rest) = std::mem::replace(&mut self.kind, Kind::Untold)
        {
            self.kind = Kind::Pieces(rest);
            return self.sent(first);
        }
        let piece = match &mut self.kind {
            Kind::Untold | Kind::Begun(..) => return Poll::Ready(None),
            Kind::Whole(bytes) => Some(Ok(bytes.split_to(bytes.len().min(PIECE_BYTES as usize)))),
            Kind::Pieces(pieces) => std::task::ready!(pieces.poll_piece(context)),
        };
        match piece {
            Some(Ok(piece)) => self.sent(piece),
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            None => Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into()))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.is_over()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::connection::Traffic;
    use super::super::metrics::Metrics;
    use super::*;

    fn next(body: &mut Body) -> Option<Bytes> {
        let mut context = Context::from_waker(std::task::Waker::noop());
        match http_body::Body::poll_frame(Pin::new(body), &mut context) {
            Poll::Ready(frame) => frame.map(|frame| frame.unwrap().into_data().unwrap()),
            Poll::Pending => panic!("it is whole in memory"),
        }
    }

    /// What a protocol holds of an answer and cannot send is not answered: its client is waited for.
    #[tokio::test]
    async fn an_answer_in_memory_goes_piece_by_piece_and_ends_with_its_last_byte() {
        let (metrics, traffic) = (Arc::<Metrics>::default(), Arc::<Traffic>::default());
        let contents: Vec<u8> = (0..2 * PIECE_BYTES + 10).map(|n| n as u8).collect();
        let mut body = Body::whole(contents.clone()).counted(InFlight::new(&metrics, &traffic));
        assert_eq!(traffic.offered(), 1, "nothing was asked for yet");
        let pieces: Vec<Bytes> = std::iter::from_fn(|| next(&mut body)).collect();
        let lens: Vec<u64> = pieces.iter().map(|piece| piece.len() as u64).collect();
        assert_eq!(lens, [PIECE_BYTES, PIECE_BYTES, 10]);
        assert!(pieces.concat() == contents);
        drop(body);
        assert_eq!((traffic.offered(), traffic.unanswered(), metrics.in_flight()), (1, 1, 1));
        drop(pieces);
        assert_eq!((traffic.offered(), traffic.unanswered(), metrics.in_flight()), (0, 0, 0));
        let head = Body::untold(10).counted(InFlight::new(&metrics, &traffic));
        assert_eq!((head.len(), traffic.offered(), traffic.unanswered()), (10, 0, 1));
    }
}
