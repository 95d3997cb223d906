//! Where paths are: what their owners say, and where owners cannot say, what holders and then everybody says themselves.
//!
//! Invariant: a path counts as not there only when whoever could know said so; where one of them did not in
//! [`FIND_PATIENCE`], nobody can say.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use shoal_grid::membership::member::Standing;
use shoal_mesh::fetcher::AskError;
use shoal_mesh::handle::Located;
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::path_record::{PathKey, PathRecord};
use shoal_wire::mesh::sealed::Sealed;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use super::Inner;
use super::lore::{ASKED_MAX, PATIENCE};
use crate::upstream::Held;

/// How long somebody waits for what other nodes know of some paths: two seconds for owners that are silent, and three for
/// nodes that are asked instead and are busy.
const FIND_PATIENCE: Duration = Duration::from_secs(5);
/// How long nodes are asked themselves: one that is busy says so at once, and what waits may be a build.
const SAY_PATIENCE: Duration = Duration::from_secs(2);
/// How often a node is asked that is too busy, or whose connection breaks: it was started again, or the link was left over
/// from its life before.
const TRIES_MAX: usize = 5;
const TRY_AGAIN: Duration = Duration::from_millis(100);

/// What is wanted of which node: places in the list of keys.
type Questions = BTreeMap<NodeKey, Vec<usize>>;
type Records = Vec<Option<Arc<Sealed<PathRecord>>>>;
/// The same as a node says it of itself, whatever members think of that node.
pub(super) type Said = Vec<Option<Sealed<PathRecord>>>;

/// What came of looking for a path at other nodes.
pub enum Sought {
    Held(Held),
    /// No node that lives has it, and each could be asked. `may_return`: one that is dead may have it.
    Missing {
        may_return: bool,
    },
    /// Somebody who lives could not be asked: asked again, he may have it.
    Unknown,
}

impl Sought {
    pub fn held(self) -> Option<Held> {
        match self {
            Sought::Held(held) => Some(held),
            Sought::Missing { .. } | Sought::Unknown => None,
        }
    }
}

impl Inner {
    /// No node that lives has a path.
    pub(super) fn missing(&self) -> Sought {
        Sought::Missing { may_return: self.mesh.roster().has_dead() }
    }

    /// One for each of `keys`.
    pub(super) async fn find(self: &Arc<Self>, keys: &[PathKey]) -> Vec<Sought> {
        let deadline = Instant::now() + FIND_PATIENCE;
        let me = self.mesh.me();
        let mut search = Search { inner: self, keys, deadline, found: vec![None; keys.len()], unsure: BTreeSet::new() };
        // Holders whose owners had not been told what they answer for, and paths of which no owner can say anything.
        let (mut at_holders, mut unknown) = (Questions::new(), BTreeSet::new());
        // Owners that did not answer in time.
        let mut silent = BTreeSet::new();
        for (index, located) in self.mesh.look_up(keys).await.into_iter().enumerate() {
            match located {
                Located::Held(mut whereabouts) => {
                    whereabouts.holders.retain(|holder| *holder != me);
                    match whereabouts.record {
                        _ if whereabouts.holders.is_empty() => {}
                        Some(record) => search.found[index] = Some(Held { record, holders: whereabouts.holders }),
                        None => {
                            // Who let this node wait a moment ago would do so for each path again.
                            let asked = whereabouts.holders.iter().filter(|node| !self.has_been_quiet(node));
                            asked.for_each(|node| at_holders.entry(*node).or_default().push(index));
                            unknown.insert(index);
                        }
                    }
                }
                Located::Missing => {}
                Located::Unknown(owners) => {
                    unknown.insert(index);
                    silent.extend(owners);
                }
            }
        }
        if !at_holders.is_empty() {
            search.ask(at_holders, &silent).await;
            for index in unknown.iter().filter(|index| search.found[**index].is_none()) {
                self.mesh.doubt(keys[*index]).await;
            }
        }
        unknown.retain(|index| search.found[*index].is_none());
        if !unknown.is_empty() {
            // A mesh that has just started, or whose owners are out of reach.
            let all: Vec<usize> = unknown.into_iter().collect();
            let roster = self.mesh.roster();
            let others: Vec<NodeKey> = roster.live().map(|peer| peer.record.node).filter(|node| *node != me).collect();
            let asked = others.iter().filter(|node| !self.is_quiet(node)).take(ASKED_MAX);
            let questions: Questions = asked.map(|node| (*node, all.clone())).collect();
            // What those say who were left alone before does not count any more, but what those do not who are now.
            search.unsure.clear();
            if questions.len() < others.len() {
                search.unsure.extend(&all);
            }
            search.ask(questions, &silent).await;
        }
        let Search { found, unsure, .. } = search;
        let sought = |(index, held): (usize, Option<Held>)| match held {
            Some(held) => Sought::Held(held),
            None if unsure.contains(&index) => Sought::Unknown,
            None => self.missing(),
        };
        found.into_iter().enumerate().map(sought).collect()
    }

    /// What one node says that it has of `keys`; `None`: it does not say.
    pub(super) async fn said_by(&self, node: NodeKey, keys: &[PathKey]) -> Option<Said> {
        timeout_at(Instant::now() + SAY_PATIENCE, self.answer(node, keys)).await.ok().flatten()
    }

    /// What one node has that members believe. `None`: it does not say.
    async fn insist(&self, node: NodeKey, keys: &[PathKey]) -> Option<Records> {
        Some(self.all_believed(keys, self.answer(node, keys).await?))
    }

    /// Asks one node what it has, again where it is busy or the connection breaks. `None`: it does not say.
    async fn answer(&self, node: NodeKey, keys: &[PathKey]) -> Option<Said> {
        for _ in 0..TRIES_MAX {
            match self.fetcher.records(keys, node).await {
                Ok(records) => return Some(records),
                Err(error) => {
                    tracing::debug!(%error, "a node does not say what it has");
                    if !matches!(error, AskError::Busy | AskError::Broke(_)) {
                        return None;
                    }
                }
            }
            sleep(TRY_AGAIN).await;
        }
        None
    }
}

struct Search<'a> {
    inner: &'a Arc<Inner>,
    keys: &'a [PathKey],
    deadline: Instant,
    found: Vec<Option<Held>>,
    /// Those of which somebody did not say whether he has them.
    unsure: BTreeSet<usize>,
}

impl Search<'_> {
    /// Asks several nodes at once, until each path is found or all have said what they have. For those in `silent`, and whom
    /// others suspect, it does not wait as long.
    async fn ask(&mut self, questions: Questions, silent: &BTreeSet<NodeKey>) {
        let mut open: BTreeSet<usize> = questions.values().flatten().copied().collect();
        let roster = self.inner.mesh.roster();
        let mut asked = JoinSet::new();
        for (node, wanted) in questions {
            let is_alive = roster.get(&node).is_some_and(|peer| peer.standing == Standing::Alive);
            let is_sound = is_alive && !silent.contains(&node);
            let patience = if is_sound { SAY_PATIENCE } else { PATIENCE };
            let until = self.deadline.min(Instant::now() + patience);
            let inner = self.inner.clone();
            let keys: Vec<PathKey> = wanted.iter().map(|index| self.keys[*index]).collect();
            asked.spawn(async move {
                let records = timeout_at(until, inner.insist(node, &keys)).await.ok().flatten();
                (node, wanted, records)
            });
        }
        let mut unheard = Vec::new();
        while let Some(answer) = asked.join_next().await {
            let Ok((node, wanted, records)) = answer else {
                // One that panicked said nothing.
                self.unsure.extend(&open);
                continue;
            };
            let Some(records) = records else {
                self.inner.was_quiet(node);
                self.unsure.extend(wanted);
                unheard.push(node);
                continue;
            };
            for (index, record) in wanted.into_iter().zip(records) {
                let Some(record) = record else { continue };
                open.remove(&index);
                match &mut self.found[index] {
                    Some(held) => held.holders.push(node),
                    none => *none = Some(Held { record, holders: vec![node] }),
                }
            }
            if open.is_empty() {
                return;
            }
        }
        if !unheard.is_empty() {
            let name = |node: &NodeKey| roster.get(node).map_or("", |peer| peer.record.name.as_str()).to_string();
            let nodes = unheard.iter().map(name).collect::<Vec<_>>().join(", ");
            tracing::info!(
                paths = open.len(),
                nodes,
                "nodes do not say whether they have some paths; others do not have them"
            );
        }
    }
}
