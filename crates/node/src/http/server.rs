//! Accepts connections, bounds them, and stops them.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use http::HeaderValue;
use http::header::ALT_SVC;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::connection::{Guarded, Limits, Traffic};
use super::http3::QuicDoor;
use super::metrics::{InFlight, Metrics};
use super::request::{Client, RequestBody};
use super::tls::Identity;
use super::{Cache, Request, Response, link, router};

/// Connections at once; beyond it the one that has asked nothing for longest makes room.
pub const CONNECTIONS_MAX: usize = 4096;
/// Head of a request: a client sends some hundred bytes, one behind proxies some thousand.
pub const HEAD_BYTES_MAX: usize = 32 << 10;
/// What is read of an upload, or gathered of an answer, before it is handed on: each hand-over of an upload wakes a
/// thread. HTTP/1.1 has one bound for this and for heads.
const IO_BYTES: usize = 128 << 10;
const HEADERS_MAX: usize = 100;
/// A client has 25 requests under way at most, unless it was told otherwise; RFC 9113 advises 100 or more.
pub const STREAMS_MAX: u32 = 128;
/// What one HTTP/2 stream may have sent and nobody read: a gigabit over 4 ms. Uploads are read as they come.
pub const STREAM_WINDOW_BYTES: u32 = 512 << 10;
/// The same for all streams of a connection: 25 uploads that wait for their turn hold up no other request.
pub const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// What HTTP/2 holds of a response that the client does not take.
const SEND_BUFFER_BYTES: usize = 512 << 10;
/// Streams that a client opened and gave up before anybody looked at them; one more ends the connection
/// (CVE-2023-44487). A client that is stopped gives up no more than it has under way.
const RESETS_MAX: usize = STREAMS_MAX as usize;
/// Streams that were reset for an error of the client's; one more ends the connection. Real clients make none.
const FAULTY_STREAMS_MAX: usize = 64;
/// Pause after `accept` failed for want of descriptors or memory.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// Free ports that are asked for until one is free for UDP too; most are.
const PORT_TRIES_MAX: u32 = 16;
/// The kernel's queue of connections that were not accepted yet.
const BACKLOG: u32 = 1024;

#[derive(Clone, Debug)]
pub struct HttpOptions {
    pub listen: SocketAddr,
    /// TLS with this certificate, or plain HTTP.
    pub identity: Option<Arc<Identity>>,
    /// Also HTTP/3, with the certificate.
    pub http3: bool,
    pub limits: Limits,
}

/// Serves a cache until it is closed or dropped.
pub struct HttpServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: tokio::task::JoinHandle<()>,
    quic: Option<QuicDoor>,
    stopping: watch::Sender<bool>,
}

pub(super) struct Shared {
    cache: Arc<Cache>,
    tls: Option<TlsAcceptor>,
    pub(super) limits: Limits,
    /// Tells clients on TCP of HTTP/3, where there is that.
    alternative: Option<HeaderValue>,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    next_id: u64,
    connections: BTreeMap<u64, Connection>,
}

struct Connection {
    task: tokio::task::AbortHandle,
    traffic: Arc<Traffic>,
    /// A number that grows with every request of any connection: who has the smallest was silent for longest.
    last_request: Arc<AtomicU64>,
}

impl HttpServer {
    /// Must be called within a tokio runtime.
    pub fn open(options: &HttpOptions, cache: Arc<Cache>) -> Result<HttpServer> {
        let with_udp = options.http3 && options.identity.is_some();
        let (listener, socket) = listen(options.listen, with_udp)?;
        Self::on(listener, socket, options, cache)
    }

    /// As `open`, at sockets that exist already; of UDP for HTTP/3, which is made where it is wanted and missing.
    pub fn on(
        listener: TcpListener,
        socket: Option<UdpSocket>,
        options: &HttpOptions,
        cache: Arc<Cache>,
    ) -> Result<HttpServer> {
        crate::door::raise_descriptor_limit();
        let identity = options.identity.as_ref().filter(|_| options.http3);
        let address = listener.local_addr()?;
        let tls = options.identity.as_ref().map(|identity| identity.config()).transpose()?;
        let tls = tls.map(|config| TlsAcceptor::from(Arc::new(config)));
        let (stopping, stop) = watch::channel(false);
        let alternative = identity.map(|_| alternative(address.port())).transpose()?;
        let shared = Arc::new(Shared { cache, tls, limits: options.limits, alternative, open: Mutex::default() });
        let socket = match socket {
            None if identity.is_some() => Some(bind_udp(address)?),
            socket => socket,
        };
        let open = |(identity, socket)| QuicDoor::open(socket, identity, shared.clone(), stop.clone());
        let quic = identity.zip(socket).map(open).transpose()?;
        let accepting = tokio::spawn(accept(listener, shared.clone(), stop));
        Ok(HttpServer { address, shared, accepting, quic, stopping })
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Lets nobody in any more. Requests under way are answered, then their connections end.
    pub fn stop_accepting(&self) {
        self.accepting.abort();
        self.quic.iter().for_each(QuicDoor::stop_accepting);
        self.stopping.send_replace(true);
    }

    pub fn metrics(&self) -> Arc<Metrics> {
        self.shared.cache.metrics.clone()
    }

    /// Requests that are not answered to their end.
    pub fn unanswered(&self) -> u64 {
        self.shared.cache.metrics.in_flight()
    }

    /// Also hangs up on everybody.
    pub fn close(&self) {
        self.stop_accepting();
        for connection in self.shared.open().connections.values() {
            connection.task.abort();
        }
        self.quic.iter().for_each(QuicDoor::close);
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.close();
    }
}

/// Listens on TCP, and on the UDP port of the same number for HTTP/3.
fn listen(address: SocketAddr, with_udp: bool) -> Result<(TcpListener, Option<UdpSocket>)> {
    let mut tries_left = PORT_TRIES_MAX;
    loop {
        tries_left -= 1;
        let listener = listen_tcp(address)
            .with_context(|| format!("cannot listen on {address}; choose another address with --http"))?;
        if !with_udp {
            return Ok((listener, None));
        }
        match UdpSocket::bind(listener.local_addr()?) {
            Ok(socket) => return Ok((listener, Some(socket))),
            // The kernel chose the number for TCP alone.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && address.port() == 0 && tries_left > 0 => {}
            Err(error) => return Err(error).with_context(|| udp_taken(address)),
        }
    }
}

fn bind_udp(address: SocketAddr) -> Result<UdpSocket> {
    UdpSocket::bind(address).with_context(|| udp_taken(address))
}

fn udp_taken(address: SocketAddr) -> String {
    format!("cannot listen on UDP {address} for HTTP/3; choose another address with --http")
}

fn listen_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4()?,
        SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6()?,
    };
    // A node that is started again finds connections of the last one that are not quite over.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, stop: watch::Receiver<bool>) {
    loop {
        match listener.accept().await {
            Ok((stream, address)) => shared.clone().admit_tcp(stream, address, stop.clone()),
            Err(error) => {
                tracing::warn!("cannot accept a connection on the HTTP port: {error}");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admit_tcp(self: Arc<Self>, stream: TcpStream, address: SocketAddr, stop: watch::Receiver<bool>) {
        // Answers are written whole; waiting for more to come only delays them. A socket that cannot is slower.
        let _ = stream.set_nodelay(true);
        let (tls, round_trip) = (self.tls.clone(), link::round_trip(&stream));
        let is_encrypted = tls.is_some();
        self.admit(address, round_trip, is_encrypted, |caller| async move {
            match tls {
                Some(tls) => caller.serve_encrypted(tls, stream, stop).await,
                None => caller.serve(stream, stop).await,
            }
        });
    }

    /// Makes room for a connection and runs it on a task of its own.
    pub(super) fn admit<F: Future<Output = ()> + Send + 'static>(
        self: Arc<Self>,
        address: SocketAddr,
        round_trip: Option<Duration>,
        is_encrypted: bool,
        serve: impl FnOnce(Caller) -> F,
    ) {
        let mut open = self.open();
        if open.connections.len() >= CONNECTIONS_MAX {
            self.cache.metrics.refused_connections.fetch_add(1, Ordering::Relaxed);
            if !open.evict() {
                return tracing::warn!("refused {address}: {CONNECTIONS_MAX} connections are open and busy");
            }
        }
        let id = open.next_id;
        open.next_id += 1;
        let traffic = Arc::<Traffic>::default();
        let last_request = Arc::new(AtomicU64::new(self.cache.metrics.next_request()));
        let leave = Leave { shared: self.clone(), id };
        self.cache.metrics.connections.fetch_add(1, Ordering::Relaxed);
        let caller = Caller {
            shared: self.clone(),
            client: Client { address, is_encrypted, round_trip },
            limits: self.limits,
            traffic: traffic.clone(),
            last_request: last_request.clone(),
        };
        let serving = serve(caller);
        // Runs only once `open` is unlocked, so that it finds itself listed.
        let task = tokio::spawn(async move {
            let _leave = leave;
            serving.await;
        });
        open.connections.insert(id, Connection { task: task.abort_handle(), traffic, last_request });
    }
}

impl Open {
    /// Ends the connection that was silent for longest; false where all have requests under way.
    fn evict(&mut self) -> bool {
        let silent = self.connections.iter().filter(|(_, c)| c.traffic.unanswered() == 0);
        let longest = silent.min_by_key(|(_, c)| c.last_request.load(Ordering::Relaxed)).map(|(&id, _)| id);
        match longest.and_then(|id| self.connections.remove(&id)) {
            Some(connection) => {
                connection.task.abort();
                true
            }
            None => false,
        }
    }
}

/// Takes a connection off the list however its task ends.
struct Leave {
    shared: Arc<Shared>,
    id: u64,
}

impl Drop for Leave {
    fn drop(&mut self) {
        self.shared.cache.metrics.connections.fetch_sub(1, Ordering::Relaxed);
        self.shared.open().connections.remove(&self.id);
    }
}

/// One connection's client, and what it is answered from.
#[derive(Clone)]
pub(super) struct Caller {
    shared: Arc<Shared>,
    pub(super) client: Client,
    pub(super) limits: Limits,
    pub(super) traffic: Arc<Traffic>,
    last_request: Arc<AtomicU64>,
}

impl Caller {
    /// The same as [`Caller::serve`] once the client has shaken hands.
    async fn serve_encrypted(self, tls: TlsAcceptor, stream: TcpStream, mut stop: watch::Receiver<bool>) {
        let address = self.client.address;
        let handshake = tokio::time::timeout(self.limits.handshake, tls.accept(stream));
        let shaken = tokio::select! {
            shaken = handshake => shaken,
            () = stopped(&mut stop) => return,
        };
        match shaken {
            Ok(Ok(stream)) => self.serve(stream, stop).await,
            Ok(Err(error)) => tracing::debug!(%address, "a TLS handshake failed: {error}"),
            Err(_) => tracing::debug!(%address, "a TLS handshake took too long"),
        }
    }

    /// Speaks HTTP until the client goes, or until the server stops and nothing is under way.
    async fn serve(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        mut stop: watch::Receiver<bool>,
    ) {
        let io = TokioIo::new(Guarded::new(stream, self.limits, self.traffic.clone()));
        let address = self.client.address;
        let (traffic, limits) = (self.traffic.clone(), self.limits);
        let service = service_fn(move |request| self.clone().answer(request));
        let builder = protocol(limits);
        let connection = builder.serve_connection(io, service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = traffic.stands_still(limits.piece) => {
                return tracing::debug!(%address, "hung up on a client that takes nothing of its answers");
            }
            () = stopped(&mut stop) => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    ended = connection.as_mut() => ended,
                    () = traffic.stands_still(limits.piece) => return,
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%address, "a connection broke: {error}");
        }
    }

    async fn answer(self, request: http::Request<Incoming>) -> Result<Response, Infallible> {
        let (head, body) = request.into_parts();
        let body = RequestBody::new(body, self.limits);
        let alternative = self.shared.alternative.clone();
        let mut response = self.respond(head, body).await;
        if let Some(alternative) = alternative {
            response.headers_mut().insert(ALT_SVC, alternative);
        }
        Ok(response)
    }

    /// The same with what is known of the way to the client now.
    pub(super) fn with_round_trip(mut self, round_trip: Option<Duration>) -> Caller {
        self.client.round_trip = round_trip;
        self
    }

    /// Something that is not done for the client, until it is dropped.
    pub(super) fn in_flight(&self) -> InFlight {
        InFlight::new(&self.shared.cache.metrics, &self.traffic)
    }

    /// The answer to a request that came in by whatever protocol.
    pub(super) async fn respond(self, head: http::request::Parts, body: RequestBody) -> Response {
        let cache = &self.shared.cache;
        self.last_request.store(cache.metrics.next_request(), Ordering::Relaxed);
        let in_flight = self.in_flight();
        let is_head = head.method == http::Method::HEAD;
        let request = Request {
            path: head.uri.path().to_owned(),
            query: head.uri.query().map(str::to_owned),
            method: head.method,
            headers: head.headers,
            capture: String::new(),
            client: self.client,
            body,
        };
        let response = router::answer(cache.clone(), request).await;
        cache.metrics.responded(&response);
        let counted =
            |body: super::Body| if is_head { super::Body::untold(body.len()) } else { body }.counted(in_flight);
        response.map(counted)
    }
}

/// How long a client may remember that there is HTTP/3.
const ALTERNATIVE_SECONDS: u32 = 3600;

/// RFC 7838: the same host at the same port.
fn alternative(port: u16) -> Result<HeaderValue> {
    Ok(HeaderValue::try_from(format!("h3=\":{port}\"; ma={ALTERNATIVE_SECONDS}"))?)
}

/// The server stops, or is gone.
pub(super) async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|&stopping| stopping).await;
}

/// HTTP/1.1 or HTTP/2, whichever the client begins with. Hyper's `pipeline_flush` stays off: with it a body is taken
/// whole into memory, however slowly the client reads.
fn protocol(limits: Limits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.idle)
        .max_buf_size(IO_BYTES)
        .max_headers(HEADERS_MAX)
        .writev(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_pending_accept_reset_streams(RESETS_MAX)
        .max_local_error_reset_streams(FAULTY_STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX as u32)
        .max_send_buf_size(SEND_BUFFER_BYTES);
    builder
}
