//! Whose turn it is to be sent something, under a cap of bytes a second that all peers share.
//!
//! Invariants:
//! - over any time no more is sent than the cap allows in it, a burst and one piece;
//! - what is more urgent goes first, but every sixteenth turn is of the least urgent, so that nothing starves;
//! - of those who are equally urgent each peer gets as many bytes as any other, however much it asks for;
//! - no more than [`WAITING_MAX`] pieces wait: who comes then is told that it is too much.

use crate::transfer::Time;
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::chunks::Urgency;
use std::collections::{BTreeMap, HashMap};

/// Pieces that may wait: those of 64 peers with all their requests.
pub const WAITING_MAX: usize = 1024;
/// Time whose bytes may be sent at once after a pause: timers are no better than this.
const BURST_MS: u64 = 50;
/// Each of so many turns is of the least urgent.
const LEAST_URGENT_EVERY: u64 = 16;
/// Peers whose share is remembered.
const PEERS_MAX: usize = 1024;

pub type Ticket = u64;

#[derive(Debug)]
pub struct Upload {
    /// Bytes a second, at least 1.
    rate: u64,
    /// Bytes that may be sent now, in thousandths; below zero after a piece that was longer than what there was.
    credit: i64,
    credited: Time,
    waiting: BTreeMap<Ticket, Piece>,
    tickets: Ticket,
    turns: u64,
    /// How far the peer was that was served last, and up to where each has asked, in bytes of a fair share.
    reached: u64,
    asked: HashMap<NodeKey, u64>,
}

#[derive(Debug, Clone, Copy)]
struct Piece {
    urgency: Urgency,
    bytes: u64,
    start: u64,
}

impl Upload {
    /// `rate`: bytes a second.
    pub fn new(now: Time, rate: u64) -> Self {
        Upload {
            rate: rate.max(1),
            credit: 0,
            credited: now,
            waiting: BTreeMap::new(),
            tickets: 0,
            turns: 0,
            reached: 0,
            asked: HashMap::new(),
        }
    }

    /// A peer is to be sent a piece. `None`: too many wait.
    pub fn want(&mut self, peer: NodeKey, urgency: Urgency, bytes: u64) -> Option<Ticket> {
        if self.waiting.len() >= WAITING_MAX {
            return None;
        }
        let asked = self.asked.entry(peer).or_default();
        let start = self.reached.max(*asked);
        *asked = start + bytes;
        if self.asked.len() > PEERS_MAX {
            let reached = self.reached;
            self.asked.retain(|_, asked| *asked > reached);
        }
        self.tickets += 1;
        self.waiting.insert(self.tickets, Piece { urgency, bytes, start });
        Some(self.tickets)
    }

    /// The piece is not sent.
    pub fn give_up(&mut self, ticket: Ticket) {
        self.waiting.remove(&ticket);
    }

    /// Pieces that may be sent now.
    pub fn grant(&mut self, now: Time) -> Vec<Ticket> {
        self.refill(now);
        let mut granted = Vec::new();
        while self.credit > 0 {
            let Some(ticket) = self.next() else { break };
            let Some(piece) = self.waiting.remove(&ticket) else { break };
            self.turns += 1;
            self.credit -= piece.bytes as i64 * 1000;
            self.reached = self.reached.max(piece.start);
            granted.push(ticket);
        }
        granted
    }

    fn refill(&mut self, now: Time) {
        let elapsed = now.saturating_sub(self.credited);
        self.credited = now;
        let gained = u128::from(self.rate) * u128::from(elapsed);
        let most = (self.rate * BURST_MS) as i64;
        self.credit = self.credit.saturating_add(gained.min(i64::MAX as u128) as i64).min(most);
    }

    fn next(&self) -> Option<Ticket> {
        let least_first = self.turns % LEAST_URGENT_EVERY == LEAST_URGENT_EVERY - 1;
        let rank = |urgency: Urgency| if least_first { 2 - urgency as u8 } else { urgency as u8 };
        let pieces = self.waiting.iter();
        pieces.min_by_key(|(ticket, piece)| (rank(piece.urgency), piece.start, **ticket)).map(|(ticket, _)| *ticket)
    }

    /// When [`Upload::grant`] gives more; `None` where nothing waits.
    pub fn next_grant(&self, now: Time) -> Option<Time> {
        if self.waiting.is_empty() {
            return None;
        }
        let short = u64::try_from(1 - self.credit.min(1)).unwrap_or(0);
        Some(now.max(self.credited + short.div_ceil(self.rate)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Serves for `ms`, each peer with a piece waiting at all times; what each peer and urgency got.
    fn serve(rate: u64, ms: u64, askers: &[(u8, Urgency, u64)]) -> Vec<u64> {
        let mut upload = Upload::new(0, rate);
        let mut got = vec![0; askers.len()];
        let mut tickets = HashMap::new();
        let ask = |upload: &mut Upload, tickets: &mut HashMap<Ticket, usize>, n: usize| {
            let (peer, urgency, bytes) = askers[n];
            tickets.insert(upload.want([peer; 32], urgency, bytes).unwrap(), n);
        };
        (0..askers.len()).for_each(|n| ask(&mut upload, &mut tickets, n));
        let mut now = 0;
        while now < ms {
            for ticket in upload.grant(now) {
                let n = tickets.remove(&ticket).unwrap();
                got[n] += askers[n].2;
                ask(&mut upload, &mut tickets, n);
            }
            now = upload.next_grant(now).unwrap().max(now + 1);
        }
        got
    }

    proptest! {
        #[test]
        fn no_more_is_sent_than_the_cap_allows(rate in 100_000..5_000_000u64, pieces in prop::collection::vec(20_000..500_000u64, 1..8)) {
            let askers: Vec<_> = pieces.iter().enumerate().map(|(n, bytes)| (n as u8, Urgency::Client, *bytes)).collect();
            let sent: u64 = serve(rate, 10_000, &askers).iter().sum();
            let longest = *pieces.iter().max().unwrap();
            prop_assert!(sent <= rate * 10 + rate * BURST_MS / 1000 + longest, "{sent}");
            prop_assert!(sent + longest >= rate * 10 * 95 / 100, "{sent}");
        }
    }

    #[test]
    fn peers_share_alike_whatever_they_ask_for() {
        let got = serve(
            10_000_000,
            10_000,
            &[(1, Urgency::Client, 500_000), (2, Urgency::Client, 20_000), (2, Urgency::Client, 20_000)],
        );
        let (first, second) = (got[0], got[1] + got[2]);
        assert!(first.abs_diff(second) <= 1_000_000, "{first} {second}");
    }

    #[test]
    fn another_copy_yields_to_a_client_and_does_not_starve() {
        let got = serve(10_000_000, 10_000, &[(1, Urgency::Client, 100_000), (2, Urgency::Replication, 100_000)]);
        assert!(got[1] * 10 <= got[0] && got[1] > 0, "{got:?}");
    }

    #[test]
    fn what_is_given_up_makes_room() {
        let mut upload = Upload::new(0, 1);
        let tickets: Vec<_> = (0..WAITING_MAX).map(|_| upload.want([1; 32], Urgency::Build, 1).unwrap()).collect();
        assert_eq!(upload.want([2; 32], Urgency::Build, 1), None);
        upload.give_up(tickets[0]);
        assert!(upload.want([2; 32], Urgency::Build, 1).is_some());
    }
}
