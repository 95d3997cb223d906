//! A tree to the offsets its NAR has.

use super::wire::{WireEntry, WireNode};
use super::{IndexBuilder, NarIndex};
use crate::nix::nar::{
    CLOSE, EXECUTABLE_CONTENTS, NAME, NODE, NarError, NarLimits, NarSink, OFFSET_MAX, START, TARGET, check_name,
    check_target, str_len,
};

/// Repeats the events of a parser over the NAR of a tree, given its entries in NAR order.
pub(super) struct Replay {
    builder: IndexBuilder,
    /// After the `str("type")` of the node that comes next.
    offset: u64,
    /// For each open directory the children still to come and the last name.
    open: Vec<(u32, Vec<u8>)>,
    begun: bool,
}

impl Replay {
    pub(super) fn new() -> Self {
        Replay { builder: IndexBuilder::new(), offset: START.len() as u64, open: Vec::new(), begun: false }
    }

    pub(super) fn finish(self) -> Result<NarIndex, NarError> {
        match self.open.is_empty() {
            true => self.builder.finish(self.offset),
            false => Err(NarError::Truncated { offset: self.offset }),
        }
    }

    pub(super) fn entry(&mut self, entry: WireEntry) -> Result<(), NarError> {
        let limits = NarLimits::ANY_RELEASE;
        let name = &*entry.name.0;
        self.begin(name, &limits)?;
        match entry.node {
            WireNode::Directory { children } => {
                self.text("directory")?;
                self.builder.directory(name, self.offset)?;
                self.open.push((children, Vec::new()));
            }
            WireNode::Regular { size } => self.regular(name, false, size)?,
            WireNode::Executable { size } => self.regular(name, true, size)?,
            WireNode::Symlink { target } => {
                check_target(&target.0, &limits, self.offset)?;
                self.text("symlink")?;
                self.fixed(&TARGET)?;
                self.advance(str_len(target.0.len() as u64))?;
                self.builder.symlink(name, &target.0, self.offset)?;
                self.node_ended()?;
            }
        }
        while let Some((0, _)) = self.open.last() {
            self.open.pop();
            self.fixed(&CLOSE)?;
            self.builder.end_directory(self.offset)?;
            self.entry_ended()?;
        }
        Ok(())
    }

    /// Everything before the kind of a node.
    fn begin(&mut self, name: &[u8], limits: &NarLimits) -> Result<(), NarError> {
        let limit = limits.depth;
        if self.open.len() >= limit {
            return Err(NarError::Depth { limit });
        }
        match self.open.last_mut() {
            None if self.begun => return Err(NarError::Order("a node follows the root")),
            None if !name.is_empty() => return Err(NarError::Order("the root has a name")),
            None => self.begun = true,
            Some((left, last)) => {
                check_name(name, limits)?;
                if name <= last.as_slice() {
                    return Err(NarError::Unsorted(name.into()));
                }
                *left -= 1;
                last.clear();
                last.extend_from_slice(name);
                self.text("entry")?;
                self.fixed(&NAME)?;
                self.advance(str_len(name.len() as u64))?;
                self.fixed(&NODE)?;
            }
        }
        Ok(())
    }

    fn regular(&mut self, name: &[u8], executable: bool, size: u64) -> Result<(), NarError> {
        self.text("regular")?;
        if executable {
            self.text("executable")?;
            self.fixed(&EXECUTABLE_CONTENTS)?;
        } else {
            self.text("contents")?;
        }
        self.fixed(&size.to_le_bytes())?;
        let offset = self.offset;
        self.advance(size.checked_next_multiple_of(8))?;
        self.builder.regular(name, executable, size, offset)?;
        self.node_ended()
    }

    /// The `)` of a file or symlink, and what follows it.
    fn node_ended(&mut self) -> Result<(), NarError> {
        self.fixed(&CLOSE)?;
        self.entry_ended()
    }

    /// The `)` of an entry, which the root is not.
    fn entry_ended(&mut self) -> Result<(), NarError> {
        match self.open.is_empty() {
            true => Ok(()),
            false => self.fixed(&CLOSE),
        }
    }

    fn text(&mut self, text: &str) -> Result<(), NarError> {
        self.advance(str_len(text.len() as u64))
    }

    fn fixed(&mut self, block: &[u8]) -> Result<(), NarError> {
        self.advance(Some(block.len() as u64))
    }

    fn advance(&mut self, len: Option<u64>) -> Result<(), NarError> {
        let offset = self.offset;
        match len.and_then(|len| offset.checked_add(len)) {
            Some(next) if next <= OFFSET_MAX => {
                self.offset = next;
                Ok(())
            }
            _ => Err(NarError::Size { size: len.unwrap_or(u64::MAX), offset }),
        }
    }
}
