//! The QUIC endpoint: nobody is looked up, no relay is used, and strangers get little.

use super::limits::*;
use crate::protocol::name_at;
use iroh::endpoint::{Endpoint, QuicTransportConfig, RelayMode, VarInt, presets};
use shoal_wire::mesh::node_record::ADDRESSES_MAX;
use shoal_wire::nix::signature::SecretKey;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use thiserror::Error;

/// The endpoint could not be opened.
#[derive(Debug, Error)]
#[error("cannot listen on udp {address}: {reason}")]
pub struct OpenError {
    pub address: SocketAddr,
    pub reason: String,
}

/// How often a port is looked for that both families have free.
const PORT_TRIES: usize = 8;

pub(crate) async fn bind(
    node_key: &SecretKey,
    address: SocketAddr,
    protocols: &[&[u8]],
) -> Result<Endpoint, OpenError> {
    let failed = |reason: String| OpenError { address, reason };
    let mut last = failed("no port is free in both families".to_owned());
    for _ in 0..PORT_TRIES {
        let address = with_port(address).map_err(|error| failed(error.to_string()))?;
        let mut builder = Endpoint::builder(presets::Minimal)
            .secret_key(iroh::SecretKey::from_bytes(node_key.seed()))
            .relay_mode(RelayMode::Disabled)
            .transport_config(transport())
            .alpns(protocols.iter().map(|protocol| name_at(protocol, node_key.public().bytes())).collect())
            .clear_ip_transports();
        for address in sockets(address) {
            builder = builder.bind_addr(address).map_err(|error| failed(error.to_string()))?;
        }
        match builder.bind().await {
            Ok(endpoint) => return Ok(endpoint),
            Err(error) => last = failed(format!("{error:#}")),
        }
    }
    Err(last)
}

/// A wildcard of IPv6 means both families, at one port.
fn sockets(address: SocketAddr) -> Vec<SocketAddr> {
    let both = address.is_ipv6() && address.ip().is_unspecified();
    let other = both.then(|| SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port()));
    // A machine may be without IPv6.
    let first = (!both || UdpSocket::bind((address.ip(), 0)).is_ok()).then_some(address);
    first.into_iter().chain(other).collect()
}

/// A free port where both families need the same and none was asked for.
fn with_port(address: SocketAddr) -> std::io::Result<SocketAddr> {
    if address.port() != 0 || !address.is_ipv6() || !address.ip().is_unspecified() {
        return Ok(address);
    }
    let port = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?.local_addr()?.port();
    Ok(SocketAddr::new(address.ip(), port))
}

fn transport() -> QuicTransportConfig {
    let idle = VarInt::from_u32(IDLE_TIMEOUT.as_millis() as u32);
    QuicTransportConfig::builder()
        .max_idle_timeout(Some(idle.into()))
        .default_path_max_idle_timeout(IDLE_TIMEOUT)
        .keep_alive_interval(KEEP_ALIVE)
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .receive_window(VarInt::from_u32(RECEIVE_WINDOW_OF_STRANGERS))
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER_LEN))
        .datagram_send_buffer_size(DATAGRAM_BUFFER_LEN)
        .build()
}

/// The address that it listens on, of the family that was asked for.
pub(crate) fn local_address(endpoint: &Endpoint, asked: SocketAddr) -> SocketAddr {
    let bound = endpoint.bound_sockets();
    let same = bound.iter().find(|address| address.is_ipv6() == asked.is_ipv6());
    same.or(bound.first()).copied().unwrap_or(asked)
}

/// Where others find it.
pub(crate) fn addresses(endpoint: &Endpoint) -> Vec<SocketAddr> {
    let is_local = |address: &SocketAddr| match address.ip() {
        IpAddr::V4(ip) => ip.is_link_local(),
        // Means nothing without the interface.
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    let addr = endpoint.addr();
    let (local, wide): (Vec<_>, Vec<_>) = addr.ip_addrs().copied().partition(is_local);
    let mut found = if wide.is_empty() { local } else { wide };
    if found.is_empty() {
        let loopback = |bound: SocketAddr| match bound.ip() {
            ip if !ip.is_unspecified() => bound,
            IpAddr::V4(_) => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), bound.port()),
            IpAddr::V6(_) => SocketAddr::new(std::net::Ipv6Addr::LOCALHOST.into(), bound.port()),
        };
        found = endpoint.bound_sockets().into_iter().map(loopback).collect();
    }
    found.truncate(ADDRESSES_MAX);
    found
}
