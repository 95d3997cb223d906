//! A Debian with systemd within this machine: namespaces, and an overlay over a tree that debootstrap made.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::command::{Cmd, Running, wait_for};
use crate::place::{self, Place};

const BOOT_PATIENCE: Duration = Duration::from_secs(120);

/// `bash -c … boot TREE PLACE`: what a machine has when its first process starts. All of it goes with that process.
const BOOT: &str = r#"
tree=$1 place=$2 root=$2/root
mount --make-rprivate /
mount -t overlay -o "lowerdir=$tree,upperdir=$place/upper,workdir=$place/work" overlay "$root"
mkdir -p "$root/var/lib/shoal" "$root/old"
mount --bind "$place/data" "$root/var/lib/shoal"
cd "$root"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
for name in null zero full random urandom tty fuse; do
    touch "dev/$name"
    mount --bind "/dev/$name" "dev/$name"
done
ip link set lo up
pivot_root . old
umount -l /old
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd
"#;

pub struct Debian {
    /// Of systemd, as this machine numbers it.
    init: String,
    _running: Running,
    place: Place,
}

/// The newest package that `deploy/debian/build` made, and the tree that `tests/deploy/get-debian` fetched.
fn found() -> Option<(PathBuf, PathBuf)> {
    let target = place::repository().join("target");
    let packages = fs::read_dir(target.join("debian")).ok()?.flatten().map(|entry| entry.path());
    let package = packages.filter(|path| path.extension().is_some_and(|extension| extension == "deb")).max()?;
    let tree = target.join("tools/debian");
    tree.join("complete").exists().then(|| (package, tree.join("root")))
}

impl Debian {
    /// One that is up, with the package in `/root/shoal.deb`. `None`, after saying why, where that takes what is not here.
    pub fn boot() -> Option<Debian> {
        let Some((package, tree)) = found().filter(|_| rustix::process::geteuid().is_root()) else {
            println!("skipped: it takes root, deploy/debian/build and tests/deploy/get-debian target/tools/debian");
            return None;
        };
        let place = Place::new("d");
        for name in ["root", "upper", "work", "data"] {
            fs::create_dir(place.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        let namespaces = ["--mount", "--pid", "--ipc", "--uts", "--net", "--cgroup", "--fork", "--kill-child"];
        let boot =
            Cmd::new("unshare").args(namespaces).args(["bash", "-euc", BOOT, "boot"]).arg(tree).arg(place.path());
        let running = boot.start();
        let unshare = running.pid().as_raw_nonzero();
        let children = PathBuf::from(format!("/proc/{unshare}/task/{unshare}/children"));
        let init = wait_for("systemd", BOOT_PATIENCE, || {
            let child = fs::read_to_string(&children).ok()?.trim().to_owned();
            let name = fs::read_to_string(format!("/proc/{child}/comm")).ok()?;
            (name.trim() == "systemd").then_some(child)
        });
        let debian = Debian { init, _running: running, place };
        fs::copy(package, debian.path("/root/shoal.deb")).unwrap_or_else(|error| panic!("the package: {error}"));
        wait_for("a machine that is up", BOOT_PATIENCE, || {
            (debian.run("systemctl is-system-running").run().text() == "running").then_some(())
        });
        Some(debian)
    }

    /// A command within it.
    pub fn run(&self, command: &str) -> Cmd {
        let within = ["--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup", "--root", "--wd", "--target"];
        let cmd = Cmd::new("nsenter").args(within).arg(&self.init).args(["/bin/sh", "-euc", command]);
        cmd.env("DEBIAN_FRONTEND", "noninteractive").env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
    }

    /// A file of it, as this machine sees it.
    pub fn path(&self, path: &str) -> PathBuf {
        Path::new("/proc").join(&self.init).join("root").join(path.trim_start_matches('/'))
    }

    /// The same of its data directory, which has a short name: a unix socket's path has 108 bytes.
    pub fn data(&self) -> PathBuf {
        self.place.join("data")
    }

    /// One property of a unit.
    pub fn property(&self, unit: &str, name: &str) -> String {
        self.run(&format!("systemctl show --value -p {name} {unit}")).ok().text().to_owned()
    }
}

impl Drop for Debian {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("--- its journal\n{}", self.run("journalctl --no-pager -u shoal.service -u shoal.socket").run());
        }
    }
}
