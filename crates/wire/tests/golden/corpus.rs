//! A real distribution's derivations: each is read, written back the same, and recomputed.

use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;

use shoal_wire::nix::aterm;
use shoal_wire::nix::derivation::Derivation;
use shoal_wire::nix::hash_modulo::HashModulo;
use shoal_wire::nix::invariants::check_added;
use shoal_wire::nix::options::DerivationOptions;
use shoal_wire::nix::store_path::{StoreDir, StorePath};

use crate::shared::find;

const COUNT: usize = 9567;

fn read_archive(test: &str) -> Option<Vec<(StorePath, Vec<u8>)>> {
    let file = std::fs::File::open(find(test, "corpus/drv-9k.tar.zst")?).expect("archive opens");
    let mut archive = tar::Archive::new(zstd::Decoder::new(file).expect("zstd"));
    let entries = archive.entries().expect("tar").map(|entry| {
        let mut entry = entry.expect("entry");
        let name = entry.path().expect("path").file_name().expect("name").to_string_lossy().into_owned();
        let mut text = Vec::new();
        entry.read_to_end(&mut text).expect("contents");
        (name.parse().expect("store path"), text)
    });
    Some(entries.collect())
}

#[test]
fn every_derivation_of_the_corpus_is_reproduced() {
    let Some(files) = read_archive("every_derivation_of_the_corpus_is_reproduced") else { return };
    assert_eq!(files.len(), COUNT);
    let dir = StoreDir::new("/gnu/store").expect("store dir");
    let mut parsed: HashMap<StorePath, Arc<Derivation>> = HashMap::new();
    for (path, text) in &files {
        let drv = aterm::parse(&dir, text, path.derivation_name().expect("a .drv")).expect("parses");
        assert!(aterm::print(&dir, &drv) == *text, "{path} is not written as it was read");
        parsed.insert(path.clone(), Arc::new(drv));
    }
    let mut modulo = HashModulo::new(dir.clone());
    let mut lookup = |path: &StorePath| parsed.get(path).cloned().ok_or("not in the corpus");
    for (path, text) in &files {
        let drv = &parsed[path];
        // Recomputes the derivation's own path, all its output paths, and compares the environment with these.
        check_added(&mut modulo, path, text, &drv.references(), &mut lookup).expect("valid");
        DerivationOptions::of(&dir, drv).expect("options");
    }
}
