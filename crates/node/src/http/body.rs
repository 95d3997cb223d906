//! What a response carries.

use std::io::{self, Read};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::sync::mpsc;

use super::metrics::InFlight;

/// Pieces that wait between who makes a body and the connection that sends it.
const PIECES_WAITING: usize = 2;
/// Bytes that are read of a reader at a time.
const PIECE_BYTES: u64 = 256 << 10;

/// A body of known length, made as fast as the client takes it.
pub struct Body {
    kind: Kind,
    left: u64,
    in_flight: Option<InFlight>,
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

/// Where a body that is made elsewhere is put; waits while the client takes nothing.
pub type Sender = mpsc::Sender<io::Result<Bytes>>;

struct Channel(mpsc::Receiver<io::Result<Bytes>>);

impl Pieces for Channel {
    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        self.0.poll_recv(context)
    }
}

impl Body {
    pub fn empty() -> Body {
        Body::whole(Bytes::new())
    }

    pub fn whole(bytes: impl Into<Bytes>) -> Body {
        let bytes = bytes.into();
        Body { left: bytes.len() as u64, kind: Kind::Whole(bytes), in_flight: None }
    }

    /// `len`: bytes of all pieces together.
    pub fn pieces(len: u64, pieces: impl Pieces) -> Body {
        Body { kind: Kind::Pieces(Box::new(pieces)), left: len, in_flight: None }
    }

    /// A body that another task or thread makes. One whose sender goes away early is cut off.
    pub fn channel(len: u64) -> (Sender, Body) {
        let (sender, receiver) = mpsc::channel(PIECES_WAITING);
        (sender, Body::pieces(len, Channel(receiver)))
    }

    /// A body that blocking code makes on a thread of its own: `next` gives piece after piece.
    pub fn blocking(len: u64, mut next: impl FnMut() -> io::Result<Option<Bytes>> + Send + 'static) -> Body {
        let (sender, body) = Body::channel(len);
        tokio::task::spawn_blocking(move || {
            while let Some(piece) = next().transpose() {
                let failed = piece.is_err();
                // The client may have gone.
                if sender.blocking_send(piece).is_err() || failed {
                    return;
                }
            }
        });
        body
    }

    /// What a reader that may block gives, to its end.
    pub fn reading(len: u64, mut reader: impl Read + Send + 'static) -> Body {
        Body::blocking(len, move || {
            let mut piece = Vec::with_capacity(len.min(PIECE_BYTES) as usize);
            reader.by_ref().take(PIECE_BYTES).read_to_end(&mut piece)?;
            Ok((!piece.is_empty()).then(|| Bytes::from(piece)))
        })
    }

    /// The answer to HEAD where that to GET has `len` bytes.
    pub fn untold(len: u64) -> Body {
        Body { kind: Kind::Untold, left: len, in_flight: None }
    }

    /// The body with its first piece made, or why it can't be.
    pub async fn begun(self) -> io::Result<Body> {
        let Body { kind: Kind::Pieces(mut pieces), left, in_flight } = self else { return Ok(self) };
        if left == 0 {
            return Ok(Body::empty());
        }
        match std::future::poll_fn(|context| pieces.poll_piece(context)).await {
            Some(piece) => Ok(Body { kind: Kind::Begun(piece?, pieces), left, in_flight }),
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

    /// Counts the request as unanswered until the body is gone.
    pub fn counted(mut self, in_flight: InFlight) -> Body {
        self.in_flight = Some(in_flight);
        self
    }

    fn sent(&mut self, piece: Bytes) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let Some(left) = self.left.checked_sub(piece.len() as u64) else {
            return Poll::Ready(Some(Err(io::Error::other("a body is longer than was announced"))));
        };
        self.left = left;
        if let Some(in_flight) = &mut self.in_flight {
            in_flight.sent(piece.len() as u64, left > 0);
        }
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
        if self.is_end_stream() {
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
            Kind::Whole(bytes) => Some(Ok(std::mem::take(bytes))),
            Kind::Pieces(pieces) => std::task::ready!(pieces.poll_piece(context)),
        };
        match piece {
            Some(Ok(piece)) => self.sent(piece),
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            None => Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into()))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0 || matches!(self.kind, Kind::Untold)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
