//! The ssh door: `ssh-ng://` and `ssh://` clients with a public key.
//!
//! Made for the stock build hook, which opens a new connection for every derivation: only algorithms that are cheap
//! for the client are offered, and nothing on our side waits.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use russh::keys::{Algorithm, EcdsaCurve, HashAlg, PrivateKey};
use russh::{MethodKind, MethodSet, Preferred, SshId, cipher, compression, kex, mac, server};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tracing::{debug, warn};

use super::pipe::{Gate, STALL_LIMIT};
use super::{AuthorizedKeys, Sessions};
use connection::Connection;
use gated::Gated;

mod connection;
mod gated;

/// Connections at once.
pub const CONNECTIONS_MAX: usize = 8192;
/// Connections that have not shown a key yet; beyond it the oldest one is dropped, so that a crowd of silent ones
/// keeps nobody out.
pub const UNAUTHENTICATED_MAX: usize = 2048;
/// From connecting to having shown a key. A client that asks its user for a passphrase needs some time.
pub const AUTHENTICATION_LIMIT: Duration = Duration::from_secs(60);
/// Channels of one connection: a build hook that shares one has one for each job of a big machine.
pub const CHANNELS_MAX: usize = 256;
/// Keys that a client may offer; agents hold many, and refusing one costs us nothing.
const KEY_OFFERS_MAX: usize = 64;
/// A client is asked for a sign of life after so much silence ...
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// ... and is gone when it gave none so many times: three minutes.
const KEEPALIVE_MAX: usize = 9;
/// What a client may send ahead: a 1 Gbit/s link with a round trip of 100 ms and more.
const WINDOW: u32 = 16 << 20;
/// The largest packet that russh recommends to take.
const PACKET: u32 = 65535;
/// Messages of a session that wait to be encrypted: half a MiB of output leaves in one write.
const OUTGOING_MAX: usize = 16;
/// Half-open connections that the kernel keeps for us.
const BACKLOG: u32 = 4096;
/// How often the file of keys is looked at when nobody comes in.
const KEYS_POLL: Duration = Duration::from_secs(5);
/// Pause after `accept` failed for want of descriptors or memory.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

const KEX: &[kex::Name] = &[
    kex::MLKEM768X25519_SHA256,
    kex::CURVE25519,
    kex::CURVE25519_PRE_RFC_8731,
    kex::EXTENSION_SUPPORT_AS_SERVER,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER,
];

/// The client's order decides, and OpenSSH's puts slower ones first: so they are not offered.
const CIPHERS: &[cipher::Name] = &[cipher::AES_128_GCM, cipher::AES_256_GCM];

/// Without effect beside GCM, but a client may insist on finding one it knows.
const MACS: &[mac::Name] = &[mac::HMAC_SHA256_ETM, mac::HMAC_SHA512_ETM];

/// Kinds of client keys; all but RSA with SHA-1.
const KEYS: &[Algorithm] = &[
    Algorithm::Ed25519,
    Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 },
    Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 },
    Algorithm::Ecdsa { curve: EcdsaCurve::NistP521 },
    Algorithm::Rsa { hash: Some(HashAlg::Sha512) },
    Algorithm::Rsa { hash: Some(HashAlg::Sha256) },
];

/// What the door is opened with.
pub struct SshOptions {
    /// Port 0: the kernel chooses.
    pub listen: SocketAddr,
    pub host_key: PrivateKey,
    pub keys: Arc<AuthorizedKeys>,
    /// The node's name, for people who try to log in.
    pub node: String,
}

/// An open door. Closes when dropped.
pub struct SshDoor {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: tokio::task::JoinHandle<()>,
}

struct Shared {
    config: Arc<server::Config>,
    keys: Arc<AuthorizedKeys>,
    sessions: Sessions,
    node: String,
    next_id: AtomicU64,
    connections: AtomicUsize,
    gates: Mutex<Gates>,
}

/// How to cut each live connection, by its number, which grows with time.
#[derive(Default)]
struct Gates {
    all: BTreeMap<u64, Arc<Gate>>,
    unauthenticated: BTreeMap<u64, Arc<Gate>>,
}

impl SshDoor {
    /// Listens and serves until closed. Must be called within a tokio runtime.
    pub async fn open(options: SshOptions, sessions: Sessions) -> io::Result<SshDoor> {
        let listener = listen(options.listen)?;
        Self::on(listener, options, sessions)
    }

    /// As `open`, at a socket that listens already.
    pub fn on(listener: TcpListener, options: SshOptions, sessions: Sessions) -> io::Result<SshDoor> {
        super::raise_descriptor_limit();
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            config: Arc::new(config(options.host_key)),
            keys: options.keys,
            sessions,
            node: options.node,
            next_id: AtomicU64::new(0),
            connections: AtomicUsize::new(0),
            gates: Mutex::default(),
        });
        let accepting = tokio::spawn(accept(listener, shared.clone()));
        Ok(SshDoor { address, shared, accepting })
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Lets nobody in any more; who is in stays.
    pub fn stop_accepting(&self) {
        self.accepting.abort();
    }

    /// Also hangs up on everybody.
    pub fn close(&self) {
        self.stop_accepting();
        for gate in self.shared.gates().all.values() {
            gate.cut();
        }
    }
}

impl Drop for SshDoor {
    fn drop(&mut self) {
        self.close();
    }
}

/// `[::]` also takes IPv4; a machine without IPv6 gets `0.0.0.0` in its place.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let bind = |address: SocketAddr| {
        let socket = if address.is_ipv6() { TcpSocket::new_v6()? } else { TcpSocket::new_v4()? };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    match bind(address) {
        Err(error)
            if address.is_ipv6()
                && address.ip().is_unspecified()
                && matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) =>
        {
            bind((Ipv4Addr::UNSPECIFIED, address.port()).into())
        }
        result => result,
    }
}

fn config(host_key: PrivateKey) -> server::Config {
    server::Config {
        server_id: SshId::Standard(Cow::Borrowed(concat!("SSH-2.0-shoal_", env!("CARGO_PKG_VERSION")))),
        methods: MethodSet::from(&[MethodKind::PublicKey][..]),
        // Whether a public key is known is no secret worth a second of every honest client's time.
        auth_rejection_time: Duration::ZERO,
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: vec![host_key],
        window_size: WINDOW,
        maximum_packet_size: PACKET,
        event_buffer_size: OUTGOING_MAX,
        max_auth_attempts: KEY_OFFERS_MAX,
        inactivity_timeout: Some(STALL_LIMIT),
        keepalive_interval: Some(KEEPALIVE_INTERVAL),
        keepalive_max: KEEPALIVE_MAX,
        nodelay: true,
        preferred: Preferred {
            kex: Cow::Borrowed(KEX),
            key: Cow::Borrowed(KEYS),
            host_key_certificates: Cow::Borrowed(&[]),
            cipher: Cow::Borrowed(CIPHERS),
            mac: Cow::Borrowed(MACS),
            compression: Cow::Borrowed(&[compression::NONE]),
        },
        ..server::Config::default()
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut poll = tokio::time::interval(KEYS_POLL);
    poll.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, from)) => {
                    shared.clone().admit(stream, from);
                }
                Err(error) => {
                    warn!("cannot accept an ssh connection: {error}");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            },
            _ = poll.tick() => shared.keys.refresh(),
        }
    }
}

impl Shared {
    fn gates(&self) -> std::sync::MutexGuard<'_, Gates> {
        self.gates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admit(self: Arc<Self>, stream: TcpStream, from: SocketAddr) {
        if self.connections.load(Ordering::Acquire) >= CONNECTIONS_MAX {
            warn!("refused an ssh connection from {from}: {CONNECTIONS_MAX} are open");
            return;
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let gate = Arc::<Gate>::default();
        self.connections.fetch_add(1, Ordering::AcqRel);
        {
            let mut gates = self.gates();
            gates.all.insert(id, gate.clone());
            gates.unauthenticated.insert(id, gate.clone());
            if gates.unauthenticated.len() > UNAUTHENTICATED_MAX
                && let Some((_, oldest)) = gates.unauthenticated.pop_first()
            {
                oldest.cut();
            }
        }
        tokio::spawn(async move {
            self.serve(stream, from, id, gate).await;
            let mut gates = self.gates();
            gates.all.remove(&id);
            gates.unauthenticated.remove(&id);
            self.connections.fetch_sub(1, Ordering::AcqRel);
        });
    }

    fn authenticated(&self, id: u64) {
        self.gates().unauthenticated.remove(&id);
    }

    async fn serve(self: &Arc<Self>, stream: TcpStream, from: SocketAddr, id: u64, gate: Arc<Gate>) {
        if let Err(error) = stream.set_nodelay(true) {
            debug!("no TCP_NODELAY for {from}: {error}");
        }
        let connection = Connection::new(self.clone(), id, from, gate.clone());
        let session = async {
            let stream = Gated::new(stream, gate.clone());
            server::run_stream(self.config.clone(), stream, connection).await?.await
        };
        tokio::pin!(session);
        let mut limit = std::pin::pin!(tokio::time::sleep(AUTHENTICATION_LIMIT));
        let mut waiting = true;
        let result = loop {
            tokio::select! {
                result = &mut session => break result,
                () = &mut limit, if waiting => {
                    waiting = false;
                    if self.gates().unauthenticated.contains_key(&id) {
                        debug!("{from} showed no key in time");
                        gate.cut();
                    }
                }
            }
        };
        if let Err(error) = result {
            debug!("ssh connection from {from} ended: {error}");
        }
    }
}
