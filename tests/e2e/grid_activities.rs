//! What a client is told of builds on several nodes, for displays like nix-output-monitor that live on it.

use std::collections::BTreeMap;
use std::fs;

use serde_json::Value;
use shoal_tests::{Machine, Mesh, Nix, Remote, place, shapes};

/// Activities of builds: the request, its builds, its copies, and each build; see Nix's `ActivityType`.
const TOLD: [u64; 4] = [102, 103, 104, 105];

/// The stream without what differs from run to run: activities are numbered as they begin, hashes of paths are left out.
/// Of the client's own activities nothing is kept.
fn normalised(stderr: &str) -> String {
    let mut names: BTreeMap<u64, String> = BTreeMap::new();
    let mut told = String::new();
    for line in stderr.lines() {
        let said: Value = match line.strip_prefix("@nix ").map(serde_json::from_str) {
            Some(said) => said.unwrap_or_else(|error| panic!("{error}: {line}")),
            None => continue,
        };
        let id = said["id"].as_u64().unwrap_or_default();
        let line = match said["action"].as_str() {
            Some("start") if TOLD.contains(&said["type"].as_u64().unwrap_or_default()) => {
                let name = format!("#{}", names.len() + 1);
                names.insert(id, name.clone());
                format!(
                    "start {name} type {} level {} {} {}",
                    said["type"], said["level"], said["text"], said["fields"]
                )
            }
            Some("stop") if names.contains_key(&id) => format!("stop {}", names[&id]),
            Some("result") if names.contains_key(&id) => {
                format!("result {} type {} {}", names[&id], said["type"], said["fields"])
            }
            Some("msg") => format!("msg level {} {}", said["level"], said["msg"]),
            _ => continue,
        };
        told.push_str(&without_hashes(&line));
        told.push('\n');
    }
    told
}

fn without_hashes(line: &str) -> String {
    let mut parts = line.split("/nix/store/");
    let first = parts.next().unwrap_or_default().to_string();
    parts.fold(first, |all, part| format!("{all}/nix/store/…{}", part.get(32..).unwrap_or_default()))
}

/// Compares with `tests/golden/<name>`, or with `SHOAL_BLESS` writes that.
fn is_golden(name: &str, told: &str) {
    let file = place::repository().join("tests/golden").join(name);
    if std::env::var_os("SHOAL_BLESS").is_some() {
        fs::write(&file, told).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }
    let golden = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    assert!(told == golden, "not as in tests/golden/{name}:\n{told}");
}

/// Builds are named with the node that runs them, lines and phases belong to their builds, counts are right.
#[test]
fn a_display_sees_which_node_builds_what_and_how_far_it_is() {
    let machine = Machine::new(&Nix::newest());
    let mut mesh = Mesh { nodes: Vec::new() };
    mesh.add(&[&machine], &["--feature", "alpha"]);
    mesh.add(&[&machine], &["--feature", "beta"]);
    mesh.wait_until_whole();
    let build = |attribute: &str| {
        let build = shapes::build_command(&machine, &mesh[0], Remote::SshNg, "", &[attribute]);
        build.args(["--log-format", "internal-json"])
    };
    is_golden("builds-across-nodes.txt", &normalised(&build("alphaAgain").ok().stderr));
}
