//! What builds read of their inputs, on disk: a small file for each derivation name, from which the next build of that
//! name has its inputs fetched before it reads them.
//!
//! Losing any costs time only. A file that cannot be read is none.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use shoal_fuse::{FILES_MAX, FileRead, Profile};
use shoal_wire::nix::store_path::check_name;

/// Names that are remembered; the one that was built the longest ago goes first. Together at most 1 GiB, mostly a few MiB.
const NAMES_MAX: usize = 1024;
/// Of one file: what [`FILES_MAX`] long paths take.
const FILE_BYTES_MAX: u64 = 1 << 20;
const EXTENSION: &str = "json";

pub struct Profiles {
    dir: PathBuf,
    /// Two builds of one name may be saved at a time.
    saved: AtomicU64,
}

/// A file that was read, as it is written.
#[derive(Serialize, Deserialize)]
struct Entry {
    path: String,
    file: String,
    parts: Vec<(u64, u64)>,
}

impl Profiles {
    pub fn open(data_dir: &Path) -> Profiles {
        Profiles { dir: data_dir.join("profiles"), saved: AtomicU64::new(0) }
    }

    fn file(&self, name: &str) -> Option<PathBuf> {
        // No other name is one of a derivation, or of a file within the directory.
        check_name(name).ok()?;
        Some(self.dir.join(format!("{name}.{EXTENSION}")))
    }

    /// What was read when a derivation of this name was last built here.
    pub fn load(&self, name: &str) -> Profile {
        let read = |file: PathBuf| {
            let small = fs::metadata(&file).ok().filter(|meta| meta.len() <= FILE_BYTES_MAX);
            small.and_then(|_| fs::read(&file).ok())
        };
        let entries: Option<Vec<Entry>> =
            self.file(name).and_then(read).and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let file_read = |Entry { path, file, parts }| {
            let parts = parts.into_iter().map(|(from, to)| from..to).filter(|part| part.start < part.end);
            FileRead { path, file, parts: parts.collect() }
        };
        Profile { files: entries.into_iter().flatten().take(FILES_MAX).map(file_read).collect() }
    }

    /// Saves what is new. What is as it was `before` is only noted to be used.
    pub fn renew(&self, name: &str, before: &Profile, profile: &Profile) -> io::Result<()> {
        match self.file(name).filter(|_| profile == before) {
            // None is as good as one that says nothing.
            Some(file) => match fs::File::options().write(true).open(file) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                opened => opened?.set_modified(SystemTime::now()),
            },
            None => self.save(name, profile),
        }
    }

    fn save(&self, name: &str, profile: &Profile) -> io::Result<()> {
        let Some(file) = self.file(name) else { return Ok(()) };
        let entry = |read: &FileRead| Entry {
            path: read.path.clone(),
            file: read.file.clone(),
            parts: read.parts.iter().map(|part| (part.start, part.end)).collect(),
        };
        let bytes = serde_json::to_vec(&profile.files.iter().map(entry).collect::<Vec<_>>())?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Ok(());
        }
        fs::create_dir_all(&self.dir)?;
        let temporary =
            file.with_extension(format!("new.{}.{}", std::process::id(), self.saved.fetch_add(1, Ordering::Relaxed)));
        fs::write(&temporary, bytes)?;
        fs::rename(&temporary, &file)?;
        self.shrink()
    }

    /// Removes the oldest beyond [`NAMES_MAX`], and what a node that was killed left.
    fn shrink(&self) -> io::Result<()> {
        let mut files: Vec<(SystemTime, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            // What another thread has renamed meanwhile is passed over, as is what cannot be looked at.
            let Ok(entry) = entry else { continue };
            if let Ok(meta) = entry.metadata()
                && meta.is_file()
                && let Ok(modified) = meta.modified()
            {
                files.push((modified, entry.path()));
            }
        }
        files.sort_unstable();
        let too_many = files.len().saturating_sub(NAMES_MAX);
        // The others go although one does not; who saved is told of the first.
        let mut first = Ok(());
        for (_, file) in &files[..too_many] {
            let removed = fs::remove_file(file);
            if first.is_ok() && removed.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::NotFound) {
                first = removed;
            }
        }
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(file: &str) -> Profile {
        let parts = vec![0..10, 20..u64::MAX];
        Profile { files: vec![FileRead { path: "gcc-13".into(), file: file.into(), parts }] }
    }

    #[test]
    fn what_is_kept_is_what_was_saved_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let profiles = Profiles::open(dir.path());
        assert_eq!(profiles.load("hello"), Profile::default());
        profiles.save("hello", &profile("bin/gcc")).unwrap();
        assert_eq!(profiles.load("hello"), profile("bin/gcc"));
        assert!(profiles.save("../hello", &profile("x")).is_ok());
        assert!(!dir.path().join("hello.json").exists());
        let long_ago = fs::File::options().write(true).open(dir.path().join("profiles/hello.json")).unwrap();
        long_ago.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        (0..NAMES_MAX).for_each(|n| profiles.save(&format!("n{n}"), &profile("x")).unwrap());
        assert_eq!(profiles.load("hello"), Profile::default());
        assert_eq!(fs::read_dir(dir.path().join("profiles")).unwrap().count(), NAMES_MAX);
    }

    #[test]
    fn what_is_built_often_stays_though_nothing_new_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let profiles = Profiles::open(dir.path());
        let often = profile("bin/gcc");
        profiles.renew("often", &Profile::default(), &often).unwrap();
        assert_eq!(profiles.load("often"), often);
        let file = fs::File::options().write(true).open(dir.path().join("profiles/often.json")).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        profiles.renew("often", &often, &often).unwrap();
        assert!(file.metadata().unwrap().modified().unwrap() > SystemTime::UNIX_EPOCH);
        assert!(profiles.renew("never", &Profile::default(), &Profile::default()).is_ok());
    }

    #[test]
    fn a_directory_among_them_keeps_none_from_going() {
        let dir = tempfile::tempdir().unwrap();
        let profiles = Profiles::open(dir.path());
        fs::create_dir_all(dir.path().join("profiles/odd/one")).unwrap();
        (0..NAMES_MAX + 2).for_each(|n| fs::write(dir.path().join(format!("profiles/n{n}.json")), "[]").unwrap());
        profiles.save("hello", &profile("x")).unwrap();
        assert_eq!(fs::read_dir(dir.path().join("profiles")).unwrap().count(), NAMES_MAX + 1);
    }

    #[test]
    fn a_file_that_is_none_of_ours_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("profiles")).unwrap();
        let profiles = Profiles::open(dir.path());
        for text in ["", "[{}]", "[{\"path\":1}]", "{"] {
            fs::write(dir.path().join("profiles/a.json"), text).unwrap();
            assert_eq!(profiles.load("a"), Profile::default());
        }
        fs::write(dir.path().join("profiles/a.json"), vec![b' '; 2 << 20]).unwrap();
        assert_eq!(profiles.load("a"), Profile::default());
    }
}
