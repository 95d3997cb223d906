//! The numbers that the nodes of paths have, written down for whoever serves the mount next.
//!
//! A line for each path, before any node of it is given to the kernel: the number of its first node, how many it has, its
//! name, and the name of its manifest, since a path of the same name may be another one later. The file is in memory: neither it nor the mount outlives the machine.

use rustix::fs::{MemfdFlags, fstat, memfd_create};
use shoal_wire::mesh::manifest::ContentRoot;
use std::collections::HashMap;
use std::fmt::Write;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

/// Some two million paths. Beyond it no more are shown.
const BYTES_MAX: u64 = 256 << 20;

/// What is written down.
pub struct Numbers {
    file: File,
    len: u64,
}

/// Numbers that an earlier server gave to a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reserved {
    pub base: u32,
    pub len: u32,
    pub name: Box<str>,
    /// Not written down by earlier versions.
    pub root: Option<ContentRoot>,
}

impl Numbers {
    pub fn new() -> io::Result<Numbers> {
        let file = memfd_create("numbers of nodes", MemfdFlags::CLOEXEC)?;
        Ok(Numbers { file: file.into(), len: 0 })
    }

    /// Goes on with a file, and what it says.
    pub fn reopen(file: OwnedFd) -> io::Result<(Numbers, Vec<Reserved>)> {
        let written = u64::try_from(fstat(&file)?.st_size).unwrap_or(0);
        if written > BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "too many numbers of nodes are written down"));
        }
        let file = File::from(file);
        let mut bytes = vec![0; written as usize];
        file.read_exact_at(&mut bytes, 0)?;
        // The last line may be one that was not written to its end: then none of its numbers was given out.
        let len = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let text = str::from_utf8(&bytes[..len]).map_err(|_| bad())?;
        let reserved = text.lines().map(|line| parse(line).ok_or_else(bad)).collect::<io::Result<_>>()?;
        Ok((Numbers { file, len: len as u64 }, reserved))
    }

    /// For whoever keeps it.
    pub fn share(&self) -> io::Result<OwnedFd> {
        Ok(self.file.try_clone()?.into())
    }

    pub fn note(&mut self, base: u32, len: u32, name: &str, root: &ContentRoot) -> io::Result<()> {
        let mut line = String::new();
        // A string takes all that is written to it.
        let _ = writeln!(line, "{base} {len} {name} {}", blake3::Hash::from_bytes(*root).to_hex());
        if self.len + line.len() as u64 > BYTES_MAX {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.file.write_all_at(line.as_bytes(), self.len)?;
        self.len += line.len() as u64;
        Ok(())
    }
}

fn parse(line: &str) -> Option<Reserved> {
    let mut words = line.splitn(4, ' ');
    let (base, len) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let name = words.next()?.into();
    let root = words.next().map(blake3::Hash::from_hex).transpose().ok()?;
    Some(Reserved { base, len, name, root: root.map(|root| *root.as_bytes()) })
}

fn bad() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the numbers of nodes that were written down cannot be read")
}

/// Numbers of paths that are not in memory yet.
#[derive(Default)]
pub struct Reservations {
    /// In the order of their numbers.
    by_base: Vec<Reserved>,
    /// The last numbers that each name had: what it had before means what was deleted since.
    by_name: HashMap<Box<str>, Span>,
}

#[derive(Clone, Copy)]
struct Span {
    base: u32,
    len: u32,
    root: Option<ContentRoot>,
}

impl Reservations {
    pub fn new(mut reserved: Vec<Reserved>) -> Reservations {
        reserved.sort_by_key(|reserved| reserved.base);
        let by_name = reserved
            .iter()
            .map(|one| (one.name.clone(), Span { base: one.base, len: one.len, root: one.root }))
            .collect();
        Reservations { by_base: reserved, by_name }
    }

    /// The number after the last.
    pub fn end(&self) -> u64 {
        self.by_base.iter().map(|one| u64::from(one.base) + u64::from(one.len)).max().unwrap_or(0)
    }

    /// The name of the path that a node is of.
    pub fn name(&self, node: u64) -> Option<&str> {
        let after = self.by_base.partition_point(|one| u64::from(one.base) <= node);
        let one = self.by_base.get(after.checked_sub(1)?)?;
        let is_current = self.by_name.get(&one.name).is_some_and(|span| span.base == one.base);
        (is_current && node < u64::from(one.base) + u64::from(one.len)).then_some(&one.name)
    }

    pub fn span(&self, name: &str) -> Option<(u32, u32)> {
        self.by_name.get(name).map(|span| (span.base, span.len))
    }

    /// The number of the first node of a path with so many, which is in memory from now on. `None` where the name meant
    /// something else before: the kernel may have contents of that under its numbers.
    pub fn take(&mut self, name: &str, len: u32, root: &ContentRoot) -> Option<u32> {
        let span = self.by_name.remove(name)?;
        (span.len == len && span.root.is_none_or(|before| before == *root)).then_some(span.base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_down_is_read_and_a_half_line_is_not() {
        let mut numbers = Numbers::new().unwrap();
        numbers.note(3, 10, "a", &[1; 32]).unwrap();
        numbers.note(13, 2, "b", &[2; 32]).unwrap();
        numbers.note(15, 12, "a", &[3; 32]).unwrap();
        numbers.file.write_all_at(b"27 5", numbers.len).unwrap();
        let (mut again, reserved) = Numbers::reopen(numbers.share().unwrap()).unwrap();
        again.note(27, 1, "c", &[4; 32]).unwrap();
        let (_, more) = Numbers::reopen(again.share().unwrap()).unwrap();
        assert_eq!((reserved.len(), more.len(), &*more[3].name), (3, 4, "c"));
        let mut reservations = Reservations::new(more);
        assert_eq!((reservations.name(14), reservations.name(26)), (Some("b"), Some("a")));
        assert_eq!((reservations.name(3), reservations.name(28), reservations.end()), (None, None, 28));
        assert_eq!((reservations.take("a", 12, &[3; 32]), reservations.take("a", 12, &[3; 32])), (Some(15), None));
        assert_eq!(reservations.take("b", 2, &[9; 32]), None, "it is another one now");
    }

    #[test]
    fn lines_of_an_earlier_version_go_on() {
        let numbers = Numbers::new().unwrap();
        numbers.file.write_all_at(b"3 10 a\n", 0).unwrap();
        let (_, reserved) = Numbers::reopen(numbers.share().unwrap()).unwrap();
        assert_eq!(Reservations::new(reserved.clone()).take("a", 10, &[1; 32]), Some(3));
        assert_eq!(Reservations::new(reserved).take("a", 9, &[1; 32]), None);
    }

    #[test]
    fn what_is_no_list_of_numbers_is_refused() {
        for text in ["x\n", "1 2\n", "1 -2 a\n", "4294967296 1 a\n", "\n", "1 1 \u{1F}\n\n", "1 1 a 00\n"] {
            let numbers = Numbers::new().unwrap();
            numbers.file.write_all_at(text.as_bytes(), 0).unwrap();
            assert!(Numbers::reopen(numbers.share().unwrap()).is_err(), "{text:?}");
        }
    }
}
