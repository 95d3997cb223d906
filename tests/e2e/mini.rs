//! A larger package set whose outputs a real Nix recorded: every path, NAR hash, size and reference is compared.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use shoal_tests::expected::{self, Facts, Row};
use shoal_tests::sources::{self, PackageSet};
use shoal_tests::{Cmd, Finished, Machine, Mesh, Nix, Node, Remote, is_full, skip};

pub const ABSENT: &str = "the package set mini is not beside this repository";
/// Shapes that need no compiler.
const QUICK: [&str; 4] = ["tools", "fan-join", "chain-end", "diamond-bottom"];
/// The ways in which builds see their inputs.
const INPUTS: [&str; 3] = ["lazy", "materialised", "bind"];
/// What one build with every compiler run may take on a machine that does other things too.
pub const SET_PATIENCE: Duration = Duration::from_secs(2400);
/// `xz` and `hello` are unpacked without file times, generated files before what they are made from, and built by a make
/// that compares whole seconds. Where a second begins in between, it asks for tools that are not there; so it does in
/// stock Nix. A build is only repeated where its directory shows that.
pub const TRIES: u32 = 5;
const GENERATED: [&str; 5] = ["aclocal.m4", "configure", "config.h.in", "config.in", "Makefile.in"];
const GENERATED_FROM: [&str; 3] = ["configure.ac", "Makefile.am", "m4"];
/// The oldest client computes another path for a content-addressed output that refers to itself.
const OTHER_PATH_IN_2_8: [&str; 1] = ["ca-self"];
/// Client 2.26 overflows its stack when it unpacks this, whoever serves it.
const TOO_DEEP_FOR_2_26: &str = "deep-dirs";

/// All that can be built.
const SETS: [&str; 3] = ["good", "slow", "ca"];

by_each_version!(
    quick_shapes_over_ssh_ng,
    quick_shapes_over_the_socket,
    content_addressed,
    quick_and_content_addressed_across_three_nodes,
    everything_across_three_and_five_nodes,
);

fn build_command(machine: &Machine, node: &Node, remote: Remote, set: &PackageSet, attributes: &[&str]) -> Cmd {
    let build = machine.build(node, remote, &set.args(), attributes);
    build.args(["--keep-going", "--option", "extra-experimental-features", "ca-derivations"]).patience(SET_PATIENCE)
}

fn build(machine: &Machine, node: &Node, remote: Remote, set: &PackageSet, attributes: &[&str]) -> Finished {
    build_command(machine, node, remote, set, attributes).ok()
}

/// Copies the outputs of `rows` to the machine, which checks every hash and signature, and says what it has then.
fn fetched(machine: &Machine, node: &Node, remote: Remote, rows: &[Row]) -> BTreeMap<String, Facts> {
    let key = node.shoal("key show").ok();
    let store = machine.store(node, remote.to_fetch());
    let features = ["--option", "extra-experimental-features", "ca-derivations"];
    let copy = machine.near("nix", node).args(["copy", "--from", &store]).args(features);
    let copy = copy.args(["--option", "trusted-public-keys", key.text()]);
    copy.args(rows.iter().map(|row| &row.path)).patience(SET_PATIENCE).ok();
    expected::of_machine(machine, rows)
}

fn quick_rows(set: &PackageSet) -> Vec<Row> {
    let mut rows = expected::rows(&set.expected(), "good");
    rows.retain(|row| QUICK.contains(&row.attribute.as_str()));
    rows
}

fn quick_shapes(nix: &Nix, remote: Remote) {
    let Some(set) = sources::mini() else { return skip(ABSENT) };
    let machine = Machine::new(nix);
    let node = Node::start(&[&machine]);
    let attributes = QUICK.map(|name| format!("good.{name}"));
    build(&machine, &node, remote, &set, &attributes.each_ref().map(String::as_str));
    let rows = quick_rows(&set);
    expected::compare(&rows, &expected::of_node(&node.paths()), &[]);
    expected::compare(&rows, &fetched(&machine, &node, remote, &rows), &[]);
}

fn quick_shapes_over_ssh_ng(nix: &Nix) {
    quick_shapes(nix, Remote::SshNg);
}

fn quick_shapes_over_the_socket(nix: &Nix) {
    quick_shapes(nix, Remote::Unix);
}

fn content_addressed(nix: &Nix) {
    let Some(set) = sources::mini() else { return skip(ABSENT) };
    let machine = Machine::new(nix);
    let node = Node::start(&[&machine]);
    build(&machine, &node, Remote::SshNg, &set, &["ca"]);
    let known: &[&str] = if nix.is_before("2.26") { &OTHER_PATH_IN_2_8 } else { &[] };
    let mut rows = expected::rows(&set.expected(), "ca");
    rows.retain(|row| !known.contains(&row.attribute.as_str()));
    expected::compare(&rows, &expected::of_node(&node.paths()), known);
}

fn kept(node: &Node) -> PathBuf {
    node.data_dir().join("kept")
}

/// Whether each directory of a failed build, of those a node kept, has generated files that are a second older than what
/// they are made from. Removes the directories.
pub fn all_unpacked_over_a_second(kept: &Path) -> bool {
    let entries = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let second = |path: &Path| path.metadata().ok().map(|meta| meta.mtime());
    let over_a_second = |source: &Path| {
        let made = GENERATED.iter().filter_map(|name| second(&source.join(name))).min();
        let from = GENERATED_FROM.map(|name| source.join(name));
        let from = from.iter().flat_map(|path| entries(path).chain([path.clone()]).filter(|path| path.is_file()));
        made.is_some() && from.filter_map(|path| second(&path)).max() > made
    };
    let builds: Vec<_> = entries(kept).collect();
    let excused =
        !builds.is_empty() && builds.iter().all(|build| entries(&build.join("src")).any(|dir| over_a_second(&dir)));
    fs::remove_dir_all(kept).unwrap_or_else(|error| panic!("{}: {error}", kept.display()));
    excused
}

/// A whole set from nothing, then all of it copied to the client.
fn whole(nix: &Nix, name: &str) {
    let Some(set) = sources::mini() else { return skip(ABSENT) };
    let machine = Machine::new(nix);
    let node = Node::start_with(&[&machine], &["--keep-failed"]);
    for left in (0..TRIES).rev() {
        let build = build_command(&machine, &node, Remote::SshNg, &set, &[name]).run();
        if build.status.success() {
            break;
        }
        let excused = build.stderr.contains("is missing on your system") && all_unpacked_over_a_second(&kept(&node));
        assert!(left > 0 && excused, "{build}");
    }
    let rows = expected::rows(&set.expected(), name);
    expected::compare(&rows, &expected::of_node(&node.paths()), &[]);
    let fetchable = |row: &&Row| nix.version != "2.26" || row.attribute != TOO_DEEP_FOR_2_26;
    let rows: Vec<Row> = rows.iter().filter(fetchable).cloned().collect();
    expected::compare(&rows, &fetched(&machine, &node, Remote::SshNg, &rows), &[]);
    // A set that is there already is only asked for, over the other protocol too.
    let again = build(&machine, &node, Remote::Unix, &set, &[name]);
    assert!(!again.stderr.contains("building '"), "{again}");
}

#[test]
fn all_good_ones_v2_34() {
    whole(&Nix::newest(), "good");
}

#[test]
fn all_slow_ones_v2_34() {
    whole(&Nix::newest(), "slow");
}

/// By the other versions each set takes as long again.
fn whole_if_full(version: &'static str, name: &str) {
    if !is_full() {
        return skip("takes as long again for each version; SHOAL_E2E=full runs it");
    }
    whole(&Nix::get(version), name);
}

#[test]
fn all_good_ones_v2_26() {
    whole_if_full("2.26", "good");
}

#[test]
fn all_slow_ones_v2_26() {
    whole_if_full("2.26", "slow");
}

#[test]
fn all_good_ones_v2_8() {
    whole_if_full("2.8", "good");
}

#[test]
fn all_slow_ones_v2_8() {
    whole_if_full("2.8", "slow");
}

/// A set from nothing on nodes of one mesh, asked of one of them and copied from another.
fn across(nix: &Nix, count: usize, names: &[&str], mut rows: Vec<Row>) {
    let Some(set) = sources::mini() else { return skip(ABSENT) };
    let machine = Machine::new(nix);
    let mesh = Mesh::start_with(count, &[&machine], &["--max-jobs", "1", "--keep-failed"]);
    for left in (0..TRIES).rev() {
        let build = build_command(&machine, &mesh[0], Remote::SshNg, &set, names).run();
        if build.status.success() {
            break;
        }
        let is_excused = build.stderr.contains("is missing on your system")
            && mesh.nodes.iter().map(kept).filter(|kept| kept.exists()).all(|kept| all_unpacked_over_a_second(&kept));
        assert!(left > 0 && is_excused, "{build}");
    }
    let built = |node: &Node| {
        let builds = node.shoal("builds --json").ok().json();
        builds.as_array().into_iter().flatten().filter(|build| build["state"] == "built").count()
    };
    let counts: Vec<usize> = mesh.nodes.iter().map(built).collect();
    println!("{names:?} by {} across {count} nodes: {counts:?}", nix.version);
    assert!(counts.iter().all(|count| *count > 0), "a node built nothing: {counts:?}");
    rows.retain(|row| nix.version != "2.26" || row.attribute != TOO_DEEP_FOR_2_26);
    let known: &[&str] = if nix.is_before("2.26") { &OTHER_PATH_IN_2_8 } else { &[] };
    rows.retain(|row| !known.contains(&row.attribute.as_str()));
    expected::compare(&rows, &fetched(&machine, &mesh[count - 1], Remote::SshNg, &rows), known);
}

fn quick_and_content_addressed_across_three_nodes(nix: &Nix) {
    let Some(set) = sources::mini() else { return skip(ABSENT) };
    let names: Vec<String> = QUICK.iter().map(|name| format!("good.{name}")).chain(["ca".to_string()]).collect();
    let rows = [quick_rows(&set), expected::rows(&set.expected(), "ca")].concat();
    across(nix, 3, &names.iter().map(String::as_str).collect::<Vec<_>>(), rows);
}

fn everything_across_three_and_five_nodes(nix: &Nix) {
    if !is_full() {
        return skip("takes as long as everything else together; SHOAL_E2E=full runs it");
    }
    let Some(set) = sources::mini() else { return skip(ABSENT) };
    let rows: Vec<Row> = SETS.iter().flat_map(|name| expected::rows(&set.expected(), name)).collect();
    [3, 5].into_iter().for_each(|count| across(nix, count, &SETS, rows.clone()));
}

/// However builds see their inputs, what comes out is the same.
#[test]
fn with_every_kind_of_inputs() {
    let Some(set) = sources::mini() else { return skip(ABSENT) };
    let machine = Machine::new(&Nix::newest());
    let (names, rows) = match is_full() {
        true => (
            SETS.map(str::to_string).to_vec(),
            SETS.iter().flat_map(|name| expected::rows(&set.expected(), name)).collect(),
        ),
        false => (
            QUICK.iter().map(|name| format!("good.{name}")).chain(["ca".to_string()]).collect(),
            [quick_rows(&set), expected::rows(&set.expected(), "ca")].concat(),
        ),
    };
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for kind in INPUTS {
        let node = Node::start_with(&[&machine], &["--inputs", kind, "--keep-failed"]);
        for left in (0..TRIES).rev() {
            let build = build_command(&machine, &node, Remote::SshNg, &set, &names).run();
            if build.status.success() {
                break;
            }
            let excused =
                build.stderr.contains("is missing on your system") && all_unpacked_over_a_second(&kept(&node));
            assert!(left > 0 && excused, "{kind}: {build}");
        }
        expected::compare(&rows, &expected::of_node(&node.paths()), &[]);
        let inputs = &node.shoal("status --json").ok().json()["inputs"];
        println!("{names:?} with inputs {kind}: {inputs}");
        let (by_view, by_trees) = (inputs["builds_with_views"].as_u64(), inputs["builds_with_trees"].as_u64());
        match kind == "lazy" && inputs["views"] == true {
            true => assert!(by_view > Some(0) && by_trees == Some(0), "{inputs}"),
            false => assert!(by_view == Some(0) && by_trees > Some(0), "{inputs}"),
        }
    }
}

/// What cannot be built fails as it does at home: same message; exit code 1, as all remote builds have.
#[test]
fn bad_ones_fail_as_they_do_at_home() {
    let Some(set) = sources::mini() else { return skip(ABSENT) };
    let machine = Machine::new(&Nix::newest());
    let patient = Node::start_with(&[&machine], &["--system", "x86_64-linux"]);
    let impatient = Node::start_with(&[&machine], &["--timeout", "3s"]);
    let mut differences = Vec::new();
    for row in expected::rows(&set.expected(), "bad") {
        let attribute = format!("bad.{}", row.attribute);
        let node = if row.message.contains("timed out") { &impatient } else { &patient };
        let failed = machine
            .remote("nix-build", node, Remote::SshNg)
            .args(set.args())
            .args(["-A", &attribute, "--no-out-link"])
            .run();
        if failed.status.code() != Some(1) {
            differences.push(format!("{attribute}: exit code should be 1: {failed}"));
        }
        let said = failed.stderr.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in row.message.split(" / ") {
            // A path of the machine that recorded it stands in some.
            let part =
                part.split(&['"', '\''][..]).take_while(|piece| !piece.contains("ROOT")).collect::<Vec<_>>().join("'");
            let part = part.split_whitespace().collect::<Vec<_>>().join(" ");
            if !said.replace('"', "'").contains(part.trim_end_matches('\'').trim_end()) {
                differences.push(format!("{attribute}: lacks {part:?}: {failed}"));
            }
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
