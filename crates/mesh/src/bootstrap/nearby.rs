//! Members on the same network, by multicast DNS: each announces itself, and hears of the others.
//!
//! Service `_shoal._udp.local.`; text: the node's key and its mesh's, in hexadecimal.

use super::key;
use mdns_sd::{ResolvedService, ServiceDaemon, ServiceEvent, ServiceInfo};
use shoal_wire::mesh::node_record::ADDRESSES_MAX;
use shoal_wire::mesh::{MeshId, NodeKey};
use shoal_wire::nix::base64::encode_hex;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

const SERVICE: &str = "_shoal._udp.local.";
const NODE: &str = "node";
const MESH: &str = "mesh";
/// How long saying goodbye may take.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);
/// From the end of a subscription to the next.
const RESUBSCRIBE: Duration = Duration::from_secs(1);

/// What a member of the same mesh is said to be. Anybody on the network can say so: only its key, which dialling proves,
/// makes it true. For [`crate::links::Links::suggest_addresses`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    pub node: NodeKey,
    pub addresses: Vec<SocketAddr>,
}

/// Multicast cannot be used.
#[derive(Debug, Error)]
#[error("members nearby are not found: {0}")]
pub struct NearbyError(#[from] mdns_sd::Error);

/// Announces this node, and tells of others, until it is dropped.
pub struct Nearby {
    daemon: ServiceDaemon,
    mesh: MeshId,
    node: NodeKey,
    listening: JoinHandle<()>,
}

impl Nearby {
    /// `addresses` are where this node is found; those with the port of the first are told. Sightings come as others
    /// appear and change, and are lost while `found` is full.
    pub fn start(
        mesh: MeshId,
        node: NodeKey,
        addresses: &[SocketAddr],
        found: mpsc::Sender<Sighting>,
    ) -> Result<Self, NearbyError> {
        Self::run(ServiceDaemon::new()?, mesh, node, addresses, found)
    }

    fn run(
        daemon: ServiceDaemon,
        mesh: MeshId,
        node: NodeKey,
        addresses: &[SocketAddr],
        found: mpsc::Sender<Sighting>,
    ) -> Result<Self, NearbyError> {
        let listening = tokio::spawn(listen(daemon.clone(), mesh, node, found));
        let nearby = Self { daemon, mesh, node, listening };
        nearby.announce(addresses)?;
        Ok(nearby)
    }

    /// Tells other addresses from now on.
    pub fn announce(&self, addresses: &[SocketAddr]) -> Result<(), NearbyError> {
        let Some(first) = addresses.first() else { return Ok(()) };
        let port = first.port();
        let addresses: Vec<IpAddr> =
            addresses.iter().filter(|address| address.port() == port).map(SocketAddr::ip).collect();
        let text = [(NODE, encode_hex(&self.node)), (MESH, encode_hex(&self.mesh))];
        let host = format!("{}.local.", name(&self.node));
        let service = ServiceInfo::new(SERVICE, &name(&self.node), &host, &addresses[..], port, &text[..])?;
        Ok(self.daemon.register(service)?)
    }

    /// Says goodbye.
    pub async fn stop(self) {
        if let Ok(gone) = self.daemon.unregister(&format!("{}.{SERVICE}", name(&self.node))) {
            // Others forget it by themselves after a while.
            let _ = tokio::time::timeout(STOP_TIMEOUT, gone.recv_async()).await;
        }
    }
}

impl Drop for Nearby {
    fn drop(&mut self) {
        self.listening.abort();
        // It has ended already, or ends by this.
        let _ = self.daemon.shutdown();
    }
}

/// Within the 63 bytes of a label.
fn name(node: &NodeKey) -> String {
    format!("shoal-{}", encode_hex(&node[..16]))
}

async fn listen(daemon: ServiceDaemon, mesh: MeshId, me: NodeKey, found: mpsc::Sender<Sighting>) {
    // A subscription ends when it is behind, and all of them when the daemon does.
    while let Ok(events) = daemon.browse(SERVICE) {
        while let Ok(event) = events.recv_async().await {
            let ServiceEvent::ServiceResolved(service) = event else { continue };
            let Some(sighting) = read(&service, &mesh).filter(|sighting| sighting.node != me) else { continue };
            if let Err(mpsc::error::TrySendError::Closed(_)) = found.try_send(sighting) {
                return;
            }
        }
        tokio::time::sleep(RESUBSCRIBE).await;
    }
}

/// Nothing where it is no member of `mesh`, or not said to be.
fn read(service: &ResolvedService, mesh: &MeshId) -> Option<Sighting> {
    let text = |name| key(service.get_property_val_str(name)?);
    let node = text(NODE).filter(|_| text(MESH).as_ref() == Some(mesh))?;
    let is_global = |ip: &IpAddr| match ip {
        IpAddr::V4(_) => true,
        // Means nothing without the interface.
        IpAddr::V6(ip) => !ip.is_unicast_link_local(),
    };
    let addresses = service.addresses.iter().map(|ip| ip.to_ip_addr()).filter(is_global);
    let mut addresses: Vec<SocketAddr> = addresses.map(|ip| SocketAddr::new(ip, service.port)).collect();
    addresses.sort();
    addresses.truncate(ADDRESSES_MAX);
    (!addresses.is_empty() && service.port != 0).then_some(Sighting { node, addresses })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::within;
    use mdns_sd::IfKind;
    use std::net::{Ipv4Addr, UdpSocket};

    /// A port of multicast DNS that nobody else uses.
    fn free_port() -> u16 {
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap().local_addr().unwrap().port()
    }

    /// On loopback, away from the real network.
    fn start(port: u16, mesh: u8, node: u8) -> (Nearby, mpsc::Receiver<Sighting>) {
        let daemon = ServiceDaemon::new_with_port(port).unwrap();
        daemon.disable_interface(IfKind::All).unwrap();
        daemon.enable_interface(IfKind::LoopbackV4).unwrap();
        let (sender, found) = mpsc::channel(16);
        let at = SocketAddr::from(([127, 0, 0, 1], 1_000 + u16::from(node)));
        (Nearby::run(daemon, [mesh; 32], [node; 32], &[at], sender).unwrap(), found)
    }

    /// Whether this machine carries multicast on loopback: some containers do not.
    fn has_multicast() -> bool {
        let group = Ipv4Addr::new(224, 0, 0, 251);
        let try_it = || {
            let receiver = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            receiver.join_multicast_v4(&group, &Ipv4Addr::LOCALHOST)?;
            receiver.set_read_timeout(Some(Duration::from_secs(1)))?;
            let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            sender.send_to(b"here", (group, receiver.local_addr()?.port()))?;
            receiver.recv(&mut [0; 8])
        };
        let got: std::io::Result<usize> = try_it();
        got.is_ok()
    }

    #[tokio::test]
    async fn members_of_one_mesh_find_each_other_and_no_others() {
        if !has_multicast() {
            eprintln!("skipped: no multicast on loopback here");
            return;
        }
        let port = free_port();
        let (first, mut found_by_first) = start(port, 7, 1);
        let (_stranger, mut found_by_stranger) = start(port, 8, 2);
        let (third, mut found_by_third) = start(port, 7, 3);
        let at = |node: u8| Sighting {
            node: [node; 32],
            addresses: vec![SocketAddr::from(([127, 0, 0, 1], 1_000 + u16::from(node)))],
        };
        assert_eq!(within(found_by_first.recv()).await, Some(at(3)));
        assert_eq!(within(found_by_third.recv()).await, Some(at(1)));
        assert!(found_by_stranger.try_recv().is_err());
        third.stop().await;
        drop(first);
        // Its task ends with it.
        while within(found_by_first.recv()).await.is_some() {}
    }

    fn resolved(node: &str, mesh: &str, ip: &str, port: u16) -> ResolvedService {
        let text = [(NODE, node), (MESH, mesh)];
        let host = "shoal-test.local.";
        ServiceInfo::new(SERVICE, "shoal-test", host, ip, port, &text[..]).unwrap().as_resolved_service()
    }

    #[test]
    fn what_is_not_a_member_of_the_mesh_is_not_seen() {
        let (node, mesh) = (encode_hex(&[1; 32]), encode_hex(&[7; 32]));
        let read = |service: ResolvedService| read(&service, &[7; 32]);
        let seen = read(resolved(&node, &mesh, "192.0.2.1,fe80::1,2001:db8::1", 7433)).unwrap();
        let addresses: Vec<String> = seen.addresses.iter().map(SocketAddr::to_string).collect();
        assert_eq!(
            (seen.node, &addresses[..]),
            ([1; 32], &["192.0.2.1:7433".to_owned(), "[2001:db8::1]:7433".to_owned()][..])
        );
        assert_eq!(read(resolved(&node, &node, "192.0.2.1", 7433)), None);
        assert_eq!(read(resolved("", &mesh, "192.0.2.1", 7433)), None);
        assert_eq!(read(resolved(&node[1..], &mesh, "192.0.2.1", 7433)), None);
        assert_eq!(read(resolved(&node, &mesh, "fe80::1", 7433)), None);
        assert_eq!(read(resolved(&node, &mesh, "192.0.2.1", 0)), None);
    }
}
