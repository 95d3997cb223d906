//! What one build needs to know. Complete: the supervisor reads nothing else.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// One builder process and the world it sees.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Spec {
    /// An existing, empty directory owned by the caller, on the file system that shall hold the outputs.
    /// See [`crate::Scratch`] for what appears in it. The caller removes it.
    pub scratch: PathBuf,
    pub program: Program,
    /// The whole environment, in this order. Nothing is added.
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    /// What the store directory shows beside the outputs. Not encoded with the rest: see [`Spec::encode`].
    #[serde(skip)]
    pub inputs: Vec<Input>,
    /// A detached mount, in place of `inputs`: a directory that holds a directory `store`, which holds what the store
    /// directory shows beside the outputs. Takes root's rights.
    #[serde(skip)]
    pub view: Option<Arc<OwnedFd>>,
    /// Mounts each of `inputs` by itself, though an overlay of all may be faster.
    pub binds_inputs: bool,
    /// Usually `/nix/store`.
    pub store_dir: PathBuf,
    /// Usually `/build`: the working directory, a directory of its own on `scratch`'s file system.
    pub build_dir: PathBuf,
    /// Put into `build_dir` before the start, owned by the builder.
    pub files: Vec<BuildFile>,
    /// The host's network and its resolver files, instead of a loopback interface alone.
    pub network: bool,
    /// A static shell on the host, seen as `/bin/sh`.
    pub system_shell: Option<PathBuf>,
    pub binds: Vec<Bind>,
    pub personality: Personality,
    /// Gives the builder `/dev/kvm` if the machine has it.
    pub kvm: bool,
    /// The `size=` of the tmpfs on `/dev/shm`, such as `50%`.
    pub dev_shm_size: String,
    pub identity: Identity,
    pub limits: Limits,
    pub cgroups: Cgroups,
}

impl Spec {
    /// A spec with what Nix has by default: no network, no shell, no inputs, no limits.
    pub fn new(scratch: impl Into<PathBuf>, program: Program) -> Self {
        Spec {
            scratch: scratch.into(),
            program,
            env: Vec::new(),
            inputs: Vec::new(),
            view: None,
            binds_inputs: false,
            store_dir: PathBuf::from("/nix/store"),
            build_dir: PathBuf::from("/build"),
            files: Vec::new(),
            network: false,
            system_shell: None,
            binds: Vec::new(),
            personality: Personality::Native,
            kvm: false,
            dev_shm_size: "50%".to_owned(),
            identity: Identity::default(),
            limits: Limits::default(),
            cgroups: Cgroups::Off,
        }
    }

    /// The spec, then its inputs: a supervisor need not read those, and there may be thousands.
    pub(crate) fn encode(&self) -> postcard::Result<Vec<u8>> {
        postcard::to_extend(&self.inputs, postcard::to_stdvec(self)?)
    }

    /// A spec without inputs, and what [`decode_inputs`] needs.
    pub(crate) fn decode(bytes: &[u8]) -> postcard::Result<(Spec, &[u8])> {
        postcard::take_from_bytes(bytes)
    }
}

/// An [`Input`] in an encoded spec.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct EncodedInput<'a> {
    pub name: &'a str,
    pub tree: &'a Path,
}

/// The inputs, where they lie.
pub(crate) fn decode_inputs(bytes: &[u8]) -> postcard::Result<Vec<EncodedInput<'_>>> {
    postcard::from_bytes(bytes)
}

/// What becomes process 1 of the sandbox.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Program {
    /// `execve(path, argv, env)`; `argv[0]` is the caller's choice.
    Exec { path: Vec<u8>, argv: Vec<Vec<u8>> },
    /// Runs the [`crate::Builtin`] given to [`crate::supervisor_main`], inside the finished sandbox and with
    /// the builder's own (lack of) rights.
    Builtin { name: String, payload: Vec<u8> },
}

/// One store path that the builder can see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// `<hash>-<name>`, the entry's name in the store directory.
    pub name: String,
    /// The same thing on the host: a directory, regular file or symlink that nobody changes while the build
    /// runs. Set-up is fast (one overlay for all) for inputs that lie side by side in one directory.
    pub tree: PathBuf,
}

/// A file made in the build directory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BuildFile {
    /// A plain name, no slashes.
    pub name: String,
    pub bytes: Vec<u8>,
    pub mode: u32,
}

/// A path of the host shown to the builder at `target` (absolute).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Bind {
    pub source: PathBuf,
    pub target: PathBuf,
    /// A `source` that does not exist is skipped instead of failing the build.
    pub optional: bool,
    pub read_only: bool,
}

/// The execution domain of the builder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Personality {
    Native,
    /// A 32-bit build on a 64-bit machine: `uname -m` says `i686`.
    Linux32,
}

/// Under which ids the builder runs on the host. Inside it is always uid 1000, gid 100.
///
/// With the rights of root the build gets an id of the range that no other build on this machine has,
/// whatever node it belongs to. Without them it runs as the caller, and the range is not used.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Identity {
    pub first_uid: u32,
    pub count: u32,
    /// Holds one lock file for each id; shared by all nodes of the machine.
    pub lock_dir: PathBuf,
}

impl Default for Identity {
    /// 1,024 ids above those that Nix (872,415,232 on) and systemd (524,288 to 1,879,048,191) hand out.
    fn default() -> Self {
        Identity { first_uid: 0x7100_0000, count: 1024, lock_dir: PathBuf::from("/run/shoal-uids") }
    }
}

/// When a build is stopped. `None` is never.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Limits {
    /// Since the start.
    pub timeout: Option<Duration>,
    /// Since the last byte of output.
    pub max_silent: Option<Duration>,
    /// Bytes of output. No more than this is ever written to the log.
    pub max_log_bytes: Option<u64>,
}

/// How a build is metered and its memory limited; [`crate::cgroups`] finds out what there is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cgroups {
    /// Resource usage of the process tree only; no memory limit.
    Off,
    /// A directory of the unified hierarchy that holds no processes itself and delegates `memory`.
    V2 { parent: PathBuf, memory_max: Option<u64> },
    /// Directories of the `memory` and `cpuacct` hierarchies.
    V1 { memory: Option<PathBuf>, cpuacct: Option<PathBuf>, memory_max: Option<u64> },
}

impl Cgroups {
    /// The same with a limit for the memory of each build, in bytes, where there is a controller for it.
    pub fn limited(mut self, max: Option<u64>) -> Cgroups {
        match &mut self {
            Cgroups::V2 { memory_max, .. } | Cgroups::V1 { memory: Some(_), memory_max, .. } => *memory_max = max,
            Cgroups::V1 { memory: None, .. } | Cgroups::Off => {}
        }
        self
    }

    /// The limit for the memory of each build, in bytes.
    pub fn memory_max(&self) -> Option<u64> {
        match self {
            Cgroups::V2 { memory_max, .. } | Cgroups::V1 { memory_max, .. } => *memory_max,
            Cgroups::Off => None,
        }
    }
}
