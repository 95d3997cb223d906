//! The members as one node sees them, for who shows them or chooses among them.

use shoal_grid::membership::member::Standing;
use shoal_grid::membership::view::View;
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::certificate::Roles;
use shoal_wire::mesh::node_record::{NodeRecord, Presence};

#[derive(Clone, Debug)]
pub struct Peer {
    pub record: NodeRecord,
    pub standing: Standing,
}

#[derive(Clone, Debug, Default)]
pub struct Roster {
    /// By key. This node is among them.
    pub peers: Vec<Peer>,
}

impl Roster {
    pub(crate) fn of(view: &View) -> Roster {
        let peer = |member: &shoal_grid::membership::member::Member| Peer {
            record: NodeRecord::clone(&member.record),
            standing: member.standing,
        };
        Roster { peers: view.members().values().map(peer).collect() }
    }

    pub fn live(&self) -> impl Iterator<Item = &Peer> {
        self.peers.iter().filter(|peer| peer.is_live())
    }

    pub fn get(&self, node: &NodeKey) -> Option<&Peer> {
        let at = self.peers.binary_search_by(|peer| peer.record.node.cmp(node)).ok()?;
        self.peers.get(at)
    }

    pub fn is_live(&self, node: &NodeKey) -> bool {
        self.get(node).is_some_and(Peer::is_live)
    }

    /// Nobody else lives.
    pub fn is_alone(&self) -> bool {
        self.live().count() <= 1
    }

    /// No other node is known, dead ones included: nobody has a copy of anything.
    pub fn has_no_others(&self) -> bool {
        let counts = |peer: &&Peer| peer.standing != Standing::Left;
        self.peers.iter().filter(counts).count() <= 1
    }

    /// Whether a member is out of reach that may come back.
    pub fn has_dead(&self) -> bool {
        self.peers.iter().any(|peer| peer.standing == Standing::Dead)
    }

    /// Live members that keep copies for others.
    pub fn keepers(&self) -> impl Iterator<Item = &Peer> {
        let stores =
            |peer: &&Peer| peer.record.presence == Presence::Active && peer.record.term.roles.contain(Roles::STORE);
        self.live().filter(stores)
    }

    /// How many [`Self::keepers`] there are.
    pub fn storers(&self) -> usize {
        self.keepers().count()
    }
}

impl Peer {
    pub fn is_live(&self) -> bool {
        matches!(self.standing, Standing::Alive | Standing::Suspected)
    }
}
