//! What it knows and did, as Prometheus reads it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use shoal_grid::sizing::{Pool, Reason};

/// A turn that takes longer hangs.
const TURN_MAX: Duration = Duration::from_secs(60);

#[derive(Default)]
pub struct Metrics(Mutex<State>);

#[derive(Default)]
struct State {
    pools: BTreeMap<String, PoolState>,
    unserved_jobs: u32,
    is_leader: bool,
    api_errors: u64,
    turns: u64,
    turn_at: Option<Instant>,
}

#[derive(Default)]
struct PoolState {
    pool: Pool,
    slots: u32,
    target: u32,
    reason: Option<Reason>,
    writes: u64,
    conflicts: u64,
}

pub fn reason_name(reason: Reason) -> &'static str {
    match reason {
        Reason::Enough => "enough",
        Reason::Grow => "grow",
        Reason::AtMax => "at_max",
        Reason::Quieting => "quieting",
        Reason::Draining => "draining",
        Reason::Shrink => "shrink",
        Reason::AtMin => "at_min",
    }
}

impl Metrics {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Numbers are whole after each line.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn decided(&self, name: &str, pool: Pool, slots: u32, target: u32, reason: Reason) {
        let mut state = self.lock();
        let known = state.pools.entry(name.to_owned()).or_default();
        (known.pool, known.slots, known.target, known.reason) = (pool, slots, target, Some(reason));
    }

    pub fn wrote(&self, name: &str) {
        self.lock().pools.entry(name.to_owned()).or_default().writes += 1;
    }

    pub fn conflicted(&self, name: &str) {
        self.lock().pools.entry(name.to_owned()).or_default().conflicts += 1;
    }

    pub fn api_failed(&self) {
        self.lock().api_errors += 1;
    }

    /// A turn of the operator has ended.
    pub fn turned(&self, is_leader: bool, unserved_jobs: u32) {
        let mut state = self.lock();
        (state.is_leader, state.unserved_jobs, state.turn_at) = (is_leader, unserved_jobs, Some(Instant::now()));
        state.turns += 1;
    }

    pub fn keep_only<'a>(&self, names: impl Iterator<Item = &'a String>) {
        let names: Vec<&String> = names.collect();
        self.lock().pools.retain(|name, _| names.contains(&name));
    }

    /// Whether it goes on. That the API server is away is no reason to be started again.
    pub fn health(&self) -> Result<(), String> {
        match self.lock().turn_at.map(|at| at.elapsed()) {
            Some(ago) if ago > TURN_MAX => Err(format!("nothing was decided for {} s", ago.as_secs())),
            _ => Ok(()),
        }
    }

    pub fn text(&self) -> String {
        let state = self.lock();
        let mut text = String::new();
        type Rows = fn(&PoolState) -> Vec<(String, u64)>;
        let families: [(&str, &str, &str, Rows); 7] = [
            ("shoal_k8s_replicas", "gauge", "Nodes that a pool has and is to have.", |pool| {
                vec![labelled("kind", "current", pool.pool.replicas), labelled("kind", "target", pool.target)]
            }),
            ("shoal_k8s_nodes", "gauge", "Nodes by what they do.", |pool| {
                vec![
                    labelled("state", "active", pool.pool.active),
                    labelled("state", "draining", pool.pool.draining),
                    labelled("state", "drained", pool.pool.drained),
                ]
            }),
            ("shoal_k8s_slots", "gauge", "Slots of active nodes, and those in use.", |pool| {
                let all = pool.pool.active.saturating_mul(pool.slots);
                vec![labelled("kind", "all", all), labelled("kind", "busy", pool.pool.busy)]
            }),
            ("shoal_k8s_demand_jobs", "gauge", "Derivations that wait for slots now, and soon.", |pool| {
                let amount = &pool.pool.amount;
                vec![labelled("kind", "ready", amount.ready.jobs), labelled("kind", "coming", amount.coming.jobs)]
            }),
            ("shoal_k8s_demand_slot_seconds", "gauge", "Estimated time of those.", |pool| {
                let amount = &pool.pool.amount;
                vec![labelled("kind", "ready", amount.ready.slot_s), labelled("kind", "coming", amount.coming.slot_s)]
            }),
            ("shoal_k8s_reason", "gauge", "Why a pool has the size that it has.", |pool| {
                pool.reason.map(|reason| labelled("reason", reason_name(reason), 1u32)).into_iter().collect()
            }),
            ("shoal_k8s_writes_total", "counter", "Changes of size.", |pool| vec![(String::new(), pool.writes)]),
        ];
        for (name, kind, help, rows) in families {
            family(&mut text, name, kind, help);
            for (pool, known) in &state.pools {
                for (labels, value) in rows(known) {
                    let _ = writeln!(text, "{name}{{pool=\"{pool}\"{labels}}} {value}");
                }
            }
        }
        family(&mut text, "shoal_k8s_conflicts_total", "counter", "Changes of size that came second.");
        for (pool, known) in &state.pools {
            let _ = writeln!(text, "shoal_k8s_conflicts_total{{pool=\"{pool}\"}} {}", known.conflicts);
        }
        for (name, kind, help, value) in [
            ("shoal_k8s_unserved_jobs", "gauge", "Derivations that no pool can run.", u64::from(state.unserved_jobs)),
            ("shoal_k8s_is_leader", "gauge", "Whether this one decides.", u64::from(state.is_leader)),
            ("shoal_k8s_api_errors_total", "counter", "Requests to the API server that failed.", state.api_errors),
            ("shoal_k8s_turns_total", "counter", "Times that all pools were looked at.", state.turns),
        ] {
            family(&mut text, name, kind, help);
            let _ = writeln!(text, "{name} {value}");
        }
        text
    }
}

/// Writing to a string does not fail.
fn family(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn labelled(label: &str, value: &str, number: impl Into<u64>) -> (String, u64) {
    (format!(",{label}=\"{value}\""), number.into())
}
