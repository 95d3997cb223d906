//! Builds an index from the events of a parser.

use super::{ENTRIES_MAX, Entry, NarIndex, Node, TEXT_LEN_MAX};
use crate::nix::nar::{NarError, NarSink};

/// A sink that keeps a NAR's tree.
#[derive(Debug, Default)]
pub struct IndexBuilder {
    entries: Vec<Entry>,
    /// For each open directory its name and the children seen so far.
    open: Vec<(Box<[u8]>, Vec<Entry>)>,
    root: Option<Entry>,
    count: usize,
    /// Bytes of names and targets.
    text_len: usize,
}

impl IndexBuilder {
    pub fn new() -> Self {
        IndexBuilder::default()
    }

    /// The index of the NAR whose events were received, `nar_size` bytes long
    /// ([`super::super::parse::NarParser::offset`]). [`NarError::Truncated`] if its root has not
    /// ended.
    pub fn finish(mut self, nar_size: u64) -> Result<NarIndex, NarError> {
        let root = self.root.ok_or(NarError::Truncated { offset: nar_size })?;
        self.entries.push(root);
        self.entries.shrink_to_fit();
        Ok(NarIndex { entries: self.entries, nar_size })
    }

    /// Counts an entry with its name, and its target if it has one.
    fn count(&mut self, name: &[u8], target: &[u8]) -> Result<(), NarError> {
        self.count += 1;
        self.text_len += name.len() + target.len();
        if self.count > ENTRIES_MAX {
            return Err(NarError::Entries { limit: ENTRIES_MAX });
        }
        match self.text_len <= TEXT_LEN_MAX {
            true => Ok(()),
            false => Err(NarError::Text { limit: TEXT_LEN_MAX }),
        }
    }

    fn add(&mut self, entry: Entry) {
        match self.open.last_mut() {
            Some((_, children)) => children.push(entry),
            None => self.root = Some(entry),
        }
    }
}

impl NarSink for IndexBuilder {
    type Error = NarError;

    fn directory(&mut self, name: &[u8], _offset: u64) -> Result<(), NarError> {
        self.count(name, b"")?;
        self.open.push((name.into(), Vec::new()));
        Ok(())
    }

    fn end_directory(&mut self, _offset: u64) -> Result<(), NarError> {
        let Some((name, children)) = self.open.pop() else {
            return Err(NarError::Order("a directory ends that was not begun"));
        };
        // `count` keeps entry numbers within u32.
        let start = self.entries.len() as u32;
        self.entries.extend(children);
        let children = start..self.entries.len() as u32;
        let node = Node::Directory { children };
        self.add(Entry { name, node });
        Ok(())
    }

    fn regular(&mut self, name: &[u8], executable: bool, size: u64, offset: u64) -> Result<(), NarError> {
        self.count(name, b"")?;
        let node = Node::Regular { executable, size, offset };
        self.add(Entry { name: name.into(), node });
        Ok(())
    }

    fn symlink(&mut self, name: &[u8], target: &[u8], _offset: u64) -> Result<(), NarError> {
        self.count(name, target)?;
        let node = Node::Symlink { target: target.into() };
        self.add(Entry { name: name.into(), node });
        Ok(())
    }
}
