//! How a node finds the first members to talk to: from a list, and on its own network. Membership tells it the others.

mod nearby;

pub use nearby::{Nearby, NearbyError, Sighting};

use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::node_record::ADDRESSES_MAX;
use shoal_wire::nix::base64::{decode_hex_into, encode_hex};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;
use thiserror::Error;

/// Longest host name with its port.
const PLACE_LEN_MAX: usize = 255 + 6;
/// How long a name server may take: it is asked again.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// A member to talk to first, as people write it: `KEY@ADDRESS:PORT`. The key is in hexadecimal, as `ready.json` has it;
/// the address may be a name, and one of IPv6 is in brackets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PeerAddress {
    pub node: NodeKey,
    place: String,
}

/// Why a text is no [`PeerAddress`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PeerAddressError {
    #[error("a peer is written KEY@ADDRESS:PORT")]
    Form,
    #[error("the key of a peer is 64 hexadecimal digits")]
    Key,
    #[error("'{0}' is no address with a port")]
    Address(String),
}

impl PeerAddress {
    pub fn new(node: NodeKey, address: SocketAddr) -> Self {
        Self { node, place: address.to_string() }
    }

    /// Where it is now. A name is looked up, within a time.
    pub async fn resolve(&self) -> io::Result<Vec<SocketAddr>> {
        if let Ok(address) = self.place.parse() {
            return Ok(vec![address]);
        }
        let looked_up = tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host(&self.place)).await;
        let addresses = looked_up.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        Ok(addresses.take(ADDRESSES_MAX).collect())
    }
}

impl FromStr for PeerAddress {
    type Err = PeerAddressError;

    fn from_str(text: &str) -> Result<Self, PeerAddressError> {
        let (digits, place) = text.trim().split_once('@').ok_or(PeerAddressError::Form)?;
        let node = key(digits).ok_or(PeerAddressError::Key)?;
        match is_place(place) {
            true => Ok(Self { node, place: place.to_owned() }),
            false => Err(PeerAddressError::Address(place.chars().take(PLACE_LEN_MAX).collect())),
        }
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", encode_hex(&self.node), self.place)
    }
}

fn key(digits: &str) -> Option<NodeKey> {
    let mut key = [0; 32];
    let is_whole = digits.len() == 2 * key.len();
    (is_whole && decode_hex_into(digits.as_bytes(), &mut key).is_ok()).then_some(key)
}

/// An address or a host name, with a port that is not 0.
fn is_place(place: &str) -> bool {
    if let Ok(address) = place.parse::<SocketAddr>() {
        return address.port() != 0 && !address.ip().is_unspecified();
    }
    let Some((host, port)) = place.rsplit_once(':') else { return false };
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    // What is made of digits and dots only is an address gone wrong.
    let has_letter = host.contains(|c: char| c.is_ascii_alphabetic());
    place.len() <= PLACE_LEN_MAX
        && has_letter
        && host.chars().all(is_name)
        && port.parse::<u16>().is_ok_and(|port| port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    #[test]
    fn a_peer_address_is_read_as_it_is_written() {
        for place in ["192.0.2.1:7433", "[2001:db8::1]:7433", "shoal-0.shoal.svc:7433", "node_1:1"] {
            let text = format!("{KEY}@{place}");
            let peer: PeerAddress = format!(" {text}\n").parse().unwrap();
            assert_eq!((peer.to_string(), encode_hex(&peer.node)), (text, KEY.to_owned()));
        }
        let address = "[2001:db8::1]:7433".parse().unwrap();
        let peer = PeerAddress::new([7; 32], address);
        assert_eq!(peer.to_string().parse(), Ok(peer));
    }

    #[test]
    fn what_is_wrong_with_a_peer_address_is_said() {
        let wrong = |text: String| text.parse::<PeerAddress>().unwrap_err();
        assert_eq!(wrong("192.0.2.1:7433".into()), PeerAddressError::Form);
        for digits in ["", &KEY[1..], &KEY.replace('a', "g"), &format!("{KEY}00")] {
            assert_eq!(wrong(format!("{digits}@192.0.2.1:7433")), PeerAddressError::Key);
        }
        for place in [
            "",
            "host",
            "host:",
            "host:0",
            "host:70000",
            ":7433",
            "2001:db8::1:7433",
            "192.0.2.256:1",
            "a b:1",
            "0.0.0.0:7433",
        ] {
            assert_eq!(wrong(format!("{KEY}@{place}")), PeerAddressError::Address(place.into()));
        }
    }

    #[tokio::test]
    async fn addresses_and_names_are_resolved() {
        let resolve =
            async |place: &str| format!("{KEY}@{place}").parse::<PeerAddress>().unwrap().resolve().await.unwrap();
        assert_eq!(resolve("192.0.2.1:7433").await, ["192.0.2.1:7433".parse().unwrap()]);
        assert!(
            resolve("localhost:7433").await.iter().all(|address| address.ip().is_loopback() && address.port() == 7433)
        );
    }
}
