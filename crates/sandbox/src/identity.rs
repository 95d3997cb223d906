//! Who the builder is: an id of its own on the host, uid 1000 and gid 100 inside.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, getegid, geteuid};
use rustix::thread::CapabilitySet;

use crate::Identity;
use crate::failure::{Attempt, Doing, Failure};

pub(crate) const INSIDE_UID: u32 = 1000;
pub(crate) const INSIDE_GID: u32 = 100;

/// What this process may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rights {
    /// Mounts are made before the user name space, the builder has a host id of its own.
    Root,
    /// Everything happens in one user name space that knows the caller only.
    User,
}

impl Rights {
    pub fn detect() -> Rights {
        let wanted = CapabilitySet::SYS_ADMIN
            | CapabilitySet::SETUID
            | CapabilitySet::SETGID
            | CapabilitySet::CHOWN
            | CapabilitySet::FOWNER
            | CapabilitySet::DAC_OVERRIDE;
        let effective = rustix::thread::capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
        let is_root = geteuid().is_root() && effective.contains(wanted);
        if is_root && maps_all_ids() { Rights::Root } else { Rights::User }
    }
}

/// Root of a container may have a user name space where the ids of builds do not exist.
fn maps_all_ids() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let fields: Vec<&str> = map.split_whitespace().collect();
    fields == ["0", "0", "4294967295"]
}

/// The builder as the host sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ids {
    pub uid: u32,
    pub gid: u32,
}

impl Ids {
    /// Those of this process.
    pub fn own() -> Ids {
        Ids { uid: geteuid().as_raw(), gid: getegid().as_raw() }
    }

    pub fn encode(self) -> [u8; 8] {
        (u64::from(self.uid) << 32 | u64::from(self.gid)).to_le_bytes()
    }

    pub fn decode(bytes: &[u8]) -> Option<Ids> {
        let both = u64::from_le_bytes(bytes.try_into().ok()?);
        Some(Ids { uid: (both >> 32) as u32, gid: both as u32 })
    }
}

/// Ids that are this build's alone for as long as this value lives.
#[derive(Debug)]
pub(crate) struct Lease {
    pub ids: Ids,
    _lock: Option<File>,
}

impl Lease {
    pub fn acquire(identity: &Identity, rights: Rights) -> Attempt<Lease> {
        if rights == Rights::User {
            return Ok(Lease { ids: Ids::own(), _lock: None });
        }
        let dir = &identity.lock_dir;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(dir)
            .doing(format_args!("creating directory '{}'", dir.display()))?;
        // Neighbours in time start their search at different places.
        let start = std::process::id();
        for step in 0..identity.count {
            let uid = identity.first_uid + start.wrapping_add(step) % identity.count;
            let lock = lock_id(identity, uid).doing(format_args!("locking user id {uid} in '{}'", dir.display()))?;
            if lock.is_some() {
                return Ok(Lease { ids: Ids { uid, gid: uid }, _lock: lock });
            }
        }
        Err(Failure::new(format!("all {} user ids for builds are taken", identity.count)))
    }
}

fn lock_id(identity: &Identity, uid: u32) -> io::Result<Option<File>> {
    let path = identity.lock_dir.join(uid.to_string());
    let file = OpenOptions::new().create(true).write(true).truncate(false).mode(0o600).open(path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Gives a process in a new user name space its only ids. Must be called from the name space's parent.
pub(crate) fn map_ids(pid: Pid, ids: Ids) -> Attempt<()> {
    let write = |file: &str, text: String| {
        let path = format!("/proc/{}/{file}", pid.as_raw_nonzero());
        fs::write(&path, text).doing(format_args!("writing '{path}'"))
    };
    write("setgroups", "deny".to_owned())?;
    write("uid_map", format!("{INSIDE_UID} {} 1", ids.uid))?;
    write("gid_map", format!("{INSIDE_GID} {} 1", ids.gid))
}
