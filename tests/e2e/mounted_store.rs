//! A machine whose `/nix/store` is a mount, and whose Nix daemon is the node that serves it.

use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use shoal_tests::command::{PATIENCE, wait_for};
use shoal_tests::{Cmd, Machine, Nix, Node, Remote, shapes, skip};

use crate::mount::{MountPoint, Unmounted, cannot_mount};

/// By its own name for the versions before it was the usual thing.
const FEATURES: [&str; 3] = ["--option", "extra-experimental-features", "nix-command"];

by_each_version!(what_is_built_works_at_once);

/// A machine, its node and the node's mount.
struct Mounted {
    machine: Machine,
    node: Node,
    point: MountPoint,
}

impl Mounted {
    /// `None`: this machine has no such thing, which was said.
    fn new(nix: &Nix) -> Option<Mounted> {
        if cannot_mount() || !rustix::process::geteuid().is_root() {
            skip("a mount at /nix/store takes root and FUSE");
            return None;
        }
        let machine = Machine::new(nix);
        let point = MountPoint::new();
        let node = Node::start_with(&[&machine], &["--mount", point.dir.to_str().unwrap()]);
        Some(Mounted { machine, node, point })
    }

    fn program(&self, program: impl AsRef<Path>) -> Cmd {
        self.machine.mounted(program.as_ref(), &self.node, &self.point.dir)
    }

    fn nix(&self, program: &str) -> Cmd {
        self.program(self.machine.nix.program(program))
    }

    /// `nix build` of an attribute with a result link.
    fn build(&self, salt: &str, attribute: &str) -> PathBuf {
        let link = self.machine.home().join(format!("result-{attribute}-{salt}"));
        let build = self.nix("nix").args(FEATURES).args(["build", "-f"]).args(shapes::expression(&self.machine, salt));
        build.arg(attribute).arg("--out-link").arg(&link).ok();
        link
    }
}

fn what_is_built_works_at_once(nix: &Nix) {
    let Some(mounted) = Mounted::new(nix) else { return };
    let (machine, node) = (&mounted.machine, &mounted.node);
    let link = mounted.build("", "program");
    let run = mounted.program(link.join("bin/greet")).ok();
    assert_eq!(run.text(), "hello");
    let out = fs::read_link(&link).unwrap().display().to_string();
    mounted.nix("nix-store").args(["--verify-path", &out]).ok();
    let info = mounted.nix("nix").args(FEATURES).args(["path-info", "--closure-size", &out]).ok();
    assert!(info.text().starts_with(&out), "{info}");
    let listed = mounted.nix("nix").args(FEATURES).args(["store", "ls", &format!("{out}/bin")]).ok();
    assert!(listed.text().ends_with("greet"), "{listed}");

    // The older command line reads derivations by itself, and so does an evaluation what it had built.
    let second = machine.home().join("second");
    let args = shapes::args(machine, "other", &["twice"]);
    mounted.nix("nix-build").args(args).arg("--out-link").arg(&second).ok();
    assert_eq!(mounted.program("cat").arg(second.join("both")).ok().text(), "hello\nhello");
    let file = shapes::expression(machine, "third").remove(0);
    let busybox = machine.nix.busybox().display().to_string();
    let reads = format!(
        r#"builtins.readFile "${{(import {file} {{ busybox = {busybox}; salt = "third"; }}).hello}}/greeting""#
    );
    let read = mounted.nix("nix").args(FEATURES).args(["eval", "--impure", "--raw", "--expr", &reads]).ok();
    assert_eq!(read.text(), "hello");

    // A link is a root for as long as it is there.
    node.shoal("gc").ok();
    assert_eq!(mounted.program(link.join("bin/greet")).ok().text(), "hello");
    fs::remove_file(&link).unwrap();
    node.shoal("gc").ok();
    assert!(!node.valid().contains(&out));
    mounted.program("ls").arg(&out).fails();
}

/// What was looked for before it was there is there when it is built, for a process that goes on looking.
#[test]
fn what_was_not_there_is_there_when_it_is_built() {
    let Some(mounted) = Mounted::new(&Nix::newest()) else { return };
    let machine = &mounted.machine;
    let eval =
        mounted.nix("nix-instantiate").args(["--eval", "--strict"]).args(shapes::args(machine, "", &["hello.outPath"]));
    let out = eval.ok().text().trim_matches('"').to_owned();
    let marker = machine.path("looked");
    let script = format!("! [ -e {out} ] && touch {} && read go && cat {out}/greeting", marker.display());
    let (from_us, mut to_them) = UnixStream::pair().unwrap();
    let looking = mounted.program("sh").args(["-c", &script]).stdin(OwnedFd::from(from_us).into()).start();
    wait_for("it to have looked", PATIENCE, || marker.exists().then_some(()));
    mounted.build("", "hello");
    to_them.write_all(b"go\n").unwrap();
    let looked = looking.finish(PATIENCE).expect_code(0);
    assert_eq!(looked.text(), "hello");
}

/// The store of a Nix that goes on working on it, under a mount of the mesh's.
#[test]
fn an_overlay_shows_what_a_local_nix_has_and_adds_and_what_the_mesh_has() {
    if cannot_mount() || !rustix::process::geteuid().is_root() {
        return skip("an overlay over a store takes root and FUSE");
    }
    let (machine, far) = (Machine::new(&Nix::newest()), Machine::new(&Nix::newest()));
    let node = Node::start(&[&machine, &far]);
    let old = shapes::build_locally(&machine, &["twice"]).remove(0);
    let mesh = shapes::build_on(&far, &node, Remote::SshNg, &["program"]).remove(0);
    // Where a local daemon finds the directory itself.
    let (store, own) = (machine.real_path("/nix/store"), machine.path("own"));
    fs::create_dir(&own).unwrap();
    Cmd::new("mount").args(["--bind"]).args([&store, &own]).ok();
    let _own = Unmounted(own.clone());
    let mut mounting = node.shoal("mount --overlay").arg(&store).start();
    let _over = Unmounted(store.clone());
    let seen = |path: &str| store.join(Path::new(path).file_name().unwrap());
    wait_for("a mount", PATIENCE, || seen(&mesh).exists().then_some(()));
    assert_eq!(fs::read_to_string(seen(&old).join("both")).unwrap(), "hello\nhello\n");
    machine.local("nix-store").args(["--verify-path", &old]).ok();
    let program = |path: &str| machine.mounted(path, &node, &store);
    assert_eq!(program(&format!("{mesh}/bin/greet")).ok().text(), "hello");
    // What it builds now is there at once, though it was looked for before.
    let real = format!("local?root={}&real={}", machine.root().display(), own.display());
    let nix = |program: &str| machine.local(program).without_env("NIX_CLIENT_ROOT").env("NIX_REMOTE", &real);
    let args = shapes::args(&machine, "later", &["hello"]);
    let eval =
        nix("nix-instantiate").args(["--eval", "--strict"]).args(shapes::args(&machine, "later", &["hello.outPath"]));
    let new = eval.ok().text().trim_matches('"').to_owned();
    assert!(!seen(&new).exists());
    nix("nix-build").arg("--no-out-link").args(args).ok();
    assert_eq!(program("cat").arg(format!("{new}/greeting")).ok().text(), "hello");
    let listed = || fs::read_dir(&store).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    wait_for("it to be listed", PATIENCE, || listed().contains(&seen(&new)).then_some(()));
    assert!(listed().contains(&seen(&mesh)) && listed().contains(&seen(&old)));
    mounting.signal(Signal::INT);
    mounting.wait(PATIENCE);
    wait_for("the mount to be gone", PATIENCE, || (!seen(&mesh).exists()).then_some(()));
    assert!(seen(&new).exists(), "what is in the directory stays");
}
