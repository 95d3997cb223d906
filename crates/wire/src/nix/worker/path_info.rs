//! Path infos as the worker protocol has them.

use crate::nix::content_address::ContentAddress;
use crate::nix::hash::{Hash, HashAlgo};
use crate::nix::path_info::PathInfo;
use crate::nix::proto::{Codec, ProtoError, Reader, Signatures, Writer, write_signatures};
use crate::nix::signature::Signature;
use crate::nix::store_path::StorePath;
use std::collections::BTreeSet;
use std::io::{self, Read, Write};

/// First minor version with `ultimate`, signatures and content address.
const TRUST_FIELDS_SINCE: u8 = 16;

/// A [`PathInfo`] without its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnkeyedPathInfo {
    pub deriver: Option<StorePath>,
    pub nar_hash: [u8; 32],
    pub references: BTreeSet<StorePath>,
    pub registration_time: u64,
    pub nar_size: u64,
    pub ultimate: bool,
    pub signatures: BTreeSet<Signature>,
    pub ca: Option<ContentAddress>,
}

impl UnkeyedPathInfo {
    pub fn with_path(self, path: StorePath) -> PathInfo {
        let Self { deriver, nar_hash, references, registration_time, nar_size, ultimate, signatures, ca } = self;
        PathInfo { path, deriver, nar_hash, nar_size, references, registration_time, ultimate, signatures, ca }
    }

    /// `trust_fields` says whether `ultimate`, signatures and content address are there.
    pub(crate) fn read_fields<R: Read>(r: &mut Reader<R>, trust_fields: bool) -> Result<Self, ProtoError> {
        let deriver = r.get()?;
        let nar_hash = r.token("NAR hash", |text, _| Hash::parse(text, HashAlgo::Sha256))?;
        let nar_hash = nar_hash.as_sha256().ok_or_else(|| ProtoError::invalid("NAR hash", nar_hash))?;
        let (references, registration_time, nar_size) = (r.get()?, r.get()?, r.get()?);
        let mut info = UnkeyedPathInfo {
            deriver,
            nar_hash,
            references,
            registration_time,
            nar_size,
            ultimate: false,
            signatures: BTreeSet::new(),
            ca: None,
        };
        if trust_fields {
            info.ultimate = r.get()?;
            Signatures(info.signatures) = r.get()?;
            info.ca = r.get()?;
        }
        Ok(info)
    }

    /// Writes what [`Self::read_fields`] reads. The NAR hash is base 16 without prefix.
    pub(crate) fn write_fields<W: Write>(&self, w: &mut Writer<W>, trust_fields: bool) -> io::Result<()> {
        w.put(&self.deriver)?;
        w.string(&Hash::sha256(self.nar_hash).to_base16())?;
        w.put(&self.references)?;
        w.u64(self.registration_time)?;
        w.u64(self.nar_size)?;
        if trust_fields {
            w.bool(self.ultimate)?;
            write_signatures(&self.signatures, w)?;
            w.put(&self.ca)?;
        }
        Ok(())
    }
}

impl From<PathInfo> for UnkeyedPathInfo {
    fn from(info: PathInfo) -> Self {
        let PathInfo { path: _, deriver, nar_hash, nar_size, references, registration_time, ultimate, signatures, ca } =
            info;
        Self { deriver, nar_hash, references, registration_time, nar_size, ultimate, signatures, ca }
    }
}

impl Codec for UnkeyedPathInfo {
    fn read<R: Read>(r: &mut Reader<R>) -> Result<Self, ProtoError> {
        let trust_fields = r.dialect().minor >= TRUST_FIELDS_SINCE;
        Self::read_fields(r, trust_fields)
    }

    fn write<W: Write>(&self, w: &mut Writer<W>) -> io::Result<()> {
        let trust_fields = w.dialect().minor >= TRUST_FIELDS_SINCE;
        self.write_fields(w, trust_fields)
    }
}

/// False, or true and the info.
impl Codec for Option<UnkeyedPathInfo> {
    fn read<R: Read>(r: &mut Reader<R>) -> Result<Self, ProtoError> {
        match r.get()? {
            true => Ok(Some(r.get()?)),
            false => Ok(None),
        }
    }

    fn write<W: Write>(&self, w: &mut Writer<W>) -> io::Result<()> {
        w.bool(self.is_some())?;
        self.iter().try_for_each(|info| w.put(info))
    }
}

/// The path, then the rest.
impl Codec for PathInfo {
    fn read<R: Read>(r: &mut Reader<R>) -> Result<Self, ProtoError> {
        let path = r.get()?;
        Ok(r.get::<UnkeyedPathInfo>()?.with_path(path))
    }

    fn write<W: Write>(&self, w: &mut Writer<W>) -> io::Result<()> {
        w.put(&self.path)?;
        w.put(&UnkeyedPathInfo::from(self.clone()))
    }
}
