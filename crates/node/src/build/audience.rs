//! Who is told of a node's builds: the clients of its requests.

use std::collections::BTreeSet;
use std::sync::Arc;

use shoal_grid::schedule::{Answer, RequestId};
use shoal_store::TempRoots;
use shoal_wire::nix::store_path::StorePath;
use shoal_wire::nix::worker::BuildResult;

use super::execute::Ended;
use super::failure::{Failure, Texts, error_text};
use super::feed::{BuildEvent, Feed, JobId};
use super::service::{BuildService, State};

/// Counts over the derivations of one request.
#[derive(Clone, Copy, Default)]
pub(super) struct Counts {
    pub done: u64,
    pub expected: u64,
    pub running: u64,
    pub failed: u64,
}

pub(super) struct Client {
    pub feed: Feed,
    /// Keeps what was built for it, until the session has made it its own.
    pub roots: Arc<TempRoots>,
    pub counts: Counts,
    pub goals: BTreeSet<StorePath>,
}

impl Client {
    pub fn tell_progress(&self) {
        let Counts { done, expected, running, failed } = self.counts;
        self.feed.push(BuildEvent::Progress { done, expected, running, failed });
    }
}

impl BuildService {
    /// A client that joins hears of the builds of its graph that already run, and what they said.
    pub(super) fn tell_what_runs(&self, state: &mut State, request: RequestId) {
        let State { jobs, schedule, clients, .. } = state;
        let Some(client) = clients.get_mut(&request) else { return };
        for (key, job) in jobs.iter() {
            let Some(running) = &job.running else { continue };
            let past = running.past.events(running.id);
            if past.is_empty() || !schedule.wanted_by(key).any(|wanting| wanting == request) {
                continue;
            }
            client.counts.running += 1;
            past.into_iter().for_each(|event| client.feed.push(event));
        }
        client.tell_progress();
    }

    pub(super) fn tell_all(&self, state: &mut State, key: &StorePath, event: &BuildEvent) {
        let wanting: Vec<RequestId> = state.schedule.wanted_by(key).collect();
        for client in wanting.iter().filter_map(|request| state.clients.get(request)) {
            client.feed.push(event.clone());
        }
    }

    /// Tells everybody who wants this job that a run of it is none any more.
    pub(super) fn tell_stopped(&self, state: &mut State, key: &StorePath, id: JobId) {
        let wanting: Vec<RequestId> = state.schedule.wanted_by(key).collect();
        for request in wanting {
            let Some(client) = state.clients.get_mut(&request) else { continue };
            client.counts.running = client.counts.running.saturating_sub(1);
            client.feed.push(BuildEvent::Finished { job: id });
        }
    }

    /// Tells everybody who wants this job that it has ended. `told` is what it was announced as.
    pub(super) fn tell_ended(&self, state: &mut State, key: &StorePath, told: Option<JobId>, ended: &Ended) {
        let wanting: Vec<RequestId> = state.schedule.wanted_by(key).collect();
        for request in wanting {
            let Some(client) = state.clients.get_mut(&request) else { continue };
            if let (Some(job), true) = (told, ended.announced) {
                client.counts.running = client.counts.running.saturating_sub(1);
                client.feed.push(BuildEvent::Finished { job });
            }
            // It begins anew for who still wants it.
            if ended.cancelled {
                client.tell_progress();
                continue;
            }
            if ended.lacks {
                client.feed.lacks();
            }
            let count = if ended.is_success() { &mut client.counts.done } else { &mut client.counts.failed };
            *count += 1;
            if !ended.is_success() && !ended.lacks && !client.goals.contains(key) {
                client.feed.push(BuildEvent::Message(error_text(&ended.result.error_msg)));
            }
            client.tell_progress();
        }
    }

    pub(super) fn answer(
        &self,
        state: &mut State,
        request: RequestId,
        key: StorePath,
        answer: Answer<StorePath>,
        ended: Option<&Ended>,
    ) {
        let texts = Texts { dir: &self.dir, drv_path: &key };
        let failed = |failure: Failure| BuildResult::new(failure.status, failure.message);
        let is_given_up = match &answer {
            Answer::GivenUp { .. } => true,
            Answer::Failed => ended.is_some_and(|ended| ended.gives_up),
            _ => false,
        };
        let result = match answer {
            Answer::Done | Answer::Failed | Answer::GivenUp { .. } => match ended {
                Some(ended) => ended.result.clone(),
                None => failed(Failure::cancelled()),
            },
            Answer::DependencyFailed { .. } => {
                let outputs = state.jobs.get(&key).map(|job| job.task.known_outputs(&self.dir)).unwrap_or_default();
                failed(texts.dependency_failed(&outputs))
            }
            Answer::Abandoned { failed: other } => failed(texts.abandoned(&other)),
        };
        if let Some(client) = state.clients.get_mut(&request) {
            result.built_outputs.values().for_each(|built| client.roots.add(&built.out_path));
            client.goals.remove(&key);
            if is_given_up {
                client.feed.gives_up();
            }
            client.feed.settle(key, result);
            if client.goals.is_empty() {
                state.clients.remove(&request);
                state.traces.end(request, false, self.now_ms());
            }
        }
    }

    /// Tells everybody who wants this run of a job.
    pub(super) fn tell(&self, id: JobId, key: &StorePath, event: &BuildEvent) {
        let mut state = self.lock();
        if state.guests.tell(id, event) {
            return;
        }
        let running = state.jobs.get_mut(key).and_then(|job| job.running.as_mut());
        let Some(running) = running.filter(|running| running.id == id) else { return };
        running.past.note(event);
        running.watchers.iter().for_each(|watcher| watcher.push(event.clone()));
        let wanting: Vec<RequestId> = state.schedule.wanted_by(key).collect();
        for request in wanting {
            let Some(client) = state.clients.get_mut(&request) else { continue };
            client.feed.push(event.clone());
            if matches!(event, BuildEvent::Started { .. }) {
                client.counts.running += 1;
                client.tell_progress();
            }
        }
    }
}
