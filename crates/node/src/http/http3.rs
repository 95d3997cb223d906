//! HTTP/3: the same requests and answers over QUIC, on the UDP port with the number of the TCP one.
//!
//! A connection's requests live in its task, so that ending the task ends them. The handshake, idle connections, heads
//! and bodies have the bounds that they have over TCP.

use std::future::poll_fn;
use std::io;
use std::net::UdpSocket;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::{Buf, Bytes};
use h3::error::Code;
use h3::server::{RequestResolver, RequestStream};
use http::header::CONTENT_LENGTH;
use http_body::Body as _;
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Endpoint, EndpointConfig, Incoming, ServerConfig, TokioRuntime, TransportConfig, VarInt};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::metrics::InFlight;
use super::request::RequestBody;
use super::server::{
    CONNECTION_WINDOW_BYTES, Caller, HEAD_BYTES_MAX, STREAM_WINDOW_BYTES, STREAMS_MAX, Shared, stopped,
};
use super::tls::Identity;
use super::{Limits, Response};

/// Streams for settings and for compressed headers: three, and some that extensions may want.
const UNI_STREAMS_MAX: u32 = 8;
/// Bytes under way to a client that has not confirmed them: a gigabit over 60 ms.
const SEND_WINDOW_BYTES: u64 = 8 << 20;
/// From so many connections on, a client shows that it is where it says before anything is kept of it.
const UNPROVEN_MAX: usize = 512;
/// A client that was told of the end takes what is under way and closes; QUIC says nothing of when it has all.
const GOODBYE: Duration = Duration::from_secs(4);
/// Handshakes that wait to be looked at, and what each may have sent meanwhile.
const INCOMING_MAX: usize = 1024;
const INCOMING_BYTES_MAX: u64 = 64 << 10;

type QuicStream = h3_quinn::BidiStream<Bytes>;
type Resolver = RequestResolver<h3_quinn::Connection, Bytes>;
type Sending = RequestStream<h3_quinn::SendStream<Bytes>, Bytes>;

/// Listens until it is closed or dropped.
pub struct QuicDoor {
    endpoint: Endpoint,
    accepting: tokio::task::JoinHandle<()>,
}

impl QuicDoor {
    /// Must be called within a tokio runtime.
    pub(super) fn open(
        socket: UdpSocket,
        identity: &Arc<Identity>,
        shared: Arc<Shared>,
        stop: watch::Receiver<bool>,
    ) -> Result<QuicDoor> {
        let config = server_config(identity, shared.limits)?;
        let endpoint = Endpoint::new(EndpointConfig::default(), Some(config), socket, Arc::new(TokioRuntime));
        let endpoint = endpoint.context("cannot use the UDP socket for HTTP/3")?;
        let accepting = tokio::spawn(accept(endpoint.clone(), shared, stop));
        Ok(QuicDoor { endpoint, accepting })
    }

    /// Lets nobody in any more.
    pub fn stop_accepting(&self) {
        self.endpoint.set_server_config(None);
    }

    pub fn close(&self) {
        self.accepting.abort();
        self.endpoint.close(VarInt::from_u32(0), b"");
    }
}

fn server_config(identity: &Arc<Identity>, limits: Limits) -> Result<ServerConfig> {
    let crypto = QuicServerConfig::try_from(identity.quic_config()?).context("no cipher for QUIC")?;
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(STREAMS_MAX.into())
        .max_concurrent_uni_streams(UNI_STREAMS_MAX.into())
        .stream_receive_window(STREAM_WINDOW_BYTES.into())
        .receive_window(CONNECTION_WINDOW_BYTES.into())
        .send_window(SEND_WINDOW_BYTES)
        .max_idle_timeout(Some(limits.idle.try_into().context("an idle connection is kept for too long")?))
        .datagram_receive_buffer_size(None);
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    config
        .transport_config(Arc::new(transport))
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size(INCOMING_BYTES_MAX)
        .incoming_buffer_size_total(INCOMING_BYTES_MAX * INCOMING_MAX as u64);
    Ok(config)
}

async fn accept(endpoint: Endpoint, shared: Arc<Shared>, stop: watch::Receiver<bool>) {
    while let Some(incoming) = endpoint.accept().await {
        if !incoming.remote_address_validated() && endpoint.open_connections() >= UNPROVEN_MAX {
            // It fails only for who has shown it already.
            let _ = incoming.retry();
            continue;
        }
        let address = incoming.remote_address();
        let stop = stop.clone();
        shared.clone().admit(address, None, true, |caller| caller.serve_quic(incoming, stop));
    }
}

impl Caller {
    /// Speaks HTTP/3 until the client goes, or until the server stops and nothing is under way.
    async fn serve_quic(self, incoming: Incoming, mut stop: watch::Receiver<bool>) {
        let address = self.client.address;
        let handshake = async { incoming.accept()?.await };
        let connection = match tokio::time::timeout(self.limits.handshake, handshake).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return tracing::debug!(%address, "a QUIC handshake failed: {error}"),
            Err(_) => return tracing::debug!(%address, "a QUIC handshake took too long"),
        };
        let mut builder = h3::server::builder();
        builder.max_field_section_size(HEAD_BYTES_MAX as u64).send_grease(false);
        let mut http = match builder.build(h3_quinn::Connection::new(connection.clone())).await {
            Ok(http) => http,
            Err(error) => return tracing::debug!(%address, "no HTTP/3 on a QUIC connection: {error}"),
        };
        let mut requests = JoinSet::new();
        // One for the whole connection: what happens on it meanwhile is no reason to begin again.
        let stands_still = self.traffic.stands_still(self.limits.piece);
        tokio::pin!(stands_still);
        // As long as the client may not have all of its last answer, that is not answered.
        let mut stopping: Option<InFlight> = None;
        loop {
            tokio::select! {
                accepted = http.accept() => match accepted {
                    Ok(Some(resolver)) => {
                        let round_trip = Some(connection.rtt());
                        drop(requests.spawn(self.clone().with_round_trip(round_trip).answer_quic(resolver)));
                    }
                    Ok(None) => break,
                    Err(error) => {
                        tracing::debug!(%address, "an HTTP/3 connection broke: {error}");
                        break;
                    }
                },
                Some(_) = requests.join_next() => {}
                () = &mut stands_still => {
                    tracing::debug!(%address, "hung up on a client that takes nothing of its answers");
                    break;
                }
                () = tokio::time::sleep(GOODBYE), if stopping.is_some() && requests.is_empty() => break,
                () = stopped(&mut stop), if stopping.is_none() => {
                    stopping = Some(self.in_flight());
                    if http.shutdown(0).await.is_err() {
                        break;
                    }
                }
            }
        }
    }

    async fn answer_quic(self, resolver: Resolver) {
        let resolved = tokio::time::timeout(self.limits.idle, resolver.resolve_request()).await;
        let Ok(Ok((request, stream))) = resolved else { return };
        let (mut sending, receiving) = stream.split();
        let (head, ()) = request.into_parts();
        let announced = head.headers.get(CONTENT_LENGTH).and_then(|len| len.to_str().ok()?.parse().ok());
        let body = QuicBody { receiving: Box::new(receiving), left: announced, ended: false };
        let body = RequestBody::over_quic(body, self.limits);
        let response = self.respond(head, body).await;
        if let Err(error) = send(&mut sending, response).await {
            tracing::debug!("an answer over HTTP/3 broke off: {error}");
            sending.stop_stream(Code::H3_INTERNAL_ERROR);
        }
    }
}

/// Sends as fast as the client takes it.
async fn send(sending: &mut Sending, response: Response) -> io::Result<()> {
    let (head, mut body) = response.into_parts();
    sending.send_response(http::Response::from_parts(head, ())).await.map_err(io::Error::other)?;
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        if let Ok(bytes) = frame?.into_data() {
            sending.send_data(bytes).await.map_err(io::Error::other)?;
        }
    }
    sending.finish().await.map_err(io::Error::other)
}

/// The body of a request. What its length was said to be is checked here: QUIC knows only its own end.
pub struct QuicBody {
    receiving: Box<RequestStream<<QuicStream as h3::quic::BidiStream<Bytes>>::RecvStream, Bytes>>,
    left: Option<u64>,
    ended: bool,
}

/// What is not read to its end is refused, without blame: RFC 9114, section 4.1.
impl Drop for QuicBody {
    fn drop(&mut self) {
        if !self.ended {
            self.receiving.stop_sending(Code::H3_NO_ERROR);
        }
    }
}

impl QuicBody {
    pub fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        let received = std::task::ready!(self.receiving.poll_recv_data(context));
        let bad = |why| Poll::Ready(Some(Err(io::Error::new(io::ErrorKind::InvalidData, why))));
        match received {
            Ok(Some(mut piece)) => {
                let piece = piece.copy_to_bytes(piece.remaining());
                match self.left.map(|left| left.checked_sub(piece.len() as u64)) {
                    Some(None) => return bad("the body is longer than was announced"),
                    Some(left) => self.left = left,
                    None => {}
                }
                Poll::Ready(Some(Ok(piece)))
            }
            Ok(None) if self.left.is_some_and(|left| left > 0) => bad("the body is shorter than was announced"),
            Ok(None) => {
                self.ended = true;
                Poll::Ready(None)
            }
            Err(error) => Poll::Ready(Some(Err(io::Error::other(error)))),
        }
    }
}
