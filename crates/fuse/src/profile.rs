//! What was read of some paths, so that it can be fetched before it is read the next time. Pure.
//!
//! Files are called by the name of their path without its hash: when an input changes, what was read of the one before is
//! mostly what will be read of it.

use crate::table::Shown;
use crate::tree::{Kind, Tree};
use shoal_wire::nix::store_path::HASH_PART_LEN;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

/// Files that are remembered. A compiler that reads every header of a large library reads half as many.
pub const FILES_MAX: usize = 4096;
/// Parts of one file. What lies between grows together where there would be more.
const PARTS_MAX: usize = 8;

/// What was read, in the order in which files were first read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Profile {
    pub files: Vec<FileRead>,
}

/// What was read of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRead {
    /// The name of the store path, without its hash.
    pub path: String,
    /// Within the path; empty where the path is a file.
    pub file: String,
    /// Bytes of the file, apart and in order.
    pub parts: Vec<Range<u64>>,
}

/// What is being read: entries of paths by their place and number.
#[derive(Debug, Default)]
pub struct Reads {
    order: Vec<(usize, u32)>,
    parts: HashMap<(usize, u32), Vec<Range<u64>>>,
}

impl Reads {
    /// Notes bytes of a file of the path at `place`. Beyond [`FILES_MAX`] files nothing is noted.
    pub fn add(&mut self, place: usize, number: u32, bytes: Range<u64>) {
        let parts = match self.parts.get_mut(&(place, number)) {
            Some(parts) => parts,
            None if self.order.len() >= FILES_MAX => return,
            None => {
                self.order.push((place, number));
                self.parts.entry((place, number)).or_default()
            }
        };
        join(parts, bytes);
    }

    fn has(&self, place: usize, number: u32) -> bool {
        self.parts.contains_key(&(place, number))
    }
}

/// Adds a part to parts that are apart and in order.
fn join(parts: &mut Vec<Range<u64>>, new: Range<u64>) {
    if new.is_empty() {
        return;
    }
    let from = parts.partition_point(|part| part.end < new.start);
    let to = parts.partition_point(|part| part.start <= new.end);
    let whole = parts[from..to].iter().fold(new, |whole, part| whole.start.min(part.start)..whole.end.max(part.end));
    parts.splice(from..to, [whole]);
    if parts.len() > PARTS_MAX {
        let gap = |at: &usize| parts[at + 1].start - parts[*at].end;
        if let Some(at) = (0..parts.len() - 1).min_by_key(gap) {
            parts[at].end = parts.remove(at + 1).end;
        }
    }
}

/// Paths of a view by their names without hashes.
struct ByName<'a> {
    paths: &'a [Arc<Shown>],
    places: HashMap<&'a str, Vec<usize>>,
}

impl<'a> ByName<'a> {
    fn new(paths: &'a [Arc<Shown>]) -> ByName<'a> {
        let mut places = HashMap::<&str, Vec<usize>>::new();
        for (place, shown) in paths.iter().enumerate() {
            places.entry(name_of(shown)).or_default().push(place);
        }
        ByName { paths, places }
    }

    /// The entries that a file of a profile may be now, by their place and number.
    fn find(&self, file: &FileRead) -> impl Iterator<Item = (usize, u32)> {
        let places = self.places.get(&*file.path).map(Vec::as_slice).unwrap_or_default();
        places.iter().filter_map(|&place| Some((place, find(&self.paths[place].tree, &file.file)?)))
    }
}

/// Chunks of one path, by their numbers.
pub struct Wanted {
    pub of: Arc<Shown>,
    pub chunks: Vec<usize>,
}

/// The chunks of `paths` that hold what a profile says and that nobody has read, each once, those of one path together.
pub fn wanted(profile: &Profile, paths: &[Arc<Shown>]) -> Vec<Wanted> {
    let by_name = ByName::new(paths);
    let mut seen = HashSet::new();
    let mut of_path = HashMap::<usize, usize>::new();
    let mut wanted = Vec::<Wanted>::new();
    for file in &profile.files {
        for (place, number) in by_name.find(file) {
            let shown = &paths[place];
            let chunks = file.parts.iter().flat_map(|part| chunks_of(&shown.tree, number, part));
            let mut is_new = |hash: Option<[u8; 32]>| hash.is_some_and(|hash| seen.insert(hash));
            let hash = |chunk: usize| shown.tree.chunk(chunk).map(|chunk| chunk.hash);
            for chunk in chunks.filter(|chunk| !shown.was_read(*chunk)).filter(|chunk| is_new(hash(*chunk))) {
                let at = *of_path.entry(place).or_insert(wanted.len());
                if at == wanted.len() {
                    wanted.push(Wanted { of: shown.clone(), chunks: Vec::new() });
                }
                wanted[at].chunks.push(chunk);
            }
        }
    }
    wanted
}

/// What to remember: what was read now, and of what was read before what the kernel need not have asked for this time,
/// since somebody else had read it.
pub fn merge(reads: &Reads, before: &Profile, paths: &[Arc<Shown>]) -> Profile {
    let now = reads.order.iter().filter_map(|(place, number)| {
        let shown = paths.get(*place)?;
        let file = path_in(&shown.tree, *number)?;
        Some(FileRead { path: name_of(shown).to_owned(), file, parts: reads.parts.get(&(*place, *number))?.clone() })
    });
    let mut files: Vec<FileRead> = now.collect();
    let by_name = ByName::new(paths);
    let was_read = |file: &FileRead, (place, number): (usize, u32)| {
        let mut chunks = file.parts.iter().flat_map(|part| chunks_of(&paths[place].tree, number, part));
        !reads.has(place, number) && chunks.any(|chunk| paths[place].was_read(chunk))
    };
    let unasked = before.files.iter().filter(|file| by_name.find(file).any(|entry| was_read(file, entry)));
    files.extend(unasked.take(FILES_MAX.saturating_sub(files.len())).cloned());
    Profile { files }
}

fn chunks_of(tree: &Tree, number: u32, part: &Range<u64>) -> Range<usize> {
    let Some(Kind::Regular { size, offset, .. }) = tree.kind(number) else { return 0..0 };
    tree.chunks_of(offset + part.start.min(size)..offset + part.end.min(size))
}

fn name_of(shown: &Shown) -> &str {
    shown.name.get(HASH_PART_LEN + 1..).unwrap_or_default()
}

fn find(tree: &Tree, file: &str) -> Option<u32> {
    let names = file.split('/').filter(|name| !name.is_empty());
    names.into_iter().try_fold(tree.root(), |number, name| tree.child(number, name.as_bytes()))
}

/// `None` for what has a name that is no text: it is not remembered.
fn path_in(tree: &Tree, number: u32) -> Option<String> {
    let mut names = Vec::new();
    let mut at = number;
    while let Some(parent) = tree.parent(at) {
        names.push(str::from_utf8(tree.name(at)).ok()?);
        at = parent;
    }
    names.reverse();
    Some(names.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Table;
    use crate::testing;

    fn read(path: &str, file: &str, part: Range<u64>) -> FileRead {
        FileRead { path: path.into(), file: file.into(), parts: vec![part] }
    }

    #[test]
    fn parts_grow_together_and_stay_few() {
        let mut parts = Vec::new();
        for from in [10, 30, 20, 50, 40] {
            join(&mut parts, from..from + 5);
        }
        assert_eq!(parts, [10..15, 20..25, 30..35, 40..45, 50..55]);
        join(&mut parts, 14..41);
        assert_eq!(parts, [10..45, 50..55]);
        join(&mut parts, 45..50);
        assert_eq!((parts.len(), parts[0].clone()), (1, 10..55));
        (1..20).for_each(|n| join(&mut parts, n * 1000..n * 1000 + n));
        assert_eq!(parts.len(), PARTS_MAX);
        assert_eq!((parts[0].start, parts[PARTS_MAX - 1].end), (10, 19_019), "nothing that was read is left out");
        assert!(parts.windows(2).all(|pair| pair[0].end < pair[1].start));
    }

    #[test]
    fn what_was_read_of_a_path_is_wanted_of_the_one_that_takes_its_place() {
        let table = Table::default();
        let show = |hash: char, seed: u64| {
            let (other, read) = (testing::file(&testing::noise(seed, 500_000)), testing::noise(9, 300_000));
            let (manifest, _) = testing::path(&[("lib/a", other), ("lib/read", testing::file(&read))]);
            let name = format!("{}-lib-1.0", String::from(hash).repeat(32));
            table.insert(&name, Tree::new(&manifest)).unwrap()
        };
        let (old, new) = (show('0', 1), show('1', 2));
        let number = find(&old.tree, "lib/read").unwrap();
        let mut reads = Reads::default();
        reads.add(0, number, 0..10);
        let paths = [old.clone()];
        let profile = merge(&reads, &Profile::default(), &paths);
        assert_eq!(profile.files, [read("lib-1.0", "lib/read", 0..10)]);
        let paths = [new.clone()];
        let found = wanted(&profile, &paths);
        let number = find(&new.tree, "lib/read").unwrap();
        let chunks: Vec<usize> = chunks_of(&new.tree, number, &(0..10)).collect();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].chunks, chunks);
        // What the kernel has it does not ask for again: that says nothing of who needs it.
        chunks.iter().for_each(|chunk| new.note_read(*chunk));
        assert!(wanted(&profile, &paths).is_empty());
        assert_eq!(merge(&Reads::default(), &profile, &paths), profile);
        assert_eq!(merge(&Reads::default(), &profile, &[old]), Profile::default(), "nobody read it");
    }
}
