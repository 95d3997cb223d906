//! The system call filter that Nix has: allow all, but no set-id bits and no extended attributes.

use std::io::{self, Read, Seek};

use libseccomp::error::SeccompError;
use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use rustix::fs::{MemfdFlags, memfd_create};

const SETUID: u64 = 0o4000;
const SETGID: u64 = 0o2000;

/// Younger than most versions of libseccomp; the same number on every architecture.
const FCHMODAT2: i32 = 452;

/// Calls that set modes, and which argument is the mode.
const CHMODS: [(&str, u32); 3] = [("chmod", 1), ("fchmod", 1), ("fchmodat", 2)];

/// Calls that would give an output what a NAR can't hold.
const XATTRS: [&str; 9] = [
    "listxattr",
    "llistxattr",
    "flistxattr",
    "getxattr",
    "lgetxattr",
    "fgetxattr",
    "setxattr",
    "lsetxattr",
    "fsetxattr",
];

/// The compiled filter, as `sock_filter`s. The same for every build: compile once.
pub(crate) fn compile() -> io::Result<Vec<u8>> {
    let filter = filter().map_err(io::Error::other)?;
    let mut file = std::fs::File::from(memfd_create("filter", MemfdFlags::CLOEXEC)?);
    filter.export_bpf(&file).map_err(io::Error::other)?;
    let mut program = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut program)?;
    Ok(program)
}

fn filter() -> Result<ScmpFilterContext, SeccompError> {
    let mut filter = ScmpFilterContext::new(ScmpAction::Allow)?;
    // A builder may execute programs of every ABI that the kernel runs, and each has numbers of its own.
    for arch in foreign_architectures() {
        filter.add_arch(*arch)?;
    }
    for (name, mode) in CHMODS {
        refuse_set_id(&mut filter, ScmpSyscall::from_name(name)?, mode)?;
    }
    refuse_set_id(&mut filter, ScmpSyscall::from(FCHMODAT2), 2)?;
    for name in XATTRS {
        filter.add_rule(ScmpAction::Errno(libc::ENOTSUP), ScmpSyscall::from_name(name)?)?;
    }
    Ok(filter)
}

fn refuse_set_id(filter: &mut ScmpFilterContext, call: ScmpSyscall, mode: u32) -> Result<(), SeccompError> {
    for bit in [SETUID, SETGID] {
        let has_bit = ScmpArgCompare::new(mode, ScmpCompareOp::MaskedEqual(bit), bit);
        filter.add_rule_conditional(ScmpAction::Errno(libc::EPERM), call, &[has_bit])?;
    }
    Ok(())
}

fn foreign_architectures() -> &'static [ScmpArch] {
    if cfg!(target_arch = "x86_64") {
        &[ScmpArch::X86, ScmpArch::X32]
    } else if cfg!(target_arch = "aarch64") {
        &[ScmpArch::Arm]
    } else {
        &[]
    }
}
