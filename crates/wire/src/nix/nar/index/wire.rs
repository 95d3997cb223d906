//! The encoded form of an index: NAR order, child counts, nothing that can contradict the rest.

use super::replay::Replay;
use super::{ENTRIES_MAX, NarIndex, Node};
use crate::nix::nar::NarError;
use serde::de::{Error, SeqAccess, Visitor};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::borrow::Cow;
use std::fmt;

#[derive(Serialize, Deserialize)]
pub(super) struct WireEntry<'a> {
    #[serde(borrow)]
    pub name: Bytes<'a>,
    #[serde(borrow)]
    pub node: WireNode<'a>,
}

#[derive(Serialize, Deserialize)]
pub(super) enum WireNode<'a> {
    Directory {
        children: u32,
    },
    Regular {
        size: u64,
    },
    Executable {
        size: u64,
    },
    Symlink {
        #[serde(borrow)]
        target: Bytes<'a>,
    },
}

impl Serialize for NarIndex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut seq = serializer.serialize_seq(Some(self.entries().len()))?;
        for (_, entry) in self.walk() {
            let node = match &entry.node {
                Node::Directory { children } => WireNode::Directory { children: children.end - children.start },
                &Node::Regular { executable: false, size, .. } => WireNode::Regular { size },
                &Node::Regular { executable: true, size, .. } => WireNode::Executable { size },
                Node::Symlink { target } => WireNode::Symlink { target: Bytes(Cow::Borrowed(target)) },
            };
            seq.serialize_element(&WireEntry { name: Bytes(Cow::Borrowed(&entry.name)), node })?;
        }
        seq.end()
    }
}

/// Computes the offsets; refuses what no NAR has.
impl<'de> Deserialize<'de> for NarIndex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = NarIndex;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("the entries of a NAR in its order")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<NarIndex, A::Error> {
                if seq.size_hint().is_some_and(|len| len > ENTRIES_MAX) {
                    return Err(A::Error::custom(NarError::Entries { limit: ENTRIES_MAX }));
                }
                let mut replay = Replay::new();
                while let Some(entry) = seq.next_element()? {
                    replay.entry(entry).map_err(A::Error::custom)?;
                }
                replay.finish().map_err(A::Error::custom)
            }
        }

        deserializer.deserialize_seq(Entries)
    }
}

/// A byte string, which serde would take for a sequence.
pub(super) struct Bytes<'a>(pub Cow<'a, [u8]>);

impl Serialize for Bytes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Bytes<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyBytes;

        impl<'de> Visitor<'de> for AnyBytes {
            type Value = Bytes<'de>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_borrowed_bytes<E: Error>(self, bytes: &'de [u8]) -> Result<Self::Value, E> {
                Ok(Bytes(Cow::Borrowed(bytes)))
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
                Ok(Bytes(Cow::Owned(bytes.to_vec())))
            }
        }

        deserializer.deserialize_bytes(AnyBytes)
    }
}
