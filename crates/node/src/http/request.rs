//! What a client asks for.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method};
use http_body::Body as _;
use hyper::body::Incoming;

/// A client that sends a body sends something within this time, or is hung up on.
const BODY_PATIENCE: Duration = Duration::from_secs(60);

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
pub struct RequestBody(Incoming);

impl RequestBody {
    pub fn new(incoming: Incoming) -> RequestBody {
        RequestBody(incoming)
    }

    /// What the client says it will send.
    pub fn announced_len(&self) -> Option<u64> {
        self.0.size_hint().exact()
    }

    /// The next piece; `None` at the end. Fewer bytes than announced, or silence, are errors.
    pub async fn piece(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            let frame = std::future::poll_fn(|context| std::pin::Pin::new(&mut self.0).poll_frame(context));
            let frame = tokio::time::timeout(BODY_PATIENCE, frame).await;
            let frame = frame.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the client sends nothing"))?;
            match frame.transpose().map_err(io::Error::other)? {
                None => return Ok(None),
                Some(frame) => match frame.into_data() {
                    Ok(bytes) if !bytes.is_empty() => return Ok(Some(bytes)),
                    // Trailers, which nothing here uses.
                    _ => continue,
                },
            }
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
