//! The root directory that a builder sees, all but the store.
//!
//! A tmpfs with a few files and directories, and on it: `/proc` and `/dev/pts` of the sandbox's own name
//! spaces, `/dev/shm`, and from the host the build directory, `/tmp`, the shell and extra binds.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, chmodat, chownat, fstat, makedev, mkdirat, mknodat, openat, symlinkat,
};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_string,
    fsmount, fsopen, move_mount, open_tree,
};

use crate::failure::{Attempt, Doing, Failure};
use crate::identity::{INSIDE_GID, INSIDE_UID, Ids, Rights};
use crate::{Bind, Scratch, Spec, sys};

/// Enough for our own entries and some hundred extra binds. The builder keeps its files elsewhere.
const ROOT_OPTIONS: [(&str, &str); 3] = [("size", "4m"), ("nr_inodes", "8192"), ("mode", "0750")];

/// Name, major and minor number.
const DEVICES: [(&str, u32, u32); 6] =
    [("full", 1, 7), ("null", 1, 3), ("random", 1, 8), ("tty", 5, 0), ("urandom", 1, 9), ("zero", 1, 5)];
const KVM: (&str, u32, u32) = ("kvm", 10, 232);

const DEVICE_LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// What a build with the host's network reads to find its way.
const NETWORK_FILES: [&str; 3] = ["/etc/resolv.conf", "/etc/services", "/etc/hosts"];

/// A new file system, not attached to anything.
pub(crate) fn new_filesystem(kind: &str, options: &[(&str, &str)]) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        fsconfig_set_string(&context, *key, *value)?;
    }
    fsconfig_create(&context)?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
}

/// Attaches a detached mount at `path` below `dir`.
pub(crate) fn attach(mount: impl AsFd, dir: impl AsFd, path: &Path) -> io::Result<()> {
    Ok(move_mount(mount, "", dir, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// A detached copy of what the host has at `path`, following symlinks.
pub(crate) fn copy_mount(dir: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    Ok(open_tree(dir, path, flags)?)
}

/// What of a root can be made before there is a build. Not attached to anything.
#[derive(Debug)]
pub(crate) struct Base {
    dir: OwnedFd,
    /// Mounts, and where they belong.
    mounts: Vec<(OwnedFd, PathBuf)>,
}

impl Base {
    /// Makes everything that is the same in all sandboxes. The process' umask must be 0.
    pub fn create(rights: Rights) -> Attempt<Base> {
        let dir = new_filesystem("tmpfs", &ROOT_OPTIONS).doing("mounting a tmpfs for the root")?;
        let mut base = Base { dir, mounts: Vec::new() };
        for path in ["/tmp", "/etc", "/dev/shm", "/dev/pts", "/proc"] {
            make_dir(&base.dir, Path::new(path))?;
        }
        let group = format!("root:x:0:\nnixbld:!:{INSIDE_GID}:\nnogroup:x:65534:\n");
        make_file(&base.dir, Path::new("/etc/group"), &group)?;
        for device in DEVICES {
            base.device(device, rights)?;
        }
        for (name, target) in DEVICE_LINKS {
            symlinkat(target, &base.dir, format!("dev/{name}"))
                .doing(format_args!("creating symlink '/dev/{name}'"))?;
        }
        let pts = new_filesystem("devpts", &[("mode", "0620"), ("ptmxmode", "0666")]).doing("mounting /dev/pts")?;
        let proc = new_filesystem("proc", &[]).doing("mounting /proc")?;
        base.mounts.extend([(pts, "/dev/pts".into()), (proc, "/proc".into())]);
        Ok(base)
    }

    /// A node of our own where we may make one that works, else the host's.
    fn device(&mut self, (name, major, minor): (&str, u32, u32), rights: Rights) -> Attempt<()> {
        let path = format!("dev/{name}");
        if rights == Rights::Root {
            let mode = Mode::from_raw_mode(0o666);
            let device = makedev(major, minor);
            if mknodat(&self.dir, &path, FileType::CharacterDevice, mode, device).is_ok() {
                return Ok(());
            }
        }
        let path = Path::new("/").join(path);
        let mount = copy_mount(CWD, &path).doing(format_args!("opening device '{}'", path.display()))?;
        make_file(&self.dir, &path, "")?;
        self.mounts.push((mount, path));
        Ok(())
    }
}

/// The root directory while it is being made; attached at `<scratch>/tmp`.
#[derive(Debug)]
pub(crate) struct Root {
    pub dir: OwnedFd,
}

impl Root {
    /// Completes a root, all but the store. The process' umask must be 0.
    pub fn create(mut base: Base, spec: &Spec, scratch: &Scratch, rights: Rights, ids: Ids) -> Attempt<Root> {
        if spec.kvm && Path::new("/dev/kvm").exists() {
            base.device(KVM, rights)?;
        }
        let Base { dir, mounts } = base;
        let tmp = copy_mount(CWD, &scratch.tmp()).doing("opening the directory for /tmp")?;
        attach(&dir, CWD, &scratch.tmp()).doing("attaching the root")?;
        let root = Root { dir };
        if rights == Rights::Root {
            let group = Gid::from_raw(ids.gid);
            chownat(&root.dir, "", None, Some(group), AtFlags::EMPTY_PATH).doing("setting the root's group")?;
        }
        root.attach(tmp, Path::new("/tmp"))?;
        mounts.iter().try_for_each(|(mount, path)| root.attach(mount, path))?;
        root.bind_dir(&scratch.build_dir(), &spec.build_dir)?;
        let shm = new_filesystem("tmpfs", &[("size", spec.dev_shm_size.as_str()), ("mode", "1777")])
            .doing("mounting /dev/shm")?;
        root.attach(shm, Path::new("/dev/shm"))?;
        root.etc(spec)?;
        if let Some(shell) = &spec.system_shell {
            root.bind(shell, Path::new("/bin/sh"), false)?;
        }
        for bind in &spec.binds {
            root.extra_bind(bind)?;
        }
        chmodat(&root.dir, "etc", Mode::from_raw_mode(0o555), AtFlags::empty()).doing("closing /etc")?;
        Ok(root)
    }

    /// Attaches a detached mount at a path that exists inside.
    pub fn attach(&self, mount: impl AsFd, target: &Path) -> Attempt<()> {
        attach(mount, &self.dir, &inside(target)?).doing(format_args!("mounting '{}'", target.display()))
    }

    pub fn make_dir(&self, path: &Path) -> Attempt<()> {
        make_dir(&self.dir, path)
    }

    fn bind_dir(&self, source: &Path, target: &Path) -> Attempt<()> {
        self.make_dir(target)?;
        let mount = copy_mount(CWD, source).doing(format_args!("opening directory '{}'", source.display()))?;
        self.attach(mount, target)
    }

    /// Shows `source`, a directory or anything else, at `target`.
    fn bind(&self, source: &Path, target: &Path, read_only: bool) -> Attempt<()> {
        let doing = || format!("binding '{}' to '{}'", source.display(), target.display());
        let mount = copy_mount(CWD, source).doing_with(doing)?;
        if read_only {
            sys::set_read_only(&mount).doing_with(doing)?;
        }
        let kind = FileType::from_raw_mode(fstat(&mount).doing_with(doing)?.st_mode);
        if kind.is_dir() {
            self.make_dir(target)?;
        } else {
            self.make_dir(target.parent().unwrap_or(Path::new("/")))?;
            make_file(&self.dir, target, "")?;
        }
        self.attach(mount, target)
    }

    fn extra_bind(&self, bind: &Bind) -> Attempt<()> {
        if bind.optional && !bind.source.exists() {
            return Ok(());
        }
        self.bind(&bind.source, &bind.target, bind.read_only)
    }

    fn etc(&self, spec: &Spec) -> Attempt<()> {
        let home = spec.build_dir.display();
        make_file(
            &self.dir,
            Path::new("/etc/passwd"),
            &format!(
                "root:x:0:0:Nix build user:{home}:/noshell\n\
                 nixbld:x:{INSIDE_UID}:{INSIDE_GID}:Nix build user:{home}:/noshell\n\
                 nobody:x:65534:65534:Nobody:/:/noshell\n"
            ),
        )?;
        if !spec.network {
            let hosts = "127.0.0.1 localhost\n::1 localhost\n";
            return make_file(&self.dir, Path::new("/etc/hosts"), hosts);
        }
        let lookups = "hosts: files dns\nservices: files\n";
        make_file(&self.dir, Path::new("/etc/nsswitch.conf"), lookups)?;
        for file in NETWORK_FILES.map(Path::new) {
            let bind = Bind { source: file.into(), target: file.into(), optional: true, read_only: true };
            self.extra_bind(&bind)?;
        }
        Ok(())
    }
}

/// A directory below `root` and those above it, as far as they are missing.
fn make_dir(root: &OwnedFd, path: &Path) -> Attempt<()> {
    let path = inside(path)?;
    let mut made = PathBuf::new();
    for part in path.components() {
        made.push(part);
        match mkdirat(root, &made, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => {
                return Err(error).doing(format_args!("creating directory '/{}'", made.display()));
            }
        }
    }
    Ok(())
}

fn make_file(root: &OwnedFd, path: &Path, content: &str) -> Attempt<()> {
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
    let doing = || format!("creating file '{}'", path.display());
    let file = openat(root, inside(path)?, flags, Mode::from_raw_mode(0o644)).doing_with(doing)?;
    if !content.is_empty() {
        io::Write::write_all(&mut std::fs::File::from(file), content.as_bytes()).doing_with(doing)?;
    }
    Ok(())
}

/// A path of the builder as one below the root's descriptor.
fn inside(path: &Path) -> Attempt<PathBuf> {
    let mut below = PathBuf::new();
    for part in path.components() {
        match part {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(part) => below.push(part),
            Component::ParentDir | Component::Prefix(_) => {
                return Err(Failure::new(format!("'{}' is not a path to bind to", path.display())));
            }
        }
    }
    Ok(below)
}
