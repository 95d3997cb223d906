//! The first words on a connection, in both directions, after which each end knows that the other is a member.

use super::Refusal;
use super::limits::{BUILD_STREAMS_MAX, CHUNK_STREAMS_MAX, RECEIVE_WINDOW, SYNC_STREAMS_MAX};
use super::table::Protocol;
use crate::clock::wall_s;
use crate::identity::Identity;
use crate::protocol::Close;
use iroh::endpoint::{Connection, RecvStream, SendStream, VarInt};
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::format::{Format, decode, encode};
use shoal_wire::mesh::hello::Hello;

/// As the one who dialled.
pub(super) async fn greet(connection: &Connection, identity: &Identity, protocol: Protocol) -> Result<(), Refusal> {
    let lost = |_| Refusal::lost(connection);
    let (mut send, mut recv) = connection.open_bi().await.map_err(lost)?;
    say(&mut send, identity, connection).await?;
    let hello = hear(&mut recv, connection).await?;
    verify(&hello, *connection.remote_id().as_bytes(), identity, protocol)
}

/// As the one who was dialled, its first half: the other is verified, and may be answered by [`answer`].
pub(super) async fn hear_greeting(
    connection: &Connection,
    identity: &Identity,
    protocol: Protocol,
) -> Result<SendStream, Refusal> {
    let (send, mut recv) = connection.accept_bi().await.map_err(|_| Refusal::lost(connection))?;
    let hello = hear(&mut recv, connection).await?;
    verify(&hello, *connection.remote_id().as_bytes(), identity, protocol)?;
    Ok(send)
}

pub(super) async fn answer(mut send: SendStream, connection: &Connection, identity: &Identity) -> Result<(), Refusal> {
    say(&mut send, identity, connection).await
}

async fn say(send: &mut SendStream, identity: &Identity, connection: &Connection) -> Result<(), Refusal> {
    let hello = encode(&Hello::new(identity.certificate()));
    let said = send.write_all(&hello).await.is_ok() && send.finish().is_ok();
    if said { Ok(()) } else { Err(Refusal::lost(connection)) }
}

async fn hear(recv: &mut RecvStream, connection: &Connection) -> Result<Hello, Refusal> {
    use iroh::endpoint::ReadToEndError;
    match recv.read_to_end(Hello::LEN_MAX).await {
        Ok(bytes) => decode(&bytes).map_err(|error| Refusal::new(Close::Malformed, format!("no hello: {error}"))),
        Err(ReadToEndError::TooLong) => {
            Err(Refusal::new(Close::Malformed, format!("a hello is longer than {} bytes", Hello::LEN_MAX)))
        }
        Err(ReadToEndError::Read(_)) => Err(Refusal::lost(connection)),
    }
}

/// Whether the certificate makes its bearer a member now, in the roles that the protocol needs. Who was thrown out is
/// asked elsewhere.
fn verify(hello: &Hello, peer: NodeKey, identity: &Identity, protocol: Protocol) -> Result<(), Refusal> {
    let certificate = &hello.certificate;
    if certificate.mesh != identity.mesh() {
        return Err(Refusal::new(Close::OtherMesh, "the certificate is of another mesh"));
    }
    if certificate.node != peer {
        return Err(Refusal::new(Close::OtherKey, "the certificate is of another node"));
    }
    if !certificate.is_signed() {
        return Err(Refusal::new(Close::Forged, "the mesh key did not sign the certificate"));
    }
    if !certificate.term.holds(wall_s()) {
        return Err(Refusal::new(Close::Expired, "the certificate does not hold now"));
    }
    match certificate.term.roles.contain(protocol.roles()) {
        true => Ok(()),
        false => Err(Refusal::new(Close::NoRole, "the certificate is of a node that does not build")),
    }
}

/// Lets a verified peer send.
pub(super) fn widen(connection: &Connection, protocol: Protocol) {
    connection.set_receive_window(VarInt::from_u32(RECEIVE_WINDOW));
    match protocol {
        Protocol::Sync => connection.set_max_concurrent_uni_streams(VarInt::from_u32(SYNC_STREAMS_MAX)),
        Protocol::Chunks => connection.set_max_concurrent_bi_streams(VarInt::from_u32(CHUNK_STREAMS_MAX)),
        Protocol::Builds => connection.set_max_concurrent_bi_streams(VarInt::from_u32(BUILD_STREAMS_MAX)),
    }
}
