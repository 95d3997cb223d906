//! How builds see their inputs: as plain trees on disk, or by a view of the lazy store.
//!
//! Trees are unpacked before a build starts, and read as fast as the disk; a view is there at once, and what is read of it
//! is brought when it is read. Which of them a build gets is decided here, and nowhere else.

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Value, json};
use shoal_fuse::{Deliver, Handle, Options, Source, SourceError, View, ViewError, ViewMount};
use shoal_sandbox::End;
use shoal_wire::mesh::manifest::{ChunkRef, Manifest};
use shoal_wire::nix::nar::NarLimits;
use shoal_wire::nix::nar::index::IndexBuilder;
use shoal_wire::nix::nar::parse::NarParser;
use shoal_wire::nix::nar::write::NarWriter;
use shoal_wire::nix::store_path::StorePath;

use crate::mount::NodeSource;
use crate::profiles::Profiles;
use crate::trees::{InUse, Trees};
use crate::upstream::Held;

/// A build for which more would have to be unpacked than this gets a view. Unpacking is waited for once, and from then on
/// reads are the disk's; beyond this the first build would wait for seconds.
pub const UNPACKED_AT_ONCE_MAX: u64 = 256 << 20;

/// A build waits for so much of its inputs that is to be fetched: it comes in few round trips.
pub const WAITED_FOR_MAX: u64 = 8 << 20;

/// A build waits so long for what its like read. It would wait for that later, one file after the other.
const EXPECTED_PATIENCE: Duration = Duration::from_secs(5);

/// What the configuration asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum InputsKind {
    /// Trees where little has to be unpacked, views otherwise.
    Auto,
    /// Views, where the machine can show any.
    Lazy,
    /// Trees, by one overlay.
    Materialised,
    /// Trees, each mounted by itself.
    Bind,
}

impl fmt::Display for InputsKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            InputsKind::Auto => "auto",
            InputsKind::Lazy => "lazy",
            InputsKind::Materialised => "materialised",
            InputsKind::Bind => "bind",
        })
    }
}

/// The inputs of builds of this node.
pub struct Inputs {
    kind: InputsKind,
    trees: Arc<Trees>,
    views: Option<Arc<InputViews>>,
    /// Why there are no views.
    lacks: String,
    /// What was read in views.
    profiles: Option<Profiles>,
    by_view: AtomicU64,
    by_trees: AtomicU64,
}

/// Who is to read inputs.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    /// Its programs are of 32 bits. Old ones of these cannot list a directory whose number has more, as those of views
    /// have: views are nothing for them.
    pub is_narrow: bool,
    /// Whether nobody wants it to read any more.
    pub is_over: &'a dyn Fn() -> bool,
}

/// What one build reads. Held until it ends.
pub enum Given {
    Trees(InUse),
    View(View),
}

/// The file system of views, made anew where it broke.
pub struct InputViews {
    source: Arc<NodeSource>,
    mount: Mutex<Option<Arc<ViewMount>>>,
}

impl Inputs {
    /// Trees alone.
    pub fn unpacked(trees: Arc<Trees>) -> Inputs {
        let lacks = "nothing was asked to show any".into();
        let (by_view, by_trees) = (AtomicU64::new(0), AtomicU64::new(0));
        Inputs { kind: InputsKind::Materialised, trees, views: None, lacks, profiles: None, by_view, by_trees }
    }

    /// Tries views out where they are wanted. `source`: what they show.
    pub fn new(kind: InputsKind, trees: Arc<Trees>, source: Arc<NodeSource>, data_dir: &Path) -> Inputs {
        let tried = match kind {
            InputsKind::Auto | InputsKind::Lazy => try_out(data_dir).map(drop),
            InputsKind::Materialised | InputsKind::Bind => Err("the configuration asks for none".into()),
        };
        let (views, lacks) = match tried {
            Ok(()) => (Some(Arc::new(InputViews { source, mount: Mutex::default() })), String::new()),
            Err(why) => (None, why),
        };
        if kind == InputsKind::Lazy && views.is_none() {
            tracing::warn!(why = lacks, "builds get their inputs unpacked; 'shoal doctor' says what views need");
        }
        let profiles = views.is_some().then(|| Profiles::open(data_dir));
        Inputs { kind, views, lacks, profiles, ..Inputs::unpacked(trees) }
    }

    pub fn trees(&self) -> &Arc<Trees> {
        &self.trees
    }

    pub fn views(&self) -> Option<&Arc<InputViews>> {
        self.views.as_ref()
    }

    /// Each input mounted by itself.
    pub fn are_bound(&self) -> bool {
        self.kind == InputsKind::Bind
    }

    /// Whether a build may begin before so many bytes of its inputs are here.
    pub fn may_come_later(&self, bytes: u64) -> bool {
        let is_worth_it = match self.kind {
            InputsKind::Lazy => true,
            InputsKind::Auto => bytes > WAITED_FOR_MAX,
            InputsKind::Materialised | InputsKind::Bind => false,
        };
        is_worth_it && self.views.is_some()
    }

    /// Notes who has paths that are not here yet.
    pub fn are_coming<'a>(&self, held: impl IntoIterator<Item = (&'a StorePath, &'a Held)>) {
        if let Some(views) = &self.views {
            views.source.expect(held);
        }
    }

    /// A view of paths, which need not be valid here.
    pub fn view<'a>(&self, paths: impl IntoIterator<Item = &'a StorePath>, reader: Reader<'_>) -> Result<Given> {
        let views = self.views.as_ref().context("this machine shows no views")?;
        anyhow::ensure!(!reader.is_narrow, "programs of 32 bits get no views");
        let view = views.view(paths.into_iter().map(StorePath::base_name), reader.is_over)?;
        self.by_view.fetch_add(1, Ordering::Relaxed);
        Ok(Given::View(view))
    }

    /// Makes paths visible to one build.
    pub fn give<'a>(
        &self,
        paths: impl IntoIterator<Item = &'a StorePath> + Clone,
        reader: Reader<'_>,
    ) -> Result<Given> {
        if self.views.is_some() && !reader.is_narrow && self.wants_view(paths.clone()) {
            match self.view(paths.clone(), reader) {
                Ok(view) => return Ok(view),
                Err(error) if (reader.is_over)() => return Err(error),
                Err(error) => tracing::warn!(error = format!("{error:#}"), "a build gets its inputs unpacked"),
            }
        }
        self.by_trees.fetch_add(1, Ordering::Relaxed);
        Ok(Given::Trees(self.trees.ensure(paths)?))
    }

    /// Fetches what the last build of this name read, where these are a view. Waits for it, but not for long.
    pub fn expect(&self, drv_name: &str, given: &Given, reader: Reader<'_>) {
        if let (Some(profiles), Some(view)) = (&self.profiles, given.view()) {
            view.expect(&profiles.load(drv_name), EXPECTED_PATIENCE, reader.is_over);
        }
    }

    /// Remembers what a build of this name read, if it came to its end: one that failed or was cancelled has not read all
    /// that the next one will, and what is remembered is better.
    pub fn learn(&self, drv_name: &str, given: &Given, end: &End) {
        if !has_read_all(end) {
            return;
        }
        let (Some(profiles), Some(view)) = (&self.profiles, given.view()) else { return };
        let before = profiles.load(drv_name);
        let profile = view.profile(&before);
        if let Err(error) = profiles.renew(drv_name, &before, &profile) {
            tracing::debug!(drv_name, %error, "what a build read is not remembered");
        }
    }

    fn wants_view<'a>(&self, paths: impl IntoIterator<Item = &'a StorePath>) -> bool {
        match self.kind {
            InputsKind::Lazy => true,
            InputsKind::Auto => self.trees.missing_bytes(paths).is_none_or(|bytes| bytes > UNPACKED_AT_ONCE_MAX),
            InputsKind::Materialised | InputsKind::Bind => false,
        }
    }

    /// For people.
    pub fn status(&self) -> Value {
        let read =
            self.views.as_ref().and_then(|views| views.handle()).map(|handle| handle.stats()).unwrap_or_default();
        json!({
            "kind": self.kind,
            "views": self.views.is_some(),
            "lacks": self.lacks,
            "builds_with_views": self.by_view.load(Ordering::Relaxed),
            "builds_with_trees": self.by_trees.load(Ordering::Relaxed),
            "reads": read.reads,
            "waited_reads": read.waited_reads,
            "expected_chunks": read.expected_chunks,
            "fetched_bytes": read.fetched_bytes,
        })
    }
}

fn has_read_all(end: &End) -> bool {
    *end == End::Exited(0)
}

impl Given {
    /// Whether the builder may have been given errors that are this node's and not the inputs' own.
    pub fn has_failed(&self) -> bool {
        match self {
            Given::Trees(_) => false,
            Given::View(view) => view.has_failed(),
        }
    }

    /// The view, where it is one.
    pub fn view(&self) -> Option<&View> {
        match self {
            Given::Trees(_) => None,
            Given::View(view) => Some(view),
        }
    }
}

impl InputViews {
    fn mount(&self) -> MutexGuard<'_, Option<Arc<ViewMount>>> {
        self.mount.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn view<'a>(&self, names: impl IntoIterator<Item = &'a str>, is_over: &dyn Fn() -> bool) -> Result<View> {
        let mount = {
            let mut current = self.mount();
            match current.as_ref().filter(|mount| !mount.has_ended()) {
                Some(mount) => mount.clone(),
                None => {
                    let mount = ViewMount::start(self.source.clone(), &Options::default());
                    let mount = Arc::new(mount.context("cannot show views of inputs")?);
                    current.insert(mount).clone()
                }
            }
        };
        Ok(mount.view_unless(names, is_over)?)
    }

    /// Whom to tell what becomes of paths, once there are views.
    pub fn handle(&self) -> Option<Handle> {
        self.mount().as_ref().map(|mount| mount.handle().clone())
    }

    /// Ends all views: who reads in them gets errors.
    pub fn stop(&self) {
        drop(self.mount().take());
    }
}

/// What a view is tried out with: a file that cannot be executed, which the kernel only knows when it has read it.
const TRIAL: &str = "00000000000000000000000000000000-trial";

struct Trial {
    manifest: Manifest,
    nar: Vec<u8>,
}

impl Trial {
    fn new() -> Result<Trial> {
        let contents = b"not a program";
        let mut writer = NarWriter::new(Vec::new());
        writer.regular(b"", true, contents.len() as u64)?;
        writer.contents(contents)?;
        let nar = writer.finish()?;
        let (mut parser, mut index) = (NarParser::new(NarLimits::ANY_RELEASE), IndexBuilder::new());
        parser.feed(&nar, &mut index)?;
        let index = index.finish(nar.len() as u64)?;
        Ok(Trial { manifest: Manifest { chunks: vec![ChunkRef::of(&nar)], index }, nar })
    }
}

impl Source for Trial {
    fn names(&self) -> Result<Vec<String>, SourceError> {
        Ok(vec![TRIAL.into()])
    }

    fn manifest(&self, name: &str) -> Result<Option<Manifest>, SourceError> {
        Ok((name == TRIAL).then(|| self.manifest.clone()))
    }

    fn fetch(&self, _: &str, chunks: &[ChunkRef], deliver: Deliver<'_>) {
        (0..chunks.len()).for_each(|place| deliver(place, Ok(self.nar.clone())));
    }

    fn prefetch(&self, _: &str, _: &[ChunkRef]) {}
}

/// Starts a sandbox whose inputs are a view. Microseconds that its set-up took, or for people why there can be none.
pub fn try_out(data_dir: &Path) -> Result<u64, String> {
    let trial = Trial::new().map_err(|error| format!("{error:#}"))?;
    let mount = ViewMount::start(Arc::new(trial), &Options::default()).map_err(|error| error.to_string())?;
    let view = mount.view([TRIAL]).map_err(|error: ViewError| error.to_string())?;
    let program = format!("/nix/store/{TRIAL}");
    let tried = shoal_sandbox::try_view(data_dir, view.dir().clone(), &program);
    match tried {
        Ok(_) if view.has_failed() => Err("what was read in a view did not come".into()),
        tried => tried,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_of_32_bits_get_no_view() {
        let dir = tempfile::tempdir().unwrap();
        let store = shoal_store::Store::open(&dir.path().join("store"), shoal_store::Options::default()).unwrap();
        let source = Arc::new(NodeSource::new(store.clone(), crate::neighbours::Neighbours::default(), 0));
        let views = Arc::new(InputViews { source, mount: Mutex::default() });
        let trees = Trees::open(store, dir.path()).unwrap();
        let inputs = Inputs { kind: InputsKind::Lazy, views: Some(views.clone()), ..Inputs::unpacked(trees) };
        let reader = Reader { is_narrow: true, is_over: &|| false };
        assert!(inputs.give(&[], reader).unwrap().view().is_none());
        let Err(refused) = inputs.view(&[], reader) else { panic!("there is a view") };
        assert_eq!(refused.to_string(), "programs of 32 bits get no views");
        assert!(views.mount().is_none(), "none was tried");
    }

    #[test]
    fn builds_that_broke_off_say_nothing_of_the_next() {
        assert!(has_read_all(&End::Exited(0)));
        for end in [End::Exited(1), End::Signaled(9), End::TimedOut, End::Silent, End::LogLimit, End::Killed, End::Lost]
        {
            assert!(!has_read_all(&end), "{end:?}");
        }
    }
}
