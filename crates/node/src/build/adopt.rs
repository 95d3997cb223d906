//! Builds that outlived the node that started them.
//!
//! A build runs under its own supervisor. When the node is killed and started again, it finds the build's scratch
//! directory with a note in it, attaches to the supervisor (or to what it left) and finishes the build: the client that
//! asked is gone, but the one that comes back finds the outputs, or joins the running build.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use shoal_sandbox::{Event, Scratch};
use shoal_wire::nix::aterm;
use shoal_wire::nix::derivation::BasicDerivation;
use shoal_wire::nix::store_path::{StoreDir, StorePath};
use shoal_wire::nix::worker::ops::BuildMode;

use super::graph::{Graph, Task};
use super::prepare::Prepared;
use super::request::{BuildOptions, Goal, Progress, Wanted};
use super::service::BuildService;
use crate::inputs::Given;
use crate::trees::{boot_id, in_background, remove};

/// How often the reader of an adopted build looks up when nothing happens.
const ADOPTED_IDLE: Duration = Duration::from_secs(3600);
/// A sandbox that is killed is gone before; one that is not would keep all that is tidied up waiting.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// What a new node must know of a build beyond what its supervisor knows. On disk it is a line of JSON, and the
/// derivation in ATerm form follows.
#[derive(Serialize, Deserialize)]
struct Note {
    /// Outputs are not synced: what was built before the machine stopped is not to be trusted.
    boot_id: String,
    drv_path: StorePath,
    name: String,
    output_hashes: BTreeMap<String, [u8; 32]>,
    needs_realisations: bool,
    /// Its inputs came from the node itself, so that it cannot go on without it.
    #[serde(default)]
    has_view: bool,
    /// What comes of it is no output: whoever would have compared it is gone.
    #[serde(default)]
    is_check: bool,
}

#[derive(Debug)]
pub struct Adopted {
    pub drv_path: StorePath,
    pub scratch: PathBuf,
    pub derivation: BasicDerivation,
    pub output_hashes: BTreeMap<String, [u8; 32]>,
    pub needs_realisations: bool,
}

/// Written before the build starts.
pub(super) fn leave_note(scratch: &Scratch, prepared: &Prepared, given: &Given, dir: &StoreDir) -> Result<()> {
    let note = Note {
        boot_id: boot_id()?,
        drv_path: prepared.drv_path.clone(),
        name: prepared.derivation.name.clone(),
        output_hashes: prepared.output_hashes.clone(),
        needs_realisations: prepared.needs_realisations,
        has_view: given.view().is_some(),
        is_check: prepared.mode == BuildMode::Check,
    };
    let mut text = serde_json::to_vec(&note)?;
    text.push(b'\n');
    text.extend(aterm::print(dir, &prepared.derivation.clone().into_derivation()));
    scratch.leave_note(&text).context("cannot write into the build's directory")
}

fn read_note(scratch: &Scratch, dir: &StoreDir) -> Result<Adopted> {
    let bytes = scratch.note()?.context("there is no build in it")?;
    let end = bytes.iter().position(|&byte| byte == b'\n').context("the note is damaged")?;
    let (note, text) = bytes.split_at(end);
    let note: Note = serde_json::from_slice(note)?;
    anyhow::ensure!(note.boot_id == boot_id()?, "it is of a time before the machine was started");
    anyhow::ensure!(!note.has_view, "what it reads came from the node that is gone");
    anyhow::ensure!(!note.is_check, "it was a check, and nobody waits for it any more");
    let derivation = aterm::parse(dir, &text[1..], &note.name)?.to_basic();
    Ok(Adopted {
        drv_path: note.drv_path,
        scratch: scratch.path().to_path_buf(),
        derivation,
        output_hashes: note.output_hashes,
        needs_realisations: note.needs_realisations,
    })
}

/// Takes up every build that an earlier run left, and clears away what cannot be.
pub(super) fn adopt_all(service: &Arc<BuildService>) {
    let Ok(entries) = fs::read_dir(service.config.data_dir.join("builds")) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let adopted = read_note(&Scratch::new(&path), &service.dir)
            .and_then(|adopted| shoal_sandbox::attach(&path, 0).map(|_| adopted).map_err(Into::into));
        match adopted {
            Ok(adopted) => adopt(service, adopted),
            Err(error) => {
                tracing::info!(dir = %path.display(), error = format!("{error:#}"), "removing what is left of a build");
                in_background(move || end_and_remove(&path));
            }
        }
    }
}

/// Stops what runs there, if anything does.
fn end_and_remove(path: &Path) {
    let ended = shoal_sandbox::attach(path, 0).and_then(|mut running| {
        running.kill()?;
        let until = Instant::now() + END_PATIENCE;
        while let Some(event) = running.next(Some(until))? {
            if let Event::Exited(_) = event {
                break;
            }
        }
        Ok(())
    });
    match ended {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            tracing::warn!(dir = %path.display(), %error, "a build of an earlier run may still be there");
        }
        _ => {}
    }
    remove(path);
}

/// Wants the build on behalf of nobody until it has ended.
fn adopt(service: &Arc<BuildService>, adopted: Adopted) {
    let drv_path = adopted.drv_path.clone();
    tracing::info!(derivation = %drv_path, "going on with a build that an earlier run of this node started");
    let graph = Graph::single(Task::adopted(adopted));
    let goals = vec![Goal::Derivation { drv_path, wanted: Wanted::All }];
    let mut handle = service.enter(graph, goals, BuildOptions::default());
    let spawned = std::thread::Builder::new()
        .name("adopted".into())
        .spawn(move || while !matches!(handle.next(ADOPTED_IDLE), Progress::Done(_)) {});
    if let Err(error) = spawned {
        tracing::warn!(%error, "cannot follow a build of an earlier run");
    }
}
