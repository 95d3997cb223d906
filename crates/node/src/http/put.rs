//! What clients send: the files of a cache.
//!
//! A body is handed, piece by piece and no faster than it is used, to blocking code on a thread of its own
//! ([`Deposits`]). Bounds: uploads at once, silence, and a client that is so slow that it only keeps a place.

use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, StatusCode};
use shoal_wire::nix::narinfo::NARINFO_LEN_MAX;
use shoal_wire::nix::realisation::JSON_LEN_MAX;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::request::RequestBody;
use super::response::RETRY_SECONDS;
use super::turns::{Turn, Turns};
use super::{Body, Cache, Request, Response, response};
use crate::door::Grant;
use crate::session::deposit::{Deposits, Refusal};
use crate::tokens::Tokens;

/// Uploads that are taken in at once; each has a thread and a few MiB.
const UPLOADS_MAX: usize = 64;
/// Those of one token's name.
const UPLOADS_EACH_MAX: usize = 48;
/// Messages of `shoal push` that are answered at once; the longest takes 64 MiB, most take a few.
const MESSAGES_MAX: usize = 16;
/// Those of one token's name: `shoal push` sends four at a time.
const MESSAGES_EACH_MAX: usize = 12;
/// How long one more waits for its turn.
const TURN_PATIENCE: Duration = Duration::from_secs(30);
/// Pieces between the connection and who takes them in.
const PIECES_WAITING: usize = 4;
/// Of the body of a refused upload this much is still read: closing a connection on unread bytes can lose the answer.
const DRAIN_BYTES_MAX: u64 = 4 << 20;
const DRAIN_PATIENCE: Duration = Duration::from_secs(2);
/// A cache info has three lines.
const CACHE_INFO_LEN_MAX: usize = 64 << 10;
/// A listing is read and not looked at.
const LISTING_LEN_MAX: u64 = 256 << 20;

const BINARY: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// Takes uploads in.
pub struct Writer {
    deposits: Arc<Deposits>,
    tokens: Arc<Tokens>,
    turns: Turns,
    message_turns: Turns,
}

impl Writer {
    pub fn new(deposits: Arc<Deposits>, tokens: Arc<Tokens>) -> Writer {
        let turns = Turns::new(UPLOADS_MAX, UPLOADS_EACH_MAX);
        Writer { deposits, tokens, turns, message_turns: Turns::new(MESSAGES_MAX, MESSAGES_EACH_MAX) }
    }

    pub fn deposits(&self) -> &Arc<Deposits> {
        &self.deposits
    }

    /// Who sends the request; `None` without a token that is good.
    pub fn who(&self, request: &Request) -> Option<Grant> {
        self.tokens.authorize(request.header(AUTHORIZATION)?)
    }

    /// The right to send a file; `None` where too many others do.
    async fn turn(&self, grant: &Grant) -> Option<Turn> {
        self.turns.take(&grant.who, TURN_PATIENCE).await
    }

    /// The same of a message.
    pub async fn message_turn(&self, grant: &Grant) -> Option<Turn> {
        self.message_turns.take(&grant.who, TURN_PATIENCE).await
    }
}

/// What a client hears that showed no good token.
pub fn unauthorized() -> Response {
    let mut response = response::status(StatusCode::UNAUTHORIZED, "this needs a token; `shoal token create` makes one");
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"shoal\""));
    response
}

pub async fn nar(cache: Arc<Cache>, request: Request) -> Response {
    let file = request.capture.clone();
    streamed(cache, request, move |deposits, grant, body| deposits.put_nar(grant, &file, body)).await
}

pub async fn log(cache: Arc<Cache>, request: Request) -> Response {
    let drv = request.capture.clone();
    let encoding = request.header(CONTENT_ENCODING).map(str::to_owned);
    streamed(cache, request, move |deposits, grant, body| deposits.put_log(grant, &drv, encoding.as_deref(), body))
        .await
}

pub async fn listing(cache: Arc<Cache>, request: Request) -> Response {
    let hash_part = request.capture.clone();
    streamed(cache, request, move |deposits, grant, body| {
        let read = io::copy(&mut body.take(LISTING_LEN_MAX), &mut io::sink());
        read.map_err(|error| Refusal::of_io(&error))?;
        deposits.put_listing(grant, &hash_part)
    })
    .await
}

pub async fn narinfo(cache: Arc<Cache>, request: Request) -> Response {
    let hash_part = request.capture.clone();
    let encoding = request.header(CONTENT_ENCODING).map(str::to_owned);
    streamed(cache, request, move |deposits, grant, body| {
        let bad = |error: io::Error| Refusal::of_io(&error);
        let text = crate::upstream::decode::content(encoding.as_deref().unwrap_or_default(), body).map_err(bad)?;
        let mut narinfo = Vec::new();
        text.take(NARINFO_LEN_MAX as u64 + 1).read_to_end(&mut narinfo).map_err(bad)?;
        deposits.put_narinfo(grant, &hash_part, &narinfo)
    })
    .await
}

pub async fn cache_info(cache: Arc<Cache>, request: Request) -> Response {
    whole(cache, request, CACHE_INFO_LEN_MAX, |deposits, grant, text| deposits.put_cache_info(grant, &text)).await
}

pub async fn realisation(cache: Arc<Cache>, request: Request) -> Response {
    let id = request.capture.clone();
    whole(cache, request, JSON_LEN_MAX, move |deposits, grant, json| deposits.put_realisation(grant, &id, &json)).await
}

pub async fn build_trace(cache: Arc<Cache>, request: Request) -> Response {
    let Some((drv, output)) = request.capture.split_once('/').map(|(drv, output)| (drv.to_owned(), output.to_owned()))
    else {
        return response::not_found();
    };
    whole(cache, request, JSON_LEN_MAX, move |deposits, grant, json| {
        deposits.put_build_trace(grant, &drv, &output, &json)
    })
    .await
}

/// A file that waits for its narinfo, as far as HEAD is concerned.
pub fn held(cache: &Cache, request: &Request) -> Response {
    let size = cache.writer.as_ref().and_then(|writer| writer.deposits.held_file_size(&request.capture));
    match size.filter(|_| request.is_head()) {
        Some(size) => {
            let mut response = response::ok(BINARY, response::NO_STORE, Body::empty());
            response.headers_mut().insert(CONTENT_LENGTH, size.into());
            response
        }
        None => response::not_found(),
    }
}

/// Takes in a small body.
async fn whole(
    cache: Arc<Cache>,
    request: Request,
    limit: usize,
    take: impl FnOnce(&Deposits, Grant, Vec<u8>) -> Result<(), Refusal> + Send + 'static,
) -> Response {
    let Some(writer) = &cache.writer else { return response::not_found() };
    let Some(grant) = writer.who(&request) else { return refuse(request.body, unauthorized()).await };
    let body = match request.body.whole(limit).await {
        Ok(Some(body)) => body,
        Ok(None) => return response::status(StatusCode::PAYLOAD_TOO_LARGE, "413 too long"),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            return response::status(StatusCode::REQUEST_TIMEOUT, &error.to_string());
        }
        Err(error) => return response::status(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    let Some(turn) = writer.turn(&grant).await else { return busy() };
    let deposits = writer.deposits.clone();
    cache.metrics.received_bytes.fetch_add(body.len() as u64, Ordering::Relaxed);
    let done = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        take(&deposits, grant, body)
    });
    counted(&cache, answer(done.await))
}

/// Takes in a body as it streams.
async fn streamed(
    cache: Arc<Cache>,
    request: Request,
    take: impl FnOnce(&Deposits, Grant, Incoming) -> Result<(), Refusal> + Send + 'static,
) -> Response {
    let Some(writer) = &cache.writer else { return response::not_found() };
    let Some(grant) = writer.who(&request) else { return refuse(request.body, unauthorized()).await };
    let Some(turn) = writer.turn(&grant).await else { return refuse(request.body, busy()).await };
    let deposits = writer.deposits.clone();
    let (sender, receiver) = mpsc::channel(PIECES_WAITING);
    let body = Incoming { receiver, piece: Bytes::new(), ended: false };
    let done = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        take(&deposits, grant, body)
    });
    let mut from = request.body;
    pump(&mut from, sender, &cache.metrics.received_bytes).await;
    let response = counted(&cache, answer(done.await));
    if response.status().is_success() { response } else { refuse(from, response).await }
}

/// Passes the body on until it ends, breaks, or nobody wants more.
async fn pump(body: &mut RequestBody, to: mpsc::Sender<Piece>, received_bytes: &AtomicU64) {
    loop {
        let piece = match body.piece().await {
            Ok(Some(piece)) => {
                received_bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
                Piece::Bytes(piece)
            }
            Ok(None) => Piece::End,
            Err(error) => Piece::Broken(error),
        };
        let is_last = !matches!(piece, Piece::Bytes(_));
        if to.send(piece).await.is_err() || is_last {
            return;
        }
    }
}

enum Piece {
    Bytes(Bytes),
    End,
    Broken(io::Error),
}

/// A body, read by blocking code. It ends only where the client ended it: a connection that breaks is an error.
pub struct Incoming {
    receiver: mpsc::Receiver<Piece>,
    piece: Bytes,
    ended: bool,
}

impl BufRead for Incoming {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.piece.is_empty() && !self.ended {
            match self.receiver.blocking_recv() {
                Some(Piece::Bytes(piece)) => self.piece = piece,
                Some(Piece::End) => self.ended = true,
                Some(Piece::Broken(error)) => return Err(error),
                None => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the upload broke off")),
            }
        }
        Ok(&self.piece)
    }

    fn consume(&mut self, n: usize) {
        self.piece.advance(n.min(self.piece.len()));
    }
}

impl Read for Incoming {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let ready = self.fill_buf()?;
        let n = ready.len().min(out.len());
        out[..n].copy_from_slice(&ready[..n]);
        self.consume(n);
        Ok(n)
    }
}

fn counted(cache: &Cache, response: Response) -> Response {
    cache.metrics.uploaded(response.status());
    response
}

/// What became of an upload.
pub fn answer(done: Result<Result<(), Refusal>, tokio::task::JoinError>) -> Response {
    match done {
        Ok(Ok(())) => response::ok(response::TEXT, response::NO_STORE, Body::empty()),
        Ok(Err(refusal)) => {
            let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            tracing::debug!(%status, "refused an upload: {}", refusal.text);
            let mut response = response::status(status, &refusal.text);
            if status == StatusCode::SERVICE_UNAVAILABLE {
                response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static(RETRY_SECONDS));
            }
            response
        }
        Err(error) => {
            tracing::error!("an upload's thread failed: {error}");
            response::status(StatusCode::INTERNAL_SERVER_ERROR, "500 internal error")
        }
    }
}

/// What a client hears that got no turn.
pub fn busy() -> Response {
    let mut response = response::status(StatusCode::SERVICE_UNAVAILABLE, "too many uploads at once; try again later");
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static(RETRY_SECONDS));
    response
}

/// Answers once some of the body was read.
pub async fn refuse(mut body: RequestBody, response: Response) -> Response {
    let drain = async {
        let mut left = DRAIN_BYTES_MAX;
        while let Ok(Some(piece)) = body.piece().await {
            left = left.saturating_sub(piece.len() as u64);
            if left == 0 {
                break;
            }
        }
    };
    // Who is still sending after this has to read the answer from a connection that closes.
    let _ = timeout(DRAIN_PATIENCE, drain).await;
    response
}
