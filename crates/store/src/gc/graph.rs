//! Which path refers to which, as of one moment.

use super::rests::Rests;
use crate::error::{GcError, Result};
use crate::index::path_record::PathRecord;
use crate::index::tables::{PATHS, USES};
use crate::paths::{base_name, hash_bytes};
use crate::store::Store;
use redb::ReadableTable;
use shoal_wire::nix::store_path::StorePath;
use std::collections::HashMap;

/// All valid paths, numbered in their order.
pub struct Graph {
    paths: Vec<StorePath>,
    roots: Vec<[u8; 32]>,
    /// References of path `n`: `references[starts[n]..starts[n + 1]]`, itself left out.
    references: Vec<u32>,
    starts: Vec<usize>,
    derivers: Vec<Option<u32>>,
    /// When each was used last, or else came, in seconds since 1970.
    used: Vec<u64>,
}

/// One flag a path.
pub type Marks = Vec<bool>;

impl Graph {
    pub fn read(store: &Store) -> Result<Self> {
        let mut rests = Rests::new(&store.segments);
        store.index.read(|txn| {
            let (table, uses) = (txn.open_table(PATHS)?, txn.open_table(USES)?);
            let mut graph = Graph {
                paths: Vec::new(),
                roots: Vec::new(),
                references: Vec::new(),
                starts: vec![0],
                derivers: Vec::new(),
                used: Vec::new(),
            };
            for row in table.iter()? {
                graph.paths.push(base_name(row?.0.value())?);
            }
            for row in table.iter()? {
                let (key, row) = row?;
                let record = PathRecord::decode(key.value(), row.value())?;
                let used = uses.get(&hash_bytes(&record.info.path))?.map(|used| used.value());
                graph.used.push(used.unwrap_or(record.info.registration_time));
                graph.add(&record);
                rests.rest(0);
            }
            Ok(graph)
        })
    }

    fn add(&mut self, record: &PathRecord) {
        let number = self.roots.len();
        for reference in &record.info.references {
            if let Some(reference) = self.number(reference).filter(|&reference| reference != number) {
                self.references.push(reference as u32);
            }
        }
        self.starts.push(self.references.len());
        let deriver = record.info.deriver.as_ref().and_then(|deriver| self.number(deriver));
        self.derivers.push(deriver.map(|deriver| deriver as u32));
        self.roots.push(record.content_root);
    }

    fn number(&self, path: &StorePath) -> Option<usize> {
        self.paths.binary_search(path).ok()
    }

    pub fn path(&self, number: usize) -> &StorePath {
        &self.paths[number]
    }

    pub fn content_root(&self, number: usize) -> &[u8; 32] {
        &self.roots[number]
    }

    pub fn paths_where(&self, keep: impl Fn(usize) -> bool) -> Vec<StorePath> {
        (0..self.paths.len()).filter(|&number| keep(number)).map(|number| self.paths[number].clone()).collect()
    }

    /// How many paths have each manifest.
    pub fn manifest_users(&self) -> HashMap<[u8; 32], u32> {
        let mut users = HashMap::new();
        for root in &self.roots {
            *users.entry(*root).or_insert(0) += 1;
        }
        users
    }

    fn references(&self, number: usize) -> &[u32] {
        &self.references[self.starts[number]..self.starts[number + 1]]
    }

    /// What the store's roots reach.
    pub fn live(&self, store: &Store, keep_derivations: bool) -> Result<Marks> {
        let mut live = vec![false; self.paths.len()];
        let roots = store.roots()?;
        let mut pending: Vec<usize> = roots.iter().filter_map(|(_, path)| self.number(path)).collect();
        while let Some(number) = pending.pop() {
            if std::mem::replace(&mut live[number], true) {
                continue;
            }
            pending.extend(self.references(number).iter().map(|&reference| reference as usize));
            let deriver = self.derivers[number].filter(|_| keep_derivations);
            pending.extend(deriver.map(|deriver| deriver as usize));
        }
        Ok(live)
    }

    /// What is not live; only `wanted` and what refers to it, unless `wanted` is empty.
    pub fn dead(&self, live: &Marks, wanted: &[StorePath]) -> Vec<usize> {
        let dead = |number: &usize| !live[*number];
        if wanted.is_empty() {
            return (0..self.paths.len()).filter(dead).collect();
        }
        let referrers = self.referrers();
        let mut chosen = vec![false; self.paths.len()];
        let mut pending: Vec<usize> = wanted.iter().filter_map(|path| self.number(path)).filter(dead).collect();
        while let Some(number) = pending.pop() {
            if !std::mem::replace(&mut chosen[number], true) {
                pending.extend(referrers.get(&(number as u32)).into_iter().flatten().map(|&n| n as usize));
            }
        }
        (0..self.paths.len()).filter(|&number| chosen[number]).collect()
    }

    /// Exactly `wanted`, those that are valid; an error if one of them has to stay.
    pub fn deletable(&self, live: &Marks, wanted: &[StorePath], keep_derivations: bool) -> Result<Vec<usize>, GcError> {
        let numbers: Vec<usize> = wanted.iter().filter_map(|path| self.number(path)).collect();
        let mut chosen = vec![false; self.paths.len()];
        for &number in &numbers {
            chosen[number] = true;
        }
        let referrers = self.referrers();
        for &number in &numbers {
            let mut users = referrers.get(&(number as u32)).into_iter().flatten();
            let derived = |other: usize| keep_derivations && self.derivers[other] == Some(number as u32);
            let kept = live[number]
                || users.any(|&user| !chosen[user as usize])
                || (0..self.paths.len()).any(|other| !chosen[other] && derived(other));
            if kept {
                return Err(GcError::Alive(self.paths[number].clone()));
            }
        }
        Ok((0..self.paths.len()).filter(|&number| chosen[number]).collect())
    }

    fn referrers(&self) -> HashMap<u32, Vec<u32>> {
        let mut referrers: HashMap<u32, Vec<u32>> = HashMap::new();
        for number in 0..self.paths.len() {
            for &reference in self.references(number) {
                referrers.entry(reference).or_default().push(number as u32);
            }
        }
        referrers
    }

    /// `chosen` in an order in which each path comes before what it refers to.
    pub fn referrers_first(&self, chosen: &[usize]) -> Vec<usize> {
        let mut todo = vec![false; self.paths.len()];
        for &number in chosen {
            todo[number] = true;
        }
        // Depth first, with the position in each path's references kept on a stack of our own.
        let mut order = Vec::with_capacity(chosen.len());
        let mut stack: Vec<(usize, usize)> = Vec::new();
        for &start in chosen {
            if std::mem::replace(&mut todo[start], false) {
                stack.push((start, 0));
            }
            while let Some((number, next)) = stack.last_mut() {
                match self.references[self.starts[*number]..self.starts[*number + 1]].get(*next) {
                    Some(&reference) => {
                        *next += 1;
                        if std::mem::replace(&mut todo[reference as usize], false) {
                            stack.push((reference as usize, 0));
                        }
                    }
                    None => {
                        order.push(*number);
                        stack.pop();
                    }
                }
            }
        }
        order.reverse();
        order
    }

    /// `chosen`, what was used longest ago first, and still each path before what it refers to: using
    /// a path uses all it refers to.
    pub fn oldest_first(&self, chosen: &[usize]) -> Vec<usize> {
        let mut order = self.referrers_first(chosen);
        let mut used = self.used.clone();
        for &number in &order {
            for &reference in self.references(number) {
                used[reference as usize] = used[reference as usize].max(used[number]);
            }
        }
        order.sort_by_key(|&number| used[number]);
        order
    }
}
