//! The commands: number, request, reply. A `Done` reply is the word 1, a `()` reply is nothing.

mod results;

pub use results::{BuildOptions, BuildPathsReply, PathInfos, ServeBuildResult, read_path_info, write_path_info};

use crate::nix::derivation::BasicDerivation;
use crate::nix::derived_path::DerivedPath;
use crate::nix::path_info::PathInfo;
use crate::nix::proto::{Codec, Done, ProtoError, Reader, Writer, calls, read_derivation, write_derivation};
use crate::nix::store_path::StorePath;
use crate::nix::worker::UnkeyedPathInfo;
use std::collections::BTreeSet;
use std::io::{self, Read, Write};

calls! {
    /// `lock` adds temporary roots for all paths, `substitute` fetches the missing ones first.
    1 QueryValidPaths { lock: bool, substitute: bool, paths: BTreeSet<StorePath> } -> BTreeSet<StorePath>;
    2 QueryPathInfos { paths: BTreeSet<StorePath> } -> PathInfos;
    /// After the reply: the bare NAR.
    3 DumpStorePath { path: StorePath } -> ();
    /// After the request: what [`super::ExportReader`] reads.
    4 ImportPaths {} -> Done;
    /// A `.drv` without outputs means all of them.
    6 BuildPaths { paths: Vec<DerivedPath>, options: BuildOptions } -> BuildPathsReply;
    7 QueryClosure { include_outputs: bool, paths: BTreeSet<StorePath> } -> BTreeSet<StorePath>;
    8 BuildDerivation special -> ServeBuildResult;
    9 AddToStoreNar special -> Done;
}

/// Command 8: builds exactly this, whose inputs are all valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildDerivation {
    pub path: StorePath,
    pub drv: BasicDerivation,
    pub options: BuildOptions,
}

impl Codec for BuildDerivation {
    fn read<R: Read>(r: &mut Reader<R>) -> Result<Self, ProtoError> {
        let path = r.get()?;
        let drv = read_derivation(&path, r)?;
        Ok(BuildDerivation { path, drv, options: r.get()? })
    }

    fn write<W: Write>(&self, w: &mut Writer<W>) -> io::Result<()> {
        w.put(&self.path)?;
        write_derivation(&self.drv, w)?;
        w.put(&self.options)
    }
}

/// Command 9. Exactly `info.nar_size` bytes of NAR follow, with no padding of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddToStoreNar {
    pub info: PathInfo,
}

impl Codec for AddToStoreNar {
    fn read<R: Read>(r: &mut Reader<R>) -> Result<Self, ProtoError> {
        let path = r.get()?;
        let info = UnkeyedPathInfo::read_fields(r, true)?.with_path(path);
        match info.nar_size {
            0 => Err(ProtoError::Range { what: "NAR size", value: 0 }),
            _ => Ok(AddToStoreNar { info }),
        }
    }

    fn write<W: Write>(&self, w: &mut Writer<W>) -> io::Result<()> {
        w.put(&self.info.path)?;
        UnkeyedPathInfo::from(self.info.clone()).write_fields(w, true)
    }
}
