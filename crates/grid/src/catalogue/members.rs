//! The members as the catalogue needs them.

use crate::membership::view::View;
use crate::ring::{NodeId, WEIGHT_MAX};
use shoal_wire::mesh::certificate::Roles;
use shoal_wire::mesh::node_record::Presence;
use std::collections::BTreeSet;
use std::num::NonZeroU8;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// Live ones that keep records and copies, with their weights, in the order of their keys; those that drain or leave are
    /// not among them.
    pub storers: Vec<(NodeId, NonZeroU8)>,
    pub live: BTreeSet<NodeId>,
    pub suspected: BTreeSet<NodeId>,
}

impl Members {
    pub fn of(view: &View) -> Self {
        let live: BTreeSet<NodeId> = view.live().iter().copied().collect();
        let records = view.live().iter().filter_map(|node| view.get(node)).map(|member| &member.record);
        let storers = records
            .filter(|record| record.term.roles.contain(Roles::STORE) && record.presence == Presence::Active)
            .map(|record| {
                let weight = NonZeroU8::new(record.capacity.weight.min(WEIGHT_MAX)).unwrap_or(NonZeroU8::MIN);
                (record.node, weight)
            })
            .collect();
        Members { storers, live, suspected: view.suspected().clone() }
    }
}
