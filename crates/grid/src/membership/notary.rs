//! Signing and verifying, which cost far more than everything else here: a trait, so that a thousand simulated nodes can
//! share what one of them has verified.

use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::certificate::Certificate;
use shoal_wire::mesh::format::FormatError;
use shoal_wire::mesh::node_record::NodeRecord;
use shoal_wire::mesh::revocation::Revocation;
use shoal_wire::mesh::sealed::Sealed;
use shoal_wire::mesh::suspicion::Suspicion;
use shoal_wire::nix::signature::SecretKey;
use std::sync::Arc;

/// A node record whose signatures were verified.
pub type Record = Arc<Sealed<NodeRecord>>;

pub trait Notary {
    fn certificate(&self) -> &Certificate;
    fn seal_record(&self, record: NodeRecord) -> Result<Record, FormatError>;
    fn seal_suspicion(&self, suspicion: Suspicion) -> Result<Arc<Sealed<Suspicion>>, FormatError>;
    /// All `open`s decode strictly and verify every signature.
    fn open_record(&self, bytes: &[u8]) -> Result<Record, FormatError>;
    fn open_suspicion(&self, bytes: &[u8]) -> Result<Arc<Sealed<Suspicion>>, FormatError>;

    fn open_revocation(&self, bytes: &[u8]) -> Result<Sealed<Revocation>, FormatError> {
        Sealed::open(bytes)
    }

    fn node(&self) -> NodeKey {
        self.certificate().node
    }
}

/// A node's own key, with its certificate.
#[derive(Debug)]
pub struct Keys {
    pub key: SecretKey,
    pub certificate: Certificate,
}

impl Notary for Keys {
    fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    fn seal_record(&self, record: NodeRecord) -> Result<Record, FormatError> {
        Sealed::seal(record, &self.key).map(Arc::new)
    }

    fn seal_suspicion(&self, suspicion: Suspicion) -> Result<Arc<Sealed<Suspicion>>, FormatError> {
        Sealed::seal(suspicion, &self.key).map(Arc::new)
    }

    fn open_record(&self, bytes: &[u8]) -> Result<Record, FormatError> {
        NodeRecord::open(bytes).map(Arc::new)
    }

    fn open_suspicion(&self, bytes: &[u8]) -> Result<Arc<Sealed<Suspicion>>, FormatError> {
        Sealed::open(bytes).map(Arc::new)
    }
}
