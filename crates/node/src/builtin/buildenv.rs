//! `builtin:buildenv`: one tree of symlinks that shows many packages at once, such as a user's profile.
//!
//! Packages are entered by ascending priority, then path. A directory that only one package has is one symlink to it;
//! when a second package has it too, it becomes a real directory with the entries of both. Where two packages have the
//! same file the lower priority number wins. Behaviour and texts: `libstore/builtins/buildenv.cc`.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::{Failure, Payload, cannot, failure, warn};

/// Priority of the first package that another one brought along: behind all that were asked for.
const FIRST_PROPAGATED_PRIORITY: i32 = 1000;

/// What no environment shows: useless there, or in every package and so a collision.
const SKIPPED: [&str; 7] = [
    "/propagated-build-inputs",
    "/nix-support",
    "/perllocal.pod",
    "/info/dir",
    "/log",
    "/manifest.nix",
    "/manifest.json",
];

pub(super) fn build(payload: &Payload) -> Result<(), Failure> {
    let out = payload.out("builtin:buildenv")?;
    let mut packages = packages(payload.attribute("derivations")?)?;
    let manifest = payload.attribute("manifest")?;
    fs::create_dir_all(out).map_err(cannot("creating directory", out))?;

    packages.sort_by(|a, b| (a.priority, &a.path).cmp(&(b.priority, &b.path)));
    let mut environment = Environment { out, priorities: HashMap::new(), done: HashSet::new() };
    let mut postponed = BTreeSet::new();
    for package in packages.iter().filter(|package| package.active) {
        environment.add(&package.path, package.priority, &mut postponed)?;
    }
    let mut priority = FIRST_PROPAGATED_PRIORITY;
    while !postponed.is_empty() {
        for path in std::mem::take(&mut postponed) {
            environment.add(&path, priority, &mut postponed)?;
            priority = priority.saturating_add(1);
        }
    }
    symlink(Path::new(OsStr::from_bytes(manifest)), &out.join("manifest.nix"))
}

#[derive(Debug, PartialEq, Eq)]
struct Package {
    path: PathBuf,
    active: bool,
    priority: i32,
}

/// Reads `<active> <priority> <n> <path>{n}`, any number of times.
fn packages(text: &[u8]) -> Result<Vec<Package>, Failure> {
    let mut words = text.split(|b| b" \t\n\r".contains(b)).filter(|word| !word.is_empty());
    let mut packages = Vec::new();
    while let Some(active) = words.next() {
        let priority: i32 = number(words.next(), "priority")?;
        let outputs: usize = number(words.next(), "number of outputs")?;
        for _ in 0..outputs {
            let path = words.next().ok_or_else(|| failure("attribute 'derivations' ends within a package"))?;
            packages.push(Package { path: OsStr::from_bytes(path).into(), active: active != b"false", priority });
        }
    }
    Ok(packages)
}

fn number<T: std::str::FromStr>(word: Option<&[u8]>, what: &str) -> Result<T, Failure> {
    let word = word.ok_or_else(|| failure("attribute 'derivations' ends within a package"))?;
    let parsed = std::str::from_utf8(word).ok().and_then(|text| text.parse().ok());
    parsed
        .ok_or_else(|| failure(format!("attribute 'derivations' has '{}' for a {what}", String::from_utf8_lossy(word))))
}

struct Environment<'a> {
    out: &'a Path,
    /// Of each symlink made, the priority of the package it leads to.
    priorities: HashMap<PathBuf, i32>,
    done: HashSet<PathBuf>,
}

impl Environment<'_> {
    /// Enters a package, once, and notes what it brings along.
    fn add(&mut self, package: &Path, priority: i32, postponed: &mut BTreeSet<PathBuf>) -> Result<(), Failure> {
        if !self.done.insert(package.to_owned()) {
            return Ok(());
        }
        self.link_entries(package, self.out, priority)?;
        let list = package.join("nix-support/propagated-user-env-packages");
        let paths = match fs::read(&list) {
            Ok(paths) => paths,
            Err(error) if is_absent(&error) => return Ok(()),
            Err(error) => return Err(cannot("reading file", &list)(error)),
        };
        let paths = paths.split(|b| b" \n".contains(b)).filter(|path| !path.is_empty());
        let paths = paths.map(|path| PathBuf::from(OsStr::from_bytes(path)));
        postponed.extend(paths.filter(|path| !self.done.contains(path)));
        Ok(())
    }

    /// Shows the entries of `from` in `to`, a real directory.
    fn link_entries(&mut self, from: &Path, to: &Path, priority: i32) -> Result<(), Failure> {
        let Some(names) = names(from)? else {
            warn(&format!("not including \"{}\" in the user environment because it's not a directory", from.display()));
            return Ok(());
        };
        for name in names.iter().filter(|name| !name.as_bytes().starts_with(b".")) {
            let (from, to) = (from.join(name), to.join(name));
            match fs::metadata(&from) {
                Err(error) if is_absent(&error) => warn(&format!("skipping dangling symlink '{}'", to.display())),
                Err(error) => return Err(cannot("getting status of", &from)(error)),
                Ok(_) if is_skipped(&from) => {}
                Ok(metadata) if metadata.is_dir() => self.link_directory(&from, &to, priority)?,
                Ok(_) => self.link_file(&from, &to, priority)?,
            }
        }
        Ok(())
    }

    fn link_directory(&mut self, from: &Path, to: &Path, priority: i32) -> Result<(), Failure> {
        match present(to)? {
            None => self.link(from, to, priority),
            Some(there) if there.is_dir() => self.link_entries(from, to, priority),
            Some(_) => {
                let target = fs::canonicalize(to).map_err(cannot("resolving symlink", to))?;
                if !target.is_dir() {
                    let (from, target) = (from.display(), target.display());
                    return Err(failure(format!("collision between \"{from}\" and non-directory \"{target}\"")));
                }
                fs::remove_file(to).map_err(cannot("removing", to))?;
                fs::create_dir(to).map_err(cannot("creating directory", to))?;
                self.link_entries(&target, to, self.priority_of(to))?;
                self.link_entries(from, to, priority)
            }
        }
    }

    fn link_file(&mut self, from: &Path, to: &Path, priority: i32) -> Result<(), Failure> {
        match present(to)? {
            None => {}
            Some(there) if there.is_dir() => {
                let (from, to) = (from.display(), to.display());
                return Err(failure(format!("collision between non-directory '{from}' and directory '{to}'")));
            }
            Some(_) if self.priority_of(to) == priority => {
                let other = fs::read_link(to).map_err(cannot("reading symbolic link", to))?;
                return Err(failure(format!(
                    "Unable to build profile. There is a conflict for the following files:\n\n  \"{}\"\n  \"{}\"",
                    other.display(),
                    from.display()
                )));
            }
            Some(_) if self.priority_of(to) < priority => return Ok(()),
            Some(_) => fs::remove_file(to).map_err(cannot("removing", to))?,
        }
        self.link(from, to, priority)
    }

    fn link(&mut self, from: &Path, to: &Path, priority: i32) -> Result<(), Failure> {
        symlink(from, to)?;
        self.priorities.insert(to.to_owned(), priority);
        Ok(())
    }

    fn priority_of(&self, link: &Path) -> i32 {
        self.priorities.get(link).copied().unwrap_or(0)
    }
}

fn symlink(target: &Path, link: &Path) -> Result<(), Failure> {
    std::os::unix::fs::symlink(target, link).map_err(cannot("creating symlink", link))
}

/// The names in a directory, sorted so that equal inputs fail alike; `None` if it is something else.
fn names(directory: &Path) -> Result<Option<Vec<OsString>>, Failure> {
    let unreadable = || cannot("cannot read directory", directory);
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(None),
        Err(error) => return Err(unreadable()(error)),
    };
    let names = entries.map(|entry| entry.map(|entry| entry.file_name()));
    let mut names = names.collect::<io::Result<Vec<_>>>().map_err(unreadable())?;
    names.sort();
    Ok(Some(names))
}

/// What is at `path` itself, followed nowhere.
fn present(path: &Path) -> Result<Option<fs::Metadata>, Failure> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(cannot("getting status of", path)(error)),
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn is_skipped(path: &Path) -> bool {
    SKIPPED.iter().any(|suffix| path.as_os_str().as_bytes().ends_with(suffix.as_bytes()))
}

#[cfg(test)]
#[path = "buildenv_tests.rs"]
mod tests;
