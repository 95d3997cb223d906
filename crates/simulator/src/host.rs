//! One machine: its disk, its clocks, and the node that runs on it.

use crate::archive::{Archive, Clerk};
use shoal_grid::catalogue::Catalogue;
use shoal_grid::catalogue::replication::COPIES;
use shoal_grid::membership::notary::Keys;
use shoal_grid::membership::{Membership, Now};
use shoal_grid::ring::Key;
use shoal_wire::mesh::announcement::Holding;
use shoal_wire::mesh::certificate::{Certificate, Roles, Term};
use shoal_wire::mesh::frame::Fact;
use shoal_wire::mesh::node_record::{Load, NodeRecord};
use shoal_wire::mesh::path_record::ContentTag;
use shoal_wire::mesh::{MeshId, NodeKey};
use shoal_wire::nix::signature::SecretKey;
use std::collections::BTreeMap;

/// The time at which simulations begin, Unix seconds.
pub const EPOCH_S: u64 = 1_800_000_000;

/// The key of a number. Numbers of meshes and of nodes are apart.
pub fn secret(kind: u8, number: u64) -> SecretKey {
    let mut seed = [kind; 32];
    seed[..8].copy_from_slice(&number.to_le_bytes());
    SecretKey::from_seed("simulated", seed).expect("any seed makes a key")
}

pub fn mesh_key() -> SecretKey {
    secret(1, 0)
}

pub fn mesh_id() -> MeshId {
    *mesh_key().public().bytes()
}

/// What a crash leaves.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    pub incarnation: u64,
    pub facts: Vec<Fact>,
    /// Paths of the store.
    pub held: BTreeMap<Key, ContentTag>,
}

pub struct Host {
    /// Number of the node's key.
    pub identity: u64,
    pub node: NodeKey,
    pub disk: Disk,
    /// How far its clock is wrong.
    pub skew_s: i64,
    /// What its other clock shows when the simulation begins.
    pub uptime_ms: u64,
    pub expires_s: u64,
    pub membership: Option<Membership<Clerk>>,
    pub catalogue: Option<Catalogue>,
    /// Whether the node on it has a catalogue: a thousand of them cost minutes.
    pub has_catalogue: bool,
    pub paused_until_ms: u64,
    /// When its catalogue is next looked at between ticks.
    pub wake_ms: Option<u64>,
    /// When it last came to be as others should see it: started, stopped, resumed.
    pub settled_ms: u64,
    /// Counts starts, so that events of an earlier life are recognised.
    pub life: u64,
}

impl Host {
    pub fn new(identity: u64) -> Self {
        Host {
            identity,
            node: *secret(2, identity).public().bytes(),
            disk: Disk::default(),
            skew_s: 0,
            uptime_ms: 0,
            expires_s: EPOCH_S + 365 * 86_400,
            membership: None,
            catalogue: None,
            has_catalogue: false,
            wake_ms: None,
            paused_until_ms: 0,
            settled_ms: 0,
            life: 0,
        }
    }

    pub fn now(&self, ms: u64) -> Now {
        Now { ms: self.uptime_ms + ms, wall_s: (EPOCH_S + ms / 1_000).saturating_add_signed(self.skew_s) }
    }

    pub fn runs(&self, ms: u64) -> bool {
        self.membership.is_some() && ms >= self.paused_until_ms
    }

    pub fn certificate(&self) -> Certificate {
        let roles = Roles::STORE.with(Roles::BUILD);
        let term = Term { roles, not_before_s: EPOCH_S - 86_400, expires_s: self.expires_s };
        Certificate::issue(&mesh_key(), self.node, term)
    }

    /// What a node of average size says of itself.
    pub fn record(&self) -> NodeRecord {
        let mut record = NodeRecord::new(&self.certificate(), &format!("node-{}", self.identity));
        let low = self.identity.to_le_bytes();
        record.addresses = vec![([10, low[2], low[1], low[0]], 7433).into()];
        record.systems = ["x86_64-linux", "i686-linux"].map(String::from).into();
        record.features = ["kvm", "big-parallel", "benchmark", "nixos-test"].map(String::from).into();
        record.capacity.slots = 8;
        record.capacity.cores = 32;
        record.capacity.memory_mib = 131_072;
        record.capacity.store_mib = 2_000_000;
        record.load = Load { running: 3, queued: 17, free_memory_mib: 70_000, free_store_mib: 900_000, ..record.load };
        record
    }

    pub fn start(&mut self, archive: &Archive, contacts: Vec<NodeKey>, seed: u64, ms: u64) {
        self.disk.incarnation += 1;
        let mut own = self.record();
        own.version.incarnation = self.disk.incarnation;
        let keys = Keys { key: secret(2, self.identity), certificate: self.certificate() };
        let clerk = Clerk { keys, archive: archive.clone() };
        let now = self.now(ms);
        let mut membership = Membership::new(clerk, own, contacts, seed, now).expect("a record within its limits");
        membership.restore(&self.disk.facts, now);
        let held = self.disk.held.iter().map(|(key, content)| Holding { key: *key, content: *content });
        self.catalogue = self.has_catalogue.then(|| {
            let mut catalogue = Catalogue::new(self.node, seed, COPIES, held, now.ms);
            if self.disk.incarnation == 1 {
                catalogue.never_lived();
            }
            catalogue
        });
        self.membership = Some(membership);
        self.life += 1;
        self.settled_ms = ms;
    }

    /// The process ends. What is on disk stays.
    pub fn crash(&mut self, ms: u64) {
        if let Some(membership) = self.membership.take() {
            self.disk.facts = membership.snapshot();
            self.catalogue = None;
            self.settled_ms = ms;
        }
    }
}
