//! One memory of verified values for all nodes. Whether bytes are well signed depends on the bytes alone, so verifying
//! them once is as good as a thousand times, and a thousand views share their records.

use shoal_grid::membership::notary::{Keys, Notary, Record};
use shoal_wire::mesh::certificate::Certificate;
use shoal_wire::mesh::format::FormatError;
use shoal_wire::mesh::node_record::NodeRecord;
use shoal_wire::mesh::sealed::Sealed;
use shoal_wire::mesh::suspicion::Suspicion;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

type Opened<T> = Result<Arc<Sealed<T>>, FormatError>;

#[derive(Default)]
struct Shelf {
    records: HashMap<Box<[u8]>, Opened<NodeRecord>>,
    suspicions: HashMap<Box<[u8]>, Opened<Suspicion>>,
}

/// Shared by the nodes of one simulation.
#[derive(Clone, Default)]
pub struct Archive(Rc<RefCell<Shelf>>);

/// A node's keys, with the common archive.
pub struct Clerk {
    pub keys: Keys,
    pub archive: Archive,
}

impl Notary for Clerk {
    fn certificate(&self) -> &Certificate {
        &self.keys.certificate
    }

    fn seal_record(&self, record: NodeRecord) -> Result<Record, FormatError> {
        let sealed = self.keys.seal_record(record)?;
        self.archive.0.borrow_mut().records.insert(sealed.bytes().to_vec().into(), Ok(sealed.clone()));
        Ok(sealed)
    }

    fn seal_suspicion(&self, suspicion: Suspicion) -> Result<Arc<Sealed<Suspicion>>, FormatError> {
        self.keys.seal_suspicion(suspicion)
    }

    fn open_record(&self, bytes: &[u8]) -> Result<Record, FormatError> {
        if let Some(opened) = self.archive.0.borrow().records.get(bytes) {
            return opened.clone();
        }
        let opened = self.keys.open_record(bytes);
        self.archive.0.borrow_mut().records.insert(bytes.into(), opened.clone());
        opened
    }

    fn open_suspicion(&self, bytes: &[u8]) -> Result<Arc<Sealed<Suspicion>>, FormatError> {
        if let Some(opened) = self.archive.0.borrow().suspicions.get(bytes) {
            return opened.clone();
        }
        let opened = self.keys.open_suspicion(bytes);
        self.archive.0.borrow_mut().suspicions.insert(bytes.into(), opened.clone());
        opened
    }
}
