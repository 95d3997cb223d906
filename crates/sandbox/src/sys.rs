//! The system calls that have no safe wrapper. Every `unsafe` of this crate is here.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::process::Pid;
use rustix::thread::UnshareFlags;

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Which of two processes this is after a clone.
pub(crate) enum Cloned {
    Child,
    Parent { pid: Pid, pidfd: OwnedFd },
}

/// Not in the `libc` crate in a type that fits.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `clone3` without shared memory: a fork into the name spaces of `flags`, and into `cgroup` if given (v2).
///
/// The caller must have one thread only, or the child may find locks held for ever.
pub(crate) fn clone_process(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    let mut pidfd: c_int = -1;
    // SAFETY: clone_args is plain integers, for which zero means "not given".
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags | libc::CLONE_PIDFD as u64;
    args.pidfd = &raw mut pidfd as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: no CLONE_VM, so the child runs on its own copy of this stack; the pointers live until return.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) })?;
    match Pid::from_raw(pid as i32) {
        None => Ok(Cloned::Child),
        // SAFETY: the kernel stored a new descriptor that nobody else knows.
        Some(pid) => Ok(Cloned::Parent { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }),
    }
}

/// Status as of `wait(2)`, and what the process and its reaped descendants used.
pub(crate) fn wait_usage(pid: Pid) -> io::Result<(c_int, libc::rusage)> {
    let mut status = 0;
    // SAFETY: rusage is plain integers.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live locals.
    let waited = unsafe { libc::wait4(pid.as_raw_nonzero().get(), &mut status, 0, &mut usage) };
    check(waited.into())?;
    Ok((status, usage))
}

/// Moves this process into new name spaces.
pub(crate) fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: name spaces only; the descriptor table, whose loss would be unsound, is never in `flags`.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

/// Every signal back to its default action, none blocked.
pub(crate) fn reset_signals() {
    const SIGNALS: c_int = 64;
    /// The kernel's `struct sigaction`: handler (0 is the default), flags, restorer, mask.
    static DEFAULT: [u64; 4] = [0; 4];
    const MASK_LEN: usize = 8;

    for signal in 1..=SIGNALS {
        // Not through libc, which keeps two signals to itself and ignores them in what it spawns.
        // SAFETY: reads DEFAULT; runs no code of ours; signals that can't be set answer EINVAL.
        unsafe {
            let nowhere = std::ptr::null_mut::<c_void>();
            libc::syscall(libc::SYS_rt_sigaction, signal, &raw const DEFAULT, nowhere, MASK_LEN);
        }
    }
    // SAFETY: an all-zero sigset_t is filled by sigemptyset before use.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}

/// Children are reaped by the kernel, nobody is told.
pub(crate) fn ignore_children() {
    // SAFETY: SIG_IGN runs no code of ours.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

/// The opposite of [`ignore_children`].
pub(crate) fn keep_children() {
    // SAFETY: SIG_DFL runs no code of ours.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// Marks every descriptor from `first` on as close-on-exec.
pub(crate) fn close_on_exec_from(first: RawFd) -> io::Result<()> {
    close_range(first, libc::CLOSE_RANGE_CLOEXEC as c_int)
}

/// Closes every descriptor from `first` on. Nothing of this process may own one of them.
pub(crate) fn close_from(first: RawFd) -> io::Result<()> {
    close_range(first, 0)
}

fn close_range(first: RawFd, flags: c_int) -> io::Result<()> {
    // SAFETY: plain integers; what may be closed is the callers' promise.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, c_int::MAX, flags) }).map(drop)
}

/// Makes `fd` descriptor number `target`, inherited by what is executed.
pub(crate) fn duplicate_to(fd: impl AsFd, target: RawFd) -> io::Result<()> {
    // SAFETY: plain integers; the callers replace only standard streams.
    check(unsafe { libc::dup2(fd.as_fd().as_raw_fd(), target) }.into()).map(drop)
}

/// Installs a seccomp program: `sock_filter`s of 8 bytes each.
pub(crate) fn install_filter(program: &[u8]) -> io::Result<()> {
    let header = libc::sock_fprog {
        len: (program.len() / size_of::<libc::sock_filter>()) as u16,
        filter: program.as_ptr().cast_mut().cast(),
    };
    // SAFETY: the kernel copies `len` entries, all inside of `program`, and does not need them aligned.
    check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const header) }).map(drop)
}

/// The execution domain of this process and its children.
pub(crate) fn personality(persona: u64) -> io::Result<u64> {
    // SAFETY: plain integers.
    check(unsafe { libc::personality(persona) }.into()).map(|old| old as u64)
}

/// Switches the loopback interface of this network name space on.
pub(crate) fn loopback_up() -> io::Result<()> {
    // SAFETY: plain integers in, a new descriptor out.
    let socket = check(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) }.into())?;
    // SAFETY: nobody else knows the descriptor.
    let socket = unsafe { OwnedFd::from_raw_fd(socket as RawFd) };
    // SAFETY: ifreq is plain data.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as c_char;
    request.ifr_name[1] = b'o' as c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_LOOPBACK | libc::IFF_RUNNING) as i16;
    // SAFETY: SIOCSIFFLAGS reads an ifreq.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) }.into()).map(drop)
}

/// Keeps this process and its children from reaching abstract unix sockets of processes outside. `false` on
/// kernels that can't.
pub(crate) fn scope_abstract_sockets() -> io::Result<bool> {
    const SCOPE_ABI: libc::c_long = 6;
    const VERSION: u32 = 1;
    const ABSTRACT_UNIX_SOCKET: u64 = 1;
    /// `struct landlock_ruleset_attr`: handled_access_fs, handled_access_net, scoped.
    type Attributes = [u64; 3];

    let create = libc::SYS_landlock_create_ruleset;
    // SAFETY: with this flag the call takes no attributes and returns a number.
    let abi = unsafe { libc::syscall(create, std::ptr::null::<c_void>(), 0usize, VERSION) };
    if abi < SCOPE_ABI {
        return Ok(false);
    }
    let attributes: Attributes = [0, 0, ABSTRACT_UNIX_SOCKET];
    // SAFETY: the kernel reads size_of::<Attributes>() bytes.
    let rules = check(unsafe { libc::syscall(create, &raw const attributes, size_of::<Attributes>(), 0u32) })?;
    // SAFETY: a new descriptor that nobody else knows.
    let rules = unsafe { OwnedFd::from_raw_fd(rules as RawFd) };
    // SAFETY: plain integers.
    check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules.as_raw_fd(), 0u32) })?;
    Ok(true)
}

/// Makes everything mounted on `mount` read-only.
pub(crate) fn set_read_only(mount: impl AsFd) -> io::Result<()> {
    const RDONLY: u64 = 1;
    /// `struct mount_attr`: attr_set, attr_clr, propagation, userns_fd.
    type Attributes = [u64; 4];

    let attributes: Attributes = [RDONLY, 0, 0, 0];
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: the path is empty and terminated, the attributes are read with their size.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<Attributes>(),
        )
    })
    .map(drop)
}

/// Becomes another program; returns only if that fails.
pub(crate) fn execute(path: &CStr, argv: &[CString], env: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| -> Vec<*const c_char> {
        strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: both arrays are null-terminated and point to terminated strings.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Ends this process without running exit handlers that belong to the process it was cloned from.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: does not return.
    unsafe { libc::_exit(code) }
}
