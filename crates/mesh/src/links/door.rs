//! Connections that come in.

use super::gate::Entrant;
use super::limits::{HELLO_TIMEOUT, HOLD_MAX};
use super::table::{Crossing, Protocol};
use super::{Inner, Refusal, greeting, short, welcome};
use crate::protocol::{BUILDS, CHUNKS, Close, JOIN, SYNC, name_at};
use iroh::endpoint::{Connection, Incoming, IncomingAddr};
use shoal_wire::mesh::NodeKey;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

pub(super) async fn accept(inner: Arc<Inner>) {
    let names = [SYNC, CHUNKS, BUILDS, JOIN].map(|protocol| name_at(protocol, &inner.identity.node()));
    while let Some(incoming) = inner.endpoint.accept().await {
        let IncomingAddr::Ip(from) = incoming.remote_addr() else {
            incoming.ignore();
            continue;
        };
        if !is_meant(&incoming, &names) {
            incoming.ignore();
            continue;
        }
        if inner.gate.is_crowded() && !incoming.remote_addr_validated() {
            // It comes again with the proof, or was never there.
            let _ = incoming.retry();
            continue;
        }
        let Some(entrant) = inner.gate.enter(from.ip().to_canonical()) else {
            // It knocks again in a second, where a refusal would be the end of it.
            inner.counters.ignored();
            incoming.ignore();
            if inner.gate.is_news(Instant::now()) {
                tracing::warn!(address = %from.ip(), "too many connections are on their way in; the latest is of this address");
            }
            continue;
        };
        let inner_of_task = inner.clone();
        inner.spawn(receive(inner_of_task, incoming, from, entrant));
    }
}

/// Whether it asks for one of `names`, as far as its first packet tells.
fn is_meant(incoming: &Incoming, names: &[Vec<u8>]) -> bool {
    let Some(mut asked) = incoming.decrypt().and_then(|initial| initial.alpns()) else { return true };
    asked.any(|name| name.is_ok_and(|name| names.contains(&name.to_vec())))
}

async fn receive(inner: Arc<Inner>, incoming: Incoming, from: SocketAddr, entrant: Entrant) {
    let deadline = tokio::time::Instant::now() + HELLO_TIMEOUT;
    let Ok(Ok(connection)) = tokio::time::timeout_at(deadline, incoming).await else { return };
    let peer = *connection.remote_id().as_bytes();
    let entered = match tokio::time::timeout_at(deadline, enter(&inner, peer, &connection, entrant)).await {
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
async fn enter(inner: &Arc<Inner>, peer: NodeKey, connection: &Connection, entrant: Entrant) -> Result<(), Refusal> {
    inner.table().may_enter(&peer, Instant::now())?;
    let is = |protocol| connection.alpn() == name_at(protocol, &inner.identity.node());
    let protocol = match () {
        () if is(SYNC) => Protocol::Sync,
        () if is(CHUNKS) => Protocol::Chunks,
        () if is(BUILDS) => Protocol::Builds,
        () if is(JOIN) => return welcome::serve(inner, peer, connection).await,
        () => return Err(Refusal::new(Close::Malformed, "no such protocol")),
    };
    let reply = greeting::hear_greeting(connection, &inner.identity, protocol).await?;
    // A member takes no stranger's place, however long it waits.
    drop(entrant);
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
