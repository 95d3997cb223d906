//! What a builder sees: its process, its files, its network.

use std::path::PathBuf;

use expect_test::{Expect, expect};
use shoal_sandbox::{Bind, BuildFile, End, Personality};

use crate::harness::Test;
use crate::world::{Who, World, run};

pub const TESTS: &[Test] = &[
    ("environment_is_what_was_given_in_order", environment_is_what_was_given_in_order),
    ("process_state", process_state),
    ("streams", streams),
    ("etc", etc),
    ("dev", dev),
    ("root_directory", root_directory),
    ("name_spaces", name_spaces),
    ("network_is_loopback_only", network_is_loopback_only),
    ("network_can_be_the_hosts", network_can_be_the_hosts),
    ("set_id_bits_and_attributes_are_refused", set_id_bits_and_attributes_are_refused),
    ("other_abis_are_filtered_and_allowed", other_abis_are_filtered_and_allowed),
    ("builtins_have_no_rights", builtins_have_no_rights),
    ("linux32_is_i686", linux32_is_i686),
    ("files_and_binds", files_and_binds),
];

/// Runs a script whose output must be exactly this.
fn shows(world: &World, script: &str, expected: Expect) {
    let ran = run(&world.script(script));
    expected.assert_eq(&ran.log);
    assert_eq!(ran.outcome.end, End::Exited(0), "{script}");
}

fn environment_is_what_was_given_in_order(world: &World) {
    let mut spec = world.script("");
    for (name, value) in [("Z", "last letter"), ("A", "first\nletter"), ("EMPTY", ""), ("Z", "twice")] {
        spec.env.push((name.into(), value.into()));
    }
    spec.env.remove(0);
    spec.env.push((b"BYTES".to_vec(), vec![0xff, 0xfe]));
    // Not through a shell, which would pass on each name once.
    spec.program = shoal_sandbox::Program::Exec {
        path: format!("/nix/store/{}/bin/busybox", crate::world::BUSYBOX).into(),
        argv: vec![b"/any/thing/cat".to_vec(), b"/proc/self/environ".to_vec()],
    };
    let ran = run(&spec);
    assert_eq!(ran.log, "Z=last letter\0A=first\nletter\0EMPTY=\0Z=twice\0BYTES=\u{fffd}\u{fffd}\0");
}

fn process_state(world: &World) {
    shows(
        world,
        "echo pid $$; pwd; umask; ulimit -c; cat /proc/self/personality; \
         grep -E '^(NoNewPrivs|Seccomp|Uid|Gid|CapInh|CapPrm|CapEff|CapAmb|SigBlk|SigIgn|SigCgt|NSsid):' /proc/self/status; \
         id -u; id -g; id -un; id -gn",
        expect![[r#"
            pid 1
            /build
            0022
            0
            00040000
            Uid:	1000	1000	1000	1000
            Gid:	100	100	100	100
            NSsid:	1
            SigBlk:	0000000000000000
            SigIgn:	0000000000000000
            SigCgt:	0000000000000000
            CapInh:	0000000000000000
            CapPrm:	0000000000000000
            CapEff:	0000000000000000
            CapAmb:	0000000000000000
            NoNewPrivs:	1
            Seccomp:	2
            1000
            100
            nixbld
            nixbld
        "#]],
    );
    if world.who == Who::Root {
        shows(
            world,
            "id -G; grep Groups /proc/self/status | wc -w",
            expect![[r#"
            100
            1
        "#]],
        );
    }
}

fn streams(world: &World) {
    shows(
        world,
        "for fd in 0 1 2; do test -t $fd && echo $fd is a terminal; done; \
         readlink /proc/self/fd/0; ls -1 /proc/self/fd; \
         echo by name > /dev/stderr; echo by another > /dev/stdout; \
         echo no controlling terminal > /dev/tty; printf 'raw\\n'",
        expect![[r#"
            1 is a terminal
            2 is a terminal
            /dev/null
            0
            1
            2
            3
            by name
            by another
            sh: can't create /dev/tty: No such device or address
            raw
        "#]],
    );
}

fn etc(world: &World) {
    shows(
        world,
        "cd /etc; for file in *; do echo \"[$file]\"; cat $file; done; stat -c %a /etc; \
         touch /etc/new 2>/dev/null && echo writable; hostname; cat /proc/sys/kernel/domainname",
        expect![[r#"
            [group]
            root:x:0:
            nixbld:!:100:
            nogroup:x:65534:
            [hosts]
            127.0.0.1 localhost
            ::1 localhost
            [passwd]
            root:x:0:0:Nix build user:/build:/noshell
            nixbld:x:1000:100:Nix build user:/build:/noshell
            nobody:x:65534:65534:Nobody:/:/noshell
            555
            localhost
            (none)
        "#]],
    );
}

fn dev(world: &World) {
    shows(
        world,
        "cd /dev; for node in *; do stat -c '%n %A %t:%T' $node; done; for link in fd stdin stdout stderr ptmx; do readlink $link; done; \
         stat -c '%a %F' shm pts/ptmx; echo data > /dev/null; head -c 3 /dev/zero | wc -c; \
         head -c 3 /dev/urandom | wc -c; echo x > /dev/full; touch /dev/shm/file && echo shared",
        expect![[r#"
            fd lrwxrwxrwx 0:0
            full crw-rw-rw- 1:7
            null crw-rw-rw- 1:3
            ptmx lrwxrwxrwx 0:0
            pts drwxr-xr-x 0:0
            random crw-rw-rw- 1:8
            shm drwxrwxrwt 0:0
            stderr lrwxrwxrwx 0:0
            stdin lrwxrwxrwx 0:0
            stdout lrwxrwxrwx 0:0
            tty crw-rw-rw- 5:0
            urandom crw-rw-rw- 1:9
            zero crw-rw-rw- 1:5
            /proc/self/fd
            /proc/self/fd/0
            /proc/self/fd/1
            /proc/self/fd/2
            pts/ptmx
            1777 directory
            666 character special file
            3
            3
            sh: write error: No space left on device
            shared
        "#]],
    );
}

fn root_directory(world: &World) {
    shows(
        world,
        "ls -1 /; stat -c '%a %n' / /nix /nix/store /build /tmp /proc; ls /nix /nix/store; \
         touch /tmp/a /build/b && echo writable; ls -A /build; stat -c '%u:%g' /build /build/b /tmp/a; \
         echo script > /build/run; chmod 755 /build/run",
        expect![[r#"
            build
            dev
            etc
            nix
            proc
            tmp
            750 /
            755 /nix
            1775 /nix/store
            700 /build
            1777 /tmp
            555 /proc
            /nix:
            store

            /nix/store:
            00000000000000000000000000000000-busybox
            writable
            b
            1000:100
            1000:100
            1000:100
        "#]],
    );
    if world.who == Who::Root {
        shows(
            world,
            "touch /new 2>/dev/null && echo writable; stat -c '%u:%g' / /nix/store",
            expect![[r#"
                65534:100
                65534:100
            "#]],
        );
    }
}

fn name_spaces(world: &World) {
    let ours = |name: &str| std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
    for name in ["pid", "mnt", "ipc", "uts", "net", "user"] {
        let theirs = world.output(&format!("readlink /proc/self/ns/{name}"));
        assert_ne!(PathBuf::from(theirs.trim_end()), ours(name), "{name}");
    }
    assert_eq!(world.output("cd /proc; echo [0-9]*"), "1\n", "the shell sees itself alone");
}

fn network_is_loopback_only(world: &World) {
    shows(
        world,
        "grep -c : /proc/net/dev; ifconfig lo | grep -oE 'inet6? addr:.*|UP LOOPBACK RUNNING'; \
         ping -c 1 -W 1 127.0.0.1 > /dev/null 2>&1; echo hello | nc -l -p 4000 127.0.0.1 & \
         tries=500; until nc 127.0.0.1 4000 < /dev/null 2> /dev/null || [ $((tries -= 1)) = 0 ]; do sleep 0.02; done",
        expect![[r#"
            1
            inet addr:127.0.0.1  Mask:255.0.0.0
            inet6 addr: ::1/128 Scope:Host
            UP LOOPBACK RUNNING
            hello
        "#]],
    );
}

fn network_can_be_the_hosts(world: &World) {
    let mut spec = world.script("readlink /proc/self/ns/net; cat /etc/nsswitch.conf; ls -1 /etc; cat /etc/hosts");
    spec.network = true;
    let ran = run(&spec);
    assert_eq!(ran.outcome.end, End::Exited(0));
    let ours = std::fs::read_link("/proc/self/ns/net").unwrap();
    let log = ran.log.strip_prefix(ours.to_str().unwrap()).unwrap();
    let log = log.strip_prefix("\nhosts: files dns\nservices: files\n").unwrap();
    let mut names = vec!["group", "hosts", "nsswitch.conf", "passwd", "resolv.conf", "services"];
    names.retain(|name| {
        let from_host = ["hosts", "resolv.conf", "services"].contains(name);
        !from_host || std::path::Path::new("/etc").join(name).exists()
    });
    let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    assert_eq!(log, format!("{}\n{hosts}", names.join("\n")));
}

fn set_id_bits_and_attributes_are_refused(world: &World) {
    let ran = run(&world.builtin("filtered"));
    expect![[r#"
        chmod 755: ok
        fchmod 755: ok
        fchmodat 755: ok
        fchmodat2 755: ok
        chmod 4755: EPERM
        fchmod 4755: EPERM
        fchmodat 4755: EPERM
        fchmodat2 4755: EPERM
        chmod 2755: EPERM
        fchmod 2755: EPERM
        fchmodat 2755: EPERM
        fchmodat2 2755: EPERM
        chmod 1755: ok
        fchmod 1755: ok
        fchmodat 1755: ok
        fchmodat2 1755: ok
        listxattr: ENOTSUP
        llistxattr: ENOTSUP
        flistxattr: ENOTSUP
        getxattr: ENOTSUP
        lgetxattr: ENOTSUP
        fgetxattr: ENOTSUP
        setxattr: ENOTSUP
        lsetxattr: ENOTSUP
        fsetxattr: ENOTSUP
    "#]]
    .assert_eq(&ran.log);
}

fn other_abis_are_filtered_and_allowed(world: &World) {
    let ran = run(&world.builtin("foreign"));
    if ran.outcome.end != End::Exited(3) {
        println!("skipped: other ABIs: this machine runs no 32-bit programs: {:?}", ran.outcome.end);
        return;
    }
    expect![[r#"
        x32 fchmod 4755: EPERM
        x32 fchmod 2755: EPERM
        x32 flistxattr: ENOTSUP
        i386 fchmod 755: 0
        i386 fchmod 4755: -1
        i386 fchmod 2755: -1
        i386 flistxattr: -95
    "#]]
    .assert_eq(&ran.log);
}

fn builtins_have_no_rights(world: &World) {
    let ran = run(&world.builtin("greet"));
    assert_eq!((ran.log.as_str(), ran.outcome.end), ("greet payload\n", End::Exited(3)));
    expect![[r#"
        mount: permission denied
        setuid: invalid input parameter
        chroot: permission denied
        descriptors: 4
    "#]]
    .assert_eq(&run(&world.builtin("rights")).log);
    assert_eq!(run(&world.builtin("unknown")).outcome.end, End::Exited(7));
}

fn linux32_is_i686(world: &World) {
    let mut spec = world.script("uname -m");
    spec.personality = Personality::Linux32;
    let expected = match std::env::consts::ARCH {
        "x86_64" => "i686\n",
        "aarch64" => "armv8l\n",
        other => panic!("what is a 32-bit {other}?"),
    };
    assert_eq!(run(&spec).log, expected);
}

fn files_and_binds(world: &World) {
    let outside = world.dir.join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("file"), "from outside\n").unwrap();
    let mut spec = world.script(
        "stat -c '%n %a %u:%g' .attrs.json secret; cat .attrs.json secret; \
         cat /opt/deep/place/file /etc/one; echo x 2>/dev/null > /opt/deep/place/file || echo read-only; \
         ls /opt; sh -c 'echo the shell of the system'; /bin/sh -c 'echo $0'",
    );
    spec.files = vec![
        BuildFile { name: ".attrs.json".into(), bytes: b"{}\n".to_vec(), mode: 0o644 },
        BuildFile { name: "secret".into(), bytes: b"s\n".to_vec(), mode: 0o600 },
    ];
    let bind =
        |source: PathBuf, target: &str, optional| Bind { source, target: target.into(), optional, read_only: true };
    spec.binds = vec![
        bind(outside.clone(), "/opt/deep/place", false),
        bind(outside.join("file"), "/etc/one", false),
        bind(outside.join("none"), "/opt/none", true),
    ];
    spec.system_shell = Some("/bin/busybox".into());
    let ran = run(&spec);
    expect![[r#"
        .attrs.json 644 1000:100
        secret 600 1000:100
        {}
        s
        from outside
        from outside
        read-only
        deep
        the shell of the system
        /bin/sh
    "#]]
    .assert_eq(&ran.log);

    spec.binds = vec![bind(outside.join("none"), "/opt/none", false)];
    spec.scratch = world.scratch();
    let End::SetupFailed(text) = run(&spec).outcome.end else { panic!("a missing bind is an error") };
    assert!(text.contains("none' to '/opt/none': No such file or directory"), "{text}");
}
