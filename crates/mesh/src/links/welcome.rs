//! Letting nodes in, where the mesh key is.

use super::limits::CLOSE_TIMEOUT;
use super::{Inner, Refusal, short};
use crate::clock::wall_s;
use crate::identity::AdmitError;
use crate::protocol::Close;
use iroh::endpoint::{Connection, ReadToEndError};
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::format::{Format, decode, encode};
use shoal_wire::mesh::join::{Claim, JoinAnswer, JoinRequest, Refusal as Reason};
use shoal_wire::mesh::ticket::{CONTACTS_MAX, Contact};
use std::sync::Arc;

/// One request, one answer. The asking node's key is the connection's.
pub(super) async fn serve(inner: &Arc<Inner>, node: NodeKey, connection: &Connection) -> Result<(), Refusal> {
    let lost = |_| Refusal::lost(connection);
    let (mut send, mut recv) = connection.accept_bi().await.map_err(lost)?;
    let request: JoinRequest = match recv.read_to_end(JoinRequest::LEN_MAX).await {
        Ok(bytes) => decode(&bytes).map_err(|error| Refusal::new(Close::Malformed, error.to_string()))?,
        Err(ReadToEndError::TooLong) => return Err(Refusal::new(Close::Malformed, "the request is too long")),
        Err(ReadToEndError::Read(_)) => return Err(Refusal::lost(connection)),
    };
    let answer = encode(&answer(inner, node, request).await);
    if send.write_all(&answer).await.is_err() || send.finish().is_err() {
        return Err(Refusal::lost(connection));
    }
    // The other end closes when it has read the answer.
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, connection.closed()).await;
    Err(Refusal::new(Close::Done, "everything was said"))
}

async fn answer(inner: &Arc<Inner>, node: NodeKey, request: JoinRequest) -> JoinAnswer {
    let JoinRequest { claim, name, .. } = request;
    let is_renewal = matches!(claim, Claim::Renewal(_));
    let identity = inner.identity.clone();
    // It writes to the disk.
    let admitted = tokio::task::spawn_blocking(move || identity.admit(node, &claim, wall_s())).await;
    match admitted {
        Ok(Ok(mut welcome)) => {
            tracing::info!(node = short(&node), name, is_renewal, "a node is certified");
            welcome.contacts = contacts(inner);
            JoinAnswer::Welcome(welcome.into())
        }
        Ok(Err(AdmitError::Refused { refusal, reason })) => {
            tracing::warn!(node = short(&node), name, reason, "a node is not let in");
            JoinAnswer::refused(refusal, &reason)
        }
        Ok(Err(AdmitError::Identity(error))) => {
            tracing::error!(node = short(&node), name, %error, "a node cannot be let in");
            JoinAnswer::refused(Reason::Unable, "what lets nodes in failed: see this node's log")
        }
        Err(error) => JoinAnswer::refused(Reason::Unable, &error.to_string()),
    }
}

/// This node, and some that it is linked to.
fn contacts(inner: &Arc<Inner>) -> Vec<Contact> {
    let own = super::endpoint::addresses(&inner.endpoint);
    let mut contacts = vec![Contact { node: inner.identity.node(), addresses: own.into_iter().collect() }];
    let table = inner.table();
    let linked = table.peers.iter().filter(|(_, peer)| peer.sync.link.is_some());
    let others = linked.map(|(node, peer)| Contact { node: *node, addresses: peer.addresses().into_iter().collect() });
    let mut others: Vec<Contact> = others.collect();
    for contact in &mut others {
        while contact.addresses.len() > shoal_wire::mesh::node_record::ADDRESSES_MAX {
            contact.addresses.pop_last();
        }
    }
    contacts.extend(others.into_iter().take(CONTACTS_MAX - 1));
    contacts
}
