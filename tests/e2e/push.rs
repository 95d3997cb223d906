//! `shoal push`, from the store of a stock Nix.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::Value;
use shoal_tests::node::program;
use shoal_tests::{Cmd, Machine, Nix, Node, shapes};

by_each_version!(pushes_what_a_node_lacks);

/// A `shoal` command that copies between a machine's own store and the node at a URL, as whom the token says.
pub fn copying(machine: &Machine, node: &str, command: &str, token: &str) -> Cmd {
    let file = machine.path("token");
    fs::write(&file, token).unwrap();
    let nix = machine.nix.program("nix");
    let cmd = Cmd::new(program()).args(command.split_whitespace()).env("PATH", nix.parent().unwrap());
    let cmd = cmd.env("HOME", machine.home()).arg("--store").arg(machine.root());
    cmd.args(["--node", node, "--json", "--token-file"]).arg(file)
}

pub fn token(node: &Node, role: &str) -> String {
    node.shoal(&format!("token create --role {role}")).ok().text().to_owned()
}

/// Two versions of some software in the machine's store, of 24 MiB each; the second differs in 1 % of it.
pub fn versions(machine: &Machine) -> [String; 2] {
    const FILES: usize = 6;
    const FILE_BYTES: usize = 4 << 20;
    let mut state = 1u64;
    let mut noise = |len: usize| -> Vec<u8> {
        let step = |_| {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            (state >> 56) as u8
        };
        (0..len).map(step).collect()
    };
    let dir: PathBuf = machine.path("software");
    fs::create_dir(&dir).unwrap();
    (0..FILES).for_each(|number| fs::write(dir.join(format!("lib{number}.so")), noise(FILE_BYTES)).unwrap());
    let add = || machine.local("nix-store").arg("--add").arg(&dir).ok().text().to_owned();
    let first = add();
    for number in [1, 4] {
        let file = dir.join(format!("lib{number}.so"));
        let mut contents = fs::read(&file).unwrap();
        // Some bytes more than before, so that everything behind them moves.
        contents.splice(2_000_000..2_000_000, noise(FILES * FILE_BYTES / 200));
        fs::write(file, contents).unwrap();
    }
    [first, add()]
}

pub fn number(report: &Value, field: &str) -> u64 {
    report[field].as_u64().unwrap_or_else(|| panic!("no {field} in {report}"))
}

fn pushes_what_a_node_lacks(nix: &Nix) {
    let (here, there) = (Machine::new(nix), Machine::new(nix));
    let node = Node::start(&[]);
    let admin = token(&node, "admin");
    let built = shapes::build_locally(&here, &["chain", "twice"]);
    let report = copying(&here, &node.ready().http, "push", &admin).args(&built).ok().json();
    let pushed: Vec<&str> = report["paths"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let closure = here.local("nix-store").arg("-qR").args(&built).ok();
    let mut expected: Vec<&str> = closure.lines();
    let mut sorted = pushed.clone();
    sorted.sort_unstable();
    expected.sort_unstable();
    expected.dedup();
    assert_eq!(sorted, expected);
    assert!(number(&report, "chunks_moved") > 0 && number(&report, "nar_bytes") > number(&report, "moved_bytes"));
    // A stock Nix gets it from the node, with good signatures.
    let config = format!("trusted-public-keys = {}\n", node.shoal("key show").ok().text());
    let copy = there.local("nix").env("NIX_CONFIG", &config).args(["copy", "--from", &node.ready().http]);
    copy.args(&built).ok();
    there.local("nix").env("NIX_CONFIG", &config).args(["store", "verify", "--recursive"]).args(&built).ok();
    // The derivations that were built, which refer to each other, come in with what they need.
    let drv = here.local("nix-store").args(["-qd", &built[0]]).ok().text().to_owned();
    let report = copying(&here, &node.ready().http, "push", &token(&node, "push")).arg(&drv).ok().json();
    assert!(report["paths"].as_array().unwrap().iter().any(|path| *path == drv.as_str()), "{report}");
    // What is there does not move again.
    let again = copying(&here, &node.ready().http, "push", &admin).args(&built).ok().json();
    assert_eq!((&again["paths"], number(&again, "moved_bytes")), (&Value::Array(Vec::new()), 0));
    assert_eq!(number(&again, "paths_present") as usize, expected.len());
}

#[test]
fn a_second_version_moves_what_changed() {
    let machine = Machine::new(&Nix::newest());
    let node = Node::start(&[]);
    let [first, second] = versions(&machine);
    let push = token(&node, "push");
    let whole = copying(&machine, &node.ready().http, "push", &push).arg(&first).ok().json();
    assert!(number(&whole, "moved_bytes") >= number(&whole, "nar_bytes"), "noise does not compress: {whole}");
    let part = copying(&machine, &node.ready().http, "push", &push).arg(&second).ok().json();
    let (moved, all) = (number(&part, "moved_bytes"), number(&part, "nar_bytes"));
    println!("{moved} of {all} bytes moved: {:.2} %", moved as f64 * 100.0 / all as f64);
    assert!(moved * 100 <= all * 3, "{part}");
    assert!(number(&part, "skipped_bytes") * 100 >= all * 97, "{part}");
}

#[test]
fn what_goes_wrong_is_said() {
    let machine = Machine::new(&Nix::newest());
    let mut node = Node::start(&[]);
    let path = shapes::build_locally(&machine, &["hello"]).remove(0);
    let push = |token: &str| copying(&machine, &node.ready().http, "push", token).arg(&path).run();
    let unknown = push("shoal-wrong").expect_code(1);
    assert!(unknown.stderr.contains("401") && unknown.stderr.contains("--token-file"), "{unknown}");
    let reader = push(&token(&node, "read")).expect_code(1);
    assert!(reader.stderr.contains("takes the role 'push'"), "{reader}");
    let unsigned = push(&token(&node, "push")).expect_code(1);
    assert!(unsigned.stderr.contains("lacks a signature by a trusted key"), "{unsigned}");
    assert_eq!(node.paths().len(), 0);
    let admin = token(&node, "admin");
    let absent = "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-absent";
    let missing = copying(&machine, &node.ready().http, "push", &admin).arg(absent).run().expect_code(1);
    assert!(missing.stderr.contains(absent) && missing.stderr.contains("not valid"), "{missing}");
    copying(&machine, &node.ready().http, "push", &admin).run().expect_code(2);
    let away = copying(&machine, &node.ready().http, "push", &admin).arg(&path);
    node.stop();
    let away = away.run().expect_code(69);
    assert!(away.stderr.contains("cannot reach http://"), "{away}");
}

/// Passes connections on to a node until so many bytes went there, or came back, then cuts all of them and listens no
/// more.
pub fn cutting_proxy(node: &str, there_max: usize, back_max: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let to = node.trim_start_matches("http://").to_owned();
    let cut = Arc::new(Cut { left: Mutex::new([there_max, back_max]), streams: Mutex::default() });
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (client, server) = (stream.unwrap(), TcpStream::connect(&to).unwrap());
            if cut.left.lock().unwrap().contains(&0) {
                return;
            }
            cut.streams.lock().unwrap().extend([client.try_clone().unwrap(), server.try_clone().unwrap()]);
            for (way, from, to) in [(0, &client, &server), (1, &server, &client)] {
                let (from, to, cut) = (from.try_clone().unwrap(), to.try_clone().unwrap(), cut.clone());
                thread::spawn(move || {
                    if cut.pass(way, from, to) {
                        // Unblocks the one that waits for connections.
                        let _ = TcpStream::connect(address);
                    }
                });
            }
        }
    });
    format!("http://{address}")
}

/// What a proxy still lets through, on the way there and back.
struct Cut {
    left: Mutex<[usize; 2]>,
    streams: Mutex<Vec<TcpStream>>,
}

impl Cut {
    /// Whether it cut everything.
    fn pass(&self, way: usize, mut from: TcpStream, mut to: TcpStream) -> bool {
        let mut piece = [0; 16 << 10];
        while let Ok(n @ 1..) = from.read(&mut piece) {
            let mut left = self.left.lock().unwrap();
            let passed = n.min(left[way]);
            left[way] -= passed;
            let is_over = left.contains(&0);
            drop(left);
            let _ = to.write_all(&piece[..passed]);
            if is_over {
                self.streams.lock().unwrap().iter().for_each(|stream| _ = stream.shutdown(Shutdown::Both));
                return true;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
        false
    }
}

/// Wherever the connection is cut, and whatever is collected then: the next push moves the rest, and what was on its way.
#[test]
fn a_push_that_is_cut_goes_on_where_it_was() {
    const CUTS: usize = 8;
    const ON_ITS_WAY: u64 = 4 << 20;
    let machine = Machine::new(&Nix::newest());
    let path = &versions(&machine)[0];
    for cut in 0..CUTS {
        let node = Node::start(&[]);
        let push = token(&node, "push");
        let after = (24 << 20) * cut / CUTS + 100 * cut + 1;
        let proxy = cutting_proxy(&node.ready().http, after, usize::MAX);
        let broken = copying(&machine, &proxy, "push", &push).arg(path).run().expect_code(69);
        assert!(broken.stderr.contains("cannot reach"), "{broken}");
        assert_eq!(node.paths().len(), 0);
        node.shoal("gc").ok();
        let rest = copying(&machine, &node.ready().http, "push", &push).arg(path).ok().json();
        let (moved, all) = (number(&rest, "moved_bytes"), number(&rest, "nar_bytes"));
        assert!(moved + after as u64 <= all + ON_ITS_WAY, "cut after {after}: {rest}");
        assert_eq!(node.paths().len(), 1);
    }
}
