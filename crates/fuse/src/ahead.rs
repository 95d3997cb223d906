//! What is fetched before it is read. Pure: what was read goes in, chunks come out.
//!
//! Two ways. A file that is read from one end is read ahead, as far as it was read before. And the first touch of a path
//! brings near what is likely to be next: the whole path if it is small, else the other files of that directory if they
//! are few bytes. What would not be read costs more than a round trip, so both are bounded.

use crate::tree::{Kind, Tree};
use std::ops::Range;

/// Chunks that a file is read ahead by at most: 1 MiB on average, which at 10 ms a round trip is 100 MB/s.
const AHEAD_MAX: usize = 16;
/// A path of up to so many bytes comes whole.
pub const WHOLE_PATH_MAX: u64 = 1 << 20;
/// A directory's own files come with the first that is read of them if they have no more bytes. Measured with 512 KiB,
/// random files cost 8.5 % of a closure of which 5.1 % was read; with this 7.7 %, and a compiler waits as rarely.
pub const DIRECTORY_MAX: u64 = 384 << 10;

/// The chunks of which [`read_ahead`] asks whether they are near.
pub fn window(file: &Range<usize>, needed: &Range<usize>) -> Range<usize> {
    needed.start.saturating_sub(AHEAD_MAX).max(file.start)..needed.start
}

/// The chunks to read ahead of a reader that needs `needed` now; `file` are all chunks of the file. `is_near`: it was
/// fetched lately, or is on its way.
pub fn read_ahead(file: &Range<usize>, needed: &Range<usize>, is_near: impl Fn(usize) -> bool) -> Range<usize> {
    let read_before = window(file, needed).rev().take_while(|&chunk| is_near(chunk)).count();
    needed.end..(needed.end + read_before).min(file.end)
}

/// The chunks that should come near when a file of a path is read for the first time.
pub fn first_touch(tree: &Tree, file: u32) -> Range<usize> {
    if tree.nar_size() <= WHOLE_PATH_MAX {
        return 0..tree.chunk_count();
    }
    let Some(Kind::Directory { children }) = tree.parent(file).and_then(|parent| tree.kind(parent)) else {
        return 0..0;
    };
    // The contents of a directory lie in the order of names; what lies between are its subdirectories.
    let extent = |number| match tree.kind(number) {
        Some(Kind::Regular { size, offset, .. }) => Some(offset..offset + size),
        _ => None,
    };
    let fits = |bytes: &Range<u64>| bytes.end - bytes.start <= DIRECTORY_MAX;
    let Some(mut bytes) = extent(file).filter(fits) else { return 0..0 };
    let mut grow = |others: &mut dyn Iterator<Item = u32>| {
        for other in others.filter_map(extent) {
            let wider = bytes.start.min(other.start)..bytes.end.max(other.end);
            if !fits(&wider) {
                break;
            }
            bytes = wider;
        }
    };
    grow(&mut (file + 1..children.end));
    grow(&mut (children.start..file).rev());
    tree.chunks_of(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn a_file_is_read_ahead_as_far_as_it_was_read() {
        let near = |chunk| chunk < 14;
        assert_eq!(read_ahead(&(10..100), &(10..11), near), 11..11, "the first read says nothing of the next");
        assert_eq!(read_ahead(&(10..100), &(11..12), near), 12..13);
        assert_eq!(read_ahead(&(10..100), &(14..15), near), 15..19);
        assert_eq!(read_ahead(&(10..100), &(50..51), near), 51..51, "a reader that jumps");
        assert_eq!(read_ahead(&(10..100), &(60..61), |_| true), 61..61 + AHEAD_MAX);
        assert_eq!(read_ahead(&(10..100), &(98..99), |_| true), 99..100, "not beyond the file");
    }

    #[test]
    fn a_small_path_comes_whole_and_of_a_big_one_what_lies_around() {
        let (small, _) =
            testing::path(&[("a", testing::file(&testing::noise(1, 500_000))), ("b", testing::file(b"b"))]);
        let small = Tree::new(&small);
        assert_eq!(first_touch(&small, 0), 0..small.chunk_count());
        let headers = (0..40).map(|n| (format!("include/{n:02}.h"), testing::file(&testing::noise(n, 5_000))));
        let big = [("big.so", 1), ("zig.so", 2)];
        let big = big.map(|(name, seed)| (name.to_owned(), testing::file(&testing::noise(seed, 2_000_000))));
        let (manifest, _) = testing::path(&headers.chain(big).collect::<Vec<_>>());
        let tree = Tree::new(&manifest);
        let header = tree.child(tree.child(tree.root(), b"include").unwrap(), b"17.h").unwrap();
        let chunks = first_touch(&tree, header);
        let bytes: u64 = chunks.clone().filter_map(|chunk| tree.chunk(chunk)).map(|chunk| u64::from(chunk.len)).sum();
        assert!((200_000..400_000).contains(&bytes), "all headers and no library: {bytes}");
        let library = tree.child(tree.root(), b"big.so").unwrap();
        assert_eq!(first_touch(&tree, library), 0..0, "a big file is read as it is read");
    }
}
