//! Where a node that knows nobody yet finds members: in a list, and on its own network. Membership tells it the others.

mod nearby;

pub use nearby::{Nearby, NearbyError, Sighting};

use shoal_wire::mesh::NodeKey;
use shoal_wire::nix::base64::{decode_hex_into, encode_hex};
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use thiserror::Error;

/// A node and where it listens, as people write it: `KEY@ADDR`, the key in hexadecimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PeerAddress {
    pub node: NodeKey,
    pub address: SocketAddr,
}

#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("'{0}' is not KEY@ADDR: a node's key in 64 hexadecimal digits, and an address with a port")]
pub struct PeerAddressError(String);

impl FromStr for PeerAddress {
    type Err = PeerAddressError;

    fn from_str(text: &str) -> Result<Self, PeerAddressError> {
        let bad = || PeerAddressError(text.to_owned());
        let (digits, address) = text.split_once('@').ok_or_else(bad)?;
        let node = key(digits).ok_or_else(bad)?;
        Ok(PeerAddress { node, address: address.parse().map_err(|_| bad())? })
    }
}

/// A key in hexadecimal.
fn key(digits: &str) -> Option<NodeKey> {
    let mut key = NodeKey::default();
    decode_hex_into(digits.as_bytes(), &mut key).ok().map(|()| key)
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", encode_hex(&self.node), self.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_reads_back_as_it_was_written() {
        for address in ["192.0.2.1:7433", "[2001:db8::1]:7433"] {
            let peer = PeerAddress { node: [0xa5; 32], address: address.parse().unwrap() };
            assert_eq!(peer.to_string().parse(), Ok(peer));
        }
    }

    #[test]
    fn what_is_no_key_and_address_is_refused() {
        let key = "a5".repeat(32);
        for text in [
            String::new(),
            key.clone(),
            format!("{key}@"),
            format!("{}@192.0.2.1:7", &key[1..]),
            format!("{key}@host:7433"),
        ] {
            assert!(text.parse::<PeerAddress>().is_err(), "{text}");
        }
    }
}
