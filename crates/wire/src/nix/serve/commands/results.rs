//! Values whose layout is the serve protocol's own.

use crate::nix::hash::{Hash, HashAlgo};
use crate::nix::path_info::PathInfo;
use crate::nix::proto::{COUNT_MAX, Codec, ProtoError, Reader, STRING_LEN_MAX, Signatures, Writer, write_signatures};
use crate::nix::store_path::StorePath;
use crate::nix::worker::BuildResult;
use crate::nix::worker::build_result::{
    read_outputs_by_id, read_outputs_by_name, read_times, write_outputs_by_id, write_outputs_by_name, write_times,
};
use std::io::{self, Read, Write};

/// First minor versions with each part.
const LOG_SIZE_SINCE: u8 = 2;
const REPEATS_SINCE: u8 = 3;
const TIMES_SINCE: u8 = 3;
const HASH_AND_SIGNATURES_SINCE: u8 = 4;
const BUILT_OUTPUTS_SINCE: u8 = 6;
const KEEP_FAILED_SINCE: u8 = 7;
const OUTPUTS_BY_NAME_SINCE: u8 = 8;

/// Settings of a build; those of later versions are 0 for earlier ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BuildOptions {
    /// Seconds; 0 is no limit.
    pub max_silent_time: u64,
    /// Seconds; 0 is no limit.
    pub build_timeout: u64,
    /// Bytes; 0 is no limit.
    pub max_log_size: u64,
    /// To be refused unless 0.
    pub repeats: u64,
    pub enforce_determinism: bool,
    pub keep_failed: bool,
}

impl Codec for BuildOptions {
    fn read<R: Read>(r: &mut Reader<R>) -> Result<Self, ProtoError> {
        let minor = r.dialect().minor;
        let mut options =
            BuildOptions { max_silent_time: r.get()?, build_timeout: r.get()?, ..BuildOptions::default() };
        if minor >= LOG_SIZE_SINCE {
            options.max_log_size = r.get()?;
        }
        if minor >= REPEATS_SINCE {
            options.repeats = r.get()?;
            options.enforce_determinism = r.get()?;
        }
        if minor >= KEEP_FAILED_SINCE {
            options.keep_failed = r.get()?;
        }
        Ok(options)
    }

    fn write<W: Write>(&self, w: &mut Writer<W>) -> io::Result<()> {
        let minor = w.dialect().minor;
        w.u64(self.max_silent_time)?;
        w.u64(self.build_timeout)?;
        if minor >= LOG_SIZE_SINCE {
            w.u64(self.max_log_size)?;
        }
        if minor >= REPEATS_SINCE {
            w.u64(self.repeats)?;
            w.bool(self.enforce_determinism)?;
        }
        if minor >= KEEP_FAILED_SINCE {
            w.bool(self.keep_failed)?;
        }
        Ok(())
    }
}

/// What is known of the paths that were asked for. Neither registration time nor `ultimate` travel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathInfos(pub Vec<PathInfo>);

/// Path and info repeated, then the empty string.
impl Codec for PathInfos {
    fn read<R: Read>(r: &mut Reader<R>) -> Result<Self, ProtoError> {
        let mut infos = Vec::new();
        while let Some(path) = r.get::<Option<StorePath>>()? {
            if infos.len() as u64 >= COUNT_MAX {
                return Err(ProtoError::TooLong { what: "list", len: COUNT_MAX + 1, limit: COUNT_MAX });
            }
            infos.push(read_path_info(path, r)?);
        }
        Ok(PathInfos(infos))
    }

    fn write<W: Write>(&self, w: &mut Writer<W>) -> io::Result<()> {
        for info in &self.0 {
            w.put(&info.path)?;
            write_path_info(info, w)?;
        }
        w.string("")
    }
}

/// Reads the info of `path`.
pub fn read_path_info<R: Read>(path: StorePath, r: &mut Reader<R>) -> Result<PathInfo, ProtoError> {
    let mut info = PathInfo::new(path, [0; 32], 0);
    info.deriver = r.get()?;
    info.references = r.get()?;
    let _download_size = r.u64()?;
    info.nar_size = r.get()?;
    if r.dialect().minor >= HASH_AND_SIGNATURES_SINCE {
        let hash = r.token("NAR hash", |text, _| Hash::parse(text, HashAlgo::Sha256))?;
        info.nar_hash = hash.as_sha256().ok_or_else(|| ProtoError::invalid("NAR hash", hash))?;
        info.ca = r.get()?;
        Signatures(info.signatures) = r.get()?;
    }
    Ok(info)
}

/// Writes what [`read_path_info`] reads. The NAR hash has its prefix and is base 32.
pub fn write_path_info<W: Write>(info: &PathInfo, w: &mut Writer<W>) -> io::Result<()> {
    w.put(&info.deriver)?;
    w.put(&info.references)?;
    w.u64(info.nar_size)?;
    w.u64(info.nar_size)?;
    if w.dialect().minor >= HASH_AND_SIGNATURES_SINCE {
        w.string(&Hash::sha256(info.nar_hash).to_string())?;
        w.put(&info.ca)?;
        write_signatures(&info.signatures, w)?;
    }
    Ok(())
}

/// Reply to command 6.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BuildPathsReply {
    Success,
    /// Clients read the number as a build status and take 1, 2 and 13 for success, without reading the
    /// message: answer 9. Real servers send an exit code.
    Failure {
        status: u64,
        message: Vec<u8>,
    },
}

impl Codec for BuildPathsReply {
    fn read<R: Read>(r: &mut Reader<R>) -> Result<Self, ProtoError> {
        match r.u64()? {
            0 => Ok(BuildPathsReply::Success),
            status => {
                let message = r.bytes("error message", STRING_LEN_MAX)?;
                Ok(BuildPathsReply::Failure { status, message })
            }
        }
    }

    fn write<W: Write>(&self, w: &mut Writer<W>) -> io::Result<()> {
        match self {
            BuildPathsReply::Success => w.u64(0),
            BuildPathsReply::Failure { status, message } => {
                w.u64(*status)?;
                w.put(message)
            }
        }
    }
}

/// How a build ended; the CPU times do not travel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServeBuildResult(pub BuildResult);

impl Codec for ServeBuildResult {
    fn read<R: Read>(r: &mut Reader<R>) -> Result<Self, ProtoError> {
        let minor = r.dialect().minor;
        let mut result = BuildResult::new(r.get()?, r.get::<Vec<u8>>()?);
        if minor >= TIMES_SINCE {
            read_times(&mut result, r)?;
        }
        if minor >= OUTPUTS_BY_NAME_SINCE {
            result.built_outputs = read_outputs_by_name(r)?;
        } else if minor >= BUILT_OUTPUTS_SINCE {
            result.built_outputs = read_outputs_by_id(r)?;
        }
        Ok(ServeBuildResult(result))
    }

    fn write<W: Write>(&self, w: &mut Writer<W>) -> io::Result<()> {
        let minor = w.dialect().minor;
        w.put(&self.0.status)?;
        w.put(&self.0.error_msg)?;
        if minor >= TIMES_SINCE {
            write_times(&self.0, w)?;
        }
        if minor >= OUTPUTS_BY_NAME_SINCE {
            write_outputs_by_name(&self.0.built_outputs, w)?;
        } else if minor >= BUILT_OUTPUTS_SINCE {
            write_outputs_by_id(&self.0.built_outputs, w)?;
        }
        Ok(())
    }
}
