//! Runs each test once as root and once as an ordinary user, as far as we can be either.

use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, exit};

use crate::world::{Who, World};

/// A name and what it promises.
pub type Test = (&'static str, fn(&World));

/// Debian's `nobody`; any id that is not root would do.
const NOBODY: u32 = 65534;

pub fn main(tests: &[Test]) {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| args.iter().any(|arg| arg == flag);
    // `--format terse`, as cargo nextest lists tests, is an option with a value and no filter.
    let is_value = |at: usize| at > 0 && args[at - 1] == "--format";
    let filter = args.iter().enumerate().find(|(at, arg)| !arg.starts_with('-') && !is_value(*at)).map(|(_, arg)| arg);
    let matches = |name: &str| match filter {
        Some(filter) if has("--exact") => name == filter,
        Some(filter) => name.contains(filter.as_str()),
        None => true,
    };
    let all = [Who::Root, Who::User]
        .into_iter()
        .flat_map(|who| tests.iter().map(move |(name, test)| (format!("{}::{name}", who.name()), who, *test)));
    let chosen: Vec<_> = all.filter(|(name, ..)| matches(name) && !has("--ignored")).collect();
    if has("--list") {
        chosen.iter().for_each(|(name, ..)| println!("{name}: test"));
        return;
    }
    println!("running {} tests", chosen.len());
    let mut failed = Vec::new();
    for (name, who, test) in &chosen {
        let verdict = run(name, *who, *test);
        println!("test {name} ... {verdict}");
        if verdict == "FAILED" {
            failed.push(name);
        }
    }
    let passed = chosen.len() - failed.len();
    let word = if failed.is_empty() { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {word}. {passed} passed; {} failed; 0 ignored; 0 measured; 0 filtered out\n",
        failed.len()
    );
    exit(i32::from(!failed.is_empty()));
}

fn run(name: &str, who: Who, test: fn(&World)) -> &'static str {
    if who == Who::current() {
        if who == Who::User && !user_namespaces() {
            println!("skipped: {name}: user name spaces are not allowed here");
            return "ok";
        }
        let ran = catch_unwind(AssertUnwindSafe(|| test(&World::create(name))));
        return if ran.is_ok() { "ok" } else { "FAILED" };
    }
    if who == Who::Root {
        println!("skipped: {name}: not root");
        return "ok";
    }
    let status = Command::new("/proc/self/exe")
        .args(["--exact", name])
        .uid(NOBODY)
        .gid(NOBODY)
        .stdout(std::process::Stdio::null())
        .status();
    if status.is_ok_and(|status| status.success()) { "ok" } else { "FAILED" }
}

fn user_namespaces() -> bool {
    let status = Command::new("unshare").args(["--user", "true"]).status();
    // No such command: then the tests themselves will tell.
    status.map_or(true, |status| status.success())
}
