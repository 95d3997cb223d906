//! Where two trees differ, by their indexes and as much of their contents as must be read.

use std::cmp::Ordering;
use std::ops::Range;

use super::index::{Entry, NarIndex, Node};

/// Bytes of a path or a target that are shown; more says nothing to people.
const SHOWN_MAX: usize = 256;

/// One place in which the second tree is not as the first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Below the root, without a leading slash; empty for the root.
    pub path: Vec<u8>,
    pub what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    OnlyInFirst,
    OnlyInSecond,
    /// `directory`, `file` or `symlink`.
    Kind {
        first: &'static str,
        second: &'static str,
    },
    /// Only the file of the first tree is executable, or only that of the second.
    Executable {
        first: bool,
    },
    Target {
        first: Box<[u8]>,
        second: Box<[u8]>,
    },
    /// Contents are the same up to this byte.
    Contents {
        byte: u64,
        first_size: u64,
        second_size: u64,
    },
}

/// The first `max` differences, in the order of paths, and whether there are more. `differ_at` tells the first byte in
/// which two ranges of the NARs differ, of which neither is empty unless the other is not; `None`: in none.
pub fn differences<E>(
    first: &NarIndex,
    second: &NarIndex,
    max: usize,
    differ_at: impl FnMut(Range<u64>, Range<u64>) -> Result<Option<u64>, E>,
) -> Result<(Vec<Difference>, bool), E> {
    let mut walk = Walk { first, second, differ_at, max, found: Vec::new() };
    // The next pairs to be compared; those of a directory come before what follows it.
    let mut open = vec![(Vec::new(), Some(first.root()), Some(second.root()))];
    while let Some((path, one, other)) = open.pop() {
        if walk.found.len() > max {
            break;
        }
        let children = walk.compare(&path, one, other)?;
        open.extend(children.into_iter().rev());
    }
    let is_cut = walk.found.len() > max;
    walk.found.truncate(max);
    Ok((walk.found, is_cut))
}

type Pair<'a> = (Vec<u8>, Option<&'a Entry>, Option<&'a Entry>);

struct Walk<'a, F> {
    first: &'a NarIndex,
    second: &'a NarIndex,
    differ_at: F,
    max: usize,
    found: Vec<Difference>,
}

impl<'a, F> Walk<'a, F> {
    fn compare<E>(&mut self, path: &[u8], one: Option<&'a Entry>, other: Option<&'a Entry>) -> Result<Vec<Pair<'a>>, E>
    where
        F: FnMut(Range<u64>, Range<u64>) -> Result<Option<u64>, E>,
    {
        let (one, other) = match (one, other) {
            (Some(one), Some(other)) => (one, other),
            (Some(_), None) => return Ok(self.note(path, What::OnlyInFirst)),
            _ => return Ok(self.note(path, What::OnlyInSecond)),
        };
        match (&one.node, &other.node) {
            (Node::Directory { .. }, Node::Directory { .. }) => {
                return Ok(pairs(path, self.first.children(one), self.second.children(other)));
            }
            (Node::Symlink { target: first }, Node::Symlink { target: second }) if first != second => {
                self.note(path, What::Target { first: first.clone(), second: second.clone() });
            }
            (Node::Symlink { .. }, Node::Symlink { .. }) => {}
            (
                Node::Regular { executable: first, size: first_size, offset: first_at },
                Node::Regular { executable: second, size: second_size, offset: second_at },
            ) => {
                if first != second {
                    self.note(path, What::Executable { first: *first });
                }
                let ranges = (*first_at..first_at + first_size, *second_at..second_at + second_size);
                let byte = match self.found.len() <= self.max && (*first_size > 0 || *second_size > 0) {
                    true => (self.differ_at)(ranges.0, ranges.1)?,
                    false => None,
                };
                if let Some(byte) = byte {
                    let (first_size, second_size) = (*first_size, *second_size);
                    self.note(path, What::Contents { byte, first_size, second_size });
                }
            }
            (first, second) => {
                self.note(path, What::Kind { first: kind(first), second: kind(second) });
            }
        }
        Ok(Vec::new())
    }

    fn note(&mut self, path: &[u8], what: What) -> Vec<Pair<'a>> {
        self.found.push(Difference { path: path.to_vec(), what });
        Vec::new()
    }
}

/// Children of two directories side by side; both are in name order.
fn pairs<'a>(path: &[u8], mut first: &'a [Entry], mut second: &'a [Entry]) -> Vec<Pair<'a>> {
    let below = |name: &[u8]| if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() };
    let mut pairs = Vec::new();
    loop {
        let order = match (first.first(), second.first()) {
            (None, None) => return pairs,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(one), Some(other)) => one.name.cmp(&other.name),
        };
        let take = |entries: &mut &'a [Entry], takes: bool| {
            let (entry, rest) = entries.split_first().filter(|_| takes)?;
            *entries = rest;
            Some(entry)
        };
        let one = take(&mut first, order.is_le());
        let other = take(&mut second, order.is_ge());
        let name = one.or(other).map(|entry| below(&entry.name)).unwrap_or_default();
        pairs.push((name, one, other));
    }
}

fn kind(node: &Node) -> &'static str {
    match node {
        Node::Directory { .. } => "directory",
        Node::Regular { .. } => "file",
        Node::Symlink { .. } => "symlink",
    }
}

/// For terminals: a builder chooses names and targets.
fn shown(bytes: &[u8]) -> String {
    let cut = &bytes[..bytes.len().min(SHOWN_MAX)];
    let text = cut.escape_ascii().to_string();
    if cut.len() < bytes.len() { text + "..." } else { text }
}

impl Difference {
    /// In one line. `first` and `second` are what people call the trees.
    pub fn describe(&self, first: &str, second: &str) -> String {
        let path = if self.path.is_empty() { "the output itself".to_owned() } else { shown(&self.path) };
        let what = match &self.what {
            What::OnlyInFirst => format!("only in {first}"),
            What::OnlyInSecond => format!("only in {second}"),
            What::Kind { first: one, second: other } => format!("a {one} in {first}, a {other} in {second}"),
            What::Executable { first: true } => format!("executable only in {first}"),
            What::Executable { first: false } => format!("executable only in {second}"),
            What::Target { first: one, second: other } => {
                format!("points to '{}' in {first}, to '{}' in {second}", shown(one), shown(other))
            }
            What::Contents { byte, first_size, second_size } if first_size == second_size => {
                format!("contents differ from byte {byte} on, of {first_size}")
            }
            What::Contents { byte, first_size, second_size } => {
                format!("contents differ from byte {byte} on, of {first_size} in {first} and {second_size} in {second}")
            }
        };
        format!("{path}: {what}")
    }
}
