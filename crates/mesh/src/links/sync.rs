//! A link while it is open: what comes in, in turn, and what goes out, in order.

use super::limits::*;
use super::table::{Peer, Protocol};
use super::{Incoming, Inner, Refusal, short};
use crate::dial::{DialError, Offence};
use crate::protocol::{Close, STREAM_OF_FRAME, STREAM_OF_MESSAGES};
use bytes::Bytes;
use iroh::endpoint::{Connection, ReadExactError, ReadToEndError, RecvStream, SendDatagramError, SendStream, VarInt};
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::announcement::HolderMessage;
use shoal_wire::mesh::format::{Format, decode};
use shoal_wire::mesh::frame::FRAME_LEN_MAX;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

/// Memory for a message is taken as it comes, by this much.
const READ_LEN: usize = 64 << 10;
const LEN_OF_LEN: usize = 4;

/// Runs a registered connection until it ends.
pub(super) async fn run(inner: Arc<Inner>, peer: NodeKey, protocol: Protocol, serial: u64, connection: Connection) {
    let refusal = match protocol {
        Protocol::Sync => Reader::new(&inner, peer, &connection).run(serial).await,
        Protocol::Chunks => after(inner.chunks.serve(peer, connection.clone()).await, &connection).await,
        Protocol::Builds => after(inner.builds.serve(peer, connection.clone()).await, &connection).await,
    };
    if let Refusal::Ours(close @ (Close::Flood | Close::Malformed), reason) = &refusal {
        inner.cut(peer, *close, reason);
    }
    let refusal = refusal.close(&connection);
    let has_another = inner.table().retire(&peer, protocol, serial);
    let is_replaced = refusal.is_by(Close::Replaced);
    if is_replaced && !has_another {
        // Two nodes with one key take each other's place; not more often than they must.
        inner.table().defer(&peer, &DialError::from(refusal.clone()), false, Instant::now());
    }
    match &refusal {
        Refusal::Theirs(..)
            if !is_replaced && ![Close::Stopping, Close::Done].iter().any(|close| refusal.is_by(*close)) =>
        {
            tracing::warn!(peer = short(&peer), ?protocol, %refusal, "a link ended");
        }
        _ => tracing::debug!(peer = short(&peer), ?protocol, %refusal, "a link ended"),
    }
}

/// Why a connection ends on which requests were answered.
async fn after(offence: Option<Offence>, connection: &Connection) -> Refusal {
    match offence {
        Some(offence) => Refusal::new(Close::Malformed, offence),
        None => Refusal::from(connection.closed().await),
    }
}

/// What one peer sends. Of all it sends one thing at a time waits for its turn at the channel, so that each peer has the
/// same share of it.
#[derive(Clone)]
struct Reader {
    inner: Arc<Inner>,
    peer: NodeKey,
    connection: Connection,
    turn: Arc<Mutex<()>>,
    has_messages: Arc<AtomicBool>,
}

impl Reader {
    fn new(inner: &Arc<Inner>, peer: NodeKey, connection: &Connection) -> Self {
        let connection = connection.clone();
        Self { inner: inner.clone(), peer, connection, turn: Arc::default(), has_messages: Arc::default() }
    }

    /// Until the connection ends or is to be ended.
    async fn run(&self, serial: u64) -> Refusal {
        tokio::select! {
            refusal = self.datagrams() => refusal,
            refusal = self.streams() => refusal,
            refusal = self.send_messages(serial) => refusal,
            _ = self.connection.accept_bi() => match self.connection.close_reason() {
                Some(error) => error.into(),
                None => Refusal::new(Close::Malformed, "opened a stream that nobody asked for"),
            },
            error = self.connection.closed() => error.into(),
        }
    }

    async fn datagrams(&self) -> Refusal {
        loop {
            let Ok(datagram) = self.connection.read_datagram().await else { return Refusal::lost(&self.connection) };
            if let Err(refusal) = self.frame(datagram.to_vec()).await {
                return refusal;
            }
        }
    }

    async fn streams(&self) -> Refusal {
        // Not more than the peer may open; what is in it ends with it.
        let mut open = JoinSet::new();
        loop {
            tokio::select! {
                Some(ended) = open.join_next() => match ended {
                    Ok(Err(refusal)) => return refusal,
                    Ok(Ok(())) => {}
                    Err(error) => return Refusal::Lost(error.to_string()),
                },
                stream = self.connection.accept_uni() => {
                    let Ok(stream) = stream else { return Refusal::lost(&self.connection) };
                    let reader = self.clone();
                    open.spawn(async move { reader.stream(stream).await });
                }
            }
        }
    }

    /// One stream: a frame, or all messages.
    async fn stream(&self, mut stream: RecvStream) -> Result<(), Refusal> {
        let mut kind = [0];
        if stream.read_exact(&mut kind).await.is_err() {
            // Given up by its sender.
            return Ok(());
        }
        match kind[0] {
            STREAM_OF_FRAME => match stream.read_to_end(FRAME_LEN_MAX).await {
                Ok(frame) => self.frame(frame).await,
                Err(ReadToEndError::TooLong) => {
                    Err(Refusal::new(Close::Malformed, format!("sent a frame of more than {FRAME_LEN_MAX} bytes")))
                }
                Err(ReadToEndError::Read(_)) => Ok(()),
            },
            STREAM_OF_MESSAGES if !self.has_messages.swap(true, Ordering::Relaxed) => self.messages(stream).await,
            STREAM_OF_MESSAGES => Err(Refusal::new(Close::Malformed, "opened a second stream of messages")),
            kind => Err(Refusal::new(Close::Malformed, format!("opened a stream of kind {kind}"))),
        }
    }

    async fn messages(&self, mut stream: RecvStream) -> Result<(), Refusal> {
        loop {
            let mut len = [0; LEN_OF_LEN];
            match stream.read_exact(&mut len).await {
                Ok(()) => {}
                // Another stream would have no order with this one.
                Err(ReadExactError::FinishedEarly(0)) => {
                    return Err(Refusal::new(Close::Malformed, "ended its stream of messages"));
                }
                Err(_) => return Err(self.broken()),
            }
            let len = u32::from_le_bytes(len) as usize;
            if len > HolderMessage::LEN_MAX {
                return Err(Refusal::new(Close::Malformed, format!("sent a message of {len} bytes")));
            }
            self.charge(|peer, now| peer.takes_message(len, now), "sent more messages than it may")?;
            let mut bytes = Vec::with_capacity(len.min(READ_LEN));
            while bytes.len() < len {
                let chunk = stream.read_chunk((len - bytes.len()).min(READ_LEN)).await;
                let Ok(Some(chunk)) = chunk else { return Err(self.broken()) };
                bytes.extend_from_slice(&chunk);
            }
            let message = decode(&bytes)
                .map_err(|error| Refusal::new(Close::Malformed, format!("sent a bad message: {error}")))?;
            self.inner.counters.message_came();
            self.deliver(Incoming::Message { from: self.peer, message: Box::new(message) }).await?;
        }
    }

    /// The stream of messages broke: with the connection, or it was reset, after which the order is lost.
    fn broken(&self) -> Refusal {
        match self.connection.close_reason() {
            Some(error) => error.into(),
            None => Refusal::new(Close::Malformed, "broke its stream of messages off"),
        }
    }

    async fn frame(&self, frame: Vec<u8>) -> Result<(), Refusal> {
        let len = frame.len();
        self.charge(|peer, now| peer.takes_frame(len, now), "sent more frames than it may")?;
        self.inner.counters.frame_came();
        self.deliver(Incoming::Frame { from: self.peer, frame }).await
    }

    fn charge(&self, take: impl FnOnce(&mut Peer, Instant) -> bool, reason: &str) -> Result<(), Refusal> {
        let now = Instant::now();
        let mut table = self.inner.table();
        match table.peers.get_mut(&self.peer).is_none_or(|peer| take(peer, now)) {
            true => Ok(()),
            false => Err(Refusal::new(Close::Flood, reason)),
        }
    }

    async fn deliver(&self, event: Incoming) -> Result<(), Refusal> {
        let _turn = self.turn.lock().await;
        self.inner.events.send(event).await.map_err(|_| Refusal::stopping())
    }

    async fn send_messages(&self, serial: u64) -> Refusal {
        let ready = match self.inner.table().peers.get(&self.peer) {
            Some(peer) => peer.ready.clone(),
            None => return Refusal::Lost("the peer is forgotten".to_owned()),
        };
        let mut stream = None;
        loop {
            let next = self.inner.table().next_message(&self.peer, serial, Instant::now());
            let Some((message, wait)) = next else {
                ready.notified().await;
                continue;
            };
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            if self.write(&mut stream, message).await.is_err() {
                return Refusal::lost(&self.connection);
            }
        }
    }

    async fn write(&self, stream: &mut Option<SendStream>, message: Bytes) -> Result<(), ()> {
        let stream = match stream {
            Some(stream) => stream,
            None => {
                let mut opened = self.connection.open_uni().await.map_err(drop)?;
                opened.write_all(&[STREAM_OF_MESSAGES]).await.map_err(drop)?;
                stream.insert(opened)
            }
        };
        let len = (message.len() as u32).to_le_bytes();
        stream.write_all_chunks(&mut [Bytes::copy_from_slice(&len), message]).await.map_err(drop)
    }
}

/// As a datagram, or on a stream of its own; dropped where neither can be had at once.
pub(super) fn send_frame(inner: &Arc<Inner>, to: NodeKey, connection: &Connection, frame: Bytes) {
    match connection.send_datagram(frame.clone()) {
        Ok(()) => return,
        Err(SendDatagramError::ConnectionLost(_)) => return inner.counters.frames_dropped(1),
        Err(_) => {}
    }
    let has_room = match inner.table().peers.get_mut(&to) {
        Some(peer) if peer.frame_streams < FRAME_STREAMS_MAX => {
            peer.frame_streams += 1;
            true
        }
        _ => false,
    };
    if !has_room {
        return inner.counters.frames_dropped(1);
    }
    let (inner_of_task, connection) = (inner.clone(), connection.clone());
    inner.spawn(async move {
        let sent = tokio::time::timeout(FRAME_STREAM_TIMEOUT, write_frame(&connection, frame)).await;
        if !matches!(sent, Ok(Ok(()))) {
            inner_of_task.counters.frames_dropped(1);
        }
        if let Some(peer) = inner_of_task.table().peers.get_mut(&to) {
            peer.frame_streams = peer.frame_streams.saturating_sub(1);
        }
    });
}

async fn write_frame(connection: &Connection, frame: Bytes) -> Result<(), ()> {
    let mut stream = connection.open_uni().await.map_err(drop)?;
    let written = stream.write_all_chunks(&mut [Bytes::from_static(&[STREAM_OF_FRAME]), frame]).await;
    if written.is_err() || stream.finish().is_err() {
        let _ = stream.reset(VarInt::from_u32(0));
        return Err(());
    }
    Ok(())
}
