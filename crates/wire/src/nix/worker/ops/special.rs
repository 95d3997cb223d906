//! Requests and replies whose layout is more than their fields in order.

use super::{BuildMode, GcAction, SubstitutableInfo};
use crate::nix::derivation::BasicDerivation;
use crate::nix::log::Verbosity;
use crate::nix::path_info::PathInfo;
use crate::nix::proto::{
    Codec, Feature, ProtoError, Reader, Signatures, Writer, inexpressible, read_derivation, write_derivation,
    write_signatures,
};
use crate::nix::realisation::{BuildTrace, BuildTraceKey, DrvOutput, Realisation, UnkeyedRealisation};
use crate::nix::signature::Signature;
use crate::nix::store_path::StorePath;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};

/// Op 19: a client's settings. Only over unix sockets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetOptions {
    pub keep_failed: bool,
    pub keep_going: bool,
    pub try_fallback: bool,
    /// The number of a [`Verbosity`].
    pub verbosity: u64,
    pub max_build_jobs: u64,
    /// Seconds; 0 is no limit.
    pub max_silent_time: u64,
    /// Whether builders' output is shown.
    pub verbose_build: bool,
    /// 0 is all of the machine's.
    pub build_cores: u64,
    pub use_substitutes: bool,
    /// Every other setting that the client changed.
    pub overrides: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Codec for SetOptions {
    fn read<R: Read>(r: &mut Reader<R>) -> Result<Self, ProtoError> {
        let (keep_failed, keep_going, try_fallback) = (r.get()?, r.get()?, r.get()?);
        let (verbosity, max_build_jobs, max_silent_time) = (r.get()?, r.get()?, r.get()?);
        let _use_build_hook = r.u64()?;
        let verbose_build = r.u64()? == Verbosity::Error.number();
        let _log_type = r.u64()?;
        let _print_build_trace = r.u64()?;
        Ok(SetOptions {
            keep_failed,
            keep_going,
            try_fallback,
            verbosity,
            max_build_jobs,
            max_silent_time,
            verbose_build,
            build_cores: r.get()?,
            use_substitutes: r.get()?,
            overrides: r.get()?,
        })
    }

    fn write<W: Write>(&self, w: &mut Writer<W>) -> io::Result<()> {
        let build_verbosity = if self.verbose_build { Verbosity::Error } else { Verbosity::Vomit };
        for flag in [self.keep_failed, self.keep_going, self.try_fallback] {
            w.bool(flag)?;
        }
        for number in [self.verbosity, self.max_build_jobs, self.max_silent_time] {
            w.u64(number)?;
        }
        for number in [1, build_verbosity.number(), 0, 0, self.build_cores] {
            w.u64(number)?;
        }
        w.bool(self.use_substitutes)?;
        w.put(&self.overrides)
    }
}

/// Which paths a garbage collection is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GcPaths {
    Whole,
    Paths {
        paths: BTreeSet<StorePath>,
        /// Also what refers to them, while it is dead.
        delete_referrers: bool,
    },
}

/// Op 20.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CollectGarbage {
    pub action: GcAction,
    pub paths: GcPaths,
    /// Always to be refused.
    pub ignore_liveness: bool,
    /// Bytes; `u64::MAX` is no limit.
    pub max_freed: u64,
}

impl Codec for CollectGarbage {
    fn read<R: Read>(r: &mut Reader<R>) -> Result<Self, ProtoError> {
        let action = r.get()?;
        let paths = match r.dialect().has(Feature::DeleteDeadSpecificReferrers) {
            true => match r.u64()? {
                0 => GcPaths::Paths { paths: r.get()?, delete_referrers: r.get()? },
                1 => GcPaths::Whole,
                value => return Err(ProtoError::Range { what: "choice of paths", value }),
            },
            false => {
                let paths: BTreeSet<StorePath> = r.get()?;
                match paths.is_empty() && action != GcAction::DeleteSpecific {
                    true => GcPaths::Whole,
                    false => GcPaths::Paths { paths, delete_referrers: false },
                }
            }
        };
        let (ignore_liveness, max_freed) = (r.get()?, r.get()?);
        for _ in 0..3 {
            let _obsolete = r.u64()?;
        }
        Ok(CollectGarbage { action, paths, ignore_liveness, max_freed })
    }

    fn write<W: Write>(&self, w: &mut Writer<W>) -> io::Result<()> {
        w.put(&self.action)?;
        match (&self.paths, w.dialect().has(Feature::DeleteDeadSpecificReferrers)) {
            (GcPaths::Whole, true) => w.u64(1)?,
            (GcPaths::Paths { paths, delete_referrers }, true) => {
                w.u64(0)?;
                w.put(paths)?;
                w.bool(*delete_referrers)?;
            }
            (GcPaths::Whole, false) => w.u64(0)?,
            (GcPaths::Paths { delete_referrers: true, .. }, false) => {
                return Err(inexpressible("the server cannot delete referrers"));
            }
            (GcPaths::Paths { paths, .. }, false) => w.put(paths)?,
        }
        w.bool(self.ignore_liveness)?;
        for number in [self.max_freed, 0, 0, 0] {
            w.u64(number)?;
        }
        Ok(())
    }
}

/// Reply to op 20.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collected {
    /// Deleted or listed.
    pub paths: Vec<StorePath>,
    pub bytes_freed: u64,
}

impl Codec for Collected {
    fn read<R: Read>(r: &mut Reader<R>) -> Result<Self, ProtoError> {
        let reply = Collected { paths: r.get()?, bytes_freed: r.get()? };
        let _obsolete = r.u64()?;
        Ok(reply)
    }

    fn write<W: Write>(&self, w: &mut Writer<W>) -> io::Result<()> {
        w.put(&self.paths)?;
        w.u64(self.bytes_freed)?;
        w.u64(0)
    }
}

impl Codec for Option<SubstitutableInfo> {
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

/// Op 36: builds exactly this, whose inputs are all valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildDerivation {
    pub path: StorePath,
    pub drv: BasicDerivation,
    pub mode: BuildMode,
}

impl Codec for BuildDerivation {
    fn read<R: Read>(r: &mut Reader<R>) -> Result<Self, ProtoError> {
        let path = r.get()?;
        let drv = read_derivation(&path, r)?;
        Ok(BuildDerivation { path, drv, mode: r.get()? })
    }

    fn write<W: Write>(&self, w: &mut Writer<W>) -> io::Result<()> {
        w.put(&self.path)?;
        write_derivation(&self.drv, w)?;
        w.put(&self.mode)
    }
}

/// Op 37.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddSignatures {
    pub path: StorePath,
    pub signatures: BTreeSet<Signature>,
}

impl Codec for AddSignatures {
    fn read<R: Read>(r: &mut Reader<R>) -> Result<Self, ProtoError> {
        let path = r.get()?;
        let Signatures(signatures) = r.get()?;
        Ok(AddSignatures { path, signatures })
    }

    fn write<W: Write>(&self, w: &mut Writer<W>) -> io::Result<()> {
        w.put(&self.path)?;
        write_signatures(&self.signatures, w)
    }
}

/// Op 39; the NAR follows as a framed upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddToStoreNar {
    pub info: PathInfo,
    pub repair: bool,
    pub dont_check_sigs: bool,
}

impl Codec for AddToStoreNar {
    fn read<R: Read>(r: &mut Reader<R>) -> Result<Self, ProtoError> {
        Ok(AddToStoreNar { info: r.get()?, repair: r.get()?, dont_check_sigs: r.get()? })
    }

    fn write<W: Write>(&self, w: &mut Writer<W>) -> io::Result<()> {
        w.put(&self.info)?;
        w.bool(self.repair)?;
        w.bool(self.dont_check_sigs)
    }
}

/// Op 42.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegisterDrvOutput {
    /// Without [`Feature::RealisationWithPath`].
    ByHash(Realisation),
    /// With it.
    ByPath(BuildTrace),
}

impl Codec for RegisterDrvOutput {
    fn read<R: Read>(r: &mut Reader<R>) -> Result<Self, ProtoError> {
        match r.dialect().has(Feature::RealisationWithPath) {
            true => Ok(RegisterDrvOutput::ByPath(r.get()?)),
            false => Ok(RegisterDrvOutput::ByHash(r.get()?)),
        }
    }

    fn write<W: Write>(&self, w: &mut Writer<W>) -> io::Result<()> {
        match (self, w.dialect().has(Feature::RealisationWithPath)) {
            (RegisterDrvOutput::ByPath(trace), true) => w.put(trace),
            (RegisterDrvOutput::ByHash(realisation), false) => w.put(realisation),
            _ => Err(wrong_scheme()),
        }
    }
}

/// Op 43.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QueryRealisation {
    /// Without [`Feature::RealisationWithPath`].
    ByHash(DrvOutput),
    /// With it.
    ByPath(BuildTraceKey),
}

impl Codec for QueryRealisation {
    fn read<R: Read>(r: &mut Reader<R>) -> Result<Self, ProtoError> {
        match r.dialect().has(Feature::RealisationWithPath) {
            true => Ok(QueryRealisation::ByPath(r.get()?)),
            false => Ok(QueryRealisation::ByHash(r.get()?)),
        }
    }

    fn write<W: Write>(&self, w: &mut Writer<W>) -> io::Result<()> {
        match (self, w.dialect().has(Feature::RealisationWithPath)) {
            (QueryRealisation::ByPath(key), true) => w.put(key),
            (QueryRealisation::ByHash(id), false) => w.put(id),
            _ => Err(wrong_scheme()),
        }
    }
}

/// Reply to op 43, of the request's kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RealisationReply {
    ByHash(Option<Realisation>),
    ByPath(Option<UnkeyedRealisation>),
}

impl Codec for RealisationReply {
    fn read<R: Read>(r: &mut Reader<R>) -> Result<Self, ProtoError> {
        if r.dialect().has(Feature::RealisationWithPath) {
            return Ok(RealisationReply::ByPath(r.get()?));
        }
        match r.count()? {
            0 => Ok(RealisationReply::ByHash(None)),
            1 => Ok(RealisationReply::ByHash(Some(r.get()?))),
            value => Err(ProtoError::Range { what: "number of realisations of one output", value }),
        }
    }

    fn write<W: Write>(&self, w: &mut Writer<W>) -> io::Result<()> {
        match (self, w.dialect().has(Feature::RealisationWithPath)) {
            (RealisationReply::ByPath(realisation), true) => w.put(realisation),
            (RealisationReply::ByHash(realisation), false) => {
                w.bool(realisation.is_some())?;
                realisation.iter().try_for_each(|realisation| w.put(realisation))
            }
            _ => Err(wrong_scheme()),
        }
    }
}

fn wrong_scheme() -> io::Error {
    inexpressible("the peers agreed on the other kind of realisation")
}

/// Op 45; the log's text follows as a framed upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddBuildLog {
    pub drv: StorePath,
}

/// The base name, unlike every other store path.
impl Codec for AddBuildLog {
    fn read<R: Read>(r: &mut Reader<R>) -> Result<Self, ProtoError> {
        let drv = r.token("derivation", |text, _| StorePath::from_base_name(text))?;
        Ok(AddBuildLog { drv })
    }

    fn write<W: Write>(&self, w: &mut Writer<W>) -> io::Result<()> {
        w.string(self.drv.base_name())
    }
}
