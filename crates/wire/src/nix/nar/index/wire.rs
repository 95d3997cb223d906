//! The encoded form of an index: NAR order, child counts, nothing that can contradict the rest.

use super::{ENTRIES_MAX, IndexBuilder, NarIndex, Node};
use crate::nix::nar::{
    CLOSE, EXECUTABLE_CONTENTS, NAME, NODE, NarError, NarLimits, NarSink, START, TARGET, check_name, check_target,
    str_len,
};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
pub(super) struct WireIndex(Vec<WireEntry>);

#[derive(Serialize, Deserialize)]
struct WireEntry {
    name: Box<[u8]>,
    node: WireNode,
}

#[derive(Serialize, Deserialize)]
enum WireNode {
    Directory { children: u32 },
    Regular { size: u64 },
    Executable { size: u64 },
    Symlink { target: Box<[u8]> },
}

impl From<NarIndex> for WireIndex {
    fn from(index: NarIndex) -> Self {
        let encode = |node: &Node| match node {
            Node::Directory { children } => WireNode::Directory { children: children.end - children.start },
            Node::Regular { executable: false, size, .. } => WireNode::Regular { size: *size },
            Node::Regular { size, .. } => WireNode::Executable { size: *size },
            Node::Symlink { target } => WireNode::Symlink { target: target.clone() },
        };
        let entries = index.walk().map(|(_, entry)| WireEntry { name: entry.name.clone(), node: encode(&entry.node) });
        WireIndex(entries.collect())
    }
}

impl TryFrom<WireIndex> for NarIndex {
    type Error = NarError;

    fn try_from(wire: WireIndex) -> Result<Self, NarError> {
        if wire.0.len() > ENTRIES_MAX {
            return Err(NarError::Entries { limit: ENTRIES_MAX });
        }
        let mut replay = Replay { builder: IndexBuilder::new(), offset: START.len() as u64, open: Vec::new() };
        let mut root_seen = false;
        for entry in wire.0 {
            if root_seen && replay.open.is_empty() {
                return Err(NarError::Order("an entry follows the root"));
            }
            root_seen = true;
            replay.entry(entry)?;
        }
        match replay.open.is_empty() {
            true => replay.builder.finish(replay.offset),
            false => Err(NarError::Truncated { offset: replay.offset }),
        }
    }
}

/// Repeats the events of a parser over a NAR of the same tree.
struct Replay {
    builder: IndexBuilder,
    /// After the `str("type")` of the node that comes next.
    offset: u64,
    /// For each open directory the children still to come and the last name.
    open: Vec<(u32, Box<[u8]>)>,
}

impl Replay {
    fn entry(&mut self, entry: WireEntry) -> Result<(), NarError> {
        let limits = NarLimits::ANY_RELEASE;
        if self.open.len() >= limits.depth {
            let limit = limits.depth;
            return Err(NarError::Depth { limit });
        }
        match self.open.last_mut() {
            None if entry.name.is_empty() => {}
            None => return Err(NarError::Name(entry.name.into())),
            Some((left, last)) => {
                check_name(&entry.name, &limits)?;
                if entry.name <= *last {
                    return Err(NarError::Unsorted(entry.name.into()));
                }
                *left -= 1;
                last.clone_from(&entry.name);
                self.text("entry")?;
                self.fixed(&NAME)?;
                self.advance(str_len(entry.name.len() as u64))?;
                self.fixed(&NODE)?;
            }
        }
        match entry.node {
            WireNode::Directory { children } => {
                self.text("directory")?;
                self.builder.directory(&entry.name, self.offset)?;
                self.open.push((children, Box::default()));
            }
            WireNode::Regular { size } => self.regular(&entry.name, false, size)?,
            WireNode::Executable { size } => self.regular(&entry.name, true, size)?,
            WireNode::Symlink { target } => {
                check_target(&target, &limits, self.offset)?;
                self.text("symlink")?;
                self.fixed(&TARGET)?;
                self.advance(str_len(target.len() as u64))?;
                self.builder.symlink(&entry.name, &target, self.offset)?;
                self.node_ended()?;
            }
        }
        self.end_directories()
    }

    fn regular(&mut self, name: &[u8], executable: bool, size: u64) -> Result<(), NarError> {
        self.text("regular")?;
        if executable {
            self.text("executable")?;
            self.fixed(&EXECUTABLE_CONTENTS)?;
        } else {
            self.text("contents")?;
        }
        self.fixed(&[0; 8])?;
        let offset = self.offset;
        self.advance(size.checked_next_multiple_of(8))?;
        self.builder.regular(name, executable, size, offset)?;
        self.node_ended()
    }

    /// The `)` of a node and, below the root, of its entry.
    fn node_ended(&mut self) -> Result<(), NarError> {
        self.fixed(&CLOSE)?;
        match self.open.is_empty() {
            true => Ok(()),
            false => self.fixed(&CLOSE),
        }
    }

    fn end_directories(&mut self) -> Result<(), NarError> {
        while let Some((0, _)) = self.open.last() {
            self.open.pop();
            self.builder.end_directory(self.offset)?;
            self.node_ended()?;
        }
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<(), NarError> {
        self.advance(str_len(text.len() as u64))
    }

    fn fixed(&mut self, block: &[u8]) -> Result<(), NarError> {
        self.advance(Some(block.len() as u64))
    }

    /// Moves on by `len` bytes; the offset stays where a parser would accept it.
    fn advance(&mut self, len: Option<u64>) -> Result<(), NarError> {
        let offset = self.offset;
        let next = len.and_then(|len| offset.checked_add(len));
        match next {
            Some(next) if next <= u64::MAX / 2 + 8 => {
                self.offset = next;
                Ok(())
            }
            _ => Err(NarError::Size { size: len.unwrap_or(u64::MAX), offset }),
        }
    }
}
