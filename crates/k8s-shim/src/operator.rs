//! Sizes pools: hears the API server's watch and the mesh's gossip, decides, writes.
//!
//! Invariants:
//! - it asks the API server for nothing twice: sets come by watch, and a change of size is one write, which names the
//!   version that it was decided by, so that it comes second to whatever changed meanwhile;
//! - after a write, or one that failed, nothing more is written of that set until the watch has shown it anew, or
//!   [`AFTER_WRITE`] has passed; after somebody else changed its size, not for [`AFTER_OTHERS`];
//! - where gossip shows none of a pool's nodes and the API server says that some are ready, the size stays;
//! - what is wrong is said once, in the log, as an event and in the status, and so is its end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use k8s_openapi::api::apps::v1::StatefulSet;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch_sets};
use kube::{Client, Error};
use serde_json::json;
use shoal_grid::sizing::{Reason, Sizer, Verdict};
use shoal_mesh::roster::Roster;
use shoal_wire::mesh::demand::Amount;
use shoal_wire::mesh::departure::{DrainOrders, number};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::metrics::{Metrics, reason_name};
use crate::observer::Observer;
use crate::pools::{self, Spec, SpecError};
use crate::size::{self, Known, Seen};
use crate::status::Events;

/// How often it is decided while nothing is heard: time alone makes a pool quiet.
const PERIOD: Duration = Duration::from_secs(5);
/// How often it is decided at most, however much is heard.
const PERIOD_MIN: Duration = Duration::from_secs(1);
const AFTER_WRITE: Duration = Duration::from_secs(10);
const AFTER_OTHERS: Duration = Duration::from_secs(30);
/// How long one write may take.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);

/// One pool, as it was left.
#[derive(Default)]
struct Pool {
    spec: Option<Result<Spec, SpecError>>,
    known: Known,
    sizer: Sizer,
    /// What the last write was decided by, and when.
    written: Option<(Option<String>, u32, Instant)>,
    /// What it set.
    wanted: Option<u32>,
    others_at: Option<Instant>,
    problem: Option<String>,
    /// Which listing showed it last.
    listing: u64,
}

pub struct Operator {
    sets: Api<StatefulSet>,
    observer: Observer,
    metrics: Arc<Metrics>,
    events: Events,
    dry_run: bool,
    leads: watch::Receiver<bool>,
    pools: BTreeMap<String, Pool>,
    /// Counts listings; what the newest did not show is gone.
    listing: u64,
    began: Instant,
    api_fails: bool,
    unserved: bool,
}

impl Operator {
    pub fn new(
        client: Client,
        namespace: String,
        observer: Observer,
        metrics: Arc<Metrics>,
        dry_run: bool,
        leads: watch::Receiver<bool>,
    ) -> Self {
        Operator {
            sets: Api::namespaced(client.clone(), &namespace),
            events: Events::new(client, namespace),
            observer,
            metrics,
            dry_run,
            leads,
            pools: BTreeMap::new(),
            listing: 0,
            began: Instant::now(),
            api_fails: false,
            unserved: false,
        }
    }

    /// Works for as long as it is polled.
    pub async fn run(mut self, selector: &str) {
        let config = watcher::Config::default().labels(selector);
        let mut heard = Box::pin(watch_sets(self.sets.clone(), config).default_backoff());
        let mut rosters = self.observer.rosters();
        let mut leads = self.leads.clone();
        let mut ticks = tokio::time::interval(PERIOD_MIN);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut is_news, mut turned_at) = (false, Instant::now());
        loop {
            tokio::select! {
                Some(event) = heard.next() => is_news |= self.hear(event),
                Ok(()) = rosters.changed() => is_news = true,
                Ok(()) = leads.changed() => is_news = true,
                _ = ticks.tick() => if is_news || turned_at.elapsed() >= PERIOD {
                    self.turn().await;
                    (is_news, turned_at) = (false, Instant::now());
                },
            }
        }
    }

    /// Whether it is news.
    fn hear(&mut self, event: Result<Event<StatefulSet>, watcher::Error>) -> bool {
        match &event {
            Err(error) => {
                self.metrics.api_failed();
                if !std::mem::replace(&mut self.api_fails, true) {
                    let error = format!("{error:#}");
                    tracing::warn!(error, "cannot watch the StatefulSets; it is tried again, and sizes stay");
                }
                return false;
            }
            Ok(_) if std::mem::replace(&mut self.api_fails, false) => tracing::info!("the API server answers again"),
            Ok(_) => {}
        }
        match event {
            Ok(Event::Init) => self.listing += 1,
            Ok(Event::InitApply(set) | Event::Apply(set)) => self.learn(&set),
            Ok(Event::InitDone) => self.pools.retain(|_, pool| pool.listing == self.listing),
            Ok(Event::Delete(set)) => drop(set.metadata.name.and_then(|name| self.pools.remove(&name))),
            Err(_) => {}
        }
        true
    }

    fn learn(&mut self, set: &StatefulSet) {
        let Some(name) = &set.metadata.name else { return };
        let pool = self.pools.entry(name.clone()).or_default();
        let spec = Spec::of(set);
        if let (Some(Ok(before)), Ok(now)) = (&pool.spec, &spec)
            && before.replicas != now.replicas
            && pool.wanted != Some(now.replicas)
        {
            tracing::info!(pool = name, from = before.replicas, to = now.replicas, "somebody else changed its size");
            pool.others_at = Some(Instant::now());
        }
        (pool.spec, pool.listing) = (Some(spec), self.listing);
    }

    async fn turn(&mut self) {
        let roster = self.observer.roster();
        let mut seen: BTreeMap<String, (Spec, Seen)> = BTreeMap::new();
        for (name, pool) in &mut self.pools {
            if let Some(Ok(spec)) = &pool.spec {
                seen.insert(name.clone(), (spec.clone(), size::look(spec, &roster, &mut pool.known)));
            }
        }
        let known = self.pools.iter().map(|(name, pool)| (name.clone(), pool.known.clone())).collect();
        let (shares, unserved) = size::share(&roster, &known);
        let leads = *self.leads.borrow();
        let mut orders = Vec::new();
        let names: Vec<String> = self.pools.keys().cloned().collect();
        for name in &names {
            let Some((spec, mut seen)) = seen.remove(name) else {
                self.judge(name, None).await;
                continue;
            };
            seen.pool.amount = shares.get(name).copied().unwrap_or_default();
            let verdict = self.decide(&spec, &seen);
            self.judge(name, Some((&seen, &verdict))).await;
            if leads {
                orders.extend(order(&spec, &verdict, &roster));
                self.write(&spec, &seen, &verdict).await;
            }
        }
        let orders = if leads && !self.dry_run { DrainOrders::new(orders) } else { DrainOrders::default() };
        self.observer.order(orders).await;
        self.tell_unserved(&unserved);
        self.metrics.keep_only(names.iter());
        self.metrics.turned(leads, unserved.ready.jobs);
    }

    fn decide(&mut self, spec: &Spec, seen: &Seen) -> Verdict {
        let pool = self.pools.entry(spec.name.clone()).or_default();
        let terms = size::terms(spec, &pool.known);
        let now_s = self.began.elapsed().as_secs();
        let mut verdict = pool.sizer.decide(&terms, &seen.pool, now_s);
        if is_blind(spec, seen) {
            verdict = Verdict { replicas: spec.replicas, drain: 0, reason: Reason::Enough };
        }
        self.metrics.decided(&spec.name, seen.pool, terms.slots, verdict.replicas, verdict.reason);
        verdict
    }

    /// Says what is wrong with a pool when that is other than before.
    async fn judge(&mut self, name: &str, seen: Option<(&Seen, &Verdict)>) {
        let leads = *self.leads.borrow() && !self.dry_run;
        let Some(pool) = self.pools.get_mut(name) else { return };
        let problem = match (&pool.spec, seen) {
            (Some(Err(error)), _) => Some(error.to_string()),
            (Some(Ok(spec)), Some((seen, verdict))) => problem(spec, seen, verdict),
            _ => None,
        };
        if pool.problem == problem {
            return;
        }
        match &problem {
            Some(problem) => tracing::warn!(pool = name, "{problem}"),
            None => tracing::info!(pool = name, "nothing is wrong with it any more"),
        }
        pool.problem = problem;
        if let (true, Some(Ok(spec))) = (leads, &pool.spec) {
            let text = pool.problem.as_deref().unwrap_or("nothing is wrong any more");
            self.events.tell(spec, pool.problem.is_some(), "Trouble", text).await;
        }
    }

    fn tell_unserved(&mut self, unserved: &Amount) {
        let is_some = unserved.ready.jobs > 0;
        if std::mem::replace(&mut self.unserved, is_some) != is_some {
            match is_some {
                true => tracing::warn!(jobs = unserved.ready.jobs, "derivations wait that no pool can run"),
                false => tracing::info!("every pool's kind of work is served again"),
            }
        }
    }

    /// Sets the size, where it is to change and nothing speaks against it.
    async fn write(&mut self, spec: &Spec, seen: &Seen, verdict: &Verdict) {
        let Some(pool) = self.pools.get_mut(&spec.name) else { return };
        let basis = (spec.resource_version.clone(), spec.replicas);
        let is_same = |(version, replicas, at): &(Option<String>, u32, Instant)| {
            (version, *replicas) == (&basis.0, basis.1) && at.elapsed() < AFTER_WRITE
        };
        let is_too_soon =
            pool.written.as_ref().is_some_and(is_same) || pool.others_at.is_some_and(|at| at.elapsed() < AFTER_OTHERS);
        if verdict.replicas == spec.replicas || is_too_soon {
            return;
        }
        let why = why(spec, seen, verdict);
        tracing::info!(pool = spec.name, from = spec.replicas, to = verdict.replicas, why, dry_run = self.dry_run);
        (pool.written, pool.wanted) = (Some((basis.0, basis.1, Instant::now())), Some(verdict.replicas));
        if self.dry_run {
            return;
        }
        let status = json!({ "replicas": verdict.replicas, "reason": reason_name(verdict.reason), "why": why });
        let change = json!({
            "metadata": {
                "resourceVersion": spec.resource_version,
                "annotations": { pools::STATUS: status.to_string() },
            },
            "spec": { "replicas": verdict.replicas },
        });
        let patch = Patch::Merge(&change);
        match timeout(WRITE_PATIENCE, self.sets.patch(&spec.name, &PatchParams::default(), &patch)).await {
            Ok(Ok(_)) => {
                self.metrics.wrote(&spec.name);
                self.events
                    .tell(spec, false, "Sized", &format!("from {} to {}: {why}", spec.replicas, verdict.replicas))
                    .await;
            }
            Ok(Err(Error::Api(status))) if status.code == 409 => {
                self.metrics.conflicted(&spec.name);
                tracing::info!(pool = spec.name, "it was changed meanwhile; it is looked at again");
            }
            Ok(Err(error)) => self.failed(&spec.name, &error.to_string()),
            Err(_) => self.failed(&spec.name, "no answer in time"),
        }
    }

    fn failed(&self, name: &str, error: &str) {
        self.metrics.api_failed();
        tracing::warn!(pool = name, error, "cannot set the size; it is tried again");
    }
}

/// The API server says that nodes are there of which the mesh knows none: one of both is wrong.
fn is_blind(spec: &Spec, seen: &Seen) -> bool {
    seen.live == 0 && spec.ready > 0
}

fn problem(spec: &Spec, seen: &Seen, verdict: &Verdict) -> Option<String> {
    if is_blind(spec, seen) {
        return Some(format!(
            "{} of its pods are ready, and none is a live node of the mesh: the size stays. Node names have to be those of the pods, and the pods in this mesh",
            spec.ready
        ));
    }
    if !seen.doubled.is_empty() {
        return Some(format!("two live nodes are called {}: none of them is scaled away", seen.doubled.join(", ")));
    }
    if !seen.lost.is_empty() {
        return Some(format!(
            "nodes that were in the mesh do not live: {}; they are not scaled away, since nobody knows what only they have",
            seen.lost.join(", ")
        ));
    }
    let waits = seen.pool.amount.ready.jobs;
    (verdict.reason == Reason::AtMax)
        .then(|| format!("{waits} derivations wait, and it has all the nodes that it may ({})", spec.max))
}

fn why(spec: &Spec, seen: &Seen, verdict: &Verdict) -> String {
    let Amount { ready, coming, .. } = seen.pool.amount;
    match verdict.reason {
        Reason::Shrink => format!("its last {} have drained", spec.replicas.saturating_sub(verdict.replicas)),
        _ => format!(
            "{} derivations are ready ({} slot-seconds), {} are coming ({}), {} nodes are active with {} builds",
            ready.jobs, ready.slot_s, coming.jobs, coming.slot_s, seen.pool.active, seen.pool.busy
        ),
    }
}

/// Which of a pool's nodes are to drain. Those that go are asked until they are gone.
fn order(spec: &Spec, verdict: &Verdict, roster: &Roster) -> Option<(String, u32)> {
    let end = spec.first.saturating_add(verdict.replicas);
    let is_leaving = |name: &str| number(name).is_some_and(|(group, number)| group == spec.name && number >= end);
    let lingers = roster.live().any(|peer| is_leaving(&peer.record.name));
    (verdict.drain > 0 || lingers).then(|| (spec.name.clone(), end.saturating_sub(verdict.drain)))
}
