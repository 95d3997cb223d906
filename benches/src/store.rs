//! NARs into the chunk store and out of it, without clients or connections: the store's own benchmark, told here.

use std::env;
use std::time::Duration;

use anyhow::{Result, bail};
use shoal_tests::{Cmd, Place, place};

use crate::Plan;
use crate::report::Report;

/// The parts of the store's benchmark that a bar is on, besides those of ingest.
const PARTS: [&str; 2] = ["export", "huge"];
/// What is held against SHA-256 of one core.
const INGEST: [&str; 2] = ["one", "many"];
/// It may have to be built first.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Hides the processor's SHA instructions from the library that ingest hashes with.
const MASK: (&str, &str) = ("OPENSSL_ia32cap", ":~0x20000000");

pub fn measure(_: &Plan, report: &mut Report) -> Result<()> {
    let hashes_in_hardware = has_sha_instructions();
    for [what, value, bar] in run(&INGEST, None)? {
        // With them SHA-256 is no limit of this machine any more; the bar is held where it is.
        report.tell(&what, &value, if hashes_in_hardware { "" } else { &bar })?;
    }
    if hashes_in_hardware {
        for [what, value, bar] in run(&INGEST, Some(MASK))? {
            report.tell(&format!("{what}, without SHA instructions"), &value, &bar)?;
        }
    }
    run(&PARTS, None)?.iter().try_for_each(|[what, value, bar]| report.tell(what, value, bar))
}

fn has_sha_instructions() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("sha");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// The rows of the store's own benchmark: what, value, bar.
fn run(parts: &[&str], variable: Option<(&str, &str)>) -> Result<Vec<[String; 3]>> {
    run_of("shoal-store", "store", parts, variable.as_slice())
}

/// The rows of a package's own benchmark.
pub fn run_of(package: &str, bench: &str, parts: &[&str], variables: &[(&str, &str)]) -> Result<Vec<[String; 3]>> {
    let place = Place::new("st");
    let mut cargo = Cmd::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for name in ["HOME", "CARGO_HOME", "CARGO_TARGET_DIR", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN"] {
        if let Some(value) = env::var_os(name) {
            cargo = cargo.env(name, value);
        }
    }
    for (name, value) in variables {
        cargo = cargo.env(name, value);
    }
    let cargo = cargo.args(["bench", "-q", "-p", package, "--bench", bench, "--"]).args(parts);
    let finished = cargo.env("SHOAL_BENCH_DIR", place.path()).dir(&place::repository()).patience(PATIENCE).ok();
    let rows: Vec<_> = finished.lines().into_iter().filter_map(row).map(|row| row.map(str::to_string)).collect();
    if rows.is_empty() {
        bail!("the benchmark of {package} printed no table: {finished}");
    }
    Ok(rows)
}

/// `| what | value | bar |`; neither the head nor the rule below it.
fn row(line: &str) -> Option<[&str; 3]> {
    let cells: Vec<&str> = line.strip_prefix('|')?.strip_suffix('|')?.split('|').map(str::trim).collect();
    let row: [&str; 3] = cells.try_into().ok()?;
    (row[1].starts_with(|first: char| first.is_ascii_digit())).then_some(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_with_numbers_are_told() {
        assert_eq!(row("| export | 700 MB/s | >= 600 MB/s |"), Some(["export", "700 MB/s", ">= 600 MB/s"]));
        assert_eq!(row("| measured | value | bar |"), None);
        assert_eq!(row("|---|---|---|"), None);
        assert_eq!(row("export   700 MB/s  >= 600 MB/s"), None);
    }
}
