//! What a client asks for.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method};
use http_body::Body as _;
use hyper::body::Incoming;

use super::Limits;
use super::http3::QuicBody;

pub struct Request {
    pub method: Method,
    /// As it came: still percent-encoded, without the query.
    pub path: String,
    pub query: Option<String>,
    pub headers: HeaderMap,
    /// What stood for the `{}` of the route, percent-decoded where that gives text.
    pub capture: String,
    pub client: Client,
    pub body: RequestBody,
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub struct Client {
    pub address: SocketAddr,
    pub is_encrypted: bool,
    /// When the connection began.
    pub round_trip: Option<Duration>,
}

impl Request {
    pub fn is_head(&self) -> bool {
        self.method == Method::HEAD
    }

    /// The header's value where it is text.
    pub fn header(&self, name: HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// The body of a request, as it comes in.
pub struct RequestBody {
    source: Source,
    limits: Limits,
    /// Time spent in waiting since `recent_bytes` was 0.
    waited: Duration,
    recent_bytes: u64,
}

enum Source {
    Tcp(Incoming),
    Quic(QuicBody),
}

impl Source {
    /// The next piece, which may be empty: trailers, which nothing here uses.
    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        match self {
            Source::Quic(body) => body.poll_piece(context),
            Source::Tcp(incoming) => Pin::new(incoming).poll_frame(context).map(|frame| {
                let bytes = |frame: http_body::Frame<Bytes>| frame.into_data().unwrap_or_default();
                frame.map(|frame| frame.map(bytes).map_err(io::Error::other))
            }),
        }
    }
}

impl RequestBody {
    pub fn new(incoming: Incoming, limits: Limits) -> RequestBody {
        RequestBody::of(Source::Tcp(incoming), limits)
    }

    pub fn over_quic(body: QuicBody, limits: Limits) -> RequestBody {
        RequestBody::of(Source::Quic(body), limits)
    }

    fn of(source: Source, limits: Limits) -> RequestBody {
        RequestBody { source, limits, waited: Duration::ZERO, recent_bytes: 0 }
    }

    /// The next piece; `None` at the end. Fewer bytes than announced, silence, or next to it, are errors.
    pub async fn piece(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            let since = Instant::now();
            let piece = std::future::poll_fn(|context| self.source.poll_piece(context));
            let piece = tokio::time::timeout(self.limits.silence, piece).await;
            let piece = piece.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the client sends nothing"))?;
            match piece.transpose()? {
                None => return Ok(None),
                Some(bytes) if bytes.is_empty() => continue,
                Some(bytes) => {
                    self.check_rate(since.elapsed(), bytes.len())?;
                    return Ok(Some(bytes));
                }
            }
        }
    }

    fn check_rate(&mut self, waited: Duration, bytes: usize) -> io::Result<()> {
        self.waited += waited;
        self.recent_bytes += bytes as u64;
        if self.waited <= self.limits.silence {
            return Ok(());
        }
        let is_slow = self.recent_bytes < Limits::BODY_BYTES_MIN;
        (self.waited, self.recent_bytes) = (Duration::ZERO, 0);
        match is_slow {
            true => Err(io::Error::new(io::ErrorKind::TimedOut, "the client sends too slowly")),
            false => Ok(()),
        }
    }

    /// All of it; `None` where that is more than `limit` bytes.
    pub async fn whole(mut self, limit: usize) -> io::Result<Option<Vec<u8>>> {
        let mut all = Vec::new();
        while let Some(piece) = self.piece().await? {
            if all.len() + piece.len() > limit {
                return Ok(None);
            }
            all.extend_from_slice(&piece);
        }
        Ok(Some(all))
    }
}
