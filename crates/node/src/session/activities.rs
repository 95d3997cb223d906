//! A build as Nix's clients picture it: activities and their results.
//!
//! Per request one `Realise`, one `Builds` and one `CopyPaths` activity, and a `Build` for each derivation that runs.
//! Builders' lines are results 101 on it: only these reach `nix log`, `-L` and the log of a remote build. This is what
//! nix-daemon sends, in its order (worker-protocol §4).

use std::collections::HashMap;

use aws_lc_rs::rand::SecureRandom;
use shoal_wire::nix::log::{ActivityResult, ActivityType, Field, ResultType, StartActivity, Verbosity};
use shoal_wire::nix::store_path::{StoreDir, StorePath};
use shoal_wire::nix::worker::StderrMessage;

use super::substitution::FetchEvent;
use crate::build::feed::{BuildEvent, JobId};

/// Numbers of activities, unique among all daemons that one client may talk to.
pub struct ActivityIds {
    next: u64,
}

impl ActivityIds {
    /// The high half is random, as Nix's is the process id.
    pub fn new() -> Self {
        let mut high = [0; 4];
        // Without randomness ids may clash with another node's: a display is confused, nothing else.
        let _ = aws_lc_rs::rand::SystemRandom::new().fill(&mut high);
        ActivityIds { next: u64::from(u32::from_le_bytes(high)) << 32 }
    }

    fn take(&mut self) -> u64 {
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        id
    }
}

impl Default for ActivityIds {
    fn default() -> Self {
        Self::new()
    }
}

/// Whether a message may be left out for a client that reads too slowly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    Kept,
    Droppable,
}

/// Tells one request's builds.
pub struct Narrator<'a> {
    dir: &'a StoreDir,
    ids: &'a mut ActivityIds,
    realise: u64,
    builds: u64,
    copies: u64,
    running: HashMap<JobId, u64>,
    fetching: HashMap<StorePath, Fetching>,
    progress: [u64; 4],
}

/// The activities of one path that is being fetched, each inside the one before.
struct Fetching {
    substitute: u64,
    copy: u64,
    transfer: u64,
}

impl Fetching {
    /// Innermost first.
    fn stop(self) -> impl Iterator<Item = Said> {
        let ids = [self.transfer, self.copy, self.substitute];
        ids.into_iter().map(|id| (Weight::Kept, StderrMessage::StopActivity { id }))
    }
}

type Said = (Weight, StderrMessage);

impl<'a> Narrator<'a> {
    /// Also returns how the tale begins.
    pub fn begin(dir: &'a StoreDir, ids: &'a mut ActivityIds) -> (Self, Vec<Said>) {
        let [realise, builds, copies] = [ids.take(), ids.take(), ids.take()];
        let started =
            [(realise, ActivityType::REALISE), (builds, ActivityType::BUILDS), (copies, ActivityType::COPY_PATHS)];
        let start = |(id, kind)| (Weight::Kept, start(id, Verbosity::Error, kind, String::new(), Vec::new()));
        let mut said: Vec<Said> = started.into_iter().map(start).collect();
        let (running, fetching) = (HashMap::new(), HashMap::new());
        let narrator = Narrator { dir, ids, realise, builds, copies, running, fetching, progress: [0; 4] };
        said.extend(narrator.expectations());
        (narrator, said)
    }

    pub fn tell(&mut self, event: BuildEvent) -> Vec<Said> {
        match event {
            BuildEvent::Started { job, drv_path, machine } => {
                let id = self.ids.take();
                self.running.insert(job, id);
                let drv = self.dir.print(&drv_path);
                let on = machine.as_ref().map(|name| format!(" on '{name}'")).unwrap_or_default();
                let text = format!("building '{drv}'{on}");
                let fields = vec![drv.into(), machine.unwrap_or_default().into(), 1.into(), 1.into()];
                vec![(Weight::Kept, start(id, Verbosity::Info, ActivityType::BUILD, text, fields))]
            }
            BuildEvent::Phase { job, phase } => {
                self.of_job(job, Weight::Kept, ResultType::SET_PHASE, phase.into_bytes())
            }
            BuildEvent::Line { job, line } => self.of_job(job, Weight::Droppable, ResultType::BUILD_LOG_LINE, line),
            BuildEvent::Finished { job } => {
                let stopped = self.running.remove(&job);
                stopped.map(|id| (Weight::Kept, StderrMessage::StopActivity { id })).into_iter().collect()
            }
            BuildEvent::Progress { done, expected, running, failed } => {
                self.progress = [done, expected, running, failed];
                vec![(Weight::Droppable, self.counts())]
            }
            BuildEvent::Message(text) | BuildEvent::Said(text) => {
                vec![(Weight::Kept, StderrMessage::Next(text.into_bytes()))]
            }
        }
    }

    /// What Nix's substitution says of each path, in its order (`substitution-goal.cc`, `copyStorePath`).
    pub fn fetching(&mut self, event: FetchEvent<'_>) -> Vec<Said> {
        match event {
            FetchEvent::Started { path, from, url } => self.fetch_started(path, from, url),
            FetchEvent::Progress { path, nar, file } => {
                let Some(Fetching { copy, transfer, .. }) = self.fetching.get(path) else { return Vec::new() };
                let progress = |id: &u64, (done, expected): (u64, u64)| {
                    (Weight::Droppable, result(*id, ResultType::PROGRESS, numbers([done, expected, 0, 0])))
                };
                vec![progress(transfer, file), progress(copy, nar)]
            }
            FetchEvent::Ended { path } => self.fetching.remove(path).into_iter().flat_map(Fetching::stop).collect(),
            FetchEvent::Totals { done, expected, running, failed, file_bytes, nar_bytes } => {
                let expect = |kind: ActivityType, bytes: u64| vec![kind.0.into(), bytes.into()];
                [
                    result(self.copies, ResultType::PROGRESS, numbers([done, expected, running, failed])),
                    result(self.realise, ResultType::SET_EXPECTED, expect(ActivityType::FILE_TRANSFER, file_bytes)),
                    result(self.realise, ResultType::SET_EXPECTED, expect(ActivityType::COPY_PATH, nar_bytes)),
                ]
                .map(|message| (Weight::Kept, message))
                .into()
            }
        }
    }

    fn fetch_started(&mut self, path: &StorePath, from: &str, url: &str) -> Vec<Said> {
        let [substitute, copy, transfer] = [self.ids.take(), self.ids.take(), self.ids.take()];
        self.fetching.insert(path.clone(), Fetching { substitute, copy, transfer });
        let full = self.dir.print(path);
        let copying = format!("copying path '{full}' from '{from}'");
        let fields = vec![full.clone().into(), from.into()];
        let copied = vec![full.into(), from.into(), "local".into()];
        [
            start(substitute, Verbosity::Error, ActivityType::SUBSTITUTE, String::new(), fields),
            start_within(substitute, copy, Verbosity::Info, ActivityType::COPY_PATH, copying, copied),
            start_within(
                copy,
                transfer,
                Verbosity::Talkative,
                ActivityType::FILE_TRANSFER,
                format!("downloading '{url}'"),
                vec![url.into()],
            ),
        ]
        .map(|message| (Weight::Kept, message))
        .into()
    }

    /// Said where nothing happens, so that nobody on the way takes the connection for dead.
    pub fn still_alive(&self) -> Vec<Said> {
        vec![(Weight::Droppable, self.counts())]
    }

    /// How the tale ends.
    pub fn end(self) -> Vec<Said> {
        let mut said = vec![(Weight::Kept, self.counts())];
        said.extend(self.fetching.into_values().flat_map(Fetching::stop));
        let ids = self.running.into_values().chain([self.copies, self.builds, self.realise]);
        said.extend(ids.map(|id| (Weight::Kept, StderrMessage::StopActivity { id })));
        said
    }

    fn of_job(&self, job: JobId, weight: Weight, kind: ResultType, text: Vec<u8>) -> Vec<Said> {
        let id = self.running.get(&job);
        id.map(|id| (weight, result(*id, kind, vec![text.into()]))).into_iter().collect()
    }

    fn counts(&self) -> StderrMessage {
        result(self.builds, ResultType::PROGRESS, numbers(self.progress))
    }

    /// Nothing built, nothing copied, nothing to be fetched: where displays start from.
    fn expectations(&self) -> Vec<Said> {
        let none = |kind: ActivityType| vec![kind.0.into(), 0.into()];
        [
            self.counts(),
            result(self.copies, ResultType::PROGRESS, numbers([0; 4])),
            result(self.realise, ResultType::SET_EXPECTED, none(ActivityType::FILE_TRANSFER)),
            result(self.realise, ResultType::SET_EXPECTED, none(ActivityType::COPY_PATH)),
        ]
        .into_iter()
        .map(|message| (Weight::Kept, message))
        .collect()
    }
}

fn numbers(values: [u64; 4]) -> Vec<Field> {
    values.into_iter().map(Field::from).collect()
}

fn start(id: u64, level: Verbosity, kind: ActivityType, text: String, fields: Vec<Field>) -> StderrMessage {
    start_within(0, id, level, kind, text, fields)
}

fn start_within(
    parent: u64,
    id: u64,
    level: Verbosity,
    kind: ActivityType,
    text: String,
    fields: Vec<Field>,
) -> StderrMessage {
    StderrMessage::StartActivity(StartActivity {
        id,
        level: level.number(),
        kind,
        text: text.into_bytes(),
        fields,
        parent,
    })
}

fn result(id: u64, kind: ResultType, fields: Vec<Field>) -> StderrMessage {
    StderrMessage::Result(ActivityResult { id, kind, fields })
}

#[cfg(test)]
mod tests {
    use shoal_wire::nix::store_path::StorePath;

    use super::*;

    fn drv() -> StorePath {
        StorePath::from_base_name("00000000000000000000000000000000-x.drv").unwrap()
    }

    /// Ids of activities that were started and not stopped.
    fn open(said: &[Said]) -> Vec<u64> {
        let mut open = Vec::new();
        for (_, message) in said {
            match message {
                StderrMessage::StartActivity(start) => open.push(start.id),
                StderrMessage::StopActivity { id } => open.retain(|other| other != id),
                StderrMessage::Result(result) => assert!(open.contains(&result.id), "result of a closed activity"),
                _ => {}
            }
        }
        open
    }

    #[test]
    fn every_activity_ends_and_results_come_while_it_lasts() {
        let (dir, mut ids) = (StoreDir::default(), ActivityIds::new());
        let (mut narrator, mut said) = Narrator::begin(&dir, &mut ids);
        for event in [
            BuildEvent::Line { job: 1, line: b"too early".to_vec() },
            BuildEvent::Started { job: 1, drv_path: drv(), machine: None },
            BuildEvent::Phase { job: 1, phase: "unpackPhase".into() },
            BuildEvent::Line { job: 1, line: b"line".to_vec() },
            BuildEvent::Progress { done: 0, expected: 1, running: 1, failed: 0 },
            BuildEvent::Finished { job: 1 },
            BuildEvent::Line { job: 1, line: b"too late".to_vec() },
            BuildEvent::Started { job: 2, drv_path: drv(), machine: Some("n1".into()) },
        ] {
            said.extend(narrator.tell(event));
        }
        said.extend(narrator.still_alive());
        said.extend(narrator.end());
        assert!(open(&said).is_empty());
    }

    #[test]
    fn a_build_has_the_four_fields_that_clients_index() {
        let (dir, mut ids) = (StoreDir::default(), ActivityIds::new());
        let (mut narrator, _) = Narrator::begin(&dir, &mut ids);
        let said = narrator.tell(BuildEvent::Started { job: 1, drv_path: drv(), machine: None });
        let [(Weight::Kept, StderrMessage::StartActivity(start))] = &said[..] else { panic!("{said:?}") };
        let drv = dir.print(&drv());
        assert_eq!(start.kind, ActivityType::BUILD);
        assert_eq!(start.fields, [drv.clone().into(), "".into(), 1.into(), 1.into()] as [Field; 4]);
        assert_eq!(String::from_utf8_lossy(&start.text), format!("building '{drv}'"));
    }

    #[test]
    fn a_fetched_path_is_a_substitution_a_copy_and_a_transfer() {
        let (dir, mut ids) = (StoreDir::default(), ActivityIds::new());
        let (mut narrator, mut said) = Narrator::begin(&dir, &mut ids);
        let (path, other) = (drv(), StorePath::from_base_name("11111111111111111111111111111111-y").unwrap());
        let (from, url) = ("http://cache", "http://cache/nar/x.nar.xz");
        said.extend(narrator.fetching(FetchEvent::Progress { path: &path, nar: (1, 2), file: (1, 2) }));
        let started = narrator.fetching(FetchEvent::Started { path: &path, from, url });
        let kinds: Vec<(ActivityType, u64)> = started
            .iter()
            .filter_map(|(_, message)| match message {
                StderrMessage::StartActivity(start) => Some((start.kind, start.parent)),
                _ => None,
            })
            .collect();
        let StderrMessage::StartActivity(first) = &started[0].1 else { panic!("{started:?}") };
        assert_eq!(
            kinds,
            [
                (ActivityType::SUBSTITUTE, 0),
                (ActivityType::COPY_PATH, first.id),
                (ActivityType::FILE_TRANSFER, first.id + 1)
            ]
        );
        said.extend(started);
        said.extend(narrator.fetching(FetchEvent::Progress { path: &path, nar: (1, 2), file: (1, 2) }));
        said.extend(narrator.fetching(FetchEvent::Ended { path: &path }));
        said.extend(narrator.fetching(FetchEvent::Started { path: &other, from, url }));
        said.extend(narrator.end());
        assert!(open(&said).is_empty());
    }

    #[test]
    fn two_sessions_do_not_share_ids() {
        let (mut a, mut b) = (ActivityIds::new(), ActivityIds::new());
        assert_ne!(a.take() >> 32, b.take() >> 32);
    }
}
