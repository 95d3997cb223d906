//! A large closure in a stock Nix store: the package set beside the repository where there is one, else one like it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use shoal_tests::{Cmd, Nix, Place, place, sources};

use crate::Plan;
use crate::limits::{noise, words};

/// Building the package set with stock Nix, once.
const FILL_PATIENCE: Duration = Duration::from_secs(3600);
const MIB: usize = 1 << 20;

pub struct Closure {
    /// Of a stock store; read only.
    pub root: PathBuf,
    /// A file with every store path, one a line.
    list: PathBuf,
    pub paths: usize,
    /// Every store path with the bytes of its NAR.
    pub infos: Vec<(String, u64)>,
    pub nar_mib: f64,
    pub kind: &'static str,
    _place: Place,
}

impl Closure {
    /// Filled on first use, and kept between runs; a scaled one is thrown away.
    pub fn get(nix: &Nix, plan: &Plan) -> Result<Closure> {
        let place = Place::new("c");
        let kept = place::kept().join("bench");
        let mini = if plan.scale < 1.0 { None } else { sources::mini() };
        let (root, kind) = match &mini {
            Some(_) => (kept.join("mini"), "the package set beside the repository"),
            None if plan.scale < 1.0 => (place.join("root"), "made up"),
            None => (kept.join("made"), "made up"),
        };
        fs::create_dir_all(&root)?;
        match mini {
            Some(mini) => {
                let build = local(nix, "nix-build", &root, &place).args(["--no-out-link", "--max-jobs", "2"]);
                build.args(mini.args()).args(["-A", "good"]).patience(FILL_PATIENCE).ok();
            }
            None if !root.join("nix/store").is_dir() => fill(nix, &root, &place, plan)?,
            None => {}
        }
        let infos = path_infos(nix, &root, &place)?;
        let list = place.join("paths");
        fs::write(&list, infos.iter().map(|(path, _)| format!("{path}\n")).collect::<String>())?;
        let nar_bytes: u64 = infos.iter().map(|(_, size)| size).sum();
        let (paths, nar_mib) = (infos.len(), nar_bytes as f64 / MIB as f64);
        Ok(Closure { root, list, paths, infos, nar_mib, kind, _place: place })
    }

    /// For a client that reads store paths from its standard input.
    pub fn stdin(&self) -> Result<Stdio> {
        Ok(Stdio::from(File::open(&self.list)?))
    }
}

fn local(nix: &Nix, program: &str, root: &Path, place: &Place) -> Cmd {
    Cmd::new(nix.program(program)).env("HOME", place.path()).env("NIX_CLIENT_ROOT", root).env("LC_ALL", "C.UTF-8")
}

/// Every valid path that is no derivation, and the bytes of its NAR.
fn path_infos(nix: &Nix, root: &Path, place: &Place) -> Result<Vec<(String, u64)>> {
    let answer = local(nix, "nix", root, place).args(["path-info", "--all", "--json"]).ok().json();
    // Newer clients put the infos below a key and name paths without their directory.
    let infos = answer.get("info").unwrap_or(&answer).as_object().context("path infos")?;
    let infos = infos.iter().filter(|(path, _)| !path.ends_with(".drv"));
    let full = |path: &str| if path.starts_with('/') { path.to_string() } else { format!("/nix/store/{path}") };
    let size = |info: &Value| info.get("narSize").and_then(Value::as_u64).context("narSize");
    infos.map(|(path, info)| Ok((full(path), size(info)?))).collect()
}

/// 250 paths, 540 MiB, as the package set has them: a compiler with its headers, an image that nothing compresses, a
/// hole, a directory of very many small files, and small packages.
fn fill(nix: &Nix, root: &Path, place: &Place, plan: &Plan) -> Result<()> {
    let source = place.join("source");
    let make = |name: &str, files: usize, bytes: &dyn Fn(usize) -> Vec<u8>| -> Result<()> {
        for number in 0..files {
            // A hundred files a directory.
            let dir = source.join(name).join(format!("d{}", number / 100));
            fs::create_dir_all(&dir)?;
            fs::write(dir.join(format!("f{number}")), bytes(number))?;
        }
        Ok(())
    };
    make("compiler", plan.scaled(3000, 30), &|number| words(30_000 + number * 23))?;
    make("binary", 1, &|_| words(plan.scaled(90 * MIB, MIB)))?;
    make("huge", 1, &|_| noise(plan.scaled(120 * MIB, MIB)))?;
    make("zeros", 1, &|_| vec![0; plan.scaled(64 * MIB, MIB)])?;
    make("many-files", plan.scaled(12_000, 100), &|number| format!("file {number}\n").into_bytes())?;
    for package in 0..plan.scaled(245, 10) {
        make(&format!("package-{package}"), 12, &|number| words(10_000 + number * 5000 + package))?;
    }
    for entry in fs::read_dir(&source)? {
        local(nix, "nix-store", root, place).arg("--add").arg(entry?.path()).ok();
    }
    Ok(())
}
