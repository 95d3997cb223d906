use super::*;
use crate::source::{Deliver, SourceError};
use crate::testing;
use shoal_wire::mesh::manifest::ChunkRef;

/// Has every path: a directory with two entries.
struct Everything;

impl Source for Everything {
    fn names(&self) -> Result<Vec<String>, SourceError> {
        Ok(Vec::new())
    }

    fn manifest(&self, name: &str) -> Result<Option<Manifest>, SourceError> {
        Ok(Some(testing::path(&[("a", testing::file(name.as_bytes())), ("b", testing::link("a"))]).0))
    }

    fn fetch(&self, _: &str, _: &[ChunkRef], _: Deliver<'_>) {}

    fn prefetch(&self, _: &str, _: &[ChunkRef]) {}
}

/// Of a mount that the kernel knows nothing of.
pub(crate) fn shared(table: Table) -> Shared {
    let (source, options, table) = (Arc::new(Everything), Options::default(), Arc::new(table));
    let (fetches, _) = Fetches::start(source.clone(), &options).unwrap();
    let (loads, _) = Loads::start(source, table.clone(), options.lookup_deadline, false).unwrap();
    Shared::new(table, loads, fetches)
}

#[test]
fn a_path_that_was_found_lost_is_in_use_for_as_long_as_the_kernel_has_something_of_it() {
    let shared = shared(Table::default());
    let tree = || Tree::new(&Everything.manifest("one").unwrap().unwrap());
    let lost = shared.table.insert("one", tree()).unwrap();
    lost.looked_up();
    assert!(shared.table.remove_this(&lost));
    assert!(shared.is_known("one") && !shared.is_known("two"));
    let again = shared.table.insert("one", tree()).unwrap();
    assert!(!again.is_known() && shared.is_known("one"), "what it was before is open");
    shared.table.forgotten(lost.node(0), 1);
    assert!(!shared.is_known("one"));
    shared.end();
}
