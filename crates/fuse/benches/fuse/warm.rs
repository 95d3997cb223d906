//! A tree of headers that was read before, through the mount and on the disk.

use crate::paths::{Chunks, Entry, executable, file, link, noise, path};
use crate::row;
use shoal_fuse::{Deliver, Mount, Options, Source, SourceError};
use shoal_wire::mesh::manifest::{ChunkRef, Manifest};
use std::fs::{self, File};
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const NAME: &str = "00000000000000000000000000000000-headers";
/// Directories that a compiler looks into one after the other; most look-ups miss.
const DIRECTORIES: usize = 20;
const HEADERS: usize = 20_000;
/// Headers that the compiled file includes.
const INCLUDED: usize = 900;
const TURNS: usize = 15;
/// Of a compiler in one measurement: processor time is told in hundredths of a second.
const RUNS: usize = 5;

/// Takes a tree, and says how long it took.
type Work<'a> = &'a dyn Fn(&Path) -> Duration;

struct Memory(Manifest, Chunks);

impl Source for Memory {
    fn names(&self) -> Result<Vec<String>, SourceError> {
        Ok(vec![NAME.into()])
    }

    fn manifest(&self, name: &str) -> Result<Option<Manifest>, SourceError> {
        Ok((name == NAME).then(|| self.0.clone()))
    }

    fn fetch(&self, _: &str, chunks: &[ChunkRef], deliver: Deliver<'_>) {
        for (place, chunk) in chunks.iter().enumerate() {
            deliver(place, self.1.get(&chunk.hash).cloned().ok_or(SourceError::Missing));
        }
    }

    fn prefetch(&self, _: &str, _: &[ChunkRef]) {}
}

fn contents(number: usize) -> String {
    let lines =
        (0..40 + number % 60).map(|line| format!("extern int f{number}_{line}(int, const char *, unsigned long);\n"));
    format!("#ifndef H{number}\n#define H{number}\n{}#endif\n", lines.collect::<String>())
}

fn header(number: usize) -> String {
    format!("d{}/h{number}.h", number % DIRECTORIES)
}

pub fn run() {
    let headers = (0..HEADERS).map(|number| (header(number), file(contents(number).as_bytes())));
    // What else a tool chain has.
    let others = [("bin/gcc", executable(&noise(1, 1 << 20))), ("bin/cc", link("gcc"))];
    let others = others.map(|(name, entry)| (name.to_owned(), entry));
    let entries: Vec<(String, Entry)> = headers.chain(others).collect();
    // Beside the build's own files: what lies in memory is no disk.
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let (disk, mounted) = (place.path().join("disk"), place.path().join("store"));
    fs::create_dir(&mounted).expect("a directory");
    for number in 0..HEADERS {
        let to = disk.join(header(number));
        fs::create_dir_all(to.parent().expect("below the disk")).expect("a directory");
        fs::write(to, contents(number)).expect("a file");
    }
    let (manifest, chunks) = path(&entries);
    let mount = Mount::start(&mounted, Arc::new(Memory(manifest, chunks)), &Options::default()).expect("a mount");
    let store = mounted.join(NAME);
    let source = place.path().join("all.c");
    let includes = (0..INCLUDED).map(|number| format!("#include <h{}.h>\n", number * (HEADERS / INCLUDED)));
    fs::write(&source, includes.collect::<String>()).expect("a file");

    let works: [(&str, &str, Work<'_>); 5] = [
        ("stat", "1.2", &|dir| each(dir, |file| drop(black_box(fs::symlink_metadata(file))))),
        ("open and close", "1.3", &|dir| each(dir, |file| drop(black_box(File::open(file))))),
        ("read", "1.0", &|dir| each(dir, |file| drop(black_box(fs::read(file))))),
        ("find", "1.0", &|dir| wall(Command::new("find").arg(dir).arg("-type").arg("f"))),
        ("gcc -M, CPU", "1.0", &|dir| compile(dir, &source)),
    ];
    for (what, bar, work) in works {
        work(&disk);
        work(&store);
        let before = mount.handle().stats();
        let mut ratios: Vec<f64> = (0..TURNS)
            .map(|turn| {
                let (first, second) = if turn % 2 == 0 { (&disk, &store) } else { (&store, &disk) };
                let (one, two) = (work(first).as_secs_f64(), work(second).as_secs_f64());
                if turn % 2 == 0 { two / one } else { one / two }
            })
            .collect();
        ratios.sort_by(f64::total_cmp);
        let upcalls = mount.handle().stats().upcalls() - before.upcalls();
        let value = format!("{:.2} x the disk, {upcalls} upcalls", ratios[TURNS / 2]);
        row(&format!("warm: {what}"), &value, &format!("{bar}, 0"));
    }
    mount.stop().expect("unmounted");
}

/// How long something takes for every header of a tree.
fn each(dir: &Path, work: impl Fn(&Path)) -> Duration {
    let files: Vec<PathBuf> = (0..HEADERS).map(|number| dir.join(header(number))).collect();
    let begun = Instant::now();
    files.iter().for_each(|file| work(file));
    begun.elapsed()
}

fn wall(command: &mut Command) -> Duration {
    let begun = Instant::now();
    assert!(command.stdout(Stdio::null()).status().expect("a program").success());
    begun.elapsed()
}

/// The processor time of a compiler that finds what a file includes.
fn compile(dir: &Path, source: &Path) -> Duration {
    let mut gcc = Command::new("gcc");
    gcc.args(["-M", "-nostdinc", "-x", "c"]);
    for number in 0..DIRECTORIES {
        gcc.arg("-isystem").arg(dir.join(format!("d{number}")));
    }
    let before = children();
    gcc.arg(source);
    for _ in 0..RUNS {
        wall(&mut gcc);
    }
    children() - before
}

/// Processor time of children that have ended.
fn children() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").expect("this process");
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    // Of those after the name the 14th and 15th, in hundredths of a second.
    let ticks: u64 = [13, 14].iter().filter_map(|&at| fields.get(at)?.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}
