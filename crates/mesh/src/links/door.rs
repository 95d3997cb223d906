//! Connections that come in.

use super::limits::{HELLO_TIMEOUT, HOLD_MAX};
use super::table::{Crossing, Protocol};
use super::{Inner, Refusal, greeting, short, welcome};
use crate::protocol::{CHUNKS, Close, JOIN, SYNC};
use iroh::endpoint::{Connection, Incoming, IncomingAddr};
use shoal_wire::mesh::NodeKey;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

pub(super) async fn accept(inner: Arc<Inner>) {
    while let Some(incoming) = inner.endpoint.accept().await {
        let IncomingAddr::Ip(from) = incoming.remote_addr() else {
            incoming.ignore();
            continue;
        };
        if inner.gate.is_crowded() && !incoming.remote_addr_validated() {
            // It comes again with the proof, or was never there.
            let _ = incoming.retry();
            continue;
        }
        let Some(entrant) = inner.gate.enter(from.ip().to_canonical()) else {
            inner.counters.refused();
            incoming.refuse();
            continue;
        };
        let inner_of_task = inner.clone();
        inner.spawn(async move {
            let _entrant = entrant;
            receive(inner_of_task, incoming, from).await;
        });
    }
}

async fn receive(inner: Arc<Inner>, incoming: Incoming, from: SocketAddr) {
    let deadline = tokio::time::Instant::now() + HELLO_TIMEOUT;
    let Ok(Ok(connection)) = tokio::time::timeout_at(deadline, incoming).await else { return };
    let peer = *connection.remote_id().as_bytes();
    let entered = match tokio::time::timeout_at(deadline, enter(&inner, peer, &connection)).await {
        Ok(entered) => entered,
        Err(_) => Err(Refusal::silent()),
    };
    if let Err(refusal) = entered {
        let refusal = refusal.close(&connection);
        if !matches!(refusal, Refusal::Ours(Close::Duplicate | Close::Done, _)) {
            inner.counters.refused();
            tracing::info!(peer = short(&peer), %from, %refusal, "a connection is refused");
        }
    }
}

/// One connection, by its protocol, until its other end is known.
async fn enter(inner: &Arc<Inner>, peer: NodeKey, connection: &Connection) -> Result<(), Refusal> {
    inner.table().may_enter(&peer, Instant::now())?;
    let protocol = match connection.alpn() {
        alpn if alpn == SYNC => Protocol::Sync,
        alpn if alpn == CHUNKS => Protocol::Chunks,
        alpn if alpn == JOIN => return welcome::serve(inner, peer, connection).await,
        _ => return Err(Refusal::new(Close::Malformed, "no such protocol")),
    };
    let reply = greeting::hear_greeting(connection, &inner.identity).await?;
    give_way(inner, &peer, protocol).await?;
    inner.table().may_enter(&peer, Instant::now())?;
    greeting::answer(reply, connection, &inner.identity).await?;
    inner.establish(peer, protocol, connection, false)
}

/// Of two connections that were dialled at once the smaller key's is kept, and its node sees to it: the other one waits
/// until it is known whether that came to be.
async fn give_way(inner: &Arc<Inner>, peer: &NodeKey, protocol: Protocol) -> Result<(), Refusal> {
    if inner.identity.node() > *peer {
        return Ok(());
    }
    for _ in 0..2 {
        let crossing = inner.table().crossing(peer, protocol, Instant::now());
        match crossing {
            Crossing::No => return Ok(()),
            Crossing::Open => return Err(Refusal::duplicate()),
            // Either way it is looked at again.
            Crossing::Opening(mut ended) => drop(tokio::time::timeout(HOLD_MAX, ended.changed()).await),
        }
    }
    Ok(())
}
