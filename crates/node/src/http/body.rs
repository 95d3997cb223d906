//! What a response carries.

use std::io::{self, Read};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::sync::Semaphore;

use super::budget::Room;
use super::cache::{Arriving, Later};
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
struct Calls<M> {
    turns: Option<Arc<Semaphore>>,
    state: State<M>,
}

/// That code.
trait Make: Send + 'static {
    /// Ends when a piece can be made without waiting for others.
    fn ready(&self) -> Option<Later<'static, ()>>;

    fn piece(&mut self) -> io::Result<Option<Bytes>>;
}

enum State<M> {
    Idle(M),
    Called(Call<M>),
    Ended,
}

/// The code comes back with its piece.
type Call<M> = Pin<Box<dyn Future<Output = io::Result<(M, Option<Bytes>)>> + Send>>;

impl<M: Make> Calls<M> {
    fn call(&self, mut make: M) -> Call<M> {
        let turns = self.turns.clone();
        // Who waits for others has no turn: it may be long, and somebody else could go on.
        let ready = make.ready();
        Box::pin(async move {
            if let Some(ready) = ready {
                ready.await;
            }
            let turn = match turns {
                Some(turns) => Some(turns.acquire_owned().await.map_err(io::Error::other)?),
                None => None,
            };
            let called = tokio::task::spawn_blocking(move || {
                let _turn = turn;
                let piece = make.piece()?;
                Ok((make, piece))
            });
            called.await.unwrap_or_else(|panicked| Err(io::Error::other(panicked)))
        })
    }
}

impl<M: Make> Pieces for Calls<M> {
    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        loop {
            match std::mem::replace(&mut self.state, State::Ended) {
                State::Idle(make) => self.state = State::Called(self.call(make)),
                State::Called(mut call) => match call.as_mut().poll(context) {
                    Poll::Pending => {
                        self.state = State::Called(call);
                        return Poll::Pending;
                    }
                    Poll::Ready(Ok((make, Some(piece)))) => {
                        self.state = State::Idle(make);
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

/// What a reader gives that waits for nobody.
struct Reading<R> {
    reader: R,
    /// The longest piece.
    len_max: u64,
}

impl<R: Read + Send + 'static> Make for Reading<R> {
    fn ready(&self) -> Option<Later<'static, ()>> {
        None
    }

    fn piece(&mut self) -> io::Result<Option<Bytes>> {
        let mut piece = Vec::with_capacity(self.len_max as usize);
        self.reader.by_ref().take(self.len_max).read_to_end(&mut piece)?;
        Ok((!piece.is_empty()).then(|| Bytes::from(piece)))
    }
}

/// What one gives that waits for others. A piece has what there is.
struct Coming {
    nar: Box<dyn Arriving>,
    buffer: Vec<u8>,
}

impl Make for Coming {
    fn ready(&self) -> Option<Later<'static, ()>> {
        Some(self.nar.ready())
    }

    fn piece(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            match self.nar.read(&mut self.buffer) {
                Ok(n) => return Ok((n > 0).then(|| Bytes::copy_from_slice(&self.buffer[..n]))),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
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
    pub fn reading(len: u64, reader: impl Read + Send + 'static) -> Body {
        let make = Reading { reader, len_max: len.min(PIECE_BYTES) };
        Body::pieces(len, Calls { turns: None, state: State::Idle(make) })
    }

    /// The same of a NAR that is on its way here: it needs a turn for each piece, once there is one.
    pub fn arriving(len: u64, nar: Box<dyn Arriving>, turns: Arc<Semaphore>) -> Body {
        let make = Coming { nar, buffer: vec![0; PIECE_BYTES as usize] };
        Body::pieces(len, Calls { turns: Some(turns), state: State::Idle(make) })
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

    /// A NAR of which nothing comes before somebody says so.
    struct Held(tokio::sync::watch::Receiver<bool>, &'static [u8]);

    impl Read for Held {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            assert!(*self.0.borrow(), "read before there is something");
            self.1.read(out)
        }
    }

    impl Arriving for Held {
        fn ready(&self) -> Later<'static, ()> {
            let mut may_go = self.0.clone();
            Box::pin(async move { drop(may_go.wait_for(|may_go| *may_go).await) })
        }
    }

    /// However many wait for NARs that do not come, one that does is passed on.
    #[tokio::test]
    async fn who_waits_for_others_has_no_turn() {
        let turns = Arc::new(Semaphore::new(1));
        let (lets_go, may_go) = tokio::sync::watch::channel(false);
        let (_never, never_goes) = tokio::sync::watch::channel(false);
        let body = |may_go| Body::arriving(4, Box::new(Held(may_go, b"late")), turns.clone());
        let frame = async |body: &mut Body| {
            let frame = std::future::poll_fn(|context| http_body::Body::poll_frame(Pin::new(body), context)).await;
            frame.unwrap().unwrap().into_data().unwrap()
        };
        let (mut waits, mut other) = (body(never_goes), body(may_go));
        let poll = |body: &mut Body| {
            let mut context = Context::from_waker(std::task::Waker::noop());
            http_body::Body::poll_frame(Pin::new(body), &mut context).is_pending()
        };
        assert!(poll(&mut waits) && poll(&mut other));
        tokio::task::yield_now().await;
        assert!(poll(&mut waits) && poll(&mut other));
        assert_eq!(turns.available_permits(), 1);
        lets_go.send_replace(true);
        assert_eq!(&frame(&mut other).await[..], b"late");
    }
}
