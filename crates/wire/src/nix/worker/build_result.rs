//! How a build ended.

use crate::nix::derived_path::DerivedPath;
use crate::nix::proto::{Codec, Feature, ProtoError, Reader, Writer, number_enum};
use crate::nix::realisation::{DrvOutput, Realisation, UnkeyedRealisation};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};

/// First minor versions with each group of fields.
const BUILT_OUTPUTS_SINCE: u8 = 28;
const TIMES_SINCE: u8 = 29;
const CPU_SINCE: u8 = 37;

number_enum! {
    /// How a build ended; peers know no numbers beyond these.
    BuildStatus ("build status") {
        Built = 0,
        Substituted = 1,
        AlreadyValid = 2,
        PermanentFailure = 3,
        InputRejected = 4,
        OutputRejected = 5,
        TransientFailure = 6,
        CachedFailure = 7,
        TimedOut = 8,
        MiscFailure = 9,
        DependencyFailed = 10,
        LogLimitExceeded = 11,
        NotDeterministic = 12,
        ResolvesToAlreadyValid = 13,
        NoSubstituters = 14,
    }
}

impl BuildStatus {
    pub fn is_success(self) -> bool {
        use BuildStatus::{AlreadyValid, Built, ResolvesToAlreadyValid, Substituted};
        matches!(self, Built | Substituted | AlreadyValid | ResolvesToAlreadyValid)
    }
}

/// The end of one build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildResult {
    pub status: BuildStatus,
    /// Empty on success.
    pub error_msg: Vec<u8>,
    pub times_built: u64,
    pub is_non_deterministic: bool,
    /// Unix seconds, or 0.
    pub start_time: u64,
    pub stop_time: u64,
    /// Microseconds.
    pub cpu_user: Option<i64>,
    pub cpu_system: Option<i64>,
    /// By output name. Where the peers agreed on [`Feature::RealisationWithPath`] only path and signatures
    /// travel: ids that were read have a hash of zeros.
    pub built_outputs: BTreeMap<String, Realisation>,
}

impl BuildResult {
    pub fn new(status: BuildStatus, error_msg: impl Into<Vec<u8>>) -> Self {
        BuildResult {
            status,
            error_msg: error_msg.into(),
            times_built: 0,
            is_non_deterministic: false,
            start_time: 0,
            stop_time: 0,
            cpu_user: None,
            cpu_system: None,
            built_outputs: BTreeMap::new(),
        }
    }
}

impl Codec for BuildResult {
    fn read<R: Read>(r: &mut Reader<R>) -> Result<Self, ProtoError> {
        let minor = r.dialect().minor;
        let mut result = BuildResult::new(r.get()?, r.get::<Vec<u8>>()?);
        if minor >= TIMES_SINCE {
            read_times(&mut result, r)?;
        }
        if minor >= CPU_SINCE {
            result.cpu_user = read_microseconds(r)?;
            result.cpu_system = read_microseconds(r)?;
        }
        if minor >= BUILT_OUTPUTS_SINCE {
            result.built_outputs = match r.dialect().has(Feature::RealisationWithPath) {
                true => read_outputs_by_name(r)?,
                false => read_outputs_by_id(r)?,
            };
        }
        Ok(result)
    }

    fn write<W: Write>(&self, w: &mut Writer<W>) -> io::Result<()> {
        let minor = w.dialect().minor;
        w.put(&self.status)?;
        w.put(&self.error_msg)?;
        if minor >= TIMES_SINCE {
            write_times(self, w)?;
        }
        if minor >= CPU_SINCE {
            write_microseconds(self.cpu_user, w)?;
            write_microseconds(self.cpu_system, w)?;
        }
        if minor >= BUILT_OUTPUTS_SINCE {
            match w.dialect().has(Feature::RealisationWithPath) {
                true => write_outputs_by_name(&self.built_outputs, w)?,
                false => write_outputs_by_id(&self.built_outputs, w)?,
            }
        }
        Ok(())
    }
}

/// A request of many, and how its build ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyedBuildResult {
    /// As it was requested: clients look it up.
    pub path: DerivedPath,
    pub result: BuildResult,
}

impl Codec for KeyedBuildResult {
    fn read<R: Read>(r: &mut Reader<R>) -> Result<Self, ProtoError> {
        Ok(KeyedBuildResult { path: r.get()?, result: r.get()? })
    }

    fn write<W: Write>(&self, w: &mut Writer<W>) -> io::Result<()> {
        w.put(&self.path)?;
        w.put(&self.result)
    }
}

pub(crate) fn read_times<R: Read>(result: &mut BuildResult, r: &mut Reader<R>) -> Result<(), ProtoError> {
    result.times_built = r.get()?;
    result.is_non_deterministic = r.get()?;
    result.start_time = r.get()?;
    result.stop_time = r.get()?;
    Ok(())
}

pub(crate) fn write_times<W: Write>(result: &BuildResult, w: &mut Writer<W>) -> io::Result<()> {
    w.u64(result.times_built)?;
    w.bool(result.is_non_deterministic)?;
    w.u64(result.start_time)?;
    w.u64(result.stop_time)
}

fn read_microseconds<R: Read>(r: &mut Reader<R>) -> Result<Option<i64>, ProtoError> {
    match r.u64()? {
        0 => Ok(None),
        1 => Ok(Some(r.u64()?.cast_signed())),
        value => Err(ProtoError::Range { what: "optional time", value }),
    }
}

fn write_microseconds<W: Write>(time: Option<i64>, w: &mut Writer<W>) -> io::Result<()> {
    w.bool(time.is_some())?;
    time.map_or(Ok(()), |time| w.u64(time.cast_unsigned()))
}

/// `name -> (path, signatures)`.
pub(crate) fn read_outputs_by_name<R: Read>(r: &mut Reader<R>) -> Result<BTreeMap<String, Realisation>, ProtoError> {
    let outputs: BTreeMap<String, UnkeyedRealisation> = r.get()?;
    let keyed = outputs.into_iter().map(|(output, UnkeyedRealisation { out_path, signatures })| {
        let id = DrvOutput { drv_hash: [0; 32], output: output.clone() };
        (output, Realisation { signatures, ..Realisation::new(id, out_path) })
    });
    Ok(keyed.collect())
}

pub(crate) fn write_outputs_by_name<W: Write>(
    outputs: &BTreeMap<String, Realisation>,
    w: &mut Writer<W>,
) -> io::Result<()> {
    w.u64(outputs.len() as u64)?;
    for (output, realisation) in outputs {
        w.string(output)?;
        w.put(&UnkeyedRealisation {
            out_path: realisation.out_path.clone(),
            signatures: realisation.signatures.clone(),
        })?;
    }
    Ok(())
}

/// `sha256:<hex>!<name> -> JSON`; the id stands in both.
pub(crate) fn read_outputs_by_id<R: Read>(r: &mut Reader<R>) -> Result<BTreeMap<String, Realisation>, ProtoError> {
    let mut outputs = BTreeMap::new();
    for _ in 0..r.count()? {
        let (id, realisation): (DrvOutput, Realisation) = (r.get()?, r.get()?);
        if id != realisation.id {
            return Err(ProtoError::invalid("built output", id));
        }
        outputs.insert(id.output, realisation);
    }
    Ok(outputs)
}

pub(crate) fn write_outputs_by_id<W: Write>(
    outputs: &BTreeMap<String, Realisation>,
    w: &mut Writer<W>,
) -> io::Result<()> {
    w.u64(outputs.len() as u64)?;
    for realisation in outputs.values() {
        w.put(&realisation.id)?;
        w.put(realisation)?;
    }
    Ok(())
}
