//! The operations: opcode, request, reply. A `Done` reply is the word 1, a `()` reply is nothing.

mod special;

pub use special::{
    AddBuildLog, AddSignatures, AddToStoreNar, BuildDerivation, CollectGarbage, Collected, GcPaths, QueryRealisation,
    RealisationReply, RegisterDrvOutput, SetOptions,
};

use super::build_result::{BuildResult, KeyedBuildResult};
use super::path_info::UnkeyedPathInfo;
use crate::nix::content_address::{CaMethodAlgo, ContentAddress};
use crate::nix::derived_path::DerivedPath;
use crate::nix::path_info::PathInfo;
use crate::nix::proto::{Done, calls, codec_struct, number_enum};
use crate::nix::store_path::StorePath;
use std::collections::{BTreeMap, BTreeSet};

number_enum! {
    /// What building means where outputs are valid already.
    BuildMode ("build mode") { Normal = 0, Repair = 1, Check = 2 }
}

number_enum! {
    /// What a garbage collection does.
    GcAction ("garbage collection action") {
        /// Lists what is alive.
        ReturnLive = 0,
        /// Lists what is dead.
        ReturnDead = 1,
        DeleteDead = 2,
        /// Deletes the given paths, and fails if one is alive.
        DeleteSpecific = 3,
    }
}

codec_struct! {
    /// A garbage collector root: a file outside the store that leads to a path.
    Root { link: Vec<u8>, target: StorePath }
}

codec_struct! {
    /// What a substituter would give for a path.
    SubstitutableInfo {
        deriver: Option<StorePath>,
        references: BTreeSet<StorePath>,
        download_size: u64,
        nar_size: u64,
    }
}

codec_struct! {
    /// A path and what a substituter would give for it.
    SubstitutablePathInfo { path: StorePath, info: SubstitutableInfo }
}

codec_struct! {
    /// What it would take to build paths.
    Missing {
        will_build: BTreeSet<StorePath>,
        will_substitute: BTreeSet<StorePath>,
        unknown: BTreeSet<StorePath>,
        download_size: u64,
        nar_size: u64,
    }
}

calls! {
    1 IsValidPath { path: StorePath } -> bool;
    3 HasSubstitutes { path: StorePath } -> bool;
    6 QueryReferrers { path: StorePath } -> BTreeSet<StorePath>;
    /// Framed upload: a NAR for `r:` and `git:`, otherwise the bytes of a file.
    7 AddToStore {
        name: String,
        method: CaMethodAlgo,
        references: BTreeSet<StorePath>,
        repair: bool,
    } -> PathInfo;
    8 AddTextToStore { name: String, text: Vec<u8>, references: BTreeSet<StorePath> } -> StorePath;
    9 BuildPaths { paths: Vec<DerivedPath>, mode: BuildMode } -> Done;
    10 EnsurePath { path: StorePath } -> Done;
    11 AddTempRoot { path: StorePath } -> Done;
    12 AddIndirectRoot { link: Vec<u8> } -> Done;
    13 SyncWithGc {} -> Done;
    14 FindRoots {} -> Vec<Root>;
    18 QueryDeriver { path: StorePath } -> Option<StorePath>;
    19 SetOptions special -> ();
    20 CollectGarbage special -> Collected;
    21 QuerySubstitutablePathInfo { path: StorePath } -> Option<SubstitutableInfo>;
    22 QueryDerivationOutputs { path: StorePath } -> BTreeSet<StorePath>;
    23 QueryAllValidPaths {} -> BTreeSet<StorePath>;
    26 QueryPathInfo { path: StorePath } -> Option<UnkeyedPathInfo>;
    28 QueryDerivationOutputNames { path: StorePath } -> BTreeSet<String>;
    29 QueryPathFromHashPart { hash_part: String } -> Option<StorePath>;
    30 QuerySubstitutablePathInfos {
        paths: BTreeMap<StorePath, Option<ContentAddress>>,
    } -> Vec<SubstitutablePathInfo>;
    31 QueryValidPaths { paths: BTreeSet<StorePath>, substitute: bool } -> BTreeSet<StorePath>;
    32 QuerySubstitutablePaths { paths: BTreeSet<StorePath> } -> BTreeSet<StorePath>;
    33 QueryValidDerivers { path: StorePath } -> BTreeSet<StorePath>;
    34 OptimiseStore {} -> Done;
    /// The reply says whether errors remain.
    35 VerifyStore { check_contents: bool, repair: bool } -> bool;
    36 BuildDerivation special -> BuildResult;
    37 AddSignatures special -> Done;
    /// After the reply: the bare NAR.
    38 NarFromPath { path: StorePath } -> ();
    39 AddToStoreNar special -> ();
    40 QueryMissing { paths: Vec<DerivedPath> } -> Missing;
    41 QueryDerivationOutputMap { path: StorePath } -> BTreeMap<String, Option<StorePath>>;
    42 RegisterDrvOutput special -> ();
    43 QueryRealisation special -> RealisationReply;
    /// Framed upload of [`super::UploadEntries`].
    44 AddMultipleToStore { repair: bool, dont_check_sigs: bool } -> ();
    45 AddBuildLog special -> Done;
    46 BuildPathsWithResults { paths: Vec<DerivedPath>, mode: BuildMode } -> Vec<KeyedBuildResult>;
    /// The reply is the root's own path.
    47 AddPermRoot { path: StorePath, link: Vec<u8> } -> Vec<u8>;
}

impl Op {
    /// Whether a framed stream follows the request, to be read to its end whatever the answer is.
    pub fn is_framed(self) -> bool {
        matches!(self, Op::AddToStore | Op::AddToStoreNar | Op::AddMultipleToStore | Op::AddBuildLog)
    }
}
