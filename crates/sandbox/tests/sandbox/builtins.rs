//! What runs in a sandbox without being executed: system calls that no shell makes.

use std::ffi::CStr;
use std::io;

pub fn run(name: &str, payload: &[u8]) -> i32 {
    match name {
        "greet" => println!("{name} {}", String::from_utf8_lossy(payload)),
        "filtered" => filtered(),
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
