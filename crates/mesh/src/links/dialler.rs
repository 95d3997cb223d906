//! Opening connections to members.

use super::limits::{CROSSING_PAUSE, DIAL_TIMEOUT, DIAL_TURN};
use super::table::{Protocol, Table};
use super::{Inner, Refusal, greeting, short, sync};
use crate::dial::DialError;
use crate::protocol::{Close, name_at};
use iroh::endpoint::Connection;
use iroh::{EndpointAddr, EndpointId};
use shoal_wire::mesh::NodeKey;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;
use tokio::time::{sleep, timeout};

impl Inner {
    /// Starts to open a connection. Whether it may be had.
    pub(super) fn dial(self: &Arc<Self>, table: &mut Table, node: NodeKey, protocol: Protocol) -> bool {
        self.try_dial(table, node, protocol).is_ok()
    }

    pub(super) fn try_dial(
        self: &Arc<Self>,
        table: &mut Table,
        node: NodeKey,
        protocol: Protocol,
    ) -> Result<(), DialError> {
        let addresses = table.begin(node, protocol, Instant::now())?;
        self.spawn(run(self.clone(), node, protocol, addresses));
        Ok(())
    }

    /// Registers a verified connection, runs it, and sends what waited for it.
    pub(super) fn establish(
        self: &Arc<Self>,
        node: NodeKey,
        protocol: Protocol,
        connection: &Connection,
        is_dialled: bool,
    ) -> Result<(), Refusal> {
        let seen = super::peers::path(connection).map(|(address, _)| address);
        let registered = self.table().register(node, protocol, connection, is_dialled, seen)?;
        if let Some(replaced) = registered.replaced {
            let reason = "a newer connection of the same nodes";
            replaced.close(Close::Replaced.code(), reason.as_bytes());
        }
        greeting::widen(connection, protocol);
        tracing::debug!(peer = short(&node), ?protocol, is_dialled, address = ?seen, "linked");
        for waiter in registered.waiters {
            // Who does not wait any more needs none.
            let _ = waiter.send(Ok(connection.clone()));
        }
        self.spawn(sync::run(self.clone(), node, protocol, registered.serial, connection.clone()));
        for frame in registered.frames {
            sync::send_frame(self, node, connection, frame);
        }
        Ok(())
    }
}

async fn run(inner: Arc<Inner>, node: NodeKey, protocol: Protocol, addresses: Vec<SocketAddr>) {
    // Never closed.
    let Ok(turn) = inner.dials.acquire().await else { return };
    if !inner.table().start(&node, protocol) {
        return;
    }
    let mut dial = pin!(open_once_or_twice(&inner, node, protocol, &addresses));
    let opened = match timeout(DIAL_TURN, &mut dial).await {
        Ok(opened) => opened,
        Err(_) => {
            drop(turn);
            dial.await
        }
    };
    let Err(refusal) = opened else { return };
    let (is_duplicate, is_lasting) = (refusal.is_by(Close::Duplicate), refusal.is_lasting());
    let error = DialError::from(refusal);
    let waiters = inner.table().failed(&node, protocol, &error, is_lasting, Instant::now());
    match &error {
        _ if is_duplicate => {}
        DialError::Refused(_) | DialError::Barred(_) => {
            tracing::warn!(peer = short(&node), ?protocol, %error, "a peer is not reached");
        }
        _ => tracing::debug!(peer = short(&node), ?protocol, %error, "a peer is not reached"),
    }
    for waiter in waiters {
        let _ = waiter.send(Err(error.clone()));
    }
}

/// Twice where the other end keeps a connection in the other direction that this end does not have.
async fn open_once_or_twice(
    inner: &Arc<Inner>,
    node: NodeKey,
    protocol: Protocol,
    addresses: &[SocketAddr],
) -> Result<(), Refusal> {
    let late = |_| Err(Refusal::Lost(format!("no answer within {} s", DIAL_TIMEOUT.as_secs())));
    let try_once = || timeout(DIAL_TIMEOUT, open(inner, node, protocol, addresses));
    match try_once().await.unwrap_or_else(late) {
        Err(refusal) if refusal.is_by(Close::Duplicate) => {
            sleep(CROSSING_PAUSE).await;
            let is_there = inner.table().has_open(&node, protocol);
            if is_there { Err(refusal) } else { try_once().await.unwrap_or_else(late) }
        }
        opened => opened,
    }
}

async fn open(inner: &Arc<Inner>, node: NodeKey, protocol: Protocol, addresses: &[SocketAddr]) -> Result<(), Refusal> {
    let address = locate(&node, addresses).ok_or_else(|| Refusal::Lost("its name is no key".to_owned()))?;
    let connected = inner.endpoint.connect(address, &name_at(protocol.name(), &node)).await;
    let connection = connected.map_err(|error| Refusal::Lost(format!("{error:#}")))?;
    let greeted = greeting::greet(&connection, &inner.identity, protocol).await;
    greeted
        .and_then(|()| inner.establish(node, protocol, &connection, true))
        .map_err(|refusal| refusal.close(&connection))
}

pub(crate) fn locate(node: &NodeKey, addresses: &[SocketAddr]) -> Option<EndpointAddr> {
    let id = EndpointId::from_bytes(node).ok()?;
    Some(addresses.iter().fold(EndpointAddr::new(id), |address, at| address.with_ip_addr(*at)))
}
