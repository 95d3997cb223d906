//! How the nodes of a grid talk: who may come in, what they tell each other, and how chunks move between them.
//!
//! What is said and when is decided in `shoal_grid`; this crate carries it over QUIC ([`iroh`]), to and from the store.
//! It knows nothing of Nix's clients.
//!
//! Invariants:
//! - nothing but a close is sent to a peer whose certificate was not verified;
//! - the node's own tasks never wait for a peer: what cannot be sent at once is dropped where it is repeated anyway, and
//!   otherwise waits in a queue with a bound;
//! - nothing read from a peer is unwrapped, and every length it names has a limit before memory is taken for it.

pub mod bootstrap;
pub mod builds;
#[cfg(test)]
mod chunk_lab;
pub mod chunk_server;
pub mod clock;
pub mod command;
mod damage;
pub mod dial;
mod driver;
pub mod fetcher;
mod files;
#[cfg(test)]
mod fixture;
pub mod handle;
pub mod identity;
pub mod join;
pub mod links;
#[cfg(test)]
mod log_lab;
pub mod protocol;
pub mod records;
pub mod roster;
mod waiting;
