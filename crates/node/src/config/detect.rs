//! What the machine says when the configuration does not.

use std::env;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

/// Where distributions put a busybox that may be static; the first static one is builders' `/bin/sh`.
const SHELL_CANDIDATES: [&str; 7] = [
    "/bin/busybox.static",
    "/usr/lib/busybox/busybox-static",
    "/bin/busybox",
    "/usr/bin/busybox",
    "/usr/local/bin/busybox",
    "/run/current-system/sw/bin/busybox",
    "/bin/sash",
];

pub fn is_root() -> bool {
    geteuid().is_root()
}

/// CPUs this process may run on, at least 1.
pub fn cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX))
}

pub fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if name.is_empty() || name == "(none)" { "shoal".into() } else { name }
}

pub fn home() -> Option<PathBuf> {
    env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from)
}

/// `$STATE_DIRECTORY`, `/var/lib/shoal` as root, else `$XDG_STATE_HOME/shoal`.
pub fn data_dir() -> PathBuf {
    // systemd lists several directories with colons; the first is the service's own.
    let given = env::var("STATE_DIRECTORY").unwrap_or_default();
    match given.split(':').next() {
        Some(first) if !first.is_empty() => return PathBuf::from(first),
        _ if is_root() => return PathBuf::from("/var/lib/shoal"),
        _ => {}
    }
    let state = env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|dir| dir.is_absolute());
    state.or_else(|| home().map(|home| home.join(".local/state"))).unwrap_or_else(env::temp_dir).join("shoal")
}

/// `$XDG_CACHE_HOME/shoal`, or what stands for it: for what is of use only as long as it is there.
pub fn cache_dir() -> PathBuf {
    let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|dir| dir.is_absolute());
    cache.or_else(|| home().map(|home| home.join(".cache"))).unwrap_or_else(env::temp_dir).join("shoal")
}

/// Nix's names of what this machine runs natively.
pub fn systems() -> Vec<String> {
    match env::consts::ARCH {
        "x86_64" => vec!["x86_64-linux".into(), "i686-linux".into()],
        arch => vec![format!("{arch}-linux")],
    }
}

/// Nix's default system features, with those that depend on the machine.
pub fn features() -> Vec<String> {
    let mut features: Vec<String> =
        ["benchmark", "big-parallel", "ca-derivations", "nixos-test"].map(String::from).into();
    if rustix::fs::access("/dev/kvm", rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK).is_ok() {
        features.push("kvm".into());
    }
    features
}

pub fn sandbox_shell() -> Option<PathBuf> {
    SHELL_CANDIDATES.iter().map(Path::new).find(|path| is_static_elf(path)).map(Path::to_path_buf)
}

/// Whether `path` is an ELF program that needs no dynamic loader (it has no PT_INTERP segment).
pub fn is_static_elf(path: &Path) -> bool {
    interpreter_free(path).unwrap_or(false)
}

fn interpreter_free(path: &Path) -> std::io::Result<bool> {
    /// Program headers of a 64-bit ELF file start with their type; 3 names an interpreter.
    const PT_INTERP: u32 = 3;
    /// More than any linker writes; a larger count is a broken file.
    const MAX_HEADERS: u16 = 512;
    let mut file = File::open(path)?;
    let mut head = [0u8; 64];
    file.read_exact(&mut head)?;
    if &head[..4] != b"\x7fELF" || head[4] != 2 || head[5] != 1 {
        return Ok(false);
    }
    let table = u64::from_le_bytes(head[32..40].try_into().unwrap_or_default());
    let size = u16::from_le_bytes([head[54], head[55]]);
    let count = u16::from_le_bytes([head[56], head[57]]);
    if count > MAX_HEADERS {
        return Ok(false);
    }
    for i in 0..u64::from(count) {
        let mut kind = [0u8; 4];
        file.read_exact_at(&mut kind, table.saturating_add(i * u64::from(size)))?;
        if u32::from_le_bytes(kind) == PT_INTERP {
            return Ok(false);
        }
    }
    Ok(count > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_needs_a_loader_and_a_text_file_is_no_program() {
        let me = env::current_exe().unwrap();
        // Rust's default target links dynamically, a musl one statically.
        assert_eq!(is_static_elf(&me), cfg!(target_env = "musl"));
        assert!(!is_static_elf(Path::new("/etc/passwd")));
        assert!(!is_static_elf(Path::new("/no/such/file")));
    }

    #[test]
    fn a_machine_has_a_name_a_system_and_a_cpu() {
        assert!(!host_name().is_empty() && cpus() >= 1);
        assert!(systems()[0].ends_with("-linux"));
    }
}
