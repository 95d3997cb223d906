//! Programs that run from a mount whose contents are at the other end of a long and lossy link.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use shoal_tests::cable::Quality;
use shoal_tests::command::wait_for;
use shoal_tests::mesh::invite;
use shoal_tests::network::Network;
use shoal_tests::{Cmd, Machine, Mesh, Nix, Node, Remote, skip};

use crate::mount::{MountPoint, cannot_mount, fetched};

/// Two of these lie between two machines: a round trip of 20 ms, and one packet of a hundred lost each way.
const LINK: Quality = Quality { bytes_s: 100e6 / 8.0, delay: Duration::from_millis(5), lost_per_mille: 5 };
/// Tens of megabytes over such a link, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(400);
const SOURCE: &str = "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include <unistd.h>\n\
    int main(void) { printf(\"compiled %zu\\n\", strlen(\"far\")); return 0; }\n";
const SCRIPT: &str = "import sys, json, email.message, http.client, unittest, asyncio, argparse\n\
    print(sys.prefix); print(json.dumps(sorted([3, 1, 2])))";

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    Cmd::new("cp").args(["-a", "--no-preserve=ownership"]).args([from, to]).ok();
}

/// The directory where this machine's compiler has its parts.
fn libraries() -> PathBuf {
    let said = Cmd::new("/usr/bin/gcc").arg("-print-libgcc-file-name").ok();
    Path::new(said.text()).parent().unwrap().canonicalize().unwrap()
}

/// This machine's C compiler as a tree that finds its parts by itself; `None` where there is none.
fn compiler(to: &Path) -> Option<()> {
    let gcc = Path::new("/usr/bin/gcc").canonicalize().ok()?;
    let library = libraries();
    let headers = Path::new("/usr/include");
    copy(&gcc, &to.join("bin/gcc"));
    copy(&library, &to.join(library.strip_prefix("/usr").ok()?));
    copy(&Path::new("/usr/bin/as").canonicalize().ok()?, &to.join("bin/as"));
    for entry in fs::read_dir(headers).ok()?.flatten() {
        let name = entry.file_name();
        let is_basic = name.to_str().is_some_and(|name| name.ends_with(".h") || BASIC.contains(&name));
        if is_basic {
            copy(&entry.path(), &to.join("include").join(&name));
        }
    }
    Some(())
}

/// Directories of headers that a libc has.
const BASIC: [&str; 4] = ["x86_64-linux-gnu", "linux", "asm-generic", "sys"];

/// This machine's Python, likewise.
fn python(to: &Path) -> Option<()> {
    let python = Path::new("/usr/bin/python3").canonicalize().ok()?;
    let library = Path::new("/usr/lib").join(python.file_name()?);
    library.join("os.py").exists().then_some(())?;
    copy(&python, &to.join("bin/python3"));
    copy(&library, &to.join("lib").join(python.file_name()?));
    Some(())
}

fn size(dir: &Path) -> u64 {
    let du = Cmd::new("du").args(["-s", "--apparent-size", "--block-size=1"]).arg(dir).ok();
    du.text().split_whitespace().next().and_then(|size| size.parse().ok()).unwrap()
}

/// Two machines with the link between; the first one has `path`, and nothing of it is at the second.
fn far_mesh(network: &Network, machine: &Machine) -> Mesh {
    let mut nodes: Vec<Node> = Vec::new();
    for number in 0..2 {
        let ticket = nodes.first().map(|first| invite(first, ""));
        let (name, mesh) = (format!("n{number}"), format!("{}:7433", network.address(number)));
        let mut flags = vec!["--name", &name, "--mesh", &mesh, "--copies", "1"];
        flags.extend(ticket.iter().flat_map(|ticket| ["--join", ticket]));
        let mut node = Node::prepare(&flags).within(&network.namespace(number));
        node.write_keys(&machine.public_key());
        node.start_again();
        nodes.push(node);
    }
    let mut mesh = Mesh { nodes };
    mesh.wait_until_whole();
    mesh
}

/// Runs what `make` makes from a mount at the far machine.
fn run_from_afar(what: &str, make: impl Fn(&Path) -> Option<()>, run: impl Fn(&Machine, &Path)) {
    if cannot_mount() {
        return skip("FUSE cannot be mounted here");
    }
    let machine = Machine::new(&Nix::newest());
    let tree = machine.path(what);
    if make(&tree).is_none() {
        return skip(&format!("there is no {what} on this machine"));
    }
    let Some(network) = Network::start_far(2, LINK) else { return };
    let mesh = far_mesh(&network, &machine);
    let path = machine.local("nix-store").arg("--add").arg(&tree).patience(PATIENCE).ok().text().to_string();
    let store = machine.store(&mesh[0], Remote::SshNg);
    let copy = machine.near("nix", &mesh[0]).args(["copy", "--no-check-sigs", "--to", &store, &path]);
    copy.patience(PATIENCE).ok();
    let point = MountPoint::new();
    let mut mounting = mesh[1].shoal("mount").arg(&point.dir).start();
    wait_for("a mount", PATIENCE, || point.is_mounted().then_some(()));
    let since = std::time::Instant::now();
    run(&machine, &point.at(&path));
    let (chunks, bytes) = fetched(&mesh[1]);
    let mounts = &mesh[1].shoal("status --json").ok().json()["mounts"]["mounted"][0];
    let (all, waited) = (size(&tree), &mounts["waited_reads"]);
    println!(
        "{what} at 20 ms and 1 % loss: {:?}, {bytes} of {all} bytes in {chunks} chunks, {waited} reads waited",
        since.elapsed()
    );
    assert_eq!(mounts["failed_reads"], 0);
    assert!(bytes * 2 < all, "what is not read is not fetched: {bytes} of {all}");
    mounting.signal(Signal::INT);
    mounting.wait(PATIENCE);
}

#[test]
fn a_compiler_runs_over_a_long_and_lossy_link() {
    run_from_afar("compiler", compiler, |machine, tools| {
        let (source, program) = (machine.path("a.c"), machine.path("a"));
        fs::write(&source, SOURCE).unwrap();
        let own = tools.join(libraries().strip_prefix("/usr").unwrap()).join("include");
        let headers = [own, tools.join("include"), tools.join("include/x86_64-linux-gnu")];
        let gcc = Cmd::new(tools.join("bin/gcc")).arg("-B").arg(tools.join("bin")).arg("-nostdinc");
        let gcc = headers.iter().fold(gcc, |gcc, dir| gcc.arg("-isystem").arg(dir));
        gcc.args(["-O2", "-c", "-o"]).arg(machine.path("a.o")).arg(&source).patience(PATIENCE).ok();
        // What links it is this machine's.
        Cmd::new("/usr/bin/gcc").arg("-o").args([&program, &machine.path("a.o")]).ok();
        assert_eq!(Cmd::new(&program).ok().text(), "compiled 3");
    });
}

#[test]
fn an_interpreter_with_its_library_runs_over_a_long_and_lossy_link() {
    run_from_afar("python", python, |_, tools| {
        let run = Cmd::new(tools.join("bin/python3")).args(["-I", "-S", "-B", "-c", SCRIPT]).patience(PATIENCE).ok();
        assert_eq!(run.lines(), [tools.to_str().unwrap(), "[1, 2, 3]"]);
    });
}
