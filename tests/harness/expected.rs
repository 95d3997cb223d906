//! What a real Nix made of a package set, and whether a node or a machine holds the same.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;
use shoal_wire::nix::hash::Hash;

use crate::machine::Machine;

/// A row of `expected.tsv`: set, attribute, output, path, NAR hash, NAR size, references, seconds, and for the set
/// `bad` exit code and message.
#[derive(Clone, Debug)]
pub struct Row {
    pub set: String,
    pub attribute: String,
    pub output: String,
    pub path: String,
    pub nar_hash: String,
    pub nar_size: String,
    pub references: String,
    pub exit: String,
    pub message: String,
}

/// Facts of a valid path, in the words of `expected.tsv`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// `sha256:<nix32>`.
    pub nar_hash: String,
    pub nar_size: String,
    /// Base names, sorted, joined by commas; `-` when there are none.
    pub references: String,
}

pub fn rows(file: &Path, set: &str) -> Vec<Row> {
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let row = |line: &str| {
        let mut cells = line.split('\t').map(String::from);
        let mut next = || cells.next().unwrap_or_default();
        let (set, attribute, output, path) = (next(), next(), next(), next());
        let (nar_hash, nar_size, references, _seconds) = (next(), next(), next(), next());
        Row { set, attribute, output, path, nar_hash, nar_size, references, exit: next(), message: next() }
    };
    let rows: Vec<Row> = text.lines().filter(|line| !line.starts_with('#')).map(row).collect();
    rows.into_iter().filter(|row| row.set == set).collect()
}

/// Panics with every difference between what Nix made and `facts`, except for attributes named in `known`.
pub fn compare(rows: &[Row], facts: &BTreeMap<String, Facts>, known: &[&str]) {
    assert!(!rows.is_empty(), "nothing to compare");
    let mut differences = Vec::new();
    for row in rows.iter().filter(|row| !known.contains(&row.attribute.as_str())) {
        let name = format!("{}.{}.{}", row.set, row.attribute, row.output);
        let expected = Facts {
            nar_hash: row.nar_hash.clone(),
            nar_size: row.nar_size.clone(),
            references: row.references.clone(),
        };
        match facts.get(&row.path) {
            None => differences.push(format!("{name}: {} is not there", row.path)),
            Some(got) if *got != expected => differences.push(format!("{name}: {got:?}, should be {expected:?}")),
            Some(_) => {}
        }
    }
    println!("{} outputs compared with what Nix made", rows.len());
    assert!(differences.is_empty(), "{} of {} differ:\n{}", differences.len(), rows.len(), differences.join("\n"));
}

fn joined(mut references: Vec<String>) -> String {
    references.sort();
    if references.is_empty() { "-".into() } else { references.join(",") }
}

fn base_name(path: &str) -> String {
    path.rsplit('/').next().unwrap_or(path).to_string()
}

/// What a node says of its paths (`shoal paths --json`).
pub fn of_node(paths: &[Value]) -> BTreeMap<String, Facts> {
    let facts = |path: &Value| {
        let text = |name: &str| path[name].as_str().unwrap_or_default();
        let hash = Hash::parse_any(text("narHash")).unwrap_or_else(|error| panic!("{path}: {error}"));
        let references = path["references"].as_array().map(Vec::as_slice).unwrap_or_default();
        Facts {
            nar_hash: format!("sha256:{}", hash.to_nix32()),
            nar_size: path["narSize"].to_string(),
            references: joined(references.iter().filter_map(Value::as_str).map(base_name).collect()),
        }
    };
    paths.iter().map(|path| (path["path"].as_str().unwrap_or_default().to_string(), facts(path))).collect()
}

/// What a machine's own Nix says of the paths of `rows`.
pub fn of_machine(machine: &Machine, rows: &[Row]) -> BTreeMap<String, Facts> {
    let paths: Vec<&str> = rows.iter().map(|row| row.path.as_str()).collect();
    let query = |what: &str| {
        let options = ["--option", "extra-experimental-features", "ca-derivations", "-q", what];
        machine.local("nix-store").args(options).args(&paths).ok()
    };
    let (hashes, sizes) = (query("--hash"), query("--size"));
    let references = |path: &str| {
        let found = machine.local("nix-store").args(["-q", "--references", path]).ok();
        joined(found.lines().into_iter().map(base_name).collect())
    };
    let answers = hashes.lines().into_iter().zip(sizes.lines());
    let facts = paths.iter().zip(answers).map(|(path, (hash, size))| {
        let facts = Facts { nar_hash: hash.to_string(), nar_size: size.to_string(), references: references(path) };
        (path.to_string(), facts)
    });
    facts.collect()
}
