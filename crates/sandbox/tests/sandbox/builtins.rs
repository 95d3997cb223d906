//! What runs in a sandbox without being executed: system calls that no shell makes.

use std::ffi::CStr;
use std::io;

pub fn run(name: &str, payload: &[u8]) -> i32 {
    match name {
        "greet" => println!("{name} {}", String::from_utf8_lossy(payload)),
        "filtered" => filtered(),
        #[cfg(target_arch = "x86_64")]
        "foreign" => foreign(),
        "panic" => panic!("a builtin that panics"),
        "rights" => rights(),
        _ => return 7,
    }
    3
}

/// Tries every call that the filter knows, with and without set-id bits.
fn filtered() {
    const AT_FDCWD: i64 = libc::AT_FDCWD as i64;
    std::fs::write("file", "content").unwrap();
    let file = std::fs::File::open("file").unwrap();
    let fd = i64::from(std::os::fd::AsRawFd::as_raw_fd(&file));
    let path = c"file".as_ptr() as i64;
    let name = c"user.name".as_ptr() as i64;
    let mut value = [0u8; 16];
    let value = value.as_mut_ptr() as i64;
    for mode in [0o755, 0o4755, 0o2755, 0o1755] {
        let calls: [(&str, i64, [i64; 5]); 4] = [
            ("chmod", libc::SYS_chmod, [path, mode, 0, 0, 0]),
            ("fchmod", libc::SYS_fchmod, [fd, mode, 0, 0, 0]),
            ("fchmodat", libc::SYS_fchmodat, [AT_FDCWD, path, mode, 0, 0]),
            ("fchmodat2", 452, [AT_FDCWD, path, mode, 0, 0]),
        ];
        for (call, number, arguments) in calls {
            println!("{call} {mode:o}: {}", call_kernel(number, arguments));
        }
    }
    let calls: [(&str, i64, [i64; 5]); 9] = [
        ("listxattr", libc::SYS_listxattr, [path, value, 16, 0, 0]),
        ("llistxattr", libc::SYS_llistxattr, [path, value, 16, 0, 0]),
        ("flistxattr", libc::SYS_flistxattr, [fd, value, 16, 0, 0]),
        ("getxattr", libc::SYS_getxattr, [path, name, value, 16, 0]),
        ("lgetxattr", libc::SYS_lgetxattr, [path, name, value, 16, 0]),
        ("fgetxattr", libc::SYS_fgetxattr, [fd, name, value, 16, 0]),
        ("setxattr", libc::SYS_setxattr, [path, name, value, 1, 0]),
        ("lsetxattr", libc::SYS_lsetxattr, [path, name, value, 1, 0]),
        ("fsetxattr", libc::SYS_fsetxattr, [fd, name, value, 1, 0]),
    ];
    for (call, number, arguments) in calls {
        println!("{call}: {}", call_kernel(number, arguments));
    }
}

fn call_kernel(number: i64, [a, b, c, d, e]: [i64; 5]) -> String {
    // SAFETY: the pointers among the arguments are to live strings and buffers of the given sizes.
    let result = unsafe { libc::syscall(number, a, b, c, d, e) };
    if result >= 0 {
        return "ok".to_owned();
    }
    match io::Error::last_os_error().raw_os_error() {
        Some(libc::EPERM) => "EPERM".to_owned(),
        Some(libc::ENOTSUP) => "ENOTSUP".to_owned(),
        other => format!("{other:?}"),
    }
}

/// What a builtin builder could do with the supervisor's rights.
fn rights() {
    let show = |what: &str, result: io::Result<()>| {
        println!("{what}: {}", result.map_or_else(|error| error.kind().to_string(), |()| "ok".into()));
    };
    let check = |result: i32| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    let mount = |source: &CStr| {
        // SAFETY: terminated strings.
        check(unsafe { libc::mount(source.as_ptr(), c"/tmp".as_ptr(), c"tmpfs".as_ptr(), 0, std::ptr::null()) })
    };
    show("mount", mount(c"none"));
    // SAFETY: plain integers.
    show("setuid", check(unsafe { libc::setuid(0) }));
    show("chroot", std::os::unix::fs::chroot("/tmp"));
    let fds = std::fs::read_dir("/proc/self/fd").unwrap().count();
    // The streams, and the directory that is being read.
    println!("descriptors: {fds}");
}

/// The calls of the two other ABIs that an x86-64 kernel may have. Those that need no pointers.
#[cfg(target_arch = "x86_64")]
fn foreign() {
    use std::os::fd::AsRawFd;

    const X32: i64 = 0x4000_0000;
    const FCHMOD_I386: i64 = 94;
    const FLISTXATTR_I386: i64 = 234;
    /// By the kernel's convention: negative errors.
    fn call_i386(number: i64, a: i64, b: i64) -> i64 {
        let result: i64;
        // SAFETY: a system call of two numbers; LLVM keeps rbx for itself, so it is swapped in and out.
        unsafe {
            std::arch::asm!(
                "xchg rbx, {a}", "int 0x80", "xchg rbx, {a}",
                a = inout(reg) a => _,
                inlateout("rax") number => result,
                in("rcx") b,
                in("rdx") 0,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            );
        }
        i64::from(result as i32)
    }

    let file = std::fs::File::create("file").unwrap();
    let fd = i64::from(file.as_raw_fd());
    for mode in [0o4755, 0o2755] {
        println!("x32 fchmod {mode:o}: {}", call_kernel(X32 | libc::SYS_fchmod, [fd, mode, 0, 0, 0]));
    }
    println!("x32 flistxattr: {}", call_kernel(X32 | libc::SYS_flistxattr, [fd, 0, 0, 0, 0]));
    for mode in [0o755, 0o4755, 0o2755] {
        println!("i386 fchmod {mode:o}: {}", call_i386(FCHMOD_I386, fd, mode));
    }
    println!("i386 flistxattr: {}", call_i386(FLISTXATTR_I386, fd, 0));
}
