//! Layouts of the values that both protocols use.

use super::{Codec, ProtoError, Reader, STRING_LEN_MAX, Writer};
use crate::nix::content_address::{CaMethodAlgo, ContentAddress};
use crate::nix::derived_path::DerivedPath;
use crate::nix::signature::Signature;
use crate::nix::store_path::StorePath;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};

/// First minor version of the worker protocol in which an opaque `.drv` is the file itself.
const DERIVED_PATHS_SINCE: u8 = 30;

/// The literal 1 that answers a request which has nothing to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done;

impl Codec for Done {
    fn read<R: Read>(r: &mut Reader<R>) -> Result<Self, ProtoError> {
        match r.u64()? {
            1 => Ok(Done),
            value => Err(ProtoError::Range { what: "end of a reply", value }),
        }
    }

    fn write<W: Write>(&self, w: &mut Writer<W>) -> io::Result<()> {
        w.u64(1)
    }
}

/// No bytes at all.
impl Codec for () {
    fn read<R: Read>(_: &mut Reader<R>) -> Result<Self, ProtoError> {
        Ok(())
    }

    fn write<W: Write>(&self, _: &mut Writer<W>) -> io::Result<()> {
        Ok(())
    }
}

impl Codec for u64 {
    fn read<R: Read>(r: &mut Reader<R>) -> Result<Self, ProtoError> {
        r.u64()
    }

    fn write<W: Write>(&self, w: &mut Writer<W>) -> io::Result<()> {
        w.u64(*self)
    }
}

impl Codec for bool {
    fn read<R: Read>(r: &mut Reader<R>) -> Result<Self, ProtoError> {
        Ok(r.u64()? != 0)
    }

    fn write<W: Write>(&self, w: &mut Writer<W>) -> io::Result<()> {
        w.bool(*self)
    }
}

impl Codec for Vec<u8> {
    fn read<R: Read>(r: &mut Reader<R>) -> Result<Self, ProtoError> {
        r.bytes("string", STRING_LEN_MAX)
    }

    fn write<W: Write>(&self, w: &mut Writer<W>) -> io::Result<()> {
        w.bytes(self)
    }
}

impl Codec for String {
    fn read<R: Read>(r: &mut Reader<R>) -> Result<Self, ProtoError> {
        r.string("string", STRING_LEN_MAX)
    }

    fn write<W: Write>(&self, w: &mut Writer<W>) -> io::Result<()> {
        w.string(self)
    }
}

/// A full path.
impl Codec for StorePath {
    fn read<R: Read>(r: &mut Reader<R>) -> Result<Self, ProtoError> {
        r.token("store path", |text, dialect| dialect.store_dir.parse(text))
    }

    fn write<W: Write>(&self, w: &mut Writer<W>) -> io::Result<()> {
        let full = w.dialect().store_dir.print(self);
        w.string(&full)
    }
}

/// A full path, or the empty string.
impl Codec for Option<StorePath> {
    fn read<R: Read>(r: &mut Reader<R>) -> Result<Self, ProtoError> {
        r.token("store path", |text, dialect| match text {
            "" => Ok(None),
            text => dialect.store_dir.parse(text).map(Some),
        })
    }

    fn write<W: Write>(&self, w: &mut Writer<W>) -> io::Result<()> {
        match self {
            Some(path) => w.put(path),
            None => w.string(""),
        }
    }
}

impl Codec for ContentAddress {
    fn read<R: Read>(r: &mut Reader<R>) -> Result<Self, ProtoError> {
        r.token("content address", |text, _| text.parse())
    }

    fn write<W: Write>(&self, w: &mut Writer<W>) -> io::Result<()> {
        w.string(&self.to_string())
    }
}

/// The text of a content address, or the empty string.
impl Codec for Option<ContentAddress> {
    fn read<R: Read>(r: &mut Reader<R>) -> Result<Self, ProtoError> {
        r.token("content address", |text, _| match text {
            "" => Ok(None),
            text => text.parse().map(Some),
        })
    }

    fn write<W: Write>(&self, w: &mut Writer<W>) -> io::Result<()> {
        match self {
            Some(ca) => w.put(ca),
            None => w.string(""),
        }
    }
}

/// As in `fixed:r:sha256`.
impl Codec for CaMethodAlgo {
    fn read<R: Read>(r: &mut Reader<R>) -> Result<Self, ProtoError> {
        r.token("content address method", |text, _| text.parse())
    }

    fn write<W: Write>(&self, w: &mut Writer<W>) -> io::Result<()> {
        w.string(&self.to_string())
    }
}

/// The worker protocol's form.
impl Codec for DerivedPath {
    fn read<R: Read>(r: &mut Reader<R>) -> Result<Self, ProtoError> {
        r.token("derived path", |text, dialect| match dialect.minor >= DERIVED_PATHS_SINCE {
            true => DerivedPath::parse(&dialect.store_dir, text),
            false => DerivedPath::parse_pre_30(&dialect.store_dir, text),
        })
    }

    fn write<W: Write>(&self, w: &mut Writer<W>) -> io::Result<()> {
        let dialect = w.dialect();
        let text = match dialect.minor >= DERIVED_PATHS_SINCE {
            true => self.print(&dialect.store_dir),
            false => self.print_pre_30(&dialect.store_dir).map_err(inexpressible)?,
        };
        w.string(&text)
    }
}

/// An error for a value that the dialect has no layout for.
pub(crate) fn inexpressible(error: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, error.to_string())
}

/// A set of `<key name>:<base64>`, written in the order of these texts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Signatures(pub BTreeSet<Signature>);

impl Codec for Signatures {
    fn read<R: Read>(r: &mut Reader<R>) -> Result<Self, ProtoError> {
        let mut signatures = BTreeSet::new();
        for _ in 0..r.count()? {
            signatures.insert(r.token("signature", |text, _| text.parse())?);
        }
        Ok(Signatures(signatures))
    }

    fn write<W: Write>(&self, w: &mut Writer<W>) -> io::Result<()> {
        write_signatures(&self.0, w)
    }
}

/// Writes what [`Signatures`] reads.
pub(crate) fn write_signatures<W: Write>(signatures: &BTreeSet<Signature>, w: &mut Writer<W>) -> io::Result<()> {
    let texts: BTreeSet<String> = signatures.iter().map(Signature::to_string).collect();
    w.put(&texts)
}

impl<T: Codec> Codec for Vec<T> {
    fn read<R: Read>(r: &mut Reader<R>) -> Result<Self, ProtoError> {
        (0..r.count()?).map(|_| r.get()).collect()
    }

    fn write<W: Write>(&self, w: &mut Writer<W>) -> io::Result<()> {
        w.u64(self.len() as u64)?;
        self.iter().try_for_each(|value| w.put(value))
    }
}

impl<T: Codec + Ord> Codec for BTreeSet<T> {
    fn read<R: Read>(r: &mut Reader<R>) -> Result<Self, ProtoError> {
        (0..r.count()?).map(|_| r.get()).collect()
    }

    fn write<W: Write>(&self, w: &mut Writer<W>) -> io::Result<()> {
        w.u64(self.len() as u64)?;
        self.iter().try_for_each(|value| w.put(value))
    }
}

impl<K: Codec + Ord, V: Codec> Codec for BTreeMap<K, V> {
    fn read<R: Read>(r: &mut Reader<R>) -> Result<Self, ProtoError> {
        (0..r.count()?).map(|_| Ok((r.get()?, r.get()?))).collect()
    }

    fn write<W: Write>(&self, w: &mut Writer<W>) -> io::Result<()> {
        w.u64(self.len() as u64)?;
        self.iter().try_for_each(|(key, value)| {
            w.put(key)?;
            w.put(value)
        })
    }
}
